//! Upstreams that take longer to begin an answer than clients wait: who waits is told to come back, what was asked goes on,
//! and whoever comes next gets it, for one request to the upstream.

use std::time::{Duration, Instant};

use larder::pull::Timing;
use serde_json::json;

use crate::support::client::{Ask, Response};
use crate::support::gate::Gate;
use crate::support::larder::{Larder, quick};
use crate::support::upstream::{Fault, Matcher, On, Upstream};
use crate::support::{blob, manifest, within};

const REPO: &str = "library/alpine";
const WAIT: Duration = Duration::from_millis(200);

fn impatient() -> Timing {
    Timing {
        client_wait: WAIT,
        ..quick()
    }
}

/// Asks as a client does that is told to come back.
async fn told_to_come_back(larder: &Larder, ask: &Ask) {
    let begun = Instant::now();
    let late = ask.clone().send(larder.registry()).await.expect(503);
    assert_eq!(late.header("retry-after"), Some("5"), "{late:?}");
    let took = begun.elapsed();
    assert!(took >= WAIT && took < Duration::from_secs(15), "it waited {took:?}");
    if !late.body.is_empty() {
        assert_eq!(late.error_code(), "UNAVAILABLE");
        let message = late.json()["errors"][0]["message"].as_str().unwrap().to_owned();
        assert!(
            message.contains("docker.io has not answered for") && message.contains("the request goes on"),
            "{message}"
        );
    }
}

/// Comes back until there is an answer.
async fn answered(larder: &Larder, ask: &Ask) -> Response {
    within("an answer", async {
        loop {
            let response = ask.clone().send(larder.registry()).await;
            if response.status != 503 {
                return response;
            }
        }
    })
    .await
}

/// One request for all who ask, whatever they ask for. A second one would never be answered.
#[tokio::test]
async fn whoever_comes_back_gets_what_others_waited_for() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[300_000, 1_000]);
    let [large, small] = image.layers[..] else {
        panic!("two layers")
    };
    upstream.artifact(REPO, image.manifest, "application/x.signature");
    let digest = image.manifest.to_string();
    let by_digest = || Matcher::from(On::Manifest(digest.clone()));
    let cases: [(Ask, Matcher); 9] = [
        (Ask::get(blob(REPO, large)), On::Blob(large).get()),
        (Ask::get(blob(REPO, small)), On::Blob(small).get()),
        (Ask::head(blob(REPO, large)), On::Blob(large).head()),
        (Ask::get(manifest(REPO, "1")), On::Manifest("1".to_owned()).get()),
        (Ask::head(manifest(REPO, "1")), On::Manifest("1".to_owned()).head()),
        (Ask::get(manifest(REPO, &digest)), by_digest().get()),
        (Ask::head(manifest(REPO, &digest)), by_digest().head()),
        (Ask::get(format!("/v2/{REPO}/tags/list")), On::Tags.get()),
        (Ask::get(format!("/v2/{REPO}/referrers/{digest}")), On::Referrers.get()),
    ];
    for (ask, asked) in cases {
        let larder = Larder::start_timed(&upstream, impatient(), |_| {}).await;
        upstream.forget();
        let gate = Gate::closed();
        upstream.on(asked.clone()).always().stall_headers(&gate);
        for _ in 0..3 {
            told_to_come_back(&larder, &ask).await;
        }
        assert_eq!(upstream.count(asked.clone()), 1, "{}", upstream.print());
        gate.let_through(1);
        let response = answered(&larder, &ask).await.expect(200);
        let again = ask.clone().send(larder.registry()).await.expect(200);
        assert_eq!(response.body, again.body);
        assert_eq!(upstream.count(asked), 1, "{}", upstream.print());
        gate.open();
        upstream.clear_script();
    }
}

