//! How large the pages are that the kernel's cache gets for what is written: as large as one call's bytes.
//!
//! Large ones cost less each time they are sent. But a virtual machine whose host takes back memory that is free (free page
//! reporting) has none left that are large: the host has to give the memory of each anew, and to fill them takes five times as
//! long, while small ones are found among what was in use a moment ago. Which of the two holds changes by the minute, so
//! writing is timed: large pages, unless they cost more than twice as much (benches/README.md).

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Bytes of one call.
const SMALL: usize = 32 * 1024;
const LARGE: usize = 256 * 1024;
/// One batch of so many is written the other way, to see what that costs by now.
const LOOK_EVERY: u32 = 128;
/// Large pages may cost so many times as much as small ones.
const WORTH: u64 = 2;

#[derive(Default)]
pub(super) struct Pages {
    batches: AtomicU32,
    small: Cost,
    large: Cost,
}

/// What a byte costs, picoseconds of CPU: a mean in which what is newer counts for more. 0: not known.
#[derive(Default)]
struct Cost(AtomicU64);

impl Cost {
    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn note(&self, new: u64) {
        let mean = match self.get() {
            0 => new,
            old => old / 2 + new / 2,
        };
        self.0.store(mean.max(1), Ordering::Relaxed);
    }
}

/// A batch that is being written.
pub(super) struct Timed {
    /// Bytes for each call.
    pub(super) bytes: usize,
    since: Duration,
}

impl Pages {
    /// Begins a batch of `len` bytes. One that is too small for a large page tells nothing.
    pub(super) fn begin(&self, len: usize) -> Option<Timed> {
        (len >= LARGE).then(|| Timed {
            bytes: self.choose(),
            since: cpu_time(),
        })
    }

    /// Bytes of one call where nothing is timed.
    pub(super) fn usual(&self) -> usize {
        let (small, large) = (self.small.get(), self.large.get());
        if small > 0 && large > small * WORTH {
            SMALL
        } else {
            LARGE
        }
    }

    fn choose(&self) -> usize {
        let n = self.batches.fetch_add(1, Ordering::Relaxed);
        let usual = self.usual();
        // The second batch tells the first one's price from a high one.
        match n % LOOK_EVERY {
            1 if usual == LARGE => SMALL,
            1 => LARGE,
            _ => usual,
        }
    }

    /// Ends a batch of `len` bytes.
    pub(super) fn end(&self, timed: &Timed, len: usize) {
        self.note(timed.bytes, cpu_time().saturating_sub(timed.since), len);
    }

    fn note(&self, bytes: usize, took: Duration, len: usize) {
        let picoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).saturating_mul(1000);
        let cost = if bytes == SMALL { &self.small } else { &self.large };
        cost.note(picoseconds / (len as u64).max(1));
    }
}

/// Of this thread: what others do meanwhile is not the memory's price.
fn cpu_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes batches at these prices, in ns a KiB; how many went each way.
    fn write(pages: &Pages, batches: u32, small: u64, large: u64) -> (u32, u32) {
        let mut ways = (0, 0);
        for _ in 0..batches {
            let bytes = pages.choose();
            let price = if bytes == SMALL { small } else { large };
            *(if bytes == SMALL { &mut ways.0 } else { &mut ways.1 }) += 1;
            pages.note(bytes, Duration::from_nanos(price * LARGE as u64 / 1024), LARGE);
        }
        ways
    }

    #[test]
    fn large_unless_they_cost_twice_as_much() {
        let pages = Pages::default();
        assert_eq!(pages.usual(), LARGE);
        assert_eq!(write(&pages, 1280, 300, 590), (10, 1270), "one in 128 to look");
        // The host has taken the memory back: found with what is written anyway.
        let (small, large) = write(&pages, 1280, 300, 3000);
        assert!(large <= 10 + 3, "{small} {large}");
        assert_eq!(pages.usual(), SMALL);
        // And given it: found by the looks.
        let (small, large) = write(&pages, 3200, 300, 300);
        assert!(large > 2500, "{small} {large}");
        assert_eq!(pages.usual(), LARGE);
    }

    #[test]
    fn the_first_blob_finds_out() {
        let pages = Pages::default();
        assert_eq!(write(&pages, 128, 300, 3000), (127, 1));
    }

    #[test]
    fn small_batches_tell_nothing() {
        let pages = Pages::default();
        assert!(pages.begin(LARGE - 1).is_none());
        let timed = pages.begin(LARGE).unwrap();
        pages.end(&timed, LARGE);
        assert_eq!(pages.small.get(), 0);
        assert!(pages.large.get() > 0);
    }
}
