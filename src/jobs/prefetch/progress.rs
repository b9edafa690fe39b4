//! How far a job has come, as data: what the command line, the admin API and the metrics show.

use crate::oci::Digest;

/// What a job is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Running,
    /// Everything that was wanted is held; in a dry run: everything was found.
    Done,
    /// It has ended, and some of what was wanted is not held.
    Incomplete,
    Cancelled,
}

impl Phase {
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Running => "running",
            Phase::Done => "done",
            Phase::Incomplete => "incomplete",
            Phase::Cancelled => "cancelled",
        }
    }
}

/// Where one image stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ImageState {
    #[default]
    Waiting,
    /// Its upstream is asked what there is.
    Asking,
    /// A pattern: what it gave are images of their own.
    Listed,
    /// Known; in a dry run that is all.
    Planned,
    Fetching,
    /// All of it is here.
    Held,
    Failed,
}

impl ImageState {
    pub fn as_str(self) -> &'static str {
        match self {
            ImageState::Waiting => "waiting",
            ImageState::Asking => "asking",
            ImageState::Listed => "listed",
            ImageState::Planned => "planned",
            ImageState::Fetching => "fetching",
            ImageState::Held => "held",
            ImageState::Failed => "failed",
        }
    }
}

/// One image of a job.
#[derive(Clone, Debug, Default)]
pub struct Image {
    /// `docker.io/library/alpine:3.22`; as it was written where that means nothing.
    pub name: String,
    /// The line that asked for it.
    pub wanted: String,
    pub state: ImageState,
    pub digest: Option<Digest>,
    /// Of what is taken.
    pub platforms: Vec<String>,
    pub manifests: usize,
    /// Of these, signatures, SBOMs and attestations.
    pub referrers: usize,
    pub blobs: usize,
    /// Bytes of all blobs, as the manifests say.
    pub bytes: u64,
    /// Blobs that were not held when it was looked at, each counted for the first image that needs it.
    pub new_blobs: usize,
    pub new_bytes: u64,
    /// Of these, bytes that have come.
    pub fetched_bytes: u64,
    pub error: Option<String>,
    /// What a person should know, and is no failure.
    pub notes: Vec<String>,
    /// The job's version when it changed last.
    pub changed: u64,
}

/// A job as a whole.
#[derive(Clone, Debug)]
pub struct Progress {
    pub phase: Phase,
    pub started_ms: u64,
    pub finished_ms: Option<u64>,
    /// What is taken of images for several platforms, and who says so.
    pub platforms: Vec<String>,
    pub platforms_from: &'static str,
    /// Why it waits, while it does.
    pub waits: Option<String>,
    /// Grows with every change.
    pub version: u64,
    pub images: Vec<Image>,
}

/// Sums over the images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub images: usize,
    /// Of these, those that nothing more has to be asked of.
    pub planned: usize,
    pub held: usize,
    pub failed: usize,
    pub new_blobs: usize,
    pub bytes: u64,
    pub new_bytes: u64,
    pub fetched_bytes: u64,
}

impl Progress {
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for image in self.images.iter().filter(|image| image.state != ImageState::Listed) {
            use ImageState::{Failed, Fetching, Held, Planned};
            totals.images += 1;
            totals.planned += usize::from(matches!(image.state, Planned | Fetching | Held | Failed));
            totals.held += usize::from(image.state == Held);
            totals.failed += usize::from(image.state == Failed);
            totals.new_blobs += image.new_blobs;
            // Sizes are what manifests claim.
            totals.bytes = totals.bytes.saturating_add(image.bytes);
            totals.new_bytes = totals.new_bytes.saturating_add(image.new_bytes);
            totals.fetched_bytes = totals.fetched_bytes.saturating_add(image.fetched_bytes);
        }
        totals
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Manifests may claim any size: the sums stay large.
    #[test]
    fn totals_of_absurd_sizes() {
        let image = Image {
            state: ImageState::Planned,
            bytes: u64::MAX - 1,
            new_bytes: u64::MAX,
            fetched_bytes: 1 << 63,
            ..Image::default()
        };
        let progress = Progress {
            phase: Phase::Running,
            started_ms: 0,
            finished_ms: None,
            platforms: Vec::new(),
            platforms_from: "",
            waits: None,
            version: 0,
            images: vec![image; 3],
        };
        let totals = progress.totals();
        assert_eq!(
            (totals.bytes, totals.new_bytes, totals.fetched_bytes),
            (u64::MAX, u64::MAX, u64::MAX)
        );
    }
}
