//! What became of a drain or an undrain, in words. Pure: the same for systemd and for child processes.

use std::time::Duration;

use crate::protocol::{Status, UnitReport};

/// What became of a drain or an undrain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    /// Whether it came about.
    pub status: Status,
    /// What happened, for people: every unit that needs attention is named.
    pub message: String,
    /// Every dependent and its state.
    pub units: Vec<UnitReport>,
}

/// How a sentence goes on after the units that it names.
pub(super) const SEE: &str = "see `systemctl status` and `journalctl -u` of them";

impl Settled {
    /// A drain is over (a unit that has an `elapsed_ms` came to rest in it): each unit of `units` is stopped or, past the deadline, still moves. `left` names units of
    /// which processes run although they are stopped, with how many.
    pub fn drained(target: &str, units: Vec<UnitReport>, left: &[(String, usize)], took: Duration) -> Self {
        let (stopped, moving): (Vec<_>, Vec<_>) = units.iter().partition(|u| u.is_stopped());
        let mut parts = Vec::new();
        if !moving.is_empty() {
            parts.push(format!(
                "{} of {} units still not stopped after {}: {}",
                moving.len(),
                units.len(),
                seconds(took),
                names(moving.iter().map(|u| (u.name.as_str(), u.state.as_str())))
            ));
        }
        if !left.is_empty() {
            parts.push(format!(
                "stopped, but processes of them still run: {} (KillMode=process or none leaves them behind)",
                list(left.iter().map(|(name, count)| format!("{name} ({count} left)")))
            ));
        }
        let failed = names(
            stopped
                .iter()
                .filter(|u| u.state == "failed")
                .map(|u| (u.name.as_str(), u.result.as_deref().unwrap_or("failed"))),
        );
        if parts.is_empty() {
            let mut message = format!("{target} and {} are stopped", count(&units));
            if !failed.is_empty() {
                message.push_str(&format!("; stopped, but failed: {failed}"));
            }
            return Self {
                status: Status::Ok,
                message,
                units,
            };
        }
        if !failed.is_empty() {
            parts.push(format!("stopped, but failed: {failed}"));
        }
        Self {
            status: Status::Error,
            message: format!("{target}: {}; {SEE}", parts.join("; ")),
            units,
        }
    }

    /// An undrain is over. `units` is what depends on the target; `pending` names what still moves past the
    /// deadline, `failed` what did not come up and why, `unwanted` what nobody asked the target to start.
    pub fn undrained(
        target: &str,
        units: Vec<UnitReport>,
        pending: &[(String, String)],
        failed: &[(String, String)],
        unwanted: &[String],
        took: Duration,
    ) -> Self {
        let pairs = |list: &'_ [(String, String)]| names(list.iter().map(|(n, s)| (n.as_str(), s.as_str())));
        let mut parts = Vec::new();
        if !failed.is_empty() {
            parts.push(format!("did not start: {}", pairs(failed)));
        }
        if !pending.is_empty() {
            parts.push(format!(
                "still starting after {}: {}",
                seconds(took),
                pairs(pending)
            ));
        }
        let mut message = if parts.is_empty() {
            format!("{target} and {} are started", count(&units))
        } else {
            format!("{target}: {}; {SEE}", parts.join("; "))
        };
        if !unwanted.is_empty() {
            message.push_str(&format!(
                "; left stopped, because {target} neither wants nor upholds them: {}",
                list(unwanted.iter().cloned())
            ));
        }
        let status = if parts.is_empty() {
            Status::Ok
        } else {
            Status::Error
        };
        Self {
            status,
            message,
            units,
        }
    }
}

fn count(units: &[UnitReport]) -> String {
    match units.len() {
        0 => "no dependents".to_owned(),
        1 => "1 dependent".to_owned(),
        n => format!("{n} dependents"),
    }
}

fn names<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    list(pairs.map(|(name, why)| format!("{name} ({why})")))
}

/// At most ten names, so that a message stays a line; `units` of the answer has them all.
fn list(names: impl Iterator<Item = String>) -> String {
    const MOST: usize = 10;
    let all: Vec<_> = names.collect();
    let more = all.len().saturating_sub(MOST);
    let mut text = all.iter().take(MOST).cloned().collect::<Vec<_>>().join(", ");
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    text
}

fn seconds(took: Duration) -> String {
    format!("{:.1} s", took.as_secs_f64())
}
