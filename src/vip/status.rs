//! What `io-vip status` shows: the core's own view of the pool, and of this host.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;

use super::shown::{Shown, State};
use crate::cli::age;

/// One line for `systemctl status`.
pub(super) fn line(shown: &Shown) -> String {
    let held = match shown.held.len() {
        0 => "holds nothing".to_owned(),
        1 => "holds 1 address".to_owned(),
        n => format!("holds {n} addresses"),
    };
    match (&shown.because, shown.state) {
        (Some(because), _) => format!("{held}: {because}"),
        (None, State::TakesPart) => format!("takes part, {held} of {}", shown.pool.len()),
        (None, State::NameInUse) => format!(
            "another instance is called {}; waiting until it is silent",
            shown.node
        ),
        (None, State::Joining) => format!("joining, {held}"),
        (None, State::Stopping) => format!("ending, {held}"),
        (None, State::TakesNoPart | State::Finished) => held,
    }
}

/// All of it, for people.
pub(super) fn text(shown: &Shown, shut: &BTreeMap<IpAddr, String>) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "{}: {}", shown.node, line(shown));
    for held in &shown.held {
        let _ = write!(out, "    {}", held.address);
        if let Some(ms) = held.since_ms {
            let _ = write!(out, " for {}", age(ms));
        }
        if let Some(token) = held.token {
            let _ = write!(out, ", token {token}");
        }
        out.push_str(match (held.dropping, held.up) {
            (true, _) => ", being given up",
            (false, true) => "",
            (false, false) => ", on its way to the interface",
        });
        out.push('\n');
    }
    for (address, why) in shut {
        let _ = writeln!(
            out,
            "    {address} is on this host, which does not answer for it: {why}"
        );
    }
    match (&shown.lease, shown.until_ms) {
        (Some(lease), Some(ms)) => {
            let _ = writeln!(
                out,
                "lease {lease}: may hold for {} ms without another sign of life",
                ms
            );
        }
        (Some(lease), None) => {
            let _ = writeln!(out, "lease {lease}: no sign of life has got through yet");
        }
        (None, _) => out.push_str("no lease\n"),
    }
    match (shown.revision, shown.watching) {
        (Some(revision), true) => {
            let _ = writeln!(out, "store: known up to revision {revision}");
        }
        (Some(revision), false) => {
            let _ = writeln!(
                out,
                "store: known up to revision {revision}, and news do not come"
            );
        }
        (None, _) => out.push_str("store: nothing is known of it yet\n"),
    }
    if let Some(fault) = &shown.last_fault {
        let _ = writeln!(
            out,
            "last fault of the store, {} ago: {}",
            age(fault.ago_ms),
            fault.error
        );
    }
    for node in &shown.nodes {
        let alive = if node.alive { "healthy" } else { "silent" };
        let _ = write!(out, "node {}: {alive}", node.node);
        if let Some(ms) = node.seen_ms {
            let _ = write!(out, ", last sign of life {} ago", age(ms));
        }
        out.push('\n');
    }
    for (node, why) in &shown.paused {
        let _ = writeln!(out, "paused: {node}: {why}");
    }
    for pooled in &shown.pool {
        let owner = pooled.owner.as_deref().unwrap_or("nobody");
        let _ = write!(out, "{}: held by {owner}", pooled.address);
        if pooled.owner.is_some() && !pooled.owner_alive {
            out.push_str(" (silent)");
        }
        if let Some(share_of) = pooled
            .share_of
            .as_ref()
            .filter(|node| pooled.owner.as_ref() != Some(node))
        {
            let _ = write!(out, ", goes to {share_of}");
        }
        if let Some(ms) = pooled.free_in_ms.filter(|ms| *ms > 0 && !pooled.owner_alive) {
            let _ = write!(out, " in {ms} ms");
        }
        if let Some(node) = &pooled.preferred {
            let _ = write!(out, ", wanted on {node}");
        }
        for (node, why) in &pooled.cannot {
            let _ = write!(out, "; {node} cannot hold it: {why}");
        }
        out.push('\n');
    }
    out
}
