"""Runs scenarios on a fleet of real systemd hosts, on this machine.

    checks/lab/run                          all of checks/scenarios and checks/lab/scenarios, some at a time
    checks/lab/run wrong_key firewall       some of them; or files, by their paths
    checks/lab/run --list                   their names, and what each shows
    checks/lab/run --keep                   boots the fleet and says how to get a shell in each host; Enter ends it
    checks/lab/run --keep wrong_key         the same, with the fleet as the scenario leaves it
    checks/lab/run --units DIR              other units than checks/units: to see a scenario fail

Each scenario has a fleet of its own: nixio, app1 and app2 (and as many more as it asks for), with their own systemd,
PostgreSQL and Redis, and the units that the NixOS modules render. Needs root, systemd-nspawn, mmdebstrap, iproute2 and nftables; no Nix.
"""

from __future__ import annotations

import argparse
import fcntl
import itertools
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

sys.dont_write_bytecode = True
HERE = Path(__file__).resolve().parent
CHECKS = HERE.parent
sys.path[:0] = [str(HERE), str(CHECKS)]

import fixtures  # noqa: E402
import machine  # noqa: E402
import vip  # noqa: E402
from driver import LabMachine, Report  # noqa: E402
from fleet import FleetHost, PluggedHost, Switch, make_room  # noqa: E402
from size import MODEL, RENDERED, holders, more, preludes  # noqa: E402

LIBRARY = CHECKS / "scenarios" / "lib"
# What NixOS' driver can run too, and what only this one can.
FOLDERS = (CHECKS / "scenarios", HERE / "scenarios")
# Longer than any scenario takes, on a machine that does much else. Some of them take as long as they are told to.
DEADLINE = 600 + sum(int(os.environ.get(name, "0")) for name in ("LAB_SOAK", "LAB_FLAPPING", "LAB_ADDRESSES"))
# What a scenario ends with that this machine cannot play.
IGNORED = 75
# More hosts than these boot one lot after the other: a boot takes all processors for a while.
AT_ONCE = 4
# What is an error at any priority: a panic of whomever, and a unit of ours that fails, or that has ended and is started again.
ALARM = r"panicked at|^(io-|wait-for-io-)\S+: (Failed with result|Scheduled restart job)"
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", CHECKS.parent / "target"))
# How a failure begins that a machine which does much else may have made: something took too long, or was told in the journal because it did.
# What is wrong in any other way is wrong, however rarely: a command that fails, a panic, a unit of ours that dies.
PERHAPS_LATE = re.compile(r"[\w.]*(Late|NotInTime|UnexpectedErrors|TimeoutError|TimeoutExpired)\b")
# More failures than these are not the machine's.
AGAIN_AT_MOST = 3
# Of each host's journal, when a scenario failed. All of it is in --logs.
LINES = 80


def scenarios() -> dict[str, Path]:
    return {path.stem: path for folder in FOLDERS for path in sorted(folder.glob("*.py"))}


def shows(path: Path) -> str:
    """The first sentence of a scenario's comment."""
    comment = itertools.takewhile(lambda line: line.startswith("#"), path.read_text().splitlines())
    return " ".join(line.lstrip("# ") for line in comment).split(". ")[0].rstrip(".")


def missing() -> str | None:
    if reason := machine.missing():
        return reason
    for program, package in (("ip", "iproute2"), ("nft", "nftables")):
        if shutil.which(program) is None:
            return f"{program} is not installed: apt-get install {package}"
    return None


