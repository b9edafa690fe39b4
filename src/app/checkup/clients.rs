//! Clients on this machine: whether their files lead to this proxy.
//!
//! Each kind has a file of its own here that knows what the client reads and makes the requests of it (`pulls`). What all
//! share: a file as it is found, one address in it against the proxy's own, and how a verdict is told.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use super::naming::Way;
use super::pulls::{Endpoint, Judged, PullVerdict, Takes, Trouble};
use super::target::{Lookup, Match, Scheme, Target};
use super::{Address, Finding, Level, buildkit, containerd, containers, docker, rancher};

/// Longest file that is read.
const MAX_BYTES: u64 = 4 << 20;

/// What the readers of files have in common.
pub(super) struct Look<'a> {
    pub(super) root: &'a Path,
    /// The home of whoever asks, below `root`.
    pub(super) home: Option<PathBuf>,
    /// The file that the environment of whoever asks names in the place of registries.conf.
    pub(super) registries_conf: Option<PathBuf>,
    pub(super) target: &'a Target,
    pub(super) names: &'a Lookup,
}

/// Returns the findings about every client that has a file below `root`. Blocking. `registries_conf`: see
/// [`Look::registries_conf`].
pub(super) fn check(
    root: &Path,
    home: Option<&Path>,
    registries_conf: Option<PathBuf>,
    target: &Target,
    look_up: bool,
) -> Vec<Finding> {
    let names = Lookup::new(look_up);
    let look = Look {
        root,
        home: home.map(|home| home.strip_prefix("/").unwrap_or(home).to_owned()),
        registries_conf,
        target,
        names: &names,
    };
    let mut findings = docker::check(&look);
    findings.extend(containerd::check(&look));
    findings.extend(containers::check(&look));
    findings.extend(rancher::check(&look));
    findings.extend(buildkit::check(&look));
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
        let file = match open(&self.root.join(path)) {
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
        Some(match file.take(MAX_BYTES + 1).read_to_string(&mut text) {
            Ok(read) if read as u64 > MAX_BYTES => Err(unread(check, path, "it is larger than 4 MiB")),
            Ok(_) => Ok(text),
            Err(error) => Err(unread(check, path, &error.to_string())),
        })
    }

    /// Reads a file as TOML. `consequence`: what the client does with a file that is none.
    pub(super) fn read_toml(&self, check: &str, path: &str, consequence: &str) -> Option<Result<toml::Table, Finding>> {
        let text = match self.read(check, path)? {
            Ok(text) => text,
            Err(finding) => return Some(Err(finding)),
        };
        Some(text.parse().map_err(|error: toml::de::Error| {
            let found = format!("/{path} is no TOML: {}; {consequence}", error.message());
            Finding::problem(check, found).advice("put it right")
        }))
    }

    /// Names in a folder, in the order of their bytes; none if it cannot be read.
    pub(super) fn names_in(&self, folder: &str) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.root.join(folder)) else {
            return Vec::new();
        };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    /// Where a host, with the port if one is written, leads by this scheme.
    pub(super) fn fits_by(&self, scheme: &str, authority: &str) -> Match {
        let address = format!("{scheme}://{authority}").parse::<Address>();
        address.map_or(Match::Elsewhere, |address| self.target.fits(&address, self.names))
    }

    /// True if a host, with the port if one is written, is this proxy by any scheme.
    pub(super) fn is_here(&self, authority: &str) -> bool {
        ["http", "https"]
            .iter()
            .any(|scheme| self.fits_by(scheme, authority) != Match::Elsewhere)
    }

    /// The scheme by which the proxy is reached at a host, with the port if one is written.
    pub(super) fn scheme(&self, authority: &str) -> Option<Scheme> {
        let schemes = ["http", "https"].iter();
        let mut addresses = schemes.filter_map(|scheme| format!("{scheme}://{authority}").parse::<Address>().ok());
        addresses.find_map(|address| self.target.scheme_of(&address, self.names))
    }

    /// The proxy's ports at the host of an address that is not the proxy's.
    fn ports_beside(&self, authority: &str) -> Vec<u16> {
        let address = format!("https://{}", authority.rsplit("://").next().unwrap_or(authority)).parse::<Address>();
        let ports = |address: Address| self.target.ports_beside(&address, self.names);
        address.map(ports).unwrap_or_default()
    }

    /// The upstreams that are not among these.
    pub(super) fn missing(&self, named: &[String]) -> Vec<&str> {
        let upstreams = self.target.upstreams.iter().map(String::as_str);
        upstreams
            .filter(|name| !named.iter().any(|named| named == name))
            .collect()
    }
}

/// Opens a regular file. Any user may have put something else in its place, on which root would wait (a named pipe) or
/// which it would set going (a device).
fn open(path: &Path) -> std::io::Result<File> {
    let refuse = || Err(std::io::Error::other("it is no regular file"));
    // Looked at before, since opening a device may do something by itself.
    if !std::fs::metadata(path)?.is_file() {
        return refuse();
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => refuse(),
    }
}

