//! Memory for chunks of blobs that wait for clients to whom no file can be sent (TLS, HTTP/2).
//!
//! A chunk is small until its reader has shown that it takes chunks quickly, and small again as soon as it does not. Chunks above
//! [`SMALL_BYTES`] are leased: so much a connection, so much in all. The lease is part of the chunk, so it ends when the last byte has
//! left, or nobody wants it any more. Small chunks need none: `http::server` bounds how many requests there are at once.
//!
//! The streams of one connection share what it may lease evenly: a client that reads none of a hundred gets small chunks for all.
//!
//! Chunks are mapped one by one, not taken from the allocator: that keeps what was freed between things that stay, and after 5,000
//! clients that had not read gave back 4 % of it (glibc; mimalloc and jemalloc: some 30 %). A response reads into the same memory
//! again and again, so this costs it two system calls for each length that its chunks grow through.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use memmap2::MmapMut;

/// What a reader of unknown speed is given at once.
pub const SMALL_BYTES: usize = 8 * 1024;
/// What a quick reader is given.
const LARGE_BYTES: usize = 256 * 1024;
/// Leased to the responses of one connection, at most.
const LEASED_A_CONNECTION: usize = 1024 * 1024;
/// Leased in all, at most.
const LEASED_IN_ALL: usize = 64 * 1024 * 1024;
/// How soon a quick reader comes back for more.
const QUICK: Duration = Duration::from_millis(20);

/// What all connections together take.
static ALL: Total = Total {
    leased: AtomicUsize::new(0),
    buffered: AtomicUsize::new(0),
};

#[derive(Debug)]
struct Total {
    leased: AtomicUsize,
    buffered: AtomicUsize,
}

/// Bytes of memory that chunks take now, those in waiting for the next read included.
pub fn buffered_bytes() -> usize {
    ALL.buffered.load(Ordering::Relaxed)
}

/// The memory of one connection.
#[derive(Debug)]
pub struct ChunkMemory {
    first_bytes: usize,
    account: Arc<Account>,
}

#[derive(Debug)]
struct Account {
    total: &'static Total,
    leased: AtomicUsize,
    /// Responses that have chunks.
    readers: AtomicUsize,
}

impl ChunkMemory {
    /// `first_bytes` is the length of a response's first chunk, at most. hyper takes that one before it knows whether an HTTP/2 stream
    /// has a window.
    pub fn new(first_bytes: usize) -> ChunkMemory {
        ChunkMemory::of(&ALL, first_bytes)
    }

    fn of(total: &'static Total, first_bytes: usize) -> ChunkMemory {
        let account = Account {
            total,
            leased: AtomicUsize::new(0),
            readers: AtomicUsize::new(0),
        };
        ChunkMemory {
            first_bytes: first_bytes.min(SMALL_BYTES),
            account: Arc::new(account),
        }
    }

    /// Memory for `want` bytes, or for fewer if that is more than this reader's share or than there is now; at least for
    /// [`SMALL_BYTES`] of them.
    fn lease(&self, want: usize) -> Lease {
        // Two chunks of a quick reader are under way at once.
        let share = LEASED_A_CONNECTION / 2 / self.account.readers.load(Ordering::Relaxed).max(1);
        let mut bytes = want.min(1 << share.max(1).ilog2());
        while bytes > SMALL_BYTES && !self.account.take(bytes) {
            bytes /= 2;
        }
        let is_leased = bytes > SMALL_BYTES;
        let bytes = if is_leased { bytes } else { want.min(SMALL_BYTES) };
        let total = self.account.total;
        total.buffered.fetch_add(bytes, Ordering::Relaxed);
        Lease {
            bytes,
            total,
            account: is_leased.then(|| self.account.clone()),
        }
    }
}

impl Account {
    fn take(&self, bytes: usize) -> bool {
        if !take(&self.leased, bytes, LEASED_A_CONNECTION) {
            return false;
        }
        let is_granted = take(&self.total.leased, bytes, LEASED_IN_ALL);
        if !is_granted {
            self.leased.fetch_sub(bytes, Ordering::Relaxed);
        }
        is_granted
    }
}

fn take(counter: &AtomicUsize, n: usize, limit: usize) -> bool {
    let more = |now: usize| now.checked_add(n).filter(|then| *then <= limit);
    counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
}

