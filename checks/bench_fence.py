#!/usr/bin/env python3
"""Figures of io-fence for docs/BENCHMARKS.md: how soon a port is closed when its disk stalls, how soon it is open again, and what a
disk under the heaviest load looks like to it.

    checks/bench_fence.py --bin-dir target/release               prints its section
    checks/bench_fence.py --bin-dir target/release --write       and writes it into docs/BENCHMARKS.md
    checks/bench_fence.py --bin-dir … --load 3600                an hour of load instead of a minute
    checks/bench_fence.py --bin-dir … --only load                one of its two sections: stalls, or load
    checks/bench_fence.py --bin-dir … --ebs-monitor FOLDER            ebs-monitor besides: a clone of github.com/lucidsoftware/ebs-monitor
    checks/bench_fence.py --bin-dir … --quick                    2 runs of each, 5 s of load: to see that it works

Needs root, systemd-container and mmdebstrap (for --ebs-monitor: ruby before 3.2 and iptables, too). All of it is in mount and network namespaces of its own: a host, and a
remote client that knocks at its port every 2 ms. The disk is a loop device's ext4, stalled by FIFREEZE; the load is on a folder
of the machine's own disk.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import random
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.dont_write_bytecode = True
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import machine  # noqa: E402

PAGE = HERE.parent / "docs" / "BENCHMARKS.md"
TITLES = {"stalls": "## The fence", "load": "## The fence, and a disk under load"}
PORT = 5432
HOST, REMOTE = "192.0.2.1", "192.0.2.2"
FIGURES = ("127.0.0.1", 9879)
HEARTBEATS = (0.5, 1.0, 2.0, 5.0)
UNFENCE_AFTER = 1.0
# Wanted, in milliseconds beyond the heartbeat and beyond the hysteresis; and MB in all.
LATE, LATE_AGAIN, MEMORY = 150, 100, 6.0
# Of the load: the threshold, in seconds.
THRESHOLD = 2.0
# The same on a disk that completes others' writes: io-fence's default, three of them.
BUSY_LIMIT = 3 * THRESHOLD

# Stalls a filesystem when it is told to, says when, and leaves nothing stalled however it ends.
STALLER = """
import fcntl, os, signal, sys, time
FIFREEZE, FITHAW = 0xC0045877, 0xC0045878
disk = os.open(sys.argv[1], os.O_RDONLY)
stalled = False
def thaw():
    global stalled
    if stalled:
        fcntl.ioctl(disk, FITHAW, 0)
        stalled = False
signal.signal(signal.SIGTERM, lambda *_: (thaw(), os._exit(1)))
try:
    for line in sys.stdin:
        now = time.monotonic()
        if line == "stall\\n":
            stalled = True
            fcntl.ioctl(disk, FIFREEZE, 0)
        else:
            thaw()
        print(now, flush=True)
finally:
    thaw()
"""
# Knocks, and says each change, when it was seen.
KNOCKER = """
import errno, socket, struct, sys, time
last = None
while True:
    knock = socket.socket()
    knock.settimeout(0.1)
    try:
        knock.connect((sys.argv[1], int(sys.argv[2])))
        # No farewell: hundreds of these are to leave nothing behind.
        knock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        said = "open"
    except TimeoutError:
        # A kernel sends only so many refusals by ICMP: one that has been refused, and is not answered now, is shut out still.
        said = last if last == "ECONNREFUSED" else "silence"
    except OSError as error:
        said = errno.errorcode.get(error.errno, str(error))
    knock.close()
    if said != last:
        print(time.monotonic(), said, flush=True)
        last = said
    time.sleep(0.002)
