//! What a probe found, as a type: ready, or not ready and why. Pure.

use std::fmt;

use super::Kind;

/// Whether a query would be served. What is not known to be ready is not ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The database answered as one that serves queries.
    Ready,
    /// It did not, and this is why.
    NotReady(Cause),
}

impl Verdict {
    /// Whether this is [`Verdict::Ready`].
    pub fn is_ready(&self) -> bool {
        *self == Self::Ready
    }
}

/// Why a database is not ready. `Display` is one line: what was seen, then what to do about it.
///
/// Texts that came from the peer are quoted: short, and free of control characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// PostgreSQL starts up.
    Starting,
    /// PostgreSQL shuts down.
    ShuttingDown,
    /// PostgreSQL recovers from a crash, or is a standby that is not consistent yet.
    Recovery,
    /// PostgreSQL accepts no connections, in words that this program does not know: its messages may be
    /// translated, or it may be a standby with `hot_standby = off`.
    NotAccepting(String),
    /// PostgreSQL is a standby, and a primary is required.
    Standby,
    /// Every connection slot is taken.
    TooManyConnections(String),
    /// PostgreSQL does not know the role, or the role may not log in.
    NoSuchRole(String),
    /// PostgreSQL does not know the database.
    NoSuchDatabase(String),
    /// The password is wrong. PostgreSQL says the same of a role that it does not know.
    BadPassword(String),
    /// A password is asked for, and none was given.
    PasswordNeeded(Kind),
    /// A password was given, and Redis has none set.
    PasswordNotWanted,
    /// The server refuses this client: pg_hba.conf, Redis' protected mode, or its access control list.
    NotAllowed(String),
    /// No line of pg_hba.conf lets this client in without TLS. PostgreSQL does not say whether one would with TLS.
    NotAllowedWithoutTls(String),
    /// Redis loads its data.
    Loading,
    /// Redis is a replica that lost its primary, and will not serve stale data.
    MasterDown,
    /// Redis runs a script or a function that keeps everybody waiting.
    Busy,
    /// Redis refuses writes because it cannot save.
    CannotPersist,
    /// Any other error reply.
    ErrorReply(String),
    /// Nobody listens.
    Refused,
    /// The name has no address.
    NameNotFound(String),
    /// The network knows no way, or another error of the socket.
    Unreachable(String),
    /// The deadline of the attempt passed.
    TimedOut(Stage),
    /// The peer hung up without a word.
    ClosedWithoutAnswer,
    /// What listens there speaks something else.
    NotThisProtocol {
        /// What should listen there.
        expected: Kind,
        /// How its answer begins.
        heard: String,
    },
}

/// What an attempt was waiting for when its deadline passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The addresses of the name.
    Lookup,
    /// The TCP connection.
    Connect,
    /// The answer of the database.
    Answer,
}

