//! Tags, which change by their upstream's will; `lists` has the other things that do. In memory when hot, and in the
//! database.
//!
//! What is news is on disk before it is seen; what only confirms is seen at once and on disk soon.

use std::sync::Arc;

use super::Store;
use super::database::{Op, Table};
use super::images::ImageName;
use super::records::{TagRecord, in_repository};

impl Store {
    /// A tag's record. From memory when hot; else one blocking read of the index.
    pub fn tag(&self, repository: &str, tag: &str) -> Option<Arc<TagRecord>> {
        let key = tag_key(repository, tag);
        if let Some(hot) = self.inner.tags.get(&key) {
            return hot;
        }
        let read = || self.read_record(Table::Tags, &key).map(Arc::new);
        upsert(&self.inner.tags, &key, |known| known.unwrap_or_else(read))
    }

    /// Notes what a tag points at. Seen at once; on disk soon: for what may be lost, such as that it was confirmed.
    pub fn put_tag(&self, repository: &str, tag: &str, record: TagRecord) -> Arc<TagRecord> {
        self.put_tag_if(repository, tag, record, false, || true)
    }

    /// The same for a tag that is new or has moved: on disk before anybody sees it, so that no crash takes it back
    /// (L6). Waits for nothing if it points where it did. Blocking. If the index fails it is seen all the same.
    pub fn put_tag_durably(&self, repository: &str, tag: &str, record: TagRecord) -> Arc<TagRecord> {
        self.put_tag_if(repository, tag, record, true, || true)
    }

    /// Notes a tag unless `is_newest` says that a newer answer has been noted, and returns the record in force. It is called while no
    /// other record of the tag can be noted. Blocking, as [`Store::put_tag_durably`].
    pub fn put_tag_if(
        &self,
        repository: &str,
        tag: &str,
        record: TagRecord,
        durably: bool,
        is_newest: impl FnOnce() -> bool,
    ) -> Arc<TagRecord> {
        let key = tag_key(repository, tag);
        let mut noted = None;
        upsert(&self.inner.tags, &key, |known| {
            let earlier = known.unwrap_or_else(|| self.read_record(Table::Tags, &key).map(Arc::new));
            if !is_newest() && earlier.is_some() {
                noted = earlier.clone();
                return earlier;
            }
            let is_news = earlier.as_ref().is_none_or(|e| e.digest != record.digest);
            let record = Arc::new(record.clone().after(earlier.as_deref()));
            let value = serde_json::to_vec(&*record).ok();
            let op = value.map(|value| Op::Put(Table::Tags, key.clone(), value));
            let written = self.write_with_pin(op, &ImageName::new(repository, tag), &record.digest);
            if durably && is_news {
                // Who asks meanwhile sees what was there before: nobody is served by a record that may yet be lost.
                let _ = written.recv();
            }
            noted = Some(record.clone());
            Some(record)
        });
        noted.unwrap_or_else(|| Arc::new(record))
    }

    /// Tags of a repository that have a record, in byte order.
    pub fn known_tags(&self, repository: &str) -> Vec<String> {
        self.inner.database.settle();
        let prefix = in_repository(repository);
        let mut tags = Vec::new();
        let scan = self.inner.database.scan(Table::Tags, &prefix, |key, _| {
            tags.push(String::from_utf8_lossy(&key[prefix.len()..]).into_owned());
            true
        });
        self.report(scan);
        tags
    }

    pub(super) fn read_record<T: serde::de::DeserializeOwned>(&self, table: Table, key: &[u8]) -> Option<T> {
        let bytes = match self.inner.database.get(table, key) {
            Ok(bytes) => bytes?,
            Err(error) => {
                tracing::error!(%error, "the index could not be read");
                // A damaged index has a copy, which may be older.
                self.inner.read_copy(table, key)?
            }
        };
        serde_json::from_slice(&bytes).ok()
    }
}

/// Reads or writes a record one after another for each key: whoever read the database before a record was noted
/// cannot put what it found in that record's place. `change` gets what is in memory, if anything is.
pub(super) fn upsert<T: Clone + Send + Sync + 'static>(
    cache: &moka::sync::Cache<Vec<u8>, Option<T>>,
    key: &[u8],
    change: impl FnOnce(Option<Option<T>>) -> Option<T>,
) -> Option<T> {
    cache
        .entry(key.to_vec())
        .and_upsert_with(|known| change(known.map(moka::Entry::into_value)))
        .into_value()
}

pub(super) fn tag_key(repository: &str, tag: &str) -> Vec<u8> {
    let mut key = in_repository(repository);
    key.extend_from_slice(tag.as_bytes());
    key
}
