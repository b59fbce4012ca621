# A stop of Redis waits for the dependents of all hosts, as one of PostgreSQL does, and its start brings them back.

started()
hold_the_stop(app2, "worker.service")

with subtest("a dependent takes its time: Redis and its session stay"):
    nixio.succeed("systemctl stop --no-block redis.service")
    until("the worker is stopping", lambda: state(app2, "worker.service") == "deactivating", 30)
    pid = number(nixio, "redis.service", "MainPID")
    stays("Redis runs", lambda: is_active(nixio, "redis.service") and number(nixio, "redis.service", "MainPID") == pid, 3)

with subtest("all dependents have stopped, then Redis does"):
    let_go(app2)
    until("Redis is stopped", lambda: state(nixio, "redis.service") == "inactive", DRAIN)
    assert rest(app1) and rest(app2)
    drained_first(nixio, "redis.service")
    assert told("drain") == 1, told("drain")

with subtest("PostgreSQL was not touched, and has no session"):
    assert is_active(nixio, "postgresql.service") and sessions(nixio) == 0

with subtest("Redis is back, and everything runs"):
    nixio.succeed("systemctl start redis.service")
    until("all dependents run", all_run, UNDRAIN)
