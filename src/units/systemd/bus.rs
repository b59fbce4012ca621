//! One connection to systemd over the system bus: calls, the signals that matter, and what an error means.
//!
//! Signals are hints that say when to look again; what is true is read from systemd. So a lost signal costs
//! nothing but time, and a forged one nothing at all.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::OptionFuture;
use futures_util::{FutureExt, StreamExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Mutex, broadcast};
use tokio::task::AbortHandle;
use zbus::zvariant::{DynamicType, Type};
use zbus::{Connection, MatchRule, MessageStream, OwnedObjectPath, OwnedVariant};

use super::super::UnitsError;

const SYSTEMD: &str = "org.freedesktop.systemd1";
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
/// systemd's interface for what all units have in common.
pub(super) const UNIT: &str = "org.freedesktop.systemd1.Unit";

/// How long one call may take. A daemon-reload on a large host holds calls back for seconds; longer than this
/// means that the peer is gone.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// What systemd tells us between calls.
#[derive(Clone, Debug)]
pub(super) enum Signal {
    /// A job is over.
    JobRemoved {
        /// Its number.
        job: u32,
        /// Its unit.
        unit: String,
        /// `done`, `canceled`, `timeout`, `failed`, `dependency`, `skipped`, …
        result: String,
    },
    /// systemd left the bus or came back (re-exec): anything may have changed.
    Restarted,
}

/// Why a call had no answer that can be used.
#[derive(Debug)]
pub(super) enum CallError {
    /// The bus or systemd is away, perhaps for a moment: connect again.
    Lost(String),
    /// Answered with an error: its D-Bus name, and its text.
    Answered {
        /// For example `org.freedesktop.systemd1.NoSuchUnit`.
        name: String,
        /// For people.
        text: String,
    },
}

impl From<zbus::Error> for CallError {
    fn from(error: zbus::Error) -> Self {
        let (name, text) = match &error {
            zbus::Error::MethodError(name, text, _) => (name.to_string(), text.clone().unwrap_or_default()),
            zbus::Error::FDO(fdo) => {
                use zbus::DBusError;
                (
                    fdo.name().to_string(),
                    fdo.description().unwrap_or_default().to_owned(),
                )
            }
            other => return Self::Lost(other.to_string()),
        };
        // What dbus-daemon(1) says while systemd is re-executed or the bus itself is restarted.
        const AWAY: [&str; 8] = [
            "NoReply",
            "ServiceUnknown",
            "NameHasNoOwner",
            "Disconnected",
            "NoServer",
            "Timeout",
            "TimedOut",
            "NoNetwork",
        ];
        let last = name.rsplit('.').next().unwrap_or_default();
        if AWAY.contains(&last) || name.contains(".Spawn.") {
            return Self::Lost(format!("{name}: {text}"));
        }
        Self::Answered { name, text }
    }
}

impl CallError {
    /// What this means for someone who wanted to `verb` `unit`, or why the call is worth another try.
    pub(super) fn meaning(self, verb: &'static str, unit: &str, target: &str) -> Result<UnitsError, String> {
        let (name, text) = match self {
            Self::Lost(why) => return Err(why),
            Self::Answered { name, text } => (name, text),
        };
        let last = name.rsplit('.').next().unwrap_or_default().to_owned();
        let unit = unit.to_owned();
        let reason = if text.is_empty() { name } else { text };
        Ok(match last.as_str() {
            "NoSuchUnit" | "LoadFailed" | "UnknownObject" if unit == target => {
                UnitsError::NoTarget { target: unit, reason }
            }
            "AccessDenied" | "InteractiveAuthorizationRequired" | "AuthFailed" => {
                UnitsError::Refused { verb, unit, reason }
            }
            _ => UnitsError::Job { verb, unit, reason },
        })
    }
}

/// A unit as `ListUnitsByNames` gives it.
#[derive(Clone, Debug, serde::Deserialize, Type)]
pub(super) struct Listed {
    pub(super) name: String,
    pub(super) _description: String,
    pub(super) load_state: String,
    pub(super) active_state: String,
    pub(super) sub_state: String,
    pub(super) _following: String,
    pub(super) path: OwnedObjectPath,
    pub(super) job: u32,
    pub(super) job_type: String,
    pub(super) _job_path: OwnedObjectPath,
}

/// A live connection.
pub(super) struct Link {
    connection: Connection,
    signals: broadcast::Sender<Signal>,
    dead: Arc<AtomicBool>,
    pump: AbortHandle,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.pump.abort();
    }
}

