//! What changes by its upstream's will: tags, tag lists and lists of referrers. In memory when hot, and in the database.
//!
//! What is noted is seen at once and on disk soon; until then memory is the only place that has it.

use std::sync::Arc;

use super::Store;
use super::database::{Op, Table};
use super::records::{ListKey, ListRecord, TagRecord, in_repository};

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

    /// Notes what a tag points at. Seen at once; on disk soon.
    pub fn put_tag(&self, repository: &str, tag: &str, record: TagRecord) -> Arc<TagRecord> {
        let key = tag_key(repository, tag);
        let mut noted = None;
        upsert(&self.inner.tags, &key, |known| {
            let earlier = known.unwrap_or_else(|| self.read_record(Table::Tags, &key).map(Arc::new));
            let record = Arc::new(record.clone().after(earlier.as_deref()));
            self.put_record(Table::Tags, key.clone(), &*record);
            noted = Some(record.clone());
            Some(record)
        });
        self.move_pin(repository, tag, &record.digest);
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

    /// Whether [`Store::list`] would answer from memory.
    pub fn is_hot_list(&self, repository: &str, which: &ListKey) -> bool {
        self.inner.lists.contains_key(&which.to_key(repository))
    }

    /// A list as an upstream gave it. From memory when hot; else a blocking read of at most some 16 MiB.
    pub fn list(&self, repository: &str, which: &ListKey) -> Option<Arc<ListRecord>> {
        let key = which.to_key(repository);
        if let Some(hot) = self.inner.lists.get(&key) {
            return hot;
        }
        let read = || self.read_record(Table::Lists, &key).map(Arc::new);
        upsert(&self.inner.lists, &key, |known| known.unwrap_or_else(read))
    }

    /// Notes a list. Blocking for as long as it takes to write it out.
    pub fn put_list(&self, repository: &str, which: &ListKey, record: ListRecord) -> Arc<ListRecord> {
        let record = Arc::new(record);
        let key = which.to_key(repository);
        upsert(&self.inner.lists, &key, |_| {
            self.put_record(Table::Lists, key.clone(), &*record);
            Some(record.clone())
        });
        record
    }

    pub(super) fn read_record<T: serde::de::DeserializeOwned>(&self, table: Table, key: &[u8]) -> Option<T> {
        let bytes = match self.inner.database.get(table, key) {
            Ok(bytes) => bytes?,
            Err(error) => {
                tracing::error!(%error, "the index could not be read");
                return None;
            }
        };
        serde_json::from_slice(&bytes).ok()
    }

    pub(super) fn put_record<T: serde::Serialize>(&self, table: Table, key: Vec<u8>, record: &T) {
        if let Ok(value) = serde_json::to_vec(record) {
            self.inner.database.write(vec![Op::Put(table, key, value)]);
        }
    }
}

/// Reads or writes a record one after another for each key: whoever read the database before a record was noted
/// cannot put what it found in that record's place. `change` gets what is in memory, if anything is.
fn upsert<T: Clone + Send + Sync + 'static>(
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
