"""The wire, byte for byte as the documentation gives it, spoken by a library that knows nothing of ours."""

from __future__ import annotations

import asyncio
import json
import unittest
from typing import Any

import websockets
from harness import AUTH_ERROR, AUTH_OK, INVALID_JSON, KEY, NOT_AUTHENTICATED, PONG

from .case import TARGET, Case, service


class Wire(Case):
    async def test_the_right_key_is_answered_as_documented(self) -> None:
        self.guardian()
        peer = await self.stranger()
        self.assertEqual(await peer.say_text('{"type": "auth", "key": "' + KEY + '"}'), AUTH_OK)
        self.assertEqual(await peer.say_text('{"type": "command", "action": "ping"}'), PONG)

    async def test_a_wrong_key_is_answered_as_documented_and_closed_with_1008(self) -> None:
        self.guardian()
        for key in ("wrong", "", KEY + "x", KEY[:-1], KEY.upper()):
            peer = await self.stranger()
            self.assertEqual(await peer.say_text(json.dumps({"type": "auth", "key": key})), AUTH_ERROR, key)
            self.assertEqual(await peer.closed(), (1008, "Authentication failed"), key)

    async def test_a_stranger_who_gives_a_command_is_closed_with_1008_and_nothing_happens(self) -> None:
        self.graph({"app.service": service()})
        await self.ready()
        for said in (
            '{"type": "command", "action": "drain"}',
            '{"type": "command", "action": "ping"}',
            '{"type": "command", "action": "status"}',
            '{"type": "nonsense"}',
            "[]",
            "null",
            '"auth"',
            "42",
        ):
            peer = await self.stranger()
            self.assertEqual(await peer.say_text(said), NOT_AUTHENTICATED, said)
            self.assertEqual(await peer.closed(), (1008, "Not authenticated"), said)
        self.active(TARGET, "app.service")

    async def test_what_is_no_json_is_an_error_and_the_connection_stays_before_and_after_authentication(self) -> None:
        self.guardian()
        peer = await self.stranger()
        self.assertEqual(await peer.say_text("drain, please"), INVALID_JSON)
        self.assertEqual(await peer.say_text('{"type": "auth", "key": "' + KEY + '"}'), AUTH_OK)
        for said in ("", "{", "{'type': 'ping'}", '{"type": "command", "action": "ping"', "\u0000", "NaN"):
            self.assertEqual(await peer.say_text(said), INVALID_JSON, said)
        self.assertEqual(await peer.say_text('{"type":"command","action":"ping"}'), PONG)

    async def test_unknown_types_and_actions_are_named_and_the_connection_stays(self) -> None:
        self.guardian()
        peer = await self.peer()
        for said, answered in (
            ('{"type": "command", "action": "reboot"}', '{"type": "error", "message": "Unknown action: reboot"}'),
            ('{"type": "command"}', '{"type": "error", "message": "Unknown action: None"}'),
            ('{"type": "gossip"}', '{"type": "error", "message": "Unknown message type: gossip"}'),
            ("{}", '{"type": "error", "message": "Unknown message type: None"}'),
        ):
            self.assertEqual(await peer.say_text(said), answered)
        self.assertEqual(await peer.say_text('{"type": "command", "action": "ping"}'), PONG)

    async def test_json_that_is_no_object_is_an_error_and_the_connection_stays(self) -> None:
        self.guardian()
        peer = await self.peer()
        for said in ("[]", "42", "null", "true", '"ping"', '[{"type": "command", "action": "ping"}]'):
            answer = await peer.say_text(said)
            self.assertTrue(answer.startswith('{"type": "error", "message": "'), answer)
        self.assertEqual(await peer.say_text('{"type": "command", "action": "ping"}'), PONG)

    async def test_fields_that_are_not_known_are_ignored(self) -> None:
        self.guardian()
        peer = await self.stranger()
        self.assertEqual(await peer.say_text(json.dumps({"v": 2, "type": "auth", "key": KEY, "from": {"a": [1]}})), AUTH_OK)
        self.assertEqual(await peer.say_text('{"type": "command", "action": "ping", "colour": null}'), PONG)

    async def test_drain_and_undrain_are_answered_as_documented_with_units_and_time_after(self) -> None:
        self.graph({"app.service": service()})
        self.guardian()
        peer = await self.peer()
        for action in ("undrain", "drain"):
            text = await peer.say_text(f'{{"type": "command", "action": "{action}"}}')
            start = f'{{"type": "response", "action": "{action}", "status": "ok", "message": "'
            self.assertEqual(text[: len(start)], start)
            answer = json.loads(text)
            self.assertIsInstance(answer["elapsed_ms"], int)
            self.assertEqual(self.states(answer), {"app.service": "active" if action == "undrain" else "inactive"})

    async def test_an_id_comes_back_in_the_answer(self) -> None:
        self.guardian()
        peer = await self.peer()
        for name in (7, "seven"):
            self.assertEqual((await peer.ask("ping", id=name))["id"], name)

    async def test_status_tells_target_dependents_last_command_and_version(self) -> None:
        self.graph({"app.service": service()})
        peer = await self.ready()
        answer = await peer.ask("status")
        self.ok(answer, "status")
        self.assertEqual((answer["target"], answer["target_state"]), (TARGET, "active"))
        self.assertEqual(self.states(answer), {"app.service": "active"})
        self.assertEqual((answer["last_command"]["action"], answer["last_command"]["status"]), ("undrain", "ok"))
        self.assertRegex(answer["version"], r"^\d+\.\d+\.\d+")
        await peer.ask("drain")
        answer = await peer.ask("status")
        self.assertEqual((answer["target_state"], self.states(answer)), ("inactive", {"app.service": "inactive"}))
        self.assertEqual(answer["last_command"]["action"], "drain")

    async def test_a_command_with_a_lower_generation_is_refused_as_stale_and_nothing_happens(self) -> None:
        self.graph({"app.service": service()})
        self.guardian()
        peer = await self.peer()
        self.ok(await peer.ask("undrain", generation=7))
        self.error(await peer.ask("drain", generation=6), "stale", "7")
        self.active(TARGET, "app.service")
        self.ok(await peer.ask("drain", generation=8))
        self.error(await peer.ask("undrain", generation=7), "stale")
        self.nothing_left()
        # One without a generation comes from a peer that knows only the documentation: the last one wins.
        self.ok(await peer.ask("undrain"))

    async def test_the_guardian_listens_on_ipv4_and_on_ipv6(self) -> None:
        for place, address in (("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("::", "::1"), ("0.0.0.0", "127.0.0.1")):
            with self.subTest(place):
                self.guardian(f"--host {place}")
                peer = await self.peer(host=address)
                self.assertEqual(await peer.say_text('{"type": "command", "action": "ping"}'), PONG)
                await peer.close()
                self.host.systemctl("stop", "io-guardian.service")


class Scripted:
    """A guardian that knows only the documentation, written with the library."""

    def __init__(self, status: str = "ok") -> None:
        self.status = status
        self.heard: list[str] = []

    async def __call__(self, socket: Any, *_: Any) -> None:
        trusted = False
        async for text in socket:
            self.heard.append(text)
            message = json.loads(text)
            if message["type"] == "auth":
                trusted = message["key"] == KEY
                await socket.send(AUTH_OK if trusted else AUTH_ERROR)
                if not trusted:
                    await socket.close(1008, "Authentication failed")
                    return
            elif trusted:
                answer = {"type": "response", "action": message["action"], "status": self.status, "message": "done as told"}
                await socket.send(json.dumps(answer))


class Coordinator(Case):
    async def test_our_coordinator_drives_a_guardian_that_knows_only_the_documentation(self) -> None:
        guardian = Scripted()
        async with websockets.serve(guardian, "127.0.0.1", 9999):
            for action in ("drain", "undrain", "ping"):
                guardian.heard.clear()
                done = await self.coordinator(action, "--hosts", "127.0.0.1:9999")
                self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
                self.assertEqual(guardian.heard[0], '{"type": "auth", "key": "' + KEY + '"}')
                command = json.loads(guardian.heard[1])
                self.assertEqual((command["type"], command["action"]), ("command", action))
                self.assertTrue(guardian.heard[1].startswith('{"type": "command", "action": "' + action + '"'), guardian.heard)

    async def test_our_coordinator_reports_what_such_a_guardian_refuses(self) -> None:
        async with websockets.serve(Scripted("error"), "127.0.0.1", 9999):
            done = await self.coordinator("drain", "--hosts", "127.0.0.1:9999", "--fail-fast")
            self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
            self.assertIn("done as told", done.stdout + done.stderr)

    async def test_our_coordinator_drains_and_undrains_our_guardian_on_both_address_families(self) -> None:
        self.graph({"app.service": service()})
        self.guardian("--host ::")
        for hosts in ("127.0.0.1", "[::1]:9876", "localhost"):
            done = await self.coordinator("undrain", "--hosts", hosts, "--fail-fast")
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            self.active("app.service")
            done = await self.coordinator("drain", "--hosts", hosts, "--fail-fast")
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            self.nothing_left()

    async def test_a_coordinator_that_is_killed_in_mid_drain_leaves_a_guardian_that_takes_the_next_command(self) -> None:
        from .case import GATED

        self.graph({"app.service": service(GATED)})
        peer = await self.ready()
        # In a cgroup of the host, so that the kill reaches the coordinator itself.
        self.unit("tell.service", "[Service]\nExecStart=/usr/local/bin/io-coordinator drain --hosts 127.0.0.1 --psk-file /etc/io-guardian/psk\n")
        self.host.systemctl("daemon-reload")
        self.host.systemctl("start", "tell.service")
        await self.begun()
        self.host.systemctl("kill", "--signal=KILL", "tell.service")
        again = self.later(self.coordinator("drain", "--hosts", "127.0.0.1", "--fail-fast"))
        await asyncio.sleep(0)
        self.open_gate()
        done = await again
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.nothing_left()
        self.ok(await peer.ask("undrain"))


CASES: list[type[unittest.TestCase]] = [Wire, Coordinator]
