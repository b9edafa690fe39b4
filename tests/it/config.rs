//! `larder check-config` as a process: what it prints where, and with which exit status.

use std::path::Path;
use std::process::{Command, Output};

fn check_config(dir: &Path, args: &[&str], variables: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_larder"))
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
