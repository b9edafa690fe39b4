//! Events in the format of the CNCF distribution registry's notifications, so that what listens to that one understands them.
//!
//! Fields that the format has keep their meaning; what only a cache has to tell stands in one object of its own, `larder`.

use bytes::Bytes;
use serde::Serialize;

use crate::events::{Action, Event};
use crate::store::Line;
use crate::telemetry::clock;

pub(super) const MEDIA_TYPE: &str = "application/vnd.docker.distribution.events.v2+json";
/// The action of an event about nothing.
const PING: &str = "ping";

/// Who tells.
#[derive(Clone, Debug)]
pub struct Source {
    /// Host and port of the registry.
    pub address: String,
    /// Of this run of it.
    pub instance: String,
}

impl Source {
    pub fn new(address: String) -> Source {
        Source {
            address,
            instance: id(),
        }
    }
}

/// A UUID of version 4.
pub(super) fn id() -> String {
    let bits = (fastrand::u128(..) & !(0xf << 76) & !(0x3 << 62)) | 0x4 << 76 | 0x2 << 62;
    let hex = format!("{bits:032x}");
    let [a, b, c, d, e] = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
    format!("{a}-{b}-{c}-{d}-{e}")
}

/// An event as it is written; what is not known is left out. In the order of distribution's documentation.
#[derive(Serialize)]
struct Entry<'a> {
    id: &'a str,
    timestamp: String,
    action: &'a str,
    target: Target<'a>,
    request: Asked<'a>,
    actor: Actor<'a>,
    source: Told<'a>,
    larder: Own<'a>,
}

#[derive(Default, Serialize)]
struct Target<'a> {
    #[serde(rename = "mediaType", skip_serializing_if = "Option::is_none")]
    media_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    length: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    repository: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tag: Option<&'a str>,
}

/// Of a client; an operator's doing and the cache's own have none.
#[derive(Default, Serialize)]
struct Asked<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    addr: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    useragent: Option<&'a str>,
}

#[derive(Default, Serialize)]
struct Actor<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
}

#[derive(Serialize)]
struct Told<'a> {
    addr: &'a str,
    #[serde(rename = "instanceID")]
    instance: &'a str,
}

/// What only a cache has to tell.
#[derive(Default, Serialize)]
struct Own<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    complete: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    webhook: Option<&'a str>,
}

