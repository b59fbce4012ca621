# The host of the databases shuts down, or loses its power, while a dependent holds the drain: who waits and who runs again.

# Seconds that a dependent may take to stop, where it is not let go.
HELD = 12

started()
watch_the_stop(nixio)


def serves() -> bool:
    """PostgreSQL takes connections: asked from outside, because a host that shuts down may take no commands."""
    code, _ = app1.execute("timeout 5 bash -c '</dev/tcp/nixio/5432'")
    return code == 0


with subtest("a shutdown begins with a drain, and waits for the dependent that holds it"):
    hold_the_stop(app1, "myapp.service")
    held = processes(app1, "myapp.service")
    nixio.succeed("systemctl poweroff --no-block")
    until("the application is stopping", lambda: state(app1, "myapp.service") == "deactivating", 30)
    until("the other host rests", lambda: rest(app2), 30)
    stays("PostgreSQL serves, and the application runs", lambda: serves() and processes(app1, "myapp.service") >= held > 0, 5)

with subtest("the dependent has stopped: the shutdown goes on, and is over"):
    let_go(app1)
    begun = time.monotonic()
    nixio.wait_for_shutdown()
    took = time.monotonic() - begun
    print(f"off {took:.1f} s after the application was let go")
    assert took < DRAIN, took
    for host in (app1, app2):
        stays(f"{host.name} rests", lambda: rest(host), 3)

with subtest("it comes back, everything runs, and no session was left when PostgreSQL's stop began"):
    nixio.start()
    nixio.wait_for_unit("postgresql.service", timeout=BOOT)
    until("all dependents run", all_run, UNDRAIN)
    assert sessions_at_stop(nixio) == [0], sessions_at_stop(nixio)

with subtest("a dependent that does not end holds the shutdown until it is killed, and no longer"):
    # By its TimeoutStopSec=, which is shorter than a drain waits.
    hold_the_stop(app1, "myapp.service", HELD)
    watch_the_stop(nixio)
    begun = time.monotonic()
    nixio.shutdown()
    took = time.monotonic() - begun
    print(f"off after {took:.1f} s")
    assert HELD <= took < DRAIN, took
    assert rest(app1) and rest(app2)
    nixio.start()
    nixio.wait_for_unit("postgresql.service", timeout=BOOT)
    until("all dependents run", all_run, UNDRAIN)
    assert sessions_at_stop(nixio) == [0], sessions_at_stop(nixio)

with subtest("its power is cut in the middle of a drain: what was begun is ended"):
    hold_the_stop(app1, "myapp.service")
    nixio.wait_for_unit(COORDINATOR, timeout=60)
    begin_a_held_stop()
    nixio.crash()
    stays("it goes on to stop", lambda: state(app1, "myapp.service") == "deactivating", 3)
    let_go(app1)
    for host in (app1, app2):
        until(f"{host.name} rests", lambda: rest(host), DRAIN)
        stays(f"{host.name} rests", lambda: rest(host), 3)

with subtest("it comes back, and everything runs"):
    nixio.start()
    nixio.wait_for_unit("postgresql.service", timeout=BOOT)
    until("all dependents run", all_run, 2 * UNDRAIN)
    nixio.wait_for_unit(COORDINATOR, timeout=60)

with subtest("its power is cut, and it comes back while the dependent still stops: everything runs"):
    hold_the_stop(app1, "myapp.service")
    begin_a_held_stop()
    nixio.crash()
    nixio.start()
    nixio.wait_for_unit("postgresql.service", timeout=BOOT)
    until("the undrain has come", lambda: app1.execute("journalctl -b -o cat -u io-guardian.service | grep -a received | tail -n 1 | grep -q action=undrain")[0] == 0, 60)
    let_go(app1)
    until("all dependents run", all_run, 2 * UNDRAIN)
