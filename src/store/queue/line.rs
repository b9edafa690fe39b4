//! The lines of a segment: when, a blank, and a JSON object.
//!
//! ```text
//! 1763745090123 {"id":"…"}
//! ```
//!
//! What a crash or a failing disk left in between is told apart and passed over.

use serde::de::IgnoredAny;

/// Of one line, its end included; longer ones are damage.
pub(super) const MAX_LINE: usize = 64 << 10;

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Unix milliseconds.
    pub at_ms: u64,
    /// A JSON object, as it was put in.
    pub json: String,
}

impl Line {
    /// `None` for what is no line of ours.
    pub(super) fn parse(line: &[u8]) -> Option<Line> {
        let text = std::str::from_utf8(line).ok()?;
        let (at, json) = text.split_once(' ')?;
        let is_number = !at.is_empty() && at.bytes().all(|b| b.is_ascii_digit());
        let at_ms = at.parse().ok().filter(|_| is_number)?;
        let is_object = json.starts_with('{') && serde_json::from_str::<IgnoredAny>(json).is_ok();
        is_object.then(|| Line {
            at_ms,
            json: json.to_owned(),
        })
    }

    /// Appends it, with its end.
    pub(super) fn write(at_ms: u64, json: &str, out: &mut Vec<u8>) {
        out.extend_from_slice(at_ms.to_string().as_bytes());
        out.push(b' ');
        out.extend_from_slice(json.as_bytes());
        out.push(b'\n');
    }
}

/// What was found at the beginning of some bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    Line(Line, usize),
    /// So many bytes that are nothing.
    Damage(usize),
    /// No line ends here, and none is too long yet.
    More,
}

/// Takes one line from the front; the number is the bytes that it takes.
pub(super) fn step(bytes: &[u8]) -> Step {
    let seen = bytes.get(..MAX_LINE).unwrap_or(bytes);
    match seen.iter().position(|byte| *byte == b'\n') {
        Some(end) => match Line::parse(&seen[..end]) {
            Some(line) => Step::Line(line, end + 1),
            None => Step::Damage(end + 1),
        },
        None if seen.len() == MAX_LINE => Step::Damage(MAX_LINE),
        None => Step::More,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read_all(mut bytes: &[u8]) -> (Vec<Line>, usize) {
        let (mut lines, mut damaged) = (Vec::new(), 0);
        loop {
            let taken = match step(bytes) {
                Step::Line(line, taken) => {
                    lines.push(line);
                    taken
                }
                Step::Damage(taken) => {
                    damaged += 1;
                    taken
                }
                Step::More => return (lines, damaged),
            };
            assert!(taken > 0 && taken <= bytes.len());
            bytes = &bytes[taken..];
        }
    }

    #[test]
    fn what_is_a_line() {
        let mut bytes = Vec::new();
        Line::write(7, r#"{"a":"ä\n"}"#, &mut bytes);
        bytes.extend_from_slice(b"\0\0\0\0\n+7 {}\n7 []\n7 {\"a\":\n7{}\n\n8 {}\n9 {\"torn");
        let (lines, damaged) = read_all(&bytes);
        assert_eq!(lines.iter().map(|line| line.at_ms).collect::<Vec<_>>(), [7, 8]);
        assert_eq!(lines[0].json, r#"{"a":"ä\n"}"#);
        assert_eq!(damaged, 6);
        assert_eq!(step(&[b'x'; MAX_LINE + 5]), Step::Damage(MAX_LINE));
    }

    proptest! {
        /// Nothing makes it fail or stand still, and lines that are whole are found again among damage.
        #[test]
        fn lines_survive_anything(
            parts in proptest::collection::vec(
                prop_oneof![
                    (any::<u64>(), "\\PC{0,20}").prop_map(|(at, text)| Ok((at, text))),
                    proptest::collection::vec(any::<u8>(), 0..40).prop_map(Err),
                ],
                0..20,
            )
        ) {
            let (mut bytes, mut wanted) = (Vec::new(), Vec::new());
            for part in parts {
                match part {
                    Ok((at_ms, text)) => {
                        let json = serde_json::json!({ "a": text }).to_string();
                        Line::write(at_ms, &json, &mut bytes);
                        wanted.push(Line { at_ms, json });
                    }
                    Err(noise) => {
                        bytes.extend(noise.into_iter().filter(|byte| *byte != b'{'));
                        bytes.push(b'\n');
                    }
                }
            }
            prop_assert_eq!(read_all(&bytes).0, wanted);
        }

        #[test]
        fn no_bytes_make_it_fail(bytes in proptest::collection::vec(any::<u8>(), 0..500)) {
            read_all(&bytes);
        }
    }
}
