//! The collector of traces: whether it takes a message that has no spans in it.

use std::time::Duration;

use super::Finding;
use crate::app::traces::Collector;
use crate::config::Config;
use crate::telemetry::trace::{Post, otlp};

const CHECK: &str = "traces";
const TIMEOUT: Duration = Duration::from_secs(5);

pub(super) async fn check(config: &Config, may_dial: bool) -> Vec<Finding> {
    let Some(traces) = &config.traces else {
        return Vec::new();
    };
    let collector = match Collector::new(traces, TIMEOUT) {
        Ok(collector) => collector,
        Err(why) => return vec![Finding::problem(CHECK, why).advice("correct traces.ca_file")],
    };
    if !may_dial {
        return Vec::new();
    }
    let message = otlp::encoded(&traces.resource, &[]);
    vec![judged(traces.endpoint.as_str(), collector.post(message).await)]
}

fn judged(at: &str, post: Post) -> Finding {
    let (found, advice) = match post {
        Post::Answered { status: 200..=299, .. } => {
            return Finding::ok(CHECK, format!("the collector at {at} takes spans"));
        }
        Post::Answered {
            status: status @ (401 | 403),
            ..
        } => (
            format!("the collector at {at} refuses Larder ({status})"),
            "traces.headers_file has to hold what it wants, such as authorization=Bearer …",
        ),
        Post::Answered {
            status: status @ (404 | 405),
            ..
        } => (
            format!("what answers at {at} takes no spans there ({status})"),
            "is it the right path? Collectors usually take OTLP over HTTP at /v1/traces",
        ),
        Post::Answered { status, .. } => (
            format!("the collector at {at} answered {status} to a message without spans"),
            "is it one that takes OTLP over HTTP as protobuf? Its log may say more",
        ),
        Post::Failed(why) => (
            format!("the collector at {at} cannot be asked: {why}"),
            "pulls go on, spans are dropped: is it the right address, and of OTLP over HTTP (usually port 4318)?",
        ),
    };
    Finding::warning(CHECK, found).advice(advice)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::app::checkup::Level;

    #[test]
    fn what_collectors_say() {
        let answered = |status| Post::Answered {
            status,
            retry_after: None,
            body: Bytes::new(),
        };
        for (post, level, word) in [
            (answered(200), Level::Ok, "takes spans"),
            (answered(202), Level::Ok, "takes spans"),
            (answered(401), Level::Warning, "refuses"),
            (answered(404), Level::Warning, "no spans there"),
            (answered(500), Level::Warning, "answered 500"),
            (
                Post::Failed("refused".to_owned()),
                Level::Warning,
                "cannot be asked: refused",
            ),
        ] {
            let finding = judged("http://c.example/v1/traces", post);
            assert!(finding.level == level && finding.found.contains(word), "{finding:?}");
            assert_eq!(finding.advice.is_some(), level != Level::Ok);
        }
    }
}
