//! Lists that upstreams gave: tags, and the referrers of a digest. Kept within a budget of their own.
//!
//! A list is lines (`lines`). A short one lies in the database; a longer one is a file of its own, because a database
//! file never shrinks and its one writer would keep everybody waiting. The record in the database says which, and
//! when the list was confirmed. A file is synced and renamed into its place before its record is written: a crash
//! between the two leaves the newer list under the older time.
//!
//! On its way in a list is a [`ListSpool`]: memory at first, then a temporary file. All lists together take at most an
//! eighth of `max_size`; beyond that the least recently used go. A list that does not fit in there is served and not
//! kept.

use std::any::Any;
use std::collections::{BinaryHeap, HashSet};
use std::fs::File;
use std::io::{Error, ErrorKind};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use serde_json::Value;

use super::clock::unix_ms;
use super::database::{Database, Op, Table};
use super::error::StoreError;
use super::index::on_disk;
use super::keys::Tree;
use super::lines::{self, Page};
use super::records::{ListKey, in_repository};
use super::tags::upsert;
use super::{Inner, Store, unlink};

/// A list up to so long lies in the database.
const INLINE_BYTES: u64 = 16 * 1024;
/// The lists' part of `max_size`, and the most that they take of it.
const BUDGET_SHARE: u64 = 8;
const MAX_BUDGET: u64 = 1 << 30;
/// Taken off beyond an excess, so that not every new list looks for another to evict.
const SLACK_SHARE: u64 = 16;
/// Counted for each list beside its lines: its record, and its place in the database's trees.
const OVERHEAD_BYTES: u64 = 512;
/// Records and short lists kept in memory, in bytes.
const HOT_BYTES: u64 = 8 << 20;
/// A use is written down at most this often.
const NOTE_USE_EVERY_MS: u64 = 3_600_000;
/// Lists that may be longer than the spool's memory and on their way in at once.
const MOST_LARGE: u64 = 4;
/// The longest list that is taken, in bytes.
const MAX_LIST_BYTES: u64 = 16 << 20;
/// Room for a spool is taken in such steps.
const ROOM_STEP: u64 = 1 << 20;
/// Written to a file at once.
const WRITE_BYTES: usize = 64 * 1024;
/// The form of a record.
const FORM: u8 = 3;
/// Records of earlier versions, in JSON, that are longer are forgotten.
const MAX_JSON_BYTES: u64 = 2 * INLINE_BYTES;

type HotLists = moka::sync::Cache<Vec<u8>, Option<Arc<Stored>>>;

/// The store's account of its lists, beside the database.
pub(super) struct Lists {
    hot: HotLists,
    /// Bytes of files in their place.
    file_bytes: AtomicU64,
    /// Bytes that count for the budget.
    charged: AtomicU64,
    /// Held by who evicts.
    trimming: Mutex<()>,
    /// Held by who sorts a list: it is in memory as a whole meanwhile.
    sorting: Mutex<()>,
}

/// A list, open.
#[derive(Clone)]
pub struct ListRecord {
    /// When the upstream last said so, Unix milliseconds.
    pub checked_ms: u64,
    /// How many items it has, if that is known.
    count: Option<u64>,
    bytes: ListBytes,
    /// Set if it is to be had here again.
    is_kept: bool,
}

#[derive(Clone)]
enum ListBytes {
    Memory(Bytes),
    Loan(Arc<Loan>),
    File(Arc<ListFile>),
}

/// Lines in memory that can be taken back though somebody still reads them.
pub struct Loan {
    len: u64,
    /// With what is given back together with them.
    lines: Mutex<Option<(Bytes, Box<dyn Any + Send + Sync>)>>,
    /// As far as its furthest reader came.
    read: AtomicU64,
}

impl Loan {
    /// Lets go of the lines: whoever reads them gets no more.
    pub fn end(&self) {
        *self.lines.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Bytes that its furthest reader has.
    pub fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    fn lines(&self) -> std::io::Result<Bytes> {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = || Error::new(ErrorKind::TimedOut, "its reader stood still for too long");
        lines.as_ref().map(|(lines, _)| lines.clone()).ok_or_else(gone)
    }
}

/// An open file. It stays readable when the list is replaced or evicted.
struct ListFile {
    file: File,
    len: u64,
    path: PathBuf,
    key: Vec<u8>,
    inner: Arc<Inner>,
}

/// The record of a list, as the database has it:
///
/// ```text
/// 3                                          the form
/// u64 checked_ms   u64 used_ms   u64 count   little-endian
/// 0, lines                                   a short list
/// 1, u64 length                              a file
/// ```
#[derive(Debug)]
struct Stored {
    checked_ms: u64,
    used_ms: AtomicU64,
    count: u64,
    place: Place,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Inline(Bytes),
    File(u64),
}

impl Stored {
    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![FORM];
        for figure in [self.checked_ms, self.used_ms.load(Ordering::Relaxed), self.count] {
            bytes.extend_from_slice(&figure.to_le_bytes());
        }
        match &self.place {
            Place::Inline(lines) => {
                bytes.push(0);
                bytes.extend_from_slice(lines);
            }
            Place::File(len) => {
                bytes.push(1);
                bytes.extend_from_slice(&len.to_le_bytes());
            }
        }
        bytes
    }

