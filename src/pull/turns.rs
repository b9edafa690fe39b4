//! Turns of long lists: how many come at once, from how many upstreams, and which may lie in memory.
//!
//! A turn ends when the list is kept. While it lasts the upstream is waited for, so one upstream has half of the turns at
//! most, and a list that comes too slowly loses its turn as soon as another waits for one. What the disk does not take
//! lies in memory, of which there is a budget of its own: what nobody reads on gives its part back.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;

use crate::oci::HostPort;
use crate::store::{ListRecord, Loan};

/// How long a list waits for its turn: its upstream, which is not read meanwhile, would not wait longer either.
const TURN_WAIT: Duration = Duration::from_secs(60);
/// A list for which others wait has so long, and a second more for so many bytes that came. Small pages that are each
/// asked for come no faster.
const GRACE: Duration = Duration::from_secs(3);
const PACE_BYTES: u64 = 8 * 1024;
/// Memory for lists that the disk does not take, in KiB: two of the longest.
const MEMORY_KIB: u32 = 32 * 1024;
/// The longest list, in KiB.
const LONGEST_KIB: u32 = 16 * 1024;
/// How long a list waits for such memory. It has its turn meanwhile.
const MEMORY_WAIT: Duration = Duration::from_secs(5);
/// A list in memory lies there for so long, and a second more for so many bytes that were read of it.
const STALL: Duration = Duration::from_secs(30);
const READ_PACE_BYTES: u64 = 64 * 1024;

pub(super) struct Turns {
    all: Arc<Queue>,
    most_of_one: usize,
    of_each: Mutex<HashMap<HostPort, Arc<Queue>>>,
    memory: Arc<Semaphore>,
}

struct Queue {
    free: Arc<Semaphore>,
    waiting: watch::Sender<usize>,
}

impl Queue {
    fn new(most: usize) -> Arc<Queue> {
        Arc::new(Queue {
            free: Arc::new(Semaphore::new(most)),
            waiting: watch::Sender::new(0),
        })
    }

    async fn enter(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(permit) = self.free.clone().try_acquire_owned() {
            return Some(permit);
        }
        let _waits = Waits::begin(&self.waiting);
        // It is never closed.
        self.free.clone().acquire_owned().await.ok()
    }
}

/// Counted among those who wait.
struct Waits<'a>(&'a watch::Sender<usize>);

impl Waits<'_> {
    fn begin(waiting: &watch::Sender<usize>) -> Waits<'_> {
        waiting.send_modify(|n| *n += 1);
        Waits(waiting)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|n| *n -= 1);
    }
}

/// One list's turn. It ends when this is dropped.
pub(super) struct Turn {
    own: Arc<Queue>,
    all: Arc<Queue>,
    came: AtomicU64,
    waited: Mutex<Duration>,
    _permits: [OwnedSemaphorePermit; 2],
}

impl Turn {
    pub(super) fn note(&self, bytes: u64) {
        self.came.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Returns when the upstream has been waited for too long and another list waits for a turn. Dropped before that, it
    /// counts what was waited.
    pub(super) async fn is_over(&self) {
        let _counts = Counts {
            begun: Instant::now(),
            waited: &self.waited,
        };
        let waited = *self.waited.lock().unwrap_or_else(PoisonError::into_inner);
        let allowed = GRACE + seconds_for(self.came.load(Ordering::Relaxed), PACE_BYTES);
        tokio::time::sleep(allowed.saturating_sub(waited)).await;
        let (mut own, mut all) = (self.own.waiting.subscribe(), self.all.waiting.subscribe());
        tokio::select! {
            _ = own.wait_for(|waiting| *waiting > 0) => {}
            _ = all.wait_for(|waiting| *waiting > 0) => {}
        }
    }
}

/// Adds the time that it lives.
struct Counts<'a> {
    begun: Instant,
    waited: &'a Mutex<Duration>,
}

impl Drop for Counts<'_> {
    fn drop(&mut self) {
        *self.waited.lock().unwrap_or_else(PoisonError::into_inner) += self.begun.elapsed();
    }
}

fn seconds_for(bytes: u64, a_second: u64) -> Duration {
    Duration::from_millis(bytes.saturating_mul(1000) / a_second)
}

impl Turns {
    pub(super) fn new(at_once: usize) -> Turns {
        Turns {
            all: Queue::new(at_once),
            most_of_one: (at_once / 2).max(1),
            of_each: Mutex::default(),
            memory: Arc::new(Semaphore::new(MEMORY_KIB as usize)),
        }
    }

