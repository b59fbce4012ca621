"""The fleet of scenarios about addresses: hosts that may hold them (v1, v2, ...), three stores (e1, e2, e3) and a prober (p).

Those that may hold addresses have a systemd, with io-vip's unit as the NixOS modules render it. The others are light: namespaces with an etcd or a prober in them.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import fixtures
import judge_proof
from driver import Named
from fleet import PluggedHost, Switch, command
from judge import MS, Record, Verdict
from light import LightHost
from machine import HostError, NotHere

STORES = ("e1", "e2", "e3")
PROBER = "p"
# Milliseconds: an election is over in a third of the time to live that addresses have here.
HEARTBEAT, ELECTION = 50, 300
# An answer that is on its way is waited for so long before a time is judged.
SETTLED = 0.06
PROBE = Path(__file__).with_name("probe.py")

# Whose unit of io-vip the holders have, as the NixOS modules render it; and where that has its configuration.
MODEL = "edge1"
RENDERED = "etc/rendered/io-vip-checked.toml"
CONFIGURATION = "etc/io-vip.toml"
# Of that host, and not here: what the addresses lead to, and a store beside its holder.
LEFT_OUT = ("web.service", "etcd.service")
# What is not ours, on the same interface and beside it, and must stay as it is.
OTHERS = """\
ip address add 192.168.1.2{number:02}/24 dev eth1 label eth1:other
ip address add 203.0.113.{number}/32 dev eth1
ip address add fd00:1::2{number:02}/64 dev eth1 nodad
ip link add other address 02:00:00:00:01:{number:02x} type bridge
ip address add 198.51.100.{number}/24 dev other
ip address add fd00:2::{number}/64 dev other nodad
ip link set other up
ip route add 192.0.2.0/25 via 192.168.1.1
ip route add 192.0.2.128/25 via 192.168.1.1 src 192.168.1.2{number:02} table 100
ip route add fd00:3::/64 via fd00:1::1
ip rule add from 192.168.1.2{number:02} lookup 100 priority 1000
ip -6 rule add from fd00:1::2{number:02} lookup 100 priority 1000
ip neighbour add 192.168.1.250 lladdr 02:00:00:00:00:fa dev eth1 nud permanent
ip neighbour add fd00:1::250 lladdr 02:00:00:00:00:fa dev eth1 nud permanent
nft 'table inet other {{ set blocked {{ type ipv4_addr; elements = {{ 198.51.100.66 }}; }}; chain input {{ type filter hook input priority 0; ip saddr @blocked drop; }}; }}'
nft 'table arp other {{ chain input {{ type filter hook input priority 0; arp saddr ip 198.51.100.66 drop; }}; }}'
nft 'table ip nat {{ chain postrouting {{ type nat hook postrouting priority 100; oifname "other" masquerade; }}; }}'
"""
OTHERS_UNIT = """\
[Unit]
Before=network.target
DefaultDependencies=no
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -ec '. /etc/lab/others'
[Install]
WantedBy=multi-user.target
"""


def endpoints(switch: Switch) -> list[str]:
    return [f"http://{switch.address(name)}:2379" for name in STORES]


def configuration(switch: Switch, name: str) -> dict[str, Any]:
    """What a host's io-vip is told. A scenario may say something else."""
    return {
        "interface": "eth1",
        "netmask": 32,
        "label": "vip",
        "nodename": name,
        "dcs-type": "etcd",
        "dcs-endpoints": endpoints(switch),
        "dcs-namespace": "service",
        "dcs-clustername": "yaim",
        "checker-type": "command",
        # A scenario makes it fail, or hang.
        "command": ["sh", "-c", "test ! -e /run/hangs || sleep 1000; test ! -e /run/sick"],
        "ttl": "2s",
        "interval": "500ms",
        "retry-num": 2,
        "retry-after": "100ms",
    }


def toml(settings: dict[str, Any]) -> str:
    # Strings, numbers, booleans and lists of them are written like JSON's.
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())


