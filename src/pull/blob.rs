//! Blobs: held and linked, else asked for.

use std::sync::Arc;

use super::blocking::blocking;
use super::body::Source;
use super::client_wait;
use super::error::PullError;
use super::flight::{Flight, Follower, Judged, Order, Place};
use super::names::Target;
use super::outcome::Outcome;
use super::proof::Proof;
use super::{Pull, Question};
use crate::oci::Digest;
use crate::telemetry::trace::{self, Kind, Span};
use crate::upstream::{BlobHead, Client, GetFallback, Probe};

/// Transfers of other repositories that may fail under a client before it is told.
const FOREIGN_FAILURES: u32 = 4;

/// By which method a client asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Asked {
    /// The upstream's word is the answer.
    Head,
    /// The upstream's answer to a GET is the verdict, whatever it says to HEAD (R-U27).
    Get,
}

/// How far a repository has shown that it has a blob.
enum Shown {
    Yes,
    No,
    /// It is there, as far as a HEAD has to say, of so many bytes; that is no proof. Never of a GET.
    Unproven(Option<u64>),
}

/// What a HEAD of a blob answers.
#[derive(Clone, Debug)]
pub struct BlobStat {
    /// Bytes, where the upstream tells them.
    pub size: Option<u64>,
    pub outcome: Outcome,
}

/// A blob whose response may begin.
pub struct OpenBlob {
    pub source: Source,
    /// Bytes; `None` while an upstream that does not announce them is still sending.
    pub total: Option<u64>,
    /// Bytes that a manifest of this repository claims: who asks has them from there, too.
    pub claimed: Option<u64>,
    pub outcome: Outcome,
}

/// The wait for a transfer's first bytes, told where it is somebody else's: what it does is in the trace of that request.
fn wait_span(follower: &Follower) -> Span {
    if !follower.joined {
        return Span::default();
    }
    let span = trace::start("wait for transfer", Kind::Internal);
    span.link(follower.trace());
    span
}

impl Pull {
    /// Size and existence. A blob that is not held, or not for this repository, is asked for by HEAD, and the answer is
    /// what its upstream says; nothing is fetched.
    pub async fn stat_blob(self: &Arc<Pull>, target: &Target, digest: &Digest) -> Result<BlobStat, PullError> {
        if let Some(size) = self.store.size(digest) {
            let known = |outcome| BlobStat {
                size: Some(size),
                outcome,
            };
            if self.store.linked(&target.key, digest) {
                return Ok(known(Outcome::Hit));
            }
            match self.link_held(target, digest, Asked::Head).await? {
                Shown::Yes => return Ok(known(Outcome::Revalidated)),
                Shown::Unproven(said) => return Ok(self.passed(target, digest, said)),
                Shown::No => {}
            }
        }
        let said = self.head_blob(target, digest, false).await?;
        Ok(self.passed(target, digest, said.size))
    }

    fn passed(&self, target: &Target, digest: &Digest, said: Option<u64>) -> BlobStat {
        BlobStat {
            size: said.or(self.hint(target, digest)),
            outcome: Outcome::Passed,
        }
    }

    /// Opens a blob for reading; returns when the status line may go out (R-D3).
    pub async fn open_blob(self: &Arc<Pull>, target: &Target, digest: &Digest) -> Result<OpenBlob, PullError> {
        let mut judged = Judged::default();
        loop {
            match self.open_held(target, digest, &mut judged).await {
                Ok(Some(held)) => return Ok(held),
                Ok(None) => {}
                // Held, and out of reach for the moment: what the upstream says of it is no reason to deny it (L3).
                Err(error) if error.is_unreadable() => {
                    return match self.fetch_blob(target, digest, &mut judged, true).await {
                        Ok(Some(passing)) => Ok(passing),
                        Ok(None) | Err(_) => Err(error),
                    };
                }
                Err(error) => return Err(error),
            }
            // `None`: its transfer ended just now.
            if let Some(coming) = self.fetch_blob(target, digest, &mut judged, false).await? {
                return Ok(coming);
            }
        }
    }

    /// `None` if it is not held, or not for this repository: then `judged` knows that.
    async fn open_held(
        self: &Arc<Pull>,
        target: &Target,
        digest: &Digest,
        judged: &mut Judged,
    ) -> Result<Option<OpenBlob>, PullError> {
        if self.store.size(digest).is_none() {
            return Ok(None);
        }
        let mut outcome = Outcome::Hit;
        if !self.store.linked(&target.key, digest) {
            judged.apart = !matches!(self.link_held(target, digest, Asked::Get).await?, Shown::Yes);
            if judged.apart {
                return Ok(None);
            }
            outcome = Outcome::Revalidated;
        }
        let held = match self.store.open_hot(digest) {
            Some(held) => Some(held),
            None => {
                let (store, wanted) = (self.store.clone(), *digest);
                blocking(move || store.open_blob(&wanted)).await?
            }
        };
        Ok(held.map(|held| OpenBlob {
            total: Some(held.size),
            claimed: None,
            source: Source::Held(held),
            outcome,
        }))
    }

