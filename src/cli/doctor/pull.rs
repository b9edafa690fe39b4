//! `larder doctor --client --pull`: has the clients themselves pull canaries, and asks the proxy which of them it saw.
//!
//! For each registry that a client's file leads here two canaries, one pulled by its tag, one by its digest. Arrival is
//! what counts, not whether the client could unpack the image. It is removed again.

use std::ffi::OsStr;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};

use super::super::remote::Remote;
use crate::admin::views::{CanaryRequest, CanarySeen, CanaryView};
use crate::app::checkup::{self, Arrival, Finding, PullVerdict};
use crate::text;

/// A client that is not done by then waits for something that does not answer.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Registries that are tried of one client.
const MOST_REGISTRIES: usize = 12;
/// Bytes that are read of a program's complaint.
const MOST_BYTES: u64 = 16 * 1024;

/// A client whose files the checkup reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Client {
    Docker,
    Containerd,
    Nerdctl,
    Podman,
    K3s,
    Rke2,
    BuildKit,
}

/// A command line that pulls, and one that takes away what it pulled.
struct Program {
    name: String,
    pull: Vec<String>,
    remove: Vec<String>,
    /// Something that it does not read, for people.
    blind: &'static str,
}

/// Pulls by every client that has files here. `findings`: what the files say.
pub async fn check(remote: &Remote, findings: &[Finding], root: &Path, home: Option<&Path>) -> Vec<Finding> {
    let mut tried = Vec::new();
    for (client, verdicts) in by_client(findings, home) {
        tried.extend(client.check(remote, &verdicts, root).await);
    }
    if tried.is_empty() {
        let found = "no client's file leads to this proxy, so that there is nothing to pull";
        tried.push(Finding::note("pull", found).advice("larder client-config prints what to write"));
    }
    tried
}

/// Each client's verdicts that have to do with this proxy.
fn by_client(findings: &[Finding], home: Option<&Path>) -> Vec<(Client, Vec<PullVerdict>)> {
    let user = home.and_then(Path::file_name).and_then(|name| name.to_str());
    let own = user.map(|user| format!("client podman of {user}"));
    let has = |check: &str| findings.iter().any(|finding| finding.check == check);
    let has_own = own.as_deref().is_some_and(has);
    let has_named = has(checkup::NAMED_PODMAN_FILE);
    let mut clients: Vec<(Client, Vec<PullVerdict>)> = Vec::new();
    for finding in findings {
        let client = match finding.check.as_str() {
            "client docker" => Client::Docker,
            "client containerd" => Client::Containerd,
            "client nerdctl" => Client::Nerdctl,
            // The file that the variable names counts in place of all others, and then the user's own.
            checkup::NAMED_PODMAN_FILE => Client::Podman,
            "client podman, cri-o" if !has_own && !has_named => Client::Podman,
            check if Some(check) == own.as_deref() && !has_named => Client::Podman,
            "client k3s" => Client::K3s,
            "client rke2" => Client::Rke2,
            "client buildkit" => Client::BuildKit,
            _ => continue,
        };
        let verdicts = finding.registries.iter().filter(|verdict| leads_here(verdict)).cloned();
        match clients.iter_mut().find(|(known, _)| *known == client) {
            Some((_, all)) => all.extend(verdicts),
            None => clients.push((client, verdicts.collect())),
        }
    }
    clients.retain(|(_, verdicts)| !verdicts.is_empty());
    clients
}

fn leads_here(verdict: &PullVerdict) -> bool {
    verdict.by_tag != Arrival::Elsewhere || verdict.by_digest != Arrival::Elsewhere
}

