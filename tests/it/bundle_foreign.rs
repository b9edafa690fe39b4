//! Archives of other tools, as these write them: what is inside is taken, or named with the option that takes it.

use std::io::Write as _;
use std::sync::Arc;

use flate2::write::GzEncoder;
use larder::bundle::import::{Options, import};
use larder::bundle::report::{NotTaken, Outcome, Report};
use larder::bundle::{BundleError, Input, foreign, pipe};
use larder::config::Config;
use larder::oci::{Digest, media_type};
use larder::store::Store;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::client::Ask;
use crate::support::noise;
use crate::support::process::LarderProcess;
use crate::support::ran::{ask, run, run_fed};
use crate::support::upstream::Upstream;
use crate::support::{blob, manifest as manifest_of};

const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

fn store() -> (TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let text = format!("[cache]\npath = {:?}\nmin_free = \"0B\"\n", folder.path().join("cache"));
    let store = Store::open(&Config::from_toml(&text).unwrap()).unwrap();
    (folder, store)
}

fn naming(name: Option<&str>) -> foreign::Naming {
    foreign::Naming {
        name: name.map(str::to_owned),
        only: Vec::new(),
    }
}

struct Came {
    report: Report,
    left: Vec<NotTaken>,
}

impl Came {
    /// Names and outcomes.
    fn rows(&self) -> Vec<(&str, Outcome)> {
        let rows = self.report.images.iter();
        rows.map(|row| (row.name.as_str(), row.outcome)).collect()
    }

    #[track_caller]
    fn expect(self, names: &[&str], left: &[&str]) -> Came {
        let new: Vec<_> = names.iter().map(|name| (*name, Outcome::New)).collect();
        assert_eq!(self.rows(), new);
        let found: Vec<String> = self.left.iter().map(ToString::to_string).collect();
        assert_eq!(found.len(), left.len(), "{found:#?}");
        for (found, word) in found.iter().zip(left) {
            assert!(found.contains(word), "{word}: {found}");
        }
        self
    }
}

fn take(store: &Store, bytes: &[u8], naming: &foreign::Naming) -> Result<Came, BundleError> {
    let disk = tempfile::tempdir().unwrap();
    let path = disk.path().join("archive");
    std::fs::write(&path, bytes).unwrap();
    let archive = foreign::open(&path, naming, Arc::new(|_| {}))?;
    let left = archive.not_taken().to_vec();
    let (sender, mut reader) = pipe::pipe();
    let telling = std::thread::spawn(move || archive.write(sender));
    let options = Options {
        unsigned: true,
        ..Options::default()
    };
    let report = import(store, &mut reader as &mut dyn Input, &options, &mut |_| {});
    drop(reader);
    telling.join().unwrap();
    Ok(Came { report: report?, left })
}

fn refused(bytes: &[u8]) -> String {
    let (folder, store) = store();
    let error = match take(&store, bytes, &naming(Some("x.example/a:1"))) {
        Ok(came) => panic!("it was taken: {:?}", came.rows()),
        Err(error) => error.to_string(),
    };
    let kept = std::fs::read_dir(folder.path().join("cache/blobs/sha256"))
        .unwrap()
        .count();
    assert_eq!((kept, store.image_names().len()), (0, 0), "{error}");
    error
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).unwrap()
}

/// One entry with a header of this kind of tar.
fn entry(name: &str, bytes: &[u8], kind: tar::EntryType, link: &str, mut header: tar::Header) -> Vec<u8> {
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_size(bytes.len() as u64);
    header.set_cksum();
    let mut all = header.as_bytes().to_vec();
    all.extend_from_slice(bytes);
    all.resize(all.len().next_multiple_of(512), 0);
    all
}

fn file(name: &str, bytes: &[u8]) -> Vec<u8> {
    entry(name, bytes, tar::EntryType::Regular, "", tar::Header::new_ustar())
}

fn link(name: &str, target: &str) -> Vec<u8> {
    entry(name, b"", tar::EntryType::Symlink, target, tar::Header::new_ustar())
}

fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut all: Vec<u8> = files.iter().flat_map(|(name, bytes)| file(name, bytes)).collect();
    all.resize(all.len() + 1024, 0);
    all
}

fn ended(entries: &[Vec<u8>]) -> Vec<u8> {
    [entries.concat(), vec![0; 1024]].concat()
}

fn config(diff_ids: &[&[u8]]) -> String {
    let diff_ids: Vec<Digest> = diff_ids.iter().map(|layer| Digest::sha256(layer)).collect();
    json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}}).to_string()
}

/// Config, names and layers of an image.
type Saved<'a> = (&'a str, Option<&'a [&'a str]>, &'a [&'a str]);

