//! Decides whose password is hashed next, and when. Pure: the time is handed in.
//!
//! bcrypt is slow on purpose. Without order, one client with wrong passwords keeps everybody else waiting and a core
//! busy. Three rules prevent it:
//!
//! - **Fair queues.** Each client has a queue of its own, and the queues are served in turn. When all places are
//!   taken, the newest login of the longest queue gives its place to a newcomer.
//! - **A budget for wrong logins.** The processor time of wrong logins is a debt, which is paid off at
//!   [`Limits::share`] of one core. A client whose recent logins were wrong is served only without debt and one at a
//!   time, so that a slot is always left for the others. Clients without such a record may run ahead by
//!   [`Limits::burst`], and no further: a flood from many addresses costs no more than one from a single address.
//! - **Paced refusals.** A refusal that needs no hash is cheap, but not free: beyond [`REFUSALS_AT_ONCE`] a client
//!   gets them at a fixed rate, so that 300 connections cannot keep a core busy with refusals alone.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

/// Clients whose recent logins were wrong, as many as are remembered. About 64 bytes each.
const MAX_RECORDS: usize = 4096;
/// Wrong logins that are taken for slips of the hand.
const SLIPS: u32 = 3;
/// Most that a record counts: after as many right logins it is as if nothing had been.
const MAX_SCORE: u32 = 16;
/// How long a wrong login counts.
const FORGIVEN: Duration = Duration::from_secs(600);
/// Refusals without a hash that one client gets at once, and the pause between those that follow.
pub const REFUSALS_AT_ONCE: u32 = 20;
const REFUSAL_PAUSE: Duration = Duration::from_millis(50);
/// Longest wait for such a refusal.
pub const LONGEST_REFUSAL: Duration = Duration::from_secs(5);
/// Seconds of one check until one was measured.
const FIRST_GUESS: f64 = 0.05;
/// Checks that fit into the burst at least, however slow they are: the slips of a few addresses.
const BURST_CHECKS: f64 = 16.0;

/// A client as the queues tell them apart: by address, IPv6 by its /64, which one machine may have whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Client {
    /// By a Unix socket: this machine.
    Local,
    V4(Ipv4Addr),
    /// The upper half of the address.
    V6(u64),
}

impl Client {
    /// `None`: a Unix socket.
    pub fn of(address: Option<IpAddr>) -> Client {
        match address.map(|address| address.to_canonical()) {
            None => Client::Local,
            Some(IpAddr::V4(v4)) => Client::V4(v4),
            Some(IpAddr::V6(v6)) => Client::V6((v6.to_bits() >> 64) as u64),
        }
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Client::Local => f.write_str("unix"),
            Client::V4(v4) => v4.fmt(f),
            Client::V6(upper) => write!(f, "{}/64", Ipv6Addr::from_bits(u128::from(*upper) << 64)),
        }
    }
}

/// How much is hashed and how many may wait.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Checks at once, at least 2; clients with wrong logins have one of them.
    pub at_once: usize,
    /// Logins that wait, of all clients.
    pub waiting: usize,
    /// Logins of one client that wait.
    pub per_client: usize,
    /// Logins that wait of one client whose recent logins were wrong.
    pub per_failing: usize,
    /// Share of one core that wrong logins get.
    pub share: f64,
    /// Seconds of debt up to which clients without wrong logins are served; more where one check takes long.
    pub burst: f64,
}

impl Limits {
    /// For a machine with so many cores.
    pub fn for_cores(cores: usize) -> Limits {
        Limits {
            at_once: cores.div_ceil(2).max(2),
            waiting: 512,
            per_client: 128,
            per_failing: 16,
            // With what connections and answers cost, wrong logins stay below half a core.
            share: 0.35,
            burst: 4.0,
        }
    }
}

/// A login that waits or is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(u64);

/// No place is left for this client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// A login that waits now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queued {
    pub ticket: Ticket,
    /// The login that lost its place to it.
    pub displaced: Option<Ticket>,
}

/// The next step of whoever runs the queue.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Next {
    /// This login is checked now; [`LoginQueue::finish`] has to follow.
    Start(Ticket),
    /// Ask again at this time: the budget is used up.
    At(Duration),
    /// Ask again when a login comes or a check ends.
    Idle,
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Right,
    Wrong,
    /// Nothing was hashed.
    Skipped,
}

struct Running {
    client: Client,
    /// Seconds that were charged at the start.
    charged: f64,
    is_failing: bool,
}

