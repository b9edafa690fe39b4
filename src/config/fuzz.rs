//! Harnesses for what operators write: the file, variables, lists of images, units, schedules.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::keys::{self, Kind};
use super::units::{MAX_DAYS, parse_duration, parse_size, show_duration, show_size};
use super::wanted::{Choice, MAX_IMAGES, Platforms, Range, parse_line, parse_list};
use super::{Config, ConfigError, Environment, Schedule};
use crate::fuzzing::{Harness, check_bounded, check_error, fields, text, texts};

pub(crate) const HARNESSES: &[Harness] = &[
    Harness {
        name: "config_file",
        run: config_file,
        seeds: || texts(&[include_str!("../../proxy.toml.example"), SMALL, WRONG]),
        words: &[
            "[",
            "[a.",
            "a.",
            "a={",
            "\"",
            "'''",
            "[[webhook]]\n",
            "[[prefetch]]\nname=\"a\"\n",
            "#",
            "=",
            "\n",
            "1_",
            "x=[",
        ],
    },
    Harness {
        name: "variables",
        run: variables,
        seeds: || {
            texts(&[
                "LARDER_CACHE__MAX_SIZE=200GiB\nLARDER_UPSTREAM__DOCKER_IO__PASSWORD=hunter2-secret\nLARDER_UPSTREAM__DOCKER_IO__USERNAME=u",
                "LARDER_SERVER__LISTEN=[\"127.0.0.1:0\", '[::1]:0']\nLARDER_UPSTREAM__GHCR_IO__ALLOW=a, b/*",
                "LARDER_SERVICE_HOST=x\nLARDER_PORT_5000_TCP=tcp://1\nlarder_cache__offline=TRUE\nLARDER_LOG=debug",
                "LARDER_CACHE__PATHS=/x\nLARDER_CACHE_MAX_SIZE=1\nLARDER_UPSTREAM__X_Y__URL=http://u:hunter2-secret@x",
            ])
        },
        words: &[
            "LARDER_",
            "__",
            "_",
            "=",
            "\n",
            "CACHE",
            "UPSTREAM__",
            "[\"a\"]",
            ",",
            "DOCKER_IO",
            "PORT_1_TCP",
        ],
    },
    Harness {
        name: "image_list",
        run: image_list,
        seeds: || {
            texts(&[
                "# comments\nalpine:3.22\nghcr.io/owner/app@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\nalpine:3.* newest=3\n",
                "nginx semver=\">=1.25, <2\" platform=linux/amd64,linux/arm64\nredis tags=*-alpine newest=1 referrers=no\n",
                "\u{feff}h:5000/a/b  # why\nnginx \"semver=^1\" newest=2\n",
                "bad:tag: \nnginx newst=3\n\"x\nredis newest=0\n*/x\na:1 newest=2\n",
            ])
        },
        words: &[
            "a\n",
            "a:*",
            " newest=1",
            " semver=",
            ">=1.0,",
            "\"",
            "#",
            "platform=linux/arm64,",
            "@sha256:",
            ":",
        ],
    },
    Harness {
        name: "tag_choice",
        run: tag_choice,
        seeds: || {
            texts(&[
                "3.*\n>=3.18, <4\n3.22\n3.9\nv4.0.0",
                "*-slim\n\n3.22-slim\nlatest",
                "?a*a?\n~1.2\n1.2.3-rc.1\n2_x",
            ])
        },
        words: &["*", "?", "a", "1.", "\n", ">=", "<", ",", "v", "-rc.1"],
    },
    Harness {
        name: "units",
        run: units,
        seeds: || {
            texts(&[
                "50GiB",
                "1h30m",
                "500ms",
                "36500d",
                "18446744073709551615",
                " 5 m",
                "10gb",
            ])
        },
        words: &["1", "0", "GiB", "h", "m", "s", "ms", " ", "-"],
    },
    Harness {
        name: "schedule",
        run: schedule,
        seeds: || {
            texts(&[
                "30 2 * * *",
                "0 0 30 2 *",
                "*/5 1-3,7 L * MON#2",
                "0 0 29 2 1",
                "59 23 31 12 7",
                "0 0 LW * 5L",
            ])
        },
        words: &["* ", "*/", "1-", "1,", "L", "W", "#", "MON", "FEB", "0 "],
    },
];

const SMALL: &str = r#"
[server]
listen = ["127.0.0.1:5000", "[::1]:5000"]

[cache]
max_size = "200GiB"
default_upstream = "hub"

