//! Harnesses for what registries, token servers and login files say.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderMap, HeaderName, HeaderValue, LINK};
use url::Url;

use super::auth_file::{AuthFile, Key, Login};
use super::blob::{Extent, Span};
use super::breaker;
use super::challenge::{self, Challenge, Demand};
use super::rate_limit::RateLimit;
use super::realm::{self, Trust};
use super::{body, helper, link, redirect, token};
use crate::config::is_helper_name;
use crate::fuzzing::{Harness, check_bounded, check_error, fields, text, texts};
use crate::oci::HostPort;

pub(crate) const HARNESSES: &[Harness] = &[
    Harness {
        name: "challenge",
        run: challenges,
        seeds: || {
            texts(&[
                r#"Bearer realm="https://auth.registry.example/token",service="registry.example",scope="repository:library/alpine:pull,push",error="invalid_token""#,
                "Basic realm=\"x, y\", Bearer realm=\"https://token.example/t\",service=\"s\", Negotiate, NTLM abc==",
                "bearer Realm=\"https://registry.example:8443/v2/auth\",service=quay.io,scope=repository:a/b:pull,push",
                "Negotiate\nBasic realm=\"a \\\"b\\\" \\\\c\"",
                "Bearer realm=\"http://registry.example/t\"",
                "Bearer realm=\"https://user:pw@registry.example/t?x=1\",scope=\"aws\"",
            ])
        },
        words: &[
            "Bearer ",
            "Basic ",
            "realm=",
            "\"",
            "\\",
            ",",
            "=",
            "scope=",
            "repository:a:pull",
            "https://",
            "a ",
            "\n",
        ],
    },
    Harness {
        name: "link",
        run: links,
        seeds: || {
            texts(&[
                "0\n</v2/a/tags/list?last=x%2Cy&n=2>; rel=\"next\"",
                "1\n<list?last=x&n=2>; title=\"a,<b>\"; REL=\"prev NEXT\"",
                "0\n<https://r.example/v2/a/tags/list?n=2>; rel=next",
                "2\n</first>; rel=first, </v2/a/tags/list?n=2>; rel=next",
                "1\n<//evil.example/>; rel=next",
                "1\n/v2/a/tags/list?last=x; rel=\"next\"",
                "1\n</v2/a/tags/list/2>",
                "0\n<https://u:p@r.example/v2/>; rel=next",
            ])
        },
        words: &[
            "<",
            ">",
            ";",
            "rel=next",
            "\"",
            ",",
            "</v2/>; rel=next,",
            "//",
            "\\",
            "?",
        ],
    },
    Harness {
        name: "redirect",
        run: redirects,
        seeds: || {
            texts(&[
                "/data/x?sig=1",
                "y#part",
                "//cdn.example/y",
                "https://cdn.example/a?X-Amz-Signature=s",
                "http://r.example/x",
                "https://user:pw@cdn.example/x",
                "ftp://x/",
                "https://[::1]:9/",
            ])
        },
        words: &["https://", "http:", "/", "..", "@", ":", "?", "#", "%", "[", "\\"],
    },
    Harness {
        name: "token_answer",
        run: token_answer,
        seeds: || {
            texts(&[
                r#"{"token":"t0ken","access_token":"a","expires_in":300,"issued_at":"2026-01-01T00:00:00Z"}"#,
                r#"{"access_token":"a","expires_in":"200"}"#,
                r#"{"token":"","access_token":"a","expires_in":null}"#,
                r#"{"token":"t","expires_in":1e300}"#,
            ])
        },
        words: &["{", "[", "\"token\":", "\"expires_in\":", "\"", "0", ",", "\\u0000"],
    },
    Harness {
        name: "auth_file",
        run: auth_file,
        seeds: || {
            texts(&[
                r#"{"auths":{"quay.io":{"auth":"dTpw"},"quay.io/org":{"username":"u","password":"p"},"https://index.docker.io/v1/":{"auth":"dTpw","identitytoken":"t"},"h:5000":{"registrytoken":"r"},"s.x":{}},"credsStore":"desktop","credHelpers":{"e.x":"ecr-login","n.x":7,"b.x":"../evil"}}"#,
                r#"{"auths":{"http://R.example:5000/":{"auth":"dTpwAA","email":"x@y"}}}"#,
                "{}",
            ])
        },
        words: &[
            "{",
            "\"auths\":",
            "\"quay.io\":{},",
            "\"auth\":",
            "\"dTpw\"",
            "[",
            "\"",
            ",",
        ],
    },
    Harness {
        name: "answer_head",
        run: answer_head,
        seeds: || {
            texts(&[
                "206\n5\n10\nbytes 5-9/10\n5\n30\n76;w=21600\n100;w=21600",
                "206\n5\n\nbytes 5-9/*\n\nWed, 21 Oct 2026 07:28:00 GMT\n5\n5",
                "200\n\n\n\n10\n0\nmany\n",
                "206\n0\n18446744073709551615\nbytes 0-18446744073709551614/18446744073709551615\n\n99999999999999999999\n1;w=99999999999999999999\n",
            ])
        },
        words: &["bytes ", "-", "/", "*", "0", "9", ";w=", "206", "\n", "GMT"],
    },
    Harness {
        name: "error_body",
        run: error_body,
        seeds: || {
            texts(&[
                r#"{"errors":[{"code":"DENIED","message":"no\r\nway, hunter2-secret","detail":{"a":1}}]}"#,
                r#"{"details":"incorrect username or password"}"#,
                "see https://u:pw@x.example/a?X-Sig=abc or hunter2-secret \u{1b}[31m",
                r#"{"error":"invalid_grant","error_description":"expired"}"#,
            ])
        },
        words: &[
            "hunter2-secret",
            "://",
            "?",
            "@",
            " ",
            "{\"errors\":[",
            "\"message\":",
            "\"",
            "\u{202e}",
            "é",
        ],
    },
    Harness {
        name: "helper_answer",
        run: helper_answer,
        seeds: || {
            texts(&[
                r#"{"ServerURL":"x","Username":"u","Secret":"hunter2-secret"}"#,
                r#"{"Username":"<token>","Secret":"hunter2-secret"}"#,
                r#"{"Username":"","Secret":""}"#,
                "no keychain\nmore",
            ])
        },
        words: &[
            "{",
            "\"Username\":",
            "\"Secret\":",
            "\"hunter2-secret\"",
            "[",
            "\n",
            "\u{202e}",
            ",",
        ],
    },
];

