# The ports of a database are closed by hand: other hosts are refused, this one is not, whoever depends on it is drained; opened by
# hand, all is as it was, and so is every rule of anybody else. Closed and opened again and again: the last of it is what holds.

EXPECTED_ERRORS = [
    # A drain, or an undrain, that the other one overtakes while hosts are being told: it says who has not answered, and was not all done.
    "^nixio: host has failed host=app[12]:9876 .* error=.interrupted before it answered. ",
    "^nixio: io-fence-(un)?drain.service: Failed with result 'exit-code'",
    # What this scenario kills.
    "^nixio: io-fence.service: (Failed with result 'signal'|Scheduled restart job)",
]


def answers(host: Host, to: str, port: int) -> bool:
    return host.execute(f"timeout 5 bash -c '</dev/tcp/{to}/{port}'")[0] == 0


def foreign() -> str:
    """All rules that are not the fence's, with their handles; nothing where there is no program to ask."""
    code, printed = nixio.execute("nft -a -s list ruleset")
    assert code in (0, 127), printed
    lines, ours = [], False
    for line in printed.splitlines():
        if line.startswith("table "):
            ours = line.startswith("table inet io_fence")
        # A comment of nft's own belongs to the table after it.
        if not ours and not line.startswith("# Warning"):
            lines.append(line)
    return "\n".join(lines)


started()
nixio.wait_for_unit("io-fence.service", timeout=60)
rules = foreign()
assert answers(app1, "nixio", 5432) and answers(app2, "nixio", 6379)

with subtest("closed by hand: other hosts are refused, this one is not, and another port is open"):
    nixio.succeed("io-fence fence --ports 5432 --reason 'a check'")
    for host in (app1, app2):
        assert not answers(host, "nixio", 5432), host.name
        assert answers(host, "nixio", 6379), host.name
    assert answers(nixio, "localhost", 5432) and query(nixio, "SELECT 1") == 1

with subtest("whoever depends on it is drained, by a unit that the fence began"):
    until("both hosts rest", lambda: rest(app1) and rest(app2), DRAIN)
    assert foreign() == rules

with subtest("it stays so, over a restart of the fence, too"):
    nixio.succeed("systemctl restart io-fence.service")
    stays("closed, and drained", lambda: not answers(app1, "nixio", 5432) and rest(app1) and rest(app2), 10)
    printed = nixio.succeed("io-fence status")
    print(printed)
    assert "a check" in printed, printed

with subtest("opened by hand: all dependents run, and nobody else's rule is another"):
    nixio.succeed("io-fence unfence --ports 5432")
    until("open", lambda: answers(app1, "nixio", 5432), 10)
    until("all dependents run", all_run, UNDRAIN)
    assert foreign() == rules

with subtest("closed, opened and closed while the units start: what is true in the end is what the fleet is in"):
    for command in ("fence --reason flaps", "unfence", "fence --reason flaps"):
        nixio.succeed(f"io-fence {command} --ports 5432", "sleep 0.2")
    until("both hosts rest", lambda: rest(app1) and rest(app2), DRAIN)

with subtest("opened, closed again while the undrain is under way, and the fence killed at once: the next one drains"):
    before = number(nixio, "io-fence.service", "MainPID")
    nixio.succeed(
        "io-fence unfence --ports 5432; until test $(systemctl show -P ActiveState io-fence-undrain.service) = activating; do :; done; "
        f"io-fence fence --reason flaps --ports 5432 && kill -KILL {before}",
        timeout=20,
    )
    until("there is another one", lambda: number(nixio, "io-fence.service", "MainPID") not in (0, before), 15)
    drained = f"_PID={number(nixio, 'io-fence.service', 'MainPID')} | grep -q '^started unit=.io-fence-drain.service'"
    until("it has drained", lambda: nixio.execute(f"journalctl -q -b -o cat {drained}")[0] == 0, 30)
    assert rest(app1) and rest(app2)

with subtest("opened: all dependents run"):
    nixio.succeed("io-fence unfence --ports 5432")
    until("all dependents run", all_run, UNDRAIN)
