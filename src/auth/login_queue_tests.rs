use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);
/// A step of the simulated world.
const STEP: Duration = Duration::from_millis(5);

fn client(number: u8) -> Client {
    Client::V4(Ipv4Addr::new(127, 0, 0, number))
}

fn limits() -> Limits {
    Limits::for_cores(2)
}

/// Makes a client one whose recent logins were wrong.
fn fail(queue: &mut LoginQueue, client: Client, now: Duration) {
    for _ in 0..SLIPS {
        let ticket = queue.enqueue(client, now).unwrap().ticket;
        assert_eq!(queue.next(now), Next::Start(ticket));
        queue.finish(ticket, Outcome::Wrong, Duration::ZERO, now);
    }
    assert!(queue.is_failing(client, now));
}

#[test]
fn clients_are_told_apart_by_address() {
    let of = |text: &str| Client::of(Some(text.parse().unwrap()));
    assert_eq!(of("10.0.0.1"), of("::ffff:10.0.0.1"));
    assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
    assert_eq!(of("2001:db8:0:1::1"), of("2001:db8:0:1:ffff::2"));
    assert_ne!(of("2001:db8:0:1::1"), of("2001:db8:0:2::1"));
    assert_ne!(Client::of(None), of("127.0.0.1"));
    assert_eq!(of("2001:db8:0:1::1").to_string(), "2001:db8:0:1::/64");
}

#[test]
fn clients_are_served_in_turn() {
    let mut queue = LoginQueue::new(Limits { at_once: 2, ..limits() });
    let (a, b) = (client(1), client(2));
    let mut enqueue = |client| queue.enqueue(client, Duration::ZERO).unwrap().ticket;
    let (a1, a2, a3, b1) = (enqueue(a), enqueue(a), enqueue(a), enqueue(b));
    let mut order = Vec::new();
    while let Next::Start(ticket) = queue.next(Duration::ZERO) {
        order.push(ticket);
        if order.len() >= 2 {
            queue.finish(order[order.len() - 2], Outcome::Right, MS, Duration::ZERO);
        }
    }
    assert_eq!(order, [a1, b1, a2, a3]);
}

#[test]
fn a_slip_is_not_held_against_a_client() {
    let mut queue = LoginQueue::new(limits());
    let wrong = |queue: &mut LoginQueue, outcome, now| {
        let ticket = queue.enqueue(client(1), now).unwrap().ticket;
        assert_eq!(queue.next(now), Next::Start(ticket));
        queue.finish(ticket, outcome, MS, now)
    };
    assert!(!wrong(&mut queue, Outcome::Wrong, MS));
    assert!(!wrong(&mut queue, Outcome::Wrong, MS));
    assert!(!wrong(&mut queue, Outcome::Right, MS));
    assert!(!wrong(&mut queue, Outcome::Wrong, MS));
    assert!(wrong(&mut queue, Outcome::Wrong, MS), "three in all");
    assert!(queue.is_failing(client(1), FORGIVEN));
    assert!(!queue.is_failing(client(1), FORGIVEN + MS));
    assert!(
        !wrong(&mut queue, Outcome::Wrong, FORGIVEN + MS),
        "what was before is forgotten"
    );
}

#[test]
fn a_full_queue_gives_way_to_newcomers() {
    let mut queue = LoginQueue::new(Limits {
        waiting: 10,
        per_client: 9,
        ..limits()
    });
    let now = Duration::ZERO;
    let many: Vec<Ticket> = (0..9).map(|_| queue.enqueue(client(1), now).unwrap().ticket).collect();
    assert_eq!(queue.enqueue(client(1), now), Err(Full), "one client's places");
    queue.enqueue(client(2), now).unwrap();
    // All places: the newest of the longest queue goes, until all are as long.
    for (at, expected) in [(8, 3), (7, 4), (6, 5)].map(|(at, number)| (many[at], number)) {
        assert_eq!(queue.enqueue(client(expected), now).unwrap().displaced, Some(at));
    }
    assert_eq!(queue.enqueue(client(1), now), Err(Full));
    for number in 6..=10 {
        queue.enqueue(client(number), now).unwrap();
    }
    assert_eq!(queue.enqueue(client(11), now), Err(Full), "ten clients with one each");
}

