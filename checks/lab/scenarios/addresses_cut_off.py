# A holder of addresses is cut off: from everything, from the store only, in one direction only. It lets go before others take, whoever can still
# reach it, and gets its share when it is heard again.

HOLDERS = 3
EXPECTED_ERRORS = [SLOW, "^v1: no sign of life got through to the store in time"]

stores = [e1, e2, e3]
everybody: list[LabMachine | LightMachine] = [e1, e2, e3, v2, v3]
many: list[LabMachine | LightMachine] = [e2, e3, v2, v3]


def cut(others: list[LabMachine | LightMachine]) -> Callable[[], object]:
    return lambda: v1.apart(others)


def heal(others: list[LabMachine | LightMachine]) -> Callable[[], object]:
    return lambda: v1.apart(others, False)


def deaf() -> None:
    """What the stores send does not arrive; what it sends does."""
    for store in stores:
        v1.hears(store, False)


def mute() -> None:
    """What it sends to the stores does not arrive; what they send does."""
    for store in stores:
        store.hears(v1, False)


def whole() -> None:
    for store in stores:
        v1.hears(store, True)
        store.hears(v1, True)


def healed(what: str, heal: Callable[[], object]) -> None:
    stays("it has nothing", lambda: not held_by(v1), TTL)
    handed_over(what, (v1, v2, v3), heal)


started(v1, v2, v3)

with undisturbed(v1, v2, v3):
    with subtest("from everything but its clients: it lets go, and the others answer in time"):
        # Those who ask for addresses still reach it: what it holds for too long is seen.
        taken_from(v1, (v2, v3), "cut off", cut(everybody))
        healed("healed", heal(everybody))

    with subtest("from the store only"):
        taken_from(v1, (v2, v3), "cut off from the store", cut([*stores]))
        healed("healed", heal([*stores]))

    with subtest("its cable is pulled, and put in after the others have taken over: not one question is answered twice"):
        taken_from(v1, (v2, v3), "unplugged", v1.block)
        healed("plugged in", v1.unblock)

    with subtest("from the other holders only: they meet in the store, and nothing moves"):
        nothing_moves("cut off from the others", cut([v2, v3]), 2 * TTL)
        heal([v2, v3])()

    with subtest("from two stores of three: the third one is enough, and nothing moves"):
        nothing_moves("one store is left", cut([e1, e2]), 2 * TTL)
        heal([e1, e2])()
        nothing_moves("another one is left", cut([e2, e3]), 2 * TTL)
        heal([e2, e3])()

    with subtest("for less than the time to live: nothing moves"):

        def short() -> None:
            v1.apart(stores)
            time.sleep(0.4)
            v1.apart(stores, False)

        nothing_moves("cut off for less than half a second", short, TTL)

    with subtest("it does not reach the store, which it hears: it lets go, and the others answer in time"):
        taken_from(v1, (v2, v3), "mute", mute)
        healed("heard again", whole)

    with subtest("it reaches the store, which it does not hear: it lets go all the same, and the others answer, within one more time to live"):
        # Its last signs of life may have arrived, of which it does not know.
        taken_from(v1, (v2, v3), "deaf", deaf, TAKEN + TTL + LATE)
        healed("hears again", whole)

    with subtest("with one store, on the side of the few: it lets go, and the others answer from the side of the many"):

        def split(yes: bool = True) -> None:
            v1.apart(many, yes)
            e1.apart(many, yes)

        # The store may have to elect another leader first.
        taken_from(v1, (v2, v3), "split", split, TAKEN + 1 + LATE)
        healed("joined", lambda: split(False))

    with subtest("cut off and back, again and again, at any moment of its heartbeat: no two hosts at any"):
        # Until just before, just when, and just after it lets go and others take.
        for seconds in (1.4, 1.8, 2.2):
            one_at_most("before")
            v1.apart(stores)
            time.sleep(seconds)
            v1.apart(stores, False)
            shared((v1, v2, v3))
            one_at_most(f"cut off for {seconds} s")
