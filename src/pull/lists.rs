//! Tag lists and referrers: mutable, so they have a time, are asked for again, and served stale if that fails.
//!
//! A list may be 16 MiB long, and forty may be asked for at once. So none is ever whole in memory: its items go into
//! the store's spool as they come, and pages and answers are read from there, off the async threads.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::{BoxFuture, FutureExt as _};
use tokio::sync::OwnedSemaphorePermit;

use super::blocking::blocking;
use super::error::PullError;
use super::freshness::{Freshness, judge, may_be_stale};
use super::manifest::Want;
use super::names::Target;
use super::outcome::Outcome;
use super::turns::{Turn, Turns};
use super::{Pull, Question, View};
use crate::oci::{Digest, HostPort, Reference, Tag};
use crate::store::{ListKey, ListRecord, ListSpool, Page, Store, StoreError, now_by_clock_of, unix_ms};
use crate::upstream::{ItemKind, Items, ListSink, Referrers};

/// New signatures must be seen soon (R-C81).
const REFERRERS_TTL: Duration = Duration::from_secs(60);

/// A list and how it was come by.
#[derive(Clone, Debug)]
pub struct Listing {
    pub items: Arc<ListRecord>,
    pub outcome: Outcome,
}

/// Names that are looked at in one go: the index is held still meanwhile.
const NAMES_AT_ONCE: usize = 1_000;
/// A list up to so many bytes comes without waiting for others.
const SMALL_LIST_BYTES: u64 = 64 * 1024;

/// Says of an item, as JSON, whether it is wanted.
pub type ItemFilter = Arc<dyn Fn(&[u8]) -> bool + Send + Sync>;

impl Listing {
    /// The stretch of a tag list that has the tags after `last`, `most` of them at most.
    pub async fn page(&self, last: Option<&str>, most: Option<u64>) -> Result<Page, PullError> {
        if self.items.is_in_memory() {
            return Ok(self.items.page(last, most)?);
        }
        let (items, last) = (self.items.clone(), last.map(str::to_owned));
        blocking(move || items.page(last.as_deref(), most)).await
    }

    /// Reads a stretch of the list, piece by piece; with a filter, only the items that it wants.
    pub fn read(&self, span: Range<u64>, filter: Option<ItemFilter>) -> ListReader {
        ListReader {
            items: self.items.clone(),
            span,
            filter,
        }
    }

    /// The whole list.
    pub fn whole(&self) -> Range<u64> {
        0..self.items.len()
    }

    /// All of it in one piece of text, an item a line: for what looks at everything, one list at a time.
    pub async fn text(&self) -> Result<String, PullError> {
        let mut reader = self.read(self.whole(), None);
        let mut all = Vec::with_capacity(usize::try_from(self.items.len()).unwrap_or(0));
        while let Some(lines) = reader.next().await? {
            all.extend_from_slice(&lines);
        }
        String::from_utf8(all).map_err(|_| PullError::Internal("a list that is no text"))
    }
}

/// Reads a list from where it lies.
pub struct ListReader {
    items: Arc<ListRecord>,
    span: Range<u64>,
    filter: Option<ItemFilter>,
}

impl ListReader {
    /// The next items, each a line that ends in `\n`; some 64 KiB of them. `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, PullError> {
        while !self.span.is_empty() {
            let (items, span, filter) = (self.items.clone(), self.span.clone(), self.filter.clone());
            // Without a filter there is nothing to compute.
            let is_quick = items.is_in_memory() && (filter.is_none() || items.len() <= SMALL_LIST_BYTES);
            let (came, lines) = match is_quick {
                true => read_chunk(&items, span, filter.as_ref())?,
                false => blocking(move || read_chunk(&items, span, filter.as_ref())).await?,
            };
            self.span.start += came;
            if !lines.is_empty() {
                return Ok(Some(lines));
            }
        }
        Ok(None)
    }
}

/// The next lines of a stretch that are wanted, and how many bytes were looked at for them.
fn read_chunk(items: &ListRecord, span: Range<u64>, filter: Option<&ItemFilter>) -> Result<(u64, Vec<u8>), StoreError> {
    let lines = items.chunk(span)?;
    let came = lines.len() as u64;
    let Some(wanted) = filter else { return Ok((came, lines)) };
    let each = lines.split_inclusive(|byte| *byte == b'\n');
    Ok((came, each.filter(|line| wanted(line)).flatten().copied().collect()))
}

