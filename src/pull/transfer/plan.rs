//! How many connections a blob is worth, and which bytes each is asked for. No I/O, and no clock but the caller's.

use std::ops::Range;
use std::time::{Duration, Instant};

use crate::pull::timing::Parallel;

/// The first connection is left this long a way, at its present rate, until parts take over: by then they have answered.
const HEAD_START: Duration = Duration::from_millis(500);
/// And no longer a way than so many parts, because those that are there wait for it in memory.
const HEAD_START_PARTS: u64 = 2;
/// A sink that keeps the network waiting for more than this share of the time is what is slow.
const HELD_UP_SHARE: f64 = 0.25;

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    GoOn,
    /// There are to be more; the next window begins when they have answered.
    More,
    /// Not faster with two than with one.
    Useless,
}

/// One transfer's number of connections, found by trying.
#[derive(Debug)]
pub(super) struct Plan {
    policy: Parallel,
    /// Connections that there are to be, the first included; and that there were before the last were added.
    connections: usize,
    previous: usize,
    /// No more are tried.
    is_settled: bool,
    is_off: bool,
    failures: u32,
    /// Parts that the first connection reached before they were answered.
    late: u32,
    /// Bytes a second before the last were added.
    before: f64,
    /// Bytes a second of the first connection alone.
    alone: f64,
    window: Option<Window>,
}

/// What is measured over.
#[derive(Debug)]
struct Window {
    since: Instant,
    came: u64,
    held_up: Duration,
}

impl Plan {
    pub(super) fn new(policy: Parallel) -> Plan {
        Plan {
            policy,
            connections: 1,
            previous: 1,
            is_settled: false,
            is_off: false,
            failures: 0,
            late: 0,
            before: 0.0,
            alone: 0.0,
            window: None,
        }
    }

    /// How many parts may be coming at once.
    pub(super) fn abreast(&self, with_first: bool) -> usize {
        match self.connections {
            1 => 0,
            all if with_first => all - 1,
            all => all,
        }
    }

    pub(super) fn is_off(&self) -> bool {
        self.is_off
    }

    /// Parts that are coming still come; no others are asked for.
    pub(super) fn stop(&mut self) {
        self.is_off = true;
        self.connections = 1;
    }

    /// There are no more to be had at this moment: on with these, and in a while it is tried again.
    pub(super) fn fewer(&mut self, connections: usize) {
        self.connections = connections.max(1);
        self.before = 0.0;
        self.is_settled = false;
        self.window = None;
    }

    /// A part failed in a way that may pass: on with one connection, and measuring begins anew.
    pub(super) fn failed(&mut self) {
        self.failures += 1;
        self.connections = 1;
        self.is_settled = false;
        self.window = None;
        if self.failures >= self.policy.failures {
            self.stop();
        }
    }

    /// The first connection came by before a part was answered: that was no use, and costs the upstream a request each
    /// time. The next one gets twice the way.
    pub(super) fn was_late(&mut self) {
        self.late += 1;
        self.failed();
    }

    /// What is measured from now on is with the number of connections that there are now.
    pub(super) fn begin(&mut self, now: Instant, came: u64, held_up: Duration) {
        self.window = Some(Window {
            since: now,
            came,
            held_up,
        });
    }

    /// `came`: bytes over all connections since ever; `held_up`: how long the sink kept them waiting.
    pub(super) fn measure(&mut self, now: Instant, came: u64, held_up: Duration, left: u64) -> Step {
        if self.is_off || self.is_settled {
            return Step::GoOn;
        }
        let Some(window) = &self.window else {
            self.begin(now, came, held_up);
            return Step::GoOn;
        };
        let took = now.saturating_duration_since(window.since);
        if took < self.policy.measure_for {
            return Step::GoOn;
        }
        let seconds = took.as_secs_f64().max(1e-6);
        let rate = came.saturating_sub(window.came) as f64 / seconds;
        let is_held_up = held_up.saturating_sub(window.held_up).as_secs_f64() > HELD_UP_SHARE * seconds;
        self.begin(now, came, held_up);
        if self.connections == 1 {
            if is_held_up || rate >= self.policy.slow_below as f64 || left < self.policy.least_left {
                return Step::GoOn;
            }
            self.alone = rate;
            return self.more(rate);
        }
        let added = self.connections.saturating_sub(self.previous) as f64;
        if rate < self.before * (1.0 + self.policy.gain * added / self.previous as f64) {
            if self.previous == 1 {
                self.stop();
                // If it was the sink that was slow, it was not the upstream's fault.
                return if is_held_up { Step::GoOn } else { Step::Useless };
            }
            self.connections = self.previous;
            self.is_settled = true;
            return Step::GoOn;
        }
        if is_held_up || self.connections >= self.policy.connections {
            self.is_settled = true;
            return Step::GoOn;
        }
        self.more(rate)
    }

    fn more(&mut self, rate: f64) -> Step {
        self.before = rate;
        self.previous = self.connections;
        // Twice as many: by ones, a blob of a quarter of a GiB is nearly there before there are six.
        self.connections = (2 * self.connections).min(self.policy.connections);
        Step::More
    }