impl Client {
    fn check_name(self) -> &'static str {
        match self {
            Client::Docker => "pull docker",
            Client::Containerd => "pull containerd",
            Client::Nerdctl => "pull nerdctl",
            Client::Podman => "pull podman",
            Client::K3s => "pull k3s",
            Client::Rke2 => "pull rke2",
            Client::BuildKit => "pull buildkit",
        }
    }

    /// Says how it is made to read its file again.
    fn restart(self) -> &'static str {
        match self {
            Client::Docker => {
                "dockerd reads daemon.json when it starts: systemctl restart docker; is it started with --config-file or --registry-mirror?"
            }
            Client::Containerd => {
                "containerd reads config.toml when it starts: systemctl restart containerd; is it started with --config?"
            }
            Client::Nerdctl => "is there another folder of hosts.toml that it reads (--hosts-dir, nerdctl.toml)?",
            Client::Podman => "does CONTAINERS_REGISTRIES_CONF name another file, or is there one of this user?",
            Client::K3s => "k3s reads registries.yaml when it starts: systemctl restart k3s (or k3s-agent)",
            Client::Rke2 => "rke2 reads registries.yaml when it starts: systemctl restart rke2-server (or rke2-agent)",
            Client::BuildKit => "buildkitd reads its file when it starts: restart it",
        }
    }

    /// The programs that can be asked to pull, best first. `image`: what to pull. `folder`: of `hosts.toml`s.
    fn programs(self, image: &str, folder: &Path) -> Vec<Program> {
        let program = |name: &str, pull: &[&str], remove: &[&str], blind: &'static str| Program {
            name: name.to_owned(),
            pull: pull.iter().map(|word| (*word).to_owned()).collect(),
            remove: remove.iter().map(|word| (*word).to_owned()).collect(),
            blind,
        };
        let folder = folder.to_string_lossy().into_owned();
        let folder = folder.as_str();
        let crictl = || program("crictl", &["--timeout", "60s", "pull", image], &["rmi", image], "");
        // Fetches without unpacking, for which it needs nothing but its daemon.
        let ctr = |blind| {
            program(
                "ctr",
                &["content", "fetch", "--hosts-dir", folder, image],
                &["images", "rm", "--sync", image],
                blind,
            )
        };
        match self {
            Client::Docker => vec![program(
                "docker",
                &["pull", "--", image],
                &["image", "rm", "--", image],
                "",
            )],
            Client::Containerd => vec![crictl(), ctr("ctr, which does not read config.toml (crictl would)")],
            Client::Nerdctl => vec![
                program("nerdctl", &["pull", "--", image], &["image", "rm", "--", image], ""),
                ctr(""),
            ],
            Client::Podman => vec![
                program("podman", &["pull", "--", image], &["rmi", "--", image], ""),
                program("skopeo", &["inspect", "--raw", &format!("docker://{image}")], &[], ""),
            ],
            Client::K3s => vec![program(
                "k3s",
                &["crictl", "--timeout", "60s", "pull", image],
                &["crictl", "rmi", image],
                "",
            )],
            Client::Rke2 => {
                let crictl = "/var/lib/rancher/rke2/bin/crictl";
                let config = "--config=/var/lib/rancher/rke2/agent/etc/crictl.yaml";
                vec![program(
                    crictl,
                    &[config, "--timeout", "60s", "pull", image],
                    &[config, "rmi", image],
                    "",
                )]
            }
            Client::BuildKit => Vec::new(),
        }
    }

    async fn check(self, remote: &Remote, verdicts: &[PullVerdict], root: &Path) -> Vec<Finding> {
        let check = self.check_name();
        if self == Client::BuildKit {
            let found = "not tried: BuildKit pulls for builds only";
            return vec![
                Finding::note(check, found)
                    .advice("build something FROM an image that is new to it, and look at larder ls"),
            ];
        }
        let mut findings = Vec::new();
        for verdict in verdicts.iter().take(MOST_REGISTRIES) {
            match self.try_registry(remote, verdict, root).await {
                Ok(finding) => findings.push(finding),
                // The next registry would meet the same obstacle.
                Err(finding) => {
                    findings.push(*finding);
                    break;
                }
            }
        }
        if verdicts.len() > MOST_REGISTRIES {
            let more = verdicts.len() - MOST_REGISTRIES;
            let found = format!("{more} more registries were not tried");
            findings
                .push(Finding::note(check, found).advice("the first ones are as good as all, if one file wrote them"));
        }
        findings
    }

    /// By tag and by digest. Errors: nothing could be tried at all.
    async fn try_registry(self, remote: &Remote, verdict: &PullVerdict, root: &Path) -> Result<Finding, Box<Finding>> {
        let check = self.check_name();
        let registry = match verdict.registry.as_str() {
            "_default" | "*" => "docker.io",
            registry => registry.trim_start_matches("*."),
        };
        // It comes out of a file, and not every program knows `--`.
        if registry.starts_with('-') {
            let found = format!("{registry:?} is no registry that a client can pull from");
            return Ok(Finding::note(check, found).advice("put the file right"));
        }
        let folder = root.join(verdict.file.trim_start_matches('/'));
        let mut outcomes = Vec::new();
        let mut blind = "";
        for by_digest in [false, true] {
            let canary = Canary::make(remote).await.map_err(|why| {
                Box::new(
                    Finding::problem(check, format!("the proxy makes no image to pull: {why}"))
                        .advice("is it a Larder of this version?"),
                )
            })?;
            let image = canary.image(registry, by_digest);
            let programs = self.programs(&image, &folder);
            let names: Vec<String> = programs.iter().map(|program| program.name.clone()).collect();
            let Some((path, program)) = programs
                .into_iter()
                .find_map(|program| Some((find(&program.name)?, program)))
            else {
                canary.end(remote).await;
                let found = format!("not tried: there is no {} here", names.join(" or "));
                return Err(Box::new(
                    Finding::note(check, found).advice("install it, or pull by hand and look at larder ls"),
                ));
            };
            blind = program.blind;
            let ran = run(path.clone(), program.pull.clone()).await;
            let seen = canary.seen(remote).await;
            if ran.is_ok() && !program.remove.is_empty() {
                // If that fails, a few KiB stay under a name that nobody else has.
                let _ = run(path, program.remove.clone()).await;
            }
            canary.end(remote).await;
            outcomes.push(Outcome::of(registry, &program.name, &seen, ran));
        }
        if let [Outcome::Untried { why, advice }, ..] = outcomes.as_slice() {
            return Err(Box::new(
                Finding::warning(check, format!("not tried: {why}")).advice(*advice),
            ));
        }
        Ok(self.told(verdict, blind, &outcomes))
    }

    fn told(self, verdict: &PullVerdict, blind: &str, outcomes: &[Outcome]) -> Finding {
        let check = self.check_name();
        let [by_tag, by_digest] = [0, 1].map(|at| outcomes.get(at).map_or(Arrival::Elsewhere, Outcome::arrival));
        let registry = &verdict.registry;
        let by = match blind {
            "" => String::new(),
            blind => format!(", tried by {blind}"),
        };
        let first_bad = outcomes.iter().find(|outcome| outcome.arrival() != Arrival::Here);
        let mut finding = match (by_tag, by_digest, first_bad) {
            (Arrival::Here, Arrival::Here, _) | (.., None) => Finding::ok(
                check,
                format!("pulls from {registry} came here, by tag and by digest{by}"),
            ),
            (_, _, Some(Outcome::Wrong { image, path })) => Finding::problem(
                check,
                format!("pulls from {registry} came here as {image} ({path}): the client gets other images{by}"),
            )
            .advice("name the registry in the file's address, as larder client-config prints it"),
            (_, _, Some(Outcome::Forbidden { path })) => Finding::problem(
                check,
                format!("pulls from {registry} came here ({path}) and were refused: who asks has no right to pull{by}"),
            )
            .advice("log the client in, or give it a rule: larder auth check says which one decides"),
            (Arrival::Here, _, _) => Finding::warning(
                check,
                format!(
                    "pulls from {registry} came here by tag, and not by digest{by}{}",
                    said(outcomes, 1)
                ),
            )
            .advice(self.restart()),
            (_, Arrival::Here, _) => Finding::warning(
                check,
                format!(
                    "pulls from {registry} came here by digest, and not by tag{by}{}",
                    said(outcomes, 0)
                ),
            )
            .advice(self.restart()),
            _ => Finding::problem(
                check,
                format!("pulls from {registry} did not come here{by}{}", said(outcomes, 0)),
            )
            .advice(self.restart()),
        };
        finding.registries = vec![PullVerdict {
            by_tag,
            by_digest,
            falls_back: false,
            asks: None,
            only: None,
            ..verdict.clone()
        }];
        finding
    }
}

