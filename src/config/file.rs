//! `proxy.toml` as a layer: its values, held against [`super::keys`], and the line on which each stands.

use std::collections::BTreeMap;

use serde::Deserialize as _;
use toml::de::{DeTable, DeValue, ValueDeserializer};
use toml::{Table, Value};

use super::error::{ConfigError, KeyPath, Place, Problem, show_key};
use super::keys::{self, Key, Kind};
use super::{builtin, foreign};
use crate::oci::HostPort;
use crate::oci::name::looks_like_host;

/// Errors that are told of a text that is no TOML: what follows is the consequence of the first.
const MOST_ERRORS: usize = 20;

/// Unknown keys for which the nearest known one is looked up.
const MOST_HINTS: usize = 100;

/// Where each given key was given.
pub type Origins = BTreeMap<KeyPath, Place>;

/// One source of values. What was wrong is not in it, so that the rest can still be judged.
#[derive(Default)]
pub struct Layer {
    pub values: Table,
    pub origins: Origins,
}

/// Reads `text`. A file that is not TOML is an error by itself; unknown keys and wrong types go to `problems`.
pub fn read(text: &str, shown: &str, problems: &mut Vec<Problem>) -> Result<Layer, ConfigError> {
    let lines = Lines::of(text);
    let place = |offset: Option<usize>| Place::File {
        path: shown.to_owned(),
        line: offset.map(|offset| lines.of_offset(offset)),
    };
    // Only the message: toml's own display quotes the line, and a password may stand on it (R-X17).
    let syntax = |error: &toml::de::Error| Problem {
        place: place(error.span().map(|span| span.start)),
        key: Vec::new(),
        message: format!("this is not TOML: {}", error.message().replace('\n', ", ")),
    };
    let (document, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        return Err(ConfigError::new(errors.iter().take(MOST_ERRORS).map(syntax).collect()));
    }
    let values: Table = toml::from_str(text).map_err(|error| ConfigError::new(vec![syntax(&error)]))?;
    let mut origins = Origins::new();
    note_lines(document.get_ref(), &mut Vec::new(), &mut origins, &|offset| {
        place(Some(offset))
    });
    let mut check = Check {
        origins: &origins,
        problems,
    };
    let values = check.table(values, keys::ROOT, &[]);
    Ok(Layer { values, origins })
}

/// Reads the tables of `names` in a text that is no TOML as a whole, as far as they can be read: what stands before and
/// behind the mistake usually can. What is wrong in them is left out.
pub fn salvage(text: &str, shown: &str, names: &[&str]) -> Layer {
    let lines = Lines::of(text);
    let place = |offset: usize| Place::File {
        path: shown.to_owned(),
        line: Some(lines.of_offset(offset)),
    };
    let (document, _) = DeTable::parse_recoverable(text);
    let mut origins = Origins::new();
    note_lines(document.get_ref(), &mut Vec::new(), &mut origins, &place);
    let mut values = Table::new();
    for (name, value) in document.into_inner() {
        let name = name.into_inner();
        if !names.contains(&&*name) {
            continue;
        }
        if let Ok(value) = Value::deserialize(ValueDeserializer::from(value)) {
            values.insert(name.into_owned(), value);
        }
    }
    let mut problems = Vec::new();
    let mut check = Check {
        origins: &origins,
        problems: &mut problems,
    };
    let values = check.table(values, keys::ROOT, &[]);
    Layer { values, origins }
}

/// Where each line of a text begins, but for the first. Looked up for every key: counting line ends each time would make
/// reading quadratic.
struct Lines(Vec<usize>);

impl Lines {
    fn of(text: &str) -> Lines {
        let ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        Lines(ends.map(|(at, _)| at + 1).collect())
    }

    /// From 1.
    fn of_offset(&self, offset: usize) -> usize {
        1 + self.0.partition_point(|begin| *begin <= offset)
    }
}

