//! What the operator asked for: raw figures in, meaning out.
//!
//! `load` finds the file, layers defaults, file and environment and refuses what makes no sense;
//! what leaves this floor is a [`Config`] that nobody has to check again. The way there: `file` and
//! `environment` read a layer each and hold it against `keys`, `options` is the command line's; `raw` is what figment merges them into;
//! `settle`, `settle_access`, `acme`, `listen`, `upstreams`, `care` and `names` give it meaning and tell `findings` what has none. `units` reads
//! sizes and durations, `admin_part` saves what a refused one says of the admin API, `builtin` knows the well-known
//! registries, `foreign` the keys of another registry program, `example` is where proxy.toml.example is held to the code; `token_places` says where the admin API's
//! token is kept, `traces` where spans go, `trusted_proxies` who may speak for a client, `webhook` who is told of what happens; `prefetch` reads schedules, `wanted`
//! what they and `larder prefetch` are to fetch.

mod access;
#[cfg(test)]
mod access_tests;
mod acme;
mod admin_part;
mod builtin;
mod care;
mod environment;
mod error;
#[cfg(test)]
mod example;
mod file;
mod findings;
mod foreign;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod keys;
mod listen;
mod load;
mod names;
mod options;
mod paths;
mod prefetch;
mod raw;
mod settle;
mod settle_access;
#[cfg(test)]
mod tests;
mod token_places;
mod traces;
mod trusted_proxies;
pub mod units;
mod upstreams;
pub mod wanted;
mod webhook;

pub use access::{Access, AccessRule, Issuer, JwksAt, Listen, Listener, MAIN_LISTENER, May};
pub use acme::{Acme, Binding, Challenge};
pub use admin_part::AdminPart;
pub use care::{Cloud, Floor, Lender, is_helper_name};
pub use environment::{BUNDLE_PASSWORD_VARIABLE, Environment};
pub use error::{ConfigError, KeyPath, Place, Problem, show_key};
pub use findings::OPEN_FILE;
pub use options::GivenOption;
pub use prefetch::{BY_COMMAND, Prefetch, Schedule};
pub use token_places::{
    ADMIN_URL_VARIABLE, TOKEN_FILE_VARIABLE, TokenFolder, TokenPlaces, UserFolders, token_file_name,
};
pub use traces::{Traces, header_pairs};
pub use trusted_proxies::TrustedProxies;
pub use webhook::{HookUrl, WEBHOOK_EVENTS, Webhook};

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use url::Url;

use crate::oci::HostPort;

/// Everything, with meaning: paths expanded, names lower-cased, sizes in bytes.
#[derive(Clone, Debug)]
pub struct Config {
    pub server: Server,
    /// Further ones of the registry, sorted by name.
    pub listeners: Vec<Listener>,
    pub access: Access,
    /// Set where a listener shows a certificate that Larder gets for itself.
    pub acme: Option<Acme>,
    pub admin: Admin,
    pub cache: Cache,
    pub log: Log,
    pub limits: Limits,
    pub audit: Option<Audit>,
    pub bundle: Bundle,
    pub traces: Option<Traces>,
    /// Built-in ones included, each name once, sorted by name.
    pub upstreams: Vec<Upstream>,
    /// What is fetched ahead, and when.
    pub prefetch: Vec<Prefetch>,
    /// Who is told of what happens, sorted by name.
    pub webhooks: Vec<Webhook>,
    /// Where the values came from, for people: the file if there was one, the variables by name.
    pub sources: Vec<String>,
    /// The file that was read, if there was one.
    pub file: Option<PathBuf>,
    /// What works but should not stay so: a secret that others can read. For `check-config` and the log.
    pub warnings: Vec<String>,
    /// Keys that a variable sets although the file sets them too: the key, its place in the file, the variable.
    pub covered: Vec<(String, String, String)>,
    /// Which keys were given and where: `cache.max_size` → `proxy.toml:3` or a variable's name.
    pub origins: BTreeMap<String, String>,
}

/// The names of the tables at the top level of the file.
#[cfg(test)]
pub fn section_names() -> impl Iterator<Item = &'static str> {
    keys::ROOT.iter().map(|key| key.name)
}

/// The registry that clients talk to.
#[derive(Clone, Debug)]
pub struct Server {
    /// At least one.
    pub listen: Vec<SocketAddr>,
    pub tls: Option<ServerTls>,
    /// How long running responses may take to finish after a stop was asked for.
    pub shutdown_grace: Duration,
    /// Whether every answer says where its time went.
    pub server_timing: bool,
    /// For every listener of the registry.
    pub trusted_proxies: TrustedProxies,
}

/// What a listener shows of itself, and whose clients it takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerTls {
    pub identity: TlsIdentity,
    /// A PEM file.
    pub client_ca: Option<PathBuf>,
}

/// Where a listener's certificate comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsIdentity {
    /// PEM files.
    Files { cert: PathBuf, key: PathBuf },
    /// [`Config::acme`]
    Acme,
}

