//! Far upstreams: one blob over several connections, whatever becomes of the extra ones.
//!
//! The policy is one for which every upstream is far, and every connection more makes it faster: what is measured by the
//! clock is for the unit tests of `pull::transfer::plan`.

use std::time::Duration;

use larder::oci::Digest;
use larder::pull::{Parallel, Timing};

use crate::support::client::Ask;
use crate::support::gate::Gate;
use crate::support::larder::{Larder, quick};
use crate::support::upstream::{Fault, Matcher, On, Pace, TokenPolicy, Upstream};
use crate::support::{blob, within};

const REPO: &str = "library/alpine";
const SIZE: usize = 12 << 20;
/// What may be between the sockets when the first connection is cut.
const IN_FLIGHT: u64 = 4 << 20;
const PACE: Pace = Pace::BytesPerSecond(10_000_000);

pub fn eager() -> Timing {
    Timing {
        parallel: Parallel {
            connections: 4,
            on_this_machine: true,
            least_left: 0,
            slow_below: u64::MAX,
            measure_for: Duration::ZERO,
            gain: -1e9,
            part_bytes: 256 << 10,
            parts: 6,
            parts_in_all: 12,
            // On a busy machine parts come late, and that is no lesson here.
            failures: 1000,
            ..Parallel::default()
        },
        ..quick()
    }
}

/// A blob at an upstream that is slow on every connection.
async fn far() -> (Upstream, Digest) {
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, SIZE);
    upstream.on(On::Blobs.get()).always().does([Fault::Pace(PACE)]);
    (upstream, digest)
}

fn parts() -> Matcher {
    On::Blobs.ranged()
}

/// The first connection stands still before any part could begin, until the gate is open: on a busy machine it would pass
/// parts that have not been answered yet, which are given up then.
fn first_waits(upstream: &Upstream) -> Gate {
    let gate = Gate::closed();
    let stall = Fault::StallAfter(200_000, gate.clone());
    upstream.on(On::Blobs.whole()).does([Fault::Pace(PACE), stall]);
    gate
}

#[tokio::test]
async fn a_far_blob_comes_over_several_connections() {
    let (upstream, digest) = far().await;
    let gate = first_waits(&upstream);
    let larder = Larder::start_timed(&upstream, eager(), |_| {}).await;
    let asking = tokio::spawn(Ask::get(blob(REPO, digest)).send(larder.registry()));
    // A second is asked for when the first was answered.
    upstream.wait_for(parts(), 2).await;
    gate.open();
    asking.await.unwrap().expect_content(&digest);
    larder.until_held(&blob(REPO, digest)).await;
    assert_eq!(upstream.count(On::Blob(digest).whole()), 1);
    assert!(upstream.count(parts()) > 10, "{}", upstream.print());
    let sent = upstream.bytes_sent(On::Blob(digest));
    assert!(sent <= SIZE as u64 + IN_FLIGHT, "{sent}");
    // Every byte is asked for once, and only the first request was for more than it brought.
    let mut next = 0;
    let mut spans: Vec<(u64, u64)> = upstream.matching(parts()).iter().map(span).collect();
    spans.sort_unstable();
    for (first, last) in spans {
        assert!(next == 0 || first == next, "{}", upstream.print());
        next = last + 1;
    }
    assert_eq!(next, SIZE as u64);
    let metrics = larder.metrics().await;
    assert!(metrics.contains("larder_transfers_parallel_total{upstream=\"docker.io\"}"));
    assert!(metrics.contains("larder_transfer_parts_total{upstream=\"docker.io\",result=\"ok\"}"));
}

fn span(request: &crate::support::upstream::Request) -> (u64, u64) {
    let range = request.header("range").unwrap();
    let (first, last) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
    (first.parse().unwrap(), last.parse().unwrap_or(SIZE as u64 - 1))
}

/// L1.
#[tokio::test]
async fn thirty_clients_follow_one_transfer() {
    let (upstream, digest) = far().await;
    let larder = Larder::start_timed(&upstream, eager(), |_| {}).await;
    let asking: Vec<_> = (0..30u64)
        .map(|n| {
            let registry = larder.registry();
            tokio::spawn(async move {
                let ask = Ask::get(blob(REPO, digest));
                if n % 3 == 0 {
                    let from = n * 300_000;
                    let response = ask.range(&format!("bytes={from}-")).send(registry).await.expect(206);
                    assert_eq!(response.body.len() as u64, SIZE as u64 - from);
                } else {
                    ask.send(registry).await.expect_content(&digest);
                }
            })
        })
        .collect();
    for asked in asking {
        within("a client's answer", asked).await.unwrap();
    }
    assert_eq!(upstream.count(On::Blob(digest).whole()), 1);
    let sent = upstream.bytes_sent(On::Blob(digest));
    assert!(sent <= SIZE as u64 + IN_FLIGHT, "{sent}");
}

