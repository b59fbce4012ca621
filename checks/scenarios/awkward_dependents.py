# Dependents that are hard to stop: a drain stops them all in order, names those that failed at it, and admits what it left.

import re

EXPECTED_ERRORS = [
    "^nixio: host has failed host=app2:9876 result=failed .*processes of them still run: leaky.service",
    "^app2: command failed action=drain .*processes of them still run: leaky.service",
]

UNITS = "/run/systemd/system"
GUARDIAN = "io-guardian.service"
COUNTS = "/run/redis-sessions-at-stop"
# NixOS' units have one, and those that are written here have not.
PATH = app2.succeed("printenv PATH").strip()

# Each dependent has a session in Redis, as long as a process of it lives.
SESSION = r"""
exec 9<>/dev/tcp/nixio/6379
printf 'AUTH %s\r\nCLIENT SETNAME awkward-%s\r\n' "$(cat /run/secrets/REDIS/PASSWORD)" "${0##*/}" >&9
"""
# Again: a stop may end what it waits for before it is told itself.
REST = "while true; do sleep infinity & wait; done\n"

# The [Unit] section, the [Service] section, and the program.
SERVICES = {
    "stubborn": ("", "TimeoutStopSec=2s", "trap '' TERM" + SESSION + REST),
    "sulking": ("", "TimeoutStopSec=20s", "trap 'exit 1' TERM" + SESSION + REST),
    "unwell": ("", "TimeoutStopSec=20s\nExecStop=/bin/sh -c 'exit 3'", SESSION + REST),
    # It has run, and what it has left runs on: in its control group.
    "once": ("", "TimeoutStopSec=20s\nType=oneshot\nRemainAfterExit=yes", SESSION + "sleep infinity &\n"),
    # Slow, so that an order which is only luck does not hold: the one to start, the other to stop.
    "first": ("", "TimeoutStopSec=20s\nExecStartPre=/usr/bin/env sleep 1", SESSION + REST),
    "second": (
        "Requires=first.service\nAfter=first.service",
        "TimeoutStopSec=20s",
        "trap 'sleep 1; exit 0' TERM" + SESSION + REST,
    ),
    # One for each connection, for as long as it lasts.
    "chat@": ("After=io-databases.target", "TimeoutStopSec=20s", SESSION + "cat <&3\n"),
    "talk": ("", "TimeoutStopSec=20s", "echo started >>/run/talk-starts\ntrap 'sleep 1; exit 0' TERM" + SESSION + REST),
}
UPHELD = ["stubborn.service", "sulking.service", "unwell.service", "first.service", "second.service"]
WANTED = ["once.service", "talk.socket", "chat.socket"]
# A connection starts it, and nothing else.
ACTIVATED = ["talk.service"]
FAIL = {"stubborn.service": "timeout", "sulking.service": "exit-code", "unwell.service": "exit-code"}
# A unit's session goes with its last process.
SESSIONS_OF = {"awkward-" + name.rstrip("@") for name in SERVICES}


def dependent(name: str, more: str, service: str, program: str) -> None:
    """A service with the ties that the NixOS modules render: here the link in its folder."""
    program_file = f"/run/awkward/{name.rstrip('@')}"
    put(app2, program_file, program)
    put(
        app2,
        f"{UNITS}/{name}.service",
        f"[Unit]\nStartLimitIntervalSec=0\n{more}\n"
        f"[Service]\nEnvironment=PATH={PATH}\nExecStart=/usr/bin/env bash {program_file}\n{service}",
    )
    tie(f"{name}.service")


def tie(unit: str) -> None:
    app2.succeed(f"mkdir -p {UNITS}/{unit}.requires", f"ln -sf ../io-databases.target {UNITS}/{unit}.requires/")


def target(upheld: list[str], wanted: list[str], activated: list[str]) -> None:
    """The ties in the target."""
    names = " ".join([*upheld, *wanted, *activated])
    put(
        app2,
        f"{UNITS}/io-databases.target.d/50-awkward.conf",
        f"[Unit]\nBefore={names}\nUpholds={' '.join(upheld)}\nWants={' '.join(wanted)}",
    )
    remember(app2, "io-databases.target", *upheld, *wanted, *activated)


