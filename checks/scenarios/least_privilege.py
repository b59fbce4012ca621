# The daemons can do little: the guardian's user manages one target and no other unit, none has a capability, and systemd has
# nothing to say of their sandboxes.

TARGET = "io-databases.target"


def as_guardian(command: str) -> tuple[int, str]:
    return app2.execute(f"runuser -u io-guardian -- {command} 2>&1")


started()

with subtest("the guardian is no root, and has no capability"):
    assert shown(app2, "io-guardian.service", "User") == "io-guardian"
    status = app2.succeed(f"cat /proc/{number(app2, 'io-guardian.service', 'MainPID')}/status")
    sets = [line.split()[1] for line in status.splitlines() if line.startswith(("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"))]
    assert len(sets) == 5 and all(int(each, 16) == 0 for each in sets), sets
    assert "NoNewPrivs:\t1" in status and "Seccomp:\t2" in status, status

with subtest("its user may stop and start the target"):
    code, said = as_guardian(f"systemctl --no-ask-password stop {TARGET}")
    assert code == 0, said
    assert rest(app2)
    code, said = as_guardian(f"systemctl --no-ask-password start {TARGET}")
    assert code == 0, said
    until("all dependents run", lambda: run(app2), UNDRAIN)

with subtest("and nothing else"):
    for verb, unit in (
        ("stop", "systemd-journald.service"),
        ("stop", "dbus.service"),
        ("restart", "queue.service"),
        ("stop", "worker.service"),
        ("start", "rescue.target"),
        ("restart", TARGET),
        ("kill", TARGET),
    ):
        code, said = as_guardian(f"systemctl --no-ask-password {verb} {unit}")
        assert code != 0, (verb, unit, said)
    for command in ("systemctl --no-ask-password daemon-reload", "systemctl --no-ask-password poweroff", f"cat {AT_STOP}"):
        code, said = as_guardian(command)
        assert code != 0, (command, said)
    assert run(app2) and is_active(app2, "dbus.service")

with subtest("whoever is no member of its group cannot read the key"):
    for user in ("nobody", "io-guardian"):
        # The unit is in the group, its user is not.
        app2.fail(f"runuser -u {user} -- cat /run/secrets/IO_GUARDIAN_PSK")

with subtest("the fence is no root, has one capability, and may begin two units"):
    status = nixio.succeed(f"cat /proc/{number(nixio, 'io-fence.service', 'MainPID')}/status")
    held = {line.split()[0]: int(line.split()[1], 16) for line in status.splitlines() if line.startswith("Cap")}
    # CAP_NET_ADMIN is the twelfth.
    assert held["CapEff:"] == held["CapPrm:"] == held["CapBnd:"] == 1 << 12, held
    assert "NoNewPrivs:\t1" in status and "Seccomp:\t2" in status and "Uid:\t0" not in status, status
    for verb, unit in (("stop", "postgresql.service"), ("start", "rescue.target"), ("stop", "io-fence-drain.service"), ("stop", "io-fence.service")):
        code, said = nixio.execute(f"runuser -u io-fence -- systemctl --no-ask-password {verb} {unit} 2>&1")
        assert code != 0, (verb, unit, said)

with subtest("it passes through the databases' folders to its own, and reads nothing of theirs"):
    for folder in ("/var/lib/postgresql", "/var/lib/redis"):
        nixio.succeed(f"runuser -u io-fence -- touch {folder}/io-fence/of-its-own && rm {folder}/io-fence/of-its-own")
        for command in (f"ls {folder}", f"touch {folder}/of-theirs"):
            code, said = nixio.execute(f"runuser -u io-fence -- {command} 2>&1")
            assert code != 0, (command, said)
    nixio.fail("runuser -u io-fence -- ls /var/lib/postgresql/data")

with subtest("systemd finds little to say of the sandboxes: at most 1.5 of 10, and 2.0 where a disk must not be needed"):
    for host, unit, most in (
        (app2, "io-guardian", 15),
        (app2, "wait-for-io-databases", 15),
        (nixio, "io-database-coordinator", 15),
        (nixio, "io-coordinator-serve", 15),
        (nixio, "io-fence", 20),
        (nixio, "io-fence-drain", 20),
        (nixio, "io-fence-undrain", 20),
    ):
        printed = host.succeed(f"systemd-analyze security --no-pager --threshold={most} {unit}.service")
        print(host.name, printed.strip().splitlines()[-1])
