//! Webhooks: what happens is told, once at least and in order, whatever endpoints, disks and processes do.

use std::path::Path;
use std::time::Duration;

use larder::events::{Action, Event};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::client::Ask;
use crate::support::hook::{Endpoint, Reply};
use crate::support::larder::Larder;
use crate::support::process::LarderProcess;
use crate::support::ran::{ask, pull, run};
use crate::support::toml::Toml;
use crate::support::upstream::Upstream;
use crate::support::{blob, manifest, within};

const REPO: &str = "library/alpine";
const KEY: &str = "docker.io/library/alpine";

fn hook(t: &mut Toml, name: &str, key: &str, value: impl Into<toml::Value>) {
    t.set(&["webhook", name], key, value);
}

/// To that endpoint, without patience.
fn quick(t: &mut Toml, name: &str, endpoint: &Endpoint) {
    hook(t, name, "url", endpoint.url());
    hook(t, name, "backoff", "5ms");
}

/// One that tries once and then not again in this test.
fn once(t: &mut Toml, name: &str, endpoint: &Endpoint) {
    hook(t, name, "url", endpoint.url());
    hook(t, name, "backoff", "1h");
}

async fn stats(admin: std::net::SocketAddr, name: &str) -> Value {
    let stats = Ask::get("/api/v1/stats").send(admin).await.expect(200).json();
    let hooks = stats["webhooks"].as_array().unwrap();
    hooks.iter().find(|hook| hook["name"] == name).unwrap().clone()
}

