//! The process's counters, and their Prometheus text.
//!
//! One recorder for the whole process: the `metrics` macros know no other kind. Names of metrics that are
//! counted on other floors are listed here all the same, so that `/metrics` explains each of them.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use super::process::{self, Certificates};

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
pub struct Handle {
    recorded: PrometheusHandle,
    certificates: Certificates,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("metrics::Handle")
    }
}

impl Handle {
    /// Shows these too: of one proxy, where there are several in a process.
    pub fn with_certificates(self, certificates: Certificates) -> Handle {
        Handle { certificates, ..self }
    }

    /// Every metric in the Prometheus text exposition format. Reads what the system knows of the process.
    pub fn render(&self) -> String {
        let mut text = self.recorded.render();
        process::write(&mut text);
        self.certificates.write(&mut text);
        text
    }

    /// Counters with one label: how far each is at one moment, by that label's value, in the order of `names`. Read from what is
    /// rendered, so that nobody can be told another figure than a scrape; for calls that people make, not for requests.
    pub fn counted(&self, names: &[&str], label: &str) -> Vec<BTreeMap<String, u64>> {
        let text = self.recorded.render();
        names.iter().map(|name| counted_by(&text, name, label)).collect()
    }

    /// Folds what histograms have gathered; call every few seconds, or memory grows with each observation
    /// for as long as nobody scrapes.
    pub fn upkeep(&self) {
        self.recorded.run_upkeep();
    }
}

fn counted_by(text: &str, name: &str, label: &str) -> BTreeMap<String, u64> {
    text.lines()
        .filter_map(|line| {
            let rest = line.strip_prefix(name)?.strip_prefix('{')?.strip_prefix(label)?;
            let (value, count) = rest.strip_prefix("=\"")?.split_once("\"} ")?;
            Some((value.to_owned(), count.parse().ok()?))
        })
        .collect()
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
    let handle = Handle {
        recorded: recorder.handle(),
        certificates: Certificates::default(),
    };
    metrics::set_global_recorder(recorder).map_err(|_| InstallError::Occupied)?;
    describe();
    process::begin();
    Ok(handle)
}

/// Counters only grow; gauges are the moment's; histograms are of seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

/// What a metric is called, and what it tells.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

const fn metric(name: &'static str, kind: Kind, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric {
        name,
        kind,
        labels,
        help,
    }
}

