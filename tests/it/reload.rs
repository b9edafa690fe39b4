//! Another configuration while it runs: on SIGHUP, and when the file changes.

use std::os::unix::net::UnixDatagram;

use rustix::process::{Pid, Signal, kill_process};

use crate::support::client::Ask;
use crate::support::process::LarderProcess;
use crate::support::toml::Toml;
use crate::support::upstream::{On, Upstream};
use crate::support::{DEADLINE, blob, manifest};

const REPO: &str = "library/alpine";
const HOLDS: &str = "the configuration was read again and holds";
const REFUSED: &str = "the configuration is refused: the previous configuration stays active";

fn path(larder: &LarderProcess) -> std::path::PathBuf {
    larder.folder().join("proxy.toml")
}

/// Writes another configuration, as an editor does: a new file in place of the old one.
fn change(larder: &LarderProcess, text: &str) {
    let beside = larder.folder().join("proxy.toml.new");
    std::fs::write(&beside, text).unwrap();
    std::fs::rename(beside, path(larder)).unwrap();
}

fn changed(larder: &LarderProcess, with: impl FnOnce(&mut Toml)) {
    let mut toml = Toml::parse(&std::fs::read_to_string(path(larder)).unwrap());
    with(&mut toml);
    change(larder, &toml.text());
}

fn hang_up(larder: &LarderProcess) {
    let pid = i32::try_from(larder.pid()).ok().and_then(Pid::from_raw).unwrap();
    kill_process(pid, Signal::HUP).unwrap();
}

/// Until a line with `text` has come `n` times.
async fn told(larder: &LarderProcess, text: &str, n: usize) {
    larder.wait_for_log(text).await;
    crate::support::within("another line", async {
        while larder.logs().matches(text).count() < n {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await;
}

async fn metric(larder: &LarderProcess, name: &str) -> String {
    let answer = Ask::get("/metrics").send(larder.admin()).await.expect(200);
    let text = String::from_utf8(answer.body.to_vec()).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).to_owned()
}

/// `deny`, what is hot in memory included; another upstream; limits of the cache.
#[tokio::test]
async fn what_may_be_pulled_changes_without_a_restart() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[1000]);
    let larder = LarderProcess::start(&upstream, |t| {
        t.cache("tag_ttl", "1h");
    })
    .await;
    for _ in 0..3 {
        larder.get(manifest(REPO, "1")).await.expect_content(&image.manifest);
    }
    larder.get(manifest("r.example/a/b", "1")).await.expect(404);
    changed(&larder, |t| {
        t.upstream("docker.io", "deny", vec![REPO.to_owned()]);
        t.upstream("r.example", "url", upstream.url());
        t.cache("max_size", "7GiB");
    });
    hang_up(&larder);
    told(&larder, HOLDS, 1).await;
    larder.get(manifest(REPO, "1")).await.expect(403);
    larder.head(manifest(REPO, "1")).await.expect(403);
    let other = upstream.image("a/b", "1", &[5]);
    larder
        .get(manifest("r.example/a/b", "1"))
        .await
        .expect_content(&other.manifest);
    let stats = Ask::get("/api/v1/stats").send(larder.admin()).await.expect(200).json();
    assert_eq!(stats["max_bytes"], 7_u64 << 30);
    // Nobody had to sign for what was held all along.
    changed(&larder, |t| {
        t.unset(&["upstream", "docker.io"], "deny");
    });
    hang_up(&larder);
    told(&larder, HOLDS, 2).await;
    upstream.forget();
    larder.get(manifest(REPO, "1")).await.expect_content(&image.manifest);
    assert_eq!(upstream.requests().len(), 0);
}

/// Without a signal, when the file has come to rest.
#[tokio::test]
async fn a_changed_file_is_read_by_itself() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[10]);
    upstream.require_basic("me", "second");
    let larder = LarderProcess::start(&upstream, |t| {
        t.upstream("docker.io", "username", "me");
        t.upstream("docker.io", "password", "first");
        t.everybody_may_pull();
    })
    .await;
    larder.get(manifest(REPO, "1")).await.expect(404);
    changed(&larder, |t| {
        t.upstream("docker.io", "password", "second");
    });
    told(&larder, HOLDS, 1).await;
    larder.get(manifest(REPO, "1")).await.expect_content(&image.manifest);
    assert_eq!(upstream.count(On::Manifests.authorized()), 2, "{}", upstream.print());
    assert!(!larder.logs().contains("second"));
}

/// The previous one stays active, and file, line and key are told: in the log, in `/readyz`, and as a metric.
#[tokio::test]
async fn a_bad_file_changes_nothing() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[10]);
    let larder = LarderProcess::start(&upstream, |_| {}).await;
    assert_eq!(metric(&larder, "larder_config_last_reload_ok").await, "1");
    let good = std::fs::read_to_string(path(&larder)).unwrap();
    change(
        &larder,
        &format!("[log]\nlevel = \"chatty\"\n{good}\n[upstream.\"ghcr.io\"]\ntag_ttll = \"1h\"\n"),
    );
    hang_up(&larder);
    told(&larder, REFUSED, 1).await;
    let logs = larder.logs();
    for what in ["proxy.toml:2: log.level", "chatty", "tag_ttll", "did you mean"] {
        assert!(logs.contains(what), "{what}\n{logs}");
    }
    assert_eq!(metric(&larder, "larder_config_last_reload_ok").await, "0");
    let ready = Ask::get("/readyz").send(larder.admin()).await.expect(200).json();
    assert_eq!(ready["status"], "degraded");
    assert!(ready.to_string().contains("proxy.toml:2"), "{ready}");
    larder.get(manifest(REPO, "1")).await.expect_content(&image.manifest);
    change(&larder, &good);
    hang_up(&larder);
    told(&larder, HOLDS, 1).await;
    assert_eq!(metric(&larder, "larder_config_last_reload_ok").await, "1");
    let ready = Ask::get("/readyz").send(larder.admin()).await.expect(200).json();
    assert_eq!(ready["status"], "ready");
}