class Fleet:
    """The hosts of one scenario. This process is isolated for it, and can have one."""

    def __init__(self, bin_dir: str, units: Path, logs: Path, scenario: Path | None) -> None:
        machine.tree()
        machine.isolate()
        self.report = Report()
        self.logs = logs
        logs.mkdir(parents=True, exist_ok=True)
        for old in logs.iterdir():
            old.unlink()
        self.place = machine.cache_dir() / "host"
        self.place.mkdir(exist_ok=True)
        machine.mount("tmpfs", self.place, "tmpfs", 0, "mode=0755,size=16m")
        self.hosts: dict[str, PluggedHost] = {}
        # Those without a systemd.
        self.light: dict[str, vip.LightMachine] = {}
        count = holders(scenario) if scenario else None
        if count is None:
            self._databases(bin_dir, units, more(scenario) if scenario else [])
        else:
            self._addresses(bin_dir, units, count)
        self.machines = {name: LabMachine(host, self.report) for name, host in self.hosts.items()}

    def _databases(self, bin_dir: str, units: Path, further: list[str]) -> None:
        """`further`: names of hosts beside those that are rendered."""
        facts = {name: each for name, each in fixtures.manifest(units).items() if name in RENDERED}
        folders = {name: units / name for name in facts} | dict.fromkeys(further, units / MODEL)
        facts |= dict.fromkeys(further, facts[MODEL])
        make_room(len(facts))
        switch = Switch(list(facts))
        for name in sorted(facts):
            console = self.logs / f"{name}.console"
            self.hosts[name] = FleetHost(name, switch, self.place / name, folders[name], facts[name], bin_dir, console, further)

    def _addresses(self, bin_dir: str, units: Path, count: int) -> None:
        make_room(count)
        hosts, self.light = vip.made(count, Switch(vip.hosts(count)), self.place, units, bin_dir, self.logs)
        self.hosts |= hosts

    def start_all(self) -> None:
        for light in self.light.values():
            light.start()
        machines = list(self.machines.values())
        for begin in range(0, len(machines), AT_ONCE):
            for each in machines[max(0, begin - AT_ONCE) : begin]:
                each.connect()
            for each in machines[begin : begin + AT_ONCE]:
                each.start()

    def given(self) -> dict[str, object]:
        """What a scenario finds."""
        return {
            "__name__": "scenario",
            "start_all": self.start_all,
            "subtest": self.report.subtest,
            "machines": list(self.machines.values()),
            "log": self.report.say,
            **self.machines,
            **self.light,
        }

    def journals(self) -> Iterator[tuple[str, str]]:
        """Of all boots, read from outside: of hosts that are off, frozen or broken, too."""
        for name, host in self.hosts.items():
            if host.prepared:
                yield name, self.journalctl(host, "--output=short-precise")

    @staticmethod
    def journalctl(host: PluggedHost, *arguments: str) -> str:
        done = subprocess.run(
            ["journalctl", "--quiet", "--no-pager", f"--directory={host.root}/var/log/journal", *arguments],
            capture_output=True, text=True, errors="replace",
        )  # fmt: skip
        return done.stdout + done.stderr

    def errors(self, expected: list[str]) -> list[str]:
        """What the journals hold, of all units, that somebody must act on, and that the scenario does not expect."""
        found = []
        for name, host in self.hosts.items():
            if host.prepared:
                printed = self.journalctl(host, "--priority=err", "--output=cat").splitlines()
                # Of a lower priority, and no less an error.
                printed += [line for line in self.journalctl(host, "--output=cat").splitlines() if re.search(ALARM, line)]
                found += [f"{name}: {line}" for line in printed if line.strip()]
        return [line for line in found if not any(re.search(pattern, line) for pattern in expected)]

    def end(self) -> None:
        for light in self.light.values():
            light.end()
        for host in self.hosts.values():
            host.end()

    def shells(self) -> str:
        lines = []
        for name, each in self.machines.items():
            try:
                each.connect()
            except machine.HostError as error:
                lines.append(f"  {name}: {error}")
                continue
            environment = [f"{key}={value}" for key, value in machine.ENVIRONMENT.items()]
            lines.append(f"  {name}: " + shlex.join(["env", "-i", *environment, "TERM=" + os.environ.get("TERM", "dumb"), *each.host.argv("/bin/bash")]))
        return "\n".join(lines)


@contextmanager
def deadline(seconds: int) -> Iterator[None]:
    def ring(_: int, __: FrameType | None) -> None:
        raise TimeoutError(f"the scenario was ended after {seconds} s")

    signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def play(path: Path | None, options: argparse.Namespace) -> bool:
    """Runs one scenario here, and says what happens as it happens."""
    fleet = Fleet(options.bin_dir, options.units, options.logs / (path.stem if path else "fleet"), path)
    passed = True
    try:
        try:
            if path:
                with deadline(options.deadline):
                    found = fleet.given()
                    for source in (*preludes(path, LIBRARY), path):
                        exec(compile(source.read_text(), str(source), "exec"), found)  # noqa: S102
                expected = found.get("EXPECTED_ERRORS", [])
                assert isinstance(expected, list)
                if errors := fleet.errors(expected):
                    is_ours = any(re.search(ALARM, line.partition(": ")[2]) for line in errors)
                    raise (AssertionError if is_ours else UnexpectedErrors)("\n".join(["in the journals, and none of EXPECTED_ERRORS:", *errors]))
            else:
                fleet.start_all()
        except machine.NotHere:
            raise
        except Exception:
            passed = False
            print(traceback.format_exc().rstrip(), flush=True)
        for name, text in fleet.journals():
            (fleet.logs / f"{name}.journal").write_text(text)
            if not passed:
                print(f"--- the end of {name}'s journal; all of it: {fleet.logs}/{name}.journal")
                print("\n".join(text.splitlines()[-LINES:]), flush=True)
        if options.keep:
            print(f"The fleet is kept. A shell in a host:\n{fleet.shells()}\nEnter ends it.", flush=True)
            sys.stdin.readline()
    finally:
        fleet.end()
    return passed