/// A verdict is one also if nobody is there to hear it.
#[tokio::test]
async fn what_is_not_there_is_not_asked_for_without_end() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[300_000]);
    let digest = image.layers[0];
    let cases: [(Ask, Matcher); 4] = [
        (Ask::get(blob(REPO, digest)), On::Blob(digest).get()),
        (Ask::head(blob(REPO, digest)), On::Blob(digest).head()),
        (Ask::get(manifest(REPO, "1")), On::Manifest("1".to_owned()).get()),
        (Ask::get(format!("/v2/{REPO}/tags/list")), On::Tags.get()),
    ];
    for (n, (ask, asked)) in cases.into_iter().enumerate() {
        let larder = Larder::start_timed(&upstream, impatient(), |_| {}).await;
        upstream.forget();
        let gate = Gate::closed();
        let gone = Fault::Status {
            status: 404,
            headers: Vec::new(),
            body: Default::default(),
        };
        let rule = upstream.on(asked.clone()).always();
        rule.does([Fault::StallHeaders(gate.clone()), gone]);
        if n == 1 {
            // A HEAD's 404 alone is no verdict.
            upstream.on(On::Blob(digest).get()).always().status(404);
        }
        told_to_come_back(&larder, &ask).await;
        gate.let_through(1);
        answered(&larder, &ask).await.expect(404);
        // A client may have come between a transfer's end and its verdict being noted.
        assert!(upstream.count(asked) <= 2, "{}", upstream.print());
        gate.open();
        upstream.clear_script();
    }
}

/// The bar, ten times as fast: a header after 2.5 s, clients that wait 2 s, one that asks every 100 ms.
#[tokio::test]
async fn asked_again_and_again() {
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, 1_000_000);
    let timing = Timing {
        client_wait: Duration::from_secs(2),
        ..quick()
    };
    let larder = Larder::start_timed(&upstream, timing, |_| {}).await;
    let gate = Gate::closed();
    upstream.on(On::Blob(digest).get()).always().stall_headers(&gate);
    let clients = (0..30).map(|n: u32| {
        let (ask, to) = (Ask::get(blob(REPO, digest)), larder.registry());
        tokio::spawn(async move {
            tokio::time::sleep(n * Duration::from_millis(100)).await;
            let begun = Instant::now();
            let response = ask.send(to).await;
            (n, response, begun.elapsed())
        })
    });
    let clients: Vec<_> = clients.collect();
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    gate.let_through(1);
    let mut served = 0;
    for client in clients {
        let (n, response, took) = client.await.unwrap();
        assert!(took < Duration::from_secs(10), "client {n} waited {took:?}");
        match response.status {
            503 => assert!(n < 25, "client {n} came after the header: {response:?}"),
            _ => {
                response.expect_content(&digest);
                served += 1;
            }
        }
    }
    assert!(served >= 5, "{served}");
    assert_eq!(upstream.count(On::Blob(digest)), 1, "{}", upstream.print());
    gate.open();
}

/// The answer comes when nobody is left: a blob up to a size is finished all the same.
#[tokio::test]
async fn a_late_blob_is_finished_for_who_comes_back() {
    let upstream = Upstream::start().await;
    for (limit, is_kept) in [(1_000_000, true), (999_999, false)] {
        let digest = upstream.blob(REPO, 1_000_000);
        let timing = Timing {
            grace: Duration::from_millis(1),
            finish_bytes: 0,
            late_grace: Duration::from_millis(1),
            late_finish_bytes: limit,
            ..impatient()
        };
        let larder = Larder::start_timed(&upstream, timing, |_| {}).await;
        let (head, body) = (Gate::closed(), Gate::closed());
        let faults = [
            Fault::StallHeaders(head.clone()),
            Fault::StallAfter(100_000, body.clone()),
        ];
        upstream.on(On::Blob(digest).get()).does(faults);
        told_to_come_back(&larder, &Ask::get(blob(REPO, digest))).await;
        head.open();
        upstream.wait_until_sent(&digest, 100_000).await;
        if is_kept {
            // Far more than both graces.
            tokio::time::sleep(Duration::from_millis(200)).await;
            body.open();
            larder.until_idle().await;
            assert_eq!(larder.store().size(&digest), Some(1_000_000));
        } else {
            larder.until_idle().await;
            assert_eq!(larder.store().size(&digest), None);
            body.open();
        }
        larder.get(blob(REPO, digest)).await.expect_content(&digest);
    }
}