class Holder(PluggedHost):
    """A host that may hold addresses."""

    PROGRAMS = ("io-vip",)

    def __init__(self, name: str, switch: Switch, place: Path, units: Path, bin_dir: str, log: Path) -> None:
        super().__init__(name, switch, place, bin_dir, log, "CAP_NET_ADMIN,CAP_NET_RAW")
        self.units = units

    def _furnish(self, root: Path) -> None:
        super()._furnish(root)
        fixtures.install(root, self.units / MODEL)
        units = root / fixtures.UNITS
        wanted = units / "multi-user.target.wants"
        for unit in LEFT_OUT:
            (units / unit).unlink()
            (wanted / unit).unlink()
        for place in (CONFIGURATION, RENDERED):
            (root / place).unlink()
        (root / CONFIGURATION).write_text(toml(configuration(self.switch, self.name)))
        (root / RENDERED).symlink_to(f"/{CONFIGURATION}")
        (root / "etc/lab").mkdir()
        (root / "etc/lab/others").write_text(OTHERS.format(number=self.switch.number(self.name)))
        (units / "lab-others.service").write_text(OTHERS_UNIT)
        (wanted / "lab-others.service").symlink_to("../lab-others.service")
        command("chroot", str(root), "systemd-sysusers")


    def on(self) -> None:
        super().on()
        # Not for a host itself to set: its /proc/sys can only be read.
        command("nsenter", f"--net={self.place}/netns", "sysctl", "-qw", "net.ipv4.conf.eth1.promote_secondaries=1")


class LightMachine(LightHost):
    """A light host, as a scenario has it."""

    def start(self) -> None:
        self.on()

    def crash(self) -> None:
        """Its power is cut."""
        self.off()

    def block(self) -> None:
        """Its network cable is pulled."""
        self.switch.carries(self.name, False)

    def unblock(self) -> None:
        self.switch.carries(self.name, True)

    def hears(self, other: Named, yes: bool) -> None:
        self.switch.loses(self.name, other.name, 0 if yes else 100)

    def apart(self, others: Iterable[Named], yes: bool = True) -> None:
        """Whether nothing gets from this one to the others, nor back: from one moment to the next."""
        names = [other.name for other in others]
        self.switch.all_lose([pair for name in names for pair in ((self.name, name), (name, self.name))], 100 if yes else 0)

    def execute(self, command: str) -> tuple[int, str]:
        done = self.run(command, check=False)
        return done.returncode, done.stdout

    def succeed(self, *commands: str) -> str:
        return "".join(self.run(command).stdout for command in commands)


class Store(LightMachine):
    """One of the three."""

    def on(self) -> None:
        super().on()
        if self.runs("etcd"):
            return
        own, cluster = self.switch.address(self.name), ",".join(f"{name}=http://{self.switch.address(name)}:2380" for name in STORES)
        self.spawn(
            "etcd",
            "etcd", "--name", self.name, "--data-dir", str(self.files / "etcd"), "--logger", "zap", "--enable-v2",
            "--listen-client-urls", f"http://{own}:2379", "--advertise-client-urls", f"http://{own}:2379",
            "--listen-peer-urls", f"http://{own}:2380", "--initial-advertise-peer-urls", f"http://{own}:2380",
            "--initial-cluster", cluster, "--initial-cluster-state", "new", "--initial-cluster-token", "lab",
            "--heartbeat-interval", str(HEARTBEAT), "--election-timeout", str(ELECTION),
            environment={"GOMAXPROCS": "2"},
        )  # fmt: skip

    def kill(self) -> None:
        """Its etcd, at once. `start` starts another one with its files."""
        self.signal("etcd", signal.SIGKILL)
        self.processes["etcd"].wait()

    def freeze(self) -> None:
        """Its etcd stands still. Its kernel still takes connections."""
        self.signal("etcd", signal.SIGSTOP)

    def thaw(self) -> None:
        self.signal("etcd", signal.SIGCONT)

    def status(self) -> dict[str, Any] | None:
        """What this member says of itself, or None when it says nothing."""
        try:
            done = self.run("etcdctl", "--endpoints", f"http://{self.switch.address(self.name)}:2379", "--command-timeout=1s",
                            "--dial-timeout=1s", "endpoint", "status", "-w", "json", check=False)  # fmt: skip
        except subprocess.TimeoutExpired:
            return None
        if done.returncode != 0:
            return None
        found: dict[str, Any] = json.loads(done.stdout)[0]["Status"]
        return found

    def leads(self) -> bool:
        """It is the leader, as it says."""
        if not (self.is_on and self.runs("etcd")) or not (status := self.status()):
            return False
        return bool(status.get("leader") == status["header"]["member_id"])


