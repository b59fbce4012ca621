use proptest::prelude::*;

use super::*;

const HEARTBEAT: Duration = Duration::from_secs(2);
const UNFENCE: Duration = Duration::from_secs(3);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn watch(ports: &[u16]) -> Box<Watch> {
    Watch {
        ports: Ports::new(ports.iter().copied(), []),
        heartbeat: HEARTBEAT,
        busy_limit: 3 * HEARTBEAT,
        unfence_after: UNFENCE,
        wait: HEARTBEAT,
        warn_latency: ms(500),
        on_error: Verdicts::default(),
    }
    .into()
}

type Works = Box<dyn Fn(&str, u64) -> bool>;

/// A monitor whose effects are carried out, and whose clock is ours.
struct Life {
    start: Instant,
    now: Instant,
    core: Core,
    enforced: Ports,
    memo: Memo,
    told: Vec<Tell>,
    announced: Vec<bool>,
    answer: Option<Result<String, String>>,
    /// Whether a folder's disk is seen to complete a write, at this time in milliseconds.
    works: Works,
    looks: Vec<u64>,
}

impl Life {
    fn new() -> Self {
        Self::with(Instant::now(), Memo::default(), Ports::default())
    }

    fn with(now: Instant, memo: Memo, found: Ports) -> Self {
        let (core, effects) = Core::start(now, memo.clone(), &found);
        let mut life = Self {
            start: now,
            now,
            core,
            enforced: found,
            memo,
            told: Vec::new(),
            announced: Vec::new(),
            answer: None,
            works: Box::new(|_, _| false),
            looks: Vec::new(),
        };
        life.carry_out(effects);
        life
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        let place = |effect: &Effect| match effect {
            Effect::Enforce(_) => 0,
            Effect::Cut(_) => 1,
            Effect::Remember(_) => 2,
            Effect::Answer(_) => 3,
            Effect::Announce(_) => 4,
            Effect::Tell(_) => 5,
        };
        assert!(
            effects.is_sorted_by_key(place),
            "act first, tell after: {effects:?}"
        );
        for effect in effects {
            match effect {
                Effect::Enforce(ports) => self.enforced = ports,
                Effect::Cut(ports) => assert!(ports.all_in(&self.enforced), "the rules stand first"),
                Effect::Remember(memo) => self.memo = *memo,
                Effect::Answer(answer) => self.answer = Some(answer),
                Effect::Announce(fenced) => self.announced.push(fenced),
                Effect::Tell(tell) => self.told.push(tell),
            }
        }
        assert_eq!(self.core.fenced(), self.enforced);
        assert_eq!(self.core.memo(), self.memo);
    }

    /// Time goes by, and the monitor is woken when it wants to be.
    fn until(&mut self, at: u64) {
        let end = self.start + ms(at);
        while let Some(wake) = self.core.wake_at().filter(|wake| *wake <= end) {
            self.now = wake.max(self.now);
            self.hear(Event::Time);
            assert!(
                self.core.decides_at().is_none_or(|next| next > self.now),
                "it would be woken again and again"
            );
        }
        self.now = self.now.max(end);
    }

    fn at(&mut self, at: u64, event: Event) {
        self.until(at);
        self.hear(event);
    }

    fn hear(&mut self, event: Event) {
        let due = self.core.to_look_at(self.now);
        if !due.is_empty() {
            let at = u64::try_from((self.now - self.start).as_millis()).unwrap();
            self.looks.push(at);
            let seen = due.into_iter().map(|(folder, _)| {
                let works = (self.works)(&folder, at);
                (folder, works)
            });
            let effects = self.core.on(self.now, Event::Looked(seen.collect()));
            self.carry_out(effects);
            assert!(
                self.core.to_look_at(self.now).is_empty(),
                "it would look again and again"
            );
        }
        let effects = self.core.on(self.now, event);
        self.carry_out(effects);
    }

    fn register(&mut self, folder: &str, ports: &[u16]) {
        let (folder, watch) = (folder.to_owned(), watch(ports));
        self.hear(Event::Registered { folder, watch });
    }

    fn beat(&mut self, at: u64, folder: &str) {
        let (folder, took) = (folder.to_owned(), ms(1));
        self.at(at, Event::Beat { folder, took });
    }

