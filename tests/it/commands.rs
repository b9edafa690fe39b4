//! Operators' commands as processes: against a running proxy, and against its folder when none runs.

use std::path::Path;

use serde_json::json;

use crate::support::client::Ask;
use crate::support::process::{LarderProcess, command};
use crate::support::ran::{Ran, ask, pull, run};
use crate::support::upstream::{Image, Upstream};
use crate::support::{manifest, within};

const REPO: &str = "library/alpine";
const NAME: &str = "docker.io/library/alpine";

fn flip(larder_cache: &Path, digest: &larder::oci::Digest) {
    let place = larder_cache.join("blobs/sha256").join(digest.hex());
    let mut bytes = std::fs::read(&place).unwrap();
    bytes[0] ^= 1;
    std::fs::write(&place, bytes).unwrap();
}

/// Each command through a proxy; then without one, on the folder that it left, with the same words.
#[tokio::test]
async fn with_and_without_a_proxy() {
    let upstream = Upstream::start().await;
    let mut larder = LarderProcess::start(&upstream, |_| {}).await;
    let (a, b) = (
        upstream.image(REPO, "a", &[300_000]),
        upstream.image(REPO, "b", &[50_000]),
    );
    pull(&larder, &a, "a").await;
    pull(&larder, &b, "b").await;

    let with = looks(async |args: &[&str]| ask(&larder, args).await.expect(0)).await;
    let stats = ask(&larder, &["stats"]).await.expect(0).out;
    assert!(
        stats.contains(&format!("process {}", larder.pid())) && stats.contains("docker.io"),
        "{stats}"
    );
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let lines: Vec<String> = stats.lines().map(words).collect();
    let has = |wanted: &str| lines.iter().any(|line| line.starts_with(wanted));
    for wanted in [
        "LAST HOUR LAST DAY SINCE THE START",
        "miss 6 6 6",
        "hit ratio",
        "bytes served",
        "from the cache",
        "byte hit ratio",
        "(the process is ",
        "UPSTREAM CACHED LIMIT SERVED FROM CACHE FETCHED",
    ] {
        assert!(has(wanted), "no {wanted:?} in\n{stats}");
    }
    assert_eq!(larder.stop().await, Some(0));
    let folder = larder.folder().to_owned();
    let without = looks(async |args: &[&str]| run(&folder, args).await.expect(0)).await;
    assert_eq!(with, without);
    let stats = run(&folder, &["stats"]).await.expect(0).out;
    assert!(stats.starts_with("no proxy runs"), "{stats}");

    // What is changed at rest is there when the proxy runs again.
    let pinned = run(&folder, &["pin", "alpine:a"]).await.expect(0).out;
    assert_eq!(pinned, format!("{NAME}:a: pinned, 304.0 KiB cached\n"));
    let refused = run(&folder, &["rm", "alpine:b", "alpine:a"]).await.expect(1);
    assert_eq!(refused.out, format!("{NAME}:b: removed, 60.0 KiB freed in 3 blobs\n"));
    assert!(
        refused.err.contains("pinned") && refused.err.contains("force"),
        "{}",
        refused.err
    );
    let larder = larder.restart().await;
    let list = ask(&larder, &["ls", "--json"]).await.expect(0).json();
    assert_eq!(list["images"].as_array().unwrap().len(), 1);
    assert_eq!(list["images"][0]["pinned"], true);
    ask(&larder, &["unpin", "alpine:a"]).await.expect(0);
    ask(&larder, &["pin", "alpine:a"]).await.expect(0);
    let removed = ask(&larder, &["rm", "--force", "--json", "alpine:a"])
        .await
        .expect(0)
        .json();
    assert_eq!(removed[0]["freed_bytes"], 304 * 1024);
    let empty = ask(&larder, &["ls"]).await.expect(0).out;
    assert_eq!(empty, "nothing is cached yet\n");
}

