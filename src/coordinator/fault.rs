//! What can go wrong with one host: the word for it, what to do about it, and whether trying again makes sense.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::protocol::limits::ANSWER_MAX_BYTES;
use crate::protocol::{Action, CLOSE_GOING_AWAY, CLOSE_POLICY, CLOSE_TRY_LATER, ChannelError};

/// The result of one host, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The guardian answered `ok`.
    Ok,
    /// Nothing listens on that port.
    Refused,
    /// No answer within the timeout; the message says to what.
    TimedOut,
    /// No such name, no route, or a connection that broke.
    Unreachable,
    /// The guardian does not know our key.
    BadKey,
    /// The guardian answered with an error, or what answered is no guardian.
    Failed,
}

impl Verdict {
    /// The word in tables, logs and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Refused => "refused",
            Self::TimedOut => "timed-out",
            Self::Unreachable => "unreachable",
            Self::BadKey => "bad-key",
            Self::Failed => "failed",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How far a conversation had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Asking for the addresses of the name.
    LookingUp,
    /// Waiting for the TCP connection.
    Connecting,
    /// Waiting for the WebSocket handshake.
    Handshake,
    /// Waiting for the answer to `auth`.
    Authenticating,
    /// The command has left, in whole or in part; waiting for its answer.
    Answer(Action),
}

impl Phase {
    /// Whether the guardian may have received the command.
    pub const fn command_was_sent(self) -> bool {
        matches!(self, Self::Answer(_))
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LookingUp => f.write_str("looking up the name"),
            Self::Connecting => f.write_str("connecting"),
            Self::Handshake => f.write_str("waiting for the WebSocket handshake"),
            Self::Authenticating => f.write_str("authenticating"),
            Self::Answer(action) => write!(f, "waiting for the answer to {action}"),
        }
    }
}

/// Why a host has no `ok`. `Display` is the message of its result; texts of peers in it are excerpts of one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The name has no address.
    #[error("the name was not found: {reason}")]
    Lookup {
        /// What the resolver said.
        reason: String,
    },
    /// Every address refused.
    #[error("connection refused by {addresses}")]
    Refused {
        /// The addresses tried.
        addresses: String,
    },
    /// No address could be connected to.
    #[error("cannot connect: {reason}")]
    Unreachable {
        /// Each address with what the system said.
        reason: String,
    },
    /// This host has no descriptor left.
    #[error("cannot open a socket on this host: {reason}")]
    NoDescriptor {
        /// What the system said.
        reason: String,
    },
    /// The timeout passed.
    #[error("timed out after {} while {phase}", seconds(*.after))]
    TimedOut {
        /// What was waited for.
        phase: Phase,
        /// The timeout.
        after: Duration,
    },
    /// The connection broke without a word.
    #[error("the connection was lost while {phase}: {reason}")]
    Lost {
        /// How far it had come.
        phase: Phase,
        /// What the system said.
        reason: String,
    },
    /// The guardian closed the connection properly, instead of answering.
    #[error("the guardian closed the connection while {phase} (code {code}{})", colon(.reason))]
    Closed {
        /// How far it had come.
        phase: Phase,
        /// The WebSocket close code.
        code: u16,
        /// The guardian's words.
        reason: String,
    },
    /// A web server, but no guardian.
    #[error("not a guardian: it answered the WebSocket handshake with HTTP status {status}")]
    NoUpgrade {
        /// The HTTP status.
        status: u16,
    },
    /// It knows the plain protocol only, and we are to speak the second version; nothing was told to it.
    #[error(
        "it does not speak the second version of the wire, or somebody in between hides that; the key was not sent"
    )]
    Plain,
    /// The channel broke: somebody in between, or a mistake in one of the two programs.
    #[error("the channel is broken: {error}")]
    Unsealed {
        /// How it was seen.
        error: ChannelError,
    },
    /// Something that does not speak our protocol.
    #[error("not a guardian: {reason}")]
    Rubbish {
        /// What it said instead.
        reason: String,
    },
    /// An answer longer than we take.
    #[error("the answer is longer than {ANSWER_MAX_BYTES} bytes: {reason}")]
    TooLong {
        /// What was measured.
        reason: String,
    },
    /// The key is not the guardian's.
    #[error("the guardian refused the key{}", colon(.message))]
    BadKey {
        /// The guardian's words.
        message: String,
    },
    /// Another host of the run was answered by the same guardian.
    #[error("the guardian that answered is that of {other}")]
    SameGuardian {
        /// As it was named.
        other: String,
    },
    /// The guardian answered, and it is no `ok`.
    #[error("{}", if .message.is_empty() { "the guardian answered with an error and no message" } else { .message })]
    Answered {
        /// The guardian's words.
        message: String,
    },
    /// It answered `ok`, and was not well a while later.
    #[error("it was undrained, and is not well: {why}")]
    Ailing {
        /// What is wrong with it.
        why: String,
    },
    /// Its wave was not begun.
    #[error("not told: the plan stopped before wave {wave}, of which this host is")]
    NotTold {
        /// From 1 on.
        wave: usize,
    },
    /// We were told to end.
    #[error("interrupted before it answered")]
    Interrupted,
    /// A mistake of ours.
    #[error("internal: the task of this host ended without a result")]
    Internal,
}

