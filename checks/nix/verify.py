#!/usr/bin/env python3
"""Holds what render.py wrote to what systemd says of it.

    checks/nix/verify.py [--bin-dir target/debug]

That it is current; `systemd-analyze verify`, once for each unit, where any word is a failure; shellcheck of the scripts;
how exposed our services are; and, with --bin-dir, that the programs accept their configurations.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))

import render  # noqa: E402

OURS = ("io-guardian", "io-coordinator", "io-fence", "io-vip")
# Servers of NixOS' whose units we set: they need not be installed.
SERVERS = ("redis-server", "etcd")
# Whose configurations are rendered, by their names: the command that says whether it takes one.
CONFIGURED = {
    "io-guardian": ("io-guardian", "serve", "--psk-file", "/psk"),
    "io-fence": ("io-fence", "run"),
    "io-vip": ("io-vip", "run"),
}
KINDS = (".service", ".target", ".timer", ".socket", ".path", ".slice")
# How exposed a service may be, in tenths, as systemd 252 reckons (257 is milder): what was read off when the reason was
# written. Whoever needs more says why.
EXPOSURE = {
    # The network for its port, the machine's users and AF_UNIX for systemd's bus.
    "io-guardian.service": 15,
    # The network for the databases, AF_UNIX for readiness.
    "wait-for-io-databases.service": 14,
    # The network for the guardians.
    "io-database-coordinator.service": 15,
    # The same, and its own port.
    "io-coordinator-serve.service": 15,
    # CAP_NET_ADMIN and the network for what it closes, netlink, disks for what it watches; no PrivateTmp= nor PrivateDevices=, which
    # would need a disk at its start. With figures AF_INET besides, and 2.0.
    "io-fence.service": 17,
    # CAP_NET_ADMIN and CAP_NET_RAW for addresses and their announcements, netlink and packets for the same; the network for etcd, the check and figures;
    # /proc/sys for the boot's id.
    "io-vip.service": 18,
    # As the coordinator, without these two either.
    "io-fence-drain.service": 19,
    "io-fence-undrain.service": 19,
    # PostgreSQL's user and its socket.
    "io-databases-provision.service": 7,
}


class Tests:
    """Prints what ./checks/run reads."""

    def __init__(self) -> None:
        self.passed = self.failed = self.ignored = 0
        self.started = time.monotonic()

    def report(self, name: str, wrong: str) -> None:
        self.passed += not wrong
        self.failed += bool(wrong)
        print(f"test {name} ... {'FAILED' if wrong else 'ok'}", flush=True)
        for line in wrong.splitlines():
            print(f"    {line}", flush=True)

    def ignore(self, name: str, reason: str) -> None:
        self.ignored += 1
        print(f"test {name} ... ignored, {reason}", flush=True)

    def end(self) -> int:
        print(
            f"test result: {'FAILED' if self.failed else 'ok'}. {self.passed} passed; {self.failed} failed; "
            f"{self.ignored} ignored; finished in {time.monotonic() - self.started:.1f} s"
        )
        return 1 if self.failed else 0


def said(*command: str, **environment: str) -> tuple[int, str]:
    """How a command ends, and each line that it says, once."""
    done = subprocess.run(
        command,
        env={**os.environ, **environment, "SYSTEMD_COLORS": "0", "SYSTEMD_PAGER": ""},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, "\n".join(dict.fromkeys(done.stdout.splitlines()))


class Bench:
    """A host's units in a folder where all that they name is there."""

    def __init__(self, host: Path, others: list[str], folder: Path) -> None:
        self.host = host
        self.units = folder / "units"
        shutil.copytree(host, self.units, symlinks=True, ignore=shutil.ignore_patterns("etc"))
        programs = folder / "bin"
        programs.mkdir()
        for name in (*OURS, *SERVERS):
            (programs / name).symlink_to("/bin/true")
        rendered = folder / "rendered"
        if (host / "etc" / "rendered").exists():
            shutil.copytree(host / "etc" / "rendered", rendered)
        for path in self.files():
            text = path.read_text().replace("/usr/local/bin/", f"{programs}/")
            for name in SERVERS:
                text = text.replace(f"/usr/bin/{name}", f"{programs}/{name}")
            path.write_text(text.replace("/etc/rendered/", f"{rendered}/"))
        for name in others:
            service = "[Service]\nType=oneshot\nExecStart=/bin/true\n" if name.endswith(".service") else ""
            (self.units / name).write_text(f"[Unit]\nDescription=What NixOS brings\n{service}")

    def files(self) -> list[Path]:
        return [path for path in sorted(self.units.iterdir()) if path.suffix in KINDS and path.is_file()]

    def names(self) -> list[str]:
        return sorted(path.name for path in self.host.iterdir() if path.suffix in KINDS and path.is_file())

    def verify(self, unit: str) -> str:
        # The machine's own units complete the graph; these come first.
        code, words = said(
            "systemd-analyze", "verify", "--man=no", str(self.units / unit), SYSTEMD_UNIT_PATH=f"{self.units}:"
        )
        # It exits with 0 when a key or a section is unknown.
        return words or (f"exit code {code}" if code else "")

    def exposure(self, unit: str, most: int) -> str:
        code, words = said(
            "systemd-analyze",
            "security",
            "--offline=yes",
            f"--threshold={most}",
            "--no-pager",
            str(self.units / unit),
            SYSTEMD_UNIT_PATH=f"{self.units}:",
        )
        found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", words)
        if found is None:
            return words or f"exit code {code}"
        if code or round(float(found[1]) * 10) > most:
            words = "\n".join(line for line in words.splitlines() if "✗" in line)
            return f"{words}\nexposed to {found[1]}; at most {most / 10} was meant (EXPOSURE in checks/nix/verify.py)"
        return ""


