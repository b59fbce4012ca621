"""What every scenario has: a fresh host, a graph of dependents, a guardian, peers."""

from __future__ import annotations

import asyncio
import time
import unittest
from typing import Any, ClassVar

from harness import KEY, PATIENCE, Peer
from host import Host

TARGET = "io-databases.target"
KEY_FILE = "/etc/io-guardian/psk"
UNITS = "/etc/systemd/system"
# Every dependent has it in its environment, and so has every process that comes from one.
MARK = "IO_DEPENDENT"


def service(body: str = "ExecStart=/bin/sleep infinity\n", unit: str | None = None, more: str = "") -> str:
    """A dependent. By default it is bound to the target as DESIGN has it: it needs it, and starts after it."""
    if unit is None:
        unit = f"Requires={TARGET}\nAfter={TARGET}\n"
    return f"[Unit]\n{unit}\n[Service]\nEnvironment={MARK}=1\n{body}\n{more}\n"


# Stopping it waits until the test opens the gate. `NAME.stopping` says that the stop has begun, once for each time.
GATED = """\
ExecStart=/bin/sleep infinity
ExecStop=/bin/sh -c 'echo x >>/run/t/%N.stopping; while [ ! -e /run/t/%N.gate ]; do sleep 0.02; done; touch /run/t/%N.stopped'
TimeoutStopSec=60
"""

# SIGTERM means nothing to it, nor to what it starts.
STUBBORN = """\
ExecStart=/bin/sh -c 'trap "" TERM; while :; do sleep 1000; done'
TimeoutStopSec=2
"""

# Ends with code 1 when it is told to stop.
# It has started when it can sulk: told to stop before, it would be ended by the signal.
SULKING = """\
ExecStart=/bin/sh -c 'trap "exit 1" TERM; touch /run/t/sulks; sleep infinity & wait'
ExecStartPost=/bin/sh -c 'until rm /run/t/sulks 2>/dev/null; do sleep 0.05; done'
"""


class Case(unittest.IsolatedAsyncioTestCase):
    """A scenario on a host of its own. The guardian is a service of that host, as it will be in production."""

    maxDiff = None
    bin_dir: ClassVar[str] = "target/debug"
    host_log: ClassVar[str | None] = None

    async def asyncSetUp(self) -> None:
        asyncio.get_running_loop().set_debug(False)
        self.host = Host(bin_dir=self.bin_dir, log=self.host_log)
        self.host.start()
        self.addCleanup(self.host.stop)
        self.host.path("/run/t").mkdir()
        self.host.put(KEY_FILE, KEY + "\n", 0o600)
        self._peers: list[Peer] = []
        self._tasks: list[asyncio.Task[Any]] = []

    async def asyncTearDown(self) -> None:
        for task in self._tasks:
            task.cancel()
        for peer in self._peers:
            peer.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def evidence(self) -> str:
        """What a failed test shows beside its trace."""
        units = self.host.systemctl("list-units", "--all", "--no-legend", "--plain", "*app*", "io-*", check=False)
        log = self.host.journal("io-guardian.service")[-6000:]
        return f"--- units\n{units}\n--- the guardian's journal\n{log}"

    # -- the graph ----------------------------------------------------------------------------------------------

    def unit(self, name: str, text: str) -> None:
        self.host.put(f"{UNITS}/{name}", text)

    def graph(self, services: dict[str, str] | None = None, pull: str = "Upholds", target: str = "") -> list[str]:
        """Writes the target and its dependents (name to unit text), and tells systemd. The target pulls them in."""
        services = services or {}
        pulled = "".join(f"{pull}={name}\n" for name in services) if pull else ""
        self.unit(TARGET, f"[Unit]\nDescription=The databases are online\n{pulled}{target}")
        for name, text in services.items():
            self.unit(name, text)
        self.host.systemctl("daemon-reload")
        return list(services)

    def apps(self, count: int) -> list[str]:
        return self.graph({f"app-{n}.service": service() for n in range(1, count + 1)})

    # -- the guardian and its peers -----------------------------------------------------------------------------

    def guardian(self, arguments: str = "", service: str = "", unit: str = "") -> None:
        """Writes io-guardian.service and starts it. With Type=notify that returns when it is ready."""
        self.unit(
            "io-guardian.service",
            f"[Unit]\n{unit}\n[Service]\nType=notify\n"
            f"ExecStart=/usr/local/bin/io-guardian serve --psk-file {KEY_FILE} {arguments}\n{service}\n",
        )
        self.host.systemctl("daemon-reload")
        self.host.systemctl("start", "io-guardian.service")

    async def peer(self, **options: Any) -> Peer:
        peer = await Peer.trusted(**options)
        self._peers.append(peer)
        return peer

    async def stranger(self, **options: Any) -> Peer:
        peer = await Peer.dial(**options)
        self._peers.append(peer)
        return peer

    async def ready(self, arguments: str = "") -> Peer:
        """The guardian runs, its dependents are up: gives a connection."""
        self.guardian(arguments)
        peer = await self.peer()
        answer = await peer.ask("undrain")
        self.assertEqual(answer["status"], "ok", answer)
        return peer

    def later(self, work: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.ensure_future(work)
        self._tasks.append(task)
        return task

    async def command(self, *command: str, **options: Any) -> Any:
        """Runs a command in the host while the test's connections go on."""
        return await asyncio.to_thread(self.host.run, *command, **options)

    async def coordinator(self, *arguments: str, **options: Any) -> Any:
        return await self.command("io-coordinator", *arguments, "--psk-file", KEY_FILE, check=False, **options)

    # -- waiting for what can be seen only from outside ---------------------------------------------------------

    async def until(self, true: Any, what: str, timeout: float = PATIENCE) -> None:
        deadline = time.monotonic() + timeout
        while not true():
            if time.monotonic() > deadline:
                self.fail(f"waited {timeout} s for {what}")
            await asyncio.sleep(0.01)

    async def begun(self, name: str = "app", times: int = 1) -> None:
        """Waits until the stop of a gated dependent has begun."""
        path = f"/run/t/{name}.stopping"
        await self.until(lambda: self.host.exists(path) and self.host.read(path).count("x") >= times, f"{name} to be stopped")

    def open_gate(self, name: str = "app") -> None:
        self.host.put(f"/run/t/{name}.gate", "")

    # -- what is claimed ----------------------------------------------------------------------------------------

    def ok(self, answer: dict[str, Any], action: str | None = None) -> None:
        self.assertEqual((answer["type"], answer["status"]), ("response", "ok"), answer)
        if action:
            self.assertEqual(answer["action"], action)

    def error(self, answer: dict[str, Any], *words: str) -> None:
        """The answer is an error, and its message has all these words."""
        self.assertEqual((answer["type"], answer["status"]), ("response", "error"), answer)
        for word in words:
            self.assertIn(word.lower(), answer["message"].lower())

    def nothing_left(self) -> None:
        """No process of any dependent runs: seen in the process table, not believed from states."""
        self.assertEqual(self.host.processes(MARK), {})

    def states(self, answer: dict[str, Any]) -> dict[str, str]:
        return {unit["name"]: unit["state"] for unit in answer["units"]}

    def report(self, answer: dict[str, Any], name: str) -> dict[str, Any]:
        found: list[dict[str, Any]] = [unit for unit in answer["units"] if unit["name"] == name]
        self.assertEqual(len(found), 1, f"{name} should be named once in {answer['units']}")
        return found[0]

    def active(self, *names: str) -> None:
        for name in names:
            self.assertEqual(self.host.state(name), "active", name)
