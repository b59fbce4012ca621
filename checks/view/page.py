"""What the status page shows, in a real browser.

`check` needs only a server that follows the contract of the page, whatever its fleet. `Made` gives orders to stand_in.py, for what
no real fleet does when it is told to: hostile texts, a thousand hosts, a server that is gone for a while.
"""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlencode

import stand_in
from browser import PATIENCE, SHIFT, Browser, BrowserError, Page

Part = Callable[[Page], Awaitable[None]]
# Makes something happen in the fleet. Gives the JavaScript that is true when the page shows it.
Poke = Callable[[], Awaitable[str]]

STATES = ("lost", "failed", "degraded", "draining", "undraining", "held", "drained", "unknown", "undrained")
LIVE = "document.querySelector('#connection').dataset.state === 'live' && document.querySelector('tr[data-host]')"
SHOWN = "[...document.querySelectorAll('tr[data-host]')].filter(row => !row.parentNode.hidden)"

# The contrast of each text that is seen, by WCAG 2: gives what is below 4.5.
CONTRAST = """(() => {
    const parse = color => { const n = color.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
    const over = (a, b) => [0, 1, 2].map(i => a[i] * a[3] + b[i] * (1 - a[3])).concat(1);
    const light = c => c.slice(0, 3).map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
    const back = node => {
        if (!node) return [255, 255, 255, 1];
        const own = parse(getComputedStyle(node).backgroundColor);
        return own[3] === 1 ? own : over(own, back(node.parentElement));
    };
    const bad = [];
    let seen = 0;
    for (const node of document.querySelectorAll("body *")) {
        if (![...node.childNodes].some(n => n.nodeType === 3 && n.data.trim()) || !node.checkVisibility()) continue;
        if (node.matches("script, style, template, noscript, :disabled")) continue;
        const behind = back(node), color = over(parse(getComputedStyle(node).color), behind);
        const [high, low] = [light(color), light(behind)].sort((a, b) => b - a);
        const ratio = (high + .05) / (low + .05);
        seen += 1;
        if (ratio < 4.5) bad.push(`${node.tagName}.${node.className} ${ratio.toFixed(2)} ${node.textContent.slice(0, 40)}`);
    }
    return [seen, bad];
})()"""


def expect(true: object, sentence: str) -> None:
    if not true:
        raise AssertionError(sentence)


def troubles(page: Page, base_url: str) -> list[str]:
    """What no page may have: errors, forbidden content, and requests to anyone else."""
    origin = base_url.rstrip("/") + "/"
    foreign = [url for url in page.requests if not url.startswith((origin, "data:"))]
    wrong = [f"error: {e}" for e in page.errors] + [f"forbidden: {v}" for v in page.violations]
    return wrong + [f"asked for {u}" for u in foreign]


async def in_tab(browser: Browser, base_url: str, name: str, part: Part) -> list[str]:
    """Runs one part in a tab of its own. Gives what failed."""
    failures: list[str] = []
    async with browser.page() as page:
        try:
            await page.prefer("light")
            await page.open(base_url)
            await page.wait_for(LIVE)
            await part(page)
        except (AssertionError, BrowserError, TimeoutError) as error:
            failures.append(str(error) or repr(error))
        failures += troubles(page, base_url)
    return [f"{name}: {failure}" for failure in failures]


