//! Archives of other tools, told as a bundle: OCI image layouts, as folders or tars, and what `docker save` writes.
//!
//! `tree` is the archive as files by name; `layout` and `docker` say which images are inside and where their blobs are;
//! `name` what they are called here. What comes out is the stream that `import` takes, so that everything is checked
//! there and nowhere else: digests by the store's writer, and that no unsigned archive opens what is private.

mod docker;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod layout;
mod name;
mod tree;

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::Read;
use std::path::Path;

use tokio::sync::mpsc::Sender;

use super::BUFFER;
use super::CATALOG;
use super::archive::Writer;
use super::catalog::{Blob, Catalog, Image, VERSION};
use super::error::BundleError;
use super::pack::Packed;
use super::pipe::{Piece, PipeWriter};
use super::plan::{LAYOUT, index};
use crate::oci::Digest;
use tree::Tree;

/// Where a blob's bytes are.
enum Place {
    /// A file of the archive.
    File(String),
    /// Made here: the manifest of an image that has none of its own.
    Made(Vec<u8>),
}

/// What was found, on its way to a catalogue.
#[derive(Default)]
struct Found {
    images: Vec<Image>,
    blobs: HashMap<Digest, (Blob, Place)>,
}

impl Found {
    fn add(&mut self, digest: Digest, size: u64, media_type: Option<String>, place: Place) -> Result<(), BundleError> {
        let image = u32::try_from(self.images.len()).map_err(|_| BundleError::hostile("too many images"))?;
        let blob = Blob {
            digest,
            size,
            media_type,
            image,
            volume: 1,
            pieces: Vec::new(),
        };
        // A manifest that is also somebody's blob stays one.
        let known = self.blobs.entry(digest).or_insert((blob.clone(), place));
        known.0.media_type = known.0.media_type.take().or(blob.media_type);
        Ok(())
    }
}

/// An archive that can be told as a bundle.
pub struct Archive {
    tree: Tree,
    catalog: Catalog,
    bytes: Vec<u8>,
    places: HashMap<Digest, Place>,
}

/// Whether this is a folder, or a tar that does not begin as a bundle does.
pub fn is_foreign(path: &Path) -> bool {
    if path.is_dir() {
        return true;
    }
    let mut begins = [0; 512];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut begins));
    let is_tar = &begins[257..262] == b"ustar";
    read.is_ok() && is_tar && !begins.starts_with(CATALOG.as_bytes())
}

/// Looks at an archive. `name` is what its image is to be called; without one it has to say so itself.
pub fn open(path: &Path, name: Option<&str>) -> Result<Archive, BundleError> {
    let tree = Tree::open(path)?;
    let mut found = Found::default();
    if tree.size("index.json").is_some() {
        layout::read(&tree, name, &mut found)?;
    } else if tree.size("manifest.json").is_some() {
        docker::read(&tree, name, &mut found)?;
    } else {
        return Err(BundleError::NotABundle(format!(
            "{} has neither index.json (an OCI layout) nor manifest.json (docker save)",
            path.display()
        )));
    }
    let (mut blobs, mut places) = (Vec::new(), HashMap::new());
    for (digest, (blob, place)) in found.blobs {
        blobs.push(blob);
        places.insert(digest, place);
    }
    blobs.sort_by_key(|blob| (blob.is_manifest(), blob.digest));
    found.images.sort_by_key(Image::name);
    let catalog = Catalog {
        larder_bundle: VERSION,
        created_ms: 0,
        since: None,
        volumes: 1,
        // The images were put into another order; to whom a blob counts does not matter here.
        blobs: blobs.into_iter().map(|blob| Blob { image: 0, ..blob }).collect(),
        images: found.images,
        omitted: Packed::of(&BTreeSet::new()),
    };
    let bytes = catalog.to_bytes()?;
    // Held to the same rules as everybody's.
    let catalog = Catalog::from_bytes(&bytes)?;
    Ok(Archive {
        tree,
        catalog,
        bytes,
        places,
    })
}

impl Archive {
    pub fn bytes(&self) -> u64 {
        self.catalog.bytes()
    }

    /// The images that it would bring.
    pub fn images(&self) -> &[Image] {
        &self.catalog.images
    }

    /// Tells it as a bundle. Blocking.
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
        for blob in &self.catalog.blobs {
            archive.begin(&blob.name(), blob.size).map_err(BundleError::Write)?;
            let mut source: Box<dyn Read + '_> = match self.places.get(&blob.digest) {
                Some(Place::File(name)) => self.tree.read(name)?,
                Some(Place::Made(bytes)) => Box::new(bytes.as_slice()),
                None => return Err(BundleError::Gone(Box::new(blob.digest))),
            };
            let mut left = blob.size;
            while left > 0 {
                let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
                let count = source.read(&mut buffer[..most]).map_err(BundleError::Read)?;
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
