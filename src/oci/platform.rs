//! What a manifest of an index is for: `linux/amd64`, `linux/arm64/v8` (image-spec § Image Index, `platform`).

use std::fmt;
use std::str::FromStr;

/// Operating system, processor and, where that matters, its variant. Spelled as Go spells them: what other tools call
/// `x86_64` or `aarch64` becomes that.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Platform {
    pub os: String,
    pub architecture: String,
    pub variant: Option<String>,
}

/// Why a text is no platform.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a platform: expected os/architecture or os/architecture/variant, such as linux/arm64")]
pub struct PlatformError(String);

impl Platform {
    /// From an index. `None` for what names no platform, or `unknown/unknown` as attestations do. What no platform is called is
    /// none: it would stand in logs, tables and receipts as somebody chose it, and could not be asked for.
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Option<Platform> {
        if ![os, architecture, variant.filter(|text| !text.is_empty()).unwrap_or("-")]
            .into_iter()
            .all(is_word)
        {
            return None;
        }
        let os = os.to_ascii_lowercase();
        let architecture = architecture.to_ascii_lowercase();
        let known = |text: &str| !text.is_empty() && text != "unknown";
        if !known(&os) || !known(&architecture) {
            return None;
        }
        let (architecture, implied) = match architecture.as_str() {
            "x86_64" | "x86-64" => ("amd64", None),
            "aarch64" => ("arm64", None),
            "armhf" => ("arm", Some("v7")),
            "armel" => ("arm", Some("v6")),
            "i386" | "i686" => ("386", None),
            other => (other, None),
        };
        let variant = variant.filter(|text| !text.is_empty()).or(implied);
        Some(Platform {
            os,
            architecture: architecture.to_owned(),
            variant: variant.map(str::to_ascii_lowercase),
        })
    }

    /// Whether who wants `self` wants what is for `other`. Without a variant all variants are meant; `arm64` and
    /// `arm64/v8` are the same, and so are `amd64` and `amd64/v1`.
    pub fn takes(&self, other: &Platform) -> bool {
        let same = self.os == other.os && self.architecture == other.architecture;
        same && (self.variant.is_none() || self.effective_variant() == other.effective_variant())
    }

    fn effective_variant(&self) -> Option<&str> {
        match (self.architecture.as_str(), self.variant.as_deref()) {
            ("arm64", None) => Some("v8"),
            ("amd64", None) => Some("v1"),
            ("arm", None) => Some("v7"),
            (_, variant) => variant,
        }
    }
}

fn is_word(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    (1..=32).contains(&text.len()) && text.bytes().all(fits)
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Platform, PlatformError> {
        let refuse = || PlatformError(text.chars().take(80).collect());
        let parts: Vec<&str> = text.split('/').take(4).collect();
        if parts.contains(&"") {
            return Err(refuse());
        }
        match parts.as_slice() {
            [os, architecture] => Platform::new(os, architecture, None),
            [os, architecture, variant] => Platform::new(os, architecture, Some(variant)),
            _ => None,
        }
        .ok_or_else(refuse)
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn platform(text: &str) -> Platform {
        text.parse().unwrap()
    }

    #[test]
    fn one_spelling() {
        for (text, shown) in [
            ("linux/amd64", "linux/amd64"),
            ("Linux/x86_64", "linux/amd64"),
            ("linux/aarch64", "linux/arm64"),
            ("linux/armhf", "linux/arm/v7"),
            ("linux/arm64/v8", "linux/arm64/v8"),
            ("windows/amd64", "windows/amd64"),
        ] {
            assert_eq!(platform(text).to_string(), shown);
        }
        for bad in [
            "",
            "linux",
            "linux/",
            "a/b/c/d",
            "unknown/unknown",
            "linux/a b",
            "/amd64",
            "linux//v8",
        ] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
    }

    /// An index may name anything: a line break, a text of megabytes, characters that turn a line around.
    #[test]
    fn what_no_platform_is_called_is_none() {
        let long = "x".repeat(33);
        for odd in ["a/b", "a\nb", "linux\u{202e}", "é", " ", &long] {
            assert_eq!(Platform::new(odd, "amd64", None), None, "{odd:?}");
            assert_eq!(Platform::new("linux", odd, None), None, "{odd:?}");
            assert_eq!(Platform::new("linux", "arm", Some(odd)), None, "{odd:?}");
        }
        assert!(Platform::new("linux", "arm64", Some("")).is_some());
    }

    #[test]
    fn variants() {
        for (wanted, found, takes) in [
            ("linux/arm64", "linux/arm64/v8", true),
            ("linux/arm64/v8", "linux/arm64", true),
            ("linux/arm", "linux/arm/v6", true),
            ("linux/arm/v7", "linux/arm/v6", false),
            ("linux/arm/v7", "linux/arm", true),
            ("linux/amd64/v1", "linux/amd64", true),
            ("linux/amd64/v3", "linux/amd64", false),
            ("linux/amd64", "windows/amd64", false),
            ("linux/amd64", "linux/arm64", false),
        ] {
            assert_eq!(platform(wanted).takes(&platform(found)), takes, "{wanted} {found}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read(os in "[a-z]{1,8}", architecture in "[a-z0-9]{1,8}", variant in "(v[0-9])?") {
            if let Some(platform) = Platform::new(&os, &architecture, Some(&variant)) {
                prop_assert_eq!(platform.to_string().parse::<Platform>(), Ok(platform));
            }
        }

        #[test]
        fn never_panics(text in ".{0,60}") {
            let _ = text.parse::<Platform>();
        }
    }
}
