//! Larders that lead in a circle: `Via` (RFC 9110, 7.6.3), by which a request is known that has come back.
//!
//! Every process has a name of its own, `larder-` and 16 random digits, and sends it with each request to a registry,
//! behind the names of the Larders that the client's own request has been through. Who finds its own name in a request
//! answers 508 at once: else it would wait for itself. No other name has a consequence here, because anybody may write
//! any: only a name that this process made up, and told its upstreams, says where a request has been. Names of other
//! proxies are nobody's business, so they are not passed on; of those of Larders, the last ones are.
//!
//! The names go with the task that answers a request ([`Forwarded::over`]) and with the question or transfer that this
//! begins ([`carry`]). Who joins one that somebody else began adds nothing to it.

use std::collections::VecDeque;
use std::sync::Arc;

use reqwest::header::HeaderValue;
use url::Url;

const PREFIX: &str = "larder-";
const DIGITS: usize = 16;
/// How a name stands in the header: the protocol that the request came by, then who took it.
const PROTOCOL: &str = "1.1 ";
/// Names that go on to an upstream at most, with this process's own.
const MOST: usize = 16;

tokio::task_local! {
    static FORWARDED: Forwarded;
}

/// The name of this process.
#[derive(Clone, Debug)]
pub struct Via {
    name: Arc<str>,
    /// For requests that no other Larder sent.
    alone: HeaderValue,
}

/// Why a request is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Circle {
    #[error(
        "this request has been through this proxy before: an upstream or mirror of it, or of a Larder behind it, is this proxy itself"
    )]
    CameBack,
}

/// The Larders that a request has been through, as they stand in its `Via`: none of a client's own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forwarded(Option<Arc<str>>);

impl Via {
    pub fn random() -> Via {
        let name = format!("{PREFIX}{:016x}", fastrand::u64(..));
        // It is ASCII; without it requests would go out all the same.
        let alone = HeaderValue::from_str(&format!("{PROTOCOL}{name}"));
        Via {
            alone: alone.unwrap_or_else(|_| HeaderValue::from_static("1.1 larder")),
            name: name.into(),
        }
    }

    /// Reads the lines of a request's `Via`.
    ///
    /// Error: it has been here before.
    pub fn read<'a>(&self, lines: impl IntoIterator<Item = &'a [u8]>) -> Result<Forwarded, Circle> {
        // Each Larder adds its name at the end. So in a circle of up to MOST of them the name of each is among the
        // last, whatever a client put before them.
        let mut last: VecDeque<&str> = VecDeque::with_capacity(MOST);
        for name in lines.into_iter().flat_map(names) {
            if name == &*self.name {
                return Err(Circle::CameBack);
            }
            if last.len() >= MOST - 1 {
                last.pop_front();
            }
            last.push_back(name);
        }
        let mut through = String::new();
        for name in last {
            if !through.is_empty() {
                through.push_str(", ");
            }
            through.push_str(PROTOCOL);
            through.push_str(name);
        }
        Ok(Forwarded((!through.is_empty()).then(|| through.into())))
    }

    /// What a request to this address says; `None` where no registry is asked, but a store or a token server.
    pub(super) fn header(&self, url: &Url) -> Option<HeaderValue> {
        if !url.path().contains("/v2/") {
            return None;
        }
        let through = FORWARDED
            .try_with(Forwarded::clone)
            .ok()
            .and_then(|forwarded| forwarded.0);
        match through {
            None => Some(self.alone.clone()),
            Some(through) => HeaderValue::from_str(&format!("{through}, {PROTOCOL}{}", self.name)).ok(),
        }
    }
}

impl Forwarded {
    /// Returns whether a client asks, and no other Larder.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Runs `answering`: what that begins to ask of upstreams has been through these Larders.
    pub fn over<F: Future>(self, answering: F) -> impl Future<Output = F::Output> {
        FORWARDED.scope(self, answering)
    }
}

/// `future`, for a task of its own, on behalf of the request that this task answers.
pub fn carry<F: Future>(future: F) -> impl Future<Output = F::Output> {
    let forwarded = FORWARDED.try_with(Forwarded::clone);
    forwarded.unwrap_or_default().over(future)
}

