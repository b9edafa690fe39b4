//! The laws: what Larder promises whatever happens. Each has its section; L7 is in `tokens`, L9 in `manifests`, L10 in `naming`.

use std::path::Path;
use std::time::Duration;

use larder::oci::{Algorithm, Digest};
use larder::pull::Timing;

use crate::support::client::{Ask, Connection, End, Exchange, Response, http2};
use crate::support::gate::Gate;
use crate::support::larder::{Larder, quick};
use crate::support::process::LarderProcess;
use crate::support::upstream::{Fault, On, Outcome, TokenPolicy, Upstream};
use crate::support::{blob, manifest};

const REPO: &str = "library/alpine";
const SIZE: usize = 2_000_000;

// L1: one transfer.

/// However many ask, the bytes come once; all of them stream before the transfer is over.
#[tokio::test]
async fn l1_thirty_clients_one_transfer() {
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, SIZE);
    let gate = Gate::closed();
    upstream.on(On::Blobs).stall_after(1_500_000, &gate);
    let larder = Larder::start(&upstream, |_| {}).await;
    let mut clients: Vec<Exchange> = Vec::new();
    for _ in 0..30 {
        clients.push(Ask::get(blob(REPO, digest)).open(larder.registry()).await);
    }
    for client in &mut clients {
        client.read_at_least(1_400_000).await;
    }
    gate.wait_for_arrivals(1).await;
    gate.open();
    let mut collapsed = 0;
    for client in clients {
        let response = client.rest().await;
        collapsed += usize::from(response.header("cache-status") == Some("larder; fwd=miss; collapsed"));
        response.expect_content(&digest);
    }
    assert_eq!(collapsed, 29);
    assert_eq!(upstream.count(On::Blobs), 1, "{}", upstream.print());
    assert_eq!(upstream.bytes_sent(On::Any), SIZE as u64);
}

/// The same when all come in the same instant, by tag, by digest, and in two names of one repository.
#[tokio::test]
async fn l1_a_stampede() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[200_000]);
    let larder = Larder::start(&upstream, |_| {}).await;
    let layer = image.layers[0];
    let asking: Vec<_> = (0..60)
        .map(|n| {
            let repo = if n % 2 == 0 {
                "alpine"
            } else {
                "docker.io/library/alpine"
            };
            let path = if n % 3 == 0 {
                manifest(repo, "1")
            } else {
                blob(repo, layer)
            };
            let wanted = if n % 3 == 0 { image.manifest } else { layer };
            let ask = Ask::get(path).send(larder.registry());
            tokio::spawn(async move { ask.await.expect_content(&wanted) })
        })
        .collect();
    for one in asking {
        one.await.unwrap();
    }
    assert_eq!(
        (upstream.count(On::Blobs), upstream.count(On::Manifests)),
        (1, 1),
        "{}",
        upstream.print()
    );
}

/// A Range of what is here already streams at once; one of what is still to come as soon as it comes.
#[tokio::test]
async fn l1_ranges_from_the_growing_file() {
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, SIZE);
    let bytes = upstream.bytes(&digest);
    let gate = Gate::closed();
    upstream.on(On::Blobs).stall_after(1_000_000, &gate);
    let larder = Larder::start(&upstream, |_| {}).await;
    let first = Ask::get(blob(REPO, digest)).open(larder.registry()).await;
    gate.wait_for_arrivals(1).await;
    let here = Ask::get(blob(REPO, digest)).range("bytes=200000-899999");
    let mut here = here.open(larder.registry()).await;
    assert_eq!(here.status, 206);
    // The very end waits for the verdict on the whole blob (L2).
    assert_eq!(here.read_at_least(600_000).await[..600_000], bytes[200_000..800_000]);
    let ahead = Ask::get(blob(REPO, digest)).range("bytes=1500000-");
    let ahead = ahead.open(larder.registry()).await;
    assert_eq!(ahead.status, 206);
    assert_eq!(
        ahead.headers.get("content-range"),
        Some("bytes 1500000-1999999/2000000")
    );
    gate.open();
    assert_eq!(here.rest().await.expect(206).body, bytes[200_000..900_000]);
    assert_eq!(ahead.rest().await.expect(206).body, bytes[1_500_000..]);
    first.rest().await.expect_content(&digest);
    assert_eq!(upstream.count(On::Blobs), 1);
}

#[tokio::test]
async fn l1_the_transfer_outlives_its_client() {
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, SIZE);
    let gate = Gate::closed();
    upstream.on(On::Blobs).stall_after(1_000_000, &gate);
    let larder = Larder::start(&upstream, |_| {}).await;
    let mut first = Ask::get(blob(REPO, digest)).open(larder.registry()).await;
    first.read_at_least(100_000).await;
    first.abort();
    gate.wait_for_arrivals(1).await;
    gate.open();
    larder.get(blob(REPO, digest)).await.expect_content(&digest);
    assert_eq!(upstream.matching(On::Blobs)[0].outcome, Outcome::Complete);
    assert_eq!(upstream.count(On::Blobs), 1, "{}", upstream.print());
}

