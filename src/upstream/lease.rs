//! Credentials that somebody gives out for a while: a helper program, or a cloud.
//!
//! Walk: whoever asks gets what is kept while it is good; else one asks the giver and the others wait for that. What ends
//! at a known time is replaced at nine tenths of it; if that fails, it is used until its end. A registry that refuses what
//! is kept has it replaced ahead of time, but not again within [`RENEW_EVERY`]: a repository that nobody may see would
//! have the giver asked with every request. A failure is kept for a moment, so that a broken giver is not asked by
//! each of a hundred requests in turn.

use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::credentials::Credential;
use crate::telemetry;

/// How long a giver that says no end is believed.
const TERM: Duration = Duration::from_secs(600);
/// How much longer that may be used when the giver fails meanwhile.
const BEYOND: Duration = Duration::from_secs(3600);
/// How long "I know nobody there" is believed.
const NOBODY_FOR: Duration = Duration::from_secs(60);
const FAILED_FOR: Duration = Duration::from_secs(5);
const RENEW_EVERY: Duration = Duration::from_secs(30);

/// What was given out.
#[derive(Debug)]
pub struct Given {
    pub credential: Credential,
    /// `None` where nobody says.
    pub good_for: Option<Duration>,
}

/// Who gives out credentials.
pub trait Give: Debug + Send + Sync {
    /// Errors: a sentence without secrets.
    fn give(&self) -> BoxFuture<'_, Result<Given, String>>;
}

#[derive(Debug)]
pub struct Lease {
    giver: Box<dyn Give>,
    /// Held by the one who asks.
    turn: tokio::sync::Mutex<()>,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    last: Option<Loan>,
    failed: Option<(Instant, Arc<str>)>,
    renewed: Option<Instant>,
}

#[derive(Debug)]
struct Loan {
    credential: Arc<Credential>,
    replace_at: Instant,
    ends: Instant,
}

impl Lease {
    pub fn of(giver: impl Give + 'static) -> Lease {
        Lease {
            giver: Box::new(giver),
            turn: tokio::sync::Mutex::default(),
            kept: Mutex::default(),
        }
    }

    /// Returns the credential that is good now. The giver is asked by a task of its own: whoever waits may leave, and a
    /// credential that is given out late is there for the next.
    pub async fn get(self: &Arc<Lease>) -> Result<Arc<Credential>, Arc<str>> {
        if let Some(found) = self.at_hand() {
            return found;
        }
        let lease = self.clone();
        let asking = tokio::spawn(telemetry::carry(async move {
            let _turn = lease.turn.lock().await;
            match lease.at_hand() {
                Some(found) => found,
                None => lease.ask().await,
            }
        }));
        // Ends early only by a panic or with the process.
        asking
            .await
            .unwrap_or_else(|_| Err("who gives out credentials was not asked to the end".into()))
    }

    /// What was given out last, if there was anything: who asks may not wait.
    pub fn last(&self) -> Option<Arc<Credential>> {
        self.kept().last.as_ref().map(|loan| loan.credential.clone())
    }

    /// Another than `refused`, or `None`: it is as good as it gets.
    pub async fn renew(&self, refused: &Credential) -> Option<Arc<Credential>> {
        let _turn = self.turn.lock().await;
        let now = Instant::now();
        {
            let mut kept = self.kept();
            // Somebody was refused the same a moment ago, and has had it replaced.
            if let Some(loan) = kept.last.as_ref().filter(|loan| *loan.credential != *refused) {
                return (now < loan.ends).then(|| loan.credential.clone());
            }
            if kept.renewed.is_some_and(|at| now < at + RENEW_EVERY) {
                return None;
            }
            kept.renewed = Some(now);
        }
        self.ask().await.ok().filter(|new| **new != *refused)
    }

    fn at_hand(&self) -> Option<Result<Arc<Credential>, Arc<str>>> {
        let (kept, now) = (self.kept(), Instant::now());
        if let Some(loan) = kept.last.as_ref().filter(|loan| now < loan.replace_at) {
            return Some(Ok(loan.credential.clone()));
        }
        let (_, why) = kept.failed.as_ref().filter(|(until, _)| now < *until)?;
        let good = kept.last.as_ref().filter(|loan| now < loan.ends);
        Some(good.map(|loan| loan.credential.clone()).ok_or_else(|| why.clone()))
    }