fn unread(check: &str, path: &str, why: &str) -> Finding {
    Finding::warning(check, format!("/{path} cannot be read: {why}")).advice("ask as root")
}

/// The differences between clients in the findings about their files.
pub(super) trait Dialect {
    /// `client docker`
    fn check(&self) -> &str;

    /// The file, or the folder of files, for people.
    fn place(&self) -> &str;

    /// Returns what to write so that images of `registry` come by this address.
    fn right(&self, registry: &str, written: &str) -> String;

    /// Returns how the file is written as it should be, and what has to be done then.
    fn recipe(&self) -> String;

    /// False for a client that has mirrors for one registry only.
    fn is_for_all(&self) -> bool {
        true
    }

    /// The address is here by the other scheme.
    fn wrong_scheme(&self, written: &str, spoken: Scheme) -> Finding {
        let wrong = format!("{} names {written}, and the proxy speaks {spoken} there", self.place());
        Finding::problem(self.check(), wrong).advice(format!("write {spoken}:// there"))
    }

    /// The client believes only authorities of the system there, and the proxy has a certificate of another.
    fn untrusted(&self, written: &str) -> Finding {
        let found = format!(
            "{}: the certificate at {written} is by nobody whom this machine believes, and the file names no authority for it",
            self.place()
        );
        Finding::problem(self.check(), found).advice(
            "give the client the authority that issued it, or the proxy a certificate of one that the client knows",
        )
    }

    /// The address is not asked for everything.
    fn partly(&self, registry: &str, written: &str, takes: Takes) -> Finding;
}

/// Gives a registry that no client asks for by the name that is written the verdict of one that is not named.
fn as_asked(mut one: Judged) -> Judged {
    let registry = one.verdict.registry.split('/').next().unwrap_or_default();
    let (why, right) = match registry {
        _ if !one.verdict.names_this_proxy() => return one,
        "registry-1.docker.io" | "index.docker.io" => {
            ("clients know Docker Hub by another name", "docker.io".to_owned())
        }
        other if other.bytes().any(|byte| byte.is_ascii_uppercase()) => {
            ("names of images have small letters there", other.to_ascii_lowercase())
        }
        _ => return one,
    };
    one.troubles = vec![Trouble::NeverAsked(why, right)];
    one.verdict = PullVerdict::elsewhere(&one.verdict.registry, &one.verdict.file);
    one
}

/// The findings about one file, its verdicts on the first. `judged`: each registry that the file names.
pub(super) fn report(look: &Look<'_>, dialect: &dyn Dialect, judged: Vec<Judged>) -> Vec<Finding> {
    let judged: Vec<Judged> = judged.into_iter().map(as_asked).collect();
    let mut findings: Vec<Finding> = Vec::new();
    let around = judged
        .iter()
        .filter(|one| one.troubles.is_empty() && !one.verdict.names_this_proxy());
    let around: Vec<String> = around.map(|one| one.verdict.registry.clone()).collect();
    for one in &judged {
        for trouble in &one.troubles {
            let finding = of_trouble(dialect, &one.verdict.registry, trouble);
            if let Some(finding) = finding.filter(|finding| !findings.contains(finding)) {
                findings.push(finding);
            }
        }
    }
    let mut verdicts: Vec<PullVerdict> = judged.into_iter().map(|one| one.verdict).collect();
    for verdict in &mut verdicts {
        dialect.place().clone_into(&mut verdict.file);
    }
    let here: Vec<&PullVerdict> = verdicts.iter().filter(|verdict| verdict.arrives()).collect();
    if !here.is_empty() {
        findings.insert(0, comes(look, dialect, &here, &around));
        findings.extend(past(dialect, &around));
    } else if findings.is_empty() {
        findings.push(nothing(look, dialect, &verdicts));
    }
    if let Some(first) = findings.first_mut() {
        first.registries = verdicts;
    }
    findings
}

/// Adds findings that a reader of files has made by itself: where nothing arrives, they say why.
pub(super) fn with_more(
    look: &Look<'_>,
    dialect: &dyn Dialect,
    judged: Vec<Judged>,
    more: Vec<Finding>,
) -> Vec<Finding> {
    let judged: Vec<Judged> = judged.into_iter().map(as_asked).collect();
    let is_told = |one: &Judged| one.verdict.arrives() || !one.troubles.is_empty();
    let is_enough = more.is_empty() || judged.iter().any(is_told);
    let verdicts: Vec<PullVerdict> = judged.iter().map(|one| one.verdict.clone()).collect();
    let mut findings = report(look, dialect, judged);
    if !is_enough {
        findings.clear();
    }
    for finding in more {
        if !findings.iter().any(|one| one.found == finding.found) {
            findings.push(finding);
        }
    }
    if !is_enough && let Some(first) = findings.first_mut() {
        first.registries = verdicts
            .into_iter()
            .map(|verdict| PullVerdict {
                file: dialect.place().to_owned(),
                ..verdict
            })
            .collect();
    }
    findings
}