/// Header lines, one a line.
fn challenges(data: &[u8]) {
    let found = challenge::parse(data.split(|byte| *byte == b'\n'));
    for Challenge { scheme, params } in &found {
        assert!(!scheme.is_empty() && *scheme == scheme.to_ascii_lowercase());
        assert!(
            params
                .keys()
                .all(|key| !key.is_empty() && *key == key.to_ascii_lowercase())
        );
    }
    let demand = match challenge::choose(&found) {
        Ok(demand) => demand,
        Err(schemes) => {
            return if !schemes.is_empty() {
                check_bounded(schemes)
            };
        }
    };
    let Demand::Bearer { realm, service, scope } = demand else {
        return;
    };
    assert!(!realm.is_empty() && service.is_none_or(|text| !text.is_empty()));
    if let Some(scope) = scope.filter(|scope| challenge::is_special_scope(scope)) {
        assert!(scope.len() <= 1024 && !scope.contains(char::is_control) && !scope.starts_with("repository:"));
    }
    let named: HostPort = "token.example".parse().unwrap();
    for origin in ["https://registry.example", "http://127.0.0.1:5000"] {
        let origin: Url = origin.parse().unwrap();
        match realm::judge(&origin, &realm, std::slice::from_ref(&named)) {
            Ok((url, trust)) => {
                assert!(matches!(url.scheme(), "https" | "http"));
                assert!(url.username().is_empty() && url.password().is_none());
                let host = url.host_str().expect("a realm has a host");
                assert!(
                    origin.scheme() != "https" || url.scheme() == "https",
                    "never down to plain text"
                );
                match trust {
                    Trust::Named => assert_eq!(host, "token.example"),
                    Trust::Kin => {
                        let is_below = host
                            .strip_suffix("registry.example")
                            .is_some_and(|sub| sub.is_empty() || sub.ends_with('.'));
                        assert!(
                            host == origin.host_str().unwrap() || is_below || host == "registry.example.",
                            "{host}"
                        );
                    }
                    Trust::Stranger => assert_eq!(url.scheme(), "https"),
                }
            }
            Err(error) => check_error(error),
        }
    }
}

