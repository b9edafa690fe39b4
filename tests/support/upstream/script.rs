//! Which requests are answered wrongly, how often, and how.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use larder::oci::Digest;

use super::Upstream;
use super::answer::Reply;
use super::record::Request;
use super::wire::Kind;
use crate::support::gate::Gate;

/// What a request is for.
#[derive(Clone, Debug, PartialEq)]
pub enum On {
    Any,
    /// `/v2/`
    Ping,
    Manifests,
    /// One tag or digest, of any repository.
    Manifest(String),
    Blobs,
    Blob(Digest),
    Tags,
    Referrers,
    /// The token server.
    Token,
    /// `/storage/<digest>`, where a registry redirects to; or `/docker/registry/v2/blobs/<digest>/data`, nearly as the reference
    /// registry's stores have it.
    Storage,
    /// A path that begins so.
    Path(String),
}

impl On {
    pub fn method(self, method: &str) -> Matcher {
        Matcher::from(self).method(method)
    }

    pub fn get(self) -> Matcher {
        self.method("GET")
    }

    pub fn head(self) -> Matcher {
        self.method("HEAD")
    }

    pub fn repo(self, repo: &str) -> Matcher {
        Matcher::from(self).repo(repo)
    }

    /// With a Range header.
    pub fn ranged(self) -> Matcher {
        Matcher::from(self).ranged()
    }

    /// Without a Range header.
    pub fn whole(self) -> Matcher {
        Matcher::from(self).whole()
    }

    /// With an Authorization header.
    pub fn authorized(self) -> Matcher {
        Matcher::from(self).authorized()
    }
}

/// [`On`], narrowed down.
#[derive(Clone, Debug, PartialEq)]
pub struct Matcher {
    on: On,
    method: Option<String>,
    repo: Option<String>,
    ranged: Option<bool>,
    authorized: Option<bool>,
}

impl From<On> for Matcher {
    fn from(on: On) -> Matcher {
        Matcher {
            on,
            method: None,
            repo: None,
            ranged: None,
            authorized: None,
        }
    }
}

impl Matcher {
    pub fn method(mut self, method: &str) -> Matcher {
        self.method = Some(method.to_owned());
        self
    }

    pub fn get(self) -> Matcher {
        self.method("GET")
    }

    pub fn head(self) -> Matcher {
        self.method("HEAD")
    }

    pub fn repo(mut self, repo: &str) -> Matcher {
        self.repo = Some(repo.to_owned());
        self
    }

    pub fn ranged(mut self) -> Matcher {
        self.ranged = Some(true);
        self
    }

    pub fn whole(mut self) -> Matcher {
        self.ranged = Some(false);
        self
    }

    pub fn authorized(mut self) -> Matcher {
        self.authorized = Some(true);
        self
    }

    pub fn unauthorized(mut self) -> Matcher {
        self.authorized = Some(false);
        self
    }

    pub fn fits(&self, request: &Request) -> bool {
        let kind = &request.kind;
        let on = match &self.on {
            On::Any => true,
            On::Ping => *kind == Kind::Ping,
            On::Manifests => matches!(kind, Kind::Manifest { .. }),
            On::Manifest(wanted) => matches!(kind, Kind::Manifest { reference, .. } if reference == wanted),
            On::Blobs => matches!(kind, Kind::Blob { .. }),
            On::Blob(wanted) => matches!(kind, Kind::Blob { digest, .. } if *digest == wanted.to_string()),
            On::Tags => matches!(kind, Kind::Tags { .. }),
            On::Referrers => matches!(kind, Kind::Referrers { .. }),
            On::Token => *kind == Kind::Token,
            On::Storage => matches!(kind, Kind::Storage { .. }),
            On::Path(prefix) => request.path.starts_with(prefix),
        };
        on && self.method.as_ref().is_none_or(|m| *m == request.method)
            && self.repo.as_ref().is_none_or(|r| Some(r.as_str()) == kind.repo())
            && self.ranged.is_none_or(|r| r == request.header("range").is_some())
            && self
                .authorized
                .is_none_or(|a| a == request.header("authorization").is_some())
    }
}

/// One thing that is wrong with an answer. Offsets count the bytes of this answer's body, not of the blob.
#[derive(Clone, Debug)]
pub enum Fault {
    /// This answer and nothing else.
    Status {
        status: u16,
        headers: Vec<(String, String)>,
        body: Bytes,
    },
    /// `{digest}`, `{reference}` and `{path}` in the target are filled in.
    Redirect {
        target: String,
        status: u16,
    },
    /// Never a byte.
    Hang,
    StallHeaders(Gate),
    /// The answer begins so much later: the way there and back.
    Delay(Duration),
    /// The connection ends before the status line; `reset` by RST.
    NoHead {
        reset: bool,
    },
    /// These bytes in place of an HTTP answer, and the connection ends.
    NoHttp(Bytes),
    CutAfter(u64),
    /// By RST. What the peer has not read by then may be lost to it.
    ResetAfter(u64),
    StallAfter(u64, Gate),
    FlipByte(usize),
    /// Another body, its length told truly.
    WrongBytes(Bytes),
    /// The body is cut to so many bytes and Content-Length says so: complete by its framing.
    Truncate(usize),
    /// The body goes on with these, and Content-Length says so.
    Append(Bytes),
    Chunked,
    /// Neither Content-Length nor chunks: the body ends with the connection.
    CloseDelimited,
    Header(String, String),
    NoHeader(String),
    /// The answer is that to the same request without Range.
    IgnoreRange,
    /// A 206 of a range that begins so many bytes later, and says so.
    ShiftRange(u64),
    Pace(Pace),
    /// The server's own failure: the test that uses it must fail.
    Panic,
}