    fn failed(&mut self, at: u64, folder: &str, kind: Kind) {
        let (folder, text) = (folder.to_owned(), "write: no".to_owned());
        self.at(at, Event::Failed { folder, kind, text });
    }

    fn fenced(&self) -> String {
        self.enforced.to_string()
    }

    fn by_hand(&mut self, target: Target, fence: bool) -> Result<String, String> {
        self.hear(match fence {
            true => Event::Fence {
                target,
                reason: "why".to_owned(),
            },
            false => Event::Unfence { target },
        });
        self.answer.take().unwrap()
    }
}

fn folder(path: &str) -> Target {
    Target::Folder(path.to_owned())
}

fn ports(tcp: &[u16]) -> Target {
    Target::Ports(Ports::new(tcp.iter().copied(), []))
}

#[test]
fn silence_fences_at_the_heartbeat_and_beats_undo_it_when_they_have_lasted() {
    let mut life = Life::new();
    life.register("/a", &[5432]);
    life.beat(500, "/a");
    life.until(2_499);
    assert_eq!(life.fenced(), "none");
    life.until(2_500);
    assert_eq!(life.fenced(), "tcp 5432");
    assert_eq!(life.announced, [true]);
    life.beat(9_000, "/a");
    life.beat(10_500, "/a");
    life.until(11_999);
    assert_eq!(life.fenced(), "tcp 5432");
    life.until(12_000);
    assert_eq!(life.fenced(), "none");
    assert_eq!(life.announced, [true, false]);
}

#[test]
fn a_gap_in_the_proof_begins_it_anew() {
    let mut life = Life::new();
    life.register("/a", &[1]);
    life.until(2_000);
    life.beat(3_000, "/a");
    life.beat(5_500, "/a");
    life.until(8_000);
    assert_eq!(life.fenced(), "tcp 1");
    // The beat of 5.5 s began a new proof, which silence ended at 7.5 s.
    life.beat(8_000, "/a");
    life.beat(9_500, "/a");
    life.until(10_999);
    assert_eq!(life.fenced(), "tcp 1");
    life.until(11_000);
    assert_eq!(life.fenced(), "none");
}

#[test]
fn a_port_is_open_only_when_no_folder_that_has_it_stalls() {
    let mut life = Life::new();
    life.register("/a", &[1, 2]);
    life.register("/b", &[2, 3]);
    life.until(2_000);
    assert_eq!(life.fenced(), "tcp 1,2,3");
    for at in (3_000..=6_000).step_by(1_000) {
        life.beat(at, "/a");
    }
    assert_eq!(life.fenced(), "tcp 2,3");
    assert!(matches!(life.told.last(), Some(Tell::Unfenced { still, .. }) if still.to_string() == "tcp 2"));
    assert_eq!(life.announced, [true]);
}

#[test]
fn the_end_of_a_fence_is_told_by_the_next_monitor_when_this_one_could_not() {
    let mut life = Life::new();
    life.register("/a", &[1]);
    life.beat(0, "/a");
    life.until(2_000);
    life.hear(Event::Announced(true));
    life.beat(2_100, "/a");
    life.beat(3_900, "/a");
    life.until(5_100);
    assert_eq!(
        (life.fenced().as_str(), life.announced.as_slice()),
        ("none", [true, false].as_slice())
    );
    // It ends before anybody was reached.
    let mut next = Life::with(life.now, life.memo.clone(), Ports::default());
    assert_eq!(next.announced, [false]);
    next.hear(Event::Announced(false));
    assert!(
        Life::with(next.now, next.memo.clone(), Ports::default())
            .announced
            .is_empty()
    );
}

#[test]
fn at_a_start_a_folder_is_waited_for_and_no_error_of_it_is_a_stall_yet() {
    let mut life = Life::new();
    let mut slow = watch(&[1]);
    slow.wait = Duration::from_secs(60);
    life.hear(Event::Registered {
        folder: "/a".to_owned(),
        watch: slow,
    });
    life.failed(1_000, "/a", Kind::Vanished);
    life.until(59_999);
    assert_eq!(life.fenced(), "none");
    let warned = |tell: &Tell| matches!(tell, Tell::Trouble { verdict, .. } if *verdict == Verdict::Warn);
    assert!(life.told.iter().any(warned), "nobody is woken for it");
    life.until(60_000);
    assert_eq!(life.fenced(), "tcp 1");
    assert!(life.told.iter().any(|tell| matches!(
        tell,
        Tell::Fenced {
            why: Why::Failed {
                kind: Kind::Vanished,
                ..
            },
            ..
        }
    )));
}

