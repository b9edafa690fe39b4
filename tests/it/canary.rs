//! Canaries: what only this proxy can answer, and `larder doctor --client --pull`, which has clients pull it.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use larder::oci::Digest;
use serde_json::{Value, json};

use crate::support::client::{Ask, Response};
use crate::support::larder::Larder;
use crate::support::process::{LarderProcess, command};
use crate::support::upstream::{On, Upstream};
use crate::support::{blob, manifest, within};

const REPO: &str = "larder-doctor/canary";

async fn call(larder: &Larder, method: &str, path: &str, body: Value) -> Response {
    Ask::new(method, format!("/api/v1/{path}"))
        .header("Content-Type", "application/json")
        .body(body.to_string())
        .send(larder.admin())
        .await
}

async fn make(larder: &Larder) -> Value {
    let made = call(larder, "POST", "canary", json!({"architecture": "amd64"})).await;
    made.expect(200).json()
}

async fn requests(larder: &Larder, tag: &str) -> Vec<Value> {
    let seen = Ask::get(format!("/api/v1/canary/{tag}")).send(larder.admin()).await;
    seen.expect(200).json()["requests"].as_array().unwrap().clone()
}

/// Every request that the upstream had.
fn asked(upstream: &Upstream) -> usize {
    upstream.count(On::Any)
}

#[tokio::test]
async fn a_canary_is_answered_and_noted_and_no_upstream_is_asked() {
    let upstream = Upstream::start().await;
    let larder = Larder::start(&upstream, |toml| {
        // Whatever is allowed of the upstream.
        toml.upstream("docker.io", "allow", vec!["library/*".to_owned()]);
    })
    .await;
    let made = make(&larder).await;
    assert_eq!(made["repository"], REPO);
    let tag = made["tag"].as_str().unwrap();
    assert!(requests(&larder, tag).await.is_empty());
    let head = larder.head(manifest(REPO, tag)).await.expect(200);
    let found = larder.get(manifest(REPO, tag)).await.expect(200);
    let digest: Digest = made["digest"].as_str().unwrap().parse().unwrap();
    assert_eq!(Digest::sha256(&found.body), digest);
    for answer in [&head, &found] {
        assert_eq!(answer.header("docker-content-digest"), made["digest"].as_str());
        let length = found.body.len().to_string();
        assert_eq!(answer.header("content-length"), Some(length.as_str()));
        assert_eq!(
            answer.header("content-type"),
            Some("application/vnd.oci.image.manifest.v1+json")
        );
    }
    let document = found.json();
    for part in [&document["config"], &document["layers"][0]] {
        let digest = part["digest"].as_str().unwrap();
        let body = larder.get(blob(REPO, digest)).await.expect(200).body;
        assert_eq!(Digest::sha256(&body).to_string(), digest);
    }
    // By every spelling, and by digest; each noted as what the proxy took it for.
    for target in [
        format!("/v2/{REPO}/manifests/{tag}?ns=docker.io"),
        format!("/v2/docker.io/{REPO}/manifests/{digest}"),
        format!("/v2/quay.io/org/{REPO}/manifests/{tag}"),
    ] {
        larder.get(target).await.expect(200);
    }
    let seen = requests(&larder, tag).await;
    let images: Vec<(&str, &str)> = seen
        .iter()
        .filter(|request| request["kind"] == "manifest")
        .map(|request| (request["image"].as_str().unwrap(), request["by"].as_str().unwrap()))
        .collect();
    let hub = format!("docker.io/{REPO}");
    let quay = format!("quay.io/org/{REPO}");
    assert_eq!(
        images,
        [
            (&*hub, "tag"),
            (&*hub, "tag"),
            (&*hub, "tag"),
            (&*hub, "digest"),
            (&*quay, "tag")
        ]
    );
    assert!(
        seen.iter()
            .all(|request| request["allowed"] == true && request["client"] == "127.0.0.1")
    );
    // Nobody who does not know the tag gets anything, and nobody's upstream is asked for it.
    for target in [
        manifest(REPO, "latest"),
        manifest(REPO, "0".repeat(32)),
        blob(REPO, Digest::sha256(b"x")),
    ] {
        larder.get(target).await.expect(404);
    }
    larder.get(format!("/v2/{REPO}/tags/list")).await.expect(404);
    call(&larder, "DELETE", &format!("canary/{tag}"), Value::Null)
        .await
        .expect(200);
    larder.get(manifest(REPO, tag)).await.expect(404);
    larder.get(manifest(REPO, digest)).await.expect(404);
    call(&larder, "DELETE", &format!("canary/{tag}"), Value::Null)
        .await
        .expect(404);
    assert_eq!(asked(&upstream), 0);
    // Nothing of it is cached.
    let images = Ask::get("/api/v1/images").send(larder.admin()).await.json();
    assert_eq!(images, json!({"images": []}));
}

/// No way but a client's request for a canary knows the reserved name, whatever the upstream has under it.
#[tokio::test]
async fn nothing_is_fetched_under_the_reserved_name() {
    let upstream = Upstream::start().await;
    let repository = format!("org/{REPO}");
    upstream.image(&repository, "1", &[1_000]);
    let larder = Larder::start(&upstream, |toml| {
        toml.upstream("docker.io", "allow", vec!["library/*".to_owned()]);
    })
    .await;
    for name in [REPO.to_owned(), repository] {
        let image = format!("docker.io/{name}:1");
        let order = json!({"images": [image], "referrers": false});
        call(&larder, "POST", "prefetch", order).await;
        for path in ["refresh", "pins"] {
            call(&larder, "POST", path, json!({"image": image})).await.expect(403);
        }
    }
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    assert_eq!(asked(&upstream), 0);
    assert_eq!(larder.get("/v2/_catalog").await.json()["repositories"], json!([]));
}

