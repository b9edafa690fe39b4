//! Reading answers: small documents under a cap, and what an error's body says.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::Response;
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap};
use url::Url;

use super::error::ErrorKind;
use super::transport::failure;
use crate::oci::media_type;
pub use crate::text::one_line;

/// Of a token server's answer (R-X13).
pub const MAX_TOKEN_BYTES: usize = 64 * 1024;
/// Of an error's body (R-X13).
pub const MAX_ERROR_BYTES: usize = 64 * 1024;
/// What is read of an unwanted body so that its connection can be used again.
const MAX_DRAINED_BYTES: u64 = 16 * 1024;
/// How long an error's text or an unwanted body is waited for.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest part of an upstream's message that is passed on.
const MAX_DETAIL_CHARS: usize = 300;
/// Bytes of a password that is looked for in what an upstream says.
const SHORTEST_SECRET: usize = 4;
/// Bytes of a value of a signed address that is looked for there.
const SHORTEST_SIGNATURE: usize = 6;

/// A whole body of at most `cap` bytes. `pause` bounds the time between two pieces.
pub async fn whole(response: Response, cap: usize, pause: Duration) -> Result<Bytes, ErrorKind> {
    let read = document(response, cap, pause).await;
    read.map_err(|error| match error {
        ErrorKind::TooLarge { found, limit, .. } => {
            ErrorKind::Protocol(format!("{found} bytes or more, where {limit} are allowed").into())
        }
        other => other,
    })
}

/// A whole document of at most `cap` bytes, whatever its Content-Length claims; a larger one is `TooLarge`. `pause` bounds
/// the time between two pieces.
pub async fn document(mut response: Response, cap: usize, pause: Duration) -> Result<Bytes, ErrorKind> {
    let too_large = |found: u64, is_exact| ErrorKind::TooLarge {
        found,
        is_exact,
        limit: cap as u64,
    };
    let declared = content_length(response.headers());
    if let Some(size) = declared.filter(|size| *size > cap as u64) {
        return Err(too_large(size, true));
    }
    // What is announced is within `cap`, and costs nothing before it comes.
    let mut all = BytesMut::with_capacity(declared.and_then(|size| usize::try_from(size).ok()).unwrap_or(0));
    while let Some(piece) = piece(&mut response, pause).await? {
        if all.len() + piece.len() > cap {
            return Err(too_large((all.len() + piece.len()) as u64, false));
        }
        all.extend_from_slice(&piece);
    }
    match declared {
        Some(size) if size != all.len() as u64 => Err(ErrorKind::Cut(
            format!("the answer broke off: {} of {size} bytes came", all.len()).into(),
        )),
        _ => Ok(all.freeze()),
    }
}

/// The next piece of a body.
pub async fn piece(response: &mut Response, pause: Duration) -> Result<Option<Bytes>, ErrorKind> {
    match tokio::time::timeout(pause, response.chunk()).await {
        Err(_) => Err(ErrorKind::Timeout(pause)),
        Ok(Err(error)) => Err(match failure(error) {
            ErrorKind::Connect(text) => ErrorKind::Cut(text),
            other => other,
        }),
        Ok(Ok(piece)) => Ok(piece),
    }
}

/// Lets the connection of an answer that nobody wants to read be used again.
pub async fn drain(response: Response) {
    if content_length(response.headers()).is_some_and(|size| size <= MAX_DRAINED_BYTES) {
        let reading = whole(response, MAX_DRAINED_BYTES as usize, PATIENCE);
        let _ = tokio::time::timeout(PATIENCE, reading).await;
    }
}

pub fn content_length(headers: &HeaderMap) -> Option<u64> {
    text(headers, &CONTENT_LENGTH)?.trim().parse().ok()
}

/// A header as text; `None` when it is missing or not text.
pub fn text<'a>(headers: &'a HeaderMap, name: &reqwest::header::HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// What an error's body says, for people: the OCI error's code and message, or the text itself. None of `secrets`,
/// no control character and no query string is in it (R-X15, R-X17).
pub async fn detail(response: Response, secrets: &[&str]) -> String {
    let reason = response.status().canonical_reason().unwrap_or("no reason given");
    let is_page = text(response.headers(), &CONTENT_TYPE).is_some_and(media_type::is_web_page);
    if is_page {
        return format!("{reason}, with a web page");
    }
    let reading = whole(response, MAX_ERROR_BYTES, PATIENCE);
    let body = tokio::time::timeout(PATIENCE, reading).await;
    let body = body.ok().and_then(Result::ok).unwrap_or_default();
    let said = message(&body);
    if said.is_empty() {
        reason.to_owned()
    } else {
        clean(&said, secrets)
    }
}

pub(super) fn message(body: &[u8]) -> String {
    let Ok(json) = serde_json::from_slice::<serde_json::Value>(body) else {
        return String::from_utf8_lossy(body).into_owned();
    };
    let first = json.get("errors").and_then(|e| e.get(0)).unwrap_or(&json);
    let field = |key: &str| first.get(key).and_then(serde_json::Value::as_str).unwrap_or_default();
    // The last three are how clouds say it.
    let parts = ["code", "message", "details", "error", "error_description", "Message"].map(field);
    let parts: Vec<&str> = parts.into_iter().filter(|p| !p.is_empty()).collect();
    parts.join(": ")
}