    /// `None` if it is held by now. `is_held`: it is, and cannot be read; then its bytes are not kept.
    async fn fetch_blob(
        self: &Arc<Pull>,
        target: &Target,
        digest: &Digest,
        judged: &mut Judged,
        is_held: bool,
    ) -> Result<Option<OpenBlob>, PullError> {
        self.check_negative(target, &Question::Blob(*digest))?;
        let client = self.client(target)?;
        let mut foreign_failures = 0;
        loop {
            let order = Order {
                is_held,
                ..self.order(target, &client, digest)
            };
            let mut follower = match self.flights.join_or_begin(order, judged) {
                Place::Among(follower) => follower,
                Place::Held => return Ok(None),
                // Whoever joins a transfer that another repository began must hold the digest himself (L8).
                Place::Foreign(flight) => {
                    let may_follow = self.may_follow(target, &flight).await?;
                    judged.note(flight, may_follow);
                    continue;
                }
            };
            let wait = wait_span(&follower);
            let decided = match client_wait::bounded(follower.decided()).await {
                Ok(decided) => decided,
                // Bytes that come are waited for, but not another answer: after wrong bytes of a mirror the next
                // address is asked.
                Err(late) => match follower.decided_unless_asking().await {
                    Some(decided) => decided,
                    None => {
                        follower.promise();
                        self.hear_for(target, digest, &follower);
                        Err(late)
                    }
                },
            };
            if let Err(error) = &decided {
                wait.fail(error.as_str(), error);
            }
            drop(wait);
            match decided {
                Ok(state) => {
                    self.contradict_head(target, digest, state.total);
                    let outcome = match follower.joined {
                        true => Outcome::Collapsed,
                        false if state.window.is_some() => Outcome::Passed,
                        false => Outcome::Stored,
                    };
                    return Ok(Some(OpenBlob {
                        source: Source::Growing(follower),
                        total: state.total,
                        claimed: self.hint(target, digest),
                        outcome,
                    }));
                }
                Err(error) if error.is_late() => return Err(error),
                // Another repository's refusal, or its registry's trouble, says nothing about this one.
                Err(error) if follower.is_foreign_to(&target.key) => {
                    foreign_failures += 1;
                    if foreign_failures >= FOREIGN_FAILURES {
                        return Err(error);
                    }
                }
                Err(error) => {
                    self.note_negative(target, Question::Blob(*digest), &error);
                    return Err(error);
                }
            }
        }
    }

    /// A GET is answered: what a HEAD was refused holds no longer, also while the bytes are still coming.
    fn contradict_head(&self, target: &Target, digest: &Digest, size: Option<u64>) {
        let refused = (target.key.clone(), Question::BlobHead(*digest));
        if self.negatives.remove(&refused).is_some() {
            let said = BlobHead {
                size,
                by_get: true,
                proves_nothing: true,
            };
            self.heads_by_get.insert((target.scope(), *digest, false), said);
        }
    }

    /// Has what a transfer's upstream will say noted although the client that asked is told to come back: if it is "not
    /// there", whoever comes back would ask for it again, and again not wait long enough.
    fn hear_for(self: &Arc<Pull>, target: &Target, digest: &Digest, follower: &Follower) {
        if follower.is_foreign_to(&target.key) {
            return;
        }
        let Some(verdict) = follower.verdict_to_come() else {
            return;
        };
        let (pull, target, question) = (self.clone(), target.clone(), Question::Blob(*digest));
        tokio::spawn(async move {
            if let Some(error) = verdict.await {
                pull.note_negative(&target, question, &error);
            }
        });
    }

    fn order(&self, target: &Target, client: &Arc<Client>, digest: &Digest) -> Order {
        Order {
            client: client.clone(),
            repository: target.repository.clone(),
            key: target.key.clone(),
            digest: *digest,
            hint: self.hint(target, digest),
            is_held: false,
        }
    }

    /// Links a blob that is held for others to this repository too, if its upstream shows that it holds it (L8), by what
    /// counts as proof (L11). Otherwise it is not held, as for this repository.
    async fn link_held(self: &Arc<Pull>, target: &Target, digest: &Digest, asked: Asked) -> Result<Shown, PullError> {
        self.check_refused(target, digest, asked)?;
        self.client(target)?;
        let proof = self.proof_of_blob(target, digest).await;
        let shown = self.has_shown(target, digest, proof, asked).await?;
        if matches!(shown, Shown::Yes) {
            self.note_link(target, digest).await;
        }
        Ok(shown)
    }

