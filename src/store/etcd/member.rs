//! One member of the cluster: its connection, who we are to it, and when it was last heard.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use etcd_client::{
    Channel, Client, ConnectOptions, Error, LeaseKeepAliveStream, LeaseKeeper, ResponseHeader,
};
use tokio::time::Instant;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

use super::dial::{CONNECT_MOST, Dial};
use super::fault::{Fault, NO_LOGIN, is_answer};
use super::membership::{Kind, Membership};
use crate::cli::HostPort;
use crate::probe::quoted;
use crate::store::LeaseId;
use crate::store::etcd_config::{EtcdConfigError, Login, Tls};

/// A member that was heard this lately is taken to be there.
const FRESH: Duration = Duration::from_secs(1);

/// One that was heard this lately is the one that it was.
const ACQUAINTED: Duration = Duration::from_secs(10);

/// A connection that carries streams and says nothing for so long is asked whether it is alive. etcd hangs up on who asks more often than
/// every five seconds (`--grpc-keepalive-min-time`).
const PING_AFTER: Duration = Duration::from_secs(6);
/// And it is dead when it has not answered by then.
const PING_WAIT: Duration = Duration::from_secs(4);

/// Requests of ours that may wait for one connection.
const REQUESTS_MAX: usize = 64;

pub(super) struct Member {
    /// `HOST:PORT`.
    pub(super) name: String,
    /// Its place among those that are named.
    at: usize,
    membership: Arc<Membership>,
    endpoint: Endpoint,
    dial: Dial,
    login: Option<Login>,
    /// What may be wrong when it hangs up before it has said anything.
    doubt: &'static str,
    connecting: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    client: Option<Client>,
    /// When it last said anything; none when the last request to it had no answer.
    heard: Option<Instant>,
    /// Whether it has said anything on this connection.
    greeted: bool,
    /// What it has said of itself, on this connection.
    said: Said,
    /// Why it was not asked last.
    refused: Option<String>,
    /// Since when it has not been well, and what was wrong then.
    fault: Option<(Instant, String)>,
    keeper: Option<Keeper>,
}

/// What a member says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Said {
    #[default]
    Nothing,
    /// We may not know.
    NotToUs,
    /// It is of this cluster.
    Of(u64),
}

impl State {
    fn hears(&mut self) {
        self.heard = Some(Instant::now());
        self.greeted = true;
    }

    /// What was known of the connection; whether it had ever said anything.
    fn forgets(&mut self) -> bool {
        self.client = None;
        self.keeper = None;
        self.heard = None;
        self.said = Said::Nothing;
        std::mem::take(&mut self.greeted)
    }
}

/// A stream of keep-alives that is open, with no question on it.
pub(super) struct Keeper {
    lease: LeaseId,
    ask: LeaseKeeper,
    answers: LeaseKeepAliveStream,
}

