"""While a drain runs: everyone is answered, commands join or supersede, and nothing that restarts gets in the way.

The drain is held open by a dependent that stops when the test says so: what is answered before that was answered
during the drain, whatever the clock says.
"""

from __future__ import annotations

import asyncio
import json
import unittest
from typing import Any

from harness import AUTH_ERROR, KEY, PONG, Peer

from .case import GATED, TARGET, Case, service


class During(Case):
    async def draining(self, arguments: str = "") -> tuple[Peer, asyncio.Task[dict[str, Any]]]:
        """A drain is under way and waits for the gate. Gives the connection, and its answer to come."""
        self.graph({"app.service": service(GATED), "other.service": service()})
        peer = await self.ready(arguments)
        await peer.send("drain")
        answer = self.later(peer.receive())
        await self.begun()
        self.assertFalse(answer.done())
        return peer, answer

    async def test_ping_and_status_are_answered_at_once_on_the_same_and_on_other_connections(self) -> None:
        self.graph({"app.service": service(GATED), "other.service": service()})
        peer = await self.ready()
        other = await self.peer()
        await peer.send("drain", id="the drain")
        await self.begun()
        for asked in (peer, other):
            self.assertEqual(await asked.say_text('{"type": "command", "action": "ping"}'), PONG)
            status = await asked.ask("status")
            self.ok(status, "status")
            self.assertEqual(self.states(status)["app.service"], "deactivating")
            self.assertEqual(status["last_command"]["action"], "drain")
            self.assertIsNone(status["last_command"].get("status"))
        self.open_gate()
        answer = await peer.receive()
        self.ok(answer, "drain")
        self.assertEqual(answer["id"], "the drain")

    async def test_websocket_pings_are_answered(self) -> None:
        self.graph({"app.service": service(GATED)})
        peer = await self.ready()
        await peer.send("drain")
        await self.begun()
        for _ in range(3):
            async with asyncio.timeout(5):
                await (await peer.socket.ping(b"are you there"))
        self.open_gate()
        self.ok(await peer.receive(), "drain")

    async def test_new_connections_authenticate_and_wrong_keys_are_refused(self) -> None:
        _, answer = await self.draining()
        peer = await self.peer()
        self.assertEqual(await peer.say_text('{"type": "command", "action": "ping"}'), PONG)
        stranger = await self.stranger()
        self.assertEqual(await stranger.say_text(json.dumps({"type": "auth", "key": KEY + "?"})), AUTH_ERROR)
        self.assertFalse(answer.done())
        self.open_gate()
        self.ok(await answer, "drain")

    async def test_a_second_drain_joins_the_first(self) -> None:
        _, first = await self.draining()
        other = await self.peer()
        await other.send("drain", id=2)
        second = self.later(other.receive())
        # The guardian has read it: it answers in order of arrival what needs no waiting.
        probe = await self.peer()
        await probe.ask("ping")
        self.assertFalse(second.done() or first.done())
        self.open_gate()
        for answer in (await first, await second):
            self.ok(answer, "drain")
            self.assertEqual(self.states(answer), {"app.service": "inactive", "other.service": "inactive"})
        self.nothing_left()
        self.assertEqual(self.host.read("/run/t/app.stopping"), "x\n", "it was stopped more than once")

    async def test_an_undrain_supersedes_a_drain(self) -> None:
        peer, first = await self.draining()
        other = await self.peer()
        await other.send("undrain")
        second = self.later(other.receive())
        answer = await first
        self.error(answer, "superseded")
        self.assertFalse(second.done(), "an undrain cannot be done while a dependent is still stopping")
        self.open_gate()
        self.ok(await second, "undrain")
        self.active(TARGET, "app.service", "other.service")

    async def test_the_last_of_many_commands_in_a_row_wins(self) -> None:
        peer, first = await self.draining()
        other = await self.peer()
        actions = ["undrain", "drain", "undrain", "drain"]
        for n, action in enumerate(actions):
            await other.send(action, id=n)
        self.open_gate()
        answers = {}
        for _ in actions:
            answer = await other.receive()
            answers[answer["id"]] = answer
        await first
        self.assertEqual(sorted(answers), [0, 1, 2, 3])
        self.ok(answers[3], "drain")
        for n in (0, 1, 2):
            self.error(answers[n], "superseded")
        self.nothing_left()
        self.assertEqual(self.host.state(TARGET), "inactive")

    async def test_a_peer_that_hangs_up_in_mid_drain_changes_nothing(self) -> None:
        peer, first = await self.draining()
        first.cancel()
        peer.abort()
        other = await self.peer()
        await other.send("drain")
        answer = self.later(other.receive())
        self.open_gate()
        self.ok(await answer, "drain")
        self.assertEqual(self.host.read("/run/t/app.stopping"), "x\n")

    async def test_daemon_reload_in_mid_drain_changes_nothing(self) -> None:
        _, answer = await self.draining()
        for _ in range(3):
            await self.command("systemctl", "daemon-reload")
        self.assertFalse(answer.done(), answer)
        self.open_gate()
        self.ok(await answer, "drain")
        self.nothing_left()

    async def test_daemon_reexec_in_mid_drain_changes_nothing(self) -> None:
        _, answer = await self.draining()
        for _ in range(2):
            await self.command("systemctl", "daemon-reexec")
        self.assertFalse(answer.done(), answer)
        self.open_gate()
        answer_ = await answer
        self.nothing_left()
        self.ok(answer_, "drain")

    async def test_dbus_restarting_in_mid_drain_changes_nothing(self) -> None:
        _, answer = await self.draining()
        await self.command("systemctl", "restart", "dbus.service")
        probe = await self.peer()
        self.assertEqual(await probe.say_text('{"type": "command", "action": "ping"}'), PONG)
        self.assertFalse(answer.done(), answer)
        self.open_gate()
        answer_ = await answer
        self.nothing_left()
        self.ok(answer_, "drain")

    async def test_dbus_restarting_between_commands_is_not_noticed(self) -> None:
        self.apps(2)
        peer = await self.ready()
        for _ in range(2):
            await self.command("systemctl", "restart", "dbus.service")
            answer = await peer.ask("drain")
            self.nothing_left()
            self.ok(answer, "drain")
            await self.command("systemctl", "restart", "dbus.service")
            self.ok(await peer.ask("undrain"), "undrain")
            self.active("app-1.service", "app-2.service")

    async def test_dbus_restarting_again_and_again_leaves_no_connection_open(self) -> None:
        self.apps(1)
        peer = await self.ready()
        folder = f"/proc/{self.host.show('io-guardian.service', 'MainPID')['MainPID']}/fd"
        seen = []
        for _ in range(4):
            await self.command("systemctl", "restart", "dbus.service")
            self.ok(await peer.ask("status"), "status")
            seen.append(len(self.host.run("ls", folder).stdout.split()))
        self.assertLessEqual(seen[-1], seen[0], seen)

    async def test_dbus_being_down_is_an_error_that_says_so_and_the_guardian_goes_on(self) -> None:
        self.apps(1)
        peer = await self.ready("--command-timeout 3s")
        await self.command("systemctl", "mask", "--runtime", "dbus.socket", "dbus.service")
        await self.command("systemctl stop dbus.socket dbus.service", check=False)
        self.assertEqual(await peer.say_text('{"type": "command", "action": "ping"}'), PONG)
        self.error(await peer.ask("drain"), "bus")
        await self.command("systemctl unmask --runtime dbus.socket dbus.service; systemctl start dbus.socket dbus.service")
        answer = await peer.ask("drain")
        self.nothing_left()
        self.ok(answer)

    async def test_a_guardian_that_is_killed_in_mid_drain_takes_the_next_command_when_it_is_back(self) -> None:
        _, answer = await self.draining()
        answer.cancel()
        self.host.systemctl("kill", "--signal=KILL", "io-guardian.service")
        await self.until(lambda: self.host.state("io-guardian.service") == "failed", "the guardian to be dead")
        self.host.systemctl("start", "io-guardian.service")
        peer = await self.peer()
        await peer.send("drain")
        answer = self.later(peer.receive())
        await asyncio.sleep(0)
        self.open_gate()
        answer_ = await answer
        self.nothing_left()
        self.ok(answer_, "drain")
        self.ok(await peer.ask("undrain"))
        self.active("app.service")

    async def test_a_dependent_that_is_started_by_hand_in_mid_drain_is_not_overlooked(self) -> None:
        _, answer = await self.draining()
        # It needs the target: this brings the target up again. An `ok` must not cover it.
        await self.command("systemctl start --no-block other.service", check=False)
        self.open_gate()
        answer_ = await answer
        # The drain goes on until all of it rests, and that includes the target.
        self.nothing_left()
        self.ok(answer_)
        self.assertEqual(self.host.state(TARGET), "inactive")


CASES: list[type[unittest.TestCase]] = [During]
