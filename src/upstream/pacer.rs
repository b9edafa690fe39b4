//! How fast an upstream's bytes may come: a token bucket for all its transfers (`max_bandwidth`).
//!
//! A transfer books the time of each slice that came before it hands the slice out, and reads no more until the last of
//! a piece has been handed out, so that the connection's own window holds the sender back. It books a slice at a time,
//! behind those that others have booked meanwhile: transfers take turns by bytes, however large their pieces are. Idle
//! time is not saved up: of an upstream that was idle one slice passes at once. Whoever is late for its turn on a busy
//! machine may make up for [`LATE`].
//!
//! A slice stays booked until its time has come, also if nobody waits for that any more: `select!` drops futures.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

const LATE: Duration = Duration::from_millis(100);
/// Bytes that are booked at a time: no more than what every transport brings in one piece, so that turns are equal.
const SLICE: usize = 16 << 10;
/// A pacer's rate where `max_bandwidth` is not set.
const UNLIMITED: u64 = 0;

/// One upstream's token bucket. It outlives reloads, so that downloads that run through one count against the new
/// limit.
#[derive(Debug)]
pub struct Pacer {
    upstream: Arc<str>,
    bytes_per_second: AtomicU64,
    /// When everything that was booked has passed, and [`LATE`] behind that.
    free: Mutex<Instant>,
    waited: OnceLock<metrics::Counter>,
}

impl Pacer {
    pub fn new(upstream: &Arc<str>, bytes_per_second: Option<u64>) -> Pacer {
        Pacer {
            upstream: upstream.clone(),
            bytes_per_second: AtomicU64::new(as_rate(bytes_per_second)),
            free: Mutex::new(Instant::now()),
            waited: OnceLock::new(),
        }
    }

    /// Sets another limit, for downloads under way as well: each after the slice that it waits for.
    pub fn set_rate(&self, bytes_per_second: Option<u64>) {
        let rate = as_rate(bytes_per_second);
        if self.bytes_per_second.swap(rate, Ordering::Relaxed) != rate {
            // Time that was booked at the other rate does not hold up what comes at this one.
            *self.free.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        }
    }

    /// Books the first of so many bytes. Returns how many these are, and when they may pass; `None`: all of them, now.
    fn book(&self, bytes: usize) -> Option<Booking> {
        let rate = self.bytes_per_second.load(Ordering::Relaxed);
        if rate == UNLIMITED {
            return None;
        }
        let share = bytes.min(SLICE);
        let cost = Duration::from_secs_f64(share as f64 / rate as f64);
        let (now, turn) = {
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            if *free <= now {
                // Time that nobody used is gone.
                *free = now + LATE;
            }
            let turn = free.checked_sub(LATE).unwrap_or(*free);
            *free += cost;
            (now, turn)
        };
        if turn > now {
            let name =
                || metrics::counter!("larder_upstream_held_back_bytes_total", "upstream" => self.upstream.to_string());
            self.waited.get_or_init(name).increment(share as u64);
        }
        Some(Booking { share, turn })
    }
}

fn as_rate(bytes_per_second: Option<u64>) -> u64 {
    bytes_per_second.map_or(UNLIMITED, |rate| rate.max(1))
}

/// Bytes that may pass when it is their turn.
#[derive(Clone, Copy, Debug)]
struct Booking {
    share: usize,
    turn: Instant,
}

/// One transfer's place in the queue.
#[derive(Debug)]
pub struct Pace {
    pacer: Arc<Pacer>,
    booked: Option<Booking>,
}

impl Pace {
    pub fn new(pacer: Arc<Pacer>) -> Pace {
        Pace { pacer, booked: None }
    }

