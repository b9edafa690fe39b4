//! `[webhook.…]`: who is told of what happens, and how.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use url::Url;

use super::file::quoted;
use super::findings::{Findings, MOMENT};
use super::raw::{OneOrMany, RawWebhook};
use super::settle_access::{bad_image, is_word};
use super::upstreams::{is_open_http, proxy_url};
use super::{Password, Secret, Upstream, matches_pattern};

/// What can be told of; `events` has the same words.
pub const WEBHOOK_EVENTS: [&str; 9] = [
    "pull", "refuse", "fetch", "evict", "remove", "pin", "unpin", "refresh", "import",
];
/// A queue that is cut into parts has to have room for some events in each.
const LEAST_QUEUE: u64 = 1 << 20;
const HOUR: Duration = Duration::from_secs(3600);
const MAX_HEADERS: usize = 32;
const MAX_HEADER_BYTES: usize = 8 << 10;
/// Headers that say how the body is to be read, or that Larder sets itself.
const OWN_HEADERS: [&str; 10] = [
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "host",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
const OWN_PREFIX: &str = "x-larder-";

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Webhook {
    /// For people, metrics and the folder of its queue.
    pub name: String,
    pub url: HookUrl,
    /// Words of [`WEBHOOK_EVENTS`], at least one.
    pub events: Vec<String>,
    /// Patterns of images, upstream first; empty: all.
    pub images: Vec<String>,
    /// What signs.
    pub secret: Option<Password>,
    pub headers: Vec<(String, Secret)>,
    /// More of these, read for each delivery.
    pub headers_file: Option<PathBuf>,
    /// For a delivery, from connecting to the answer.
    pub timeout: Duration,
    /// The first pause after a failure.
    pub backoff: Duration,
    pub ca_file: Option<PathBuf>,
    pub proxy: Option<HookUrl>,
    /// Bytes on disk.
    pub queue_max: u64,
    /// What is older is not delivered any more.
    pub max_age: Duration,
}

impl Webhook {
    /// Whether it is to be told of something about that repository; `None`: something that no repository has.
    pub fn is_for(&self, repository: Option<&str>) -> bool {
        let fits = |name| self.images.iter().any(|pattern| matches_pattern(pattern, name));
        self.images.is_empty() || repository.is_some_and(fits)
    }

    /// `headers`, and what is in `headers_file` now. Blocking.
    ///
    /// Errors: a sentence that names the file, without what is in it.
    pub fn all_headers(&self) -> Result<Vec<(String, Secret)>, String> {
        let mut all = self.headers.clone();
        if let Some(path) = &self.headers_file {
            all.extend(read_headers(path)?);
        }
        Ok(all)
    }
}

/// An address whose path may be a secret, as with chat services. Only [`HookUrl::reveal`] gives all of it.
#[derive(Clone, PartialEq, Eq)]
pub struct HookUrl(Url);

impl HookUrl {
    /// To dial it, and for nothing else.
    pub fn reveal(&self) -> &Url {
        &self.0
    }
}

/// Scheme, host and port.
impl fmt::Display for HookUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = &self.0;
        write!(f, "{}://{}", url.scheme(), url.host_str().unwrap_or_default())?;
        if let Some(port) = url.port() {
            write!(f, ":{port}")?;
        }
        if url.path().len() > 1 || url.query().is_some() {
            f.write_str("/…")?;
        }
        Ok(())
    }
}

impl fmt::Debug for HookUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Sorted by name.
pub fn webhooks<'a>(
    findings: &mut Findings<'_>,
    raw: impl Iterator<Item = (&'a String, &'a RawWebhook)>,
    upstreams: &[Upstream],
) -> Vec<Webhook> {
    raw.filter_map(|(name, raw)| webhook(findings, name, raw, upstreams))
        .collect()
}

