"""Pictures of the page for the documentation: a fleet with names and addresses as they are anywhere, in the middle of a drain.

It is a real fleet, in namespaces of its own for its network and for its /etc/hosts, so that nothing on this machine changes.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import hosts
import page as pages
from browser import Browser, Page

INSIDE = "CHECKS_VIEW_INSIDE"
NAMES = [f"app{n}" for n in range(1, 9)] + [f"web{n}" for n in range(1, 5)] + [f"worker{n}" for n in range(1, 5)] + ["api1", "api2", "mail1", "cron1"]
DATABASE, DATABASE_ADDRESS = "db1", "10.20.0.5"
HELD, LOST = "cron1", "web3"
# Those that are seen draining; the others are there at once.
AT_WORK = ["api2", "app1", "worker2"]
# Longer than it takes to make the pictures, and shorter than what a guardian gives a process.
SLOW = 30.0
MOST_BYTES = 250 * 1000
UNITS = {"app": ("web", "scheduler", "worker"), "web": ("nginx", "php-fpm", "sessions"), "worker": ("queue", "reports", "indexer")}


class Shown(hosts.Fleet):
    """The fleet of the pictures."""

    def _start(self) -> None:
        place = self.folder.path
        addresses = {name: f"10.20.0.{11 + number}" for number, name in enumerate(NAMES)}
        self._network(addresses)
        redis = hosts.Redis(place, DATABASE_ADDRESS, 6379)
        self._programs.append(redis.program)
        for number, (name, address) in enumerate(addresses.items()):
            units = UNITS.get(name.rstrip("0123456789"), ("service", "timer", "queue"))
            stop = SLOW if name in AT_WORK else 0.0
            self.guardians.append(hosts.Guardian(self.bin_dir, place, number, stop, f"{DATABASE}:6379", address, 9876, units))
        self.follow("127.0.0.1:9877", dict(enumerate(NAMES)))

    def _network(self, addresses: dict[str, str]) -> None:
        everyone = {DATABASE: DATABASE_ADDRESS} | addresses
        file = self.folder.path / "etc-hosts"
        file.write_text("127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in everyone.items()))
        commands = ["link set lo up"]
        commands += [f"address add {address}/32 dev lo" for address in everyone.values()]
        # Who gives a command comes from the database's host, and not from the host that is told.
        commands += [f"route replace local {address} dev lo table local src {DATABASE_ADDRESS}" for address in addresses.values()]
        subprocess.run(["ip", "-batch", "-"], input="\n".join(commands), text=True, check=True)
        subprocess.run(["mount", "--bind", str(file), "/etc/hosts"], check=True)


async def _take(fleet: Shown, folder: Path) -> None:
    told = [name for name in NAMES if name not in (HELD, LOST)]
    await asyncio.to_thread(fleet.undrain)
    await asyncio.to_thread(fleet.tell, "hold", [HELD], "--reason", "a new disk", "--for", "2h")
    async with Browser(fleet.folder.path) as browser, browser.page(1280, 900) as page:
        await page.open(fleet.url)
        await page.wait_for(pages.LIVE)
        await pages.sign_in(page, hosts.TOKEN)
        await page.wait_for("document.querySelector('#bulk').checkVisibility()")
        fleet.guardians[NAMES.index(LOST)].program.kill()
        await page.wait_for(f"document.querySelector('tr[data-host={LOST}][data-link=lost]')")
        drained = len(told) - len(AT_WORK)
        drain = hosts.Program(*fleet.coordinator("drain", told))
        try:
            for state, count in (("drained", drained), ("draining", len(AT_WORK))):
                await page.wait_for(f"document.querySelector('#counts > [data-shown={state}] [data-ref=number]').textContent === '{count}'")
            await page.evaluate("document.querySelector('tr[data-host=app1] .opener').click(), document.activeElement.blur()")
            # The sentence is said at most once in a second.
            await page.wait_for(f"document.querySelector('#summary').textContent.includes('{drained} drained')")
            for name, width, height, scheme in (("light", 1280, 900, "light"), ("dark", 1280, 900, "dark"), ("phone", 390, 844, "light")):
                await page.size(width, height, mobile=width < 400, scale=2 if width < 400 else 1)
                await page.prefer(scheme, "reduce")
                await _still(page)
                file = folder / f"page-{name}.png"
                await page.screenshot(file)
                size = file.stat().st_size
                print(f"{file}: {width} x {height}, {size} bytes", flush=True)
                if size > MOST_BYTES:
                    raise AssertionError(f"{file} is larger than {MOST_BYTES} bytes")
        finally:
            # Its processes are what it waits for: they go with the guardians.
            drain.kill()


async def _still(page: Page) -> None:
    """Waits until nothing moves or fades any more."""
    await page.evaluate("Promise.all(document.getAnimations().map(each => each.finished.catch(() => 0))).then(() => 0)")
    await page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def take(bin_dir: Path, folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    if INSIDE not in os.environ:
        # Becomes the same program in namespaces of its own, as the root of them where it is not root already.
        as_root = [] if os.geteuid() == 0 else ["--map-root-user"]
        command = ["unshare", "--mount", "--net", *as_root, sys.executable, *sys.argv]
        os.execvpe(command[0], command, os.environ | {INSIDE: "yes"})
    fleet = Shown(bin_dir)
    try:
        asyncio.run(_take(fleet, folder))
    finally:
        for guardian in fleet.guardians:
            guardian.program.process.kill()
        fleet.end()
    return 0
