//! Room: counted, reserved before it is used, kept by evicting (L5).
//!
//! Counted are held blobs, transfers (what came, and what is held ahead of that: `reservation`), files of lists and the
//! index's own file.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, MutexGuard, PoisonError};

use super::clock::unix_ms;
use super::database::{Op, Table};
use super::error::StoreError;
use super::index::{Entry, Index, Kind, Scope, Staging, Victim, on_disk};
use super::keys::staging_key;
use super::records::BlobRecord;
use super::{Arrival, Inner, link_key, reservation, unlink};
use crate::events::{Action, Event};
use crate::oci::Digest;

/// Memory for the names in manifests with very many of them (`limits.manifest_descriptors`): so much, or a part of
/// `max_size` where that is more.
const WIDE_BYTES: u64 = 32 << 20;
const WIDE_SHARE: u64 = 1024;
/// At most so much of the limit is kept for the index to grow into.
const INDEX_SLACK: u64 = 64 << 20;

/// Counts the bytes of a transfer that have room.
fn stage(digest: &Digest, bytes: u64, shelf: usize) -> impl FnOnce(&mut Index) + '_ {
    move |index| index.stage(digest, bytes, Staging::Active, shelf)
}

impl Inner {
    pub(super) fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes on disk: blobs, transfers, lists, index, and what is put aside.
    pub(super) fn used_bytes(&self, index: &Index) -> u64 {
        index
            .used_bytes()
            .saturating_add(self.index_bytes())
            .saturating_add(self.lists.file_bytes())
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
        let room = self.room();
        let (before, shelf) = self.index().staged(digest);
        let more = on_disk(bytes).saturating_sub(before);
        self.could_fit(Some(shelf), more)
            && self.evict_for(&room, more, Some(shelf), u64::MAX, stage(digest, bytes, shelf))
    }

    /// Counts `bytes` for a transfer whose size nobody announced. It gets what is free; cached content is evicted only until
    /// all such transfers together hold 5 % of the limit.
    pub(super) fn make_unannounced_room(&self, digest: &Digest, bytes: u64) -> bool {
        let room = self.room();
        let (more, shelf, free, most) = {
            let index = self.index();
            let (before, shelf) = index.staged(digest);
            let limit = index.shelf_limit(shelf).unwrap_or(u64::MAX).min(self.max_size());
            let free = self.free_room(&index, shelf);
            let held = index.unannounced_bytes().saturating_add(free);
            let most = reservation::unannounced_allowance(limit, held);
            (on_disk(bytes).saturating_sub(before), shelf, free, most)
        };
        more <= free.saturating_add(most) && self.evict_for(&room, more, Some(shelf), most, stage(digest, bytes, shelf))
    }

    /// Returns whether `total` bytes of a transfer would fit if everything were evicted that may be. Evicts nothing.
    pub(super) fn could_take(&self, digest: &Digest, total: u64) -> bool {
        let (before, shelf) = self.index().staged(digest);
        self.could_fit(Some(shelf), on_disk(total).saturating_sub(before))
    }

    /// Counts `bytes` for a transfer where nothing has to go for it, and nobody else is making room now.
    pub(super) fn take_free_room(&self, digest: &Digest, bytes: u64) -> bool {
        let Ok(_room) = self.room.try_lock() else { return false };
        let mut index = self.index();
        let (before, shelf) = index.staged(digest);
        let more = on_disk(bytes).saturating_sub(before);
        let is_free = more <= self.free_room(&index, shelf) && index.crowded(&[], Some(shelf), more).is_none();
        if is_free {
            index.stage(digest, bytes, Staging::Active, shelf);
        }
        is_free
    }

    /// Bytes that can be counted for a shelf before anything has to go.
    fn free_room(&self, index: &Index, shelf: usize) -> u64 {
        let free = self.limit().saturating_sub(self.used_bytes(index));
        free.min(index.free_on_shelf(shelf)).min(self.free_bytes(index))
    }

    /// The same for a small thing, which is counted without a name.
    pub(super) fn make_small_room(&self, more: u64) -> bool {
        let room = self.room();
        self.could_fit(None, more) && self.evict_for(&room, more, None, u64::MAX, |index| index.add_small(more))
    }

    /// Returns whether [`Inner::make_small_room`] would make room. Evicts nothing.
    pub(super) fn could_take_small(&self, more: u64) -> bool {
        self.could_fit(None, more)
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
        self.evict_for(&self.room(), 0, None, u64::MAX, |_| {})
    }

