# The databases come last: the boot of the others goes on without them, their dependents wait, and nobody touches anything.

with subtest("hosts without their databases boot, and no dependent runs"):
    app1.start()
    app2.start()
    for host in (app1, app2):
        host.wait_for_unit("multi-user.target", timeout=BOOT)
        until("the wait has begun", lambda: state(host, "wait-for-io-databases.service") == "activating", 60)
    for host in (app1, app2):
        stays(
            f"{host.name} waits, and nothing has run",
            lambda: all(never_ran(host, unit) for unit in DEPENDENTS[host.name])
            and state(host, "io-databases.target") == "inactive"
            and state(host, "wait-for-io-databases.service") == "activating",
            15,
        )

with subtest("a dependent that is started by hand waits like the others"):
    app1.succeed("systemctl start --no-block myapp.service")
    stays("myapp has not run", lambda: never_ran(app1, "myapp.service"), 5)

with subtest("the journal names what is missing"):
    app1.succeed("journalctl -b -u wait-for-io-databases.service | grep 'not ready yet'")

with subtest("the databases come, and everything runs"):
    nixio.start()
    nixio.wait_for_unit("postgresql.service", timeout=BOOT)
    until("all dependents run", all_run, BOOT)
    for host in (app1, app2):
        reached = number(host, "io-databases.target", "ActiveEnterTimestampMonotonic")
        for unit in DEPENDENTS[host.name]:
            assert number(host, unit, "InactiveExitTimestampMonotonic") >= reached, (host.name, unit)
