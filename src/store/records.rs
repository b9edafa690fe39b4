//! What the index writes down about tags, lists and blobs, and the clock it is dated by.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::index::Entry;
use crate::oci::Digest;

/// Milliseconds since 1970, by the wall clock: records outlive the process.
pub fn unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

/// What a tag points at, by its upstream's last answer (R-X11).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagRecord {
    pub digest: Digest,
    pub media_type: Arc<str>,
    /// Bytes of the manifest.
    pub size: u64,
    /// When the upstream last said so, Unix milliseconds.
    pub checked_ms: u64,
    /// Earlier targets, oldest first: what, and until when.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub moves: Vec<Move>,
}

/// A tag pointed there until then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    pub digest: Digest,
    pub until_ms: u64,
}

const MAX_MOVES: usize = 50;

impl TagRecord {
    /// This record as the successor of `earlier`: its history and, if the tag moved, one more entry.
    pub fn after(mut self, earlier: Option<&TagRecord>) -> TagRecord {
        if let Some(earlier) = earlier {
            self.moves = earlier.moves.clone();
            if earlier.digest != self.digest {
                self.moves.push(Move {
                    digest: earlier.digest,
                    until_ms: self.checked_ms,
                });
            }
            let excess = self.moves.len().saturating_sub(MAX_MOVES);
            self.moves.drain(..excess);
        }
        self
    }
}

/// A list that an upstream gave: tags, or the referrers of a digest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ListRecord {
    pub checked_ms: u64,
    pub items: Vec<serde_json::Value>,
}

impl ListRecord {
    /// About as many bytes as it takes in memory.
    pub(super) fn weight(&self) -> u32 {
        let bytes = self.items.iter().map(|item| match item {
            serde_json::Value::String(text) => text.len() + 64,
            // Maps cost several times their text.
            other => other.to_string().len() * 4,
        });
        u32::try_from(bytes.sum::<usize>() + 256).unwrap_or(u32::MAX)
    }
}

/// Which list of a repository.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ListKey {
    Tags,
    Referrers(Digest),
}

impl ListKey {
    pub(super) fn to_key(&self, repository: &str) -> Vec<u8> {
        let mut key = in_repository(repository);
        match self {
            ListKey::Tags => key.push(b't'),
            ListKey::Referrers(digest) => {
                key.push(b'r');
                key.extend_from_slice(&digest.to_key());
            }
        }
        key
    }
}

/// A blob as the index keeps it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct BlobRecord {
    pub(super) size: u64,
    pub(super) used_ms: u64,
    /// The upstream that brought it, as the first part of a repository's key.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) shelf: String,
    /// For manifests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) media_type: Option<Arc<str>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) children: Vec<Digest>,
}

impl BlobRecord {
    pub(super) fn of(entry: &Entry, repository: &str) -> BlobRecord {
        BlobRecord {
            size: entry.size,
            used_ms: entry.used_ms,
            shelf: repository.split('/').next().unwrap_or_default().to_owned(),
            media_type: entry.kind.media_type().cloned(),
            children: entry.kind.children().to_vec(),
        }
    }
}

/// The prefix of everything that belongs to a repository. NUL is in no name, so no name is another's prefix.
pub(super) fn in_repository(repository: &str) -> Vec<u8> {
    let mut key = repository.as_bytes().to_vec();
    key.push(0);
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moved_tag_remembers() {
        let record = |n: u8, at: u64| TagRecord {
            digest: Digest::sha256(&[n]),
            media_type: "x/y".into(),
            size: 1,
            checked_ms: at,
            moves: Vec::new(),
        };
        let first = record(1, 10);
        let same = record(1, 20).after(Some(&first));
        assert!(same.moves.is_empty());
        let moved = record(2, 30).after(Some(&same));
        assert_eq!(
            moved.moves,
            vec![Move {
                digest: Digest::sha256(&[1]),
                until_ms: 30
            }]
        );
    }
}
