//! A registry that does as it is told.
//!
//! Content goes in by [`Upstream::image`] and its like, faults by [`Upstream::on`], demands by
//! [`Upstream::require_token`]; what was asked comes out of [`Upstream::requests`], [`Upstream::count`]
//! and the waits. `answer` knows what a registry says, `script` how it is spoilt, `token` who may ask,
//! `wire` puts it on a socket byte by byte, `record` writes it down.
//!
//! Every instance runs on one runtime of its own thread, so that a test may block its own. A panic in a
//! handler is kept and raised again when the instance is dropped: the test fails.

mod answer;
mod content;
mod record;
mod script;
mod token;
mod wire;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::FutureExt as _;
use larder::oci::{Algorithm, Digest};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::task::{JoinHandle, JoinSet};

pub use content::{Document, Image, LinkStyle, Listing, ReferrersApi};
pub use record::{Outcome, Request};
pub use script::{Fault, Matcher, On, Pace, Rule, RuleBuilder};
pub use token::{TokenField, TokenPolicy, basic};
pub use wire::Kind;

use content::Content;
use record::Log;
use script::Script;
use token::{Guard, TokenServer};

use super::{DEADLINE, within};

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("scripted-upstream")
        .enable_all()
        .build()
        .expect("a runtime")
});

/// One instance: a registry, a token server, a CDN, or all of them.
pub struct Upstream {
    shared: Arc<Shared>,
    listening: Mutex<Option<JoinHandle<()>>>,
}

/// What an instance's connections see.
pub struct Shared {
    address: SocketAddr,
    content: Mutex<Arc<Content>>,
    script: Script,
    log: Log,
    setup: Mutex<Setup>,
}

struct Setup {
    guard: Guard,
    /// Token servers that this instance plays, its own and other registries'.
    token_servers: Vec<Arc<TokenServer>>,
    base_path: String,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Upstream({})", self.address)
    }
}

impl Shared {
    fn setup(&self) -> MutexGuard<'_, Setup> {
        self.setup.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn content(&self) -> Arc<Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn guard(&self) -> Guard {
        self.setup().guard.clone()
    }

    fn base_path(&self) -> String {
        self.setup().base_path.clone()
    }