#[derive(Clone, Debug)]
pub enum Pace {
    BytesPerSecond(u64),
    /// The gate is passed before each piece.
    Steps {
        bytes: u64,
        gate: Gate,
    },
}

impl Fault {
    /// Whether it strikes a request that lacks the right to the content as well.
    fn precedes_auth(&self) -> bool {
        matches!(
            self,
            Fault::Status { .. } | Fault::Hang | Fault::StallHeaders(_) | Fault::NoHead { .. } | Fault::Panic
        )
    }
}

#[derive(Clone, Copy, Debug)]
enum Times {
    Next(usize),
    Always,
    /// Counted from 1.
    Nth(usize),
}

/// Made by [`Upstream::on`]: how often, then what.
#[must_use = "a rule acts only once it has a fault"]
pub struct RuleBuilder<'a> {
    upstream: &'a Upstream,
    matcher: Matcher,
    times: Times,
    after_auth: bool,
}

impl<'a> RuleBuilder<'a> {
    pub fn new(upstream: &'a Upstream, matcher: Matcher) -> RuleBuilder<'a> {
        RuleBuilder {
            upstream,
            matcher,
            times: Times::Next(1),
            after_auth: false,
        }
    }

    /// The next `n` that match. Without this: the next one.
    pub fn next(mut self, n: usize) -> Self {
        self.times = Times::Next(n);
        self
    }

    /// Every one that no counted rule takes.
    pub fn always(mut self) -> Self {
        self.times = Times::Always;
        self
    }

    /// Only the `n`th from now, counted from 1.
    pub fn nth(mut self, n: usize) -> Self {
        self.times = Times::Nth(n);
        self
    }

    /// Only requests that the registry would have served.
    pub fn after_auth(mut self) -> Self {
        self.after_auth = true;
        self
    }

    /// Several faults in one answer.
    pub fn does(self, faults: impl IntoIterator<Item = Fault>) -> Rule {
        let faults: Vec<Fault> = faults.into_iter().collect();
        let after_auth = self.after_auth || !faults.iter().all(Fault::precedes_auth);
        let rule = Rule(Arc::new(RuleState {
            matcher: self.matcher,
            times: self.times,
            after_auth,
            faults,
            seen: AtomicUsize::new(0),
            hits: AtomicUsize::new(0),
            removed: AtomicBool::new(false),
        }));
        self.upstream.shared().script.add(rule.clone());
        rule
    }

    pub fn status(self, status: u16) -> Rule {
        let code = match status {
            401 => "UNAUTHORIZED",
            403 => "DENIED",
            404 => "MANIFEST_UNKNOWN",
            429 => "TOOMANYREQUESTS",
            _ => "UNKNOWN",
        };
        let reply = Reply::error(status, code, "as the script says");
        self.does([Fault::Status {
            status,
            headers: reply.headers,
            body: reply.body,
        }])
    }

    pub fn answer(self, status: u16, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Rule {
        self.does([Fault::Status {
            status,
            headers: headers
                .iter()
                .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
                .collect(),
            body: body.into(),
        }])
    }

    /// A captive portal's login page with status 200.
    pub fn html_page(self) -> Rule {
        self.answer(
            200,
            &[("Content-Type", "text/html; charset=utf-8")],
            "<!doctype html><html><title>Welcome</title><body>Please log in to the network.</body></html>",
        )
    }

    /// 429 in OCI form.
    pub fn rate_limit(self, retry_after: Option<&str>) -> Rule {
        let mut reply = Reply::error(429, "TOOMANYREQUESTS", "You have reached your pull rate limit.");
        if let Some(value) = retry_after {
            reply.set("Retry-After", value);
        }
        self.does([Fault::Status {
            status: 429,
            headers: reply.headers,
            body: reply.body,
        }])
    }

    pub fn redirect_to(self, target: impl Into<String>, status: u16) -> Rule {
        self.does([Fault::Redirect {
            target: target.into(),
            status,
        }])
    }

    pub fn hang_connection(self) -> Rule {
        self.does([Fault::Hang])
    }

    pub fn stall_headers(self, gate: &Gate) -> Rule {
        self.does([Fault::StallHeaders(gate.clone())])
    }

    /// Ends the connection without an answer.
    pub fn drop_connection(self) -> Rule {
        self.does([Fault::NoHead { reset: false }])
    }

    pub fn reset_connection(self) -> Rule {
        self.does([Fault::NoHead { reset: true }])
    }

    pub fn cut_after(self, bytes: u64) -> Rule {
        self.does([Fault::CutAfter(bytes)])
    }

    pub fn reset_after(self, bytes: u64) -> Rule {
        self.does([Fault::ResetAfter(bytes)])
    }

    pub fn stall_after(self, bytes: u64, gate: &Gate) -> Rule {
        self.does([Fault::StallAfter(bytes, gate.clone())])
    }

    pub fn flip_byte(self, at: usize) -> Rule {
        self.does([Fault::FlipByte(at)])
    }

    pub fn wrong_bytes(self, bytes: impl Into<Bytes>) -> Rule {
        self.does([Fault::WrongBytes(bytes.into())])
    }

    /// Sends only the first `bytes` and a Content-Length that says the same.
    pub fn short_content_length(self, bytes: usize) -> Rule {
        self.does([Fault::Truncate(bytes)])
    }

    /// Sends more than the content, and a Content-Length that says the same.
    pub fn trailing_bytes(self, bytes: impl Into<Bytes>) -> Rule {
        self.does([Fault::Append(bytes.into())])
    }

    pub fn no_content_length(self) -> Rule {
        self.does([Fault::Chunked])
    }

    pub fn close_delimited(self) -> Rule {
        self.does([Fault::CloseDelimited])
    }

    pub fn header(self, name: &str, value: &str) -> Rule {
        self.does([Fault::Header(name.to_owned(), value.to_owned())])
    }

    pub fn no_header(self, name: &str) -> Rule {
        self.does([Fault::NoHeader(name.to_owned())])
    }

    pub fn no_digest_header(self) -> Rule {
        self.no_header("Docker-Content-Digest")
    }

    pub fn wrong_digest_header(self, digest: &Digest) -> Rule {
        self.header("Docker-Content-Digest", &digest.to_string())
    }

    /// The header only; the bytes stay.
    pub fn content_encoding(self, coding: &str) -> Rule {
        self.header("Content-Encoding", coding)
    }

    pub fn ignore_range(self) -> Rule {
        self.does([Fault::IgnoreRange])
    }

    /// The header only; the bytes stay.
    pub fn wrong_content_range(self, text: &str) -> Rule {
        self.header("Content-Range", text)
    }

    pub fn shift_range(self, by: u64) -> Rule {
        self.does([Fault::ShiftRange(by)])
    }

    pub fn throttle(self, bytes_per_second: u64) -> Rule {
        self.does([Fault::Pace(Pace::BytesPerSecond(bytes_per_second))])
    }

    pub fn step(self, bytes: u64, gate: &Gate) -> Rule {
        self.does([Fault::Pace(Pace::Steps {
            bytes,
            gate: gate.clone(),
        })])
    }

    /// HEAD is answered with `status` (405, 404, 400), the rest as ever.
    pub fn no_head(mut self, status: u16) -> Rule {
        self.matcher = self.matcher.head();
        self.status(status)
    }
}

/// A rule in force.
#[derive(Clone)]
pub struct Rule(Arc<RuleState>);

struct RuleState {
    matcher: Matcher,
    times: Times,
    after_auth: bool,
    faults: Vec<Fault>,
    // Requests that matched, for Nth.
    seen: AtomicUsize,
    hits: AtomicUsize,
    removed: AtomicBool,
}

impl Rule {
    /// How many answers it has spoilt.
    pub fn hits(&self) -> usize {
        self.0.hits.load(Ordering::SeqCst)
    }

    pub fn remove(&self) {
        self.0.removed.store(true, Ordering::SeqCst);
    }

    fn applies(&self, request: &Request, denied: bool) -> bool {
        let out = self.0.removed.load(Ordering::SeqCst) || (denied && self.0.after_auth);
        !out && self.0.matcher.fits(request)
    }

    /// Whether it is its turn, given that it applies.
    fn is_due(&self) -> bool {
        match self.0.times {
            Times::Always => true,
            Times::Next(n) => self.hits() < n,
            Times::Nth(n) => self.0.seen.fetch_add(1, Ordering::SeqCst) + 1 == n,
        }
    }
}

/// The rules of one instance.
#[derive(Default)]
pub struct Script(Mutex<Vec<Rule>>);

impl Script {
    fn add(&self, rule: Rule) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(rule);
    }

    pub fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// The faults for this request: of the first counted rule whose turn it is, else of the last that always
    /// holds. `denied`: the registry would refuse it for want of a right.
    pub fn faults_for(&self, request: &Request, denied: bool) -> Vec<Fault> {
        let rules = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut chosen: Option<&Rule> = None;
        for rule in rules.iter().filter(|rule| rule.applies(request, denied)) {
            // Every Nth rule counts, chosen or not.
            let due = rule.is_due();
            let chosen_is_counted = chosen.is_some_and(|c| !matches!(c.0.times, Times::Always));
            if due && !chosen_is_counted {
                chosen = Some(rule);
            }
        }
        match chosen {
            Some(rule) => {
                rule.0.hits.fetch_add(1, Ordering::SeqCst);
                rule.0.faults.clone()
            }
            None => Vec::new(),
        }
    }
}
