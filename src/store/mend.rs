//! A cache folder whose content somebody removed while it is in use.
//!
//! Walk: [`Store::probe`], every few seconds, and a writer that finds no folder → `place` says whether it may be
//! written to → folders and lock are made again at once, so that pulls are cached again → beside that, on a thread of
//! its own: what is gone is forgotten, and the index, whose removed file is open still, is written anew with tags, pins
//! and links, and copied.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::DirBuilderExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::error::StoreError;
use super::keys::Tree;
use super::place::{Look, Place, has_lock, is_on_same_device};
use super::{Inner, Store, startup};
use crate::oci::Algorithm;

/// After an index that could not be written anew.
const AGAIN_AFTER: Duration = Duration::from_secs(60);

/// The folder as it was opened, or made again since.
pub(super) struct Ground {
    state: Mutex<State>,
    /// It is not there: nothing is written in its place.
    is_away: AtomicBool,
    /// A thread is at it.
    is_mending: AtomicBool,
    /// Something was made again since the start.
    was_mended: AtomicBool,
    /// Queues of webhooks, whose folders are made by this, too.
    queues: Mutex<BTreeSet<String>>,
}

struct State {
    place: Place,
    lock: File,
    /// When the index may be written anew, after an attempt that failed.
    next: Option<Instant>,
}