/// The names of Larders in a line, whatever stands between them.
fn names(line: &[u8]) -> impl Iterator<Item = &str> {
    let words = line.split(|byte| !byte.is_ascii_alphanumeric() && *byte != b'-');
    words.filter_map(|word| {
        let word = std::str::from_utf8(word).ok()?;
        let digits = word.strip_prefix(PREFIX)?;
        let is_name =
            digits.len() == DIGITS && digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        is_name.then_some(word)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(via: &Via) -> String {
        via.alone.to_str().unwrap().to_owned()
    }

    fn read(via: &Via, line: &str) -> Result<Option<String>, Circle> {
        let forwarded = via.read([line.as_bytes()])?;
        Ok(forwarded.0.map(|text| text.to_string()))
    }

    #[test]
    fn only_larders_count() {
        let (own, other) = (Via::random(), Via::random());
        let there = text(&other);
        for line in [
            "",
            "1.1 nginx",
            "1.0 fred, 1.1 p.example:80 (squid, 4.1)",
            "larder",
            "1.1 larder-123",
            "\u{e9}",
        ] {
            assert_eq!(read(&own, line), Ok(None), "{line:?}");
        }
        let name = &other.name;
        for line in [
            there.clone(),
            format!("1.1 nginx,{there}"),
            format!("HTTP/2.0 {name} (behind, 1.1 (p)), 1.1 varnish"),
            format!("\t{name}\t"),
        ] {
            assert_eq!(read(&own, &line), Ok(Some(there.clone())), "{line:?}");
            assert_eq!(read(&other, &line), Err(Circle::CameBack), "{line:?}");
        }
        assert_eq!(read(&own, &format!("1.1 {}", name.to_uppercase())), Ok(None));
        let lines: [&[u8]; 2] = [there.as_bytes(), own.alone.as_bytes()];
        assert_eq!(own.read(lines), Err(Circle::CameBack));
        assert_ne!(own.name, other.name);
    }

    /// A circle of up to 16 is found in its first round, whatever names a client put before; and the header stays
    /// small.
    #[tokio::test]
    async fn a_circle_is_found_behind_forged_names() {
        let url: Url = "http://r.example/v2/a/manifests/1".parse().unwrap();
        for (forged, length) in [(0, 2), (15, 2), (16, 16), (200, 16)] {
            let circle: Vec<Via> = (0..length).map(|_| Via::random()).collect();
            let mut sent: HeaderValue = (0..forged)
                .map(|_| text(&Via::random()))
                .collect::<Vec<_>>()
                .join(", ")
                .parse()
                .unwrap();
            for via in &circle {
                let forwarded = via.read([sent.as_bytes()]).unwrap();
                sent = forwarded.over(async { via.header(&url) }).await.unwrap();
                assert!(sent.len() <= MOST * 32, "{sent:?}");
            }
            assert_eq!(circle[0].read([sent.as_bytes()]), Err(Circle::CameBack));
        }
    }

    #[tokio::test]
    async fn names_go_along_with_what_is_begun() {
        let (own, other) = (Via::random(), Via::random());
        let url: Url = "http://r.example/v2/".parse().unwrap();
        let store: Url = "http://s.example/storage/x?v2".parse().unwrap();
        assert_eq!(own.header(&url).unwrap(), text(&own));
        assert_eq!(own.header(&store), None);
        let forwarded = own.read([other.alone.as_bytes()]).unwrap();
        let chain = format!("{}, {}", text(&other), text(&own));
        let asking = async {
            let header = || {
                let (own, url) = (own.clone(), url.clone());
                async move { own.header(&url).unwrap() }
            };
            assert_eq!(header().await, chain);
            assert_eq!(tokio::spawn(carry(header())).await.unwrap(), chain);
            assert_eq!(tokio::spawn(header()).await.unwrap(), text(&own));
        };
        forwarded.over(asking).await;
    }

    proptest! {
        /// Whatever comes, what goes on is names and nothing else, and none of ours.
        #[test]
        fn foreign_text_goes_nowhere(lines in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 0..4), ours in any::<bool>(), others in 0..20usize) {
            let via = Via::random();
            let mut lines = lines;
            lines.extend((0..others).map(|_| Via::random().alone.as_bytes().to_vec()));
            if ours {
                lines.push(via.alone.as_bytes().to_vec());
            }
            match via.read(lines.iter().map(Vec::as_slice)) {
                Ok(forwarded) => {
                    prop_assert!(!ours);
                    let text = forwarded.0.unwrap_or_default();
                    prop_assert!(text.len() <= MOST * 32);
                    prop_assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-., ".contains(&b)), "{text}");
                }
                Err(Circle::CameBack) => prop_assert!(ours),
            }
        }
    }
}
