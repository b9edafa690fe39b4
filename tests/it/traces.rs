//! Traces: which spans a collector is told, whose children they are, and what is in none of them.

use crate::support::client::Ask;
use crate::support::collector::{CLIENT, Collector, INTERNAL, SERVER, Told};
use crate::support::gate::Gate;
use crate::support::larder::Larder;
use crate::support::toml::Toml;
use crate::support::upstream::{On, TokenPolicy, Upstream};
use crate::support::{blob, manifest, within};

const REPO: &str = "library/alpine";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const OTHER: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "00f067aa0ba902b7";

fn to(collector: &Collector) -> impl Fn(&mut Toml) {
    let endpoint = collector.endpoint();
    move |toml: &mut Toml| {
        toml.set(&["traces"], "endpoint", endpoint.as_str());
    }
}

/// A request of a client that records this trace, or does not.
fn ask(path: &str, trace: &str, flags: &str) -> Ask {
    Ask::get(path).header("traceparent", format!("00-{trace}-{SPAN}-{flags}"))
}

#[track_caller]
fn one<'a>(spans: &'a [Told], what: &str, fits: impl Fn(&Told) -> bool) -> &'a Told {
    let found: Vec<&Told> = spans.iter().filter(|span| fits(span)).collect();
    assert_eq!(found.len(), 1, "{what}: {spans:#?}");
    found[0]
}

fn named(name: &'static str) -> impl Fn(&Told) -> bool {
    move |span| span.name == name
}

/// The whole tree of a cold blob behind a token and a redirect with a signature, in the client's trace, without a secret.
#[tokio::test]
async fn a_cold_blob_is_told_from_the_client_to_the_storage() {
    let (upstream, collector) = (Upstream::start().await, Collector::start().await);
    upstream.require_token(TokenPolicy::new().credentials("me", "hunter2-password"));
    let digest = upstream.blob(REPO, 300_000);
    let cdn = upstream.start_cdn().await;
    upstream.redirect_blobs_to(&cdn);
    let larder = Larder::start(&upstream, |toml| {
        to(&collector)(toml);
        toml.upstream("docker.io", "username", "me");
        toml.upstream("docker.io", "password", "hunter2-password");
        toml.set(&["traces"], "headers", "x-key=collector-secret");
        toml.set(&["traces"], "resource", vec!["deployment.environment.name=test"]);
        toml.everybody_may_pull();
    })
    .await;
    let path = format!("{}?ns=docker.io&secret=in-query", blob(REPO, digest));
    let request = ask(&path, TRACE, "01")
        .header("tracestate", "vendor=opaque")
        .header("authorization", "Basic Y2xpZW50OnNlY3JldA==")
        .header("user-agent", "containerd/2.1");
    request.send(larder.registry()).await.expect_content(&digest);
    larder.until_idle().await;
    let spans = collector
        .until("the transfer", |spans| {
            spans.iter().any(named("transfer")) && spans.iter().any(|span| span.kind == SERVER)
        })
        .await;
    assert!(
        spans
            .iter()
            .all(|span| span.trace == TRACE && span.state == "vendor=opaque"),
        "{spans:#?}"
    );
    assert!(spans.iter().all(|span| span.end >= span.start && span.start > 0));

    let server = one(&spans, "the request", |span| span.kind == SERVER);
    assert_eq!(server.name, "GET /v2/{name}/blobs/{digest}");
    assert_eq!((server.parent.as_str(), server.flags), (SPAN, 0x301));
    for (key, value) in [
        ("http.request.method", "GET"),
        ("http.route", "/v2/{name}/blobs/{digest}"),
        ("http.response.status_code", "200"),
        ("http.response.body.size", "300000"),
        ("url.path", &blob(REPO, digest)),
        ("url.scheme", "http"),
        ("server.address", "127.0.0.1"),
        ("client.address", "127.0.0.1"),
        ("network.protocol.version", "1.1"),
        ("user_agent.original", "containerd/2.1"),
        ("larder.cache", "miss"),
        ("larder.upstream", "docker.io"),
        ("larder.repository", "docker.io/library/alpine"),
        ("larder.reference", &digest.to_string()),
        ("larder.ended", "complete"),
    ] {
        assert_eq!(server.get(key), value, "{key}: {server:#?}");
    }
    assert!(!server.is_error);

    let transfer = one(&spans, "the transfer", named("transfer"));
    assert_eq!(
        (&transfer.parent, transfer.kind, transfer.get("larder.bytes")),
        (&server.id, INTERNAL, "300000")
    );
    for step in ["verify", "commit"] {
        assert_eq!(one(&spans, step, named(step)).parent, transfer.id);
    }
    let exchanges: Vec<&Told> = spans.iter().filter(|span| span.kind == CLIENT).collect();
    let told: Vec<(&str, &str)> = exchanges
        .iter()
        .map(|span| (span.get("url.full"), span.get("http.response.status_code")))
        .collect();
    let (at, token) = (
        format!("{}{}", upstream.url(), blob(REPO, digest)),
        format!("{}/token", upstream.url()),
    );
    let storage = format!("{}/storage/{digest}", cdn.url());
    for wanted in [(at.as_str(), "401"), (&token, "200"), (&at, "307"), (&storage, "200")] {
        assert!(told.contains(&wanted), "{wanted:?}: {told:?}");
    }
    assert!(
        exchanges
            .iter()
            .all(|span| span.parent == transfer.id && span.name == "GET" && !span.is_error)
    );
    let body = one(&spans, "the storage", |span| span.get("url.full") == storage);
    assert_eq!(body.get("http.response.body.size"), "300000");

    let all = format!("{spans:?}");
    let issued = upstream.matching(On::Blobs.authorized());
    let bearer = issued[0]
        .header("authorization")
        .unwrap()
        .trim_start_matches("Bearer ")
        .to_owned();
    for secret in [
        "hunter2",
        "signed-secret",
        "X-Signature",
        "in-query",
        "Y2xpZW50",
        "scope",
        "collector-secret",
        &bearer,
    ] {
        assert!(!all.contains(secret), "{secret} is in {all}");
    }
    assert!(
        upstream
            .requests()
            .iter()
            .all(|request| request.header("traceparent").is_none()),
        "{}",
        upstream.print()
    );
    let resource = collector.resource();
    assert_eq!(resource["service.name"], "larder");
    assert_eq!(resource["deployment.environment.name"], "test");
    let heads = collector.heads().join("\n").to_lowercase();
    assert!(
        heads.contains("post /v1/traces") && heads.contains("x-key: collector-secret"),
        "{heads}"
    );
    assert!(heads.contains("application/x-protobuf"), "{heads}");
}

