//! One hook's deliveries: from its queue, in order, one at a time, until each is taken, too old, or in everybody's way.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::envelope::body;
use super::pace::{Next, Pace, Verdict};
use super::signature::{SIGNATURE, TIMESTAMP, signature};
use super::{Answer, Carry, Hook, Parcel};
use crate::config;
use crate::store::{Batch, now_by_clock_of};
use crate::telemetry::clock::unix_ms;

/// Bytes of one delivery, unless a single event is larger.
const MOST_BYTES: usize = 256 << 10;
/// After a failure of the disk.
const DISK_PAUSE: Duration = Duration::from_secs(5);

/// Until the hook is stopped.
pub(super) async fn deliver(hook: Arc<Hook>, carry: Carry) {
    tokio::select! {
        () = run(&hook, &carry) => {}
        () = hook.stop.cancelled() => {}
    }
}

async fn run(hook: &Arc<Hook>, carry: &Carry) {
    let mut pace = Pace::new(hook.settings.backoff);
    loop {
        let outcome = round(hook, carry, &mut pace).await;
        match outcome {
            Ok(Some(pause)) => tokio::time::sleep(pause).await,
            Ok(None) => hook.ready.notified().await,
            Err(error) => {
                hook.note_disk(&error);
                tokio::time::sleep(DISK_PAUSE).await;
            }
        }
    }
}

/// One look at the queue, and what follows from it. Gives the pause before the next; `None`: until something comes.
async fn round(hook: &Arc<Hook>, carry: &Carry, pace: &mut Pace) -> std::io::Result<Option<Duration>> {
    let most = pace.most;
    let batch = on_disk(hook, move |hook| hook.queue.peek(most, MOST_BYTES)).await?;
    if batch.lines.is_empty() && batch.damaged == 0 {
        return Ok(None);
    }
    let max_age_ms = as_ms(hook.settings.max_age);
    let age_ms = |at_ms: u64| now_by_clock_of(at_ms).saturating_sub(at_ms);
    let expired = batch
        .lines
        .iter()
        .take_while(|line| age_ms(line.at_ms) > max_age_ms)
        .count();
    if expired > 0 || batch.lines.is_empty() {
        hook.note_dropped("expired", expired as u64);
        done(hook, batch, expired).await?;
        return Ok(Some(Duration::ZERO));
    }
    let events = batch.lines.len();
    let next = match send(&hook.settings, carry, body(&batch.lines)).await {
        Ok(answer) => match Verdict::of(answer.status) {
            Verdict::Taken => {
                pace.taken();
                hook.note_delivered(events as u64);
                done(hook, batch, events).await?;
                return Ok(Some(Duration::ZERO));
            }
            verdict => {
                hook.note_failed(&answer.status.to_string(), said(answer.status));
                match verdict {
                    Verdict::Unreadable => pace.unreadable(events, answer.retry_after),
                    _ => pace.failed(answer.retry_after),
                }
            }
        },
        Err(why) => {
            hook.note_failed("none", why);
            pace.failed(None)
        }
    };
    match next {
        Next::Wait(pause) => Ok(Some(pause)),
        Next::Drop => {
            hook.note_dropped("refused", events as u64);
            done(hook, batch, events).await?;
            Ok(Some(Duration::ZERO))
        }
    }
}

fn said(status: u16) -> String {
    match status {
        300..=399 => format!("it answers {status}: redirects are not followed"),
        _ => format!("it answers {status}"),
    }
}

/// Signed and on its way. Errors: why nothing was said to it, in a sentence without secrets.
pub(super) async fn send(settings: &Arc<config::Webhook>, carry: &Carry, body: Bytes) -> Result<Answer, String> {
    let (hook, content) = (settings.clone(), body.clone());
    // Secrets in files are read each time, so that new ones are found.
    let headers = tokio::task::spawn_blocking(move || {
        let mut headers = hook.all_headers()?;
        if let Some(secret) = &hook.secret {
            let secret = secret.read()?;
            let now = unix_ms(SystemTime::now()) / 1000;
            let signed = signature(secret.reveal(), now, &content);
            headers.push((TIMESTAMP.to_owned(), config::Secret::new(now.to_string())));
            headers.push((SIGNATURE.to_owned(), config::Secret::new(signed)));
        }
        Ok::<_, String>(headers)
    });
    let headers = headers
        .await
        .map_err(|_| "reading its secrets ended early".to_owned())??;
    carry(Parcel { headers, body }).await
}

async fn done(hook: &Arc<Hook>, batch: Batch, lines: usize) -> std::io::Result<()> {
    hook.note_dropped("damaged", batch.damaged);
    on_disk(hook, move |hook| hook.queue.done(&batch, lines)).await
}

/// Runs disk work off the async threads.
async fn on_disk<T: Send + 'static>(
    hook: &Arc<Hook>,
    work: impl FnOnce(&Hook) -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<T> {
    let hook = hook.clone();
    let working = tokio::task::spawn_blocking(move || work(&hook));
    working.await.map_err(std::io::Error::other)?
}

fn as_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