def check_host(tests: Tests, host: Path, others: list[str], bin_dir: Path | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(host, others, Path(folder))
        analyze: list[tuple[str, Callable[[], str]]] = []
        for unit in bench.names():
            analyze.append((f"{host.name}/{unit} is understood by systemd", partial(bench.verify, unit)))
            if unit in EXPOSURE:
                check = partial(bench.exposure, unit, EXPOSURE[unit])
                analyze.append((f"{host.name}/{unit} is not more exposed", check))
        for name, ask in analyze if shutil.which("systemd-analyze") else []:
            tests.report(name, ask())
    for script in sorted((host / "etc" / "rendered").rglob("*")):
        if shutil.which("shellcheck") and script.is_file() and os.access(script, os.X_OK):
            code, words = said("shellcheck", str(script))
            tests.report(f"{host.name}/{script.name} is a clean script", words or (f"exit code {code}" if code else ""))
    for configuration in sorted((host / "etc" / "rendered").glob("*.toml")) if bin_dir else []:
        program, *arguments = CONFIGURED[configuration.name.removesuffix("-checked.toml")]
        code, words = said(f"{bin_dir}/{program}", *arguments, "--check-config", "--config", str(configuration))
        tests.report(f"{host.name}/{configuration.name} is accepted by {program}", words if code else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--bin-dir", type=Path, help="where io-guardian is")
    options = parser.parse_args()
    tests = Tests()
    wrong = render.stale()
    tests.report("checks/units is current", "\n".join([*wrong, f"remedy: {render.COMMAND}"] if wrong else []))
    for name, data in render.hosts().items():
        check_host(tests, render.UNITS / name, data["others"], options.bin_dir)
    for program, package in (("systemd-analyze", "systemd"), ("shellcheck", "shellcheck")):
        if not shutil.which(program):
            tests.ignore(f"what {program} says", f"it is not installed: apt-get install {package}")
    return tests.end()


if __name__ == "__main__":
    sys.exit(main())
