//! Variables as a layer: `LARDER_CACHE__MAX_SIZE=200GiB` sets `cache.max_size`.
//!
//! A key's parts are joined by two underscores, and case does not matter. An upstream is named by its host
//! with `_` for whatever is no letter or digit: `LARDER_UPSTREAM__DOCKER_IO__PASSWORD`. It must be built in
//! or named in the file, since a name cannot be read back out of its spelling. A list is written with
//! commas or as TOML: `a, b` or `["a", "b"]`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use toml::{Table, Value};

use super::error::{KeyPath, Place, Problem, clip};
use super::file::{Layer, quoted};
use super::keys::{self, Kind};
use super::token_places::{ADMIN_URL_VARIABLE, TOKEN_FILE_VARIABLE};

const PREFIX: &str = "LARDER_";
/// A name longer than this is no typo of any.
const LONGEST_NAME: usize = 400;
/// Says where the file is; no key of it.
pub const CONFIG_VARIABLE: &str = "LARDER_CONFIG";
/// Opens the key that bundles are signed with; no key of the configuration.
pub const BUNDLE_PASSWORD_VARIABLE: &str = "LARDER_BUNDLE_PASSWORD";
/// Variables that begin as those of keys do, and set none.
const NO_KEYS: [&str; 4] = [
    CONFIG_VARIABLE,
    ADMIN_URL_VARIABLE,
    TOKEN_FILE_VARIABLE,
    BUNDLE_PASSWORD_VARIABLE,
];

/// What the surroundings of a process say, as a value, so that tests need no real ones.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    pub variables: BTreeMap<String, String>,
    /// Relative paths of variables and of `--config` start here.
    pub cwd: PathBuf,
    /// What `~` means.
    pub home: Option<PathBuf>,
    /// The folder of system-wide configuration.
    pub etc: PathBuf,
    /// The folder of what lives until the next boot; empty: none.
    pub run: PathBuf,
}

impl Environment {
    /// That of this process. Text that is no UTF-8 is kept with replacement characters, and refused later
    /// if Larder has to use it.
    pub fn of_process() -> Environment {
        let lossy = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
        Environment {
            variables: std::env::vars_os().map(|(k, v)| (lossy(k), lossy(v))).collect(),
            cwd: std::env::current_dir().unwrap_or_default(),
            home: std::env::home_dir().filter(|home| home.is_absolute()),
            etc: PathBuf::from("/etc"),
            run: PathBuf::from("/run"),
        }
    }

    /// A variable that is set and not empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|v| !v.is_empty())
    }
}

/// The variables that set keys. `named` tells the upstreams, built in and configured, and the other tables of the file
/// that have names.
///
/// A variable that matches no key goes to `warnings`: programs and platforms set variables with this prefix that are
/// not meant for Larder, and those must not keep it from starting.
pub fn read(
    environment: &Environment,
    upstreams: &[String],
    named: keys::Named<'_>,
    problems: &mut Vec<Problem>,
    warnings: &mut Vec<Problem>,
) -> Layer {
    let known = spellings(named);
    let mut layer = Layer::default();
    for (variable, text) in &environment.variables {
        let Some(rest) = after_prefix(variable) else { continue };
        if NO_KEYS.contains(&variable.as_str()) || is_service_link(&rest) {
            continue;
        }
        let problem = match known.get(&rest).map(Vec::as_slice) {
            None | Some([]) => {
                warnings.push(Problem {
                    place: Place::Variable(variable.clone()),
                    key: Vec::new(),
                    message: unknown(&rest, &known, upstreams),
                });
                continue;
            }
            Some([(path, kind)]) => match value(text, *kind) {
                Ok(value) => match layer.origins.insert(path.clone(), Place::Variable(variable.clone())) {
                    None => {
                        insert(&mut layer.values, path, value);
                        continue;
                    }
                    Some(other) => (path.clone(), format!("{other} sets the same key")),
                },
                Err(message) => (path.clone(), message),
            },
            Some([(one, _), (two, _), ..]) => {
                let both = [one, two]
                    .map(|path| path.get(1).cloned().unwrap_or_default())
                    .join(" and ");
                (Vec::new(), format!("this could mean {both}; set it in the file"))
            }
        };
        problems.push(Problem {
            place: Place::Variable(variable.clone()),
            key: problem.0,
            message: problem.1,
        });
    }
    layer
}

