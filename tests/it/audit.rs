//! The audit log: who pulled what, what came from where, what went and why.

use serde_json::Value;

use crate::support::client::Ask;
use crate::support::larder::Larder;
use crate::support::upstream::Upstream;
use crate::support::{blob, manifest};

const REPO: &str = "library/alpine";

fn lines(file: &std::path::Path) -> Vec<Value> {
    let text = std::fs::read_to_string(file).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn everything_that_happens_is_a_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("audit.log");
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[5000]);
    let layer = image.layers[0];
    let larder = Larder::start(&upstream, |t| {
        t.set(&["audit"], "file", file.to_str().unwrap());
        t.upstream("docker.io", "deny", vec!["secret/*".to_owned()]);
    })
    .await;
    for _ in 0..3 {
        let ask = Ask::get(manifest(REPO, "1")).header("user-agent", "containerd/2");
        ask.send(larder.registry()).await.expect_content(&image.manifest);
    }
    larder.get(blob(REPO, layer)).await.expect_content(&layer);
    larder.until_idle().await;
    // Not a pull: nothing was got.
    larder.head(blob(REPO, layer)).await.expect(200);
    larder.get(manifest(REPO, "none")).await.expect(404);
    larder.get(manifest("secret/x", "1")).await.expect(403);
    let call = |method: &'static str, path: String, body: String| {
        let ask = Ask::new(method, path)
            .header("content-type", "application/json")
            .body(body);
        ask.send(larder.admin())
    };
    let one = r#"{"image":"alpine:1"}"#.to_owned();
    call("POST", "/api/v1/pins".to_owned(), one.clone()).await.expect(200);
    call("DELETE", "/api/v1/pins".to_owned(), one).await.expect(200);
    call("DELETE", "/api/v1/images/alpine:1".to_owned(), String::new())
        .await
        .expect(200);
    // What it says last is there when it has stopped.
    let _stopped = larder.stop().await;
    let lines = lines(&file);
    let of = |action: &str| -> Vec<&Value> { lines.iter().filter(|line| line["action"] == action).collect() };
    let key = format!("docker.io/{REPO}");
    let pulls = of("pull");
    assert_eq!(pulls.len(), 4, "{lines:#?}");
    for (pull, outcome) in pulls.iter().zip(["miss", "hit", "hit"]) {
        assert_eq!(
            (&pull["repository"], &pull["reference"]),
            (&key.as_str().into(), &"1".into())
        );
        assert_eq!(pull["digest"], image.manifest.to_string());
        assert_eq!(
            (&pull["reason"], &pull["status"], &pull["complete"]),
            (&outcome.into(), &200.into(), &true.into())
        );
        assert_eq!(
            (&pull["user_agent"], &pull["upstream"]),
            (&"containerd/2".into(), &"docker.io".into())
        );
        assert!(pull["client"].as_str().unwrap().starts_with("127.0.0.1:"));
        assert!(pull["time"].as_str().unwrap().ends_with('Z'));
    }
    assert_eq!(
        (&pulls[3]["digest"], &pulls[3]["bytes"]),
        (&layer.to_string().into(), &5000.into())
    );
    let fetches = of("fetch");
    assert_eq!(fetches.len(), 2);
    assert_eq!(fetches[0]["digest"], image.manifest.to_string());
    assert_eq!(
        (&fetches[1]["digest"], &fetches[1]["bytes"]),
        (&layer.to_string().into(), &5000.into())
    );
    assert_eq!(
        (&fetches[1]["upstream"], &fetches[1]["repository"]),
        (&"docker.io".into(), &key.as_str().into())
    );
    let refused = of("refuse");
    assert_eq!(refused.len(), 1);
    assert_eq!(
        (&refused[0]["repository"], &refused[0]["status"]),
        (&"secret/x".into(), &403.into())
    );
    for action in ["pin", "unpin", "remove"] {
        assert_eq!(of(action)[0]["repository"], key, "{action}");
    }
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&file).unwrap());
    assert_eq!(mode & 0o777, 0o600);
}

/// What makes room is told, and for whose limit.
#[tokio::test]
async fn evictions_have_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("audit.log");
    let upstream = Upstream::start().await;
    let larder = Larder::start(&upstream, |t| {
        t.set(&["audit"], "file", file.to_str().unwrap());
        t.upstream("docker.io", "max_size", "1MiB");
    })
    .await;
    let first = upstream.blob(REPO, 700 << 10);
    let second = upstream.blob(REPO, 701 << 10);
    for digest in [first, second] {
        larder.get(blob(REPO, digest)).await.expect_content(&digest);
        larder.until_held(&blob(REPO, digest)).await;
    }
    let _stopped = larder.stop().await;
    let evicted: Vec<Value> = lines(&file)
        .into_iter()
        .filter(|line| line["action"] == "evict")
        .collect();
    assert_eq!(evicted.len(), 1, "{evicted:#?}");
    assert_eq!(evicted[0]["digest"], first.to_string());
    assert_eq!(evicted[0]["reason"], "upstream max_size");
    assert_eq!(evicted[0]["repository"], format!("docker.io/{REPO}"));
}
