//! Gives memory that was freed back to the kernel.
//!
//! The C library keeps what was freed between things that are still there: after a crowd of slow clients has left that is most of what
//! they took. It gives such pages back when it is asked to, which costs some milliseconds.

use std::time::{Duration, Instant};

/// How often it is asked, at most.
const PAUSE: Duration = Duration::from_secs(15);
/// The same where it had nothing to give: it looks through all of its memory, and whoever allocates waits for that.
const LONGEST_PAUSE: Duration = Duration::from_secs(240);
/// It is not asked for less than this.
const WORTHWHILE_BYTES: usize = 16 * 1024 * 1024;

/// When the C library was asked last, and what there was.
pub(super) struct Trimmer {
    last: Option<Instant>,
    pause: Duration,
    /// Bytes of memory that the process had at its leanest.
    leanest: Option<usize>,
}

impl Default for Trimmer {
    fn default() -> Trimmer {
        Trimmer {
            last: None,
            pause: PAUSE,
            leanest: None,
        }
    }
}

impl Trimmer {
    /// Has memory given back if there is enough that could be. Blocking, for some milliseconds.
    pub(super) fn look(&mut self) {
        let Some(resident) = resident_bytes() else { return };
        if !self.is_due(resident, Instant::now()) {
            return;
        }
        let has_given = trim();
        let after = resident_bytes().unwrap_or(resident);
        if has_given {
            tracing::debug!(before = resident, after, "freed memory was given back to the kernel");
        }
        self.trimmed(resident, after, Instant::now());
    }

    /// The first look is at a process that has just begun, and only measures it.
    fn is_due(&mut self, resident: usize, now: Instant) -> bool {
        let is_pause_over = self
            .last
            .is_none_or(|last| now.saturating_duration_since(last) >= self.pause);
        let leanest = self.leanest.map_or(resident, |leanest| leanest.min(resident));
        self.leanest = Some(leanest);
        is_pause_over && resident >= leanest.saturating_add(WORTHWHILE_BYTES)
    }

    fn trimmed(&mut self, before: usize, after: usize, now: Instant) {
        self.last = Some(now);
        self.leanest = Some(self.leanest.map_or(after, |leanest| leanest.min(after)));
        self.pause = match before.saturating_sub(after) >= WORTHWHILE_BYTES / 4 {
            true => PAUSE,
            false => (self.pause * 2).min(LONGEST_PAUSE),
        };
    }
}

/// Memory of this process that is no file's, where Linux tells.
fn resident_bytes() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    let kibibytes: usize = line.trim().strip_suffix(" kB")?.parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// True if anything was given back.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn trim() -> bool {
    #[expect(unsafe_code, reason = "a function of the C library")]
    // SAFETY: malloc_trim(3) takes a number, locks what it looks at, may be called from any thread at any time (MT-Safe), and touches
    // only memory that nobody has allocated.
    let given = unsafe { libc::malloc_trim(0) };
    given == 1
}

/// musl gives memory back by itself.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn trim() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1024 * 1024;

    #[test]
    fn the_library_is_asked_when_it_is_worthwhile_and_not_too_often() {
        let (mut trimmer, begin) = (Trimmer::default(), Instant::now());
        assert!(!trimmer.is_due(40 * MIB, begin), "the start");
        assert!(!trimmer.is_due(55 * MIB, begin) && trimmer.is_due(56 * MIB, begin));
        // In the middle of a crowd nothing can be given; when it has left, what it had does not look new.
        trimmer.trimmed(400 * MIB, 400 * MIB, begin);
        assert!(
            !trimmer.is_due(400 * MIB, begin + PAUSE),
            "too soon after nothing was given"
        );
        assert!(trimmer.is_due(400 * MIB, begin + PAUSE * 2));
        let mut now = begin + PAUSE * 2;
        trimmer.trimmed(400 * MIB, 39 * MIB, now);
        assert!(!trimmer.is_due(55 * MIB, now + PAUSE / 2), "too soon");
        assert!(!trimmer.is_due(54 * MIB, now + PAUSE) && trimmer.is_due(55 * MIB, now + PAUSE));
        // What is really in use is looked through less and less often.
        for _ in 0..10 {
            now += LONGEST_PAUSE;
            assert!(trimmer.is_due(400 * MIB, now));
            trimmer.trimmed(400 * MIB, 399 * MIB, now);
        }
        assert!(!trimmer.is_due(400 * MIB, now + LONGEST_PAUSE - PAUSE));
    }

    #[test]
    fn what_lay_between_things_that_stay_is_given_back() {
        let mut trimmer = Trimmer::default();
        trimmer.look();
        let before = resident_bytes().unwrap();
        let all: Vec<Vec<u8>> = (0..64 * 1024).map(|_| vec![1; 2048]).collect();
        // One in a hundred stays.
        let stay: Vec<Vec<u8>> = all.into_iter().step_by(100).collect();
        let kept = resident_bytes().unwrap();
        trimmer.look();
        let after = resident_bytes().unwrap();
        assert!(after < before + 32 * MIB, "{before}, {kept}, {after}");
        drop(stay);
    }
}
