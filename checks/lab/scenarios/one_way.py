# A link that carries in one direction only. A drain that arrives and whose answer is lost is done, and told again until it is known.

EXPECTED_ERRORS = ["^nixio: host has failed host=app1:9876 result=timed-out"]

started()
watch_the_stop(nixio)

with subtest("the host hears, and is not heard: PostgreSQL stops in bounded time, and nobody else is held up"):
    nixio.hears(app1, False)
    begun = time.monotonic()
    nixio.succeed("systemctl stop postgresql.service", timeout=DRAIN + 30)
    took = time.monotonic() - begun
    print(f"stopped after {took:.1f} s")
    assert took < DRAIN, took
    assert rest(app2)
    nixio.hears(app1, True)
    nixio.succeed("systemctl start postgresql.service")
    until("all dependents run", all_run, 2 * UNDRAIN)

with subtest("the answer to a drain is lost, the link heals, and the drain is known to be done before PostgreSQL stops"):
    hold_the_stop(app1, "myapp.service")
    nixio.succeed("systemctl stop --no-block postgresql.service")
    until("the application is stopping", lambda: state(app1, "myapp.service") == "deactivating", 30)
    nixio.hears(app1, False)
    let_go(app1)
    until("the host rests", lambda: rest(app1), 30)
    stays("PostgreSQL waits for the answer", lambda: is_active(nixio, "postgresql.service"), 5)
    nixio.hears(app1, True)
    took = until("PostgreSQL is stopped", lambda: state(nixio, "postgresql.service") == "inactive", DRAIN)
    print(f"stopped {took:.1f} s after the link was whole")
    assert told("drain") == 1, told("drain")
    nixio.succeed("systemctl start postgresql.service")
    until("all dependents run", all_run, 2 * UNDRAIN)