    /// Fails with what is remembered. A GET's refusal answers a HEAD as well, but never a HEAD's a GET.
    fn check_refused(&self, target: &Target, digest: &Digest, asked: Asked) -> Result<(), PullError> {
        self.check_negative(target, &Question::Blob(*digest))?;
        match asked {
            Asked::Head => self.check_negative(target, &Question::BlobHead(*digest)),
            Asked::Get => Ok(()),
        }
    }

    /// Returns whether this repository may be given what a transfer brings, as it comes.
    async fn may_follow(self: &Arc<Pull>, target: &Target, flight: &Flight) -> Result<bool, PullError> {
        let began = [flight.repository().clone()];
        let proof = self.proof(target, &began, &Probe::Blob(flight.digest)).await;
        let shown = self.has_shown(target, &flight.digest, proof, Asked::Get).await?;
        Ok(matches!(shown, Shown::Yes))
    }

    /// Asks for the proof. Where that fails, it is the verdict on a HEAD, as of what is not cached; a GET may be answered all
    /// the same, and so it decides (R-U27).
    async fn has_shown(
        &self,
        target: &Target,
        digest: &Digest,
        proof: Proof,
        asked: Asked,
    ) -> Result<Shown, PullError> {
        let itself = match proof {
            Proof::Claim => false,
            Proof::Registry if self.client(target)?.has_mirrors() => {
                let asking = self.ask_blob(target, digest, Asked::Get, true);
                return Ok(match self.beside_mirrors(target, asking).await {
                    Some(said) if !said.proves_nothing => Shown::Yes,
                    _ => Shown::No,
                });
            }
            Proof::Registry => true,
            Proof::Bytes => return Ok(Shown::No),
        };
        match asked {
            Asked::Head => {
                let said = self.head_blob(target, digest, itself).await?;
                Ok(match said.proves_nothing {
                    true => Shown::Unproven(said.size),
                    false => Shown::Yes,
                })
            }
            Asked::Get => match self.ask_blob(target, digest, asked, itself).await {
                // A claim about what is public needs no more than that.
                Ok(said) if said.proves_nothing && itself => Ok(Shown::No),
                Ok(_) => Ok(Shown::Yes),
                // A transfer would be begun for somebody who does not wait for it.
                Err(error) if error.is_late() => Err(error),
                Err(_) => Ok(Shown::No),
            },
        }
    }

    /// As [`Pull::ask_blob`], and what it says is remembered: the answer to a client's HEAD, and to no GET.
    async fn head_blob(&self, target: &Target, digest: &Digest, itself: bool) -> Result<BlobHead, PullError> {
        self.check_refused(target, digest, Asked::Head)?;
        self.client(target)?;
        if let Some(said) = self.heads_by_get.get(&(target.scope(), *digest, itself)) {
            return Ok(said);
        }
        let asked = self.ask_blob(target, digest, Asked::Head, itself).await;
        asked.inspect_err(|error| self.note_negative(target, Question::BlobHead(*digest), error))
    }

    /// Asks this repository's upstream whether it holds the blob, and its size; `itself`: the registry, not one of its
    /// mirrors. One HEAD for all who ask. If that leaves doubt, a GET that is broken off after its headers decides for a
    /// client's HEAD. A client's GET decides by itself, unless there is no HEAD at all.
    async fn ask_blob(
        &self,
        target: &Target,
        digest: &Digest,
        asked: Asked,
        itself: bool,
    ) -> Result<BlobHead, PullError> {
        self.check_refused(target, digest, asked)?;
        let client = self.client(target)?;
        let (repository, wanted) = (target.repository.clone(), *digest);
        let fallback = match asked {
            Asked::Head => GetFallback::Doubtful,
            Asked::Get => GetFallback::Unsupported,
        };
        let (scope, by_get) = (target.scope(), self.heads_by_get.clone());
        let key = (scope.clone(), *digest, asked, itself);
        let mut pending = self.blob_heads.join(key, || async move {
            let said = match itself {
                true => client.confirm_blob(&repository, &wanted, fallback).await,
                false => client.head_blob(&repository, &wanted, fallback).await,
            };
            let said = said.map_err(PullError::from)?;
            // Many HEADs are not as many GETs.
            if said.by_get && asked == Asked::Head {
                by_get.insert((scope, wanted, itself), said.clone());
            }
            Ok(said)
        });
        let said = pending.wait().await?;
        self.note_privacy(target);
        Ok(said)
    }
}