fn colon(text: &str) -> String {
    if text.is_empty() {
        String::new()
    } else {
        format!(": {text}")
    }
}

/// A duration for people: `0.8 s`, `12 s`.
pub(crate) fn seconds(duration: Duration) -> String {
    let milliseconds = duration.as_millis();
    match milliseconds {
        0..1_000 => format!("{milliseconds} ms"),
        1_000..10_000 => format!("{:.1} s", duration.as_secs_f64()),
        _ => format!("{:.0} s", duration.as_secs_f64()),
    }
}

impl Fault {
    /// The word for it.
    pub const fn verdict(&self) -> Verdict {
        match self {
            Self::Refused { .. } => Verdict::Refused,
            Self::TimedOut { .. } => Verdict::TimedOut,
            Self::Lookup { .. }
            | Self::Unreachable { .. }
            | Self::NoDescriptor { .. }
            | Self::Lost { .. } => Verdict::Unreachable,
            Self::BadKey { .. } => Verdict::BadKey,
            Self::Closed { .. }
            | Self::NoUpgrade { .. }
            | Self::Plain
            | Self::Unsealed { .. }
            | Self::SameGuardian { .. }
            | Self::Rubbish { .. }
            | Self::TooLong { .. }
            | Self::Answered { .. }
            | Self::Ailing { .. }
            | Self::NotTold { .. }
            | Self::Interrupted
            | Self::Internal => Verdict::Failed,
        }
    }

    /// A close before the key was accepted: code 1008 is how a guardian says that it does not know us.
    pub fn closed(phase: Phase, code: u16, reason: String) -> Self {
        if code == CLOSE_POLICY && phase == Phase::Authenticating {
            Self::BadKey { message: reason }
        } else {
            Self::Closed { phase, code, reason }
        }
    }

