"""What a stranger can do to a port. Plain sockets in a process of its own, so that it does not slow the witness.

Each attack is bounded in count and in time, goes to loopback only, and gives back what it saw as a dictionary.
"""

from __future__ import annotations

import base64
import json
import os
import resource
import selectors
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator

from sealed import HELLO_HEADER, MORE, SUBPROTOCOL, WELCOME_HEADER, Initiator, from_header, to_header

TEXT, BINARY, CLOSE, PING, PONG, CONTINUATION = 0x1, 0x2, 0x8, 0x9, 0xA, 0x0
MASK = b"\x00\x00\x00\x00"
# The guardian's part of a handshake of the second version.
ANSWERED = WELCOME_HEADER.encode() + b":"


def raise_descriptor_limit(needed: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(needed, hard) if hard != resource.RLIM_INFINITY else needed, hard))


def frame(opcode: int, payload: bytes = b"", fin: bool = True, announced: int | None = None) -> bytes:
    """A client's frame. The mask is zero, so that the payload can be sent as it is."""
    length = len(payload) if announced is None else announced
    head = bytes([(0x80 if fin else 0) | opcode])
    if length < 126:
        head += bytes([0x80 | length])
    elif length < 65536:
        head += bytes([0x80 | 126]) + struct.pack("!H", length)
    else:
        head += bytes([0x80 | 127]) + struct.pack("!Q", length)
    return head + MASK + payload


def hello(port: int, sealed: bytes | None = None) -> bytes:
    """A WebSocket handshake; with a message of the second version's it offers that."""
    key = base64.b64encode(os.urandom(16)).decode()
    offer = "" if sealed is None else f"Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n{HELLO_HEADER}: {to_header(sealed)}\r\n"
    return (
        f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n{offer}\r\n"
    ).encode()


def auth(key: str) -> bytes:
    return frame(TEXT, json.dumps({"type": "auth", "key": key}).encode())


def sources(many: bool | None) -> Iterator[str]:
    """Where connections come from: one address, or forty (all of 127.0.0.0/8 is ours), or that of the witness."""
    while True:
        if many is None:
            yield "127.0.0.1"
        elif many:
            for last in range(2, 42):
                yield f"127.0.0.{last}"
        else:
            yield "127.0.0.2"


def dial(port: int, source: str = "127.0.0.2", timeout: float = 10) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=timeout, source_address=(source, 0))


def shake(port: int, source: str = "127.0.0.2", timeout: float = 10) -> socket.socket:
    """A connection after the WebSocket handshake."""
    peer = dial(port, source, timeout)
    peer.sendall(hello(port))
    seen = b""
    while b"\r\n\r\n" not in seen:
        piece = peer.recv(4096)
        if not piece:
            raise ConnectionResetError("closed during the handshake")
        seen += piece
    return peer


def trusted(port: int, key: str) -> socket.socket:
    peer = shake(port)
    peer.sendall(auth(key))
    if b'"ok"' not in peer.recv(4096):
        raise ConnectionResetError("the right key was refused")
    return peer


class Sealed:
    """One who has the key and speaks the second version, frame by frame."""

    def __init__(self, port: int, key: str, source: str = "127.0.0.2") -> None:
        self.peer = dial(port, source)
        initiator = Initiator(key)
        self.peer.sendall(hello(port, initiator.hello))
        self._seen = b""
        while b"\r\n\r\n" not in self._seen:
            self._read()
        head, self._seen = self._seen.split(b"\r\n\r\n", 1)
        if f"sec-websocket-protocol: {SUBPROTOCOL}".encode() not in head.lower():
            raise AssertionError(f"the second version was not chosen: {head!r}")
        welcome = [line.split(b":", 1)[1].strip() for line in head.split(b"\r\n") if line.lower().startswith(ANSWERED)]
        # One who has to look into the file for the key says it in a frame.
        self.channel = initiator.finish(from_header(welcome[0]) if welcome else self.receive())

    def _read(self) -> None:
        piece = self.peer.recv(65536)
        if not piece:
            raise ConnectionResetError("the guardian has closed")
        self._seen += piece

    def send(self, payload: bytes) -> None:
        self.peer.sendall(frame(BINARY, payload))

    def receive(self) -> bytes:
        """The next frame, which must be binary, whole, and shorter than 64 KiB."""
        while True:
            if len(self._seen) >= 4:
                length, start = self._seen[1], 2
                if length == 126:
                    length, start = struct.unpack("!H", self._seen[2:4])[0], 4
                if len(self._seen) >= start + length:
                    if self._seen[0] != 0x80 | BINARY:
                        raise AssertionError(f"no binary frame: {self._seen[:40]!r}")
                    payload, self._seen = self._seen[start : start + length], self._seen[start + length :]
                    return payload
            self._read()

    def ask(self, text: str) -> str:
        self.send(self.channel.seal(text))
        return self.channel.open(self.receive())


