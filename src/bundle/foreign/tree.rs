//! A folder or a tar as files by name. Nothing is unpacked to a disk: a tar is gone through once, and read where its
//! files are. One that is compressed is gone through again for what is read later, from its beginning; its documents,
//! which are needed in any order, are kept in memory.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

use super::super::BUFFER;
use super::super::archive::{Kind, Reader};
use super::super::error::BundleError;
use super::super::input::{Input, Section};
use super::super::unpack::{Compression, Limits, MAGIC, Unpacked};
use crate::oci::{Algorithm, Hasher};
use crate::text::is_visible;

/// More than any image layout has.
const MAX_ENTRIES: usize = 500_000;
const MAX_NAME: usize = 512;
/// Links that lead to links: the kernel follows as many.
const MAX_HOPS: usize = 40;
/// Documents of a compressed archive are kept up to these sizes.
const MAX_DOCUMENT: u64 = 64 << 20;
const MAX_DOCUMENTS: u64 = 256 << 20;

/// Gets the bytes that were read from the archive, as they are read.
pub type Told = Arc<dyn Fn(u64) + Send + Sync>;

pub(super) enum Tree {
    Folder { path: PathBuf, root: File },
    Tar(Tar),
}

pub(super) struct Tar {
    source: Source,
    files: HashMap<String, Spot>,
    /// Documents of a compressed archive, by where they begin.
    documents: HashMap<u64, Bytes>,
    /// The folder that everything is in, with its slash; mostly none.
    prefix: String,
}

/// A file of a tar.
#[derive(Clone, Copy)]
struct Spot {
    offset: u64,
    size: u64,
    begins: [u8; MAGIC],
}

/// The file that a tar is read from, as often as needed.
struct Source {
    file: Arc<File>,
    len: u64,
    compression: Option<Compression>,
    told: Told,
}

/// A reader that reports how much was read.
struct Counted(Section, Told);

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.0.read(buffer)?;
        (self.1)(count as u64);
        Ok(count)
    }
}

impl Source {
    fn open(&self) -> Result<Box<dyn Input>, BundleError> {
        let section = Section::new(self.file.clone(), 0, self.len);
        Ok(match self.compression {
            None => Box::new(section),
            Some(_) => Box::new(self.unpack(section)?),
        })
    }

    fn unpack(&self, section: Section) -> Result<Unpacked<Counted>, BundleError> {
        let compression = self.compression.unwrap_or(Compression::Gzip);
        let counted = Counted(section, self.told.clone());
        Unpacked::new(counted, compression, Limits::FILES).map_err(BundleError::reading)
    }
}

impl Tree {
    pub(super) fn folder(path: &Path) -> Result<Tree, BundleError> {
        Ok(Tree::Folder {
            path: path.to_owned(),
            root: File::open(path).map_err(BundleError::file("open", path))?,
        })
    }

    /// A tar, compressed or not.
    pub(super) fn tar(file: Arc<File>, told: Told) -> Result<Tree, BundleError> {
        let mut begins = Vec::new();
        let len = file.metadata().map_err(BundleError::Read)?.len();
        let mut head = Section::new(file.clone(), 0, len.min(MAGIC as u64));
        head.read_to_end(&mut begins).map_err(BundleError::Read)?;
        let source = Source {
            file,
            len,
            compression: Compression::of(&begins),
            told,
        };
        if let Some(compression) = source.compression {
            let mut begins = Vec::new();
            let inner = source.open()?.take(MAGIC as u64).read_to_end(&mut begins);
            inner.map_err(BundleError::reading)?;
            if let Some(inner) = Compression::of(&begins) {
                return Err(BundleError::Bad(format!(
                    "the archive is compressed twice, by {} within {}: unpack it once, and import that ({})",
                    inner.as_str(),
                    compression.as_str(),
                    compression.unpacker()
                )));
            }
        }
        let mut tar = Tar {
            source,
            files: HashMap::new(),
            documents: HashMap::new(),
            prefix: String::new(),
        };
        tar.scan()?;
        tar.prefix = tar.find_prefix()?;
        Ok(Tree::Tar(tar))
    }