    /// `None` for what is no record, or one of an earlier version that is too long.
    fn from_bytes(bytes: &[u8]) -> Option<Stored> {
        if bytes.first() == Some(&b'{') {
            return from_json(bytes);
        }
        let rest = bytes.strip_prefix(&[FORM])?;
        let (checked_ms, rest) = rest.split_first_chunk()?;
        let (used_ms, rest) = rest.split_first_chunk()?;
        let (count, rest) = rest.split_first_chunk()?;
        let place = match rest.split_first()? {
            (0, lines) => Place::Inline(Bytes::copy_from_slice(lines)),
            (1, len) => Place::File(u64::from_le_bytes(len.try_into().ok()?)),
            _ => return None,
        };
        Some(Stored {
            checked_ms: u64::from_le_bytes(*checked_ms),
            used_ms: AtomicU64::new(u64::from_le_bytes(*used_ms)),
            count: u64::from_le_bytes(*count),
            place,
        })
    }

    /// The record of a newer file under this older time: a crash has kept its own from being written.
    fn of_file(self, path: &Path, len: u64) -> std::io::Result<Stored> {
        let mut count = 0;
        lines::walk(&(&File::open(path)?, len), 0..len, |_| {
            count += 1;
            true
        })?;
        let place = Place::File(len);
        Ok(Stored { count, place, ..self })
    }

    fn file_bytes(&self) -> u64 {
        match self.place {
            Place::Inline(_) => 0,
            Place::File(len) => on_disk(len),
        }
    }

    /// Bytes that it counts for the budget.
    fn charge(&self, key: &[u8]) -> u64 {
        let lines = match &self.place {
            Place::Inline(lines) => lines.len() as u64,
            Place::File(len) => on_disk(*len),
        };
        lines + key.len() as u64 + OVERHEAD_BYTES
    }

    fn weight(&self) -> u32 {
        let lines = match &self.place {
            Place::Inline(lines) => lines.len(),
            Place::File(_) => 0,
        };
        u32::try_from(lines + 512).unwrap_or(u32::MAX)
    }
}

/// As versions up to 0.1 wrote it.
fn from_json(bytes: &[u8]) -> Option<Stored> {
    #[derive(serde::Deserialize)]
    struct Json {
        checked_ms: u64,
        items: Vec<Value>,
    }
    if bytes.len() as u64 > MAX_JSON_BYTES {
        return None;
    }
    let json: Json = serde_json::from_slice(bytes).ok()?;
    Some(Stored {
        checked_ms: json.checked_ms,
        used_ms: AtomicU64::new(json.checked_ms),
        count: json.items.len() as u64,
        place: Place::Inline(to_lines(&json.items).into()),
    })
}

/// A string is a tag and a line of its own; all else is a line of JSON.
fn to_lines(items: &[Value]) -> Vec<u8> {
    let mut lines = Vec::new();
    for item in items {
        match item {
            Value::String(text) => lines.extend_from_slice(text.as_bytes()),
            other => lines.extend_from_slice(other.to_string().as_bytes()),
        }
        lines.push(b'\n');
    }
    lines
}

impl std::fmt::Debug for ListRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = f.debug_struct("ListRecord");
        debug.field("checked_ms", &self.checked_ms).field("count", &self.count);
        debug.field("bytes", &self.len()).finish()
    }
}

impl ListRecord {
    /// A list in memory, of lines that each end in `\n`; those of a tag list in byte order.
    pub fn of_lines(checked_ms: u64, lines: impl Into<Bytes>) -> ListRecord {
        let lines = lines.into();
        ListRecord {
            checked_ms,
            count: Some(count_lines(&lines)),
            bytes: ListBytes::Memory(lines),
            is_kept: false,
        }
    }

    /// Descriptors as JSON, in their order.
    pub fn of_values(checked_ms: u64, items: &[Value]) -> ListRecord {
        ListRecord::of_lines(checked_ms, to_lines(items))
    }

    /// The same list with its lines, if they are in memory, on loan: `held` goes with them.
    pub fn lent(self, held: Box<dyn Any + Send + Sync>) -> (ListRecord, Weak<Loan>) {
        let ListBytes::Memory(lines) = self.bytes else {
            return (self, Weak::new());
        };
        let loan = Arc::new(Loan {
            len: lines.len() as u64,
            lines: Mutex::new(Some((lines, held))),
            read: AtomicU64::new(0),
        });
        let lent = Arc::downgrade(&loan);
        let bytes = ListBytes::Loan(loan);
        (ListRecord { bytes, ..self }, lent)
    }

    /// Returns true if it is to be had here again.
    pub fn is_kept(&self) -> bool {
        self.is_kept
    }

    /// Returns true if reading it takes no disk.
    pub fn is_in_memory(&self) -> bool {
        !matches!(self.bytes, ListBytes::File(_))
    }

