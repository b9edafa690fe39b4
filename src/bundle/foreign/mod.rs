//! Archives of other tools, passed on as a bundle: OCI image layouts, what `docker save` writes, and the folders of
//! containers/image; as folders or tars, compressed by gzip or zstd or not at all.
//!
//! `tree` is the archive as files by name. `layout`, `docker` and `folder` say which entries it has (`entry`) and
//! where their blobs are (`gather`); `choose` decides which of them are taken, under which names (`name`), and lists
//! the others. What comes out is the stream that `import` takes, so that everything is checked there and nowhere
//! else: digests by the store's writer, and that no unsigned archive opens what is private.

mod choose;
mod docker;
mod entry;
mod folder;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod gather;
mod layout;
mod name;
mod tree;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use tokio::sync::mpsc::Sender;

use super::BUFFER;
use super::CATALOG;
use super::archive::{BLOCK, Writer, is_header, space};
use super::catalog::{Blob, Catalog, Image, Referrers, VERSION};
use super::error::BundleError;
use super::input::{Input, Section, peek};
use super::pack::Packed;
use super::pipe::{Piece, PipeWriter};
use super::plan::{LAYOUT, index};
use super::report::NotTaken;
use super::unpack::{Compression, Limits, Unpacked};
use crate::oci::Digest;
use entry::Entry;
pub use tree::Told;
use tree::Tree;

/// Bytes of a stream that are looked at to tell what it is: enough for the first block of an archive, also where it is
/// compressed. zstd gives nothing before it has a whole block of its own, which has up to 128 KiB.
const HEAD: u64 = 256 << 10;
/// Referrers, platforms and absent manifests of all images together.
const MAX_DETAILS: usize = 500_000;

/// Names and choices that are given for an archive.
#[derive(Clone, Debug, Default)]
pub struct Naming {
    /// The name of its image, or the repository for several.
    pub name: Option<String>,
    /// Take these alone: names as the archive has them, or digests, or how these begin.
    pub only: Vec<String>,
}

impl Naming {
    pub fn is_given(&self) -> bool {
        self.name.is_some() || !self.only.is_empty()
    }
}

/// Where a blob's bytes are.
enum Place {
    /// A file of the archive.
    File(String),
    /// Made here: the manifest of an image that has none of its own.
    Made(Vec<u8>),
}

/// A blob that could be taken.
struct Part {
    size: u64,
    /// Set for manifests.
    media_type: Option<String>,
    place: Place,
}

/// What was found, on its way to a catalogue.
#[derive(Default)]
struct Found {
    parts: HashMap<Digest, Part>,
    /// Not taken, whatever is chosen.
    left: Vec<NotTaken>,
}

impl Found {
    fn add(&mut self, digest: Digest, size: u64, media_type: Option<String>, place: Place) {
        let known = self.parts.entry(digest).or_insert(Part {
            size,
            media_type: None,
            place,
        });
        // A manifest that is also somebody's blob stays one.
        known.media_type = known.media_type.take().or(media_type);
    }
}

/// An archive that can be passed on as a bundle.
pub struct Archive {
    tree: Tree,
    catalog: Catalog,
    bytes: Vec<u8>,
    places: HashMap<Digest, Place>,
    left: Vec<NotTaken>,
}

/// True for a folder, and for a tar that does not begin as a bundle does, compressed or not.
pub fn is_foreign(path: &Path) -> bool {
    path.is_dir() || File::open(path).is_ok_and(|file| is_foreign_file(&Arc::new(file)))
}

/// [`is_foreign`] for a file that is open, wherever it stands.
pub fn is_foreign_file(file: &Arc<File>) -> bool {
    let mut begins = Vec::new();
    let read = Section::new(file.clone(), 0, HEAD).read_to_end(&mut begins);
    read.is_ok() && begins_foreign(&begins)
}

/// Looks at the first bytes of a stream, and returns whether it is an archive of another tool, with all of the stream.
pub fn peek_foreign(stream: Box<dyn Input>) -> std::io::Result<(bool, Box<dyn Input>)> {
    let (begins, stream) = peek(stream, HEAD)?;
    Ok((begins_foreign(&begins), stream))
}

fn begins_foreign(begins: &[u8]) -> bool {
    let mut block = Vec::new();
    let block = match Compression::of(begins) {
        None => begins,
        Some(compression) => {
            // It breaks off where the look ends.
            let unpacked = Unpacked::new(begins, compression, Limits::FILES);
            let _ = unpacked.map(|unpacked| unpacked.take(BLOCK).read_to_end(&mut block));
            block.as_slice()
        }
    };
    // Compressed twice: it is refused with the reason.
    if Compression::of(begins).is_some() && Compression::of(block).is_some() {
        return true;
    }
    let block = block.first_chunk::<{ BLOCK as usize }>();
    block.is_some_and(|block| is_header(block) && !block.starts_with(CATALOG.as_bytes()))
}

