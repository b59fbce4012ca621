"""A fleet on one machine: hosts in network namespaces of their own, on one switch.

This process' own network namespace is the switch: a bridge, and for each host that is on, one end of a pair of interfaces.
When a host goes off its interface is pulled first, so that the others hear nothing of its end: no closed connection, no
refusal, as with a machine that loses its power. When it goes on it has a new namespace, with nothing of the last boot.
"""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import firewall
import fixtures
import machine
from machine import CLONE_NEWNET, LIBC, MS_BIND, HostError, Machine
from size import MODEL

# As the NixOS test driver numbers them: by name.
NETWORK = "192.168.1"
# In a network of the fleet's, as hosts/common.nix has them: nothing that is rendered has to be set differently.
NETWORK6 = "fd00:1::"
BRIDGE = "switch"
# Whom the coordinator tells, on the host that has one.
TOLD = "etc/io-guardian/hosts"
# Inotify instances. A host's root has seven (systemd, D-Bus, logind), and all hosts of the machine have one root: with the
# kernel's default, 128, not even twenty hosts could boot.
WATCHERS = Path("/proc/sys/fs/inotify/max_user_instances")
WATCHERS_OF_A_HOST = 8
# Enough for some fleets at the same time.
ENOUGH = 1024
# A boot takes two seconds. On a machine that does much else, longer.
BOOT = 120.0


def command(*words: str, input: str | None = None) -> None:
    done = subprocess.run(words, input=input, capture_output=True, text=True)
    if done.returncode != 0:
        raise HostError(f"{' '.join(words)} ended with {done.returncode}: {done.stderr.strip()}")


def make_room(hosts: int) -> None:
    """Raises the kernel's limit, for these hosts beside those of other fleets. It stays raised."""
    limit = int(WATCHERS.read_text())
    if limit >= ENOUGH:
        return
    try:
        WATCHERS.write_text(f"{ENOUGH}\n")
    except OSError as error:
        if limit < hosts * WATCHERS_OF_A_HOST:
            raise HostError(f"{hosts} hosts need sysctl fs.inotify.max_user_instances={ENOUGH}; it is {limit}: {error.strerror}") from None


class Switch:
    """Needs an isolated process."""

    def __init__(self, names: list[str]) -> None:
        self.names = sorted(names)
        command("ip", "-batch", "-", input=f"link add {BRIDGE} type bridge mcast_snooping 0\nlink set {BRIDGE} up\n")
        # For links that carry in one direction only.
        self._deaf: set[tuple[str, str]] = set()

    def number(self, name: str) -> int:
        return self.names.index(name) + 1

    def hosts_file(self) -> str:
        lines = ["127.0.0.1 localhost", "::1 localhost"]
        for network in (f"{NETWORK}.", NETWORK6):
            lines += [f"{network}{self.number(name)} {name}" for name in self.names]
        return "\n".join(lines) + "\n"

    def port(self, name: str) -> str:
        return f"to-{name}"

    def plug(self, name: str, netns: Path) -> None:
        """Gives the host a network namespace, and an interface with its addresses in it."""
        netns.touch()
        told, tell = os.pipe()
        done, end = os.pipe()
        pid = os.fork()
        if pid == 0:
            # A namespace that exists as long as somebody has it, until it has a name.
            os.close(end)
            os.write(tell, b"1" if LIBC.unshare(CLONE_NEWNET) == 0 else b"0")
            os.read(done, 1)
            os._exit(0)
        os.close(tell)
        try:
            if os.read(told, 1) != b"1":
                raise HostError("unshare: no network namespace")
            machine.mount(f"/proc/{pid}/ns/net", netns, "none", MS_BIND)
            command("ip", "-batch", "-", input=f"link add {self.port(name)} type veth peer name eth1 netns {pid}\n")
        finally:
            for descriptor in (told, done, end):
                os.close(descriptor)
            os.waitpid(pid, 0)
        number = self.number(name)
        inside = f"""\
link set lo up
address add {NETWORK}.{number}/24 dev eth1
address add {NETWORK6}{number}/64 dev eth1 nodad
link set eth1 up
"""
        command("nsenter", f"--net={netns}", "ip", "-batch", "-", input=inside)
        command("ip", "-batch", "-", input=f"link set {self.port(name)} master {BRIDGE}\nlink set {self.port(name)} up\n")

    def unplug(self, name: str, netns: Path) -> None:
        command("ip", "link", "delete", self.port(name))
        machine.unmount(netns)

    def carries(self, name: str, yes: bool) -> None:
        command("ip", "link", "set", self.port(name), "up" if yes else "down")

    def hears(self, name: str, other: str, yes: bool) -> None:
        """Whether what `other` sends reaches the host."""
        (self._deaf.discard if yes else self._deaf.add)((name, other))
        rules = "".join(
            f'iifname "{self.port(sender)}" oifname "{self.port(hearer)}" drop\n' for hearer, sender in sorted(self._deaf)
        )
        chain = f"chain forward {{\ntype filter hook forward priority filter\n{rules}}}"
        command("nft", "-f", "-", input=f"table bridge lab\ndelete table bridge lab\ntable bridge lab {{\n{chain}\n}}\n")


