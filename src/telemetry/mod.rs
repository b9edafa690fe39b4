//! What Larder says about itself while it runs: log lines, counters, and where a request's time went.
//!
//! A leaf: it imports nothing of ours, so that every floor may use it. Floors write through the `tracing`
//! and `metrics` macros; here the two are set up and every metric is described once.

pub mod clock;
pub mod log;
pub mod metrics;
pub mod stopwatch;
