//! Where the time of an answer went: `Server-Timing`, and the histograms.

use larder::oci::Digest;

use crate::support::client::{Ask, Response};
use crate::support::larder::Larder;
use crate::support::upstream::{On, TokenPolicy, Upstream};
use crate::support::{blob, manifest};

const REPO: &str = "library/alpine";

/// The names of the entries; each but `cache` has a duration.
fn entries(response: &Response) -> Vec<String> {
    let text = response.header("server-timing").unwrap();
    let entry = |entry: &str| {
        let (name, rest) = entry.split_once(';').unwrap();
        match rest.split_once('=').unwrap() {
            ("desc", word) => format!("{name} {word}"),
            ("dur", ms) => {
                assert!(ms.parse::<f64>().unwrap() >= 0.0, "{text}");
                name.to_owned()
            }
            _ => panic!("{text}"),
        }
    };
    text.split(", ").map(entry).collect()
}

async fn timed(larder: &Larder, ask: Ask) -> Response {
    ask.header("Larder-Timing", "1").send(larder.registry()).await
}

#[tokio::test]
async fn whoever_asks_is_told() {
    let upstream = Upstream::start().await;
    upstream.require_token(TokenPolicy::new());
    let image = upstream.image(REPO, "1", &[200_000]);
    let larder = Larder::start(&upstream, |_| {}).await;
    let (tag, layer) = (manifest(REPO, "1"), blob(REPO, image.layers[0]));

    let cold = timed(&larder, Ask::get(&tag)).await.expect(200);
    let told = entries(&cold);
    for wanted in ["cache miss", "token", "upstream", "total"] {
        assert!(told.iter().any(|entry| entry == wanted), "{wanted}: {told:?}");
    }
    let cold = timed(&larder, Ask::get(&layer)).await.expect(200);
    let told = entries(&cold);
    assert!(
        told.contains(&"cache miss".to_owned()) && told.contains(&"upstream".to_owned()),
        "{told:?}"
    );

    larder.until_held(&layer).await;
    let hot = timed(&larder, Ask::get(&tag)).await.expect(200);
    let _ = timed(&larder, Ask::get(&tag)).await.expect(200);
    assert_eq!(entries(&hot).first().unwrap(), "cache hit");
    assert!(!entries(&hot).contains(&"upstream".to_owned()), "{hot:?}");
    // Its file is open still: `until_held` asked for it. So nobody waits for the disk.
    let hot = timed(&larder, Ask::get(&layer)).await.expect(200);
    assert_eq!(entries(&hot), ["cache hit", "total"]);

    // Told from memory: nothing is waited for, and the head that is kept for others has no times of ours.
    larder.get("/v2/").await.expect(200);
    assert_eq!(entries(&timed(&larder, Ask::get("/v2/")).await), ["total"]);
    for path in ["/v2/", &tag, &layer] {
        let unasked = larder.get(path).await.expect(200);
        assert_eq!(unasked.header("server-timing"), None, "{path}");
    }
    let not_now = Ask::get(&tag).header("Larder-Timing", "0");
    assert_eq!(not_now.send(larder.registry()).await.header("server-timing"), None);
}

/// L8: whether something is held that may not be had is nobody's business, and names are not told.
#[tokio::test]
async fn an_error_tells_times_and_nothing_else() {
    let upstream = Upstream::start().await;
    let digest = upstream.blob("secret/app", 100_000);
    let larder = Larder::start(&upstream, |_| {}).await;
    larder.get(blob("secret/app", digest)).await.expect_content(&digest);
    larder.until_held(&blob("secret/app", digest)).await;
    // The upstream is asked for the first of each, and not again.
    let unheard = Digest::sha256(b"never asked for before");
    for path in [blob("other/app", digest), blob("other/app", unheard)] {
        for _ in 0..2 {
            let refused = timed(&larder, Ask::get(&path)).await.expect(404);
            assert_eq!(entries(&refused), ["total"], "{path}");
        }
    }
    upstream.on(On::Blobs.get()).always().status(500);
    let failed = timed(&larder, Ask::get(blob("secret/app", unheard))).await;
    assert!(failed.status >= 500, "{failed:?}");
    assert_eq!(entries(&failed), ["upstream", "total"]);
}

#[tokio::test]
async fn everybody_is_told_where_the_operator_says_so() {
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, 100_000);
    let larder = Larder::start(&upstream, |toml| {
        toml.server("server_timing", true);
    })
    .await;
    for _ in 0..2 {
        let head = larder.head(blob(REPO, digest)).await.expect(200);
        assert!(entries(&head).contains(&"total".to_owned()), "{head:?}");
    }
}

#[tokio::test]
async fn the_histograms() {
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, 100_000);
    let larder = Larder::start(&upstream, |_| {}).await;
    larder.get(blob(REPO, digest)).await.expect_content(&digest);
    assert_eq!(upstream.count(On::Blob(digest).get()), 1);
    let text = larder.metrics().await;
    for line in [
        "larder_request_seconds_count{route=\"blob\"}",
        "larder_blob_first_byte_seconds_count{outcome=\"miss\"}",
        "larder_upstream_answer_seconds_count{upstream=\"docker.io\",kind=\"blob\"}",
    ] {
        assert!(text.contains(line), "no {line} in {text}");
    }
}
