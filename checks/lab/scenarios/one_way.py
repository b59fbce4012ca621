# A link that carries in one direction only. A drain that arrives and whose answer is lost is done, and PostgreSQL waits until that is
# known.

EXPECTED_ERRORS = ["^nixio: host has failed host=app1:9876 result=timed-out"]

started()
watch_the_stop(nixio)

with subtest("the primary does not hear a host: PostgreSQL stops in bounded time, that host is named, and nobody else is held up"):
    nixio.hears(app1, False)
    begun = time.monotonic()
    nixio.succeed("systemctl stop postgresql.service", timeout=DRAIN + 30)
    took = time.monotonic() - begun
    print(f"stopped after {took:.1f} s")
    assert took < DRAIN, took
    assert rest(app2)
    drained_first(nixio, "postgresql.service")
    failed = coordinator_said("host has failed")
    assert len(failed) == 1 and "host=app1:9876 result=timed-out" in failed[0], failed
    assert coordinator_said("^drain: 1 of 2 hosts ok")
    # It could not be told: it was not drained, and its session was there.
    assert is_active(app1, "io-databases.target") and sessions_at_stop(nixio) == [1], sessions_at_stop(nixio)
    nixio.hears(app1, True)
    nixio.succeed("systemctl start postgresql.service")
    until("all dependents run", all_run, 2 * UNDRAIN)
    until("the coordinator has told all", lambda: is_active(nixio, COORDINATOR), 2 * UNDRAIN)

with subtest("the answer to a drain is lost, the link heals, and the drain is known to be done before PostgreSQL stops"):
    hold_the_stop(app1, "myapp.service")
    remember(app1, "io-databases.target", "myapp.service")
    begin_a_held_stop()
    nixio.hears(app1, False)
    let_go(app1)
    until("the host rests", lambda: rest(app1), 30)
    stays("PostgreSQL waits for the answer", lambda: is_active(nixio, "postgresql.service") and told("drain") == 0, 5)
    nixio.hears(app1, True)
    took = until("PostgreSQL is stopped", lambda: state(nixio, "postgresql.service") == "inactive", DRAIN)
    print(f"stopped {took:.1f} s after the link was whole")
    assert told("drain") == 1 and coordinator_said("host has failed") == failed
    drained_first(nixio, "postgresql.service")
    # All hosts of the lab have one clock. Not counted at the stop: TCP may still be repeating the application's farewell.
    rested = max(number(app1, unit, "InactiveEnterTimestampMonotonic") for unit in ("io-databases.target", "myapp.service"))
    stopping = number(nixio, "postgresql.service", "ActiveExitTimestampMonotonic")
    assert 0 < rested <= stopping, (rested, stopping)
    nixio.succeed("systemctl start postgresql.service")
    until("all dependents run", all_run, 2 * UNDRAIN)
