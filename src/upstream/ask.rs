//! Bringing a question to an answer: the order of addresses, the time that each has, the repeats, the pages.
//!
//! Mirrors that are `Up` come first, as configured, each for as long as `address` says; then the registry itself, which is never
//! left. What failed at all of them is repeated by the rules of `retry`. Mirrors that are `Down` are the last resort.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use moka::ops::compute::Op;
use reqwest::Method;
use reqwest::header::{CONTENT_TYPE, HeaderMap};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use url::Url;

use super::blob::Extent;
use super::client::Client;
use super::dance::Answer;
use super::endpoint::{Ask, Endpoint};
use super::error::{ErrorKind, UpstreamError};
use super::heads::Doubt;
use super::items::{Items, Pages};
use super::question::{List, Question, Take, blob, check};
use super::retry::{Next, Ticket};
use super::waiting::{Exceeded, Waiting};
use super::{body, link, probe, queue};
use crate::oci::{Digest, Repository, media_type};

const MAX_PAGES: usize = 1_000;
/// How much of a list's document is read at once, off the async threads.
const SCAN_BYTES: usize = 64 * 1024;
/// A part up to so long is read faster than it is handed to another thread.
const QUICK_BYTES: usize = 4 * 1024;

/// How long a registry that did not even answer to connections may take for the next one.
const SILENT_PATIENCE: Duration = Duration::from_millis(400);

/// An answer of which everything is here but a stream's bytes.
pub(super) struct Reply {
    pub(super) headers: HeaderMap,
    pub(super) digest: Option<Digest>,
    pub(super) with_credentials: bool,
    /// Set if the registry itself answered, and not a mirror (L11).
    pub(super) by_itself: bool,
    /// Set if this is what a GET was answered after a HEAD: why the HEAD was not believed.
    pub(super) get_for_head: Option<Doubt>,
    /// Name of the address that answered.
    pub(super) address: Arc<str>,
    pub(super) body: Body,
}

impl Reply {
    /// Returns whether it calls itself a web page. Of a blob that proves nothing (R-U25), either way.
    pub(super) fn is_web_page(&self) -> bool {
        let content_type = body::text(&self.headers, &CONTENT_TYPE).unwrap_or_default();
        media_type::is_web_page(content_type)
    }
}

pub(super) enum Body {
    None,
    Document(Bytes),
    Stream(Box<(Extent, reqwest::Response)>),
}

/// What one question has been told so far.
#[derive(Default)]
struct Asked {
    /// Mirrors that have refused it for good: a repeat would be told the same.
    refused: Vec<Arc<str>>,
    /// A mirror's refusal of a HEAD that a GET may be answered to all the same.
    doubtful: Option<ErrorKind>,
    /// Set once mirrors that are down have been passed over for it: its repeats are no further requests.
    has_noted_down: bool,
}

/// The time that the registry itself has to begin an answer.
struct Time {
    begun: Instant,
    may_take: Duration,
    deadline: Option<Instant>,
}

impl Time {
    fn new(may_take: Duration) -> Time {
        Time {
            begun: Instant::now(),
            may_take,
            deadline: None,
        }
    }

    /// It is counted from the first call on, when the registry is asked for the first time.
    fn deadline(&mut self) -> Instant {
        *self.deadline.get_or_insert_with(|| Instant::now() + self.may_take)
    }

    /// Mirrors took so long: that is not the registry's.
    fn leave_out(&mut self, taken: Duration) {
        self.deadline = self.deadline.map(|deadline| deadline + taken);
    }

    fn left(&self) -> Duration {
        let now = Instant::now();
        self.deadline
            .map_or(self.may_take, |deadline| deadline.saturating_duration_since(now))
    }

    fn is_over(&self) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= Instant::now())
    }
}

impl Asked {
    fn has_refused(&self, mirror: &Endpoint) -> bool {
        self.refused.contains(mirror.health.name())
    }

    fn note_refusal(&mut self, mirror: &Endpoint) {
        self.refused.push(mirror.health.name().clone());
    }
}

/// Returns whether the question is for one more connection beside the one that does the work: it is asked once, and how it
/// fares says little of the address.
fn is_extra(question: &Question<'_>) -> bool {
    question.range.is_some_and(|range| range.end.is_some())
}