    /// Bytes of a file; `None` if there is none of that name.
    pub(super) fn size(&self, name: &str) -> Option<u64> {
        match self {
            Tree::Folder { .. } => self.file(name).ok().map(|(_, len)| len),
            Tree::Tar(tar) => tar.spot(name).map(|spot| spot.size),
        }
    }

    /// Where a file stands among the others: two names of one file stand at the same place. For a folder, nowhere.
    pub(super) fn offset(&self, name: &str) -> Option<u64> {
        match self {
            Tree::Folder { .. } => None,
            Tree::Tar(tar) => tar.spot(name).map(|spot| spot.offset),
        }
    }

    /// How a file is compressed, by its first bytes.
    pub(super) fn compression(&self, name: &str) -> Result<Option<Compression>, BundleError> {
        match self {
            Tree::Folder { .. } => {
                let mut begins = Vec::new();
                let (file, _) = self.file(name)?;
                file.take(MAGIC as u64)
                    .read_to_end(&mut begins)
                    .map_err(BundleError::Read)?;
                Ok(Compression::of(&begins))
            }
            Tree::Tar(tar) => {
                let spot = tar.spot(name).ok_or_else(|| missing(name))?;
                let known = usize::try_from(spot.size).unwrap_or(MAGIC).min(MAGIC);
                Ok(Compression::of(&spot.begins[..known]))
            }
        }
    }

    /// All of a document of at most `limit` bytes.
    pub(super) fn small(&self, name: &str, limit: u64) -> Result<Vec<u8>, BundleError> {
        let size = self.size(name).ok_or_else(|| missing(name))?;
        if size > limit {
            return Err(BundleError::hostile(format!(
                "{name:?} has {size} bytes, expected at most {limit}"
            )));
        }
        let mut bytes = Vec::new();
        match self {
            Tree::Folder { .. } => self.file(name)?.0.take(size).read_to_end(&mut bytes),
            Tree::Tar(tar) => {
                let spot = tar.spot(name).ok_or_else(|| missing(name))?;
                match (tar.documents.get(&spot.offset), tar.source.compression) {
                    (Some(document), _) => return Ok(document.to_vec()),
                    (None, None) => tar.section(&spot).read_to_end(&mut bytes),
                    (None, Some(_)) if size == 0 => Ok(0),
                    (None, Some(_)) => {
                        return Err(BundleError::NotABundle(format!("{name:?} is no JSON document")));
                    }
                }
            }
        }
        .map_err(BundleError::Read)?;
        match bytes.len() as u64 == size {
            true => Ok(bytes),
            false => Err(BundleError::Short(format!("within {name:?}"))),
        }
    }

    /// [`Tree::small`] for a document that only its image depends on. `Err` inside: what is wrong with it.
    pub(super) fn document(&self, name: &str, limit: u64) -> Result<Result<Vec<u8>, String>, BundleError> {
        match self.small(name, limit) {
            Ok(bytes) => Ok(Ok(bytes)),
            Err(BundleError::NotABundle(why) | BundleError::Hostile(why)) => Ok(Err(why)),
            Err(error) => Err(error),
        }
    }

    /// For files that are read in the order in which they stand.
    pub(super) fn cursor(&self) -> Cursor<'_> {
        Cursor { tree: self, tape: None }
    }

    /// A file of a folder. Links are followed as long as they stay inside.
    fn file(&self, name: &str) -> Result<(File, u64), BundleError> {
        let Tree::Folder { path, root } = self else {
            return Err(missing(name));
        };
        let name = plain(name)?;
        let path = path.join(&name);
        // Not waited for: who opens a pipe would wait for its writer.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let opened = match openat2(root, name.as_str(), flags, Mode::empty(), beneath) {
            Ok(opened) => File::from(opened),
            Err(Errno::XDEV) => return Err(BundleError::hostile(format!("{name:?} leads outside of the folder"))),
            Err(Errno::NOENT | Errno::NOTDIR) => return Err(missing(&name)),
            Err(error) => return Err(BundleError::file("open", &path)(error.into())),
        };
        let meta = opened.metadata().map_err(BundleError::file("read", &path))?;
        match meta.is_file() {
            true => Ok((opened, meta.len())),
            false => Err(missing(&name)),
        }
    }
}

