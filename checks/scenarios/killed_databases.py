# A database is killed, not stopped: its dependents are told, and run again on new connections once it answers.

started()


def restarted(what: str, command: str) -> None:
    before = {host.name: up_since(host, unit) for host, unit in ((app1, "myapp.service"), (app2, "queue.service"))}
    drains, undrains = told("drain"), told("undrain")
    nixio.succeed(command)
    took = until("told to stop and to start", lambda: told("drain") > drains and told("undrain") > undrains, DRAIN)
    until("all dependents run", all_run, UNDRAIN)
    print(f"{what}: undrained after {took:.1f} s")
    assert up_since(app1, "myapp.service") > before["app1"]
    assert up_since(app2, "queue.service") > before["app2"]


with subtest("the boot's undrain is over"):
    nixio.wait_for_unit(COORDINATOR, timeout=60)

with subtest("PostgreSQL is killed, and comes back by itself"):
    restarted("PostgreSQL", "kill -KILL $(systemctl show -P MainPID postgresql.service)")

with subtest("Redis is killed, and is started again"):
    restarted(
        "Redis",
        "systemctl kill --signal=KILL redis.service; "
        "until test \"$(systemctl show -P ActiveState redis.service)\" != active; do sleep 0.1; done; "
        "systemctl start redis.service",
    )

with subtest("one session is open, and nothing has failed"):
    assert sessions(nixio) == 1, sessions(nixio)
    for host in (app1, app2):
        host.fail("systemctl --failed --no-legend --plain list-units 'io-*' 'wait-for-*' | grep .")
