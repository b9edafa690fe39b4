//! Bundles, as operators ask for them: which images, from whom, and what came of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::StreamExt as _;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::Sender;

use super::{Admin, AdminError, pattern};
use crate::bundle::import::{self, Options};
use crate::bundle::pipe::{self, Piece, PipeReader, PipeWriter};
use crate::bundle::plan::{Plan, Wanted};
use crate::bundle::receipt::{Known, Receipt};
use crate::bundle::report::{Outcome, Report};
use crate::bundle::select::{self, Selection};
use crate::bundle::sign::PublicKey;
use crate::bundle::{BundleError, Input, create};
use crate::oci::Reference;
use crate::oci::reference::without_transport;
use crate::pull::Probe;
use crate::store::{ImageName, Store, unix_ms};

/// How long a bundle waits for what upstreams say to nobody, and how many of them are asked at a time.
const ASKING_FOR: Duration = Duration::from_secs(30);
const ASKED_AT_ONCE: usize = 8;

/// What is to be in a bundle.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BundleOrder {
    /// As clients call them, or with `*` as `ls` takes them; none: everything that is held.
    pub images: Vec<String>,
    /// The text of a receipt or of an earlier bundle's catalogue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Leave out what is not held whole, in place of refusing.
    pub partial: bool,
    /// Bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_size: Option<u64>,
    /// In place of the newest date inside, Unix milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_ms: Option<u64>,
}

/// How to take one in.
#[derive(Clone, Debug, Default)]
pub struct ImportOrder {
    /// A public key that counts beside the configured ones.
    pub key: Option<String>,
    pub unsigned: bool,
    pub older: bool,
}

/// How slowly a bundle may come: one import runs at a time, so whoever sends nothing keeps everybody else waiting. Counted
/// is only the time that is spent waiting for the sender, never the time that this side takes.
#[derive(Clone, Copy, Debug)]
pub struct ImportPatience {
    /// Without a byte.
    pub silence: Duration,
    /// At least [`ImportPatience::least`] bytes in as long.
    pub within: Duration,
    pub least: u64,
}

impl Default for ImportPatience {
    /// A line of 8 kbit/s is fast enough.
    fn default() -> ImportPatience {
        ImportPatience {
            silence: Duration::from_secs(60),
            within: Duration::from_secs(60),
            least: 60 << 10,
        }
    }
}

impl ImportOrder {
    /// As parameters of a call.
    pub fn to_query(&self) -> Vec<(&'static str, String)> {
        let mut query = vec![
            ("unsigned", self.unsigned.to_string()),
            ("older", self.older.to_string()),
        ];
        query.extend(self.key.clone().map(|key| ("key", key)));
        query
    }
}

/// What a bundle would be.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PlanView {
    pub images: usize,
    pub blobs: usize,
    /// Of the blobs.
    pub bytes: u64,
    /// Of the archives, without signatures.
    pub archive_bytes: u64,
    pub volumes: u32,
    /// Needed, and not inside because the other side has it.
    pub saved_bytes: u64,
    /// Images of repositories that their upstream gives to credentials only.
    pub private_images: usize,
    /// Not held whole, and left out.
    pub left_out: Vec<String>,
}

/// A bundle that can be written.
pub struct Planned {
    store: Store,
    plan: Plan,
    left_out: Vec<String>,
}

impl Planned {
    pub fn view(&self) -> PlanView {
        let catalog = &self.plan.catalog;
        PlanView {
            images: catalog.images.len(),
            blobs: catalog.blobs.len(),
            bytes: catalog.bytes(),
            archive_bytes: self.plan.archive_bytes(),
            volumes: catalog.volumes,
            saved_bytes: catalog.since.as_ref().map_or(0, |since| since.saved_bytes),
            private_images: catalog.images.iter().filter(|image| image.private).count(),
            left_out: self.left_out.clone(),
        }
    }