/// R-W3: a reader that stands still holds nobody up.
#[tokio::test]
async fn l1_a_reader_that_stands_still() {
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, 8_000_000);
    let larder = Larder::start(&upstream, |_| {}).await;
    let still = Connection::open_with_buffer(larder.registry(), 8192).await;
    let still = still.exchange(&Ask::get(blob(REPO, digest))).await;
    for _ in 0..3 {
        larder.get(blob(REPO, digest)).await.expect_content(&digest);
    }
    still.rest().await.expect_content(&digest);
    assert_eq!(upstream.count(On::Blobs), 1);
}

/// R-D3: no status line before the upstream has said that it has the blob.
#[tokio::test]
async fn l1_no_200_before_the_upstream_answered() {
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, 1000);
    let gate = Gate::closed();
    upstream
        .on(On::Blobs)
        .does([Fault::StallHeaders(gate.clone()), Fault::NoHeader("etag".into())]);
    let larder = Larder::start(&upstream, |_| {}).await;
    let asking = tokio::spawn(Ask::get(blob(REPO, digest)).open(larder.registry()));
    gate.wait_for_arrivals(1).await;
    assert!(!asking.is_finished());
    gate.open();
    asking.await.unwrap().rest().await.expect_content(&digest);
    let missing = Digest::sha256(b"missing");
    upstream.on(On::Blobs).always().status(404);
    larder.get(blob(REPO, missing)).await.expect(404);
}

// L2: never a wrong blob.

#[tokio::test]
async fn l2_no_complete_answer_with_wrong_bytes() {
    // Small ones are verified before the status line, large ones on the way.
    for size in [5_000, SIZE] {
        wrong_bytes_of(size).await;
    }
}

async fn wrong_bytes_of(size: usize) {
    for spoil in [
        vec![Fault::FlipByte(0)],
        vec![Fault::FlipByte(size / 2)],
        vec![Fault::FlipByte(size - 1)],
        vec![Fault::FlipByte(size - 1), Fault::Chunked],
        vec![Fault::FlipByte(size - 1), Fault::CloseDelimited],
        vec![Fault::Truncate(1000)],
        vec![Fault::Truncate(size - 1)],
        vec![Fault::Truncate(0)],
        vec![Fault::Truncate(size - 1), Fault::Chunked],
        vec![Fault::Truncate(size - 1), Fault::CloseDelimited],
        vec![Fault::Append("x".into())],
        vec![Fault::Append("x".into()), Fault::Chunked],
        vec![Fault::WrongBytes("something else".into())],
        vec![
            Fault::WrongBytes("<!doctype html><html>log in</html>".into()),
            Fault::Header("Content-Type".into(), "text/html".into()),
        ],
    ] {
        let upstream = Upstream::start().await;
        let digest = upstream.blob(REPO, size);
        let larder = Larder::start(&upstream, |_| {}).await;
        let rule = upstream.on(On::Blobs.get()).always().does(spoil.clone());
        for by_range in [false, true] {
            let ask = Ask::get(blob(REPO, digest));
            let ask = if by_range { ask.range("bytes=100-") } else { ask };
            let response = ask.send(larder.registry()).await;
            if response.status < 400 {
                assert_eq!(response.end, End::Short, "{spoil:?}: ends by FIN (R-C14): {response:?}");
                assert!(response.body.len() < size, "{spoil:?}");
            } else {
                assert!(matches!(response.status, 502..=504), "{spoil:?}: {response:?}");
            }
        }
        let by_h2 = http2(larder.registry(), Ask::get(blob(REPO, digest))).await;
        assert!(by_h2.status >= 500 || by_h2.body.len() < size, "{spoil:?}");
        assert_eq!(held(&larder.cache()).len(), 0, "{spoil:?}: nothing is kept");
        rule.remove();
        larder.get(blob(REPO, digest)).await.expect_content(&digest);
    }
}

/// At once: whoever asks after a failed answer has ended shares no part of it.
#[tokio::test]
async fn l2_the_next_request_starts_clean() {
    let upstream = Upstream::start().await;
    let larder = Larder::start(&upstream, |_| {}).await;
    // Many at once, because the moment between the two is short.
    let rounds = (0..150).map(|_| {
        let digest = upstream.blob(REPO, 1000);
        upstream.on(On::Blob(digest)).flip_byte(500);
        let to = larder.registry();
        tokio::spawn(async move {
            let wrong = Ask::get(blob(REPO, digest)).send(to).await;
            assert_eq!(wrong.status, 502, "{wrong:?}");
            Ask::get(blob(REPO, digest)).send(to).await.expect_content(&digest);
        })
    });
    for round in rounds.collect::<Vec<_>>() {
        round.await.unwrap();
    }
}

/// Everyone who waits for the same wrong blob is told the same.
#[tokio::test]
async fn l2_all_waiters_end_short() {
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, SIZE);
    let gate = Gate::closed();
    upstream
        .on(On::Blobs)
        .always()
        .does([Fault::FlipByte(1_999_999), Fault::StallAfter(1_000_000, gate.clone())]);
    let larder = Larder::start(&upstream, |_| {}).await;
    let mut clients = Vec::new();
    for _ in 0..10 {
        clients.push(Ask::get(blob(REPO, digest)).open(larder.registry()).await);
    }
    gate.open();
    for client in clients {
        let response = client.rest().await;
        assert_eq!((response.status, response.end), (200, End::Short));
        assert!(response.body.len() < SIZE);
    }
}

