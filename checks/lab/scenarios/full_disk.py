# A disk that is full keeps no drain from being done. Where the coordinator cannot remember, only an undrain waits for room.

EXPECTED_ERRORS = [
    "^app1: cannot remember what was decided: after a restart a stale command may be taken",
    "^nixio: cannot remember the generation: draining with one above the last",
    "^nixio: io-coordinator: cannot write /var/lib/io-coordinator/generation: .*; nothing was sent",
    # systemd's own, of an undrain that could not be sent.
    f"^nixio: Failed to start {COORDINATOR}",
    f"^nixio: {COORDINATOR}: (Failed with result 'exit-code'|Scheduled restart job)",
]

guardians = app1.disk("/var/lib/io-guardian")
journals = app2.disk("/var/log/journal", megabytes=32)
coordinators = nixio.disk("/var/lib/io-coordinator")
started()
watch_the_stop(nixio)


def drain() -> None:
    stops = len(sessions_at_stop(nixio))
    nixio.succeed("systemctl stop postgresql.service", timeout=DRAIN + 30)
    assert sessions_at_stop(nixio)[stops:] == [0], sessions_at_stop(nixio)
    assert rest(app1) and rest(app2)


def undrain() -> None:
    begun = time.monotonic()
    long_ago()
    nixio.succeed("systemctl start postgresql.service")
    until("all dependents run", all_run, UNDRAIN - (time.monotonic() - begun))


with subtest("the guardian's disk is full: drained before PostgreSQL stops, undrained when it is back, and what it knew is whole"):
    guardians.fill()
    before = remembered(app1)
    drain()
    undrain()
    assert remembered(app1) == before < taken(), (remembered(app1), before, taken())

with subtest("a guardian that starts on a full disk drains and undrains"):
    app1.succeed("systemctl restart io-guardian.service")
    drain()
    undrain()

with subtest("there is room again: it remembers"):
    guardians.empty()
    drain()
    undrain()
    until("the guardian remembers", lambda: remembered(app1) == taken(), 30)

with subtest("a journal that is full: drained and undrained"):
    journals.fill()
    app2.fail("echo more >/var/log/journal/more")
    drain()
    undrain()
    journals.empty()

with subtest("the coordinator's disk is full: both hosts are drained before PostgreSQL stops"):
    coordinators.fill()
    before = taken()
    drain()
    assert taken() == before

with subtest("and stay so, for a guardian might refuse an undrain with a number that is not remembered"):
    long_ago()
    nixio.succeed("systemctl start postgresql.service")
    nixio.wait_until_succeeds(
        f"journalctl -b -o cat -u {COORDINATOR} | grep -a 'make room on the disk.*nothing was sent'",
        timeout=60,
    )
    stays("drained", lambda: rest(app1) and rest(app2), 5)

with subtest("there is room again: undrained, with nobody's help"):
    coordinators.empty()
    until("all dependents run", all_run, UNDRAIN)
    assert taken() > before, (taken(), before)
