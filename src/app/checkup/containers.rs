//! podman, buildah, skopeo and CRI-O: `registries.conf` with the files of registries.conf.d over it, or a user's own in the
//! place of both.
//!
//! A file that breaks a rule stops every pull of who reads it, whichever registry it is for.

use std::collections::BTreeMap;
use std::path::Path;

use toml::Table;

use super::Finding;
use super::clients::{Dialect, Look, other_port, with_more};
use super::naming::{Way, path_of, without_path};
use super::pulls::{Endpoint, HTTPS, HTTPS_THEN_HTTP, Judged, PullVerdict, Takes, Trouble, judge};
use super::target::Scheme;

const CHECK: &str = "client podman, cri-o";
const FILE: &str = "etc/containers/registries.conf";
const FOLDER: &str = "etc/containers/registries.conf.d";
/// A user's own, below the home.
const USER: &str = ".config/containers/registries.conf";
/// The variable by which podman has another file in the place of the system's.
pub(super) const VARIABLE: &str = "CONTAINERS_REGISTRIES_CONF";
/// The check of the file that `VARIABLE` names.
pub const NAMED_FILE: &str = "client podman by CONTAINERS_REGISTRIES_CONF";
const CERTIFICATES: &[&str] = &["etc/containers/certs.d", "etc/docker/certs.d"];
/// Others take the name of the image that a slash makes for none.
const TAKES_SLASHES: &str = "newer podman and CRI-O";
/// Homes that are looked into, at most.
const MOST_HOMES: usize = 200;

pub(super) fn check(look: &Look<'_>) -> Vec<Finding> {
    let system = Reader {
        check: CHECK.to_owned(),
        place: format!("/{FILE}"),
        file: FILE.to_owned(),
        folders: vec![FOLDER.to_owned()],
    };
    let mut findings = system.findings(look);
    if let Some(path) = &look.registries_conf {
        findings.extend(Reader::of_environment(look, path));
    }
    for home in homes(look) {
        findings.extend(
            Reader::of_user(look, &home)
                .into_iter()
                .flat_map(|reader| reader.findings(look)),
        );
    }
    findings
}

/// The homes of this machine's users, the one of who asks first.
fn homes(look: &Look<'_>) -> Vec<String> {
    let own = look.home.as_ref().and_then(|home| home.to_str()).map(str::to_owned);
    let of_users = look.names_in("home").into_iter().take(MOST_HOMES);
    let all = own
        .into_iter()
        .chain(["root".to_owned()])
        .chain(of_users.map(|name| format!("home/{name}")));
    let mut homes: Vec<String> = Vec::new();
    for home in all.map(|home| home.trim_matches('/').to_owned()) {
        if !home.is_empty() && !homes.contains(&home) {
            homes.push(home);
        }
    }
    homes
}

/// Files that are read one over the other.
struct Reader {
    check: String,
    place: String,
    file: String,
    folders: Vec<String>,
}

/// One `[[registry]]`.
#[derive(Clone, Debug)]
struct Registry {
    prefix: String,
    location: String,
    insecure: bool,
    blocked: bool,
    /// The file that it stands in.
    path: String,
    by_digest_only: bool,
    mirrors: Vec<Mirror>,
}

#[derive(Clone, Debug)]
struct Mirror {
    location: String,
    /// There is a slash behind the location.
    has_slash: bool,
    insecure: bool,
    takes: Takes,
}

impl Reader {
    /// Reads the file that [`VARIABLE`] names, which takes the place of the system's and of the user's.
    fn of_environment(look: &Look<'_>, path: &Path) -> Vec<Finding> {
        let check = NAMED_FILE.to_owned();
        let Some(file) = path.to_str().filter(|_| path.is_absolute()) else {
            let found = format!(
                "{VARIABLE} is {}, which depends on where podman is started",
                path.display()
            );
            return vec![Finding::warning(&check, found).advice("name the file from / on")];
        };
        let home = look.home.as_ref().and_then(|home| home.to_str());
        let of_home = home.map(|home| format!("{home}/{USER}.d"));
        let reader = Reader {
            place: file.to_owned(),
            file: file.trim_start_matches('/').to_owned(),
            folders: std::iter::once(FOLDER.to_owned()).chain(of_home).collect(),
            check,
        };
        if !look.root.join(&reader.file).exists() {
            let found = format!("{file}, which {VARIABLE} names, is not there: podman pulls nothing with it");
            return vec![Finding::problem(&reader.check, found).advice("write it, or unset the variable")];
        }
        reader.findings(look)
    }

