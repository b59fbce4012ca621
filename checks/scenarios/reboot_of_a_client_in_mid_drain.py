# A host is shut down in the middle of its drain: it goes when it is drained and has said so, and boots into the wait.

# Seconds that the application takes to stop.
HELD = 12


started()
watch_the_stop(nixio)
nixio.wait_for_unit(COORDINATOR, timeout=60)
hold_the_stop(app1, "myapp.service", HELD)

with subtest("it is shut down while it drains: it goes when the application has stopped, and so does PostgreSQL"):
    begun = time.monotonic()
    begin_a_held_stop()
    app1.succeed("systemctl poweroff --no-block")
    app1.wait_for_shutdown()
    assert time.monotonic() - begun >= HELD
    until("PostgreSQL is stopped", lambda: state(nixio, "postgresql.service") == "inactive", DRAIN - (time.monotonic() - begun))
    assert sessions_at_stop(nixio) == [0], sessions_at_stop(nixio)
    assert rest(app2)

with subtest("its guardian has answered before it went"):
    assert told("drain") == 1, told("drain")
    assert not coordinator_said("host has failed")

with subtest("it boots again while the databases are away, and waits"):
    app1.start()
    app1.wait_for_unit("multi-user.target", timeout=BOOT)
    until("the wait has begun", lambda: state(app1, "wait-for-io-databases.service") == "activating", 60)
    stays(
        "nothing has run",
        lambda: never_ran(app1, "myapp.service") and state(app1, "io-databases.target") == "inactive",
        10,
    )

with subtest("the database is back, and everything runs"):
    nixio.succeed("systemctl start postgresql.service")
    until("all dependents run", all_run, UNDRAIN)
