//! `rm -rf` of the cache folder, or of what is in it, under a proxy that runs.

use std::path::Path;

use crate::support::client::Ask;
use crate::support::gate::Gate;
use crate::support::hook::Endpoint;
use crate::support::process::LarderProcess;
use crate::support::ran::{ask, pull, settle};
use crate::support::upstream::{On, Upstream};
use crate::support::{blob, manifest, within};

const REPO: &str = "library/alpine";

fn empty(folder: &Path) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => std::fs::remove_dir_all(path).unwrap(),
            false => std::fs::remove_file(path).unwrap(),
        }
    }
}

async fn status(larder: &LarderProcess) -> String {
    let ready = Ask::get("/readyz").send(larder.admin()).await.expect(200).json();
    ready["status"].as_str().unwrap().to_owned()
}

/// Pulls are cached again by themselves, and what came since outlives a crash; tags and pins stay.
async fn goes_on_after(remove: impl Fn(&Path)) {
    let upstream = Upstream::start().await;
    let old = upstream.image(REPO, "1", &[1000, 300_000]);
    let new = upstream.image("library/new", "2", &[2000, 400_000]);
    let larder = LarderProcess::start(&upstream, |t| {
        t.cache("tag_ttl", "1h");
    })
    .await;
    pull(&larder, &old, "1").await;
    ask(&larder, &["pin", &format!("{REPO}:1")]).await.expect(0);
    remove(&larder.cache());
    larder
        .wait_for_log("what is gone from the cache folder is forgotten")
        .await;
    larder.wait_for_log("the index is on the disk again").await;
    pull(&larder, &new, "2").await;
    pull(&larder, &old, "1").await;
    settle(&larder).await;
    upstream.forget();
    for (repo, image) in [(REPO, &old), ("library/new", &new)] {
        for digest in image.blobs() {
            let again = larder.get(blob(repo, digest)).await;
            assert_eq!(again.header("cache-status"), Some("larder; hit"));
            again.expect_content(&digest);
        }
    }
    within("it to be well again", async {
        while status(&larder).await != "ready" {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
    let stats = Ask::get("/api/v1/stats").send(larder.admin()).await.expect(200).json();
    assert!(
        stats["disk_trouble"].is_null() && stats["index_trouble"].is_null(),
        "{stats}"
    );
    let mut larder = larder;
    larder.kill_9();
    let larder = larder.restart().await;
    assert!(
        !larder.logs().contains("the index is damaged or gone"),
        "{}",
        larder.logs()
    );
    for (repo, tag, image) in [(REPO, "1", &old), ("library/new", "2", &new)] {
        larder.get(manifest(repo, tag)).await.expect_content(&image.manifest);
        for digest in image.blobs() {
            larder.get(blob(repo, digest)).await.expect_content(&digest);
        }
    }
    assert_eq!(upstream.count(On::Blobs), 0, "{}", upstream.print());
    assert_eq!(upstream.count(On::Manifests), 0, "{}", upstream.print());
    let held = ask(&larder, &["ls", "--json"]).await.expect(0).out;
    assert!(held.contains("\"pinned\": true"), "{held}");
}

#[tokio::test]
async fn an_emptied_cache_folder_is_used_again() {
    goes_on_after(empty).await;
}

#[tokio::test]
async fn a_removed_cache_folder_is_made_again() {
    goes_on_after(|folder| std::fs::remove_dir_all(folder).unwrap()).await;
}

/// A download that runs meanwhile is finished for its client, kept, and counted as what it is.
#[tokio::test]
async fn a_download_outlives_the_emptying() {
    for is_found_first in [true, false] {
        let upstream = Upstream::start().await;
        let digest = upstream.blob(REPO, 3_000_000);
        let larder = LarderProcess::start(&upstream, |_| {}).await;
        let gate = Gate::closed();
        upstream.on(On::Blob(digest)).stall_after(1_000_000, &gate);
        let mut running = Ask::get(blob(REPO, digest)).open(larder.registry()).await;
        running.read_at_least(500_000).await;
        empty(&larder.cache());
        if is_found_first {
            larder.wait_for_log("the index is on the disk again").await;
        }
        gate.open();
        running.rest().await.expect_content(&digest);
        within("the blob to be kept", async {
            loop {
                let again = larder.get(blob(REPO, digest)).await;
                if again.header("cache-status") == Some("larder; hit") {
                    return again.expect_content(&digest);
                }
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        })
        .await;
        assert_eq!(
            upstream.count(On::Blob(digest).get()),
            1,
            "{}\n{}",
            upstream.print(),
            larder.logs()
        );
        let stats = Ask::get("/api/v1/stats").send(larder.admin()).await.expect(200).json();
        assert_eq!(stats["staged_bytes"].as_u64().unwrap_or(0), 0, "{stats}");
        assert!(stats["disk_trouble"].is_null(), "{stats}");
    }
}

/// Events that were waiting are lost with their file; those that come later arrive.
#[tokio::test]
async fn webhooks_go_on() {
    let upstream = Upstream::start().await;
    let digests: Vec<_> = (0..3).map(|n| upstream.blob(REPO, 100 + n)).collect();
    let hook = Endpoint::start().await;
    let larder = LarderProcess::start(&upstream, |t| {
        t.set(&["webhook", "ci"], "url", hook.url());
        t.set(&["webhook", "ci"], "backoff", "5ms");
    })
    .await;
    larder.get(blob(REPO, digests[0])).await.expect_content(&digests[0]);
    hook.until_events(1).await;
    empty(&larder.cache());
    larder
        .wait_for_log("what is gone from the cache folder is forgotten")
        .await;
    larder.get(blob(REPO, digests[1])).await.expect_content(&digests[1]);
    larder.get(blob(REPO, digests[2])).await.expect_content(&digests[2]);
    let last = digests[2].to_string();
    hook.until("an event to arrive", |hook| {
        hook.events().iter().any(|event| event.to_string().contains(&last))
    })
    .await;
}