fn webhook(findings: &mut Findings<'_>, name: &str, raw: &RawWebhook, upstreams: &[Upstream]) -> Option<Webhook> {
    let at = |key: &'static str| ["webhook", name, key];
    if !is_word(name) {
        findings.refuse(
            &["webhook", name],
            format!(
                "found {}, expected a word of lower-case letters and digits",
                quoted(name)
            ),
        );
        return None;
    }
    let url = url(findings, name, raw.url.as_deref());
    let secret = secret(findings, name, raw);
    if let Some(url) = url.as_ref().filter(|url| is_open_http(url)) {
        let host = url.host_str().unwrap_or_default().to_owned();
        findings.warn(
            &at("url"),
            format!("who pulls what goes to {host} without encryption; https:// helps"),
        );
    }
    let headers = headers(findings, name, &raw.headers);
    let headers_file = findings.secret_file(&at("headers_file"), raw.headers_file.as_ref());
    if let Some(Err(why)) = headers_file
        .as_ref()
        .filter(|path| path.is_file())
        .map(|path| read_headers(path))
    {
        findings.refuse(&at("headers_file"), why);
    }
    let proxy = raw
        .proxy
        .as_ref()
        .and_then(|text| proxy_url(findings, &at("proxy"), text));
    Some(Webhook {
        events: events(findings, &at("events"), raw.events.as_ref()),
        images: images(findings, &at("images"), raw.images.as_ref(), upstreams),
        secret,
        headers,
        headers_file,
        timeout: findings.duration(&at("timeout"), &raw.timeout, (MOMENT, HOUR)),
        backoff: findings.duration(&at("backoff"), &raw.backoff, (MOMENT, HOUR)),
        ca_file: findings.file(&at("ca_file"), raw.ca_file.as_ref()),
        proxy: proxy.map(HookUrl),
        queue_max: findings.size(&at("queue_max"), &raw.queue_max, LEAST_QUEUE),
        max_age: findings.term(&at("max_age"), &raw.max_age),
        url: HookUrl(url?),
        name: name.to_owned(),
    })
}

/// What is wrong is said without the address: its path may be a secret.
fn url(findings: &mut Findings<'_>, name: &str, text: Option<&str>) -> Option<Url> {
    let key = ["webhook", name, "url"];
    let expected = "expected the address that events are sent to, such as \"https://hooks.example/larder\"";
    let Some(text) = text else {
        findings.refuse(&["webhook", name], format!("found no url, {expected}"));
        return None;
    };
    let Ok(url) = Url::parse(text) else {
        findings.refuse(&key, format!("found what is no address, {expected}"));
        return None;
    };
    let wrong = if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
        format!(
            "found an address that begins with {}:, {expected}",
            quoted(url.scheme())
        )
    } else if !url.username().is_empty() || url.password().is_some() {
        "expected no user or password in it; they belong in headers_file, as \"Authorization: Basic …\"".to_owned()
    } else if url.fragment().is_some() {
        "expected no # in it".to_owned()
    } else {
        return Some(url);
    };
    findings.refuse(&key, wrong);
    None
}

fn events(findings: &mut Findings<'_>, key: &[&str], given: Option<&OneOrMany>) -> Vec<String> {
    let Some(given) = given.map(OneOrMany::as_slice) else {
        return WEBHOOK_EVENTS.map(str::to_owned).to_vec();
    };
    if given.is_empty() {
        findings.refuse(key, "found an empty list; leave it out where everything is meant");
    }
    for word in given.iter().filter(|word| !WEBHOOK_EVENTS.contains(&word.as_str())) {
        let words = WEBHOOK_EVENTS.join(", ");
        findings.refuse(key, format!("found {}, expected some of {words}", quoted(word)));
    }
    given.to_vec()
}

fn images(findings: &mut Findings<'_>, key: &[&str], given: Option<&OneOrMany>, upstreams: &[Upstream]) -> Vec<String> {
    let Some(given) = given.map(OneOrMany::as_slice) else {
        return Vec::new();
    };
    if given.is_empty() {
        findings.refuse(key, "found an empty list; leave it out where everything is meant");
    }
    for pattern in given {
        if let Some(expected) = bad_image(pattern, upstreams) {
            findings.refuse(key, format!("found {}, expected {expected}", quoted(pattern)));
        }
    }
    given.to_vec()
}