#[test]
fn each_error_has_the_verdict_that_was_configured_and_is_said_once() {
    let mut life = Life::new();
    life.register("/a", &[1]);
    life.beat(0, "/a");
    for at in [1_000, 2_000, 3_000, 4_000] {
        life.failed(at, "/a", Kind::Enospc);
    }
    assert_eq!(life.fenced(), "none", "a full disk answers");
    let said = life
        .told
        .iter()
        .filter(|tell| matches!(tell, Tell::Trouble { .. }));
    assert_eq!(said.count(), 1);
    life.failed(4_100, "/a", Kind::Eio);
    assert_eq!(life.fenced(), "tcp 1", "at once");
    for at in (4_200..9_000).step_by(100) {
        life.failed(at, "/a", Kind::Eio);
    }
    life.beat(9_000, "/a");
    life.beat(10_900, "/a");
    life.failed(11_000, "/a", Kind::Erofs);
    life.beat(12_000, "/a");
    life.beat(13_900, "/a");
    assert_eq!(life.fenced(), "tcp 1", "an error ends the proof");
    life.until(15_000);
    assert_eq!(life.fenced(), "none");
}

#[test]
fn what_is_fenced_by_hand_stays_so_until_it_is_undone_by_hand() {
    let mut life = Life::new();
    life.register("/a", &[1]);
    life.beat(0, "/a");
    assert!(
        life.by_hand(folder("/none"), true)
            .unwrap_err()
            .contains("there is /a")
    );
    life.by_hand(folder("/a"), true).unwrap();
    life.by_hand(ports(&[7, 8]), true).unwrap();
    for at in (1_000..100_000).step_by(1_000) {
        life.beat(at, "/a");
    }
    assert_eq!(life.fenced(), "tcp 1,7,8");
    // Another monitor, with the same memory.
    let mut life = Life::with(life.now, life.memo, life.enforced);
    life.register("/a", &[1, 2]);
    for at in (0..100_000).step_by(1_000) {
        life.beat(at, "/a");
    }
    assert_eq!(life.fenced(), "tcp 1,2,7,8", "its folder has another port now");
    let wrong = life.by_hand(ports(&[1]), false).unwrap_err();
    assert!(wrong.contains("not fenced by hand as ports"), "{wrong}");
    life.by_hand(ports(&[7]), false).unwrap();
    life.by_hand(folder("/a"), false).unwrap();
    assert_eq!(life.fenced(), "tcp 8");
    life.by_hand(ports(&[8]), false).unwrap();
    assert_eq!(life.fenced(), "none");
    assert!(
        life.by_hand(folder("/a"), false)
            .unwrap_err()
            .contains("not fenced by hand")
    );
}

#[test]
fn no_hand_opens_the_ports_of_a_folder_that_stalls() {
    let mut life = Life::new();
    life.register("/a", &[1]);
    life.until(2_000);
    let refused = life.by_hand(folder("/a"), false).unwrap_err();
    assert!(refused.contains("because of its disk"), "{refused}");
    life.by_hand(folder("/a"), true).unwrap();
    let undone = life.by_hand(folder("/a"), false).unwrap();
    assert!(undone.contains("still fenced: tcp 1"), "{undone}");
    assert_eq!(life.fenced(), "tcp 1");
    // Nobody watches it any more: a person must know.
    life.hear(Event::Goodbye {
        folder: "/a".to_owned(),
    });
    assert_eq!(life.fenced(), "tcp 1");
    life.by_hand(folder("/a"), false).unwrap();
    assert_eq!(life.fenced(), "none");
}