[upstream."docker.io"]
username = "u"
password = "hunter2-secret"
allow = ["library/*"]
mirrors = ["https://mirror.example"]

[upstream."registry.example:5000"]
url = "https://registry.example:5000"
redirect_hosts = ["cdn.example", "10.0.0.7:9000"]
tag_ttl = "1h30m"

[listener.team]
listen = "127.0.0.1:5002"

[[access.rule]]
who = "anyone"
may = "pull-held"

[[prefetch]]
name = "night"
images = ["alpine:3.* newest=2"]
schedule = "30 2 * * *"

[[webhook]]
name = "ci"
url = "https://hooks.example/x"
secret = "hunter2-secret"
"#;

const WRONG: &str = "[server]\nlisten = 5\n[cache]\nmax_sise = \"1\"\n[upstream.\"docker.io\"]\npassword = [\"hunter2-secret\"]\n[upstream.ghcr.io]\nurl = \"http://u:hunter2-secret@x\"\n";

/// Values of keys that the table calls secret, as they stand in the text.
fn secrets(values: &toml::Table) -> BTreeSet<String> {
    fn walk(
        value: &toml::Value,
        path: &mut Vec<String>,
        secret: &dyn Fn(&[String]) -> bool,
        out: &mut BTreeSet<String>,
    ) {
        match value {
            toml::Value::String(text) if secret(path) => drop(out.insert(text.clone())),
            toml::Value::Array(items) => items.iter().for_each(|item| walk(item, path, secret, out)),
            toml::Value::Table(table) => {
                for (key, value) in table {
                    path.push(key.clone());
                    walk(value, path, secret, out);
                    path.pop();
                }
            }
            _ => {}
        }
    }
    let named = |table: &[String]| super::file::names_at(values, table);
    let all: BTreeSet<Vec<String>> = keys::leaves(&named)
        .into_iter()
        .filter(|(_, kind)| matches!(kind, Kind::Secret | Kind::SecretList))
        .map(|(path, _)| path)
        .collect();
    let mut out = BTreeSet::new();
    let is_secret = |path: &[String]| all.contains(path);
    walk(
        &toml::Value::Table(values.clone()),
        &mut Vec::new(),
        &is_secret,
        &mut out,
    );
    out
}

/// The whole is as long as there are problems; each of them is short and repeats no secret.
fn check_problems(error: &ConfigError, secrets: &BTreeSet<String>) {
    assert!(!error.problems().is_empty());
    for problem in error.problems() {
        check_bounded(problem);
        let text = problem.to_string();
        // Short ones may stand in a key or in our own words.
        let told = secrets
            .iter()
            .find(|secret| secret.len() >= 12 && text.contains(secret.as_str()));
        assert!(told.is_none(), "{text:?} repeats a secret");
    }
}

fn check_config(config: &Config) {
    assert!(!config.server.listen.is_empty());
    let mut names = BTreeSet::new();
    assert!(
        config
            .upstreams
            .iter()
            .all(|upstream| names.insert(upstream.name.clone()))
    );
    assert!(
        names.contains(&config.cache.default_upstream),
        "{}",
        config.cache.default_upstream
    );
    let mut aliases = BTreeSet::new();
    for upstream in &config.upstreams {
        assert!(matches!(upstream.url.scheme(), "http" | "https"), "{}", upstream.url);
        for alias in &upstream.aliases {
            assert!(aliases.insert(alias.clone()), "{alias} means two upstreams");
            assert!(!alias.contains('/') && alias != "library");
        }
    }
    for prefetch in &config.prefetch {
        let _ = prefetch.schedule.next_after(1_767_225_600_000);
    }
    // What is shown of it has no secret in it.
    assert!(!format!("{config:?}").contains("hunter2-secret"));
}

fn config_file(data: &[u8]) {
    let Some(text) = text(data) else { return };
    match Config::from_toml(text) {
        Ok(config) => check_config(&config),
        Err(error) => {
            let values = toml::from_str::<toml::Table>(text).unwrap_or_default();
            check_problems(&error, &secrets(&values));
        }
    }
}