async fn until_stats(admin: std::net::SocketAddr, name: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    within("the webhook's figures", async {
        loop {
            let hook = stats(admin, name).await;
            if is_so(&hook) {
                return hook;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
}

/// Numbers that events carry, put in past the network.
fn emit(larder: &Larder, numbers: std::ops::Range<u64>) {
    for n in numbers {
        larder.store().events().emit(Action::Evict, |bare| Event {
            repository: Some(format!("docker.io/test/n{n}.").into()),
            bytes: Some(n),
            user_agent: Some("x".repeat(200).into()),
            ..bare
        });
    }
}

fn numbers(events: &[Value]) -> Vec<u64> {
    let evicted = events.iter().filter(|event| event["action"] == "evict");
    evicted
        .map(|event| event["larder"]["bytes"].as_u64().unwrap())
        .collect()
}

fn size_of(folder: &Path) -> u64 {
    let files = std::fs::read_dir(folder).unwrap().flatten();
    files
        .filter_map(|file| file.metadata().ok())
        .map(|meta| meta.len())
        .sum()
}

#[tokio::test]
async fn what_happens_is_told_as_distribution_tells_it() {
    let (upstream, endpoint) = (Upstream::start().await, Endpoint::start().await);
    let image = upstream.image(REPO, "1", &[5000]);
    let layer = image.layers[0];
    let larder = Larder::start(&upstream, |t| {
        quick(t, "ci", &endpoint);
        hook(t, "ci", "secret", "It's a Secret to Everybody");
        hook(t, "ci", "headers", vec!["Authorization: Bearer t0ken".to_owned()]);
        t.upstream("docker.io", "deny", vec!["secret/*".to_owned()]);
    })
    .await;
    let first = Ask::get(manifest(REPO, "1")).header("user-agent", "containerd/2");
    first.send(larder.registry()).await.expect_content(&image.manifest);
    larder.get(blob(REPO, layer)).await.expect_content(&layer);
    larder.until_idle().await;
    larder.get(manifest("secret/x", "1")).await.expect(403);
    let one = Ask::new("POST", "/api/v1/pins").header("content-type", "application/json");
    one.body(r#"{"image":"alpine:1"}"#)
        .send(larder.admin())
        .await
        .expect(200);
    let events = endpoint.until_events(6).await;
    let of = |action: &str| events.iter().find(|event| event["action"] == action).unwrap();
    let pulled = of("pull");
    let url = format!("/v2/{KEY}/manifests/{}", image.manifest);
    assert!(pulled["target"]["url"].as_str().unwrap().ends_with(&url), "{pulled:#}");
    assert_eq!(pulled["target"]["repository"], KEY);
    assert_eq!(pulled["target"]["tag"], "1");
    assert_eq!(pulled["target"]["digest"], image.manifest.to_string());
    assert_eq!(pulled["target"]["length"], image.bytes.len());
    assert_eq!(pulled["request"]["useragent"], "containerd/2");
    assert!(pulled["request"]["addr"].as_str().unwrap().starts_with("127.0.0.1:"));
    assert_eq!(pulled["larder"]["reason"], "miss");
    assert_eq!(of("refuse")["target"]["repository"], "secret/x");
    assert_eq!(of("fetch")["larder"]["upstream"], "docker.io");
    assert_eq!(of("pin")["target"]["tag"], "1");
    let of_layer = events
        .iter()
        .find(|event| event["target"]["size"] == 5000 && event["action"] == "pull");
    let url = of_layer.unwrap()["target"]["url"].as_str().unwrap();
    assert!(url.ends_with(&format!("/v2/{KEY}/blobs/{layer}")), "{url}");

    let delivery = endpoint.deliveries().remove(0);
    let header = |name| delivery.header(name).unwrap();
    assert_eq!(
        header("content-type"),
        "application/vnd.docker.distribution.events.v2+json"
    );
    assert_eq!(
        (header("authorization"), delivery.path.as_str()),
        ("Bearer t0ken", "/path-t0ken")
    );
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, b"It's a Secret to Everybody");
    let signed = [header("x-larder-timestamp").as_bytes(), b".", &delivery.body].concat();
    let tag = ring::hmac::sign(&key, &signed);
    let hex: String = tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(header("x-larder-signature"), format!("sha256={hex}"));
    // No two events are the same one.
    let mut ids: Vec<&str> = events.iter().map(|event| event["id"].as_str().unwrap()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), events.len());
}

#[tokio::test]
async fn only_what_is_wanted() {
    let (upstream, endpoint) = (Upstream::start().await, Endpoint::start().await);
    for repo in [REPO, "other/x"] {
        upstream.image(repo, "1", &[10]);
    }
    let larder = Larder::start(&upstream, |t| {
        quick(t, "ci", &endpoint);
        hook(t, "ci", "events", vec!["fetch".to_owned(), "pin".to_owned()]);
        hook(t, "ci", "images", vec!["docker.io/library/*".to_owned()]);
    })
    .await;
    // Nobody gathers what nobody wants.
    assert!(!larder.store().events().is_wanted(&[Action::Pull, Action::Refuse]));
    larder.get(manifest("other/x", "1")).await.expect(200);
    larder.get(manifest(REPO, "1")).await.expect(200);
    let pin = Ask::new("POST", "/api/v1/pins").header("content-type", "application/json");
    pin.body(r#"{"image":"alpine:1"}"#)
        .send(larder.admin())
        .await
        .expect(200);
    let events = endpoint.until_events(2).await;
    let found: Vec<_> = events
        .iter()
        .map(|e| (&e["action"], &e["target"]["repository"]))
        .collect();
    assert_eq!(found, [(&"fetch".into(), &KEY.into()), (&"pin".into(), &KEY.into())]);
}

/// All ways to fail, one after another; then all is there, in order.
#[tokio::test]
async fn failures_pass_and_the_order_stays() {
    let upstream = Upstream::start().await;
    let elsewhere = Endpoint::start().await;
    let endpoint = Endpoint::start_with(
        Reply::Status(204),
        &[
            Reply::Status(500),
            Reply::Cut,
            Reply::Elsewhere(elsewhere.url()),
            Reply::Status(401),
            Reply::Stall,
            Reply::Status(404),
            Reply::After(429, "1".to_owned()),
            Reply::Endless,
        ],
    )
    .await;
    let larder = Larder::start(&upstream, |t| {
        quick(t, "ci", &endpoint);
        hook(t, "ci", "timeout", "300ms");
    })
    .await;
    emit(&larder, 0..250);
    endpoint.until_events(250).await;
    emit(&larder, 250..300);
    let events = endpoint.until_events(300).await;
    assert_eq!(numbers(&events), (0..300).collect::<Vec<_>>());
    assert!(elsewhere.deliveries().is_empty());
    let seen = endpoint.deliveries();
    assert!(seen.iter().all(|delivery| delivery.events().len() <= 100));
    let failed: Vec<_> = seen.iter().take_while(|delivery| !delivery.is_taken).collect();
    assert_eq!(failed.len(), 7);
    // The endpoint asked for it.
    let pause = seen[7].at - seen[6].at;
    assert!(pause >= Duration::from_secs(1), "{pause:?}");
    let metrics = larder.metrics().await;
    for status in ["500", "307", "401", "404", "429", "none"] {
        let line = format!("larder_webhook_failed_total{{webhook=\"ci\",status=\"{status}\"}}");
        assert!(metrics.contains(&line), "{line}\n{metrics}");
    }
    let hook = until_stats(larder.admin(), "ci", |hook| hook["delivered"] == 300).await;
    assert_eq!((&hook["queued_events"], &hook["failing"]), (&0.into(), &Value::Null));
}

/// The one event that an endpoint cannot read does not keep the others.
#[tokio::test]
async fn what_cannot_be_read_is_given_up() {
    let upstream = Upstream::start().await;
    let endpoint = Endpoint::start_with(Reply::Unless("/n77.\"".to_owned()), &[]).await;
    let larder = Larder::start(&upstream, |t| quick(t, "ci", &endpoint)).await;
    emit(&larder, 0..150);
    let events = endpoint.until_events(149).await;
    let wanted: Vec<u64> = (0..150).filter(|n| *n != 77).collect();
    assert_eq!(numbers(&events), wanted);
    assert_eq!(
        until_stats(larder.admin(), "ci", |hook| hook["delivered"] == 149).await["dropped"],
        1
    );
}

#[tokio::test]
async fn a_dead_hook_holds_up_nobody() {
    let (upstream, endpoint) = (Upstream::start().await, Endpoint::start().await);
    let dead = Endpoint::start_with(Reply::Stall, &[]).await;
    let image = upstream.image(REPO, "1", &[5000]);
    let larder = Larder::start(&upstream, |t| {
        quick(t, "alive", &endpoint);
        quick(t, "dead", &dead);
        // Where nobody listens.
        hook(t, "gone", "url", "http://127.0.0.1:1/");
        hook(t, "gone", "backoff", "5ms");
    })
    .await;
    for _ in 0..50 {
        larder.get(manifest(REPO, "1")).await.expect_content(&image.manifest);
    }
    emit(&larder, 0..50);
    let events = endpoint.until_events(101).await;
    assert_eq!(numbers(&events), (0..50).collect::<Vec<_>>());
    dead.until("a delivery", |dead| !dead.deliveries().is_empty()).await;
    let gone = until_stats(larder.admin(), "gone", |hook| hook["failing"].is_string()).await;
    assert_eq!((&gone["queued_events"], &gone["delivered"]), (&101.into(), &0.into()));
    assert_eq!(gone["url"], "http://127.0.0.1:1");
    let text = larder.metrics().await;
    assert!(
        text.contains("larder_webhook_delivered_total{webhook=\"alive\"}"),
        "{text}"
    );
}

/// Neither a stop nor `kill -9` loses what waits.
#[tokio::test]
async fn what_waits_survives() {
    let upstream = Upstream::start().await;
    let endpoint = Endpoint::start_with(Reply::Status(503), &[]).await;
    let image = upstream.image(REPO, "1", &[5000]);
    let mut larder = LarderProcess::start(&upstream, |t| once(t, "ci", &endpoint)).await;
    for _ in 0..5 {
        larder.get(manifest(REPO, "1")).await.expect_content(&image.manifest);
    }
    until_stats(larder.admin(), "ci", |hook| {
        hook["queued_events"] == 6 && hook["failing"].is_string()
    })
    .await;
    larder.kill_9();
    let mut larder = larder.restart().await;
    let hook = until_stats(larder.admin(), "ci", |hook| hook["failing"].is_string()).await;
    assert_eq!(hook["queued_events"], 6);
    larder.get(manifest(REPO, "1")).await.expect_content(&image.manifest);
    assert_eq!(larder.stop().await, Some(0));
    assert_eq!(endpoint.events(), Vec::<Value>::new());
    endpoint.says(Reply::Status(200));
    let larder = larder.restart().await;
    let events = endpoint.until_events(7).await;
    let actions: Vec<&str> = events.iter().map(|event| event["action"].as_str().unwrap()).collect();
    assert_eq!(
        actions.iter().filter(|action| **action == "pull").count(),
        6,
        "{actions:?}"
    );
    // In the order in which it happened.
    let times: Vec<&str> = events
        .iter()
        .map(|event| event["timestamp"].as_str().unwrap())
        .collect();
    assert!(times.is_sorted(), "{times:?}");
    until_stats(larder.admin(), "ci", |hook| hook["queued_events"] == 0).await;
    // Whose instance it was stays with the event.
    let instances: std::collections::BTreeSet<String> = events
        .iter()
        .map(|event| event["source"]["instanceID"].to_string())
        .collect();
    assert_eq!(instances.len(), 2);
    assert!(!larder.logs().contains("t0ken"), "{}", larder.logs());
}

#[tokio::test]
async fn the_queue_is_bounded() {
    let upstream = Upstream::start().await;
    let endpoint = Endpoint::start_with(Reply::Status(503), &[]).await;
    let larder = Larder::start(&upstream, |t| {
        quick(t, "ci", &endpoint);
        hook(t, "ci", "queue_max", "1MiB");
    })
    .await;
    let queue = larder.cache().join("webhooks/ci");
    for round in 0..10 {
        emit(&larder, round * 1000..(round + 1) * 1000);
        assert!(size_of(&queue) <= (1 << 20) + 64);
        // So that none is lost before it comes to the disk.
        let seen = |hook: &Value| hook["queued_events"].as_u64().unwrap() + hook["dropped"].as_u64().unwrap();
        until_stats(larder.admin(), "ci", |hook| seen(hook) == (round + 1) * 1000).await;
    }
    let hook = stats(larder.admin(), "ci").await;
    let dropped = hook["dropped"].as_u64().unwrap();
    assert!(
        dropped > 1000 && hook["queued_bytes"].as_u64().unwrap() <= 1 << 20,
        "{hook}"
    );
    assert!(size_of(&queue) <= (1 << 20) + 64);
    endpoint.says(Reply::Status(200));
    endpoint
        .until("the last", |endpoint| numbers(&endpoint.events()).last() == Some(&9999))
        .await;
    assert_eq!(numbers(&endpoint.events()), (dropped..10_000).collect::<Vec<_>>());
}

/// What is too old is not delivered, and keeps nothing that is not.
#[tokio::test]
async fn old_events_are_given_up() {
    let upstream = Upstream::start().await;
    let endpoint = Endpoint::start_with(Reply::Status(503), &[]).await;
    let larder = Larder::start(&upstream, |t| {
        quick(t, "ci", &endpoint);
        hook(t, "ci", "max_age", "200ms");
    })
    .await;
    emit(&larder, 0..10);
    let hook = until_stats(larder.admin(), "ci", |hook| hook["dropped"] == 10).await;
    assert_eq!(hook["queued_events"], 0);
    endpoint.says(Reply::Status(200));
    // Again and again: a busy machine may need longer than that for one.
    within("a new one", async {
        while endpoint.events().is_empty() {
            emit(&larder, 10..11);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert!(numbers(&endpoint.events()).iter().all(|n| *n == 10));
}

/// Without hooks there is nothing: no folder, no listener; and what waited for one that is gone goes too.
#[tokio::test]
async fn without_hooks_there_is_nothing() {
    let upstream = Upstream::start().await;
    let larder = Larder::start(&upstream, |_| {}).await;
    let folder = larder.cache().join("webhooks");
    assert!(!folder.exists() && !larder.store().events().is_wanted(&Action::ALL));
    let endpoint = Endpoint::start_with(Reply::Status(503), &[]).await;
    let larder = larder.stop().await.start(|t| once(t, "ci", &endpoint)).await;
    emit(&larder, 0..5);
    until_stats(larder.admin(), "ci", |hook| hook["queued_events"] == 5).await;
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(folder.join("ci")).unwrap());
    assert_eq!(mode & 0o777, 0o700);
    let moved = larder.stop().await;
    let larder = moved
        .start(|t| {
            t.unset(&[], "webhook");
        })
        .await;
    assert!(!larder.cache().join("webhooks").exists());
}

/// Hooks come, change and go while it runs; one that stays as it was is not disturbed.
#[tokio::test]
async fn hooks_change_without_a_restart() {
    let upstream = Upstream::start().await;
    let (first, second) = (
        Endpoint::start().await,
        Endpoint::start_with(Reply::Status(503), &[]).await,
    );
    upstream.image(REPO, "1", &[10]);
    let larder = LarderProcess::start(&upstream, |_| {}).await;
    let reload = async |names: &[&str], change: &dyn Fn(&mut Toml)| {
        let path = larder.folder().join("proxy.toml");
        let mut toml = Toml::parse(&std::fs::read_to_string(&path).unwrap());
        change(&mut toml);
        let beside = larder.folder().join("new.toml");
        std::fs::write(&beside, toml.text()).unwrap();
        std::fs::rename(beside, path).unwrap();
        let pid = i32::try_from(larder.pid()).ok().and_then(Pid::from_raw).unwrap();
        kill_process(pid, Signal::HUP).unwrap();
        within("the hooks to be others", async {
            loop {
                let stats = Ask::get("/api/v1/stats").send(larder.admin()).await.expect(200).json();
                let found = stats["webhooks"].as_array().unwrap().clone();
                if found
                    .iter()
                    .map(|hook| hook["name"].as_str().unwrap())
                    .eq(names.iter().copied())
                {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    };
    reload(&["one"], &|t| quick(t, "one", &first)).await;
    larder.get(manifest(REPO, "1")).await.expect(200);
    first.until_events(2).await;
    // Another beside it, which fails, and waits long until it tries again.
    reload(&["one", "two"], &|t| once(t, "two", &second)).await;
    larder.get(manifest(REPO, "1")).await.expect(200);
    first.until_events(3).await;
    until_stats(larder.admin(), "two", |hook| hook["failing"].is_string()).await;
    assert_eq!(
        until_stats(larder.admin(), "one", |hook| hook["delivered"] == 3).await["dropped"],
        0
    );
    // With other settings it goes on with its queue, at once.
    second.says(Reply::Status(200));
    reload(&["one", "two"], &|t| quick(t, "two", &second)).await;
    assert_eq!(second.until_events(1).await[0]["action"], "pull");
    reload(&[], &|t| {
        t.unset(&[], "webhook");
    })
    .await;
    larder.get(manifest(REPO, "1")).await.expect(200);
    within("the queues to go", async {
        while larder.cache().join("webhooks").exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!((first.events().len(), second.events().len()), (3, 1));
}

#[tokio::test]
async fn an_import_is_an_event() {
    let upstream = Upstream::start().await;
    let open = LarderProcess::start(&upstream, |_| {}).await;
    let disk = tempfile::tempdir().unwrap();
    let at = |name: &str| disk.path().join(name).to_str().unwrap().to_owned();
    let image = upstream.image(REPO, "1", &[3000, 20]);
    pull(&open, &image, "1").await;
    ask(&open, &["bundle", "create", &at("one.tar")]).await.expect(0);
    let endpoint = Endpoint::start().await;
    let mut closed = LarderProcess::start(&upstream, |t| {
        quick(t, "ci", &endpoint);
        t.cache("offline", true);
        t.set(&["audit"], "file", at("audit.log"));
    })
    .await;
    let import = ["bundle", "import", "--unsigned", &at("one.tar")];
    ask(&closed, &import).await.expect(0);
    let events = endpoint.until_events(1).await;
    let target = &events[0]["target"];
    assert_eq!(
        (&events[0]["action"], &target["repository"]),
        (&"import".into(), &KEY.into())
    );
    assert_eq!(
        (&target["tag"], &target["digest"]),
        (&"1".into(), &image.manifest.to_string().into())
    );
    let all: u64 = 3020 + image.bytes.len() as u64;
    assert!(events[0]["larder"]["bytes"].as_u64().unwrap() >= all, "{events:#?}");
    assert_eq!(closed.stop().await, Some(0));
    let imports = || {
        let log = std::fs::read_to_string(at("audit.log")).unwrap();
        log.lines()
            .filter(|line| line.contains("\"action\":\"import\""))
            .count()
    };
    assert_eq!(imports(), 1);
    run(closed.folder(), &import).await.expect(0);
    assert_eq!((imports(), endpoint.events().len()), (2, 1));
    let _closed = closed.restart().await;
    assert_eq!(endpoint.until_events(2).await[1]["action"], "import");
}

#[tokio::test]
async fn operators_try_it() {
    let (upstream, endpoint) = (Upstream::start().await, Endpoint::start().await);
    let larder = LarderProcess::start(&upstream, |t| {
        quick(t, "ci", &endpoint);
        hook(t, "gone", "url", "http://127.0.0.1:1/t0ken");
    })
    .await;
    let tested = run(larder.folder(), &["webhook", "test", "ci"]).await.expect(0);
    assert!(tested.out.contains("takes it: it answers 204"), "{}", tested.out);
    let events = endpoint.events();
    assert_eq!(
        (events[0]["action"].as_str(), events[0]["larder"]["webhook"].as_str()),
        (Some("ping"), Some("ci"))
    );
    endpoint.says(Reply::Status(403));
    let tested = run(larder.folder(), &["webhook", "test", "ci", "--json"])
        .await
        .expect(1);
    assert_eq!(
        (&tested.json()["ok"], &tested.json()["status"]),
        (&false.into(), &403.into())
    );
    let tested = run(larder.folder(), &["webhook", "test", "gone"]).await.expect(1);
    assert!(
        tested.err.contains("http://127.0.0.1:1/… does not answer"),
        "{}",
        tested.err
    );
    let tested = run(larder.folder(), &["webhook", "test", "none"]).await.expect(64);
    assert!(tested.err.contains("there are: ci, gone"), "{}", tested.err);

    let shown = ask(&larder, &["stats"]).await.expect(0);
    assert!(
        shown.out.contains("WEBHOOK") && shown.out.contains("gone"),
        "{}",
        shown.out
    );
    let checked = run(larder.folder(), &["doctor", "--json", "--upstream", "docker.io"]).await;
    let findings = checked.json()["findings"].clone();
    let of = |name: &str| {
        let all = findings.as_array().unwrap();
        all.iter().find(|finding| finding["check"] == name).unwrap().clone()
    };
    assert_eq!(of("webhook ci")["level"], "ok");
    assert_eq!(of("webhook gone")["level"], "warning");
    let all = format!("{}{}{}{}", tested.err, shown.out, checked.out, larder.logs());
    assert!(!all.contains("t0ken"), "{all}");
    // Nothing was sent.
    assert_eq!(endpoint.deliveries().len(), 2);
}
