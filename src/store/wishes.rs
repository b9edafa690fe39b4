//! What was asked for and could not be had, because nobody may be asked: the wish list of a site that is offline; and when
//! it was filled last. In memory, and in [`Table::Meta`].
//!
//! A wish is noted in memory at once and written down by [`Store::flush_wishes`], every few seconds: nobody who is told
//! that something is not there waits for a disk.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Store;
use super::clock::unix_ms;
use super::database::{Database, Op, Table};
use super::error::StoreError;

/// Wishes that are kept; then the one that was wished for least recently goes.
pub const MOST_WISHES: usize = 10_000;
const PREFIX: &[u8] = b"wish\0";
const FILLED: &[u8] = b"filled";
/// Longer names are nobody's: of images, and of who asks.
const MAX_TEXT: usize = 600;

/// One image that was wished for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wish {
    /// `docker.io/library/alpine:3.22`
    pub image: String,
    /// Where it can be known.
    pub platform: Option<String>,
    /// Requests.
    pub count: u64,
    pub first: Timestamp,
    pub last: Timestamp,
    pub first_by: String,
    pub last_by: String,
}

/// As it is written down, under `image NUL platform`.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    count: u64,
    first_ms: u64,
    last_ms: u64,
    first_by: String,
    last_by: String,
}

type Key = (String, Option<String>);

#[derive(Default)]
pub(super) struct Wishes {
    known: HashMap<Key, Record>,
    /// Not written down yet.
    changed: HashSet<Key>,
    /// When the mirror was filled last, and by what.
    filled: Option<(u64, String)>,
}

pub(super) type Shared = Mutex<Wishes>;

/// Those of earlier runs.
pub(super) fn load(database: &Database) -> Result<Shared, StoreError> {
    let mut wishes = Wishes {
        filled: database
            .get(Table::Meta, FILLED)?
            .and_then(|value| serde_json::from_slice(&value).ok()),
        ..Wishes::default()
    };
    database.scan(Table::Meta, PREFIX, |key, value| {
        let text = std::str::from_utf8(&key[PREFIX.len()..]).ok();
        let parts = text.and_then(|text| text.split_once('\0'));
        if let (Some((image, platform)), Ok(record)) = (parts, serde_json::from_slice(value)) {
            let platform = Some(platform.to_owned()).filter(|platform| !platform.is_empty());
            wishes.known.insert((image.to_owned(), platform), record);
        }
        wishes.known.len() < MOST_WISHES
    })?;
    Ok(Mutex::new(wishes))
}

fn place((image, platform): &Key) -> Vec<u8> {
    [
        PREFIX,
        image.as_bytes(),
        b"\0",
        platform.as_deref().unwrap_or_default().as_bytes(),
    ]
    .concat()
}

impl Store {
    /// Notes that somebody wished for an image, whose name was checked. Memory only.
    pub fn wish(&self, image: &str, platform: Option<&str>, by: &str) {
        let fits = |text: &str| text.len() <= MAX_TEXT && !text.contains('\0');
        if !fits(image) || !fits(by) || !platform.is_none_or(fits) {
            return;
        }
        let (now, key) = (unix_ms(), (image.to_owned(), platform.map(str::to_owned)));
        let mut wishes = self.wish_list();
        let record = wishes.known.entry(key.clone()).or_insert_with(|| Record {
            count: 0,
            first_ms: now,
            last_ms: now,
            first_by: by.to_owned(),
            last_by: String::new(),
        });
        record.count = record.count.saturating_add(1);
        record.last_ms = now;
        by.clone_into(&mut record.last_by);
        wishes.changed.insert(key);
        // A tenth more before any goes: looking for the oldest takes a while.
        if wishes.known.len() > MOST_WISHES + MOST_WISHES / 10 {
            wishes.drop_oldest();
        }
    }

    /// Writes down what has been wished for since the last time. Returns at once.
    pub fn flush_wishes(&self) {
        let mut wishes = self.wish_list();
        if wishes.known.len() > MOST_WISHES {
            wishes.drop_oldest();
        }
        let changed: Vec<Key> = wishes.changed.drain().collect();
        if changed.is_empty() {
            return;
        }
        let op = |key: &Key| match wishes.known.get(key) {
            Some(record) => Some(Op::Put(Table::Meta, place(key), serde_json::to_vec(record).ok()?)),
            None => Some(Op::Delete(Table::Meta, place(key))),
        };
        let ops = changed.iter().filter_map(op).collect();
        self.inner.database.write(ops);
    }

    /// Everything that was wished for, the most wanted first.
    pub fn wishes(&self) -> Vec<Wish> {
        let wishes = self.wish_list();
        let mut all: Vec<Wish> = wishes.known.iter().map(|(key, record)| record.show(key)).collect();
        drop(wishes);
        all.sort_unstable_by(|a, b| {
            b.count
                .cmp(&a.count)
                .then_with(|| (&a.image, &a.platform).cmp(&(&b.image, &b.platform)))
        });
        all.truncate(MOST_WISHES);
        all
    }

    pub fn wish_count(&self) -> usize {
        self.wish_list().known.len().min(MOST_WISHES)
    }

    /// Forgets all wishes, and says how many there were. Blocking.
    pub fn clear_wishes(&self) -> usize {
        let ops = {
            let mut wishes = self.wish_list();
            wishes.changed.clear();
            let known = std::mem::take(&mut wishes.known);
            known
                .keys()
                .map(|key| Op::Delete(Table::Meta, place(key)))
                .collect::<Vec<_>>()
        };
        let count = ops.len();
        self.inner.database.write_durably(ops);
        count
    }

