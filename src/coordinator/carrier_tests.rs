use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::super::fault::Fault;
use super::super::rollout::{Waves, roll_out_over};
use super::super::run::{Plan, run_over};
use super::*;
use crate::protocol::{Action, PresharedKey, Response, Status, Wire};

/// Of a conversation: how long it takes, and for how long the guardian says that it was at work; nothing when it refuses.
type Script = fn(host: &str, since_start: Duration) -> (Duration, Option<Duration>);

/// Does what is written, and counts.
#[derive(Clone)]
struct Scripted {
    script: Script,
    began: Instant,
    told: Arc<Mutex<Vec<String>>>,
}

impl Scripted {
    fn new(script: Script) -> Self {
        Self {
            script,
            began: Instant::now(),
            told: Arc::default(),
        }
    }

    fn times(&self, host: &str) -> usize {
        self.told
            .lock()
            .unwrap()
            .iter()
            .filter(|name| *name == host)
            .count()
    }
}

impl Carrier for Scripted {
    async fn converse(&self, _words: &Words, target: &Target, _dialled: oneshot::Sender<()>) -> Attempt {
        self.told.lock().unwrap().push(target.name.clone());
        let (takes, worked) = (self.script)(&target.name, self.began.elapsed());
        sleep(takes).await;
        let answer = worked.map(|worked| {
            let mut response = Response::new(Action::Drain, Status::Ok, "done");
            response.elapsed_ms = Some(worked.as_millis() as u64);
            response.into()
        });
        Attempt::new(answer.ok_or(Fault::Refused {
            addresses: "192.0.2.1:9876".to_owned(),
        }))
    }

    fn chance(&self) -> impl BuildHasher + Send {
        RandomState::new()
    }
}

fn plan(action: Action, hosts: &[&str]) -> Plan {
    let target = |name: &&str| Target {
        name: (*name).to_owned(),
        host: (*name).to_owned(),
        port: 9_876,
        tier: None,
    };
    Plan {
        action,
        targets: hosts.iter().map(target).collect(),
        key: PresharedKey::parse(&"k".repeat(40), "key".as_ref()).unwrap(),
        wire: Wire::V2,
        timeout: Duration::from_secs(60),
        connect_timeout: Duration::from_secs(5),
        max_parallel: 8,
        retry_for: Some(Duration::from_secs(60)),
        generation: Some(1),
        terms: None,
        jitter: Duration::ZERO,
    }
}

fn waves() -> Waves {
    Waves {
        size: Some(1),
        rules: Vec::new(),
        settle: Duration::ZERO,
        tolerate: 0,
        go_on: true,
        from: 1,
    }
}

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn an_answer_that_a_link_has_held_up_is_asked_for_again() {
    let carrier = Scripted::new(|host, since_start| match host {
        _ if since_start >= 30 * SECOND => (Duration::ZERO, Some(Duration::ZERO)),
        // All this time: its answer is as fresh as it looks.
        "works" => (30 * SECOND, Some(30 * SECOND)),
        // It was drained after a second, and may have come back since.
        "late" => (30 * SECOND, Some(SECOND)),
        // It was at work for somebody else before, so nothing is known.
        _ => (30 * SECOND, Some(40 * SECOND)),
    });
    let plan = plan(Action::Drain, &["works", "late", "joined"]);
    let outcome = run_over(&carrier, &plan, &mut (), &CancellationToken::new()).await;
    assert_eq!(outcome.report.summary.ok, 3);
    let times = ["works", "late", "joined"].map(|host| carrier.times(host));
    assert_eq!(times, [1, 2, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_host_that_is_told_again_at_the_end_is_reported_with_all_its_attempts() {
    let carrier = Scripted::new(|host, since_start| {
        let up = host == "up" || since_start >= 40 * SECOND;
        (Duration::ZERO, up.then_some(Duration::ZERO))
    });
    let plan = plan(Action::Undrain, &["off", "up"]);
    let outcome = roll_out_over(&carrier, &plan, &waves(), &mut (), &CancellationToken::new()).await;
    let off = &outcome.report.hosts[0];
    assert_eq!(outcome.report.summary.ok, 2);
    assert_eq!(off.attempts as usize, carrier.times("off"));
    assert!(off.elapsed_ms >= 40_000, "since its first attempt: {off:?}");
}

#[tokio::test(start_paused = true)]
async fn whoever_was_not_waited_for_is_not_blamed_for_it() {
    let carrier = Scripted::new(|_, _| (SECOND, Some(SECOND)));
    let plan = plan(Action::Undrain, &["one", "two"]);
    let stop = CancellationToken::new();
    stop.cancel();
    let how = Waves {
        rules: vec!["0=queue.service".parse().unwrap()],
        go_on: false,
        ..waves()
    };
    let outcome = roll_out_over(&carrier, &plan, &how, &mut (), &stop).await;
    assert!(outcome.interrupted);
    assert_eq!(outcome.report.rollout.unwrap().stopped, None);
    assert!(outcome.report.hosts[0].message.starts_with("interrupted"));
}