def read_to_end(peer: socket.socket, seconds: float) -> tuple[bytes, bool]:
    """All that the guardian still says, and whether it closed within that time."""
    deadline = time.monotonic() + seconds
    seen = bytearray()
    while (left := deadline - time.monotonic()) > 0:
        peer.settimeout(left)
        try:
            piece = peer.recv(65536)
        except TimeoutError:
            break
        except OSError:
            return bytes(seen), True
        if not piece:
            return bytes(seen), True
        seen += piece
    return bytes(seen), False


def close_code(seen: bytes) -> int | None:
    """The code of the last close frame in what a server sent, which is not masked."""
    place, code = 0, None
    while place + 2 <= len(seen):
        opcode, length = seen[place] & 0x0F, seen[place + 1] & 0x7F
        place += 2
        if length == 126:
            length = struct.unpack("!H", seen[place : place + 2])[0]
            place += 2
        elif length == 127:
            length = struct.unpack("!Q", seen[place : place + 8])[0]
            place += 8
        if opcode == CLOSE and length >= 2:
            code = struct.unpack("!H", seen[place : place + 2])[0]
        place += length
    return code


class Crowd:
    """Many connections at once, watched until the guardian has closed each of them."""

    def __init__(self, port: int, many_sources: bool | None) -> None:
        self.port = port
        self.origin = sources(many_sources)
        self.selector = selectors.DefaultSelector()
        self.open: set[socket.socket] = set()
        self.opened = self.closed = self.authenticated = self.refused = self.answered = 0

    def join(self, first: bytes = b"", then: bytes = b"") -> None:
        """One more connection. It says `first`, and `then` when the handshake has been answered."""
        peer = socket.socket()
        peer.setblocking(False)
        peer.bind((next(self.origin), 0))
        peer.connect_ex(("127.0.0.1", self.port))
        self.open.add(peer)
        self.opened += 1
        self.selector.register(peer, selectors.EVENT_READ | (selectors.EVENT_WRITE if first else 0), [first, then])

    def drop(self, peer: socket.socket) -> None:
        self.selector.unregister(peer)
        self.open.discard(peer)
        peer.close()
        self.closed += 1

    def turn(self, seconds: float) -> None:
        for key, events in self.selector.select(seconds):
            peer: socket.socket = key.fileobj  # type: ignore[assignment]
            try:
                if events & selectors.EVENT_WRITE:
                    peer.send(key.data[0])
                    self.selector.modify(peer, selectors.EVENT_READ, key.data)
                if events & selectors.EVENT_READ:
                    seen = peer.recv(4096)
                    if not seen:
                        self.drop(peer)
                        continue
                    if key.data[1] and b"\r\n\r\n" in seen:
                        peer.send(key.data[1])
                        key.data[1] = b""
                    self.authenticated += seen.count(b'"Authentication successful"')
                    self.refused += seen.count(b'"Invalid key"') + seen.count(b"Authentication failed")
                    self.answered += seen.count(ANSWERED)
            except BlockingIOError:
                continue
            except OSError:
                self.drop(peer)

    def send_all(self, data: bytes) -> None:
        for peer in list(self.open):
            try:
                peer.send(data)
            except BlockingIOError:
                continue
            except OSError:
                self.drop(peer)

    def until_closed(self, seconds: float, each_second: bytes = b"") -> dict[str, int]:
        deadline = time.monotonic() + seconds
        tick = time.monotonic() + 1
        while self.open and time.monotonic() < deadline:
            self.turn(0.1)
            if each_second and time.monotonic() >= tick:
                self.send_all(each_second)
                tick += 1
        left = len(self.open)
        for peer in list(self.open):
            self.drop(peer)
        return {"opened": self.opened, "left": left, "authenticated": self.authenticated, "refused": self.refused, "answered": self.answered}


