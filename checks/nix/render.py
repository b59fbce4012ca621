#!/usr/bin/env python3
"""Writes the units of the example hosts to checks/units, as NixOS would install them.

    checks/nix/render.py            evaluates the hosts and writes (needs Nix)
    checks/nix/render.py --check    says whether what is there is current; without Nix by its manifest

A folder of checks/units is a host. In it are unit files and the links beside them, which belong into /etc/systemd/system,
and etc/, which belongs into /etc: polkit's rules, users, what `environment.etc` declares, and in etc/rendered the scripts
and files that Nix would have put into its store. Programs are in /usr/bin, and ours in /usr/local/bin.

Written is each unit that a file of this repository defines, wholly or in part, its timer or socket, and all links from and
to it. What NixOS alone brings is not: the databases' units are the business of whoever boots this. Their names are in the
manifest, beside the secrets that are to be there and what the modules say to NixOS' own (firewall, PostgreSQL, Redis).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))

import nix  # noqa: E402

UNITS = nix.ROOT / "checks" / "units"
MANIFEST = "manifest.json"
COMMAND = "checks/nix/render.py"
# All that decides about what is written.
SOURCES = (
    "flake.nix",
    "package.nix",
    "lib",
    "modules",
    "hosts",
    "checks/nix/stand-in",
    "checks/nix/hosts.nix",
    "checks/nix/render.py",
)


class RenderError(Exception):
    """What was evaluated cannot be written."""


class Host:
    """A host's folder, as it is written."""

    def __init__(self, folder: Path, data: dict[str, Any], store: str) -> None:
        self.folder = folder
        self.data = data
        self.place = data["scriptRoot"]
        self.objects = re.compile(re.escape(store) + r"/[0-9a-z]{32}-([A-Za-z0-9+._?=-]+)((?:/[A-Za-z0-9+._?=-]+)*)")

    def put(self, name: str, text: str, executable: bool = False) -> None:
        path = self.folder / name
        if path.exists():
            if path.read_text() != text:
                raise RenderError(f"{name} would be written twice, with different texts")
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755 if executable else 0o644)

    def keep(self, name: str, source: Path) -> str:
        """A file of the store, which comes along. Gives its new place."""
        place = f"{self.place}/{name}"
        executable = os.access(source, os.X_OK) and source.read_bytes()[:2] == b"#!"
        self.put(place.lstrip("/"), self.settled(source.read_text()), executable)
        return place

    def settled(self, text: str) -> str:
        """The text with no path of the store in it."""

        def settle(found: re.Match[str]) -> str:
            path, (name, inside) = Path(found[0]), found.groups()
            if path.is_dir():
                raise RenderError(f"{path} is a folder: only files and programs of the store can be written")
            package = Path(found[0][: len(found[0]) - len(inside)]) if inside else path
            if not inside:
                return self.keep(name, path)
            top = package / inside.split("/")[1]
            if top.is_symlink():
                # A package of the stand-in's: its programs are the machine's.
                return f"{os.readlink(top)}/{'/'.join(inside.split('/')[2:])}".rstrip("/")
            if path.is_symlink():
                return f"/usr/local{inside}"
            return self.keep(f"{name}{inside}", path)

        # In a search path the folders themselves are named.
        text = re.sub(self.objects.pattern + r"(?=[:\"])", self.folder_of_programs, text)
        text = self.objects.sub(settle, text)
        return re.sub(r'(?<=PATH=)/[^"\n]*', lambda found: ":".join(dict.fromkeys(found[0].split(":"))), text)

    @staticmethod
    def folder_of_programs(found: re.Match[str]) -> str:
        path, inside = Path(found[0]), found[2]
        if inside not in ("/bin", "/sbin"):
            return found[0]
        return os.readlink(path) if path.is_symlink() else f"/usr/local{inside}"

    def write(self) -> None:
        for name, text in self.data["units"].items():
            self.put(name, self.settled(text))
        for name, target in self.data["links"].items():
            link = self.folder / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(target)
        for name, text in self.data["scripts"].items():
            self.put(f"{self.place}/{name}".lstrip("/"), self.settled(text), executable=True)
        for name, entry in self.data["etc"].items():
            text = entry["text"] if "text" in entry else Path(entry["source"]).read_text()
            self.put(f"etc/{name}", self.settled(text))