/// The recent history of a client.
#[derive(Default)]
struct Record {
    /// Wrong logins, less the right ones.
    score: u32,
    wrong_at: Duration,
    /// When a refusal without a hash is due, if they come at their pace.
    refusals_until: Duration,
}

impl Record {
    fn is_failing(&self, now: Duration) -> bool {
        self.score >= SLIPS && now < self.wrong_at + FORGIVEN
    }

    /// Until when it makes a difference.
    fn matters_until(&self) -> Duration {
        let wrong = if self.score == 0 {
            Duration::ZERO
        } else {
            self.wrong_at + FORGIVEN
        };
        wrong.max(self.refusals_until)
    }
}

/// The queues of all clients, and the budget. All times since one fixed moment.
pub struct LoginQueue {
    limits: Limits,
    /// No client without a ticket.
    waiting: HashMap<Client, VecDeque<Ticket>>,
    /// The clients of `waiting`; the first is served next.
    turns: VecDeque<Client>,
    running: HashMap<Ticket, Running>,
    records: HashMap<Client, Record>,
    /// Processor seconds of wrong logins that are not paid off yet, as of `paid_at`.
    debt: f64,
    paid_at: Duration,
    /// Seconds that a wrong login takes.
    guess: f64,
    last: u64,
}

impl LoginQueue {
    pub fn new(limits: Limits) -> LoginQueue {
        LoginQueue {
            limits,
            waiting: HashMap::new(),
            turns: VecDeque::new(),
            running: HashMap::new(),
            records: HashMap::new(),
            debt: 0.0,
            paid_at: Duration::ZERO,
            guess: FIRST_GUESS,
            last: 0,
        }
    }

    /// Returns whether recent logins of the client were wrong, more than a slip or two.
    pub fn is_failing(&self, client: Client, now: Duration) -> bool {
        self.records.get(&client).is_some_and(|record| record.is_failing(now))
    }

    /// Adds a login to its client's queue.
    pub fn enqueue(&mut self, client: Client, now: Duration) -> Result<Queued, Full> {
        let is_failing = self.is_failing(client, now);
        let own = self.waiting.get(&client).map_or(0, VecDeque::len);
        let most = if is_failing {
            self.limits.per_failing
        } else {
            self.limits.per_client
        };
        if own >= most {
            return Err(Full);
        }
        let mut displaced = None;
        if self.waiting.values().map(VecDeque::len).sum::<usize>() >= self.limits.waiting {
            displaced = Some(self.displace(client, own + 1, is_failing, now).ok_or(Full)?);
        }
        self.last += 1;
        let ticket = Ticket(self.last);
        let queue = self.waiting.entry(client).or_default();
        if queue.is_empty() {
            self.turns.push_back(client);
        }
        queue.push_back(ticket);
        Ok(Queued { ticket, displaced })
    }

    fn waiting_of(&self, client: Client) -> usize {
        self.waiting.get(&client).map_or(0, VecDeque::len)
    }

    /// Takes the newest login out of the longest queue, that of a client with wrong logins first, for a newcomer who
    /// then has `own` waiting. `None`: no queue is longer than that, nor as long and of a worse record.
    fn displace(&mut self, newcomer: Client, own: usize, is_failing: bool, now: Duration) -> Option<Ticket> {
        let rank = |client: &Client| (self.waiting_of(*client), self.is_failing(*client, now));
        let (client, (length, fails)) = self
            .turns
            .iter()
            .filter(|client| **client != newcomer)
            .map(|client| (*client, rank(client)))
            .max_by_key(|(_, rank)| *rank)?;
        let gives_way = length > own || (length == own && fails && !is_failing);
        if !gives_way {
            return None;
        }
        let queue = self.waiting.get_mut(&client)?;
        let ticket = queue.pop_back();
        if queue.is_empty() {
            self.forget_turn(client);
        }
        ticket
    }

    fn forget_turn(&mut self, client: Client) {
        self.waiting.remove(&client);
        self.turns.retain(|other| *other != client);
    }

