//! `/api/v1/…` on the operators' address: every endpoint, every refusal, and that the figures are the disk's.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use larder::oci::Digest;
use serde_json::{Value, json};

use crate::support::client::{Ask, Response};
use crate::support::gate::Gate;
use crate::support::larder::Larder;
use crate::support::process::LarderProcess;
use crate::support::upstream::{Image, On, Upstream};
use crate::support::{blob, manifest, within};

const REPO: &str = "library/alpine";
const NAME: &str = "docker.io/library/alpine";

/// A call that changes something.
fn call(method: &str, path: impl Into<String>, body: &Value) -> Ask {
    Ask::new(method, path)
        .header("Content-Type", "application/json")
        .body(body.to_string())
}

async fn api(larder: &Larder, path: &str) -> Value {
    let response = Ask::get(format!("/api/v1{path}"))
        .send(larder.admin())
        .await
        .expect(200);
    assert_eq!(response.header("content-type"), Some("application/json"));
    response.json()
}

async fn change(larder: &Larder, method: &str, path: &str, body: Value) -> Response {
    call(method, format!("/api/v1{path}"), &body).send(larder.admin()).await
}

/// The code of an error in the operators' shape; anything else is a failure.
#[track_caller]
fn code(response: &Response, status: u16) -> String {
    assert_eq!(response.status, status, "{response:?}");
    assert_eq!(
        response.header("content-type"),
        Some("application/json"),
        "{response:?}"
    );
    let json = response.json();
    let message = json["error"]["message"].as_str().unwrap_or_default();
    assert!(message.len() > 10, "no message for a person in {response:?}");
    json["error"]["code"].as_str().expect("a code").to_owned()
}

