//! Bundles from site to site: the real binary, at rest and through running proxies.

use std::path::{Path, PathBuf};
use std::process::Output;

use larder::oci::Digest;
use serde_json::{Value, json};

use crate::support::client::Ask;
use crate::support::process::{LarderProcess, command};
use crate::support::toml::Toml;
use crate::support::upstream::{Image, Upstream};
use crate::support::{blob, manifest, within};

const REPO: &str = "library/alpine";
const NAME: &str = "docker.io/library/alpine";

pub struct Ran {
    pub status: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Ran {
    #[track_caller]
    pub fn expect(self, status: i32) -> Ran {
        assert_eq!(self.status, Some(status), "{}\n{}", self.out, self.err);
        self
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("no JSON ({error}): {}", self.out))
    }
}

/// `larder …` with the configuration of that folder.
pub async fn run(folder: &Path, args: &[&str]) -> Ran {
    let mut command = command(folder);
    command.args(args).arg("--config").arg(folder.join("proxy.toml"));
    let running = tokio::task::spawn_blocking(move || command.output().expect("the larder binary"));
    let output: Output = within("the command to end", running).await.unwrap();
    let text = |bytes| String::from_utf8(bytes).expect("output in UTF-8");
    Ran {
        status: output.status.code(),
        out: text(output.stdout),
        err: text(output.stderr),
    }
}

/// The same through a running proxy.
async fn ask(larder: &LarderProcess, args: &[&str]) -> Ran {
    let admin = format!("http://{}", larder.admin());
    let args: Vec<&str> = args.iter().copied().chain(["--admin", &admin]).collect();
    run(larder.folder(), &args).await
}

pub async fn pull(larder: &LarderProcess, image: &Image, tag: &str) {
    larder.get(manifest(&image.repo, tag)).await.expect(200);
    for digest in image.blobs() {
        larder.get(blob(&image.repo, digest)).await.expect_content(&digest);
    }
    settle(larder).await;
}

async fn settle(larder: &LarderProcess) {
    within("all of it to be kept", async {
        let stats = || Ask::get("/api/v1/stats").send(larder.admin());
        while stats().await.expect(200).json()["transfers"] != 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

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
        assert_eq!(larder.stop().await, Some(0));
        Closed { upstream, larder }
    }

    fn folder(&self) -> PathBuf {
        self.larder.folder().to_owned()
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

    let created = ask(&open, &["bundle", "create", path(&at("one.tar")), "--key", path(&at("key"))]).await.expect(0);
    assert!(created.out.contains("1 image, ") && created.err.is_empty(), "{} {}", created.out, created.err);
    assert_eq!(open.stop().await, Some(0));
    for name in ["two.tar", "three.tar"] {
        run(open.folder(), &["bundle", "create", path(&at(name))]).await.expect(0);
    }
    let bytes = |name: &str| std::fs::read(at(name)).unwrap();
    assert!(bytes("two.tar") == bytes("three.tar"), "the same holdings, other bytes");
    assert_eq!(bytes("one.tar.catalog.json"), bytes("two.tar.catalog.json"));
    let again = run(open.folder(), &["bundle", "create", path(&at("two.tar"))]).await.expect(1);
    assert!(again.err.contains("exists"), "{}", again.err);

    let closed = Closed::new(|_| {}).await;
    let unknown = closed.run(&["bundle", "import", path(&at("one.tar"))]).await.expect(1);
    assert!(unknown.err.contains("--key") && unknown.err.contains("trusted_keys"), "{}", unknown.err);
    let imported = closed.run(&["bundle", "import", path(&at("one.tar")), "--key", path(&at("key.pub"))]).await.expect(0);
    assert!(imported.out.contains(&format!("{NAME}:1: new")) && imported.out.contains("signed by RW"), "{}", imported.out);
    let closed = closed.serve().await;
    closed.serves(&a, "1").await;
    closed.larder.get(manifest(REPO, "2")).await.expect(404);
    let list = ask(&closed.larder, &["ls", "--json"]).await.expect(0).json();
    assert_eq!((&list["images"][0]["pinned"], list["images"].as_array().unwrap().len()), (&json!(true), 1));

    // Again, into the running one: nothing changes.
    let key = path(&at("key.pub")).to_owned();
    let report = ask(&closed.larder, &["bundle", "import", path(&at("one.tar")), "--key", &key, "--json"]).await.expect(0).json();
    assert_eq!(report["images"][0]["outcome"], "unchanged", "{report}");
    assert_eq!((&report["new_blobs"], &report["held_blobs"]), (&json!(0), &json!(4)));

    // A tag moves: the next crossing brings what is new, and no more.
    let mut open = open.restart().await;
    let b = upstream.image(REPO, "1", &[250_000]);
    ask(&open, &["refresh", "alpine:1"]).await.expect(0);
    pull(&open, &b, "1").await;
    ask(&closed.larder, &["bundle", "receipt", "--out", path(&at("receipt.json")), "--site", "ward 3"]).await.expect(0);
    let receipt: Value = serde_json::from_slice(&std::fs::read(at("receipt.json")).unwrap()).unwrap();
    assert_eq!(receipt["site"], "ward 3");
    assert_eq!(receipt["tags"][format!("{NAME}:1")], a.manifest.to_string());
    let increment = ask(&open, &["bundle", "create", path(&at("four.tar")), "alpine:1", "--since", path(&at("receipt.json")), "--key", path(&at("key")), "--json"]).await.expect(0).json();
    let new_bytes: u64 = b.blobs().iter().map(|d| upstream.bytes(d).len() as u64).sum::<u64>() + b.bytes.len() as u64;
    let size = increment["files"][0]["bytes"].as_u64().unwrap();
    assert!(size as f64 <= 1.02 * new_bytes as f64, "{size} for {new_bytes}");
    let told = run(disk.path(), &["bundle", "inspect", path(&at("four.tar")), "--receipt", path(&at("receipt.json")), "--verify", "--key", &key]).await.expect(0);
    assert!(told.out.contains("moved") && told.out.contains("signed by RW") && told.out.contains("all of it is as its digests say"), "{}", told.out);
    let moved = ask(&closed.larder, &["bundle", "import", path(&at("four.tar")), "--key", &key]).await.expect(0);
    assert!(moved.out.contains(&format!("{NAME}:1: moved from")), "{}", moved.out);
    closed.serves(&b, "1").await;

    // The older bundle does not move it back, unless that is said.
    let older = ask(&closed.larder, &["bundle", "import", path(&at("one.tar")), "--key", &key]).await.expect(0);
    assert!(older.out.contains("stays, it was confirmed later"), "{}", older.out);
    closed.serves(&b, "1").await;
    ask(&closed.larder, &["bundle", "import", path(&at("one.tar")), "--key", &key, "--older"]).await.expect(0);
    closed.serves(&a, "1").await;
    closed.stop().await;
    assert_eq!(open.stop().await, Some(0));
}
