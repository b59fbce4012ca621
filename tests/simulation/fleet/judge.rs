//! What a run may do, and whether its report is true. All of it is the judge's own idea, by what went over the network and by what
//! is on the hosts: nothing of the coordinator's is asked.

use std::time::Duration;

use io_guardian::coordinator::report::exit_code;
use io_guardian::coordinator::{Outcome, Verdict};
use io_guardian::protocol::{Action, Response, Status};

use super::Fleet;

/// How old an answer may be when all hosts of a drain have one (docs/TIMING.md).
const FRESH: Duration = Duration::from_secs(1);
/// How long the second look lasts at most.
const SECOND_LOOK: Duration = Duration::from_secs(10);
/// How long a wave waits for who cannot be reached, when the next one is begun whatever happens.
const WAVE_RETRY: Duration = Duration::from_secs(15);
/// A drain that took longer than this had something to stop.
const AT_WORK_MS: u64 = 100;
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// Timers are right to a millisecond or two.
const TICK: Duration = Duration::from_millis(5);

fn is_ok(response: &Response) -> bool {
    response.status == Status::Ok
}

impl Fleet {
    /// A run begins a conversation: may it?
    pub(crate) fn begins(&mut self, talk: usize) {
        let (run, host, action) = (
            self.talks[talk].run,
            self.talks[talk].host,
            self.talks[talk].action,
        );
        let at = &self.runs[run];
        let open = self
            .open_talks
            .iter()
            .filter(|open| self.talks[**open].run == run);
        let (open, most, over) = (open.count(), at.plan.max_parallel, at.over);
        self.require(open <= most, || {
            format!("run {run}: {open} conversations, and {most} may be")
        });
        self.require(!over, || format!("run {run} tells app{host} when it is over"));
        if action == Action::Status {
            self.runs[run].hosts[host].asked.push(talk);
            return;
        }
        match self.runs[run].hosts[host].told.last().copied() {
            None => self.is_its_turn(run, host),
            Some(last) => self.may_be_told_again(run, host, last),
        }
        self.runs[run].hosts[host].told.push(talk);
    }

    /// Which hosts are of which wave.
    fn waves_of(&self, run: usize) -> Vec<Vec<usize>> {
        let at = &self.runs[run];
        let Some(waves) = &at.waves else { return Vec::new() };
        let tier = |host: usize| {
            let answered = at.hosts[host].asked.last().is_some_and(|talk| {
                let result = &self.talks[*talk].result;
                result
                    .as_ref()
                    .is_some_and(|result| result.as_ref().is_ok_and(|answer| is_ok(answer)))
            });
            let by_units = match self.hosts[host].units.len() {
                _ if waves.rules.is_empty() || !answered => None,
                3 => Some(0),
                2 => Some(1),
                _ => None,
            };
            at.plan.targets[host].tier.or(by_units).map_or(1_000, u32::from)
        };
        let mut order: Vec<(u32, usize)> = (0..self.hosts.len()).map(|host| (tier(host), host)).collect();
        order.sort_unstable();
        let mut found: Vec<Vec<usize>> = Vec::new();
        let mut last = None;
        for (tier, host) in order {
            let full = found.last().is_some_and(|wave| waves.size == Some(wave.len()));
            match found.last_mut() {
                Some(wave) if last == Some(tier) && !full => wave.push(host),
                _ => found.push(vec![host]),
            }
            last = Some(tier);
        }
        if at.plan.action == Action::Drain {
            found.reverse();
        }
        found
    }