    /// Bytes of its lines.
    pub fn len(&self) -> u64 {
        match &self.bytes {
            ListBytes::Memory(lines) => lines.len() as u64,
            ListBytes::Loan(loan) => loan.len,
            ListBytes::File(file) => file.len,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many items it has, if that is known without reading them.
    pub fn count(&self) -> Option<u64> {
        self.count
    }

    /// Finds a page of a tag list: the tags after `last`, `most` of them at most. Blocking where it is not in memory,
    /// for some reads of a few KiB and those of the page.
    pub fn page(&self, last: Option<&str>, most: Option<u64>) -> Result<Page, StoreError> {
        match &self.bytes {
            ListBytes::Memory(all) => lines::page(&all[..], self.count, last, most).map_err(in_memory),
            ListBytes::Loan(loan) => {
                let all = loan.lines().map_err(in_memory)?;
                lines::page(&all[..], self.count, last, most).map_err(in_memory)
            }
            ListBytes::File(file) => {
                let page = lines::page(&(&file.file, file.len), self.count, last, most);
                page.map_err(|error| file.failed(error))
            }
        }
    }

    /// Whole lines from the beginning of a stretch, some 64 KiB of them. Blocking where it is not in memory.
    pub fn chunk(&self, span: Range<u64>) -> Result<Vec<u8>, StoreError> {
        self.read_chunk(span).map_err(|error| match &self.bytes {
            ListBytes::Memory(_) | ListBytes::Loan(_) => in_memory(error),
            ListBytes::File(file) => file.failed(error),
        })
    }

    /// [`ListRecord::chunk`] without consequences of damage.
    fn read_chunk(&self, span: Range<u64>) -> std::io::Result<Vec<u8>> {
        match &self.bytes {
            ListBytes::Memory(all) => lines::chunk(&all[..], span),
            ListBytes::Loan(loan) => {
                let begin = span.start;
                let lines = lines::chunk(&loan.lines()?[..], span)?;
                loan.read.fetch_max(begin + lines.len() as u64, Ordering::Relaxed);
                Ok(lines)
            }
            ListBytes::File(file) => lines::chunk(&(&file.file, file.len), span),
        }
    }

    /// Calls `each` with every line until it returns false. Blocking where it is not in memory.
    pub fn for_each(&self, each: impl FnMut(&[u8]) -> bool) -> Result<(), StoreError> {
        match &self.bytes {
            ListBytes::Memory(all) => lines::walk(&all[..], 0..self.len(), each).map_err(in_memory),
            ListBytes::Loan(loan) => {
                let all = loan.lines().map_err(in_memory)?;
                lines::walk(&all[..], 0..self.len(), each).map_err(in_memory)
            }
            ListBytes::File(file) => {
                let walked = lines::walk(&(&file.file, file.len), 0..file.len, each);
                walked.map_err(|error| file.failed(error))
            }
        }
    }

    /// Its items as JSON; what is none is left out. Blocking where it is not in memory.
    pub fn values(&self) -> Result<Vec<Value>, StoreError> {
        let mut values = Vec::new();
        self.for_each(|line| {
            values.extend(serde_json::from_slice::<Value>(line));
            true
        })?;
        Ok(values)
    }
}

impl ListFile {
    /// An error of reading. A list that is damaged is forgotten: the next request asks for it again.
    fn failed(&self, error: Error) -> StoreError {
        if matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof) {
            tracing::error!(path = %self.path.display(), %error, "a list is damaged: forgotten, and asked for again");
            metrics::counter!("larder_damaged_total", "found" => "list").increment(1);
            self.inner.forget_list(&self.key);
        }
        StoreError::io("read", &self.path)(error)
    }
}

fn in_memory(error: Error) -> StoreError {
    StoreError::io("read", "a list in memory")(error)
}

fn count_lines(lines: &[u8]) -> u64 {
    lines.iter().filter(|byte| **byte == b'\n').count() as u64
}

/// A list on its way in. Dropped, it leaves nothing.
pub struct ListSpool {
    inner: Arc<Inner>,
    /// Behind what is in the file.
    memory: Vec<u8>,
    file: Option<Spooled>,
    /// The disk does not take it: all of it is in memory.
    is_held: bool,
    /// Some of it cannot be read back.
    lost: Option<StoreError>,
    count: u64,
    /// The last line; whether each was greater than the one before it.
    last: Vec<u8>,
    is_ordered: bool,
}

struct Spooled {
    file: File,
    path: PathBuf,
    len: u64,
    room: Room,
    is_placed: bool,
}

/// Bytes that are counted for a spool.
struct Room {
    inner: Arc<Inner>,
    bytes: u64,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.inner.index().sub_small(self.bytes);
    }
}

impl Drop for Spooled {
    fn drop(&mut self) {
        if !self.is_placed {
            unlink(Some(self.path.clone()));
        }
    }
}

impl ListSpool {
    fn new(inner: Arc<Inner>) -> ListSpool {
        ListSpool {
            inner,
            memory: Vec::new(),
            file: None,
            is_held: false,
            lost: None,
            count: 0,
            last: Vec::new(),
            is_ordered: true,
        }
    }

    /// Bytes that it has.
    pub fn len(&self) -> u64 {
        self.memory.len() as u64 + self.file.as_ref().map_or(0, |file| file.len)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns true if the disk does not take it: all of it is in memory.
    pub fn is_held(&self) -> bool {
        self.is_held
    }

    /// Appends lines that each end in `\n`. They stay in memory until [`ListSpool::flush`].
    pub fn push(&mut self, lines: &[u8]) {
        let mut before = std::mem::take(&mut self.last);
        let mut last: &[u8] = &before;
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            let line = line.strip_suffix(b"\n").unwrap_or(line);
            self.is_ordered &= self.count == 0 || last < line;
            self.count += 1;
            last = line;
        }
        self.last = match lines.is_empty() {
            true => std::mem::take(&mut before),
            false => last.to_vec(),
        };
        self.memory.extend_from_slice(lines);
    }

