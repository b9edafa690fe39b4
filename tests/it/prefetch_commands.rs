//! `larder prefetch` and `larder wishes` as processes: through a running proxy, and on its folder when none runs.

use std::path::Path;

use crate::support::gate::Gate;
use crate::support::process::{LarderProcess, command};
use crate::support::ran::{ask, run, run_with};
use crate::support::toml::Toml;
use crate::support::upstream::{On, Upstream};
use crate::support::{blob, manifest, within};

const REPO: &str = "library/alpine";
const NAME: &str = "docker.io/library/alpine";

/// A folder with a configuration that no proxy runs by.
fn at_rest(upstream: &Upstream, change: impl FnOnce(&mut Toml)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let mut toml = Toml::new(&folder.path().join("cache"), upstream);
    change(&mut toml);
    std::fs::write(folder.path().join("proxy.toml"), toml.text()).expect("a configuration file");
    folder
}

#[tokio::test]
async fn through_a_proxy() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[300_000]);
    let larder = LarderProcess::start(&upstream, |_| {}).await;
    std::fs::write(
        larder.folder().join("images.txt"),
        "# two\nalpine:1\nalpine:none # is not there\n",
    )
    .unwrap();
    let dry = ask(&larder, &["prefetch", "alpine:1", "--dry-run", "--no-referrers"])
        .await
        .expect(0);
    assert!(
        dry.out.contains("to fetch") && dry.out.contains(&format!("{NAME}:1")),
        "{}",
        dry.out
    );
    assert_eq!(upstream.count(On::Blobs), 0);
    let ran = ask(&larder, &["prefetch", "--file", "images.txt", "--no-referrers"])
        .await
        .expect(1);
    assert!(
        ran.err.contains(&format!("{NAME}:1: cached, 29")) && ran.err.contains(&format!("{NAME}:none: ")),
        "{}",
        ran.err
    );
    assert!(
        ran.out.contains("images.txt:2") && ran.out.contains("1 failed"),
        "{}",
        ran.out
    );
    let again = ask(&larder, &["prefetch", "alpine:1", "--json", "--no-referrers"])
        .await
        .expect(0)
        .json();
    assert_eq!(
        (&again["state"], &again["totals"]["new_bytes"]),
        (&"done".into(), &0.into()),
        "{again:#}"
    );
    upstream.go_down().await;
    larder.get(manifest(REPO, "1")).await.expect_content(&image.manifest);
    larder
        .get(blob(REPO, image.layers[0]))
        .await
        .expect_content(&image.layers[0]);
    let jobs = ask(&larder, &["prefetch", "--jobs"]).await.expect(0).out;
    assert!(jobs.contains("incomplete") && jobs.contains("done (dry run)"), "{jobs}");
}

/// Left to the proxy, shown there, and ended there.
#[tokio::test]
async fn detached() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[300_000]);
    let gate = Gate::closed();
    upstream
        .on(On::Blob(image.layers[0]).get())
        .always()
        .stall_after(100_000, &gate);
    let larder = LarderProcess::start(&upstream, |_| {}).await;
    let left = ask(&larder, &["prefetch", "alpine:1", "--detach"]).await.expect(0).out;
    assert!(left.contains("prefetch 1 runs at the proxy"), "{left}");
    upstream.wait_until_sent(&image.layers[0], 100_000).await;
    assert!(
        ask(&larder, &["prefetch", "--jobs"])
            .await
            .expect(0)
            .out
            .contains("running")
    );
    ask(&larder, &["prefetch", "--cancel", "1"]).await.expect(0);
    within("its end", async {
        while !ask(&larder, &["prefetch", "--jobs"])
            .await
            .expect(0)
            .out
            .contains("cancelled")
        {}
    })
    .await;
    gate.open();
}

