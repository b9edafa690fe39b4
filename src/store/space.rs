//! Room: counted, reserved before it is used, kept by evicting (L5).
//!
//! Counted are held blobs, transfers (with all they have announced) and the index's own file.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, MutexGuard, PoisonError};

use super::database::{Op, Table};
use super::error::StoreError;
use super::index::{Entry, Index, Scope, Staging, Victim, on_disk};
use super::records::{BlobRecord, unix_ms};
use super::{Arrival, Inner, link_key, unlink};
use crate::events::{Action, Event};
use crate::oci::Digest;

/// At most so much of the limit is kept for the index to grow into.
const INDEX_SLACK: u64 = 64 << 20;

impl Inner {
    pub(super) fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes on disk: blobs, transfers, index, and what is put aside.
    pub(super) fn used_bytes(&self, index: &Index) -> u64 {
        index
            .used_bytes()
            .saturating_add(self.index_bytes())
            .saturating_add(self.aside.load(Ordering::Relaxed))
    }

    /// Bytes of the index's file and of its copy.
    pub(super) fn index_bytes(&self) -> u64 {
        self.database.bytes().saturating_add(self.copying.bytes())
    }

    /// Up to where room is given out: the index's file grows behind that, when what was noted is written down.
    pub(super) fn limit(&self) -> u64 {
        let max_size = self.max_size();
        max_size - (max_size / 64).min(INDEX_SLACK)
    }

    pub(super) fn max_size(&self) -> u64 {
        self.max_size.load(Ordering::Relaxed)
    }

    /// Counts `bytes` for a transfer and evicts until that fits. `false` if it cannot: then the count is as before,
    /// and what the transfer brings may not be written. For what cannot fit nothing is evicted.
    pub(super) fn make_room(&self, digest: &Digest, bytes: u64) -> bool {
        let has_it = |index: &Index| {
            // Writers of small things stage under their own temporary name and are not counted here.
            index.staging(digest) != Some(Staging::Active) || on_disk(bytes) <= index.staged(digest).0
        };
        if has_it(&self.index()) {
            return true;
        }
        let room = self.room();
        let (before, shelf) = self.index().staged(digest);
        let more = on_disk(bytes).saturating_sub(before);
        self.could_fit(Some(shelf), more)
            && self.evict_for(&room, more, Some(shelf), |index| {
                index.stage(digest, bytes, Staging::Active, shelf);
            })
    }

    /// The same where nothing has to go for it, and nobody else is making room now.
    pub(super) fn take_free_room(&self, digest: &Digest, bytes: u64) -> bool {
        let Ok(_room) = self.room.try_lock() else { return false };
        let mut index = self.index();
        let (before, shelf) = index.staged(digest);
        let more = on_disk(bytes).saturating_sub(before);
        let is_free = self.used_bytes(&index).saturating_add(more) <= self.limit()
            && index.crowded(&[], Some(shelf), more).is_none()
            && self.lacking_free(&index, more) == 0;
        if is_free {
            index.stage(digest, bytes, Staging::Active, shelf);
        }
        is_free
    }

    /// The same for a small thing, which is counted without a name.
    pub(super) fn make_small_room(&self, more: u64) -> bool {
        let room = self.room();
        self.could_fit(None, more) && self.evict_for(&room, more, None, |index| index.add_small(more))
    }

    /// Whether `more` bytes fit once everything that may go has gone.
    fn could_fit(&self, shelf: Option<usize>, more: u64) -> bool {
        let index = &*self.index();
        let loose = index.loose_bytes(Scope::All);
        self.used_bytes(index).saturating_sub(loose).saturating_add(more) <= self.limit()
            && self.lacking_free(index, more) <= loose
            && shelf.is_none_or(|shelf| index.could_stand(shelf, more))
    }

    /// One at a time: what one evicts is off the disk before another may fill its room.
    fn room(&self) -> MutexGuard<'_, ()> {
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Evicts until every limit holds. `false` if nothing more may go before that.
    pub(super) fn evict_down(&self) -> bool {
        self.evict_for(&self.room(), 0, None, |_| {})
    }