/// Errors: no image can have this name.
pub fn check_name(name: &str) -> Result<(), BundleError> {
    name::parse(name).map(|_| ())
}

/// Looks at an archive. Blocking. `told` gets the bytes that were read meanwhile and later.
///
/// Errors: nothing of it can be taken, or it is no such archive, or not an honest one.
pub fn open(path: &Path, naming: &Naming, told: Told) -> Result<Archive, BundleError> {
    if path.is_dir() {
        return look(Tree::folder(path)?, naming);
    }
    let file = File::open(path).map_err(BundleError::file("open", path))?;
    open_file(Arc::new(file), naming, told)
}

/// [`open`] for a tar that is open, from its beginning.
pub fn open_file(file: Arc<File>, naming: &Naming, told: Told) -> Result<Archive, BundleError> {
    look(Tree::tar(file, told)?, naming)
}

fn look(tree: Tree, naming: &Naming) -> Result<Archive, BundleError> {
    let mut found = Found::default();
    let has = |name: &str| tree.size(name).is_some();
    let entries = match (has("index.json"), has("manifest.json")) {
        (true, _) => layout::read(&tree, &mut found)?,
        (false, true) if is_list(&tree)? => docker::read(&tree, &mut found)?,
        (false, true) => folder::read(&tree, &mut found)?,
        (false, false) if has("repositories") => {
            return Err(BundleError::NotABundle(
                "it has `repositories` and no manifest.json: a Docker older than 1.10 wrote it, and no registry takes its images. Load it into a newer Docker and save it again".to_owned(),
            ));
        }
        (false, false) => {
            return Err(BundleError::NotABundle(
                "it has neither index.json (an OCI layout) nor manifest.json (docker save)".to_owned(),
            ));
        }
    };
    let choice = choose::choose(&entries, naming)?;
    let taken = images(&entries, choice.taken)?;
    let catalog = catalog(&tree, &mut found.parts, taken)?;
    let bytes = catalog.to_bytes()?;
    // Held to the same rules as everybody's.
    let catalog = Catalog::from_bytes(&bytes)?;
    let mut left = choice.left;
    left.append(&mut found.left);
    Ok(Archive {
        tree,
        catalog,
        bytes,
        places: found
            .parts
            .into_iter()
            .map(|(digest, part)| (digest, part.place))
            .collect(),
        left,
    })
}

/// True if `manifest.json` is a list of images, and not an image's own manifest.
fn is_list(tree: &Tree) -> Result<bool, BundleError> {
    let bytes = tree.small("manifest.json", super::MAX_CATALOG_BYTES)?;
    Ok(bytes.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'['))
}

/// The images by name, each with its entry's place, and what each entry brings.
struct Taken {
    images: Vec<(Image, usize)>,
    parts: HashMap<usize, BTreeSet<Digest>>,
}

fn images(entries: &[Entry], taken: Vec<(usize, name::Name)>) -> Result<Taken, BundleError> {
    let mut by_subject: HashMap<Digest, Vec<&Entry>> = HashMap::new();
    for entry in entries.iter().filter(|entry| entry.fault.is_none()) {
        if let Some(subject) = entry.subject {
            by_subject.entry(subject).or_default().push(entry);
        }
    }
    let (mut images, mut parts) = (Vec::new(), HashMap::new());
    let mut lists: HashMap<usize, Vec<Referrers>> = HashMap::new();
    let mut details = 0;
    for (at, name) in taken {
        let Some(entry) = entries.get(at) else { continue };
        // Several names of one image share what it brings.
        let brings = parts.entry(at).or_insert_with(|| {
            let mut brings = entry.parts.iter().copied().collect();
            lists.insert(at, referrers(entry, &by_subject, &mut brings));
            brings
        });
        let referrers = lists.get(&at).cloned().unwrap_or_default();
        let items = referrers.iter().map(|list| list.items.len()).sum::<usize>();
        details += items + entry.absent.len() + entry.platforms.len();
        if details > MAX_DETAILS {
            return Err(BundleError::hostile(format!(
                "its images have more than {MAX_DETAILS} platforms and referrers"
            )));
        }
        let image = Image {
            repository: name.repository,
            tag: name.tag,
            digest: entry.digest,
            media_type: entry.media_type.clone(),
            size: entry.size,
            platforms: entry.platforms.clone(),
            absent: entry.absent.difference(brings).copied().collect(),
            checked_ms: None,
            private: false,
            referrers,
        };
        images.push((image, at));
    }
    images.sort_by_cached_key(|(image, _)| image.name());
    Ok(Taken { images, parts })
}

