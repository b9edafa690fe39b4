//! Bundles from site to site: the real binary, at rest and through running proxies.

use std::path::Path;

use larder::oci::{Digest, media_type};
use serde_json::{Value, json};

use crate::support::client::Ask;
use crate::support::process::LarderProcess;
use crate::support::ran::{Ran, ask, pull, run, settle};
use crate::support::toml::Toml;
use crate::support::upstream::{Image, On, TokenPolicy, Upstream};
use crate::support::{blob, manifest, within};

const REPO: &str = "library/alpine";
const NAME: &str = "docker.io/library/alpine";

/// An isolated site: an upstream that nobody may ask, and a Larder that is offline.
struct Closed {
    upstream: Upstream,
    larder: LarderProcess,
}

impl Closed {
    /// Stopped, its folder at rest.
    async fn new(change: impl FnOnce(&mut Toml)) -> Closed {
        let upstream = Upstream::start().await;
        let mut larder = LarderProcess::start(&upstream, |toml| {
            toml.cache("offline", true);
            change(toml);
        })
        .await;
        larder.kill_9();
        Closed { upstream, larder }
    }

    async fn run(&self, args: &[&str]) -> Ran {
        run(self.larder.folder(), args).await
    }

    async fn serve(self) -> Closed {
        Closed {
            larder: self.larder.restart().await,
            upstream: self.upstream,
        }
    }

    async fn stop(mut self) -> Closed {
        assert_eq!(self.larder.stop().await, Some(0));
        self
    }

