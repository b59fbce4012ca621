//! What a run found, as the types behind `--output json`. `docs/COORDINATOR-OUTPUT.md` describes them; a test
//! there and here keeps the two together. Pure.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::fault::{Fault, Verdict};
use crate::protocol::{Action, DatabaseReport, LastCommand, Response, Status, UnitReport};

/// Exit code: a wave failed, and the ones after it were not begun. One of its own: a unit must be able to tell it from a run that could
/// not be made, and is worth another try.
pub const EXIT_STOPPED: u8 = 2;

/// Version of the JSON document. It grows when a field changes its meaning or goes; new fields do not count.
pub const REPORT_VERSION: u32 = 1;

/// The whole run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// [`REPORT_VERSION`].
    pub version: u32,
    /// What was asked for.
    pub action: Action,
    /// The generation that was sent, if one was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// Every host once, in the order in which they were named.
    pub hosts: Vec<HostReport>,
    /// How far it came, of a run in waves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Rollout>,
    /// The counts.
    pub summary: Summary,
    /// How long the run took.
    pub elapsed_ms: u64,
}

/// A run in waves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    /// How many there are.
    pub waves: usize,
    /// Up to which one hosts were told, and each has a result.
    pub done: usize,
    /// Why the others were not begun, and how to go on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<String>,
}

/// The counts of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// All of them.
    pub hosts: usize,
    /// With result `ok`.
    pub ok: usize,
    /// With any other result.
    pub failed: usize,
}

impl Summary {
    /// Counts `hosts`.
    pub fn of(hosts: &[HostReport]) -> Self {
        let ok = hosts.iter().filter(|h| h.result == Verdict::Ok).count();
        Self {
            hosts: hosts.len(),
            ok,
            failed: hosts.len() - ok,
        }
    }
}

/// Which version of the wire a host was spoken to in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SpokenWire {
    /// The second version.
    V2,
    /// The plain one: the key and the command crossed the network in clear.
    Plain,
}

/// One host. All texts are one line each and hold no control characters, whatever the guardian sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostReport {
    /// As it was named.
    pub host: String,
    /// The address that was connected to, or the one tried last; absent when the name has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<SocketAddr>,
    /// The version of the wire; absent when no connection came about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wire: Option<SpokenWire>,
    /// The wave that it is of, from 1 on; absent in a run without waves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wave: Option<usize>,
    /// The result in one word.
    pub result: Verdict,
    /// The guardian's message, or what went wrong.
    pub message: String,
    /// What to do about it; absent when the result is `ok`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<Box<str>>,
    /// The dependents, when the guardian named them.
    pub units: Vec<UnitReport>,
    /// How many more dependents there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub units_omitted: Option<u64>,
    /// How many times it was tried; 0 when the run was interrupted before.
    pub attempts: u32,
    /// From the start of its first attempt to the end of its last one.
    pub elapsed_ms: u64,
    /// `status`: the target that is guarded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Box<str>>,
    /// `status`: its state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_state: Option<Box<str>>,
    /// `status`: what the guardian wants for its host, and why, in one line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standing: Option<Box<str>>,
    /// Whether somebody holds the host down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<bool>,
    /// `status`: what the guardian itself has seen last of the databases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub databases: Option<Vec<DatabaseReport>>,
    /// `status`: the last drain or undrain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_command: Option<Box<LastCommand>>,
    /// `status`, and a stale command: the highest generation that the guardian has seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_generation: Option<u64>,
    /// `status`: the guardian's version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guardian_version: Option<Box<str>>,
    /// Which guardian answered: random, made when it starts.
    #[serde(skip)]
    pub instance: Option<Box<str>>,
    /// `status`: the fingerprints of the keys that the guardian accepts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<Vec<String>>,
}

