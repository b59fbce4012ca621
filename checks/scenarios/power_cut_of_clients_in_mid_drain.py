# Two hosts lose their power in the middle of their drain, and one is back at once: PostgreSQL waits no longer than is promised.

EXPECTED_ERRORS = ["^nixio: host has failed host=app[12]:9876 result=(timed-out|unreachable|refused)"]



def failed() -> set[str]:
    """Whom the coordinator names."""
    lines = coordinator_said("host has failed")
    return {name for name in ("app1", "app2") if any(f"host={name}:" in line for line in lines)}


started()
nixio.wait_for_unit(COORDINATOR, timeout=60)
first = app2.succeed(BOOT_ID)
hold_the_stop(app1, "myapp.service")
hold_the_stop(app2, "worker.service")

with subtest("the drain is under way on both hosts, and both lose their power"):
    begun = time.monotonic()
    begin_a_held_stop()
    until("the worker is stopping", lambda: state(app2, "worker.service") == "deactivating", 30)
    app1.crash()
    app2.crash()
    app2.start()

with subtest("PostgreSQL stops in bounded time; who is away is named, and so is who runs"):
    until("PostgreSQL is stopped", lambda: state(nixio, "postgresql.service") == "inactive", DRAIN - (time.monotonic() - begun))
    print(f"stopped after {time.monotonic() - begun:.1f} s; named are {failed()}")
    assert app2.succeed(BOOT_ID) != first
    assert "app1" in failed()
    assert "app2" in failed() or rest(app2)

with subtest("the other one is back while the databases are away: it waits"):
    app1.start()
    app1.wait_for_unit("multi-user.target", timeout=BOOT)
    until("the wait has begun", lambda: state(app1, "wait-for-io-databases.service") == "activating", 60)
    stays("nothing has run", lambda: never_ran(app1, "myapp.service") and state(app1, "io-databases.target") == "inactive", 5)

with subtest("the database is back, and everything runs"):
    nixio.succeed("systemctl start postgresql.service")
    until("all dependents run", all_run, 2 * UNDRAIN)