/// Names (`sha256/<hex>`) of the blobs in a cache folder; each is checked against its bytes.
fn held(cache: &Path) -> Vec<Digest> {
    let mut found = Vec::new();
    for algorithm in Algorithm::ALL {
        let folder = cache.join("blobs").join(algorithm.as_str());
        let Ok(entries) = std::fs::read_dir(folder) else {
            continue;
        };
        for entry in entries {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            let digest = Digest::from_hex(algorithm, &name).unwrap_or_else(|| panic!("{name} among the blobs"));
            let bytes = std::fs::read(&path).unwrap();
            assert_eq!(Digest::of(algorithm, &bytes), digest, "a torn blob");
            found.push(digest);
        }
    }
    found
}

/// Bytes that were given out are never followed by those of a transfer begun anew, whatever is odd about the answer that goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l2_what_was_seen_is_not_fetched_anew() {
    for (name, value) in [
        ("Warning", "214 proxy \"Transformation Applied\""),
        ("Content-Type", "text/html"),
    ] {
        let upstream = Upstream::start().await;
        let digest = upstream.blob(REPO, SIZE);
        upstream.on(On::Blobs.ranged()).header(name, value);
        upstream
            .on(On::Blobs.whole())
            .does([Fault::FlipByte(10), Fault::CutAfter(800_000)]);
        let larder = Larder::start(&upstream, |_| {}).await;
        let response = larder.get(blob(REPO, digest)).await;
        assert_eq!(
            (response.status, response.end),
            (200, End::Short),
            "{}",
            upstream.print()
        );
        larder.until_idle().await;
        larder.get(blob(REPO, digest)).await.expect_content(&digest);
    }
}

// L3: what is held is served.

fn impatient() -> Timing {
    Timing {
        patience: Duration::from_millis(100),
        ..quick()
    }
}

/// Every way to fail, one after the other, on a tag whose time is over; what hangs from it is never asked for.
#[tokio::test]
async fn l3_every_failure() {
    type Fail = fn(&Upstream);
    let failures: Vec<(&str, Fail)> = vec![
        ("500", |u| drop(u.on(On::Any).always().status(500))),
        ("502", |u| drop(u.on(On::Any).always().status(502))),
        ("503", |u| drop(u.on(On::Any).always().status(503))),
        ("504", |u| drop(u.on(On::Any).always().status(504))),
        ("429", |u| drop(u.on(On::Any).always().rate_limit(None))),
        ("429 for an hour", |u| {
            drop(u.on(On::Any).always().rate_limit(Some("3600")))
        }),
        ("401", |u| drop(u.on(On::Any).always().status(401))),
        ("403", |u| drop(u.on(On::Any).always().status(403))),
        ("404", |u| drop(u.on(On::Any).always().status(404))),
        ("html", |u| drop(u.on(On::Any).always().html_page())),
        ("teapot", |u| drop(u.on(On::Any).always().answer(418, &[], ""))),
        ("FIN", |u| drop(u.on(On::Any).always().drop_connection())),
        ("RST", |u| drop(u.on(On::Any).always().reset_connection())),
        ("silence", |u| drop(u.on(On::Any).always().hang_connection())),
        ("redirect to nowhere", |u| {
            drop(u.on(On::Any).always().redirect_to("http://127.0.0.9:1/", 307))
        }),
        ("redirect to itself", |u| {
            drop(u.on(On::Any).always().redirect_to("{path}", 307))
        }),
        ("not for me", |u| u.require_token(TokenPolicy::new().refuse(REPO, 403))),
        ("no token", |u| {
            u.require_token(TokenPolicy::new());
            u.on(On::Token).always().status(500);
        }),
    ];
    for (what, fail) in failures {
        let upstream = Upstream::start().await;
        let image = upstream.image(REPO, "1", &[1000]);
        let larder = Larder::start_timed(&upstream, impatient(), |t| {
            t.cache("tag_ttl", "0s");
        })
        .await;
        let layer = image.layers[0];
        larder.get(manifest(REPO, "1")).await.expect_content(&image.manifest);
        larder.get(blob(REPO, layer)).await.expect_content(&layer);
        larder.until_held(&blob(REPO, layer)).await;
        upstream.forget();
        fail(&upstream);
        for _ in 0..2 {
            for response in [
                larder.get(manifest(REPO, "1")).await,
                larder.head(manifest(REPO, "1")).await,
            ] {
                assert_eq!(response.status, 200, "{what}: {response:?}");
                assert!(response.header("warning").is_some(), "{what}: {response:?}");
                let status = response.header("cache-status").unwrap();
                assert!(status.starts_with("larder; hit; ttl=-"), "{what}: {status}");
                assert_eq!(
                    response.header("docker-content-digest"),
                    Some(&*image.manifest.to_string()),
                    "{what}"
                );
            }
        }
        larder
            .get(manifest(REPO, image.manifest))
            .await
            .expect_content(&image.manifest);
        larder.get(blob(REPO, layer)).await.expect_content(&layer);
        assert_eq!(upstream.count(On::Blobs), 0, "{what}");
        // A failure leaves nothing behind once it is over; a breaker may still be open.
        if !what.starts_with("429") {
            upstream.clear_script();
            upstream.require_nothing();
            let again = upstream.image(REPO, "again", &[]);
            let response = larder.get(manifest(REPO, again.manifest)).await;
            assert_eq!(response.status, 200, "{what}: {response:?}");
        }
    }
}

