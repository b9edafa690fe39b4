//! The index when it is damaged or gone, and the copy that it is built anew from then.
//!
//! - **Opening**: an index that is not whole (`proof`, `guard`) is put aside. Another one is built beside it from the copy and
//!   takes its place when it is on disk; so a crash on the way changes nothing. What has come since the copy was made is found
//!   again by `startup::reconcile` (blobs, linked to nobody) or asked for again (tags, links).
//! - **Copying**: once a day, at the end, and soon after an operator has pinned, unpinned or removed anything or imported a
//!   bundle. The copy is written beside the last one, synced and renamed (L6); it counts against the limit (L5).
//!
//! Index and copy have the same number. An index whose number is lower is older than its copy: somebody put an old file there,
//! or damage in its last transaction made it go back to the one before.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use jiff::Timestamp;

use super::clock::unix_ms;
use super::copy::{self, Encoder, Found, Stamp, TABLES};
use super::database::{self, Database, Op, Table};
use super::error::StoreError;
use super::index::{Index, on_disk};
use super::keys::Tree;
use super::relief::{self, Relief};
use super::{Inner, Store, disk, privacy, startup, wishes};
use crate::text::count;

/// The number of the last copy, in [`Table::Meta`].
const NUMBER: &[u8] = b"copy";
const EVERY: Duration = Duration::from_secs(24 * 3600);
/// From the start, or from one copy to the next that is wanted; and so many times as long as the last one took.
const PAUSE: Duration = Duration::from_secs(10);
const PAUSES: u32 = 100;
/// After a copy that failed.
const AGAIN_AFTER: Duration = Duration::from_secs(300);

/// How the index was found at the start, if it was not whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// The damage, in words.
    pub found: String,
    /// When the copy was made that it was rebuilt from, Unix milliseconds; `None`: there was none.
    pub copy_ms: Option<u64>,
    /// Tags in the copy.
    pub tags: u64,
    pub pins: u64,
    /// True if the copy had all that was written to it.
    pub is_whole: bool,
}

/// How it is with the index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IndexState {
    pub recovery: Option<Recovery>,
    /// Damage found since the start: nothing is written down any more.
    pub damage: Option<String>,
    /// When its copy was made, Unix milliseconds.
    pub copied_ms: Option<u64>,
}

impl Recovery {
    /// In one sentence, for people.
    pub fn text(&self) -> String {
        let found = &self.found;
        match (self.copy_ms.map(shown), self.is_whole) {
            (Some(copy), true) => format!(
                "damaged or gone at the start ({found}), and rebuilt from its copy of {copy}: {}, {}",
                count(self.tags, "tag"),
                count(self.pins, "pin")
            ),
            (Some(copy), false) => format!(
                "damaged or gone at the start ({found}), and rebuilt from what is left of its copy of {copy}, which is damaged too: {}, {}; some may be lost",
                count(self.tags, "tag"),
                count(self.pins, "pin")
            ),
            (None, _) => {
                format!(
                    "damaged or gone at the start ({found}), and rebuilt from the blobs without a copy: pins are lost"
                )
            }
        }
    }
}

impl IndexState {
    /// Describes the damage in one sentence; `None` if all is well.
    pub fn trouble(&self) -> Option<String> {
        match &self.damage {
            Some(what) => Some(format!(
                "damaged ({what}): what is in memory is served, and nothing is written down; a restart rebuilds it from its copy{}",
                self.copied_ms
                    .map(|ms| format!(" of {}", shown(ms)))
                    .unwrap_or_default()
            )),
            None => self.recovery.as_ref().map(Recovery::text),
        }
    }
}

/// All that is read at the start.
pub(super) struct Opened {
    pub(super) database: Database,
    pub(super) index: Index,
    pub(super) private: privacy::Marks,
    pub(super) wishes: wishes::Shared,
    pub(super) copying: Copying,
    pub(super) recovery: Option<Recovery>,
}