    /// The first time that a host is told.
    fn is_its_turn(&mut self, run: usize, host: usize) {
        let now = self.now();
        if self.runs[run].waves.is_some() && self.runs[run].expected.is_none() {
            let waves = self.waves_of(run);
            self.runs[run].expected = Some(waves);
        }
        let at = &mut self.runs[run];
        let began = at.wave_begun;
        at.hosts[host].round = Some(began);
        let all_at_once = at.plan.max_parallel >= at.hosts.len();
        let latest = began + at.plan.jitter + TICK;
        self.require(!all_at_once || now <= latest, || {
            format!("run {run}: app{host} is told after the jitter is over")
        });
        let at = &self.runs[run];
        let (Some(waves), Some(expected)) = (&at.waves, &at.expected) else {
            return;
        };
        let wave = expected
            .iter()
            .position(|wave| wave.contains(&host))
            .unwrap_or_default();
        let (from, go_on, tolerate, settle) = (waves.from - 1, waves.go_on, waves.tolerate, waves.settle);
        let undrain = at.plan.action == Action::Undrain;
        let before: Vec<usize> = expected[from.min(wave)..wave].concat();
        let last = wave.checked_sub(1).filter(|last| *last >= from);
        let last = last.map(|last| expected[last].clone()).unwrap_or_default();
        let done = before.iter().all(|host| at.hosts[*host].finished.is_some());
        let failed = before.iter().filter(|host| self.has_failed(run, **host)).count();
        let settled_from = last.iter().filter_map(|host| at.hosts[*host].finished).max();
        let looked_after = last.iter().all(|host| {
            !undrain || !self.answered_ok(run, *host) || {
                let asked = at.hosts[*host].asked.last().map(|talk| &self.talks[*talk]);
                asked.is_some_and(|talk| {
                    settled_from.is_some_and(|from| talk.begun + TICK >= from + settle)
                        && talk.ended.is_some()
                })
            }
        });
        self.require(wave >= from, || {
            format!("run {run}: app{host} is of a wave that was left out")
        });
        self.require(done, || format!("run {run}: app{host} is told before its wave"));
        self.require(go_on || failed <= tolerate, || {
            format!("run {run}: app{host} is told after {failed} have failed, and {tolerate} may")
        });
        self.require(looked_after, || {
            format!("run {run}: app{host} is told before the last wave was seen to be well")
        });
    }

    /// The last answer that a host gave when it was told.
    fn answer(&self, run: usize, host: usize) -> Option<(usize, &Response)> {
        let told = self.runs[run].hosts[host].told.iter().rev();
        told.copied().find_map(|talk| match &self.talks[talk].result {
            Some(Ok(answer)) => Some((talk, answer.as_ref())),
            _ => None,
        })
    }

    fn answered_ok(&self, run: usize, host: usize) -> bool {
        self.answer(run, host).is_some_and(|(_, answer)| is_ok(answer))
    }

    /// Whether a host counts as one that failed, for the next wave.
    fn has_failed(&self, run: usize, host: usize) -> bool {
        match self.answer(run, host) {
            None => true,
            Some((_, answer)) if !is_ok(answer) => answer.held != Some(true),
            Some((told, answer)) => self.ails(run, host, told, answer),
        }
    }

    /// Whether it was well no more, when it was asked after the settling.
    fn ails(&self, run: usize, host: usize, told: usize, then: &Response) -> bool {
        if self.runs[run].plan.action != Action::Undrain {
            return false;
        }
        let asked = self.runs[run].hosts[host]
            .asked
            .last()
            .map(|talk| &self.talks[*talk]);
        let Some(asked) = asked.filter(|asked| Some(asked.begun) >= self.talks[told].ended) else {
            return false;
        };
        let now = match &asked.result {
            Some(Ok(now)) => now,
            Some(Err(_)) => return true,
            None => return false,
        };
        let state = |response: &Response, name: &str| {
            let units = response.units.iter().flatten();
            units
                .filter(|unit| unit.name == name)
                .map(|unit| unit.state.clone())
                .next()
        };
        let died = now.units.iter().flatten().any(|unit| match unit.state.as_str() {
            "failed" => true,
            "active" | "inactive" => false,
            _ => state(then, &unit.name).as_deref() == Some("active"),
        });
        let blind = now.databases.iter().flatten().any(|database| !database.ready);
        let down = now.target_state.as_deref() != Some("active");
        now.held != Some(true) && (died || down || blind)
    }

