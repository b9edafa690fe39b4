//! Addresses of an upstream that hang, fail or hiccup: what they cost, what is ridden out, and how they come back.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinHandle;

use crate::support::client::Ask;
use crate::support::gate::Gate;
use crate::support::larder::Larder;
use crate::support::toml::Toml;
use crate::support::upstream::{Fault, Image, On, Rule, TokenPolicy, Upstream};
use crate::support::{logged, within};

const REPO: &str = "library/app";
/// Longer than a hiccup may take to be ridden out on a busy machine, and far shorter than what is waited for otherwise.
const MARGIN: Duration = Duration::from_secs(2);

fn manifest(repo: &str, reference: impl std::fmt::Display) -> String {
    format!("/v2/{repo}/manifests/{reference}")
}

fn blob(repo: &str, digest: impl std::fmt::Display) -> String {
    format!("/v2/{repo}/blobs/{digest}")
}

/// As a client pulls: the manifest by its tag, then config and layers. Gives how long that took.
async fn pull(larder: &Larder, repo: &str, tag: &str, image: &Image) -> Duration {
    let begun = Instant::now();
    larder.get(manifest(repo, tag)).await.expect_content(&image.manifest);
    for digest in image.blobs() {
        larder.get(blob(repo, digest)).await.expect_content(&digest);
    }
    begun.elapsed()
}

/// An address that accepts connections and says nothing.
struct Mute {
    address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    listening: JoinHandle<()>,
}

