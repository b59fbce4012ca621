"""A fleet of real guardians on this machine, what follows them, an io-fence, an io-vip, and the end of all that was started for it."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from types import FrameType
from typing import Any

import browser
from harness import KEY, PATIENCE

TOKEN = "checks-token-0123456789abcdef0123456789abcdef"
HOSTS = 20
# It says that it is there once it can no longer be stopped in the middle of its start, and then takes its time to stop.
SLOW = """\
import os, signal, sys, time
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
with open(sys.argv[1], "w") as there:
    there.write(sys.argv[2] + chr(10))
signal.sigwait({signal.SIGTERM})
time.sleep(float(sys.argv[3]))
"""

_programs: set[Program] = set()
_folders: set[Path] = set()


def _end_all(number: int, _: FrameType | None) -> None:
    """For a signal: there is no time to unwind, so all ends here."""
    for program in list(_programs):
        program.process.kill()
        # Nobody else may wait for it at this moment, or somebody does: both are well.
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            program.process.wait(5)
    for leader in list(browser.leaders):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(leader, signal.SIGKILL)
    for folder in list(_folders):
        # What was just killed may still be in the middle of a write.
        for _attempt in range(100):
            shutil.rmtree(folder, ignore_errors=True)
            if not folder.exists():
                break
    os._exit(128 + number)


def end_with_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _end_all)


class Folder:
    """A folder for all that is written, gone in the end."""

    def __init__(self, parent: str | None = None) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="io-view-", dir=parent))
        _folders.add(self.path)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        _folders.discard(self.path)


class Program:
    """A process that this check started, and the last of what it said."""

    def __init__(self, *command: str) -> None:
        self.lines: collections.deque[str] = collections.deque(maxlen=2000)
        self._news = threading.Condition()
        self._over = False
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            env={"PATH": os.environ["PATH"], "RUST_LOG": "info"},
        )
        _programs.add(self)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as said:
            for line in said:
                with self._news:
                    self.lines.append(line.rstrip("\n"))
                    self._news.notify_all()
        with self._news:
            self._over = True
            self._news.notify_all()

    def line(self, words: str) -> str:
        """The first line with these words, when it is said."""
        def found() -> str | None:
            return next((line for line in self.lines if words in line), None)
        with self._news:
            self._news.wait_for(lambda: self._over or found() is not None, PATIENCE)
            line = found()
        if line is None:
            raise RuntimeError(f"it did not say {words!r}:\n" + "\n".join(self.lines))
        return line

    def address(self, words: str) -> str:
        return self.line(words).split("address=")[1].split()[0]

    def kill(self) -> None:
        """As if by kill -9."""
        self.process.kill()
        self._gone()

    def end(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self._gone()

    def _gone(self) -> None:
        self.process.wait()
        _programs.discard(self)
        self._reader.join(5)


def adopt(process: subprocess.Popen[bytes]) -> Any:
    """Notes a process that was started in another way. Gives what takes it off the list again."""
    program = Program.__new__(Program)
    program.process = process  # type: ignore[assignment]
    _programs.add(program)
    return lambda: _programs.discard(program)


class Redis:
    """A real Redis with nothing in it."""

    def __init__(self, folder: Path, host: str = "127.0.0.1", port: int | None = None) -> None:
        if shutil.which("redis-server") is None:
            raise RuntimeError("redis-server is not there: install the Debian package `redis-server`")
        if port is None:
            # It cannot be told to take any free one, and to say which.
            with socket.socket() as free:
                free.bind((host, 0))
                port = free.getsockname()[1]
        self.port = port
        self.program = Program(
            "redis-server", "--bind", host, "--port", str(port), "--save", "", "--dir", str(folder), "--protected-mode", "no"
        )
        self.program.line("Ready to accept connections")


class Guardian:
    """A guardian with three processes, one of which is slow to stop."""

    def __init__(
        self, bin_dir: Path, folder: Path, number: int, stop: float, redis: str | None = None, host: str = "127.0.0.1", port: int = 0,
        names: tuple[str, str, str] = ("web", "worker", "slow"), version: str = "auto",
    ) -> None:
        self.tag = f"{folder.name}-{number}"
        slow = [sys.executable, "-I", "-S", "-c", SLOW, str(folder / "there"), self.tag, str(stop)]
        sleeper = ["/bin/sleep", "1000000"]
        config = 'units = "processes"\n' + "".join(
            f"[[process]]\nname = {json.dumps(name)}\ncommand = {json.dumps(command)}\nstop-timeout = \"40s\"\n"
            for name, command in zip(names, (sleeper, sleeper, slow), strict=True)
        )
        file = folder / f"guardian-{number}.toml"
        file.write_text(config)
        self.command = [
            str(bin_dir / "io-guardian"), "serve", "--host", host, "--config", str(file), "--psk-file", str(folder / "psk"),
            "--wire", version, "--metrics", f"{host}:0",
        ] + (["--redis", redis] if redis else [])  # fmt: skip
        self.program = Program(*self.command, "--port", str(port))

    def await_listening(self) -> None:
        self.address = self.program.address("listening")
        self.metrics = self.program.address("figures at")

    def start_again(self) -> None:
        """With the port that it had."""
        self.program = Program(*self.command, "--port", self.address.rsplit(":", 1)[1])
        self.await_listening()

    def start_again_if_gone(self) -> None:
        if self.program.process.poll() is not None:
            self.start_again()

    def processes(self) -> int:
        """How many of its processes run: what is true, whatever anybody shows."""
        count = 0
        waiting = [self.program.process.pid]
        while waiting:
            pid = waiting.pop()
            # Any of them may end while it is looked at.
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                count += self.tag.encode() in words or words[:1] == [b"/bin/sleep"]
                for task in Path(f"/proc/{pid}/task").iterdir():
                    waiting += [int(child) for child in (task / "children").read_text().split()]
        return count


class Apart:
    """What runs in a network of its own: with no root, and no table or address of this machine's."""

    # Nobody else's network can be asked from here.
    ASK = """
import sys, urllib.request as requests
request = requests.Request(sys.argv[1], headers={"Accept": sys.argv[2]})
with requests.urlopen(request, timeout=float(sys.argv[3])) as answer:
    print(answer.headers["Content-Type"])
    sys.stdout.write(answer.read().decode())
"""
    url: str

    def __init__(self) -> None:
        # What they keep, and watch, must be in memory.
        self.folder = Folder("/dev/shm")
        self.programs: list[Program] = []

    def first(self, up: str, *command: str) -> Program:
        """Makes the network by `up`, and runs in it what it lasts for."""
        # `exec`: the process that was started is the one that is ended.
        up = f'set -e; PATH="$PATH:/usr/sbin:/sbin"; ip link set lo up; {up} exec "$@"'
        return self._note(Program("unshare", *self.namespaces(), "sh", "-c", up, "sh", *command))

    def next(self, *command: str) -> Program:
        return self._note(Program(*self.inside(), *command))

    def _note(self, program: Program) -> Program:
        self.programs.append(program)
        return program

    def inside(self) -> list[str]:
        """What a command that goes in begins with. Any of those in there may have ended."""
        user = ["--user", "--preserve-credentials"] if os.geteuid() != 0 else []
        alive = next(program.process.pid for program in reversed(self.programs) if program.process.poll() is None)
        return ["nsenter", "--target", str(alive), "--net", *user]

    @staticmethod
    def namespaces() -> list[str]:
        return ["--net"] if os.geteuid() == 0 else ["--user", "--map-root-user", "--net"]

    @classmethod
    def cannot(cls) -> str | None:
        """Why there can be none here."""
        if shutil.which("ip", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
            return "ip is not there: install the Debian package `iproute2`"
        tried = subprocess.run(["unshare", *cls.namespaces(), "true"], capture_output=True, text=True, timeout=PATIENCE, check=False)
        return None if tried.returncode == 0 else f"no network of its own can be made: {tried.stderr.strip()}"

    def figures(self, accept: str) -> tuple[str, str]:
        """Content type and text."""
        said = subprocess.run(
            [*self.inside(), sys.executable, "-I", "-c", self.ASK, self.url, accept, str(PATIENCE)],
            capture_output=True, text=True, timeout=2 * PATIENCE, check=True,
        ).stdout  # fmt: skip
        kind, _, text = said.partition("\n")
        return kind, text

    def values(self) -> dict[str, float]:
        """Each sample, with its labels as they are written."""
        _, text = self.figures("text/plain")
        samples = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, value in samples}

    def evidence(self) -> list[str]:
        return [line for program in self.programs for line in list(program.lines)[-10:]]

    def end(self) -> None:
        """The last one first: it may want to say goodbye to those before."""
        for program in reversed(self.programs):
            program.end()
        self.folder.remove()


