//! A disk that fails: pulls go on without it (L5).

use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};

use larder::oci::Digest;
use larder::store::{DiskOp, Fault, Faults};
use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::support::client::{Ask, End};
use crate::support::gate::Gate;
use crate::support::larder::Larder;
use crate::support::process::LarderProcess;
use crate::support::upstream::{On, Upstream};
use crate::support::{blob, manifest};

const REPO: &str = "library/alpine";

/// Nothing can be staged from now on.
fn break_staging(cache: &Path) {
    let staging = cache.join("staging");
    // Larder makes the folder again, perhaps in between.
    for _ in 0..100 {
        std::fs::remove_dir_all(&staging).unwrap();
        if std::fs::write(&staging, "in the way").is_ok() {
            return;
        }
    }
    panic!("{} is always there again", staging.display());
}

#[tokio::test]
async fn what_cannot_be_staged_passes_through() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[100, 300_000]);
    let empty = upstream.put_blob(REPO, "");
    let larder = Larder::start(&upstream, |_| {}).await;
    break_staging(&larder.cache());
    larder.get(manifest(REPO, "1")).await.expect_content(&image.manifest);
    for digest in image.blobs().into_iter().chain([empty]) {
        let response = larder.get(blob(REPO, digest)).await;
        assert_eq!(response.header("cache-status"), Some("larder; fwd=miss"));
        response.expect_content(&digest);
    }
    let large = image.layers[1];
    let bytes = upstream.bytes(&large);
    let ask = |range: &str| Ask::get(blob(REPO, large)).range(range).send(larder.registry());
    let middle = ask("bytes=1000-200000").await.expect(206);
    assert_eq!(middle.header("content-range"), Some("bytes 1000-200000/300000"));
    assert_eq!(middle.body, bytes[1000..=200_000]);
    assert_eq!(ask("bytes=-5").await.expect(206).body, bytes[299_995..]);
    ask("bytes=0-1,5-6").await.expect_content(&large);
    upstream.on(On::Blob(large).get()).cut_after(120_000);
    larder.get(blob(REPO, large)).await.expect_content(&large);
    upstream.on(On::Blob(large).get()).cut_after(120_000);
    upstream.on(On::Blob(large).ranged()).ignore_range();
    larder.get(blob(REPO, large)).await.expect_content(&large);
    larder.get(blob("library/other", large)).await.expect(404);
}

/// Nobody is sent elsewhere because the disk takes nothing: pulls work. Readiness says that it is degraded, and why.
#[tokio::test]
async fn a_proxy_without_a_disk_is_ready_but_degraded() {
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, 1_000);
    let larder = LarderProcess::start(&upstream, |_| {}).await;
    let readiness = async || Ask::get("/readyz").send(larder.admin()).await.expect(200).json();
    let well = readiness().await;
    assert_eq!(
        (&well["ready"], &well["status"]),
        (&true.into(), &"ready".into()),
        "{well}"
    );
    break_staging(&larder.cache());
    // Before anybody has pulled anything.
    let found = readiness().await;
    assert_eq!(
        (&found["ready"], &found["status"]),
        (&true.into(), &"degraded".into()),
        "{found}"
    );
    let bad: Vec<&serde_json::Value> = found["checks"].as_array().unwrap().iter().collect();
    let bad: Vec<_> = bad.into_iter().filter(|check| check["ok"] == false).collect();
    let names: Vec<_> = bad.iter().map(|check| check["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["cache", "disk"], "{found}");
    assert!(
        bad.iter()
            .all(|check| check["detail"].as_str().unwrap().contains("staging")),
        "{found}"
    );
    larder.wait_for_log("the disk fails").await;
    let metrics = Ask::get("/metrics").send(larder.admin()).await.expect(200);
    let text = String::from_utf8(metrics.body).unwrap();
    assert!(text.lines().any(|line| line == "larder_cache_degraded 1"), "{text}");
    larder.get(blob(REPO, digest)).await.expect_content(&digest);
}

/// A part of a blob waits for the verdict on all of it, and holds up nobody meanwhile.
#[tokio::test]
async fn a_range_of_what_passes_through() {
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, 40 << 20);
    let larder = Larder::start(&upstream, |_| {}).await;
    break_staging(&larder.cache());
    let gate = Gate::closed();
    upstream.on(On::Blob(digest).get()).stall_after(1 << 20, &gate);
    let ask = |range: &str| Ask::get(blob(REPO, digest)).range(range).open(larder.registry());
    let mut parts = Vec::new();
    for range in ["bytes=0-99", "bytes=1000-500000", "bytes=20000000-20000009"] {
        parts.push(ask(range).await);
    }
    let mut whole = Ask::get(blob(REPO, digest)).open(larder.registry()).await;
    gate.open();
    whole.read_to_end().await;
    whole.rest().await.expect_content(&digest);
    let bytes = upstream.bytes(&digest);
    for (part, range) in parts.into_iter().zip([0..100, 1000..500_001, 20_000_000..20_000_010]) {
        assert_eq!(part.rest().await.expect(206).body, bytes[range]);
    }
}

/// L2 does not need the disk.
#[tokio::test]
async fn what_passes_through_is_verified() {
    let upstream = Upstream::start().await;
    let digests = [1_000, 20_000, 300_000].map(|length| upstream.blob(REPO, length));
    let larder = Larder::start(&upstream, |_| {}).await;
    break_staging(&larder.cache());
    let wrong = |digest: &Digest| upstream.on(On::Blob(*digest).get()).always().flip_byte(500);
    for digest in &digests {
        wrong(digest);
        let whole = larder.get(blob(REPO, digest)).await;
        assert!(whole.status >= 500 || whole.end != End::Complete, "{whole:?}");
        let part = Ask::get(blob(REPO, digest)).range("bytes=600-800");
        let part = part.send(larder.registry()).await;
        assert!(part.status >= 500 || part.end != End::Complete, "{part:?}");
    }
}

