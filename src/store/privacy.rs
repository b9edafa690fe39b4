//! Which repositories answered to credentials, and whether they answer without (L8, R-X7).
//!
//! Credentials alone say little: many are there for the rate limit, and what they fetch is public. So a repository that
//! answered to them is marked, and beside the mark stands what it said when it was asked as nobody, and when. Marks are in
//! memory and in [`Table::Meta`]; what was learned of repositories that have none yet is in memory, for a while.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Store;
use super::clock::now_by_clock_of;
use super::database::{Database, Op, Table};
use super::error::StoreError;

const PREFIX: &[u8] = b"private\0";
/// Repositories without a mark of which something is known: clients may ask for any name.
const MAX_RECENT: u64 = 20_000;

/// How long an answer to nobody is believed.
pub const PUBLIC_FOR: Duration = Duration::from_secs(24 * 3600);

/// What a repository said when it was asked without credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ToNobody {
    pub is_public: bool,
    /// When it said so.
    pub checked_ms: u64,
}

impl ToNobody {
    /// Returns whether it is public as far as that is still believed.
    fn is_public_now(self) -> bool {
        self.is_public && self.is_younger_than(PUBLIC_FOR)
    }

    /// Returns whether it said so less than `time` ago. An answer from the future, which a clock that was set back
    /// leaves, counts as old: it would be believed for as long as that.
    pub fn is_younger_than(self, time: Duration) -> bool {
        let age = now_by_clock_of(self.checked_ms).checked_sub(self.checked_ms);
        age.is_some_and(|age| Duration::from_millis(age) < time)
    }

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
    marked: Mutex<Marked>,
    recent: moka::sync::Cache<Box<str>, ToNobody>,
}

#[derive(Default)]
struct Marked {
    by_name: HashMap<Box<str>, Option<ToNobody>>,
    /// Marked by an import that is under way, and by nobody else so far.
    announced: HashSet<Box<str>>,
}

/// The marks of earlier runs.
pub(super) fn load(database: &Database) -> Result<Marks, StoreError> {
    let mut marked = Marked::default();
    database.scan(Table::Meta, PREFIX, |key, value| {
        if let Ok(name) = std::str::from_utf8(&key[PREFIX.len()..]) {
            marked.by_name.insert(name.into(), ToNobody::of_bytes(value));
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
        // Whoever announced it, it is an answer that says so now.
        marked.announced.remove(repository);
        self.mark(&mut marked, repository, with_credentials);
    }

    /// Marks private what a bundle is going to bring, before any of it comes; on disk when it returns. Returns those that
    /// had no mark: the import that is refused takes them back by [`Store::withdraw_private`]. Blocking.
    pub fn announce_private<'a>(&self, repositories: impl IntoIterator<Item = &'a str>) -> Vec<Box<str>> {
        let mut news: Vec<Box<str>> = Vec::new();
        let mut marked = self.marked();
        for repository in repositories {
            if self.mark(&mut marked, repository, true) {
                marked.announced.insert(repository.into());
                news.push(repository.into());
            }
        }
        drop(marked);
        if !news.is_empty() {
            self.settle();
        }
        news
    }

    /// Takes back the marks that an import announced and nobody has confirmed since: it brought nothing.
    pub fn withdraw_private(&self, announced: &[Box<str>]) {
        let mut marked = self.marked();
        for repository in announced {
            if marked.announced.remove(repository) {
                self.mark(&mut marked, repository, false);
            }
        }
    }

    /// Lets the marks stand that an import announced.
    pub fn confirm_private(&self, announced: &[Box<str>]) {
        let mut marked = self.marked();
        for repository in announced {
            marked.announced.remove(repository);
        }
    }

    /// Returns whether that was news.
    fn mark(&self, marked: &mut Marked, repository: &str, is_marked: bool) -> bool {
        if marked.by_name.contains_key(repository) == is_marked {
            return false;
        }
        let op = if is_marked {
            let shown = self.inner.private.recent.get(repository);
            marked.by_name.insert(repository.into(), shown);
            put(repository, shown)
        } else {
            marked.by_name.remove(repository);
            Op::Delete(Table::Meta, key(repository))
        };
        // Queued before anybody can change it again.
        self.inner.database.write(vec![op]);
        true
    }

    /// Notes what a repository said when it was asked as nobody.
    pub fn note_shown(&self, repository: &str, shown: ToNobody) {
        self.inner.private.recent.insert(repository.into(), shown);
        let mut marked = self.marked();
        if let Some(mark) = marked.by_name.get_mut(repository) {
            *mark = Some(shown);
            self.inner.database.write(vec![put(repository, Some(shown))]);
        }
    }

    /// What it said then, if it was ever asked.
    pub fn shown_to_nobody(&self, repository: &str) -> Option<ToNobody> {
        let marked = self.marked().by_name.get(repository).copied().flatten();
        marked.or_else(|| self.inner.private.recent.get(repository))
    }

    /// Whether credentials were behind a repository's last answer. `false` for one that never answered.
    pub fn had_credentials(&self, repository: &str) -> bool {
        self.marked().by_name.contains_key(repository)
    }

    /// The same, but for those that were shown to be public, not too long ago.
    pub fn is_private(&self, repository: &str) -> bool {
        let marked = self.marked();
        let mark = marked.by_name.get(repository);
        mark.is_some_and(|shown| shown.is_none_or(|shown| !shown.is_public_now()))
    }

    fn marked(&self) -> MutexGuard<'_, Marked> {
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
