"""Runs the scenarios on a throw-away host with a real systemd.

    /usr/bin/python3 checks/systemd/run_scenarios.py                    all of them
    /usr/bin/python3 checks/systemd/run_scenarios.py -k superseded      those with this word in their names

Each scenario gets a host of its own. Needs root and Debian's python3-websockets.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.dont_write_bytecode = True
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import harness  # noqa: E402
import host  # noqa: E402
from scenarios import documents, drain, during, nixos, services, wire  # noqa: E402
from scenarios.case import Case  # noqa: E402


def main() -> int:
    parser = harness.arguments(__doc__)
    parser.add_argument("--host-log", help="where the last host's console goes")
    options = parser.parse_args()
    reason = host.missing()
    if reason:
        print(f"SKIP real systemd: {reason}")
        return 0
    Case.bin_dir = options.bin_dir
    Case.host_log = options.host_log
    try:
        host.tree()
    except host.HostError as error:
        print(f"FAIL the root tree: {error}\ntest result: FAILED. 0 passed; 1 failed; 0 ignored")
        return 1
    return harness.run([*wire.CASES, *drain.CASES, *during.CASES, *services.CASES, *nixos.CASES, *documents.CASES], options.pattern)


if __name__ == "__main__":
    sys.exit(main())
