//! A blob's bytes on their way: where they start, how many there are, and when they stop too early.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{ACCEPT_RANGES, CONTENT_ENCODING, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderName, WARNING};
use reqwest::{Response, StatusCode};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::body;
use super::error::{ErrorKind, UpstreamError};
use super::pacer::{Pace, Pacer};
use crate::telemetry::trace::Span as TraceSpan;

/// A blob's bytes as they come.
#[derive(Debug)]
pub struct BlobStream {
    /// Offset in the blob of the first byte that [`BlobStream::next`] gives. It is the offset asked for, or 0 when
    /// the upstream ignored the Range (R-U25).
    pub start: u64,
    /// Size of the whole blob, where the answer tells it.
    pub total: Option<u64>,
    pub content_type: Option<String>,
    /// Whether the answer says that there are no ranges. That it says nothing proves nothing.
    pub no_ranges: bool,
    /// Whether the store says that it unpacked the bytes on the way: they may not be those that were pushed (R-U26).
    pub was_unpacked: bool,
    /// The address that was asked for them, whatever it redirected to: `https://mirror.example`.
    pub address: Arc<str>,
    response: Response,
    /// Bytes still to come by the answer's own framing.
    left: Option<u64>,
    upstream: Arc<str>,
    read_timeout: Duration,
    progress: Progress,
    /// Time that the next piece has been waited for, also by calls that were dropped.
    waited: Duration,
    bytes: metrics::Counter,
    pace: Pace,
    /// Bytes that came and whose turn has not come (`max_bandwidth`).
    held: Bytes,
    came: Came,
    /// Held as long as the body is (`max_connections`).
    _slot: Option<OwnedSemaphorePermit>,
}

const STORED_ENCODING: HeaderName = HeaderName::from_static("x-goog-stored-content-encoding");

/// Fewer bytes than these in a whole `read_timeout` of waiting is no transfer: a byte now and then would
/// hold a slot and a staging file for ever (R-X13).
const MIN_BYTES_PER_TIMEOUT: usize = 1024;

/// What came, against the time that was spent waiting for it. Time that the reader takes for itself is not counted.
#[derive(Debug, Default)]
struct Progress {
    waited: Duration,
    bytes: usize,
}

impl Progress {
    fn suffices(&mut self, waited: Duration, bytes: usize, window: Duration) -> bool {
        self.waited += waited;
        self.bytes += bytes;
        if self.waited < window {
            return true;
        }
        let enough = self.bytes >= MIN_BYTES_PER_TIMEOUT;
        *self = Progress::default();
        enough
    }
}

/// What is wanted of a blob: all from `start`, or what is before `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub start: u64,
    pub end: Option<u64>,
}

impl Span {
    pub fn from(start: u64) -> Span {
        Span { start, end: None }
    }

    /// Of at least one byte.
    pub fn of(span: Range<u64>) -> Span {
        Span {
            start: span.start,
            end: Some(span.end),
        }
    }

    /// As a Range header, where the last byte is named and not the one behind it.
    pub fn header(&self) -> String {
        match self.end {
            Some(end) => format!("bytes={}-{}", self.start, end.saturating_sub(1)),
            None => format!("bytes={}-", self.start),
        }
    }
}

/// What the head of an answer says about the bytes that follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    pub start: u64,
    pub total: Option<u64>,
    left: Option<u64>,
}

impl Extent {
    #[cfg(any(test, fuzzing))]
    pub(super) fn left(&self) -> Option<u64> {
        self.left
    }

    /// `asked` is the Range that was sent, if one was. A 206 must start where it was asked to: bytes
    /// from anywhere else would only be found out by the digest, after all of them came.
    pub fn of(status: StatusCode, headers: &HeaderMap, asked: Option<Span>) -> Result<Extent, ErrorKind> {
        let length = body::content_length(headers);
        if let Some(end) = asked.and_then(|asked| asked.end)
            && status != StatusCode::PARTIAL_CONTENT
        {
            return Err(ErrorKind::Protocol(
                format!("{status} to a Range that ends at byte {end}").into(),
            ));
        }
        if status != StatusCode::PARTIAL_CONTENT {
            return Ok(Extent {
                start: 0,
                total: length,
                left: length,
            });
        }
        let protocol = |what: String| ErrorKind::Protocol(what.into());
        let asked = asked.ok_or_else(|| protocol("206 to a request without Range".to_owned()))?;
        let text = body::text(headers, &CONTENT_RANGE).unwrap_or_default();
        let (first, last, total) = content_range(text)
            .ok_or_else(|| protocol(format!("206 with Content-Range {:?}", body::one_line(text, 80))))?;
        if first != asked.start || asked.end.is_some_and(|end| last.checked_add(1) != Some(end)) {
            return Err(protocol(format!(
                "206 with bytes {first} to {last}, where {:?} was asked for",
                asked.header()
            )));
        }
        let size = last - first + 1;
        if length.is_some_and(|length| length != size) {
            return Err(protocol(format!(
                "206 with Content-Range {text:?} and another Content-Length"
            )));
        }
        Ok(Extent {
            start: first,
            total,
            left: Some(size),
        })
    }
}