    /// Evicts until `more` bytes fit as well, then lets them be counted. A shelf that stays over its limit is a refusal
    /// only to who asks for that shelf.
    fn evict_for(
        &self,
        _room: &MutexGuard<'_, ()>,
        more: u64,
        shelf: Option<usize>,
        count: impl FnOnce(&mut Index),
    ) -> bool {
        let mut lacking = self.lacking_free(&self.index(), more);
        let mut stuck = Vec::new();
        loop {
            let gone = {
                let mut index = self.index();
                let (scope, reason) = match index.crowded(&stuck, shelf, more) {
                    _ if self.used_bytes(&index).saturating_add(more) > self.limit() => (Scope::All, "max_size"),
                    Some(shelf) => (Scope::Shelf(shelf), "upstream max_size"),
                    None if lacking > 0 => (Scope::All, "min_free"),
                    None => {
                        let fits = shelf.is_none_or(|shelf| !stuck.contains(&shelf));
                        if fits {
                            count(&mut index);
                        }
                        return fits;
                    }
                };
                let before = index.used_bytes();
                let Some((victim, links)) = index.evict(scope) else {
                    let Scope::Shelf(shelf) = scope else { return false };
                    stuck.push(shelf);
                    continue;
                };
                lacking = lacking.saturating_sub(before - index.used_bytes());
                metrics::counter!("larder_evictions_total", "reason" => reason).increment(1);
                let freed = before - index.used_bytes();
                metrics::counter!("larder_evicted_bytes_total").increment(freed);
                self.events.emit(Action::Evict, |bare| Event {
                    digest: Some(*victim.digest()),
                    repository: links.first().cloned(),
                    bytes: Some(freed),
                    reason: Some(reason),
                    ..bare
                });
                self.take_away(&victim, &links)
            };
            unlink(gone);
            self.evicted.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Evicts for what the index itself has grown by. Blocking.
    pub(super) fn evict_for_index(&self) {
        let is_over = || self.used_bytes(&self.index()) > self.max_size();
        // What is evicted has to be written down too; that takes less each time.
        while is_over() && self.evict_down() {
            self.database.settle();
        }
    }

    /// Bytes that must go so that `min_free` stays free after `more`, and after all that has been promised already.
    fn lacking_free(&self, index: &Index, more: u64) -> u64 {
        let Ok(stat) = rustix::fs::statvfs(self.tree.root()) else {
            return 0;
        };
        let wanted = self
            .min_free
            .load(Ordering::Relaxed)
            .saturating_add(index.unwritten_bytes())
            .saturating_add(more);
        wanted.saturating_sub(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Bytes of the file system that are neither taken nor promised.
    pub(super) fn free_bytes(&self, index: &Index) -> u64 {
        let Ok(stat) = rustix::fs::statvfs(self.tree.root()) else {
            return u64::MAX;
        };
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        free.saturating_sub(
            self.min_free
                .load(Ordering::Relaxed)
                .saturating_add(index.unwritten_bytes()),
        )
    }

    /// Moves what the index has just let go of out of the way, and gives the place to unlink it from: that takes
    /// long for large files. Called with the index locked, so that nobody stages or admits the same digest
    /// before its file is out of there. Open readers keep their handle.
    pub(super) fn take_away(&self, victim: &Victim, links: &[Arc<str>]) -> Option<PathBuf> {
        let (digest, place) = match victim {
            Victim::Part(digest) => (digest, self.tree.part(digest)),
            Victim::Blob(digest) => {
                self.manifests.invalidate(digest);
                let mut ops = vec![Op::Delete(Table::Blobs, digest.to_key())];
                ops.extend(
                    links
                        .iter()
                        .map(|repository| Op::Delete(Table::Links, link_key(repository, digest))),
                );
                self.database.write(ops);
                (digest, self.tree.blob(digest))
            }
        };
        let aside = self.tree.temporary(digest);
        let is_moved = std::fs::rename(&place, &aside).is_ok();
        if let Victim::Blob(_) = victim {
            // Not before: whoever opened it there meanwhile would keep it.
            self.opened.forget(digest);
        }
        is_moved.then_some(aside)
    }

    /// Calls `each` with every entry and its place, while others come to the index every few hundred.
    pub(super) fn walk(&self, mut each: impl FnMut(&Index, u32, &Entry)) {
        let mut from = Some(0);
        while let Some(place) = from {
            let index = self.index();
            let (entries, next) = index.page(place, 512);
            for (place, entry) in entries {
                each(&index, place, entry);
            }
            from = next;
        }
    }

    /// Lets go of an entry and its file.
    pub(super) fn drop_entry(&self, index: &mut Index, digest: &Digest) {
        let links = index.remove(digest);
        unlink(self.take_away(&Victim::Blob(*digest), &links));
    }

    /// Lets go of an entry whose file is not there.
    pub(super) fn forget_if_gone(&self, digest: &Digest) {
        let mut index = self.index();
        let is_gone = std::fs::metadata(self.tree.blob(digest))
            .is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound && self.is_lost(digest, &error));
        if is_gone && index.get(digest).is_some() {
            match self.recovery {
                None => tracing::warn!(%digest, "a held blob is gone from the disk: forgotten"),
                // Evicted since the copy was made that the index was built from.
                Some(_) => tracing::debug!(%digest, "a held blob is gone from the disk: forgotten"),
            }
            self.drop_entry(&mut index, digest);
        }
    }

    /// Moves a verified blob into its place and enters it, in one: whoever evicts it takes away this file and no
    /// other. What it returns tells when the database has it too; then it is to be shown.
    pub(super) fn admit(&self, arrival: &Arrival<'_>) -> Result<Receiver<bool>, StoreError> {
        let now = unix_ms();
        let (digest, repository) = (&arrival.digest, arrival.repository);
        let place = self.tree.blob(digest);
        {
            let mut index = self.index();
            self.disk
                .rename(arrival.path, &place)
                .map_err(StoreError::io("move into place", &place))?;
            if arrival.counted {
                index.unstage(digest);
            }
            index.sub_small(arrival.small);
            let shelf = index.shelf(repository);
            let is_new = index.get(digest).is_none();
            index.insert(*digest, arrival.size, now, arrival.kind.clone(), shelf);
            if is_new {
                index.set_hidden(digest, true);
            }
            let link = || Op::Put(Table::Links, link_key(repository, digest), Vec::new());
            let mut ops: Vec<Op> = arrival.linked.then(link).into_iter().collect();
            ops.extend(BlobRecord::of(&index, digest).map(|record| record.put(digest)));
            self.database.write(ops);
        }
        self.evict_down();
        // Behind the record and behind what went for it: the index is as large then as all that makes it.
        Ok(self.database.write_noted(Vec::new()))
    }

    /// From now on it is held, and served to `repository`, if any. Not before the database has it: a crash would leave a
    /// file that is linked to nobody, and what was just answered as a hit would need the upstream again (L6).
    pub(super) fn show(&self, digest: &Digest, repository: Option<&str>) {
        let mut index = self.index();
        let is_there = index.set_hidden(digest, false);
        let Some(repository) = repository else { return };
        if is_there {
            index.link(&repository.into(), digest);
        } else {
            // Evicted meanwhile, by somebody who knew nothing of this link.
            self.database
                .write(vec![Op::Delete(Table::Links, link_key(repository, digest))]);
        }
    }

    /// A writer is done with `digest`; `left` bytes stay staged.
    pub(super) fn end_staging(&self, digest: &Digest, left: Option<u64>) {
        let mut index = self.index();
        let (_, shelf) = index.staged(digest);
        match left {
            Some(bytes) if bytes > 0 => index.stage(digest, bytes, Staging::Idle, shelf),
            _ => index.unstage(digest),
        }
    }

    /// Notes that the disk failed, or has no room: for readiness, and for the log once a minute.
    pub(super) fn note_trouble(&self, error: &StoreError) {
        let full = matches!(error, StoreError::NoRoom(_));
        if !full {
            metrics::counter!("larder_store_errors_total").increment(1);
        }
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        let now = std::time::Instant::now();
        let told = trouble
            .as_ref()
            .is_some_and(|t| now.duration_since(t.told) < super::TELL_EVERY);
        if !told && full {
            tracing::warn!(%error, cache = %self.tree.root().display(), "the cache is full of what may not go, or too small: what cannot be kept passes through");
        } else if !told && matches!(error, StoreError::Unreadable { .. }) {
            tracing::error!(%error, cache = %self.tree.root().display(), "what is cached cannot be read: it stays, and passes through from its upstream");
        } else if !told {
            tracing::error!(%error, "the disk fails: what cannot be kept passes through");
        }
        let told = trouble.as_ref().filter(|_| told).map_or(now, |t| t.told);
        *trouble = Some(super::Trouble {
            told,
            seen: now,
            text: error.to_string(),
        });
    }
}
