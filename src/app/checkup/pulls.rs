//! Pulls as a client sends them: for each registry that its file names the URLs that it asks, in their order, and where
//! the image comes from that way.
//!
//! A reader of files (`docker`, `containerd`, `containers`, `buildkit`, `rancher`) makes [`Endpoint`]s of what it finds;
//! [`judge`] goes through them as the client would.

use serde::Serialize;

use super::Address;
use super::clients::Look;
use super::naming::{PROBE, Way};
use super::target::{Match, Scheme};

/// An address that a client asks for images of one registry.
#[derive(Clone, Debug)]
pub(super) struct Endpoint {
    /// In the order in which the client tries them.
    pub(super) schemes: &'static [Scheme],
    /// Host, and a port if it is written.
    pub(super) authority: String,
    /// The URL's path before the repository's name, its `/v2` included.
    pub(super) path: String,
    /// The registry that the client names in the query.
    pub(super) ns: Option<String>,
    pub(super) takes: Takes,
    /// True if the file has the client believe certificates that the system does not: an authority, or any at all.
    pub(super) has_trust: bool,
    /// As it stands in the file.
    pub(super) written: String,
}

pub(super) const HTTP: &[Scheme] = &["http"];
pub(super) const HTTPS: &[Scheme] = &["https"];
pub(super) const HTTPS_THEN_HTTP: &[Scheme] = &["https", "http"];
pub(super) const HTTP_THEN_HTTPS: &[Scheme] = &["http", "https"];

/// The kinds of requests that an endpoint gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Takes {
    All,
    Tags,
    Digests,
    /// Where tags point, and nothing of the image.
    Resolve,
    /// Digests, also those that another said a tag points at.
    Content,
    Nothing,
}

/// How an image reaches a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Arrival {
    /// By this proxy, which is asked first.
    Here,
    /// By this proxy if every address before it fails.
    IfOthersFail,
    /// The question where a tag points comes here and the image does not, or the other way round.
    Partly,
    /// This proxy answers with another image.
    WrongImage,
    /// This proxy is asked, and the client cannot do with the answer: it goes around, or fails.
    Refused,
    /// This proxy is not asked.
    Elsewhere,
    /// The client refuses its file: it does not start, or pulls nothing.
    Fails,
}

/// A registry's pulls, as data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PullVerdict {
    pub registry: String,
    /// The client's file, or the folder of its files.
    pub file: String,
    pub by_tag: Arrival,
    pub by_digest: Arrival,
    /// True if the client has another address for what this proxy refuses, or while it is away.
    pub falls_back: bool,
    /// The URL of this proxy that the client asks by tag, else by digest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub asks: Option<String>,
    /// Versions of the client of which the verdict holds, if not of all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub only: Option<String>,
}

impl PullVerdict {
    /// The verdict of a client that refuses its file.
    pub(super) fn failing(registry: &str, file: &str) -> PullVerdict {
        PullVerdict::of(registry, file, Arrival::Fails)
    }

    /// The verdict of a file that does not count.
    pub(super) fn elsewhere(registry: &str, file: &str) -> PullVerdict {
        PullVerdict::of(registry, file, Arrival::Elsewhere)
    }

    fn of(registry: &str, file: &str, arrival: Arrival) -> PullVerdict {
        PullVerdict {
            registry: registry.to_owned(),
            file: file.to_owned(),
            by_tag: arrival,
            by_digest: arrival,
            falls_back: false,
            asks: None,
            only: None,
        }
    }

    /// Tags and digests come here, though perhaps not first.
    pub(super) fn arrives(&self) -> bool {
        let arrives = |arrival| matches!(arrival, Arrival::Here | Arrival::IfOthersFail);
        arrives(self.by_tag) && arrives(self.by_digest)
    }

    /// Something of it leads here.
    pub(super) fn names_this_proxy(&self) -> bool {
        self.by_tag != Arrival::Elsewhere || self.by_digest != Arrival::Elsewhere
    }
}

/// Why pulls by an endpoint do not arrive, or not all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The image is another one, or is refused.
    Way(String, Way),
    /// The proxy speaks this scheme there, and not the other.
    Scheme(String, Scheme),
    /// The client does not believe the proxy's certificate.
    Untrusted(String),
    /// These are asked before it.
    Behind(String, Vec<String>),
    /// It is not asked for everything.
    Partly(String, Takes),
    /// No image's name begins with the registry as it is written; why, and the right one.
    NeverAsked(&'static str, String),
}

/// One registry's verdict and what stands in the way.
#[derive(Debug)]
pub(super) struct Judged {
    pub(super) verdict: PullVerdict,
    pub(super) troubles: Vec<Trouble>,
}