fn note_lines(table: &DeTable<'_>, path: &mut KeyPath, origins: &mut Origins, place: &dyn Fn(usize) -> Place) {
    for (key, value) in table {
        path.push(canonical(path, key.get_ref()));
        // The first of two spellings of one upstream keeps its place; the second is refused anyway.
        origins.entry(path.clone()).or_insert_with(|| place(key.span().start));
        match value.get_ref() {
            DeValue::Table(inner) => note_lines(inner, path, origins, place),
            // Tables in double brackets are called by their number.
            DeValue::Array(items) => {
                for (at, item) in items.iter().enumerate() {
                    if let DeValue::Table(inner) = item.get_ref() {
                        path.push((at + 1).to_string());
                        origins.entry(path.clone()).or_insert_with(|| place(item.span().start));
                        note_lines(inner, path, origins, place);
                        path.pop();
                    }
                }
            }
            _ => {}
        }
        path.pop();
    }
}

/// Names of upstreams are hosts, and hosts have no case.
fn canonical(parent: &[String], key: &str) -> String {
    match parent {
        [section] if section == "upstream" => key.to_ascii_lowercase(),
        _ => key.to_owned(),
    }
}

/// Sorts values into those that fit their key and problems.
struct Check<'a> {
    origins: &'a Origins,
    problems: &'a mut Vec<Problem>,
}

impl Check<'_> {
    fn refuse(&mut self, path: &[String], message: String) {
        self.problems.push(Problem {
            place: self.origins.get(path).cloned().unwrap_or(Place::Default),
            key: path.to_vec(),
            message,
        });
    }

    fn table(&mut self, table: Table, keys: &'static [Key], at: &[String]) -> Table {
        let mut kept = Table::new();
        for (name, value) in table {
            let path = [at, std::slice::from_ref(&name)].concat();
            let Some(key) = keys::find(keys, &name) else {
                if let Some(problems) = foreign::problems(&path, &value) {
                    problems
                        .into_iter()
                        .for_each(|(path, message)| self.refuse(&path, message));
                    continue;
                }
                // What was meant is looked up for the first ones only: it takes a while.
                let message = match self.problems.len() < MOST_HINTS {
                    true => unknown(&path),
                    false => "there is no such key".to_owned(),
                };
                self.refuse(&path, message);
                continue;
            };
            if let Some(value) = self.value(value, key.kind, &path) {
                kept.insert(name, value);
            }
        }
        kept
    }

    fn value(&mut self, value: Value, kind: Kind, path: &[String]) -> Option<Value> {
        let texts = |value: &Value| value.as_array().is_some_and(|list| list.iter().all(Value::is_str));
        let fits = match (kind, &value) {
            (
                Kind::Text | Kind::Secret | Kind::Size | Kind::Duration | Kind::Floor | Kind::TextOrList,
                Value::String(_),
            )
            | (Kind::Flag, Value::Boolean(_)) => true,
            (Kind::Count | Kind::Size | Kind::Duration | Kind::Floor, Value::Integer(number)) => *number >= 0,
            (Kind::Share, Value::Integer(_) | Value::Float(_)) => true,
            (Kind::List | Kind::SecretList | Kind::TextOrList, list) => texts(list),
            (Kind::Table(keys), Value::Table(table)) => {
                return Some(Value::Table(self.table(table.clone(), keys, path)));
            }
            (Kind::Named(keys), Value::Table(table)) => {
                return Some(Value::Table(self.upstreams(table.clone(), keys, path)));
            }
            (Kind::Tables(keys), Value::Table(named)) => {
                let mut kept = Table::new();
                for (name, value) in named {
                    let path = [path, std::slice::from_ref(name)].concat();
                    if let Some(value) = self.value(value.clone(), Kind::Table(keys), &path) {
                        kept.insert(name.clone(), value);
                    }
                }
                return Some(Value::Table(kept));
            }
            (Kind::Listed(keys), Value::Array(items)) if items.iter().all(Value::is_table) => {
                return Some(Value::Array(self.tables(items, keys, path)));
            }
            _ => false,
        };
        if !fits {
            let found = found(&value, kind);
            self.refuse(path, format!("found {found}, expected {}", kind.expected()));
        }
        fits.then_some(value)
    }

    fn tables(&mut self, items: &[Value], keys: &'static [Key], at: &[String]) -> Vec<Value> {
        let tables = items.iter().filter_map(Value::as_table).enumerate();
        tables
            .map(|(number, table)| {
                let path = [at, &[(number + 1).to_string()]].concat();
                Value::Table(self.table(table.clone(), keys, &path))
            })
            .collect()
    }

    fn upstreams(&mut self, named: Table, keys: &'static [Key], at: &[String]) -> Table {
        let mut kept = Table::new();
        for (written, value) in named {
            let name = written.to_ascii_lowercase();
            let path = [at, std::slice::from_ref(&name)].concat();
            if let Some(message) = bad_name(&written, &value) {
                self.refuse(&path, message);
            } else if kept.contains_key(&name) {
                self.refuse(
                    &path,
                    format!("{written:?} is given twice: upper and lower case are the same host"),
                );
            } else if let Value::Table(table) = value {
                kept.insert(name, Value::Table(self.table(table, keys, &path)));
            } else {
                self.refuse(
                    &path,
                    format!("found {}, expected a table", found(&value, Kind::Table(keys))),
                );
            }
        }
        kept
    }
}