/// As Google's storage says it, or any proxy that transforms (RFC 9111, warning 214).
fn was_unpacked(headers: &HeaderMap) -> bool {
    let stored = body::text(headers, &STORED_ENCODING).is_some_and(|said| said.trim().eq_ignore_ascii_case("gzip"));
    let warned = headers
        .get_all(WARNING)
        .iter()
        .any(|line| line.as_bytes().starts_with(b"214"));
    (stored || warned) && !headers.contains_key(CONTENT_ENCODING)
}

/// `bytes 5-9/10` or `bytes 5-9/*`.
fn content_range(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let (unit, rest) = text.trim().split_once(' ')?;
    let (range, total) = rest.trim().split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    let total: Option<u64> = match total.trim() {
        "*" => None,
        number => Some(number.parse().ok()?),
    };
    let fits = unit.eq_ignore_ascii_case("bytes") && first <= last && last < u64::MAX;
    (fits && total.is_none_or(|total| last < total)).then_some((first, last, total))
}

/// What came, told to the trace when no more is wanted.
#[derive(Debug)]
struct Came {
    bytes: u64,
    span: TraceSpan,
}

impl Drop for Came {
    fn drop(&mut self) {
        self.span.set("http.response.body.size", self.bytes);
    }
}

impl BlobStream {
    pub(super) fn new(
        extent: Extent,
        response: Response,
        upstream: Arc<str>,
        address: Arc<str>,
        read_timeout: Duration,
        pacer: Arc<Pacer>,
        slot: Option<OwnedSemaphorePermit>,
    ) -> BlobStream {
        let span = response.extensions().get::<TraceSpan>().cloned().unwrap_or_default();
        BlobStream {
            start: extent.start,
            total: extent.total,
            content_type: body::text(response.headers(), &CONTENT_TYPE).map(str::to_owned),
            no_ranges: body::text(response.headers(), &ACCEPT_RANGES)
                .is_some_and(|said| said.trim().eq_ignore_ascii_case("none")),
            was_unpacked: was_unpacked(response.headers()),
            address,
            response,
            left: extent.left,
            bytes: metrics::counter!("larder_upstream_bytes_total", "upstream" => upstream.to_string()),
            upstream,
            read_timeout,
            progress: Progress::default(),
            waited: Duration::ZERO,
            pace: Pace::new(pacer),
            held: Bytes::new(),
            came: Came { bytes: 0, span },
            _slot: slot,
        }
    }

    /// The next piece; `Ok(None)` at the end of a body that was complete by its own framing. May be dropped and called
    /// again: nothing that came, and no time that was waited, is lost.
    /// Errors: `Timeout` after `read_timeout` without a byte, `Cut` when the connection broke.
    pub async fn next(&mut self) -> Result<Option<Bytes>, UpstreamError> {
        let next = self.read().await;
        match &next {
            Ok(piece) => self.came.bytes += piece.as_ref().map_or(0, |piece| piece.len() as u64),
            Err(error) => self.came.span.fail(error.as_str(), &error.kind),
        }
        next
    }

    /// Hands out what came when its time has come, and reads no more before that.
    async fn read(&mut self) -> Result<Option<Bytes>, UpstreamError> {
        if self.held.is_empty() {
            match self.receive().await? {
                Some(piece) => self.held = piece,
                None => return Ok(None),
            }
        }
        let passed = self.pace.pass(self.held.len()).await;
        Ok(Some(self.held.split_to(passed)))
    }