impl Ground {
    /// The folders are there and the lock is held.
    pub(super) fn of(tree: &Tree, lock: File) -> Result<Ground, StoreError> {
        let place = Place::of(tree).map_err(StoreError::io("look at", tree.root()))?;
        Ok(Ground {
            state: Mutex::new(State {
                place,
                lock,
                next: None,
            }),
            is_away: AtomicBool::new(false),
            is_mending: AtomicBool::new(false),
            was_mended: AtomicBool::new(false),
            queues: Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn queues(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns true if the folder of these blobs is the one that is known.
    pub(super) fn has_blobs(&self, tree: &Tree, algorithm: Algorithm) -> bool {
        self.state().place.has_blobs(tree, algorithm)
    }

    /// Returns true if much was found gone at once: then not every blob is worth a line in the log.
    pub(super) fn was_mended(&self) -> bool {
        self.was_mended.load(Ordering::Relaxed)
    }

    pub(super) fn note_queue(&self, name: &str) {
        self.queues().insert(name.to_owned());
    }

    pub(super) fn forget_queue(&self, name: &str) {
        self.queues().remove(name);
    }
}

/// The parts that were made again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Made {
    folders: bool,
    lock: bool,
}

impl Store {
    /// Returns true while what was removed is being forgotten and written anew.
    pub fn is_mending(&self) -> bool {
        self.inner.ground.is_mending.load(Ordering::Acquire)
    }
}

impl Inner {
    /// Error: the folder is not in its place. Costs nothing where it was at the last look.
    pub(super) fn check_ground(self: &Arc<Inner>) -> Result<(), StoreError> {
        match self.ground.is_away.load(Ordering::Relaxed) {
            false => Ok(()),
            true => self.mend(),
        }
    }

    /// Error: nothing may be written beside the blobs now. Looks, and changes nothing. Blocking, briefly.
    pub(super) fn check_place(&self) -> Result<(), StoreError> {
        let state = self.ground.state();
        state
            .place
            .look(&self.tree, &state.lock)
            .map_err(|why| self.away(&why))?;
        match has_lock(&self.tree, &state.lock) {
            true => Ok(()),
            false => Err(self.away("its lock is gone, or another process has it")),
        }
    }

    /// Mends before a stop, so that the next start finds an index. Blocking.
    pub(super) fn mend_at_the_end(self: &Arc<Inner>) {
        let mended = self.mend().and_then(|()| match self.database.is_gone() {
            true => self.database.write_anew(),
            false => Ok(()),
        });
        if let Err(error) = mended {
            tracing::error!(%error, "the cache folder is not as it was: the index is not written down");
        }
    }

    fn away(&self, why: &str) -> StoreError {
        StoreError::io("use", self.tree.root())(std::io::Error::other(why.to_owned()))
    }

    /// Makes again what was removed, if it may. Blocking, briefly.
    ///
    /// Error: the folder is not there, or another process has it; nothing is written until that has changed.
    pub(super) fn mend(self: &Arc<Inner>) -> Result<(), StoreError> {
        let made = {
            let mut state = self.ground.state();
            let made = self.make_again(&mut state);
            self.ground.is_away.store(made.is_err(), Ordering::Relaxed);
            made?
        };
        if made != Made::default() {
            self.ground.was_mended.store(true, Ordering::Relaxed);
            // Failures for want of it are over.
            *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = None;
            tracing::error!(cache = %self.tree.root().display(), folders = made.folders, lock = made.lock, "the cache folder was emptied, replaced or mounted anew while it is in use: what is missing is made again");
        }
        let is_due = self.ground.state().next.is_none_or(|next| next <= Instant::now());
        if made.folders || is_due && (self.database.is_gone() || self.is_copy_gone()) {
            self.restore_beside(made.folders);
        }
        Ok(())
    }

    fn make_again(&self, state: &mut State) -> Result<Made, StoreError> {
        let mut made = Made::default();
        let look = state.place.look(&self.tree, &state.lock);
        let changed = look.map_err(|why| self.away(&why))? == Look::Changed;
        if changed {
            startup::make_folders(&self.tree)?;
            made.folders = true;
        }
        if !has_lock(&self.tree, &state.lock) {
            // Whoever came meanwhile has it, and the folder.
            state.lock = startup::take_lock(&self.tree)?;
            made.lock = true;
        } else if !is_on_same_device(&self.tree, &state.lock) {
            // A disk that went away and is back: its kernel knows nothing of a lock on it.
            let _ = rustix::fs::flock(&state.lock, rustix::fs::FlockOperation::Unlock);
            state.lock = startup::take_lock(&self.tree)?;
        }
        if changed {
            state.place = Place::of(&self.tree).map_err(StoreError::io("look at", self.tree.root()))?;
            for name in self.ground.queues().iter() {
                let folder = self.tree.queue(name).root().to_owned();
                let mut builder = std::fs::DirBuilder::new();
                builder.recursive(true).mode(0o700);
                builder.create(&folder).map_err(StoreError::io("create", &folder))?;
            }
        }
        Ok(made)
    }

    fn is_copy_gone(&self) -> bool {
        let is_gone = |error: std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
        self.copying.bytes() > 0 && std::fs::metadata(self.tree.copy()).is_err_and(is_gone)
    }

    /// Forgets what is gone and writes the index anew, on a thread of its own: with a million blobs it takes seconds.
    fn restore_beside(self: &Arc<Inner>, has_new_folders: bool) {
        if self.ground.is_mending.swap(true, Ordering::AcqRel) {
            return;
        }
        let inner = self.clone();
        let thread = std::thread::Builder::new().name("larder-mend".to_owned());
        let begun = thread.spawn(move || {
            let outcome = inner.restore(has_new_folders);
            let next = outcome.is_err().then(|| Instant::now() + AGAIN_AFTER);
            inner.ground.state().next = next;
            if let Err(error) = outcome {
                tracing::error!(%error, "what was removed from the cache folder is not all made again: it is tried again");
                inner.note_trouble(&error);
            }
            inner.ground.is_mending.store(false, Ordering::Release);
        });
        if let Err(error) = begun {
            self.ground.is_mending.store(false, Ordering::Release);
            tracing::error!(%error, "there is no thread to make again what was removed from the cache folder");
        }
    }

    fn restore(self: &Arc<Inner>, has_new_folders: bool) -> Result<(), StoreError> {
        if has_new_folders {
            let before = self.index().count();
            self.forget_gone_parts();
            self.aside.store(self.trim_aside(), Ordering::Relaxed);
            startup::reconcile(self)?;
            self.forget_gone_lists();
            let gone = before.saturating_sub(self.index().count());
            tracing::warn!(
                blobs = gone,
                "what is gone from the cache folder is forgotten, and fetched again when it is asked for"
            );
        }
        if self.database.is_gone() {
            // Since the last look it may have changed hands, or its file system may have gone.
            self.check_place()?;
            self.database.write_anew()?;
            tracing::warn!("the index is on the disk again, with all tags and pins");
        }
        if self.is_copy_gone() {
            self.copying.forget();
        }
        Ok(())
    }

    /// Forgets parts that were staged for a later writer and are not there any more. What cannot be looked at is still
    /// counted.
    fn forget_gone_parts(&self) {
        let idle = self.index().all_idle_staged();
        for key in idle {
            let found = std::fs::symlink_metadata(self.tree.part(&key));
            let is_gone = found.is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound);
            // Without its folder, as where that is not mounted just now, nothing can be said.
            if !is_gone || !self.tree.staging().is_dir() {
                continue;
            }
            let mut index = self.index();
            if index.staging(&key) == Some(super::index::Staging::Idle) {
                index.unstage(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests;
