# The wall clocks of guardian and coordinator jump an hour forward and back, between and in the middle of drains: no deadline is cut
# or stretched, and generations only grow.

EXPECTED_ERRORS = [
    "^app1: command failed action=drain .*units still not stopped after 45.0 s",
    "^nixio: host has failed host=app1:9876 result=failed .*units still not stopped after 45.0 s",
]

HOUR = 3600

clocks = [app1.clock("io-guardian.service"), nixio.clock(COORDINATOR)]
started()
watch_the_stop(nixio)
guardian = number(app1, "io-guardian.service", "MainPID")
generations: list[int] = []


def grown() -> None:
    """The coordinator's last generation is above those before it, and the guardian has it."""
    last = taken()
    assert last > max(generations, default=0), (last, generations)
    assert remembered(app1) == last, (remembered(app1), last)
    generations.append(last)


def jump(seconds: int) -> None:
    for clock in clocks:
        clock.jump(seconds)


def ahead() -> int:
    """By how many seconds the coordinator's last generation is ahead of the host's clock."""
    return generations[-1] // 1000 - int(nixio.succeed("date +%s"))


def turn(jumps: int) -> None:
    """A drain in the middle of which the clocks jump, and an undrain."""
    stops = len(sessions_at_stop(nixio))
    hold_the_stop(app1, "myapp.service")
    begin_a_held_stop()
    jump(jumps)
    # Longer than anything that waits for the next second, shorter than any deadline.
    stays(
        "nobody gives up",
        lambda: is_active(nixio, "postgresql.service") and state(app1, "myapp.service") == "deactivating",
        3,
    )
    let_go(app1)
    until("PostgreSQL is stopped", lambda: state(nixio, "postgresql.service") == "inactive", 30)
    assert sessions_at_stop(nixio)[stops:] == [0], sessions_at_stop(nixio)
    assert rest(app1) and rest(app2)
    grown()
    begun = time.monotonic()
    long_ago()
    nixio.succeed("systemctl start postgresql.service")
    until("all dependents run", all_run, UNDRAIN - (time.monotonic() - begun))
    grown()


with subtest("both run with the clock that can jump"):
    app1.succeed(f"grep -q /clock.so /proc/{guardian}/maps")
    grown()
    assert abs(ahead()) < HOUR / 2, ahead()

with subtest("an hour forward in the middle of a drain"):
    turn(HOUR)
    # The undrain took its number from the clock that has jumped.
    assert HOUR / 2 < ahead() < 2 * HOUR, ahead()

with subtest("an hour back in the middle of a drain: the numbers go on from the highest"):
    turn(-HOUR)
    assert generations[-1] == generations[-2] + 1, generations

with subtest("an hour back between two: the same"):
    jump(-HOUR)
    turn(0)
    assert generations[-1] == generations[-2] + 1 == generations[-3] + 2, generations

with subtest("two hours forward between two: the clock's number again"):
    jump(2 * HOUR)
    turn(0)
    assert HOUR / 2 < ahead() < 2 * HOUR, ahead()

with subtest("what takes too long is given up when it is time, and neither sooner nor later"):
    hold_the_stop(app1, "myapp.service", 70)
    begun = time.monotonic()
    begin_a_held_stop()
    jump(HOUR)
    until("PostgreSQL is stopped", lambda: state(nixio, "postgresql.service") == "inactive", DRAIN)
    took = time.monotonic() - begun
    print(f"given up after {took:.1f} s")
    app1.succeed("journalctl -b -o cat -u io-guardian.service | grep -a 'command failed.*units still not stopped after 45.0 s'")
    assert 45 <= took < DRAIN, took

with subtest("the same guardian all the time"):
    let_go(app1)
    assert number(app1, "io-guardian.service", "MainPID") == guardian > 0