fn missing(name: &str) -> BundleError {
    BundleError::NotABundle(format!("it has no file {name:?}"))
}

impl Tar {
    /// Goes through the archive once.
    fn scan(&mut self) -> Result<(), BundleError> {
        let mut input = self.source.open()?;
        let mut reader = Reader::new(&mut *input);
        let mut links: HashMap<String, String> = HashMap::new();
        let mut twice: Vec<(String, Spot, Spot)> = Vec::new();
        let (mut count, mut kept) = (0, 0);
        while let Some(entry) = reader.entry()? {
            count += 1;
            if count > MAX_ENTRIES {
                return Err(BundleError::hostile(format!("more than {MAX_ENTRIES} entries")));
            }
            let name = plain(&entry.name)?;
            let is_other = match entry.kind {
                Kind::Folder => false,
                Kind::File => {
                    let mut begins = [0; MAGIC];
                    let known = reader.fill(&mut begins)?;
                    let spot = Spot {
                        offset: entry.offset,
                        size: entry.size,
                        begins,
                    };
                    if self.source.compression.is_some() && is_document(&begins[..known]) && spot.size <= MAX_DOCUMENT {
                        kept += spot.size;
                        if kept > MAX_DOCUMENTS {
                            return Err(self.too_many_documents());
                        }
                        let mut document = begins[..known].to_vec();
                        document.extend(reader.all(MAX_DOCUMENT)?);
                        self.documents.insert(spot.offset, document.into());
                    }
                    // A file that is there twice with equal bytes is taken: all readers of the archive see one content.
                    match self.files.get(&name) {
                        Some(first) if first.size == spot.size => twice.push((name.clone(), *first, spot)),
                        Some(_) => return Err(there_twice(&name)),
                        None => {
                            self.files.insert(name.clone(), spot);
                        }
                    }
                    links.contains_key(&name)
                }
                // docker save before version 25 writes a layer that it has written before as a link. None is ever made.
                Kind::Link(target) => {
                    let target = resolve(&name, &target)?;
                    let before = links.insert(name.clone(), target.clone());
                    before.is_some_and(|before| before != target) || self.files.contains_key(&name)
                }
                Kind::HardLink(target) => {
                    let target = resolve_hard(&name, &target)?;
                    let before = links.insert(name.clone(), target.clone());
                    before.is_some_and(|before| before != target) || self.files.contains_key(&name)
                }
            };
            if is_other {
                return Err(there_twice(&name));
            }
        }
        // Bytes behind the end would be another archive, which other readers would not see.
        reader.end()?;
        drop(input);
        self.compare(&twice)?;
        for name in links.keys() {
            let mut target = name;
            let mut hops = 0;
            while let Some(next) = links.get(target) {
                target = next;
                hops += 1;
                if hops > MAX_HOPS {
                    return Err(BundleError::hostile(format!("the link {name:?} leads to no end")));
                }
            }
            if let Some(spot) = self.files.get(target).copied() {
                self.files.insert(name.clone(), spot);
            }
        }
        Ok(())
    }

