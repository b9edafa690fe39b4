//! What is wanted, from everywhere it was named: as lines for the job, each with the place it came from.

use std::io::Read as _;
use std::path::Path;

use serde::Deserialize;

use super::Args;
use crate::cli::lists::{self, Found};
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

/// Everything that was asked for. Errors: everything that was wrong.
pub fn entries(args: &Args) -> Result<Vec<Entry>, Vec<String>> {
    let mut entries = Vec::new();
    let mut errors = Vec::new();
    let mut take = |found: Result<Vec<Entry>, Vec<String>>| match found {
        Ok(found) => entries.extend(found),
        Err(found) => errors.extend(found),
    };
    take(words(args));
    for file in &args.file {
        take(list(file));
    }
    for file in &args.from {
        take(from(file, args));
    }
    for file in &args.wishes {
        take(wishes(file));
    }
    // A site that wished for nothing is well supplied.
    if errors.is_empty() && entries.is_empty() && args.wishes.is_empty() {
        errors.push("no image is named: give IMAGE, --file, --from or --wishes".to_owned());
    }
    match errors.is_empty() {
        true => Ok(entries),
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

fn from(path: &Path, args: &Args) -> Result<Vec<Entry>, Vec<String>> {
    let (text, shown) = read(path).map_err(|error| vec![error])?;
    let folder = path.parent().filter(|_| path.as_os_str() != "-");
    let images = lists::images(&text, args.kind, path, folder).map_err(|error| vec![format!("{shown}: {error}")])?;
    for word in &images.passed_over {
        crate::cli::complain(&crate::cli::table::printable(&format!("{shown}: {word}")));
    }
    let mut found = Vec::new();
    if !args.perhaps {
        for Found { image, place } in &images.perhaps {
            let word = format!("{shown}: perhaps an image, and left out: {image} ({place}); --perhaps takes it");
            crate::cli::complain(&crate::cli::table::printable(&word));
        }
    }
    let perhaps = images.perhaps.into_iter().filter(|_| args.perhaps);
    for Found { image, place } in images.found.into_iter().chain(perhaps) {
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
