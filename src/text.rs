//! Text that comes from outside, made fit to be shown: short enough, and without characters that hide or reorder
//! others.
//!
//! Names, messages and documents of registries, clients and bundles end in errors, logs, answers and tables. A
//! control character there moves a terminal's cursor or forges a log line, and a bidirectional override (U+202E) or
//! an invisible character makes text look like other text (R-X15). This is the one place that knows which characters
//! those are. Every exit uses it: `http::error` for answers, `telemetry::log` for log lines, `cli` for terminals.
//! Where such text enters an error, [`excerpt`] keeps it short.

use std::fmt::{self, Write as _};
use std::io;

use rustix::io::Errno;

/// Longest piece of foreign text in an error, characters.
pub const EXCERPT: usize = 300;
/// Longest error as a client sees it.
pub const MESSAGE: usize = 2000;
/// Longest message for an operator, who may have a whole list of mistakes to correct.
pub const REPORT: usize = 64 * 1024;

/// Returns whether a character cannot be seen, or changes how others are seen: control characters (C0, DEL, C1), line
/// and paragraph separators, bidirectional controls, zero-width and other characters that Unicode lets programs
/// ignore, tags.
pub fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}'
            // Zero width, marks and joiners; separators and overrides; invisible operators and isolates.
            | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}'
            | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

/// Returns whether all of a text is shown as it is. Names that stand for a person or a machine have to be such.
pub fn is_visible(text: &str) -> bool {
    !text.chars().any(is_hidden)
}

/// `text` with hidden characters written out (`\n`, `\u{202e}`).
pub fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    text.chars().for_each(|c| push(&mut out, c));
    out
}

/// At most `limit` characters of `text`, then `…` if there were more; hidden characters are written out.
pub fn cut(text: &str, limit: usize) -> String {
    let mut out = String::with_capacity(text.len().min(limit));
    let mut chars = text.chars();
    chars.by_ref().take(limit).for_each(|c| push(&mut out, c));
    if chars.next().is_some() {
        out.push('…');
    }
    out
}

/// `1 image`, `2 images`, `2 wishes`.
pub fn count(n: impl TryInto<u64>, what: &str) -> String {
    let n = n.try_into().unwrap_or(u64::MAX);
    let hisses = ["s", "x", "ch", "sh"].iter().any(|end| what.ends_with(end));
    match (n, hisses) {
        (1, _) => format!("{n} {what}"),
        (_, true) => format!("{n} {what}es"),
        (_, false) => format!("{n} {what}s"),
    }
}

/// Displays `value` as [`cut`] at [`EXCERPT`] does: for errors that repeat what they found.
pub fn excerpt(value: &(impl fmt::Display + ?Sized)) -> String {
    cut_display(value, EXCERPT)
}

/// Displays `value` as [`cut`] at [`MESSAGE`] does: for whole sentences with foreign text in them.
pub fn message(value: &(impl fmt::Display + ?Sized)) -> String {
    cut_display(value, MESSAGE)
}

fn cut_display(value: &(impl fmt::Display + ?Sized), limit: usize) -> String {
    let mut cut = Cut {
        out: String::new(),
        left: limit,
    };
    // An error says only that it was cut.
    if write!(cut, "{value}").is_err() {
        cut.out.push('…');
    }
    cut.out
}

/// Takes so many characters and no more.
struct Cut {
    out: String,
    left: usize,
}

impl fmt::Write for Cut {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            self.left = self.left.checked_sub(1).ok_or(fmt::Error)?;
            push(&mut self.out, c);
        }
        Ok(())
    }
}

fn push(out: &mut String, c: char) {
    match is_hidden(c) {
        true => out.extend(c.escape_default()),
        false => out.push(c),
    }
}

/// At most `limit` characters in one line, then `…`; a blank for each hidden one. For sentences that somebody else
/// wrote.
pub fn one_line(text: &str, limit: usize) -> String {
    let mut chars = text.chars();
    let mut out: String = chars
        .by_ref()
        .take(limit)
        .map(|c| if is_hidden(c) { ' ' } else { c })
        .collect();
    if chars.next().is_some() {
        out.push('…');
    }
    out
}

/// Says what an error of the operating system means, without its number: `the disk is full`.
pub fn os_error(error: &io::Error) -> String {
    let of = |errno: Errno| error.raw_os_error() == Some(errno.raw_os_error());
    let known = [
        (Errno::NOSPC, "the disk is full"),
        (Errno::DQUOT, "the disk quota is used up"),
        (Errno::ROFS, "the file system is read-only"),
        (Errno::IO, "the disk reports an input/output error"),
        (
            Errno::MFILE,
            "this process has no file descriptors left (LimitNOFILE, ulimit -n)",
        ),
        (Errno::NFILE, "this machine has no file descriptors left (fs.file-max)"),
        (Errno::NOMEM, "there is not enough memory"),
        (Errno::ACCESS, "permission denied"),
        (Errno::PERM, "it is not permitted"),
    ];
    if let Some((_, words)) = known.iter().find(|(errno, _)| of(*errno)) {
        return (*words).to_owned();
    }
    let text = match error.kind() {
        io::ErrorKind::StorageFull => "the disk is full".to_owned(),
        _ => error.to_string(),
    };
    match text.rsplit_once(" (os error ") {
        Some((words, number)) if number.ends_with(')') => words.to_owned(),
        _ => text,
    }
}

