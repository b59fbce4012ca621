# Put before each scenario: what they measure with. It uses what a driver gives (driver.pyi) and nothing else.
import time
from collections.abc import Callable
from typing import Protocol


class Host(Protocol):
    @property
    def name(self) -> str: ...
    def execute(self, command: str) -> tuple[int, str]: ...
    def succeed(self, *commands: str) -> str: ...


# A host boots, services included, in seconds; without hardware virtualisation in minutes.
BOOT = 600
# Another one after each boot.
BOOT_ID = "cat /proc/sys/kernel/random/boot_id"


class Late(AssertionError):
    """Something took too long. On a machine that does much else that may be the machine's doing; anything else that is wrong is ours."""


def until(what: str, holds: Callable[[], bool], seconds: float) -> float:
    """Waits until it holds, and says how long that took. An error after so many seconds."""
    start = time.monotonic()
    while not holds():
        if time.monotonic() - start >= seconds:
            raise Late(f"not within {seconds} s: {what}")
        time.sleep(0.2)
    return time.monotonic() - start


def stays(what: str, holds: Callable[[], bool], seconds: float) -> None:
    """Looks again and again for so many seconds: it must hold each time."""
    end = time.monotonic() + seconds
    looks = 0
    while time.monotonic() < end or looks < 5:
        assert holds(), f"no longer so: {what}"
        looks += 1
        time.sleep(0.2)


def shown(host: Host, unit: str, name: str) -> str:
    """A property of a unit."""
    return host.succeed(f"systemctl show --property={name} --value '{unit}'").strip()


def number(host: Host, unit: str, name: str) -> int:
    """A property that is a number: a time in microseconds since the host's boot, a count."""
    return int(shown(host, unit, name) or 0)


def state(host: Host, unit: str) -> str:
    return shown(host, unit, "ActiveState")


def is_active(host: Host, unit: str) -> bool:
    return state(host, unit) == "active"


def remember(host: Host, *units: str) -> None:
    """From now on, until a reboot, systemd keeps their times while they rest: somebody refers to them."""
    folder, names = "/run/systemd/system", " ".join(units)
    host.succeed(
        f'printf "%s\\n" "[Unit]" "After={names}" "[Service]" Type=oneshot RemainAfterExit=yes '
        f'"ExecStart=/bin/sh -c true" >{folder}/remembers.service',
        "systemctl daemon-reload",
        "systemctl start --no-block remembers.service",
    )


def up_since(host: Host, unit: str) -> int:
    """When it was started last, in microseconds since the host's boot."""
    return number(host, unit, "ActiveEnterTimestampMonotonic")


def put(host: Host, place: str, text: str) -> None:
    """A file, and the folders that it lies in."""
    host.succeed(f"mkdir -p \"$(dirname '{place}')\"\ncat >'{place}' <<'END_OF_FILE'\n{text}\nEND_OF_FILE\n")


def pids(host: Host, unit: str) -> list[int]:
    """Processes in the unit's control group, as the kernel has them."""
    group = shown(host, unit, "ControlGroup")
    if not group:
        return []
    # Of either version.
    _, printed = host.execute(
        f"for root in /sys/fs/cgroup /sys/fs/cgroup/systemd; do cat $root'{group}'/cgroup.procs 2>/dev/null; done | sort -u"
    )
    return [int(pid) for pid in printed.split()]


def processes(host: Host, unit: str) -> int:
    return len(pids(host, unit))


def never_ran(host: Host, unit: str) -> bool:
    """Not once since the host's boot. For a unit that has a job: what rests and has none may be forgotten, times and all."""
    return number(host, unit, "ActiveEnterTimestampMonotonic") == 0 and (
        not unit.endswith(".service") or number(host, unit, "ExecMainStartTimestampMonotonic") == 0
    )