def digest(path: Path) -> str:
    if path.is_symlink():
        return f"-> {os.readlink(path)}"
    kind = "+x " if os.access(path, os.X_OK) else ""
    return kind + hashlib.sha256(path.read_bytes()).hexdigest()


def files(top: Path) -> Iterator[Path]:
    if not top.is_dir():
        yield top
        return
    for path in sorted(top.rglob("*")):
        if (path.is_symlink() or path.is_file()) and "__pycache__" not in path.parts:
            yield path


def digests(root: Path, *tops: str) -> dict[str, str]:
    return {
        str(path.relative_to(root)): digest(path)
        for top in tops
        for path in files(root / top)
        if path.name != MANIFEST
    }


def render(folder: Path) -> list[str]:
    """Writes all hosts into an empty folder. Gives the warnings."""
    nix.require_nix()
    built = Path(nix.run("nix-build", "--no-out-link", str(nix.HERE / "hosts.nix")).strip().splitlines()[-1])
    evaluated: dict[str, Any] = json.loads(built.read_text())
    for name, data in evaluated.items():
        Host(folder / name, data, str(built.parent)).write()
    manifest = {
        "hosts": {name: {key: data[key] for key in ("others", "secrets", "services")} for name, data in evaluated.items()},
        "sources": digests(nix.ROOT, *SOURCES),
        "files": digests(folder, "."),
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    return [f"{name}: {warning}" for name, data in evaluated.items() for warning in data["warnings"]]


def differences(kind: str, then: dict[str, str], now: dict[str, str]) -> list[str]:
    words = {(True, False): "is gone", (False, True): "is new", (True, True): "is another"}
    return [
        f"{kind} {name} {words[name in then, name in now]}"
        for name in sorted(then.keys() | now.keys())
        if then.get(name) != now.get(name)
    ]


def manifest_of(units: Path) -> dict[str, Any]:
    """The manifest; nothing where there is none that can be read, as in the middle of a merge."""
    try:
        manifest: dict[str, Any] = json.loads((units / MANIFEST).read_text())
    except (OSError, ValueError):
        return {"hosts": {}, "sources": {}, "files": {}}
    return manifest


def hosts() -> dict[str, Any]:
    """What the manifest says of each host."""
    found: dict[str, Any] = manifest_of(UNITS)["hosts"]
    return found


def stale(units: Path = UNITS) -> list[str]:
    """Why what is there is not what the hosts render to."""
    manifest = manifest_of(units)
    if not manifest["hosts"]:
        return [f"there is no {units / MANIFEST}, or none that can be read"]
    wrong = differences("since it was written: source", manifest["sources"], digests(nix.ROOT, *SOURCES))
    wrong += differences("since it was written: file", manifest["files"], digests(units, "."))
    if nix.has_nix():
        with tempfile.TemporaryDirectory() as fresh:
            try:
                render(Path(fresh))
            except (RenderError, nix.NixError) as error:
                return [*wrong, f"the hosts cannot be rendered: {error}"]
            # Who reads them sees only the files: so these count, and not only what the manifest says of them.
            wrong += differences("rendered afresh: file", digests(units, "."), digests(Path(fresh), "."))
            new = json.loads((Path(fresh) / MANIFEST).read_text())
            if new["hosts"] != manifest["hosts"]:
                wrong.append("rendered afresh: what the manifest says of the hosts is another")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--check", action="store_true", help="change nothing, say whether it is current")
    options = parser.parse_args()
    if options.check:
        wrong = stale()
        for line in wrong:
            print(line)
        print(f"checks/units is not current: {COMMAND}" if wrong else "checks/units is current")
        return 1 if wrong else 0
    with tempfile.TemporaryDirectory() as fresh:
        try:
            warnings = render(Path(fresh))
        except (RenderError, nix.NixError) as error:
            sys.exit(f"{COMMAND}: {error}")
        shutil.rmtree(UNITS, ignore_errors=True)
        shutil.copytree(fresh, UNITS, symlinks=True)
    UNITS.chmod(0o755)
    for warning in warnings:
        print(f"warning: {warning}")
    print(f"wrote {sum(1 for _ in files(UNITS))} files to {UNITS.relative_to(nix.ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
