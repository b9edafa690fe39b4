//! What an upstream saw, as data, and how a test waits for it.

use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::watch;

use super::script::Matcher;
use super::wire::Kind;
use crate::support::DEADLINE;

/// How the answer to a request came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Not answered, or not yet to the end.
    Running,
    /// All that was to be sent was sent.
    Complete,
    /// The script ended it early.
    Cut,
    /// The peer went away first.
    Aborted,
}

/// One request, in the order of arrival.
#[derive(Clone, Debug)]
pub struct Request {
    /// The instance that got it.
    pub at: SocketAddr,
    /// Counts connections of the instance from 1.
    pub connection: u64,
    pub method: String,
    /// Percent-decoded, without the query.
    pub path: String,
    pub query: Option<String>,
    /// As they came, in their order.
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
    pub kind: Kind,
    /// Of the answer, once its head is sent.
    pub status: Option<u16>,
    /// Bytes of the answer's body that the socket took.
    pub bytes_sent: u64,
    pub outcome: Outcome,
}

impl Request {
    /// The first header of that name, in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// A parameter of the query, decoded; the first of that name.
    pub fn query_value(&self, name: &str) -> Option<String> {
        self.query_values(name).into_iter().next()
    }

    pub fn query_values(&self, name: &str) -> Vec<String> {
        form_values(self.query.as_deref().unwrap_or("").as_bytes(), name)
    }

    /// A field of a form body, decoded.
    pub fn form_value(&self, name: &str) -> Option<String> {
        form_values(&self.body, name).into_iter().next()
    }

    pub fn is_aborted(&self) -> bool {
        self.outcome == Outcome::Aborted
    }
}

fn form_values(form: &[u8], name: &str) -> Vec<String> {
    url::form_urlencoded::parse(form)
        .filter(|(key, _)| key == name)
        .map(|(_, value)| value.into_owned())
        .collect()
}

/// Everything that happened at one instance.
pub struct Log {
    state: Mutex<State>,
    // Bumped at every change, so that a waiter looks again.
    changes: watch::Sender<u64>,
}

#[derive(Default)]
pub struct State {
    pub requests: Vec<Request>,
    /// How many requests [`Log::forget`] has taken away: ids stay valid.
    forgotten: usize,
    pub accepted: u64,
    pub open: u64,
    pub panics: Vec<String>,
}

impl Log {
    pub fn new() -> Log {
        Log {
            state: Mutex::default(),
            changes: watch::Sender::new(0),
        }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let outcome = change(&mut self.state());
        self.changes.send_modify(|n| *n += 1);
        outcome
    }

    /// Gives the id by which [`Log::update`] finds it again.
    pub fn arrived(&self, request: Request) -> usize {
        self.change(|state| {
            state.requests.push(request);
            state.forgotten + state.requests.len() - 1
        })
    }

    pub fn update(&self, id: usize, change: impl FnOnce(&mut Request)) {
        self.change(|state| {
            let at = id.checked_sub(state.forgotten);
            if let Some(request) = at.and_then(|at| state.requests.get_mut(at)) {
                change(request);
            }
        });
    }

    /// Requests seen so far count no more; those still running are forgotten too.
    pub fn forget(&self) {
        self.change(|state| {
            state.forgotten += state.requests.len();
            state.requests.clear();
        });
    }

    /// Until `reached`; past the deadline a panic that prints the log.
    pub async fn wait_until(&self, what: &str, mut reached: impl FnMut(&State) -> bool) {
        let mut changes = self.changes.subscribe();
        let deadline = tokio::time::Instant::now() + DEADLINE;
        loop {
            if reached(&self.state()) {
                return;
            }
            if tokio::time::timeout_at(deadline, changes.changed()).await.is_err() {
                panic!("waited in vain for {what}; the upstream saw\n{}", self.state().print());
            }
        }
    }
}

impl State {
    pub fn matching<'a>(&'a self, matcher: &'a Matcher) -> impl Iterator<Item = &'a Request> {
        self.requests.iter().filter(|request| matcher.fits(request))
    }

    /// For people: one line a request.
    pub fn print(&self) -> String {
        let mut text = format!("  {} connections, {} open\n", self.accepted, self.open);
        for request in &self.requests {
            let Request { method, path, .. } = request;
            let query = request.query.as_ref().map(|q| format!("?{q}")).unwrap_or_default();
            let range = request.header("range").unwrap_or("");
            let status = request.status.map_or("---".to_owned(), |s| s.to_string());
            text += &format!(
                "  #{} {method} {path}{query} {range} -> {status} {} bytes {:?}\n",
                request.connection, request.bytes_sent, request.outcome
            );
        }
        for panic in &self.panics {
            text += &format!("  PANIC {panic}\n");
        }
        text
    }
}