/// L1: who follows somebody else's transfer waits in a trace of his own, with a link to where the work is told.
#[tokio::test]
async fn who_follows_a_transfer_links_to_it() {
    let (upstream, collector) = (Upstream::start().await, Collector::start().await);
    let digest = upstream.blob(REPO, 300_000);
    let gate = Gate::closed();
    upstream.on(On::Blob(digest).get()).stall_after(200_000, &gate);
    let larder = Larder::start(&upstream, to(&collector)).await;
    let path = blob(REPO, digest);
    let mut first = ask(&path, TRACE, "01").open(larder.registry()).await;
    first.read_at_least(1000).await;
    let second = ask(&path, OTHER, "01").open(larder.registry()).await;
    gate.open();
    first.rest().await.expect_content(&digest);
    second.rest().await.expect_content(&digest);
    larder.until_idle().await;
    let wanted = |spans: &[Told]| {
        spans.iter().any(named("transfer")) && spans.iter().filter(|span| span.kind == SERVER).count() == 2
    };
    let spans = collector.until("both requests and the transfer", wanted).await;
    let transfer = one(&spans, "the transfer", named("transfer"));
    let wait = one(&spans, "the wait", named("wait for transfer"));
    let follower = one(&spans, "the follower", |span| {
        span.kind == SERVER && span.trace == OTHER
    });
    assert_eq!((&transfer.trace[..], &wait.trace[..]), (TRACE, OTHER));
    assert_eq!(wait.parent, follower.id);
    assert_eq!(wait.links, [(transfer.trace.clone(), transfer.id.clone())]);
    assert_eq!(follower.get("larder.cache"), "collapsed");
    assert_eq!(spans.iter().filter(|span| span.kind == CLIENT).count(), 1, "{spans:#?}");
}