def own(logs: Path) -> Path:
    """The folder, or one beside it when another run writes there. For as long as this process lives."""
    for folder in (logs, logs.with_name(f"{logs.name}-{os.getpid()}")):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            # Open until the end, and nobody inherits it.
            fcntl.flock(os.open(folder, os.O_RDONLY | os.O_DIRECTORY), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        if folder != logs:
            print(f"another run writes to {logs}: the logs of this one are in {folder}", flush=True)
        return folder
    raise machine.HostError(f"other runs write to {logs} and to {folder}")


class UnexpectedErrors(AssertionError):
    """Somebody has logged what a scenario does not expect."""


# -- all of them ------------------------------------------------------------------------------------------------------


class Run:
    """A scenario in a process of its own: that one can be isolated, and ended whatever it does."""

    def __init__(self, name: str, options: argparse.Namespace, stream: bool) -> None:
        self.asked = name
        self.name = Path(name).stem
        # What went wrong, and where: of one that failed.
        self.why = self.trace = ""
        self.began = time.monotonic()
        self.output = None if stream else tempfile.TemporaryFile("w+")
        command = [
            sys.executable, str(HERE / "main.py"), "--one", f"--bin-dir={options.bin_dir}", f"--units={options.units}",
            f"--logs={options.logs}", f"--deadline={options.deadline}", name,
        ]  # fmt: skip
        us = os.getpid()
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self.output, stderr=subprocess.STDOUT, preexec_fn=lambda: machine.die_with(us)
        )
        self.latest = self.began + options.deadline + 60

    def is_over(self) -> bool:
        if self.process.poll() is None and time.monotonic() > self.latest:
            self.process.kill()
            self.process.wait()
        return self.process.poll() is not None

    def result(self) -> str:
        code = self.process.returncode
        result = "ok" if code == 0 else "ignored" if code == IGNORED else "FAILED"
        if self.output:
            self.output.seek(0)
            said = self.output.read()
            print(said, end="")
            if result == "FAILED":
                found = re.search(r"^Traceback .*?^([\w.]*(?:Error|Errors|Exit|Interrupt|Late|NotInTime|Failed|Expired)\b.*?)$", said, re.MULTILINE | re.DOTALL)
                self.trace, self.why = (found[0], found[1]) if found else ("", "")
        # An ignored one has said why.
        if code != IGNORED:
            print(f"test {self.name} ... {result} ({time.monotonic() - self.began:.1f} s)", flush=True)
        return result


def again(run: Run, options: argparse.Namespace) -> str:
    """A scenario that was perhaps late only, once more, with the machine for itself. What it left at first stays in its logs."""
    if not PERHAPS_LATE.match(run.why):
        return "FAILED"
    print(f"{run.name} was perhaps only late ({run.why}): again, alone", flush=True)
    alone = argparse.Namespace(**{**vars(options), "logs": options.logs / "again"})
    second = Run(run.asked, alone, stream=False)
    while not second.is_over():
        time.sleep(0.05)
    return second.result()


