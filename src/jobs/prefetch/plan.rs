//! What an image consists of: its manifest, those of the wanted platforms, their blobs, and what refers to them.
//!
//! ```text
//! reference → manifest → (an index) the platforms wanted, attestations about these → config and layers
//!                      → referrers of each, by the API or the tag that stands for it, and theirs
//!                      → cosign's tags: sha256-<hex>.sig, .att, .sbom
//! ```
//!
//! Manifests are fetched and kept on the way: they say how much there is. Blobs are not touched.

use std::collections::{BTreeMap, HashSet, VecDeque};

use super::job::{Job, Stop};
use crate::config::wanted::Platforms;
use crate::oci::manifest::{Descriptor, Manifest};
use crate::oci::{Digest, Platform, Reference, Tag};
use crate::pull::{ManifestAnswer, Outcome, PullError, Target, Want};

/// Manifests of one image at most: an index that names more is not one that anybody pulls.
const MOST_MANIFESTS: usize = 5_000;
/// Referrers of one manifest at most.
const MOST_REFERRERS: usize = 1_000;
/// Signatures of SBOMs of images are as far as it goes.
const MOST_REMOTE: u8 = 3;
const COSIGN: [&str; 3] = ["sig", "att", "sbom"];

/// Everything that one image needs.
#[derive(Debug, Default)]
pub struct Plan {
    pub root: Option<Digest>,
    pub manifests: Vec<Digest>,
    /// Of the manifests, those that refer to others.
    pub referrers: usize,
    /// Sizes as manifests claim them.
    pub blobs: BTreeMap<Digest, u64>,
    pub platforms: Vec<String>,
    pub notes: Vec<String>,
    /// What could not be found out. The rest is fetched all the same.
    pub problems: Vec<String>,
}

/// A manifest to look at.
struct Step {
    what: Reference,
    /// 0 for the image itself; what refers to it is one further away.
    remote: u8,
}

/// One image being looked at.
pub struct Planner<'a> {
    pub job: &'a Job,
    pub row: usize,
    pub target: &'a Target,
    pub platforms: &'a Platforms,
    /// Whether the operator named them: then what is missing is worth a word.
    pub explicit: bool,
    pub referrers: bool,
}

