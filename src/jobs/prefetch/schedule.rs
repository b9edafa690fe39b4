//! `[[prefetch]]` by the clock. What was missed while nothing ran is not made up for: the next time comes.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::{Job, PARALLEL, Phase, Prefetcher, Request};
use crate::config::Prefetch;
use crate::store::unix_ms;

/// The clock may be set meanwhile.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// One of them, and where it stands.
pub struct Scheduled {
    pub config: Prefetch,
    state: Mutex<State>,
}

struct State {
    next_ms: Option<u64>,
    last: Option<Arc<Job>>,
}

impl Scheduled {
    pub(super) fn new(config: Prefetch, now_ms: u64) -> Scheduled {
        let next_ms = config.schedule.next_after(now_ms);
        Scheduled {
            config,
            state: Mutex::new(State { next_ms, last: None }),
        }
    }

    /// When it runs next, Unix milliseconds.
    pub fn next_ms(&self) -> Option<u64> {
        self.state().next_ms
    }

    pub fn last(&self) -> Option<Arc<Job>> {
        self.state().last.clone()
    }

    /// Whether its time has come; then the one after that is set.
    fn take_turn(&self, now_ms: u64) -> bool {
        let mut state = self.state();
        let is_due = state.next_ms.is_some_and(|next| next <= now_ms);
        // A clock that was set back by more than a day would keep it waiting for as long.
        let is_far = self
            .config
            .schedule
            .next_after(now_ms)
            .zip(state.next_ms)
            .is_some_and(|(sooner, next)| sooner < next);
        if is_due || is_far {
            state.next_ms = self.config.schedule.next_after(now_ms);
        }
        is_due
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Prefetcher {
    pub fn schedules(&self) -> &[Scheduled] {
        &self.schedules
    }

    /// Begins what is due at `now_ms`, Unix milliseconds.
    pub async fn tick(&self, now_ms: u64) {
        for scheduled in &self.schedules {
            if scheduled.take_turn(now_ms) {
                self.begin(scheduled).await;
            }
        }
    }

    async fn begin(&self, scheduled: &Scheduled) {
        let name = &scheduled.config.name;
        if scheduled.last().is_some_and(|job| job.phase() == Phase::Running) {
            tracing::warn!(%name, "a prefetch is due while it still runs from the last time: left out");
            return;
        }
        let config = scheduled.config.clone();
        let wanted = tokio::task::spawn_blocking(move || config.wanted()).await;
        let wanted = wanted.unwrap_or_else(|_| Err("its list could not be read".to_owned()));
        let config = &scheduled.config;
        let begun = wanted.and_then(|wanted| {
            let request = Request {
                name: name.clone(),
                wanted,
                platforms: config.platforms.clone(),
                referrers: config.referrers,
                dry_run: false,
                parallel: PARALLEL,
            };
            self.start(request).map_err(|error| error.to_string())
        });
        match begun {
            Ok(job) => scheduled.state().last = Some(job),
            Err(why) => {
                tracing::error!(%name, %why, "a prefetch that is due cannot begin");
                metrics::counter!("larder_prefetch_runs_total", "prefetch" => name.clone(), "result" => "refused")
                    .increment(1);
            }
        }
    }

    /// By the clock, for as long as it is polled.
    pub async fn run_schedules(&self) {
        if self.schedules.is_empty() {
            return std::future::pending().await;
        }
        loop {
            let now = unix_ms();
            self.tick(now).await;
            let next = self.schedules.iter().filter_map(Scheduled::next_ms).min();
            let left = next.map_or(LOOK_AGAIN, |next| Duration::from_millis(next.saturating_sub(unix_ms())));
            tokio::time::sleep(left.clamp(Duration::from_millis(50), LOOK_AGAIN)).await;
        }
    }
}
