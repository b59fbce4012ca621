# The databases are there before the hosts that need them: these start their dependents at boot, after the wait, once.

import json


def order(host: Host) -> list[str]:
    """Units by when they were first started. The times that systemd has are of the last start, and an undrain asks again."""
    lines = host.succeed("journalctl -b -o json _PID=1 JOB_TYPE=start JOB_RESULT=done").splitlines()
    return list(dict.fromkeys(json.loads(line)["UNIT"] for line in lines))


with subtest("the primary alone: no session of myapp, and the count would see one"):
    nixio.start()
    nixio.wait_for_unit("io-databases-provision.service", timeout=BOOT)
    assert sessions(nixio) == 0, sessions(nixio)
    assert sessions_ever(nixio) == 0, sessions_ever(nixio)

with subtest("hosts that boot later start their dependents by themselves"):
    app1.start()
    app2.start()
    until("all dependents run", all_run, BOOT)
    for host in (app1, app2):
        host.wait_for_unit("multi-user.target", timeout=BOOT)

with subtest("the wait came first, the target second, the dependents third"):
    for host in (app1, app2):
        started_units = order(host)
        target = started_units.index("io-databases.target")
        assert started_units.index("wait-for-io-databases.service") < target, (host.name, started_units)
        reached = number(host, "io-databases.target", "ActiveEnterTimestampMonotonic")
        for unit in DEPENDENTS[host.name]:
            assert target < started_units.index(unit), (host.name, unit, started_units)
            begun = number(host, unit, "InactiveExitTimestampMonotonic")
            assert reached <= begun, (host.name, unit, reached, begun)

with subtest("no dependent had to be started twice"):
    for host in (app1, app2):
        for unit in DEPENDENTS[host.name]:
            if unit.endswith(".service"):
                assert number(host, unit, "NRestarts") == 0, (host.name, unit)
    # The server tells of a session a second later.
    until("one session is counted", lambda: sessions_ever(nixio) >= 1, 60)
    assert sessions_ever(nixio) == 1, sessions_ever(nixio)