    fn token_server(&self, path: &str) -> Option<Arc<TokenServer>> {
        let setup = self.setup();
        setup.token_servers.iter().find(|server| server.path() == path).cloned()
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Upstream {
    /// On 127.0.0.1 and a port of its own.
    pub async fn start() -> Upstream {
        Upstream::start_at(Ipv4Addr::LOCALHOST).await
    }

    /// On another loopback address, to be another host.
    pub async fn start_at(address: impl Into<IpAddr>) -> Upstream {
        let listener = bind(SocketAddr::new(address.into(), 0));
        let shared = Arc::new(Shared {
            address: listener.local_addr().expect("an address"),
            content: Mutex::new(Arc::new(Content::new())),
            script: Script::default(),
            log: Log::new(),
            setup: Mutex::new(Setup {
                guard: Guard::None,
                token_servers: Vec::new(),
                base_path: String::new(),
            }),
        });
        let listening = listen(listener, shared.clone());
        Upstream {
            shared,
            listening: Mutex::new(Some(listening)),
        }
    }

    /// On 127.0.0.2, with the content of this one: what it redirects to.
    pub async fn start_cdn(&self) -> Upstream {
        let cdn = Upstream::start_at(Ipv4Addr::new(127, 0, 0, 2)).await;
        *cdn.shared.content.lock().unwrap_or_else(PoisonError::into_inner) = self.content();
        cdn
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn content(&self) -> Arc<Content> {
        self.shared.content()
    }

    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// `http://127.0.0.1:PORT`, without the base path.
    pub fn url(&self) -> String {
        self.shared.url()
    }

    /// From now on `/v2/` lies under this path (R-U50): `/artifactory/api/docker/hub`.
    pub fn set_base_path(&self, path: &str) {
        self.shared.setup().base_path = path.to_owned();
    }

    // Content.

    pub fn put_blob(&self, repo: &str, bytes: impl Into<Bytes>) -> Digest {
        self.content().put_blob(repo, Algorithm::Sha256, bytes.into())
    }

    pub fn put_blob_sha512(&self, repo: &str, bytes: impl Into<Bytes>) -> Digest {
        self.content().put_blob(repo, Algorithm::Sha512, bytes.into())
    }

    /// A blob of so many bytes, unlike any other.
    pub fn blob(&self, repo: &str, length: usize) -> Digest {
        let bytes = self.content().fresh_bytes(length);
        self.put_blob(repo, bytes)
    }

    /// A blob that one repository holds comes into another.
    pub fn mount(&self, digest: &Digest, repo: &str) {
        let bytes = self.bytes(digest);
        self.content().put_blob(repo, digest.algorithm(), bytes);
    }

    /// Held under its sha256 and its sha512; gives the sha256.
    pub fn put_manifest(&self, repo: &str, tag: Option<&str>, media_type: &str, bytes: impl Into<Bytes>) -> Digest {
        self.content().put_manifest(repo, tag, media_type, bytes.into())
    }

    /// Docker schema 2.
    pub fn image(&self, repo: &str, tag: &str, layer_sizes: &[usize]) -> Image {
        self.content().image(repo, Some(tag), layer_sizes, true)
    }

    pub fn oci_image(&self, repo: &str, tag: &str, layer_sizes: &[usize]) -> Image {
        self.content().image(repo, Some(tag), layer_sizes, false)
    }

    /// OCI, without a tag: the child of an index.
    pub fn untagged_image(&self, repo: &str, layer_sizes: &[usize]) -> Image {
        self.content().image(repo, None, layer_sizes, false)
    }

    /// OCI; the children are manifests that the repository holds.
    pub fn index(&self, repo: &str, tag: &str, children: &[Digest]) -> Document {
        self.content().index(repo, Some(tag), children, false)
    }

    pub fn docker_list(&self, repo: &str, tag: &str, children: &[Digest]) -> Document {
        self.content().index(repo, Some(tag), children, true)
    }

    /// Refers to `subject`, which the repository holds.
    pub fn artifact(&self, repo: &str, subject: Digest, artifact_type: &str) -> Document {
        self.content().artifact(repo, subject, artifact_type)
    }

    /// What old clients write where there is no referrers API: the index under `sha256-<hex>`.
    pub fn put_referrers_tag(&self, repo: &str, subject: Digest) -> Document {
        self.content().put_referrers_tag(repo, subject)
    }

    pub fn move_tag(&self, repo: &str, tag: &str, to: &Digest) {
        self.content().state().repo(repo).tags.insert(tag.to_owned(), *to);
    }

    pub fn remove_tag(&self, repo: &str, tag: &str) {
        self.content().state().repo(repo).tags.remove(tag);
    }

    /// Blob or manifest.
    pub fn remove(&self, repo: &str, digest: &Digest) {
        let content = self.content();
        let mut state = content.state();
        let repo = state.repo(repo);
        repo.blobs.remove(digest);
        repo.manifests.remove(digest);
    }

    /// What it holds under a digest.
    pub fn bytes(&self, digest: &Digest) -> Bytes {
        let found = self.content().state().anywhere(digest);
        found.unwrap_or_else(|| panic!("the upstream does not hold {digest}")).0
    }

    pub fn set_referrers(&self, api: ReferrersApi) {
        self.content().state().referrers = api;
    }

    pub fn set_listing(&self, change: impl FnOnce(&mut Listing)) {
        change(&mut self.content().state().listing);
    }

    // Faults.

    /// `upstream.on(On::Blobs.get()).next(2).cut_after(1000)`
    pub fn on(&self, matcher: impl Into<Matcher>) -> RuleBuilder<'_> {
        RuleBuilder::new(self, matcher.into())
    }

    /// Every GET of a blob leads to `cdn` with a signature in the query, as at the big registries.
    pub fn redirect_blobs_to(&self, cdn: &Upstream) -> Rule {
        let target = format!("{}/storage/{{digest}}?X-Signature=signed-secret", cdn.url());
        self.on(On::Blobs.get()).always().redirect_to(target, 307)
    }

    /// All rules; what was demanded by [`Upstream::require_token`] stays.
    pub fn clear_script(&self) {
        self.shared.script.clear();
    }

    // Demands.

    pub fn require_token(&self, policy: TokenPolicy) {
        let issuer = policy.issuer_instance().unwrap_or(&self.shared).clone();
        let server = Arc::new(TokenServer::new(policy, &self.url()));
        let path = server.path().to_owned();
        let mut setup = issuer.setup();
        // A second policy replaces the first one's server.
        setup.token_servers.retain(|other| other.path() != path);
        setup.token_servers.push(server.clone());
        drop(setup);
        self.shared.setup().guard = Guard::Bearer(server);
    }

    pub fn require_basic(&self, user: &str, password: &str) {
        self.shared.setup().guard = Guard::Basic {
            user: user.to_owned(),
            password: password.to_owned(),
        };
    }

    pub fn require_nothing(&self) {
        self.shared.setup().guard = Guard::None;
    }

    /// Every token issued so far is worthless.
    pub fn revoke_tokens(&self) {
        match self.shared.guard() {
            Guard::Bearer(server) => server.revoke_all(),
            other => panic!("no tokens to revoke: {other:?}"),
        }
    }

    // What it saw.

    pub fn requests(&self) -> Vec<Request> {
        self.shared.log.state().requests.clone()
    }

    pub fn matching(&self, matcher: impl Into<Matcher>) -> Vec<Request> {
        let matcher = matcher.into();
        let state = self.shared.log.state();
        state.matching(&matcher).cloned().collect()
    }

    pub fn count(&self, matcher: impl Into<Matcher>) -> usize {
        self.matching(matcher).len()
    }

    /// Bytes of bodies that its sockets took.
    pub fn bytes_sent(&self, matcher: impl Into<Matcher>) -> u64 {
        self.matching(matcher).iter().map(|request| request.bytes_sent).sum()
    }

    /// The log, for a message.
    pub fn print(&self) -> String {
        self.shared.log.state().print()
    }

    /// Nothing that was seen so far is counted any more.
    pub fn forget(&self) {
        self.shared.log.forget();
    }

    /// Accepted so far.
    pub fn connections(&self) -> u64 {
        self.shared.log.state().accepted
    }

    pub fn open_connections(&self) -> u64 {
        self.shared.log.state().open
    }

    /// Until at least `n` such requests have come.
    pub async fn wait_for(&self, matcher: impl Into<Matcher>, n: usize) {
        let matcher = matcher.into();
        let what = format!("{n} requests of {matcher:?}");
        self.wait_until(&what, |requests| {
            requests.iter().filter(|request| matcher.fits(request)).count() >= n
        })
        .await;
    }

    /// Until `reached` holds for what was seen.
    pub async fn wait_until(&self, what: &str, mut reached: impl FnMut(&[Request]) -> bool) {
        self.shared.log.wait_until(what, |state| reached(&state.requests)).await;
    }

    pub async fn wait_for_connections(&self, n: u64) {
        let what = format!("{n} connections");
        self.shared.log.wait_until(&what, |state| state.accepted >= n).await;
    }

    /// Until at least so many bytes of this blob's answers, all together, are with the socket.
    pub async fn wait_until_sent(&self, digest: &Digest, bytes: u64) {
        let matcher = Matcher::from(On::Blob(*digest));
        let what = format!("{bytes} bytes of {digest}");
        self.wait_until(&what, |requests| {
            let sent = requests.iter().filter(|r| matcher.fits(r)).map(|r| r.bytes_sent);
            sent.sum::<u64>() >= bytes
        })
        .await;
    }

    /// Until a matching request's peer has gone away before the end.
    pub async fn wait_for_abort(&self, matcher: impl Into<Matcher>) {
        let matcher = matcher.into();
        let what = format!("the peer to give up {matcher:?}");
        self.wait_until(&what, |requests| {
            requests.iter().any(|r| matcher.fits(r) && r.is_aborted())
        })
        .await;
    }

    // Outages.

    /// Cuts every connection and refuses new ones, until [`Upstream::come_up`].
    pub async fn go_down(&self) {
        let listening = self.take_listening().expect("an instance that is up");
        listening.abort();
        let _ = within("the listener to stop", listening).await;
        let closed = self.shared.log.wait_until("connections to close", |s| s.open == 0);
        closed.await;
    }

    /// At the same address as before.
    pub async fn come_up(&self) {
        let listener = bind(self.shared.address);
        let listening = listen(listener, self.shared.clone());
        *self.listening() = Some(listening);
    }

    /// Cuts every connection that is open now; new ones are welcome.
    pub async fn cut_connections(&self) {
        self.go_down().await;
        self.come_up().await;
    }

    fn listening(&self) -> MutexGuard<'_, Option<JoinHandle<()>>> {
        self.listening.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_listening(&self) -> Option<JoinHandle<()>> {
        self.listening().take()
    }

    /// Panics if a handler has.
    pub fn check(&self) {
        let panics = std::mem::take(&mut self.shared.log.state().panics);
        assert!(
            panics.is_empty(),
            "the scripted upstream failed: {panics:?}; it saw\n{}",
            self.print()
        );
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        if let Some(listening) = self.take_listening() {
            listening.abort();
        }
        if !std::thread::panicking() {
            self.check();
        }
    }
}

/// The port of an instance that went down may be taken by somebody else's connection for a moment.
fn bind(address: SocketAddr) -> std::net::TcpListener {
    let deadline = std::time::Instant::now() + DEADLINE;
    loop {
        match std::net::TcpListener::bind(address) {
            Ok(listener) => {
                listener.set_nonblocking(true).expect("a socket that does not block");
                return listener;
            }
            Err(error) if std::time::Instant::now() > deadline => panic!("cannot listen on {address}: {error}"),
            Err(_) => std::thread::yield_now(),
        }
    }
}

fn listen(listener: std::net::TcpListener, shared: Arc<Shared>) -> JoinHandle<()> {
    RUNTIME.spawn(async move {
        let listener = TcpListener::from_std(listener).expect("a listener");
        let mut running = JoinSet::new();
        loop {
            let mut stream = tokio::select! {
                accepted = listener.accept() => accepted.expect("a connection").0,
                Some(_) = running.join_next() => continue,
            };
            // Small pieces leave at once: a test that waits for the first byte waits for nothing else.
            let _ = stream.set_nodelay(true);
            let connection = shared.log.change(|state| {
                state.accepted += 1;
                state.open += 1;
                state.accepted
            });
            let open = Open(shared.clone());
            running.spawn(async move {
                // The stream outlives the catch: the peer sees nothing of a panic before it is written down.
                let serving = wire::serve(open.0.clone(), &mut stream, connection);
                if let Err(panic) = AssertUnwindSafe(serving).catch_unwind().await {
                    let text = panic_text(panic.as_ref());
                    open.0.log.change(|state| state.panics.push(text));
                }
            });
        }
    })
}

/// Counts a connection as open until it is dropped, also when its task is aborted.
struct Open(Arc<Shared>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.log.change(|state| state.open -= 1);
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "a panic without a message".to_owned())
}
