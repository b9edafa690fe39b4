//! A site that may ask nobody: what it answers, and what it writes down for whoever fills it.

use serde_json::Value;

use crate::support::client::{Ask, Response};
use crate::support::larder::Larder;
use crate::support::upstream::Upstream;
use crate::support::{blob, manifest, within};

const REPO: &str = "library/alpine";
const NAME: &str = "docker.io/library/alpine";

async fn wishes(larder: &Larder) -> Vec<Value> {
    let list = Ask::get("/api/v1/wishes").send(larder.admin()).await.expect(200).json();
    list["wishes"].as_array().unwrap().clone()
}

async fn until_wished(larder: &Larder, count: usize) -> Vec<Value> {
    within("a wish to be noted", async {
        loop {
            let wishes = wishes(larder).await;
            if wishes.len() >= count {
                return wishes;
            }
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    })
    .await
}

fn message(response: Response) -> String {
    response.expect(404).json()["errors"][0].to_string()
}

/// At once, with a clear word, and when the mirror was filled.
#[tokio::test]
async fn a_miss_says_when_the_mirror_was_filled() {
    let upstream = Upstream::start().await;
    let larder = Larder::start(&upstream, |toml| {
        toml.cache("offline", true);
    })
    .await;
    let never = message(larder.get(manifest(REPO, "3.22")).await);
    assert!(
        never.contains(&format!("{NAME}:3.22 is not in this mirror")) && never.contains("never filled"),
        "{never}"
    );
    let store = larder.store();
    tokio::task::spawn_blocking(move || store.set_filled(1_795_268_400_000, "bundle B-7"))
        .await
        .unwrap();
    for path in [manifest(REPO, "3.22"), blob(REPO, larder::oci::Digest::sha256(b"x"))] {
        let filled = message(larder.get(path).await);
        assert!(
            filled.contains("2026-11-21T13:40:00Z") && filled.contains("bundle B-7"),
            "{filled}"
        );
    }
    // Known after a restart, too.
    let larder = larder.restart().await;
    assert!(message(larder.get(manifest(REPO, "3.22")).await).contains("bundle B-7"));
    assert_eq!(upstream.connections(), 0);
}

/// Tags stand as they were brought in, without a word about their age; the list has those that can be had.
#[tokio::test]
async fn tags_are_served_as_they_were_brought_in() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[1000]);
    upstream.image(REPO, "2", &[1000]);
    let larder = Larder::start(&upstream, |toml| {
        toml.cache("tag_ttl", "0s").cache("stale_if_error", "0s");
    })
    .await;
    larder.get(format!("/v2/{REPO}/tags/list")).await.expect(200);
    larder.get(manifest(REPO, "1")).await.expect(200);
    larder.head(manifest(REPO, "2")).await.expect(200);
    let larder = larder
        .stop()
        .await
        .start(|toml| {
            toml.cache("offline", true);
        })
        .await;
    let served = larder.get(manifest(REPO, "1")).await;
    assert_eq!(served.header("warning"), None);
    assert_eq!(served.header("cache-status"), Some("larder; hit"));
    served.expect_content(&image.manifest);
    let tags = larder.get(format!("/v2/{REPO}/tags/list")).await.expect(200).json();
    assert_eq!(
        tags["tags"],
        serde_json::json!(["1"]),
        "what nobody has fetched cannot be had"
    );
}

/// Only one of the upstreams may not be asked: only its misses are wishes.
#[tokio::test]
async fn misses_are_wishes() {
    let upstream = Upstream::start().await;
    let (amd64, arm64) = (
        upstream.untagged_image(REPO, &[1000]),
        upstream.untagged_image(REPO, &[1000]),
    );
    upstream.index(REPO, "3", &[amd64.manifest, arm64.manifest]);
    let larder = Larder::start(&upstream, |_| {}).await;
    larder.get(manifest(REPO, "3")).await.expect(200);
    larder.get(manifest(REPO, amd64.manifest)).await.expect(200);
    larder.get(manifest(REPO, "none")).await.expect(404);
    let larder = larder
        .stop()
        .await
        .start(|toml| {
            toml.upstream("docker.io", "offline", true);
            toml.upstream("ghcr.io", "url", upstream.url());
        })
        .await;
    assert_eq!(wishes(&larder).await, [] as [Value; 0]);
    larder.get("/v2/ghcr.io/x/y/manifests/none").await.expect(404);
    for _ in 0..3 {
        larder.get(manifest(REPO, "3.22")).await.expect(404);
    }
    larder.head(manifest(REPO, "3.22")).await.expect(404);
    // What tools look for beside an image is no image.
    let signature = format!("sha256-{}.sig", amd64.manifest.hex());
    larder.get(manifest(REPO, signature)).await.expect(404);
    let noted = wishes(&larder).await;
    assert_eq!(noted.len(), 1, "{noted:?}");
    assert_eq!(
        (&noted[0]["image"], &noted[0]["count"]),
        (&format!("{NAME}:3.22").into(), &4.into())
    );
    assert_eq!(noted[0]["platform"], Value::Null);
    assert_eq!(noted[0]["first_by"], "127.0.0.1");
    let first: jiff::Timestamp = noted[0]["first"].as_str().unwrap().parse().unwrap();
    assert!(
        noted[0]["first"].as_str().unwrap().len() == "2026-11-21T13:40:00Z".len() && first <= jiff::Timestamp::now()
    );

    // By digest: the image that it is part of, and for what.
    larder.get(manifest(REPO, arm64.manifest)).await.expect(404);
    let noted = until_wished(&larder, 2).await;
    assert_eq!(
        (&noted[1]["image"], &noted[1]["platform"]),
        (&format!("{NAME}:3").into(), &"linux/arm64".into())
    );
    larder.get(blob(REPO, amd64.layers[0])).await.expect(404);
    let noted = until_wished(&larder, 3).await;
    assert_eq!(
        (&noted[1]["image"], &noted[1]["platform"]),
        (&format!("{NAME}:3").into(), &"linux/amd64".into())
    );

    // Written down, and forgotten when somebody says so.
    let larder = larder.restart().await;
    assert_eq!(wishes(&larder).await.len(), 3);
    let cleared = Ask::new("DELETE", "/api/v1/wishes").header("content-type", "application/json");
    assert_eq!(cleared.send(larder.admin()).await.expect(200).json()["cleared"], 3);
    let larder = larder.restart().await;
    assert_eq!(wishes(&larder).await, [] as [Value; 0]);
}