/// What only looks, as text and as data, but for what depends on when it was looked at.
async fn looks(run: impl AsyncFn(&[&str]) -> Ran) -> Vec<String> {
    let mut all = Vec::new();
    let list = run(&["ls"]).await.out;
    let lines: Vec<&str> = list.lines().collect();
    assert!(lines[0].starts_with("IMAGE") && lines[0].contains("CHECKED"), "{list}");
    assert!(
        lines[1].starts_with(&format!("{NAME}:a  ")) && lines[1].contains("304.0 KiB"),
        "{list}"
    );
    assert_eq!(lines[3], "2 images");
    let one = run(&["ls", "*:b"]).await.out;
    assert!(
        one.contains(&format!("{NAME}:b")) && one.ends_with("1 image\n"),
        "{one}"
    );
    let inspected = run(&["inspect", "alpine:a"]).await.out;
    assert!(
        inspected.contains("LAYER") && inspected.contains("through   docker.io/library/alpine\n"),
        "{inspected}"
    );
    let du = run(&["du"]).await.out;
    assert!(du.contains("EXCLUSIVE") && du.contains("of 50.0 GiB"), "{du}");
    for args in [
        &["ls", "--json"][..],
        &["inspect", "alpine:b", "--json"],
        &["du", "--json"],
    ] {
        let mut data = run(args).await.json();
        // The index is its own file, which grows when it is opened.
        if let Some(fields) = data.as_object_mut() {
            fields.remove("index_bytes");
            fields.remove("used_bytes");
        }
        all.push(data.to_string());
    }
    all
}

/// Finds what is damaged, says so, and says by its status whether something is left to do.
#[tokio::test]
async fn verify() {
    let upstream = Upstream::start().await;
    let mut larder = LarderProcess::start(&upstream, |_| {}).await;
    let image = upstream.image(REPO, "1", &[300_000]);
    pull(&larder, &image, "1").await;
    let well = ask(&larder, &["verify"]).await.expect(0);
    assert_eq!(
        well.out,
        "3 blobs, 293.6 KiB: all as they should be\n".replace("293.6", &kib(&image, &upstream))
    );
    assert!(!well.err.contains('\u{1b}'), "no terminal, no bar: {}", well.err);

    flip(&larder.cache(), &image.layers[0]);
    let bad = ask(&larder, &["verify"]).await.expect(1);
    assert!(
        bad.out.contains(&image.layers[0].to_string()) && bad.out.contains("1 damaged and quarantined"),
        "{}",
        bad.out
    );
    pull(&larder, &image, "1").await;
    flip(&larder.cache(), &image.layers[0]);
    let repaired = ask(&larder, &["verify", "--repair", "--json"]).await.expect(0).json();
    assert_eq!((&repaired["bad"], &repaired["repaired"]), (&json!(1), &json!(1)));

    // Without a proxy this process asks the upstream itself.
    assert_eq!(larder.stop().await, Some(0));
    flip(&larder.cache(), &image.layers[0]);
    let repaired = run(larder.folder(), &["verify", "--repair"]).await.expect(0).out;
    assert!(
        repaired.contains("fetched again") && repaired.contains("1 damaged"),
        "{repaired}"
    );
    upstream.go_down().await;
    flip(&larder.cache(), &image.layers[0]);
    let failed = run(larder.folder(), &["verify", "--repair"]).await.expect(1).out;
    assert!(failed.contains("not fetched again: "), "{failed}");
}

fn kib(image: &Image, upstream: &Upstream) -> String {
    let blobs: usize = image.blobs().iter().map(|digest| upstream.bytes(digest).len()).sum();
    format!("{:.1}", (blobs + image.bytes.len()) as f64 / 1024.0)
}

#[tokio::test]
async fn refresh() {
    let upstream = Upstream::start().await;
    let mut larder = LarderProcess::start(&upstream, |_| {}).await;
    let (old, new) = (upstream.image(REPO, "1", &[100]), upstream.untagged_image(REPO, &[200]));
    pull(&larder, &old, "1").await;
    let still = ask(&larder, &["refresh", "alpine:1"]).await.expect(0).out;
    assert!(still.contains("still"), "{still}");
    upstream.move_tag(REPO, "1", &new.manifest);
    let moved = ask(&larder, &["refresh", "alpine:1"]).await.expect(0).out;
    assert!(
        moved.contains("moved from") && moved.contains(&new.manifest.hex()[..12]),
        "{moved}"
    );
    larder.get(manifest(REPO, "1")).await.expect_content(&new.manifest);
    assert_eq!(larder.stop().await, Some(0));
    upstream.move_tag(REPO, "1", &old.manifest);
    let back = run(larder.folder(), &["refresh", "alpine:1", "--json"])
        .await
        .expect(0)
        .json();
    assert_eq!(back[0]["digest"], old.manifest.to_string());
    upstream.go_down().await;
    let failed = run(larder.folder(), &["refresh", "alpine:1"]).await.expect(1).err;
    assert!(failed.contains("stays as it is cached"), "{failed}");
    // A tag that was never there does not stay.
    let failed = run(larder.folder(), &["refresh", "alpine:never"]).await.expect(1).err;
    assert!(
        failed.contains(&format!("{NAME}:never is not cached here, and could not be fetched: ")),
        "{failed}"
    );
}

