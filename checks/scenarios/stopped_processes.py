# Processes that are stopped (SIGSTOP) and go on: a coordinator in the middle of a drain, a PostgreSQL that its clients depend on, a
# Redis that hosts wait for at boot.


def signal(host: Host, unit: str, name: str) -> None:
    """To all processes of the unit."""
    host.succeed(f"systemctl kill --kill-whom=all --signal={name} {unit}")


def stands_still(host: Host, unit: str) -> bool:
    """All its processes are stopped."""
    files = " ".join(f"/proc/{pid}/status" for pid in pids(host, unit))
    _, printed = host.execute(f"sed -nE 's/^State:.(.).*/\\1/p' {files} </dev/null | sort -u")
    return printed.strip() == "T"


def undrains() -> int:
    """That the coordinator has ended."""
    return len(coordinator_said("^undrain: "))


with subtest("Redis is stopped at boot: hosts that boot wait for it, however long, and so does the undrain"):
    nixio.start()
    nixio.wait_for_unit("redis.service", timeout=BOOT)
    signal(nixio, "redis.service", "STOP")
    for host in (app1, app2):
        host.start()
        host.wait_for_unit("io-guardian.service", timeout=BOOT)
    nixio.wait_for_unit("postgresql.service", timeout=BOOT)
    until("it stands still", lambda: stands_still(nixio, "redis.service"), 10)
    stays(
        "no dependent has run",
        lambda: all(never_ran(host, unit) for host in (app1, app2) for unit in DEPENDENTS[host.name]),
        8,
    )
    for host in (app1, app2):
        host.wait_until_succeeds(
            "journalctl -b -o cat -u wait-for-io-databases.service | grep -a 'not ready yet.*redis nixio'", timeout=60
        )
        assert state(host, "wait-for-io-databases.service") == "activating"
    assert undrains() == 0, undrains()

with subtest("it goes on: all dependents run"):
    signal(nixio, "redis.service", "CONT")
    until("all dependents run", all_run, UNDRAIN)

with subtest("the coordinator is stopped in the middle of a drain: PostgreSQL waits, and what was told is done"):
    nixio.wait_for_unit(COORDINATOR, timeout=60)
    watch_the_stop(nixio)
    hold_the_stop(app1, "myapp.service")
    begin_a_held_stop()
    signal(nixio, COORDINATOR, "STOP")
    let_go(app1)
    until("both hosts rest", lambda: rest(app1) and rest(app2), 30)
    assert stands_still(nixio, COORDINATOR)
    stays("PostgreSQL waits for the coordinator", lambda: is_active(nixio, "postgresql.service"), 5)

with subtest("it goes on: it finds the answers, and PostgreSQL stops with no session left"):
    signal(nixio, COORDINATOR, "CONT")
    until("PostgreSQL is stopped", lambda: state(nixio, "postgresql.service") == "inactive", 30)
    assert sessions_at_stop(nixio) == [0], sessions_at_stop(nixio)
    assert told("drain") == 1, told("drain")
    nixio.succeed("systemctl start postgresql.service")
    until("all dependents run", all_run, UNDRAIN)

with subtest("PostgreSQL is stopped: nobody is drained by that, and nothing is started or stopped"):
    nixio.wait_for_unit(COORDINATOR, timeout=60)
    before = number(app1, "myapp.service", "MainPID")
    signal(nixio, "postgresql.service", "STOP")
    until("it stands still", lambda: stands_still(nixio, "postgresql.service"), 10)
    stays("all run", lambda: run(app1) and run(app2), 10)
    assert number(app1, "myapp.service", "MainPID") == before > 0

with subtest("a drain needs no answer of PostgreSQL's"):
    nixio.succeed(f"systemctl stop {COORDINATOR}", timeout=DRAIN + 30)
    assert rest(app1) and rest(app2)

with subtest("undrained it is only when PostgreSQL answers"):
    last = undrains()
    nixio.succeed(f"systemctl start --no-block {COORDINATOR}")
    stays("drained", lambda: rest(app1) and rest(app2), 10)
    assert undrains() == last, (undrains(), last)
    nixio.wait_until_succeeds(
        f"journalctl -b -o cat -u {COORDINATOR} | grep -a 'not ready yet.*postgres localhost'", timeout=60
    )
    assert stands_still(nixio, "postgresql.service")
    signal(nixio, "postgresql.service", "CONT")
    until("all dependents run", all_run, UNDRAIN)
