//! Cached content that cannot be read at the moment: it passes through from its upstream, or is refused for a moment; and it
//! stays, whatever the reason is that does not say that the bytes are lost.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use larder::oci::Digest;
use larder::store::{DiskOp, Fault, Faults};
use rustix::process::{Pid, Resource, getrlimit, prlimit};
use serde_json::Value;

use crate::support::client::{Ask, Connection, Response};
use crate::support::larder::Larder;
use crate::support::process::LarderProcess;
use crate::support::upstream::{On, Upstream};
use crate::support::{blob, manifest, within};

const REPO: &str = "library/alpine";
const EMFILE: i32 = 24;
const EACCES: i32 = 13;

/// Files cannot be opened while this is not 0.
fn failing(errno: &Arc<AtomicI32>) -> Faults {
    let errno = errno.clone();
    Arc::new(move |op, _: &Path| {
        let errno = errno.load(Ordering::Relaxed);
        (op == DiskOp::Open && errno != 0).then(|| Fault::Error(std::io::Error::from_raw_os_error(errno)))
    })
}

fn admin(method: &str, path: &str, body: &str) -> Ask {
    Ask::new(method, path)
        .header("content-type", "application/json")
        .body(body)
}

fn is_hit(response: &Response) -> bool {
    response.header("cache-status") == Some("larder; hit")
}