    /// Moves what is in memory to the disk. Blocking. Where the disk has no room for it or fails, all of it stays in
    /// memory.
    pub fn flush(&mut self) {
        if self.is_held || self.memory.is_empty() {
            return;
        }
        if let Err(error) = self.write_out() {
            if let Some(error) = error {
                self.inner.note_trouble(&error);
            }
            self.is_held = true;
            match self.read_back() {
                Ok(all) => self.memory = all,
                Err(error) => self.lost = Some(error),
            }
            self.file = None;
        }
    }

    /// Errors: `None` if there is no room.
    fn write_out(&mut self) -> Result<(), Option<StoreError>> {
        let inner = &self.inner;
        let len = self.len();
        // One that is longer is not kept: it would push out all others, and blobs.
        if len > inner.list_budget() {
            return Err(None);
        }
        if self.file.is_none() {
            let path = inner.tree.list_temporary();
            let file = inner.disk.create(&path);
            let file = file.map_err(|error| Some(StoreError::io("create", &path)(error)))?;
            self.file = Some(Spooled {
                file,
                path,
                len: 0,
                room: Room {
                    inner: inner.clone(),
                    bytes: 0,
                },
                is_placed: false,
            });
        }
        let Some(file) = &mut self.file else { return Err(None) };
        if len > file.room.bytes {
            let more = len.next_multiple_of(ROOM_STEP) - file.room.bytes;
            if !inner.make_small_room(more) {
                return Err(None);
            }
            file.room.bytes += more;
        }
        let lines = Bytes::from(std::mem::take(&mut self.memory));
        let written = inner
            .disk
            .write_all_at(&file.file, &file.path, std::slice::from_ref(&lines), file.len);
        if let Err(error) = written {
            self.memory = lines.to_vec();
            return Err(Some(StoreError::io("write", &file.path)(error)));
        }
        file.len += lines.len() as u64;
        Ok(())
    }

    /// All of it, in memory.
    fn read_back(&self) -> Result<Vec<u8>, StoreError> {
        let mut all = Vec::with_capacity(usize::try_from(self.len()).unwrap_or(0));
        if let Some(file) = &self.file {
            use std::os::unix::fs::FileExt as _;
            all.resize(usize::try_from(file.len).unwrap_or(0), 0);
            let read = file.file.read_exact_at(&mut all, 0);
            read.map_err(StoreError::io("read", &file.path))?;
        }
        all.extend_from_slice(&self.memory);
        Ok(all)
    }

    /// The same, out of its memory where it is there as a whole.
    fn take_all(&mut self) -> Result<Vec<u8>, StoreError> {
        match (self.lost.take(), &self.file) {
            (Some(error), _) => Err(error),
            (None, None) => Ok(std::mem::take(&mut self.memory)),
            (None, Some(_)) => self.read_back(),
        }
    }

    /// Puts the lines in byte order, each once. Blocking.
    fn sort(&mut self) -> Result<(), StoreError> {
        if self.is_ordered {
            return Ok(());
        }
        let inner = self.inner.clone();
        // One at a time: it takes the list, and four bytes for each line.
        let _one = inner.lists.sorting.lock().unwrap_or_else(PoisonError::into_inner);
        let all = self.read_back()?;
        let line = |start: u32| {
            let rest = all.get(start as usize..).unwrap_or_default();
            let end = rest
                .iter()
                .position(|byte| *byte == b'\n')
                .map_or(rest.len(), |end| end + 1);
            &rest[..end]
        };
        let mut starts = Vec::with_capacity(usize::try_from(self.count).unwrap_or(0));
        let mut at = 0;
        while at < all.len() {
            // Lists are held to a fraction of four GiB.
            let start = u32::try_from(at).unwrap_or(u32::MAX);
            starts.push(start);
            at += line(start).len();
        }
        // Without the line breaks, which sort behind control characters only.
        let text = |start: u32| line(start).strip_suffix(b"\n").unwrap_or_default();
        starts.sort_unstable_by(|a, b| text(*a).cmp(text(*b)));
        let mut sorted = ListSpool::new(inner.clone());
        sorted.is_held = self.is_held;
        self.file = None;
        self.memory = Vec::new();
        for start in starts {
            if sorted.count > 0 && sorted.last == text(start) {
                continue;
            }
            sorted.push(line(start));
            if sorted.memory.len() >= WRITE_BYTES {
                sorted.flush();
            }
        }
        *self = sorted;
        Ok(())
    }

    /// Returns true if another list has these lines. One that cannot be read has not: the caller, who holds its key,
    /// replaces it.
    fn holds_same(&self, other: &ListRecord) -> bool {
        if self.len() != other.len() {
            return false;
        }
        let mut at = 0;
        while at < other.len() {
            let Ok(theirs) = other.read_chunk(at..other.len()) else {
                return false;
            };
            let ours = self.bytes_at(at, theirs.len());
            if !ours.is_ok_and(|ours| ours == theirs) {
                return false;
            }
            at += theirs.len() as u64;
        }
        true
    }

