# A guardian that stands still is killed by systemd's watchdog and started again; what was to be drained is drained.

EXPECTED_ERRORS = [
    "^app1: io-guardian.service: (Watchdog timeout|Failed with result 'watchdog')",
    # Two are frozen.
    r"^app1: io-guardian.service: Scheduled restart job, restart counter is at [12]\.",
]

started()
watch_the_stop(nixio)

# Seconds, as the unit has it.
WATCHDOG = 10
assert shown(app1, "io-guardian.service", "WatchdogUSec") == f"{WATCHDOG}s"


def freeze() -> int:
    pid = number(app1, "io-guardian.service", "MainPID")
    app1.succeed(f"kill -STOP {pid}")
    return pid


def another(pid: int) -> bool:
    return is_active(app1, "io-guardian.service") and number(app1, "io-guardian.service", "MainPID") not in (0, pid)


with subtest("frozen, it is another process within the watchdog's time, and no dependent was touched"):
    before = number(app1, "myapp.service", "MainPID")
    pid = freeze()
    took = until("the watchdog has acted", lambda: another(pid), WATCHDOG + 15)
    print(f"another guardian after {took:.1f} s")
    app1.succeed("journalctl -b -u io-guardian.service | grep -i 'watchdog timeout'")
    assert number(app1, "myapp.service", "MainPID") == before > 0

with subtest("frozen when the drain begins, its host is drained before PostgreSQL stops"):
    pid = freeze()
    nixio.succeed("systemctl stop postgresql.service", timeout=DRAIN + 30)
    assert sessions_at_stop(nixio) == [0], sessions_at_stop(nixio)
    assert another(pid)
    assert rest(app1) and rest(app2)

with subtest("the database is back, and everything runs"):
    nixio.succeed("systemctl start postgresql.service")
    until("all dependents run", all_run, UNDRAIN)