/// Returns what refers to an image, to its platforms and to what refers to these.
fn referrers(entry: &Entry, by_subject: &HashMap<Digest, Vec<&Entry>>, parts: &mut BTreeSet<Digest>) -> Vec<Referrers> {
    let mut lists: BTreeMap<Digest, BTreeMap<Digest, Value>> = BTreeMap::new();
    let mut queue: VecDeque<Digest> = entry.manifests.iter().copied().collect();
    let mut seen: BTreeSet<Digest> = entry.manifests.clone();
    while let Some(subject) = queue.pop_front() {
        for referrer in by_subject.get(&subject).into_iter().flatten() {
            let Some(listed) = &referrer.listed else { continue };
            lists
                .entry(subject)
                .or_default()
                .insert(referrer.digest, listed.clone());
            parts.extend(&referrer.parts);
            queue.extend(referrer.manifests.iter().filter(|digest| seen.insert(**digest)));
        }
    }
    let lists = lists.into_iter().map(|(subject, items)| Referrers {
        subject,
        // Nobody confirmed it: whoever can ask, asks.
        checked_ms: 0,
        items: items.into_values().collect(),
    });
    lists.collect()
}

fn catalog(tree: &Tree, parts: &mut HashMap<Digest, Part>, mut taken: Taken) -> Result<Catalog, BundleError> {
    // To which image a blob counts: the first that needs it.
    let mut first: HashMap<Digest, u32> = HashMap::new();
    for (place, (_, at)) in taken.images.iter().enumerate() {
        let place = u32::try_from(place).map_err(|_| BundleError::hostile("too many images"))?;
        for digest in taken.parts.remove(at).unwrap_or_default() {
            first.entry(digest).or_insert(place);
        }
    }
    parts.retain(|digest, _| first.contains_key(digest));
    let blob = |(digest, part): (&Digest, &Part)| Blob {
        digest: *digest,
        size: part.size,
        media_type: part.media_type.clone(),
        image: first.get(digest).copied().unwrap_or(0),
        volume: 1,
        pieces: Vec::new(),
    };
    let offset = |digest: &Digest| match &parts.get(digest)?.place {
        Place::File(name) => tree.offset(name),
        Place::Made(_) => None,
    };
    let mut blobs: Vec<Blob> = parts.iter().map(blob).collect();
    // Manifests last; the others in the order in which the archive has them: a compressed one is read only forwards.
    blobs.sort_by_cached_key(|blob| (blob.is_manifest(), offset(&blob.digest), blob.digest));
    Ok(Catalog {
        larder_bundle: VERSION,
        created_ms: 0,
        since: None,
        volumes: 1,
        blobs,
        images: taken.images.into_iter().map(|(image, _)| image).collect(),
        omitted: Packed::of(&BTreeSet::new()),
    })
}

impl Archive {
    /// Bytes of its blobs.
    pub fn bytes(&self) -> u64 {
        self.catalog.bytes()
    }

    /// Bytes of the bundle that it is passed on as, but for its index.
    pub fn stream_bytes(&self) -> u64 {
        let sizes = self.catalog.blobs.iter().map(|blob| blob.size);
        sizes.chain([self.bytes.len() as u64]).map(space).sum()
    }

    /// The images that it would bring.
    pub fn images(&self) -> &[Image] {
        &self.catalog.images
    }

    /// Entries and names that are inside and would not come.
    pub fn not_taken(&self) -> &[NotTaken] {
        &self.left
    }

    /// Passes it on as a bundle. Blocking.
    pub fn write(self, sender: Sender<Piece>) {
        let mut sink = PipeWriter::new(sender);
        let outcome = self.tell(&mut sink);
        sink.finish(outcome.map_err(|error| std::io::Error::other(error.to_string())));
    }

    fn tell(&self, sink: &mut PipeWriter) -> Result<(), BundleError> {
        let mut archive = Writer::new(sink);
        let index = index(&self.catalog)?;
        let mut head = || {
            archive.file(CATALOG, &self.bytes)?;
            archive.file("oci-layout", LAYOUT)?;
            archive.file("index.json", &index)
        };
        head().map_err(BundleError::Write)?;
        let mut buffer = vec![0; BUFFER];
        let mut cursor = self.tree.cursor();
        for blob in &self.catalog.blobs {
            archive.begin(&blob.name(), blob.size).map_err(BundleError::Write)?;
            let mut source: Box<dyn Read + '_> = match self.places.get(&blob.digest) {
                Some(Place::File(name)) => cursor.open(name)?.0,
                Some(Place::Made(bytes)) => Box::new(bytes.as_slice()),
                None => return Err(BundleError::Gone(Box::new(blob.digest))),
            };
            let mut left = blob.size;
            while left > 0 {
                let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
                let count = source.read(&mut buffer[..most]).map_err(BundleError::reading)?;
                if count == 0 {
                    return Err(BundleError::Short(format!("within {}", blob.digest)));
                }
                archive.write(&buffer[..count]).map_err(BundleError::Write)?;
                left -= count as u64;
            }
        }
        archive.end().map_err(BundleError::Write)
    }
}
