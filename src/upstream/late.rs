//! Questions that an upstream has not begun to answer for a long time.
//!
//! An upstream may take `answer_timeout` to begin an answer, which is far longer than clients wait: they are told to come
//! back, and the question goes on for those who do. So that an upstream which answers nobody does not gather questions
//! without end, only so many of them may be late, and the oldest gives way to the next.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::error::ErrorKind;

/// Questions of one upstream that may be late at once.
const MOST: usize = 256;

/// The late questions of one upstream.
#[derive(Debug)]
pub(super) struct LateQuestions {
    upstream: Arc<str>,
    /// Age from which a question is late.
    after: Duration,
    most: usize,
    waiting: Mutex<Waiting>,
}

/// By the order in which they became late. Each becomes late at the same age, so the first is the oldest.
#[derive(Debug, Default)]
struct Waiting {
    last: u64,
    /// Dropping a sender tells its question to give way.
    questions: BTreeMap<u64, oneshot::Sender<()>>,
}

impl LateQuestions {
    /// `slots`: requests that the upstream may be sent at once, if that is limited. Late ones may hold half of them.
    pub(super) fn new(upstream: Arc<str>, after: Duration, slots: Option<usize>) -> LateQuestions {
        LateQuestions {
            upstream,
            after,
            // Of a single slot there is no half: without it, a slow upstream would never be heard to its end.
            most: slots.map_or(MOST, |slots| (slots / 2).clamp(1, MOST)),
            waiting: Mutex::default(),
        }
    }

    /// Waits for an answer to begin, until `deadline`. From a certain age on the question is counted, and may have to
    /// give way to younger ones, which ends it like the deadline.
    pub(super) async fn bounded<T>(
        &self,
        deadline: Instant,
        asking: impl Future<Output = Result<T, ErrorKind>>,
    ) -> Result<T, ErrorKind> {
        let begun = Instant::now();
        let timed_out = || Err(ErrorKind::Timeout(begun.elapsed()));
        // In a box: each layer would hold it twice.
        let mut asking = Box::pin(asking);
        let soon = begun + self.after;
        match timeout_at(soon.min(deadline), &mut asking).await {
            Ok(answer) => return answer,
            Err(_) if soon >= deadline => return timed_out(),
            Err(_) => {}
        }
        let mut place = self.enter();
        tokio::select! {
            biased;
            answer = timeout_at(deadline, &mut asking) => match answer {
                Ok(answer) => {
                    place.result = match &answer {
                        Err(error) if !is_answer(error) => "failed",
                        _ => "answered",
                    };
                    answer
                }
                Err(_) => {
                    place.result = "timeout";
                    timed_out()
                }
            },
            _ = &mut place.gives_way => {
                place.result = "gave_way";
                tracing::info!(upstream = %self.upstream, most = self.most, "too many requests have gone unanswered for long: the oldest is given up");
                timed_out()
            }
        }
    }

    fn enter(&self) -> Place<'_> {
        let (sender, gives_way) = oneshot::channel();
        let mut waiting = self.lock();
        waiting.last += 1;
        let id = waiting.last;
        waiting.questions.insert(id, sender);
        while waiting.questions.len() > self.most {
            waiting.questions.pop_first();
        }
        Place {
            late: self,
            id,
            gives_way,
            result: "dropped",
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the upstream answered, if not with what was asked for.
fn is_answer(error: &ErrorKind) -> bool {
    matches!(
        error,
        ErrorKind::NotFound { .. }
            | ErrorKind::Denied { .. }
            | ErrorKind::RateLimited { .. }
            | ErrorKind::Status { .. }
    )
}

/// A late question among the others.
struct Place<'a> {
    late: &'a LateQuestions,
    id: u64,
    gives_way: oneshot::Receiver<()>,
    /// How it ended, as the metric says it.
    result: &'static str,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.late.lock().questions.remove(&self.id);
        metrics::counter!(
            "larder_upstream_late_answers_total",
            "upstream" => self.late.upstream.to_string(),
            "result" => self.result
        )
        .increment(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LATE: Duration = Duration::from_secs(20);

    fn questions(slots: Option<usize>) -> Arc<LateQuestions> {
        Arc::new(LateQuestions::new("r.example".into(), LATE, slots))
    }

    /// Begins one that is answered after `answer`, or never. Gives what it ended with and when, counted from its beginning.
    fn begin(
        late: &Arc<LateQuestions>,
        answer: Option<Duration>,
        timeout: Duration,
    ) -> tokio::task::JoinHandle<(bool, Duration)> {
        let late = late.clone();
        tokio::spawn(async move {
            let begun = Instant::now();
            let asking = async {
                match answer {
                    Some(after) => tokio::time::sleep(after).await,
                    None => std::future::pending().await,
                }
                Ok(())
            };
            let answered = late.bounded(begun + timeout, asking).await;
            assert!(answered.is_ok() || matches!(answered, Err(ErrorKind::Timeout(_))));
            (answered.is_ok(), begun.elapsed())
        })
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_may_take_until_the_deadline() {
        let (second, minute) = (Duration::from_secs(1), Duration::from_secs(60));
        let late = questions(None);
        for (answer, timeout, expected) in [
            (Some(second), minute, (true, second)),
            (Some(25 * second), minute, (true, 25 * second)),
            (Some(2 * minute), minute, (false, minute)),
            (Some(minute), second, (false, second)),
            (None, LATE, (false, LATE)),
        ] {
            assert_eq!(begin(&late, answer, timeout).await.unwrap(), expected);
            assert!(late.lock().questions.is_empty());
        }
    }

    /// The oldest late question gives way to the next, and only to one that is late itself.
    #[tokio::test(start_paused = true)]
    async fn the_oldest_gives_way() {
        let hour = Duration::from_secs(3600);
        for (slots, most) in [
            (Some(1), 1),
            (Some(2), 1),
            (Some(7), 3),
            (None, MOST),
            (Some(9_999), MOST),
        ] {
            let late = questions(slots);
            let mut running = Vec::new();
            for _ in 0..most {
                running.push(begin(&late, None, hour));
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            tokio::time::sleep(LATE).await;
            assert_eq!(late.lock().questions.len(), most);
            let quick = begin(&late, Some(LATE / 2), hour);
            assert!(quick.await.unwrap().0 && running.iter().all(|question| !question.is_finished()));
            let (next, begun) = (begin(&late, None, hour), Instant::now());
            let (answered, _) = running.remove(0).await.unwrap();
            assert!(!answered && begun.elapsed() == LATE, "{:?}", begun.elapsed());
            assert!(running.iter().all(|question| !question.is_finished()) && !next.is_finished());
            for question in running.into_iter().chain([next]) {
                question.abort();
                let _ = question.await;
            }
            assert!(late.lock().questions.is_empty(), "who is dropped leaves");
        }
    }
}
