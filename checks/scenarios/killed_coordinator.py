# The coordinator is killed in the middle of a drain, and of an undrain: what it had begun is taken up again, and PostgreSQL waits.

EXPECTED_ERRORS = [
    # Of the undrain that is killed.
    "^nixio: Failed to start io-database-coordinator",
    "^nixio: io-database-coordinator.service: Failed with result 'signal'",
    r"^nixio: io-database-coordinator.service: Scheduled restart job, restart counter is at 1\.",
    # Of the drain that systemd ends.
    "^nixio: io-database-coordinator.service: Failed with result 'timeout'",
    "^nixio: host has failed host=app1:9876 .*interrupted before it answered",
]

# Seconds from its end to its next start, as the unit has it.
RESTART = 10


def coordinators(action: str) -> str:
    """The processes that tell the fleet, as the host's kernel has them. Not the one that begins them again."""
    _, lines = nixio.execute(f"pgrep -a -x -f '[^ ]*/io-coordinator {action} .*' | grep -v -e --supervised")
    return " ".join(line.split()[0] for line in lines.splitlines())


started()
nixio.wait_for_unit(COORDINATOR, timeout=60)
watch_the_stop(nixio)
hold_the_stop(app1, "myapp.service")

with subtest("a drain is under way: the application stops, PostgreSQL still runs"):
    begin_a_held_stop()
    assert sessions(nixio) == 1

with subtest("the coordinator is killed, and PostgreSQL goes on to wait"):
    pid = coordinators("drain")
    assert pid
    nixio.succeed(f"kill -KILL {pid}")
    until("another coordinator drains", lambda: coordinators("drain") not in ("", pid), 30)
    stays("nothing is over", is_held, 3)

with subtest("the application has stopped, then PostgreSQL does, with no session left"):
    let_go(app1)
    until("PostgreSQL is stopped", lambda: state(nixio, "postgresql.service") == "inactive", DRAIN)
    assert sessions_at_stop(nixio) == [0], sessions_at_stop(nixio)
    assert rest(app1) and rest(app2)
    assert told("drain") == 1

with subtest("the database is back, and everything runs"):
    nixio.succeed("systemctl start postgresql.service")
    until("all dependents run", all_run, UNDRAIN)
    nixio.wait_for_unit(COORDINATOR, timeout=60)

# Its start waits until we say so: the undrain is open as long.
app1.succeed(
    "rm /run/systemd/system/myapp.service.d/50-held.conf",
    "printf '[Service]\\nExecStartPre=/bin/sh -c \"until test -e /run/start; do sleep 0.1; done\"\\n' "
    ">/run/systemd/system/myapp.service.d/50-later.conf",
    "systemctl daemon-reload",
)

with subtest("an undrain is under way: the application starts, the other host runs"):
    nixio.succeed("systemctl restart --no-block postgresql.service")
    until("it undrains, and the application starts", lambda: coordinators("undrain") != "" and state(app1, "myapp.service") == "activating", 60)
    until("the other host runs", lambda: run(app2), UNDRAIN)
    server = number(nixio, "postgresql.service", "MainPID")

with subtest("the coordinator is killed: the fleet is drained, which is on the safe side, and PostgreSQL runs on"):
    drains, undrains = told("drain"), told("undrain")
    nixio.succeed(f"kill -KILL {coordinators('undrain')}")
    until("all are told to stop", lambda: told("drain") > drains, 30)
    assert number(nixio, "postgresql.service", "MainPID") == server > 0

with subtest("it is started again by itself, and everything runs"):
    app1.succeed("touch /run/start")
    until("all are told to start", lambda: told("undrain") > undrains, RESTART + UNDRAIN)
    until("all dependents run", all_run, UNDRAIN)
    assert number(nixio, "postgresql.service", "MainPID") == server
    nixio.wait_for_unit(COORDINATOR, timeout=60)

with subtest("and PostgreSQL's next stop drains as ever"):
    nixio.succeed("systemctl stop postgresql.service")
    assert sessions_at_stop(nixio)[-1] == 0, sessions_at_stop(nixio)
    assert rest(app1) and rest(app2)

with subtest("systemd's own deadline ends a drain for good: who has not answered is named, and then PostgreSQL stops"):
    app1.succeed("rm /run/systemd/system/myapp.service.d/50-later.conf")
    long_ago()
    nixio.succeed("systemctl start postgresql.service")
    until("all dependents run", all_run, UNDRAIN)
    nixio.wait_for_unit(COORDINATOR, timeout=60)
    hold_the_stop(app1, "myapp.service")
    nixio.succeed(
        f"mkdir -p /run/systemd/system/{COORDINATOR}.d",
        f"printf '[Service]\\nTimeoutStopSec=5s\\n' >/run/systemd/system/{COORDINATOR}.d/50-soon.conf",
        "systemctl daemon-reload",
        "systemctl stop postgresql.service",
    )
    assert sessions_at_stop(nixio)[-1] == 1, sessions_at_stop(nixio)
    assert rest(app2)
    said = coordinator_said("interrupted before it answered")
    assert said and all("app1" in line and "app2" not in line for line in said), said
    assert coordinators("drain") == ""
    drained_first(nixio, "postgresql.service")
    let_go(app1)
