//! `io-coordinator key`: a new key, and which hosts know which.

use std::fmt::Write;

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::fault::Verdict;
use super::report::HostReport;
use super::run::{Plan, run};
use crate::cli::Failure;
use crate::protocol::Keyring;

/// 256 random bits in hexadecimal digits, which no shell, file or form takes for anything else.
pub(super) fn new_key() -> Result<String, Failure> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)
        .map_err(|error| Failure::failed(format!("this machine gives no random numbers: {error}")))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Which hosts know which keys. Keys are named by their fingerprints.
#[derive(Debug, Serialize)]
pub(super) struct KeyReport {
    /// Ours; the first one is spoken.
    keys: Vec<String>,
    hosts: Vec<KnownKeys>,
}

#[derive(Debug, Serialize)]
struct KnownKeys {
    host: String,
    result: Verdict,
    /// What went wrong; absent when the host answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    /// The keys that it accepts; those that are not ours, too. Of a guardian that does not tell: the one it was asked with.
    keys: Vec<String>,
}

impl KeyReport {
    /// Whether the key that is spoken is accepted everywhere.
    pub(super) fn all_know_the_spoken_one(&self) -> bool {
        let spoken = self.keys.first();
        self.hosts
            .iter()
            .all(|host| spoken.is_some_and(|spoken| host.keys.contains(spoken)))
    }
}

/// Asks all hosts with the key that is spoken, and those that refuse it with the others in turn.
pub(super) async fn check(mut plan: Plan, ring: &Keyring) -> KeyReport {
    let mut found: Vec<Option<KnownKeys>> = Vec::new();
    found.resize_with(plan.targets.len(), || None);
    let mut open: Vec<usize> = (0..plan.targets.len()).collect();
    let targets = std::mem::take(&mut plan.targets);
    for key in ring.iter() {
        plan.key = key.clone();
        plan.targets = open.iter().filter_map(|at| targets.get(*at).cloned()).collect();
        let outcome = run(&plan, &mut (), &CancellationToken::new()).await;
        let mut refused = Vec::new();
        for (at, host) in open.iter().zip(outcome.report.hosts) {
            if host.result == Verdict::BadKey {
                refused.push(*at);
            }
            if let Some(slot) = found.get_mut(*at) {
                *slot = Some(known(host, &key.fingerprint()));
            }
        }
        open = refused;
    }
    KeyReport {
        keys: ring.fingerprints(),
        hosts: found.into_iter().flatten().collect(),
    }
}

fn known(host: HostReport, asked_with: &str) -> KnownKeys {
    let answered = host.result == Verdict::Ok;
    let told = host.keys.filter(|_| answered);
    KnownKeys {
        keys: told.unwrap_or_else(|| {
            if answered {
                vec![asked_with.to_owned()]
            } else {
                Vec::new()
            }
        }),
        host: host.host,
        result: host.result,
        message: (!answered).then_some(host.message),
    }
}

/// For people.
pub(super) fn render(report: &KeyReport) -> String {
    let mut out = String::new();
    let host_width = report
        .hosts
        .iter()
        .map(|host| host.host.chars().count())
        .fold(4, usize::max);
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{:host_width$}  {:9}  KEYS", "HOST", "RESULT");
    for host in &report.hosts {
        let keys = match &host.message {
            Some(message) => message.clone(),
            None => host.keys.join(" "),
        };
        let _ = writeln!(
            out,
            "{:host_width$}  {:9}  {keys}",
            host.host,
            host.result.as_str()
        );
    }
    for (at, key) in report.keys.iter().enumerate() {
        let know = report.hosts.iter().filter(|host| host.keys.contains(key)).count();
        let spoken = if at == 0 { "spoken" } else { "accepted, not spoken" };
        let _ = writeln!(
            out,
            "{key} ({spoken}): {know} of {} hosts accept it",
            report.hosts.len()
        );
    }
    out
}