impl Client {
    /// Asks mirrors and registry, within `max_connections`.
    pub(super) async fn ask(
        &self,
        question: &Question<'_>,
    ) -> Result<(Reply, Option<OwnedSemaphorePermit>), UpstreamError> {
        let slot = self.slot().await;
        Ok((self.ask_in(question).await?, slot))
    }

    async fn slot(&self) -> Option<OwnedSemaphorePermit> {
        let slots = self.slots.as_ref().filter(|_| !self.offline)?;
        if let Ok(slot) = slots.clone().try_acquire_owned() {
            return Some(slot);
        }
        // Waiting for a slot is Larder's own queue: the upstream's deadline begins after it.
        queue::waited(slots.clone().acquire_owned()).await.ok()
    }

    /// The same, by a caller that has its slot.
    pub(super) async fn ask_in(&self, question: &Question<'_>) -> Result<Reply, UpstreamError> {
        match self.bring(question, &self.mirrors).boxed().await {
            // A mirror that wants no credentials says nothing about what the registry wants (L8).
            Ok(reply) if reply.by_itself || reply.with_credentials => Ok(self.note(question, reply)),
            Ok(reply) => {
                self.forget_openness(question);
                Ok(reply)
            }
            Err(error) => {
                self.forget_openness(question);
                Err(error)
            }
        }
    }

    /// At the registry itself, mirrors left aside. Nothing is learned from its answer.
    pub(super) async fn ask_itself(&self, question: &Question<'_>) -> Result<Reply, UpstreamError> {
        self.bring(question, &[]).await
    }

    /// Asks the registry itself to confirm something, with the credentials in force (L11).
    pub(super) async fn ask_to_confirm(&self, question: &Question<'_>) -> Result<Reply, UpstreamError> {
        let _slot = self.slot().await;
        let reply = self.ask_itself(question).await?;
        Ok(self.note(question, reply))
    }

    /// How long the registry itself may take to begin an answer, tokens and redirects included.
    fn may_take(&self, question: &Question<'_>) -> Duration {
        let most = self.answer_timeout;
        question.within.map_or(most, |within| within.min(most))
    }

    /// Returns until when a mirror may take to answer: others are behind it. It takes none of the registry's time, but
    /// all together have no more than the question has.
    fn of_mirror(&self, question: &Question<'_>, begun: Instant) -> Instant {
        let until = Instant::now() + self.tuning.headers;
        question.within.map_or(until, |within| until.min(begun + within))
    }

    fn note(&self, question: &Question<'_>, reply: Reply) -> Reply {
        self.logins_used
            .insert(question.repository.clone(), reply.with_credentials);
        reply
    }

    /// After an answer that does not tell it: what the registry showed without credentials it showed earlier, and whatever
    /// marked the repository since then stands.
    fn forget_openness(&self, question: &Question<'_>) {
        let entry = self.logins_used.entry_by_ref(question.repository);
        entry.and_compute_with(|known| match known {
            Some(known) if !known.value() => Op::Remove,
            _ => Op::Nop,
        });
    }