/// A larger one is kept running for longer than one that was answered in time.
#[tokio::test]
async fn a_large_late_blob_waits_for_who_comes_back() {
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, 3_000_000);
    let timing = Timing {
        grace: Duration::from_millis(1),
        finish_bytes: 0,
        late_finish_bytes: 0,
        ..impatient()
    };
    let larder = Larder::start_timed(&upstream, timing, |_| {}).await;
    let (head, body) = (Gate::closed(), Gate::closed());
    let faults = [
        Fault::StallHeaders(head.clone()),
        Fault::StallAfter(1_000_000, body.clone()),
    ];
    upstream.on(On::Blob(digest).get()).does(faults);
    told_to_come_back(&larder, &Ask::get(blob(REPO, digest))).await;
    head.open();
    upstream.wait_until_sent(&digest, 1_000_000).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut back = Ask::get(blob(REPO, digest)).open(larder.registry()).await;
    assert!(back.read_at_least(500_000).await.len() >= 500_000);
    body.open();
    back.rest().await.expect_content(&digest);
    assert_eq!(upstream.count(On::Blob(digest)), 1, "{}", upstream.print());
}

/// What nobody waits for is not given up before it is answered.
#[tokio::test]
async fn who_leaves_takes_no_question_along() {
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, 300_000);
    let timing = Timing {
        grace: Duration::from_millis(1),
        ..quick()
    };
    let larder = Larder::start_timed(&upstream, timing, |_| {}).await;
    let gate = Gate::closed();
    upstream.on(On::Blob(digest).get()).always().stall_headers(&gate);
    let client = tokio::spawn(Ask::get(blob(REPO, digest)).send(larder.registry()));
    upstream.wait_for(On::Blob(digest), 1).await;
    client.abort();
    let _ = client.await;
    // Time enough to give it up; if that comes later the test is only milder.
    tokio::time::sleep(Duration::from_millis(300)).await;
    gate.let_through(1);
    larder.get(blob(REPO, digest)).await.expect_content(&digest);
    assert_eq!(upstream.count(On::Blob(digest)), 1, "{}", upstream.print());
    gate.open();
}

/// What the cache has no room for does not go by while nobody is there.
#[tokio::test]
async fn a_late_blob_that_passes_through_waits_too() {
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, 24 << 20);
    let larder = Larder::start_timed(&upstream, impatient(), |toml| {
        toml.cache("max_size", "4MiB");
    })
    .await;
    let gate = Gate::closed();
    upstream.on(On::Blob(digest).get()).always().stall_headers(&gate);
    told_to_come_back(&larder, &Ask::get(blob(REPO, digest))).await;
    gate.let_through(1);
    // More than its window takes: the socket's buffers have the rest.
    upstream.wait_until_sent(&digest, 16 << 20).await;
    // Time enough to go by, for what nobody keeps from it.
    tokio::time::sleep(Duration::from_millis(300)).await;
    answered(&larder, &Ask::get(blob(REPO, digest)))
        .await
        .expect_content(&digest);
    assert_eq!(upstream.count(On::Blob(digest)), 1, "{}", upstream.print());
    gate.open();
}

/// L4: a connection that hangs while responses run is not given as long as one that nobody has seen a byte of.
#[tokio::test]
async fn a_resumption_that_hangs_is_asked_again() {
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, 1_000_000);
    let larder = Larder::start_timed(&upstream, impatient(), |_| {}).await;
    upstream.on(On::Blob(digest).whole()).cut_after(400_000);
    upstream.on(On::Blob(digest).ranged()).hang_connection();
    larder.get(blob(REPO, digest)).await.expect_content(&digest);
    assert_eq!(upstream.count(On::Blob(digest).ranged()), 2, "{}", upstream.print());
}

/// And the one that this upstream needs is given to it.
#[tokio::test]
async fn a_resumption_may_take_as_long_as_the_answer_did() {
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, 1_000_000);
    let larder = Larder::start_timed(&upstream, impatient(), |_| {}).await;
    let late = Fault::Delay(WAIT * 4);
    let first = upstream.on(On::Blob(digest).whole());
    first.does([late.clone(), Fault::CutAfter(400_000)]);
    upstream.on(On::Blob(digest).ranged()).always().does([late]);
    answered(&larder, &Ask::get(blob(REPO, digest)))
        .await
        .expect_content(&digest);
    assert_eq!(upstream.count(On::Blob(digest)), 2, "{}", upstream.print());
}

/// Where it is not known yet whether anybody may have it: told to come back, not refused.
#[tokio::test]
async fn who_may_is_found_out_late() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[1_000]);
    let larder = Larder::start_timed(&upstream, impatient(), |toml| {
        toml.upstream("docker.io", "username", "user");
        toml.upstream("docker.io", "password", "hunter2");
    })
    .await;
    let probe = On::Manifests.head().unauthorized();
    let gate = Gate::closed();
    upstream.on(probe.clone()).always().stall_headers(&gate);
    let ask = Ask::get(manifest(REPO, "1"));
    for _ in 0..2 {
        told_to_come_back(&larder, &ask).await;
    }
    gate.let_through(1);
    answered(&larder, &ask).await.expect_content(&image.manifest);
    assert_eq!(upstream.count(probe), 1, "{}", upstream.print());
    gate.open();
}

