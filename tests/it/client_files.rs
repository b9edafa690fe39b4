//! `larder client-config`: what it prints is valid as it is, and what the documentation shows is what it prints.

use std::path::{Path, PathBuf};

use crate::support::ran::{Ran, run};

/// A folder with a configuration that changes nothing.
fn folder(text: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("proxy.toml"), text).unwrap();
    folder
}

const PLAIN: &str = "[log]\nlevel = \"info\"\n";
const CLIENTS: [&str; 6] = ["docker", "containerd", "podman", "cri-o", "k3s", "buildkit"];
const ADDRESS: [&str; 2] = ["--address", "larder.example:5000"];

/// By the parser of its format.
#[track_caller]
fn check_format(client: &str, text: &str) {
    match client {
        "docker" => {
            let json: serde_json::Value = serde_json::from_str(text).unwrap();
            assert_eq!(json.as_object().unwrap().len(), 1, "{text}");
        }
        "k3s" => {
            let events = saphyr_parser::Parser::new_from_str(text);
            assert!(events.into_iter().all(|event| event.is_ok()), "{text}");
        }
        _ => {
            let table: toml::Table = text.parse().unwrap();
            assert!(!table.is_empty(), "{text}");
        }
    }
}

/// Data on standard output, words on standard error: what is redirected to a file is what the client reads.
#[tokio::test]
async fn what_is_printed_is_valid_as_it_is() {
    let with_users = folder("[access]\nhtpasswd_file = \"users\"\n");
    std::fs::write(with_users.path().join("users"), "").unwrap();
    for folder in [folder(PLAIN), with_users] {
        for client in CLIENTS {
            for more in [
                &[][..],
                &["--no-fallback"],
                &["--upstream", "ghcr.io"],
                &["--upstream", "hub", "--upstream", "ghcr.io"],
            ] {
                let args = [&["client-config", client], &ADDRESS[..], more].concat();
                let ran = run(folder.path(), &args).await;
                if client == "containerd" && more.len() > 2 {
                    assert!(ran.status == Some(64) && ran.err.contains("--write"), "{}", ran.err);
                    assert_eq!(ran.out, "");
                    continue;
                }
                // Its mirrors are for Docker Hub only.
                if client == "docker" && more == ["--upstream", "ghcr.io"] {
                    assert!(ran.status == Some(64) && ran.err.contains("/ghcr.io/"), "{}", ran.err);
                    assert_eq!(ran.out, "");
                    continue;
                }
                let Ran { out, err, .. } = ran.expect(0);
                check_format(client, &out);
                assert!(err.starts_with("larder: write this to "), "{err}");
                assert!(!out.contains("log in") && !out.contains("write this to"), "{out}");
                if more.contains(&"--upstream") && !matches!(client, "docker") {
                    assert!(out.contains("ghcr.io") && !out.contains("quay.io"), "{out}");
                }
            }
        }
    }
    let folder = folder(PLAIN);
    let args = [&["client-config", "containerd"], &ADDRESS[..]].concat();
    let ran = run(folder.path(), &args).await.expect(0);
    assert!(
        ran.out.contains("server = \"https://registry-1.docker.io\""),
        "{}",
        ran.out
    );
    assert!(ran.err.contains("--upstream NAME prints another one"), "{}", ran.err);
    let args = [&args[..], &["--upstream", "nowhere.example"]].concat();
    let ran = run(folder.path(), &args).await.expect(64);
    assert!(ran.err.contains("no such upstream"), "{}", ran.err);
}

/// Every file that users read, below these.
fn documentation() -> Vec<PathBuf> {
    fn below(path: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(path).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => below(&path, found),
                false => found.push(path),
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = vec![root.join("README.md")];
    for folder in ["docs", "deploy"] {
        below(&root.join(folder), &mut found);
    }
    found
}

/// A fenced block, and the text between it and the one before it.
struct Block {
    before: String,
    text: String,
}

fn blocks(text: &str) -> Vec<Block> {
    let (mut found, mut before, mut open) = (Vec::new(), String::new(), None::<String>);
    for line in text.lines() {
        let is_fence = line.trim_start().starts_with("```");
        match open.take() {
            Some(text) if is_fence => found.push(Block {
                before: std::mem::take(&mut before),
                text,
            }),
            Some(text) => open = Some(text + line + "\n"),
            None if is_fence => open = Some(String::new()),
            None => before = before + line + "\n",
        }
    }
    found
}

/// Returns true for the configuration of a client, or a part of it.
fn configures_a_client(text: &str) -> bool {
    let signs = [
        "\"registry-mirrors\"",
        "[[registry",
        "[registry.\"",
        "endpoint: [",
        "endpoint:\n",
    ];
    signs.iter().any(|sign| text.contains(sign)) || text.lines().any(|line| line.trim_start().starts_with("[host.\""))
}

/// The last `larder client-config …` of a text.
fn command_in(text: &str) -> Option<Vec<&str>> {
    let (_, rest) = text.rsplit_once("`larder client-config ")?;
    let (command, _) = rest.split_once('`')?;
    Some(command.split_whitespace().collect())
}

#[tokio::test]
async fn the_documentation_shows_what_is_printed() {
    let folder = folder(PLAIN);
    let mut shown = Vec::new();
    for path in documentation() {
        let text = std::fs::read_to_string(&path).unwrap();
        let name = path.display();
        if path.extension().is_none_or(|extension| extension != "md") {
            assert!(
                !configures_a_client(&text),
                "{name} configures a client: have it done by `larder client-config`"
            );
            continue;
        }
        for block in blocks(&text).iter().filter(|block| configures_a_client(&block.text)) {
            let Some(command) = command_in(&block.before) else {
                panic!("{name}: no `larder client-config …` stands above\n{}", block.text);
            };
            let args = [&["client-config"], command.as_slice()].concat();
            let ran = run(folder.path(), &args).await.expect(0);
            assert_eq!(block.text, ran.out, "{name}: `larder {}`", args.join(" "));
            shown.push(command[0].to_owned());
        }
    }
    for client in ["docker", "containerd", "podman", "k3s", "buildkit"] {
        assert!(
            shown.iter().any(|shown| shown == client),
            "no file shows {client}: {shown:?}"
        );
    }
}

/// The test above would see a block that differs, and one that nothing stands above.
#[test]
fn blocks_and_their_commands_are_found() {
    let text = "Write `larder client-config docker --address a:1`:\n\n```json\n{ \"registry-mirrors\": [] }\n```\n\n```toml\n  [host.\"http://a\"]\n```\n\n```sh\nls\n```\n";
    let found = blocks(text);
    let configuring: Vec<bool> = found.iter().map(|block| configures_a_client(&block.text)).collect();
    assert_eq!(configuring, [true, true, false]);
    assert_eq!(command_in(&found[0].before).unwrap(), ["docker", "--address", "a:1"]);
    assert!(command_in(&found[1].before).is_none());
}