/// Opens the index, and builds another one if it is damaged or gone. `shelves` prepares the one in memory. Blocking.
///
/// Errors: what keeps it from being used that is no damage, such as a missing right.
pub(super) fn open(tree: &Tree, shelves: impl Fn(&mut Index)) -> Result<Opened, StoreError> {
    let copied = stamp(tree)?;
    let mut recovery = None;
    if let Some(found) = look(tree, copied.is_some())? {
        recovery = Some(rebuild(tree, found)?);
    }
    let loaded = match load(tree, copied, &shelves) {
        Err(error) => match damage_of(&error) {
            // Just built, it is as the disk gives it: another attempt would find the same.
            Some(found) if recovery.is_none() => {
                recovery = Some(rebuild(tree, found)?);
                load(tree, None, &shelves)
            }
            _ => Err(error),
        },
        loaded => loaded,
    };
    let (database, index, private, wishes) = loaded?;
    database.put_in_use();
    let copying = Copying::of(tree, copied, database.was_mended());
    Ok(Opened {
        database,
        index,
        private,
        wishes,
        copying,
        recovery,
    })
}

type Loaded = (Database, Index, privacy::Marks, wishes::Shared);

fn load(tree: &Tree, copied: Option<Stamp>, shelves: impl Fn(&mut Index)) -> Result<Loaded, StoreError> {
    let database = Database::open(tree)?;
    let mut index = Index::default();
    shelves(&mut index);
    startup::load(&database, &mut index)?;
    let (private, wishes) = (privacy::load(&database)?, wishes::load(&database)?);
    database.proved()?;
    let number = database.get(Table::Meta, NUMBER)?.map_or(0, |value| number_of(&value));
    match copied {
        Some(copied) if number < copied.number => Err(StoreError::IndexDamaged {
            path: tree.index(),
            what: "it is older than its copy".to_owned(),
        }),
        _ => Ok((database, index, private, wishes)),
    }
}

fn number_of(value: &[u8]) -> u64 {
    value.try_into().map_or(0, u64::from_le_bytes)
}

/// Finds damage that is seen from outside the file. `None` if there is none, or if there is no index yet.
fn look(tree: &Tree, has_copy: bool) -> Result<Option<String>, StoreError> {
    let path = tree.index();
    let len = match std::fs::metadata(&path) {
        Ok(meta) => meta.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let is_new = !has_copy && !startup::has_blobs(tree);
            return Ok((!is_new).then(|| "it is gone".to_owned()));
        }
        Err(error) => return Err(StoreError::io("look at", path)(error)),
    };
    if len == 0 {
        return Ok(Some("it is empty".to_owned()));
    }
    if let Some(found) = database::foreign_format(&path)? {
        return Err(found);
    }
    match std::fs::read(tree.index_mark()) {
        Ok(text) => {
            let text: String = String::from_utf8_lossy(&text).chars().take(500).collect();
            Ok(Some(format!("found while it was in use: {text}")))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StoreError::io("read", tree.index_mark())(error)),
    }
}

/// Returns the damage that an error reports, if it reports any.
fn damage_of(error: &StoreError) -> Option<String> {
    match error {
        StoreError::IndexDamaged { what, .. } => Some(what.clone()),
        StoreError::Index { source, .. } => match &**source {
            redb::Error::Io(error) if disk::is_damage(error) => Some(error.to_string()),
            _ => None,
        },
        StoreError::Io { source, .. } if disk::is_damage(source) => Some(source.to_string()),
        _ => None,
    }
}

