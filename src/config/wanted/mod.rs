//! What is wanted, as people write it: a line for each image, also in list files.
//!
//! ```text
//! # comments and empty lines are passed over
//! alpine:3.22
//! ghcr.io/owner/app@sha256:…
//! alpine:3.* newest=3                      `*` and `?` in the tag: all tags that fit
//! nginx semver=">=1.25, <2" platform=linux/amd64,linux/arm64
//! redis tags=*-alpine newest=1 referrers=no
//! ```

mod shape;
mod tags;

pub use shape::{Shape, shape};
pub use tags::{Choice, Range};

use crate::oci::reference::{split_image, without_transport};
use crate::oci::{Digest, Platform, Reference, Tag};

/// Largest list, in bytes, and most lines of one that name something.
pub const MAX_LIST_BYTES: usize = 4 << 20;
pub const MAX_IMAGES: usize = 20_000;
const MAX_LINE_BYTES: usize = 2_000;
const MOST_NEWEST: usize = 1_000;

/// One line, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// What stands before tag and digest, as it was written.
    pub name: String,
    pub which: Which,
    /// `None`: what the job says.
    pub platforms: Option<Platforms>,
    /// `None`: what the job says.
    pub referrers: Option<bool>,
}

/// One manifest of a repository, or some.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    One(Reference),
    Tags(Choice),
}

/// What is taken of an image for several platforms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Platforms {
    All,
    Only(Vec<Platform>),
}

/// Why a line is not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {message}")]
pub struct ListError {
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    pub message: String,
}

impl Platforms {
    /// `all`, or names with commas between them.
    pub fn parse(text: &str) -> Result<Platforms, String> {
        if text.trim() == "all" {
            return Ok(Platforms::All);
        }
        let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
        let platforms: Result<Vec<Platform>, _> = names.map(str::parse).collect();
        match platforms {
            Ok(platforms) if platforms.is_empty() => {
                Err("no platform is named: expected all, or such as linux/amd64".to_owned())
            }
            Ok(platforms) => Ok(Platforms::Only(platforms)),
            Err(error) => Err(format!("{error}, or all")),
        }
    }

    pub fn take(&self, platform: &Platform) -> bool {
        match self {
            Platforms::All => true,
            Platforms::Only(wanted) => wanted.iter().any(|wanted| wanted.takes(platform)),
        }
    }

    /// For people and programs.
    pub fn names(&self) -> Vec<String> {
        match self {
            Platforms::All => vec!["all".to_owned()],
            Platforms::Only(platforms) => platforms.iter().map(ToString::to_string).collect(),
        }
    }
}

/// As it is shown: `alpine:3.22`, `alpine:3.* newest=3`.
impl std::fmt::Display for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)?;
        match &self.which {
            Which::One(Reference::Tag(tag)) => write!(f, ":{tag}"),
            Which::One(Reference::Digest(digest)) => write!(f, "@{digest}"),
            Which::Tags(choice) => {
                if let Some(glob) = &choice.glob {
                    // Behind a colon, a pattern without `*` and `?` would be read as one tag.
                    match glob.contains(['*', '?']) {
                        true => write!(f, ":{glob}")?,
                        false => write!(f, " tags={glob}")?,
                    }
                }
                if let Some(range) = &choice.range {
                    write!(f, " semver=\"{range}\"")?;
                }
                match choice.newest {
                    Some(newest) => write!(f, " newest={newest}"),
                    None => Ok(()),
                }
            }
        }
    }
}

/// Every line of a list that names something, each with its number.
///
/// Errors: all lines that are not understood, in their order, at most 20 of them.
pub fn parse_list(text: &str) -> Result<Vec<(usize, Wanted)>, Vec<ListError>> {
    let (mut wanted, mut errors) = (Vec::new(), Vec::new());
    for (at, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let line_number = at + 1;
        match parse_line(line) {
            Ok(None) => {}
            Ok(Some(_)) if wanted.len() >= MAX_IMAGES => {
                let message = format!("the list names more than {MAX_IMAGES} images");
                return Err(vec![error(line_number, 1, message)]);
            }
            Ok(Some(found)) => wanted.push((line_number, found)),
            Err((column, message)) => errors.push(error(line_number, column, message)),
        }
        if errors.len() >= 20 {
            break;
        }
    }
    match errors.is_empty() {
        true => Ok(wanted),
        false => Err(errors),
    }
}

fn error(line: usize, column: usize, message: String) -> ListError {
    ListError { line, column, message }
}