    fn bytes_at(&self, at: u64, len: usize) -> Result<Vec<u8>, StoreError> {
        use std::os::unix::fs::FileExt as _;
        let in_file = self.file.as_ref().map_or(0, |file| file.len);
        let mut bytes = vec![0; len];
        let from_file = usize::try_from(in_file.saturating_sub(at)).unwrap_or(len).min(len);
        if let Some(file) = &self.file {
            let read = file.file.read_exact_at(&mut bytes[..from_file], at);
            read.map_err(StoreError::io("read", &file.path))?;
        }
        let from = usize::try_from((at + from_file as u64).saturating_sub(in_file)).unwrap_or(usize::MAX);
        let rest = self.memory.get(from..from.saturating_add(len - from_file));
        bytes[from_file..].copy_from_slice(rest.unwrap_or_default().get(..len - from_file).unwrap_or(&[]));
        Ok(bytes)
    }
}

impl Lists {
    /// Reads what there is. Files without a record go, and records without a file; so do long lists of earlier
    /// versions, for whose room the database is compacted. Blocking.
    pub(super) fn load(database: &Database, tree: &Tree) -> Result<Lists, StoreError> {
        let (mut file_bytes, mut charged, mut forgotten) = (0u64, 0u64, 0u64);
        let mut expected = HashSet::new();
        let mut ops = Vec::new();
        database.scan(Table::Lists, &[], |key, value| {
            let path = tree.list(key);
            let stored = Stored::from_bytes(value).and_then(|stored| match stored.place {
                Place::Inline(_) => Some((stored, true)),
                Place::File(len) => match std::fs::metadata(&path).ok().filter(|meta| meta.is_file())?.len() {
                    found if found == len => Some((stored, true)),
                    found => Some((stored.of_file(&path, found).ok()?, false)),
                },
            });
            match stored {
                Some((stored, is_written)) => {
                    if !is_written {
                        ops.push(Op::Put(Table::Lists, key.to_vec(), stored.to_bytes()));
                    }
                    file_bytes += stored.file_bytes();
                    charged += stored.charge(key);
                    if stored.file_bytes() > 0 {
                        expected.extend(path.file_name().map(ToOwned::to_owned));
                    }
                }
                None => {
                    forgotten += value.len() as u64;
                    ops.push(Op::Delete(Table::Lists, key.to_vec()));
                }
            }
            true
        })?;
        let folder = tree.lists();
        for entry in std::fs::read_dir(&folder).map_err(StoreError::io("list", &folder))? {
            let Ok(entry) = entry else { break };
            if !expected.contains(&entry.file_name()) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
        if !ops.is_empty() {
            database.write_durably(ops);
        }
        if forgotten > MAX_JSON_BYTES {
            tracing::info!(
                bytes = forgotten,
                "lists that an earlier version kept in the index are asked for again"
            );
            if let Err(error) = database.compact() {
                tracing::warn!(%error, "the index could not be made smaller");
            }
        }
        Ok(Lists {
            hot: moka::sync::Cache::builder()
                .weigher(|key: &Vec<u8>, list: &Option<Arc<Stored>>| {
                    let key = u32::try_from(key.len()).unwrap_or(u32::MAX);
                    key.saturating_add(list.as_ref().map_or(256, |list| list.weight()))
                })
                .max_capacity(HOT_BYTES)
                .eviction_policy(moka::policy::EvictionPolicy::lru())
                .build(),
            file_bytes: AtomicU64::new(file_bytes),
            charged: AtomicU64::new(charged),
            trimming: Mutex::default(),
            sorting: Mutex::default(),
        })
    }

    /// Bytes that lists take on disk as files.
    pub(super) fn file_bytes(&self) -> u64 {
        self.file_bytes.load(Ordering::Relaxed)
    }

    /// Counts one list in place of another.
    fn count(&self, key: &[u8], before: Option<&Stored>, after: Option<&Stored>) {
        let of = |list: Option<&Stored>| list.map_or((0, 0), |list| (list.file_bytes(), list.charge(key)));
        let ((old_file, old_charge), (new_file, new_charge)) = (of(before), of(after));
        for (counter, old, new) in [
            (&self.file_bytes, old_file, new_file),
            (&self.charged, old_charge, new_charge),
        ] {
            let change = |bytes: u64| Some(bytes.saturating_add(new).saturating_sub(old));
            let _ = counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change);
        }
    }
}

impl Inner {
    /// Bytes that lists may take together.
    fn list_budget(&self) -> u64 {
        (self.max_size() / BUDGET_SHARE).min(MAX_BUDGET)
    }

    /// Evicts the least recently used lists until those left fit into the budget; not `except`. Blocking.
    pub(super) fn trim_lists(&self, except: Option<&[u8]>) {
        let excess = || {
            self.lists
                .charged
                .load(Ordering::Relaxed)
                .saturating_sub(self.list_budget())
        };
        if excess() == 0 {
            return;
        }
        let _one = self.lists.trimming.lock().unwrap_or_else(PoisonError::into_inner);
        let excess = match excess() {
            0 => return,
            excess => excess + self.list_budget() / SLACK_SHARE,
        };
        // Only the lists that were used longest ago, and together are enough, are in memory at once.
        let mut oldest: BinaryHeap<(u64, u64, Vec<u8>)> = BinaryHeap::new();
        let mut sum = 0;
        let scanned = self.database.scan(Table::Lists, &[], |key, value| {
            let Some(stored) = Stored::from_bytes(value).filter(|_| except != Some(key)) else {
                return true;
            };
            let charge = stored.charge(key);
            sum += charge;
            oldest.push((stored.used_ms.load(Ordering::Relaxed), charge, key.to_vec()));
            while let Some((_, charge, _)) = oldest.peek()
                && sum - charge >= excess
            {
                sum -= charge;
                oldest.pop();
            }
            true
        });
        if let Err(error) = scanned {
            tracing::error!(%error, "the index could not be read: no list is evicted");
        }
        for (_, _, key) in oldest {
            metrics::counter!("larder_evicted_lists_total").increment(1);
            self.forget_list(&key);
        }
    }

