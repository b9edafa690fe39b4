//! From a stream of archives to files: signed, compressed if that is wanted, each complete before it has its name.
//!
//! What is compressed already goes into zstd frames that hardly try; the rest is compressed. A frame for each entry, so
//! that the one does not spoil the other.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use super::archive::{Entry, Reader, Writer};
use super::catalog::Catalog;
use super::error::BundleError;
use super::input::{Input, volume};
use super::sign::SecretKey;
use super::{BUFFER, CATALOG, MAX_CATALOG_BYTES, SIGNATURE};
use crate::oci::Digest;

/// For what is compressed already: passed on as it is at several GB/s.
const RAW_LEVEL: i32 = -50;
const LEVEL: i32 = 3;

pub struct Seal {
    /// The archive, or the stem of its volumes.
    pub out: PathBuf,
    pub key: Option<SecretKey>,
    pub zstd: bool,
}

/// What was made.
pub struct Sealed {
    pub id: Digest,
    pub catalog: Catalog,
    /// With their sizes.
    pub files: Vec<(PathBuf, u64)>,
}

/// Files on their way; removed unless all of them get their names.
#[derive(Default)]
struct Pending {
    files: Vec<(PathBuf, PathBuf)>,
}

impl Pending {
    fn create(&mut self, path: &Path) -> Result<File, BundleError> {
        must_be_free(path)?;
        let mut part = path.as_os_str().to_owned();
        part.push(".part");
        let part = PathBuf::from(part);
        // Left by a run that was killed.
        let _ = std::fs::remove_file(&part);
        let file = File::create_new(&part).map_err(BundleError::file("create", &part))?;
        self.files.push((part, path.to_owned()));
        Ok(file)
    }

    fn finish(mut self) -> Result<(), BundleError> {
        // What stands beside the archives comes last: it speaks of them.
        for (part, path) in self.files.iter().rev() {
            std::fs::rename(part, path).map_err(BundleError::file("name", path))?;
        }
        let folder = self
            .files
            .first()
            .and_then(|(_, path)| path.parent())
            .unwrap_or(Path::new("."));
        let folder = if folder.as_os_str().is_empty() {
            Path::new(".")
        } else {
            folder
        };
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(BundleError::file("sync", folder))?;
        self.files.clear();
        Ok(())
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        for (part, _) in &self.files {
            let _ = std::fs::remove_file(part);
        }
    }
}

/// Writes the files. Blocking. `told` gets the bytes of content that have passed.
pub fn seal(input: &mut dyn Input, seal: &Seal, told: &mut dyn FnMut(u64)) -> Result<Sealed, BundleError> {
    let mut reader = Reader::new(input);
    let mut pending = Pending::default();
    let bytes = match reader.entry()? {
        Some(entry) if entry.name == CATALOG => reader.all(MAX_CATALOG_BYTES)?,
        _ => return Err(BundleError::NotABundle(format!("{CATALOG} is not its first file"))),
    };
    let catalog = Catalog::from_bytes(&bytes)?;
    let signature = seal.key.as_ref().map(|key| key.sign(&bytes)).transpose()?;
    let place = |number: u32| match catalog.volumes {
        0 | 1 => seal.out.clone(),
        _ => volume(&seal.out, number),
    };
    // All names first: gigabytes later is no time to find one taken.
    (1..=catalog.volumes).try_for_each(|number| must_be_free(&place(number)))?;
    beside(&mut pending, &seal.out, ".catalog.json", &bytes)?;
    if let Some(signature) = &signature {
        beside(&mut pending, &seal.out, ".catalog.json.minisig", signature.as_bytes())?;
    }
    let mut files = Vec::new();
    for number in 1..=catalog.volumes {
        if number > 1 && !matches!(reader.entry()?, Some(entry) if entry.name == CATALOG) {
            return Err(BundleError::NotABundle(format!("volume {number} has no catalogue")));
        }
        let path = place(number);
        let file = pending.create(&path)?;
        let sink = Sink::new(file, seal.zstd);
        let file = one(&mut reader, sink, &bytes, signature.as_deref(), told).map_err(|error| match error {
            BundleError::Write(source) => BundleError::File {
                doing: "write",
                path: path.clone(),
                source,
            },
            other => other,
        })?;
        files.push((path, file.metadata().map_or(0, |meta| meta.len())));
    }
    reader.end()?;
    pending.finish()?;
    Ok(Sealed {
        id: Catalog::id(&bytes),
        catalog,
        files,
    })
}

