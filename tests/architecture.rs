//! The floor plan, as data, held against every path in `src/`.
//!
//! A floor is a top-level module. It imports only what its row names, never upward; a few floors have
//! also never heard of whole parts of the world. When this fails, the message says which line broke which
//! row; moving a row is a decision, to be explained in the crate's documentation.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

struct Floor {
    name: &'static str,
    may_import: &'static [&'static str],
}

const fn floor(name: &'static str, may_import: &'static [&'static str]) -> Floor {
    Floor { name, may_import }
}

/// The floor that all others may import: what makes text from outside fit to be shown.
const EVERYBODYS: &str = "text";

/// Bottom first.
const FLOORS: &[Floor] = &[
    floor(EVERYBODYS, &[]),
    floor("oci", &[]),
    floor("telemetry", &[]),
    floor("events", &["oci"]),
    floor("config", &["oci"]),
    floor("store", &["oci", "config", "telemetry", "events"]),
    floor("upstream", &["oci", "config", "telemetry"]),
    // Its files are the store's, its way out is upstream's.
    floor("acme", &["config", "store", "upstream"]),
    floor("auth", &["oci", "config"]),
    floor("pull", &["oci", "config", "telemetry", "events", "store", "upstream"]),
    floor("bundle", &["oci", "telemetry", "store"]),
    floor("jobs", &["oci", "config", "telemetry", "events", "store", "pull"]),
    // What an operator did is an event.
    floor("admin", &["oci", "config", "events", "store", "pull", "bundle", "jobs"]),
    // Who pulled is known here only.
    floor(
        "http",
        &["oci", "config", "telemetry", "events", "acme", "auth", "pull", "admin"],
    ),
    floor(
        "app",
        &[
            "oci",
            "telemetry",
            "events",
            "config",
            "store",
            "upstream",
            "acme",
            "auth",
            "pull",
            "bundle",
            "jobs",
            "admin",
            "http",
        ],
    ),
    floor("demo", &["oci", "config", "app"]),
    floor("cli", &["config", "bundle", "auth", "admin", "app", "demo"]),
    // The crate's root declares the floors and uses none.
    floor("lib", &[]),
    floor("main", &["cli"]),
];

/// Single files that may look further than their floor, each for a reason that holds for no other file.
struct Excuse {
    file: &'static str,
    may_import: &'static [&'static str],
    because: &'static str,
}

const EXCUSES: &[Excuse] = &[
    Excuse {
        file: "http/error.rs",
        may_import: &["store", "upstream"],
        because: "the one place that turns every floor's error into a status",
    },
    Excuse {
        file: "cli/serve.rs",
        may_import: &["telemetry"],
        because: "the log is set up before there is an app",
    },
    Excuse {
        file: "cli/demo.rs",
        may_import: &["telemetry"],
        because: "the log is set up before there is an app",
    },
    Excuse {
        file: "cli/client_config.rs",
        may_import: &["oci"],
        because: "an address is checked by the grammar of names",
    },
    Excuse {
        file: "cli/desk.rs",
        may_import: &["telemetry"],
        because: "the log is set up before a folder is opened",
    },
    Excuse {
        file: "cli/check_config/json.rs",
        may_import: &["oci"],
        because: "it shows names that the configuration is made of",
    },
];

/// What a floor has never heard of, and the files that are excused.
struct Absence {
    floor: &'static str,
    paths: &'static [&'static str],
    except: &'static [&'static str],
    because: &'static str,
}

