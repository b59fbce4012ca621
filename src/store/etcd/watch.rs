//! A watch at one member, which ends when that member has no leader, or says nothing.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Client, Error, WatchOptions, WatchResponse, WatchStream};
use tokio::time::{Instant, sleep_until};

use super::fault::{Fault, is_answer};
use super::member::Member;
use super::{entry, revision, shown};
use crate::store::{Change, Changes, Revision, StoreError, Watch};

/// The longest that a watch may be silent before it counts as dead, if nobody says.
pub(super) const SILENCE: Duration = Duration::from_secs(4);

/// Changes as one member tells them.
pub struct EtcdWatch {
    member: Arc<Member>,
    /// Of the connection that the stream is on: whoever answers there has not lost the stream without a word.
    client: Client,
    stream: WatchStream,
    /// The longest silence.
    silence: Duration,
    /// When it will be asked for a sign of life.
    ask: Instant,
    /// The question for one, and when it was asked.
    asked: Option<(Instant, Question)>,
    /// All changes up to here have been told.
    reached: Revision,
    ended: Option<StoreError>,
}

/// Not the watch's own request for progress: from 3.5.8 to 3.5.12 (and 3.4.25 to 3.4.30) it is not answered while nothing has happened below the prefix,
/// and in some versions not before the revision that the watch begins at.
type Question = Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>;

/// Asks for all changes after `after`; the answer to that is that there is a watch.
pub(super) async fn open(
    member: &Member,
    client: &Client,
    prefix: &str,
    after: Revision,
) -> Result<WatchStream, Fault> {
    let from = i64::try_from(after.0).unwrap_or(i64::MAX).saturating_add(1);
    let options = WatchOptions::new().with_prefix().with_start_revision(from);
    let opened = client.watch_client().watch(prefix, Some(options)).await;
    let mut stream = opened.map_err(|error| member.fault(error))?;
    loop {
        match stream.message().await.map_err(|error| member.fault(error))? {
            None => return Err(Fault::NotDone("it has closed the watch".to_owned())),
            Some(answer) if answer.canceled() => return Err(cancelled(&answer)),
            Some(answer) if answer.created() => {
                member.is_still(answer.header())?;
                return Ok(stream);
            }
            Some(_) => {}
        }
    }
}

/// The answer to what was asked; never, where nothing was.
async fn answer(asked: &mut Option<(Instant, Question)>) -> Result<(), Error> {
    match asked {
        Some((_, question)) => question.await,
        None => std::future::pending().await,
    }
}

fn cancelled(answer: &WatchResponse) -> Fault {
    if answer.compact_revision() != 0 {
        return Fault::Compacted;
    }
    Fault::of_reason(answer.cancel_reason())
}

impl EtcdWatch {
    pub(super) fn new(member: Arc<Member>, client: Client, stream: WatchStream, after: Revision) -> Self {
        Self {
            member,
            client,
            stream,
            silence: SILENCE,
            ask: Instant::now() + SILENCE / 4,
            asked: None,
            reached: after,
            ended: None,
        }
    }

    pub(super) fn with_silence(self, silence: Duration) -> Self {
        let ask = Instant::now() + silence / 4;
        Self { silence, ask, ..self }
    }

    /// The endpoint that is watched: `HOST:PORT`.
    pub fn endpoint(&self) -> &str {
        &self.member.name
    }

    fn ends(&mut self, fault: Fault) -> StoreError {
        let fault = match fault {
            // It was good when the watch began: the next one is begun with a new login.
            Fault::Token(said) => Fault::NotDone(said),
            // What went wrong has no outcome that anybody waits for.
            fault => fault.before_sending(),
        };
        let error = fault.at(&self.member.name);
        self.ended = Some(error.clone());
        error
    }

    async fn message(&mut self) -> Result<WatchResponse, Fault> {
        loop {
            let until = self
                .asked
                .as_ref()
                .map_or(self.ask, |(asked, _)| *asked + self.silence / 4 * 3);
            tokio::select! {
                biased;
                message = self.stream.message() => {
                    let fault = match message {
                        Ok(Some(message)) => {
                            self.lives();
                            return Ok(message);
                        }
                        Ok(None) => Fault::NotDone("it has closed the watch".to_owned()),
                        Err(error) => self.member.fault(error),
                    };
                    self.member.is_ill(fault.said());
                    return Err(fault);
                }
                answer = answer(&mut self.asked) => match answer {
                    Err(error) if !is_answer(&error) => {
                        let fault = self.member.fault(error);
                        self.member.is_ill(fault.said());
                        return Err(fault);
                    }
                    // Whatever it is: that it has no leader, etcd says of the watch itself when that lasts.
                    Ok(()) | Err(_) => self.lives(),
                },
                () = sleep_until(until) => {
                    if self.asked.is_some() {
                        let said = format!("the watch was silent for {}", shown(self.silence));
                        self.member.was_silent(&said);
                        return Err(Fault::NotDone(said));
                    }
                    let mut client = self.client.maintenance_client();
                    let question = async move { client.status().await.map(|_| ()) };
                    self.asked = Some((Instant::now(), Box::pin(question)));
                }
            }
        }
    }

    fn lives(&mut self) {
        self.member.heard();
        self.asked = None;
        self.ask = Instant::now() + self.silence / 4;
    }

    /// What a message tells of the keys that was not told before; none where it tells nothing.
    fn read(&mut self, message: &WatchResponse) -> Result<Option<Changes>, Fault> {
        if message.canceled() {
            return Err(cancelled(message));
        }
        let mut changes = Vec::with_capacity(message.events().len());
        let mut last = None;
        for event in message.events() {
            let Some(pair) = event.kv() else { continue };
            let at = revision(pair.mod_revision())?;
            // A member that was so far behind that it takes a snapshot of its leader's may tell again what it has told (before 3.4.25 and 3.5.8).
            if at <= self.reached {
                continue;
            }
            last = last.max(Some(at));
            // Every put makes a version greater than 0, and nothing else does. `event_type()` panics where it does not know the type.
            changes.push(if pair.version() > 0 {
                Change::Put(entry(pair)?)
            } else {
                let key = String::from_utf8_lossy(pair.key()).into_owned();
                Change::Gone { key, at }
            });
        }
        // The header's revision is that of the member, and may be ahead of what has been told here: it sends a thousand revisions at a time to who
        // has fallen behind.
        Ok(last.map(|revision| {
            self.reached = revision;
            Changes { revision, changes }
        }))
    }
}

impl Watch for EtcdWatch {
    async fn next(&mut self) -> Result<Changes, StoreError> {
        if let Some(error) = &self.ended {
            return Err(error.clone());
        }
        loop {
            let message = self.message().await;
            match message.and_then(|message| self.read(&message)) {
                Ok(Some(changes)) => return Ok(changes),
                Ok(None) => {}
                Err(fault) => return Err(self.ends(fault)),
            }
        }
    }
}