    /// What to do about it.
    pub fn remedy(&self) -> &'static str {
        const NO_GUARDIAN: &str = "correct the host or the port: something else listens there";
        const ITS_LOG: &str = "read `journalctl -u io-guardian` on that host";
        const AT_LIMIT: &str = "the guardian is at its limit of connections: repeat the command later, or use --retry-for; `journalctl -u io-guardian` there names who takes the places";
        match self {
            Self::Lookup { .. } => "correct the name, or the DNS of this host",
            Self::Refused { .. } => {
                "nothing listens there: start the guardian (`systemctl status io-guardian` on that host), or correct the port"
            }
            Self::Unreachable { .. } => {
                "check that the host is up and that routes and firewalls let this host reach the port"
            }
            Self::NoDescriptor { .. } => {
                "raise LimitNOFILE= (`ulimit -n`) of the coordinator, or lower --max-parallel"
            }
            Self::TimedOut { phase, .. } => match phase {
                Phase::LookingUp => "check the DNS of this host, or name the guardian by its address",
                Phase::Connecting => {
                    "check that the host is up and that no firewall drops packets to the port"
                }
                Phase::Handshake | Phase::Authenticating => {
                    "something listens but is silent: see `systemctl status io-guardian` on that host, and check the port"
                }
                Phase::Answer(_) => {
                    "the command may still be under way: ask `io-coordinator status`, and give --timeout more than the guardian's --command-timeout"
                }
            },
            Self::Lost { phase, .. } if phase.command_was_sent() => {
                "the command may have been carried out: ask `io-coordinator status`, then repeat it if needed"
            }
            Self::Lost { .. } => {
                "something accepts connections and drops them: see `journalctl -u io-guardian` on that host, and check for a proxy in between"
            }
            Self::Closed {
                code: CLOSE_GOING_AWAY,
                ..
            } => "the guardian is being stopped or restarted: repeat the command, or use --retry-for",
            Self::Closed {
                code: CLOSE_TRY_LATER,
                ..
            }
            | Self::NoUpgrade { status: 429 | 503 } => AT_LIMIT,
            Self::SameGuardian { .. } => {
                "name each guardian once; if these are two hosts, look for who leads the connection of one to the other"
            }
            // We always offer the second version.
            Self::NoUpgrade { status: 426 } => {
                "the guardian takes the second version of the wire only, and did not see that it was offered: look for a proxy or an intruder between the two hosts"
            }
            Self::NoUpgrade { .. } | Self::Rubbish { .. } => NO_GUARDIAN,
            Self::Plain => {
                "update the guardian there; until then `--wire auto` sends it the key and the command in clear"
            }
            Self::Unsealed { .. } => {
                "look for a proxy or an intruder between the two hosts, and read `journalctl -u io-guardian` on that host"
            }
            Self::BadKey { .. } => {
                "see which host knows which key with `io-coordinator key check`, and put the one that is spoken into the guardian's file"
            }
            Self::Answered { message } if is_too_old_for_it(message) => {
                "the guardian is older than this command: update it, or use drain, undrain and ping only"
            }
            Self::Answered { message } if mentions(message, &["superseded", "stale"]) => {
                "a newer command reached this host: nothing to do, unless this one is to win; then send it again"
            }
            Self::Answered { .. } => {
                "see `systemctl status` of the units named, and `journalctl -u io-guardian`, on that host"
            }
            Self::Closed { .. } | Self::TooLong { .. } => ITS_LOG,
            Self::Ailing { .. } => {
                "see `systemctl status` of what is named, and `journalctl -u io-guardian`, on that host, and give the command again"
            }
            Self::NotTold { .. } => "mend what the last lines name, and give the command again",
            Self::Interrupted => "ask `io-coordinator status` what these hosts did, then repeat the command",
            Self::Internal => "report this, with the log",
        }
    }

    /// Whether nothing of the host is to be seen. Not where its kernel answers, by refusing or by accepting a connection that
    /// nobody serves: then what runs on it may run.
    pub(super) const fn is_out_of_sight(&self) -> bool {
        match self {
            Self::Lookup { .. } | Self::Unreachable { .. } => true,
            Self::TimedOut { phase, .. } | Self::Lost { phase, .. } => {
                matches!(phase, Phase::LookingUp | Phase::Connecting)
            }
            _ => false,
        }
    }

    /// Whether a later attempt may end better *and* cannot do harm.
    ///
    /// Before the command has left, whatever looks like a host that is not up yet is worth another attempt. Once
    /// it has left, it is sent again only when `repeat_is_harmless`: a `drain` that is repeated after somebody
    /// else's `undrain` would override a newer command, unless a generation tells the guardian which is older.
    /// What a guardian answered (an error, a wrong key, superseded) is an answer, and final.
    pub fn is_worth_retrying(&self, repeat_is_harmless: bool) -> bool {
        match self {
            Self::Lookup { .. }
            | Self::Refused { .. }
            | Self::Unreachable { .. }
            | Self::NoDescriptor { .. }
            | Self::NoUpgrade { status: 429 | 503 } => true,
            Self::TimedOut { phase, .. } | Self::Lost { phase, .. } => {
                !phase.command_was_sent() || repeat_is_harmless
            }
            Self::Closed { phase, code, .. } => {
                matches!(*code, CLOSE_GOING_AWAY | CLOSE_TRY_LATER)
                    && (!phase.command_was_sent() || repeat_is_harmless)
            }
            Self::NoUpgrade { .. }
            | Self::Plain
            | Self::Unsealed { .. }
            | Self::SameGuardian { .. }
            | Self::Rubbish { .. }
            | Self::TooLong { .. }
            | Self::BadKey { .. }
            | Self::Answered { .. }
            | Self::Ailing { .. }
            | Self::NotTold { .. }
            | Self::Interrupted
            | Self::Internal => false,
        }
    }
}

