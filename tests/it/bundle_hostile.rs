//! Archives that mean harm: refused with a reason, and nothing of them kept (R-X24, L8).

use std::io::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use larder::bundle::catalog::{Blob, Catalog, Image, VERSION};
use larder::bundle::import::{Options, import};
use larder::bundle::report::{Outcome, Report};
use larder::bundle::{BundleError, Input, foreign, input, pipe};
use larder::config::Config;
use larder::oci::{Digest, media_type};
use larder::store::Store;
use proptest::prelude::*;
use serde_json::json;
use tempfile::TempDir;

fn store() -> (TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let text = format!("[cache]\npath = {:?}\nmin_free = \"0B\"\n", folder.path().join("cache"));
    let store = Store::open(&Config::from_toml(&text).unwrap()).unwrap();
    (folder, store)
}

/// Every blob in any state: none means that nothing is kept.
fn kept(folder: &TempDir) -> usize {
    ["blobs/sha256", "blobs/sha512", "staging"]
        .map(|name| {
            std::fs::read_dir(folder.path().join("cache").join(name))
                .unwrap()
                .count()
        })
        .iter()
        .sum()
}

fn take(store: &Store, bytes: &[u8]) -> Result<Report, BundleError> {
    let options = Options {
        unsigned: true,
        ..Options::default()
    };
    let mut input = bytes;
    import(store, &mut input, &options, &mut |_| {})
}

struct Made {
    layer: Vec<u8>,
    manifest: Vec<u8>,
    catalog: Catalog,
}

fn made() -> Made {
    let layer = b"layer".repeat(300);
    let describe =
        |bytes: &[u8], kind: &str| json!({"mediaType": kind, "digest": Digest::sha256(bytes), "size": bytes.len()});
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_MANIFEST,
        "config": describe(&layer, "application/vnd.oci.image.config.v1+json"),
        "layers": [describe(&layer, "application/vnd.oci.image.layer.v1.tar")],
    })
    .to_string()
    .into_bytes();
    let blob = |bytes: &[u8], media_type: Option<&str>| Blob {
        digest: Digest::sha256(bytes),
        size: bytes.len() as u64,
        media_type: media_type.map(str::to_owned),
        image: 0,
        volume: 1,
        pieces: Vec::new(),
    };
    let catalog = Catalog {
        larder_bundle: VERSION,
        created_ms: 1,
        since: None,
        volumes: 1,
        images: vec![Image {
            repository: "docker.io/library/a".to_owned(),
            tag: Some("1".to_owned()),
            digest: Digest::sha256(&manifest),
            media_type: media_type::OCI_MANIFEST.to_owned(),
            size: manifest.len() as u64,
            platforms: Vec::new(),
            absent: Vec::new(),
            checked_ms: Some(1),
            private: false,
            referrers: Vec::new(),
        }],
        blobs: vec![blob(&layer, None), blob(&manifest, Some(media_type::OCI_MANIFEST))],
        omitted: Default::default(),
    };
    Made {
        layer,
        manifest,
        catalog,
    }
}

/// One header and its content, padded.
fn entry(name: &str, bytes: &[u8], change: impl FnOnce(&mut tar::Header)) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(0o644);
    header.set_size(bytes.len() as u64);
    change(&mut header);
    header.set_cksum();
    let mut all = header.as_bytes().to_vec();
    all.extend_from_slice(bytes);
    all.resize(all.len().next_multiple_of(512), 0);
    all
}

impl Made {
    fn head(&self) -> Vec<u8> {
        [
            entry("larder/catalog.json", &self.catalog.to_bytes().unwrap(), |_| {}),
            entry("oci-layout", b"{}", |_| {}),
            entry("index.json", b"{}", |_| {}),
        ]
        .concat()
    }

    fn layer(&self) -> Vec<u8> {
        entry(&self.catalog.blobs[0].name(), &self.layer, |_| {})
    }

