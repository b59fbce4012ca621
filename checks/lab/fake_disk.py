"""A folder that is a disk's double: it answers as it is told to, with an error, late, or not at all.

A small FUSE filesystem: one folder of files that are kept in memory, a process of its own that ends with its standard input. It is
told by lines:

    ok            it works; what waited is done
    fail NAME     what would write fails with this error (EIO, ENOSPC, EROFS, …); of EIO, reads do, too
    late MS       what writes is answered so much later
    hang          what writes is not answered

Whoever waits for it can be killed, which whoever waits for a true disk cannot: for that there is disk.py.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import struct
import subprocess
import sys
import time
from pathlib import Path

# Opcodes of the kernel's protocol, as far as a single folder needs them.
LOOKUP, FORGET, GETATTR, SETATTR, MKNOD, UNLINK, RENAME, OPEN, READ, WRITE, STATFS = 1, 2, 3, 4, 8, 10, 12, 14, 15, 16, 17
RELEASE, FSYNC, FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR, FSYNCDIR, ACCESS, CREATE = 18, 20, 25, 26, 27, 28, 29, 30, 34, 35
INTERRUPT, DESTROY, BATCH_FORGET, FALLOCATE, RENAME2 = 36, 38, 42, 43, 45
WRITES = {SETATTR, MKNOD, UNLINK, RENAME, RENAME2, WRITE, FSYNC, FSYNCDIR, CREATE, FALLOCATE}
# What has no answer.
SILENT = {FORGET, INTERRUPT, BATCH_FORGET}
ROOT = 1
MOST = 1 << 17


class Node:
    def __init__(self, number: int, mode: int, uid: int = 0, gid: int = 0) -> None:
        self.number, self.mode, self.uid, self.gid = number, mode, uid, gid
        self.data = bytearray()
        self.changed = time.time()

    def attributes(self) -> bytes:
        seconds, rest = int(self.changed), int(self.changed % 1 * 1e9)
        links = 2 if stat.S_ISDIR(self.mode) else 1
        return struct.pack(
            "<6Q10I", self.number, len(self.data), (len(self.data) + 511) // 512, seconds, seconds, seconds, rest, rest, rest,
            self.mode, links, self.uid, self.gid, 0, 4096, 0,
        )  # fmt: skip


class Refused(Exception):
    """With this error."""


class Server:
    def __init__(self, device: int) -> None:
        self.device = device
        self.nodes = {ROOT: Node(ROOT, stat.S_IFDIR | 0o755)}
        self.names: dict[bytes, int] = {}
        self.next = ROOT + 1
        # How it is: an error, a time to wait in seconds, whether it answers.
        self.error = 0
        self.late = 0.0
        self.hangs = False
        # When they are done, and what they are.
        self.waiting: list[tuple[float, bytes]] = []

    # -- being told -----------------------------------------------------------------------------------------------

    def told(self, line: str) -> None:
        word, *more = line.split()
        self.error = getattr(errno, more[0]) if word == "fail" else 0
        self.late = int(more[0]) / 1000 if word == "late" else 0.0
        self.hangs = word == "hang"
        if not self.hangs:
            self.waiting = [(min(due, time.monotonic() + self.late), request) for due, request in self.waiting]

    def serve(self) -> None:
        os.set_blocking(self.device, False)
        while True:
            due = min((due for due, _ in self.waiting), default=None)
            left = None if due is None or self.hangs else max(0.0, due - time.monotonic())
            ready, _, _ = select.select([sys.stdin, self.device], [], [], left)
            if sys.stdin in ready:
                line = sys.stdin.readline()
                if not line:
                    return
                self.told(line)
                print("so", flush=True)
            if self.device in ready:
                try:
                    request = os.read(self.device, MOST + 4096)
                except (BlockingIOError, InterruptedError):
                    continue
                except OSError as error:
                    if error.errno == errno.ENODEV:
                        # It is unmounted.
                        return
                    if error.errno == errno.ENOENT:
                        # Whoever asked has been interrupted.
                        continue
                    raise
                self.take(request)
            if not self.hangs:
                now = time.monotonic()
                done = [request for due, request in self.waiting if due <= now]
                self.waiting = [(due, request) for due, request in self.waiting if due > now]
                for request in done:
                    self.answer(request)

    def take(self, request: bytes) -> None:
        (opcode,) = struct.unpack_from("<4xI", request)
        if opcode in SILENT:
            return
        if opcode in WRITES and (self.hangs or self.late):
            self.waiting.append((time.monotonic() + self.late, request))
        else:
            self.answer(request)

    def answer(self, request: bytes) -> None:
        length, opcode, unique, node, uid, gid = struct.unpack_from("<IIQQII", request)
        body = request[40:length]
        try:
            if self.error and (opcode in WRITES or (opcode == READ and self.error == errno.EIO)):
                raise Refused(self.error)
            if self.error == errno.EROFS and opcode == OPEN and struct.unpack_from("<I", body)[0] & os.O_ACCMODE:
                raise Refused(self.error)
            reply, error = self.perform(opcode, node, body, uid, gid), 0
        except Refused as refused:
            reply, error = b"", refused.args[0]
        try:
            os.write(self.device, struct.pack("<IiQ", 16 + len(reply), -error, unique) + reply)
        except OSError as problem:
            # Whoever asked is gone.
            if problem.errno != errno.ENOENT:
                raise

    # -- the filesystem ---------------------------------------------------------------------------------------------

    def named(self, name: bytes) -> Node:
        if name not in self.names:
            raise Refused(errno.ENOENT)
        return self.nodes[self.names[name]]

    def entry(self, node: Node) -> bytes:
        # Good for no time at all: the kernel asks each time.
        return struct.pack("<4Q2I", node.number, 0, 0, 0, 0, 0) + node.attributes()

    def make(self, name: bytes, mode: int, uid: int, gid: int) -> Node:
        if name not in self.names:
            node = Node(self.next, mode if stat.S_IFMT(mode) else stat.S_IFREG | mode, uid, gid)
            self.next += 1
            self.nodes[node.number], self.names[name] = node, node.number
        return self.named(name)

    def perform(self, opcode: int, number: int, body: bytes, uid: int, gid: int) -> bytes:
        # One that is unlinked and open is known still.
        node = self.nodes[number] if number else self.nodes[ROOT]
        if opcode == INIT:
            return struct.pack("<4I2H2I2H2I12H", 7, 31, 0, 0, 12, 10, MOST, 1, 0, 0, 0, 0, *[0] * 12)
        if opcode == LOOKUP:
            return self.entry(self.named(body.rstrip(b"\0")))
        if opcode == GETATTR:
            return struct.pack("<QII", 0, 0, 0) + node.attributes()
        if opcode == SETATTR:
            valid, size = struct.unpack_from("<I12xQ", body)
            mode, owner, group = struct.unpack_from("<I4xII", body, 68)
            if valid & 1:
                node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(mode)
            if valid & 2:
                node.uid = owner
            if valid & 4:
                node.gid = group
            if valid & 8:
                node.data[size:] = bytes(max(0, size - len(node.data)))
            node.changed = time.time()
            return struct.pack("<QII", 0, 0, 0) + node.attributes()
        if opcode == MKNOD:
            return self.entry(self.make(body[16:].rstrip(b"\0"), struct.unpack_from("<I", body)[0], uid, gid))
        if opcode == CREATE:
            made = self.make(body[16:].rstrip(b"\0"), struct.unpack_from("<4xI", body)[0], uid, gid)
            # The kernel keeps no pages of it.
            return self.entry(made) + struct.pack("<QII", 0, 1, 0)
        if opcode == UNLINK:
            self.named(body.rstrip(b"\0"))
            del self.names[body.rstrip(b"\0")]
            return b""
        if opcode in (RENAME, RENAME2):
            old, new = body[8 if opcode == RENAME else 16 :].split(b"\0")[:2]
            self.names[new] = self.named(old).number
            del self.names[old]
            return b""
        if opcode in (OPEN, OPENDIR):
            return struct.pack("<QII", 0, 1 if opcode == OPEN else 0, 0)
        if opcode == READ:
            offset, size = struct.unpack_from("<8xQI", body)
            return bytes(node.data[offset : offset + size])
        if opcode == WRITE:
            offset, size = struct.unpack_from("<8xQI", body)
            node.data[offset : offset + size] = body[40 : 40 + size].rjust(size, b"\0")
            node.changed = time.time()
            return struct.pack("<II", size, 0)
        if opcode == STATFS:
            return struct.pack("<5Q10I", 1 << 16, 1 << 15, 1 << 15, 1 << 10, 1 << 9, 4096, 255, 4096, 0, *[0] * 6)
        if opcode == READDIR:
            offset = struct.unpack_from("<8xQ", body)[0]
            return b"" if offset else self.listed()
        if opcode in (RELEASE, RELEASEDIR, FSYNC, FSYNCDIR, FLUSH, ACCESS, FALLOCATE, DESTROY):
            return b""
        raise Refused(errno.ENOSYS)

    def listed(self) -> bytes:
        entries = b""
        for index, (name, number) in enumerate([(b".", ROOT), (b"..", ROOT), *self.names.items()], start=1):
            kind = stat.S_IFMT(self.nodes[number].mode) >> 12
            entry = struct.pack("<QQII", number, index, len(name), kind) + name
            entries += entry + bytes(-len(entry) % 8)
        return entries


class FakeDisk:
    """The double, as a scenario has it. Mounted before the host is on."""

    def __init__(self, place: Path) -> None:
        import machine

        if not os.path.exists("/dev/fuse"):
            raise machine.NotHere("a disk's double needs FUSE, and there is no /dev/fuse")
        place.mkdir(parents=True, exist_ok=True)
        device = os.open("/dev/fuse", os.O_RDWR)
        machine.mount("double", place, "fuse", 0, f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions")
        self._server = subprocess.Popen(
            [sys.executable, __file__, str(device)], pass_fds=[device],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        os.close(device)

    def _tell(self, line: str) -> None:
        assert self._server.stdin and self._server.stdout
        self._server.stdin.write(f"{line}\n")
        self._server.stdin.flush()
        if self._server.stdout.readline() != "so\n":
            raise OSError("the disk's double has ended")

    def works(self) -> None:
        self._tell("ok")

    def fails(self, name: str) -> None:
        """What would write fails with this error."""
        self._tell(f"fail {name}")

    def is_late(self, milliseconds: int) -> None:
        self._tell(f"late {milliseconds}")

    def hangs(self) -> None:
        self._tell("hang")

    def end(self) -> None:
        """Whoever waits for it gets an error."""
        self._server.communicate()


if __name__ == "__main__":
    Server(int(sys.argv[1])).serve()
