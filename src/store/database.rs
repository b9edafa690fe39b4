//! The index on disk: a crash-safe database with one writer thread.
//!
//! The thread takes whatever has queued up, writes it in one transaction and syncs once, so a herd
//! of commits costs one fsync. Nobody on the way of a hit waits for it.
//!
//! The file may be damaged, and redb panics on some of what it then finds: every call is made by `guard`. Opened is
//! only what `proof` finds whole; what is found damaged later is noted once, nothing is written to it any more, and the next
//! start builds another one (`recovery`).

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use redb::{Database as Redb, ReadableDatabase, ReadableTableMetadata, TableDefinition};

use super::TELL_EVERY;
use super::error::StoreError;
use super::guard::guarded;
use super::keys::Tree;
use super::proof;

type Definition = TableDefinition<'static, &'static [u8], &'static [u8]>;

/// When to try again what could not be written.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// Memory for pages of the file. Tests have so little that pages are read again, damaged or not.
const CACHE_BYTES: usize = if cfg!(test) { 64 << 10 } else { 32 << 20 };
/// Changes kept for that.
const MAX_BACKLOG: usize = 100_000;

/// The tables. Keys are digests, or `repository NUL rest`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Table {
    Blobs,
    Links,
    Tags,
    Lists,
    /// `repository:tag` or `repository@digest` → digest.
    Pins,
    /// Odds and ends by name.
    Meta,
}

impl Table {
    const ALL: [Table; 6] = [
        Table::Blobs,
        Table::Links,
        Table::Tags,
        Table::Lists,
        Table::Pins,
        Table::Meta,
    ];

