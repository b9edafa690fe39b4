//! How the upstream fails in a round.

use std::collections::BTreeMap;

use fastrand::Rng;

use crate::support::gate::Gate;
use crate::support::upstream::{Matcher, On, Rule, Upstream};

const KINDS: [&str; 16] = [
    "cut",
    "reset",
    "flip",
    "wrong",
    "stall",
    "throttle",
    "5xx",
    "drop",
    "no answer",
    "chunked",
    "until close",
    "no ranges",
    "trailing",
    "short length",
    "web page",
    "429",
];

/// Faults in force.
pub struct Armed(Vec<(&'static str, Rule)>);

impl Armed {
    /// `patient`: nothing that only ends with the process.
    pub fn new(upstream: &Upstream, rng: &mut Rng, patient: bool) -> Armed {
        let mut armed = Vec::new();
        for _ in 0..rng.usize(..6) {
            let kind = KINDS[rng.usize(..KINDS.len())];
            if patient && matches!(kind, "stall" | "429") {
                continue;
            }
            armed.push((kind, arm(upstream, rng, kind)));
        }
        Armed(armed)
    }

    /// How many answers each kind has spoilt. Ends them.
    pub fn disarm(self, upstream: &Upstream) -> BTreeMap<&'static str, u64> {
        upstream.clear_script();
        let mut hits = BTreeMap::new();
        for (kind, rule) in self.0 {
            *hits.entry(kind).or_default() += rule.hits() as u64;
        }
        hits
    }
}

fn arm(upstream: &Upstream, rng: &mut Rng, kind: &str) -> Rule {
    // Lists have no digest that would tell that they are spoilt.
    let on: Matcher = match rng.u8(..4) {
        0 => On::Manifests.into(),
        _ => On::Blobs.get(),
    };
    let at = if rng.bool() {
        rng.u64(..5000)
    } else {
        rng.u64(..1_500_000)
    };
    let rule = upstream.on(on).next(rng.usize(1..=4));
    match kind {
        "cut" => rule.cut_after(at),
        "reset" => rule.reset_after(at),
        "flip" => rule.flip_byte(usize::try_from(at / 4).unwrap_or_default()),
        "wrong" => rule.wrong_bytes(vec![7; rng.usize(..100_000)]),
        "stall" => rule.stall_after(at, &Gate::closed()),
        "throttle" => rule.throttle(rng.u64(500_000..5_000_000)),
        "5xx" => rule.status(*crate::world::pick(rng, &[500, 502, 503])),
        "drop" => rule.drop_connection(),
        "no answer" => rule.reset_connection(),
        "chunked" => rule.no_content_length(),
        "until close" => rule.close_delimited(),
        "no ranges" => rule.ignore_range(),
        "trailing" => rule.trailing_bytes(vec![1; rng.usize(1..100)]),
        "short length" => rule.short_content_length(usize::try_from(at).unwrap_or_default()),
        "web page" => rule.html_page(),
        _ => rule.rate_limit(Some("1")),
    }
}