fn list(images: &[Saved<'_>]) -> String {
    let images = images
        .iter()
        .map(|(config, tags, layers)| json!({"Config": config, "RepoTags": tags, "Layers": layers}));
    Value::from(images.collect::<Vec<_>>()).to_string()
}

fn describe(bytes: &[u8], kind: &str) -> Value {
    json!({"mediaType": kind, "digest": Digest::sha256(bytes), "size": bytes.len()})
}

/// A layout that is being made.
#[derive(Default)]
struct Layout {
    listed: Vec<Value>,
    blobs: Vec<Vec<u8>>,
}

impl Layout {
    fn blob(&mut self, bytes: &[u8]) -> Digest {
        self.blobs.push(bytes.to_vec());
        Digest::sha256(bytes)
    }

    /// An image with one layer, in the index with these annotations.
    fn image(&mut self, layer: &[u8], annotations: Value) -> Digest {
        let manifest = self.manifest(layer, TAR, &json!({}));
        self.list(&manifest, annotations);
        Digest::sha256(&manifest)
    }

    fn manifest(&mut self, layer: &[u8], kind: &str, more: &Value) -> Vec<u8> {
        let config = config(&[layer]);
        let mut manifest = json!({
            "schemaVersion": 2,
            "mediaType": media_type::OCI_MANIFEST,
            "config": describe(config.as_bytes(), CONFIG),
            "layers": [describe(layer, kind)],
        });
        manifest
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let manifest = manifest.to_string().into_bytes();
        for bytes in [config.as_bytes(), layer, &manifest] {
            self.blob(bytes);
        }
        manifest
    }

    fn list(&mut self, manifest: &[u8], annotations: Value) {
        let mut descriptor = describe(manifest, media_type::OCI_MANIFEST);
        descriptor["annotations"] = annotations;
        self.listed.push(descriptor);
    }

    fn files(&self) -> Vec<(String, Vec<u8>)> {
        let index = json!({"schemaVersion": 2, "manifests": self.listed}).to_string();
        let mut files = vec![
            ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
            ("index.json".to_owned(), index.into_bytes()),
        ];
        let mut blobs: Vec<_> = self
            .blobs
            .iter()
            .map(|blob| (format!("blobs/sha256/{}", Digest::sha256(blob).hex()), blob.clone()))
            .collect();
        blobs.sort();
        blobs.dedup();
        files.extend(blobs);
        files
    }

    fn tar(&self) -> Vec<u8> {
        self.tar_below("")
    }

    fn tar_below(&self, prefix: &str) -> Vec<u8> {
        let files = self.files();
        let named: Vec<_> = files
            .iter()
            .map(|(name, bytes)| file(&format!("{prefix}{name}"), bytes))
            .collect();
        ended(&named)
    }
}

fn held(store: &Store, repository: &str, bytes: &[u8]) -> bool {
    let digest = Digest::sha256(bytes);
    store.linked(repository, &digest) && store.size(&digest) == Some(bytes.len() as u64)
}

fn tagged(store: &Store, repository: &str, tag: &str) -> Option<Digest> {
    store.tag(repository, tag).map(|record| record.digest)
}

/// As crane, ko, kaniko, jib and Bazel write them: the digest of a layer's file is not what the config has.
#[test]
fn compressed_layers_stay_as_they_are() {
    let (_folder, store) = store();
    let layers = [noise(1, 60_000), noise(2, 9_000), noise(3, 5_000)];
    let config = config(&[&layers[0], &layers[1], &layers[2]]);
    let packed = [
        [gzip(&layers[0][..40_000]), gzip(&layers[0][40_000..])].concat(),
        zstd(&layers[1]),
    ];
    let list = list(&[(
        "sha256:c",
        Some(&["registry.example/team/app:1", "app"]),
        &["a.tar.gz", "b.tar.gz", "c.tar"],
    )]);
    let archive = tar(&[
        ("sha256:c", config.as_bytes()),
        ("a.tar.gz", &packed[0]),
        ("b.tar.gz", &packed[1]),
        ("c.tar", &layers[2]),
        ("manifest.json", list.as_bytes()),
    ]);
    let repository = "registry.example/team/app";
    let came = take(&store, &archive, &naming(None)).unwrap();
    came.expect(
        &["registry.example/team/app:1"],
        &["its name has no tag (--as docker.io/library/app:TAG"],
    );
    let digest = tagged(&store, repository, "1").unwrap();
    let manifest = store.manifest(&digest).unwrap().unwrap();
    let manifest: Value = serde_json::from_slice(&manifest.bytes).unwrap();
    assert_eq!(
        manifest["layers"],
        json!([
            describe(&packed[0], &format!("{TAR}+gzip")),
            describe(&packed[1], &format!("{TAR}+zstd")),
            describe(&layers[2], TAR),
        ])
    );
    assert_eq!(manifest["config"], describe(config.as_bytes(), CONFIG));
    assert!(packed.iter().all(|layer| held(&store, repository, layer)));
    assert!(held(&store, repository, &layers[2]) && held(&store, repository, config.as_bytes()));
    // The whole archive compressed, as Nix writes it: the same, and nothing comes again.
    for packed in [gzip(&archive), zstd(&archive)] {
        let came = take(&store, &packed, &naming(None)).unwrap();
        assert_eq!(came.rows(), [("registry.example/team/app:1", Outcome::Unchanged)]);
        assert_eq!((came.report.new_blobs, came.report.damaged.len()), (0, 0));
    }
}

/// A fault of one image is named, and keeps no other from being taken.
#[test]
fn layers_that_are_not_what_the_config_says() {
    let (good, other) = (noise(1, 9_000), noise(2, 9_000));
    let trailing = [gzip(&good), b"hidden".to_vec()].concat();
    let zeros = [gzip(&good), vec![0; 512]].concat();
    let packed = gzip(&good);
    let one = config(&[&good]);
    let two = config(&[&good, &other]);
    let xz = b"\xfd7zXZ\0and so on";
    let cases: [(&str, &str, &str); 8] = [
        ("trailing", "one", "stand behind the end of its gzip stream"),
        ("zeros", "one", "stand behind the end of its gzip stream"),
        ("wrong", "one", "unpacks to sha256:"),
        ("cut", "one", "breaks off"),
        ("xz", "one", "compressed by xz"),
        ("nowhere", "one", "is not in the archive"),
        ("good", "two", "names 2 layers, where manifest.json has 1"),
        ("good", "none", "its config \"none\" is not in the archive"),
    ];
    let wrong = gzip(&other);
    for (layer, config, word) in cases {
        let (_folder, store) = store();
        let list = list(&[
            ("one", Some(&["x.example/good:1"]), &["good"]),
            (config, Some(&["x.example/bad:1"]), &[layer]),
        ]);
        let archive = tar(&[
            ("one", one.as_bytes()),
            ("two", two.as_bytes()),
            ("good", &packed),
            ("trailing", &trailing),
            ("zeros", &zeros),
            ("wrong", &wrong),
            ("cut", &packed[..packed.len() / 2]),
            ("xz", xz),
            ("manifest.json", list.as_bytes()),
        ]);
        let came = take(&store, &archive, &naming(None)).unwrap();
        let came = came.expect(&["x.example/good:1"], &[word]);
        assert_eq!(came.left[0].name.as_deref(), Some("x.example/bad:1"), "{layer}");
        assert!(tagged(&store, "x.example/bad", "1").is_none());
    }
    // Alone it is the reason.
    let alone = list(&[("one", None, &["trailing"])]);
    let archive = tar(&[
        ("one", one.as_bytes()),
        ("trailing", &trailing),
        ("manifest.json", alone.as_bytes()),
    ]);
    assert!(refused(&archive).contains("stand behind the end of its gzip stream"));
}

/// `docker save` before Docker 25: a layer that several images share is written once, and linked; `docker save NAME
/// ID`.
#[test]
fn what_docker_saved() {
    let (_folder, store) = store();
    let layer = noise(1, 30_000);
    let configs = [config(&[&layer]), config(&[&layer, &layer])];
    let list = list(&[
        ("a.json", Some(&["thing:1"]), &["a/layer.tar"]),
        ("b.json", None, &["a/layer.tar", "c/layer.tar"]),
    ]);
    let archive = ended(&[
        file("a/VERSION", b"1.0"),
        file("a/layer.tar", &layer),
        link("b/layer.tar", "../a/layer.tar"),
        link("c/layer.tar", "../b/layer.tar"),
        file("a.json", configs[0].as_bytes()),
        file("b.json", configs[1].as_bytes()),
        file("manifest.json", list.as_bytes()),
        file("repositories", b"{}"),
    ]);
    let came = take(&store, &archive, &naming(None)).unwrap();
    let came = came.expect(
        &["docker.io/library/thing:1"],
        &["the archive gives it no name (--only sha256:"],
    );
    // By the ID that `docker images` shows, under a name of its own.
    let chosen = foreign::Naming {
        name: Some("thing:2".to_owned()),
        only: vec![Digest::sha256(configs[1].as_bytes()).hex()[..12].to_owned()],
    };
    take(&store, &archive, &chosen)
        .unwrap()
        .expect(&["docker.io/library/thing:2"], &[]);
    assert_eq!(
        tagged(&store, "docker.io/library/thing", "2").unwrap().to_string(),
        came.left[0].digest
    );
    // All of them at once: what has no tag by its digest.
    let all = take(&store, &archive, &naming(Some("x.example/all"))).unwrap();
    let by_digest = format!("x.example/all@{}", came.left[0].digest);
    all.expect(&["x.example/all:1", &by_digest], &[]);
    // Before Docker 1.10 there were no configs.
    let old = tar(&[
        ("repositories", br#"{"a":{"1":"x"}}"#),
        ("x/layer.tar", &layer),
        ("x/json", b"{}"),
    ]);
    assert!(refused(&old).contains("older than 1.10"));
}

/// `ctr image export` of what the kubelet pulled: the same image by tag, by digest and by its ID.
#[test]
fn what_containerd_exported() {
    let (_folder, store) = store();
    let mut layout = Layout::default();
    let layer = noise(1, 20_000);
    let name = "registry.example/team/app";
    let digest = layout.image(
        &layer,
        json!({"io.containerd.image.name": format!("{name}:1"), "org.opencontainers.image.ref.name": "1"}),
    );
    let entry = layout.listed[0].clone();
    let id = Digest::sha256(config(&[&layer]).as_bytes());
    for (full, short) in [
        (format!("{name}@{digest}"), format!("@{digest}")),
        (id.to_string(), id.to_string()),
        (format!("{name}:2@{digest}"), format!("2@{digest}")),
    ] {
        let mut entry = entry.clone();
        entry["annotations"] = json!({"io.containerd.image.name": full, "org.opencontainers.image.ref.name": short});
        layout.listed.push(entry);
    }
    let came = take(&store, &layout.tar(), &naming(None)).unwrap();
    let by_digest = format!("{name}@{digest}");
    assert_eq!(
        came.rows(),
        [
            (format!("{name}:1").as_str(), Outcome::New),
            (format!("{name}:2").as_str(), Outcome::New),
            // It came with the first, and is pinned for itself.
            (by_digest.as_str(), Outcome::Unchanged),
        ]
    );
    assert!(came.left.is_empty());
    assert_eq!(tagged(&store, name, "1"), Some(digest));
    assert!(held(&store, name, &layer));
    // Nothing else: neither a tag made of a digest, nor a repository called sha256.
    let names: Vec<String> = store.image_names().iter().map(|(name, _)| name.to_string()).collect();
    assert_eq!(names, [format!("{name}:1"), format!("{name}:2")]);
    assert!(store.image(name, &digest.to_string()).unwrap().pinned);
    // Only by its ID: there is no name to take.
    layout
        .listed
        .retain(|entry| entry["annotations"]["io.containerd.image.name"] == id.to_string());
    let error = take(&store, &layout.tar(), &naming(None)).err().unwrap().to_string();
    assert!(error.contains("--as NAME:TAG"), "{error}");
}

/// One platform of an index is exported, or all are but only one with its layers (Docker's way).
#[test]
fn platforms_that_are_not_inside() {
    for with_manifest in [false, true] {
        let (_folder, store) = store();
        let mut layout = Layout::default();
        let here = layout.manifest(&noise(1, 9_000), TAR, &json!({}));
        let mut elsewhere = Layout::default();
        let other = elsewhere.manifest(&noise(2, 9_000), TAR, &json!({}));
        if with_manifest {
            layout.blob(&other);
        }
        let of = |manifest: &[u8], architecture: &str| {
            let mut descriptor = describe(manifest, media_type::OCI_MANIFEST);
            descriptor["platform"] = json!({"os": "linux", "architecture": architecture});
            descriptor
        };
        let index = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [of(&here, "amd64"), of(&other, "arm64")]});
        let index = index.to_string().into_bytes();
        layout.blob(&index);
        let mut descriptor = describe(&index, media_type::OCI_INDEX);
        descriptor["annotations"] = json!({"io.containerd.image.name": "x.example/a:1"});
        layout.listed.push(descriptor);
        take(&store, &layout.tar(), &naming(None))
            .unwrap()
            .expect(&["x.example/a:1"], &[]);
        assert!(store.linked("x.example/a", &Digest::sha256(&here)));
        assert!(!store.linked("x.example/a", &Digest::sha256(&other)));
        // An index without any of its platforms is no image.
        layout.blobs.retain(|blob| *blob != here);
        assert!(refused(&layout.tar()).contains("none of its platforms is here whole"));
    }
}

