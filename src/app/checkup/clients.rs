//! Clients on this machine: whether their files lead to this proxy.
//!
//! Each kind has a file of its own here that knows what the client reads. What all share: a file as it is found, one
//! address in it against the proxy's own, and how that is told.

use std::io::Read as _;
use std::path::Path;

use super::naming::Way;
use super::target::{Lookup, Match, Target};
use super::{Address, Finding, Level, containerd, containers, docker, rancher};

/// Longest file that is read.
const MAX_BYTES: u64 = 4 << 20;

/// What the readers of files have in common.
pub(super) struct Look<'a> {
    pub(super) root: &'a Path,
    pub(super) target: &'a Target,
    pub(super) names: &'a Lookup,
}

/// Of every client that has a file below `root`; blocking.
pub(super) fn check(root: &Path, target: &Target, look_up: bool) -> Vec<Finding> {
    let names = Lookup::new(look_up);
    let look = Look {
        root,
        target,
        names: &names,
    };
    let mut findings = docker::check(&look);
    findings.extend(containerd::check(&look));
    findings.extend(containers::check(&look));
    findings.extend(rancher::check(&look));
    findings.extend(containers::check_buildkit(&look));
    if findings.is_empty() {
        let found = "no configuration of docker, containerd, podman, cri-o, k3s or buildkit on this machine";
        let none = Finding::new("clients", look.level(), found);
        findings.push(
            none.advice(
                "larder client-config prints it; on a node ask there: larder doctor --client --address HOST:PORT",
            ),
        );
    }
    findings
}

impl Look<'_> {
    /// Of something that is not set up: nothing to worry about on the proxy's own machine.
    pub(super) fn level(&self) -> Level {
        match self.target.is_expected {
            true => Level::Warning,
            false => Level::Note,
        }
    }

    /// `None` where there is no such file; a file that is there and cannot be read is a finding.
    pub(super) fn read(&self, check: &str, path: &str) -> Option<Result<String, Finding>> {
        let file = match std::fs::File::open(self.root.join(path)) {
            Ok(file) => file,
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
                ) =>
            {
                return None;
            }
            Err(error) => return Some(Err(unread(check, path, &error.to_string()))),
        };
        let mut text = String::new();
        Some(match file.take(MAX_BYTES).read_to_string(&mut text) {
            Ok(_) => Ok(text),
            Err(error) => Err(unread(check, path, &error.to_string())),
        })
    }

    /// The same, as TOML.
    pub(super) fn read_toml(&self, check: &str, path: &str) -> Option<Result<toml::Table, Finding>> {
        let text = match self.read(check, path)? {
            Ok(text) => text,
            Err(finding) => return Some(Err(finding)),
        };
        Some(text.parse().map_err(|error: toml::de::Error| {
            Finding::problem(check, format!("/{path} is no TOML: {}", error.message()))
                .advice("the client ignores it, or does not start: put it right")
        }))
    }

    /// Where an address in a file leads.
    pub(super) fn fits(&self, text: &str) -> Match {
        text.parse::<Address>()
            .map_or(Match::Elsewhere, |address| self.target.fits(&address, self.names))
    }

    /// The scheme by which the proxy is reached at an address without one.
    pub(super) fn scheme(&self, text: &str) -> Option<&'static str> {
        let address = text.parse::<Address>().ok()?;
        self.target.scheme_of(&address, self.names)
    }

    /// The upstreams that are not among these.
    pub(super) fn missing(&self, named: &[String]) -> Vec<&str> {
        let upstreams = self.target.upstreams.iter().map(String::as_str);
        upstreams
            .filter(|name| !named.iter().any(|named| named == name))
            .collect()
    }
}

fn unread(check: &str, path: &str, why: &str) -> Finding {
    Finding::warning(check, format!("/{path} cannot be read: {why}")).advice("ask as root")
}

/// An address here by which a client gets other images than it asks for, or none. `advice`: what to write.
pub(super) fn wrong_way(check: &str, path: &str, address: &str, way: &Way, advice: String) -> Option<Finding> {
    let (level, what) = match way {
        Way::Right => return None,
        Way::WrongImage(what) => (Level::Problem, format!("by {address} {what}")),
        Way::Refused(why) => (
            Level::Problem,
            format!("pulls by {address} are refused, and go around this proxy or fail: {why}"),
        ),
    };
    Some(Finding::new(check, level, format!("/{path}: {what}")).advice(advice))
}

/// An address here, but by the scheme that the proxy does not speak there.
pub(super) fn wrong_scheme(check: &str, path: &str, found: &str, right: &str) -> Finding {
    let wrong = format!("/{path} names {found}, and the proxy speaks {right} there");
    Finding::problem(check, wrong).advice(format!("write {right}:// there"))
}

/// `a, b, c and 4 more`
pub(super) fn few<S: AsRef<str>>(names: &[S]) -> String {
    const SHOWN: usize = 4;
    let shown: Vec<&str> = names.iter().take(SHOWN).map(AsRef::as_ref).collect();
    match names.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}
