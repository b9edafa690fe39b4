//! Larders that lead in a circle, and others that only stand one behind another.

use std::time::{Duration, Instant};

use larder::oci::Digest;

use crate::support::client::{Ask, Response};
use crate::support::gate::Gate;
use crate::support::larder::{Larder, quick};
use crate::support::upstream::{Fault, Matcher, On, Upstream};
use crate::support::{blob, manifest};

const REPO: &str = "library/alpine";

async fn larder(upstream: &Upstream) -> Larder {
    Larder::start_timed(upstream, quick(), |_| {}).await
}

fn url(larder: &Larder) -> String {
    format!("http://{}", larder.registry())
}

fn lead_to(from: &mut Larder, to: String) {
    from.reload(|toml| {
        toml.upstream("docker.io", "url", to);
    })
    .unwrap();
}

/// Everything that a client can ask for.
fn asks(digest: &Digest) -> Vec<Ask> {
    vec![
        Ask::get(manifest(REPO, "1")),
        Ask::head(manifest(REPO, "1")),
        Ask::get(manifest(REPO, digest)),
        Ask::get(blob(REPO, digest)),
        Ask::head(blob(REPO, digest)),
        Ask::get(format!("/v2/{REPO}/tags/list")),
    ]
}

/// 508, and at once: without `Via` each of these waits for itself.
async fn goes_in_a_circle(larder: &Larder, ask: Ask) -> Response {
    let (begun, text) = (Instant::now(), format!("{ask:?}"));
    let response = ask.send(larder.registry()).await;
    assert_eq!(response.status, 508, "{text}: {response:?}");
    assert!(
        begun.elapsed() < Duration::from_secs(10),
        "{text}: {:?}",
        begun.elapsed()
    );
    if !response.body.is_empty() {
        assert_eq!(response.error_code(), "UNKNOWN");
        let message = response.json()["errors"][0]["message"].to_string();
        assert!(
            message.contains("docker.io: answered 508") && message.contains("this proxy itself"),
            "{message}"
        );
    }
    response
}

/// The names in the `Via` of a request that the upstream has seen.
fn via(upstream: &Upstream, of: impl Into<Matcher>) -> Vec<String> {
    let request = upstream.matching(of).pop().expect("a request");
    let text = request.header("via").expect("a Via").to_owned();
    text.split(", ").map(str::to_owned).collect()
}

#[tokio::test]
async fn a_larder_that_is_its_own_upstream() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[300_000]);
    let mut a = larder(&upstream).await;
    let own = url(&a);
    lead_to(&mut a, own);
    for ask in asks(&image.layers[0]) {
        goes_in_a_circle(&a, ask).await;
    }
    assert_eq!(upstream.requests().len(), 0, "{}", upstream.print());
    // Nothing of it is remembered.
    lead_to(&mut a, upstream.url());
    a.get(manifest(REPO, "1")).await.expect_content(&image.manifest);
    a.get(blob(REPO, image.layers[0]))
        .await
        .expect_content(&image.layers[0]);
}

#[tokio::test]
async fn larders_that_lead_to_each_other() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[300_000]);
    let [mut a, mut b, mut c] = [
        larder(&upstream).await,
        larder(&upstream).await,
        larder(&upstream).await,
    ];
    for to in [url(&a), url(&c)] {
        // a → b → a, then a → b → c → a.
        lead_to(&mut a, url(&b));
        lead_to(&mut b, to);
        let first = url(&a);
        lead_to(&mut c, first);
        for ask in asks(&image.layers[0]) {
            goes_in_a_circle(&a, ask.clone()).await;
            goes_in_a_circle(&b, ask).await;
        }
    }
    assert_eq!(upstream.requests().len(), 0, "{}", upstream.print());
    // Where the circle is broken all of them answer: nothing was kept of it.
    c.reload(|toml| {
        toml.upstream("docker.io", "url", upstream.url());
    })
    .unwrap();
    for larder in [&a, &b, &c] {
        larder.get(manifest(REPO, "1")).await.expect_content(&image.manifest);
        let layer = image.layers[0];
        larder.get(blob(REPO, layer)).await.expect_content(&layer);
    }
    assert_eq!(
        upstream.count(On::Blob(image.layers[0]).get()),
        1,
        "{}",
        upstream.print()
    );
}

/// Two that are each other's mirrors: what one lacks the other is asked for, and then the registry.
#[tokio::test]
async fn larders_that_are_mirrors_of_each_other() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[300_000]);
    let [mut a, mut b] = [larder(&upstream).await, larder(&upstream).await];
    let (at_a, at_b) = (url(&a), url(&b));
    for (larder, mirror) in [(&mut a, at_b), (&mut b, at_a)] {
        larder
            .reload(|toml| {
                toml.upstream("docker.io", "mirrors", vec![mirror]);
            })
            .unwrap();
    }
    let begun = Instant::now();
    let layer = image.layers[0];
    a.get(manifest(REPO, "1")).await.expect_content(&image.manifest);
    a.get(blob(REPO, layer)).await.expect_content(&layer);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    b.get(manifest(REPO, "1")).await.expect_content(&image.manifest);
    b.get(blob(REPO, layer)).await.expect_content(&layer);
    assert_eq!(upstream.count(On::Blob(layer).get()), 1, "{}", upstream.print());
}

