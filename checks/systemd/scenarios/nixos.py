"""The units that the NixOS modules render, on a real systemd with a real PostgreSQL and Redis.

One host is both: the primary and a client. What nixpkgs and sops-nix bring (the databases' units, the secrets, users) is
put there in the same shapes (checks/fixtures.py); what our modules write is taken as it was rendered (checks/units).
"""

from __future__ import annotations

import asyncio
import re
from functools import partial

import fixtures
from harness import KEY

from .case import Case

PSK = "/run/secrets/IO_GUARDIAN_PSK"
COORDINATOR = "io-database-coordinator.service"
WAIT = "wait-for-io-databases.service"
TARGET = "io-databases.target"
PATIENCE = 40.0

# The test opens the gate; and who is still connected when it is told to stop.
WATCHED = """\
[Service]
ExecStartPre=
ExecStartPre=/bin/sh -c 'until test -e /run/t/postgresql; do sleep 0.02; done'
ExecStartPre=/bin/sh /etc/fixtures/initdb
ExecStop=/bin/sh /etc/lab/count
"""
COUNT = """psql -XAtc "select count(*) from pg_stat_activity where usename = 'myapp'" postgres >>/run/t/connections\n"""


class Nixos(Case):
    """A host with the units of some of the example hosts."""

    hosts: tuple[str, ...] = ("nixio", "app1")

    async def asyncSetUp(self) -> None:
        await super().asyncSetUp()
        self.host.path("/run/t").chmod(0o777)
        self.host.put("/etc/hosts", "127.0.0.1 localhost nixio app1 app2\n")
        for host in self.hosts:
            fixtures.install(self.host.path("/"), fixtures.RENDERED / host)
            self.host.run("systemd-sysusers")
        for place, secret in fixtures.SECRETS.items():
            # One host is several: all of them read it.
            self.host.put(place, secret + "\n", 0o440 if place == PSK else 0o444)
        self.host.run(f"chgrp io-guardian-psk {PSK}")
        if "nixio" in self.hosts:
            fixtures.databases(self.host.path("/"), fixtures.manifest()["nixio"]["services"])
            self.host.put("/etc/lab/count", COUNT)
            self.unit("postgresql.service.d/50-watched.conf", WATCHED)
            # As nixpkgs' modules have it.
            self.host.systemctl("add-wants", "multi-user.target", "postgresql.target", "redis.service")
        # This host has the network of the machine: nobody closes ports here.
        self.unit("io-fence.service.d/50-not-here.conf", "[Unit]\nConditionPathExists=/not-here\n")
        # One guardian is all of the fleet here.
        self.host.put("/etc/io-guardian/hosts", "app1:9876\n")
        self.host.systemctl("daemon-reload")

    async def boot(self) -> None:
        """What a boot does: multi-user.target and all that it wants."""
        await self.command("systemctl", "start", "--no-block", "multi-user.target")

    def open_postgresql(self) -> None:
        self.host.put("/run/t/postgresql", "")

    def is_active(self, unit: str) -> bool:
        return self.host.state(unit) == "active"

    async def up(self, *units: str) -> None:
        for unit in (*(units or ("myapp.service",)), COORDINATOR):
            await self.until(partial(self.is_active, unit), f"{unit} to be active", PATIENCE)

    def monotonic(self, unit: str, what: str) -> int:
        name = f"{what}TimestampMonotonic"
        return int(self.host.show(unit, name)[name])

    def sessions(self) -> int:
        """Sessions of the application that PostgreSQL has seen begin."""
        return self.host.journal("postgresql.service").count("connection authorized: user=myapp")

    def told(self, action: str) -> int:
        """How often the coordinator has told all hosts to do it."""
        return len(re.findall(rf"(?m)^{action}: 1 of 1 hosts ok", self.host.journal(COORDINATOR)))

    async def connected(self, sessions: int) -> None:
        await self.until(lambda: self.sessions() >= sessions, "the application to be connected", PATIENCE)


