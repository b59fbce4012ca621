# A guardian whose disk stalls drains and undrains all the same, and remembers when the disk goes on.

EXPECTED_ERRORS = ["^app1: cannot remember what was decided: after a restart a stale command may be taken"]

disk = app1.disk("/var/lib/io-guardian")
started()
watch_the_stop(nixio)
guardian = number(app1, "io-guardian.service", "MainPID")


with subtest("it stalls before a drain: drained all the same, before PostgreSQL stops"):
    disk.stall()
    before = remembered(app1)
    nixio.succeed("systemctl stop postgresql.service", timeout=DRAIN + 30)
    assert sessions_at_stop(nixio) == [0], sessions_at_stop(nixio)
    assert rest(app1) and rest(app2)
    # It was stalled indeed.
    assert remembered(app1) == before < taken(), (remembered(app1), taken())

with subtest("it stalls still: undrained"):
    begun = time.monotonic()
    nixio.succeed("systemctl start postgresql.service")
    until("all dependents run", all_run, UNDRAIN - (time.monotonic() - begun))

with subtest("it goes on: what was to be remembered is, the highest last, by the same process"):
    disk.go_on()
    until("the guardian remembers", lambda: remembered(app1) == taken(), 30)
    assert number(app1, "io-guardian.service", "MainPID") == guardian > 0

with subtest("it stalls in the middle of a drain, and goes on: the drain is done"):
    hold_the_stop(app1, "myapp.service")
    begin_a_held_stop()
    disk.stall()
    let_go(app1)
    until("PostgreSQL is stopped", lambda: state(nixio, "postgresql.service") == "inactive", DRAIN)
    assert sessions_at_stop(nixio)[-1] == 0, sessions_at_stop(nixio)
    assert rest(app1) and rest(app2)
    disk.go_on()
    nixio.succeed("systemctl start postgresql.service")
    until("all dependents run", all_run, UNDRAIN)
    until("the guardian remembers", lambda: remembered(app1) == taken(), 30)
