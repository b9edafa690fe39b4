//! A span that is under way, and how those that it causes find it.
//!
//! [`Span`] is nothing where nothing is recorded: then no call on it does anything. Which span is the parent of the next goes with
//! the task, as a stopwatch does, so that the floors below need not pass it on; tasks of their own take it along by [`carry`].

use std::borrow::Cow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::Shared;
use super::context::{Context, SpanId, TraceId};

tokio::task_local! {
    static HERE: Here;
}

/// Longest text of one attribute, bytes.
const MOST_TEXT: usize = 1024;

/// Where in which trace a task is.
#[derive(Clone)]
pub(super) struct Here {
    pub(super) shared: Arc<Shared>,
    pub(super) context: Context,
}

/// What kind of work it is, to those who draw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Internal,
    Server,
    Client,
}

/// What an attribute says.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Text(Cow<'static, str>),
    Number(i64),
    Flag(bool),
}

/// One span that has ended.
#[derive(Debug)]
pub struct Record {
    pub context: Context,
    pub parent: Option<SpanId>,
    /// The parent is a client's.
    pub is_joined: bool,
    pub name: Cow<'static, str>,
    pub kind: Kind,
    /// Nanoseconds since the first of 1970.
    pub start: u64,
    pub end: u64,
    pub attributes: Vec<(&'static str, Value)>,
    pub links: Vec<Context>,
    /// What went wrong; empty if there is no more to say.
    pub error: Option<String>,
}

/// A span, or nothing. Clones are the same span; it ends with the last of them, if not before.
#[derive(Clone, Default)]
pub struct Span(Option<Arc<Open>>);

struct Open {
    here: Here,
    begun: Instant,
    /// `None` once it has ended.
    record: Mutex<Option<Record>>,
}

impl std::fmt::Debug for Span {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Span").field(&self.context()).finish()
    }
}

/// A span for work of the span that this task is in; nothing, where it is in none.
pub fn start(name: &'static str, kind: Kind) -> Span {
    match HERE.try_with(Here::clone) {
        Ok(here) => {
            let context = here.context.child();
            Span::open(here.shared, context, Some((here.context.span, false)), name, kind)
        }
        Err(_) => Span::default(),
    }
}

/// The trace that this task is in, for its log lines.
pub fn id() -> Option<tracing::field::DisplayValue<TraceId>> {
    HERE.try_with(|here| tracing::field::display(here.context.trace)).ok()
}

/// The span that this task is in, for who will wait for what it does.
pub fn here() -> Option<Context> {
    HERE.try_with(|here| here.context.clone()).ok()
}

/// `future`, for a task of its own, in the span of the task that begins it, if it is in one.
pub fn carry<F: Future>(future: F) -> impl Future<Output = F::Output> {
    let here = HERE.try_with(Here::clone).ok();
    async move {
        match here {
            Some(here) => HERE.scope(here, future).await,
            None => future.await,
        }
    }
}

impl Span {
    /// `parent`: its span, and whether that is somebody else's.
    pub(super) fn open(
        shared: Arc<Shared>,
        context: Context,
        parent: Option<(SpanId, bool)>,
        name: &'static str,
        kind: Kind,
    ) -> Span {
        let start = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let start = u64::try_from(start.as_nanos()).unwrap_or(u64::MAX);
        let record = Record {
            context: context.clone(),
            parent: parent.map(|(span, _)| span),
            is_joined: parent.is_some_and(|(_, joined)| joined),
            name: Cow::Borrowed(name),
            kind,
            start,
            end: start,
            attributes: Vec::new(),
            links: Vec::new(),
            error: None,
        };
        Span(Some(Arc::new(Open {
            here: Here { shared, context },
            begun: Instant::now(),
            record: Mutex::new(Some(record)),
        })))
    }

    pub fn is_recorded(&self) -> bool {
        self.0.is_some()
    }

    pub fn context(&self) -> Option<&Context> {
        Some(&self.0.as_ref()?.here.context)
    }

    pub fn rename(&self, name: impl FnOnce() -> String) {
        self.change(|record| record.name = name().into());
    }

    pub fn set(&self, key: &'static str, value: impl Into<Value>) {
        self.change(|record| {
            let value = value.into();
            match record.attributes.iter_mut().find(|(known, _)| *known == key) {
                Some((_, known)) => *known = value,
                None => record.attributes.push((key, value)),
            }
        });
    }

    /// The same, if there is something to say.
    pub fn set_some(&self, key: &'static str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.set(key, value);
        }
    }

    /// It failed. `kind` is one of few words.
    pub fn fail(&self, kind: impl Into<Value>, what: &dyn std::fmt::Display) {
        self.set("error.type", kind);
        self.change(|record| record.error = Some(shortened(what.to_string())));
    }

    /// It waited for work of another trace, or of another part of this one.
    pub fn link(&self, to: Option<&Context>) {
        if let Some(to) = to {
            self.change(|record| record.links.push(to.clone()));
        }
    }

    /// Runs `future` in this span: those that it starts are its children.
    pub async fn over<F: Future>(&self, future: F) -> F::Output {
        match &self.0 {
            Some(open) => HERE.scope(open.here.clone(), future).await,
            None => future.await,
        }
    }

    /// Headers that tell the other side of it, where it is to be told.
    pub fn headers(&self) -> Option<(String, Option<Arc<str>>)> {
        let here = &self.0.as_ref()?.here;
        let told = (here.context.traceparent(), here.context.state.clone());
        here.shared.propagate.then_some(told)
    }

    /// Whatever is said of it later is not heard.
    pub fn end(&self) {
        if let Some(open) = &self.0 {
            open.end();
        }
    }

    fn change(&self, change: impl FnOnce(&mut Record)) {
        if let Some(open) = &self.0
            && let Some(record) = &mut *open.record()
        {
            change(record);
        }
    }
}

impl Open {
    fn record(&self) -> MutexGuard<'_, Option<Record>> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self) {
        let record = self.record().take();
        if let Some(mut record) = record {
            let took = u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
            record.end = record.start.saturating_add(took);
            self.here.shared.queue.put(record);
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.end();
    }
}

fn shortened(mut text: String) -> String {
    if text.len() > MOST_TEXT {
        let end = (0..=MOST_TEXT).rev().find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or_default());
    }
    text
}

impl From<&'static str> for Value {
    fn from(text: &'static str) -> Value {
        Value::Text(Cow::Borrowed(text))
    }
}

impl From<String> for Value {
    fn from(text: String) -> Value {
        Value::Text(Cow::Owned(shortened(text)))
    }
}

impl From<&Arc<str>> for Value {
    fn from(text: &Arc<str>) -> Value {
        Value::from(text.to_string())
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Value {
        Value::Number(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<u16> for Value {
    fn from(number: u16) -> Value {
        Value::Number(number.into())
    }
}

impl From<bool> for Value {
    fn from(flag: bool) -> Value {
        Value::Flag(flag)
    }
}