fn said(outcomes: &[Outcome], at: usize) -> String {
    match outcomes.get(at) {
        Some(Outcome::Absent { said }) if !said.is_empty() => format!(" ({said})"),
        _ => String::new(),
    }
}

/// The fate of one canary.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Right,
    /// It came, but the proxy took it for another registry's.
    Wrong {
        image: String,
        path: String,
    },
    /// It came, and its sender may not pull.
    Forbidden {
        path: String,
    },
    Absent {
        said: String,
    },
    /// The client could not be asked.
    Untried {
        why: String,
        advice: &'static str,
    },
}

impl Outcome {
    /// `ran`: what the program complained of, or why it could not be run.
    fn of(registry: &str, program: &str, seen: &[CanaryRequest], ran: Result<String, String>) -> Outcome {
        let expected = format!("{registry}/{}", crate::admin::CANARY_REPOSITORY);
        // As the Hub's images are called.
        let is_right =
            |request: &CanaryRequest| request.image == expected || expected == format!("index.{}", request.image);
        let first = seen.iter().find(|request| request.kind == "manifest").or(seen.first());
        match (first, ran) {
            (Some(request), _) if !request.allowed => Outcome::Forbidden {
                path: request.path.clone(),
            },
            (Some(request), _) if is_right(request) => Outcome::Right,
            (Some(request), _) => Outcome::Wrong {
                image: request.image.clone(),
                path: request.path.clone(),
            },
            (None, Err(why)) => Outcome::Untried {
                why: format!("{program}: {why}"),
                advice: "is it a program that runs here?",
            },
            (None, Ok(said)) => match trouble(&said) {
                Some((why, advice)) => Outcome::Untried {
                    why: format!("{program}: {why}"),
                    advice,
                },
                None => Outcome::Absent {
                    said: match said.as_str() {
                        "" => String::new(),
                        said => format!("{program}: {said}"),
                    },
                },
            },
        }
    }