impl Link {
    async fn open() -> Result<Arc<Self>, CallError> {
        let connection = zbus::connection::Builder::system()
            .method_timeout(CALL_TIMEOUT)
            .build()
            .await
            .map_err(|error| CallError::Lost(error.to_string()))?;
        // All of it is allocated at once. One that falls behind looks again, which is what a signal is for anyway.
        let (signals, _) = broadcast::channel(512);
        let dead = Arc::new(AtomicBool::new(false));
        let jobs = MatchRule::try_from(
            "type='signal',sender='org.freedesktop.systemd1',path='/org/freedesktop/systemd1',\
             interface='org.freedesktop.systemd1.Manager',member='JobRemoved'",
        )?;
        let owner = MatchRule::try_from(
            "type='signal',sender='org.freedesktop.DBus',interface='org.freedesktop.DBus',\
             member='NameOwnerChanged',arg0='org.freedesktop.systemd1'",
        )?;
        let jobs = MessageStream::for_match_rule(jobs, &connection, NonZeroUsize::new(256)).await?;
        let owner = MessageStream::for_match_rule(owner, &connection, None).await?;
        // A stream that nobody polls stops every call on its connection: this task does nothing but poll. It keeps
        // the connection open, so it must end with the link (see Drop), and not after it.
        let pump = pump(connection.clone(), signals.clone(), dead.clone(), jobs, owner);
        let pump = tokio::spawn(pump).abort_handle();
        let link = Arc::new(Self {
            connection,
            signals,
            dead,
            pump,
        });
        subscribe_to_manager(&link.connection).await?;
        Ok(link)
    }

    async fn call<B, R>(&self, path: &str, interface: &str, method: &str, body: &B) -> Result<R, CallError>
    where
        B: Serialize + DynamicType,
        R: DeserializeOwned + Type,
    {
        let answer = self
            .connection
            .call_method(Some(SYSTEMD), path, Some(interface), method, body)
            .await?;
        answer.body().deserialize::<R>().map_err(CallError::from)
    }

    async fn manager<B, R>(&self, method: &str, body: &B) -> Result<R, CallError>
    where
        B: Serialize + DynamicType,
        R: DeserializeOwned + Type,
    {
        self.call(MANAGER_PATH, MANAGER, method, body).await
    }

    /// Signals from now on. One that lags is told so (`RecvError::Lagged`), and looks again.
    pub(super) fn signals(&self) -> broadcast::Receiver<Signal> {
        self.signals.subscribe()
    }

    /// Queues a job, replacing a conflicting one. `method` is `StartUnit` or `StopUnit`: systemd's own bus policy
    /// lets users other than root call these and asks polkit, but not `EnqueueUnitJob`. Returns the job's number.
    pub(super) async fn queue(&self, method: &str, unit: &str) -> Result<Option<u32>, CallError> {
        let job: OwnedObjectPath = self.manager(method, &(unit, "replace")).await?;
        Ok(job
            .as_str()
            .rsplit('/')
            .next()
            .and_then(|number| number.parse().ok()))
    }

    /// The units that have a job of `kind` (`start`, `stop`, …) queued or running.
    pub(super) async fn units_with_job(&self, kind: &str) -> Result<Vec<String>, CallError> {
        type Job = (u32, String, String, String, OwnedObjectPath, OwnedObjectPath);
        let jobs: Vec<Job> = self.manager("ListJobs", &()).await?;
        Ok(jobs
            .into_iter()
            .filter(|job| job.2 == kind)
            .map(|job| job.1)
            .collect())
    }

    /// The states of `names`, in one call.
    pub(super) async fn list(&self, names: &[&str]) -> Result<Vec<Listed>, CallError> {
        self.manager("ListUnitsByNames", &(names,)).await
    }

    /// All properties of a unit that are lists of names: its dependencies of every kind.
    pub(super) async fn dependencies(&self, unit: &str) -> Result<HashMap<String, Vec<String>>, CallError> {
        let all: HashMap<String, OwnedVariant> = self
            .call(&unit_path(unit), PROPERTIES, "GetAll", &(UNIT,))
            .await?;
        Ok(all
            .into_iter()
            .filter_map(|(name, value)| Some((name, Vec::<String>::try_from(value).ok()?)))
            .collect())
    }

    /// One property of a unit, as text or number.
    pub(super) async fn property<T>(
        &self,
        unit: &str,
        interface: &str,
        name: &str,
    ) -> Result<Option<T>, CallError>
    where
        T: TryFrom<OwnedVariant>,
    {
        let value: OwnedVariant = self
            .call(&unit_path(unit), PROPERTIES, "Get", &(interface, name))
            .await?;
        Ok(T::try_from(value).ok())
    }

    /// Changes of the states of all units. To be polled until dropped.
    pub(super) async fn unit_changes(&self) -> Result<MessageStream, CallError> {
        let rule = MatchRule::try_from(
            "type='signal',sender='org.freedesktop.systemd1',path_namespace='/org/freedesktop/systemd1/unit',\
             interface='org.freedesktop.DBus.Properties',member='PropertiesChanged',arg0='org.freedesktop.systemd1.Unit'",
        )?;
        Ok(MessageStream::for_match_rule(rule, &self.connection, NonZeroUsize::new(1_024)).await?)
    }
}

