//! One hook: its settings, its queue, and how it goes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use metrics::{counter, gauge};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::config;
use crate::events::{Action, Actions, Event};
use crate::store::Queue;
use crate::telemetry::clock::unix_ms;

/// Of what goes lost a line is written this often.
const TELL_EVERY: Duration = Duration::from_secs(60);

pub(super) struct Hook {
    pub(super) settings: Arc<config::Webhook>,
    pub(super) actions: Actions,
    pub(super) queue: Arc<Queue>,
    /// Something came into the queue.
    pub(super) ready: Notify,
    pub(super) stop: CancellationToken,
    health: Mutex<Health>,
}

#[derive(Default)]
struct Health {
    /// Why the last delivery failed, until one does not.
    failing: Option<String>,
    delivered: u64,
    dropped: u64,
    told_drop: Option<Instant>,
    told_disk: Option<Instant>,
}

/// How it stands with one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookStatus {
    pub name: String,
    /// Scheme, host and port.
    pub url: String,
    pub queued_events: u64,
    pub queued_bytes: u64,
    /// Of the oldest that waits.
    pub oldest_seconds: Option<u64>,
    /// Events, since the start.
    pub delivered: u64,
    pub dropped: u64,
    pub failing: Option<String>,
}

impl Hook {
    pub(super) fn new(settings: &config::Webhook, queue: Arc<Queue>, stop: CancellationToken) -> Hook {
        let wanted = |action: &Action| settings.events.iter().any(|word| word == action.as_str());
        // From zero on: what appears at some other number was never seen to grow.
        counter!("larder_webhook_delivered_total", "webhook" => settings.name.clone()).increment(0);
        for reason in ["full", "expired", "refused", "damaged", "disk"] {
            counter!("larder_webhook_dropped_total", "webhook" => settings.name.clone(), "reason" => reason)
                .increment(0);
        }
        Hook {
            actions: Action::ALL.into_iter().filter(wanted).collect(),
            settings: Arc::new(settings.clone()),
            queue,
            ready: Notify::new(),
            stop,
            health: Mutex::default(),
        }
    }

    pub(super) fn is_for(&self, event: &Event) -> bool {
        self.actions.holds(event.action) && self.settings.is_for(event.repository.as_deref())
    }

    /// Holds the queue to the limit of these settings.
    pub(super) fn settle_room(&self) {
        self.note_dropped("full", self.queue.set_max_bytes(self.settings.queue_max));
    }

    pub(super) fn note_delivered(&self, events: u64) {
        counter!("larder_webhook_delivered_total", "webhook" => self.name()).increment(events);
        let mut health = self.health();
        health.delivered += events;
        if health.failing.take().is_some() {
            tracing::info!(webhook = self.name(), "the webhook is delivered again");
        }
    }

    /// `status` is that of the answer, or `none`.
    pub(super) fn note_failed(&self, status: &str, why: String) {
        counter!("larder_webhook_failed_total", "webhook" => self.name(), "status" => status.to_owned()).increment(1);
        let mut health = self.health();
        if health.failing.is_none() {
            tracing::warn!(webhook = self.name(), url = %self.settings.url, why, "the webhook cannot be delivered: events wait on disk");
        }
        health.failing = Some(why);
    }

    /// Events that are not delivered any more, and why.
    pub(super) fn note_dropped(&self, reason: &'static str, events: u64) {
        if events == 0 {
            return;
        }
        counter!("larder_webhook_dropped_total", "webhook" => self.name(), "reason" => reason).increment(events);
        let mut health = self.health();
        health.dropped += events;
        if health.told_drop.is_none_or(|at| at.elapsed() >= TELL_EVERY) {
            health.told_drop = Some(Instant::now());
            let all = health.dropped;
            tracing::warn!(
                webhook = self.name(),
                reason,
                events,
                since_start = all,
                "events for the webhook were dropped"
            );
        }
    }

    pub(super) fn note_disk(&self, error: &std::io::Error) {
        let mut health = self.health();
        if health.told_disk.is_none_or(|at| at.elapsed() >= TELL_EVERY) {
            health.told_disk = Some(Instant::now());
            tracing::error!(webhook = self.name(), %error, "the queue of the webhook cannot be read or written");
        }
    }

    pub(super) fn status(&self) -> HookStatus {
        let waiting = self.queue.waiting();
        let now = unix_ms(SystemTime::now());
        let health = self.health();
        HookStatus {
            name: self.name(),
            url: self.settings.url.to_string(),
            queued_events: waiting.events,
            queued_bytes: waiting.bytes,
            oldest_seconds: waiting.oldest_ms.map(|at| now.saturating_sub(at) / 1000),
            delivered: health.delivered,
            dropped: health.dropped,
            failing: health.failing.clone(),
        }
    }

    pub(super) fn export(&self) {
        let status = self.status();
        self.set_gauges(
            status.queued_events,
            status.queued_bytes,
            status.oldest_seconds.unwrap_or(0),
        );
    }

    pub(super) fn forget_gauges(&self) {
        self.set_gauges(0, 0, 0);
    }

    fn set_gauges(&self, events: u64, bytes: u64, oldest: u64) {
        gauge!("larder_webhook_queued_events", "webhook" => self.name()).set(events as f64);
        gauge!("larder_webhook_queued_bytes", "webhook" => self.name()).set(bytes as f64);
        gauge!("larder_webhook_oldest_seconds", "webhook" => self.name()).set(oldest as f64);
    }

    fn name(&self) -> String {
        self.settings.name.clone()
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