fn secret(findings: &mut Findings<'_>, name: &str, raw: &RawWebhook) -> Option<Password> {
    let (key, file_key) = (["webhook", name, "secret"], ["webhook", name, "secret_file"]);
    let file = findings.secret_file(&file_key, raw.secret_file.as_ref());
    match (&raw.secret, file) {
        (Some(_), Some(_)) => {
            let other = findings.place(&key);
            findings.refuse(
                &file_key,
                format!("expected either secret or secret_file, but secret is given too ({other})"),
            );
            None
        }
        (Some(text), None) if text.is_empty() || text.contains(['\n', '\r']) => {
            findings.refuse(&key, "expected a secret, not an empty text or several lines");
            None
        }
        (Some(text), None) => {
            findings.warn_about_open_file(&key, "secret_file");
            Some(Password::Value(Secret::new(text)))
        }
        (None, file) => file.map(Password::File),
    }
}

fn headers(findings: &mut Findings<'_>, name: &str, given: &[String]) -> Vec<(String, Secret)> {
    let key = ["webhook", name, "headers"];
    let mut all = Vec::new();
    for (number, text) in given.iter().enumerate() {
        match header(text) {
            Ok(header) => all.push(header),
            Err(why) => findings.refuse(&key, format!("entry {}: {why}", number + 1)),
        }
    }
    if given.len() > MAX_HEADERS {
        findings.refuse(&key, format!("expected {MAX_HEADERS} at most"));
    }
    if !all.is_empty() {
        findings.warn_about_open_file(&key, "headers_file");
    }
    all
}

/// `Name: value`. Errors: what is wrong, without the value.
fn header(text: &str) -> Result<(String, Secret), String> {
    let Some((name, value)) = text.split_once(':') else {
        return Err("expected a header as \"Name: value\"".to_owned());
    };
    let (name, value) = (name.trim().to_ascii_lowercase(), value.trim());
    let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if name.is_empty() || name.len() > 128 || !name.bytes().all(is_token) {
        return Err("expected a header as \"Name: value\", with a name of letters, digits and hyphens".to_owned());
    }
    if OWN_HEADERS.contains(&name.as_str()) || name.starts_with(OWN_PREFIX) {
        return Err(format!("{name} is set by Larder, or not at all"));
    }
    if value.is_empty() || value.len() > MAX_HEADER_BYTES || !value.bytes().all(|b| (b' '..=b'~').contains(&b)) {
        return Err(format!(
            "the value of {name} has to be printable ASCII, of {MAX_HEADER_BYTES} bytes at most"
        ));
    }
    Ok((name, Secret::new(value)))
}

