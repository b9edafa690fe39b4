//! `larder check-config` as a process: what it prints where, and with which exit status.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use crate::support::process::become_user;

fn check_config(dir: &Path, args: &[&str], variables: &[(&str, &str)]) -> Output {
    check_config_as(None, dir, args, variables)
}

/// As another user, which takes root.
fn check_config_as(user: Option<u32>, dir: &Path, args: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
    if let Some(user) = user {
        become_user(&mut command, user);
    }
    command
        .arg("check-config")
        .args(args)
        .env_clear()
        .env("HOME", dir)
        .envs(variables.iter().copied())
        .current_dir(dir)
        .output()
        .unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn folder(text: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("proxy.toml"), text).unwrap();
    dir
}

#[test]
fn a_bad_file_is_64_and_every_mistake_on_stderr() {
    let dir = folder("[cache]\nmax_sise = \"1GiB\"\n[server]\nlisten = 5\n");
    let output = check_config(dir.path(), &[], &[("LARDER_CACHE__TAG_TTL", "soon")]);
    assert_eq!(output.status.code(), Some(64));
    assert_eq!(out(&output), "");
    let err = err(&output);
    for want in [
        "larder: the configuration is refused\n",
        "\nproxy.toml:2: cache.max_sise: there is no such key; did you mean cache.max_size?\n",
        "\nproxy.toml:4: server.listen: found 5, expected a text or a list of texts\n",
        "\nLARDER_CACHE__TAG_TTL: cache.tag_ttl: found \"soon\", expected a duration",
    ] {
        assert!(err.contains(want), "{want}\n{err}");
    }
    let output = check_config(dir.path(), &["--json"], &[]);
    assert_eq!(output.status.code(), Some(64));
    let data: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(data["ok"], false);
    assert_eq!(data["problems"][0]["key"], "cache.max_sise");
    assert_eq!(data["problems"][0]["place"], "proxy.toml:2");
}

#[test]
fn a_good_one_is_0_and_said_in_words() {
    let dir = folder("[upstream.\"own.example:5000\"]\nurl = \"http://127.0.0.1:9\"\ntag_ttl = \"1h\"\n");
    let secret = [
        ("LARDER_UPSTREAM__OWN_EXAMPLE_5000__USERNAME", "me"),
        ("LARDER_UPSTREAM__OWN_EXAMPLE_5000__PASSWORD", "hunter2"),
    ];
    let output = check_config(dir.path(), &[], &secret);
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    let text = out(&output);
    for want in [
        "file        proxy.toml",
        "variable    LARDER_UPSTREAM__OWN_EXAMPLE_5000__PASSWORD",
        "registry    127.0.0.1:5000, without TLS",
        "at most     50GiB",
        "A tag is trusted for 5 minutes, then asked for by HEAD.",
        "What a registry does not have is asked for again after 5 seconds.",
        "me, password from LARDER_UPSTREAM__OWN_EXAMPLE_5000__PASSWORD",
        "a tag is trusted for: 1 hour",
        "Server-Timing for clients that ask for it",
    ] {
        assert!(text.contains(want), "{want}\n{text}");
    }
    let output = check_config(dir.path(), &["--json"], &secret);
    let data: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(data["cache"]["max_size_bytes"], 50u64 << 30);
    assert_eq!(data["cache"]["negative_ttl_seconds"], 5.0);
    assert_eq!(data["limits"]["manifest_size_bytes"], 4 << 20);
    assert_eq!(data["upstreams"].as_array().unwrap().len(), 14);
    assert!(!(text + &out(&output)).contains("hunter2"));
    // Looking is not touching: the cache folder was not made.
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

/// Keys that people bring along from the registry of CNCF Distribution are refused with the right ones; its variables are warned
/// of.
#[test]
fn keys_of_another_registry_are_answered() {
    let dir = folder("[proxy]\nremoteurl = \"https://registry-1.docker.io\"\n[http]\naddr = \":5000\"\n");
    let output = check_config(dir.path(), &[], &[]);
    assert_eq!(output.status.code(), Some(64));
    let text = err(&output);
    assert!(
        text.contains("proxy.toml:2: proxy.remoteurl: this is a key of the registry of CNCF Distribution; here: ")
            && text.contains("cache.default_upstream")
            && text.contains("proxy.toml:4: http.addr: ")
            && text.contains("here: server.listen"),
        "{text}"
    );
    let dir = folder("");
    let variable = [("REGISTRY_PROXY_REMOTEURL", "https://me:hunter2@registry-1.docker.io")];
    let output = check_config(dir.path(), &[], &variable);
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    let text = out(&output) + &err(&output);
    assert!(
        text.contains("REGISTRY_PROXY_REMOTEURL: ") && text.contains("sets nothing") && !text.contains("hunter2"),
        "{text}"
    );
}

#[test]
fn a_named_file_that_is_missing_is_64() {
    let dir = folder("");
    let output = check_config(dir.path(), &["--config", "gone.toml"], &[]);
    assert_eq!(output.status.code(), Some(64));
    assert!(err(&output).contains("--config: cannot read the configuration file gone.toml: there is no such file"));
}

#[test]
fn a_port_that_is_taken_does_not_matter() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let dir = folder(&format!("[server]\nlisten = \"{}\"\n", taken.local_addr().unwrap()));
    assert_eq!(check_config(dir.path(), &[], &[]).status.code(), Some(0));
}

