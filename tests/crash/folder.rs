//! The cache folder as it lies there, and what a power cut could do to it.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fastrand::Rng;
use larder::oci::{Algorithm, Digest};
use redb::{ReadableDatabase as _, ReadableTable as _};

/// What a damaged folder means for what it held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// Bytes on their way in were lost or spoilt, or there are files that nobody knows.
    Rubbish,
    /// The index is that of an earlier moment.
    OldIndex,
    /// There is no index, or one that cannot be read, and no copy of it.
    NoIndex,
    /// There is no index, or one that cannot be read, and a copy of some earlier moment.
    IndexFromCopy,
}

pub struct Folder {
    home: PathBuf,
    /// Put there by [`Folder::damage`], not by Larder.
    strays: Vec<PathBuf>,
}

/// Bytes as the disk counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Du {
    pub blobs: u64,
    pub staging: u64,
    pub index: u64,
    /// Damaged blobs, and indexes that were put aside.
    pub aside: u64,
}

impl Du {
    pub fn sum(&self) -> u64 {
        self.blobs + self.staging + self.index + self.aside
    }
}

impl Folder {
    pub fn new(home: &Path) -> Folder {
        Folder {
            home: home.to_owned(),
            strays: Vec::new(),
        }
    }

    pub fn home(&self) -> &Path {
        &self.home
    }

    pub fn cache(&self) -> PathBuf {
        self.home.join("cache")
    }

