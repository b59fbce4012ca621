# A host that holds addresses loses its power, or its io-vip is killed or stands still: others answer for them in time, two hosts never do,
# and what is not ours stays as it is.

HOLDERS = 3
EXPECTED_ERRORS = [
    SLOW,
    r"^v\d: io-vip\.service: (Failed with result '(signal|watchdog)'|Scheduled restart job|Watchdog timeout)",
    # It stood still.
    "^v[12]: no sign of life got through to the store in time",
]


def has_none(host: LabMachine) -> bool:
    """No address of the pool is on its interface."""
    printed = host.succeed("ip -o address show dev eth1")
    return not any(f" {address}/" in printed for address in POOL)


started(v1, v2, v3)

with undisturbed(v1, v2, v3):
    with subtest("the power of a host is cut: others answer for its addresses in time"):
        taken_from(v1, (v2, v3), "power cut", v1.crash)

    with subtest("it boots: it gets its share, and nobody waits for long"):

        def boot() -> None:
            v1.start()
            v1.wait_for_unit(UNIT, timeout=60)

        verdict = handed_over("back", (v1, v2, v3), boot)
        assert len(moved(verdict)) <= 4, moved(verdict)

with undisturbed(v1, v2, v3):
    with subtest("io-vip is killed, and started again at once: nothing moves, and nobody waits"):
        goes_on("killed and started", v1, lambda: sent(v1, "KILL"))

    with subtest("io-vip is killed, and nobody starts it again: the kernel lets go, others answer in time"):
        restarts(v1, False)
        taken_from(v1, (v2, v3), "killed", lambda: sent(v1, "KILL"))
        until("nothing is left on the interface", lambda: has_none(v1), 10)

with subtest("what it left behind is nobody's: what is not ours is as it was, and it gets its share when it starts"):
    restarts(v1, True)
    handed_over("started", (v1, v2, v3), lambda: v1.succeed(f"systemctl start {UNIT}"))

with undisturbed(v1, v2, v3):
    with subtest("io-vip stands still for a moment: nothing moves, and nobody waits"):

        def pause() -> None:
            v1.succeed(
                f"pid=$(systemctl show --property=MainPID --value {UNIT}); kill -STOP $pid; sleep 0.6; kill -CONT $pid"
            )

        nothing_moves("stood still for 0.6 s", pause, TTL)

    with subtest("io-vip stands still for longer than the time to live: the kernel lets go, others answer in time"):
        # And nobody but the kernel does anything about it.
        changed(v1, "watchdog", "WatchdogSec=0")
        handed_over("without a watchdog", (v1, v2, v3), lambda: v1.succeed(f"systemctl restart {UNIT}"))
        taken_from(v1, (v2, v3), "stands still", lambda: sent(v1, "STOP"))
        stays("it does not answer", lambda: not held_by(v1), TTL)

    with subtest("it goes on: it has nothing until it is given its share"):
        handed_over("goes on", (v1, v2, v3), lambda: sent(v1, "CONT"))

    with subtest("with a watchdog it is started again, and gets its share"):
        changed(v1, "watchdog", "")
        handed_over("with a watchdog", (v1, v2, v3), lambda: v1.succeed(f"systemctl restart {UNIT}"))
        taken_from(v1, (v2, v3), "stands still", lambda: sent(v1, "STOP"))
        until("it gets its share", lambda: are_shared((v1, v2, v3)), CALM)
        one_at_most("started by the watchdog")

    with subtest("the whole host stands still, systemd and all, and goes on"):
        taken_from(v2, (v1, v3), "frozen", v2.freeze)
        stays("it does not answer", lambda: not held_by(v2), TTL)
        handed_over("thawed", (v1, v2, v3), v2.thaw)

    with subtest("all three are killed at the same time and start again: nobody waits for longer than it takes"):
        for host in (v1, v2, v3):
            restarts(host, False)
        one_at_most("before")
        for host in (v1, v2, v3):
            sent(host, "KILL")
        until("nobody answers", lambda: not any(p.holders().values()), TTL + LATE + 5)
        for host in (v1, v2, v3):
            restarts(host, True)
            host.succeed(f"systemctl start {UNIT}")
        took = shared((v1, v2, v3))
        print(f"shared after {took:.1f} s")
        one_at_most("all killed")