    fn manifest(&self) -> Vec<u8> {
        entry(&self.catalog.blobs[1].name(), &self.manifest, |_| {})
    }

    fn whole(&self) -> Vec<u8> {
        [self.head(), self.layer(), self.manifest(), vec![0; 1024]].concat()
    }
}

/// A manifest that names more than is allowed ends it, as one that is none does.
#[test]
fn a_manifest_that_names_too_much() {
    let (made, (folder, store)) = (made(), store());
    let bundle = made.whole();
    let take = |most| {
        let options = Options {
            unsigned: true,
            manifest_descriptors: Some(most),
            ..Options::default()
        };
        import(&store, &mut &bundle[..], &options, &mut |_| {})
    };
    let error = take(1).unwrap_err().to_string();
    let want = "it has 2 descriptors, more than the 1 that limits.manifest_descriptors allows";
    assert!(error.contains(want), "{error}");
    assert_eq!(kept(&folder), 0);
    assert_eq!(take(2).unwrap().count(Outcome::New), 1);
}

/// A manifest that is larger than is allowed ends it before a byte is kept; one that is cached is not looked at.
#[test]
fn a_manifest_that_is_too_large() {
    let (made, (folder, store)) = (made(), store());
    let bundle = made.whole();
    let size = made.manifest.len();
    let take = |most| {
        let options = Options {
            unsigned: true,
            manifest_size: Some(most),
            ..Options::default()
        };
        import(&store, &mut &bundle[..], &options, &mut |_| {})
    };
    let error = take(size - 1).unwrap_err().to_string();
    let want = format!(
        "it has {size} bytes, more than the {} that limits.manifest_size allows",
        size - 1
    );
    assert!(error.contains(&want), "{error}");
    assert_eq!(kept(&folder), 0);
    assert_eq!(take(size).unwrap().count(Outcome::New), 1);
    assert_eq!(take(size - 1).unwrap().count(Outcome::Unchanged), 1);
}

/// Another image under the same tag, with this date.
fn dated(checked_ms: Option<u64>, content: &str) -> Made {
    let mut other = made();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_MANIFEST,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": Digest::sha256(&other.layer), "size": other.layer.len()},
        "layers": [],
        "annotations": {"content": content},
    });
    other.manifest = manifest.to_string().into_bytes();
    let (digest, size) = (Digest::sha256(&other.manifest), other.manifest.len() as u64);
    let image = &mut other.catalog.images[0];
    (image.digest, image.size, image.checked_ms) = (digest, size, checked_ms);
    (other.catalog.blobs[1].digest, other.catalog.blobs[1].size) = (digest, size);
    other
}

/// A bundle that claims to be of another century holds no later one back.
#[test]
fn dates_from_the_future_hold_nothing_back() {
    const YEAR_MS: u64 = 365 * 24 * 3_600_000;
    let outcome = |store: &Store, made: &Made| take(store, &made.whole()).unwrap().images[0].outcome;
    let here = |store: &Store| store.tag("docker.io/library/a", "1").unwrap();
    for ahead in [YEAR_MS, 80 * YEAR_MS, u64::MAX / 2] {
        let (_folder, store) = store();
        let before = larder::store::unix_ms();
        let far = dated(Some(before + ahead), "far");
        assert_eq!(outcome(&store, &far), Outcome::New);
        let taken = here(&store);
        assert!(
            (before..=larder::store::unix_ms()).contains(&taken.checked_ms),
            "{}",
            taken.checked_ms
        );
        // The next one is of today, and newer.
        let next = dated(Some(larder::store::unix_ms()), "next");
        assert_eq!(outcome(&store, &next), Outcome::Moved);
        assert_eq!(here(&store).digest, Digest::sha256(&next.manifest));
        // What is older is older as before.
        assert_eq!(outcome(&store, &dated(Some(before - YEAR_MS), "old")), Outcome::Older);
        // A record of an earlier release is dated as the bundle was. It heals with whatever comes.
        let record = larder::store::TagRecord {
            checked_ms: before + ahead,
            ..(*here(&store)).clone()
        };
        store.put_tag_durably("docker.io/library/a", "1", record.clone());
        let same = outcome(&store, &next);
        assert_eq!(
            (same, here(&store).checked_ms <= larder::store::unix_ms()),
            (Outcome::Unchanged, true)
        );
        store.put_tag_durably("docker.io/library/a", "1", record);
        let signed = dated(Some(larder::store::unix_ms()), "signed");
        assert_eq!(outcome(&store, &signed), Outcome::Moved);
        assert!(here(&store).checked_ms <= larder::store::unix_ms());
    }
}

