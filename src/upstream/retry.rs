//! Repeats of requests that failed at every address: when, how many at once, and when they end.
//!
//! A registry that hiccups fails all requests of that moment together. If each repeated its own, they would be what keeps it
//! down. So requests of one kind that failed wait together: one of them is repeated at a time, after pauses that double, and
//! as soon as the registry answers any, all go on. If all repeats fail, all fail, and the registry is `Down` ([`super::address`]):
//! from then on requests are not repeated, until it has answered.
//!
//! [`Schedule`] and [`RetryBudget`] are pure; [`Repeats`] lets requests wait by them.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::Instant;

use super::error::ErrorKind;
use super::question::Kind;

/// The budget looks back so long.
const BUDGET_SECONDS: u64 = 10;
/// So many repeats are always allowed within that time.
const LEAST_REPEATS: u32 = 10;
/// More of them, if there were so many requests for each.
const REQUESTS_FOR_A_REPEAT: u32 = 5;
/// A repeat that is not answered keeps others from theirs for so long.
const TURN: Duration = Duration::from_secs(1);
/// Requests that go on when the registry answers again do so within this time, so that they do not come all at once.
const RELEASED_WITHIN: Duration = Duration::from_millis(50);

/// How long and how often to repeat.
#[derive(Clone, Copy, Debug)]
pub(super) struct Policy {
    /// The first pause; each is twice as long as the last, times 0.5 to 1.
    pub(super) pause: Duration,
    pub(super) repeats: u32,
    /// Nothing is repeated so long after the first failure.
    pub(super) ride_out: Duration,
}

/// When what failed is repeated, one request at a time. Pure.
#[derive(Clone, Debug)]
struct Schedule {
    policy: Policy,
    begun: Instant,
    repeats: u32,
    next: Instant,
    /// The repeat that has the turn: its number, and when it was sent.
    turn: Option<(u64, Instant)>,
}

impl Schedule {
    /// `dice`: a random number from 0 to 1, here and below.
    fn new(policy: Policy, now: Instant, dice: f64) -> Schedule {
        let mut schedule = Schedule {
            policy,
            begun: now,
            repeats: 0,
            next: now,
            turn: None,
        };
        schedule.pause(now, dice);
        schedule
    }

    fn pause(&mut self, now: Instant, dice: f64) {
        let full = self.policy.pause.saturating_mul(2u32.saturating_pow(self.repeats));
        self.next = now + full.mul_f64(0.5 + dice.clamp(0.0, 1.0) / 2.0);
    }

    /// Returns when the next repeat may be sent, unless the turn is given back before; `None` if all have been sent. A
    /// repeat that hangs loses its turn.
    fn due(&self) -> Option<Instant> {
        let is_free = |(_, sent): (u64, Instant)| sent + TURN;
        let due = self.turn.map_or(self.next, |turn| is_free(turn).max(self.next));
        (self.repeats < self.policy.repeats).then_some(due)
    }

    fn end(&self) -> Instant {
        self.begun + self.policy.ride_out
    }

    /// Returns whether nothing more is to come: no repeat, and no answer to one.
    fn is_over(&self, now: Instant) -> bool {
        self.repeats >= self.policy.repeats && self.turn.is_none() || now >= self.end()
    }

    /// The repeat of this number is sent.
    fn take(&mut self, number: u64, now: Instant, dice: f64) {
        self.repeats += 1;
        self.turn = Some((number, now));
        self.pause(now, dice);
    }

    /// The repeat of this number has ended, if it still has the turn.
    ///
    /// Returns whether it had.
    fn give_back(&mut self, number: u64) -> bool {
        self.turn.take_if(|(running, _)| *running == number).is_some()
    }

    /// The repeat of this number has failed: if it had the turn, the pause begins now.
    fn failed(&mut self, number: u64, now: Instant, dice: f64) {
        if self.give_back(number) {
            self.pause(now, dice);
        }
    }
}

/// How many repeats an upstream is sent beside the requests themselves: a fifth as many, and a few in any case. Pure.
#[derive(Debug, Default)]
struct RetryBudget {
    /// Requests and repeats of each second that had any, by its number since `begun`, oldest first.
    seconds: VecDeque<(u64, u32, u32)>,
    begun: Option<Instant>,
}

impl RetryBudget {
    fn note_request(&mut self, now: Instant) {
        self.second(now).1 += 1;
    }

