//! What an upstream says is left of its pull limit (R-U32). `budget` keeps it.

use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderName};

use super::body;

/// `ratelimit-limit: 100;w=21600` and its companions, from the last answer that had them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateLimit {
    pub limit: Option<u64>,
    pub remaining: u64,
    pub window: Option<Duration>,
    /// Whose limit it is: an address, which a NAT may change from one request to the next, or an account's id (R-U35).
    pub source: Option<String>,
}

impl RateLimit {
    pub(super) fn read(headers: &HeaderMap) -> Option<RateLimit> {
        let get = |name: &'static str| body::text(headers, &HeaderName::from_static(name));
        let (remaining, window) = figure(get("ratelimit-remaining")?)?;
        Some(RateLimit {
            limit: get("ratelimit-limit").and_then(figure).map(|(limit, _)| limit),
            remaining,
            window,
            source: get("docker-ratelimit-source").map(|source| body::one_line(source, 64)),
        })
    }
}

/// `76;w=21600`
fn figure(text: &str) -> Option<(u64, Option<Duration>)> {
    let (number, params) = text.split_once(';').unwrap_or((text, ""));
    let window = params
        .split(';')
        .find_map(|p| p.trim().strip_prefix("w=")?.parse().ok());
    Some((number.trim().parse().ok()?, window.map(Duration::from_secs)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_docker_hub() {
        let pairs = [
            ("ratelimit-limit", "100;w=21600"),
            ("ratelimit-remaining", "76;w=21600"),
            ("docker-ratelimit-source", "192.0.2.1"),
        ];
        let headers = pairs.map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()));
        let read = RateLimit::read(&HeaderMap::from_iter(headers)).unwrap();
        let want = RateLimit {
            limit: Some(100),
            remaining: 76,
            window: Some(Duration::from_secs(21_600)),
            source: Some("192.0.2.1".to_owned()),
        };
        assert_eq!(read, want);
        assert_eq!(RateLimit::read(&HeaderMap::new()), None);
        assert_eq!(figure("many"), None);
        assert_eq!(figure(" 5 "), Some((5, None)));
    }
}
