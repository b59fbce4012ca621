//! Thousands of random histories, on clocks that are ours: of one host (`world`: its guardian, the databases, and orders that come as chance
//! has it), and of a fleet (`fleet`: the coordinator's real runs against several guardians), over networks that lose, double, delay and
//! reorder. After every step the invariants of [`io_guardian::guardian::core`] and of `fleet/judge.rs` are checked, and at the end of
//! each history everything is healed and must come to rest where it should.
//!
//! A seed is a history. One that fails is named with the command that replays it:
//!
//! ```sh
//! SIMULATION_SEED=42 cargo test --test simulation the_host -- --nocapture     # this one, each step told; or the_fleet, the_addresses
//! SIMULATION_HISTORIES=1000000 cargo test --release --test simulation         # many; SIMULATION_FIRST=5000: from that seed on
//! ```

#![allow(
    clippy::print_stdout,
    clippy::panic,
    clippy::expect_used,
    reason = "a test tells what it does, and fails loudly"
)]

mod chance;
mod fleet;
mod vip;
mod world;

use std::ops::AddAssign;
use std::panic::catch_unwind;
use std::sync::atomic::{AtomicBool, Ordering};

/// Histories of one host in an ordinary run of the tests.
const HISTORIES: u64 = 100_000;
/// For so many of them there is one of a fleet, which has far more in it.
const PER_FLEET: u64 = 10;
/// For so many of them there is one of a cluster of addresses, which has more in it still.
const PER_CLUSTER: u64 = 50;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|error| panic!("{name}={text}: {error}")),
    )
}

/// Lives so many histories, each of a seed of its own, and adds up what they tell.
fn all<T>(test: &str, histories: u64, live: fn(u64, bool) -> T) -> T
where
    T: AddAssign + Default + Send + std::fmt::Debug,
{
    let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u64;
    let is_broken = AtomicBool::new(false);
    let is_broken = &is_broken;
    let first = number("SIMULATION_FIRST").unwrap_or(0);
    let told: Vec<Result<T, u64>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..workers)
            .map(|worker| {
                scope.spawn(move || {
                    let mut told = T::default();
                    for seed in (first + worker..first + histories).step_by(workers as usize) {
                        if is_broken.load(Ordering::Relaxed) {
                            break;
                        }
                        match catch_unwind(|| live(seed, false)) {
                            Ok(more) => told += more,
                            Err(_) => {
                                is_broken.store(true, Ordering::Relaxed);
                                return Err(seed);
                            }
                        }
                    }
                    Ok(told)
                })
            })
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().expect("a worker does not panic"))
            .collect()
    });
    let mut all = T::default();
    for told in told {
        match told {
            Ok(told) => all += told,
            Err(seed) => panic!(
                "history {seed} breaks an invariant; replay it with: \
                 SIMULATION_SEED={seed} cargo test --test simulation {test} -- --nocapture"
            ),
        }
    }
    println!("{histories} histories: {all:?}");
    all
}

#[test]
fn whatever_happens_the_host_comes_to_rest_where_it_should() {
    if let Some(seed) = number("SIMULATION_SEED") {
        world::live(seed, true);
        return;
    }
    let histories = number("SIMULATION_HISTORIES").unwrap_or(HISTORIES);
    let all = all("the_host", histories, world::live);
    // A world in which these do not happen shows nothing.
    assert!(
        all.own_drains > histories / 100 && all.own_undrains > histories / 100,
        "{all:?}"
    );
    assert!(
        all.stale > histories / 100 && all.held > histories / 100,
        "{all:?}"
    );
    assert!(
        all.restarts > histories / 10 && all.boots > histories / 100,
        "{all:?}"
    );
}

#[test]
fn whatever_happens_the_fleet_is_what_the_coordinator_says() {
    if let Some(seed) = number("SIMULATION_SEED") {
        fleet::live(seed, true);
        return;
    }
    let histories = number("SIMULATION_HISTORIES").unwrap_or(HISTORIES) / PER_FLEET;
    let all = all("the_fleet", histories, fleet::live);
    assert!(
        all.retried > histories && all.second_looks > histories / 2 && all.redrained > histories / 100,
        "{all:?}"
    );
    assert!(
        all.waves > histories && all.stopped_plans > histories / 10 && all.run_again > histories / 100,
        "{all:?}"
    );
    assert!(
        all.interrupted > histories / 20 && all.killed > histories / 20 && all.stale > histories / 100,
        "{all:?}"
    );
    assert!(
        all.restarts > histories / 10 && all.boots > histories / 2 && all.out_of_sight > histories / 100,
        "{all:?}"
    );
}

/// An invariant that nothing breaks shows nothing. With `SIMULATION_SEED` and `SIMULATION_BROKEN` (a name, as below) that one is lived, step by step.
#[test]
fn a_broken_core_is_caught() {
    /// The least frequent of them breaks an invariant in one of a hundred histories.
    const SEEDS: u64 = 3_000;
    if let (Some(seed), Ok(name)) = (number("SIMULATION_SEED"), std::env::var("SIMULATION_BROKEN")) {
        let broken = vip::Broken::ALL
            .into_iter()
            .find(|broken| format!("{broken:?}") == name);
        vip::live_with(seed, true, Some(broken.expect("one of those that there are")));
        return;
    }
    for broken in vip::Broken::ALL {
        let breaks = |seed: &u64| catch_unwind(|| vip::live_with(*seed, false, Some(broken))).is_err();
        let seed = (0..SEEDS).find(breaks);
        println!("{broken:?} is caught with seed {seed:?}");
        assert!(seed.is_some(), "{broken:?} breaks nothing in {SEEDS} histories");
    }
}

#[test]
fn whatever_happens_the_addresses_are_answered_for_by_one_host() {
    if let Some(seed) = number("SIMULATION_SEED") {
        vip::live(seed, true);
        return;
    }
    let histories = number("SIMULATION_HISTORIES").unwrap_or(HISTORIES) / PER_CLUSTER;
    let all = all("the_addresses", histories, vip::live);
    assert!(
        all.taken > histories * 4 && all.taken_over > histories / 2 && all.dropped > histories * 2,
        "{all:?}"
    );
    assert!(
        all.lapsed > histories / 10 && all.inherited > histories / 10 && all.failed > histories / 400,
        "{all:?}"
    );
    assert!(
        all.restarts > histories && all.boots > histories / 20 && all.rivals > histories / 100,
        "{all:?}"
    );
    assert!(all.strangers > histories / 100, "{all:?}");
}
