//! AWS Signature Version 4, as the AWS documentation has it ("Signature Version 4 signing process"): canonical request →
//! string to sign → a key derived for day, region and service → the Authorization header.
//!
//! Paths are those that Larder asks for, `/` mostly; each is encoded once more than it is sent, as all services but
//! S3 want it.

use std::fmt::Write as _;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use ring::{digest, hmac};
use url::Url;

use crate::config::Secret;

/// Everything but what the documentation calls unreserved.
const ENCODED: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
const PATH: AsciiSet = ENCODED.remove(b'/');

/// Who signs.
#[derive(Clone, Debug)]
pub struct Keys {
    pub id: String,
    pub secret: Secret,
    /// Of temporary keys.
    pub session: Option<Secret>,
}

/// For what.
#[derive(Clone, Copy, Debug)]
pub struct Scope<'a> {
    pub region: &'a str,
    pub service: &'a str,
}

/// One request, as it is signed.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    pub method: &'a str,
    pub url: &'a Url,
    /// In lower case, Host and X-Amz-Date among them. All are signed.
    pub headers: &'a [(&'a str, &'a str)],
    pub body: &'a [u8],
}

/// The Authorization header. `date` is that of X-Amz-Date.
pub fn authorization(keys: &Keys, scope: Scope<'_>, date: &str, request: &Request<'_>) -> String {
    let day = date.get(..8).unwrap_or(date);
    let within = format!("{day}/{}/{}/aws4_request", scope.region, scope.service);
    let (canonical, signed) = canonical(request);
    let to_sign = format!("AWS4-HMAC-SHA256\n{date}\n{within}\n{}", hash(canonical.as_bytes()));
    let key = key(&keys.secret, day, scope);
    let signature = hex(hmac::sign(&key, to_sign.as_bytes()).as_ref());
    format!(
        "AWS4-HMAC-SHA256 Credential={}/{within}, SignedHeaders={signed}, Signature={signature}",
        keys.id
    )
}

/// The canonical request, and the names of the headers in it.
fn canonical(request: &Request<'_>) -> (String, String) {
    let mut headers: Vec<(&str, String)> = request
        .headers
        .iter()
        .map(|(name, value)| (*name, value.split_whitespace().collect::<Vec<_>>().join(" ")))
        .collect();
    headers.sort();
    let names: Vec<&str> = headers.iter().map(|(name, _)| *name).collect();
    let signed = names.join(";");
    let lines: String = headers.iter().fold(String::new(), |mut lines, (name, value)| {
        let _ = writeln!(lines, "{name}:{value}");
        lines
    });
    let path = utf8_percent_encode(request.url.path(), &PATH);
    let query = canonical_query(request.url);
    let text = format!(
        "{}\n{path}\n{query}\n{lines}\n{signed}\n{}",
        request.method,
        hash(request.body)
    );
    (text, signed)
}

fn canonical_query(url: &Url) -> String {
    let encode = |text: &str| utf8_percent_encode(text, &ENCODED).to_string();
    let mut pairs: Vec<(String, String)> = url
        .query_pairs()
        .map(|(name, value)| (encode(&name), encode(&value)))
        .collect();
    pairs.sort();
    let pairs: Vec<String> = pairs
        .into_iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    pairs.join("&")
}

fn key(secret: &Secret, day: &str, scope: Scope<'_>) -> hmac::Key {
    let first = hmac::Key::new(hmac::HMAC_SHA256, format!("AWS4{}", secret.reveal()).as_bytes());
    [day, scope.region, scope.service, "aws4_request"]
        .iter()
        .fold(first, |key, part| {
            hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&key, part.as_bytes()).as_ref())
        })
}

fn hash(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATE: &str = "20150830T123600Z";

    fn keys() -> Keys {
        Keys {
            id: "AKIDEXAMPLE".to_owned(),
            secret: Secret::new("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"),
            session: None,
        }
    }

    fn signature(service: &str, request: &Request<'_>) -> String {
        let scope = Scope {
            region: "us-east-1",
            service,
        };
        let header = authorization(&keys(), scope, DATE, request);
        header.rsplit('=').next().unwrap().to_owned()
    }

    /// The test suite that AWS publishes for signers.
    #[test]
    fn the_published_vectors() {
        let plain = [("host", "example.amazonaws.com"), ("x-amz-date", DATE)];
        let form = [
            ("content-type", "application/x-www-form-urlencoded"),
            ("host", "example.amazonaws.com"),
            ("x-amz-date", DATE),
        ];
        for (name, method, url, headers, body, want) in [
            (
                "get-vanilla",
                "GET",
                "https://example.amazonaws.com/",
                &plain[..],
                "",
                "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
            ),
            (
                "get-vanilla-query-order-key-case",
                "GET",
                "https://example.amazonaws.com/?Param2=value2&Param1=value1",
                &plain[..],
                "",
                "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
            ),
            (
                "post-vanilla",
                "POST",
                "https://example.amazonaws.com/",
                &plain[..],
                "",
                "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
            ),
            (
                "post-x-www-form-urlencoded",
                "POST",
                "https://example.amazonaws.com/",
                &form[..],
                "Param1=value1",
                "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a",
            ),
        ] {
            let url = url.parse().unwrap();
            let request = Request {
                method,
                url: &url,
                headers,
                body: body.as_bytes(),
            };
            assert_eq!(signature("service", &request), want, "{name}");
        }
    }

    /// The worked example of the documentation: `ListUsers` of IAM.
    #[test]
    fn the_documented_example() {
        let url = "https://iam.amazonaws.com/?Action=ListUsers&Version=2010-05-08"
            .parse()
            .unwrap();
        let request = Request {
            method: "GET",
            url: &url,
            headers: &[
                ("content-type", "application/x-www-form-urlencoded; charset=utf-8"),
                ("host", "iam.amazonaws.com"),
                ("x-amz-date", DATE),
            ],
            body: b"",
        };
        let (canonical, signed) = canonical(&request);
        assert_eq!(signed, "content-type;host;x-amz-date");
        assert_eq!(
            hash(canonical.as_bytes()),
            "f536975d06c0309214f805bb90ccff089219ecd68b2577efef23edd43b7e1a59"
        );
        assert_eq!(
            signature("iam", &request),
            "5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7"
        );
    }
}
