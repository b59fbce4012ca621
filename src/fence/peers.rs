//! The Unix socket: who may connect asks for a status; who may report, reports; root and the monitor's own user may do everything.
//!
//! Whoever it is, the kernel says so (SO_PEERCRED). Lines are short, connections few, and a stranger's has a deadline.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};

use super::monitor::{Message, Sender};
use super::wire::{Answer, LINE_MAX_BYTES, Request, line, tamed};
use crate::telemetry::LogBudget;

/// Connections of users who may only ask.
const STRANGERS: usize = 32;
/// Connections of all others.
const REPORTERS: usize = 256;
/// How long one who is no reporter may be silent, and anybody may take for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a peer may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// All.
    Own,
    /// Report.
    Reporter,
    /// Ask.
    Stranger,
}

/// How often it may be written that reporters were refused.
pub(super) type Refusals = Arc<Mutex<LogBudget>>;

/// Who is who.
#[derive(Clone, Debug, Default)]
pub(super) struct Users {
    pub(super) own: u32,
    pub(super) reporters: BTreeSet<u32>,
}

impl Users {
    fn trust(&self, uid: u32) -> Trust {
        match uid {
            0 => Trust::Own,
            uid if uid == self.own => Trust::Own,
            uid if self.reporters.contains(&uid) => Trust::Reporter,
            _ => Trust::Stranger,
        }
    }
}

/// Accepts for ever.
pub(super) async fn accept(listener: UnixListener, users: Users, monitor: Sender) {
    let places = [Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0))];
    let refusals = Refusals::default();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "cannot accept");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Ok(peer) = stream.peer_cred() else {
            continue;
        };
        let trust = users.trust(peer.uid());
        let (places, most) = match trust {
            Trust::Stranger => (&places[0], STRANGERS),
            _ => (&places[1], REPORTERS),
        };
        let Some(place) = Place::take(places, most) else {
            tracing::debug!(uid = peer.uid(), "too many connections");
            continue;
        };
        let (monitor, refusals) = (monitor.clone(), refusals.clone());
        let uid = peer.uid();
        tokio::spawn(async move {
            let _place = place;
            serve(stream, trust, uid, BTreeSet::new(), monitor, refusals).await;
        });
    }
}

struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(places: &Arc<AtomicUsize>, most: usize) -> Option<Self> {
        if places.load(Ordering::Relaxed) >= most {
            return None;
        }
        places.fetch_add(1, Ordering::Relaxed);
        Some(Self(Arc::clone(places)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Serves one peer, who reports on these folders already, until it ends.
pub(super) async fn serve(
    mut stream: UnixStream,
    trust: Trust,
    uid: u32,
    mut reports: BTreeSet<String>,
    monitor: Sender,
    refusals: Refusals,
) {
    let mut lines = Lines::default();
    loop {
        let patience = if reports.is_empty() && trust != Trust::Own {
            Some(PATIENCE)
        } else {
            None
        };
        let read = lines.next(&mut stream);
        let text = match patience {
            Some(patience) => timeout(patience, read)
                .await
                .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())),
            None => read.await,
        };
        let text = match text {
            Ok(Some(text)) => text,
            Ok(None) => break,
            Err(error) => {
                answer(
                    &mut stream,
                    &Answer::Error(format!("{error}; the connection ends")),
                )
                .await;
                break;
            }
        };
        let request = match serde_json::from_slice(&text) {
            Ok(request) => request,
            Err(error) => {
                answer(
                    &mut stream,
                    &Answer::Error(format!("this is no request: {error}")),
                )
                .await;
                continue;
            }
        };
        if !handle(
            &mut stream,
            request,
            trust,
            uid,
            &mut reports,
            &monitor,
            &refusals,
        )
        .await
        {
            break;
        }
    }
    for folder in reports {
        tracing::warn!(
            folder,
            "the reporter has gone without a word; without another one its ports are fenced"
        );
        let _ = monitor.send(Message::Lost { folder }).await;
    }
}

/// Whether the conversation goes on.
async fn handle(
    stream: &mut UnixStream,
    request: Request,
    trust: Trust,
    uid: u32,
    reports: &mut BTreeSet<String>,
    monitor: &Sender,
    refusals: &Refusals,
) -> bool {
    let (reply, replied) = oneshot::channel();
    let message = match request {
        Request::Beat { ref folder, .. }
        | Request::Failed { ref folder, .. }
        | Request::Goodbye { ref folder }
            if !reports.contains(folder) =>
        {
            let why = format!("{:?} is not registered on this connection", tamed(folder));
            return answer(stream, &Answer::Error(why)).await;
        }
        Request::Beat {
            folder,
            took_us,
            how,
            device,
        } => Message::Beat {
            folder,
            took: Duration::from_micros(took_us),
            how,
            device,
        },
        Request::Failed {
            folder,
            kind,
            text,
            device,
        } => Message::Failed {
            folder,
            kind,
            text: tamed(&text),
            device,
        },
        Request::Goodbye { folder } => {
            reports.remove(&folder);
            Message::Goodbye { folder }
        }
        Request::Status {} => {
            let (reply, replied) = oneshot::channel();
            if monitor.send(Message::Status { reply }).await.is_err() {
                return false;
            }
            return match replied.await {
                Ok(status) => write(stream, &line(&status)).await,
                Err(_) => false,
            };
        }
        Request::Register(_) if trust == Trust::Stranger => return refuse(stream, uid, "report").await,
        Request::Fence { .. } | Request::Unfence { .. } if trust != Trust::Own => {
            return refuse(stream, uid, "fence and unfence").await;
        }
        Request::Register(registration) => {
            let folder = registration.folder.clone();
            let again = reports.contains(&folder);
            let message = Message::Register {
                registration,
                uid,
                again,
                reply,
            };
            let Some(answered) = ask(monitor, message, replied).await else {
                return false;
            };
            match &answered {
                Answer::Ok(_) => drop(reports.insert(folder)),
                // It tries again and again, five times in a second, and says so in a log that may be elsewhere.
                Answer::Error(why) => {
                    let spent = refusals
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .spend(Instant::now());
                    if let Some(suppressed) = spent {
                        tracing::warn!(
                            folder = tamed(&folder),
                            uid,
                            why,
                            suppressed,
                            "a reporter was refused"
                        );
                    }
                }
            }
            return answer(stream, &answered).await;
        }
        Request::Fence { target, reason } => {
            let reason = tamed(&reason);
            let message = Message::Fence {
                target,
                reason,
                reply,
            };
            return conclude(stream, ask(monitor, message, replied).await).await;
        }
        Request::Unfence { target } => {
            let message = Message::Unfence { target, reply };
            return conclude(stream, ask(monitor, message, replied).await).await;
        }
    };
    monitor.send(message).await.is_ok()
}

async fn ask(
    monitor: &mpsc::Sender<Message>,
    message: Message,
    replied: oneshot::Receiver<Result<String, String>>,
) -> Option<Answer> {
    monitor.send(message).await.ok()?;
    Some(match replied.await.ok()? {
        Ok(text) => Answer::Ok(text),
        Err(text) => Answer::Error(text),
    })
}

async fn conclude(stream: &mut UnixStream, answered: Option<Answer>) -> bool {
    match answered {
        Some(answered) => answer(stream, &answered).await,
        None => false,
    }
}

async fn refuse(stream: &mut UnixStream, uid: u32, what: &str) -> bool {
    let why = format!(
        "uid {uid} may not {what}: root and the monitor's own user may; reporter-users in the monitor's configuration may report"
    );
    answer(stream, &Answer::Error(why)).await
}

async fn answer(stream: &mut UnixStream, answer: &Answer) -> bool {
    write(stream, &line(answer)).await
}

async fn write(stream: &mut UnixStream, bytes: &[u8]) -> bool {
    matches!(timeout(PATIENCE, stream.write_all(bytes)).await, Ok(Ok(())))
}

/// Lines of a stream, none longer than [`LINE_MAX_BYTES`].
#[derive(Default)]
pub(super) struct Lines {
    held: Vec<u8>,
}

impl Lines {
    /// Safe to be dropped between two lines.
    pub(super) async fn next(&mut self, stream: &mut UnixStream) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(end) = self.held.iter().position(|byte| *byte == b'\n') {
                let rest = self.held.split_off(end + 1);
                return Ok(Some(std::mem::replace(&mut self.held, rest)));
            }
            if self.held.len() > LINE_MAX_BYTES {
                return Err(io::Error::other(format!(
                    "a line has more than {LINE_MAX_BYTES} bytes"
                )));
            }
            if stream.read_buf(&mut self.held).await? == 0 {
                return Ok(None);
            }
        }
    }
}
