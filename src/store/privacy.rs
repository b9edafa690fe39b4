//! Which repositories answered to credentials, and whether they answer without (L8, R-X7).
//!
//! Credentials alone say little: many are there for the rate limit, and what they fetch is public. So a repository that
//! answered to them is marked, and beside the mark stands what it said when it was asked as nobody, and when. Marks are in
//! memory and in [`Table::Meta`]; what was learned of repositories that have none yet is in memory, for a while.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Store;
use super::database::{Database, Op, Table};
use super::error::StoreError;

const PREFIX: &[u8] = b"private\0";
/// Repositories without a mark of which something is known: clients may ask for any name.
const MAX_RECENT: u64 = 20_000;

/// What a repository said when it was asked without credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ToNobody {
    pub is_public: bool,
    /// When it said so.
    pub checked_ms: u64,
}

impl ToNobody {
    /// `+` or `-`, and the time in big endian.
    fn to_bytes(self) -> Vec<u8> {
        let sign: u8 = if self.is_public { b'+' } else { b'-' };
        [&[sign], self.checked_ms.to_be_bytes().as_slice()].concat()
    }

    /// `None` for a mark that says no more than that there were credentials, and for what cannot be read.
    fn of_bytes(bytes: &[u8]) -> Option<ToNobody> {
        let (sign, time) = bytes.split_first()?;
        Some(ToNobody {
            is_public: match sign {
                b'+' => true,
                b'-' => false,
                _ => return None,
            },
            checked_ms: u64::from_be_bytes(time.try_into().ok()?),
        })
    }
}

pub(super) struct Marks {
    marked: Mutex<HashMap<Box<str>, Option<ToNobody>>>,
    recent: moka::sync::Cache<Box<str>, ToNobody>,
}

/// The marks of earlier runs.
pub(super) fn load(database: &Database) -> Result<Marks, StoreError> {
    let mut marked = HashMap::new();
    database.scan(Table::Meta, PREFIX, |key, value| {
        if let Ok(name) = std::str::from_utf8(&key[PREFIX.len()..]) {
            marked.insert(name.into(), ToNobody::of_bytes(value));
        }
        true
    })?;
    Ok(Marks {
        marked: Mutex::new(marked),
        recent: moka::sync::Cache::new(MAX_RECENT),
    })
}

impl Store {
    /// Notes whether credentials were behind a repository's last answer. Seen at once; on disk soon. Costs nothing
    /// when it is no news.
    pub fn set_private(&self, repository: &str, with_credentials: bool) {
        let mut marked = self.marked();
        if marked.contains_key(repository) == with_credentials {
            return;
        }
        let op = if with_credentials {
            let shown = self.inner.private.recent.get(repository);
            marked.insert(repository.into(), shown);
            put(repository, shown)
        } else {
            marked.remove(repository);
            Op::Delete(Table::Meta, key(repository))
        };
        // Queued before anybody can change it again.
        self.inner.database.write(vec![op]);
    }

    /// Notes what a repository said when it was asked as nobody.
    pub fn note_shown(&self, repository: &str, shown: ToNobody) {
        self.inner.private.recent.insert(repository.into(), shown);
        let mut marked = self.marked();
        if let Some(mark) = marked.get_mut(repository) {
            *mark = Some(shown);
            self.inner.database.write(vec![put(repository, Some(shown))]);
        }
    }

    /// What it said then, if it was ever asked.
    pub fn shown_to_nobody(&self, repository: &str) -> Option<ToNobody> {
        let marked = self.marked().get(repository).copied().flatten();
        marked.or_else(|| self.inner.private.recent.get(repository))
    }

    /// Whether credentials were behind a repository's last answer. `false` for one that never answered.
    pub fn had_credentials(&self, repository: &str) -> bool {
        self.marked().contains_key(repository)
    }

    /// The same, but for those that were shown to be public.
    pub fn is_private(&self, repository: &str) -> bool {
        let marked = self.marked();
        let mark = marked.get(repository);
        mark.is_some_and(|shown| shown.is_none_or(|shown| !shown.is_public))
    }

    /// Returns whether any repository is private, as far as is known.
    pub fn has_private(&self) -> bool {
        let marked = self.marked();
        marked.values().any(|shown| shown.is_none_or(|shown| !shown.is_public))
    }

    fn marked(&self) -> MutexGuard<'_, HashMap<Box<str>, Option<ToNobody>>> {
        self.inner.private.marked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(repository: &str) -> Vec<u8> {
    [PREFIX, repository.as_bytes()].concat()
}

fn put(repository: &str, shown: Option<ToNobody>) -> Op {
    Op::Put(
        Table::Meta,
        key(repository),
        shown.map(ToNobody::to_bytes).unwrap_or_default(),
    )
}
