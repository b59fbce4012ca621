# Hosts that are not updated yet: a coordinator and a guardian that know only the first protocol, beside ours, in each combination.

import json

EXPECTED_ERRORS = [
    "^nixio: host has failed host=app1:9876 result=failed .*io-databases.target",
    # It is made to fail.
    "^app1: Failed to start wait-for-io-databases.service",
    "^app1: wait-for-io-databases.service: Failed with result 'exit-code'",
]

OLD = "/usr/local/lib/old"
KEY = "/run/secrets/IO_GUARDIAN_PSK"
UNITS = "/run/systemd/system"


def old_coordinator(yes: bool) -> None:
    """Whether the old program is what the coordinator's unit runs."""
    folder = f"{UNITS}/{COORDINATOR}.d"
    line = f"/usr/bin/python3 {OLD}/client"
    lines = [
        "[Service]",
        "ExecStart=",
        f"ExecStart={line} undrain {KEY} app1 app2",
        "ExecStopPost=",
        f"ExecStop={line} drain {KEY} app1 app2",
    ]
    text = " ".join(f'"{each}"' for each in lines)
    nixio.succeed(
        f"mkdir -p {folder}",
        f"printf '%s\\n' {text} >{folder}/50-old.conf" if yes else f"rm {folder}/50-old.conf",
        "systemctl daemon-reload",
    )


def old_guardian(yes: bool) -> None:
    """Whether app1 has the old one."""
    stops, starts = ("io-guardian", "old-guardian") if yes else ("old-guardian", "io-guardian")
    app1.succeed(f"systemctl stop {stops}.service", f"systemctl start {starts}.service")
    app1.wait_for_open_port(9876, timeout=30)


def heard(host: Host) -> list[str]:
    """The commands that its old guardian has received."""
    lines = host.succeed("journalctl -b -o cat -u old-guardian.service | grep -a '^{' || true").splitlines()
    return [json.loads(line)["action"] for line in lines]


def answers() -> dict[str, dict[str, object]]:
    """What the old coordinator has been answered last, by host."""
    lines = nixio.succeed(f"journalctl -b -o cat -u {COORDINATOR} | grep -aE '^app[12] '").splitlines()
    return {host: json.loads(text) for host, text in (line.split(" ", 1) for line in lines)}


def summary(text: str) -> str:
    return nixio.succeed(f"journalctl -b -o cat -u {COORDINATOR} | grep -a '^{text}' | tail -n 1")


def stop_is_held() -> None:
    """A stop of PostgreSQL waits for the application, which takes as long as we want. No session is left when it goes."""
    count = len(sessions_at_stop(nixio))
    hold_the_stop(app1, "myapp.service")
    begin_a_held_stop()
    until("the other host rests", lambda: rest(app2), 30)
    stays("PostgreSQL waits", lambda: is_active(nixio, "postgresql.service") and sessions(nixio) == 1, 3)
    let_go(app1)
    until("PostgreSQL is stopped", lambda: state(nixio, "postgresql.service") == "inactive", DRAIN)
    assert sessions_at_stop(nixio)[count:] == [0], sessions_at_stop(nixio)
    assert rest(app1) and rest(app2)


def comes_back() -> None:
    nixio.succeed("systemctl start postgresql.service")
    until("all dependents run", all_run, UNDRAIN)


started()
watch_the_stop(nixio)
nixio.gets("tests/it/seed_client.py", f"{OLD}/client")
app1.gets("tests/it/seed_server.py", f"{OLD}/server")
app1.succeed(
    f"printf '%s\\n' [Service] 'ExecStart=/bin/sh -c \"exec python3 {OLD}/server $$(cat {KEY}) 9876 io-databases.target\"' "
    f">{UNITS}/old-guardian.service",
    "systemctl daemon-reload",
)

with subtest("as the modules have it, neither of the old ones is spoken to, and no key is sent"):
    code, printed = nixio.execute(f"python3 {OLD}/client ping {KEY} app1 app2 2>&1")
    assert code == 1 and printed.count("HTTP 426") == 2, printed
    app1.succeed("journalctl -b -u io-guardian.service | grep -a 'it speaks the plain protocol, and this guardian the second version only'")
    old_guardian(True)
    code, printed = nixio.execute(f"io-coordinator ping --hosts app1,app2 --wire v2 --psk-file {KEY} --fail-fast 2>&1")
    assert code == 1 and "the key was not sent" in printed and "ping: 1 of 2 hosts ok" in printed, printed
    assert heard(app1) == [], heard(app1)
    old_guardian(False)

