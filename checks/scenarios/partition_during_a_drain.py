# One host cannot be reached when the drain begins. It is tried again: healed in time it is drained before the database stops, and
# healed too late it is undrained like the others when the database is back.

EXPECTED_ERRORS = ["^nixio: host has failed host=app1:9876 result=(timed-out|unreachable)"]

started()
watch_the_stop(nixio)

with subtest("cut off for 6 s: it is drained all the same, before PostgreSQL stops"):
    app1.block()
    nixio.succeed("systemctl stop --no-block postgresql.service")
    until("the other host rests", lambda: rest(app2), 30)
    stays("the drain waits for the host that is cut off", lambda: is_active(nixio, "postgresql.service"), 6)
    assert is_active(app1, "myapp.service")
    app1.unblock()
    took = until("PostgreSQL is stopped", lambda: state(nixio, "postgresql.service") == "inactive", DRAIN)
    print(f"stopped {took:.1f} s after the link was back")
    assert rest(app1) and rest(app2)
    assert told("drain") == 1, told("drain")
    drained_first(nixio, "postgresql.service")
    # Not counted at the stop: what the application sent in the meantime, its farewell included, TCP may still be repeating.

with subtest("the database is back, and everything runs"):
    nixio.succeed("systemctl start postgresql.service")
    until("all dependents run", all_run, UNDRAIN)

with subtest("cut off for longer than it is tried: PostgreSQL stops in bounded time, and the host is named"):
    app1.block()
    begun = time.monotonic()
    nixio.succeed("systemctl stop postgresql.service", timeout=DRAIN + 30)
    took = time.monotonic() - begun
    print(f"stopped after {took:.1f} s")
    assert took < DRAIN, took
    assert sessions_at_stop(nixio)[-1] == 1, sessions_at_stop(nixio)
    assert rest(app2)
    assert coordinator_said("host has failed.*host=app1")

with subtest("the link is back before the database: the host that missed the drain runs with the others"):
    app1.unblock()
    nixio.succeed("systemctl start postgresql.service")
    until("all dependents run", all_run, 2 * UNDRAIN)