def gather(port: int, count: int, many: bool | None, first: bytes = b"", then: bytes = b"", each_second: bytes = b"", seconds: float = 60) -> dict[str, int]:
    raise_descriptor_limit(count + 64)
    crowd = Crowd(port, many)
    for n in range(count):
        crowd.join(first, then)
        if n % 20 == 0:
            crowd.turn(0)
    return crowd.until_closed(seconds, each_second)


def silent(port: int, count: int, many: bool) -> dict[str, int]:
    """Connections that say nothing at all."""
    return gather(port, count, many)


def trickling(port: int, count: int, many: bool) -> dict[str, int]:
    """Connections that say a byte a second of a handshake that never ends."""
    return gather(port, count, many, b"GET / HTTP/1.1\r\nHost: a\r\nX-A: ", each_second=b"a")


def unauthenticated(port: int, count: int, many: bool) -> dict[str, int]:
    """Connections that shake hands and then say nothing."""
    return gather(port, count, many, hello(port))


def chattering(port: int, count: int, many: bool) -> dict[str, int]:
    """Connections that shake hands and then send half a frame, a byte a second."""
    return gather(port, count, many, hello(port), frame(TEXT, b"", announced=4000), each_second=b"a")


def wrong_keys(port: int, count: int, many: bool, sealed: bool = False) -> dict[str, int]:
    """Guesses as fast as connections can be made; 50 under way at a time."""
    raise_descriptor_limit(256)
    crowd = Crowd(port, many)
    deadline = time.monotonic() + 60
    for n in range(count):
        if sealed:
            crowd.join(hello(port, Initiator(f"guess-{n:040}").hello))
        else:
            crowd.join(hello(port), auth(f"guess-{n:040}"))
        while len(crowd.open) >= 50 and time.monotonic() < deadline:
            crowd.turn(0.05)
            if len(crowd.open) >= 50:
                # An attacker does not wait for an answer that is late.
                crowd.drop(next(iter(crowd.open)))
    return crowd.until_closed(30)


def replayed(port: int, count: int, many: bool, key: str) -> dict[str, int]:
    """A handshake that was recorded, again and again: it is right, and whoever says it can say nothing more."""
    return gather(port, count, many, hello(port, Initiator(key).hello))


def endless_fragments(port: int, key: str, size: int = 100 << 20) -> dict[str, int | bool | None]:
    """One with the key begins a message, and goes on and on: how much of it was taken?"""
    sealed = Sealed(port, key)
    sealed.peer.settimeout(20)
    sent = 0
    try:
        while sent < size:
            sealed.send(sealed.channel.seal_plain(MORE + b" " * 4000))
            sent += 4000
    except TimeoutError:
        return {"sent": sent, "closed": False, "code": None}
    except OSError:
        pass
    seen, ended = read_to_end(sealed.peer, 20)
    sealed.peer.close()
    return {"sent": sent, "closed": ended, "code": close_code(seen)}