/// In the middle of an answer: the client does not notice.
#[tokio::test]
async fn a_disk_that_fills_up_under_a_transfer() {
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, 12 << 20);
    let larder = LarderProcess::start(&upstream, |_| {}).await;
    let most = Rlimit {
        current: Some(8 << 20),
        maximum: Some(8 << 20),
    };
    let pid = i32::try_from(larder.pid()).ok().and_then(Pid::from_raw);
    prlimit(pid, Resource::Fsize, most).unwrap();
    for _ in 0..2 {
        larder.get(blob(REPO, digest)).await.expect_content(&digest);
    }
    larder.wait_for_log("what cannot be kept passes through").await;
}

/// Blobs without an index are found again, and the start says what is not. Whose they are nobody knows: they cross the link
/// once more (L11), and the disk keeps one copy.
#[tokio::test]
async fn an_index_that_is_gone_is_told() {
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, 30_000);
    let mut larder = LarderProcess::start(&upstream, |_| {}).await;
    larder.get(blob(REPO, digest)).await.expect_content(&digest);
    larder.stop().await;
    assert!(!larder.logs().contains("the index is"), "{}", larder.logs());
    std::fs::remove_file(larder.cache().join("index.redb")).unwrap();
    std::fs::remove_file(larder.cache().join("index.copy")).unwrap();
    let larder = larder.restart().await;
    let told = larder.wait_for_log("it has no copy").await;
    assert!(told.contains("pins are lost"), "{told}");
    larder.wait_for_log("the index is rebuilt").await;
    for _ in 0..2 {
        larder.get(blob(REPO, digest)).await.expect_content(&digest);
    }
    assert_eq!(upstream.count(On::Blobs.get()), 2, "{}", upstream.print());
}

/// A disk whose writes stand still until they may go, or fail.
#[derive(Clone, Default)]
struct Still(Arc<(Mutex<Option<bool>>, Condvar)>);

impl Still {
    fn faults(&self) -> Faults {
        let still = self.0.clone();
        Arc::new(move |op, _: &Path| {
            if op != DiskOp::Write {
                return None;
            }
            let (verdict, told) = &*still;
            let verdict = told.wait_while(verdict.lock().unwrap(), |verdict| verdict.is_none());
            let works = verdict.unwrap().unwrap_or_default();
            (!works).then(|| Fault::Error(std::io::Error::from_raw_os_error(28)))
        })
    }

    fn end(&self, works: bool) {
        *self.0.0.lock().unwrap() = Some(works);
        self.0.1.notify_all();
    }
}

/// Nobody stays behind a test that fails.
impl Drop for Still {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.end(false);
        }
    }
}

/// A first byte waits for the upstream, not for the disk; and what is small waits for its digest only.
#[tokio::test]
async fn first_bytes_do_not_wait_for_the_disk() {
    for works in [true, false] {
        let upstream = Upstream::start().await;
        let [small, large] = [50_000, 3 << 20].map(|length| upstream.blob(REPO, length));
        let wrong = upstream.blob(REPO, 40_000);
        upstream.on(On::Blob(wrong).get()).always().flip_byte(500);
        let still = Still::default();
        let larder = Larder::start_faulty(&upstream, still.faults(), |_| {}).await;
        larder.get(blob(REPO, small)).await.expect_content(&small);
        assert!(
            larder.get(blob(REPO, wrong)).await.status >= 500,
            "told from what is right without the disk"
        );
        let mut whole = Ask::get(blob(REPO, large)).open(larder.registry()).await;
        assert!(whole.read_at_least(900_000).await.len() >= 900_000);
        // Who comes later finds them too, from any place.
        let ranged = Ask::get(blob(REPO, large)).range("bytes=300000-800000");
        let mut part = ranged.open(larder.registry()).await;
        assert!(part.read_at_least(480_000).await.len() >= 480_000);
        still.end(works);
        whole.rest().await.expect_content(&large);
        assert_eq!(
            part.rest().await.expect(206).body,
            upstream.bytes(&large)[300_000..=800_000]
        );
        assert_eq!(upstream.count(On::Blob(large).get()), 1, "{}", upstream.print());
        larder.until_idle().await;
        let left = std::fs::read_dir(larder.cache().join("staging")).unwrap().count();
        assert_eq!(left, 0, "nothing of what could not be written stays");
        for digest in [small, large] {
            larder.get(blob(REPO, digest)).await.expect_content(&digest);
            let expected = if works { 1 } else { 2 };
            assert_eq!(upstream.count(On::Blob(digest).get()), expected, "{}", upstream.print());
        }
    }
}

/// L2: as long as nothing is verified, the last bytes are not given out, wherever they are.
#[tokio::test]
async fn first_bytes_that_are_wrong() {
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, 700_000);
    upstream.on(On::Blob(digest).get()).always().flip_byte(500);
    let still = Still::default();
    let larder = Larder::start_faulty(&upstream, still.faults(), |_| {}).await;
    let mut whole = Ask::get(blob(REPO, digest)).open(larder.registry()).await;
    assert!(whole.read_at_least(600_000).await.len() <= 700_000 - 16_384);
    still.end(true);
    let whole = whole.rest().await;
    assert!(
        whole.end != End::Complete && whole.body.len() <= 700_000 - 16_384,
        "{:?}",
        whole.end
    );
}
