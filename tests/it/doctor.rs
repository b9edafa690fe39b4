//! `larder doctor` and `larder client-config --write` as processes: each finding about an upstream, a proxy or the way to
//! it is provoked.

use std::path::Path;
use std::process::Stdio;

use serde_json::Value;

use crate::support::collector::Collector;
use crate::support::process::{LarderProcess, command};
use crate::support::toml::Toml;
use crate::support::upstream::{On, TokenPolicy, Upstream};
use crate::support::within;

const REPO: &str = "library/alpine";

/// A configuration, and a root without clients.
struct Case {
    folder: tempfile::TempDir,
    upstream: Upstream,
}

struct Told {
    status: Option<i32>,
    out: String,
    json: Value,
}

impl Case {
    async fn new(change: impl FnOnce(&mut Toml)) -> Case {
        let upstream = Upstream::start().await;
        upstream.image(REPO, "latest", &[1000]);
        let folder = tempfile::tempdir().unwrap();
        let case = Case { folder, upstream };
        case.configure(change);
        case
    }

    fn configure(&self, change: impl FnOnce(&mut Toml)) {
        let mut toml = Toml::new(&self.folder.path().join("cache"), &self.upstream);
        change(&mut toml);
        std::fs::write(self.folder.path().join("proxy.toml"), toml.text()).unwrap();
    }

    async fn doctor(&self, args: &[&str]) -> Told {
        doctor(self.folder.path(), args).await
    }
}

async fn larder(folder: &Path, args: &[&str]) -> (Option<i32>, String, String) {
    let mut command = command(folder);
    command.args(args);
    let running = tokio::task::spawn_blocking(move || command.output().expect("the larder binary"));
    let output = within("the command to end", running).await.unwrap();
    let text = |bytes| String::from_utf8(bytes).expect("output in UTF-8");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

async fn doctor(folder: &Path, args: &[&str]) -> Told {
    let root = folder.join("root");
    std::fs::create_dir_all(&root).unwrap();
    let mut all = vec!["doctor", "--json", "--root", root.to_str().unwrap()];
    all.extend(args);
    let (status, out, err) = larder(folder, &all).await;
    let json = serde_json::from_str(&out).unwrap_or_else(|error| panic!("no JSON ({error}): {out}{err}"));
    Told { status, out, json }
}

impl Told {
    #[track_caller]
    fn has(&self, check: &str, level: &str, found: &str) -> &Told {
        let findings = self.json["findings"].as_array().expect("findings");
        let fits = |finding: &&Value| {
            finding["check"] == check && finding["level"] == level && finding["found"].as_str().unwrap().contains(found)
        };
        let Some(finding) = findings.iter().find(fits) else {
            panic!("no {level} {check:?} {found:?} in {}", self.out);
        };
        assert!(
            level == "ok" || level == "note" || finding["advice"].is_string(),
            "{finding}"
        );
        self
    }

    #[track_caller]
    fn has_no(&self, check: &str) -> &Told {
        let findings = self.json["findings"].as_array().expect("findings");
        assert!(findings.iter().all(|finding| finding["check"] != check), "{}", self.out);
        self
    }

    #[track_caller]
    fn ends(&self, status: i32) -> &Told {
        assert_eq!(self.status, Some(status), "{}", self.out);
        assert_eq!(self.json["ok"], status == 0);
        self
    }
}

fn date(seconds_ago: u64) -> String {
    httpdate::fmt_http_date(std::time::SystemTime::now() - std::time::Duration::from_secs(seconds_ago))
}

#[tokio::test]
async fn an_upstream_in_good_health() {
    let case = Case::new(|_| {}).await;
    case.upstream.require_token(TokenPolicy::new().anonymous_for(REPO));
    let limit = case.upstream.on(On::Manifests).always();
    limit.header("RateLimit-Remaining", "76;w=21600");
    let told = case.doctor(&[]).await;
    told.ends(0)
        .has("upstream docker.io", "ok", "asks for a token of http://127.0.0.1")
        .has("upstream docker.io", "ok", "library/alpine:latest is there")
        .has("upstream docker.io", "ok", "76 pulls are left per 6h")
        .has("proxy", "note", "not asked")
        .has("disk", "ok", "can be made")
        .has_no("certificate");
    assert_eq!(case.upstream.count(On::Manifests.get()), 0, "nothing is fetched");
    assert!(!case.folder.path().join("cache").exists(), "nothing is made");
    let (status, text, _) = larder(case.folder.path(), &["doctor", "--root", "/nonexistent"]).await;
    assert_eq!(status, Some(0));
    assert!(text.contains("ok       upstream docker.io  answers in"), "{text}");
}

#[tokio::test]
async fn credentials() {
    let with = |password: &'static str| {
        move |toml: &mut Toml| {
            toml.upstream("docker.io", "username", "me");
            toml.upstream("docker.io", "password", password);
        }
    };
    let case = Case::new(with("wrong-secret")).await;
    case.upstream.require_basic("me", "right-secret");
    let told = case.doctor(&[]).await;
    told.ends(1)
        .has("upstream docker.io", "problem", "the credentials are refused");
    assert!(!told.out.contains("wrong-secret"), "{}", told.out);
    case.configure(with("right-secret"));
    let told = case.doctor(&[]).await;
    told.ends(0).has("upstream docker.io", "ok", "credentials accepted");
    case.configure(|_| {});
    let told = case.doctor(&[]).await;
    told.ends(0)
        .has("upstream docker.io", "warning", "without credentials it is closed");
    // Where no image is known, the door says it.
    let other = |password: &'static str| {
        let url = case.upstream.url();
        move |toml: &mut Toml| {
            toml.upstream("registry.example", "url", url);
            toml.upstream("registry.example", "username", "me");
            toml.upstream("registry.example", "password", password);
        }
    };
    case.configure(other("right-secret"));
    let told = case.doctor(&["--upstream", "registry.example"]).await;
    told.ends(0)
        .has("upstream registry.example", "ok", "credentials accepted")
        .has_no("upstream docker.io");
    case.configure(other("wrong-secret"));
    let told = case.doctor(&["--upstream", "registry.example"]).await;
    told.ends(1).has("upstream registry.example", "problem", "refused");
}