/// Every metric there is, beside those of `process`. `deploy/metrics.md`, the dashboard and the alerts are held to both by a test.
pub const METRICS: &[Metric] = &[
    metric(
        "larder_build_info",
        Kind::Gauge,
        &["version", "commit"],
        "Always 1: what the program was built from; commit is unknown where the build did not know.",
    ),
    metric(
        "larder_requests_total",
        Kind::Counter,
        &["route", "method", "status", "outcome"],
        "Requests answered.",
    ),
    metric(
        "larder_request_seconds",
        Kind::Histogram,
        &["route"],
        "Time until the answer's headers.",
    ),
    metric(
        "larder_blob_first_byte_seconds",
        Kind::Histogram,
        &["outcome"],
        "Time until the first byte of a blob that was not held.",
    ),
    metric(
        "larder_response_bytes_total",
        Kind::Counter,
        &["upstream"],
        "Body bytes of content sent to clients, without those of errors, tokens and `/v2/`.",
    ),
    metric(
        "larder_cached_response_bytes_total",
        Kind::Counter,
        &["upstream"],
        "Body bytes of content sent to clients that came from the cache, or from a download that was under way for another request.",
    ),
    metric(
        "larder_requests_refused_total",
        Kind::Counter,
        &["status"],
        "Requests refused before any route saw them.",
    ),
    metric("larder_connections", Kind::Gauge, &[], "Open client connections."),
    metric(
        "larder_connections_total",
        Kind::Counter,
        &[],
        "Client connections accepted.",
    ),
    metric(
        "larder_connections_refused_total",
        Kind::Counter,
        &["reason"],
        "Client connections turned away.",
    ),
    metric(
        "larder_connections_ended_total",
        Kind::Counter,
        &["reason"],
        "Client connections that Larder ended.",
    ),
    metric(
        "larder_http2_buffered_bytes",
        Kind::Gauge,
        &[],
        "Memory that holds bytes of blobs for clients by HTTP/2 or TLS.",
    ),
    metric(
        "larder_transfers_in_flight",
        Kind::Gauge,
        &[],
        "Blobs coming from upstreams now.",
    ),
    metric(
        "larder_transfers_total",
        Kind::Counter,
        &["result"],
        "Blob transfers that ended; ok, or what failed.",
    ),
    metric(
        "larder_transfers_resumed_total",
        Kind::Counter,
        &["upstream"],
        "Transfers that broke off and went on by Range.",
    ),
    metric(
        "larder_transfers_parallel_total",
        Kind::Counter,
        &["upstream"],
        "Transfers that were fetched over several connections.",
    ),
    metric(
        "larder_transfer_parts_total",
        Kind::Counter,
        &["upstream", "result"],
        "Parts that were asked for ahead of their turn; ok, or what failed.",
    ),
    metric(
        "larder_transfer_wasted_bytes_total",
        Kind::Counter,
        &["upstream", "reason"],
        "Bytes of blobs that crossed the upstream link once more; range_ignored, range_refused or restart.",
    ),
    metric(
        "larder_transfers_passed_through_total",
        Kind::Counter,
        &[],
        "Transfers that the disk had no room for.",
    ),
    metric(
        "larder_upstream_requests_total",
        Kind::Counter,
        &["upstream", "kind", "status"],
        "Requests sent to upstreams, redirects included.",
    ),
    metric(
        "larder_upstream_answer_seconds",
        Kind::Histogram,
        &["upstream", "kind"],
        "Time until an upstream's headers, each redirect by itself.",
    ),
    metric(
        "larder_upstream_address_up",
        Kind::Gauge,
        &["upstream", "address"],
        "1 while an address (the registry or a mirror) is asked in its turn, 0 while it is down; none if it was never asked.",
    ),
    metric(
        "larder_upstream_address_first_byte_seconds",
        Kind::Histogram,
        &["upstream", "address"],
        "Time until an address began to answer: the longest of a request's exchanges.",
    ),
    metric(
        "larder_upstream_address_failures_total",
        Kind::Counter,
        &["upstream", "address", "reason"],
        "Requests and probes that failed at an address; late: it was left for the next one.",
    ),
    metric(
        "larder_upstream_retries_total",
        Kind::Counter,
        &["upstream", "result"],
        "Requests repeated after every address had failed; ok or failed.",
    ),
    metric(
        "larder_upstream_late_answers_total",
        Kind::Counter,
        &["upstream", "result"],
        "Requests that an upstream had not begun to answer after 20 s: answered, failed, timeout (answer_timeout), gave_way (too many), dropped.",
    ),
    metric(
        "larder_upstream_bytes_total",
        Kind::Counter,
        &["upstream"],
        "Body bytes received from upstreams.",
    ),
    metric(
        "larder_upstream_token_requests_total",
        Kind::Counter,
        &["upstream"],
        "Tokens asked for.",
    ),
    metric(
        "larder_upstream_redirects_refused_total",
        Kind::Counter,
        &["upstream"],
        "Redirects, realms and links that were not followed.",
    ),
    metric(
        "larder_upstream_ratelimit_limit",
        Kind::Gauge,
        &["upstream", "credential"],
        "Pulls that the upstream allows in its window, as it said last.",
    ),
    metric(
        "larder_upstream_ratelimit_remaining",
        Kind::Gauge,
        &["upstream", "credential"],
        "Pulls that are left, as it said last.",
    ),
    metric(
        "larder_upstream_ratelimit_runs_out_seconds",
        Kind::Gauge,
        &["upstream", "credential"],
        "Time until none are left at the pace of the last hour; +Inf at rest.",
    ),
    metric(
        "larder_upstream_ratelimit_low",
        Kind::Gauge,
        &["upstream", "credential"],
        "1 while fewer are left than budget_floor, else 0.",
    ),
    metric(
        "larder_upstream_distrusted_total",
        Kind::Counter,
        &["upstream", "address", "reason"],
        "Times that a mirror sent something wrong and is not asked for it again for a while.",
    ),
    metric(
        "larder_upstream_questions_spared_total",
        Kind::Counter,
        &["upstream"],
        "Checks of tags and lists that were left out to spare the pull limit.",
    ),
    metric(
        "larder_upstream_held_back_bytes_total",
        Kind::Counter,
        &["upstream"],
        "Bytes of transfers that waited for max_bandwidth.",
    ),
    metric(
        "larder_cache_used_bytes",
        Kind::Gauge,
        &[],
        "Bytes on disk: blobs, transfers, lists, index.",
    ),
    metric("larder_cache_max_bytes", Kind::Gauge, &[], "The limit of that."),
    metric(
        "larder_cache_staged_bytes",
        Kind::Gauge,
        &[],
        "Of the used bytes, transfers: staged or announced.",
    ),
    metric(
        "larder_cache_index_bytes",
        Kind::Gauge,
        &[],
        "Of the used bytes, the index's own file and its copy.",
    ),
    metric(
        "larder_cache_list_bytes",
        Kind::Gauge,
        &[],
        "Of the used bytes, files of long tag lists and lists of referrers.",
    ),
    metric(
        "larder_evicted_lists_total",
        Kind::Counter,
        &[],
        "Tag lists and lists of referrers evicted, because all together took more than an eighth of cache.max_size.",
    ),
    metric("larder_cache_blobs", Kind::Gauge, &[], "Blobs and manifests held."),
    metric(
        "larder_cache_degraded",
        Kind::Gauge,
        &[],
        "1 while blobs pass through because the disk fails or has no room, else 0.",
    ),
    metric(
        "larder_evictions_total",
        Kind::Counter,
        &["reason"],
        "Blobs and abandoned transfers that made room.",
    ),
    metric(
        "larder_evicted_bytes_total",
        Kind::Counter,
        &[],
        "Bytes that they gave back.",
    ),
    metric(
        "larder_index_damaged_total",
        Kind::Counter,
        &["found"],
        "Times that the index was found damaged or gone: at the start, or running.",
    ),
    metric(
        "larder_index_copies_total",
        Kind::Counter,
        &["result"],
        "Copies of the index that were written; ok or failed.",
    ),
    metric(
        "larder_index_copy_timestamp_seconds",
        Kind::Gauge,
        &[],
        "When the copy of the index was made, Unix time.",
    ),
    metric(
        "larder_damaged_total",
        Kind::Counter,
        &["found"],
        "Held blobs found damaged or gone.",
    ),
    metric(
        "larder_verified_blobs_total",
        Kind::Counter,
        &[],
        "Held blobs that were hashed again.",
    ),
    metric(
        "larder_verified_bytes_total",
        Kind::Counter,
        &[],
        "Bytes that were hashed again.",
    ),
    metric(
        "larder_verify_bad_total",
        Kind::Counter,
        &["found"],
        "Damaged blobs that hashing found: wrong or missing.",
    ),
    metric(
        "larder_config_reloads_total",
        Kind::Counter,
        &["result"],
        "Times that the configuration was read again; ok or refused.",
    ),
    metric(
        "larder_config_last_reload_ok",
        Kind::Gauge,
        &[],
        "1 if the configuration that was read last holds, 0 if it was refused.",
    ),
    metric(
        "larder_config_loaded_timestamp_seconds",
        Kind::Gauge,
        &[],
        "When the configuration that holds was read, Unix time.",
    ),
    metric(
        "larder_audit_lost_total",
        Kind::Counter,
        &[],
        "Events that the audit log had no room for in its queue.",
    ),
    metric(
        "larder_audit_errors_total",
        Kind::Counter,
        &[],
        "Writes of the audit log that failed.",
    ),
    metric(
        "larder_prefetch_runs_total",
        Kind::Counter,
        &["prefetch", "result"],
        "Prefetches that ended, by their name in the configuration, or command.",
    ),
    metric(
        "larder_prefetch_images_total",
        Kind::Counter,
        &["prefetch", "result"],
        "Images of these, by whether they are held.",
    ),
    metric(
        "larder_prefetch_bytes_total",
        Kind::Counter,
        &["prefetch"],
        "Bytes of blobs that they brought.",
    ),
    metric(
        "larder_prefetch_last_success_timestamp_seconds",
        Kind::Gauge,
        &["prefetch"],
        "When one last ended with everything held, Unix seconds.",
    ),
    metric(
        "larder_webhook_delivered_total",
        Kind::Counter,
        &["webhook"],
        "Events that a webhook's endpoint took.",
    ),
    metric(
        "larder_webhook_failed_total",
        Kind::Counter,
        &["webhook", "status"],
        "Deliveries that failed; none: there was no answer.",
    ),
    metric(
        "larder_webhook_dropped_total",
        Kind::Counter,
        &["webhook", "reason"],
        "Events given up: full, expired, refused, damaged, disk.",
    ),
    metric(
        "larder_webhook_lost_total",
        Kind::Counter,
        &[],
        "Events that came faster than webhooks' queues could be written.",
    ),
    metric(
        "larder_webhook_queued_events",
        Kind::Gauge,
        &["webhook"],
        "Events that wait on disk for a webhook.",
    ),
    metric(
        "larder_webhook_queued_bytes",
        Kind::Gauge,
        &["webhook"],
        "Bytes of these.",
    ),
    metric(
        "larder_webhook_oldest_seconds",
        Kind::Gauge,
        &["webhook"],
        "Age of the oldest of these; 0: nothing waits.",
    ),
    metric(
        "larder_wishes",
        Kind::Gauge,
        &[],
        "Images that were asked for while nobody could be asked, and are on the list.",
    ),
    metric(
        "larder_traces_sent_total",
        Kind::Counter,
        &[],
        "Spans that the collector took.",
    ),
    metric(
        "larder_traces_dropped_total",
        Kind::Counter,
        &["reason"],
        "Spans that it did not get: the queue was full, sending failed, or it refused them.",
    ),
    metric(
        "larder_acme_expires_timestamp_seconds",
        Kind::Gauge,
        &[],
        "When the certificate that Larder got for itself expires, Unix seconds; 0 while there is none.",
    ),
    metric(
        "larder_acme_next_order_timestamp_seconds",
        Kind::Gauge,
        &[],
        "When the next one is ordered, Unix seconds.",
    ),
    metric(
        "larder_acme_orders_total",
        Kind::Counter,
        &["result"],
        "Orders of certificates that ended: ok, or unreachable, broken, rate_limited, refused.",
    ),
    metric("larder_store_errors_total", Kind::Counter, &[], "Failures of the disk."),
];