    async fn receive(&mut self) -> Result<Option<Bytes>, UpstreamError> {
        let pause = self.read_timeout.saturating_sub(self.waited);
        let received = {
            let _counts = Waiting::begin(&mut self.waited);
            body::piece(&mut self.response, pause).await
        };
        let waited = std::mem::take(&mut self.waited);
        let timeout = || ErrorKind::Timeout(self.read_timeout);
        let piece = received.map_err(|kind| match kind {
            ErrorKind::Timeout(_) => timeout(),
            other => other,
        });
        let piece = piece.map_err(|kind| UpstreamError::new(&self.upstream, kind))?;
        let came = piece.as_ref().map_or(0, Bytes::len);
        if piece.is_some() && !self.progress.suffices(waited, came, self.read_timeout) {
            return Err(UpstreamError::new(&self.upstream, timeout()));
        }
        let Some(piece) = piece else {
            return match self.left {
                Some(left) if left > 0 => {
                    let kind =
                        ErrorKind::Cut(format!("the answer broke off: {left} bytes are missing at its end").into());
                    Err(UpstreamError::new(&self.upstream, kind))
                }
                _ => Ok(None),
            };
        };
        self.bytes.increment(piece.len() as u64);
        if let Some(left) = &mut self.left {
            *left = left.checked_sub(piece.len() as u64).ok_or_else(|| {
                let kind = ErrorKind::Protocol("more bytes than it announced".into());
                UpstreamError::new(&self.upstream, kind)
            })?;
        }
        Ok(Some(piece))
    }
}

/// Adds the time that it lives: a wait that is dropped counts.
struct Waiting<'a> {
    begun: Instant,
    waited: &'a mut Duration,
}

impl Waiting<'_> {
    fn begin(waited: &mut Duration) -> Waiting<'_> {
        Waiting {
            begun: Instant::now(),
            waited,
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        *self.waited += self.begun.elapsed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::header::CONTENT_LENGTH;

    fn extent(status: u16, range: &str, length: Option<&str>, asked: Option<u64>) -> Result<Extent, String> {
        let mut headers = HeaderMap::new();
        if !range.is_empty() {
            headers.insert(CONTENT_RANGE, range.parse().unwrap());
        }
        if let Some(length) = length {
            headers.insert(CONTENT_LENGTH, length.parse().unwrap());
        }
        let asked = asked.map(Span::from);
        Extent::of(StatusCode::from_u16(status).unwrap(), &headers, asked).map_err(|e| e.to_string())
    }

    #[test]
    fn drips_are_no_transfer() {
        let second = Duration::from_secs(1);
        let mut drip = Progress::default();
        assert!((0..9).all(|_| drip.suffices(second, 1, 10 * second)));
        assert!(!drip.suffices(second, 1, 10 * second));
        let mut slow = Progress::default();
        assert!((0..100).all(|_| slow.suffices(second, 200, 10 * second)));
        assert!(slow.suffices(20 * second, 5000, 10 * second));
    }

    #[test]
    fn ranges() {
        let part = |start, total, left| {
            Ok(Extent {
                start,
                total,
                left: Some(left),
            })
        };
        assert_eq!(extent(206, "bytes 5-9/10", Some("5"), Some(5)), part(5, Some(10), 5));
        assert_eq!(extent(206, "Bytes 5-9/*", None, Some(5)), part(5, None, 5));
        assert_eq!(extent(200, "", Some("10"), Some(5)), part(0, Some(10), 10));
        for (range, length) in [
            ("bytes 0-9/10", None),
            ("bytes 6-9/10", None),
            ("bytes 5-9/9", None),
            ("bytes 5-4/10", None),
            ("bytes 5-9/10", Some("4")),
            ("bytes */10", None),
            ("lines 5-9/10", None),
            ("", None),
            ("bytes 5-18446744073709551615/*", None),
        ] {
            assert!(extent(206, range, length, Some(5)).is_err(), "{range}");
        }
        assert!(extent(206, "bytes 0-9/10", None, None).is_err());
    }

    /// Just the bytes that were asked for, or it is no answer.
    #[test]
    fn parts() {
        let part = Span::of(5..8);
        assert_eq!(part.header(), "bytes=5-7");
        let of = |status: u16, range: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_RANGE, range.parse().unwrap());
            let status = StatusCode::from_u16(status).unwrap();
            Extent::of(status, &headers, Some(part)).map(|extent| extent.left)
        };
        assert_eq!(of(206, "bytes 5-7/10").unwrap(), Some(3));
        for (status, range) in [
            (200, "bytes 5-7/10"),
            (206, "bytes 5-9/10"),
            (206, "bytes 5-6/10"),
            (206, "bytes 4-7/10"),
        ] {
            assert!(matches!(of(status, range), Err(ErrorKind::Protocol(_))), "{range}");
        }
    }
}
