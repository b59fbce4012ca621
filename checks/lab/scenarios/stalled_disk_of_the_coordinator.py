# A coordinator whose disk stalls sends the drain all the same, and the database's stop does not wait for the disk.

EXPECTED_ERRORS = ["^nixio: cannot remember the generation: draining with one (above the last|from the clock)"]

disk = nixio.disk("/var/lib/io-coordinator")
started()
watch_the_stop(nixio)


with subtest("it stalls: both hosts are drained, and PostgreSQL stops in bounded time"):
    disk.stall()
    before = taken()
    nixio.succeed("systemctl stop --no-block postgresql.service")
    took = until("both hosts rest", lambda: rest(app1) and rest(app2), DRAIN)
    print(f"drained after {took:.1f} s")
    took += until("PostgreSQL is stopped", lambda: state(nixio, "postgresql.service") == "inactive", DRAIN - took)
    print(f"stopped after {took:.1f} s")
    assert sessions_at_stop(nixio)[-1] == 0, sessions_at_stop(nixio)
    assert taken() == before, (taken(), before)

with subtest("it goes on: the database is back, and everything runs"):
    disk.go_on()
    nixio.succeed("systemctl start postgresql.service")
    until("all dependents run", all_run, UNDRAIN)
    assert taken() > before, (taken(), before)
