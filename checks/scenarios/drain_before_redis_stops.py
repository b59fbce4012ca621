# A stop of Redis waits for the dependents of all hosts, as one of PostgreSQL does, and its start brings them back.

started()
app2.succeed(
    "mkdir -p /run/systemd/system/worker.service.d",
    "printf '[Service]\\nExecStop=/bin/sh -c \"until test -e /run/go; do sleep 0.1; done\"\\n' "
    ">/run/systemd/system/worker.service.d/50-held.conf",
    "systemctl daemon-reload",
)

with subtest("a dependent takes its time: Redis and its session stay"):
    nixio.succeed("systemctl stop --no-block redis.service")
    until("the worker is stopping", lambda: state(app2, "worker.service") == "deactivating", 30)
    pid = number(nixio, "redis.service", "MainPID")
    stays("Redis runs", lambda: is_active(nixio, "redis.service") and number(nixio, "redis.service", "MainPID") == pid, 3)

with subtest("all dependents have stopped, then Redis does"):
    app2.succeed("touch /run/go")
    until("Redis is stopped", lambda: state(nixio, "redis.service") == "inactive", DRAIN)
    assert rest(app1) and rest(app2)
    drained = number(nixio, "io-database-coordinator.service", "InactiveEnterTimestampMonotonic")
    stopping = number(nixio, "redis.service", "ActiveExitTimestampMonotonic")
    assert 0 < drained <= stopping, (drained, stopping)
    nixio.succeed("journalctl -b -o cat -u io-database-coordinator.service | grep -a '^drain: 2 of 2 hosts ok'")

with subtest("PostgreSQL was not touched, and has no session"):
    assert is_active(nixio, "postgresql.service") and sessions(nixio) == 0

with subtest("Redis is back, and everything runs"):
    nixio.succeed("systemctl start redis.service")
    until("all dependents run", all_run, UNDRAIN)