/// cosign and Hauler: the signature bears the image's name and another kind. It never becomes the tag.
#[test]
fn signatures_beside_their_image() {
    let name = "index.docker.io/library/app:1";
    let kind = |kind: &str| json!({"kind": kind, "org.opencontainers.image.ref.name": name});
    for is_first in [true, false] {
        let (_folder, store) = store();
        let mut layout = Layout::default();
        let digest = layout.image(&noise(1, 9_000), kind("dev.cosignproject.cosign/image"));
        let payload = json!({"critical": {"image": {"docker-manifest-digest": digest}}}).to_string();
        let signature = layout.manifest(
            payload.as_bytes(),
            "application/vnd.dev.cosign.simplesigning.v1+json",
            &json!({}),
        );
        layout.list(&signature, kind("dev.cosignproject.cosign/sigs"));
        let attestation = layout.manifest(
            b"{\"payload\":\"e30=\"}",
            "application/vnd.dsse.envelope.v1+json",
            &json!({}),
        );
        layout.list(&attestation, kind("dev.cosignproject.cosign/atts"));
        if is_first {
            layout.listed.reverse();
        }
        let repository = "docker.io/library/app";
        let tags = [".att", ".sig"].map(|ending| format!("sha256-{}{ending}", digest.hex()));
        let names: Vec<String> = ["1"]
            .into_iter()
            .chain(tags.iter().map(String::as_str))
            .map(|tag| format!("{repository}:{tag}"))
            .collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        take(&store, &layout.tar(), &naming(None)).unwrap().expect(&names, &[]);
        assert_eq!(tagged(&store, repository, "1"), Some(digest));
        assert_eq!(tagged(&store, repository, &tags[1]), Some(Digest::sha256(&signature)));
        assert_eq!(tagged(&store, repository, &tags[0]), Some(Digest::sha256(&attestation)));
        let renamed = take(&store, &layout.tar(), &naming(Some("x.example/b:7"))).unwrap();
        assert_eq!(renamed.report.count(Outcome::New), 3);
        assert_eq!(tagged(&store, "x.example/b", "7"), Some(digest));
        assert_eq!(
            tagged(&store, "x.example/b", &tags[1]),
            Some(Digest::sha256(&signature))
        );
    }
}

