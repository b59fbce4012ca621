# Somebody holds a host down on purpose. Neither the databases nor other coordinators nor reboots of either end start it again.

SAY = "io-coordinator {} --hosts app1 --psk-file /run/secrets/IO_GUARDIAN_PSK --fail-fast 2>&1"
EXPECTED_ERRORS = [
    '^(nixio|app2): host has failed host=app1:9876 result=failed .* error="held until .*: a migration',
    "^app1: the databases are not watched",
]

started()

with subtest("a hold drains, and says why"):
    nixio.succeed(SAY.format("hold --reason 'a migration' --for 2h"))
    assert rest(app1)
    shown_status = nixio.succeed(SAY.format("status"))
    assert "a migration" in shown_status, shown_status

with subtest("an undrain by hand is refused with the reason"):
    code, said = app2.execute(SAY.format("undrain"))
    assert code == 1 and "a migration" in said and "release" in said, said
    assert rest(app1)

with subtest("a restart of the database undrains the others, and not it"):
    nixio.succeed("systemctl restart postgresql.service")
    until("the other one runs", lambda: run(app2), UNDRAIN)
    stays("it rests", lambda: rest(app1), 10)

with subtest("it outlives a reboot of the host"):
    app1.shutdown()
    app1.start()
    app1.wait_for_unit("multi-user.target", timeout=BOOT)
    app1.wait_for_unit("io-guardian.service", timeout=60)
    stays("nothing runs", lambda: rest(app1) and never_ran(app1, "myapp.service"), 10)

with subtest("and a power cut of both ends"):
    app1.crash()
    nixio.crash()
    nixio.start()
    nixio.wait_for_unit("postgresql.service", timeout=BOOT)
    app1.start()
    app1.wait_for_unit("io-guardian.service", timeout=BOOT)
    until("the other one runs", lambda: run(app2), 3 * UNDRAIN)
    stays("it rests", lambda: rest(app1) and never_ran(app1, "myapp.service"), 10)
    # It has had its turn in this boot: what a later switch starts is not what a coordinator has drained since.
    assert is_active(app1, "io-databases-boot.service")

with subtest("released, it runs like the others"):
    nixio.succeed(SAY.format("release"))
    until("all dependents run", all_run, UNDRAIN)

with subtest("a hold ends by itself"):
    nixio.succeed(SAY.format("hold --reason 'a moment' --for 8s"))
    assert rest(app1)
    until("all dependents run", all_run, UNDRAIN)

with subtest("a database's password that is not there keeps the guardian from watching, and not from obeying"):
    app1.succeed(
        "mv /run/secrets/REDIS/PASSWORD /run/password",
        "systemctl restart io-guardian.service",
        "journalctl -b -u io-guardian.service | grep -a 'the databases are not watched'",
    )
    nixio.succeed(SAY.format("drain"))
    assert rest(app1)
    app1.succeed("mv /run/password /run/secrets/REDIS/PASSWORD", "systemctl restart io-guardian.service")
    nixio.succeed(SAY.format("undrain"))
    until("all dependents run", all_run, UNDRAIN)
