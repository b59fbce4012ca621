"""docs/SYSTEMD.md, as it is written: its files are put where it says, and its commands are given."""

from __future__ import annotations

import re
import urllib.request
from pathlib import Path

from .case import Case, service

PAGE = Path(__file__).resolve().parents[3] / "docs" / "SYSTEMD.md"
# Both databases, on this host. The page says to put one's own in its place.
DATABASE = """\
[Service]
ExecStartPre=/usr/bin/pg_ctlcluster {version} main start
ExecStart=/usr/bin/redis-server --bind 127.0.0.1 --save ''
ExecStopPost=/usr/bin/pg_ctlcluster {version} main stop
"""


def files() -> dict[str, str]:
    """What the page says to write, by its place."""
    return dict(re.findall(r"`(/etc/[^`]+)`[^\n]*:\n\n```\w*\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL))


def commands(heading: str) -> str:
    """The first commands under this heading."""
    found = re.search(rf"^#+ {heading}\n.*?^```sh\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert found, heading
    return found[1]


class Documents(Case):
    async def test_the_page_for_hosts_without_nixos_is_right_as_it_is_written(self) -> None:
        written = files()
        # What was not built for this host (io-vip, where there is no protoc) is not looked at.
        units = [
            Path(place).name
            for place, text in written.items()
            if re.fullmatch(r"/etc/systemd/system/[^/]+", place)
            and all(self.host.path(program).exists() for program in re.findall(r"^Exec\w+=(/usr/local/bin/\S+)", text, re.MULTILINE))
        ]
        self.assertGreaterEqual(len(units), 6, units)
        self.host.run("echo 127.0.0.1 db.example.net app1.example.net >>/etc/hosts")
        # There is one host here; a second one that is the same would be told apart from it.
        written["/etc/io-guardian/hosts"] = written["/etc/io-guardian/hosts"].replace("app2.example.net", "#")
        self.host.run("sh", "-ec", commands("The key"))
        for place, text in written.items():
            self.host.put(place, text)
        version = self.host.run("ls /etc/postgresql").stdout.strip()
        self.unit("database.service", DATABASE.format(version=version))
        self.unit("my-app.service", service(unit=""))
        self.host.run("systemd-sysusers")
        self.host.systemctl("daemon-reload")
        self.host.systemctl("restart", "polkit.service")
        said = self.host.run("systemd-analyze", "verify", *units, check=False)
        self.assertEqual((said.returncode, said.stdout + said.stderr), (0, ""))

        self.host.run("sh", "-ec", commands("Start it"))
        self.host.systemctl("enable", "io-database-coordinator.service")
        self.assertEqual(self.host.state("my-app.service"), "inactive")
        self.host.systemctl("start", "database.service")
        await self.until(lambda: self.host.state("my-app.service") == "active", "the application to run", timeout=60)
        await self.until(lambda: self.host.state("io-database-coordinator.service") == "active", "the undrain to be over", timeout=60)

        self.host.systemctl("enable", "--now", "io-coordinator-serve.service")
        with urllib.request.urlopen("http://127.0.0.1:9877/metrics", timeout=10) as answer:
            self.assertIn('host="app1.example.net"', answer.read().decode())
        for line in commands("Look at it").splitlines():
            if " -f" not in line:
                self.host.run("sh", "-ec", line.partition("#")[0])

        await self.command("systemctl", "stop", "database.service")
        self.assertEqual(self.host.state("my-app.service"), "inactive")
        self.nothing_left()
        for unit in units:
            self.assertNotEqual(self.host.state(unit), "failed", unit)


CASES = [Documents]
