//! Where log lines go: standard error, as text for people or one JSON object per line for machines.
//!
//! A line may hold what a registry or a client wrote. Whatever it is, it stays one line of bounded length, in which
//! every character is shown as what it is (R-X15).

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use serde_json::Value;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::{Layer, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Registry, fmt, reload};

use crate::text;

/// Longest line, bytes.
const MAX_LINE: usize = 16 * 1024;

/// A log level that cannot be understood.
#[derive(Debug, thiserror::Error)]
#[error("log level {level:?}: {reason}; expected a level (`info`) or directives (`info,larder::pull=debug`)")]
pub struct BadLevel {
    pub level: String,
    reason: String,
}

/// The filter of this process's log, once that is set up.
static FILTER: OnceLock<reload::Handle<Targets, Registry>> = OnceLock::new();
/// As it was asked for last.
static LEVEL: Mutex<String> = Mutex::new(String::new());

/// Sends log lines of `level` (a level, or levels by target: `info,larder::pull=debug`) to standard error from here on.
///
/// The first call of a process wins. Later ones check their level and change nothing, so that tests that start
/// several proxies in one process work.
pub fn init(level: &str, json: bool) -> Result<(), BadLevel> {
    let filter = filter(level)?;
    let colours = !json && io::stderr().is_terminal();
    let form = match (json, colours) {
        (true, _) => Form::Json,
        (false, true) => Form::Coloured,
        (false, false) => Form::Plain,
    };
    let (filter, handle) = reload::Layer::new(filter);
    let lines = fmt::layer().with_writer(move || SafeLines(form)).with_ansi(colours);
    let lines = match json {
        true => lines.json().flatten_event(true).with_current_span(false).boxed(),
        false => lines.boxed(),
    };
    // An error here says only that a subscriber is set already.
    let is_first = tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .try_init()
        .is_ok();
    if is_first && FILTER.set(handle).is_ok() {
        level.clone_into(&mut current());
    }
    Ok(())
}

/// How a line is written.
#[derive(Clone, Copy)]
enum Form {
    Plain,
    /// With the escape sequences of colours.
    Coloured,
    Json,
}

/// Standard error, for whole lines.
struct SafeLines(Form);

impl Write for SafeLines {
    /// The subscriber hands over one line at a time.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        io::stderr().lock().write_all(safe(line, self.0).as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().lock().flush()
    }
}

/// One line of bounded length without hidden characters, with its line end.
fn safe(line: &[u8], form: Form) -> Cow<'_, str> {
    let text = String::from_utf8_lossy(line);
    let body = text.strip_suffix('\n').unwrap_or(&text);
    // Nearly every line.
    if body.len() <= MAX_LINE && body.bytes().all(|byte| matches!(byte, 0x20..0x7f)) {
        return text;
    }
    let safe = match form {
        Form::Json => text::json(&shortened_json(body)).replace('\n', ""),
        Form::Plain => text::cut(body, MAX_LINE),
        Form::Coloured => coloured(body),
    };
    Cow::Owned(safe + "\n")
}

/// The escape sequences that the subscriber writes stay, no others.
fn coloured(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    for (at, part) in line.split("\u{1b}[").enumerate() {
        if out.len() >= MAX_LINE {
            break;
        }
        let code = part.split_once('m').filter(|(code, _)| at > 0 && is_colour(code));
        let rest = match (at, code) {
            (0, _) => part,
            (_, Some((code, rest))) => {
                out += &format!("\u{1b}[{code}m");
                rest
            }
            (_, None) => {
                out += "\\u{1b}[";
                part
            }
        };
        out += &text::cut(rest, MAX_LINE.saturating_sub(out.len()));
    }
    out
}

/// Reset, bold, dim, italic and the colours of the levels: none of them hides text.
fn is_colour(code: &str) -> bool {
    matches!(code, "0" | "1" | "2" | "3" | "31" | "32" | "33" | "34" | "35" | "36")
}

