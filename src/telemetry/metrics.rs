//! The process's counters, and their Prometheus text.
//!
//! One recorder for the whole process: the `metrics` macros know no other kind. Names of metrics that are
//! counted on other floors are listed here all the same, so that `/metrics` explains each of them.

use std::sync::OnceLock;

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

/// Seconds. A hit takes well under a millisecond, a cold answer up to the 20 s that clients wait (R-C18).
const SECONDS: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 60.0,
];

/// Counters could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    #[error("the metrics exporter could not be built: {0}")]
    Build(String),
    #[error("another metrics recorder is installed in this process already")]
    Occupied,
}

/// The way to the text form of all counters. Cheap to clone.
#[derive(Clone)]
pub struct Handle(PrometheusHandle);

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("metrics::Handle")
    }
}

impl Handle {
    /// Every metric in the Prometheus text exposition format.
    pub fn render(&self) -> String {
        self.0.render()
    }

    /// Folds what histograms have gathered; call every few seconds, or memory grows with each observation
    /// for as long as nobody scrapes.
    pub fn upkeep(&self) {
        self.0.run_upkeep();
    }
}

/// Installs the process's recorder, or hands out the one that is installed already.
pub fn install() -> Result<Handle, InstallError> {
    static INSTALLED: OnceLock<Result<Handle, String>> = OnceLock::new();
    INSTALLED
        .get_or_init(|| build().map_err(|e| e.to_string()))
        .clone()
        .map_err(InstallError::Build)
}

fn build() -> Result<Handle, InstallError> {
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), SECONDS)
        .map_err(|e| InstallError::Build(e.to_string()))?
        .build_recorder();
    let handle = Handle(recorder.handle());
    metrics::set_global_recorder(recorder).map_err(|_| InstallError::Occupied)?;
    describe();
    Ok(handle)
}

fn describe() {
    describe_counter!(
        "larder_requests_total",
        "Requests answered, by route, method, status and outcome."
    );
    describe_counter!(
        "larder_response_bytes_total",
        Unit::Bytes,
        "Body bytes sent to clients, by upstream."
    );
    describe_histogram!(
        "larder_request_seconds",
        Unit::Seconds,
        "Time until the answer's headers, by route."
    );
    describe_counter!(
        "larder_requests_refused_total",
        "Requests refused before any route saw them, by status."
    );
    describe_gauge!("larder_connections", "Open client connections.");
    describe_counter!("larder_connections_total", "Client connections accepted.");
    describe_counter!(
        "larder_connections_refused_total",
        "Client connections turned away, by reason."
    );
    describe_counter!(
        "larder_connections_ended_total",
        "Client connections that Larder ended, by reason."
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_caller_gets_the_same_recorder() {
        let first = install().unwrap();
        let second = install().unwrap();
        metrics::counter!("larder_telemetry_test_total").increment(2);
        assert!(first.render().contains("larder_telemetry_test_total 2"));
        assert!(second.render().contains("larder_telemetry_test_total 2"));
    }

    #[test]
    fn durations_are_histograms_with_buckets() {
        let handle = install().unwrap();
        metrics::histogram!("larder_telemetry_test_seconds").record(0.003);
        handle.upkeep();
        let text = handle.render();
        assert!(
            text.contains("larder_telemetry_test_seconds_bucket{le=\"0.005\"} 1"),
            "{text}"
        );
    }
}