    /// The next part to ask for. `at`: where the transfer stands; `last`: where the last part that it has ends, if any.
    pub(super) fn part(&self, at: u64, with_first: bool, last: Option<u64>, total: u64) -> Option<Range<u64>> {
        let size = self.policy.part_bytes.max(1);
        let start = match last {
            Some(last) => last,
            None if with_first => {
                let times = 1 << self.late.min(2);
                let way = (self.alone * HEAD_START.as_secs_f64()) as u64 * times;
                at.saturating_add(way.clamp(size, size.saturating_mul(HEAD_START_PARTS * times)))
            }
            None => at,
        };
        (start < total).then(|| start..start.saturating_add(size).min(total))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    /// A transfer over connections of `each` bytes a second and a link of `link`, until the number settles. Gives that
    /// number, and whether it was found useless.
    fn settles_at(each: u64, link: u64, held_up: f64) -> (usize, bool) {
        let mut plan = Plan::new(Parallel::default());
        let (begun, mut clock, mut came, mut waited) = (Instant::now(), Duration::ZERO, 0, Duration::ZERO);
        for _ in 0..200 {
            let step = plan.measure(begun + clock, came, waited, 1 << 40);
            match step {
                Step::GoOn => {}
                Step::More => plan.begin(begun + clock, came, waited),
                Step::Useless => return (1, true),
            }
            let tick = Duration::from_millis(100);
            clock += tick;
            waited += tick.mul_f64(held_up);
            came += (plan.connections as u64 * each).min(link) / 10;
        }
        (plan.connections, false)
    }

    #[test]
    fn as_many_as_help() {
        assert_eq!(settles_at(20 * MIB, 1000 * MIB, 0.0), (6, false), "each brings its own");
        assert_eq!(
            settles_at(20 * MIB, 50 * MIB, 0.0),
            (2, false),
            "the link is full with three"
        );
        assert_eq!(
            settles_at(20 * MIB, 80 * MIB, 0.0),
            (4, false),
            "the link is full with four"
        );
        assert_eq!(settles_at(20 * MIB, 20 * MIB, 0.0), (1, true), "the link is the limit");
        assert_eq!(settles_at(100 * MIB, 1000 * MIB, 0.0), (1, false), "not slow");
        assert_eq!(
            settles_at(20 * MIB, 1000 * MIB, 0.5),
            (1, false),
            "the sink is the limit"
        );
    }

    #[test]
    fn a_small_rest_is_not_worth_it() {
        let mut plan = Plan::new(Parallel::default());
        let begun = Instant::now();
        for second in 0..10 {
            let now = begun + Duration::from_secs(second);
            assert_eq!(plan.measure(now, second * MIB, Duration::ZERO, 31 * MIB), Step::GoOn);
        }
        assert_eq!(plan.abreast(true), 0);
    }

    /// Without room for more, it is tried again a window later.
    #[test]
    fn what_cannot_be_had_now_is_tried_again() {
        let mut plan = Plan::new(Parallel::default());
        let begun = Instant::now();
        let mut more = 0;
        for second in 0..10 {
            let now = begun + Duration::from_secs(second);
            if plan.measure(now, second * MIB, Duration::ZERO, 1 << 40) == Step::More {
                more += 1;
                plan.fewer(1);
            }
        }
        assert_eq!((more, plan.abreast(true), plan.is_off()), (5, 0, false));
    }

    /// An upstream whose answers take long is given more time, and then left alone: not a request every half second.
    #[test]
    fn parts_that_come_late_are_asked_for_earlier_and_then_no_more() {
        let policy = Parallel::default();
        let part = policy.part_bytes;
        let mut plan = Plan::new(policy);
        let begun = Instant::now();
        let mut ways = Vec::new();
        for second in 0..60 {
            let now = begun + Duration::from_secs(second);
            if plan.measure(now, second * 60 * MIB, Duration::ZERO, 1 << 40) == Step::More {
                ways.extend(plan.part(0, true, None, 1 << 40).map(|span| span.start / part));
                plan.was_late();
            }
        }
        assert_eq!((ways, plan.is_off()), (vec![2, 4, 8], true));
    }

    #[test]
    fn failures_are_forgiven_so_often() {
        let mut plan = Plan::new(Parallel::default());
        for forgiven in [true, true, false] {
            plan.connections = 4;
            plan.failed();
            assert_eq!((plan.abreast(false), plan.is_off()), (0, !forgiven));
        }
    }

    proptest! {
        /// Whatever comes when: parts follow each other without a gap or an overlap, from at least one part's way ahead of
        /// the first connection to the end of the blob.
        #[test]
        fn parts_cover_the_rest_exactly_once(
            total in 1u64..1 << 40, at in 0u64..1 << 40, size in 1u64..1 << 24, alone in 0f64..1e9, with_first: bool,
        ) {
            let mut plan = Plan::new(Parallel { part_bytes: size, ..Parallel::default() });
            plan.alone = alone;
            let at = at % total;
            let first = plan.part(at, with_first, None, total);
            let Some(first) = first else {
                prop_assert!(with_first && at + HEAD_START_PARTS * size >= total);
                return Ok(());
            };
            if with_first {
                prop_assert!((at + size..=at + HEAD_START_PARTS * size).contains(&first.start));
            } else {
                prop_assert_eq!(first.start, at);
            }
            let mut last = first.end;
            for _ in 0..100 {
                let Some(next) = plan.part(at, with_first, Some(last), total) else {
                    prop_assert_eq!(last, total);
                    break;
                };
                prop_assert_eq!(next.start, last);
                prop_assert!(next.end > next.start && next.end - next.start <= size && next.end <= total);
                last = next.end;
            }
        }
    }
}