/// The upstream is gone before Larder starts and all the time.
#[tokio::test]
async fn l3_without_any_upstream() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[1000, 2000]);
    let index = upstream.index(REPO, "index", &[image.manifest]);
    let larder = Larder::start(&upstream, |t| {
        t.cache("tag_ttl", "0s");
    })
    .await;
    larder
        .get(manifest(REPO, "index"))
        .await
        .expect_content(&index.manifest);
    larder.get(manifest(REPO, "1")).await.expect_content(&image.manifest);
    for digest in image.blobs() {
        larder.get(blob(REPO, digest)).await.expect_content(&digest);
    }
    upstream.go_down().await;
    let larder = larder.restart().await;
    larder
        .get(manifest(REPO, "index"))
        .await
        .expect_content(&index.manifest);
    larder.get(manifest(REPO, "1")).await.expect_content(&image.manifest);
    for digest in image.blobs() {
        larder.get(blob(REPO, digest)).await.expect_content(&digest);
    }
    let cold = larder.get(manifest(REPO, "other")).await;
    assert!(matches!(cold.status, 502..=504), "{cold:?}");
    assert_eq!(cold.error_code(), "UNAVAILABLE");
}

#[tokio::test]
async fn l3_the_operators_limit_on_stale() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[]);
    let larder = Larder::start(&upstream, |t| {
        t.cache("tag_ttl", "0s");
        t.cache("stale_if_error", "0s");
    })
    .await;
    larder.get(manifest(REPO, "1")).await.expect(200);
    upstream.go_down().await;
    // Its time is over by now, if only by a millisecond.
    tokio::time::sleep(Duration::from_millis(5)).await;
    let response = larder.get(manifest(REPO, "1")).await;
    assert!(matches!(response.status, 502..=504), "{response:?}");
    larder
        .get(manifest(REPO, image.manifest))
        .await
        .expect_content(&image.manifest);
}

/// `offline = true` dials nothing, serves what is held and says why it lacks the rest.
#[tokio::test]
async fn l3_offline() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[1000]);
    let larder = Larder::start(&upstream, |t| {
        t.cache("tag_ttl", "0s");
    })
    .await;
    larder.get(manifest(REPO, "1")).await.expect(200);
    larder.get(blob(REPO, image.layers[0])).await.expect(200);
    let stopped = larder.stop().await;
    upstream.forget();
    let connections = upstream.connections();
    let larder = stopped
        .start(|t| {
            t.cache("offline", true);
        })
        .await;
    larder.get(manifest(REPO, "1")).await.expect_content(&image.manifest);
    larder.get(blob(REPO, image.layers[0])).await.expect(200);
    for path in [
        manifest(REPO, "2"),
        blob(REPO, image.config),
        format!("/v2/{REPO}x/tags/list"),
    ] {
        let response = larder.get(path).await.expect(404);
        assert!(response.json().to_string().contains("offline"), "{response:?}");
    }
    assert_eq!(upstream.connections(), connections);
}

/// A tag that a HEAD saw move, to something that is not held any more: with the upstream gone a HEAD promises what a GET
/// gives, and that is the earlier target. Found by tests/crash.
#[tokio::test]
async fn l3_a_head_promises_what_a_get_gives() {
    let upstream = Upstream::start().await;
    let old = upstream.image(REPO, "1", &[]);
    let new = upstream.image(REPO, "2", &[]);
    let digest = |response: &Response| response.header("docker-content-digest").unwrap().to_owned();
    let larder = Larder::start(&upstream, |t| {
        t.cache("tag_ttl", "0s");
    })
    .await;
    larder.get(manifest(REPO, "1")).await.expect_content(&old.manifest);
    upstream.move_tag(REPO, "1", &new.manifest);
    for tag in ["1", "2"] {
        let seen = larder.head(manifest(REPO, tag)).await.expect(200);
        assert_eq!(digest(&seen), new.manifest.to_string());
    }

    let stopped = larder.stop().await;
    let held = stopped.cache().join("blobs").join(new.manifest.algorithm().as_str());
    std::fs::remove_file(held.join(new.manifest.hex())).unwrap();
    upstream.go_down().await;
    let larder = stopped
        .start(|t| {
            t.cache("tag_ttl", "1h");
        })
        .await;
    for _ in 0..2 {
        let head = larder.head(manifest(REPO, "1")).await.expect(200);
        let get = larder.get(manifest(REPO, "1")).await.expect(200);
        assert_eq!(digest(&head), old.manifest.to_string());
        for header in ["docker-content-digest", "content-length", "cache-status", "warning"] {
            assert_eq!(head.header(header), get.header(header), "{header}");
        }
        assert!(head.header("warning").is_some());
        get.expect_content(&old.manifest);
    }
    // Nothing is held of this one: what its upstream said is all there is, for as long as it is trusted.
    let never = larder.head(manifest(REPO, "2")).await.expect(200);
    assert_eq!(
        (digest(&never), never.header("cache-status")),
        (new.manifest.to_string(), Some("larder; hit"))
    );

    let stopped = larder.stop().await;
    upstream.come_up().await;
    let larder = stopped.start(|_| {}).await;
    upstream.forget();
    let head = larder.head(manifest(REPO, "1")).await.expect(200);
    assert_eq!(digest(&head), new.manifest.to_string());
    assert_eq!((upstream.count(On::Any.head()), upstream.count(On::Any.get())), (1, 1));
    larder.get(manifest(REPO, "1")).await.expect_content(&new.manifest);
    // Held now, and trusted.
    upstream.forget();
    let head = larder.head(manifest(REPO, "1")).await.expect(200);
    assert_eq!(head.header("cache-status"), Some("larder; hit"));
    assert_eq!(upstream.requests().len(), 0, "{}", upstream.print());
}

