//! The listeners: sockets in, requests out to a [`Handler`], and everything about connections that it need not know.
//!
//! A [`Server`] accepts at its `place`s. An accepted connection passes `gate` (how many at once), `connection` (whom a `proxy_header` says
//! it is for, plain or TLS, which HTTP, when to end),
//! `wire` (its bytes, and how it ends without a reset; files by `sendfile`) and `pulse` (what it is doing, and until when it may);
//! each of its requests passes `answer` on the way to the `handler`, and its response is a `delivery` until the socket has taken it. `tls`
//! holds the certificates.
//!
//! hyper's own deadline for headers also counts while a connection is idle, and hyper-util's `auto` waits for the
//! first bytes without any: so the version is told apart here, and `pulse` keeps the time.

mod answer;
mod connection;
mod delivery;
mod gate;
mod handler;
mod place;
pub(in crate::http) mod proxy_header;
mod pulse;
mod sendfile;
mod socket;
pub mod tls;
mod wire;

#[cfg(test)]
mod tests;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Guard};
use axum::http::StatusCode;
use futures_util::FutureExt as _;
use tokio::net::{TcpStream, UnixStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::access_log::log_failure;
use crate::config::{Limits, TrustedProxies};
pub use delivery::{Delivered, DeliveryReport, Reported};
use gate::{Full, Gate, Pass};
pub use handler::{Caller, Handler, Peer};
use place::Kind;
pub use place::{BindError, Bound};

/// How long connections get to be closed in good order when the grace period has run out.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Connections that cannot be accepted are logged at most this often.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// Connections and requests that are being told "too many", at most; more connections are just closed, more requests see a status only.
const REFUSALS: usize = 64;

/// Limits that a reload may change: what is counted counts at once, times are those of connections that come after.
#[derive(Clone, Debug)]
pub struct LiveLimits(Arc<ArcSwap<Limits>>);

impl From<Limits> for LiveLimits {
    fn from(limits: Limits) -> LiveLimits {
        LiveLimits(Arc::new(ArcSwap::from_pointee(limits)))
    }
}

impl LiveLimits {
    pub fn set(&self, limits: Limits) {
        self.0.store(Arc::new(limits));
    }

    fn now(&self) -> Arc<Limits> {
        self.0.load_full()
    }
}

/// The proxies whose word about a client counts; a reload may name others. None of them, by default.
#[derive(Clone, Debug, Default)]
pub struct LiveProxies(Arc<ArcSwap<TrustedProxies>>);

impl LiveProxies {
    pub fn set(&self, proxies: TrustedProxies) {
        self.0.store(Arc::new(proxies));
    }

    /// Without a lock, and not to be held across a wait.
    fn now(&self) -> Guard<Arc<TrustedProxies>> {
        self.0.load()
    }
}

/// What every connection of a server shares.
struct Shared<H> {
    handler: H,
    limits: LiveLimits,
    proxies: LiveProxies,
    /// Trusted proxies may be named for this server, by a reload if not now.
    may_have_proxies: bool,
    /// When a PROXY header of somebody who is no trusted proxy was logged last.
    logged_stranger: Mutex<Option<Instant>>,
    /// When a broken PROXY header of a trusted proxy was logged last.
    logged_broken: Mutex<Option<Instant>>,
    way: ArcSwap<Way>,
    /// Begin no new request.
    stop: CancellationToken,
    /// The grace period is over.
    cut: CancellationToken,
    gate: Arc<Gate>,
    /// Requests by HTTP/2 beyond the one that each connection may have in any case.
    requests: Arc<Gate>,
    refusals: Arc<Gate>,
    tasks: TaskTracker,
}

/// How connections are made, from one change of that to the next.
struct Way {
    tls: Option<tls::Certificates>,
    /// There is another way now, or the server stops: connections that were made this way answer what they were asked and
    /// end. Whom an authority of before vouched for is nobody any more.
    turn: CancellationToken,
}

impl Way {
    fn new(tls: Option<tls::Certificates>, stop: &CancellationToken) -> Arc<Way> {
        let turn = stop.child_token();
        Arc::new(Way { tls, turn })
    }
}

/// A server: addresses, and the handler behind them. Where it listens and what it shows may change while it serves.
pub struct Server<H> {
    shared: Arc<Shared<H>>,
    open: Mutex<Vec<(Bound, CancellationToken)>>,
    accepting: TaskTracker,
}

impl<H: Handler> Server<H> {
    /// Nothing is accepted before [`Server::listen_at`], and nothing after `stop` is cancelled.
    pub fn new(
        handler: H,
        limits: impl Into<LiveLimits>,
        tls: Option<tls::Certificates>,
        stop: &CancellationToken,
    ) -> Server<H> {
        Server::build(None, handler, limits, tls, stop)
    }

    /// As [`Server::new`], where these proxies may speak for clients.
    pub fn behind(
        proxies: &LiveProxies,
        handler: H,
        limits: impl Into<LiveLimits>,
        tls: Option<tls::Certificates>,
        stop: &CancellationToken,
    ) -> Server<H> {
        Server::build(Some(proxies), handler, limits, tls, stop)
    }

    fn build(
        proxies: Option<&LiveProxies>,
        handler: H,
        limits: impl Into<LiveLimits>,
        tls: Option<tls::Certificates>,
        stop: &CancellationToken,
    ) -> Server<H> {
        Server {
            shared: Arc::new(Shared {
                handler,
                proxies: proxies.cloned().unwrap_or_default(),
                may_have_proxies: proxies.is_some(),
                logged_stranger: Mutex::default(),
                logged_broken: Mutex::default(),
                gate: Gate::new(),
                requests: Gate::new(),
                refusals: Gate::new(),
                limits: limits.into(),
                way: ArcSwap::new(Way::new(tls, stop)),
                // Its own: a server may go before the others.
                stop: stop.child_token(),
                cut: CancellationToken::new(),
                tasks: TaskTracker::new(),
            }),
            open: Mutex::default(),
            accepting: TaskTracker::new(),
        }
    }

    /// Accepts at these from now on, and at no others. Whoever waits at one that is let go of is let in first. Within a runtime.
    pub fn listen_at(&self, bound: &[Bound]) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        for new in bound
            .iter()
            .filter(|new| !open.iter().any(|(old, _)| old.is(new)))
            .cloned()
            .collect::<Vec<_>>()
        {
            let leave = self.shared.stop.child_token();
            self.accepting
                .spawn(accept(new.clone(), leave.clone(), self.shared.clone()));
            open.push((new, leave));
        }
        open.retain(|(old, leave)| {
            let stays = bound.iter().any(|new| new.is(old));
            if !stays {
                leave.cancel();
            }
            stays
        });
    }

    /// Where it listens.
    pub fn bound(&self) -> Vec<Bound> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.iter().map(|(bound, _)| bound.clone()).collect()
    }

    /// Connections that come from now on are made this way; those that are there answer what they were asked, and end.
    pub fn secure_by(&self, tls: Option<tls::Certificates>) {
        let before = self.shared.way.swap(Way::new(tls, &self.shared.stop));
        before.turn.cancel();
    }

    /// Accepts nothing more; running responses finish, in their own time.
    pub fn retire(&self) {
        self.listen_at(&[]);
        self.shared.stop.cancel();
    }

    /// Connections that are open.
    pub fn connections(&self) -> usize {
        self.shared.tasks.len()
    }

    /// The end, after `stop` was cancelled or it was retired: idle connections end at once, running responses get `grace` to
    /// finish, unless `hurry` is cancelled before that. Returns when the last connection has ended.
    pub async fn finish(&self, grace: Duration, hurry: &CancellationToken) {
        self.retire();
        self.accepting.close();
        self.accepting.wait().await;
        let shared = &self.shared;
        shared.tasks.close();
        let why = tokio::select! {
            biased;
            () = shared.tasks.wait() => None,
            () = hurry.cancelled() => Some("the wait was ended: running responses are cut"),
            () = tokio::time::sleep(grace) => Some("the grace period is over, running responses are cut"),
        };
        if let Some(why) = why {
            tracing::warn!(connections = shared.tasks.len(), "{why}");
            shared.cut.cancel();
            let _ = tokio::time::timeout(LAST_WORDS * 2, shared.tasks.wait()).await;
        }
    }
}

