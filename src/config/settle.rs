//! From figures to meaning: everything but the upstreams, which are next door.
//!
//! Each value is parsed once, here. What is impossible is noted with its place and replaced by something
//! harmless, so that the judging goes on; `load` throws the result away when anything was noted.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::error::{KeyPath, Place, Problem};
use super::file::{Origins, quoted};
use super::paths::{self, Paths};
use super::raw::{Figure, OneOrMany, Raw, RawLimits, RawLog, RawServer};
use super::units::{self, parse_duration, parse_size};
use super::{Admin, Cache, Limits, Log, LogFormat, Server, ServerTls};
use crate::oci::HostPort;

const MIB: u64 = 1 << 20;
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
const FOREVER: Duration = Duration::from_secs(units::MAX_DAYS * 86_400);
const MOMENT: Duration = Duration::from_millis(1);

/// What has been noticed so far.
pub struct Findings<'a> {
    pub origins: &'a Origins,
    pub paths: &'a Paths<'a>,
    pub problems: Vec<Problem>,
    pub warnings: Vec<String>,
}

impl Findings<'_> {
    /// Where `key` was given; for a key that is missing, where its table was.
    pub fn place(&self, key: &[&str]) -> Place {
        // `upstream` alone only says that some upstream was given.
        let shortest = if key.first() == Some(&"upstream") { 2 } else { 1 };
        (shortest..=key.len())
            .rev()
            .find_map(|end| self.origins.get(&owned(&key[..end])))
            .cloned()
            .unwrap_or(Place::Default)
    }

    pub fn refuse(&mut self, key: &[&str], message: impl Into<String>) {
        self.problems.push(Problem {
            place: self.place(key),
            key: owned(key),
            message: message.into(),
        });
    }

    pub fn warn(&mut self, key: &[&str], message: impl Into<String>) {
        let problem = Problem {
            place: self.place(key),
            key: owned(key),
            message: message.into(),
        };
        self.warnings.push(problem.to_string());
    }

    pub fn size(&mut self, key: &[&str], figure: &Figure, least: u64) -> u64 {
        let (bytes, shown) = match figure {
            Figure::Number(bytes) => (Some(*bytes), bytes.to_string()),
            Figure::Text(text) => (parse_size(text), quoted(text)),
        };
        match bytes {
            Some(bytes) if bytes >= least => return bytes,
            Some(_) => self.refuse(
                key,
                format!("found {shown}, expected at least {}", units::show_size(least)),
            ),
            None => self.refuse(key, format!("found {shown}, expected {}", units::SIZE)),
        }
        least
    }

    pub fn duration(&mut self, key: &[&str], figure: &Figure, (least, most): (Duration, Duration)) -> Duration {
        let (duration, shown) = match figure {
            Figure::Number(number) => (None, number.to_string()),
            Figure::Text(text) => (parse_duration(text), quoted(text)),
        };
        match duration {
            Some(duration) if (least..=most).contains(&duration) => return duration,
            Some(_) => {
                let [least, most] = [least, most].map(units::show_duration);
                self.refuse(key, format!("found {shown}, expected something from {least} to {most}"));
            }
            None => self.refuse(key, format!("found {shown}, expected {}", units::DURATION)),
        }
        least
    }

    /// A time to wait for something on a connection.
    pub fn timeout(&mut self, key: &[&str], figure: &Figure) -> Duration {
        self.duration(key, figure, (MOMENT, HOUR))
    }

    /// An age or a term of trust.
    pub fn term(&mut self, key: &[&str], figure: &Figure) -> Duration {
        self.duration(key, figure, (Duration::ZERO, FOREVER))
    }

    pub fn count(&mut self, key: &[&str], count: usize) -> usize {
        if count == 0 {
            self.refuse(key, "found 0, expected at least 1");
        }
        count
    }

    pub fn path(&mut self, key: &[&str], text: &str) -> PathBuf {
        match self.paths.resolve(text, &self.place(key)) {
            Ok(path) => path,
            Err(message) => {
                self.refuse(key, format!("found {}, {message}", quoted(text)));
                PathBuf::new()
            }
        }
    }

    /// A file that has to be there already.
    pub fn file(&mut self, key: &[&str], text: Option<&String>) -> Option<PathBuf> {
        let before = self.problems.len();
        let path = self.path(key, text?);
        if self.problems.len() == before
            && let Err(message) = paths::check_readable(&path)
        {
            self.refuse(key, message);
        }
        Some(path)
    }

    /// The same, with something in it that other users of the machine should not see (R-X17).
    pub fn secret_file(&mut self, key: &[&str], text: Option<&String>) -> Option<PathBuf> {
        let path = self.file(key, text)?;
        if paths::readable_by_others(&path) {
            let path = path.display();
            self.warn(
                key,
                format!("every user of this machine can read {path}; chmod o-r helps"),
            );
        }
        Some(path)
    }
}

