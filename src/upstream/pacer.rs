//! How fast an upstream's bytes may come: a token bucket for all its transfers (`max_bandwidth`).
//!
//! A transfer that has got a piece books its time and waits for it before it reads the next, so that the connection's own
//! window holds the sender back. It books a slice at a time, behind those that others have booked meanwhile: transfers
//! take turns by bytes, however large their pieces are. Who was idle has at most [`BURST`] at once.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

const BURST: Duration = Duration::from_millis(100);
/// Bytes that are booked at a time: no more than what every transport brings in one piece, so that turns are equal.
pub const SLICE: usize = 16 << 10;

#[derive(Debug)]
pub struct Pacer {
    bytes_per_second: u64,
    /// When everything that was booked has passed.
    free: Mutex<Instant>,
    waited: metrics::Counter,
}

impl Pacer {
    pub fn new(upstream: &Arc<str>, bytes_per_second: u64) -> Pacer {
        Pacer {
            bytes_per_second: bytes_per_second.max(1),
            free: Mutex::new(Instant::now()),
            waited: metrics::counter!("larder_upstream_held_back_bytes_total", "upstream" => upstream.to_string()),
        }
    }

    /// Returns when so many bytes may have come.
    pub async fn pass(&self, bytes: usize) {
        let mut left = bytes as u64;
        while left > 0 {
            let share = left.min(SLICE as u64);
            left -= share;
            let turn = self.book(share);
            if turn > Instant::now() {
                self.waited.increment(share);
                tokio::time::sleep_until(turn).await;
            }
        }
    }

    /// When these may have come.
    fn book(&self, bytes: u64) -> Instant {
        let cost = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        // Time that nobody used is gone.
        *free = (*free).max(Instant::now()) + cost;
        free.checked_sub(BURST).unwrap_or(*free)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    const RATE: u64 = 10_000_000;

    fn pacer() -> Arc<Pacer> {
        Arc::new(Pacer::new(&"pacer.test".into(), RATE))
    }

    #[tokio::test(start_paused = true)]
    async fn no_faster_and_no_slower() {
        let (pacer, started) = (pacer(), Instant::now());
        for _ in 0..100 {
            pacer.pass(1_000_000).await;
        }
        let took = started.elapsed();
        let ideal = Duration::from_secs(10) - BURST;
        assert!(took >= ideal && took < ideal + Duration::from_millis(10), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn idle_time_is_not_saved_up() {
        let pacer = pacer();
        tokio::time::advance(Duration::from_secs(3600)).await;
        let started = Instant::now();
        pacer.pass(5_000_000).await;
        assert!(
            started.elapsed() >= Duration::from_millis(400),
            "{:?}",
            started.elapsed()
        );
        tokio::time::advance(Duration::from_secs(1)).await;
        // A little at a time costs nothing.
        let started = Instant::now();
        pacer.pass(1000).await;
        assert_eq!(started.elapsed(), Duration::ZERO);
    }

    /// By bytes, not by pieces: HTTP/2 brings them in sixteen KiB, HTTP/1.1 in what its buffer holds.
    #[tokio::test(start_paused = true)]
    async fn transfers_take_turns() {
        let pacer = pacer();
        let sums: Vec<Arc<AtomicU64>> = (0..4).map(|_| Arc::default()).collect();
        for (piece, sum) in [16 << 10, 64 << 10, 1 << 20, 8 << 20].into_iter().zip(&sums) {
            let (pacer, sum) = (pacer.clone(), sum.clone());
            tokio::spawn(async move {
                loop {
                    pacer.pass(piece).await;
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