/// The rules of access hold for it, and a refusal is noted: it is what a client would meet with every image.
#[tokio::test]
async fn a_canary_is_refused_to_whom_all_is_refused() {
    let upstream = Upstream::start().await;
    let larder = Larder::start(&upstream, |toml| {
        let rule = json!([{"images": ["docker.io/library/*"], "may": "fetch"}]);
        let rule: toml::Value = serde_json::from_value(rule).unwrap();
        toml.set(&["access"], "rule", rule);
    })
    .await;
    let made = make(&larder).await;
    let tag = made["tag"].as_str().unwrap();
    larder.get(manifest(REPO, tag)).await.expect(404);
    let seen = requests(&larder, tag).await;
    assert_eq!((seen.len(), &seen[0]["allowed"]), (1, &json!(false)));
    assert_eq!(asked(&upstream), 0);
}

#[tokio::test]
async fn canaries_are_the_operators_to_make() {
    let upstream = Upstream::start().await;
    let larder = Larder::start(&upstream, |_| {}).await;
    let nobody = Ask::new("POST", "/api/v1/canary")
        .header("Content-Type", "application/json")
        .body("{\"architecture\": \"amd64\"}");
    nobody.anonymously().send(larder.admin()).await.expect(401);
    for body in [
        json!({}),
        json!({"architecture": ""}),
        json!({"architecture": "a/b"}),
        json!({"x": 1}),
    ] {
        call(&larder, "POST", "canary", body).await.expect(400);
    }
    for _ in 0..64 {
        make(&larder).await;
    }
    call(&larder, "POST", "canary", json!({"architecture": "amd64"}))
        .await
        .expect(409);
}

/// A client in the place of docker: it asks for what it is told to pull, by the name that `path` is put before.
fn fake(folder: &Path, name: &str, larder: &LarderProcess, path: &str) {
    let script = format!(
        r#"#!/bin/bash
# pull -- IMAGE, or anything else, which does nothing
[ "$1" = pull ] || exit 0
rest="${{3#*/}}"
case "$rest" in
*@*) name="${{rest%@*}}"; reference="${{rest#*@}}" ;;
*) name="${{rest%:*}}"; reference="${{rest##*:}}" ;;
esac
exec 3<>/dev/tcp/127.0.0.1/{port} || exit 1
printf 'GET /v2/{path}%s/manifests/%s HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n' "$name" "$reference" >&3
head -c 12 <&3 >/dev/null
"#,
        port = larder.registry().port(),
    );
    let file = folder.join(name);
    std::fs::write(&file, script).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
}

struct Node {
    folder: tempfile::TempDir,
    larder: LarderProcess,
}

impl Node {
    async fn new(upstream: &Upstream) -> Node {
        let folder = tempfile::tempdir().unwrap();
        let larder = LarderProcess::start(upstream, |_| {}).await;
        let node = Node { folder, larder };
        let mirror = format!("{{\"registry-mirrors\": [\"http://{}\"]}}", node.larder.registry());
        node.put("root/etc/docker/daemon.json", &mirror);
        std::fs::create_dir_all(node.folder.path().join("bin")).unwrap();
        node
    }

    fn put(&self, path: &str, text: &str) {
        let path = self.folder.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    /// Returns level and words of what doctor finds about pulls by docker.
    async fn doctor(&self) -> (String, String) {
        let mut doctor = command(self.folder.path());
        let bin = self.folder.path().join("bin");
        let path = std::env::var("PATH").unwrap();
        doctor
            .args(["doctor", "--client", "--pull", "--json", "--address"])
            .arg(self.larder.registry().to_string())
            .arg("--admin")
            .arg(format!("http://{}", self.larder.admin()))
            .arg("--root")
            .arg(self.folder.path().join("root"))
            .env("PATH", format!("{}:{path}", bin.display()));
        let running = tokio::task::spawn_blocking(move || doctor.output().expect("the larder binary"));
        let output = within("the command to end", running).await.unwrap();
        let found: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
        let findings = found["findings"].as_array().unwrap();
        let finding = findings.iter().find(|finding| finding["check"] == "pull docker");
        let finding = finding.unwrap_or_else(|| panic!("{found}"));
        let text = |key: &str| finding[key].as_str().unwrap().to_owned();
        (text("level"), text("found"))
    }
}

#[tokio::test]
async fn doctor_has_the_client_pull_and_says_what_came() {
    let upstream = Upstream::start().await;
    let node = Node::new(&upstream).await;
    let bin = node.folder.path().join("bin");
    let script = |text: &str| {
        let file = bin.join("docker");
        std::fs::write(&file, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    fake(&bin, "docker", &node.larder, "");
    let (level, found) = node.doctor().await;
    assert_eq!(level, "ok", "{found}");
    assert!(
        found.contains("pulls from docker.io came here, by tag and by digest"),
        "{found}"
    );
    fake(&bin, "docker", &node.larder, "quay.io/");
    let (level, found) = node.doctor().await;
    assert_eq!(level, "problem", "{found}");
    assert!(found.contains("came here as quay.io/larder-doctor/canary"), "{found}");
    // A daemon that has not read its file yet goes elsewhere.
    script("echo 'manifest unknown: manifest unknown' >&2; exit 1");
    let (level, found) = node.doctor().await;
    assert_eq!(level, "problem", "{found}");
    assert!(
        found.contains("did not come here") && found.contains("manifest unknown"),
        "{found}"
    );
    script(
        "echo 'Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?' >&2; exit 1",
    );
    let (level, found) = node.doctor().await;
    assert_eq!(level, "warning", "{found}");
    assert!(found.contains("its daemon does not run"), "{found}");
    assert_eq!(asked(&upstream), 0);
}