fn owned(key: &[&str]) -> KeyPath {
    key.iter().map(|part| (*part).to_owned()).collect()
}

pub fn server(findings: &mut Findings<'_>, raw: &RawServer) -> Server {
    let tls = raw.tls.as_ref().and_then(|tls| {
        let cert = findings.file(&["server", "tls", "cert"], tls.cert.as_ref());
        let key = findings.secret_file(&["server", "tls", "key"], tls.key.as_ref());
        let client_ca = findings.file(&["server", "tls", "client_ca"], tls.client_ca.as_ref());
        if cert.is_none() || key.is_none() {
            findings.refuse(&["server", "tls"], "expected both cert and key");
        }
        let (cert, key) = cert.zip(key)?;
        Some(ServerTls { cert, key, client_ca })
    });
    Server {
        listen: addresses(findings, &["server", "listen"], &raw.listen),
        tls,
        shutdown_grace: findings.duration(
            &["server", "shutdown_grace"],
            &raw.shutdown_grace,
            (Duration::ZERO, DAY),
        ),
    }
}

pub fn admin(findings: &mut Findings<'_>, raw: &Raw, server: &[SocketAddr]) -> Admin {
    let key = ["admin", "listen"];
    let listen = addresses(findings, &key, &raw.admin.listen);
    if let Some((server, admin)) = clash(server, &listen) {
        // What the operator wrote is blamed, not what was built in.
        match findings.place(&key) {
            Place::Default => findings.refuse(
                &["server", "listen"],
                format!("found {server}, expected another address than admin.listen, which is {admin}"),
            ),
            _ => findings.refuse(
                &key,
                format!("found {admin}, expected another address than server.listen, which is {server}"),
            ),
        }
    }
    if let Some(open) = listen.iter().find(|address| !address.ip().is_loopback()) {
        findings.warn(
            &key,
            format!("{open} is not a loopback address: whoever reaches it can operate this proxy"),
        );
    }
    Admin { listen }
}

fn addresses(findings: &mut Findings<'_>, key: &[&str], raw: &OneOrMany) -> Vec<SocketAddr> {
    let mut out: Vec<SocketAddr> = Vec::new();
    for text in raw.as_slice() {
        match address(text) {
            Ok(address) if address.port() != 0 && out.contains(&address) => {
                findings.refuse(key, format!("found {} twice", quoted(text)));
            }
            Ok(address) => out.push(address),
            Err(expected) => findings.refuse(key, format!("found {}, expected {expected}", quoted(text))),
        }
    }
    if raw.as_slice().is_empty() {
        findings.refuse(
            key,
            "found an empty list, expected an address such as \"127.0.0.1:5000\"",
        );
    }
    out
}

/// Names other than `localhost` are refused: what they resolve to can change under a running proxy.
fn address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    match text.rsplit_once(':') {
        Some(("localhost", port)) => {
            if let Ok(port) = port.parse() {
                return Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
            }
        }
        Some(("" | "*", port)) if port.parse::<u16>().is_ok() => {
            return Err(format!(
                "an address before the port, such as \"[::]:{port}\" for every interface"
            ));
        }
        _ if text.parse::<IpAddr>().is_ok() => return Err("a port too, such as \"127.0.0.1:5000\"".to_owned()),
        _ => {}
    }
    Err("an IP address or localhost, and a port, such as \"127.0.0.1:5000\" or \"[::]:5000\"".to_owned())
}