/// Whether a guardian's `message` says that it does not know what it was asked for: what is there may be well.
pub(super) fn is_too_old_for_it(message: &str) -> bool {
    message.starts_with("Unknown action")
}

fn mentions(text: &str, words: &[&str]) -> bool {
    let text = text.to_lowercase();
    words.iter().any(|word| text.contains(word))
}

/// Whether sending a command a second time can do no harm, although the first may have arrived.
pub fn repeat_is_harmless(action: Action, generation: Option<u64>) -> bool {
    match action {
        Action::Ping | Action::Status | Action::Watch => true,
        Action::Drain | Action::Undrain | Action::Hold | Action::Release => generation.is_some(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SENT: Phase = Phase::Answer(Action::Drain);

    fn timed_out(phase: Phase) -> Fault {
        Fault::TimedOut {
            phase,
            after: Duration::from_secs(60),
        }
    }

    #[test]
    fn a_host_whose_kernel_answers_is_not_out_of_sight() {
        for phase in [Phase::LookingUp, Phase::Connecting] {
            assert!(timed_out(phase).is_out_of_sight(), "{phase}");
        }
        for phase in [Phase::Handshake, Phase::Authenticating, SENT] {
            assert!(!timed_out(phase).is_out_of_sight(), "{phase}");
        }
        let refused = Fault::Refused {
            addresses: "192.0.2.1:9876".into(),
        };
        assert!(!refused.is_out_of_sight());
    }

    #[test]
    fn a_host_that_is_not_up_yet_is_tried_again_whatever_the_command() {
        for fault in [
            Fault::Refused {
                addresses: "192.0.2.1:9876".into(),
            },
            Fault::Lookup { reason: "?".into() },
            timed_out(Phase::Connecting),
            timed_out(Phase::Authenticating),
            Fault::closed(Phase::Handshake, CLOSE_TRY_LATER, String::new()),
            Fault::closed(Phase::Authenticating, CLOSE_GOING_AWAY, String::new()),
            Fault::NoUpgrade { status: 503 },
        ] {
            assert!(fault.is_worth_retrying(false), "{fault}");
        }
    }

    #[test]
    fn a_command_that_may_have_arrived_is_sent_again_only_when_that_is_harmless() {
        for fault in [
            timed_out(SENT),
            Fault::Lost {
                phase: SENT,
                reason: "reset".into(),
            },
            Fault::closed(SENT, CLOSE_GOING_AWAY, String::new()),
        ] {
            assert!(!fault.is_worth_retrying(false), "{fault}");
            assert!(fault.is_worth_retrying(true), "{fault}");
        }
        assert!(repeat_is_harmless(Action::Ping, None));
        assert!(!repeat_is_harmless(Action::Undrain, None));
        assert!(repeat_is_harmless(Action::Undrain, Some(1)));
    }

    #[test]
    fn an_answer_is_final() {
        for fault in [
            Fault::Answered {
                message: "superseded by undrain".into(),
            },
            Fault::BadKey {
                message: "Invalid key".into(),
            },
            Fault::NoUpgrade { status: 404 },
            Fault::closed(SENT, CLOSE_POLICY, String::new()),
        ] {
            assert!(!fault.is_worth_retrying(true), "{fault}");
        }
    }

    #[test]
    fn close_code_1008_before_the_key_was_accepted_means_bad_key() {
        let fault = Fault::closed(Phase::Authenticating, CLOSE_POLICY, "Invalid key".into());
        assert_eq!(fault.verdict(), Verdict::BadKey);
        assert_eq!(fault.to_string(), "the guardian refused the key: Invalid key");
        let fault = Fault::closed(SENT, CLOSE_POLICY, String::new());
        assert_eq!(fault.verdict(), Verdict::Failed);
    }

    #[test]
    fn a_timeout_says_what_was_waited_for() {
        assert_eq!(
            timed_out(SENT).to_string(),
            "timed out after 60 s while waiting for the answer to drain"
        );
        assert!(timed_out(SENT).remedy().contains("--timeout"));
        assert!(timed_out(Phase::Connecting).remedy().contains("firewall"));
        assert!(timed_out(Phase::LookingUp).remedy().contains("DNS"));
    }

    #[test]
    fn a_guardian_that_is_older_than_status_is_named_as_such() {
        let fault = Fault::Answered {
            message: "Unknown action: status".into(),
        };
        assert!(fault.remedy().contains("update it"));
    }
}
