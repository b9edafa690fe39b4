//! Harnesses for archives, catalogues, receipts and signatures: files that came from somewhere.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::io::{Cursor, Read as _};
use std::sync::OnceLock;

use minisign::{KeyPair, SignatureBox};

use super::archive::{BLOCK, Kind, Reader, Writer};
use super::catalog::{Base, Blob, Catalog, Image, Piece, Referrers, Since, VERSION, check_repository};
use super::error::BundleError;
use super::inspect;
use super::pack::Packed;
use super::receipt::{Known, Receipt};
use super::sign::{PublicKey, verify};
use super::unpack::{Compression, Limits as UnpackLimits, Unpacked};
use crate::fuzzing::{Harness, check_bounded, check_stays_inside, text};
use crate::oci::{Digest, Tag, media_type};

pub(crate) const HARNESSES: &[Harness] = &[
    Harness {
        name: "archive",
        run: archive,
        seeds: archive_seeds,
        words: &["\0", "20 path=../x\n", "ustar", "0", "a", "larder/catalog.json"],
    },
    Harness {
        name: "catalog",
        run: catalog,
        seeds: || {
            let increment = catalog_of(2);
            let plain = catalog_of(0);
            [plain, increment]
                .iter()
                .map(|catalog| catalog.to_bytes().unwrap())
                .collect()
        },
        words: &[
            "{",
            "[",
            "\"blobs\":[",
            "{\"digest\":\"\"},",
            "\"",
            "0,",
            "1e9",
            "\\u0000",
        ],
    },
    Harness {
        name: "receipt",
        run: receipt,
        seeds: || {
            let digest = Digest::sha256(b"x");
            let receipt = Receipt {
                larder_receipt: 1,
                created_ms: 5,
                site: "ward 3".to_owned(),
                blobs: Packed::of(&BTreeSet::from([digest])),
                tags: [("docker.io/library/a:1".to_owned(), digest)].into(),
                wishes: Vec::new(),
            };
            vec![serde_json::to_vec(&receipt).unwrap(), catalog_of(0).to_bytes().unwrap()]
        },
        words: &[
            "{",
            "[",
            "\"larder_receipt\":1,",
            "\"sha256\":\"",
            "AAAA",
            "\"",
            "=",
            "{},",
        ],
    },
    Harness {
        name: "unpack",
        run: unpack,
        seeds: || {
            let content = b"content ".repeat(40);
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            std::io::Write::write_all(&mut gzip, &content).unwrap();
            let gzip = gzip.finish().unwrap();
            let zstd = zstd::encode_all(content.as_slice(), 3).unwrap();
            let skippable = b"\x50\x2a\x4d\x18\x04\0\0\0note".to_vec();
            vec![
                gzip.clone(),
                zstd.clone(),
                [gzip, vec![0; 600]].concat(),
                [skippable, zstd].concat(),
            ]
        },
        words: &["\u{1f}", "\0", "\u{8}", "P*M\u{18}"],
    },
    Harness {
        name: "signature",
        run: signature,
        seeds: || {
            let signers = signers();
            let texts = [signers.public.to_text(), signers.signature.clone()].map(String::into_bytes);
            let mut seeds = Vec::from(texts);
            seeds.push(b"untrusted comment: minisign public key\nRWnonsense\n".to_vec());
            seeds.push(b"volume 2 of 5; the others are needed too".to_vec());
            seeds
        },
        words: &[
            "untrusted comment: ",
            "\n",
            "trusted comment: ",
            "RW",
            "AAAA",
            "=",
            "volume 1 of 2;",
            "\u{202e}",
        ],
    },
];