fn of_trouble(dialect: &dyn Dialect, registry: &str, trouble: &Trouble) -> Option<Finding> {
    let (check, place) = (dialect.check(), dialect.place());
    Some(match trouble {
        Trouble::Way(_, Way::Right) => return None,
        Trouble::Way(written, Way::WrongImage(what)) => {
            Finding::problem(check, format!("{place}: by {written} {what}")).advice(dialect.right(registry, written))
        }
        Trouble::Way(written, Way::Refused(why)) => Finding::problem(
            check,
            format!("{place}: pulls of {registry} by {written} are refused, and go around this proxy or fail: {why}"),
        )
        .advice(dialect.right(registry, written)),
        Trouble::Scheme(written, spoken) => dialect.wrong_scheme(written, spoken),
        Trouble::Untrusted(written) => dialect.untrusted(written),
        Trouble::Behind(written, before) => Finding::warning(
            check,
            format!("{place}: {} is asked before {written} for {registry}", few(before)),
        )
        .advice("put this proxy first, or what the other one has never comes here"),
        Trouble::NeverAsked(why, right) => Finding::problem(
            check,
            format!(
                "{place}: {registry} leads here and is never asked for, because {why}: its pulls go around this proxy"
            ),
        )
        .advice(format!("write {right} in its place")),
        Trouble::Partly(written, takes) => dialect.partly(registry, written, *takes),
    })
}

/// Warns of registries that the file names and sends elsewhere, while others come here.
fn past(dialect: &dyn Dialect, around: &[String]) -> Option<Finding> {
    let found = format!(
        "{} names {} and sends their pulls around this proxy",
        dialect.place(),
        around.join(", ")
    );
    let finding = Finding::warning(dialect.check(), found);
    (!around.is_empty()).then(|| finding.advice("put this proxy there, too, unless that is meant"))
}

/// Which registries' pulls come here. `around`: registries of the file whose pulls do not.
fn comes(look: &Look<'_>, dialect: &dyn Dialect, here: &[&PullVerdict], around: &[String]) -> Finding {
    let is_all = |name: &str| matches!(name, "_default" | "*");
    let mut names: Vec<String> = here.iter().map(|verdict| verdict.registry.clone()).collect();
    let has_all = names.iter().any(|name| is_all(name));
    let named: Vec<&String> = names.iter().filter(|name| !is_all(name)).collect();
    let mut found = match (has_all, named.is_empty()) {
        (false, _) => format!("pulls from {} come here", few(&named)),
        (true, true) => "pulls from every registry that has no entry of its own come here".to_owned(),
        (true, false) => {
            format!(
                "pulls from {} and from every registry that has no entry of its own come here",
                few(&named)
            )
        }
    };
    if here.iter().any(|verdict| verdict.falls_back) {
        found += "; when this proxy refuses or cannot be reached, the client asks the registry itself";
    }
    names.extend_from_slice(around);
    let missing = match has_all || !dialect.is_for_all() {
        true => Vec::new(),
        false => look.missing(&names),
    };
    match missing.is_empty() {
        true => Finding::ok(dialect.check(), found),
        false => Finding::note(dialect.check(), format!("{found}; not from {}", few(&missing)))
            .advice(format!("the others: {}", dialect.recipe())),
    }
}

fn nothing(look: &Look<'_>, dialect: &dyn Dialect, verdicts: &[PullVerdict]) -> Finding {
    let place = dialect.place();
    let names: Vec<&str> = verdicts.iter().map(|verdict| verdict.registry.as_str()).collect();
    let found = match names.is_empty() {
        true => format!("{place} leads to no registry by this proxy"),
        false => format!("{place} leads elsewhere for {}", few(&names)),
    };
    Finding::new(dialect.check(), look.level(), found).advice(dialect.recipe())
}

/// Says that an address has this proxy's host and another port, which is easily overlooked.
pub(super) fn other_port(look: &Look<'_>, check: &str, place: &str, endpoints: &[Endpoint]) -> Option<Finding> {
    let is_here = |endpoint: &Endpoint| look.is_here(&endpoint.authority);
    if endpoints.iter().any(is_here) {
        return None;
    }
    endpoints.iter().find_map(|endpoint| {
        let ports = look.ports_beside(&endpoint.authority);
        let port = ports.first()?;
        let found = format!(
            "{place}: {} is at this proxy's host, and the proxy is at port {port} there",
            endpoint.written
        );
        Some(Finding::note(check, found).advice(format!("write port {port} if this proxy is meant")))
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&pipe, &link).unwrap();
        for path in [pipe.as_path(), &link, folder.path(), Path::new("/dev/zero")] {
            let error = open(path).unwrap_err();
            assert!(
                error.to_string().contains("no regular file"),
                "{}: {error}",
                path.display()
            );
        }
        let file = folder.path().join("file");
        std::fs::write(&file, "a").unwrap();
        let link = folder.path().join("to-file");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert!(open(&file).is_ok() && open(&link).is_ok());
    }
}