fn describe() {
    for metric in METRICS {
        match metric.kind {
            Kind::Counter => describe_counter!(metric.name, metric.help),
            Kind::Gauge => describe_gauge!(metric.name, metric.help),
            Kind::Histogram => describe_histogram!(metric.name, Unit::Seconds, metric.help),
        }
    }
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
    fn counters_are_read_back() {
        let handle = install().unwrap();
        for (upstream, bytes) in [("ghcr.io", 5), ("[::1]:5000", 7), ("-", u64::MAX)] {
            metrics::counter!("larder_telemetry_read_bytes_total", "upstream" => upstream).increment(bytes);
        }
        metrics::counter!("larder_telemetry_read_bytes_total_of_another", "upstream" => "ghcr.io").increment(1);
        let names = ["larder_telemetry_read_bytes_total", "larder_telemetry_no_such_total"];
        let counted = handle.counted(&names, "upstream");
        let [found, none] = &counted[..] else {
            panic!("{counted:?}")
        };
        let found: Vec<(&str, u64)> = found.iter().map(|(name, bytes)| (name.as_str(), *bytes)).collect();
        assert_eq!(found, [("-", u64::MAX), ("[::1]:5000", 7), ("ghcr.io", 5)]);
        assert!(none.is_empty());
    }

    /// Names that the sources count under, and names that operators are given: all of the table, and nothing else.
    #[test]
    fn the_table_is_the_truth() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let known: std::collections::BTreeSet<&str> = METRICS.iter().map(|metric| metric.name).collect();
        assert_eq!(known.len(), METRICS.len(), "a name twice");
        let mut used = std::collections::BTreeSet::new();
        let mut folders = vec![root.join("src")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|end| end == "rs")
                    && path != root.join("src/telemetry/metrics.rs")
                {
                    let text = std::fs::read_to_string(&path).unwrap();
                    used.extend(counted_in(&text));
                }
            }
        }
        let used: std::collections::BTreeSet<&str> = used.iter().map(String::as_str).collect();
        assert_eq!(used, known);
        let reference = std::fs::read_to_string(root.join("deploy/metrics.md")).unwrap();
        let mut known = known;
        known.extend(process::METRICS.iter().map(|metric| metric.name));
        for metric in METRICS.iter().chain(process::METRICS) {
            let labels = match metric.labels {
                [] => "–".to_owned(),
                labels => labels.join(", "),
            };
            let row = format!(
                "| `{}` | {} | {labels} | {} |",
                metric.name,
                metric.kind.as_str(),
                metric.help
            );
            assert!(
                reference.contains(&row),
                "deploy/metrics.md lacks or changes the row\n{row}"
            );
        }
        for file in ["deploy/metrics.md", "deploy/alerts.yaml", "deploy/grafana.json"] {
            let text = std::fs::read_to_string(root.join(file)).unwrap();
            let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
            for word in words.filter(|word| word.starts_with("larder_") || word.starts_with("process_")) {
                let base = ["_bucket", "_sum", "_count"]
                    .iter()
                    .find_map(|end| word.strip_suffix(end))
                    .unwrap_or(word);
                assert!(
                    known.contains(word) || known.contains(base),
                    "{file} names {word}, which is no metric"
                );
            }
        }
    }

    /// What follows `counter!(`, `gauge!(` and `histogram!(`.
    fn counted_in(text: &str) -> Vec<String> {
        ["counter!(", "gauge!(", "histogram!("]
            .iter()
            .flat_map(|call| text.split(*call).skip(1))
            .filter_map(|rest| {
                rest.trim_start()
                    .strip_prefix('"')?
                    .split('"')
                    .next()
                    .map(str::to_owned)
            })
            .collect()
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