/// A sender that sends nothing more loses its turn; what it had sent whole is kept, and another one's import runs.
#[tokio::test]
async fn a_silent_sender_keeps_nobody_waiting() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let upstream = crate::support::upstream::Upstream::start().await;
    let timing = larder::pull::Timing {
        import_silence: std::time::Duration::from_millis(300),
        ..crate::support::larder::quick()
    };
    let larder = crate::support::larder::Larder::start_timed(&upstream, timing, |_| {}).await;
    let whole = made().whole();
    // The catalogue and the first blob, and then nothing.
    let sent = made().head().len() + made().layer().len() + 10;
    let path = "/api/v1/bundle/import?unsigned=true";
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nContent-Type: application/x-tar\r\nContent-Length: {}\r\n\r\n",
        crate::support::admin_token(larder.admin().port()).unwrap(),
        whole.len()
    );
    let mut silent = tokio::net::TcpStream::connect(larder.admin()).await.unwrap();
    silent.write_all(head.as_bytes()).await.unwrap();
    silent.write_all(&whole[..sent]).await.unwrap();
    let mut answer = Vec::new();
    crate::support::within("an end of its turn", silent.read_to_end(&mut answer))
        .await
        .unwrap();
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(
        answer.contains("too-slow") && answer.contains("nothing came for"),
        "{answer}"
    );
    assert!(larder.store().tag("docker.io/library/a", "1").is_none());
    // Another sender's turn; the blob that came whole is not written again.
    let next = crate::support::client::Ask::new("POST", path)
        .header("Content-Type", "application/x-tar")
        .body(whole);
    let report = next.send(larder.admin()).await.expect(200).json();
    assert_eq!(
        (&report["images"][0]["outcome"], &report["held_blobs"]),
        (&json!("new"), &json!(1))
    );
}

