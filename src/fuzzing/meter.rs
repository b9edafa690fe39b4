//! What one run costs: bytes that are allocated at the same time, and time of the processor, both of this thread alone.
//!
//! Not the clock on the wall: the machine may be busy with something else.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// The system's allocator, counted.
struct Counted;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    // Not there any more when a thread ends: nobody measures then.
    let _ = LIVE.try_with(|live| {
        let now = live.get().saturating_add(bytes);
        live.set(now);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(now)));
    });
}

#[global_allocator]
static ALLOCATOR: Counted = Counted;

#[allow(unsafe_code)]
// SAFETY: every call goes to the system's allocator as it came; counting allocates nothing.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size().cast_signed());
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size().cast_signed());
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        count(-layout.size().cast_signed());
        unsafe { System.dealloc(place, layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size.cast_signed() - layout.size().cast_signed());
        unsafe { System.realloc(place, layout, size) }
    }
}

/// What a run took.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cost {
    pub(super) peak_bytes: usize,
    pub(super) cpu: Duration,
}

fn cpu() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.cast_unsigned(), now.tv_nsec as u32)
}

pub(super) fn measure(work: impl FnOnce()) -> Cost {
    let before = LIVE.get();
    PEAK.set(before);
    let started = cpu();
    work();
    Cost {
        peak_bytes: usize::try_from(PEAK.get() - before).unwrap_or(0),
        cpu: cpu().saturating_sub(started),
    }
}

#[test]
fn memory_and_time_are_seen() {
    let cost = measure(|| {
        let big = std::hint::black_box(vec![1u8; 3 << 20]);
        drop(big);
        let _small = std::hint::black_box(vec![1u8; 1 << 20]);
    });
    assert!((3 << 20..4 << 20).contains(&cost.peak_bytes), "{cost:?}");
    let busy = measure(|| while cpu().as_millis() % 1000 > 990 {});
    assert!(busy.peak_bytes < 1 << 16, "{busy:?}");
}
