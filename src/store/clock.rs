//! The wall clock, by which records are dated because they outlive the process, and its jumps.
//!
//! A clock that was set by months and back has dated what came meanwhile by months too early or too late. So how wall
//! clock and uptime stand to each other is noted, and each change of it: a date that was given while the clock was
//! another is compared with what that clock would show now. After a restart nothing is known of jumps before it, and
//! the wall clock has to do.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

/// A clock that is set by less than this in one go is as good as one that was not; milliseconds.
const TOLERANCE_MS: i64 = 60_000;
/// Jumps that are remembered.
const MOST_SPANS: usize = 32;

/// Milliseconds since 1970, by the wall clock: records outlive the process.
pub fn unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

/// Returns what the clock shows now by which `then_ms` was dated, as far as this process knows its jumps; else the wall
/// clock's time. The age of a record is the difference of the two; a record from the future has none.
pub fn now_by_clock_of(then_ms: u64) -> u64 {
    let (uptime, wall) = (uptime_ms(), unix_ms());
    let mut jumps = JUMPS.lock().unwrap_or_else(PoisonError::into_inner);
    jumps.look(uptime, wall);
    jumps.now_by_clock_of(then_ms, uptime, wall)
}

/// Looks whether the clock has jumped. To be called every few seconds, from the start on.
pub fn watch_clock() {
    let (uptime, wall) = (uptime_ms(), unix_ms());
    let jumped = JUMPS.lock().unwrap_or_else(PoisonError::into_inner).look(uptime, wall);
    if let Some(by_ms) = jumped {
        tracing::warn!(
            seconds = by_ms / 1000,
            "the clock was set: what was dated meanwhile keeps its age"
        );
    }
}

/// Returns how long the machine has run, suspended or not.
fn uptime_ms() -> i64 {
    let time = clock_gettime(ClockId::Boottime);
    time.tv_sec
        .saturating_mul(1000)
        .saturating_add(time.tv_nsec / 1_000_000)
}

static JUMPS: Mutex<Jumps> = Mutex::new(Jumps { spans: VecDeque::new() });

/// From when to when, by uptime, the wall clock was so far ahead of it.
#[derive(Clone, Copy, Debug)]
struct Span {
    begin: i64,
    end: i64,
    ahead: i64,
}

/// Oldest first; the last one is that of now.
struct Jumps {
    spans: VecDeque<Span>,
}

impl Jumps {
    /// Returns by how much the clock has jumped since the last look.
    fn look(&mut self, uptime: i64, wall: u64) -> Option<i64> {
        let ahead = i64::try_from(wall).unwrap_or(i64::MAX).saturating_sub(uptime);
        let Some(last) = self.spans.back_mut() else {
            self.spans.push_back(Span {
                begin: uptime,
                end: uptime,
                ahead,
            });
            return None;
        };
        let by = ahead.saturating_sub(last.ahead);
        let begin = last.end;
        last.end = uptime;
        if by.unsigned_abs() < TOLERANCE_MS.unsigned_abs() {
            last.ahead = ahead;
            return None;
        }
        // It may have been at any moment since the last look.
        self.spans.push_back(Span {
            begin,
            end: uptime,
            ahead,
        });
        if self.spans.len() > MOST_SPANS {
            self.spans.pop_front();
        }
        Some(by)
    }

    fn now_by_clock_of(&self, then_ms: u64, uptime: i64, wall: u64) -> u64 {
        let then = i64::try_from(then_ms).unwrap_or(i64::MAX);
        // The newest that could have dated it.
        let dated = self.spans.iter().rev().find_map(|span| {
            let at = then.saturating_sub(span.ahead);
            (at >= span.begin - TOLERANCE_MS && at <= span.end + TOLERANCE_MS).then_some(at)
        });
        match dated {
            Some(at) => then_ms.saturating_add(u64::try_from(uptime.saturating_sub(at)).unwrap_or(0)),
            None => wall,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HOUR: u64 = 3_600_000;
    const MONTHS: u64 = 6 * 30 * 24 * HOUR;
    const NOON: u64 = 1_800_000_000_000;

    fn age(jumps: &Jumps, then: u64, uptime: i64, wall: u64) -> u64 {
        jumps.now_by_clock_of(then, uptime, wall).saturating_sub(then)
    }

    /// Back and forth again, and forth and back again.
    #[test]
    fn what_was_dated_by_another_clock_keeps_its_age() {
        for shifted in [NOON - MONTHS, NOON + MONTHS] {
            let mut jumps = Jumps { spans: VecDeque::new() };
            let hour = HOUR as i64;
            assert_eq!(jumps.look(0, NOON), None);
            assert_eq!(jumps.look(hour, NOON + HOUR), None);
            let before = NOON + HOUR / 2;
            // A jump of months, within which something is dated.
            assert!(jumps.look(hour + 5000, shifted + HOUR + 5000).is_some());
            let meanwhile = shifted + HOUR + 6000;
            assert_eq!(age(&jumps, before, 2 * hour, shifted + 2 * HOUR), HOUR * 3 / 2);
            jumps.look(2 * hour, shifted + 2 * HOUR);
            // And back.
            assert!(jumps.look(2 * hour + 5000, NOON + 2 * HOUR + 5000).is_some());
            let (uptime, wall) = (3 * hour, NOON + 3 * HOUR);
            jumps.look(uptime, wall);
            assert_eq!(age(&jumps, meanwhile, uptime, wall), 2 * HOUR - 6000);
            assert_eq!(age(&jumps, before, uptime, wall), HOUR * 5 / 2);
            assert_eq!(age(&jumps, NOON + 5 * HOUR / 2, uptime, wall), HOUR / 2);
            // For dates from before the start the wall clock has to do.
            assert_eq!(age(&jumps, NOON - 24 * HOUR, uptime, wall), 27 * HOUR);
        }
    }

    /// It is slewed by a little every second.
    #[test]
    fn a_clock_that_is_slewed_does_not_jump() {
        let mut jumps = Jumps { spans: VecDeque::new() };
        for seconds in 0..100_000_u64 {
            let uptime = i64::try_from(seconds * 1000).unwrap();
            assert_eq!(jumps.look(uptime, NOON + seconds * 1010), None);
        }
        assert_eq!(jumps.spans.len(), 1);
    }

    proptest! {
        #[test]
        fn any_clock_gives_an_age(steps in prop::collection::vec((0i64..10_000_000, any::<u64>()), 1..100), then: u64) {
            let mut jumps = Jumps { spans: VecDeque::new() };
            let mut uptime = 0;
            for (passed, wall) in steps {
                uptime += passed;
                jumps.look(uptime, wall);
                let _ = jumps.now_by_clock_of(then, uptime, wall);
                prop_assert!(jumps.spans.len() <= MOST_SPANS);
            }
        }
    }
}
