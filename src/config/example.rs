//! Holds `proxy.toml.example`, `keys` and `raw` to one another, so that none of them can fall behind.

use std::collections::BTreeSet;

use figment::providers::Serialized;
use figment::{Figment, error::Kind as FigmentKind};
use serde::de::DeserializeOwned;

use super::keys::{self, Key, Kind};
use super::raw::{
    Raw, RawAccess, RawAcme, RawAdmin, RawAudit, RawBundle, RawCache, RawIssuer, RawLimits, RawListener, RawLog,
    RawPrefetch, RawRule, RawServer, RawTls, RawTraces, RawUpstream, RawWebhook,
};
use super::{Config, file};

const EXAMPLE: &str = include_str!("../../proxy.toml.example");

/// Takes the `# ` off lines of the form `# key = value` and `# [[name]]`.
fn uncommented() -> String {
    let is_key = |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    let line = |line: &str| match line.strip_prefix("# ") {
        Some(rest) if rest.split_once(" = ").is_some_and(|(key, _)| is_key(key)) => rest.to_owned(),
        Some(rest) if rest.starts_with('[') && rest.ends_with(']') => rest.to_owned(),
        _ => line.to_owned(),
    };
    EXAMPLE.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// Every key, in the tables that the example has.
fn leaves() -> Vec<(Vec<String>, Kind)> {
    keys::leaves(&|table| {
        let name = match table.last().map(String::as_str) {
            Some("upstream") => "docker.io",
            Some("listener") => "dockerd",
            Some("oidc") => "github",
            Some("webhook") => "ci",
            _ => "1",
        };
        vec![name.to_owned()]
    })
}

/// Without what depends on there being a file.
fn meaning(mut config: Config) -> String {
    config.sources.clear();
    config.origins.clear();
    format!("{config:#?}")
}

#[test]
fn the_defaults_shown_are_the_defaults() {
    let shown = meaning(Config::from_toml(EXAMPLE).unwrap());
    assert_eq!(shown, meaning(Config::default_config().unwrap()));
}

#[test]
fn every_default_that_there_is_is_shown() {
    let given = Config::from_toml(EXAMPLE).unwrap().origins;
    let defaults = toml::Table::try_from(Raw::default()).unwrap();
    for (path, _) in leaves() {
        let value = path
            .iter()
            .try_fold(&toml::Value::Table(defaults.clone()), |at, part| at.get(part))
            .is_some();
        let shown = given.contains_key(&super::show_key(&path));
        assert_eq!(shown, value, "{path:?}");
    }
}

#[test]
fn every_key_is_in_the_example_and_its_example_value_fits() {
    let text = uncommented();
    let mut problems = Vec::new();
    let layer = file::read(&text, "proxy.toml.example", &mut problems).unwrap();
    assert_eq!(problems, []);
    for (path, _) in leaves() {
        assert!(layer.origins.contains_key(&path), "{path:?} is missing");
    }
    for key in keys::PREFETCH {
        let path = ["prefetch", "1", key.name].map(str::to_owned).to_vec();
        assert!(layer.origins.contains_key(&path), "{path:?} is missing");
    }
    // All that may be wrong is that the files of the examples are not there, and that both of the two ways to
    // give a secret are shown.
    for problem in Config::from_toml(&text).unwrap_err().problems() {
        let both = problem.message.starts_with("expected either ");
        let absent = ["there is no such file", "No such file"];
        assert!(
            both || absent.iter().any(|word| problem.message.contains(word)),
            "{problem}"
        );
    }
}

#[test]
fn every_key_has_a_sentence() {
    let lines: Vec<&str> = EXAMPLE.lines().collect();
    for (at, line) in lines.iter().enumerate() {
        let body = line.strip_prefix("# ").unwrap_or(line);
        if body.split_once(" = ").is_some_and(|(key, _)| !key.contains(' ')) {
            let before = lines[at - 1];
            assert!(before.starts_with("# ") && before.ends_with('.'), "{line}");
        }
    }
}

/// The fields that a struct's Deserialize knows.
fn fields<T: DeserializeOwned>() -> BTreeSet<&'static str> {
    let unknown = toml::Table::from_iter([("?".to_owned(), toml::Value::Boolean(true))]);
    match Figment::from(Serialized::defaults(unknown)).extract::<T>() {
        Ok(_) => panic!("an unknown key was accepted: deny_unknown_fields is missing"),
        Err(error) => match error.kind {
            FigmentKind::UnknownField(_, fields) => fields.iter().copied().collect(),
            other => panic!("an unknown key gave {other:?}"),
        },
    }
}

#[test]
fn the_list_of_keys_and_the_structs_agree() {
    let inner = |keys: &'static [Key], name: &str| match keys::find(keys, name).unwrap().kind {
        Kind::Table(inner) | Kind::Named(inner) | Kind::Tables(inner) | Kind::Listed(inner) => inner,
        _ => panic!("{name} is no table"),
    };
    let server = inner(keys::ROOT, "server");
    for (keys, fields) in [
        (keys::ROOT, fields::<Raw>()),
        (server, fields::<RawServer>()),
        (inner(server, "tls"), fields::<RawTls>()),
        (inner(keys::ROOT, "admin"), fields::<RawAdmin>()),
        (inner(keys::ROOT, "cache"), fields::<RawCache>()),
        (inner(keys::ROOT, "log"), fields::<RawLog>()),
        (inner(keys::ROOT, "limits"), fields::<RawLimits>()),
        (inner(keys::ROOT, "audit"), fields::<RawAudit>()),
        (inner(keys::ROOT, "bundle"), fields::<RawBundle>()),
        (inner(keys::ROOT, "traces"), fields::<RawTraces>()),
        (inner(keys::ROOT, "acme"), fields::<RawAcme>()),
        (keys::LISTENER, fields::<RawListener>()),
        (keys::ACCESS, fields::<RawAccess>()),
        (keys::ISSUER, fields::<RawIssuer>()),
        (keys::RULE, fields::<RawRule>()),
        (keys::UPSTREAM, fields::<RawUpstream>()),
        (keys::PREFETCH, fields::<RawPrefetch>()),
        (keys::WEBHOOK, fields::<RawWebhook>()),
    ] {
        assert_eq!(keys.iter().map(|key| key.name).collect::<BTreeSet<_>>(), fields);
    }
}