with subtest("a fleet that is being updated: server.database.allowKeyInClear"):
    for each, unit in ((nixio, COORDINATOR), (app1, "io-guardian.service"), (app2, "io-guardian.service")):
        folder = f"{UNITS}/{unit}.d"
        each.succeed(
            f"mkdir -p {folder}",
            f"printf '[Service]\\nEnvironment=GUARDIAN_WIRE=auto\\n' >{folder}/40-clear.conf",
            "systemctl daemon-reload",
        )
    for each in (app1, app2):
        each.succeed("systemctl restart io-guardian.service")

with subtest("the old coordinator drains and undrains hosts with our guardian"):
    old_coordinator(True)
    # It changes hands as in an update: ours drains, the old one undrains.
    nixio.succeed(f"systemctl restart {COORDINATOR}")
    until("all dependents run", all_run, UNDRAIN)
    stop_is_held()
    for host, answer in answers().items():
        assert (answer["type"], answer["action"], answer["status"]) == ("response", "drain", "ok"), (host, answer)
    comes_back()
    until("both have answered", lambda: all(answer["action"] == "undrain" for answer in answers().values()), UNDRAIN)
    assert {host: answer["status"] for host, answer in answers().items()} == {"app1": "ok", "app2": "ok"}, answers()

with subtest("the old one in a mixed fleet: app1 has the old guardian, app2 has ours"):
    old_guardian(True)
    stop_is_held()
    assert heard(app1) == ["drain"], heard(app1)
    comes_back()
    assert heard(app1) == ["drain", "undrain"], heard(app1)

with subtest("our coordinator in that fleet: its drain waits for the old guardian, too"):
    old_coordinator(False)
    stop_is_held()
    # Once more at the end, if it took longer than a second: it does not say when it was done, so its answer may be an old one.
    drained = heard(app1)
    assert drained[2:] in (["drain"], ["drain", "drain"]), drained
    assert "drain: 2 of 2 hosts ok" in summary("drain:"), summary("drain:")
    comes_back()
    until("it is told", lambda: "undrain: 2 of 2 hosts ok" in summary("undrain:"), UNDRAIN)
    assert heard(app1) == [*drained, "undrain"], heard(app1)

with subtest("what the old guardian cannot do it says, it is named, and the others go on"):
    app1.succeed(
        f"mkdir -p {UNITS}/wait-for-io-databases.service.d",
        f"printf '[Service]\\nExecStart=\\nExecStart=/bin/false\\n' >{UNITS}/wait-for-io-databases.service.d/50-fails.conf",
        "systemctl daemon-reload",
    )
    nixio.succeed("systemctl stop postgresql.service")
    assert sessions_at_stop(nixio)[-1] == 0 and rest(app1) and rest(app2)
    nixio.succeed("systemctl start postgresql.service")
    until("the other host runs", lambda: run(app2), UNDRAIN)
    until("it is told", lambda: "undrain: 1 of 2 hosts ok, 1 failed" in summary("undrain:"), UNDRAIN)
    assert rest(app1)
    said = coordinator_said("host has failed")
    assert said and all("host=app1" in line and "host=app2" not in line for line in said), said
    app1.succeed(f"rm {UNITS}/wait-for-io-databases.service.d/50-fails.conf", "systemctl daemon-reload")

with subtest("a drained host is updated: it stays drained, and the next undrain is our guardian's"):
    nixio.succeed("systemctl stop postgresql.service")
    old_guardian(False)
    stays("it rests", lambda: rest(app1), 5)
    comes_back()
    assert heard(app1)[-1] == "drain", heard(app1)
    app1.succeed("journalctl -b -o cat -u io-guardian.service | grep -a 'command answered' | tail -n 1 | grep -a ' action=undrain '")

with subtest("no key is in a journal"):
    for each in machines:
        each.fail(f"journalctl -b | grep -aFf {KEY}")
