//! Harness for what clouds and their files say.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use super::{aws, azure};
use crate::config::Secret;
use crate::fuzzing::{Harness, fields, text, texts};

pub(crate) const HARNESSES: &[Harness] = &[Harness {
    name: "cloud_answers",
    run: cloud_answers,
    seeds: || {
        texts(&[
            "1763745090.5\ne30.eyJleHAiOjk5OTk5OTk5OTk5fQ.c2ln\n[default]\naws_access_key_id = AKIA1\naws_secret_access_key=s/e+c=ret # or so\n[profile  ci]\ns3 =\n  max = 2\n",
            "1e300\nQVdTOnBhc3N3b3Jk\n# mine\n[a\n",
            "-5\ne30.eyJleHAiOjF9.x\nkey = value\n",
        ])
    },
    words: &["[", "]", "\n[a]\n", "=", "a=b\n", " #", ";", ".", "eyJleHAiOjF9"],
}];

/// When a token ends, the token, a file of profiles.
fn cloud_answers(data: &[u8]) {
    let ([ends, token], profiles) = fields(data);
    if let Some(ends) = text(ends).and_then(|text| text.parse::<f64>().ok()) {
        assert!(aws::until(ends) <= Duration::from_secs(24 * 3600), "{ends}");
    }
    if let Some(token) = text(token) {
        let token = Secret::new(token);
        assert!(azure::lifetime(&token).is_none_or(|left| left <= Duration::from_secs(24 * 3600)));
        if let Err(error) = aws::basic(&token) {
            assert!(token.reveal().len() < 12 || !error.contains(token.reveal()));
        }
    }
    let Some(profiles) = text(profiles) else { return };
    match aws::profile::parse(profiles) {
        Ok(sections) => {
            let clean = |name: &String| !name.contains("  ") && name.trim() == name;
            assert!(sections.keys().all(clean), "{:?}", sections.keys());
            let values = sections.values().flat_map(|section| section.values());
            for value in values {
                assert!(profiles.contains(value.reveal()), "a value as it stands there");
            }
        }
        Err((line, _)) => assert!(line >= 1 && line <= profiles.lines().count()),
    }
}
