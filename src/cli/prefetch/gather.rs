//! What is wanted, from everywhere it was named: as lines for the job, each with the place it came from.

use std::io::Read as _;
use std::path::Path;

use serde::Deserialize;

use super::Args;
use crate::cli::complain;
use crate::cli::lists::{self, Found};
use crate::cli::table::{count, printable};
use crate::config::wanted::{ListError, MAX_LIST_BYTES, Wanted, parse_line, parse_list};

/// One line of the job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub line: String,
    /// As the job shows the line.
    shown: String,
    /// `compose.yaml: services.web`; `None` for the command line.
    pub from: Option<String>,
}

/// Where an image was found, by the line that asked for it.
pub fn sources(entries: &[Entry], wanted: &str) -> String {
    let mut places: Vec<&str> = entries
        .iter()
        .filter(|entry| entry.shown == wanted)
        .filter_map(|entry| entry.from.as_deref())
        .collect();
    places.dedup();
    match places.as_slice() {
        [] => "-".to_owned(),
        [one] => (*one).to_owned(),
        [first, others @ ..] => format!("{first}, and {} more", others.len()),
    }
}

/// Everything that was named.
#[derive(Debug, Default)]
pub struct Gathered {
    pub entries: Vec<Entry>,
    /// How much of the files of `--from` names images and was not read.
    pub unread: usize,
}

/// Everything that was asked for. Errors: everything that was wrong.
pub fn gather(args: &Args) -> Result<Gathered, Vec<String>> {
    let mut entries = Vec::new();
    let mut errors = Vec::new();
    let mut unread = 0;
    let mut take = |found: Result<Vec<Entry>, Vec<String>>| match found {
        Ok(found) => entries.extend(found),
        Err(found) => errors.extend(found),
    };
    take(words(args));
    for file in &args.file {
        take(list(file));
    }
    for file in &args.from {
        take(from(file, args, &mut unread));
    }
    for file in &args.wishes {
        take(wishes(file));
    }
    // A site that wished for nothing is well supplied.
    if errors.is_empty() && entries.is_empty() && args.wishes.is_empty() {
        errors.push(match args.from.is_empty() {
            true => "no image is named: give IMAGE, --file, --from or --wishes".to_owned(),
            false => "no image is named: what --from gave has none that is fetched".to_owned(),
        });
    }
    match errors.is_empty() {
        true => Ok(Gathered { entries, unread }),
        false => Err(errors),
    }
}

fn entry(line: String, from: Option<String>) -> Result<Option<Entry>, String> {
    match parse_line(&line) {
        Ok(wanted) => Ok(wanted.map(|wanted| Entry {
            shown: wanted.to_string(),
            line,
            from,
        })),
        Err((column, message)) => Err(format!("{line:?}, column {column}: {message}")),
    }
}

fn words(args: &Args) -> Result<Vec<Entry>, Vec<String>> {
    let mut options = String::new();
    for (key, value) in [("tags", &args.tags), ("semver", &args.semver)] {
        if let Some(value) = value {
            options += &format!(" {key}=\"{}\"", value.replace('"', ""));
        }
    }
    if let Some(newest) = args.newest {
        options += &format!(" newest={newest}");
    }
    if !options.is_empty() && args.images.is_empty() {
        return Err(vec![
            "--tags, --semver and --newest are about IMAGE, and none is named; lists say it line by line".to_owned(),
        ]);
    }
    let (mut found, mut errors) = (Vec::new(), Vec::new());
    for image in &args.images {
        // Options inside the word are fine; a comment is not an image.
        match entry(format!("{image}{options}"), None) {
            Ok(Some(entry)) => found.push(entry),
            Ok(None) => errors.push(format!("{image:?} names no image")),
            Err(error) => errors.push(error),
        }
    }
    match errors.is_empty() {
        true => Ok(found),
        false => Err(errors),
    }
}

/// A whole file, or standard input.
fn read(path: &Path) -> Result<(String, String), String> {
    let shown = match path.as_os_str() == "-" {
        true => "standard input".to_owned(),
        false => path.display().to_string(),
    };
    let mut bytes = Vec::new();
    let most = MAX_LIST_BYTES as u64 + 1;
    let outcome = match path.as_os_str() == "-" {
        true => std::io::stdin().lock().take(most).read_to_end(&mut bytes),
        false => std::fs::File::open(path).and_then(|file| file.take(most).read_to_end(&mut bytes)),
    };
    outcome.map_err(|error| format!("{shown} cannot be read: {error}"))?;
    if bytes.len() > MAX_LIST_BYTES {
        return Err(format!("{shown} is larger than {} MiB", MAX_LIST_BYTES >> 20));
    }
    let text = String::from_utf8(bytes).map_err(|_| format!("{shown} is not UTF-8"))?;
    Ok((text, shown))
}