async def keyboard(page: Page) -> None:
    """Everything without a mouse."""
    expect(await page.tab_to("element.matches('#counts > button')"), "Tab does not reach the counts")
    for _ in STATES:
        if await page.evaluate("!document.activeElement.hasAttribute('data-zero')"):
            break
        await page.press("Tab")
    state = await page.evaluate("document.activeElement.dataset.shown")
    total = await page.evaluate(f"{SHOWN}.length")
    await page.press("Space")
    await page.wait_for("document.activeElement.getAttribute('aria-pressed') === 'true'")
    words = await page.evaluate(f"{SHOWN}.map(row => row.querySelector('.badge').dataset.shown)")
    expect(words and set(words) == {state}, f"the count {state} as a filter shows {words}")
    await page.press("Space")
    await page.wait_for(f"{SHOWN}.length === {total}")

    expect(await page.tab_to("element.matches('tr[data-host] .opener')"), "Tab does not reach a host")
    outline = await page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    expect(outline != "none", "the focus cannot be seen")
    await page.press("Enter")
    await page.wait_for("document.activeElement.getAttribute('aria-expanded') === 'true'")
    controls = "document.getElementById(document.activeElement.getAttribute('aria-controls'))"
    expect(await page.evaluate(f"{controls}.checkVisibility()"), "the details are not seen")
    await page.press("Enter")
    await page.wait_for("document.activeElement.getAttribute('aria-expanded') === 'false'")

    await page.press("/")
    await page.wait_for("document.activeElement.id === 'filter'")
    names = await page.evaluate(f"{SHOWN}.map(row => row.dataset.host)")
    wanted = min(names, key=len)
    await page.write(wanted)
    await page.wait_for(f"{SHOWN}.length < {max(len(names), 2)}")
    left = await page.evaluate(f"{SHOWN}.map(row => row.dataset.host)")
    expect(wanted in left, f"the filter {wanted} left {left}")
    await page.write(" no-such-host")
    await page.wait_for("document.querySelector('#none').checkVisibility()")
    expect(await page.tab_to("element.id === 'clear'", 2), "Tab does not go from the filter to what ends it")
    await page.press("Enter")
    await page.wait_for(f"{SHOWN}.length === {len(names)}")
    await page.press("Tab", SHIFT)
    expect(await page.evaluate("document.activeElement !== document.body"), "Shift and Tab lose the focus")


async def schemes(page: Page) -> None:
    """Light and dark differ, and each text can be read in both."""
    backgrounds: set[str] = set()
    await page.evaluate("document.querySelector('tr[data-host] .opener').click()")
    for scheme in ("light", "dark"):
        await page.prefer(scheme)
        backgrounds.add(await page.evaluate("getComputedStyle(document.body).backgroundColor"))
        # A fleet has not all states at the same time: its first badge takes each of them.
        for state in STATES:
            taken = f"document.querySelector('tr[data-host] .badge').dataset.shown = '{state}'"
            seen, bad = await page.evaluate(f"{taken}, {CONTRAST}")
            expect(seen > 20, f"only {seen} texts were looked at")
            expect(not bad, f"too little contrast in {scheme}, {state}: {bad}")
    expect(len(backgrounds) == 2, f"the background is {backgrounds} in light and in dark")


async def phone(page: Page) -> None:
    """Nothing is wider than a small phone, open details and dialogs included."""
    await page.size(360, 740, mobile=True, scale=2)
    await page.evaluate("[...document.querySelectorAll('tr[data-host] .opener')].slice(0, 20).forEach(button => button.click())")
    await page.wait_for("document.querySelector('.details')")
    wide = await page.evaluate("document.documentElement.scrollWidth")
    over = await page.evaluate(
        "[...document.querySelectorAll('body *')].filter(n => n.checkVisibility() && !n.closest('thead') "
        "&& n.getBoundingClientRect().right > 361).map(n => n.tagName + '.' + n.className).slice(0, 5)"
    )
    expect(wide <= 360 and not over, f"it is {wide} px wide on a phone of 360: {over}")