/// Asks systemd to send signals at all.
async fn subscribe_to_manager(connection: &Connection) -> Result<(), CallError> {
    let subscribed = connection
        .call_method(Some(SYSTEMD), MANAGER_PATH, Some(MANAGER), "Subscribe", &())
        .await;
    match subscribed.map_err(CallError::from) {
        // Already subscribed: what we want.
        Err(CallError::Answered { name, .. }) if name.ends_with("AlreadySubscribed") => Ok(()),
        other => other.map(|_| ()),
    }
}

async fn pump(
    connection: Connection,
    signals: broadcast::Sender<Signal>,
    dead: Arc<AtomicBool>,
    mut jobs: MessageStream,
    mut owner: MessageStream,
) {
    // A new systemd does not know that we subscribed. It is told while we go on polling.
    let mut subscribing = OptionFuture::default();
    loop {
        tokio::select! {
            message = jobs.next() => {
                let Some(Ok(message)) = message else { break };
                if let Ok((job, _, unit, result)) = message.body().deserialize::<(u32, OwnedObjectPath, String, String)>() {
                    // Nobody waits at the moment: fine.
                    let _ = signals.send(Signal::JobRemoved { job, unit, result });
                }
            }
            message = owner.next() => {
                let Some(Ok(message)) = message else { break };
                let owners = message.body().deserialize::<(String, String, String)>();
                if owners.is_ok_and(|(_, _, new)| !new.is_empty()) {
                    let connection = connection.clone();
                    subscribing = Some(async move { subscribe_to_manager(&connection).await }.boxed()).into();
                }
            }
            Some(subscribed) = &mut subscribing => {
                subscribing = OptionFuture::default();
                if subscribed.is_err() {
                    break;
                }
                let _ = signals.send(Signal::Restarted);
            }
        }
    }
    tracing::debug!("the system bus is gone");
    dead.store(true, Ordering::Relaxed);
    let _ = signals.send(Signal::Restarted);
}

/// The connection, made when it is first needed and again when it has died.
#[derive(Default)]
pub(super) struct Bus(Mutex<Option<Arc<Link>>>);

impl Bus {
    /// A connection that lives, as far as is known.
    pub(super) async fn link(&self) -> Result<Arc<Link>, CallError> {
        let mut slot = self.0.lock().await;
        if let Some(link) = slot.as_ref().filter(|link| !link.dead.load(Ordering::Relaxed)) {
            return Ok(link.clone());
        }
        *slot = None;
        let link = Link::open().await?;
        *slot = Some(link.clone());
        Ok(link)
    }

    /// Forgets the connection: it has failed.
    pub(super) async fn forget(&self) {
        *self.0.lock().await = None;
    }
}

/// The object path of a unit: every byte but letters and digits is escaped as `_xx` (sd_bus_path_encode(3)).
pub(super) fn unit_path(unit: &str) -> String {
    let mut path = String::from("/org/freedesktop/systemd1/unit/");
    for (at, byte) in unit.bytes().enumerate() {
        if byte.is_ascii_alphabetic() || (byte.is_ascii_digit() && at > 0) {
            path.push(char::from(byte));
        } else {
            path.push_str(&format!("_{byte:02x}"));
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unit_names_become_object_paths_as_systemd_writes_them() {
        assert_eq!(
            unit_path("io-databases.target"),
            "/org/freedesktop/systemd1/unit/io_2ddatabases_2etarget"
        );
        assert_eq!(
            unit_path("1x@a_b.service"),
            "/org/freedesktop/systemd1/unit/_31x_40a_5fb_2eservice"
        );
    }

    #[test]
    fn a_refusal_names_the_unit_and_an_absent_bus_is_worth_another_try() {
        let answered = |name: &str| CallError::Answered {
            name: name.to_owned(),
            text: "why".to_owned(),
        };
        let meaning = |name: &str, unit: &str| answered(name).meaning("stop", unit, "io.target");
        assert!(matches!(
            meaning("org.freedesktop.systemd1.NoSuchUnit", "io.target"),
            Ok(UnitsError::NoTarget { .. })
        ));
        assert!(matches!(
            meaning("org.freedesktop.systemd1.NoSuchUnit", "a.service"),
            Ok(UnitsError::Job { .. })
        ));
        assert!(matches!(
            meaning("org.freedesktop.DBus.Error.AccessDenied", "a.service"),
            Ok(UnitsError::Refused { .. })
        ));
        assert!(
            CallError::Lost("gone".into())
                .meaning("stop", "io.target", "io.target")
                .is_err()
        );
    }
}