#[tokio::test]
async fn a_wrong_clock() {
    let case = Case::new(|_| {}).await;
    let rule = case.upstream.on(On::Ping).always().header("Date", &date(0));
    case.doctor(&[]).await.ends(0).has("clock", "ok", "agrees");
    rule.remove();
    let rule = case.upstream.on(On::Ping).always().header("Date", &date(120));
    case.doctor(&[]).await.ends(0).has("clock", "warning", "ahead of");
    rule.remove();
    case.upstream.on(On::Ping).always().header("Date", &date(1000));
    case.doctor(&[]).await.ends(1).has("clock", "problem", "ahead of");
}

#[tokio::test]
async fn a_limit_that_is_nearly_used_up() {
    let case = Case::new(|_| {}).await;
    let says = |left: &str| {
        case.upstream.clear_script();
        let [limit, left] = [("RateLimit-Limit", "100;w=21600"), ("RateLimit-Remaining", left)];
        let header = |(name, value): (&str, &str)| crate::support::upstream::Fault::Header(name.into(), value.into());
        case.upstream
            .on(On::Manifests)
            .always()
            .does([header(limit), header(left)]);
    };
    says("9;w=21600");
    case.doctor(&[])
        .await
        .ends(0)
        .has("upstream docker.io", "warning", "9 of 100 pulls are left per 6h");
    says("0;w=21600");
    case.doctor(&[])
        .await
        .ends(1)
        .has("upstream docker.io", "problem", "0 of 100 pulls");
    case.upstream.clear_script();
    case.upstream.on(On::Manifests).always().rate_limit(Some("60"));
    case.doctor(&[])
        .await
        .ends(1)
        .has("upstream docker.io", "problem", "429");
}

#[tokio::test]
async fn upstreams_that_cannot_be_asked() {
    let case = Case::new(|toml| {
        toml.upstream("doctor.invalid", "url", "https://doctor.invalid");
        toml.upstream("gone.example", "url", "http://127.0.0.1:1");
        toml.upstream("away.example", "url", "http://127.0.0.1:1");
        toml.upstream("away.example", "offline", true);
        let mirrors = vec![::toml::Value::from("http://127.0.0.1:1")];
        toml.upstream("docker.io", "mirrors", mirrors);
    })
    .await;
    let told = case.doctor(&[]).await;
    told.ends(1)
        .has("upstream doctor.invalid", "problem", "doctor.invalid does not resolve")
        .has(
            "upstream gone.example",
            "problem",
            "the connection to 127.0.0.1:1 was refused",
        )
        .has("upstream away.example", "note", "not dialled")
        .has("upstream docker.io", "warning", "its mirror http://127.0.0.1:1")
        .has_no("upstream ghcr.io");
    case.upstream.on(On::Ping).always().status(404);
    let told = case.doctor(&["--upstream", "hub"]).await;
    told.has("upstream docker.io", "warning", "/v2/ answers 404")
        .has_no("upstream gone.example");
    let unknown = larder(case.folder.path(), &["doctor", "--upstream", "nobody.example"]).await;
    assert_eq!(unknown.0, Some(64), "{}", unknown.2);
}

