//! Harness for what operators write: names of images, patterns.

use super::{names, pattern};
use crate::fuzzing::{Harness, check_error, fields, text, texts};
use crate::oci::Reference;

pub(crate) const HARNESSES: &[Harness] = &[Harness {
    name: "operator_names",
    run: operator_names,
    seeds: || {
        texts(&[
            "docker.io/library/*\ndocker.io/library/alpine:3.22",
            "*:latest\nregistry.example:5000/a/b:latest",
            "a*a\naa",
            "\nalpine@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        ])
    },
    words: &["*", "a", "a*", ":", "@", "/", "\n", "é", "sha256:"],
}];

/// One cell for each pair of prefixes: slow, and easily seen to be right.
fn fits_by_table(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let mut row: Vec<bool> = (0..=text.len()).map(|at| at == 0).collect();
    for c in pattern {
        let before = row.clone();
        for at in 0..row.len() {
            let came = at > 0
                && (if c == '*' {
                    row[at - 1]
                } else {
                    before[at - 1] && text[at - 1] == c
                });
            row[at] = came || (c == '*' && before[at]);
        }
    }
    row[text.len()]
}

/// A pattern, then a name.
fn operator_names(data: &[u8]) {
    let ([wanted], name) = fields(data);
    let (Some(wanted), Some(name)) = (text(wanted), text(name)) else {
        return;
    };
    let fits = pattern::fits(wanted, name);
    if wanted.len() * name.len() < 10_000 {
        let from_end_to_end = match wanted.contains('*') {
            true => wanted.to_owned(),
            false => format!("*{wanted}*"),
        };
        assert_eq!(fits, fits_by_table(&from_end_to_end, name), "{wanted:?} {name:?}");
    }
    match names::split(name) {
        Ok((before, reference)) => {
            assert!(name.starts_with(before));
            match &reference {
                Reference::Digest(digest) => assert!(name.ends_with(&digest.to_string())),
                Reference::Tag(tag) => {
                    assert!(name.ends_with(tag.as_str()) || (tag.as_str() == "latest" && before == name))
                }
            }
        }
        Err(error) => check_error(error),
    }
}
