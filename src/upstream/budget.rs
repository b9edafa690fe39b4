//! Pull limits, by account: what is left, how fast it goes, and whether it is time to spare it.
//!
//! A registry's limit is one user's, or one address's for the anonymous, so each has a ledger. A reading is believed for as
//! long as the registry's window: after it everything that was spent has come back, and where checks are spared nobody
//! would ever be told.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::body::one_line;
use super::breaker;
use super::credentials::Credential;
use super::rate_limit::RateLimit;
use crate::config::Floor;

/// The pace is that of the last hour.
const HOUR: Duration = Duration::from_secs(3600);
/// A ledger that has just been begun tells no pace by one reading.
const LEAST_SPAN: Duration = Duration::from_secs(60);
/// How long a reading without a window is believed.
const UNTOLD_WINDOW: Duration = HOUR;
/// User names are the operator's own, so few; helpers could give out others.
const MAX_ACCOUNTS: usize = 32;

/// One account's limit, as it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Budget {
    /// `anonymous`, or a user's name.
    pub account: String,
    pub limit: Option<u64>,
    pub remaining: u64,
    pub window: Option<Duration>,
    /// Whose limit the registry says that it is.
    pub source: Option<String>,
    /// Since the registry said so.
    pub age: Duration,
    /// Pulls in the last hour, or since the first reading.
    pub spent: u64,
    /// When nothing will be left at that pace; `None`: at rest.
    pub runs_out: Option<Duration>,
    /// Whether it is below the floor.
    pub is_low: bool,
}

#[derive(Debug)]
pub struct Budgets {
    upstream: Arc<str>,
    floor: Floor,
    accounts: Mutex<BTreeMap<String, Ledger>>,
}

#[derive(Clone, Debug)]
struct Ledger {
    last: RateLimit,
    seen: Instant,
    begun: Instant,
    /// When how many were spent, oldest first; of the last hour.
    spent: VecDeque<(Instant, u64)>,
    was_low: bool,
}

impl Budgets {
    pub fn new(upstream: Arc<str>, floor: Floor) -> Budgets {
        Budgets {
            upstream,
            floor,
            accounts: Mutex::default(),
        }
    }

    /// An answer to this credential said so.
    pub fn note(&self, credential: &Credential, said: RateLimit) {
        let (account, now) = (account(credential), Instant::now());
        let mut accounts = self.accounts();
        if !accounts.contains_key(account) && accounts.len() >= MAX_ACCOUNTS {
            return;
        }
        let ledger = accounts.entry(account.to_owned()).or_insert_with(|| Ledger {
            last: said.clone(),
            seen: now,
            begun: now,
            spent: VecDeque::new(),
            was_low: false,
        });
        ledger.note(said, now);
        let budget = ledger.budget(account, self.floor, now);
        if budget.is_low != ledger.was_low {
            ledger.was_low = budget.is_low;
            let (upstream, remaining, limit) = (&self.upstream, budget.remaining, budget.limit);
            match budget.is_low {
                true => {
                    tracing::warn!(%upstream, account, remaining, limit, floor = %self.floor, "few pulls are left: tags are served unchecked, only what is missing is fetched")
                }
                false => tracing::info!(%upstream, account, remaining, limit, "pulls are left again: tags are checked"),
            }
        }
        self.tell(&budget);
    }

    /// Whether this credential's pulls are to be spared.
    pub fn is_low(&self, credential: &Credential) -> bool {
        let accounts = self.accounts();
        let ledger = accounts.get(account(credential));
        ledger.is_some_and(|ledger| ledger.is_low(self.floor, Instant::now()))
    }

    /// Takes over the ledgers; the floor may be another.
    pub fn inherit(&self, before: &Budgets) {
        let ledgers = before.accounts().clone();
        *self.accounts() = ledgers;
    }

    pub fn all(&self) -> Vec<Budget> {
        let now = Instant::now();
        let accounts = self.accounts();
        accounts
            .iter()
            .map(|(account, ledger)| ledger.budget(account, self.floor, now))
            .collect()
    }

    /// Brings the gauges up to date: a pace slows down without anybody saying so.
    pub fn export(&self) {
        for budget in self.all() {
            self.tell(&budget);
        }
    }

    fn tell(&self, budget: &Budget) {
        let labels = [
            ("upstream", self.upstream.to_string()),
            ("credential", one_line(&budget.account, 64)),
        ];
        metrics::gauge!("larder_upstream_ratelimit_remaining", &labels).set(budget.remaining as f64);
        if let Some(limit) = budget.limit {
            metrics::gauge!("larder_upstream_ratelimit_limit", &labels).set(limit as f64);
        }
        let runs_out = budget.runs_out.map_or(f64::INFINITY, |left| left.as_secs_f64());
        metrics::gauge!("larder_upstream_ratelimit_runs_out_seconds", &labels).set(runs_out);
        metrics::gauge!("larder_upstream_ratelimit_low", &labels).set(f64::from(u8::from(budget.is_low)));
    }

