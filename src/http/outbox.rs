//! Runs of files on their way from a body to a socket, by `sendfile(2)`: their bytes never enter this process.
//!
//! Between the body that names a run and the wire that sends it stand layers that pass `Bytes` (the access log, axum)
//! and hyper. None of them looks at the bytes of a body. So a body passes a *ticket*: one byte in memory that
//! belongs to the run. [`Outbox::length`] tells a layer that counts what a ticket stands for; `server::answer` changes
//! it into a [`Piece`], which tells hyper the run's true length; hyper queues it and passes its `IoSlice` to the
//! wire, which knows a ticket by its address ([`Outbox::first`]) and sends the run. What the wire says it has sent is
//! what hyper takes off the piece, and that moves the run on.
//!
//! A ticket cannot be forged: its address is in the run, and while the outbox knows a run no other memory is there.
//! Nothing is mapped, so a file that somebody truncates costs the rest of one response and nothing else. No `unsafe`.
//!
//! Each connection has an outbox; a request carries it. Only that of HTTP/1.1 over plain TCP sends files; through any other, bodies are
//! read, into memory that the outbox accounts for.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use bytes::{Buf, Bytes};

use crate::oci::Digest;
use crate::pull::{ChunkMemory, SMALL_BYTES, Span};

/// The first chunk of a body by HTTP/2. hyper has one in hand before it knows whether the stream has a window, so it is all that a
/// client costs that never opens one.
const FIRST_HTTP2_BYTES: usize = 1024;

/// How much is read at once where a file cannot be sent by the kernel.
const READ_BYTES: u64 = 256 * 1024;

/// A run of a file that is to be sent.
#[derive(Debug)]
pub struct FileRun {
    /// Its address is what counts.
    ticket: [u8; 1],
    file: Arc<File>,
    /// Whose bytes they are; for the log.
    digest: Digest,
    at: AtomicU64,
    end: AtomicU64,
    more: bool,
}

impl FileRun {
    pub fn file(&self) -> &File {
        &self.file
    }

    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The offset in the file at which the rest begins.
    pub fn at(&self) -> u64 {
        self.at.load(Ordering::Relaxed)
    }

    /// Bytes that have not been sent.
    pub fn left(&self) -> u64 {
        self.end.load(Ordering::Relaxed).saturating_sub(self.at())
    }

    /// Whether the bytes behind it come next.
    pub fn has_more(&self) -> bool {
        self.more
    }

    /// The next bytes, read; empty if the file has ended. Blocking.
    pub fn read(&self) -> io::Result<Bytes> {
        let want = usize::try_from(self.left().min(READ_BYTES)).unwrap_or(0);
        let mut buffer = vec![0; want];
        let n = self.file.read_at(&mut buffer, self.at())?;
        buffer.truncate(n);
        Ok(buffer.into())
    }

    fn advance(&self, n: u64) {
        self.at.fetch_add(n, Ordering::Relaxed);
    }

    fn is_ticket(&self, slice: &[u8]) -> bool {
        std::ptr::eq(slice, self.ticket.as_slice())
    }
}

/// A run's ticket as what `Bytes` is made of.
struct Ticket(Arc<FileRun>);

impl AsRef<[u8]> for Ticket {
    fn as_ref(&self) -> &[u8] {
        &self.0.ticket
    }
}

/// The runs that one connection is about to send.
#[derive(Debug)]
pub struct Outbox {
    /// Weak: a run that nobody will send any more must not hold its file open.
    runs: Mutex<Vec<Weak<FileRun>>>,
    sends_files: bool,
    memory: ChunkMemory,
}

/// Of a connection that sends files.
impl Default for Outbox {
    fn default() -> Outbox {
        Outbox {
            runs: Mutex::default(),
            sends_files: true,
            memory: ChunkMemory::new(SMALL_BYTES),
        }
    }
}

impl Outbox {
    /// Of a connection to which bodies go through memory.
    pub fn of_memory(http2: bool) -> Outbox {
        let first_bytes = if http2 { FIRST_HTTP2_BYTES } else { SMALL_BYTES };
        Outbox {
            sends_files: false,
            memory: ChunkMemory::new(first_bytes),
            ..Outbox::default()
        }
    }

    /// True if the connection sends files by itself; only then there may be tickets.
    pub fn sends_files(&self) -> bool {
        self.sends_files
    }

    pub fn memory(&self) -> &ChunkMemory {
        &self.memory
    }

    /// A ticket for a stretch of a file. It belongs into a body of this connection and nowhere else.
    pub fn ticket(&self, digest: Digest, span: Span) -> Bytes {
        let Span { file, at, len, more } = span;
        let run = Arc::new(FileRun {
            ticket: *b"?",
            file,
            digest,
            at: at.into(),
            end: at.saturating_add(len).into(),
            more,
        });
        let mut runs = self.lock();
        runs.retain(|run| run.strong_count() > 0);
        runs.push(Arc::downgrade(&run));
        Bytes::from_owner(Ticket(run))
    }

    /// How many bytes a piece of a body stands for.
    pub fn length(&self, data: &Bytes) -> u64 {
        self.find(data).map_or(data.len() as u64, |run| run.left())
    }