class Fleet(Nixos):
    async def test_nothing_runs_before_the_databases_answer_and_then_all_of_it_does(self) -> None:
        await self.boot()
        await self.until(lambda: self.host.state(WAIT) == "activating", "the wait to wait")
        # Asked for by name, too, it is held back.
        await self.command("systemctl", "start", "--no-block", "myapp.service")
        await self.until(lambda: "not ready yet" in self.host.journal(WAIT), "the wait to ask")
        self.assertEqual(self.host.state("myapp.service"), "inactive")
        self.assertEqual(self.host.state(COORDINATOR), "inactive")
        self.open_postgresql()
        await self.up()
        await self.connected(1)
        self.assertGreater(self.monotonic("myapp.service", "ExecMainStart"), self.monotonic(TARGET, "ActiveEnter"))
        self.assertGreater(self.monotonic("myapp.service", "ExecMainStart"), self.monotonic("postgresql.service", "ActiveEnter"))
        # The password came from the secret through the provisioning: myapp could log in.
        self.assertEqual(self.host.state("io-databases-provision.service"), "active")
        for secret in fixtures.SECRETS.values():
            log = self.host.run("journalctl", "--no-pager", "--output=cat").stdout
            self.assertNotIn(secret, log)

    async def test_a_stop_of_postgresql_drains_first_and_its_start_undrains(self) -> None:
        self.open_postgresql()
        await self.boot()
        await self.up()
        await self.connected(1)
        seen = self.sessions()
        await self.command("systemctl", "stop", "postgresql.service")
        self.assertEqual(self.host.read("/run/t/connections").split(), ["0"], "sessions when PostgreSQL was told to stop")
        self.assertEqual(self.host.state("myapp.service"), "inactive")
        self.assertLess(self.monotonic("myapp.service", "InactiveEnter"), self.monotonic("postgresql.service", "InactiveEnter"))
        self.assertEqual(self.sessions(), seen, "nobody connected in between")
        await self.command("systemctl", "start", "postgresql.service")
        await self.up()
        await self.connected(seen + 1)

    async def test_restarted_and_killed_databases_bring_their_dependents_back(self) -> None:
        self.open_postgresql()
        await self.boot()
        await self.up()
        commands = (
            "systemctl restart postgresql.service",
            "systemctl kill --signal=KILL postgresql.service",
            "systemctl stop redis.service && systemctl start redis.service",
            # Started again when systemd has seen that it is dead: before, that would be nothing to do.
            "pid=$(systemctl show --property=MainPID --value redis.service); systemctl kill --signal=KILL redis.service; "
            'until [ "$(systemctl show --property=MainPID --value redis.service)" != "$pid" ]; do sleep 0.05; done; '
            "systemctl start redis.service",
        )
        for times, command in enumerate(commands, start=1):
            started = self.monotonic("myapp.service", "ExecMainStart")
            await self.command(command)
            await self.until(lambda: self.told("undrain") == times + 1, f"the undrain after {command}", PATIENCE)  # noqa: B023
            await self.up()
            self.assertEqual(self.told("drain"), times, command)
            self.assertGreater(self.monotonic("myapp.service", "ExecMainStart"), started, command)

    async def test_a_drained_host_stays_drained_when_a_configuration_is_switched(self) -> None:
        self.open_postgresql()
        await self.boot()
        await self.up()
        told = await self.coordinator("drain", "--hosts", "app1", "--fail-fast")
        self.assertEqual(told.returncode, 0, told.stderr)
        # What a switch does at its end.
        await self.command("systemctl", "daemon-reload")
        await self.command("systemctl", "start", "multi-user.target")
        await asyncio.sleep(0.5)
        self.assertEqual((self.host.state(TARGET), self.host.state("myapp.service")), ("inactive", "inactive"))
        self.assertEqual(self.host.run("systemctl", "list-jobs", "--no-legend").stdout, "")
        # By hand, as documented.
        await self.command("systemctl", "start", TARGET)
        await self.up()

    async def test_a_host_that_is_off_holds_up_neither_boot_nor_switch_nor_the_others(self) -> None:
        # Refused, and tried again for minutes.
        self.host.put("/etc/io-guardian/hosts", "127.0.0.1:9\napp1:9876\n")
        self.open_postgresql()
        await self.command("systemctl", "start", "multi-user.target", timeout=30)
        await self.until(lambda: self.host.state("myapp.service") == "active", "the application to be undrained", PATIENCE)
        await self.connected(1)
        self.assertEqual(self.host.state(COORDINATOR), "activating")
        # While it still tries, a stop of the database drains.
        await self.command("systemctl", "stop", "postgresql.service")
        self.assertEqual(self.host.read("/run/t/connections").split(), ["0"])
        self.assertEqual(self.host.state("myapp.service"), "inactive")

    async def test_a_key_that_was_rotated_long_after_the_start_is_the_one_that_drains(self) -> None:
        self.open_postgresql()
        await self.boot()
        await self.up()
        # As a switch does it: the secret is another, and the guardian is told to look. The coordinator is not.
        self.host.path(PSK).write_text("another " + KEY + "\n")
        await self.command("systemctl", "reload", "io-guardian.service")
        await self.command("systemctl", "stop", "postgresql.service")
        self.assertEqual(self.told("drain"), 1, self.host.journal(COORDINATOR))
        self.assertEqual(self.host.read("/run/t/connections").split(), ["0"])
        self.assertEqual(self.host.state("myapp.service"), "inactive")

    async def test_the_guardian_may_do_what_it_must_and_nothing_else(self) -> None:
        self.open_postgresql()
        await self.boot()
        await self.up()
        pid = self.host.show("io-guardian.service", "MainPID")["MainPID"]
        status = dict(line.split(":\t", 1) for line in self.host.read(f"/proc/{pid}/status").splitlines() if ":\t" in line)
        self.assertNotEqual(status["Uid"].split()[0], "0")
        self.assertEqual(int(status["CapBnd"], 16), 0)
        refused = self.host.run("runuser", "-u", "io-guardian", "--", "systemctl", "--no-ask-password", "stop", "myapp.service", check=False)
        self.assertNotEqual(refused.returncode, 0)
        self.assertEqual(self.host.state("myapp.service"), "active")


