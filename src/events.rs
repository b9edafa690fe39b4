//! What happened, as data, and its broadcast.
//!
//! Floors below and above note what they did with [`Events::emit`], which never waits: a listener that cannot keep up loses
//! events and is told how many. What nobody listens to costs one look at a number. `jobs::audit` and `jobs::webhook` listen.

use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::oci::Digest;

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A client got a manifest, or bytes of a blob.
    Pull,
    /// A client was not let.
    Refuse,
    /// Something came from an upstream.
    Fetch,
    /// Something went, to make room.
    Evict,
    /// An operator's doing.
    Remove,
    Pin,
    Unpin,
    Refresh,
    /// An image came in a bundle, and is seen now.
    Import,
}

impl Action {
    pub const ALL: [Action; 9] = [
        Action::Pull,
        Action::Refuse,
        Action::Fetch,
        Action::Evict,
        Action::Remove,
        Action::Pin,
        Action::Unpin,
        Action::Refresh,
        Action::Import,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Action::Pull => "pull",
            Action::Refuse => "refuse",
            Action::Fetch => "fetch",
            Action::Evict => "evict",
            Action::Remove => "remove",
            Action::Pin => "pin",
            Action::Unpin => "unpin",
            Action::Refresh => "refresh",
            Action::Import => "import",
        }
    }
}

/// A set of actions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Actions(u16);

impl Actions {
    pub const ALL: Actions = Actions((1 << Action::ALL.len()) - 1);

    pub fn holds(self, action: Action) -> bool {
        self.0 & (1 << action as u16) != 0
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl FromIterator<Action> for Actions {
    fn from_iter<I: IntoIterator<Item = Action>>(actions: I) -> Actions {
        let bits = actions.into_iter().map(|action| 1 << action as u16);
        Actions(bits.fold(0, |all, bit: u16| all | bit))
    }
}

impl std::ops::BitOr for Actions {
    type Output = Actions;

    fn bitor(self, other: Actions) -> Actions {
        Actions(self.0 | other.0)
    }
}

/// One event. What is not known, or makes no sense for the action, is absent.
#[derive(Clone, Debug)]
pub struct Event {
    pub action: Action,
    /// `docker.io/library/alpine`.
    pub repository: Option<Arc<str>>,
    /// Tag or digest, as it was asked for.
    pub reference: Option<Arc<str>>,
    pub digest: Option<Digest>,
    pub media_type: Option<Arc<str>>,
    pub upstream: Option<Arc<str>>,
    /// That were sent, came, or are free now.
    pub bytes: Option<u64>,
    pub took: Option<Duration>,
    /// Of the answer to a client.
    pub status: Option<u16>,
    /// How it stood with the cache, or why something had to go.
    pub reason: Option<&'static str>,
    /// Whether everything was sent.
    pub is_complete: Option<bool>,
    /// Its address, or `unix`.
    pub client: Option<Arc<str>>,
    pub user: Option<Arc<str>>,
    pub user_agent: Option<Arc<str>>,
    /// How it reached this registry: `https://larder.example:5000`.
    pub origin: Option<Arc<str>>,
    /// Whether it asked for a blob, not for a manifest.
    pub is_blob: bool,
}

impl Event {
    pub fn of(action: Action) -> Event {
        Event {
            action,
            repository: None,
            reference: None,
            digest: None,
            media_type: None,
            upstream: None,
            bytes: None,
            took: None,
            status: None,
            reason: None,
            is_complete: None,
            client: None,
            user: None,
            user_agent: None,
            origin: None,
            is_blob: false,
        }
    }
}

/// The broadcast. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Events(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// What anybody listens to, as bits of [`Actions`].
    wanted: AtomicU16,
    listeners: Mutex<Vec<Listener>>,
}

#[derive(Debug)]
struct Listener {
    to: Sender<Arc<Event>>,
    wants: Actions,
    lost: Arc<AtomicU64>,
}

/// One listener's end.
#[derive(Debug)]
pub struct Subscription {
    pub events: Receiver<Arc<Event>>,
    lost: Arc<AtomicU64>,
}

/// Which of the listeners somebody is, to leave or to want something else.
#[derive(Clone, Debug)]
pub struct Seat(Arc<AtomicU64>);

impl Seat {
    fn is(&self, listener: &Listener) -> bool {
        Arc::ptr_eq(&self.0, &listener.lost)
    }
}

impl Subscription {
    pub fn seat(&self) -> Seat {
        Seat(self.lost.clone())
    }

    /// How many were lost since this was asked last.
    pub fn lost(&self) -> u64 {
        self.lost.swap(0, Ordering::Relaxed)
    }
}

impl Events {
    /// Whether anybody listens to one of these: whoever has to gather what it would tell asks first.
    pub fn is_wanted(&self, actions: &[Action]) -> bool {
        let wanted = Actions(self.0.wanted.load(Ordering::Relaxed));
        actions.iter().any(|action| wanted.holds(*action))
    }

