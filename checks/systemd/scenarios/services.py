"""The guardian and the waiter as services of systemd: readiness, watchdog, sockets, rights, a polite end."""

from __future__ import annotations

import asyncio
import re
import unittest

from harness import PONG, Peer

from .case import GATED, KEY_FILE, TARGET, Case, service

# What the NixOS module will ship: one user, one target, two verbs.
POLKIT = """\
polkit.addRule(function(action, subject) {
    if (action.id == "org.freedesktop.systemd1.manage-units" &&
        subject.user == "io-guardian" &&
        action.lookup("unit") == "io-databases.target") {
        return polkit.Result.YES;
    }
});
"""


class Services(Case):
    def guardian_pid(self) -> int:
        return int(self.host.show("io-guardian.service", "MainPID")["MainPID"])

    async def test_it_is_ready_when_it_listens_and_says_what_it_does(self) -> None:
        self.apps(1)
        self.guardian()
        # `systemctl start` has returned: it must take connections now.
        peer = await Peer.trusted()
        await peer.close()
        shown = self.host.show("io-guardian.service", "ActiveState", "StatusText")
        self.assertEqual(shown["ActiveState"], "active")
        self.assertNotEqual(shown["StatusText"], "")
        peer = await self.peer()
        await peer.ask("undrain")
        drained = await peer.ask("drain")
        self.ok(drained)
        self.assertRegex(self.host.show("io-guardian.service", "StatusText")["StatusText"].lower(), "drain")

    async def test_a_guardian_that_hangs_is_ended_by_the_watchdog_and_a_working_one_is_not(self) -> None:
        self.graph({"app.service": service(GATED)})
        self.guardian(service="WatchdogSec=2\nRestart=on-failure\nRestartSec=0\n")
        pid = self.guardian_pid()
        peer = await self.peer()
        await peer.ask("undrain")
        # A long command is progress as long as others are answered.
        await peer.send("drain")
        await self.begun()
        other = await self.peer()
        for _ in range(10):
            await asyncio.sleep(0.5)
            self.assertEqual(await other.say_text('{"type": "command", "action": "ping"}'), PONG)
        self.assertEqual(self.guardian_pid(), pid)
        self.open_gate()
        self.ok(await peer.receive(), "drain")
        self.host.systemctl("kill", "--signal=STOP", "io-guardian.service")

        def is_back() -> bool:
            # It has a process before it listens: `active` is its READY=1.
            shown = self.host.show("io-guardian.service", "MainPID", "ActiveState")
            return shown["ActiveState"] == "active" and int(shown["MainPID"]) not in (0, pid)

        await self.until(is_back, "a new guardian", timeout=20)
        again = await self.peer()
        self.ok(await again.ask("undrain"))

    async def test_sigterm_answers_what_is_in_flight_and_then_ends_with_0(self) -> None:
        self.graph({"app.service": service(GATED)})
        peer = await self.ready()
        await peer.send("drain")
        await self.begun()
        stop = self.later(self.command("systemctl", "stop", "io-guardian.service"))
        await self.until(lambda: self.host.state("io-guardian.service") == "deactivating", "the guardian to be told")
        self.open_gate()
        self.ok(await peer.receive(), "drain")
        code, _ = await peer.closed()
        self.assertEqual(code, 1001)
        await stop
        shown = self.host.show("io-guardian.service", "ActiveState", "Result", "ExecMainStatus", "ExecMainCode")
        self.assertEqual((shown["ActiveState"], shown["Result"], shown["ExecMainStatus"]), ("inactive", "success", "0"))
        self.nothing_left()

    async def test_sigterm_ends_an_idle_guardian_although_peers_and_strangers_are_connected(self) -> None:
        self.guardian(service="TimeoutStopSec=10")
        trusted = await self.peer()
        await self.stranger()
        _, silent = await asyncio.open_connection("127.0.0.1", 9876)
        await self.command("systemctl", "stop", "io-guardian.service")
        shown = self.host.show("io-guardian.service", "ActiveState", "Result")
        self.assertEqual((shown["ActiveState"], shown["Result"]), ("inactive", "success"))
        self.assertEqual((await trusted.closed())[0], 1001)
        silent.close()

    async def test_stopping_the_guardian_leaves_the_dependents_alone(self) -> None:
        self.apps(2)
        await self.ready()
        before = self.host.show("app-1.service", "MainPID")
        self.host.systemctl("restart", "io-guardian.service")
        self.active(TARGET, "app-1.service", "app-2.service")
        self.assertEqual(self.host.show("app-1.service", "MainPID"), before)

    async def test_systemd_gives_it_the_socket_and_no_connection_is_lost_over_a_restart(self) -> None:
        self.apps(1)
        self.unit("io-guardian.socket", "[Socket]\nListenStream=[::1]:7777\nListenStream=127.0.0.1:7777\n")
        self.guardian(unit="Requires=io-guardian.socket\nAfter=io-guardian.socket")
        for address in ("127.0.0.1", "::1"):
            peer = await self.peer(port=7777, host=address)
            self.ok(await peer.ask("undrain"))
        self.host.systemctl("kill", "--signal=KILL", "io-guardian.service")
        await self.until(lambda: self.host.state("io-guardian.service") == "failed", "the guardian to be dead")
        # Nobody listens, but the kernel takes the connection, and systemd starts a guardian for it.
        peer = await self.peer(port=7777)
        self.ok(await peer.ask("drain"))
        self.nothing_left()

    def user(self, polkit: bool) -> None:
        self.host.run("useradd --system --no-create-home io-guardian")
        self.host.run(f"chown io-guardian {KEY_FILE}")
        if polkit:
            self.host.put("/etc/polkit-1/rules.d/50-io-guardian.rules", POLKIT)

    async def test_a_user_whom_polkit_does_not_know_gets_a_clear_error(self) -> None:
        self.apps(1)
        self.user(polkit=False)
        self.guardian(service="User=io-guardian")
        peer = await self.peer()
        for action in ("undrain", "drain"):
            if action == "drain":
                self.host.systemctl("start", TARGET)
            answer = await peer.ask(action)
            self.error(answer, TARGET, "not allowed", "polkit")
        self.assertEqual((await peer.ask("ping"))["status"], "ok")
        self.ok(await peer.ask("status"))

    async def test_a_user_whom_polkit_lets_manage_the_target_drains_and_undrains(self) -> None:
        names = self.apps(3)
        self.user(polkit=True)
        self.guardian(service="User=io-guardian\nNoNewPrivileges=yes\nCapabilityBoundingSet=\nProtectSystem=strict\n")
        peer = await self.peer()
        self.ok(await peer.ask("undrain"))
        self.active(*names)
        self.ok(await peer.ask("drain"))
        self.nothing_left()

    async def test_the_key_can_come_as_a_credential(self) -> None:
        self.guardian(service=f"LoadCredential=psk:{KEY_FILE}\nDynamicUser=yes\nExecStart=\nExecStart=/usr/local/bin/io-guardian serve --psk-file %d/psk")
        await self.peer()

    async def test_a_bad_configuration_ends_with_78_and_is_no_restart_storm(self) -> None:
        self.host.put(KEY_FILE, "short\n", 0o600)
        with self.assertRaisesRegex(Exception, "io-guardian.service"):
            self.guardian(service="Restart=always\nRestartSec=100ms\nRestartPreventExitStatus=78")
        shown = self.host.show("io-guardian.service", "ActiveState", "ExecMainStatus", "NRestarts")
        self.assertEqual(shown, {"ActiveState": "failed", "ExecMainStatus": "78", "NRestarts": "0"})
        said = self.host.journal("io-guardian.service")
        self.assertIn(KEY_FILE, said)
        self.assertNotIn("short\n", said)

    async def test_the_key_is_in_no_log_line_and_no_command_line(self) -> None:
        from harness import KEY

        self.guardian(service="Environment=RUST_LOG=trace")
        peer = await self.peer()
        await peer.ask("ping")
        self.assertNotIn(KEY, self.host.journal("io-guardian.service"))
        # Processes that end meanwhile cannot be read; that the guardian itself was, is shown.
        seen = self.host.run("cat /proc/*/cmdline /proc/*/environ 2>/dev/null || true").stdout
        self.assertIn("io-guardian\0serve", seen)
        self.assertIn("RUST_LOG=trace", seen)
        self.assertNotIn(KEY, seen)


