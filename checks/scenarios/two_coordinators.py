# Two coordinators at once: the same command is one operation, and the older of two never wins.

COMMAND = "io-coordinator {} --hosts {} --psk-file /run/secrets/IO_GUARDIAN_PSK --fail-fast --timeout 60s {}"
GENERATION = "/var/lib/io-coordinator/generation"


def tell(host: Host, action: str, to: str, more: str = "") -> tuple[int, str]:
    return host.execute(COMMAND.format(action, to, more) + " 2>&1")


started()
generation = int(nixio.succeed(f"cat {GENERATION}"))
for host in (app1, app2):
    host.succeed(
        "mkdir -p /run/systemd/system/{myapp,worker}.service.d",
        "for unit in myapp worker; do printf '[Service]\\nExecStop=/bin/sh -c \"until test -e /run/go; do sleep 0.1; done\"\\n' "
        ">/run/systemd/system/$unit.service.d/50-held.conf; done",
        "systemctl daemon-reload",
    )

with subtest("two drains at once are one, and both are told when it is over"):
    for host, number_of in ((nixio, generation + 1), (app2, generation + 2)):
        host.succeed(
            "systemd-run --unit=other-coordinator -p RemainAfterExit=yes "
            + COMMAND.format("drain", "app1", f"--generation {number_of}")
        )
    until("the application is stopping", lambda: state(app1, "myapp.service") == "deactivating", 30)
    for host in (nixio, app2):
        assert shown(host, "other-coordinator.service", "SubState") == "running", host.name
    for host in (app1, app2):
        let_go(host)
    for host in (nixio, app2):
        until("its drain is over", lambda: shown(host, "other-coordinator.service", "SubState") != "running", 30)
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
    assert int(nixio.succeed(f"cat {GENERATION}")) > generation + 2

with subtest("an undrain that comes while a drain is under way takes its place, and the drain is told so"):
    generation = int(nixio.succeed(f"cat {GENERATION}"))
    app1.succeed("rm /run/go")
    nixio.succeed(
        "systemd-run --unit=superseded -p RemainAfterExit=yes " + COMMAND.format("drain", "app1", f"--generation {generation + 1}")
    )
    until("the application is stopping", lambda: state(app1, "myapp.service") == "deactivating", 30)
    app2.succeed(
        "systemd-run --unit=superseding -p RemainAfterExit=yes " + COMMAND.format("undrain", "app1", f"--generation {generation + 2}")
    )
    until("the drain is answered", lambda: shown(nixio, "superseded.service", "SubState") != "running", 30)
    assert state(app1, "myapp.service") == "deactivating", "it was answered before the application had stopped"
    nixio.succeed("journalctl -b -o cat -u superseded.service | grep -a 'superseded: undrain came while this drain was under way'")
    let_go(app1)
    until("the undrain is answered", lambda: shown(app2, "superseding.service", "SubState") != "running", UNDRAIN)
    assert shown(app2, "superseding.service", "Result") == "success"
    until("all dependents run", all_run, UNDRAIN)
