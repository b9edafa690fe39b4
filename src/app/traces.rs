//! Where spans go: the configuration's `[traces]` becomes a tracer, and a client that brings what it records to the collector.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};

use crate::config::{Password, Traces, header_pairs};
use crate::telemetry::trace::{Exporter, Post, Sampler, Target, Tracer};
use crate::upstream::documents;

/// For one batch, its answer included.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Of an answer; more is of no interest.
const MOST_ANSWER: usize = 64 << 10;

/// What records, and what has to be closed at the end; without `[traces]`, nothing. Dials nothing.
///
/// Errors: a certificate that cannot be used.
pub(super) fn start(traces: Option<&Traces>) -> Result<(Tracer, Option<Exporter>), String> {
    let Some(traces) = traces else {
        return Ok((Tracer::default(), None));
    };
    let collector = Arc::new(Collector::new(traces, TIMEOUT)?);
    let sampler = Sampler {
        share: traces.sample,
        heeds_parent: traces.heeds_parent,
    };
    let target = Target {
        name: traces.endpoint.to_string(),
        post: Box::new(move |body| {
            let collector = collector.clone();
            Box::pin(async move { collector.post(body).await })
        }),
        resource: traces.resource.clone(),
    };
    let (tracer, exporter) = Tracer::new(sampler, traces.propagate, target);
    Ok((tracer, Some(exporter)))
}

/// Whom spans are sent to. Like other services that the operator names, it is dialled straight: no redirect, no proxy.
pub(super) struct Collector {
    client: reqwest::Client,
    endpoint: url::Url,
    headers: Option<Password>,
}

impl Collector {
    pub(super) fn new(traces: &Traces, timeout: Duration) -> Result<Collector, String> {
        Ok(Collector {
            client: documents::direct(traces.ca_file.as_deref().map(Path::new), timeout)?,
            endpoint: traces.endpoint.clone(),
            headers: traces.headers.clone(),
        })
    }

    /// One message of OTLP.
    pub(super) async fn post(&self, body: Bytes) -> Post {
        match self.try_post(body).await {
            Ok(post) => post,
            Err(what) => Post::Failed(what),
        }
    }

    async fn try_post(&self, body: Bytes) -> Result<Post, String> {
        let said = |error: reqwest::Error| documents::said(&error.without_url());
        let request = self.client.post(self.endpoint.clone()).headers(self.headers().await?);
        let mut response = request.body(body).send().await.map_err(said)?;
        let retry_after = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok());
        let retry_after = retry_after
            .and_then(|text| text.trim().parse().ok())
            .map(Duration::from_secs);
        let status = response.status().as_u16();
        let mut body = BytesMut::new();
        while let Some(piece) = response.chunk().await.map_err(said)? {
            body.extend_from_slice(&piece);
            if body.len() > MOST_ANSWER {
                break;
            }
        }
        Ok(Post::Answered {
            status,
            retry_after,
            body: body.freeze(),
        })
    }

    /// Read anew each time, so that a rotated secret is found.
    async fn headers(&self) -> Result<HeaderMap, String> {
        let mut headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"))]);
        let Some(given) = self.headers.clone() else {
            return Ok(headers);
        };
        let read = tokio::task::spawn_blocking(move || given.read()).await;
        let text = read.map_err(|_| "the work was dropped".to_owned())?;
        let text = text.map_err(|why| format!("traces.headers_file: {why}"))?;
        let pairs = header_pairs(text.reveal()).map_err(|why| format!("traces.headers_file: {why}"))?;
        for (name, value) in pairs {
            let (Ok(name), Ok(mut value)) = (name.parse::<HeaderName>(), HeaderValue::from_str(&value)) else {
                return Err("traces.headers: one of them cannot be a header".to_owned());
            };
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        Ok(headers)
    }
}
