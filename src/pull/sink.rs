//! Where a transfer's bytes go: to the disk; or, where the disk cannot take them, through memory.
//!
//! A blob that does not fit, a full disk, a disk that fails: none of them fails a pull (L5). The bytes then pass
//! through a [`Window`] of fixed size that all followers read from. It moves on with the slowest of them: one that
//! stands still, or creeps while others wait for what comes next, is left behind after a while, so that it cannot hold
//! up the others for ever (R-W3). Its response ends short, and when its client goes on by Range it gets a transfer of
//! its own: this one has not all of its bytes any more.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::flight::HOLD_BACK_BYTES;
use crate::oci::Digest;
use crate::store::{Hashing, Remains, Writer};

/// Bytes in memory for one transfer that passes through.
const WINDOW_BYTES: usize = 16 << 20;
/// Who is farther behind than this, in a window that is full, lags. It is also what a reader that lags has to read in the
/// time that it may hold up others: with the usual 30 s, at 280 kB/s nobody is left behind for being slow.
const LAG_BYTES: u64 = WINDOW_BYTES as u64 / 2;

/// One or the other.
#[expect(clippy::large_enum_variant, reason = "one for each transfer, moved a few times")]
pub(super) enum Sink {
    Disk(Writer),
    Memory(Passage),
}

/// A transfer that passes through memory.
pub(super) struct Passage {
    pub(super) hashing: Hashing,
    pub(super) window: Arc<Window>,
    /// What the disk had taken before it gave up; followers behind the window read it.
    remains: Option<Remains>,
}

impl Sink {
    /// From byte 0, without the disk.
    pub(super) fn memory(digest: Digest) -> Sink {
        Sink::Memory(Passage {
            hashing: Hashing::new(digest),
            window: Window::starting_at(0),
            remains: None,
        })
    }

    /// The same transfer, from now on without the disk.
    pub(super) fn detach(writer: Writer) -> Passage {
        let (hashing, remains) = writer.detach();
        let window = Window::starting_at(remains.len);
        Passage {
            hashing,
            window,
            remains: Some(remains),
        }
    }

    /// Bytes taken so far; the offset at which the next ones belong.
    pub(super) fn len(&self) -> u64 {
        match self {
            Sink::Disk(writer) => writer.len(),
            Sink::Memory(passage) => passage.hashing.len(),
        }
    }

    pub(super) fn file(&self) -> Option<Arc<File>> {
        match self {
            Sink::Disk(writer) => Some(writer.file()),
            Sink::Memory(passage) => passage.remains.as_ref().map(|remains| remains.file.clone()),
        }
    }

    pub(super) fn window(&self) -> Option<Arc<Window>> {
        match self {
            Sink::Disk(_) => None,
            Sink::Memory(passage) => Some(passage.window.clone()),
        }
    }
}

/// The last bytes of a transfer, in memory.
#[derive(Debug)]
pub struct Window {
    /// Where it began: bytes before are in a file, if anywhere.
    base: u64,
    held: Mutex<HeldBytes>,
}

#[derive(Debug)]
struct HeldBytes {
    start: u64,
    len: usize,
    pieces: VecDeque<Bytes>,
}

impl Window {
    fn starting_at(base: u64) -> Arc<Window> {
        let held = HeldBytes {
            start: base,
            len: 0,
            pieces: VecDeque::new(),
        };
        Arc::new(Window {
            base,
            held: Mutex::new(held),
        })
    }

    /// Whether the byte at `at` is for the window to give, not for the file.
    pub(super) fn covers(&self, at: u64) -> bool {
        at >= self.base
    }

    pub(super) fn base(&self) -> u64 {
        self.base
    }

    /// Whether everything that ever came into it is still there.
    pub(super) fn is_whole(&self) -> bool {
        self.lock().start == self.base
    }

    /// Before this offset readers lag.
    fn middle(&self) -> u64 {
        self.lock().start + LAG_BYTES
    }

    /// At most `want` bytes from `at`; `None` if they have gone by.
    pub(super) fn read(&self, at: u64, want: usize) -> Option<Bytes> {
        let held = self.lock();
        let mut skip = usize::try_from(at.checked_sub(held.start)?).ok()?;
        for piece in &held.pieces {
            if skip < piece.len() {
                let end = skip.saturating_add(want).min(piece.len());
                return Some(piece.slice(skip..end));
            }
            skip -= piece.len();
        }
        None
    }

