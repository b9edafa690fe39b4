//! `larder serve` as a process: its lines, its operators' address, its end.

use rustix::process::Signal;

use crate::support::client::{Ask, Connection};
use crate::support::gate::Gate;
use crate::support::process::LarderProcess;
use crate::support::upstream::{On, Upstream};
use crate::support::{blob, manifest};

const REPO: &str = "library/alpine";

#[tokio::test]
async fn the_operators_address() {
    let upstream = Upstream::start().await;
    upstream.image(REPO, "1", &[]);
    upstream.go_down().await;
    let larder = LarderProcess::start(&upstream, |_| {}).await;
    for path in ["/healthz", "/readyz"] {
        Ask::get(path).send(larder.admin()).await.expect(200);
    }
    upstream.come_up().await;
    larder.get(manifest(REPO, "1")).await.expect(200);
    larder.get(manifest(REPO, "1")).await.expect(200);
    let metrics = Ask::get("/metrics").send(larder.admin()).await.expect(200);
    assert!(metrics.header("content-type").unwrap().starts_with("text/plain"));
    let text = String::from_utf8(metrics.body).unwrap();
    assert!(text.contains("# TYPE larder_"), "{text}");
    // Operators' pages are not on the registry's address, nor the registry on theirs.
    assert!(larder.get("/metrics").await.status >= 400);
    assert!(Ask::get("/v2/").send(larder.admin()).await.status >= 400);
}

/// One line a request: method, path, status, bytes, duration, outcome, upstream, client.
#[tokio::test]
async fn the_access_log() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[1234]);
    let larder = LarderProcess::start(&upstream, |t| {
        t.set(&["log"], "format", "json");
    })
    .await;
    let path = blob(REPO, image.layers[0]);
    larder.get(&path).await.expect(200);
    let line = larder.wait_for_log(&path).await;
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    let text = line.to_string();
    for part in ["\"GET\"", "200", "1234", "\"miss\"", "docker.io", "127.0.0.1"] {
        assert!(text.contains(part), "no {part} in {text}");
    }
}

/// SIGTERM: the answer that runs is finished, nobody new is let in, and the exit status is 0.
#[tokio::test]
async fn a_graceful_stop() {
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, 1_000_000);
    let gate = Gate::closed();
    upstream.on(On::Blobs).stall_after(500_000, &gate);
    let mut larder = LarderProcess::start(&upstream, |_| {}).await;
    let mut running = Ask::get(blob(REPO, digest)).open(larder.registry()).await;
    running.read_at_least(100_000).await;
    larder.terminate();
    larder.wait_for_log("stopping").await;
    crate::support::within("new connections to be refused", async {
        while Connection::try_open(larder.registry()).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // Now, and only now, requests should go elsewhere.
    let ready = Ask::get("/readyz").send(larder.admin()).await.expect(503).json();
    assert_eq!(ready["status"], "unavailable", "{ready}");
    gate.open();
    running.rest().await.expect_content(&digest);
    assert_eq!(larder.stop().await, Some(0), "{}", larder.logs());
}

/// The grace has an end.
#[tokio::test]
async fn a_stop_is_bounded() {
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, 1_000_000);
    let never = Gate::closed();
    upstream.on(On::Blobs).stall_after(500_000, &never);
    let mut larder = LarderProcess::start(&upstream, |t| {
        t.server("shutdown_grace", "100ms");
    })
    .await;
    let mut running = Ask::get(blob(REPO, digest)).open(larder.registry()).await;
    running.read_at_least(100_000).await;
    assert_eq!(larder.stop().await, Some(0), "{}", larder.logs());
    assert!(!running.rest().await.is_complete());
}

/// Whoever asks twice does not want to wait for a client that takes minutes.
#[tokio::test]
async fn a_second_signal_ends_the_grace() {
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, 1_000_000);
    let never = Gate::closed();
    upstream.on(On::Blobs).stall_after(500_000, &never);
    let mut larder = LarderProcess::start(&upstream, |t| {
        t.server("shutdown_grace", "1h");
    })
    .await;
    let mut running = Ask::get(blob(REPO, digest)).open(larder.registry()).await;
    running.read_at_least(100_000).await;
    larder.terminate();
    larder.wait_for_log("a second signal cuts them").await;
    // A signal that comes sooner is the same wish.
    tokio::time::sleep(std::time::Duration::from_millis(600)).await;
    // The cache is closed in order all the same.
    assert_eq!(larder.stop().await, Some(0), "{}", larder.logs());
    let line = larder.wait_for_log("the wait was ended").await;
    assert!(line.contains("connections=1"), "{line}");
    larder.wait_for_log("stopped").await;
    assert!(!running.rest().await.is_complete());
}

/// A terminal's Ctrl-C goes to all processes of its group, and a supervisor passes it on: that is one wish, by two
/// signals.
#[tokio::test]
async fn signals_that_come_together_cut_nothing() {
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, 1_000_000);
    let gate = Gate::closed();
    upstream.on(On::Blobs).stall_after(500_000, &gate);
    let mut larder = LarderProcess::start(&upstream, |t| {
        t.server("shutdown_grace", "1h");
    })
    .await;
    let mut running = Ask::get(blob(REPO, digest)).open(larder.registry()).await;
    running.read_at_least(100_000).await;
    larder.signal(Signal::INT);
    larder.signal(Signal::TERM);
    larder.wait_for_log("a second signal cuts them").await;
    // Time enough to be heard; if they are heard later the test is only milder.
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert!(
        !larder.logs().contains("running responses are cut"),
        "{}",
        larder.logs()
    );
    gate.open();
    running.rest().await.expect_content(&digest);
    assert_eq!(larder.ended().await, Some(0), "{}", larder.logs());
}

/// A second Larder on the same folder would damage it.
#[tokio::test]
async fn one_larder_a_folder() {
    let upstream = Upstream::start().await;
    let larder = LarderProcess::start(&upstream, |_| {}).await;
    let mut second = crate::support::process::command(larder.folder());
    let output = second.args(["serve", "--config", "proxy.toml"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("cache"), "{text}");
    larder.get("/v2/").await.expect(200);
}

/// A client is an open file, and so is a blob that is being sent: the limit that shells give is for other programs.
#[tokio::test]
async fn as_many_open_files_as_there_may_be() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum.map(|most| most.min(512));
    // It is this process's as well, and what it starts inherits it; each test has a process of its own.
    setrlimit(Resource::Nofile, limit).unwrap();
    let upstream = Upstream::start().await;
    let larder = LarderProcess::start(&upstream, |_| {}).await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", larder.pid())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(words[3], words[4], "{line}");
    assert_ne!(words[3], "512", "{line}");
}