/// An upstream that says that it has no ranges is not asked for any; one that says nothing, or lies, once.
#[tokio::test]
async fn an_upstream_without_ranges_keeps_its_one_connection() {
    let (upstream, digest) = far().await;
    upstream
        .on(On::Blobs.get().whole())
        .always()
        .does([Fault::Pace(PACE), Fault::Header("Accept-Ranges".into(), "none".into())]);
    let larder = Larder::start_timed(&upstream, eager(), |_| {}).await;
    larder.get(blob(REPO, digest)).await.expect_content(&digest);
    assert_eq!(upstream.count(parts()), 0, "{}", upstream.print());

    for says in [Fault::IgnoreRange, Fault::ShiftRange(7), Fault::Truncate(1000)] {
        let (upstream, digest) = far().await;
        let second = upstream.blob(REPO, SIZE);
        let (found_out, never) = (first_waits(&upstream), Gate::closed());
        upstream.on(parts()).always().does([
            says,
            Fault::NoHeader("Accept-Ranges".into()),
            Fault::StallAfter(0, never.clone()),
        ]);
        let larder = Larder::start_timed(&upstream, eager(), |_| {}).await;
        let asking = tokio::spawn(Ask::get(blob(REPO, digest)).send(larder.registry()));
        upstream.wait_for_abort(parts()).await;
        found_out.open();
        asking.await.unwrap().expect_content(&digest);
        assert_eq!(upstream.count(parts()), 1, "{}", upstream.print());
        larder.get(blob(REPO, second)).await.expect_content(&second);
        assert_eq!(upstream.count(parts()), 1, "it is remembered: {}", upstream.print());
        assert_eq!(upstream.count(On::Blobs.whole()), 2);
    }
}

/// L4: whatever an extra connection does, the client gets its blob: where it is the first of them, and the first
/// connection goes on.
#[tokio::test]
async fn no_first_part_that_fails_fails_the_transfer() {
    part_fails(1).await;
}

/// And where parts have taken over.
#[tokio::test]
async fn no_later_part_that_fails_fails_the_transfer() {
    part_fails(9).await;
}

async fn part_fails(nth: usize) {
    let reply = |status: u16| Fault::Status {
        status,
        headers: Vec::new(),
        body: "no".into(),
    };
    let faults = [
        Fault::CutAfter(10_000),
        Fault::ResetAfter(100_000),
        Fault::CutAfter(0),
        Fault::NoHead { reset: true },
        Fault::ShiftRange(1),
        Fault::IgnoreRange,
        Fault::Header("Content-Range".into(), "bytes 0-9/10".into()),
        reply(500),
        reply(404),
        reply(403),
        reply(416),
        reply(503),
        reply(429),
    ];
    for fault in faults {
        let upstream = Upstream::start().await;
        let digest = upstream.blob(REPO, 6 << 20);
        upstream.on(On::Blobs.get()).always().does([Fault::Pace(PACE)]);
        let rule = upstream.on(parts()).nth(nth).does([fault.clone()]);
        let larder = Larder::start_timed(&upstream, eager(), |_| {}).await;
        let response = larder.get(blob(REPO, digest)).await;
        let what = format!("{fault:?}\n{}", upstream.print());
        assert!(response.status == 200 && response.is_complete(), "{what}");
        assert_eq!(Digest::sha256(&response.body), digest, "{what}");
        assert_eq!(rule.hits(), 1, "{what}");
        assert_eq!(upstream.count(On::Blob(digest).whole()), 1, "{what}");
    }
}

/// Nor do parts that are all refused from some moment on: the rest comes by a request for the whole.
#[tokio::test]
async fn parts_that_are_refused_for_good() {
    for status in [403, 404, 416, 500] {
        let (upstream, digest) = far().await;
        let gate = first_waits(&upstream);
        let larder = Larder::start_timed(&upstream, eager(), |_| {}).await;
        let asking = tokio::spawn(Ask::get(blob(REPO, digest)).send(larder.registry()));
        upstream.wait_for(parts(), 3).await;
        upstream.on(parts()).always().status(status);
        gate.open();
        asking.await.unwrap().expect_content(&digest);
        assert!(upstream.count(On::Blobs.whole()) <= 2, "{}", upstream.print());
    }
}

