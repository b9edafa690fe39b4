//! Which repositories answered only to credentials (L8, R-X7). In memory, and in [`Table::Meta`].

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Store;
use super::database::{Database, Op, Table};
use super::error::StoreError;

pub(super) type Marks = Mutex<HashSet<Box<str>>>;

const PREFIX: &[u8] = b"private\0";

/// The marks of earlier runs.
pub(super) fn load(database: &Database) -> Result<Marks, StoreError> {
    let mut marks = HashSet::new();
    database.scan(Table::Meta, PREFIX, |key, _| {
        marks.extend(std::str::from_utf8(&key[PREFIX.len()..]).ok().map(Box::from));
        true
    })?;
    Ok(Mutex::new(marks))
}

impl Store {
    /// Notes whether credentials were behind a repository's last answer. Seen at once; on disk soon. Costs nothing
    /// when it is no news.
    pub fn set_private(&self, repository: &str, private: bool) {
        let mut marks = self.marks();
        if marks.contains(repository) == private {
            return;
        }
        let key = [PREFIX, repository.as_bytes()].concat();
        let op = if private {
            marks.insert(repository.into());
            Op::Put(Table::Meta, key, Vec::new())
        } else {
            marks.remove(repository);
            Op::Delete(Table::Meta, key)
        };
        // Queued before anybody can change it again.
        self.inner.database.write(vec![op]);
    }

    /// Whether credentials were behind a repository's last answer. `false` for one that never answered.
    pub fn is_private(&self, repository: &str) -> bool {
        self.marks().contains(repository)
    }

    fn marks(&self) -> MutexGuard<'_, HashSet<Box<str>>> {
        self.inner.private.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
