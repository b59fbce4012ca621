# A host loses its power when it has been drained, while another one holds the drain: the database's stop does not wait for it, and
# names it.

DONE = "^host is done host=app1:9876 result=ok"
GONE = "^host was drained, and has gone since"

started()
watch_the_stop(nixio)
hold_the_stop(app2, "worker.service")

with subtest("one host is drained and has said so, the other one holds the drain"):
    before = len(coordinator_said(DONE))
    nixio.succeed("systemctl stop --no-block postgresql.service")
    until("the worker is stopping", lambda: state(app2, "worker.service") == "deactivating", 30)
    until("the other host rests", lambda: rest(app1), 30)
    until("its answer has arrived", lambda: len(coordinator_said(DONE)) > before, 30)
    assert not coordinator_said(GONE)

with subtest("it loses its power, and PostgreSQL goes on to wait for the other one"):
    app1.crash()
    # Longer than it may be silent.
    stays(
        "the other host holds the drain",
        lambda: is_active(nixio, "postgresql.service") and state(app2, "worker.service") == "deactivating",
        5,
    )

with subtest("the other one is drained: PostgreSQL stops, with no session left"):
    let_go(app2)
    took = until("PostgreSQL is stopped", lambda: state(nixio, "postgresql.service") == "inactive", DRAIN)
    print(f"stopped {took:.1f} s after the other host was let go")
    assert sessions_at_stop(nixio) == [0], sessions_at_stop(nixio)
    drained_first(nixio, "postgresql.service")
    assert rest(app2)

with subtest("the one that is gone is named, once, in a warning; nobody has failed"):
    said = coordinator_said(GONE)
    print("\n".join(said))
    assert len(said) == 1 and "host=app1:9876" in said[0], said
    warnings = nixio.succeed(f"journalctl -b -o cat -u {COORDINATOR} --priority=warning..warning")
    assert said[0] in warnings, warnings
    assert not coordinator_said("host has failed")
    assert told("drain") == 1, told("drain")

with subtest("it boots while the database is away, and waits"):
    app1.start()
    app1.wait_for_unit("multi-user.target", timeout=BOOT)
    until("the wait has begun", lambda: state(app1, "wait-for-io-databases.service") == "activating", 60)
    stays("nothing has run", lambda: never_ran(app1, "myapp.service") and state(app1, "io-databases.target") == "inactive", 3)

with subtest("the database is back, and everything runs"):
    nixio.succeed("systemctl start postgresql.service")
    until("all dependents run", all_run, 2 * UNDRAIN)