async def markup(page: Page) -> None:
    """The language, the viewport, the live region and the names of what can be used."""
    expect(await page.evaluate("document.documentElement.lang === 'en'"), "the language is not said")
    expect(await page.evaluate("Boolean(document.querySelector('meta[name=viewport]'))"), "there is no viewport")
    sentence = await page.evaluate("document.querySelector('[aria-live=polite]').textContent")
    total = await page.evaluate("document.querySelectorAll('tr[data-host]').length")
    expect(sentence.startswith(f"{total} host"), f"the sentence is {sentence!r} with {total} hosts")
    tree = (await page.call("Accessibility.getFullAXTree"))["nodes"]
    nameless = [
        node["role"]["value"] for node in tree if not node.get("ignored")
        and node["role"]["value"] in ("button", "textbox", "searchbox", "table", "dialog")
        and not node.get("name", {}).get("value")
    ]
    expect(not nameless, f"without a name: {nameless}")


def live(poke: Poke) -> Part:
    async def part(page: Page) -> None:
        """News arrive, and leave the focus and what is open alone."""
        await page.evaluate("document.querySelector('tr[data-host] .opener').focus()")
        await page.press("Enter")
        await page.wait_for("document.querySelector('.details')")
        await page.evaluate("window.before = document.activeElement, 0")
        predicate = await poke()
        await page.wait_for(predicate)
        expect(await page.evaluate("document.activeElement === window.before"), "news took the focus away")
        expect(await page.evaluate("window.before.getAttribute('aria-expanded') === 'true'"), "news closed the details")
    return part


def session(token: str | None) -> Part:
    async def part(page: Page) -> None:
        """Commands are there for who has the token, and for no one else. None is sent."""
        if not (await page.evaluate("fetch('api/fleet').then(answer => answer.json())"))["coordinator"]["commands"]:
            expect(await page.evaluate("document.querySelector('#sign').hidden"), "signing in is offered, for nothing")
            return
        visible = "[...document.querySelectorAll('#bulk, .details .actions')].filter(node => node.checkVisibility()).length"
        await page.evaluate("document.querySelector('tr[data-host] .opener').click()")
        expect(await page.evaluate(visible) == 0, "commands are offered without a token")
        await sign_in(page, "wrong-token")
        await page.wait_for("document.querySelector('#sign-in-error').textContent")
        expect(len(page.errors) == 1 and "401" in page.errors[0], f"a wrong token is answered with {page.errors}")
        page.errors.clear()
        await page.press("Escape")
        await page.wait_for("!document.querySelector('dialog[open]')")
        expect(await page.evaluate(visible) == 0, "commands are offered with a wrong token")
        if token is None:
            return
        await sign_in(page, token)
        await page.wait_for(f"{visible} === 2")
        await use(page, ".details [data-act=hold]")
        await page.wait_for("document.activeElement.id === 'reason'")
        await page.press("Enter")
        await page.wait_for("document.querySelector('#confirm-error').textContent")
        await page.press("Escape")
        await page.wait_for("!document.querySelector('dialog[open]')")
        await page.open(await page.evaluate("location.href"))
        await page.wait_for("document.querySelector('#bulk').checkVisibility()")
        await use(page, "#sign")
        await page.wait_for("!document.querySelector('#bulk').checkVisibility()")
        expect(await page.evaluate("sessionStorage.length") == 0, "signing out leaves the token behind")
    return part


async def use(page: Page, selector: str) -> None:
    """A button, as by keyboard."""
    await page.evaluate(f"document.querySelector('{selector}').focus()")
    await page.press("Enter")


async def sign_in(page: Page, token: str) -> None:
    await use(page, "#sign")
    await page.wait_for("document.activeElement.id === 'token'")
    await page.write(token)
    await page.press("Enter")


async def check(base_url: str, browser: Browser, poke: Poke | None = None, token: str | None = None) -> list[str]:
    """All that a fleet of any kind has to show. Gives what failed; no command is sent."""
    parts: dict[str, Part] = {
        "keyboard": keyboard, "schemes": schemes, "phone": phone, "markup": markup, "session": session(token),
    }
    if poke is not None:
        parts["live"] = live(poke)
    failures: list[str] = []
    for name, part in parts.items():
        failures += await in_tab(browser, base_url, name, part)
    return failures