/// R-U33: after a 429 the upstream is left alone; whoever asks for something new is told for how long.
#[tokio::test]
async fn l3_the_breaker() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[]);
    let larder = Larder::start(&upstream, |t| {
        t.cache("tag_ttl", "0s");
    })
    .await;
    larder.get(manifest(REPO, "1")).await.expect(200);
    upstream.forget();
    upstream.on(On::Any).rate_limit(Some("120"));
    for _ in 0..5 {
        larder.get(manifest(REPO, "1")).await.expect_content(&image.manifest);
    }
    let cold = larder.get(manifest(REPO, "new")).await.expect(503);
    assert_eq!(cold.error_code(), "UNAVAILABLE");
    let seconds: u64 = cold.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=200).contains(&seconds), "{seconds}");
    assert_eq!(upstream.requests().len(), 1, "{}", upstream.print());
}

// L4: a cut is mended.

/// At 40 and 70 per cent, inside the answers that run.
#[tokio::test]
async fn l4_two_cuts() {
    for second in [Fault::CutAfter(600_000), Fault::ResetAfter(600_000)] {
        let upstream = Upstream::start().await;
        let digest = upstream.blob(REPO, SIZE);
        upstream.on(On::Blobs).cut_after(800_000);
        upstream.on(On::Blobs).does([second]);
        let larder = Larder::start(&upstream, |_| {}).await;
        let asking: Vec<_> = (0..10)
            .map(|_| tokio::spawn(Ask::get(blob(REPO, digest)).send(larder.registry())))
            .collect();
        for one in asking {
            one.await.unwrap().expect_content(&digest);
        }
        let seen = upstream.matching(On::Blobs.get());
        assert_eq!(seen.len(), 3, "{}", upstream.print());
        assert_eq!(seen[0].header("range"), None);
        assert_eq!(seen[1].header("range"), Some("bytes=800000-"));
        let third = seen[2].header("range").unwrap();
        let from: usize = third
            .trim_start_matches("bytes=")
            .trim_end_matches('-')
            .parse()
            .unwrap();
        assert!((800_000..=1_400_000).contains(&from), "{third}");
    }
}

/// Silence is a cut too, after `read_timeout`; so is a chunked body without its end.
#[tokio::test]
async fn l4_stalls_and_chunks() {
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, SIZE);
    let never = Gate::closed();
    upstream.on(On::Blobs).stall_after(700_000, &never);
    upstream.on(On::Blobs).does([Fault::Chunked, Fault::CutAfter(300_000)]);
    upstream.on(On::Blobs).drop_connection();
    upstream.on(On::Blobs).status(503);
    let larder = Larder::start(&upstream, |t| {
        t.upstream("docker.io", "read_timeout", "300ms");
    })
    .await;
    larder.get(blob(REPO, digest)).await.expect_content(&digest);
    let last = upstream.matching(On::Blobs).pop().unwrap();
    assert_eq!(last.header("range"), Some("bytes=1000000-"), "{}", upstream.print());
}

/// R-U23, R-U25: across a fresh redirect and a fresh token; what ignores or bends the Range does no harm.
#[tokio::test]
async fn l4_across_redirects_and_tokens() {
    let upstream = Upstream::start().await;
    let cdn = upstream.start_cdn().await;
    upstream.require_token(TokenPolicy::new());
    upstream.redirect_blobs_to(&cdn);
    let digest = upstream.blob(REPO, SIZE);
    let gate = Gate::closed();
    cdn.on(On::Storage)
        .does([Fault::StallAfter(500_000, gate.clone()), Fault::CutAfter(500_000)]);
    let larder = Larder::start(&upstream, |_| {}).await;
    let mut client = Ask::get(blob(REPO, digest)).open(larder.registry()).await;
    client.read_at_least(100_000).await;
    gate.wait_for_arrivals(1).await;
    upstream.revoke_tokens();
    gate.open();
    client.rest().await.expect_content(&digest);
    assert_eq!(cdn.count(On::Storage), 2);
    assert_eq!(cdn.count(On::Storage.ranged()), 1);
    assert_eq!(cdn.count(On::Any.authorized()), 0);
    assert_eq!(upstream.count(On::Token), 2, "{}", upstream.print());
}