    /// By who has the turn.
    async fn ask(&self) -> Result<Arc<Credential>, Arc<str>> {
        let outcome = self.giver.give().await;
        let (mut kept, now) = (self.kept(), Instant::now());
        match outcome {
            Ok(given) => {
                let (replace_at, ends) = match given.good_for {
                    Some(good_for) => (now + good_for.mul_f64(0.9), now + good_for),
                    None if given.credential.is_anonymous() => (now + NOBODY_FOR, now + NOBODY_FOR),
                    None => (now + TERM, now + TERM + BEYOND),
                };
                let credential = Arc::new(given.credential);
                kept.last = Some(Loan {
                    credential: credential.clone(),
                    replace_at,
                    ends,
                });
                kept.failed = None;
                Ok(credential)
            }
            Err(why) => {
                let why: Arc<str> = why.into();
                kept.failed = Some((now + FAILED_FOR, why.clone()));
                match kept.last.as_ref().filter(|loan| now < loan.ends) {
                    Some(loan) => {
                        tracing::warn!(%why, "no new credentials: going on with those of before");
                        Ok(loan.credential.clone())
                    }
                    None => Err(why),
                }
            }
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::config::Secret;

    /// Gives a token of its own each time, or fails.
    #[derive(Clone, Debug, Default)]
    struct Clerk {
        asked: Arc<AtomicUsize>,
        fails: Arc<std::sync::atomic::AtomicBool>,
        good_for: Option<Duration>,
    }

    impl Give for Clerk {
        fn give(&self) -> BoxFuture<'_, Result<Given, String>> {
            Box::pin(async {
                let n = self.asked.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(10)).await;
                match self.fails.load(Ordering::SeqCst) {
                    true => Err("out of office".to_owned()),
                    false => Ok(Given {
                        credential: Credential::Bearer(Secret::new(format!("t{n}"))),
                        good_for: self.good_for,
                    }),
                }
            })
        }
    }

    impl Clerk {
        fn asked(&self) -> usize {
            self.asked.load(Ordering::SeqCst)
        }
    }

    fn text(credential: &Credential) -> &str {
        credential.secret().unwrap_or("none")
    }

    const HOUR: Duration = Duration::from_secs(3600);

    #[tokio::test(start_paused = true)]
    async fn one_asks_for_all_and_again_before_the_end() {
        let clerk = Clerk {
            good_for: Some(HOUR),
            ..Clerk::default()
        };
        let lease = Arc::new(Lease::of(clerk.clone()));
        let all = futures_util::future::join_all((0..50).map(|_| lease.get())).await;
        assert!(all.iter().all(|one| text(one.as_ref().unwrap()) == "t0"));
        assert_eq!(clerk.asked(), 1);
        tokio::time::advance(HOUR.mul_f64(0.89)).await;
        assert_eq!(text(&lease.get().await.unwrap()), "t0");
        tokio::time::advance(HOUR.mul_f64(0.02)).await;
        assert_eq!(text(&lease.get().await.unwrap()), "t1");
        assert_eq!(clerk.asked(), 2);
    }

    /// A credential that one could not wait for is there for those who come later.
    #[tokio::test(start_paused = true)]
    async fn what_is_given_out_late_is_kept() {
        let clerk = Clerk::default();
        let lease = Arc::new(Lease::of(clerk.clone()));
        let millisecond = Duration::from_millis(1);
        for _ in 0..5 {
            assert!(tokio::time::timeout(millisecond, lease.get()).await.is_err());
        }
        tokio::time::sleep(millisecond * 10).await;
        assert_eq!(
            text(&tokio::time::timeout(millisecond, lease.get()).await.unwrap().unwrap()),
            "t0"
        );
        assert_eq!(clerk.asked(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_good_yet_is_used_when_the_giver_fails() {
        let clerk = Clerk {
            good_for: Some(HOUR),
            ..Clerk::default()
        };
        let lease = Arc::new(Lease::of(clerk.clone()));
        lease.get().await.unwrap();
        clerk.fails.store(true, Ordering::SeqCst);
        tokio::time::advance(HOUR.mul_f64(0.95)).await;
        assert_eq!(text(&lease.get().await.unwrap()), "t0");
        assert_eq!(text(&lease.get().await.unwrap()), "t0");
        assert_eq!(clerk.asked(), 2, "a failure is kept for a moment");
        tokio::time::advance(HOUR.mul_f64(0.06)).await;
        assert_eq!(&*lease.get().await.unwrap_err(), "out of office");
        clerk.fails.store(false, Ordering::SeqCst);
        tokio::time::advance(FAILED_FOR).await;
        assert_eq!(text(&lease.get().await.unwrap()), "t3");
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_one_is_replaced_once_for_all() {
        let clerk = Clerk::default();
        let lease = Arc::new(Lease::of(clerk.clone()));
        let old = lease.get().await.unwrap();
        let all = futures_util::future::join_all((0..50).map(|_| lease.renew(&old))).await;
        assert!(all.iter().all(|one| text(one.as_ref().unwrap()) == "t1"));
        assert_eq!(clerk.asked(), 2);
        // The new one is refused as well: it is not the age.
        let new = lease.get().await.unwrap();
        assert!(lease.renew(&new).await.is_none());
        assert_eq!(clerk.asked(), 2);
        tokio::time::advance(RENEW_EVERY).await;
        assert_eq!(text(&lease.renew(&new).await.unwrap()), "t2");
    }
}
