//! Webhooks: what happened is told to endpoints of the operator's, in the format of distribution's notifications.
//!
//! Walk: [`crate::events`] → a queue in memory that is bounded, which nobody waits for → one thread (`writer`), which says for
//! each event whom it is for, makes it an envelope's entry (`envelope`) and puts it into those hooks' queues on disk
//! ([`crate::store::Queue`]) → for each hook a task (`delivery`) that takes batches from the queue, signs them
//! (`signature`), sends them, and says by the answer (`pace`) whether they are done with, are tried again, or are in the way.
//!
//! At least once, in order for each hook; a hook that is dead holds up no other, and no pull. What waits is on disk: after a restart or
//! a crash it is delivered. What can be lost: events beyond what the queue in memory holds (counted as lost); beyond `queue_max`, the
//! oldest; those older than `max_age`; with a crash of the process the few milliseconds that the writer had not yet taken, with one of
//! the machine its last second.
//!
//! This floor cannot reach the network: [`Couriers`] are brought to it. Without hooks nothing is made: no queue, no thread, no
//! listener.

mod delivery;
mod envelope;
mod hook;
mod pace;
mod signature;
mod writer;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;

pub use envelope::Source;
pub use hook::HookStatus;

use crate::config::{self, Secret};
use crate::events::Actions;
use crate::store::{Line, Store, StoreError};
use crate::telemetry::clock::unix_ms;
use hook::Hook;
use writer::Writer;

/// What is sent: headers beside the usual ones, and an envelope.
pub struct Parcel {
    pub headers: Vec<(String, Secret)>,
    pub body: Bytes,
}

/// What an endpoint said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// How long it wants to be left alone.
    pub retry_after: Option<Duration>,
}

/// The way to one endpoint. Errors: why there was no answer, in a sentence without secrets.
pub type Carry = Arc<dyn Fn(Parcel) -> BoxFuture<'static, Result<Answer, String>> + Send + Sync>;

/// Makes such a way; dials nothing. Errors: what of the hook's settings cannot be used.
pub type Couriers = Arc<dyn Fn(&config::Webhook) -> Result<Carry, String> + Send + Sync>;

/// What an envelope's body is.
pub const MEDIA_TYPE: &str = envelope::MEDIA_TYPE;

/// Why hooks cannot be what they are to be; nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    #[error("webhook {0}: {1}")]
    Courier(String, String),
    #[error("webhook {0}: {1}")]
    Queue(String, StoreError),
}

/// The hooks of a proxy. Cheap to clone.
#[derive(Clone)]
pub struct Webhooks(Arc<Inner>);

struct Inner {
    store: Store,
    couriers: Couriers,
    source: Source,
    /// Read for each event.
    hooks: Arc<ArcSwap<Vec<Arc<Hook>>>>,
    /// From the first hook on.
    writer: Mutex<Option<Writer>>,
    /// What deliveries run on; `None`: another process delivers.
    runtime: Option<tokio::runtime::Handle>,
    stop: CancellationToken,
}

impl Webhooks {
    /// Without hooks as yet. In a runtime, which deliveries run on until `stop`.
    pub fn new(store: Store, couriers: Couriers, source: Source, stop: CancellationToken) -> Webhooks {
        Webhooks::on(Some(tokio::runtime::Handle::current()), store, couriers, source, stop)
    }

    /// For a folder at rest: what happens is put into the queues, and delivered by the proxy that opens the folder next.
    pub fn at_rest(store: Store, couriers: Couriers, source: Source) -> Webhooks {
        Webhooks::on(None, store, couriers, source, CancellationToken::new())
    }

    fn on(
        runtime: Option<tokio::runtime::Handle>,
        store: Store,
        couriers: Couriers,
        source: Source,
        stop: CancellationToken,
    ) -> Webhooks {
        Webhooks(Arc::new(Inner {
            store,
            couriers,
            source,
            hooks: Arc::default(),
            writer: Mutex::default(),
            runtime,
            stop,
        }))
    }

