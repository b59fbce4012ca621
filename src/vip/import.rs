//! The pool of a yaim, read out of etcd's second API, where that program keeps it.

use std::net::IpAddr;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::keys;
use crate::cli::HostPort;

/// How long etcd may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest answer that is read, in bytes.
const ANSWER_MAX_BYTES: usize = 4 << 20;
const ETCD_PORT: u16 = 2379;
/// EcodeKeyNotFound of etcd's second API.
const KEY_NOT_FOUND: u32 = 100;

/// An address of a yaim's pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Old {
    pub(super) address: IpAddr,
    /// Which yaim holds it now.
    pub(super) marked: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    node: Option<Node>,
    error_code: Option<u32>,
    message: Option<String>,
}

#[derive(Deserialize)]
struct Node {
    key: String,
    value: Option<String>,
    #[serde(default)]
    nodes: Vec<Node>,
}

/// Reads the pool below `prefix` from the etcd at `from` (`http://HOST:PORT`).
///
/// # Errors
/// What went wrong, and what to do.
pub(super) async fn read(from: &str, prefix: &str) -> Result<Vec<Old>, String> {
    let address = from.strip_prefix("http://").unwrap_or(from).trim_end_matches('/');
    if address.contains("://") {
        return Err(format!(
            "{from}: write http://HOST:PORT; without TLS, as a tunnel or on that host itself"
        ));
    }
    let address = HostPort::parse(address)
        .map_err(|error| error.to_string())?
        .with_default_port(ETCD_PORT);
    let path = format!("/v2/keys{prefix}ips?recursive=true");
    let body = timeout(PATIENCE, get(&address, &path))
        .await
        .map_err(|_| format!("{address} does not answer within 5 s"))??;
    pool(&address, &body)
}

async fn get(address: &HostPort, path: &str) -> Result<Bytes, String> {
    let fault = |error: &dyn std::fmt::Display| format!("cannot read the pool from {address}: {error}");
    let stream = TcpStream::connect((address.host.as_str(), address.port.unwrap_or(ETCD_PORT)))
        .await
        .map_err(|error| fault(&error))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| fault(&error))?;
    let request = hyper::Request::get(path)
        .header("host", address.to_string())
        .body(Empty::<Bytes>::new())
        .map_err(|error| fault(&error))?;
    let exchange = async {
        let answer = sender
            .send_request(request)
            .await
            .map_err(|error| fault(&error))?;
        let body = Limited::new(answer.into_body(), ANSWER_MAX_BYTES).collect().await;
        body.map(|body| body.to_bytes()).map_err(|error| fault(&error))
    };
    tokio::pin!(exchange);
    tokio::pin!(connection);
    tokio::select! {
        done = &mut exchange => done,
        // It may have all of the answer by then.
        _ = &mut connection => exchange.await,
    }
}

fn pool(address: &HostPort, body: &[u8]) -> Result<Vec<Old>, String> {
    let answer: Answer = serde_json::from_slice(body).map_err(|_| {
        format!("{address} does not speak etcd's second API, in which yaim keeps its pool; start that etcd with --enable-v2")
    })?;
    let Some(ips) = answer.node else {
        let said = answer.message.unwrap_or_else(|| "no reason was given".to_owned());
        if answer.error_code != Some(KEY_NOT_FOUND) {
            return Err(format!(
                "{address} does not show the pool: {said}; where it asks for a password, let guests read that pool for as long as it takes, or `io-vip add` the addresses"
            ));
        }
        return Err(format!(
            "{address} has no such pool: {said}; are --dcs-namespace and --dcs-clustername those of yaim.yml?"
        ));
    };
    let last = |key: &str| key.rsplit('/').next().unwrap_or_default().to_owned();
    let mut found = Vec::new();
    for node in ips.nodes {
        let text = last(&node.key);
        let Ok(address) = keys::address(&text) else {
            tracing::warn!(key = node.key, "is no address, and is left out");
            continue;
        };
        let mark = node.nodes.into_iter().find(|child| last(&child.key) == "marked");
        found.push(Old {
            address,
            marked: mark.and_then(|mark| mark.value),
        });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address() -> HostPort {
        HostPort::parse("192.0.2.1:2379").unwrap()
    }

    #[test]
    fn the_pool_of_a_yaim_is_read_with_who_holds_what() {
        let body = br#"{"action":"get","node":{"key":"/service/yaim/ips","dir":true,"nodes":[
            {"key":"/service/yaim/ips/123.0.0.1","dir":true,"modifiedIndex":7,"createdIndex":7},
            {"key":"/service/yaim/ips/123.0.0.2","dir":true,"nodes":[{"key":"/service/yaim/ips/123.0.0.2/marked","value":"app2","ttl":5}]},
            {"key":"/service/yaim/ips/rubbish","dir":true}]}}"#;
        let expected = [("123.0.0.1", None), ("123.0.0.2", Some("app2"))].map(|(address, marked)| Old {
            address: address.parse().unwrap(),
            marked: marked.map(str::to_owned),
        });
        assert_eq!(pool(&address(), body).unwrap(), expected);
    }

    #[test]
    fn what_is_no_pool_is_said() {
        let none = br#"{"errorCode":100,"message":"Key not found","cause":"/service","index":5}"#;
        let error = pool(&address(), none).unwrap_err();
        assert!(
            error.contains("Key not found") && error.contains("--dcs-namespace"),
            "{error}"
        );
        let closed = br#"{"errorCode":110,"message":"The request requires user authentication","cause":"Insufficient credentials","index":0}"#;
        let error = pool(&address(), closed).unwrap_err();
        assert!(
            error.contains("requires user authentication") && !error.contains("no such pool"),
            "{error}"
        );
        let error = pool(&address(), b"404 page not found\n").unwrap_err();
        assert!(error.contains("--enable-v2"), "{error}");
    }
}
