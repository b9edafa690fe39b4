//! How bytes come in: stage → hash (`beside` the writing) → verdict → fsync → rename → index.
//!
//! The one place where a digest is verified (L2): cold pulls, prefetch and import all pass here. A
//! writer that is dropped keeps what it staged, so that a later one goes on where it stopped;
//! `cancel` throws it away. Everything here blocks; callers run it off the async threads.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::beside::Trail;
use super::error::{Mismatch, StoreError};
use super::index::{Kind, Staging};
use super::{Arrival, Inner, reservation};
use crate::oci::{Digest, Hasher};

/// Bytes that are copied at once when a file has to be written again.
const COPY_BYTES: usize = 1 << 20;

/// A blob on its way in.
pub struct Writer {
    /// The digest that the bytes must have.
    blob: Digest,
    place: Place,
    file: Arc<File>,
    trail: Trail,
    /// Hashed, and not on the disk yet.
    held: Vec<Bytes>,
    state: State,
    /// Bytes that the blob is expected to have, by its manifest or by what the upstream announced.
    expected: Option<u64>,
}

/// Where a writer stages. Dropping it ends the counting.
struct Place {
    store: Arc<Inner>,
    /// The [`super::staging_key`] that it is counted under; of small things, the blob's digest.
    digest: Digest,
    path: PathBuf,
    /// Set if it has the key's one place among what is staged and counted. Small things have none.
    counted: bool,
    /// Bytes on disk that are counted for it there. Only its own writer changes that number.
    reserved: u64,
    /// They are counted as bytes that somebody announced.
    announced: bool,
    /// Bytes counted for a small thing.
    small: u64,
    /// Bytes that stay staged for a later writer.
    left: Option<u64>,
}