/// `NAME=value`, one a line.
fn variables(data: &[u8]) {
    let Some(text) = text(data) else { return };
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    let variables: BTreeMap<String, String> = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    // No file is named: this reads none.
    if variables.keys().any(|name| name == "LARDER_CONFIG") {
        return;
    }
    let environment = Environment {
        variables,
        cwd: PathBuf::from("/nonexistent"),
        home: Some(PathBuf::from("/nonexistent")),
        etc: PathBuf::from("/nonexistent"),
        run: PathBuf::from("/nonexistent"),
    };
    match Config::load(None, &environment) {
        Ok(config) => {
            check_config(&config);
            let given: Vec<&String> = environment.variables.keys().collect();
            assert!(
                config.sources.iter().all(|source| given.contains(&source)),
                "{:?}",
                config.sources
            );
        }
        Err(error) => {
            let secret = |(name, value): (&String, &String)| {
                name.to_ascii_uppercase().ends_with("__PASSWORD").then(|| value.clone())
            };
            check_problems(&error, &environment.variables.iter().filter_map(secret).collect());
        }
    }
}

fn image_list(data: &[u8]) {
    let Some(text) = text(data) else { return };
    match parse_list(text) {
        Ok(all) => {
            assert!(all.len() <= MAX_IMAGES);
            let lines: Vec<&str> = text.trim_start_matches('\u{feff}').lines().collect();
            for (line, wanted) in &all {
                assert_eq!(parse_line(lines[line - 1]).unwrap().as_ref(), Some(wanted));
                // Shown, it means the same; a name that needs quotes is refused later, by its grammar.
                if !wanted
                    .name
                    .contains(|c: char| c.is_whitespace() || c == '"' || c == '#')
                {
                    let again = parse_line(&wanted.to_string()).unwrap().unwrap();
                    assert_eq!((&again.name, &again.which), (&wanted.name, &wanted.which), "{wanted}");
                }
                if let Some(Platforms::Only(platforms)) = &wanted.platforms {
                    assert!(!platforms.is_empty());
                }
            }
        }
        Err(errors) => {
            assert!((1..=20).contains(&errors.len()));
            for error in errors {
                assert!(error.line >= 1 && error.column >= 1);
                check_bounded(error);
            }
        }
    }
}

fn fits_by_table(pattern: &[u8], text: &[u8]) -> bool {
    let mut row: Vec<bool> = (0..=text.len()).map(|at| at == 0).collect();
    for c in pattern {
        let before = row.clone();
        for at in 0..row.len() {
            let came = at > 0
                && match c {
                    b'*' => row[at - 1],
                    b'?' => before[at - 1],
                    c => before[at - 1] && text[at - 1] == *c,
                };
            row[at] = came || (*c == b'*' && before[at]);
        }
    }
    row[text.len()]
}

/// A pattern, a range, then tags.
fn tag_choice(data: &[u8]) {
    let ([glob, range], tags) = fields(data);
    let (Some(glob), Some(range), Some(tags)) = (text(glob), text(range), text(tags)) else {
        return;
    };
    if let Err(error) = Range::parse(range) {
        check_error(error);
    }
    let choice = Choice {
        glob: super::wanted::glob(glob).ok(),
        range: Range::parse(range).ok(),
        newest: Some(5),
    };
    let tags: Vec<&str> = tags.lines().filter(|tag| tag.len() <= 128).collect();
    let chosen = choice.of(tags.iter().copied());
    assert!(chosen.len() <= 5 && chosen.iter().all(|tag| tags.contains(tag)));
    if let Some(glob) = &choice.glob {
        assert!(
            chosen.iter().all(|tag| fits_by_table(glob.as_bytes(), tag.as_bytes())),
            "{glob:?}"
        );
    }
    assert_eq!(
        choice.of(chosen.iter().copied()),
        chosen,
        "chosen again, nothing changes"
    );
}

fn units(data: &[u8]) {
    let Some(text) = text(data) else { return };
    if let Some(bytes) = parse_size(text) {
        assert_eq!(parse_size(&show_size(bytes)), Some(bytes));
    }
    if let Some(duration) = parse_duration(text) {
        assert!(duration.as_secs() <= MAX_DAYS * 86_400);
        assert_eq!(parse_duration(&show_duration(duration)), Some(duration));
    }
}

fn schedule(data: &[u8]) {
    let Some(text) = text(data) else { return };
    let schedule = match Schedule::parse(text) {
        Ok(schedule) => schedule,
        Err(error) => return check_bounded(error),
    };
    assert_eq!(schedule.as_str(), text);
    // 2026-01-01, and the day before the clocks change in Europe.
    for now in [1_767_225_600_000, 1_774_656_000_000] {
        if let Some(next) = schedule.next_after(now) {
            assert!(next > now && next % 60_000 == 0, "{next}");
        }
    }
}
