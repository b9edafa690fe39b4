//! A blob's hash taken beside its writing: while one batch goes to the disk, the one before it is hashed on another
//! core. The hash lags by one batch at most, and whoever wants its verdict waits for that one.
//!
//! A few threads hash for all writers. A writer never waits for a batch that nobody has begun: it takes it back and
//! hashes it itself, as it would have done without them. So a busy machine costs no time, and many writers cannot
//! wait for each other.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;

use super::writer::Hashing;
use crate::oci::Digest;

/// The first bytes of a blob are hashed in step: most blobs have no more, and there is nothing to gain.
const IN_STEP_BYTES: u64 = 1 << 20;
/// A smaller batch is not worth waking another thread for.
const MIN_BATCH_BYTES: u64 = 128 << 10;
/// More threads than this are never needed to keep a disk busy.
const MAX_THREADS: usize = 8;

/// The threads that hash. They are started when they are first needed and end with the store.
#[derive(Default)]
pub(super) struct Hashers {
    queue: OnceLock<Option<Sender<Arc<Job>>>>,
}

/// A batch to hash; `None` once somebody has begun.
type Job = Mutex<Option<Load>>;

struct Load {
    hashing: Hashing,
    pieces: Vec<Bytes>,
    back: Sender<Hashing>,
}

impl Load {
    fn hash(mut self) -> (Hashing, Sender<Hashing>) {
        for piece in &self.pieces {
            self.hashing.update(piece);
        }
        (self.hashing, self.back)
    }
}

fn take(job: &Job) -> Option<Load> {
    job.lock().unwrap_or_else(PoisonError::into_inner).take()
}

impl Hashers {
    /// `None` where they would only take turns with whoever writes.
    fn queue(&self) -> Option<&Sender<Arc<Job>>> {
        let start = || {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            (cores > 1).then(|| start(cores.min(MAX_THREADS))).flatten()
        };
        self.queue.get_or_init(start).as_ref()
    }
}

fn start(threads: usize) -> Option<Sender<Arc<Job>>> {
    let (queue, jobs) = channel::<Arc<Job>>();
    let jobs = Arc::new(Mutex::new(jobs));
    for n in 0..threads {
        let jobs = jobs.clone();
        let started = std::thread::Builder::new()
            .name(format!("hash-{n}"))
            .spawn(move || work(&jobs));
        if let Err(error) = started {
            tracing::warn!(%error, "no thread to hash on: bytes are hashed in step with their writing");
            return None;
        }
    }
    Some(queue)
}

fn work(jobs: &Mutex<Receiver<Arc<Job>>>) {
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        if let Some(load) = take(&job) {
            let (hashing, back) = load.hash();
            // A writer that is gone does not want it any more.
            let _ = back.send(hashing);
        }
    }
}

/// The hash of what a writer has put down.
pub(super) struct Trail {
    digest: Digest,
    /// Bytes put down, hashed or not.
    len: u64,
    /// The hash of nothing while the true one is away.
    hashing: Hashing,
    away: Option<Away>,
}

/// Where a hash is while a batch is hashed, and how it comes back. The lock is there so that many may look at a
/// writer; nobody takes it.
struct Away(Arc<Job>, Mutex<Receiver<Hashing>>);

impl Away {
    /// `None` if it is lost.
    fn back(self) -> Option<Hashing> {
        match take(&self.0) {
            Some(load) => Some(load.hash().0),
            None => self.1.into_inner().unwrap_or_else(PoisonError::into_inner).recv().ok(),
        }
    }
}

impl Trail {
    pub(super) fn of(digest: Digest, hashing: Hashing) -> Trail {
        Trail {
            digest,
            len: hashing.len(),
            hashing,
            away: None,
        }
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Takes note of a batch that has been put down: hashes it, or has it hashed.
    pub(super) fn extend(&mut self, pieces: &[Bytes], hashers: &Hashers) {
        let more: u64 = pieces.iter().map(|piece| piece.len() as u64).sum();
        let in_step = self.len < IN_STEP_BYTES || more < MIN_BATCH_BYTES;
        self.len += more;
        let queue = if in_step { None } else { hashers.queue() };
        let Some(queue) = queue else {
            let hashing = self.settle();
            pieces.iter().for_each(|piece| hashing.update(piece));
            return;
        };
        self.settle();
        let (back, returning) = channel();
        let load = Load {
            hashing: std::mem::replace(&mut self.hashing, Hashing::new(self.digest)),
            pieces: pieces.to_vec(),
            back,
        };
        let job = Arc::new(Mutex::new(Some(load)));
        // Whether or not anybody is there to take it: it can be taken back.
        let _ = queue.send(job.clone());
        self.away = Some(Away(job, Mutex::new(returning)));
    }

    /// The hash of everything, waiting for what is left of it. Blocking, for one batch.
    pub(super) fn settle(&mut self) -> &mut Hashing {
        if let Some(hashing) = self.away.take().and_then(Away::back) {
            self.hashing = hashing;
        }
        // If it was lost, what stands in for it is what no blob of any length has (L2).
        &mut self.hashing
    }

    pub(super) fn into_hashing(mut self) -> Hashing {
        self.settle();
        self.hashing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batches() -> Vec<Vec<Bytes>> {
        let mut dice = fastrand::Rng::with_seed(7);
        let sizes = [5, 900 << 10, 200 << 10, 0, 1 << 20, 3, 128 << 10, 700 << 10, 4 << 20];
        let piece = |size: usize| Bytes::from(std::iter::repeat_with(|| dice.u8(..)).take(size).collect::<Vec<_>>());
        sizes
            .map(piece)
            .map(|piece| vec![piece.slice(..piece.len() / 3), piece.slice(piece.len() / 3..)])
            .into()
    }

    fn expected(batches: &[Vec<Bytes>]) -> (Digest, u64) {
        let all = batches.concat().concat();
        (Digest::sha256(&all), all.len() as u64)
    }

    #[test]
    fn beside_or_in_step_it_is_the_same_hash() {
        let batches = batches();
        let (digest, len) = expected(&batches);
        let (queue, jobs) = channel::<Arc<Job>>();
        // One that hashes, one that has no threads, one that has none that ever come to it.
        let deaf = Hashers {
            queue: OnceLock::from(Some(queue)),
        };
        let none = Hashers {
            queue: OnceLock::from(None),
        };
        let some = Hashers {
            queue: OnceLock::from(start(2)),
        };
        for hashers in [&some, &none, &deaf] {
            let mut trail = Trail::of(digest, Hashing::new(digest));
            for batch in &batches {
                trail.extend(batch, hashers);
            }
            assert_eq!(trail.len(), len);
            assert!(trail.settle().verify().is_ok());
            assert_eq!(trail.into_hashing().len(), len);
        }
        let deaf: Vec<_> = jobs.try_iter().collect();
        assert!(deaf.len() > 3 && deaf.iter().all(|job| take(job).is_none()));
    }

    #[test]
    fn a_lost_hash_is_never_right() {
        let batches = batches();
        let (digest, _) = expected(&batches);
        let (queue, jobs) = channel::<Arc<Job>>();
        let hashers = Hashers {
            queue: OnceLock::from(Some(queue)),
        };
        let mut trail = Trail::of(digest, Hashing::new(digest));
        for batch in &batches {
            trail.extend(batch, &hashers);
        }
        // Begun, and never brought back.
        jobs.try_iter().for_each(|job| drop(take(&job)));
        assert!(trail.settle().verify().is_err());
    }
}
