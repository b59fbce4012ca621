# Twenty hosts are drained before PostgreSQL stops. One hangs, one has another key, one is off: they are named, the others go on.

import re
from collections.abc import Iterable

CLIENTS = 20
EXPECTED_ERRORS = [
    "^nixio: host has failed host=app5:9876 result=timed-out",
    "^nixio: host has failed host=app9:9876 result=bad-key",
    "^nixio: host has failed host=app13:9876 result=(unreachable|timed-out)",
    # Thawed, its systemd has seen no sign of life for a minute.
    "^app5: io-guardian.service: (Watchdog timeout|Failed with result 'watchdog')",
    r"^app5: io-guardian.service: Scheduled restart job, restart counter is at 1\.",
]

KEY = "/run/secrets/IO_GUARDIAN_PSK"

clients = [host for host in machines if host.name != "nixio"]
hung, other_key, off = app5, app9, app13
sound = [host for host in clients if host not in (hung, other_key, off)]
for each in clients:
    DEPENDENTS.setdefault(each.name, DEPENDENTS["app2"])


def all_of(hosts: Iterable[Host], holds: Callable[[Host], bool]) -> Callable[[], bool]:
    return lambda: all(holds(host) for host in hosts)


def down(host: Host) -> int:
    """When the last of its dependents came to rest. All hosts of the lab have one clock."""
    return max(number(host, unit, "InactiveEnterTimestampMonotonic") for unit in ("io-databases.target", *DEPENDENTS[host.name]))


def summary(action: str) -> str:
    return "".join(coordinator_said(f"^{action}: ")[-1:])


def named() -> set[str]:
    """Whom the coordinator has named as failed, since it was last asked."""
    nixio.succeed("touch /run/named")
    journal = f"journalctl -b -o cat -u {COORDINATOR}"
    lines = nixio.succeed(
        f"{journal} | tee /run/now | tail -n +$(($(wc -l </run/named) + 1))",
        "mv /run/now /run/named",
    )
    return set(re.findall(r"^host has failed host=(\w+):9876", lines, re.M))


def stop_begins() -> None:
    """PostgreSQL is told to stop. It begins to when all are drained, and is held then until we have looked at the others."""
    nixio.succeed(f"rm -f {GO}", "systemctl stop --no-block postgresql.service")


def stop_ends() -> None:
    nixio.succeed(f"touch {GO}")
    until("PostgreSQL is stopped", lambda: state(nixio, "postgresql.service") == "inactive", 60)


def stopping() -> bool:
    return state(nixio, "postgresql.service") == "deactivating"


def hold_dependents(hosts: Iterable[Host], yes: bool) -> None:
    """Whether the stop of one unit of each host waits for us."""
    for host in hosts:
        host.succeed(f"rm -f {GO}" if yes else f"touch {GO}")


def held_unit(host: Host) -> str:
    return "myapp.service" if host.name == "app1" else "worker.service"


def told_to_stop(host: Host) -> bool:
    return state(host, held_unit(host)) == "deactivating"


def all_rest_first() -> None:
    """Looked at while PostgreSQL is held in the beginning of its stop, and proved by the times of units."""
    stop_begins()
    until("PostgreSQL begins to stop", stopping, DRAIN)
    for host in clients:
        assert rest(host), host.name
    begins = number(nixio, "postgresql.service", "ActiveExitTimestampMonotonic")
    times = {host.name: down(host) for host in clients}
    assert all(0 < time <= begins for time in times.values()), (begins, times)
    assert sessions_at_stop(nixio)[-1] == 0, sessions_at_stop(nixio)
    stop_ends()
    first, last = begins - min(times.values()), begins - max(times.values())
    print(f"the first host was drained {first} us before PostgreSQL began to stop, the last {last} us")


start_all()
nixio.wait_for_unit("postgresql.service", timeout=BOOT)
took = until("the whole fleet runs", all_of(clients, run), BOOT)
print(f"all ran {took:.1f} s after the last began to boot")
until("the application has its session", lambda: sessions(nixio) == 1, UNDRAIN)
until("all have been told", lambda: "undrain: 20 of 20 hosts ok" in summary("undrain"), BOOT)
for each in clients:
    hold_the_stop(each, held_unit(each))
    remember(each, "io-databases.target", *DEPENDENTS[each.name])
