//! What the access log says, read from the lines themselves.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use axum::http::Request;
use futures_util::FutureExt;
use http_body_util::BodyExt;
use serde_json::Value;
use tracing::instrument::WithSubscriber;

use super::*;
use crate::telemetry::trace::Sampler;

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn broken() -> Body {
    let frames = [Ok(Bytes::from_static(b"abc")), Err(std::io::Error::other("cut"))];
    Body::from_stream(futures_util::stream::iter(frames))
}

/// The answer to a request by its path, on its way out.
async fn answered(request: Request<Body>) -> Response<Logged<Body>> {
    let caller = Caller {
        address: Peer::Tcp(([10, 0, 0, 7], 4242).into()),
        told: None,
        is_by_proxy: false,
        certificate: None,
        tls: false,
        outbox: None,
    };
    let (parts, _) = request.into_parts();
    let mut line = Line::begin(&parts, &caller);
    let heeds = Sampler {
        share: 0.0,
        heeds_parent: true,
    };
    line.traced(&Tracer::into_queue(heeds, 1).0, &parts, &caller, "http");
    let mut labels = Labels {
        route: "other",
        outcome: None,
        upstream: None,
        subject: None,
        cause: None,
    };
    let response = match parts.uri.path() {
        "/told" => {
            labels = Labels {
                route: "blob",
                outcome: Some("hit"),
                upstream: Some("docker.io".into()),
                subject: None,
                cause: None,
            };
            Response::new(match parts.method {
                Method::HEAD => Body::empty(),
                _ => Body::from("hello"),
            })
        }
        "/broken" => Response::new(broken()),
        "/short" => {
            let frames = [io::Result::Ok(Bytes::from_static(b"abc"))];
            let mut response = Response::new(Body::from_stream(futures_util::stream::iter(frames)));
            response.headers_mut().insert(CONTENT_LENGTH, 5.into());
            response
        }
        _ => std::future::pending().await,
    };
    line.answered(response, labels, Instant::now())
}

/// The one line that is logged when `request` is answered and as much of the body is read as `read` says.
async fn line(request: Request<Body>, read: bool) -> Value {
    crate::telemetry::metrics::install().unwrap();
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_max_level(tracing::Level::INFO)
        .with_writer(move || writer.clone())
        .finish();
    async {
        let Some(response) = answered(request).now_or_never() else {
            return;
        };
        if read {
            let _ = response.into_body().collect().await;
        }
    }
    .with_subscriber(subscriber)
    .await;
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    serde_json::from_str(&text).unwrap()
}

fn request(uri: &str) -> axum::http::request::Builder {
    Request::builder().uri(uri)
}

/// The trace of a client that has one, recorded or not.
#[tokio::test]
async fn the_trace_is_named() {
    let id = "4bf92f3577b34da6a3ce929d0e0e4736";
    for flags in ["00", "01"] {
        let parent = format!("00-{id}-00f067aa0ba902b7-{flags}");
        let request = request("/told").header("traceparent", parent);
        let line = line(request.body(Body::empty()).unwrap(), true).await;
        assert_eq!(line["trace_id"], id);
    }
    let line = line(request("/told").body(Body::empty()).unwrap(), true).await;
    assert_eq!(line.get("trace_id"), None);
}

/// What a client calls itself is told and nothing more (R-C29).
#[tokio::test]
async fn a_complete_answer() {
    let request = request("/told?ns=docker.io&token=secret")
        .header("user-agent", "x".repeat(500))
        .header("authorization", "Basic c2VjcmV0")
        .header("range", "bytes=0-");
    let line = line(request.body(Body::empty()).unwrap(), true).await;
    assert_eq!(line["target"], "larder::access");
    assert_eq!(line["path"], "/told?ns=docker.io");
    assert_eq!((&line["status"], &line["bytes"]), (&200.into(), &5.into()));
    assert_eq!(
        (&line["outcome"], &line["upstream"]),
        (&"hit".into(), &"docker.io".into())
    );
    assert_eq!(
        (&line["client"], &line["range"]),
        (&"10.0.0.7:4242".into(), &"bytes=0-".into())
    );
    assert_eq!(line["user_agent"], "x".repeat(200) + "…");
    assert_eq!((&line["complete"], &line["ended"]), (&true.into(), &"complete".into()));
    let counted = r#"larder_requests_total{route="blob",method="GET",status="200",outcome="hit"}"#;
    let counters = crate::telemetry::metrics::install().unwrap().render();
    assert!(
        counters.contains(counted) && counters.contains("larder_request_seconds_bucket"),
        "{counters}"
    );
    let text = line.to_string();
    assert!(!text.contains("secret") && !text.contains("c2Vj"), "{text}");
}

