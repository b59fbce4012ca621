"""A fleet on one machine: hosts in network namespaces of their own, on one switch.

This process' own network namespace is the switch: a bridge, and for each host that is on, one end of a pair of interfaces.
When a host goes off its interface is pulled first, so that the others hear nothing of its end: no closed connection, no
refusal, as with a machine that loses its power. When it goes on it has a new namespace, with nothing of the last boot.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import firewall
import fixtures
import machine
from clock import Clock
from disk import Disk
from fake_disk import FakeDisk
from machine import CLONE_NEWNET, LIBC, MS_BIND, HostError, Machine, NotHere
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
        # Of what the second one sends to the first one, how many percent do not arrive.
        self._lost: dict[tuple[str, str], int] = {}
        # How late the link of a host is, and by how much more or less, in milliseconds; and what makes it so.
        self._late: dict[str, tuple[int, int]] = {}
        self._relays: dict[str, subprocess.Popen[str]] = {}

    def number(self, name: str) -> int:
        return self.names.index(name) + 1

    def address(self, name: str) -> str:
        return f"{NETWORK}.{self.number(name)}"

    def hardware(self, name: str) -> str:
        """Of its interface: the same after each boot."""
        return f"02:00:00:00:00:{self.number(name):02x}"

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
            pair = f"link add {self.port(name)} type veth peer name eth1 address {self.hardware(name)} netns {pid}\n"
            command("ip", "-batch", "-", input=pair)
        finally:
            for descriptor in (told, done, end):
                os.close(descriptor)
            os.waitpid(pid, 0)
        number = self.number(name)
        inside = f"""\
link set lo up
address add {self.address(name)}/24 dev eth1
address add {NETWORK6}{number}/64 dev eth1 nodad
link set eth1 up
"""
        command("nsenter", f"--net={netns}", "ip", "-batch", "-", input=inside)
        command("ip", "-batch", "-", input=f"link set {self.port(name)} master {BRIDGE}\nlink set {self.port(name)} up\n")

        if name in self._late:
            self.slow(name, *self._late[name])

    def unplug(self, name: str, netns: Path) -> None:
        if relay := self._relays.pop(name, None):
            # Its interfaces go with it.
            relay.communicate()
            command("ip", "-batch", "-", input=f"link delete far-{name}\nlink delete by-{name}\n")
        else:
            command("ip", "link", "delete", self.port(name))
        machine.unmount(netns)

    def carries(self, name: str, yes: bool) -> None:
        command("ip", "link", "set", self.port(name), "up" if yes else "down")

    def loses(self, name: str, other: str, percent: int) -> None:
        """How much of what `other` sends does not reach the host. Each packet by chance."""
        self.all_lose([(name, other)], percent)

    def all_lose(self, pairs: list[tuple[str, str]], percent: int) -> None:
        """The same of more than one link, at the same moment: who hears, and whom."""
        self._lost |= dict.fromkeys(pairs, percent)
        rules = ""
        for (hearer, sender), lost in sorted(self._lost.items()):
            if lost:
                # nft does not compare with what is always so.
                chance = f"numgen random mod 100 < {lost}" if lost < 100 else ""
                rules += f'iifname "{self.port(sender)}" oifname "{self.port(hearer)}" {chance} drop\n'
        chain = f"chain forward {{\ntype filter hook forward priority filter\n{rules}}}"
        command("nft", "-f", "-", input=f"table bridge lab\ndelete table bridge lab\ntable bridge lab {{\n{chain}\n}}\n")

    def slow(self, name: str, latency_ms: int, jitter_ms: int) -> None:
        """All that reaches the host, and all that it sends, comes so much later, with so much more or less by chance."""
        self._late[name] = (latency_ms, jitter_ms)
        if name not in self._relays:
            self._relay(name)
        relay = self._relays[name].stdin
        assert relay
        relay.write(f"{latency_ms} {jitter_ms}\n")
        relay.flush()

    def _relay(self, name: str) -> None:
        """Puts a relay between the host and the switch. What the switch has is still called the host's port."""
        if not os.path.exists("/dev/net/tun"):
            raise NotHere("a slow link needs TAP interfaces, and there is no /dev/net/tun")
        port, far, near, between = self.port(name), f"far-{name}", f"near-{name}", f"by-{name}"
        # An interface gets another name when it is down.
        away = f"""\
link set {port} nomaster
link set {port} down
link set {port} name {far}
link add {between} type bridge mcast_snooping 0
link set {between} up
link set {far} master {between}
link set {far} up
"""
        command("ip", "-batch", "-", input=away)
        relay = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("slow.py")), port, near],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        self._relays[name] = relay
        assert relay.stdout
        if relay.stdout.readline() != "ready\n":
            raise NotHere("a slow link needs TAP interfaces, and this kernel makes none")
        inside = f"link set {near} master {between}\nlink set {near} up\nlink set {port} master {BRIDGE}\nlink set {port} up\n"
        command("ip", "-batch", "-", input=inside)


