# Drains and undrains for as long as LAB_SOAK says, with strangers, kills and cut links: nothing grows, nothing is left behind.

import os
import statistics

EXPECTED_ERRORS = ["^app1: io-guardian.service: (Failed with result 'signal'|Scheduled restart job)"]

SECONDS = int(os.environ.get("LAB_SOAK", "45"))
# Before this a process grows to what it needs: caches, the first of each kind of connection, the allocator's arenas.
WARM_UP = max(8.0, min(60.0, SECONDS / 6))

GUARDIAN = "io-guardian.service"
KEY = "/run/secrets/IO_GUARDIAN_PSK"
TELL = "io-coordinator {} --hosts app1,app2 --psk-file " + KEY
# Nobody is connected, and all of the last cycle is over.
QUIET = 20

# By how much the median of the last quarter may be above that of the first.
#
# Descriptors, threads, units and control groups are whole things: one that is left behind in each cycle adds up to dozens. One
# more may be open at the moment of a look (a D-Bus answer, a log). Threads: those for blocking work end 10 s after their last.
# Memory is taken in pages, and freed later than it could be: 2 MiB are less than 1 KiB for each connection of half an hour, in
# which a guardian has some three thousand.
BOUNDS = {"fds": 2, "threads": 2, "rss_kib": 2048, "units": 2, "groups": 2}

LOOK = r"""
look() {
    echo "$1.fds=$(ls /proc/$2/fd | wc -l)"
    echo "$1.threads=$(ls /proc/$2/task | wc -l)"
    echo "$1.rss_kib=$(awk '/^VmRSS/ { print $2 }' /proc/$2/status)"
}
for name in io-guardian dbus; do
    pid=$(systemctl show --property=MainPID --value $name.service)
    if test "$pid" -gt 0; then look $name "$pid"; fi
done
look systemd 1
echo "host.units=$(systemctl list-units --all --no-legend --plain | wc -l)"
echo "host.groups=$(find /sys/fs/cgroup -type d | wc -l)"
"""


def connections(host: Host) -> int:
    """Those that its guardian has."""
    return int(host.succeed("ss --no-header --tcp --numeric state established state close-wait sport = :9876 | wc -l"))


def zombies(host: Host) -> int:
    return int(host.succeed("ps -eo stat= | grep -c '^Z' || true"))


def jobs(host: Host) -> str:
    return host.succeed("systemctl list-jobs --no-legend").strip()


# Who shows the fleet has a connection to each host, and keeps it.
SHOWN = 1


def quiet() -> bool:
    return all(jobs(host) == "" and connections(host) <= SHOWN and zombies(host) == 0 for host in (app1, app2)) and (
        jobs(nixio) == "" and zombies(nixio) == 0
    )


def looked(host: Host) -> dict[str, int]:
    """What its processes have now. The guardian of app1 is another one every now and then: app2's is the one that grows old."""
    found = dict(line.split("=") for line in host.succeed(LOOK).split())
    young = "io-guardian." if host is app1 else "none"
    return {f"{host.name}.{name}": int(value) for name, value in found.items() if not name.startswith(young)}


def strangers() -> None:
    """Wrong keys, connections that say nothing or nonsense, and one that is cut in the middle of a command."""
    for host in (app1, app2):
        nixio.execute(f"timeout 2 io-coordinator ping --hosts {host.name} --psk-file /run/wrong-key --timeout 1s")
        for said in ("", "GET / HTTP/1.1", "\\0\\0\\0"):
            nixio.execute(f"timeout 2 bash -c 'exec 3<>/dev/tcp/{host.name}/9876; printf \"{said}\" >&3'")
    nixio.execute("timeout --signal=KILL 0.1 " + TELL.format("drain"))


def tell(action: str) -> None:
    nixio.succeed(TELL.format(action) + " --fail-fast --timeout 60s", timeout=120)


def kill_a_guardian() -> None:
    pid = number(app1, GUARDIAN, "MainPID")
    app1.succeed(f"kill -KILL {pid}")
    until("another guardian runs", lambda: number(app1, GUARDIAN, "MainPID") not in (0, pid), 30)
    app1.wait_for_open_port(9876, timeout=30)


def cut_a_link() -> None:
    """While app2 does what the coordinator's unit has told it: its answer is sent into the void."""
    before = told("drain")
    app2.succeed(f"rm {GO}")
    nixio.succeed(f"systemctl restart --no-block {COORDINATOR}")
    until("the drain is under way", lambda: state(app2, "worker.service") == "deactivating", 30)
    app2.block()
    let_go(app2)
    until("it is done", lambda: rest(app2), 30)
    stays("the coordinator knows nothing of it", lambda: told("drain") == before and state(nixio, COORDINATOR) == "deactivating", 1)
    app2.unblock()
    until("the coordinator knows", lambda: told("drain") > before, DRAIN)


def cycle(count: int) -> None:
    strangers()
    tell("undrain")
    if count % 4 == 1:
        kill_a_guardian()
    if count % 4 == 3:
        cut_a_link()
    else:
        long_ago()
        nixio.succeed(f"systemctl restart {COORDINATOR}", timeout=300)
    until("the coordinator has told all", lambda: is_active(nixio, COORDINATOR) and jobs(nixio) == "", 120)
    until("all dependents run", all_run, 2 * UNDRAIN)


started()
nixio.succeed("echo a-wrong-key-of-more-than-thirty-two-characters >/run/wrong-key")
hold_the_stop(app2, "worker.service")
let_go(app2)
until("the fleet has been told", lambda: is_active(nixio, COORDINATOR), BOOT)
pid_of_the_old = number(app2, GUARDIAN, "MainPID")
looks: list[tuple[float, dict[str, int]]] = []
begun = time.monotonic()
cycles = 0

with subtest(f"drained and undrained for {SECONDS} s: after each time all runs, no job, no connection and no zombie is left"):
    while time.monotonic() - begun < SECONDS or len(looks) < 4:
        cycle(cycles)
        cycles += 1
        until("it is quiet", quiet, QUIET)
        look = {name: value for host in (nixio, app1, app2) for name, value in looked(host).items()}
        if time.monotonic() - begun > WARM_UP:
            looks.append((time.monotonic() - begun, look))

with subtest("the guardian that was not killed is the one from the beginning, and no database was restarted"):
    assert number(app2, GUARDIAN, "MainPID") == pid_of_the_old
    for unit in ("postgresql.service", "redis.service"):
        assert number(nixio, unit, "NRestarts") == 0, unit

with subtest("open descriptors, threads, memory, units and control groups are what they were"):
    quarter = max(1, len(looks) // 4)
    first, last = [look for _, look in looks[:quarter]], [look for _, look in looks[-quarter:]]
    print(f"{cycles} cycles, {len(looks)} looks in {looks[-1][0] - looks[0][0]:.0f} s; medians of the first and the last {quarter}")
    print(f"{'':32} {'first':>8} {'last':>8} {'most':>8}")
    grown = []
    for name in looks[0][1]:
        before, after = (statistics.median(look[name] for look in part) for part in (first, last))
        most = max(look[name] for _, look in looks)
        too_much = after > before + BOUNDS[name.rsplit(".", 1)[1]]
        print(f"{name:32} {before:8.0f} {after:8.0f} {most:8.0f}{'  <- grown' if too_much else ''}")
        if too_much:
            grown.append(name)
    assert not grown, grown
