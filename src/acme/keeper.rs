//! Keeps a certificate: shows the one that there is, has another issued when it is due, and tries again when that fails.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use metrics::{counter, gauge};

use super::certificate::Certificate;
use super::directory::Directory;
use super::error::{AcmeError, Fault};
use super::issued::Issued;
use super::order::Office;
use super::plan;
use super::record::{self, Attempts, Issue, Wanted, at_ms, unix_ms};
use crate::config::Acme;
use crate::store::{Paper, State};

/// How long this side waits.
#[derive(Clone, Debug)]
pub struct Patience {
    /// For a whole order.
    pub order: Duration,
    /// Between two looks at the clock: one that is put right, or a machine that slept, is noticed.
    pub nap: Duration,
    /// Between two questions when to renew (RFC 9773).
    pub question: Duration,
    /// By how much pauses after failures are stretched: 1, but for tests.
    pub stretch: f64,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience {
            order: Duration::from_secs(600),
            nap: Duration::from_secs(300),
            question: Duration::from_secs(6 * 3600),
            stretch: 1.0,
        }
    }
}

/// How things stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Of the certificate that is shown, unless that is the one for the time being.
    pub expires: Option<SystemTime>,
    /// When the next order is due.
    pub next: Option<SystemTime>,
    /// Why the last order failed.
    pub failure: Option<String>,
}

/// One for a process, and for its cache folder.
pub struct Keeper {
    acme: Acme,
    state: State,
    issued: Arc<Issued>,
    patience: Patience,
    status: Mutex<Status>,
    /// Until [`Keeper::run`] takes it.
    remembered: Mutex<Option<Known>>,
}

/// What is known between two steps.
#[derive(Default)]
struct Known {
    certificate: Option<Certificate>,
    /// Whether it is what was ordered by today's configuration.
    is_wanted: bool,
    came: Option<SystemTime>,
    attempts: Option<Attempts>,
    /// When the authority says that it should be renewed.
    suggested: Option<SystemTime>,
    asked: Option<SystemTime>,
}

impl Known {
    /// When to order.
    fn due(&self, now: SystemTime) -> SystemTime {
        let due = match &self.certificate {
            Some(certificate) if self.is_wanted => {
                let life = certificate.not_after.duration_since(certificate.not_before);
                let least = self.came.map(|came| came + plan::least(life.unwrap_or_default()));
                let due = self.suggested.unwrap_or_else(|| certificate.renewal());
                due.max(least.unwrap_or(due))
            }
            _ => now,
        };
        let again = self.attempts.as_ref().map(Attempts::again);
        due.max(again.unwrap_or(due))
    }
}

impl Keeper {
    /// Reads what is kept and shows it: no client sees the one for the time being where there is a real one. Blocking.
    pub fn new(acme: Acme, state: State, issued: Arc<Issued>, patience: Patience) -> Keeper {
        let keeper = Keeper {
            acme,
            state,
            issued,
            patience,
            status: Mutex::default(),
            remembered: Mutex::default(),
        };
        let known = keeper.remember();
        keeper.tell(&known, SystemTime::now());
        *keeper.remembered.lock().unwrap_or_else(PoisonError::into_inner) = Some(known);
        keeper
    }