fn after_prefix(variable: &str) -> Option<String> {
    let upper = variable.to_ascii_uppercase();
    upper.strip_prefix(PREFIX).map(str::to_owned)
}

/// Every key by its variable's name behind the prefix. Two upstreams may share a spelling (`a-b.io`, `a.b.io`).
fn spellings(named: keys::Named<'_>) -> BTreeMap<String, Vec<(KeyPath, Kind)>> {
    let mut out: BTreeMap<String, Vec<(KeyPath, Kind)>> = BTreeMap::new();
    for (path, kind) in keys::leaves(named) {
        let parts: Vec<String> = path.iter().map(|part| spelled(part)).collect();
        out.entry(parts.join("__")).or_default().push((path, kind));
    }
    out
}

/// `docker.io` → `DOCKER_IO`
fn spelled(part: &str) -> String {
    part.chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_uppercase()
            } else {
                '_'
            }
        })
        .collect()
}

/// What Kubernetes sets in every pod beside a Service called `larder` or `larder-…`: `LARDER_SERVICE_HOST`,
/// `LARDER_PORT_5000_TCP_ADDR`. Refusing those would keep Larder from starting behind its own Service.
fn is_service_link(rest: &str) -> bool {
    if rest.contains("__") {
        return false;
    }
    let rest = format!("_{rest}");
    let port = rest.rsplit_once("_PORT").is_some_and(|(head, tail)| {
        let parts: Vec<&str> = tail.split('_').skip(1).collect();
        match parts.as_slice() {
            [] => tail.is_empty() && !head.ends_with("_TCP"),
            [number, protocol] | [number, protocol, "PROTO" | "ADDR"] => {
                number.parse::<u16>().is_ok() && matches!(*protocol, "TCP" | "UDP" | "SCTP")
            }
            _ => false,
        }
    });
    // LARDER_PORT_5000_TCP_PORT ends in the word that the split above looks for.
    let port_of_port = rest
        .strip_suffix("_PORT")
        .is_some_and(|head| ["_TCP", "_UDP", "_SCTP"].iter().any(|end| head.ends_with(end)) && head.contains("_PORT_"));
    port || port_of_port || rest.ends_with("_SERVICE_HOST") || rest.contains("_SERVICE_PORT")
}

fn unknown(rest: &str, known: &BTreeMap<String, Vec<(KeyPath, Kind)>>, upstreams: &[String]) -> String {
    let nearest = known
        .keys()
        .filter(|_| rest.len() <= LONGEST_NAME)
        .map(|name| (keys::distance(&single(rest), &single(name)), name))
        .filter(|(distance, _)| *distance <= keys::tolerance(rest))
        // Of two that are as near, the shorter one: LARDER_LOG is LARDER_LOG__LEVEL rather than …__FORMAT.
        .min_by_key(|(distance, name)| (*distance, name.len()));
    let upstream = rest
        .strip_prefix("UPSTREAM__")
        .and_then(|rest| rest.rsplit_once("__"))
        .filter(|(name, _)| upstreams.iter().all(|upstream| spelled(upstream) != *name));
    match (nearest, upstream) {
        (Some((_, name)), _) => format!("this sets no key and is ignored; did you mean {PREFIX}{name}?"),
        (None, Some((name, _))) => format!(
            "this is ignored, since no upstream is spelled {}; a registry that is not built in must be named in the file \
             first, such as [upstream.\"registry.example\"]",
            clip(name)
        ),
        (None, None) => "this sets no key and is ignored; expected a name such as LARDER_CACHE__MAX_SIZE for \
                         cache.max_size"
            .to_owned(),
    }
}

/// One underscore where two belong is the likeliest slip, and should cost nothing in a comparison.
fn single(name: &str) -> String {
    name.replace("__", "_")
}

