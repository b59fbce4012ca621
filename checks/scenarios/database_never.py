# The databases never come: the hosts boot and can be used, their dependents do not run, and the wait says what is missing.

EXPECTED_ERRORS = [
    # Of the wait that is stopped here, to start another one.
    "^app1: (ended by SIGTERM|.* is not ready after .* attempts|Failed to start wait-for-io-databases)",
    "^app1: wait-for-io-databases.service: Failed with result 'exit-code'",
    # Made to fail.
    "^nixio: Failed to start postgresql.service",
]

WAIT = "wait-for-io-databases.service"
# Seconds that each look lasts. Much longer than an attempt of the wait, which comes once in a second.
LOOK = 12
# What a few changes of why a database does not answer may say; one line for each attempt would be more.
LINES = 8


def waits(host: Host) -> bool:
    return (
        state(host, WAIT) == "activating"
        and state(host, "io-databases.target") == "inactive"
        and all(never_ran(host, unit) for unit in DEPENDENTS[host.name])
    )


def lines(host: Host) -> int:
    """What our units have logged."""
    return int(host.succeed("journalctl -b -o cat -u 'io-*' -u 'wait-for-*' | wc -l"))


def invocations(host: Host) -> list[str]:
    """Which runs of our units these are: another one is another identifier."""
    return [shown(host, unit, "InvocationID") for unit in (WAIT, "io-guardian.service", "io-databases-boot.service")]


def stays_waiting(hosts: list[Host]) -> None:
    before = {host.name: (invocations(host), lines(host)) for host in hosts}
    stays("waiting, and nothing has run", lambda: all(waits(host) for host in hosts), LOOK)
    for host in hosts:
        runs, logged = before[host.name]
        assert invocations(host) == runs and all(runs), host.name
        assert number(host, "io-guardian.service", "NRestarts") == 0, host.name
        more = lines(host) - logged
        assert more <= LINES, (host.name, more)


def undrains() -> int:
    """How often the coordinator has told anybody to start."""
    return len(coordinator_said("^undrain: "))


def missing(host: Host) -> str:
    """What this boot's wait has said of databases that are not ready."""
    return host.succeed(f"journalctl -b -o cat -u {WAIT} | grep -a 'not ready yet'")


with subtest("without a database host the others boot, and wait"):
    app1.start()
    app2.start()
    for host in (app1, app2):
        host.wait_for_unit("multi-user.target", timeout=BOOT)
        until("the wait has said what is missing", lambda: host.execute(f"journalctl -b -u {WAIT} | grep -qa 'not ready yet'")[0] == 0, 60)
    stays_waiting([app1, app2])

with subtest("each wait names all that its host needs, and nothing else"):
    for host, needs in ((app1, {"postgres nixio:5432", "redis nixio:6379"}), (app2, {"redis nixio:6379"})):
        assert {line.split('database="')[1].split('"')[0] for line in missing(host).splitlines()} == needs, host.name

with subtest("the hosts can be used: units start and stop, a reload, a drain"):
    for host in (app1, app2):
        host.succeed("systemd-run --wait --unit=anything true", "systemctl daemon-reload", timeout=60)
        host.fail("systemctl --failed --no-legend --plain list-units | grep .")
    assert "io-databases.target" in app1.succeed("systemctl list-jobs")
    app2.succeed("io-coordinator drain --hosts app1 --psk-file /run/secrets/IO_GUARDIAN_PSK --fail-fast", timeout=120)
    # It only waited to start, and now it does not even that.
    assert "io-databases.target" not in app1.succeed("systemctl list-jobs")

with subtest("a wait outlives the time that systemd gives to a start: it asks for more"):
    app1.succeed(
        # First: the shorter time would be its own, too.
        f"systemctl stop {WAIT}",
        f"mkdir -p /run/systemd/system/{WAIT}.d",
        # It is 90 s otherwise.
        f"printf '[Service]\\nTimeoutStartSec=5s\\n' >/run/systemd/system/{WAIT}.d/50-short.conf",
        "systemctl daemon-reload",
        "systemctl start --no-block io-databases.target",
    )
    until("it waits again", lambda: state(app1, WAIT) == "activating", 30)
    assert shown(app1, WAIT, "TimeoutStartUSec") == "5s"
    stays_waiting([app1])

with subtest("the database host comes, and everything runs"):
    nixio.start()
    nixio.wait_for_unit("postgresql.service", timeout=BOOT)
    until("all dependents run", all_run, BOOT)
    nixio.wait_for_unit(COORDINATOR, timeout=60)

with subtest("its PostgreSQL stops, and fails from now on; its Redis answers"):
    before = undrains()
    data = nixio.succeed("runuser -u postgres -- psql -XAtd postgres -c 'SHOW data_directory'").strip()
    nixio.succeed(
        "systemctl stop postgresql.target postgresql.service",
        # It refuses to start on what others may read.
        f"chmod 0777 {data}",
        # systemd's own defaults: a driver may have set others.
        "mkdir -p /run/systemd/system/postgresql.service.d",
        "printf '[Unit]\\nStartLimitIntervalSec=10s\\nStartLimitBurst=5\\n' >/run/systemd/system/postgresql.service.d/50-limit.conf",
        "systemctl daemon-reload",
        "systemctl start --no-block postgresql.target",
    )
    until("it has failed for good", lambda: state(nixio, "postgresql.service") == "failed", 60)
    assert is_active(nixio, "redis.service")

with subtest("drained, a host can be shut down"):
    for host in (app1, app2):
        host.shutdown()

with subtest("who needs it boots and waits for it alone; who needs Redis alone runs"):
    app1.start()
    app2.start()
    for host in (app1, app2):
        host.wait_for_unit("multi-user.target", timeout=BOOT)
    until("all that need Redis alone run", lambda: run(app2), UNDRAIN)
    until("the wait has said what is missing", lambda: "postgres nixio:5432" in missing(app1), 60)
    until("Redis is not missing", lambda: app1.execute(f"journalctl -b -u {WAIT} | grep -qa 'ready database=\"redis nixio:6379'")[0] == 0, 60)
    stays_waiting([app1])
    assert run(app2)

with subtest("the coordinator tells nobody to start, and is not tried for ever either"):
    logged = lines(nixio)
    stays("PostgreSQL has failed, and the coordinator rests", lambda: state(nixio, COORDINATOR) in ("inactive", "failed"), 5)
    assert lines(nixio) - logged <= LINES
    assert undrains() == before > 0, (undrains(), before)

with subtest("the database comes after all, and everything runs"):
    nixio.succeed(f"chmod 0700 {data}", "systemctl reset-failed postgresql.service", "systemctl start postgresql.target")
    until("all dependents run", all_run, UNDRAIN)
