//! Dockerfiles: what their stages begin from and copy from.

use std::collections::{HashMap, HashSet};

use super::variables::expand;
use super::{Images, clip};

/// A comment may change how lines are continued, and which image reads the file.
struct Directives {
    escape: char,
    syntax: Option<String>,
}

/// Whether the first instruction is one that only Dockerfiles begin with.
pub fn is_one(text: &str) -> bool {
    let directives = directives(text);
    let lines = instructions(text, directives.escape);
    let mut words = lines
        .iter()
        .map(|(_, line)| line.split_whitespace().next().unwrap_or_default().to_ascii_uppercase());
    words.find(|word| word != "ARG").is_some_and(|word| word == "FROM")
}

/// Adds the images of one file.
pub fn find(text: &str, images: &mut Images) {
    let directives = directives(text);
    if let Some(syntax) = &directives.syntax {
        images.add(syntax, "line 1, syntax".to_owned());
    }
    let mut file = File {
        images,
        arguments: HashMap::new(),
        stages: HashSet::new(),
        has_stages: false,
    };
    for (line, instruction) in instructions(text, directives.escape) {
        file.instruction(line, &instruction);
    }
}

/// `# syntax=…` and `# escape=…`, before anything else.
fn directives(text: &str) -> Directives {
    let mut found = Directives {
        escape: '\\',
        syntax: None,
    };
    for line in text.trim_start_matches('\u{feff}').lines() {
        let Some((key, value)) = line.trim().strip_prefix('#').and_then(|rest| rest.split_once('=')) else {
            break;
        };
        match (key.trim().to_ascii_lowercase().as_str(), value.trim()) {
            ("escape", "`") => found.escape = '`',
            ("syntax", image) if !image.is_empty() => found.syntax = Some(image.to_owned()),
            _ => {}
        }
    }
    found
}

/// Whole instructions and the lines they begin on; without comments, and without the texts of here-documents.
fn instructions(text: &str, escape: char) -> Vec<(usize, String)> {
    let mut found: Vec<(usize, String)> = Vec::new();
    let mut open: Option<(usize, String)> = None;
    let mut here: Vec<String> = Vec::new();
    for (at, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        if let Some(end) = here.first() {
            if line.trim_start_matches('\t') == end {
                here.remove(0);
            }
            continue;
        }
        let trimmed = line.trim();
        if trimmed.starts_with('#') || (trimmed.is_empty() && open.is_none()) {
            continue;
        }
        let (begun, mut whole) = open.take().unwrap_or((at + 1, String::new()));
        match trimmed.strip_suffix(escape) {
            Some(part) => {
                whole += part;
                whole.push(' ');
                open = Some((begun, whole));
            }
            None => {
                whole += trimmed;
                here = here_documents(&whole);
                found.push((begun, whole));
            }
        }
    }
    found.extend(open);
    found
}

/// The words that end the here-documents of a RUN or COPY.
fn here_documents(instruction: &str) -> Vec<String> {
    let word = instruction
        .split_whitespace()
        .next()
        .unwrap_or_default()
        .to_ascii_uppercase();
    if !matches!(word.as_str(), "RUN" | "COPY" | "ADD") {
        return Vec::new();
    }
    let starts = instruction.split("<<").skip(1);
    let end = |rest: &str| {
        let rest = rest.strip_prefix('-').unwrap_or(rest);
        let rest = rest.trim_start_matches(['"', '\'']);
        let name: String = rest
            .chars()
            .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
            .collect();
        Some(name).filter(|name| name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_'))
    };
    starts.filter_map(end).take(20).collect()
}

struct File<'a> {
    images: &'a mut Images,
    /// Those before the first FROM; `None` without a default.
    arguments: HashMap<String, Option<String>>,
    /// Names of those before, lower-case.
    stages: HashSet<String>,
    has_stages: bool,
}

impl File<'_> {
    fn instruction(&mut self, line: usize, text: &str) {
        let mut words = text.split_whitespace();
        let name = words.next().unwrap_or_default().to_ascii_uppercase();
        let words: Vec<&str> = words.collect();
        match name.as_str() {
            "ARG" if !self.has_stages => self.arguments(&words),
            "FROM" => self.stage(line, &words),
            "COPY" | "ADD" => {
                for from in flags(&words).filter_map(|word| word.strip_prefix("--from=")) {
                    self.source(line, &name, from);
                }
            }
            "RUN" => {
                for mount in flags(&words).filter_map(|word| word.strip_prefix("--mount=")) {
                    for from in mount.split(',').filter_map(|part| part.strip_prefix("from=")) {
                        self.source(line, "RUN --mount", from);
                    }
                }
            }
            _ => {}
        }
    }

    fn arguments(&mut self, words: &[&str]) {
        for word in words {
            let (name, default) = match word.split_once('=') {
                Some((name, default)) => (name, Some(default.trim_matches(['"', '\'']))),
                None => (*word, None),
            };
            let default = default.and_then(|default| self.expand(default).ok());
            self.arguments.insert(name.to_owned(), default);
        }
    }

    fn expand(&self, text: &str) -> Result<String, String> {
        expand(text.trim_matches(['"', '\'']), &|name| {
            self.arguments.get(name).cloned().flatten()
        })
    }

    fn stage(&mut self, line: usize, words: &[&str]) {
        let platform = flags(words).find_map(|word| word.strip_prefix("--platform="));
        let mut words = words.iter().skip_while(|word| word.starts_with("--"));
        let image = words.next().copied().unwrap_or_default();
        let name = match (words.next(), words.next()) {
            (Some(keyword), Some(name)) if keyword.eq_ignore_ascii_case("as") => name.to_ascii_lowercase(),
            _ => String::new(),
        };
        match self.expand(image) {
            Err(why) => self.images.unread(format!(
                "line {line}: FROM {}: {why}, and there is no default",
                clip(image)
            )),
            Ok(image) if image.is_empty() => self.images.pass_over(format!("line {line}: FROM names no image")),
            Ok(image) => {
                let is_stage = self.stages.contains(&image.to_ascii_lowercase());
                if !is_stage && image != "scratch" {
                    // Of the machine that builds: nothing of it is known here.
                    let platform = platform.and_then(|platform| self.expand(platform).ok());
                    self.images
                        .add_for(&image, platform.as_deref(), format!("line {line}, FROM"));
                }
            }
        }
        self.has_stages = true;
        self.stages.extend(Some(name).filter(|name| !name.is_empty()));
    }

    fn source(&mut self, line: usize, what: &str, from: &str) {
        let is_number = from.bytes().all(|b| b.is_ascii_digit());
        if is_number || self.stages.contains(&from.to_ascii_lowercase()) {
            return;
        }
        match self.expand(from) {
            Ok(image) if self.stages.contains(&image.to_ascii_lowercase()) || image == "scratch" => {}
            Ok(image) => self.images.add(&image, format!("line {line}, {what}")),
            Err(why) => self.images.unread(format!(
                "line {line}: {what} from {}: {why}, and there is no default",
                clip(from)
            )),
        }
    }
}

fn flags<'a>(words: &'a [&'a str]) -> impl Iterator<Item = &'a str> {
    words.iter().copied().take_while(|word| word.starts_with("--"))
}