/// Puts another index in the place of the one that is there, if any.
fn rebuild(tree: &Tree, found: String) -> Result<Recovery, StoreError> {
    metrics::counter!("larder_index_damaged_total", "found" => "start").increment(1);
    let (new, path) = (tree.new_index(), tree.index());
    let copy = open_copy(tree)?;
    let mut relief = Relief::of(tree, copy.as_ref());
    let given = loop {
        match build(&new, copy.as_ref()) {
            Err(error) if relief::is_full(&error) && relief.free() => {}
            built => break built?,
        }
    };
    relief.leave_some();
    let aside = free_name(|when| tree.damaged_index(when));
    let put_aside = match std::fs::metadata(&path) {
        Ok(meta) if meta.len() > 0 => {
            std::fs::rename(&path, &aside).map_err(StoreError::io("put aside", &path))?;
            aside.display().to_string()
        }
        _ => "nothing".to_owned(),
    };
    std::fs::rename(&new, &path).map_err(StoreError::io("put into place", &path))?;
    sync_folder(tree)?;
    remove(&tree.index_mark())?;
    let recovery = match given {
        Some(read) => Recovery {
            found,
            copy_ms: Some(read.stamp.map_or_else(|| made_ms(copy.as_ref()), |stamp| stamp.made_ms)),
            tags: read.tags,
            pins: read.pins,
            is_whole: read.is_whole && !read.without_links,
        },
        None => Recovery {
            found,
            copy_ms: None,
            tags: 0,
            pins: 0,
            is_whole: false,
        },
    };
    let (path, found) = (path.display(), &recovery.found);
    match recovery.copy_ms.map(shown) {
        Some(copy) if recovery.is_whole => {
            tracing::error!(%path, %found, put_aside, copy, tags = recovery.tags, pins = recovery.pins, "the index is damaged or gone: it was rebuilt from its copy; what has come since then is asked for again, or downloaded again");
        }
        Some(copy) => {
            tracing::error!(%path, %found, put_aside, copy, tags = recovery.tags, pins = recovery.pins, "the index is damaged or gone, and so is some of its copy: it was rebuilt from what is left; some pins may be lost; tags will be asked for again, and blobs downloaded again, because nobody knows any more who may have them");
        }
        None => {
            tracing::error!(%path, %found, put_aside, "the index is damaged or gone, and it has no copy: it is being rebuilt from the blobs; tags will be asked for again, and blobs downloaded again, because nobody knows any more who may have them; pins are lost");
        }
    }
    Ok(recovery)
}

/// Builds an index from the copy; an empty one if there is none.
fn build(new: &Path, copy: Option<&File>) -> Result<Option<Found>, StoreError> {
    let mut given = None;
    database::build(new, |put| {
        let Some(file) = copy else { return Ok(()) };
        let each = |table, key: &[u8], value: &[u8]| put(Op::Put(table, key.to_vec(), value.to_vec())).map_err(Stop);
        let read: Found = copy::read(file, each).map_err(|Stop(error)| error)?;
        if let Some(stamp) = read.stamp {
            put(Op::Put(
                Table::Meta,
                NUMBER.to_vec(),
                stamp.number.to_le_bytes().to_vec(),
            ))?;
        }
        given = Some(read);
        Ok(())
    })?;
    Ok(given)
}

/// An error that ends the reading of a copy.
struct Stop(StoreError);

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Stop {
        Stop(StoreError::io("read the copy of", "the index")(error))
    }
}

/// The copy, if there is one that can be read.
fn open_copy(tree: &Tree) -> Result<Option<File>, StoreError> {
    let path = tree.copy();
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound || disk::is_damage(&error) => return Ok(None),
        Err(error) => return Err(StoreError::io("open", path)(error)),
    };
    match copy::stamp(&file) {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => {
            let aside = free_name(|when| tree.foreign_copy(when));
            tracing::error!(path = %path.display(), put_aside = %aside.display(), "the copy of the index is that of another version of Larder, and cannot be read");
            std::fs::rename(&path, aside).map_err(StoreError::io("put aside", path))?;
            Ok(None)
        }
        Err(error) if !disk::is_damage(&error) => Err(StoreError::io("read", path)(error)),
        _ => Ok(Some(file)),
    }
}

/// The number of the copy, if that can be said.
fn stamp(tree: &Tree) -> Result<Option<Stamp>, StoreError> {
    match File::open(tree.copy()) {
        Ok(file) => Ok(copy::stamp(&file).ok().flatten()),
        Err(error) if error.kind() == io::ErrorKind::NotFound || disk::is_damage(&error) => Ok(None),
        Err(error) => Err(StoreError::io("open", tree.copy())(error)),
    }
}