    /// Brings a question to an answer: by `mirrors` and the registry, repeated while that may help, and as the last resort by
    /// mirrors that are `Down`. Nothing has been handed out yet, so a repeat is free of doubt.
    async fn bring(&self, question: &Question<'_>, mirrors: &[Arc<Endpoint>]) -> Result<Reply, UpstreamError> {
        if self.offline {
            return Err(self.error(ErrorKind::Offline));
        }
        let mut time = Time::new(self.may_take(question));
        self.repeats.note_request();
        // A registry that is down is asked once.
        let is_up = !self.own.health.is_down();
        if !is_up {
            self.own.health.note_request_while_down();
            probe::watch(&self.own);
        }
        let is_patient = is_up && !is_extra(question) && !self.own.heads.are_failing(question);
        let mut asked = Asked::default();
        let mut ticket: Option<Ticket<'_>> = None;
        // Why the request failed before it was repeated.
        let mut earlier: Option<ErrorKind> = None;
        let error = loop {
            let has_little_time = time.left() < self.may_take(question) / 2;
            let outcome = self.round(question, mirrors, &mut asked, &mut time).boxed().await;
            if ticket.is_some() {
                self.count_repeat(outcome.is_ok());
            }
            let error = match outcome {
                Ok(reply) => {
                    if reply.by_itself {
                        self.repeats.note_answer(question.kind);
                    }
                    return Ok(reply);
                }
                Err(error) => error,
            };
            if self.own.health.is_answer(&error) {
                self.repeats.note_answer(question.kind);
            } else if self.ends_repeats(ticket.as_ref(), &error) {
                self.repeats.end(question.kind);
            }
            // A repeat that had less than half of the time says nothing about the registry by its silence.
            let error = match earlier.take() {
                Some(earlier) if has_little_time && matches!(error, ErrorKind::Timeout(_)) => earlier,
                _ => error,
            };
            if !is_patient || !error.may_pass() || self.own.health.is_down() {
                break error;
            }
            if let Some(list) = question.list {
                // What it holds for lists that come is not kept from others while it waits.
                list.sink.restart();
            }
            let ticket = ticket.get_or_insert_with(|| self.repeats.ticket(question.kind));
            let next = self.repeats.wait(ticket, &error, time.deadline()).await;
            // A short `answer_timeout` leaves no time for all repeats: the registry would never be down. One that was cut short
            // by it may only have been slow.
            let is_out_of_time = question.within.is_none() && time.is_over() && !matches!(error, ErrorKind::Timeout(_));
            match next {
                // Without time it would fail, and be blamed for it.
                Next::Repeat if time.is_over() => break error,
                Next::Repeat => {
                    tracing::debug!(upstream = %self.name, %error, "asking again");
                    earlier = Some(error);
                }
                Next::GiveUp if !is_out_of_time || !ticket.is_exhausted() => break error,
                Next::GiveUp | Next::Exhausted => {
                    if self.own.health.note_exhausted(question.kind, &error) {
                        self.has_gone_down(&self.own, question);
                    }
                    break error;
                }
            }
        };
        match self.last_resort(question, mirrors, &error, time.begun).await {
            Some(reply) => Ok(reply),
            None => Err(self.error(question.worst_of(asked.doubtful, error))),
        }
    }

    /// Returns whether a request that failed with `error` is the end for all that wait for their repeat: the registry
    /// wants to be left alone, or the repeat showed that it is not there, or does not answer.
    fn ends_repeats(&self, ticket: Option<&Ticket<'_>>, error: &ErrorKind) -> bool {
        let is_repeat = ticket.is_some_and(Ticket::has_turn);
        let is_silent = matches!(error, ErrorKind::Timeout(_)) || self.own.health.is_down();
        matches!(error, ErrorKind::RateLimited { .. }) || is_repeat && is_silent
    }

    /// Mirrors that are `Up` in their order, then the registry itself, which has the last word.
    async fn round(
        &self,
        question: &Question<'_>,
        mirrors: &[Arc<Endpoint>],
        asked: &mut Asked,
        time: &mut Time,
    ) -> Result<Reply, ErrorKind> {
        let begun = Instant::now();
        for mirror in mirrors {
            if mirror.health.is_down() {
                if !asked.has_noted_down {
                    mirror.health.note_request_while_down();
                }
                probe::watch(mirror);
                continue;
            }
            let address = mirror.health.name();
            if asked.has_refused(mirror) || self.is_left_out(address, question) {
                continue;
            }
            let patience = Some(mirror.health.patience());
            let until = self.of_mirror(question, time.begun);
            let outcome = self.at(mirror, question, until, patience).await;
            match self.judge_mirror(address, question, outcome) {
                Ok(reply) => return Ok(reply),
                Err(error) => {
                    tracing::debug!(upstream = %self.name, address = %mirror.health.name(), %error, "mirror failed");
                    if !error.may_pass() {
                        asked.note_refusal(mirror);
                    }
                    asked.doubtful = Some(question.worst_of(asked.doubtful.take(), error));
                }
            }
        }
        asked.has_noted_down = true;
        time.leave_out(begun.elapsed());
        let deadline = time.deadline();
        if !self.own.health.is_silent(question.kind) {
            return self.at(&self.own, question, deadline, None).await;
        }
        // It does not even answer to connections: nobody waits for the next one, a probe does.
        let outcome = self.at(&self.own, question, deadline, Some(SILENT_PATIENCE)).await;
        if self.own.health.is_down() {
            probe::hurry(&self.own);
        }
        outcome
    }

