# A database is killed, not stopped: its dependents are told, and run again on new connections once it answers.

# Told to end by the crash that came while it waited.
EXPECTED_ERRORS = [
    "^nixio: .*told to end while it waited for the databases to be steady",
    f"^nixio: {COORDINATOR}: Failed with result 'exit-code'",
]

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

with subtest("PostgreSQL crashes again and again: the undrain waits, and so do the guardians"):
    # Down for long enough that each guardian has seen it.
    put(nixio, "/run/systemd/system/postgresql.service.d/50-slow.conf", "[Service]\nRestartSec=4s")
    nixio.succeed("systemctl daemon-reload")
    kill = "kill -KILL $(systemctl show -P MainPID postgresql.service)"

    def waits() -> int:
        return len(coordinator_said("for the databases to be steady"))

    crashes = 0
    while not waits():
        crashes += 1
        assert crashes <= 4, "the fifth undrain within ten minutes waits"
        undrains = told("undrain")
        nixio.succeed(kill)
        until("the fleet is undrained, or that waits", lambda: told("undrain") > undrains or waits() > 0, DRAIN)
    stays("drained while it waits", lambda: rest(app1) and told("undrain") == undrains, 8)
    nixio.succeed(kill)
    until("it waits again", lambda: waits() == 2, DRAIN)
    stays("drained", lambda: rest(app1) and told("undrain") == undrains, 8)
    until("all dependents run", all_run, UNDRAIN)

with subtest("one session is open, and nothing has failed"):
    assert sessions(nixio) == 1, sessions(nixio)
    for host in (app1, app2):
        host.fail("systemctl --failed --no-legend --plain list-units 'io-*' 'wait-for-*' | grep .")