    /// Takes one repeat, if one is left.
    fn take(&mut self, now: Instant) -> bool {
        self.second(now);
        let (mut requests, mut repeats) = (0u32, 0u32);
        for (_, asked, again) in &self.seconds {
            requests = requests.saturating_add(*asked);
            repeats = repeats.saturating_add(*again);
        }
        let is_left = repeats < LEAST_REPEATS.max(requests / REQUESTS_FOR_A_REPEAT);
        if is_left {
            self.second(now).2 += 1;
        }
        is_left
    }

    /// The counts of this second; what is older than the budget's time is forgotten.
    fn second(&mut self, now: Instant) -> &mut (u64, u32, u32) {
        let begun = *self.begun.get_or_insert(now);
        let number = now.saturating_duration_since(begun).as_secs();
        while self.seconds.front().is_some_and(|(n, ..)| n + BUDGET_SECONDS <= number) {
            self.seconds.pop_front();
        }
        if self.seconds.back().is_none_or(|(n, ..)| *n < number) {
            self.seconds.push_back((number, 0, 0));
        }
        let last = self.seconds.len() - 1;
        &mut self.seconds[last]
    }
}

/// The repeats of one upstream.
#[derive(Debug)]
pub(super) struct Repeats {
    policy: Policy,
    budget: Mutex<RetryBudget>,
    /// By kind of request: a registry that lists tags may fail to send blobs.
    outages: [Outage; Kind::COUNT],
}

/// Requests of one kind that failed, and wait together.
#[derive(Debug)]
struct Outage {
    state: Mutex<OutageState>,
    /// Held by whoever has waited longest: nobody else looks whether it is time.
    first: Semaphore,
    /// Told when a repeat has ended.
    ended: Notify,
    news: watch::Sender<News>,
}

#[derive(Debug, Default)]
struct OutageState {
    /// Requests that failed and have not come to their end. Without any, the outage is over.
    tickets: usize,
    /// Repeats so far, of all outages.
    sent: u64,
    schedule: Option<Schedule>,
}

/// What those who wait hear of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct News {
    /// Outages that ended with an answer.
    answered: u64,
    /// Outages that ended because all repeats had failed.
    given_up: u64,
}

/// One request that failed.
#[derive(Debug)]
pub(super) struct Ticket<'a> {
    outage: &'a Outage,
    news: watch::Receiver<News>,
    /// As it was when this request failed first.
    begun: (Instant, News),
    repeats: u32,
    /// Number of the repeat that is under way, unless it was released.
    repeat: Option<u64>,
    /// Whether it went on once without a turn, because the registry had answered another.
    was_released: bool,
}

/// What becomes of a request that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Repeat,
    /// It has failed.
    GiveUp,
    /// It has failed, with all its repeats and with nothing answered meanwhile.
    Exhausted,
}

impl Repeats {
    pub(super) fn new(policy: Policy) -> Repeats {
        Repeats {
            policy,
            budget: Mutex::default(),
            outages: std::array::from_fn(|_| Outage {
                state: Mutex::default(),
                first: Semaphore::new(1),
                ended: Notify::new(),
                news: watch::Sender::new(News::default()),
            }),
        }
    }

    pub(super) fn note_request(&self) {
        self.budget().note_request(Instant::now());
    }

    /// The registry itself has answered a request of this kind: those that wait go on.
    pub(super) fn note_answer(&self, kind: Kind) {
        let outage = self.outage(kind);
        if outage.state().schedule.take().is_some() {
            outage.news.send_modify(|news| news.answered += 1);
        }
    }

    /// Ends the repeats of this kind, because one of them ended in what no repeat mends: all that wait have failed.
    pub(super) fn end(&self, kind: Kind) {
        let outage = self.outage(kind);
        if outage.state().schedule.take().is_some() {
            outage.news.send_modify(|news| news.given_up += 1);
        }
    }

    fn outage(&self, kind: Kind) -> &Outage {
        &self.outages[kind as usize]
    }

