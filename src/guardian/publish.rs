//! What those who watch are told: a `status`, each time that it is another one. One task asks for all of them, and only while
//! somebody watches.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::manager::Message;
use crate::protocol::Response;
use crate::units::Units;

/// Changes that come closer together than this are told as one: a drain of a hundred units is not a hundred looks.
const GATHER: Duration = Duration::from_millis(100);
/// A look without an occasion: a change that no signal told of is seen after this.
const AT_LEAST_EVERY: Duration = Duration::from_secs(60);

/// Where to watch.
#[derive(Clone)]
pub(super) struct Publisher {
    latest: Arc<watch::Sender<Option<Arc<Response>>>>,
    somebody: Arc<Notify>,
    /// Somebody new waits for a first status, whether it is another one or not.
    awaited: Arc<AtomicBool>,
    changed: Arc<Notify>,
}

impl Publisher {
    /// A publisher of what `manager` answers, and the task that is to run. It looks when it is told that something has `changed`.
    pub(super) fn new(
        manager: mpsc::Sender<Message>,
        units: Arc<dyn Units>,
        changed: Arc<Notify>,
    ) -> (Self, impl Future<Output = ()>) {
        let publisher = Self {
            latest: Arc::new(watch::Sender::new(None)),
            somebody: Arc::new(Notify::new()),
            awaited: Arc::default(),
            changed,
        };
        let task = publisher.clone().run(manager, units);
        (publisher, task)
    }

    /// A `status` that is read now, and from then on each that differs from the one before. All of them are of one task, so that none
    /// is older than what came before it.
    pub(super) fn subscribe(&self) -> watch::Receiver<Option<Arc<Response>>> {
        let receiver = self.latest.subscribe();
        self.awaited.store(true, Ordering::Relaxed);
        self.changed.notify_one();
        self.somebody.notify_one();
        receiver
    }

    async fn run(self, manager: mpsc::Sender<Message>, units: Arc<dyn Units>) {
        loop {
            self.somebody.notified().await;
            let nobody = self.latest.closed();
            let looking = self.look(&manager);
            tokio::select! {
                // What it was by then is no news for who comes next.
                () = nobody => drop(self.latest.send_replace(None)),
                () = units.watch(&self.changed) => {}
                ended = looking => if ended.is_break() { return },
            }
        }
    }

    async fn look(&self, manager: &mpsc::Sender<Message>) -> ControlFlow<()> {
        loop {
            let looked = Instant::now();
            let awaited = self.awaited.swap(false, Ordering::Relaxed);
            let (reply, answer) = oneshot::channel();
            if manager.send(Message::Status { reply }).await.is_err() {
                return ControlFlow::Break(());
            }
            if let Ok(status) = answer.await {
                self.latest.send_if_modified(|latest| {
                    let same = latest
                        .as_ref()
                        .is_some_and(|latest| without_times(latest) == without_times(&status));
                    *latest = Some(status.into());
                    awaited || !same
                });
            }
            let _ = timeout(AT_LEAST_EVERY, self.changed.notified()).await;
            sleep_until(looked + GATHER).await;
        }
    }
}

/// What is another at each look although nothing has changed is left out.
fn without_times(response: &Response) -> Response {
    let mut response = response.clone();
    if let Some(last) = &mut response.last_command {
        last.age_ms = 0;
        last.elapsed_ms = 0;
    }
    for database in response.databases.iter_mut().flatten() {
        database.age_ms = 0;
    }
    for unit in response.units.iter_mut().flatten() {
        unit.elapsed_ms = None;
    }
    response
}

#[cfg(test)]
mod tests {
    use futures_util::future::BoxFuture;
    use tokio::time::advance;

    use super::*;
    use crate::protocol::{Action, LastCommand, Status};
    use crate::units::{Settled, Survey, UnitsError};

    /// Units with which nothing happens.
    struct Still;

    impl Units for Still {
        fn target(&self) -> &str {
            "io-databases.target"
        }
        fn drain(&self, _: Instant) -> BoxFuture<'_, Result<Settled, UnitsError>> {
            Box::pin(std::future::pending())
        }
        fn undrain(&self, _: Instant) -> BoxFuture<'_, Result<Settled, UnitsError>> {
            Box::pin(std::future::pending())
        }
        fn survey(&self) -> BoxFuture<'_, Result<Survey, UnitsError>> {
            Box::pin(std::future::pending())
        }
        fn watch<'a>(&'a self, _: &'a Notify) -> BoxFuture<'a, ()> {
            Box::pin(std::future::pending())
        }
        fn close(&self) -> BoxFuture<'_, ()> {
            Box::pin(std::future::ready(()))
        }
    }

    /// A manager whose last command grows older, and nothing else.
    async fn grows_older(mut messages: mpsc::Receiver<Message>) {
        let began = Instant::now();
        while let Some(message) = messages.recv().await {
            let Message::Status { reply } = message else {
                continue;
            };
            let mut status = Response::new(Action::Status, Status::Ok, "");
            status.last_command = Some(LastCommand {
                action: Action::Undrain,
                by: None,
                status: Some(Status::Error),
                message: String::new(),
                elapsed_ms: 0,
                age_ms: crate::units::millis(began.elapsed()),
            });
            let _ = reply.send(status.into());
        }
    }

    async fn age(receiver: &mut watch::Receiver<Option<Arc<Response>>>) -> u64 {
        let told = timeout(AT_LEAST_EVERY / 2, receiver.changed()).await;
        told.expect("nothing is told").unwrap();
        let status = receiver.borrow_and_update().clone().unwrap();
        status.last_command.as_ref().unwrap().age_ms
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_later_is_told_what_is_so_then_and_what_grows_older_is_no_news() {
        let began = Instant::now();
        let (manager, messages) = mpsc::channel(1);
        tokio::spawn(grows_older(messages));
        let (publisher, task) = Publisher::new(manager, Arc::new(Still), Arc::default());
        tokio::spawn(task);
        let mut first = publisher.subscribe();
        assert_eq!(age(&mut first).await, 0);
        // Looks without an occasion are made meanwhile.
        advance(AT_LEAST_EVERY * 10 + AT_LEAST_EVERY / 2).await;
        assert!(
            timeout(AT_LEAST_EVERY * 3, first.changed()).await.is_err(),
            "nothing has changed"
        );
        let now = Instant::now();
        let mut second = publisher.subscribe();
        let then = age(&mut second).await;
        assert!(now.elapsed() <= GATHER, "it is told at once");
        let old = crate::units::millis(now - began);
        assert!(
            then >= old,
            "{then}: as old as it is by now, and not as at the last look"
        );
        // Nobody, and then somebody again.
        drop((first, second));
        advance(AT_LEAST_EVERY * 2).await;
        assert!(age(&mut publisher.subscribe()).await > then);
    }
}
