//! Which token server may see credentials (R-X1). A realm is text that the far side chose.

use url::{Host, Url};

use crate::oci::HostPort;

/// How far a realm is trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// The operator named it: credentials go there, wherever it is.
    Named,
    /// It belongs to the upstream and is at its port or at the scheme's own: credentials go there, if its address is
    /// one the upstream may lead to. Another port may be anybody's who has an account on that machine.
    Kin,
    /// May be asked without credentials only.
    Stranger,
}

/// Registries whose token server lives on another registrable domain, or that hand out another's challenges (R-U46, R-U47).
const PAIRS: [(&str, &str); 5] = [
    ("registry-1.docker.io", "auth.docker.io"),
    ("lscr.io", "ghcr.io"),
    ("registry.gitlab.com", "gitlab.com"),
    ("nvcr.io", "authn.nvidia.com"),
    ("docker.elastic.co", "docker-auth.elastic.co"),
];

/// Parses and judges the realm of a challenge that came from `origin`. `Err` says why it is refused altogether.
pub fn judge(origin: &Url, realm: &str, trusted: &[HostPort]) -> Result<(Url, Trust), String> {
    let realm: Url = realm.parse().map_err(|_| "the realm is not a URL".to_owned())?;
    let shown = super::transport::shown(&realm);
    if !matches!(realm.scheme(), "http" | "https") || realm.host_str().is_none() {
        return Err("the realm is not an http or https URL".to_owned());
    }
    if !realm.username().is_empty() || realm.password().is_some() {
        return Err(format!("the realm {shown} carries user info"));
    }
    if realm.scheme() == "http" && origin.scheme() == "https" {
        return Err(format!("the realm {shown} is not encrypted, while the registry is"));
    }
    let trust = if trusted.iter().any(|entry| names(entry, &realm)) {
        Trust::Named
    } else if is_kin(origin, &realm) {
        Trust::Kin
    } else if realm.scheme() == "https" {
        Trust::Stranger
    } else {
        let host = realm.host_str().unwrap_or_default();
        let port = realm.port_or_known_default().unwrap_or_default();
        return Err(format!(
            "the realm {shown} is on another host or port than the registry and not encrypted, so it is not asked at all; \
             if it is the right token server, write trusted_realms = [\"{host}:{port}\"] in this upstream's section"
        ));
    };
    Ok((realm, trust))
}

fn is_kin(origin: &Url, realm: &Url) -> bool {
    // `Url` has no port where it is the scheme's own.
    let is_usual_port = realm.port().is_none() || realm.port_or_known_default() == origin.port_or_known_default();
    is_usual_port && is_same_owner(origin, realm)
}

fn is_same_owner(origin: &Url, realm: &Url) -> bool {
    let (Some(Host::Domain(from)), Some(Host::Domain(to))) = (origin.host(), realm.host()) else {
        return origin.host().is_some() && origin.host() == realm.host();
    };
    from == to || PAIRS.contains(&(from, to)) || registrable(from).is_some_and(|domain| registrable(to) == Some(domain))
}

/// `example.co.uk` of `auth.example.co.uk`; `None` where the public suffix list knows no such suffix, because
/// in `a.internal` and `b.internal` nothing says that one owner has both.
fn registrable(host: &str) -> Option<&str> {
    let host = host.strip_suffix('.').unwrap_or(host);
    let known = psl::suffix(host.as_bytes()).is_some_and(|suffix| suffix.is_known());
    psl::domain_str(host).filter(|_| known)
}