    /// Writes it all. Blocking; whoever reads is told if it breaks off.
    pub fn write(self, sender: Sender<Piece>) {
        let mut sink = PipeWriter::new(sender);
        let outcome = create::write(&self.store, &self.plan, &mut sink);
        if let Err(error) = &outcome {
            tracing::warn!(%error, "a bundle broke off");
        }
        sink.finish(outcome.map_err(|error| std::io::Error::other(error.to_string())));
    }
}

/// The repository in `docker.io/library/alpine:3.22` or `…@sha256:…`.
fn repository_of(name: &str) -> &str {
    let name = name.split_once('@').map_or(name, |(name, _)| name);
    let slash = name.rfind('/').unwrap_or(0);
    match name[slash..].find(':') {
        Some(at) => &name[..slash + at],
        None => name,
    }
}

impl Admin {
    /// For an archive on its way in or out.
    pub fn pipe(&self) -> (Sender<Piece>, PipeReader) {
        pipe::pipe()
    }

    pub fn import_patience(&self) -> ImportPatience {
        self.patience
    }

    /// For a process whose senders are given other times.
    pub fn with_import_patience(self, patience: ImportPatience) -> Admin {
        Admin { patience, ..self }
    }

    /// Looks up what a bundle needs. Errors: an image is not held or not whole, there is nothing to send.
    pub async fn plan_bundle(&self, order: BundleOrder) -> Result<Planned, AdminError> {
        let names = self.bundle_names(&order.images).await?;
        self.work(|admin| admin.inner.pull.mark_certified()).await?;
        self.ask_as_nobody(&names).await;
        self.work(move |admin| {
            let known = order
                .since
                .as_deref()
                .map(|text| Known::parse(text.as_bytes()))
                .transpose()?;
            let mut selection: Selection = select::select(admin.store(), &names)?;
            let left_out = std::mem::take(&mut selection.incomplete);
            if !left_out.is_empty() && !order.partial {
                return Err(BundleError::Incomplete(left_out).into());
            }
            let wanted = Wanted {
                volume_size: order.volume_size,
                created_ms: order.created_ms,
            };
            Ok(Planned {
                store: admin.store().clone(),
                plan: Plan::new(admin.store(), selection, known.as_ref(), &wanted)?,
                left_out,
            })
        })
        .await?
    }

    /// Finds out whether repositories are public that answered to credentials and of which nobody knows it, or not any
    /// more: the mark travels with the bundle, and the other side may have nobody to ask. Without an answer they stay
    /// private.
    async fn ask_as_nobody(&self, names: &[ImageName]) {
        let store = self.store();
        let pull = &self.inner.pull;
        // A repository that was public a while ago may have been closed since.
        let was_public = |repository: &str| store.shown_to_nobody(repository).is_none_or(|shown| shown.is_public);
        let is_unknown = |repository: &str| store.is_private(repository) && was_public(repository);
        let unknown = names.iter().filter(|name| is_unknown(&name.repository));
        let unknown: BTreeMap<_, _> = unknown.map(|name| (&name.repository, name)).collect();
        let asking =
            futures_util::stream::iter(unknown.into_values()).for_each_concurrent(ASKED_AT_ONCE, |name| async {
                let target = pull.resolve(&name.repository, None).ok();
                let target = target.filter(|target| *target.key == *name.repository);
                if let (Some(target), Ok(reference)) = (target, name.reference.parse::<Reference>()) {
                    pull.needs_credentials(&target, &Probe::Manifest(reference)).await;
                }
            });
        let _ = tokio::time::timeout(ASKING_FOR, asking).await;
    }