#[derive(Debug)]
struct Lease {
    bytes: usize,
    total: &'static Total,
    /// The connection's, if it is one above [`SMALL_BYTES`].
    account: Option<Arc<Account>>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.total.buffered.fetch_sub(self.bytes, Ordering::Relaxed);
        if let Some(account) = &self.account {
            account.leased.fetch_sub(self.bytes, Ordering::Relaxed);
            self.total.leased.fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}

/// Bytes that are given back to the kernel when they are dropped, if there are enough of them.
enum Memory {
    Mapped(MmapMut),
    Heap(Vec<u8>),
}

impl Memory {
    fn new(bytes: usize) -> Memory {
        let mapped = if bytes < SMALL_BYTES {
            None
        } else {
            MmapMut::map_anon(bytes).ok()
        };
        match mapped {
            Some(mapped) => Memory::Mapped(mapped),
            // Of mappings a process may have 65,530.
            None => Memory::Heap(vec![0; bytes]),
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Memory::Mapped(bytes) => bytes,
            Memory::Heap(bytes) => bytes,
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Memory::Mapped(bytes) => bytes,
            Memory::Heap(bytes) => bytes,
        }
    }
}

/// Memory to read a chunk into.
pub(super) struct Buffer {
    memory: Memory,
    /// Of these so many are to be read.
    len: usize,
    lease: Option<Lease>,
    home: Weak<Spare>,
}

impl Buffer {
    /// Outside of any account, for readers that hold no more than one.
    pub(super) fn unleased(len: usize) -> Buffer {
        Buffer {
            memory: Memory::Heap(vec![0; len]),
            len,
            lease: None,
            home: Weak::new(),
        }
    }

    pub(super) fn memory(&mut self) -> &mut [u8] {
        &mut self.memory.bytes_mut()[..self.len]
    }

