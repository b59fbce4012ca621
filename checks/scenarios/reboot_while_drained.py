# A host that reboots while the databases are away comes up, runs nothing of what depends on them, and runs it when they are back.


started()
watch_the_stop(nixio)

with subtest("the fleet is drained, and a host reboots"):
    nixio.succeed("systemctl stop postgresql.service")
    assert rest(app1) and sessions_at_stop(nixio) == [0]
    first = app1.succeed(BOOT_ID)
    app1.shutdown()
    app1.start()
    app1.wait_for_unit("multi-user.target", timeout=BOOT)
    assert app1.succeed(BOOT_ID) != first

with subtest("it waits, and nothing has run"):
    until("the wait has begun", lambda: state(app1, "wait-for-io-databases.service") == "activating", 60)
    stays(
        "nothing has run",
        lambda: never_ran(app1, "myapp.service") and state(app1, "io-databases.target") == "inactive",
        10,
    )

with subtest("its guardian answers in the meantime, with the key that it had"):
    app2.succeed("io-coordinator ping --hosts app1 --psk-file /run/secrets/IO_GUARDIAN_PSK --fail-fast")

with subtest("the database is back, and everything runs"):
    nixio.succeed("systemctl start postgresql.service")
    until("all dependents run", all_run, UNDRAIN)

with subtest("a host that is off when the databases come asks for itself, whenever it boots"):
    nixio.succeed("systemctl stop postgresql.service")
    app1.shutdown()
    nixio.succeed("systemctl start postgresql.service")
    until("the other host runs", lambda: run(app2), UNDRAIN)
    app1.start()
    until("all dependents run", all_run, BOOT)
