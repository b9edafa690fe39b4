//! What is written down between two runs: accounts, the certificate, and what failed.
//!
//! A file that cannot be read or understood is told of and counts as absent: an account is made again, a certificate ordered again.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::plan::Failure;
use crate::config::Acme;
use crate::store::{Paper, State, StoreError};

/// What a certificate is ordered by: another order makes another certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    pub directory: String,
    /// Sorted.
    pub names: Vec<String>,
    pub profile: Option<String>,
}

impl Wanted {
    pub fn of(acme: &Acme) -> Wanted {
        let mut names = acme.names.clone();
        names.sort();
        Wanted {
            directory: acme.directory.to_string(),
            names,
            profile: acme.profile.clone(),
        }
    }
}

// No Debug: the key is inside (R-X17).
#[derive(Serialize, Deserialize)]
pub struct Issue {
    pub wanted: Wanted,
    /// PEM, the own certificate first.
    pub chain: String,
    /// PEM.
    pub key: String,
    /// When it came, Unix milliseconds.
    pub came_ms: u64,
}

/// By directory.
pub type Accounts = BTreeMap<String, Account>;

// No Debug: the key is inside (R-X17).
#[derive(Serialize, Deserialize)]
pub struct Account {
    pub eab_kid: Option<String>,
    pub contact: Vec<String>,
    /// As the ACME library writes them.
    pub credentials: serde_json::Value,
}

/// Orders that failed, one after the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempts {
    pub wanted: Wanted,
    pub failure: Failure,
    /// That failed like this.
    pub in_a_row: u32,
    /// That were refused, since there was a certificate last: an authority counts them, whatever lies between.
    pub refusals: u32,
    pub why: String,
    /// Of the last one, Unix milliseconds.
    pub failed_ms: u64,
    /// Unix milliseconds.
    pub again_ms: u64,
}

impl Attempts {
    pub fn failed(&self) -> SystemTime {
        at_ms(self.failed_ms)
    }

    pub fn again(&self) -> SystemTime {
        at_ms(self.again_ms)
    }
}

/// Unix milliseconds.
pub fn unix_ms(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

pub fn at_ms(unix_ms: u64) -> SystemTime {
    // What a clock can say; more would overflow it.
    UNIX_EPOCH + Duration::from_millis(unix_ms.min(1 << 50))
}

/// Blocking. Errors: why what is there cannot be used.
pub fn read<T: DeserializeOwned>(state: &State, paper: Paper) -> Result<Option<T>, String> {
    let Some(bytes) = state.read(paper).map_err(|error| error.to_string())? else {
        return Ok(None);
    };
    // Its message would repeat what stands there.
    let read = serde_json::from_slice(&bytes)
        .map_err(|error| format!("{} is damaged at line {}", state.path(paper).display(), error.line()));
    read.map(Some)
}

/// Blocking.
pub fn write(state: &State, paper: Paper, value: &impl Serialize) -> Result<(), StoreError> {
    // Maps with texts as keys, numbers and texts: they always become JSON.
    let bytes = serde_json::to_vec_pretty(value).unwrap_or_default();
    state.write(paper, &bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let state = State::of(folder.path());
        assert_eq!(read::<Attempts>(&state, Paper::Attempts), Ok(None));
        let attempts = Attempts {
            wanted: Wanted {
                directory: "https://ca.example/directory".to_owned(),
                names: vec!["a.example".to_owned()],
                profile: None,
            },
            in_a_row: 3,
            failure: Failure::RateLimited,
            refusals: 1,
            why: "too many".to_owned(),
            failed_ms: 1,
            again_ms: 2,
        };
        write(&state, Paper::Attempts, &attempts).unwrap();
        assert_eq!(read(&state, Paper::Attempts), Ok(Some(attempts)));
    }

    #[test]
    fn damage_is_told_without_what_is_inside() {
        let folder = tempfile::tempdir().unwrap();
        let state = State::of(folder.path());
        state.write(Paper::Certificate, br#"{"wanted": "s3cret-key"}"#).unwrap();
        let why = read::<Issue>(&state, Paper::Certificate).err().unwrap();
        assert!(why.contains("certificate.json is damaged at line 1"), "{why}");
        assert!(!why.contains("s3cret"), "{why}");
    }
}