impl<'a> Entry<'a> {
    fn bare(action: &'a str, source: &'a Source, id: &'a str, at_ms: u64) -> Entry<'a> {
        Entry {
            id,
            timestamp: clock::rfc3339(at_ms),
            action,
            target: Target::default(),
            request: Asked::default(),
            actor: Actor::default(),
            source: Told {
                addr: &source.address,
                instance: &source.instance,
            },
            larder: Own::default(),
        }
    }

    fn text(&self) -> String {
        // Only maps with keys that are no texts cannot be written.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// One event, at that time (Unix milliseconds).
pub(super) fn event(event: &Event, source: &Source, id: &str, at_ms: u64) -> String {
    let entry = Entry {
        target: target(event),
        request: asked(event),
        actor: Actor {
            name: event.user.as_deref(),
        },
        larder: own(event),
        ..Entry::bare(event.action.as_str(), source, id, at_ms)
    };
    entry.text()
}

/// What happened to nothing, to see whether it arrives.
pub(super) fn ping(webhook: &str, source: &Source, id: &str, at_ms: u64) -> String {
    let mut entry = Entry::bare(PING, source, id, at_ms);
    entry.larder.webhook = Some(webhook);
    entry.text()
}

fn target(event: &Event) -> Target<'_> {
    // Of a part, or of an answer that was cut off, the bytes say nothing of the whole.
    let size = match event.action {
        Action::Pull => event
            .bytes
            .filter(|_| event.status == Some(200) && event.is_complete == Some(true)),
        Action::Fetch => event.bytes,
        _ => None,
    };
    let digest = event.digest.map(|digest| digest.to_string());
    let url = match (&event.origin, &event.repository, &digest) {
        (Some(origin), Some(repository), Some(digest)) => {
            let kind = if event.is_blob { "blobs" } else { "manifests" };
            Some(format!("{origin}/v2/{repository}/{kind}/{digest}"))
        }
        _ => None,
    };
    Target {
        media_type: event.media_type.as_deref(),
        size,
        digest,
        length: size,
        repository: event.repository.as_deref(),
        url,
        tag: event.reference.as_deref().filter(|reference| !reference.contains(':')),
    }
}

fn asked(event: &Event) -> Asked<'_> {
    let host = event.origin.as_deref().and_then(|origin| origin.split_once("://"));
    Asked {
        addr: event.client.as_deref(),
        host: host.map(|(_, host)| host),
        method: event.client.as_ref().map(|_| "GET"),
        useragent: event.user_agent.as_deref(),
    }
}

fn own(event: &Event) -> Own<'_> {
    let ms = event
        .took
        .map(|took| u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
    Own {
        upstream: event.upstream.as_deref(),
        reason: event.reason,
        bytes: event.bytes,
        ms,
        status: event.status,
        complete: event.is_complete,
        webhook: None,
    }
}

/// What goes out at once.
pub(super) fn body(lines: &[Line]) -> Bytes {
    let mut body = Vec::with_capacity(lines.iter().map(|line| line.json.len() + 1).sum::<usize>() + 16);
    body.extend_from_slice(b"{\"events\":[");
    for (at, line) in lines.iter().enumerate() {
        if at > 0 {
            body.push(b',');
        }
        body.extend_from_slice(line.json.as_bytes());
    }
    body.extend_from_slice(b"]}");
    body.into()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::*;

    fn source() -> Source {
        Source {
            address: "xtal.local:5000".to_owned(),
            instance: "a53db899-3b4b-4a62-a067-8dd013beaca4".to_owned(),
        }
    }

    const DIGEST: &str = "sha256:fea8895f450959fa676bcc1df0611ea93823a735a01205fd8622846041d0c7cf";

    fn pull() -> Event {
        Event {
            repository: Some("docker.io/library/hello-world".into()),
            reference: Some("latest".into()),
            digest: Some(DIGEST.parse().unwrap()),
            media_type: Some("application/vnd.docker.distribution.manifest.v2+json".into()),
            upstream: Some("docker.io".into()),
            bytes: Some(708),
            took: Some(Duration::from_millis(3)),
            status: Some(200),
            reason: Some("hit"),
            is_complete: Some(true),
            client: Some("192.168.64.11:42961".into()),
            user: Some("alice".into()),
            user_agent: Some("curl/7.38.0".into()),
            origin: Some("http://192.168.100.227:5000".into()),
            ..Event::of(Action::Pull)
        }
    }

    /// Field by field as in the documentation of distribution's notifications, but for the request's id, which Larder does not
    /// give, and the upstream in front of the repository.
    #[test]
    fn a_pull_is_told_as_distribution_tells_it() {
        let text = event(
            &pull(),
            &source(),
            "320678d8-ca14-430f-8bb6-4ca139cd83f7",
            1_457_563_466_402,
        );
        let found: Value = serde_json::from_str(&text).unwrap();
        let url = format!("http://192.168.100.227:5000/v2/docker.io/library/hello-world/manifests/{DIGEST}");
        let wanted = json!({
            "id": "320678d8-ca14-430f-8bb6-4ca139cd83f7",
            "timestamp": "2016-03-09T22:44:26.402Z",
            "action": "pull",
            "target": {
                "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
                "size": 708,
                "digest": DIGEST,
                "length": 708,
                "repository": "docker.io/library/hello-world",
                "url": url,
                "tag": "latest",
            },
            "request": {
                "addr": "192.168.64.11:42961",
                "host": "192.168.100.227:5000",
                "method": "GET",
                "useragent": "curl/7.38.0",
            },
            "actor": { "name": "alice" },
            "source": { "addr": "xtal.local:5000", "instanceID": "a53db899-3b4b-4a62-a067-8dd013beaca4" },
            "larder": {
                "upstream": "docker.io", "reason": "hit", "bytes": 708, "ms": 3, "status": 200, "complete": true,
            },
        });
        assert_eq!(found, wanted);
        assert!(!text.contains('\n'));
    }

    #[test]
    fn what_is_not_known_is_not_told() {
        let of = |event: &Event| -> Value { serde_json::from_str(&super::event(event, &source(), "x", 0)).unwrap() };
        let mut part = pull();
        (part.status, part.is_blob, part.reference) = (Some(206), true, Some(DIGEST.into()));
        let part = of(&part);
        assert_eq!(
            (&part["target"]["size"], &part["target"]["tag"]),
            (&Value::Null, &Value::Null)
        );
        assert!(part["target"]["url"].as_str().unwrap().contains("/blobs/sha256:"));
        let evicted = of(&Event {
            digest: Some(DIGEST.parse().unwrap()),
            bytes: Some(5),
            reason: Some("max_size"),
            ..Event::of(Action::Evict)
        });
        assert_eq!(evicted["target"], json!({ "digest": DIGEST }));
        assert_eq!((&evicted["request"], &evicted["actor"]), (&json!({}), &json!({})));
        assert_eq!(evicted["larder"], json!({ "bytes": 5, "reason": "max_size" }));
    }

    #[test]
    fn a_body_is_an_envelope() {
        let line = |n: u64| Line {
            at_ms: n,
            json: ping("ci", &source(), &n.to_string(), n),
        };
        let body: Value = serde_json::from_slice(&body(&[line(1), line(2)])).unwrap();
        let events = body["events"].as_array().unwrap();
        assert_eq!(
            (events.len(), &events[1]["id"], &events[0]["action"]),
            (2, &"2".into(), &"ping".into())
        );
        let (a, b) = (id(), id());
        assert_ne!(a, b);
        assert!(a.len() == 36 && &a[14..15] == "4" && "89ab".contains(&a[19..20]), "{a}");
    }

    /// What can be configured is what there is.
    #[test]
    fn every_event_has_a_word() {
        let words: Vec<&str> = Action::ALL.into_iter().map(Action::as_str).collect();
        assert_eq!(words, crate::config::WEBHOOK_EVENTS);
    }
}
