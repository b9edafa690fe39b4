//! Counts of the last hour and the last day: differences between the counters now and samples of them.
//!
//! Requests only count, as they always did; once a minute a [`Sample`] of the counters is put into two bounded rings, one with a
//! sample of each minute of the last hour and one with a sample of every ten minutes of the last day. Pure: the caller gives the
//! time and the sample.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::pull::OutcomeCounts;

pub const HOUR: Duration = Duration::from_secs(60 * 60);
pub const DAY: Duration = Duration::from_secs(24 * 60 * 60);

const MINUTE: Duration = Duration::from_secs(60);
const TEN_MINUTES: Duration = Duration::from_secs(600);

/// The counters at one moment, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    pub requests: OutcomeCounts,
    /// Body bytes of content sent to clients.
    pub served: u64,
    /// Body bytes of content sent to clients that came from the cache.
    pub cached: u64,
    /// Body bytes received from upstreams.
    pub fetched: u64,
}

impl Sample {
    /// Returns the counts since `before`. Counters only grow.
    pub fn since(&self, before: &Sample) -> Sample {
        let mut requests = self.requests;
        for (count, earlier) in requests.iter_mut().zip(&before.requests) {
            *count = count.saturating_sub(*earlier);
        }
        Sample {
            requests,
            served: self.served.saturating_sub(before.served),
            cached: self.cached.saturating_sub(before.cached),
            fetched: self.fetched.saturating_sub(before.fetched),
        }
    }
}

/// Samples in the order of their time, one in each `every`, as many as `reach` back.
#[derive(Debug)]
struct Ring {
    every: Duration,
    most: usize,
    samples: VecDeque<(Instant, Sample)>,
}

impl Ring {
    fn new(every: Duration, window: Duration) -> Ring {
        let steps = window.as_secs().div_ceil(every.as_secs().max(1));
        Ring {
            every,
            // One more is older than the window, and one may come late.
            most: usize::try_from(steps).unwrap_or(0) + 2,
            samples: VecDeque::new(),
        }
    }

    fn is_due(&self, now: Instant) -> bool {
        let last = self.samples.back();
        last.is_none_or(|(at, _)| now.saturating_duration_since(*at) >= self.every)
    }

    fn note(&mut self, now: Instant, sample: Sample) {
        if self.is_due(now) {
            if self.samples.len() >= self.most {
                self.samples.pop_front();
            }
            self.samples.push_back((now, sample));
        }
    }

    /// The latest sample that is as old as `window` or older.
    fn before(&self, now: Instant, window: Duration) -> Option<&(Instant, Sample)> {
        let is_old = |(at, _): &&(Instant, Sample)| now.saturating_duration_since(*at) >= window;
        self.samples.iter().rev().find(is_old)
    }
}

/// The samples of the last hour and of the last day.
#[derive(Debug)]
pub struct Recent {
    started: Instant,
    hour: Ring,
    day: Ring,
}

/// Counts of a time, and how long that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Period {
    pub counted: Sample,
    pub covers: Duration,
}

impl Recent {
    pub fn new(started: Instant) -> Recent {
        Recent {
            started,
            hour: Ring::new(MINUTE, HOUR),
            day: Ring::new(TEN_MINUTES, DAY),
        }
    }

    /// Returns whether [`Recent::note`] would keep a sample.
    pub fn is_due(&self, now: Instant) -> bool {
        self.hour.is_due(now) || self.day.is_due(now)
    }

    pub fn note(&mut self, now: Instant, sample: Sample) {
        self.hour.note(now, sample);
        self.day.note(now, sample);
    }

    /// Returns the counts of the last hour: up to a minute more of it, and all of it in a process that is younger.
    pub fn last_hour(&self, now: Instant, counted: &Sample) -> Period {
        self.period(&self.hour, now, HOUR, counted)
    }

    /// Returns the counts of the last day: up to ten minutes more of it, and all of it in a process that is younger.
    pub fn last_day(&self, now: Instant, counted: &Sample) -> Period {
        self.period(&self.day, now, DAY, counted)
    }

    fn period(&self, ring: &Ring, now: Instant, window: Duration, counted: &Sample) -> Period {
        let (at, before) = match ring.before(now, window) {
            Some((at, before)) => (*at, *before),
            None => (self.started, Sample::default()),
        };
        Period {
            counted: counted.since(&before),
            covers: now.saturating_duration_since(at),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample(served: u64) -> Sample {
        Sample {
            served,
            ..Sample::default()
        }
    }

    /// A byte a second, for three days.
    #[test]
    fn an_hour_is_an_hour_and_a_day_is_a_day() {
        let begun = Instant::now();
        let mut recent = Recent::new(begun);
        for second in (0..3 * 86_400).step_by(5) {
            let now = begun + Duration::from_secs(second);
            if recent.is_due(now) {
                recent.note(now, sample(second));
            }
            let hour = recent.last_hour(now, &sample(second));
            let day = recent.last_day(now, &sample(second));
            for (period, window, slack) in [(hour, 3600, 60), (day, 86_400, 600)] {
                assert_eq!(period.counted.served, period.covers.as_secs());
                match second < window {
                    true => assert_eq!(period.covers.as_secs(), second, "a young process says so"),
                    false => assert!(
                        (window..=window + slack).contains(&period.covers.as_secs()),
                        "{period:?}"
                    ),
                }
            }
        }
        assert!(recent.hour.samples.len() <= 62 && recent.day.samples.len() <= 146);
    }

    proptest! {
        /// However late samples come: what is told is of the time that it says, which is the window or more.
        #[test]
        fn a_period_covers_its_window(pauses in prop::collection::vec(1u64..5_000, 1..200)) {
            let begun = Instant::now();
            let (mut recent, mut second) = (Recent::new(begun), 0);
            for pause in pauses {
                second += pause;
                let now = begun + Duration::from_secs(second);
                let hour = recent.last_hour(now, &sample(second));
                prop_assert_eq!(hour.counted.served, hour.covers.as_secs());
                prop_assert!(hour.covers.as_secs() >= second.min(3600));
                recent.note(now, sample(second));
                prop_assert!(recent.hour.samples.len() <= recent.hour.most);
                prop_assert!(recent.day.samples.len() <= recent.day.most);
            }
        }
    }
}