/// Two listeners that cannot both be bound; the wildcard takes a port on every address.
fn clash<'a>(server: &'a [SocketAddr], admin: &'a [SocketAddr]) -> Option<(&'a SocketAddr, &'a SocketAddr)> {
    let overlap = |a: &SocketAddr, b: &SocketAddr| {
        a.ip() == b.ip()
            || (a.ip().is_unspecified() && (a.is_ipv6() || b.is_ipv4()))
            || (b.ip().is_unspecified() && (b.is_ipv6() || a.is_ipv4()))
    };
    let pairs = server.iter().flat_map(|a| admin.iter().map(move |b| (a, b)));
    let mut pairs = pairs.filter(|(a, b)| a.port() != 0 && a.port() == b.port() && overlap(a, b));
    pairs.next()
}

/// Without `default_upstream`, which needs the upstreams first.
pub fn cache(findings: &mut Findings<'_>, raw: &Raw, default_upstream: HostPort) -> Cache {
    let raw = &raw.cache;
    let path = match &raw.path {
        Some(text) => findings.path(&["cache", "path"], text),
        None => findings.paths.default_cache().unwrap_or_else(|message| {
            findings.refuse(&["cache", "path"], message);
            PathBuf::new()
        }),
    };
    Cache {
        path,
        max_size: findings.size(&["cache", "max_size"], &raw.max_size, MIB),
        min_free: findings.size(&["cache", "min_free"], &raw.min_free, 0),
        tag_ttl: findings.term(&["cache", "tag_ttl"], &raw.tag_ttl),
        stale_if_error: findings.term(&["cache", "stale_if_error"], &raw.stale_if_error),
        default_upstream,
        offline: raw.offline,
    }
}

pub fn log(findings: &mut Findings<'_>, raw: &RawLog) -> Log {
    let format = match raw.format.as_str() {
        "text" => LogFormat::Text,
        "json" => LogFormat::Json,
        other => {
            findings.refuse(
                &["log", "format"],
                format!("found {}, expected \"text\" or \"json\"", quoted(other)),
            );
            LogFormat::Text
        }
    };
    if !raw.level.split(',').all(is_directive) {
        findings.refuse(
            &["log", "level"],
            format!(
                "found {}, expected off, error, warn, info, debug or trace, or such levels for parts of the program, \
                 as in \"info,larder=debug\"",
                quoted(&raw.level)
            ),
        );
    }
    Log {
        level: raw.level.clone(),
        format,
    }
}

/// `info` or `larder::pull=debug`. A single word must be a level: as a module's name a misspelt one would
/// silence the log.
fn is_directive(text: &str) -> bool {
    let level = |word: &str| {
        ["off", "error", "warn", "info", "debug", "trace"]
            .iter()
            .any(|level| level.eq_ignore_ascii_case(word))
    };
    let target = |word: &str| {
        !word.is_empty()
            && word
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b':' | b'-' | b'.'))
    };
    match text.trim().split_once('=') {
        None => level(text.trim()),
        Some((name, word)) => target(name) && level(word),
    }
}

pub fn limits(findings: &mut Findings<'_>, raw: &RawLimits) -> Limits {
    // hyper refuses a read buffer below 8 KiB, and header bytes are held in memory a connection.
    let header_bytes = findings.size(&["limits", "header_bytes"], &raw.header_bytes, 8 << 10);
    if header_bytes > 16 * MIB {
        findings.refuse(&["limits", "header_bytes"], "expected at most 16MiB");
    }
    Limits {
        max_connections: findings.count(&["limits", "max_connections"], raw.max_connections),
        max_connections_per_client: findings.count(
            &["limits", "max_connections_per_client"],
            raw.max_connections_per_client,
        ),
        header_bytes: usize::try_from(header_bytes).unwrap_or(usize::MAX),
        headers: findings.count(&["limits", "headers"], raw.headers),
        header_timeout: findings.timeout(&["limits", "header_timeout"], &raw.header_timeout),
        idle_timeout: findings.duration(&["limits", "idle_timeout"], &raw.idle_timeout, (MOMENT, DAY)),
    }
}