    /// For a request of this kind that has just failed for the first time.
    pub(super) fn ticket(&self, kind: Kind) -> Ticket<'_> {
        let outage = self.outage(kind);
        outage.state().tickets += 1;
        let news = outage.news.subscribe();
        let begun = (Instant::now(), *news.borrow());
        Ticket {
            outage,
            news,
            begun,
            repeats: 0,
            repeat: None,
            was_released: false,
        }
    }

    /// Waits until the request may be repeated, after it failed with `error`; not beyond `deadline`.
    pub(super) async fn wait(&self, ticket: &mut Ticket<'_>, error: &ErrorKind, deadline: Instant) -> Next {
        let now = Instant::now();
        let outage = ticket.outage;
        let repeat = ticket.repeat.take();
        let until = {
            let mut state = outage.state();
            let schedule = &mut state.schedule;
            match (repeat, schedule.as_mut()) {
                (Some(number), Some(running)) => running.failed(number, now, fastrand::f64()),
                // Its requests wait for the answer to a repeat, and no longer for another.
                (None, Some(running)) if now >= running.end() => *schedule = None,
                _ => {}
            }
            let running = schedule.get_or_insert_with(|| Schedule::new(self.policy, now, fastrand::f64()));
            if running.is_over(now) || ticket.repeats >= self.policy.repeats {
                let is_over = running.is_over(now);
                if is_over {
                    *schedule = None;
                }
                drop(state);
                outage.ended.notify_one();
                if is_over {
                    outage.news.send_modify(|news| news.given_up += 1);
                }
                return ticket.give_up();
            }
            running.end().min(ticket.begun.0 + self.policy.ride_out)
        };
        outage.ended.notify_one();
        let asked_to_wait = match error {
            ErrorKind::Status { retry_after, .. } => retry_after.unwrap_or_default(),
            _ => Duration::ZERO,
        };
        // Whoever asks for more time than there is is not trouble that passes.
        if now + asked_to_wait >= until.min(deadline) {
            return Next::GiveUp;
        }
        let until = until.min(deadline);
        let repeat = tokio::select! {
            biased;
            next = ticket.hear() => {
                if next == Next::Repeat {
                    tokio::time::sleep(RELEASED_WITHIN.mul_f64(fastrand::f64())).await;
                }
                return next;
            }
            repeat = self.turn(outage, now + asked_to_wait) => repeat,
            () = tokio::time::sleep_until(until) => return Next::GiveUp,
        };
        match repeat {
            Some(number) => {
                ticket.repeat = Some(number);
                ticket.repeats += 1;
                Next::Repeat
            }
            None => Next::GiveUp,
        }
    }

    /// Waits for `earliest`, for all who have waited longer, and for the time of the next repeat, and takes the turn.
    /// Returns the repeat's number; `None` if the budget is spent.
    async fn turn(&self, outage: &Outage, earliest: Instant) -> Option<u64> {
        tokio::time::sleep_until(earliest).await;
        // Never closed.
        let _first = outage.first.acquire().await.ok();
        loop {
            let due = {
                let mut state = outage.state();
                let now = Instant::now();
                let OutageState { sent, schedule, .. } = &mut *state;
                let running = schedule.get_or_insert_with(|| Schedule::new(self.policy, now, fastrand::f64()));
                match running.due() {
                    // Looked at and taken under one lock: nobody else finds the turn free.
                    Some(due) if due <= now => {
                        if !self.budget().take(now) {
                            return None;
                        }
                        *sent += 1;
                        running.take(*sent, now, fastrand::f64());
                        return Some(*sent);
                    }
                    due => due,
                }
            };
            let is_due = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = is_due => {}
                () = outage.ended.notified() => {}
            }
        }
    }

    fn budget(&self) -> MutexGuard<'_, RetryBudget> {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Outage {
    fn state(&self) -> MutexGuard<'_, OutageState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        {
            let mut state = self.outage.state();
            state.tickets -= 1;
            if state.tickets == 0 {
                // The next hiccup is another one, with all its repeats.
                state.schedule = None;
            } else if let (Some(number), Some(running)) = (self.repeat, state.schedule.as_mut()) {
                running.give_back(number);
            }
        }
        self.outage.ended.notify_one();
    }
}