fn made_ms(file: Option<&File>) -> u64 {
    let modified = file.and_then(|file| file.metadata().ok()?.modified().ok());
    let since = modified.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// A time for people, in whole seconds.
fn shown(ms: u64) -> String {
    let seconds = i64::try_from(ms / 1000).unwrap_or(i64::MAX);
    Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX).to_string()
}

/// A name with the time of now that nothing has yet.
fn free_name(name: impl Fn(&str) -> PathBuf) -> PathBuf {
    let when = Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
    let more = (1..1000).map(|nth| name(&format!("{when}.{nth}")));
    let mut names = std::iter::once(name(&when)).chain(more);
    names
        .find(|path| path.symlink_metadata().is_err())
        .unwrap_or_else(|| name(&when))
}

fn remove(path: &Path) -> Result<(), StoreError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::io("remove", path)(error)),
        _ => Ok(()),
    }
}

fn sync_folder(tree: &Tree) -> Result<(), StoreError> {
    let synced = File::open(tree.root()).and_then(|folder| folder.sync_all());
    synced.map_err(StoreError::io("sync", tree.root()))
}

/// Lists the damaged indexes that were put aside: when, where, and bytes on disk.
pub(super) fn put_aside(tree: &Tree) -> Vec<(SystemTime, PathBuf, u64)> {
    let entries = std::fs::read_dir(tree.root()).into_iter().flatten().flatten();
    let ours = entries.filter(|entry| entry.file_name().to_str().is_some_and(Tree::is_put_aside));
    let with_size = |entry: std::fs::DirEntry| {
        let meta = entry.metadata().ok()?;
        Some((meta.modified().ok()?, entry.path(), on_disk(meta.len())))
    };
    ours.filter_map(with_size).collect()
}

/// When the next copy is due.
pub(super) struct Copying {
    /// An operator changed something that nobody can say again.
    wanted: AtomicBool,
    /// Bytes on disk of the copy that is there.
    bytes: AtomicU64,
    /// When that was made, Unix milliseconds; 0: there is none.
    made_ms: AtomicU64,
    state: Mutex<Last>,
}

/// The last copy.
struct Last {
    number: u64,
    /// Transactions that the index had written by then.
    written: Option<u64>,
    next: Instant,
    /// The log has said that there is no room for one.
    is_told: bool,
}

impl Copying {
    fn of(tree: &Tree, stamp: Option<Stamp>, after_crash: bool) -> Copying {
        // Left by a copy that was not finished.
        let _ = remove(&tree.new_copy());
        let _ = remove(&tree.new_index());
        if let Some(stamp) = stamp {
            metrics::gauge!("larder_index_copy_timestamp_seconds").set((stamp.made_ms / 1000) as f64);
        }
        Copying {
            wanted: AtomicBool::new(after_crash),
            bytes: AtomicU64::new(bytes_of(&tree.copy())),
            made_ms: AtomicU64::new(stamp.map_or(0, |stamp| stamp.made_ms)),
            state: Mutex::new(Last {
                number: stamp.map_or(0, |stamp| stamp.number),
                // Without a copy everything is news, and a crash came before the copy that a stop makes.
                written: stamp.filter(|_| !after_crash).map(|_| 0),
                next: Instant::now() + PAUSE,
                is_told: false,
            }),
        }
    }

    /// The copy was removed: another is to be made soon.
    pub(super) fn forget(&self) {
        let mut last = self.last();
        self.bytes.store(0, Ordering::Relaxed);
        self.made_ms.store(0, Ordering::Relaxed);
        last.written = None;
        self.want();
    }

    /// A copy is to be made soon.
    pub(super) fn want(&self) {
        self.wanted.store(true, Ordering::Relaxed);
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    fn made_ms(&self) -> Option<u64> {
        Some(self.made_ms.load(Ordering::Relaxed)).filter(|ms| *ms > 0)
    }

    fn last(&self) -> MutexGuard<'_, Last> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn no_pause(&self) {
        self.last().next = Instant::now();
    }