#[tokio::test]
async fn a_client_that_leaves_and_a_body_that_breaks() {
    let left = line(request("/told").body(Body::empty()).unwrap(), false).await;
    assert_eq!(
        (&left["complete"], &left["ended"], &left["bytes"]),
        (&false.into(), &"aborted".into(), &0.into())
    );
    let broken = line(request("/broken").body(Body::empty()).unwrap(), true).await;
    assert_eq!(
        (&broken["complete"], &broken["ended"], &broken["bytes"]),
        (&false.into(), &"broken".into(), &3.into())
    );
    assert_eq!((&broken["outcome"], &broken["error"]), (&"-".into(), &"cut".into()));
    assert_eq!(left.get("error"), None, "a client that leaves is no failure");
}

/// A body that ends before its declared length is no complete answer, although nothing reports an error.
#[tokio::test]
async fn a_body_that_is_shorter_than_declared_is_broken() {
    let short = line(request("/short").body(Body::empty()).unwrap(), true).await;
    assert_eq!(
        (&short["complete"], &short["ended"], &short["error"]),
        (
            &false.into(),
            &"broken".into(),
            &"the body ended after 3 of 5 bytes".into()
        )
    );
}

#[tokio::test]
async fn a_client_that_leaves_before_the_answer() {
    let left = line(request("/never").body(Body::empty()).unwrap(), true).await;
    assert_eq!((&left["status"], &left["complete"]), (&499.into(), &false.into()));
}

#[tokio::test]
async fn a_head_is_complete_without_a_body() {
    let head = line(request("/told").method("HEAD").body(Body::empty()).unwrap(), true).await;
    assert_eq!((&head["complete"], &head["bytes"]), (&true.into(), &0.into()));
}

#[test]
fn nothing_forges_a_line() {
    assert_eq!(
        cut("a\r\nb\u{1b}[31m\u{85}\u{202e}", 100),
        "a\\r\\nb\\u{1b}[31m\\u{85}\\u{202e}"
    );
    assert_eq!(path_and_ns("/v2/", Some("a=1&ns=quay.io&b=2")), "/v2/?ns=quay.io");
    assert_eq!(path_and_ns("/v2/", Some("account=me")), "/v2/");
}

/// What was handed to the kernel counts, not what was handed to hyper; where it was all sent, all of it.
#[tokio::test]
async fn files_count_as_they_are_sent() {
    use crate::http::outbox::{Outbox, Piece};
    use crate::http::server::Delivered;
    use bytes::Buf;

    crate::telemetry::metrics::install().unwrap();
    for (sends, bytes, ended) in [(0, 0, "aborted"), (3, 3, "aborted"), (10, 10, "complete")] {
        let outbox = Arc::new(Outbox::default());
        let file = Arc::new(tempfile::tempfile().unwrap());
        let span = crate::pull::Span {
            file,
            at: 0,
            len: 10,
            more: false,
        };
        let ticket = outbox.ticket(crate::oci::Digest::sha256(b""), span);
        let frames = [io::Result::Ok(ticket.clone()), Ok(Bytes::from_static(b"more"))];
        let caller = Caller {
            address: Peer::Tcp(([10, 0, 0, 7], 4242).into()),
            told: None,
            is_by_proxy: false,
            certificate: None,
            tls: false,
            outbox: Some(outbox.clone()),
        };
        let (parts, ()) = Request::get("/file").body(()).unwrap().into_parts();
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .json()
            .flatten_event(true)
            .with_writer(move || writer.clone())
            .finish();
        async {
            let labels = Labels {
                route: "blob",
                outcome: None,
                upstream: None,
                subject: None,
                cause: None,
            };
            let body = Body::from_stream(futures_util::stream::iter(frames));
            let mut response = Line::begin(&parts, &caller).answered(Response::new(body), labels, Instant::now());
            let frame = response.body_mut().frame().await.unwrap().unwrap();
            let mut piece = Piece::of(frame.into_data().unwrap(), Some(&outbox), u64::MAX);
            piece.advance(sends);
            if sends == 10 {
                while response.body_mut().frame().await.is_some() {}
            }
            let delivered = match piece.remaining() {
                0 => Delivered::Whole,
                unsent => Delivered::Cut { unsent: unsent as u64 },
            };
            response.body_mut().take_report().unwrap().record(delivered, None);
        }
        .with_subscriber(subscriber)
        .await;
        drop(ticket);
        let lines = lines.0.lock().unwrap();
        let line: Value = serde_json::from_slice(&lines).unwrap();
        let more = if sends == 10 { 4 } else { 0 };
        assert_eq!(
            (&line["bytes"], &line["ended"]),
            (&Value::from(bytes + more), &Value::from(ended))
        );
    }
}
