#!/usr/bin/env python3
"""Figures of io-vip for docs/BENCHMARKS.md: for how long nobody answers for an address when its holder ends, dies, hangs, loses its power or is cut off,
and how many answer for it then; beside keepalived and vip-manager, in the same run, on the same hosts and stores.

    checks/bench_vip.py --bin-dir target/release               prints its section
    checks/bench_vip.py --bin-dir target/release --write       and writes it into docs/BENCHMARKS.md
    checks/bench_vip.py --bin-dir … --only io-vip              one of them
    checks/bench_vip.py --bin-dir … --quick                    2 runs of each: to see that it works

Needs root, etcd, keepalived and vip-manager (Debian: etcd-server, keepalived, vip-manager). Everything is in namespaces of its own: three
stores, three holders, and a prober that asks every 5 ms (checks/lab/probe.py, judge.py).
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import re
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

sys.dont_write_bytecode = True
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE / "lab")]

import machine  # noqa: E402
import vip  # noqa: E402
from fleet import Switch  # noqa: E402

PAGE = HERE.parent / "docs" / "BENCHMARKS.md"
TITLE = "## Addresses"
HOLDERS = ("v1", "v2", "v3")
ADDRESSES = [f"192.168.1.{number}" for number in range(101, 111)]
TTL = 2
# Wanted, in milliseconds.
HANDED, TAKEN = 100, TTL * 1000 + 300
# Seconds after a takeover in which two may answer, and after what undoes the fault.
AFTER, UNDONE = 3.0, 3.0
PATIENCE = 60.0

# What Patroni does for vip-manager, with the lowest time to live that a lease of etcd's has any use for: holds a key as long as it lives.
LEADER = """
import json, signal, sys, time, urllib.error, urllib.parse, urllib.request
me, ttl, endpoints = sys.argv[1], sys.argv[2], sys.argv[3].split(",")
key = "/v2/keys/service/bench/leader"
def ask(method, **fields):
    for endpoint in endpoints:
        query = urllib.parse.urlencode({name: value for name, value in fields.items() if name not in ("value", "ttl")})
        body = urllib.parse.urlencode({name: value for name, value in fields.items() if name in ("value", "ttl")}).encode()
        request = urllib.request.Request(f"{endpoint}{key}?{query}", body or None, method=method)
        try:
            return json.load(urllib.request.urlopen(request, timeout=0.5))
        except urllib.error.HTTPError as error:
            return json.load(error)
        except OSError:
            continue
    return {}
def end(*_):
    ask("DELETE", prevValue=me)
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
while True:
    leader = ask("GET").get("node", {}).get("value")
    if leader == me:
        ask("PUT", value=me, ttl=ttl, prevValue=me)
    elif leader is None:
        ask("PUT", value=me, ttl=ttl, prevExist="false")
    time.sleep(0.25)
