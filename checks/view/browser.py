"""A headless Chromium for the checks of the status page, driven over its DevTools protocol with Debian's `websockets`.

    async with Browser() as browser, browser.page() as page:
        await page.open("http://127.0.0.1:8080/")
        await page.wait_for("document.querySelector('tr[data-host]')")

Nothing here sleeps: what has to be waited for is looked at in the page whenever the page changes.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import websockets

PATIENCE = 30.0
# The programs themselves before Debian's scripts around them: a script would be the process that we end.
PROGRAMS = (
    "/usr/lib/chromium/chromium-headless-shell", "chromium-headless-shell", "/usr/lib/chromium/chromium", "chromium",
)
# name: (key, code, virtual key code, text that it types)
KEYS = {
    "Enter": ("Enter", "Enter", 13, "\r"), "Tab": ("Tab", "Tab", 9, ""), "Escape": ("Escape", "Escape", 27, ""),
    "Space": (" ", "Space", 32, " "), "Backspace": ("Backspace", "Backspace", 8, ""), "/": ("/", "Slash", 191, "/"),
    "ArrowDown": ("ArrowDown", "ArrowDown", 40, ""), "ArrowUp": ("ArrowUp", "ArrowUp", 38, ""),
}
SHIFT = 8

leaders: set[int] = set()
"""The sessions of the browsers that run: for who has to end them all at once."""


class BrowserError(Exception):
    """The browser did not do what it was told, or what was waited for did not happen."""


def program() -> str | None:
    """The browser of this machine, if it has one."""
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


class Page:
    """One tab, with cookies and storage of its own, and all that went wrong in it."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session
        self._loaded = asyncio.Event()
        self._size: tuple[int, int, bool, float] = (1280, 900, False, 1)
        self.errors: list[str] = []
        """Errors on the console and exceptions that nobody caught."""
        self.violations: list[str] = []
        """What the content security policy had to forbid."""
        self.requests: list[str] = []
        """The addresses that were asked for."""

    async def call(self, method: str, **arguments: Any) -> dict[str, Any]:
        return await self._browser.call(method, self._session, **arguments)

    async def _start(self) -> None:
        for domain in ("Page", "Runtime", "Log", "Network", "Audits"):
            await self.call(f"{domain}.enable")
        # Without it only the tab in front has the focus.
        await self.call("Emulation.setFocusEmulationEnabled", enabled=True)

    def _event(self, method: str, what: dict[str, Any]) -> None:
        if method == "Page.loadEventFired":
            self._loaded.set()
        elif method == "Network.requestWillBeSent":
            self.requests.append(what["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            details = what["exceptionDetails"]
            self.errors.append(str(details.get("exception", {}).get("description", details["text"])))
        elif method == "Runtime.consoleAPICalled" and what["type"] in ("error", "assert"):
            self.errors.append(" ".join(str(a.get("value", a.get("description"))) for a in what["args"]))
        elif method == "Log.entryAdded" and what["entry"]["level"] == "error":
            entry = what["entry"]
            self.errors.append(f"{entry['text']} {entry.get('url', '')}".strip())
        elif method == "Audits.issueAdded" and what["issue"]["code"] == "ContentSecurityPolicyIssue":
            self.violations.append(json.dumps(what["issue"]["details"]["contentSecurityPolicyIssueDetails"]))

    async def open(self, url: str, timeout: float = PATIENCE) -> None:
        """Goes there and waits until all of the page is loaded."""
        self._loaded.clear()
        answer = await self.call("Page.navigate", url=url)
        if "errorText" in answer:
            raise BrowserError(f"{url}: {answer['errorText']}")
        async with asyncio.timeout(timeout):
            await self._loaded.wait()

    async def evaluate(self, expression: str, timeout: float = PATIENCE) -> Any:
        """The value of an expression, as JSON can carry it; a promise is awaited."""
        async with asyncio.timeout(timeout):
            answer = await self.call(
                "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=True
            )
        if failed := answer.get("exceptionDetails"):
            raise BrowserError(str(failed.get("exception", {}).get("description", failed["text"])))
        return answer["result"].get("value")

    async def wait_for(self, predicate: str, timeout: float = PATIENCE) -> Any:
        """Waits until a JavaScript expression is true, and gives its value. It is looked at with every change of the document."""
        script = f"""new Promise((resolve, reject) => {{
            let trouble = "";
            const events = ["focusin", "focusout", "input", "close", "scroll"];
            const end = () => {{
                clearTimeout(timer);
                observer.disconnect();
                for (const name of events) document.removeEventListener(name, look, true);
            }};
            const look = () => {{
                let value;
                try {{ value = ({predicate}); }} catch (error) {{ trouble = " " + error; return; }}
                if (value) {{ end(); resolve(value); }}
            }};
            const observer = new MutationObserver(look);
            const timer = setTimeout(() => {{ end(); reject(new Error("it did not become true" + trouble)); }}, {timeout * 1000});
            observer.observe(document, {{subtree: true, childList: true, attributes: true, characterData: true}});
            for (const name of events) document.addEventListener(name, look, true);
            look();
        }})"""
        try:
            return await self.evaluate(script, timeout + 5)
        except (BrowserError, TimeoutError) as error:
            raise BrowserError(f"waited {timeout} s for {predicate}: {error}") from error

    async def press(self, key: str, modifiers: int = 0, times: int = 1) -> None:
        """Presses a key, as a keyboard does: a name of KEYS or a character."""
        # The number of a dot would be that of Delete: signs have none.
        name, code, number, text = KEYS.get(key) or (key, "", ord(key.upper()) if key.isalnum() else 0, key)
        fields: dict[str, Any] = {"key": name, "code": code, "windowsVirtualKeyCode": number, "modifiers": modifiers}
        for _ in range(times):
            await self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **fields)
            await self.call("Input.dispatchKeyEvent", type="keyUp", **fields)

    async def write(self, text: str) -> None:
        for character in text:
            await self.press(character)

    async def tab_to(self, predicate: str, most: int = 80) -> bool:
        """Presses Tab until a JavaScript expression about `element`, which has the focus, is true."""
        for _ in range(most):
            await self.press("Tab")
            if await self.evaluate(f"(element => Boolean({predicate}))(document.activeElement)"):
                return True
        return False

    async def size(self, width: int, height: int, mobile: bool = False, scale: float = 1) -> None:
        self._size = (width, height, mobile, scale)
        await self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=mobile)

    async def prefer(self, scheme: str = "light", motion: str = "no-preference") -> None:
        """What the person at the screen likes: light or dark, and motion as usual or `reduce`."""
        features = [{"name": "prefers-color-scheme", "value": scheme}, {"name": "prefers-reduced-motion", "value": motion}]
        await self.call("Emulation.setEmulatedMedia", features=features)

    async def screenshot(self, path: Path, whole: bool = False) -> None:
        """Writes a PNG of what is seen, or of the whole page."""
        seen = self._size
        if whole:
            # As tall as the page: what is out of sight may not have been drawn.
            await self.size(seen[0], await self.evaluate("document.documentElement.scrollHeight"), *seen[2:])
            await self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        try:
            answer = await self.call("Page.captureScreenshot", format="png")
        finally:
            await self.size(*seen)
        path.write_bytes(base64.b64decode(answer["data"]))


