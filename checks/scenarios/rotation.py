# The fleet's key is changed under load: no command fails, no guardian restarts, a drain that was open stays open, and the old key is
# refused in the end.

import json

KEY = "/run/secrets/IO_GUARDIAN_PSK"
NEW = "a-new-key-of-more-than-thirty-two-characters"
COMMANDS = 1000
LOOPS = 4


def holds_keys(host: Host, *keys: str) -> None:
    """What is in the host's file from now on, as sops-nix would put it there."""
    lines = " ".join(keys)
    host.succeed(f"cp -p {KEY} {KEY}.new", f"printf '%s\\n' {lines} >{KEY}.new", f"mv {KEY}.new {KEY}")
    if host.name != "nixio":
        host.succeed("systemctl reload io-guardian.service")


def known() -> dict[str, list[str]]:
    """The fingerprints of the keys that each host accepts."""
    _, printed = nixio.execute(f"io-coordinator key check --hosts app1,app2 --psk-file {KEY} --output json")
    return {each["host"]: sorted(each["keys"]) for each in json.loads(printed)["hosts"]}


def commands() -> int:
    """How many have been answered."""
    return int(nixio.succeed("cat /run/load/answered-* | wc -l"))


def more() -> None:
    """A part of the load goes by."""
    before = commands()
    until("commands go on", lambda: commands() >= before + COMMANDS // 10, 60)


started()
old = nixio.succeed(f"cat {KEY}").strip()
generation = int(nixio.succeed("cat /var/lib/io-coordinator/generation")) + 1
guardians = {host.name: shown(host, "io-guardian.service", "MainPID") for host in (app1, app2)}
first = known()["app1"]
nixio.succeed(
    "mkdir -p /run/load",
    "printf '%s\\n' 'while ! test -e /run/load/stop; do' "
    f"'io-coordinator ping --hosts app1,app2 --psk-file {KEY} --fail-fast >/run/load/last-$1 2>&1' "
    "'if test $? = 0; then echo >>/run/load/answered-$1; else cat /run/load/last-$1 >>/run/load/failed; fi' done >/run/load/loop",
)

with subtest("commands are under way, and a drain is open"):
    hold_the_stop(app1, "myapp.service")
    nixio.succeed(
        f"systemd-run --setenv=PATH=$PATH --unit=open-drain -p RemainAfterExit=yes "
        f"$(command -v io-coordinator) drain --hosts app1 --psk-file {KEY} --generation {generation} --fail-fast"
    )
    until("the application is stopping", lambda: state(app1, "myapp.service") == "deactivating", 30)
    for loop in range(LOOPS):
        nixio.succeed(f"systemd-run --setenv=PATH=$PATH --unit=load-{loop} $(command -v bash) /run/load/loop {loop}")
    more()

with subtest("the new key comes behind the old one, everywhere"):
    for host in (app1, app2, nixio):
        holds_keys(host, old, NEW)
        more()
    until("both hosts know both", lambda: all(len(keys) == 2 for keys in known().values()), 30)

with subtest("the new key is spoken, and the old one goes"):
    holds_keys(nixio, NEW, old)
    more()
    for host in (app1, app2, nixio):
        holds_keys(host, NEW)
        more()
    until("nobody knows the old one", lambda: all(keys != first and len(keys) == 1 for keys in known().values()), 30)

with subtest("of all commands none has failed"):
    until("there were enough", lambda: commands() >= COMMANDS, 120)
    nixio.succeed("touch /run/load/stop")
    nixio.fail("cat /run/load/failed")
    print(f"{commands()} commands to two hosts each")

with subtest("no guardian was restarted, and the drain is answered on the connection that it came on"):
    for host in (app1, app2):
        assert shown(host, "io-guardian.service", "MainPID") == guardians[host.name], host.name
    assert shown(nixio, "open-drain.service", "SubState") == "running"
    let_go(app1)
    until("it is answered", lambda: shown(nixio, "open-drain.service", "SubState") != "running", 30)
    assert shown(nixio, "open-drain.service", "Result") == "success"

with subtest("the journal of the host says who drained it, with which key and generation, and what came of it"):
    found = app1.succeed(
        "journalctl -b -o json -u io-guardian.service IO_GUARDIAN_ACTION=drain IO_GUARDIAN_RESULT=ok "
        f"IO_GUARDIAN_GENERATION={generation} IO_GUARDIAN_BY=v2:{first[0]}"
    ).splitlines()
    assert len(found) == 1, found
    entry = json.loads(found[0])
    assert entry["MESSAGE"].startswith("command answered action=drain peer=") and "stopped" in entry["IO_GUARDIAN_WHY"], entry

with subtest("the old key is refused"):
    code, printed = nixio.execute(
        f"echo {old} >/run/load/old; io-coordinator ping --hosts app1,app2 --psk-file /run/load/old --fail-fast 2>&1"
    )
    assert code == 1 and printed.count("result=bad-key") == 2, printed

with subtest("with the new one all goes on"):
    nixio.succeed(f"systemctl restart {COORDINATOR}")
    until("all dependents run", all_run, UNDRAIN)