const ABSENCES: &[Absence] = &[
    Absence {
        floor: "oci",
        paths: &[
            "std::fs",
            "std::net::Tcp",
            "std::env",
            "tokio",
            "reqwest",
            "axum",
            "hyper",
        ],
        except: &[],
        because: "the spec's nouns do no I/O",
    },
    Absence {
        floor: "auth",
        paths: &["reqwest", "axum", "hyper", "std::net::Tcp", "tokio::net"],
        except: &[],
        because: "auth cannot reach the network: keys of other issuers are brought to it",
    },
    Absence {
        floor: "upstream",
        paths: &["std::fs", "tokio::fs", "tempfile", "redb"],
        // Password and credentials files, profiles of clouds, CA and client certificates.
        except: &["credentials.rs", "client.rs", "tls.rs", "profile.rs"],
        because: "upstream has never heard of disks",
    },
    Absence {
        floor: "store",
        paths: &["reqwest", "axum", "hyper", "std::net", "tokio::net"],
        except: &[],
        because: "store has never heard of registries",
    },
    Absence {
        floor: "pull",
        // Readers hold an open file; only the store opens, names and removes one.
        paths: &[
            "reqwest",
            "axum",
            "hyper",
            "tokio::fs",
            "tokio::net",
            "std::net",
            "std::path",
            "std::fs::OpenOptions",
            "std::fs::remove_file",
            "std::fs::rename",
        ],
        except: &[],
        because: "pull reaches the network through upstream and the disk through store",
    },
    Absence {
        floor: "bundle",
        paths: &["reqwest", "axum", "hyper", "std::net", "tokio::net"],
        except: &[],
        because: "bundle cannot reach the network",
    },
    Absence {
        floor: "jobs",
        paths: &["reqwest", "axum", "hyper", "std::net", "tokio::net"],
        except: &[],
        because: "jobs reach registries through pull, and the way to webhooks is brought to them",
    },
    Absence {
        floor: "demo",
        paths: &["axum", "hyper", "redb"],
        except: &[],
        because: "the tour reaches the proxy as its clients and its upstream do",
    },
    Absence {
        floor: "http",
        paths: &["reqwest", "redb"],
        except: &[],
        because: "http is the near side only",
    },
];

/// Folder names on disk, and the one file that may write them.
const DISK_NAMES: &[&str] = &["blobs", "staging", "webhooks"];
const DISK_FLOOR: &str = "store";
/// In the database the same words name tables, not folders.
const TABLES_FILE: &str = "store/database.rs";
const DISK_FILE: &str = "store/keys.rs";

#[test]
fn the_floors_are_kept() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    for path in rust_files(&source) {
        let text = std::fs::read_to_string(&path).expect("a source file");
        let inside = path.strip_prefix(&source).expect("a file of src");
        files.push((inside.to_str().expect("a path in UTF-8").replace('\\', "/"), text));
    }
    assert!(files.len() > 1, "no sources under {}", source.display());
    let problems = check_all(&files);
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}

/// Path relative to `src/`, and text.
fn check_all(files: &[(String, String)]) -> Vec<String> {
    let for_tests: Vec<String> = files
        .iter()
        .flat_map(|(path, text)| Code::read(text).test_files(path))
        .collect();
    // What a test module declares is test code too.
    let is_for_tests = |path: &str| {
        let below = |module: &String| {
            module
                .strip_suffix("mod.rs")
                .is_some_and(|folder| path.starts_with(folder))
        };
        for_tests.iter().any(|module| module == path || below(module))
    };
    files
        .iter()
        .filter(|(path, _)| !is_for_tests(path))
        .flat_map(|(path, text)| check(path, text))
        .collect()
}

