//! The thread that takes events and puts them into the hooks' queues on disk.
//!
//! Lines are handed to the kernel, and hooks woken, as soon as no event waits, and synced at most once a second; as with the audit log.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use tokio::sync::mpsc::error::TryRecvError;

use super::envelope::{self, Source};
use super::hook::Hook;
use crate::events::{Actions, Event, Events, Seat, Subscription};
use crate::store::Lost;
use crate::telemetry::clock::unix_ms;

/// Events that may wait in memory: a few MiB, and some seconds of a busy proxy.
const ROOM: usize = 16_384;
const SYNC_EVERY: Duration = Duration::from_secs(1);
/// For another event, while the last are not yet synced.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// A proxy that leaves no pause has its events handed over in such numbers.
const FLUSH_EVERY: u32 = 256;
const TELL_EVERY: Duration = Duration::from_secs(60);

type Hooks = Arc<ArcSwap<Vec<Arc<Hook>>>>;

pub(super) struct Writer {
    pub(super) seat: Seat,
    thread: JoinHandle<()>,
}

impl Writer {
    /// Listens from now on. `None` if the process can have no more threads, which the log is told.
    pub(super) fn start(events: &Events, wants: Actions, hooks: Hooks, source: Source) -> Option<Writer> {
        let from = events.subscribe(ROOM, wants);
        let seat = from.seat();
        let work = Work {
            hooks,
            source,
            unflushed: 0,
            synced: Instant::now(),
            is_dirty: false,
            told: None,
        };
        let thread = std::thread::Builder::new().name("webhooks".to_owned());
        match thread.spawn(move || work.run(from)) {
            Ok(thread) => Some(Writer { seat, thread }),
            Err(error) => {
                tracing::error!(%error, "webhooks are told nothing: there is no thread for them");
                events.want(&seat, Actions::default());
                None
            }
        }
    }

    /// After the events were closed. Blocking.
    pub(super) fn join(self) {
        let _ = self.thread.join();
    }
}

struct Work {
    hooks: Hooks,
    source: Source,
    unflushed: u32,
    synced: Instant,
    is_dirty: bool,
    told: Option<Instant>,
}

impl Work {
    fn run(mut self, mut from: Subscription) {
        while let Some(event) = self.next(&mut from) {
            self.note_lost(from.lost());
            self.put(&event);
        }
        self.note_lost(from.lost());
        self.flush();
        self.sync();
    }

    /// The next event. Before it is waited for, what is there is handed over, and synced when its second is over.
    fn next(&mut self, from: &mut Subscription) -> Option<Arc<Event>> {
        loop {
            match from.events.try_recv() {
                Ok(event) => return Some(event),
                Err(TryRecvError::Disconnected) => return None,
                Err(TryRecvError::Empty) => self.flush(),
            }
            match (self.is_dirty, self.synced.elapsed() >= SYNC_EVERY) {
                (false, _) => return from.events.blocking_recv(),
                (true, true) => self.sync(),
                (true, false) => std::thread::sleep(LOOK_EVERY),
            }
        }
    }

    fn put(&mut self, event: &Event) {
        let hooks = self.hooks.load();
        let mut entry: Option<(u64, String)> = None;
        for hook in hooks.iter().filter(|hook| hook.is_for(event)) {
            // For all hooks the same one, so that who hears of it twice can tell.
            let (at_ms, json) = entry.get_or_insert_with(|| {
                let now = unix_ms(SystemTime::now());
                (now, envelope::event(event, &self.source, &envelope::id(), now))
            });
            told(hook, hook.queue.put(*at_ms, json));
        }
        if entry.is_none() {
            return;
        }
        self.unflushed += 1;
        self.is_dirty = true;
        if self.unflushed >= FLUSH_EVERY {
            self.flush();
            if self.synced.elapsed() >= SYNC_EVERY {
                self.sync();
            }
        }
    }

    fn flush(&mut self) {
        if std::mem::take(&mut self.unflushed) == 0 {
            return;
        }
        for hook in self.hooks.load().iter() {
            told(hook, hook.queue.flush());
            hook.ready.notify_one();
        }
    }

    fn sync(&mut self) {
        if std::mem::take(&mut self.is_dirty) {
            for hook in self.hooks.load().iter() {
                if let Err(error) = hook.queue.sync() {
                    hook.note_disk(&error);
                }
            }
        }
        self.synced = Instant::now();
    }

    /// What the queue in memory had no room for.
    fn note_lost(&mut self, events: u64) {
        if events == 0 {
            return;
        }
        metrics::counter!("larder_webhook_lost_total").increment(events);
        if self.told.is_none_or(|at| at.elapsed() >= TELL_EVERY) {
            self.told = Some(Instant::now());
            tracing::warn!(
                events,
                "events come faster than webhooks' queues can be written: some are lost"
            );
        }
    }
}

/// What became of a write.
fn told(hook: &Hook, outcome: Result<u64, Lost>) {
    match outcome {
        Ok(dropped) => hook.note_dropped("full", dropped),
        Err(lost) => {
            hook.note_disk(&lost.source);
            hook.note_dropped("disk", lost.events);
        }
    }
}
