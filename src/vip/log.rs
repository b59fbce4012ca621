//! What the core says, as lines of the log.

use std::time::Duration;

use super::said::Said;

/// One line each: the fields have fixed names (docs/VIP.md).
pub(super) fn log(said: &Said) {
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
