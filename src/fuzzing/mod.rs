//! Fuzz harnesses: one function for each parser of bytes from outside, which asserts what must hold for any bytes.
//!
//! Built for tests and for fuzzers only (`cfg(any(test, fuzzing))`); no product contains it. Each floor has its harnesses
//! in a file called `fuzz.rs` beside its parsers, where private items can be reached, and lists them in `HARNESSES`; this
//! module puts the lists together. Two things run them: `runs` under proptest, for a few seconds each with every
//! `cargo test`, and the targets in `fuzz/` under libFuzzer, for as long as somebody lets them.
//!
//! A harness asserts more than "no panic": what is accepted obeys grammar and limits, what has a printer comes back, names
//! never leave their folder, error texts are short and free of control characters.

#[cfg(test)]
mod inputs;
#[cfg(test)]
mod meter;
#[cfg(test)]
mod runs;

/// One parser under test.
#[derive(Clone, Copy)]
pub struct Harness {
    /// Name of the target in `fuzz/`.
    pub name: &'static str,
    /// Panics if these bytes break a property.
    pub run: fn(&[u8]),
    /// Inputs that reach far into the parser; mutation begins with them.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Words of the grammar. Each is also repeated up to 64 KiB, to find what grows faster than its input.
    pub words: &'static [&'static str],
}

/// All harnesses, by name.
pub fn harnesses() -> Vec<Harness> {
    let mut all: Vec<Harness> = [
        crate::oci::fuzz::HARNESSES,
        crate::telemetry::fuzz::HARNESSES,
        crate::config::fuzz::HARNESSES,
        crate::store::fuzz::HARNESSES,
        crate::store::queue_fuzz::HARNESSES,
        crate::upstream::fuzz::HARNESSES,
        crate::upstream::cloud_fuzz::HARNESSES,
        crate::acme::fuzz::HARNESSES,
        crate::auth::fuzz::HARNESSES,
        crate::pull::fuzz::HARNESSES,
        crate::bundle::fuzz::HARNESSES,
        crate::bundle::foreign::fuzz::HARNESSES,
        crate::admin::fuzz::HARNESSES,
        crate::http::fuzz::HARNESSES,
        crate::http::v2::fuzz::HARNESSES,
        crate::app::checkup::fuzz::HARNESSES,
        crate::cli::lists_fuzz::HARNESSES,
    ]
    .concat();
    all.sort_by_key(|harness| harness.name);
    all
}

/// Runs one harness.
pub fn run(name: &str, data: &[u8]) {
    match harnesses().iter().find(|harness| harness.name == name) {
        Some(harness) => (harness.run)(data),
        None => panic!("there is no harness {name:?}"),
    }
}

/// Longest text of one error, in bytes: what is quoted of the input is cut.
pub const MAX_ERROR: usize = 32 << 10;

/// Control characters, and those that change the direction of the text around them (Unicode TR9).
pub fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The text of one error: short, and without characters that hide others.
#[track_caller]
pub fn check_error(error: impl std::fmt::Display) {
    let text = error.to_string();
    check_bounded(&text);
    let odd = text.chars().find(|c| is_unprintable(*c));
    assert!(odd.is_none(), "an error with {odd:?} in it: {text:?}");
}

/// The text of an error that repeats what somebody wrote as it stands there: where it leaves the program, unprintable characters
/// are written out. Short all the same.
#[track_caller]
pub fn check_bounded(error: impl std::fmt::Display) {
    let text = error.to_string();
    assert!(!text.is_empty(), "an error without a text");
    assert!(
        text.len() <= MAX_ERROR,
        "an error of {} bytes: {:?}…",
        text.len(),
        text.chars().take(200).collect::<String>()
    );
}

/// A name that becomes part of a path: relative, and every component a plain one.
#[track_caller]
pub fn check_stays_inside(name: &str) {
    let mut components = std::path::Path::new(name).components();
    let plain = components.all(|part| matches!(part, std::path::Component::Normal(_)));
    assert!(plain && !name.contains('\0'), "{name:?} leads out of its folder");
}

pub fn text(data: &[u8]) -> Option<&str> {
    std::str::from_utf8(data).ok()
}

/// The first lines as fields and the rest as it is; missing ones are empty. So seeds stay readable.
pub fn fields<const N: usize>(data: &[u8]) -> ([&[u8]; N], &[u8]) {
    let mut rest = data;
    let fields = [(); N].map(|()| match rest.iter().position(|byte| *byte == b'\n') {
        Some(end) => {
            let line = &rest[..end];
            rest = &rest[end + 1..];
            line
        }
        None => std::mem::take(&mut rest),
    });
    (fields, rest)
}

/// Seeds that are texts.
pub fn texts(all: &[&str]) -> Vec<Vec<u8>> {
    all.iter().map(|text| text.as_bytes().to_vec()).collect()
}
