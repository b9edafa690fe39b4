//! Finds the file, lays defaults, file and variables over one another, and hands out a [`Config`] or every
//! reason why not.
//!
//! `file` and `environment` read a layer each and know where each value stood; figment merges the layers;
//! `settle` and `upstreams` give the outcome meaning.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use figment::Figment;
use figment::providers::Serialized;

use super::admin_part::{self, AdminPart, Reading};
use super::environment::{self, CONFIG_VARIABLE, Environment};
use super::error::{ConfigError, Place, Problem};
use super::file::{self, Layer, Origins};
use super::findings::Findings;
use super::options::{self, GivenOption};
use super::paths::{Paths, reason};
use super::raw::Raw;
use super::{Config, acme, foreign, names, prefetch, settle, settle_access, traces, upstreams, webhook};
use crate::oci::HostPort;

/// In the current folder; then in `larder` below `/etc`.
const FILE_NAME: &str = "proxy.toml";
/// Much more than any sensible file; keeps `--config /dev/zero` from filling the memory.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// The text of a configuration file.
#[derive(Default)]
struct Source {
    /// As messages name it.
    shown: String,
    dir: Option<PathBuf>,
    /// Where it was read; none for a text that is no file.
    path: Option<PathBuf>,
    text: String,
}

impl Config {
    /// What holds for a process with this environment, started with `--config explicit` or without.
    ///
    /// A file that somebody named must be there; the usual ones may be absent, but not unreadable.
    pub fn load(explicit: Option<&Path>, environment: &Environment) -> Result<Config, ConfigError> {
        Config::load_with(explicit, environment, &[])
    }

    /// As [`Config::load`], with keys that the command line sets: they win over the file and over variables.
    pub fn load_with(
        explicit: Option<&Path>,
        environment: &Environment,
        options: &[GivenOption],
    ) -> Result<Config, ConfigError> {
        let source = match (explicit, environment.get(CONFIG_VARIABLE)) {
            (Some(path), _) => read_named(path, environment, Place::CommandLine).map(Some),
            (None, Some(path)) => {
                let place = Place::Variable(CONFIG_VARIABLE.to_owned());
                read_named(Path::new(path), environment, place).map(Some)
            }
            (None, None) => find_usual(environment),
        };
        match source {
            Ok(source) => assemble(source, environment, options),
            // A file that somebody named by mistake says nothing of a proxy; one that only its user may read does.
            Err((error, Absence::Missing)) => Err(error),
            Err((error, Absence::Unreadable)) => Err(unread(error, Layer::default(), None, environment)),
        }
    }

    /// Returns true if a file was read and has at least one key.
    pub fn has_keys_of_file(&self) -> bool {
        let shown = self.sources.first().filter(|_| self.file.is_some());
        let is_of_file = |shown: &str, place: &str| place.strip_prefix(shown).is_some_and(|rest| rest.starts_with(':'));
        shown.is_some_and(|shown| self.origins.values().any(|place| is_of_file(shown, place)))
    }

    /// What `text` means with no variables set and no home but a folder that does not exist; for tests.
    pub fn from_toml(text: &str) -> Result<Config, ConfigError> {
        let environment = Environment {
            cwd: PathBuf::from("/nonexistent"),
            home: Some(PathBuf::from("/nonexistent")),
            etc: PathBuf::from("/nonexistent"),
            run: PathBuf::new(),
            variables: Default::default(),
        };
        let source = Source {
            shown: FILE_NAME.to_owned(),
            dir: None,
            path: None,
            text: text.to_owned(),
        };
        assemble(Some(source), &environment, &[])
    }

    /// What holds where nobody configured anything, with the cache folder of [`Config::from_toml`].
    pub fn default_config() -> Result<Config, ConfigError> {
        Config::from_toml("")
    }
}

/// Why there is no text.
enum Absence {
    Missing,
    Unreadable,
}

fn read_named(path: &Path, environment: &Environment, place: Place) -> Result<Source, (ConfigError, Absence)> {
    let shown = path.display().to_string();
    read_source(&environment.cwd.join(path), &shown).map_err(|e| {
        let message = format!("cannot read the configuration file {shown}: {}", reason(&e));
        let absence = match is_missing(&e) {
            true => Absence::Missing,
            false => Absence::Unreadable,
        };
        (ConfigError::one(place, message), absence)
    })
}

fn is_missing(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
    )
}

