//! The naming table of the product, and the closed world.

use std::time::Duration;

use super::*;
use crate::config;

fn upstream(name: &str, aliases: &[&str], synonyms: &[&str]) -> config::Upstream {
    config::Upstream {
        name: name.parse().unwrap(),
        url: format!("https://{name}").parse().unwrap(),
        mirrors: Vec::new(),
        aliases: aliases.iter().map(|a| a.to_string()).collect(),
        synonyms: synonyms.iter().map(|s| s.parse().unwrap()).collect(),
        credentials: None,
        lender: None,
        tag_ttl: Duration::from_secs(300),
        stale_if_error: Duration::from_secs(300),
        offline: false,
        max_size: None,
        allow: Vec::new(),
        deny: vec!["secret/*".to_owned()],
        redirect_hosts: None,
        trusted_realms: Vec::new(),
        ca_file: None,
        client_cert: None,
        client_key: None,
        proxy: None,
        connect_timeout: Duration::from_secs(5),
        read_timeout: Duration::from_secs(30),
        answer_timeout: Duration::from_secs(300),
        max_connections: None,
        budget_floor: config::Floor::Percent(10),
        max_bandwidth: None,
    }
}

fn names() -> Names {
    let mut config = Config::default_config().unwrap();
    config.cache.default_upstream = "docker.io".parse().unwrap();
    config.upstreams = vec![
        upstream("docker.io", &["hub"], &["index.docker.io", "registry-1.docker.io"]),
        upstream("ghcr.io", &[], &[]),
        upstream("registry.example:5000", &["ex"], &[]),
    ];
    Names::new(&config).unwrap()
}

fn key(name: &str, ns: Option<&str>) -> Result<String, PullError> {
    names().resolve(name, ns).map(|t| t.key.to_string())
}

/// The table of product.md, R-D1, R-D2.
#[test]
fn every_spelling_reaches_the_same_content() {
    for (name, ns) in [
        ("library/alpine", None),
        ("alpine", None),
        ("library/alpine", Some("docker.io")),
        ("library/alpine", Some("Index.Docker.IO")),
        ("library/alpine", Some("")),
        ("docker.io/library/alpine", None),
        ("docker.io/alpine", None),
        ("registry-1.docker.io/library/alpine", None),
        ("hub/library/alpine", None),
        ("hub/alpine", Some("docker.io")),
    ] {
        assert_eq!(key(name, ns).unwrap(), "docker.io/library/alpine", "{name} {ns:?}");
    }
    assert_eq!(key("ghcr.io/a/b", None).unwrap(), "ghcr.io/a/b");
    assert_eq!(key("a/b", Some("ghcr.io")).unwrap(), "ghcr.io/a/b");
    assert_eq!(
        key("one", Some("ghcr.io")).unwrap(),
        "ghcr.io/one",
        "library/ is Docker Hub's alone"
    );
    assert_eq!(key("ex/a", None).unwrap(), "registry.example:5000/a");
    assert_eq!(
        key("a", Some("registry.example:5000")).unwrap(),
        "registry.example:5000/a"
    );
    assert_eq!(
        key("hub", None).unwrap(),
        "docker.io/library/hub",
        "an alias alone is a repository"
    );
}

/// L10: what is not configured is refused by name.
#[test]
fn the_world_is_closed() {
    for (name, ns) in [
        ("evil.example/a/b", None),
        ("localhost/a", None),
        ("127.0.0.1:80/a", None),
        ("a/b", Some("evil.example")),
        ("a", Some("169.254.169.254")),
    ] {
        assert!(
            matches!(key(name, ns), Err(PullError::UnknownUpstream(_))),
            "{name} {ns:?}"
        );
    }
    assert!(matches!(
        key("ghcr.io/a/b", Some("docker.io")),
        Err(PullError::Conflict { .. })
    ));
    assert!(matches!(key("hub/a", Some("ghcr.io")), Err(PullError::Conflict { .. })));
    for ns in ["http://docker.io", "a b", "docker.io/../x", "docker.io\r\n"] {
        assert!(matches!(key("a", Some(ns)), Err(PullError::Namespace(_))), "{ns:?}");
    }
    for name in ["A/b", "a//b", "", "a/../b", "docker.io/", "hub//x"] {
        assert!(matches!(key(name, None), Err(PullError::Name(_))), "{name:?}");
    }
    assert!(matches!(key("secret/x", None), Err(PullError::NotAllowed { .. })));
}

/// What a client wrote is not repeated at any length, nor with characters that turn a line around.
#[test]
fn refusals_stay_short() {
    let long = "a.".repeat(10_000);
    for name in [format!("{long}example/a"), "a\u{202e}.example/a".to_owned()] {
        let error = names().resolve(&name, None).unwrap_err().to_string();
        assert!(
            error.len() < 1000 && !error.contains('\u{202e}'),
            "{} bytes",
            error.len()
        );
    }
}

/// A name is told back as the client spelled it (R-S17).
#[test]
fn the_clients_spelling_is_kept() {
    assert_eq!(names().resolve("hub/alpine", None).unwrap().client_name, "hub/alpine");
}