#[test]
fn harm_is_refused_and_nothing_kept() {
    let made = made();
    let (_folder, well) = store();
    assert_eq!(take(&well, &made.whole()).unwrap().count(Outcome::New), 1);
    let (layer, manifest, head, end) = (made.layer(), made.manifest(), made.head(), vec![0; 1024]);
    let name = made.catalog.blobs[1].name();
    let pax = |text: &str| {
        let line = format!("{} {text}\n", text.len() + 4);
        assert_eq!(line.len(), text.len() + 4, "two digits");
        entry("pax", line.as_bytes(), |header| {
            header.set_entry_type(tar::EntryType::XHeader)
        })
    };
    let kind = |kind| entry(&name, b"", move |header| header.set_entry_type(kind));
    let cases: Vec<(&str, &str, Vec<u8>)> = vec![
        ("traversal", "expected", entry("../../etc/passwd", b"x", |_| {})),
        ("absolute", "expected", entry("/etc/passwd", b"x", |_| {})),
        ("a symbolic link", "expected", kind(tar::EntryType::Symlink)),
        ("a hard link", "expected", kind(tar::EntryType::Link)),
        ("a device", "only files", kind(tar::EntryType::Char)),
        ("a pipe", "only files", kind(tar::EntryType::Fifo)),
        ("a sparse file", "only files", kind(tar::EntryType::GNUSparse)),
        ("a blob twice", "expected", layer.clone()),
        ("a smaller size", "expected", entry(&name, &made.manifest[1..], |_| {})),
        (
            "a larger size",
            "expected",
            entry(&name, &made.manifest, |header| header.set_size(1 << 40)),
        ),
        ("two sizes", "by another", [pax("size=123"), manifest.clone()].concat()),
        (
            "a sparse pax",
            "sparse",
            [pax("GNU.sparse.major=1"), manifest.clone()].concat(),
        ),
        (
            "two names",
            "expected",
            [pax("path=../../x"), manifest.clone()].concat(),
        ),
        (
            "a global size",
            "global",
            [
                entry("pax", b"12 size=123\n", |h| {
                    h.set_entry_type(tar::EntryType::XGlobalHeader)
                }),
                manifest.clone(),
            ]
            .concat(),
        ),
        (
            "one entry more",
            "not in its catalogue",
            [manifest.clone(), entry("x", b"", |_| {})].concat(),
        ),
        ("a wrong checksum", "checksum", {
            let mut bytes = manifest.clone();
            bytes[0] ^= 1;
            bytes
        }),
        (
            "bytes behind its end",
            "behind its end",
            [manifest.clone(), vec![0; 1024], b"x".repeat(512)].concat(),
        ),
        ("its end too early", "end", Vec::new()),
    ];
    for (what, word, rest) in cases {
        let (folder, store) = store();
        let bytes = [head.clone(), layer.clone(), rest, end.clone()].concat();
        let error = take(&store, &bytes).expect_err(what);
        assert!(matches!(error, BundleError::Hostile(_)), "{what}: {error}");
        assert!(error.to_string().contains(word), "{what}: {error}");
        assert_eq!((kept(&folder), store.usage().blobs), (0, 0), "{what}");
    }
}

/// Ten million entries, of which one is read.
#[test]
fn endless_archives_end_early() {
    struct Endless(Vec<u8>, usize, u64);
    impl std::io::Read for Endless {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            self.2 += 1;
            assert!(self.2 < 10_000, "it is read on and on");
            let count = buffer.len().min(self.0.len() - self.1);
            buffer[..count].copy_from_slice(&self.0[self.1..self.1 + count]);
            self.1 = (self.1 + count) % self.0.len();
            Ok(count)
        }
    }
    let (folder, store) = store();
    let made = made();
    let endless = Endless(entry("blobs/sha256/x", b"", |_| {}), 0, 0);
    let mut input = input::Stream(std::io::Cursor::new(made.head()).chain(endless));
    use std::io::Read as _;
    let options = Options {
        unsigned: true,
        ..Options::default()
    };
    assert!(matches!(
        import(&store, &mut input, &options, &mut |_| {}),
        Err(BundleError::Hostile(_))
    ));
    assert_eq!(kept(&folder), 0);
}

/// A few KiB that unpack to half a gigabyte: read as far as the catalogue allows.
#[test]
fn a_bomb_does_not_go_off() {
    let made = made();
    let disk = tempfile::tempdir().unwrap();
    let path = disk.path().join("bomb.tar.zst");
    let mut zstd = zstd::Encoder::new(std::fs::File::create(&path).unwrap(), 3).unwrap();
    zstd.write_all(&[made.head(), made.layer(), made.manifest()].concat())
        .unwrap();
    let zeros = vec![0; 1 << 20];
    for _ in 0..512 {
        zstd.write_all(&zeros).unwrap();
    }
    zstd.finish().unwrap();
    let (folder, store) = store();
    let mut input = input::open(&[path]).unwrap();
    let options = Options {
        unsigned: true,
        ..Options::default()
    };
    let error = import(&store, &mut *input, &options, &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("behind its end"), "{error}");
    assert_eq!(kept(&folder), 0);
}