fn list(path: &Path) -> Result<Vec<Entry>, Vec<String>> {
    let (text, shown) = read(path).map_err(|error| vec![error])?;
    let lines: Vec<&str> = text.trim_start_matches('\u{feff}').lines().collect();
    let wanted = parse_list(&text).map_err(|errors| {
        let say = |error: &ListError| format!("{shown}: {error}");
        errors.iter().map(say).collect::<Vec<_>>()
    })?;
    let entry = |(number, wanted): (usize, Wanted)| Entry {
        shown: wanted.to_string(),
        line: lines.get(number - 1).copied().unwrap_or_default().to_owned(),
        from: Some(format!("{shown}:{number}")),
    };
    Ok(wanted.into_iter().map(entry).collect())
}

/// `unread` counts what is named and was not read.
fn from(path: &Path, args: &Args, unread: &mut usize) -> Result<Vec<Entry>, Vec<String>> {
    let (text, shown) = read(path).map_err(|error| vec![error])?;
    let folder = path.parent().filter(|_| path.as_os_str() != "-");
    let images = lists::images(&text, args.kind, path, folder).map_err(|error| vec![format!("{shown}: {error}")])?;
    let say = |word: &str| complain(&printable(&format!("{shown}: {word}")));
    images.passed_over.iter().for_each(|word| say(word));
    images.unread.iter().for_each(|word| say(&format!("not read: {word}")));
    *unread += images.unread.len();
    if !args.possible && !images.possible.is_empty() {
        for Found { image, place } in &images.possible {
            say(&format!("possible image, not fetched: {image} ({place})"));
        }
        let all = count(images.possible.len(), "possible image");
        say(&format!("{all} not fetched: --possible takes what is listed so"));
    }
    let possible = images.possible.into_iter().filter(|_| args.possible);
    let mut found = Vec::new();
    for Found { image, place } in images.found.into_iter().chain(possible) {
        match entry(image, Some(format!("{shown}: {place}"))) {
            Ok(entry) => found.extend(entry),
            Err(error) => return Err(vec![format!("{shown}: {place}: {error}")]),
        }
    }
    Ok(found)
}

/// What is read of a receipt, or of the bare array.
#[derive(Deserialize)]
#[serde(untagged)]
enum Wishes {
    Receipt {
        larder_receipt: u64,
        #[serde(default)]
        wishes: Vec<Wish>,
    },
    Bare(Vec<Wish>),
}

#[derive(Deserialize)]
struct Wish {
    image: String,
    platform: Option<String>,
}

fn wishes(path: &Path) -> Result<Vec<Entry>, Vec<String>> {
    let (text, shown) = read(path).map_err(|error| vec![error])?;
    let wishes: Wishes = serde_json::from_str(&text).map_err(|_| {
        vec![format!(
            "{shown} is no receipt and no list of wishes: expected {{\"larder_receipt\": 1, \"wishes\": […]}} or […]"
        )]
    })?;
    let wishes = match wishes {
        Wishes::Receipt {
            larder_receipt: 1,
            wishes,
        }
        | Wishes::Bare(wishes) => wishes,
        Wishes::Receipt { larder_receipt, .. } => {
            return Err(vec![format!(
                "{shown} is a receipt of form {larder_receipt}, and this larder reads form 1"
            )]);
        }
    };
    let (mut found, mut errors) = (Vec::new(), Vec::new());
    for wish in wishes {
        // From the other side of a gap: a name, and nothing that could pass for options.
        let is_more = |text: &str| text.contains(|c: char| c.is_whitespace() || "\"#*?=".contains(c));
        if is_more(&wish.image) || wish.platform.as_deref().is_some_and(is_more) {
            errors.push(format!("{shown}: {:?} is no image", wish.image));
            continue;
        }
        let options = wish
            .platform
            .map(|platform| format!(" platform={platform}"))
            .unwrap_or_default();
        match entry(wish.image + &options, Some(shown.clone())) {
            Ok(entry) => found.extend(entry),
            Err(error) => errors.push(format!("{shown}: {error}")),
        }
    }
    match errors.is_empty() {
        true => Ok(found),
        false => Err(errors),
    }
}
