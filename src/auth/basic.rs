//! Passwords: an htpasswd file with bcrypt hashes (R-X22).
//!
//! The file is looked at again every few seconds when somebody logs in; one that cannot be used leaves the old one in
//! place. Passwords are hashed away from the async threads, in the order of `login_queue`. A pair of name and
//! password is remembered as a keyed hash: a right one as long as it is used, so that the many requests of a pull
//! cost one bcrypt and a regular user never waits; a wrong one for a few minutes, so that a client that repeats it
//! costs none. The hash covers the user's line of the file: what has changed there is not remembered. All wrong
//! logins cost the same work, whoever they are for.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use moka::policy::EvictionPolicy;
use ring::hmac;
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::watch;

use super::login_queue::{Client, Limits, Outcome};
use super::login_turns::{LoginTurns, Turn};
use crate::config::Secret;
use crate::text::is_visible;

/// How often the file is looked at, at most.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
const MAX_FILE_BYTES: u64 = 4 << 20;
const MAX_USERS: usize = 50_000;
/// bcrypt's work doubles with each: beyond this one login takes more than ten seconds.
const MAX_COST: u32 = 17;
/// Beyond this cost a login takes a second or more, and each wrong one as much: worth a warning.
const SLOW_COST: u32 = 13;
/// For the user who is not there, where no file tells another.
const USUAL_COST: u32 = 10;
/// How long a pair that was right is believed without bcrypt after its last use.
const RIGHT_FOR: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long a pair that was wrong is refused without bcrypt.
const WRONG_FOR: Duration = Duration::from_secs(300);
/// Pairs of either kind. One takes some 200 bytes.
const MAX_REMEMBERED: u64 = 10_000;

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
            if name.is_empty() || name.len() > 255 || !is_visible(name) {
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
    attempts: Arc<Attempts>,
}

/// A keyed hash of name, password and the user's bcrypt hash.
type Pair = [u8; 32];
/// A check that somebody else leads.
type Followed = watch::Receiver<Option<Login>>;

/// Remembered and waiting logins. Outlives a reload.
struct Attempts {
    right: moka::sync::Cache<Pair, ()>,
    wrong: moka::sync::Cache<Pair, ()>,
    key: hmac::Key,
    turns: Arc<LoginTurns>,
    /// Checks that wait or run: the same login of the same client joins them.
    running: Mutex<HashMap<(Client, Pair), Followed>>,
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
        if let Some(cost) = Some(loaded.users.cost).filter(|cost| *cost > SLOW_COST) {
            warn_of_cost(path, cost);
        }
        Ok(Htpasswd {
            path: path.to_owned(),
            look_again,
            loaded: Mutex::new(loaded),
            attempts: Arc::new(Attempts::new(key, Limits::for_cores(cores))),
        })
    }

    /// Goes on with the queues of the file before and with what is known of pairs: they cover the bcrypt hash, so one
    /// that has changed is not among them.
    #[must_use]
    pub fn remembering(self, before: &Htpasswd) -> Htpasswd {
        Htpasswd {
            attempts: before.attempts.clone(),
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
        hash.is_some_and(|hash| self.attempts.was_right(&self.attempts.pair(name, password, Some(hash))))
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

    /// Checks a login of `client`. May take seconds where many logins wait.
    pub async fn check(self: &Arc<Self>, name: &str, password: &str, client: Client) -> Login {
        let attempt = self.attempt(name, password).await;
        self.attempts.check(attempt, client).await
    }

    /// Checks a login that its client can do without, and never waits for others: `None` if it is not known and there
    /// is more to do. A wrong one is not held against the client.
    pub async fn check_if_idle(self: &Arc<Self>, name: &str, password: &str, client: Client) -> Option<Login> {
        let attempt = self.attempt(name, password).await;
        self.attempts.check_if_idle(attempt, client).await
    }

    /// Keeps the pace of refusals, before one is told.
    pub async fn pace_refusal(&self, client: Client) {
        self.attempts.turns.pace_refusal(client).await;
    }

    async fn attempt(self: &Arc<Self>, name: &str, password: &str) -> Attempt {
        let users = self.current().await;
        let hash = users.hashes.get(name).cloned();
        Attempt {
            pair: self.attempts.pair(name, password, hash.as_ref()),
            password: Secret::new(password),
            hash,
            cost: if users.cost == 0 { USUAL_COST } else { users.cost },
        }
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
                if users.cost > SLOW_COST && users.cost > loaded.users.cost {
                    warn_of_cost(&self.path, users.cost);
                }
                loaded.users = Arc::new(users);
            }
            Err(error) => {
                tracing::warn!(file = %self.path.display(), %error, "the changed password file is not used: the old one holds");
            }
        }
    }
}

