//! The images of the tour, built from files at hand: no internet, and the same shape on every Linux.
//!
//! Layers are plain tar files, so a layer's digest is its diff_id too. The large ones hold noise that is the same in
//! every run; what the system has to offer is read as far as it is there.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use bytes::Bytes;
use serde_json::json;

use crate::oci::{Digest, media_type};

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MIB: usize = 1 << 20;
/// A debug build of this program is larger, and would make the tour long.
const MOST_OF_A_FILE: u64 = 24 << 20;

/// An image as a registry holds it.
#[derive(Clone, Debug)]
pub struct Image {
    pub repository: &'static str,
    pub tag: &'static str,
    pub manifest: Bytes,
    pub digest: Digest,
    /// The config first, then the layers from the bottom up.
    pub blobs: Vec<Blob>,
}

#[derive(Clone, Debug)]
pub struct Blob {
    pub digest: Digest,
    pub bytes: Bytes,
}

impl Blob {
    fn new(bytes: Vec<u8>) -> Blob {
        Blob {
            digest: Digest::sha256(&bytes),
            bytes: bytes.into(),
        }
    }

    fn descriptor(&self, media_type: &str) -> serde_json::Value {
        json!({ "mediaType": media_type, "digest": self.digest, "size": self.bytes.len() })
    }
}

impl Image {
    /// `tour/first:1.0`
    pub fn name(&self) -> String {
        format!("{}:{}", self.repository, self.tag)
    }

    /// Bytes of everything that a client fetches: manifest, config and layers.
    pub fn size(&self) -> u64 {
        let blobs: usize = self.blobs.iter().map(|blob| blob.bytes.len()).sum();
        (self.manifest.len() + blobs) as u64
    }

    /// The blob with the most bytes.
    pub fn largest(&self) -> Option<&Blob> {
        self.blobs.iter().max_by_key(|blob| blob.bytes.len())
    }

    fn build(repository: &'static str, layers: Vec<Layer>) -> io::Result<Image> {
        let history: Vec<_> = layers
            .iter()
            .map(|layer| json!({ "created": EPOCH, "created_by": layer.about }))
            .collect();
        let mut blobs: Vec<Blob> = Vec::new();
        for layer in layers {
            blobs.push(Blob::new(layer.tar()?));
        }
        let config = json!({
            "created": EPOCH,
            "architecture": architecture(),
            "os": "linux",
            "config": {},
            "rootfs": { "type": "layers", "diff_ids": blobs.iter().map(|blob| blob.digest).collect::<Vec<_>>() },
            "history": history,
        });
        let config = Blob::new(config.to_string().into_bytes());
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": media_type::OCI_MANIFEST,
            "config": config.descriptor(CONFIG),
            "layers": blobs.iter().map(|blob| blob.descriptor(LAYER)).collect::<Vec<_>>(),
        });
        let manifest: Bytes = manifest.to_string().into_bytes().into();
        blobs.insert(0, config);
        Ok(Image {
            repository,
            tag: "1.0",
            digest: Digest::sha256(&manifest),
            manifest,
            blobs,
        })
    }
}

const EPOCH: &str = "1970-01-01T00:00:00Z";

/// One for cold and hot, one for the herd, one that is cut. They share no blob, so that each is new to Larder.
pub fn three() -> io::Result<[Image; 3]> {
    let noise = |seed: u64, mebibytes: usize| Layer {
        about: "noise, the same in every run",
        files: vec![(format!("opt/tour/noise-{seed}"), 0o644, noise(seed, mebibytes * MIB))],
    };
    let first = Image::build("tour/first", vec![system(), programs(), noise(1, 32)])?;
    let herd = Image::build("tour/herd", vec![noise(2, 4), noise(3, 24)])?;
    let cut = Image::build("tour/cut", vec![noise(4, 2), noise(5, 16)])?;
    Ok([first, herd, cut])
}

struct Layer {
    about: &'static str,
    /// Path, mode, content.
    files: Vec<(String, u32, Vec<u8>)>,
}

impl Layer {
    fn tar(&self) -> io::Result<Vec<u8>> {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, mode, bytes) in &self.files {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(*mode);
            header.set_mtime(0);
            tar.append_data(&mut header, path, bytes.as_slice())?;
        }
        tar.into_inner()
    }
}

/// What system this is, and a note that is there whatever the system lacks.
fn system() -> Layer {
    let note = b"This image was built by `larder demo` from files of the machine that it ran on.\n";
    let mut files = vec![("etc/larder-demo".to_owned(), 0o644, note.to_vec())];
    files.extend(first_of(&["/etc/os-release", "/usr/lib/os-release"], 0o644));
    Layer {
        about: "which system this is",
        files,
    }
}