/// Jobs wait for as long as the upstream may take; an operator who waits is told like a client.
#[tokio::test]
async fn jobs_wait_and_operators_do_not() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[300_000]);
    let larder = Larder::start_timed(&upstream, impatient(), |_| {}).await;
    let gate = Gate::closed();
    upstream.on(On::Any).always().stall_headers(&gate);
    let call = |path: &str, body: serde_json::Value| {
        Ask::new("POST", format!("/api/v1/{path}"))
            .header("content-type", "application/json")
            .body(body.to_string())
            .send(larder.admin())
    };
    let refused = call("refresh", json!({"image": "alpine:1"})).await;
    assert!(refused.status >= 500, "{refused:?}");
    assert!(
        String::from_utf8_lossy(&refused.body).contains("has not answered for"),
        "{refused:?}"
    );
    let fetching = super::prefetch::run(&larder, json!({"images": ["alpine:1"], "referrers": false}));
    let opening = async {
        // The job joins what the operator asked.
        tokio::time::sleep(WAIT * 3).await;
        gate.open();
    };
    let (view, ()) = tokio::join!(fetching, opening);
    assert_eq!(view["state"], "done", "{view:#}");
    upstream.clear_script();
    upstream.forget();
    for digest in image.blobs() {
        larder.get(blob(REPO, digest)).await.expect_content(&digest);
    }
    assert_eq!(upstream.requests().len(), 0, "{}", upstream.print());
}

/// `answer_timeout` ends it.
#[tokio::test]
async fn an_answer_may_take_only_so_long() {
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, 1_000);
    let timing = Timing {
        client_wait: Duration::from_secs(20),
        ..quick()
    };
    let larder = Larder::start_timed(&upstream, timing, |toml| {
        toml.upstream("docker.io", "answer_timeout", "300ms");
    })
    .await;
    let hung = upstream.on(On::Any).always().hang_connection();
    for path in [blob(REPO, digest), manifest(REPO, "1")] {
        larder.get(path).await.expect(504);
    }
    hung.remove();
    larder.get(blob(REPO, digest)).await.expect_content(&digest);
}