/// A header a line; empty lines and those that begin with `#` are none.
fn read_headers(path: &Path) -> Result<Vec<(String, Secret)>, String> {
    use std::io::Read as _;
    let shown = path.display();
    let mut text = String::new();
    let most = (MAX_HEADERS * MAX_HEADER_BYTES) as u64;
    let file = std::fs::File::open(path).map_err(|error| format!("{shown} cannot be read: {error}"))?;
    file.take(most)
        .read_to_string(&mut text)
        .map_err(|error| format!("{shown} cannot be read: {error}"))?;
    let lines = text.lines().enumerate();
    let lines = lines.filter(|(_, line)| !line.trim().is_empty() && !line.trim_start().starts_with('#'));
    let all: Vec<(String, Secret)> = lines
        .map(|(at, line)| header(line).map_err(|why| format!("{shown}, line {}: {why}", at + 1)))
        .collect::<Result<_, _>>()?;
    match all.len() <= MAX_HEADERS {
        true => Ok(all),
        false => Err(format!("{shown} has more than {MAX_HEADERS} headers")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;

    fn one(text: &str) -> Webhook {
        let text = format!("[webhook.ci]\nurl = \"https://hooks.example/t0ken?k=v\"\n{text}");
        Config::from_toml(&text).unwrap().webhooks.remove(0)
    }

    #[test]
    fn what_is_left_out() {
        let hook = one("");
        assert_eq!((hook.name.as_str(), hook.events.len()), ("ci", WEBHOOK_EVENTS.len()));
        assert_eq!((hook.queue_max, hook.timeout), (64 << 20, Duration::from_secs(10)));
        assert_eq!((hook.backoff, hook.max_age), (Duration::from_secs(1), 72 * HOUR));
        assert!(hook.is_for(None) && hook.is_for(Some("docker.io/a")));
    }

    #[test]
    fn images_by_pattern() {
        let hook = one("images = [\"docker.io/library/*\", \"ghcr.io/*\"]\n");
        for (repository, fits) in [
            (Some("docker.io/library/alpine"), true),
            (Some("ghcr.io/a/b"), true),
            (Some("docker.io/other/x"), false),
            (None, false),
        ] {
            assert_eq!(hook.is_for(repository), fits, "{repository:?}");
        }
    }

    #[test]
    fn nothing_secret_is_shown() {
        let hook = one("secret = \"hunter2\"\nheaders = [\"Authorization: Bearer hunter2\", \"x-site: 7\"]\n");
        let shown = format!("{hook:?}");
        assert!(
            !shown.contains("hunter2") && !shown.contains("t0ken") && !shown.contains("k=v"),
            "{shown}"
        );
        assert!(shown.contains("https://hooks.example/…"), "{shown}");
        let headers = hook.all_headers().unwrap();
        assert_eq!(
            (headers[0].0.as_str(), headers[0].1.reveal()),
            ("authorization", "Bearer hunter2")
        );
    }

    #[test]
    fn what_makes_no_sense_is_refused_without_telling_secrets() {
        for (text, word) in [
            ("[webhook.CI]\nurl = \"https://x/\"\n", "lower-case"),
            ("[webhook.ci]\n", "found no url"),
            ("[webhook.ci]\nurl = \"hunter2\"\n", "no address"),
            ("[webhook.ci]\nurl = \"ftp://x/hunter2\"\n", "begins with \"ftp\""),
            ("[webhook.ci]\nurl = \"https://me:hunter2@x/\"\n", "headers_file"),
            ("[webhook.ci]\nurl = 7\n", "expected a text"),
            (
                "[webhook.ci]\nurl = \"https://x/\"\nevents = [\"pulls\"]\n",
                "expected some of pull, refuse",
            ),
            ("[webhook.ci]\nurl = \"https://x/\"\nevents = []\n", "empty list"),
            (
                "[webhook.ci]\nurl = \"https://x/\"\nimages = [\"alpine\"]\n",
                "upstream before the first slash",
            ),
            (
                "[webhook.ci]\nurl = \"https://x/\"\nsecret = \"\"\n",
                "expected a secret",
            ),
            (
                "[webhook.ci]\nurl = \"https://x/\"\nheaders = [\"hunter2\"]\n",
                "entry 1: expected a header",
            ),
            (
                "[webhook.ci]\nurl = \"https://x/\"\nheaders = [\"Host: hunter2\"]\n",
                "host is set by Larder",
            ),
            (
                "[webhook.ci]\nurl = \"https://x/\"\nheaders = [\"X-Larder-Signature: hunter2\"]\n",
                "set by Larder",
            ),
            (
                "[webhook.ci]\nurl = \"https://x/\"\nheaders = [\"A: hunter2\\u0007\"]\n",
                "printable ASCII",
            ),
            (
                "[webhook.ci]\nurl = \"https://x/\"\nqueue_max = \"1KiB\"\n",
                "at least 1MiB",
            ),
            ("[webhook.ci]\nurl = \"https://x/\"\ntimeout = \"0s\"\n", "from 1ms"),
            (
                "[webhook.ci]\nurl = \"https://x/\"\nsecrets = \"hunter2\"\n",
                "did you mean webhook.ci.secret",
            ),
            (
                "[webhook]\nurl = \"https://hunter2/\"\n",
                "found a text, expected a table",
            ),
        ] {
            let error = Config::from_toml(text).unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
            assert!(!error.contains("hunter2"), "{text}: {error}");
        }
    }

    #[test]
    fn headers_from_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("headers");
        std::fs::write(&path, "# for the gateway\n\nAuthorization: Bearer x\n").unwrap();
        let mut hook = one("");
        hook.headers_file = Some(path.clone());
        assert_eq!(hook.all_headers().unwrap().len(), 1);
        std::fs::write(&path, "A: b\nhunter2\n").unwrap();
        let error = hook.all_headers().unwrap_err();
        assert!(error.contains("line 2") && !error.contains("hunter2"), "{error}");
    }
}