/// Which base, then a Link header.
fn links(data: &[u8]) {
    const BASES: [&str; 3] = [
        "https://r.example/",
        "https://r.example:8443/base/",
        "http://127.0.0.1:5000/",
    ];
    let ([which], value) = fields(data);
    let base: Url = BASES[which.first().map_or(0, |byte| usize::from(*byte) % BASES.len())]
        .parse()
        .unwrap();
    let from = base.join("v2/a/tags/list?n=2").unwrap();
    let Ok(value) = HeaderValue::from_bytes(value) else {
        return;
    };
    match link::next(&base, &from, &from, &HeaderMap::from_iter([(LINK, value)])) {
        Ok(None) => {}
        Ok(Some(next)) => {
            let below = next.path().strip_prefix(from.path()).expect("at the address asked");
            assert!(below.is_empty() || below.starts_with('/'), "{below:?}");
            assert_eq!(next.origin(), base.origin(), "never to another host");
            assert!(next.username().is_empty() && next.password().is_none() && next.fragment().is_none());
        }
        Err(error) => check_error(error),
    }
}

/// A Location.
fn redirects(data: &[u8]) {
    let value = HeaderValue::from_bytes(data).ok();
    for from in ["https://r.example/v2/a/blobs/x?ns=1", "http://127.0.0.1:5000/v2/"] {
        let from: Url = from.parse().unwrap();
        match redirect::target(&from, value.as_ref()) {
            Ok(next) => {
                assert!(matches!(next.scheme(), "https" | "http") && next.host_str().is_some());
                assert!(
                    from.scheme() != "https" || next.scheme() == "https",
                    "never down to plain text"
                );
                assert!(next.username().is_empty() && next.password().is_none() && next.fragment().is_none());
                let hosts: [HostPort; 1] = ["cdn.example".parse().unwrap()];
                let is_listed = redirect::listed(&next, Some(&hosts)) == Some(true);
                assert_eq!(is_listed, next.host_str() == Some("cdn.example"));
            }
            Err(error) => check_error(error),
        }
    }
}

fn token_answer(data: &[u8]) {
    match token::read_token(data) {
        Ok(token) => {
            let value = token.value.reveal();
            assert!(!value.is_empty() && token.header.is_sensitive());
            assert_eq!(token.header.as_bytes(), format!("Bearer {value}").as_bytes());
            let good_for = token.good_for;
            assert!(
                good_for >= Duration::from_secs(54) && good_for <= Duration::from_secs(3600),
                "{good_for:?}"
            );
        }
        Err(error) => check_error(error),
    }
}

fn auth_file(data: &[u8]) {
    let file = AuthFile::parse(data, "test");
    for host in ["quay.io", "registry-1.docker.io", "h:5000", "nobody.invalid"] {
        match file.find(&[Key::host_of(host)], "org/repo") {
            Some(Login::Helper { name, .. }) => assert!(is_helper_name(&name), "{name:?} is run"),
            Some(Login::Here(credential)) => {
                assert!(!credential.is_anonymous());
                // A key may be written with escapes.
                let text = String::from_utf8_lossy(data).to_ascii_lowercase();
                let named = text.contains(host) || text.contains('\\') || host.contains("docker.io");
                assert!(named, "a login for {host}, which the file does not name");
            }
            None => {}
        }
    }
}

