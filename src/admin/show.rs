//! Views, made from what store and jobs say.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::Deserialize;

use super::recent::Period;
use super::views::{
    AddressView, BackgroundView, BudgetView, DuRow, DuView, FoundView, ImageRow, ImageView, LayerView, MoveView,
    PeriodView, PlatformView, VerifyView, WebhookView,
};
use crate::jobs::webhook::HookStatus;
use crate::jobs::{Found, Idle, Phase, Progress, Repair};
use crate::oci::manifest::Manifest;
use crate::oci::{Digest, media_type};
use crate::pull::{AddressState, Budget, Role, by_outcome};
use crate::store::{Image, Row, Store, Survey, Usage};

impl WebhookView {
    pub(super) fn of(hook: HookStatus) -> WebhookView {
        WebhookView {
            name: hook.name,
            url: hook.url,
            queued_events: hook.queued_events,
            queued_bytes: hook.queued_bytes,
            oldest_seconds: hook.oldest_seconds,
            delivered: hook.delivered,
            dropped: hook.dropped,
            failing: hook.failing,
        }
    }
}

impl PeriodView {
    pub(super) fn of(period: &Period) -> PeriodView {
        let Period { counted, covers } = period;
        let requests: BTreeMap<String, u64> = by_outcome(&counted.requests)
            .map(|(word, n)| (word.to_owned(), n))
            .collect();
        PeriodView {
            covers_seconds: covers.as_secs(),
            hit_ratio: hit_ratio(&requests),
            requests,
            served_bytes: counted.served,
            cached_bytes: counted.cached,
            fetched_bytes: counted.fetched,
            byte_hit_ratio: ratio(counted.cached, counted.served),
        }
    }
}

/// The part of the pulls that no upstream was asked for. Who was refused did not pull, and what does not exist cannot be cached.
fn hit_ratio(requests: &BTreeMap<String, u64>) -> Option<f64> {
    let pulls = requests
        .iter()
        .filter(|(word, _)| !matches!(word.as_str(), "refused" | "missing"));
    let hits = requests.get("hit").copied().unwrap_or(0);
    ratio(hits, pulls.map(|(_, n)| n).sum())
}

fn ratio(part: u64, all: u64) -> Option<f64> {
    (all > 0).then(|| part as f64 / all as f64)
}

impl BudgetView {
    pub(super) fn of(budget: &Budget) -> BudgetView {
        BudgetView {
            credential: budget.account.clone(),
            remaining: budget.remaining,
            limit: budget.limit,
            window_seconds: budget.window.map(|window| window.as_secs()),
            source: budget.source.clone(),
            age_seconds: budget.age.as_secs(),
            spent: budget.spent,
            runs_out_seconds: budget.runs_out.map(|left| left.as_secs()),
            low: budget.is_low,
        }
    }
}

impl AddressView {
    pub(super) fn of(address: &AddressState) -> AddressView {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        AddressView {
            address: address.name.to_string(),
            role: match address.role {
                Role::Mirror => "mirror",
                Role::Registry => "registry",
            }
            .to_owned(),
            state: if address.down_for.is_some() { "down" } else { "up" }.to_owned(),
            probe_seconds: address.down_for.map(|left| left.as_secs()),
            first_byte_p50_ms: address.p50.map(ms),
            first_byte_p95_ms: address.p95.map(ms),
            failures: address.failures,
            last_error: address.last_error.as_ref().map(|why| why.to_string()),
            last_ok_seconds: address.last_ok.map(|since| since.as_secs()),
        }
    }
}

impl ImageRow {
    pub(super) fn of(image: &Image) -> ImageRow {
        ImageRow {
            name: image.name.to_string(),
            digest: image.digest.to_string(),
            held_bytes: image.held_bytes(),
            parts: image.parts.len() - image.missing(),
            missing: image.missing(),
            pinned: image.pinned,
            checked_ms: image.record.as_ref().map(|record| record.checked_ms),
            used_ms: image.used_ms.filter(|ms| *ms > 0),
        }
    }
}

impl ImageView {
    /// Blocking: reads manifests.
    pub(super) fn of(store: &Store, image: &Image) -> ImageView {
        let row = ImageRow::of(image);
        let document = store.peek_manifest(&image.digest).ok().flatten().map(|held| held.bytes);
        let media_type = store
            .media_type(&image.digest)
            .or_else(|| image.record.as_ref().map(|record| record.media_type.clone()));
        let platforms = document.as_deref().map(|bytes| platforms(store, bytes));
        let platforms = platforms.unwrap_or_default();
        let is_index = !platforms.is_empty();
        let moves = image.record.iter().flat_map(|record| &record.moves);
        ImageView {
            held: image.is_held(),
            media_type: media_type.map(|text| text.to_string()),
            layers: match &document {
                Some(bytes) if !is_index => layers(store, bytes),
                _ => Vec::new(),
            },
            platforms,
            moves: moves
                .map(|earlier| MoveView {
                    digest: earlier.digest.to_string(),
                    until_ms: earlier.until_ms,
                    held: store.size(&earlier.digest).is_some(),
                })
                .collect(),
            links: store.links(&image.digest).iter().map(ToString::to_string).collect(),
            name: row.name,
            digest: row.digest,
            held_bytes: row.held_bytes,
            parts: row.parts,
            missing: row.missing,
            pinned: row.pinned,
            checked_ms: row.checked_ms,
            used_ms: row.used_ms,
        }
    }
}

