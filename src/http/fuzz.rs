//! Harnesses for ranges and conditions, and for what proxies say of a request or connection.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::IpAddr;

use axum::http::header::HOST;
use axum::http::{HeaderMap, HeaderName, HeaderValue};

use super::forwarded;
use super::multipart::{self, Piece};
use super::range::{self, MAX_RANGES, Spec, Wanted};
use super::server::proxy_header::{self, Parsed, Told};
use crate::config::TrustedProxies;
use crate::fuzzing::{Harness, check_error, fields, text, texts};
use crate::oci::HostPort;

const ETAG: &str = "\"sha256:ab\"";

pub(crate) const HARNESSES: &[Harness] = &[RANGES, FORWARDED, PROXY_HEADER];

const RANGES: Harness = Harness {
    name: "range",
    run: ranges,
    seeds: || {
        texts(&[
            "2048\nbytes=500-1499\n\"sha256:ab\"",
            "100\nbytes=0-9,,200-,\t-5\n*",
            "7\nBytes=1-99999999999999999999999\nW/\"sha256:ab\"",
            "100\nbytes=50-59, 0-9\n\"x,y\", \"sha256:ab\"",
            "0\nbytes=-5\n",
            "2048\nbytes=500-0, 1-2\n",
            "18446744073709551615\nbytes=0-18446744073709551615, 5-\nsha256:ab",
        ])
    },
    words: &[
        "bytes=",
        "0-",
        "-1",
        ",",
        "0-0,",
        " ",
        "\"",
        "W/",
        "\"sha256:ab\",",
        "*",
    ],
};

const FORWARDED: Harness = Harness {
    name: "forwarded",
    run: forwarded_headers,
    seeds: || {
        texts(&[
            "10.0.0.1, 203.0.113.9:80\n[2001:db8::1]:443, 10.0.0.2\nfor=\"[2001:db8::1]:80\";proto=https, for=10.0.0.1\n/registry\nlarder.example:5000",
            "unknown\n\nFor=_hidden;by=unknown , for=\"a\\\"b\"\n/v2/mirror/, /x\n[::1]:5",
            "\n\nfor=\", for=10.1.1.1\n//evil/..\nuser@evil",
            "::ffff:10.0.0.1\n,\nfor=192.0.2.1;for=192.0.2.2\n/a\\b\nevil\"",
        ])
    },
    words: &[
        ",", "\"", "\\", ";", "for=", "unknown", "10.0.0.1", ":80", "[", "]", "::1", "/", "..", "v2", " ", "é",
    ],
};

const PROXY_HEADER: Harness = Harness {
    name: "proxy_header",
    run: proxy_headers,
    seeds: || {
        let binary = |rest: &[u8]| [&b"\r\n\r\n\0\r\nQUIT\n"[..], rest].concat();
        let mut all = texts(&[
            "PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\nGET / HTTP/1.1\r\n",
            "PROXY TCP6 2001:db8::1 ::1 65535 0\r\n",
            "PROXY UNKNOWN ffff:f...f:ffff\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 +5 443\r\n",
            "POST /v2/ HTTP/1.1\r\n",
            "PROXY /v2/ HTTP/1.1\r\n",
            "PROXY UNKNOWNS HTTP/1.1\r\n",
        ]);
        all.push(binary(&[
            0x21, 0x11, 0, 12, 192, 0, 2, 1, 198, 51, 100, 1, 0xdc, 4, 1, 0xbb,
        ]));
        all.push(binary(&[&[0x21, 0x21, 0, 40][..], &[7; 40]].concat()));
        all.push(binary(&[0x20, 0, 0, 3, 4, 0, 0]));
        all.push(binary(&[0x21, 0x31, 0xff, 0xff, 1]));
        all
    },
    words: &[
        "PROXY ", "TCP4 ", "TCP6 ", "UNKNOWN", "1.2.3.4 ", "::1 ", "80 ", "\r\n", "\r", "\0", "QUIT\n", "!", "\u{11}",
    ],
};

/// Size of the blob, `Range`, conditions.
fn ranges(data: &[u8]) {
    let ([total, header], condition) = fields(data);
    let (Some(header), Some(condition)) = (text(header), text(condition)) else {
        return;
    };
    let total: u64 = text(total).and_then(|text| text.parse().ok()).unwrap_or(100);
    let wanted = range::parse(Some(header), total);
    let specs = range::parse_unknown(Some(header));
    assert_eq!(specs.as_ref().map_or(Wanted::Whole, |spec| spec.resolve(total)), wanted);
    if let Some(specs) = &specs {
        assert!((1..=MAX_RANGES).contains(&specs.specs().len()));
        assert_eq!(specs.only().is_some(), specs.specs().len() == 1);
        for spec in specs.specs() {
            // Written again, it is read as itself.
            let written = match spec {
                Spec::Between(a, b) => format!("bytes={a}-{b}"),
                Spec::From(a) => format!("bytes={a}-"),
                Spec::Last(n) => format!("bytes=-{n}"),
                Spec::Backwards(a) => format!("bytes={a}-0"),
            };
            assert_eq!(range::parse_unknown(Some(&written)).unwrap().only(), Some(*spec));
        }
    }
    let within = |range: &std::ops::Range<u64>| range.start < range.end && range.end <= total;
    match &wanted {
        Wanted::One(range) => assert!(within(range), "{range:?} of {total}"),
        Wanted::Many(ranges) => {
            assert!(ranges.len() > 1 && ranges.iter().all(within));
            let sum: u128 = ranges.iter().map(|range| u128::from(range.end - range.start)).sum();
            assert!(sum <= u128::from(total), "parts that ask for more than there is");
            // Near the end of the numbers the framing has no room: no blob is that large.
            if total < 1 << 60 {
                let plan = multipart::plan(ranges, total, "application/octet-stream");
                assert_eq!(plan.length, plan.pieces.iter().map(Piece::length).sum::<u64>());
                let sent = plan.pieces.iter().filter_map(|piece| match piece {
                    Piece::Bytes(range) => Some(range.clone()),
                    Piece::Text(_) => None,
                });
                assert_eq!(&sent.collect::<Vec<_>>(), ranges);
            }
        }
        Wanted::Whole => {}
        Wanted::Unsatisfiable => assert!(total > 0 && specs.is_some()),
    }
    if range::if_none_match(Some(condition), ETAG) {
        assert!(
            condition.trim() == "*" || condition.contains("sha256:ab"),
            "{condition:?}"
        );
    }
    assert_eq!(range::if_range(Some(condition), ETAG), condition.trim() == ETAG);
}

