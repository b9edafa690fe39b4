//! How often the log speaks of an address that is down: when it goes down, once a minute while requests would go there, and when it
//! is back. Pure: the caller gives the time.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// The time between two lines about the same outage.
const EVERY: Duration = Duration::from_secs(60);
/// An address that goes down so soon after it came back has not been well in between.
const SAME_OUTAGE: Duration = Duration::from_secs(5);
/// Outages within [`EVERY`] whose beginning is logged.
const MOST_BEGINNINGS: usize = 3;

/// State of the log lines about one address. An address that answers probes and fails requests goes down and comes back every few
/// seconds: that is one line a minute. Outages with time between them have a line each, a few a minute.
#[derive(Clone, Debug, Default)]
pub(super) struct Outage {
    /// The time since when it is down, and whether the log said so.
    down: Option<(Instant, bool)>,
    logged: Option<Instant>,
    /// When it was back last.
    ended: Option<Instant>,
    /// When the last outages began that were logged; [`MOST_BEGINNINGS`] of them.
    beginnings: VecDeque<Instant>,
    /// Requests that came for it since the last line.
    requests: u64,
}

/// Contents of a line about an outage that goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reminder {
    pub(super) down_for: Duration,
    pub(super) requests: u64,
}

impl Outage {
    /// The address is down. Returns whether that is to be logged.
    pub(super) fn begin(&mut self, now: Instant) -> bool {
        let is_soon = |at: Instant| now.saturating_duration_since(at) < SAME_OUTAGE;
        let is_another = !self.ended.is_some_and(is_soon) && self.has_room(now);
        let is_new = self.is_due(now) || is_another;
        self.down = Some((now, is_new));
        self.requests = 0;
        if is_new {
            self.logged = Some(now);
            self.beginnings.truncate(MOST_BEGINNINGS - 1);
            self.beginnings.push_front(now);
        }
        is_new
    }

    /// A request comes that would have gone to the address. Returns what is to be logged, if it is time for a line.
    pub(super) fn note_request(&mut self, now: Instant) -> Option<Reminder> {
        let (since, _) = self.down?;
        self.requests += 1;
        if !self.is_due(now) {
            return None;
        }
        self.down = Some((since, true));
        self.logged = Some(now);
        Some(Reminder {
            down_for: now.saturating_duration_since(since),
            requests: std::mem::take(&mut self.requests),
        })
    }

    /// The address is back. Returns how long it was down, if the log said that it is.
    pub(super) fn end(&mut self, now: Instant) -> Option<Duration> {
        let (since, was_logged) = self.down.take()?;
        self.ended = Some(now);
        was_logged.then(|| now.saturating_duration_since(since))
    }

    /// Returns whether it is down and the log has said so.
    pub(super) fn is_logged(&self) -> bool {
        self.down.is_some_and(|(_, is_logged)| is_logged)
    }

    /// Returns whether fewer than [`MOST_BEGINNINGS`] were logged within [`EVERY`].
    fn has_room(&self, now: Instant) -> bool {
        let oldest = self.beginnings.get(MOST_BEGINNINGS - 1);
        oldest.is_none_or(|at| now.saturating_duration_since(*at) >= EVERY)
    }

    fn is_due(&self, now: Instant) -> bool {
        self.logged
            .is_none_or(|logged| now.saturating_duration_since(logged) >= EVERY)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn one_line_when_it_goes_down_one_a_minute_and_one_when_it_is_back() {
        let (begun, mut outage) = (Instant::now(), Outage::default());
        assert_eq!(outage.note_request(begun), None, "it is up");
        assert!(outage.begin(begun));
        for second in 1..60 {
            assert_eq!(outage.note_request(begun + SECOND * second), None);
        }
        let reminder = Reminder {
            down_for: SECOND * 75,
            requests: 60,
        };
        assert_eq!(outage.note_request(begun + SECOND * 75), Some(reminder));
        assert_eq!(outage.note_request(begun + SECOND * 134), None);
        let reminder = outage.note_request(begun + SECOND * 135).unwrap();
        assert_eq!(reminder.requests, 2);
        assert_eq!(outage.end(begun + SECOND * 200), Some(SECOND * 200));
        assert_eq!(outage.end(begun + SECOND * 201), None);
    }

    #[test]
    fn a_second_outage_within_a_minute_is_logged() {
        let (begun, mut outage) = (Instant::now(), Outage::default());
        assert!(outage.begin(begun));
        assert_eq!(outage.end(begun + SECOND * 10), Some(SECOND * 10));
        assert!(!outage.begin(begun + SECOND * 12), "it was not well in between");
        assert!(!outage.is_logged());
        assert_eq!(outage.end(begun + SECOND * 13), None);
        assert!(outage.begin(begun + SECOND * 30) && outage.is_logged());
        assert_eq!(outage.end(begun + SECOND * 33), Some(SECOND * 3));
        assert!(outage.begin(begun + SECOND * 40));
        assert!(outage.end(begun + SECOND * 41).is_some());
        assert!(!outage.begin(begun + SECOND * 50), "three a minute");
    }

    #[derive(Clone, Debug)]
    enum Step {
        Down,
        Request,
        Back,
    }

    proptest! {
        /// However it goes up and down: of five warnings the last is a minute after the first, and no line says "back" of what no line called down.
        #[test]
        fn an_address_that_flaps_does_not_fill_the_log(
            steps in prop::collection::vec((prop::sample::select(vec![Step::Down, Step::Request, Step::Back]), 0u32..50), 0..300)
        ) {
            let (mut now, mut outage) = (Instant::now(), Outage::default());
            let (mut warned, mut is_down, mut says_down) = (Vec::new(), false, false);
            for (step, pause) in steps {
                now += SECOND * pause;
                let warns = match step {
                    Step::Down if !is_down => {
                        is_down = true;
                        outage.begin(now)
                    }
                    Step::Down => continue,
                    Step::Request => outage.note_request(now).is_some(),
                    Step::Back => {
                        prop_assert_eq!(outage.end(now).is_some(), says_down);
                        (is_down, says_down) = (false, false);
                        false
                    }
                };
                if warns {
                    prop_assert!(is_down);
                    let earlier = warned.len().checked_sub(MOST_BEGINNINGS + 1).map(|at| warned[at]);
                    prop_assert!(earlier.is_none_or(|at| now - at >= EVERY));
                    warned.push(now);
                    says_down = true;
                }
            }
        }
    }
}
