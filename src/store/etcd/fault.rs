//! What became of a request that went wrong: whether it may have happened is what everything depends on.
//!
//! **Promise.** "Not done" is only said of what was not sent, or of what etcd itself has refused with words that it has for nothing else.
//! Everything that is not known here may have been done.

use std::error::Error as _;

use etcd_client::Error;
use tonic::{Code, ConnectError, Status};

use crate::probe::quoted;
use crate::store::StoreError;

/// How one request at one member went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It was not done, and will not be: another member can be asked for the same.
    NotDone(String),
    /// Nobody knows.
    MaybeDone(String),
    /// The member does not know who we are any more: a login helps, where there is one. Not done.
    Token(String),
    /// We may not.
    NotAllowed(String),
    /// The lease is not there.
    LeaseGone,
    /// The revision is not there any more.
    Compacted,
}

/// What etcd says when it has not done anything. Each is said before a proposal is made, or by the one that applies it and then does not.
const REFUSALS: [(&str, Option<&str>); 6] = [
    ("etcdserver: no leader", None),
    ("raft proposal dropped", None),
    ("etcdserver: too many requests", None),
    (
        "etcdserver: mvcc: database space exceeded",
        Some("its disk quota is used up: compact and defragment, then `etcdctl alarm disarm`"),
    ),
    (
        "etcdserver: rpc not supported for learner",
        Some("ask members that vote"),
    ),
    (
        "etcdserver: corrupt cluster",
        Some("a member's data is broken: see etcd's own documentation"),
    ),
];

/// What a new login may help against.
const STRANGER: [&str; 3] = [
    "etcdserver: invalid auth token",
    "etcdserver: revision of auth store is old",
    "etcdserver: user name is empty",
];

/// etcd has no authentication, and so there is no login.
pub(super) const NO_LOGIN: &str = "etcdserver: authentication is not enabled";

const DENIED: &str = "etcdserver: permission denied";

impl Fault {
    /// Whether these are the member's words.
    pub(super) fn says(error: &Error, words: &str) -> bool {
        matches!(error, Error::GRpcStatus(status) if status.source().is_none() && status.message() == words)
    }

    /// The reason that a watch was cancelled with.
    pub(super) fn of_reason(reason: &str) -> Self {
        // Some of these come with `rpc error: code = … desc = ` before them. In some versions a token that has expired and a user who may not are
        // the same: a new login tells them apart.
        if let Some(words) = STRANGER
            .iter()
            .chain(&[DENIED])
            .find(|words| reason.ends_with(**words))
        {
            return Self::Token((*words).to_owned());
        }
        match reason {
            "" => Self::NotDone("it has cancelled the watch".to_owned()),
            reason => Self::NotDone(format!("it has cancelled the watch: {}", quoted(reason))),
        }
    }

    /// We are who we say, and may not.
    fn denied(said: &str) -> Self {
        Self::NotAllowed(format!(
            "{said}; give the user a role that may read and write these keys (`etcdctl role grant-permission`)"
        ))
    }

    /// A new login has not helped.
    pub(super) fn for_good(self) -> Self {
        match self {
            Self::Token(said) if said == DENIED => Self::denied(&said),
            Self::Token(said) => Self::NotAllowed(said),
            fault => fault,
        }
    }

    /// The same of a request of which nothing was sent when this happened.
    pub(super) fn before_sending(self) -> Self {
        match self {
            Self::MaybeDone(said) => Self::NotDone(said),
            fault => fault,
        }
    }

    /// What there is to be told of it.
    pub(super) fn said(&self) -> &str {
        match self {
            Self::NotDone(said) | Self::MaybeDone(said) | Self::Token(said) | Self::NotAllowed(said) => said,
            Self::LeaseGone => "the lease has ended",
            Self::Compacted => "compacted",
        }
    }

    /// Whether every member would say the same.
    pub(super) fn is_final(&self) -> bool {
        match self {
            Self::NotDone(_) | Self::MaybeDone(_) => false,
            Self::Token(_) | Self::NotAllowed(_) | Self::LeaseGone | Self::Compacted => true,
        }
    }