#[test]
fn a_fence_that_nobody_knows_is_kept_and_ends_with_its_folder_or_by_hand() {
    let mut life = Life::with(Instant::now(), Memo::default(), Ports::new([1, 2, 9], []));
    assert_eq!(life.fenced(), "tcp 1,2,9");
    assert!(life.told.iter().any(|tell| matches!(tell, Tell::Unknown { .. })));
    life.register("/a", &[1, 5]);
    assert_eq!(life.fenced(), "tcp 1,2,5,9");
    for at in (0..=3_000).step_by(500) {
        life.beat(at, "/a");
    }
    assert_eq!(life.fenced(), "tcp 2,9");
    life.by_hand(ports(&[2, 9]), false).unwrap();
    assert_eq!(life.fenced(), "none");
}

#[test]
fn goodbye_ends_a_watch_and_no_fence() {
    let mut life = Life::new();
    life.register("/a", &[1]);
    life.beat(0, "/a");
    life.hear(Event::Goodbye {
        folder: "/a".to_owned(),
    });
    life.until(60_000);
    assert_eq!(life.fenced(), "none");
    life.register("/a", &[1]);
    life.until(62_000);
    assert_eq!(life.fenced(), "tcp 1");
    life.hear(Event::Goodbye {
        folder: "/a".to_owned(),
    });
    life.until(200_000);
    assert_eq!(life.fenced(), "tcp 1");
}

#[test]
fn one_that_registers_again_and_again_and_never_beats_gains_nothing() {
    let mut life = Life::new();
    life.register("/a", &[1]);
    for at in (0..2_000).step_by(100) {
        life.until(at);
        life.register("/a", &[1]);
    }
    life.until(2_000);
    assert_eq!(life.fenced(), "tcp 1");
}

#[test]
fn a_monitor_that_was_held_itself_lets_a_silence_go_on_for_half_a_heartbeat_once() {
    let mut life = Life::new();
    life.register("/a", &[1]);
    life.beat(1_000, "/a");
    // The whole machine stood still for ten seconds.
    life.now += Duration::from_secs(10);
    life.hear(Event::Time);
    assert_eq!(life.fenced(), "none", "nobody could be heard");
    life.until(11_999);
    assert_eq!(life.fenced(), "none");
    life.until(12_000);
    assert_eq!(life.fenced(), "tcp 1");

    // Held again and again, the excuse is the first one's.
    let mut life = Life::new();
    life.register("/a", &[1]);
    life.beat(1_000, "/a");
    life.now += Duration::from_secs(3);
    life.hear(Event::Time);
    life.now += Duration::from_secs(3);
    life.hear(Event::Time);
    assert_eq!(life.fenced(), "tcp 1");
}

#[test]
fn slow_writes_are_said_when_they_begin_and_when_they_end() {
    let mut life = Life::new();
    life.register("/a", &[1]);
    let slow = |life: &mut Life, at, took| {
        let folder = "/a".to_owned();
        life.at(at, Event::Beat { folder, took });
    };
    for at in (0..130_000).step_by(1_000) {
        slow(&mut life, at, if at == 5_000 { ms(900) } else { ms(2) });
    }
    let told: Vec<_> = life
        .told
        .iter()
        .filter(|tell| matches!(tell, Tell::Slow { .. } | Tell::SlowOver { .. }))
        .collect();
    assert!(
        matches!(told.as_slice(), [Tell::Slow { .. }, Tell::SlowOver { .. }]),
        "{told:?}"
    );
}

/// When a folder with a heartbeat of 2 s that has beaten at 1 s and never again is fenced, and what was told; its disk completes writes at these times.
fn fenced_at(works: impl Fn(u64) -> bool + 'static) -> (u64, Vec<Tell>) {
    let mut life = Life::new();
    life.works = Box::new(move |_, at| works(at));
    life.register("/a", &[1]);
    life.beat(1_000, "/a");
    let at = (1_000..30_000).find(|at| {
        life.until(*at);
        life.fenced() != "none"
    });
    (at.unwrap(), life.told)
}