    fn arrival(&self) -> Arrival {
        match self {
            Outcome::Right => Arrival::Here,
            Outcome::Wrong { .. } => Arrival::WrongImage,
            Outcome::Forbidden { .. } => Arrival::Refused,
            Outcome::Absent { .. } | Outcome::Untried { .. } => Arrival::Elsewhere,
        }
    }
}

/// Why a client could not ask anybody, from its complaint.
fn trouble(said: &str) -> Option<(&'static str, &'static str)> {
    let said = said.to_ascii_lowercase();
    let has = |text: &str| said.contains(text);
    let is_socket = has(".sock") || has("dial unix") || has("docker daemon");
    if has("permission denied") && is_socket {
        return Some(("this user may not talk to its daemon", "run this as root"));
    }
    if is_socket
        && (has("cannot connect")
            || has("no such file")
            || has("connection refused")
            || has("failed to dial")
            || has("is the docker daemon running"))
    {
        let advice = "start it, or look why it does not start (journalctl -u docker, -u containerd); a file that it refuses is such a reason";
        return Some(("its daemon does not run, or not at the usual socket", advice));
    }
    if has("must be root") || has("requires root") || has("operation not permitted") {
        return Some(("it has not the rights that it needs", "run this as root"));
    }
    None
}

/// An image that only the proxy has.
struct Canary(CanaryView);

impl Canary {
    async fn make(remote: &Remote) -> Result<Canary, String> {
        let body = json!({ "architecture": architecture() });
        let made = remote
            .call::<CanaryView>(Method::POST, &["canary"], &[], Some(&body))
            .await;
        made.map(Canary).map_err(|error| error.to_string())
    }

    fn image(&self, registry: &str, by_digest: bool) -> String {
        let CanaryView {
            repository,
            tag,
            digest,
            ..
        } = &self.0;
        match by_digest {
            true => format!("{registry}/{repository}@{digest}"),
            false => format!("{registry}/{repository}:{tag}"),
        }
    }

    /// The requests for it that the proxy had.
    async fn seen(&self, remote: &Remote) -> Vec<CanaryRequest> {
        let seen = remote.get::<CanarySeen>(&["canary", &self.0.tag], &[]).await;
        seen.map(|seen| seen.requests).unwrap_or_default()
    }