/// oras lists referrers without a name. Clients find them in the list of their subject.
#[test]
fn referrers_beside_their_image() {
    let (_folder, store) = store();
    let mut layout = Layout::default();
    let digest = layout.image(&noise(1, 9_000), json!({"org.opencontainers.image.ref.name": "1"}));
    let subject = json!({"mediaType": media_type::OCI_MANIFEST, "digest": digest, "size": 1});
    let sbom = layout.manifest(
        b"{\"sbom\":1}",
        "application/spdx+json",
        &json!({"subject": subject, "artifactType": "application/spdx+json", "annotations": {"by": "x"}}),
    );
    layout.list(&sbom, json!({}));
    let signature = layout.manifest(
        b"{\"signature\":1}",
        "application/jose+json",
        &json!({"subject": describe(&sbom, media_type::OCI_MANIFEST)}),
    );
    layout.list(&signature, json!({}));
    let came = take(&store, &layout.tar(), &naming(Some("x.example/a:1"))).unwrap();
    came.expect(&["x.example/a:1"], &[]);
    let listed = |subject: &Digest| {
        let list = store
            .list("x.example/a", &larder::store::ListKey::Referrers(*subject))
            .unwrap();
        list.values().unwrap()
    };
    let mut item = describe(&sbom, media_type::OCI_MANIFEST);
    item["artifactType"] = json!("application/spdx+json");
    item["annotations"] = json!({"by": "x"});
    assert_eq!(listed(&digest), [item]);
    assert_eq!(listed(&Digest::sha256(&sbom))[0]["artifactType"], CONFIG);
    assert!(held(&store, "x.example/a", b"{\"signature\":1}"));
    // Another archive knows of another one: both stay.
    layout.listed.pop();
    layout.listed.pop();
    let more = layout.manifest(b"{\"more\":1}", "application/x", &json!({"subject": subject}));
    layout.list(&more, json!({}));
    take(&store, &layout.tar(), &naming(Some("x.example/a:1"))).unwrap();
    assert_eq!(listed(&digest).len(), 2);
}

/// `skopeo copy … dir:` and `podman save --format docker-dir`; and whatever stands one folder down in a tar.
#[test]
fn folders_and_folders_in_tars() {
    let (_folder, store) = store();
    let layer = noise(1, 9_000);
    let mut layout = Layout::default();
    let manifest = layout.manifest(&layer, TAR, &json!({}));
    let disk = tempfile::tempdir().unwrap();
    let at = |name: &str| disk.path().join(name);
    std::fs::write(at("version"), "Directory Transport Version: 1.1\n").unwrap();
    std::fs::write(at("manifest.json"), &manifest).unwrap();
    for blob in layout.blobs.iter().filter(|blob| **blob != manifest) {
        std::fs::write(at(&Digest::sha256(blob).hex()), blob).unwrap();
    }
    let open = |naming: &foreign::Naming| foreign::open(disk.path(), naming, Arc::new(|_| {}));
    assert!(
        open(&naming(None))
            .err()
            .unwrap()
            .to_string()
            .contains("(--as NAME:TAG takes it)")
    );
    let archive = open(&naming(Some("x.example/a:1"))).unwrap();
    assert_eq!(
        (archive.images()[0].digest, archive.images()[0].platforms.as_slice()),
        (Digest::sha256(&manifest), &["linux/amd64".to_owned()][..])
    );
    // A signature that no registry has a place for is named.
    std::fs::write(at("signature-1"), "gpg").unwrap();
    let archive = open(&naming(Some("x.example/a:1"))).unwrap();
    assert_eq!(archive.not_taken()[0].name.as_deref(), Some("signature-1"));
    // A link leads nowhere else.
    let blob = at(&Digest::sha256(&layer).hex());
    std::fs::rename(&blob, disk.path().join("elsewhere")).unwrap();
    std::os::unix::fs::symlink("elsewhere", &blob).unwrap();
    assert!(open(&naming(Some("x.example/a:1"))).is_ok());
    std::fs::remove_file(&blob).unwrap();
    std::os::unix::fs::symlink("/proc/self/environ", &blob).unwrap();
    let error = open(&naming(Some("x.example/a:1"))).err().unwrap().to_string();
    assert!(
        error.contains("not in the archive") || error.contains("outside"),
        "{error}"
    );

    layout.list(&manifest, json!({"org.opencontainers.image.ref.name": "x.example/b:1"}));
    take(&store, &gzip(&layout.tar_below("some/layout/")), &naming(None))
        .unwrap()
        .expect(&["x.example/b:1"], &[]);
    let two = ended(&[layout.tar_below("one/"), layout.tar_below("two/")].map(|tar| tar[..tar.len() - 1024].to_vec()));
    assert!(refused(&two).contains("in several of its folders"));
}

