//! `max_bandwidth`, by the clock: what all downloads from an upstream may take of the link together.
//!
//! The lower bounds are what the limit promises, and hold on any machine. The upper ones leave a busy machine room.

use std::time::{Duration, Instant};

use larder::oci::Digest;
use larder::pull::{Parallel, Timing};

use crate::support::client::Ask;
use crate::support::larder::{Larder, quick};
use crate::support::toml::Toml;
use crate::support::upstream::{On, Upstream};
use crate::support::{blob, within};

const REPO: &str = "library/alpine";
/// Bytes a second, and bytes: what is limited takes two seconds.
const RATE: usize = 8_000_000;
const BYTES: usize = 2 * RATE;

fn limited(toml: &mut Toml) {
    toml.upstream("docker.io", "max_bandwidth", "8MB/s");
}

/// Seconds that these take when they are asked for at once.
async fn seconds(larder: &Larder, digests: &[Digest]) -> f64 {
    let begun = Instant::now();
    let asking: Vec<_> = digests
        .iter()
        .map(|digest| {
            let (registry, digest) = (larder.registry(), *digest);
            let ask = Ask::get(blob(REPO, digest)).send(registry);
            tokio::spawn(async move { ask.await.expect_content(&digest) })
        })
        .collect();
    for asked in asking {
        within("a blob", asked).await.unwrap();
    }
    begun.elapsed().as_secs_f64()
}

#[track_caller]
fn takes_two_seconds(took: f64) {
    assert!((1.8..6.0).contains(&took), "took {took} s");
}

#[tokio::test]
async fn one_download_keeps_to_the_limit() {
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, BYTES);
    let larder = Larder::start(&upstream, limited).await;
    takes_two_seconds(seconds(&larder, &[digest]).await);
}

#[tokio::test]
async fn many_downloads_keep_to_the_limit_together() {
    let upstream = Upstream::start().await;
    // The sizes differ, or they would be one blob.
    let digests: Vec<Digest> = (0..8).map(|n| upstream.blob(REPO, BYTES / 8 + n)).collect();
    let larder = Larder::start(&upstream, limited).await;
    takes_two_seconds(seconds(&larder, &digests).await);
}

/// Blobs that come in one piece each are paid for as well.
#[tokio::test]
async fn small_blobs_keep_to_the_limit() {
    let upstream = Upstream::start().await;
    let digests: Vec<Digest> = (0..70).map(|n| upstream.blob(REPO, 15_000 + n)).collect();
    let larder = Larder::start(&upstream, |t| {
        t.upstream("docker.io", "max_bandwidth", "512KiB/s");
    })
    .await;
    let begun = Instant::now();
    for digest in &digests {
        larder.get(blob(REPO, *digest)).await.expect_content(digest);
    }
    takes_two_seconds(begun.elapsed().as_secs_f64());
}

/// Each connection of a blob counts.
#[tokio::test]
async fn parallel_connections_keep_to_the_limit() {
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, BYTES);
    let eager = Timing {
        parallel: Parallel {
            connections: 4,
            on_this_machine: true,
            least_left: 0,
            slow_below: u64::MAX,
            measure_for: Duration::ZERO,
            gain: -1e9,
            part_bytes: 1 << 20,
            failures: 1000,
            ..Parallel::default()
        },
        ..quick()
    };
    let larder = Larder::start_timed(&upstream, eager, limited).await;
    takes_two_seconds(seconds(&larder, &[digest]).await);
    assert!(upstream.count(On::Blobs.ranged()) > 1, "{}", upstream.print());
}

/// Bytes that kernels may hold for the two ends of a connection.
const BETWEEN_SOCKETS: u64 = 10_000_000;

/// The upstream sends no more than the limit allows, and what lies between the sockets.
#[tokio::test]
async fn the_upstream_is_held_back() {
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, 8 * RATE);
    let larder = Larder::start(&upstream, limited).await;
    let begun = Instant::now();
    let mut exchange = Ask::get(blob(REPO, digest)).open(larder.registry()).await;
    exchange.read_at_least(BYTES).await;
    let sent = upstream.bytes_sent(On::Blob(digest));
    let allowed = (begun.elapsed().as_secs_f64() * RATE as f64 * 1.1) as u64;
    assert!(
        sent <= allowed + BETWEEN_SOCKETS,
        "{sent} bytes were sent, {allowed} are allowed"
    );
}

/// A download that runs goes by the new limit, though its client is the one of the configuration before.
#[tokio::test]
async fn a_reload_changes_the_limit_of_downloads_under_way() {
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, BYTES);
    let mut larder = Larder::start(&upstream, |t| {
        t.upstream("docker.io", "max_bandwidth", "64KiB/s");
    })
    .await;
    let mut exchange = Ask::get(blob(REPO, digest)).open(larder.registry()).await;
    exchange.read_at_least(64 << 10).await;
    larder
        .reload(|t| {
            t.unset(&["upstream", "docker.io"], "max_bandwidth");
        })
        .unwrap();
    // At the limit of before it would be four minutes.
    let rest = within("the rest", exchange.rest()).await;
    rest.expect_content(&digest);

    // From none to one. The upstream itself sends at four times the limit.
    let digest = upstream.blob(REPO, 10 * RATE);
    upstream.on(On::Blob(digest)).always().throttle(4 * RATE as u64);
    let mut exchange = Ask::get(blob(REPO, digest)).open(larder.registry()).await;
    exchange.read_at_least(1 << 20).await;
    larder.reload(limited).unwrap();
    let (begun, sent) = (Instant::now(), upstream.bytes_sent(On::Blob(digest)));
    upstream.wait_until_sent(&digest, sent + 3 * RATE as u64).await;
    let took = begun.elapsed().as_secs_f64();
    let least = (3 * RATE as u64 - BETWEEN_SOCKETS) as f64 / RATE as f64;
    assert!(took >= 0.9 * least, "took {took} s, at least {least} are right");
}