/// The transports that skopeo and Helm write before a name are understood wherever an image is named. An address of the web is
/// not, and the message has the name to write.
#[tokio::test]
async fn names_with_a_transport() {
    let upstream = Upstream::start().await;
    upstream.image(REPO, "1", &[100]);
    let larder = LarderProcess::start(&upstream, |_| {}).await;
    for args in [
        &["prefetch", "docker://alpine:1", "--no-referrers"][..],
        &["prefetch", "oci://docker.io/library/alpine:1", "--no-referrers"],
        &["inspect", "docker://alpine:1"],
        &["pin", "docker://docker.io/library/alpine:1"],
        &["unpin", "docker://alpine:1"],
        &["refresh", "docker://alpine:1"],
        &["ls", "docker://docker.io/library/alpine"],
        &["ls", "docker://docker.io/*"],
        &["rm", "docker://alpine:1"],
    ] {
        let ran = ask(&larder, args).await.expect(0);
        assert!(ran.out.contains(&format!("{NAME}:1")), "{args:?}: {}", ran.out);
    }
    for (args, status) in [
        (&["inspect", "https://docker.io/library/alpine:1"][..], 1),
        (&["pin", "https://docker.io/library/alpine:1"], 1),
        (&["prefetch", "https://docker.io/library/alpine:1"], 64),
    ] {
        let refused = ask(&larder, args).await.expect(status);
        assert!(
            refused.err.contains("write docker.io/library/alpine:1"),
            "{args:?}: {}",
            refused.err
        );
    }
    let allowed = run(larder.folder(), &["auth", "check", "anonymous", "docker://alpine:1"]).await;
    assert!(allowed.out.contains(NAME), "{}{}", allowed.out, allowed.err);
}

/// The folder belongs to a proxy that cannot be asked: who it is, and what to do.
#[tokio::test]
async fn the_folder_is_taken() {
    let upstream = Upstream::start().await;
    // A token that is configured is written nowhere, so no file leads to the proxy.
    let larder = LarderProcess::start(&upstream, |toml| {
        toml.admin("token", "a-token-of-operators");
    })
    .await;
    let pid = larder.pid().to_string();
    // Its configuration says port 0, to which nobody can connect.
    let taken = run(larder.folder(), &["ls"]).await.expect(1).err;
    assert!(
        taken.contains(&format!("process {pid} runs on it")) && taken.contains("--admin"),
        "{taken}"
    );
    let file = larder.folder().join("other.toml");
    let closed = closed_port().await;
    let text = format!("[admin]\nlisten = \"{closed}\"\n[cache]\npath = {:?}\n", larder.cache());
    std::fs::write(&file, text).unwrap();
    let other = async |args: &[&str]| {
        let mut command = command(larder.folder());
        command.args(args).arg("--config").arg(&file);
        let running = tokio::task::spawn_blocking(move || command.output().expect("the larder binary"));
        Ran::of(within("the command to end", running).await.unwrap())
    };
    let silent = other(&["du"]).await.expect(1).err;
    for part in [&format!("nothing answers at http://{closed}"), &pid, "kill"] {
        assert!(silent.contains(part), "no {part} in {silent}");
    }
    // A second proxy on the folder is told the same, and the first goes on.
    let second = other(&["serve"]).await.expect(1).err;
    assert!(
        second.contains(&format!("in use by another larder (pid {pid})")),
        "{second}"
    );
    larder.get("/v2/").await.expect(200);
    // Somebody else's server is no larder.
    let admin = upstream.url();
    let strange = run(larder.folder(), &["ls", "--admin", &admin]).await.expect(1).err;
    assert!(strange.contains("no larder"), "{strange}");
}

