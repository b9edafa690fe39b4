//! How often the log speaks of an address that is down: when it goes down, once a minute while requests would go there, and when it
//! is back. Pure: the caller gives the time.

use std::time::Duration;

use tokio::time::Instant;

/// The time between two lines about the same outage.
const EVERY: Duration = Duration::from_secs(60);

/// What was logged about one address. An address that answers probes and fails requests goes down and comes back every few
/// seconds: within a minute of the last line that is logged once.
#[derive(Clone, Debug, Default)]
pub(super) struct Outage {
    /// Since when it is down, and whether the log said so.
    down: Option<(Instant, bool)>,
    logged: Option<Instant>,
    /// Requests that came for it since the last line.
    requests: u64,
}

/// What a line about an outage that goes on says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reminder {
    pub(super) down_for: Duration,
    pub(super) requests: u64,
}

impl Outage {
    /// The address is down. Returns whether that is to be logged.
    pub(super) fn begin(&mut self, now: Instant) -> bool {
        let is_new = self.is_due(now);
        self.down = Some((now, is_new));
        self.requests = 0;
        if is_new {
            self.logged = Some(now);
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
        was_logged.then(|| now.saturating_duration_since(since))
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

    #[derive(Clone, Debug)]
    enum Step {
        Down,
        Request,
        Back,
    }

    proptest! {
        /// However it goes up and down: two warnings are a minute apart, and no line says "back" of what no line called down.
        #[test]
        fn an_address_that_flaps_does_not_fill_the_log(
            steps in prop::collection::vec((prop::sample::select(vec![Step::Down, Step::Request, Step::Back]), 0u32..50), 0..300)
        ) {
            let (mut now, mut outage) = (Instant::now(), Outage::default());
            let (mut warned, mut is_down, mut says_down) = (None, false, false);
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
                    prop_assert!(warned.is_none_or(|at| now - at >= EVERY));
                    warned = Some(now);
                    says_down = true;
                }
            }
        }
    }
}