"""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run(*command: str) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def text_of(seconds: float) -> str:
    return f"{round(seconds * 1000)}ms"


class Bench:
    """A host with a disk and a port, and a remote client that knocks. This process is the host."""

    def __init__(self, folder: Path) -> None:
        machine.isolate()
        self.folder = folder
        machine.mount("tmpfs", folder, "tmpfs", 0, "size=512m")
        self.children: list[subprocess.Popen[str]] = []
        self.disk = folder / "disk"
        self.disk.mkdir()
        with open(folder / "image", "wb") as image:
            image.truncate(64 << 20)
        run("mkfs.ext4", "-q", "-F", str(folder / "image"))
        run("mount", "-o", "loop", str(folder / "image"), str(self.disk))
        self._network()
        self._serve()
        self.staller = self.start(sys.executable, "-c", STALLER, str(self.disk))
        remote = ["nsenter", f"--net=/proc/{self.remote.pid}/ns/net"]
        self.knocker = self.start(*remote, sys.executable, "-c", KNOCKER, HOST, str(PORT))
        self.changes: list[tuple[float, str]] = []
        # How often the port was closed with nothing stalled.
        self.false = 0
        self.changed = threading.Condition()
        threading.Thread(target=self._listen, daemon=True).start()

    def start(self, *command: str, **more: Any) -> subprocess.Popen[str]:
        parent = os.getpid()
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=lambda: machine.die_with(parent), **more
        )
        self.children.append(child)
        return child

    def _network(self) -> None:
        self.remote = self.start("unshare", "--net", "sh", "-c", "echo ready; exec sleep infinity")
        assert self.remote.stdout and self.remote.stdout.readline() == "ready\n"
        # unshare becomes the shell, which becomes sleep.
        pid = self.remote.pid
        run("ip", "link", "add", "here", "type", "veth", "peer", "name", "there", "netns", str(pid))
        inside = ["nsenter", f"--net=/proc/{pid}/ns/net", "ip"]
        run("ip", "address", "add", f"{HOST}/24", "dev", "here")
        run("ip", "link", "set", "here", "up")
        run(*inside, "address", "add", f"{REMOTE}/24", "dev", "there")
        run(*inside, "link", "set", "there", "up")

    def _serve(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("0.0.0.0", PORT))
        listener.listen(512)

        def serve() -> None:
            while True:
                listener.accept()[0].close()

        threading.Thread(target=serve, daemon=True).start()

    def _listen(self) -> None:
        assert self.knocker.stdout
        for line in self.knocker.stdout:
            at, said = line.split(" ", 1)
            said = said.strip()
            with self.changed:
                self.changes.append((float(at), said))
                self.changed.notify_all()

    def until(self, said: str, after: float, seconds: float) -> float:
        """When the remote client was first told this, after that time."""
        deadline = time.monotonic() + seconds
        with self.changed:
            while True:
                if self.changes and self.changes[-1][1] == said and self.changes[-1][0] >= after:
                    return self.changes[-1][0]
                if not self.changed.wait(deadline - time.monotonic()) and time.monotonic() > deadline:
                    raise RuntimeError(f"not {said} within {seconds} s; the client was told {self.changes[-3:]}")

    def tell(self, what: str) -> float:
        assert self.staller.stdin and self.staller.stdout
        self.staller.stdin.write(f"{what}\n")
        self.staller.stdin.flush()
        return float(self.staller.stdout.readline())

    def once(self, refused: str, patience: float, pause: float) -> tuple[float, float]:
        """Milliseconds from a stall to the first refusal, and from its end to the first connection."""
        quiet = time.monotonic()
        time.sleep(pause + random.random())
        stalled = self.tell("stall")
        self.false += sum(1 for at, said in self.changes if said == refused and quiet <= at < stalled)
        try:
            closed = self.until(refused, stalled, patience)
            time.sleep(0.5)
            # Closed for good, and not for a beat that was late.
            while self.changes[-1][0] != closed:
                closed = self.until(refused, closed + 0.001, patience)
                time.sleep(0.5)
        finally:
            went_on = self.tell("go on")
        opened = self.until("open", went_on, patience)
        return (closed - stalled) * 1000, (opened - went_on) * 1000

    def end(self) -> None:
        for child in reversed(self.children):
            child.terminate()
            child.wait()
        for mounted in (self.disk, self.folder):
            machine.unmount(mounted)


@contextmanager
def running(bench: Bench, *commands: list[str], log: Path) -> Iterator[list[subprocess.Popen[str]]]:
    with open(log, "ab") as out:
        programs = [bench.start(*command, stderr=out) for command in commands]
    for program in programs:
        # Nobody reads what it prints.
        assert program.stdout
        threading.Thread(target=program.stdout.read, daemon=True).start()
    try:
        yield programs
    finally:
        for program in programs:
            program.send_signal(signal.SIGTERM)
        for program in programs:
            try:
                program.wait(5)
            except subprocess.TimeoutExpired:
                program.kill()
                program.wait(5)
            bench.children.remove(program)


def resident(pid: int) -> float:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    if found is None:
        raise RuntimeError(f"no VmRSS of {pid}")
    return int(found[1]) / 1024


def stands(bench: Bench, program: subprocess.Popen[str], log: Path) -> None:
    """It runs, and the port is open."""
    bench.until("open", 0, 10)
    if program.poll() is not None:
        raise RuntimeError(f"{program.args!r} ended with {program.returncode}:\n{log.read_text()[-2000:]}")


def ours(bench: Bench, program: Path, heartbeat: float, runs: int) -> tuple[list[tuple[float, float]], float]:
    log = bench.folder / "io-fence.log"
    own = bench.folder / f"run-{heartbeat}"
    own.mkdir(exist_ok=True)
    command = [
        str(program), "run", "--monitor", str(bench.disk), "--ports", str(PORT), "--heartbeat", text_of(heartbeat),
        "--unfence-after", text_of(UNFENCE_AFTER), "--socket", str(own / "socket"), "--state", str(own / "state"),
    ]  # fmt: skip
    if heartbeat <= 0.5:
        command += ["--warn-latency", text_of(heartbeat / 2)]
    with running(bench, command, log=log) as [fence]:
        time.sleep(1 + heartbeat)
        stands(bench, fence, log)
        seen = [bench.once("ECONNREFUSED", heartbeat + 5, heartbeat / 2) for _ in range(runs)]
        return seen, resident(fence.pid)


def proportional(pid: int) -> float:
    """What of the resident memory is its own, and its share of what it has in common with others: of several processes the sum is what they take."""
    found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)
    if found is None:
        raise RuntimeError(f"no Pss of {pid}")
    return int(found[1]) / 1024


def two_parts(bench: Bench, program: Path) -> tuple[list[float], list[float]]:
    """Memory of a monitor and of a reporter, as resident as it is and proportional."""
    log = bench.folder / "io-fence-parts.log"
    at = ["--socket", str(bench.folder / "parts.socket")]
    commands = [
        [str(program), "monitor", *at, "--state", str(bench.folder / "parts.state")],
        [str(program), "reporter", *at, "--monitor", str(bench.disk), "--ports", str(PORT)],
    ]
    with running(bench, *commands, log=log) as programs:
        time.sleep(3)
        for each in programs:
            stands(bench, each, log)
        return [resident(each.pid) for each in programs], [proportional(each.pid) for each in programs]


def ebs_monitor(bench: Bench, folder: Path, heartbeat: int, wait: int, runs: int) -> tuple[list[tuple[float, float]], float, float]:
    """ebs-monitor, in the same place."""
    log = bench.folder / "ebs-monitor.log"
    fifo = ["--fifo", str(bench.folder / "fifo")]
    commands = [
        ["ruby", str(folder / "disk-monitor.rb"), *fifo, "--heartbeat", str(heartbeat), "--wait", str(wait),
         "--logfile", str(bench.folder / "monitor.log"), "--pidfile", str(bench.folder / "monitor.pid")],
        ["ruby", str(folder / "disk-reporter.rb"), *fifo, "--monitor", str(bench.disk), "--ports", str(PORT),
         "--logfile", str(bench.folder / "reporter.log"), "--pidfile", str(bench.folder / "reporter.pid")],
    ]  # fmt: skip
    with running(bench, *commands, log=log) as programs:
        time.sleep(wait + 3)
        for each in programs:
            stands(bench, each, log)
        seen = [bench.once("ECONNREFUSED", heartbeat + 10, heartbeat / 2) for _ in range(runs)]
        monitor, reporter = (resident(each.pid) for each in programs)
        return seen, monitor, reporter


# ------------------------------------------------------------------------------------------------------------ the load


def stream(folder: str, number: int) -> None:
    """Large writes, as fast as the disk takes them."""
    block = os.urandom(1 << 20)
    file = os.open(f"{folder}/stream-{number}", os.O_CREAT | os.O_RDWR, 0o600)
    while True:
        os.lseek(file, 0, os.SEEK_SET)
        for count in range(512):
            os.write(file, block)
            if count % 64 == 63:
                os.fdatasync(file)


def commit(folder: str, number: int) -> None:
    """Small writes, each of which must be on the disk; and files that come and go."""
    file = os.open(f"{folder}/log-{number}", os.O_CREAT | os.O_RDWR, 0o600)
    count = 0
    while True:
        os.pwrite(file, os.urandom(8192), (count % 2048) * 8192)
        os.fsync(file)
        if count % 16 == 0:
            name = f"{folder}/file-{number}-{count % 256}"
            with open(name, "wb") as other:
                other.write(os.urandom(4096))
                os.fsync(other.fileno())
            os.rename(name, f"{folder}/renamed-{number}")
        count += 1


def figures() -> dict[str, float]:
    with urllib.request.urlopen(f"http://{FIGURES[0]}:{FIGURES[1]}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    found: dict[str, float] = {}
    for line in lines:
        if line and not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            name = name.split("{")[0]
            found[name] = found.get(name, 0.0) + float(value)
    return found


def loaded(bench: Bench, program: Path, place: Path, seconds: int) -> dict[str, float]:
    """What the fence sees of a disk that others write to as fast as they can."""
    log = bench.folder / "io-fence-load.log"
    watched = place / "watched"
    watched.mkdir()
    command = [
        # As its unit runs it: Nice= and IOSchedulingClass= (modules/fence.nix, docs/SYSTEMD.md).
        "nice", "-n", "-10", "ionice", "--class", "realtime", "--classdata", "4",
        str(program), "run", "--monitor", str(watched), "--ports", str(PORT), "--heartbeat", text_of(THRESHOLD),
        "--socket", str(bench.folder / "load.socket"), "--state", str(bench.folder / "load.state"),
        "--metrics", f"{FIGURES[0]}:{FIGURES[1]}",
    ]  # fmt: skip
    context = multiprocessing.get_context("fork")
    writers: list[Any] = []
    with running(bench, command, log=log) as [fence]:
        time.sleep(2)
        stands(bench, fence, log)
        idle = figures()["io_fence_write_latency_p99_seconds"]
        writers = [context.Process(target=work, args=(str(place), n), daemon=True) for work in (stream, commit) for n in range(4)]
        for writer in writers:
            writer.start()
        try:
            worst_age = 0.0
            p99s: list[float] = []
            end = time.monotonic() + seconds
            looked = 0.0
            while time.monotonic() < end:
                seen = figures()
                worst_age = max(worst_age, seen["io_fence_beat_age_seconds"])
                # The last minute is what it is of.
                if time.monotonic() - looked > min(10, seconds / 5):
                    looked = time.monotonic()
                    p99s.append(seen["io_fence_write_latency_p99_seconds"])
                    if len(p99s) % 6 == 0:
                        left = end - time.monotonic()
                        say(f"{left:5.0f} s to go: {seen['io_fence_fences_total']:.0f} fences, {seen['io_fence_spared_total']:.0f} times busy, longest without a beat {worst_age * 1000:,.0f} ms, p99 {p99s[-1] * 1000:,.1f} ms")
                time.sleep(0.05)
            seen = figures()
            return {
                "idle": idle,
                "p99": statistics.median(p99s),
                "worst p99": max(p99s),
                "age": worst_age,
                "fences": seen["io_fence_fences_total"],
                "spared": seen["io_fence_spared_total"],
                "writes": seen["io_fence_writes_total"],
                "memory": resident(fence.pid),
            }
        finally:
            for writer in writers:
                writer.kill()
            for writer in writers:
                writer.join()


# -------------------------------------------------------------------------------------------------------- the section


def verdict(value: float, limit: float) -> str:
    return "yes" if value <= limit else "**no**"


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def spread(figures_ms: list[float]) -> str:
    return f"{statistics.median(figures_ms):,.0f} / {max(figures_ms):,.0f}"


def kept(text: str, title: str) -> str:
    """The section as it stands in a page, or nothing."""
    found = re.search(rf"^{re.escape(title)}\n.*?(?=^## |\Z)", text, re.M | re.S)
    return found[0].rstrip("\n") + "\n" if found else ""


def put(section: str) -> None:
    page = PAGE.read_text()
    old = kept(page, section.split("\n", 1)[0])
    PAGE.write_text(page.replace(old, section) if old else page.rstrip("\n") + "\n\n" + section)


def made() -> str:
    """How and where a section was made."""
    with open("/proc/cpuinfo") as info:
        model = next((line.split(":", 1)[1].strip() for line in info if line.startswith("model name")), "unknown")
    return f"Made by `checks/bench_fence.py --write`, as root, release build. {os.cpu_count()} cores ({model}), Linux {platform.release()}."


def stalls(bench: Bench, program: Path, options: argparse.Namespace) -> list[str]:
    """How soon a stall closes the ports, and its end opens them."""
    runs = 2 if options.quick else 8
    rows: list[str] = []
    notes: list[str] = []
    memory = 0.0
    for heartbeat in HEARTBEATS:
        say(f"io-fence, heartbeat {heartbeat} s: {runs} runs")
        seen, memory = ours(bench, program, heartbeat, runs)
        closed, opened = ([one[i] for one in seen] for i in (0, 1))
        wanted = heartbeat * 1000 + LATE, UNFENCE_AFTER * 1000 + LATE_AGAIN
        rows.append(row(
            f"`io-fence run`, heartbeat {heartbeat:g} s", spread(closed), f"{wanted[0]:,.0f}", verdict(max(closed), wanted[0]),
            spread(opened), f"{wanted[1]:,.0f}", verdict(max(opened), wanted[1]), f"{memory:.1f} MB",
        ))  # fmt: skip
        say(rows[-1])
    notes += [f"io-fence closed the port {bench.false} times with nothing stalled."] * bool(bench.false)
    resident_of, share_of = two_parts(bench, program)
    theirs = ((5, 60), (1, 0)) if options.ebs_monitor else ()
    for beat, wait in theirs:
        say(f"ebs-monitor, heartbeat {beat} s, wait {wait} s: {runs} runs")
        before = bench.false
        seen, its_monitor, its_reporter = ebs_monitor(bench, options.ebs_monitor, beat, wait, runs)
        closed, opened = ([one[i] for one in seen] for i in (0, 1))
        name = "its defaults" if wait else "its lowest"
        if false := bench.false - before:
            notes.append(f"At {name[4:]} ebs-monitor closed the port {false} times with nothing stalled, in the seconds between {runs} stalls.")
        rows.append(row(
            f"ebs-monitor, {name}: heartbeat {beat} s, wait {wait} s", spread(closed), "", "", spread(opened), "", "",
            f"{its_monitor:.1f} + {its_reporter:.1f} MB",
        ))  # fmt: skip
        say(rows[-1])
    if not options.ebs_monitor:
        rows += [
            row("ebs-monitor, its defaults: heartbeat 5 s, wait 60 s \\*", "5,439 / 5,865", "", "", "60 / 95", "", "", "14 + 14 MB"),
            row("ebs-monitor, its lowest: heartbeat 1 s \\*", "1,268 / 2,006", "", "", "44 / 97", "", "", "14 + 14 MB"),
        ]
        notes.append("\\* Not of this run: measured on another day, on a like machine, 8 runs each. `--ebs-monitor` measures it beside ours.")
    in_all = sum(share_of)
    return [
        f"{made()} A loop device's",
        f"ext4 is stalled (FIFREEZE) {runs} times for each line, at a moment by chance; a client in a network namespace of its own knocks every 2 ms.",
        "Milliseconds from before the stall to the first refusal, and from its end to the first connection: median / largest.",
        f"`--unfence-after` is {UNFENCE_AFTER:g} s; ebs-monitor opens with the first beat, whatever comes after it.",
        "",
        "| | closed after | at most | met | open after | at most | met | resident |",
        "|---|---|---|---|---|---|---|---|",
        *rows,
        "",
        *(line for note in notes for line in (note, "")),
        "| memory | measured | wanted: at most | met |",
        "|---|---|---|---|",
        row("`io-fence run`, resident, all of it locked", f"{memory:.1f} MB", f"{MEMORY:g} MB", verdict(memory, MEMORY)),
        row("`io-fence monitor` and one `io-fence reporter`, what they take together (PSS)", f"{in_all:.1f} MB", f"{MEMORY:g} MB", verdict(in_all, MEMORY)),
        row("each by itself, what both have in common counted twice", f"{resident_of[0]:.1f} + {resident_of[1]:.1f} MB", "", ""),
        "",
    ]  # fmt: skip


def load(bench: Bench, program: Path, options: argparse.Namespace) -> list[str]:
    """Whether a disk that is busy is taken for one that hangs."""
    seconds = 5 if options.quick else options.load
    say(f"{seconds} s of load")
    with tempfile.TemporaryDirectory(dir=options.load_on) as place:
        seen = loaded(bench, program, Path(place), seconds)
    return [
        made(),
        "",
        "| what | measured | wanted: at most | met |",
        "|---|---|---|---|",
        row(f"false fences in {seconds:,} s of load, at a threshold of {THRESHOLD:g} s", f"{seen['fences']:.0f}", "0", verdict(seen["fences"], 0)),
        row("the longest time without a beat in it", f"{seen['age'] * 1000:,.0f} ms", f"{BUSY_LIMIT * 1000:,.0f} ms", verdict(seen["age"], BUSY_LIMIT)),
        row("how often that was longer than the threshold, and not fenced: the disk completed other writes", f"{seen['spared']:.0f}", "", ""),
        row("latency of its writes, p99 of a minute: before the load", f"{seen['idle'] * 1000:,.1f} ms", "", ""),
        row("in it: median / largest", f"{seen['p99'] * 1000:,.1f} / {seen['worst p99'] * 1000:,.1f} ms", "", ""),
        "",
        "The load: four processes that write a megabyte after the other and have it on the disk every 64, and four that have each 8 KB on the disk",
        "before the next, with files that come, are renamed and go; all on the filesystem that is watched, a folder of the machine's own disk.",
        "",
    ]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--bin-dir", type=Path, required=True, help="where io-fence is, built for release")
    parser.add_argument("--write", action="store_true", help="write the section of docs/BENCHMARKS.md")
    parser.add_argument("--ebs-monitor", type=Path, help="a clone of github.com/lucidsoftware/ebs-monitor")
    parser.add_argument("--load", type=int, default=60, help="seconds of load")
    parser.add_argument("--load-on", type=Path, default=Path(os.environ.get("CARGO_TARGET_DIR", HERE.parent / "target")), help="a folder on the disk to load")
    parser.add_argument("--quick", action="store_true", help="few runs: to see that it works")
    parser.add_argument("--only", choices=sorted(TITLES), help="one of the two sections")
    options = parser.parse_args()
    if reason := machine.missing():
        print(f"bench_fence: {reason}", file=sys.stderr)
        return 1
    if options.ebs_monitor:
        for needed in ("ruby", "iptables"):
            if shutil.which(needed) is None:
                print(f"bench_fence: --ebs-monitor needs {needed}: apt-get install {needed}", file=sys.stderr)
                return 1
        options.ebs_monitor = options.ebs_monitor.resolve()
    program = (options.bin_dir / "io-fence").resolve()
    options.load_on.mkdir(parents=True, exist_ok=True)
    for part, make in {"stalls": stalls, "load": load}.items():
        if options.only not in (None, part):
            continue
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(Path(folder))
            try:
                section = "\n".join([TITLES[part], "", *make(bench, program, options)])
            finally:
                bench.end()
        if options.write:
            put(section)
            say(f"wrote \"{TITLES[part]}\" of docs/BENCHMARKS.md")
        else:
            sys.stdout.write(section)
    return 0


if __name__ == "__main__":
    sys.exit(main())
