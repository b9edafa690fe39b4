//! Keeps Larder away from an upstream that said 429 (R-U33).
//!
//! One pause per credential: a registry's limits are per user, and for the anonymous per address. While it
//! lasts, requests are answered `RateLimited` without dialling, so that stale copies are served at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::credentials::Credential;

/// No registry's window is longer than Docker Hub's.
pub const LONGEST: Duration = Duration::from_secs(6 * 3600);
/// A `Retry-After: 0` would make a breaker that never opens.
const SHORTEST: Duration = Duration::from_secs(1);
/// How long to stay away when the answer does not say; a tenth is added at random, so that replicas spread.
pub const DEFAULT: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub struct Breaker {
    // Holds what is open; few, because credentials of one upstream are few.
    until: Mutex<HashMap<Arc<Credential>, Instant>>,
}

impl Breaker {
    /// Opens for `credential`, longer if it is open already, and says for how long.
    pub fn open(&self, credential: &Arc<Credential>, retry_after: Option<&str>) -> Duration {
        let pause = pause(retry_after);
        let now = Instant::now();
        let mut until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        until.retain(|_, end| *end > now);
        let end = until.entry(credential.clone()).or_insert(now);
        *end = (*end).max(now + pause);
        end.saturating_duration_since(now)
    }

    /// Takes over what is open.
    pub fn inherit(&self, before: &Breaker) {
        let open = before.until.lock().unwrap_or_else(PoisonError::into_inner).clone();
        *self.until.lock().unwrap_or_else(PoisonError::into_inner) = open;
    }

    /// What is left for `credential`.
    pub fn left(&self, credential: &Credential) -> Option<Duration> {
        let until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        remaining(*until.get(credential)?)
    }

    /// The longest that is left for any credential.
    pub fn longest_left(&self) -> Option<Duration> {
        let until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        until.values().filter_map(|end| remaining(*end)).max()
    }
}

/// How long a 429 asks to be left alone.
pub fn pause(retry_after: Option<&str>) -> Duration {
    retry_after
        .and_then(|text| parse_retry_after(text, SystemTime::now()))
        .unwrap_or_else(|| DEFAULT + Duration::from_millis(fastrand::u64(0..6_000)))
        .clamp(SHORTEST, LONGEST)
}

fn remaining(end: Instant) -> Option<Duration> {
    let left = end.saturating_duration_since(Instant::now());
    (!left.is_zero()).then_some(left)
}

/// How long such a header asks to wait, [`LONGEST`] at most: what is read can be added to any time of a clock. `None` if it
/// says nothing.
pub fn read_retry_after(text: &str) -> Option<Duration> {
    parse_retry_after(text, SystemTime::now()).map(|pause| pause.min(LONGEST))
}

/// Whole seconds or an HTTP date. Nothing else: ghcr.io writes Go durations such as `35.852µs` (R-U40).
fn parse_retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return Some(text.parse().map_or(LONGEST, Duration::from_secs));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(now).unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_in_every_form() {
        let now = SystemTime::now();
        assert_eq!(parse_retry_after(" 30 ", now), Some(Duration::from_secs(30)));
        assert_eq!(parse_retry_after("99999999999999999999999", now), Some(LONGEST));
        let later = httpdate::fmt_http_date(now + Duration::from_secs(100));
        let read = parse_retry_after(&later, now).unwrap();
        assert!(
            read <= Duration::from_secs(100) && read > Duration::from_secs(97),
            "{read:?}"
        );
        let earlier = httpdate::fmt_http_date(now - Duration::from_secs(100));
        assert_eq!(parse_retry_after(&earlier, now), Some(Duration::ZERO));
        for far in [
            "18446744073709551615",
            "9223372036854775807",
            "Fri, 31 Dec 9999 23:59:59 GMT",
        ] {
            assert_eq!(read_retry_after(far), Some(LONGEST), "{far}");
        }
        for not in ["35.852µs", "", "-1", "1.5", "soon"] {
            assert_eq!(parse_retry_after(not, now), None, "{not}");
        }
    }

    #[test]
    fn opens_for_one_credential_and_never_shortens() {
        let breaker = Breaker::default();
        let anonymous = Arc::new(Credential::Anonymous);
        let other = Credential::Bearer(crate::config::Secret::new("t"));
        assert_eq!(breaker.left(&anonymous), None);
        assert!(breaker.open(&anonymous, Some("99999999999")) <= LONGEST);
        let long = breaker.open(&anonymous, Some("0"));
        assert!(long > LONGEST - Duration::from_secs(600), "{long:?}");
        assert!(breaker.left(&anonymous).is_some() && breaker.longest_left().is_some());
        assert_eq!(breaker.left(&other), None);
    }
}