    /// Reads for a user who has files of his own; `None` if not.
    fn of_user(look: &Look<'_>, home: &str) -> Option<Reader> {
        let file = format!("{home}/{USER}");
        let folder = format!("{file}.d");
        let name = home.rsplit('/').next().unwrap_or(home);
        let check = format!("client podman of {name}");
        let has_file = look.root.join(&file).exists();
        let has_folder = look.names_in(&folder).iter().any(|name| name.ends_with(".conf"));
        match (has_file, has_folder) {
            // The system's files do not count then.
            (true, _) => Some(Reader {
                check,
                place: format!("/{file}"),
                file,
                folders: vec![folder],
            }),
            (false, true) => Some(Reader {
                check,
                place: format!("/{folder}"),
                file: FILE.to_owned(),
                folders: vec![FOLDER.to_owned(), folder],
            }),
            (false, false) => None,
        }
    }

    fn files(&self, look: &Look<'_>) -> Vec<String> {
        let mut files = vec![self.file.clone()];
        for folder in &self.folders {
            let names = look.names_in(folder).into_iter().filter(|name| name.ends_with(".conf"));
            files.extend(names.map(|name| format!("{folder}/{name}")));
        }
        files
    }

    fn findings(&self, look: &Look<'_>) -> Vec<Finding> {
        let mut registries: BTreeMap<String, Registry> = BTreeMap::new();
        let mut replaced = Vec::new();
        let mut is_there = false;
        for path in self.files(look) {
            let table = match look.read_toml(&self.check, &path, "podman, skopeo and CRI-O pull nothing with it") {
                None => continue,
                Some(Err(finding)) => return vec![finding],
                Some(Ok(table)) => table,
            };
            is_there = true;
            let read = match registries_of(&table, &path, path != self.file) {
                Ok(read) => read,
                Err(why) => return vec![self.refused(&path, &why, &registries)],
            };
            for registry in read {
                // A later file has its registry in the place of an earlier one's, mirrors and all.
                if let Some(before) = registries.insert(registry.prefix.clone(), registry.clone())
                    && leads_here(look, &before)
                    && !leads_here(look, &registry)
                {
                    replaced.push((before, registry));
                }
            }
        }
        if !is_there {
            return Vec::new();
        }
        self.judged(look, &registries, &replaced)
    }

    fn refused(&self, path: &str, why: &str, registries: &BTreeMap<String, Registry>) -> Finding {
        let found = format!("/{path}: {why}: podman, skopeo and CRI-O pull nothing with it, from any registry");
        let mut finding = Finding::problem(&self.check, found).advice("put it right; CRI-O keeps what it read before");
        let named = registries.keys().map(String::as_str);
        finding.registries = named.map(|name| PullVerdict::failing(name, &self.place)).collect();
        finding
    }