"""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Tool:
    """What keeps addresses on three hosts. `programs` are the names of what it runs on each."""

    name = ""
    programs: tuple[str, ...] = ()
    addresses = ADDRESSES

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def start(self, host: vip.LightMachine) -> None:
        raise NotImplementedError

    def processes(self, host: vip.LightMachine, programs: tuple[str, ...] = ()) -> list[int]:
        """Of its programs, children too: their parents would start them again."""
        found = []
        for program in programs or self.programs:
            if host.runs(program):
                pid = host.pid(program)
                found += [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
        return found

    def send(self, host: vip.LightMachine, number: signal.Signals) -> None:
        """To each of its programs."""
        for program in self.programs:
            host.signal(program, number)

    def send_to_all(self, host: vip.LightMachine, number: signal.Signals) -> None:
        """To each process, at once; a child first, which might tidy up when its parent is gone."""
        for pid in reversed(self.processes(host)):
            os.kill(pid, number)

    def go_on(self, host: vip.LightMachine) -> None:
        self.send_to_all(host, signal.SIGCONT)
        # Whoever waits for a program stands still with it.
        self.send(host, signal.SIGCONT)

    def memory(self, host: vip.LightMachine) -> float:
        """Of the daemon, which is the last of its programs."""
        return sum(resident(pid) for pid in self.processes(host, self.programs[-1:]))


class IoVip(Tool):
    name = f"io-vip, ttl {TTL} s"
    programs = ("io-vip",)

    def start(self, host: vip.LightMachine) -> None:
        settings = {
            **vip.configuration(host.switch, host.name), "checker-type": "none", "ttl": f"{TTL}s", "dcs-clustername": "bench",
        }  # fmt: skip
        for key in ("command", "retry-num", "retry-after"):
            settings.pop(key, None)
        (host.files / "io-vip.toml").write_text(vip.toml(settings))
        host.run("mkdir -p /run/io-vip")
        host.spawn("io-vip", str(self.bench.program), "run", "--config", str(host.files / "io-vip.toml"))
        for address in self.addresses:
            self.bench.prober.etcdctl("put", f"/service/bench/ips/{address}", "")


class Keepalived(Tool):
    name = "keepalived, advert_int 1"
    programs = ("keepalived",)

    def start(self, host: vip.LightMachine) -> None:
        priority = 150 - 50 * HOLDERS.index(host.name)
        (host.files / "keepalived.conf").write_text(
            "vrrp_instance bench {\n  state BACKUP\n  interface eth1\n  virtual_router_id 51\n"
            f"  priority {priority}\n  advert_int 1\n  virtual_ipaddress {{\n"
            + "".join(f"    {address}/32\n" for address in self.addresses) + "  }\n}\n"
        )  # fmt: skip
        # One that was killed leaves them behind, and a process of today may have such a number.
        host.run("rm -f /run/keepalived.pid /run/vrrp.pid")
        host.spawn("keepalived", "keepalived", "--dont-fork", "--log-console", "--vrrp", "--use-file", str(host.files / "keepalived.conf"),
                   "--pid", "/run/keepalived.pid", "--vrrp_pid", "/run/vrrp.pid")  # fmt: skip


class VipManager(Tool):
    name = f"vip-manager, interval 100 ms, a leader's key of {TTL} s"
    programs = ("leader", "vip-manager")
    # It has one.
    addresses = ADDRESSES[:1]

    def start(self, host: vip.LightMachine) -> None:
        endpoints = ",".join(vip.endpoints(host.switch))
        host.spawn("leader", sys.executable, "-c", LEADER, host.name, str(TTL), endpoints)
        host.spawn("vip-manager", "vip-manager", "--interface", "eth1", "--ip", self.addresses[0], "--netmask", "32", "--interval", "100",
                   "--trigger-key", "/service/bench/leader", "--trigger-value", host.name, "--dcs-type", "etcd", "--dcs-endpoints", endpoints)  # fmt: skip


TOOLS: dict[str, type[Tool]] = {"io-vip": IoVip, "keepalived": Keepalived, "vip-manager": VipManager}


def resident(pid: int) -> float:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


@dataclass
class Seen:
    """Of one kind of fault."""

    # Milliseconds until another host answered, and without any answer.
    taken: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    # For how long two hosts answered for the same address, if they did.
    both: list[float] = field(default_factory=list)


class Bench:
    def __init__(self, folder: Path, program: Path) -> None:
        machine.isolate()
        self.program = program
        machine.mount("tmpfs", folder, "tmpfs", 0, "size=64m")
        self.folder = folder
        self.switch = Switch(vip.hosts(len(HOLDERS)))
        self.stores = [vip.Store(name, self.switch, folder / name, folder) for name in vip.STORES]
        self.prober = vip.Prober(vip.PROBER, self.switch, folder / vip.PROBER, folder)
        self.holders: list[vip.LightMachine] = [vip.LightMachine(name, self.switch, folder / name, folder) for name in HOLDERS]
        for each in (*self.stores, self.prober, *self.holders):
            each.start()
        self.until("a leader of the stores", lambda: any(store.leads() for store in self.stores))

    def until(self, what: str, holds: Callable[[], bool], seconds: float = PATIENCE) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > deadline:
                raise RuntimeError(f"not within {seconds:g} s: {what}; who answers: {self.prober.holders() if self.prober.record else {}}")
            time.sleep(0.05)

    def lone(self, tool: Tool, hosts: list[vip.LightMachine]) -> bool:
        """One of these hosts answers for each."""
        names = {host.name for host in hosts}
        return all(len(found) == 1 and found <= names for found in self.prober.holders().values())

    def settle(self, tool: Tool) -> None:
        """Until nothing moves for a while."""
        deadline = time.monotonic() + PATIENCE
        while True:
            self.until(f"{tool.name}: one host answers for each address", lambda: self.lone(tool, self.holders))
            before, quiet = self.prober.holders(), time.monotonic() + 2
            while time.monotonic() < quiet and self.prober.holders() == before:
                time.sleep(0.05)
            if time.monotonic() >= quiet:
                return
            if time.monotonic() > deadline:
                raise RuntimeError(f"{tool.name}: it does not come to rest")

    def once(self, tool: Tool, seen: Seen, fault: Callable[[vip.LightMachine], object], undo: Callable[[vip.LightMachine], object]) -> None:
        self.settle(tool)
        time.sleep(random.random())
        victim_name = next(iter(self.prober.holders()[tool.addresses[0]]))
        victim = next(host for host in self.holders if host.name == victim_name)
        others = [host for host in self.holders if host is not victim]
        had = [address for address, names in self.prober.holders().items() if victim.name in names]
        self.prober.judge()
        begun = time.monotonic()
        fault(victim)
        taken = {host.name for host in others}
        self.until(f"{tool.name}: another host answers", lambda: all(names & taken for names in self.prober.holders().values()))
        # In which the one that had it may go on to answer.
        time.sleep(AFTER)
        verdict = self.prober.judge()
        firsts = [min(at for name, at in verdict.heard[address].items() if name in taken) for address in had]
        seen.taken.append((max(firsts) - begun) * 1000)
        seen.gaps.append(max(verdict.gaps[address][0] for address in had) * 1000)
        two = list(verdict.two)
        undo(victim)
        time.sleep(UNDONE)
        two += self.prober.judge().two
        seen.both.append(max((each.until - each.since for each in two), default=0.0))

    def measure(self, tool: Tool, runs: int) -> tuple[dict[str, Seen], float]:
        for host in self.holders:
            tool.start(host)
        self.prober.begin(tool.addresses)
        everybody: list[vip.LightMachine] = [*self.stores, *self.holders]

        def apart(victim: vip.LightMachine, yes: bool) -> None:
            victim.apart([other for other in everybody if other is not victim], yes)

        def back(victim: vip.LightMachine) -> None:
            victim.start()
            tool.start(victim)

        def again(victim: vip.LightMachine) -> None:
            tool.start(victim)

        faults: dict[str, tuple[Callable[[vip.LightMachine], object], Callable[[vip.LightMachine], object]]] = {
            "SIGTERM": (lambda host: tool.send(host, signal.SIGTERM), again),
            "kill -9": (lambda host: tool.send_to_all(host, signal.SIGKILL), again),
            "SIGSTOP, and SIGCONT": (lambda host: tool.send_to_all(host, signal.SIGSTOP), tool.go_on),
            "power cut": (lambda host: host.crash(), back),
            "cut off, clients reach it": (lambda host: apart(host, True), lambda host: apart(host, False)),
        }
        self.settle(tool)
        memory = tool.memory(self.holders[0])
        found = {name: Seen() for name in faults}
        for number in range(runs):
            for name, (fault, undo) in faults.items():
                self.once(tool, found[name], fault, undo)
                seen = found[name]
                say(f"{tool.name}, {name}, {number + 1} of {runs}: another host after {seen.taken[-1]:.0f} ms, {seen.gaps[-1]:.0f} ms without an answer, "
                    f"two answered for {seen.both[-1] * 1000:.0f} ms")  # fmt: skip
        for host in self.holders:
            host.crash()
            host.start()
        return found, memory

    def end(self) -> None:
        for each in (self.prober, *self.holders, *self.stores):
            each.end()
        machine.unmount(self.folder)


# -------------------------------------------------------------------------------------------------------- the section


def verdict(value: float, limit: float) -> str:
    return "yes" if value <= limit else "**no**"


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def spread(figures: list[float]) -> str:
    return f"{statistics.median(figures):,.0f} / {max(figures):,.0f}"


def kept(text: str) -> str:
    """The section as it stands in a page, or nothing."""
    found = re.search(rf"^{TITLE}\n.*?(?=^## |\Z)", text, re.M | re.S)
    return found[0].rstrip("\n") + "\n" if found else ""


def put(section: str) -> None:
    page = PAGE.read_text()
    old = kept(page)
    PAGE.write_text(page.replace(old, section) if old else page.rstrip("\n") + "\n\n" + section)


def section(results: dict[str, tuple[Tool, dict[str, Seen], float]], runs: int, samples: int, load: float) -> str:
    with open("/proc/cpuinfo") as info:
        model = next((line.split(":", 1)[1].strip() for line in info if line.startswith("model name")), "unknown")
    limits = {"SIGTERM": HANDED, "power cut": TAKEN}
    rows = []
    for name, (tool, found, _) in results.items():
        for fault, seen in found.items():
            limit = limits.get(fault) if name == "io-vip" else None
            twice = [each for each in seen.both if each]
            both = f"{len(twice)} of {runs}, for up to {max(twice):.1f} s" if twice else "never"
            rows.append(row(
                tool.name, fault, spread(seen.taken), spread(seen.gaps), f"{limit:,}" if limit else "",
                verdict(max(*seen.taken, *seen.gaps), limit) if limit else "",
                both if name != "io-vip" or not twice else f"**{both}**",
            ))  # fmt: skip
    memory = ", ".join(f"{name} {megabytes:.1f} MB" for name, (_, __, megabytes) in results.items())
    lines = [
        TITLE,
        "",
        f"Made by `checks/bench_vip.py --write`, as root, release build. {os.cpu_count()} cores ({model}), Linux {platform.release()}, load before the run: {load:.1f}.",
        "Three hosts that may hold the addresses, three etcd and a prober, each in namespaces of its own on one switch. The prober asks for each address every 5 ms, by ARP",
        f"and by an echo in a frame for all hosts. {runs} runs of each line, at a moment by chance. Milliseconds from before the fault until another host answers for the last",
        "of the addresses that the host had, and the longest in which nobody answered for one: median / largest. Two answered: in how many runs two hosts did for the same",
        f"address, until {AFTER:g} s after the takeover or in the {UNDONE:g} s after the fault was undone.",
        "",
        "| | fault | another host answers after | without an answer | at most | met | two answered |",
        "|---|---|---|---|---|---|---|",
        *rows,
        "",
        f"{samples:,} samples. Resident memory of a host's daemon: {memory}.",
        "",
        "`kill -9` and SIGSTOP are of all processes of a host's daemon at once, and nobody starts it again until two are looked for; a host that is cut off hears neither the",
        "stores nor the other holders, and the prober still reaches it, as clients in its own rack would. io-vip and keepalived have ten addresses; vip-manager has",
        "one, and a stand-in for Patroni that holds the leader's key and gets the same signals (Patroni's own least time to live is 20 s).",
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--bin-dir", type=Path, required=True, help="where io-vip is, built for release with --features etcd")
    parser.add_argument("--write", action="store_true", help="write the section of docs/BENCHMARKS.md")
    parser.add_argument("--only", choices=TOOLS, action="append", help="only these")
    parser.add_argument("--runs", type=int, default=8, help="of each fault")
    parser.add_argument("--quick", action="store_true", help="2 runs: to see that it works")
    options = parser.parse_args()
    if reason := machine.missing():
        print(f"bench_vip: {reason}", file=sys.stderr)
        return 1
    chosen = options.only or list(TOOLS)
    needed = {"etcd": "etcd-server", "etcdctl": "etcd-client", **{name: name for name in chosen if name != "io-vip"}}
    for program, package in needed.items():
        if shutil.which(program) is None:
            print(f"bench_vip: {program} is not installed: apt-get install {package}", file=sys.stderr)
            return 1
    runs = 2 if options.quick else options.runs
    load = os.getloadavg()[0]
    results: dict[str, tuple[Tool, dict[str, Seen], float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), (options.bin_dir / "io-vip").resolve())
        try:
            for name in chosen:
                tool = TOOLS[name](bench)
                results[name] = (tool, *bench.measure(tool, runs))
            samples = bench.prober.samples
        except Exception:
            for log in sorted(Path(folder).glob("v*.log")):
                say(f"--- {log.name}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-20:]))
            raise
        finally:
            bench.end()
    text = section(results, runs, samples, load)
    if options.write:
        put(text)
        say("wrote its section of docs/BENCHMARKS.md")
    else:
        sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
