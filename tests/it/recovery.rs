//! The real process on a folder whose index is damaged, or that was killed while it copied the index.

use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use fastrand::Rng;

use crate::support::client::Ask;
use crate::support::process::LarderProcess;
use crate::support::upstream::{On, Upstream};
use crate::support::{blob, manifest};

const REPO: &str = "library/alpine";

async fn pin(larder: &LarderProcess, tag: &str) {
    let pin = Ask::new("POST", "/api/v1/pins")
        .header("content-type", "application/json")
        .body(format!(r#"{{"image":"docker.io/{REPO}:{tag}"}}"#));
    pin.send(larder.admin()).await.expect(200);
}

async fn pinned(larder: &LarderProcess) -> usize {
    let list = Ask::get("/api/v1/images").send(larder.admin()).await.expect(200).json();
    let images = list["images"].as_array().expect("images");
    images.iter().filter(|image| image["pinned"] == true).count()
}

/// It starts, says in plain words what it found and from when the copy is, and serves what it had, without an upstream.
#[tokio::test]
async fn a_damaged_index_is_restored_from_its_copy() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[30_000]);
    let mut larder = LarderProcess::start(&upstream, |toml| {
        toml.cache("tag_ttl", "1h");
    })
    .await;
    larder.get(manifest(REPO, "1")).await.expect(200);
    larder.get(blob(REPO, image.layers[0])).await.expect(200);
    pin(&larder, "1").await;
    larder.stop().await;
    let index = larder.cache().join("index.redb");
    let file = std::fs::OpenOptions::new().write(true).open(&index).unwrap();
    let len = usize::try_from(file.metadata().unwrap().len()).unwrap();
    // All but the header.
    file.write_all_at(&vec![0; len - 4096], 4096).unwrap();
    upstream.on(On::Any).always().status(503);
    let larder = larder.restart().await;
    let told = larder.wait_for_log("it was rebuilt from its copy").await;
    assert!(told.contains("pins=1"), "{told}");
    let logs = larder.logs();
    assert!(
        !logs.contains("panicked at") && !logs.contains("stack backtrace"),
        "{logs}"
    );
    for target in [manifest(REPO, "1"), blob(REPO, image.layers[0])] {
        let answer = larder.get(target).await.expect(200);
        assert_eq!(answer.header("cache-status"), Some("larder; hit"));
    }
    assert_eq!(pinned(&larder).await, 1);
    let ready = Ask::get("/readyz").send(larder.admin()).await.expect(200).json();
    let check = ready["checks"]
        .as_array()
        .unwrap()
        .iter()
        .find(|check| check["name"] == "index");
    let detail = check.expect("a check of the index")["detail"].to_string();
    assert!(
        detail.contains("rebuilt from its copy of 2") && detail.contains("1 tag, 1 pin"),
        "{detail}"
    );
    assert_eq!(ready["status"], "ready", "{ready}");
    let stats = Ask::get("/api/v1/stats").send(larder.admin()).await.expect(200).json();
    assert!(stats["index_trouble"].to_string().contains("rebuilt"), "{stats}");
    assert!(stats["index_copied_ms"].as_u64().is_some());
    let metrics = Ask::get("/metrics").send(larder.admin()).await.expect(200);
    let metrics = String::from_utf8(metrics.body).unwrap();
    assert!(
        metrics.contains("larder_index_damaged_total{found=\"start\"} 1"),
        "{metrics}"
    );
    upstream.clear_script();
}

/// L6: killed at any moment while the copy is written, there is a whole one, of now or of before.
#[tokio::test]
async fn killed_while_it_copies() {
    let upstream = Upstream::start().await;
    upstream.image(REPO, "1", &[]);
    let mut larder = LarderProcess::start(&upstream, |toml| {
        toml.cache("tag_ttl", "1h");
    })
    .await;
    larder.get(manifest(REPO, "1")).await.expect(200);
    pin(&larder, "1").await;
    larder = larder.restart().await;
    let mut rng = Rng::with_seed(7);
    for round in 0..8 {
        // Something to be copied by the stop.
        larder.get(manifest(REPO, "1")).await.expect(200);
        pin(&larder, "1").await;
        larder.terminate();
        tokio::time::sleep(Duration::from_micros(rng.u64(..40_000))).await;
        larder.kill_9();
        // Whatever became of it, the copy alone is enough.
        std::fs::remove_file(larder.cache().join("index.redb")).unwrap();
        larder = larder.restart().await;
        assert_eq!(pinned(&larder).await, 1, "round {round}");
        let answer = larder.get(manifest(REPO, "1")).await.expect(200);
        assert_eq!(answer.header("cache-status"), Some("larder; hit"), "round {round}");
        let rest = std::fs::read_dir(larder.cache())
            .unwrap()
            .map(|entry| entry.unwrap().file_name());
        let rest: Vec<_> = rest.filter(|name| name.to_string_lossy().ends_with(".tmp")).collect();
        assert!(rest.is_empty(), "{rest:?}");
    }
}
