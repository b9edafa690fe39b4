//! Decides whose password is hashed next, and when. Pure: the time is handed in.
//!
//! bcrypt is slow on purpose. Without order, one client with wrong passwords keeps everybody else waiting and a core
//! busy. Three rules prevent it:
//!
//! - **Fair queues.** Each client has a queue of its own; networks (IPv4 by /24, IPv6 by /48) are served in turn, and
//!   in each its clients. When all places are taken, the newest login of the longest queue in the most crowded network
//!   gives its place to a newcomer; where all have as many, one by lot.
//! - **A budget for wrong logins.** The processor time of wrong logins is a debt, which is paid off at
//!   [`Limits::share`] of one core. A client whose recent logins were wrong is served only without debt and one at a
//!   time, so that a slot is always left for the others. Clients without such a record may run ahead by
//!   [`Limits::burst`], and no further: a flood from many addresses costs no more than one from a single address.
//!   Logins that found no place count a little towards such a record: whoever keeps the queue full is soon behind.
//! - **Paced refusals.** A refusal without a hash is cheap, but not free: beyond [`REFUSALS_AT_ONCE`] a client
//!   gets them at a fixed rate, so that 300 connections cannot keep a core busy with refusals alone.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

/// Clients whose recent logins were wrong, as many as are remembered. About 64 bytes each.
const MAX_RECORDS: usize = 4096;
/// Wrong logins that are taken for slips of the hand.
const SLIPS: u32 = 3;
/// Logins that found no place which count as much as a wrong one. Somebody honest who tries again a few times during
/// a flood stays without a record.
const BUSY_PER_SLIP: u32 = 4;
/// Most that a record counts: after as many right logins it is as if nothing had been.
const MAX_SCORE: u32 = 16;
/// How long a wrong login counts.
const FORGIVEN: Duration = Duration::from_secs(600);
/// Refusals that one client gets at once, and the pause between those that follow.
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

/// Clients that may all be one sender's: who rents a network has that many addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Network {
    Local,
    /// By its /24.
    V4(u32),
    /// By its /48.
    V6(u64),
}

impl Client {
    fn network(self) -> Network {
        match self {
            Client::Local => Network::Local,
            Client::V4(v4) => Network::V4(v4.to_bits() >> 8),
            Client::V6(upper) => Network::V6(upper >> 16),
        }
    }
}

/// The logins of a network that wait.
struct Crowd {
    waiting: usize,
    /// The round in which it is served next.
    round: u64,
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
    /// True if a wrong one is held against the client.
    counts: bool,
}

/// Who goes before whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    Clean,
    /// A wrong login or two, or some that found no place: behind the others only where many wait.
    Slipped,
    Failing,
}

/// The recent history of a client.
#[derive(Default)]
struct Record {
    /// Wrong logins, less the right ones.
    score: u32,
    /// Logins that found no place.
    busy: u32,
    wrong_at: Duration,
    /// When a refusal is due, if they come at their pace.
    refusals_until: Duration,
}

impl Record {
    fn is_failing(&self, now: Duration) -> bool {
        self.score + self.busy / BUSY_PER_SLIP >= SLIPS && now < self.wrong_at + FORGIVEN
    }

    fn standing(&self, now: Duration) -> Standing {
        if self.is_failing(now) {
            Standing::Failing
        } else if self.score + self.busy > 0 && now < self.wrong_at + FORGIVEN {
            Standing::Slipped
        } else {
            Standing::Clean
        }
    }

    /// Until when it makes a difference.
    fn matters_until(&self) -> Duration {
        let wrong = if self.score == 0 && self.busy == 0 {
            Duration::ZERO
        } else {
            self.wrong_at + FORGIVEN
        };
        wrong.max(self.refusals_until)
    }

    /// Before something counts again.
    fn forget_old(&mut self, now: Duration) {
        if now >= self.wrong_at + FORGIVEN {
            (self.score, self.busy) = (0, 0);
        }
    }
}