    /// Asks mirrors that are `Down`, now that the registry has failed with `error`.
    async fn last_resort(
        &self,
        question: &Question<'_>,
        mirrors: &[Arc<Endpoint>],
        error: &ErrorKind,
        begun: Instant,
    ) -> Option<Reply> {
        // The registry has said that it does not have it, or nobody wants to hear more.
        let is_final = matches!(
            error,
            ErrorKind::NotFound { .. } | ErrorKind::Denied { .. } | ErrorKind::TooSlow | ErrorKind::Unwanted
        );
        if is_final || is_extra(question) {
            return None;
        }
        for mirror in mirrors.iter().filter(|mirror| mirror.health.is_down()) {
            let address = mirror.health.name();
            if self.is_left_out(address, question) {
                continue;
            }
            let until = self.of_mirror(question, begun);
            if until <= Instant::now() {
                continue;
            }
            let Some(patience) = mirror.health.last_resort() else {
                continue;
            };
            let outcome = self.at(mirror, question, until, Some(patience)).await;
            match self.judge_mirror(address, question, outcome) {
                Ok(reply) => return Some(reply),
                Err(error) => {
                    mirror.health.note_last_resort(&error);
                    tracing::debug!(upstream = %self.name, address = %mirror.health.name(), %error, "a mirror that is down failed")
                }
            }
        }
        None
    }

    /// Asks one address once, and remembers how that went. `patience`: how long it may send nothing before it is left.
    async fn at(
        &self,
        endpoint: &Arc<Endpoint>,
        question: &Question<'_>,
        deadline: Instant,
        patience: Option<Duration>,
    ) -> Result<Reply, ErrorKind> {
        let (waiting, is_own) = (Waiting::begin(), Arc::ptr_eq(endpoint, &self.own));
        // Its repeats have only what is left of its time.
        let is_cut_short = is_own && deadline.saturating_duration_since(Instant::now()) < self.may_take(question) / 2;
        let asking = self.attempt(endpoint, question, deadline, &waiting);
        let outcome = match patience {
            None => Ok(asking.await),
            Some(patience) => tokio::select! {
                biased;
                outcome = asking => Ok(outcome),
                // Nobody is asked in the place of the registry itself.
                exceeded = waiting.exceeds(patience, !is_own) => Err(exceeded),
            },
        };
        let (health, kind) = (&endpoint.health, question.kind);
        let has_gone = match &outcome {
            Ok(Ok(_)) => {
                health.note_answer(kind, waiting.longest());
                false
            }
            Ok(Err(error)) if health.is_answer(error) => {
                health.note_answer(kind, waiting.longest());
                false
            }
            // Larder may have asked for too much at once.
            _ if is_extra(question) => false,
            // A mirror that is down for its HEADs would never be asked for what it has.
            Ok(Err(error)) if !is_own && question.says_little(error) => false,
            Ok(Err(ErrorKind::Timeout(_))) if is_cut_short => false,
            Ok(Err(error)) => health.note_failure(kind, error),
            Err(Exceeded::Silent(waited)) => health.note_late(kind, *waited),
            Err(Exceeded::WithoutCredentials) => false,
        };
        if has_gone {
            self.has_gone_down(endpoint, question);
        }
        match outcome {
            Ok(Ok(reply)) => Ok(Reply {
                by_itself: is_own,
                ..reply
            }),
            Ok(Err(error)) => Err(error),
            Err(_) if is_own => Err(ErrorKind::no_connection()),
            Err(Exceeded::Silent(waited)) => Err(ErrorKind::Timeout(waited)),
            Err(Exceeded::WithoutCredentials) => Err(ErrorKind::Auth("its credentials were not there in time".into())),
        }
    }

    /// Reports that a mirror sent so many bytes of a blob and then nothing, which ended in `error`: that cost a whole
    /// `read_timeout`, and the next blob would cost the same.
    pub fn note_stall(
        &self,
        address: &Arc<str>,
        repository: &Repository,
        digest: &Digest,
        bytes: u64,
        error: &ErrorKind,
    ) {
        let Some(mirror) = self.mirror(address) else { return };
        if mirror.health.note_stall(bytes, error) {
            self.has_gone_down(mirror, &blob(Method::HEAD, repository, digest, Take::Head));
        }
    }

    /// Reports that a mirror's answer for a blob has come whole, with so many bytes.
    pub fn note_delivery(&self, address: &Arc<str>, bytes: u64) {
        if let Some(mirror) = self.mirror(address) {
            mirror.health.note_delivery(bytes);
        }
    }

    fn mirror(&self, address: &Arc<str>) -> Option<&Arc<Endpoint>> {
        self.mirrors.iter().find(|mirror| mirror.health.name() == address)
    }

