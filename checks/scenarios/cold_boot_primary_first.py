# The databases are there before the hosts that need them: these start their dependents at boot, after the wait, once.

with subtest("the primary alone: no session of myapp, and the count would see one"):
    nixio.start()
    nixio.wait_for_unit("io-databases-provision.service", timeout=BOOT)
    assert sessions(nixio) == 0, sessions(nixio)
    assert sessions_ever(nixio) == 0, sessions_ever(nixio)

with subtest("hosts that boot later start their dependents by themselves"):
    app1.start()
    app2.start()
    until("all dependents run", all_run, BOOT)
    for host in (app1, app2):
        host.wait_for_unit("multi-user.target", timeout=BOOT)

with subtest("the wait came first, the target second, the dependents third"):
    for host in (app1, app2):
        asked = number(host, "wait-for-io-databases.service", "ExecMainExitTimestampMonotonic")
        reached = number(host, "io-databases.target", "ActiveEnterTimestampMonotonic")
        assert 0 < asked <= reached, (host.name, asked, reached)
        for unit in DEPENDENTS[host.name]:
            begun = number(host, unit, "InactiveExitTimestampMonotonic")
            assert reached <= begun, (host.name, unit, reached, begun)

with subtest("no dependent had to be started twice"):
    for host in (app1, app2):
        for unit in DEPENDENTS[host.name]:
            if unit.endswith(".service"):
                assert number(host, unit, "NRestarts") == 0, (host.name, unit)
    # The server tells of a session a second later.
    until("one session is counted", lambda: sessions_ever(nixio) >= 1, 60)
    assert sessions_ever(nixio) == 1, sessions_ever(nixio)
