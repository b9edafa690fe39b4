//! Bringing a question to an answer: mirrors and upstream in order, the deadline for headers, the quick repeats, the pages.

use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;
use moka::ops::compute::Op;
use reqwest::header::HeaderMap;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use url::Url;

use super::blob::Extent;
use super::client::Client;
use super::dance::Answer;
use super::endpoint::{Ask, Endpoint};
use super::error::{ErrorKind, UpstreamError};
use super::items::Items;
use super::question::{List, Question, Take, check};
use super::{body, link};
use crate::oci::Digest;

const MAX_PAGES: usize = 1_000;
/// How much of a list's document is read at once, off the async threads.
const SCAN_BYTES: usize = 64 * 1024;
/// A part up to so long is read faster than it is handed to another thread.
const QUICK_BYTES: usize = 4 * 1024;

/// An answer of which everything is here but a stream's bytes.
pub(super) struct Reply {
    pub(super) headers: HeaderMap,
    pub(super) digest: Option<Digest>,
    pub(super) with_credentials: bool,
    /// Set if the registry itself answered, and not a mirror (L11).
    pub(super) by_itself: bool,
    pub(super) body: Body,
}

pub(super) enum Body {
    None,
    Document(Bytes),
    Stream(Box<(Extent, reqwest::Response)>),
}

impl Client {
    /// Mirrors first, in order; whatever goes wrong there, the upstream itself has the last word.
    pub(super) async fn ask(
        &self,
        question: &Question<'_>,
    ) -> Result<(Reply, Option<OwnedSemaphorePermit>), UpstreamError> {
        let slot = self.slot().await;
        Ok((self.ask_in(question).await?, slot))
    }

    async fn slot(&self) -> Option<OwnedSemaphorePermit> {
        match &self.slots {
            // Waiting for a slot is Larder's own queue: the upstream's deadline begins after it.
            Some(slots) if !self.offline => slots.clone().acquire_owned().await.ok(),
            _ => None,
        }
    }

    /// The same, by a caller that has its slot.
    pub(super) async fn ask_in(&self, question: &Question<'_>) -> Result<Reply, UpstreamError> {
        if self.offline {
            return Err(self.error(ErrorKind::Offline));
        }
        // The registry itself may take its time; a mirror has others behind it.
        let within = self.may_take(question);
        let deadline = Instant::now() + within.min(self.tuning.headers);
        let mut behind = self.mirrors.len() as u32;
        for mirror in &self.mirrors {
            // A mirror that hangs must leave time for those behind it.
            let share = deadline.saturating_duration_since(Instant::now()) / (behind + 1);
            behind -= 1;
            match self.at(mirror, question, Instant::now() + share).await {
                Ok(reply) => {
                    let reply = Reply {
                        by_itself: false,
                        ..reply
                    };
                    // A mirror that wants no credentials says nothing about what the registry wants (L8).
                    return Ok(match reply.with_credentials {
                        true => self.note(question, reply),
                        false => {
                            self.forget_openness(question);
                            reply
                        }
                    });
                }
                Err(error) => {
                    tracing::debug!(upstream = %self.name, mirror = mirror.base.host_str(), %error, "mirror failed")
                }
            }
        }
        match self.at(&self.own, question, Instant::now() + within).await {
            Ok(reply) => Ok(self.note(question, reply)),
            Err(kind) => {
                self.forget_openness(question);
                Err(self.error(kind))
            }
        }
    }

