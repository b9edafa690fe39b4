//! Fetching ahead, over the admin API: what is asked of upstreams, what is held afterwards, and what is said meanwhile.

use larder::oci::Digest;
use serde_json::{Value, json};

use crate::support::client::{Ask, Response};
use crate::support::gate::Gate;
use crate::support::larder::Larder;
use crate::support::upstream::{Image, On, ReferrersApi, Upstream};
use crate::support::{blob, manifest, within};

const REPO: &str = "library/alpine";
const NAME: &str = "docker.io/library/alpine";

async fn post(larder: &Larder, order: Value) -> Response {
    Ask::new("POST", "/api/v1/prefetch")
        .header("content-type", "application/json")
        .body(order.to_string())
        .send(larder.admin())
        .await
}

async fn look(larder: &Larder, id: &Value) -> Value {
    Ask::get(format!("/api/v1/prefetch/{id}"))
        .send(larder.admin())
        .await
        .expect(200)
        .json()
}

/// Begins a job and waits for its end.
pub(super) async fn run(larder: &Larder, order: Value) -> Value {
    let begun = post(larder, order).await.expect(202).json();
    ended(larder, &begun["id"]).await
}

async fn ended(larder: &Larder, id: &Value) -> Value {
    within("the job to end", async {
        loop {
            let view = look(larder, id).await;
            if view["state"] != "running" {
                return view;
            }
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    })
    .await
}

fn order(images: &[&str]) -> Value {
    json!({ "images": images, "referrers": false })
}

fn names(view: &Value) -> Vec<&str> {
    let images = view["images"].as_array().unwrap().iter();
    let images = images.filter(|image| image["state"] != "listed");
    images.map(|image| image["name"].as_str().unwrap()).collect()
}

/// Served from here, all of it, whatever becomes of the upstream.
async fn check_served(larder: &Larder, image: &Image, reference: &str) {
    let served = larder.get(manifest(&image.repo, reference)).await;
    served.expect_content(&image.manifest);
    for digest in image.blobs() {
        larder.get(blob(&image.repo, digest)).await.expect_content(&digest);
    }
}

/// Each blob once, also what two images share; a second run fetches nothing.
#[tokio::test]
async fn each_blob_crosses_once() {
    let upstream = Upstream::start().await;
    let (a, b) = (
        upstream.image(REPO, "a", &[300_000, 20_000]),
        upstream.image(REPO, "b", &[50_000]),
    );
    // It shares a layer with the first.
    let shared = json!({
        "schemaVersion": 2,
        "mediaType": larder::oci::media_type::DOCKER_MANIFEST,
        "config": {"digest": b.config, "size": upstream.bytes(&b.config).len()},
        "layers": [{"digest": b.layers[0], "size": 50_000}, {"digest": a.layers[0], "size": 300_000}],
    });
    let kind = larder::oci::media_type::DOCKER_MANIFEST;
    upstream.put_manifest(REPO, Some("b"), kind, shared.to_string());
    let larder = Larder::start(&upstream, |_| {}).await;
    let view = run(&larder, order(&["alpine:a", &format!("{NAME}:b"), "hub/alpine:a"])).await;
    assert_eq!(view["state"], "done", "{view:#}");
    assert_eq!(
        names(&view),
        [format!("{NAME}:a"), format!("{NAME}:b")],
        "the third is the first"
    );
    let sent = upstream.bytes_sent(On::Blobs);
    assert_eq!(view["totals"]["new_bytes"], sent);
    assert_eq!(view["totals"]["fetched_bytes"], sent);
    for digest in a.blobs().into_iter().chain(b.blobs()) {
        assert_eq!(upstream.count(On::Blob(digest).get()), 1);
    }
    upstream.forget();
    let view = run(&larder, order(&["alpine:a", "alpine:b"])).await;
    assert_eq!(
        (&view["state"], &view["totals"]["new_bytes"]),
        (&json!("done"), &json!(0)),
        "{view:#}"
    );
    assert_eq!(upstream.count(On::Any.get()), 0, "{}", upstream.print());
    upstream.go_down().await;
    check_served(&larder, &a, "a").await;
    larder.get(manifest(REPO, "b")).await.expect(200);
}

/// What would be fetched is known, and no blob has been touched.
#[tokio::test]
async fn a_dry_run_fetches_no_blob() {
    let upstream = Upstream::start().await;
    let a = upstream.image(REPO, "a", &[300_000]);
    let larder = Larder::start(&upstream, |_| {}).await;
    let dry = json!({ "images": ["alpine:a"], "dry_run": true });
    let view = run(&larder, dry.clone()).await;
    assert_eq!(upstream.count(On::Blobs), 0, "{}", upstream.print());
    assert_eq!(view["state"], "done");
    let image = &view["images"][0];
    assert_eq!(
        (&image["state"], &image["new_blobs"]),
        (&json!("planned"), &json!(2)),
        "{view:#}"
    );
    let bytes: usize = a.blobs().iter().map(|digest| upstream.bytes(digest).len()).sum();
    assert_eq!(image["new_bytes"], bytes);
    run(&larder, order(&["alpine:a"])).await;
    let view = run(&larder, dry).await;
    assert_eq!(view["images"][0]["new_bytes"], 0, "{view:#}");
    assert_eq!(view["images"][0]["bytes"], bytes);
}

/// Ended half-way by a crash, it goes on where it stopped: the bytes that came do not come again.
#[tokio::test]
async fn what_broke_off_is_resumed() {
    let upstream = Upstream::start().await;
    let (a, b) = (
        upstream.image(REPO, "a", &[2_000_000]),
        upstream.image(REPO, "b", &[30_000]),
    );
    let gate = Gate::closed();
    let rule = upstream
        .on(On::Blob(a.layers[0]).get())
        .always()
        .stall_after(1_500_000, &gate);
    let larder = Larder::start(&upstream, |_| {}).await;
    let begun = post(&larder, order(&["alpine:a", "alpine:b"])).await.expect(202).json();
    upstream.wait_until_sent(&a.layers[0], 1_500_000).await;
    within("the other image, and half of this one", async {
        loop {
            let view = look(&larder, &begun["id"]).await;
            if view["totals"]["held"] == 1 && view["images"][0]["fetched_bytes"].as_u64().unwrap() >= 1 << 20 {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    })
    .await;
    let stopped = larder.crash();
    rule.remove();
    gate.open();
    upstream.forget();
    let larder = stopped.start(|_| {}).await;
    let view = run(&larder, order(&["alpine:a", "alpine:b"])).await;
    assert_eq!(view["state"], "done", "{view:#}");
    assert_eq!(upstream.count(On::Blob(b.layers[0])), 0, "it was held");
    assert_eq!(
        upstream.count(On::Blob(a.layers[0]).ranged()),
        1,
        "{}",
        upstream.print()
    );
    assert!(upstream.bytes_sent(On::Blob(a.layers[0])) < 2_000_000 - (1 << 20) + 1);
    check_served(&larder, &a, "a").await;
}

struct Platforms {
    amd64: Image,
    arm64: Image,
    riscv64: Image,
    index: Digest,
}

fn platforms(upstream: &Upstream) -> Platforms {
    let image = || upstream.untagged_image(REPO, &[10_000]);
    let (amd64, arm64, riscv64) = (image(), image(), image());
    let children = [amd64.manifest, arm64.manifest, riscv64.manifest];
    let index = upstream.index(REPO, "multi", &children).manifest;
    Platforms {
        amd64,
        arm64,
        riscv64,
        index,
    }
}

#[tokio::test]
async fn only_the_platforms_that_are_wanted() {
    let upstream = Upstream::start().await;
    let all = platforms(&upstream);
    let larder = Larder::start(&upstream, |_| {}).await;
    let wanted =
        json!({ "images": ["alpine:multi"], "platforms": ["linux/arm64/v8", "linux/s390x"], "referrers": false });
    let view = run(&larder, wanted).await;
    let image = &view["images"][0];
    assert_eq!(
        (&image["state"], &image["platforms"]),
        (&json!("held"), &json!(["linux/arm64"])),
        "{view:#}"
    );
    assert_eq!(image["notes"], json!(["there is nothing for linux/s390x"]));
    for (image, count) in [(&all.amd64, 0), (&all.arm64, 1), (&all.riscv64, 0)] {
        assert_eq!(upstream.count(On::Manifest(image.manifest.to_string())), count);
        assert_eq!(upstream.count(On::Blob(image.layers[0])), count);
    }
    // What clients have pulled is what the site uses; arm64 is here, so it is among that.
    larder.get(manifest(REPO, all.riscv64.manifest)).await.expect(200);
    let view = run(&larder, order(&["alpine:multi"])).await;
    assert_eq!(view["platforms"], json!(["linux/arm64", "linux/riscv64"]), "{view:#}");
    assert_eq!(upstream.count(On::Blob(all.amd64.layers[0])), 0);
    assert_eq!(upstream.count(On::Blob(all.riscv64.layers[0])), 1);
    // A line may say otherwise, and `all` is all.
    let view = run(&larder, order(&["alpine:multi platform=all"])).await;
    assert_eq!(view["images"][0]["manifests"], 4, "{view:#}");
    assert_eq!(upstream.count(On::Blob(all.amd64.layers[0])), 1);
    assert_eq!(view["images"][0]["digest"], all.index.to_string());

    let none = run(&larder, order(&["alpine:multi platform=windows/amd64"])).await;
    assert_eq!(none["state"], "incomplete");
    let why = none["images"][0]["error"].as_str().unwrap();
    assert!(why.contains("windows/amd64") && why.contains("linux/riscv64"), "{why}");
}

#[tokio::test]
async fn what_an_empty_cache_uses_is_this_machine() {
    let upstream = Upstream::start().await;
    let larder = Larder::start(&upstream, |_| {}).await;
    upstream.image(REPO, "a", &[100]);
    let view = run(&larder, order(&["alpine:a"])).await;
    let own = if cfg!(target_arch = "x86_64") {
        "linux/amd64"
    } else {
        "linux/arm64"
    };
    assert_eq!(view["platforms"], json!([own]));
    assert!(view["platforms_from"].as_str().unwrap().contains("this machine"));
}

/// By the API, by the tag that stands for it, and cosign's own tags; what refers to those that refer, too.
#[tokio::test]
async fn signatures_come_along() {
    for api in [ReferrersApi::On, ReferrersApi::Off] {
        let upstream = Upstream::start().await;
        upstream.set_referrers(api);
        let image = upstream.oci_image(REPO, "1", &[10_000]);
        let sbom = upstream.artifact(REPO, image.manifest, "application/spdx+json");
        let signature = upstream.artifact(REPO, sbom.manifest, "application/vnd.dev.sigstore.bundle");
        if api == ReferrersApi::Off {
            upstream.put_referrers_tag(REPO, image.manifest);
            upstream.put_referrers_tag(REPO, sbom.manifest);
        }
        let legacy = upstream.image(REPO, &format!("sha256-{}.sig", image.manifest.hex()), &[500]);
        let larder = Larder::start(&upstream, |_| {}).await;
        let view = run(&larder, json!({ "images": ["alpine:1"] })).await;
        assert_eq!(view["state"], "done", "{api:?} {view:#}");
        assert_eq!(view["images"][0]["referrers"], 3, "{api:?} {view:#}");
        upstream.go_down().await;
        let listed = larder.get(format!("/v2/{REPO}/referrers/{}", image.manifest)).await;
        assert_eq!(
            listed.expect(200).json()["manifests"][0]["digest"],
            sbom.manifest.to_string()
        );
        larder
            .get(manifest(REPO, signature.manifest))
            .await
            .expect_content(&signature.manifest);
        check_served(&larder, &legacy, &format!("sha256-{}.sig", image.manifest.hex())).await;

        // Not where nobody wants them.
        upstream.come_up().await;
        let other = Larder::start(&upstream, |_| {}).await;
        upstream.forget();
        let view = run(&other, order(&["alpine:1"])).await;
        assert_eq!(view["images"][0]["manifests"], 1);
        assert_eq!(upstream.count(On::Referrers), 0);
    }
}

/// "Nothing refers to it" is something that an upstream must say.
#[tokio::test]
async fn referrers_that_cannot_be_listed_are_a_failure() {
    let upstream = Upstream::start().await;
    let image = upstream.oci_image(REPO, "1", &[10_000]);
    upstream.on(On::Referrers).always().status(500);
    let larder = Larder::start(&upstream, |_| {}).await;
    let view = run(&larder, json!({ "images": ["alpine:1"] })).await;
    assert_eq!(view["state"], "incomplete", "{view:#}");
    assert!(
        view["images"][0]["error"]
            .as_str()
            .unwrap()
            .contains("could not be listed"),
        "{view:#}"
    );
    check_served(&larder, &image, "1").await;
}

#[tokio::test]
async fn patterns_ranges_and_the_newest() {
    let upstream = Upstream::start().await;
    for tag in ["3.9", "3.18", "3.22", "4.0", "3.22-slim", "latest"] {
        upstream.image(REPO, tag, &[100]);
    }
    let larder = Larder::start(&upstream, |_| {}).await;
    for (line, tags) in [
        ("alpine:3.* newest=2", vec!["3.22", "3.22-slim"]),
        ("alpine semver=\">=3.10, <4\"", vec!["3.22", "3.18"]),
        ("alpine newest=1", vec!["4.0"]),
        ("alpine tags=*-slim", vec!["3.22-slim"]),
    ] {
        let view = run(&larder, order(&[line])).await;
        let expected: Vec<String> = tags.iter().map(|tag| format!("{NAME}:{tag}")).collect();
        assert_eq!(
            (&view["state"], names(&view)),
            (&json!("done"), expected.iter().map(String::as_str).collect()),
            "{line}"
        );
    }
    let none = run(&larder, order(&["alpine:5.*"])).await;
    assert_eq!(
        (&none["state"], &none["totals"]["failed"]),
        (&json!("incomplete"), &json!(1)),
        "{none:#}"
    );
}

/// One that fails keeps none of the others from coming, and each says why.
#[tokio::test]
async fn failures_are_told_one_by_one() {
    let upstream = Upstream::start().await;
    let good = upstream.image(REPO, "good", &[1000]);
    let larder = Larder::start(&upstream, |_| {}).await;
    let view = run(&larder, order(&["alpine:none", "nowhere.example/x:1", "alpine:good"])).await;
    assert_eq!(view["state"], "incomplete");
    assert_eq!(view["totals"]["failed"], 2);
    let errors: Vec<&str> = view["images"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|image| image["error"].as_str())
        .collect();
    assert!(errors[0].contains("404") || errors[0].contains("not"), "{errors:?}");
    assert!(errors[1].contains("is not an upstream"), "{errors:?}");
    check_served(&larder, &good, "good").await;
    // Nothing that cannot be read is begun.
    for bad in [
        json!({"images": []}),
        json!({"images": ["a:b newst=2"]}),
        json!({"images": ["a"], "platforms": ["x"]}),
        json!({"images": ["a"], "parallel": 0}),
        json!({"image": "a"}),
    ] {
        post(&larder, bad).await.expect(400);
    }
    Ask::get("/api/v1/prefetch/999").send(larder.admin()).await.expect(404);
    let list = Ask::get("/api/v1/prefetch")
        .send(larder.admin())
        .await
        .expect(200)
        .json();
    assert_eq!(list["jobs"].as_array().unwrap().len(), 1, "{list:#}");
}

/// An upstream that allows no more for hours ends what needs it, in words; what has come stays.
#[tokio::test]
async fn a_used_up_limit_stops_it_with_a_word() {
    let upstream = Upstream::start().await;
    for tag in ["1", "2", "3"] {
        upstream.image(REPO, tag, &[1000]);
    }
    upstream.on(On::Manifests).always().rate_limit(Some("20000"));
    let larder = Larder::start(&upstream, |_| {}).await;
    let view = run(&larder, order(&["alpine:1", "alpine:2", "alpine:3"])).await;
    assert_eq!(view["totals"]["failed"], 3, "{view:#}");
    assert!(
        view["images"][0]["error"]
            .as_str()
            .unwrap()
            .contains("docker.io allows no more pulls for another 5 h"),
        "{view:#}"
    );
    assert!(upstream.count(On::Manifests) <= 3);
}

/// A short pause is waited for.
#[tokio::test]
async fn a_short_pause_is_waited_for() {
    let upstream = Upstream::start().await;
    upstream.image(REPO, "1", &[1000]);
    upstream.on(On::Manifests).next(1).rate_limit(Some("1"));
    let larder = Larder::start(&upstream, |_| {}).await;
    let view = run(&larder, order(&["alpine:1"])).await;
    assert_eq!(view["state"], "done", "{view:#}");
}

#[tokio::test]
async fn it_can_be_cancelled() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[200_000]);
    let gate = Gate::closed();
    upstream
        .on(On::Blob(image.layers[0]).get())
        .always()
        .stall_after(100_000, &gate);
    let larder = Larder::start(&upstream, |_| {}).await;
    let begun = post(&larder, order(&["alpine:1"])).await.expect(202).json();
    upstream.wait_until_sent(&image.layers[0], 100_000).await;
    Ask::new("DELETE", format!("/api/v1/prefetch/{}", begun["id"]))
        .header("content-type", "application/json")
        .send(larder.admin())
        .await
        .expect(200);
    assert_eq!(ended(&larder, &begun["id"]).await["state"], "cancelled");
    gate.open();
}

/// What the cache has no room for is no success.
#[tokio::test]
async fn what_cannot_be_kept_is_said() {
    let upstream = Upstream::start().await;
    upstream.image(REPO, "1", &[3_000_000]);
    let larder = Larder::start(&upstream, |toml| {
        toml.cache("max_size", "2MiB");
    })
    .await;
    let view = run(&larder, order(&["alpine:1"])).await;
    assert_eq!(view["state"], "incomplete", "{view:#}");
    assert!(
        view["images"][0]["error"].as_str().unwrap().contains("max_size"),
        "{view:#}"
    );
}

/// A client that pulls meanwhile shares the transfer (L1).
#[tokio::test]
async fn clients_share_its_transfers() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[500_000]);
    let gate = Gate::closed();
    upstream
        .on(On::Blob(image.layers[0]).get())
        .next(1)
        .stall_after(200_000, &gate);
    let larder = Larder::start(&upstream, |_| {}).await;
    let begun = post(&larder, order(&["alpine:1"])).await.expect(202).json();
    upstream.wait_until_sent(&image.layers[0], 200_000).await;
    let path = blob(REPO, image.layers[0]);
    let (client, ()) = tokio::join!(larder.get(path), async { gate.open() });
    client.expect_content(&image.layers[0]);
    assert_eq!(ended(&larder, &begun["id"]).await["state"], "done");
    assert_eq!(upstream.count(On::Blob(image.layers[0]).get()), 1);
}

