//! Where log lines go: standard error, as text for people or one JSON object per line for machines.

use std::io::IsTerminal;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

/// A log level that cannot be understood.
#[derive(Debug, thiserror::Error)]
#[error("log level {level:?}: {reason}; expected a level (`info`) or directives (`info,larder::pull=debug`)")]
pub struct BadLevel {
    pub level: String,
    reason: String,
}

/// Takes another filter, for whoever formats the lines.
type Change = Box<dyn Fn(EnvFilter) -> bool + Send + Sync>;

/// The way to the filter of this process's log, once that is set up.
static CHANGE: OnceLock<Change> = OnceLock::new();
/// As it was asked for last.
static LEVEL: Mutex<String> = Mutex::new(String::new());

/// Sends log lines of `level` (an `EnvFilter` directive) to standard error from here on.
///
/// The first call of a process wins. Later ones check their level and change nothing, so that tests that start
/// several proxies in one process work.
pub fn init(level: &str, json: bool) -> Result<(), BadLevel> {
    let filter = filter(level)?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(!json && std::io::stderr().is_terminal());
    // An error here says only that a subscriber is set already.
    let (is_first, change): (bool, Change) = match json {
        true => {
            let lines = lines.json().flatten_event(true).with_current_span(false);
            let lines = lines.with_filter_reloading();
            let handle = lines.reload_handle();
            let is_first = lines.finish().try_init().is_ok();
            (is_first, Box::new(move |filter| handle.reload(filter).is_ok()))
        }
        false => {
            let lines = lines.with_filter_reloading();
            let handle = lines.reload_handle();
            let is_first = lines.finish().try_init().is_ok();
            (is_first, Box::new(move |filter| handle.reload(filter).is_ok()))
        }
    };
    if is_first && CHANGE.set(change).is_ok() {
        level.clone_into(&mut current());
    }
    Ok(())
}

/// Whether [`set_level`] would take it.
pub fn check(level: &str) -> Result<(), BadLevel> {
    filter(level).map(|_| ())
}

/// From here on the log tells as much as this. Where no log was set up, as in tests, only the level is noted.
pub fn set_level(level: &str) -> Result<(), BadLevel> {
    let filter = filter(level)?;
    let mut current = current();
    if CHANGE.get().is_none_or(|change| change(filter)) {
        level.clone_into(&mut current);
    }
    Ok(())
}

/// What was asked for last, here or at the start.
pub fn level() -> String {
    current().clone()
}

fn current() -> MutexGuard<'static, String> {
    LEVEL.lock().unwrap_or_else(PoisonError::into_inner)
}

fn filter(level: &str) -> Result<EnvFilter, BadLevel> {
    // EnvFilter takes any single word for a target's name and would then log nothing at all: a typo in the level
    // must not make the proxy silent.
    let known = |word: &str| !word.is_empty() && word.parse::<tracing_subscriber::filter::LevelFilter>().is_ok();
    for directive in level.split(',').map(str::trim) {
        let bare_word = !directive.contains(['=', '[', ':']);
        if bare_word && !known(directive) {
            return Err(BadLevel {
                level: level.to_owned(),
                reason: format!("{directive:?} is no level"),
            });
        }
    }
    EnvFilter::try_new(level).map_err(|e| BadLevel {
        level: level.to_owned(),
        reason: e.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_directives_are_understood() {
        for good in [
            "info",
            "WARN",
            "off",
            "info,larder::pull=debug",
            "larder::access=off, info",
        ] {
            assert!(filter(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn a_bad_directive_is_an_error_that_names_it() {
        for bad in ["", "loud", "info,chatty", "larder=verbose", "larder=[debug"] {
            let error = filter(bad).expect_err(bad).to_string();
            assert!(error.contains(&format!("{bad:?}")), "{error}");
        }
    }

    #[test]
    fn a_second_call_is_harmless() {
        init("off", false).unwrap();
        init("off", true).unwrap();
        init("shout", true).unwrap_err();
    }
}
