//! Redis is ready when it answers PING with PONG. Every error reply is not ready: a server that loads its data,
//! a replica without its primary and a server that cannot save all answer PING with an error.

use std::pin::pin;

use ::redis::aio::MultiplexedConnection;
use ::redis::{
    AsyncConnectionConfig, Cmd, ErrorKind, ProtocolVersion, RedisConnectionInfo, RedisError, Value,
};

use super::Kind;
use super::password::Password;
use super::stream::{Bounded, Heard};
use super::verdict::{Cause, Verdict, quoted};

/// How to log in to Redis.
#[derive(Clone, Debug)]
pub struct RedisLogin {
    /// The user of the access control list; without one the default user.
    pub user: Option<String>,
    /// The password.
    pub password: Password,
}

/// Asks over `stream`. The caller holds the deadline.
pub(super) async fn ask(stream: Bounded, login: Option<&RedisLogin>) -> Verdict {
    let heard = stream.heard();
    match converse(stream, login).await {
        Ok(Value::SimpleString(text)) if text == "PONG" => Verdict::Ready,
        Ok(_) => Verdict::NotReady(heard.cause(Kind::Redis)),
        Err(error) => Verdict::NotReady(cause(&error, &heard)),
    }
}

/// AUTH where there is a login, then PING.
async fn converse(stream: Bounded, login: Option<&RedisLogin>) -> Result<Value, RedisError> {
    // The library's own login throws the server's words away, so AUTH is sent as any other command. Without a
    // password, a database or a library name to announce, connecting sends nothing.
    let info = RedisConnectionInfo::default()
        .set_protocol(ProtocolVersion::RESP2)
        .set_skip_set_lib_name();
    let config = AsyncConnectionConfig::new().set_response_timeout(None);
    let (mut connection, driver) = MultiplexedConnection::new_with_config(&info, stream, config).await?;
    let commands = async move {
        if let Some(login) = login {
            auth(login).query_async::<Value>(&mut connection).await?;
        }
        Cmd::new().arg("PING").query_async::<Value>(&mut connection).await
    };
    let (mut commands, mut driver) = (pin!(commands), pin!(driver));
    tokio::select! {
        biased;
        done = &mut commands => return done,
        () = &mut driver => {}
    }
    // The connection is at its end, and whatever was under way has its answer or its error.
    commands.await
}

fn auth(login: &RedisLogin) -> Cmd {
    let mut command = Cmd::new();
    command.arg("AUTH");
    if let Some(user) = &login.user {
        command.arg(user);
    }
    command.arg(login.password.expose());
    command
}

fn cause(error: &RedisError, heard: &Heard) -> Cause {
    if matches!(error.kind(), ErrorKind::Server(_) | ErrorKind::Extension) {
        return classify(
            error.code().unwrap_or_default(),
            error.detail().unwrap_or_default(),
        );
    }
    // A server that is full, or in protected mode, says so before it is asked; the library drops that line.
    if let Some(line) = heard.first_line()
        && let Some(reply) = line.strip_prefix('-')
    {
        let (code, detail) = reply.split_once(' ').unwrap_or((reply, ""));
        return classify(code, detail);
    }
    heard.cause(Kind::Redis)
}

/// The cause of an error reply: `-CODE detail`.
fn classify(code: &str, detail: &str) -> Cause {
    let said = || quoted(&format!("{code} {detail}"));
    match code {
        "LOADING" => Cause::Loading,
        "MASTERDOWN" => Cause::MasterDown,
        "BUSY" => Cause::Busy,
        "MISCONF" => Cause::CannotPersist,
        "NOAUTH" => Cause::PasswordNeeded(Kind::Redis),
        "WRONGPASS" => Cause::BadPassword(said()),
        "NOPERM" | "DENIED" => Cause::NotAllowed(said()),
        // Since Redis 6, and before it.
        "ERR"
            if detail.contains("without any password configured")
                || detail.contains("no password is set") =>
        {
            Cause::PasswordNotWanted
        }
        // Before Redis 6.
        "ERR" if detail.starts_with("invalid password") => Cause::BadPassword(said()),
        "ERR" if detail.starts_with("max number of clients") => Cause::TooManyConnections(said()),
        _ => Cause::ErrorReply(said()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_replies_are_told_apart() {
        let of = |line: &str| {
            let (code, detail) = line.split_once(' ').unwrap_or((line, ""));
            classify(code, detail)
        };
        assert_eq!(
            of("LOADING Redis is loading the dataset in memory"),
            Cause::Loading
        );
        assert_eq!(
            of("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'."),
            Cause::MasterDown
        );
        assert_eq!(of("BUSY Redis is busy running a script."), Cause::Busy);
        assert_eq!(
            of("MISCONF Redis is configured to save RDB snapshots"),
            Cause::CannotPersist
        );
        assert_eq!(
            of("NOAUTH Authentication required."),
            Cause::PasswordNeeded(Kind::Redis)
        );
        assert!(matches!(
            of("WRONGPASS invalid username-password pair"),
            Cause::BadPassword(_)
        ));
        assert!(matches!(of("ERR invalid password"), Cause::BadPassword(_)));
        for none_set in [
            "ERR AUTH <password> called without any password configured for the default user.",
            "ERR Client sent AUTH, but no password is set",
        ] {
            assert_eq!(of(none_set), Cause::PasswordNotWanted);
        }
        assert!(matches!(
            of("NOPERM this user has no permissions"),
            Cause::NotAllowed(_)
        ));
        assert!(matches!(
            of("DENIED Redis is running in protected mode"),
            Cause::NotAllowed(_)
        ));
        assert!(matches!(
            of("ERR max number of clients reached"),
            Cause::TooManyConnections(_)
        ));
        assert_eq!(of("ERR unknown"), Cause::ErrorReply("ERR unknown".to_owned()));
        assert_eq!(of("NEWS"), Cause::ErrorReply("NEWS".to_owned()));
    }
}
