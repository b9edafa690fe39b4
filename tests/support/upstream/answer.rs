//! The right answers: what a registry that keeps to the specification says.

use bytes::Bytes;
use larder::oci::{Digest, Reference, media_type};
use serde_json::{Value, json};

use super::content::{Content, LinkStyle, ReferrersApi, State};
use super::record::Request;
use super::wire::Kind;

/// An answer before any fault.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    /// Without Content-Length, which follows from the body.
    pub headers: Vec<(String, String)>,
    /// Of a GET, also when HEAD was asked.
    pub body: Bytes,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Bytes>) -> Reply {
        Reply {
            status,
            headers: Vec::new(),
            body: body.into(),
        }
    }

    pub fn json(status: u16, body: &Value) -> Reply {
        Reply::new(status, body.to_string()).with("Content-Type", "application/json")
    }

    pub fn error(status: u16, code: &str, message: &str) -> Reply {
        Reply::json(
            status,
            &json!({"errors": [{"code": code, "message": message, "detail": null}]}),
        )
    }

    pub fn with(mut self, name: &str, value: impl ToString) -> Reply {
        self.set(name, value);
        self
    }

    pub fn set(&mut self, name: &str, value: impl ToString) {
        self.unset(name);
        self.headers.push((name.to_owned(), value.to_string()));
    }

    pub fn unset(&mut self, name: &str) {
        self.headers.retain(|(n, _)| !n.eq_ignore_ascii_case(name));
    }
}

/// To a request that has every right it needs. `base` is the instance's URL; `shift` moves the start of a range.
pub fn answer(content: &Content, base: &str, request: &Request, shift: u64) -> Reply {
    let state = content.state();
    if !matches!(request.method.as_str(), "GET" | "HEAD") {
        return Reply::error(405, "UNSUPPORTED", "only pulls here").with("Allow", "GET, HEAD");
    }
    let reply = match &request.kind {
        Kind::Ping => Reply::json(200, &json!({})),
        Kind::Manifest { repo, reference } => manifest(&state, repo, reference),
        Kind::Blob { repo, digest } => blob(&state, repo, digest, request, shift),
        Kind::Tags { repo } => tags(&state, base, repo, request),
        Kind::Referrers { repo, digest } => referrers(&state, base, repo, digest, request),
        Kind::Storage { digest } => return storage(&state, digest, request, shift),
        Kind::Hop { left, rest } => return hop(*left, rest, request),
        Kind::Token | Kind::Other => Reply::new(404, "404 page not found\n").with("Content-Type", "text/plain"),
    };
    reply.with("Docker-Distribution-Api-Version", "registry/2.0")
}

fn manifest(state: &State, repo: &str, reference: &str) -> Reply {
    let Some(repo) = state.repos.get(repo) else {
        return Reply::error(404, "NAME_UNKNOWN", "repository name not known to registry");
    };
    let digest = match reference.parse() {
        Ok(Reference::Digest(digest)) => Some(digest),
        Ok(Reference::Tag(tag)) => repo.tags.get(tag.as_str()).copied(),
        Err(_) => None,
    };
    match digest.and_then(|digest| Some((digest, repo.manifests.get(&digest)?))) {
        Some((digest, manifest)) => Reply::new(200, manifest.bytes.clone())
            .with("Content-Type", &manifest.media_type)
            .with("Docker-Content-Digest", digest)
            .with("Etag", format!("\"{digest}\"")),
        None => Reply::error(404, "MANIFEST_UNKNOWN", "manifest unknown"),
    }
}

fn blob(state: &State, repo: &str, digest: &str, request: &Request, shift: u64) -> Reply {
    let Ok(digest) = digest.parse::<Digest>() else {
        return Reply::error(400, "DIGEST_INVALID", "provided digest did not match uploaded content");
    };
    let Some(bytes) = state.repos.get(repo).and_then(|repo| repo.blobs.get(&digest)) else {
        return Reply::error(404, "BLOB_UNKNOWN", "blob unknown to registry");
    };
    ranged(bytes, request, shift)
        .with("Content-Type", "application/octet-stream")
        .with("Docker-Content-Digest", digest)
        .with("Etag", format!("\"{digest}\""))
}

/// As object storage does it: no registry headers, and a second way to authenticate is an error (R-U20, R-U22).
fn storage(state: &State, digest: &str, request: &Request, shift: u64) -> Reply {
    if request.header("authorization").is_some() {
        return Reply::new(
            400,
            "<Error><Code>InvalidArgument</Code><Message>Only one auth mechanism allowed</Message></Error>",
        )
        .with("Content-Type", "application/xml");
    }
    let found = digest.parse().ok().and_then(|digest| state.anywhere(&digest));
    match found {
        Some((bytes, media_type)) => ranged(&bytes, request, shift).with(
            "Content-Type",
            media_type.unwrap_or_else(|| "binary/octet-stream".to_owned()),
        ),
        None => Reply::new(404, "<Error><Code>NoSuchKey</Code></Error>").with("Content-Type", "application/xml"),
    }
}

/// `/hops/3/x` leads to `/hops/2/x`, and `/hops/0/x` to `/x`, by relative Locations.
fn hop(left: usize, rest: &str, request: &Request) -> Reply {
    let query = request.query.as_ref().map(|q| format!("?{q}")).unwrap_or_default();
    let location = match left.checked_sub(1) {
        Some(less) => format!("/hops/{less}/{rest}{query}"),
        None => format!("/{rest}{query}"),
    };
    Reply::new(307, "").with("Location", location)
}

