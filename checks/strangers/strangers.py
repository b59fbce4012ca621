"""Hostile clients against a real guardian on loopback, while a witness looks on. No root needed.

Throughout each attack an authenticated peer pings and is answered, and a coordinator that has just arrived, from
the same address as the attackers, gets in with the right key. Afterwards the guardian's memory never was over 40 MB, its
descriptors have come back, and its log was not flooded.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path
from typing import Any, ClassVar

sys.dont_write_bytecode = True
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import attacks  # noqa: E402
import harness  # noqa: E402
import websockets  # noqa: E402
from harness import KEY, NOT_AUTHENTICATED, PONG, Peer  # noqa: E402

MEMORY_LIMIT_KB = 40 * 1024
LOG_LINES = 1000
PING = '{"type": "command", "action": "ping"}'
# How long the witness may have to wait: on two cores that the attack also uses.
ANSWER_WITHIN = 5.0

CONFIG = """\
host = "127.0.0.1"
port = 0
psk-file = "{folder}/psk"
target = "io-databases.target"
units = "processes"

[[process]]
name = "sleeper"
command = ["/bin/sleep", "1000000"]
"""


class Guardian:
    """A guardian of our own, on a free port of loopback."""

    def __init__(self, bin_dir: str) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="io-guardian-strangers-")
        place = Path(self.folder.name)
        (place / "psk").write_text(KEY)
        (place / "config.toml").write_text(CONFIG.format(folder=place))
        self.log = place / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [str(Path(bin_dir).resolve() / "io-guardian"), "serve", "--config", str(place / "config.toml"), "--state-dir", str(place)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={"PATH": os.environ["PATH"], "RUST_LOG": "info"},
            )  # fmt: skip
        self.port = self._port()

    def _port(self) -> int:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and self.process.poll() is None:
            for line in self.log.read_text(errors="replace").splitlines():
                if "listening" in line and " address=127.0.0.1:" in line:
                    return int(line.split(" address=127.0.0.1:")[1].split()[0])
            time.sleep(0.005)
        said = self.log.read_text(errors="replace")
        self.end()
        raise RuntimeError(f"the guardian did not start to listen:\n{said}")

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.folder.cleanup()

    def memory(self) -> dict[str, int]:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return {line.split(":")[0]: int(line.split()[1]) for line in status.splitlines() if line.startswith(("VmHWM", "VmRSS"))}

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


class Witness:
    """Peers with the right key, in the middle of it all. They come from 127.0.0.1, strangers from other addresses."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.pings = self.arrivals = 0
        self._over = False
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Witness:
        self._peer = await Peer.trusted(self.port)
        self._tasks = [asyncio.create_task(self._ping()), asyncio.create_task(self._arrive())]
        return self

    async def __aexit__(self, *_: object) -> None:
        # Told, not cancelled: nothing of theirs may stay open.
        self._over = True
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._peer.close()

    async def _ping(self) -> None:
        while not self._over:
            answer = await self._peer.say_text(PING, timeout=ANSWER_WITHIN)
            if answer != PONG:
                raise AssertionError(f"a ping was answered with {answer}")
            self.pings += 1
            await asyncio.sleep(0.02)

    async def _arrive(self) -> None:
        while not self._over:
            async with await Peer.trusted(self.port, open_timeout=ANSWER_WITHIN) as peer:
                await peer.say_text(PING, timeout=ANSWER_WITHIN)
            self.arrivals += 1
            await asyncio.sleep(0.1)

    def check(self) -> None:
        """Raises what went wrong for a witness."""
        for task in self._tasks:
            if task.done() and not task.cancelled():
                error = task.exception()
                raise AssertionError(f"a peer with the right key was not served: {error!r}") from error


def _in_child(pipe: Any, attack: Any, arguments: tuple[Any, ...]) -> None:
    try:
        pipe.send(("saw", attack(*arguments)))
    except BaseException as error:  # noqa: BLE001 # It crosses a process boundary: whatever it is, it is told.
        pipe.send(("failed", repr(error)))
    finally:
        pipe.close()
        os._exit(0)