    /// Lets go of a list. Blocking, briefly.
    fn forget_list(&self, key: &[u8]) {
        upsert(&self.lists.hot, key, |known| {
            let stored = known.unwrap_or_else(|| self.read_list(key));
            self.lists.count(key, stored.as_deref(), None);
            if stored.is_some_and(|stored| stored.file_bytes() > 0) {
                unlink(Some(self.tree.list(key)));
            }
            self.database.write(vec![Op::Delete(Table::Lists, key.to_vec())]);
            None
        });
    }

    /// Lets go of the lists whose files are gone. Blocking.
    pub(super) fn forget_gone_lists(&self) {
        let mut gone = Vec::new();
        let scanned = self.database.scan(Table::Lists, &[], |key, value| {
            let is_file = Stored::from_bytes(value).is_some_and(|stored| stored.file_bytes() > 0);
            let is_gone = |error: Error| error.kind() == ErrorKind::NotFound;
            if is_file && std::fs::metadata(self.tree.list(key)).is_err_and(is_gone) {
                gone.push(key.to_vec());
            }
            true
        });
        if let Err(error) = scanned {
            tracing::error!(%error, "the index could not be read: lists that are gone are not forgotten");
        }
        for key in gone {
            self.forget_list(&key);
        }
    }

    fn read_list(&self, key: &[u8]) -> Option<Arc<Stored>> {
        match self.database.get(Table::Lists, key) {
            Ok(bytes) => Stored::from_bytes(&bytes?).map(Arc::new),
            Err(error) => {
                tracing::error!(%error, "the index could not be read");
                None
            }
        }
    }

    /// A list of which the record is here, opened. `None` if its file cannot be opened.
    fn open_list(self: &Arc<Inner>, key: &[u8], stored: &Stored) -> Option<ListRecord> {
        let (count, bytes) = match &stored.place {
            Place::Inline(lines) => (Some(stored.count), ListBytes::Memory(lines.clone())),
            Place::File(len) => {
                let path = self.tree.list(key);
                let opened = File::open(&path).and_then(|file| Ok((file.metadata()?.len(), file)));
                let (found, file) = match opened {
                    Ok(opened) => opened,
                    Err(error) => {
                        tracing::warn!(path = %path.display(), %error, "a list cannot be opened: it is asked for again");
                        return None;
                    }
                };
                let file = ListFile {
                    file,
                    len: found,
                    path,
                    key: key.to_vec(),
                    inner: self.clone(),
                };
                // Another length is that of a newer list, whose record a crash has kept from being written.
                let count = (found == *len).then_some(stored.count);
                (count, ListBytes::File(Arc::new(file)))
            }
        };
        Some(ListRecord {
            checked_ms: stored.checked_ms,
            count,
            bytes,
            is_kept: true,
        })
    }

    /// Takes a spool's lines into their place, on disk before this returns. `None` if they are only to be had in
    /// memory.
    fn place_list(&self, key: &[u8], spool: &mut ListSpool) -> Result<Option<Place>, StoreError> {
        if spool.len() <= INLINE_BYTES {
            return Ok(Some(Place::Inline(spool.read_back()?.into())));
        }
        spool.flush();
        let Some(file) = &mut spool.file else { return Ok(None) };
        let place = self.tree.list(key);
        self.disk
            .sync(&file.file, &file.path)
            .map_err(StoreError::io("sync", &file.path))?;
        self.disk
            .rename(&file.path, &place)
            .map_err(StoreError::io("move into place", &place))?;
        file.is_placed = true;
        self.disk
            .sync_folder_of(&place)
            .map_err(StoreError::io("sync the folder of", &place))?;
        Ok(Some(Place::File(file.len)))
    }
}

impl Store {
    /// For a list that is about to come.
    pub fn list_spool(&self) -> ListSpool {
        ListSpool::new(self.inner.clone())
    }

    /// How many lists that may be long can come at once: so many fit into the lists' budget.
    pub fn large_lists_at_once(&self) -> usize {
        let fitting = (self.inner.list_budget() / MAX_LIST_BYTES).clamp(1, MOST_LARGE);
        usize::try_from(fitting).unwrap_or(1)
    }

    /// Returns true if [`Store::list`] would answer from memory.
    pub fn is_hot_list(&self, repository: &str, which: &ListKey) -> bool {
        let hot = self.inner.lists.hot.get(&which.to_key(repository));
        hot.is_some_and(|hot| hot.is_none_or(|stored| stored.file_bytes() == 0))
    }

    /// A list as an upstream gave it, open. From memory when hot and short; else it reads a record or opens a file:
    /// blocking.
    pub fn list(&self, repository: &str, which: &ListKey) -> Option<Arc<ListRecord>> {
        let key = which.to_key(repository);
        let read = || self.inner.read_list(&key);
        let stored = match self.inner.lists.hot.get(&key) {
            Some(hot) => hot,
            None => upsert(&self.inner.lists.hot, &key, |known| known.unwrap_or_else(read)),
        }?;
        let now = unix_ms();
        // A clock that was set back must not keep a use from being noted for as long as that.
        if now.abs_diff(stored.used_ms.load(Ordering::Relaxed)) >= NOTE_USE_EVERY_MS {
            self.note_list_use(&key, now);
        }
        self.inner.open_list(&key, &stored).map(Arc::new)
    }