impl HostReport {
    /// A host that has no `ok`.
    pub fn failed(
        host: String,
        address: Option<SocketAddr>,
        fault: &Fault,
        attempts: u32,
        elapsed_ms: u64,
    ) -> Self {
        Self {
            host,
            address,
            wire: None,
            wave: None,
            result: fault.verdict(),
            message: fault.to_string(),
            remedy: Some(fault.remedy().into()),
            units: Vec::new(),
            units_omitted: None,
            attempts,
            elapsed_ms,
            target: None,
            target_state: None,
            standing: None,
            held: None,
            databases: None,
            last_command: None,
            last_generation: None,
            guardian_version: None,
            instance: None,
            keys: None,
        }
    }

    /// A host whose guardian answered, with `ok` or with an error.
    pub fn answered(
        host: String,
        address: Option<SocketAddr>,
        response: Response,
        attempts: u32,
        elapsed_ms: u64,
    ) -> Self {
        let base = match response.status {
            Status::Ok => Self {
                result: Verdict::Ok,
                message: response.message,
                remedy: None,
                ..Self::failed(host, address, &Fault::Interrupted, attempts, elapsed_ms)
            },
            Status::Error => {
                let fault = Fault::Answered {
                    message: response.message,
                };
                Self::failed(host, address, &fault, attempts, elapsed_ms)
            }
        };
        Self {
            units: response.units.unwrap_or_default(),
            units_omitted: response.units_omitted,
            target: response.target.map(Into::into),
            target_state: response.target_state.map(Into::into),
            standing: response.standing.map(Into::into),
            held: response.held,
            databases: response.databases,
            last_command: response.last_command.map(Box::new),
            last_generation: response.generation,
            guardian_version: response.version.map(Into::into),
            instance: response.instance.map(Into::into),
            keys: response.keys,
            ..base
        }
    }
}

/// The exit code of a run that came to its end: as documented since the first implementation, failed hosts alone
/// do not fail the command. An interrupted run did not do what it was told; nor has a plan that was `stopped` by a wave that failed.
pub fn exit_code(failed: usize, fail_fast: bool, interrupted: bool, stopped: bool) -> u8 {
    if stopped && !interrupted {
        EXIT_STOPPED
    } else if interrupted || (fail_fast && failed > 0) {
        crate::cli::EXIT_FAILED
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_hosts_fail_the_command_only_with_fail_fast() {
        assert_eq!(exit_code(3, false, false, false), 0);
        assert_eq!(exit_code(3, true, false, false), 1);
        assert_eq!(exit_code(0, true, false, false), 0);
        assert_eq!(exit_code(0, false, true, true), 1);
        assert_eq!(exit_code(3, true, false, true), EXIT_STOPPED);
    }

    #[test]
    fn the_documented_example_is_this_type() {
        let page = include_str!("../../docs/COORDINATOR-OUTPUT.md");
        let example = page
            .split("```json\n")
            .nth(1)
            .and_then(|rest| rest.split("```").next())
            .unwrap();
        let report: Report = serde_json::from_str(example).unwrap();
        assert_eq!(report.version, REPORT_VERSION);
        assert_eq!(report.summary, Summary::of(&report.hosts));
        // Nothing in the example is a field that we do not write, and each field is told of in the table.
        let ours = serde_json::to_value(&report).unwrap();
        assert_eq!(ours, serde_json::from_str::<serde_json::Value>(example).unwrap());
        for host in ours["hosts"].as_array().unwrap() {
            for field in host.as_object().unwrap().keys() {
                assert!(
                    page.contains(&format!("| `{field}` |")),
                    "{field} is not described"
                );
            }
        }
    }

    #[test]
    fn an_error_answer_keeps_its_units() {
        let mut response = Response::new(Action::Drain, Status::Error, "still stopping: a.service");
        response.units = Some(vec![UnitReport::new("a.service", "deactivating")]);
        let report = HostReport::answered("db".into(), None, response, 2, 7);
        assert_eq!(
            (report.result, report.message.as_str(), report.attempts),
            (Verdict::Failed, "still stopping: a.service", 2)
        );
        assert_eq!(report.units.len(), 1);
        assert!(report.remedy.is_some());
    }
}
