//! `[[prefetch]]` by the clock, and when an operator asks. What was missed while nothing ran is not made up for: the next time comes.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::{Job, PARALLEL, Phase, Prefetcher, Request, TooMany};
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
    /// `before`: what had its name until now.
    fn after(before: Option<&Scheduled>, config: Prefetch, now_ms: u64) -> Scheduled {
        let next_ms = config.schedule.next_after(now_ms);
        let last = before.and_then(Scheduled::last);
        Scheduled {
            config,
            state: Mutex::new(State { next_ms, last }),
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

/// Why one of the configuration's does not begin.
#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    #[error("prefetch {name} runs already, as job {job}: wait for its end, or cancel it")]
    Runs { name: String, job: u64 },
    #[error("{0}")]
    List(String),
    #[error(transparent)]
    TooMany(#[from] TooMany),
}

impl Prefetcher {
    pub fn schedules(&self) -> Arc<Vec<Arc<Scheduled>>> {
        self.schedules.load_full()
    }

    /// Those of another configuration. One that is as it was keeps its next time; a job that runs goes on as it began, also if
    /// it is none of the configuration's any more.
    pub fn set_schedules(&self, wanted: &[Prefetch]) {
        let (before, now) = (self.schedules(), unix_ms());
        let scheduled = |config: &Prefetch| {
            let known = before.iter().find(|known| known.config.name == config.name);
            match known {
                Some(known) if known.config == *config => known.clone(),
                _ => Arc::new(Scheduled::after(known.map(|known| &**known), config.clone(), now)),
            }
        };
        self.schedules.store(Arc::new(wanted.iter().map(scheduled).collect()));
        self.rescheduled.notify_one();
    }

    /// Begins what is due at `now_ms`, Unix milliseconds.
    pub async fn tick(&self, now_ms: u64) {
        for scheduled in self.schedules().iter() {
            if scheduled.take_turn(now_ms) {
                self.begin_due(scheduled).await;
            }
        }
    }

    /// Begins one of the configuration's, whatever its time is. A dry run does not stand in the way of the next.
    pub async fn begin(&self, scheduled: &Scheduled, dry_run: bool, parallel: usize) -> Result<Arc<Job>, BeginError> {
        let name = &scheduled.config.name;
        if let Some(job) = scheduled.last().filter(|job| job.phase() == Phase::Running) {
            let name = name.clone();
            return Err(BeginError::Runs { name, job: job.id });
        }
        let config = scheduled.config.clone();
        let wanted = tokio::task::spawn_blocking(move || config.wanted()).await;
        let wanted = wanted.unwrap_or_else(|_| Err("its list could not be read".to_owned()));
        let config = &scheduled.config;
        let job = self.start(Request {
            name: name.clone(),
            wanted: wanted.map_err(BeginError::List)?,
            platforms: config.platforms.clone(),
            referrers: config.referrers,
            dry_run,
            parallel,
        })?;
        if !dry_run {
            scheduled.state().last = Some(job.clone());
        }
        Ok(job)
    }

    async fn begin_due(&self, scheduled: &Scheduled) {
        let name = &scheduled.config.name;
        match self.begin(scheduled, false, PARALLEL).await {
            Ok(_) => {}
            Err(BeginError::Runs { .. }) => {
                tracing::warn!(%name, "a prefetch is due while it still runs from the last time: left out");
            }
            Err(why) => {
                tracing::error!(%name, %why, "a prefetch that is due cannot begin");
                metrics::counter!("larder_prefetch_runs_total", "prefetch" => name.clone(), "result" => "refused")
                    .increment(1);
            }
        }
    }

    /// By the clock, for as long as it is polled.
    pub async fn run_schedules(&self) {
        loop {
            let now = unix_ms();
            self.tick(now).await;
            let next = self
                .schedules()
                .iter()
                .filter_map(|scheduled| scheduled.next_ms())
                .min();
            let left = next.map_or(LOOK_AGAIN, |next| Duration::from_millis(next.saturating_sub(unix_ms())));
            let left = left.clamp(Duration::from_millis(50), LOOK_AGAIN);
            // Others may come sooner.
            let _ = tokio::time::timeout(left, self.rescheduled.notified()).await;
        }
    }
}