    /// Says which check begins now. To be asked until it has none: after each login that came and each check that
    /// ended.
    pub fn next(&mut self, now: Duration) -> Next {
        self.pay(now);
        if self.running.len() >= self.limits.at_once {
            return Next::Idle;
        }
        let failing_runs = self.running.values().any(|running| running.is_failing);
        let mut due: Option<f64> = None;
        let mut wait_for = |debt: f64| due = Some(due.map_or(debt, |due: f64| due.min(debt)));
        // A client with wrong logins comes first where the budget lets it: that is seldom, and leaves a slot to the
        // others.
        for wants_failing in [true, false] {
            let at = self
                .turns
                .iter()
                .position(|client| self.is_failing(*client, now) == wants_failing);
            let Some(at) = at else { continue };
            if wants_failing && failing_runs {
                continue;
            }
            let bound = if wants_failing { 0.0 } else { self.burst() };
            if self.debt > bound {
                wait_for(self.debt - bound);
                continue;
            }
            if let Some(ticket) = self.begin(at, wants_failing) {
                return Next::Start(ticket);
            }
        }
        match due {
            // A microsecond more: rounding must not make it too early.
            Some(debt) => Next::At(now + Duration::from_secs_f64(debt / self.limits.share) + Duration::from_micros(1)),
            None => Next::Idle,
        }
    }

    fn burst(&self) -> f64 {
        self.limits.burst.max(BURST_CHECKS * self.guess)
    }

    fn begin(&mut self, at: usize, is_failing: bool) -> Option<Ticket> {
        let client = self.turns.remove(at)?;
        let queue = self.waiting.get_mut(&client)?;
        let ticket = queue.pop_front()?;
        if queue.is_empty() {
            self.waiting.remove(&client);
        } else {
            self.turns.push_back(client);
        }
        // Before it is known to be wrong: otherwise the debt would not be paid off while the check runs.
        let charged = self.guess;
        self.debt += charged;
        self.running.insert(
            ticket,
            Running {
                client,
                charged,
                is_failing,
            },
        );
        Some(ticket)
    }

    /// A check has ended; `cpu` is the processor time that it took. Returns whether the client has just become one
    /// whose recent logins were wrong.
    pub fn finish(&mut self, ticket: Ticket, outcome: Outcome, cpu: Duration, now: Duration) -> bool {
        self.pay(now);
        let Some(running) = self.running.remove(&ticket) else {
            return false;
        };
        self.debt -= running.charged;
        let client = running.client;
        let was_failing = self.is_failing(client, now);
        match outcome {
            Outcome::Wrong => {
                self.debt += cpu.as_secs_f64();
                self.guess = (self.guess + cpu.as_secs_f64()) / 2.0;
                if let Some(record) = self.record(client, now) {
                    let before = if now < record.wrong_at + FORGIVEN {
                        record.score
                    } else {
                        0
                    };
                    record.score = (before + 1).min(MAX_SCORE);
                    record.wrong_at = now;
                }
            }
            Outcome::Right => {
                if let Some(record) = self.records.get_mut(&client) {
                    record.score = record.score.saturating_sub(1);
                }
            }
            Outcome::Skipped => {}
        }
        self.debt = self.debt.max(0.0);
        !was_failing && self.is_failing(client, now)
    }

    /// A login that waits no longer, because its client went away.
    pub fn cancel(&mut self, client: Client, ticket: Ticket) {
        if let Some(queue) = self.waiting.get_mut(&client) {
            queue.retain(|waiting| *waiting != ticket);
            if queue.is_empty() {
                self.forget_turn(client);
            }
        }
    }

    /// Returns whether a check of this login runs.
    pub fn is_running(&self, ticket: Ticket) -> bool {
        self.running.contains_key(&ticket)
    }

    /// How long a refusal that needed no hash has to wait.
    pub fn delay_refusal(&mut self, client: Client, now: Duration) -> Duration {
        let free = REFUSAL_PAUSE * REFUSALS_AT_ONCE;
        let Some(record) = self.record(client, now) else {
            return LONGEST_REFUSAL;
        };
        let until = record.refusals_until.max(now) + REFUSAL_PAUSE;
        record.refusals_until = until.min(now + free + LONGEST_REFUSAL);
        record.refusals_until.saturating_sub(now + free)
    }

    fn pay(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.paid_at);
        self.debt = (self.debt - passed.as_secs_f64() * self.limits.share).max(0.0);
        self.paid_at = self.paid_at.max(now);
    }

    /// The client's record, made if need be; the one that matters least goes where there are too many.
    fn record(&mut self, client: Client, now: Duration) -> Option<&mut Record> {
        if !self.records.contains_key(&client) && self.records.len() >= MAX_RECORDS {
            self.records.retain(|_, record| record.matters_until() > now);
            if self.records.len() >= MAX_RECORDS {
                let least = self.records.iter().min_by_key(|(_, record)| record.matters_until());
                let least = least.map(|(client, _)| *client)?;
                self.records.remove(&least);
            }
        }
        Some(self.records.entry(client).or_default())
    }
}

#[cfg(test)]
#[path = "login_queue_tests.rs"]
mod tests;
