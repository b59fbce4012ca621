# Two coordinators at once: the same command is one operation, and the older of two never wins.

from functools import partial

# Told to the one whose drain is superseded.
EXPECTED_ERRORS = ["^nixio: host has failed host=app1 result=failed .*superseded: undrain came while this drain was under way"]

COMMAND = "io-coordinator {} --hosts {} --psk-file /run/secrets/IO_GUARDIAN_PSK --fail-fast --timeout 60s {}"


def tell(host: Host, action: str, to: str, more: str = "") -> tuple[int, str]:
    return host.execute(COMMAND.format(action, to, more) + " 2>&1")


def received(action: str, generation: int) -> bool:
    """By app1's guardian."""
    code, _ = app1.execute(
        f"journalctl -b -o cat -u io-guardian.service | grep -aq '^command received action={action} .*generation={generation}$'"
    )
    return code == 0


def under_way(host: Host, unit: str) -> bool:
    return shown(host, unit, "SubState") == "running"


started()
generation = taken()
hold_the_stop(app1, "myapp.service")

with subtest("two drains at once are one, and both are told when it is over"):
    for host, number_of in ((nixio, generation + 1), (app2, generation + 2)):
        host.succeed(
            "systemd-run --unit=other-coordinator -p RemainAfterExit=yes "
            + COMMAND.format("drain", "app1", f"--generation {number_of}")
        )
        # One after the other: the second is newer, and what is older than what has arrived is refused.
        until("it has arrived", partial(received, "drain", number_of), 30)
    until("the application is stopping", lambda: state(app1, "myapp.service") == "deactivating", 30)
    for host in (nixio, app2):
        assert under_way(host, "other-coordinator.service"), host.name
    assert state(app1, "myapp.service") == "deactivating"
    let_go(app1)
    for host in (nixio, app2):
        until("its drain is over", lambda: not under_way(host, "other-coordinator.service"), 30)
        assert shown(host, "other-coordinator.service", "Result") == "success", host.name
        print(host.succeed("journalctl -b -o cat -u other-coordinator.service"))
    assert rest(app1)

with subtest("an undrain that is older than the drain is refused, and changes nothing"):
    code, said = tell(app2, "undrain", "app1", f"--generation {generation + 1}")
    print(said)
    assert code == 1 and "stale" in said, said
    stays("drained", lambda: rest(app1), 3)

with subtest("the next one of the primary's is newer, and everything runs"):
    nixio.succeed(f"systemctl restart {COORDINATOR}")
    until("all dependents run", all_run, UNDRAIN)
    assert taken() > generation + 2

with subtest("an undrain that comes while a drain is under way takes its place, and the drain is told so"):
    generation = taken()
    hold_the_stop(app1, "myapp.service")
    nixio.succeed(
        "systemd-run --unit=superseded -p RemainAfterExit=yes " + COMMAND.format("drain", "app1", f"--generation {generation + 1}")
    )
    until("the application is stopping", lambda: state(app1, "myapp.service") == "deactivating", 30)
    assert received("drain", generation + 1) and not received("undrain", generation + 2)
    app2.succeed(
        "systemd-run --unit=superseding -p RemainAfterExit=yes " + COMMAND.format("undrain", "app1", f"--generation {generation + 2}")
    )
    until("the drain is answered", lambda: not under_way(nixio, "superseded.service"), 30)
    assert state(app1, "myapp.service") == "deactivating", "it was answered before the application had stopped"
    nixio.succeed("journalctl -b -o cat -u superseded.service | grep -a 'superseded: undrain came while this drain was under way'")
    let_go(app1)
    until("the undrain is answered", lambda: not under_way(app2, "superseding.service"), UNDRAIN)
    assert shown(app2, "superseding.service", "Result") == "success"
    until("all dependents run", all_run, UNDRAIN)

with subtest("that there are two is told, with their addresses"):
    app1.succeed("journalctl -b -o cat -u io-guardian.service | grep -a 'two coordinators command this host.* peer=.* other='")