fn find_usual(environment: &Environment) -> Result<Option<Source>, (ConfigError, Absence)> {
    let system_wide = environment.etc.join("larder").join(FILE_NAME).display().to_string();
    for shown in [FILE_NAME, &system_wide] {
        match read_source(&environment.cwd.join(shown), shown) {
            Ok(source) => return Ok(Some(source)),
            Err(e) if is_missing(&e) => {}
            Err(e) => {
                let place = Place::File {
                    path: shown.to_owned(),
                    line: None,
                };
                let message = format!("it is there, but cannot be read: {}", reason(&e));
                return Err((ConfigError::one(place, message), Absence::Unreadable));
            }
        }
    }
    Ok(None)
}

fn read_source(path: &Path, shown: &str) -> std::io::Result<Source> {
    use std::io::Read;
    let mut bytes = Vec::new();
    std::fs::File::open(path)?
        .take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut bytes)?;
    let invalid = |message: &str| std::io::Error::new(std::io::ErrorKind::InvalidData, message.to_owned());
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(invalid("it is larger than 4 MiB"));
    }
    let text = String::from_utf8(bytes).map_err(|_| invalid("it is not UTF-8"))?;
    Ok(Source {
        shown: shown.to_owned(),
        dir: path.parent().map(Path::to_owned),
        path: Some(path.to_owned()),
        text,
    })
}

/// The layers, merged, and where each value is from.
struct Laid {
    raw: Raw,
    origins: Origins,
    /// The variables that set keys, sorted.
    variables: Vec<String>,
    covered: Vec<(String, String, String)>,
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
    /// True if a value of `admin.listen` is in the file or in a variable.
    has_admin_listen: bool,
}

/// Lays the variables over the file, the command line's options over them, and all over the defaults. `problems` are those
/// of the file.
fn lay(
    file: Layer,
    environment: &Environment,
    options: &[GivenOption],
    mut problems: Vec<Problem>,
) -> Result<Laid, ConfigError> {
    let mut defaults = Raw::default();
    let options = options::layer(options, &mut problems);
    for name in options::upstreams(&file.values).chain(options::upstreams(&options.values)) {
        defaults.upstream.entry(name.clone()).or_default();
    }
    let names: Vec<String> = defaults.upstream.keys().cloned().collect();
    let named = |table: &[String]| match table {
        [upstream] if upstream == "upstream" => names.clone(),
        // A list of rules has no names to spell in a variable.
        [.., rule] if rule == "rule" => Vec::new(),
        table => file::names_at(&file.values, table),
    };
    let mut warnings = Vec::new();
    let variables = environment::read(environment, &names, &named, &mut problems, &mut warnings);
    let raw = merge(&defaults, [&file, &variables, &options])?;
    let has_admin_listen = [&file, &variables, &options].iter().any(|layer| {
        let admin = layer.values.get("admin").and_then(toml::Value::as_table);
        admin.is_some_and(|admin| admin.contains_key("listen"))
    });
    let mut origins = file.origins;
    let covered = variables.origins.iter().filter_map(|(key, variable)| {
        let place = origins.get(key)?;
        Some((super::error::show_key(key), place.to_string(), variable.to_string()))
    });
    let covered = covered.collect();
    let names = variables.origins.values().map(Place::to_string).collect();
    origins.extend(variables.origins);
    origins.extend(options.origins);
    Ok(Laid {
        raw,
        origins,
        variables: names,
        covered,
        problems,
        warnings,
        has_admin_listen,
    })
}

fn assemble(source: Option<Source>, environment: &Environment, options: &[GivenOption]) -> Result<Config, ConfigError> {
    let is_file = source.is_some();
    let source = source.unwrap_or_default();
    let mut problems = Vec::new();
    let file = match is_file.then(|| file::read(&source.text, &source.shown, &mut problems)) {
        None => Layer::default(),
        Some(Ok(layer)) => layer,
        Some(Err(error)) => {
            let saved = file::salvage(&source.text, &source.shown, &admin_part::TABLES);
            return Err(unread(error, saved, source.dir, environment));
        }
    };
    let laid = lay(file, environment, options, problems)?;
    let mut sources: Vec<String> = is_file.then_some(source.shown).into_iter().collect();
    sources.extend(laid.variables);
    let paths = Paths {
        environment,
        file_dir: source.dir,
    };
    let mut findings = Findings {
        origins: &laid.origins,
        paths: &paths,
        problems: laid.problems,
        warnings: laid
            .warnings
            .iter()
            .map(ToString::to_string)
            .chain(foreign::warnings(&environment.variables))
            .collect(),
    };
    let known = findings.problems.clone();
    match settle_all(&mut findings, &laid.raw, sources) {
        Ok(config) => Ok(Config {
            file: source.path,
            covered: laid.covered,
            ..config
        }),
        Err(error) => {
            let reading = Reading {
                is_whole: true,
                has_listen: laid.has_admin_listen,
                problems: &known,
            };
            Err(error.with_admin(AdminPart::of(&laid.raw, &laid.origins, &paths, &reading)))
        }
    }
}