    /// Reads the files that are there twice, in one more pass. Errors: two of one name differ.
    fn compare(&self, twice: &[(String, Spot, Spot)]) -> Result<(), BundleError> {
        if twice.is_empty() {
            return Ok(());
        }
        let spots = twice.iter().flat_map(|(_, first, again)| [first, again]);
        let sizes: BTreeMap<u64, u64> = spots.map(|spot| (spot.offset, spot.size)).collect();
        let mut input = self.source.open()?;
        let mut digests = HashMap::new();
        let (mut at, mut buffer) = (0, vec![0; BUFFER]);
        for (offset, size) in sizes {
            let ahead = offset - at;
            if input.skip(ahead).map_err(BundleError::reading)? < ahead {
                return Err(BundleError::Short("before a file that is there twice".to_owned()));
            }
            let mut hasher = Hasher::new(Algorithm::Sha256);
            let mut content = (&mut *input).take(size);
            let mut left = size;
            while left > 0 {
                match content.read(&mut buffer).map_err(BundleError::reading)? {
                    0 => return Err(BundleError::Short("within a file that is there twice".to_owned())),
                    count => {
                        hasher.update(&buffer[..count]);
                        left -= count as u64;
                    }
                }
            }
            at = offset + size;
            digests.insert(offset, hasher.finish());
        }
        let is_other =
            |(_, first, again): &&(String, Spot, Spot)| digests.get(&first.offset) != digests.get(&again.offset);
        match twice.iter().find(is_other) {
            Some((name, ..)) => Err(there_twice(name)),
            None => Ok(()),
        }
    }

    fn too_many_documents(&self) -> BundleError {
        let by = self.source.compression.map_or("", Compression::unpacker);
        BundleError::hostile(format!(
            "its documents have more than {MAX_DOCUMENTS} bytes, which are kept in memory for a compressed archive: unpack it first ({by})"
        ))
    }

    /// The one folder that has what an archive begins with, where the archive itself does not: `tar cz layout/`.
    fn find_prefix(&self) -> Result<String, BundleError> {
        let begins = ["index.json", "manifest.json", "repositories"];
        if begins.iter().any(|name| self.files.contains_key(*name)) {
            return Ok(String::new());
        }
        let folders = self.files.keys().filter_map(|name| {
            let (folder, name) = name.rsplit_once('/')?;
            // A manifest of its own in every folder is no mark; what stands beside it is.
            let is_layout = name == "oci-layout" && self.files.contains_key(&format!("{folder}/index.json"));
            let is_other = name == "manifest.json" && !self.files.contains_key(&format!("{folder}/oci-layout"));
            (is_layout || is_other).then_some(folder)
        });
        let folders: BTreeSet<&str> = folders.collect();
        let mut folders = folders.into_iter();
        match (folders.next(), folders.next()) {
            (None, _) => Ok(String::new()),
            (Some(folder), None) => Ok(format!("{folder}/")),
            (Some(one), Some(other)) => Err(BundleError::NotABundle(format!(
                "images are in several of its folders, {one:?} and {other:?}: unpack it, and import one folder after the other"
            ))),
        }
    }

    fn spot(&self, name: &str) -> Option<Spot> {
        let name = plain(name).ok()?;
        match self.prefix.as_str() {
            "" => self.files.get(&name).copied(),
            prefix => self.files.get(&format!("{prefix}{name}")).copied(),
        }
    }

    fn section(&self, spot: &Spot) -> Section {
        Section::new(self.source.file.clone(), spot.offset, spot.size)
    }
}

fn there_twice(name: &str) -> BundleError {
    BundleError::hostile(format!("{name:?} is there twice, with different content"))
}

/// True for what may be JSON.
fn is_document(begins: &[u8]) -> bool {
    let first = begins.iter().find(|byte| !byte.is_ascii_whitespace());
    first.is_none_or(|byte| matches!(byte, b'{' | b'['))
}

/// Files one after another. Out of their order a compressed archive is begun again.
pub(super) struct Cursor<'a> {
    tree: &'a Tree,
    tape: Option<Tape>,
}

/// The content of a compressed archive, as far as it was read.
struct Tape {
    input: Unpacked<Counted>,
    at: u64,
}

impl Read for Tape {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.at += count as u64;
        Ok(count)
    }
}