hold_dependents(clients, False)
watch_the_stop(nixio)
nixio.succeed(
    f"printf '[Service]\\nExecStop=-/bin/sh -c \"until test -e {GO}; do sleep 0.1; done\"\\n' "
    ">/run/systemd/system/postgresql.service.d/60-held.conf",
    "systemctl daemon-reload",
)
named()

with subtest("all twenty are drained when PostgreSQL begins to stop"):
    all_rest_first()
    assert "drain: 20 of 20 hosts ok" in summary("drain"), summary("drain")
    assert named() == set()

with subtest("all twenty run again within 30 s of the start"):
    before = time.monotonic()
    nixio.succeed("systemctl start postgresql.service")
    until("all run", all_of(clients, run), UNDRAIN - (time.monotonic() - before))
    print(f"all ran {time.monotonic() - before:.1f} s after the start")
    until("the application has its session", lambda: sessions(nixio) == 1, UNDRAIN)

with subtest("all twenty are told at the same time: nobody's drain waits for another one's"):
    hold_dependents(clients, True)
    stop_begins()
    until("all have begun to stop", all_of(clients, told_to_stop), 35)
    assert is_active(nixio, "postgresql.service")
    hold_dependents(clients, False)
    until("PostgreSQL begins to stop", stopping, DRAIN)
    assert all_of(clients, rest)() and sessions_at_stop(nixio)[-1] == 0
    stop_ends()
    assert "drain: 20 of 20 hosts ok" in summary("drain") and named() == set(), summary("drain")
    nixio.succeed("systemctl start postgresql.service")
    until("all run", all_of(clients, run), UNDRAIN)
    until("the application has its session", lambda: sessions(nixio) == 1, UNDRAIN)

with subtest("one hangs, one has another key, one is off: the seventeen others are told at the same time, too"):
    until("all have been told", lambda: "undrain: 20 of 20 hosts ok" in summary("undrain"), UNDRAIN)
    other_key.succeed(
        f"cp {KEY} /run/right-key",
        f"echo another-key-of-more-than-thirty-two-characters >{KEY}",
        "systemctl restart io-guardian.service",
    )
    hung.freeze()
    off.crash()
    hold_dependents(sound, True)
    before = time.monotonic()
    stop_begins()
    until("the others have begun to stop", all_of(sound, told_to_stop), 35)
    assert is_active(nixio, "postgresql.service")
    hold_dependents(sound, False)
    until("the others rest", all_of(sound, rest), 45)
    print(f"the others rested after {time.monotonic() - before:.1f} s")
    # It waits for the one that hangs, and no longer than was promised.
    until("PostgreSQL begins to stop", stopping, DRAIN - (time.monotonic() - before))
    print(f"PostgreSQL began to stop after {time.monotonic() - before:.1f} s")
    assert all_of(sound, rest)()
    assert run(other_key)
    assert sessions_at_stop(nixio)[-1] == 0, sessions_at_stop(nixio)
    stop_ends()

with subtest("exactly these three are named"):
    assert named() == {hung.name, other_key.name, off.name}
    assert "drain: 17 of 20 hosts ok, 3 failed" in summary("drain"), summary("drain")

with subtest("the databases are back: the others run within 30 s, and wait for none of the three"):
    before = time.monotonic()
    nixio.succeed("systemctl start --no-block postgresql.service")
    until("the others run", all_of(sound, run), UNDRAIN)
    print(f"the others ran after {time.monotonic() - before:.1f} s")

with subtest("the three are mended: all twenty run"):
    other_key.succeed(f"cp /run/right-key {KEY}", "systemctl restart io-guardian.service")
    hung.thaw()
    off.start()
    until("all run", all_of(clients, run), BOOT)
    until("the coordinator has told all that it could", lambda: is_active(nixio, COORDINATOR), 10 * UNDRAIN)

with subtest("and the next drain has them all, and the undrain after it brings them all back"):
    named()
    # It has booted: nothing of what was in /run is there.
    remember(off, "io-databases.target", *DEPENDENTS[off.name])
    all_rest_first()
    assert named() == set()
    long_ago()
    nixio.succeed("systemctl start postgresql.service")
    until("all run", all_of(clients, run), UNDRAIN)
    until("the application has its session", lambda: sessions(nixio) == 1, UNDRAIN)