#[test]
fn a_disk_that_completes_nothing_is_fenced_at_the_heartbeat_and_one_that_is_busy_later() {
    let dead = |_| false;
    assert_eq!(fenced_at(dead).0, 3_000);
    // Nobody has looked before a quarter of a heartbeat.
    assert_eq!(fenced_at(|at| at <= 1_500).0, 3_000);
    // It stalls while a beat is under way: within a heartbeat, and little earlier.
    for stalls in [1_700, 2_000, 2_500, 3_000, 4_000] {
        let at = fenced_at(move |at| at <= stalls).0;
        let in_time = stalls + 2_000 - 250..=stalls + 2_000;
        assert!(in_time.contains(&at), "{stalls}: {at}");
    }
    let told = fenced_at(|at| at <= 4_000).1;
    let busy = told.iter().filter(|tell| matches!(tell, Tell::Busy { .. }));
    assert_eq!(busy.count(), 1, "{told:?}");
    assert!(matches!(
        told.last(),
        Some(Tell::Fenced { worked: Some(worked), why: Why::Silent, .. }) if *worked == HEARTBEAT
    ));
    // It is busy for ever.
    assert_eq!(fenced_at(|_| true).0, 7_000);
    // It fails slowly: a write each second is seen in time, one each two seconds is not.
    let each = |ms: u64| move |at: u64| at % ms < 125;
    assert_eq!(fenced_at(each(1_000)).0, 7_000);
    assert!(fenced_at(each(2_000)).0 < 4_000);
}

#[test]
fn a_busy_disk_is_said_once_and_counted_and_over_when_it_beats() {
    let mut life = Life::new();
    life.works = Box::new(|_, _| true);
    life.register("/a", &[1]);
    life.beat(0, "/a");
    life.until(1_999);
    assert!(life.core.folders["/a"].spared(life.now).is_none());
    life.until(5_000);
    assert!(life.core.folders["/a"].spared(life.now).is_some());
    life.beat(5_500, "/a");
    assert!(life.core.folders["/a"].spared(life.now).is_none());
    for at in (5_900..60_000).step_by(400) {
        life.beat(at, "/a");
    }
    assert_eq!(life.fenced(), "none");
    let told: Vec<_> = life
        .told
        .iter()
        .filter(|tell| !matches!(tell, Tell::Watching { .. }))
        .collect();
    assert!(
        matches!(told.as_slice(), [Tell::Busy { .. }, Tell::BusyOver { after, .. }] if *after == ms(5_500)),
        "{told:?}"
    );
    assert_eq!(life.core.folders["/a"].counts.spared, 1);
    // Nobody looks at a disk while beats are in time: the first look was at a quarter of a heartbeat, the last before the beat.
    assert!(
        life.looks.iter().all(|at| (500..=5_500).contains(at)),
        "{:?}",
        life.looks
    );
    assert_eq!(life.looks.len(), 40 + 1);
}

#[test]
fn as_long_as_the_heartbeat_the_limit_turns_it_off() {
    let mut life = Life::new();
    life.works = Box::new(|_, _| true);
    let mut watch = watch(&[1]);
    watch.busy_limit = HEARTBEAT;
    let folder = "/a".to_owned();
    life.hear(Event::Registered { folder, watch });
    life.beat(0, "/a");
    life.until(1_999);
    assert_eq!(life.fenced(), "none");
    life.until(2_000);
    assert_eq!(life.fenced(), "tcp 1");
    assert!(life.looks.is_empty());
}

#[test]
fn what_another_disk_does_helps_none_and_what_is_fenced_must_beat() {
    let mut life = Life::new();
    life.works = Box::new(|folder, at| folder == "/a" || at > 3_000);
    life.register("/a", &[1]);
    life.register("/b", &[2]);
    life.beat(0, "/a");
    life.beat(0, "/b");
    life.until(2_000);
    assert_eq!(life.fenced(), "tcp 2");
    life.beat(5_000, "/b");
    life.until(6_000);
    assert_eq!(life.fenced(), "tcp 1,2", "/a has come to its limit");
    // Its disk works; its proof has a gap all the same.
    life.beat(7_500, "/b");
    life.until(9_000);
    assert_eq!(life.fenced(), "tcp 1,2");
    life.beat(9_000, "/b");
    life.until(10_499);
    assert_eq!(life.fenced(), "tcp 1,2");
    life.until(10_500);
    assert_eq!(life.fenced(), "tcp 1");
}

#[test]
fn one_that_has_never_beaten_is_given_no_more_time() {
    let mut life = Life::new();
    life.works = Box::new(|_, _| true);
    life.register("/a", &[1]);
    life.until(2_000);
    assert_eq!(life.fenced(), "tcp 1");
    // Watched anew, it has not beaten either.
    life.beat(3_000, "/a");
    life.beat(4_500, "/a");
    life.until(6_000);
    assert_eq!(life.fenced(), "none");
    life.until(7_000);
    life.hear(Event::Goodbye {
        folder: "/a".to_owned(),
    });
    life.register("/a", &[1]);
    life.until(9_000);
    assert_eq!(life.fenced(), "tcp 1");
}

