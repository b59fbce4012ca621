//! A fence that flaps, before a systemd that does what the test says.

use std::pin::pin;

use proptest::prelude::*;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::super::core::{Core, Effect, Event, Memo, Target};
use super::*;
use crate::host::Ports;

const HOUR: Duration = Duration::from_secs(3_600);

/// A start that systemd was asked for.
struct Job {
    unit: String,
    end: oneshot::Sender<Result<(), UnitsError>>,
}

impl Job {
    fn is_given_up(&self) -> bool {
        self.end.is_closed()
    }

    fn done(self) {
        self.end.send(Ok(())).unwrap();
    }

    fn fails(self) {
        let reason = "its job ended with \"failed\"".to_owned();
        self.end.send(Err(UnitsError::Unreachable { reason })).unwrap();
    }
}

/// A starter, what it asks systemd for, and what it tells the monitor.
struct Bench {
    starter: Starter,
    task: JoinHandle<()>,
    jobs: mpsc::UnboundedReceiver<Job>,
    told: mpsc::Receiver<Message>,
}

impl Bench {
    fn new() -> Self {
        Self::with(Some("drain"), Some("undrain"))
    }

    fn with(on_fence: Option<&str>, on_unfence: Option<&str>) -> Self {
        let names = UnitNames {
            on_fence: on_fence.map(str::to_owned),
            on_unfence: on_unfence.map(str::to_owned),
        };
        let (sender, receiver) = watch::channel(None);
        let (monitor, told) = mpsc::channel(16);
        let (asked, jobs) = mpsc::unbounded_channel();
        let start = async move |unit: &str| {
            let (end, ended) = oneshot::channel();
            let unit = unit.to_owned();
            asked.send(Job { unit, end }).unwrap();
            ended.await.unwrap()
        };
        Self {
            starter: Starter(sender),
            task: tokio::spawn(start_all(names, receiver, monitor, start)),
            jobs,
            told,
        }
    }

    /// The next start, whenever it comes.
    async fn begins(&mut self, unit: &str) -> Job {
        let job = timeout(HOUR, self.jobs.recv()).await.unwrap().unwrap();
        assert_eq!(job.unit, unit);
        job
    }

    async fn tells(&mut self) -> bool {
        match timeout(HOUR, self.told.recv()).await.unwrap().unwrap() {
            Message::Announced(fenced) => fenced,
            _ => panic!("it says nothing else"),
        }
    }

