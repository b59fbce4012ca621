//! Stand-ins for databases that are not installed: they speak just enough of the protocol for the demo's dependents
//! and probes, and count their connections as the real ones do.
//!
//! **Not guaranteed.** Anything else. They hold no data, and are no databases.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufStream};
use tokio::net::{TcpListener, TcpStream};

use crate::probe::Kind;

/// Longest message that a stand-in takes, in bytes.
const MESSAGE_MAX_BYTES: usize = 16 << 10;
/// Most words in one Redis command.
const WORDS_MAX: usize = 64;

/// Serves until it is dropped.
pub(super) async fn serve(kind: Kind, listener: TcpListener) {
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        // Out of descriptors, say: whoever comes next may have more luck.
        let Ok((stream, _)) = listener.accept().await else {
            tokio::task::yield_now().await;
            continue;
        };
        let open = open.clone();
        tokio::spawn(async move {
            open.fetch_add(1, Ordering::Relaxed);
            let stream = BufStream::new(stream);
            // A client that breaks off is no news.
            let _ = match kind {
                Kind::Postgres => postgres(stream, &open).await,
                Kind::Redis => redis(stream, &open).await,
            };
            open.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

fn too_long() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "longer than this stand-in takes")
}

/// The startup message, then simple queries. About connections it answers how many others there are; everything
/// else is 1.
async fn postgres(mut stream: BufStream<TcpStream>, open: &AtomicUsize) -> io::Result<()> {
    /// Version 3.0 of the protocol, the upper half; requests for TLS and GSSAPI carry others.
    const VERSION_3: u32 = 3;
    loop {
        let body = message(&mut stream).await?;
        let code = body
            .first_chunk::<4>()
            .map_or(0, |code| u32::from_be_bytes(*code));
        if code >> 16 == VERSION_3 {
            break;
        }
        stream.write_all(b"N").await?;
        stream.flush().await?;
    }
    // AuthenticationOk, ReadyForQuery.
    stream.write_all(b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I").await?;
    stream.flush().await?;
    loop {
        let tag = stream.read_u8().await?;
        let body = message(&mut stream).await?;
        if tag != b'Q' {
            return Ok(());
        }
        let value = if String::from_utf8_lossy(&body).contains("pg_stat_activity") {
            open.load(Ordering::Relaxed).saturating_sub(1)
        } else {
            1
        };
        stream.write_all(&row(&value.to_string())).await?;
        stream.flush().await?;
    }
}

/// A length that counts itself, and what follows it.
async fn message(stream: &mut BufStream<TcpStream>) -> io::Result<Vec<u8>> {
    let length = stream.read_u32().await? as usize;
    if !(4..=MESSAGE_MAX_BYTES).contains(&length) {
        return Err(too_long());
    }
    let mut body = vec![0; length - 4];
    stream.read_exact(&mut body).await?;
    Ok(body)
}

/// RowDescription of one text column, DataRow, CommandComplete, ReadyForQuery.
fn row(value: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut say = |tag: u8, body: &[u8]| {
        out.push(tag);
        out.extend(u32::try_from(body.len() + 4).unwrap_or(u32::MAX).to_be_bytes());
        out.extend(body);
    };
    // One field: its name, no table, no column, type 25 (text), any length, no modifier, format text.
    say(
        b'T',
        b"\0\x01n\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0",
    );
    let mut data = vec![0, 1];
    data.extend(u32::try_from(value.len()).unwrap_or(u32::MAX).to_be_bytes());
    data.extend(value.as_bytes());
    say(b'D', &data);
    say(b'C', b"SELECT 1\0");
    say(b'Z', b"I");
    out
}

/// PING is answered, CLIENT LIST lists as many lines as there are connections, and everything else is OK.
async fn redis(mut stream: BufStream<TcpStream>, open: &AtomicUsize) -> io::Result<()> {
    loop {
        let words = command(&mut stream).await?;
        let word = |index: usize| words.get(index).map_or("", String::as_str);
        let answer = match (word(0), word(1)) {
            ("PING", _) => "+PONG\r\n".to_owned(),
            ("CLIENT", "LIST") => {
                let list: String = (1..=open.load(Ordering::Relaxed))
                    .map(|id| format!("id={id}\n"))
                    .collect();
                format!("${}\r\n{list}\r\n", list.len())
            }
            _ => "+OK\r\n".to_owned(),
        };
        stream.write_all(answer.as_bytes()).await?;
        stream.flush().await?;
    }
}

/// One command in RESP: `*COUNT`, then for each word `$LENGTH` and the word, each line ended by CR LF.
async fn command(stream: &mut BufStream<TcpStream>) -> io::Result<Vec<String>> {
    let count = number(stream, '*').await?;
    if count > WORDS_MAX {
        return Err(too_long());
    }
    let mut words = Vec::new();
    for _ in 0..count {
        let length = number(stream, '$').await?;
        if length > MESSAGE_MAX_BYTES {
            return Err(too_long());
        }
        let mut word = vec![0; length + 2];
        stream.read_exact(&mut word).await?;
        word.truncate(length);
        words.push(String::from_utf8_lossy(&word).to_uppercase());
    }
    Ok(words)
}

async fn number(stream: &mut BufStream<TcpStream>, sign: char) -> io::Result<usize> {
    let mut line = String::new();
    if AsyncReadExt::take(&mut *stream, 32).read_line(&mut line).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    line.trim_end()
        .strip_prefix(sign)
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no RESP"))
}

#[cfg(test)]
mod tests {
    use tokio::time::{Duration, Instant};

    use super::super::app;
    use super::*;
    use crate::cli::HostPort;
    use crate::probe::Probe;

    async fn stand_in(kind: Kind) -> HostPort {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(kind, listener));
        HostPort::parse(&address.to_string()).unwrap()
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    #[tokio::test]
    async fn the_postgres_stand_in_counts_its_connections() {
        let address = stand_in(Kind::Postgres).await;
        assert!(
            Probe::postgres(address.clone(), None)
                .attempt(soon())
                .await
                .is_ready()
        );
        let one = app::postgres(&address, "one").await.unwrap();
        let two = app::postgres(&address, "two").await.unwrap();
        assert_eq!(app::ask_postgres(&one, "SELECT 1").await.as_deref(), Ok("1"));
        let count = "SELECT count(*) FROM pg_stat_activity";
        // The probe's connection may still be closing.
        while app::ask_postgres(&one, count).await.as_deref() != Ok("1") {}
        drop(two);
        while app::ask_postgres(&one, count).await.as_deref() != Ok("0") {}
    }

    #[tokio::test]
    async fn the_redis_stand_in_counts_its_connections() {
        let address = stand_in(Kind::Redis).await;
        assert!(
            Probe::redis(address.clone(), None)
                .attempt(soon())
                .await
                .is_ready()
        );
        let one = app::redis(&address).await.unwrap();
        let two = app::redis(&address).await.unwrap();
        assert_eq!(app::ask_redis(&two, &["PING"]).await.as_deref(), Ok("PONG"));
        let count = async || {
            app::ask_redis(&one, &["CLIENT", "LIST"])
                .await
                .unwrap()
                .lines()
                .count()
        };
        while count().await != 2 {}
        drop(two);
        while count().await != 1 {}
    }
}
