//! Records of tags and blobs in the index, and the keys of lists.

use std::borrow::Cow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::database::{Op, Table};
use super::index::{Children, Index, Kind};
use crate::oci::Digest;

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

/// A blob as the database keeps it. Binary, as a million of them are read before the first hit:
///
/// ```text
/// 2                                the form
/// u64 size   u64 used_ms           little-endian, as all of it
/// u16 length, shelf                the upstream that brought it: a repository's key up to its first slash
/// u16 length, media type           empty for a blob that is no manifest
/// children                         of a manifest: their keys, one behind the other
/// ```
///
/// Earlier versions wrote JSON, which is read as well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BlobRecord<'a> {
    pub(super) size: u64,
    pub(super) used_ms: u64,
    pub(super) shelf: Cow<'a, str>,
    pub(super) kind: Kind,
}

const BINARY: u8 = 2;

impl<'a> BlobRecord<'a> {
    /// The record of what is held, if it is.
    pub(super) fn of(index: &'a Index, digest: &Digest) -> Option<BlobRecord<'a>> {
        let entry = index.get(digest)?;
        Some(BlobRecord {
            size: entry.size,
            used_ms: entry.used_ms,
            shelf: Cow::Borrowed(index.shelf_name(entry)),
            kind: entry.kind.clone(),
        })
    }

    /// The change that writes it down.
    pub(super) fn put(&self, digest: &Digest) -> Op {
        Op::Put(Table::Blobs, digest.to_key(), self.to_bytes())
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![BINARY];
        bytes.extend_from_slice(&self.size.to_le_bytes());
        bytes.extend_from_slice(&self.used_ms.to_le_bytes());
        let media_type = self.kind.media_type().map_or("", |media_type| media_type.as_ref());
        for text in [self.shelf.as_ref(), media_type] {
            // Names and media types are held to a fraction of this where they come in.
            let text = text.get(..usize::from(u16::MAX)).unwrap_or(text);
            bytes.extend_from_slice(&u16::try_from(text.len()).unwrap_or(0).to_le_bytes());
            bytes.extend_from_slice(text.as_bytes());
        }
        bytes.extend_from_slice(self.kind.children().keys());
        bytes
    }

    /// `None` for what is no record.
    pub(super) fn from_bytes(bytes: &'a [u8]) -> Option<BlobRecord<'a>> {
        if bytes.first() == Some(&b'{') {
            return from_json(bytes);
        }
        let rest = bytes.strip_prefix(&[BINARY])?;
        let (size, rest) = rest.split_first_chunk()?;
        let (used_ms, rest) = rest.split_first_chunk()?;
        let (shelf, rest) = split_text(rest)?;
        let (media_type, rest) = split_text(rest)?;
        let children = Children::from_keys(rest)?;
        Some(BlobRecord {
            size: u64::from_le_bytes(*size),
            used_ms: u64::from_le_bytes(*used_ms),
            shelf: Cow::Borrowed(shelf),
            kind: match media_type {
                "" => Kind::Blob,
                media_type => Kind::with_children(media_type.into(), children),
            },
        })
    }
}

fn split_text(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let (len, rest) = bytes.split_first_chunk()?;
    let (text, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*len)))?;
    Some((std::str::from_utf8(text).ok()?, rest))
}

/// As versions before 0.2 wrote it.
fn from_json(bytes: &[u8]) -> Option<BlobRecord<'static>> {
    #[derive(Deserialize)]
    struct Json {
        size: u64,
        used_ms: u64,
        #[serde(default)]
        shelf: String,
        #[serde(default)]
        media_type: Option<Arc<str>>,
        #[serde(default)]
        children: Vec<Digest>,
    }
    let json: Json = serde_json::from_slice(bytes).ok()?;
    Some(BlobRecord {
        size: json.size,
        used_ms: json.used_ms,
        shelf: Cow::Owned(json.shelf),
        // An empty media type is no manifest's: the binary form says so too.
        kind: match json.media_type.filter(|media_type| !media_type.is_empty()) {
            None => Kind::Blob,
            Some(media_type) => Kind::manifest(media_type, json.children),
        },
    })
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
    use proptest::prelude::*;

    fn kind() -> impl Strategy<Value = Kind> {
        let children = proptest::collection::vec((any::<bool>(), any::<[u8; 4]>()), 0..5);
        proptest::option::of(("[a-z/+.]{1,80}", children)).prop_map(|manifest| match manifest {
            None => Kind::Blob,
            Some((media_type, children)) => {
                let digest = |(long, seed): (bool, [u8; 4])| {
                    let algorithm = crate::oci::Algorithm::ALL[usize::from(long)];
                    Digest::of(algorithm, &seed)
                };
                let children: Vec<Digest> = children.into_iter().map(digest).collect();
                Kind::manifest(media_type.into(), children)
            }
        })
    }

    proptest! {
        #[test]
        fn blob_records_come_back(size: u64, used_ms: u64, shelf in "[a-z.:0-9]{0,60}", kind in kind()) {
            let record = BlobRecord { size, used_ms, shelf: shelf.into(), kind };
            let bytes = record.to_bytes();
            prop_assert_eq!(BlobRecord::from_bytes(&bytes), Some(record.clone()));
            // A piece of one is another one at most where its children end.
            for end in 0..bytes.len() {
                if let Some(shorter) = BlobRecord::from_bytes(&bytes[..end]) {
                    prop_assert!(shorter.kind.children().keys().len() < record.kind.children().keys().len());
                }
            }
        }

        #[test]
        fn any_bytes_are_a_record_or_not(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = BlobRecord::from_bytes(&bytes);
        }
    }

    #[test]
    fn what_the_first_version_wrote_is_read() {
        let child = Digest::sha256(b"c");
        let json = format!(r#"{{"size":7,"used_ms":9,"shelf":"docker.io","media_type":"x/y","children":["{child}"]}}"#);
        let record = BlobRecord::from_bytes(json.as_bytes()).unwrap();
        assert_eq!((record.size, record.used_ms, &*record.shelf), (7, 9, "docker.io"));
        assert_eq!(record.kind, Kind::manifest("x/y".into(), [child]));
        let json = br#"{"size":1,"used_ms":2}"#;
        assert_eq!(BlobRecord::from_bytes(json).unwrap().kind, Kind::Blob);
        let json = br#"{"size":1,"used_ms":2,"media_type":""}"#;
        let record = BlobRecord::from_bytes(json).unwrap();
        assert_eq!(
            BlobRecord::from_bytes(&record.to_bytes()),
            Some(record),
            "both forms mean the same"
        );
    }

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
