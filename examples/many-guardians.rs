//! As many guardians as 127.0.0.0/8 has addresses, at the least cost: a target to measure the coordinator against.
//!
//! `many-guardians PORT` listens on all addresses of this machine, takes any key, answers each command with `ok`, and
//! prints `listening PORT` once it does. For 1,000 hosts:
//!
//! ```sh
//! cargo run --release --example many-guardians 9876 &
//! for x in $(seq 0 3); do for y in $(seq 1 250); do echo 127.1.$x.$y; done; done > hosts
//! io-coordinator ping --hosts-file hosts --psk-file key
//! ```

use std::io::Write;
use std::net::Ipv4Addr;

use futures_util::{SinkExt, StreamExt};
use io_guardian::protocol::limits::{READ_BUFFER_BYTES, REQUEST_MAX_BYTES};
use io_guardian::protocol::{Answer, Request, Response, Status};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

fn main() -> std::io::Result<()> {
    let port = std::env::args().nth(1).and_then(|p| p.parse().ok()).unwrap_or(0);
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
                tokio::spawn(serve(stream));
            }
        })
}

async fn serve(stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(0)
        .max_message_size(Some(REQUEST_MAX_BYTES))
        .max_frame_size(Some(REQUEST_MAX_BYTES));
    let Ok(mut socket) = tokio_tungstenite::accept_async_with_config(stream, Some(config)).await else {
        return;
    };
    while let Some(Ok(message)) = socket.next().await {
        let Message::Text(text) = message else { continue };
        let answer = match Request::parse(&text) {
            Ok(Request::Auth { .. }) => Answer::auth_ok(),
            Ok(Request::Command { action, .. }) => {
                Answer::Response(Response::new(action, Status::Ok, "pong"))
            }
            Err(error) => Answer::error(error.to_string()),
        };
        if socket.send(Message::text(answer.to_text())).await.is_err() {
            return;
        }
    }
}
