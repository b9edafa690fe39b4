//! What to do next, and when. Pure: times in, times out.
//!
//! Renewal is due at two thirds of the certificate's life, or when the authority says (RFC 9773). After a failure it depends on
//! whose it was: who cannot be reached is asked again soon; who refused counts failures (Let's Encrypt: five an hour for each
//! name), so that there are fewer of them, and an hour and more between them from the fourth on.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
/// A restart may shorten the wait after a refusal to this, counted from the refusal: somebody may have mended the cause, or
/// something may restart us all the time.
const AFTER_RESTART: Duration = Duration::from_secs(15 * 60);
/// Nobody is left alone for longer because he asked for it.
const LONGEST_PATIENCE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Why there was no certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Failure {
    Unreachable,
    Broken,
    RateLimited,
    Refused,
}

impl Failure {
    pub fn as_str(self) -> &'static str {
        match self {
            Failure::Unreachable => "unreachable",
            Failure::Broken => "broken",
            Failure::RateLimited => "rate_limited",
            Failure::Refused => "refused",
        }
    }

    /// The pause after so many failures in a row, from 1.
    pub fn pause(self, in_a_row: u32) -> Duration {
        let before = in_a_row.saturating_sub(1);
        match self {
            Failure::Unreachable => doubled(Duration::from_secs(10), before).min(10 * MINUTE),
            Failure::Broken => doubled(MINUTE, before).min(HOUR),
            Failure::RateLimited => doubled(HOUR, before).min(12 * HOUR),
            Failure::Refused => match before {
                0 => MINUTE,
                1 => 5 * MINUTE,
                2 => 20 * MINUTE,
                more => doubled(HOUR, more - 3).min(12 * HOUR),
            },
        }
    }
}

fn doubled(first: Duration, times: u32) -> Duration {
    first.saturating_mul(1 << times.min(16))
}

/// A pause, stretched by up to a quarter by `chance` from 0 to 1: those who failed together do not come back together.
pub fn spread(pause: Duration, chance: f64) -> Duration {
    pause.mul_f64(1.0 + chance.clamp(0.0, 1.0) / 4.0)
}

/// When to try again after the failure at `now`. `asked` is what the directory asked for (Retry-After).
pub fn again(now: SystemTime, pause: Duration, asked: Option<SystemTime>) -> SystemTime {
    let asked = asked.map(|at| at.min(now + LONGEST_PATIENCE));
    (now + pause).max(asked.unwrap_or(now))
}

/// How long a certificate is kept at least before another is ordered, whatever is said of its life: an authority that has
/// everything renewed at once, always, is asked four times a day.
pub fn least(life: Duration) -> Duration {
    (life / 20).clamp(MINUTE, 6 * HOUR)
}

/// The same for a process that finds a failure of an earlier one written down: `failed` and `again` as they stand there.
/// What a directory asked for holds; other pauses end sooner. A clock that was wrong then is no reason to wait forever.
pub fn after_restart(now: SystemTime, failed: SystemTime, again: SystemTime, failure: Failure) -> SystemTime {
    let sooner = match failure {
        Failure::RateLimited => again,
        Failure::Unreachable => now,
        Failure::Broken | Failure::Refused => again.min(failed + AFTER_RESTART),
    };
    sooner.min(now + LONGEST_PATIENCE)
}

/// When a certificate is to be renewed, by its life alone: at two thirds, up to a thirtieth of it sooner, by `chance` from 0 to 1.
pub fn renewal(from: SystemTime, until: SystemTime, chance: f64) -> SystemTime {
    let life = until.duration_since(from).unwrap_or_default();
    from + (life * 2 / 3).saturating_sub((life / 30).mul_f64(chance.clamp(0.0, 1.0)))
}