/// A long JSON line, with shorter strings in it.
fn shortened_json(line: &str) -> Cow<'_, str> {
    if line.len() <= MAX_LINE {
        return Cow::Borrowed(line);
    }
    fn shorten(value: &mut Value) {
        match value {
            Value::String(string) => *string = text::message(string),
            Value::Array(list) => list.iter_mut().for_each(shorten),
            Value::Object(fields) => fields.values_mut().for_each(shorten),
            _ => {}
        }
    }
    let Ok(mut value) = serde_json::from_str::<Value>(line) else {
        return Cow::Owned(text::cut(line, MAX_LINE));
    };
    shorten(&mut value);
    Cow::Owned(value.to_string())
}

/// Whether [`set_level`] would take it.
pub fn check(level: &str) -> Result<(), BadLevel> {
    filter(level).map(|_| ())
}

/// From here on the log tells as much as this. Where no log was set up, as in tests, only the level is noted.
pub fn set_level(level: &str) -> Result<(), BadLevel> {
    let filter = filter(level)?;
    let mut current = current();
    if FILTER.get().is_none_or(|handle| handle.reload(filter).is_ok()) {
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

fn filter(level: &str) -> Result<Targets, BadLevel> {
    // Targets takes any single word for a target's name and would then log nothing at all: a typo in the level
    // must not make the proxy silent.
    let known = |word: &str| !word.is_empty() && word.parse::<LevelFilter>().is_ok();
    let directives: Vec<&str> = level.split(',').map(str::trim).collect();
    for directive in &directives {
        let bare_word = !directive.contains(['=', '[', ':']);
        if bare_word && !known(directive) {
            return Err(BadLevel {
                level: level.to_owned(),
                reason: format!("{directive:?} is no level"),
            });
        }
    }
    // A blank would be taken for a part of the target's name.
    directives.join(",").parse::<Targets>().map_err(|e| BadLevel {
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
    fn blanks_are_no_part_of_a_target() {
        use tracing::Level;
        let told = filter(" off ,  larder::pull=debug ").unwrap_or_else(|error| panic!("{error}"));
        assert!(!told.would_enable("larder::http", &Level::ERROR));
        let told = filter("off, larder::pull=debug").unwrap();
        assert!(told.would_enable("larder::pull::flight", &Level::DEBUG));
    }

    #[test]
    fn a_bad_directive_is_an_error_that_names_it() {
        for bad in ["", "loud", "info,chatty", "larder=verbose", "larder=[debug"] {
            let error = filter(bad).expect_err(bad).to_string();
            assert!(error.contains(&format!("{bad:?}")), "{error}");
        }
    }

    #[test]
    fn a_line_stays_one_line_and_short() {
        let safe = |line: &str, form| safe(line.as_bytes(), form).into_owned();
        for form in [Form::Plain, Form::Coloured, Form::Json] {
            assert_eq!(safe("INFO all is well\n", form), "INFO all is well\n");
        }
        let hostile = "a\u{202e}b\u{1b}[2J\u{1b}[8mc\nINFO forged\n";
        let written = "a\\u{202e}b\\u{1b}[2J\\u{1b}[8mc\\nINFO forged\n";
        assert_eq!(safe(hostile, Form::Plain), written);
        assert_eq!(safe(hostile, Form::Coloured), written);
        let colours = "\u{1b}[2m2026\u{1b}[0m \u{1b}[32m INFO\u{1b}[0m é\n";
        assert_eq!(safe(colours, Form::Coloured), colours);
        let json = "{\"message\":\"a\u{202e}b\u{85}\"}\n";
        assert_eq!(safe(json, Form::Json), "{\"message\":\"a\\u202eb\\u0085\"}\n");
        let long = "x".repeat(40 << 20);
        for form in [Form::Plain, Form::Coloured] {
            assert!(safe(&format!("{long}\n"), form).len() <= MAX_LINE + 4);
        }
        let line = safe(&format!("{{\"error\":\"{long}\",\"level\":\"WARN\"}}\n"), Form::Json);
        assert!(line.len() < 8192);
        let value: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["level"], "WARN");
    }

    #[test]
    fn a_second_call_is_harmless() {
        init("off", false).unwrap();
        init("off", true).unwrap();
        init("shout", true).unwrap_err();
    }
}