impl Member {
    pub(super) fn new(
        (at, membership): (usize, &Arc<Membership>),
        address: &HostPort,
        login: Option<Login>,
        tls: Option<&Tls>,
    ) -> Result<Self, EtcdConfigError> {
        let scheme = if tls.is_some() { "https" } else { "http" };
        // What goes into the request's own address is only shown to the member: a zone has no place in it.
        let host = address
            .host
            .split_once('%')
            .map_or(address.host.as_str(), |(host, _)| host);
        let shown = HostPort {
            host: host.to_owned(),
            port: address.port,
        };
        let fault = |error: &dyn std::error::Error| EtcdConfigError::Tls {
            files: tls.map_or("no files", |tls| &tls.files).to_owned(),
            why: quoted(
                &error
                    .source()
                    .map_or_else(|| error.to_string(), ToString::to_string),
            ),
        };
        let mut endpoint = Endpoint::from_shared(format!("{scheme}://{shown}"))
            .map_err(|error| fault(&error))?
            .buffer_size(REQUESTS_MAX)
            .connect_timeout(CONNECT_MOST)
            .http2_keep_alive_interval(PING_AFTER)
            .keep_alive_timeout(PING_WAIT)
            // Pings on a connection with no stream are what etcd never allows.
            .keep_alive_while_idle(false);
        if let Some(tls) = tls {
            let mut config = ClientTlsConfig::new()
                .domain_name(host)
                .ca_certificate(Certificate::from_pem(&tls.ca));
            if let Some(own) = &tls.own {
                config = config.identity(Identity::from_pem(&own.cert, own.key.as_slice()));
            }
            endpoint = endpoint.tls_config(config).map_err(|error| fault(&error))?;
        }
        Ok(Self {
            name: address.to_string(),
            at,
            membership: Arc::clone(membership),
            endpoint,
            dial: Dial::new(address),
            login,
            doubt: match tls {
                None => "if it speaks TLS, write https://",
                Some(Tls { own: None, .. }) => {
                    "if it wants a certificate of ours, name the certificate file and the key file"
                }
                Some(Tls { own: Some(_), .. }) => {
                    "it may not take our certificate: its own authority must have signed it"
                }
            },
            connecting: tokio::sync::Mutex::new(()),
            state: Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // What is in there is whole at all times.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Since when it has not been well.
    pub(super) fn ill_since(&self) -> Option<Instant> {
        self.state().fault.as_ref().map(|(at, _)| *at)
    }

    /// What was wrong last.
    pub(super) fn illness(&self) -> Option<String> {
        self.state().fault.as_ref().map(|(_, said)| said.clone())
    }

    /// It has said something.
    pub(super) fn heard(&self) {
        self.state().hears();
    }

    /// It has done what it was asked for.
    pub(super) fn is_well(&self) {
        let mut state = self.state();
        state.hears();
        state.fault = None;
    }

    /// It has not done what it was asked for.
    pub(super) fn is_ill(&self, said: &str) {
        self.state().fault = Some((Instant::now(), said.to_owned()));
    }

    /// It has not said anything by the end of the time that it had. The connection may be dead, and it may just be slow, so that a new one (and
    /// a login, which is work for etcd) makes it slower yet: twice in a row it is dead.
    pub(super) fn was_silent(&self, said: &str) {
        let mut state = self.state();
        state.fault = Some((Instant::now(), said.to_owned()));
        if state.heard.take().is_none() {
            state.forgets();
        }
    }

    /// The connection is broken: the next request makes a new one.
    fn broke(&self, error: Error) -> Fault {
        let greeted = self.state().forgets();
        match Fault::from(error) {
            // It is not known to have been etcd, and to have been content with us. A server of TLS 1.3 looks at our certificate when the connection is
            // there already, and not everybody is told why it hangs up.
            Fault::MaybeDone(said) if !greeted && !said.contains(';') => {
                Fault::MaybeDone(format!("{said}; {}", self.doubt))
            }
            fault => fault,
        }
    }

    fn known(&self) -> Option<Client> {
        self.state().client.clone()
    }

    /// A connection. Whatever is wrong with it, nothing of a request has been sent.
    async fn client(&self) -> Result<Client, Fault> {
        if let Some(client) = self.known() {
            return Ok(client);
        }
        // Requests that come at the same time share one connection.
        let _turn = self.connecting.lock().await;
        if let Some(client) = self.known() {
            return Ok(client);
        }
        let channel = self.endpoint.connect_with_connector(self.dial.clone()).await?;
        let options = ConnectOptions::new().with_require_leader(true);
        let with_login = self
            .credentials()
            .map(|(user, password)| options.clone().with_user(user, password));
        let logged_in = with_login.is_some();
        let mut client = Client::from_channel(
            Channel::Tonic(channel.clone()),
            Some(with_login.unwrap_or(options.clone())),
        )
        .await;
        // As etcd's own clients do: who has a login may be there before authentication is.
        if logged_in && client.as_ref().is_err_and(|error| Fault::says(error, NO_LOGIN)) {
            client = Client::from_channel(Channel::Tonic(channel), Some(options)).await;
        }
        let client = client.map_err(|error| Fault::from(error).before_sending())?;
        let mut state = self.state();
        state.forgets();
        state.client = Some(client.clone());
        if logged_in {
            state.hears();
        }
        Ok(client)
    }

    fn credentials(&self) -> Option<(String, String)> {
        let login = self.login.as_ref()?;
        let password = String::from_utf8_lossy(login.password.expose()).into_owned();
        Some((login.user.clone(), password))
    }

    /// A connection to a member that is there and has a leader: it was heard a moment ago, or it answers now. A connection alone says
    /// nothing: the kernel takes one for a process that is stopped.
    pub(super) async fn ready(&self) -> Result<Client, Fault> {
        let was_there = self.known().is_some();
        match self.look().await {
            Err(_) if was_there && self.known().is_none() => self.look().await,
            result => result,
        }
    }

    async fn look(&self) -> Result<Client, Fault> {
        let client = self.client().await?;
        if self.is_known_since(FRESH) || self.introduce(&client).await? {
            return Ok(client);
        }
        Err(Fault::NotDone("it has no leader".to_owned()))
    }

    /// Asks it what it is; whether it has a leader. Whatever is wrong, nothing of a request has been sent.
    async fn introduce(&self, client: &Client) -> Result<bool, Fault> {
        let has_leader = match client.maintenance_client().status().await {
            Ok(status) => {
                self.heard();
                let (cluster, member) = status
                    .header()
                    .map(|header| (header.cluster_id(), header.member_id()))
                    .unwrap_or_default();
                self.is_of(client, cluster, member).await?;
                status.leader() != 0
            }
            Err(error) if is_answer(&error) => {
                self.heard();
                // Whether we may ask for its state is another matter than whether we may do what we came for.
                match Fault::from(error) {
                    fault @ Fault::NotDone(_) => return Err(fault),
                    Fault::NotAllowed(_) => self.state().said = Said::NotToUs,
                    _ => {}
                }
                true
            }
            Err(error) => return Err(self.broke(error).before_sending()),
        };
        Ok(has_leader)
    }

    /// Whether it has said on this connection that it is of our cluster (or does not tell us), and anything at all lately: a connection that nobody used may be
    /// another one by now.
    fn is_known_since(&self, lately: Duration) -> bool {
        let ours = self.membership.ours();
        let state = self.state();
        let was_heard = state.heard.is_some_and(|at| at.elapsed() < lately);
        was_heard
            && match state.said {
                Said::Nothing => false,
                Said::NotToUs => true,
                Said::Of(cluster) => Some(cluster) == ours,
            }
    }

    /// Whether an answer is of our cluster: behind a connection that was lost and made anew without a word another etcd may be, and not everybody may ask which.
    pub(super) fn is_still(&self, header: Option<&ResponseHeader>) -> Result<(), Fault> {
        match header.map(ResponseHeader::cluster_id) {
            Some(cluster) if cluster != 0 && !self.membership.is_ours(cluster) => {
                self.state().forgets();
                // It may have done there what it was asked for.
                Err(Fault::MaybeDone(format!(
                    "another etcd cluster ({cluster:x}) answers there than before; if etcd was made anew, restart io-vip on all hosts"
                )))
            }
            _ => Ok(()),
        }
    }

    /// It says that it is that member of that cluster.
    async fn is_of(&self, client: &Client, cluster: u64, member: u64) -> Result<(), Fault> {
        let why = if cluster == 0 {
            "it says of no cluster that it is of it; is there an etcd of 3.4 or later?".to_owned()
        } else {
            let mut kind = self.membership.told(self.at, cluster, member);
            if matches!(kind, Kind::Twice { .. }) {
                let list = client.cluster_client().member_list().await;
                let list = list.map_err(|error| self.fault(error).before_sending())?;
                if list.members().len() != 1 {
                    kind = self.membership.is_one_of_several(self.at, cluster, member);
                }
            }
            match kind {
                kind @ (Kind::Ours | Kind::Renewed) => {
                    if kind == Kind::Renewed {
                        tracing::warn!(endpoint = %self.name, "etcd is another cluster than before: it was made anew");
                    }
                    let mut state = self.state();
                    state.said = Said::Of(cluster);
                    state.refused = None;
                    return Ok(());
                }
                Kind::Other { ours } => format!(
                    "it is of another etcd cluster ({cluster:x}) than those before ({ours:x}): `etcdctl member list` must show all members on each of them; if etcd was made anew, restart io-vip on all hosts"
                ),
                Kind::Twice { at } => format!(
                    "it says that it is the same member ({member:x} of {cluster:x}) as endpoint number {}, and knows of no other: each is an etcd of its own, as some packages start them, \
                     or it is named twice; `etcdctl member list` on each",
                    at + 1
                ),
            }
        };
        let mut state = self.state();
        // Another connection may lead to another one.
        state.forgets();
        if state.refused.as_ref() != Some(&why) {
            tracing::error!(endpoint = %self.name, error = why, "a member of etcd is not asked");
            state.refused = Some(why.clone());
        }
        Err(Fault::NotDone(why))
    }

    /// One request that may be made twice. Whoever drops it before it is done says so ([`Member::was_silent`]).
    pub(super) async fn ask<T>(
        self: &Arc<Self>,
        request: &impl AsyncFn(&Arc<Self>, &Client) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let was_there = self.known().is_some();
        match self.ask_once(request).await {
            // It broke since it was used last, as it does when a member is restarted: that says nothing of the member now.
            Err(Fault::NotDone(_) | Fault::MaybeDone(_)) if was_there && self.known().is_none() => {
                self.ask_once(request).await
            }
            result => result,
        }
    }

    async fn ask_once<T>(
        self: &Arc<Self>,
        request: &impl AsyncFn(&Arc<Self>, &Client) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let client = self.client().await?;
        if !self.is_known_since(ACQUAINTED) {
            self.introduce(&client).await?;
        }
        self.ask_with(client, request).await
    }

    /// The same with a connection that is there; and again with a new login, where the one that we had is not known any more.
    pub(super) async fn ask_with<T>(
        self: &Arc<Self>,
        mut client: Client,
        request: &impl AsyncFn(&Arc<Self>, &Client) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        match request(self, &client).await {
            // That is final. It is believed of a member that says now, too, that it is of our cluster.
            Err(Fault::LeaseGone) => self.introduce(&client).await.and(Err(Fault::LeaseGone)),
            Err(Fault::Token(said)) => {
                let Some(credentials) = self.credentials() else {
                    return Err(Fault::NotAllowed(format!(
                        "{said}; name a user and its password file"
                    )));
                };
                self.state().keeper = None;
                if let Err(error) = client.update_user(Some(credentials)).await {
                    return Err(Fault::from(error).before_sending());
                }
                request(self, &client).await.map_err(Fault::for_good)
            }
            result => result,
        }
    }

    /// What an error of the client's means, and what it says of the connection.
    pub(super) fn fault(&self, error: Error) -> Fault {
        if is_answer(&error) {
            self.heard();
            return error.into();
        }
        self.broke(error)
    }

    /// How long the lease lasts from when the leader has heard this.
    pub(super) async fn keep_alive(&self, client: &Client, lease: LeaseId) -> Result<Duration, Fault> {
        // Out of its place while there is a question on it: who gives up waiting takes the stream, and with it the late answer, away.
        let open = self.state().keeper.take();
        if let Some(mut keeper) = open.filter(|keeper| keeper.lease == lease) {
            match self.ask_keeper(&mut keeper).await {
                // A stream ends with the leader that was there when it began.
                Err(Fault::NotDone(_) | Fault::MaybeDone(_)) => {}
                Err(fault) => return Err(fault),
                Ok(ttl) => {
                    self.state().keeper = Some(keeper);
                    return Ok(ttl);
                }
            }
        }
        // It asks once by itself and keeps the answer to itself.
        let opened = client.lease_client().keep_alive(lease.0).await;
        let (ask, answers) = opened.map_err(|error| self.fault(error))?;
        let mut keeper = Keeper { lease, ask, answers };
        let ttl = self.ask_keeper(&mut keeper).await?;
        self.state().keeper = Some(keeper);
        Ok(ttl)
    }

    async fn ask_keeper(&self, keeper: &mut Keeper) -> Result<Duration, Fault> {
        let broken = |said: &str| Fault::MaybeDone(said.to_owned());
        if keeper.ask.keep_alive().await.is_err() {
            return Err(broken("it has closed the stream of keep-alives"));
        }
        loop {
            let answer = match keeper.answers.message().await {
                Ok(Some(answer)) => answer,
                Ok(None) => return Err(broken("it has closed the stream of keep-alives")),
                Err(error) => return Err(self.fault(error)),
            };
            self.is_still(answer.header())?;
            if answer.id() != keeper.lease.0 {
                continue;
            }
            return match u64::try_from(answer.ttl()) {
                Ok(seconds) if seconds > 0 => Ok(Duration::from_secs(seconds)),
                _ => Err(Fault::LeaseGone),
            };
        }
    }
}
