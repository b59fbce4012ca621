# A guardian is replaced by a new one in the middle of a drain, as a deployment does: PostgreSQL waits, and the host stays drained.

GUARDIAN = "io-guardian.service"
WAIT = "wait-for-io-databases.service"
NEW = "/var/lib/upgraded/io-guardian"


def program(host: Host) -> str:
    """The file that the guardian runs from."""
    _, file = host.execute(f"readlink /proc/$(systemctl show -P MainPID {GUARDIAN})/exe")
    return file.strip()


def pid(host: Host) -> int:
    return number(host, GUARDIAN, "MainPID")


def is_new(host: Host) -> bool:
    return is_active(host, GUARDIAN) and program(host) == NEW


def replace(host: Host, edition: str) -> None:
    """What a switch does: the unit's file changes, and then it is restarted."""
    host.succeed(
        f"mkdir -p /run/systemd/system/{GUARDIAN}.d",
        f"printf '[Service]\\nEnvironment=EDITION={edition}\\nExecStart=\\n' >/run/systemd/system/{GUARDIAN}.d/50-new.conf",
        f"systemctl cat {GUARDIAN} | sed -n 's|^ExecStart=\"[^\"]*\"|ExecStart=\"{NEW}\"|p' | tail -n 1 >>/run/systemd/system/{GUARDIAN}.d/50-new.conf",
        "systemctl daemon-reload",
        f"systemctl restart --no-block {GUARDIAN}",
    )


started()
watch_the_stop(nixio)
nixio.wait_for_unit(COORDINATOR, timeout=60)
app1.succeed(f"install -D -m 0755 $(readlink -f /proc/$(systemctl show -P MainPID {GUARDIAN})/exe) {NEW}")
hold_the_stop(app1, "myapp.service")

with subtest("a drain is under way: the application stops, PostgreSQL still runs"):
    begin_a_held_stop()

with subtest("the guardian is replaced: PostgreSQL goes on to wait"):
    before = pid(app1)
    assert program(app1) != NEW
    replace(app1, "first")
    until("the restart has begun", lambda: state(app1, GUARDIAN) == "deactivating" or pid(app1) != before, 30)
    stays("nothing is over", lambda: is_held() and sessions(nixio) == 1, 5)

with subtest("the application has stopped, then PostgreSQL does, with no session left"):
    let_go(app1)
    until("PostgreSQL is stopped", lambda: state(nixio, "postgresql.service") == "inactive", DRAIN)
    assert sessions_at_stop(nixio) == [0], sessions_at_stop(nixio)
    assert rest(app1) and rest(app2)
    assert told("drain") == 1, told("drain")
    drained_first(nixio, "postgresql.service")

with subtest("the new guardian runs, and knows of the drain"):
    until("another guardian runs, from the new file", lambda: is_new(app1) and pid(app1) != before, 60)

with subtest("a switch on a drained host leaves it drained"):
    before = pid(app1)
    replace(app1, "second")
    until("it is yet another one", lambda: is_new(app1) and pid(app1) not in (0, before), 60)
    # As NixOS does at its end: what these want is started.
    app1.succeed("systemctl start multi-user.target timers.target sockets.target")
    stays("drained, and nothing waits to start", lambda: rest(app1) and state(app1, WAIT) == "inactive", 10)

with subtest("an undrain that is older than the drain is stale for the new guardian, too"):
    generation = int(nixio.succeed("cat /var/lib/io-coordinator/generation"))
    code, said = app2.execute(
        f"io-coordinator undrain --hosts app1 --psk-file /run/secrets/IO_GUARDIAN_PSK --fail-fast --generation {generation - 1} 2>&1"
    )
    assert code == 1 and "stale" in said, (code, said)
    assert rest(app1)

with subtest("the database is back, and everything runs"):
    nixio.succeed("systemctl start postgresql.service")
    until("all dependents run", all_run, UNDRAIN)

with subtest("a switch on a host that runs touches no dependent"):
    application, before = number(app1, "myapp.service", "MainPID"), pid(app1)
    replace(app1, "third")
    until("it is yet another one", lambda: is_new(app1) and pid(app1) not in (0, before), 60)
    stays("the application is the same", lambda: number(app1, "myapp.service", "MainPID") == application > 0, 3)
    assert sessions(nixio) == 1
