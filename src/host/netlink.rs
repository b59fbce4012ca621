//! One netlink socket: what is sent is answered before the call returns, so that nothing waits here.

use std::io;

use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::SndBufForce;

/// The longest message that is sent.
const MESSAGE_MAX_BYTES: usize = 2 << 20;
/// More than the kernel puts into one answer.
pub(super) const MESSAGES_MAX_BYTES: usize = 32 << 10;

pub(super) const NLMSG_ERROR: u16 = 2;
pub(super) const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
pub(super) const NLM_F_ACK: u16 = 4;
pub(super) const NLM_F_DUMP: u16 = 0x300;

pub(super) struct Netlink {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    pub(super) fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        // A whole table is one message. Without CAP_NET_ADMIN it is what the system allows.
        let _ = setsockopt(&socket, SndBufForce, &MESSAGE_MAX_BYTES);
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self {
            socket,
            sequence: 0,
            buffer: Vec::with_capacity(MESSAGES_MAX_BYTES),
        })
    }

    /// The number of the next message.
    pub(super) fn next(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    pub(super) fn send(&self, message: &[u8]) -> io::Result<()> {
        self.socket.send(message, 0).map(drop)
    }

    /// What is there of the answer; none when there is nothing. The kernel has put it there while we sent.
    pub(super) fn receive(&mut self) -> io::Result<Option<&[u8]>> {
        self.buffer.clear();
        match self.socket.recv(&mut self.buffer, libc::MSG_DONTWAIT) {
            Ok(0) => Ok(None),
            Ok(_) => Ok(Some(&self.buffer)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sends one question, and gives each message of the answer to `take`. What is only acknowledged has no message. The answer says whether nothing
    /// changed while the kernel was listing: it lists a part at a time.
    pub(super) fn ask(&mut self, question: &[u8], mut take: impl FnMut(&[u8])) -> io::Result<bool> {
        self.drain();
        self.send(question)?;
        let mut whole = true;
        loop {
            let Some(answer) = self.receive()? else {
                return Ok(whole);
            };
            for (kind, _, body, message) in messages(answer) {
                whole &= !is_interrupted(message);
                match kind {
                    NLMSG_DONE => return Ok(whole),
                    NLMSG_ERROR => match error_of(body) {
                        Some(0) | None => return Ok(whole),
                        Some(code) => return Err(io::Error::from_raw_os_error(code)),
                    },
                    _ => take(message),
                }
            }
        }
    }

    /// Forgets what an earlier exchange may have left: answers are told apart by nothing else.
    pub(super) fn drain(&mut self) {
        while let Ok(Some(_)) = self.receive() {}
    }
}

fn is_interrupted(message: &[u8]) -> bool {
    /// NLM_F_DUMP_INTR
    const INTERRUPTED: u16 = 0x10;
    let flags = message.get(6..).and_then(|rest| rest.first_chunk());
    flags.is_some_and(|flags| u16::from_ne_bytes(*flags) & INTERRUPTED != 0)
}

/// The errno of an error message, as a positive number; 0 acknowledges.
pub(super) fn error_of(body: &[u8]) -> Option<i32> {
    number(body, 0).map(|code| code.cast_signed().saturating_neg())
}

/// The messages in `bytes`: type, number and what follows the header.
pub(super) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, u32, &[u8], &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::try_from(number(bytes, 0)?).ok()?;
        let whole = bytes.get(..length)?;
        let kind = u16::from_ne_bytes(*whole.get(4..)?.first_chunk()?);
        let sequence = number(whole, 8)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, sequence, whole.get(HEADER..)?, whole))
    })
}

/// Bytes of a header.
pub(super) const HEADER: usize = 16;

/// A request: `struct nlmsghdr`, and `body`.
pub(super) fn request(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
    let length = HEADER + body.len();
    let mut out = Vec::with_capacity(length);
    out.extend(u32::try_from(length).unwrap_or_default().to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    out.extend(sequence.to_ne_bytes());
    out.extend(0u32.to_ne_bytes());
    out.extend(body);
    out
}

/// The number of four bytes at `at`.
pub(super) fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}
