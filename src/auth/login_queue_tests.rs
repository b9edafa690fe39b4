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
    // Ten clients with one each: by lot.
    assert!(queue.enqueue(client(11), now).unwrap().displaced.is_some());
    // Somebody with a record has no lot.
    for _ in 0..SLIPS * BUSY_PER_SLIP {
        queue.note_busy(client(12), now);
    }
    assert_eq!(queue.enqueue(client(12), now), Err(Full));
}

/// Who is displaced among equals cannot be told beforehand: neither the newest nor the oldest each time.
#[test]
fn the_lot_falls_on_many() {
    let mut queue = LoginQueue::new(Limits {
        waiting: 10,
        ..limits()
    });
    let at = |number: u32| Client::V4(Ipv4Addr::from_bits(number << 8));
    let first: Vec<Ticket> = (0..10)
        .map(|number| queue.enqueue(at(number), Duration::ZERO).unwrap().ticket)
        .collect();
    let mut displaced: BTreeSet<Ticket> = BTreeSet::new();
    for number in 10..40 {
        displaced.extend(queue.enqueue(at(number), Duration::ZERO).unwrap().displaced);
    }
    let of_first = first.iter().filter(|ticket| displaced.contains(ticket)).count();
    assert_eq!(displaced.len(), 30);
    assert!((6..=10).contains(&of_first), "{of_first}");
}

#[test]
fn networks_are_served_in_turn() {
    for (crowd, alone) in [
        (["10.0.0.1", "10.0.0.2", "10.0.0.3"], "10.0.1.1"),
        (
            ["2001:db8:1:1::", "2001:db8:1:100::", "2001:db8:1:f000::"],
            "2001:db8:2::",
        ),
    ] {
        let of = |text: &str| Client::of(Some(text.parse().unwrap()));
        let mut queue = LoginQueue::new(limits());
        for text in crowd {
            for _ in 0..3 {
                queue.enqueue(of(text), Duration::ZERO).unwrap();
            }
        }
        let served = |queue: &mut LoginQueue| {
            let Next::Start(ticket) = queue.next(Duration::ZERO) else {
                panic!("nothing begins")
            };
            queue.finish(ticket, Outcome::Right, MS, Duration::ZERO);
            ticket
        };
        served(&mut queue);
        let ticket = queue.enqueue(of(alone), Duration::ZERO).unwrap().ticket;
        let next = [served(&mut queue), served(&mut queue)];
        assert!(next.contains(&ticket), "{alone} waits for the others");
    }
}

/// Who finds no place again and again is soon behind those who come for the first time; one right login mends it.
#[test]
fn what_found_no_place_counts_a_little() {
    let mut queue = LoginQueue::new(limits());
    let now = Duration::from_secs(1);
    for _ in 1..SLIPS * BUSY_PER_SLIP {
        queue.note_busy(client(1), now);
    }
    assert!(!queue.is_failing(client(1), now));
    queue.note_busy(client(1), now);
    assert!(queue.is_failing(client(1), now) && !queue.is_failing(client(1), now + FORGIVEN));
    let ticket = queue.enqueue(client(1), now).unwrap().ticket;
    assert_eq!(queue.next(now), Next::Start(ticket));
    queue.finish(ticket, Outcome::Right, MS, now);
    assert!(!queue.is_failing(client(1), now));
}

