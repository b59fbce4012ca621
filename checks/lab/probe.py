"""Asks for addresses, again and again, and writes down who answers. Runs in a network namespace that all hosts can be reached from.

    probe.py INTERFACE LOG ADDRESS...      until its standard input ends

Every 10 ms it asks for each address in two ways, 5 ms apart:

- who has it: an ARP request, or a neighbour solicitation;
- whose it is for traffic: an ICMP echo whose frame goes to all hosts, whatever this one believes of who has the address. A host that
  others have forgotten and that would still take their packets answers this.

Each question has a number, and its answers repeat it: in the hardware address that they are sent to, or in the echo. So an answer belongs to
one question, however late it is read here. Times are CLOCK_MONOTONIC, in nanoseconds: of a question, before it is sent; of an
answer, when the kernel received it, and not when this process came to read it.

An ARP request says that nobody asks (0.0.0.0, as for duplicate address detection), so that hosts learn nothing from it; a neighbour
solicitation comes from fe80::fe, which nobody has.
"""

from __future__ import annotations

import ctypes
import ipaddress
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Callable

PERIOD = 0.010
# Of the two ways.
HALF = PERIOD / 2
# What happened, which address of the list, of whom, the question's number, and when.
RECORD = struct.Struct("<BB6sIq")
WHO, ECHO, ANSWER, ANNOUNCED = 1, 2, 3, 4
# As a real-time process: a machine that does much else must not keep it from looking.
PRIORITY = 20

SO_ATTACH_FILTER = 26
SO_TIMESTAMPNS = 35
SOL_PACKET = 263
PACKET_ADD_MEMBERSHIP, PACKET_MR_PROMISC = 1, 1
PACKET_IGNORE_OUTGOING = 23
ETH_P_ALL = 3

BROADCAST = b"\xff" * 6
ALL_NODES = b"\x33\x33\x00\x00\x00\x01"
NOBODY6 = ipaddress.IPv6Address("fe80::fe").packed
# What a question's number is put behind, to be a hardware address.
NUMBERED = b"\x02\xfe"
ARP, IPV4, IPV6 = b"\x08\x06", b"\x08\x00", b"\x86\xdd"


def checksum(data: bytes) -> int:
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def icmpv6(source: bytes, target: bytes, message: bytes) -> bytes:
    """With its checksum, which is of the addresses, too."""
    total = checksum(source + target + struct.pack("!I3xB", len(message), 58) + message)
    message = message[:2] + struct.pack("!H", total) + message[4:]
    return struct.pack("!IHBB", 6 << 28, len(message), 58, 255) + source + target + message


class Questions:
    """The frames that ask for one address."""

    def __init__(self, address: str, hardware: bytes, own: dict[int, bytes]) -> None:
        """`own`: the prober's addresses, by version."""
        self.address = ipaddress.ip_address(address)
        self.packed = self.address.packed
        self.hardware = hardware
        self.own = own[self.address.version]
        if self.address.version == 4:
            self.who: Callable[[bytes], bytes] = self._arp
            self.echo: Callable[[bytes], bytes] = self._echo
        else:
            self.who, self.echo = self._solicitation, self._echo6

    def _arp(self, number: bytes) -> bytes:
        request = b"\x00\x01\x08\x00\x06\x04\x00\x01" + NUMBERED + number + bytes(4) + bytes(6) + self.packed
        return BROADCAST + self.hardware + ARP + request

    def _echo(self, number: bytes) -> bytes:
        message = b"\x08\x00\x00\x00" + number
        message = message[:2] + struct.pack("!H", checksum(message)) + message[4:]
        header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(message), 0, 0, 64, 1, 0, self.own, self.packed)
        header = header[:10] + struct.pack("!H", checksum(header)) + header[12:]
        return BROADCAST + self.hardware + IPV4 + header + message

    def _solicitation(self, number: bytes) -> bytes:
        message = b"\x87\x00\x00\x00" + bytes(4) + self.packed + b"\x01\x01" + NUMBERED + number
        # To its solicited-node group, but in a frame for all: a host that has the address is in that group.
        group = b"\xff\x02" + bytes(9) + b"\x01\xff" + self.packed[13:]
        return b"\x33\x33" + group[12:] + self.hardware + IPV6 + icmpv6(NOBODY6, group, message)

    def _echo6(self, number: bytes) -> bytes:
        return ALL_NODES + self.hardware + IPV6 + icmpv6(self.own, self.packed, b"\x80\x00\x00\x00" + number)


