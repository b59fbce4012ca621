"""The interface that the NixOS test driver has, over the hosts of a fleet.

Where NixOS' own has a default, a deadline or an error for something, so it is here: what passes there passes here. What is
here only: `freeze`, `thaw`, `hears`, `loses`, `apart`, `slow`, `disk`, `root_disk`, `double`, `clock`, `gets`.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from clock import Clock
from disk import Disk
from fake_disk import FakeDisk
from fleet import PluggedHost
from machine import ENVIRONMENT

# NixOS' own.
PATIENCE = 900
REPOSITORY = Path(__file__).resolve().parents[2]


class RequestFailed(Exception):
    """A command or a unit did not do what the scenario asked for."""


class NotInTime(RequestFailed):
    """It was not so within the time that it had."""


class Named(Protocol):
    @property
    def name(self) -> str: ...


class Report:
    """Says what happens, with times since the start."""

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self.depth = 0

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.begun:7.1f} s  {'  ' * self.depth}{text}", flush=True)

    @contextmanager
    def subtest(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        self.depth += 1
        try:
            yield
        except BaseException:
            self.depth -= 1
            self.say(f"FAIL {name} ({time.monotonic() - began:.1f} s)")
            raise
        self.depth -= 1
        self.say(f"ok   {name} ({time.monotonic() - began:.1f} s)")


class LabMachine:
    """One host, as a scenario has it."""

    def __init__(self, host: PluggedHost, report: Report) -> None:
        self.host = host
        self.name = host.name
        self._report = report
        self._on = False
        self._connected = False

    # -- power and network --------------------------------------------------------------------------------------

    def start(self) -> None:
        """Does not wait until it has booted."""
        if self._on and not self.host.is_over():
            return
        if self._on:
            # It has powered off by itself.
            self._went_off()
        self.host.on()
        self._on = True
        self._connected = False

    def connect(self) -> None:
        self.start()
        if not self._connected:
            self.host.await_systemd()
            self._connected = True

    def _went_off(self) -> None:
        self.host.off()
        self._on = self._connected = False

    def wait_for_shutdown(self) -> None:
        self.host.await_off(PATIENCE)
        self._went_off()

    def shutdown(self) -> None:
        if self._on:
            self.connect()
            self.host.run("systemctl", "poweroff", "--no-block", check=False)
            self.wait_for_shutdown()

    def reboot(self) -> None:
        self.shutdown()
        self.start()

    def crash(self) -> None:
        """Its power is cut."""
        if self._on:
            self._went_off()

    def block(self) -> None:
        """Its network cable is pulled."""
        self.host.switch.carries(self.name, False)

    def unblock(self) -> None:
        self.host.switch.carries(self.name, True)

    def freeze(self) -> None:
        """All its processes stand still. Its kernel still answers: connections stay."""
        self.connect()
        self.host.freeze(True)

    def thaw(self) -> None:
        self.host.freeze(False)

    def hears(self, other: Named, yes: bool) -> None:
        """Whether what the other one sends gets here. What this one sends goes out."""
        self.loses(other, 0 if yes else 100)

    def loses(self, other: Named, percent: int) -> None:
        """How much of what the other one sends does not get here."""
        self.host.switch.loses(self.name, other.name, percent)

    def apart(self, others: Iterable[Named], yes: bool = True) -> None:
        """Whether nothing gets from this one to the others, nor back: from one moment to the next."""
        names = [other.name for other in others]
        self.host.switch.all_lose([pair for name in names for pair in ((self.name, name), (name, self.name))], 100 if yes else 0)

    def slow(self, latency_ms: int, jitter_ms: int = 0) -> None:
        """What gets here and what this one sends comes later, more or less by chance. NotHere where there are no TAP interfaces."""
        self.host.switch.slow(self.name, latency_ms, jitter_ms)

    def disk(self, folder: str, megabytes: int = 16) -> Disk:
        """Before it is on: this folder is a disk, which can stall and be full."""
        return self.host.disk(folder, megabytes)

    def root_disk(self, megabytes: int = 512) -> Disk:
        """Before it is on, and before any other disk: all that it writes, but to /run and the like, is on a disk."""
        return self.host.root_disk(megabytes)

    def double(self, folder: str) -> FakeDisk:
        """Before it is on: this folder is a disk's double, which can fail, be late and hang."""
        return self.host.double(folder)

    def clock(self, unit: str) -> Clock:
        """Before it is on: the programs of this unit have a wall clock of their own."""
        return self.host.clock(unit)

    def gets(self, file: str, place: str) -> None:
        """A file of this repository, put there."""
        self.copy_from_host(str(REPOSITORY / file), place)

    # -- commands -----------------------------------------------------------------------------------------------

    def _execute(self, command: str, timeout: int | None) -> subprocess.CompletedProcess[str]:
        self.connect()
        argv = ["bash", "-c", f"set -euo pipefail; {command}"]
        if timeout is not None:
            argv = ["timeout", str(timeout), *argv]
        return subprocess.run(
            self.host.argv(*argv), env=ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=None if timeout is None else timeout + 30,
        )  # fmt: skip

    def execute(
        self, command: str, check_return: bool = True, check_output: bool = True, timeout: int | None = PATIENCE
    ) -> tuple[int, str]:
        done = self._execute(command, timeout)
        return (done.returncode if check_return else -2), (done.stdout if check_output else "")

    def succeed(self, *commands: str, timeout: int | None = PATIENCE) -> str:
        printed = ""
        for command in commands:
            done = self._execute(command, timeout)
            if done.returncode != 0:
                raise RequestFailed(f"{self.name}: `{command}` failed with {done.returncode}\n{done.stdout}{done.stderr}".rstrip())
            printed += done.stdout
        return printed

    def fail(self, *commands: str, timeout: int | None = PATIENCE) -> str:
        printed = ""
        for command in commands:
            done = self._execute(command, timeout)
            if done.returncode == 0:
                raise RequestFailed(f"{self.name}: `{command}` unexpectedly succeeded\n{done.stdout}".rstrip())
            printed += done.stdout
        return printed

    def _retry(self, what: str, holds: Callable[[], bool], timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not holds():
            if time.monotonic() > deadline:
                raise NotInTime(f"{self.name}: not within {timeout} s: {what}")
            time.sleep(0.1)

    def wait_until_succeeds(self, command: str, timeout: int = PATIENCE) -> str:
        printed = ""

        def succeeds() -> bool:
            nonlocal printed
            code, printed = self.execute(command, timeout=timeout)
            return code == 0

        self._retry(f"`{command}` succeeds", succeeds, timeout)
        return printed

    def wait_until_fails(self, command: str, timeout: int = PATIENCE) -> str:
        printed = ""

        def fails() -> bool:
            nonlocal printed
            code, printed = self.execute(command, timeout=timeout)
            return code != 0

        self._retry(f"`{command}` fails", fails, timeout)
        return printed

    # -- units and ports ----------------------------------------------------------------------------------------

    def systemctl(self, q: str, user: str | None = None) -> tuple[int, str]:
        if user is not None:
            raise NotImplementedError("the lab's hosts have no users' managers")
        return self.execute(f"systemctl {q}")

    def get_unit_info(self, unit: str, user: str | None = None) -> dict[str, str]:
        code, printed = self.systemctl(f"--no-pager show {shlex.quote(unit)}", user)
        if code != 0:
            raise RequestFailed(f"{self.name}: no information on {unit}")
        return dict(line.split("=", 1) for line in printed.splitlines() if "=" in line)

    def get_unit_property(self, unit: str, property: str, user: str | None = None) -> str:
        return self.get_unit_info(unit, user)[property]

    def require_unit_state(self, unit: str, require_state: str = "active") -> None:
        state = self.get_unit_property(unit, "ActiveState")
        if state != require_state:
            raise RequestFailed(f"{self.name}: {unit} is {state}, and not {require_state}")

    def wait_for_unit(self, unit: str, user: str | None = None, timeout: int = PATIENCE) -> None:
        def active() -> bool:
            state = self.get_unit_property(unit, "ActiveState", user)
            if state == "failed":
                raise RequestFailed(f"{self.name}: {unit} has failed")
            if state == "inactive" and "No jobs" in self.systemctl("list-jobs --full", user)[1]:
                # It may have become active between the two questions.
                if self.get_unit_property(unit, "ActiveState", user) == "inactive":
                    raise RequestFailed(f"{self.name}: {unit} is inactive, and no job is pending")
            return state == "active"

        self._retry(f"{unit} is active", active, timeout)

    def _is_open(self, port: int, addr: str) -> bool:
        return self.execute(f"timeout 5 bash -c '</dev/tcp/{addr}/{port}' 2>/dev/null")[0] == 0

    def wait_for_open_port(self, port: int, addr: str = "localhost", timeout: int = PATIENCE) -> None:
        self._retry(f"port {port} of {addr} is open", lambda: self._is_open(port, addr), timeout)

    def wait_for_closed_port(self, port: int, addr: str = "localhost", timeout: int = PATIENCE) -> None:
        self._retry(f"port {port} of {addr} is closed", lambda: not self._is_open(port, addr), timeout)

    # -- console and files --------------------------------------------------------------------------------------

    def wait_for_console_text(self, regex: str, timeout: int | None = None) -> None:
        """The console has the journal, too."""
        self.connect()
        self._retry(f"the console shows {regex}", lambda: bool(re.search(regex, self.host.console())), timeout or PATIENCE)

    def copy_from_host(self, source: str, target: str) -> None:
        """Here, the host is where this runs: as in NixOS' driver."""
        self.connect()
        place = self.host.path(target)
        place.parent.mkdir(parents=True, exist_ok=True)
        if Path(source).is_dir():
            shutil.copytree(source, place, symlinks=True, dirs_exist_ok=True)
        else:
            shutil.copy(source, place)

    def log(self, text: str) -> None:
        self._report.say(f"{self.name}: {text}")