/// Headers of all kinds of tar: V7, ustar, GNU and pax with long names.
#[test]
fn headers_of_every_age() {
    use tar::EntryType;
    let layer = noise(1, 3_000);
    let long = format!("{}/layer.tar", "d".repeat(120));
    let config = config(&[&layer]);
    let list = list(&[("c.json", Some(&["x.example/a:1"]), &[&long])]);
    let pax = {
        let record = format!(" path={long}\n");
        let length = record.len() + 3;
        format!("{length}{record}")
    };
    let cut = &long[..100];
    type Head = fn() -> tar::Header;
    let old: Head = tar::Header::new_old;
    let cases: [(&str, Head, Vec<Vec<u8>>); 3] = [
        (
            "GNU",
            tar::Header::new_gnu,
            vec![
                entry(
                    "././@LongLink",
                    format!("{long}\0").as_bytes(),
                    EntryType::GNULongName,
                    "",
                    tar::Header::new_gnu(),
                ),
                entry(cut, &layer, EntryType::Regular, "", tar::Header::new_gnu()),
            ],
        ),
        (
            "pax",
            tar::Header::new_ustar,
            vec![
                entry(
                    "PaxHeaders/x",
                    pax.as_bytes(),
                    EntryType::XHeader,
                    "",
                    tar::Header::new_ustar(),
                ),
                entry(cut, &layer, EntryType::Regular, "", tar::Header::new_ustar()),
            ],
        ),
        // Old headers hold no long names.
        ("V7", old, vec![]),
    ];
    for (what, head, long_file) in cases {
        let (_folder, store) = store();
        let (list, layer_file) = match long_file.is_empty() {
            true => (
                list.replace(&long, "layer.tar"),
                vec![entry("layer.tar", &layer, EntryType::Regular, "", head())],
            ),
            false => (list.clone(), long_file),
        };
        let mut entries = vec![entry("c.json", config.as_bytes(), EntryType::Regular, "", head())];
        if what == "V7" {
            // A folder is known by its name alone.
            entries.push(entry("folder/", b"", EntryType::Regular, "", head()));
        }
        entries.extend(layer_file);
        entries.push(entry("manifest.json", list.as_bytes(), EntryType::Regular, "", head()));
        let archive = ended(&entries);
        assert_eq!(&archive[257..262] == b"ustar", what != "V7");
        let disk = tempfile::tempdir().unwrap();
        for (name, bytes) in [("plain", archive.clone()), ("packed", gzip(&archive))] {
            std::fs::write(disk.path().join(name), &bytes).unwrap();
            assert!(foreign::is_foreign(&disk.path().join(name)), "{what} {name}");
        }
        take(&store, &archive, &naming(None))
            .unwrap()
            .expect(&["x.example/a:1"], &[]);
        assert!(held(&store, "x.example/a", &layer), "{what}");
    }
}

#[test]
fn paths_and_links_that_mean_harm() {
    use tar::EntryType;
    let layer = noise(1, 3_000);
    let config = config(&[&layer]);
    let manifest = |layer: &str| {
        file(
            "manifest.json",
            list(&[("c.json", Some(&["x.example/a:1"]), &[layer])]).as_bytes(),
        )
    };
    let with = |more: Vec<Vec<u8>>, layer: &str| {
        ended(&[vec![file("c.json", config.as_bytes()), manifest(layer)], more].concat())
    };
    let hard = |name: &str, target: &str| entry(name, b"", EntryType::Link, target, tar::Header::new_ustar());
    let cases = [
        ("the name \"../x\"", with(vec![file("../x", &layer)], "../x")),
        (
            "the name \"/etc/passwd\"",
            with(vec![file("/etc/passwd", &layer)], "/etc/passwd"),
        ),
        ("leads outside", with(vec![link("l", "../../etc/passwd")], "l")),
        ("leads outside", with(vec![link("a/l", "/etc/passwd")], "a/l")),
        ("the link \"a/l\" leads outside", with(vec![hard("a/l", "../x")], "a/l")),
        ("leads to no end", with(vec![link("l", "m"), link("m", "l")], "l")),
        ("leads to no end", with(vec![link("l", "l")], "l")),
        (
            "is there twice",
            with(vec![file("l", &layer), file("l", &noise(2, 3_000))], "l"),
        ),
        (
            "is there twice",
            with(vec![file("l", &layer), file("l", &layer[1..])], "l"),
        ),
        (
            "is there twice",
            with(vec![file("l", &layer), link("l", "c.json")], "l"),
        ),
        (
            "is there twice",
            with(vec![link("l", "c.json"), hard("l", "manifest.json")], "l"),
        ),
        (
            "its layer \"l\" is not in the archive",
            with(vec![link("l", "nowhere")], "l"),
        ),
        (
            "only files may be inside",
            with(
                vec![entry("l", b"", EntryType::Char, "", tar::Header::new_ustar())],
                "l",
            ),
        ),
        (
            "bytes behind its end",
            [with(vec![file("l", &layer)], "l"), file("m", &layer)].concat(),
        ),
    ];
    for (word, archive) in cases {
        for archive in [archive.clone(), gzip(&archive)] {
            let error = refused(&archive);
            assert!(error.contains(word), "{word}: {error}");
        }
    }
    // The same layer twice is one layer.
    for archive in [
        with(vec![file("l", &layer), file("l", &layer), file("l", &layer)], "l"),
        with(
            vec![file("d", &layer), link("l", "d"), file("d", &layer), hard("l", "d")],
            "l",
        ),
    ] {
        for archive in [archive.clone(), gzip(&archive)] {
            let (_folder, store) = crate::bundle_foreign::store();
            take(&store, &archive, &naming(None))
                .unwrap()
                .expect(&["x.example/a:1"], &[]);
        }
    }
    // A hard link names an entry, wherever it stands itself.
    let (_folder, store) = store();
    let archive = with(vec![file("d/l", &layer), hard("e/f/l", "d/l")], "e/f/l");
    take(&store, &archive, &naming(None))
        .unwrap()
        .expect(&["x.example/a:1"], &[]);
}

#[test]
fn compressed_archives_that_are_not_whole() {
    let mut layout = Layout::default();
    layout.image(
        &noise(1, 300_000),
        json!({"org.opencontainers.image.ref.name": "x.example/a:1"}),
    );
    let archive = layout.tar();
    let (_folder, store) = store();
    // Several members are one archive; zeros that fill a record are nothing.
    let members = [gzip(&archive[..5_000]), gzip(&archive[5_000..]), vec![0; 5_000]].concat();
    take(&store, &members, &naming(None))
        .unwrap()
        .expect(&["x.example/a:1"], &[]);
    for whole in [gzip(&archive), zstd(&archive)] {
        assert!(refused(&whole[..whole.len() / 2]).contains("is the copy complete?"));
        assert!(refused(&whole[..whole.len() - 1]).contains("is the copy complete?"));
        let error = refused(&[whole.as_slice(), b"garbage"].concat());
        assert!(error.contains("stand behind the end"), "{error}");
    }
    let mut damaged = gzip(&archive);
    let at = damaged.len() - 6;
    damaged[at] ^= 1;
    assert!(refused(&damaged).contains("is damaged"));
    assert!(refused(b"BZh91AY&SY and so on").contains("bzip2 -dc FILE | larder bundle import -"));
    assert!(refused(b"\xfd7zXZ\0 and so on").contains("xz -dc FILE | larder bundle import -"));
    assert!(refused(&archive[..archive.len() / 2]).contains("is the copy complete?"));
}