    /// All of an image comes from here, and nobody else was asked.
    async fn serves(&self, image: &Image, tag: &str) {
        let answer = self.larder.get(manifest(&image.repo, tag)).await.expect(200);
        assert_eq!(answer.body, image.bytes);
        for digest in image.blobs() {
            self.larder.get(blob(&image.repo, digest)).await.expect_content(&digest);
        }
        assert!(self.upstream.requests().is_empty());
    }
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// R-X7: credentials are there for the rate limit, and nobody has asked yet what is public. The bundle asks, so that only
/// what is private travels with the mark.
#[tokio::test]
async fn only_private_images_are_marked() {
    let upstream = Upstream::start().await;
    let policy = TokenPolicy::new().credentials("larder", "secret");
    upstream.require_token(policy.anonymous_for("team/open"));
    let images = ["team/open", "team/closed"].map(|repo| upstream.image(repo, "1", &[1_000]));
    let larder = LarderProcess::start(&upstream, |toml| {
        toml.upstream("docker.io", "username", "larder");
        toml.upstream("docker.io", "password", "secret");
        toml.everybody_may_pull();
    })
    .await;
    for image in &images {
        pull(&larder, image, "1").await;
    }
    let disk = tempfile::tempdir().unwrap();
    let bundle = disk.path().join("a.tar");
    ask(&larder, &["bundle", "create", path(&bundle)]).await.expect(0);
    let shown = run(disk.path(), &["bundle", "inspect", path(&bundle), "--json"]).await;
    let shown = shown.expect(0).json();
    let rows = shown["images"].as_array().unwrap().iter();
    let marks: Vec<_> = rows
        .map(|row| (row["name"].as_str().unwrap(), row["private"].as_bool().unwrap()))
        .collect();
    assert_eq!(
        marks,
        [("docker.io/team/closed:1", true), ("docker.io/team/open:1", false)]
    );
}

/// To carry images away is not to use them: what clients pulled longest ago is still what goes first.
#[tokio::test]
async fn a_bundle_is_no_use_of_its_images() {
    let upstream = Upstream::start().await;
    let layer = 3 << 20;
    let larder = LarderProcess::start(&upstream, |toml| {
        toml.cache("max_size", "24MiB");
    })
    .await;
    let (oldest, newer) = (
        upstream.image(REPO, "oldest", &[layer]),
        upstream.image(REPO, "newer", &[layer]),
    );
    pull(&larder, &oldest, "oldest").await;
    pull(&larder, &newer, "newer").await;
    let disk = tempfile::tempdir().unwrap();
    let used = async || {
        let list = ask(&larder, &["ls", "alpine:oldest", "--json"]).await.expect(0).json();
        list["images"][0]["used_ms"].clone()
    };
    let before = used().await;
    // Whole, in volumes, which are hashed before, and only planned.
    for (out, more) in [
        ("a.tar", &[][..]),
        ("b.tar", &["--volume-size", "2MiB"]),
        ("c.tar", &["--dry-run"]),
    ] {
        let out = disk.path().join(out);
        let args = [&["bundle", "create", path(&out), "alpine:oldest"], more].concat();
        ask(&larder, &args).await.expect(0);
    }
    ask(&larder, &["inspect", "alpine:oldest"]).await.expect(0);
    assert_eq!(used().await, before);
    let is_there = |image: &Image| {
        let place = |digest: &Digest| larder.cache().join("blobs/sha256").join(digest.hex());
        place(&image.layers[0]).exists()
    };
    for number in 0.. {
        assert!(number < 8, "nothing was evicted");
        let tag = format!("more-{number}");
        let more = upstream.image(REPO, &tag, &[layer]);
        pull(&larder, &more, &tag).await;
        if !is_there(&oldest) || !is_there(&newer) {
            break;
        }
    }
    assert!(is_there(&newer) && !is_there(&oldest));
}

/// BuildKit writes its cache as an index whose `manifests` are layers: they are fetched as blobs, and cross as blobs.
#[tokio::test]
async fn a_build_cache_crosses() {
    let upstream = Upstream::start().await;
    let layers = [upstream.blob(REPO, 1_000), upstream.blob(REPO, 2_000)];
    let config = upstream.put_blob(REPO, r#"{"layers":[{"blob":"sha256:x"}],"records":[]}"#);
    let layer = |digest: &Digest| {
        json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
            "digest": digest,
            "size": upstream.bytes(digest).len(),
            "annotations": {"buildkit/createdat": "2026-01-01T00:00:00Z"},
        })
    };
    let index = json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_INDEX,
        "manifests": [
            layer(&layers[0]),
            layer(&layers[1]),
            {"mediaType": "application/vnd.buildkit.cacheconfig.v0", "digest": config, "size": 45},
        ],
    });
    let index = upstream.put_manifest(REPO, Some("cache"), media_type::OCI_INDEX, index.to_string());
    let open = LarderProcess::start(&upstream, |_| {}).await;
    let fetched = ask(&open, &["prefetch", "alpine:cache", "--json"])
        .await
        .expect(0)
        .json();
    assert_eq!(fetched["images"][0]["state"], "held", "{fetched:#}");
    for digest in layers.iter().chain([&config]) {
        assert_eq!(upstream.count(On::Blob(*digest).get()), 1, "{}", upstream.print());
        assert_eq!(upstream.count(On::Manifest(digest.to_string())), 0);
    }
    let shown = ask(&open, &["inspect", "alpine:cache", "--json"])
        .await
        .expect(0)
        .json();
    assert_eq!(
        (&shown["platforms"], shown["layers"].as_array().unwrap().len()),
        (&json!([]), 3),
        "{shown:#}"
    );
    let disk = tempfile::tempdir().unwrap();
    let bundle = disk.path().join("cache.tar");
    ask(&open, &["bundle", "create", path(&bundle)]).await.expect(0);

    let closed = Closed::new(|_| {}).await;
    let imported = closed
        .run(&["bundle", "import", path(&bundle), "--unsigned"])
        .await
        .expect(0);
    assert!(imported.out.contains(&format!("{NAME}:cache: new")), "{}", imported.out);
    let closed = closed.serve().await;
    closed.larder.get(manifest(REPO, "cache")).await.expect_content(&index);
    for digest in layers.iter().chain([&config]) {
        closed.larder.get(blob(REPO, digest)).await.expect_content(digest);
    }
}

/// L8: what a client certificate of Larder's own got is private, also what came before there was one.
#[tokio::test]
async fn what_a_client_certificate_got_is_marked() {
    let upstream = Upstream::start().await;
    let image = upstream.image("team/closed", "1", &[1_000]);
    let mut larder = LarderProcess::start(&upstream, |_| {}).await;
    pull(&larder, &image, "1").await;
    larder.stop().await;
    let made = rcgen::generate_simple_self_signed(["larder".to_owned()]).unwrap();
    std::fs::write(larder.folder().join("larder.crt"), made.cert.pem()).unwrap();
    std::fs::write(larder.folder().join("larder.key"), made.signing_key.serialize_pem()).unwrap();
    let file = larder.folder().join("proxy.toml");
    let mut toml = Toml::parse(&std::fs::read_to_string(&file).unwrap());
    toml.upstream("docker.io", "client_cert", "larder.crt");
    toml.upstream("docker.io", "client_key", "larder.key");
    std::fs::write(&file, toml.text()).unwrap();
    let larder = larder.restart().await;
    let disk = tempfile::tempdir().unwrap();
    let bundle = disk.path().join("a.tar");
    ask(&larder, &["bundle", "create", path(&bundle)]).await.expect(0);
    let shown = run(disk.path(), &["bundle", "inspect", path(&bundle), "--json"]).await;
    let shown = shown.expect(0).json();
    assert_eq!(shown["images"][0]["private"], true, "{shown}");
}