fn catalog_of(pieces: u64) -> Catalog {
    let (digest, layer) = (Digest::sha256(b"m"), Digest::sha256(b"l"));
    let blob = |digest, size, media_type: Option<&str>| Blob {
        digest,
        size,
        media_type: media_type.map(str::to_owned),
        image: 0,
        volume: 1,
        pieces: Vec::new(),
    };
    let piece = |n: u64| Piece {
        size: 5,
        digest: Digest::sha256(&n.to_le_bytes()),
    };
    let large = Blob {
        pieces: (0..pieces).map(piece).collect(),
        ..blob(layer, 5 * pieces.max(1), None)
    };
    Catalog {
        larder_bundle: VERSION,
        created_ms: 7,
        since: (pieces > 0).then_some(Since {
            what: Base::Receipt,
            digest: layer,
            saved_bytes: 9,
        }),
        volumes: u32::try_from(pieces.max(1)).unwrap(),
        images: vec![Image {
            repository: "docker.io/library/alpine".to_owned(),
            tag: Some("3.22".to_owned()),
            digest,
            media_type: media_type::OCI_MANIFEST.to_owned(),
            size: 1,
            platforms: vec!["linux/amd64".to_owned()],
            absent: vec![Digest::sha256(b"a")],
            checked_ms: Some(7),
            private: false,
            referrers: vec![Referrers {
                subject: digest,
                checked_ms: 1,
                items: vec![serde_json::json!({ "digest": layer })],
            }],
        }],
        blobs: vec![large, blob(digest, 1, Some(media_type::OCI_MANIFEST))],
        omitted: Packed::of(&BTreeSet::from([Digest::sha256(b"o")])),
    }
}

/// One header with its content, as other tools write it.
fn entry(kind: tar::EntryType, name: &str, link: &str, bytes: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    let place = &mut header.as_old_mut().name;
    let len = name.len().min(place.len());
    place[..len].copy_from_slice(&name.as_bytes()[..len]);
    if !link.is_empty() {
        header.set_link_name_literal(link).unwrap();
    }
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_size(bytes.len() as u64);
    header.set_cksum();
    let mut all = header.as_bytes().to_vec();
    all.extend_from_slice(bytes);
    all.resize(all.len().next_multiple_of(512), 0);
    all
}

fn archive_seeds() -> Vec<Vec<u8>> {
    use tar::EntryType;
    let mut own = Writer::new(Vec::new());
    own.file("larder/catalog.json", b"{}").unwrap();
    own.file(&format!("blobs/sha256/{}", "a".repeat(120)), &[7; 700])
        .unwrap();
    own.file("empty", b"").unwrap();
    own.end().unwrap();
    let others = [
        entry(EntryType::Directory, "blobs/", "", b""),
        entry(
            EntryType::XHeader,
            "pax",
            "",
            b"24 path=blobs/some/name\n20 mtime=1.123456789\n",
        ),
        entry(EntryType::Regular, "short", "", b"content"),
        entry(EntryType::GNULongName, "././@LongLink", "", b"a/long/name\0"),
        entry(EntryType::Regular, "a/long/na", "", &[1; 513]),
        entry(EntryType::Symlink, "ab/layer.tar", "../cd/layer.tar", b""),
        entry(EntryType::XGlobalHeader, "pax_global", "", b"16 comment=abc\n\n"),
        vec![0; 1024],
    ]
    .concat();
    let pax = [
        entry(EntryType::XHeader, "pax", "", b"10 size=7\n"),
        entry(EntryType::Regular, "x", "", b"content"),
        entry(EntryType::XHeader, "pax", "", b"30 GNU.sparse.major=1234567890\n"),
        entry(EntryType::Regular, "y", "", b""),
        vec![0; 1024],
    ]
    .concat();
    let own = own.into_sink();
    let two = [own.as_slice(), &others].concat();
    // The first byte: whether checksums are mended after mutation, which else would stop at the first header.
    let mut seeds: Vec<Vec<u8>> = [&own, &others, &pax, &two]
        .map(|bytes| [b"m", bytes.as_slice()].concat())
        .to_vec();
    seeds.push([b"r", own.as_slice()].concat());
    seeds
}

