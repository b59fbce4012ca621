# A holder of addresses is told to end, is restarted, or is no longer well: its addresses are handed over within a tenth of a second, or stay where they
# are when it is to keep them, and two hosts never have one.

HOLDERS = 3
EXPECTED_ERRORS = [SLOW]


def restart() -> None:
    v1.succeed(f"systemctl restart {UNIT}")


def has_let_go(host: LabMachine) -> bool:
    """Nothing in the store is its."""
    return f"nodes/{host.name}" not in stored("nodes/") and host.name not in stored("ips/").values()


def is_in(place: str, yes: bool) -> Callable[[], object]:
    return lambda: v1.succeed(f"touch {place}" if yes else f"rm {place}")


started(v1, v2, v3)

with undisturbed(v1, v2, v3):
    for signal in ("TERM", "QUIT", "INT"):
        with subtest(f"told to end by SIG{signal}: the others have its addresses at once, and nothing of it is left in the store"):
            restarts(v1, False)
            taken_from(v1, (v2, v3), f"SIG{signal}", lambda: sent(v1, signal), HANDED + LATE)
            until("it has ended", lambda: state(v1, UNIT) == "inactive", 5)
            assert has_let_go(v1), (stored("nodes/"), stored("ips/"))
            restarts(v1, True)
            handed_over("started", (v1, v2, v3), lambda: v1.succeed(f"systemctl start {UNIT}"))

    with subtest("restarted: its addresses go away and come back, each with less than a tenth of a second without an answer"):
        handed_over("restarted", (v1, v2, v3), restart)

    with subtest("restarted, and told to keep what it has: nothing moves, and nobody waits"):
        told(v1, "on-stop", '"keep"')
        # The one that is told to end has read it.
        handed_over("restarted once more", (v1, v2, v3), restart)
        goes_on("restarted", v1, restart)
        goes_on("and again", v1, restart)

    with subtest("told to keep what it has, and started with another ttl: it begins anew, has its share again, and keeps that"):
        for ttl in ("6s", f"{TTL:.0f}s"):
            one_at_most("before")
            told(v1, "ttl", f'"{ttl}"')
            restart()
            # Those of before are waited for as long as they say.
            until("it takes part", lambda: "takes part, holds " in v1.execute("io-vip status")[1], 15)
            shared((v1, v2, v3))
            one_at_most(f"a ttl of {ttl}")
            goes_on("restarted", v1, restart)

    with subtest("told to keep what it has, and nobody starts it again: others have it in time"):
        taken_from(v1, (v2, v3), "kept, and not started", lambda: v1.succeed(f"systemctl stop {UNIT}"))
        told(v1, "on-stop", '"release"')
        handed_over("started", (v1, v2, v3), lambda: v1.succeed(f"systemctl start {UNIT}"))

    with subtest("its check fails: the others have its addresses, as it is no longer one of the healthy; and it gets its share when it is"):
        # From when it is found out.
        taken_from(v1, (v2, v3), "not well", is_in("/run/sick", True), HANDED + LATE)
        stays("it takes nothing", lambda: not held_by(v1), TTL)
        handed_over("well", (v1, v2, v3), is_in("/run/sick", False))

    with subtest("its check hangs: that is a check that fails, and the daemon goes on"):
        taken_from(v1, (v2, v3), "hangs", is_in("/run/hangs", True), HANDED + LATE)
        assert is_active(v1, UNIT)
        handed_over("well", (v1, v2, v3), is_in("/run/hangs", False))

    with subtest("none of them is well: nobody has an address; one gets well, and has them all"):
        one_at_most("before")
        for host in (v1, v2, v3):
            host.succeed("touch /run/sick")
        until("nobody answers", lambda: not any(p.holders().values()), 15)
        v2.succeed("rm /run/sick")
        until("it has all", lambda: are_held(POOL, [v2]), 15)
        v1.succeed("rm /run/sick")
        v3.succeed("rm /run/sick")
        shared((v1, v2, v3))
        one_at_most("none was well")

with subtest("a host reboots: its addresses are handed over before it goes down"):

    def reboot() -> None:
        v1.execute("systemctl reboot --no-block || true")

    taken_from(v1, (v2, v3), "reboot", reboot, HANDED + LATE)
    v1.wait_for_shutdown()
    v1.start()
    v1.wait_for_unit(UNIT, timeout=60)
    shared((v1, v2, v3))
    one_at_most("it is back")