#[tokio::test]
async fn nothing_is_dialled_when_it_is_not_wanted() {
    let case = Case::new(|toml| {
        toml.cache("offline", true);
    })
    .await;
    let told = case.doctor(&["--all"]).await;
    told.ends(0)
        .has("upstream docker.io", "note", "not dialled")
        .has("upstream ghcr.io", "note", "not dialled")
        .has_no("clock");
    case.configure(|_| {});
    let told = case.doctor(&["--no-network"]).await;
    told.ends(0)
        .has("upstream docker.io", "note", "not asked")
        .has_no("proxy");
    assert!(case.upstream.requests().is_empty(), "{}", case.upstream.print());
}

#[tokio::test]
async fn what_the_configuration_asks_for() {
    let case = Case::new(|toml| {
        toml.cache("max_size", "1000000GiB");
        toml.server("listen", "0.0.0.0:5000");
        toml.everybody_may_pull();
        toml.upstream("docker.io", "username", "me");
        toml.upstream("docker.io", "password", "secret");
        toml.set(&["limits"], "max_connections", 1_000_000);
    })
    .await;
    let told = case.doctor(&["--no-network"]).await;
    told.has("disk", "warning", "are more than there is")
        .has("access", "warning", "everybody who reaches the listener main")
        .has("configuration", "warning", "every user of this machine can read");
    // Where the machine allows two million files there is nothing to warn of.
    assert!(
        told.out.contains("limits.max_connections 1000000") || told.out.contains("enough for 1000000"),
        "{}",
        told.out
    );
    assert!(!told.out.contains("secret\""), "{}", told.out);

    std::fs::write(case.folder.path().join("proxy.toml"), "[cache]\nmax_sice = 1\n").unwrap();
    let (status, out, err) = larder(case.folder.path(), &["doctor", "--json"]).await;
    assert_eq!(status, Some(64));
    assert!(err.contains("max_sice") && out.contains("max_sice"), "{out}{err}");
}

/// A proxy that runs, as its operator and as a client's machine see it.
#[tokio::test]
async fn a_proxy_that_runs() {
    let upstream = Upstream::start().await;
    let larder = LarderProcess::start(&upstream, |_| {}).await;
    let folder = tempfile::tempdir().unwrap();
    let mut toml = Toml::new(&larder.cache(), &upstream);
    toml.admin("listen", larder.admin().to_string());
    toml.server("listen", larder.registry().to_string());
    std::fs::write(folder.path().join("proxy.toml"), toml.text()).unwrap();
    let mirrors = format!("{{\"registry-mirrors\": [\"http://{}\"]}}", larder.registry());
    let docker = folder.path().join("root/etc/docker");
    std::fs::create_dir_all(&docker).unwrap();
    std::fs::write(docker.join("daemon.json"), mirrors).unwrap();
    let told = doctor(folder.path(), &[]).await;
    told.has("proxy", "ok", &format!("as process {}", larder.pid()))
        .has("client docker", "ok", "come here");

    // Another cache: this is not the configuration that it runs with.
    toml.cache("path", "/nonexistent/cache");
    std::fs::write(folder.path().join("proxy.toml"), toml.text()).unwrap();
    doctor(folder.path(), &[])
        .await
        .has("proxy", "warning", "this configuration says /nonexistent/cache");

    // A node, without a configuration.
    std::fs::write(folder.path().join("proxy.toml"), "nonsense").unwrap();
    let registry = larder.registry().to_string();
    let told = doctor(folder.path(), &["--client", "--address", &registry]).await;
    told.ends(0)
        .has(
            "way to the proxy",
            "ok",
            &format!("the proxy answers at http://{registry}"),
        )
        .has("client docker", "ok", "come here")
        .has_no("disk");
    let admin = larder.admin().to_string();
    let told = doctor(folder.path(), &["--client", "--address", &admin]).await;
    told.ends(1).has("way to the proxy", "problem", "that is no registry");
    let told = doctor(folder.path(), &["--client", "--address", "http://127.0.0.1:1"]).await;
    told.ends(1).has("way to the proxy", "problem", "http://127.0.0.1:1");
    let told = doctor(
        folder.path(),
        &["--client", "--address", &upstream.address().to_string()],
    )
    .await;
    told.has("way to the proxy", "warning", "no larder");
}