/// L4: both upstream answers are told, the first as cut and the second with its Range.
#[tokio::test]
async fn a_mended_cut_shows_both_answers() {
    let (upstream, collector) = (Upstream::start().await, Collector::start().await);
    let digest = upstream.blob(REPO, 1_000_000);
    upstream.on(On::Blob(digest).whole()).cut_after(400_000);
    let larder = Larder::start(&upstream, to(&collector)).await;
    ask(&blob(REPO, digest), TRACE, "01")
        .send(larder.registry())
        .await
        .expect_content(&digest);
    larder.until_idle().await;
    let spans = collector
        .until("the transfer", |spans| spans.iter().any(named("transfer")))
        .await;
    let transfer = one(&spans, "the transfer", named("transfer"));
    assert!(
        !transfer.is_error && transfer.get("larder.bytes") == "1000000",
        "{transfer:#?}"
    );
    let first = one(&spans, "the first answer", |span| {
        span.kind == CLIENT && span.get("larder.range").is_empty()
    });
    assert!(first.is_error && first.get("error.type") == "cut", "{first:#?}");
    let second = one(&spans, "the second", |span| {
        span.kind == CLIENT && span.get("larder.range").starts_with("bytes=")
    });
    assert_eq!(second.get("http.response.status_code"), "206");
    let bytes = |span: &Told| span.get("http.response.body.size").parse::<u64>().unwrap();
    assert_eq!(bytes(first) + bytes(second), 1_000_000);
}

#[tokio::test]
async fn misses_and_stale_answers() {
    let (upstream, collector) = (Upstream::start().await, Collector::start().await);
    let image = upstream.image(REPO, "1", &[1000]);
    let larder = Larder::start(&upstream, |toml| {
        to(&collector)(toml);
        toml.cache("tag_ttl", "0s");
    })
    .await;
    larder.get(manifest(REPO, "1")).await.expect_content(&image.manifest);
    ask(&manifest(REPO, "absent"), OTHER, "01")
        .send(larder.registry())
        .await
        .expect(404);
    upstream.on(On::Manifests).always().status(503);
    ask(&manifest(REPO, "1"), TRACE, "01")
        .send(larder.registry())
        .await
        .expect_content(&image.manifest);
    let spans = collector.until_answered(3).await;
    let absent = one(&spans, "the miss", |span| span.kind == SERVER && span.trace == OTHER);
    assert_eq!(absent.get("http.response.status_code"), "404");
    assert!(
        !absent.is_error,
        "a client's mistake is no failure of the server: {absent:#?}"
    );
    let asked: Vec<&Told> = spans
        .iter()
        .filter(|span| span.kind == CLIENT && span.trace == OTHER)
        .collect();
    assert!(
        asked
            .iter()
            .any(|span| span.is_error && span.get("http.response.status_code") == "404"),
        "{asked:#?}"
    );
    let stale = one(&spans, "the stale answer", |span| {
        span.kind == SERVER && span.trace == TRACE
    });
    assert_eq!(
        (stale.get("larder.cache"), stale.get("larder.reference")),
        ("stale", "1")
    );
    // The first had no traceparent: it is the beginning of a trace.
    let root = one(&spans, "the first", |span| {
        span.kind == SERVER && span.get("larder.cache") == "miss"
    });
    assert!(
        root.parent.is_empty() && root.trace != TRACE && root.trace.len() == 32,
        "{root:#?}"
    );
}

/// L2: what was cut short on our side is an error, whatever its status said.
#[tokio::test]
async fn a_broken_answer_is_an_error() {
    let (upstream, collector) = (Upstream::start().await, Collector::start().await);
    let digest = upstream.blob(REPO, 300_000);
    upstream.on(On::Blob(digest).get()).always().flip_byte(150_000);
    let larder = Larder::start(&upstream, to(&collector)).await;
    let response = ask(&blob(REPO, digest), TRACE, "01").send(larder.registry()).await;
    assert!(!response.is_complete());
    larder.until_idle().await;
    let wanted = |spans: &[Told]| spans.iter().any(named("transfer")) && spans.iter().any(|span| span.kind == SERVER);
    let spans = collector.until("the request and the transfer", wanted).await;
    let server = one(&spans, "the request", |span| span.kind == SERVER);
    assert!(server.is_error && server.get("larder.ended") == "broken", "{server:#?}");
    assert_eq!(server.get("http.response.status_code"), "200");
    assert!(one(&spans, "the check", named("verify")).is_error);
    assert!(one(&spans, "the transfer", named("transfer")).is_error);
}

