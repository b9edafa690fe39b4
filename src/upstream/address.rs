//! Health of one address of an upstream, a mirror's or the registry's own: how soon it begins to answer, what failed last,
//! and whether it is asked in its turn (`Up`) or only when all others have failed (`Down`).
//!
//! [`Health`] is the state machine. It is pure: the caller gives the time and the random number. [`AddressHealth`] shares it
//! between requests, counts, and logs each change once. `ask` acts on it; `probe` finds out when an address is back.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::error::{ErrorKind, is_passing};
use super::outage::{Outage, Reminder};
use super::question::Kind;

/// Answers that the percentiles are taken from: the last ones.
const SAMPLES: usize = 64;
/// From so many answers on the percentiles say something.
const LEAST_SAMPLES: usize = 8;
/// Stands among the samples for an answer that nobody waited for.
const LATE: u16 = u16::MAX;
/// Weight of a new sample in the moving average.
const ALPHA: f64 = 0.2;
/// How long a mirror may take to begin an answer before it is left for the next address.
const SHORTEST_PATIENCE: Duration = Duration::from_millis(250);
const LONGEST_PATIENCE: Duration = Duration::from_secs(1);
/// How long an address that is `Down` by its silence may take when all others have failed.
const LAST_PATIENCE: Duration = Duration::from_secs(5);
/// A mirror that fails so often in a row is `Down`.
const FAILURES_IN_A_ROW: u32 = 3;
/// The pause before the first probe, unless `Tuning` says otherwise.
pub(super) const FIRST_PAUSE: Duration = Duration::from_secs(5);
/// The pause doubles with each failure up to this one, and is spread by a fifth to both sides.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
const SPREAD: f64 = 0.2;
/// A body so long proves that bodies come again, wherever an earlier one stopped: few blobs are longer than the last layer that did.
const PROVING_BYTES: u64 = 16 << 20;
/// A stall is forgotten after so long without another, about six of the longest pauses: a mirror that serves only small blobs
/// could never prove itself.
const STALL_COUNTS_FOR: Duration = Duration::from_secs(30 * 60);

/// Whether an address has the last word for its upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Mirror,
    /// The registry itself: it is always asked, and never left because it is slow.
    Registry,
}

/// In which way a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// It refused, broke off, or answered with an error. That may pass: a few in a row count.
    Error,
    /// It could not be connected to in time, or stopped sending.
    Silent,
    /// What it leads to, a store or a token server, could not be connected to in time.
    SilentBeyond,
    /// It was left because it had not begun to answer in time.
    Late,
    /// It began to send a body and stopped, so many bytes later.
    Stalled(u64),
    /// The request failed, and so did all repeats of it: each has been recorded already.
    Exhausted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Up,
    Down {
        /// When it is probed.
        until: Instant,
        silence: Silence,
        /// Whether it was asked as the last resort since the last probe.
        tried: bool,
    },
}

/// Whether asking an address that is `Down` costs time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Silence {
    No,
    /// Requests of this kind do, because of what they lead to.
    Beyond(Kind),
    Itself,
}

impl Silence {
    fn of(failure: Failure, kind: Kind) -> Silence {
        match failure {
            Failure::Silent | Failure::Late | Failure::Stalled(_) => Silence::Itself,
            Failure::SilentBeyond => Silence::Beyond(kind),
            Failure::Error | Failure::Exhausted => Silence::No,
        }
    }

    fn grows(&mut self, by: Silence) {
        if *self != Silence::Itself && by != Silence::No {
            *self = by;
        }
    }
}

/// What is remembered of one address.
#[derive(Clone, Debug)]
pub(super) struct Health {
    role: Role,
    first_pause: Duration,
    /// Moving average of the time to the first byte, in seconds.
    first_byte: Option<f64>,
    /// The last times to the first byte in milliseconds, or [`LATE`]; a ring.
    recent: [u16; SAMPLES],
    answers: usize,
    /// Failures in a row, of each kind of request: a mirror that answers manifests says nothing of its blobs.
    failed_in_a_row: [u32; Kind::COUNT],
    /// Set if the last request failed.
    is_failing: bool,
    failures: u64,
    state: State,
    /// How often the pause has doubled.
    level: u32,
    /// The kind of request that brought it down last. Only an answer to a client's request of that kind proves that it is
    /// well: a mirror with a hung store answers everything else.
    weak: Option<Kind>,
    /// Set when a body stops, until a longer one ([`PROVING_BYTES`] at most) has come whole or [`STALL_COUNTS_FOR`] is over: heads
    /// alone prove nothing then.
    stall: Option<Stall>,
    last_error: Option<Fault>,
    last_ok: Option<Instant>,
}

/// A body that stopped after so many bytes.
#[derive(Clone, Copy, Debug)]
struct Stall {
    bytes: u64,
    at: Instant,
}

