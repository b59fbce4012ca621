# Whatever can happen to hosts that hold addresses, to their stores and to the links between them, two or three at a time, at random: two hosts never
# have one, and when it is over all are held. LAB_ADDRESSES=600 for ten minutes.

import os
import random

HOLDERS = 3
EXPECTED_ERRORS = [
    SLOW,
    "^v[123]: no sign of life got through to the store in time",
    r"^v[123]: io-vip\.service: (Failed with result '(signal|watchdog)'|Scheduled restart job|Watchdog timeout)",
]

SECONDS = int(os.environ.get("LAB_ADDRESSES", "40"))
SEED = int(os.environ.get("LAB_SEED", str(random.randrange(1 << 32))))

chance = random.Random(SEED)
hosts, stores = (v1, v2, v3), (e1, e2, e3)
# What is done, and what undoes it.
Fault = tuple[str, Callable[[], object], Callable[[], object]]


def boot(host: LabMachine) -> None:
    host.start()
    host.wait_for_unit(UNIT, timeout=60)


def begin(host: LabMachine) -> None:
    host.succeed("systemctl reset-failed", f"systemctl start {UNIT}")


def one_way(hearer: LabMachine | LightMachine, others: Iterable[LabMachine | LightMachine], yes: bool) -> None:
    for other in others:
        hearer.hears(other, yes)


def heard(host: LabMachine, yes: bool) -> None:
    for store in stores:
        store.hears(host, yes)


def lossy(host: LabMachine, percent: int) -> None:
    for store in stores:
        host.loses(store, percent)


def hit(host: LabMachine, signal: str) -> None:
    """Its daemon, if there is one: what happened before may have ended it, or its watchdog has, and systemd is about to start another."""
    host.execute(f"systemctl kill --kill-whom=main --signal={signal} {UNIT}")


def end(host: LabMachine) -> None:
    restarts(host, False)
    hit(host, "KILL")


def begin_again(host: LabMachine) -> None:
    restarts(host, True)
    begin(host)


def of_host(host: LabMachine) -> list[Fault]:
    others = [each for each in hosts if each is not host]
    everybody: list[LabMachine | LightMachine] = [*stores, *others]
    return [
        ("loses its power", host.crash, lambda: boot(host)),
        ("is killed", lambda: hit(host, "KILL"), lambda: None),
        ("is killed for good", lambda: end(host), lambda: begin_again(host)),
        ("is stopped", lambda: host.succeed(f"systemctl stop {UNIT}"), lambda: begin(host)),
        ("is restarted", lambda: host.succeed(f"systemctl restart {UNIT}"), lambda: None),
        ("stands still", lambda: hit(host, "STOP"), lambda: hit(host, "CONT")),
        ("is frozen", host.freeze, host.thaw),
        ("is unplugged", host.block, host.unblock),
        ("is cut off", lambda: host.apart(everybody), lambda: host.apart(everybody, False)),
        ("is deaf", lambda: one_way(host, stores, False), lambda: one_way(host, stores, True)),
        ("is mute", lambda: heard(host, False), lambda: heard(host, True)),
        ("loses a third", lambda: lossy(host, 33), lambda: lossy(host, 0)),
        ("is not well", lambda: host.succeed("touch /run/sick"), lambda: host.succeed("rm -f /run/sick")),
    ]


def of_store(store: Store) -> list[Fault]:
    others = [each for each in stores if each is not store]
    return [
        ("loses its power", store.crash, store.start),
        ("is killed", store.kill, store.start),
        ("hangs", store.freeze, store.thaw),
        ("is unplugged", store.block, store.unblock),
        ("does not hear the others", lambda: one_way(store, others, False), lambda: one_way(store, others, True)),
    ]


def some() -> list[tuple[float, str, Callable[[], object]]]:
    """What happens in one round, when, each with its end."""
    found = []
    victims = [*((host.name, of_host(host)) for host in hosts), *((store.name, of_store(store)) for store in stores)]
    for name, faults in chance.sample(victims, chance.choice((1, 2, 2, 3))):
        what, fault, cure = chance.choice(faults)
        begun = chance.uniform(0, 2)
        lasts = chance.choice((chance.uniform(0.1, 1), chance.uniform(1, 3), chance.uniform(3, 7)))
        found += [(begun, f"{name} {what}", fault), (begun + lasts, f"{name}: over", cure)]
    return sorted(found, key=lambda each: each[0])


started(*hosts)
begun = time.monotonic()
rounds = 0

with undisturbed(*hosts):
    with subtest(f"{SECONDS} s of whatever can happen (LAB_SEED={SEED}): one host at most, and all are held when it is over"):
        while time.monotonic() - begun < SECONDS:
            rounds += 1
            now = time.monotonic()
            for due, what, act in some():
                while time.monotonic() < now + due:
                    time.sleep(min(0.05, max(0.0, now + due - time.monotonic())))
                print(f"round {rounds}, {time.monotonic() - now:.2f} s: {what}", flush=True)
                act()
            until("the stores agree", stores_agree, CALM)
            took = shared(hosts)
            one_at_most(f"round {rounds}, shared after {took:.1f} s")
        print(f"{rounds} rounds, {p.samples} samples")
