# A dependent dies while its host is undrained a second time, as after a power cut of the primary: it comes back like at any other time.

TARGET = "io-databases.target"
WAIT = "wait-for-io-databases.service"

started()
nixio.wait_for_unit(COORDINATOR, timeout=60)
assert shown(app2, "queue.service", "Restart") == "no"

with subtest("a host that runs is undrained again: its wait asks the databases, and is held here"):
    app2.succeed(
        f"mkdir -p /run/systemd/system/{WAIT}.d",
        f"printf '[Service]\\nExecStartPre=/bin/sh -c \"until test -e /run/answers; do sleep 0.1; done\"\\n' "
        f">/run/systemd/system/{WAIT}.d/50-held.conf",
        "systemctl daemon-reload",
    )
    app1.succeed(
        "systemd-run --unit=undrain -p RemainAfterExit=yes "
        "io-coordinator undrain --hosts app2 --psk-file /run/secrets/IO_GUARDIAN_PSK --fail-fast"
    )
    until("the wait has begun", lambda: state(app2, WAIT) == "activating", 30)
    assert run(app2)

with subtest("a dependent dies in the meantime"):
    pid = number(app2, "queue.service", "MainPID")
    app2.succeed(f"kill -KILL {pid}")
    until("it is gone", lambda: number(app2, "queue.service", "MainPID") != pid, 10)

with subtest("the databases answer, and it runs again"):
    app2.succeed("touch /run/answers")
    until("the undrain is answered", lambda: shown(app1, "undrain.service", "SubState") != "running", 60)
    print(app1.succeed("journalctl -b -o cat -u undrain.service"))
    until("the dependent runs again", lambda: run(app2), UNDRAIN)