class Browser:
    """A browser process with a profile of its own. Both are gone after it, whatever happens inside."""

    def __init__(self, folder: Path | None = None) -> None:
        """All that it writes is inside of `folder`, or of the place for temporary files."""
        self._folder = folder
        self._ids = 0
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._pages: dict[str, Page] = {}
        self._stack = contextlib.AsyncExitStack()
        self._socket: Any = None

    async def __aenter__(self) -> Browser:
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _start(self) -> None:
        found = program()
        if found is None:
            raise BrowserError("there is no browser: install the Debian package `chromium-headless-shell` (or `chromium`)")
        profile = tempfile.mkdtemp(prefix="browser-", dir=self._folder)
        # A process of the browser may still write into it while it ends.
        self._stack.callback(shutil.rmtree, profile, ignore_errors=True)
        options = [
            "--headless", "--remote-debugging-port=0", f"--user-data-dir={profile}", "--no-first-run",
            "--no-default-browser-check",
            "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--disable-extensions",
            "--disable-sync",
            "--hide-scrollbars", "--mute-audio", "--no-proxy-server",
        ]
        if os.geteuid() == 0:
            options.append("--no-sandbox")
        process = await asyncio.create_subprocess_exec(
            found, *options, "about:blank", stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE, start_new_session=True, env=os.environ | {"TMPDIR": profile},
        )
        leaders.add(process.pid)
        self._stack.push_async_callback(self._end, process)
        assert process.stderr is not None
        async with asyncio.timeout(PATIENCE):
            address = await self._listening(process.stderr)
        # What it says later has to go somewhere, or it stops in the middle of a line.
        self._task(self._drop(process.stderr))
        self._socket = await websockets.connect(address, max_size=None, ping_interval=None, close_timeout=2, compression=None)
        self._stack.push_async_callback(self._socket.close)
        self._task(self._read())

    def _task(self, work: Any) -> None:
        task = asyncio.create_task(work)

        async def cancel() -> None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        self._stack.push_async_callback(cancel)

    @staticmethod
    async def _listening(stderr: asyncio.StreamReader) -> str:
        """Where it listens. It says so before it has written DevToolsActivePort, which is therefore not what to read."""
        said = b""
        while line := await stderr.readline():
            said += line
            if b"DevTools listening on" in line:
                return line.split()[-1].decode()
        raise BrowserError(f"the browser did not start: {said.decode(errors='replace')[-2000:]}")

    @staticmethod
    async def _drop(stderr: asyncio.StreamReader) -> None:
        while await stderr.read(65536):
            pass

    @staticmethod
    async def _end(process: asyncio.subprocess.Process) -> None:
        """Ends the session that the browser leads: itself and the processes that it started, and no others."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(5):
                    await process.wait()
        leaders.discard(process.pid)

    async def _read(self) -> None:
        try:
            async for text in self._socket:
                self._take(json.loads(text))
        finally:
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(BrowserError("the browser hung up"))

    def _take(self, said: dict[str, Any]) -> None:
        if "id" in said:
            waiting = self._waiting.get(said["id"])
            if waiting is None or waiting.done():
                return
            if "error" in said:
                waiting.set_exception(BrowserError(str(said["error"])))
            else:
                waiting.set_result(said["result"])
        elif page := self._pages.get(said.get("sessionId", "")):
            page._event(said["method"], said["params"])

    async def call(self, method: str, session: str | None = None, **arguments: Any) -> dict[str, Any]:
        """Tells the browser something and gives its answer."""
        self._ids += 1
        number = self._ids
        waiting: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = waiting
        try:
            told: dict[str, Any] = {"id": number, "method": method, "params": arguments}
            await self._socket.send(json.dumps(told if session is None else told | {"sessionId": session}))
            async with asyncio.timeout(PATIENCE * 2):
                return await waiting
        finally:
            del self._waiting[number]

    @contextlib.asynccontextmanager
    async def page(self, width: int = 1280, height: int = 900) -> AsyncIterator[Page]:
        context = (await self.call("Target.createBrowserContext"))["browserContextId"]
        try:
            target = (await self.call("Target.createTarget", url="about:blank", browserContextId=context))["targetId"]
            session = (await self.call("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
            page = self._pages[session] = Page(self, session)
            await page._start()
            await page.size(width, height)
            yield page
        finally:
            # The browser may be what failed.
            with contextlib.suppress(BrowserError, TimeoutError, websockets.ConnectionClosed):
                await self.call("Target.disposeBrowserContext", browserContextId=context)
