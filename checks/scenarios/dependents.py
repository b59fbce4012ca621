# What it means to depend: to come back when killed, to stop, start and restart with the target, and to be started by nothing else.

TARGET = "io-databases.target"

started()
# At the primary's very first boot its server answers before the password is set: then the application was refused once.
others_pid = number(app1, "myapp.service", "MainPID")


def report_lines() -> int:
    """What the journal has of the report: systemd forgets the times of a unit that rests and that nobody refers to."""
    return int(app2.succeed("journalctl -b -o cat -u report.service | wc -l"))


# Each second, and not each ten minutes.
app2.succeed(
    "mkdir -p /run/systemd/system/report.timer.d",
    "printf '[Timer]\\nOnCalendar=\\nOnCalendar=*:*:*\\nAccuracySec=100ms\\n' "
    ">/run/systemd/system/report.timer.d/50-often.conf",
    "systemctl daemon-reload",
    "systemctl restart report.timer",
)

with subtest("a dependent that is killed comes back, although nothing in its unit says so"):
    assert shown(app2, "queue.service", "Restart") == "no"
    pid = number(app2, "queue.service", "MainPID")
    app2.succeed(f"kill -KILL {pid}")
    until("queue runs again", lambda: number(app2, "queue.service", "MainPID") not in (0, pid), 10)

with subtest("undrained, the timer fires"):
    last = report_lines()
    until("the report ran", lambda: report_lines() > last, 30)

with subtest("when the target stops, all stop"):
    assert run(app2) and processes(app2, "worker.service") > 0
    app2.succeed(f"systemctl stop {TARGET}")
    # Not later: the stop of the target is over when theirs are.
    assert rest(app2)

with subtest("drained, the timer does not fire"):
    # One that was under way when the target stopped has failed.
    until("no report is under way", lambda: state(app2, "report.service") in ("inactive", "failed"), 10)
    last = report_lines()
    stays("no report", lambda: report_lines() == last and state(app2, "report.timer") == "inactive", 5)

with subtest("a switch starts targets that are wanted: on a drained host nothing comes of it"):
    app2.succeed("systemctl daemon-reload", "systemctl start multi-user.target timers.target sockets.target")
    stays("drained", lambda: rest(app2), 5)

with subtest("when the target starts, all start"):
    app2.succeed(f"systemctl start {TARGET}")
    until("all dependents run", lambda: run(app2), 10)

with subtest("when the target restarts, all restart"):
    before = {unit: up_since(app2, unit) for unit in DEPENDENTS["app2"]}
    app2.succeed(f"systemctl restart {TARGET}")
    until("all dependents run", lambda: run(app2), 10)
    for unit, then in before.items():
        assert up_since(app2, unit) > then, unit

with subtest("a dependent that is restarted with a new file runs the new one: what a deployment does"):
    app2.succeed(
        "mkdir -p /run/systemd/system/queue.service.d",
        "printf '[Service]\\nEnvironment=EDITION=second\\n' >/run/systemd/system/queue.service.d/50-new.conf",
        "systemctl daemon-reload",
        "systemctl restart queue.service",
    )
    # A service of Type=simple counts as started before its program is: until then its environment is systemd's.
    app2.wait_until_succeeds("tr '\\0' '\\n' </proc/$(systemctl show -P MainPID queue.service)/environ | grep -x EDITION=second")
    assert run(app2)

with subtest("the other host was not touched by any of this"):
    assert run(app1)
    assert number(app1, "myapp.service", "MainPID") == others_pid > 0 and sessions(nixio) == 1