/// What one line says; `None` for one that says nothing.
///
/// Errors: the column, and what is wrong.
pub fn parse_line(line: &str) -> Result<Option<Wanted>, (usize, String)> {
    if line.len() > MAX_LINE_BYTES {
        return Err((1, format!("the line is longer than {MAX_LINE_BYTES} bytes")));
    }
    let mut words = words(line)?.into_iter();
    let Some((column, image)) = words.next() else {
        return Ok(None);
    };
    let mut line = Line::default();
    for (column, word) in words {
        line.option(&word).map_err(|message| (column, message))?;
    }
    line.image(&image).map(Some).map_err(|message| (column, message))
}

/// Words and their columns; blanks in double quotes do not part them, `#` at the beginning of a word ends the line.
fn words(line: &str) -> Result<Vec<(usize, String)>, (usize, String)> {
    let mut words: Vec<(usize, String)> = Vec::new();
    let (mut word, mut begun, mut quote) = (String::new(), None, None);
    for (at, c) in line.chars().enumerate() {
        match (c, quote) {
            ('"', None) => {
                quote = Some(at + 1);
                begun = begun.or(Some(at + 1));
            }
            ('"', Some(_)) => quote = None,
            (c, None) if c.is_whitespace() => {
                if let Some(begun) = begun.take() {
                    words.push((begun, std::mem::take(&mut word)));
                }
            }
            ('#', None) if begun.is_none() => return Ok(words),
            (c, _) => {
                begun = begun.or(Some(at + 1));
                word.push(c);
            }
        }
    }
    if let Some(column) = quote {
        return Err((column, "a quote without its end".to_owned()));
    }
    words.extend(begun.map(|begun| (begun, word)));
    Ok(words)
}

#[derive(Default)]
struct Line {
    choice: Choice,
    platforms: Option<Platforms>,
    referrers: Option<bool>,
}

impl Line {
    fn option(&mut self, word: &str) -> Result<(), String> {
        const EXPECTED: &str = "expected tags=, semver=, newest=, platform= or referrers=";
        let Some((key, value)) = word.split_once('=') else {
            return Err(format!("found {:?}: {EXPECTED}", clip(word)));
        };
        let twice = || Err(format!("{key} is given twice"));
        match key {
            "tags" if self.choice.glob.is_some() => return twice(),
            "tags" => self.choice.glob = Some(glob(value)?),
            "semver" if self.choice.range.is_some() => return twice(),
            "semver" => self.choice.range = Some(Range::parse(value)?),
            "newest" if self.choice.newest.is_some() => return twice(),
            "newest" => self.choice.newest = Some(newest(value)?),
            "platform" | "platforms" if self.platforms.is_some() => return twice(),
            "platform" | "platforms" => self.platforms = Some(Platforms::parse(value)?),
            "referrers" if self.referrers.is_some() => return twice(),
            "referrers" => {
                self.referrers = Some(match value {
                    "yes" | "true" => true,
                    "no" | "false" => false,
                    _ => return Err(format!("referrers={:?}: expected yes or no", clip(value))),
                });
            }
            _ => return Err(format!("found {:?}: {EXPECTED}", clip(key))),
        }
        Ok(())
    }

    fn image(mut self, text: &str) -> Result<Wanted, String> {
        let text = without_transport(text).map_err(|error| error.to_string())?;
        let (name, tag, digest) = split_image(text);
        if name.is_empty() {
            return Err(format!(
                "found {:?}: expected an image, such as alpine:3.22",
                clip(text)
            ));
        }
        if name.contains(['*', '?']) {
            return Err(format!(
                "{:?}: a pattern is for the tag only: registries do not list their repositories",
                clip(name)
            ));
        }
        let is_pattern = tag.is_some_and(|tag| tag.contains(['*', '?']));
        if let Some(digest) = digest {
            let digest: Digest = digest
                .parse()
                .map_err(|error: crate::oci::digest::DigestError| error.to_string())?;
            if is_pattern || !self.choice.is_empty() {
                return Err("a digest names one manifest: nothing is left to choose".to_owned());
            }
            // The tag beside it is for people.
            tag.map(str::parse::<Tag>)
                .transpose()
                .map_err(|error| error.to_string())?;
            return Ok(self.wanted(name, Which::One(Reference::Digest(digest))));
        }
        match tag {
            Some(_) if is_pattern && self.choice.glob.is_some() => {
                Err("the tags are given twice: behind the colon and by tags=".to_owned())
            }
            Some(pattern) if is_pattern => {
                self.choice.glob = Some(glob(pattern)?);
                let choice = std::mem::take(&mut self.choice);
                Ok(self.wanted(name, Which::Tags(choice)))
            }
            Some(tag) if !self.choice.is_empty() => Err(format!(
                "{tag:?} is one tag: nothing is left to choose; write {name}:{tag}* or leave it out"
            )),
            Some(tag) => {
                let tag: Tag = tag
                    .parse()
                    .map_err(|error: crate::oci::reference::TagError| error.to_string())?;
                Ok(self.wanted(name, Which::One(Reference::Tag(tag))))
            }
            None if !self.choice.is_empty() => {
                let choice = std::mem::take(&mut self.choice);
                Ok(self.wanted(name, Which::Tags(choice)))
            }
            None => {
                let latest: Tag = "latest"
                    .parse()
                    .map_err(|error: crate::oci::reference::TagError| error.to_string())?;
                Ok(self.wanted(name, Which::One(Reference::Tag(latest))))
            }
        }
    }

