//! `larder demo` as a process: the tour that users see first keeps what it promises.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Command, Output};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::process::command;

/// With its temporary files in `dir`.
fn demo(dir: &Path, args: &[&str]) -> Command {
    let mut command = command(dir);
    command.arg("demo").args(args).env("TMPDIR", dir);
    command
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).unwrap().next().is_none()
}

fn step<'a>(report: &'a Value, stage: &str) -> &'a Value {
    let steps = report["steps"].as_array().unwrap();
    steps.iter().find(|step| step["stage"] == stage).unwrap()
}

fn report(output: &Output) -> Value {
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn the_tour_measures_what_larder_promises() {
    let dir = tempfile::tempdir().unwrap();
    let output = demo(dir.path(), &["--exit", "--json", "--port", "0"]).output().unwrap();
    let report = report(&output);
    assert_eq!(text(&output.stderr), "", "the tour is quiet");
    assert!(is_empty(dir.path()), "its folder is gone");
    assert_eq!(report["ok"], true);

    let images = report["images"].as_array().unwrap();
    let size = |at: usize| images[at]["bytes"].as_u64().unwrap();
    assert!(size(0) > 32 << 20);

    let cold = step(&report, "cold");
    assert_eq!(cold["client"]["bytes"], size(0));
    assert_eq!(cold["upstream"]["bytes"], size(0));
    assert_eq!(cold["upstream"]["blob_gets"], images[0]["blobs"]);
    assert_eq!(cold["upstream"]["tokens"], 1);

    let hot = step(&report, "hot");
    assert_eq!(hot["client"]["bytes"], size(0));
    for (kind, count) in hot["upstream"].as_object().unwrap() {
        assert_eq!(count, 0, "{kind}");
    }
    let outcomes = hot["client"]["outcomes"].as_object().unwrap();
    assert_eq!(outcomes.keys().collect::<Vec<_>>(), ["larder; hit"]);

    let herd = step(&report, "herd");
    assert_eq!(herd["client"]["clients"], 10);
    assert_eq!(herd["client"]["bytes"], 10 * size(1));
    assert_eq!(herd["upstream"]["bytes"], size(1));
    assert_eq!(herd["upstream"]["blob_gets"], images[1]["blobs"]);

    let cut = step(&report, "cut");
    let (cut_at, resumed_at) = (
        cut["mended"]["cut_at"].as_u64().unwrap(),
        cut["mended"]["resumed_at"].as_u64().unwrap(),
    );
    assert!((1..=cut_at).contains(&resumed_at), "{cut}");
    assert_eq!(cut["client"]["bytes"], size(2));
    assert_eq!(cut["upstream"]["bytes"], size(2) + cut_at - resumed_at);
    assert!(cut["upstream"]["blob_ranges"].as_u64().unwrap() >= 1);

    let gone = step(&report, "gone");
    assert_eq!(gone["client"]["bytes"], size(0) + size(1) + size(2));
    assert_eq!(gone["upstream"]["bytes"], 0);
    let tags = gone["client"]["tags"].as_array().unwrap();
    assert_eq!(tags.len(), 3);
    for tag in tags {
        let tag = tag.as_str().unwrap();
        assert!(
            tag.starts_with("larder; hit; ttl=-") && tag.contains("detail=upstream-"),
            "{tag}"
        );
    }
    assert_eq!(gone["client"]["warnings"].as_array().unwrap().len(), 3);

    let back = step(&report, "back");
    assert_eq!(back["client"]["bytes"], size(0));
    assert_eq!(back["upstream"]["bytes"], 0);
}

/// Both run on after the tour; the lines to try work; SIGTERM ends it and leaves nothing.
#[test]
fn it_runs_on_until_it_is_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = demo(dir.path(), &["--port", "0"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut seen = String::new();
    let mut curl = Vec::new();
    for line in lines.by_ref() {
        let line = line.unwrap();
        assert!(line.chars().count() <= 100, "{line}");
        assert!(!line.contains('\u{1b}'), "no colour where there is no terminal: {line}");
        curl.extend(
            line.trim()
                .strip_prefix("curl ")
                .and_then(|l| l.split_once("http://"))
                .map(|(_, url)| url.to_owned()),
        );
        let last = line.starts_with("Ctrl-C ends them");
        seen += &(line + "\n");
        if last {
            break;
        }
    }
    assert!(seen.contains("claims hold"), "{seen}");
    for wanted in [
        "docker pull 127.0.0.1:",
        "podman pull --tls-verify=false",
        "skopeo copy",
    ] {
        assert!(seen.contains(wanted), "{wanted}\n{seen}");
    }
    assert_eq!(curl.len(), 3);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    for url in curl {
        let (address, path) = url.split_once('/').unwrap();
        let ask = crate::support::client::Ask::get(format!("/{path}"));
        let response = runtime.block_on(ask.send(address.parse().unwrap()));
        assert_eq!(response.status, 200, "{url}");
    }
    assert!(!is_empty(dir.path()));
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let mut errors = String::new();
    child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    assert_eq!(errors, "");
    assert!(is_empty(dir.path()));
}

#[test]
fn what_cannot_be_used_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let output = demo(dir.path(), &["--exit", "--port", &port]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("another process listens there"),
        "{output:?}"
    );
    assert!(is_empty(dir.path()));

    let full = dir.path().join("full");
    std::fs::create_dir(&full).unwrap();
    std::fs::write(full.join("file"), "x").unwrap();
    for args in [
        &["--cache", full.to_str().unwrap()][..],
        &["--log", "loud"],
        &["--config", "x"],
    ] {
        let output = demo(dir.path(), args).output().unwrap();
        assert_eq!(output.status.code(), Some(64), "{args:?}");
    }
    assert!(full.join("file").exists());
}