# What is read: ARP, ICMP and ICMPv6 by their types. (code, if true, if false, k)
FILTER = (
    (0x28, 0, 0, 12), (0x15, 7, 0, 0x0806),  # ARP: take it
    (0x15, 0, 2, 0x0800), (0x30, 0, 0, 23), (0x15, 4, 5, 1),  # IPv4: ICMP: take it
    (0x15, 0, 4, 0x86DD), (0x30, 0, 0, 54), (0x15, 1, 0, 129), (0x15, 0, 1, 136),  # IPv6: an echo reply or an advertisement
    (0x06, 0, 0, 256), (0x06, 0, 0, 0),
)  # fmt: skip


class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def opened(interface: str) -> socket.socket:
    link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in FILTER))
    link.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, bytes(Program(len(FILTER), ctypes.addressof(code))))
    link.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    link.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    link.bind((interface, ETH_P_ALL))
    # Answers go to the hardware addresses that the questions were numbered with.
    member = struct.pack("IHH8s", socket.if_nametoindex(interface), PACKET_MR_PROMISC, 0, b"")
    link.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, member)
    link.setblocking(False)
    return link


def own_addresses(interface: str) -> dict[int, bytes]:
    """What echoes are sent from: the first of each version that others can answer to."""
    found = {}
    for version in (4, 6):
        printed = os.popen(f"ip -{version} -o address show dev {interface} scope global").read().split()
        if printed:
            found[version] = ipaddress.ip_interface(printed[3]).packed
    return found


class Probe:
    def __init__(self, interface: str, log: str, addresses: list[str]) -> None:
        self.link = opened(interface)
        self.hardware: bytes = self.link.getsockname()[4]
        own = own_addresses(interface)
        self.questions = [Questions(address, self.hardware, own) for address in addresses]
        self.index = {each.packed: number for number, each in enumerate(self.questions)}
        self.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self.written = bytearray()
        self.count = 0

    def ask(self, way: int) -> None:
        for index, each in enumerate(self.questions):
            self.count += 1
            number = struct.pack("!I", self.count)
            frame = each.who(number) if way == WHO else each.echo(number)
            now = time.monotonic_ns()
            try:
                self.link.send(frame)
            except OSError:
                # The link is down, or its queue is full: not asked.
                continue
            self.written += RECORD.pack(way, index, self.hardware, self.count, now)

    def read(self) -> None:
        ahead = time.time_ns() - time.monotonic_ns()
        for _ in range(1000):
            try:
                frame, more, _, _ = self.link.recvmsg(256, 64)
            except BlockingIOError:
                return
            except OSError:
                # The link went down: said once.
                return
            stamp = 0
            for level, kind, data in more:
                if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS:
                    seconds, nanoseconds = struct.unpack("qq", data)
                    stamp = seconds * 1_000_000_000 + nanoseconds - ahead
            self.note(frame, stamp)

    def note(self, frame: bytes, stamp: int) -> None:
        kind = frame[12:14]
        what = ANSWER
        number = b""
        if kind == ARP and len(frame) >= 42:
            address = frame[28:32]
            if frame[20:22] == b"\x00\x02" and frame[32:34] == NUMBERED:
                number = frame[34:38]
            elif address == frame[38:42]:
                # Gratuitous, in either of its shapes.
                what = ANNOUNCED
            else:
                return
        elif kind == IPV4 and len(frame) >= 42 and frame[34] == 0:
            address, number = frame[26:30], frame[38:42]
        elif kind == IPV6 and len(frame) >= 62 and frame[54] == 129:
            address, number = frame[22:38], frame[58:62]
        elif kind == IPV6 and len(frame) >= 78 and frame[54] == 136:
            address = frame[62:78]
            # Solicited or not.
            if frame[58] & 0x40:
                if frame[:2] != NUMBERED:
                    return
                number = frame[2:6]
            else:
                what = ANNOUNCED
        else:
            return
        index = self.index.get(address)
        if index is not None:
            self.written += RECORD.pack(what, index, frame[6:12], int.from_bytes(number), stamp)

    def run(self) -> None:
        poll = select.poll()
        poll.register(self.link, select.POLLIN)
        poll.register(0, select.POLLIN | select.POLLHUP)
        way, due = WHO, time.monotonic()
        while True:
            left = due - time.monotonic()
            if left <= 0:
                self.ask(way)
                self.read()
                os.write(self.log, self.written)
                self.written.clear()
                way = ECHO if way == WHO else WHO
                # What was missed is not made up for.
                due = max(due + HALF, time.monotonic())
                continue
            for descriptor, _ in poll.poll(max(0.0, left * 1000 - 0.2)):
                if descriptor == 0:
                    self.read()
                    os.write(self.log, self.written)
                    return
                self.read()


def main() -> None:
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
    except OSError as error:
        print(f"no real-time process: {error.strerror}", file=sys.stderr, flush=True)
    probe = Probe(sys.argv[1], sys.argv[2], sys.argv[3:])
    print("ready", flush=True)
    probe.run()


if __name__ == "__main__":
    main()