class PluggedHost(Machine):
    """A host on the switch, whatever runs on it."""

    def __init__(self, name: str, switch: Switch, place: Path, bin_dir: str, log: Path, capabilities: str) -> None:
        super().__init__(name, place, bin_dir, log, whole=False, capabilities=capabilities)
        self.switch = switch
        self.prepared = False
        self.plugged = False
        self.disks: list[Disk] = []
        self.doubles: list[FakeDisk] = []
        # Of the disk that its root is on; with none, that is memory.
        self.root_megabytes = 0

    def _furnish(self, root: Path) -> None:
        super()._furnish(root)
        (root / "etc/hosts").write_text(self.switch.hosts_file())
        # Unlike /run, it is there after a reboot, and so is what failed before it.
        conf = root / "etc/systemd/journald.conf.d/lab.conf"
        conf.write_text("[Journal]\nStorage=persistent\nForwardToConsole=yes\nMaxLevelConsole=info\n")

    def _firewall(self) -> str:
        """For `nft -f`, before it boots."""
        return ""

    def make(self) -> None:
        """Makes its files, once."""
        if not self.prepared:
            self.prepare()
            self.prepared = True

    def _before_it_is_on(self, what: str) -> None:
        # What is mounted later is not seen from inside.
        if self.plugged:
            raise HostError(f"{self.name} is on: {what} is put into a host that is off")
        self.make()

    def _own_layer(self) -> Path:
        if not self.root_megabytes:
            return super()._own_layer()
        self.disks.append(Disk(self.place / "root-disk", self.place / "layer", self.root_megabytes))
        return self.place / "layer"

    def root_disk(self, megabytes: int) -> Disk:
        """All that it writes, but to /run, /tmp and the like, on a disk of its own."""
        if self.prepared:
            raise HostError(f"{self.name} has its files already: ask for the disk of its root first")
        self.root_megabytes = megabytes
        self.make()
        return self.disks[0]

    def disk(self, folder: str, megabytes: int) -> Disk:
        """The folder on a disk of its own."""
        self._before_it_is_on("a disk")
        image = self.place / f"disk{len(self.disks)}"
        self.disks.append(Disk(image, self.root / folder.lstrip("/"), megabytes))
        return self.disks[-1]

    def double(self, folder: str) -> FakeDisk:
        """The folder on a disk's double."""
        self._before_it_is_on("a disk's double")
        self.doubles.append(FakeDisk(self.root / folder.lstrip("/")))
        return self.doubles[-1]

    def clock(self, unit: str) -> Clock:
        """A wall clock of the unit's own."""
        self._before_it_is_on("a clock")
        return Clock(self.root, unit)

    def on(self) -> None:
        """Begins to boot."""
        self.make()
        netns = self.place / "netns"
        self.switch.plug(self.name, netns)
        self.plugged = True
        if table := self._firewall():
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
        # Who waits for a stalled disk cannot be killed.
        for disk in self.disks:
            disk.go_on()
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
            self.disks.clear()
            for double in self.doubles:
                double.end()
            self.doubles.clear()


class FleetHost(PluggedHost):
    """A host of the fleet, with the units that the NixOS modules render for it."""

    def __init__(
        self, name: str, switch: Switch, place: Path, units: Path, facts: dict[str, Any], bin_dir: str, log: Path,
        further: list[str],
    ) -> None:
        """`further`: the fleet's hosts that are not among those rendered."""
        super().__init__(name, switch, place, bin_dir, log, "CAP_NET_ADMIN,CAP_IPC_LOCK")
        self.units = units
        # Of the manifest: its secrets, and what the modules say to NixOS' own.
        self.facts = facts
        self.further = further

    def _furnish(self, root: Path) -> None:
        super()._furnish(root)
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

    def _firewall(self) -> str:
        return firewall.table(self.facts["services"]["firewall"])
