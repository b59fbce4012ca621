"""What a drain and an undrain promise: `ok` means that nothing of any dependent runs, or that all of it does."""

from __future__ import annotations

import unittest

from .case import MARK, STUBBORN, SULKING, TARGET, Case, service


class Drain(Case):
    async def all_run(self, count: int) -> None:
        # systemd takes a process for started when it is there, a moment before it has become the program that it is to be.
        await self.until(lambda: len(self.host.processes(MARK)) == count, f"{count} run")

    async def drains(self, count: int) -> None:
        names = self.apps(count)
        peer = await self.ready()
        await self.all_run(count)
        answer = await peer.ask("drain")
        # At once: nothing between the answer and the look.
        self.nothing_left()
        self.ok(answer, "drain")
        self.assertEqual(self.states(answer), {name: "inactive" for name in names})
        answer = await peer.ask("undrain")
        await self.all_run(count)
        self.ok(answer, "undrain")
        self.assertEqual(self.states(answer), {name: "active" for name in names})

    async def test_a_drain_with_no_dependents_is_ok(self) -> None:
        self.graph()
        peer = await self.ready()
        self.ok(await peer.ask("drain"), "drain")
        self.assertEqual(self.host.state(TARGET), "inactive")

    async def test_a_drain_with_1_dependent_leaves_no_process_of_it(self) -> None:
        await self.drains(1)

    async def test_a_drain_with_5_dependents_leaves_no_process_of_them(self) -> None:
        await self.drains(5)

    async def test_a_drain_with_20_dependents_leaves_no_process_of_them(self) -> None:
        await self.drains(20)

    async def test_the_same_command_again_is_ok_and_changes_nothing(self) -> None:
        self.apps(2)
        peer = await self.ready()
        before = self.host.show("app-1.service", "MainPID", "InvocationID")
        self.ok(await peer.ask("undrain"), "undrain")
        self.assertEqual(self.host.show("app-1.service", "MainPID", "InvocationID"), before)
        for _ in range(2):
            self.ok(await peer.ask("drain"), "drain")
            self.nothing_left()

    async def test_a_dependent_that_takes_3_seconds_to_stop_holds_the_answer_back(self) -> None:
        slow = "ExecStart=/bin/sleep infinity\nExecStop=/bin/sleep 3\nExecStopPost=/bin/touch /run/t/stopped\n"
        self.graph({"slow.service": service(slow), "app.service": service()})
        peer = await self.ready()
        answer = await peer.ask("drain")
        self.assertTrue(self.host.exists("/run/t/stopped"), "the answer came before it had stopped")
        self.nothing_left()
        self.ok(answer)
        self.assertGreaterEqual(answer["elapsed_ms"], 3000)
        self.assertGreaterEqual(self.report(answer, "slow.service")["elapsed_ms"], 3000)

    async def test_a_dependent_with_no_ordering_holds_the_answer_back_too(self) -> None:
        # The target's own stop job is done long before this one's: waiting for that job is not enough.
        slow = "ExecStart=/bin/sleep infinity\nExecStop=/bin/sleep 2\nExecStopPost=/bin/touch /run/t/stopped\n"
        self.graph({"slow.service": service(slow, unit=f"PartOf={TARGET}\nBefore={TARGET}\n")})
        peer = await self.ready()
        answer = await peer.ask("drain")
        self.assertTrue(self.host.exists("/run/t/stopped"), "the answer came before it had stopped")
        self.nothing_left()
        self.ok(answer)

    async def test_a_dependent_that_ignores_sigterm_is_dead_and_named(self) -> None:
        self.graph({"stubborn.service": service(STUBBORN), "app.service": service()})
        peer = await self.ready()
        answer = await peer.ask("drain")
        self.nothing_left()
        self.ok(answer)
        self.assertIn("stubborn.service", answer["message"])
        report = self.report(answer, "stubborn.service")
        self.assertEqual((report["state"], report["result"]), ("failed", "timeout"))

    async def test_a_dependent_that_takes_longer_than_the_guardian_waits_is_an_error_that_names_it(self) -> None:
        long = "ExecStart=/bin/sleep infinity\nExecStop=/bin/sleep 30\nTimeoutStopSec=60\n"
        self.graph({"long.service": service(long), "app.service": service()})
        peer = await self.ready("--command-timeout 2s")
        answer = await peer.ask("drain")
        self.error(answer, "long.service")
        self.assertEqual(self.states(answer)["long.service"], "deactivating")
        self.assertEqual(self.states(answer)["app.service"], "inactive")
        self.assertNotIn("app.service (", answer["message"])
        self.assertLess(answer["elapsed_ms"], 20_000)

    async def test_a_dependent_that_exits_1_when_told_to_stop_is_stopped_and_named(self) -> None:
        self.graph({"sulking.service": service(SULKING), "app.service": service()})
        peer = await self.ready()
        answer = await peer.ask("drain")
        self.nothing_left()
        self.ok(answer)
        self.assertIn("sulking.service", answer["message"])
        report = self.report(answer, "sulking.service")
        self.assertEqual((report["state"], report["result"]), ("failed", "exit-code"))
        # A unit that failed while being stopped starts again.
        self.ok(await peer.ask("undrain"))
        self.active("sulking.service")

    async def test_oneshots_are_no_failure_of_an_undrain(self) -> None:
        once = "Type=oneshot\nExecStart=/bin/sh -c 'echo x >>/run/t/{0}'\n{1}"
        self.graph(
            {
                "gone.service": service(once.format("gone", "")),
                "stays.service": service(once.format("stays", "RemainAfterExit=yes\n")),
                "app.service": service(),
            },
            pull="Wants",
        )
        peer = await self.ready()
        self.assertEqual(self.host.read("/run/t/gone"), "x\n")
        answer = await peer.ask("drain")
        self.ok(answer)
        self.assertEqual(set(self.states(answer).values()), {"inactive"})
        answer = await peer.ask("undrain")
        self.ok(answer)
        self.assertEqual(self.states(answer), {"gone.service": "inactive", "stays.service": "active", "app.service": "active"})
        self.assertEqual(self.host.read("/run/t/gone"), "x\nx\n")

    async def test_a_oneshot_that_is_still_running_is_stopped_by_a_drain(self) -> None:
        self.graph({"job.service": service("Type=oneshot\nExecStart=/bin/sleep infinity\nTimeoutStartSec=infinity\n")}, pull="Wants")
        self.guardian("--command-timeout 2s")
        peer = await self.peer()
        self.error(await peer.ask("undrain"), "job.service")
        answer = await peer.ask("drain")
        self.nothing_left()
        self.ok(answer)

    async def test_a_dependent_that_cannot_start_is_named_by_the_undrain(self) -> None:
        self.graph({"broken.service": service("ExecStart=/bin/false\nType=oneshot\n"), "app.service": service()}, pull="Wants")
        self.guardian()
        peer = await self.peer()
        answer = await peer.ask("undrain")
        self.error(answer, "broken.service")
        self.assertEqual(self.report(answer, "broken.service")["state"], "failed")
        self.active("app.service")
        # A failed one is stopped: nothing to say against a drain.
        self.ok(await peer.ask("drain"))
        self.nothing_left()

    async def test_every_way_to_depend_on_the_target_is_found_and_drained(self) -> None:
        after = f"After={TARGET}\n"
        self.graph(
            {
                "requires.service": service(unit=f"Requires={TARGET}\n{after}"),
                "bindsto.service": service(unit=f"BindsTo={TARGET}\n{after}"),
                "partof.service": service(unit=f"PartOf={TARGET}\n{after}"),
                "requisite.service": service(unit=f"Requisite={TARGET}\n{after}"),
            },
            pull="Wants",
        )
        # Enabled by a link, as WantedBy= does, and bound to it.
        self.unit("enabled.service", service(unit=f"PartOf={TARGET}\n{after}", more=f"[Install]\nWantedBy={TARGET}"))
        self.host.systemctl("enable", "enabled.service")
        peer = await self.ready()
        names = ["requires.service", "bindsto.service", "partof.service", "requisite.service", "enabled.service"]
        self.active(*names)
        answer = await peer.ask("drain")
        self.nothing_left()
        self.ok(answer)
        self.assertEqual(self.states(answer), {name: "inactive" for name in names})

    async def test_a_unit_that_is_only_wanted_or_upheld_is_drained_too(self) -> None:
        # systemd does not stop these with the target. An `ok` while one runs would be a lie.
        for pull in ("Wants", "Upholds"):
            with self.subTest(pull):
                self.graph({"loose.service": service(unit=f"After={TARGET}\n")}, pull=pull)
                if not self.host.state("io-guardian.service") == "active":
                    self.guardian()
                peer = await self.peer()
                self.ok(await peer.ask("undrain"))
                answer = await peer.ask("drain")
                self.nothing_left()
                self.ok(answer)
                self.assertEqual(self.states(answer), {"loose.service": "inactive"})

    async def test_a_dependent_of_a_dependent_is_drained_too(self) -> None:
        first = service()
        second = service(unit="Requires=app.service\nAfter=app.service\n", body="ExecStart=/bin/sleep infinity\nExecStop=/bin/sleep 1\n")
        self.graph({"app.service": first})
        self.unit("worker.service", second)
        self.host.systemctl("daemon-reload")
        peer = await self.ready()
        self.host.systemctl("start", "worker.service")
        answer = await peer.ask("drain")
        self.nothing_left()
        self.ok(answer)
        self.assertEqual(self.states(answer).get("worker.service"), "inactive", answer)

    async def test_processes_that_killmode_leaves_behind_are_reported(self) -> None:
        body = "ExecStart=/bin/sh -c 'sleep infinity & exec sleep infinity'\nKillMode=process\n"
        self.graph({"leaky.service": service(body), "app.service": service()})
        peer = await self.ready()
        answer = await peer.ask("drain")
        self.assertNotEqual(self.host.processes(MARK), {})
        self.error(answer, "leaky.service", "process")

    async def test_a_missing_target_is_a_clear_error(self) -> None:
        self.guardian("--target io-nonsense.target")
        peer = await self.peer()
        for action in ("drain", "undrain"):
            self.error(await peer.ask(action), "io-nonsense.target", "does not exist")
        self.assertEqual((await peer.ask("ping"))["status"], "ok")
        # It is made; the next command finds it.
        self.unit("io-nonsense.target", "[Unit]\n")
        self.host.systemctl("daemon-reload")
        self.ok(await peer.ask("undrain"))

    async def test_a_masked_target_is_a_clear_error(self) -> None:
        self.host.systemctl("mask", TARGET)
        self.guardian()
        peer = await self.peer()
        self.error(await peer.ask("undrain"), TARGET, "masked")

    async def test_a_masked_dependent_is_no_obstacle_to_a_drain(self) -> None:
        self.apps(2)
        peer = await self.ready()
        # Masked at run time while it runs, as administrators do.
        self.host.run("mv /etc/systemd/system/app-1.service /root; systemctl mask --runtime app-1.service; systemctl daemon-reload")
        answer = await peer.ask("drain")
        self.ok(answer)
        self.nothing_left()

    async def test_a_dependent_that_restarts_always_stays_down_after_a_drain(self) -> None:
        body = "ExecStart=/bin/sleep infinity\nRestart=always\nRestartSec=100ms\n"
        self.graph({"app.service": service(body), "loop.service": service("ExecStart=/bin/true\nRestart=always\nRestartSec=100ms\n")}, pull="Wants")
        self.guardian()
        peer = await self.peer()
        await peer.ask("undrain")
        for _ in range(5):
            answer = await peer.ask("drain")
            self.nothing_left()
            self.ok(answer)
            self.assertIn(self.host.state("loop.service"), ("inactive", "failed"))
            await peer.ask("undrain")


CASES: list[type[unittest.TestCase]] = [Drain]
