#!/usr/bin/env python3
"""Writes docs/OPTIONS.md: every option of the NixOS modules, read off the modules.

    checks/nix/options.py            writes it
    checks/nix/options.py --check    changes nothing, says whether it is current
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))

import nix  # noqa: E402

PAGE = nix.ROOT / "docs" / "OPTIONS.md"
HEAD = """\
# Options of the NixOS modules

Written by `checks/nix/options.py` from `modules/`; change them there. What they are for: [NIXOS.md](NIXOS.md).
"""
# Options that many others lie under come with them.
GROUPS = (
    ("The fleet", ("server.ioPrimaryHost", "server.network.")),
    ("What this host uses", ("server.database.postgres.", "server.database.postgres", "server.database.redis.", "server.database.redis", "server.database.redisDatabaseIds", "server.database.dependent", "server.database.host", "server.database.isPrimary", "server.database.package", "server.database.tier")),
    ("The key", ("server.database.pskFile", "server.database.allowKeyInClear", "server.database.useSops", "server.database.redisPasswordSecret")),
    ("The wait", ("server.database.wait.",)),
    ("The guardian", ("server.database.guardian.",)),
    ("The coordinator", ("server.database.coordinator.",)),
    ("The fence", ("server.database.fence.",)),
    ("Addresses", ("server.vip.",)),
    ("Provisioning", ("server.database.provision.",)),
)  # fmt: skip


def code(text: str) -> str:
    """A value as Markdown: in a line where it fits into one."""
    if "\n" not in text:
        return f" `{text}`\n"
    return "\n\n```nix\n" + text + "\n```\n"


def shown(option: dict[str, Any]) -> str:
    text = f"### `{option['name']}`\n\n{option['description'].strip()}\n\n- Type: {option['type']}\n"
    for what in ("default", "example"):
        value = option[what]
        if value is None:
            continue
        plain = what == "default" and option["inWords"]
        text += f"- {what.capitalize()}: {value}\n" if plain else f"- {what.capitalize()}:{code(value)}"
    if option["readOnly"]:
        text += "- Read only\n"
    return text


def page() -> str:
    options: list[dict[str, Any]] = nix.evaluate(nix.HERE / "options.nix")
    left = {option["name"]: option for option in sorted(options, key=lambda o: str(o["name"]))}
    parts = [HEAD]
    for title, prefixes in GROUPS:
        names = [name for name in left if name.startswith(prefixes)]
        parts.append(f"## {title}\n")
        parts += [shown(left.pop(name)) for name in names]
    if left:
        sys.exit(f"options.py: no group for {', '.join(left)}: add it to GROUPS")
    return "\n".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing, say whether it is current")
    options = parser.parse_args()
    nix.require_nix()
    text = page()
    if not options.check:
        PAGE.write_text(text)
        print(f"wrote {PAGE.relative_to(nix.ROOT)}")
    elif not PAGE.exists() or PAGE.read_text() != text:
        print("docs/OPTIONS.md is not what the modules say: run checks/nix/options.py, and commit what it writes")
        return 1
    else:
        print("docs/OPTIONS.md is current")
    return 0


if __name__ == "__main__":
    sys.exit(main())
