# A host stands still through a drain and the undrain after it. Thawed, it finds both in its sockets: the older does not win.

EXPECTED_ERRORS = [
    "^nixio: host has failed host=app1:9876 result=timed-out",
    # Thawed, its systemd has seen no sign of life for a minute.
    "^app1: io-guardian.service: (Watchdog timeout|Failed with result 'watchdog')",
    r"^app1: io-guardian.service: Scheduled restart job, restart counter is at 1\.",
]

started()
watch_the_stop(nixio)

with subtest("a frozen host does not hold the database for ever, and is named"):
    app1.freeze()
    begun = time.monotonic()
    nixio.succeed("systemctl stop postgresql.service", timeout=DRAIN + 30)
    took = time.monotonic() - begun
    print(f"stopped after {took:.1f} s")
    assert took < DRAIN, took
    assert rest(app2)
    # Its application stands still, too: its session is there.
    assert sessions_at_stop(nixio) == [1], sessions_at_stop(nixio)
    said = coordinator_said("host has failed.*host=app1")
    # Its kernel accepts the connection. That was given up in time for others.
    assert len(said) == 1 and "attempts=1 " not in said[0] and "waiting for the WebSocket handshake" in said[0], said

with subtest("the database is back while the host is frozen: the other one runs"):
    nixio.succeed("systemctl start postgresql.service")
    until("the other host runs", lambda: run(app2), UNDRAIN)

with subtest("thawed, its dependents run, and stay"):
    app1.thaw()
    until("all dependents run", all_run, 2 * UNDRAIN)
    stays("all run", all_run, 10)