#[test]
fn what_is_not_needed_begins_only_where_nothing_else_is_to_be_done() {
    let mut queue = LoginQueue::new(limits());
    let now = Duration::from_secs(1);
    let first = queue.begin_if_idle(client(1), now).unwrap();
    assert_eq!(queue.begin_if_idle(client(2), now), None, "one runs");
    // It takes nobody's slot.
    let needed = queue.enqueue(client(3), now).unwrap().ticket;
    assert_eq!(queue.next(now), Next::Start(needed));
    assert!(!queue.finish(first, Outcome::Wrong, MS * 100, now));
    queue.finish(needed, Outcome::Right, MS, now);
    assert!(!queue.has_record_of(client(1)));
    assert_eq!(queue.begin_if_idle(client(1), now), None, "its work is not paid off");
    let later = now + Duration::from_secs(1);
    assert!(queue.begin_if_idle(client(1), later).is_some());
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

/// A flood from many addresses with a connection or two each, which ask again as soon as refusals are told.
struct Crowds {
    queue: LoginQueue,
    cost: Duration,
    now: Duration,
    /// The connections, each with the moment at which it asks next; `None`: it has asked.
    connections: Vec<(Client, Option<Duration>)>,
    /// Who waits: the connection, if it is one of the flood, its client and since when.
    waiting: BTreeMap<Ticket, (Option<usize>, Client, Duration)>,
    running: Vec<(Duration, Ticket, Option<usize>)>,
    started: BTreeSet<Ticket>,
}

impl Crowds {
    const STEP: Duration = Duration::from_millis(20);
    const PATIENCE: Duration = Duration::from_secs(10);

    fn new(cost: Duration, connections: Vec<Client>) -> Crowds {
        Crowds {
            queue: LoginQueue::new(Limits {
                waiting: 128,
                ..limits()
            }),
            cost,
            now: Duration::ZERO,
            connections: connections
                .into_iter()
                .map(|client| (client, Some(Duration::ZERO)))
                .collect(),
            waiting: BTreeMap::new(),
            running: Vec::new(),
            started: BTreeSet::new(),
        }
    }

    fn come(&mut self, client: Client, connection: Option<usize>) -> Option<Ticket> {
        match self.queue.enqueue(client, self.now) {
            Ok(queued) => {
                if let Some((other, client, _)) = queued.displaced.and_then(|gone| self.waiting.remove(&gone)) {
                    self.sent_away(client, other);
                }
                self.waiting.insert(queued.ticket, (connection, client, self.now));
                Some(queued.ticket)
            }
            Err(Full) => {
                self.sent_away(client, connection);
                None
            }
        }
    }

    fn sent_away(&mut self, client: Client, connection: Option<usize>) {
        self.queue.note_busy(client, self.now);
        self.answered(client, connection);
    }

    fn answered(&mut self, client: Client, connection: Option<usize>) {
        let delay = self.queue.delay_refusal(client, self.now);
        if let Some(connection) = connection {
            self.connections[connection].1 = Some(self.now + delay);
        }
    }

    fn step(&mut self) {
        self.now += Crowds::STEP;
        let (ended, runs): (Vec<_>, Vec<_>) = self.running.iter().partition(|(end, ..)| *end <= self.now);
        self.running = runs;
        for (_, ticket, connection) in ended {
            let outcome = connection.map_or(Outcome::Right, |_| Outcome::Wrong);
            self.queue.finish(ticket, outcome, self.cost, self.now);
            if let Some(connection) = connection {
                self.answered(self.connections[connection].0, Some(connection));
            }
        }
        let tired: Vec<Ticket> = self
            .waiting
            .iter()
            .filter(|(_, (.., since))| self.now >= *since + Crowds::PATIENCE)
            .map(|(ticket, _)| *ticket)
            .collect();
        for ticket in tired {
            let (connection, client, _) = self.waiting.remove(&ticket).unwrap();
            self.queue.cancel(client, ticket);
            self.sent_away(client, connection);
        }
        for at in 0..self.connections.len() {
            if let (client, Some(due)) = self.connections[at]
                && due <= self.now
            {
                self.connections[at].1 = None;
                self.come(client, Some(at));
            }
        }
        while let Next::Start(ticket) = self.queue.next(self.now) {
            let (connection, ..) = self.waiting.remove(&ticket).unwrap();
            self.started.insert(ticket);
            self.running.push((self.now + self.cost, ticket, connection));
        }
    }

    /// How long somebody who comes for the first time waits; `None`: he is sent away.
    fn newcomer(&mut self, client: Client) -> Option<Duration> {
        let came = self.now;
        let ticket = self.come(client, None)?;
        while !self.started.contains(&ticket) {
            self.waiting.get(&ticket)?;
            self.step();
        }
        Some(self.now - came)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4, ..ProptestConfig::default() })]

    /// More connections than places, of as many addresses in a few networks: who comes for the first time from another
    /// network is served within a few checks, at any time.
    #[test]
    fn a_few_networks_lock_nobody_out(cost in 40u64..120, addresses in 60u32..180, connections in 135u32..180) {
        let of = |number: u32| Client::V4(Ipv4Addr::from_bits(0x0a01_0000 + (number % addresses) * 4));
        let mut world = Crowds::new(MS * cost as u32, (0..connections).map(of).collect());
        for round in 0..12 {
            for _ in 0..100 {
                world.step();
            }
            let waited = world.newcomer(Client::V4(Ipv4Addr::new(192, 0, round, 1)));
            // Each of the networks may be served twice before it; one check takes its cost over the share.
            let networks = addresses.div_ceil(64);
            let bound = world.cost.div_f64(limits().share) * (2 * networks + 2) + Crowds::STEP;
            prop_assert!(waited.is_some_and(|waited| waited <= bound), "{round} {waited:?} {bound:?}");
        }
    }

    /// The same from as many networks: after some seconds they have records, and who has none goes before them.
    #[test]
    fn many_networks_lock_nobody_out_for_long(cost in 40u64..120, connections in 135u32..180) {
        let of = |number: u32| Client::V4(Ipv4Addr::from_bits(0x0a01_0000 + (number << 8)));
        let mut world = Crowds::new(MS * cost as u32, (0..connections).map(of).collect());
        for _ in 0..1000 {
            world.step();
        }
        for round in 0..12 {
            let waited = world.newcomer(Client::V4(Ipv4Addr::new(192, 0, round, 1)));
            prop_assert!(waited.is_some_and(|waited| waited <= Duration::from_secs(2)), "{round} {waited:?}");
            for _ in 0..100 {
                world.step();
            }
        }
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
            prop_assert_eq!(queue.crowds.values().map(|crowd| crowd.waiting).sum::<usize>(), waiting.len());
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