    /// Writes down that a list is in use, in one with who replaces or forgets it.
    fn note_list_use(&self, key: &[u8], now_ms: u64) {
        upsert(&self.inner.lists.hot, key, |known| {
            let stored = known.unwrap_or_else(|| self.inner.read_list(key))?;
            stored.used_ms.store(now_ms, Ordering::Relaxed);
            let put = Op::Put(Table::Lists, key.to_vec(), stored.to_bytes());
            self.inner.database.write(vec![put]);
            Some(stored)
        });
    }

    /// Keeps a list; if it is another than before it is on disk before anybody sees it, as a tag is. Blocking. One
    /// that the disk does not take is returned all the same, and what was kept before stays.
    ///
    /// Errors: some of the list was lost.
    pub fn put_list(
        &self,
        repository: &str,
        which: &ListKey,
        mut spool: ListSpool,
        checked_ms: u64,
    ) -> Result<Arc<ListRecord>, StoreError> {
        if let Some(error) = spool.lost.take() {
            return Err(error);
        }
        if *which == ListKey::Tags {
            spool.sort()?;
        }
        let inner = &self.inner;
        let key = which.to_key(repository);
        let mut outcome = None;
        upsert(&inner.lists.hot, &key, |known| {
            let earlier = known.unwrap_or_else(|| inner.read_list(&key));
            let open = earlier.as_ref().and_then(|earlier| inner.open_list(&key, earlier));
            let is_same = open.as_ref().is_some_and(|open| spool.holds_same(open));
            let place = match &earlier {
                Some(earlier) if is_same => Ok(Some(match &earlier.place {
                    Place::File(_) => Place::File(spool.len()),
                    inline => inline.clone(),
                })),
                _ => inner.place_list(&key, &mut spool),
            };
            let place = match place {
                Ok(place) => place,
                Err(error) => {
                    inner.note_trouble(&error);
                    None
                }
            };
            let Some(place) = place else {
                let all = spool.take_all();
                outcome = Some(all.map(|all| ListRecord::of_lines(checked_ms, all)));
                return earlier;
            };
            let stored = Stored {
                checked_ms,
                used_ms: AtomicU64::new(unix_ms()),
                count: spool.count,
                place,
            };
            inner.lists.count(&key, earlier.as_deref(), Some(&stored));
            let put = Op::Put(Table::Lists, key.clone(), stored.to_bytes());
            let written = inner.database.write_noted(vec![put]);
            let is_written = !is_same && written.recv().unwrap_or(false);
            // Until then it is the file of the record that is on disk (L6).
            if is_written && stored.file_bytes() == 0 && earlier.is_some_and(|earlier| earlier.file_bytes() > 0) {
                unlink(Some(inner.tree.list(&key)));
            }
            let record = inner.open_list(&key, &stored);
            outcome = Some(record.ok_or_else(|| {
                StoreError::io("open", inner.tree.list(&key))(Error::new(ErrorKind::NotFound, "its file is gone"))
            }));
            Some(Arc::new(stored))
        });
        drop(spool);
        // Not within the above: whoever evicts waits for the lists that it evicts.
        inner.trim_lists(Some(&key));
        match outcome {
            Some(record) => record.map(Arc::new),
            None => Err(StoreError::io("keep", inner.tree.list(&key))(Error::from(
                ErrorKind::Other,
            ))),
        }
    }

    /// A list that is to be seen together with something else: the change that shows it, and what it becomes in
    /// memory. A long one is in its place already. Blocking.
    pub(super) fn prepare_list(&self, key: &[u8], list: &ListRecord) -> Result<Prepared, StoreError> {
        let mut spool = self.list_spool();
        let mut at = 0;
        while at < list.len() {
            let lines = list.chunk(at..list.len())?;
            spool.push(&lines);
            spool.flush_if_long();
            at += lines.len() as u64;
        }
        let mut before = None;
        let mut place = Ok(None);
        // In one with whoever fetches it: they see each other's file and record together.
        upsert(&self.inner.lists.hot, key, |known| {
            before = known.unwrap_or_else(|| self.inner.read_list(key));
            place = self.inner.place_list(key, &mut spool);
            before.clone()
        });
        let no_room = || StoreError::io("keep", self.inner.tree.list(key))(Error::from(ErrorKind::StorageFull));
        let stored = Stored {
            checked_ms: list.checked_ms,
            used_ms: AtomicU64::new(unix_ms()),
            count: spool.count,
            place: place?.ok_or_else(no_room)?,
        };
        Ok(Prepared {
            inner: self.inner.clone(),
            key: key.to_vec(),
            before,
            stored: Some(Arc::new(stored)),
            _spool: spool,
        })
    }

