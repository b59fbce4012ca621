# Messages are missed: the guardians see for themselves what has become of the databases. The network between them and the primary is
# pulled: nobody can be told anything, as when it loses its power, but no restart of it hides who has done what.

GRACE = 30
# A look may be under way (2 s), and a unit takes a moment to stop.
SLACK = 4


def begun(host: Host, action: str) -> int:
    """How often the guardian has begun this since the scenario's own start."""
    _, lines = host.execute(f"journalctl -b -o cat -u io-guardian --since '{since[host.name]}' | grep -ac 'command begins action={action} '")
    return int(lines.strip() or 0)


def targets_run() -> bool:
    return is_active(app1, "io-databases.target") and is_active(app2, "io-databases.target")


started()
since = {host.name: host.succeed("date '+%F %T'").strip() for host in (app1, app2)}
time.sleep(1)
first = {(host.name, action): begun(host, action) for host in (app1, app2) for action in ("drain", "undrain")}

with subtest("a blip of 20 s is ridden out"):
    nixio.block()
    # Not their applications, which may give their connections up: those are started again by themselves.
    stays("nobody is drained", targets_run, 20)
    nixio.unblock()
    stays("nor afterwards", targets_run, 15)
    for host in (app1, app2):
        assert begun(host, "drain") == first[host.name, "drain"], host.name

with subtest("a network that flaps causes at most one drain and one undrain"):
    for _ in range(12):
        nixio.block()
        time.sleep(3)
        nixio.unblock()
        time.sleep(3)
    # What comes and goes must stay for a minute until it is trusted.
    until("all dependents run", all_run, 60 + UNDRAIN)
    for host in (app1, app2):
        counts = {action: begun(host, action) - first[host.name, action] for action in ("drain", "undrain")}
        print(host.name, counts)
        assert max(counts.values()) <= 1, (host.name, counts)
    # No outage of before counts for what follows.
    stays("it is steady", targets_run, 10)

with subtest("a primary that is gone is drained for, although nobody says so"):
    before = {host.name: begun(host, "drain") for host in (app1, app2)}
    gone = time.monotonic()
    nixio.block()
    until("both rest", lambda: rest(app1) and rest(app2), GRACE + SLACK)
    took = time.monotonic() - gone
    print(f"drained {took:.1f} s after the primary was gone")
    # A last look that found it may have been up to 5 s before.
    assert took > GRACE - 7, took
    for host in (app1, app2):
        assert begun(host, "drain") == before[host.name] + 1, host.name

with subtest("and undrained when it is back, although nobody says that either"):
    back = time.monotonic()
    nixio.unblock()
    until("all dependents run", lambda: run(app1) and run(app2), 15)
    print(f"undrained {time.monotonic() - back:.1f} s after it was back")

with subtest("a client that was cut off during the undrain runs within 10 s of being reachable"):
    nixio.succeed("systemctl stop postgresql.service")
    assert rest(app1) and rest(app2)
    app1.block()
    nixio.succeed("systemctl start postgresql.service")
    until("the other one runs", lambda: run(app2), UNDRAIN)
    time.sleep(5)
    assert rest(app1)
    app1.unblock()
    took = until("it runs, too", lambda: run(app1), 10)
    print(f"ran {took:.1f} s after the link was back")

with subtest("a drain by command is not undone while the databases are merely still up"):
    app2.succeed("io-coordinator drain --hosts app1 --psk-file /run/secrets/IO_GUARDIAN_PSK --fail-fast")
    stays("it rests", lambda: rest(app1), 15)
    app1.succeed("systemctl restart io-guardian.service")
    stays("after a restart of its guardian, too", lambda: rest(app1), 15)
    app2.succeed("io-coordinator undrain --hosts app1 --psk-file /run/secrets/IO_GUARDIAN_PSK --fail-fast")
    until("all dependents run", all_run, UNDRAIN)