async fn pull(larder: &Larder, image: &Image, tag: &str) {
    larder.get(manifest(&image.repo, tag)).await.expect(200);
    for digest in image.blobs() {
        let path = blob(&image.repo, digest);
        larder.get(&path).await.expect_content(&digest);
        larder.until_held(&path).await;
    }
    // A transfer is counted until a moment after its blob is held.
    within("the transfers to end", async {
        while api(larder, "/stats").await["transfers"] != 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// Bytes that the files below `folder` take on disk.
fn disk(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    entries
        .map(|entry| entry.unwrap().path())
        .map(|path| match path.is_dir() {
            true => disk(&path),
            false => std::fs::metadata(&path).map_or(0, |meta| meta.blocks() * 512),
        })
        .sum()
}

fn place(larder: &Larder, digest: &Digest) -> std::path::PathBuf {
    larder.cache().join("blobs/sha256").join(digest.hex())
}

async fn checked(larder: &Larder, repair: bool) -> Value {
    change(larder, "POST", "/verify", json!({ "repair": repair }))
        .await
        .expect(202);
    within("the check to end", async {
        loop {
            let view = api(larder, "/verify").await;
            if view["state"] != "running" {
                return view;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
}

#[tokio::test]
async fn lists_what_is_held() {
    let upstream = Upstream::start().await;
    let larder = Larder::start(&upstream, |_| {}).await;
    assert_eq!(api(&larder, "/images").await, json!({"images": []}));
    let images = [
        upstream.image(REPO, "3.21", &[5000]),
        upstream.image(REPO, "3.22", &[6000, 7000]),
        upstream.image("grafana/grafana", "latest", &[100]),
    ];
    for (image, tag) in images.iter().zip(["3.21", "3.22", "latest"]) {
        pull(&larder, image, tag).await;
    }
    // By digest only, and of one blob nothing but its manifest.
    let bare = upstream.untagged_image("x/y", &[100]);
    larder.get(manifest("x/y", bare.manifest)).await.expect(200);
    let names = |list: &Value| -> Vec<String> {
        let images = list["images"].as_array().unwrap().iter();
        images.map(|image| image["name"].as_str().unwrap().to_owned()).collect()
    };
    let all = api(&larder, "/images").await;
    let last = format!("docker.io/x/y@{}", bare.manifest);
    let expected = [
        "docker.io/grafana/grafana:latest".to_owned(),
        format!("{NAME}:3.21"),
        format!("{NAME}:3.22"),
        last.clone(),
    ];
    assert_eq!(names(&all), expected);
    let row = &all["images"][2];
    assert_eq!(row["digest"], images[1].manifest.to_string());
    assert_eq!(row["held_bytes"], 4096 * 6);
    assert_eq!(
        (&row["parts"], &row["missing"], &row["pinned"]),
        (&json!(4), &json!(0), &json!(false))
    );
    assert!(row["checked_ms"].as_u64() > Some(0) && row["used_ms"].as_u64() > Some(0));
    let row = &all["images"][3];
    assert_eq!(
        (&row["parts"], &row["missing"], &row["checked_ms"]),
        (&json!(1), &json!(2), &Value::Null)
    );

    for (pattern, count) in [
        ("alpine", 2),
        ("*:latest", 1),
        ("docker.io/library/*", 2),
        ("nothing", 0),
    ] {
        let found = api(&larder, &format!("/images?pattern={pattern}")).await;
        assert_eq!(found["images"].as_array().unwrap().len(), count, "{pattern}");
    }
    // R-X20: page by page, whatever is asked for.
    let mut seen = Vec::new();
    let mut query = "/images?n=1".to_owned();
    loop {
        let page = api(&larder, &query).await;
        assert_eq!(page["images"].as_array().unwrap().len(), 1);
        seen.extend(names(&page));
        let Some(next) = page["next"].as_str() else { break };
        query = format!("/images?n=1&after={next}");
    }
    assert_eq!(seen, expected);
    assert_eq!(
        names(&api(&larder, "/images?n=100000000000000000000000").await).len(),
        4
    );
}

#[tokio::test]
async fn shows_an_image() {
    let upstream = Upstream::start().await;
    let larder = Larder::start(&upstream, |_| {}).await;
    let children = [
        upstream.untagged_image(REPO, &[5000]),
        upstream.untagged_image(REPO, &[6000]),
    ];
    let index = upstream.index(REPO, "3.22", &[children[0].manifest, children[1].manifest]);
    let first = upstream.image(REPO, "latest", &[]);
    larder.get(manifest(REPO, "latest")).await.expect(200);
    larder.get(manifest(REPO, "3.22")).await.expect(200);
    pull(&larder, &children[1], &children[1].manifest.to_string()).await;

    // Every spelling of clients is one image; with a digest a tag says nothing.
    let by_digest = format!("alpine:nonsense@{}", index.manifest);
    let mut views = Vec::new();
    for name in [
        "alpine:3.22",
        "library/alpine:3.22",
        "hub/alpine:3.22",
        &format!("{NAME}:3.22"),
    ] {
        views.push(api(&larder, &format!("/images/{name}")).await);
    }
    assert!(views.iter().all(|view| *view == views[0]));
    let view = &views[0];
    assert_eq!(view["name"], format!("{NAME}:3.22"));
    assert_eq!(view["digest"], index.manifest.to_string());
    assert_eq!(view["media_type"], index.media_type);
    assert_eq!((&view["held"], &view["pinned"]), (&json!(true), &json!(false)));
    assert_eq!((&view["parts"], &view["missing"]), (&json!(4), &json!(1)));
    assert_eq!(view["links"], json!([NAME]));
    assert_eq!(view["moves"], json!([]));
    let platforms = view["platforms"].as_array().unwrap();
    assert_eq!(platforms.len(), 2);
    assert_eq!(
        (&platforms[0]["platform"], &platforms[0]["held"]),
        (&json!("linux/amd64"), &json!(false))
    );
    assert_eq!(
        (
            &platforms[1]["platform"],
            &platforms[1]["held"],
            &platforms[1]["held_bytes"]
        ),
        (&json!("linux/arm64"), &json!(true), &json!(4 * 4096))
    );
    let layer = &platforms[1]["layers"][1];
    assert_eq!(layer["digest"], children[1].layers[0].to_string());
    assert_eq!((&layer["size"], &layer["held"]), (&json!(6000), &json!(true)));

    let same = api(&larder, &format!("/images/{by_digest}")).await;
    assert_eq!(same["name"], format!("{NAME}@{}", index.manifest));
    // `latest` where no tag is given; where it pointed before is told.
    upstream.move_tag(REPO, "latest", &index.manifest);
    change(&larder, "POST", "/refresh", json!({"image": "alpine"}))
        .await
        .expect(200);
    let moved = api(&larder, "/images/alpine").await;
    assert_eq!(moved["digest"], index.manifest.to_string());
    assert_eq!(moved["moves"][0]["digest"], first.manifest.to_string());
    assert_eq!(moved["moves"][0]["held"], true);
}

/// The figures are those of the disk, before and after.
#[tokio::test]
async fn du_is_what_the_disk_says() {
    let upstream = Upstream::start().await;
    let larder = Larder::start(&upstream, |_| {}).await;
    let (a, b) = (
        upstream.image(REPO, "a", &[300_000]),
        upstream.image(REPO, "b", &[50_000]),
    );
    let shared = upstream.blob(REPO, 111_111);
    let layers = [a.layers[0], shared].map(|digest| json!({"mediaType": "x/z", "digest": digest}));
    let both = json!({
        "schemaVersion": 2,
        "mediaType": a.media_type,
        "config": {"mediaType": "x/y", "size": 1, "digest": a.config},
        "layers": layers,
    });
    let c = upstream.put_manifest(REPO, Some("c"), a.media_type, both.to_string());
    pull(&larder, &a, "a").await;
    pull(&larder, &b, "b").await;
    larder.get(manifest(REPO, c)).await.expect(200);
    larder.get(manifest(REPO, "c")).await.expect(200);
    larder.get(blob(REPO, shared)).await.expect_content(&shared);
    larder.until_held(&blob(REPO, shared)).await;
    let loose = upstream.blob(REPO, 9000);
    larder.get(blob(REPO, loose)).await.expect_content(&loose);
    larder.until_held(&blob(REPO, loose)).await;

    let figures = async || {
        let du = api(&larder, "/du").await;
        let of = |name: &str| du[name].as_u64().unwrap();
        let blobs = disk(&larder.cache().join("blobs"));
        assert_eq!(of("held_bytes"), blobs, "{du:#}");
        assert_eq!(
            of("exclusive_bytes") + of("shared_bytes") + of("loose_bytes"),
            blobs,
            "{du:#}"
        );
        assert_eq!(of("staged_bytes"), disk(&larder.cache().join("staging")));
        assert_eq!(
            of("used_bytes"),
            blobs + of("staged_bytes") + of("index_bytes") + of("list_bytes")
        );
        assert_eq!(of("evictable_bytes") + of("pinned_bytes"), blobs);
        du
    };
    let before = figures().await;
    assert_eq!(before["path"], larder.cache().display().to_string());
    assert_eq!(before["loose_bytes"], 12288);
    assert_eq!(before["shared_bytes"], 303_104 + 4096, "layer and config of a, once");
    let rows = before["images"].as_array().unwrap();
    let of = |tag: &str| rows.iter().find(|row| row["name"] == format!("{NAME}:{tag}")).unwrap();
    assert_eq!(of("a")["exclusive_bytes"], 4096, "its manifest");
    assert_eq!(of("a")["shared_bytes"], 303_104 + 4096);
    assert_eq!(of("c")["exclusive_bytes"], 4096 + 114_688);
    assert_eq!(rows[0]["name"], format!("{NAME}:c"), "the largest first");
    let one = api(&larder, "/du?n=1").await;
    assert_eq!((one["images"].as_array().unwrap().len(), &one["more"]), (1, &json!(2)));

    // What a row calls exclusive is what a removal frees, on the disk too.
    change(&larder, "POST", "/pins", json!({"image": "alpine:a"}))
        .await
        .expect(200);
    for tag in ["c", "b", "a"] {
        let du = figures().await;
        let rows = du["images"].as_array().unwrap();
        let row = rows.iter().find(|row| row["name"] == format!("{NAME}:{tag}")).unwrap();
        let blobs = disk(&larder.cache().join("blobs"));
        let path = format!("/images/alpine:{tag}?force=true");
        let removed = change(&larder, "DELETE", &path, Value::Null).await.expect(200).json();
        assert_eq!(removed["freed_bytes"], row["exclusive_bytes"]);
        let freed = blobs - disk(&larder.cache().join("blobs"));
        assert_eq!(removed["freed_bytes"], freed);
        assert_eq!(removed["later_bytes"], 0);
    }
    assert_eq!(figures().await["held_bytes"], 12288, "the loose blob");
}

#[tokio::test]
async fn stats() {
    let upstream = Upstream::start().await;
    let larder = Larder::start(&upstream, |t| {
        t.upstream("docker.io", "max_size", "30GiB");
    })
    .await;
    let image = upstream.image(REPO, "1", &[5000]);
    pull(&larder, &image, "1").await;
    larder.get(manifest(REPO, "1")).await.expect(200);
    larder.get(manifest(REPO, "no-such-tag")).await.expect(404);
    let stats = api(&larder, "/stats").await;
    assert_eq!(stats["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(stats["pid"], std::process::id());
    assert_eq!(stats["path"], larder.cache().display().to_string());
    assert_eq!(stats["max_bytes"], 50_u64 << 30);
    assert_eq!((&stats["blobs"], &stats["transfers"]), (&json!(3), &json!(0)));
    let requests = &stats["requests"];
    assert_eq!(
        (&requests["miss"], &requests["missing"], &requests["error"]),
        (&json!(3), &json!(1), &json!(0)),
        "{stats:#}"
    );
    // A 404 of something that does not exist is in no share.
    let pulls: u64 = requests
        .as_object()
        .unwrap()
        .values()
        .map(|n| n.as_u64().unwrap())
        .sum();
    let hits = requests["hit"].as_u64().unwrap();
    // The last digit is not kept by each parser of JSON.
    let off = stats["hit_ratio"].as_f64().unwrap() - hits as f64 / (pulls - 1) as f64;
    assert!(off.abs() < 1e-9, "{stats:#}");
    assert!(requests["hit"].as_u64() >= Some(1));
    let hub = &stats["upstreams"][0];
    assert_eq!(
        (&hub["name"], &hub["held_bytes"]),
        (&json!("docker.io"), &json!(4 * 4096))
    );
    assert_eq!(
        (&hub["max_bytes"], &hub["paused_seconds"]),
        (&json!(30_u64 << 30), &Value::Null)
    );
    assert_eq!(stats["verify"]["state"], "never");

    // An upstream that asks to be left alone is named, and for how long.
    upstream.on(On::Any).always().status(429);
    larder.get(manifest(REPO, "other")).await;
    let stats = api(&larder, "/stats").await;
    assert!(stats["upstreams"][0]["paused_seconds"].as_u64() > Some(0), "{stats:#}");
}

/// Content of a prefetch costs the link its bytes once, and every client that gets it got it from the cache. A proxy that is
/// younger than an hour says so.
#[tokio::test]
async fn what_was_fetched_ahead_is_served_from_the_cache() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[300_000]);
    let larder = LarderProcess::start(&upstream, |_| {}).await;
    let stats = async || Ask::get("/api/v1/stats").send(larder.admin()).await.expect(200).json();
    let order = json!({ "images": ["alpine:1"], "referrers": false });
    let begun = call("POST", "/api/v1/prefetch", &order).send(larder.admin()).await;
    let job = format!("/api/v1/prefetch/{}", begun.expect(202).json()["id"]);
    // Its end, not the first sight of the image: while a blob is being stored, its reader joins the download.
    within("the job to end", async {
        while Ask::get(job.as_str()).send(larder.admin()).await.expect(200).json()["state"] == "running" {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let before = stats().await;
    let fetched = before["fetched_bytes"].as_u64().unwrap();
    assert!(fetched > 300_000, "{before:#}");
    assert_eq!(
        (&before["cached_bytes"], &before["byte_hit_ratio"]),
        (&json!(0), &Value::Null)
    );
    larder.get(manifest(REPO, "1")).await.expect(200);
    for digest in image.blobs() {
        larder.get(blob(REPO, digest)).await.expect_content(&digest);
    }
    larder.get(manifest(REPO, "no-such-tag")).await.expect(404);
    let after = within("all of it to be counted", async {
        loop {
            let stats = stats().await;
            if stats["requests"]["missing"] == 1 && stats["cached_bytes"].as_u64() >= Some(fetched) {
                return stats;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(after["fetched_bytes"], fetched, "{after:#}");
    assert_eq!(
        (&after["cached_bytes"], &after["saved_bytes"]),
        (&json!(fetched), &json!(fetched)),
        "{after:#}"
    );
    assert!(after["byte_hit_ratio"].as_f64() > Some(0.99), "{after:#}");
    assert_eq!(after["hit_ratio"], 1.0, "{after:#}");
    let periods = &after["periods"];
    for period in ["last_hour", "last_day", "since_start"] {
        for figure in [
            "requests",
            "hit_ratio",
            "served_bytes",
            "cached_bytes",
            "fetched_bytes",
            "byte_hit_ratio",
        ] {
            assert_eq!(periods[period][figure], after[figure], "{period} {figure}: {after:#}");
        }
        // As old as the process, and no older.
        let uptime = after["uptime_seconds"].as_u64().unwrap();
        let covers = periods[period]["covers_seconds"].as_u64().unwrap();
        assert!(covers <= uptime + 1, "{period}: {after:#}");
    }
}

/// The process itself, and how long its certificates last, under the names that dashboards know.
#[tokio::test]
async fn metrics_of_the_process_and_of_certificates() {
    let folder = tempfile::tempdir().unwrap();
    let (cert, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    let write = |year: i32| {
        let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        let pair = rcgen::KeyPair::generate().unwrap();
        std::fs::write(&key, pair.serialize_pem()).unwrap();
        std::fs::write(&cert, params.self_signed(&pair).unwrap().pem()).unwrap();
    };
    write(2040);
    let upstream = Upstream::start().await;
    let larder = LarderProcess::start(&upstream, |toml| {
        let file = |path: &Path| path.to_str().unwrap().to_owned();
        toml.set(&["server", "tls"], "cert", file(&cert));
        toml.set(&["server", "tls"], "key", file(&key));
        toml.upstream("docker.io", "ca_file", file(&cert));
    })
    .await;
    let metrics = async || {
        let answer = Ask::get("/metrics").send(larder.admin()).await.expect(200);
        String::from_utf8(answer.body).unwrap()
    };
    let expiry = |role: &str, key: &str, at: u64| {
        let file = cert.display();
        format!("larder_certificate_expires_timestamp_seconds{{role=\"{role}\",key=\"{key}\",file=\"{file}\"}} {at}\n")
    };
    let text = within("the certificates", async {
        loop {
            let text = metrics().await;
            if text.contains("larder_certificate_expires_timestamp_seconds{") {
                return text;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    for line in [
        expiry("server", "server.tls.cert", 2_208_988_800),
        expiry("authority", "upstream.docker.io.ca_file", 2_208_988_800),
    ] {
        assert!(text.contains(&line), "no {line} in\n{text}");
    }
    let info = format!("larder_build_info{{version=\"{}\",commit=\"", env!("CARGO_PKG_VERSION"));
    assert!(text.contains(&info), "{text}");
    let figure = |name: &str| -> f64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in\n{text}")).parse().unwrap()
    };
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    let age = now.as_secs_f64() - figure("process_start_time_seconds");
    assert!((0.0..300.0).contains(&age), "{age}");
    assert!(figure("process_cpu_seconds_total") > 0.0);
    let open = std::fs::read_dir(format!("/proc/{}/fd", larder.pid())).unwrap().count() as f64;
    assert!((figure("process_open_fds") - open).abs() < 50.0, "{open}\n{text}");
    assert!(figure("process_max_fds") > figure("process_open_fds"));
    let resident = figure("process_resident_memory_bytes");
    assert!(
        resident > 1e6 && resident < figure("process_virtual_memory_bytes"),
        "{text}"
    );
    // Every sample has its type before it, and no name twice.
    let types: Vec<&str> = text.lines().filter(|line| line.starts_with("# TYPE ")).collect();
    let names: BTreeSet<&str> = types.iter().filter_map(|line| line.split(' ').nth(2)).collect();
    assert_eq!(names.len(), types.len(), "{text}");
}

/// The figures of the metrics, by upstream: one pull from the upstream, three to clients. In a process of its own: what
/// other tests count is not in it.
#[tokio::test]
async fn bytes_served_fetched_and_saved() {
    let upstream = Upstream::start().await;
    let larder = LarderProcess::start(&upstream, |_| {}).await;
    let ask = async |path: &str| Ask::get(path).send(larder.admin()).await.expect(200);
    let stats = async || ask("/api/v1/stats").await.json();
    let none = stats().await;
    assert_eq!(none["hit_ratio"], Value::Null);
    assert_eq!((&none["served_bytes"], &none["saved_bytes"]), (&json!(0), &json!(0)));
    let (digest, size) = (upstream.blob(REPO, 300_000), 300_000);
    let path = blob(REPO, digest);
    larder.get(&path).await.expect_content(&digest);
    // By HEAD: asking whether the blob is kept must not move the figures.
    within("the blob to be kept", async {
        while larder.head(&path).await.header("cache-status") != Some("larder; hit") {
            tokio::task::yield_now().await;
        }
    })
    .await;
    larder.get(&path).await.expect_content(&digest);
    Ask::get(&path)
        .range("bytes=0-99999")
        .send(larder.registry())
        .await
        .expect(206);
    // What went out is counted when the proxy is done with a response, a moment after its last byte has come.
    within("all of it to be counted", async {
        while stats().await["served_bytes"] != 2 * size + 100_000 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let stats = stats().await;
    assert_eq!(stats["fetched_bytes"], size, "{stats:#}");
    assert_eq!(stats["saved_bytes"], size + 100_000, "{stats:#}");
    let hub = &stats["upstreams"][0];
    assert_eq!(hub["name"], "docker.io");
    assert_eq!(stats["cached_bytes"], stats["saved_bytes"], "{stats:#}");
    for figure in ["served_bytes", "cached_bytes", "fetched_bytes", "saved_bytes"] {
        assert_eq!(hub[figure], stats[figure], "{figure}: {stats:#}");
    }
    let requests = stats["requests"].as_object().unwrap().values();
    let all: u64 = requests.map(|n| n.as_u64().unwrap()).sum();
    let hits = stats["requests"]["hit"].as_u64().unwrap();
    assert_eq!(stats["hit_ratio"], hits as f64 / all as f64, "{stats:#}");
    let metrics = String::from_utf8(ask("/metrics").await.body.to_vec()).unwrap();
    for (name, figure) in [
        ("larder_response_bytes_total", "served_bytes"),
        ("larder_cached_response_bytes_total", "cached_bytes"),
        ("larder_upstream_bytes_total", "fetched_bytes"),
    ] {
        let line = format!("{name}{{upstream=\"docker.io\"}} {}", hub[figure]);
        assert!(metrics.lines().any(|found| found == line), "{line}\n{metrics}");
    }
}

#[tokio::test]
async fn pins() {
    let upstream = Upstream::start().await;
    let larder = Larder::start(&upstream, |t| {
        t.cache("max_size", "3MiB");
    })
    .await;
    let kept = upstream.image(REPO, "kept", &[500_000]);
    pull(&larder, &kept, "kept").await;
    let pinned = change(&larder, "POST", "/pins", json!({"image": "alpine:kept"}))
        .await
        .expect(200);
    let pinned = pinned.json();
    assert_eq!((&pinned["pinned"], &pinned["missing"]), (&json!(true), &json!(0)));
    assert_eq!(pinned["name"], format!("{NAME}:kept"));
    let refused = change(&larder, "DELETE", "/images/alpine:kept", Value::Null).await;
    assert_eq!(code(&refused, 409), "pinned");
    // By its digest it is the same image, under the same pin.
    let by_digest = format!("/images/alpine@{}", kept.manifest);
    assert_eq!(
        code(&change(&larder, "DELETE", &by_digest, Value::Null).await, 409),
        "pinned"
    );

    // Through pressure, and through a crash right after the answer.
    let larder = larder.crash().start(|_| {}).await;
    for _ in 0..12 {
        let digest = upstream.blob(REPO, 400_000);
        larder.get(blob(REPO, digest)).await.expect_content(&digest);
        larder.until_held(&blob(REPO, digest)).await;
    }
    assert!(api(&larder, "/stats").await["evicted"].as_u64() > Some(3));
    let larder = larder.restart().await;
    upstream.go_down().await;
    for digest in kept.blobs() {
        larder.get(blob(REPO, digest)).await.expect_content(&digest);
    }
    assert_eq!(api(&larder, "/images/alpine:kept").await["pinned"], true);

    let released = change(&larder, "DELETE", "/pins", json!({"image": "alpine:kept"}))
        .await
        .expect(200);
    assert_eq!(released.json()["pinned"], false);
    let again = change(&larder, "DELETE", "/pins", json!({"image": "alpine:kept"})).await;
    assert_eq!(code(&again, 404), "not-pinned");
    let unknown = change(&larder, "POST", "/pins", json!({"image": "alpine:never"})).await;
    assert_eq!(code(&unknown, 404), "not-held");
}

/// An answer from before the tag moved, whose body ends after a refresh, does not move the tag back.
#[tokio::test]
async fn an_older_answer_leaves_a_refreshed_tag_alone() {
    let upstream = Upstream::start().await;
    let larder = Larder::start(&upstream, |t| {
        t.cache("tag_ttl", "30d");
    })
    .await;
    let (old, new) = (upstream.image(REPO, "1", &[100]), upstream.untagged_image(REPO, &[200]));
    let gate = Gate::closed();
    upstream
        .on(On::Manifest("1".to_owned()).get())
        .next(1)
        .stall_after(20, &gate);
    let address = larder.registry();
    let slow = tokio::spawn(async move { Ask::get(manifest(REPO, "1")).send(address).await });
    gate.wait_for_arrivals(1).await;
    upstream.move_tag(REPO, "1", &new.manifest);
    let moved = change(&larder, "POST", "/refresh", json!({"image": "alpine:1"})).await;
    assert_eq!(moved.expect(200).json()["digest"], new.manifest.to_string());
    gate.open();
    slow.await.unwrap().expect_content(&old.manifest);
    larder.get(manifest(REPO, "1")).await.expect_content(&new.manifest);
}

/// A tag that moved is seen before its time is over; what the upstream cannot say changes nothing.
#[tokio::test]
async fn refresh() {
    let upstream = Upstream::start().await;
    let larder = Larder::start(&upstream, |t| {
        t.cache("tag_ttl", "30d");
    })
    .await;
    let (old, new) = (upstream.image(REPO, "1", &[100]), upstream.untagged_image(REPO, &[200]));
    larder.get(manifest(REPO, "1")).await.expect_content(&old.manifest);
    upstream.move_tag(REPO, "1", &new.manifest);
    larder.get(manifest(REPO, "1")).await.expect_content(&old.manifest);
    let refresh = async || change(&larder, "POST", "/refresh", json!({"image": "alpine:1"})).await;
    let moved = refresh().await.expect(200).json();
    assert_eq!(
        moved,
        json!({
            "name": format!("{NAME}:1"),
            "before": old.manifest.to_string(),
            "digest": new.manifest.to_string(),
            "moved": true,
        })
    );
    // It is held already: nobody has to wait for the upstream.
    upstream.go_down().await;
    larder.get(manifest(REPO, "1")).await.expect_content(&new.manifest);
    let failed = refresh().await;
    assert_eq!(failed.status, 502, "{failed:?}");
    upstream.come_up().await;
    assert_eq!(refresh().await.expect(200).json()["moved"], false);
    upstream.remove_tag(REPO, "1");
    assert_eq!(refresh().await.status, 404);
    larder.get(manifest(REPO, "1")).await.expect_content(&new.manifest);
    // One that nobody has pulled yet is fetched.
    let fresh = upstream.image(REPO, "2", &[100]);
    let first = change(&larder, "POST", "/refresh", json!({"image": "alpine:2"}))
        .await
        .expect(200);
    assert_eq!(first.json()["before"], Value::Null);
    assert_eq!(
        api(&larder, "/images/alpine:2").await["digest"],
        fresh.manifest.to_string()
    );
    let digest = json!({"image": format!("alpine@{}", fresh.manifest)});
    assert_eq!(code(&change(&larder, "POST", "/refresh", digest).await, 400), "no-tag");
    let larder = larder.stop().await.start(|t| {
        t.cache("offline", true);
    });
    let offline = change(&larder.await, "POST", "/refresh", json!({"image": "alpine:2"})).await;
    assert_eq!(code(&offline, 409), "offline");
}

/// A flipped byte, a file cut short, a file that is gone, a manifest among them: all found, put aside and counted.
#[tokio::test]
async fn verify_finds_rot() {
    let upstream = Upstream::start().await;
    let larder = Larder::start(&upstream, |_| {}).await;
    let image = upstream.image(REPO, "1", &[30_000, 40_000, 50_000, 60_000]);
    pull(&larder, &image, "1").await;
    let well = checked(&larder, false).await;
    assert_eq!(
        (&well["state"], &well["bad"], &well["blobs"]),
        (&json!("done"), &json!(0), &json!(6))
    );
    assert_eq!(
        (&well["bytes"], &well["blobs_total"]),
        (&well["bytes_total"], &json!(6))
    );
    assert!(well["background"]["finished_ms"].as_u64() > Some(0));

    let damage = damage(&larder, &image);
    let found = checked(&larder, false).await;
    assert_eq!((&found["bad"], &found["repaired"]), (&json!(3), &json!(0)));
    let named: BTreeSet<(String, String)> = found["found"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| {
            assert_eq!(
                (&one["repositories"], &one["repaired"]),
                (&json!([NAME]), &json!(false))
            );
            let text = |key: &str| one[key].as_str().unwrap().to_owned();
            (text("digest"), text("found"))
        })
        .collect();
    assert_eq!(named, damage);
    assert!(
        larder
            .metrics()
            .await
            .contains("larder_verify_bad_total{found=\"missing\"} ")
    );
    let du = api(&larder, "/du").await;
    assert_eq!(du["quarantined"], 2);
    assert_eq!(du["quarantine_bytes"], disk(&larder.cache().join("quarantine")));
    // The next client has them fetched again, whole and right.
    pull(&larder, &image, "1").await;
    assert_eq!(checked(&larder, false).await["bad"], 0);
}

/// Damages three blobs in three ways; what a check should call them.
fn damage(larder: &Larder, image: &Image) -> BTreeSet<(String, String)> {
    let mut bytes = std::fs::read(place(larder, &image.layers[0])).unwrap();
    bytes[12_345] ^= 1;
    std::fs::write(place(larder, &image.layers[0]), bytes).unwrap();
    let cut = std::fs::OpenOptions::new()
        .write(true)
        .open(place(larder, &image.layers[1]));
    cut.unwrap().set_len(100).unwrap();
    std::fs::remove_file(place(larder, &image.layers[2])).unwrap();
    let names = ["wrong", "wrong", "missing"];
    let layers = image.layers.iter().map(ToString::to_string);
    layers.zip(names.map(str::to_owned)).collect()
}

/// Repair fetches at once, for every repository that held it; what no upstream gives is left to the next client.
#[tokio::test]
async fn verify_repairs() {
    let upstream = Upstream::start().await;
    let larder = Larder::start(&upstream, |_| {}).await;
    let image = upstream.image(REPO, "1", &[30_000, 40_000, 50_000]);
    pull(&larder, &image, "1").await;
    upstream.mount(&image.layers[0], "other/repo");
    larder.get(blob("other/repo", image.layers[0])).await.expect(200);
    damage(&larder, &image);
    std::fs::write(place(&larder, &image.manifest), "{}").unwrap();
    upstream.forget();
    let repaired = checked(&larder, true).await;
    assert_eq!(
        (&repaired["bad"], &repaired["repaired"]),
        (&json!(4), &json!(4)),
        "{repaired:#}"
    );
    for digest in image.blobs().iter().chain([&image.manifest]) {
        let bytes = std::fs::read(place(&larder, digest)).unwrap();
        assert_eq!(Digest::sha256(&bytes), *digest);
    }
    upstream.go_down().await;
    larder
        .get(blob("other/repo", image.layers[0]))
        .await
        .expect_content(&image.layers[0]);
    larder.get(manifest(REPO, "1")).await.expect_content(&image.manifest);
    // No upstream: said for each, and nothing else is lost.
    damage(&larder, &image);
    let failed = checked(&larder, true).await;
    assert_eq!((&failed["bad"], &failed["repaired"]), (&json!(3), &json!(0)));
    assert!(failed["found"][0]["error"].is_string(), "{failed:#}");
    upstream.come_up().await;
    pull(&larder, &image, "1").await;
}

/// While it runs it can be joined, not changed, and ended.
#[tokio::test]
async fn one_check_at_a_time() {
    let upstream = Upstream::start().await;
    let larder = Larder::start(&upstream, |_| {}).await;
    let image = upstream.image(REPO, "1", &[30_000]);
    pull(&larder, &image, "1").await;
    damage_one(&larder, &image.layers[0]);
    let gate = crate::support::gate::Gate::closed();
    upstream.on(On::Blobs).stall_after(10, &gate);
    // A repair that waits for its upstream.
    let begun = change(&larder, "POST", "/verify", json!({"repair": true}))
        .await
        .expect(202)
        .json();
    assert_eq!((&begun["state"], &begun["repair"]), (&json!("running"), &json!(true)));
    gate.wait_for_arrivals(1).await;
    let joined = change(&larder, "POST", "/verify", json!({})).await.expect(202).json();
    assert_eq!(joined["started_ms"], begun["started_ms"]);
    change(&larder, "DELETE", "/verify", Value::Null).await.expect(200);
    let ended = within("the check to end", async {
        loop {
            let view = api(&larder, "/verify").await;
            if view["state"] != "running" {
                return view;
            }
            tokio::task::yield_now().await;
        }
    });
    assert_eq!(ended.await["state"], "cancelled");
    gate.open();
    assert_eq!(checked(&larder, false).await["state"], "done");
}

fn damage_one(larder: &Larder, digest: &Digest) {
    let mut bytes = std::fs::read(place(larder, digest)).unwrap();
    bytes[7] ^= 0x80;
    std::fs::write(place(larder, digest), bytes).unwrap();
}

/// L3, L2: a held blob that is cut short or gone is fetched again inside the request that finds it so.
#[tokio::test]
async fn damage_is_healed_while_serving() {
    let upstream = Upstream::start().await;
    let larder = Larder::start(&upstream, |_| {}).await;
    let image = upstream.image(REPO, "1", &[300_000, 400_000]);
    pull(&larder, &image, "1").await;
    let cut = std::fs::OpenOptions::new()
        .write(true)
        .open(place(&larder, &image.layers[0]));
    cut.unwrap().set_len(100_000).unwrap();
    std::fs::remove_file(place(&larder, &image.layers[1])).unwrap();
    upstream.forget();
    for digest in &image.layers {
        larder.get(blob(REPO, digest)).await.expect_content(digest);
        larder.until_held(&blob(REPO, digest)).await;
        assert_eq!(upstream.count(On::Blob(*digest).get()), 1, "{}", upstream.print());
    }
    assert!(larder.metrics().await.contains("larder_damaged_total{found=\"size\"} "));
    // A Range of one, and a HEAD.
    std::fs::remove_file(place(&larder, &image.layers[0])).unwrap();
    let part = Ask::get(blob(REPO, image.layers[0]))
        .range("bytes=10-19")
        .send(larder.registry());
    let whole = upstream.bytes(&image.layers[0]);
    assert_eq!(part.await.expect(206).body, whole[10..20]);
}

/// R-X16, R-X20 and all that is asked wrongly.
#[tokio::test]
async fn refusals() {
    let upstream = Upstream::start().await;
    let larder = Larder::start(&upstream, |t| {
        t.upstream("docker.io", "deny", vec!["secret/*"]);
    })
    .await;
    let image = upstream.image(REPO, "1", &[100]);
    pull(&larder, &image, "1").await;
    let ask = async |ask: Ask| ask.send(larder.admin()).await;
    // What a web page could make a browser send.
    for (method, path) in [
        ("DELETE", "/api/v1/images/alpine:1"),
        ("POST", "/api/v1/pins"),
        ("DELETE", "/api/v1/pins"),
        ("POST", "/api/v1/refresh"),
        ("POST", "/api/v1/verify"),
        ("DELETE", "/api/v1/verify"),
    ] {
        for kind in [
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
        ] {
            let sent = Ask::new(method, path)
                .header("Content-Type", kind)
                .body(r#"{"image":"alpine:1"}"#);
            assert_eq!(code(&ask(sent).await, 415), "not-json", "{method} {path} {kind}");
        }
        assert_eq!(code(&ask(Ask::new(method, path)).await, 415), "not-json");
        let foreign = call(method, path, &json!({"image": "alpine:1"}))
            .header("Host", "evil.example")
            .anonymously();
        assert_eq!(code(&ask(foreign).await, 421), "unknown-host");
    }
    api(&larder, "/images/alpine:1").await;
    for (query, status, word) in [
        ("/images/alpine:2", 404, "not-held"),
        ("/images/alpine:-x", 400, "bad-name"),
        ("/images/ALPINE:1", 400, "bad-name"),
        ("/images/alpine@sha256:1", 400, "bad-name"),
        ("/images/registry.invalid/x", 404, "unknown-upstream"),
        ("/images/secret/x", 403, "not-allowed"),
        ("/images/alpine%FF", 400, "bad-request"),
        ("/images?n=-1", 400, "bad-request"),
        ("/images?n=1&n=2", 400, "bad-request"),
        ("/images?patern=x", 400, "bad-request"),
        ("/du?n=x", 400, "bad-request"),
        ("/nothing", 404, "no-such-path"),
        ("/", 404, "no-such-path"),
    ] {
        let response = ask(Ask::get(format!("/api/v1{query}"))).await;
        assert_eq!(code(&response, status), word, "{query}");
    }
    for (method, path, body, status) in [
        ("POST", "/pins", json!({"image": "alpine:1", "force": true}), 400),
        ("POST", "/pins", json!({}), 400),
        ("POST", "/pins", json!("alpine"), 400),
        ("POST", "/pins", json!({"image": "x".repeat(70_000)}), 413),
        ("POST", "/verify", json!({"repair": "yes"}), 400),
        ("DELETE", "/images/alpine:1?force=maybe", Value::Null, 400),
        ("DELETE", "/images/alpine:2", Value::Null, 404),
        ("PUT", "/pins", json!({}), 405),
        ("POST", "/images", json!({}), 405),
        ("GET", "/refresh", Value::Null, 405),
    ] {
        let response = change(&larder, method, path, body).await;
        code(&response, status);
        assert_eq!(response.header("allow").is_some(), status == 405, "{response:?}");
    }
    // The registry's address knows nothing of it.
    larder.get("/api/v1/images").await.expect(404);
}

/// What was held under an upstream that is gone from the configuration, or is denied now, can still be removed.
#[tokio::test]
async fn leftovers_can_be_removed() {
    let (upstream, other) = (Upstream::start().await, Upstream::start().await);
    let larder = Larder::start(&upstream, |t| {
        t.upstream("old.example", "url", other.url());
    })
    .await;
    let old = other.image("a/b", "1", &[5000]);
    larder.get("/v2/old.example/a/b/manifests/1").await.expect(200);
    let denied = upstream.image("secret/x", "1", &[5000]);
    pull(&larder, &denied, "1").await;
    let text = |t: &mut crate::support::toml::Toml| {
        t.remove_upstream("old.example");
        t.upstream("docker.io", "deny", vec!["secret/*"]);
    };
    let larder = larder.stop().await.start(text).await;
    for name in ["old.example/a/b:1", "docker.io/secret/x:1"] {
        api(&larder, &format!("/images/{name}")).await;
        let refused = change(&larder, "POST", "/refresh", json!({"image": name})).await;
        assert!(refused.status >= 400);
        change(&larder, "DELETE", &format!("/images/{name}"), Value::Null)
            .await
            .expect(200);
    }
    assert!(!place(&larder, &old.manifest).exists());
    assert_eq!(api(&larder, "/images").await, json!({"images": []}));
}

/// Every answer has the fields that the description says, and no other.
#[tokio::test]
async fn answers_are_as_described() {
    let upstream = Upstream::start().await;
    let larder = Larder::start(&upstream, |_| {}).await;
    let child = upstream.untagged_image(REPO, &[5000]);
    upstream.index(REPO, "1", &[child.manifest]);
    larder.get(manifest(REPO, "1")).await.expect(200);
    pull(&larder, &child, &child.manifest.to_string()).await;
    upstream.image(REPO, "1", &[100]);
    let description = api(&larder, "/openapi.json").await;
    let schemas = &description["components"]["schemas"];
    let refreshed = change(&larder, "POST", "/refresh", json!({"image": "alpine:1"}))
        .await
        .expect(200);
    damage_one(&larder, &child.layers[0]);
    let mut images = api(&larder, "/images?n=1").await;
    // The index is called by its digest since the tag moved.
    let by_digest = format!(
        "/images/{}",
        api(&larder, "/images").await["images"][1]["name"].as_str().unwrap()
    );
    let answers = [
        ("ImageView", api(&larder, &by_digest).await),
        ("ImageView", api(&larder, "/images/alpine:1").await),
        ("DuView", api(&larder, "/du").await),
        ("VerifyView", checked(&larder, false).await),
        ("StatsView", api(&larder, "/stats").await),
        (
            "PinView",
            change(&larder, "POST", "/pins", json!({"image": "alpine:1"}))
                .await
                .json(),
        ),
        ("RefreshView", refreshed.json()),
        (
            "RemovedView",
            change(&larder, "DELETE", "/images/alpine:1?force=true", Value::Null)
                .await
                .json(),
        ),
        (
            "Error",
            change(&larder, "DELETE", "/images/alpine:1", Value::Null).await.json(),
        ),
        ("ImageList", images.take()),
    ];
    for (name, answer) in &answers {
        conforms(schemas, &schemas[*name], answer, name);
    }
}

fn conforms(schemas: &Value, schema: &Value, value: &Value, at: &str) {
    if let Some(reference) = schema["$ref"].as_str() {
        let name = reference.rsplit('/').next().unwrap();
        return conforms(schemas, &schemas[name], value, name);
    }
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let kinds: Vec<&str> = match &schema["type"] {
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        one => one.as_str().into_iter().collect(),
    };
    assert!(kinds.contains(&kind), "{at}: {value} is no {kinds:?}");
    match value {
        Value::Array(items) => items
            .iter()
            .for_each(|item| conforms(schemas, &schema["items"], item, at)),
        Value::Object(fields) => {
            let described = schema["properties"].as_object();
            if let Some(described) = described {
                let missing = described.keys().find(|key| !fields.contains_key(*key));
                assert!(missing.is_none(), "{at}: described, not there: {missing:?} in {value}");
            }
            for (key, field) in fields {
                let place = format!("{at}.{key}");
                match described.and_then(|described| described.get(key)) {
                    Some(inner) => conforms(schemas, inner, field, &place),
                    None => {
                        let any = &schema["additionalProperties"];
                        assert!(any.is_object(), "{place}: there, not described");
                        conforms(schemas, any, field, &place);
                    }
                }
            }
        }
        _ => {}
    }
}
