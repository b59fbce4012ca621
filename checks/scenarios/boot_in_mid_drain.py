# A host that has been drained boots again while another one holds the drain: the databases still answer, and it is drained anew.

started()
watch_the_stop(nixio)
hold_the_stop(app2, "worker.service")

with subtest("one host is drained, the other one holds the drain"):
    nixio.succeed("systemctl stop --no-block postgresql.service")
    until("the worker is stopping", lambda: state(app2, "worker.service") == "deactivating", 30)
    until("the other host rests", lambda: rest(app1), 30)

with subtest("the one that is drained is shut down and boots, and PostgreSQL goes on to wait"):
    app1.shutdown()
    app1.start()
    app1.wait_for_unit("multi-user.target", timeout=BOOT)
    until(
        "it has asked for its databases",
        lambda: not never_ran(app1, "wait-for-io-databases.service") or is_active(app1, "io-databases.target"),
        60,
    )
    stays("the other host holds the drain", lambda: is_active(nixio, "postgresql.service") and state(app2, "worker.service") == "deactivating", 3)
    print(f"after its boot: the application is {state(app1, 'myapp.service')}, and PostgreSQL has {sessions(nixio)} sessions")

with subtest("PostgreSQL stops, and no session is left when its stop begins"):
    let_go(app2)
    until("PostgreSQL is stopped", lambda: state(nixio, "postgresql.service") == "inactive", DRAIN)
    assert sessions_at_stop(nixio) == [0], sessions_at_stop(nixio)
    drained_first(nixio, "postgresql.service")
    assert rest(app1) and rest(app2)

with subtest("the database is back, and everything runs"):
    nixio.succeed("systemctl start postgresql.service")
    until("all dependents run", all_run, 2 * UNDRAIN)