/// Ten GiB of zeros in less than a MiB, as an archive and as a layer of one.
#[test]
fn bombs_of_ten_gigabytes() {
    let frame = zstd(&vec![0; 64 << 20]);
    let bomb: Vec<u8> = frame.repeat(160);
    assert!(bomb.len() < 2 << 20, "{}", bomb.len());
    let head = zstd(&entry("blobs/sha256/x", b"", tar::EntryType::Regular, "", {
        let mut header = tar::Header::new_ustar();
        header.set_size(0);
        header
    }));
    let mut large = tar::Header::new_ustar();
    large.as_old_mut().name[..4].copy_from_slice(b"bomb");
    large.set_entry_type(tar::EntryType::Regular);
    large.set_mode(0o644);
    large.set_size(10 << 30);
    large.set_cksum();
    let archive = [head, zstd(large.as_bytes()), bomb.clone(), zstd(&[0; 1024])].concat();
    assert!(refused(&archive).contains("it is a decompression bomb"));
    let config = config(&[b"x"]);
    let list = list(&[("c.json", Some(&["x.example/a:1"]), &["l"])]);
    let archive = tar(&[
        ("c.json", config.as_bytes()),
        ("l", &bomb),
        ("manifest.json", list.as_bytes()),
    ]);
    assert!(refused(&archive).contains("it is a decompression bomb"));
}

#[test]
fn indexes_that_lie() {
    let mut layout = Layout::default();
    layout.image(
        &noise(1, 9_000),
        json!({"org.opencontainers.image.ref.name": "x.example/a:1"}),
    );
    layout.list(
        b"nowhere",
        json!({"org.opencontainers.image.ref.name": "x.example/b:1"}),
    );
    let other = layout.image(
        &noise(2, 9_000),
        json!({"org.opencontainers.image.ref.name": "x.example/c:1"}),
    );
    layout.blobs.retain(|blob| *blob != noise(2, 9_000));
    let archive = layout.tar();
    let (_folder, store) = store();
    let came = take(&store, &archive, &naming(None)).unwrap();
    came.expect(
        &["x.example/a:1"],
        &["is not in the archive", &format!("of {other} is not in the archive")],
    );
    // Each of ten thousand entries under its own name, and as many names for one.
    let mut many = Layout::default();
    many.image(&noise(1, 900), json!({}));
    let one = many.listed.pop().unwrap();
    for n in 0..10_000 {
        let mut entry = one.clone();
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": format!("x.example/a{n}:1")});
        many.listed.push(entry);
    }
    let disk = tempfile::tempdir().unwrap();
    let path = disk.path().join("many.tar");
    std::fs::write(&path, many.tar()).unwrap();
    let archive = foreign::open(&path, &naming(None), Arc::new(|_| {})).unwrap();
    assert_eq!((archive.images().len(), archive.bytes() < 10_000), (10_000, true));
    // Manifests that name each other without end: their digests cannot be right.
    let mut circle = Layout::default();
    let (a, b) = (Digest::sha256(b"a"), Digest::sha256(b"b"));
    let index = |digest: &Digest| {
        json!({"schemaVersion": 2, "manifests": [{"mediaType": media_type::OCI_INDEX, "digest": digest, "size": 9}]})
            .to_string()
    };
    circle
        .listed
        .push(json!({"mediaType": media_type::OCI_INDEX, "digest": a, "size": 9}));
    let mut entries: Vec<Vec<u8>> = circle.files().iter().map(|(name, bytes)| file(name, bytes)).collect();
    entries.push(file(&format!("blobs/sha256/{}", a.hex()), index(&b).as_bytes()));
    entries.push(file(&format!("blobs/sha256/{}", b.hex()), index(&a).as_bytes()));
    let error = refused(&ended(&entries));
    assert!(error.contains("has other bytes than its digest says"), "{error}");
}

/// Replaces bytes in a layout's blobs, whose files keep the names of the right ones.
fn falsified(layout: &Layout, from: &str, to: &str) -> Vec<u8> {
    let (from, to) = (from.as_bytes(), to.as_bytes());
    let mut files = layout.files();
    let mut count = 0;
    for (_, bytes) in files.iter_mut().filter(|(name, _)| name.starts_with("blobs/")) {
        while let Some(at) = bytes.windows(from.len()).position(|window| window == from) {
            bytes.splice(at..at + from.len(), to.iter().copied());
            count += 1;
        }
    }
    assert!(count > 0, "{from:?}");
    ended(&files.iter().map(|(name, bytes)| file(name, bytes)).collect::<Vec<_>>())
}

/// A manifest whose bytes are not those of its digest says nothing, also where the right ones are cached already.
#[test]
fn false_manifests_and_false_blobs_of_what_is_cached() {
    let (_folder, store) = store();
    let mut layout = Layout::default();
    let layer = noise(1, 9_000);
    let digest = layout.image(&layer, json!({"org.opencontainers.image.ref.name": "x.example/a:1"}));
    let subject = json!({"mediaType": media_type::OCI_MANIFEST, "digest": digest, "size": 1});
    let more = json!({"subject": subject, "artifactType": "application/spdx", "annotations": {"by": "right"}});
    let sbom = layout.manifest(b"{\"sbom\":1}", "application/spdx+json", &more);
    layout.list(&sbom, json!({}));
    let archive = falsified(&layout, "\"right\"", "\"false\"");
    for is_cached in [false, true] {
        let came = take(&store, &archive, &naming(None)).unwrap();
        assert_eq!(came.left.len(), 1, "{is_cached}");
        assert!(
            came.left[0].reason.contains("has other bytes than its digest says"),
            "{:?}",
            came.left
        );
        let listed = store.list("x.example/a", &larder::store::ListKey::Referrers(digest));
        assert!(!format!("{:?}", listed.map(|list| list.values().unwrap())).contains("false"));
        take(&store, &layout.tar(), &naming(None)).unwrap();
    }
    // A platform with false bytes is not one that was left out.
    let index = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [
        describe(&layout.manifest(&noise(2, 900), TAR, &json!({"annotations": {"by": "one"}})), media_type::OCI_MANIFEST),
        describe(&layout.manifest(&noise(3, 900), TAR, &json!({"annotations": {"by": "two"}})), media_type::OCI_MANIFEST),
    ]})
    .to_string();
    layout.blob(index.as_bytes());
    let mut descriptor = describe(index.as_bytes(), media_type::OCI_INDEX);
    descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": "x.example/i:1"});
    layout.listed = vec![descriptor];
    let error = refused(&falsified(&layout, "\"by\":\"two\"", "\"by\":\"owt\""));
    assert!(error.contains("has other bytes than its digest says"), "{error}");
    // A layer that everybody may have: its bytes come anyway, and false ones are reported.
    let mut layout = Layout::default();
    layout.image(&layer, json!({"org.opencontainers.image.ref.name": "x.example/b:1"}));
    let mut archive = layout.tar();
    let at = archive.windows(64).position(|window| window == &layer[..64]).unwrap();
    archive[at] ^= 1;
    let came = take(&store, &archive, &naming(None)).unwrap();
    assert_eq!(came.report.damaged, [Digest::sha256(&layer).to_string()]);
}