    /// At the registry itself, mirrors left aside. Nothing is learned from its answer.
    pub(super) async fn ask_itself(&self, question: &Question<'_>) -> Result<Reply, UpstreamError> {
        if self.offline {
            return Err(self.error(ErrorKind::Offline));
        }
        let deadline = Instant::now() + self.may_take(question);
        let asked = self.at(&self.own, question, deadline).await;
        asked.map_err(|kind| self.error(kind))
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

    /// One endpoint, with quick repeats of what may pass. Nothing has been handed out yet, so a repeat is free of doubt.
    async fn at(&self, endpoint: &Endpoint, question: &Question<'_>, deadline: Instant) -> Result<Reply, ErrorKind> {
        // What could be done without is asked for once.
        let is_extra = question.range.is_some_and(|range| range.end.is_some());
        let allowed = if is_extra { 0 } else { self.tuning.retries };
        let mut repeats = 0;
        loop {
            let error = match self.once(endpoint, question, deadline).await {
                Ok(reply) => return Ok(reply),
                Err(error) => error,
            };
            let pause = self.pause(repeats);
            if !may_pass(&error) || repeats >= allowed || Instant::now() + pause >= deadline {
                return Err(error);
            }
            repeats += 1;
            tracing::debug!(upstream = %self.name, %error, repeats, "asking again");
            tokio::time::sleep(pause).await;
        }
    }

    /// Doubles with each repeat, with jitter so that a fleet does not knock in step.
    fn pause(&self, repeats: u32) -> Duration {
        let (shortest, longest) = self.tuning.pause;
        let full = (shortest * 2u32.pow(repeats.min(8) + 1)).min(longest);
        shortest + full.saturating_sub(shortest).mul_f64(fastrand::f64())
    }

    async fn once(&self, endpoint: &Endpoint, question: &Question<'_>, deadline: Instant) -> Result<Reply, ErrorKind> {
        let mut url = endpoint.url(&question.path);
        url.set_query(question.query);
        let answer = self.answer(endpoint, question, &url, deadline).await?;
        let mut reply = Reply {
            headers: answer.response.headers().clone(),
            digest: answer.digest,
            with_credentials: answer.with_credentials,
            by_itself: true,
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
        let reading = body::whole(answer.response, cap, self.read_timeout);
        let timeout = self.tuning.document;
        let bytes = tokio::time::timeout(timeout, reading)
            .await
            .map_err(|_| ErrorKind::Timeout(timeout))??;
        metrics::counter!("larder_upstream_bytes_total", "upstream" => self.name.to_string())
            .increment(bytes.len() as u64);
        Ok(bytes)
    }

    /// Reads every page's items into the sink. The first page is here, the others are asked for at the same endpoint
    /// (R-X2).
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
        let mut seen = HashSet::from([url.clone()]);
        let mut left = cap;
        let mut answer = first;
        loop {
            let next = link::next(&endpoint.base, &url, answer.response.headers())
                .map_err(|what| ErrorKind::Refused(what.into()))?;
            left -= self.page(answer.response, list, left, &mut deadline).await?;
            let Some(next) = next else { return Ok(()) };
            if !seen.insert(next.clone()) {
                return Err(ErrorKind::Protocol("its pages lead in a circle".into()));
            }
            if seen.len() > MAX_PAGES {
                return Err(ErrorKind::Protocol(format!("more than {MAX_PAGES} pages").into()));
            }
            let asking = self.answer(endpoint, question, &next, Instant::now() + self.may_take(question));
            answer = match tokio::time::timeout_at(deadline, in_time(list, asking)).await {
                Ok(answer) => answer?,
                Err(_) => return Err(ErrorKind::Timeout(self.tuning.document)),
            };
            url = next;
        }
    }

    /// Reads one page's items into the sink as they come. Returns the bytes of its document. `deadline` moves by what
    /// the sink waits for.
    async fn page(
        &self,
        mut response: reqwest::Response,
        list: List<'_>,
        cap: usize,
        deadline: &mut Instant,
    ) -> Result<usize, ErrorKind> {
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
                (items, lines) = scan(items, part).await?;
                let begun = Instant::now();
                if !list.sink.take(lines).await {
                    return Err(ErrorKind::Unwanted);
                }
                *deadline += begun.elapsed();
            }
        }
        if let Some(size) = declared.filter(|size| *size != came as u64) {
            return Err(ErrorKind::Cut(format!("{came} of {size} bytes came").into()));
        }
        metrics::counter!("larder_upstream_bytes_total", "upstream" => self.name.to_string()).increment(came as u64);
        items.finish().map_err(|what| ErrorKind::Protocol(what.into()))?;
        Ok(came)
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

/// Reads the items in `part`, off the async threads unless it is quick.
async fn scan(mut items: Items, part: Bytes) -> Result<(Items, Vec<u8>), ErrorKind> {
    let is_quick = part.len() <= QUICK_BYTES;
    let read = move || {
        let mut lines = Vec::with_capacity(part.len());
        items.feed(&part, &mut lines).map(|()| (items, lines))
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

/// Failures after which the same request may succeed a moment later. Never a 429, never a verdict.
fn may_pass(error: &ErrorKind) -> bool {
    match error {
        ErrorKind::Connect(_) | ErrorKind::Cut(_) => true,
        ErrorKind::Status { status, .. } => *status == 408 || (*status >= 500 && *status != 501 && !error.is_circle()),
        _ => false,
    }
}