impl ServerTls {
    pub fn is_acme(&self) -> bool {
        self.identity == TlsIdentity::Acme
    }
}

/// Operators: health, metrics and the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// At least one.
    pub listen: Vec<Listen>,
    /// What calls to the API have to bring; `None`: a token that is made at each start.
    pub token: Option<Password>,
    /// Of the addresses; sockets in the file system need none.
    pub tls: Option<ServerTls>,
    /// Where a token that is made is written.
    pub token_places: TokenPlaces,
}

#[derive(Clone, Debug)]
pub struct Cache {
    pub path: PathBuf,
    /// Bytes.
    pub max_size: u64,
    /// Bytes of the file system that stay free.
    pub min_free: u64,
    pub tag_ttl: Duration,
    /// How long an upstream's "it is not there" is believed; never longer than that upstream's `tag_ttl`.
    pub negative_ttl: Duration,
    pub stale_if_error: Duration,
    /// The name of one of [`Config::upstreams`].
    pub default_upstream: HostPort,
    pub offline: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// A level, or levels by target: `info`, `larder=debug`.
    pub level: String,
    pub format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// Where it is written down who did what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audit {
    pub file: PathBuf,
    /// Bytes of one file.
    pub max_size: u64,
    /// Full files that are kept beside it.
    pub keep: usize,
}

/// Bounds on what clients, and what they ask for, may cost (R-X13).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    pub max_connections: usize,
    pub max_connections_per_client: usize,
    /// Bytes of a request's header block.
    pub header_bytes: usize,
    pub headers: usize,
    /// Until a request's headers are complete.
    pub header_timeout: Duration,
    /// A kept-alive connection without a request.
    pub idle_timeout: Duration,
    /// Bytes that a manifest may have when it comes, by pull or in a bundle; at most
    /// [`MAX_MANIFEST_BYTES`](crate::oci::manifest::MAX_MANIFEST_BYTES).
    pub manifest_size: usize,
    /// Descriptors that a manifest may have when it comes, by pull or in a bundle.
    pub manifest_descriptors: usize,
}

/// Images that come as files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bundle {
    /// Whose signatures count: public keys as minisign writes them.
    pub trusted_keys: Vec<String>,
}

/// One registry that Larder may talk to.
#[derive(Clone, PartialEq, Eq)]
pub struct Upstream {
    /// How images name it: `docker.io`, `registry.example:5000`.
    pub name: HostPort,
    /// Where it is reached: scheme, host, port and, for some products, a base path before `/v2/`; behind `/v2/`, if there is
    /// one, what all repositories lie below there (R-U50).
    pub url: Url,
    /// Tried first, in order.
    pub mirrors: Vec<Url>,
    /// First path components that stand for it: `hub`.
    pub aliases: Vec<String>,
    /// Other hosts that mean the same registry (`index.docker.io`); built in (R-U30).
    pub synonyms: Vec<HostPort>,
    pub credentials: Option<StaticCredentials>,
    /// Who gives out credentials; never beside `credentials`.
    pub lender: Option<Lender>,
    pub tag_ttl: Duration,
    pub stale_if_error: Duration,
    pub offline: bool,
    /// Bytes of the cache that this upstream may fill.
    pub max_size: Option<u64>,
    /// Repository patterns, `*` within and across components; empty: all.
    pub allow: Vec<String>,
    pub deny: Vec<String>,
    /// `None`: any public address, and private ones only if the upstream is at one.
    pub redirect_hosts: Option<Vec<HostPort>>,
    pub trusted_realms: Vec<HostPort>,
    pub ca_file: Option<PathBuf>,
    pub client_cert: Option<PathBuf>,
    pub client_key: Option<PathBuf>,
    /// `http://`, `https://` or `socks5://`.
    pub proxy: Option<Url>,
    pub connect_timeout: Duration,
    /// Between two pieces of an upstream's answer.
    pub read_timeout: Duration,
    /// How long the upstream may take to begin an answer, token included. Clients are told to come back sooner.
    pub answer_timeout: Duration,
    pub max_connections: Option<usize>,
    /// Below it only misses are worth a pull.
    pub budget_floor: Floor,
    /// Bytes a second, of all transfers together.
    pub max_bandwidth: Option<u64>,
}

