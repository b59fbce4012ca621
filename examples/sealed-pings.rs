//! How long a ping takes on an open connection in the second version of the wire: `sealed-pings ADDRESS KEY-FILE COUNT` prints each
//! time in milliseconds, a line each, after a hundred that warm up.

use std::io::Write;

use futures_util::{SinkExt, StreamExt};
use io_guardian::protocol::limits::ANSWER_MAX_BYTES;
use io_guardian::protocol::{
    Action, Answer, HELLO_HEADER, Keyring, Opening, Request, SUBPROTOCOL, Status, WELCOME_HEADER, channel,
};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;

type Failure = Box<dyn std::error::Error>;

const WARM_UP: usize = 100;

async fn measure(address: &str, key_file: &str, count: usize) -> Result<(), Failure> {
    let keys = Keyring::read(&[key_file])?;
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut request = format!("ws://{address}/").into_client_request()?;
    let offer = HeaderValue::from_static(SUBPROTOCOL);
    request.headers_mut().insert("sec-websocket-protocol", offer);
    let (opening, hello) = Opening::begin(keys.first())?;
    let hello = HeaderValue::try_from(channel::to_header(&hello))?;
    request.headers_mut().insert(HELLO_HEADER, hello);
    let (mut socket, response) = client_async(request, stream).await?;
    let welcome = response.headers().get(WELCOME_HEADER);
    let welcome = welcome.and_then(|welcome| channel::from_header(welcome.as_bytes()));
    let mut channel = opening.finish(&welcome.ok_or("the guardian does not know the key")?)?;
    let ping = Request::Command {
        action: Action::Ping,
        id: None,
        generation: None,
        terms: None,
    };
    let ping = ping.to_text();
    for turn in 0..WARM_UP + count {
        let began = Instant::now();
        for frame in channel.seal(&ping)? {
            socket.send(Message::binary(frame)).await?;
        }
        let frame = socket.next().await.ok_or("the guardian hung up")??.into_data();
        let text = channel.open(&frame, ANSWER_MAX_BYTES)?.ok_or("half an answer")?;
        let took = began.elapsed();
        if !matches!(Answer::parse(&text)?, Answer::Response(response) if response.status == Status::Ok) {
            return Err(format!("a ping was answered with {text}").into());
        }
        if turn >= WARM_UP {
            writeln!(std::io::stdout(), "{}", took.as_secs_f64() * 1_000.0)?;
        }
    }
    Ok(())
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, key_file, count] = arguments.as_slice() else {
        return Err("sealed-pings ADDRESS KEY-FILE COUNT".into());
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(measure(address, key_file, count.parse()?))
}
