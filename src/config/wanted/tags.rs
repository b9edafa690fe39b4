//! Which tags of a repository are wanted: a pattern, a range of versions, the newest so many. Pure.
//!
//! A tag is a version if it is one to three numbers, with a `v` before them or not, and whatever stands behind a `-` or
//! `+`: `3`, `v1.2`, `1.27.3-alpine`, `2.0.0-rc.1`. What is left out counts as 0.

use std::cmp::Ordering;

use semver::{BuildMetadata, Comparator, Prerelease, Version, VersionReq};

use crate::oci::Tag;

/// What one line wants of a repository's tags.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// `*` stands for any run of characters, `?` for one.
    pub glob: Option<String>,
    pub range: Option<Range>,
    /// So many at most, the newest first.
    pub newest: Option<usize>,
}

/// A range of versions, as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    text: String,
    requirement: VersionReq,
}

impl Range {
    /// `>=3.18, <4`, `^1.2`, `~1.2.3`, `1.*`; a space does where a comma is meant.
    pub fn parse(text: &str) -> Result<Range, String> {
        let refuse = |why: String| {
            let text: String = text.chars().take(200).collect();
            format!("{text:?} is no range of versions ({why}): expected such as \">=3.18, <4\" or \"^1.2\"")
        };
        if text.trim().is_empty() || text.len() > 200 {
            return Err(refuse("it is empty or too long".to_owned()));
        }
        let requirement = VersionReq::parse(&with_commas(text)).map_err(|error| refuse(error.to_string()))?;
        if requirement.comparators.is_empty() {
            return Err(refuse("it takes everything".to_owned()));
        }
        Ok(Range {
            text: text.to_owned(),
            requirement,
        })
    }

    /// By the numbers alone: whether something may stand behind them, the pattern says.
    fn takes(&self, version: &Version) -> bool {
        let plain = Version::new(version.major, version.minor, version.patch);
        let bare = |comparator: &Comparator| Comparator {
            pre: Prerelease::EMPTY,
            ..comparator.clone()
        };
        let comparators = self.requirement.comparators.iter().map(bare).collect();
        VersionReq { comparators }.matches(&plain)
    }
}

impl std::fmt::Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

/// `>=3.18 <4` → `>=3.18,<4`; `>= 3.18` stays one.
fn with_commas(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut ended = false;
    for c in text.trim().chars() {
        match c {
            ' ' | '\t' => ended = out.ends_with(|last: char| last.is_ascii_alphanumeric() || last == '*'),
            ',' => {
                out.push(',');
                ended = false;
            }
            _ => {
                if std::mem::take(&mut ended) {
                    out.push(',');
                }
                out.push(c);
            }
        }
    }
    out
}

impl Choice {
    /// Whether one tag is meant, and no list has to be asked for.
    pub fn is_empty(&self) -> bool {
        *self == Choice::default()
    }

    /// The wanted ones of `tags`: versions first, the newest of them first; then the others, by name backwards.
    pub fn of<'a>(&self, tags: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
        let mut chosen: Vec<(Option<Version>, &str)> = tags.filter_map(|tag| Some((self.takes(tag)?, tag))).collect();
        chosen.sort_by(|(a, a_tag), (b, b_tag)| newer_first(a.as_ref(), b.as_ref()).then_with(|| b_tag.cmp(a_tag)));
        chosen.dedup_by(|a, b| a.1 == b.1);
        chosen.truncate(self.newest.unwrap_or(usize::MAX));
        chosen.into_iter().map(|(_, tag)| tag).collect()
    }

    /// The version of a wanted tag, if it is one.
    fn takes(&self, tag: &str) -> Option<Option<Version>> {
        let version = version_of(tag);
        match &self.glob {
            Some(glob) if !fits(glob, tag) => return None,
            // Signatures and their like are fetched with what they belong to.
            Some(glob) if is_companion(tag) && !glob.starts_with("sha") => return None,
            Some(_) => {}
            None if is_companion(tag) => return None,
            // `1.27-alpine` is another thing than 1.27, and `2.0-rc1` is not 2.0 yet: who wants those says so.
            None if version
                .as_ref()
                .is_none_or(|v| !v.pre.is_empty() || !v.build.is_empty()) =>
            {
                return None;
            }
            None => {}
        }
        match &self.range {
            Some(range) if !version.as_ref().is_some_and(|version| range.takes(version)) => None,
            _ => Some(version),
        }
    }
}

fn newer_first(a: Option<&Version>, b: Option<&Version>) -> Ordering {
    match (a, b) {
        (Some(a), Some(b)) => b.cmp(a),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => Ordering::Equal,
    }
}

fn is_companion(tag: &str) -> bool {
    tag.parse::<Tag>().is_ok_and(|tag| tag.is_companion())
}