    /// Evicts until `more` bytes fit as well, then lets them be counted. A shelf that stays over its limit is a refusal
    /// only to who asks for that shelf. Evicts no more than `most` bytes.
    fn evict_for(
        &self,
        _room: &MutexGuard<'_, ()>,
        more: u64,
        shelf: Option<usize>,
        mut most: u64,
        count: impl FnOnce(&mut Index),
    ) -> bool {
        let mut lacking = self.lacking_free(&self.index(), more);
        let mut stuck = Vec::new();
        let wide_limit = WIDE_BYTES.max(self.max_size() / WIDE_SHARE);
        // Pinned ones, or some that are being sent, take more than that.
        let mut wide_stay = false;
        loop {
            let gone = {
                let mut index = self.index();
                let (scope, reason) = match index.crowded(&stuck, shelf, more) {
                    _ if self.used_bytes(&index).saturating_add(more) > self.limit() => (Scope::All, "max_size"),
                    Some(shelf) => (Scope::Shelf(shelf), "upstream max_size"),
                    _ if !wide_stay && index.wide_bytes() > wide_limit => (Scope::Wide, "manifest_descriptors"),
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
                let Some((victim, links)) = index.evict(scope, most) else {
                    match scope {
                        Scope::All => return false,
                        Scope::Shelf(shelf) => stuck.push(shelf),
                        Scope::Wide => wide_stay = true,
                    }
                    continue;
                };
                let freed = before.saturating_sub(index.used_bytes());
                lacking = lacking.saturating_sub(freed);
                most = most.saturating_sub(freed);
                metrics::counter!("larder_evictions_total", "reason" => reason).increment(1);
                metrics::counter!("larder_evicted_bytes_total").increment(freed);
                self.events.emit(Action::Evict, |bare| Event {
                    // No digest can be read from a staging key.
                    digest: match &victim {
                        Victim::Blob(digest) => Some(*digest),
                        Victim::Part(_) => None,
                    },
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
            Victim::Part(key) => (key, self.tree.part(key)),
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

    /// Throws away what an earlier transfer staged of a digest for `repository`. Returns its bytes on disk; `None` if
    /// there is nothing, or a writer is at it.
    pub(super) fn drop_staged(&self, index: &mut Index, repository: &str, digest: &Digest) -> Option<u64> {
        let key = staging_key(repository, digest);
        let is_idle = index.staging(&key) == Some(Staging::Idle);
        let (bytes, _) = is_idle.then(|| index.staged(&key))?;
        index.unstage(&key);
        unlink(self.take_away(&Victim::Part(key), &[]));
        Some(bytes)
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
            match self.recovery.is_none() && !self.ground.was_mended() {
                true => tracing::warn!(%digest, "a held blob is gone from the disk: forgotten"),
                // Evicted since the copy was made that the index was built from; or all of it was removed.
                false => tracing::debug!(%digest, "a held blob is gone from the disk: forgotten"),
            }
            self.drop_entry(&mut index, digest);
        }
    }

    /// Moves a verified blob into its place and enters it, in one: whoever evicts it takes away this file and no
    /// other. Of a blob that is there already the second copy goes: the first may be being sent (L5). What it returns
    /// tells when the database has it too; then it is to be shown.
    pub(super) fn admit(&self, arrival: &Arrival<'_>) -> Result<Receiver<bool>, StoreError> {
        let now = unix_ms();
        let (digest, repository) = (&arrival.digest, arrival.repository);
        let place = self.tree.blob(digest);
        let mut spare = None;
        {
            let mut index = self.index();
            if is_there(&index, arrival, &place) {
                // Out of the way before its key is free: another writer may stage under it at once.
                let aside = self.tree.temporary(digest);
                match std::fs::rename(arrival.path, &aside) {
                    Ok(()) => spare = Some(aside),
                    // The folder was emptied, and the blob has come by another way since.
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                    Err(error) => return Err(StoreError::io("move aside", arrival.path)(error)),
                }
            } else {
                self.disk
                    .rename(arrival.path, &place)
                    .map_err(StoreError::io("move into place", &place))?;
            }
            if let Some(key) = &arrival.counted {
                index.unstage(key);
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
        unlink(spare);
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

/// Returns whether a blob that arrives lies in its place already, whole as far as its size tells.
fn is_there(index: &Index, arrival: &Arrival<'_>, place: &Path) -> bool {
    let is_held = index
        .get(&arrival.digest)
        .is_some_and(|entry| entry.size == arrival.size);
    is_held
        && arrival.kind == Kind::Blob
        && std::fs::metadata(place).is_ok_and(|found| found.is_file() && found.len() == arrival.size)
}
