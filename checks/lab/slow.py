"""A link that is late: frames wait here, between two interfaces, and go on when their time has come.

The kernel's own way is netem, which many kernels do not have. This needs TAP interfaces. A process of its own, which ends with its
standard input, and its interfaces with it:

    slow.py ONE OTHER      reads lines of two numbers: milliseconds, and how many more or less by chance
"""

from __future__ import annotations

import fcntl
import heapq
import os
import random
import select
import struct
import sys
import time

TUNSETIFF = 0x400454CA
IFF_TAP = 0x0002
# Frames, with nothing before them: checksums are computed and packets have the size of the link before they get here.
IFF_NO_PI = 0x1000
# The longest frame, and then some.
FRAME = 1 << 16


def tap(name: str) -> int:
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return descriptor


def carry(one: int, other: int) -> None:
    across = {one: other, other: one}
    # When it goes on, a number that keeps the order of those that go at the same time, where to, and what.
    waiting: list[tuple[float, int, int, bytes]] = []
    latency = jitter = 0.0
    count = 0
    poll = select.poll()
    for descriptor in (0, one, other):
        poll.register(descriptor, select.POLLIN)
    while True:
        left = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        # Rounded up: not to ask again and again in the last millisecond.
        for descriptor, _ in poll.poll(None if left is None else left * 1000 + 1):
            if descriptor == 0:
                line = sys.stdin.readline()
                if not line:
                    return
                latency, jitter = (float(word) / 1000 for word in line.split())
                continue
            try:
                frame = os.read(descriptor, FRAME)
            except BlockingIOError:
                continue
            count += 1
            due = time.monotonic() + max(0.0, latency + random.uniform(-jitter, jitter))
            heapq.heappush(waiting, (due, count, across[descriptor], frame))
        while waiting and waiting[0][0] <= time.monotonic():
            _, _, to, frame = heapq.heappop(waiting)
            try:
                os.write(to, frame)
            except OSError:
                # It is down, or full: a frame that is lost.
                continue


def main() -> None:
    one, other = (tap(name) for name in sys.argv[1:3])
    print("ready", flush=True)
    carry(one, other)


if __name__ == "__main__":
    main()