/// Without a proxy the folder is made and filled, within its limit; killed and begun again only the rest comes.
#[tokio::test]
async fn on_a_folder() {
    let upstream = Upstream::start().await;
    let (a, b) = (
        upstream.image(REPO, "a", &[2_000_000]),
        upstream.image(REPO, "b", &[20_000]),
    );
    let folder = at_rest(&upstream, |_| {});
    let gate = Gate::closed();
    let rule = upstream
        .on(On::Blob(a.layers[0]).get())
        .always()
        .stall_after(1_700_000, &gate);
    run(folder.path(), &["prefetch", "alpine:b", "--no-referrers"])
        .await
        .expect(0);
    let mut first = command(folder.path());
    first.args(["prefetch", "alpine:b", "alpine:a", "--no-referrers", "--config"]);
    let mut first = first.arg(folder.path().join("proxy.toml")).spawn().unwrap();
    upstream.wait_until_sent(&a.layers[0], 1_700_000).await;
    let staged = folder.path().join("cache");
    within("most of it to be staged", async {
        while largest(&staged) < 1 << 20 {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    })
    .await;
    first.kill().unwrap();
    first.wait().unwrap();
    rule.remove();
    gate.open();
    upstream.forget();
    let ran = run(folder.path(), &["prefetch", "alpine:b", "alpine:a", "--no-referrers"])
        .await
        .expect(0);
    assert!(ran.out.contains("cached"), "{}", ran.out);
    assert_eq!(upstream.count(On::Blob(b.layers[0])), 0, "{}", upstream.print());
    assert!(
        upstream.bytes_sent(On::Blob(a.layers[0])) < 1_000_000,
        "{}",
        upstream.print()
    );
    let list = run(folder.path(), &["ls"]).await.expect(0).out;
    assert!(
        list.contains(&format!("{NAME}:a")) && list.contains(&format!("{NAME}:b")),
        "{list}"
    );
    let detached = run(folder.path(), &["prefetch", "alpine:a", "--detach"])
        .await
        .expect(1);
    assert!(detached.err.contains("no proxy runs"), "{}", detached.err);
}

/// Bytes of the largest file below a folder.
fn largest(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => largest(&entry.path()),
        // The index's file is no blob.
        Ok(meta) if !entry.file_name().to_string_lossy().ends_with(".redb") => meta.len(),
        _ => 0,
    };
    entries.map(size).max().unwrap_or(0)
}

/// Found in files, shown with their places, and fetched.
#[tokio::test]
async fn from_files_that_people_have() {
    let upstream = Upstream::start().await;
    for tag in ["1", "2", "3"] {
        upstream.image(REPO, tag, &[1000]);
    }
    let folder = at_rest(&upstream, |_| {});
    std::fs::write(folder.path().join(".env"), "TAG=1\n").unwrap();
    let compose = "services:\n  web: {image: \"alpine:${TAG}\"}\n  own: {build: .}\n";
    std::fs::write(folder.path().join("compose.yaml"), compose).unwrap();
    std::fs::write(folder.path().join("Dockerfile"), "FROM alpine:2 AS a\nFROM a\n").unwrap();
    let rendered = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c, image: alpine:3}]}\n";
    let args = [
        "prefetch",
        "--from",
        "compose.yaml",
        "--from",
        "Dockerfile",
        "--from",
        "-",
        "--no-referrers",
    ];
    let ran = run_with(folder.path(), &args, rendered).await.expect(0);
    for place in [
        "compose.yaml: line 2, services.web",
        "Dockerfile: line 1, FROM",
        "standard input: line 4, Pod/p containers[c]",
    ] {
        assert!(ran.out.contains(place), "{place}: {}", ran.out);
    }
    assert!(ran.out.contains("to fetch"), "shown before: {}", ran.out);
    assert!(ran.out.contains("3 cached"), "{}", ran.out);
    assert!(ran.err.contains("services.own is built here"), "{}", ran.err);
    std::fs::write(folder.path().join("other.yaml"), "a: b\n").unwrap();
    for (args, words) in [
        (vec!["prefetch"], "no image is named"),
        (vec!["prefetch", "--file", "none.txt"], "cannot be read"),
        (vec!["prefetch", "alpine newst=1"], "column 8: found \"newst\""),
        (vec!["prefetch", "--from", "other.yaml"], "--kind"),
        (vec!["prefetch", "--newest", "2", "--file", "x"], "line by line"),
    ] {
        let refused = run(folder.path(), &args).await.expect(64);
        assert!(refused.err.contains(words), "{args:?}: {}", refused.err);
    }
}

