"""A host that boots nothing: namespaces of its own, and in them the processes that it is given.

It is on the fleet's switch like the others, and loses its power like them: first its cable is pulled, then all of it is killed at once.
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import machine
from machine import ENVIRONMENT, HostError
from fleet import Switch

# Its first process: whatever is started in the host ends with it. A /run of its own is where daemons put what is each host's.
FIRST = "mount -t tmpfs -o mode=0755 tmpfs /run && echo ready && exec sleep infinity"


class LightHost:
    def __init__(self, name: str, switch: Switch, place: Path, logs: Path) -> None:
        """`place`: for its files. They stay when it loses its power."""
        self.name = name
        self.switch = switch
        self.place = place
        self.logs = logs
        self.first: subprocess.Popen[str] | None = None
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        # As seen from inside and from outside.
        self.files = place / "files"

    # -- power ---------------------------------------------------------------------------------------------------

    @property
    def is_on(self) -> bool:
        return self.first is not None

    def on(self) -> None:
        if self.first:
            return
        if not self.files.is_dir():
            self.place.mkdir(exist_ok=True)
            machine.mount("tmpfs", self.place, "tmpfs", 0, "mode=0755,size=1g")
            self.files.mkdir()
        netns = self.place / "netns"
        self.switch.plug(self.name, netns)
        parent = os.getpid()
        with open(self.logs / f"{self.name}.log", "ab") as log:
            self.first = subprocess.Popen(
                ["nsenter", f"--net={netns}", "unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc", "--",
                 "sh", "-c", f"hostname {self.name} && {FIRST}"],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True, env=ENVIRONMENT, start_new_session=True,
                preexec_fn=lambda: machine.die_with(parent),
            )  # fmt: skip
        assert self.first.stdout
        if self.first.stdout.readline() != "ready\n":
            raise HostError(f"{self.name}: no namespaces of its own")
        self.leader = machine.child_of(self.first.pid)

    def off(self) -> None:
        """Its power is cut."""
        if not self.first:
            return
        self.switch.unplug(self.name, self.place / "netns")
        os.kill(self.leader, signal.SIGKILL)
        self.first.communicate()
        self.first = None
        for process in self.processes.values():
            # nsenter stops with what it has started, and does not see it end.
            process.send_signal(signal.SIGCONT)
            process.wait()
        self.processes.clear()

    def end(self) -> None:
        self.off()
        if self.files.is_dir():
            machine.unmount(self.place)

    # -- processes -----------------------------------------------------------------------------------------------

    def argv(self, *command: str) -> list[str]:
        return ["nsenter", f"--target={self.leader}", "--net", "--mount", "--uts", "--pid", "--", *command]

    def run(self, *command: str, check: bool = True, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Runs a command in the host. One text is a shell script."""
        argv = ["/bin/bash", "-c", f"set -euo pipefail; {command[0]}"] if len(command) == 1 else list(command)
        done = subprocess.run(self.argv(*argv), env=ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout)
        if check and done.returncode != 0:
            raise machine.CommandFailed(f"{self.name}: {' '.join(argv)}\nended with {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def spawn(self, name: str, *command: str, environment: dict[str, str] | None = None) -> None:
        """Starts a program that goes on; what it prints is in a log."""
        with open(self.logs / f"{self.name}-{name}.log", "ab") as log:
            self.processes[name] = subprocess.Popen(
                self.argv(*command), env={**ENVIRONMENT, **(environment or {})},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def pid(self, name: str) -> int:
        """Of a program that was spawned, as seen from outside."""
        return machine.child_of(self.processes[name].pid)

    def signal(self, name: str, number: signal.Signals) -> None:
        """To the program. Nothing happens when it has ended."""
        outer = self.processes[name]
        if outer.poll() is not None:
            return
        os.kill(self.pid(name), number)
        if number == signal.SIGCONT:
            # nsenter stops with what it has started.
            outer.send_signal(number)

    def runs(self, name: str) -> bool:
        return name in self.processes and self.processes[name].poll() is None