impl Place {
    /// Returns whether room for a blob of so many bytes is counted.
    fn covers(&self, bytes: u64) -> bool {
        self.counted && super::on_disk(bytes) <= self.reserved
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.counted {
            self.store.end_staging(&self.digest, self.left);
        }
        if self.small > 0 {
            self.store.index().sub_small(self.small);
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Verified,
    /// Renamed or unlinked: nothing in the staging folder belongs to this writer.
    Gone,
}

/// A blob's hash as far as it has come, for bytes that the disk cannot take.
pub struct Hashing {
    digest: Digest,
    hasher: Hasher,
    len: u64,
}

impl Hashing {
    pub fn new(digest: Digest) -> Hashing {
        Hashing {
            digest,
            hasher: Hasher::new(digest.algorithm()),
            len: 0,
        }
    }

    /// Bytes hashed so far.
    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn update(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
    }

    /// Whether all of it is what the digest says.
    pub fn verify(&self) -> Result<(), StoreError> {
        compare(self.digest, self.hasher.clone(), self.len)
    }
}

/// What a writer had staged when the disk gave up on it: readable and counted until this is dropped, then gone.
pub struct Remains {
    pub file: Arc<File>,
    pub len: u64,
    _place: Place,
}

impl Writer {
    /// Stages `digest`; under a staging key it goes on with what an earlier writer left there.
    pub(super) fn begin(store: Arc<Inner>, digest: Digest, key: Option<Digest>) -> Result<Writer, StoreError> {
        store.check_ground()?;
        let path = match &key {
            Some(key) => store.tree.part(key),
            None => store.tree.temporary(&digest),
        };
        let found = match &key {
            Some(_) => open_part(&path, digest).map_err(StoreError::io("open", &path))?,
            None => None,
        };
        let (file, hashing) = match found {
            Some(part) => part,
            None => (store.create_mending(&path)?, Hashing::new(digest)),
        };
        // More may have been counted than is in the file: that is a claim like any other.
        let reserved = match &key {
            Some(key) => store.index().restage(key, hashing.len()),
            None => 0,
        };
        let place = Place {
            store,
            digest: key.unwrap_or(digest),
            path,
            counted: key.is_some(),
            reserved,
            announced: true,
            small: 0,
            left: None,
        };
        Ok(Writer {
            blob: digest,
            place,
            file: Arc::new(file),
            trail: Trail::of(digest, hashing),
            held: Vec::new(),
            state: State::Open,
            expected: None,
        })
    }

    /// Bytes staged so far; the offset at which the next ones belong.
    pub fn len(&self) -> u64 {
        self.trail.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether what is staged is all of it already.
    pub fn is_whole(&mut self) -> bool {
        self.trail.settle().verify().is_ok()
    }

    /// The staged file, for readers that follow it as it grows. Stays readable after commit and cancel.
    pub fn file(&self) -> Arc<File> {
        self.file.clone()
    }

    /// Notes the size that the blob is said to have, and counts the room of its first bytes if that is free. Nothing is
    /// evicted for a claim: `append` makes room as the bytes come.
    ///
    /// Error: `NoRoom` if the blob would not fit even if everything went that may go.
    pub fn expect(&mut self, total: u64) -> Result<(), StoreError> {
        self.expected = Some(total);
        let [first, ..] = reservation::steps(self.len(), self.expected);
        if first == total {
            // Most blobs are small and find room: then nothing else is to be looked at.
            self.reserve_free(total);
        }
        if !self.place.covers(total) {
            if !self.place.store.could_take(&self.place.digest, total) {
                self.expected = None;
                return Err(self.no_room());
            }
            self.reserve_free(first);
        }
        Ok(())
    }

    /// Returns whether `expect` has nothing more to find out. Memory only.
    pub fn expects(&self, total: u64) -> bool {
        self.expected == Some(total) || self.place.covers(total)
    }

    /// Counts room for a blob of `total` bytes if it is free: nothing is evicted for what an upstream has not even
    /// announced yet.
    pub fn reserve_free(&mut self, total: u64) {
        let place = &mut self.place;
        if place.counted && !place.covers(total) && place.store.take_free_room(&place.digest, total) {
            place.reserved = super::on_disk(total);
        }
    }

    /// Makes room for all bytes up to `upto`, which came, and for some of what follows. Evicts what was used least
    /// recently; for bytes that neither a manifest nor the upstream announced, no more than a small part of the limit.
    fn make_room(&mut self, upto: u64) -> Result<(), StoreError> {
        let place = &mut self.place;
        if !place.counted {
            let more = super::on_disk(upto).saturating_sub(place.small);
            if more > 0 && !place.store.make_small_room(more) {
                return Err(self.no_room());
            }
            place.small = place.small.saturating_add(more);
            return Ok(());
        }
        if place.covers(upto) {
            return Ok(());
        }
        let expected = self.expected.filter(|expected| upto <= *expected);
        let announced = expected.is_some();
        if place.announced != announced {
            place.store.index().set_announced(&place.digest, announced);
            place.announced = announced;
        }
        let mut steps = reservation::steps(upto, expected).into_iter();
        let (store, digest) = (&place.store, &place.digest);
        let counted = if announced {
            steps.find(|bytes| store.make_room(digest, *bytes))
        } else {
            let free = steps.find(|bytes| store.take_free_room(digest, *bytes));
            free.or_else(|| store.make_unannounced_room(digest, upto).then_some(upto))
        };
        match counted {
            Some(bytes) => {
                place.reserved = super::on_disk(bytes);
                Ok(())
            }
            // That is no trouble of the disk, and the cache need not be full.
            None if !announced => Err(StoreError::NoRoom(Box::new(place.digest))),
            None => Err(self.no_room()),
        }
    }

    fn no_room(&self) -> StoreError {
        let error = StoreError::NoRoom(Box::new(self.blob));
        self.place.store.note_trouble(&error);
        error
    }

    /// Takes in the last bytes without the disk: they are hashed here, and written by `commit`. Memory only, for few
    /// bytes: a small blob need not wait for the disk to be told right from wrong.
    pub fn hold(&mut self, pieces: &[Bytes]) {
        self.trail.extend(pieces, &self.place.store.hashers);
        self.held.extend_from_slice(pieces);
    }

    /// The verdict on what `hold` took in, if it is good: a bad one has more to do. Memory only.
    pub fn verify_held(&mut self) -> bool {
        let is_good = !self.held.is_empty() && self.trail.settle().verify().is_ok();
        if is_good {
            self.state = State::Verified;
        }
        is_good
    }

    fn held_bytes(&self) -> u64 {
        self.held.iter().map(|piece| piece.len() as u64).sum()
    }

    /// Writes what is held.
    fn put_down(&mut self) -> Result<(), StoreError> {
        if self.held.is_empty() {
            return Ok(());
        }
        let at = self.len() - self.held_bytes();
        let held = std::mem::take(&mut self.held);
        let written = self.make_room(self.len()).and_then(|()| self.write_at(&held, at));
        if written.is_err() {
            // What is there is counted as if it were all of it.
            self.discard();
        }
        written
    }

    /// Appends; what is long is hashed behind its writing, beside that of what comes next. On an error nothing is
    /// appended, and the same bytes may go elsewhere.
    pub fn append(&mut self, pieces: &[Bytes]) -> Result<u64, StoreError> {
        let more: u64 = pieces.iter().map(|p| p.len() as u64).sum();
        self.make_room(self.len().saturating_add(more))?;
        let at = self.len();
        self.write_at(pieces, at)?;
        self.trail.extend(pieces, &self.place.store.hashers);
        Ok(at + more)
    }

    fn write_at(&self, pieces: &[Bytes], at: u64) -> Result<(), StoreError> {
        let (store, path) = (&self.place.store, &self.place.path);
        let written = store.disk.write_all_at(&self.file, path, pieces, at);
        written.map_err(|error| store.failed("write", path, error))?;
        if self.place.counted {
            let more: u64 = pieces.iter().map(|piece| piece.len() as u64).sum();
            store.index().set_written(&self.place.digest, at + more);
        }
        Ok(())
    }

    /// Forgets what was staged and begins at byte 0: the upstream no longer agrees with it.
    pub fn restart(&mut self) -> Result<(), StoreError> {
        // A new file, because readers may still follow the old one.
        let _ = std::fs::remove_file(&self.place.path);
        self.state = State::Gone;
        if self.place.counted {
            self.place.reserved = self.place.store.index().restage(&self.place.digest, 0);
            self.place.announced = true;
        }
        self.file = Arc::new(self.place.store.create_mending(&self.place.path)?);
        self.trail = Trail::of(self.blob, Hashing::new(self.blob));
        self.held.clear();
        self.state = State::Open;
        Ok(())
    }

    /// Gives up on the disk: the hash goes on elsewhere, what is staged stays readable as long as it is needed.
    pub fn detach(mut self) -> (Hashing, Remains) {
        self.discard();
        // The rest of what was announced will not be written.
        let len = self.len();
        if self.place.counted {
            let mut index = self.place.store.index();
            let (_, shelf) = index.staged(&self.place.digest);
            index.stage(&self.place.digest, len, Staging::Detached, shelf);
        }
        let digest = self.blob;
        let trail = std::mem::replace(&mut self.trail, Trail::of(digest, Hashing::new(digest)));
        let stand_in = Place {
            store: self.place.store.clone(),
            digest,
            path: PathBuf::new(),
            counted: false,
            reserved: 0,
            announced: true,
            small: 0,
            left: None,
        };
        let place = std::mem::replace(&mut self.place, stand_in);
        (
            trail.into_hashing(),
            Remains {
                file: self.file.clone(),
                len,
                _place: place,
            },
        )
    }

    /// Whether the staged bytes are what the digest says. On a mismatch they are gone from disk.
    pub fn verify(&mut self) -> Result<(), StoreError> {
        let verdict = self.trail.settle().verify();
        match verdict {
            Ok(()) => self.state = State::Verified,
            Err(_) => self.discard(),
        }
        verdict
    }

    /// Makes verified bytes held as a blob: on disk for good, in the index, linked to `repository` (L6).
    pub fn commit(self, repository: &str) -> Result<(), StoreError> {
        self.commit_as(repository, Kind::Blob, true)
    }

    /// The same, linked to nobody: none of it is served before [`super::Store::reveal`]. It counts for the upstream of
    /// `repository`.
    pub fn commit_unseen(self, repository: &str) -> Result<(), StoreError> {
        self.commit_as(repository, Kind::Blob, false)
    }

    pub(super) fn commit_as(mut self, repository: &str, kind: Kind, linked: bool) -> Result<(), StoreError> {
        if self.state != State::Verified {
            self.verify()?;
        }
        self.put_down()?;
        let (store, path, digest) = (self.place.store.clone(), self.place.path.clone(), self.blob);
        if let Err(error) = store.disk.sync(&self.file, &path) {
            // Nobody can say what of it is on the disk: the kernel tells of a lost write once, and calls the next
            // sync a success. What is staged is no good to go on with.
            self.discard();
            return Err(store.failed("sync", &path, error));
        }
        let (size, counted, small) = (self.len(), self.place.counted, self.place.small);
        let arrival = Arrival {
            digest,
            size,
            path: &path,
            counted: counted.then_some(self.place.digest),
            small,
            repository,
            linked,
            kind,
        };
        let admitted = match store.admit(&arrival) {
            // The folder was emptied while this came.
            Err(error) if error.is_not_there() => self.put_back().and_then(|()| store.admit(&arrival)),
            admitted => admitted,
        };
        let noted = admitted.inspect_err(|error| store.note_trouble(error))?;
        self.state = State::Gone;
        self.place.counted = false;
        self.place.small = 0;
        let place = store.tree.blob(&digest);
        let synced = store
            .disk
            .sync_folder_of(&place)
            .map_err(|error| store.failed("sync the folder of", &place, error));
        // Nothing more can be done if it cannot be written down; the file is found again at the next start.
        let _ = noted.recv();
        store.show(&digest, linked.then_some(repository));
        store.evict_for_index();
        synced
    }

    /// Returns whether the staged file is the one in its place, as far as that can be looked at: whoever empties the
    /// folder removes it, and leaves it open here.
    fn is_in_place(&self) -> bool {
        let found = match std::fs::symlink_metadata(&self.place.path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return false,
            found => found.ok(),
        };
        let is_other = found.zip(self.file.metadata().ok()).is_some_and(|(found, own)| {
            // One that nobody can link back.
            (found.dev(), found.ino()) != (own.dev(), own.ino())
        });
        !is_other
    }

    /// Makes folders again that were removed, and of a staged file that went with them another one of the same bytes: a
    /// removed file cannot be linked back.
    fn put_back(&mut self) -> Result<(), StoreError> {
        let (store, path, len) = (self.place.store.clone(), self.place.path.clone(), self.len());
        store.mend()?;
        if self.is_in_place() {
            return Ok(());
        }
        let free = store.free_bytes(&store.index());
        if free < super::on_disk(len) {
            // The removed one takes room as well, until its last reader has left.
            return Err(StoreError::NoRoom(Box::new(self.blob)));
        }
        let file = store.create_mending(&path)?;
        let write = |piece, at| store.disk.write_all_at(&file, &path, &[piece], at);
        let written = copy(&self.file, len, write).and_then(|()| store.disk.sync(&file, &path));
        if let Err(error) = written {
            // Nobody counts what came of it.
            let _ = std::fs::remove_file(&path);
            return Err(store.failed("write again", &path, error));
        }
        self.file = Arc::new(file);
        tracing::info!(digest = %self.blob, "the cache folder was emptied while this came: it is kept all the same");
        Ok(())
    }

    /// Throws the staged bytes away.
    pub fn cancel(mut self) {
        self.discard();
    }

    fn discard(&mut self) {
        if self.state != State::Gone {
            let _ = std::fs::remove_file(&self.place.path);
            self.state = State::Gone;
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.place.counted {
            self.discard();
        }
        // A file that was removed with its folder takes no room that is ours to count.
        let is_there = self.state != State::Gone && self.is_in_place();
        self.place.left = is_there.then_some(self.trail.len() - self.held_bytes());
    }
}

impl Inner {
    fn create(&self, path: &Path) -> Result<File, StoreError> {
        self.disk
            .create(path)
            .map_err(|error| self.failed("create", path, error))
    }

    /// Creates a file. Where its folder is gone that is made again first, if it may be.
    fn create_mending(self: &Arc<Inner>, path: &Path) -> Result<File, StoreError> {
        match self.create(path) {
            Err(StoreError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                self.mend()?;
                self.create(path)
            }
            created => created,
        }
    }

    /// An error of the disk, noted.
    fn failed(&self, doing: &'static str, path: &Path, error: std::io::Error) -> StoreError {
        let error = StoreError::io(doing, path)(error);
        self.note_trouble(&error);
        error
    }
}

/// Whether bytes in memory are what the digest says.
pub fn verify(digest: &Digest, bytes: &[u8]) -> Result<(), StoreError> {
    let mut hasher = Hasher::new(digest.algorithm());
    hasher.update(bytes);
    compare(*digest, hasher, bytes.len() as u64)
}

fn compare(expected: Digest, hasher: Hasher, bytes: u64) -> Result<(), StoreError> {
    let found = hasher.finish();
    if found == expected {
        Ok(())
    } else {
        Err(StoreError::Mismatch(Box::new(Mismatch { expected, found, bytes })))
    }
}

/// A regular file that an earlier transfer left, hashed. What is no such thing, and what the disk cannot give, is removed;
/// what cannot be opened for another reason stays for a later attempt.
fn open_part(path: &Path, digest: Digest) -> std::io::Result<Option<(File, Hashing)>> {
    let open = || {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
            .open(path)?;
        if !file.metadata()?.is_file() {
            return Err(std::io::Error::new(
                std::io::ErrorKind::InvalidInput,
                "the staged file is no file",
            ));
        }
        let mut hashing = Hashing::new(digest);
        hash_file(&file, &mut hashing)?;
        Ok::<_, std::io::Error>((file, hashing))
    };
    let error = match open() {
        Ok(part) => return Ok(Some(part)),
        Err(error) => error,
    };
    let is_none = matches!(
        error.kind(),
        std::io::ErrorKind::NotFound | std::io::ErrorKind::InvalidInput | std::io::ErrorKind::IsADirectory
    );
    // A symbolic link in its place.
    let is_link = error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error());
    if !(is_none || is_link || super::disk::is_damage(&error)) {
        return Err(error);
    }
    let _ = std::fs::remove_file(path);
    Ok(None)
}

/// Reads `len` bytes of a file and gives them to `write`, piece by piece, with where they belong.
fn copy(from: &File, len: u64, mut write: impl FnMut(Bytes, u64) -> std::io::Result<()>) -> std::io::Result<()> {
    let mut buffer = vec![0; COPY_BYTES];
    let mut at = 0;
    while at < len {
        let most = usize::try_from(len - at).map_or(COPY_BYTES, |left| left.min(COPY_BYTES));
        let piece = &mut buffer[..most];
        from.read_exact_at(piece, at)?;
        write(Bytes::copy_from_slice(piece), at)?;
        at += most as u64;
    }
    Ok(())
}

pub(super) fn hash_file(mut file: &File, hashing: &mut Hashing) -> std::io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(()),
            n => hashing.update(&buffer[..n]),
        }
    }
}