/// The outcome of a request to one endpoint.
enum Reach {
    Elsewhere,
    Right(Scheme),
    Not(Arrival, Trouble),
}

/// Goes through a registry's endpoints by tag and by digest. `wanted`: the registry, or what is below a path of one.
pub(super) fn judge(look: &Look<'_>, wanted: &str, endpoints: &[Endpoint]) -> Judged {
    let reached: Vec<Reach> = endpoints.iter().map(|one| reach(look, wanted, one)).collect();
    let mut troubles = Vec::new();
    let by_tag = walk(endpoints, &reached, Kind::Tag, &mut troubles);
    let by_digest = walk(endpoints, &reached, Kind::Digest, &mut troubles);
    let first = reached.iter().position(|reach| matches!(reach, Reach::Right(_)));
    let asks = first.and_then(|at| match reached[at] {
        Reach::Right(scheme) => Some(endpoints[at].url(scheme)),
        _ => None,
    });
    let is_last = |at: usize| reached[at + 1..].iter().all(|reach| !matches!(reach, Reach::Elsewhere));
    Judged {
        verdict: PullVerdict {
            registry: wanted.to_owned(),
            // Whoever reports it knows.
            file: String::new(),
            by_tag,
            by_digest,
            falls_back: first.is_some_and(|at| !is_last(at)),
            asks,
            only: None,
        },
        troubles,
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Tag,
    Digest,
}

fn walk(endpoints: &[Endpoint], reached: &[Reach], kind: Kind, troubles: &mut Vec<Trouble>) -> Arrival {
    let mut before = Vec::new();
    let mut worst = Arrival::Elsewhere;
    let note = |trouble: Trouble, troubles: &mut Vec<Trouble>| {
        if !troubles.contains(&trouble) {
            troubles.push(trouble);
        }
    };
    for (endpoint, reach) in endpoints.iter().zip(reached) {
        if !matches!(reach, Reach::Elsewhere) && endpoint.takes != Takes::All {
            note(Trouble::Partly(endpoint.written.clone(), endpoint.takes), troubles);
        }
        let is_part = match (endpoint.takes, kind) {
            (Takes::Nothing, _) | (Takes::Tags | Takes::Resolve, Kind::Digest) | (Takes::Digests, Kind::Tag) => {
                continue;
            }
            (Takes::Resolve | Takes::Content, Kind::Tag) => true,
            _ => false,
        };
        match reach {
            Reach::Elsewhere => before.push(endpoint.written.clone()),
            Reach::Right(_) if is_part => worst = Arrival::Partly,
            Reach::Right(_) if before.is_empty() => return Arrival::Here,
            Reach::Right(_) => {
                note(Trouble::Behind(endpoint.written.clone(), before), troubles);
                return Arrival::IfOthersFail;
            }
            Reach::Not(arrival, trouble) => {
                note(trouble.clone(), troubles);
                if *arrival == Arrival::WrongImage {
                    return Arrival::WrongImage;
                }
                if worst == Arrival::Elsewhere {
                    worst = *arrival;
                }
            }
        }
    }
    worst
}

fn reach(look: &Look<'_>, wanted: &str, endpoint: &Endpoint) -> Reach {
    let mut right = None;
    for scheme in endpoint.schemes {
        match look.fits_by(scheme, &endpoint.authority) {
            Match::Elsewhere => {}
            Match::WrongScheme(spoken) => right = Some(spoken),
            Match::Here if *scheme == "https" && look.target.is_distrusted && !endpoint.has_trust => {
                let untrusted = Trouble::Untrusted(endpoint.written.clone());
                return Reach::Not(Arrival::Refused, untrusted);
            }
            Match::Here => {
                return match look.target.naming.judge(wanted, &endpoint.path_and_query()) {
                    Way::Right => Reach::Right(scheme),
                    way @ Way::WrongImage(_) => {
                        Reach::Not(Arrival::WrongImage, Trouble::Way(endpoint.written.clone(), way))
                    }
                    way @ Way::Refused(_) => Reach::Not(Arrival::Refused, Trouble::Way(endpoint.written.clone(), way)),
                };
            }
        }
    }
    match right {
        Some(spoken) => Reach::Not(Arrival::Refused, Trouble::Scheme(endpoint.written.clone(), spoken)),
        None => Reach::Elsewhere,
    }
}

impl Endpoint {
    /// By HTTPS, for everything, with `/v2` alone.
    pub(super) fn new(schemes: &'static [Scheme], authority: &str) -> Endpoint {
        Endpoint {
            schemes,
            authority: authority.to_owned(),
            path: "/v2".to_owned(),
            ns: None,
            takes: Takes::All,
            has_trust: false,
            written: authority.to_owned(),
        }
    }

    /// The registry itself, as clients of containerd's library ask it.
    pub(super) fn registry(name: &str) -> Endpoint {
        Endpoint::new(
            HTTPS,
            match name {
                "docker.io" => "registry-1.docker.io",
                other => other,
            },
        )
    }

    /// Names the registry in the query, as containerd's library does for every host that is not the registry (R-C2).
    pub(super) fn naming(mut self, registry: &str) -> Endpoint {
        let is_itself =
            self.authority == registry || (registry == "docker.io" && self.authority == "registry-1.docker.io");
        self.ns = (!is_itself).then(|| registry.to_owned());
        self
    }

    fn path_and_query(&self) -> String {
        let query = self.ns.as_ref().map_or(String::new(), |ns| format!("?ns={ns}"));
        format!("{}/{PROBE}/manifests/1{query}", self.path)
    }

    /// For people.
    fn url(&self, scheme: &str) -> String {
        let path = self.path_and_query();
        let path = path.replace(PROBE, "IMAGE").replace("/manifests/1", "/manifests/TAG");
        format!("{scheme}://{}{path}", self.authority)
    }
}

/// An address in a file, as Go's programs read a URL with a scheme.
pub(super) struct Written<'a> {
    pub(super) scheme: Option<Scheme>,
    pub(super) authority: &'a str,
    /// With its slash; empty if there is none.
    pub(super) path: &'a str,
}

