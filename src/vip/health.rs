//! Whether this node is healthy: the check, again and again, until it is sure.

use std::num::NonZeroU32;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::config::{Checker, NodeArgs, Pace, password};
use crate::cli::{Failure, HostPort};
use crate::probe::{
    Check, CheckError, CommandCheck, Counts, HttpCheck, Password, PostgresCheck, RedisCheck, RedisLogin,
    TlsFiles,
};

/// What the node is asked; none: a node that runs is healthy.
///
/// # Errors
/// Exit code 78: what was given cannot be asked.
pub(super) fn check(node: &NodeArgs) -> Result<Option<Check>, Failure> {
    let wrong = |error: CheckError| Failure::config(error);
    Ok(Some(match node.checker_type {
        None | Some(Checker::None) => return Ok(None),
        Some(Checker::Http) => Check::http(http(node)?).map_err(wrong)?,
        Some(Checker::Postgres) => Check::postgres(postgres(node)?).map_err(wrong)?,
        Some(Checker::Redis) => Check::redis(redis(node)?),
        Some(Checker::Tcp) => {
            let address = node.tcp_address.as_deref().unwrap_or_default();
            Check::tcp(host_port("tcp-address", address)?).map_err(wrong)?
        }
        Some(Checker::Command) => {
            let path = std::env::var_os("PATH").map(|path| ("PATH".into(), path));
            let check = CommandCheck {
                argv: node.command.clone().unwrap_or_default(),
                environment: path.into_iter().collect(),
            };
            Check::command(check).map_err(wrong)?
        }
    }))
}

fn host_port(key: &str, text: &str) -> Result<HostPort, Failure> {
    HostPort::parse(text).map_err(|error| Failure::config(format!("{key}: {error}")))
}

fn http(node: &NodeArgs) -> Result<HttpCheck, Failure> {
    let mut check = HttpCheck::new(node.http_url.clone().unwrap_or_default());
    check.user = node.http_user.clone();
    check.password = password(
        "http-password",
        &node.http_password,
        node.http_password_file.as_deref(),
    )?;
    check.tls = TlsFiles {
        ca: node.http_ca_file.clone(),
        certificate: node.http_cert_file.clone(),
        key: node.http_key_file.clone(),
    };
    if let Some(code) = node.http_expected_code {
        check.expected_code = code;
    }
    check.expected_response = node.http_expected_response.clone();
    check.expected_response_contains = node.http_expected_response_contains.clone();
    Ok(check)
}

fn postgres(node: &NodeArgs) -> Result<PostgresCheck, Failure> {
    let url = node.postgres_conn_url.as_ref().map(|url| url.expose().to_owned());
    let mut check = PostgresCheck::new(url.unwrap_or_default());
    check.user = node.postgres_user.clone();
    check.password = password(
        "postgres-password",
        &node.postgres_password,
        node.postgres_password_file.as_deref(),
    )?;
    check.tls = TlsFiles {
        ca: node.postgres_ca_file.clone(),
        certificate: node.postgres_cert_file.clone(),
        key: node.postgres_key_file.clone(),
    };
    check.query = node.postgres_query.clone();
    check.expected_response = node.postgres_expected_response.clone();
    Ok(check)
}

fn redis(node: &NodeArgs) -> Result<RedisCheck, Failure> {
    let read = |file: &std::path::PathBuf| {
        Password::read(file).map_err(|error| Failure::config(format!("redis-password-file: {error}")))
    };
    let password = node.redis_password_file.as_ref().map(read).transpose()?;
    Ok(RedisCheck {
        address: host_port(
            "redis-address",
            node.redis_address.as_deref().unwrap_or("localhost"),
        )?,
        login: password.map(|password| RedisLogin { user: None, password }),
        expected_role: None,
    })
}

/// Asks again and again, and tells each verdict that is another one than before.
pub(super) async fn watch(check: Option<Check>, pace: Pace, tell: watch::Sender<Option<Result<(), String>>>) {
    let Some(mut check) = check else {
        let _ = tell.send(Some(Ok(())));
        return tell.closed().await;
    };
    let count = |count| NonZeroU32::new(count).unwrap_or(NonZeroU32::MIN);
    let mut counts = Counts::new(count(pace.rise), count(pace.fall));
    while !tell.is_closed() {
        let begun = Instant::now();
        let seen = check.attempt(begun + pace.timeout).await;
        let failed = seen.is_err();
        if let Some(verdict) = counts.note(seen) {
            let said = verdict.map_err(|why| format!("{check}: {why}"));
            if tell.send(Some(said)).is_err() {
                return;
            }
        }
        // While it is not sure, and while it waits for the node to come back, it asks faster.
        let pause = if failed || counts.is_in_doubt() {
            pace.retry_after
        } else {
            pace.every
        };
        sleep(
            pause
                .saturating_sub(begun.elapsed())
                .max(pace.retry_after.min(pause) / 4),
        )
        .await;
    }
}