    async fn end(self, remote: &Remote) {
        // It ends by itself in a few minutes.
        let _ = remote
            .call::<Value>(Method::DELETE, &["canary", &self.0.tag], &[], None)
            .await;
    }
}

/// This machine's, in Go's words.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

/// A program by its name, where commands are, or by its path.
fn find(name: &str) -> Option<PathBuf> {
    if name.starts_with('/') {
        return Path::new(name).exists().then(|| PathBuf::from(name));
    }
    find_in(name, &std::env::var_os("PATH").unwrap_or_default())
}

/// Looks in the folders of `path`, then in those where commands usually are. An empty folder, which an empty `path` is one
/// of, means the current one: a program there is anybody's, and root may be asking.
fn find_in(name: &str, path: &OsStr) -> Option<PathBuf> {
    let usual = [
        "/usr/local/sbin",
        "/usr/local/bin",
        "/usr/sbin",
        "/usr/bin",
        "/sbin",
        "/bin",
    ]
    .map(PathBuf::from);
    let folders = std::env::split_paths(path)
        .filter(|folder| folder.is_absolute())
        .chain(usual);
    folders.map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// Runs a program to its end, and no longer than it may take. Returns the last line of its complaint. Errors: it cannot be
/// run.
async fn run(path: PathBuf, arguments: Vec<String>) -> Result<String, String> {
    let running = tokio::task::spawn_blocking(move || run_now(&path, &arguments));
    running.await.unwrap_or_else(|_| Err("it was dropped".to_owned()))
}

fn run_now(path: &Path, arguments: &[String]) -> Result<String, String> {
    let mut command = Command::new(path);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let complaint = child.stderr.take();
    let reading = std::thread::spawn(move || {
        let mut text = Vec::new();
        if let Some(mut complaint) = complaint {
            let _ = complaint.by_ref().take(MOST_BYTES).read_to_end(&mut text);
            // The rest is dropped, so that the program does not wait for a reader.
            let _ = std::io::copy(&mut complaint, &mut std::io::sink());
        }
        String::from_utf8_lossy(&text).into_owned()
    });
    let begun = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) => {
                let text = reading.join().unwrap_or_default();
                return Ok(if status.success() {
                    String::new()
                } else {
                    last_line(&text)
                });
            }
            Ok(None) if begun.elapsed() < PATIENCE => std::thread::sleep(LOOK_AGAIN),
            Ok(None) => {
                let _ = child.kill();
                let _ = child.wait();
                return Ok(format!("no end after {} s", PATIENCE.as_secs()));
            }
            Err(error) => return Err(error.to_string()),
        }
    }
}