/// As derived, but for the user and password that a proxy's address may hold (R-X17). Taken apart without
/// `..`, so that a new field cannot be forgotten.
impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Upstream {
            name,
            url,
            mirrors,
            aliases,
            synonyms,
            credentials,
            lender,
            tag_ttl,
            stale_if_error,
            offline,
            max_size,
            allow,
            deny,
            redirect_hosts,
            trusted_realms,
            ca_file,
            client_cert,
            client_key,
            proxy,
            connect_timeout,
            read_timeout,
            answer_timeout,
            max_connections,
            budget_floor,
            max_bandwidth,
        } = self;
        f.debug_struct("Upstream")
            .field("name", name)
            .field("url", &url.as_str())
            .field("mirrors", &mirrors.iter().map(Url::as_str).collect::<Vec<_>>())
            .field("aliases", aliases)
            .field("synonyms", synonyms)
            .field("credentials", credentials)
            .field("lender", lender)
            .field("tag_ttl", tag_ttl)
            .field("stale_if_error", stale_if_error)
            .field("offline", offline)
            .field("max_size", max_size)
            .field("allow", allow)
            .field("deny", deny)
            .field("redirect_hosts", redirect_hosts)
            .field("trusted_realms", trusted_realms)
            .field("ca_file", ca_file)
            .field("client_cert", client_cert)
            .field("client_key", client_key)
            .field("proxy", &proxy.as_ref().map(Url::host_str))
            .field("connect_timeout", connect_timeout)
            .field("read_timeout", read_timeout)
            .field("answer_timeout", answer_timeout)
            .field("max_connections", max_connections)
            .field("budget_floor", budget_floor)
            .field("max_bandwidth", max_bandwidth)
            .finish()
    }
}

impl Upstream {
    /// Whether a HEAD of a manifest counts against the pull limit. Docker Hub's does not (R-U31); of others nothing is
    /// known, so it may.
    pub fn counts_heads(&self) -> bool {
        self.name.as_str() != builtin::DOCKER_HUB
    }

    /// Whether `allow` and `deny` let this repository be pulled; deny wins.
    pub fn permits(&self, repository: &str) -> bool {
        let any = |patterns: &[String]| patterns.iter().any(|p| matches_pattern(p, repository));
        !any(&self.deny) && (self.allow.is_empty() || any(&self.allow))
    }
}

impl Config {
    /// The options of the command line that gave settings, by name. Other commands do not see what they say.
    pub fn options(&self) -> Vec<String> {
        let given = self.origins.values().filter(|place| place.starts_with("--"));
        let names: std::collections::BTreeSet<&String> = given.collect();
        names.into_iter().cloned().collect()
    }
}

/// Returns whether a pattern can match a text that begins with `prefix` and goes on.
pub fn pattern_may_begin(pattern: &str, prefix: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern.len() > prefix.len() && pattern.starts_with(prefix),
        Some((literal, _)) => literal.starts_with(prefix) || prefix.starts_with(literal),
    }
}

/// `*` stands for any run of characters, `/` included; everything else for itself. Takes time in proportion to the product
/// of both lengths at most, whatever somebody makes the text be.
pub fn matches_pattern(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    // Where the last star was, and how much of the text it stands for by now.
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(byte) if *byte == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match &mut star {
                Some((at, taken)) => {
                    *taken += 1;
                    (p, t) = (*at + 1, *taken);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// What the operator gave for one upstream in the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaticCredentials {
    pub username: String,
    pub password: Password,
}

/// Where the password is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Password {
    Value(Secret),
    /// Read when it is needed, so that a rotated secret is found.
    File(PathBuf),
}

impl Password {
    /// The secret itself. Blocking: it may be in a file, whose last line break is not part of it.
    ///
    /// Errors: a sentence that names the file.
    pub fn read(&self) -> Result<Secret, String> {
        let path = match self {
            Password::Value(secret) => return Ok(secret.clone()),
            Password::File(path) => path,
        };
        let text = std::fs::read_to_string(path).map_err(|e| format!("{} cannot be read: {e}", path.display()))?;
        let text = text.trim_end_matches(['\r', '\n']);
        match text.is_empty() {
            true => Err(format!("{} is empty", path.display())),
            false => Ok(Secret::new(text)),
        }
    }

    /// As [`Password::read`], for an admin token, which has to be one.
    pub fn read_token(&self) -> Result<Secret, String> {
        let token = self.read()?;
        match (check_token(token.reveal()), self) {
            (Ok(()), _) => Ok(token),
            (Err(why), Password::Value(_)) => Err(why),
            (Err(why), Password::File(path)) => Err(format!("{}: {why}", path.display())),
        }
    }
}

/// Shorter ones can be guessed.
const MIN_TOKEN: usize = 16;

/// Errors: a sentence that shows nothing of the text.
pub fn check_token(text: &str) -> Result<(), String> {
    let length = text.len();
    let wanted = format!("expected {MIN_TOKEN} or more letters, digits and signs, without spaces");
    match text.chars().find(|c| !c.is_ascii_graphic()) {
        _ if length < MIN_TOKEN => Err(format!("{wanted}, found {length}")),
        Some(c) if c.is_ascii_whitespace() => {
            Err(format!("{wanted}, found a space or a line break among {length} bytes"))
        }
        Some(_) => Err(format!("{wanted}, found something else among {length} bytes")),
        None => Ok(()),
    }
}

/// A text that no log, error or debug output shows (L7, R-X17).
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The text itself; for a header or form body and nothing else.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}