    fn is_due(&self, last: &Last) -> bool {
        if Instant::now() < last.next {
            return false;
        }
        // A copy from the future is that of a clock that was set back.
        let age = |made: u64| unix_ms().checked_sub(made).map(Duration::from_millis);
        let is_old = self.made_ms().and_then(age).is_none_or(|age| age >= EVERY);
        is_old || self.wanted.load(Ordering::Relaxed)
    }
}

fn bytes_of(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |meta| meta.blocks() * 512)
}

impl Store {
    /// Copies the index if that is due. Blocking, for seconds with a million blobs; nobody waits for it.
    pub fn copy_if_due(&self) {
        let is_due = {
            let last = self.inner.copying.last();
            self.inner.copying.is_due(&last) && self.inner.has_news(&last)
        };
        if is_due {
            self.copy_now();
        }
    }

    /// Copies the index. `false`: it could not be done, and the log says why. Blocking.
    pub fn copy_now(&self) -> bool {
        let mut last = self.inner.copying.last();
        self.inner.copying.wanted.store(false, Ordering::Relaxed);
        let begun = Instant::now();
        let outcome = self.inner.write_copy(&mut last);
        let result = if outcome.is_ok() { "ok" } else { "failed" };
        metrics::counter!("larder_index_copies_total", "result" => result).increment(1);
        last.next = Instant::now()
            + match outcome {
                Ok(_) => PAUSE.max(begun.elapsed() * PAUSES),
                Err(_) => AGAIN_AFTER,
            };
        match outcome {
            Ok(records) => {
                let (bytes, took_ms) = (self.inner.copying.bytes(), begun.elapsed().as_millis() as u64);
                tracing::debug!(records, bytes, took_ms, "the index was copied");
                last.is_told = false;
                drop(last);
                self.inner.evict_for_index();
                true
            }
            Err(error) => {
                // An operator's change is still to be copied.
                self.inner.copying.want();
                tracing::debug!(%error, "the index could not be copied");
                match error {
                    // The disk is well.
                    StoreError::NoRoomForCopy { .. } => {
                        if !std::mem::replace(&mut last.is_told, true) {
                            let copied = self.inner.copying.made_ms().map_or("never".to_owned(), shown);
                            tracing::warn!(%error, last_copied = copied, cache = %self.inner.tree.root().display(), "the cache is full of what may not go, or too small: the index is not copied until there is room");
                        }
                    }
                    error => self.inner.note_trouble(&error),
                }
                false
            }
        }
    }

    pub(super) fn copy_at_the_end(&self) {
        let has_news = {
            let last = self.inner.copying.last();
            self.inner.database.settle();
            self.inner.has_news(&last)
        };
        if has_news {
            self.copy_now();
        }
    }

    /// How it is with the index.
    pub fn index_state(&self) -> IndexState {
        IndexState {
            recovery: self.inner.recovery.clone(),
            damage: self.inner.database.damage().map(str::to_owned),
            copied_ms: self.inner.copying.made_ms(),
        }
    }
}

impl Inner {
    /// Returns true if there is anything that the last copy does not have. A damaged index is not copied: it would take the
    /// place of one that is not.
    fn has_news(&self, last: &Last) -> bool {
        self.database.damage().is_none() && last.written != Some(self.database.written())
    }