    /// What it comes to when nobody else is asked.
    pub(super) fn at(self, endpoint: &str) -> StoreError {
        let named = |said: String| format!("etcd {endpoint}: {said}");
        match self {
            Self::NotDone(said) => StoreError::Unavailable(named(said)),
            Self::MaybeDone(said) => StoreError::Unknown(named(said)),
            Self::Token(said) | Self::NotAllowed(said) => StoreError::NotAllowed(named(said)),
            Self::LeaseGone => StoreError::LeaseGone,
            Self::Compacted => StoreError::Compacted,
        }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        match error {
            Error::GRpcStatus(status) => of_status(&status),
            // The stream of keep-alives has no word of its own for it.
            Error::LeaseKeepAliveError(said) if said == "lease not found" => Self::LeaseGone,
            error => Self::MaybeDone(quoted(&error.to_string())),
        }
    }
}

impl From<tonic::transport::Error> for Fault {
    /// Of a connection that was not made.
    fn from(error: tonic::transport::Error) -> Self {
        Self::NotDone(with_hint(chain(error.source())))
    }
}

/// Whether these are the member's own words, and not what became of the connection.
pub(super) fn is_answer(error: &Error) -> bool {
    match error {
        Error::GRpcStatus(status) => status.source().is_none(),
        Error::LeaseKeepAliveError(_) => true,
        _ => false,
    }
}

fn of_status(status: &Status) -> Fault {
    let said = status.message();
    if status.source().is_some() {
        let text = with_hint(chain(status.source()));
        return if was_not_sent(status) {
            Fault::NotDone(text)
        } else {
            Fault::MaybeDone(text)
        };
    }
    if let Some((_, remedy)) = REFUSALS.iter().find(|(words, _)| said == *words) {
        return Fault::NotDone(match remedy {
            Some(remedy) => format!("{said}; {remedy}"),
            None => said.to_owned(),
        });
    }
    if STRANGER.contains(&said) {
        return Fault::Token(said.to_owned());
    }
    let ours = said.starts_with("etcdserver: ");
    let text = if said.is_empty() {
        status.code().description().to_owned()
    } else {
        quoted(said)
    };
    match status.code() {
        Code::NotFound if said.ends_with("lease not found") => Fault::LeaseGone,
        Code::OutOfRange if said.ends_with("required revision has been compacted") => Fault::Compacted,
        Code::PermissionDenied | Code::Unauthenticated => Fault::denied(&text),
        Code::InvalidArgument if said.contains("invalid user ID or password") => {
            Fault::NotAllowed(format!("{text}; correct the user, or the password in its file"))
        }
        // What etcd calls by these names it refuses before it does anything, or instead of doing it.
        Code::InvalidArgument | Code::FailedPrecondition | Code::ResourceExhausted | Code::OutOfRange
            if ours =>
        {
            Fault::NotDone(text)
        }
        Code::Unimplemented => Fault::NotDone(format!("{text}; is there an etcd of 3.4 or later?")),
        _ => Fault::MaybeDone(text),
    }
}

/// Whether the connection was not there: a request is sent after it is.
fn was_not_sent(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// What an error says, and what the ones below say that it does not.
fn chain(mut error: Option<&(dyn std::error::Error + 'static)>) -> String {
    let mut text = String::new();
    while let Some(link) = error {
        let said = link.to_string();
        // What tonic calls every one of them tells nobody anything.
        if said != "transport error" && !text.contains(&said) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&said);
        }
        error = link.source();
    }
    quoted(&text)
}