    async fn bundle_names(&self, images: &[String]) -> Result<Vec<ImageName>, AdminError> {
        let patterns: Vec<String> = match images {
            [] => vec!["*".to_owned()],
            images => {
                let patterns = images.iter().filter(|image| image.contains('*'));
                patterns
                    .map(|pattern| without_transport(pattern).unwrap_or(pattern).to_owned())
                    .collect()
            }
        };
        let mut names = Vec::new();
        for image in images.iter().filter(|image| !image.contains('*')) {
            let wanted = self.wanted(image).await?;
            names.push(ImageName::new(&wanted.key, &wanted.reference()));
        }
        let fitting = self
            .work(move |admin| {
                let mut found = Vec::new();
                let all = admin.store().image_names();
                for pattern in &patterns {
                    let fits = all.iter().filter(|(name, _)| pattern::fits(pattern, &name.to_string()));
                    let before = found.len();
                    found.extend(fits.map(|(name, _)| name.clone()));
                    if found.len() == before {
                        return Err(BundleError::Nothing(format!("no cached image fits {pattern:?}")));
                    }
                }
                Ok(found)
            })
            .await??;
        names.extend(fitting);
        Ok(names)
    }

    /// Takes a bundle in. One at a time.
    pub async fn import_bundle(&self, input: Box<dyn Input>, order: &ImportOrder) -> Result<Report, AdminError> {
        let running = self
            .inner
            .importing
            .clone()
            .try_lock_owned()
            .map_err(|_| AdminError::Importing)?;
        let limits = self.inner.limits.load();
        let texts = limits.bundle_keys.iter().chain(&order.key);
        let keys = texts.map(|text| PublicKey::parse(text)).collect::<Result<_, _>>()?;
        let options = Options {
            keys,
            unsigned: order.unsigned,
            older: order.older,
            max_size: Some(limits.max_bytes),
            manifest_size: limits.manifest_size,
            manifest_descriptors: limits.manifest_descriptors,
        };
        let mut report = self
            .work(move |admin| {
                // An unsigned archive has to bring the bytes of content that is cached here and not public.
                admin.inner.pull.mark_certified();
                let outcome = import::import_stream(admin.store(), input, &options);
                if let Ok(report) = &outcome
                    && report.count(Outcome::Incomplete) < report.images.len()
                {
                    admin
                        .store()
                        .set_filled(unix_ms(), &format!("bundle {}", report.bundle));
                    let here = report.images.iter().filter(|row| row.outcome != Outcome::Incomplete);
                    admin.store().grant_wishes(&here.map(|row| row.name.as_str()).collect());
                }
                drop(running);
                outcome
            })
            .await??;
        report.unserved = self.unserved(&report);
        self.note_import(&report);
        Ok(report)
    }

    /// Repositories of an import that nobody can pull from with this configuration.
    fn unserved(&self, report: &Report) -> Vec<String> {
        let here = report.images.iter().filter(|row| row.outcome != Outcome::Incomplete);
        let repositories: BTreeSet<&str> = here.map(|row| repository_of(&row.name)).collect();
        let is_served = |repository: &str| {
            let target = self.inner.pull.resolve(repository, None);
            target.is_ok_and(|target| *target.key == *repository)
        };
        let unserved = repositories.into_iter().filter(|repository| !is_served(repository));
        unserved.map(str::to_owned).collect()
    }

    /// A bundle is in: the log says so.
    fn note_import(&self, report: &Report) {
        tracing::info!(
            bundle = report.bundle,
            signed_by = report.signed_by.as_deref().unwrap_or("nobody"),
            new = report.count(Outcome::New),
            moved = report.count(Outcome::Moved),
            incomplete = report.count(Outcome::Incomplete),
            bytes = report.new_bytes,
            "a bundle was imported"
        );
    }

    /// What this site has and wishes for.
    pub async fn receipt(&self, site: &str) -> Result<Receipt, AdminError> {
        let site = site.to_owned();
        self.work(move |admin| {
            let wishes = admin.store().wishes();
            let wishes = wishes
                .iter()
                .filter_map(|wish| serde_json::to_value(wish).ok())
                .collect();
            Receipt::of(admin.store(), &site, unix_ms(), wishes)
        })
        .await
    }
}
