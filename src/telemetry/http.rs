//! A small HTTP server: figures for a monitoring system, a page for people. Whoever asks is a stranger: requests are small, few at a
//! time, and have deadlines. A connection is for one request, so that nobody keeps a place by asking again and again.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
pub use hyper::{Method, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// Time for the head of a request, from the connection or the last answer on.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for a whole connection, and, where an answer goes on and on, from one part of it that was taken to the next.
const LIFE: Duration = Duration::from_secs(60);
/// Longest head of a request, in bytes.
const HEAD_MAX_BYTES: usize = 16 << 10;
/// Pause after the kernel would not give us a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A body that is whole, or goes on and on.
pub type Body = BoxBody<Bytes, Infallible>;
/// What was asked.
pub type Request = hyper::Request<Incoming>;
/// What is answered.
pub type Response = hyper::Response<Body>;

/// What a server bears.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once; one more waits until another one ends.
    pub connections: usize,
}

impl Limits {
    /// For a monitoring system or two.
    pub const FEW: Self = Self { connections: 16 };
    /// For people who look.
    pub const MANY: Self = Self { connections: 256 };
}

/// For an answer that goes on, in the extensions of a [`Request`]: told each time that a part of it is taken, it keeps the connection
/// from being cut.
#[derive(Clone, Debug, Default)]
pub struct Pulse(pub Arc<Notify>);

/// Who asks, in the extensions of a [`Request`].
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// Has figures to be had at `address`, if somebody wants them, until `closing`. Nothing when it cannot listen there, and the journal says so: whoever cannot be
/// looked at still does what it is for.
pub async fn offer_figures<H, F>(
    address: Option<SocketAddr>,
    closing: CancellationToken,
    answer: H,
) -> Option<JoinHandle<()>>
where
    H: Fn(Request) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    let address = address?;
    match TcpListener::bind(address).await {
        Ok(listener) => {
            let address = listener.local_addr().unwrap_or(address);
            tracing::info!(%address, "figures at /metrics");
            Some(tokio::spawn(serve(listener, Limits::FEW, closing, answer)))
        }
        Err(error) => {
            tracing::error!(%address, %error, "no figures: cannot listen; choose another address or port with --metrics");
            None
        }
    }
}

/// Answers until `closing`; what is under way then is cut off.
pub async fn serve<H, F>(listener: TcpListener, limits: Limits, closing: CancellationToken, answer: H)
where
    H: Fn(Request) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(limits.connections));
    let guests: Arc<Mutex<HashMap<IpAddr, usize>>> = Arc::default();
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let (stream, peer) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::debug!(%error, "cannot accept");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
            () = closing.cancelled() => return,
        };
        let Some(guest) = Guest::let_in(&guests, peer.ip(), limits) else {
            // Others need places, too.
            tracing::debug!(%peer, "too many connections from this address");
            continue;
        };
        let (answer, closing, pulse) = (answer.clone(), closing.clone(), Pulse::default());
        let taken = pulse.clone();
        tokio::spawn(async move {
            let _place = (place, guest);
            let _ = stream.set_nodelay(true);
            let service = service_fn(move |mut request: Request| {
                request.extensions_mut().insert(Peer(peer));
                request.extensions_mut().insert(pulse.clone());
                let answering = answer(request);
                async move { Ok::<_, Infallible>(answering.await) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .keep_alive(false)
                .max_buf_size(HEAD_MAX_BYTES)
                .serve_connection(TokioIo::new(stream), service);
            tokio::pin!(connection);
            loop {
                tokio::select! {
                    // Whoever hangs up in the middle has done no harm.
                    _ = &mut connection => return,
                    () = taken.0.notified() => {}
                    () = sleep(LIFE) => return,
                    () = closing.cancelled() => return,
                }
            }
        });
    }
}

/// One connection of an address.
struct Guest {
    guests: Arc<Mutex<HashMap<IpAddr, usize>>>,
    address: IpAddr,
}

impl Guest {
    /// None where the address has its share: half of all places. Who is on this host may be a proxy, and has all of them.
    fn let_in(guests: &Arc<Mutex<HashMap<IpAddr, usize>>>, address: IpAddr, limits: Limits) -> Option<Self> {
        let mut all = guests.lock().unwrap_or_else(PoisonError::into_inner);
        let has = all.entry(address).or_default();
        if *has >= limits.connections / 2 && !address.to_canonical().is_loopback() {
            return None;
        }
        *has += 1;
        Some(Self {
            guests: Arc::clone(guests),
            address,
        })
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut all = self.guests.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(has) = all.get_mut(&self.address) {
            *has -= 1;
            if *has == 0 {
                all.remove(&self.address);
            }
        }
    }
}

/// `content`, to be asked for again each time.
pub fn respond(status: StatusCode, kind: &'static str, content: impl Into<Bytes>) -> Response {
    let mut response = Response::new(Full::new(content.into()).boxed());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    response
}

/// A line of text.
pub fn text(status: StatusCode, line: &str) -> Response {
    respond(status, "text/plain; charset=utf-8", format!("{line}\n"))
}

/// For a path that is none, naming those that are.
pub fn not_found(paths: &str) -> Response {
    text(StatusCode::NOT_FOUND, &format!("there is {paths}"))
}

/// For a method that nobody serves there.
pub fn not_allowed() -> Response {
    text(StatusCode::METHOD_NOT_ALLOWED, "read only: GET")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_cannot_be_looked_at_goes_on() {
        let answer = |_| async { not_found("/metrics") };
        let closing = CancellationToken::new();
        assert!(offer_figures(None, closing.clone(), answer).await.is_none());
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = taken.local_addr().unwrap();
        let refused = offer_figures(Some(address), closing.clone(), answer).await;
        assert!(refused.is_none());
        drop(taken);
        let offered = offer_figures(Some(address), closing.clone(), answer).await;
        closing.cancel();
        offered.unwrap().await.unwrap();
    }
}