    fn accounts(&self) -> MutexGuard<'_, BTreeMap<String, Ledger>> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ledger {
    fn note(&mut self, said: RateLimit, now: Instant) {
        // More than before: some have come back, and how many were spent meanwhile nobody knows.
        let spent = self.last.remaining.saturating_sub(said.remaining);
        if spent > 0 {
            self.spent.push_back((now, spent));
        }
        while self.spent.front().is_some_and(|(at, _)| now - *at > HOUR) {
            self.spent.pop_front();
        }
        self.last = said;
        self.seen = now;
    }

    fn is_low(&self, floor: Floor, now: Instant) -> bool {
        let window = self.last.window.unwrap_or(UNTOLD_WINDOW).min(breaker::LONGEST);
        now - self.seen < window && floor.is_above(self.last.remaining, self.last.limit)
    }

    fn budget(&self, account: &str, floor: Floor, now: Instant) -> Budget {
        let recent = self.spent.iter().filter(|(at, _)| now - *at <= HOUR);
        let spent = recent.fold(0u64, |sum, (_, n)| sum.saturating_add(*n));
        let span = (now - self.begun).clamp(LEAST_SPAN, HOUR);
        let left = span.as_secs_f64() * self.last.remaining as f64 / spent as f64;
        Budget {
            account: account.to_owned(),
            limit: self.last.limit,
            remaining: self.last.remaining,
            window: self.last.window,
            source: self.last.source.clone(),
            age: now - self.seen,
            spent,
            runs_out: (spent > 0).then(|| Duration::from_secs_f64(left.min(1e9))),
            is_low: self.is_low(floor, now),
        }
    }
}

/// Whose limit it is: credentials come and go, users stay.
fn account(credential: &Credential) -> &str {
    match credential {
        Credential::Anonymous => "anonymous",
        Credential::Basic { username, .. } | Credential::Identity { username, .. } if !username.is_empty() => username,
        _ => "token",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(remaining: u64) -> RateLimit {
        RateLimit {
            limit: Some(100),
            remaining,
            window: Some(6 * HOUR),
            source: None,
        }
    }

    fn budgets(floor: Floor) -> Budgets {
        Budgets::new("budget.test".into(), floor)
    }

    #[tokio::test(start_paused = true)]
    async fn the_pace_of_the_last_hour() {
        let budgets = budgets(Floor::Percent(10));
        let one = || budgets.all().remove(0);
        budgets.note(&Credential::Anonymous, said(100));
        assert_eq!((one().spent, one().runs_out), (0, None));
        tokio::time::advance(HOUR / 2).await;
        budgets.note(&Credential::Anonymous, said(80));
        // 20 in half an hour: 80 are gone in two.
        assert_eq!((one().spent, one().runs_out), (20, Some(2 * HOUR)));
        tokio::time::advance(HOUR / 2).await;
        assert_eq!(one().runs_out, Some(4 * HOUR));
        budgets.note(&Credential::Anonymous, said(70));
        assert_eq!((one().spent, one().runs_out), (30, Some(HOUR * 7 / 3)));
        tokio::time::advance(HOUR / 2 + LEAST_SPAN).await;
        assert_eq!((one().spent, one().runs_out), (10, Some(7 * HOUR)));
        // The window has passed: what comes back is not spent.
        budgets.note(&Credential::Anonymous, said(100));
        assert_eq!((one().spent, one().runs_out), (10, Some(10 * HOUR)));
        tokio::time::advance(HOUR).await;
        assert_eq!((one().spent, one().runs_out), (0, None));
        // Whatever it says.
        for remaining in [u64::MAX, 0, u64::MAX, 0] {
            budgets.note(&Credential::Anonymous, said(remaining));
        }
        assert_eq!((one().spent, one().runs_out), (u64::MAX, Some(Duration::ZERO)));
    }

    #[tokio::test(start_paused = true)]
    async fn each_account_has_its_own_and_no_reading_lasts() {
        let budgets = budgets(Floor::Pulls(10));
        let user = Credential::Basic {
            username: "me".to_owned(),
            password: crate::config::Secret::new("one"),
        };
        let rotated = Credential::Basic {
            username: "me".to_owned(),
            password: crate::config::Secret::new("two"),
        };
        budgets.note(&user, said(10));
        budgets.note(&Credential::Anonymous, said(9));
        assert!(budgets.is_low(&Credential::Anonymous) && !budgets.is_low(&user));
        budgets.note(&rotated, said(3));
        assert!(budgets.is_low(&user));
        let accounts: Vec<String> = budgets.all().into_iter().map(|one| one.account).collect();
        assert_eq!(accounts, ["anonymous", "me"]);
        tokio::time::advance(6 * HOUR).await;
        assert!(!budgets.is_low(&user) && !budgets.all()[1].is_low);
    }
}