/// The window that the authority suggests (RFC 9773, 4.2): a moment in it by `chance`. `None` for one that makes no sense: it
/// ends before it begins, or begins after the certificate has ended.
pub fn within(window: (SystemTime, SystemTime), until: SystemTime, chance: f64) -> Option<SystemTime> {
    let (start, end) = window;
    let length = end.duration_since(start).ok().filter(|length| !length.is_zero())?;
    (start < until).then(|| (start + length.mul_f64(chance.clamp(0.0, 1.0))).min(until))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;
    const DAY: Duration = Duration::from_secs(86_400);

    #[test]
    fn renewed_at_two_thirds() {
        let at = |chance| renewal(NOW, NOW + 90 * DAY, chance);
        assert_eq!(at(0.0), NOW + 60 * DAY);
        assert_eq!(at(1.0), NOW + 57 * DAY);
        // Of a day, of six days: as much of what there is.
        assert_eq!(renewal(NOW, NOW + DAY, 0.0), NOW + 16 * HOUR);
        // Nonsense is due at once.
        assert_eq!(renewal(NOW + DAY, NOW, 0.5), NOW + DAY);
    }

    #[test]
    fn the_authority_may_say_when() {
        let until = NOW + 90 * DAY;
        let window = (NOW + 10 * DAY, NOW + 12 * DAY);
        assert_eq!(within(window, until, 0.5), Some(NOW + 11 * DAY));
        assert_eq!(within((NOW, NOW), until, 0.7), None);
        assert_eq!(within((NOW + DAY, NOW), until, 0.5), None);
        assert_eq!(within((NOW + 91 * DAY, NOW + 92 * DAY), until, 0.5), None);
        assert_eq!(within((NOW + 89 * DAY, NOW + 95 * DAY), until, 1.0), Some(until));
    }

    #[test]
    fn refusals_are_few() {
        let mut at = NOW;
        let mut within_an_hour = 0;
        for failures in 1..=10 {
            within_an_hour += u32::from(at < NOW + HOUR);
            let next = again(at, Failure::Refused.pause(failures), None);
            if failures >= 4 {
                assert!(next >= at + HOUR, "{failures}");
            }
            assert!(next <= at + 12 * HOUR);
            at = next;
        }
        assert!(
            within_an_hour < 5,
            "Let's Encrypt takes five failures an hour: {within_an_hour}"
        );
    }

    #[test]
    fn who_is_out_of_reach_is_asked_soon() {
        assert_eq!(Failure::Unreachable.pause(1), Duration::from_secs(10));
        assert_eq!(Failure::Unreachable.pause(2), Duration::from_secs(20));
        assert_eq!(Failure::Unreachable.pause(u32::MAX), 10 * MINUTE);
        assert_eq!(Failure::RateLimited.pause(1), HOUR);
    }

    #[test]
    fn a_certificate_is_kept_for_a_while() {
        assert_eq!(least(Duration::ZERO), MINUTE);
        assert_eq!(least(DAY), DAY / 20);
        assert_eq!(least(90 * DAY), 6 * HOUR);
        assert_eq!(spread(HOUR, 1.0), HOUR + 15 * MINUTE);
    }

    #[test]
    fn what_the_directory_asks_for_holds() {
        let asked = NOW + 3 * HOUR;
        assert_eq!(again(NOW, MINUTE, Some(asked)), asked);
        assert_eq!(again(NOW, MINUTE, Some(NOW)), NOW + MINUTE);
        assert_eq!(again(NOW, MINUTE, Some(NOW + 3650 * DAY)), NOW + 7 * DAY);
        // Also through a restart.
        assert_eq!(after_restart(NOW + MINUTE, NOW, asked, Failure::RateLimited), asked);
        assert_eq!(
            after_restart(NOW + MINUTE, NOW, asked, Failure::Refused),
            NOW + AFTER_RESTART
        );
        assert_eq!(
            after_restart(NOW + MINUTE, NOW, asked, Failure::Unreachable),
            NOW + MINUTE
        );
        assert_eq!(
            after_restart(NOW, NOW + 300 * DAY, NOW + 301 * DAY, Failure::Refused),
            NOW + 7 * DAY
        );
    }

    proptest! {
        #[test]
        fn a_pause_only_grows(failures in 1..u32::MAX - 1, kind in 0..4usize) {
            let kind = [Failure::Unreachable, Failure::Broken, Failure::RateLimited, Failure::Refused][kind];
            prop_assert!(kind.pause(failures) <= kind.pause(failures + 1));
            prop_assert!(kind.pause(failures) >= Duration::from_secs(10));
        }

        #[test]
        fn renewal_is_within_the_life(days in 0..4000u32, chance in 0.0..=1.0f64) {
            let until = NOW + days * DAY;
            let at = renewal(NOW, until, chance);
            prop_assert!(at >= NOW && at <= until);
        }
    }
}
