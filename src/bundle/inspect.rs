//! What is inside a bundle, without taking it in: by its catalogue, and on demand by all its bytes.

use std::collections::BTreeSet;

use serde::Serialize;

use super::archive::{Kind, Reader};
use super::catalog::{Catalog, Part};
use super::error::BundleError;
use super::input::Input;
use super::receipt::Known;
use super::report::{NotTaken, Outcome};
use super::sign::{self, PublicKey};
use super::{BUFFER, CATALOG, MAX_CATALOG_BYTES, SIGNATURE, VOLUME};
use crate::oci::Digest;
use crate::store::Hashing;
use crate::text::count;

const MAX_SIGNATURE_BYTES: u64 = 16 << 10;
const MAX_NOTE_BYTES: u64 = 4 << 10;

/// What stands in front of a volume's content.
pub struct Head {
    pub catalog: Vec<u8>,
    pub signature: Option<Vec<u8>>,
    /// Its own number, and how many there are; by its own word.
    number: Option<(u32, u32)>,
}

impl Head {
    /// This volume's number. Error: it is not one of `volumes`.
    pub fn volume(&self, volumes: u32) -> Result<u32, BundleError> {
        match self.number {
            None if volumes == 1 => Ok(1),
            Some((number, all)) if all == volumes && volumes > 1 && (1..=volumes).contains(&number) => Ok(number),
            found => Err(BundleError::hostile(format!(
                "{VOLUME} says {found:?}, where its catalogue names {}",
                count(volumes, "volume")
            ))),
        }
    }
}

/// Reads as far as the content.
pub fn read_head(reader: &mut Reader<'_>) -> Result<Head, BundleError> {
    match reader.entry() {
        Ok(Some(entry)) if entry.name == CATALOG && entry.kind == Kind::File => {}
        Ok(Some(entry)) => {
            let name: String = entry.name.chars().take(100).collect();
            return Err(BundleError::NotABundle(format!(
                "its first file is {name:?}, where a bundle has {CATALOG}. An OCI layout or an archive of `docker save` is taken by `larder bundle import FILE`, or with --as NAME under a name of your choice"
            )));
        }
        Ok(None) => return Err(BundleError::NotABundle("it is an empty archive".to_owned())),
        Err(BundleError::Hostile(why)) => return Err(BundleError::NotABundle(why)),
        Err(other) => return Err(other),
    }
    let mut head = Head {
        catalog: reader.all(MAX_CATALOG_BYTES)?,
        signature: None,
        number: None,
    };
    let order = [SIGNATURE, VOLUME, "oci-layout", "index.json"];
    let mut from = 0;
    loop {
        let entry = reader.entry()?;
        let name = entry.as_ref().map(|entry| entry.name.as_str()).unwrap_or_default();
        let place = order[from..].iter().position(|known| *known == name);
        let is_file = entry.as_ref().is_some_and(|entry| entry.kind == Kind::File);
        let Some(place) = place.filter(|_| is_file) else {
            let expected = order[from..].join(" or ");
            return Err(BundleError::hostile(format!(
                "found {name:?} in front of its content, expected {expected}"
            )));
        };
        from += place + 1;
        match name {
            SIGNATURE => head.signature = Some(reader.all(MAX_SIGNATURE_BYTES)?),
            VOLUME => head.number = Some(number(&reader.all(MAX_NOTE_BYTES)?)?),
            "oci-layout" => {
                reader.all(MAX_NOTE_BYTES)?;
            }
            // For other tools. What is imported is what the catalogue says.
            _ if reader.left() <= MAX_CATALOG_BYTES => {
                reader.skip(u64::MAX)?;
                return Ok(head);
            }
            _ => return Err(BundleError::hostile(format!("index.json of {} bytes", reader.left()))),
        }
    }
}

/// `volume 2 of 5; …`
pub(super) fn number(text: &[u8]) -> Result<(u32, u32), BundleError> {
    let read = || {
        let text = std::str::from_utf8(text).ok()?;
        let (number, all) = text.strip_prefix("volume ")?.split_once(';')?.0.split_once(" of ")?;
        Some((number.parse().ok()?, all.parse().ok()?))
    };
    read().ok_or_else(|| BundleError::hostile(format!("{VOLUME} says {:?}", String::from_utf8_lossy(text))))
}

/// A bundle as it is shown.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    pub bundle: String,
    pub created_ms: u64,
    pub signature: Signature,
    pub since: Option<super::catalog::Since>,
    pub volumes: u32,
    pub missing_volumes: Vec<u32>,
    pub images: Vec<Row>,
    pub blobs: usize,
    pub bytes: u64,
    /// Needed and not inside: the other side has them.
    pub omitted_blobs: usize,
    /// What it would do at the site whose receipt was given.
    pub change: Option<Change>,
    /// Set if all bytes were read: what is not as its digest says, by volume.
    pub damaged: Option<Vec<(u32, String)>>,
    /// Inside an archive of another tool, and would not be taken.
    pub not_taken: Vec<NotTaken>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", content = "key", rename_all = "lowercase")]
pub enum Signature {
    None,
    /// There is one, and no key was given to hold it against.
    Unchecked,
    Good(String),
    Bad(String),
}