    /// Writes the copy. Gives how many records it has.
    fn write_copy(&self, last: &mut Last) -> Result<u64, StoreError> {
        self.check_place()?;
        let made_ms = unix_ms();
        let stamp = Stamp {
            made_ms,
            number: made_ms.max(last.number.saturating_add(1)),
        };
        // First in the index: what the copy says is not newer than what stands there.
        let number = Op::Put(Table::Meta, NUMBER.to_vec(), stamp.number.to_le_bytes().to_vec());
        if !self.database.write_durably(vec![number]) {
            let error = io::Error::other("its number could not be written down");
            return Err(StoreError::io("copy", self.tree.index())(error));
        }
        let written = self.database.written();
        let (new, place) = (self.tree.new_copy(), self.tree.copy());
        let (records, room) = self.write_new_copy(&new, stamp).inspect_err(|_| {
            let _ = remove(&new);
        })?;
        let placed = self.disk.rename(&new, &place);
        let placed = placed.and_then(|()| self.disk.sync_folder_of(&place));
        if placed.is_err() {
            let _ = remove(&new);
        }
        // The last one or this one.
        room.hand_over(bytes_of(&place));
        placed.map_err(StoreError::io("put into place", &place))?;
        let copying = &self.copying;
        copying.made_ms.store(made_ms, Ordering::Relaxed);
        metrics::gauge!("larder_index_copy_timestamp_seconds").set((made_ms / 1000) as f64);
        (last.number, last.written) = (stamp.number, Some(written));
        Ok(records)
    }

    fn write_new_copy(&self, new: &Path, stamp: Stamp) -> Result<(u64, Room<'_>), StoreError> {
        remove(new)?;
        // It will be about as large as the last one. What cannot fit evicts nothing.
        let expected = self.copying.bytes();
        if !self.could_take_small(expected) {
            return Err(StoreError::NoRoomForCopy { bytes: expected });
        }
        let file = self.disk.create(new).map_err(StoreError::io("create", new))?;
        let mut room = Room { inner: self, bytes: 0 };
        let mut at = 0;
        let out = |frame: Vec<u8>| {
            let len = frame.len() as u64;
            if !room.make_for(at + len) {
                return Err(Halt::NoRoom(at + len));
            }
            self.disk.write_all_at(&file, new, &[Bytes::from(frame)], at)?;
            at += len;
            Ok(())
        };
        let encode = || -> Result<u64, Halt> {
            let mut encoder = Encoder::begin(out, stamp)?;
            let mut stopped = None;
            let scanned = self.database.scan_all(&TABLES, |table, key, value| {
                stopped = encoder.put(table, key, value).err();
                stopped.is_none()
            });
            match stopped {
                Some(halt) => Err(halt),
                None => scanned.map_err(Halt::Index).and_then(|()| encoder.end()),
            }
        };
        let records = encode().map_err(|halt| match halt {
            Halt::NoRoom(bytes) => StoreError::NoRoomForCopy { bytes },
            Halt::Disk(error) => StoreError::io("write", new)(error),
            Halt::Index(error) => error,
        })?;
        self.disk.sync(&file, new).map_err(StoreError::io("write", new))?;
        Ok((records, room))
    }

    /// A value of the copy, for an index that is damaged. Blocking: reads all of it.
    pub(super) fn read_copy(&self, table: Table, key: &[u8]) -> Option<Vec<u8>> {
        self.database.damage()?;
        let found = File::open(self.tree.copy()).and_then(|file| copy::find(&file, table, key));
        found
            .inspect_err(|error| tracing::error!(%error, "the copy of the index could not be read"))
            .ok()?
    }
}

/// What ends the writing of a copy.
enum Halt {
    /// For so many bytes.
    NoRoom(u64),
    Disk(io::Error),
    Index(StoreError),
}

impl From<io::Error> for Halt {
    fn from(error: io::Error) -> Halt {
        Halt::Disk(error)
    }
}

/// Room that a copy takes while it is written, beside the one that is there.
struct Room<'a> {
    inner: &'a Inner,
    bytes: u64,
}

impl Room<'_> {
    /// `false`: there is none.
    fn make_for(&mut self, total: u64) -> bool {
        let more = on_disk(total).saturating_sub(self.bytes);
        if more > 0 && !self.inner.make_small_room(more) {
            return false;
        }
        self.bytes += more;
        true
    }

    /// The copy is in its place: it counts as the one that is there, with so many bytes, and at no moment not at all.
    fn hand_over(mut self, bytes: u64) {
        let mut index = self.inner.index();
        self.inner.copying.bytes.store(bytes, Ordering::Relaxed);
        index.sub_small(std::mem::take(&mut self.bytes));
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.inner.index().sub_small(self.bytes);
    }
}
