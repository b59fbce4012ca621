//! The connection that a probe lends to a database client: bounded in what it takes in, and it remembers how the
//! peer began to speak.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::Kind;
use super::verdict::{Cause, quoted};

/// The most that a peer may send in one attempt. A login to PostgreSQL takes about 1 KiB, a PONG seven bytes;
/// a peer that sends without end must not fill our memory.
pub(super) const READ_MAX_BYTES: usize = 64 << 10;
/// How much of the peer's first words is kept.
const HEAD_MAX_BYTES: usize = 512;

/// A connection for one attempt.
pub(super) struct Bounded<S = TcpStream> {
    stream: S,
    left: usize,
    heard: Heard,
}

/// What the peer said, for when the client's error does not tell. It outlives the connection.
#[derive(Clone, Default)]
pub(super) struct Heard(Arc<Mutex<Words>>);

#[derive(Default)]
struct Words {
    head: Vec<u8>,
    flood: bool,
}

impl<S> Bounded<S> {
    pub(super) fn new(stream: S) -> Self {
        Self::with_limit(stream, READ_MAX_BYTES)
    }

    /// For protocols in which more than [`READ_MAX_BYTES`] is no fault.
    pub(super) fn with_limit(stream: S, bytes: usize) -> Self {
        Self {
            stream,
            left: bytes,
            heard: Heard::default(),
        }
    }

    pub(super) fn heard(&self) -> Heard {
        self.heard.clone()
    }
}

impl Heard {
    fn with<T>(&self, look: impl FnOnce(&mut Words) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The first line, when one came whole.
    pub(super) fn first_line(&self) -> Option<String> {
        self.with(|words| {
            let end = words.head.iter().position(|&b| b == b'\n')?;
            Some(String::from_utf8_lossy(&words.head[..end]).trim_end().to_owned())
        })
    }

    /// The cause, when the peer broke off or did not speak `expected`.
    pub(super) fn cause(&self, expected: Kind) -> Cause {
        match self.beginning() {
            None => Cause::ClosedWithoutAnswer,
            Some(heard) => Cause::NotThisProtocol { expected, heard },
        }
    }

    /// How its words begin, in quotation marks, and whether there was no end to them. None when it said nothing.
    pub(super) fn beginning(&self) -> Option<String> {
        self.with(|words| {
            if words.head.is_empty() {
                return None;
            }
            let heard = match String::from_utf8_lossy(&words.head).lines().next() {
                Some(line) => format!("{:?}", quoted(line)),
                None => "nothing".to_owned(),
            };
            Some(match words.flood {
                true => format!("{heard} and more without end"),
                false => heard,
            })
        })
    }

    /// Whether it sent more than it may.
    pub(super) fn is_flood(&self) -> bool {
        self.with(|words| words.flood)
    }

    /// Whether its first bytes are these.
    pub(super) fn begins_with(&self, bytes: &[u8]) -> bool {
        self.with(|words| words.head.starts_with(bytes))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Bounded<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.left == 0 {
            this.heard.with(|words| words.flood = true);
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the peer sends without end",
            )));
        }
        let room = this.left.min(buf.remaining());
        let mut part = ReadBuf::new(buf.initialize_unfilled_to(room));
        ready!(Pin::new(&mut this.stream).poll_read(cx, &mut part))?;
        let fresh = part.filled();
        let count = fresh.len();
        this.heard.with(|words| {
            let keep = count.min(HEAD_MAX_BYTES - words.head.len());
            words.head.extend_from_slice(&fresh[..keep]);
        });
        this.left -= count;
        buf.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Bounded<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match ready!(Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)) {
            // A server that is full says so and hangs up before we write. What it said is the news, not that
            // it does not listen any more: let the client read on until the end.
            Err(_) => Poll::Ready(Ok(buf.len())),
            done => Poll::Ready(done),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
