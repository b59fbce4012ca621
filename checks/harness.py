"""What the Python checks share: a test runner that prints what ./checks/run reads, and a WebSocket client.

The client is Debian's `websockets`, on purpose: it knows nothing of our code, so what it takes for granted is what
any client takes for granted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
import time
import unittest
from typing import Any

import websockets

KEY = "checks-key-0123456789abcdef0123456789abcdef"
PORT = 9876
# Longer than anything that a test waits for; shorter than a person's patience.
PATIENCE = 60.0

AUTH_OK = '{"type": "auth", "status": "ok", "message": "Authentication successful"}'
AUTH_ERROR = '{"type": "auth", "status": "error", "message": "Invalid key"}'
NOT_AUTHENTICATED = '{"type": "error", "message": "Not authenticated"}'
INVALID_JSON = '{"type": "error", "message": "Invalid JSON"}'
PONG = '{"type": "response", "action": "ping", "status": "ok", "message": "pong"}'


# unittest runs asyncio in its debug mode, which reports every slow step: noise here.
logging.getLogger("asyncio").setLevel(logging.CRITICAL)


class Peer:
    """One connection to a guardian."""

    def __init__(self, socket: Any) -> None:
        self.socket = socket

    @classmethod
    async def dial(cls, port: int = PORT, host: str = "127.0.0.1", **options: Any) -> Peer:
        shown = f"[{host}]" if ":" in host else host
        options.setdefault("ping_interval", None)
        options.setdefault("close_timeout", 2)
        options.setdefault("open_timeout", 10)
        return cls(await websockets.connect(f"ws://{shown}:{port}", **options))

    @classmethod
    async def trusted(cls, port: int = PORT, host: str = "127.0.0.1", key: str = KEY, **options: Any) -> Peer:
        """A connection that has authenticated."""
        peer = await cls.dial(port, host, **options)
        try:
            said = await peer.say_text(json.dumps({"type": "auth", "key": key}))
            if said != AUTH_OK:
                raise AssertionError(f"authentication was answered with {said}")
        except BaseException:
            peer.abort()
            raise
        return peer

    def abort(self) -> None:
        """Hangs up with no farewell."""
        self.socket.transport.abort()

    async def send_text(self, text: str | bytes) -> None:
        await self.socket.send(text)

    async def send(self, action: str, **fields: Any) -> None:
        await self.send_text(json.dumps({"type": "command", "action": action, **fields}))

    async def receive_text(self, timeout: float = PATIENCE) -> str:
        # Not wait_for: in Python 3.11 it can swallow a cancellation.
        async with asyncio.timeout(timeout):
            text: str = await self.socket.recv()
            return text

    async def receive(self, timeout: float = PATIENCE) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(await self.receive_text(timeout))
        return answer

    async def say_text(self, text: str | bytes, timeout: float = PATIENCE) -> str:
        """Sends a frame and gives the answer, both as text."""
        await self.send_text(text)
        return await self.receive_text(timeout)

    async def ask(self, action: str, timeout: float = PATIENCE, **fields: Any) -> dict[str, Any]:
        """Sends a command and gives its answer."""
        await self.send(action, **fields)
        return await self.receive(timeout)

    async def closed(self, timeout: float = PATIENCE) -> tuple[int | None, str]:
        """Waits until the guardian closes. Gives code and reason."""
        async with asyncio.timeout(timeout):
            await self.socket.wait_closed()
        return self.socket.close_code, self.socket.close_reason

    async def close(self) -> None:
        await self.socket.close()

    async def __aenter__(self) -> Peer:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def sentence(test: unittest.TestCase) -> str:
    """What a test shows: its doc comment, or its name as words."""
    return test.shortDescription() or test.id().rsplit(".", 1)[-1].removeprefix("test_").replace("_", " ")


class Result(unittest.TestResult):
    """Prints one line for each test as it ends, and each failure where it happened."""

    def __init__(self) -> None:
        super().__init__()
        self.passed = 0
        self._bad = False

    def startTest(self, test: unittest.TestCase) -> None:
        super().startTest(test)
        self._started = time.monotonic()
        self._bad = False

    def _line(self, word: str, test: Any, more: str = "") -> None:
        took = time.monotonic() - getattr(self, "_started", time.monotonic())
        print(f"{word:<4} {sentence(test)} ({took:.1f} s){more}", flush=True)

    def _fail(self, test: unittest.TestCase, trace: str) -> None:
        self._bad = True
        self._line("FAIL", test)
        print("     " + f"{test.id()}\n{trace}".rstrip().replace("\n", "\n     "), flush=True)
        try:
            evidence = test.evidence()  # type: ignore[attr-defined]
        except Exception as error:  # noqa: BLE001 # What failed already may have left nothing to look at.
            evidence = f"no more evidence: {error!r}"
        print("     " + evidence.rstrip().replace("\n", "\n     "), flush=True)

    def addSuccess(self, test: unittest.TestCase) -> None:
        self.passed += 1
        self._line("ok", test)

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:
        super().addFailure(test, err)
        self._fail(test, self.failures[-1][1])

    def addError(self, test: unittest.TestCase, err: Any) -> None:
        super().addError(test, err)
        self._fail(test, self.errors[-1][1])

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Any) -> None:
        super().addSubTest(test, subtest, err)
        if err is not None:
            self._fail(subtest, (self.failures or self.errors)[-1][1])

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        super().addSkip(test, reason)
        # Not the word that ./checks/run subtracts: a skipped test is not among the passed ones here.
        print(f"test {sentence(test)} ... ignored, {reason}", flush=True)


def arguments(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    parser.add_argument("--bin-dir", default="target/debug", help="where io-guardian and io-coordinator are")
    parser.add_argument("-k", dest="pattern", action="append", help="only tests whose name has this part")
    return parser


def run(suite_of: list[type[unittest.TestCase]], patterns: list[str] | None) -> int:
    """Runs the tests and prints the line that ./checks/run reads."""
    loader = unittest.TestLoader()
    if patterns:
        loader.testNamePatterns = [p if "*" in p else f"*{p}*" for p in patterns]
    suite = unittest.TestSuite(loader.loadTestsFromTestCase(case) for case in suite_of)
    result = Result()
    started = time.monotonic()
    suite.run(result)
    failed = len(result.failures) + len(result.errors) + len(result.unexpectedSuccesses)
    print(
        f"test result: {'FAILED' if failed else 'ok'}. {result.passed} passed; {failed} failed; "
        f"{len(result.skipped)} ignored; finished in {time.monotonic() - started:.1f} s",
        flush=True,
    )
    sys.stdout.flush()
    return 1 if failed else 0