class Fence(Apart):
    """A real `io-fence run` that watches a folder in memory."""

    def __init__(self, bin_dir: Path) -> None:
        super().__init__()
        place = self.folder.path
        self.watched = str(place / "watched")
        os.mkdir(self.watched)
        self.binary, self.socket = str(bin_dir / "io-fence"), str(place / "socket")
        try:
            program = self.first(
                "", self.binary, "run", "--monitor", self.watched, "--ports", "5432", "--socket", self.socket,
                "--state", str(place / "state.json"), "--metrics", "127.0.0.1:0",
            )  # fmt: skip
            self.url = f"http://{program.address('figures at')}/metrics"
            self._await_a_minute()
        except BaseException:
            self.end()
            raise

    def _await_a_minute(self) -> None:
        """What the last minute was like is not there before the first write."""
        deadline = time.monotonic() + PATIENCE
        while not any(name.startswith("io_fence_write_latency_") for name in self.values()):
            if time.monotonic() > deadline:
                raise RuntimeError("no write came back:\n" + "\n".join(self.evidence()))
            time.sleep(0.1)

    def by_hand(self, *command: str) -> None:
        """`io-fence fence …` or `unfence …`."""
        subprocess.run([self.binary, *command, "--socket", self.socket], capture_output=True, timeout=PATIENCE, check=True)


