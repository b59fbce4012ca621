//! What the core says, as lines of the log.

use std::time::Duration;

use tokio::time::Instant;

use super::said::Said;

/// So often within [`WINDOW`] it is told at once that the store has gone.
const TIMES: u32 = 3;
const WINDOW: Duration = Duration::from_secs(600);
/// And when it has gone for so long, always.
const LASTS: Duration = Duration::from_secs(30);

/// What is told of something that comes and goes.
#[derive(Default)]
struct Flapping {
    window: Option<Instant>,
    times: u32,
    is_told_gone: bool,
    /// Since when it has gone, and that was not told yet.
    untold: Option<(Instant, Said)>,
}

impl Flapping {
    /// It has gone: whether that is told now, and whether for the last time for a while.
    fn gone(&mut self, now: Instant, said: &Said) -> Option<bool> {
        if self
            .window
            .is_none_or(|began| now.duration_since(began) >= WINDOW)
        {
            (self.window, self.times) = (Some(now), 0);
        }
        self.times = self.times.saturating_add(1);
        if self.times > TIMES {
            self.untold = Some((now, said.clone()));
            return None;
        }
        self.is_told_gone = true;
        Some(self.times == TIMES)
    }

    /// Whether it is told that it is back: nothing is left as gone that is not.
    fn back(&mut self) -> bool {
        self.untold = None;
        std::mem::take(&mut self.is_told_gone)
    }

    /// What has lasted by now.
    fn lasting(&mut self, now: Instant) -> Option<Said> {
        let (_, said) = self
            .untold
            .take_if(|(since, _)| now.duration_since(*since) >= LASTS)?;
        self.is_told_gone = true;
        Some(said)
    }
}

/// Writes what the core says. One thing that it says each second (a store that takes no writes and keeps leases alive goes and comes as often) is a few lines.
#[derive(Default)]
pub(super) struct Lines {
    answers: Flapping,
    sights: Flapping,
}

impl Lines {
    pub(super) fn write(&mut self, now: Instant, said: &Said) {
        let last = match said {
            Said::StoreLost { .. } => self.answers.gone(now, said),
            Said::StoreUnseen { .. } => self.sights.gone(now, said),
            Said::StoreBack { .. } => self.answers.back().then_some(false),
            Said::StoreSeen { .. } => self.sights.back().then_some(false),
            _ => Some(false),
        };
        let Some(is_last) = last else { return };
        log(said);
        if is_last {
            tracing::warn!(
                "this happens again and again; for 10 minutes it is told of when it lasts for 30 s; `io-vip status` has the last fault of the store"
            );
        }
    }

    /// To be called now and then.
    pub(super) fn look(&mut self, now: Instant) {
        for flapping in [&mut self.answers, &mut self.sights] {
            if let Some(said) = flapping.lasting(now) {
                log(&said);
            }
        }
    }
}

/// One line each: the fields have fixed names (docs/VIP.md).
fn log(said: &Said) {
    match said {
        Said::TakesPart { lease } => tracing::info!(lease, "this node takes part"),
        Said::TakesNoPart { because } => tracing::warn!(because, "this node takes no part"),
        Said::Took { address, token, from } => match from {
            Some(from) => {
                tracing::info!(%address, token, from, "took an address over; its holder was silent")
            }
            None => tracing::info!(%address, token, "took an address"),
        },
        Said::Dropped { address, why } => tracing::info!(%address, %why, "dropped an address"),
        Said::TakeFailed {
            address,
            error,
            again_in,
        } => tracing::error!(
            %address,
            error,
            again_in = %humantime::format_duration(*again_in),
            "cannot hold an address; another node may try"
        ),
        Said::Stranger {
            address,
            by,
            again_in,
        } => tracing::error!(
            %address,
            by,
            again_in = %humantime::format_duration(*again_in),
            "somebody on the network has an address of the pool already; it is left alone, and asked for again"
        ),
        Said::DropFailed { address, error } => tracing::error!(
            %address,
            error,
            "cannot drop an address; the kernel answers for it until the end of its lease, and no longer"
        ),
        Said::Lost { address } => {
            tracing::warn!(%address, "somebody has taken an address off the interface; putting it back")
        }
        Said::NameInUse { lease } => tracing::warn!(
            lease,
            "another instance has this node's name, or had it a moment ago; waiting until it is silent. If it never is: give each node its own nodename"
        ),
        Said::StoreLost { error } => tracing::error!(error, "the store does not answer; trying on"),
        Said::StoreBack { after } => {
            tracing::info!(after = %in_millis(*after), "the store answers again");
        }
        Said::StoreUnseen { error } => tracing::error!(
            error,
            "the store cannot be listed or watched; trying on. If signs of life get through all the same, this node takes no part after a ttl of that"
        ),
        Said::StoreSeen { after } => {
            tracing::info!(after = %in_millis(*after), "the store can be listed and watched again");
        }
        Said::LeaseLost { lease } => {
            tracing::warn!(lease, "the store has ended this node's lease; beginning anew")
        }
        Said::AdvertLost => {
            tracing::warn!("somebody has taken this node's key out of the store; beginning anew")
        }
        Said::Lapsed { held } => tracing::error!(
            held,
            "no sign of life got through to the store in time: all addresses are dropped, as others may take them now"
        ),
        Said::Rubbish { key, why } => tracing::warn!(key, why, "a key of the store is ignored"),
        Said::Inherited { lease, held } => {
            tracing::info!(lease, held, "going on with what the start before has left")
        }
    }
}

/// No more of it than anybody wants to read.
fn in_millis(span: Duration) -> humantime::FormattedDuration {
    let millis = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    humantime::format_duration(Duration::from_millis(millis))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gone() -> Said {
        Said::StoreLost {
            error: "no answer".to_owned(),
        }
    }

    #[test]
    fn what_comes_and_goes_each_second_is_a_few_lines_and_ends_as_it_is() {
        let begun = Instant::now();
        let mut flapping = Flapping::default();
        let mut told = Vec::new();
        for second in 0..2_000 {
            let now = begun + Duration::from_secs(second);
            let gone = flapping.gone(now, &gone());
            told.extend(gone.map(|last| (second, last)));
            assert_eq!(flapping.lasting(now), None);
            assert_eq!(flapping.back(), gone.is_some());
        }
        let expected = [0, 600, 1_200, 1_800].map(|at| [(at, false), (at + 1, false), (at + 2, true)]);
        assert_eq!(told, expected.concat());
    }

    #[test]
    fn what_lasts_is_told_whatever_came_and_went_before() {
        let begun = Instant::now();
        let mut flapping = Flapping::default();
        for _ in 0..3 {
            assert!(flapping.gone(begun, &gone()).is_some() && flapping.back());
        }
        assert_eq!(flapping.gone(begun, &gone()), None);
        assert_eq!(flapping.lasting(begun + LASTS / 2), None);
        assert_eq!(flapping.lasting(begun + LASTS), Some(gone()));
        assert_eq!(flapping.lasting(begun + 2 * LASTS), None);
        assert!(flapping.back());
    }
}
