"""Which hosts a scenario asks for, by what it says at its top.

- nothing: nixio, app1 and app2, with databases and what the NixOS modules render;
- `CLIENTS = 20`: app1 to app20;
- `HOLDERS = 4`: v1 to v4, which may hold addresses, e1 to e3, which are the store, and p, which asks for the addresses.
"""

from __future__ import annotations

import ast
from pathlib import Path

# Those of the fleet with databases, as checks/units has them.
RENDERED = ("nixio", "app1", "app2")
# Each further host is one like this.
MODEL = "app2"
FEWEST = 2


def said(scenario: Path, name: str, fewest: int) -> int | None:
    """Read, not run: the fleet is made before the scenario begins."""
    for statement in ast.parse(scenario.read_text()).body:
        if isinstance(statement, ast.Assign) and [ast.unparse(each) for each in statement.targets] == [name]:
            count = ast.literal_eval(statement.value)
            if not isinstance(count, int) or not fewest <= count <= 100:
                raise ValueError(f"{scenario}: {name} is a number from {fewest} to 100")
            return count
    return None


def more(scenario: Path) -> list[str]:
    """The names of the hosts beyond those that are rendered."""
    return [f"app{number}" for number in range(FEWEST + 1, (said(scenario, "CLIENTS", FEWEST) or FEWEST) + 1)]


def holders(scenario: Path) -> int | None:
    """How many may hold addresses. None: it is not about addresses."""
    return said(scenario, "HOLDERS", 0)


def preludes(scenario: Path, library: Path) -> list[Path]:
    """What is put before it."""
    kind = "databases" if holders(scenario) is None else "addresses"
    return [library / "measure.py", library / f"{kind}.py"]