#[tokio::test]
async fn l4_answers_that_bend_the_range() {
    for bent in [
        Fault::IgnoreRange,
        Fault::ShiftRange(10),
        Fault::Header("Content-Range".into(), "bytes 0-99/2000000".into()),
        Fault::Header("Content-Range".into(), "bytes 800000-1999999/3000000".into()),
        Fault::Header("Content-Range".into(), "nonsense".into()),
        Fault::NoHeader("Content-Range".into()),
        Fault::Status {
            status: 416,
            headers: vec![("Content-Range".into(), "bytes */2000000".into())],
            body: "".into(),
        },
    ] {
        let upstream = Upstream::start().await;
        let digest = upstream.blob(REPO, SIZE);
        upstream.on(On::Blobs.whole()).cut_after(800_000);
        upstream.on(On::Blobs.ranged()).does([bent.clone()]);
        let larder = Larder::start(&upstream, |_| {}).await;
        // Mended by the whole if by nothing else; a total that is another one cannot be.
        let response = larder.get(blob(REPO, digest)).await;
        if matches!(&bent, Fault::Header(_, range) if range.ends_with("/3000000")) {
            assert_eq!(response.end, End::Short, "{bent:?}: {response:?}");
        } else {
            response.expect_content(&digest);
        }
        larder.get(blob(REPO, digest)).await.expect_content(&digest);
    }
}

/// An upstream that never mends ends the answer short; the next one goes on from there.
#[tokio::test]
async fn l4_what_cannot_be_mended() {
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, SIZE);
    upstream.on(On::Blobs.whole()).cut_after(800_000);
    // Not by Range, and not whole either.
    let dead = upstream.on(On::Blobs).always().drop_connection();
    let larder = Larder::start(&upstream, |_| {}).await;
    let response = larder.get(blob(REPO, digest)).await;
    assert_eq!((response.status, response.end), (200, End::Short));
    dead.remove();
    upstream.forget();
    larder.get(blob(REPO, digest)).await.expect_content(&digest);
    assert_eq!(upstream.bytes_sent(On::Blobs), 1_200_000, "{}", upstream.print());
}

/// What was staged survives a stop and a crash of Larder, and is resumed when it is asked for again.
#[tokio::test]
async fn l4_a_restart_resumes() {
    for crash in [false, true] {
        let upstream = Upstream::start().await;
        let digest = upstream.blob(REPO, SIZE);
        let never = Gate::closed();
        upstream.on(On::Blobs).stall_after(1_200_000, &never);
        let larder = Larder::start(&upstream, |t| {
            t.server("shutdown_grace", "1s");
        })
        .await;
        let mut client = Ask::get(blob(REPO, digest)).open(larder.registry()).await;
        client.read_at_least(1_200_000 - 300_000).await;
        drop(client);
        let stopped = if crash { larder.crash() } else { larder.stop().await };
        let larder = stopped.start(|_| {}).await;
        upstream.forget();
        larder.get(blob(REPO, digest)).await.expect_content(&digest);
        let seen = upstream.matching(On::Blobs.get());
        assert_eq!(seen.len(), 1);
        assert!(
            seen[0].header("range").is_some(),
            "crash: {crash}; {}",
            upstream.print()
        );
        assert!(seen[0].bytes_sent < SIZE as u64);
    }
}

// L5: the limit is the limit.

fn size_of(folder: &Path) -> u64 {
    let mut sum = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let meta = entry.metadata().unwrap();
        sum += if meta.is_dir() {
            size_of(&entry.path())
        } else {
            meta.len()
        };
    }
    sum
}

/// More than fits: the longest unused goes, what is used stays, and every pull succeeds.
#[tokio::test]
async fn l5_the_longest_unused_goes() {
    let upstream = Upstream::start().await;
    let blobs: Vec<Digest> = (0..12).map(|_| upstream.blob(REPO, 200_000)).collect();
    let larder = Larder::start(&upstream, |t| {
        t.cache("max_size", "1MiB");
    })
    .await;
    let favourite = blobs[0];
    for digest in &blobs {
        larder.get(blob(REPO, digest)).await.expect_content(digest);
        larder.until_held(&blob(REPO, digest)).await;
        larder.get(blob(REPO, favourite)).await.expect_content(&favourite);
        let held: u64 = size_of(&larder.cache().join("blobs"));
        assert!(held <= 1 << 20, "{held} bytes are held");
    }
    assert_eq!(upstream.count(On::Blob(favourite)), 1, "{}", upstream.print());
    upstream.forget();
    larder.get(blob(REPO, blobs[1])).await.expect_content(&blobs[1]);
    assert_eq!(upstream.count(On::Blob(blobs[1]).get()), 1, "it had gone");
}

/// A blob larger than the cache passes through, for all who ask at once.
#[tokio::test]
async fn l5_larger_than_the_cache() {
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, 3_000_000);
    let small = upstream.blob(REPO, 1000);
    let larder = Larder::start(&upstream, |t| {
        t.cache("max_size", "1MiB");
    })
    .await;
    larder.get(blob(REPO, small)).await.expect_content(&small);
    larder.until_held(&blob(REPO, small)).await;
    let asking: Vec<_> = (0..5)
        .map(|_| tokio::spawn(Ask::get(blob(REPO, digest)).send(larder.registry())))
        .collect();
    for one in asking {
        one.await.unwrap().expect_content(&digest);
    }
    larder.get(blob(REPO, digest)).await.expect_content(&digest);
    assert!(!held(&larder.cache()).contains(&digest));
    larder.get(blob(REPO, small)).await.expect_content(&small);
}