/// This program, or some small ones.
fn programs() -> Layer {
    let own = std::env::current_exe().ok().and_then(|path| read(&path));
    let files = match own {
        Some(bytes) => vec![("usr/bin/larder".to_owned(), 0o755, bytes)],
        None => ["sh", "ls", "cat", "tar"]
            .iter()
            .filter_map(|name| first_of(&[&format!("/bin/{name}"), &format!("/usr/bin/{name}")], 0o755))
            .collect(),
    };
    // An empty layer would be the same for everybody; a note keeps it this image's own.
    let note = (
        "usr/share/larder-demo".to_owned(),
        0o644,
        b"Programs at hand.\n".to_vec(),
    );
    Layer {
        about: "programs",
        files: files.into_iter().chain([note]).collect(),
    }
}

/// The first that can be read, under the path it was found at.
fn first_of(paths: &[&str], mode: u32) -> Option<(String, u32, Vec<u8>)> {
    paths
        .iter()
        .find_map(|path| Some((path.trim_start_matches('/').to_owned(), mode, read(Path::new(path))?)))
}

fn read(path: &Path) -> Option<Vec<u8>> {
    let file = File::open(path).ok()?;
    let known = file.metadata().ok().filter(std::fs::Metadata::is_file)?;
    if known.len() > MOST_OF_A_FILE {
        return None;
    }
    let mut bytes = Vec::new();
    // The file may grow while it is read.
    file.take(MOST_OF_A_FILE).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// SplitMix64: nothing that could be compressed or deduplicated away.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 8);
    let mut state = seed.wrapping_mul(0xa076_1d64_78bd_642f);
    while bytes.len() < length {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bytes.extend_from_slice(&(word ^ (word >> 31)).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// This machine's, in the words of the image specification.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "x86" => "386",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        "loongarch64" => "loong64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::manifest::Manifest;
    use std::collections::HashSet;

    #[test]
    fn every_descriptor_is_right() {
        for image in three().unwrap() {
            assert_eq!(image.digest, Digest::sha256(&image.manifest));
            let manifest = Manifest::parse(&image.manifest, Some(media_type::OCI_MANIFEST)).unwrap();
            assert_eq!(manifest.descriptors.len(), image.blobs.len());
            for (said, blob) in manifest.descriptors.iter().zip(&image.blobs) {
                assert_eq!(said.digest, Digest::sha256(&blob.bytes));
                assert_eq!(said.size, Some(blob.bytes.len() as u64));
            }
        }
    }

    #[test]
    fn diff_ids_are_the_digests_of_the_tar_files() {
        for image in three().unwrap() {
            let (config, layers) = image.blobs.split_first().unwrap();
            let config: serde_json::Value = serde_json::from_slice(&config.bytes).unwrap();
            let said: Vec<Digest> = serde_json::from_value(config["rootfs"]["diff_ids"].clone()).unwrap();
            let are: Vec<Digest> = layers.iter().map(|layer| Digest::sha256(&layer.bytes)).collect();
            assert_eq!(said, are);
            assert_eq!(config["history"].as_array().unwrap().len(), layers.len());
        }
    }

    #[test]
    fn every_layer_is_a_tar_file_with_files_in_it() {
        for image in three().unwrap() {
            for layer in &image.blobs[1..] {
                let mut files = 0;
                for entry in tar::Archive::new(&layer.bytes[..]).entries().unwrap() {
                    let mut entry = entry.unwrap();
                    assert!(!entry.path().unwrap().is_absolute());
                    let size = entry.size();
                    assert_eq!(io::copy(&mut entry, &mut io::sink()).unwrap(), size);
                    files += 1;
                }
                assert!(files > 0);
            }
        }
    }

    #[test]
    fn the_images_are_large_enough_and_share_nothing() {
        let images = three().unwrap();
        let blobs: Vec<Digest> = images.iter().flat_map(|i| i.blobs.iter().map(|b| b.digest)).collect();
        assert_eq!(blobs.iter().collect::<HashSet<_>>().len(), blobs.len());
        assert!(images[0].largest().unwrap().bytes.len() >= 32 * MIB);
        assert_eq!(images[0].blobs.len(), 4);
    }

    #[test]
    fn noise_is_the_same_in_every_run() {
        assert_eq!(noise(1, 100), noise(1, 100));
        assert_ne!(noise(1, 100), noise(2, 100));
        assert_eq!(noise(3, 13).len(), 13);
    }
}