fn ranged(bytes: &Bytes, request: &Request, shift: u64) -> Reply {
    let whole = Reply::new(200, bytes.clone()).with("Accept-Ranges", "bytes");
    let size = bytes.len() as u64;
    let Some(range) = request.header("range").filter(|_| request.method == "GET") else {
        return whole;
    };
    match parse_range(range, size) {
        RangeAsked::None => whole,
        RangeAsked::Unsatisfiable => Reply::new(416, "").with("Content-Range", format!("bytes */{size}")),
        RangeAsked::Bytes { first, last } => {
            let first = (first + shift).min(last);
            let (from, to) = (
                usize::try_from(first).unwrap_or(usize::MAX),
                usize::try_from(last).unwrap_or(usize::MAX),
            );
            Reply::new(206, bytes.slice(from..=to))
                .with("Accept-Ranges", "bytes")
                .with("Content-Range", format!("bytes {first}-{last}/{size}"))
        }
    }
}

enum RangeAsked {
    /// Ignored: no single range of bytes.
    None,
    Unsatisfiable,
    Bytes {
        first: u64,
        last: u64,
    },
}

fn parse_range(text: &str, size: u64) -> RangeAsked {
    let Some((first, last)) = text
        .strip_prefix("bytes=")
        .filter(|t| !t.contains(','))
        .and_then(|t| t.split_once('-'))
    else {
        return RangeAsked::None;
    };
    let (first, last) = match (first.trim().parse::<u64>(), last.trim().parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => (first, last.min(size.saturating_sub(1))),
        (Ok(first), Err(_)) if last.trim().is_empty() => (first, size.saturating_sub(1)),
        (Err(_), Ok(suffix)) if first.trim().is_empty() && suffix > 0 => {
            (size.saturating_sub(suffix), size.saturating_sub(1))
        }
        _ => return RangeAsked::None,
    };
    if first < size {
        RangeAsked::Bytes { first, last }
    } else {
        RangeAsked::Unsatisfiable
    }
}

fn tags(state: &State, base: &str, repo: &str, request: &Request) -> Reply {
    let Some(held) = state.repos.get(repo) else {
        return Reply::error(404, "NAME_UNKNOWN", "repository name not known to registry");
    };
    let last = request.query_value("last").filter(|_| !state.listing.ignores_last);
    let last = last.unwrap_or_default();
    let rest: Vec<&String> = held.tags.keys().filter(|tag| **tag > last).collect();
    let asked = request.query_value("n").and_then(|n| n.parse::<usize>().ok());
    let most = [asked, state.listing.page].into_iter().flatten().min();
    let page = &rest[..most.unwrap_or(rest.len()).min(rest.len())];
    let listed = if page.is_empty() && state.listing.null_tags {
        Value::Null
    } else {
        json!(page)
    };
    let reply = Reply::json(200, &json!({"name": repo, "tags": listed}));
    match page.last() {
        Some(end) if page.len() < rest.len() => {
            let query = format!("last={end}&n={}", asked.or(most).unwrap_or_default());
            let path = format!("/v2/{repo}/tags/list?{query}");
            reply.with("Link", link(state, base, &path))
        }
        _ => reply,
    }
}

fn link(state: &State, base: &str, path: &str) -> String {
    match &state.listing.link {
        LinkStyle::Relative => format!("<{path}>; rel=\"next\""),
        LinkStyle::Absolute => format!("<{base}{path}>; rel=\"next\""),
        LinkStyle::On(other) => format!("<{other}{path}>; rel=\"next\""),
        LinkStyle::Unquoted => format!("<{path}>; rel=next"),
        LinkStyle::AtPath(other) => {
            let query = path.split_once('?').map_or("", |(_, query)| query);
            format!("<{other}?{query}>; rel=\"next\"")
        }
        LinkStyle::Bare => format!("{path}; rel=\"next\""),
    }
}

fn referrers(state: &State, base: &str, repo: &str, subject: &str, request: &Request) -> Reply {
    if state.referrers == ReferrersApi::Off {
        return Reply::new(404, "404 page not found\n").with("Content-Type", "text/plain; charset=utf-8");
    }
    let Ok(subject) = subject.parse::<Digest>() else {
        return Reply::error(400, "DIGEST_INVALID", "invalid digest");
    };
    let mut found = state
        .repos
        .get(repo)
        .map(|repo| repo.referrers_of(&subject))
        .unwrap_or_default();
    let wanted = request.query_value("artifactType");
    let filters = state.referrers == ReferrersApi::Filtering && wanted.is_some();
    if filters {
        found.retain(|descriptor| descriptor["artifactType"].as_str() == wanted.as_deref());
    }
    let from = request
        .query_value("from")
        .and_then(|n| n.parse::<usize>().ok())
        .unwrap_or(0)
        .min(found.len());
    let to = state
        .listing
        .page
        .map_or(found.len(), |page| (from + page).min(found.len()));
    let index = json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_INDEX,
        "manifests": found[from..to],
    });
    let mut reply = Reply::json(200, &index).with("Content-Type", media_type::OCI_INDEX);
    if filters {
        reply.set("OCI-Filters-Applied", "artifactType");
    }
    if to < found.len() {
        let path = format!("/v2/{repo}/referrers/{subject}?from={to}");
        reply.set("Link", link(state, base, &path));
    }
    reply
}