/// Accepts until stopped; dropping the listener then makes the kernel refuse what comes.
async fn accept(bound: Bound, leave: CancellationToken, shared: Arc<Shared<impl Handler>>) {
    let mut logged = None;
    loop {
        let accepted = tokio::select! {
            biased;
            () = leave.cancelled() => break,
            accepted = next(&bound) => accepted,
        };
        match accepted {
            Ok(came) => admit(came, &shared),
            Err(error) => accept_failed(&error, &mut logged).await,
        }
    }
    // To them the address was open: closing it would break their connections. No more than can have waited, or a crowd that keeps
    // coming would keep us.
    for _ in 0..place::BACKLOG {
        match next(&bound).now_or_never() {
            Some(Ok(came)) => admit(came, &shared),
            _ => return,
        }
    }
}

/// Who comes to an address.
enum Came {
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream),
}

async fn next(bound: &Bound) -> io::Result<Came> {
    match bound.socket() {
        Kind::Tcp(listener) => {
            let (tcp, peer) = listener.accept().await?;
            // On a dual-stack socket IPv4 comes in IPv6's clothes.
            Ok(Came::Tcp(tcp, SocketAddr::new(peer.ip().to_canonical(), peer.port())))
        }
        Kind::Unix(socket) => Ok(Came::Unix(socket.listener().accept().await?.0)),
    }
}