/// One entry that cannot be read costs the others nothing.
#[test]
fn an_odd_descriptor_spoils_its_own_entry() {
    let (_folder, store) = store();
    let mut layout = Layout::default();
    let name = |name: &str| json!({"org.opencontainers.image.ref.name": name});
    layout.image(&noise(1, 900), name("x.example/a:1"));
    layout.image(
        &noise(2, 900),
        json!({"org.opencontainers.image.ref.name": "x.example/b:1", "by": null, "n": 1}),
    );
    layout.image(&noise(3, 900), json!({"org.opencontainers.image.ref.name": null}));
    layout.image(&noise(4, 900), Value::Null);
    let mut odd = layout.listed[0].clone();
    odd["digest"] = json!("sha3:0123456789abcdef");
    odd["annotations"] = name("x.example/odd:1");
    layout.listed.push(odd.clone());
    odd["digest"] = json!(7);
    layout.listed.push(odd.clone());
    let came = take(&store, &layout.tar(), &naming(None)).unwrap();
    came.expect(
        &["x.example/a:1", "x.example/b:1"],
        &[
            "gives it no name",
            "gives it no name",
            "x.example/odd:1, other sha3:",
            "x.example/odd:1, other 7",
        ],
    );
    layout.listed = vec![odd];
    assert!(refused(&layout.tar()).contains("nothing in the archive can be taken: x.example/odd:1"));
}

/// A large config that every entry names is read once, and layers share what they may unpack to.
#[test]
fn small_archives_that_cost_much() {
    let config = json!({"architecture": "amd64", "os": "linux", "rootfs": {"diff_ids": []}, "x": "a".repeat(8 << 20)})
        .to_string();
    let images: Vec<Value> = (0..3_000)
        .map(|n| json!({"Config": if n % 2 == 0 { "c.json" } else { "d.json" }, "RepoTags": [format!("x.example/a:t{n}")], "Layers": []}))
        .collect();
    let list = Value::from(images).to_string();
    let archive = ended(&[
        file("c.json", config.as_bytes()),
        link("d.json", "c.json"),
        file("manifest.json", list.as_bytes()),
    ]);
    let disk = tempfile::tempdir().unwrap();
    let path = disk.path().join("save.tar");
    std::fs::write(&path, archive).unwrap();
    let begun = std::time::Instant::now();
    let archive = foreign::open(&path, &naming(None), Arc::new(|_| {})).unwrap();
    assert_eq!(archive.images().len(), 3_000);
    assert!(begun.elapsed().as_secs() < 60, "{:?}", begun.elapsed());
    // Two layers of 600 MiB each: either alone is taken.
    let bombs = [zstd(&vec![0; 64 << 20]).repeat(10), zstd(&vec![1; 64 << 20]).repeat(10)];
    let configs = [b"x", b"y"].map(|content| crate::bundle_foreign::config(&[content]));
    let list = crate::bundle_foreign::list(&[
        ("c.json", Some(&["x.example/a:1"]), &["m"]),
        ("d.json", Some(&["x.example/b:1"]), &["n"]),
    ]);
    let archive = tar(&[
        ("c.json", configs[0].as_bytes()),
        ("d.json", configs[1].as_bytes()),
        ("m", &bombs[0]),
        ("n", &bombs[1]),
        ("manifest.json", list.as_bytes()),
    ]);
    let (_folder, store) = store();
    let error = take(&store, &archive, &naming(None)).err().unwrap().to_string();
    assert!(
        error.contains("its layer \"m\" unpacks to ")
            && error.contains("its layer \"n\" is refused: its zstd stream unpacks to more than"),
        "{error}"
    );
}

/// Command lines that fit no archive end with the status of bad usage, before anything is opened.
#[tokio::test]
async fn command_lines_that_no_archive_fits() {
    let disk = tempfile::tempdir().unwrap();
    let at = |name: &str| disk.path().join(name).to_str().unwrap().to_owned();
    let mut layout = Layout::default();
    layout.image(
        &noise(1, 900),
        json!({"org.opencontainers.image.ref.name": "x.example/a:1"}),
    );
    for name in ["a", "b"] {
        std::fs::write(at(name), layout.tar()).unwrap();
    }
    for command in ["import", "inspect"] {
        let with = |more: &[&str]| {
            let more = more.iter().map(|word| (*word).to_owned());
            ["bundle", command]
                .map(str::to_owned)
                .into_iter()
                .chain(more)
                .collect::<Vec<_>>()
        };
        for (args, word) in [
            (with(&[&at("a"), &at("b")]), "one is imported at a time"),
            (
                with(&[&at("x.001"), &at("x.002"), "--as", "x:1"]),
                "are for one archive",
            ),
            (with(&[&at("a"), "--as", "Bad Name"]), "is no name for an image"),
        ] {
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            let ran = run(disk.path(), &args).await.expect(64);
            assert!(ran.err.contains(word), "{}", ran.err);
        }
    }
    std::fs::write(at("twice"), gzip(&gzip(&layout.tar()))).unwrap();
    let ran = run(disk.path(), &["bundle", "inspect", &at("twice")]).await.expect(1);
    assert!(ran.err.contains("compressed twice, by gzip within gzip"), "{}", ran.err);
}