class Vip(Apart):
    """A real `io-vip run`, the only one of its pool, beside a real etcd."""

    FREE, TAKEN = "192.0.2.1", "192.0.2.2"
    # An interface with a carrier; and an address that is this host's own already, so that io-vip cannot hold it.
    UP = f"ip link add v0 type veth peer name v1; ip link set v0 up; ip link set v1 up; ip address add {TAKEN}/32 dev lo;"
    STORE = "http://127.0.0.1:2379"

    def __init__(self, bin_dir: Path) -> None:
        super().__init__()
        place = self.folder.path
        self.binary, self.config = str(bin_dir / "io-vip"), place / "io-vip.toml"
        told = {
            "interface": "v0", "nodename": "a", "dcs-endpoints": [self.STORE], "checker-type": "none", "ttl": "5s",
            "metrics": "127.0.0.1:0", "socket": str(place / "socket"), "state": str(place / "state.json"),
        }  # fmt: skip
        # Strings and lists of them are written like JSON's.
        self.config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in told.items()))
        try:
            peer = "http://127.0.0.1:2380"
            self.store = self.first(
                self.UP, "etcd", "--name", "a", "--data-dir", str(place / "etcd"),
                "--listen-client-urls", self.STORE, "--advertise-client-urls", self.STORE,
                "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"a={peer}",
            )  # fmt: skip
            self.store.line("ready to serve client requests")
            program = self.next(self.binary, "run", "--config", str(self.config))
            self.url = f"http://{program.address('figures at')}/metrics"
            self.operate("add", self.FREE, self.TAKEN)
            self.until(HEALTHY)
        except BaseException:
            self.end()
            raise

    @classmethod
    def missing(cls, bin_dir: Path) -> str | None:
        """Why there can be none here."""
        if shutil.which("etcd") is None:
            return "etcd is not installed: apt-get install etcd-server"
        if not (bin_dir / "io-vip").exists():
            return "io-vip was not built: cargo build --features etcd, which needs protoc"
        return cls.cannot()

    def operate(self, *command: str) -> None:
        """`io-vip add …`, `pause`, `resume`."""
        done = subprocess.run(
            [*self.inside(), self.binary, *command, "--config", str(self.config)],
            capture_output=True, text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise AssertionError(f"io-vip {command[0]} ended with {done.returncode}:\n{done.stderr}")

    def until(self, wanted: dict[str, float]) -> None:
        """Waits until the figures are these, one that is not there counting as None."""
        deadline = time.monotonic() + PATIENCE
        while True:
            values = self.values()
            seen = {name: values.get(name) for name in wanted}
            if seen == wanted:
                return
            if time.monotonic() > deadline:
                raise AssertionError(f"wanted {wanted}, and there was {seen}:\n" + "\n".join(self.evidence()))
            time.sleep(0.1)


HEALTHY: dict[str, float] = {
    "io_vip_takes_part": 1,
    "io_vip_store_watched": 1,
    "io_vip_paused": 0,
    "io_vip_pool": 2,
    "io_vip_pool_unowned": 1,
    "io_vip_held": 1,
    f'io_vip_holds{{address="{Vip.FREE}"}}': 1,
    f'io_vip_cannot{{address="{Vip.TAKEN}"}}': 1,
    "io_vip_lapses_total": 0,
}


class Fleet:
    """Twenty guardians, and `io-coordinator serve` that follows them."""

    def __init__(self, bin_dir: Path) -> None:
        self.bin_dir = bin_dir
        self.folder = Folder()
        self.guardians: list[Guardian] = []
        self._programs: list[Program] = []
        try:
            self._prepare()
            self._start()
        except BaseException:
            self.end()
            raise

    def _prepare(self) -> None:
        place = self.folder.path
        for name, text in {"psk": KEY, "token": TOKEN}.items():
            (place / name).write_text(text)
            (place / name).chmod(0o600)
        os.mkfifo(place / "there")
        # Also for writing: it must not be at its end whenever no slow process has it open.
        self._there = os.open(place / "there", os.O_RDWR | os.O_NONBLOCK)

    def _start(self) -> None:
        place = self.folder.path
        redis = Redis(place)
        self._programs.append(redis.program)
        for number in range(HOSTS):
            watched = f"127.0.0.1:{redis.port}" if number == 0 else None
            # From one to three seconds, each a tenth of a second more than the one before.
            self.guardians.append(Guardian(self.bin_dir, place, number, 1 + number / 10, watched))
        self.follow("127.0.0.1:0", {})

    def follow(self, listen: str, names: dict[int, str]) -> None:
        """Starts `serve`. Hosts have the address as their name, unless `names` has another."""
        for guardian in self.guardians:
            guardian.await_listening()
        self.names = [names.get(number, guardian.address) for number, guardian in enumerate(self.guardians)]
        (self.folder.path / "hosts").write_text("\n".join(self.names) + "\n")
        self.serve = Program(
            *self.coordinator("serve"), "--listen", listen, "--token-file", str(self.folder.path / "token"),
            "--generation-file", str(self.folder.path / "generation"),
        )
        self._programs.append(self.serve)
        self.url = f"http://{self.serve.address('the fleet is shown at')}/"

    def coordinator(self, action: str, hosts: list[str] | None = None) -> list[str]:
        of = ["--hosts-file", str(self.folder.path / "hosts")] if hosts is None else ["--hosts", ",".join(hosts)]
        return [str(self.bin_dir / "io-coordinator"), action, *of, "--psk-file", str(self.folder.path / "psk")]

    def tell(self, action: str, hosts: list[str] | None = None, *more: str) -> str:
        """Has the real `io-coordinator` do it, and waits for its end."""
        generation = ["--generation-file", str(self.folder.path / "generation")] if action in ("drain", "undrain", "hold", "release") else []
        while select.select([self._there], [], [], 0)[0]:
            os.read(self._there, 65536)
        program = Program(*self.coordinator(action, hosts), *generation, *more)
        try:
            code = program.process.wait(PATIENCE)
            program._reader.join(PATIENCE)
        finally:
            program.kill()
        said = "\n".join(program.lines)
        if code != 0:
            raise AssertionError(f"{action} ended with {code}:\n{said}")
        return said

    def undrain(self, hosts: list[str] | None = None) -> None:
        """Until their slow processes can be stopped slowly: a drain in the middle of their start would be no slow one."""
        wanted = {g.tag for name, g in zip(self.names, self.guardians, strict=True) if hosts is None or name in hosts}
        wanted = {tag for tag in wanted if next(g for g in self.guardians if g.tag == tag).processes() < 3}
        said = self.tell("undrain", hosts, "--fail-fast")
        heard = b""
        deadline = time.monotonic() + PATIENCE
        while wanted - set(heard.decode().split()):
            if not select.select([self._there], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise AssertionError(f"these slow processes did not start: {wanted - set(heard.decode().split())}\n{said}")
            heard += os.read(self._there, 65536)

    def document(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.url}api/fleet", timeout=PATIENCE) as answer:
            known: dict[str, Any] = json.load(answer)
            return known

    def figures(self, url: str, accept: str) -> tuple[str, str]:
        """Content type and text."""
        with urllib.request.urlopen(urllib.request.Request(f"{url}metrics", headers={"Accept": accept}), timeout=PATIENCE) as answer:
            return answer.headers["Content-Type"], answer.read().decode()

    def evidence(self) -> str:
        """What `serve` and the guardians said last."""
        said = ["serve:", *list(self.serve.lines)[-8:]] if hasattr(self, "serve") else []
        for number, guardian in enumerate(self.guardians):
            worth = [line for line in guardian.program.lines if " WARN" in line or " ERROR" in line][-3:]
            said += [f"guardian {number}: {line}" for line in worth]
        return "\n".join(said)

    def end(self) -> None:
        """All at the same time: each may take as long as its slowest process."""
        running = [*reversed(self._programs), *(guardian.program for guardian in self.guardians)]
        for program in running:
            if program.process.poll() is None:
                program.process.terminate()
        for program in running:
            program.end()
        if hasattr(self, "_there"):
            os.close(self._there)
        self.folder.remove()
