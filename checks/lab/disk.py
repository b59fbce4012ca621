"""A folder of a host on a disk of its own, which can stall, be full and become read-only.

It is a loop device with an ext4. Stalled by FIFREEZE: whoever writes then waits in the kernel, where no signal reaches him, not
even SIGKILL. A host that is ended with such a process would keep it, the mount and the device for ever. So it is a process of its
own that stalls the disk, until its standard input ends: with `go_on`, and also when whoever has started it is killed, and until it
is told to end itself.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

from machine import HostError, NotHere

STALL = """
import errno, fcntl, os, select, signal, sys
FIFREEZE, FITHAW = 0xC0045877, 0xC0045878
disk = os.open(sys.argv[1], os.O_RDONLY)

def thaw():
    try:
        fcntl.ioctl(disk, FITHAW, 0)
    except OSError as error:
        # It is not frozen.
        if error.errno != errno.EINVAL:
            raise

def end(number, frame):
    # Here, too: a signal may come in the middle of what is below.
    thaw()
    sys.exit("ended by a signal")

for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(each, end)
try:
    fcntl.ioctl(disk, FIFREEZE, 0)
    # Who was to read this may be gone.
    print("stalled", flush=True)
    if len(sys.argv) > 2:
        device = os.open(sys.argv[2], os.O_WRONLY)
        while not select.select([sys.stdin], [], [], 0.005)[0]:
            # Ext4 leaves that to boot loaders.
            os.pwrite(device, bytes(512), 0)
            os.fdatasync(device)
    sys.stdin.read()
finally:
    thaw()
"""
# Seconds. It first writes what is to be written.
PATIENCE = 30


def run(*command: str) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        raise HostError(f"a disk of its own: {' '.join(command)} ended with {done.returncode}: {done.stderr.strip()}")


class Disk:
    """Mounted before the host is on, and as long as the host has files."""

    def __init__(self, image: Path, place: Path, megabytes: int) -> None:
        self._place = place
        self._ballast = place / ".ballast"
        self._stall: subprocess.Popen[str] | None = None
        if not os.path.exists("/dev/loop-control"):
            raise NotHere("a disk of a host's own needs loop devices, and there is no /dev/loop-control")
        if shutil.which("mkfs.ext4") is None:
            raise NotHere("a disk of a host's own needs mkfs.ext4, which is not installed: apt-get install e2fsprogs")
        with open(image, "wb") as file:
            file.truncate(megabytes << 20)
        # No block is root's alone: full is full for everybody.
        run("mkfs.ext4", "-q", "-F", "-m", "0", str(image))
        place.mkdir(parents=True, exist_ok=True)
        # The device goes with the mount, which goes with the last process that has it.
        run("mount", "-o", "loop,errors=remount-ro", str(image), str(place))

    def stall(self, busy: bool = False) -> None:
        """Busy: what others write to the disk, beside the filesystem, is completed."""
        if self._stall:
            return
        beside = [f"/dev/{self._device()}"] if busy else []
        self._stall = subprocess.Popen(
            [sys.executable, "-c", STALL, str(self._place), *beside],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        assert self._stall.stdout
        if self._stall.stdout.readline() != "stalled\n":
            raise HostError(f"{self._place} cannot be stalled: {self._end()}")

    def go_on(self) -> None:
        if self._stall and (why := self._end()):
            raise HostError(f"{self._place} does not go on: {why}")

    def _end(self) -> str:
        assert self._stall
        stall, self._stall = self._stall, None
        _, said = stall.communicate(timeout=PATIENCE)
        return said if stall.returncode != 0 else ""

    def fill(self) -> None:
        """Until not one byte more can be written."""
        self._ballast.mkdir(exist_ok=True)
        # The first file takes nearly all. What others have freed is free after a sync, so that there may be room for another.
        for number in range(1000):
            if not self._add(self._ballast / str(number)):
                return
        raise HostError(f"{self._place} does not become full")

    @staticmethod
    def _add(path: Path) -> int:
        """Writes all that can be written to a new file, and says how much that was."""
        wrote = 0
        try:
            with open(path, "wb", buffering=0) as file:
                for size in (1 << 20, 1 << 12, 1):
                    try:
                        while True:
                            wrote += file.write(bytes(size))
                    except OSError as error:
                        if error.errno != errno.ENOSPC:
                            raise
                os.fsync(file.fileno())
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
        return wrote

    def empty(self) -> None:
        """There is room again."""
        shutil.rmtree(self._ballast, ignore_errors=True)

    def _device(self) -> str:
        number = os.stat(self._place).st_dev
        return Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve().name

    def read_only(self) -> None:
        """As after an error of the disk, whoever has files open there. For good."""
        try:
            Path(f"/sys/fs/ext4/{self._device()}/trigger_fs_error").write_text("for a check")
        except OSError as error:
            raise NotHere(f"this kernel's ext4 cannot be told to have an error: {error.strerror}") from None
