//! From figures to meaning: how an upstream is treated with care. Who gives out credentials for it, what of its pull
//! limit is spared, and how much of the link it may fill.

use super::error::Place;
use super::file::quoted;
use super::findings::Findings;
use super::raw::{Figure, RawUpstream};
use super::units::parse_size;
use crate::oci::HostPort;

/// A cloud whose registries take tokens that end within hours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cloud {
    Aws,
    Google,
    Azure,
}

impl Cloud {
    pub fn as_str(self) -> &'static str {
        match self {
            Cloud::Aws => "aws",
            Cloud::Google => "google",
            Cloud::Azure => "azure",
        }
    }
}

/// Who gives out an upstream's credentials, where neither the configuration nor a login file holds them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lender {
    /// `docker-credential-` and this name (R-U62).
    Helper(String),
    Cloud(Cloud),
}

/// What has to be left of a pull limit for more than misses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Floor {
    Pulls(u64),
    /// Of the limit.
    Percent(u8),
}

impl Floor {
    /// Whether `remaining` pulls are fewer than this. A part of a limit that is not known is nothing.
    pub fn is_above(self, remaining: u64, limit: Option<u64>) -> bool {
        match self {
            Floor::Pulls(pulls) => remaining < pulls,
            Floor::Percent(percent) => {
                limit.is_some_and(|limit| u128::from(remaining) * 100 < u128::from(limit) * u128::from(percent))
            }
        }
    }
}

impl std::fmt::Display for Floor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Floor::Pulls(pulls) => write!(f, "{pulls}"),
            Floor::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// Longest name of a helper.
const MAX_NAME: usize = 100;

/// Whether `docker-credential-<name>` can only be a program found by the search path: no folder, no option (R-U62).
pub fn is_helper_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= MAX_NAME
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

pub fn lender(findings: &mut Findings<'_>, name: &HostPort, raw: &RawUpstream) -> Option<Lender> {
    let at = |key: &'static str| ["upstream", name.as_str(), key];
    let given = [
        ("username", raw.username.is_some()),
        ("credential_helper", raw.credential_helper.is_some()),
        ("cloud", raw.cloud.is_some()),
    ];
    let mut given = given.iter().filter(|(_, is_given)| *is_given).map(|(key, _)| *key);
    if let (Some(first), Some(second)) = (given.next(), given.next()) {
        let place = match findings.place(&at(first)) {
            Place::Default => String::new(),
            place => format!(" ({place})"),
        };
        findings.refuse(
            &at(second),
            format!("expected either {first} or {second}, but {first} is given too{place}"),
        );
        return None;
    }
    if let Some(helper) = &raw.credential_helper {
        if is_helper_name(helper) {
            return Some(Lender::Helper(helper.clone()));
        }
        findings.refuse(
            &at("credential_helper"),
            format!(
                "found {}, expected what follows docker-credential- in the name of a program, such as \"ecr-login\", without /",
                quoted(helper)
            ),
        );
    }
    let text = raw.cloud.as_deref()?;
    let cloud = [Cloud::Aws, Cloud::Google, Cloud::Azure]
        .into_iter()
        .find(|cloud| cloud.as_str() == text);
    if cloud.is_none() {
        findings.refuse(
            &at("cloud"),
            format!("found {}, expected \"aws\", \"google\" or \"azure\"", quoted(text)),
        );
    }
    cloud.map(Lender::Cloud)
}

/// What a floor should look like; ends the sentence "expected …".
pub const FLOOR: &str = "a number of pulls, or a part of the limit such as \"10%\"";
/// What a bandwidth should look like; ends the sentence "expected …".
const RATE: &str = "bytes a second, such as \"50MB/s\" or \"10MiB/s\", at least 16KiB/s";
/// Less would let transfers end by their own timeouts.
const LEAST_RATE: u64 = 16 << 10;

pub fn floor(findings: &mut Findings<'_>, key: &[&str], figure: &Figure) -> Floor {
    let (found, shown) = match figure {
        Figure::Number(pulls) => (Some(Floor::Pulls(*pulls)), pulls.to_string()),
        Figure::Text(text) => (parse_floor(text), quoted(text)),
    };
    found.unwrap_or_else(|| {
        findings.refuse(key, format!("found {shown}, expected {FLOOR}"));
        Floor::Pulls(0)
    })
}

fn parse_floor(text: &str) -> Option<Floor> {
    match text.trim().strip_suffix('%') {
        None => text.trim().parse().ok().map(Floor::Pulls),
        Some(percent) => {
            let percent = percent.trim_end().parse().ok().filter(|percent| *percent <= 100);
            percent.map(Floor::Percent)
        }
    }
}

/// Bytes a second.
pub fn bandwidth(findings: &mut Findings<'_>, key: &[&str], text: &str) -> Option<u64> {
    let rate = text.trim().strip_suffix("/s").and_then(parse_size);
    let rate = rate.filter(|rate| *rate >= LEAST_RATE);
    if rate.is_none() {
        findings.refuse(key, format!("found {}, expected {RATE}", quoted(text)));
    }
    rate
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn floors() {
        for (text, want) in [
            ("10", Some(Floor::Pulls(10))),
            (" 10 %", Some(Floor::Percent(10))),
            ("100%", Some(Floor::Percent(100))),
            ("101%", None),
            ("-1", None),
            ("%", None),
            ("few", None),
        ] {
            assert_eq!(parse_floor(text), want, "{text}");
        }
        assert!(Floor::Pulls(10).is_above(9, None) && !Floor::Pulls(10).is_above(10, None));
        assert!(Floor::Percent(10).is_above(9, Some(100)) && !Floor::Percent(10).is_above(10, Some(100)));
        assert!(!Floor::Percent(10).is_above(0, None));
        assert!(!Floor::Percent(0).is_above(0, Some(100)));
    }

    #[test]
    fn helpers_are_programs_and_not_paths() {
        for good in ["ecr-login", "gcr", "osxkeychain", "acr-env", "x_1.2"] {
            assert!(is_helper_name(good), "{good}");
        }
        for bad in ["", "../x", "/bin/sh", "a b", "x;y", "é", "a\0b"] {
            assert!(!is_helper_name(bad), "{bad:?}");
        }
    }

    #[test]
    fn wrong_ones_are_refused_with_their_place() {
        for (lines, want) in [
            (
                "credential_helper = \"../x\"",
                "expected what follows docker-credential-",
            ),
            ("cloud = \"ibm\"", "expected \"aws\", \"google\" or \"azure\""),
            (
                "cloud = \"aws\"\ncredential_helper = \"ecr-login\"",
                "but credential_helper is given too (proxy.toml:3)",
            ),
            (
                "cloud = \"aws\"\nusername = \"u\"\npassword = \"p\"",
                "but username is given too (proxy.toml:3)",
            ),
            ("budget_floor = \"some\"", "expected a number of pulls"),
            ("max_bandwidth = \"50MB\"", "expected bytes a second"),
            ("max_bandwidth = \"1B/s\"", "expected bytes a second"),
        ] {
            let error = Config::from_toml(&format!("[upstream.\"r.example\"]\n{lines}")).unwrap_err();
            assert!(error.to_string().contains(want), "{lines}: {error}");
            assert!(error.to_string().contains("proxy.toml:2"), "{lines}: {error}");
        }
    }
}