    /// Takes a piece in if there is room, letting go of what all readers have passed as far as that is needed: who
    /// comes late finds as much as there can be. Who has entered before it looks whether the window is whole finds it
    /// whole for good: the slowest is asked for in here.
    fn push(&self, piece: &Bytes, slowest: impl FnOnce() -> u64) -> bool {
        let mut held = self.lock();
        let slowest = slowest();
        while held.len + piece.len() > WINDOW_BYTES
            && let Some(first) = held.pieces.front().map(Bytes::len)
            && held.start + first as u64 <= slowest
        {
            held.pieces.pop_front();
            held.start += first as u64;
            held.len -= first;
        }
        let fits = held.len == 0 || held.len + piece.len() <= WINDOW_BYTES;
        if fits {
            held.len += piece.len();
            held.pieces.push_back(piece.clone());
        }
        fits
    }

    fn lock(&self) -> MutexGuard<'_, HeldBytes> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What each follower of a transfer has still to read.
#[derive(Debug, Default)]
pub(super) struct Positions {
    readers: Mutex<Readers>,
    moved: Notify,
}

#[derive(Debug, Default)]
struct Readers {
    last_id: u64,
    reading: HashMap<u64, Reader>,
}

#[derive(Debug)]
struct Reader {
    /// The next byte it wants.
    at: u64,
    /// Where it has all it wants.
    end: u64,
    /// How long it has held up others since it was at `counted_from`.
    held_up: Duration,
    counted_from: u64,
}

impl Reader {
    fn new(at: u64, end: u64) -> Reader {
        Reader {
            at,
            end,
            held_up: Duration::ZERO,
            counted_from: at,
        }
    }

    /// Who wants only what is in the file before `base`, or has all it wants, holds up nobody.
    fn wants_from(&self, base: u64) -> bool {
        self.at < self.end && self.end > base
    }
}

impl Readers {
    /// The first byte that somebody wants of a window that begins at `base`.
    fn slowest(&self, base: u64) -> Option<u64> {
        let wanting = self.reading.values().filter(|reader| reader.wants_from(base));
        wanting.map(|reader| reader.at).min()
    }
}

impl Positions {
    /// A new reader, who wants everything until it says otherwise.
    pub(super) fn enter(&self) -> u64 {
        let mut readers = self.lock();
        readers.last_id += 1;
        let id = readers.last_id;
        readers.reading.insert(id, Reader::new(0, u64::MAX));
        id
    }

    pub(super) fn leave(&self, id: u64) {
        self.lock().reading.remove(&id);
        self.moved.notify_one();
    }

    /// A reader wants these bytes and no others.
    pub(super) fn begin(&self, id: u64, from: u64, end: Option<u64>) {
        self.change(id, |reader| *reader = Reader::new(from, end.unwrap_or(u64::MAX)));
    }

    /// A reader that was left behind stays so.
    pub(super) fn advance(&self, id: u64, to: u64) {
        self.change(id, |reader| reader.at = to);
    }

    fn change(&self, id: u64, change: impl FnOnce(&mut Reader)) {
        if let Some(reader) = self.lock().reading.get_mut(&id) {
            change(reader);
        }
        self.moved.notify_one();
    }

    fn slowest(&self, base: u64) -> u64 {
        self.lock().slowest(base).unwrap_or(u64::MAX)
    }

    fn leave_behind_slowest(&self, base: u64) {
        let mut readers = self.lock();
        if let Some(slowest) = readers.slowest(base) {
            readers
                .reading
                .retain(|_, reader| reader.at > slowest || !reader.wants_from(base));
        }
    }

    /// Whether somebody has read all that came, and how long those who lag behind `middle` have held up others at most.
    fn held_up(&self, base: u64, middle: u64, came: u64) -> (bool, Duration) {
        let readers = self.lock();
        let wanting = || readers.reading.values().filter(|reader| reader.wants_from(base));
        // The last bytes may be waiting for their size, or the verdict, and not for their reader.
        let waits = wanting().any(|reader| reader.at.saturating_add(HOLD_BACK_BYTES) >= came);
        let lagging = wanting().filter(|reader| reader.at < middle);
        (waits, lagging.map(|reader| reader.held_up).max().unwrap_or_default())
    }

