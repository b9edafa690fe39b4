//! The listeners: sockets in, requests out to a [`Handler`], and everything about connections that it need not know.
//!
//! An accepted connection passes `gate` (how many at once), `connection` (plain or TLS, which HTTP, when to end),
//! `wire` (its bytes, and how it ends without a reset; files by `sendfile`) and `pulse` (what it is doing, and until when it may);
//! each of its requests passes `answer` on the way to the `handler`. `tls` holds the certificates.
//!
//! hyper's own deadline for headers also counts while a connection is idle, and hyper-util's `auto` waits for the
//! first bytes without any: so the version is told apart here, and `pulse` keeps the time.

mod answer;
mod connection;
mod gate;
mod handler;
mod pulse;
mod sendfile;
mod socket;
pub mod tls;
mod wire;

#[cfg(test)]
mod tests;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{Limits, Listen};
use gate::{Gate, Pass};
pub use handler::{Caller, Handler, Peer};
use socket::Socket;

/// How long connections get to be closed in good order when the grace period has run out.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Connections that are being told "too many", at most; more than that are just closed.
const REFUSALS: usize = 64;

/// An address that could not be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}; {advice}")]
pub struct BindError {
    pub address: Listen,
    advice: &'static str,
    #[source]
    source: io::Error,
}

impl BindError {
    fn new(address: Listen, source: io::Error) -> BindError {
        let advice = match source.kind() {
            io::ErrorKind::AddrInUse => "another process listens there: stop it, or choose another port",
            _ if matches!(address, Listen::Unix(_)) => "its folder has to be there and writable for this user",
            io::ErrorKind::PermissionDenied => "choose a port above 1023, or grant CAP_NET_BIND_SERVICE",
            io::ErrorKind::AddrNotAvailable => "this machine has no such address: use one of its own, 0.0.0.0 or [::]",
            _ => "check the address",
        };
        BindError {
            address,
            advice,
            source,
        }
    }
}

/// Sockets that listen already; nothing is accepted until [`serve`] runs.
#[derive(Debug)]
pub struct Listening {
    /// As bound: port 0 has become a real one.
    pub addresses: Vec<SocketAddr>,
    listeners: Vec<TcpListener>,
    sockets: Vec<Socket>,
}

/// Listens at all of `places` or at none.
pub async fn bind_places(places: &[Listen]) -> Result<Listening, BindError> {
    let tcp: Vec<SocketAddr> = places
        .iter()
        .filter_map(|place| match place {
            Listen::Tcp(address) => Some(*address),
            Listen::Unix(_) => None,
        })
        .collect();
    let mut listening = bind(&tcp).await?;
    for place in places {
        if let Listen::Unix(path) = place {
            let socket = Socket::bind(path).map_err(|e| BindError::new(place.clone(), e))?;
            listening.sockets.push(socket);
        }
    }
    Ok(listening)
}

/// Listens on all of `addresses` or on none.
pub async fn bind(addresses: &[SocketAddr]) -> Result<Listening, BindError> {
    let mut listening = Listening {
        addresses: Vec::new(),
        listeners: Vec::new(),
        sockets: Vec::new(),
    };
    for &address in addresses {
        let listener = TcpListener::bind(address)
            .await
            .map_err(|e| BindError::new(Listen::Tcp(address), e))?;
        listening.addresses.push(
            listener
                .local_addr()
                .map_err(|e| BindError::new(Listen::Tcp(address), e))?,
        );
        listening.listeners.push(listener);
    }
    Ok(listening)
}

/// Takes over sockets that somebody else bound.
pub fn adopt(sockets: Vec<std::net::TcpListener>) -> io::Result<Listening> {
    let mut listening = Listening {
        addresses: Vec::new(),
        listeners: Vec::new(),
        sockets: Vec::new(),
    };
    for socket in sockets {
        socket.set_nonblocking(true)?;
        let listener = TcpListener::from_std(socket)?;
        listening.addresses.push(listener.local_addr()?);
        listening.listeners.push(listener);
    }
    Ok(listening)
}

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