/// The table itself: every row imports only rows above it, so that there is no circle.
#[test]
fn the_table_has_no_circle() {
    for (at, floor) in FLOORS.iter().enumerate() {
        for import in floor.may_import {
            let below = FLOORS[..at].iter().any(|f| f.name == *import);
            assert!(below, "{} may import {import}, which is not below it", floor.name);
        }
    }
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// What is wrong with one file; `path` is relative to `src/`.
fn check(path: &str, text: &str) -> Vec<String> {
    let name = path.split('/').next().unwrap_or_default();
    let name = name.strip_suffix(".rs").unwrap_or(name);
    let Some(floor) = FLOORS.iter().find(|f| f.name == name) else {
        return vec![format!("src/{path}: {name:?} is no floor of the table")];
    };
    let code = Code::read(text);
    let is_root = !path.contains('/') || path.ends_with("/mod.rs") && path.matches('/').count() == 1;
    let mut problems = Vec::new();
    for (at, import) in imports(&code.bare, name, is_root) {
        let excused = EXCUSES
            .iter()
            .any(|excuse| excuse.file == path && excuse.may_import.contains(&import.as_str()));
        if import != name && import != EVERYBODYS && !excused && !floor.may_import.contains(&import.as_str()) {
            let what = match floor.may_import {
                [] => "nothing".to_owned(),
                may => may.join(", "),
            };
            let line = line_of(&code.bare, at);
            problems.push(format!(
                "src/{path}:{line}: {name} imports {import}; it may import {what}"
            ));
        }
    }
    let file = path.rsplit('/').next().unwrap_or_default();
    for absence in ABSENCES.iter().filter(|a| a.floor == name && !a.except.contains(&file)) {
        for (at, used) in foreign(&code.bare, absence.paths) {
            let line = line_of(&code.bare, at);
            problems.push(format!(
                "src/{path}:{line}: {name} uses {used}, but {}",
                absence.because
            ));
        }
    }
    if name == DISK_FLOOR && path != DISK_FILE && path != TABLES_FILE {
        for (at, string) in &code.strings {
            let names: Vec<&str> = string.split('/').collect();
            if let Some(word) = DISK_NAMES.iter().find(|word| names.contains(word)) {
                let line = line_of(&code.bare, *at);
                problems.push(format!(
                    "src/{path}:{line}: {word:?} as a string; only {DISK_FILE} builds paths on disk"
                ));
            }
        }
    }
    problems
}

fn line_of(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

/// Source without comments, strings and test modules; blanks in their place, so that offsets stay.
struct Code {
    bare: String,
    /// Offset and content of every string literal outside test modules.
    strings: Vec<(usize, String)>,
    /// Of each `#[cfg(test)] mod x;`: the name, and what a `#[path]` says.
    test_modules: Vec<(String, Option<String>)>,
}

impl Code {
    fn read(text: &str) -> Code {
        let mut lexer = Lexer {
            chars: text.char_indices().collect(),
            text,
            at: 0,
            bare: String::with_capacity(text.len()),
            strings: Vec::new(),
        };
        lexer.run();
        let Lexer {
            mut bare, mut strings, ..
        } = lexer;
        let mut test_modules = Vec::new();
        for (from, to) in test_items(&bare) {
            if let Some(name) = module_declared(&bare[from..to]) {
                let path = strings.iter().find(|(at, _)| (from..to).contains(at));
                test_modules.push((name, path.map(|(_, text)| text.clone())));
            }
            let blank: String = bare[from..to].chars().map(blank).collect();
            bare.replace_range(from..to, &blank);
            strings.retain(|(at, _)| !(from..to).contains(at));
        }
        Code {
            bare,
            strings,
            test_modules,
        }
    }

    /// Files that only a test build reads, given where this one is.
    fn test_files(&self, path: &str) -> Vec<String> {
        let (folder, file) = path
            .rsplit_once('/')
            .map_or(("", path), |(folder, file)| (folder, file));
        let in_folder = |name: &str| match folder {
            "" => name.to_owned(),
            _ => format!("{folder}/{name}"),
        };
        let own = match file {
            "mod.rs" | "lib.rs" | "main.rs" => in_folder(""),
            _ => in_folder(file.trim_end_matches(".rs")) + "/",
        };
        let one = |(name, path): &(String, Option<String>)| match path {
            Some(path) => vec![in_folder(path)],
            None => vec![format!("{own}{name}.rs"), format!("{own}{name}/mod.rs")],
        };
        self.test_modules.iter().flat_map(one).collect()
    }
}

/// `mod x;` gives x; a module with a body, or another item, nothing.
fn module_declared(item: &str) -> Option<String> {
    let before = item.strip_suffix(';')?.trim_end();
    let (before, name) = before.rsplit_once(char::is_whitespace)?;
    (before.split_whitespace().next_back() == Some("mod")).then(|| name.to_owned())
}

/// One byte for one byte: only ASCII stays, and what does not is as wide as it was.
fn blank(c: char) -> char {
    if c == '\n' { '\n' } else { ' ' }
}

struct Lexer<'a> {
    chars: Vec<(usize, char)>,
    text: &'a str,
    at: usize,
    bare: String,
    strings: Vec<(usize, String)>,
}

impl Lexer<'_> {
    fn run(&mut self) {
        while let Some(c) = self.peek(0) {
            let word_before = self.at > 0 && is_word(self.chars[self.at - 1].1);
            match (c, self.peek(1)) {
                ('/', Some('/')) => self.blank_until(|l| l.peek(0) == Some('\n')),
                ('/', Some('*')) => self.block_comment(),
                ('"', _) => self.string(0, true),
                ('r', Some('"' | '#')) if !word_before && self.raw_hashes(1).is_some() => self.raw_string(1),
                ('b' | 'c', Some('"')) if !word_before => {
                    self.keep();
                    self.string(0, true);
                }
                ('b' | 'c', Some('r')) if !word_before && self.raw_hashes(2).is_some() => self.raw_string(2),
                ('\'', _) => self.quote(),
                _ => self.keep(),
            }
        }
    }

    fn peek(&self, ahead: usize) -> Option<char> {
        self.chars.get(self.at + ahead).map(|(_, c)| *c)
    }

    fn offset(&self) -> usize {
        self.chars.get(self.at).map_or(self.text.len(), |(at, _)| *at)
    }

    fn keep(&mut self) {
        let c = self.chars[self.at].1;
        self.push(c, c.is_ascii());
    }

    fn blank(&mut self) {
        let c = self.chars[self.at].1;
        self.push(c, false);
    }

    fn push(&mut self, c: char, kept: bool) {
        if kept {
            self.bare.push(c);
        } else {
            self.bare.extend(std::iter::repeat_n(blank(c), c.len_utf8()));
        }
        self.at += 1;
    }

    fn blank_until(&mut self, done: impl Fn(&Self) -> bool) {
        while self.at < self.chars.len() && !done(self) {
            self.blank();
        }
    }

    fn block_comment(&mut self) {
        let mut depth = 0;
        loop {
            match (self.peek(0), self.peek(1)) {
                (Some('/'), Some('*')) => {
                    depth += 1;
                    self.blank();
                }
                (Some('*'), Some('/')) => {
                    depth -= 1;
                    self.blank();
                }
                (None, _) => return,
                _ => {}
            }
            self.blank();
            if depth == 0 {
                return;
            }
        }
    }

    /// From the opening quote; ends after a quote and so many hashes.
    fn string(&mut self, hashes: usize, escapes: bool) {
        let from = self.offset();
        self.blank();
        let start = self.offset();
        let mut end = start;
        while let Some(c) = self.peek(0) {
            end = self.offset();
            if escapes && c == '\\' {
                self.blank();
            } else if c == '"' && (1..=hashes).all(|n| self.peek(n) == Some('#')) {
                (0..=hashes).for_each(|_| self.blank());
                break;
            }
            if self.at < self.chars.len() {
                self.blank();
            }
        }
        self.strings.push((from, self.text[start..end].to_owned()));
    }

    /// The hashes between a prefix of so many letters and the quote of a raw string.
    fn raw_hashes(&self, prefix: usize) -> Option<usize> {
        let hashes = (prefix..).take_while(|n| self.peek(*n) == Some('#')).count();
        (self.peek(prefix + hashes) == Some('"')).then_some(hashes)
    }

    fn raw_string(&mut self, prefix: usize) {
        let hashes = self.raw_hashes(prefix).unwrap_or(0);
        (0..prefix + hashes).for_each(|_| self.blank());
        self.string(hashes, false);
    }

    /// A character, or the beginning of a lifetime.
    fn quote(&mut self) {
        match (self.peek(1), self.peek(2)) {
            (Some('\\'), _) => {
                // The quote, the backslash and what it escapes, which may be a quote.
                (0..3).for_each(|_| self.blank());
                self.blank_until(|l| l.peek(0) == Some('\''));
                if self.at < self.chars.len() {
                    self.blank();
                }
            }
            (Some(_), Some('\'')) => (0..3).for_each(|_| self.blank()),
            _ => self.keep(),
        }
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// What marks an item that is in no product: tests, and the harnesses of fuzzers.
const FOR_TESTS: [&str; 2] = ["#[cfg(test)]", "#[cfg(any(test, fuzzing))]"];

/// Where items stand that are built for tests only, attribute included.
fn test_items(bare: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut from = 0;
    let next = |rest: &str| FOR_TESTS.iter().filter_map(|mark| rest.find(mark)).min();
    while let Some(at) = next(&bare[from..]) {
        let start = from + at;
        let mut end = bare.len();
        let mut depth = 0;
        for (at, c) in bare[start..].char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ';' if depth == 0 => {}
                _ => continue,
            }
            if depth == 0 {
                end = start + at + 1;
                break;
            }
        }
        found.push((start, end));
        from = end;
    }
    found
}