/// An answer that is being sent goes on though its blob is evicted.
#[tokio::test]
async fn l5_eviction_breaks_no_answer() {
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, 900_000);
    let larder = Larder::start(&upstream, |t| {
        t.cache("max_size", "1MiB");
    })
    .await;
    larder.get(blob(REPO, digest)).await.expect_content(&digest);
    larder.until_held(&blob(REPO, digest)).await;
    let slow = Connection::open_with_buffer(larder.registry(), 8192).await;
    let slow = slow.exchange(&Ask::get(blob(REPO, digest))).await;
    for _ in 0..3 {
        let other = upstream.blob(REPO, 800_000);
        larder.get(blob(REPO, other)).await.expect_content(&other);
        larder.until_held(&blob(REPO, other)).await;
    }
    assert!(!held(&larder.cache()).contains(&digest));
    slow.rest().await.expect_content(&digest);
}

// L6: nothing is lost by a crash.

/// `kill -9` with blobs kept and one half-way: what was complete is served without the upstream, nothing is torn.
#[tokio::test]
async fn l6_kill_9() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[300_000, 400_000]);
    let half = upstream.blob(REPO, SIZE);
    let mut larder = LarderProcess::start(&upstream, |t| {
        t.cache("tag_ttl", "0s");
    })
    .await;
    larder.get(manifest(REPO, "1")).await.expect_content(&image.manifest);
    for digest in image.blobs() {
        larder.get(blob(REPO, digest)).await.expect_content(&digest);
    }
    // A second complete answer for each: it is kept by then.
    for digest in image.blobs() {
        loop {
            let first = Ask::get(blob(REPO, digest))
                .range("bytes=0-0")
                .send(larder.registry())
                .await;
            if first.header("cache-status") == Some("larder; hit") {
                break;
            }
        }
    }
    let never = Gate::closed();
    upstream.on(On::Blob(half)).stall_after(1_000_000, &never);
    let mut client = Ask::get(blob(REPO, half)).open(larder.registry()).await;
    client.read_at_least(500_000).await;
    larder.kill_9();
    client.read_to_end().await;
    assert_ne!(client.end(), Some(End::Complete));
    let torn = held(&larder.cache());
    assert!(!torn.contains(&half));

    upstream.go_down().await;
    let larder = larder.restart().await;
    larder.get(manifest(REPO, "1")).await.expect_content(&image.manifest);
    for digest in image.blobs() {
        larder.get(blob(REPO, digest)).await.expect_content(&digest);
    }
    upstream.come_up().await;
    larder.get(blob(REPO, half)).await.expect_content(&half);
}

/// `kill -9` right behind the first answer of a tag, and of a tag that moved: it is answered so from then on.
#[tokio::test]
async fn l6_a_tag_is_not_taken_back() {
    let upstream = Upstream::start().await;
    let mut larder = LarderProcess::start(&upstream, |t| {
        t.cache("tag_ttl", "0s");
    })
    .await;
    let (first, second) = (upstream.image(REPO, "a", &[]), upstream.image(REPO, "b", &[]));
    for image in [&first, &second] {
        upstream.move_tag(REPO, "1", &image.manifest);
        larder.get(manifest(REPO, "1")).await.expect_content(&image.manifest);
        larder.kill_9();
        upstream.go_down().await;
        larder = larder.restart().await;
        larder.get(manifest(REPO, "1")).await.expect_content(&image.manifest);
        larder.kill_9();
        upstream.come_up().await;
        larder = larder.restart().await;
    }
    // Moved to something that is held already, and nothing else is written.
    upstream.move_tag(REPO, "1", &first.manifest);
    larder.get(manifest(REPO, "1")).await.expect_content(&first.manifest);
    larder.kill_9();
    upstream.go_down().await;
    let larder = larder.restart().await;
    larder.get(manifest(REPO, "1")).await.expect_content(&first.manifest);
}

// L8: private stays private.

/// A digest learned in one repository is no key to another.
#[tokio::test]
async fn l8_a_digest_is_no_key() {
    let upstream = Upstream::start().await;
    let image = upstream.image("private/one", "1", &[1000]);
    let other = upstream.image("public/two", "1", &[]);
    let larder = Larder::start(&upstream, |_| {}).await;
    larder.get(manifest("private/one", "1")).await.expect(200);
    let layer = image.layers[0];
    larder.get(blob("private/one", layer)).await.expect_content(&layer);
    larder.until_held(&blob("private/one", layer)).await;
    larder
        .get(manifest("public/two", "1"))
        .await
        .expect_content(&other.manifest);
    let missing = Digest::sha256(b"missing");
    for repo in ["public/two", "public/none"] {
        for (path, nowhere) in [
            (blob(repo, layer), blob(repo, missing)),
            (manifest(repo, image.manifest), manifest(repo, missing)),
        ] {
            let held = larder.get(&path).await.expect(404);
            let unheld = larder.get(&nowhere).await.expect(404);
            assert_eq!(held.error_code(), unheld.error_code(), "R-X8");
            larder.head(&path).await.expect(404);
            Ask::get(&path)
                .range("bytes=0-9")
                .send(larder.registry())
                .await
                .expect(404);
        }
    }
    upstream.go_down().await;
    let gone = larder.get(blob("public/three", layer)).await;
    assert!(gone.status >= 400, "{gone:?}");
    larder.get(blob("private/one", layer)).await.expect_content(&layer);
}