/// Takes a list from its upstream into the store's spool.
struct Intake {
    store: Store,
    /// `None` while it is written to, and after that was broken off.
    spool: Mutex<Option<ListSpool>>,
    turns: Arc<Turns>,
    upstream: HostPort,
    /// Set while the list is longer than a small one.
    turn: Mutex<Option<Arc<Turn>>>,
    /// Set if the disk does not take it.
    memory: Mutex<Option<OwnedSemaphorePermit>>,
    /// There was no turn for it, or no memory.
    is_refused: AtomicBool,
}

impl Intake {
    fn new(store: &Store, turns: &Arc<Turns>, upstream: &HostPort) -> Intake {
        Intake {
            store: store.clone(),
            spool: Mutex::new(Some(store.list_spool())),
            turns: turns.clone(),
            upstream: upstream.clone(),
            turn: Mutex::default(),
            memory: Mutex::default(),
            is_refused: AtomicBool::new(false),
        }
    }

    /// Returns false if no more is taken.
    async fn append(&self, lines: Vec<u8>) -> bool {
        let spool = locked(&self.spool).take();
        let Some(mut spool) = spool else { return false };
        let spool = if spool.len() + (lines.len() as u64) <= SMALL_LIST_BYTES {
            spool.push(&lines);
            Some(spool)
        } else {
            if !self.admit(lines.len() as u64).await {
                return false;
            }
            let writing = tokio::task::spawn_blocking(move || {
                spool.push(&lines);
                spool.flush();
                spool
            });
            // It ends early only with the process.
            let spool = writing.await.ok();
            if spool.as_ref().is_some_and(ListSpool::is_held) && !self.has_memory().await {
                return false;
            }
            spool
        };
        *locked(&self.spool) = spool;
        true
    }

    /// Waits for its turn among long lists: so many as fit into the lists' part of the cache come at once. The upstream
    /// waits too, as its connection is not read.
    async fn admit(&self, bytes: u64) -> bool {
        if self.is_refused() {
            return false;
        }
        let turn = locked(&self.turn).clone();
        let turn = match turn {
            Some(turn) => turn,
            None => {
                let Some(turn) = self.turns.turn(&self.upstream).await else {
                    self.is_refused.store(true, Ordering::Relaxed);
                    return false;
                };
                let turn = Arc::new(turn);
                *locked(&self.turn) = Some(turn.clone());
                turn
            }
        };
        turn.note(bytes);
        true
    }

    async fn has_memory(&self) -> bool {
        if locked(&self.memory).is_some() {
            return true;
        }
        let memory = self.turns.memory().await;
        let has_it = memory.is_some();
        *locked(&self.memory) = memory;
        self.is_refused.fetch_or(!has_it, Ordering::Relaxed);
        has_it
    }

    fn is_refused(&self) -> bool {
        self.is_refused.load(Ordering::Relaxed)
    }

    /// Keeps what came. What the disk did not take lies in memory for a while.
    async fn keep(self, key: Arc<str>, which: ListKey) -> Result<Arc<ListRecord>, PullError> {
        let spool = self.spool.into_inner().unwrap_or_else(PoisonError::into_inner);
        let spool = spool.ok_or(PullError::Internal("a list was dropped"))?;
        let (store, turn) = (self.store, self.turn);
        let record = blocking(move || store.put_list(&key, &which, spool, unix_ms())).await?;
        let lent = match record.is_kept() || record.len() <= SMALL_LIST_BYTES {
            true => Some(record),
            false => {
                let memory = self.memory.into_inner().unwrap_or_else(PoisonError::into_inner);
                let lent = self.turns.lend(ListRecord::clone(&record), memory);
                lent.map(Arc::new)
            }
        };
        drop(turn);
        lent.ok_or(PullError::Busy)
    }
}

impl ListSink for Intake {
    fn restart(&self) {
        *locked(&self.spool) = Some(self.store.list_spool());
        *locked(&self.turn) = None;
        *locked(&self.memory) = None;
    }