/// Both ways of each: through a proxy and at rest.
#[tokio::test]
async fn across_the_gap() {
    let upstream = Upstream::start().await;
    let mut open = LarderProcess::start(&upstream, |_| {}).await;
    let a = upstream.image(REPO, "1", &[300_000, 20_000]);
    pull(&open, &a, "1").await;
    let disk = tempfile::tempdir().unwrap();
    let at = |name: &str| disk.path().join(name);
    run(disk.path(), &["bundle", "keygen", path(&at("key"))]).await;

    let created = ask(
        &open,
        &["bundle", "create", path(&at("one.tar")), "--key", path(&at("key"))],
    )
    .await
    .expect(0);
    assert!(
        created.out.contains("1 image, ") && created.err.is_empty(),
        "{} {}",
        created.out,
        created.err
    );
    assert_eq!(open.stop().await, Some(0));
    for name in ["two.tar", "three.tar"] {
        run(open.folder(), &["bundle", "create", path(&at(name))])
            .await
            .expect(0);
    }
    let bytes = |name: &str| std::fs::read(at(name)).unwrap();
    assert!(bytes("two.tar") == bytes("three.tar"), "the same holdings, other bytes");
    assert_eq!(bytes("one.tar.catalog.json"), bytes("two.tar.catalog.json"));
    let again = run(open.folder(), &["bundle", "create", path(&at("two.tar"))])
        .await
        .expect(1);
    assert!(
        again.err.contains("two.tar: it is there already; remove it"),
        "{}",
        again.err
    );
    // The catalogue of an earlier bundle is not written over either, and that shows before anything else is made.
    std::fs::remove_file(at("two.tar")).unwrap();
    let beside = run(open.folder(), &["bundle", "create", path(&at("two.tar"))])
        .await
        .expect(1);
    assert!(
        beside.err.contains("two.tar.catalog.json: it is there already"),
        "{}",
        beside.err
    );
    assert!(!at("two.tar").exists() && !at("two.tar.part").exists());

    let closed = Closed::new(|_| {}).await;
    let unknown = closed.run(&["bundle", "import", path(&at("one.tar"))]).await.expect(1);
    assert!(
        unknown.err.contains("--key") && unknown.err.contains("trusted_keys"),
        "{}",
        unknown.err
    );
    let imported = closed
        .run(&["bundle", "import", path(&at("one.tar")), "--key", path(&at("key.pub"))])
        .await
        .expect(0);
    assert!(
        imported.out.contains(&format!("{NAME}:1: new")) && imported.out.contains("signed by RW"),
        "{}",
        imported.out
    );
    let closed = closed.serve().await;
    closed.serves(&a, "1").await;
    closed.larder.get(manifest(REPO, "2")).await.expect(404);
    let list = ask(&closed.larder, &["ls", "--json"]).await.expect(0).json();
    assert_eq!(
        (&list["images"][0]["pinned"], list["images"].as_array().unwrap().len()),
        (&json!(true), 1)
    );

    // Again, into the running one: nothing changes.
    let key = path(&at("key.pub")).to_owned();
    let report = ask(
        &closed.larder,
        &["bundle", "import", path(&at("one.tar")), "--key", &key, "--json"],
    )
    .await
    .expect(0)
    .json();
    assert_eq!(report["images"][0]["outcome"], "unchanged", "{report}");
    assert_eq!((&report["new_blobs"], &report["held_blobs"]), (&json!(0), &json!(4)));

    // A tag moves: the next crossing brings what is new, and no more.
    let mut open = open.restart().await;
    let b = upstream.image(REPO, "1", &[2_000_000]);
    ask(&open, &["refresh", "alpine:1"]).await.expect(0);
    pull(&open, &b, "1").await;
    ask(
        &closed.larder,
        &[
            "bundle",
            "receipt",
            "--out",
            path(&at("receipt.json")),
            "--site",
            "ward 3",
        ],
    )
    .await
    .expect(0);
    let receipt: Value = serde_json::from_slice(&std::fs::read(at("receipt.json")).unwrap()).unwrap();
    assert_eq!(receipt["site"], "ward 3");
    assert_eq!(receipt["tags"][format!("{NAME}:1")], a.manifest.to_string());
    let increment = ask(
        &open,
        &[
            "bundle",
            "create",
            path(&at("four.tar")),
            "alpine:1",
            "--since",
            path(&at("receipt.json")),
            "--key",
            path(&at("key")),
            "--json",
        ],
    )
    .await
    .expect(0)
    .json();
    let new_bytes: u64 = b.blobs().iter().map(|d| upstream.bytes(d).len() as u64).sum::<u64>() + b.bytes.len() as u64;
    let size = increment["files"][0]["bytes"].as_u64().unwrap();
    assert!(size as f64 <= 1.02 * new_bytes as f64, "{size} for {new_bytes}");
    let told = run(
        disk.path(),
        &[
            "bundle",
            "inspect",
            path(&at("four.tar")),
            "--receipt",
            path(&at("receipt.json")),
            "--verify",
            "--key",
            &key,
        ],
    )
    .await
    .expect(0);
    assert!(
        told.out.contains("moved")
            && told.out.contains("signed by RW")
            && told.out.contains("all of it is as its digests say"),
        "{}",
        told.out
    );
    let moved = ask(
        &closed.larder,
        &["bundle", "import", path(&at("four.tar")), "--key", &key],
    )
    .await
    .expect(0);
    assert!(moved.out.contains(&format!("{NAME}:1: moved from")), "{}", moved.out);
    closed.serves(&b, "1").await;

    // The older bundle does not move it back, unless that is said.
    let older = ask(
        &closed.larder,
        &["bundle", "import", path(&at("one.tar")), "--key", &key],
    )
    .await
    .expect(0);
    assert!(older.out.contains("stays, it was confirmed later"), "{}", older.out);
    closed.serves(&b, "1").await;
    ask(
        &closed.larder,
        &["bundle", "import", path(&at("one.tar")), "--key", &key, "--older"],
    )
    .await
    .expect(0);
    closed.serves(&a, "1").await;
    closed.stop().await;
    assert_eq!(open.stop().await, Some(0));
}