/// The floors that the code names, with the offset of each: `crate::a`, `crate::{a, b::c}`, in the binary
/// `larder::a`, and `super::a` where that is the crate's root.
fn imports(bare: &str, floor: &str, is_root: bool) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for root in ["crate", "larder", "super"] {
        // Elsewhere `larder` may be a module, a target of the log, anything.
        let counts = match root {
            "larder" => floor == "main",
            "super" => is_root,
            _ => true,
        };
        let mut from = 0;
        while let Some(at) = bare[from..].find(root).filter(|_| counts) {
            let start = from + at;
            from = start + root.len();
            let before = bare[..start].chars().next_back();
            if before.is_some_and(|c| is_word(c) || c == ':') {
                continue;
            }
            let Some(rest) = bare[from..].trim_start().strip_prefix("::") else {
                continue;
            };
            let names = first_names(rest.trim_start());
            // `super::x` is somebody's own unless x is a floor.
            let names = names
                .into_iter()
                .filter(|name| root != "super" || FLOORS.iter().any(|f| f.name == name));
            found.extend(names.map(|name| (start, name)));
        }
    }
    found.sort();
    found
}

/// `a::b` names a; `{a::b, c}` names a and c. Types and macros of the crate's own root are named too.
fn first_names(rest: &str) -> Vec<String> {
    let word = |text: &str| text.chars().take_while(|c| is_word(*c)).collect::<String>();
    let Some(group) = rest.strip_prefix('{') else {
        return vec![word(rest)];
    };
    let mut names = Vec::new();
    let mut depth = 0;
    let mut at_start = true;
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => at_start = true,
            c if at_start && is_word(c) => {
                names.push(word(&group[at..]));
                at_start = false;
            }
            _ => {}
        }
    }
    names
}