fn last_line(text: &str) -> String {
    let line = text.lines().rev().find(|line| !line.trim().is_empty());
    text::excerpt(&line.unwrap_or_default().trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(image: &str, allowed: bool) -> CanaryRequest {
        CanaryRequest {
            kind: "manifest".to_owned(),
            by: "tag".to_owned(),
            image: image.to_owned(),
            path: "/v2/x".to_owned(),
            client: "192.0.2.1".to_owned(),
            allowed,
        }
    }

    #[test]
    fn programs_of_the_current_folder_are_not_run() {
        let here = std::env::current_dir().unwrap();
        let file = here.join("Cargo.toml");
        assert!(file.is_file(), "{}", file.display());
        for path in ["", ":", ".", "::/nonexistent", "src/.."] {
            assert_eq!(find_in("Cargo.toml", OsStr::new(path)), None, "{path:?}");
        }
        assert_eq!(find_in("Cargo.toml", here.as_os_str()), Some(file));
    }

    /// The file that the variable names takes the place of the others: podman reads no more than it.
    #[test]
    fn the_file_of_the_variable_is_podmans() {
        let verdict = |arrival| PullVerdict {
            registry: "quay.io".to_owned(),
            file: "/x".to_owned(),
            by_tag: arrival,
            by_digest: arrival,
            falls_back: false,
            asks: None,
            only: None,
        };
        let finding = |check: &str, arrival| Finding {
            registries: vec![verdict(arrival)],
            ..Finding::ok(check, "")
        };
        let named = "client podman by CONTAINERS_REGISTRIES_CONF";
        let of = |findings: &[Finding]| {
            let clients = by_client(findings, Some(Path::new("/home/alice")));
            clients
                .into_iter()
                .map(|(client, all)| (client, all.len()))
                .collect::<Vec<_>>()
        };
        let (here, elsewhere) = (Arrival::Here, Arrival::Elsewhere);
        assert_eq!(of(&[finding(named, here)]), [(Client::Podman, 1)]);
        let others = ["client podman, cri-o", "client podman of alice"];
        for other in others {
            assert_eq!(
                of(&[finding(other, elsewhere), finding(named, here)]),
                [(Client::Podman, 1)]
            );
            assert_eq!(of(&[finding(other, here), finding(named, elsewhere)]), []);
            assert_eq!(of(&[finding(other, here)]), [(Client::Podman, 1)]);
        }
    }

    #[test]
    fn a_name_is_no_flag() {
        for client in [Client::Docker, Client::Nerdctl, Client::Podman] {
            let program = client.programs("-x/a:1", Path::new("/f")).remove(0);
            assert_eq!(program.pull, ["pull", "--", "-x/a:1"]);
            assert!(program.remove.ends_with(&["--".to_owned(), "-x/a:1".to_owned()]));
        }
    }

    #[test]
    fn what_the_proxy_saw_counts() {
        let of = |seen: &[CanaryRequest], ran: Result<&str, &str>| {
            Outcome::of("quay.io", "docker", seen, ran.map(str::to_owned).map_err(str::to_owned))
        };
        let right = request("quay.io/larder-doctor/canary", true);
        // A pull that failed after the request had come is an arrival all the same.
        assert_eq!(of(&[right], Ok("failed to unpack")), Outcome::Right);
        let wrong = of(&[request("docker.io/larder-doctor/canary", true)], Ok(""));
        assert_eq!(wrong.arrival(), Arrival::WrongImage);
        let forbidden = of(&[request("quay.io/larder-doctor/canary", false)], Ok(""));
        assert_eq!(forbidden.arrival(), Arrival::Refused);
        assert_eq!(of(&[], Ok("manifest unknown")).arrival(), Arrival::Elsewhere);
        for said in [
            "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?",
            "ctr: failed to dial \"/run/containerd/containerd.sock\": context deadline exceeded",
            "permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock",
        ] {
            assert!(matches!(of(&[], Ok(said)), Outcome::Untried { .. }), "{said}");
        }
        assert!(matches!(of(&[], Err("not found")), Outcome::Untried { .. }));
    }

    #[test]
    fn a_users_own_file_counts_for_this_user() {
        let finding = |check: &str| {
            let mut finding = Finding::ok(check, "x");
            finding.registries = vec![PullVerdict {
                registry: check.to_owned(),
                file: "/x".to_owned(),
                by_tag: Arrival::Here,
                by_digest: Arrival::Here,
                falls_back: false,
                asks: None,
                only: None,
            }];
            finding
        };
        let all = [finding("client podman, cri-o"), finding("client podman of me")];
        let registries = |home: &str| {
            let clients = by_client(&all, Some(Path::new(home)));
            assert_eq!(clients.len(), 1);
            clients[0].1[0].registry.clone()
        };
        assert_eq!(registries("/home/me"), "client podman of me");
        assert_eq!(registries("/root"), "client podman, cri-o");
        let mut elsewhere = finding("client docker");
        elsewhere.registries[0].by_tag = Arrival::Elsewhere;
        elsewhere.registries[0].by_digest = Arrival::Elsewhere;
        assert!(by_client(&[elsewhere], None).is_empty());
    }

    #[test]
    fn programs_end() {
        let run = |script: &str| run_now(Path::new("/bin/sh"), &["-c".to_owned(), script.to_owned()]);
        assert_eq!(run("echo a >&2; exit 0"), Ok(String::new()));
        assert_eq!(run("echo a >&2; echo; echo b >&2; exit 1"), Ok("b".to_owned()));
        // More than a pipe holds.
        assert!(run("i=0; while [ $i -lt 20000 ]; do echo 0123456789 >&2; i=$((i+1)); done; exit 1").is_ok());
        assert!(run_now(Path::new("/nonexistent"), &[]).is_err());
    }
}