def names_at_redis() -> set[str]:
    return set(nixio.succeed("bash /run/redis-sessions").split())


def at_stop() -> list[set[str]]:
    """The names of the sessions that Redis had when each of its stops began."""
    return [set(line.split()) for line in nixio.succeed(f"cat {COUNTS}").splitlines()]


def answer(action: str) -> str:
    """What the guardian has answered to the last one."""
    lines = app2.succeed(f"journalctl -b -o cat -u {GUARDIAN} | grep -a 'command .*action={action} why='")
    return lines.splitlines()[-1]


def failed(said: str) -> dict[str, str]:
    found = re.search("stopped, but failed: ([^;\"]*)", said)
    return dict(re.findall(r"(\S+) \(([^)]*)\)", found.group(1))) if found else {}


def begun(unit: str) -> int:
    return number(app2, unit, "InactiveExitTimestampMonotonic")


def told_to_stop(unit: str) -> int:
    return number(app2, unit, "ActiveExitTimestampMonotonic")


def down(unit: str) -> int:
    return number(app2, unit, "InactiveEnterTimestampMonotonic")


def knock() -> bool:
    code, _ = app2.execute("timeout 5 bash -c '</dev/tcp/127.0.0.1/7777' 2>/dev/null")
    return code == 0


def chats() -> int:
    """The instances that run, or stop."""
    return int(app2.succeed("systemctl list-units --plain --no-legend --state=active,activating,deactivating 'chat@*' | wc -l"))


def starts_of_talk() -> int:
    return int(app2.succeed("wc -l </run/talk-starts"))


started()
put(
    nixio,
    "/run/redis-sessions",
    r"""
exec 3<>/dev/tcp/localhost/6379
printf 'AUTH %s\r\nCLIENT LIST\r\nQUIT\r\n' "$(cat /run/secrets/REDIS/PASSWORD)" >&3
grep -ao 'name=awkward-[a-z]*' <&3 | cut -d= -f2 | sort | tr '\n' ' '
echo
""",
)
put(
    nixio,
    f"{UNITS}/redis.service.d/50-watch.conf",
    f"[Service]\nExecStop=-+/bin/sh -c 'export PATH={nixio.succeed('printenv PATH').strip()}; bash /run/redis-sessions >>{COUNTS}'",
)
nixio.succeed("systemctl daemon-reload")

with subtest("the dependents are started with the target, each has its session"):
    put(app2, f"{UNITS}/talk.socket", "[Socket]\nListenStream=127.0.0.1:7777")
    put(app2, f"{UNITS}/chat.socket", "[Socket]\nListenStream=127.0.0.1:7778\nAccept=yes")
    tie("talk.socket")
    tie("chat.socket")
    app2.succeed("touch /run/talk-starts")
    for each, (more, service, program) in SERVICES.items():
        dependent(each, more, service, program)
    target(UPHELD, WANTED, ACTIVATED)
    DEPENDENTS["app2"] += [*UPHELD, *WANTED]
    app2.succeed("systemctl start io-databases.target")
    until("all dependents run", all_run, UNDRAIN)
    assert starts_of_talk() == 0 and not is_active(app2, "talk.service")
    assert knock()
    until("the connection has started its service", lambda: is_active(app2, "talk.service"), 10)
    # From here on, without a pause: one comes and goes, and one stays for as long as it may.
    put(
        app2,
        f"{UNITS}/knocker.service",
        f"[Service]\nEnvironment=PATH={PATH}\n"
        "ExecStart=/usr/bin/env bash -c 'while sleep 0.05; do timeout 1 bash -c \"</dev/tcp/127.0.0.1/7777\" 2>/dev/null; done'",
    )
    put(
        app2,
        f"{UNITS}/caller.service",
        f"[Unit]\nStartLimitIntervalSec=0\n[Service]\nEnvironment=PATH={PATH}\nRestart=always\nRestartSec=100ms\n"
        "ExecStart=/usr/bin/env bash -c 'exec 3<>/dev/tcp/127.0.0.1/7778; cat <&3'",
    )
    app2.succeed("systemctl daemon-reload", "systemctl start knocker.service caller.service")
    until("each has a session", lambda: names_at_redis() == SESSIONS_OF, 10)

