# Put before each scenario about addresses, after measure.py: what their holders are measured with.
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

# Of the lab's own network, and nobody's own.
POOL = [*(f"192.168.1.{number}" for number in range(101, 109)), "fd00:1::101", "fd00:1::102"]
UNIT = "io-vip.service"
# Seconds: the time to live, as the lab sets it.
TTL = 2.0
# What is promised from a crash to another host's first answer; what is wanted of a handover; and what a machine that does much else may
# add to either.
TAKEN = TTL + 0.3
HANDED = 0.1
LATE = 1.5
# Until whatever has happened is over.
CALM = 30.0
# How long a question goes unanswered when nothing happens at all.
NOTHING = 0.1

# What a daemon says when it or the stores stood still for half a second, on a machine that does much else.
SLOW = "^v[0-9]: the store (does not answer|cannot be listed or watched); trying on"


# -- who holds what ------------------------------------------------------------------------------------------------------


def held_by(host: Named) -> set[str]:
    """The addresses that this host answers for."""
    return {address for address, names in p.holders().items() if host.name in names}


def are_held(addresses: Iterable[str], hosts: Iterable[Named]) -> bool:
    """One of these hosts answers for each."""
    names = {host.name for host in hosts}
    holders = p.holders()
    return all(len(holders[address]) == 1 and holders[address] <= names for address in addresses)


def are_shared(hosts: Iterable[Named], addresses: Iterable[str] = POOL) -> bool:
    """Each is held, and nobody has two more than another."""
    hosts, addresses = list(hosts), list(addresses)
    if not are_held(addresses, hosts):
        return False
    holders = p.holders()
    counts = Counter(name for address in addresses for name in holders[address])
    each = [counts[host.name] for host in hosts]
    return max(each) - min(each) <= 1


def shares() -> str:
    counts = Counter("+".join(sorted(names)) or "nobody" for names in p.holders().values())
    return ", ".join(f"{name}: {count}" for name, count in sorted(counts.items()))


def shared(hosts: Iterable[Named], addresses: Iterable[str] = POOL, seconds: float = CALM) -> float:
    """Waits until they share the addresses, and says how long that took."""
    hosts, addresses = list(hosts), list(addresses)
    try:
        return until(f"{', '.join(host.name for host in hosts)} share {len(addresses)} addresses", lambda: are_shared(hosts, addresses), seconds)
    except Late as error:
        raise Late(f"{error}: {shares()}") from None


def one_at_most(what: str) -> Verdict:
    """Of all samples since the last time: no two hosts, anywhere."""
    verdict = p.judge()
    print(f"{what}: {verdict}")
    assert not verdict.two, "\n".join(["two hosts:", *map(str, verdict.two[:20])])
    # It must have looked: two hundred times a second, if nothing is late.
    looked = verdict.until - verdict.since
    assert verdict.samples > looked * len(verdict.gaps) * 100 or looked < 1, f"{verdict.samples} samples in {looked:.1f} s"
    return verdict


def longest(verdict: Verdict, addresses: Iterable[str]) -> float:
    """The longest time in which nobody answered for one of these."""
    return max((verdict.gaps[address][0] for address in addresses), default=0.0)


def moved(verdict: Verdict) -> set[str]:
    """Addresses that another host answered for in between, or at the end."""
    return {address for address, held in verdict.held.items() if len({name for _, name in held if name}) > 1}


# -- what is done to them ------------------------------------------------------------------------------------------------


