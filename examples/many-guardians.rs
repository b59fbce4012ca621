//! As many guardians as 127.0.0.0/8 has addresses, at the least cost: a target to measure the coordinator against.
//!
//! `many-guardians PORT [KEY-FILE]` listens on all addresses of this machine, answers each command with `ok`, and
//! prints `listening PORT` once it does. It speaks the plain protocol and takes any key; with a key file it speaks the
//! second version. For 1,000 hosts:
//!
//! ```sh
//! cargo run --release --example many-guardians 9876 &
//! for x in $(seq 0 3); do for y in $(seq 1 250); do echo 127.1.$x.$y; done; done > hosts
//! io-coordinator ping --hosts-file hosts --psk-file key
//! ```

use std::io::Write;
use std::net::Ipv4Addr;
use std::sync::Arc;

use futures_util::{SinkExt, StreamExt};
use io_guardian::protocol::limits::{READ_BUFFER_BYTES, REQUEST_MAX_BYTES};
use io_guardian::protocol::{
    Action, Answer, DatabaseReport, HELLO_HEADER, Keyring, Request, Response, SUBPROTOCOL, Status,
    UnitReport, WELCOME_HEADER, channel,
};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::accept_hdr_async_with_config;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{
    ErrorResponse, Request as Upgrade, Response as Upgraded,
};
use tokio_tungstenite::tungstenite::http::{HeaderValue, header::SEC_WEBSOCKET_PROTOCOL};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

fn main() -> std::io::Result<()> {
    let port = std::env::args().nth(1).and_then(|p| p.parse().ok()).unwrap_or(0);
    let keys = match std::env::args().nth(2) {
        Some(file) => Some(Arc::new(Keyring::read(&[file]).map_err(std::io::Error::other)?)),
        None => None,
    };
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(async {
            let socket = TcpSocket::new_v4()?;
            socket.set_reuseaddr(true)?;
            socket.bind((Ipv4Addr::UNSPECIFIED, port).into())?;
            let listener = socket.listen(4_096)?;
            writeln!(std::io::stdout(), "listening {}", listener.local_addr()?.port())?;
            loop {
                let (stream, _) = listener.accept().await?;
                tokio::spawn(serve(stream, keys.clone()));
            }
        })
}

async fn serve(stream: TcpStream, keys: Option<Arc<Keyring>>) {
    let _ = stream.set_nodelay(true);
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(0)
        .max_message_size(Some(REQUEST_MAX_BYTES))
        .max_frame_size(Some(REQUEST_MAX_BYTES));
    let mut open = None;
    #[expect(clippy::result_large_err, reason = "the error is tungstenite's")]
    let choose = |upgrade: &Upgrade, mut upgraded: Upgraded| {
        let hello = upgrade.headers().get(HELLO_HEADER);
        let hello = hello.and_then(|hello| channel::from_header(hello.as_bytes()));
        if let (Some(keys), Some(hello)) = (&keys, hello)
            && let Ok((channel, welcome, _)) = channel::answer(keys, &hello)
            && let Ok(welcome) = HeaderValue::try_from(channel::to_header(&welcome))
        {
            let headers = upgraded.headers_mut();
            headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
            headers.insert(WELCOME_HEADER, welcome);
            open = Some(channel);
        }
        Ok::<_, ErrorResponse>(upgraded)
    };
    let shaken = accept_hdr_async_with_config(stream, choose, Some(config)).await;
    let Ok(mut socket) = shaken else {
        return;
    };
    while let Some(Ok(message)) = socket.next().await {
        let said = match (message, &mut open) {
            (Message::Binary(frame), Some(channel)) => {
                let Ok(Some(text)) = channel.open(&frame, REQUEST_MAX_BYTES) else {
                    return;
                };
                match channel.seal(&answer(&text)).map(|mut frames| frames.pop()) {
                    Ok(Some(frame)) => Message::binary(frame),
                    _ => return,
                }
            }
            (Message::Text(text), None) => Message::text(answer(&text)),
            _ => continue,
        };
        if socket.send(said).await.is_err() {
            return;
        }
    }
}

/// What a host with ten dependents and two databases says of itself.
fn describe(response: &mut Response) {
    response.target = Some("io-databases.target".to_owned());
    response.target_state = Some("active".to_owned());
    response.standing = Some("undrained by command".to_owned());
    response.version = Some("0.1.0".to_owned());
    let unit = |number| UnitReport::new(format!("application-{number}.service"), "active");
    response.units = Some((0..10).map(unit).collect());
    let database = |name: &str| DatabaseReport {
        name: name.to_owned(),
        ready: true,
        why: None,
        age_ms: 1_000,
    };
    response.databases = Some(["postgres db:5432", "redis db:6379"].map(database).into());
}

fn answer(text: &str) -> String {
    let answer = match Request::parse(text) {
        Ok(Request::Auth { .. }) => Answer::auth_ok(),
        Ok(Request::Command { action, .. }) => {
            let mut response = Response::new(action, Status::Ok, "pong");
            if matches!(action, Action::Status | Action::Watch) {
                describe(&mut response);
            }
            Answer::Response(response)
        }
        Err(error) => Answer::error(error.to_string()),
    };
    answer.to_text()
}
