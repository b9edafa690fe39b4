//! What can be told without waiting: held in memory, shown by the repository that is asked (L8), and by tag fresh.
//!
//! Whether the target is of the configuration that the request goes by is for who asks to know (`View::meant`).
//! `None` says only that it takes longer to find out: `manifest` and `blob` know.

use super::Pull;
use super::body::{Body, Source, Span};
use super::freshness::{Freshness, judge};
use super::manifest::{ManifestAnswer, Want};
use super::names::Target;
use super::outcome::Outcome;
use crate::oci::{Digest, Reference};
use crate::store::unix_ms;

impl Pull {
    /// A manifest by tag or digest, as [`Pull::manifest`] would tell it.
    pub fn hot_manifest(&self, target: &Target, reference: &Reference, want: Want) -> Option<ManifestAnswer> {
        match reference {
            Reference::Digest(digest) => self.hot_by_digest(target, digest, want),
            Reference::Tag(tag) => {
                let record = self.store.hot_tag(&target.key, tag.as_str())?;
                let offline = self.is_offline(target);
                if judge(Some(record.checked_ms), unix_ms(), target.upstream.tag_ttl, offline) != Freshness::Fresh {
                    return None;
                }
                // By what is held, not by the record, whose size and type are what a HEAD said.
                self.hot_by_digest(target, &record.digest, want)
            }
        }
    }

    fn hot_by_digest(&self, target: &Target, digest: &Digest, want: Want) -> Option<ManifestAnswer> {
        let (media_type, size, bytes) = match want {
            Want::Head => {
                let shown = self.store.shown(&target.key, digest)?;
                (shown.media_type?, shown.size, None)
            }
            Want::Body => {
                let held = self.store.hot_manifest(&target.key, digest)?;
                (held.media_type, held.bytes.len() as u64, Some(held.bytes))
            }
        };
        Some(ManifestAnswer {
            digest: *digest,
            media_type,
            size,
            bytes,
            outcome: Outcome::Hit,
        })
    }

    /// A blob of `size` bytes whose file is open still, as [`Pull::open_blob`] would give it.
    pub fn hot_blob_body(&self, target: &Target, digest: &Digest, size: u64) -> Option<Body> {
        self.hot_blob(target, digest).filter(|held| *held == size)?;
        let held = self.store.open_hot(digest).filter(|held| held.size == size)?;
        Some(Source::Held(held).body(*digest, 0, Some(size)))
    }

    /// A manifest that is in memory, as a file that the kernel can send.
    pub fn hot_manifest_file(&self, target: &Target, digest: &Digest) -> Option<Span> {
        let held = self.store.hot_manifest(&target.key, digest)?;
        Some(Span {
            file: held.file()?,
            at: 0,
            len: held.bytes.len() as u64,
            more: false,
        })
    }

    /// Bytes of a blob, as [`Pull::stat_blob`] would tell them.
    pub fn hot_blob(&self, target: &Target, digest: &Digest) -> Option<u64> {
        self.store.shown(&target.key, digest).map(|shown| shown.size)
    }
}