    fn take(&self, lines: Vec<u8>) -> BoxFuture<'_, bool> {
        self.append(lines).boxed()
    }

    fn too_slow(&self) -> BoxFuture<'_, ()> {
        let turn = locked(&self.turn).clone();
        async move {
            match turn {
                Some(turn) => turn.is_over().await,
                None => std::future::pending().await,
            }
        }
        .boxed()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pull {
    /// Repositories of which something is held and from which whoever asks may pull, in byte order, after `last`. Others
    /// leave no trace: not in the pages' sizes, nor in whether there is another (L8, R-X7, R-X8).
    pub async fn catalog(
        &self,
        view: &View,
        last: &str,
        limit: usize,
        may_pull: impl Fn(&Target) -> bool,
    ) -> Vec<Arc<str>> {
        let mut names: Vec<Arc<str>> = Vec::new();
        let mut last: Arc<str> = last.into();
        while names.len() < limit {
            let some = self.store.repositories(&last, NAMES_AT_ONCE);
            let Some(end) = some.last() else { break };
            last = end.clone();
            names.extend(
                some.into_iter()
                    .filter(|name| view.held(name).is_some_and(|target| may_pull(&target))),
            );
            // A caller who may see few of many repositories keeps no thread from the others.
            tokio::task::yield_now().await;
        }
        names.truncate(limit);
        names
    }

    /// Every tag of a repository, in byte order (R-S17).
    pub async fn tags(self: &Arc<Pull>, target: &Target) -> Result<Listing, PullError> {
        // Nobody may be asked: the tags whose images can be had are the list, whatever an upstream said before that.
        if self.is_offline(target) {
            let (pull, to) = (self.clone(), target.clone());
            let tags = blocking(move || {
                let mut tags = pull.store.known_tags(&to.key);
                tags.retain(|tag| {
                    pull.store
                        .tag(&to.key, tag)
                        .is_some_and(|record| pull.last_held(&to, &record).is_some())
                });
                Ok(tags)
            });
            let tags = tags.await?;
            if tags.is_empty() {
                return Err(self.not_in_mirror(target));
            }
            let lines: Vec<u8> = tags
                .iter()
                .flat_map(|tag| [tag.as_bytes(), b"\n"])
                .flatten()
                .copied()
                .collect();
            let items = Arc::new(ListRecord::of_lines(unix_ms(), lines));
            return Ok(Listing {
                items,
                outcome: Outcome::Hit,
            });
        }
        self.list(target, ListKey::Tags, target.upstream.tag_ttl).await
    }

    /// The descriptors that refer to `subject` (R-S20, R-S21).
    pub async fn referrers(self: &Arc<Pull>, target: &Target, subject: &Digest) -> Result<Listing, PullError> {
        self.list(
            target,
            ListKey::Referrers(*subject),
            target.upstream.tag_ttl.min(REFERRERS_TTL),
        )
        .await
    }

    async fn list(self: &Arc<Pull>, target: &Target, which: ListKey, ttl: Duration) -> Result<Listing, PullError> {
        let known = self.known_list(target, &which).await?;
        let checked = known.as_ref().map(|k| k.checked_ms);
        let freshness = judge(checked, unix_ms(), ttl, self.is_offline(target));
        if let (Freshness::Fresh, Some(items)) = (freshness, known.clone()) {
            return Ok(Listing {
                items,
                outcome: Outcome::Hit,
            });
        }
        let stale = known.and_then(|items| {
            let now_ms = now_by_clock_of(items.checked_ms);
            let overdue = may_be_stale(items.checked_ms, now_ms, ttl, target.upstream.stale_if_error)?;
            Some((items, overdue))
        });
        if let Some((items, overdue_s)) = &stale
            && target.upstream.counts_heads()
            && self.is_budget_low(target)
        {
            // Where a HEAD may count, so may this.
            let outcome = Outcome::Stale {
                overdue_s: *overdue_s,
                reason: self.spared(target).as_str(),
            };
            return Ok(Listing {
                items: items.clone(),
                outcome,
            });
        }
        if stale.is_none() {
            self.check_negative(target, &Question::List(which.clone()))?;
        }
        // Beside the others, whose questions are not for this caller.
        if target.held_only {
            self.client(target)?;
        }
        let (pull, to, asked) = (self.clone(), target.clone(), which.clone());
        let mut pending = self
            .list_questions
            .join((target.scope(), which.clone()), || async move {
                let begun = Instant::now();
                let intake = Intake::new(&pull.store, &pull.long_lists, &to.upstream.name);
                let asking = match &asked {
                    ListKey::Tags => pull.ask_tags(&to, &intake).await,
                    ListKey::Referrers(subject) => pull.ask_referrers(&to, subject, &intake).await,
                };
                let asking = match asking {
                    Err(_) if intake.is_refused() => Err(PullError::Busy),
                    asking => asking,
                };
                pull.note_verdict(&to, asking.as_ref().err(), begun.elapsed());
                if asking.is_ok() {
                    pull.note_privacy(&to);
                }
                asking?;
                intake.keep(to.key.clone(), asked).await
            });
        let joined = pending.joined;
        let fetched = |items: Arc<ListRecord>| {
            let outcome = match (joined, items.is_kept()) {
                (true, _) => Outcome::Collapsed,
                (false, true) => Outcome::Stored,
                (false, false) => Outcome::Passed,
            };
            Ok(Listing { items, outcome })
        };
        let Some((items, overdue_s)) = stale else {
            return match pending.wait().await {
                Ok(items) => fetched(items),
                Err(error) => {
                    self.note_negative(target, Question::List(which), &error);
                    Err(error)
                }
            };
        };
        let (patience, trouble) = self.patience(target);
        let reason = match tokio::time::timeout(patience, pending.wait()).await {
            Ok(Ok(items)) => return fetched(items),
            Ok(Err(error)) => error.as_str(),
            Err(_) => {
                pending.will_come_back();
                let trouble = self.failing(target).unwrap_or(trouble);
                if !patience.is_zero() {
                    self.note_trouble(target, trouble);
                }
                trouble
            }
        };
        Ok(Listing {
            items,
            outcome: Outcome::Stale { overdue_s, reason },
        })
    }

    async fn known_list(&self, target: &Target, which: &ListKey) -> Result<Option<Arc<ListRecord>>, PullError> {
        if self.store.is_hot_list(&target.key, which) {
            return Ok(self.store.list(&target.key, which));
        }
        let (store, key, which) = (self.store.clone(), target.key.clone(), which.clone());
        blocking(move || Ok(store.list(&key, &which))).await
    }

    async fn ask_tags(&self, target: &Target, intake: &Intake) -> Result<(), PullError> {
        Ok(self.client(target)?.tags(&target.repository, intake).await?)
    }

    async fn ask_referrers(
        self: &Arc<Pull>,
        target: &Target,
        subject: &Digest,
        intake: &Intake,
    ) -> Result<(), PullError> {
        let client = self.client(target)?;
        match client.referrers(&target.repository, subject, intake).await? {
            Referrers::Listed => Ok(()),
            Referrers::Unsupported => self.referrers_by_tag(target, subject, intake).await,
        }
    }

    /// R-S21: registries without the API list referrers in an index under a tag made from the digest. No such
    /// tag: no referrers. Any failure but that is a failure: an empty list would say "unsigned" (R-C81).
    async fn referrers_by_tag(
        self: &Arc<Pull>,
        target: &Target,
        subject: &Digest,
        intake: &Intake,
    ) -> Result<(), PullError> {
        let tag = Reference::Tag(Tag::of_referrers(subject));
        // Lines may have come before the upstream turned out to list none.
        intake.restart();
        let answer = match self.manifest(target, &tag, Want::Body).await {
            Ok(answer) => answer,
            Err(PullError::Upstream(error)) if matches!(error.kind, crate::upstream::ErrorKind::NotFound { .. }) => {
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let upset = |what: String| PullError::Upset {
            upstream: target.upstream.name.to_string(),
            what,
        };
        // A list made of it would count as confirmed.
        if let Outcome::Stale { reason, .. } = answer.outcome {
            return Err(upset(format!("no confirmation of {tag} ({reason})")));
        }
        let index = answer.bytes.unwrap_or_default();
        let lines = blocking(move || {
            let mut items = Items::new("manifests", ItemKind::Documents).required();
            let mut lines = Vec::new();
            let read = items.feed(&index, &mut lines).and_then(|()| items.finish());
            Ok(read.map(|()| lines))
        });
        let lines = lines.await?;
        let lines = lines.map_err(|_| upset(format!("{tag} is not an index of referrers")))?;
        match intake.append(lines).await {
            true => Ok(()),
            false => Err(PullError::Busy),
        }
    }
}
