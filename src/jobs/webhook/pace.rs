//! What an answer means, and when to try again. Pure, but for the jitter.

use std::time::Duration;

/// Events of one delivery.
pub(super) const MOST_EVENTS: usize = 100;
/// The longest pause that Larder takes of itself, unless the operator's first one is longer.
const LONGEST: Duration = Duration::from_secs(300);
/// The longest that an endpoint may ask for.
const LONGEST_ASKED: Duration = Duration::from_secs(3600);
/// A single event that an endpoint cannot read is offered so often.
const OFFERS: u32 = 5;

/// An answer's status, judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// 2xx.
    Taken,
    /// The endpoint says that it is the events that are wrong: 400, 413, 415, 422.
    Unreadable,
    /// Anything else may pass, redirects included, which are not followed.
    NotNow,
}

impl Verdict {
    pub(super) fn of(status: u16) -> Verdict {
        match status {
            200..=299 => Verdict::Taken,
            400 | 413 | 415 | 422 => Verdict::Unreadable,
            _ => Verdict::NotNow,
        }
    }
}

/// What to do after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Again after so long.
    Wait(Duration),
    /// The event is in nobody's way any longer.
    Drop,
}

/// How it went so far.
#[derive(Debug)]
pub(super) struct Pace {
    first: Duration,
    failures: u32,
    offers: u32,
    /// Events that the next delivery may have.
    pub(super) most: usize,
}

impl Pace {
    /// `first` is the pause after one failure.
    pub(super) fn new(first: Duration) -> Pace {
        Pace {
            first,
            failures: 0,
            offers: 0,
            most: MOST_EVENTS,
        }
    }

    pub(super) fn taken(&mut self) {
        (self.failures, self.offers) = (0, 0);
        self.most = (self.most * 2).min(MOST_EVENTS);
    }

    /// Not now; `asked` is what the endpoint wants to be left alone for.
    pub(super) fn failed(&mut self, asked: Option<Duration>) -> Next {
        self.failures = self.failures.saturating_add(1);
        let asked = asked.unwrap_or_default().min(LONGEST_ASKED);
        Next::Wait(self.pause().max(asked))
    }

    /// So many events cannot be read: half of them next time, until it is clear which one it is.
    pub(super) fn unreadable(&mut self, events: usize, asked: Option<Duration>) -> Next {
        if events > 1 {
            self.most = events / 2;
            return Next::Wait(Duration::ZERO);
        }
        self.most = 1;
        self.offers += 1;
        if self.offers < OFFERS {
            return self.failed(asked);
        }
        (self.failures, self.offers) = (0, 0);
        Next::Drop
    }

    /// Twice as long each time, and by half of it at random: many proxies are not to come back in the same second.
    fn pause(&self) -> Duration {
        let doubled = 1_u32.checked_shl(self.failures.saturating_sub(1)).unwrap_or(u32::MAX);
        let longest = self.first.max(LONGEST);
        let pause = self
            .first
            .checked_mul(doubled)
            .map_or(longest, |pause| pause.min(longest));
        pause.div_f64(2.0) + pause.mul_f64(fastrand::f64() / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn verdicts() {
        for (status, verdict) in [
            (200, Verdict::Taken),
            (204, Verdict::Taken),
            (301, Verdict::NotNow),
            (399, Verdict::NotNow),
            (400, Verdict::Unreadable),
            (401, Verdict::NotNow),
            (404, Verdict::NotNow),
            (408, Verdict::NotNow),
            (413, Verdict::Unreadable),
            (422, Verdict::Unreadable),
            (429, Verdict::NotNow),
            (500, Verdict::NotNow),
        ] {
            assert_eq!(Verdict::of(status), verdict, "{status}");
        }
    }

    #[test]
    fn pauses_grow_and_end() {
        let mut pace = Pace::new(SECOND);
        for n in 0..100 {
            let Next::Wait(pause) = pace.failed(None) else { panic!() };
            let full = SECOND.saturating_mul(1 << n.min(20)).min(LONGEST);
            assert!(pause >= full / 2 && pause <= full, "{n}: {pause:?}");
        }
        assert_eq!(pace.failed(Some(600 * SECOND)), Next::Wait(600 * SECOND));
        assert_eq!(pace.failed(Some(99_999 * SECOND)), Next::Wait(LONGEST_ASKED));
        pace.taken();
        let Next::Wait(pause) = pace.failed(None) else { panic!() };
        assert!(pause <= SECOND);
        // The operator's first pause may be longer than ours.
        let Next::Wait(pause) = Pace::new(1000 * SECOND).failed(None) else {
            panic!()
        };
        assert!(pause >= 500 * SECOND);
    }

    /// The one event that is in the way is found, offered again, and dropped.
    #[test]
    fn what_cannot_be_read_is_found() {
        let mut pace = Pace::new(SECOND);
        let mut events = MOST_EVENTS;
        let mut halvings = 0;
        while events > 1 {
            assert_eq!(pace.unreadable(events, None), Next::Wait(Duration::ZERO));
            events = pace.most;
            halvings += 1;
        }
        assert_eq!((halvings, pace.most), (6, 1));
        for _ in 1..OFFERS {
            assert!(matches!(pace.unreadable(1, None), Next::Wait(pause) if pause > Duration::ZERO));
        }
        assert_eq!(pace.unreadable(1, None), Next::Drop);
        for most in [2, 4, 8, 16, 32, 64, MOST_EVENTS, MOST_EVENTS] {
            pace.taken();
            assert_eq!(pace.most, most);
        }
    }
}
