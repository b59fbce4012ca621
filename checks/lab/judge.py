"""Who answered for which address when, and whether two ever did: of what the prober (probe.py) has written down.

**A sample** is one question: a frame that asks for one address, reaches every host at the same time and has a number, and all answers
that repeat the number. Whoever answers had the address at some moment between when it was asked and when the answer was received;
more than that a sample does not say. There are two hundred of each address in a second, half of them for who has it (ARP, neighbour
solicitation), half for whose it is for traffic (an echo in a frame for all).

**Two hosts** have an address at the same time when

- both answer the same question within `EXACT`: less than it takes to let an address go, to have three stores agree twice, and to take it; or
- the times in which each of them certainly had it have a moment in common. A host certainly had it from its first answer until it was
  asked for its last one, when it has answered every question between them (of either way, or every one of one way).

So nothing is invented: neither by an answer that is read late, nor by one that was given late (its sample then says less). And nothing
of 20 ms or more is missed: it has at least three questions in it, which both answer. That needs questions on time and answers
at once, and where they were not, `blind` says so: times in which four questions in a row that were asked and answered sharply
took longer than 20 ms. (Who lets go is taken not to take again within 100 ms, between two questions. A host whose kernel is so slow to
take in a question that it has let go by then answers nothing: what nobody could have seen is no overlap here.)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from probe import ANNOUNCED, ANSWER, ECHO, RECORD, WHO

MS = 1_000_000
# Nanoseconds. An honest handover takes longer.
EXACT = 1 * MS
# How late an answer may come for its sample to be sharp.
SHARP = 4 * MS
# An overlap of this is not missed.
FOUND = 20 * MS
# No run of answers goes on over a time without questions.
PAUSE = 100 * MS


@dataclass
class Question:
    asked: int
    way: int
    # By whom, and when the answer was received: the first one of each host.
    answers: dict[bytes, int] = field(default_factory=dict)

    @property
    def is_sharp(self) -> bool:
        return all(at - self.asked <= SHARP for at in self.answers.values())


@dataclass
class Two:
    """Two hosts had an address at the same time."""

    address: str
    hosts: tuple[str, str]
    # Times of the prober: seconds.
    since: float
    until: float

    def __str__(self) -> str:
        one, other = self.hosts
        return f"{self.address} on {one} and {other} from {self.since:.4f} to {self.until:.4f} ({(self.until - self.since) * 1000:.1f} ms)"


@dataclass
class Verdict:
    """Of all samples between two times."""

    since: float
    until: float
    samples: int
    two: list[Two]
    # Of each address: seconds of the longest time in which nobody answered, and when that began.
    gaps: dict[str, tuple[float, float]]
    # When the judge could have missed an overlap of 20 ms: since and until, of any address.
    blind: list[tuple[float, float]]
    # By address: who was first heard, and when, each time that it was another one than before. "" for nobody, for 50 ms or more.
    held: dict[str, list[tuple[float, str]]]
    # When who announced which address.
    announced: list[tuple[float, str, str]]
    # By address and host: when it was asked first, of what it answered.
    heard: dict[str, dict[str, float]]

    @property
    def gap(self) -> float:
        return max((seconds for seconds, _ in self.gaps.values()), default=0.0)

    def __str__(self) -> str:
        blind = sum(end - begin for begin, end in self.blind)
        worst = max(self.gaps.items(), key=lambda each: each[1][0], default=("", (0.0, 0.0)))
        return (
            f"{self.samples} samples in {self.until - self.since:.1f} s: two hosts at {len(self.two)}; "
            f"longest without an answer: {worst[1][0] * 1000:.0f} ms ({worst[0]}); blind for {blind * 1000:.0f} ms"
        )


class Record:
    """What was written down, of which it takes more and more, and forgets what was judged."""

    def __init__(self, addresses: list[str], names: dict[bytes, str]) -> None:
        """`names`: of hosts, by their hardware addresses."""
        self.addresses = addresses
        self.names = names
        self.questions: list[list[Question]] = [[] for _ in addresses]
        self.announced: list[tuple[int, int, bytes]] = []
        self._numbered: dict[int, Question] = {}
        # What is known of an address when its questions begin: whether a host answers is carried from one judgement to the next.
        self._rest = b""
        self.latest = 0

    def name(self, hardware: bytes) -> str:
        return self.names.get(hardware) or hardware.hex(":")

    def take(self, data: bytes) -> None:
        data = self._rest + data
        whole = len(data) - len(data) % RECORD.size
        self._rest = data[whole:]
        for what, index, hardware, number, at in RECORD.iter_unpack(data[:whole]):
            if what in (WHO, ECHO):
                question = Question(at, what)
                self.questions[index].append(question)
                self._numbered[number] = question
                self.latest = at
            elif what == ANSWER:
                # One whose question was forgotten came a second late or more.
                if (asked := self._numbered.get(number)) is not None:
                    asked.answers.setdefault(hardware, at)
            elif what == ANNOUNCED:
                self.announced.append((at, index, hardware))
        if len(self._numbered) > 20_000:
            oldest = self.latest - 2_000 * MS
            self._numbered = {number: each for number, each in self._numbered.items() if each.asked > oldest}

    def holders(self, settled: int = 30 * MS, window: int = 40 * MS) -> dict[str, set[str]]:
        """Who has answered for each address of late: any of the questions of some time that ended a moment ago."""
        found: dict[str, set[str]] = {}
        for address, questions in zip(self.addresses, self.questions, strict=True):
            names = set()
            for question in reversed(questions):
                if question.asked < self.latest - settled - window:
                    break
                if question.asked <= self.latest - settled:
                    names |= {self.name(hardware) for hardware in question.answers}
            found[address] = names
        return found

    def judge(self, since: int, until: int) -> Verdict:
        """Of what was asked between the two, and forgets what is older than `until`, but for a moment."""
        verdict = Verdict(since / 1e9, until / 1e9, 0, [], {}, [], {}, [], {})
        blind: list[tuple[int, int]] = []
        for index, address in enumerate(self.addresses):
            # What came before may go on.
            questions = [each for each in self.questions[index] if since - PAUSE <= each.asked <= until]
            verdict.samples += sum(each.asked >= since for each in questions)
            # What was over before was told before.
            verdict.two += [two for two in self._two(address, questions) if two.until * 1e9 > since]
            verdict.gaps[address] = gap(questions, since, until)
            verdict.held[address] = self._held(questions)
            heard = verdict.heard[address] = {}
            for question in questions:
                for hardware in question.answers if question.asked >= since else ():
                    heard.setdefault(self.name(hardware), question.asked / 1e9)
            blind += blindness(questions, since, until)
            self.questions[index] = [each for each in self.questions[index] if each.asked > until - PAUSE]
        verdict.two.sort(key=lambda two: two.since)
        verdict.blind = [(begin / 1e9, end / 1e9) for begin, end in merged(blind)]
        verdict.announced = [
            (at / 1e9, self.addresses[index], self.name(hardware)) for at, index, hardware in self.announced if since <= at <= until
        ]
        self.announced = [each for each in self.announced if each[0] > until]
        return verdict

    def _held(self, questions: list[Question]) -> list[tuple[float, str]]:
        changes: list[tuple[float, str]] = []
        silent = 0
        for question in questions:
            if question.answers:
                silent = 0
                first = min(question.answers, key=lambda hardware: question.answers[hardware])
                name = self.name(first)
            else:
                silent = silent or question.asked
                if question.asked - silent < 50 * MS:
                    continue
                name = ""
            if not changes or changes[-1][1] != name:
                changes.append(((silent or question.asked) / 1e9, name))
        return changes

    def _two(self, address: str, questions: list[Question]) -> list[Two]:
        found: list[tuple[int, int, tuple[bytes, bytes]]] = []
        for question in questions:
            prompt = sorted(hardware for hardware, at in question.answers.items() if at - question.asked <= EXACT)
            for n, one in enumerate(prompt):
                for other in prompt[n + 1 :]:
                    end = max(question.answers[one], question.answers[other])
                    found.append((question.asked, end, (one, other)))
        runs = [run for way in (None, WHO, ECHO) for run in certain([q for q in questions if way in (None, q.way)])]
        runs.sort()
        # Those that are not over yet.
        open_: list[tuple[int, int, bytes]] = []
        for begin, end, hardware in runs:
            open_ = [run for run in open_ if run[1] >= begin]
            for _, its_end, other in open_:
                if other != hardware:
                    pair = (min(other, hardware), max(other, hardware))
                    found.append((begin, min(end, its_end), pair))
            open_.append((begin, end, hardware))
        two: list[Two] = []
        for pair in sorted({each[2] for each in found}):
            for begin, end in merged([(begin, end) for begin, end, its in found if its == pair], FOUND):
                two.append(Two(address, (self.name(pair[0]), self.name(pair[1])), begin / 1e9, end / 1e9))
        return two


def certain(questions: list[Question]) -> list[tuple[int, int, bytes]]:
    """When who certainly had the address: from the first answer until it was asked for the last, of runs without a question unanswered."""
    found: list[tuple[int, int, bytes]] = []
    # Of each host that answered the question before: when its first answer of this run came, and when it was last asked.
    runs: dict[bytes, tuple[int, int]] = {}
    before = 0
    for question in questions:
        over = question.asked - before > PAUSE
        for hardware in [each for each in runs if over or each not in question.answers]:
            begin, end = runs.pop(hardware)
            if begin <= end:
                found.append((begin, end, hardware))
        for hardware, at in question.answers.items():
            begin, _ = runs.get(hardware, (at, 0))
            # An answer that came later than one to a question after it says nothing of the time between.
            runs[hardware] = (min(begin, at), question.asked)
        before = question.asked
    found += [(begin, end, hardware) for hardware, (begin, end) in runs.items() if begin <= end]
    return found


def gap(questions: list[Question], since: int, until: int) -> tuple[float, float]:
    """The longest time without an answer: seconds, and when it began."""
    longest, begin = 0, since
    last = since
    for question in questions:
        if question.answers and question.asked >= since:
            if question.asked - last > longest:
                longest, begin = question.asked - last, last
            last = question.asked
    if until - last > longest:
        longest, begin = until - last, last
    return longest / 1e9, begin / 1e9


def blindness(questions: Iterable[Question], since: int, until: int) -> list[tuple[int, int]]:
    """When an overlap of 20 ms might not have three sharp questions in it."""
    times = [since, *(each.asked for each in questions if each.is_sharp and since <= each.asked <= until), until]
    found = []
    for n in range(len(times) - 1):
        end = times[min(n + 3, len(times) - 1)]
        if end - times[n] > FOUND:
            found.append((times[n], end))
    return found


def merged(spans: list[tuple[int, int]], apart: int = 0) -> list[tuple[int, int]]:
    """Spans that touch, or that are not further apart than this, as one."""
    found: list[tuple[int, int]] = []
    for begin, end in sorted(spans):
        if found and begin - found[-1][1] <= apart:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((begin, end))
    return found