/// `max_connections` and a registry that hangs: what only waits for a connection is given up when nobody waits for it.
/// Else each client that left would leave a transfer behind.
#[tokio::test]
async fn who_leaves_the_queue_is_forgotten() {
    let upstream = Upstream::start().await;
    let blobs: Vec<_> = (0..20).map(|_| upstream.blob(REPO, 300_000)).collect();
    let timing = Timing {
        grace: Duration::from_millis(50),
        ..quick()
    };
    let larder = Larder::start_timed(&upstream, timing, |toml| {
        toml.upstream("docker.io", "max_connections", 1);
    })
    .await;
    let gate = Gate::closed();
    upstream.on(On::Blobs).always().stall_headers(&gate);
    let clients: Vec<_> = blobs
        .iter()
        .map(|digest| tokio::spawn(Ask::get(blob(REPO, digest)).send(larder.registry())))
        .collect();
    within("all transfers to begin", async {
        while larder.transfers() < blobs.len() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    upstream.wait_for(On::Blobs, 1).await;
    clients.iter().for_each(|client| client.abort());
    within("the queue to be empty", async {
        while larder.transfers() > 1 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    // The one that was asked for is answered to whoever comes.
    assert_eq!((larder.transfers(), upstream.count(On::Blobs)), (1, 1));
    gate.open();
    for digest in &blobs {
        larder.get(blob(REPO, digest)).await.expect_content(digest);
    }
    assert_eq!(upstream.count(On::Blobs), blobs.len(), "{}", upstream.print());
}

/// A blob that a client was told to come back for stays in the queue as long as the client has to come back, and no
/// longer.
#[tokio::test]
async fn what_was_promised_stays_in_the_queue() {
    let upstream = Upstream::start().await;
    for (late_grace, stay) in [(Duration::from_secs(3600), 3), (Duration::from_millis(50), 1)] {
        let blobs: Vec<_> = (0..3).map(|_| upstream.blob(REPO, 300_000)).collect();
        let timing = Timing {
            grace: Duration::from_millis(1),
            late_grace,
            ..impatient()
        };
        let larder = Larder::start_timed(&upstream, timing, |toml| {
            toml.upstream("docker.io", "max_connections", 1);
        })
        .await;
        let gate = Gate::closed();
        let rule = upstream.on(On::Blobs).always().stall_headers(&gate);
        let asks: Vec<_> = blobs.iter().map(|digest| Ask::get(blob(REPO, digest))).collect();
        futures_util::future::join_all(asks.iter().map(|ask| told_to_come_back(&larder, ask))).await;
        match stay {
            1 => {
                within("the queue to be empty", async {
                    while larder.transfers() > 1 {
                        tokio::time::sleep(Duration::from_millis(2)).await;
                    }
                })
                .await;
            }
            // Far more than the grace of what nobody was promised.
            _ => tokio::time::sleep(Duration::from_millis(300)).await,
        }
        assert_eq!(larder.transfers(), stay);
        gate.open();
        rule.remove();
        for (ask, digest) in asks.iter().zip(&blobs) {
            answered(&larder, ask).await.expect_content(digest);
        }
    }
}

/// A client's wait ends for good: also where the bytes that came meanwhile were wrong, and the registry is asked for
/// others.
#[tokio::test]
async fn what_is_asked_for_again_is_not_waited_for() {
    let (mirror, upstream) = (Upstream::start().await, Upstream::start().await);
    let digest = upstream.blob(REPO, 20_000);
    mirror.put_blob(REPO, upstream.bytes(&digest));
    let larder = Larder::start_timed(&upstream, impatient(), |toml| {
        toml.upstream("docker.io", "mirrors", vec![mirror.url()]);
    })
    .await;
    let (body, head) = (Gate::closed(), Gate::closed());
    let wrong = vec![7; 20_000];
    mirror
        .on(On::Blob(digest).get())
        .always()
        .does([Fault::WrongBytes(wrong.into()), Fault::StallAfter(1_000, body.clone())]);
    upstream.on(On::Blob(digest).get()).always().stall_headers(&head);
    let ask = Ask::get(blob(REPO, digest));
    let client = tokio::spawn({
        let (ask, to) = (ask.clone(), larder.registry());
        async move { ask.send(to).await }
    });
    body.wait_for_arrivals(1).await;
    // Its wait is over, and bytes are coming.
    tokio::time::sleep(WAIT * 2).await;
    assert!(!client.is_finished());
    body.open();
    upstream.wait_for(On::Blob(digest).get(), 1).await;
    let late = within("the client to be told", client).await.unwrap().expect(503);
    assert_eq!(late.header("retry-after"), Some("5"), "{late:?}");
    head.open();
    answered(&larder, &ask).await.expect_content(&digest);
    assert_eq!(upstream.count(On::Blob(digest).get()), 1, "{}", upstream.print());
}

/// An operator who asks for a tag's truth gets what the registry says now, and not what came late and is kept for a
/// moment.
#[tokio::test]
async fn a_refresh_asks_anew() {
    let upstream = Upstream::start().await;
    let old = upstream.image(REPO, "1", &[1_000]);
    let new = upstream.image(REPO, "2", &[2_000]);
    let larder = Larder::start_timed(&upstream, impatient(), |_| {}).await;
    let gate = Gate::closed();
    let tag = || Matcher::from(On::Manifest("1".to_owned()));
    upstream.on(tag()).always().stall_headers(&gate);
    told_to_come_back(&larder, &Ask::get(manifest(REPO, "1"))).await;
    gate.open();
    within("the late answer", async {
        while larder.store().tag(&format!("docker.io/{REPO}"), "1").is_none() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    upstream.move_tag(REPO, "1", &new.manifest);
    upstream.clear_script();
    let refreshed = Ask::new("POST", "/api/v1/refresh")
        .header("content-type", "application/json")
        .body(json!({"image": "alpine:1"}).to_string())
        .send(larder.admin())
        .await
        .expect(200)
        .json();
    assert_eq!(refreshed["digest"], new.manifest.to_string(), "{refreshed}");
    assert_ne!(old.manifest, new.manifest);
    larder.get(manifest(REPO, "1")).await.expect_content(&new.manifest);
}