impl Ticket<'_> {
    /// Returns whether this request is the one that is repeated for all.
    pub(super) fn has_turn(&self) -> bool {
        self.repeat.is_some()
    }

    /// Returns whether the request was repeated and nothing has been answered since it failed first.
    pub(super) fn is_exhausted(&self) -> bool {
        self.repeats > 0 && self.give_up() == Next::Exhausted
    }

    /// Returns when the outage has ended, if this request has to do with that.
    async fn hear(&mut self) -> Next {
        loop {
            let before = *self.news.borrow_and_update();
            if self.news.changed().await.is_err() {
                return Next::GiveUp;
            }
            let now = *self.news.borrow();
            if now.given_up > before.given_up {
                return Next::GiveUp;
            }
            // Once: what fails although the registry answers others is repeated by the schedule.
            if now.answered > before.answered && !self.was_released {
                self.was_released = true;
                return Next::Repeat;
            }
        }
    }

    /// Whether nothing was answered since this request failed first.
    fn give_up(&self) -> Next {
        match self.news.borrow().answered == self.begun.1.answered {
            true => Next::Exhausted,
            false => Next::GiveUp,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const SECOND: Duration = Duration::from_secs(1);
    const POLICY: Policy = Policy {
        pause: Duration::from_millis(100),
        repeats: 5,
        ride_out: Duration::from_secs(5),
    };

    fn refused() -> ErrorKind {
        ErrorKind::Connect("refused".into())
    }

    fn busy(retry_after: Duration) -> ErrorKind {
        ErrorKind::Status {
            status: 503,
            detail: "".into(),
            retry_after: Some(retry_after),
        }
    }

    fn far(now: Instant) -> Instant {
        now + SECOND * 20
    }

    proptest! {
        /// Each pause is between half of its time and all of it, and there are five.
        #[test]
        fn pauses_double(dice in prop::collection::vec(0f64..=1.0, 6)) {
            let begun = Instant::now();
            let (mut now, mut schedule) = (begun, Schedule::new(POLICY, begun, dice[0]));
            for (n, dice) in (0..5).zip(&dice[1..]) {
                let full = MS * 100 * 2u32.pow(n);
                let due = schedule.due().unwrap();
                let pause = due - now;
                prop_assert!(pause >= full / 2 && pause <= full, "{} {:?}", n, pause);
                prop_assert!(!schedule.is_over(now));
                now = due;
                schedule.take(u64::from(n), now, *dice);
                // Until it is answered, only its silence makes room for the next.
                prop_assert!(schedule.due().is_none_or(|due| due >= now + TURN) && !schedule.is_over(now));
                schedule.failed(u64::from(n), now, *dice);
            }
            prop_assert!(schedule.is_over(now));
            prop_assert!(now - begun <= MS * 3100);
        }

        /// Never more repeats in any ten seconds than ten, or a fifth of the requests of eleven; and ten are always there.
        #[test]
        fn the_budget_holds(steps in prop::collection::vec((any::<bool>(), 0u64..300), 1..400)) {
            let mut budget = RetryBudget::default();
            let (begun, mut at) = (Instant::now(), Duration::ZERO);
            let (mut requests, mut repeats): (Vec<Duration>, Vec<Duration>) = Default::default();
            for (is_request, ms) in steps {
                at += Duration::from_millis(ms);
                if is_request {
                    budget.note_request(begun + at);
                    requests.push(at);
                    continue;
                }
                let within = |list: &[Duration], seconds: u32| {
                    list.iter().filter(|then| at - **then < SECOND * seconds).count()
                };
                let taken = budget.take(begun + at);
                // Seconds are counted whole.
                let (fewest, most) = (within(&requests, 9) / 5, within(&requests, 10) / 5);
                if within(&repeats, 10) < 10.max(fewest) {
                    prop_assert!(taken);
                }
                if within(&repeats, 9) >= 10.max(most) {
                    prop_assert!(!taken);
                }
                if taken {
                    repeats.push(at);
                }
            }
        }
    }

    /// One request alone: five repeats, then the registry counts as down.
    #[tokio::test(start_paused = true)]
    async fn one_request_is_repeated_five_times() {
        let repeats = Repeats::new(POLICY);
        let begun = Instant::now();
        let mut ticket = repeats.ticket(Kind::Blob);
        for _ in 0..5 {
            assert_eq!(repeats.wait(&mut ticket, &refused(), far(begun)).await, Next::Repeat);
        }
        assert_eq!(repeats.wait(&mut ticket, &refused(), far(begun)).await, Next::Exhausted);
        let took = begun.elapsed();
        assert!(took >= MS * 1550 && took <= MS * 3200, "{took:?}");
    }

    /// Many requests fail together: they are repeated one at a time, and go on together at the first answer.
    #[tokio::test(start_paused = true)]
    async fn many_wait_for_one() {
        let repeats = Arc::new(Repeats::new(POLICY));
        let begun = Instant::now();
        let well_at = begun + MS * 250;
        let (running, most) = (Arc::new(Mutex::new((0, 0))), Arc::new(Mutex::new(0)));
        let asking = (0..100).map(|_| {
            let (repeats, running, most) = (repeats.clone(), running.clone(), most.clone());
            tokio::spawn(async move {
                let mut ticket = repeats.ticket(Kind::Blob);
                loop {
                    let next = repeats.wait(&mut ticket, &refused(), far(begun)).await;
                    assert_eq!(next, Next::Repeat);
                    let is_well = Instant::now() >= well_at;
                    if !is_well {
                        let mut counts = running.lock().unwrap();
                        counts.0 += 1;
                        counts.1 += 1;
                        let mut most = most.lock().unwrap();
                        *most = counts.1.max(*most);
                    }
                    tokio::time::sleep(MS * 5).await;
                    if is_well {
                        repeats.note_answer(Kind::Blob);
                        return;
                    }
                    running.lock().unwrap().1 -= 1;
                }
            })
        });
        for asked in asking.collect::<Vec<_>>() {
            asked.await.unwrap();
        }
        assert!(begun.elapsed() < SECOND, "{:?}", begun.elapsed());
        let asked = running.lock().unwrap().0;
        assert!((1..=3).contains(&asked), "{asked} repeats while it was down");
        assert_eq!(*most.lock().unwrap(), 1);
    }

    /// When all repeats have failed, all who wait have failed; who comes later begins anew.
    #[tokio::test(start_paused = true)]
    async fn an_outage_ends_for_all() {
        let repeats = Arc::new(Repeats::new(POLICY));
        let begun = Instant::now();
        let asking = (0..20).map(|_| {
            let repeats = repeats.clone();
            tokio::spawn(async move {
                let mut ticket = repeats.ticket(Kind::Manifest);
                loop {
                    match repeats.wait(&mut ticket, &refused(), far(begun)).await {
                        Next::Repeat => {}
                        ended => return ended,
                    }
                }
            })
        });
        let mut ended = Vec::new();
        for asked in asking.collect::<Vec<_>>() {
            ended.push(asked.await.unwrap());
        }
        assert!(begun.elapsed() <= MS * 3200, "{:?}", begun.elapsed());
        assert_eq!(
            ended.iter().filter(|next| **next == Next::Exhausted).count(),
            1,
            "{ended:?}"
        );
        let mut later = repeats.ticket(Kind::Manifest);
        assert_eq!(
            repeats.wait(&mut later, &refused(), far(Instant::now())).await,
            Next::Repeat
        );
    }

    /// A request whose client goes away takes nobody's turn along.
    #[tokio::test(start_paused = true)]
    async fn who_goes_away_gives_up_the_turn() {
        let repeats = Repeats::new(POLICY);
        let deadline = far(Instant::now());
        let mut gone = repeats.ticket(Kind::Blob);
        assert_eq!(repeats.wait(&mut gone, &refused(), deadline).await, Next::Repeat);
        let mut waits = repeats.ticket(Kind::Blob);
        {
            let error = refused();
            let mut waiting = std::pin::pin!(repeats.wait(&mut waits, &error, deadline));
            let waited = tokio::time::timeout(TURN / 2, &mut waiting).await;
            assert!(waited.is_err(), "one at a time");
            drop(gone);
            assert_eq!(tokio::time::timeout(MS, &mut waiting).await, Ok(Next::Repeat));
        }
    }

    /// A repeat that hangs keeps others from theirs for a second only.
    #[tokio::test(start_paused = true)]
    async fn a_repeat_that_hangs_gives_up_the_turn() {
        let repeats = Repeats::new(POLICY);
        let begun = Instant::now();
        let mut hang = vec![repeats.ticket(Kind::Blob)];
        assert_eq!(repeats.wait(&mut hang[0], &refused(), far(begun)).await, Next::Repeat);
        let sent = Instant::now();
        for n in 1..=3 {
            let mut other = repeats.ticket(Kind::Blob);
            assert_eq!(repeats.wait(&mut other, &refused(), far(begun)).await, Next::Repeat);
            let took = sent.elapsed();
            assert!(took >= TURN * n && took < TURN * n + MS * 5, "{took:?}");
            hang.push(other);
        }
        // One that has lost its turn takes nobody's along.
        drop(hang.remove(0));
        let mut other = repeats.ticket(Kind::Blob);
        assert_eq!(repeats.wait(&mut other, &refused(), far(begun)).await, Next::Repeat);
        assert!(sent.elapsed() >= TURN * 4, "{:?}", sent.elapsed());
    }

    /// However many wait for one that hangs, and on however many threads: the next one goes alone.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn behind_a_repeat_that_hangs_one_goes_at_a_time() {
        // The pause is longer than a turn: when it ends, all have waited for longer than that.
        let policy = Policy {
            pause: SECOND * 12 / 10,
            ride_out: SECOND * 20,
            ..POLICY
        };
        let repeats = Arc::new(Repeats::new(policy));
        let begun = Instant::now();
        let sent: Arc<Mutex<Vec<Instant>>> = Arc::default();
        let asking = (0..200).map(|_| {
            let (repeats, sent) = (repeats.clone(), sent.clone());
            tokio::spawn(async move {
                let mut ticket = repeats.ticket(Kind::Blob);
                if repeats.wait(&mut ticket, &refused(), far(begun)).await == Next::Repeat {
                    sent.lock().unwrap().push(Instant::now());
                    std::future::pending::<()>().await;
                }
            })
        });
        let asking: Vec<_> = asking.collect();
        tokio::time::sleep(SECOND * 4).await;
        asking.iter().for_each(|asked| asked.abort());
        let sent = sent.lock().unwrap();
        assert!(sent.len() >= 2, "in 4 s: {sent:?}");
        let is_apart = |pair: &[Instant]| pair[1] - pair[0] >= TURN;
        assert!(sent.windows(2).all(is_apart), "{sent:?}");
    }

    /// The end of the outage is one for all that wait.
    #[tokio::test(start_paused = true)]
    async fn an_end_is_one_for_all() {
        let repeats = Arc::new(Repeats::new(POLICY));
        let begun = Instant::now();
        let asking = (0..20).map(|_| {
            let repeats = repeats.clone();
            tokio::spawn(async move {
                let mut ticket = repeats.ticket(Kind::Blob);
                let next = repeats.wait(&mut ticket, &refused(), far(begun)).await;
                if ticket.has_turn() {
                    tokio::time::sleep(MS).await;
                    repeats.end(Kind::Blob);
                }
                next
            })
        });
        let mut ended = Vec::new();
        for asked in asking.collect::<Vec<_>>() {
            ended.push(asked.await.unwrap());
        }
        assert!(begun.elapsed() <= MS * 102, "{:?}", begun.elapsed());
        assert_eq!(
            ended.iter().filter(|next| **next == Next::GiveUp).count(),
            19,
            "{ended:?}"
        );
    }

    /// An outage whose requests have all gone away leaves nothing to the next one.
    #[tokio::test(start_paused = true)]
    async fn what_nobody_waits_for_is_over() {
        let repeats = Repeats::new(POLICY);
        let begun = Instant::now();
        let mut gone = repeats.ticket(Kind::Blob);
        for _ in 0..5 {
            assert_eq!(repeats.wait(&mut gone, &refused(), far(begun)).await, Next::Repeat);
        }
        // Its client leaves while the last repeat is under way.
        drop(gone);
        let mut next = repeats.ticket(Kind::Blob);
        for _ in 0..5 {
            assert_eq!(repeats.wait(&mut next, &refused(), far(begun)).await, Next::Repeat);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_for_time_gets_it_or_is_left_alone() {
        let repeats = Repeats::new(POLICY);
        let begun = Instant::now();
        let mut ticket = repeats.ticket(Kind::Blob);
        assert_eq!(
            repeats.wait(&mut ticket, &busy(SECOND * 2), far(begun)).await,
            Next::Repeat
        );
        assert!(begun.elapsed() >= SECOND * 2);
        assert_eq!(
            repeats.wait(&mut ticket, &busy(SECOND * 30), far(begun)).await,
            Next::GiveUp
        );
        assert!(begun.elapsed() < SECOND * 3);
    }

    /// The budget is the upstream's; without it nothing waits.
    #[tokio::test(start_paused = true)]
    async fn beyond_the_budget_nothing_is_repeated() {
        let repeats = Repeats::new(POLICY);
        let now = Instant::now();
        (0..LEAST_REPEATS).for_each(|_| assert!(repeats.budget().take(now)));
        let mut ticket = repeats.ticket(Kind::Blob);
        assert_eq!(repeats.wait(&mut ticket, &refused(), far(now)).await, Next::GiveUp);
        (0..60).for_each(|_| repeats.note_request());
        let mut ticket = repeats.ticket(Kind::Blob);
        assert_eq!(repeats.wait(&mut ticket, &refused(), far(now)).await, Next::Repeat);
    }

    /// A deadline that is near leaves no time for a repeat.
    #[tokio::test(start_paused = true)]
    async fn deadlines_hold() {
        let repeats = Repeats::new(POLICY);
        let deadline = Instant::now() + MS * 20;
        let mut ticket = repeats.ticket(Kind::Blob);
        assert_eq!(repeats.wait(&mut ticket, &refused(), deadline).await, Next::GiveUp);
        assert!(Instant::now() < deadline + MS * 2);
    }
}
