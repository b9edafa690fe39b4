//! What is wrong with a configuration, said so that the operator can put it right at once.
//!
//! Every [`Problem`] names its place (file and line, or variable), the key, what was found and what was
//! expected. A secret's value never enters a message (R-X17): [`super::keys`] says which keys are secret.

use std::fmt;

use super::AdminPart;

/// A key as the operator writes it, in parts: `["upstream", "docker.io", "url"]`.
pub type KeyPath = Vec<String>;

/// `cache.max_size`, `upstream."docker.io".url`: as TOML writes it.
pub fn show_key<S: AsRef<str>>(path: &[S]) -> String {
    let bare = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
    };
    let shown: Vec<String> = path
        .iter()
        .map(AsRef::as_ref)
        .map(|part| match bare(part) {
            true => part.to_owned(),
            false => format!("\"{}\"", part.escape_debug()),
        })
        .collect();
    shown.join(".")
}

/// A name as it may stand in a message: not longer than any that is right.
pub fn clip(name: &str) -> String {
    let mut shown: String = name.chars().take(200).collect();
    if shown.len() < name.len() {
        shown.push('…');
    }
    shown
}

/// Where a value was given. Orders as problems are shown: files by line, then variables, then options.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// The command line named it, before any file was read.
    CommandLine,
    /// As the operator named the file; counted from 1, `None` for the file as a whole.
    File {
        path: String,
        line: Option<usize>,
    },
    Variable(String),
    /// An option of the command line, with its dashes.
    Option(&'static str),
    /// Nobody gave it.
    Default,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::CommandLine => f.write_str("--config"),
            Place::File { path, line: Some(line) } => write!(f, "{path}:{line}"),
            Place::File { path, line: None } => f.write_str(path),
            Place::Variable(name) => f.write_str(&clip(name)),
            Place::Option(name) => f.write_str(name),
            Place::Default => f.write_str("default"),
        }
    }
}

/// One thing that is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub place: Place,
    /// Empty when it is not about one key.
    pub key: KeyPath,
    /// What was found and what was expected; a sentence without its full stop.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.key.is_empty() {
            true => write!(f, "{}: {}", self.place, self.message),
            false => {
                let key: Vec<String> = self.key.iter().map(|part| clip(part)).collect();
                write!(f, "{}: {}: {}", self.place, show_key(&key), self.message)
            }
        }
    }
}

/// Why a configuration was refused: every problem that was found, never none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    problems: Vec<Problem>,
    /// The settings of the admin API, as far as they could be read.
    admin: Option<Box<AdminPart>>,
}

impl ConfigError {
    pub(super) fn new(mut problems: Vec<Problem>) -> ConfigError {
        problems.sort_by(|a, b| a.place.cmp(&b.place));
        problems.dedup();
        ConfigError { problems, admin: None }
    }

    pub(super) fn with_admin(self, admin: AdminPart) -> ConfigError {
        ConfigError {
            admin: Some(Box::new(admin)),
            ..self
        }
    }

    pub(super) fn one(place: Place, message: impl Into<String>) -> ConfigError {
        ConfigError::new(vec![Problem {
            place,
            key: Vec::new(),
            message: message.into(),
        }])
    }

    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// The way to the admin API of a proxy that runs with this configuration, as far as it could be read. `None`: the
    /// file that somebody named is not there.
    pub fn admin(&self) -> Option<&AdminPart> {
        self.admin.as_deref()
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, problem) in self.problems.iter().enumerate() {
            let newline = if at > 0 { "\n" } else { "" };
            write!(f, "{newline}{problem}")?;
        }
        Ok(())
    }
}
