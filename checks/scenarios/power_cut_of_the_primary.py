# The primary loses its power, with no word to anybody, and comes back: the fleet runs again by itself, on new connections.


started()
first = nixio.succeed(BOOT_ID)
guardians = {host.name: number(host, "io-guardian.service", "MainPID") for host in (app1, app2)}

with subtest("a power cut drains nobody: there is nobody left to tell it"):
    nixio.crash()
    stays("the targets are active", lambda: all(is_active(host, "io-databases.target") for host in (app1, app2)), 5)

with subtest("the primary comes back, and everything runs"):
    nixio.start()
    nixio.wait_for_unit("postgresql.service", timeout=BOOT)
    took = until("all dependents run", all_run, 2 * UNDRAIN)
    print(f"all ran {took:.1f} s after PostgreSQL was seen to run")
    assert nixio.succeed(BOOT_ID) != first

with subtest("the application has one session, and it is of this boot"):
    assert sessions(nixio) == 1, sessions(nixio)
    # What the last boot's server counted is gone with it, as after any crash.
    until("one session is counted", lambda: sessions_ever(nixio) >= 1, 60)

with subtest("the coordinator has told both hosts, and no guardian had to be restarted for it"):
    nixio.wait_for_unit(COORDINATOR, timeout=60)
    assert told("undrain") == 1, told("undrain")
    for host in (app1, app2):
        assert number(host, "io-guardian.service", "MainPID") == guardians[host.name], host.name

with subtest("and is drained as ever"):
    watch_the_stop(nixio)
    nixio.succeed("systemctl stop postgresql.service")
    assert sessions_at_stop(nixio) == [0], sessions_at_stop(nixio)
    assert rest(app1) and rest(app2)