#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub name: String,
    pub digest: String,
    pub platforms: Vec<String>,
    pub checked_ms: Option<u64>,
    pub private: bool,
    /// Bytes that are inside for it and for no image before it.
    pub bytes: u64,
    /// Platforms and layers that it names and does not bring.
    pub absent: usize,
    pub referrers: usize,
    /// At the site whose receipt was given.
    pub outcome: Option<Outcome>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    pub new_blobs: usize,
    pub new_bytes: u64,
    /// Neither inside nor there: an earlier bundle has to come first.
    pub missing_blobs: usize,
}

/// How to look at it.
#[derive(Default)]
pub struct Look<'a> {
    pub keys: &'a [PublicKey],
    pub known: Option<&'a Known>,
    /// Read and hash everything.
    pub verify: bool,
}

/// Looks at a bundle, and returns its catalogue's bytes too. Blocking.
pub fn inspect(
    input: &mut dyn Input,
    look: &Look<'_>,
    told: &mut dyn FnMut(u64),
) -> Result<(Inspection, Vec<u8>), BundleError> {
    let mut reader = Reader::new(input);
    let mut head = read_head(&mut reader)?;
    let signature = match &head.signature {
        None => Signature::None,
        Some(_) if look.keys.is_empty() => Signature::Unchecked,
        Some(signature) => match sign::verify(&head.catalog, signature, look.keys) {
            Ok(key) => Signature::Good(key.to_text()),
            Err(error) => Signature::Bad(error.to_string()),
        },
    };
    let bytes = std::mem::take(&mut head.catalog);
    let catalog = Catalog::from_bytes(&bytes)?;
    let mut damaged = Vec::new();
    let mut seen = BTreeSet::from([head.volume(catalog.volumes)?]);
    let mut volume = head.volume(catalog.volumes)?;
    loop {
        for part in catalog.parts(volume) {
            match reader.entry()? {
                Some(entry) if entry.name == part.name && entry.size == part.size => {}
                found => {
                    let found = found.map_or_else(|| "its end".to_owned(), |entry| format!("{:?}", entry.name));
                    return Err(BundleError::hostile(format!("found {found}, expected {:?}", part.name)));
                }
            }
            if look.verify && !hash(&mut reader, &part)? {
                damaged.push((volume, catalog.blobs[part.blob].digest.to_string()));
            }
            told(part.size);
        }
        if let Some(entry) = reader.entry()? {
            return Err(BundleError::hostile(format!(
                "{:?} is not in its catalogue",
                entry.name
            )));
        }
        if !reader.more()? {
            break;
        }
        let head = read_head(&mut reader)?;
        if head.catalog != bytes {
            return Err(BundleError::Bad(
                "the volumes are not of one bundle: their catalogues differ".to_owned(),
            ));
        }
        volume = head.volume(catalog.volumes)?;
        if !seen.insert(volume) {
            return Err(BundleError::hostile(format!("volume {volume} comes twice")));
        }
    }
    let mut inspection = describe(&catalog, look.known)?;
    inspection.bundle = Catalog::id(&bytes).to_string();
    inspection.signature = signature;
    inspection.missing_volumes = (1..=catalog.volumes).filter(|volume| !seen.contains(volume)).collect();
    inspection.damaged = look.verify.then_some(damaged);
    Ok((inspection, bytes))
}

fn hash(reader: &mut Reader<'_>, part: &Part) -> Result<bool, BundleError> {
    let mut hashing = Hashing::new(part.digest);
    let mut buffer = vec![0; BUFFER];
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok(hashing.verify().is_ok()),
            count => hashing.update(&buffer[..count]),
        }
    }
}

fn describe(catalog: &Catalog, known: Option<&Known>) -> Result<Inspection, BundleError> {
    let mut bytes = vec![0u64; catalog.images.len()];
    for blob in &catalog.blobs {
        if let Some(bytes) = bytes.get_mut(blob.image as usize) {
            *bytes += blob.size;
        }
    }
    let omitted = catalog.omitted.digests()?;
    let change = known.map(|known| {
        let new = catalog.blobs.iter().filter(|blob| !known.blobs.contains(&blob.digest));
        Change {
            new_blobs: new.clone().count(),
            new_bytes: new.map(|blob| blob.size).sum(),
            missing_blobs: omitted.iter().filter(|digest| !known.blobs.contains(digest)).count(),
        }
    });
    let outcome = |name: &str, digest: &Digest, known: &Known| match known.tags.get(name) {
        Some(there) if there == digest => Outcome::Unchanged,
        Some(_) => Outcome::Moved,
        None if name.contains('@') && known.blobs.contains(digest) => Outcome::Unchanged,
        None => Outcome::New,
    };
    let images = catalog.images.iter().zip(bytes).map(|(image, bytes)| Row {
        name: image.name(),
        digest: image.digest.to_string(),
        platforms: image.platforms.clone(),
        checked_ms: image.checked_ms,
        private: image.private,
        bytes,
        absent: image.absent.len(),
        referrers: image.referrers.iter().map(|list| list.items.len()).sum(),
        outcome: known.map(|known| outcome(&image.name(), &image.digest, known)),
    });
    Ok(Inspection {
        bundle: String::new(),
        created_ms: catalog.created_ms,
        signature: Signature::None,
        since: catalog.since.clone(),
        volumes: catalog.volumes,
        missing_volumes: Vec::new(),
        images: images.collect(),
        blobs: catalog.blobs.len(),
        bytes: catalog.bytes(),
        omitted_blobs: omitted.len(),
        change,
        damaged: None,
        not_taken: Vec::new(),
    })
}
