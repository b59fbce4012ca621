# Half-open connections: a host goes away without a word in the middle of a drain and comes back knowing nothing of it. Whoever told
# it to drain gives up in time, and a guardian that it had told lets go of its connections.

EXPECTED_ERRORS = ["^nixio: host has failed host=app2:9876 .*it has not answered a ping"]

# Commands that the host which goes away has given.
GIVEN = 10
# A guardian asks a connection that is silent for 30 s, and lets go of it when it is silent for another 30 s.
LET_GO = 60

started()
for host, unit in ((app1, "myapp.service"), (app2, "queue.service")):
    hold_the_stop(host, unit)
guardian = number(app1, "io-guardian.service", "MainPID")


def descriptors() -> int:
    """That app1's guardian has open."""
    return int(app1.succeed(f"ls /proc/{guardian}/fd | wc -l"))


def connections() -> int:
    """That app1's kernel has for its guardian with the host that goes away."""
    return int(app1.succeed("ss -Hntp state established '( sport = :9876 )' dst app2 | grep -c guardian || true"))


before = descriptors()

with subtest("a drain is under way on both hosts, and one of them has given commands to the other"):
    begun = time.monotonic()
    begin_a_held_stop()
    until("queue is stopping", lambda: state(app2, "queue.service") == "deactivating", 30)
    app2.succeed(
        f"for number in $(seq {GIVEN}); do systemd-run --quiet --collect io-coordinator drain --hosts app1 "
        "--psk-file /run/secrets/IO_GUARDIAN_PSK; done"
    )
    until("they are given", lambda: connections() == GIVEN, 30)
    print(f"{before} descriptors, {descriptors()} now")
    assert descriptors() >= before + GIVEN

with subtest("it is cut off, loses its power and comes back: those that talked to it know nothing of it"):
    for other in (nixio, app1):
        other.hears(app2, False)
        app2.hears(other, False)
    app2.crash()
    app2.start()
    for other in (nixio, app1):
        other.hears(app2, True)
        app2.hears(other, True)
    app2.wait_for_unit("io-guardian.service", timeout=BOOT)
    assert connections() == GIVEN
    assert is_active(nixio, "postgresql.service")

with subtest("the other host's answer arrives; the commands that nobody waits for are answered into the void"):
    let_go(app1)
    until("the other host rests", lambda: rest(app1), 30)
    answered = time.monotonic()

with subtest("the coordinator gives up in time: PostgreSQL stops, and the host is named"):
    until("PostgreSQL is stopped", lambda: state(nixio, "postgresql.service") == "inactive", DRAIN - (time.monotonic() - begun))
    print(f"stopped after {time.monotonic() - begun:.1f} s")
    if coordinator_said("trying again host=app2.*Connection reset by peer"):
        # It was back before it was given up, and its kernel has said that it knows of no such connection: then it is told again.
        assert coordinator_said("^drain: 2 of 2 hosts ok")
    else:
        assert coordinator_said("host has failed.*host=app2.*it has not answered a ping")
        assert coordinator_said("^drain: 1 of 2 hosts ok")

with subtest("the guardian lets go of the dead connections, and has as many descriptors as before"):
    until("they are closed", lambda: connections() == 0, LET_GO + 15 - (time.monotonic() - answered))
    until("their descriptors, too", lambda: descriptors() <= before, 10)
    print(f"let go after {time.monotonic() - answered:.1f} s")
    assert number(app1, "io-guardian.service", "MainPID") == guardian > 0

with subtest("the database is back, and everything runs"):
    nixio.succeed("systemctl start postgresql.service")
    until("all dependents run", all_run, 2 * UNDRAIN)