/// Nothing is written over: a bundle may be the only one of its kind.
fn must_be_free(path: &Path) -> Result<(), BundleError> {
    if path.exists() {
        let taken = io::Error::new(
            io::ErrorKind::AlreadyExists,
            "it is there already; remove it or give another name",
        );
        return Err(BundleError::file("create", path)(taken));
    }
    Ok(())
}

fn beside(pending: &mut Pending, out: &Path, ending: &str, bytes: &[u8]) -> Result<(), BundleError> {
    let mut path = out.as_os_str().to_owned();
    path.push(ending);
    let path = PathBuf::from(path);
    let mut file = pending.create(&path)?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(BundleError::file("write", &path))
}

/// One archive, of which the catalogue has been read.
fn one(
    reader: &mut Reader<'_>,
    sink: Sink,
    catalog: &[u8],
    signature: Option<&str>,
    told: &mut dyn FnMut(u64),
) -> Result<File, BundleError> {
    let mut archive = Writer::new(sink);
    archive.sink().next_entry(b"{").map_err(BundleError::Write)?;
    archive.file(CATALOG, catalog).map_err(BundleError::Write)?;
    if let Some(signature) = signature {
        archive
            .file(SIGNATURE, signature.as_bytes())
            .map_err(BundleError::Write)?;
    }
    let mut buffer = vec![0; BUFFER];
    reader.skip(u64::MAX)?;
    while let Some(Entry { name, size, .. }) = reader.entry()? {
        let mut count = reader.fill(&mut buffer)?;
        archive
            .sink()
            .next_entry(&buffer[..count])
            .map_err(BundleError::Write)?;
        archive.begin(&name, size).map_err(BundleError::Write)?;
        while count > 0 {
            archive.write(&buffer[..count]).map_err(BundleError::Write)?;
            told(count as u64);
            count = reader.fill(&mut buffer)?;
        }
    }
    archive.end().map_err(BundleError::Write)?;
    archive.into_sink().finish().map_err(BundleError::Write)
}

/// A file, compressed or not.
enum Sink {
    Plain(BufWriter<File>),
    Zstd(Option<zstd::Encoder<'static, BufWriter<File>>>, Option<BufWriter<File>>),
}

impl Sink {
    fn new(file: File, zstd: bool) -> Sink {
        let file = BufWriter::with_capacity(BUFFER, file);
        if zstd {
            Sink::Zstd(None, Some(file))
        } else {
            Sink::Plain(file)
        }
    }

    /// Begins a frame for an entry whose content begins like this.
    fn next_entry(&mut self, begins: &[u8]) -> io::Result<()> {
        let Sink::Zstd(encoder, file) = self else { return Ok(()) };
        if let Some(encoder) = encoder.take() {
            *file = Some(encoder.finish()?);
        }
        let level = if is_compressed(begins) { RAW_LEVEL } else { LEVEL };
        if let Some(file) = file.take() {
            *encoder = Some(zstd::Encoder::new(file, level)?);
        }
        Ok(())
    }

    fn finish(self) -> io::Result<File> {
        let file = match self {
            Sink::Plain(file) => Some(file),
            Sink::Zstd(Some(encoder), _) => Some(encoder.finish()?),
            Sink::Zstd(None, file) => file,
        };
        let file = file.ok_or_else(|| io::Error::other("nothing to write to"))?;
        let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        Ok(file)
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Sink::Plain(file) => file.write(bytes),
            Sink::Zstd(Some(encoder), _) => encoder.write(bytes),
            Sink::Zstd(None, _) => Err(io::Error::other("no frame was begun")),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// gzip, zstd, xz and bzip2 say so in their first bytes.
fn is_compressed(begins: &[u8]) -> bool {
    const MAGIC: [&[u8]; 4] = [&[0x1f, 0x8b], &[0x28, 0xb5, 0x2f, 0xfd], b"\xfd7zXZ", b"BZh"];
    MAGIC.iter().any(|magic| begins.starts_with(magic))
}
