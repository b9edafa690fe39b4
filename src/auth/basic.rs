//! Passwords: an htpasswd file with bcrypt hashes (R-X22).
//!
//! The file is looked at again every few seconds when somebody logs in; one that cannot be used leaves the old one in
//! place. A password is hashed away from the async threads, a few at a time; one that was right is remembered for a while
//! as a keyed hash, so that the many requests of a pull cost one bcrypt. An unknown user costs as much as a known one.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use ring::hmac;
use tokio::sync::Semaphore;

use crate::config::Secret;

/// How often the file is looked at, at most.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
const MAX_FILE_BYTES: u64 = 4 << 20;
const MAX_USERS: usize = 50_000;
/// bcrypt's work doubles with each: beyond this one login takes more than ten seconds.
const MAX_COST: u32 = 17;
/// For the user who is not there, where no file tells another.
const USUAL_COST: u32 = 10;
/// How long a pair that was right is believed without bcrypt.
const REMEMBERED: Duration = Duration::from_secs(300);
const MAX_REMEMBERED: u64 = 10_000;
/// Who waits to be hashed, at most.
const MAX_WAITING: usize = 256;

/// Why a password file cannot be used. Shows no hash.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HtpasswdError {
    #[error("{file}: {reason}")]
    File { file: String, reason: String },
    #[error("line {line}: {what}")]
    Line { line: usize, what: String },
    #[error("more than {MAX_USERS} users")]
    TooMany,
}

/// A parsed file.
#[derive(Debug, Default)]
pub struct Users {
    hashes: HashMap<String, Secret>,
    /// The highest cost of all: what the unknown user costs.
    cost: u32,
}

impl Users {
    /// `name:hash` lines; empty ones and comments are passed over.
    pub fn parse(text: &str) -> Result<Users, HtpasswdError> {
        let mut users = Users::default();
        for (at, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |what: String| HtpasswdError::Line { line: at + 1, what };
            let Some((name, hash)) = line.split_once(':') else {
                return Err(wrong("expected name:hash, found no colon".to_owned()));
            };
            if name.is_empty() || name.len() > 255 || name.chars().any(char::is_control) {
                return Err(wrong("expected a user's name before the colon".to_owned()));
            }
            let cost = cost_of(hash).map_err(|what| wrong(format!("user {name:?}: {what}")))?;
            users.cost = users.cost.max(cost);
            if users.hashes.insert(name.to_owned(), Secret::new(hash)).is_some() {
                return Err(wrong(format!("user {name:?} is there twice")));
            }
            if users.hashes.len() > MAX_USERS {
                return Err(HtpasswdError::TooMany);
            }
        }
        Ok(users)
    }
}

/// `$2y$10$` and 53 letters.
fn cost_of(hash: &str) -> Result<u32, String> {
    let kinds = ["$2a$", "$2b$", "$2y$"];
    let Some(rest) = kinds.iter().find_map(|kind| hash.strip_prefix(kind)) else {
        let kind = match hash {
            h if h.starts_with("$apr1$") => "an MD5 hash (apr1)",
            h if h.starts_with("{SHA}") => "a SHA-1 hash",
            h if h.starts_with("$5$") || h.starts_with("$6$") => "a crypt hash",
            _ => "something else",
        };
        return Err(format!(
            "found {kind}, expected bcrypt; htpasswd -B or larder auth hash makes it"
        ));
    };
    let letters = |text: &str| {
        text.len() == 53
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'.' || b == b'/')
    };
    match rest.split_once('$') {
        Some((cost, salted)) if cost.len() == 2 && letters(salted) => match cost.parse() {
            Ok(cost @ 4..=MAX_COST) => Ok(cost),
            Ok(cost) => Err(format!("found a bcrypt cost of {cost}, expected 4 to {MAX_COST}")),
            Err(_) => Err("the bcrypt hash has no cost".to_owned()),
        },
        _ => Err("the bcrypt hash is cut or broken".to_owned()),
    }
}

type Stamp = Option<(SystemTime, u64)>;

struct Loaded {
    users: Arc<Users>,
    stamp: Stamp,
    looked: Instant,
}

/// The password file, watched.
pub struct Htpasswd {
    path: PathBuf,
    look_again: Duration,
    loaded: Mutex<Loaded>,
    /// Keyed hashes of name, password and bcrypt hash, that were right.
    right: moka::sync::Cache<[u8; 32], ()>,
    key: hmac::Key,
    at_once: Semaphore,
    waiting: Semaphore,
}

/// What became of a login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Login {
    Right,
    Wrong,
    /// Too many are being looked at; try again.
    Busy,
}

impl Htpasswd {
    /// `key` is random, and nobody else's.
    pub fn load(path: &Path, key: &[u8]) -> Result<Htpasswd, HtpasswdError> {
        Htpasswd::load_with(path, key, LOOK_AGAIN)
    }

    pub fn load_with(path: &Path, key: &[u8], look_again: Duration) -> Result<Htpasswd, HtpasswdError> {
        // Before reading: a change in between is then seen as one.
        let stamp = stamp(path);
        let loaded = Loaded {
            users: Arc::new(read(path)?),
            stamp,
            looked: Instant::now(),
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Htpasswd {
            path: path.to_owned(),
            look_again,
            loaded: Mutex::new(loaded),
            right: moka::sync::Cache::builder()
                .max_capacity(MAX_REMEMBERED)
                .time_to_live(REMEMBERED)
                .build(),
            key: hmac::Key::new(hmac::HMAC_SHA256, key),
            at_once: Semaphore::new(cores.div_ceil(2)),
            waiting: Semaphore::new(MAX_WAITING),
        })
    }

