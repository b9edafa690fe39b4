//! Lets logins wait for their turn to be hashed: [`LoginQueue`] with a clock, a lock and wake-ups.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::login_queue::{Client, Limits, LoginQueue, Next, Outcome, Ticket};

/// How long a login waits for its turn before its client hears that there are too many.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// The queues of one password file, which outlive a reload. All clones are in an `Arc`: turns come back by themselves.
pub struct LoginTurns {
    state: Mutex<State>,
    started: Instant,
}

struct State {
    queue: LoginQueue,
    /// The logins that wait.
    wakers: HashMap<Ticket, oneshot::Sender<()>>,
    /// When a task looks again, if one is under way.
    alarm: Option<Duration>,
}

/// A place in the queue, and then the right to hash one password. Gives both back when it is dropped.
pub struct Turn {
    turns: Arc<LoginTurns>,
    client: Client,
    ticket: Ticket,
}

impl LoginTurns {
    pub fn new(limits: Limits) -> Arc<LoginTurns> {
        Arc::new(LoginTurns {
            state: Mutex::new(State {
                queue: LoginQueue::new(limits),
                wakers: HashMap::new(),
                alarm: None,
            }),
            started: Instant::now(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Waits for the client's turn. `None`: there is no place, or it takes too long.
    pub async fn wait(self: &Arc<Self>, client: Client) -> Option<Turn> {
        let (waker, woken) = oneshot::channel();
        let ticket = {
            let mut state = self.state();
            let Ok(queued) = state.queue.enqueue(client, self.now()) else {
                state.queue.note_busy(client, self.now());
                return None;
            };
            if let Some(displaced) = queued.displaced {
                // Its waker goes with it, and it hears of that.
                state.wakers.remove(&displaced);
            }
            state.wakers.insert(queued.ticket, waker);
            queued.ticket
        };
        let turn = Turn {
            turns: self.clone(),
            client,
            ticket,
        };
        self.begin_checks();
        match tokio::time::timeout(LONGEST_WAIT, woken).await {
            Ok(Ok(())) => Some(turn),
            _ => {
                self.state().queue.note_busy(client, self.now());
                None
            }
        }
    }

    /// A turn for a check that can be left out, without waiting: only where nothing else is to be done.
    pub fn take_if_idle(self: &Arc<Self>, client: Client) -> Option<Turn> {
        let ticket = self.state().queue.begin_if_idle(client, self.now())?;
        Some(Turn {
            turns: self.clone(),
            client,
            ticket,
        })
    }

    /// Waits as long as a refusal has to.
    pub async fn pace_refusal(&self, client: Client) {
        let delay = self.state().queue.delay_refusal(client, self.now());
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
    }

    #[cfg(test)]
    pub fn has_record_of(&self, client: Client) -> bool {
        self.state().queue.has_record_of(client)
    }

    fn begin_checks(self: &Arc<Self>) {
        let mut state = self.state();
        loop {
            match state.queue.next(self.now()) {
                Next::Start(ticket) => {
                    let woken = state.wakers.remove(&ticket).map(|waker| waker.send(()));
                    if woken != Some(Ok(())) {
                        // Nobody waits for it any more.
                        state.queue.finish(ticket, Outcome::Skipped, Duration::ZERO, self.now());
                    }
                }
                Next::At(at) => {
                    self.wake_at(&mut state, at);
                    return;
                }
                Next::Idle => return,
            }
        }
    }

    fn wake_at(self: &Arc<Self>, state: &mut State, at: Duration) {
        if state.alarm.is_some_and(|alarm| alarm <= at) {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        state.alarm = Some(at);
        let turns = Arc::downgrade(self);
        let when = self.started + at;
        runtime.spawn(async move {
            tokio::time::sleep_until(when).await;
            let Some(turns) = turns.upgrade() else { return };
            {
                let mut state = turns.state();
                // Another task may have been set to an earlier time since.
                if state.alarm == Some(at) {
                    state.alarm = None;
                }
            }
            turns.begin_checks();
        });
    }

    fn end(self: &Arc<Self>, turn: &Turn, outcome: Outcome, cpu: Duration) {
        {
            let mut state = self.state();
            state.wakers.remove(&turn.ticket);
            if !state.queue.is_running(turn.ticket) {
                state.queue.cancel(turn.client, turn.ticket);
                return;
            }
            let now = self.now();
            if state.queue.finish(turn.ticket, outcome, cpu, now) {
                tracing::warn!(client = %turn.client, "several wrong logins from one address: further ones are checked slowly, behind those of others");
            }
        }
        self.begin_checks();
    }
}

impl Turn {
    /// Reports what the check came to, and the processor time that it took. The next login begins.
    pub fn finish(self, outcome: Outcome, cpu: Duration) {
        let turns = self.turns.clone();
        turns.end(&self, outcome, cpu);
        // The drop that follows finds nothing to give back.
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let turns = self.turns.clone();
        turns.end(self, Outcome::Skipped, Duration::ZERO);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHECK: Duration = Duration::from_millis(100);

    fn client(number: u8) -> Client {
        Client::of(Some([127, 0, 0, number].into()))
    }

    async fn wrong(turns: &Arc<LoginTurns>, client: Client) {
        let turn = turns.wait(client).await.unwrap();
        turn.finish(Outcome::Wrong, CHECK);
    }

    /// The budget lets a client with wrong logins wait, and wakes it by itself; others go at once.
    #[tokio::test(start_paused = true)]
    async fn the_budget_wakes_who_waits_for_it() {
        let turns = LoginTurns::new(Limits::for_cores(1));
        let started = Instant::now();
        for _ in 0..10 {
            wrong(&turns, client(1)).await;
        }
        // Three are slips, paid off later; the tenth begins when the nine before it are paid off.
        let expected = 9.0 * CHECK.as_secs_f64() / Limits::for_cores(1).share;
        let took = started.elapsed().as_secs_f64();
        assert!((took - expected).abs() < 0.2, "{took} {expected}");
        let began = Instant::now();
        drop(turns.wait(client(2)).await.unwrap());
        assert!(began.elapsed() < CHECK);
    }

    /// A client that goes away gives its place back, waiting or not; one that waits too long hears so.
    #[tokio::test(start_paused = true)]
    async fn places_come_back() {
        let limits = Limits {
            per_client: 1,
            ..Limits::for_cores(1)
        };
        let turns = LoginTurns::new(limits);
        let running = (turns.wait(client(1)).await, turns.wait(client(2)).await);
        assert!(running.0.is_some() && running.1.is_some());
        // It has a place until it is dropped, and then the next one of its client has.
        assert!(tokio::time::timeout(CHECK, turns.wait(client(1))).await.is_err());
        let began = Instant::now();
        let waits = tokio::spawn({
            let turns = turns.clone();
            async move { turns.wait(client(1)).await.is_none() }
        });
        tokio::task::yield_now().await;
        assert!(turns.wait(client(1)).await.is_none(), "one place for each client");
        assert!(waits.await.unwrap());
        assert!((LONGEST_WAIT..LONGEST_WAIT + CHECK).contains(&began.elapsed()));
        drop(running);
        assert!(turns.wait(client(1)).await.is_some());
        assert!(turns.state().wakers.is_empty());
    }
}
