//! Fresh, Revalidate, Fetch or Stale: the record of a tag × now × policy. Pure.

use std::time::Duration;

/// What to do about a tag or list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// Serve; ask nobody.
    Fresh,
    /// Ask whether it is still right.
    Revalidate,
    /// Nothing is known: ask for it.
    Fetch,
}

/// How much of a tag is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holding {
    /// What it points at.
    Target,
    /// Not that, but something that it pointed at before.
    Earlier,
    Nothing,
}

/// [`judge`] for a tag. A record whose target is not held, because nobody but a HEAD has asked for it yet, is as good
/// as the upstream behind it. While an earlier target is held that is no answer to trust: should the upstream fail, a
/// GET gives the earlier one, and a HEAD may not promise another (L3). So it is asked again, by HEAD, which is free.
pub fn judge_tag(checked_ms: Option<u64>, holding: Holding, now_ms: u64, ttl: Duration, offline: bool) -> Freshness {
    match judge(checked_ms, now_ms, ttl, offline) {
        Freshness::Fresh if holding == Holding::Earlier && !offline => Freshness::Revalidate,
        judged => judged,
    }
}

/// `checked_ms` is when the upstream last confirmed it, Unix milliseconds. When nobody may be asked, everything
/// known is fresh.
pub fn judge(checked_ms: Option<u64>, now_ms: u64, ttl: Duration, offline: bool) -> Freshness {
    let Some(checked_ms) = checked_ms else {
        return Freshness::Fetch;
    };
    // A check in the future is a clock that was set back: it proves nothing.
    let age_ms = now_ms.checked_sub(checked_ms);
    match age_ms {
        _ if offline => Freshness::Fresh,
        Some(age) if u128::from(age) < ttl.as_millis() => Freshness::Fresh,
        _ => Freshness::Revalidate,
    }
}

/// Returns for how many seconds past its time something may be served although the upstream did not confirm it, or
/// `None` when it is older than `stale_if_error`. `now_ms` is by the clock that dated the check; one from the future
/// counts as one of this moment.
pub fn may_be_stale(checked_ms: u64, now_ms: u64, ttl: Duration, stale_if_error: Duration) -> Option<u64> {
    let age = Duration::from_millis(now_ms.saturating_sub(checked_ms));
    (age <= ttl.saturating_add(stale_if_error)).then(|| age.saturating_sub(ttl).as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIN: Duration = Duration::from_secs(60);

    #[test]
    fn the_table() {
        use Freshness::*;
        for (checked, now, ttl, offline, expected) in [
            (None, 0, MIN, false, Fetch),
            (None, 0, MIN, true, Fetch),
            (Some(0), 59_999, MIN, false, Fresh),
            (Some(0), 60_000, MIN, false, Revalidate),
            (Some(0), u64::MAX, MIN, true, Fresh),
            (Some(5), 5, Duration::ZERO, false, Revalidate),
            (Some(10_000), 5_000, MIN, false, Revalidate),
        ] {
            assert_eq!(
                judge(checked, now, ttl, offline),
                expected,
                "{checked:?} {now} {ttl:?} {offline}"
            );
        }
    }

    #[test]
    fn a_tag_is_trusted_as_far_as_it_is_held() {
        use Freshness::*;
        for (checked, holding, now, offline, expected) in [
            (Some(0), Holding::Target, 59_999, false, Fresh),
            (Some(0), Holding::Earlier, 59_999, false, Revalidate),
            (Some(0), Holding::Nothing, 59_999, false, Fresh),
            // Nobody may be asked: what is held is served without.
            (Some(0), Holding::Earlier, 59_999, true, Fresh),
            (Some(0), Holding::Target, 60_000, false, Revalidate),
            (Some(0), Holding::Earlier, 60_000, false, Revalidate),
            (None, Holding::Nothing, 0, false, Fetch),
        ] {
            assert_eq!(
                judge_tag(checked, holding, now, MIN, offline),
                expected,
                "{checked:?} {holding:?} {now} {offline}"
            );
        }
    }

    #[test]
    fn stale_has_an_end() {
        assert_eq!(may_be_stale(0, 90_000, MIN, MIN), Some(30));
        assert_eq!(may_be_stale(0, 120_000, MIN, MIN), Some(60));
        assert_eq!(may_be_stale(0, 120_001, MIN, MIN), None);
        assert_eq!(may_be_stale(0, 30_000, Duration::ZERO, Duration::ZERO), None);
        assert_eq!(may_be_stale(9_000, 0, MIN, Duration::ZERO), Some(0));
    }
}