impl<'a> Written<'a> {
    /// `None` if it is no address of a registry.
    pub(super) fn read(text: &'a str) -> Option<Written<'a>> {
        let address: Address = text.parse().ok()?;
        let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
        let end = rest.find('/').unwrap_or(rest.len());
        Some(Written {
            scheme: address.scheme,
            authority: &rest[..end],
            path: &rest[end..],
        })
    }
}

/// As Go's `path.Clean`, for absolute paths without dots.
pub(super) fn clean(path: &str) -> String {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::checkup::target::{Lookup, Target};

    fn judged(endpoints: &[Endpoint]) -> (Arrival, Arrival, bool) {
        let target = Target::at("larder.example:5000".parse().unwrap(), Some("http"));
        let names = Lookup::new(false);
        let look = Look {
            root: std::path::Path::new("/"),
            home: None,
            registries_conf: None,
            target: &target,
            names: &names,
        };
        let verdict = judge(&look, "docker.io", endpoints).verdict;
        (verdict.by_tag, verdict.by_digest, verdict.falls_back)
    }

    #[test]
    fn endpoints_are_asked_in_their_order() {
        use Arrival::{Elsewhere, Here, IfOthersFail, Partly, Refused, WrongImage};
        let here = |takes| Endpoint {
            takes,
            ..Endpoint::new(HTTP, "larder.example:5000")
        };
        let other = Endpoint::new(HTTPS, "other.example");
        let hub = Endpoint::registry("docker.io");
        let all = here(Takes::All);
        assert_eq!(judged(&[all.clone(), hub.clone()]), (Here, Here, true));
        assert_eq!(judged(std::slice::from_ref(&all)), (Here, Here, false));
        assert_eq!(
            judged(&[other.clone(), all.clone(), hub.clone()]),
            (IfOthersFail, IfOthersFail, true)
        );
        assert_eq!(judged(&[other, hub.clone()]), (Elsewhere, Elsewhere, false));
        for (takes, by_tag, by_digest) in [
            (Takes::Digests, Elsewhere, Here),
            (Takes::Tags, Here, Elsewhere),
            (Takes::Resolve, Partly, Elsewhere),
            (Takes::Content, Partly, Here),
            (Takes::Nothing, Elsewhere, Elsewhere),
        ] {
            let (tag, digest, _) = judged(&[here(takes), hub.clone()]);
            assert_eq!((tag, digest), (by_tag, by_digest), "{takes:?}");
        }
        let quay = Endpoint {
            path: "/v2/quay.io".to_owned(),
            ..all.clone()
        };
        assert_eq!(judged(&[quay, hub.clone()]), (WrongImage, WrongImage, false));
        let tls = Endpoint { schemes: HTTPS, ..all };
        assert_eq!(judged(&[tls, hub]), (Refused, Refused, false));
    }

    #[test]
    fn paths_are_cleaned() {
        for (path, want) in [("/", "/"), ("//a//b/", "/a/b"), ("/v2", "/v2")] {
            assert_eq!(clean(path), want);
        }
        let written = Written::read("http://[::1]:5000/a/").unwrap();
        assert_eq!(
            (written.scheme, written.authority, written.path),
            (Some("http"), "[::1]:5000", "/a/")
        );
        assert!(Written::read("http://a:5000\"").is_none());
    }
}