#[test]
fn an_error_of_a_busy_disk_is_fenced_at_once() {
    let mut life = Life::new();
    life.works = Box::new(|_, _| true);
    life.register("/a", &[1]);
    life.beat(0, "/a");
    life.failed(2_500, "/a", Kind::Eio);
    assert_eq!(life.fenced(), "tcp 1");
}

#[derive(Clone, Debug)]
enum Step {
    Beat(usize),
    Failed(usize, Kind),
    Register(usize),
    Goodbye(usize),
    Fence(usize),
    Unfence(usize),
    FencePorts(u16),
    UnfencePorts(u16),
    Restart,
    Wait,
}

/// Folders that share ports with each other.
const FOLDERS: [(&str, &[u16]); 3] = [("/a", &[1, 2]), ("/b", &[2, 3]), ("/c", &[4])];

fn step() -> impl Strategy<Value = (u64, Step)> {
    let at = 0..FOLDERS.len();
    let kind = prop::sample::select(&Kind::ALL[..]);
    let step = prop_oneof![
        12 => at.clone().prop_map(Step::Beat),
        2 => (at.clone(), kind).prop_map(|(at, kind)| Step::Failed(at, kind)),
        2 => at.clone().prop_map(Step::Register),
        1 => at.clone().prop_map(Step::Goodbye),
        1 => at.clone().prop_map(Step::Fence),
        1 => at.prop_map(Step::Unfence),
        1 => (1..6_u16).prop_map(Step::FencePorts),
        1 => (1..6_u16).prop_map(Step::UnfencePorts),
        1 => Just(Step::Restart),
        2 => Just(Step::Wait),
    ];
    (0..1_500_u64, step)
}

/// What is known of a folder from outside.
#[derive(Clone, Copy, Default)]
struct Truth {
    watched: bool,
    /// The last sign of life, or when it began to be watched.
    alive: u64,
    /// Since when it beats with no gap, and no error that fences.
    beats_since: Option<u64>,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_invariants_hold(steps in prop::collection::vec(step(), 1..120)) {
        let mut life = Life::new();
        let start = life.start;
        let mut at = 0;
        let mut truth = [Truth::default(); FOLDERS.len()];
        let mut by_hand: BTreeSet<usize> = BTreeSet::new();
        let mut hand_ports: BTreeSet<u16> = BTreeSet::new();
        let heartbeat = u64::try_from(HEARTBEAT.as_millis()).unwrap();
        let unfence = u64::try_from(UNFENCE.as_millis()).unwrap();
        for (pause, step) in steps {
            at += pause;
            life.until(at);
            for (index, truth) in truth.iter_mut().enumerate() {
                if truth.beats_since.is_some() && at - truth.alive >= heartbeat {
                    truth.beats_since = None;
                }
                let (path, _) = FOLDERS[index];
                let was_fenced = life.memo.folders.contains_key(path);
                if truth.watched && at - truth.alive >= heartbeat {
                    prop_assert!(was_fenced, "{path} is silent");
                }
            }
            let before = life.memo.clone();
            match step.clone() {
                Step::Beat(index) => {
                    life.beat(at, FOLDERS[index].0);
                    truth[index].alive = at;
                    if truth[index].watched {
                        truth[index].beats_since.get_or_insert(at);
                    }
                }
                Step::Failed(index, kind) => {
                    life.failed(at, FOLDERS[index].0, kind);
                    let truth = &mut truth[index];
                    if Verdicts::default().of(kind) != Verdict::Fence {
                        truth.alive = at;
                        if truth.watched {
                            truth.beats_since.get_or_insert(at);
                        }
                    } else {
                        truth.beats_since = None;
                    }
                }
                Step::Register(index) => {
                    let (path, ports) = FOLDERS[index];
                    life.register(path, ports);
                    if !truth[index].watched {
                        truth[index] = Truth { watched: true, alive: at, beats_since: None };
                    }
                }
                Step::Goodbye(index) => {
                    life.hear(Event::Goodbye { folder: FOLDERS[index].0.to_owned() });
                    truth[index] = Truth::default();
                }
                Step::Fence(index) => {
                    if life.by_hand(folder(FOLDERS[index].0), true).is_ok() {
                        by_hand.insert(index);
                    }
                }
                Step::Unfence(index) => {
                    if life.by_hand(folder(FOLDERS[index].0), false).is_ok() {
                        by_hand.remove(&index);
                    }
                }
                Step::FencePorts(port) => {
                    life.by_hand(ports(&[port]), true).unwrap();
                    hand_ports.insert(port);
                }
                Step::UnfencePorts(port) => {
                    if life.by_hand(ports(&[port]), false).is_ok() {
                        hand_ports.remove(&port);
                    }
                }
                Step::Restart => {
                    let fenced = life.enforced.clone();
                    let mut next = Life::with(life.now, life.memo.clone(), life.enforced.clone());
                    next.start = start;
                    life = next;
                    prop_assert_eq!(&life.enforced, &fenced, "a restart opens nothing and closes nothing");
                    truth = Default::default();
                }
                Step::Wait => {}
            }
            // Whoever is not fenced any more has proven it, or a person has said so.
            for (index, (path, _)) in FOLDERS.iter().enumerate() {
                let gone = before.folders.contains_key(*path) && !life.memo.folders.contains_key(*path);
                let by_person = matches!(step, Step::Unfence(which) if which == index);
                let proven = truth[index].beats_since.is_some_and(|since| at - since >= unfence);
                prop_assert!(!gone || by_person || proven, "{path} was opened by {step:?}");
            }
            for index in &by_hand {
                prop_assert!(Ports::new(FOLDERS[*index].1.iter().copied(), []).all_in(&life.enforced));
            }
            prop_assert!(Ports::new(hand_ports.iter().copied(), []).all_in(&life.enforced));
            for (path, kept) in &life.memo.folders {
                prop_assert!(kept.ports.all_in(&life.enforced), "{path}");
            }
        }
    }

