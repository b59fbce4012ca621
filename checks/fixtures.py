"""What nixpkgs and sops-nix bring to the example hosts, in the same shapes, for hosts without NixOS.

Our modules' own units are taken as they were rendered (checks/units). Names, types, ordering and Restart= of these are
nixpkgs', where it matters.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

RENDERED = Path(__file__).resolve().parent / "units"
UNITS = "etc/systemd/system"
# The fleet around the databases, which is what is booted. Others are rendered, too.
HOSTS = ("nixio", "app1", "app2")

POSTGRESQL = """\
[Unit]
After=network.target
Wants=postgresql.target
PartOf=postgresql.target
[Service]
Type=notify
User=postgres
RuntimeDirectory=postgresql
StateDirectory=postgresql
StateDirectoryMode=0750
ExecStartPre=/bin/sh /etc/fixtures/initdb
ExecStart=/bin/sh /etc/fixtures/postgres
KillMode=mixed
KillSignal=SIGINT
Restart=always
RestartSec=100ms
TimeoutSec=120
"""
POSTGRESQL_TARGET = "[Unit]\nRequires=postgresql.service postgresql-setup.service\n"
POSTGRESQL_SETUP = """\
[Unit]
Requires=postgresql.service
After=postgresql.service
[Service]
Type=oneshot
RemainAfterExit=yes
User=postgres
ExecStart=/bin/sh /etc/fixtures/setup
"""
REDIS = """\
[Unit]
After=network.target
[Service]
Type=notify
User=redis
StateDirectory=redis
StateDirectoryMode={state_directory_mode}
LoadCredential=password:/run/secrets/REDIS/PASSWORD
ExecStart=/bin/sh -c 'exec redis-server --supervised systemd --bind "*" "-::*" --save "" --requirepass $(cat $CREDENTIALS_DIRECTORY/password)'
"""
DATABASES = {
    "postgresql.service": POSTGRESQL,
    "postgresql.target": POSTGRESQL_TARGET,
    "postgresql-setup.service": POSTGRESQL_SETUP,
    "redis.service": REDIS,
}
SCRIPTS = {
    # Passwords are asked for over TCP, as from another host. Whom it lets in from there, the modules say.
    "initdb": """\
cd /var/lib/postgresql
test -e data/PG_VERSION || /usr/lib/postgresql/*/bin/initdb -N -D data --auth-local=trust --auth-host=scram-sha-256 >/dev/null
test -e data/pg_hba.initdb || cp data/pg_hba.conf data/pg_hba.initdb
cat data/pg_hba.initdb /etc/fixtures/authentication >data/pg_hba.conf
""",
    "postgres": "exec /usr/lib/postgresql/*/bin/postgres -D /var/lib/postgresql/data -c listen_addresses='*' -c fsync=off -c log_connections=on\n",
}
SECRETS = {
    "/run/secrets/IO_GUARDIAN_PSK": "checks-key-0123456789abcdef0123456789abcdef",
    "/run/secrets/POSTGRES/MYAPP_PASSWORD": "password of myapp",
    "/run/secrets/REDIS/PASSWORD": "password-of-redis",
}


def manifest(units: Path = RENDERED) -> dict[str, Any]:
    """What is known of each of the hosts beside its files: secrets, and what the modules say to NixOS' own."""
    found: dict[str, Any] = json.loads((units / "manifest.json").read_text())["hosts"]
    return {name: known for name, known in found.items() if name in HOSTS}


def rendered(folder: Path) -> dict[str, Path]:
    """A rendered host's files, by where they belong. Not those that nixpkgs brings."""
    found = {}
    for top, folders, files in os.walk(folder):
        for name in [*files, *(f for f in folders if Path(top, f).is_symlink())]:
            source = Path(top, name)
            relative = source.relative_to(folder)
            # Nor the links to them: whoever boots this starts them.
            if not DATABASES.keys() & {relative.parts[0], relative.name}:
                found[str(relative if relative.parts[0] == "etc" else UNITS / relative)] = source
    return found


def install(root: Path, folder: Path) -> None:
    """Puts a rendered host's files where they belong, under a root."""
    for place, source in rendered(folder).items():
        target = root / place
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        shutil.copy(source, target, follow_symlinks=False)


def setup(postgresql: dict[str, Any]) -> str:
    """What ensureUsers and ensureDatabases do: what is there stays as it is."""
    commands = [f'create role "{user}" login' for user in postgresql["ensureUsers"]]
    commands += [f'create database "{database}"' for database in postgresql["ensureDatabases"]]
    return "".join(f"psql -Xqc '{command}' postgres 2>/dev/null\n" for command in commands) + "true\n"


def databases(root: Path, services: dict[str, Any]) -> None:
    """The units of PostgreSQL and Redis, set as the modules say to nixpkgs'."""
    scripts = {
        **SCRIPTS,
        "setup": setup(services["postgresql"]),
        "authentication": services["postgresql"]["authentication"],
    }
    files = {f"{UNITS}/{name}": text for name, text in DATABASES.items()}
    mode = services["redis"]["stateDirectoryMode"]
    files[f"{UNITS}/redis.service"] = REDIS.replace("{state_directory_mode}", mode)
    files |= {f"etc/fixtures/{name}": text for name, text in scripts.items()}
    for name, text in files.items():
        target = root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(0o644)