/// A stream of everything: what is found is fetched, what is possible is listed, what is unread is named and makes the status 1.
#[tokio::test]
async fn nothing_of_a_stream_is_dropped() {
    let upstream = Upstream::start().await;
    for tag in ["1", "2", "3"] {
        upstream.image(REPO, tag, &[1000]);
    }
    let folder = at_rest(&upstream, |_| {});
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c, image: alpine:1, args: [--helper-image=alpine:3]}]}\n";
    let hauler = "apiVersion: content.hauler.cattle.io/v1\nkind: Images\nmetadata: {name: i}\nspec: {images: [{name: alpine:2}]}\n";
    let release = "apiVersion: helm.toolkit.fluxcd.io/v2\nkind: HelmRelease\nmetadata: {name: web}\nspec: {chart: {spec: {chart: web}}}\n";
    let config = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {a: b}\n";
    let args = ["prefetch", "--from", "-", "--no-referrers"];
    let whole = [pod, hauler, config].join("---\n");
    let ran = run_with(folder.path(), &args, &whole).await.expect(0);
    assert!(ran.out.contains("2 cached"), "{}", ran.out);
    assert!(
        ran.err
            .contains("standard input: possible image, not fetched: alpine:3 (line 4, Pod/p spec.containers.[].args)")
            && ran.err.contains("1 possible image not fetched: --possible"),
        "{}",
        ran.err
    );
    assert!(!ran.err.contains("not read"), "{}", ran.err);
    let ran = run_with(folder.path(), &[&args[..], &["--possible"]].concat(), &whole)
        .await
        .expect(0);
    assert!(ran.out.contains("3 cached"), "{}", ran.out);
    let mixed = [pod, release, hauler].join("---\n");
    let ran = run_with(folder.path(), &args, &mixed).await.expect(1);
    assert!(ran.out.contains("2 cached"), "{}", ran.out);
    assert!(
        ran.err
            .contains("standard input: not read: document 2, line 6, HelmRelease/web: the images of its chart")
            && ran.err.contains("not read, and named above: 1 part of the files"),
        "{}",
        ran.err
    );
    // Nothing of it is an image: the reason was named.
    let ran = run_with(folder.path(), &args, release).await.expect(64);
    assert!(
        ran.err.contains("not read: document 1") && ran.err.contains("none that is fetched"),
        "{}",
        ran.err
    );
    let template = "kind: Pod\nspec:\n  containers:\n  - image: {{ .Values.image }}:{{ .Values.tag }}\n";
    let ran = run_with(folder.path(), &args, template).await.expect(64);
    assert!(ran.err.contains("helm template"), "{}", ran.err);
}

/// Offline, what is cached is there, and that is what was wanted; what is not cached is named by its whole name.
#[tokio::test]
async fn offline_a_cached_image_is_no_failure() {
    let upstream = Upstream::start().await;
    upstream.image(REPO, "1", &[1000]);
    let folder = at_rest(&upstream, |_| {});
    run(folder.path(), &["prefetch", "alpine:1", "--no-referrers"])
        .await
        .expect(0);
    let mut toml = Toml::new(&folder.path().join("cache"), &upstream);
    toml.cache("offline", true);
    std::fs::write(folder.path().join("proxy.toml"), toml.text()).unwrap();
    upstream.forget();
    let ran = run(folder.path(), &["prefetch", "alpine:1"]).await.expect(0);
    assert!(
        ran.out.contains("1 cached")
            && ran
                .out
                .contains("offline: what refers to it, such as signatures, was not asked for"),
        "{}",
        ran.out
    );
    assert!(!ran.err.contains("is not in this mirror"), "{}", ran.err);
    let ran = run(folder.path(), &["prefetch", "alpine:2"]).await.expect(1);
    assert!(
        ran.err.contains(&format!("{NAME}:2 is not in this mirror")),
        "{}",
        ran.err
    );
    let ran = run(folder.path(), &["refresh", "alpine:1"]).await.expect(1);
    assert!(
        ran.err
            .contains(&format!("{NAME}:1 stays as it is cached: it is offline here")),
        "{}",
        ran.err
    );
    let ran = run(folder.path(), &["refresh", "alpine:2"]).await.expect(1);
    assert!(
        ran.err.contains(&format!("{NAME}:2 is not in this mirror")),
        "{}",
        ran.err
    );
    assert_eq!(upstream.count(On::Any), 0, "{}", upstream.print());
}