    /// A host is told once more.
    fn may_be_told_again(&mut self, run: usize, host: usize, last: usize) {
        let now = self.now();
        let at = &self.runs[run];
        let of = &at.hosts[host];
        let harmless = at.plan.generation.is_some();
        let may_have_arrived = of.told.iter().any(|talk| self.talks[*talk].sent);
        let last = &self.talks[last];
        let Some(ended) = last.ended else {
            return self.require(false, || format!("run {run}: app{host} is told twice at a time"));
        };
        let answered = last.result.as_ref().is_some_and(Result::is_ok);
        let all_at_once = at.plan.max_parallel >= at.hosts.len();
        // Whoever waits for a place waits for others to have their time.
        let queue = if all_at_once {
            TICK
        } else {
            at.plan.timeout * at.hosts.len() as u32 + TICK
        };
        let retry = at.plan.retry_for.map(|long| long + at.plan.jitter);
        let second_look = at.plan.action == Action::Drain && harmless;
        let pause =
            |tries: usize| LONGEST_PAUSE.min(FIRST_PAUSE * 2u32.pow(tries.saturating_sub(1).min(10) as u32));
        let tries = of.told.len() - of.again_from.unwrap_or(0);
        let why = if may_have_arrived && !harmless {
            Some("what may have arrived is sent again, and that may do harm")
        } else if of.finished.is_none() {
            // An undrain that goes on whatever fails does not wait for one host as long as it may.
            let goes_on = at.waves.as_ref().is_some_and(|waves| waves.go_on);
            let goes_on = goes_on && at.plan.action == Action::Undrain;
            let most = if goes_on { WAVE_RETRY } else { Duration::MAX };
            let retry = at.plan.retry_for.map(|long| long.min(most) + at.plan.jitter);
            let until = of.round.zip(retry).map(|(round, long)| round + long);
            let rests = ended + pause(tries) / 2;
            match until {
                _ if answered => Some("an answer is final"),
                None => Some("nobody asked for retries"),
                Some(until) if now > until + queue => Some("the time for retries is over"),
                Some(until) if now + TICK < rests.min(until) => Some("it is tried again too soon"),
                _ => None,
            }
        } else if second_look {
            let first = of.again_from.is_none();
            // It may be as old as the conversation.
            let fresh = now + TICK < last.begun + FRESH;
            let late = now > at.told_by + SECOND_LOOK;
            match () {
                () if first && !answered => Some("it has failed, and is told again"),
                () if first && fresh => Some("its answer is fresh"),
                () if !first && answered => Some("it has answered twice"),
                () if !first && now + TICK < ended + FIRST_PAUSE => Some("it is tried again too soon"),
                () if late => Some("the second look has no end"),
                () => None,
            }
        } else if at.plan.action == Action::Undrain && at.waves.is_some() {
            // After the last wave: whom it has not reached.
            let until = retry.map(|long| at.begun + long + at.plan.jitter);
            match until {
                _ if answered => Some("an answer is final"),
                None => Some("nobody asked for retries"),
                Some(until) if now > until + queue => Some("the time for retries is over"),
                _ => None,
            }
        } else {
            Some("it has a result")
        };
        if of.finished.is_some() && of.again_from.is_none() {
            self.told.second_looks += u64::from(second_look);
            let told = of.told.len();
            self.runs[run].hosts[host].again_from = Some(told);
        }
        self.require(why.is_none(), || {
            format!("run {run}: app{host} is told again: {}", why.unwrap_or_default())
        });
    }

