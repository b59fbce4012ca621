"""Nix, for the checks: the one in PATH, or the one that get-nix.sh unpacked."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# A case or a host is evaluated in a fraction of a second; a build of the stand-in's takes a few.
PATIENCE = 120


class NixError(Exception):
    """What Nix said when it failed."""


def target() -> Path:
    return Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target").resolve()


def program(name: str) -> str | None:
    found = shutil.which(name)
    if found:
        return found
    unpacked = target() / "nix" / "bin" / name
    return str(unpacked) if unpacked.exists() else None


def has_nix() -> bool:
    return program("nix-instantiate") is not None


def require_nix() -> None:
    """Ends a program that cannot do without."""
    if not has_nix():
        sys.exit("there is no Nix. On Debian: checks/nix/get-nix.sh target/nix")


def run(name: str, *arguments: str) -> str:
    command = program(name)
    if command is None:
        raise NixError(f"there is no {name}")
    done = subprocess.run(
        [command, *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    if done.returncode != 0:
        raise NixError(done.stderr.strip())
    return done.stdout


def evaluate(source: Path, attribute: str | None = None, **arguments: str) -> Any:
    """A Nix file's value. Arguments are Nix expressions."""
    command = ["--eval", "--strict", "--json", str(source)]
    for name, value in arguments.items():
        command += ["--arg", name, value]
    if attribute is not None:
        command += ["-A", attribute]
    return json.loads(run("nix-instantiate", *command))
