//! What an import did, for people and programs.

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The bundle's name: the digest of its catalogue.
    pub bundle: String,
    /// Unix milliseconds.
    pub created_ms: u64,
    /// The public key; `None` for a bundle that was taken without.
    pub signed_by: Option<String>,
    /// The receipt or catalogue that it builds upon.
    pub since: Option<String>,
    pub images: Vec<ImageRow>,
    pub new_blobs: usize,
    pub new_bytes: u64,
    /// Inside, and here before.
    pub held_blobs: usize,
    pub held_bytes: u64,
    /// Blobs whose bytes are not what their digest says.
    pub damaged: Vec<String>,
    pub volumes: u32,
    /// Of these, those that were not there.
    pub missing_volumes: Vec<u32>,
    /// Repositories that came and that no client can ask for: they have no upstream here, or its rules leave them out.
    #[serde(default)]
    pub unserved: Vec<String>,
    /// Inside an archive of another tool, and not taken.
    #[serde(default)]
    pub not_taken: Vec<NotTaken>,
}

/// An entry or a name of another tool's archive that is not taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotTaken {
    /// As the archive has it; `None` for an entry without one.
    pub name: Option<String>,
    /// The digest of its manifest.
    pub digest: String,
    /// `image`, `signature`, `attestation`, `sbom`, `referrer` or `other`.
    pub kind: String,
    pub reason: String,
    /// The options that take it, if any do.
    pub option: Option<String>,
}

/// `alpine, image sha256:0123456789ab: its name has no tag (--as docker.io/library/alpine:TAG takes it)`
impl std::fmt::Display for NotTaken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(name) = &self.name {
            write!(f, "{name}, ")?;
        }
        let digest = self.digest.get(..19).unwrap_or(&self.digest);
        write!(f, "{} {digest}: {}", self.kind, self.reason)?;
        match &self.option {
            Some(option) => write!(f, " ({option} takes it)"),
            None => Ok(()),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRow {
    pub name: String,
    pub digest: String,
    /// What the tag pointed at before.
    pub before: Option<String>,
    pub outcome: Outcome,
    /// What it needs and has not, or may not have.
    pub missing: Vec<String>,
}

/// What became of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    New,
    Moved,
    Unchanged,
    /// The tag was confirmed here later than the bundle says: it stays where it is.
    Older,
    /// Not shown: something is missing.
    Incomplete,
}

impl Outcome {
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::New => "new",
            Outcome::Moved => "moved",
            Outcome::Unchanged => "unchanged",
            Outcome::Older => "older",
            Outcome::Incomplete => "incomplete",
        }
    }
}

impl Report {
    /// Whether everything that was to come is here.
    pub fn is_whole(&self) -> bool {
        let all = self.images.iter().all(|row| row.outcome != Outcome::Incomplete);
        all && self.damaged.is_empty()
    }

    pub fn count(&self, outcome: Outcome) -> usize {
        self.images.iter().filter(|row| row.outcome == outcome).count()
    }
}
