//! What carries conversations, and where a run takes its chance from.
//!
//! One carrier is in use, [`Tcp`]. The other one is the network of `tests/simulation`: it loses, delays and breaks what a run says, and
//! draws from a seed, so that the same run can be lived again.

use std::hash::{BuildHasher, RandomState};

use tokio::sync::oneshot;

use super::dial::converse;
pub use super::dial::{Attempt, Words};
use super::hosts::Target;

/// Carries what a run says to guardians, and their answers back.
pub trait Carrier: Clone + Send + Sync + 'static {
    /// A whole conversation with `target`. It is over within [`Words::timeout`], and `dialled` is told when the guardian has proven that
    /// it is there; a future that is dropped closes its connection.
    fn converse(
        &self,
        words: &Words,
        target: &Target,
        dialled: oneshot::Sender<()>,
    ) -> impl Future<Output = Attempt> + Send;

    /// What one round of telling draws from: when each host is told, and told again. Asked for once in each.
    fn chance(&self) -> impl BuildHasher + Send;
}

/// The network.
#[derive(Clone, Copy, Debug)]
pub struct Tcp;

impl Carrier for Tcp {
    async fn converse(&self, words: &Words, target: &Target, dialled: oneshot::Sender<()>) -> Attempt {
        converse(words, target, dialled).await
    }

    fn chance(&self) -> impl BuildHasher + Send {
        RandomState::new()
    }
}

#[cfg(test)]
#[path = "carrier_tests.rs"]
mod tests;