    fn has_gone_down(&self, endpoint: &Arc<Endpoint>, question: &Question<'_>) {
        endpoint.probes.remember(question);
        probe::watch(endpoint);
    }

    fn count_repeat(&self, is_ok: bool) {
        let result = if is_ok { "ok" } else { "failed" };
        metrics::counter!(
            "larder_upstream_retries_total",
            "upstream" => self.name.to_string(),
            "result" => result
        )
        .increment(1);
    }

    pub(super) async fn once(
        &self,
        endpoint: &Endpoint,
        question: &Question<'_>,
        deadline: Instant,
        waiting: &Waiting,
    ) -> Result<Reply, ErrorKind> {
        let mut url = endpoint.url(&question.path);
        url.set_query(question.query);
        let answer = self.answer(endpoint, question, &url, deadline, Some(waiting)).await;
        match answer.as_ref().err().and_then(|error| question.falls_back(error)) {
            // A GET may follow, and whoever may lose patience waits for that as well.
            Some(_) => waiting.restart(),
            None => waiting.end(),
        }
        let answer = answer?;
        let mut reply = Reply {
            headers: answer.response.headers().clone(),
            digest: answer.digest,
            with_credentials: answer.with_credentials,
            by_itself: true,
            get_for_head: None,
            address: endpoint.health.name().clone(),
            body: Body::None,
        };
        match question.take {
            Take::Head => {}
            Take::Whole(cap) => reply.body = Body::Document(self.document(answer, cap).await?),
            Take::Pages(cap) => {
                let list = question
                    .list
                    .ok_or_else(|| ErrorKind::Protocol("a list for nobody".into()))?;
                self.pages(endpoint, question, list, url, answer, cap).await?;
            }
            Take::Stream => {
                let response = answer.response;
                let extent = Extent::of(response.status(), response.headers(), question.range)?;
                reply.body = Body::Stream(Box::new((extent, response)));
            }
        }
        Ok(reply)
    }

    /// Headers that are what this question may be answered with.
    async fn answer(
        &self,
        endpoint: &Endpoint,
        question: &Question<'_>,
        url: &Url,
        deadline: Instant,
        waiting: Option<&Waiting>,
    ) -> Result<Answer, ErrorKind> {
        let ask = Ask {
            kind: question.kind.as_str(),
            method: &question.method,
            url,
            accept: question.accept,
            range: question.range,
            as_stored: question.as_stored,
            repository: &endpoint.name_of(question.repository),
            as_nobody: question.as_nobody,
            waiting,
        };
        let answer = match self.late.bounded(deadline, endpoint.ask(&ask)).await {
            Err(ErrorKind::Status { status: 416, .. }) => {
                return Err(ErrorKind::Protocol("416 to a Range within the blob".into()));
            }
            answer => answer?,
        };
        check(question, answer.response.status(), answer.response.headers())?;
        Ok(answer)
    }

    async fn document(&self, answer: Answer, cap: usize) -> Result<Bytes, ErrorKind> {
        let reading = body::document(answer.response, cap, self.read_timeout);
        let timeout = self.tuning.document;
        let bytes = tokio::time::timeout(timeout, reading)
            .await
            .map_err(|_| ErrorKind::Timeout(timeout))??;
        metrics::counter!("larder_upstream_bytes_total", "upstream" => self.name.to_string())
            .increment(bytes.len() as u64);
        Ok(bytes)
    }