/// The parts of an address that may be secrets, as they are written there and as they are meant: what is in its query,
/// such as a signature, and a password.
pub(super) fn secrets_of(url: &Url) -> Vec<String> {
    let written = url.query().unwrap_or_default().split('&');
    let written = written.map(|pair| pair.split_once('=').map_or(pair, |(_, value)| value).to_owned());
    let meant = url.query_pairs().map(|(_, value)| value.into_owned());
    let password = url.password().into_iter().map(str::to_owned);
    let mut secrets: Vec<String> = written.chain(meant).chain(password).collect();
    // Anything shorter is a number or a flag, and stands in too many sentences.
    secrets.retain(|secret| secret.len() >= SHORTEST_SIGNATURE);
    secrets
}

/// The spellings of a secret in which a document may repeat it: as it is, as in JSON, as in a form.
fn spellings(secret: &str) -> [String; 3] {
    let json = serde_json::Value::from(secret).to_string();
    let json = json.trim_start_matches('"').strip_suffix('"').unwrap_or_default();
    let form = url::form_urlencoded::byte_serialize(secret.as_bytes()).collect();
    [json.to_owned(), form, secret.to_owned()]
}

pub(super) fn clean(said: &str, secrets: &[&str]) -> String {
    let mut said = said.to_owned();
    let mut spelled: Vec<String> = secrets.iter().flat_map(|secret| spellings(secret)).collect();
    spelled.retain(|secret| secret.len() >= SHORTEST_SECRET);
    // One that is in another comes behind it, or the rest of that would stay.
    spelled.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
    spelled.dedup();
    for secret in &spelled {
        said = said.replace(secret.as_str(), "[secret]");
    }
    // Signed URLs are secrets too: a word with `://` loses its query and its user info. Control characters become blanks
    // when this is shown, so they part words here.
    let parts = |c: char| c.is_whitespace() || c.is_control();
    let words = said.split(parts).filter(|word| !word.is_empty());
    let words: Vec<String> = words.map(without_query).collect();
    one_line(&words.join(" "), MAX_DETAIL_CHARS)
}

fn without_query(word: &str) -> String {
    let mut pieces = word.split("://");
    let mut clean = pieces.next().unwrap_or_default().to_owned();
    // A word may hold several, with a comma between them.
    for piece in pieces {
        let bare = piece.split(['?', '#']).next().unwrap_or_default();
        let slash = bare.find('/').unwrap_or(bare.len());
        let host = bare[..slash].rfind('@').map_or(0, |at| at + 1);
        clean = clean + "://" + &bare[host..];
        if bare.len() < piece.len() {
            break;
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages() {
        let oci = br#"{"errors":[{"code":"DENIED","message":"no\r\nway","detail":{"a":1}}]}"#;
        assert_eq!(clean(&message(oci), &[]), "DENIED: no way");
        assert_eq!(message(br#"{"code":"NOT_FOUND"}"#), "NOT_FOUND");
        assert_eq!(
            message(br#"{"details":"incorrect username or password"}"#),
            "incorrect username or password"
        );
        assert_eq!(message(b"plain"), "plain");
        assert_eq!(message(b"{}"), "");
    }

    #[test]
    fn nothing_secret_is_passed_on() {
        let said = "see https://u:pw@x.example/a?X-Sig=abc or hunter2 \u{1b}[31m \u{202e}\u{200b}x";
        assert_eq!(
            clean(said, &["hunter2"]),
            "see https://x.example/a or [secret] [31m   x"
        );
        let two =
            "at https://a.example/x,https://u:hunter2@b.example/y?sig=hunter2 or\u{7f}https://u:hunter2@c.example";
        assert_eq!(
            clean(two, &[]),
            "at https://a.example/x,https://b.example/y or https://c.example"
        );
        assert_eq!(one_line(&"é".repeat(400), 300).chars().count(), 301);
    }

    #[test]
    fn secrets_in_every_spelling() {
        let url = "https://u:hunter2@x.example/a?X-Sig=abc%2Bdefgh&n=12&plain"
            .parse()
            .unwrap();
        let secrets = secrets_of(&url);
        assert_eq!(secrets, ["abc%2Bdefgh", "abc+defgh", "hunter2"]);
        let secrets: Vec<&str> = secrets.iter().map(String::as_str).collect();
        let said = "sig abc+defgh or abc%2Bdefgh of n=12 by hunter2";
        assert_eq!(clean(said, &secrets), "sig [secret] or [secret] of n=12 by [secret]");
        assert_eq!(
            clean(r#"{"p":"pw\"q&a"} pw%22q%26a pw"q&a"#, &[r#"pw"q&a"#]),
            r#"{"p":"[secret]"} [secret] [secret]"#
        );
        // One that begins another.
        assert_eq!(clean("hunter2-longer", &["hunter2", "hunter2-longer"]), "[secret]");
    }
}