    /// Its first `len` bytes.
    pub(super) fn filled(mut self, len: usize) -> Bytes {
        match (&mut self.lease, &mut self.memory) {
            (None, Memory::Heap(bytes)) => {
                let mut bytes = std::mem::take(bytes);
                bytes.truncate(len);
                bytes.into()
            }
            _ => Bytes::from_owner(Filled { len, buffer: self }),
        }
    }
}

impl Drop for Buffer {
    /// It is read into again, if its response goes on.
    fn drop(&mut self) {
        if let (Some(home), Some(lease)) = (self.home.upgrade(), self.lease.take()) {
            let memory = std::mem::replace(&mut self.memory, Memory::Heap(Vec::new()));
            let before = home
                .0
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .replace((memory, lease));
            drop(before);
        }
    }
}

struct Filled {
    len: usize,
    buffer: Buffer,
}

impl AsRef<[u8]> for Filled {
    fn as_ref(&self) -> &[u8] {
        &self.buffer.memory.bytes()[..self.len]
    }
}

/// The last buffer of a response that has come back.
#[derive(Default)]
struct Spare(Mutex<Option<(Memory, Lease)>>);

/// How long the chunks of one response are, and what they are read into.
#[derive(Default)]
pub(super) struct Chunks {
    /// When the last one was handed out, and its length.
    last: Option<(Instant, usize)>,
    spare: Option<Arc<Spare>>,
    /// Counted in this connection's account.
    reader: Option<Reader>,
}

/// A response that has chunks.
struct Reader(Arc<Account>);

impl Reader {
    fn of(memory: &ChunkMemory) -> Reader {
        memory.account.readers.fetch_add(1, Ordering::Relaxed);
        Reader(memory.account.clone())
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.readers.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Chunks {
    /// Memory for the next chunk, of at most `left` bytes, for a reader that came for it at `asked`.
    pub(super) fn next(&mut self, memory: &ChunkMemory, asked: Instant, left: usize) -> Buffer {
        self.reader.get_or_insert_with(|| Reader::of(memory));
        let want = self.most(memory, asked).min(left);
        let (memory, lease) = match self.reuse(want) {
            Some(spare) => spare,
            None => {
                let lease = memory.lease(want);
                (Memory::new(lease.bytes), lease)
            }
        };
        let home = match &memory {
            Memory::Mapped(_) => Arc::downgrade(self.spare.get_or_insert_default()),
            Memory::Heap(_) => Weak::new(),
        };
        Buffer {
            len: want.min(memory.bytes().len()),
            memory,
            lease: Some(lease),
            home,
        }
    }

    /// The reader has been handed `len` bytes.
    pub(super) fn handed_out(&mut self, len: usize) {
        self.last = Some((Instant::now(), len));
    }

    fn most(&self, memory: &ChunkMemory, asked: Instant) -> usize {
        match self.last {
            None => memory.first_bytes,
            Some((then, bytes)) if asked.saturating_duration_since(then) < QUICK => {
                (bytes * 2).clamp(SMALL_BYTES, LARGE_BYTES)
            }
            Some(_) => SMALL_BYTES,
        }
    }

    /// The spare buffer if it fits; else it is given back, as for a reader that was quick and is slow.
    fn reuse(&self, want: usize) -> Option<(Memory, Lease)> {
        let spare = self.spare.as_ref()?;
        let (memory, lease) = spare.0.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        let is_small = |bytes: usize| bytes <= SMALL_BYTES;
        let fits = lease.bytes >= want && is_small(lease.bytes) == is_small(want);
        fits.then_some((memory, lease))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LATER: Duration = Duration::from_secs(1);

    /// A total of its own for each test: they run side by side in one process.
    fn total() -> &'static Total {
        Box::leak(Box::new(Total {
            leased: AtomicUsize::new(0),
            buffered: AtomicUsize::new(0),
        }))
    }

    /// Bytes buffered, and of these leased.
    fn taken(total: &Total) -> (usize, usize) {
        let load = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        (load(&total.buffered), load(&total.leased))
    }

    /// The lengths of chunks for a reader that comes back after `pause` each time, each chunk gone before the next.
    fn lengths(memory: &ChunkMemory, pause: Duration, n: usize) -> Vec<usize> {
        let mut chunks = Chunks::default();
        let lengths = (0..n).map(|_| {
            let asked = chunks.last.map_or_else(Instant::now, |(then, _)| then + pause);
            let mut buffer = chunks.next(memory, asked, usize::MAX);
            let len = buffer.memory().len();
            chunks.handed_out(len);
            drop(buffer.filled(len));
            len >> 10
        });
        lengths.collect()
    }

    #[test]
    fn chunks_grow_for_a_quick_reader_and_stay_small_for_a_slow_one() {
        let total = total();
        let memory = ChunkMemory::of(total, 1024);
        assert_eq!(lengths(&memory, Duration::ZERO, 8), [1, 8, 16, 32, 64, 128, 256, 256]);
        assert_eq!(lengths(&memory, QUICK, 4), [1, 8, 8, 8]);
        assert_eq!(lengths(&ChunkMemory::of(total, usize::MAX), Duration::ZERO, 2), [8, 16]);
        let mut chunks = Chunks::default();
        assert_eq!(
            chunks.next(&memory, Instant::now(), 77).memory().len(),
            77,
            "all there is"
        );
        assert_eq!(taken(total), (0, 0), "all is given back");
    }

    #[test]
    fn a_reader_that_slows_down_gives_its_memory_back() {
        let total = total();
        let memory = ChunkMemory::of(total, SMALL_BYTES);
        let mut chunks = Chunks::default();
        chunks.handed_out(LARGE_BYTES);
        let large = chunks.next(&memory, Instant::now(), usize::MAX).filled(LARGE_BYTES);
        drop(large);
        assert_eq!(taken(total).0, LARGE_BYTES, "for the next one");
        let small = chunks.next(&memory, Instant::now() + LATER, usize::MAX);
        assert_eq!(taken(total).0, SMALL_BYTES);
        drop((small, chunks));
        assert_eq!(taken(total).0, 0);
    }

    /// A chunk for each of so many quick readers of one connection.
    fn held(memory: &ChunkMemory, streams: usize) -> Vec<(Bytes, Chunks)> {
        let quick = || Chunks {
            last: Some((Instant::now(), LARGE_BYTES)),
            spare: None,
            reader: Some(Reader::of(memory)),
        };
        let all: Vec<Chunks> = (0..streams).map(|_| quick()).collect();
        let hold = |mut chunks: Chunks| {
            let mut buffer = chunks.next(memory, Instant::now(), usize::MAX);
            let len = buffer.memory().len();
            (buffer.filled(len), chunks)
        };
        all.into_iter().map(hold).collect()
    }

    #[test]
    fn streams_of_a_connection_share_what_it_may_lease() {
        let total = total();
        for (streams, each) in [(1, 256), (2, 256), (3, 128), (8, 64), (9, 32), (64, 8), (100, 8)] {
            let memory = ChunkMemory::of(total, SMALL_BYTES);
            let held = held(&memory, streams);
            assert!(held.iter().all(|(chunk, _)| chunk.len() == each << 10), "{streams}");
        }
        assert_eq!(taken(total), (0, 0));
    }

    #[test]
    fn large_chunks_are_leased_and_small_ones_are_always_there() {
        let total = total();
        let memories: Vec<ChunkMemory> = (0..1000).map(|_| ChunkMemory::of(total, SMALL_BYTES)).collect();
        let all: Vec<_> = memories.iter().flat_map(|memory| held(memory, 2)).collect();
        assert_eq!(taken(total).1, LEASED_IN_ALL);
        assert!(taken(total).0 <= LEASED_IN_ALL + all.len() * SMALL_BYTES);
        assert!(all.iter().all(|(chunk, _)| chunk.len() >= SMALL_BYTES));
        drop(all);
        assert_eq!(taken(total), (0, 0));
        assert!(memories.iter().all(|m| m.account.leased.load(Ordering::Relaxed) == 0));
    }

    #[test]
    fn a_buffer_is_read_into_again() {
        let memory = ChunkMemory::new(SMALL_BYTES);
        let mut chunks = Chunks::default();
        chunks.handed_out(LARGE_BYTES);
        let mut buffer = chunks.next(&memory, Instant::now(), usize::MAX);
        buffer.memory().fill(b'x');
        let (address, chunk) = (buffer.memory().as_ptr(), buffer.filled(3));
        assert_eq!(chunk, "xxx");
        let kept = chunk.slice(1..);
        drop(chunk);
        let other = chunks.next(&memory, Instant::now(), usize::MAX);
        assert!(
            !std::ptr::eq(other.memory.bytes().as_ptr(), address),
            "somebody has a part of it"
        );
        drop(kept);
        let mut again = chunks.next(&memory, Instant::now(), usize::MAX);
        assert!(std::ptr::eq(again.memory().as_ptr(), address));
    }
}
