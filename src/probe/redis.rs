//! Redis is ready when it answers PING with PONG. Every error reply is not ready: a server that loads its data,
//! a replica without its primary and a server that cannot save all answer PING with an error.

use std::pin::pin;
use std::str::FromStr;

use ::redis::aio::MultiplexedConnection;
use ::redis::{
    AsyncConnectionConfig, Cmd, ErrorKind, ProtocolVersion, RedisConnectionInfo, RedisError, Value,
};

use super::Kind;
use super::fault::Fault;
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

/// What a Redis is in its replication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedisRole {
    /// It takes writes.
    Master,
    /// It follows a master.
    Replica,
}

impl RedisRole {
    /// As people and configurations write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Master => "master",
            Self::Replica => "replica",
        }
    }

    /// As ROLE answers.
    fn on_the_wire(self) -> &'static [u8] {
        match self {
            Self::Master => b"master",
            Self::Replica => b"slave",
        }
    }
}

impl FromStr for RedisRole {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "master" => Ok(Self::Master),
            "replica" => Ok(Self::Replica),
            _ => Err("a Redis is master or replica"),
        }
    }
}

/// Asks over `stream`. The caller holds the deadline.
pub(super) async fn ask(stream: Bounded, login: Option<&RedisLogin>) -> Verdict {
    let heard = stream.heard();
    match converse(stream, login, false).await {
        Ok((pong, _)) if is_pong(&pong) => Verdict::Ready,
        Ok(_) => Verdict::NotReady(heard.cause(Kind::Redis)),
        Err(error) => Verdict::NotReady(cause(&error, &heard)),
    }
}

/// The same, and which role it has.
pub(super) async fn ask_role(
    stream: Bounded,
    login: Option<&RedisLogin>,
    expected: RedisRole,
) -> Result<(), Fault> {
    let heard = stream.heard();
    let (pong, role) = match converse(stream, login, true).await {
        Ok(answers) => answers,
        Err(error) => return Err(cause(&error, &heard).into()),
    };
    // ROLE is answered while data is loaded and by a replica without its primary, too; PING is not.
    let found = match role {
        Some(Value::Array(parts)) if is_pong(&pong) => parts.into_iter().next(),
        _ => None,
    };
    let Some(Value::BulkString(found)) = found else {
        return Err(heard.cause(Kind::Redis).into());
    };
    if found == expected.on_the_wire() {
        return Ok(());
    }
    let found = match found.as_slice() {
        b"slave" => "replica".to_owned(),
        other => quoted(&String::from_utf8_lossy(other)),
    };
    Err(Fault::said(format!(
        "its role is {found:?}, and {:?} is expected",
        expected.as_str()
    )))
}

fn is_pong(value: &Value) -> bool {
    matches!(value, Value::SimpleString(text) if text == "PONG")
}

/// AUTH where there is a login, then PING, then ROLE where it is asked for.
async fn converse(
    stream: Bounded,
    login: Option<&RedisLogin>,
    with_role: bool,
) -> Result<(Value, Option<Value>), RedisError> {
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
        let pong = Cmd::new().arg("PING").query_async(&mut connection).await?;
        let role = match with_role {
            true => Some(Cmd::new().arg("ROLE").query_async(&mut connection).await?),
            false => None,
        };
        Ok((pong, role))
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
    use std::time::Duration;

    use tokio::time::Instant;

    use super::super::scripted::{dialogue, listen, play};
    use super::super::{Check, RedisCheck};
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

    /// One check of a peer that answers PING and ROLE so.
    async fn checked(pong: &str, role: &str, expected: RedisRole) -> Result<(), String> {
        let (listener, address) = listen().await;
        let peer = tokio::spawn(play(listener, dialogue(&[pong.as_bytes(), role.as_bytes()])));
        let mut check = Check::redis(RedisCheck {
            address,
            login: None,
            expected_role: Some(expected),
        });
        let found = check.attempt(Instant::now() + Duration::from_secs(60)).await;
        peer.abort();
        found
    }

    #[tokio::test]
    async fn the_role_has_to_be_the_expected_one_and_the_server_ready() {
        use RedisRole::{Master, Replica};
        let master = "*3\r\n$6\r\nmaster\r\n:3129659\r\n*0\r\n";
        let replica = "*5\r\n$5\r\nslave\r\n$9\r\n127.0.0.1\r\n:9000\r\n$9\r\nconnected\r\n:3167038\r\n";
        let sentinel = "*2\r\n$8\r\nsentinel\r\n*0\r\n";
        checked("+PONG\r\n", master, Master).await.unwrap();
        checked("+PONG\r\n", replica, Replica).await.unwrap();
        for (pong, role, expected, why) in [
            (
                "+PONG\r\n",
                master,
                Replica,
                "its role is \"master\", and \"replica\" is expected",
            ),
            (
                "+PONG\r\n",
                replica,
                Master,
                "its role is \"replica\", and \"master\" is expected",
            ),
            ("+PONG\r\n", sentinel, Master, "its role is \"sentinel\""),
            (
                "-LOADING Redis is loading\r\n",
                master,
                Master,
                "it is loading its data",
            ),
            ("+OK\r\n", master, Master, "what answers there is not Redis"),
            (
                "+PONG\r\n",
                "-NOPERM no permissions to run role\r\n",
                Master,
                "it does not let this client in",
            ),
            ("+PONG\r\n", "*0\r\n", Master, "what answers there is not Redis"),
            (
                "+PONG\r\n",
                "+master\r\n",
                Master,
                "what answers there is not Redis",
            ),
        ] {
            let line = checked(pong, role, expected).await.unwrap_err();
            assert!(line.contains(why), "{line}");
        }
        assert_eq!(["master", "replica"].map(str::parse), [Ok(Master), Ok(Replica)]);
        assert!("slave".parse::<RedisRole>().is_err());
    }
}