class Strangers(unittest.IsolatedAsyncioTestCase):
    bin_dir: ClassVar[str] = "target/debug"
    maxDiff = None

    async def asyncSetUp(self) -> None:
        asyncio.get_running_loop().set_debug(False)
        self.guardian = Guardian(self.bin_dir)
        self.port = self.guardian.port
        self.addCleanup(self.guardian.end)
        # Once, so that what is made at the first connection is not taken for a leak.
        async with await Peer.trusted(self.port) as peer:
            await peer.ask("ping")
        await self.descriptors_become(None)
        self.at_start = self.guardian.descriptors()

    def evidence(self) -> str:
        lines = self.guardian.log.read_text(errors="replace").splitlines()
        memory: Any = "ended"
        if self.guardian.process.poll() is None:
            places = Path(f"/proc/{self.guardian.process.pid}/fd")
            memory = {**self.guardian.memory(), "fd": sorted(os.readlink(fd) for fd in places.iterdir())}
        return f"--- the guardian: {memory}, {len(lines)} lines of log, the last of them:\n" + "\n".join(lines[-15:])

    async def descriptors_become(self, wanted: int | None) -> None:
        """Waits until the guardian has this many descriptors; with None, until the number has settled."""
        deadline = time.monotonic() + 30
        last = -1
        while (now := self.guardian.descriptors()) != (last if wanted is None else wanted):
            if time.monotonic() > deadline:
                self.fail(f"descriptors did not come back: {now}, at the start {wanted}")
            last = now
            await asyncio.sleep(0.05)

    async def attack(self, attack: Any, *arguments: Any) -> Any:
        """Runs an attack in a process of its own. Gives what it saw."""
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=_in_child, args=(theirs, attack, arguments), daemon=True)
        child.start()
        theirs.close()
        try:
            loop = asyncio.get_running_loop()
            heard: asyncio.Future[None] = loop.create_future()
            loop.add_reader(ours.fileno(), lambda: None if heard.done() else heard.set_result(None))
            try:
                async with asyncio.timeout(150):
                    await heard
            finally:
                loop.remove_reader(ours.fileno())
            kind, saw = ours.recv()
        finally:
            ours.close()
            child.kill()
            child.join()
        self.assertEqual(kind, "saw", saw)
        return saw

    async def withstand(self, attack: Any, *arguments: Any) -> Any:
        """An attack, with witnesses; and what must be true of the guardian after it."""
        async with Witness(self.port) as witness:
            saw = await self.attack(attack, *arguments)
            witness.check()
        self.assertGreater(witness.pings, 0)
        self.assertGreater(witness.arrivals, 0)
        await self.unharmed()
        return saw

    async def unharmed(self) -> None:
        self.assertIsNone(self.guardian.process.poll(), "the guardian has ended")
        memory = self.guardian.memory()
        self.assertLess(memory["VmHWM"], MEMORY_LIMIT_KB, f"kB: {memory}")
        await self.descriptors_become(self.at_start)
        lines = len(self.guardian.log.read_text(errors="replace").splitlines())
        self.assertLess(lines, LOG_LINES, "the log was flooded")
        async with await Peer.trusted(self.port) as peer:
            self.assertEqual((await peer.ask("ping"))["status"], "ok")

    # -- crowds -------------------------------------------------------------------------------------------------

    async def crowd(self, attack: Any, many: bool, count: int = 2000) -> Any:
        saw = await self.withstand(attack, self.port, count, many)
        self.assertEqual((saw["opened"], saw["left"], saw["authenticated"]), (count, 0, 0), saw)
        return saw

    async def test_2000_connections_that_say_nothing(self) -> None:
        await self.crowd(attacks.silent, many=False)

    async def test_2000_connections_from_40_addresses_that_say_nothing(self) -> None:
        await self.crowd(attacks.silent, many=True)

    async def test_2000_connections_that_trickle_a_byte_a_second(self) -> None:
        await self.crowd(attacks.trickling, many=False)

    async def test_2000_connections_from_40_addresses_that_trickle_a_byte_a_second(self) -> None:
        await self.crowd(attacks.trickling, many=True)

    async def test_2000_connections_that_never_authenticate(self) -> None:
        await self.crowd(attacks.unauthenticated, many=False)

    async def test_2000_connections_from_40_addresses_that_never_authenticate(self) -> None:
        await self.crowd(attacks.unauthenticated, many=True)

    async def test_2000_connections_that_trickle_a_frame_a_byte_a_second(self) -> None:
        await self.crowd(attacks.chattering, many=False)

    async def test_wrong_keys_by_the_thousand(self) -> None:
        saw = await self.crowd(attacks.wrong_keys, many=False, count=5000)
        # Ten at once, then one a second: the guardian's own limit. Most make room for the next before.
        self.assertLessEqual(saw["refused"], 200, saw)
        self.assertIn("wrong key", self.guardian.log.read_text(errors="replace"))

    async def test_wrong_keys_by_the_thousand_from_40_addresses(self) -> None:
        saw = await self.crowd(attacks.wrong_keys, many=True, count=5000)
        # Most have to make room for the next ones before they are answered; those that are not are refused.
        self.assertLessEqual(saw["refused"], 5000, saw)
        self.assertIn("wrong key", self.guardian.log.read_text(errors="replace"))

    async def test_a_flood_from_the_coordinators_own_address_does_not_lock_it_out(self) -> None:
        # The flood takes that address's places as fast as they come free; who tries again gets in all the same.
        flood = asyncio.create_task(self.attack(attacks.gather, self.port, 2000, None, attacks.hello(self.port)))
        tried = arrived = 0
        while not flood.done():
            tried += 1
            try:
                async with await Peer.trusted(self.port, open_timeout=ANSWER_WITHIN) as peer:
                    self.assertEqual(await peer.say_text(PING, timeout=ANSWER_WITHIN), PONG)
                arrived += 1
            except (OSError, websockets.WebSocketException):
                pass
            await asyncio.sleep(0.05)
        self.assertEqual((await flood)["left"], 0)
        self.assertGreater(arrived, tried // 2, f"of {tried} attempts")
        await self.unharmed()

    # -- the second version of the wire ---------------------------------------------------------------------------

    async def test_a_client_that_was_written_from_the_documents_speaks_the_second_version(self) -> None:
        for source in ("127.0.0.1", "127.0.0.2"):
            sealed = attacks.Sealed(self.port, KEY, source)
            self.assertIn("pong", sealed.ask(PING))
            status = json.loads(sealed.ask('{"type": "command", "action": "status", "id": 7}'))
            self.assertEqual((status["status"], status["id"]), ("ok", 7), status)
            sealed.peer.close()
        await self.unharmed()

    async def test_handshakes_with_wrong_keys_by_the_thousand(self) -> None:
        saw = await self.withstand(attacks.wrong_keys, self.port, 3000, False, True)
        self.assertEqual((saw["left"], saw["answered"]), (0, 0), saw)
        self.assertLessEqual(saw["refused"], 200, saw)
        self.assertIn("wrong key", self.guardian.log.read_text(errors="replace"))

    async def test_a_recorded_handshake_by_the_thousand(self) -> None:
        saw = await self.withstand(attacks.replayed, self.port, 2000, True, KEY)
        # It is answered, being right; what would follow it needs the key, and nothing does: strangers, all of them.
        self.assertEqual((saw["left"], saw["authenticated"]), (0, 0), saw)
        self.assertGreater(saw["answered"], 0, saw)

    async def test_what_one_with_the_key_seals_is_no_message(self) -> None:
        ping = PING.encode()
        nonsense = {
            "nothing": b"",
            "a kind that is none": b"\x07" + ping,
            "no kind": ping,
            "no text": b"\x00\xff\xfe",
        }
        async with Witness(self.port) as witness:
            for first in (True, False):
                for name, plain in nonsense.items():
                    with self.subTest(name, first=first):
                        sealed = attacks.Sealed(self.port, KEY)
                        if not first:
                            self.assertIn("pong", sealed.ask(PING))
                        sealed.send(sealed.channel.seal_plain(plain))
                        # What follows is right, and must not be heard.
                        sealed.send(sealed.channel.seal(PING))
                        seen, closed = await asyncio.to_thread(attacks.read_to_end, sealed.peer, 20)
                        self.assertEqual((closed, attacks.close_code(seen)), (True, 1002), seen)
                        sealed.peer.close()
            for name, bad in {"a text frame": attacks.frame(attacks.TEXT, ping), "random bytes": attacks.frame(attacks.BINARY, os.urandom(80))}.items():
                with self.subTest(name):
                    sealed = attacks.Sealed(self.port, KEY)
                    sealed.peer.sendall(bad)
                    seen, closed = await asyncio.to_thread(attacks.read_to_end, sealed.peer, 20)
                    self.assertEqual((closed, attacks.close_code(seen)), (True, 1002), seen)
                    sealed.peer.close()
            witness.check()
        await self.unharmed()

    async def test_a_sealed_message_of_100_mb_in_parts_is_not_taken(self) -> None:
        saw = await self.withstand(attacks.endless_fragments, self.port, KEY)
        self.assertTrue(saw["closed"], saw)
        self.assertLess(saw["sent"], 16 << 20, saw)

    # -- sizes --------------------------------------------------------------------------------------------------

    async def test_messages_of_100_mb_announced_and_in_fragments_from_strangers_and_from_peers(self) -> None:
        for key in (None, KEY):
            for fragmented in (False, True):
                with self.subTest(authenticated=key is not None, fragmented=fragmented):
                    saw = await self.withstand(attacks.endless_message, self.port, key, fragmented)
                    self.assertTrue(saw["closed"], saw)
                    # What the two sockets' buffers hold, and not the message.
                    self.assertLess(saw["sent"], 16 << 20, saw)

    async def test_a_message_over_the_limit_is_told_so_with_code_1009(self) -> None:
        peer = await Peer.trusted(self.port)
        await peer.send_text("x" * (64 << 10))
        self.assertEqual((await peer.closed())[0], 1009)
        await self.unharmed()

    async def test_a_million_pings_of_an_authenticated_peer_are_answered_or_refused(self) -> None:
        saw = await self.withstand(attacks.pings, self.port, KEY, 1_000_000)
        # RFC 6455, 5.5.3: pings that are waiting may be answered by one pong, to the last of them.
        self.assertTrue(saw["closed"] or (saw["answered"] and saw["pongs"] > 0), saw)

    async def test_a_million_pings_of_a_stranger_are_refused(self) -> None:
        saw = await self.withstand(attacks.pings, self.port, None, 1_000_000)
        self.assertTrue(saw["closed"], saw)

    async def test_a_million_pings_of_a_peer_that_does_not_read_the_pongs(self) -> None:
        await self.withstand(attacks.pings, self.port, KEY, 1_000_000, False)

    async def test_a_peer_that_asks_and_never_reads_the_answers(self) -> None:
        await self.withstand(attacks.greedy, self.port, KEY, 1_000_000)

    # -- nonsense -----------------------------------------------------------------------------------------------

    async def test_what_is_no_websocket_handshake_is_closed(self) -> None:
        self.assertEqual(await self.withstand(attacks.no_handshake, self.port, 20), {})

    async def test_json_that_is_deep_long_or_odd_is_an_error_and_the_peer_stays(self) -> None:
        odd = [
            "[" * 4000,
            "[" * 4000 + "]" * 4000,
            '{"a":' * 1000 + "1" + "}" * 1000,
            "[" + "1," * 3500 + "1]",
            "9" * 8000,
            "-" + "9" * 8000,
            "1e999999999",
            '{"type": "command", "action": ' + "9" * 4000 + "}",
            '{"type": "command", "action": "ping", "id": ' + "9" * 400 + "}",
            '{"type": "command", "action": "ping", "id": 1e400}',
            '{"type": "command", "action": "ping", "id": {"a": [' + "[" * 100 + "]" * 100 + "]}}",
            '{"type": "command", "action": "ping", "generation": -1}',
            '{"type": "command", "action": "ping", "generation": 1.5}',
            '{"type": "command", "action": "ping", "generation": 99999999999999999999999}',
            '{"type": ["auth"], "key": {}}',
            '{"type": "command", "action": "\\ud800"}',
            '{"type": "command", "action": "\\u0000"}',
            '{"type": "command", "action": "\u202e\u0007\u001b[2J"}'.replace("\u001b", "\\u001b").replace("\u0007", "\\u0007"),
            '{"\\u0000": 1}',
            "\ufeff{}",
            "{} {}",
            "Infinity",
        ]
        async with await Peer.trusted(self.port) as peer:
            for said in odd:
                answer = json.loads(await peer.say_text(said, timeout=ANSWER_WITHIN))
                self.assertTrue(answer["type"] == "error" or answer.get("status") == "error", (said[:80], answer))
                self.assertLess(len(answer["message"]), 300, answer)
            self.assertEqual(await peer.say_text(PING), PONG)
        # From a stranger the same is refused or held to be no authentication; nothing is learnt.
        for said in odd:
            async with await Peer.dial(self.port) as stranger:
                answer = await stranger.say_text(said, timeout=ANSWER_WITHIN)
                self.assertIn(answer, (NOT_AUTHENTICATED, harness.INVALID_JSON, harness.AUTH_ERROR), said[:80])
        await self.unharmed()

    async def test_invalid_utf8_ends_the_connection_with_1007_and_nothing_else(self) -> None:
        for key in (None, KEY):
            saw = await self.withstand(_send_frame, self.port, key, attacks.frame(attacks.TEXT, b'{"type": "\xff\xfe"}'))
            self.assertTrue(saw["closed"], saw)
            self.assertIn(saw["code"], (1007, None), saw)

    async def test_binary_frames_reserved_opcodes_and_broken_frames_do_not_harm(self) -> None:
        nonsense = {
            "binary": attacks.frame(attacks.BINARY, b'{"type": "command", "action": "ping"}'),
            "reserved opcode": attacks.frame(0x3, b"x"),
            "reserved bits": b"\xf1\x80\x00\x00\x00\x00",
            "a long control frame": attacks.frame(attacks.PING, b"p" * 200),
            "a fragmented ping": attacks.frame(attacks.PING, b"p", fin=False),
            "a continuation of nothing": attacks.frame(attacks.CONTINUATION, b"x"),
            "not masked": b"\x81\x02{}",
            "a close with one byte": attacks.frame(attacks.CLOSE, b"\x03"),
            "a close with a code that is none": attacks.frame(attacks.CLOSE, b"\x00\x00"),
            "a length with the top bit": b"\x81\xff" + b"\xff" * 8 + attacks.MASK,
            "an announced length and then nothing": attacks.frame(attacks.TEXT, b"", announced=8000),
        }
        async with Witness(self.port) as witness:
            for name, said in nonsense.items():
                for key in (None, KEY):
                    with self.subTest(name, authenticated=key is not None):
                        saw = await self.attack(_send_frame, self.port, key, said, 0.2)
                        # Closed, answered with an error, or waited for: not obeyed.
                        self.assertFalse(saw["pong"], saw)
            witness.check()
        await self.unharmed()

    async def test_more_authenticated_peers_than_there_is_room_for_are_told_to_try_later(self) -> None:
        peers: list[Peer] = []
        refused = 0
        try:
            for _ in range(600):
                try:
                    peers.append(await Peer.trusted(self.port))
                except (websockets.ConnectionClosed, AssertionError) as error:
                    refused += 1
                    code = getattr(error, "code", None)
                    self.assertIn(code, (1013, None), repr(error))
                    if refused >= 5:
                        break
            self.assertGreaterEqual(refused, 5, "there was room for 600")
            self.assertGreaterEqual(len(peers), 100)
            # Those who are in stay in, and are served.
            for peer in peers[:: max(1, len(peers) // 10)]:
                self.assertEqual(await peer.say_text(PING), PONG)
        finally:
            for peer in peers:
                peer.abort()
        await self.unharmed()


def _send_frame(port: int, key: str | None, said: bytes, seconds: float = 10) -> dict[str, Any]:
    peer = attacks.trusted(port, key) if key else attacks.shake(port)
    peer.sendall(said)
    seen, closed = attacks.read_to_end(peer, seconds)
    peer.close()
    return {"closed": closed, "code": attacks.close_code(seen), "pong": b'"pong"' in seen}


def main() -> int:
    options = harness.arguments(__doc__).parse_args()
    Strangers.bin_dir = options.bin_dir
    return harness.run([Strangers], options.pattern)


if __name__ == "__main__":
    sys.exit(main())