def taken_from(host: Named, others: Iterable[Named], what: str, fault: Callable[[], object], bound: float = TAKEN + LATE) -> float:
    """Does this to a host. The others answer for what it had within that time, and for what they had without a pause. Says after how long."""
    others = list(others)
    had = held_by(host)
    assert had, f"{host.name} has nothing to lose: {shares()}"
    one_at_most("before")
    fault()
    until(f"{what}: the others answer for all", lambda: are_held(POOL, others), bound + CALM)
    verdict = one_at_most(what)
    gap = longest(verdict, had)
    print(f"{what}: {len(had)} addresses were without an answer for {gap * 1000:.0f} ms at most")
    if gap > bound:
        raise Late(f"{what}: {gap:.2f} s without an answer, and {bound:.2f} s are allowed: {verdict.gaps}")
    theirs = set(POOL) - had
    assert not moved(verdict) & theirs, f"moved, and need not have: {moved(verdict) & theirs}"
    assert longest(verdict, theirs) <= NOTHING + LATE, verdict.gaps
    return gap


def handed_over(what: str, hosts: Iterable[Named], act: Callable[[], object], bound: float = HANDED + LATE) -> Verdict:
    """Does this, after which these hosts share the pool. Whatever moves is without an answer for so long at most."""
    one_at_most("before")
    act()
    shared(hosts)
    verdict = one_at_most(what)
    print(f"{what}: {len(moved(verdict))} addresses moved, without an answer for {verdict.gap * 1000:.0f} ms at most")
    if verdict.gap > bound:
        raise Late(f"{what}: {bound:.2f} s without an answer are allowed: {verdict.gaps}")
    return verdict


def nothing_moves(what: str, act: Callable[[], object], seconds: float = 0.0) -> Verdict:
    """Does this: for so long after it nothing moves, and every question is answered."""
    before = p.holders()
    one_at_most("before")
    act()
    if seconds:
        stays(f"{what}: nothing moves", lambda: p.holders() == before, seconds)
    verdict = one_at_most(what)
    assert not moved(verdict), f"{what}: moved: {moved(verdict)}"
    assert verdict.gap <= NOTHING, f"{what}: without an answer: {verdict.gaps}"
    return verdict


def goes_on(what: str, host: LabMachine, act: Callable[[], object]) -> None:
    """Does this, after which another daemon goes on where the one before it was: nothing moves, and every question is answered.

    A machine that takes half of the time to live to start it shows nothing: then the addresses may move.
    """
    before = p.holders()
    one_at_most("before")
    begun = time.monotonic()
    act()
    # All hosts of the lab have one clock.
    until("another one is ready", lambda: number(host, UNIT, "ActiveEnterTimestampMonotonic") > begun * 1e6, 60)
    took = number(host, UNIT, "ActiveEnterTimestampMonotonic") / 1e6 - begun
    print(f"{what}: another one was ready after {took:.2f} s")
    if took > TTL / 2:
        shared([host, *(each for each in machines if each is not host and held_by(each))])
        one_at_most(f"{what}, too late to go on")
        return
    stays(f"{what}: nothing moves", lambda: p.holders() == before, TTL)
    verdict = one_at_most(what)
    assert not moved(verdict), f"{what}: moved: {moved(verdict)}"
    assert verdict.gap <= NOTHING, f"{what}: without an answer: {verdict.gaps}"


def sent(host: LabMachine, signal: str) -> None:
    """To the daemon only."""
    host.succeed(f"systemctl kill --kill-whom=main --signal={signal} {UNIT}")


def changed(host: LabMachine, name: str, line: str) -> None:
    """A line of the daemon's unit, from now on and until a reboot. With none it is as it was."""
    place = f"/run/systemd/system/{UNIT}.d"
    host.succeed(
        f"mkdir -p {place} && printf '[Service]\\n{line}\\n' >{place}/{name}.conf" if line else f"rm -f {place}/{name}.conf",
        "systemctl daemon-reload",
    )


def restarts(host: LabMachine, yes: bool) -> None:
    """Whether systemd starts the daemon again when it dies."""
    changed(host, "restart", "" if yes else "Restart=no")


def told(host: LabMachine, key: str, value: str) -> None:
    """A line of its configuration. Its daemon reads it when it starts."""
    place = "/etc/io-vip.toml"
    host.succeed(f"sed -i '/^{key} = /d' {place}", f"echo '{key} = {value}' >>{place}")