/// As an editor leaves it that truncates and then writes: the defaults are not what anybody asked for by that.
#[tokio::test]
async fn an_empty_file_changes_nothing() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[10]);
    let larder = LarderProcess::start(&upstream, |_| {}).await;
    let good = std::fs::read_to_string(path(&larder)).unwrap();
    std::fs::write(path(&larder), "").unwrap();
    // By itself, when the file has come to rest.
    told(&larder, REFUSED, 1).await;
    let line = larder.wait_for_log(REFUSED).await;
    assert!(
        line.contains("proxy.toml") && line.contains("found an empty file"),
        "{line}"
    );
    let ready = Ask::get("/readyz").send(larder.admin()).await.expect(200).json();
    assert_eq!(ready["status"], "degraded");
    std::fs::write(path(&larder), "# nothing\n").unwrap();
    hang_up(&larder);
    told(&larder, REFUSED, 2).await;
    // By the defaults docker.io would be the real one.
    larder.get(manifest(REPO, "1")).await.expect_content(&image.manifest);
    change(&larder, &good);
    told(&larder, HOLDS, 1).await;
    let ready = Ask::get("/readyz").send(larder.admin()).await.expect(200).json();
    assert_eq!(ready["status"], "ready");
}

/// Transfers go on as they began, and what cannot change is named.
#[tokio::test]
async fn transfers_outlive_a_reload() {
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, 300_000);
    let gate = crate::support::gate::Gate::closed();
    upstream.on(On::Blobs).stall_after(100_000, &gate);
    let larder = LarderProcess::start(&upstream, |_| {}).await;
    let asking = tokio::spawn(Ask::get(blob(REPO, digest)).send(larder.registry()));
    gate.wait_for_arrivals(1).await;
    changed(&larder, |t| {
        t.set(&["log"], "format", "json");
        t.upstream("docker.io", "offline", true);
    });
    hang_up(&larder);
    told(&larder, "needs a restart", 1).await;
    let logs = larder.logs();
    assert!(
        logs.contains("key=\"log.format\" holds=\"text\" wanted=\"json\""),
        "{logs}"
    );
    gate.open();
    asking.await.unwrap().expect_content(&digest);
    larder.get(manifest(REPO, "none")).await.expect(404);
    assert_eq!(upstream.count(On::Manifests), 0);
}

/// sd_notify(3): systemd waits for READY=1 after RELOADING=1, and wants to know since when.
#[tokio::test]
async fn systemd_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    let notify = folder.path().join("notify");
    let upstream = Upstream::start().await;
    let larder = LarderProcess::start_with(&upstream, &[("NOTIFY_SOCKET", notify.to_str().unwrap())], |_| {}).await;
    let mut buffer = [0; 4096];
    let mut next = || {
        let len = socket.recv(&mut buffer).expect("a message");
        String::from_utf8_lossy(&buffer[..len]).into_owned()
    };
    assert!(next().contains("READY=1"));
    hang_up(&larder);
    let reloading = next();
    let since = reloading.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC="));
    assert!(
        reloading.contains("RELOADING=1") && since.unwrap().parse::<u64>().unwrap() > 0,
        "{reloading}"
    );
    assert!(next().contains("READY=1"));
}

/// `larder log-level`, and what is told then.
#[tokio::test(flavor = "multi_thread")]
async fn the_log_level_changes() {
    let upstream = Upstream::start().await;
    upstream.image(REPO, "1", &[10]);
    let larder = LarderProcess::start(&upstream, |_| {}).await;
    larder.get(manifest(REPO, "1")).await.expect(200);
    assert!(!larder.logs().contains("upstream request"));
    let run = |args: &[&str]| {
        let mut command = crate::support::process::command(larder.folder());
        command
            .arg("log-level")
            .args(args)
            .args(["--admin", &format!("http://{}", larder.admin())]);
        let output = command.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (status, level, _) = tokio::task::block_in_place(|| run(&[]));
    assert_eq!((status, level.as_str()), (Some(0), "info\n"));
    let (status, level, _) = tokio::task::block_in_place(|| run(&["info,larder::upstream=debug"]));
    assert_eq!((status, level.as_str()), (Some(0), "info,larder::upstream=debug\n"));
    larder.get(manifest(REPO, "2")).await.expect(404);
    larder.wait_for_log("upstream request").await;
    let (status, _, error) = tokio::task::block_in_place(|| run(&["chatty"]));
    assert!(status == Some(1) && error.contains("chatty"), "{error}");
    // The file's own level, when that changes.
    changed(&larder, |t| {
        t.set(&["log"], "level", "warn");
    });
    hang_up(&larder);
    crate::support::within("another level", async {
        while tokio::task::block_in_place(|| run(&[])).1 != "warn\n" {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
}