impl Cursor<'_> {
    /// The bytes of a file, and how many.
    pub(super) fn open(&mut self, name: &str) -> Result<(Box<dyn Read + '_>, u64), BundleError> {
        let tar = match self.tree {
            Tree::Folder { .. } => {
                let (file, len) = self.tree.file(name)?;
                return Ok((Box::new(file.take(len)), len));
            }
            Tree::Tar(tar) => tar,
        };
        let spot = tar.spot(name).ok_or_else(|| missing(name))?;
        if let Some(document) = tar.documents.get(&spot.offset) {
            return Ok((Box::new(io::Cursor::new(document.clone())), spot.size));
        }
        if tar.source.compression.is_none() {
            let counted = Counted(tar.section(&spot), tar.source.told.clone());
            return Ok((Box::new(counted), spot.size));
        }
        let mut tape = match self.tape.take().filter(|tape| tape.at <= spot.offset) {
            Some(tape) => tape,
            None => Tape {
                input: tar
                    .source
                    .unpack(Section::new(tar.source.file.clone(), 0, tar.source.len))?,
                at: 0,
            },
        };
        let ahead = spot.offset - tape.at;
        let passed = io::copy(&mut (&mut tape).take(ahead), &mut io::sink()).map_err(BundleError::reading)?;
        if passed < ahead {
            return Err(BundleError::Short(format!("before {name:?}")));
        }
        let tape = self.tape.insert(tape);
        Ok((Box::new(tape.take(spot.size)), spot.size))
    }
}

/// A name inside an archive: relative, without `.`, `..` and what no such name holds.
pub(super) fn plain(name: &str) -> Result<String, BundleError> {
    let refused = || {
        BundleError::hostile(format!(
            "the name {:?}",
            name.chars().take(MAX_NAME).collect::<String>()
        ))
    };
    let trimmed = name.strip_prefix("./").unwrap_or(name);
    let trimmed = trimmed.strip_suffix('/').unwrap_or(trimmed);
    if name == "./" || name == "." {
        return Ok(String::new());
    }
    let fits = |part: &str| !matches!(part, "" | "." | "..") && is_visible(part) && !part.contains('\\');
    match trimmed.len() <= MAX_NAME && trimmed.split('/').all(fits) {
        true => Ok(trimmed.to_owned()),
        false => Err(refused()),
    }
}

/// Returns where a symbolic link leads, if that is inside the archive: relative to the link's folder.
pub(super) fn resolve(link: &str, target: &str) -> Result<String, BundleError> {
    let folder = link.rsplit_once('/').map_or("", |(folder, _)| folder);
    resolve_in(folder, link, target)
}

/// Returns where a hard link leads, if that is inside the archive: relative to the archive's root.
fn resolve_hard(link: &str, target: &str) -> Result<String, BundleError> {
    resolve_in("", link, target)
}

fn resolve_in(folder: &str, link: &str, target: &str) -> Result<String, BundleError> {
    let outside = || BundleError::hostile(format!("the link {link:?} leads outside, to {target:?}"));
    if target.starts_with('/') || target.len() > MAX_NAME {
        return Err(outside());
    }
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop().ok_or_else(outside)?;
            }
            part => parts.push(part),
        }
    }
    plain(&parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_and_links_stay_inside() {
        assert_eq!(plain("./blobs/sha256/ab").unwrap(), "blobs/sha256/ab");
        for bad in ["/etc/passwd", "../x", "a/../b", "a//b", "", "a\\b", "a\0b", "a/./b"] {
            assert!(plain(bad).is_err(), "{bad:?}");
        }
        assert_eq!(resolve("ab/layer.tar", "../cd/layer.tar").unwrap(), "cd/layer.tar");
        for bad in ["../../x", "/etc/passwd", "../../../etc/shadow"] {
            assert!(resolve("ab/layer.tar", bad).is_err(), "{bad}");
        }
        // A hard link names an entry as the archive does.
        assert_eq!(resolve_hard("ab/layer.tar", "./cd/layer.tar").unwrap(), "cd/layer.tar");
        let error = resolve_hard("ab/layer.tar", "../x").unwrap_err().to_string();
        assert!(error.contains("the link \"ab/layer.tar\" leads outside"), "{error}");
    }

    proptest! {
        #[test]
        fn nothing_leads_outside(link in "[a./]{0,12}", target in "[a./]{0,12}") {
            if let Ok(place) = resolve(&link, &target) {
                prop_assert!(!place.starts_with('/') && place.split('/').all(|part| part != ".."));
            }
        }
    }
}