def run_all(names: list[str], options: argparse.Namespace) -> int:
    began = time.monotonic()
    waiting, running, ended, results = list(names), list[Run](), list[Run](), list[str]()
    try:
        while waiting or running:
            while waiting and len(running) < options.jobs:
                running.append(Run(waiting.pop(0), options, stream=options.jobs == 1 or len(names) == 1))
            time.sleep(0.05)
            for run in [run for run in running if run.is_over()]:
                running.remove(run)
                ended.append(run)
                results.append(run.result())
    finally:
        for run in running:
            run.process.terminate()
        for run in running:
            run.process.wait()
    bad = [index for index, result in enumerate(results) if result == "FAILED"]
    if len(names) > 1 and len(bad) <= AGAIN_AT_MOST:
        for index in bad:
            results[index] = again(ended[index], options)
    # Journals are long: what a reader wants first comes last.
    for run, result in zip(ended, results, strict=True):
        if result == "FAILED":
            print(f"FAILED {run.name}: {run.why}\n{run.trace}")
        elif run.why:
            print(f"SLOW {run.name}: only when it was run again, alone; at first: {run.why}")
    passed, failed, ignored = (results.count(result) for result in ("ok", "FAILED", "ignored"))
    print(
        f"test result: {'FAILED' if failed else 'ok'}. {passed} passed; {failed} failed; {ignored} ignored; "
        f"finished in {time.monotonic() - began:.1f} s",
        flush=True,
    )
    return 1 if failed else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="checks/lab/run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", nargs="*", help="names, as --list has them, or files")
    parser.add_argument("--list", action="store_true", help="the scenarios")
    parser.add_argument("--keep", action="store_true", help="keep the fleet until Enter, with a shell in each host")
    # They wait for most of the time.
    jobs = 2 * (os.cpu_count() or 1)
    parser.add_argument("--jobs", type=int, default=jobs, help="fleets at the same time (default: two for each processor)")
    parser.add_argument("--bin-dir", help="where io-guardian and io-coordinator are (default: they are built)")
    parser.add_argument("--units", type=Path, default=fixtures.RENDERED, help="rendered hosts (default: checks/units)")
    parser.add_argument("--logs", type=Path, default=TARGET / "checks" / "lab", help="where journals and consoles go")
    parser.add_argument("--deadline", type=int, default=DEADLINE, help="seconds for one scenario")
    parser.add_argument("--can", action="store_true", help="say why it cannot be done here")
    # For ourselves: this one, in this process.
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def build(options: argparse.Namespace) -> bool:
    """The binaries, where nobody has named others."""
    features = ["--features", "etcd"] if shutil.which(os.environ.get("PROTOC", "protoc")) else []
    if features:
        print("building our programs", flush=True)
    else:
        print("building our programs but io-vip, for which protoc is needed: apt-get install protobuf-compiler libprotobuf-dev", flush=True)
        # One that was built before is none of what is tried here.
        (TARGET / "debug" / "io-vip").unlink(missing_ok=True)
    try:
        done = subprocess.run(["cargo", "build", "--quiet", "--locked", "--bins", *features], cwd=CHECKS.parent)
    except FileNotFoundError:
        print("checks/lab/run: there is no cargo: install Rust (https://rustup.rs), or name binaries with --bin-dir", file=sys.stderr)
        return False
    options.bin_dir = str(TARGET / "debug")
    return done.returncode == 0


def end(_: int, __: FrameType | None) -> None:
    sys.exit(130)


def main() -> int:
    options = parse()
    known = scenarios()
    # A file elsewhere is one, too: what somebody tries out.
    for index, name in enumerate(options.scenario):
        if name.endswith(".py") and Path(name).is_file():
            known[Path(name).resolve().as_posix()] = Path(name).resolve()
            options.scenario[index] = Path(name).resolve().as_posix()
    if options.list:
        for name, path in known.items():
            print(f"{name:34} {shows(path)}")
        return 0
    if unknown := [name for name in options.scenario if name not in known]:
        print(f"checks/lab/run: there is no scenario {', '.join(unknown)}: see --list", file=sys.stderr)
        return 64
    if reason := missing():
        if options.can:
            print(f"SKIP the lab: {reason}")
        else:
            print(f"checks/lab/run: {reason}\n`./checks/run lab` installs what can be installed, and runs this", file=sys.stderr)
        return 1
    if options.can:
        return 0
    if options.bin_dir is None and not build(options):
        return 1
    signal.signal(signal.SIGTERM, end)
    options.logs = options.logs.resolve()
    try:
        # One of several has the folder of them all.
        if not options.one:
            options.logs = own(options.logs)
        machine.tree()
        if options.keep:
            return 0 if play(known[options.scenario[0]] if options.scenario else None, options) else 1
        if options.one:
            return 0 if play(known[options.scenario[0]], options) else 1
    except machine.NotHere as reason:
        print(f"test {Path(options.scenario[0]).stem} ... ignored, {reason}", flush=True)
        return IGNORED
    except machine.HostError as error:
        print(f"checks/lab/run: {error}", file=sys.stderr)
        return 1
    return run_all(options.scenario or list(known), options)


if __name__ == "__main__":
    sys.exit(main())
