"""Tries the judge on histories that are made up, of which it is known who had the address when.

    judge_proof.py [HISTORIES [SEED]]

Two hosts hold one address at random, one after the other or both at a time. Questions are late at random, answers are given late and
received late. The judge must find each overlap of 20 ms that is not in a time in which it calls itself blind, and none that is not there.
"""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass

from judge import FOUND, MS, PAUSE, Record, Verdict
from probe import ANSWER, ECHO, RECORD, WHO

HOSTS = (b"\x02\0\0\0\0\x01", b"\x02\0\0\0\0\x02")
NAMES = {HOSTS[0]: "one", HOSTS[1]: "other"}
ADDRESS = "192.0.2.1"
LENGTH = 1500 * MS
# No host that lets go takes again before; and no other one takes it sooner after.
AGAIN, HANDOVER = PAUSE, 3 * MS // 2


@dataclass
class History:
    held: list[list[tuple[int, int]]]
    written: bytes
    overlaps: list[tuple[int, int]]
    # When a host was slow to take in what it is asked. One that has let go by then answers nothing: no judge can know.
    slow: list[tuple[int, int]]
    # Overlaps that the judge has to find.
    plain: int = 0


def held(chance: random.Random) -> list[list[tuple[int, int]]]:
    """When each host has it. An overlap is as long as chance wills; between two that do not overlap is the time of a handover."""
    spans: list[list[tuple[int, int]]] = [[], []]
    who = chance.randrange(2)
    at = chance.randrange(0, 100 * MS)
    while at < LENGTH:
        end = at + chance.randrange(AGAIN + 60 * MS, 400 * MS)
        spans[who].append((at, end))
        if chance.random() < 0.5:
            at = end - chance.randrange(1, 50 * MS)
        else:
            at = end + HANDOVER + chance.randrange(0, chance.choice((MS, 50 * MS)))
        who = 1 - who
    return spans


def has(spans: list[tuple[int, int]], at: int) -> bool:
    return any(begin <= at < end for begin, end in spans)


def history(chance: random.Random) -> History:
    spans = held(chance)
    busy = chance.random() < 0.5
    # Nothing comes as soon as two answers to the same question must to say something by themselves.
    sluggish = chance.random() < 0.3
    written: list[tuple[int, bytes]] = []
    number, due, way = 0, 0, WHO
    latest = [0, 0]
    slow: list[tuple[int, int]] = []
    while due < LENGTH:
        asked = due
        if busy and chance.random() < 0.1:
            asked += chance.randrange(0, 40 * MS)
        number += 1
        written.append((asked, RECORD.pack(way, 0, HOSTS[0], number, asked)))
        for host in (0, 1):
            late = chance.randrange(10_000, 2 * MS if sluggish else 300_000)
            if busy and chance.random() < 0.05:
                late = chance.randrange(0, 30 * MS)
            # Who is asked twice answers twice, in that order.
            answered = latest[host] = max(asked + late, latest[host] + 1)
            if answered - asked > 4 * MS:
                slow.append((asked, answered))
            received = answered + chance.randrange(5_000, 2 * MS if sluggish else 100_000)
            if busy and chance.random() < 0.05:
                received += chance.randrange(0, 10 * MS)
            if has(spans[host], answered):
                written.append((received, RECORD.pack(ANSWER, 0, HOSTS[host], number, received)))
        way = ECHO if way == WHO else WHO
        due = max(due + 5 * MS, asked)
    written.sort()
    both = [
        (max(begin, its_begin), min(end, its_end))
        for begin, end in spans[0]
        for its_begin, its_end in spans[1]
        if max(begin, its_begin) < min(end, its_end)
    ]
    return History(spans, b"".join(record for _, record in written), both, slow)


def wrong(made: History, verdict: Verdict) -> list[str]:
    """What the judge has missed, and what it has invented."""

    def at(seconds: float) -> int:
        return round(seconds * 1e9)

    found = [(at(two.since), at(two.until)) for two in verdict.two]
    blind = [(at(begin), at(end)) for begin, end in verdict.blind]
    said = []
    for begin, end in made.overlaps:
        end = min(end, LENGTH - 10 * MS)
        if end - begin < FOUND or any(its <= end and begin <= its_end for its, its_end in blind + made.slow):
            continue
        made.plain += 1
        if not any(its <= end and begin <= its_end for its, its_end in found):
            said.append(f"missed: {begin} to {end}")
    for its, its_end in found:
        if not any(its <= end and begin <= its_end for begin, end in made.overlaps):
            said.append(f"invented: {its} to {its_end}")
    return said


def prove(histories: int, seed: int) -> str:
    """An error says which history was judged wrongly."""
    overlaps = found = 0
    for number in range(histories):
        chance = random.Random(seed + number)
        made = history(chance)
        record = Record([ADDRESS], NAMES)
        # As it comes, in pieces.
        for begin in range(0, len(made.written), 777):
            record.take(made.written[begin : begin + 777])
        # In two parts, as a scenario has it judged.
        middle = chance.randrange(200 * MS, LENGTH - 200 * MS)
        whole = record.judge(0, middle)
        rest = record.judge(middle, LENGTH)
        whole.two += rest.two
        whole.blind += rest.blind
        if said := wrong(made, whole):
            raise AssertionError(f"history {seed + number}: {'; '.join(said)}")
        overlaps += made.plain
        found += len(whole.two)
    return f"{histories} histories with {overlaps} overlaps of 20 ms or more in plain sight: none missed, and none of {found} invented"


if __name__ == "__main__":
    print(prove(*(int(word) for word in [*sys.argv[1:], "1000", "0"][:2])))