fn admit(came: Came, shared: &Arc<Shared<impl Handler>>) {
    match came {
        Came::Tcp(tcp, peer) => admit_tcp(tcp, peer, shared),
        Came::Unix(stream) => admit_unix(stream, shared),
    }
}

/// All who come by such sockets are one client: this machine.
fn admit_unix(stream: UnixStream, shared: &Arc<Shared<impl Handler>>) {
    let (us, limits) = (Ipv4Addr::UNSPECIFIED.into(), shared.limits.now());
    match shared
        .gate
        .enter(us, limits.max_connections, limits.max_connections_per_client)
    {
        Ok(pass) => {
            metrics::counter!("larder_connections_total").increment(1);
            let connection = connection::run_unix(stream, shared.way.load_full(), shared.clone());
            shared.tasks.spawn(with(Counted::new(pass), connection));
        }
        Err(full) => {
            metrics::counter!("larder_connections_refused_total", "reason" => full.as_str()).increment(1);
            if let Ok(pass) = shared.refusals.enter(us, REFUSALS, REFUSALS) {
                log_refusal(Peer::Unix(None), full.as_str());
                shared.tasks.spawn(with(pass, connection::refuse_unix(stream)));
            }
        }
    }
}

/// A connection that broke before it was accepted is nobody's loss; being out of file descriptors is, and passes.
/// `logged`: when it was logged last; each failure would fill the log.
async fn accept_failed(error: &io::Error, logged: &mut Option<Instant>) {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    if !matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted) {
        if logged.is_none_or(|at| at.elapsed() >= LOG_EVERY) {
            tracing::warn!(%error, "cannot accept connections: tried again ten times a second");
            *logged = Some(Instant::now());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn admit_tcp(tcp: TcpStream, peer: SocketAddr, shared: &Arc<Shared<impl Handler>>) {
    // Small answers (a manifest, a 206's head) must not wait for the client's delayed ACK.
    let _ = tcp.set_nodelay(true);
    let limits = shared.limits.now();
    // A proxy's connections are many clients': each client's share is counted when it is known who that is.
    let entered = match shared.proxies.now().contains(peer.ip()) {
        true => shared.gate.enter_for_nobody(limits.max_connections),
        false => shared
            .gate
            .enter(peer.ip(), limits.max_connections, limits.max_connections_per_client),
    };
    match entered {
        Ok(pass) => {
            metrics::counter!("larder_connections_total").increment(1);
            let connection = connection::run(tcp, peer, shared.way.load_full(), shared.clone());
            shared.tasks.spawn(with(Counted::new(pass), connection));
        }
        Err(full) => {
            if let Some(pass) = refused(full, peer, shared) {
                shared
                    .tasks
                    .spawn(with(pass, connection::refuse(tcp, shared.way.load().tls.is_some())));
            }
        }
    }
}

/// A client is told 503 before it has asked for anything.
fn log_refusal(client: Peer, limit: &'static str) {
    let why = format!("too many connections (limits.{limit})");
    log_failure(None, client, StatusCode::SERVICE_UNAVAILABLE, Instant::now(), &why);
}

/// Counts a connection for which there is no place. Returns a pass if it may be told so.
fn refused<H>(full: Full, peer: SocketAddr, shared: &Shared<H>) -> Option<Pass> {
    metrics::counter!("larder_connections_refused_total", "reason" => full.as_str()).increment(1);
    tracing::debug!(client = %peer, reason = full.as_str(), "connection refused");
    let pass = shared.refusals.enter(peer.ip(), REFUSALS, REFUSALS).ok()?;
    // Over TLS a client is told nothing.
    if shared.way.load().tls.is_none() {
        log_refusal(Peer::Tcp(peer), full.as_str());
    }
    Some(pass)
}

/// Runs `task` while holding `held`.
async fn with<H>(held: H, task: impl Future<Output = ()>) {
    task.await;
    drop(held);
}

/// A connection in the gauge, for as long as it holds its pass.
struct Counted(#[expect(dead_code, reason = "held for its drop")] Pass);

impl Counted {
    fn new(pass: Pass) -> Counted {
        metrics::gauge!("larder_connections").increment(1);
        Counted(pass)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        metrics::gauge!("larder_connections").decrement(1);
    }
}
