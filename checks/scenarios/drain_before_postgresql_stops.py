# A stop of PostgreSQL waits for the dependents of all hosts. The proof is PostgreSQL's: its stop begins with a count of the
# sessions that it still has.

EXPECTED_ERRORS = ["^nixio: host has failed host=app1:9876 result=refused"]

GUARDIAN = "io-guardian.service"

started()
watch_the_stop(nixio)

with subtest("a host whose guardian is away is not drained, and the count says so"):
    app1.succeed("systemctl stop io-guardian.service")
    nixio.succeed("systemctl stop postgresql.service")
    assert sessions_at_stop(nixio) == [1], sessions_at_stop(nixio)
    assert is_active(app1, "io-databases.target")
    assert rest(app2)
    app1.succeed("systemctl start io-guardian.service")
    nixio.succeed("systemctl start postgresql.service")
    until("all dependents run", all_run, 2 * UNDRAIN)

with subtest("systemctl stop postgresql: no session is left when its stop begins"):
    assert sessions(nixio) == 1, sessions(nixio)
    nixio.succeed("systemctl stop postgresql.service")
    assert not is_active(nixio, "postgresql.service")
    assert sessions_at_stop(nixio) == [1, 0], sessions_at_stop(nixio)
    # Each host by itself, and no longer a moment later.
    for host in (app1, app2):
        assert rest(host), host.name

with subtest("the drain was over before PostgreSQL began to stop"):
    drained_first(nixio, "postgresql.service")

with subtest("drained is drained: nothing comes back while the databases are away"):
    for host in (app1, app2):
        stays(f"{host.name} rests", lambda: rest(host), 10)

with subtest("the dependents run again within 30 s of the start"):
    before = time.monotonic()
    nixio.succeed("systemctl start postgresql.service")
    # From here, and not from when we look: what the others do meanwhile is theirs.
    until("all dependents run", all_run, UNDRAIN - (time.monotonic() - before))

with subtest("none was opened while it was drained: a server that runs, and is not told of"):
    # It is gone for a moment. A guardian that looks in that moment undrains its host 5 s after, as it should.
    for host in (app1, app2):
        obeys = f"/run/systemd/system/{GUARDIAN}.d/50-obeys.conf"
        put(host, obeys, "[Service]\nExecStart=")
        host.succeed(
            f"systemctl cat {GUARDIAN} | sed -n 's|^ExecStart=..*|& --undrain-after off|p' | tail -n 1 >>{obeys}",
            "systemctl daemon-reload",
            f"systemctl restart {GUARDIAN}",
        )
    nixio.succeed(
        f"mkdir -p /run/systemd/system/{COORDINATOR}.d",
        f"printf '[Service]\\nExecStartPre=/bin/sh -c \"until test -e {GO}; do sleep 0.2; done\"\\n' "
        f">/run/systemd/system/{COORDINATOR}.d/50-later.conf",
        "systemctl daemon-reload",
        "systemctl stop postgresql.service",
        "systemctl start --no-block postgresql.service",
    )
    nixio.wait_for_unit("postgresql.service", timeout=60)
    ever = sessions_ever(nixio)
    stays("no session while the fleet is drained", lambda: sessions(nixio) == 0 and rest(app1), 10)
    assert sessions_ever(nixio) == ever, (ever, sessions_ever(nixio))
    let_go(nixio)
    until("all dependents run", all_run, UNDRAIN)
    # That the number grows when somebody comes: the server tells of a session when it is over, or a second later.
    until("the new session is counted", lambda: sessions_ever(nixio) > ever, 60)
