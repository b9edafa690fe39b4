//! Finding out whether an address that is `Down` has come back, so that no client has to.
//!
//! At the end of each pause the request that failed is sent once more, as HEAD and in the background: an address whose store
//! hangs answers `/v2/` well. A mirror whose HEAD fails in a way that may be HEAD's fault (R-U27) is sent it as GET, which is broken
//! off after its headers: else it would never come back. The registry itself is asked by clients anyway, and its GETs may
//! count. The task ends with its endpoint, and with the first answer.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::Method;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::body;
use super::endpoint::{Ask, Endpoint};
use super::error::ErrorKind;
use super::heads::GetFallback;
use super::question::{Kind, Question, Take, check};
use crate::oci::Repository;

/// How long an address may take to answer a probe. That it is slow is no reason to keep it `Down`: how long a client waits
/// for it is bounded, and each time it is too slow the pause grows.
const PATIENCE: Duration = Duration::from_secs(10);

/// The probes of one endpoint.
#[derive(Debug, Default)]
pub struct Probes {
    /// The request that failed last.
    request: Mutex<Option<Request>>,
    /// Whether a task waits for the next probe's time.
    is_watched: AtomicBool,
    /// Whether a probe is sent out of its turn.
    is_hurried: AtomicBool,
    /// `max_connections`.
    slots: Option<Arc<Semaphore>>,
}

/// What is asked as a probe.
#[derive(Clone, Debug)]
struct Request {
    kind: Kind,
    repository: Repository,
    path: String,
    query: Option<&'static str>,
    accept: &'static str,
    as_nobody: bool,
}

impl Probes {
    pub(super) fn new(slots: Option<Arc<Semaphore>>) -> Probes {
        Probes {
            slots,
            ..Probes::default()
        }
    }

    fn request(&self) -> Option<Request> {
        self.request.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes over what would be asked at the same address.
    pub(super) fn inherit(&self, before: &Probes) {
        let request = before.request();
        *self.request.lock().unwrap_or_else(PoisonError::into_inner) = request;
    }

    /// Remembers the request by which the address went down.
    pub(super) fn remember(&self, question: &Question<'_>) {
        let request = Request {
            kind: question.kind,
            repository: question.repository.clone(),
            path: question.path.clone(),
            query: question.query,
            accept: question.accept,
            as_nobody: question.as_nobody,
        };
        *self.request.lock().unwrap_or_else(PoisonError::into_inner) = Some(request);
    }
}

/// Sees to it that an address that is `Down` is probed at the end of its pause. Does nothing if that is seen to.
pub(super) fn watch(endpoint: &Arc<Endpoint>) {
    if endpoint.probes.is_watched.swap(true, Ordering::AcqRel) {
        return;
    }
    let Ok(runtime) = Handle::try_current() else {
        endpoint.probes.is_watched.store(false, Ordering::Release);
        return;
    };
    let weak = Arc::downgrade(endpoint);
    runtime.spawn(async move {
        while let Some(at) = weak.upgrade().and_then(|endpoint| endpoint.health.probe_at()) {
            tokio::time::sleep_until(at).await;
            let Some(endpoint) = weak.upgrade() else { return };
            // A client's request may have brought it back, and another taken it down again.
            if endpoint.health.probe_at().is_some_and(|now| now <= at) {
                probe(&endpoint).await;
            }
        }
        if let Some(endpoint) = weak.upgrade() {
            endpoint.probes.is_watched.store(false, Ordering::Release);
        }
    });
}

/// Sends a probe now, unless one is under way that was sent out of its turn.
pub(super) fn hurry(endpoint: &Arc<Endpoint>) {
    if endpoint.probes.is_hurried.swap(true, Ordering::AcqRel) {
        return;
    }
    let endpoint = endpoint.clone();
    tokio::spawn(async move {
        probe(&endpoint).await;
        endpoint.probes.is_hurried.store(false, Ordering::Release);
    });
}

async fn probe(endpoint: &Endpoint) {
    // They are kept, and there when it is asked. Waiting for them is not the address's silence.
    if let Some(request) = endpoint.probes.request().filter(|request| !request.as_nobody) {
        let repository = endpoint.name_of(&request.repository);
        let _ = endpoint.credentials.find(Some(&repository)).await;
    }
    // Waiting for it is Larder's own queue.
    let _slot = match &endpoint.probes.slots {
        Some(slots) => slots.acquire().await.ok(),
        None => None,
    };
    let outcome = match tokio::time::timeout(PATIENCE, ask(endpoint)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(ErrorKind::Timeout(PATIENCE)),
    };
    let error = outcome.as_ref().err();
    tracing::debug!(upstream = %endpoint.upstream, address = %endpoint.health.name(), error = error.map(tracing::field::display), "probed");
    endpoint.health.note_probe(&outcome);
}

async fn ask(endpoint: &Endpoint) -> Result<(), ErrorKind> {
    let request = endpoint.probes.request();
    // One that went down by no request of this process: whatever it answers at its door.
    let Some(request) = request else { return Ok(()) };
    let failed = match send(endpoint, &request, Method::HEAD).await {
        Err(error) if endpoint.health.may_be_for_head(&error) => error,
        answered => return answered,
    };
    tracing::debug!(upstream = %endpoint.upstream, address = %endpoint.health.name(), error = %failed, "a HEAD was refused: probing by GET");
    send(endpoint, &request, Method::GET).await
}

async fn send(endpoint: &Endpoint, request: &Request, method: Method) -> Result<(), ErrorKind> {
    let question = Question {
        kind: request.kind,
        method,
        repository: &request.repository,
        path: request.path.clone(),
        query: request.query,
        accept: request.accept,
        range: None,
        as_stored: false,
        take: Take::Head,
        get_fallback: GetFallback::Never,
        within: None,
        as_nobody: request.as_nobody,
        list: None,
        without: &[],
    };
    let mut url = endpoint.url(&question.path);
    url.set_query(question.query);
    let ask = Ask {
        kind: "probe",
        method: &question.method,
        url: &url,
        accept: question.accept,
        range: None,
        as_stored: false,
        repository: &endpoint.name_of(question.repository),
        as_nobody: question.as_nobody,
        waiting: None,
    };
    let answer = endpoint.ask(&ask).await?;
    let checked = check(&question, answer.response.status(), answer.response.headers());
    if question.method == Method::HEAD {
        body::drain(answer.response).await;
    }
    checked
}