/// Status, first and last byte asked for, Content-Range, Content-Length, Retry-After, remaining pulls, limit: a line each.
fn answer_head(data: &[u8]) {
    let ([status, start, end, range, length, retry, remaining, limit], _) = fields(data);
    let number = |field: &[u8]| text(field).and_then(|text| text.parse::<u64>().ok());
    let mut headers = HeaderMap::new();
    for (name, value) in [
        (CONTENT_RANGE, range),
        (CONTENT_LENGTH, length),
        (HeaderName::from_static("ratelimit-remaining"), remaining),
        (HeaderName::from_static("ratelimit-limit"), limit),
        (HeaderName::from_static("docker-ratelimit-source"), range),
    ] {
        if let (false, Ok(value)) = (value.is_empty(), HeaderValue::from_bytes(value)) {
            headers.insert(name, value);
        }
    }
    if let Some(read) = RateLimit::read(&headers) {
        let source = read.source.unwrap_or_default();
        assert!(source.chars().count() <= 65 && !source.contains(char::is_control));
    }
    if let Some(retry) = text(retry) {
        let _ = breaker::read_retry_after(retry);
        let pause = breaker::pause(Some(retry));
        assert!(
            (Duration::from_secs(1)..=breaker::LONGEST).contains(&pause),
            "{pause:?}"
        );
    }
    let status = number(status).and_then(|status| StatusCode::from_u16(u16::try_from(status).ok()?).ok());
    let asked = match (number(start), number(end)) {
        (None, _) => None,
        (Some(start), Some(end)) if start < end => Some(Span::of(start..end)),
        (Some(start), _) => Some(Span::from(start)),
    };
    let status = status.unwrap_or(StatusCode::PARTIAL_CONTENT);
    match Extent::of(status, &headers, asked) {
        Ok(extent) if status == StatusCode::PARTIAL_CONTENT => {
            let asked = asked.expect("206 answers a Range");
            let left = extent.left().expect("a part has a length");
            let end = extent.start.checked_add(left).expect("a part ends somewhere");
            assert_eq!(extent.start, asked.start);
            assert!(
                left > 0 && asked.end.is_none_or(|wanted| wanted == end),
                "just what was asked for"
            );
            assert!(extent.total.is_none_or(|total| end <= total));
        }
        Ok(extent) => {
            assert!(extent.start == 0 && extent.total == extent.left() && asked.is_none_or(|a| a.end.is_none()))
        }
        Err(error) => check_error(error),
    }
}

/// What a far side says is one short line, without secrets.
fn error_body(data: &[u8]) {
    let said = body::clean(&body::message(data), &["hunter2-secret"]);
    assert!(said.chars().count() <= 301);
    assert!(!said.contains("hunter2-secret"), "{said:?}");
    let queries = said.split_whitespace().filter_map(|word| word.split_once("://"));
    for (_, rest) in queries {
        assert!(!rest.contains(['?', '#']), "{said:?}");
        assert!(!rest.split('/').next().unwrap().contains('@'), "{said:?}");
    }
    if !said.is_empty() {
        check_bounded(said);
    }
}

fn helper_answer(data: &[u8]) {
    if let Err(error) = helper::read(data) {
        assert!(!error.contains("hunter2"), "{error:?}");
        check_error(error);
    }
    let complaint = helper::complaint(data);
    assert!(
        complaint.chars().count() <= 130 && !complaint.contains(char::is_control),
        "{complaint:?}"
    );
    assert!(
        complaint.is_empty() || !data.contains(&b'{'),
        "what may be an answer is not repeated"
    );
}
