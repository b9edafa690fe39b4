//! Traces: what became of one request, span by span, told to a collector (OpenTelemetry, OTLP over HTTP).
//!
//! Walk: a request comes with a `traceparent` or without ([`context`]) → [`Tracer::request`] decides, before anything is built,
//! whether it is recorded → its [`Span`] ends with its answer's last byte; those that it causes are its children ([`start`]),
//! found through the task ([`span`]) → what has ended lies in a bounded queue → `exporter` sends batches of it (`otlp`), off
//! everybody's way. Where the queue is full or the collector dead, spans are dropped and counted.
//!
//! Without `[traces]` there is no tracer: a request looks at one `Option`, and what it causes finds no span in its task.
//!
//! The messages are prost's, and the rest is here. The `opentelemetry` crates would bring a thread, a client and an error
//! log of their own, and with `tonic` a second stack of HTTP, for eight messages and a queue.

pub mod context;
mod exporter;
pub mod otlp;
pub mod span;

use std::sync::Arc;

use self::context::{Context, TraceId};
use self::exporter::Queue;
pub use self::exporter::{Exporter, Post, Target};
pub use self::span::{Kind, Span, carry, here, id, start};

/// Which requests are recorded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampler {
    /// Of those that nobody decided about, from 0 to 1.
    pub share: f64,
    /// Whether a client's `traceparent` decides about its own.
    pub heeds_parent: bool,
}

/// What all spans share.
struct Shared {
    sampler: Sampler,
    /// Whether upstreams are told.
    propagate: bool,
    queue: Queue,
}

/// Begins traces; or does not, where none are wanted. Cheap to clone.
#[derive(Clone, Default)]
pub struct Tracer(Option<Arc<Shared>>);

/// What is known of a request's trace from its beginning.
#[derive(Debug, Default)]
pub struct Begun {
    pub span: Span,
    /// For its log line: of a client's trace also where that is not recorded.
    pub id: Option<TraceId>,
}

impl Tracer {
    /// And what takes its spans to `target`, which has to be closed at the end. Within a runtime.
    pub fn new(sampler: Sampler, propagate: bool, target: Target) -> (Tracer, Exporter) {
        let (queue, exporter) = Exporter::start(target);
        let shared = Shared {
            sampler,
            propagate,
            queue,
        };
        (Tracer(Some(Arc::new(shared))), exporter)
    }

    /// One that writes into `records`, for tests.
    #[cfg(test)]
    pub fn into_queue(sampler: Sampler, room: usize) -> (Tracer, tokio::sync::mpsc::Receiver<span::Record>) {
        let (sender, records) = tokio::sync::mpsc::channel(room);
        let shared = Shared {
            sampler,
            propagate: true,
            queue: Queue(sender),
        };
        (Tracer(Some(Arc::new(shared))), records)
    }

    /// A request is here. `parent` reads its headers.
    pub fn request(&self, name: &'static str, parent: impl FnOnce() -> Option<Context>) -> Begun {
        let Some(shared) = &self.0 else {
            return Begun::default();
        };
        let parent = parent();
        let sampler = shared.sampler;
        let (context, from) = match parent {
            Some(parent) => {
                let is_wanted = match sampler.heeds_parent {
                    true => parent.is_sampled(),
                    false => parent.trace.is_among(sampler.share),
                };
                if !is_wanted {
                    let id = Some(parent.trace);
                    return Begun { id, ..Begun::default() };
                }
                (parent.child().sampled(), Some((parent.span, true)))
            }
            None => {
                let root = Context::root();
                if !root.trace.is_among(sampler.share) {
                    return Begun::default();
                }
                (root, None)
            }
        };
        let id = Some(context.trace);
        let span = Span::open(shared.clone(), context, from, name, Kind::Server);
        Begun { span, id }
    }
}

#[cfg(test)]
mod tests;
