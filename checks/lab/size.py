"""How many hosts a scenario asks for: `CLIENTS = 20` at its top gives it app1 to app20, where others have app1 and app2."""

from __future__ import annotations

import ast
from pathlib import Path

# Each further host is one like this.
MODEL = "app2"
FEWEST = 2


def clients(scenario: Path) -> int:
    """Read, not run: the fleet is made before the scenario begins."""
    for statement in ast.parse(scenario.read_text()).body:
        if isinstance(statement, ast.Assign) and [ast.unparse(each) for each in statement.targets] == ["CLIENTS"]:
            count = ast.literal_eval(statement.value)
            if not isinstance(count, int) or not FEWEST <= count <= 100:
                raise ValueError(f"{scenario}: CLIENTS is a number from {FEWEST} to 100")
            return count
    return FEWEST


def more(scenario: Path) -> list[str]:
    """The names of the hosts beyond those that are rendered."""
    return [f"app{number}" for number in range(FEWEST + 1, clients(scenario) + 1)]