#[tokio::test]
async fn files_are_written_and_taken_away() {
    let folder = tempfile::tempdir().unwrap();
    let certs = folder.path().join("certs.d");
    let write = [
        "client-config",
        "containerd",
        "--address",
        "larder.example:5000",
        "--write",
        certs.to_str().unwrap(),
    ];
    let with = |more: &[&'static str]| -> Vec<&str> { write.iter().copied().chain(more.iter().copied()).collect() };
    let (status, out, err) = larder(folder.path(), &with(&[])).await;
    assert_eq!(status, Some(0), "{err}");
    assert!(out.starts_with("written    ") && !out.contains("unchanged"), "{out}");
    // As printed.
    let print = [&write[..4], &["--upstream", "ghcr.io"]].concat();
    let (_, printed, words) = larder(folder.path(), &print).await;
    let one = std::fs::read_to_string(certs.join("ghcr.io/hosts.toml")).unwrap();
    assert_eq!(printed, one);
    assert!(words.contains("/etc/containerd/certs.d/ghcr.io/hosts.toml"), "{words}");
    let (_, out, _) = larder(folder.path(), &with(&[])).await;
    assert!(!out.contains("written") && out.contains("unchanged  "), "{out}");
    // Somebody else's is kept, and that is no success.
    std::fs::write(certs.join("quay.io/hosts.toml"), "server = \"x\"\n").unwrap();
    let (status, out, err) = larder(folder.path(), &with(&[])).await;
    assert!(
        status == Some(1) && out.contains("kept       ") && err.contains("--force"),
        "{out}{err}"
    );
    let (status, ..) = larder(folder.path(), &with(&["--force"])).await;
    assert_eq!(status, Some(0));
    // Without a configuration, too.
    std::fs::write(folder.path().join("proxy.toml"), "nonsense").unwrap();
    let (status, out, _) = larder(folder.path(), &with(&["--remove"])).await;
    assert!(status == Some(0) && out.contains("removed    "), "{out}");
    assert_eq!(std::fs::read_dir(&certs).unwrap().count(), 0);
    let docker = ["client-config", "docker", "--write", "/nonexistent"];
    assert_eq!(larder(folder.path(), &docker).await.0, Some(64));
}

/// `--upstream` narrows what is written and removed, and nothing else is lost.
#[tokio::test]
async fn only_the_named_upstreams_are_written_and_taken_away() {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("files");
    let run = async |client: &str, more: &[&str]| {
        let place = ["--address", "larder.example:5000", "--write", to.to_str().unwrap()];
        larder(folder.path(), &[&["client-config", client], &place[..], more].concat()).await
    };
    let count = || std::fs::read_dir(&to).map_or(0, Iterator::count);
    assert_eq!(run("containerd", &[]).await.0, Some(0));
    let all = count();
    assert!(all > 2, "{all}");
    let (status, out, err) = run("containerd", &["--upstream", "quay.io"]).await;
    assert!(status == Some(0) && !out.contains("removed"), "{out}{err}");
    assert_eq!(count(), all);
    let (status, out, _) = run("containerd", &["--upstream", "quay.io", "--remove"]).await;
    assert!(status == Some(0) && out.lines().count() == 1, "{out}");
    assert!(count() == all - 1 && !to.join("quay.io").exists());
    assert_eq!(run("containerd", &["--remove"]).await.0, Some(0));
    assert_eq!(count(), 0);
    // One file for all of them.
    for (client, name) in [
        ("podman", "larder.conf"),
        ("k3s", "registries.yaml"),
        ("buildkit", "buildkitd.toml"),
    ] {
        assert_eq!(run(client, &["--upstream", "quay.io"]).await.0, Some(0));
        assert_eq!(run(client, &["--upstream", "quay.io"]).await.0, Some(0));
        assert_eq!(
            run(client, &["--upstream", "quay.io", "--upstream", "ghcr.io"]).await.0,
            Some(0)
        );
        let before = std::fs::read_to_string(to.join(name)).unwrap();
        for more in [&["--upstream", "quay.io"][..], &["--upstream", "quay.io", "--remove"]] {
            let (status, out, err) = run(client, more).await;
            assert!(status == Some(1) && err.contains("it holds also ghcr.io"), "{out}{err}");
            assert_eq!(std::fs::read_to_string(to.join(name)).unwrap(), before);
        }
        let both = ["--upstream", "quay.io", "--upstream", "ghcr.io", "--remove"];
        assert_eq!(run(client, &both).await.0, Some(0));
        assert_eq!(count(), 0);
    }
    let address = ["--address", "larder.example:5000", "--upstream", "quay.io"];
    let (status, out, err) = larder(folder.path(), &[&["client-config", "docker"], &address[..]].concat()).await;
    assert!(status == Some(64) && out.is_empty(), "{out}");
    assert!(err.contains("docker pull larder.example:5000/quay.io/"), "{err}");
}

/// As the DaemonSet runs it: written before anything else, there while it stays, gone with it.
#[tokio::test]
async fn a_watch_ends_with_its_files() {
    let folder = tempfile::tempdir().unwrap();
    let certs = folder.path().join("certs.d");
    let mut command = command(folder.path());
    command
        .args([
            "client-config",
            "containerd",
            "--address",
            "larder.example:5000",
            "--watch",
            "--write",
        ])
        .arg(&certs)
        .stderr(Stdio::inherit());
    let mut child = command.spawn().expect("the larder binary");
    let out = child.stdout.take().expect("its output");
    let first = tokio::task::spawn_blocking(move || {
        let mut out = std::io::BufReader::new(out);
        let mut line = String::new();
        std::io::BufRead::read_line(&mut out, &mut line).expect("a line");
        (line, out)
    });
    // The pipe stays open: what is removed is told at the end.
    let (line, _out) = within("the files to be written", first).await.unwrap();
    assert!(line.starts_with("written "), "{line}");
    assert!(certs.join("docker.io/hosts.toml").exists());
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let waiting = tokio::task::spawn_blocking(move || child.wait().expect("a process that ends"));
    let status = within("it to end", waiting).await.unwrap();
    assert_eq!(status.code(), Some(0));
    assert_eq!(std::fs::read_dir(&certs).unwrap().count(), 0);
}

/// An empty message says whether spans would arrive.
#[tokio::test]
async fn the_collector_of_traces() {
    let collector = Collector::start().await;
    let endpoint = collector.endpoint();
    let case = Case::new(|toml| {
        toml.set(&["traces"], "endpoint", endpoint.as_str());
        toml.set(&["traces"], "headers", "authorization=hunter2");
    })
    .await;
    case.doctor(&[]).await.has("traces", "ok", "takes spans");
    collector.answers(401);
    case.doctor(&[]).await.has("traces", "warning", "refuses Larder (401)");
    drop(collector);
    let told = case.doctor(&[]).await;
    told.has("traces", "warning", "cannot be asked");
    assert!(!told.out.contains("hunter2"), "{}", told.out);
    case.doctor(&["--no-network"]).await.has_no("traces");
}

/// Credentials that serve nobody: the usual set-up for a rate limit, so a note, with the rule that opens the rest.
#[tokio::test]
async fn credentials_that_nobody_may_use() {
    let case = Case::new(|toml| {
        toml.upstream("docker.io", "username", "me");
        toml.upstream("docker.io", "password", "right");
    })
    .await;
    let told = case.doctor(&["--no-network"]).await;
    told.ends(0)
        .has("access", "note", "docker.io has credentials, and no caller can pull")
        .has("access", "note", "private = true");
    let folder = case.folder.path();
    let (_, shown, err) = larder(folder, &["check-config", "--strict"]).await;
    assert!(shown.contains("Hint: docker.io has credentials"), "{shown}");
    assert!(!err.contains("no caller can pull"), "{err}");
    // A password file gives somebody the right.
    let users = folder.join("users");
    std::fs::write(&users, format!("alice:{}\n", bcrypt::hash("a", 4).unwrap())).unwrap();
    std::fs::set_permissions(&users, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    case.configure(|toml| {
        toml.upstream("docker.io", "username", "me");
        toml.upstream("docker.io", "password", "right");
        toml.set(&["access"], "htpasswd_file", users.to_str().unwrap());
    });
    let told = case.doctor(&["--no-network"]).await;
    told.ends(0).has("access", "ok", "");
}
