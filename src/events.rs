//! What happened, as data, and its broadcast.
//!
//! Floors below and above note what they did with [`Events::emit`], which never waits: a listener that cannot keep up loses
//! events and is told how many. While nobody listens an event costs one look at a flag. `jobs::audit` is a listener.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
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
}

impl Action {
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
        }
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
        }
    }
}

/// The broadcast. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Events(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    is_wanted: AtomicBool,
    listeners: Mutex<Vec<Listener>>,
}

#[derive(Debug)]
struct Listener {
    to: Sender<Arc<Event>>,
    lost: Arc<AtomicU64>,
}

/// One listener's end.
#[derive(Debug)]
pub struct Subscription {
    pub events: Receiver<Arc<Event>>,
    lost: Arc<AtomicU64>,
}

/// Which of the listeners somebody is, to leave.
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
    /// Whether anybody listens: whoever has to gather what it would tell asks first.
    pub fn is_wanted(&self) -> bool {
        self.0.is_wanted.load(Ordering::Relaxed)
    }

    /// Tells everybody who listens. `event` is not even made when nobody does.
    pub fn emit(&self, event: impl FnOnce() -> Event) {
        if !self.is_wanted() {
            return;
        }
        let event = Arc::new(event());
        for listener in self.listeners().iter() {
            if listener.to.try_send(event.clone()).is_err() {
                listener.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Listens from now on, with room for so many events that are not yet taken.
    pub fn subscribe(&self, room: usize) -> Subscription {
        self.succeed(None, room)
    }

    /// Listens in place of another, in one: no event goes to both or to neither. `of` gets what is on its way, and then the end.
    pub fn succeed(&self, of: Option<&Seat>, room: usize) -> Subscription {
        let (to, events) = channel(room);
        let lost = Arc::new(AtomicU64::new(0));
        let mut listeners = self.listeners();
        listeners.retain(|listener| of.is_none_or(|seat| !seat.is(listener)));
        listeners.push(Listener { to, lost: lost.clone() });
        self.0.is_wanted.store(true, Ordering::Relaxed);
        Subscription { events, lost }
    }

    /// One listener less. It gets what is on its way, and then the end.
    pub fn leave(&self, seat: &Seat) {
        let mut listeners = self.listeners();
        listeners.retain(|listener| !seat.is(listener));
        self.0.is_wanted.store(!listeners.is_empty(), Ordering::Relaxed);
    }

    /// Nobody is told anything any more; listeners get what is on its way, and then the end.
    pub fn close(&self) {
        self.0.is_wanted.store(false, Ordering::Relaxed);
        self.listeners().clear();
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
        let mut first = events.subscribe(10);
        let mut other = events.subscribe(10);
        events.emit(|| Event::of(Action::Pull));
        let mut second = events.succeed(Some(&first.seat()), 10);
        events.emit(|| Event::of(Action::Evict));
        events.leave(&second.seat());
        events.emit(|| Event::of(Action::Pin));
        let rest = |of: &mut Subscription| -> Vec<Action> {
            std::iter::from_fn(|| of.events.try_recv().ok())
                .map(|event| event.action)
                .collect()
        };
        assert_eq!(rest(&mut first), [Action::Pull]);
        assert_eq!(rest(&mut second), [Action::Evict]);
        assert_eq!(rest(&mut other), [Action::Pull, Action::Evict, Action::Pin]);
        assert!(events.is_wanted());
        events.leave(&other.seat());
        assert!(!events.is_wanted());
    }

    #[test]
    fn nobody_is_waited_for() {
        let events = Events::default();
        events.emit(|| panic!("nobody listens"));
        let mut slow = events.subscribe(2);
        let mut quick = events.subscribe(10);
        for _ in 0..5 {
            events.emit(|| Event::of(Action::Pull));
        }
        assert_eq!((slow.lost(), quick.lost()), (3, 0));
        assert_eq!(slow.lost(), 0);
        assert_eq!(slow.events.try_recv().unwrap().action, Action::Pull);
        events.emit(|| Event::of(Action::Evict));
        assert_eq!(slow.lost(), 0);
        events.close();
        events.emit(|| panic!("closed"));
        let rest: Vec<_> = std::iter::from_fn(|| slow.events.blocking_recv()).collect();
        assert_eq!(rest.len(), 2);
        assert_eq!(std::iter::from_fn(|| quick.events.blocking_recv()).count(), 6);
    }
}
