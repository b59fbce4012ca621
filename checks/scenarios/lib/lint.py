"""Checks the scenarios as NixOS' test driver will, and more strictly: mypy --strict and pyflakes.

    python3 checks/scenarios/lib/lint.py [SCENARIO...]

Needs `mypy` and `pyflakes` (as programs, or as modules of this Python).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
SCENARIOS = HERE.parent
LAB = SCENARIOS.parent / "lab" / "scenarios"
sys.path.insert(0, str(LAB.parent))

from size import holders, more, preludes  # noqa: E402

HOSTS = ("nixio", "app1", "app2")
GIVEN = ("start_all", "subtest", "machines")
# Of driver.pyi: what is said of types is not looked at when a scenario runs.
TYPES = ("LabMachine", "LightMachine", "Named", "Store", "Prober", "Two", "Verdict")


def hosts(scenario: Path) -> dict[str, str]:
    """Their names and kinds. In the lab a scenario may ask for more, and for others."""
    if scenario.resolve().parent != LAB:
        return dict.fromkeys(HOSTS, "Machine")
    if (count := holders(scenario)) is None:
        return dict.fromkeys((*HOSTS, *more(scenario)), "LabMachine")
    found = {f"v{number}": "LabMachine" for number in range(1, count + 1)}
    return {**found, **dict.fromkeys(("e1", "e2", "e3"), "Store"), "p": "Prober"}


def together(scenario: Path, header: bool) -> str:
    """A scenario with all that stands before it."""
    text = "\n".join(part.read_text() for part in (*preludes(scenario, HERE), scenario))
    if header:
        kind = "LabMachine" if scenario.resolve().parent == LAB else "Machine"
        given = "".join(f"{name}: {kind}\n" for name, kind in hosts(scenario).items()) + f"machines: list[{kind}]\n"
        text = f"from __future__ import annotations\n{(HERE / 'driver.pyi').read_text()}{given}\n{text}"
    return text


def main() -> int:
    scenarios = [Path(name) for name in sys.argv[1:]] or [*sorted(SCENARIOS.glob("*.py")), *sorted(LAB.glob("*.py"))]
    if not scenarios:
        print("no scenario found", file=sys.stderr)
        return 1
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for scenario in scenarios:
            typed, plain = Path(folder) / scenario.name, Path(folder) / f"plain-{scenario.name}"
            typed.write_text(together(scenario, header=True))
            plain.write_text(together(scenario, header=False))
            commands: list[tuple[list[str], dict[str, str]]] = [
                (["mypy", "--strict", "--no-error-summary", "--cache-dir", f"{folder}/cache", str(typed)], {}),
                (["pyflakes", str(plain)], {"PYFLAKES_BUILTINS": ",".join([*GIVEN, *TYPES, *hosts(scenario)])}),
            ]
            for command, environment in commands:
                done = subprocess.run(
                    [sys.executable, "-m", *command],
                    env={"PATH": "/usr/local/bin:/usr/bin:/bin", **environment},
                    capture_output=True,
                    text=True,
                    check=False,
                )
                if done.returncode != 0:
                    failed += 1
                    print(f"{scenario.name}: {command[0]}\n{done.stdout}{done.stderr}")
    print(f"{len(scenarios)} scenarios, {failed} complaints")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