def vip(host: LabMachine, words: str) -> str:
    """A command of an operator."""
    return host.succeed(f"io-vip {words} --config /etc/io-vip.toml", timeout=30)


# -- the store -----------------------------------------------------------------------------------------------------------


def stores_agree() -> bool:
    """Each store has a leader, and it is the same one."""
    found = [each.status() for each in (e1, e2, e3)]
    leaders = {status.get("leader", 0) for status in found if status}
    return None not in found and len(leaders) == 1 and 0 not in leaders


def leader() -> Store:
    until("the stores agree", stores_agree, CALM)
    return next(each for each in (e1, e2, e3) if each.leads())


def put_in_the_pool(addresses: Iterable[str]) -> None:
    for address in addresses:
        p.etcdctl("put", f"/service/yaim/ips/{address}", "")


def stored(prefix: str) -> dict[str, str]:
    """Keys below /service/yaim/ and what they hold."""
    top = "/service/yaim/"
    printed = p.etcdctl("get", "--prefix", top + prefix, "-w", "fields").splitlines()
    values = [line.split(" : ", 1)[1].strip('"') for line in printed if line.startswith(('"Key"', '"Value"'))]
    return {key.removeprefix(top): value for key, value in zip(values[::2], values[1::2], strict=True)}


# -- what is not ours ----------------------------------------------------------------------------------------------------

# All addresses but those of the pool, all routes, rules, permanent neighbours and tables.
LOOK = r"""
ip -j address show
echo; ip -j -4 route show table all; echo; ip -j -6 route show table all
echo; ip -j -4 rule show; echo; ip -j -6 rule show
echo; ip neighbour show nud permanent
"""


def others_on(host: LabMachine, pool: Iterable[str] = POOL) -> str:
    """What the host's network is made of, but for what is ours: addresses of the pool, and the table io_vip."""
    pool = set(pool)
    # The kernel has done what it does by itself with an interface that is new: duplicate address detection.
    host.wait_until_fails("ip address show tentative | grep .", timeout=30)
    lines = []
    for line in host.succeed(LOOK).split("\n"):
        found = json.loads(line) if line.startswith("[") else []
        for each in found:
            # Another number each time that the host is plugged in.
            each.pop("link_index", None)
            if "addr_info" in each:
                each["addr_info"] = [its for its in each["addr_info"] if its["local"] not in pool]
        # What the kernel makes of an address of its own.
        found = [each for each in found if not (each.get("table") == "local" and each.get("dst") in pool)]
        lines.append("\n".join(map(json.dumps, found)) if found else line)
    tables = [line for line in host.succeed("nft list tables").splitlines() if not line.endswith(" io_vip")]
    lines += [host.succeed(f"nft list {table}") for table in tables]
    text = "\n".join(lines)
    # It is there at all.
    assert "eth1:other" in text and "198.51.100.66" in text and "203.0.113." in text, text
    return text


@contextmanager
def undisturbed(*hosts: LabMachine) -> Iterator[None]:
    """Whatever is done to these hosts: what is not ours on them is the same afterwards, byte by byte."""
    before = {host.name: others_on(host) for host in hosts}
    yield
    for host in hosts:
        after = others_on(host)
        lines = set(before[host.name].split("\n")) ^ set(after.split("\n"))
        assert after == before[host.name], f"{host.name}: what is not ours has changed:\n" + "\n".join(sorted(lines))


def started(*hosts: LabMachine) -> None:
    """The stores agree, the prober asks, and these hosts share the pool."""
    for store in (e1, e2, e3):
        store.start()
    for host in hosts:
        host.start()
    p.start()
    until("the stores agree", stores_agree, 60)
    put_in_the_pool(POOL)
    p.begin(POOL)
    for host in hosts:
        host.wait_for_unit(UNIT, timeout=60)
    shared(hosts, seconds=60)
    one_at_most("from the first host that takes an address")