/// `X-Forwarded-For` twice, `Forwarded`, `X-Forwarded-Prefix`, `X-Forwarded-Host`. Whatever stands there, the address that a
/// trusted proxy adds counts, and host and path are nothing but that.
fn forwarded_headers(data: &[u8]) {
    let ([first, second, forwarded, prefix], host) = fields(data);
    let value = |bytes: &[u8]| HeaderValue::from_bytes(bytes).ok();
    let named = |name: &'static str| HeaderName::from_static(name);
    let (chain, rfc) = (named("x-forwarded-for"), named("forwarded"));
    let proxies: TrustedProxies = ["10.0.0.0/8".parse().unwrap()].into_iter().collect();
    let mut headers = HeaderMap::new();
    for line in [first, second] {
        headers.extend(value(line).map(|line| (chain.clone(), line)));
    }
    if let Some(found) = forwarded::client(&headers, &proxies) {
        assert_eq!(found, found.to_canonical());
    }
    let client: IpAddr = "203.0.113.9".parse().unwrap();
    let mut by_line = headers.clone();
    by_line.append(chain.clone(), HeaderValue::from_static("203.0.113.9"));
    assert_eq!(forwarded::client(&by_line, &proxies), Some(client));
    by_line.append(chain.clone(), HeaderValue::from_static("10.0.0.1"));
    assert_eq!(forwarded::client(&by_line, &proxies), Some(client));
    if let Some(line) = value(&[second, b", 203.0.113.9"].concat()) {
        headers.append(chain, line);
        assert_eq!(forwarded::client(&headers, &proxies), Some(client));
    }
    for (added, client) in [
        (&b", for=203.0.113.9;proto=https"[..], "203.0.113.9"),
        (b",by=_x; For=\"[2001:db8::9]:80\", for=10.0.0.1", "2001:db8::9"),
    ] {
        let Some(line) = value(&[forwarded, added].concat()) else {
            continue;
        };
        let headers = HeaderMap::from_iter([(rfc.clone(), line)]);
        let found = forwarded::client(&headers, &proxies);
        assert_eq!(found, Some(client.parse().unwrap()), "{headers:?}");
    }
    let Some((prefix, host)) = value(prefix).zip(value(host)) else {
        return;
    };
    let mut headers = HeaderMap::from_iter([
        (HOST, HeaderValue::from_static("inside.example")),
        (named("x-forwarded-prefix"), prefix),
        (named("x-forwarded-host"), host),
    ]);
    forwarded::settle_host(&mut headers);
    let host = headers[HOST].to_str().unwrap();
    assert_eq!(host.parse::<HostPort>().unwrap().as_str(), host);
    let path = forwarded::client_path(&headers, "/v2/a/tags/list");
    assert!(path.ends_with("/a/tags/list") && path.len() < 300, "{path:?}");
    let parts: Vec<&str> = path.strip_prefix('/').unwrap().split('/').collect();
    let fits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~".contains(&b));
    assert!(
        parts.iter().all(|part| fits(part) && !matches!(*part, "." | "..")),
        "{path:?}"
    );
    assert!(parts.contains(&"v2"), "{path:?}");
}

/// The first bytes of a connection. No byte is asked for that may be another's, however the header comes.
fn proxy_headers(data: &[u8]) {
    let whole = proxy_header::parse(data);
    let needs = |end: usize| match proxy_header::parse(&data[..end]) {
        Ok(Parsed::Needs(bytes)) => Some(bytes),
        _ => None,
    };
    let mut end = 0;
    while let Some(bytes) = needs(end) {
        assert!(bytes > 0);
        if end + bytes > data.len() {
            assert!(
                !matches!(whole, Ok(Parsed::Told(..))),
                "{whole:?} although {end} bytes need {bytes}"
            );
            return;
        }
        end += bytes;
    }
    let read = proxy_header::parse(&data[..end]);
    match (&read, &whole) {
        (Ok(Parsed::Absent), Ok(Parsed::Absent)) => assert!(end <= 14),
        (Ok(Parsed::Told(told, length)), Ok(same)) => {
            assert_eq!(*same, Parsed::Told(*told, *length));
            assert!(end <= *length && *length <= 16 + 65_535, "{end} of {length}");
            if let Told::Client(client) = told {
                assert_eq!(client.ip(), client.ip().to_canonical());
                let (family, other) = if client.is_ipv4() { (4, "192.0.2.1") } else { (6, "::1") };
                let line = format!("PROXY TCP{family} {} {other} {} 0\r\n", client.ip(), client.port());
                let again = proxy_header::parse(line.as_bytes());
                assert_eq!(again, Ok(Parsed::Told(*told, line.len())));
            }
        }
        (Err(error), Err(same)) => {
            assert_eq!(error, same);
            check_error(error);
        }
        other => panic!("{other:?}"),
    }
}