/// Makes the checksums right, as far as headers can be found.
pub(super) fn mend(bytes: &mut [u8]) {
    let mut at = 0;
    while let Some(block) = bytes.get_mut(at..at + 512) {
        at += 512;
        if block.iter().all(|byte| *byte == 0) {
            continue;
        }
        let mut header = tar::Header::new_old();
        header.as_mut_bytes().copy_from_slice(block);
        header.set_cksum();
        block.copy_from_slice(header.as_bytes());
        let Ok(size) = header.entry_size() else { return };
        let Some(next) = usize::try_from(size)
            .ok()
            .and_then(|size| size.checked_next_multiple_of(512))
        else {
            return;
        };
        at = at.saturating_add(next);
    }
}

#[derive(Debug, PartialEq, Eq)]
struct File {
    name: String,
    bytes: Vec<u8>,
}

/// All of one archive; folders and links only by their names.
fn read_all(mut bytes: &[u8]) -> Result<(Vec<File>, Vec<String>), BundleError> {
    let whole = bytes.len() as u64;
    let (mut files, mut others) = (Vec::new(), Vec::new());
    let mut reader = Reader::new(&mut bytes);
    while let Some(entry) = reader.entry()? {
        assert!(!entry.name.is_empty() && !entry.name.contains('\0'), "{entry:?}");
        assert!(entry.offset <= whole && entry.offset % BLOCK == 0, "{entry:?}");
        match entry.kind {
            Kind::File => {
                let bytes = reader.all(entry.size)?;
                assert_eq!(bytes.len() as u64, entry.size);
                files.push(File {
                    name: entry.name,
                    bytes,
                });
            }
            Kind::Folder | Kind::Link(_) | Kind::HardLink(_) => {
                assert_eq!((entry.size, reader.left()), (0, 0), "only files have content");
                others.push(entry.name);
            }
        }
    }
    reader.end()?;
    Ok((files, others))
}

/// What this reader takes, another one reads alike: an archive that two tools see differently is refused.
fn archive(data: &[u8]) {
    let Some((how, bytes)) = data.split_first() else { return };
    let mut bytes = bytes.to_vec();
    if *how == b'm' {
        mend(&mut bytes);
    }
    let (files, others) = match read_all(&bytes) {
        Ok(found) => found,
        Err(error) => return check_bounded(error),
    };
    let mut other = tar::Archive::new(bytes.as_slice());
    let (mut same, mut rest) = (Vec::new(), Vec::new());
    for entry in other.entries().expect("entries") {
        let mut entry = entry.expect("an entry that was accepted");
        let name = String::from_utf8(entry.path_bytes().into_owned()).expect("a name that was accepted");
        // Old tars mark a folder by its name alone.
        match entry.header().entry_type() {
            tar::EntryType::Regular | tar::EntryType::Continuous if !name.ends_with('/') => {
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes).expect("its bytes");
                same.push(File { name, bytes });
            }
            tar::EntryType::XGlobalHeader => {}
            _ => rest.push(name),
        }
    }
    assert_eq!(same, files);
    assert_eq!(rest, others);
    // Written by our own writer, it says the same.
    let mut writer = Writer::new(Vec::new());
    for file in &files {
        writer.file(&file.name, &file.bytes).unwrap();
    }
    writer.end().unwrap();
    let (again, _) = read_all(&writer.into_sink()).expect("our own archive");
    assert_eq!(again, files);
}

/// A stream unpacks to the same bytes in other pieces, within its limits, and its errors are short.
fn unpack(data: &[u8]) {
    const LIMITS: UnpackLimits = UnpackLimits {
        free: 1 << 20,
        ratio: 100,
        window_log: 20,
    };
    let Some(compression) = Compression::of(data) else {
        return;
    };
    let read = |piece: usize| -> std::io::Result<Vec<u8>> {
        let mut unpacked = Unpacked::new(data, compression, LIMITS)?;
        let (mut all, mut buffer) = (Vec::new(), vec![0; piece]);
        loop {
            match unpacked.read(&mut buffer)? {
                0 => return Ok(all),
                count => all.extend_from_slice(&buffer[..count]),
            }
            assert!(all.len() as u64 <= LIMITS.free + LIMITS.ratio * data.len() as u64 + piece as u64);
        }
    };
    match (read(4096), read(64 << 10)) {
        (Ok(one), Ok(other)) => assert_eq!(one, other),
        (Err(one), Err(_)) => check_bounded(one),
        (one, other) => panic!("{:?} in small pieces, {:?} in large ones", one.is_ok(), other.is_ok()),
    }
}

