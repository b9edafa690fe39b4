//! Harnesses for archives of other tools. They are read from files: here from memory that has a name.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;

use rustix::fs::{MemfdFlags, memfd_create};
use serde_json::json;

use super::super::archive::{Reader, Writer};
use super::super::catalog::{Catalog, check_repository};
use super::super::fuzz::mend;
use super::super::{CATALOG, Input};
use super::name;
use super::tree::{plain, resolve};
use crate::fuzzing::{Harness, check_bounded, check_stays_inside, fields, text, texts};
use crate::oci::{Digest, Tag, media_type};

pub(crate) const HARNESSES: &[Harness] = &[
    Harness {
        name: "foreign_archive",
        run: foreign_archive,
        seeds: || {
            let seeds = [layout(), saved()];
            seeds
                .iter()
                .flat_map(|bytes| [[b"n", bytes.as_slice()].concat(), [b"-", bytes.as_slice()].concat()])
                .collect()
        },
        words: &[
            "\0",
            "index.json",
            "manifest.json",
            "{\"manifests\":[",
            "../",
            "blobs/sha256/",
            "null",
        ],
    },
    Harness {
        name: "archive_names",
        run: archive_names,
        seeds: || {
            texts(&[
                "ab/layer.tar\n../cd/layer.tar\nregistry.example:5000/a/b:1",
                "a\n../../etc/passwd\nalpine:3.22",
                "./blobs/sha256/ab\n/etc/passwd\nIndex.docker.io/a/b",
                "a/b/c\n.././../x\nlocalhost/a:1",
            ])
        },
        words: &["../", "./", "/", "a/", "\\", "\n", ":", "docker.io/"],
    },
];

fn layout() -> Vec<u8> {
    let layer = b"layer".repeat(10);
    let describe =
        |bytes: &[u8], kind: &str| json!({"mediaType": kind, "digest": Digest::sha256(bytes), "size": bytes.len()});
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_MANIFEST,
        "config": describe(b"{}", "application/vnd.oci.image.config.v1+json"),
        "layers": [describe(&layer, "application/vnd.oci.image.layer.v1.tar")],
    });
    let manifest = manifest.to_string();
    let mut descriptor = describe(manifest.as_bytes(), media_type::OCI_MANIFEST);
    descriptor["annotations"] = json!({
        "io.containerd.image.name": "docker.io/library/a:1",
        "org.opencontainers.image.ref.name": "1",
    });
    let index = json!({ "schemaVersion": 2, "manifests": [descriptor] }).to_string();
    let mut archive = Writer::new(Vec::new());
    archive
        .file("oci-layout", b"{\"imageLayoutVersion\":\"1.0.0\"}")
        .unwrap();
    archive.file("index.json", index.as_bytes()).unwrap();
    for bytes in [layer.as_slice(), b"{}", manifest.as_bytes()] {
        archive
            .file(&format!("blobs/sha256/{}", Digest::sha256(bytes).hex()), bytes)
            .unwrap();
    }
    archive.end().unwrap();
    archive.into_sink()
}

fn saved() -> Vec<u8> {
    let layer = b"layer".repeat(10);
    let config = json!({ "rootfs": { "type": "layers", "diff_ids": [Digest::sha256(&layer)] } }).to_string();
    let list = json!([{ "Config": "c.json", "RepoTags": ["a:1", "x.example/b:2"], "Layers": ["l/layer.tar"] }]);
    let mut archive = Writer::new(Vec::new());
    archive.file("manifest.json", list.to_string().as_bytes()).unwrap();
    archive.file("c.json", config.as_bytes()).unwrap();
    archive.file("l/layer.tar", &layer).unwrap();
    archive.end().unwrap();
    archive.into_sink()
}

/// Whether a name is given, then the archive.
fn foreign_archive(data: &[u8]) {
    let Some((how, bytes)) = data.split_first() else { return };
    let mut bytes = bytes.to_vec();
    mend(&mut bytes);
    let memory = memfd_create("larder-fuzz", MemfdFlags::CLOEXEC).unwrap();
    let mut file = std::fs::File::from(memory);
    file.write_all(&bytes).unwrap();
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let _ = super::is_foreign(&path);
    let name = (*how == b'n').then_some("x.example/team/app");
    let archive = match super::open(&path, name) {
        Ok(archive) => archive,
        Err(error) => return check_bounded(error),
    };
    assert!(!archive.images().is_empty());
    for image in archive.images() {
        check_repository(&image.repository).unwrap();
        assert!(
            name.is_none_or(|name| image.repository == name),
            "the given name is the only one"
        );
    }
    if archive.bytes() > 1 << 20 {
        return;
    }
    // What comes out is a bundle: what `import` reads first is there, and the stream ends well or says why not.
    let (sender, mut receiver) = tokio::sync::mpsc::channel(16);
    let (stream, outcome) = std::thread::scope(|scope| {
        scope.spawn(move || archive.write(sender));
        let mut stream = Vec::new();
        while let Some(piece) = receiver.blocking_recv() {
            match piece {
                Ok(piece) => stream.extend_from_slice(&piece),
                Err(error) => return (stream, Err(error)),
            }
        }
        (stream, Ok(()))
    });
    if let Err(error) = outcome {
        return check_bounded(error);
    }
    let mut stream = stream.as_slice();
    let mut reader = Reader::new(&mut stream as &mut dyn Input);
    let first = reader.entry().expect("an archive").expect("an entry");
    assert_eq!(first.name, CATALOG);
    let catalog = Catalog::from_bytes(&reader.all(first.size).unwrap()).expect("a catalogue");
    let mut found = Vec::new();
    while let Some(entry) = reader.entry().expect("an archive") {
        check_stays_inside(&entry.name);
        found.push((entry.name, entry.size));
    }
    let blobs: Vec<_> = catalog.blobs.iter().map(|blob| (blob.name(), blob.size)).collect();
    assert_eq!(found[2..], blobs, "behind oci-layout and index.json");
}

/// A link, where it leads, and a name of an image.
fn archive_names(data: &[u8]) {
    let ([link, target], image) = fields(data);
    let (Some(link), Some(target), Some(image)) = (text(link), text(target), text(image)) else {
        return;
    };
    match plain(link) {
        Ok(name) => {
            check_stays_inside(&name);
            assert!(name.len() <= 512);
            if !name.is_empty() {
                assert_eq!(plain(&name).unwrap(), name);
            }
            match resolve(&name, target) {
                Ok(place) => check_stays_inside(&place),
                Err(error) => check_bounded(error),
            }
        }
        Err(error) => check_bounded(error),
    }
    match name::parse(image) {
        Ok(name) => {
            check_repository(&name.repository).unwrap();
            check_stays_inside(&name.repository);
            assert!(name.tag.is_none_or(|tag| tag.parse::<Tag>().is_ok()));
        }
        Err(error) => check_bounded(error),
    }
}
