//! Tag lists and referrers: mutable, so they have a time, are asked for again, and served stale if that fails.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::blocking::blocking;
use super::error::PullError;
use super::freshness::{Freshness, judge, may_be_stale};
use super::manifest::Want;
use super::names::Target;
use super::outcome::Outcome;
use super::{Pull, Question, View};
use crate::oci::{Digest, Reference, Tag};
use crate::store::{ListKey, ListRecord, unix_ms};
use crate::upstream::Referrers;

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

impl Pull {
    /// Repositories of which something is held and from which whoever asks may pull, in byte order, after `last`. Others
    /// leave no trace: not in the pages' sizes, nor in whether there is another (L8, R-X7, R-X8).
    pub fn catalog(&self, view: &View, last: &str, limit: usize, may_pull: impl Fn(&Target) -> bool) -> Vec<Arc<str>> {
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
            let items: Vec<Value> = tags.await?.into_iter().map(Value::String).collect();
            if items.is_empty() {
                return Err(self.not_in_mirror(target));
            }
            let items = Arc::new(ListRecord {
                checked_ms: unix_ms(),
                items,
            });
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
            let overdue = may_be_stale(items.checked_ms, unix_ms(), ttl, target.upstream.stale_if_error)?;
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
                let asking = match &asked {
                    ListKey::Tags => pull.ask_tags(&to).await,
                    ListKey::Referrers(subject) => pull.ask_referrers(&to, subject).await,
                };
                pull.note_verdict(&to, asking.as_ref().err(), begun.elapsed());
                if asking.is_ok() {
                    pull.note_privacy(&to);
                }
                let record = ListRecord {
                    checked_ms: unix_ms(),
                    items: asking?,
                };
                let store = pull.store.clone();
                blocking(move || Ok(store.put_list(&to.key, &asked, record))).await
            });
        let joined = pending.joined;
        let fetched = |items| {
            let outcome = if joined { Outcome::Collapsed } else { Outcome::Stored };
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

    async fn ask_tags(&self, target: &Target) -> Result<Vec<Value>, PullError> {
        let mut tags = self.client(target)?.tags(&target.repository).await?;
        tags.sort_unstable();
        tags.dedup();
        Ok(tags.into_iter().map(Value::String).collect())
    }

    async fn ask_referrers(self: &Arc<Pull>, target: &Target, subject: &Digest) -> Result<Vec<Value>, PullError> {
        match self.client(target)?.referrers(&target.repository, subject).await? {
            Referrers::Listed(items) => Ok(items),
            Referrers::Unsupported => self.referrers_by_tag(target, subject).await,
        }
    }

    /// R-S21: registries without the API list referrers in an index under a tag made from the digest. No such
    /// tag: no referrers. Any failure but that is a failure: an empty list would say "unsigned" (R-C81).
    async fn referrers_by_tag(self: &Arc<Pull>, target: &Target, subject: &Digest) -> Result<Vec<Value>, PullError> {
        let tag = Reference::Tag(Tag::of_referrers(subject));
        let answer = match self.manifest(target, &tag, Want::Body).await {
            Ok(answer) => answer,
            Err(PullError::Upstream(error)) if matches!(error.kind, crate::upstream::ErrorKind::NotFound { .. }) => {
                return Ok(Vec::new());
            }
            Err(error) => return Err(error),
        };
        // A list made of it would count as confirmed.
        if let Outcome::Stale { reason, .. } = answer.outcome {
            return Err(PullError::Upset {
                upstream: target.upstream.name.to_string(),
                what: format!("no confirmation of {tag} ({reason})"),
            });
        }
        let index: Value = serde_json::from_slice(&answer.bytes.unwrap_or_default()).unwrap_or_default();
        match index.get("manifests") {
            Some(Value::Array(items)) => Ok(items.clone()),
            _ => Err(PullError::Upset {
                upstream: target.upstream.name.to_string(),
                what: format!("{tag} is not an index of referrers"),
            }),
        }
    }
}