    /// Reads every page's items into the sink. The first page is here, the others are asked for at the same address, as its
    /// Link says (R-X2). A page that brings nothing new, or leads to one that was asked for before, is the last one: the
    /// registry did not understand the question, and what came is the list.
    async fn pages(
        &self,
        endpoint: &Endpoint,
        question: &Question<'_>,
        list: List<'_>,
        mut url: Url,
        first: Answer,
        cap: usize,
    ) -> Result<(), ErrorKind> {
        list.sink.restart();
        // One page within its deadline is fine; a thousand of them are not.
        let mut deadline = Instant::now() + self.tuning.document;
        let asked = url.clone();
        let mut seen = HashSet::from([url.clone()]);
        let mut pages = Pages::new(list.items);
        let mut left = cap;
        let mut answer = first;
        loop {
            let next = link::next(&endpoint.base, &asked, &url, answer.response.headers())
                .map_err(|what| ErrorKind::Refused(what.into()))?;
            let came;
            (came, pages) = self.page(answer.response, list, pages, left, &mut deadline).await?;
            left -= came;
            let Some(next) = next.filter(|_| pages.end_page()) else {
                return Ok(());
            };
            if !seen.insert(next.clone()) {
                return Ok(());
            }
            if seen.len() > MAX_PAGES {
                return Err(ErrorKind::Protocol(format!("more than {MAX_PAGES} pages").into()));
            }
            let asking = self.answer(
                endpoint,
                question,
                &next,
                Instant::now() + self.may_take(question),
                None,
            );
            answer = match tokio::time::timeout_at(deadline, in_time(list, asking)).await {
                Ok(answer) => answer.map_err(of_later_page)?,
                Err(_) => return Err(ErrorKind::Timeout(self.tuning.document)),
            };
            url = next;
        }
    }

    /// Reads one page's items into the sink as they come, through `pages`. Returns the bytes of its document. `deadline`
    /// moves by what the sink waits for.
    async fn page(
        &self,
        mut response: reqwest::Response,
        list: List<'_>,
        mut pages: Pages,
        cap: usize,
        deadline: &mut Instant,
    ) -> Result<(usize, Pages), ErrorKind> {
        let too_long = |size: u64| ErrorKind::Protocol(format!("{size} bytes or more, where {cap} are allowed").into());
        let declared = body::content_length(response.headers());
        if let Some(size) = declared.filter(|size| *size > cap as u64) {
            return Err(too_long(size));
        }
        let mut items = Items::new(list.field, list.items);
        let mut came = 0;
        loop {
            let piece = body::piece(&mut response, self.read_timeout);
            let piece = match tokio::time::timeout_at(*deadline, in_time(list, piece)).await {
                Ok(piece) => piece?,
                Err(_) => return Err(ErrorKind::Timeout(self.tuning.document)),
            };
            let Some(mut piece) = piece else { break };
            came += piece.len();
            if came > cap {
                return Err(too_long(came as u64));
            }
            while !piece.is_empty() {
                let part = piece.split_to(piece.len().min(SCAN_BYTES));
                let lines;
                (items, pages, lines) = scan(items, pages, part).await?;
                let begun = Instant::now();
                if !list.sink.take(lines).await {
                    return Err(ErrorKind::Unwanted);
                }
                *deadline += begun.elapsed();
            }
        }
        if let Some(size) = declared.filter(|size| *size != came as u64) {
            return Err(ErrorKind::Cut(
                format!("the answer broke off: {came} of {size} bytes came").into(),
            ));
        }
        metrics::counter!("larder_upstream_bytes_total", "upstream" => self.name.to_string()).increment(came as u64);
        items.finish().map_err(|what| ErrorKind::Protocol(what.into()))?;
        Ok((came, pages))
    }
}

/// Waits for an upstream for as long as its list's sink does.
async fn in_time<T>(list: List<'_>, waiting: impl Future<Output = Result<T, ErrorKind>>) -> Result<T, ErrorKind> {
    tokio::select! {
        biased;
        came = waiting => came,
        () = list.sink.too_slow() => Err(ErrorKind::TooSlow),
    }
}

/// "It is not there", said of a page that the registry itself has announced, says nothing about the list.
fn of_later_page(error: ErrorKind) -> ErrorKind {
    match error {
        ErrorKind::NotFound { .. } | ErrorKind::Denied { .. } => {
            ErrorKind::Protocol(format!("to the next page of a list: it {error}").into())
        }
        other => other,
    }
}

/// Reads the items in `part`, off the async threads unless it is quick.
async fn scan(mut items: Items, mut pages: Pages, part: Bytes) -> Result<(Items, Pages, Vec<u8>), ErrorKind> {
    let is_quick = part.len() <= QUICK_BYTES;
    let read = move || {
        let mut lines = Vec::with_capacity(part.len());
        items.feed(&part, &mut lines).map(|()| {
            let lines = pages.sift(lines);
            (items, pages, lines)
        })
    };
    let read = match is_quick {
        true => read(),
        // It ends early only with the process.
        false => tokio::task::spawn_blocking(read)
            .await
            .unwrap_or_else(|_| Err("a list whose reading was dropped".to_owned())),
    };
    read.map_err(|what| ErrorKind::Protocol(what.into()))
}
