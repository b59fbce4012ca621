//! Commands that come over HTTP, from those who show the token.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header::AUTHORIZATION;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{JSON, Shared, Told};
use crate::cli::{Failure, unix_milliseconds};
use crate::coordinator::apart::take_apart;
use crate::coordinator::fault::Verdict;
use crate::coordinator::fleet::Event;
use crate::coordinator::run::{Plan, run};
use crate::protocol::limits::HOLD_MAX_MS;
use crate::protocol::{Action, HoldTerms, Keyring, is_reason};
use crate::telemetry::audit;
use crate::telemetry::http::{self, Method, Peer, Request, Response, StatusCode};

/// Longest command, in bytes: 5,000 hosts with long names.
const COMMAND_MAX_BYTES: usize = 1 << 20;
/// Time for it to arrive.
const ARRIVAL: Duration = Duration::from_secs(10);
/// How long a wrong token is answered with: nobody guesses 32 characters, but nobody should be able to try for nothing.
const WRONG_TOKEN: Duration = Duration::from_secs(1);
/// How many wrong ones are answered at once.
const WRONG_AT_ONCE: usize = 8;
/// Within this time a host that cannot be reached is tried again.
const RETRY_FOR: Duration = Duration::from_secs(15);

/// What it takes to give one.
pub(super) struct Commands {
    token: Keyring,
    generations: PathBuf,
    /// The fleet's own, read anew for each command: they may have been changed.
    key_files: Vec<PathBuf>,
    plan: Plan,
    told: Told,
    wrong: Arc<Semaphore>,
}

impl Commands {
    pub(super) fn new(
        token: &Path,
        generations: PathBuf,
        key_files: Vec<PathBuf>,
        plan: Plan,
        told: Told,
    ) -> Result<Self, Failure> {
        let token = Keyring::read(&[token.to_owned()])
            .map_err(|error| Failure::config(format!("--token-file: {error}")))?;
        Ok(Self {
            token,
            generations,
            key_files,
            plan,
            told,
            wrong: Arc::new(Semaphore::new(WRONG_AT_ONCE)),
        })
    }

    async fn is_welcome(&self, request: &Request) -> bool {
        let shown = request
            .headers()
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.strip_prefix("Bearer "));
        if shown.is_some_and(|shown| self.token.find(shown.trim()).is_some()) {
            return true;
        }
        let _turn = self.wrong.acquire().await;
        sleep(WRONG_TOKEN).await;
        false
    }
}

/// What is wanted.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    action: Action,
    hosts: Vec<String>,
    #[serde(default)]
    reason: Option<String>,
    #[serde(default)]
    for_ms: Option<u64>,
}

pub(super) async fn answer(shared: &Arc<Shared>, request: Request) -> Response {
    let is_command = request.uri().path() == "/api/command";
    let wanted = if is_command { Method::POST } else { Method::GET };
    if request.method() != wanted {
        return http::text(StatusCode::METHOD_NOT_ALLOWED, &format!("expected {wanted}"));
    }
    let Some(commands) = &shared.commands else {
        return refuse(
            StatusCode::FORBIDDEN,
            "no commands are taken here; start `io-coordinator serve` with --token-file and --generation-file",
        );
    };
    let peer = request.extensions().get::<Peer>().copied();
    if !commands.is_welcome(&request).await {
        tracing::warn!(peer = ?peer.map(|peer| peer.0), "a wrong token");
        return refuse(
            StatusCode::UNAUTHORIZED,
            "the token is wrong: it is what the file of --token-file holds",
        );
    }
    if !is_command {
        return http::text(StatusCode::NO_CONTENT, "");
    }
    let by = peer.map_or_else(|| "page".to_owned(), |peer| format!("{} page", peer.0.ip()));
    match read(request.into_body())
        .await
        .and_then(|wanted| commands.plan(wanted))
    {
        Ok((plan, numbers)) => {
            let (accepted, action) = (plan.targets.len(), plan.action);
            let names: Vec<&str> = plan.targets.iter().map(|target| target.name.as_str()).collect();
            audit(
                "command given",
                &[
                    ("action", action.as_str()),
                    ("by", &by),
                    ("hosts", &names.join(",")),
                ],
            );
            tokio::spawn(carry_out(Arc::clone(shared), plan, numbers, by));
            http::respond(
                StatusCode::ACCEPTED,
                JSON,
                json!({ "accepted": accepted }).to_string(),
            )
        }
        Err(why) => refuse(StatusCode::BAD_REQUEST, &why),
    }
}