impl Cause {
    /// How much the cause tells, to choose one among several addresses: what a database said is more than
    /// what a network said.
    pub(super) fn weight(&self) -> u8 {
        match self {
            Self::NameNotFound(_) | Self::Unreachable(_) => 0,
            Self::Refused => 1,
            Self::TimedOut(Stage::Lookup | Stage::Connect) => 2,
            Self::TimedOut(Stage::Answer) | Self::ClosedWithoutAnswer => 3,
            Self::NotThisProtocol { .. } => 4,
            _ => 5,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready => f.write_str("ready"),
            Self::NotReady(cause) => cause.fmt(f),
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Starting => f.write_str("it is starting up: wait, its log shows how far it is"),
            Self::ShuttingDown => f.write_str("it is shutting down: start it again, or find out who stopped it"),
            Self::Recovery => {
                f.write_str("it is recovering, its data is not consistent yet: wait, its log shows how far it is")
            }
            Self::NotAccepting(said) => write!(f, "it is not accepting connections: {said}: wait, or see its log"),
            Self::Standby => {
                f.write_str("it is a standby, and --require-primary wants a primary: promote it, or name the primary")
            }
            Self::TooManyConnections(said) => {
                write!(f, "all its connections are taken: {said}: close some, or raise its limit")
            }
            Self::NoSuchRole(said) => {
                write!(f, "the role cannot log in: {said}: create it with LOGIN, or name another with --user")
            }
            Self::NoSuchDatabase(said) => {
                write!(f, "the database is missing: {said}: create it, or name another with --database")
            }
            Self::BadPassword(said) => {
                write!(f, "it refuses the password: {said}: compare the password file with what the server has")
            }
            Self::PasswordNeeded(Kind::Postgres) => {
                f.write_str("it asks for a password: give one with --password-file")
            }
            Self::PasswordNeeded(Kind::Redis) => f.write_str(
                "it wants a password (NOAUTH), and without one cannot be asked whether it is ready: give --redis-password-file",
            ),
            Self::PasswordNotWanted => f.write_str(
                "it has no password set for this user, but one was given: set requirepass, or drop --redis-password-file",
            ),
            Self::NotAllowed(said) => {
                write!(f, "it does not let this client in: {said}: allow this host and user there")
            }
            Self::NotAllowedWithoutTls(said) => write!(
                f,
                "it does not let this client in without TLS, which this probe does not speak: {said}: add a line to \
                 pg_hba.conf, or probe without --user"
            ),
            Self::Loading => f.write_str("it is loading its data (LOADING): wait, its log shows how far it is"),
            Self::MasterDown => f.write_str(
                "it is a replica without its primary (MASTERDOWN): repair the replication, or name the primary",
            ),
            Self::Busy => f.write_str("it is busy with a script (BUSY): wait, or end the script with SCRIPT KILL"),
            Self::CannotPersist => f.write_str(
                "it cannot save its data and refuses writes (MISCONF): see its log, often the disk is full",
            ),
            Self::ErrorReply(said) => write!(f, "it answers with an error: {said}: see its log"),
            Self::Refused => f.write_str("connection refused: start it, or check the address and port it listens on"),
            Self::NameNotFound(said) => write!(f, "its name has no address: {said}: check the name and the DNS"),
            Self::Unreachable(said) => write!(f, "it cannot be reached: {said}: check the network and the host"),
            Self::TimedOut(Stage::Lookup) => f.write_str("timed out looking up its name: check the DNS"),
            Self::TimedOut(Stage::Connect) => {
                f.write_str("timed out connecting: check that its host is up and that no firewall drops packets")
            }
            Self::TimedOut(Stage::Answer) => {
                f.write_str("timed out waiting for its answer: it took the connection and says nothing, see its log")
            }
            Self::ClosedWithoutAnswer => {
                f.write_str("it closed the connection without an answer: check the port, and see its log")
            }
            Self::NotThisProtocol { expected, heard } => {
                write!(f, "what answers there is not {}: it says {heard}: check the port", expected.product())
            }
        }
    }
}

/// The longest text of a peer that goes into a message.
const QUOTED_MAX_CHARS: usize = 160;

/// A text from the peer, fit for one line of a log: control characters become spaces, long ends are cut.
pub(crate) fn quoted(text: &str) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    let mut short: String = text.trim().chars().take(QUOTED_MAX_CHARS).map(clean).collect();
    if text.trim().chars().nth(QUOTED_MAX_CHARS).is_some() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_peer_says_stays_one_short_line() {
        assert_eq!(quoted(" a\nb\x1b[31m "), "a b [31m");
        assert_eq!(quoted(&"ä".repeat(500)).chars().count(), QUOTED_MAX_CHARS + 1);
    }

    #[test]
    fn every_cause_is_one_line_with_a_remedy() {
        let said = || "x".to_owned();
        for cause in [
            Cause::Starting,
            Cause::ShuttingDown,
            Cause::Recovery,
            Cause::NotAccepting(said()),
            Cause::Standby,
            Cause::TooManyConnections(said()),
            Cause::NoSuchRole(said()),
            Cause::NoSuchDatabase(said()),
            Cause::BadPassword(said()),
            Cause::PasswordNeeded(Kind::Postgres),
            Cause::PasswordNeeded(Kind::Redis),
            Cause::PasswordNotWanted,
            Cause::NotAllowed(said()),
            Cause::NotAllowedWithoutTls(said()),
            Cause::Loading,
            Cause::MasterDown,
            Cause::Busy,
            Cause::CannotPersist,
            Cause::ErrorReply(said()),
            Cause::Refused,
            Cause::NameNotFound(said()),
            Cause::Unreachable(said()),
            Cause::TimedOut(Stage::Lookup),
            Cause::TimedOut(Stage::Connect),
            Cause::TimedOut(Stage::Answer),
            Cause::ClosedWithoutAnswer,
            Cause::NotThisProtocol {
                expected: Kind::Redis,
                heard: said(),
            },
        ] {
            let line = cause.to_string();
            assert!(
                line.contains(": ") && !line.contains('\n') && line.len() < 160,
                "{line}"
            );
        }
    }
}