    /// These are the hooks from now on. One that stays as it was is not disturbed; one with other settings goes on with its queue;
    /// what waits for one that is no more goes with it. Blocking.
    pub fn set(&self, wanted: &[config::Webhook]) -> Result<(), HookError> {
        let mut writer = self.writer();
        let before = self.0.hooks.load_full();
        let (mut hooks, mut begun) = (Vec::new(), Vec::new());
        for settings in wanted {
            let known = before.iter().find(|hook| hook.settings.name == settings.name);
            // A file of authorities may have another content by now.
            if let Some(same) = known.filter(|hook| *hook.settings == *settings && settings.ca_file.is_none()) {
                hooks.push(same.clone());
                continue;
            }
            let carry = (self.0.couriers)(settings).map_err(|what| HookError::Courier(settings.name.clone(), what))?;
            let queue = match known {
                Some(hook) => hook.queue.clone(),
                None => {
                    let queue = self.0.store.queue(&settings.name, settings.queue_max);
                    Arc::new(queue.map_err(|error| HookError::Queue(settings.name.clone(), error))?)
                }
            };
            let hook = Arc::new(Hook::new(settings, queue, self.0.stop.child_token()));
            hooks.push(hook.clone());
            begun.push((hook, carry));
        }
        let names: Vec<&str> = wanted.iter().map(|hook| hook.name.as_str()).collect();
        for hook in before
            .iter()
            .filter(|hook| !hooks.iter().any(|kept| Arc::ptr_eq(kept, hook)))
        {
            hook.stop.cancel();
            if !names.contains(&hook.settings.name.as_str()) {
                hook.forget_gauges();
            }
        }
        let wants = hooks.iter().fold(Actions::default(), |all, hook| all | hook.actions);
        self.0.hooks.store(Arc::new(hooks));
        for (hook, carry) in begun {
            hook.settle_room();
            if let Some(runtime) = &self.0.runtime {
                runtime.spawn(delivery::deliver(hook, carry));
            }
        }
        // Who only fills them may have another configuration than the proxy.
        if self.0.runtime.is_some() {
            for name in self.0.store.forget_queues(&names) {
                let why = "no such webhook is configured: what waited for it is gone";
                tracing::warn!(webhook = name, "{why}");
            }
        }
        let events = self.0.store.events();
        match &*writer {
            Some(writer) => events.want(&writer.seat, wants),
            None if wants.is_empty() => {}
            None => *writer = Writer::start(events, wants, self.0.hooks.clone(), self.0.source.clone()),
        }
        Ok(())
    }

    /// Whether their settings can be used. Blocking.
    pub fn check(&self, wanted: &[config::Webhook]) -> Result<(), HookError> {
        for hook in wanted {
            (self.0.couriers)(hook).map_err(|what| HookError::Courier(hook.name.clone(), what))?;
        }
        Ok(())
    }

    /// How each hook stands. Blocking, briefly.
    pub fn status(&self) -> Vec<HookStatus> {
        self.0.hooks.load().iter().map(|hook| hook.status()).collect()
    }

    /// Brings the gauges up to date. Blocking, briefly.
    pub fn export(&self) {
        for hook in self.0.hooks.load().iter() {
            hook.export();
        }
    }

    /// After the events were closed: until the last of them is on the disk. Blocking.
    pub fn join(&self) {
        let writer = self.writer().take();
        if let Some(writer) = writer {
            writer.join();
        }
    }

    fn writer(&self) -> MutexGuard<'_, Option<Writer>> {
        self.0.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends an event about nothing, past the queue; what the endpoint says to it.
pub async fn ping(settings: &config::Webhook, couriers: &Couriers, source: &Source) -> Result<Answer, String> {
    let carry = couriers(settings)?;
    let at_ms = unix_ms(SystemTime::now());
    let json = envelope::ping(&settings.name, source, &envelope::id(), at_ms);
    let body = envelope::body(&[Line { at_ms, json }]);
    delivery::send(&Arc::new(settings.clone()), &carry, body).await
}