    fn judged(
        &self,
        look: &Look<'_>,
        registries: &BTreeMap<String, Registry>,
        replaced: &[(Registry, Registry)],
    ) -> Vec<Finding> {
        let mut judged: Vec<Judged> = Vec::new();
        let mut more: Vec<Finding> = Vec::new();
        let (mut near, mut own) = (None, Vec::new());
        for registry in registries.values() {
            let endpoints = registry.endpoints(look);
            let is_here = endpoints.iter().any(|endpoint| look.is_here(&endpoint.authority));
            if is_here {
                more.extend(self.security(look, registry));
            }
            near = near.or_else(|| other_port(look, &self.check, &format!("/{}", registry.path), &endpoints));
            // Names that have this proxy's address before them, and nothing else in its place.
            if registry.prefix == registry.location && look.is_here(authority_of(&registry.prefix)) {
                let troubles = judge(look, &registry.prefix, &endpoints).troubles.into_iter();
                let wrong = troubles.filter_map(|trouble| match trouble {
                    Trouble::Scheme(written, spoken) => Some(self.wrong_scheme(&written, spoken)),
                    Trouble::Untrusted(written) => Some(self.untrusted(&written)),
                    _ => None,
                });
                let wrong: Vec<Finding> = wrong.collect();
                if wrong.is_empty() {
                    let found = format!("names with {} before them come here", registry.prefix);
                    own.push(Finding::ok(&self.check, found));
                }
                more.extend(wrong);
                continue;
            }
            if registry.blocked && endpoints.is_empty() {
                continue;
            }
            let mut one = judge(look, &registry.prefix, &endpoints);
            if let (Some(domain), true) = (registry.prefix.strip_prefix("*."), is_here) {
                one = several(domain, registry, &one);
            }
            if let (Some(mirror), true) = (registry.mirrors.iter().find(|mirror| mirror.has_slash), is_here) {
                one.verdict.only = Some(TAKES_SLASHES.to_owned());
                let found = format!(
                    "/{}: the mirror {}/ ends with a slash: only {TAKES_SLASHES} pull by it, and others pull nothing from {}",
                    registry.path, mirror.location, registry.prefix
                );
                more.push(Finding::warning(&self.check, found).advice("take the slash away"));
            }
            judged.push(one);
        }
        for (before, after) in replaced {
            let found = format!(
                "/{} has another [[registry]] for {}, in the place of the one in /{} that leads here: its pulls go past this proxy",
                after.path, after.prefix, before.path
            );
            more.push(
                Finding::warning(&self.check, found).advice("take one of the two away, or put this proxy into both"),
            );
        }
        // Where no mirror is wanted, that is all that the file is for.
        if judged.is_empty() {
            more.append(&mut own);
        }
        let mut findings = with_more(look, self, judged, more);
        findings.extend(near);
        findings
    }

    fn security(&self, look: &Look<'_>, registry: &Registry) -> Vec<Finding> {
        let places = registry
            .mirrors
            .iter()
            .map(|mirror| (&mirror.location, mirror.insecure));
        let places = places.chain([(&registry.location, registry.insecure)]);
        let https =
            places.filter(|(location, insecure)| *insecure && look.scheme(authority_of(location)) == Some("https"));
        https
            .map(|(location, _)| {
                let found = format!(
                    "/{}: {location} is insecure, so that its certificate is not looked at",
                    registry.path
                );
                Finding::note(&self.check, found).advice("take insecure away: the proxy speaks TLS there")
            })
            .collect()
    }
}

fn leads_here(look: &Look<'_>, registry: &Registry) -> bool {
    let endpoints = registry.endpoints(look);
    endpoints.iter().any(|endpoint| look.is_here(&endpoint.authority))
}

/// A star stands for several registries, and only the place itself keeps their names apart.
fn several(domain: &str, registry: &Registry, judged: &Judged) -> Judged {
    let mut verdict = judged.verdict.clone();
    verdict.by_tag = super::Arrival::WrongImage;
    verdict.by_digest = super::Arrival::WrongImage;
    let what = format!(
        "every registry below {domain} is asked for by the same name: who pulls a.{domain}/IMAGE and b.{domain}/IMAGE gets one image"
    );
    let written = registry
        .mirrors
        .first()
        .map_or(&registry.location, |mirror| &mirror.location);
    Judged {
        verdict,
        troubles: vec![Trouble::Way(written.clone(), Way::WrongImage(what))],
    }
}

fn authority_of(location: &str) -> &str {
    location.split('/').next().unwrap_or(location)
}

