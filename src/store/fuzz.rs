//! Harnesses for what is read back from the cache folder: a disk may be damaged, and a folder may come from elsewhere.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::index::Kind;
use super::keys::{QueueTree, Tree};
use super::lists;
use super::records::{BlobRecord, TagRecord};
use crate::fuzzing::{Harness, text, texts};
use crate::oci::Digest;

pub(crate) const HARNESSES: &[Harness] = &[
    Harness {
        name: "index_records",
        run: records,
        seeds: record_seeds,
        words: &[
            "{\"size\":1,\"used_ms\":2}",
            "\u{2}",
            "\u{1}",
            "\0",
            "{",
            "[",
            "\"items\":",
            "1,",
        ],
    },
    Harness {
        name: "file_names",
        run: file_names,
        seeds: || {
            let digest = Digest::sha256(b"x");
            texts(&[
                &format!("{}.part", digest.hex()),
                "00000000000000000007.jsonl",
                "zz.part",
                "7.jsonl",
                "../.part",
            ])
        },
        words: &["sha256-", "sha512-", ".part", ".jsonl", "0", "a", "-", "/"],
    },
];

fn record_seeds() -> Vec<Vec<u8>> {
    let child = Digest::sha256(b"c");
    let record = |kind| BlobRecord {
        size: 7,
        used_ms: 9,
        shelf: "docker.io".into(),
        kind,
    };
    let mut seeds = texts(&[
        &format!(r#"{{"size":7,"used_ms":9,"shelf":"docker.io","media_type":"x/y","children":["{child}"]}}"#),
        &format!(
            r#"{{"digest":"{child}","media_type":"x/y","size":3,"checked_ms":5,"moves":[{{"digest":"{child}","until_ms":1}}]}}"#
        ),
        &format!(r#"{{"checked_ms":5,"items":["1","latest",{{"digest":"{child}","size":3}}]}}"#),
    ]);
    seeds.push(record(Kind::Blob).to_bytes());
    seeds.extend(lists::sample_records());
    seeds.push(record(Kind::manifest("x/y".into(), [child, Digest::sha256(b"d")])).to_bytes());
    seeds
}

fn records(data: &[u8]) {
    if let Some(record) = BlobRecord::from_bytes(data) {
        let written = record.to_bytes();
        let again = BlobRecord::from_bytes(&written).expect("our own");
        let cut =
            record.shelf.len() > usize::from(u16::MAX) || record.kind.media_type().is_some_and(|t| t.len() > 65535);
        assert!(again == record || cut);
        if data.first() != Some(&b'{') {
            assert_eq!(written, data, "one form for one record");
        }
    }
    if let Ok(record) = serde_json::from_slice::<TagRecord>(data) {
        let written = serde_json::to_vec(&record).unwrap();
        assert_eq!(serde_json::from_slice::<TagRecord>(&written).unwrap(), record);
        let next = record.clone().after(Some(&record));
        assert!(next.moves.len() <= 50 && next.digest == record.digest);
    }
    if let Some(written) = lists::rewritten(data) {
        assert_eq!(
            lists::rewritten(&written).as_ref(),
            Some(&written),
            "one form for one record"
        );
        if data.first() != Some(&b'{') {
            assert_eq!(written, data);
        }
    }
}

/// Files in the folder that are none of ours are left alone; those that are have one name only.
fn file_names(data: &[u8]) {
    let Some(name) = text(data) else { return };
    let tree = Tree::new(std::path::Path::new("/cache"));
    if let Some(key) = Tree::part_key(name) {
        assert_eq!(tree.part(&key).file_name().unwrap().to_str(), Some(name));
    }
    if let Some(number) = QueueTree::segment_number(name) {
        assert_eq!(
            tree.queue("q").segment(number).file_name().unwrap().to_str(),
            Some(name)
        );
    }
}