/// An archive of nobody knows whom names the digest of a private layer, with other bytes under it.
#[test]
fn a_digest_is_no_key() {
    let (_folder, store) = store();
    let made = made();
    let digest = made.catalog.blobs[0].digest;
    let secret = "docker.io/library/secret";
    let mut writer = store.stage(secret, &digest).unwrap();
    writer.append(&[Bytes::from(made.layer.clone())]).unwrap();
    writer.commit(secret).unwrap();
    store.set_private(secret, true);
    let wrong = vec![b'x'; made.layer.len()];
    let bytes = [
        made.head(),
        entry(&made.catalog.blobs[0].name(), &wrong, |_| {}),
        made.manifest(),
        vec![0; 1024],
    ]
    .concat();
    let report = take(&store, &bytes).unwrap();
    assert_eq!(report.images[0].outcome, Outcome::Incomplete);
    assert!(!store.linked("docker.io/library/a", &digest));
    assert_eq!(report.damaged, [digest.to_string()]);
    // Nor when it leaves the layer out.
    let mut without = made;
    let layer = without.catalog.blobs.remove(0);
    without.catalog.omitted = serde_json::from_value(json!({"sha256": base64(layer.digest.hash())})).unwrap();
    let name = without.catalog.blobs[0].name();
    let bytes = [without.head(), entry(&name, &without.manifest, |_| {}), vec![0; 1024]].concat();
    assert_eq!(take(&store, &bytes).unwrap().images[0].outcome, Outcome::Incomplete);
    assert!(!store.linked("docker.io/library/a", &digest));
    // With its bytes, whoever has them has nothing to gain.
    let report = take(&store, &self::made().whole()).unwrap();
    assert_eq!(report.images[0].outcome, Outcome::New);
    assert!(store.linked("docker.io/library/a", &digest));
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// Some bytes changed, some cut off: never a panic, and what is shown is whole.
    #[test]
    fn changed_archives(changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4), cut in proptest::option::of(any::<prop::sample::Index>())) {
        let made = made();
        let mut bytes = made.whole();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let (folder, store) = store();
        match take(&store, &bytes) {
            Ok(report) => for row in &report.images {
                if row.outcome == Outcome::New {
                    let digest: Digest = row.digest.parse().unwrap();
                    let parts = store.reach(&digest);
                    prop_assert!(parts.iter().all(|part| part.held.is_some()));
                }
            },
            Err(BundleError::Hostile(_) | BundleError::NotABundle(_)) => prop_assert_eq!(kept(&folder), 0),
            Err(_) => prop_assert!(store.image_names().is_empty()),
        }
    }

    /// The same for archives of other tools.
    #[test]
    fn changed_layouts(changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4)) {
        let made = made();
        let index = json!({"schemaVersion": 2, "manifests": [{"mediaType": media_type::OCI_MANIFEST, "digest": made.catalog.images[0].digest, "size": made.manifest.len()}]});
        let mut bytes = [entry("oci-layout", b"{}", |_| {}), entry("index.json", index.to_string().as_bytes(), |_| {}), made.layer(), made.manifest(), vec![0; 1024]].concat();
        let is_changed = !changes.is_empty();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let disk = tempfile::tempdir().unwrap();
        let path = disk.path().join("a.tar");
        std::fs::write(&path, &bytes).unwrap();
        let (_folder, store) = store();
        let naming = foreign::Naming { name: Some("x.example/a:1".to_owned()), only: Vec::new() };
        let opened = foreign::open(&path, &naming, Arc::new(|_| {}));
        prop_assert!(is_changed || opened.is_ok());
        if let Ok(archive) = opened {
            let (sender, mut reader) = pipe::pipe();
            let telling = std::thread::spawn(move || archive.write(sender));
            let options = Options { unsigned: true, ..Options::default() };
            let outcome = import(&store, &mut reader as &mut dyn Input, &options, &mut |_| {});
            drop(reader);
            telling.join().unwrap();
            prop_assert!(is_changed || outcome.unwrap().is_whole());
        }
    }
}