    fn definition(self) -> Definition {
        TableDefinition::new(match self {
            Table::Blobs => "blobs",
            Table::Links => "links",
            Table::Tags => "tags",
            Table::Lists => "lists",
            Table::Pins => "pins",
            Table::Meta => "meta",
        })
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Op {
    Put(Table, Vec<u8>, Vec<u8>),
    Delete(Table, Vec<u8>),
}

impl Op {
    /// What it changes.
    fn place(&self) -> (Table, &[u8]) {
        match self {
            Op::Put(table, key, _) | Op::Delete(table, key) => (*table, key),
        }
    }
}

enum Message {
    Write(Vec<Op>, Option<Sender<bool>>),
    /// To be written anew, behind all that came before.
    Anew(Sender<Result<(), StoreError>>),
    Stop,
}

/// `None` while it cannot be opened again after a failure.
type Shared = Arc<RwLock<Option<Redb>>>;

pub(super) struct Database {
    path: PathBuf,
    redb: Shared,
    queue: Sender<Message>,
    /// Bytes of the file, as of the last transaction.
    bytes: Arc<AtomicU64>,
    /// Transactions that were written since it was opened.
    written: Arc<AtomicU64>,
    damage: Arc<Damage>,
    /// Number of the file that is open.
    inode: Arc<AtomicU64>,
    was_mended: bool,
    proof: Mutex<Option<JoinHandle<Result<(), StoreError>>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Damage that was found while the index was in use.
struct Damage {
    index: PathBuf,
    /// Says to the next start that the file is damaged, whatever a look at it finds.
    mark: PathBuf,
    found: OnceLock<String>,
    /// Not before it is in use: until then whoever opens it deals with what is found.
    is_in_use: AtomicBool,
}

impl Damage {
    fn note(&self, what: &str) -> StoreError {
        if self.is_in_use.load(Ordering::Relaxed) && self.found.set(what.to_owned()).is_ok() {
            tracing::error!(path = %self.index.display(), %what, "the index is damaged: what is in memory is served, nothing more is written down, and the next start rebuilds it from its copy");
            metrics::counter!("larder_index_damaged_total", "found" => "running").increment(1);
            let noted = std::fs::write(&self.mark, what).and_then(|()| File::open(&self.mark)?.sync_all());
            if let Err(error) = noted {
                tracing::error!(path = %self.mark.display(), %error, "the damage could not be noted for the next start");
            }
        }
        StoreError::IndexDamaged {
            path: self.index.clone(),
            what: what.to_owned(),
        }
    }
}

impl Database {
    /// Opens or creates it, and begins to prove that it is whole: [`Database::proved`] tells.
    ///
    /// Errors: `IndexDamaged`; `Index` with what keeps it from being used although it may be whole.
    pub(super) fn open(tree: &Tree) -> Result<Database, StoreError> {
        let path = tree.index();
        let damage = Arc::new(Damage {
            index: path.clone(),
            mark: tree.index_mark(),
            found: OnceLock::new(),
            is_in_use: AtomicBool::new(false),
        });
        let (redb, is_proved, open) = attempt(&path, || {
            let file = open_file(&path, true)?;
            let open = Open::of(&file)?;
            let (redb, is_proved) = open_redb(&path, file)?;
            Ok((redb, is_proved, open))
        })?;
        let redb: Shared = Arc::new(RwLock::new(Some(redb)));
        let inode = Arc::new(AtomicU64::new(open.inode));
        let proof = match is_proved {
            true => None,
            false => {
                let proof = proof::begin(&path).map_err(StoreError::io("read", &path))?;
                let path = path.clone();
                let thread = std::thread::Builder::new().name("larder-proof".to_owned());
                let begun = thread.spawn(move || attempt(&path, || proof.run()));
                Some(begun.map_err(StoreError::io("start a thread that checks", tree.index()))?)
            }
        };
        let (queue, messages) = mpsc::channel();
        let bytes = Arc::new(AtomicU64::new(file_bytes(&path)));
        let written = Arc::new(AtomicU64::new(0));
        let thread = {
            let (bytes, count, file) = (bytes.clone(), written.clone(), path.clone());
            let writer = Writing {
                redb: redb.clone(),
                path: path.clone(),
                new: tree.new_index(),
                open: Mutex::new(open),
                inode: inode.clone(),
                damage: damage.clone(),
            };
            std::thread::Builder::new()
                .name("larder-index".to_owned())
                .spawn(move || {
                    let written = |did: bool| {
                        count.fetch_add(u64::from(did), Ordering::Relaxed);
                        bytes.store(file_bytes(&file), Ordering::Relaxed);
                    };
                    write_loop(&writer, &messages, written);
                })
                .map_err(StoreError::io("start the writer thread of", &path))?
        };
        Ok(Database {
            path,
            redb,
            queue,
            bytes,
            written,
            damage,
            inode,
            was_mended: is_proved,
            proof: Mutex::new(proof),
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Waits until it is known whether the file is whole. Before that nothing may be written. Blocking.
    pub(super) fn proved(&self) -> Result<(), StoreError> {
        let proof = self.proof.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(proof) = proof {
            let ended = proof.join();
            ended.unwrap_or_else(|_| Err(self.damage.note("the check of it gave up")))?;
        }
        Ok(())
    }

    /// From now on damage is noted for the next start.
    pub(super) fn put_in_use(&self) {
        self.damage.is_in_use.store(true, Ordering::Relaxed);
    }

    /// Damage that was found since it was opened.
    pub(super) fn damage(&self) -> Option<&str> {
        self.damage.found.get().map(String::as_str)
    }

    /// Returns true if it was not closed the last time, as after a crash, or is new.
    pub(super) fn was_mended(&self) -> bool {
        self.was_mended
    }

    /// Transactions that were written since it was opened.
    pub(super) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Bytes that the file takes on disk.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Queues a transaction; returns at once.
    pub(super) fn write(&self, ops: Vec<Op>) {
        // The thread lives as long as this does; after `stop` there is nothing left to note.
        let _ = self.queue.send(Message::Write(ops, None));
    }

    /// Queues a transaction; returns at once. What it returns tells when it is on disk.
    pub(super) fn write_noted(&self, ops: Vec<Op>) -> Receiver<bool> {
        let (done, verdict) = mpsc::channel();
        let _ = self.queue.send(Message::Write(ops, Some(done)));
        verdict
    }

    /// Queues a transaction and waits until it is on disk. Blocking.
    pub(super) fn write_durably(&self, ops: Vec<Op>) -> bool {
        self.write_noted(ops).recv().unwrap_or(false)
    }

    /// Waits until everything queued so far is on disk. Blocking.
    pub(super) fn settle(&self) -> bool {
        self.write_durably(Vec::new())
    }

    pub(super) fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.read(|| {
            let table = self.begin_read()?.open_table(table.definition())?;
            Ok(table.get(key)?.map(|value| value.value().to_vec()))
        })
    }

    /// Returns true if its file was removed, and perhaps another one put in its place: what is written now is lost with
    /// the process.
    pub(super) fn is_gone(&self) -> bool {
        let is_another = match inode_of(&self.path) {
            Ok(inode) => inode != self.inode.load(Ordering::Relaxed),
            Err(error) => error.kind() == std::io::ErrorKind::NotFound,
        };
        is_another && self.damage().is_none()
    }

    /// Puts another file in the place of one that was removed, with all that was written to that. Blocking; what is
    /// queued meanwhile waits, and comes to the new one.
    pub(super) fn write_anew(&self) -> Result<(), StoreError> {
        let (done, outcome) = mpsc::channel();
        let _ = self.queue.send(Message::Anew(done));
        let stopped = || StoreError::io("write anew", &self.path)(std::io::Error::other("the proxy stops"));
        outcome.recv().unwrap_or_else(|_| Err(stopped()))
    }

    /// How many pairs a table has.
    pub(super) fn count(&self, table: Table) -> Result<usize, StoreError> {
        let count = self.read(|| Ok(self.begin_read()?.open_table(table.definition())?.len()?))?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    /// Calls `each` with every pair whose key starts with `prefix`, in key order, until it returns false.
    pub(super) fn scan(
        &self,
        table: Table,
        prefix: &[u8],
        mut each: impl FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), StoreError> {
        self.read(|| {
            let table = self.begin_read()?.open_table(table.definition())?;
            for pair in table.range(prefix..)? {
                let (key, value) = pair?;
                if !key.value().starts_with(prefix) || !each(key.value(), value.value()) {
                    break;
                }
            }
            Ok(())
        })
    }

    /// Calls `each` with all that some tables have, one after the other and each in key order, as it was at one moment;
    /// until it returns false. Writers do not wait for it.
    pub(super) fn scan_all(
        &self,
        tables: &[Table],
        mut each: impl FnMut(Table, &[u8], &[u8]) -> bool,
    ) -> Result<(), StoreError> {
        self.read(|| {
            let transaction = self.begin_read()?;
            for of in tables {
                let table = transaction.open_table(of.definition())?;
                for pair in table.range::<&[u8]>(..)? {
                    let (key, value) = pair?;
                    if !each(*of, key.value(), value.value()) {
                        return Ok(());
                    }
                }
            }
            Ok(())
        })
    }

    /// A look into the file; one that finds damage notes it.
    fn read<T>(&self, read: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, StoreError> {
        attempt(&self.path, read).inspect_err(|error| {
            if let StoreError::IndexDamaged { what, .. } = error {
                self.damage.note(what);
            }
        })
    }

    /// Makes the file as small as what is in it. Blocking, and everybody else waits meanwhile: for the start.
    pub(super) fn compact(&self) -> Result<(), StoreError> {
        let mut redb = self.redb.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(redb) = redb.as_mut() {
            redb.compact().map_err(|error| index_error(&self.path, error.into()))?;
        }
        self.bytes.store(file_bytes(&self.path), Ordering::Relaxed);
        Ok(())
    }

    fn begin_read(&self) -> Result<redb::ReadTransaction, redb::Error> {
        let redb = self.redb.read().unwrap_or_else(PoisonError::into_inner);
        let redb = redb.as_ref().ok_or(redb::Error::PreviousIo)?;
        Ok(redb.begin_read()?)
    }

    /// Writes what is queued and ends the thread. Blocking.
    pub(super) fn stop(&self) {
        let _ = self.queue.send(Message::Stop);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        self.stop();
        let _ = self.proved();
        let redb = self.redb.write().unwrap_or_else(PoisonError::into_inner).take();
        match self.damage() {
            // To close it is to write to it.
            Some(_) => std::mem::forget(redb),
            None => drop(guarded(|| drop(redb))),
        }
    }
}

/// Opens the file, or creates it where it `may_be_new`.
fn open_file(path: &Path, may_be_new: bool) -> std::io::Result<File> {
    // Ours first, so that it is nobody else's to read (R-X23).
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(may_be_new)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

/// Opens the database in a file, or makes one in an empty file. `true` if it was looked through on that occasion, as after a
/// crash.
fn open_redb(path: &Path, file: File) -> Result<(Redb, bool), redb::Error> {
    let repair = Arc::new(proof::Repair::default());
    let noted = repair.clone();
    let redb = Redb::builder()
        .set_cache_size(CACHE_BYTES)
        .set_repair_callback(move |session| noted.note(session.progress()))
        .create_file(file)?;
    if repair.went_back() {
        // A crash in the middle of a transaction looks just so.
        tracing::warn!(path = %path.display(), "the last transaction of the index is not whole: it holds what it held before that");
    }
    if has_tables(&redb)? {
        return Ok((redb, repair.began()));
    }
    let transaction = redb.begin_write()?;
    for table in Table::ALL {
        transaction.open_table(table.definition())?;
    }
    transaction.commit()?;
    // There is nothing in it that could be damaged.
    Ok((redb, true))
}

fn has_tables(redb: &Redb) -> Result<bool, redb::Error> {
    let transaction = redb.begin_read()?;
    for table in Table::ALL {
        match transaction.open_table(table.definition()) {
            Ok(_) => {}
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}

/// A file that stands in for the index until it is whole: made anew, and filled by `fill`, which is handed what takes the
/// changes. It is on disk and closed when this returns; after an error nothing is left of it.
pub(super) fn build(
    path: &Path,
    fill: impl FnOnce(&mut dyn FnMut(Op) -> Result<(), StoreError>) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    /// Changes of one transaction.
    const MOST: usize = 50_000;
    let remove = || match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(StoreError::io("remove", path)(error)),
        _ => Ok(()),
    };
    remove()?;
    let built = build_new(path, MOST, fill);
    if built.is_err() {
        let _ = remove();
    }
    built
}

fn build_new(
    path: &Path,
    most: usize,
    fill: impl FnOnce(&mut dyn FnMut(Op) -> Result<(), StoreError>) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let (redb, _) = attempt(path, || open_redb(path, open_file(path, true)?))?;
    let mut ops = Vec::new();
    let write = |ops: &mut Vec<Op>| {
        let written = attempt(path, || apply(&redb, ops));
        ops.clear();
        written
    };
    let filled = fill(&mut |op| {
        ops.push(op);
        if ops.len() >= most { write(&mut ops) } else { Ok(()) }
    });
    let filled = filled.and_then(|()| write(&mut ops));
    // To close it is to write to it, which may fail as well.
    let closed = attempt(path, move || {
        drop(redb);
        Ok(())
    });
    filled.and(closed)?;
    let synced = File::open(path).and_then(|file| file.sync_all());
    synced.map_err(StoreError::io("sync", path))
}

/// Runs what reads or writes the file. A panic is damage, as is what redb itself calls so.
fn attempt<T>(path: &Path, work: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, StoreError> {
    let damaged = |what| StoreError::IndexDamaged {
        path: path.to_owned(),
        what,
    };
    match guarded(work) {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) if is_damage(&error) => Err(damaged(error.to_string())),
        Ok(Err(error)) => Err(index_error(path, error)),
        Err(said) => Err(damaged(said)),
    }
}

fn is_damage(error: &redb::Error) -> bool {
    match error {
        redb::Error::Corrupted(_) | redb::Error::UpgradeRequired(_) | redb::Error::RepairAborted => true,
        // The tables are not those that were written.
        redb::Error::TableTypeMismatch { .. }
        | redb::Error::TableDoesNotExist(_)
        | redb::Error::TableIsMultimap(_)
        | redb::Error::TableIsNotMultimap(_)
        | redb::Error::TypeDefinitionChanged { .. } => true,
        redb::Error::Io(io) => matches!(
            io.kind(),
            std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof
        ),
        _ => false,
    }
}

/// Another format of the file than this version of redb has. Both places where it stands have to say so: one that says
/// something else is damage. `None` as well for a file that is none of redb's.
pub(super) fn foreign_format(path: &Path) -> Result<Option<StoreError>, StoreError> {
    use std::os::unix::fs::FileExt;
    const MAGIC: &[u8] = b"redb\x1a\x0a\xa9\x0d\x0a";
    const FORMAT: u8 = 3;
    const PLACES: [usize; 2] = [64, 192];
    let mut header = [0; 320];
    let read = File::open(path).and_then(|file| file.read_exact_at(&mut header, 0));
    match read {
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        // The attempt to open it says the same.
        Err(error) if super::disk::is_damage(&error) => return Ok(None),
        Err(error) => return Err(StoreError::io("read", path)(error)),
        Ok(()) => {}
    }
    let [found, other] = PLACES.map(|place| header[place]);
    let is_foreign = header.starts_with(MAGIC) && found == other && found != FORMAT;
    Ok(is_foreign.then(|| StoreError::IndexFormat {
        path: path.to_owned(),
        found,
        expected: FORMAT,
    }))
}

fn index_error(path: &Path, source: redb::Error) -> StoreError {
    StoreError::Index {
        path: path.to_owned(),
        source: Arc::new(source),
    }
}

fn file_bytes(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).map_or(0, |meta| meta.blocks() * 512)
}

fn inode_of(path: &Path) -> std::io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    Ok(std::fs::metadata(path)?.ino())
}

/// The file that is in use, open: it may be removed or hidden by a mount, and has all that was written.
struct Open {
    file: File,
    inode: u64,
}

impl Open {
    fn of(file: &File) -> std::io::Result<Open> {
        use std::os::unix::fs::MetadataExt;
        Ok(Open {
            inode: file.metadata()?.ino(),
            file: file.try_clone()?,
        })
    }
}

/// The writer thread's side of the database.
struct Writing {
    redb: Shared,
    path: PathBuf,
    /// Renamed to `path` when it is whole.
    new: PathBuf,
    open: Mutex<Open>,
    /// That of `open`.
    inode: Arc<AtomicU64>,
    damage: Arc<Damage>,
}

fn write_loop(to: &Writing, messages: &Receiver<Message>, written: impl Fn(bool)) {
    let mut backlog = Vec::new();
    let mut told: Option<Instant> = None;
    let mut stop = false;
    while !stop {
        // What could not be written is tried again, with what has come since or after a while.
        let first = match backlog.is_empty() {
            true => messages.recv().ok(),
            false => match messages.recv_timeout(RETRY_AFTER) {
                Ok(message) => Some(message),
                Err(RecvTimeoutError::Timeout) => Some(Message::Write(Vec::new(), None)),
                Err(RecvTimeoutError::Disconnected) => None,
            },
        };
        let Some(first) = first else { break };
        let mut ops = std::mem::take(&mut backlog);
        let (mut waiting, mut anew) = (Vec::new(), Vec::new());
        for message in std::iter::once(first).chain(messages.try_iter()) {
            match message {
                Message::Write(more, done) => {
                    ops.extend(more);
                    waiting.extend(done);
                }
                Message::Anew(done) => anew.push(done),
                Message::Stop => stop = true,
            }
        }
        let outcome = match ops.is_empty() {
            true => Ok(()),
            false => to.write(&ops),
        };
        written(!ops.is_empty() && outcome.is_ok());
        for done in waiting {
            // Nothing is known to be on disk any more.
            let _ = done.send(outcome.is_ok() && to.damage.found.get().is_none());
        }
        for done in anew {
            let _ = done.send(to.write_anew());
            written(false);
        }
        match outcome {
            Ok(()) => {}
            // Said once. There is no later attempt for which it would have to be kept.
            Err(StoreError::IndexDamaged { .. }) => {}
            Err(error) => {
                if told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
                    tracing::error!(%error, changes = ops.len(), "the index could not be written: it is tried again");
                    told = Some(Instant::now());
                }
                backlog = cut_short(ops, MAX_BACKLOG);
            }
        }
    }
}

/// A disk that never comes back may not fill the memory. Of changes to one thing the last counts. Then the oldest go of
/// what a start finds again or an upstream says again; but not what keeps anything from anybody (L8): removals, and
/// the marks of private repositories.
fn cut_short(ops: Vec<Op>, most: usize) -> Vec<Op> {
    if ops.len() <= most {
        return ops;
    }
    let mut seen = HashSet::new();
    let mut kept: Vec<bool> = ops.iter().rev().map(|op| seen.insert(op.place())).collect();
    kept.reverse();
    let mut excess = kept.iter().filter(|kept| **kept).count().saturating_sub(most);
    for (op, kept) in ops.iter().zip(&mut kept) {
        if *kept && excess > 0 && matches!(op, Op::Put(table, ..) if *table != Table::Meta) {
            (*kept, excess) = (false, excess - 1);
        }
    }
    let kept = ops.into_iter().zip(kept).filter(|(_, kept)| *kept);
    kept.map(|(op, _)| op).collect()
}

impl Writing {
    /// See [`Database::write_anew`].
    fn write_anew(&self) -> Result<(), StoreError> {
        {
            let mut redb = self.redb.write().unwrap_or_else(PoisonError::into_inner);
            if redb.is_none() {
                *redb = Some(attempt(&self.path, || self.reopen())?);
            }
        }
        {
            let redb = self.redb.read().unwrap_or_else(PoisonError::into_inner);
            let redb = redb
                .as_ref()
                .ok_or_else(|| index_error(&self.path, redb::Error::PreviousIo))?;
            build(&self.new, |put| copy_all(redb, &self.path, put))?;
        }
        let of_new = || {
            let file = open_file(&self.new, false)?;
            Ok::<_, std::io::Error>((Open::of(&file)?, file))
        };
        let (open, file) = of_new().map_err(StoreError::io("open", &self.new))?;
        std::fs::rename(&self.new, &self.path).map_err(StoreError::io("put into place", &self.path))?;
        let mut redb = self.redb.write().unwrap_or_else(PoisonError::into_inner);
        let before = redb.take();
        let _ = guarded(|| drop(before));
        self.inode.store(open.inode, Ordering::Relaxed);
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = open;
        // Should this fail, the next write opens it.
        *redb = Some(attempt(&self.path, || open_redb(&self.path, file))?.0);
        drop(redb);
        if let Some(folder) = self.path.parent() {
            let synced = File::open(folder).and_then(|folder| folder.sync_all());
            synced.map_err(StoreError::io("sync", folder))?;
        }
        Ok(())
    }

    /// Opens the file again that was in use. Never another one that has come into its place, and never a new one: where the
    /// file was removed, all that was written is in the one that is open; and where its file system is not mounted, a new
    /// one would be written to the mount point, and taken for the index when the file system is back.
    fn reopen(&self) -> Result<Redb, redb::Error> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        // By its name where it can be: what is open may be that of a disk that went away and is back.
        let by_name = open_file(&self.path, false).and_then(|file| Ok((Open::of(&file)?, file)));
        let file = match by_name {
            Ok((found, file)) if found.inode == open.inode => {
                *open = found;
                file
            }
            _ => open.file.try_clone()?,
        };
        Ok(open_redb(&self.path, file)?.0)
    }

    /// After a failed write redb refuses everything, also when the disk is well again: it has to be opened anew. Then
    /// what was written before can be read, and the next attempt has a chance.
    fn write(&self, ops: &[Op]) -> Result<(), StoreError> {
        if let Some(what) = self.damage.found.get() {
            return Err(self.damage.note(what));
        }
        let applied = {
            let redb = self.redb.read().unwrap_or_else(PoisonError::into_inner);
            redb.as_ref().map(|redb| attempt(&self.path, || apply(redb, ops)))
        };
        match applied {
            Some(Ok(())) => return Ok(()),
            Some(Err(StoreError::IndexDamaged { what, .. })) => return Err(self.damage.note(&what)),
            _ => {}
        }
        let mut redb = self.redb.write().unwrap_or_else(PoisonError::into_inner);
        // First closed: two of them on one file exclude each other.
        let before = redb.take();
        let _ = guarded(|| drop(before));
        let opened = attempt(&self.path, || self.reopen());
        let opened = opened.inspect_err(|error| {
            if let StoreError::IndexDamaged { what, .. } = error {
                self.damage.note(what);
            }
        });
        let opened = redb.insert(opened?);
        match applied {
            Some(failed) => failed,
            None => attempt(&self.path, || apply(opened, ops)),
        }
    }
}

/// Hands over all pairs of all tables.
fn copy_all(redb: &Redb, path: &Path, put: &mut dyn FnMut(Op) -> Result<(), StoreError>) -> Result<(), StoreError> {
    let mut failed = Ok(());
    let read = attempt(path, || {
        let transaction = redb.begin_read()?;
        for table in Table::ALL {
            for pair in transaction.open_table(table.definition())?.range::<&[u8]>(..)? {
                let (key, value) = pair?;
                failed = put(Op::Put(table, key.value().to_vec(), value.value().to_vec()));
                if failed.is_err() {
                    return Ok(());
                }
            }
        }
        Ok(())
    });
    failed.and(read)
}

fn apply(redb: &Redb, ops: &[Op]) -> Result<(), redb::Error> {
    let transaction = redb.begin_write()?;
    for table in Table::ALL {
        let mut open = transaction.open_table(table.definition())?;
        for op in ops {
            match op {
                Op::Put(to, key, value) if *to == table => {
                    open.insert(key.as_slice(), value.as_slice())?;
                }
                Op::Delete(from, key) if *from == table => {
                    open.remove(key.as_slice())?;
                }
                _ => {}
            }
        }
    }
    transaction.commit()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(table: Table, key: u8, value: u8) -> Op {
        Op::Put(table, vec![key], vec![value])
    }

    /// What is forgotten of a long list of changes gives nobody what he may not have (L8).
    #[test]
    fn a_backlog_is_cut_without_opening_anything() {
        let ops = || {
            vec![
                put(Table::Meta, 1, 0),
                Op::Delete(Table::Links, vec![1]),
                put(Table::Links, 2, 0),
                put(Table::Tags, 3, 1),
                put(Table::Tags, 3, 2),
                put(Table::Blobs, 4, 0),
            ]
        };
        assert_eq!(cut_short(ops(), 6), ops(), "not before it has to be");
        let mut last = ops();
        last.remove(3);
        assert_eq!(cut_short(ops(), 5), last);
        last.remove(2);
        assert_eq!(cut_short(ops(), 4), last, "the oldest");
        last.truncate(2);
        assert_eq!(cut_short(ops(), 0), last);
    }
}
