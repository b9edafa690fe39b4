//! What operators are shown, as data. The same whether it comes over the admin API or straight from a folder.
//!
//! Bytes are those of the disk unless a name says otherwise; times are Unix milliseconds.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A page of images, in the order of their names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageList {
    pub images: Vec<ImageRow>,
    /// Where the next page begins: its `after`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRow {
    /// `docker.io/library/alpine:3.22`, or `…@sha256:…` for what no tag points at.
    pub name: String,
    pub digest: String,
    pub held_bytes: u64,
    /// Manifests and blobs that are held.
    pub parts: usize,
    /// Those that it names and that are not held; other platforms, mostly.
    pub missing: usize,
    pub pinned: bool,
    /// When the upstream last confirmed the tag.
    pub checked_ms: Option<u64>,
    pub used_ms: Option<u64>,
}

/// One image in full.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageView {
    pub name: String,
    pub digest: String,
    pub media_type: Option<String>,
    /// Whether the manifest itself is held.
    pub held: bool,
    pub held_bytes: u64,
    pub parts: usize,
    pub missing: usize,
    pub pinned: bool,
    pub checked_ms: Option<u64>,
    pub used_ms: Option<u64>,
    /// Of an index: the images that it names.
    pub platforms: Vec<PlatformView>,
    /// Of an image: its configuration and layers, in order.
    pub layers: Vec<LayerView>,
    /// Where the tag pointed before, oldest first.
    pub moves: Vec<MoveView>,
    /// Repositories that have shown that they hold the manifest.
    pub links: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlatformView {
    /// `linux/arm64/v8`; empty where the index does not say.
    pub platform: String,
    pub digest: String,
    pub held: bool,
    /// Of this platform's manifest and what it names.
    pub held_bytes: u64,
    pub layers: Vec<LayerView>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerView {
    pub digest: String,
    pub media_type: Option<String>,
    /// Its own length, as the manifest says.
    pub size: Option<u64>,
    pub held: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveView {
    pub digest: String,
    pub until_ms: u64,
    pub held: bool,
}

/// What the cache costs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DuView {
    pub path: String,
    /// Blobs, transfers and index: what counts against the limit.
    pub used_bytes: u64,
    pub max_bytes: u64,
    pub held_bytes: u64,
    /// Transfers, with all that they have announced.
    pub staged_bytes: u64,
    pub index_bytes: u64,
    pub list_bytes: u64,
    pub shared_bytes: u64,
    pub exclusive_bytes: u64,
    /// Held, but part of no image.
    pub loose_bytes: u64,
    pub loose_blobs: usize,
    pub pinned_bytes: u64,
    /// Being sent to clients right now.
    pub leased_bytes: u64,
    pub evictable_bytes: u64,
    /// Damaged and put aside; does not count against the limit.
    pub quarantine_bytes: u64,
    pub quarantined: usize,
    /// The largest first.
    pub images: Vec<DuRow>,
    /// Images that are not listed.
    pub more: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DuRow {
    pub name: String,
    /// Freed when this image is removed.
    pub exclusive_bytes: u64,
    /// Reached by other images too, or held through another repository.
    pub shared_bytes: u64,
    pub parts: usize,
    pub missing: usize,
    pub pinned: bool,
}

/// How the proxy is doing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StatsView {
    pub version: String,
    /// Of the process that answers.
    pub pid: u32,
    pub uptime_seconds: u64,
    pub path: String,
    pub used_bytes: u64,
    pub max_bytes: u64,
    pub staged_bytes: u64,
    pub index_bytes: u64,
    pub list_bytes: u64,
    pub blobs: usize,
    /// Since the start, as everything below.
    pub evicted: u64,
    /// Answers by outcome.
    pub requests: BTreeMap<String, u64>,
    /// As [`PeriodView::hit_ratio`].
    pub hit_ratio: Option<f64>,
    /// Body bytes sent to clients.
    pub served_bytes: u64,
    /// The part of `served_bytes` that came from the cache.
    #[serde(default)]
    pub cached_bytes: u64,
    /// Body bytes received from upstreams.
    pub fetched_bytes: u64,
    /// Repeats `cached_bytes` under the name that earlier versions gave it.
    pub saved_bytes: u64,
    /// As [`PeriodView::byte_hit_ratio`].
    #[serde(default)]
    pub byte_hit_ratio: Option<f64>,
    /// Requests and traffic of the last hour, the last day and since the start; `None` from a proxy that does not count them.
    #[serde(default)]
    pub periods: Option<PeriodsView>,
    pub transfers: usize,
    pub upstreams: Vec<UpstreamView>,
    /// How the disk failed, if it did in the last minute.
    pub disk_trouble: Option<String>,
    /// Damage of the index, found at the start or since, and how it was dealt with; `None` if there was none.
    #[serde(default)]
    pub index_trouble: Option<String>,
    /// When the copy of the index was made, Unix milliseconds.
    #[serde(default)]
    pub index_copied_ms: Option<u64>,
    pub verify: VerifyView,
    #[serde(default)]
    pub webhooks: Vec<WebhookView>,
    /// `None` for a folder that no proxy runs on.
    #[serde(default)]
    pub api: Option<ApiView>,
    /// Names of the command line's options that gave settings, such as `--listen`.
    #[serde(default)]
    pub options: Vec<String>,
}

/// Requests and traffic of three times. One that is longer than the process has been running is as long as that.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PeriodsView {
    pub last_hour: PeriodView,
    pub last_day: PeriodView,
    pub since_start: PeriodView,
}