fn with_hint(text: String) -> String {
    let hint = if text.contains("InvalidContentType") || text.contains("tls handshake eof") {
        "; if it does not speak TLS, write http://, or give etcd certificates"
    } else if text.contains("UnknownIssuer") {
        "; the authority in the CA file has not signed its certificate"
    } else if text.contains("not valid for name") {
        "; its certificate is of another name than the endpoint has here"
    } else if ["CertificateRequired", "BadCertificate", "UnknownCA"]
        .iter()
        .any(|alert| text.contains(alert))
    {
        "; it wants a certificate of ours that its own authority has signed: name the certificate file and the key file"
    } else {
        ""
    };
    text + hint
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(code: Code, message: &str) -> Fault {
        Fault::from(Error::GRpcStatus(Status::new(code, message)))
    }

    #[test]
    fn only_what_etcd_has_refused_is_not_done() {
        for (code, message) in [
            (Code::Unavailable, "etcdserver: no leader"),
            (Code::Unknown, "raft proposal dropped"),
            (Code::ResourceExhausted, "etcdserver: too many requests"),
            (
                Code::ResourceExhausted,
                "etcdserver: mvcc: database space exceeded",
            ),
            (
                Code::InvalidArgument,
                "etcdserver: too many operations in txn request",
            ),
            (
                Code::InvalidArgument,
                "etcdserver: duplicate key given in txn request",
            ),
            (Code::InvalidArgument, "etcdserver: request is too large"),
            (
                Code::FailedPrecondition,
                "etcdserver: authentication is not enabled",
            ),
            (Code::Unimplemented, "unknown service etcdserverpb.KV"),
        ] {
            assert!(matches!(of(code, message), Fault::NotDone(_)), "{message}");
        }
        for (code, message) in [
            (Code::Unavailable, "etcdserver: leader changed"),
            (Code::Unavailable, "etcdserver: server stopped"),
            (Code::Unavailable, "etcdserver: request timed out"),
            (
                Code::Unavailable,
                "etcdserver: request timed out, possibly due to previous leader failure",
            ),
            (
                Code::Unavailable,
                "etcdserver: request timed out, possibly due to connection lost",
            ),
            (Code::Unavailable, "etcdserver: unhealthy cluster"),
            // Of whatever is in between.
            (Code::Unavailable, "upstream connect error"),
            (Code::ResourceExhausted, "trying to send message larger than max"),
            (Code::InvalidArgument, "proxy: no"),
            (Code::OutOfRange, "Error, decoded message length too large"),
            (Code::DeadlineExceeded, "context deadline exceeded"),
            (Code::Cancelled, ""),
            (Code::Internal, ""),
            (Code::Unknown, "no such thing"),
            (Code::Aborted, "etcdserver: no"),
            (Code::DataLoss, "etcdserver: no"),
        ] {
            assert!(matches!(of(code, message), Fault::MaybeDone(_)), "{message}");
        }
    }

    #[test]
    fn what_every_member_would_say_is_final() {
        let gone = of(Code::NotFound, "etcdserver: requested lease not found");
        assert_eq!(gone, Fault::LeaseGone);
        let compacted = of(
            Code::OutOfRange,
            "etcdserver: mvcc: required revision has been compacted",
        );
        assert_eq!(compacted, Fault::Compacted);
        for (code, message) in [
            (Code::PermissionDenied, "etcdserver: permission denied"),
            (
                Code::InvalidArgument,
                "etcdserver: authentication failed, invalid user ID or password",
            ),
        ] {
            let fault = of(code, message);
            let told = fault.clone().at("a:2379");
            assert!(
                matches!(&told, StoreError::NotAllowed(said) if said.contains(';') && said.contains("a:2379")),
                "{told}"
            );
            assert!(fault.is_final());
        }
        for message in STRANGER {
            assert!(matches!(of(Code::Unauthenticated, message), Fault::Token(_)));
            let reason = format!("rpc error: code = Unauthenticated desc = {message}");
            assert_eq!(Fault::of_reason(&reason), Fault::Token(message.to_owned()));
        }
    }

    #[test]
    fn what_a_member_says_stays_one_short_line() {
        let told = of(Code::Internal, &"\x1b[31m\n".repeat(1_000))
            .at("a:2379")
            .to_string();
        assert!(
            told.chars().count() < 250 && !told.contains(['\x1b', '\n']),
            "{told}"
        );
        assert!(of(Code::Internal, "").said().len() > 3);
    }
}
