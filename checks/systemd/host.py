"""A throw-away host with a real systemd.

    with Host(bin_dir="target/debug") as host:
        host.put("/etc/systemd/system/app.service", "[Service]\\nExecStart=/bin/sleep infinity\\n")
        host.systemctl("daemon-reload")
        host.systemctl("start", "app.service")

What it is made of: checks/machine.py. It shares our network namespace: a socket that a test opens to 127.0.0.1 reaches
the host, and nothing outside can be reached.

`python3 host.py` boots one and says how long it took; `--shell` gives a shell in it; `--can` says in one line why it
cannot be done here.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from machine import ENVIRONMENT, MS_BIND, CommandFailed, HostError, Machine, cache_dir, isolate, missing, mount, tree  # noqa: E402

__all__ = ["ENVIRONMENT", "CommandFailed", "Host", "HostError", "missing", "tree"]


class Host(Machine):
    """One booted host. A context manager: leaving it ends the host."""

    def __init__(self, bin_dir: str | os.PathLike[str] | None = None, log: str | os.PathLike[str] | None = None) -> None:
        super().__init__("throw-away", cache_dir() / "host", bin_dir, log)
        self.booted_in = 0.0

    def __enter__(self) -> Host:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        reason = missing()
        if reason:
            raise HostError(reason)
        tree()
        isolate()
        if self.log_path:
            self.log_path.write_bytes(b"")
        self.prepare()
        # The network namespace gets a name that does not go through /proc, which is another one behind `unshare`.
        netns = self.place / "netns"
        netns.touch()
        mount("/proc/self/ns/net", netns, "none", MS_BIND)
        started = time.monotonic()
        self.spawn(netns)
        self.await_boot(deadline=started + 60)
        self.run("systemctl", "is-system-running", "--wait", check=False)
        self.booted_in = time.monotonic() - started

    def stop(self) -> None:
        # It is thrown away: no reason to be polite.
        self.discard()


def main() -> int:
    if "--can" in sys.argv:
        reason = missing()
        if reason:
            print(reason)
        return 1 if reason else 0
    try:
        with Host() as host:
            version = host.run("systemctl", "--version").stdout.splitlines()[0]
            print(f"{version}: {host.systemctl('is-system-running', check=False)} after {host.booted_in:.1f} s")
            if "--shell" in sys.argv:
                subprocess.run(host.argv("/bin/bash"), env={**ENVIRONMENT, "TERM": os.environ.get("TERM", "dumb")})
            print(host.systemctl("list-units", "--failed", "--no-legend", check=False))
    except HostError as error:
        print(f"host.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