class Made:
    """The parts that need the made-up fleet of stand_in.py, which they give orders."""

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url

    async def ask(self, path: str, body: bytes | None = None) -> Any:
        def fetch() -> Any:
            with urllib.request.urlopen(f"{self.base_url}stand-in/{path}", body, timeout=PATIENCE) as answer:
                return json.load(answer)
        return await asyncio.to_thread(fetch)

    async def order(self, what: str, **asked: str) -> None:
        await self.ask(f"{what}?{urlencode(asked)}", b"")

    async def change(self, host: str, **fields: Any) -> None:
        await self.order("change", host=host, fields=json.dumps(fields))

    async def said(self) -> Any:
        return await self.ask("said")

    async def drain(self) -> str:
        await self.order("drain", host="app1")
        return "document.querySelector('tr[data-host=app1][data-state=drained]')"

    async def hostile(self, page: Page) -> None:
        """Texts of other hosts stay texts."""
        await page.evaluate("document.querySelectorAll('tr[data-host] .opener').forEach(button => button.click())")
        await page.wait_for("document.querySelectorAll('.details').length === 20")
        expect(await page.evaluate("document.querySelectorAll('img, main script').length") == 0, "a text became an element")
        units = "[...document.querySelectorAll('.details')].map(node => node.querySelectorAll('.parts')[1].children.length)"
        expect(await page.evaluate(f"Math.max(...{units})") == 201, "a long list of units is shown in full")
        told = await page.evaluate("document.querySelector('main').textContent.includes('300 more')")
        expect(told, "it is not said what is left out")

    async def order_kept(self, page: Page) -> None:
        """The order waits while a row has the focus or a text is selected, and no longer."""
        first = "document.querySelector('tr[data-host]').dataset.host"
        await page.evaluate("document.querySelector('tr[data-host=app9] .opener').focus()")
        place = "[...document.querySelectorAll('tr[data-host]')].findIndex(row => row.dataset.host === 'app9')"
        before = await page.evaluate(place)
        await self.change("app9", link="lost")
        await page.wait_for("document.querySelector('tr[data-host=app9][data-link=lost] [data-shown=lost]')")
        expect(await page.evaluate(place) == before, "the row moved away from under the focus")
        expect(await page.evaluate("document.querySelector('#order').checkVisibility()"), "it is not said that the order waits")
        await page.press("/")
        await page.wait_for(f"{first} === 'app9'")
        await page.evaluate(
            "getSelection().selectAllChildren(document.querySelector('tr[data-host=batch2] [data-ref=standing]')), 0"
        )
        selected = await page.evaluate("getSelection().toString()")
        await self.change("batch2", link="lost", generation=77, seen_ms=1)
        await self.change("app8", link="lost", standing="another sentence")
        await page.wait_for("document.querySelector('tr[data-host=app8] [data-ref=standing]').textContent === 'another sentence'")
        expect(selected and await page.evaluate("getSelection().toString()") == selected, "news took the selection away")
        await page.evaluate("getSelection().removeAllRanges()")
        await page.wait_for(f"{first} === 'app8'")

    async def reconnect(self, page: Page) -> None:
        """A server that is gone is seen, and one that is back as well."""
        await self.order("cut")
        await page.wait_for("document.querySelector('#connection').dataset.state === 'reconnecting'")
        expect(await page.evaluate("document.querySelector('#banner').checkVisibility()"), "it is not said that all may be old")
        expect((await page.evaluate("document.title")).startswith("No connection"), "the title does not say it")
        await self.order("reset")
        await page.wait_for(LIVE)
        expect(await page.evaluate("!document.querySelector('#banner').checkVisibility()"), "the banner stays")
        page.errors[:] = [error for error in page.errors if "503" not in error and "ERR_" not in error]

    async def commands(self, page: Page) -> None:
        """What is confirmed is what is sent."""
        await sign_in(page, stand_in.TOKEN)
        await page.wait_for("document.querySelector('#bulk').checkVisibility()")
        already = len(await self.said())
        await page.evaluate("document.querySelector('tr[data-host=app1] .opener').click()")
        await use(page, ".details [data-act=hold]")
        await page.wait_for("document.activeElement.id === 'reason'")
        await page.write("a new disk")
        await page.press("Tab")
        await page.write("soon")
        await page.press("Enter")
        await page.wait_for("document.querySelector('#confirm-error').textContent.includes('2h')")
        await page.press("Backspace", times=4)
        await page.write("1h30m")
        await page.press("Enter")
        await page.wait_for("!document.querySelector('dialog[open]') && document.querySelector('#notice').textContent")
        await page.press("/")
        await page.write("batch")
        await page.wait_for(f"{SHOWN}.length === 2")
        await use(page, "[data-act=drain-shown]")
        # Enter is on Cancel.
        await page.press("Enter")
        await page.wait_for("!document.querySelector('dialog[open]')")
        await use(page, "[data-act=drain-shown]")
        expect(await page.tab_to("element.id === 'confirm-yes'", 6), "Tab does not reach the button that does it")
        await page.press("Enter")
        await page.wait_for("!document.querySelector('dialog[open]')")
        await use(page, "#holds [data-act=release]")
        await use(page, "#confirm-yes")
        await page.wait_for("!document.querySelector('dialog[open]')")
        said = (await self.said())[already:]
        expect(said == [
            {"action": "hold", "hosts": ["app1"], "reason": "a new disk", "for_ms": 5_400_000},
            {"action": "drain", "hosts": ["batch1", "batch2"]},
            {"action": "release", "hosts": ["batch2"]},
        ], f"it sent {said}")
        await use(page, "tr[data-host=batch1] .opener")
        await page.wait_for("document.querySelector('tr[data-host=batch1] + .details')")
        await use(page, "tr[data-host=batch1] + .details [data-act=hold]")
        await page.wait_for("document.activeElement.id === 'reason'")
        await page.write("refuse")
        await page.press("Enter")
        await page.wait_for("document.querySelector('#confirm-error').textContent.includes('refused, as asked for')")
        expect(await page.evaluate("document.querySelector('#confirm').open"), "an error closes the dialog")
        page.errors[:] = [error for error in page.errors if "400" not in error]

    async def many(self, page: Page) -> None:
        """With a thousand hosts, news of one of them touches that row and little else."""
        await self.order("many", n="1000")
        await page.wait_for("document.querySelectorAll('tr[data-host]').length === 1000")
        # The first drawing of them all is not what is measured.
        await page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        await page.evaluate("""(() => {
            window.touched = 0;
            new MutationObserver(records => { window.touched += records.length; })
                .observe(document.body, {subtree: true, childList: true, attributes: true, characterData: true});
        })()""")
        await self.change("node500", state="degraded")
        await page.wait_for("document.querySelector('tr[data-host]').dataset.host === 'node500'")
        touched = await page.evaluate("new Promise(done => setTimeout(() => done(window.touched), 0))")
        expect(touched < 40, f"one event led to {touched} changes of the document")
        for n in range(300):
            await self.change(f"node{n}", state="draining")
        await page.wait_for("document.querySelectorAll('tr[data-state=draining]').length === 300")


async def check_made_up(browser: Browser) -> list[str]:
    """All of it, with the made-up fleet."""
    server = stand_in.serve()
    base_url = f"http://127.0.0.1:{server.server_address[1]}/"
    made = Made(base_url)
    try:
        failures = await check(base_url, browser, made.drain, stand_in.TOKEN)
        await made.order("reset", readonly="")
        failures += await in_tab(browser, base_url, "readonly", session(None))
        for part in (made.hostile, made.order_kept, made.reconnect, made.commands, made.many):
            await made.order("reset")
            failures += await in_tab(browser, base_url, part.__name__, part)
        return failures
    finally:
        server.shutdown()
        server.server_close()