impl Planner<'_> {
    pub async fn plan(&self, reference: &Reference) -> Result<Plan, Stop> {
        let mut plan = Plan::default();
        let mut seen = HashSet::new();
        let mut queue = VecDeque::from([Step {
            what: reference.clone(),
            remote: 0,
        }]);
        while let Some(step) = queue.pop_front() {
            let is_root = plan.root.is_none();
            let answer = match self.manifest(&step).await {
                Ok(answer) => answer,
                Err(stop) if is_root => return Err(stop),
                Err(Stop::Failed(why)) => {
                    plan.problems.push(format!("{}: {why}", step.what));
                    continue;
                }
                Err(stop) => return Err(stop),
            };
            plan.root.get_or_insert(answer.digest);
            if !seen.insert(answer.digest) {
                continue;
            }
            plan.manifests.push(answer.digest);
            plan.referrers += usize::from(step.remote > 0);
            if plan.manifests.len() > MOST_MANIFESTS {
                return Err(Stop::Failed(format!(
                    "it consists of more than {MOST_MANIFESTS} manifests"
                )));
            }
            let manifest = self.parse(&answer)?;
            for child in self.children(&manifest, step.remote, &mut plan)? {
                queue.push_back(Step {
                    what: Reference::Digest(child),
                    remote: step.remote,
                });
            }
            for blob in manifest.descriptors.iter().filter(|d| !d.is_manifest) {
                plan.blobs.insert(blob.digest, blob.size.unwrap_or(0));
            }
            if self.referrers && step.remote < MOST_REMOTE {
                let found = self.companions(&answer.digest, step.remote, &mut plan).await?;
                queue.extend(found.into_iter().map(|what| Step {
                    what,
                    remote: step.remote + 1,
                }));
            }
        }
        Ok(plan)
    }

    async fn manifest(&self, step: &Step) -> Result<ManifestAnswer, Stop> {
        let (pull, target) = (self.job.pull(), self.target);
        self.job
            .ask(self.row, target, || async {
                let answer = match &step.what {
                    // Not what was true a while ago: a mirror is filled with what is there now.
                    Reference::Tag(tag) => match pull.refresh(target, tag).await {
                        // Where nobody is asked, what is cached is all there is.
                        Err(error) if error.is_offline() => pull.manifest(target, &step.what, Want::Body).await,
                        answer => answer,
                    },
                    digest => pull.manifest(target, digest, Want::Body).await,
                };
                answer.map_err(|error| error.about(&step.what))
            })
            .await
    }

    fn parse(&self, answer: &ManifestAnswer) -> Result<Manifest, Stop> {
        let bytes = answer.bytes.as_deref().unwrap_or_default();
        Manifest::parse(bytes, Some(&answer.media_type))
            .map_err(|error| Stop::Failed(format!("{}: {error}", answer.digest)))
    }

    /// The manifests of an index that are wanted; none of anything else.
    fn children(&self, manifest: &Manifest, remote: u8, plan: &mut Plan) -> Result<Vec<Digest>, Stop> {
        let entries: Vec<&Descriptor> = manifest.descriptors.iter().filter(|d| d.is_manifest).collect();
        if remote > 0 {
            return Ok(entries.iter().map(|entry| entry.digest).collect());
        }
        let mut chosen: Vec<Digest> = Vec::new();
        let mut found: Vec<&Platform> = Vec::new();
        for entry in &entries {
            match &entry.platform {
                Some(platform) => {
                    found.push(platform);
                    if self.platforms.take(platform) {
                        chosen.push(entry.digest);
                        plan.platforms.push(platform.to_string());
                    }
                }
                // An index of an index, or of things that are for every machine.
                None if entry.describes.is_none() => chosen.push(entry.digest),
                None => {}
            }
        }
        if chosen.is_empty() && !entries.is_empty() {
            let found: Vec<String> = found.iter().map(ToString::to_string).collect();
            return Err(Stop::Failed(format!(
                "there is nothing for {}: it is for {}",
                self.platforms.names().join(", "),
                found.join(", ")
            )));
        }
        if self.explicit && !found.is_empty() {
            self.note_missing(&found, plan);
        }
        if self.referrers {
            let about = |entry: &&&Descriptor| entry.describes.is_some_and(|subject| chosen.contains(&subject));
            let attestations: Vec<Digest> = entries.iter().filter(about).map(|entry| entry.digest).collect();
            plan.referrers += attestations.len();
            chosen.extend(attestations);
        }
        Ok(chosen)
    }

    fn note_missing(&self, found: &[&Platform], plan: &mut Plan) {
        let Platforms::Only(wanted) = self.platforms else {
            return;
        };
        let missing = wanted
            .iter()
            .filter(|wanted| !found.iter().any(|platform| wanted.takes(platform)));
        plan.notes
            .extend(missing.map(|platform| format!("there is nothing for {platform}")));
    }

    /// What refers to a manifest, as references of the same repository.
    async fn companions(&self, subject: &Digest, remote: u8, plan: &mut Plan) -> Result<Vec<Reference>, Stop> {
        let (pull, target) = (self.job.pull(), self.target);
        let listing = self.job.ask(self.row, target, || async {
            match pull.referrers(target, subject).await {
                // Offline: nobody can be asked what else there is.
                Err(error) if error.is_offline() => Ok(None),
                listing => listing.map(Some),
            }
        });
        let mut found: Vec<Reference> = match listing.await {
            Ok(None) => {
                let note = "offline: what refers to it, such as signatures, was not asked for";
                if !plan.notes.iter().any(|known| known == note) {
                    plan.notes.push(note.to_owned());
                }
                Vec::new()
            }
            Ok(Some(listing)) => {
                if let Outcome::Stale { reason, .. } = listing.outcome {
                    plan.problems
                        .push(format!("what refers to {subject} could not be confirmed ({reason})"));
                }
                match listing.text().await {
                    Ok(text) => text.lines().filter_map(digest_of).map(Reference::Digest).collect(),
                    Err(error) => {
                        plan.problems
                            .push(format!("what refers to {subject} could not be read: {error}"));
                        Vec::new()
                    }
                }
            }
            Err(Stop::Failed(why)) => {
                plan.problems
                    .push(format!("what refers to {subject} could not be listed: {why}"));
                Vec::new()
            }
            Err(stop) => return Err(stop),
        };
        if found.len() > MOST_REFERRERS {
            plan.problems.push(format!(
                "more than {MOST_REFERRERS} refer to {subject}: the others are left out"
            ));
            found.truncate(MOST_REFERRERS);
        }
        if remote == 0 {
            for kind in COSIGN {
                found.extend(self.cosign(subject, kind, plan).await?);
            }
        }
        Ok(found)
    }

    /// The tag that cosign writes beside an image, if it is there. Asked by HEAD, which costs nothing (R-U31).
    async fn cosign(&self, subject: &Digest, kind: &str, plan: &mut Plan) -> Result<Option<Reference>, Stop> {
        let Ok(tag) = format!("{}.{kind}", Tag::of_referrers(subject)).parse::<Tag>() else {
            return Ok(None);
        };
        let (pull, target, reference) = (self.job.pull(), self.target, Reference::Tag(tag));
        let asked = self.job.ask(self.row, target, || async {
            match pull.manifest(target, &reference, Want::Head).await {
                Ok(_) => Ok(true),
                Err(error) if error.is_definite() || error.is_offline() => Ok(false),
                Err(error) => Err::<bool, PullError>(error),
            }
        });
        match asked.await {
            Ok(true) => Ok(Some(reference)),
            Ok(false) => Ok(None),
            Err(Stop::Failed(why)) => {
                plan.problems.push(format!("{reference}: {why}"));
                Ok(None)
            }
            Err(stop) => Err(stop),
        }
    }
}

/// The digest of a descriptor, as JSON.
fn digest_of(descriptor: &str) -> Option<Digest> {
    let descriptor: serde_json::Value = serde_json::from_str(descriptor).ok()?;
    descriptor.get("digest")?.as_str()?.parse().ok()
}
