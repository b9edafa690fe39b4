//! Bytes that pass through and are not kept: what is left of a pull when the disk fails (L5).
//!
//! A transfer for each response, from the upstream to the client, hashed on the way. The last bytes wait for the
//! verdict here as well (L2), and a cut is mended (L4); only L1 is given up, for want of a place to share.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::error::PullError;
use super::flight::{HOLD_BACK_BYTES, Order, Timing};
use crate::oci::Hasher;
use crate::store;
use crate::upstream::BlobStream;

/// A blob that can be passed through. Cheap to clone; every body that is read makes a transfer of its own.
#[derive(Clone)]
pub struct Passing {
    order: Arc<Order>,
    timing: Arc<Timing>,
    /// Bytes of the whole blob, if the upstream has told.
    pub total: Option<u64>,
    /// The transfer whose head was waited for, for the first body.
    opened: Arc<Mutex<Option<Stream>>>,
}

impl Passing {
    /// Asks nobody yet.
    pub fn new(order: Order, timing: Arc<Timing>) -> Passing {
        Passing {
            order: Arc::new(order),
            timing,
            total: None,
            opened: Arc::default(),
        }
    }

    /// Waits for the upstream's answer, so that a status line may go out (R-D3).
    pub async fn open(mut self) -> Result<Passing, PullError> {
        let mut stream = self.begin();
        stream.ask().await?;
        self.total = stream.total;
        self.opened = Arc::new(Mutex::new(Some(stream)));
        Ok(self)
    }

    /// The bytes from the blob's start.
    pub fn stream(&self) -> Stream {
        let opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner).take();
        opened.unwrap_or_else(|| self.begin())
    }

    fn begin(&self) -> Stream {
        Stream {
            hasher: Hasher::new(self.order.digest.algorithm()),
            order: self.order.clone(),
            timing: self.timing.clone(),
            answer: None,
            total: self.total,
            seen: 0,
            skip: 0,
            failures: 0,
            waiting: VecDeque::new(),
            is_right: false,
        }
    }
}

/// One transfer on its way through.
pub struct Stream {
    order: Arc<Order>,
    timing: Arc<Timing>,
    answer: Option<BlobStream>,
    total: Option<u64>,
    hasher: Hasher,
    /// Bytes that have come and are hashed.
    seen: u64,
    /// Bytes that come once more, because the upstream ignored a Range (R-U25).
    skip: u64,
    /// Attempts since the last progress.
    failures: u32,
    /// What the reader wants of the bytes that have come, from where it stands.
    waiting: VecDeque<Bytes>,
    is_right: bool,
}

impl Stream {
    /// The next bytes from `at`, in a response that ends at `end`; `None` at its end. `at` moves on by what was given.
    pub async fn next(&mut self, at: u64, end: Option<u64>) -> Result<Option<Bytes>, PullError> {
        loop {
            let released = match end.or(self.total) {
                _ if self.is_right => u64::MAX,
                Some(end) => end.saturating_sub(HOLD_BACK_BYTES),
                None => self.seen.saturating_sub(HOLD_BACK_BYTES),
            };
            if released > at
                && let Some(mut piece) = self.waiting.pop_front()
            {
                let ready = usize::try_from(released - at).unwrap_or(usize::MAX);
                if ready < piece.len() {
                    self.waiting.push_front(piece.split_off(ready));
                }
                return Ok(Some(piece));
            }
            if self.is_right {
                return Ok(None);
            }
            match self.piece().await? {
                Some(piece) => self.take(piece, at, end),
                None => {
                    store::settle(&self.order.digest, self.hasher.clone(), self.seen)?;
                    self.is_right = true;
                }
            }
        }
    }

    fn take(&mut self, mut piece: Bytes, at: u64, end: Option<u64>) {
        self.hasher.update(&piece);
        let from = self.seen;
        self.seen += piece.len() as u64;
        // Only what lies between `at` and `end` is wanted; the rest came to be hashed.
        if let Some(end) = end {
            let within = usize::try_from(end.saturating_sub(from)).unwrap_or(usize::MAX);
            piece.truncate(within);
        }
        let before = usize::try_from(at.saturating_sub(from)).unwrap_or(usize::MAX);
        let piece = piece.split_off(before.min(piece.len()));
        if !piece.is_empty() {
            self.waiting.push_back(piece);
        }
    }

    /// The next bytes of the blob; goes on where a cut was.
    async fn piece(&mut self) -> Result<Option<Bytes>, PullError> {
        loop {
            let error = match &mut self.answer {
                None => self.ask().await.err(),
                Some(answer) => match answer.next().await {
                    Ok(None) => return Ok(None),
                    Ok(Some(mut piece)) => {
                        let again = usize::try_from(self.skip).unwrap_or(usize::MAX).min(piece.len());
                        self.skip -= again as u64;
                        let piece = piece.split_off(again);
                        if !piece.is_empty() {
                            self.failures = 0;
                            return Ok(Some(piece));
                        }
                        None
                    }
                    Err(error) => Some(error.into()),
                },
            };
            let Some(error) = error else { continue };
            self.answer = None;
            self.failures += 1;
            let may_pass = matches!(&error, PullError::Upstream(error) if error.is_transient());
            if !may_pass || self.failures >= self.timing.attempts {
                return Err(error);
            }
            tokio::time::sleep(self.timing.pause(self.failures)).await;
        }
    }

    async fn ask(&mut self) -> Result<(), PullError> {
        let order = &self.order;
        let answer = order
            .client
            .get_blob(&order.repository, &order.digest, self.seen)
            .await?;
        self.skip = self.seen.saturating_sub(answer.start);
        self.total = self.total.or(answer.total);
        self.answer = Some(answer);
        Ok(())
    }
}