/// Lines for a terminal: hidden characters are written out, but for line ends and tabs.
pub fn lines(text: &str) -> String {
    lines_up_to(text, usize::MAX)
}

/// At most [`REPORT`] characters of [`lines`], then `…` if there were more.
pub fn report(text: &str) -> String {
    lines_up_to(text, REPORT)
}

fn lines_up_to(text: &str, limit: usize) -> String {
    let mut out = String::with_capacity(text.len().min(limit));
    let mut chars = text.chars();
    for c in chars.by_ref().take(limit) {
        match c {
            '\n' | '\t' => out.push(c),
            c => push(&mut out, c),
        }
    }
    if chars.next().is_some() {
        out.push('…');
    }
    out
}

/// A JSON document that means the same, with hidden characters escaped (`\u202e`). They stand in its strings only;
/// line ends between its values stay.
pub fn json(document: &str) -> String {
    let mut out = String::with_capacity(document.len());
    for c in document.chars() {
        match c {
            '\n' => out.push(c),
            c if is_hidden(c) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    // Writing to a String does not fail.
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One of each kind.
    const HIDDEN: &str = "\u{0}\u{1b}\u{7f}\u{85}\u{9b}\u{ad}\u{61c}\u{200b}\u{200d}\u{200e}\u{200f}\u{2028}\u{2029}\u{202a}\u{202e}\u{2060}\u{2066}\u{2069}\u{feff}\u{e0041}\n\r\t";

    #[test]
    fn numbers_and_their_words() {
        assert_eq!(count(1usize, "blob"), "1 blob");
        assert_eq!(count(0u64, "blob"), "0 blobs");
        assert_eq!(count(2i32, "wish"), "2 wishes");
        assert_eq!(count(1u32, "wish"), "1 wish");
    }

    #[test]
    fn hidden_characters_are_written_out() {
        assert!(HIDDEN.chars().all(is_hidden));
        for visible in ["latest é ü 你好 ñ 🦀 عربى", " ", "a\u{301}", "\u{a0}"] {
            assert!(is_visible(visible), "{visible}");
            assert_eq!(printable(visible), visible);
        }
        assert_eq!(printable("a\u{202e}b\r\n\u{1b}[2J"), "a\\u{202e}b\\r\\n\\u{1b}[2J");
        assert_eq!(one_line("a\u{202e}b\nc", 10), "a b c");
        assert_eq!(one_line("abc", 2), "ab…");
        assert_eq!(lines("a\n\u{1b}b\u{200b}"), "a\n\\u{1b}b\\u{200b}");
        assert!(is_visible(&printable(HIDDEN)) && is_visible(&one_line(HIDDEN, 100)));
    }

    #[test]
    fn text_is_cut() {
        assert_eq!(cut("abc", 3), "abc");
        assert_eq!(cut("é\u{1b}cd", 2), "é\\u{1b}…");
        assert_eq!(excerpt("abc"), "abc");
        let long = "é".repeat(40 << 20);
        assert_eq!(excerpt(&long).chars().count(), EXCERPT + 1);
        assert!(excerpt(&long).len() < 1000);
    }

    proptest! {
        #[test]
        fn nothing_hidden_is_left(text in any::<String>(), limit in 0usize..50) {
            prop_assert!(is_visible(&printable(&text)));
            prop_assert!(is_visible(&cut(&text, limit)));
            prop_assert!(is_visible(&one_line(&text, limit)));
            prop_assert!(is_visible(&excerpt(&text)));
            prop_assert!(lines(&text).chars().all(|c| !is_hidden(c) || c == '\n' || c == '\t'));
        }

        #[test]
        fn json_means_the_same(text in any::<String>(), hidden in 0..HIDDEN.chars().count()) {
            let hidden = HIDDEN.chars().nth(hidden).unwrap_or('\u{202e}');
            let value = serde_json::json!({ "a": format!("{text}{hidden}"), "b": [1, null] });
            for document in [value.to_string(), serde_json::to_string_pretty(&value).unwrap()] {
                let safe = json(&document);
                prop_assert!(safe.chars().all(|c| !is_hidden(c) || c == '\n'));
                prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&safe).unwrap(), value.clone());
            }
        }
    }
}