    /// The first ticket among what is to be written, and which run it stands for.
    pub fn first(&self, slices: &[IoSlice<'_>]) -> Option<(usize, Arc<FileRun>)> {
        if self.lock().is_empty() {
            return None;
        }
        slices
            .iter()
            .enumerate()
            .find_map(|(n, slice)| Some((n, self.find(slice)?)))
    }

    fn find(&self, slice: &[u8]) -> Option<Arc<FileRun>> {
        if slice.len() != 1 {
            return None;
        }
        self.lock()
            .iter()
            .filter_map(Weak::upgrade)
            .find(|run| run.is_ticket(slice))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<FileRun>>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A piece of a body as hyper sees it: memory, or a run of a file.
#[derive(Debug)]
pub enum Piece {
    Memory(Bytes),
    File {
        run: Arc<FileRun>,
        /// The next bytes, if anybody insists on seeing them. hyper does not.
        read: OnceLock<Bytes>,
    },
}

impl Piece {
    /// What `data` stands for, cut to `most` bytes: more than was promised is never sent.
    pub fn of(data: Bytes, outbox: Option<&Outbox>, most: u64) -> Piece {
        match outbox.and_then(|outbox| outbox.find(&data)) {
            Some(run) => {
                run.end.fetch_min(run.at().saturating_add(most), Ordering::Relaxed);
                Piece::File {
                    run,
                    read: OnceLock::new(),
                }
            }
            None => Piece::Memory(data),
        }
    }
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        match self {
            Piece::Memory(bytes) => bytes.remaining(),
            Piece::File { run, .. } => usize::try_from(run.left()).unwrap_or(usize::MAX),
        }
    }

    /// The true bytes, whoever asks: the ticket's own is never taken for content. Empty if they cannot be read.
    fn chunk(&self) -> &[u8] {
        match self {
            Piece::Memory(bytes) => bytes.chunk(),
            Piece::File { run, read } => read.get_or_init(|| run.read().unwrap_or_default()),
        }
    }

    /// For a run, its ticket.
    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        match (self, slices.first_mut()) {
            (Piece::Memory(bytes), _) => bytes.chunks_vectored(slices),
            (Piece::File { run, .. }, Some(slice)) if run.left() > 0 => {
                *slice = IoSlice::new(&run.ticket);
                1
            }
            (Piece::File { .. }, _) => 0,
        }
    }

    fn advance(&mut self, n: usize) {
        match self {
            Piece::Memory(bytes) => bytes.advance(n),
            Piece::File { run, read } => {
                run.advance(n as u64);
                *read = OnceLock::new();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(content: &[u8]) -> Arc<File> {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(content, 0).unwrap();
        Arc::new(file)
    }

    fn span(file: Arc<File>, at: u64, len: u64) -> Span {
        let more = false;
        Span { file, at, len, more }
    }

    fn digest() -> Digest {
        Digest::sha256(b"")
    }

    #[test]
    fn a_ticket_stands_for_its_run_and_nothing_else_does() {
        let outbox = Outbox::default();
        let (first, second) = (
            outbox.ticket(digest(), span(file(b"abc"), 0, 3)),
            outbox.ticket(digest(), span(file(b"defg"), 0, 4)),
        );
        assert_eq!((outbox.length(&first), outbox.length(&second)), (3, 4));
        let forged = Bytes::copy_from_slice(&first);
        assert_eq!(forged, first);
        assert_eq!(outbox.length(&forged), 1, "the address counts, not the byte");
        assert_eq!(Outbox::default().length(&first), 1, "another connection's");
        let slices = [IoSlice::new(b"head"), IoSlice::new(&forged), IoSlice::new(&second)];
        let (at, run) = outbox.first(&slices).unwrap();
        assert_eq!((at, run.left()), (2, 4));
        let file = Arc::downgrade(&run.file);
        drop((run, first, second));
        assert!(file.upgrade().is_none(), "an outbox holds no file");
    }

    #[test]
    fn a_piece_tells_its_true_length_and_whoever_looks_sees_its_true_bytes() {
        let outbox = Outbox::default();
        let data = outbox.ticket(digest(), span(file(b"0123456789"), 2, 7));
        let mut piece = Piece::of(data, Some(&outbox), 5);
        assert_eq!(piece.remaining(), 5, "cut to what was promised");
        assert_eq!(piece.chunk(), b"23456");
        piece.advance(2);
        assert_eq!(piece.chunk(), b"456");
        let mut slices = [IoSlice::new(&[]); 2];
        assert_eq!(piece.chunks_vectored(&mut slices), 1);
        assert_eq!(outbox.first(&slices).unwrap().1.at(), 4);
        assert_eq!(piece.copy_to_bytes(3), "456");
        assert!(!piece.has_remaining());
        assert_eq!(Piece::of(Bytes::from_static(b"x"), Some(&outbox), 9).chunk(), b"x");
    }

    #[test]
    fn offsets_beyond_four_gib() {
        let outbox = Outbox::default();
        let at = (5 << 30) - 2;
        let sparse = tempfile::tempfile().unwrap();
        sparse.write_all_at(b"abc", at).unwrap();
        let data = outbox.ticket(digest(), span(Arc::new(sparse), 0, at + 3));
        let mut piece = Piece::of(data, Some(&outbox), u64::MAX);
        assert_eq!(piece.remaining() as u64, at + 3);
        piece.advance(usize::try_from(at).unwrap());
        assert_eq!(piece.chunk(), b"abc");
    }
}