fn version_of(tag: &str) -> Option<Version> {
    let text = tag.strip_prefix(['v', 'V']).unwrap_or(tag);
    let end = text.find(['-', '+', '_']).unwrap_or(text.len());
    let (numbers, rest) = text.split_at(end);
    let mut parts = [0u64; 3];
    for (at, number) in numbers.split('.').enumerate() {
        if number.is_empty() || number.len() > 18 || !number.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        *parts.get_mut(at)? = number.parse().ok()?;
    }
    let [major, minor, patch] = parts;
    let mut version = Version::new(major, minor, patch);
    if let Some(rest) = rest.get(1..).filter(|rest| !rest.is_empty()) {
        // What semver does not allow there (`_`, `01`) is told apart all the same.
        version.pre = Prerelease::new(rest).unwrap_or(Prerelease::EMPTY);
        if version.pre.is_empty() {
            let word: String = rest
                .chars()
                .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
                .collect();
            version.build = BuildMetadata::new(&word).unwrap_or(BuildMetadata::EMPTY);
        }
    }
    Some(version)
}

/// Whether a pattern fits the whole text. Linear in the product of the lengths, which are bounded.
pub fn fits(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    // Where to go on if this does not work out: behind the last star, one character later.
    let mut retry: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p + 1, t));
                p += 1;
            }
            Some(c) if *c == b'?' || *c == text[t] => (p, t) = (p + 1, t + 1),
            _ => match &mut retry {
                Some((after, at)) => {
                    *at += 1;
                    (p, t) = (*after, *at);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TAGS: [&str; 14] = [
        "latest",
        "edge",
        "3",
        "3.9",
        "3.18",
        "3.18.4",
        "3.22",
        "v4.0.0",
        "4.0.0-rc.1",
        "3.18-slim",
        "3.22-slim",
        "20230901",
        "sha256-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.sig",
        "3.22_x",
    ];

    fn chosen(glob: &str, range: &str, newest: usize) -> Vec<&'static str> {
        let choice = Choice {
            glob: Some(glob.to_owned()).filter(|text| !text.is_empty()),
            range: (!range.is_empty()).then(|| Range::parse(range).unwrap()),
            newest: (newest > 0).then_some(newest),
        };
        choice.of(TAGS.into_iter())
    }

    #[test]
    fn patterns_ranges_and_the_newest() {
        assert_eq!(chosen("3.*", "", 2), ["3.22", "3.22_x"]);
        assert_eq!(chosen("*-slim", "", 0), ["3.22-slim", "3.18-slim"]);
        assert_eq!(chosen("", ">=3.18, <4", 0), ["3.22", "3.18.4", "3.18"]);
        assert_eq!(chosen("", ">=3.18 <4", 1), ["3.22"]);
        assert_eq!(chosen("*-slim", ">=3.20", 0), ["3.22-slim"]);
        assert_eq!(chosen("", "", 3), ["20230901", "v4.0.0", "3.22"]);
        assert_eq!(chosen("", "~3.18", 0), ["3.18.4", "3.18"]);
        assert_eq!(chosen("?atest", "", 0), ["latest"]);
        assert_eq!(
            chosen("*", "", 0).len(),
            TAGS.len() - 1,
            "companions come with what they belong to"
        );
        assert_eq!(chosen("sha256-*", "", 0).len(), 1);
        assert_eq!(chosen("v*", "^4", 0), ["v4.0.0"]);
        assert_eq!(chosen("*-rc*", "^4", 0), ["4.0.0-rc.1"]);
    }

    #[test]
    fn ranges_that_are_none() {
        for bad in ["", "x", ">=", "1.2.3.4", ">=1,,<2", "*", " "] {
            assert!(Range::parse(bad).is_err(), "{bad:?}");
        }
        assert!(Range::parse("1.* ").is_ok() && Range::parse(">= 1.2 , < 2").is_ok());
    }

    proptest! {
        #[test]
        fn a_pattern_made_of_a_text_fits_it(text in "[a-c.]{0,12}", cut in 0usize..12, len in 0usize..12) {
            let (from, to) = (cut.min(text.len()), (cut + len).min(text.len()));
            let pattern = format!("{}*{}", &text[..from], &text[to..]);
            prop_assert!(fits(&pattern, &text));
            let differs = format!("{}z", text);
            prop_assert!(!fits(&text, &differs));
        }

        #[test]
        fn nothing_panics(glob in ".{0,20}", range in ".{0,20}", tag in ".{0,40}") {
            let choice = Choice { glob: Some(glob), range: Range::parse(&range).ok(), newest: Some(1) };
            prop_assert!(choice.of([tag.as_str()].into_iter()).len() <= 1);
            let _ = version_of(&tag);
        }
    }
}