/// The queues of all clients, and the budget. All times since one fixed moment.
pub struct LoginQueue {
    limits: Limits,
    /// No client without a ticket.
    waiting: HashMap<Client, VecDeque<Ticket>>,
    /// The clients of `waiting`; the first is served next.
    turns: VecDeque<Client>,
    /// No network without a login that waits.
    crowds: HashMap<Network, Crowd>,
    /// Each network is served once in a round. One that comes joins the next: coming again gains nothing.
    round: u64,
    running: HashMap<Ticket, Running>,
    records: HashMap<Client, Record>,
    /// Processor seconds of wrong logins that are not paid off yet, as of `paid_at`.
    debt: f64,
    paid_at: Duration,
    /// Seconds that a wrong login takes.
    guess: f64,
    last: u64,
    /// State of the lots, which are no secret: nothing is won by knowing them.
    lots: u64,
}

impl LoginQueue {
    pub fn new(limits: Limits) -> LoginQueue {
        LoginQueue {
            limits,
            waiting: HashMap::new(),
            turns: VecDeque::new(),
            crowds: HashMap::new(),
            round: 0,
            running: HashMap::new(),
            records: HashMap::new(),
            debt: 0.0,
            paid_at: Duration::ZERO,
            guess: FIRST_GUESS,
            last: 0,
            lots: 1,
        }
    }

    /// Returns whether recent logins of the client were wrong, more than a slip or two.
    pub fn is_failing(&self, client: Client, now: Duration) -> bool {
        self.records.get(&client).is_some_and(|record| record.is_failing(now))
    }

    fn standing(&self, client: Client, now: Duration) -> Standing {
        let record = self.records.get(&client);
        record.map_or(Standing::Clean, |record| record.standing(now))
    }