/// A login, ready to be checked.
#[derive(Clone)]
struct Attempt {
    pair: Pair,
    password: Secret,
    /// `None`: there is no such user.
    hash: Option<Secret>,
    /// The highest of the file.
    cost: u32,
}

impl Attempt {
    /// Returns whether the password is right. A wrong one takes the work of one hash at the file's highest cost:
    /// neither an unknown user nor one with a cheaper hash shows in the time.
    fn verify(&self) -> bool {
        let salt = [7; 16];
        let Some(hash) = &self.hash else {
            let _ = bcrypt::hash_with_salt(self.password.reveal(), self.cost, salt);
            return false;
        };
        if bcrypt::verify(self.password.reveal(), hash.reveal()).unwrap_or(false) {
            return true;
        }
        // 2^c + 2^c + 2^(c+1) + … + 2^(C-1) = 2^C.
        for cost in cost_of(hash.reveal()).unwrap_or(self.cost)..self.cost {
            let _ = bcrypt::hash_with_salt(self.password.reveal(), cost, salt);
        }
        false
    }
}

impl Attempts {
    fn new(key: &[u8], limits: Limits) -> Attempts {
        let remembered = || {
            moka::sync::Cache::builder()
                .max_capacity(MAX_REMEMBERED)
                .eviction_policy(EvictionPolicy::lru())
        };
        Attempts {
            right: remembered().time_to_idle(RIGHT_FOR).build(),
            wrong: remembered().time_to_live(WRONG_FOR).build(),
            key: hmac::Key::new(hmac::HMAC_SHA256, key),
            turns: LoginTurns::new(limits),
            running: Mutex::default(),
        }
    }

    /// Lengths first: no two pairs are written the same. No hash: the user is not in the file.
    fn pair(&self, name: &str, password: &str, hash: Option<&Secret>) -> Pair {
        let mut context = hmac::Context::with_key(&self.key);
        for part in [name, password, hash.map_or("", |hash| hash.reveal())] {
            context.update(&(part.len() as u64).to_le_bytes());
            context.update(part.as_bytes());
        }
        let mut pair = [0; 32];
        pair.copy_from_slice(context.sign().as_ref());
        pair
    }

    /// Looks up a right pair, which counts as a use of it.
    fn was_right(&self, pair: &Pair) -> bool {
        self.right.get(pair).is_some()
    }

    fn remembered(&self, pair: &Pair) -> Option<Login> {
        if self.was_right(pair) {
            return Some(Login::Right);
        }
        self.wrong.contains_key(pair).then_some(Login::Wrong)
    }

    async fn check(self: &Arc<Self>, attempt: Attempt, client: Client) -> Login {
        let mut login = self.remembered(&attempt.pair);
        while login.is_none() {
            let key = (client, attempt.pair);
            let (lead, follow) = self.join(key);
            login = match (lead, follow) {
                (Some(lead), _) => {
                    let found = self.check_in_turn(&attempt, client).await;
                    lead.found.send_replace(Some(found));
                    Some(found)
                }
                // If the client that is followed goes away, its channel closes, and the next one leads.
                (None, mut follow) => follow.wait_for(Option::is_some).await.ok().and_then(|found| *found),
            };
        }
        login.unwrap_or(Login::Busy)
    }