    /// Goes on with what is known of pairs that were right: they hold the bcrypt hash, so one that has changed is not among them.
    #[must_use]
    pub fn remembering(self, before: &Htpasswd) -> Htpasswd {
        Htpasswd {
            right: before.right.clone(),
            key: before.key.clone(),
            ..self
        }
    }

    /// Without waiting: whether this pair was right a short while ago, and nothing has changed since.
    pub fn remembers(&self, name: &str, password: &str) -> bool {
        let loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if loaded.looked.elapsed() >= self.look_again {
            return false;
        }
        let users = loaded.users.clone();
        drop(loaded);
        let hash = users.hashes.get(name);
        hash.is_some_and(|hash| self.right.contains_key(&self.pair(name, password, hash)))
    }

    /// Whether there is such a user. Does not wait: a file that is due to be looked at again counts from the next time.
    pub fn has(self: &Arc<Self>, name: &str) -> bool {
        let (users, due) = {
            let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
            let due = loaded.looked.elapsed() >= self.look_again;
            if due {
                loaded.looked = Instant::now();
            }
            (loaded.users.clone(), due)
        };
        if due && let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let inner = self.clone();
            runtime.spawn_blocking(move || inner.look());
        }
        users.hashes.contains_key(name)
    }

    pub async fn check(self: &Arc<Self>, name: &str, password: &str) -> Login {
        let users = self.current().await;
        let known = users.hashes.get(name).cloned();
        let pair = known.as_ref().map(|hash| self.pair(name, password, hash));
        if pair.is_some_and(|pair| self.right.contains_key(&pair)) {
            return Login::Right;
        }
        let Ok(_waits) = self.waiting.try_acquire() else {
            return Login::Busy;
        };
        let Ok(_turn) = self.at_once.acquire().await else {
            return Login::Busy;
        };
        let (password, cost) = (Secret::new(password), users.cost);
        let hashing = tokio::task::spawn_blocking(move || match known {
            Some(hash) => bcrypt::verify(password.reveal(), hash.reveal()).unwrap_or(false),
            None => {
                let cost = if cost == 0 { USUAL_COST } else { cost };
                let _ = bcrypt::hash_with_salt(password.reveal(), cost, [7; 16]);
                false
            }
        });
        match (hashing.await, pair) {
            (Ok(true), Some(pair)) => {
                self.right.insert(pair, ());
                Login::Right
            }
            (Ok(_), _) => Login::Wrong,
            (Err(_), _) => Login::Busy,
        }
    }

    /// Lengths first: no two pairs are written the same.
    fn pair(&self, name: &str, password: &str, hash: &Secret) -> [u8; 32] {
        let mut context = hmac::Context::with_key(&self.key);
        for part in [name, password, hash.reveal()] {
            context.update(&(part.len() as u64).to_le_bytes());
            context.update(part.as_bytes());
        }
        let mut pair = [0; 32];
        pair.copy_from_slice(context.sign().as_ref());
        pair
    }

    async fn current(self: &Arc<Self>) -> Arc<Users> {
        let due = {
            let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
            let due = loaded.looked.elapsed() >= self.look_again;
            if due {
                loaded.looked = Instant::now();
            }
            due
        };
        if due {
            let inner = self.clone();
            let _ = tokio::task::spawn_blocking(move || inner.look()).await;
        }
        let loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        loaded.users.clone()
    }

    fn look(&self) {
        let now = stamp(&self.path);
        if self.loaded.lock().unwrap_or_else(PoisonError::into_inner).stamp == now {
            return;
        }
        let read = read(&self.path);
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        // Told once for each change.
        loaded.stamp = now;
        match read {
            Ok(users) => {
                tracing::info!(file = %self.path.display(), users = users.hashes.len(), "the password file was read again");
                loaded.users = Arc::new(users);
            }
            Err(error) => {
                tracing::warn!(file = %self.path.display(), %error, "the changed password file is not used: the old one holds");
            }
        }
    }
}

fn stamp(path: &Path) -> Stamp {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.modified().ok()?, meta.len()))
}

fn read(path: &Path) -> Result<Users, HtpasswdError> {
    use std::io::Read;
    let wrong = |reason: String| HtpasswdError::File {
        file: path.display().to_string(),
        reason,
    };
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|error| wrong(error.to_string()))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(wrong("it is larger than 4 MiB".to_owned()));
    }
    let text = String::from_utf8(bytes).map_err(|_| wrong("it is not UTF-8".to_owned()))?;
    Users::parse(&text).map_err(|error| wrong(error.to_string()))
}

/// Whether the file has such a user.
pub fn has_user(path: &Path, name: &str) -> Result<bool, HtpasswdError> {
    Ok(read(path)?.hashes.contains_key(name))
}

/// A line for the file.
///
/// Errors: why there is none.
pub fn line(name: &str, password: &str) -> Result<String, String> {
    if name.is_empty() || name.contains(':') || name.chars().any(char::is_control) {
        return Err("expected a user's name without colon".to_owned());
    }
    // bcrypt reads no further: a longer one would be let in by its beginning.
    if password.is_empty() || password.len() > 72 || password.contains('\0') {
        return Err(format!(
            "found {} bytes, expected a password of 1 to 72",
            password.len()
        ));
    }
    let hash = bcrypt::hash(password, USUAL_COST).map_err(|error| error.to_string())?;
    Ok(format!("{name}:{hash}"))
}

/// The pair in `Basic …` credentials; the first colon parts them. `None`: they cannot be read.
pub fn pair(encoded: &str) -> Option<(String, Secret)> {
    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::STANDARD.decode(encoded.trim()).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let (name, password) = text.split_once(':')?;
    Some((name.to_owned(), Secret::new(password)))
}

#[cfg(test)]
#[path = "basic_tests.rs"]
mod tests;