/// What was wrong: in one word, and in full.
pub(super) type Fault = (&'static str, Arc<str>);

impl Health {
    pub(super) fn new(role: Role, first_pause: Duration) -> Health {
        Health {
            role,
            first_pause,
            first_byte: None,
            recent: [0; SAMPLES],
            answers: 0,
            failed_in_a_row: [0; Kind::COUNT],
            is_failing: false,
            failures: 0,
            state: State::Up,
            level: 0,
            weak: None,
            stall: None,
            last_error: None,
            last_ok: None,
        }
    }

    pub(super) fn is_down(&self) -> bool {
        self.state != State::Up
    }

    /// Records an answer to a client's request; `waited` is the longest wait for the headers of one exchange.
    ///
    /// Returns whether the address has come back by it.
    pub(super) fn answered(&mut self, now: Instant, kind: Kind, waited: Duration) -> bool {
        self.sample(waited);
        self.last_ok = Some(now);
        self.failed_in_a_row[kind as usize] = 0;
        self.stall
            .take_if(|stall| now.saturating_duration_since(stall.at) >= STALL_COUNTS_FOR);
        if self.stall.is_some() || self.weak.is_some_and(|weak| weak != kind) {
            return false;
        }
        self.recover()
    }

    /// Records that a body of so many bytes has come whole.
    ///
    /// Returns whether the address has come back by it.
    pub(super) fn delivered(&mut self, bytes: u64) -> bool {
        let proves = |stall: &mut Stall| bytes > stall.bytes || bytes >= PROVING_BYTES;
        if self.stall.take_if(proves).is_none() {
            return false;
        }
        self.failed_in_a_row[Kind::Blob as usize] = 0;
        self.recover()
    }

    /// A client has been answered with what failed last: the address is well.
    fn recover(&mut self) -> bool {
        self.is_failing = false;
        self.level = 0;
        self.weak = None;
        std::mem::replace(&mut self.state, State::Up) != State::Up
    }

    /// Records a failure. `dice`: a random number from 0 to 1.
    ///
    /// Returns whether the address has gone down by it.
    pub(super) fn failed(&mut self, now: Instant, kind: Kind, failure: Failure, why: Fault, dice: f64) -> bool {
        // The last repeat has been recorded by itself.
        if failure != Failure::Exhausted {
            self.failures += 1;
            let in_a_row = &mut self.failed_in_a_row[kind as usize];
            *in_a_row = in_a_row.saturating_add(1);
            self.is_failing = true;
            self.last_error = Some(why);
        }
        match failure {
            Failure::Late => self.push(LATE),
            Failure::Stalled(bytes) => self.stall = Some(Stall { bytes, at: now }),
            _ => {}
        }
        let in_a_row = self.failed_in_a_row[kind as usize];
        let goes = match (failure, self.role) {
            (Failure::Silent | Failure::SilentBeyond | Failure::Exhausted, _) => true,
            (Failure::Late | Failure::Stalled(_), role) => role == Role::Mirror,
            // The registry's own errors are ridden out first.
            (Failure::Error, role) => role == Role::Mirror && in_a_row >= FAILURES_IN_A_ROW,
        };
        let new = Silence::of(failure, kind);
        match &mut self.state {
            State::Up if goes => {
                self.weak = Some(kind);
                self.pause(now, new, dice);
                true
            }
            // It refused before; now it costs time as well.
            State::Down { silence, .. } if goes => {
                silence.grows(new);
                false
            }
            _ => false,
        }
    }

    /// Records how a probe ended. An answer brings the address back, however long it took: what a client waits for it is
    /// bounded, and the pause keeps growing until a client has been answered.
    ///
    /// Returns whether the address has come back by it.
    pub(super) fn probed(&mut self, now: Instant, outcome: Result<(), (Failure, Fault)>, dice: f64) -> bool {
        if !self.is_down() {
            return false;
        }
        match outcome {
            Ok(()) => {
                self.failed_in_a_row = [0; Kind::COUNT];
                self.is_failing = false;
                self.last_ok = Some(now);
                self.state = State::Up;
                true
            }
            Err((failure, why)) => {
                self.failures += 1;
                self.last_error = Some(why);
                let silence = self.weak.map_or(Silence::No, |kind| Silence::of(failure, kind));
                self.pause(now, silence, dice);
                false
            }
        }
    }

    fn pause(&mut self, now: Instant, silence: Silence, dice: f64) {
        let full = self.first_pause.saturating_mul(2u32.saturating_pow(self.level));
        let full = full.min(LONGEST_PAUSE.max(self.first_pause));
        self.level = self.level.saturating_add(1);
        let pause = full.mul_f64(1.0 + SPREAD * (2.0 * dice.clamp(0.0, 1.0) - 1.0));
        self.state = State::Down {
            until: now + pause,
            silence,
            tried: false,
        };
    }

    /// When the next probe is due.
    pub(super) fn probe_at(&self) -> Option<Instant> {
        match self.state {
            State::Up => None,
            State::Down { until, .. } => Some(until),
        }
    }

    /// How long a client's request waits for this address to begin an answer, if another can be asked.
    pub(super) fn patience(&self) -> Duration {
        let known = self.samples();
        if known.len() < LEAST_SAMPLES || known.contains(&LATE) {
            return LONGEST_PATIENCE;
        }
        let p95 = self.percentile(95).unwrap_or(LONGEST_PATIENCE);
        (p95 * 2).clamp(SHORTEST_PATIENCE, LONGEST_PATIENCE)
    }

    /// How long an address that is `Down` may take now that all others have failed; `None` if it is not worth asking: one
    /// that is silent costs time, and is tried by one request between two probes.
    pub(super) fn last_resort(&mut self) -> Option<Duration> {
        match &mut self.state {
            State::Up
            | State::Down {
                silence: Silence::No, ..
            } => Some(LONGEST_PATIENCE),
            State::Down { tried: true, .. } => None,
            State::Down { tried, .. } => {
                *tried = true;
                Some(LAST_PATIENCE)
            }
        }
    }

    /// Records that nothing was sent after all to an address that was the last resort: the next request may try it.
    pub(super) fn was_not_tried(&mut self) {
        if let State::Down { tried, .. } = &mut self.state {
            *tried = false;
        }
    }

    /// Whether connections that such a request needs were not even answered: the next one is not waited for.
    pub(super) fn is_silent(&self, kind: Kind) -> bool {
        match self.state {
            State::Up => false,
            State::Down { silence, .. } => silence == Silence::Itself || silence == Silence::Beyond(kind),
        }
    }

    fn sample(&mut self, waited: Duration) {
        let seconds = waited.as_secs_f64();
        self.first_byte = Some(match self.first_byte {
            Some(average) => average + ALPHA * (seconds - average),
            None => seconds,
        });
        self.push(u16::try_from(waited.as_millis()).unwrap_or(LATE).min(LATE - 1));
    }

    fn push(&mut self, sample: u16) {
        self.recent[self.answers % SAMPLES] = sample;
        self.answers += 1;
    }

    fn samples(&self) -> &[u16] {
        &self.recent[..self.answers.min(SAMPLES)]
    }

    /// Of the answers that came, by nearest rank.
    fn percentile(&self, percent: usize) -> Option<Duration> {
        let mut came: Vec<u16> = self.samples().iter().copied().filter(|ms| *ms != LATE).collect();
        came.sort_unstable();
        let rank = (came.len() * percent).div_ceil(100).saturating_sub(1);
        came.get(rank).map(|ms| Duration::from_millis(u64::from(*ms)))
    }
}

/// How an address is doing, for people.
#[derive(Clone, Debug, PartialEq)]
pub struct AddressState {
    /// Scheme, host and port, and the path where there is one.
    pub name: Arc<str>,
    pub role: Role,
    /// Time until the next probe; `None` while the address is up.
    pub down_for: Option<Duration>,
    /// Moving average of the time to the first byte.
    pub first_byte: Option<Duration>,
    /// Time to the first byte, of the last 64 answers.
    pub p50: Option<Duration>,
    pub p95: Option<Duration>,
    /// Requests that failed here since the start.
    pub failures: u64,
    pub last_error: Option<Arc<str>>,
    /// Since the last answer.
    pub last_ok: Option<Duration>,
}

/// The health of one address, shared by all its requests.
#[derive(Debug)]
pub struct AddressHealth {
    name: Arc<str>,
    upstream: Arc<str>,
    role: Role,
    known: Mutex<Known>,
}

/// Health and outage change under one lock: otherwise a failure beside an answer could begin an outage after the answer had
/// looked for one to end, and the log would call an address down that is up.
#[derive(Debug)]
struct Known {
    health: Health,
    outage: Outage,
}

impl Known {
    /// Records that the address has come back, if it has. Returns how long it was down, if the log said that it is.
    fn end_outage(&mut self, now: Instant, is_back: bool) -> Option<Option<Duration>> {
        is_back.then(|| self.outage.end(now))
    }
}

impl AddressHealth {
    pub fn new(name: Arc<str>, upstream: Arc<str>, role: Role, first_pause: Duration) -> AddressHealth {
        AddressHealth {
            name,
            upstream,
            role,
            known: Mutex::new(Known {
                health: Health::new(role, first_pause),
                outage: Outage::default(),
            }),
        }
    }

    /// The address as logs and errors name it: `https://mirror.example`.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    pub fn is_down(&self) -> bool {
        self.known().health.is_down()
    }

    /// Returns whether the address is down and a warning has said so: a line about each request that fails meanwhile says nothing
    /// more.
    pub fn is_logged_down(&self) -> bool {
        self.known().outage.is_logged()
    }

    /// Takes over what was known of the same address.
    pub fn inherit(&self, before: &AddressHealth) {
        let (health, outage) = {
            let before = before.known();
            (before.health.clone(), before.outage.clone())
        };
        *self.known() = Known { health, outage };
    }

    /// Records an answer to a client's request, be it a refusal; `waited` is the longest wait for the headers of one exchange.
    pub(super) fn note_answer(&self, kind: Kind, waited: Duration) {
        let back = {
            let (mut known, now) = (self.known(), Instant::now());
            let is_back = known.health.answered(now, kind, waited);
            known.end_outage(now, is_back)
        };
        let (upstream, address) = (self.upstream.to_string(), self.name.to_string());
        metrics::histogram!("larder_upstream_address_first_byte_seconds", "upstream" => upstream, "address" => address)
            .record(waited.as_secs_f64());
        self.log_return(back);
    }

    /// Records what a client's request ended in, unless that says nothing of the address.
    ///
    /// Returns whether the address has gone down by it.
    pub(super) fn note_failure(&self, kind: Kind, error: &ErrorKind) -> bool {
        match Verdict::of(error, self.role) {
            Verdict::Failed(failure) => self.note(kind, failure, error.as_str(), &error.to_string()),
            Verdict::Nothing | Verdict::Answered => false,
        }
    }

    /// Returns whether that error, of a client's request, says that the address works.
    pub(super) fn is_answer(&self, error: &ErrorKind) -> bool {
        Verdict::of(error, self.role) == Verdict::Answered
    }

    /// Returns whether a HEAD, sent as a probe, may have failed only as a HEAD, so that a GET has to tell. Of mirrors only.
    pub(super) fn may_be_for_head(&self, error: &ErrorKind) -> bool {
        let has_failed = Verdict::of(error, self.role) == Verdict::Failed(Failure::Error);
        self.role == Role::Mirror && has_failed && error.doubt_of_head().is_some()
    }

    /// Records that a request was left because the address had sent nothing for `waited`.
    pub(super) fn note_late(&self, kind: Kind, waited: Duration) -> bool {
        let why = format!("did not begin to answer within {} ms", waited.as_millis());
        self.note(kind, Failure::Late, "late", &why)
    }

    /// Records that a blob's body stopped after so many bytes, with `error`.
    pub(super) fn note_stall(&self, bytes: u64, error: &ErrorKind) -> bool {
        self.note(Kind::Blob, Failure::Stalled(bytes), error.as_str(), &error.to_string())
    }

    /// Records that a blob's body of so many bytes has come whole.
    pub(super) fn note_delivery(&self, bytes: u64) {
        let back = {
            let mut known = self.known();
            let is_back = known.health.delivered(bytes);
            known.end_outage(Instant::now(), is_back)
        };
        self.log_return(back);
    }

    /// Records that a request and all its repeats failed.
    pub(super) fn note_exhausted(&self, kind: Kind, error: &ErrorKind) -> bool {
        self.note(kind, Failure::Exhausted, error.as_str(), &error.to_string())
    }

    fn note(&self, kind: Kind, failure: Failure, reason: &'static str, why: &str) -> bool {
        if failure != Failure::Exhausted {
            self.count_failure(reason);
        }
        let begun = {
            let (mut known, now) = (self.known(), Instant::now());
            let has_gone = known
                .health
                .failed(now, kind, failure, (reason, why.into()), fastrand::f64());
            has_gone.then(|| known.outage.begin(now))
        };
        if let Some(is_logged) = begun {
            let (upstream, address) = (&self.upstream, &self.name);
            let reason = why;
            match self.role {
                _ if !is_logged => tracing::debug!(%upstream, %address, reason, "an address is down again"),
                Role::Mirror => {
                    tracing::warn!(%upstream, %address, reason, "a mirror is down: others are asked first until it answers a probe")
                }
                Role::Registry => {
                    tracing::warn!(%upstream, %address, reason, "the registry is down: requests are not repeated until it answers")
                }
            }
            self.export();
        }
        begun.is_some()
    }

    fn count_failure(&self, reason: &'static str) {
        metrics::counter!(
            "larder_upstream_address_failures_total",
            "upstream" => self.upstream.to_string(),
            "address" => self.name.to_string(),
            "reason" => reason
        )
        .increment(1);
    }

    /// Records how a probe ended.
    pub(super) fn note_probe(&self, outcome: &Result<(), ErrorKind>) {
        let failed = outcome
            .as_ref()
            .err()
            .and_then(|error| match Verdict::of(error, self.role) {
                Verdict::Answered => None,
                Verdict::Failed(failure) => Some((failure, error)),
                // It was not asked, or by nobody who could: another time.
                Verdict::Nothing => Some((Failure::Error, error)),
            });
        if let Some((_, error)) = failed {
            self.count_failure(error.as_str());
        }
        let outcome = match failed {
            Some((failure, error)) => Err((failure, (error.as_str(), error.to_string().into()))),
            None => Ok(()),
        };
        let back = {
            let (mut known, now) = (self.known(), Instant::now());
            let is_back = known.health.probed(now, outcome, fastrand::f64());
            known.end_outage(now, is_back)
        };
        self.log_return(back);
    }

    /// Logs that the address has come back, if it has: after so long, if the log said that it was down.
    fn log_return(&self, back: Option<Option<Duration>>) {
        let Some(down_for) = back else { return };
        let (upstream, address) = (&self.upstream, &self.name);
        match down_for {
            Some(time) => {
                let down_s = time.as_secs();
                tracing::info!(%upstream, %address, down_s, "an address that was down answers again");
            }
            None => tracing::debug!(%upstream, %address, "an address that was down again answers again"),
        }
        self.export();
    }

    /// A request comes that would have gone here if the address were up: says once a minute that it is not.
    pub(super) fn note_request_while_down(&self) {
        let (reminder, reason) = {
            let mut known = self.known();
            let Some(reminder) = known.outage.note_request(Instant::now()) else {
                return;
            };
            (reminder, known.health.last_error.as_ref().map(|(_, why)| why.clone()))
        };
        let Reminder { down_for, requests } = reminder;
        let (upstream, address, reason) = (&self.upstream, &self.name, reason.unwrap_or_default());
        let down_s = down_for.as_secs();
        tracing::warn!(%upstream, %address, %reason, down_s, requests, "an address is still down");
    }

    /// Why it fails at the moment, in one word, if the last request did.
    pub fn failing(&self) -> Option<&'static str> {
        let health = &self.known().health;
        let (reason, _) = health.last_error.as_ref()?;
        health.is_failing.then_some(*reason)
    }

    /// The same in a sentence.
    pub fn why_failing(&self) -> Option<Arc<str>> {
        let health = &self.known().health;
        let (_, why) = health.last_error.as_ref().filter(|_| health.is_failing)?;
        Some(why.clone())
    }

    pub(super) fn probe_at(&self) -> Option<Instant> {
        self.known().health.probe_at()
    }

    pub(super) fn patience(&self) -> Duration {
        self.known().health.patience()
    }

    pub(super) fn last_resort(&self) -> Option<Duration> {
        self.known().health.last_resort()
    }

    /// Takes back that it was the last resort, if a request of it ended in an error by which nothing was sent.
    pub(super) fn note_last_resort(&self, error: &ErrorKind) {
        if Verdict::of(error, self.role) == Verdict::Nothing {
            self.known().health.was_not_tried();
        }
    }

    pub(super) fn is_silent(&self, kind: Kind) -> bool {
        self.known().health.is_silent(kind)
    }

    /// Brings the gauge up to date; an address that was never asked has none.
    pub fn export(&self) {
        let health = &self.known().health;
        if health.answers == 0 && health.failures == 0 {
            return;
        }
        let is_up = !health.is_down();
        metrics::gauge!(
            "larder_upstream_address_up",
            "upstream" => self.upstream.to_string(),
            "address" => self.name.to_string()
        )
        .set(f64::from(u8::from(is_up)));
    }

    /// `None` if it was never asked.
    pub fn state(&self) -> Option<AddressState> {
        let (known, now) = (self.known(), Instant::now());
        let health = &known.health;
        let is_known = health.answers > 0 || health.failures > 0;
        is_known.then(|| AddressState {
            name: self.name.clone(),
            role: self.role,
            down_for: health.probe_at().map(|at| at.saturating_duration_since(now)),
            first_byte: health.first_byte.map(Duration::from_secs_f64),
            p50: health.percentile(50),
            p95: health.percentile(95),
            failures: health.failures,
            last_error: health.last_error.as_ref().map(|(_, why)| why.clone()),
            last_ok: health.last_ok.map(|at| now.saturating_duration_since(at)),
        })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a request's error says about the address that was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It works, whatever it said.
    Answered,
    Failed(Failure),
    /// The fault is Larder's own, a token server's or a rule's; or nothing was sent.
    Nothing,
}

