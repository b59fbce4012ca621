//! Thousands of random histories of a host, its guardian, the databases and a coordinator, over a network that loses, doubles, delays
//! and reorders, on a clock that is ours. After every step the invariants of [`io_guardian::guardian::core`] are checked, and at the
//! end of each history everything is healed and must come to rest where it should.
//!
//! A seed is a history. One that fails is named with the command that replays it:
//!
//! ```sh
//! SIMULATION_SEED=42 cargo test --test simulation -- --nocapture          # this one, each step told
//! SIMULATION_HISTORIES=1000000 cargo test --release --test simulation     # many
//! ```

#![allow(
    clippy::print_stdout,
    clippy::panic,
    clippy::expect_used,
    reason = "a test tells what it does, and fails loudly"
)]

mod world;

use std::panic::catch_unwind;

/// Histories in an ordinary run of the tests.
const HISTORIES: u64 = 20_000;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|error| panic!("{name}={text}: {error}")),
    )
}

#[test]
fn whatever_happens_the_host_comes_to_rest_where_it_should() {
    if let Some(seed) = number("SIMULATION_SEED") {
        world::live(seed, true);
        return;
    }
    let histories = number("SIMULATION_HISTORIES").unwrap_or(HISTORIES);
    // Two cores share them.
    let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u64;
    let told: Vec<Result<world::Told, u64>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..workers)
            .map(|worker| {
                scope.spawn(move || {
                    let mut told = world::Told::default();
                    for seed in (worker..histories).step_by(workers as usize) {
                        match catch_unwind(|| world::live(seed, false)) {
                            Ok(more) => told += more,
                            Err(_) => return Err(seed),
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
    let mut all = world::Told::default();
    for told in told {
        match told {
            Ok(told) => all += told,
            Err(seed) => panic!(
                "history {seed} breaks an invariant; replay it with: \
                 SIMULATION_SEED={seed} cargo test --test simulation -- --nocapture"
            ),
        }
    }
    println!("{histories} histories: {all:?}");
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