/// One that asks to be spared is: by this transfer and by the next.
#[tokio::test]
async fn a_429_ends_it_for_that_upstream() {
    for status in [429, 503] {
        let (upstream, digest) = far().await;
        let second = upstream.blob(REPO, SIZE);
        let (found_out, never) = (first_waits(&upstream), Gate::closed());
        let refusal = Fault::Status {
            status,
            headers: Vec::new(),
            body: "no".into(),
        };
        let refusals = upstream.on(parts()).always();
        refusals.does([refusal, Fault::StallAfter(0, never.clone())]);
        let larder = Larder::start_timed(&upstream, eager(), |_| {}).await;
        let asking = tokio::spawn(Ask::get(blob(REPO, digest)).send(larder.registry()));
        upstream.wait_for_abort(parts()).await;
        found_out.open();
        asking.await.unwrap().expect_content(&digest);
        larder.get(blob(REPO, second)).await.expect_content(&second);
        assert_eq!(upstream.count(parts()), 1, "{}", upstream.print());
        assert_eq!(upstream.count(On::Blobs.whole()), 2);
    }
}

/// L2: a part that lies is found out where every lie is.
#[tokio::test]
async fn a_flipped_byte_in_a_part_is_found_out() {
    let (upstream, digest) = far().await;
    let rule = upstream.on(parts()).nth(4).flip_byte(77);
    let larder = Larder::start_timed(&upstream, eager(), |_| {}).await;
    let response = larder.get(blob(REPO, digest)).await;
    assert!(rule.hits() == 1 && !response.is_complete());
    larder.until_idle().await;
    assert_eq!(larder.store().size(&digest), None);
    larder.get(blob(REPO, digest)).await.expect_content(&digest);
    assert_eq!(upstream.count(On::Blob(digest).whole()), 2, "it began clean");
}

/// Every connection ends with the transfer.
#[tokio::test]
async fn a_transfer_that_nobody_wants_leaves_no_connection() {
    let (upstream, digest) = far().await;
    let gate = Gate::closed();
    upstream.on(parts()).always().stall_after(1000, &gate);
    let timing = Timing {
        grace: Duration::from_millis(1),
        finish_bytes: 0,
        ..eager()
    };
    let larder = Larder::start_timed(&upstream, timing, |_| {}).await;
    let mut client = Ask::get(blob(REPO, digest)).open(larder.registry()).await;
    gate.wait_for_arrivals(3).await;
    client.read_at_least(1000).await;
    client.abort();
    larder.until_idle().await;
    upstream
        .wait_until("every connection to be dropped", |requests| {
            requests.iter().all(|request| request.is_aborted())
        })
        .await;
    gate.open();
    larder.get(blob(REPO, digest)).await.expect_content(&digest);
}

#[tokio::test]
async fn max_connections_holds() {
    let (upstream, digest) = far().await;
    let larder = Larder::start_timed(&upstream, eager(), |toml| {
        toml.upstream("docker.io", "max_connections", 1);
    })
    .await;
    larder.get(blob(REPO, digest)).await.expect_content(&digest);
    assert_eq!(upstream.count(On::Blobs), 1, "{}", upstream.print());
}

/// L7: a part goes the way of every request, with a token and where it is redirected to.
#[tokio::test]
async fn parts_take_tokens_and_redirects() {
    let (upstream, digest) = far().await;
    let cdn = upstream.start_cdn().await;
    upstream.require_token(TokenPolicy::new());
    upstream.redirect_blobs_to(&cdn);
    cdn.on(On::Storage).always().does([Fault::Pace(PACE)]);
    let larder = Larder::start_timed(&upstream, eager(), |_| {}).await;
    larder.get(blob(REPO, digest)).await.expect_content(&digest);
    assert!(cdn.count(On::Storage.ranged()) > 10, "{}", cdn.print());
    assert_eq!(cdn.count(On::Any.authorized()), 0);
    assert_eq!(upstream.count(On::Token), 1);
}

/// L5: what passes through goes at its reader's pace, over one connection.
#[tokio::test]
async fn what_passes_through_is_not_fetched_ahead() {
    let (upstream, digest) = far().await;
    let larder = Larder::start_timed(&upstream, eager(), |toml| {
        toml.cache("max_size", "4MiB");
    })
    .await;
    larder.get(blob(REPO, digest)).await.expect_content(&digest);
    assert_eq!(upstream.count(parts()), 0, "{}", upstream.print());
}