/// Users: an archive that breaks half-way, or arrives on many small media (oc-mirror#491, hauler#237).
#[tokio::test]
async fn volumes_come_in_steps_and_damage_is_named() {
    let upstream = Upstream::start().await;
    let mut open = LarderProcess::start(&upstream, |_| {}).await;
    let image = upstream.image(REPO, "1", &[3_000_000, 400_000, 400_000]);
    pull(&open, &image, "1").await;
    assert_eq!(open.stop().await, Some(0));
    let disk = tempfile::tempdir().unwrap();
    let at = |name: &str| disk.path().join(name);
    let stem = path(&at("vol")).to_owned();
    let key = path(&at("key")).to_owned();
    run(disk.path(), &["bundle", "keygen", &key]).await;
    let public = format!("{key}.pub");
    run(
        open.folder(),
        &["bundle", "create", &stem, "--volume-size", "1MiB", "--key", &key],
    )
    .await
    .expect(0);
    let volumes: Vec<String> = (1..)
        .map(|n| format!("{stem}.{n:03}"))
        .take_while(|p| Path::new(p).exists())
        .collect();
    assert!(volumes.len() >= 4, "{volumes:?}");
    for volume in &volumes {
        assert!(std::fs::metadata(volume).unwrap().len() <= 1 << 20);
        run(disk.path(), &["bundle", "inspect", volume, "--verify"])
            .await
            .expect(0);
    }

    // One byte of the second volume.
    let right = std::fs::read(&volumes[1]).unwrap();
    let mut wrong = right.clone();
    wrong[600_000] ^= 1;
    std::fs::write(&volumes[1], &wrong).unwrap();
    let told = run(disk.path(), &["bundle", "inspect", &stem, "--verify"])
        .await
        .expect(1);
    assert!(told.out.contains("DAMAGED in volume 2"), "{}", told.out);
    let closed = Closed::new(|_| {}).await;
    let refused = closed.run(&["bundle", "import", &stem, "--unsigned"]).await.expect(1);
    assert!(
        refused.err.contains("damaged in this copy: sha256:"),
        "{} {}",
        refused.out,
        refused.err
    );
    let closed = closed.serve().await;
    closed.larder.get(manifest(REPO, "1")).await.expect(404);
    closed.larder.get(blob(REPO, image.layers[1])).await.expect(404);
    let closed = closed.stop().await;

    // Copied again, and brought one by one; what nobody signed has to come at once.
    std::fs::write(&volumes[1], &right).unwrap();
    let stepwise = Closed::new(|_| {}).await;
    for (at, volume) in volumes.iter().enumerate() {
        let is_last = at + 1 == volumes.len();
        let args = ["bundle", "import", volume, "--key", &public];
        let ran = stepwise.run(&args).await.expect(if is_last { 0 } else { 1 });
        assert_eq!(ran.err.contains("were not there"), !is_last, "{}", ran.err);
    }
    stepwise.serve().await.serves(&image, "1").await;
    // What was right of the damaged copy is not read again.
    let args = ["bundle", "import", &stem, "--key", &public, "--json"];
    let report = closed.run(&args).await.expect(0).json();
    assert!(report["held_bytes"].as_u64().unwrap() > 500_000, "{report}");
    closed.serve().await.serves(&image, "1").await;
    let unsigned = Closed::new(|_| {}).await;
    let args = ["bundle", "import", &volumes[0], "--unsigned"];
    let alone = unsigned.run(&args).await.expect(1);
    assert!(alone.err.contains("all have to be imported at once"), "{}", alone.err);
    unsigned.run(&["bundle", "import", &stem, "--unsigned"]).await.expect(0);
    unsigned.serve().await.serves(&image, "1").await;
}