fn value(text: &str, kind: Kind) -> Result<Value, String> {
    if text.contains('\u{fffd}') {
        return Err("its value is not UTF-8".to_owned());
    }
    let wrong = || format!("found {}, expected {}", quoted(text), kind.expected());
    let list = || {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        Value::Array(parts.map(Value::from).collect())
    };
    match kind {
        Kind::Flag => match text.trim().to_ascii_lowercase().as_str() {
            "true" => Ok(Value::Boolean(true)),
            "false" => Ok(Value::Boolean(false)),
            _ => Err(wrong()),
        },
        Kind::Count => match text.trim().parse::<i64>() {
            Ok(number) if number >= 0 => Ok(Value::Integer(number)),
            _ => Err(wrong()),
        },
        Kind::Share => text.trim().parse().map(Value::Float).map_err(|_| wrong()),
        Kind::List | Kind::TextOrList if is_toml_list(text) => toml_list(text).ok_or_else(wrong),
        Kind::List => Ok(list()),
        // A comma may be part of it.
        Kind::SecretList => Ok(match is_toml_list(text).then(|| toml_list(text)).flatten() {
            Some(list) => list,
            None => Value::Array(vec![Value::from(text)]),
        }),
        Kind::TextOrList if text.contains(',') => Ok(list()),
        _ => Ok(Value::from(text)),
    }
}

/// `["a"]`, but not `[::]:5000`, which is an address.
fn is_toml_list(text: &str) -> bool {
    let text = text.trim();
    text.starts_with('[') && text.ends_with(']') && (text.contains(['"', '\'']) || text.replace(' ', "") == "[]")
}

fn toml_list(text: &str) -> Option<Value> {
    let mut table: Table = toml::from_str(&format!("list = {}", text.trim())).ok()?;
    let list = table.remove("list").filter(|_| table.is_empty())?;
    let texts = list.as_array()?.iter().all(Value::is_str);
    texts.then_some(list)
}

/// Puts a value at its path, within the tables that lead there.
pub(super) fn insert(table: &mut Table, path: &[String], value: Value) {
    let [first, rest @ ..] = path else { return };
    if rest.is_empty() {
        table.insert(first.clone(), value);
        return;
    }
    let inner = table.entry(first.clone()).or_insert_with(|| Value::Table(Table::new()));
    if let Value::Table(inner) = inner {
        insert(inner, rest, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubernetes_service_links_are_no_keys() {
        for link in [
            "SERVICE_HOST",
            "SERVICE_PORT",
            "SERVICE_PORT_HTTP",
            "ADMIN_SERVICE_HOST",
            "PORT",
            "PORT_5000_TCP",
            "PORT_5000_TCP_PROTO",
            "PORT_5000_TCP_PORT",
            "PORT_5000_TCP_ADDR",
            "ADMIN_PORT_5001_TCP_ADDR",
        ] {
            assert!(is_service_link(link), "{link}");
        }
        for key in ["CACHE__PATH", "CACHE_MAX_SIZE", "SERVER_LISTEN", "PORTS", "REPORT"] {
            assert!(!is_service_link(key), "{key}");
        }
    }

    #[test]
    fn lists_by_commas_or_as_toml() {
        let texts = |text: &str, kind| value(text, kind).unwrap();
        assert_eq!(texts("a, b", Kind::List), texts("[\"a\", 'b']", Kind::List));
        assert_eq!(texts("", Kind::List), Value::Array(vec![]));
        assert_eq!(texts("[]", Kind::TextOrList), Value::Array(vec![]));
        assert_eq!(texts("[::]:5000", Kind::TextOrList), Value::from("[::]:5000"));
        assert_eq!(
            texts("A: b, c", Kind::SecretList),
            Value::Array(vec![Value::from("A: b, c")])
        );
        assert_eq!(texts("['A: b']", Kind::SecretList), texts("A: b", Kind::SecretList));
        assert!(value("[\"a\", 1]", Kind::List).is_err());
        assert!(value("[\"a\"]\nx = [\"b\"]", Kind::List).is_err());
    }
}
