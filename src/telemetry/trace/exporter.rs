//! Takes spans that have ended to the collector: in batches, from a bounded queue, by a task of its own.
//!
//! A collector that is slow or dead costs nobody time: a batch is tried a few times with growing pauses and then dropped,
//! what the queue has no room for meanwhile is dropped at once, all is counted, and a line a minute says so.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use prost::Message as _;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::otlp;
use super::span::Record;

/// Spans that wait. One takes about a KiB.
const QUEUE: usize = 4096;
/// Spans of one batch.
const BATCH: usize = 512;
/// How long a batch that is not full waits for more.
const LINGER: Duration = Duration::from_secs(1);
/// Of one batch.
const ATTEMPTS: u32 = 4;
/// Between them; doubles.
const PAUSE: Duration = Duration::from_secs(1);
/// A collector may ask for a longer one, up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// For what is left at the end.
const FLUSH: Duration = Duration::from_secs(5);
/// Between two lines about the same trouble.
const QUIET: Duration = Duration::from_secs(60);

/// How a collector took a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Post {
    /// An answer; its body, as far as it was read.
    Answered {
        status: u16,
        retry_after: Option<Duration>,
        body: Bytes,
    },
    /// None; why.
    Failed(String),
}

/// Where batches go. What sends them is given: who is trusted, and how, is not known here.
pub struct Target {
    /// As it may be shown.
    pub name: String,
    pub post: Box<dyn Fn(Bytes) -> BoxFuture<'static, Post> + Send + Sync>,
    /// Who tells it: `service.name` and the like.
    pub resource: Vec<(String, String)>,
}

/// The way into the queue.
pub(super) struct Queue(pub(super) Sender<Record>);

impl Queue {
    /// Never waits.
    pub(super) fn put(&self, record: Record) {
        if self.0.try_send(record).is_err() {
            dropped("queue", 1);
        }
    }
}

fn dropped(reason: &'static str, spans: usize) {
    metrics::counter!("larder_traces_dropped_total", "reason" => reason).increment(spans as u64);
}

/// The task that sends. Dropped, it ends where it stands.
pub struct Exporter {
    task: JoinHandle<()>,
    stop: CancellationToken,
}

impl Exporter {
    pub(super) fn start(target: Target) -> (Queue, Exporter) {
        let (sender, queue) = mpsc::channel(QUEUE);
        let stop = CancellationToken::new();
        let sending = Sending {
            target: Arc::new(target),
            stop: stop.clone(),
            told: None,
        };
        let task = tokio::spawn(sending.run(queue));
        (Queue(sender), Exporter { task, stop })
    }

    /// Sends what is there, each batch once, and gives up after a few seconds.
    pub async fn close(mut self) {
        self.stop.cancel();
        let _ = tokio::time::timeout(FLUSH, &mut self.task).await;
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Sending {
    target: Arc<Target>,
    stop: CancellationToken,
    /// When trouble was told of last; `None` while all is well.
    told: Option<Instant>,
}

/// Why a batch did not arrive.
struct Refusal {
    what: String,
    /// The pause before it is worth another try, where it is.
    again: Option<Duration>,
}

impl Sending {
    async fn run(mut self, mut queue: Receiver<Record>) {
        let mut batch = Vec::with_capacity(BATCH);
        while self.gather(&mut queue, &mut batch).await {
            self.deliver(&batch).await;
            batch.clear();
        }
        queue.close();
        while queue.recv_many(&mut batch, BATCH).await > 0 {
            self.deliver(&batch).await;
            batch.clear();
        }
    }

    /// Fills a batch. `false`: there is nothing to wait for any more.
    async fn gather(&self, queue: &mut Receiver<Record>, batch: &mut Vec<Record>) -> bool {
        tokio::select! {
            came = queue.recv_many(batch, BATCH) => if came == 0 { return false },
            () = self.stop.cancelled() => return false,
        }
        let until = Instant::now() + LINGER;
        while batch.len() < BATCH {
            tokio::select! {
                came = queue.recv_many(batch, BATCH - batch.len()) => if came == 0 { break },
                () = tokio::time::sleep_until(until) => break,
                () = self.stop.cancelled() => break,
            }
        }
        true
    }

    async fn deliver(&mut self, batch: &[Record]) {
        let body = otlp::encoded(&self.target.resource, batch);
        let mut pause = PAUSE;
        for attempt in 1..=ATTEMPTS {
            let refusal = match judge((self.target.post)(body.clone()).await) {
                Ok(partly) => {
                    self.note_delivery(batch.len(), &partly);
                    return;
                }
                Err(refusal) => refusal,
            };
            self.note_trouble(&refusal.what);
            let Some(asked) = refusal.again.filter(|_| attempt < ATTEMPTS) else {
                break;
            };
            tokio::select! {
                () = tokio::time::sleep(asked.max(pause).min(LONGEST_PAUSE)) => {}
                () = self.stop.cancelled() => break,
            }
            pause *= 2;
        }
        dropped("failed", batch.len());
    }

    fn note_delivery(&mut self, spans: usize, partly: &otlp::PartialSuccess) {
        let refused = usize::try_from(partly.rejected_spans).unwrap_or_default().min(spans);
        metrics::counter!("larder_traces_sent_total").increment((spans - refused) as u64);
        if refused > 0 {
            dropped("refused", refused);
            let what = shown(&partly.error_message);
            return self.note_trouble(&format!("it took only a part of the spans: {what}"));
        }
        if self.told.take().is_some() {
            tracing::info!(collector = self.target.name, "spans arrive at the collector again");
        }
    }

    fn note_trouble(&mut self, what: &str) {
        if self.told.is_none_or(|told| told.elapsed() >= QUIET) {
            self.told = Some(Instant::now());
            let collector = &self.target.name;
            tracing::warn!(
                collector,
                error = what,
                "spans do not arrive at the collector; more are dropped"
            );
        }
    }
}

/// OTLP: what may be tried again is 429, 502, 503, 504 and what was not answered.
fn judge(post: Post) -> Result<otlp::PartialSuccess, Refusal> {
    match post {
        Post::Answered {
            status: 200..=299,
            body,
            ..
        } => {
            // Some answer 200 with no message, or with JSON: that they took it is what counts.
            let answer = otlp::ExportResponse::decode(body).unwrap_or_default();
            Ok(answer.partial_success.unwrap_or_default())
        }
        Post::Answered {
            status, retry_after, ..
        } => Err(Refusal {
            what: format!("it answered {status}"),
            again: matches!(status, 429 | 502 | 503 | 504).then(|| retry_after.unwrap_or_default()),
        }),
        Post::Failed(what) => Err(Refusal {
            what,
            again: Some(Duration::ZERO),
        }),
    }
}

/// What a collector says, on one line.
fn shown(text: &str) -> String {
    crate::text::one_line(text, 200)
}