    pub fn status(&self) -> Status {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Never ends. May be dropped at any moment: what is written is written whole.
    pub async fn run(&self) {
        let remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut known = remembered.unwrap_or_else(|| self.remember());
        loop {
            let now = SystemTime::now();
            self.tell(&known, now);
            if let Some(question) = self.next_question(&known, now)
                && question <= now
            {
                known.asked = Some(now);
                self.ask(&mut known).await;
                continue;
            }
            let due = known.due(now);
            match due.duration_since(now) {
                Ok(wait) if !wait.is_zero() => self.sleep(&known, now, wait).await,
                _ => self.attempt(&mut known).await,
            }
        }
    }

    async fn sleep(&self, known: &Known, now: SystemTime, wait: Duration) {
        let question = self
            .next_question(known, now)
            .and_then(|at| at.duration_since(now).ok());
        let nap = wait.min(self.patience.nap).min(question.unwrap_or(wait));
        tokio::time::sleep(nap.max(Duration::from_millis(1))).await;
    }

    /// What an earlier process left behind. The certificate is shown at once, whatever it was ordered by: one that fits some of the
    /// names is better than none.
    fn remember(&self) -> Known {
        let mut known = Known::default();
        let wanted = Wanted::of(&self.acme);
        let kept = record::read::<Issue>(&self.state, Paper::Certificate);
        let kept = kept.and_then(|found| {
            let read = |issue: Issue| Ok((Certificate::read(&issue.chain, &issue.key)?, issue));
            found.map(read).transpose()
        });
        match kept {
            Ok(Some((certificate, issue))) => {
                known.is_wanted = issue.wanted == wanted;
                known.came = Some(at_ms(issue.came_ms).min(SystemTime::now()));
                self.issued.show(certificate.key.clone());
                known.certificate = Some(certificate);
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(error, "the certificate that was kept is not used: ordering another"),
        }
        let attempts = record::read::<Attempts>(&self.state, Paper::Attempts).unwrap_or_else(|error| {
            tracing::warn!(error, "what orders failed before is not known");
            None
        });
        // Another configuration is another chance.
        known.attempts = attempts
            .filter(|attempts| attempts.wanted == wanted)
            .map(|mut attempts| {
                let now = SystemTime::now();
                let again = plan::after_restart(now, attempts.failed(), attempts.again(), attempts.failure);
                attempts.again_ms = unix_ms(again);
                attempts
            });
        known
    }

    fn office(&self) -> Result<Office<'_>, Fault> {
        Ok(Office {
            acme: &self.acme,
            state: &self.state,
            issued: &self.issued,
            directory: Directory::new(&self.acme)?,
        })
    }

    /// When the authority is to be asked when to renew: now and then, as long as there is something to renew.
    fn next_question(&self, known: &Known, now: SystemTime) -> Option<SystemTime> {
        let certificate = known.certificate.as_ref().filter(|_| known.is_wanted)?;
        // A failed order is tried again, whatever the window.
        if known.attempts.is_some() || certificate.renewal() <= now {
            return None;
        }
        Some(known.asked.map_or(now, |asked| asked + self.patience.question))
    }

    /// Who does not answer, or does not know, is not needed for it.
    async fn ask(&self, known: &mut Known) {
        let Some(certificate) = &known.certificate else { return };
        let Some(id) = certificate.id() else { return };
        let asking = async {
            let office = self.office()?;
            let Some(account) = office.known_account().await? else {
                return Err(Fault::Ours("there is no account to ask by".to_owned()));
            };
            account
                .renewal_info(&id)
                .await
                .map_err(|error| office.directory.fault(error))
        };
        match tokio::time::timeout(self.patience.order, asking).await {
            Ok(Ok((info, _))) => {
                let window = (info.suggested_window.start.into(), info.suggested_window.end.into());
                let suggested = plan::within(window, certificate.not_after, certificate.chance());
                if suggested.is_some_and(|at| at < certificate.renewal()) && suggested != known.suggested {
                    let page = info.explanation_url.as_deref().map(super::error::one_line);
                    tracing::info!(explanation = page, "the authority wants the certificate renewed sooner");
                }
                known.suggested = suggested;
            }
            Ok(Err(error)) => tracing::debug!(%error, "the authority does not say when to renew"),
            Err(_) => tracing::debug!("the authority does not say in time when to renew"),
        }
    }

    async fn attempt(&self, known: &mut Known) {
        match self.order(known).await {
            Ok(certificate) => {
                counter!("larder_acme_orders_total", "result" => "ok").increment(1);
                tracing::info!(
                    names = self.acme.names.join(", "),
                    expires = date(certificate.not_after),
                    renewal = date(certificate.renewal()),
                    "certificate issued"
                );
                *known = Known {
                    certificate: Some(certificate),
                    is_wanted: true,
                    came: Some(SystemTime::now()),
                    ..Known::default()
                };
            }
            Err(error) => self.failed(known, &error),
        }
    }

    async fn order(&self, known: &Known) -> Result<Certificate, AcmeError> {
        let plainly = |fault| AcmeError {
            fault,
            not_before: None,
        };
        let office = self.office().map_err(plainly)?;
        // Only a directory that answered the question knows the certificate.
        let replaces = known.certificate.as_ref().filter(|_| known.suggested.is_some());
        let replaces = replaces.and_then(Certificate::id);
        let ordering = tokio::time::timeout(self.patience.order, office.order(replaces));
        let slow = || Fault::Slow(office.directory.shown(), self.patience.order.as_secs());
        let (issue, certificate) = ordering
            .await
            .unwrap_or_else(|_| Err(slow()))
            .map_err(|fault| AcmeError {
                fault,
                not_before: office.directory.take_not_before(),
            })?;
        self.issued.show(certificate.key.clone());
        // It is good, and shown, also where it cannot be kept.
        let kept =
            record::write(&self.state, Paper::Certificate, &issue).and_then(|()| self.state.remove(Paper::Attempts));
        if let Err(error) = kept {
            tracing::warn!(%error, "the certificate is used and cannot be kept: the next start orders another");
        }
        Ok(certificate)
    }

    fn failed(&self, known: &mut Known, error: &AcmeError) {
        let (now, failure) = (SystemTime::now(), error.fault.kind());
        counter!("larder_acme_orders_total", "result" => failure.as_str()).increment(1);
        let before = known.attempts.as_ref();
        let in_a_row = before
            .filter(|before| before.failure == failure)
            .map_or(0, |before| before.in_a_row);
        let refused = u32::from(failure == plan::Failure::Refused);
        let refusals = before.map_or(0, |before| before.refusals).saturating_add(refused);
        let in_a_row = in_a_row.saturating_add(1);
        let pause = failure.pause(if refused > 0 { refusals } else { in_a_row });
        let pause = plan::spread(pause, fastrand::f64()).mul_f64(self.patience.stretch);
        let again = plan::again(now, pause, error.not_before);
        let attempts = Attempts {
            wanted: Wanted::of(&self.acme),
            failure,
            in_a_row,
            refusals,
            why: error.to_string(),
            failed_ms: unix_ms(now),
            again_ms: unix_ms(again),
        };
        let until = match &known.certificate {
            Some(certificate) if certificate.not_after > now => {
                format!(
                    "the previous certificate stays in use until {}",
                    date(certificate.not_after)
                )
            }
            Some(_) => "the one that there is has expired: clients refuse it".to_owned(),
            None => "until then clients see a self-signed one, which those that verify refuse".to_owned(),
        };
        let pause = again.duration_since(now).unwrap_or_default().as_secs();
        tracing::warn!(%error, failures = in_a_row, again_in_seconds = pause, "no certificate was issued; {until}");
        if let Err(error) = record::write(&self.state, Paper::Attempts, &attempts) {
            tracing::warn!(%error, "a restart will not know that the order failed");
        }
        known.attempts = Some(attempts);
    }

    fn tell(&self, known: &Known, now: SystemTime) {
        let next = known.due(now);
        let expires = known.certificate.as_ref().map(|certificate| certificate.not_after);
        let seconds = |at: SystemTime| unix_ms(at) as f64 / 1000.0;
        gauge!("larder_acme_expires_timestamp_seconds").set(expires.map_or(0.0, seconds));
        gauge!("larder_acme_next_order_timestamp_seconds").set(seconds(next));
        let status = Status {
            expires,
            next: Some(next),
            failure: known.attempts.as_ref().map(|attempts| attempts.why.clone()),
        };
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }
}

impl Status {
    /// Whether all is well, and what is to be said, for a person.
    pub fn shown(&self, now: SystemTime) -> (bool, String) {
        let failed = match &self.failure {
            Some(why) => format!("; the last order failed: {why}"),
            None => String::new(),
        };
        match self.expires {
            Some(at) if at > now => (true, format!("until {}{failed}", date(at))),
            Some(at) => (false, format!("expired {}{failed}", date(at))),
            None => (false, format!("none yet{failed}")),
        }
    }
}

/// Seconds are enough, in UTC.
pub fn date(at: SystemTime) -> String {
    let at = jiff::Timestamp::try_from(at).unwrap_or_default();
    let seconds = jiff::Timestamp::from_second(at.as_second()).unwrap_or(at);
    seconds.to_string()
}