    /// A run is over: is its report true?
    pub(crate) fn judge(&mut self, run: usize, outcome: &Outcome) {
        let now = self.now();
        self.runs[run].over = true;
        self.say(|| format!("run {run}: {}", summary(outcome)));
        let expected = self.runs[run]
            .expected
            .take()
            .unwrap_or_else(|| self.waves_of(run));
        let at = &self.runs[run];
        let report = &outcome.report;
        let rollout = report.rollout.as_ref();
        let stopped = rollout.is_some_and(|rollout| rollout.stopped.is_some());
        let told_to_stop = at.told_to_stop;
        let mut wrong: Vec<String> = Vec::new();
        let mut require = |holds: bool, what: &str| {
            if !holds {
                wrong.push(what.to_owned());
            }
        };
        require(
            !outcome.interrupted || told_to_stop,
            "it was not told to stop, and says so",
        );
        require(
            !(stopped && outcome.interrupted),
            "it was told to stop, and blames a host",
        );
        let failed = report
            .hosts
            .iter()
            .filter(|host| host.result != Verdict::Ok)
            .count();
        let counts = report.summary.failed == failed && report.summary.ok + failed == report.hosts.len();
        require(
            counts && report.summary.hosts == report.hosts.len(),
            "the counts are wrong",
        );
        for fail_fast in [false, true] {
            let code = match (outcome.interrupted, stopped) {
                (true, _) => 1,
                (false, true) => 2,
                (false, false) => u8::from(fail_fast && failed > 0),
            };
            let said = exit_code(report.summary.failed, fail_fast, outcome.interrupted, stopped);
            require(said == code, "the exit code is wrong");
        }
        // Each host once, but for those that were left out on purpose.
        let from = at.waves.as_ref().map_or(1, |waves| waves.from);
        let left_out: Vec<usize> = if from > expected.len() {
            Vec::new()
        } else {
            expected[..from - 1].concat()
        };
        let hosts: Vec<usize> = (0..self.hosts.len())
            .filter(|host| !left_out.contains(host))
            .collect();
        let names = hosts.iter().map(|host| format!("app{host}"));
        require(
            names.eq(report.hosts.iter().map(|host| host.host.clone())),
            "hosts are missing, or too many",
        );
        // Who stopped the plan.
        let told = hosts.iter().filter(|host| !at.hosts[**host].told.is_empty());
        let bad = told.clone().filter(|host| self.has_failed(run, **host)).count();
        if let (true, Some(waves)) = (stopped, &at.waves) {
            let refused = told.count() == 0;
            require(!waves.go_on || refused, "it stops, although it was to go on");
            require(
                refused || bad > waves.tolerate,
                "it stops, and no more have failed than may",
            );
        }
        let looks_twice = at.plan.generation.is_some() && !outcome.interrupted && !stopped;
        let (mut redrained, mut run_again) = (0, 0);
        for (host, said) in hosts.iter().copied().zip(&report.hosts) {
            let of = &at.hosts[host];
            let first = &of.told[..of.told.len().min(of.again_from.unwrap_or(usize::MAX))];
            let attempts = if at.plan.action == Action::Drain {
                first.len()
            } else {
                of.told.len()
            };
            // One that was not begun any more may count.
            let more = usize::from(outcome.interrupted);
            let right = (attempts..=attempts + more).contains(&(said.attempts as usize));
            require(
                right,
                &format!("app{host} was tried {attempts} times, and not {}", said.attempts),
            );
            let ok = said.result == Verdict::Ok;
            // One that could not be reached at the end of an undrain either is no news.
            let news = ok || at.plan.action != Action::Undrain || of.again_from.is_none();
            let shown = of
                .shown
                .as_ref()
                .is_none_or(|shown| !news || shown.result == said.result);
            require(shown, &format!("app{host} was shown as another"));
            let interrupted = said.message.starts_with("interrupted");
            require(
                !interrupted || outcome.interrupted,
                &format!("app{host} was not interrupted"),
            );
            let not_told = said.message.starts_with("not told");
            require(
                !not_told || (stopped && of.told.is_empty()),
                &format!("app{host} was told"),
            );
            require(
                interrupted || not_told || !of.told.is_empty() || stopped,
                &format!("app{host} was not told, and has a result"),
            );
            let last = of
                .told
                .iter()
                .rev()
                .map(|talk| &self.talks[*talk])
                .find(|talk| talk.result.is_some());
            let answer = last
                .and_then(|talk| talk.result.as_ref())
                .and_then(|result| result.as_ref().ok());
            let true_ok = match answer {
                Some(answer) => is_ok(answer),
                // Nothing of it was to be seen in the second look: it counts as what it was.
                None => of.out_of_sight && last.is_some_and(|talk| !talk.heard),
            };
            let ailing = said.message.starts_with("it was undrained, and is not well");
            require(
                !ok || true_ok || outcome.interrupted,
                &format!("app{host} is not ok"),
            );
            // With few conversations at a time, the second look may not come to it in its time.
            let left = at.plan.max_parallel < hosts.len() && looks_twice && of.again_from.is_none();
            require(
                ok || !true_ok || ailing || left,
                &format!("app{host} is ok, and has failed"),
            );
            if of.again_from.is_some() && answer.is_some_and(|answer| answer.elapsed_ms > Some(AT_WORK_MS)) {
                redrained += u64::from(at.plan.action == Action::Drain);
            }
            if !ok || at.plan.action != Action::Drain {
                continue;
            }
            // The promise: what runs now was started after it was last seen drained, and that was not long ago.
            let seen = self
                .answer(run, host)
                .and_then(|(talk, _)| self.talks[talk].emitted);
            let fresh = at.told_by - FRESH - TICK;
            for unit in self.hosts[host].units.iter().filter(|unit| unit.runs()) {
                run_again += 1;
                let after = seen.is_some_and(|seen| unit.started >= seen);
                require(
                    after,
                    &format!("app{host} is drained, and {} runs all the time", unit.name),
                );
                let old = looks_twice && answer.is_some() && unit.started < fresh;
                require(
                    !old,
                    &format!(
                        "app{host} is drained, and {} was started before the end",
                        unit.name
                    ),
                );
            }
        }
        if at.waves.is_none() && at.plan.max_parallel >= hosts.len() {
            let retry = at.plan.retry_for.unwrap_or_default() + at.plan.jitter;
            let look = if at.plan.action == Action::Drain {
                SECOND_LOOK
            } else {
                Duration::ZERO
            };
            let most = at.plan.timeout + retry + look + FRESH;
            require(now - at.begun <= most, "it takes too long");
        }
        let order = at.order;
        if order.last {
            let held = report.hosts.iter().filter(|host| host.held == Some(true)).count();
            require(failed <= held, "all is well, and it does not succeed");
        }
        self.told.redrained += redrained;
        self.told.run_again += run_again;
        self.told.stopped_plans += u64::from(stopped);
        self.told.interrupted += u64::from(outcome.interrupted);
        self.require(wrong.is_empty(), || format!("run {run}: {}", wrong.join("; ")));
        self.and_then(order);
    }

    /// Long after the last order, which was given when all was well.
    pub(crate) fn last_order_was_followed(&mut self) {
        let Some(last) = self.runs.last() else { return };
        let (over, action) = (last.over, last.order.action);
        self.require(over, || "the last order has no end".to_owned());
        for host in 0..self.hosts.len() {
            let at = &self.hosts[host];
            let held = at.core.as_ref().is_some_and(|core| core.hold().is_some());
            let (runs, all) = (at.runs(), at.units.iter().all(|unit| unit.runs()));
            let at_hand = at.by_hand;
            let stopped = action == Action::Drain || held;
            let right = if stopped { !runs } else { all };
            self.require(right || at_hand, || {
                format!("host {host} does not do what was ordered last")
            });
        }
    }
}

fn summary(outcome: &Outcome) -> String {
    let hosts = outcome.report.hosts.iter();
    let hosts: Vec<String> = hosts
        .map(|host| format!("{} {}: {}", host.host, host.result, host.message))
        .collect();
    format!(
        "interrupted: {}, {:?}; {}",
        outcome.interrupted,
        outcome.report.rollout,
        hosts.join("; ")
    )
}
