//! Reads what a reverse proxy says of a request: the client's address (`X-Forwarded-For` or `Forwarded`, RFC 7239), and where
//! the client sees Larder (`X-Forwarded-Proto`, `-Host`, `-Prefix`). Pure; callers know whose word counts.
//!
//! Lists are read from their end: there the nearest proxy writes, which is known, and before that stands what somebody
//! else said, in the end the client. So nothing that a client sends, quotes that it leaves open included, hides what a proxy adds.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use axum::http::header::{FORWARDED, HOST};
use axum::http::{HeaderMap, HeaderName, HeaderValue};

use crate::config::TrustedProxies;
use crate::oci::HostPort;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");

/// Proxies one behind the other that are followed.
const MAX_HOPS: usize = 32;
/// No address with a port is longer, bytes.
const LONGEST_NODE: usize = 64;
/// Longest path before `/v2/`, bytes.
const LONGEST_PREFIX: usize = 256;

/// Returns the client's address as trusted proxies tell it to each other: the last that is none of theirs, or the first
/// of theirs if all are. `None` if nothing is said that counts; then the sender is all that is known.
///
/// Where there is an `X-Forwarded-For`, `Forwarded` is not looked at: most proxies set the former and let the latter
/// through as their client sent it (docs/decisions/0125).
pub fn client(headers: &HeaderMap, proxies: &TrustedProxies) -> Option<IpAddr> {
    if headers.contains_key(X_FORWARDED_FOR) {
        return farthest_known(elements(headers, &X_FORWARDED_FOR).map(address), proxies);
    }
    match headers.contains_key(FORWARDED) {
        true => farthest_known(
            elements(headers, &FORWARDED).map(|hop| address(sender_in(hop)?)),
            proxies,
        ),
        false => None,
    }
}

/// An address that is missing ends the way: nobody vouches for what stands before it.
fn farthest_known(hops: impl Iterator<Item = Option<IpAddr>>, proxies: &TrustedProxies) -> Option<IpAddr> {
    let mut farthest = None;
    for hop in hops.take(MAX_HOPS) {
        let Some(hop) = hop else { break };
        farthest = Some(hop);
        if !proxies.contains(hop) {
            break;
        }
    }
    farthest
}

/// The elements of a list, of all its lines, the last one first.
fn elements<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    let lines = headers.get_all(name).iter().rev();
    let elements = lines.flat_map(|line| FromTheEnd {
        rest: Some(line.as_bytes()),
        separator: b',',
    });
    elements.filter(|element| !element.is_empty())
}

/// The parts of a text between separators, the last one first, without blanks around them. What is between quotes separates
/// nothing.
struct FromTheEnd<'a> {
    rest: Option<&'a [u8]>,
    separator: u8,
}

impl<'a> Iterator for FromTheEnd<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let text = self.rest?;
        let mut is_quoted = false;
        for (at, byte) in text.iter().enumerate().rev() {
            if *byte == b'"' && !is_escaped(text, at) {
                is_quoted = !is_quoted;
            } else if *byte == self.separator && !is_quoted {
                self.rest = Some(&text[..at]);
                return Some(text[at + 1..].trim_ascii());
            }
        }
        self.rest = None;
        Some(text.trim_ascii())
    }
}

fn is_escaped(text: &[u8], at: usize) -> bool {
    let slashes = text[..at].iter().rev().take_while(|byte| **byte == b'\\').count();
    slashes % 2 == 1
}

/// The value of `for` in an element of `Forwarded`, without its quotes; `None` if it is not there exactly once.
fn sender_in(element: &[u8]) -> Option<&[u8]> {
    let pairs = FromTheEnd {
        rest: Some(element),
        separator: b';',
    };
    let mut found = None;
    for pair in pairs {
        let Some(equals) = pair.iter().position(|byte| *byte == b'=') else {
            continue;
        };
        if pair[..equals].eq_ignore_ascii_case(b"for") {
            let value = &pair[equals + 1..];
            let value = match value {
                [b'"', inside @ .., b'"'] => inside,
                bare => bare,
            };
            if found.replace(value).is_some() {
                return None;
            }
        }
    }
    found
}