async fn closed_port() -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}

#[tokio::test]
async fn bad_usage() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("proxy.toml");
    let listen = closed_port().await;
    let cache = folder.path().join("cache");
    std::fs::write(
        &file,
        format!("[admin]\nlisten = \"{listen}\"\n[cache]\npath = {cache:?}\n"),
    )
    .unwrap();
    for args in [
        &["pin"][..],
        &["inspect"],
        &["ls", "--admin", "ftp://x"],
        &["du", "-n", "many"],
        &["completions", "no-such-shell"],
    ] {
        let mut command = command(folder.path());
        let output = command.args(args).output().unwrap();
        Ran::of(output).expect(64);
    }
    // A look makes no folder.
    let none = run(folder.path(), &["ls"]).await.expect(1).err;
    assert!(none.contains("there is no cache folder") && !cache.exists(), "{none}");
    let mistaken = format!("[admin]\nlisten = \"{listen}\"\n[cache]\nmax_sise = 1\n");
    std::fs::write(&file, mistaken).unwrap();
    let refused = run(folder.path(), &["ls"]).await.expect(64).err;
    assert!(
        refused.contains("max_size") && refused.contains(&listen.to_string()),
        "{refused}"
    );
    for shell in ["bash", "zsh", "fish"] {
        let script = run(folder.path(), &["completions", shell]).await.expect(0).out;
        assert!(script.contains("inspect") && script.contains("repair"), "{shell}");
    }
}

/// Names that nobody ever pulled, and names that are none.
#[tokio::test]
async fn unknown_images() {
    let upstream = Upstream::start().await;
    let larder = LarderProcess::start(&upstream, |_| {}).await;
    for (args, words) in [
        (&["inspect", "alpine:9"][..], "is not cached here"),
        (&["rm", "alpine:9"], "is not cached here"),
        (&["pin", "Alpine"], "not a repository name"),
        (&["refresh", "evil.example/x"], "not an upstream of this proxy"),
        (&["inspect", "al pine?x#y"], "not a repository name"),
    ] {
        let failed = ask(&larder, args).await.expect(1).err;
        assert!(failed.contains(words), "{failed}");
    }
    let results = ask(&larder, &["pin", "alpine:9", "--json"]).await.expect(1).json();
    assert!(results[0]["error"].is_string() && results[0]["name"] == "alpine:9");
}

/// R-X16: with a token the API is for those who bring it; commands find it where the proxy does. Health is for all.
#[tokio::test]
async fn with_a_token() {
    let upstream = Upstream::start().await;
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), "a-token-of-operators\n").unwrap();
    let path = secret.path().to_str().unwrap();
    let larder = LarderProcess::start(&upstream, |t| {
        t.admin("token_file", path);
    })
    .await;
    ask(&larder, &["ls"]).await.expect(0);
    std::fs::write(secret.path(), "another-token-of-operators\n").unwrap();
    ask(&larder, &["stats"]).await.expect(0);
    let stats = || Ask::get("/api/v1/stats");
    let refused = stats().send(larder.admin()).await.expect(401);
    assert_eq!(refused.header("www-authenticate"), Some("Bearer realm=\"larder\""));
    let brought = |token: &str| {
        stats()
            .header("Authorization", format!("Bearer {token}"))
            .send(larder.admin())
    };
    brought("another-token-of-operators").await.expect(200);
    brought("a-token-of-operators").await.expect(401);
    for open in ["/healthz", "/readyz", "/metrics", "/"] {
        Ask::get(open).send(larder.admin()).await.expect(200);
    }
    let admin = format!("http://{}", larder.admin());
    let elsewhere = tempfile::tempdir().unwrap();
    let mut stranger = command(elsewhere.path());
    stranger.args(["ls", "--admin", &admin]);
    let stranger = Ran::of(
        tokio::task::spawn_blocking(move || stranger.output().unwrap())
            .await
            .unwrap(),
    );
    assert!(stranger.expect(1).err.contains("admin.token"));
    assert!(!larder.logs().contains("token-of-operators"), "L7");
}