    /// Makes a prepared list seen, once it is written down. Blocking, briefly.
    pub(super) fn show_list(&self, mut list: Prepared) {
        let Some(stored) = list.stored.take() else { return };
        let (inner, key, before) = (&self.inner, &list.key, &list.before);
        upsert(&inner.lists.hot, key, |known| {
            if let Some(theirs) = known.filter(|known| !is_one(known.as_ref(), before.as_ref())) {
                // It was fetched or forgotten meanwhile, which is newer than what came with an import.
                let op = match &theirs {
                    Some(theirs) => Op::Put(Table::Lists, key.clone(), theirs.to_bytes()),
                    None => Op::Delete(Table::Lists, key.clone()),
                };
                inner.database.write(vec![op]);
                return theirs;
            }
            inner.lists.count(key, before.as_deref(), Some(&stored));
            if stored.file_bytes() == 0 && before.as_ref().is_some_and(|before| before.file_bytes() > 0) {
                unlink(Some(inner.tree.list(key)));
            }
            Some(stored)
        });
    }

    /// Forgets the lists of a repository. Blocking.
    pub(super) fn forget_lists(&self, repository: &str) {
        let prefix = in_repository(repository);
        let mut keys = Vec::new();
        let scan = self.inner.database.scan(Table::Lists, &prefix, |key, _| {
            keys.push(key.to_vec());
            true
        });
        self.report(scan);
        for key in &keys {
            self.inner.forget_list(key);
        }
    }
}

impl ListSpool {
    fn flush_if_long(&mut self) {
        if self.memory.len() >= WRITE_BYTES {
            self.flush();
        }
    }
}

/// Returns a record as it is written, for what can be read as one.
#[cfg(any(test, fuzzing))]
pub(super) fn rewritten(bytes: &[u8]) -> Option<Vec<u8>> {
    Stored::from_bytes(bytes).map(|stored| stored.to_bytes())
}

/// A record of each form.
#[cfg(any(test, fuzzing))]
pub(super) fn sample_records() -> Vec<Vec<u8>> {
    let places = [Place::Inline(Bytes::from_static(b"1\nlatest\n")), Place::File(70_000)];
    let stored = |place| Stored {
        checked_ms: 5,
        used_ms: AtomicU64::new(7),
        count: 2,
        place,
    };
    places.map(|place| stored(place).to_bytes()).to_vec()
}

/// A list in its place whose record is not written yet.
pub(super) struct Prepared {
    inner: Arc<Inner>,
    key: Vec<u8>,
    /// The list that it replaces.
    before: Option<Arc<Stored>>,
    /// `None` once it is shown.
    stored: Option<Arc<Stored>>,
    /// Its bytes are counted here until then.
    _spool: ListSpool,
}

impl Prepared {
    /// The change that writes it down.
    pub(super) fn op(&self) -> Option<Op> {
        let stored = self.stored.as_ref()?;
        Some(Op::Put(Table::Lists, self.key.clone(), stored.to_bytes()))
    }
}

/// Unshown, it leaves no file without a record.
impl Drop for Prepared {
    fn drop(&mut self) {
        let Some(stored) = self.stored.take().filter(|stored| stored.file_bytes() > 0) else {
            return;
        };
        let (inner, key, before) = (&self.inner, &self.key, &self.before);
        upsert(&inner.lists.hot, key, |known| {
            if let Some(theirs) = known.filter(|known| !is_one(known.as_ref(), before.as_ref())) {
                return theirs;
            }
            let Some(before) = before.as_ref().filter(|before| before.file_bytes() > 0) else {
                unlink(Some(inner.tree.list(key)));
                return before.clone();
            };
            // It has taken the place of another's file: the newer lines stay, under the older time.
            let kept = Stored {
                checked_ms: before.checked_ms,
                used_ms: AtomicU64::new(before.used_ms.load(Ordering::Relaxed)),
                count: stored.count,
                place: stored.place.clone(),
            };
            inner.lists.count(key, Some(before), Some(&kept));
            let put = Op::Put(Table::Lists, key.clone(), kept.to_bytes());
            inner.database.write(vec![put]);
            Some(Arc::new(kept))
        });
    }
}

/// Returns true if both are the same record, and not only equal ones.
fn is_one(one: Option<&Arc<Stored>>, other: Option<&Arc<Stored>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (None, None) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn records_come_back(checked_ms: u64, used_ms: u64, count: u64, lines: Option<Vec<u8>>, len: u64) {
            let place = lines.map_or(Place::File(len), |lines| Place::Inline(lines.into()));
            let stored = Stored { checked_ms, used_ms: AtomicU64::new(used_ms), count, place };
            let bytes = stored.to_bytes();
            let back = Stored::from_bytes(&bytes).unwrap();
            prop_assert_eq!((back.checked_ms, back.count, &back.place), (checked_ms, count, &stored.place));
            prop_assert_eq!(back.used_ms.load(Ordering::Relaxed), used_ms);
        }

        #[test]
        fn any_bytes_are_a_record_or_not(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = Stored::from_bytes(&bytes);
        }
    }

    #[test]
    fn what_earlier_versions_wrote_is_read_if_it_is_short() {
        let text = br#"{"checked_ms":7,"items":["1","2",{"digest":"x"}]}"#;
        let stored = Stored::from_bytes(text).unwrap();
        assert_eq!((stored.checked_ms, stored.count), (7, 3));
        assert_eq!(
            stored.place,
            Place::Inline(Bytes::from_static(b"1\n2\n{\"digest\":\"x\"}\n"))
        );
        let long = format!(r#"{{"checked_ms":7,"items":["{}"]}}"#, "x".repeat(40_000));
        assert!(Stored::from_bytes(long.as_bytes()).is_none());
    }
}