with subtest("a stop of Redis waits for all of them: none has a session when it begins, none has a process when it is over"):
    nixio.succeed("systemctl stop redis.service", timeout=DRAIN + 30)
    assert at_stop() == [set()], at_stop()
    assert rest(app1) and rest(app2)
    assert state(app2, "talk.service") == "inactive" and processes(app2, "talk.service") == 0 and chats() == 0
    assert told("drain") == 1, told("drain")

with subtest("the answer is ok, and names exactly those that failed, and why"):
    said = answer("drain")
    print(said)
    assert failed(said) == FAIL, said
    assert "still run" not in said and "still not stopped" not in said, said
    lines = coordinator_said("^app2:9876  ok ")
    assert dict(re.findall(r"(\S+) failed \(([^)]*)\)", lines[-1].replace("[", " "))) == FAIL, lines[-1]
    for unit in [*UPHELD, *WANTED, *ACTIVATED]:
        assert state(app2, unit) == ("failed" if unit in FAIL else "inactive"), unit

with subtest("who needs another one has stopped before it, and the target after all"):
    assert 0 < down("second.service") <= told_to_stop("first.service"), (down("second.service"), told_to_stop("first.service"))
    for unit in [*UPHELD, *WANTED, *ACTIVATED]:
        assert 0 < down(unit) <= down("io-databases.target"), unit

with subtest("while it is drained a connection starts nothing"):
    count = starts_of_talk()
    stays("nobody listens", lambda: not knock() and starts_of_talk() == count and chats() == 0, 5)
    assert rest(app2) and not is_active(app2, "talk.service") and is_active(app2, "knocker.service")

with subtest("Redis is back: all are started, the target before them, and in their order"):
    nixio.succeed("systemctl start redis.service")
    until("all dependents run", all_run, UNDRAIN)
    for unit in [*UPHELD, *WANTED]:
        assert 0 < up_since(app2, "io-databases.target") <= begun(unit), unit
    assert 0 < up_since(app2, "first.service") <= begun("second.service"), (up_since(app2, "first.service"), begun("second.service"))
    until("a connection has started its service", lambda: is_active(app2, "talk.service"), 10)
    until("each has a session", lambda: names_at_redis() == SESSIONS_OF, 10)

with subtest("one of which a process stays is an error that names it, and Redis has that session when its stop begins"):
    dependent("leaky", "", "TimeoutStopSec=20s\nKillMode=process", SESSION + REST)
    target([*UPHELD, "leaky.service"], WANTED, ACTIVATED)
    app2.succeed("systemctl start io-databases.target")
    until("it runs", lambda: is_active(app2, "leaky.service") and "awkward-leaky" in names_at_redis(), 30)
    nixio.succeed("systemctl stop redis.service", timeout=DRAIN + 30)
    assert at_stop() == [set(), {"awkward-leaky"}], at_stop()
    said = answer("drain")
    print(said)
    assert failed(said) == FAIL, said
    left = processes(app2, "leaky.service")
    assert left == 1 and "still run: leaky.service (1 left)" in said, (left, said)
    assert rest(app2)
    assert coordinator_said("host has failed host=app2:9876 .*leaky.service (1 left)")

with subtest("with its KillMode= mended the next drain leaves nothing, not even what was left before"):
    nixio.succeed("systemctl start redis.service")
    DEPENDENTS["app2"].append("leaky.service")
    until("all dependents run", all_run, UNDRAIN)
    app2.succeed(f"sed -i s/KillMode=process/KillMode=control-group/ {UNITS}/leaky.service", "systemctl daemon-reload")
    until("it has its session", lambda: "awkward-leaky" in names_at_redis(), 10)
    nixio.succeed("systemctl stop redis.service", timeout=DRAIN + 30)
    assert at_stop() == [set(), {"awkward-leaky"}, set()], at_stop()
    assert rest(app2) and failed(answer("drain")) == FAIL
    nixio.succeed("systemctl start redis.service")
    until("all dependents run", all_run, UNDRAIN)