/// Hot answers are told too, and one whose client does not record costs no message.
#[tokio::test]
async fn the_clients_word_counts() {
    let (upstream, collector) = (Upstream::start().await, Collector::start().await);
    let image = upstream.image(REPO, "1", &[1000]);
    let larder = Larder::start(&upstream, |toml| {
        to(&collector)(toml);
        toml.set(&["traces"], "sample", 0.0);
    })
    .await;
    let path = manifest(REPO, "1");
    larder.get(&path).await.expect(200);
    ask(&path, OTHER, "00").send(larder.registry()).await.expect(200);
    for bad in ["garbage", &format!("00-{TRACE}-{SPAN}-01-more"), ""] {
        let ask = Ask::get(&path).header("traceparent", bad);
        ask.send(larder.registry()).await.expect_content(&image.manifest);
    }
    let twice = ask(&path, OTHER, "01").header("traceparent", format!("00-{OTHER}-{SPAN}-01"));
    twice.send(larder.registry()).await.expect(200);
    ask(&path, TRACE, "01").send(larder.registry()).await.expect(200);
    let head = Ask::head(&path).header("traceparent", format!("00-{TRACE}-{SPAN}-01"));
    head.send(larder.registry()).await.expect(200);
    larder.stop().await;
    let spans = collector.spans();
    let mut told: Vec<(&str, &str)> = spans
        .iter()
        .map(|span| (span.name.as_str(), span.get("larder.cache")))
        .collect();
    told.sort_unstable();
    let route = "/v2/{name}/manifests/{reference}";
    let (get, head) = (format!("GET {route}"), format!("HEAD {route}"));
    assert_eq!(told, [(get.as_str(), "hit"), (head.as_str(), "hit")], "{spans:#?}");
    assert!(spans.iter().all(|span| span.trace == TRACE && span.parent == SPAN));
}

/// Upstreams hear of it where the operator says so; a storage that only the upstream named never does (L10).
#[tokio::test]
async fn upstreams_are_told_if_that_is_wanted() {
    let (upstream, collector) = (Upstream::start().await, Collector::start().await);
    let digest = upstream.blob(REPO, 100_000);
    let cdn = upstream.start_cdn().await;
    upstream.redirect_blobs_to(&cdn);
    let larder = Larder::start(&upstream, |toml| {
        to(&collector)(toml);
        toml.set(&["traces"], "propagate", true);
    })
    .await;
    let request = ask(&blob(REPO, digest), TRACE, "01").header("tracestate", "a=b");
    request.send(larder.registry()).await.expect_content(&digest);
    larder.until_idle().await;
    let spans = collector
        .until("the transfer", |spans| spans.iter().any(named("transfer")))
        .await;
    let asked = &upstream.matching(On::Blobs.get())[0];
    let exchange = one(&spans, "the redirect", |span| {
        span.get("http.response.status_code") == "307"
    });
    assert_eq!(
        asked.header("traceparent").unwrap(),
        format!("00-{TRACE}-{}-01", exchange.id)
    );
    assert_eq!(asked.header("tracestate"), Some("a=b"));
    assert!(
        cdn.requests()
            .iter()
            .all(|request| request.header("traceparent").is_none()),
        "{}",
        cdn.print()
    );
}

/// A collector that is gone, or refuses, is no reason for anything: pulls go on, and so does the stop.
#[tokio::test]
async fn a_dead_collector_costs_only_its_spans() {
    let (upstream, collector) = (Upstream::start().await, Collector::start().await);
    collector.answers(400);
    let digest = upstream.blob(REPO, 100_000);
    let larder = Larder::start(&upstream, to(&collector)).await;
    larder.get(blob(REPO, digest)).await.expect_content(&digest);
    within("the collector to be tried", async {
        while collector.heads().is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    })
    .await;
    drop(collector);
    for _ in 0..20 {
        larder.get(blob(REPO, digest)).await.expect_content(&digest);
    }
    within("the drops to be counted", async {
        while !larder
            .metrics()
            .await
            .contains("larder_traces_dropped_total{reason=\"failed\"}")
        {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    })
    .await;
    larder.stop().await;
}

/// Without a collector's name there is none, whatever else is said.
#[tokio::test]
async fn nobody_is_told_where_nobody_is_named() {
    let (upstream, collector) = (Upstream::start().await, Collector::start().await);
    let digest = upstream.blob(REPO, 100_000);
    let larder = Larder::start(&upstream, |toml| {
        to(&collector)(toml);
        toml.set(&["traces"], "propagate", true);
        toml.unset(&["traces"], "endpoint");
    })
    .await;
    let request = ask(&blob(REPO, digest), TRACE, "01");
    request.send(larder.registry()).await.expect_content(&digest);
    larder.stop().await;
    assert!(collector.heads().is_empty());
    assert!(
        upstream
            .requests()
            .iter()
            .all(|request| request.header("traceparent").is_none())
    );
}
