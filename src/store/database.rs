//! The index on disk: a crash-safe database with one writer thread.
//!
//! The thread takes whatever has queued up, writes it in one transaction and syncs once, so a herd
//! of commits costs one fsync. Nobody on the way of a hit waits for it.

use std::collections::HashSet;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use redb::{Database as Redb, ReadableDatabase, ReadableTableMetadata, TableDefinition};

use super::TELL_EVERY;
use super::error::StoreError;

type Definition = TableDefinition<'static, &'static [u8], &'static [u8]>;

/// When to try again what could not be written.
const RETRY_AFTER: Duration = Duration::from_secs(5);
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
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Database {
    /// Opens or creates. A damaged file is put aside, not deleted, and a new one begun: blobs are found
    /// again on disk, tags are asked for again.
    pub(super) fn open(path: &Path) -> Result<Database, StoreError> {
        let redb = match open_redb(path) {
            Ok(redb) => redb,
            Err(error) if path.exists() && is_damage(&error) => {
                let aside = path.with_extension("redb.damaged");
                tracing::error!(path = %path.display(), aside = %aside.display(), %error, "the index is damaged: it was put aside and is being rebuilt from the blobs; tags, and who may have what, will be asked for again; pins are lost");
                std::fs::rename(path, &aside).map_err(StoreError::io("put aside", path))?;
                open_redb(path).map_err(|e| index_error(path, e))?
            }
            Err(error) => return Err(index_error(path, error)),
        };
        let redb: Shared = Arc::new(RwLock::new(Some(redb)));
        let (queue, messages) = mpsc::channel();
        let bytes = Arc::new(AtomicU64::new(file_bytes(path)));
        let thread = {
            let (redb, bytes, file) = (redb.clone(), bytes.clone(), path.to_owned());
            std::thread::Builder::new()
                .name("larder-index".to_owned())
                .spawn(move || {
                    let written = || bytes.store(file_bytes(&file), Ordering::Relaxed);
                    write_loop(&redb, &file, &messages, written);
                })
                .map_err(StoreError::io("start the writer thread of", path))?
        };
        Ok(Database {
            path: path.to_owned(),
            redb,
            queue,
            bytes,
            thread: Mutex::new(Some(thread)),
        })
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
    pub(super) fn settle(&self) {
        self.write_durably(Vec::new());
    }

    pub(super) fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let read = || -> Result<_, redb::Error> {
            let table = self.begin_read()?.open_table(table.definition())?;
            Ok(table.get(key)?.map(|value| value.value().to_vec()))
        };
        read().map_err(|e| index_error(&self.path, e))
    }

    /// How many pairs a table has.
    pub(super) fn count(&self, table: Table) -> Result<usize, StoreError> {
        let count = || -> Result<_, redb::Error> { Ok(self.begin_read()?.open_table(table.definition())?.len()?) };
        let count = count().map_err(|e| index_error(&self.path, e))?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    /// Calls `each` with every pair whose key starts with `prefix`, in key order, until it returns false.
    pub(super) fn scan(
        &self,
        table: Table,
        prefix: &[u8],
        mut each: impl FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), StoreError> {
        let mut read = || -> Result<(), redb::Error> {
            let table = self.begin_read()?.open_table(table.definition())?;
            for pair in table.range(prefix..)? {
                let (key, value) = pair?;
                if !key.value().starts_with(prefix) || !each(key.value(), value.value()) {
                    break;
                }
            }
            Ok(())
        };
        read().map_err(|e| index_error(&self.path, e))
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
    }
}

fn open_redb(path: &Path) -> Result<Redb, redb::Error> {
    // Ours first, so that it is nobody else's to read (R-X23).
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)?;
    let redb = Redb::builder().set_cache_size(32 << 20).create_file(file)?;
    let transaction = redb.begin_write()?;
    for table in Table::ALL {
        transaction.open_table(table.definition())?;
    }
    transaction.commit()?;
    Ok(redb)
}

fn is_damage(error: &redb::Error) -> bool {
    match error {
        redb::Error::Corrupted(_) | redb::Error::UpgradeRequired(_) | redb::Error::RepairAborted => true,
        redb::Error::Io(io) => matches!(
            io.kind(),
            std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof
        ),
        _ => false,
    }
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

fn write_loop(redb: &Shared, path: &Path, messages: &Receiver<Message>, written: impl Fn()) {
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
        let mut waiting = Vec::new();
        for message in std::iter::once(first).chain(messages.try_iter()) {
            match message {
                Message::Write(more, done) => {
                    ops.extend(more);
                    waiting.extend(done);
                }
                Message::Stop => stop = true,
            }
        }
        let outcome = match ops.is_empty() {
            true => Ok(()),
            false => apply_or_reopen(redb, path, &ops),
        };
        written();
        for done in waiting {
            let _ = done.send(outcome.is_ok());
        }
        if let Err(error) = outcome {
            if told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
                tracing::error!(%error, changes = ops.len(), "the index could not be written: it is tried again");
                told = Some(Instant::now());
            }
            backlog = cut_short(ops, MAX_BACKLOG);
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

/// After a failed write redb refuses everything, also when the disk is well again: it has to be opened anew. Then
/// what was written before can be read, and the next attempt has a chance.
fn apply_or_reopen(shared: &Shared, path: &Path, ops: &[Op]) -> Result<(), redb::Error> {
    let applied = {
        let redb = shared.read().unwrap_or_else(PoisonError::into_inner);
        redb.as_ref().map(|redb| apply(redb, ops))
    };
    if let Some(Ok(())) = applied {
        return Ok(());
    }
    let mut redb = shared.write().unwrap_or_else(PoisonError::into_inner);
    // First closed: two of them on one file exclude each other.
    *redb = None;
    let opened = redb.insert(open_redb(path)?);
    match applied {
        Some(failed) => failed,
        None => apply(opened, ops),
    }
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