    /// Those who lag have held up others for so long once more. Gives how many are left behind for it: in `patience`
    /// they have not even read half a window. All are counted at once, so that many who creep take no longer than one.
    fn charge(&self, base: u64, middle: u64, waited: Duration, patience: Duration) -> usize {
        let mut readers = self.lock();
        let before = readers.reading.len();
        readers.reading.retain(|_, reader| {
            if !reader.wants_from(base) || reader.at >= middle {
                return true;
            }
            reader.held_up += waited;
            if reader.held_up < patience {
                return true;
            }
            let read = reader.at.saturating_sub(reader.counted_from);
            (reader.held_up, reader.counted_from) = (Duration::ZERO, reader.at);
            read >= LAG_BYTES
        });
        before - readers.reading.len()
    }

    fn lock(&self) -> MutexGuard<'_, Readers> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Passage {
    /// Hashes and passes a piece on, waiting for the slowest reader: at most `patience` for each step it makes, and at
    /// most `patience` for half a window if others wait meanwhile. Alone a reader may be as slow as it likes.
    pub(super) async fn pass(&mut self, piece: &Bytes, positions: &Positions, patience: Duration) {
        let base = self.window.base;
        let mut stands = (positions.slowest(base), Instant::now());
        while !self.window.push(piece, || positions.slowest(base)) {
            let (middle, begun) = (self.window.middle(), Instant::now());
            let (others_wait, held_up) = positions.held_up(base, middle, self.hashing.len());
            let mut left = patience.saturating_sub(stands.1.elapsed());
            if others_wait {
                left = left.min(patience.saturating_sub(held_up));
            }
            // Whichever it is, what it means is looked for below.
            let _ = timeout(left, positions.moved.notified()).await;
            if others_wait {
                let left_behind = positions.charge(base, middle, begun.elapsed(), patience);
                if left_behind > 0 {
                    tracing::warn!(
                        left_behind,
                        "readers creep while others wait for a blob that passes through"
                    );
                }
            }
            let slowest = positions.slowest(base);
            if slowest != stands.0 {
                stands = (slowest, Instant::now());
            } else if stands.1.elapsed() >= patience {
                tracing::warn!("a reader stands still while a blob passes through: it is left behind");
                positions.leave_behind_slowest(base);
            }
        }
        self.hashing.update(piece);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(n: u8, len: usize) -> Bytes {
        Bytes::from(vec![n; len])
    }

    #[test]
    fn a_window_moves_with_its_slowest_reader() {
        let window = Window::starting_at(100);
        let half = WINDOW_BYTES / 2;
        assert!(window.push(&piece(1, half), || 0) && window.push(&piece(2, half), || 0));
        assert!(!window.push(&piece(3, 1), || 100), "full");
        assert!(window.is_whole() && window.covers(100) && !window.covers(99));
        assert_eq!(window.read(100, 5).unwrap(), piece(1, 5));
        assert_eq!(window.read(100 + half as u64, 5).unwrap(), piece(2, 5));
        assert!(window.push(&piece(3, 1), || 100 + half as u64));
        assert!(!window.is_whole());
        assert_eq!(window.read(100, 5), None, "gone by");
        assert_eq!(window.read(100 + WINDOW_BYTES as u64, 5).unwrap(), piece(3, 1));
        assert_eq!(window.read(101 + WINDOW_BYTES as u64, 5), None, "not there yet");
    }

    /// Who wants none of the window's bytes, or no more of them, holds up nobody.
    #[test]
    fn the_slowest_is_who_wants_the_first_byte() {
        let positions = Positions::default();
        let [all, file, part] = [(); 3].map(|()| positions.enter());
        positions.begin(file, 0, Some(50));
        positions.begin(part, 70, Some(90));
        assert_eq!(positions.slowest(60), 0);
        positions.advance(all, 200);
        assert_eq!((positions.slowest(60), positions.slowest(40)), (70, 0));
        positions.advance(part, 90);
        assert_eq!(positions.slowest(60), 200);
        positions.leave_behind_slowest(60);
        assert_eq!((positions.slowest(60), positions.slowest(0)), (u64::MAX, 0));
    }

    /// R-W3: a reader that stands still is left behind; the others go on, and nobody else is harmed.
    #[tokio::test(start_paused = true)]
    async fn who_stands_still_is_left_behind() {
        let Sink::Memory(mut passage) = Sink::memory(Digest::sha256(b"")) else {
            panic!("memory")
        };
        let positions = Positions::default();
        let (slow, quick) = (positions.enter(), positions.enter());
        for n in 0..40u8 {
            let bytes = piece(n, 1 << 20);
            passage.pass(&bytes, &positions, Duration::from_secs(30)).await;
            assert_eq!(passage.window.read(u64::from(n) << 20, 1 << 20).as_ref(), Some(&bytes));
            positions.advance(quick, passage.hashing.len());
        }
        assert_eq!(passage.window.read(0, 1), None);
        positions.advance(slow, 5);
        assert_eq!(positions.slowest(0), 40 << 20, "left behind for good");
        positions.leave(quick);
        assert_eq!(positions.slowest(0), u64::MAX);
    }

    fn in_memory() -> Passage {
        match Sink::memory(Digest::sha256(b"")) {
            Sink::Memory(passage) => passage,
            Sink::Disk(_) => panic!("memory"),
        }
    }

    /// Passes 40 MiB by, of which a reader takes `step` bytes every so often; beside one that takes everything at once,
    /// if there is one. Gives how long that took and whether the slow one has been left behind.
    async fn pass_by(step: u64, every: Duration, beside: bool) -> (Duration, bool) {
        let (mut passage, positions) = (in_memory(), Positions::default());
        let slow = positions.enter();
        let quick = beside.then(|| positions.enter());
        let window = passage.window.clone();
        let begun = Instant::now();
        let passing = async {
            for n in 0..40 {
                passage
                    .pass(&piece(n, 1 << 20), &positions, Duration::from_secs(30))
                    .await;
                if let Some(quick) = quick {
                    positions.advance(quick, passage.hashing.len());
                }
            }
        };
        let mut at = 0;
        let mut left_behind = false;
        let reading = async {
            loop {
                tokio::time::sleep(every).await;
                let came = {
                    let held = window.lock();
                    held.start + held.len as u64
                };
                // It reads no more than there is.
                at = (at + step).min(came);
                left_behind |= at < came && window.read(at, 1).is_none();
                positions.advance(slow, at);
            }
        };
        tokio::select! {
            () = passing => {}
            () = reading => {}
        }
        (begun.elapsed(), left_behind)
    }

    /// R-W3: a byte now and then is no progress that others have to wait for.
    #[tokio::test(start_paused = true)]
    async fn who_creeps_while_others_wait_is_left_behind() {
        let (took, _) = pass_by(1, Duration::from_secs(10), true).await;
        assert_eq!(took, Duration::from_secs(30), "the others waited once, and no longer");
    }

    /// Never a failed pull for being slow: not as long as it gets on, and not if nobody else waits.
    #[tokio::test(start_paused = true)]
    async fn who_is_slow_is_waited_for() {
        let second = Duration::from_secs(1);
        let (took, left_behind) = pass_by(1 << 20, 3 * second, true).await;
        assert!(!left_behind && took > 60 * second, "{took:?}");
        let (took, left_behind) = pass_by(100 << 10, 20 * second, false).await;
        assert!(!left_behind && took > 4000 * second, "{took:?}");
    }

    /// However many creep, and however they take turns at being the last.
    #[tokio::test(start_paused = true)]
    async fn many_who_creep_take_no_longer_than_one() {
        let (mut passage, positions) = (in_memory(), Positions::default());
        let slow: Vec<u64> = (0..100).map(|_| positions.enter()).collect();
        let quick = positions.enter();
        let begun = Instant::now();
        let passing = async {
            for n in 0..40 {
                passage
                    .pass(&piece(n, 1 << 20), &positions, Duration::from_secs(30))
                    .await;
                positions.advance(quick, passage.hashing.len());
            }
        };
        let creeping = async {
            for turn in 1.. {
                tokio::time::sleep(Duration::from_secs(1)).await;
                for (n, id) in slow.iter().enumerate() {
                    positions.advance(*id, turn * 100 + (n as u64 * 37 + turn * 11) % 100);
                }
            }
        };
        tokio::select! {
            () = passing => {}
            () = creeping => {}
        }
        assert_eq!(begun.elapsed(), Duration::from_secs(30));
        positions.leave(quick);
        assert_eq!(positions.slowest(0), u64::MAX, "none is left");
    }
}