class FleetHost(Machine):
    """A host of the fleet, with the units that the NixOS modules render for it."""

    def __init__(
        self, name: str, switch: Switch, place: Path, units: Path, facts: dict[str, Any], bin_dir: str, log: Path,
        further: list[str],
    ) -> None:
        """`further`: the fleet's hosts that are not among those rendered."""
        super().__init__(name, place, bin_dir, log, whole=False, capabilities="CAP_NET_ADMIN")
        self.switch = switch
        self.units = units
        # Of the manifest: its secrets, and what the modules say to NixOS' own.
        self.facts = facts
        self.further = further
        self.prepared = False
        self.plugged = False

    def _furnish(self, root: Path) -> None:
        super()._furnish(root)
        (root / "etc/hosts").write_text(self.switch.hosts_file())
        fixtures.install(root, self.units)
        if (told := root / TOLD).exists():
            lines = told.read_text().splitlines()
            model = next(line for line in lines if line.startswith(f"{MODEL}:"))
            told.write_text("\n".join([*lines, *(model.replace(MODEL, name, 1) for name in self.further)]) + "\n")
        services = self.facts["services"]
        if "postgresql" in services:
            fixtures.databases(root, services)
            wanted = root / fixtures.UNITS / "multi-user.target.wants"
            for unit in ("postgresql.target", "redis.service"):
                (wanted / unit).symlink_to(f"../{unit}")
        # Unlike /run, it is there after a reboot, and so is what failed before it.
        conf = root / "etc/systemd/journald.conf.d/lab.conf"
        conf.write_text("[Journal]\nStorage=persistent\nForwardToConsole=yes\nMaxLevelConsole=info\n")
        self._secrets(root)
        command("chroot", str(root), "systemd-sysusers")

    def _secrets(self, root: Path) -> None:
        """In /run before any unit that could read them, at each boot: as sops-nix decrypts them in activation."""
        rules = ["d /run/secrets 0751 root root -"]
        for place, secret in self.facts["secrets"].items():
            source = f"/etc/fixtures/secrets{place}"
            target = root / source.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(fixtures.SECRETS[place] + "\n")
            target.chmod(0o400)
            if (folder := os.path.dirname(place)) != "/run/secrets":
                rules.append(f"d {folder} 0751 root root -")
            rules.append(f"C {place} {secret['mode']} {secret['owner'] or 'root'} {secret['group'] or 'root'} - {source}")
        (root / "etc/tmpfiles.d").mkdir(exist_ok=True)
        (root / "etc/tmpfiles.d/secrets.conf").write_text("\n".join(rules) + "\n")

    def on(self) -> None:
        """Begins to boot."""
        if not self.prepared:
            self.prepare()
            self.prepared = True
        netns = self.place / "netns"
        self.switch.plug(self.name, netns)
        self.plugged = True
        table = firewall.table(self.facts["services"]["firewall"])
        command("nsenter", f"--net={netns}", "nft", "-f", "-", input=table)
        self.spawn(netns)

    def await_systemd(self) -> None:
        """Waits until its PID 1 takes commands."""
        deadline = time.monotonic() + BOOT
        self.await_boot(deadline)
        while self.run("systemctl", "is-system-running", check=False).stdout.strip() in ("", "offline", "unknown"):
            if time.monotonic() > deadline or self.is_over():
                raise HostError(f"{self.name}: its systemd does not answer\n{self.said()}")
            time.sleep(0.05)

    def off(self) -> None:
        """Its power is cut; or it is off already, and what is left of it is taken away."""
        if self.plugged:
            self.switch.unplug(self.name, self.place / "netns")
            self.plugged = False
        self.kill()

    def await_off(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self.is_over():
            if time.monotonic() > deadline:
                raise HostError(f"{self.name} did not power off within {seconds} s")
            time.sleep(0.02)
        self.off()

    def freeze(self, yes: bool) -> None:
        """All of its processes stand still, its kernel does not: as when a machine's disk hangs."""
        top = machine.unified_hierarchy()
        group = next(
            (line[3:] for line in Path(f"/proc/{self.leader}/cgroup").read_text().splitlines() if line.startswith("0::")), None
        )
        if top is None or group is None or not group.endswith("/init.scope"):
            raise HostError(f"{self.name} cannot be frozen: it is in no control group of the second version")
        place = top / group.removesuffix("/init.scope").lstrip("/")
        (place / "cgroup.freeze").write_text("1" if yes else "0")
        deadline = time.monotonic() + 10
        while f"frozen {1 if yes else 0}" not in (place / "cgroup.events").read_text():
            if time.monotonic() > deadline:
                raise HostError(f"{self.name}: {place} does not {'freeze' if yes else 'thaw'}")
            time.sleep(0.01)

    def end(self) -> None:
        self.off()
        if self.prepared:
            self.discard()
            self.prepared = False