/// Requests and traffic of one time, which ends now.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PeriodView {
    /// How long it is.
    pub covers_seconds: u64,
    /// Answers by outcome.
    pub requests: BTreeMap<String, u64>,
    /// The part of the pulls, 0 to 1, that no upstream was asked for; `None` without any. What does not exist (`missing`) and who
    /// was refused (`refused`) is left out.
    pub hit_ratio: Option<f64>,
    /// Body bytes sent to clients.
    pub served_bytes: u64,
    /// The part of `served_bytes` that came from the cache, or from a download that was under way for another request.
    pub cached_bytes: u64,
    /// Body bytes received from upstreams, for clients and for prefetches.
    pub fetched_bytes: u64,
    /// The part of the bytes served, 0 to 1, that came from the cache; `None` without any.
    pub byte_hit_ratio: Option<f64>,
}

/// What calls to the admin API bring.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiView {
    /// `configured`, `made` at the start, or `none`: then only sockets in the file system let callers in.
    pub token: String,
    /// Where a token that was made can be read, and by whom: its owner and root.
    pub token_files: Vec<String>,
    /// Sockets in the file system, where the proxy's own user and root need no token.
    pub sockets: Vec<String>,
    /// True if the addresses speak TLS.
    pub tls: bool,
    /// Why there is no token, where one was wanted.
    pub closed: Option<String>,
}

/// How it stands with one webhook.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WebhookView {
    pub name: String,
    /// Scheme, host and port: the path may be a secret.
    pub url: String,
    /// Events that wait on disk.
    pub queued_events: u64,
    pub queued_bytes: u64,
    pub oldest_seconds: Option<u64>,
    /// Events delivered since the start.
    pub delivered: u64,
    /// Events that were given up.
    pub dropped: u64,
    /// Why the last delivery failed, until one does not.
    pub failing: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamView {
    pub name: String,
    pub held_bytes: u64,
    /// Body bytes of its content sent to clients, since the start.
    pub served_bytes: u64,
    /// The part of `served_bytes` that came from the cache.
    #[serde(default)]
    pub cached_bytes: u64,
    /// Body bytes received from it.
    pub fetched_bytes: u64,
    /// Repeats `cached_bytes` under the name that earlier versions gave it.
    pub saved_bytes: u64,
    /// Its own limit.
    pub max_bytes: Option<u64>,
    /// It said 429: it is not asked for so long.
    pub paused_seconds: Option<u64>,
    /// It failed just now: what is held is served without waiting for it.
    pub trouble: Option<String>,
    /// Its pull limits, where it speaks of them.
    #[serde(default)]
    pub budgets: Vec<BudgetView>,
    /// How its mirrors and the registry itself are doing, those that were asked since the start.
    #[serde(default)]
    pub addresses: Vec<AddressView>,
}