fn catalog(data: &[u8]) {
    let catalog = match Catalog::from_bytes(data) {
        Ok(catalog) => catalog,
        Err(error) => return check_bounded(error),
    };
    assert_eq!(catalog.larder_bundle, VERSION);
    let written = catalog.to_bytes().expect("no larger than it was");
    assert_eq!(Catalog::from_bytes(&written).unwrap(), catalog);
    let digests = catalog.all_digests().unwrap();
    for image in &catalog.images {
        check_repository(&image.repository).unwrap();
        check_stays_inside(&image.repository);
        assert!(image.tag.as_ref().is_none_or(|tag| tag.parse::<Tag>().is_ok()));
        assert!(digests.contains(&image.digest) && image.name().ends_with(&image.reference()));
    }
    // Every byte of every blob is in one volume, once.
    let mut bytes = 0u64;
    let mut names = BTreeSet::new();
    for volume in 1..=catalog.volumes.min(50) {
        for part in catalog.parts(volume) {
            check_stays_inside(&part.name);
            assert!(part.offset + part.size <= catalog.blobs[part.blob].size);
            assert!(names.insert(part.name.clone()), "{} is there twice", part.name);
            bytes += part.size;
        }
    }
    if catalog.volumes <= 50 {
        assert_eq!(bytes, catalog.bytes());
    }
}

fn receipt(data: &[u8]) {
    match Known::parse(data) {
        Ok(known) => {
            assert_eq!(known.digest, Digest::sha256(data));
            assert_eq!(Packed::of(&known.blobs).digests().unwrap(), known.blobs);
        }
        Err(error) => check_bounded(error),
    }
}

struct Signers {
    public: PublicKey,
    other: PublicKey,
    /// Over [`SIGNED`], by the first.
    signature: String,
}

const SIGNED: &[u8] = b"a catalogue";

fn signers() -> &'static Signers {
    static SIGNERS: OnceLock<Signers> = OnceLock::new();
    SIGNERS.get_or_init(|| {
        let KeyPair { pk, sk } = KeyPair::generate_unencrypted_keypair().unwrap();
        let other = KeyPair::generate_unencrypted_keypair().unwrap().pk;
        let signature = minisign::sign(None, &sk, Cursor::new(SIGNED), Some("trusted"), Some("comment"));
        Signers {
            public: PublicKey::parse(&pk.to_base64()).unwrap(),
            other: PublicKey::parse(&other.to_base64()).unwrap(),
            signature: signature.map(SignatureBox::into_string).unwrap(),
        }
    })
}

/// A public key, a signature over [`SIGNED`], or what a volume says of itself: each is tried as all three.
fn signature(data: &[u8]) {
    let Signers { public, other, .. } = signers();
    match verify(SIGNED, data, &[other.clone(), public.clone()]) {
        Ok(by) => {
            assert_eq!(by, *public);
            verify(b"b catalogue", data, std::slice::from_ref(public)).expect_err("of other bytes");
            verify(SIGNED, data, std::slice::from_ref(other)).expect_err("by another key");
        }
        Err(error) => check_bounded(error),
    }
    match inspect::number(data) {
        Ok((number, all)) => assert!(text(data).unwrap().starts_with("volume ") || number > all),
        Err(error) => check_bounded(error),
    }
    let Some(text) = text(data) else { return };
    match PublicKey::parse(text) {
        Ok(key) => assert_eq!(PublicKey::parse(&key.to_text()).unwrap(), key),
        Err(error) => check_bounded(error),
    }
}