    async fn check_if_idle(self: &Arc<Self>, attempt: Attempt, client: Client) -> Option<Login> {
        if let Some(login) = self.remembered(&attempt.pair) {
            return Some(login);
        }
        let turn = self.turns.take_if_idle(client)?;
        Some(self.hash_away(attempt, turn).await)
    }

    /// Either leads the check of this login or follows the one that runs.
    fn join(self: &Arc<Self>, key: (Client, Pair)) -> (Option<Lead>, Followed) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(follow) = running.get(&key).filter(|follow| follow.has_changed().is_ok()) {
            return (None, follow.clone());
        }
        let (found, follow) = watch::channel(None);
        running.insert(key, follow.clone());
        let lead = Lead {
            attempts: self.clone(),
            key,
            found,
        };
        (Some(lead), follow)
    }

    async fn check_in_turn(self: &Arc<Self>, attempt: &Attempt, client: Client) -> Login {
        let Some(turn) = self.turns.wait(client).await else {
            return Login::Busy;
        };
        // Another client may have brought this pair meanwhile.
        if let Some(login) = self.remembered(&attempt.pair) {
            return login;
        }
        self.hash_away(attempt.clone(), turn).await
    }

    async fn hash_away(self: &Arc<Self>, attempt: Attempt, turn: Turn) -> Login {
        let attempts = self.clone();
        let hashing = tokio::task::spawn_blocking(move || attempts.hash(&attempt, turn));
        hashing.await.unwrap_or(Login::Busy)
    }

    /// Blocking. Remembers what it finds, although the client may be gone.
    fn hash(&self, attempt: &Attempt, turn: Turn) -> Login {
        let before = thread_time();
        let is_right = attempt.verify();
        let cpu = thread_time().saturating_sub(before);
        if is_right {
            self.right.insert(attempt.pair, ());
            turn.finish(Outcome::Right, cpu);
            return Login::Right;
        }
        self.wrong.insert(attempt.pair, ());
        turn.finish(Outcome::Wrong, cpu);
        Login::Wrong
    }
}

/// The check that others follow.
struct Lead {
    attempts: Arc<Attempts>,
    key: (Client, Pair),
    found: watch::Sender<Option<Login>>,
}

impl Drop for Lead {
    fn drop(&mut self) {
        let mut running = self.attempts.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.remove(&self.key);
    }
}

/// Processor time of this thread.
fn thread_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

fn warn_of_cost(path: &Path, cost: u32) {
    tracing::warn!(
        file = %path.display(),
        cost,
        "a bcrypt hash has a high cost: each login that is not remembered takes seconds, and each wrong one as long, whoever it is for"
    );
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

/// The users of a file.
pub fn users(path: &Path) -> Result<BTreeSet<String>, HtpasswdError> {
    Ok(read(path)?.hashes.into_keys().collect())
}

/// Whether the file has such a user.
pub fn has_user(path: &Path, name: &str) -> Result<bool, HtpasswdError> {
    Ok(read(path)?.hashes.contains_key(name))
}

/// Errors: why a line of the file cannot begin with this name.
pub fn check_name(name: &str) -> Result<(), String> {
    match name.is_empty() || name.contains(':') || !is_visible(name) {
        true => Err("expected a user's name without colon".to_owned()),
        false => Ok(()),
    }
}

/// Errors: why this cannot be a password.
pub fn check_password(password: &str) -> Result<(), String> {
    if password.contains('\0') {
        return Err("found a NUL byte, which no password may have: is this a text file?".to_owned());
    }
    // bcrypt reads no further: a longer one would be let in by its beginning.
    match password.is_empty() || password.len() > 72 {
        true => Err(format!(
            "found {} bytes, expected a password of 1 to 72",
            password.len()
        )),
        false => Ok(()),
    }
}

/// A line for the file.
///
/// Errors: why there is none.
pub fn line(name: &str, password: &str) -> Result<String, String> {
    check_name(name)?;
    check_password(password)?;
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
