//! What images cost on disk, alone and together: the figures behind `du`.

use std::collections::HashMap;

use super::images::{ImageName, parts};
use super::index::sum;
use super::{Store, on_disk};
use crate::oci::Digest;

/// The whole cache as images see it. Bytes are those of the disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// By name.
    pub rows: Vec<Row>,
    /// Reached by more than one image, or linked to another repository; each blob counted once.
    pub shared_bytes: u64,
    /// Held, but part of no image: its manifest was evicted, or it was pulled alone.
    pub loose_blobs: usize,
    pub loose_bytes: u64,
    pub held_bytes: u64,
    pub pinned_bytes: u64,
    /// Being sent to clients right now.
    pub leased_bytes: u64,
    /// What eviction could free at most.
    pub evictable_bytes: u64,
    /// Damaged blobs that were put aside. Not counted against the limit; there are never many.
    pub quarantined: usize,
    pub quarantine_bytes: u64,
}

/// One image's part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub name: ImageName,
    pub digest: Digest,
    /// Only this image reaches them: removing it frees them.
    pub exclusive_bytes: u64,
    pub shared_bytes: u64,
    pub blobs: usize,
    /// Parts that are not held.
    pub missing: usize,
    pub pinned: bool,
}

/// What the images reach of a blob.
struct Owned {
    images: u32,
    bytes: u64,
    elsewhere: bool,
}

impl Store {
    /// Counts everything. Blocking; the index is locked for one image at a time.
    pub fn survey(&self) -> Survey {
        let names = self.image_names();
        let mut owned: HashMap<Digest, Owned> = HashMap::new();
        for (name, digest) in &names {
            let index = self.inner.index();
            for part in parts(&index, digest) {
                let Some(bytes) = part.held else { continue };
                let elsewhere = index.linked_elsewhere(&name.repository, &part.digest);
                let owned = owned.entry(part.digest).or_insert(Owned {
                    images: 0,
                    bytes,
                    elsewhere,
                });
                owned.images += 1;
                owned.elsewhere |= elsewhere;
            }
        }
        let is_shared = |owned: &Owned| owned.images > 1 || owned.elsewhere;
        let mut survey = Survey {
            shared_bytes: sum(owned.values().filter(|o| is_shared(o)).map(|o| o.bytes)),
            ..Survey::default()
        };
        for (name, digest) in names {
            let index = self.inner.index();
            let mut row = Row {
                pinned: index.pin_of(&name.to_string()).is_some(),
                name,
                digest,
                exclusive_bytes: 0,
                shared_bytes: 0,
                blobs: 0,
                missing: 0,
            };
            for part in parts(&index, &digest) {
                match owned.get(&part.digest) {
                    None => row.missing += 1,
                    Some(owned) => {
                        row.blobs += 1;
                        let bytes = if is_shared(owned) {
                            &mut row.shared_bytes
                        } else {
                            &mut row.exclusive_bytes
                        };
                        *bytes = bytes.saturating_add(owned.bytes);
                    }
                }
            }
            survey.rows.push(row);
        }
        self.count_entries(&owned, &mut survey);
        (survey.quarantined, survey.quarantine_bytes) = self.quarantined();
        survey
    }

    fn count_entries(&self, owned: &HashMap<Digest, Owned>, survey: &mut Survey) {
        self.inner.walk(|index, _, entry| {
            let bytes = on_disk(entry.size);
            let add = |count: &mut u64, counts: bool| *count = count.saturating_add(if counts { bytes } else { 0 });
            let (pinned, leased) = (index.is_pinned(&entry.digest), index.is_leased(&entry.digest));
            let loose = !owned.contains_key(&entry.digest);
            add(&mut survey.held_bytes, true);
            add(&mut survey.pinned_bytes, pinned);
            add(&mut survey.leased_bytes, leased);
            add(&mut survey.evictable_bytes, !pinned && !leased);
            add(&mut survey.loose_bytes, loose);
            survey.loose_blobs += usize::from(loose);
        });
        let idle = self.inner.index().idle_staged_bytes();
        survey.evictable_bytes = survey.evictable_bytes.saturating_add(idle);
    }
}
