//! What a connection is doing, and until when it may go on like that (R-X13).
//!
//! The wire tells of bytes, `answer` tells of requests, and [`Pulse::overdue`] tells the connection when its time is up.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::delivery::{Delivered, DeliveryReport};
use crate::config::Limits;

/// A client may read as slowly as it likes, but not nothing at all for this long while bytes wait for it.
pub(super) const STALLED: Duration = Duration::from_secs(600);

/// Why a connection was ended by us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Overdue {
    /// A request was begun and its head (or small body) did not arrive in time.
    Header,
    /// No request, for long.
    Idle,
    /// The client stopped reading its response.
    Stalled,
}

impl Overdue {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Overdue::Header => "header_timeout",
            Overdue::Idle => "idle_timeout",
            Overdue::Stalled => "stalled",
        }
    }

    /// Why responses were cut by it.
    pub(super) fn why(self) -> &'static str {
        match self {
            Overdue::Header => "the client began a request and did not send the rest within limits.header_timeout",
            Overdue::Idle => "the client asked for nothing within limits.idle_timeout",
            Overdue::Stalled => "the client took nothing for 10 minutes",
        }
    }
}

pub(super) struct Pulse {
    /// In HTTP/2 bytes come without a request being begun (pings, window updates), so reads tell nothing.
    reads_begin_requests: bool,
    /// Bytes of bodies that hyper has and the socket has not. Counted for HTTP/2 only, as is the next.
    unsent: AtomicU64,
    /// Bytes of bodies that the socket has taken since the beginning.
    sent: AtomicU64,
    state: Mutex<State>,
}

struct State {
    /// Requests whose response has not left: hyper holds bytes of it still, or waits for more.
    running: usize,
    /// Since when a request's head is arriving.
    heading: Option<Instant>,
    /// The last end of a response, or the start of the connection.
    idle: Instant,
    /// The last time the client took bytes, or ceased to.
    wrote: Instant,
    /// The client has not taken all it was offered.
    blocked: bool,
    /// Something was written since the last flush: a TLS session may hold it.
    unflushed: bool,
    /// The connection is over.
    gone: bool,
    /// Reports of responses that have left but for a flush.
    leaving: VecDeque<Box<dyn DeliveryReport>>,
    broken: Option<Break>,
    /// Why the connection is ended with responses on it.
    cut: Option<&'static str>,
}

impl State {
    /// True if bytes of responses that have left may still be on this side of the socket.
    fn is_holding(&self) -> bool {
        self.unflushed || self.blocked
    }
}

/// How to end a connection whose response broke off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Break {
    /// The client can count, and sees that bytes are missing.
    Short,
    /// The end of the connection would look like the end of the response: reset it (L2).
    Reset,
}