impl Registry {
    /// Mirrors, then the place itself. Each has the text of its `location` where a name has the prefix (R-C60).
    fn endpoints(&self, look: &Look<'_>) -> Vec<Endpoint> {
        let mirrors = self.mirrors.iter().map(|mirror| Mirror {
            takes: match self.by_digest_only {
                true => Takes::Digests,
                false => mirror.takes,
            },
            ..mirror.clone()
        });
        let itself = Mirror {
            location: match self.location.as_str() {
                "" => self.prefix.clone(),
                location => location.to_owned(),
            },
            has_slash: false,
            insecure: self.insecure,
            takes: Takes::All,
        };
        let endpoint = |place: Mirror| {
            let authority = authority_of(&place.location);
            let path = path_of(&place.location);
            Endpoint {
                path: match path {
                    "" => "/v2".to_owned(),
                    path => format!("/v2/{path}"),
                },
                takes: place.takes,
                has_trust: place.insecure || has_authority(look, authority),
                ..Endpoint {
                    written: place.location.clone(),
                    ..Endpoint::new(if place.insecure { HTTPS_THEN_HTTP } else { HTTPS }, authority)
                }
            }
        };
        // Blocked is what has the prefix: mirrors elsewhere are asked all the same, and nobody after them.
        let is_left = !(self.blocked && self.location == self.prefix);
        let itself = is_left.then_some(itself);
        mirrors.chain(itself).map(endpoint).collect()
    }
}

fn has_authority(look: &Look<'_>, authority: &str) -> bool {
    CERTIFICATES.iter().any(|folder| {
        let names = look.names_in(&format!("{folder}/{authority}"));
        names.iter().any(|name| name.ends_with(".crt"))
    })
}

/// The registries of one file, each prefix once. Errors: why the file is refused.
fn registries_of(table: &Table, path: &str, is_drop_in: bool) -> Result<Vec<Registry>, String> {
    let is_first_form = |key: &str| {
        let part = table.get("registries").and_then(toml::Value::as_table);
        part.is_some_and(|part| part.contains_key(key))
    };
    let has_first_form = ["search", "insecure", "block"].iter().any(|key| is_first_form(key));
    let is_mixed = ["registry", "unqualified-search-registries"]
        .iter()
        .any(|key| table.contains_key(*key));
    if has_first_form && (is_drop_in || is_mixed) {
        return Err("it has [registries.…] of the first form beside the second".to_owned());
    }
    let mode = text(table, "short-name-mode")?;
    if !matches!(mode, "" | "enforcing" | "permissive" | "disabled") {
        return Err(format!(
            "short-name-mode = {mode:?}: enforcing, permissive or disabled is expected"
        ));
    }
    let registries = match table.get("registry") {
        None => return Ok(Vec::new()),
        Some(toml::Value::Array(all)) => all,
        Some(_) => return Err("registry is no list: it is written [[registry]]".to_owned()),
    };
    let mut found: Vec<Registry> = Vec::new();
    for registry in registries {
        let Some(keys) = registry.as_table() else {
            return Err("registry has something else than tables in it".to_owned());
        };
        let registry = registry_of(keys, path)?;
        found.push(registry);
    }
    // Also those that do not count have to agree.
    conflict(&found)?;
    // The first of a prefix counts.
    let mut seen = std::collections::HashSet::new();
    found.retain(|one| seen.insert(one.prefix.clone()));
    Ok(found)
}

/// Two registries at one place have to agree about it.
fn conflict(registries: &[Registry]) -> Result<(), String> {
    let place = |registry: &Registry| match registry.location.as_str() {
        "" => registry.prefix.clone(),
        location => location.to_owned(),
    };
    for (at, one) in registries.iter().enumerate() {
        for other in &registries[at + 1..] {
            if place(one) == place(other) && (one.insecure != other.insecure || one.blocked != other.blocked) {
                return Err(format!(
                    "it has the location {} twice, and insecure or blocked once",
                    place(one)
                ));
            }
        }
    }
    Ok(())
}