    /// Returns how many of `bytes` may pass, when they may: at least one, unless there is none.
    ///
    /// May be dropped and called again, with no fewer bytes: what was booked stays booked.
    pub async fn pass(&mut self, bytes: usize) -> usize {
        let Some(booking) = self.booked.or_else(|| self.pacer.book(bytes)) else {
            return bytes;
        };
        self.booked = Some(booking);
        if booking.turn > Instant::now() {
            tokio::time::sleep_until(booking.turn).await;
        }
        self.booked = None;
        booking.share.min(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: u64 = 10_000_000;
    /// Time of the first slice, for which nobody waits.
    const SLICE_TIME: Duration = Duration::from_millis(2);

    fn pacer() -> Arc<Pacer> {
        Arc::new(Pacer::new(&"pacer.test".into(), Some(RATE)))
    }

    async fn pass(pace: &mut Pace, bytes: usize) {
        let mut left = bytes;
        while left > 0 {
            left -= pace.pass(left).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn no_faster_and_no_slower() {
        let (mut pace, started) = (Pace::new(pacer()), Instant::now());
        for _ in 0..100 {
            pass(&mut pace, 1_000_000).await;
        }
        let took = started.elapsed();
        let ideal = Duration::from_secs(10);
        assert!(
            took + SLICE_TIME >= ideal && took < ideal + Duration::from_millis(10),
            "{took:?}"
        );
    }

    /// As `select!` does it to a transfer whose other branches are ready all the time.
    #[tokio::test(start_paused = true)]
    async fn a_wait_that_is_dropped_is_taken_up_again() {
        let (mut pace, started) = (Pace::new(pacer()), Instant::now());
        let (mut left, mut dropped) = (20_000_000, 0);
        while left > 0 {
            match tokio::time::timeout(Duration::from_micros(300), pace.pass(left)).await {
                Ok(passed) => left -= passed,
                Err(_) => dropped += 1,
            }
        }
        let took = started.elapsed();
        let ideal = Duration::from_secs(2);
        assert!(
            took + SLICE_TIME >= ideal && took < ideal + Duration::from_millis(100),
            "{took:?}"
        );
        assert!(dropped > 100, "{dropped}");
    }

    #[tokio::test(start_paused = true)]
    async fn idle_time_is_not_saved_up() {
        let mut pace = Pace::new(pacer());
        tokio::time::advance(Duration::from_secs(3600)).await;
        let started = Instant::now();
        pass(&mut pace, 5_000_000).await;
        assert!(
            started.elapsed() >= Duration::from_millis(495),
            "{:?}",
            started.elapsed()
        );
        tokio::time::advance(Duration::from_secs(1)).await;
        // A little at a time costs nothing.
        let started = Instant::now();
        pass(&mut pace, 1000).await;
        assert_eq!(started.elapsed(), Duration::ZERO);
    }

    /// By a reload: faster, slower, without a limit, with one.
    #[tokio::test(start_paused = true)]
    async fn another_rate_holds_for_transfers_under_way() {
        let pacer = pacer();
        let mut pace = Pace::new(pacer.clone());
        pass(&mut pace, 2_000_000).await;
        for (rate, seconds) in [
            (Some(RATE / 10), 20.0),
            (Some(RATE), 2.0),
            (None, 0.0),
            (Some(RATE), 2.0),
        ] {
            pacer.set_rate(rate);
            let started = Instant::now();
            pass(&mut pace, 20_000_000).await;
            let took = started.elapsed().as_secs_f64();
            assert!((took - seconds).abs() < 0.05, "{rate:?}: {took}");
        }
    }

    /// By bytes, not by pieces: HTTP/2 brings them in sixteen KiB, HTTP/1.1 in what its buffer holds.
    #[tokio::test(start_paused = true)]
    async fn transfers_take_turns() {
        let pacer = pacer();
        let sums: Vec<Arc<AtomicU64>> = (0..4).map(|_| Arc::default()).collect();
        for (piece, sum) in [16 << 10, 64 << 10, 1 << 20, 8 << 20].into_iter().zip(&sums) {
            let (mut pace, sum) = (Pace::new(pacer.clone()), sum.clone());
            tokio::spawn(async move {
                loop {
                    pass(&mut pace, piece).await;
                    sum.fetch_add(piece as u64, Ordering::Relaxed);
                }
            });
        }
        tokio::time::sleep(Duration::from_secs(60)).await;
        let sums: Vec<u64> = sums.iter().map(|sum| sum.load(Ordering::Relaxed)).collect();
        let fair = 60 * RATE / 4;
        for sum in &sums {
            assert!(sum.abs_diff(fair) < fair / 4, "{sums:?}, fair is {fair}");
        }
        let all: u64 = sums.iter().sum();
        assert!(all <= 60 * RATE + RATE / 10, "{all}");
    }
}