/// An address with or without a port: `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:80`.
/// `None` for anything else, such as `unknown` and the names that a proxy makes up (`_hidden`).
fn address(text: &[u8]) -> Option<IpAddr> {
    if text.len() > LONGEST_NODE {
        return None;
    }
    let text = std::str::from_utf8(text).ok()?;
    if let Some(rest) = text.strip_prefix('[') {
        let (inside, port) = rest.split_once(']')?;
        let address: Ipv6Addr = inside.parse().ok()?;
        let is_whole = port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
        return is_whole.then(|| IpAddr::V6(address).to_canonical());
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(address.to_canonical());
    }
    let (address, port) = text.split_once(':')?;
    let address: Ipv4Addr = address.parse().ok()?;
    is_port(port).then_some(IpAddr::V4(address))
}

/// Digits, or a name that a proxy made up.
fn is_port(text: &str) -> bool {
    let is_number = (1..=5).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_name = |name: &str| {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        !name.is_empty() && name.bytes().all(fits)
    };
    is_number || text.strip_prefix('_').is_some_and(is_name)
}

/// True if the client of the first proxy speaks https.
pub fn is_https(headers: &HeaderMap) -> bool {
    let first = headers.get(X_FORWARDED_PROTO).map(HeaderValue::as_bytes);
    first.is_some_and(|line| first_of(line).eq_ignore_ascii_case(b"https"))
}

/// Has the request ask the host that its client asked. What is no host changes nothing.
pub fn settle_host(headers: &mut HeaderMap) {
    let host = headers.get(X_FORWARDED_HOST).and_then(|line| {
        let text = std::str::from_utf8(first_of(line.as_bytes())).ok()?;
        let host: HostPort = text.parse().ok()?;
        HeaderValue::from_str(host.as_str()).ok()
    });
    if let Some(host) = host {
        headers.insert(HOST, host);
    }
}

fn first_of(line: &[u8]) -> &[u8] {
    let end = line.iter().position(|byte| *byte == b',').unwrap_or(line.len());
    line[..end].trim_ascii()
}

/// Where the client sees `path`: below what proxies took off its beginning, each a part of it, the outermost first.
///
/// A prefix with `v2` in it stands in place of `/v2`: clients with image names only have no other path to be below
/// (`larder.example/mirror/alpine` is asked for at `/v2/mirror/alpine`).
pub fn client_path(headers: &HeaderMap, path: &str) -> String {
    let Some(prefix) = prefix(headers) else {
        return path.to_owned();
    };
    match path.strip_prefix("/v2/") {
        Some(rest) if prefix.split('/').any(|part| part == "v2") => format!("{prefix}/{rest}"),
        _ => format!("{prefix}{path}"),
    }
}

/// `/registry`; `None` if there is none, or something that could be read as more than a path.
fn prefix(headers: &HeaderMap) -> Option<String> {
    let mut whole = String::new();
    for line in headers.get_all(X_FORWARDED_PREFIX) {
        for part in line.as_bytes().split(|byte| *byte == b',') {
            let part = std::str::from_utf8(part.trim_ascii()).ok()?.trim_end_matches('/');
            let is_path = part.is_empty() || part.strip_prefix('/')?.split('/').all(is_segment);
            if !is_path || whole.len() + part.len() > LONGEST_PREFIX {
                return None;
            }
            whole.push_str(part);
        }
    }
    (!whole.is_empty()).then_some(whole)
}

/// True for a part of a path that needs no escape and leads nowhere else.
fn is_segment(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
    !text.is_empty() && text != "." && text != ".." && text.bytes().all(fits)
}

#[cfg(test)]
#[path = "forwarded_tests.rs"]
mod tests;