/// Uses of paths that begin so, groups like `use std::{fs, io}` included.
fn foreign(bare: &str, paths: &[&str]) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for path in paths {
        let (head, tail) = path.split_once("::").unwrap_or((path, ""));
        let mut from = 0;
        while let Some(at) = bare[from..].find(head) {
            let start = from + at;
            from = start + head.len();
            let inside = bare[..start].chars().next_back().is_some_and(is_word)
                || bare[..start].trim_end().ends_with("::") && !bare[..start].trim_end().ends_with(" ::");
            let Some(rest) = bare[from..].trim_start().strip_prefix("::") else {
                continue;
            };
            let rest = rest.trim_start();
            let hits = if inside {
                false
            } else if tail.is_empty() {
                true
            } else if let Some((module, item)) = tail.split_once("::") {
                rest.starts_with(&format!("{module}::{item}"))
                    || rest.starts_with(&format!("{module}::{{"))
                        && first_names(&rest[module.len() + 2..])
                            .iter()
                            .any(|n| n.starts_with(item))
            } else {
                first_names(rest).iter().any(|name| name == tail)
            };
            if hits {
                found.push((start, (*path).to_owned()));
            }
        }
    }
    found
}

/// The checker, on made-up sources.
mod checker {
    use super::*;

    fn lines(path: &str, text: &str) -> String {
        let mut out = String::new();
        for problem in check(path, text) {
            writeln!(out, "{problem}").unwrap();
        }
        out
    }

    #[test]
    fn names_file_line_floor_and_row() {
        let text = "use crate::oci::Digest;\n\nuse crate::pull::flight;\n";
        assert_eq!(
            lines("store/writer.rs", text),
            "src/store/writer.rs:3: store imports pull; it may import oci, config, telemetry, events\n"
        );
    }

    #[test]
    fn sees_every_way_to_write_a_path() {
        for (text, problems) in [
            ("use crate::{oci::Digest, http::v2, config};", 1),
            ("use crate::{\n  oci::{Digest, http},\n  admin,\n};", 1),
            ("fn f() -> crate::app::Running { loop {} }", 1),
            ("use crate :: http ;", 1),
            ("pub(crate) fn f() {}", 0),
            ("use crate::store::index::Index;", 0),
            ("#[doc = \"x\"]\nmacro_rules! m { () => { $crate::cli::run() } }", 1),
            ("use mycrate::http;", 0),
            ("use crate::config::http::X;", 0),
        ] {
            assert_eq!(check("store/blobs.rs", text).len(), problems, "{text}");
        }
        assert_eq!(check("config/mod.rs", "use super::store::Store;").len(), 1);
        assert_eq!(check("config/load.rs", "use super::store::Store;").len(), 0);
        assert_eq!(
            check("config/mod.rs", "mod tests { use super::*; use super::Config; }").len(),
            0
        );
        assert_eq!(check("main.rs", "fn main() { larder::cli::run() }").len(), 0);
        assert_eq!(check("main.rs", "use larder::store::Store;").len(), 1);
        assert_eq!(
            check("lib.rs", "//! crate::oci\npub mod oci;\npub use oci::Digest;").len(),
            0
        );
    }