    fn wanted(self, name: &str, which: Which) -> Wanted {
        Wanted {
            name: name.to_owned(),
            which,
            platforms: self.platforms,
            referrers: self.referrers,
        }
    }
}

/// A pattern over tags.
pub fn glob(text: &str) -> Result<String, String> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-' | b'*' | b'?');
    match (1..=128).contains(&text.len()) && text.bytes().all(fits) {
        true => Ok(text.to_owned()),
        false => Err(format!(
            "{:?} is no pattern of tags: expected letters, digits, '_', '.', '-', '*' and '?'",
            clip(text)
        )),
    }
}

/// How many of the newest.
pub fn newest(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|n| (1..=MOST_NEWEST).contains(n));
    number.ok_or_else(|| format!("newest={:?}: expected a number from 1 to {MOST_NEWEST}", clip(text)))
}

fn clip(text: &str) -> String {
    text.chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn shown(line: &str) -> String {
        parse_line(line)
            .unwrap()
            .map_or_else(String::new, |wanted| wanted.to_string())
    }

    #[test]
    fn lines() {
        for (line, expected) in [
            ("alpine", "alpine:latest"),
            ("  alpine:3.22  # why", "alpine:3.22"),
            ("alpine:3.* newest=3", "alpine:3.* newest=3"),
            ("h:5000/a/b", "h:5000/a/b:latest"),
            ("nginx semver=\">=1.25, <2\"", "nginx semver=\">=1.25, <2\""),
            ("nginx \"semver=^1\" newest=2", "nginx semver=\"^1\" newest=2"),
            ("nginx tags=*-alpine", "nginx:*-alpine"),
            ("nginx tags=1.27", "nginx tags=1.27"),
            ("docker://alpine", "alpine:latest"),
            ("oci://ghcr.io/x/chart:1.0.0", "ghcr.io/x/chart:1.0.0"),
            ("# only this", ""),
            ("", ""),
        ] {
            assert_eq!(shown(line), expected, "{line}");
        }
        assert_eq!(shown(&format!("alpine:3@{D}")), format!("alpine@{D}"));
        let full = parse_line("a platform=linux/amd64,linux/arm64 referrers=no")
            .unwrap()
            .unwrap();
        assert_eq!(full.referrers, Some(false));
        assert_eq!(full.platforms.unwrap().names(), ["linux/amd64", "linux/arm64"]);
    }

    #[test]
    fn errors_say_where_and_what() {
        let text = "alpine\n  bad:tag: \nnginx newst=3\n\"x\nredis newest=0\n*/x\na:1 newest=2\n";
        let errors = parse_list(text).unwrap_err();
        let places: Vec<(usize, usize)> = errors.iter().map(|e| (e.line, e.column)).collect();
        assert_eq!(places, [(2, 3), (3, 7), (4, 1), (5, 7), (6, 1), (7, 1)]);
        assert!(
            errors[1]
                .to_string()
                .starts_with("line 3, column 7: found \"newst\": expected tags=")
        );
        assert!(errors[2].message.contains("quote"), "{}", errors[2]);
        assert!(parse_line(&format!("a@{D} newest=2")).is_err());
        assert!(parse_line(&"a".repeat(3000)).is_err());
        let (_, message) = parse_line("https://ghcr.io/x/y:1").unwrap_err();
        assert!(message.contains("write ghcr.io/x/y:1"), "{message}");
    }

    proptest! {
        #[test]
        fn no_line_panics(line in ".{0,200}") {
            let _ = parse_line(&line);
        }

        /// What is shown of a line means the same.
        #[test]
        fn shown_lines_are_lines(name in "[a-z]{1,5}(/[a-z]{1,5})?", tag in "(:[a-z0-9*.]{1,6})?", options in "( newest=[1-9])?( semver=\\^[1-9])?") {
            if let Ok(Some(wanted)) = parse_line(&format!("{name}{tag}{options}")) {
                prop_assert_eq!(parse_line(&wanted.to_string()).unwrap(), Some(wanted));
            }
        }
    }
}
