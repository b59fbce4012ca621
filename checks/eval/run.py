#!/usr/bin/env python3
"""Evaluates modules with the stand-in for nixpkgs, and compares what comes out with what is expected.

    checks/eval/run.py               all cases
    checks/eval/run.py -k firewall   those with this in their names

A file in cases/ is a case, or a set of cases by name, or a function `{ lib, pkgs }:` that gives one of these. A case:

    {
      modules = [ ../../../modules { networking.hostName = "app1"; } ];
      expect = {
        # Failed assertions and warnings: all of them, in this order. Not said: there are none.
        assertions = [ "the whole message" ];
        warnings = [ ];
        # Lines of a unit. In `lacks`, "Key=" stands for every line with this key. null: there is no such unit.
        units."io-guardian.service" = { has = [ "Type=notify" ]; lacks = [ "PrivateUsers=" ]; text = "the whole file"; };
        units."gone.service" = null;
        # Links beside units.
        links = [ "myapp.service.requires/io-databases.target" ];
        noLinks = [ "multi-user.target.wants/myapp.service" ];
        # Attributes of config.networking.firewall (`interfaces`: the TCP ports of each) and of secrets.
        firewall = { allowedTCPPorts = [ ]; };
        secrets.IO_GUARDIAN_PSK = { mode = "0400"; };
        # Values of config by their paths. Functions of config that find out for themselves.
        values."server.database.host" = "nixio";
        config = config: [ { name = "a sentence"; ok = config.x == 1; seen = config.x; } ];
      };
    }

or, where evaluation itself must fail, alone: `expect.error = "a part of what Nix says";`. What is not mentioned is not
compared, except assertions and warnings.

With NIXPKGS_LIB=…/lib nixpkgs' own lib evaluates the modules.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.dont_write_bytecode = True
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "nix"))

import nix  # noqa: E402

KEYS = {"assertions", "warnings", "units", "links", "noLinks", "firewall", "secrets", "values", "config", "error"}


def shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def compare_unit(name: str, expected: Any, text: str | None) -> list[str]:
    if expected is None:
        return [] if text is None else [f"{name}: there is such a unit"]
    if text is None:
        return [f"{name}: there is no such unit"]
    wrong = [f"{name}: expect.units knows no '{key}'" for key in expected if key not in ("has", "lacks", "text")]
    lines = text.splitlines()

    def found(line: str) -> bool:
        return line in lines or (line.endswith("=") and any(other.startswith(line) for other in lines))

    wrong += [f"{name}: lacks {line}" for line in expected.get("has", []) if line not in lines]
    wrong += [f"{name}: has {line}" for line in expected.get("lacks", []) if found(line)]
    if "text" in expected and expected["text"] != text:
        wrong.append(f"{name}: the text is another")
    if wrong:
        wrong.append(f"{name} is:\n{text}".rstrip().replace("\n", "\n    "))
    return wrong


def compare_part(name: str, expected: dict[str, Any], seen: dict[str, Any]) -> list[str]:
    return [
        f"{name}.{key}: expected {shown(value)}, seen {shown(seen.get(key))}"
        for key, value in expected.items()
        if key not in seen or seen[key] != value
    ]


def compare(expect: dict[str, Any], seen: dict[str, Any]) -> list[str]:
    """All that is not as expected."""
    wrong: list[str] = []
    for key in ("assertions", "warnings"):
        if expect.get(key, []) != seen[key]:
            wrong.append(f"{key}: expected")
            wrong += [f"    {message}" for message in expect.get(key, [])] or ["    none"]
            wrong.append("  seen")
            wrong += [f"    {message}" for message in seen[key]] or ["    none"]
    for name, unit in expect.get("units", {}).items():
        wrong += compare_unit(name, unit, seen["units"].get(name))
    wrong += [f"there is no link {link}" for link in expect.get("links", []) if link not in seen["links"]]
    wrong += [f"there is a link {link}" for link in expect.get("noLinks", []) if link in seen["links"]]
    wrong += compare_part("firewall", expect.get("firewall", {}), seen["firewall"])
    for name, secret in expect.get("secrets", {}).items():
        if secret is None:
            wrong += [f"secrets.{name}: is declared"] if name in seen["secrets"] else []
        elif name not in seen["secrets"]:
            wrong.append(f"secrets.{name}: is not declared; there are {shown(sorted(seen['secrets']))}")
        else:
            wrong += compare_part(f"secrets.{name}", secret, seen["secrets"][name])
    wrong += compare_part("config", expect.get("values", {}), seen["values"])
    wrong += [f"{r['name']}: seen {shown(r['seen'])}" for r in seen["config"] if r["ok"] is not True]
    return wrong


def message(said: str) -> str:
    """The error itself, without the source on the way to it."""
    return re.split(r"^ *error:", said, flags=re.MULTILINE)[-1]


def misspelt(case: dict[str, Any]) -> list[str]:
    """A key that nobody reads would be an expectation that is never checked."""
    wrong = [f"a case has no '{key}'" for key in case["keys"] if key not in ("modules", "expect")]
    keys = set(case["expectKeys"])
    wrong += [f"expect knows no '{key}'" for key in sorted(keys - KEYS)]
    if "error" in keys and keys != {"error"}:
        wrong.append("expect.error stands alone: nothing else can be seen when evaluation fails")
    return wrong


class File:
    """A file of cases, evaluated in one go as far as its cases succeed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def ask(self, attribute: str) -> Any:
        return nix.evaluate(HERE / "case.nix", attribute, file=str(self.path))

    def seen(self, name: str) -> tuple[Any, str]:
        """What one case, by itself, evaluates to, or what Nix says."""
        try:
            return self.ask(f"seen.{json.dumps(name)}"), ""
        except nix.NixError as error:
            return None, str(error)

    def results(self, patterns: list[str]) -> list[tuple[str, list[str]]]:
        """Each case's name, and what is wrong with it."""
        together: dict[str, Any] = {}
        try:
            answer = self.ask("all")
            expected, together = answer["expected"], answer["seen"]
        except nix.NixError:
            # One of them fails and should not: which one?
            try:
                expected = self.ask("expected")
            except nix.NixError as error:
                return [(self.path.stem, [str(error)])]
        results = []
        for name, case in expected.items():
            full = self.path.stem if name == self.path.stem else f"{self.path.stem}: {name}"
            if not any(pattern in full for pattern in patterns):
                continue
            wrong = misspelt(case)
            expect = case["expect"]
            if not wrong:
                seen, said = (together[name], "") if name in together else self.seen(name)
                if "error" in expect:
                    if seen is not None:
                        wrong = [f"evaluation succeeded; expected was: {expect['error']}"]
                    elif expect["error"] not in message(said):
                        wrong = [f"expected was: {expect['error']}", said]
                elif seen is None:
                    wrong = [said]
                else:
                    wrong = compare(expect, seen)
            results.append((full, wrong))
        return results


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("-k", dest="patterns", action="append", help="only cases with this in their names")
    parser.add_argument("--cases", type=Path, default=HERE / "cases", help="where the cases are")
    options = parser.parse_args()
    patterns: list[str] = options.patterns or [""]

    def results_of(file: File) -> list[tuple[str, list[str]]]:
        return file.results(patterns)

    nix.require_nix()
    started = time.monotonic()
    files = [File(path) for path in sorted(options.cases.resolve().glob("*.nix"))]
    passed = failed = 0
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for results in pool.map(results_of, files):
            for name, wrong in results:
                print(f"test {name} ... {'FAILED' if wrong else 'ok'}", flush=True)
                for line in wrong:
                    print("    " + line.replace("\n", "\n    "), flush=True)
                passed += not wrong
                failed += bool(wrong)
    if not passed + failed:
        print("there is no case with such a name" if options.patterns else "there are no cases")
        failed = 1
    print(
        f"test result: {'FAILED' if failed else 'ok'}. {passed} passed; {failed} failed; 0 ignored; "
        f"finished in {time.monotonic() - started:.1f} s"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