/// One address of an upstream: a mirror, or the registry itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressView {
    /// Scheme, host and port, and the path where there is one.
    pub address: String,
    /// `mirror` or `registry`.
    pub role: String,
    /// `up` or `down`.
    pub state: String,
    /// Time until it is probed, while it is down.
    pub probe_seconds: Option<u64>,
    /// Time until it began to answer, of its last 64 answers.
    pub first_byte_p50_ms: Option<u64>,
    pub first_byte_p95_ms: Option<u64>,
    /// Requests that failed there since the start.
    pub failures: u64,
    pub last_error: Option<String>,
    /// Since its last answer.
    pub last_ok_seconds: Option<u64>,
}

/// One account's pull limit at an upstream, as that said last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BudgetView {
    /// `anonymous`, or a user's name.
    pub credential: String,
    pub remaining: u64,
    pub limit: Option<u64>,
    pub window_seconds: Option<u64>,
    /// Whose limit the upstream says that it is.
    pub source: Option<String>,
    /// Since the upstream said so.
    pub age_seconds: u64,
    /// Pulls in the last hour.
    pub spent: u64,
    /// Until none are left at that pace; `None`: at rest.
    pub runs_out_seconds: Option<u64>,
    /// Fewer are left than `budget_floor`: tags are not checked.
    pub low: bool,
}

/// The pass that an operator started, and the background one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyView {
    /// `never`, `running`, `done` or `cancelled`.
    pub state: String,
    pub repair: bool,
    pub started_ms: Option<u64>,
    pub finished_ms: Option<u64>,
    pub blobs: u64,
    pub blobs_total: u64,
    pub bytes: u64,
    pub bytes_total: u64,
    pub bad: u64,
    pub repaired: u64,
    /// Could not be read at that moment: left as they are.
    #[serde(default)]
    pub unreadable: u64,
    /// The first thousand.
    pub found: Vec<FoundView>,
    pub background: BackgroundView,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundView {
    pub digest: String,
    /// `wrong` or `missing`.
    pub found: String,
    pub repositories: Vec<String>,
    pub repaired: bool,
    /// Why a repair did not succeed.
    pub error: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackgroundView {
    /// Since the start.
    pub blobs: u64,
    pub bytes: u64,
    pub bad: u64,
    /// When everything held had been hashed for the last time, by whichever pass.
    pub finished_ms: Option<u64>,
}

/// How much the process tells of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogView {
    /// As in `log.level`.
    pub level: String,
}

/// What came of reading the configuration again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadView {
    /// Keys that are not as they were: `cache.max_size`, `upstream.docker.io`, `listener.ci (new)`.
    pub changed: Vec<String>,
    /// Keys that stay as they are until a restart.
    pub needs_restart: Vec<FixedView>,
    /// What works but should not stay so.
    pub warnings: Vec<String>,
}

/// A key that takes a restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FixedView {
    pub key: String,
    pub holds: String,
    pub wanted: String,
}

/// What was done about a pin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinView {
    pub name: String,
    pub pinned: bool,
    pub held_bytes: u64,
    pub missing: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovedView {
    pub name: String,
    pub freed_bytes: u64,
    pub blobs: usize,
    /// Of the freed ones: the disk has them back when the responses that are being sent have ended.
    pub later_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefreshView {
    pub name: String,
    pub before: Option<String>,
    pub digest: String,
    pub moved: bool,
}

/// An image that nobody but this proxy can answer, for the checkup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CanaryView {
    /// Below any upstream.
    pub repository: String,
    pub tag: String,
    /// The manifest's.
    pub digest: String,
    pub life_seconds: u64,
}

/// The requests that came for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CanarySeen {
    pub requests: Vec<CanaryRequest>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CanaryRequest {
    /// `manifest` or `blob`.
    pub kind: String,
    /// `tag` or `digest`.
    pub by: String,
    /// The upstream and the repository that it was taken for.
    pub image: String,
    /// As it came.
    pub path: String,
    pub client: String,
    /// False if the caller may pull nothing under that name.
    pub allowed: bool,
}
