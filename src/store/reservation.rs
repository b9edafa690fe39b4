//! How much room a transfer holds ahead of its bytes. Pure: `writer` asks, `space` makes the room.
//!
//! The size that an upstream announces is a claim. Room is made for the bytes that came and for about as many again, so
//! that a sender has to send every byte that it wants to push out, and a long transfer still makes room only a few dozen
//! times.

/// Held ahead of the first byte: of a transfer that sends nothing, no more than this is ever counted.
pub(super) const LEAST_AHEAD: u64 = 1 << 20;
/// Held ahead at most, however much came: so much of the disk's free space counts as promised for each transfer.
pub(super) const MOST_AHEAD: u64 = 64 << 20;
/// This part of the limit, 5 %, may be taken from cached content by bodies that nobody announced the size of.
const UNANNOUNCED_PART: u64 = 20;

/// Bytes to reserve, best first, when `came` bytes of a blob are there that is expected to have `expected` in all. The
/// last is what the bytes need that came. None is less than that, or more than `expected` if that is not passed already.
pub(super) fn steps(came: u64, expected: Option<u64>) -> [u64; 3] {
    let most = expected.unwrap_or(u64::MAX).max(came);
    let ahead = |bytes: u64| came.saturating_add(bytes).min(most);
    [ahead(came.clamp(LEAST_AHEAD, MOST_AHEAD)), ahead(LEAST_AHEAD), came]
}

/// Bytes that may be evicted for bodies of unannounced size, under a limit of `limit` bytes, when those that are being
/// staged hold `held` already.
pub(super) fn unannounced_allowance(limit: u64, held: u64) -> u64 {
    (limit / UNANNOUNCED_PART).saturating_sub(held)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_schedule() {
        assert_eq!(steps(0, Some(90 * MIB)), [MIB, MIB, 0]);
        assert_eq!(steps(0, Some(1000)), [1000, 1000, 0]);
        assert_eq!(steps(MIB / 4, None), [MIB + MIB / 4, MIB + MIB / 4, MIB / 4]);
        assert_eq!(steps(10 * MIB, Some(90 * MIB)), [20 * MIB, 11 * MIB, 10 * MIB]);
        assert_eq!(steps(80 * MIB, Some(90 * MIB)), [90 * MIB, 81 * MIB, 80 * MIB]);
        assert_eq!(steps(500 * MIB, None), [564 * MIB, 501 * MIB, 500 * MIB]);
        // More came than was expected.
        assert_eq!(steps(5, Some(4)), [5, 5, 5]);
        assert_eq!(steps(u64::MAX, None), [u64::MAX; 3]);
        assert_eq!(steps(u64::MAX - 1, Some(u64::MAX)), [u64::MAX, u64::MAX, u64::MAX - 1]);
    }

    #[test]
    fn the_allowance_is_for_all_of_them_together() {
        assert_eq!(unannounced_allowance(100 * MIB, 0), 5 * MIB);
        assert_eq!(unannounced_allowance(100 * MIB, 4 * MIB), MIB);
        assert_eq!(unannounced_allowance(100 * MIB, 30 * MIB), 0);
        assert_eq!(unannounced_allowance(u64::MAX, u64::MAX), 0);
    }

    proptest! {
        #[test]
        fn each_step_covers_what_came_and_is_bounded(came: u64, expected: Option<u64>) {
            let [first, second, last] = steps(came, expected);
            prop_assert!(first >= second && second >= last && last == came);
            prop_assert!(first - came <= MOST_AHEAD);
            prop_assert!(first <= came.saturating_mul(2).max(came.saturating_add(LEAST_AHEAD)));
            prop_assert!(expected.is_none_or(|expected| first <= expected.max(came)));
        }

        /// Whatever the sizes of the batches: every byte is covered before it is written, never more than 1 MiB or as
        /// much again as came is held, and a transfer makes room a bounded number of times.
        #[test]
        fn a_transfer_makes_room_a_few_times(
            total in 1u64..1 << 34, batches in prop::collection::vec(1u64..1 << 26, 1..50), announced: bool,
        ) {
            let expected = announced.then_some(total);
            let (mut came, mut reserved, mut times) = (0u64, steps(0, expected)[0], 0u64);
            for batch in batches.iter().cycle().take(20_000) {
                if came >= total {
                    break;
                }
                came = total.min(came + batch);
                if came > reserved {
                    reserved = steps(came, expected)[0];
                    times += 1;
                }
                prop_assert!(reserved >= came);
                prop_assert!(reserved - came <= MOST_AHEAD.min(came.max(LEAST_AHEAD)));
                prop_assert!(!announced || reserved <= total);
            }
            prop_assert!(times <= 8 + came / MOST_AHEAD, "{} times for {} bytes", times, came);
        }
    }
}