/// Everything that reads a file, with an upstream that works, one that fails, and none that may be asked.
#[tokio::test]
async fn what_cannot_be_opened_passes_through_and_stays() {
    for (nth, errno) in [EMFILE, EACCES].into_iter().enumerate() {
        let upstream = Upstream::start().await;
        let image = upstream.image(REPO, "1", &[300_000]);
        let layer = image.layers[0];
        let failure = Arc::new(AtomicI32::new(0));
        let larder = Larder::start_faulty(&upstream, failing(&failure), |toml| {
            toml.cache("tag_ttl", "1h");
        })
        .await;
        larder.get(manifest(REPO, "1")).await.expect(200);
        for digest in image.blobs() {
            larder.get(blob(REPO, digest)).await.expect_content(&digest);
        }
        let pin = format!(r#"{{"image":"docker.io/{REPO}:1"}}"#);
        admin("POST", "/api/v1/pins", &pin)
            .send(larder.admin())
            .await
            .expect(200);
        larder.until_idle().await;
        // Nothing is open or in memory.
        let mut larder = larder.restart().await;
        let blobs = larder.store().usage().blobs;
        let check_all_is_there = |larder: &Larder| {
            let store = larder.store();
            assert_eq!((store.usage().blobs, store.usage().staged_bytes), (blobs, 0));
            for digest in image.blobs().iter().chain([&image.manifest]) {
                assert!(store.is_pinned(digest) && store.linked(&format!("docker.io/{REPO}"), digest));
                let place = larder.cache().join("blobs/sha256").join(digest.hex());
                let bytes = std::fs::read(place).expect("a file that stays");
                assert_eq!(Digest::sha256(&bytes), *digest);
            }
            assert!(!larder.cache().join("quarantine").exists());
        };
        failure.store(errno, Ordering::Relaxed);
        upstream.forget();

        let whole = larder.get(blob(REPO, layer)).await;
        assert!(!is_hit(&whole), "{whole:?}");
        whole.expect_content(&layer);
        let part = Ask::get(blob(REPO, layer))
            .range("bytes=1000-1999")
            .send(larder.registry())
            .await;
        assert_eq!(part.expect(206).body, upstream.bytes(&layer)[1000..=1999]);
        assert_eq!(upstream.count(On::Blob(layer).get()), 2, "{}", upstream.print());
        for reference in [image.manifest.to_string(), "1".to_owned()] {
            let answer = larder.get(manifest(REPO, &reference)).await;
            answer.expect_content(&image.manifest);
        }
        assert_eq!(upstream.count(On::Manifests.get()), 2, "{}", upstream.print());
        larder.head(blob(REPO, layer)).await.expect(200);
        check_all_is_there(&larder);

        // Its upstream's refusal is no reason to deny what is cached (L3).
        let refused = |response: Response, what: &str| {
            let response = response.expect(503);
            assert_eq!(response.header("retry-after"), Some("2"), "{what}");
            assert!(
                response.json()["errors"][0]["message"]
                    .to_string()
                    .contains("is cached"),
                "{what}"
            );
            assert!(
                !response.json().to_string().contains("/blobs/sha256"),
                "no path for clients"
            );
        };
        let targets = [blob(REPO, layer), manifest(REPO, image.manifest), manifest(REPO, "1")];
        let rule = upstream.on(On::Any).always().status(if nth == 0 { 404 } else { 503 });
        for target in &targets {
            refused(larder.get(target).await, target);
        }
        rule.remove();
        upstream.clear_script();
        check_all_is_there(&larder);

        larder = larder
            .stop()
            .await
            .start(|toml| {
                toml.cache("offline", true);
            })
            .await;
        for target in &targets {
            refused(larder.get(target).await, target);
            assert_eq!(larder.head(target).await.status, 200);
        }
        let bundle = admin(
            "POST",
            "/api/v1/bundle/create",
            &format!(r#"{{"images":["docker.io/{REPO}:1"]}}"#),
        );
        let bundle = bundle.send(larder.admin()).await;
        let why = bundle.expect(500).json().to_string();
        assert!(why.contains("cannot be read at the moment"), "{why}");
        let ready = Ask::get("/readyz").send(larder.admin()).await.expect(200).json();
        assert_eq!(ready["status"], "degraded");
        check_all_is_there(&larder);

        failure.store(0, Ordering::Relaxed);
        for target in &targets {
            let answer = larder.get(target).await.expect(200);
            assert!(is_hit(&answer), "{answer:?}");
        }
        check_all_is_there(&larder);
    }
}

/// How an operator's check ends, asked over a connection that is there already.
async fn verified(mut connection: Connection) -> (Value, Connection) {
    let start = admin("POST", "/api/v1/verify", r#"{"repair":true}"#);
    let answer;
    (answer, connection) = connection.ask(&start).await;
    assert!(answer.status < 300, "{answer:?}");
    loop {
        let (answer, open) = connection.ask(&Ask::get("/api/v1/verify")).await;
        connection = open;
        let view = answer.expect(200).json();
        if view["state"] != "running" {
            return (view, connection);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Processor time of a process so far, in clock ticks of 10 ms.
fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
    [11, 12]
        .iter()
        .map(|nth| fields[*nth].parse::<u64>().expect("ticks"))
        .sum()
}

/// The real process, with no file descriptor left. Hits, the check and connections wait, or get what they want elsewhere;
/// when there are some again all is as it was.
#[tokio::test]
async fn running_out_of_descriptors_deletes_nothing() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[200_000, 1000]);
    let larder = LarderProcess::start(&upstream, |toml| {
        toml.cache("tag_ttl", "1h");
    })
    .await;
    larder.get(manifest(REPO, "1")).await.expect(200);
    for digest in image.blobs() {
        larder.get(blob(REPO, digest)).await.expect_content(&digest);
    }
    let pin = format!(r#"{{"image":"docker.io/{REPO}:1"}}"#);
    admin("POST", "/api/v1/pins", &pin)
        .send(larder.admin())
        .await
        .expect(200);
    let larder = larder.restart().await;
    // Connections that are there: one to each address, and one to the upstream.
    let other = upstream.blob(REPO, 1000);
    let client = Connection::open(larder.registry()).await;
    let (answer, mut client) = client.ask(&Ask::get(blob(REPO, other))).await;
    answer.expect_content(&other);
    let operator = Connection::open(larder.admin()).await;
    let (_, operator) = operator.ask(&Ask::get("/healthz")).await;

    let pid = Pid::from_raw(i32::try_from(larder.pid()).unwrap());
    let mut limit = getrlimit(Resource::Nofile);
    let before = limit.current;
    let mut set = |most: Option<u64>| {
        limit.current = most;
        prlimit(pid, Resource::Nofile, limit).expect("a limit that can be set");
    };
    set(Some(4));
    upstream.forget();
    for target in [
        blob(REPO, image.layers[0]),
        manifest(REPO, image.manifest),
        manifest(REPO, "1"),
        blob(REPO, image.layers[1]),
    ] {
        let answer;
        (answer, client) = client.ask(&Ask::get(&target)).await;
        match answer.status {
            200 => assert!(!is_hit(&answer), "{target}: {answer:?}"),
            503 => {
                assert_eq!(answer.header("retry-after"), Some("2"), "{target}: {answer:?}");
                let line = larder.wait_for_log(&format!("path=\"{target}\" status=503")).await;
                assert!(line.contains("this process has no file descriptors left"), "{line}");
            }
            _ => panic!("{target}: {answer:?}"),
        }
    }
    // The figures are told all the same.
    let (metrics, operator) = operator.ask(&Ask::get("/metrics")).await;
    let metrics = String::from_utf8(metrics.expect(200).body).unwrap();
    for name in [
        "process_max_fds 4\n",
        "process_open_fds ",
        "process_resident_memory_bytes ",
    ] {
        assert!(metrics.contains(&format!("\n{name}")), "no {name:?} in\n{metrics}");
    }
    let (view, operator) = verified(operator).await;
    assert_eq!((&view["state"], &view["bad"]), (&"done".into(), &0.into()), "{view}");
    assert!(view["unreadable"].as_u64().unwrap() >= 4, "{view}");

    // New connections wait in the kernel, and cost next to nothing.
    let waiting = Connection::open(larder.registry()).await;
    let began = (std::time::Instant::now(), ticks(larder.pid()));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (took, spent) = (began.0.elapsed(), ticks(larder.pid()) - began.1);
    assert!(
        Duration::from_millis(spent * 10) < took / 2,
        "{spent} ticks in {took:?}"
    );

    let told = larder.logs().matches("cannot accept connections").count();
    assert_eq!(told, 1, "{}", larder.logs());

    set(before);
    let (answer, _) = within("a connection that waited", waiting.ask(&Ask::get("/v2/"))).await;
    answer.expect(200);
    let (view, _) = verified(operator).await;
    assert_eq!((&view["bad"], &view["unreadable"]), (&0.into(), &0.into()), "{view}");
    for digest in image.blobs() {
        let answer;
        (answer, client) = client.ask(&Ask::get(blob(REPO, digest))).await;
        assert!(is_hit(&answer), "{answer:?}");
        answer.expect_content(&digest);
    }
    let (answer, _) = client.ask(&Ask::get(manifest(REPO, image.manifest))).await;
    assert!(is_hit(&answer), "{answer:?}");
    let list = Ask::get("/api/v1/images").send(larder.admin()).await.expect(200).json();
    assert_eq!(list["images"][0]["pinned"], true, "{list}");
    assert!(!larder.cache().join("quarantine").exists());
}
