# The host of the databases is shut down and comes back: the fleet is drained before its PostgreSQL goes, and runs afterwards.


started()
watch_the_stop(nixio)
boots = {host.name: host.succeed(BOOT_ID) for host in (nixio, app1, app2)}

with subtest("before: everything runs, and PostgreSQL has myapp's session"):
    assert all_run()

with subtest("a shutdown drains the fleet"):
    nixio.shutdown()
    for host in (app1, app2):
        until(f"{host.name} rests", lambda: rest(host), 5)
        stays(f"{host.name} rests", lambda: rest(host), 10)

with subtest("the databases come back, and everything runs"):
    nixio.start()
    nixio.wait_for_unit("postgresql.service", timeout=BOOT)
    took = until("all dependents run", all_run, UNDRAIN)
    print(f"undrained {took:.1f} s after PostgreSQL was seen to run")

with subtest("no session was left when PostgreSQL's stop began"):
    assert sessions_at_stop(nixio) == [0], sessions_at_stop(nixio)

with subtest("it was another boot of the primary, and the same of the others"):
    assert nixio.succeed(BOOT_ID) != boots["nixio"]
    for host in (app1, app2):
        assert host.succeed(BOOT_ID) == boots[host.name], host.name