class Redis:
    """As much of Redis as the waiter asks of it."""

    def __init__(self) -> None:
        self.answer = b"+PONG\r\n"
        self.asked = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.read(4096):
                self.asked += 1
                writer.write(self.answer)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()


class Wait(Case):
    def waiter(self, kind: str, arguments: str) -> None:
        self.unit(
            "wait-for-io-databases.service",
            f"[Service]\nType={kind}\nNotifyAccess=main\nRemainAfterExit=yes\nTimeoutStartSec=2\n"
            f"ExecStart=/usr/local/bin/io-guardian wait {arguments}\n",
        )
        self.host.systemctl("daemon-reload")

    async def held(self, kind: str) -> None:
        self.waiter(kind, "--redis 127.0.0.1:6379 --attempts 60 --interval 250ms --timeout 1s")
        started = self.later(self.command("systemctl", "start", "wait-for-io-databases.service", check=False))
        redis = Redis()
        redis.answer = b"-LOADING Redis is loading the dataset in memory\r\n"
        # Down first, then up and loading, then ready: together far longer than TimeoutStartSec=2.
        await asyncio.sleep(3)
        self.assertFalse(started.done(), self.host.journal("wait-for-io-databases.service"))
        async with await asyncio.start_server(redis, "127.0.0.1", 6379):
            await self.until(lambda: redis.asked >= 8, "the waiter to ask again and again")
            self.assertFalse(started.done(), self.host.journal("wait-for-io-databases.service"))
            redis.answer = b"+PONG\r\n"
            done = await started
        self.assertEqual(done.returncode, 0, done.stderr + self.host.journal("wait-for-io-databases.service"))
        shown = self.host.show("wait-for-io-databases.service", "Result", "ExecMainStatus")
        self.assertEqual(shown, {"Result": "success", "ExecMainStatus": "0"})
        said = self.host.journal("wait-for-io-databases.service")
        self.assertRegex(said, re.compile("loading", re.I))
        # A line for each change, not for each attempt.
        self.assertLess(len(said.splitlines()), 15, said)

    async def test_a_waiter_that_makes_sense_is_not_ended_by_a_short_timeoutstartsec_as_notify(self) -> None:
        await self.held("notify")

    async def test_a_waiter_that_makes_sense_is_not_ended_by_a_short_timeoutstartsec_as_oneshot(self) -> None:
        await self.held("oneshot")

    async def test_a_waiter_gives_up_after_its_attempts_and_says_who_did_not_answer(self) -> None:
        self.waiter("oneshot", "--redis 127.0.0.1:6379 --attempts 3 --interval 100ms --timeout 1s")
        done = await self.command("systemctl", "start", "wait-for-io-databases.service", check=False)
        self.assertNotEqual(done.returncode, 0)
        shown = self.host.show("wait-for-io-databases.service", "Result", "ExecMainStatus")
        self.assertEqual(shown, {"Result": "exit-code", "ExecMainStatus": "1"})
        self.assertIn("127.0.0.1:6379", self.host.journal("wait-for-io-databases.service"))

    async def test_dependents_start_after_the_wait_when_the_target_is_ordered_so(self) -> None:
        # The graph of the NixOS modules: the wait before the target, the target before its dependents.
        self.waiter("oneshot", "--redis 127.0.0.1:6379 --attempts 60 --interval 100ms --timeout 1s")
        self.graph({"app.service": service()}, target="Requires=wait-for-io-databases.service\nAfter=wait-for-io-databases.service\n")
        self.guardian()
        peer = await self.peer()
        await peer.send("undrain")
        answer = self.later(peer.receive())
        await asyncio.sleep(1)
        self.nothing_left()
        self.assertFalse(answer.done())
        async with await asyncio.start_server(Redis(), "127.0.0.1", 6379):
            self.ok(await answer, "undrain")
        self.active(TARGET, "app.service")


CASES: list[type[unittest.TestCase]] = [Services, Wait]
