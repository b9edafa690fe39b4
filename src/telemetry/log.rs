//! Where log lines go: standard error, as text for people or one JSON object per line for machines.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

/// A log level that cannot be understood.
#[derive(Debug, thiserror::Error)]
#[error("log level {level:?}: {reason}; expected a level (`info`) or directives (`info,larder::pull=debug`)")]
pub struct BadLevel {
    pub level: String,
    reason: String,
}

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
    let _already = match json {
        true => lines
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .finish()
            .try_init(),
        false => lines.finish().try_init(),
    };
    Ok(())
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