/// More addresses than there are places, all with wrong logins: whoever has no such record still gets one.
#[test]
fn wrong_logins_give_way_first() {
    let mut queue = LoginQueue::new(Limits {
        waiting: 10,
        ..limits()
    });
    for number in 1..=12 {
        fail(&mut queue, client(number), Duration::ZERO);
    }
    for number in 1..=10 {
        queue.enqueue(client(number), Duration::ZERO).unwrap();
    }
    for number in [11, 12] {
        assert_eq!(queue.enqueue(client(number), Duration::ZERO), Err(Full));
    }
    let queued = queue.enqueue(client(100), Duration::ZERO).unwrap();
    assert!(queued.displaced.is_some());
}

#[test]
fn refusals_keep_their_pace() {
    let mut queue = LoginQueue::new(limits());
    let now = Duration::from_secs(100);
    for _ in 0..REFUSALS_AT_ONCE {
        assert_eq!(queue.delay_refusal(client(1), now), Duration::ZERO);
    }
    assert_eq!(queue.delay_refusal(client(1), now), REFUSAL_PAUSE);
    assert_eq!(queue.delay_refusal(client(1), now), REFUSAL_PAUSE * 2);
    assert_eq!(queue.delay_refusal(client(2), now), Duration::ZERO);
    for _ in 0..1000 {
        assert!(queue.delay_refusal(client(1), now) <= LONGEST_REFUSAL);
    }
    assert_eq!(queue.delay_refusal(client(1), now), LONGEST_REFUSAL);
    let later = now + Duration::from_secs(10);
    assert_eq!(queue.delay_refusal(client(1), later), Duration::ZERO);
}

/// A world of clients: those that send wrong logins keep `open` requests under way each, others come once with a
/// right one.
struct World {
    queue: LoginQueue,
    cost: Duration,
    now: Duration,
    owners: BTreeMap<Ticket, Client>,
    /// Checks that run, and when they end.
    running: Vec<(Duration, Ticket)>,
    /// How many requests each client of the flood keeps under way, and how many it has.
    flood: BTreeMap<Client, (usize, usize)>,
    started: BTreeMap<Ticket, Duration>,
    /// Processor time of wrong logins.
    spent: Duration,
}

impl World {
    fn new(cost: Duration, addresses: u8, open: usize) -> World {
        World {
            queue: LoginQueue::new(limits()),
            cost,
            now: Duration::ZERO,
            owners: BTreeMap::new(),
            running: Vec::new(),
            flood: (1..=addresses).map(|number| (client(number), (open, 0))).collect(),
            started: BTreeMap::new(),
            spent: Duration::ZERO,
        }
    }

    fn come(&mut self, client: Client) -> Option<Ticket> {
        let queued = self.queue.enqueue(client, self.now).ok()?;
        if let Some(displaced) = queued.displaced {
            self.answered(displaced);
        }
        self.owners.insert(queued.ticket, client);
        Some(queued.ticket)
    }

    fn answered(&mut self, ticket: Ticket) -> Client {
        let client = self.owners.remove(&ticket).unwrap();
        if let Some((_, under_way)) = self.flood.get_mut(&client) {
            *under_way -= 1;
        }
        client
    }

