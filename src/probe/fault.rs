//! Why a check has failed, in one line: what was seen, and the remedy where one is known.

use std::fmt;

use super::Kind;
use super::reach::Telling;
use super::verdict::{Cause, Stage};

/// Why an attempt of a check has failed.
#[derive(Debug)]
pub(super) enum Fault {
    /// What the probes know, too.
    Cause(Cause),
    /// What the one who was asked has to answer for. One line; what is his in it is quoted.
    Said(String),
}

impl Fault {
    pub(super) fn said(text: impl Into<String>) -> Self {
        Self::Said(text.into())
    }
}

impl From<Cause> for Fault {
    fn from(cause: Cause) -> Self {
        Self::Cause(cause)
    }
}

impl Telling for Fault {
    fn weight(&self) -> u8 {
        match self {
            Self::Cause(cause) => cause.weight(),
            Self::Said(_) => Cause::ErrorReply(String::new()).weight(),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The remedies of a probe name the flags of `io-guardian wait`; a check is set up elsewhere.
        match self {
            Self::Said(text) => f.write_str(text),
            Self::Cause(Cause::NoSuchRole(said)) => {
                write!(
                    f,
                    "the role cannot log in: {said}: create it with LOGIN, or name another user"
                )
            }
            Self::Cause(Cause::NoSuchDatabase(said)) => {
                write!(
                    f,
                    "the database is missing: {said}: create it, or name another in the URL"
                )
            }
            Self::Cause(Cause::BadPassword(said)) => {
                write!(
                    f,
                    "it refuses the password: {said}: compare it with what the server has"
                )
            }
            Self::Cause(Cause::PasswordNeeded(Kind::Postgres)) => {
                f.write_str("it asks for a password: give one")
            }
            Self::Cause(Cause::PasswordNeeded(Kind::Redis)) => f.write_str(
                "it wants a password (NOAUTH), and without one cannot be asked whether it is ready: give one",
            ),
            Self::Cause(Cause::PasswordNotWanted) => f.write_str(
                "it has no password set for this user, but one was given: set requirepass, or give none",
            ),
            Self::Cause(Cause::NotAllowedWithoutTls(said)) => write!(
                f,
                "it does not let this client in without TLS: {said}: add a line to pg_hba.conf, or sslmode=require to \
                 the URL"
            ),
            Self::Cause(Cause::TimedOut(Stage::Answer)) => f.write_str(
                "timed out waiting for its answer: it took the connection and says nothing more, see its log",
            ),
            Self::Cause(cause) => cause.fmt(f),
        }
    }
}
