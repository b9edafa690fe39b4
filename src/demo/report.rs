//! What the tour measured and checked: the data that `--json` prints, and that `text` shows to people.

use std::fmt::Display;
use std::net::SocketAddr;

use serde::Serialize;

use super::client::Pulled;
use super::image::Image;
use super::tally::Tally;
use super::upstream::{self, Mended};

#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Every stage was reached, and every check held.
    pub ok: bool,
    pub registry: SocketAddr,
    pub admin: SocketAddr,
    pub cache: String,
    pub upstream: Market,
    pub images: Vec<Held>,
    pub steps: Vec<Step>,
    pub seconds: f64,
}

/// The upstream, and how slow it is made.
#[derive(Clone, Debug, Serialize)]
pub struct Market {
    pub name: &'static str,
    pub address: SocketAddr,
    pub latency_ms: u128,
    pub bytes_per_second: u64,
}

impl Market {
    pub fn at(address: SocketAddr) -> Market {
        Market {
            name: upstream::NAME,
            address,
            latency_ms: upstream::LATENCY.as_millis(),
            bytes_per_second: upstream::BYTES_PER_SECOND,
        }
    }
}

/// An image of the upstream's.
#[derive(Clone, Debug, Serialize)]
pub struct Held {
    pub name: String,
    pub digest: String,
    /// Config and layers.
    pub blobs: usize,
    /// Manifest, config and layers.
    pub bytes: u64,
}

impl Held {
    pub fn of(image: &Image) -> Held {
        Held {
            name: image.name(),
            digest: image.digest.to_string(),
            blobs: image.blobs.len(),
            bytes: image.size(),
        }
    }
}

/// The stations of the tour, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    Cold,
    Hot,
    Herd,
    Cut,
    Gone,
    Back,
}

impl Stage {
    pub const ALL: [Stage; 6] = [
        Stage::Cold,
        Stage::Hot,
        Stage::Herd,
        Stage::Cut,
        Stage::Gone,
        Stage::Back,
    ];

    pub fn number(self) -> usize {
        self as usize + 1
    }
}

#[derive(Clone, Debug, Serialize)]
pub struct Step {
    pub stage: Stage,
    pub client: Pulled,
    /// What crossed the upstream's link meanwhile.
    pub upstream: Tally,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mended: Option<Mended>,
    pub checks: Vec<Check>,
}

impl Step {
    pub fn new(stage: Stage, client: Pulled, upstream: Tally) -> Step {
        Step {
            stage,
            client,
            upstream,
            mended: None,
            checks: Vec::new(),
        }
    }

    pub fn is_ok(&self) -> bool {
        self.checks.iter().all(|check| check.ok)
    }

    pub fn equal<T: PartialEq + Display>(&mut self, what: &'static str, expected: T, found: T) {
        let ok = expected == found;
        self.checks.push(Check {
            what,
            ok,
            expected: expected.to_string(),
            found: found.to_string(),
        });
    }

    pub fn holds(&mut self, what: &'static str, ok: bool, expected: impl Display, found: impl Display) {
        self.checks.push(Check {
            what,
            ok,
            expected: expected.to_string(),
            found: found.to_string(),
        });
    }
}

/// A claim, and what came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    pub what: &'static str,
    pub ok: bool,
    pub expected: String,
    pub found: String,
}
