//! Harnesses for archives of other tools. They are read from files: here from memory that has a name.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, memfd_create};
use serde_json::{Value, json};

use super::super::archive::{Reader, Writer};
use super::super::catalog::{Catalog, check_repository};
use super::super::fuzz::mend;
use super::super::{CATALOG, Input};
use super::tree::{plain, resolve};
use super::{Naming, name};
use crate::fuzzing::{Harness, check_bounded, check_stays_inside, fields, text, texts};
use crate::oci::{Digest, Tag, media_type};

pub(crate) const HARNESSES: &[Harness] = &[
    Harness {
        name: "foreign_archive",
        run: foreign_archive,
        seeds: || {
            let seeds = [layout(), signed(), saved(), compressed(), folder()];
            let ways = [b"n", b"-", b"g", b"z"];
            let all = seeds
                .iter()
                .flat_map(|bytes| ways.map(|way| [way, bytes.as_slice()].concat()));
            all.collect()
        },
        words: &[
            "\0",
            "index.json",
            "manifest.json",
            "{\"manifests\":[",
            "../",
            "blobs/sha256/",
            "null",
            "@sha256:",
            "dev.cosignproject.cosign/sigs",
            "\"subject\":",
            "\u{1f}",
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

fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = Writer::new(Vec::new());
    for (name, bytes) in files {
        archive.file(name, bytes).unwrap();
    }
    archive.end().unwrap();
    archive.into_sink()
}

fn describe(bytes: &[u8], kind: &str) -> Value {
    json!({"mediaType": kind, "digest": Digest::sha256(bytes), "size": bytes.len()})
}

fn manifest(layer: &[u8]) -> String {
    json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_MANIFEST,
        "config": describe(b"{}", "application/vnd.oci.image.config.v1+json"),
        "layers": [describe(layer, "application/vnd.oci.image.layer.v1.tar")],
    })
    .to_string()
}

/// A layout of these manifests, each with its annotations.
fn layout_of(listed: &[(&str, Value)], blobs: &[&[u8]]) -> Vec<u8> {
    let listed = listed.iter().map(|(manifest, annotations)| {
        let mut descriptor = describe(manifest.as_bytes(), media_type::OCI_MANIFEST);
        descriptor["annotations"] = annotations.clone();
        descriptor
    });
    let index = json!({ "schemaVersion": 2, "manifests": listed.collect::<Vec<_>>() }).to_string();
    let mut archive = Writer::new(Vec::new());
    archive
        .file("oci-layout", b"{\"imageLayoutVersion\":\"1.0.0\"}")
        .unwrap();
    archive.file("index.json", index.as_bytes()).unwrap();
    for bytes in blobs {
        archive
            .file(&format!("blobs/sha256/{}", Digest::sha256(bytes).hex()), bytes)
            .unwrap();
    }
    archive.end().unwrap();
    archive.into_sink()
}

fn layout() -> Vec<u8> {
    let layer = b"layer".repeat(10);
    let manifest = manifest(&layer);
    let annotations = json!({
        "io.containerd.image.name": "docker.io/library/a:1",
        "org.opencontainers.image.ref.name": "1",
    });
    layout_of(&[(&manifest, annotations)], &[&layer, b"{}", manifest.as_bytes()])
}

/// As cosign writes it, with a referrer beside it as oras does.
fn signed() -> Vec<u8> {
    let layer = b"layer".repeat(10);
    let image = manifest(&layer);
    let payload =
        json!({"critical": {"image": {"docker-manifest-digest": Digest::sha256(image.as_bytes())}}}).to_string();
    let signature = manifest(payload.as_bytes());
    let mut referrer: Value = serde_json::from_str(&manifest(&layer)).unwrap();
    referrer["subject"] = describe(image.as_bytes(), media_type::OCI_MANIFEST);
    let referrer = referrer.to_string();
    let kind = |kind: &str| json!({"kind": kind, "org.opencontainers.image.ref.name": "x.example/a:1"});
    let listed = [
        (signature.as_str(), kind("dev.cosignproject.cosign/sigs")),
        (image.as_str(), kind("dev.cosignproject.cosign/image")),
        (referrer.as_str(), json!({})),
    ];
    let blobs = [
        image.as_bytes(),
        signature.as_bytes(),
        referrer.as_bytes(),
        payload.as_bytes(),
        &layer,
        b"{}",
    ];
    layout_of(&listed, &blobs)
}

