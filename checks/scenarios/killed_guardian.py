# A guardian is killed in the middle of a drain: the next one finishes it, and PostgreSQL waits.

EXPECTED_ERRORS = [
    "^app1: io-guardian.service: Failed with result 'signal'",
    r"^app1: io-guardian.service: Scheduled restart job, restart counter is at 1\.",
]

started()
watch_the_stop(nixio)
hold_the_stop(app1, "myapp.service")

with subtest("the drain is under way: the application stops, PostgreSQL still runs"):
    begin_a_held_stop()

with subtest("the guardian is killed, comes back, and PostgreSQL goes on to wait"):
    pid = number(app1, "io-guardian.service", "MainPID")
    app1.succeed(f"kill -KILL {pid}")
    until("another guardian runs", lambda: number(app1, "io-guardian.service", "MainPID") not in (0, pid), 15)
    stays("nothing is over", is_held, 3)

with subtest("the application has stopped, then PostgreSQL does, with no session left"):
    let_go(app1)
    until("PostgreSQL is stopped", lambda: state(nixio, "postgresql.service") == "inactive", DRAIN)
    assert sessions_at_stop(nixio) == [0], sessions_at_stop(nixio)
    assert rest(app1) and rest(app2)
    assert told("drain") == 1, told("drain")

with subtest("the database is back, and everything runs"):
    nixio.succeed("systemctl start postgresql.service")
    until("all dependents run", all_run, UNDRAIN)
