//! Descriptors of the kernel's that a task of tokio waits for: until there is something to read.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Something with a descriptor, which is that one for as long as it lives.
pub(super) struct Steady<T>(T);

impl<T> Steady<T> {
    pub(super) fn get(&self) -> &T {
        &self.0
    }
}

impl<T: AsFd> AsRawFd for Steady<T> {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Waits for `inner`, which owns one descriptor. To be called within a runtime of tokio.
pub(super) fn readable<T: AsFd>(inner: T) -> io::Result<AsyncFd<Steady<T>>> {
    #[expect(unsafe_code, reason = "tokio takes no descriptor safely")]
    // SAFETY: what is waited for is private to the callers in this room, a timer and a netlink socket, which open one descriptor when they are
    // made and close it when they are dropped; `Steady` gives nobody a mutable reference to them.
    Ok(unsafe { AsyncFd::register_with_interest(Steady(inner), Interest::READABLE) }?)
}