class Client(Nixos):
    """A host whose databases are elsewhere, and away."""

    hosts = ("app1",)

    async def test_a_boot_and_a_switch_go_on_while_the_databases_are_away(self) -> None:
        for _ in range(2):
            await self.command("systemctl", "start", "multi-user.target", timeout=15)
            self.assertEqual(self.host.state(WAIT), "activating")
            self.assertEqual((self.host.state(TARGET), self.host.state("myapp.service")), ("inactive", "inactive"))
        # Told to stop, it stops: the wait holds up no shutdown.
        await self.command("systemctl", "stop", WAIT, "io-guardian.service", timeout=15)


class Kinds(Nixos):
    """Dependents of all kinds: services, a oneshot and its timer."""

    hosts = ("nixio", "app2")

    async def test_services_and_timers_start_and_stop_with_the_target(self) -> None:
        self.open_postgresql()
        await self.boot()
        dependents = ("queue.service", "worker.service", "report.timer")
        await self.up(*dependents)
        self.assertEqual(self.host.state("report.service"), "inactive", "its timer starts it, and nobody else")
        await self.command("systemctl", "kill", "--signal=KILL", "queue.service")
        await self.until(lambda: self.host.state("queue.service") == "active", "the target to start it again")
        started = self.monotonic("worker.service", "ExecMainStart")
        await self.command("systemctl", "restart", TARGET)
        await self.until(lambda: self.host.state("worker.service") == "active", "the worker")
        self.assertGreater(self.monotonic("worker.service", "ExecMainStart"), started, "restarted with the target")
        told = await self.coordinator("drain", "--hosts", "app2", "--fail-fast")
        self.assertEqual(told.returncode, 0, told.stdout)
        for unit in dependents:
            self.assertEqual(self.host.state(unit), "inactive", unit)
        told = await self.coordinator("undrain", "--hosts", "app2", "--fail-fast")
        self.assertEqual(told.returncode, 0, told.stdout)
        for unit in dependents:
            self.assertEqual(self.host.state(unit), "active", unit)


CASES = (Fleet, Client, Kinds)