/// What `inspect` reads of an index beside what everybody reads.
#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    digest: String,
    media_type: Option<String>,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    variant: Option<String>,
}

impl Platform {
    fn show(&self) -> String {
        let words = [self.os.as_str(), &self.architecture];
        let words = words.into_iter().chain(self.variant.as_deref());
        words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join("/")
    }
}

/// Empty for everything that is no index.
fn platforms(store: &Store, bytes: &[u8]) -> Vec<PlatformView> {
    let Ok(index) = serde_json::from_slice::<Index>(bytes) else {
        return Vec::new();
    };
    let view = |entry: Entry| {
        let digest: Digest = entry.digest.parse().ok()?;
        let document = store.peek_manifest(&digest).ok().flatten();
        Some(PlatformView {
            platform: entry.platform.map(|platform| platform.show()).unwrap_or_default(),
            digest: entry.digest,
            held: store.size(&digest).is_some(),
            held_bytes: store.held_bytes_of(&digest),
            layers: document.map(|held| layers(store, &held.bytes)).unwrap_or_default(),
        })
    };
    // BuildKit's cache is an index of layers.
    let is_manifest = |entry: &Entry| {
        let named = entry.media_type.as_deref().and_then(media_type::essence);
        named.is_none_or(|named| media_type::is_manifest(&named) || media_type::says_nothing(&named))
    };
    index
        .manifests
        .into_iter()
        .filter(is_manifest)
        .filter_map(view)
        .collect()
}

fn layers(store: &Store, bytes: &[u8]) -> Vec<LayerView> {
    let Ok(manifest) = Manifest::parse(bytes, None) else {
        return Vec::new();
    };
    let view = |descriptor: crate::oci::manifest::Descriptor| LayerView {
        held: store.size(&descriptor.digest).is_some(),
        digest: descriptor.digest.to_string(),
        media_type: descriptor.media_type,
        size: descriptor.size,
    };
    manifest.descriptors.into_iter().map(view).collect()
}

impl DuView {
    pub(super) fn of(usage: &Usage, survey: Survey, limit: usize) -> DuView {
        let mut rows = survey.rows;
        rows.sort_by_cached_key(|row| {
            (
                std::cmp::Reverse(row.exclusive_bytes + row.shared_bytes),
                row.name.to_string(),
            )
        });
        let more = rows.len().saturating_sub(limit);
        DuView {
            used_bytes: usage.used_bytes,
            staged_bytes: usage.staged_bytes,
            index_bytes: usage.index_bytes,
            list_bytes: usage.list_bytes,
            held_bytes: survey.held_bytes,
            shared_bytes: survey.shared_bytes,
            exclusive_bytes: rows.iter().map(|row| row.exclusive_bytes).sum(),
            loose_bytes: survey.loose_bytes,
            loose_blobs: survey.loose_blobs,
            pinned_bytes: survey.pinned_bytes,
            leased_bytes: survey.leased_bytes,
            evictable_bytes: survey.evictable_bytes,
            quarantine_bytes: survey.quarantine_bytes,
            quarantined: survey.quarantined,
            images: rows.iter().take(limit).map(DuRow::of).collect(),
            more,
            ..DuView::default()
        }
    }
}

impl DuRow {
    fn of(row: &Row) -> DuRow {
        DuRow {
            name: row.name.to_string(),
            exclusive_bytes: row.exclusive_bytes,
            shared_bytes: row.shared_bytes,
            parts: row.blobs,
            missing: row.missing,
            pinned: row.pinned,
        }
    }
}

impl VerifyView {
    pub(super) fn of(progress: &Progress, idle: &Idle, finished_ms: Option<u64>) -> VerifyView {
        let has_run = progress.phase != Phase::Never;
        VerifyView {
            state: progress.phase.as_str().to_owned(),
            repair: progress.repair,
            started_ms: has_run.then_some(progress.started_ms),
            finished_ms: progress.finished_ms,
            blobs: progress.blobs,
            blobs_total: progress.blobs_total,
            bytes: progress.bytes,
            bytes_total: progress.bytes_total,
            bad: progress.bad,
            repaired: progress.repaired,
            unreadable: progress.unreadable,
            found: progress.found.iter().map(FoundView::of).collect(),
            background: BackgroundView {
                blobs: idle.blobs.load(Ordering::Relaxed),
                bytes: idle.bytes.load(Ordering::Relaxed),
                bad: idle.bad.load(Ordering::Relaxed),
                finished_ms,
            },
        }
    }
}

impl FoundView {
    fn of(found: &Found) -> FoundView {
        FoundView {
            digest: found.digest.to_string(),
            found: found.verdict.as_str().to_owned(),
            repositories: found.repositories.iter().map(ToString::to_string).collect(),
            repaired: found.repair == Repair::Fetched,
            error: match &found.repair {
                Repair::Failed(why) => Some(why.clone()),
                Repair::Left | Repair::Fetched => None,
            },
        }
    }
}