impl Mute {
    async fn start() -> Mute {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = accepted.clone();
        let listening = tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                held.push(stream);
            }
        });
        Mute {
            address,
            accepted,
            listening,
        }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for Mute {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

/// An address that drops every SYN: a listener whose queue is full.
struct Hole {
    address: SocketAddr,
    listener: TcpListener,
    _held: Vec<TcpStream>,
}

impl Hole {
    async fn start() -> Hole {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let mut held = Vec::new();
        while let Ok(connected) = tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(address)).await {
            held.push(connected.unwrap());
            assert!(held.len() < 20, "a queue that is never full");
        }
        Hole {
            address,
            listener,
            _held: held,
        }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on what comes is passed on to `upstream`.
    fn open(self, upstream: &Upstream) -> JoinHandle<()> {
        let target = upstream.address();
        tokio::spawn(async move {
            let _held = self._held;
            while let Ok((mut near, _)) = self.listener.accept().await {
                tokio::spawn(async move {
                    if let Ok(mut far) = TcpStream::connect(target).await {
                        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                    }
                });
            }
        })
    }
}

fn with_mirrors(toml: &mut Toml, urls: &[String]) {
    let urls: Vec<::toml::Value> = urls.iter().map(|url| ::toml::Value::from(url.clone())).collect();
    toml.upstream("docker.io", "mirrors", urls);
}

/// The states of docker.io's addresses, by their names.
async fn states(larder: &Larder) -> Vec<(String, String)> {
    let stats = Ask::get("/api/v1/stats").send(larder.admin()).await.expect(200).json();
    let upstreams = stats["upstreams"].as_array().unwrap().clone();
    let hub = upstreams.iter().find(|upstream| upstream["name"] == "docker.io");
    let addresses = hub.map_or_else(Vec::new, |hub| hub["addresses"].as_array().unwrap().clone());
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    addresses
        .iter()
        .map(|address| (text(&address["address"]), text(&address["state"])))
        .collect()
}

async fn until_state(larder: &Larder, address: &str, state: &str) {
    within(&format!("{address} to be {state}"), async {
        let wanted = (address.to_owned(), state.to_owned());
        while !states(larder).await.contains(&wanted) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

async fn until_state_or_unknown(larder: &Larder, address: &str) {
    within(&format!("{address} to be asked"), async {
        let down = (address.to_owned(), "down".to_owned());
        while states(larder).await.contains(&down) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

/// Hung mirrors cost the first request a second each, and the others nothing: they are known to be down.
#[tokio::test]
async fn two_hung_mirrors_cost_one_request_their_time() {
    logged::listen();
    let (mute, hole, upstream) = (Mute::start().await, Hole::start().await, Upstream::start().await);
    let larder = Larder::start(&upstream, |toml| with_mirrors(toml, &[mute.url(), hole.url()])).await;
    let mut took = Vec::new();
    for n in 0..10 {
        let repo = format!("library/app{n}");
        let image = upstream.image(&repo, "1", &[1_000, 2_000]);
        took.push(pull(&larder, &repo, "1", &image).await);
        if n == 0 {
            assert_eq!(mute.accepted(), 1);
        }
    }
    println!("two hung mirrors: {took:?}");
    assert!(took[0] >= Duration::from_secs(2), "each has its second: {took:?}");
    assert!(took[0] < Duration::from_millis(2_100) + MARGIN, "{took:?}");
    assert!(took[1..].iter().all(|took| *took < Duration::from_secs(1)), "{took:?}");
    // What is asked of them now are probes.
    assert!(mute.accepted() <= 2, "{} connections", mute.accepted());
    for url in [mute.url(), hole.url()] {
        let lines = logged::with(&url);
        let downs = lines
            .iter()
            .filter(|line| line.contains("WARN") && line.contains("is down"));
        assert_eq!(downs.count(), 1, "{lines:#?}");
        let metrics = larder.metrics().await;
        let up = format!("larder_upstream_address_up{{upstream=\"docker.io\",address=\"{url}\"}} 0");
        assert!(metrics.contains(&up), "{metrics}");
        let late = format!("address=\"{url}\",reason=\"late\"}}");
        assert!(metrics.contains(&late), "{metrics}");
    }
}

/// Requests that come at the same time are all hit by a mirror that hangs; none of them waits twice.
#[tokio::test]
async fn a_hung_mirror_under_many_requests() {
    let (mute, upstream) = (Mute::start().await, Upstream::start().await);
    let larder = Larder::start(&upstream, |toml| with_mirrors(toml, &[mute.url()])).await;
    let blobs: Vec<_> = (0..30).map(|_| upstream.blob(REPO, 1_000)).collect();
    let begun = Instant::now();
    let gets = blobs.iter().map(|digest| larder.get(blob(REPO, digest)));
    for (got, digest) in join_all(gets).await.into_iter().zip(&blobs) {
        got.expect_content(digest);
    }
    assert!(
        begun.elapsed() < Duration::from_secs(1) + MARGIN,
        "{:?}",
        begun.elapsed()
    );
}

/// At the end of the pause the request that failed is sent as HEAD, in the background; then the mirror is asked again.
#[tokio::test]
async fn a_mirror_comes_back_by_its_probe() {
    let (mirror, upstream) = (Upstream::start().await, Upstream::start().await);
    let larder = Larder::start(&upstream, |toml| with_mirrors(toml, &[mirror.url()])).await;
    let hangs = mirror.on(On::Blobs).always().hang_connection();
    let digest = upstream.blob(REPO, 1_000);
    larder.get(blob(REPO, digest)).await.expect_content(&digest);
    assert_eq!(mirror.count(On::Blobs), 1);
    assert_eq!(states(&larder).await[0], (mirror.url(), "down".to_owned()));
    // `/v2/` would be answered, as would manifests.
    mirror.put_blob(REPO, upstream.bytes(&digest));
    hangs.remove();
    mirror.wait_for(On::Blob(digest).head(), 1).await;
    until_state(&larder, &mirror.url(), "up").await;
    let next = mirror.blob(REPO, 2_000);
    larder.get(blob(REPO, next)).await.expect_content(&next);
    assert_eq!(upstream.count(On::Blob(next)), 0);
    let metrics = larder.metrics().await;
    let up = format!(
        "larder_upstream_address_up{{upstream=\"docker.io\",address=\"{}\"}} 1",
        mirror.url()
    );
    assert!(metrics.contains(&up), "{metrics}");
}

/// A mirror that fetches from far away what it has not, and answers its own in no time: it is left once for being late, and
/// from then on has a second. Its probe, which it answers at once, does not hide that.
#[tokio::test]
async fn a_mirror_that_is_slow_by_nature_is_not_locked_out() {
    let (mirror, upstream) = (Upstream::start().await, Upstream::start().await);
    let larder = Larder::start(&upstream, |toml| with_mirrors(toml, &[mirror.url()])).await;
    for _ in 0..10 {
        let held = mirror.blob(REPO, 1_000);
        larder.get(blob(REPO, held)).await.expect_content(&held);
    }
    let far = || Fault::Delay(Duration::from_millis(600));
    // Two instances make the same bytes: these are of another length.
    let first = upstream.blob(REPO, 1_001);
    mirror.on(On::Blobs.get()).does([far()]);
    larder.get(blob(REPO, first)).await.expect_content(&first);
    assert_eq!(upstream.count(On::Blob(first)), 1, "left after 250 ms");
    until_state(&larder, &mirror.url(), "up").await;
    let second = mirror.blob(REPO, 1_002);
    mirror.on(On::Blob(second).get()).does([far()]);
    larder.get(blob(REPO, second)).await.expect_content(&second);
    assert_eq!(upstream.count(On::Blob(second)), 0, "waited for");
}

/// What the registry refuses for its rate limit a mirror may still give, though it is slower than a mirror should be.
#[tokio::test]
async fn a_mirror_that_is_down_is_the_last_resort() {
    let (mirror, upstream) = (Upstream::start().await, Upstream::start().await);
    let larder = Larder::start(&upstream, |toml| with_mirrors(toml, &[mirror.url()])).await;
    upstream.on(On::Any).always().rate_limit(Some("600"));
    mirror
        .on(On::Blobs)
        .always()
        .does([Fault::Delay(Duration::from_millis(1_500))]);
    let digest = mirror.blob(REPO, 1_000);
    let begun = Instant::now();
    larder.get(blob(REPO, digest)).await.expect_content(&digest);
    assert!(begun.elapsed() >= Duration::from_millis(2_500), "{:?}", begun.elapsed());
    // One that is silent is tried once between two probes, and the registry's own word is the verdict.
    mirror.on(On::Blobs).always().hang_connection();
    let other = mirror.blob(REPO, 1_000);
    larder.get(blob(REPO, other)).await.expect(503);
    let begun = Instant::now();
    larder.get(blob(REPO, other)).await.expect(503);
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}

/// A refusal is an answer: a mirror that lacks something, or asks for a login, is as well as it was.
#[tokio::test]
async fn refusals_are_no_failures() {
    let (mirror, upstream) = (Upstream::start().await, Upstream::start().await);
    let larder = Larder::start(&upstream, |toml| with_mirrors(toml, &[mirror.url()])).await;
    for status in [401, 403, 404, 405] {
        mirror.on(On::Any).always().status(status);
        for _ in 0..4 {
            let digest = upstream.blob(REPO, 1_000);
            larder.get(blob(REPO, digest)).await.expect_content(&digest);
        }
        mirror.clear_script();
    }
    assert_eq!(states(&larder).await[0], (mirror.url(), "up".to_owned()));
    assert!(mirror.count(On::Blobs) >= 16, "{}", mirror.print());
}

/// A mirror that fails three times in a row is left alone.
#[tokio::test]
async fn a_mirror_that_fails_is_down() {
    let (mirror, upstream) = (Upstream::start().await, Upstream::start().await);
    let larder = Larder::start(&upstream, |toml| with_mirrors(toml, &[mirror.url()])).await;
    mirror.on(On::Any).always().status(503);
    for _ in 0..10 {
        let digest = upstream.blob(REPO, 1_000);
        larder.get(blob(REPO, digest)).await.expect_content(&digest);
    }
    assert_eq!(mirror.count(On::Blobs.get()), 3, "{}", mirror.print());
}

/// What is known of an address survives a reload that builds its upstream's client anew.
#[tokio::test]
async fn a_reload_keeps_what_is_known() {
    let (mute, upstream) = (Mute::start().await, Upstream::start().await);
    let mut larder = Larder::start(&upstream, |toml| with_mirrors(toml, &[mute.url()])).await;
    let digest = upstream.blob(REPO, 1_000);
    larder.get(blob(REPO, digest)).await.expect_content(&digest);
    assert_eq!(mute.accepted(), 1);
    let reloaded = larder.reload(|toml| {
        toml.upstream("docker.io", "read_timeout", "31s");
    });
    reloaded.unwrap();
    assert_eq!(states(&larder).await[0], (mute.url(), "down".to_owned()));
    let begun = Instant::now();
    let digest = upstream.blob(REPO, 1_000);
    larder.get(blob(REPO, digest)).await.expect_content(&digest);
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    // Its probe goes on.
    within("a probe after the reload", async {
        while mute.accepted() < 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

/// How long each hiccup lasts, from the first request that meets it.
const HICCUP: Duration = Duration::from_millis(250);

/// Removes the rules a hiccup after one of them was first met.
async fn pass_by(rules: &[Rule]) {
    within("the hiccup to be met", async {
        while rules.iter().all(|rule| rule.hits() == 0) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    tokio::time::sleep(HICCUP).await;
    rules.iter().for_each(Rule::remove);
}

/// A cold pull; `by_head`: of a client that resolves the tag by HEAD first.
async fn cold_pull(larder: &Larder, image: &Image, by_head: bool) {
    if by_head {
        larder.head(manifest(REPO, "1")).await.expect(200);
    }
    pull(larder, REPO, "1", image).await;
}

/// A quarter second of trouble at each place of a pull: no cold pull fails by it.
#[tokio::test]
async fn hiccups_are_ridden_out() {
    type Make = fn(&Upstream, &Upstream) -> Rule;
    let kinds: [(&str, Make); 12] = [
        ("503 to GET of manifests", |u, _| {
            u.on(On::Manifests.get()).always().status(503)
        }),
        ("503 to GET of blobs", |u, _| u.on(On::Blobs.get()).always().status(503)),
        ("503 to HEAD", |u, _| u.on(On::Manifests.head()).always().status(503)),
        ("503 of the token server", |u, _| {
            u.require_token(TokenPolicy::new());
            u.on(On::Token).always().status(503)
        }),
        ("closed", |u, _| u.on(On::Any).always().drop_connection()),
        ("reset", |u, _| u.on(On::Any).always().reset_connection()),
        ("blobs closed", |u, _| u.on(On::Blobs).always().drop_connection()),
        ("503 where it redirects to", |u, cdn| {
            u.redirect_blobs_to(cdn);
            cdn.on(On::Storage).always().status(503)
        }),
        ("closed where it redirects to", |u, cdn| {
            u.redirect_blobs_to(cdn);
            cdn.on(On::Storage).always().drop_connection()
        }),
        ("500", |u, _| u.on(On::Any).always().status(500)),
        ("502", |u, _| u.on(On::Any).always().status(502)),
        ("504", |u, _| u.on(On::Any).always().status(504)),
    ];
    join_all(kinds.into_iter().map(async |(kind, make)| {
        let upstream = Upstream::start().await;
        let image = upstream.image(REPO, "1", &[1_000, 2_000]);
        let cdn = upstream.start_cdn().await;
        let larder = Larder::start(&upstream, |_| {}).await;
        let rules = [make(&upstream, &cdn)];
        tokio::join!(pass_by(&rules), cold_pull(&larder, &image, kind == "503 to HEAD"));
    }))
    .await;
}

/// A registry, or what it redirects to, that refuses connections for a quarter second.
#[tokio::test]
async fn refused_connections_are_ridden_out() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[1_000]);
    let cdn = upstream.start_cdn().await;
    let larder = Larder::start(&upstream, |_| {}).await;
    let outage = async |of: &Upstream| {
        tokio::time::sleep(HICCUP).await;
        of.come_up().await;
    };
    upstream.go_down().await;
    tokio::join!(outage(&upstream), cold_pull(&larder, &image, false));
    upstream.redirect_blobs_to(&cdn);
    let digest = upstream.blob(REPO, 1_000);
    cdn.go_down().await;
    let asking = async {
        larder.get(blob(REPO, digest)).await.expect_content(&digest);
    };
    tokio::join!(outage(&cdn), asking);
}

/// Many pulls at once in one hiccup: all are whole, and the registry is not asked more for it than it can bear.
#[tokio::test]
async fn a_hiccup_under_many_pulls() {
    let upstream = Upstream::start().await;
    let blobs: Vec<_> = (0..40).map(|_| upstream.blob(REPO, 1_000)).collect();
    let larder = Larder::start(&upstream, |_| {}).await;
    let rules = [upstream.on(On::Blobs).always().status(503)];
    let gets = join_all(blobs.iter().map(|digest| larder.get(blob(REPO, digest))));
    let (got, ()) = tokio::join!(gets, pass_by(&rules));
    for (got, digest) in got.into_iter().zip(&blobs) {
        got.expect_content(digest);
    }
    // Each was asked for once, and a few of them again while it lasted: one at a time.
    let failed = rules[0].hits();
    assert!(failed <= 40 + 5, "{failed} requests failed");
    // The rest were sent as soon as one had been answered.
    let metrics = larder.metrics().await;
    assert!(
        metrics.contains("larder_upstream_retries_total{upstream=\"docker.io\",result=\"ok\"}"),
        "{metrics}"
    );
}

/// A dead upstream is waited for once; then each request is one question, until it has answered.
#[tokio::test]
async fn a_dead_upstream_fails_fast() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[1_000]);
    let larder = Larder::start(&upstream, |_| {}).await;
    let ask = async |status| {
        let begun = Instant::now();
        larder.get(manifest(REPO, "1")).await.expect(status);
        begun.elapsed()
    };
    let dead = upstream.on(On::Any).always().status(503);
    let took = ask(503).await;
    println!("a dead upstream: the first request took {took:?}");
    assert!(
        took >= Duration::from_millis(1_500),
        "a hiccup of that length is ridden out: {took:?}"
    );
    assert!(took < Duration::from_secs(5) + MARGIN, "{took:?}");
    assert_eq!(upstream.count(On::Manifests), 6, "{}", upstream.print());
    for n in 1..=5 {
        let took = ask(503).await;
        println!("a dead upstream: request {} took {took:?}", n + 1);
        // What takes long here is the machine; before, it was the pauses.
        assert!(took < Duration::from_millis(500), "{took:?}");
        assert_eq!(upstream.count(On::Manifests.get()), 6 + n, "{}", upstream.print());
    }
    dead.remove();
    pull(&larder, REPO, "1", &image).await;
    // Its next hiccup is ridden out again.
    let other = upstream.image("library/other", "1", &[1_000]);
    let rules = [upstream.on(On::Manifests).always().status(503)];
    tokio::join!(pass_by(&rules), pull(&larder, "library/other", "1", &other));
}

/// As above, by connections that are refused; and a probe brings it back without a client.
#[tokio::test]
async fn an_upstream_that_is_gone_fails_fast_and_comes_back() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[1_000]);
    let larder = Larder::start(&upstream, |_| {}).await;
    upstream.go_down().await;
    let ask = async || {
        let begun = Instant::now();
        larder.get(manifest(REPO, "1")).await.expect(503);
        begun.elapsed()
    };
    ask().await;
    for _ in 0..5 {
        let took = ask().await;
        assert!(took < Duration::from_millis(500), "{took:?}");
    }
    upstream.forget();
    upstream.come_up().await;
    until_state(&larder, &upstream.url(), "up").await;
    assert_eq!(upstream.requests().len(), 1, "{}", upstream.print());
    assert_eq!(
        upstream.count(On::Manifest("1".into()).head()),
        1,
        "{}",
        upstream.print()
    );
    pull(&larder, REPO, "1", &image).await;
}

/// A registry whose packets are dropped costs one request its connect timeout.
#[tokio::test]
async fn a_registry_that_drops_packets_fails_fast() {
    let (hole, upstream) = (Hole::start().await, Upstream::start().await);
    let image = upstream.image(REPO, "1", &[1_000]);
    let larder = Larder::start(&upstream, |toml| {
        toml.upstream("docker.io", "url", hole.url());
        toml.upstream("docker.io", "connect_timeout", "3s");
    })
    .await;
    let ask = async || {
        let begun = Instant::now();
        larder.get(manifest(REPO, "1")).await.expect(503);
        begun.elapsed()
    };
    let took = ask().await;
    assert!(
        took >= Duration::from_secs(3) && took < Duration::from_secs(3) + MARGIN,
        "{took:?}"
    );
    for _ in 0..3 {
        let took = ask().await;
        println!("a registry that drops packets: {took:?}");
        assert!(took < Duration::from_millis(1_500), "{took:?}");
    }
    let passing = hole.open(&upstream);
    within("the registry to be back", async {
        while larder.get(manifest(REPO, "1")).await.status != 200 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    pull(&larder, REPO, "1", &image).await;
    passing.abort();
}

/// A registry that says when it is back is believed, if that is soon; else it is left alone at once.
#[tokio::test]
async fn retry_after_is_heeded() {
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, 1_000);
    let larder = Larder::start(&upstream, |_| {}).await;
    upstream.on(On::Blobs).answer(503, &[("Retry-After", "1")], "");
    let begun = Instant::now();
    larder.get(blob(REPO, digest)).await.expect_content(&digest);
    assert!(begun.elapsed() >= Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_eq!(upstream.count(On::Blobs), 2);
    let other = upstream.blob(REPO, 1_000);
    upstream
        .on(On::Blobs)
        .always()
        .answer(503, &[("Retry-After", "60")], "");
    larder.get(blob(REPO, other)).await.expect(503);
    assert_eq!(upstream.count(On::Blob(other)), 1, "{}", upstream.print());
}

/// A registry that asks to be left alone while it is asked again ends the repeats for all that wait for theirs.
#[tokio::test]
async fn a_rate_limit_ends_the_repeats() {
    let upstream = Upstream::start().await;
    let larder = Larder::start(&upstream, |_| {}).await;
    let blobs: Vec<_> = (0..20).map(|n| upstream.blob(REPO, 1_000 + n)).collect();
    upstream.on(On::Blobs).next(blobs.len()).status(503);
    upstream.on(On::Blobs).always().rate_limit(Some("60"));
    let begun = Instant::now();
    for got in join_all(blobs.iter().map(|digest| larder.get(blob(REPO, digest)))).await {
        got.expect(503);
    }
    let took = begun.elapsed();
    assert!(took < Duration::from_millis(500) + MARGIN, "{took:?}");
    assert!(upstream.count(On::Blobs) <= blobs.len() + 2, "{}", upstream.print());
}

/// A mirror that stalls in its bodies answers its probe, and begins the next one: its pause grows all the same.
#[tokio::test]
async fn a_mirror_that_stalls_in_its_bodies_is_asked_ever_more_rarely() {
    let (mirror, upstream) = (Upstream::start().await, Upstream::start().await);
    let larder = Larder::start(&upstream, |toml| {
        with_mirrors(toml, &[mirror.url()]);
        toml.upstream("docker.io", "read_timeout", "300ms");
    })
    .await;
    let stalls = Gate::closed();
    mirror.on(On::Blobs.get()).always().stall_after(100_000, &stalls);
    let mut pauses = Vec::new();
    for _ in 0..2 {
        until_state_or_unknown(&larder, &mirror.url()).await;
        let digest = upstream.blob(REPO, 300_000);
        mirror.put_blob(REPO, upstream.bytes(&digest));
        larder.get(blob(REPO, digest)).await.expect_content(&digest);
        let stats = Ask::get("/api/v1/stats").send(larder.admin()).await.expect(200).json();
        let upstreams = stats["upstreams"].as_array().unwrap().clone();
        let hub = upstreams
            .into_iter()
            .find(|upstream| upstream["name"] == "docker.io")
            .unwrap();
        pauses.push(
            hub["addresses"][0]["probe_seconds"]
                .as_u64()
                .unwrap_or_else(|| panic!("{hub}")),
        );
    }
    // 5 s, then 10 s, each spread by a fifth, in whole seconds; some of them have passed.
    assert!(pauses[0] <= 5 && pauses[1] >= 6, "{pauses:?}");
    stalls.open();
}

/// Verdicts and rate limits are never asked for twice.
#[tokio::test]
async fn verdicts_are_not_repeated() {
    let upstream = Upstream::start().await;
    let larder = Larder::start(&upstream, |_| {}).await;
    for (status, wanted) in [(404, 404), (403, 404), (400, 502), (501, 503), (429, 503)] {
        let digest = upstream.blob(REPO, 1_000);
        upstream.on(On::Blobs.get()).always().status(status);
        let answer = larder.get(blob(REPO, digest)).await;
        assert_eq!(answer.status, wanted, "{status}: {answer:?}");
        assert_eq!(upstream.count(On::Blob(digest)), 1, "{}", upstream.print());
        upstream.clear_script();
    }
}