/// The commands: what is not taken is in the table, in the data and in the exit status, and the option takes it.
#[tokio::test]
async fn nothing_is_dropped_in_silence() {
    let upstream = Upstream::start().await;
    let larder = LarderProcess::start(&upstream, |toml| {
        toml.cache("offline", true);
    })
    .await;
    let disk = tempfile::tempdir().unwrap();
    let at = |name: &str| disk.path().join(name).to_str().unwrap().to_owned();
    let layers = [noise(1, 30_000), noise(2, 20_000)];
    let configs = [config(&[&layers[0]]), config(&[&layers[1]])];
    let list = list(&[("a", Some(&["thing:1"]), &["a.tar.gz"]), ("b", None, &["b.tar.gz"])]);
    let packed = [gzip(&layers[0]), gzip(&layers[1])];
    let archive = tar(&[
        ("a", configs[0].as_bytes()),
        ("b", configs[1].as_bytes()),
        ("a.tar.gz", &packed[0]),
        ("b.tar.gz", &packed[1]),
        ("manifest.json", list.as_bytes()),
    ]);
    std::fs::write(at("save"), gzip(&archive)).unwrap();
    let looked = run(disk.path(), &["bundle", "inspect", &at("save"), "--verify"])
        .await
        .expect(0);
    assert!(
        looked.out.contains("docker.io/library/thing:1") && looked.out.contains("would not be taken: image sha256:"),
        "{}",
        looked.out
    );
    let ran = ask(&larder, &["bundle", "import", &at("save")]).await.expect(1);
    assert!(ran.out.contains("docker.io/library/thing:1: new"), "{}", ran.out);
    assert!(
        ran.out.contains("not taken: image sha256:") && ran.err.contains("has more than was taken"),
        "{} {}",
        ran.out,
        ran.err
    );
    let option = ran
        .out
        .split("(--only ")
        .nth(1)
        .unwrap()
        .split(' ')
        .next()
        .unwrap()
        .to_owned();
    let report = ask(&larder, &["bundle", "import", &at("save"), "--json"])
        .await
        .expect(1)
        .json();
    assert_eq!(
        (&report["not_taken"][0]["kind"], &report["not_taken"][0]["name"]),
        (&json!("image"), &Value::Null),
        "{report}"
    );
    assert!(report["not_taken"][0]["digest"].as_str().unwrap().starts_with(&option));
    let args = ["bundle", "import", &at("save"), "--only", &option, "--as", "thing:2"];
    let ran = ask(&larder, &args).await.expect(0);
    assert!(
        ran.out.contains("docker.io/library/thing:2: new") && !ran.out.contains("not taken"),
        "{}",
        ran.out
    );
    for (tag, layer) in [("1", &packed[0]), ("2", &packed[1])] {
        let manifest = larder.get(manifest_of("library/thing", tag)).await.expect(200).json();
        let digest: Digest = manifest["layers"][0]["digest"].as_str().unwrap().parse().unwrap();
        assert_eq!(digest, Digest::sha256(layer));
        larder.get(blob("library/thing", digest)).await.expect_content(&digest);
    }
}

/// From standard input, as a stream and as a file; a bundle and what is none, compressed and not; and a compressed
/// bundle over the API.
#[tokio::test]
async fn from_standard_input_and_over_the_api() {
    let upstream = Upstream::start().await;
    let larder = LarderProcess::start(&upstream, |toml| {
        toml.cache("offline", true);
    })
    .await;
    let disk = tempfile::tempdir().unwrap();
    let at = |name: &str| disk.path().join(name).to_str().unwrap().to_owned();
    let admin = format!("http://{}", larder.admin());
    let mut layout = Layout::default();
    layout.image(
        &noise(1, 300_000),
        json!({"org.opencontainers.image.ref.name": "docker.io/team/a:1"}),
    );
    let archive = layout.tar();
    let import = ["bundle", "import", "-", "--admin", &admin];
    let cases = [
        ("new", gzip(&archive)),
        ("unchanged", zstd(&archive)),
        ("unchanged", archive.clone()),
    ];
    for (outcome, bytes) in cases {
        let args = [&import[..], &["--json"]].concat();
        let report = run_fed(larder.folder(), &args, bytes).await.expect(0).json();
        assert_eq!(report["images"][0]["outcome"], outcome, "{report}");
    }
    // A bundle needs no file in between, and stays one: nobody signed it.
    ask(&larder, &["bundle", "create", &at("b.tar"), "docker.io/team/a:1"])
        .await
        .expect(0);
    let bundle = std::fs::read(at("b.tar")).unwrap();
    for bytes in [bundle.clone(), gzip(&bundle), zstd(&bundle)] {
        let refused = run_fed(larder.folder(), &import, bytes.clone()).await.expect(1);
        assert!(refused.err.contains("--unsigned"), "{}", refused.err);
        let args = [&import[..], &["--unsigned"]].concat();
        run_fed(larder.folder(), &args, bytes.clone()).await.expect(0);
        std::fs::write(at("c"), &bytes).unwrap();
        let shown = run(disk.path(), &["bundle", "inspect", &at("c"), "--verify"])
            .await
            .expect(0);
        assert!(shown.out.contains("all of it is as its digests say"), "{}", shown.out);
    }
    // A name whose registry is no upstream here comes in, and that nobody can pull it is said.
    let args = [&import[..], &["--as", "registry.example/a:1"]].concat();
    let ran = run_fed(larder.folder(), &args, gzip(&archive)).await.expect(0);
    assert!(
        ran.err.contains("cannot be pulled by anybody: registry.example/a"),
        "{}",
        ran.err
    );
    // A pipe that has a name: `<(docker save …)`.
    let pipe = disk.path().join("pipe");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    let writing = std::thread::spawn({
        let (pipe, bytes) = (pipe.clone(), gzip(&archive));
        move || std::fs::write(pipe, bytes)
    });
    let ran = ask(&larder, &["bundle", "import", pipe.to_str().unwrap()])
        .await
        .expect(0);
    assert!(ran.out.contains("1 unchanged"), "{}", ran.out);
    writing.join().unwrap().unwrap();
    let cut = run_fed(larder.folder(), &import, gzip(&archive)[..100_000].to_vec())
        .await
        .expect(1);
    assert!(cut.err.contains("is the copy complete?"), "{}", cut.err);
    for (kind, bytes) in [
        ("application/gzip", gzip(&bundle)),
        ("application/x-tar", zstd(&bundle)),
        ("application/zstd", bundle.clone()),
    ] {
        let sent = Ask::new("POST", "/api/v1/bundle/import?unsigned=true")
            .header("Content-Type", kind)
            .body(bytes);
        let report = sent.send(larder.admin()).await.expect(200).json();
        assert_eq!(report["images"][0]["outcome"], "unchanged", "{report}");
    }
    let bomb = zstd(&vec![0; 64 << 20]).repeat(160);
    let sent = Ask::new("POST", "/api/v1/bundle/import?unsigned=true")
        .header("Content-Type", "application/zstd")
        .body([zstd(&bundle[..bundle.len() - 1024]), bomb].concat());
    let answer = sent.send(larder.admin()).await;
    assert!(answer.status >= 400, "{}", answer.status);
}