/// By an explicit clock: what is due begins, once; its list is read each time; metrics count it.
#[tokio::test]
async fn schedules() {
    use std::sync::Arc;

    use larder::config::Config;
    use larder::jobs::Prefetcher;
    use larder::jobs::prefetch::{Patience, Phase};
    use larder::pull::Pull;
    use larder::store::{Store, unix_ms};
    use larder::upstream::Clients;
    use tokio_util::sync::CancellationToken;
    use tokio_util::task::TaskTracker;

    let upstream = Upstream::start().await;
    upstream.image(REPO, "1", &[1000]);
    upstream.image(REPO, "2", &[1000]);
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("images.txt");
    std::fs::write(&list, "alpine:1\n").unwrap();
    let toml = crate::support::toml::Toml::new(&folder.path().join("cache"), &upstream).text();
    let schedule = format!(
        "{toml}\n[[prefetch]]\nname = \"it-schedules\"\nfile = {:?}\nschedule = \"0 * * * *\"\nreferrers = false\n",
        list.display().to_string()
    );
    let config = Config::from_toml(&schedule).unwrap_or_else(|error| panic!("{error}\n{schedule}"));
    let store = Store::open(&config).unwrap();
    let clients = Clients::new(&config).unwrap();
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let timing = crate::support::larder::quick();
    let pull = Pull::new(&config, store.clone(), clients, timing, tasks.clone(), stop.clone()).unwrap();
    let prefetcher = Prefetcher::new(pull, tasks, stop, Patience::default(), &config.prefetch);
    let metrics = larder::telemetry::metrics::install().unwrap();
    let last = |prefetcher: &Arc<Prefetcher>| prefetcher.schedules()[0].last();

    prefetcher.tick(unix_ms()).await;
    assert!(last(&prefetcher).is_none(), "not due yet");
    let due = prefetcher.schedules()[0].next_ms().unwrap();
    prefetcher.tick(due - 1).await;
    assert!(last(&prefetcher).is_none());
    prefetcher.tick(due).await;
    let first = last(&prefetcher).unwrap();
    within("the first", first.watch().wait_for(|_| first.phase() != Phase::Running))
        .await
        .unwrap();
    assert_eq!(first.phase(), Phase::Done, "{:?}", first.progress());
    assert_eq!(prefetcher.schedules()[0].next_ms(), Some(due + 3_600_000));
    assert_eq!(store.filled().unwrap().1, "prefetch it-schedules");
    prefetcher.tick(due + 1000).await;
    assert_eq!(last(&prefetcher).unwrap().id, first.id, "once");

    std::fs::write(&list, "alpine:1\nalpine:2\n").unwrap();
    prefetcher.tick(due + 3_600_000).await;
    let second = last(&prefetcher).unwrap();
    within(
        "the second",
        second.watch().wait_for(|_| second.phase() != Phase::Running),
    )
    .await
    .unwrap();
    assert_eq!(second.progress().totals().images, 2);

    // A list that cannot be read is told, and the next time comes.
    std::fs::write(&list, "alpine:1 nonsense\n").unwrap();
    prefetcher.tick(due + 7_200_000).await;
    assert_eq!(last(&prefetcher).unwrap().id, second.id);
    let text = metrics.render();
    let count = |line: &str| {
        let found = text.lines().find_map(|l| l.strip_prefix(line));
        found.unwrap_or_else(|| panic!("no {line} in {text}")).trim().to_owned()
    };
    assert_eq!(
        count("larder_prefetch_runs_total{prefetch=\"it-schedules\",result=\"done\"}"),
        "2"
    );
    assert_eq!(
        count("larder_prefetch_runs_total{prefetch=\"it-schedules\",result=\"refused\"}"),
        "1"
    );
    assert_eq!(
        count("larder_prefetch_images_total{prefetch=\"it-schedules\",result=\"held\"}"),
        "3"
    );
    assert_eq!(
        count("larder_prefetch_bytes_total{prefetch=\"it-schedules\"}"),
        upstream.bytes_sent(On::Blobs).to_string()
    );
}
