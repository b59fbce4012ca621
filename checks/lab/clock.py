"""A unit's own wall clock, which jumps while the unit runs.

All hosts have the kernel's clock, and that is the clock of whoever runs this. So it is not the clock that is moved: a library
that is put before the unit's programs (clock.c) adds to what they read. Only they see it, and only when they are linked
dynamically.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

from machine import HostError, NotHere

SOURCE = Path(__file__).with_suffix(".c")
FOLDER = "/etc/lab"


class Clock:
    """Put in place before the host is on."""

    def __init__(self, root: Path, unit: str) -> None:
        compiler = shutil.which("cc")
        if compiler is None:
            raise NotHere("a clock that jumps needs a C compiler, and cc is not installed: apt-get install gcc libc6-dev")
        folder = root / FOLDER.lstrip("/")
        folder.mkdir(exist_ok=True)
        library = folder / "clock.so"
        if not library.exists():
            command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode != 0:
                raise HostError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()}")
        self._file = folder / unit
        self._ahead = 0
        self._file.write_bytes(struct.pack("=q", 0))
        drop_in = root / f"etc/systemd/system/{unit}.d/90-clock.conf"
        drop_in.parent.mkdir(parents=True, exist_ok=True)
        drop_in.write_text(f"[Service]\nEnvironment=LD_PRELOAD={FOLDER}/clock.so LAB_CLOCK={FOLDER}/{unit}\n")

    def jump(self, seconds: int) -> None:
        """The unit's programs see it at once, and those that it starts later."""
        self._ahead += seconds
        # In place: they have it mapped.
        with open(self._file, "r+b") as file:
            file.write(struct.pack("=q", self._ahead))
