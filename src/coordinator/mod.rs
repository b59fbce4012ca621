//! `io-coordinator`: tells many guardians one thing, and reports what each of them answered.
//!
//! **Promise.** Every host gets a result of its own, with what to do about it, whatever the other hosts do: one
//! that swallows packets costs its own timeout and nobody else's. No wait is without a deadline. Nothing ends a
//! connection that waits for an answer except that deadline and, in the second version of the wire, 21 s of silence that not
//! even a ping is answered in. A generation is on
//! disk before the first byte leaves this host, and is never used twice.
//!
//! **Not guaranteed.** A host that timed out or was lost while its answer was awaited may have done what it was
//! told: only `status` can say. Without `--generation` or `--generation-file`, the command that a guardian
//! receives last wins, whoever sent it first.
//!
//! A run is one-shot, so there is no state machine here. What decides is pure: [`fault`] (which word, what to do,
//! whether to try again), [`schedule`], [`hosts`], [`generation::next`], [`report`], [`table`]. What touches the world is
//! `dial` and `upgrade` (one connection, which [`carrier`] hands to a run), [`run()`] and `confirm` (all of them), `apart` and `supervise` (processes of our own), and
//! [`command`] and `watcher` (arguments, signals, printing).

mod apart;
mod arguments;
pub mod carrier;
pub mod command;
mod confirm;
mod damping;
mod dial;
pub mod fault;
pub mod fleet;
pub mod generation;
mod heard;
pub mod hosts;
mod keys;
pub mod report;
pub mod rollout;
mod run;
pub mod schedule;
pub mod serve;
mod supervise;
pub mod table;
pub mod top;
mod upgrade;
mod watcher;
pub mod waves;

pub use fault::{Fault, Phase, Verdict};
pub use hosts::Target;
pub use report::{HostReport, Report, Summary};
pub use run::{Observer, Outcome, Plan, run, run_over};