/// What every connection of a server shares.
struct Shared<H> {
    handler: H,
    limits: LiveLimits,
    tls: Option<tls::Certificates>,
    /// Begin no new request.
    stop: CancellationToken,
    /// The grace period is over.
    cut: CancellationToken,
    gate: Arc<Gate>,
    refusals: Arc<Gate>,
    tasks: TaskTracker,
}

/// Serves until `stop` is cancelled; then accepts nothing more, ends idle connections at once, lets running responses
/// finish for up to `grace`, and returns when the last connection has ended.
pub async fn serve(
    listening: Listening,
    handler: impl Handler,
    limits: impl Into<LiveLimits>,
    tls: Option<tls::Certificates>,
    stop: CancellationToken,
    grace: Duration,
) {
    let shared = Arc::new(Shared {
        handler,
        gate: Gate::new(),
        refusals: Gate::new(),
        limits: limits.into(),
        tls,
        stop,
        cut: CancellationToken::new(),
        tasks: TaskTracker::new(),
    });
    let accepting = listening
        .listeners
        .into_iter()
        .map(|listener| accept(listener, shared.clone()));
    let by_sockets = listening
        .sockets
        .into_iter()
        .map(|socket| accept_unix(socket, shared.clone()));
    tokio::join!(
        futures_util::future::join_all(accepting),
        futures_util::future::join_all(by_sockets),
    );
    shared.tasks.close();
    if tokio::time::timeout(grace, shared.tasks.wait()).await.is_err() {
        tracing::warn!(
            connections = shared.tasks.len(),
            "the grace period is over, running responses are cut"
        );
        shared.cut.cancel();
        let _ = tokio::time::timeout(LAST_WORDS * 2, shared.tasks.wait()).await;
    }
}

/// Accepts until stopped; dropping the listener then makes the kernel refuse what comes.
async fn accept(listener: TcpListener, shared: Arc<Shared<impl Handler>>) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = shared.stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            // On a dual-stack socket IPv4 comes in IPv6's clothes.
            Ok((tcp, peer)) => admit(tcp, SocketAddr::new(peer.ip().to_canonical(), peer.port()), &shared),
            Err(error) => accept_failed(&error).await,
        }
    }
}

/// The same at a Unix socket; dropping it takes its file away.
async fn accept_unix(socket: Socket, shared: Arc<Shared<impl Handler>>) {
    let listener: &UnixListener = socket.listener();
    loop {
        let accepted = tokio::select! {
            biased;
            () = shared.stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => admit_unix(stream, &shared),
            Err(error) => accept_failed(&error).await,
        }
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
            let connection = connection::run_unix(stream, shared.clone());
            shared.tasks.spawn(with(Counted::new(pass), connection));
        }
        Err(full) => {
            metrics::counter!("larder_connections_refused_total", "reason" => full.as_str()).increment(1);
            if let Ok(pass) = shared.refusals.enter(us, REFUSALS, REFUSALS) {
                shared.tasks.spawn(with(pass, connection::refuse_unix(stream)));
            }
        }
    }
}

/// A connection that broke before it was accepted is nobody's loss; being out of file descriptors is, and passes.
async fn accept_failed(error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    if !matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted) {
        tracing::warn!(%error, "cannot accept connections");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn admit(tcp: TcpStream, peer: SocketAddr, shared: &Arc<Shared<impl Handler>>) {
    // Small answers (a manifest, a 206's head) must not wait for the client's delayed ACK.
    let _ = tcp.set_nodelay(true);
    let limits = shared.limits.now();
    match shared
        .gate
        .enter(peer.ip(), limits.max_connections, limits.max_connections_per_client)
    {
        Ok(pass) => {
            metrics::counter!("larder_connections_total").increment(1);
            let connection = connection::run(tcp, Peer::Tcp(peer), shared.clone());
            shared.tasks.spawn(with(Counted::new(pass), connection));
        }
        Err(full) => {
            metrics::counter!("larder_connections_refused_total", "reason" => full.as_str()).increment(1);
            tracing::debug!(client = %peer, reason = full.as_str(), "connection refused");
            if let Ok(pass) = shared.refusals.enter(peer.ip(), REFUSALS, REFUSALS) {
                shared
                    .tasks
                    .spawn(with(pass, connection::refuse(tcp, shared.tls.is_some())));
            }
        }
    }
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