    /// Nothing more is started, and nothing is said.
    async fn rests(&mut self) {
        let something = async {
            tokio::select! {
                job = self.jobs.recv() => job.unwrap().unit,
                _ = self.told.recv() => "something is said".to_owned(),
            }
        };
        if let Ok(what) = timeout(HOUR, pin!(something)).await {
            panic!("{what}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn of_a_fence_that_flaps_while_units_start_the_last_state_wins() {
    let mut bench = Bench::new();
    bench.starter.announce(true);
    let first = bench.begins("drain").await;
    bench.starter.announce(false);
    let second = bench.begins("undrain").await;
    assert!(first.is_given_up(), "before the next one is started");
    bench.starter.announce(true);
    let third = bench.begins("drain").await;
    assert!(second.is_given_up());
    third.done();
    assert!(bench.tells().await, "and of the others nothing is told");
    bench.rests().await;
}

#[tokio::test(start_paused = true)]
async fn a_state_that_is_over_before_anybody_looks_is_started_by_nobody() {
    let mut bench = Bench::new();
    for fenced in [true, false, true, false, true] {
        bench.starter.announce(fenced);
    }
    bench.begins("drain").await.done();
    assert!(bench.tells().await);
    bench.rests().await;
}

#[tokio::test(start_paused = true)]
async fn a_start_that_fails_is_tried_again_until_it_has_worked_and_not_again_then() {
    let mut bench = Bench::new();
    bench.starter.announce(true);
    let mut pauses = Vec::new();
    bench.begins("drain").await.fails();
    for _ in 0..9 {
        let begun = Instant::now();
        let job = bench.begins("drain").await;
        pauses.push(begun.elapsed().as_millis());
        assert!(bench.told.try_recv().is_err(), "nobody has been reached");
        if pauses.len() < 9 {
            job.fails();
        } else {
            job.done();
        }
    }
    assert_eq!(
        pauses,
        [500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000]
    );
    assert!(bench.tells().await);
    bench.rests().await;
}

#[tokio::test(start_paused = true)]
async fn one_that_fails_is_not_tried_again_after_a_newer_one_which_waits_for_no_pause() {
    let mut bench = Bench::new();
    bench.starter.announce(true);
    for _ in 0..8 {
        bench.begins("drain").await.fails();
    }
    // In the middle of a pause of half a minute.
    tokio::time::sleep(Duration::from_secs(10)).await;
    let now = Instant::now();
    bench.starter.announce(false);
    let undrain = bench.begins("undrain").await;
    assert_eq!(now.elapsed(), Duration::ZERO, "it does not pay for the other one");
    undrain.fails();
    bench.begins("undrain").await.done();
    assert_eq!(now.elapsed(), PAUSE);
    assert!(!bench.tells().await);
    bench.rests().await;
}

#[tokio::test(start_paused = true)]
async fn each_new_fence_is_told_also_when_the_one_before_was() {
    let mut bench = Bench::new();
    for fenced in [true, false, true] {
        bench.starter.announce(fenced);
        let unit = if fenced { "drain" } else { "undrain" };
        bench.begins(unit).await.done();
        assert_eq!(bench.tells().await, fenced);
    }
    bench.rests().await;
}

#[tokio::test(start_paused = true)]
async fn where_there_is_no_unit_for_it_nothing_is_started_and_what_is_under_way_is_given_up() {
    let mut bench = Bench::with(Some("drain"), None);
    bench.starter.announce(true);
    let drain = bench.begins("drain").await;
    bench.starter.announce(false);
    assert!(!bench.tells().await);
    assert!(drain.is_given_up());
    bench.rests().await;
}

/// A monitor with its starter, both of which can end at any moment; and what outlives them.
struct House {
    bench: Bench,
    core: Core,
    memo: Memo,
    enforced: Ports,
    /// Those that were not given up.
    job: Option<Job>,
    /// All that was ever asked of systemd: the last of it is what the fleet is in.
    asked: Vec<String>,
}

const PORTS: [u16; 2] = [1, 2];

impl House {
    fn new() -> Self {
        Self::again(Memo::default(), Ports::default(), Vec::new())
    }

    fn again(memo: Memo, enforced: Ports, asked: Vec<String>) -> Self {
        let (core, effects) = Core::start(Instant::now(), memo.clone(), &enforced);
        let mut house = Self {
            bench: Bench::new(),
            core,
            memo,
            enforced,
            job: None,
            asked,
        };
        house.perform(effects);
        house
    }

    fn restart(&mut self) {
        self.bench.task.abort();
        let (memo, enforced, asked) = (self.memo.clone(), self.enforced.clone(), self.asked.clone());
        *self = Self::again(memo, enforced, asked);
    }

    fn perform(&mut self, effects: impl IntoIterator<Item = Effect>) {
        for effect in effects {
            match effect {
                Effect::Enforce(ports) => self.enforced = ports,
                Effect::Remember(memo) => self.memo = *memo,
                Effect::Announce(fenced) => self.bench.starter.announce(fenced),
                Effect::Cut(_) | Effect::Answer(_) | Effect::Tell(_) => {}
            }
        }
    }

    fn hear(&mut self, event: Event) {
        let effects = self.core.on(Instant::now(), event);
        self.perform(effects);
    }

    fn hand(port: u16, fence: bool) -> Event {
        let target = Target::Ports(Ports::new([port], []));
        match fence {
            true => Event::Fence {
                target,
                reason: "why".to_owned(),
            },
            false => Event::Unfence { target },
        }
    }

    fn is_fenced(&self) -> bool {
        !self.core.fenced().is_empty()
    }

    /// Time goes by, and all do what they have to.
    async fn pass(&mut self, time: Duration) {
        let end = Instant::now() + time;
        loop {
            tokio::select! {
                biased;
                Some(message) = self.bench.told.recv() => {
                    let Message::Announced(fenced) = message else { panic!("it says nothing else") };
                    self.hear(Event::Announced(fenced));
                }
                Some(job) = self.bench.jobs.recv() => {
                    assert!(self.job.as_ref().is_none_or(Job::is_given_up), "one at a time");
                    assert_eq!(job.unit == "drain", self.is_fenced(), "that is over");
                    self.asked.push(job.unit.clone());
                    self.job = Some(job);
                }
                () = tokio::time::sleep_until(end) => return,
            }
        }
    }

    fn job_ends(&mut self, well: bool) {
        if let Some(job) = self.job.take().filter(|job| !job.is_given_up()) {
            if well { job.done() } else { job.fails() }
        }
    }

    /// Nothing fails any more.
    async fn calm(&mut self) {
        for _ in 0..3 {
            self.pass(2 * PAUSE_MOST).await;
            self.job_ends(true);
        }
        self.pass(HOUR).await;
    }

    fn asked(&self) -> Vec<&str> {
        self.asked.iter().map(String::as_str).collect()
    }
}

const MOMENT: Duration = Duration::from_millis(1);

#[tokio::test(start_paused = true)]
async fn a_monitor_that_is_restarted_starts_no_unit_a_second_time() {
    let mut house = House::new();
    house.restart();
    house.calm().await;
    assert!(house.asked().is_empty());
    house.hear(House::hand(1, true));
    house.calm().await;
    for _ in 0..3 {
        house.restart();
        house.calm().await;
    }
    // A second port is no second fence.
    house.hear(House::hand(2, true));
    house.hear(House::hand(1, false));
    house.calm().await;
    assert_eq!(house.asked(), ["drain"]);
    house.hear(House::hand(2, false));
    house.calm().await;
    house.restart();
    house.calm().await;
    assert_eq!(house.asked(), ["drain", "undrain"]);
}

#[tokio::test(start_paused = true)]
async fn a_start_that_fails_is_tried_again_by_the_next_monitor() {
    let mut house = House::new();
    house.hear(House::hand(1, true));
    house.pass(MOMENT).await;
    house.job_ends(false);
    house.restart();
    house.calm().await;
    assert_eq!(house.asked(), ["drain", "drain"]);
    house.hear(House::hand(1, false));
    house.pass(MOMENT).await;
    house.job_ends(false);
    house.restart();
    house.calm().await;
    assert_eq!(house.asked(), ["drain", "drain", "undrain", "undrain"]);
}

#[tokio::test(start_paused = true)]
async fn a_fleet_whose_drain_was_still_under_way_at_the_end_of_the_fence_is_undrained_by_the_next_monitor() {
    let mut house = House::new();
    house.hear(House::hand(1, true));
    house.pass(MOMENT).await;
    house.hear(House::hand(1, false));
    house.pass(MOMENT).await;
    assert_eq!(house.asked(), ["drain", "undrain"]);
    house.job_ends(false);
    house.restart();
    house.calm().await;
    assert_eq!(house.asked(), ["drain", "undrain", "undrain"]);
}

#[tokio::test(start_paused = true)]
async fn a_fence_in_the_middle_of_the_undrain_of_the_last_one_is_told_by_the_next_monitor() {
    let mut house = House::new();
    house.hear(House::hand(1, true));
    house.calm().await;
    house.hear(House::hand(1, false));
    house.pass(MOMENT).await;
    house.hear(House::hand(1, true));
    house.pass(MOMENT).await;
    assert_eq!(house.asked(), ["drain", "undrain", "drain"]);
    house.job_ends(false);
    house.restart();
    house.calm().await;
    assert_eq!(house.asked(), ["drain", "undrain", "drain", "drain"]);
}

#[derive(Clone, Debug)]
enum Step {
    /// By hand, which is as well as by a disk, and needs no time.
    Hand(u16, bool),
    JobEnds(bool),
    Pass(u64),
    Restart,
    /// Killed when it has done so much of what it should.
    HandAndKilled(u16, bool, usize),
}

fn step() -> impl Strategy<Value = Step> {
    let port = prop::sample::select(&PORTS[..]);
    prop_oneof![
        6 => (port.clone(), any::<bool>()).prop_map(|(port, fence)| Step::Hand(port, fence)),
        4 => any::<bool>().prop_map(Step::JobEnds),
        4 => (0..3_000_u64).prop_map(Step::Pass),
        1 => Just(Step::Restart),
        1 => (port, any::<bool>(), 0..5_usize).prop_map(|(port, fence, done)| Step::HandAndKilled(port, fence, done)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_fleet_is_in_the_end_what_the_ports_are(steps in prop::collection::vec(step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let mut house = House::new();
            for step in steps {
                match step {
                    Step::Hand(port, fence) => house.hear(House::hand(port, fence)),
                    Step::JobEnds(well) => house.job_ends(well),
                    Step::Pass(ms) => house.pass(Duration::from_millis(ms)).await,
                    Step::Restart => house.restart(),
                    Step::HandAndKilled(port, fence, done) => {
                        let effects = house.core.on(Instant::now(), House::hand(port, fence));
                        house.perform(effects.into_iter().take(done));
                        house.restart();
                    }
                }
            }
            house.calm().await;
            let drained = house.asked.last().is_some_and(|unit| unit == "drain");
            assert_eq!(drained, house.is_fenced(), "{:?}", house.asked);
            let asked = house.asked.len();
            house.restart();
            house.calm().await;
            assert_eq!(house.asked.len(), asked, "all was told: {:?}", house.asked);
        });
    }
}
