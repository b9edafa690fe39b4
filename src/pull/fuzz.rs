//! Harness for what a client's path and `?ns=` mean together.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::OnceLock;

use super::Names;
use crate::config::Config;
use crate::fuzzing::{Harness, check_error, check_stays_inside, fields, text, texts};

pub(crate) const HARNESSES: &[Harness] = &[Harness {
    name: "image_names",
    run: image_names,
    seeds: || {
        texts(&[
            "library/alpine\n",
            "alpine\ndocker.io",
            "docker.io/library/alpine\nDOCKER.IO",
            "hub/library/alpine\n",
            "registry.example:5000/team/a/b\n",
            "team/a\nregistry.example:5000",
            "registry.example:5000/other/a\n",
            "ghcr.io/x\ndocker.io",
            "unknown.example/a/b\n",
            "index.docker.io/library/x\nregistry-1.docker.io",
        ])
    },
    words: &[
        "docker.io/",
        "hub/",
        "a/",
        "registry.example:5000",
        "\n",
        "..",
        ":",
        "library/",
        "A",
        "%2f",
    ],
}];

fn names() -> &'static Names {
    static NAMES: OnceLock<Names> = OnceLock::new();
    NAMES.get_or_init(|| {
        let text = "[upstream.\"docker.io\"]\naliases = [\"hub\", \"d\"]\n\
                    [upstream.\"registry.example:5000\"]\nurl = \"http://127.0.0.1:1\"\nallow = [\"team/*\"]\ndeny = [\"team/secret\"]\n";
        Names::new(&Config::from_toml(text).unwrap()).unwrap()
    })
}

/// A name, then `ns`.
fn image_names(data: &[u8]) {
    let ([name], ns) = fields(data);
    let (Some(name), Some(ns)) = (text(name), text(ns)) else {
        return;
    };
    let target = match names().resolve(name, Some(ns)) {
        Ok(target) => target,
        Err(error) => return check_error(error),
    };
    let upstream = target.upstream.name.as_str();
    assert!(names().is_known(upstream), "only what is configured is ever contacted");
    assert_eq!(*target.key, format!("{upstream}/{}", target.repository));
    assert_eq!(target.client_name, name);
    check_stays_inside(&target.key);
    assert!(target.repository.as_str().len() <= 255);
    if upstream == "registry.example:5000" {
        let repository = target.repository.as_str();
        assert!(
            repository.starts_with("team/") && repository != "team/secret",
            "{repository}"
        );
    }
    // The full name means the same, however it was spelled before.
    let again = names().resolve(&target.key, None).expect("the full name");
    assert_eq!((&again.key, &again.upstream.name), (&target.key, &target.upstream.name));
    let with_ns = names()
        .resolve(&target.key, Some(upstream))
        .expect("the full name, and its own ns");
    assert_eq!(with_ns.key, target.key);
}