/// Whether an operator's entry means this URL: its host, and its port when the entry has one.
pub fn names(entry: &HostPort, url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    if entry.host() != host.trim_matches(['[', ']']) {
        return false;
    }
    let after = entry
        .as_str()
        .rsplit_once(']')
        .map_or(entry.as_str(), |(_, after)| after);
    match after.rsplit_once(':') {
        Some((_, port)) => port.parse().ok() == url.port_or_known_default(),
        None => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trust(origin: &str, realm: &str, trusted: &[&str]) -> Option<Trust> {
        let trusted: Vec<HostPort> = trusted.iter().map(|t| t.parse().unwrap()).collect();
        judge(&origin.parse().unwrap(), realm, &trusted)
            .ok()
            .map(|(_, trust)| trust)
    }

    #[test]
    fn whom_to_trust() {
        use Trust::{Kin, Named, Stranger};
        for (origin, realm, want) in [
            (
                "https://registry-1.docker.io",
                "https://auth.docker.io/token",
                Some(Kin),
            ),
            ("https://ghcr.io", "https://ghcr.io/token", Some(Kin)),
            ("https://lscr.io", "https://ghcr.io/token", Some(Kin)),
            ("https://ghcr.io", "https://lscr.io/token", Some(Stranger)),
            ("https://registry.gitlab.com", "https://gitlab.com/jwt/auth", Some(Kin)),
            ("https://h.example.co.uk", "https://auth.example.co.uk/t", Some(Kin)),
            (
                "https://h.example.co.uk",
                "https://auth.example.co.uk:8443/t",
                Some(Stranger),
            ),
            (
                "https://h.example.co.uk:8443",
                "https://auth.example.co.uk:8443/t",
                Some(Kin),
            ),
            (
                "https://h.example.co.uk:8443",
                "https://auth.example.co.uk/t",
                Some(Kin),
            ),
            (
                "https://registry-1.docker.io",
                "https://auth.docker.io:444/token",
                Some(Stranger),
            ),
            ("https://one.co.uk", "https://two.co.uk/t", Some(Stranger)),
            ("https://one.github.io", "https://two.github.io/t", Some(Stranger)),
            ("https://a.internal", "https://b.internal/t", Some(Stranger)),
            ("https://a.internal", "https://a.internal:443/t", Some(Kin)),
            ("https://a.internal", "https://a.internal:9/t", Some(Stranger)),
            ("https://a.internal:9", "https://a.internal:9/t", Some(Kin)),
            ("https://10.0.0.1", "https://10.0.0.1/t", Some(Kin)),
            ("https://10.0.0.1", "https://10.0.0.1:8443/t", Some(Stranger)),
            ("https://10.0.0.1", "https://10.0.0.2/t", Some(Stranger)),
            ("https://ghcr.io", "https://ghcr.io.evil.example/t", Some(Stranger)),
            ("https://ghcr.io", "http://ghcr.io/token", None),
            ("https://ghcr.io", "https://user:pw@ghcr.io/token", None),
            ("https://ghcr.io", "ftp://ghcr.io/token", None),
            ("https://ghcr.io", "/token", None),
            ("https://ghcr.io", "file:///etc/passwd", None),
            ("http://a.example", "http://a.example:81/t", None),
            ("http://a.example:81", "http://a.example:81/t", Some(Kin)),
            ("http://a.example:81", "http://a.example/t", Some(Kin)),
            ("http://a.example", "https://a.example/t", Some(Kin)),
            ("http://127.0.0.1:5000", "http://localhost:5001/t", None),
            ("http://127.0.0.1:5000", "https://evil.example/t", Some(Stranger)),
        ] {
            assert_eq!(trust(origin, realm, &[]), want, "{origin} {realm}");
        }
        assert_eq!(
            trust("http://127.0.0.1:5000", "http://localhost:5001/t", &["localhost:5001"]),
            Some(Named)
        );
        assert_eq!(
            trust("http://127.0.0.1:5000", "http://localhost:5001/t", &["localhost:5002"]),
            None
        );
        assert_eq!(trust("https://a.example", "https://b.test/t", &["b.test"]), Some(Named));
        assert_eq!(
            trust("https://a.example", "https://[::1]:9/t", &["[::1]:9"]),
            Some(Named)
        );
        assert_eq!(trust("https://a.example", "http://b.test/t", &["b.test"]), None);
    }

    /// A token server that is not asked at all: the error says so, and the entry that lets it be asked.
    #[test]
    fn a_refused_realm_names_its_entry() {
        for (origin, realm, entry) in [
            ("http://127.0.0.1:5000", "http://127.0.0.1:5001/t", "127.0.0.1:5001"),
            ("http://[::1]:5000", "http://[::1]:5001/t", "[::1]:5001"),
            ("http://a.example", "http://b.example/t", "b.example:80"),
        ] {
            let text = judge(&origin.parse().unwrap(), realm, &[]).unwrap_err();
            assert!(text.contains(&format!("trusted_realms = [\"{entry}\"]")), "{text}");
            assert_eq!(trust(origin, realm, &[entry]), Some(Trust::Named), "{entry}");
        }
    }

    #[test]
    fn refusals_say_no_secret() {
        let origin: Url = "https://a.example".parse().unwrap();
        let text = judge(&origin, "https://user:hunter2@a.example/t?sig=hunter3", &[]).unwrap_err();
        assert!(!text.contains("hunter"), "{text}");
    }
}