    /// Tells everybody who listens to `action` what `fill` makes of a bare event. Nothing is made when nobody listens.
    pub fn emit(&self, action: Action, fill: impl FnOnce(Event) -> Event) {
        if !self.is_wanted(&[action]) {
            return;
        }
        let event = Arc::new(fill(Event::of(action)));
        for listener in self.listeners().iter().filter(|listener| listener.wants.holds(action)) {
            if listener.to.try_send(event.clone()).is_err() {
                listener.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Listens from now on, with room for so many events that are not yet taken.
    pub fn subscribe(&self, room: usize, wants: Actions) -> Subscription {
        self.succeed(None, room, wants)
    }

    /// Listens in place of another, in one: no event goes to both or to neither. `of` gets what is on its way, and then the end.
    pub fn succeed(&self, of: Option<&Seat>, room: usize, wants: Actions) -> Subscription {
        let (to, events) = channel(room);
        let lost = Arc::new(AtomicU64::new(0));
        let mut listeners = self.listeners();
        listeners.retain(|listener| of.is_none_or(|seat| !seat.is(listener)));
        listeners.push(Listener {
            to,
            wants,
            lost: lost.clone(),
        });
        self.sum_up(&listeners);
        Subscription { events, lost }
    }

    /// One listener less. It gets what is on its way, and then the end.
    pub fn leave(&self, seat: &Seat) {
        let mut listeners = self.listeners();
        listeners.retain(|listener| !seat.is(listener));
        self.sum_up(&listeners);
    }

    /// A listener wants something else from now on.
    pub fn want(&self, seat: &Seat, wants: Actions) {
        let mut listeners = self.listeners();
        for listener in listeners.iter_mut().filter(|listener| seat.is(listener)) {
            listener.wants = wants;
        }
        self.sum_up(&listeners);
    }

    /// Nobody is told anything any more; listeners get what is on its way, and then the end.
    pub fn close(&self) {
        let mut listeners = self.listeners();
        listeners.clear();
        self.sum_up(&listeners);
    }

    fn sum_up(&self, listeners: &[Listener]) {
        let all = listeners
            .iter()
            .fold(Actions::default(), |all, listener| all | listener.wants);
        self.0.wanted.store(all.0, Ordering::Relaxed);
    }

    fn listeners(&self) -> std::sync::MutexGuard<'_, Vec<Listener>> {
        self.0.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_takes_the_place_of_another() {
        let events = Events::default();
        let mut first = events.subscribe(10, Actions::ALL);
        let mut other = events.subscribe(10, Actions::ALL);
        events.emit(Action::Pull, |bare| bare);
        let mut second = events.succeed(Some(&first.seat()), 10, Actions::ALL);
        events.emit(Action::Evict, |bare| bare);
        events.leave(&second.seat());
        events.emit(Action::Pin, |bare| bare);
        let rest = |of: &mut Subscription| -> Vec<Action> {
            std::iter::from_fn(|| of.events.try_recv().ok())
                .map(|event| event.action)
                .collect()
        };
        assert_eq!(rest(&mut first), [Action::Pull]);
        assert_eq!(rest(&mut second), [Action::Evict]);
        assert_eq!(rest(&mut other), [Action::Pull, Action::Evict, Action::Pin]);
        assert!(events.is_wanted(&[Action::Pull]));
        events.leave(&other.seat());
        assert!(!events.is_wanted(&[Action::Pull]));
    }

    #[test]
    fn nobody_is_waited_for() {
        let events = Events::default();
        events.emit(Action::Pull, |_| panic!("nobody listens"));
        let mut slow = events.subscribe(2, Actions::ALL);
        let mut quick = events.subscribe(10, Actions::ALL);
        for _ in 0..5 {
            events.emit(Action::Pull, |bare| bare);
        }
        assert_eq!((slow.lost(), quick.lost()), (3, 0));
        assert_eq!(slow.lost(), 0);
        assert_eq!(slow.events.try_recv().unwrap().action, Action::Pull);
        events.emit(Action::Evict, |bare| bare);
        assert_eq!(slow.lost(), 0);
        events.close();
        events.emit(Action::Pull, |_| panic!("closed"));
        let rest: Vec<_> = std::iter::from_fn(|| slow.events.blocking_recv()).collect();
        assert_eq!(rest.len(), 2);
        assert_eq!(std::iter::from_fn(|| quick.events.blocking_recv()).count(), 6);
    }

    #[test]
    fn a_listener_hears_what_it_wants() {
        let events = Events::default();
        let mut one = events.subscribe(9, [Action::Evict, Action::Import].into_iter().collect());
        let mut other = events.subscribe(9, Actions::default());
        events.emit(Action::Pull, |_| panic!("nobody listens to that"));
        assert!(!events.is_wanted(&[Action::Pull, Action::Refuse]) && events.is_wanted(&[Action::Pull, Action::Evict]));
        events.emit(Action::Import, |bare| bare);
        events.want(&other.seat(), [Action::Pull].into_iter().collect());
        events.emit(Action::Pull, |bare| bare);
        let heard = |from: &mut Subscription| from.events.try_recv().map(|event| event.action);
        assert_eq!(
            (heard(&mut one), heard(&mut other)),
            (Ok(Action::Import), Ok(Action::Pull))
        );
        assert!(heard(&mut one).is_err() && heard(&mut other).is_err());
        assert!(Action::ALL.into_iter().all(|action| Actions::ALL.holds(action)));
    }
}
