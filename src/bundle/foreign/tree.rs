//! A folder or a tar as files by name. Nothing is unpacked: a tar is gone through once, and read where its files are.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::super::archive::{Kind, Reader};
use super::super::error::BundleError;
use super::super::input;
use crate::text::is_visible;

/// More than any image layout has.
const MAX_ENTRIES: usize = 500_000;
const MAX_NAME: usize = 512;

pub(super) enum Tree {
    Folder(PathBuf),
    Tar {
        path: PathBuf,
        files: HashMap<String, (u64, u64)>,
    },
}

impl Tree {
    pub(super) fn open(path: &Path) -> Result<Tree, BundleError> {
        if path.is_dir() {
            return Ok(Tree::Folder(path.to_owned()));
        }
        let mut magic = [0; 2];
        let mut file = File::open(path).map_err(BundleError::file("open", path))?;
        if file.read(&mut magic).map_err(BundleError::file("read", path))? == 2 {
            let by = match magic {
                [0x1f, 0x8b] => Some("gunzip"),
                [0x28, 0xb5] => Some("unzstd"),
                _ => None,
            };
            if let Some(by) = by {
                let path = path.display();
                return Err(BundleError::NotABundle(format!(
                    "{path} is compressed, and such an archive is not read from its beginning to its end: unpack it first ({by})"
                )));
            }
        }
        let mut input = input::open(&[path.to_owned()])?;
        let mut reader = Reader::new(&mut *input);
        let (mut files, mut links) = (HashMap::new(), HashMap::new());
        let mut count = 0;
        while let Some(entry) = reader.entry()? {
            count += 1;
            if count > MAX_ENTRIES {
                return Err(BundleError::hostile(format!("more than {MAX_ENTRIES} entries")));
            }
            let name = plain(&entry.name)?;
            let before = match entry.kind {
                Kind::Folder => false,
                Kind::File => files.insert(name, (entry.offset, entry.size)).is_some(),
                // docker save writes a layer that it has written before as a link. Nothing is ever made of one here.
                Kind::Link(target) => {
                    let target = resolve(&name, &target)?;
                    links.insert(name, target).is_some()
                }
            };
            if before {
                return Err(BundleError::hostile(format!("{:?} is there twice", entry.name)));
            }
        }
        for (name, target) in links {
            if let Some(place) = files.get(&target).copied()
                && files.insert(name.clone(), place).is_some()
            {
                return Err(BundleError::hostile(format!("{name:?} is there twice")));
            }
        }
        Ok(Tree::Tar {
            path: path.to_owned(),
            files,
        })
    }

    /// Bytes of a file; `None` if there is none of that name.
    pub(super) fn size(&self, name: &str) -> Option<u64> {
        match self {
            Tree::Folder(_) => {
                let meta = std::fs::symlink_metadata(self.place(name).ok()?).ok()?;
                meta.is_file().then_some(meta.len())
            }
            Tree::Tar { files, .. } => files.get(name).map(|(_, size)| *size),
        }
    }

    pub(super) fn file(&self, name: &str) -> Result<(File, u64), BundleError> {
        let missing = || BundleError::NotABundle(format!("it has no file {name:?}"));
        match self {
            Tree::Folder(_) => {
                let path = self.place(name)?;
                let file = OpenOptions::new()
                    .read(true)
                    .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
                    .open(&path)
                    .map_err(BundleError::file("open", &path))?;
                let meta = file.metadata().map_err(BundleError::file("read", &path))?;
                if meta.is_file() {
                    Ok((file, meta.len()))
                } else {
                    Err(missing())
                }
            }
            Tree::Tar { path, files } => {
                let (offset, size) = files.get(name).ok_or_else(missing)?;
                let mut file = File::open(path).map_err(BundleError::file("open", path))?;
                file.seek(SeekFrom::Start(*offset))
                    .map_err(BundleError::file("read", path))?;
                Ok((file, *size))
            }
        }
    }

    pub(super) fn read(&self, name: &str) -> Result<Box<dyn Read>, BundleError> {
        let (file, size) = self.file(name)?;
        Ok(Box::new(file.take(size)))
    }

    /// All of a file of at most `limit` bytes.
    pub(super) fn small(&self, name: &str, limit: u64) -> Result<Vec<u8>, BundleError> {
        let (file, size) = self.file(name)?;
        if size > limit {
            return Err(BundleError::hostile(format!(
                "{name:?} has {size} bytes, expected at most {limit}"
            )));
        }
        let mut bytes = Vec::new();
        file.take(size).read_to_end(&mut bytes).map_err(BundleError::Read)?;
        Ok(bytes)
    }

    fn place(&self, name: &str) -> Result<PathBuf, BundleError> {
        let Tree::Folder(root) = self else {
            return Ok(PathBuf::new());
        };
        Ok(root.join(plain(name)?))
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

/// Where a link leads, if that is inside the archive.
pub(super) fn resolve(link: &str, target: &str) -> Result<String, BundleError> {
    let outside = || BundleError::hostile(format!("the link {link:?} leads outside, to {target:?}"));
    if target.starts_with('/') || target.len() > MAX_NAME {
        return Err(outside());
    }
    let mut parts: Vec<&str> = link.split('/').collect();
    parts.pop();
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
