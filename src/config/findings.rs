//! What is noticed while figures get their meaning, and the readers of single values that notice it.
//!
//! What is impossible is noted with its place and replaced by something harmless, so that the judging goes
//! on; `load` throws the result away when anything was noted.

use std::path::PathBuf;
use std::time::Duration;

use super::error::{KeyPath, Place, Problem};
use super::file::{Origins, quoted};
use super::paths::{self, Paths};
use super::raw::Figure;
use super::units::{self, parse_duration, parse_size};

const HOUR: Duration = Duration::from_secs(3600);
const FOREVER: Duration = Duration::from_secs(units::MAX_DAYS * 86_400);
/// Begins every warning of a file with a secret that others can read.
pub const OPEN_FILE: &str = "every user of this machine can read";
/// The shortest time that can be waited for something.
pub const MOMENT: Duration = Duration::from_millis(1);

/// What has been noticed so far.
pub struct Findings<'a> {
    pub origins: &'a Origins,
    pub paths: &'a Paths<'a>,
    pub problems: Vec<Problem>,
    pub warnings: Vec<String>,
}

impl Findings<'_> {
    /// Where `key` was given; for a key that is missing, where its table was.
    pub fn place(&self, key: &[&str]) -> Place {
        // `upstream` alone only says that some upstream was given.
        let shortest = if matches!(key.first(), Some(&("upstream" | "listener" | "webhook"))) {
            2
        } else {
            1
        };
        (shortest..=key.len())
            .rev()
            .find_map(|end| self.origins.get(&owned(&key[..end])))
            .cloned()
            .unwrap_or(Place::Default)
    }

    pub fn refuse(&mut self, key: &[&str], message: impl Into<String>) {
        self.problems.push(Problem {
            place: self.place(key),
            key: owned(key),
            message: message.into(),
        });
    }

    pub fn warn(&mut self, key: &[&str], message: impl Into<String>) {
        let problem = Problem {
            place: self.place(key),
            key: owned(key),
            message: message.into(),
        };
        self.warnings.push(problem.to_string());
    }

    /// A secret in the configuration file is as safe as that file (R-X17).
    pub fn warn_about_open_file(&mut self, key: &[&str], instead: &str) {
        if let Place::File { path, .. } = self.place(key)
            && self.paths.file_dir.is_some()
            && super::paths::readable_by_others(&self.paths.environment.cwd.join(&path))
        {
            let message = format!("{OPEN_FILE} {path}; chmod o-r or {instead} helps");
            self.warn(key, message);
        }
    }

    pub fn size(&mut self, key: &[&str], figure: &Figure, least: u64) -> u64 {
        let (bytes, shown) = match figure {
            Figure::Number(bytes) => (Some(*bytes), bytes.to_string()),
            Figure::Text(text) => (parse_size(text), quoted(text)),
        };
        match bytes {
            Some(bytes) if bytes >= least => return bytes,
            Some(_) => self.refuse(
                key,
                format!("found {shown}, expected at least {}", units::show_size(least)),
            ),
            None => self.refuse(key, format!("found {shown}, expected {}", units::SIZE)),
        }
        least
    }

    pub fn duration(&mut self, key: &[&str], figure: &Figure, (least, most): (Duration, Duration)) -> Duration {
        let (duration, shown) = match figure {
            Figure::Number(seconds) => (units::from_seconds(*seconds), seconds.to_string()),
            Figure::Text(text) => (parse_duration(text), quoted(text)),
        };
        match duration {
            Some(duration) if (least..=most).contains(&duration) => return duration,
            Some(_) => {
                let [least, most] = [least, most].map(units::show_duration);
                self.refuse(key, format!("found {shown}, expected something from {least} to {most}"));
            }
            None => self.refuse(key, format!("found {shown}, expected {}", units::DURATION)),
        }
        least
    }

    /// A time to wait for something on a connection.
    pub fn timeout(&mut self, key: &[&str], figure: &Figure) -> Duration {
        self.duration(key, figure, (MOMENT, HOUR))
    }

    /// An age or a term of trust.
    pub fn term(&mut self, key: &[&str], figure: &Figure) -> Duration {
        self.duration(key, figure, (Duration::ZERO, FOREVER))
    }

    /// From 1 to `most`; without a bound, a count could exceed what a semaphore takes.
    pub fn count(&mut self, key: &[&str], count: usize, most: usize) -> usize {
        if !(1..=most).contains(&count) {
            self.refuse(key, format!("found {count}, expected something from 1 to {most}"));
        }
        count
    }

    pub fn path(&mut self, key: &[&str], text: &str) -> PathBuf {
        match self.paths.resolve(text, &self.place(key)) {
            Ok(path) => path,
            Err(message) => {
                self.refuse(key, format!("found {}, {message}", quoted(text)));
                PathBuf::new()
            }
        }
    }

    /// A file that has to be there already.
    pub fn file(&mut self, key: &[&str], text: Option<&String>) -> Option<PathBuf> {
        let before = self.problems.len();
        let path = self.path(key, text?);
        if self.problems.len() == before
            && let Err(message) = paths::check_readable(&path)
        {
            self.refuse(key, message);
        }
        Some(path)
    }

    /// The same, with something in it that other users of the machine should not see (R-X17).
    pub fn secret_file(&mut self, key: &[&str], text: Option<&String>) -> Option<PathBuf> {
        let path = self.file(key, text)?;
        if paths::readable_by_others(&path) {
            let path = path.display();
            self.warn(key, format!("{OPEN_FILE} {path}; chmod o-r helps"));
        }
        Some(path)
    }
}

fn owned(key: &[&str]) -> KeyPath {
    key.iter().map(|part| (*part).to_owned()).collect()
}