/// What is held is no answer to a request that has come back: it would confirm itself.
#[tokio::test]
async fn what_came_back_is_not_answered_from_the_cache() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[1_000]);
    let a = larder(&upstream).await;
    a.get(manifest(REPO, "1")).await.expect_content(&image.manifest);
    let own = via(&upstream, On::Manifests);
    assert_eq!(own.len(), 1);
    for path in [manifest(REPO, "1"), "/v2/".to_owned(), "/v2/_catalog".to_owned()] {
        let ask = Ask::get(path).header("Via", &own[0]);
        let back = ask.send(a.registry()).await.expect(508);
        assert_eq!(back.error_code(), "UNKNOWN");
    }
    let others = Ask::get(manifest(REPO, "1")).header("Via", "1.1 larder-0123456789abcdef");
    others.send(a.registry()).await.expect_content(&image.manifest);
}

/// Names of Larders go on to the registry, behind them the own one; a client's proxies are none of its business.
#[tokio::test]
async fn a_chain_of_larders() {
    let upstream = Upstream::start().await;
    let cdn = upstream.start_cdn().await;
    let image = upstream.image(REPO, "1", &[300_000]);
    let layer = image.layers[0];
    upstream.redirect_blobs_to(&cdn);
    let (mut a, b) = (larder(&upstream).await, larder(&upstream).await);
    lead_to(&mut a, url(&b));
    for path in [manifest(REPO, "1"), blob(REPO, layer)] {
        let ask = Ask::get(path).header("Via", "1.1 proxy.corp.example (squid), 1.1 nginx");
        ask.send(a.registry()).await.expect(200);
    }
    for asked in [On::Manifests, On::Blob(layer)] {
        let names = via(&upstream, asked);
        assert_eq!(names.len(), 2, "{names:?}");
        assert!(names.iter().all(|name| name.starts_with("1.1 larder-")), "{names:?}");
        assert_ne!(names[0], names[1]);
    }
    // A store with signed addresses is asked as ever.
    let stored = cdn.matching(On::Storage).pop().expect("a request to the store");
    assert_eq!(stored.header("via"), None);
}

/// Anybody may write a name into a request: one that this proxy has not made up is no reason to refuse it, here or
/// behind.
#[tokio::test]
async fn forged_names_refuse_nobody() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[300_000]);
    let (mut a, b) = (larder(&upstream).await, larder(&upstream).await);
    lead_to(&mut a, url(&b));
    for forged in [15, 16, 200] {
        let through: Vec<String> = (0..forged).map(|n| format!("1.1 larder-{n:016x}")).collect();
        let ask = |path| Ask::get(path).header("Via", through.join(", "));
        upstream.forget();
        for (path, digest) in [
            (manifest(REPO, "1"), image.manifest),
            (blob(REPO, image.layers[0]), image.layers[0]),
        ] {
            ask(path).send(a.registry()).await.expect_content(&digest);
        }
        let tag = format!("{forged}");
        upstream.move_tag(REPO, &tag, &image.manifest);
        ask(manifest(REPO, &tag))
            .send(a.registry())
            .await
            .expect_content(&image.manifest);
        let names = via(&upstream, On::Manifest(tag));
        assert_eq!(names.len(), 16, "{names:?}");
        // A circle is found all the same: a request that was here is not taken for the number of names before.
        let own = &names[14];
        let back = Ask::get(manifest(REPO, forged)).header("Via", format!("{}, {own}", through.join(", ")));
        back.send(a.registry()).await.expect(508);
    }
}

/// Who joins a question that goes in a circle for somebody else asks once more.
#[tokio::test]
async fn a_circle_of_others_is_none_of_ours() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[300_000]);
    let layer = image.layers[0];
    let cases = [
        (manifest(REPO, "1"), On::Manifest("1".to_owned()), image.manifest),
        (blob(REPO, layer), On::Blob(layer), layer),
    ];
    for (path, asked, digest) in cases {
        let a = larder(&upstream).await;
        let gate = Gate::closed();
        let circle = Fault::Status {
            status: 508,
            headers: Vec::new(),
            body: Default::default(),
        };
        upstream
            .on(asked.get())
            .does([Fault::StallHeaders(gate.clone()), circle]);
        let began = Ask::get(&path).header("Via", "1.1 larder-0123456789abcdef");
        let began = tokio::spawn(began.send(a.registry()));
        gate.wait_for_arrivals(1).await;
        // A proxy of the client's own says nothing.
        let joined = Ask::get(&path).header("Via", "1.1 proxy.corp.example (squid)");
        let joined = tokio::spawn(joined.send(a.registry()));
        // Long enough to have joined; if it comes later it asks anew, and the test is only milder.
        tokio::time::sleep(Duration::from_millis(200)).await;
        gate.open();
        began.await.unwrap().expect(508);
        joined.await.unwrap().expect_content(&digest);
    }
}
