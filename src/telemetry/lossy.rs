//! Logs of a daemon that must not wait: a line goes into a queue, and a thread of its own writes it. Where that thread is held (a journal
//! whose disk hangs), lines are lost when the queue is full; how many is said when it writes again.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

use crate::host::spawn_apart;

/// Lines that wait to be written.
const QUEUE: usize = 256;
/// Stack of the thread that writes.
const STACK: usize = 48 << 10;

enum Item {
    Line(Vec<u8>),
    /// All before this is written.
    Flush(SyncSender<()>),
}

/// Where lines go.
#[derive(Clone, Debug)]
pub struct Lossy {
    queue: SyncSender<Item>,
    lost: Arc<AtomicU64>,
}

impl std::fmt::Debug for Item {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Item")
    }
}

impl Lossy {
    pub(super) fn start() -> io::Result<Self> {
        let (lossy, items) = Self::queue();
        let told = Arc::clone(&lossy.lost);
        // Standard error may be a file on the very disk that hangs: then the thread stays, and must keep nothing open.
        spawn_apart("log", STACK, None, move |_| write(&items, &told, io::stderr()))?;
        Ok(lossy)
    }

    fn queue() -> (Self, Receiver<Item>) {
        let (queue, items) = sync_channel(QUEUE);
        let lost = Arc::default();
        (Self { queue, lost }, items)
    }

    /// How many lines were lost, and not yet said to be.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Waits until all lines are written, and no longer than `patience`.
    pub fn flush(&self, patience: Duration) {
        let (done, written) = sync_channel(1);
        if self.queue.try_send(Item::Flush(done)).is_ok() {
            let _ = written.recv_timeout(patience);
        }
    }
}

fn write(items: &Receiver<Item>, lost: &AtomicU64, mut out: impl Write) {
    for item in items {
        let many = lost.swap(0, Ordering::Relaxed);
        if many > 0 {
            // Whoever reads the log must know that it has holes.
            let _ = writeln!(out, "<4>log lines were lost lines={many}");
        }
        match item {
            // A log that is gone is no reason to end.
            Item::Line(line) => drop(out.write_all(&line)),
            Item::Flush(done) => drop(done.try_send(())),
        }
    }
}

impl MakeWriter<'_> for Lossy {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

impl Write for Lossy {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.queue.try_send(Item::Line(line.to_vec())).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_reader_that_hangs_holds_nobody_and_hears_of_what_it_missed() {
        let (mut reader, writer) = UnixStream::pair().unwrap();
        let (mut lossy, items) = Lossy::queue();
        let told = Arc::clone(&lossy.lost);
        std::thread::spawn(move || write(&items, &told, writer));
        let line = vec![b'x'; 4 << 10];
        // More than the queue and the socket's buffer hold.
        for _ in 0..2_000 {
            lossy.write_all(&line).unwrap();
        }
        assert!(lossy.lost() > 0);
        let heard = std::thread::spawn(move || {
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            text
        });
        // All of the queue is written, then what is said last.
        while lossy.lost() > 0 {
            lossy.flush(Duration::from_secs(10));
        }
        lossy.write_all(b"end\n").unwrap();
        drop(lossy);
        let heard = heard.join().unwrap();
        assert!(heard.contains("<4>log lines were lost lines="), "{}", heard.len());
        assert!(heard.ends_with("end\n"));
    }
}