    #[test]
    fn comments_strings_and_tests_do_not_count() {
        let text = r##"
            //! See [`crate::http`].
            /* crate::http /* crate::http */ crate::http */
            const A: &str = "crate::http \" crate::http";
            const B: &str = r#"crate::http " crate::http"#;
            const C: &[u8] = b"crate::http";
            const D: (char, char) = ('"', '\'');
            fn f<'a>(x: &'a str) -> &'a str { x } // crate::http
            #[cfg(test)]
            mod tests {
                use crate::http::X;
                fn g() { let x = "}"; }
            }
            #[cfg(test)]
            use crate::http;
            use crate::admin;
        "##;
        let found = check("oci/mod.rs", text);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found[0].starts_with("src/oci/mod.rs:16: oci imports admin; it may import nothing"),
            "{found:?}"
        );
    }

    /// An excuse is for a file that is there and needs it.
    #[test]
    fn every_excuse_is_needed() {
        for excuse in EXCUSES {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(excuse.file);
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let used = imports(&Code::read(&text).bare, "", false);
            for floor in excuse.may_import {
                let needed = used.iter().any(|(_, import)| import == floor);
                assert!(needed, "{} does not import {floor} ({})", excuse.file, excuse.because);
            }
        }
    }

    #[test]
    fn every_file_belongs_to_a_floor() {
        assert_eq!(lines("util.rs", ""), "src/util.rs: \"util\" is no floor of the table\n");
        assert_eq!(check("util/strings.rs", "").len(), 1);
        assert_eq!(check("events.rs", "").len(), 0);
    }

    /// A test module in a file of its own may use what it likes.
    #[test]
    fn test_files_do_not_count() {
        let files = |declares: &str, at: &str, file: &str| {
            check_all(&[
                (at.to_owned(), declares.to_owned()),
                (file.to_owned(), "use crate::app;".to_owned()),
            ])
        };
        let declares = "#[cfg(test)]\nmod tests;";
        assert_eq!(files(declares, "oci/mod.rs", "oci/tests.rs").len(), 0);
        assert_eq!(files(declares, "oci/name.rs", "oci/name/tests.rs").len(), 0);
        assert_eq!(files(declares, "oci/name.rs", "oci/tests.rs").len(), 1);
        let declares = "#[cfg(test)]\n#[path = \"name_tests.rs\"]\nmod tests;";
        assert_eq!(files(declares, "oci/name.rs", "oci/name_tests.rs").len(), 0);
        assert_eq!(files("mod tests;", "oci/mod.rs", "oci/tests.rs").len(), 1);
        let declares = "#[cfg(any(test, fuzzing))]\npub mod fuzz;";
        assert_eq!(files(declares, "oci/mod.rs", "oci/fuzz.rs").len(), 0);
        let declares = "#[cfg(fuzzing)]\npub mod fuzz;";
        assert_eq!(files(declares, "oci/mod.rs", "oci/fuzz.rs").len(), 1);
    }

    #[test]
    fn absences() {
        for (path, text, problems) in [
            ("store/mod.rs", "use reqwest::Client;", 1),
            ("store/mod.rs", "let reqwest = 1;", 0),
            ("upstream/token.rs", "use std::fs;", 1),
            ("upstream/token.rs", "use std::{fmt, fs::File};", 1),
            ("upstream/token.rs", "use std::fmt;\nuse std::sync::Arc;", 0),
            ("upstream/token.rs", "let x = tokio::fs::read(p).await;", 1),
            ("upstream/credentials.rs", "use std::fs;", 0),
            ("oci/name.rs", "let a: std::net::Ipv6Addr;", 0),
            ("oci/name.rs", "use std::net::TcpStream;", 1),
            ("oci/name.rs", "use std::net::{IpAddr, TcpStream};", 1),
            ("bundle/create.rs", "use tokio::net::TcpStream;", 1),
        ] {
            assert_eq!(check(path, text).len(), problems, "{path}: {text}");
        }
    }

    #[test]
    fn one_file_builds_paths_on_disk() {
        assert_eq!(
            lines("store/blobs.rs", "fn f(p: &Path) {\n    p.join(\"staging\");\n}"),
            "src/store/blobs.rs:2: \"staging\" as a string; only store/keys.rs builds paths on disk\n"
        );
        assert_eq!(check("store/blobs.rs", "const X: &str = \"blobs/sha256\";").len(), 1);
        assert_eq!(check("store/blobs.rs", "const X: &str = \"staging failed\";").len(), 0);
        assert_eq!(check("store/keys.rs", "const X: &str = \"blobs\";").len(), 0);
        assert_eq!(check("http/v2/route.rs", "const X: &str = \"blobs\";").len(), 0);
    }
}
