//! `Server-Timing`: where the time went until the head of an answer was ready, for people who ask.
//!
//! Told where `server.server_timing` says so, or to a request with `Larder-Timing: 1`. No names are told, and of an
//! error neither how it stands with the cache nor the disk: whether something is held that may not be had is private (L8).
//! A refusal (4xx) tells no parts at all: who asked before finds nobody waiting for the upstream or a token again.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::http::{HeaderMap, HeaderName, HeaderValue};

use super::Response;
use crate::telemetry::stopwatch::{Part, Stopwatch};

const ASKS: HeaderName = HeaderName::from_static("larder-timing");
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// A stopwatch, if one is wanted: by all, or by who asks.
pub(super) fn wanted(by_all: bool, headers: &HeaderMap) -> Option<Arc<Stopwatch>> {
    (by_all || headers.get(ASKS).is_some_and(|value| value == "1")).then(Stopwatch::start)
}

/// Says in the answer what the stopwatch shows. `outcome` is the short word of the log.
pub(super) fn tell(response: &mut Response, outcome: Option<&'static str>, watch: &Stopwatch) {
    let status = response.status();
    let (parts, outcome): (&[_], _) = match (status.is_client_error(), status.is_server_error()) {
        (true, _) => (&[], None),
        (_, true) => (&[TOKEN, UPSTREAM], None),
        _ => (&[STORE, TOKEN, UPSTREAM], outcome),
    };
    if let Ok(value) = HeaderValue::try_from(text(outcome, parts, watch)) {
        response.headers_mut().insert(SERVER_TIMING, value);
    }
}

const STORE: (&str, Part) = ("store", Part::Store);
const TOKEN: (&str, Part) = ("token", Part::Token);
const UPSTREAM: (&str, Part) = ("upstream", Part::Upstream);

fn text(outcome: Option<&'static str>, parts: &[(&str, Part)], watch: &Stopwatch) -> String {
    let mut text = String::with_capacity(96);
    if let Some(outcome) = outcome {
        let _ = write!(text, "cache;desc={outcome}, ");
    }
    for (name, part) in parts {
        if let Some(took) = watch.part(*part) {
            let _ = write!(text, "{name};dur={:.3}, ", took.as_secs_f64() * 1000.0);
        }
    }
    let _ = write!(text, "total;dur={:.3}", watch.total().as_secs_f64() * 1000.0);
    text
}