/// What a closed site lacked is what the next crossing brings: from its list, and from a receipt.
#[tokio::test]
async fn wishes_are_filled() {
    let upstream = Upstream::start().await;
    let (amd64, arm64) = (
        upstream.untagged_image(REPO, &[1000]),
        upstream.untagged_image(REPO, &[1000]),
    );
    upstream.index(REPO, "multi", &[amd64.manifest, arm64.manifest]);
    upstream.image(REPO, "1", &[1000]);
    let mut closed = LarderProcess::start(&upstream, |toml| {
        toml.cache("offline", true);
    })
    .await;
    for reference in ["1", "1", "multi", "gone"] {
        closed.get(manifest(REPO, reference)).await.expect(404);
    }
    let wishes = ask(&closed, &["wishes", "--json"]).await.expect(0);
    let list = wishes.json();
    assert_eq!(
        (&list[0]["image"], &list[0]["count"]),
        (&format!("{NAME}:1").into(), &2.into()),
        "{list:#}"
    );
    let shown = ask(&closed, &["wishes"]).await.expect(0).out;
    assert!(shown.starts_with("IMAGE") && shown.contains("127.0.0.1"), "{shown}");
    assert_eq!(closed.stop().await, Some(0));
    let at_rest_list = run(closed.folder(), &["wishes", "--json"]).await.expect(0).json();
    assert_eq!(at_rest_list, list, "also when it does not run");

    let open = LarderProcess::start(&upstream, |_| {}).await;
    std::fs::write(open.folder().join("wishes.json"), &wishes.out).unwrap();
    let mut with_platform = list.clone();
    assert_eq!(with_platform[2]["image"], format!("{NAME}:multi"));
    with_platform[2]["platform"] = "linux/arm64".into();
    let receipt = serde_json::json!({ "larder_receipt": 1, "blobs": {}, "wishes": with_platform });
    std::fs::write(open.folder().join("receipt.json"), receipt.to_string()).unwrap();
    let ran = ask(&open, &["prefetch", "--wishes", "wishes.json", "--no-referrers"])
        .await
        .expect(1);
    assert!(
        ran.out.contains("wishes.json") && ran.err.contains(&format!("{NAME}:gone")),
        "{}\n{}",
        ran.out,
        ran.err
    );
    assert!(ran.out.contains("2 cached, 1 failed"), "{}", ran.out);
    upstream.forget();
    let ran = ask(
        &open,
        &["prefetch", "--wishes", "receipt.json", "--no-referrers", "--json"],
    )
    .await
    .expect(1)
    .json();
    assert!(
        ran["images"]
            .as_array()
            .unwrap()
            .iter()
            .any(|image| image["platforms"] == serde_json::json!(["linux/arm64"])),
        "{ran:#}"
    );
    assert_eq!(upstream.count(On::Blob(arm64.layers[0]).get()), 1);

    for (text, words) in [
        ("{}", "no receipt"),
        ("{\"larder_receipt\": 2}", "form 2"),
        ("[{\"image\": \"alpine newest=9\", \"platform\": null}]", "is no image"),
        (
            "[{\"image\": \"alpine\", \"platform\": \"x referrers=no\"}]",
            "is no image",
        ),
    ] {
        std::fs::write(open.folder().join("bad.json"), text).unwrap();
        let refused = ask(&open, &["prefetch", "--wishes", "bad.json"]).await.expect(64);
        assert!(refused.err.contains(words), "{text}: {}", refused.err);
    }
    std::fs::write(open.folder().join("none.json"), "[]").unwrap();
    let none = ask(&open, &["prefetch", "--wishes", "none.json"]).await.expect(0);
    assert_eq!(none.out, "nothing was wished for\n");
}

/// The first signal asks the proxy to cancel the job; the next one ends a command whose proxy hangs.
#[tokio::test]
async fn signals_end_a_command_that_waits() {
    use std::io::Read as _;
    use std::os::unix::process::ExitStatusExt as _;

    use rustix::process::{Pid, Signal, kill_process};

    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[300_000]);
    let never = Gate::closed();
    upstream
        .on(On::Blob(image.layers[0]))
        .always()
        .stall_after(100_000, &never);
    let larder = LarderProcess::start(&upstream, |_| {}).await;
    let proxy = Pid::from_raw(i32::try_from(larder.pid()).unwrap()).unwrap();
    for hangs in [false, true] {
        let mut command = crate::support::process::command(larder.folder());
        command.args(["prefetch", "alpine:1", "--admin", &format!("http://{}", larder.admin())]);
        let mut child = command.spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        never.wait_for_arrivals(1).await;
        // It listens for signals since it follows the job, which is a moment behind its beginning.
        within("the command to listen", async {
            let listens = || {
                let status = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap();
                let caught = status
                    .lines()
                    .find_map(|line| line.strip_prefix("SigCgt:"))
                    .unwrap()
                    .trim()
                    .to_owned();
                u64::from_str_radix(&caught, 16).unwrap() & 2 != 0
            };
            while !listens() {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        })
        .await;
        if hangs {
            kill_process(proxy, Signal::STOP).unwrap();
        }
        let ended = within("the command to end", async {
            loop {
                if let Some(status) = child.try_wait().unwrap() {
                    return status;
                }
                // One is enough for a proxy that answers.
                let _ = kill_process(pid, Signal::INT);
                tokio::time::sleep(std::time::Duration::from_millis(if hangs { 100 } else { 3000 })).await;
            }
        })
        .await;
        if hangs {
            kill_process(proxy, Signal::CONT).unwrap();
        }
        let mut err = String::new();
        child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        assert_eq!(ended.signal(), None, "{err}");
        match hangs {
            true => assert_eq!(ended.code(), Some(130), "{err}"),
            false => assert!(
                ended.code() == Some(1) && err.contains("the prefetch was cancelled"),
                "{err}"
            ),
        }
    }
}