class Prober(LightMachine):
    """Asks for addresses, and knows who answers."""

    def __init__(self, name: str, switch: Switch, place: Path, logs: Path) -> None:
        super().__init__(name, switch, place, logs)
        self.record: Record | None = None
        self._judged = 0
        self.samples = 0

    def begin(self, addresses: list[str]) -> None:
        """Ends what it did before."""
        self.stop()
        names = {bytes.fromhex(self.switch.hardware(name).replace(":", "")): name for name in self.switch.names}
        self.record = Record(addresses, names)
        log = self.files / "record"
        log.unlink(missing_ok=True)
        self.probe = subprocess.Popen(
            self.argv(sys.executable, str(PROBE), "eth1", str(log), *addresses),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        assert self.probe.stdout
        if self.probe.stdout.readline() != "ready\n":
            raise HostError("the prober does not start")
        self._log = open(log, "rb", buffering=0)
        self._judged = self.record.latest = time.monotonic_ns()

    def stop(self) -> None:
        if self.record:
            self.probe.communicate()
            self._log.close()
            self.record = None

    def off(self) -> None:
        self.stop()
        super().off()

    def _look(self) -> Record:
        if not self.record:
            raise HostError("the prober asks nothing")
        if self.probe.poll() is not None:
            raise HostError(f"the prober has ended with {self.probe.returncode}")
        self.record.take(self._log.read())
        return self.record

    def holders(self) -> dict[str, set[str]]:
        """Who answers for which address. An error when the prober does not look."""
        record = self._look()
        if time.monotonic_ns() - record.latest > 5000 * MS:
            raise HostError("the prober has not asked for 5 s")
        return record.holders()

    def judge(self) -> Verdict:
        """Of all since the last time; and forgets it."""
        until = time.monotonic_ns()
        deadline = time.monotonic() + 5
        while self._look().latest < until and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(SETTLED)
        verdict = self._look().judge(self._judged, until)
        self._judged = until
        self.samples += verdict.samples
        return verdict

    def proved(self, histories: int, seed: int) -> str:
        """What the judge makes of so many histories of which all is known."""
        return judge_proof.prove(histories, seed)

    def etcdctl(self, *words: str) -> str:
        """Asks all stores."""
        return self.run("etcdctl", "--endpoints", ",".join(endpoints(self.switch)), "--command-timeout=5s", *words).stdout


def missing() -> str | None:
    for program in ("etcd", "etcdctl"):
        if shutil.which(program) is None:
            return f"{program} is not installed: apt-get install etcd-server etcd-client"
    return None


def hosts(holders: int) -> list[str]:
    """Names: of those that may hold addresses, and of the others."""
    return [*(f"v{number}" for number in range(1, holders + 1)), *STORES, PROBER]


def made(
    holders: int, switch: Switch, place: Path, units: Path, bin_dir: str, logs: Path
) -> tuple[dict[str, Holder], dict[str, LightMachine]]:
    if reason := missing():
        raise NotHere(reason)
    if holders and not os.path.isfile(f"{bin_dir}/io-vip"):
        raise NotHere(f"there is no {bin_dir}/io-vip: cargo build --features etcd (for which protoc is needed)")
    with_systemd = {name: Holder(name, switch, place / name, units, bin_dir, logs / f"{name}.console") for name in hosts(holders)[:holders]}
    light: dict[str, LightMachine] = {name: Store(name, switch, place / name, logs) for name in STORES}
    light[PROBER] = Prober(PROBER, switch, place / PROBER, logs)
    return with_systemd, light