/// The error of a file that could not be read to its end, with what `saved` and the variables say of the admin API.
fn unread(error: ConfigError, saved: Layer, file_dir: Option<PathBuf>, environment: &Environment) -> ConfigError {
    let paths = Paths { environment, file_dir };
    match lay(saved, environment, &[], Vec::new()) {
        Ok(laid) => {
            let reading = Reading {
                is_whole: false,
                has_listen: laid.has_admin_listen,
                problems: &laid.problems,
            };
            error.with_admin(AdminPart::of(&laid.raw, &laid.origins, &paths, &reading))
        }
        Err(_) => error,
    }
}

/// Each of `layers` covers those before it.
fn merge(defaults: &Raw, layers: [&Layer; 3]) -> Result<Raw, ConfigError> {
    let defaults = Figment::from(Serialized::defaults(defaults));
    let merged = layers.iter().fold(defaults, |below, layer| {
        below.merge(Serialized::defaults(&layer.values))
    });
    merged.extract().map_err(|errors| {
        // Wrong types were sorted out before: this is a key that `keys` and `raw` see differently. The
        // value stays out of the message, since it could be a secret.
        let problem = |error: figment::Error| Problem {
            place: Place::Default,
            key: error.path,
            message: "its value does not fit".to_owned(),
        };
        ConfigError::new(errors.into_iter().map(problem).collect())
    })
}

fn settle_all(findings: &mut Findings<'_>, raw: &Raw, mut sources: Vec<String>) -> Result<Config, ConfigError> {
    let server = settle::server(findings, &raw.server);
    let admin = settle::admin(findings, raw, &server.listen);
    let at_admin: Vec<SocketAddr> = settle_access::tcp_of(&admin.listen).collect();
    let placeholder = fallback_host()?;
    let mut cache = settle::cache(findings, raw, placeholder);
    let upstreams = upstreams::upstreams(findings, raw, &cache);
    if let Some(name) = names::default_upstream(findings, raw, &upstreams) {
        cache.default_upstream = name;
    }
    let mut taken = [server.listen.as_slice(), &at_admin].concat();
    let listeners = settle_access::listeners(findings, raw.listener.iter(), &taken, &admin.listen);
    let access = settle_access::access(findings, &raw.access, &listeners, &upstreams);
    taken.extend(
        listeners
            .iter()
            .flat_map(|listener| settle_access::tcp_of(&listener.listen)),
    );
    let acme = acme::acme(findings, &raw.acme, (&server, &listeners, &admin), &taken);
    names::check_not_ourselves(findings, &upstreams, &taken);
    let log = settle::log(findings, &raw.log);
    let limits = settle::limits(findings, &raw.limits);
    let audit = settle::audit(findings, &raw.audit);
    let bundle = settle::bundle(findings, &raw.bundle);
    let traces = traces::traces(findings, &raw.traces, &mut sources);
    let prefetch = prefetch::prefetches(findings, &raw.prefetch);
    let webhooks = webhook::webhooks(findings, raw.webhook.iter(), &upstreams);
    if !findings.problems.is_empty() {
        return Err(ConfigError::new(std::mem::take(&mut findings.problems)));
    }
    Ok(Config {
        server,
        listeners,
        access,
        acme,
        admin,
        cache,
        log,
        limits,
        audit,
        bundle,
        traces,
        upstreams,
        prefetch,
        webhooks,
        sources,
        file: None,
        warnings: std::mem::take(&mut findings.warnings),
        covered: Vec::new(),
        origins: findings
            .origins
            .iter()
            .map(|(key, place)| (super::error::show_key(key), place.to_string()))
            .collect(),
    })
}

/// Stands in `cache.default_upstream` until the upstreams are known.
fn fallback_host() -> Result<HostPort, ConfigError> {
    let name = super::builtin::BUILTIN[0].name;
    name.parse()
        .map_err(|e: crate::oci::name::HostError| ConfigError::one(Place::Default, e.to_string()))
}