    /// Larder's own log, which it appends to.
    pub fn log(&self) -> File {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.home.join("larder.log"));
        file.expect("a log file")
    }

    /// Among Larder's own lines, for whoever has to find out what went wrong.
    pub fn note(&self, what: &str) {
        writeln!(self.log(), "harness: {what}").expect("a log that takes a line");
    }

    fn index(&self) -> PathBuf {
        self.cache().join("index.redb")
    }

    fn copy(&self) -> PathBuf {
        self.cache().join("index.copy")
    }

    fn damaged_indexes(&self) -> Vec<(String, u64, PathBuf)> {
        let mut files = self.files(".");
        files.retain(|(name, ..)| name.starts_with("index.redb.damaged"));
        files
    }

    fn saved_index(&self) -> PathBuf {
        self.home.join("index.saved")
    }

    /// Name, length and path of every file of a folder, strays left out.
    fn files(&self, folder: &str) -> Vec<(String, u64, PathBuf)> {
        let entries = std::fs::read_dir(self.cache().join(folder))
            .into_iter()
            .flatten()
            .flatten();
        let files = entries.filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            Some((name, entry.metadata().ok()?.len(), entry.path()))
        });
        files.filter(|(_, _, path)| !self.strays.contains(path)).collect()
    }

    /// Blobs, and when each was renamed into its place.
    pub fn blobs(&self) -> BTreeMap<Digest, SystemTime> {
        let files = self.files("blobs/sha256").into_iter();
        files
            .filter_map(|(name, _, path)| {
                let meta = std::fs::metadata(path).ok()?;
                let since = Duration::new(meta.ctime().try_into().ok()?, meta.ctime_nsec().try_into().ok()?);
                Some((Digest::from_hex(Algorithm::Sha256, &name)?, UNIX_EPOCH + since))
            })
            .collect()
    }

    pub fn staged(&self) -> Vec<(String, u64)> {
        self.files("staging")
            .into_iter()
            .map(|(name, len, _)| (name, len))
            .collect()
    }

    /// The keys under which something is staged.
    pub fn parts(&self) -> Vec<Digest> {
        let names = self.staged().into_iter();
        names
            .filter_map(|(name, _)| Digest::from_hex(Algorithm::Sha256, name.strip_suffix(".part")?))
            .collect()
    }

    pub fn du(&self) -> Du {
        let blocks =
            |files: Vec<(String, u64, PathBuf)>| files.iter().map(|(_, len, _)| len.div_ceil(4096) * 4096).sum();
        Du {
            blobs: blocks(self.files("blobs/sha256")) + blocks(self.files("blobs/sha512")),
            staging: blocks(self.files("staging")),
            index: [self.index(), self.copy()]
                .map(|path| std::fs::metadata(path).map_or(0, |meta| meta.blocks() * 512))
                .iter()
                .sum(),
            aside: blocks(self.files("quarantine")) + blocks(self.damaged_indexes()),
        }
    }

    /// Every blob is what its name says (L2).
    pub fn check_names(&self) -> Result<u64, String> {
        let mut bytes = 0;
        for (name, len, path) in self.files("blobs/sha256") {
            let Ok(content) = std::fs::read(&path) else { continue };
            bytes += len;
            if Digest::sha256(&content).hex() != name {
                return Err(format!("blobs/sha256/{name} ({len} bytes) is not what its name says"));
            }
        }
        Ok(bytes)
    }

    /// Links in the index whose blob is not in it. Looked up in a copy: opening mends what a kill left.
    pub fn loose_links(&self) -> usize {
        type Rows = redb::TableDefinition<'static, &'static [u8], &'static [u8]>;
        let (links, blobs): (Rows, Rows) = (redb::TableDefinition::new("links"), redb::TableDefinition::new("blobs"));
        let copy = self.home.join("index.look");
        std::fs::copy(self.index(), &copy).expect("a copy of the index");
        let index = redb::Database::open(&copy).expect("an index that a kill did not spoil");
        let rows = index.begin_read().expect("a look at it");
        let open = |table| rows.open_table(table).expect("a table");
        let (links, blobs) = (open(links), open(blobs));
        let is_loose = |key: &[u8]| {
            let end = key.iter().position(|b| *b == 0).expect("a repository");
            blobs.get(&key[end + 1..]).expect("a blob's row").is_none()
        };
        let rows = links.iter().expect("the links").flatten();
        rows.filter(|(key, _)| is_loose(key.value())).count()
    }

    /// Keeps the index as it is now. Only while nobody has it open.
    pub fn save_index(&self) {
        std::fs::copy(self.index(), self.saved_index()).expect("a copy of the index");
    }

    /// Does something to the folder, and says what.
    pub fn damage(&mut self, rng: &mut Rng) -> (&'static str, Damage) {
        let damage = match rng.u8(..8) {
            0 | 1 => self.spoil_part(rng).then_some(("part", Damage::Rubbish)),
            2 if self.saved_index().exists() => {
                std::fs::copy(self.saved_index(), self.index()).expect("an index to copy back");
                Some(("old index", Damage::OldIndex))
            }
            3 => {
                std::fs::remove_file(self.index()).expect("an index to remove");
                let _ = std::fs::remove_file(self.copy());
                Some(("index and copy removed", Damage::NoIndex))
            }
            4 => {
                let file = std::fs::OpenOptions::new().write(true).open(self.index());
                let file = file.expect("an index to cut");
                let len = file.metadata().expect("its size").len();
                file.set_len(rng.u64(..len)).expect("an index to cut");
                match rng.bool() {
                    true => {
                        let _ = std::fs::remove_file(self.copy());
                        Some(("index cut, copy removed", Damage::NoIndex))
                    }
                    false if self.copy().exists() => Some(("index cut", Damage::IndexFromCopy)),
                    false => Some(("index cut, no copy", Damage::NoIndex)),
                }
            }
            _ => None,
        };
        damage.unwrap_or_else(|| {
            self.leave_strays(rng);
            ("strays", Damage::Rubbish)
        })
    }

    /// A file's length outlived its bytes, or the other way round.
    fn spoil_part(&self, rng: &mut Rng) -> bool {
        let files = self.files("staging");
        let parts: Vec<_> = files.iter().filter(|(name, ..)| name.ends_with(".part")).collect();
        let Some((_, len, path)) = parts.get(rng.usize(..parts.len().max(1))) else {
            return false;
        };
        let kept = if *len == 0 { 0 } else { rng.u64(..*len) };
        let file = std::fs::OpenOptions::new()
            .write(true)
            .open(path)
            .expect("a part to spoil");
        file.set_len(kept).expect("a part to cut");
        if rng.bool() {
            file.set_len(*len).expect("a part to fill");
        }
        true
    }

    fn leave_strays(&mut self, rng: &mut Rng) {
        let hex = Digest::sha256(&rng.u64(..).to_le_bytes()).hex();
        let staging = self.cache().join("staging");
        let left = [
            staging.join(format!("sha256-{hex}.{}.tmp", rng.u32(..50))),
            staging.join(format!("sha256-{hex}.part.bak")),
            staging.join("probe.3.tmp"),
            staging.join(format!("sha256-{}.part", &hex[1..])),
        ];
        for path in left {
            std::fs::write(path, vec![9; rng.usize(..9000)]).expect("a stray file");
        }
        // What is no blob is not Larder's to remove, nor to count.
        let stray = self.cache().join(format!("blobs/sha256/{}.tmp", &hex[..20]));
        std::fs::write(&stray, vec![9; rng.usize(..9000)]).expect("a stray file");
        self.strays.push(stray);
        // Renamed into its place, and then the power went.
        let bytes = crate::support::noise(rng.u64(..), rng.usize(..9000));
        let whole = self
            .cache()
            .join(format!("blobs/sha256/{}", Digest::sha256(&bytes).hex()));
        std::fs::write(whole, bytes).expect("a blob that the index does not know");
    }
}
