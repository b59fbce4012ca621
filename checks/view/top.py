"""`io-coordinator top` in a terminal of its own, read as a person reads it: by what is on the screen."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import signal
import struct
import subprocess
import termios
from collections.abc import Callable
from typing import TypeVar

import hosts
from harness import PATIENCE

try:
    import pyte
except ImportError:
    pyte = None

COLUMNS, ROWS = 120, 40
UP, DOWN, ENTER, ESCAPE = "\x1b[A", "\x1b[B", "\r", "\x1b"
# Each frame ends with it: what is on the screen before may be half of one frame and half of another.
FRAME = b"\x1b[?25l"
ENTERS, LEAVES, SHOWS = b"\x1b[?1049h", b"\x1b[?1049l", b"\x1b[?25h"

Found = TypeVar("Found")


class Top:
    """The program, its screen, and its end."""

    def __init__(self, command: list[str]) -> None:
        if pyte is None:
            raise AssertionError("Python's pyte is not there: install the Debian package `python3-pyte`")
        self._command = command
        self._screen = pyte.Screen(COLUMNS, ROWS)
        self._stream = pyte.ByteStream(self._screen)
        self._news = asyncio.Event()
        self._pending = b""
        self.raw = bytearray()
        """All that was ever sent to the terminal."""
        self.lines: list[str] = []
        self.on_frame: Callable[[list[str]], None] = lambda _: None

    async def __aenter__(self) -> Top:
        self._master, self._slave = pty.openpty()
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("4H", ROWS, COLUMNS, 0, 0))
        self._before = termios.tcgetattr(self._slave)
        os.set_blocking(self._master, False)
        # `setsid --ctty` becomes the program itself: the terminal is its own, as in a shell.
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *self._command], stdin=self._slave, stdout=self._slave, stderr=self._slave,
            env={"PATH": os.environ["PATH"], "TERM": "xterm-256color"},
        )
        self._forget = hosts.adopt(self.process)
        asyncio.get_running_loop().add_reader(self._master, self._read)
        return self

    async def __aexit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._master)
        self.process.kill()
        self.process.wait()
        self._forget()
        os.close(self._master)
        os.close(self._slave)

    def _read(self) -> None:
        try:
            said = os.read(self._master, 65536)
        except (BlockingIOError, OSError):
            return
        self.raw += said
        *frames, self._pending = (self._pending + said).split(FRAME)
        for frame in frames:
            self._stream.feed(frame)
            self.lines = [line.rstrip() for line in self._screen.display]
            self.on_frame(self.lines)
            self._news.set()

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    async def until(self, what: str, wanted: Callable[[list[str]], Found]) -> Found:
        """Waits until something is on the screen."""
        try:
            async with asyncio.timeout(PATIENCE):
                while not (found := wanted(self.lines)):
                    self._news.clear()
                    await self._news.wait()
                return found
        except TimeoutError:
            raise AssertionError(f"{what} is not seen:\n" + "\n".join(self.lines)) from None

    async def ended(self) -> list[str]:
        """Waits for its end. Gives what is wrong with how it left the terminal."""
        code = await asyncio.to_thread(self.process.wait, PATIENCE)
        self._read()
        faults = [] if code == 0 else [f"it ended with {code}"]
        sent = bytes(self.raw)
        if ENTERS not in sent:
            faults.append("it never took the alternate screen")
        if sent.rfind(LEAVES) <= sent.rfind(ENTERS):
            faults.append("it did not leave the alternate screen")
        if sent.rfind(SHOWS) <= sent.rfind(FRAME):
            faults.append("it did not show the cursor again")
        if termios.tcgetattr(self._slave) != self._before:
            faults.append("the terminal is not in the mode in which it was")
        return faults

    def chosen(self) -> str:
        """The first word of the row that is in reverse."""
        rows = (row for row in range(ROWS) if self._screen.buffer[row][0].reverse)
        return next((self.lines[row].split()[0] for row in rows if self.lines[row]), "")

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)


def states(lines: list[str], names: list[str]) -> dict[str, str]:
    """The word behind the name of each host that is on the screen."""
    known = set(names)
    words = (line.split() for line in lines)
    return {each[0]: each[1] for each in words if len(each) > 1 and each[0] in known}