/// A crash in the middle: nothing is visible, and what came is not sent for nothing.
#[tokio::test]
async fn killed_in_the_middle() {
    let upstream = Upstream::start().await;
    let mut open = LarderProcess::start(&upstream, |_| {}).await;
    let image = upstream.image(REPO, "1", &[1_000_000, 900_000, 800_000]);
    pull(&open, &image, "1").await;
    assert_eq!(open.stop().await, Some(0));
    let disk = tempfile::tempdir().unwrap();
    let tar = disk.path().join("a.tar");
    run(open.folder(), &["bundle", "create", path(&tar)]).await.expect(0);

    let closed = Closed::new(|_| {}).await;
    let mut closed = closed.serve().await;
    let bytes = std::fs::read(&tar).unwrap();
    let head = format!(
        "POST /api/v1/bundle/import?unsigned=true HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nContent-Type: application/x-tar\r\nContent-Length: {}\r\n\r\n",
        crate::support::admin_token(closed.larder.admin().port()).unwrap(),
        bytes.len()
    );
    let mut socket = tokio::net::TcpStream::connect(closed.larder.admin()).await.unwrap();
    use tokio::io::AsyncWriteExt as _;
    socket.write_all(head.as_bytes()).await.unwrap();
    socket.write_all(&bytes[..2_000_000]).await.unwrap();
    within("the first blob to be held", async {
        let stats = || Ask::get("/api/v1/stats").send(closed.larder.admin());
        while stats().await.expect(200).json()["blobs"] == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    closed.larder.kill_9();
    let closed = closed.serve().await;
    closed.larder.get(manifest(REPO, "1")).await.expect(404);
    for layer in &image.layers {
        closed.larder.get(blob(REPO, layer)).await.expect(404);
    }
    // A copy that was cut off says so.
    let cut = disk.path().join("cut.tar");
    std::fs::write(&cut, &bytes[..2_000_000]).unwrap();
    let short = ask(&closed.larder, &["bundle", "import", path(&cut), "--unsigned"])
        .await
        .expect(1);
    assert!(short.err.contains("is the copy complete?"), "{}", short.err);
    closed.larder.get(manifest(REPO, "1")).await.expect(404);
    let report = ask(
        &closed.larder,
        &["bundle", "import", path(&tar), "--unsigned", "--json"],
    )
    .await
    .expect(0)
    .json();
    assert!(report["held_blobs"].as_u64().unwrap() >= 1, "{report}");
    closed.serves(&image, "1").await;
}

/// An index goes with the platforms that are held; signatures go with it; what is not whole is named.
#[tokio::test]
async fn platforms_referrers_and_the_incomplete() {
    let upstream = Upstream::start().await;
    let open = LarderProcess::start(&upstream, |_| {}).await;
    let (here, other) = (
        upstream.untagged_image(REPO, &[50_000]),
        upstream.untagged_image(REPO, &[60_000]),
    );
    let index = upstream.index(REPO, "multi", &[here.manifest, other.manifest]);
    let signature = upstream.artifact(REPO, here.manifest, "application/vnd.example.signature");
    open.get(manifest(REPO, "multi")).await.expect(200);
    let half = upstream.image(REPO, "half", &[70_000]);
    open.get(manifest(REPO, "half")).await.expect(200);
    let disk = tempfile::tempdir().unwrap();
    let at = |name: &str| disk.path().join(name);
    let refused = ask(&open, &["bundle", "create", path(&at("a.tar"))]).await.expect(1);
    assert!(
        refused
            .err
            .contains(&format!("not cached completely: {NAME}:half, {NAME}:multi")),
        "{}",
        refused.err
    );

    for digest in std::iter::once(&here.manifest).chain([&signature.manifest]) {
        open.get(manifest(REPO, digest)).await.expect(200);
    }
    for digest in here.blobs() {
        open.get(blob(REPO, digest)).await.expect_content(&digest);
    }
    let list = open
        .get(format!("/v2/{REPO}/referrers/{}", here.manifest))
        .await
        .expect(200)
        .json();
    let parts: Value = serde_json::from_slice(&signature.bytes).unwrap();
    for part in parts["layers"].as_array().unwrap().iter().chain([&parts["config"]]) {
        let digest: Digest = part["digest"].as_str().unwrap().parse().unwrap();
        open.get(blob(REPO, digest)).await.expect_content(&digest);
    }
    settle(&open).await;
    let created = ask(&open, &["bundle", "create", path(&at("b.tar")), "--partial"])
        .await
        .expect(0);
    assert!(
        created
            .err
            .contains(&format!("{NAME}:half is not cached completely: left out")),
        "{}",
        created.err
    );
    let told = run(disk.path(), &["bundle", "inspect", path(&at("b.tar")), "--json"])
        .await
        .expect(0)
        .json();
    let row = &told["images"][0];
    assert_eq!((&row["absent"], &row["referrers"]), (&json!(1), &json!(1)), "{told}");
    assert_eq!(row["platforms"], json!(["linux/amd64"]));

    let closed = Closed::new(|_| {}).await;
    closed
        .run(&["bundle", "import", path(&at("b.tar")), "--unsigned"])
        .await
        .expect(0);
    let closed = closed.serve().await;
    let answer = closed.larder.get(manifest(REPO, "multi")).await.expect(200);
    assert_eq!(answer.body, index.bytes);
    closed.serves(&here, &here.manifest.to_string()).await;
    closed.larder.get(manifest(REPO, other.manifest)).await.expect(404);
    let listed = closed
        .larder
        .get(format!("/v2/{REPO}/referrers/{}", here.manifest))
        .await
        .expect(200)
        .json();
    assert_eq!(listed["manifests"], list["manifests"]);
    closed.larder.get(manifest(REPO, signature.manifest)).await.expect(200);
    drop(half);
}

/// An increment whose base never came shows nothing, and says what has to come first. What does not fit says how much.
#[tokio::test]
async fn what_is_missing_and_what_does_not_fit() {
    let upstream = Upstream::start().await;
    let mut open = LarderProcess::start(&upstream, |_| {}).await;
    let a = upstream.image(REPO, "1", &[200_000]);
    pull(&open, &a, "1").await;
    let disk = tempfile::tempdir().unwrap();
    let at = |name: &str| disk.path().join(name);
    ask(&open, &["bundle", "create", path(&at("full.tar"))]).await.expect(0);
    // No receipt came back: the last bundle's catalogue does.
    let catalog = path(&at("full.tar.catalog.json")).to_owned();
    let b = upstream.image(REPO, "2", &[100_000]);
    pull(&open, &b, "2").await;
    let created = ask(&open, &["bundle", "create", path(&at("more.tar")), "--since", &catalog])
        .await
        .expect(0);
    assert!(
        created.out.contains("are there already and stay out"),
        "{}",
        created.out
    );
    assert_eq!(open.stop().await, Some(0));

    let closed = Closed::new(|toml| {
        toml.cache("max_size", "2MiB");
    })
    .await;
    let early = closed
        .run(&["bundle", "import", path(&at("more.tar")), "--unsigned"])
        .await
        .expect(1);
    assert!(
        early.out.contains(&format!("{NAME}:1: not shown")) && early.err.contains("builds upon sha256:"),
        "{} {}",
        early.out,
        early.err
    );
    assert!(early.out.contains(&format!("{NAME}:2: new")), "{}", early.out);
    closed
        .run(&["bundle", "import", path(&at("full.tar")), "--unsigned"])
        .await
        .expect(0);
    let large = upstream.image(REPO, "3", &[3_000_000]);
    let open = open.restart().await;
    pull(&open, &large, "3").await;
    ask(&open, &["bundle", "create", path(&at("large.tar")), "alpine:3"])
        .await
        .expect(0);
    let full = closed
        .run(&["bundle", "import", path(&at("large.tar")), "--unsigned"])
        .await
        .expect(1);
    assert!(full.err.contains("no room: the bundle brings 30"), "{}", full.err);
    let closed = closed.serve().await;
    closed.serves(&a, "1").await;
    closed.serves(&b, "2").await;
    closed.larder.get(manifest(REPO, "3")).await.expect(404);
}

/// What other tools wrote: a layout as folder and as tar, and what `docker save` writes.
#[tokio::test]
async fn archives_of_others() {
    let disk = tempfile::tempdir().unwrap();
    let at = |name: &str| disk.path().join(name);
    let layer = crate::support::noise(7, 40_000);
    let layer_digest = Digest::sha256(&layer);
    let config =
        json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [layer_digest]}})
            .to_string();
    let list = json!([{"Config": "c.json", "RepoTags": ["thing:1", "registry.example:5000/a/b:2"], "Layers": ["one/layer.tar"]}]).to_string();
    let save = at("save.tar");
    let mut tar = tar::Builder::new(std::fs::File::create(&save).unwrap());
    for (name, bytes) in [
        ("c.json", config.as_bytes()),
        ("one/layer.tar", &layer),
        ("manifest.json", list.as_bytes()),
    ] {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, bytes).unwrap();
    }
    tar.finish().unwrap();
    let closed = Closed::new(|_| {}).await;
    let ran = closed.run(&["bundle", "import", path(&save)]).await.expect(0);
    assert!(ran.out.contains("docker.io/library/thing:1: new"), "{}", ran.out);
    // An archive of another tool has no date.
    assert!(
        !ran.out.contains("1970") && !ran.out.contains("bundle of"),
        "{}",
        ran.out
    );
    let ran = closed.run(&["bundle", "import", path(&at("none.tar"))]).await.expect(1);
    assert!(
        ran.err.contains("there is no such file") && !ran.err.contains("entity"),
        "{}",
        ran.err
    );
    let closed = closed.serve().await;
    let answer = closed
        .larder
        .get(manifest("library/thing", "1"))
        .await
        .expect(200)
        .json();
    assert_eq!(answer["layers"][0]["digest"], layer_digest.to_string());
    closed
        .larder
        .get(blob("library/thing", layer_digest))
        .await
        .expect_content(&layer_digest);

    // A bundle unpacked is a layout; under another name.
    ask(&closed.larder, &["bundle", "create", path(&at("b.tar")), "thing:1"])
        .await
        .expect(0);
    let folder = at("layout");
    tar::Archive::new(std::fs::File::open(at("b.tar")).unwrap())
        .unpack(&folder)
        .unwrap();
    let ran = ask(
        &closed.larder,
        &["bundle", "import", path(&folder), "--as", "other/name:9"],
    )
    .await
    .expect(0);
    assert!(ran.out.contains("docker.io/other/name:9: new"), "{}", ran.out);
    closed.larder.get(manifest("other/name", "9")).await.expect(200);
    let not = ask(
        &closed.larder,
        &["bundle", "import", path(&at("b.tar.catalog.json")), "--unsigned"],
    )
    .await
    .expect(1);
    assert!(not.err.contains("no bundle"), "{}", not.err);
}