    /// Waits for a turn. `None` if that takes too long.
    pub(super) async fn turn(&self, upstream: &HostPort) -> Option<Turn> {
        let own = {
            let mut of_each = self.of_each.lock().unwrap_or_else(PoisonError::into_inner);
            let own = of_each.entry(upstream.clone());
            own.or_insert_with(|| Queue::new(self.most_of_one)).clone()
        };
        let entering = async {
            // Its own first: one upstream's lists do not stand before all others.
            let first = own.enter().await?;
            Some([first, self.all.enter().await?])
        };
        let permits = tokio::time::timeout(TURN_WAIT, entering).await.ok().flatten()?;
        Some(Turn {
            all: self.all.clone(),
            came: AtomicU64::new(0),
            waited: Mutex::default(),
            _permits: permits,
            own,
        })
    }

    /// Memory for a list of any length. `None` if none becomes free soon.
    pub(super) async fn memory(&self) -> Option<OwnedSemaphorePermit> {
        let taking = self.memory.clone().acquire_many_owned(LONGEST_KIB);
        tokio::time::timeout(MEMORY_WAIT, taking).await.ok()?.ok()
    }

    /// Gives a list that is in memory out on loan, and back what it does not need of its memory. `None` if there is no
    /// memory for it.
    pub(super) fn lend(&self, record: ListRecord, memory: Option<OwnedSemaphorePermit>) -> Option<ListRecord> {
        let kib = usize::try_from(record.len().div_ceil(1024)).unwrap_or(usize::MAX);
        let permit = match memory {
            Some(mut permit) => {
                let more = permit.num_permits().saturating_sub(kib);
                drop(permit.split(more));
                permit
            }
            None => {
                let kib = u32::try_from(kib).ok()?;
                self.memory.clone().try_acquire_many_owned(kib).ok()?
            }
        };
        let (record, loan) = record.lent(Box::new(permit));
        tokio::spawn(end_when_due(loan));
        Some(record)
    }
}

async fn end_when_due(loan: Weak<Loan>) {
    let begun = Instant::now();
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let Some(loan) = loan.upgrade() else { return };
        if begun.elapsed() >= STALL + seconds_for(loan.read(), READ_PACE_BYTES) {
            tracing::debug!("a list that is not kept was read too slowly: its memory is taken back");
            loan.end();
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str) -> HostPort {
        name.parse().unwrap()
    }

    /// One upstream has half of the turns, and whoever waits for too long is told so.
    #[tokio::test(start_paused = true)]
    async fn turns_are_shared() {
        let turns = Turns::new(4);
        let first = turns.turn(&of("a.example")).await.unwrap();
        let _second = turns.turn(&of("a.example")).await.unwrap();
        let _other = turns.turn(&of("b.example")).await.unwrap();
        let begun = Instant::now();
        assert!(turns.turn(&of("a.example")).await.is_none());
        assert_eq!(begun.elapsed().as_secs(), TURN_WAIT.as_secs());
        drop(first);
        assert!(turns.turn(&of("a.example")).await.is_some());
    }

    /// A turn is over when its list is slow and another waits, and not before that.
    #[tokio::test(start_paused = true)]
    async fn slow_lists_lose_their_turn_to_others() {
        let turns = Turns::new(1);
        let turn = turns.turn(&of("a.example")).await.unwrap();
        turn.note(PACE_BYTES * 4);
        let hour = Duration::from_secs(3600);
        assert!(
            tokio::time::timeout(hour, turn.is_over()).await.is_err(),
            "nobody waits"
        );
        turn.note(PACE_BYTES * 3600);
        let begun = Instant::now();
        let other = of("b.example");
        let (other, ()) = tokio::join!(turns.turn(&other), async {
            turn.is_over().await;
            drop(turn);
        });
        assert!(other.is_some());
        // Seven seconds were left of it.
        assert_eq!(begun.elapsed().as_secs(), 7);
    }

    /// What nobody reads on gives its memory back, and whoever reads on has more time.
    #[tokio::test(start_paused = true)]
    async fn lists_in_memory_are_on_loan() {
        let turns = Turns::new(1);
        let list = |bytes: usize| ListRecord::of_lines(1, vec![b'\n'; bytes]);
        let memory = turns.memory().await;
        let still = turns.lend(list(15 << 20), memory).unwrap();
        let read = turns.lend(list(16 << 20), turns.memory().await).unwrap();
        assert!(turns.memory().await.is_none());
        assert!(turns.lend(list(2 << 20), None).is_none());
        for at in 0..40 {
            read.chunk(at * 65_536..(at + 1) * 65_536).unwrap();
        }
        tokio::time::sleep(Duration::from_secs(31)).await;
        assert!(still.chunk(0..9).is_err());
        assert!(read.chunk(0..9).is_ok());
        assert!(turns.memory().await.is_some());
        drop(read);
        let _all = (turns.memory().await.unwrap(), turns.memory().await.unwrap());
    }
}