    /// These images have come: nobody need wish for them any more. Who misses a platform of theirs wishes anew.
    pub fn grant_wishes(&self, images: &HashSet<&str>) {
        let mut wishes = self.wish_list();
        let granted = |(image, _): &&Key| images.contains(image.as_str());
        let granted: Vec<Key> = wishes.known.keys().filter(granted).cloned().collect();
        for key in granted {
            wishes.known.remove(&key);
            // Written down as gone.
            wishes.changed.insert(key);
        }
    }

    /// Notes that the mirror was filled, and by what. Blocking: it is on disk when this returns.
    pub fn set_filled(&self, ms: u64, what: &str) {
        let value = serde_json::to_vec(&(ms, what)).unwrap_or_default();
        self.wish_list().filled = Some((ms, what.to_owned()));
        self.inner
            .database
            .write_durably(vec![Op::Put(Table::Meta, FILLED.to_vec(), value)]);
    }

    /// When the mirror was filled last, Unix milliseconds, and by what. `None`: never, by a bundle or a prefetch.
    pub fn filled(&self) -> Option<(u64, String)> {
        self.wish_list().filled.clone()
    }

    fn wish_list(&self) -> MutexGuard<'_, Wishes> {
        self.inner.wishes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wishes {
    /// Down to what is kept.
    fn drop_oldest(&mut self) {
        let excess = self.known.len().saturating_sub(MOST_WISHES);
        let mut ages: Vec<(u64, Key)> = self
            .known
            .iter()
            .map(|(key, record)| (record.last_ms, key.clone()))
            .collect();
        ages.sort_unstable();
        for (_, key) in ages.into_iter().take(excess) {
            self.known.remove(&key);
            self.changed.insert(key);
        }
    }
}

impl Record {
    fn show(&self, (image, platform): &Key) -> Wish {
        Wish {
            image: image.clone(),
            platform: platform.clone(),
            count: self.count,
            first: date(self.first_ms),
            last: date(self.last_ms),
            first_by: self.first_by.clone(),
            last_by: self.last_by.clone(),
        }
    }
}

/// In whole seconds.
fn date(ms: u64) -> Timestamp {
    let seconds = i64::try_from(ms / 1000).unwrap_or(i64::MAX);
    Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn store(folder: &std::path::Path) -> Store {
        let text = format!(
            "[cache]\npath = {:?}\nmin_free = \"0B\"\n",
            folder.display().to_string()
        );
        Store::open(&Config::from_toml(&text).unwrap()).unwrap()
    }

    #[test]
    fn what_has_come_is_wished_for_no_longer() {
        let folder = tempfile::tempdir().unwrap();
        let first = store(folder.path());
        first.wish("docker.io/library/x:1", None, "192.0.2.1");
        first.wish("docker.io/library/x:1", Some("linux/arm64"), "192.0.2.1");
        first.wish("docker.io/library/x:10", None, "192.0.2.1");
        first.flush_wishes();
        first.grant_wishes(&HashSet::from(["docker.io/library/x:1", "docker.io/library/y:1"]));
        let left = |store: &Store| store.wishes().into_iter().map(|wish| wish.image).collect::<Vec<_>>();
        assert_eq!(left(&first), ["docker.io/library/x:10"]);
        first.close();
        drop(first);
        assert_eq!(
            left(&store(folder.path())),
            ["docker.io/library/x:10"],
            "after a restart too"
        );
    }

    /// However much is asked for, the list stays bounded; those that were wished for last stay, also after a restart.
    #[test]
    fn the_list_is_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let first = store(folder.path());
        for n in 0..MOST_WISHES * 2 {
            first.wish(&format!("docker.io/library/x:{n}"), None, "192.0.2.1");
            if n % 1000 == 0 {
                first.flush_wishes();
            }
        }
        let last = format!("docker.io/library/x:{}", MOST_WISHES * 2 - 1);
        first.wish(&last, Some("linux/arm64"), "192.0.2.2");
        first.wish(&last, Some("linux/arm64"), "192.0.2.3");
        first.wish("with\0nul", None, "192.0.2.1");
        first.wish(&"x".repeat(1000), None, "192.0.2.1");
        assert!(first.wish_list().known.len() <= MOST_WISHES + MOST_WISHES / 10);
        first.set_filled(1_000, "bundle 1");
        first.close();
        drop(first);

        let second = store(folder.path());
        let wishes = second.wishes();
        assert_eq!(wishes.len(), MOST_WISHES);
        assert_eq!((wishes[0].image.as_str(), wishes[0].count), (last.as_str(), 2));
        assert_eq!(
            (wishes[0].first_by.as_str(), wishes[0].last_by.as_str()),
            ("192.0.2.2", "192.0.2.3")
        );
        assert!(wishes.iter().all(|wish| wish.image != "docker.io/library/x:0"));
        assert_eq!(second.filled(), Some((1_000, "bundle 1".to_owned())));
        let json = serde_json::to_value(&wishes[0]).unwrap();
        let keys: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys.len(), 7, "{json}");
        assert_eq!(second.clear_wishes(), MOST_WISHES);
        drop(second);
        assert_eq!(store(folder.path()).wishes(), []);
    }
}