    /// Beats and writes of others at any times: what is not fenced has beaten within its heartbeat, or its disk was seen to work within
    /// one; and never later than the limit. What is fenced has done neither.
    #[test]
    fn no_fence_is_earlier_than_the_heartbeat_nor_later_than_the_limit(
        beats in prop::collection::vec(0..8_000_u64, 1..12),
        work in prop::collection::vec((0..40_000_u64, 0..4_000_u64), 0..12),
        limit in 2_000..9_000_u64,
    ) {
        let heartbeat = u64::try_from(HEARTBEAT.as_millis()).unwrap();
        let mut life = Life::new();
        let seen = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
        let (told, work_too) = (seen.clone(), work.clone());
        life.works = Box::new(move |_, at| {
            let works = work_too.iter().any(|(from, long)| (*from..from + long).contains(&at));
            told.borrow_mut().extend(works.then_some(at));
            works
        });
        let mut watch = watch(&[1]);
        watch.busy_limit = ms(limit);
        let folder = "/a".to_owned();
        life.hear(Event::Registered { folder, watch });
        life.beat(0, "/a");
        let mut beat = 0;
        for pause in beats {
            let next = beat + pause;
            let fence = (beat..=next).find(|at| {
                life.until(*at);
                life.fenced() != "none"
            });
            let open_until = |at: u64| {
                // What the first look sees says nothing, and any look that it was since the one before.
                let look = heartbeat / 16;
                let counts = |seen: &u64| (beat + heartbeat / 4 + look..=at).contains(seen);
                let worked = seen.borrow().iter().copied().filter(counts).max();
                worked.map_or(0, |worked| worked - look + heartbeat).min(beat + limit).max(beat + heartbeat)
            };
            match fence {
                Some(at) => {
                    prop_assert!(at >= beat + heartbeat, "{at}: too early");
                    prop_assert!(at <= beat + limit, "{at}: too late");
                    prop_assert_eq!(at, open_until(at));
                    if work.is_empty() {
                        prop_assert_eq!(at, beat + heartbeat);
                    }
                    break;
                }
                None => prop_assert!(next < open_until(next), "not fenced"),
            }
            life.beat(next, "/a");
            beat = next;
            seen.borrow_mut().clear();
        }
    }
}