    #[cfg(test)]
    pub fn has_record_of(&self, client: Client) -> bool {
        self.records
            .get(&client)
            .is_some_and(|record| record.score + record.busy > 0)
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
        if self.crowds.values().map(|crowd| crowd.waiting).sum::<usize>() >= self.limits.waiting {
            displaced = Some(self.displace(client, own + 1, now).ok_or(Full)?);
        }
        let next_round = self.round + 1;
        let crowd = self.crowds.entry(client.network()).or_insert(Crowd {
            waiting: 0,
            round: next_round,
        });
        crowd.waiting += 1;
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

    fn waiting_near(&self, client: Client) -> usize {
        self.crowds.get(&client.network()).map_or(0, |crowd| crowd.waiting)
    }

    /// Takes the newest login out of a queue for a newcomer who then has `own` waiting: first of a client with a
    /// worse record, then out of the most crowded network, there of the longest queue. Among equals the lot decides, so that
    /// a newcomer without a record has a chance wherever he comes from. `None`: nobody has more than he, nor a worse
    /// record.
    fn displace(&mut self, newcomer: Client, own: usize, now: Duration) -> Option<Ticket> {
        let near = self.waiting_near(newcomer) + 1;
        let own_standing = self.standing(newcomer, now);
        let mut best = None;
        let mut equals = 0;
        let mut lots = self.lots;
        for client in self.turns.iter().filter(|client| **client != newcomer) {
            let (crowd, length) = (self.waiting_near(*client), self.waiting_of(*client));
            let standing = self.standing(*client, now);
            let is_worse = standing > own_standing;
            let (theirs, ours) = match client.network() == newcomer.network() {
                true => (length, own),
                false => (crowd, near),
            };
            // Equals give way by lot, but for clients with wrong logins: those stay as they are.
            let is_equal = standing == own_standing && standing != Standing::Failing;
            let gives_way = theirs > ours || (theirs == ours && is_equal) || (is_worse && length >= own);
            if !gives_way {
                continue;
            }
            let rank = (is_worse.then_some(standing), crowd, length);
            match best {
                Some((before, _)) if before > rank => continue,
                Some((before, _)) if before == rank => equals += 1,
                _ => equals = 1,
            }
            if draw(&mut lots).is_multiple_of(equals) {
                best = Some((rank, *client));
            }
        }
        self.lots = lots;
        let (_, client) = best?;
        let ticket = self.waiting.get_mut(&client)?.pop_back();
        self.left(client, 1);
        ticket
    }

    /// So many of a client's logins wait no longer.
    fn left(&mut self, client: Client, number: usize) {
        if let Some(crowd) = self.crowds.get_mut(&client.network()) {
            crowd.waiting = crowd.waiting.saturating_sub(number);
            if crowd.waiting == 0 {
                self.crowds.remove(&client.network());
            }
        }
        if self.waiting.get(&client).is_some_and(VecDeque::is_empty) {
            self.forget_turn(client);
        }
    }

    /// A login that found no place, or lost it, or waited too long.
    pub fn note_busy(&mut self, client: Client, now: Duration) {
        if let Some(record) = self.record(client, now) {
            record.forget_old(now);
            record.busy = (record.busy + 1).min(MAX_SCORE);
            record.wrong_at = now;
        }
    }

    /// Begins a check that nobody needs: only where nothing else waits or runs and no debt is left. What it finds is
    /// not held against the client. [`LoginQueue::finish`] has to follow.
    pub fn begin_if_idle(&mut self, client: Client, now: Duration) -> Option<Ticket> {
        self.pay(now);
        if self.debt > 0.0 || !self.running.is_empty() || !self.turns.is_empty() {
            return None;
        }
        self.last += 1;
        let ticket = Ticket(self.last);
        self.debt += self.guess;
        self.running.insert(
            ticket,
            Running {
                client,
                charged: self.guess,
                is_failing: true,
                counts: false,
            },
        );
        Some(ticket)
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
            let Some(at) = self.first(wants_failing, now) else {
                continue;
            };
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

    /// The place in `turns` of the next client of that kind: those without any record first, of
    /// these the network whose turn is next, and of that the first.
    fn first(&self, wants_failing: bool, now: Duration) -> Option<usize> {
        let all = self.turns.iter().enumerate();
        let of_kind = all.filter(|(_, client)| self.is_failing(**client, now) == wants_failing);
        let round = |client: &Client| self.crowds.get(&client.network()).map_or(0, |crowd| crowd.round);
        of_kind
            .min_by_key(|(_, client)| (self.standing(**client, now), round(client)))
            .map(|(at, _)| at)
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
        if let Some(crowd) = self.crowds.get_mut(&client.network()) {
            self.round = self.round.max(crowd.round);
            crowd.round = self.round + 1;
        }
        self.left(client, 1);
        // Before it is known to be wrong: otherwise the debt would not be paid off while the check runs.
        let charged = self.guess;
        self.debt += charged;
        self.running.insert(
            ticket,
            Running {
                client,
                charged,
                is_failing,
                counts: true,
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
                if running.counts
                    && let Some(record) = self.record(client, now)
                {
                    record.forget_old(now);
                    record.score = (record.score + 1).min(MAX_SCORE);
                    record.wrong_at = now;
                }
            }
            Outcome::Right => {
                if let Some(record) = self.records.get_mut(&client) {
                    record.score = record.score.saturating_sub(1);
                    record.busy = 0;
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
            let before = queue.len();
            queue.retain(|waiting| *waiting != ticket);
            let gone = before - queue.len();
            self.left(client, gone);
        }
    }

    /// Returns whether a check of this login runs.
    pub fn is_running(&self, ticket: Ticket) -> bool {
        self.running.contains_key(&ticket)
    }

    /// How long a refusal has to wait.
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

/// The next lot.
fn draw(lots: &mut u64) -> u64 {
    *lots = lots
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    *lots >> 33
}

#[cfg(test)]
#[path = "login_queue_tests.rs"]
mod tests;
