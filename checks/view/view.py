"""What people and monitoring see of a fleet of twenty real guardians: the page in a real browser, `top` in a terminal, and the figures;
those of an io-fence and of an io-vip, too.

All of it is on loopback, or in networks of its own, and needs no root. Each drain is a real one, by the real `io-coordinator drain`; the hosts take one to three
seconds for it, so what is shown in its course can be told from what is shown at its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import sys
import unittest
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import ClassVar

sys.dont_write_bytecode = True
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import harness  # noqa: E402
import hosts  # noqa: E402
import metrics  # noqa: E402
import page as pages  # noqa: E402
import top as tops  # noqa: E402
from browser import Browser, Page  # noqa: E402
from hosts import HEALTHY, Fence, Fleet, Vip  # noqa: E402

DRAIN = ["undrained", "draining", "drained"]

# What the page shows of each host, whenever anything in it changes: the words that a person reads.
RECORD = """(() => {
    window.moments = [];
    const look = () => {
        const shown = {};
        for (const row of document.querySelectorAll("tr[data-host]")) {
            if (row.checkVisibility()) shown[row.dataset.host] = row.querySelector("[data-ref=word]").textContent;
        }
        if (JSON.stringify(shown) !== JSON.stringify(window.moments.at(-1))) window.moments.push(shown);
    };
    new MutationObserver(look).observe(document.body, {subtree: true, childList: true, attributes: true, characterData: true});
    look();
})()"""

# Two pages that are no good, made of the real one: one that never hears of a change, one that shows all of them in the end.
DEAF = """(() => {
    const add = EventSource.prototype.addEventListener;
    EventSource.prototype.addEventListener = function (type, ...more) { if (type !== "host") add.call(this, type, ...more); };
})()"""
LATE = """(() => {
    const add = EventSource.prototype.addEventListener;
    const kept = [];
    const drained = new Set();
    EventSource.prototype.addEventListener = function (type, take) {
        if (type === "host") {
            add.call(this, type, event => {
                const {name, state} = JSON.parse(event.data);
                if (state === "undrained" || state === "undraining") return take(event);
                kept.push(() => take(event));
                if (state === "drained") drained.add(name);
                if (drained.size === HOSTS) for (const late of kept.splice(0)) late();
            });
        } else add.call(this, type, take);
    };
})()""".replace("HOSTS", str(hosts.HOSTS))


def counted(state: str, count: int = hosts.HOSTS) -> str:
    """JavaScript: the page counts so many hosts in this state."""
    return f"document.querySelector('#counts > [data-shown={state}] [data-ref=number]').textContent === '{count}'"


def row(name: str) -> str:
    """JavaScript: the row of a host."""
    return f"document.querySelector({json.dumps(f'tr[data-host={json.dumps(name)}]')})"


def shows(name: str, state: str) -> str:
    """JavaScript: what the row of a host says."""
    return f"{row(name)}.querySelector('[data-ref=word]').textContent === '{state}'"


class Seen:
    """What was shown of each host, one after the other, and how often some were on their way while others were there."""

    def __init__(self) -> None:
        self.states: dict[str, list[str]] = {}
        self.mixed = 0

    def look(self, shown: dict[str, str]) -> None:
        for name, state in shown.items():
            all_of_it = self.states.setdefault(name, [])
            if all_of_it[-1:] != [state]:
                all_of_it.append(state)
        now = {name: self.states[name] for name in shown}
        self.mixed += any(seen[-2:] == DRAIN[:2] for seen in now.values()) and any(seen[-3:] == DRAIN for seen in now.values())

    @classmethod
    async def of(cls, page: Page) -> Seen:
        seen = cls()
        for shown in await page.evaluate("window.moments"):
            seen.look(shown)
        return seen

    def faults(self, names: list[str]) -> list[str]:
        """What is wrong with it, for a drain of all of these."""
        faults = []
        for name in names:
            states = self.states.get(name, [])
            last = len(states) - 1 - states[::-1].index("undrained") if "undrained" in states else len(states)
            way = states[last:]
            if way != DRAIN:
                faults.append(f"{name} was shown as {states}, and not at last as {DRAIN}")
        if not self.mixed:
            faults.append("at no moment was one host shown on its way while another one was there: it was not shown as it happened")
        return faults


class View(unittest.IsolatedAsyncioTestCase):
    bin_dir: ClassVar[str] = "target/debug"
    fleet: ClassVar[Fleet]

    @classmethod
    def setUpClass(cls) -> None:
        cls.fleet = Fleet(Path(cls.bin_dir).resolve())

    @classmethod
    def tearDownClass(cls) -> None:
        cls.fleet.end()

    def evidence(self) -> str:
        return self.fleet.evidence()

    @contextlib.asynccontextmanager
    async def page(self, script: str | None = None) -> AsyncIterator[Page]:
        """The page of the fleet, alive; with a script of ours that comes before its own."""
        async with Browser(self.fleet.folder.path) as browser, browser.page() as page:
            await self.open(page, script)
            yield page

    async def open(self, page: Page, script: str | None = None) -> None:
        if script is not None:
            await page.call("Page.addScriptToEvaluateOnNewDocument", source=script)
        await page.open(self.fleet.url)
        await page.wait_for(pages.LIVE)

    async def told(self, action: str, names: list[str] | None = None) -> str:
        return await asyncio.to_thread(self.fleet.tell, action, names, "--fail-fast")

    async def undrained(self, names: list[str] | None = None) -> None:
        await asyncio.to_thread(self.fleet.undrain, names)

    def running(self) -> list[int]:
        return [guardian.processes() for guardian in self.fleet.guardians]

    def assertNone(self, faults: list[str]) -> None:
        self.assertFalse(faults, "\n" + "\n".join(faults))

    # --- The page ---

    async def test_the_page_of_a_real_fleet_can_be_used_by_keyboard_read_in_any_light_and_on_a_phone(self) -> None:
        await self.undrained()
        name = self.fleet.names[0]

        async def poke() -> str:
            await self.told("drain", [name])
            return shows(name, "drained")

        async with Browser(self.fleet.folder.path) as browser:
            self.assertNone(await pages.check(self.fleet.url, browser, poke, hosts.TOKEN))

    async def test_the_page_shows_each_host_of_a_drain_as_it_happens(self) -> None:
        names = self.fleet.names
        async with self.page() as page:
            await page.evaluate(RECORD)
            await self.undrained()
            await page.wait_for(counted("undrained"))
            self.assertEqual(self.running(), [3] * hosts.HOSTS)
            said = await self.told("drain")
            self.assertEqual(self.running(), [0] * hosts.HOSTS, said)
            await page.wait_for(counted("drained"))
            self.assertNone((await Seen.of(page)).faults(names))

            await page.wait_for(f"{counted('drained')} && document.querySelector('#summary').textContent === '{hosts.HOSTS} hosts: {hosts.HOSTS} drained'")
            counts = await page.evaluate("[...document.querySelectorAll('#counts [data-ref=number]')].map(node => Number(node.textContent))")
            self.assertEqual(sum(counts), hosts.HOSTS)
            # Newest first, so the drain is what is before the undrain.
            lines = """(() => {
                const all = [...document.querySelectorAll("#history > li")].map(line =>
                    ["host", "what", "by"].map(part => line.querySelector(`[data-ref=${part}]`).textContent));
                return all.slice(0, all.findIndex(([, what]) => what === "undrain done")).filter(([, what]) => what === "drain done");
            })()"""
            await page.wait_for(f"new Set({lines}.map(([host]) => host)).size === {hosts.HOSTS}")
            done = await page.evaluate(lines)
            self.assertEqual({host for host, _, _ in done}, set(names))
            who = {by for _, _, by in done}
            self.assertEqual(len(who), 1, f"one gave it, and they say {who}")
            self.assertRegex(who.pop(), r"^by 127\.0\.0\.1 v2:[0-9a-f]{8}$")
            self.assertNone(pages.troubles(page, self.fleet.url))

    async def test_a_page_that_hears_nothing_and_one_that_shows_all_in_the_end_would_be_found_out(self) -> None:
        async with self.page(DEAF) as deaf, self.page(LATE) as late:
            for page in (deaf, late):
                await page.evaluate(RECORD)
            await self.undrained()
            await late.wait_for(counted("undrained"))
            await self.told("drain")
            await late.wait_for(counted("drained"))
            for page in (deaf, late):
                faults = (await Seen.of(page)).faults(self.fleet.names)
                self.assertEqual(len(faults), hosts.HOSTS + 1, faults)

    async def test_a_command_by_keyboard_needs_the_token_and_drains_the_host(self) -> None:
        name, guardian = self.fleet.names[7], self.fleet.guardians[7]
        await self.undrained()
        buttons = "[...document.querySelectorAll('[data-act]')].filter(node => node.checkVisibility() && !node.closest('dialog') " \
            "&& node.dataset.act !== 'toggle').map(node => node.dataset.act)"
        opener = f"element.matches('.opener') && element.closest('tr').dataset.host === {json.dumps(name)}"
        async with self.page() as page:
            await page.wait_for(counted("undrained"))
            self.assertTrue(await page.tab_to(opener), "Tab does not reach the host")
            await page.press("Enter")
            await page.wait_for("document.querySelector('.details').checkVisibility()")
            self.assertEqual(await page.evaluate(buttons), [], "commands are offered to who did not sign in")

            self.assertTrue(await page.tab_to("element.id === 'sign'"), "Tab does not reach `Sign in`")
            await page.press("Enter")
            await page.wait_for("document.activeElement.id === 'token'")
            await page.write(hosts.TOKEN)
            await page.press("Enter")
            await page.wait_for("document.querySelector('.details [data-act=drain]').checkVisibility()")
            self.assertTrue(await page.tab_to(opener), "Tab does not reach the host")
            self.assertTrue(await page.tab_to("element.matches('.details [data-act=drain]')", 3), "Tab does not go on to `Drain`")
            await page.press("Enter")
            await page.wait_for("document.querySelector('#confirm').open")
            asked = await page.evaluate("document.querySelector('#confirm-hosts').textContent")
            self.assertEqual(asked, name)
            self.assertEqual(guardian.processes(), 3, "it was drained before anybody said yes")
            self.assertTrue(await page.tab_to("element.id === 'confirm-yes'", 6), "Tab does not reach `Drain` in the dialog")
            await page.press("Enter")
            await page.wait_for(shows(name, "drained"))
            self.assertEqual(guardian.processes(), 0, "it is shown as drained, and something of it runs")
            await page.wait_for(counted("undrained", hosts.HOSTS - 1))
            self.assertEqual(sum(self.running()), 3 * (hosts.HOSTS - 1), "others were drained too")
            await page.wait_for(
                f"[...document.querySelectorAll('#history > li')].some(line => line.textContent.includes({json.dumps(name)}) "
                "&& line.textContent.includes('drain done'))"
            )
            self.assertNone(pages.troubles(page, self.fleet.url))

    async def test_a_guardian_that_is_killed_is_shown_as_lost_and_comes_back(self) -> None:
        name, guardian = self.fleet.names[3], self.fleet.guardians[3]
        await self.undrained()
        told = "[...document.querySelectorAll('#history > li')].some(line => line.querySelector('[data-ref=host]').textContent === " \
            f"{json.dumps(name)} && line.querySelector('[data-ref=what]').textContent === "
        async with self.page() as page:
            await page.wait_for(counted("undrained"))
            guardian.program.kill()
            # Whatever comes, the next test needs all of them.
            self.addCleanup(guardian.start_again_if_gone)
            await page.wait_for(shows(name, "lost"))
            await page.wait_for(counted("lost", 1))
            await page.wait_for("document.title.startsWith('1 problem')")
            await page.wait_for(f"{told}'lost')")
            first = await page.evaluate("document.querySelector('tr[data-host]').dataset.host")
            self.assertEqual(first, name, "what is wrong comes first")
            self.assertTrue(await page.evaluate(f"{row(name)}.querySelector('[data-ref=fault]').textContent"), "it is not said why")
            await page.evaluate(f"{row(name)}.querySelector('.opener').click()")
            await page.wait_for("document.querySelector('.details [data-ref=remedy]').textContent")
            guardian.start_again()
            await page.wait_for(f"{told}'reached again')")
            await page.wait_for(counted("lost", 0))
            await page.wait_for(shows(name, "drained"))
            self.assertEqual(guardian.processes(), 0)
            await self.undrained([name])
            await page.wait_for(counted("undrained"))
            self.assertNone(pages.troubles(page, self.fleet.url))

    async def test_the_page_bears_hostile_texts_a_thousand_hosts_and_a_server_that_is_gone(self) -> None:
        async with Browser(self.fleet.folder.path) as browser:
            self.assertNone(await pages.check_made_up(browser))

    # --- The terminal ---

    def top(self, *more: str) -> tops.Top:
        return tops.Top([*self.fleet.coordinator("top"), *more])

    def all_are(self, state: str) -> Callable[[list[str]], bool]:
        return lambda lines: list(tops.states(lines, self.fleet.names).values()) == [state] * hosts.HOSTS

    async def test_top_shows_each_host_of_a_drain_as_it_happens(self) -> None:
        await self.undrained()
        seen = Seen()
        async with self.top() as top:
            await top.until("a fleet that is undrained", self.all_are("undrained"))
            top.on_frame = lambda lines: seen.look(tops.states(lines, self.fleet.names))
            top.on_frame(top.lines)
            await self.told("drain")
            await top.until("a fleet that is drained", self.all_are("drained"))
            self.assertNone(seen.faults(self.fleet.names))
            self.assertEqual(top.lines[0], f"{hosts.HOSTS} hosts: {hosts.HOSTS} drained")
            top.press("q")
            self.assertNone(await top.ended())

    async def test_the_keys_of_top_choose_open_and_filter_and_q_gives_the_terminal_back(self) -> None:
        await self.undrained()
        async with self.top() as top:
            await top.until("a fleet that is undrained", self.all_are("undrained"))
            order = list(tops.states(top.lines, self.fleet.names))
            self.assertEqual(top.chosen(), order[0])
            for key, wanted in ((tops.DOWN, order[1]), (tops.DOWN, order[2]), (tops.UP, order[1])):
                top.press(key)
                await top.until(f"{wanted} in reverse", lambda _, wanted=wanted: top.chosen() == wanted)  # type: ignore[misc]
            top.press(tops.ENTER)
            await top.until("what is known of the host", lambda lines: any(order[1] in line and "───" in line for line in lines))
            for part in ("link", "wanted", "target", "last", "unit"):
                await top.until(f"its {part}", lambda lines, part=part: any(line.startswith(f"{part} ") for line in lines))  # type: ignore[misc]
            top.press(tops.ENTER)
            await top.until("the history", lambda lines: any("what happened" in line for line in lines))
            top.press("/" + order[4])
            await top.until("one host", lambda lines: list(tops.states(lines, self.fleet.names)) == [order[4]])
            top.press(tops.ENTER)
            await top.until("the filter at rest", lambda lines: f"/{order[4]} " in lines[-1])
            top.press("/" + "x")
            await top.until("no host", lambda lines: not tops.states(lines, self.fleet.names))
            top.press(tops.ESCAPE)
            await top.until("all hosts", self.all_are("undrained"))
            top.press("q")
            self.assertNone(await top.ended())

    async def test_top_gives_the_terminal_back_when_it_is_told_to_end(self) -> None:
        async with self.top() as top:
            await top.until("a fleet", lambda lines: len(tops.states(lines, self.fleet.names)) == hosts.HOSTS)
            top.terminate()
            self.assertNone(await top.ended())

    async def test_top_once_prints_a_table(self) -> None:
        await self.undrained()
        said = (await asyncio.to_thread(self.fleet.tell, "top", None, "--once")).splitlines()
        self.assertEqual(said[0].split()[:3], ["HOST", "STATE", "UNITS"])
        self.assertEqual(tops.states(said, self.fleet.names), dict.fromkeys(self.fleet.names, "undrained"))
        self.assertEqual(said[-1], f"{hosts.HOSTS} hosts: {hosts.HOSTS} undrained")
        self.assertEqual(len(said), hosts.HOSTS + 2)

    # --- The figures ---

    async def fence(self) -> Fence:
        """One that ends with the test."""
        if why := Fence.cannot():
            self.skipTest(why)
        fence = await asyncio.to_thread(Fence, Path(self.bin_dir).resolve())
        self.addCleanup(fence.end)
        return fence

    async def vip(self) -> Vip | str:
        """One that ends with the test; or why there is none."""
        bin_dir = Path(self.bin_dir).resolve()
        if why := Vip.missing(bin_dir):
            return why
        vip = await asyncio.to_thread(Vip, bin_dir)
        self.addCleanup(vip.end)
        return vip

    async def test_alerts_and_dashboard_ask_only_for_figures_that_there_are(self) -> None:
        fence, vip = await self.fence(), await self.vip()
        folder, name = self.fleet.folder.path, self.fleet.names[0]
        # How long the last operation took is not there before there was one.
        await self.undrained([name])
        await self.told("drain", [name])
        await asyncio.to_thread(self.fleet.serve.line, f"drain done host={name}")
        sources: dict[str, Callable[[str], tuple[str, str]]] = {
            "guardian": partial(self.fleet.figures, f"http://{self.fleet.guardians[0].metrics}/"),
            "coordinator": partial(self.fleet.figures, self.fleet.url),
            "fence": fence.figures,
        }
        if isinstance(vip, Vip):
            sources["vip"] = vip.figures
        plain, modern = [], []
        for who, figures in sources.items():
            kind, text = await asyncio.to_thread(figures, "text/plain")
            self.assertTrue(kind.startswith("text/plain"), kind)
            plain.append(self.keep(folder / f"{who}.txt", text))
            kind, text = await asyncio.to_thread(figures, "application/openmetrics-text")
            self.assertTrue(kind.startswith("application/openmetrics-text"), kind)
            self.assertTrue(text.endswith("\n# EOF\n"), text[-200:])
            modern.append(self.keep(folder / f"{who}-openmetrics.txt", text))
        for old, new in zip(plain, modern, strict=True):
            self.assertEqual(metrics.read_exposition(old).labels, metrics.read_exposition(new).labels)
        cases: list[tuple[list[Path], list[str]]] = [(plain, []), (modern, ["--names-only"])]
        for files, more in cases:
            said = io.StringIO()
            with contextlib.redirect_stdout(said):
                code = await asyncio.to_thread(metrics.main, [*map(str, files), *more])
            self.assertEqual(code, 0, "\n" + said.getvalue())
        if isinstance(vip, str):
            self.skipTest(f"all but those of io-vip were compared: {vip}")

    async def test_a_fence_by_hand_is_told_from_one_by_a_disk(self) -> None:
        fence = await self.fence()
        shown = {}
        for name, command in {"open": None, "by hand": "fence", "open again": "unfence"}.items():
            if command:
                reason = ["--reason", "a check"] if command == "fence" else []
                await asyncio.to_thread(fence.by_hand, command, "--folder", fence.watched, *reason)
            values = await asyncio.to_thread(fence.values)
            of_it = f'{{folder="{fence.watched}"}}'
            shown[name] = [values[each] for each in (f"io_fence_fenced{of_it}", f"io_fence_fenced_by_disk{of_it}", "io_fence_by_hand")]
        self.assertEqual(shown, {"open": [0, 0, 0], "by hand": [1, 0, 1], "open again": [0, 0, 0]})

    async def test_an_address_that_nobody_holds_is_told_by_a_node_that_cannot_hold_it_is_paused_or_has_lost_the_store(self) -> None:
        vip = await self.vip()
        if isinstance(vip, str):
            self.skipTest(vip)
        nothing: dict[str, float] = {"io_vip_takes_part": 0, "io_vip_held": 0, "io_vip_pool": 2, "io_vip_pool_unowned": 2}
        await asyncio.to_thread(vip.operate, "pause", "--reason", "a check")
        await asyncio.to_thread(vip.until, nothing | {"io_vip_paused": 1.0, "io_vip_store_watched": 1.0, "io_vip_lapses_total": 0.0})
        await asyncio.to_thread(vip.operate, "resume")
        await asyncio.to_thread(vip.until, HEALTHY)
        vip.store.kill()
        await asyncio.to_thread(vip.until, nothing | {"io_vip_paused": 0.0, "io_vip_store_watched": 0.0, "io_vip_lapses_total": 1.0})

    @staticmethod
    def keep(file: Path, text: str) -> Path:
        file.write_text(text)
        return file


def main() -> int:
    parser = harness.arguments(__doc__)
    parser.add_argument("--screenshots", type=Path, metavar="FOLDER", help="only write pictures of the page for the documentation, as root")
    options = parser.parse_args()
    hosts.end_with_signals()
    if options.screenshots is not None:
        import pictures

        return pictures.take(Path(options.bin_dir).resolve(), options.screenshots.resolve())
    View.bin_dir = options.bin_dir
    return harness.run([View], options.pattern)


if __name__ == "__main__":
    sys.exit(main())