impl Verdict {
    pub(super) fn of(error: &ErrorKind, role: Role) -> Verdict {
        match error {
            ErrorKind::NotFound { .. } | ErrorKind::Denied { .. } | ErrorKind::TooLarge { .. } => Verdict::Answered,
            ErrorKind::Status { status, .. } if is_passing(*status) => Verdict::Failed(Failure::Error),
            ErrorKind::Status { .. } => Verdict::Answered,
            _ if error.is_no_connection() => Verdict::Failed(Failure::Silent),
            _ if error.is_no_connection_beyond() => Verdict::Failed(Failure::SilentBeyond),
            // The registry is given all the time that there is.
            ErrorKind::Timeout(_) if role == Role::Registry => Verdict::Failed(Failure::Error),
            ErrorKind::Timeout(_) => Verdict::Failed(Failure::Silent),
            ErrorKind::Connect(_) | ErrorKind::Cut(_) | ErrorKind::Protocol(_) => Verdict::Failed(Failure::Error),
            ErrorKind::RateLimited { .. }
            | ErrorKind::TooSlow
            | ErrorKind::Unwanted
            | ErrorKind::Refused(_)
            | ErrorKind::Offline
            | ErrorKind::Auth(_) => Verdict::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const SECOND: Duration = Duration::from_secs(1);

    fn fault() -> Fault {
        ("cut", "it broke off".into())
    }

    /// Without chance: a pause is as long as it is.
    fn fail(health: &mut Health, now: Instant, kind: Kind, failure: Failure) -> bool {
        health.failed(now, kind, failure, fault(), 0.5)
    }

    fn pause_of(health: &Health, now: Instant) -> Duration {
        health.probe_at().unwrap() - now
    }

    #[test]
    fn what_brings_a_mirror_down() {
        let now = Instant::now();
        for failure in [
            Failure::Silent,
            Failure::SilentBeyond,
            Failure::Late,
            Failure::Exhausted,
        ] {
            let mut mirror = Health::new(Role::Mirror, FIRST_PAUSE);
            assert!(fail(&mut mirror, now, Kind::Blob, failure), "{failure:?}");
        }
        let mut mirror = Health::new(Role::Mirror, FIRST_PAUSE);
        let error = |mirror: &mut Health| fail(mirror, now, Kind::Blob, Failure::Error);
        assert!(!error(&mut mirror) && !error(&mut mirror));
        mirror.answered(now, Kind::Blob, MS);
        assert!(!error(&mut mirror) && !error(&mut mirror));
        assert!(error(&mut mirror) && mirror.is_down());
        // It is down already.
        assert!(!error(&mut mirror));
    }

    /// The registry's errors are ridden out by `retry`, and it is never left for being slow.
    #[test]
    fn what_brings_the_registry_down() {
        let now = Instant::now();
        let mut registry = Health::new(Role::Registry, FIRST_PAUSE);
        for _ in 0..100 {
            assert!(!fail(&mut registry, now, Kind::Blob, Failure::Error));
            assert!(!fail(&mut registry, now, Kind::Blob, Failure::Late));
        }
        assert!(fail(&mut registry, now, Kind::Blob, Failure::Exhausted));
        assert!(!registry.is_silent(Kind::Blob));
        // From refusals to silence.
        assert!(!fail(&mut registry, now, Kind::Blob, Failure::Silent));
        assert!(registry.is_silent(Kind::Blob) && registry.is_silent(Kind::Manifest));
        assert!(registry.answered(now, Kind::Blob, MS) && !registry.is_down());
    }

    /// What a registry's blobs lead to may be dead: manifests are waited for all the same.
    #[test]
    fn silence_beyond_is_one_kinds() {
        let now = Instant::now();
        let mut registry = Health::new(Role::Registry, FIRST_PAUSE);
        assert!(fail(&mut registry, now, Kind::Blob, Failure::SilentBeyond));
        let is_silent = |registry: &Health| [Kind::Blob, Kind::Manifest].map(|kind| registry.is_silent(kind));
        assert_eq!(is_silent(&registry), [true, false]);
        registry.probed(now, Err((Failure::SilentBeyond, fault())), 0.5);
        assert_eq!(is_silent(&registry), [true, false]);
        assert!(!fail(&mut registry, now, Kind::Manifest, Failure::Silent));
        assert!(!fail(&mut registry, now, Kind::Blob, Failure::SilentBeyond));
        assert_eq!(is_silent(&registry), [true, true]);
        let mut mirror = Health::new(Role::Mirror, FIRST_PAUSE);
        assert!(fail(&mut mirror, now, Kind::Blob, Failure::SilentBeyond));
        assert_eq!(
            (mirror.last_resort(), mirror.last_resort()),
            (Some(LAST_PATIENCE), None)
        );
    }

    /// A mirror with a hung store answers probes and everything but blobs: its pauses grow all the same.
    #[test]
    fn pauses_grow_until_a_client_is_answered() {
        let now = Instant::now();
        let mut mirror = Health::new(Role::Mirror, FIRST_PAUSE);
        for pause in [5, 10, 20, 40, 80, 160, 300, 300] {
            assert!(fail(&mut mirror, now, Kind::Blob, Failure::Late));
            assert_eq!(pause_of(&mirror, now).as_secs(), pause);
            assert!(!mirror.answered(now, Kind::Manifest, MS), "another kind proves nothing");
            assert!(mirror.probed(now, Ok(()), 0.5));
        }
        mirror.answered(now, Kind::Blob, MS);
        assert!(fail(&mut mirror, now, Kind::Manifest, Failure::Late));
        assert_eq!(pause_of(&mirror, now), FIRST_PAUSE);
        assert!(!mirror.probed(now, Err((Failure::Silent, fault())), 0.0));
        assert_eq!(pause_of(&mirror, now), FIRST_PAUSE * 2 * 8 / 10);
        assert!(!mirror.probed(now, Err((Failure::Silent, fault())), 1.0));
        assert_eq!(pause_of(&mirror, now), FIRST_PAUSE * 4 * 12 / 10);
    }

    /// An answer between failures of the same kind ends their row, whatever kind failed last. Other kinds say nothing.
    #[test]
    fn only_failures_of_one_kind_make_a_row() {
        let now = Instant::now();
        let mut mirror = Health::new(Role::Mirror, FIRST_PAUSE);
        assert!(fail(&mut mirror, now, Kind::Blob, Failure::Late));
        assert!(mirror.probed(now, Ok(()), 0.5));
        for _ in 0..10 {
            assert!(!fail(&mut mirror, now, Kind::Manifest, Failure::Error));
            assert!(!mirror.answered(now, Kind::Manifest, MS));
        }
        assert!(!mirror.is_down());
        let mut mirror = Health::new(Role::Mirror, FIRST_PAUSE);
        for failures in 1..=3 {
            mirror.answered(now, Kind::Manifest, MS);
            assert_eq!(fail(&mut mirror, now, Kind::Blob, Failure::Error), failures == 3);
        }
    }

    /// A mirror that stalls in its bodies begins each answer in time: its pauses grow until it has sent more than it
    /// stalled at.
    #[test]
    fn heads_do_not_prove_bodies() {
        let now = Instant::now();
        let mut mirror = Health::new(Role::Mirror, FIRST_PAUSE);
        for pause in [5, 10, 20, 40] {
            assert!(fail(&mut mirror, now, Kind::Blob, Failure::Stalled(1_000)));
            assert_eq!(pause_of(&mirror, now).as_secs(), pause);
            assert!(!mirror.answered(now, Kind::Blob, MS) && mirror.is_down());
            assert!(mirror.probed(now, Ok(()), 0.5));
            assert!(!mirror.answered(now, Kind::Blob, MS) && !mirror.delivered(1_000));
        }
        // One that began before.
        assert!(fail(&mut mirror, now, Kind::Blob, Failure::Stalled(1_000)));
        assert!(mirror.delivered(1_001) && !mirror.is_down());
        assert!(fail(&mut mirror, now, Kind::Blob, Failure::Late));
        assert_eq!(pause_of(&mirror, now), FIRST_PAUSE);
        assert!(mirror.answered(now, Kind::Blob, MS));
        assert!(!mirror.delivered(u64::MAX), "it was well");
    }

    /// A mirror that stalled once late in a large layer is well again after a body of 16 MiB, or after half an hour without another
    /// stall: most have no larger layer to prove themselves by.
    #[test]
    fn a_stall_late_in_a_large_body_is_forgotten() {
        let begun = Instant::now();
        let stalled = || {
            let mut mirror = Health::new(Role::Mirror, FIRST_PAUSE);
            for _ in 0..3 {
                assert!(fail(&mut mirror, begun, Kind::Blob, Failure::Stalled(5 << 30)));
                assert!(mirror.probed(begun, Ok(()), 0.5));
            }
            mirror
        };
        let mut proven = stalled();
        assert!(!proven.delivered(PROVING_BYTES - 1) && proven.level > 0);
        proven.delivered(PROVING_BYTES);
        assert_eq!(proven.level, 0);
        let (mut aged, later) = (stalled(), begun + STALL_COUNTS_FOR);
        aged.answered(later - SECOND, Kind::Blob, MS);
        assert!(aged.level > 0);
        aged.answered(later, Kind::Manifest, MS);
        assert!(aged.level > 0, "it says nothing of blobs");
        aged.answered(later, Kind::Blob, MS);
        assert_eq!(aged.level, 0);
    }

    #[test]
    fn patience_follows_what_is_usual() {
        let now = Instant::now();
        let mut mirror = Health::new(Role::Mirror, FIRST_PAUSE);
        assert_eq!(mirror.patience(), SECOND);
        let answer = |mirror: &mut Health, ms: u32, times: usize| {
            for _ in 0..times {
                mirror.answered(now, Kind::Blob, MS * ms);
            }
        };
        answer(&mut mirror, 5, LEAST_SAMPLES - 1);
        assert_eq!(mirror.patience(), SECOND);
        answer(&mut mirror, 5, 1);
        assert_eq!(mirror.patience(), SHORTEST_PATIENCE);
        answer(&mut mirror, 200, SAMPLES);
        assert_eq!(mirror.patience(), MS * 400);
        answer(&mut mirror, 70_000, SAMPLES);
        assert_eq!(mirror.patience(), SECOND);
        assert_eq!(mirror.percentile(95), Some(MS * 65_534));
        answer(&mut mirror, 5, SAMPLES);
        assert_eq!(mirror.patience(), SHORTEST_PATIENCE);
        // It was left too soon, perhaps: it has a second until that is forgotten.
        fail(&mut mirror, now, Kind::Blob, Failure::Late);
        assert_eq!(mirror.patience(), SECOND);
        answer(&mut mirror, 5, SAMPLES - 1);
        assert_eq!(mirror.patience(), SECOND);
        answer(&mut mirror, 5, 1);
        assert_eq!(mirror.patience(), SHORTEST_PATIENCE);
    }

    #[test]
    fn percentiles_are_of_the_answers_that_came() {
        let now = Instant::now();
        let mut mirror = Health::new(Role::Mirror, FIRST_PAUSE);
        assert_eq!((mirror.percentile(50), mirror.percentile(95)), (None, None));
        fail(&mut mirror, now, Kind::Blob, Failure::Late);
        assert_eq!(mirror.percentile(95), None);
        for ms in 1..=20 {
            mirror.answered(now, Kind::Blob, MS * ms);
        }
        assert_eq!(
            (mirror.percentile(50), mirror.percentile(95)),
            (Some(MS * 10), Some(MS * 19))
        );
    }

    /// A silent mirror costs one request the time of the last resort between two probes.
    #[test]
    fn the_last_resort_is_tried_once() {
        let now = Instant::now();
        let mut silent = Health::new(Role::Mirror, FIRST_PAUSE);
        fail(&mut silent, now, Kind::Blob, Failure::Late);
        assert_eq!(
            (silent.last_resort(), silent.last_resort()),
            (Some(LAST_PATIENCE), None)
        );
        silent.probed(now, Err((Failure::Silent, fault())), 0.5);
        assert_eq!(
            (silent.last_resort(), silent.last_resort()),
            (Some(LAST_PATIENCE), None)
        );
        silent.was_not_tried();
        assert_eq!(
            (silent.last_resort(), silent.last_resort()),
            (Some(LAST_PATIENCE), None)
        );
        let mut refusing = Health::new(Role::Mirror, FIRST_PAUSE);
        for _ in 0..3 {
            fail(&mut refusing, now, Kind::Blob, Failure::Error);
        }
        assert_eq!(refusing.last_resort(), Some(LONGEST_PATIENCE));
        assert_eq!(refusing.last_resort(), Some(LONGEST_PATIENCE));
    }

    #[test]
    fn verdicts() {
        let of = |error: ErrorKind| Verdict::of(&error, Role::Mirror);
        let status = |status| ErrorKind::Status {
            status,
            detail: "".into(),
            retry_after: None,
        };
        for (number, want) in [
            (400, Verdict::Answered),
            (405, Verdict::Answered),
            (408, Verdict::Failed(Failure::Error)),
            (500, Verdict::Failed(Failure::Error)),
            (501, Verdict::Answered),
            (503, Verdict::Failed(Failure::Error)),
            (522, Verdict::Failed(Failure::Error)),
        ] {
            assert_eq!(of(status(number)), want, "{number}");
        }
        assert_eq!(of(ErrorKind::NotFound { status: 404 }), Verdict::Answered);
        assert_eq!(of(ErrorKind::no_connection()), Verdict::Failed(Failure::Silent));
        assert_eq!(
            of(ErrorKind::no_connection().beyond("cdn.example")),
            Verdict::Failed(Failure::SilentBeyond)
        );
        assert_eq!(
            of(ErrorKind::Connect("refused".into()).beyond("cdn.example")),
            Verdict::Failed(Failure::Error)
        );
        assert_eq!(
            of(ErrorKind::Connect("refused".into())),
            Verdict::Failed(Failure::Error)
        );
        assert_eq!(of(ErrorKind::Timeout(SECOND)), Verdict::Failed(Failure::Silent));
        let of_registry = Verdict::of(&ErrorKind::Timeout(SECOND), Role::Registry);
        assert_eq!(of_registry, Verdict::Failed(Failure::Error));
        assert_eq!(of(ErrorKind::Offline), Verdict::Nothing);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Answered(Kind, u16),
        Delivered(u64),
        Failed(Kind, Failure),
        Probed(bool),
        LastResort,
        Later(u16),
    }

    fn step() -> impl Strategy<Value = Step> {
        let kind = || prop::sample::select(vec![Kind::Manifest, Kind::Blob, Kind::Tags, Kind::Referrers]);
        let failure = prop::sample::select(vec![
            Failure::Error,
            Failure::Silent,
            Failure::SilentBeyond,
            Failure::Late,
            Failure::Stalled(100),
            Failure::Exhausted,
        ]);
        prop_oneof![
            (kind(), any::<u16>()).prop_map(|(kind, ms)| Step::Answered(kind, ms)),
            (0u64..200).prop_map(Step::Delivered),
            (kind(), failure).prop_map(|(kind, failure)| Step::Failed(kind, failure)),
            any::<bool>().prop_map(Step::Probed),
            Just(Step::LastResort),
            any::<u16>().prop_map(Step::Later),
        ]
    }

    proptest! {
        /// Whatever happens: the patience keeps its bounds, a pause is within 4 s and 6 min, one that is down comes back by
        /// the first answered probe and by an answer of the kind that failed, and what a step returns is the change it made.
        #[test]
        fn health_keeps_its_bounds(is_mirror: bool, dice in 0f64..=1.0, steps in prop::collection::vec(step(), 0..200)) {
            let role = if is_mirror { Role::Mirror } else { Role::Registry };
            let mut health = Health::new(role, FIRST_PAUSE);
            let mut now = Instant::now();
            let (mut failures, mut last_failed) = (0, None);
            let (mut has_stalled, mut stalled) = (false, now);
            for step in steps {
                let was_down = health.is_down();
                match step {
                    Step::Answered(kind, ms) => {
                        let is_back = health.answered(now, kind, MS * u32::from(ms));
                        has_stalled &= now - stalled < STALL_COUNTS_FOR;
                        prop_assert_eq!(is_back, was_down && !health.is_down());
                        if last_failed == Some(kind) && !has_stalled {
                            prop_assert!(!health.is_down());
                        }
                        prop_assert_eq!(health.last_ok, Some(now));
                    }
                    Step::Delivered(bytes) => {
                        let is_back = health.delivered(bytes);
                        prop_assert_eq!(is_back, was_down && !health.is_down());
                        if has_stalled && bytes > 100 {
                            prop_assert!(!health.is_down());
                            has_stalled = false;
                        }
                    }
                    Step::Failed(kind, failure) => {
                        failures += u64::from(failure != Failure::Exhausted);
                        if failure == Failure::Stalled(100) {
                            (has_stalled, stalled) = (true, now);
                        }
                        let has_gone = health.failed(now, kind, failure, fault(), dice);
                        prop_assert_eq!(has_gone, !was_down && health.is_down());
                        if has_gone {
                            last_failed = Some(kind);
                        }
                        if matches!(failure, Failure::Silent | Failure::SilentBeyond | Failure::Exhausted) {
                            prop_assert!(health.is_down());
                        }
                    }
                    Step::Probed(is_ok) => {
                        failures += u64::from(!is_ok && was_down);
                        let outcome = if is_ok { Ok(()) } else { Err((Failure::Error, fault())) };
                        prop_assert_eq!(health.probed(now, outcome, dice), was_down && is_ok);
                        prop_assert_eq!(health.is_down(), was_down && !is_ok);
                    }
                    Step::LastResort => {
                        let _ = health.last_resort();
                    }
                    Step::Later(seconds) => now += SECOND * u32::from(seconds),
                }
                prop_assert_eq!(health.failures, failures);
                prop_assert!((SHORTEST_PATIENCE..=LONGEST_PATIENCE).contains(&health.patience()));
                if let Some(at) = health.probe_at() && !was_down {
                    let pause = at - now;
                    prop_assert!(pause >= FIRST_PAUSE * 8 / 10 && pause <= LONGEST_PAUSE * 12 / 10, "{:?}", pause);
                }
                prop_assert!(health.percentile(50) <= health.percentile(95));
            }
        }
    }
}
