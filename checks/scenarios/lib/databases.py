# Put before each scenario about databases, after measure.py: what nixio, app1 and app2 are measured with.
# From the start of the databases to dependents that run: what io-guardian promises is 30 s.
UNDRAIN = 30
# A drain, by the deadlines of docs/TIMING.md.
DRAIN = 105

COORDINATOR = "io-database-coordinator.service"
# What a stop that is held waits for: see hold_the_stop.
GO = "/run/go"

DEPENDENTS = {"app1": ["myapp.service"], "app2": ["queue.service", "report.timer", "worker.service"]}

# Where the database's own stop writes how many sessions it ends: see watch_the_stop.
AT_STOP = "/var/lib/postgresql/sessions-at-stop"
SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'myapp'"


def run(host: Host) -> bool:
    """All dependents of this host run."""
    return is_active(host, "io-databases.target") and all(
        is_active(host, unit) for unit in DEPENDENTS[host.name]
    )


def rest(host: Host) -> bool:
    """No dependent of this host runs, and no process of one is left."""
    return state(host, "io-databases.target") == "inactive" and all(
        state(host, unit) in ("inactive", "failed") and processes(host, unit) == 0
        for unit in DEPENDENTS[host.name]
    )


def query(host: Host, sql: str) -> int:
    """A number that PostgreSQL on this host answers with."""
    printed = host.succeed(f'runuser -u postgres -- psql -XAtd postgres -c "{sql}"')
    return int(printed.strip() or 0)


def sessions(host: Host) -> int:
    """Sessions of myapp that PostgreSQL has."""
    return query(host, SESSIONS)


def sessions_ever(host: Host) -> int:
    """Sessions that myapp's database has had, the closed ones too, and those that were refused not."""
    return query(host, "SELECT sessions FROM pg_stat_database WHERE datname = 'myapp'")


def watch_the_stop(host: Host) -> None:
    """From now on PostgreSQL's stop begins with a count of myapp's sessions, while it still serves them. Until a reboot.

    On NixOS the unit has no ExecStop= of its own. Where it has one, ours comes after it and counts nothing.
    """
    folder = "/run/systemd/system/postgresql.service.d"
    count = f"psql -XAtd postgres -f /run/sessions.sql >>{AT_STOP}"
    host.succeed(
        f'echo "{SESSIONS}" >/run/sessions.sql',
        f"mkdir -p {folder}",
        f'printf "%s\\n" "[Service]" "ExecStop=-/bin/sh -c \'{count}\'" >{folder}/50-watch.conf',
        f"rm -f {AT_STOP}",
        "systemctl daemon-reload",
    )


def sessions_at_stop(host: Host) -> list[int]:
    """What was counted at each stop since watch_the_stop."""
    return [int(line) for line in host.succeed(f"if test -e {AT_STOP}; then cat {AT_STOP}; fi").split()]


def hold_the_stop(host: Host, unit: str, seconds: int = 40) -> None:
    """From now on the unit's stop waits until let_go, and its processes and sessions with it; for so long at most. Until a reboot."""
    folder = f"/run/systemd/system/{unit}.d"
    stop = f"until test -e {GO}; do sleep 0.1; done"
    host.succeed(
        f"mkdir -p {folder}",
        # Shorter than a drain waits: 45 s.
        f'printf "%s\\n" "[Service]" "ExecStop=/bin/sh -c \'{stop}\'" TimeoutStopSec={seconds}s >{folder}/50-held.conf',
        f"rm -f {GO}",
        "systemctl daemon-reload",
    )


def let_go(host: Host) -> None:
    host.succeed(f"touch {GO}")


def is_held() -> bool:
    """PostgreSQL waits for app1's application, whose stop is held."""
    return is_active(nixio, "postgresql.service") and state(app1, "myapp.service") == "deactivating"


def begin_a_held_stop() -> None:
    """PostgreSQL is told to stop, and waits: see hold_the_stop."""
    nixio.succeed("systemctl stop --no-block postgresql.service")
    until("the application is stopping", is_held, 30)


def coordinator_said(pattern: str) -> list[str]:
    """Lines of the coordinator's journal, of this boot, that match: a basic regular expression."""
    _, lines = nixio.execute(f"journalctl -b -o cat -u {COORDINATOR} | grep -a -- '{pattern}'")
    return lines.splitlines()


def told(action: str) -> int:
    """How often the coordinator has told both hosts, and both have done it, in this boot."""
    return len(coordinator_said(f"^{action}: 2 of 2 hosts ok"))


def taken() -> int:
    """The generation that the coordinator has on its disk."""
    return int(nixio.succeed("cat /var/lib/io-coordinator/generation"))


def remembered(host: Host) -> int:
    """The generation that this host's guardian has on its disk. Whole at all times."""
    return int(host.succeed("sed -nE 's/^[{]\"generation\":([0-9]+)[}]$/\\1/p' /var/lib/io-guardian/guardian.json"))


def drained_first(host: Host, database: str) -> None:
    """The last drain was over when this database began to stop: by the times that systemd on its host has of both units."""
    drained = number(host, COORDINATOR, "InactiveEnterTimestampMonotonic")
    stopping = number(host, database, "ActiveExitTimestampMonotonic")
    assert 0 < drained <= stopping, (drained, stopping)


def stop_and_start(seconds: float) -> None:
    """Over links that are bad: PostgreSQL stops when both hosts are drained, and they run again within so many seconds of its start."""
    begun = time.monotonic()
    nixio.succeed("systemctl stop postgresql.service", timeout=DRAIN + 30)
    print(f"stopped after {time.monotonic() - begun:.1f} s")
    # Sessions are not counted at the stop: the application's farewell may be lost or late, and TCP still be repeating it.
    assert rest(app1) and rest(app2)
    drained_first(nixio, "postgresql.service")
    begun = time.monotonic()
    nixio.succeed("systemctl start postgresql.service")
    left = seconds - (time.monotonic() - begun)
    until("all run, as they are told to", lambda: run(app1) and run(app2) and is_active(nixio, COORDINATOR), left)
    print(f"undrained after {time.monotonic() - begun:.1f} s")


def all_run() -> bool:
    return run(app1) and run(app2) and sessions(nixio) == 1


def long_ago() -> None:
    """The undrains until now were long ago: the next one does not wait, as it would for databases that crash again and again."""
    nixio.succeed("rm -f /run/io-coordinator/undrained")


def started() -> None:
    """The fleet is up, and everything in it runs."""
    start_all()
    nixio.wait_for_unit("postgresql.service", timeout=BOOT)
    until("the whole fleet runs", all_run, BOOT)
    # It is told that the databases are there although it found out: a stop that came before would find it in the middle of that.
    until("the coordinator has told it", lambda: is_active(nixio, "io-database-coordinator.service"), BOOT)