#[test]
fn the_example_is_a_good_file() {
    let dir = folder(include_str!("../../proxy.toml.example"));
    let output = check_config(dir.path(), &[], &[]);
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    assert!(!out(&output).contains("Warnings"));
}

fn warnings(output: &Output) -> Vec<String> {
    let data: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let all = data["warnings"].as_array().unwrap().iter();
    all.map(|one| one.as_str().unwrap().to_owned()).collect()
}

/// Settings that are possible and hardly meant are warned of with place and key; only `--strict` takes them for errors.
#[test]
fn what_is_hardly_meant() {
    let text = "[cache]\nmax_size = \"900TiB\"\nmin_free = \"800TiB\"\n\
        [[access.rule]]\nwho = \"alice\"\nmay = \"fetch\"\n\
        [audit]\nfile = \"nowhere/audit.log\"\n\
        [admin]\nlisten = \"unix:nowhere/admin.sock\"\n";
    let dir = folder(text);
    let variables = [("LARDER_CACHE__MAX_SIZE", "950TiB"), ("LARDER_CAHCE__OFFLINE", "true")];
    let output = check_config(dir.path(), &["--json"], &variables);
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    let all = warnings(&output);
    for want in [
        "LARDER_CAHCE__OFFLINE: this sets no key and is ignored; did you mean LARDER_CACHE__OFFLINE?",
        "LARDER_CACHE__MAX_SIZE: cache.max_size: covers the value of the file (proxy.toml:2)",
        "LARDER_CACHE__MAX_SIZE: cache.max_size: 950TiB is more than there is, since the file system of ",
        "proxy.toml:3: cache.min_free: 800TiB is to stay free, and the file system of ",
        "proxy.toml:5: access.rule.1.who: \"alice\" matches nobody: there is neither access.htpasswd_file",
        "proxy.toml:8: audit.file: ",
        "proxy.toml:10: admin.listen: the socket ",
    ] {
        assert!(all.iter().any(|one| one.starts_with(want)), "{want}\n{all:#?}");
    }
    assert_eq!(all.len(), 7, "{all:#?}");
    let text = out(&check_config(dir.path(), &[], &variables));
    let section = text.split_once("Warnings\n").unwrap().1;
    assert!(all.iter().all(|one| section.contains(one.as_str())), "{section}");

    let strict = check_config(dir.path(), &["--strict"], &variables);
    assert_eq!(strict.status.code(), Some(64));
    assert!(out(&strict).contains("Warnings"));
    assert!(
        err(&strict).contains("the configuration has 7 warnings, which --strict takes for errors"),
        "{}",
        err(&strict)
    );
    let strict = check_config(dir.path(), &["--strict", "--json"], &variables);
    assert_eq!(strict.status.code(), Some(64));
    let data: serde_json::Value = serde_json::from_slice(&strict.stdout).unwrap();
    assert_eq!((&data["ok"], warnings(&strict)), (&false.into(), all));
    // One that is refused stays refused, with its problems.
    let refused = check_config(
        dir.path(),
        &["--strict", "--json"],
        &[("LARDER_CACHE__OFFLINE", "maybe")],
    );
    assert_eq!(refused.status.code(), Some(64));
    let data: serde_json::Value = serde_json::from_slice(&refused.stdout).unwrap();
    assert_eq!(data["problems"][0]["key"], "cache.offline");
    // Looking is not touching.
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

/// Without anything that is wrong `--strict` is content, also beside what Kubernetes sets.
#[test]
fn strict_is_content_with_a_good_one() {
    let dir = folder("[log]\nlevel = \"debug\"\n");
    let kubernetes = [
        ("LARDER_PORT", "tcp://10.0.0.1:5000"),
        ("LARDER_SERVICE_HOST", "10.0.0.1"),
    ];
    let output = check_config(dir.path(), &["--strict", "--json"], &kubernetes);
    assert_eq!(output.status.code(), Some(0), "{}{}", out(&output), err(&output));
    assert_eq!(warnings(&output), [""; 0]);
}

/// A path is looked at as the user who runs the command, and that one is named.
#[test]
fn a_path_that_this_user_cannot_make() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("not run: to be another user takes root");
        return;
    }
    const USER: u32 = 65_533;
    let dir = folder("[cache]\npath = \"kept/cache\"\n");
    let kept = dir.path().join("kept");
    std::fs::create_dir(&kept).unwrap();
    let open = |path: &Path| std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    open(dir.path());
    open(&kept);
    let as_root = check_config(dir.path(), &["--json"], &[]);
    assert_eq!(warnings(&as_root), [""; 0]);
    let output = check_config_as(Some(USER), dir.path(), &["--json"], &[]);
    let all = warnings(&output);
    assert_eq!(all.len(), 1, "{all:#?}");
    assert!(
        all[0].starts_with("proxy.toml:2: cache.path: ")
            && all[0].contains("uid 65533")
            && all[0].contains("permission denied"),
        "{all:#?}"
    );
    let data: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(data["checked_as"]["uid"], USER);
    // Nobody can make a folder where there is a file.
    std::fs::write(kept.join("cache"), "").unwrap();
    let all = warnings(&check_config(dir.path(), &["--json"], &[]));
    assert!(all.len() == 1 && all[0].contains("is no folder"), "{all:#?}");
}