/// A repository that shows that it holds the digest gets what is here already: no second transfer.
#[tokio::test]
async fn l8_who_shows_it_gets_it() {
    let upstream = Upstream::start().await;
    let layer = upstream.blob("a/one", 100_000);
    upstream.mount(&layer, "a/two");
    let larder = Larder::start(&upstream, |_| {}).await;
    larder.get(blob("a/one", layer)).await.expect_content(&layer);
    larder.until_held(&blob("a/one", layer)).await;
    larder.get(blob("a/two", layer)).await.expect_content(&layer);
    assert_eq!(upstream.bytes_sent(On::Blobs), 100_000, "{}", upstream.print());
    assert_eq!(upstream.count(On::Blobs.head().repo("a/two")), 1);
    upstream.go_down().await;
    larder.get(blob("a/two", layer)).await.expect_content(&layer);
}

/// R-U27: nor does an upstream that does not understand HEAD keep anybody out.
#[tokio::test]
async fn l8_shown_without_head() {
    let upstream = Upstream::start().await;
    let layer = upstream.blob("a/one", 100_000);
    upstream.mount(&layer, "a/two");
    let other = upstream.blob("b/three", 1);
    upstream.on(On::Blobs).always().no_head(405);
    let larder = Larder::start(&upstream, |_| {}).await;
    larder.get(blob("a/one", layer)).await.expect_content(&layer);
    larder.until_held(&blob("a/one", layer)).await;
    larder.get(blob("a/two", layer)).await.expect_content(&layer);
    larder.get(blob("b/three", layer)).await.expect(404);
    larder.get(blob("b/three", other)).await.expect_content(&other);
}

// L11: a claim is not proof. `claims` has the whole matrix.

/// Private content of one upstream is a miss for another upstream, whatever that one's HEAD says, until its bytes have
/// come from there.
#[tokio::test]
async fn l11_a_claim_is_not_proof() {
    let (upstream, other) = (Upstream::start().await, Upstream::start().await);
    upstream.require_basic("me", "hidden");
    let image = upstream.image("private/one", "1", &[100_000]);
    let layer = image.layers[0];
    let larder = Larder::start(&upstream, |toml| {
        toml.upstream("docker.io", "username", "me");
        toml.upstream("docker.io", "password", "hidden");
        toml.upstream("ghcr.io", "url", other.url());
        toml.everybody_may_pull();
    })
    .await;
    larder.get(manifest("private/one", "1")).await.expect(200);
    larder.get(blob("private/one", layer)).await.expect_content(&layer);
    larder.until_held(&blob("private/one", layer)).await;
    let digest = image.manifest.to_string();
    let named = [
        ("Docker-Content-Digest", digest.as_str()),
        ("Content-Type", image.media_type),
    ];
    other.on(On::Any.head()).always().answer(200, &named, vec![0; 100]);
    let theirs = "ghcr.io/x/y";
    for path in [blob(theirs, layer), manifest(theirs, &digest), manifest(theirs, "1")] {
        let said = larder.head(&path).await.expect(200);
        assert_eq!(
            said.header("content-length"),
            Some("100"),
            "what it says, not what is held: {path}"
        );
        larder.get(&path).await.expect(404);
    }
    other.clear_script();
    other.put_blob("x/z", upstream.bytes(&layer));
    let theirs = "ghcr.io/x/z";
    larder.get(blob(theirs, layer)).await.expect_content(&layer);
    assert_eq!(other.bytes_sent(On::Blobs.repo("x/z")), 100_000, "{}", other.print());
    larder.until_held(&blob(theirs, layer)).await;
    other.go_down().await;
    larder.get(blob(theirs, layer)).await.expect_content(&layer);
}

/// Nor does a running transfer let another repository in that does not hold the blob.
#[tokio::test]
async fn l8_a_running_transfer_is_no_door() {
    let upstream = Upstream::start().await;
    let layer = upstream.blob("private/one", SIZE);
    upstream.blob("public/two", 1);
    let gate = Gate::closed();
    upstream.on(On::Blobs.get()).stall_after(1_000_000, &gate);
    let larder = Larder::start(&upstream, |_| {}).await;
    let first = Ask::get(blob("private/one", layer)).open(larder.registry()).await;
    larder.get(blob("public/two", layer)).await.expect(404);
    upstream.mount(&layer, "public/three");
    let third = Ask::get(blob("public/three", layer)).open(larder.registry()).await;
    assert_eq!(third.status, 200);
    gate.open();
    first.rest().await.expect_content(&layer);
    third.rest().await.expect_content(&layer);
    let sent = |repo: &str| upstream.bytes_sent(On::Blobs.repo(repo));
    assert_eq!(sent("private/one"), SIZE as u64, "{}", upstream.print());
    assert_eq!(sent("public/three"), 0, "{}", upstream.print());
}