fn registry_of(keys: &Table, path: &str) -> Result<Registry, String> {
    let (prefix, place) = (location(keys, "prefix")?, location(keys, "location")?);
    if prefix.is_empty() && place.is_empty() {
        return Err("a [[registry]] has neither prefix nor location".to_owned());
    }
    if place.is_empty() && !prefix.starts_with("*.") {
        return Err(format!("the registry {prefix} has no location"));
    }
    let prefix = if prefix.is_empty() { place.clone() } else { prefix };
    if prefix.starts_with("*.") && prefix.contains(['/', '@', ':']) {
        return Err(format!("the prefix {prefix} is more than a domain"));
    }
    if !text(keys, "pull-from-mirror")?.is_empty() {
        return Err(format!(
            "pull-from-mirror stands in the registry {prefix}, and belongs to a mirror"
        ));
    }
    let by_digest_only = is_set(keys, "mirror-by-digest-only")?;
    let mirrors = match keys.get("mirror") {
        None => &[][..],
        Some(toml::Value::Array(all)) => all.as_slice(),
        Some(_) => return Err("mirror is no list: it is written [[registry.mirror]]".to_owned()),
    };
    let mut read = Vec::new();
    for mirror in mirrors {
        let Some(keys) = mirror.as_table() else {
            return Err("mirror has something else than tables in it".to_owned());
        };
        let place = location(keys, "location")?;
        if place.is_empty() {
            return Err(format!("a mirror of {prefix} has no location"));
        }
        let from = text(keys, "pull-from-mirror")?;
        if by_digest_only && !from.is_empty() {
            return Err(format!(
                "{prefix} has mirror-by-digest-only and its mirror {place} has pull-from-mirror: only one of them may stand"
            ));
        }
        read.push(Mirror {
            takes: match from {
                "" | "all" => Takes::All,
                "digest-only" => Takes::Digests,
                "tag-only" => Takes::Tags,
                other => {
                    return Err(format!(
                        "pull-from-mirror = {other:?} of {place}: all, digest-only or tag-only is expected"
                    ));
                }
            },
            insecure: is_set(keys, "insecure")?,
            has_slash: text(keys, "location")?.ends_with('/'),
            location: place,
        });
    }
    Ok(Registry {
        insecure: is_set(keys, "insecure")?,
        blocked: is_set(keys, "blocked")?,
        location: place,
        path: path.to_owned(),
        mirrors: read,
        by_digest_only,
        prefix,
    })
}

fn text<'a>(keys: &'a Table, key: &str) -> Result<&'a str, String> {
    match keys.get(key) {
        None => Ok(""),
        Some(value) => value.as_str().ok_or_else(|| format!("{key} is no text")),
    }
}

fn location(keys: &Table, key: &str) -> Result<String, String> {
    let text = text(keys, key)?.trim_end_matches('/');
    match text.starts_with("http://") || text.starts_with("https://") {
        true => Err(format!("{key} = {text:?} has a scheme, and takes none")),
        false => Ok(text.to_owned()),
    }
}

fn is_set(keys: &Table, key: &str) -> Result<bool, String> {
    match keys.get(key) {
        None => Ok(false),
        Some(value) => value
            .as_bool()
            .ok_or_else(|| format!("{key} is neither true nor false")),
    }
}

impl Dialect for Reader {
    fn check(&self) -> &str {
        &self.check
    }

    fn place(&self) -> &str {
        &self.place
    }

    fn right(&self, registry: &str, written: &str) -> String {
        match registry.contains(['*', ':']) {
            true => "podman cannot name such registries in a path: give each an alias at the proxy (aliases = [\"NAME\"]), and write a [[registry]] for it with location = \"ADDRESS/NAME\"".to_owned(),
            false => format!("location = \"{}/{registry}\"", without_path(written)),
        }
    }

    fn recipe(&self) -> String {
        format!("larder client-config podman --write /{FOLDER} writes it")
    }

    fn wrong_scheme(&self, written: &str, spoken: Scheme) -> Finding {
        let found = match spoken {
            "http" => format!(
                "{}: {written} is without insecure = true, and the proxy speaks http there",
                self.place
            ),
            spoken => format!("{} names {written}, and the proxy speaks {spoken} there", self.place),
        };
        Finding::problem(&self.check, found).advice("insecure = true beside that location, or TLS for the proxy")
    }

    fn partly(&self, registry: &str, written: &str, takes: Takes) -> Finding {
        let (key, what) = match takes {
            Takes::Tags => ("pull-from-mirror = \"tag-only\"", "digests"),
            _ => (
                "mirror-by-digest-only = true or pull-from-mirror = \"digest-only\"",
                "tags",
            ),
        };
        let found = format!(
            "{} has {key} for {written}: {what} are pulled from {registry} itself, past this proxy",
            self.place
        );
        Finding::warning(&self.check, found).advice("take that key away: the proxy has tags as well as digests")
    }
}
