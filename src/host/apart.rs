//! Threads that a disk, or a socket that a disk holds, may stop for ever.
//!
//! A thread in uninterruptible sleep does not end when its process is killed, and keeps open what its process had open: a listening
//! socket that nobody answers on, a table of nftables that belongs to nobody alive. So such a thread has descriptors of its own
//! (`CLOSE_RANGE_UNSHARE`), and takes no signals: a handler of the runtime would write to a descriptor that is another one here.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::mpsc::sync_channel;
use std::thread::{Builder, JoinHandle};

use nix::sys::signal::{SigSet, SigmaskHow};

/// The first descriptor that is no standard stream.
const FIRST: u32 = 3;

/// Runs `work` on a thread that has `spare`, the standard streams and no other descriptor of this process. Nobody should join it.
///
/// # Errors
/// When there can be no further thread.
pub fn spawn_apart(
    name: &str,
    stack: usize,
    spare: Option<OwnedFd>,
    work: impl FnOnce(Option<OwnedFd>) + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let number = spare.as_ref().map(AsRawFd::as_raw_fd);
    let (apart, is_apart) = sync_channel(1);
    // A thread inherits the mask of the one that makes it.
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
    let spawned = Builder::new()
        .name(name.to_owned())
        .stack_size(stack)
        .spawn(move || {
            let taken = take(number);
            let _ = apart.send(());
            work(taken);
        });
    let _ = before.thread_set_mask();
    let thread = spawned?;
    // Until then the number is the thread's, too.
    let _ = is_apart.recv();
    drop(spare);
    Ok(thread)
}

/// Gives this thread a table of descriptors of its own, with the standard streams and a copy of `number`, which is open.
fn take(number: Option<RawFd>) -> Option<OwnedFd> {
    let Some(number) = number else {
        // Before Linux 5.9 there is no such call; then the descriptors are shared, and a restart in the middle of a stall has to wait.
        let _ = close_range(FIRST, u32::MAX);
        return None;
    };
    let kept = u32::try_from(number).ok()?;
    let apart =
        (kept == FIRST || close_range(FIRST, kept - 1).is_ok()) && close_range(kept + 1, u32::MAX).is_ok();
    #[expect(
        unsafe_code,
        reason = "whoever owns the number keeps it open, but is on another thread"
    )]
    // SAFETY: the owner waits until this function has returned.
    let original = unsafe { BorrowedFd::borrow_raw(number) };
    let copy = original.try_clone_to_owned().ok()?;
    if apart {
        // In this thread's table alone.
        let _ = close_range(kept, kept);
    }
    Some(copy)
}

fn close_range(first: u32, last: u32) -> io::Result<()> {
    #[expect(unsafe_code, reason = "there is no safe binding")]
    // SAFETY: close_range(2) with CLOSE_RANGE_UNSHARE closes numbers in a table of this thread alone. The owners of the descriptors are
    // on other threads, whose table stays as it is; this thread has just begun and owns `kept` only.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, last, libc::CLOSE_RANGE_UNSHARE) };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use nix::sys::signal::Signal;

    use super::*;

    #[test]
    fn it_has_what_it_was_given_and_nothing_else() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let other = std::fs::File::open("/dev/null").unwrap();
        let number = other.as_raw_fd();
        let thread = spawn_apart("apart", 128 << 10, Some(theirs.into()), move |spare| {
            let is_open = std::fs::symlink_metadata(format!("/proc/thread-self/fd/{number}")).is_ok();
            let blocked = SigSet::thread_get_mask().is_ok_and(|mask| mask.contains(Signal::SIGTERM));
            let mut stream = UnixStream::from(spare.unwrap());
            let _ = stream.write_all(format!("{is_open} {blocked}").as_bytes());
        })
        .unwrap();
        let mut said = String::new();
        ours.read_to_string(&mut said).unwrap();
        thread.join().unwrap();
        assert_eq!(said, "false true");
        assert!(other.metadata().is_ok(), "ours is open as before");
        assert!(!SigSet::thread_get_mask().unwrap().contains(Signal::SIGTERM));
    }
}