    /// The flood asks again for what was answered, checks end and begin.
    fn step(&mut self) {
        self.now += STEP;
        let (ended, runs): (Vec<_>, Vec<_>) = self.running.iter().partition(|(end, _)| *end <= self.now);
        self.running = runs;
        for (_, ticket) in ended {
            let client = self.answered(ticket);
            let is_wrong = self.flood.contains_key(&client);
            let outcome = if is_wrong { Outcome::Wrong } else { Outcome::Right };
            self.spent += if is_wrong { self.cost } else { Duration::ZERO };
            self.queue.finish(ticket, outcome, self.cost, self.now);
        }
        for (client, (open, under_way)) in self.flood.clone() {
            for _ in under_way..open {
                if self.come(client).is_none() {
                    break;
                }
                self.flood.entry(client).and_modify(|(_, under_way)| *under_way += 1);
            }
        }
        while let Next::Start(ticket) = self.queue.next(self.now) {
            self.started.insert(ticket, self.now);
            self.running.push((self.now + self.cost, ticket));
        }
        assert!(self.running.len() <= limits().at_once);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    /// The bar: whoever floods, from one address or from a few, the others begin at once, and wrong logins stay
    /// within their share.
    #[test]
    fn a_flood_holds_up_nobody_else(cost in 4u32..300, addresses in 1u8..6, open in 1usize..400) {
        let mut world = World::new(STEP * cost, addresses, open);
        let mut others = Vec::new();
        // As long as the slips of five addresses run, others share the slots with them.
        let slips = 15 * cost;
        let steps = slips + 12_000;
        for at in 1..=steps {
            world.step();
            if at > slips && (at - slips) % 500 == 1 {
                let number = 100 + ((at - slips) / 500) as u8;
                others.push((world.now, world.come(client(number)).unwrap()));
            }
        }
        prop_assert_eq!(others.len(), 24);
        for (came, ticket) in others {
            let started = world.started.get(&ticket).copied();
            prop_assert!(started.is_some_and(|started| started <= came + STEP), "{came:?} {started:?}");
        }
        let share = world.spent.as_secs_f64() / world.now.as_secs_f64();
        let cost = world.cost.as_secs_f64();
        let ahead = (limits().burst.max(BURST_CHECKS * cost) + 3.0 * cost) / world.now.as_secs_f64();
        prop_assert!(share <= limits().share + ahead, "{share}");
        // And they are not starved either: what the budget allows is used.
        prop_assert!(share >= limits().share * 0.8, "{share}");
    }

    /// Each login is started, displaced or cancelled once; no bound is passed.
    #[test]
    fn nothing_is_lost_and_every_bound_holds(
        steps in proptest::collection::vec((0u8..6, 0u8..5, 0u64..400), 1..400),
    ) {
        let bounds = Limits { waiting: 12, per_client: 5, per_failing: 2, ..limits() };
        let mut queue = LoginQueue::new(bounds);
        let mut now = Duration::ZERO;
        let mut waiting: BTreeMap<Ticket, Client> = BTreeMap::new();
        let mut running: BTreeSet<(Ticket, Client)> = BTreeSet::new();
        for (number, act, ms) in steps {
            let who = client(number);
            match act {
                0 | 1 => match queue.enqueue(who, now) {
                    Ok(queued) => {
                        if let Some(displaced) = queued.displaced {
                            prop_assert!(waiting.remove(&displaced).is_some_and(|other| other != who));
                        }
                        prop_assert!(waiting.insert(queued.ticket, who).is_none());
                    }
                    Err(Full) => prop_assert!(!waiting.is_empty()),
                },
                2 => if let Some((ticket, who)) = waiting.iter().next().map(|(ticket, who)| (*ticket, *who)) {
                    queue.cancel(who, ticket);
                    waiting.remove(&ticket);
                },
                3 => if let Some(first) = running.pop_first() {
                    let outcome = [Outcome::Right, Outcome::Wrong, Outcome::Wrong, Outcome::Skipped][ms as usize % 4];
                    queue.finish(first.0, outcome, MS * ms as u32, now);
                },
                _ => now += MS * ms as u32,
            }
            loop {
                match queue.next(now) {
                    Next::Start(ticket) => {
                        let who = waiting.remove(&ticket).unwrap();
                        let fails = |client: Client| queue.is_failing(client, now);
                        prop_assert!(!fails(who) || queue.running.values().filter(|r| r.is_failing).count() == 1);
                        running.insert((ticket, who));
                    }
                    Next::At(at) => {
                        prop_assert!(at > now);
                        break;
                    }
                    Next::Idle => break,
                }
            }
            prop_assert!(running.len() <= bounds.at_once && waiting.len() <= bounds.waiting);
            prop_assert_eq!(queue.waiting.values().map(VecDeque::len).sum::<usize>(), waiting.len());
            prop_assert_eq!(queue.turns.len(), queue.waiting.len());
            for number in 0..6 {
                let own = waiting.values().filter(|who| **who == client(number)).count();
                prop_assert!(own <= bounds.per_client);
            }
        }
        // All that wait are served in the end, if time passes.
        for _ in 0..10_000 {
            match queue.next(now) {
                Next::Start(ticket) => {
                    waiting.remove(&ticket);
                    queue.finish(ticket, Outcome::Right, MS, now);
                }
                Next::At(at) => now = at,
                Next::Idle => match running.pop_first() {
                    Some((ticket, _)) => _ = queue.finish(ticket, Outcome::Right, MS, now),
                    None => break,
                },
            }
        }
        prop_assert!(waiting.is_empty(), "{waiting:?}");
    }
}

#[test]
fn records_are_bounded_and_the_newest_stay() {
    let mut queue = LoginQueue::new(limits());
    let of = |number: u32| Client::V4(Ipv4Addr::from_bits(number));
    let mut now = Duration::ZERO;
    for number in 0..3 * MAX_RECORDS as u32 {
        now += MS;
        fail(&mut queue, of(number), now);
        assert!(queue.records.len() <= MAX_RECORDS);
    }
    assert!(queue.is_failing(of(3 * MAX_RECORDS as u32 - 1), now));
    assert!(!queue.is_failing(of(0), now));
}