def endless_message(port: int, key: str | None, fragmented: bool, size: int = 100 << 20) -> dict[str, int | bool | None]:
    """A message of 100 MB: in one frame that says so, or in fragments that do not. How much of it was taken?"""
    peer = trusted(port, key) if key else shake(port)
    peer.settimeout(20)
    piece = b" " * 4096
    sent = 0
    closed = False
    try:
        if not fragmented:
            peer.sendall(frame(TEXT, b"", announced=size))
        while sent < size:
            if fragmented:
                peer.sendall(frame(CONTINUATION if sent else TEXT, piece, fin=False))
            else:
                peer.sendall(piece)
            sent += len(piece)
    except TimeoutError:
        # Not taken, not refused: a hang.
        return {"sent": sent, "closed": False, "code": None}
    except OSError:
        closed = True
    seen, ended = read_to_end(peer, 20)
    peer.close()
    return {"sent": sent, "closed": closed or ended, "code": close_code(seen)}


def pings(port: int, key: str | None, count: int, read: bool = True) -> dict[str, int | bool]:
    """WebSocket pings, many in a write; the pongs are read, or not."""
    peer = trusted(port, key) if key else shake(port)
    batch = frame(PING, b"p" * 4) * 1000
    last = frame(TEXT, b'{"type": "command", "action": "ping"}')
    sent = pongs = 0
    closed = answered = False
    selector = selectors.DefaultSelector()
    peer.setblocking(False)
    selector.register(peer, selectors.EVENT_READ | selectors.EVENT_WRITE)
    out = memoryview(b"")
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and not closed and not answered:
        for _, events in selector.select(1):
            try:
                if events & selectors.EVENT_WRITE:
                    if not out and sent < count:
                        sent += 1000
                        # A command after the last one: its answer says that all of them were taken.
                        out = memoryview(batch if sent < count else batch + last)
                    if out:
                        out = out[peer.send(out) :]
                if events & selectors.EVENT_READ and read:
                    seen = peer.recv(1 << 16)
                    if not seen:
                        closed = True
                    pongs += seen.count(b"\x8a\x04pppp")
                    answered = answered or b'"message": "pong"' in seen
            except BlockingIOError:
                continue
            except OSError:
                closed = True
        selector.modify(peer, (selectors.EVENT_READ if read else 0) | (selectors.EVENT_WRITE if out or sent < count else 0) or selectors.EVENT_READ)
        if not read and not out and sent >= count:
            break
    peer.close()
    return {"sent": sent, "pongs": pongs, "answered": answered, "closed": closed}


def greedy(port: int, key: str, count: int) -> dict[str, int | bool]:
    """An authenticated peer that asks and asks, and never reads an answer."""
    peer = trusted(port, key)
    peer.settimeout(15)
    batch = frame(TEXT, b'{"type": "command", "action": "status"}') * 100
    sent = 0
    closed = False
    try:
        while sent < count:
            peer.sendall(batch)
            sent += 100
    except TimeoutError:
        # Held back by the guardian, which takes no more than it can answer. It may hang up, too.
        pass
    except OSError:
        closed = True
    peer.close()
    return {"sent": sent, "closed": closed}


# Bytes that are no WebSocket handshake.
NO_HANDSHAKE = {
    "nothing but zeros": bytes(4096),
    "random bytes": bytes((n * 89 + 13) % 256 for n in range(4096)),
    "a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(509),
    "a request with no upgrade": b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "a post": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
    "an endless header": b"GET / HTTP/1.1\r\nX: " + b"a" * (1 << 20),
    "headers without end": b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 50_000,
    "an endless path": b"GET /" + b"a" * (1 << 20),
    "a websocket version of the future": b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 99\r\n\r\n",
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n",
    "Redis": b"*1\r\n$4\r\nPING\r\n",
}


def no_handshake(port: int, times: int) -> dict[str, int]:
    """Each kind of nonsense, many times. Those that the guardian did not close are named."""
    open_: Counter[str] = Counter()
    for _ in range(times):
        for name, said in NO_HANDSHAKE.items():
            try:
                with dial(port) as peer:
                    peer.sendall(said)
                    peer.shutdown(socket.SHUT_WR)
                    if not read_to_end(peer, 15)[1]:
                        open_[name] += 1
            except OSError:
                continue
    return dict(open_)
