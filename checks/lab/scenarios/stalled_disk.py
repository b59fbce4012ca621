# A guardian whose disk stalls drains and undrains all the same, and remembers when the disk goes on.

EXPECTED_ERRORS = ["^app1: cannot remember the generation: after a restart a stale command may be taken"]

disk = app1.disk("/var/lib/io-guardian")
started()
watch_the_stop(nixio)
guardian = number(app1, "io-guardian.service", "MainPID")


def remembered() -> int:
    """The generation that the guardian has on its disk."""
    return int(app1.succeed("tr -dc 0-9 </var/lib/io-guardian/guardian.json"))


def taken() -> int:
    """The generation that the coordinator has on its disk."""
    return int(nixio.succeed("cat /var/lib/io-coordinator/generation"))


with subtest("it stalls before a drain: drained all the same, before PostgreSQL stops"):
    disk.stall()
    before = remembered()
    nixio.succeed("systemctl stop postgresql.service", timeout=DRAIN + 30)
    assert sessions_at_stop(nixio) == [0], sessions_at_stop(nixio)
    assert rest(app1) and rest(app2)
    # It was stalled indeed.
    assert remembered() == before < taken(), (remembered(), taken())

with subtest("it stalls still: undrained"):
    begun = time.monotonic()
    nixio.succeed("systemctl start postgresql.service")
    until("all dependents run", all_run, UNDRAIN - (time.monotonic() - begun))

with subtest("it goes on: what was to be remembered is, the highest last, by the same process"):
    disk.go_on()
    until("the guardian remembers", lambda: remembered() == taken(), 30)
    assert number(app1, "io-guardian.service", "MainPID") == guardian > 0

with subtest("it stalls in the middle of a drain, and goes on: the drain is done"):
    app1.succeed(
        "mkdir -p /run/systemd/system/myapp.service.d",
        "printf '[Service]\\nExecStop=/bin/sh -c \"until test -e /run/go; do sleep 0.1; done\"\\n' "
        ">/run/systemd/system/myapp.service.d/50-held.conf",
        "systemctl daemon-reload",
    )
    nixio.succeed("systemctl stop --no-block postgresql.service")
    until("the application is stopping", lambda: state(app1, "myapp.service") == "deactivating", 30)
    disk.stall()
    app1.succeed("touch /run/go")
    until("PostgreSQL is stopped", lambda: state(nixio, "postgresql.service") == "inactive", DRAIN)
    assert sessions_at_stop(nixio)[-1] == 0, sessions_at_stop(nixio)
    assert rest(app1) and rest(app2)
    disk.go_on()
    nixio.succeed("systemctl start postgresql.service")
    until("all dependents run", all_run, UNDRAIN)
    until("the guardian remembers", lambda: remembered() == taken(), 30)