fn refuse(status: StatusCode, why: &str) -> Response {
    http::respond(status, JSON, json!({ "error": why }).to_string())
}

async fn read(body: Incoming) -> Result<Wanted, String> {
    let all = timeout(ARRIVAL, Limited::new(body, COMMAND_MAX_BYTES).collect()).await;
    let body = match all {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) => return Err(format!("cannot read the command: {error}")),
        Err(_) => return Err("the command did not arrive in time".to_owned()),
    };
    serde_json::from_slice(&body).map_err(|error| format!("this is no command: {error}"))
}

impl Commands {
    /// What is to be done, and the numbers of its hosts.
    fn plan(&self, wanted: Wanted) -> Result<(Plan, Vec<usize>), String> {
        let terms = match (wanted.action, wanted.reason) {
            (Action::Drain | Action::Undrain | Action::Release, _) => None,
            (Action::Hold, Some(reason)) if is_reason(&reason) => Some(HoldTerms {
                reason,
                for_ms: wanted.for_ms,
            }),
            (Action::Hold, _) => {
                return Err(
                    "a hold needs a reason: a sentence of at most 200 characters on one line".to_owned(),
                );
            }
            (Action::Ping | Action::Status | Action::Watch, _) => {
                return Err("action: expected drain, undrain, hold or release".to_owned());
            }
        };
        if wanted.for_ms.is_some_and(|ms| ms == 0 || ms > HOLD_MAX_MS) {
            return Err(format!("for_ms: expected 1 to {HOLD_MAX_MS} milliseconds"));
        }
        let mut numbers = Vec::new();
        for name in &wanted.hosts {
            let at = self.plan.targets.iter().position(|target| target.name == *name);
            let at = at.ok_or_else(|| format!("hosts: there is no host {name:?} here"))?;
            if !numbers.contains(&at) {
                numbers.push(at);
            }
        }
        if numbers.is_empty() {
            return Err("hosts: name one at least".to_owned());
        }
        let targets = numbers
            .iter()
            .filter_map(|at| self.plan.targets.get(*at))
            .cloned();
        let plan = Plan {
            action: wanted.action,
            max_parallel: numbers.len(),
            targets: targets.collect(),
            retry_for: Some(RETRY_FOR),
            terms,
            ..self.plan.clone()
        };
        Ok((plan, numbers))
    }
}

/// Tells the hosts. What becomes of it they tell themselves; who cannot is told of here.
async fn carry_out(shared: Arc<Shared>, mut plan: Plan, numbers: Vec<usize>, by: String) {
    let Some(commands) = &shared.commands else { return };
    let action = plan.action;
    let tell = |at, event| async move {
        let _ = commands.told.send((at, event)).await;
    };
    for at in &numbers {
        let by = by.clone();
        tell(*at, Event::Asked { action, by }).await;
    }
    let taken = take_apart(&commands.generations, unix_milliseconds).await;
    if let Some(fault) = taken.fault {
        tracing::error!(why = fault.why, %action, "no generation for a command of the page: nothing was sent");
        for at in numbers {
            let (by, message) = (by.clone(), fault.why.clone());
            tell(at, Event::Refused { action, by, message }).await;
        }
        return;
    }
    plan.generation = Some(taken.number);
    let files = commands.key_files.clone();
    if let Ok(Ok(keys)) = tokio::task::spawn_blocking(move || Keyring::read(&files)).await {
        plan.key = keys.first().clone();
    }
    let outcome = run(&plan, &mut (), &CancellationToken::new()).await;
    for (at, report) in numbers.into_iter().zip(outcome.report.hosts) {
        if report.result != Verdict::Ok {
            let (by, message) = (by.clone(), report.message);
            tell(at, Event::Refused { action, by, message }).await;
        }
    }
}