fn saved() -> Vec<u8> {
    let layer = b"layer".repeat(10);
    let config = json!({ "rootfs": { "type": "layers", "diff_ids": [Digest::sha256(&layer)] } }).to_string();
    let list = json!([{ "Config": "c.json", "RepoTags": ["a:1", "x.example/b:2"], "Layers": ["l/layer.tar"] }]);
    tar(&[
        ("manifest.json", list.to_string().as_bytes()),
        ("c.json", config.as_bytes()),
        ("l/layer.tar", &layer),
    ])
}

/// As crane writes it.
fn compressed() -> Vec<u8> {
    let layers = [b"layer".repeat(10), b"other".repeat(10)];
    let packed = [gzip(&layers[0]), zstd::encode_all(layers[1].as_slice(), 3).unwrap()];
    let diff_ids = [Digest::sha256(&layers[0]), Digest::sha256(&layers[1])];
    let config = json!({ "rootfs": { "type": "layers", "diff_ids": diff_ids } }).to_string();
    let list = json!([{ "Config": "sha256:c", "RepoTags": ["a:1"], "Layers": ["a.tar.gz", "b.tar.gz"] }, { "Config": "sha256:c", "RepoTags": null, "Layers": [] }]);
    tar(&[
        ("sha256:c", config.as_bytes()),
        ("a.tar.gz", &packed[0]),
        ("b.tar.gz", &packed[1]),
        ("manifest.json", list.to_string().as_bytes()),
    ])
}

/// As `skopeo copy … dir:` writes it, one folder down.
fn folder() -> Vec<u8> {
    let layer = b"layer".repeat(10);
    let hex = |bytes: &[u8]| format!("f/{}", Digest::sha256(bytes).hex());
    tar(&[
        ("f/manifest.json", manifest(&layer).as_bytes()),
        (&hex(&layer), &layer),
        (&hex(b"{}"), b"{}"),
    ])
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A file in memory, and its name.
fn file_of(bytes: &[u8]) -> (std::fs::File, PathBuf) {
    let memory = memfd_create("larder-fuzz", MemfdFlags::CLOEXEC).unwrap();
    let mut file = std::fs::File::from(memory);
    file.write_all(bytes).unwrap();
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    (file, path)
}

/// The input: one byte that says whether a name is given and how the archive is compressed, then the archive.
fn foreign_archive(data: &[u8]) {
    let Some((how, bytes)) = data.split_first() else { return };
    let mut bytes = bytes.to_vec();
    mend(&mut bytes);
    let name = matches!(*how, b'n' | b'z').then_some("x.example/team/app");
    let naming = Naming {
        name: name.map(str::to_owned),
        only: Vec::new(),
    };
    let packed = match *how {
        b'g' => gzip(&bytes),
        b'z' => zstd::encode_all(bytes.as_slice(), 1).unwrap(),
        _ => bytes.clone(),
    };
    let (_file, path) = file_of(&packed);
    let is_foreign = super::is_foreign(&path);
    let archive = match super::open(&path, &naming, Arc::new(|_| {})) {
        Ok(archive) => archive,
        Err(error) => return check_bounded(error),
    };
    // Compressed or not, it says the same.
    let (_file, plain) = file_of(&bytes);
    assert_eq!(super::is_foreign(&plain), is_foreign);
    let same = super::open(&plain, &naming, Arc::new(|_| {})).expect("the archive without its compression");
    assert_eq!(same.images(), archive.images());
    let left = |archive: &super::Archive| -> Vec<_> {
        let left = archive.not_taken().iter();
        left.map(|left| (left.name.clone(), left.digest.clone(), left.option.clone()))
            .collect()
    };
    assert_eq!(left(&same), left(&archive));
    assert!(!archive.images().is_empty());
    for image in archive.images() {
        check_repository(&image.repository).unwrap();
        assert!(
            name.is_none_or(|name| image.repository == name),
            "the given name is the only one"
        );
    }
    archive.not_taken().iter().for_each(check_bounded);
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