/// The names of the tables inside the table at `path`.
pub fn names_at(values: &Table, path: &[String]) -> Vec<String> {
    let mut at = values;
    for part in path {
        match at.get(part).and_then(Value::as_table) {
            Some(inner) => at = inner,
            None => return Vec::new(),
        }
    }
    at.keys().cloned().collect()
}

fn unknown(path: &[String]) -> String {
    match keys::nearest(path) {
        Some(nearest) => format!("there is no such key; did you mean {nearest}?"),
        None => {
            let section = path.split_last().map_or(&[][..], |(_, section)| section);
            let known = keys::names_in(section).join(", ");
            format!("there is no such key; expected one of {known}")
        }
    }
}

/// Why `name` cannot name an upstream. `value` is what stands under it, for what was meant by it.
pub(super) fn bad_name(name: &str, value: &Value) -> Option<String> {
    let lower = name.to_ascii_lowercase();
    if let Some(owner) = builtin::owner_of_synonym(&lower) {
        let (owner, key) = (owner.name, show_key(&["upstream", owner.name]));
        return Some(format!("this is another name of {owner}; expected [{key}]"));
    }
    // [upstream.ghcr.io] without quotes is a table `io` inside a table `ghcr`.
    let mut dotted = lower.clone();
    let mut inner = value;
    while let Some((part, next @ Value::Table(_))) = inner.as_table().and_then(|table| table.iter().next()) {
        dotted = format!("{dotted}.{part}");
        inner = next;
    }
    if dotted != lower && !looks_like_host(&lower) && dotted.parse::<HostPort>().is_ok() {
        let key = show_key(&["upstream", &dotted]);
        return Some(format!("a name with dots needs quotes; expected [{key}]"));
    }
    if let Some(owner) = builtin::BUILTIN.iter().find(|b| b.aliases.contains(&lower.as_str())) {
        let (owner, key) = (owner.name, show_key(&["upstream", owner.name]));
        return Some(format!("this is an alias of {owner}; expected [{key}]"));
    }
    // Without dot, port or `localhost` no client takes the first component of an image's name for a host.
    let usable = name.parse::<HostPort>().is_ok() && looks_like_host(&lower);
    (!usable).then(|| {
        format!(
            "found {}, expected the host that stands before the first slash of an image's name, \
             such as \"ghcr.io\" or \"registry.example:5000\"",
            quoted(name)
        )
    })
}

/// What stands there, without its value where that could be secret.
fn found(value: &Value, kind: Kind) -> String {
    match (value, kind) {
        (Value::Array(list), _) if list.iter().all(Value::is_str) => "a list of texts".to_owned(),
        (Value::Array(_), Kind::Listed(_)) => "a list with something else than tables in it".to_owned(),
        (Value::Array(_), _) => "a list with something else than texts in it".to_owned(),
        (Value::Table(_), _) => "a table".to_owned(),
        // What stands in place of a table may have been meant for a key in it.
        (Value::String(_), Kind::Table(_)) => "a text".to_owned(),
        (value, Kind::Secret | Kind::SecretList) => format!("something of type {}", value.type_str()),
        (Value::String(text), _) => quoted(text),
        (other, _) => other.to_string(),
    }
}

/// A text from outside as it may stand in a message: escaped, of bounded length.
///
/// An `@` may have a password before it, wherever an address was meant to stand (R-X17).
pub fn quoted(text: &str) -> String {
    if text.contains('@') {
        return "a text with @ in it (not repeated, since it may hold a password)".to_owned();
    }
    let mut shown: String = text.chars().take(100).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    format!("{shown:?}")
}