impl Pulse {
    pub(super) fn new(http2: bool) -> Arc<Pulse> {
        let now = Instant::now();
        let state = State {
            running: 0,
            heading: None,
            idle: now,
            wrote: now,
            blocked: false,
            unflushed: false,
            gone: false,
            leaving: VecDeque::new(),
            broken: None,
            cut: None,
        };
        Arc::new(Pulse {
            reads_begin_requests: !http2,
            unsent: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            state: Mutex::new(state),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes came in.
    pub(super) fn read(&self) {
        let mut state = self.state();
        if self.reads_begin_requests && state.running == 0 && state.heading.is_none() {
            state.heading = Some(Instant::now());
        }
    }

    /// So many bytes of a body are to be sent.
    pub(super) fn queued(&self, bytes: u64) {
        if !self.reads_begin_requests {
            self.unsent.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// The socket took so many of them.
    pub(super) fn sent(&self, bytes: u64) {
        if !self.reads_begin_requests {
            self.sent.fetch_add(bytes, Ordering::Relaxed);
            self.unsent.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    /// Bytes of bodies that the socket of an HTTP/2 connection has taken since the beginning.
    pub(super) fn has_sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Bytes were offered to the client; whether it took some.
    pub(super) fn wrote(&self, some: bool) {
        let mut state = self.state();
        // Who stands still does so from the first offer that was not taken, however long there was none before.
        if some || !state.blocked {
            state.wrote = Instant::now();
        }
        state.blocked = !some;
        state.unflushed |= some;
    }

    /// All that was written has left this process. Tells whether the connection is to be ended.
    pub(super) fn flushed(&self) -> Option<Break> {
        let mut state = self.state();
        state.unflushed = false;
        let (broken, why) = (state.broken, state.cut);
        let (first, more) = (state.leaving.pop_front(), std::mem::take(&mut state.leaving));
        // The usual one report leaves the queue its memory.
        if more.is_empty() {
            state.leaving = more;
            drop(state);
            if let Some(report) = first {
                report.record(Delivered::Whole, why);
            }
        } else {
            drop(state);
            for report in first.into_iter().chain(more) {
                report.record(Delivered::Whole, why);
            }
        }
        broken
    }

    /// The connection is over: what was not flushed never will be.
    pub(super) fn gone(&self) {
        let mut state = self.state();
        state.gone = true;
        let (cut, why) = (std::mem::take(&mut state.leaving), state.cut);
        drop(state);
        for report in cut {
            report.record(Delivered::Cut { unsent: 0 }, why);
        }
    }

    /// The connection is ended now, with responses on it that are not whole: their lines in the log say why.
    pub(super) fn cut(&self, why: &'static str) {
        self.state().cut.get_or_insert(why);
    }

    /// A request is complete; its response runs until [`Pulse::left`]. Tells how many others do.
    pub(super) fn begin(&self) -> usize {
        let mut state = self.state();
        state.running += 1;
        state.heading = None;
        state.running - 1
    }

    /// A response is over: hyper has let go of its body and of each piece, of which `unsent` bytes were not written.
    pub(super) fn left(&self, unsent: u64, report: Option<Box<dyn DeliveryReport>>) {
        if unsent > 0 && !self.reads_begin_requests {
            self.unsent.fetch_sub(unsent, Ordering::Relaxed);
        }
        let mut state = self.state();
        state.running -= 1;
        if state.running == 0 {
            state.idle = Instant::now();
        }
        let Some(report) = report else { return };
        let delivered = match (unsent, state.is_holding()) {
            (0, false) => Delivered::Whole,
            (0, true) if !state.gone => return state.leaving.push_back(report),
            _ => Delivered::Cut { unsent },
        };
        let why = state.cut;
        drop(state);
        report.record(delivered, why);
    }

    /// A response broke off: end the connection as soon as what was sent before is on its way.
    pub(super) fn break_off(&self, how: Break) {
        self.state().broken = Some(how);
    }

    pub(super) fn broken(&self) -> Option<Break> {
        self.state().broken
    }

    /// Since when no request is there, none is arriving, and nothing of a response is on this side of the socket.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        let state = self.state();
        let is_idle = state.running == 0 && state.heading.is_none() && !state.is_holding();
        is_idle.then(|| state.idle.max(state.wrote))
    }

    /// The deadline as things stand. A response that ended for us may still be on its way to a slow client,
    /// hence no deadline counts from before the client last took bytes.
    fn deadline(&self, limits: &Limits) -> (Instant, Overdue) {
        let state = self.state();
        match (state.running, state.heading) {
            (0, Some(since)) => (since.max(state.wrote) + limits.header_timeout, Overdue::Header),
            (0, None) => (state.idle.max(state.wrote) + limits.idle_timeout, Overdue::Idle),
            _ if state.blocked => (state.wrote + STALLED, Overdue::Stalled),
            _ => (Instant::now() + STALLED, Overdue::Stalled),
        }
    }

    /// Returns when the connection has to be ended.
    ///
    /// Nothing that happens sets a deadline nearer to it than the shortest limit: who looks that often misses none, and
    /// need not be woken by every request.
    pub(super) async fn overdue(&self, limits: &Limits) -> Overdue {
        let look_every = limits.header_timeout.min(limits.idle_timeout).min(STALLED);
        let mut taken = (self.sent.load(Ordering::Relaxed), Instant::now());
        loop {
            let now = Instant::now();
            let (deadline, why) = self.deadline(limits);
            // An HTTP/2 client whose windows are shut may answer our pings all the same, so the socket is no witness.
            let sent = self.sent.load(Ordering::Relaxed);
            if sent != taken.0 || self.unsent.load(Ordering::Relaxed) == 0 {
                taken = (sent, now);
            }
            let (deadline, why) = match taken.1 + STALLED {
                stalled if stalled < deadline => (stalled, Overdue::Stalled),
                _ => (deadline, why),
            };
            if deadline <= now {
                return why;
            }
            tokio::time::sleep_until(deadline.min(now + look_every)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits {
            max_connections: 1,
            max_connections_per_client: 1,
            header_bytes: 1,
            headers: 1,
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            manifest_size: 1 << 20,
            manifest_descriptors: 1,
        }
    }

    /// How many seconds until the connection is overdue, and why; time is virtual.
    async fn overdue(pulse: &Pulse) -> (u64, Overdue) {
        let start = Instant::now();
        let why = pulse.overdue(&limits()).await;
        (start.elapsed().as_secs(), why)
    }

    #[tokio::test(start_paused = true)]
    async fn silence_and_half_a_head() {
        let pulse = Pulse::new(false);
        assert_eq!(overdue(&pulse).await, (75, Overdue::Idle));
        pulse.read();
        tokio::time::sleep(Duration::from_secs(4)).await;
        pulse.read();
        assert_eq!(overdue(&pulse).await, (6, Overdue::Header), "more bytes buy no time");
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_handler_has_time_and_a_standing_reader_little() {
        let pulse = Pulse::new(false);
        pulse.begin();
        assert!(
            tokio::time::timeout(Duration::from_secs(5000), pulse.overdue(&limits()))
                .await
                .is_err()
        );
        pulse.wrote(true);
        pulse.wrote(false);
        assert_eq!(overdue(&pulse).await, (600, Overdue::Stalled));
        pulse.left(0, None);
        assert_eq!(overdue(&pulse).await, (75, Overdue::Idle));
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_first_byte_may_wait_as_long_as_any_other() {
        let pulse = Pulse::new(false);
        pulse.begin();
        tokio::time::sleep(Duration::from_secs(1000)).await;
        pulse.wrote(false);
        tokio::time::sleep(Duration::from_secs(200)).await;
        pulse.wrote(false);
        assert_eq!(
            overdue(&pulse).await,
            (400, Overdue::Stalled),
            "offering again buys no time"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn shut_windows_are_a_standing_reader_however_often_it_answers_pings() {
        let pulse = Pulse::new(true);
        pulse.begin();
        pulse.queued(1024);
        let pinging = {
            let pulse = pulse.clone();
            tokio::spawn(async move {
                loop {
                    tokio::time::sleep(Duration::from_secs(30)).await;
                    pulse.wrote(true);
                }
            })
        };
        let (after, why) = overdue(&pulse).await;
        assert!(
            (600..=610).contains(&after) && why == Overdue::Stalled,
            "{after} s, {why:?}"
        );
        // One byte in a while is enough.
        let reading = {
            let pulse = pulse.clone();
            tokio::spawn(async move {
                for _ in 0..10 {
                    tokio::time::sleep(Duration::from_secs(500)).await;
                    pulse.sent(1);
                }
            })
        };
        let (after, why) = overdue(&pulse).await;
        assert!(
            (5600..=5610).contains(&after) && why == Overdue::Stalled,
            "{after} s, {why:?}"
        );
        pinging.abort();
        reading.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_still_being_taken_is_not_idle() {
        let pulse = Pulse::new(false);
        pulse.begin();
        pulse.left(0, None);
        tokio::time::sleep(Duration::from_secs(50)).await;
        pulse.wrote(true);
        assert_eq!(overdue(&pulse).await, (75, Overdue::Idle));
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_begins_brings_the_deadline_nearer() {
        let pulse = Pulse::new(false);
        let watching = {
            let pulse = pulse.clone();
            tokio::spawn(async move { overdue(&pulse).await })
        };
        tokio::time::sleep(Duration::from_secs(1)).await;
        pulse.read();
        assert_eq!(watching.await.unwrap(), (11, Overdue::Header));
    }
}
