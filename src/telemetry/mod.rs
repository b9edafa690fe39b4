//! What Larder says about itself while it runs: log lines, counters, where a request's time went, and traces.
//!
//! A leaf: it imports nothing of ours, so that every floor may use it. Floors write through the `tracing`
//! and `metrics` macros; here the two are set up and every metric is described once. `process` is what the process costs.

pub mod clock;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
pub mod log;
pub mod metrics;
pub mod process;
pub mod stopwatch;
pub mod trace;

/// `future`, for a task of its own, with what goes along with the task that begins it: its stopwatch and its span.
pub fn carry<F: Future>(future: F) -> impl Future<Output = F::Output> {
    // In a box: each layer would hold it twice.
    stopwatch::carry(trace::carry(Box::pin(future)))
}
