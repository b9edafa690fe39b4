//! Certificates that Larder gets for itself, from an ACME directory (RFC 8555): what `[acme]` means.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use url::Url;

use super::access::Listener;
use super::error::Place;
use super::file::quoted;
use super::findings::Findings;
use super::raw::{OneOrMany, RawAcme};
use super::settle_access::https;
use super::upstreams::proxy_url;
use super::{Admin, Server, ServerTls, listen};

/// What one certificate may be for; Let's Encrypt takes no more.
const MAX_NAMES: usize = 100;
/// Of a host name (RFC 1035, 2.3.4).
const MAX_NAME: usize = 253;

/// The one certificate that all listeners with `tls.acme` show, and who issues it.
#[derive(Clone, PartialEq, Eq)]
pub struct Acme {
    /// At least one, each once: host names in lower case, or IP addresses.
    pub names: Vec<String>,
    /// `https://`, or `http://` on this machine.
    pub directory: Url,
    /// URLs, `mailto:` as a rule.
    pub contact: Vec<String>,
    pub challenge: Challenge,
    /// Which kind of certificate, where the directory has several.
    pub profile: Option<String>,
    /// Who may have issued the directory's own certificate, beside the usual ones.
    pub ca_file: Option<PathBuf>,
    /// `http://`, `https://` or `socks5://`.
    pub proxy: Option<Url>,
    /// Whose account it is at the authority, where that wants to know (RFC 8555, 7.3.4).
    pub binding: Option<Binding>,
}

/// How the directory is shown that the names are ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Challenge {
    /// In a TLS handshake at port 443 (RFC 8737).
    TlsAlpn,
    /// By a file at port 80 (RFC 8555, 8.3), answered at these addresses.
    Http { listen: Vec<SocketAddr> },
}

impl Challenge {
    pub fn as_str(&self) -> &'static str {
        match self {
            Challenge::TlsAlpn => "tls-alpn-01",
            Challenge::Http { .. } => "http-01",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    pub kid: String,
    /// Holds the HMAC key in base64url; read when an account is made.
    pub key_file: PathBuf,
}

/// As derived, but for the user and password that a proxy's address may hold (R-X17).
impl fmt::Debug for Acme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Acme {
            names,
            directory,
            contact,
            challenge,
            profile,
            ca_file,
            proxy,
            binding,
        } = self;
        f.debug_struct("Acme")
            .field("names", names)
            .field("directory", &directory.as_str())
            .field("contact", contact)
            .field("challenge", challenge)
            .field("profile", profile)
            .field("ca_file", ca_file)
            .field("proxy", &proxy.as_ref().map(Url::host_str))
            .field("binding", binding)
            .finish()
    }
}

/// `None` where no listener asks for it. `taken` are the addresses of all other listeners.
pub fn acme(
    findings: &mut Findings<'_>,
    raw: &RawAcme,
    (server, listeners, admin): (&Server, &[Listener], &Admin),
    taken: &[SocketAddr],
) -> Option<Acme> {
    let wants = |tls: Option<&ServerTls>| tls.is_some_and(ServerTls::is_acme);
    let is_used = wants(server.tls.as_ref())
        || wants(admin.tls.as_ref())
        || listeners.iter().any(|listener| wants(listener.tls.as_ref()));
    let names = names(findings, &raw.names);
    let directory = https(findings, &["acme", "directory"], &raw.directory);
    let settled = Acme {
        names,
        directory: directory?,
        contact: contact(findings, raw.contact.as_ref()),
        challenge: challenge(findings, raw, is_used, taken)?,
        profile: raw.profile.clone(),
        ca_file: findings.file(&["acme", "ca_file"], raw.ca_file.as_ref()),
        proxy: raw
            .proxy
            .as_ref()
            .and_then(|text| proxy_url(findings, &["acme", "proxy"], text)),
        binding: binding(findings, raw),
    };
    if !is_used {
        if !raw.names.is_empty() {
            findings.warn(
                &["acme", "names"],
                "no listener uses it: say tls = { acme = true } in [server], [admin] or in a [listener.NAME]",
            );
        }
        return None;
    }
    if raw.names.is_empty() {
        let why = "the names that clients use for this proxy, such as [\"larder.example\"]";
        missing(
            findings,
            (server, listeners, admin),
            "names",
            &format!("found none, expected {why}"),
        );
    }
    if !raw.accept_terms {
        let host = settled.directory.host_str().unwrap_or("the directory");
        let why =
            format!("found false, expected true: {host} gives certificates to those who agree to its terms of service");
        missing(findings, (server, listeners, admin), "accept_terms", &why);
    }
    Some(settled)
}

/// Where nothing is said of a key, the listener that asks for a certificate is blamed.
fn missing(
    findings: &mut Findings<'_>,
    (server, listeners, admin): (&Server, &[Listener], &Admin),
    key: &str,
    why: &str,
) {
    if findings.place(&["acme", key]) != Place::Default {
        return findings.refuse(&["acme", key], why);
    }
    let further = listeners
        .iter()
        .find(|listener| listener.tls.as_ref().is_some_and(ServerTls::is_acme));
    let at = match further.filter(|_| !server.tls.as_ref().is_some_and(ServerTls::is_acme)) {
        Some(listener) => vec!["listener", listener.name.as_str(), "tls", "acme"],
        None if !server.tls.as_ref().is_some_and(ServerTls::is_acme)
            && admin.tls.as_ref().is_some_and(ServerTls::is_acme) =>
        {
            vec!["admin", "tls", "acme"]
        }
        None => vec!["server", "tls", "acme"],
    };
    findings.refuse(&at, format!("this takes acme.{key}: {why}"));
}

fn names(findings: &mut Findings<'_>, raw: &[String]) -> Vec<String> {
    let key = ["acme", "names"];
    let mut out: Vec<String> = Vec::new();
    for text in raw {
        match name(text) {
            Ok(name) if out.contains(&name) => findings.refuse(&key, format!("found {} twice", quoted(text))),
            Ok(name) => out.push(name),
            Err(expected) => findings.refuse(&key, format!("found {}, expected {expected}", quoted(text))),
        }
    }
    if out.len() > MAX_NAMES {
        findings.refuse(&key, format!("found {} names, expected at most {MAX_NAMES}", out.len()));
    }
    out
}

/// Errors: what ends the sentence "expected …".
fn name(text: &str) -> Result<String, &'static str> {
    if let Ok(ip) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
        return match ip.is_unspecified() {
            true => Err("the address that clients use"),
            false => Ok(ip.to_string()),
        };
    }
    if text.starts_with("*.") {
        return Err(
            "a name without a star: a wildcard is given only to who changes the zone (dns-01), which Larder does not",
        );
    }
    if !text.is_ascii() {
        return Err("the name as it stands in DNS, which begins with xn--");
    }
    let fits = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    let is_number = |label: &str| label.bytes().all(|b| b.is_ascii_digit());
    let is_host =
        text.len() <= MAX_NAME && text.split('.').all(fits) && !text.rsplit('.').next().is_some_and(is_number);
    match is_host {
        true => Ok(text.to_ascii_lowercase()),
        false => Err("a host name such as \"larder.example\" or an IP address, without scheme, port or path"),
    }
}

fn contact(findings: &mut Findings<'_>, raw: Option<&OneOrMany>) -> Vec<String> {
    let mut out = Vec::new();
    for text in raw.map_or(&[][..], OneOrMany::as_slice) {
        let address = text.strip_prefix("mailto:").unwrap_or(text);
        let (user, host) = address.split_once('@').unwrap_or_default();
        let fits = !user.is_empty() && name(host).is_ok() && address.bytes().all(|b| b.is_ascii_graphic() && b != b'?');
        match fits {
            true => out.push(format!("mailto:{address}")),
            false => findings.refuse(
                &["acme", "contact"],
                format!(
                    "found {}, expected a mail address such as \"ops@example.com\"",
                    quoted(text)
                ),
            ),
        }
    }
    out
}

fn challenge(findings: &mut Findings<'_>, raw: &RawAcme, is_used: bool, taken: &[SocketAddr]) -> Option<Challenge> {
    let key = ["acme", "http_listen"];
    let listen = listen::addresses(findings, &key, &raw.http_listen);
    match raw.challenge.as_str() {
        "tls-alpn-01" => Some(Challenge::TlsAlpn),
        "http-01" => {
            if let (true, Some((ours, other))) = (is_used, listen::clash(&listen, taken)) {
                findings.refuse(
                    &key,
                    format!("found {ours}, which is taken by another listener ({other})"),
                );
            }
            Some(Challenge::Http { listen })
        }
        other => {
            findings.refuse(
                &["acme", "challenge"],
                format!("found {}, expected \"tls-alpn-01\" or \"http-01\"", quoted(other)),
            );
            None
        }
    }
}

fn binding(findings: &mut Findings<'_>, raw: &RawAcme) -> Option<Binding> {
    let file = findings.secret_file(&["acme", "eab_key_file"], raw.eab_key_file.as_ref());
    match (&raw.eab_kid, file) {
        (None, None) => None,
        (Some(kid), Some(key_file)) => Some(Binding {
            kid: kid.clone(),
            key_file,
        }),
        (Some(_), None) => {
            findings.refuse(
                &["acme", "eab_kid"],
                "expected eab_key_file, too: the authority gives out both together",
            );
            None
        }
        (None, Some(_)) => {
            findings.refuse(
                &["acme", "eab_key_file"],
                "expected eab_kid, too: the authority gives out both together",
            );
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    const GOOD: &str = "[server]\ntls = { acme = true }\n[acme]\naccept_terms = true\nnames = [\"larder.example\"]\n";

    fn refused(text: &str, wants: &str) {
        let error = Config::from_toml(text).unwrap_err().to_string();
        assert!(error.contains(wants), "{text}\n{error}");
    }

    #[test]
    fn a_small_section_is_enough() {
        let acme = Config::from_toml(GOOD).unwrap().acme.unwrap();
        assert_eq!(acme.names, ["larder.example"]);
        assert_eq!(acme.directory.host_str(), Some("acme-v02.api.letsencrypt.org"));
        assert_eq!(acme.challenge, Challenge::TlsAlpn);
        let more = format!(
            "{GOOD}challenge = \"http-01\"\ncontact = [\"a@b.example\", \"mailto:c@d.example\"]\ndirectory = \"http://127.0.0.1:14000/dir\"\nhttp_listen = \"127.0.0.1:8080\"\nprofile = \"shortlived\"\n"
        );
        let acme = Config::from_toml(&more).unwrap().acme.unwrap();
        assert_eq!(acme.contact, ["mailto:a@b.example", "mailto:c@d.example"]);
        assert_eq!(acme.profile.as_deref(), Some("shortlived"));
        assert!(matches!(&acme.challenge, Challenge::Http { listen } if listen[0].port() == 8080));
    }

    #[test]
    fn nothing_changes_without_a_listener_that_asks() {
        assert!(Config::from_toml("").unwrap().acme.is_none());
        let config = Config::from_toml("[acme]\nnames = [\"larder.example\"]\n").unwrap();
        assert!(config.acme.is_none());
        let warning = "proxy.toml:2: acme.names: no listener uses it";
        assert!(
            config.warnings.iter().any(|found| found.contains(warning)),
            "{:?}",
            config.warnings
        );
        let config = Config::from_toml("[server]\ntls = { cert = \"x\", key = \"y\", acme = false }");
        assert!(!config.unwrap_err().to_string().contains("acme"));
    }

    #[test]
    fn further_listeners_show_it_too() {
        let text = "[listener.a]\nlisten = \"127.0.0.1:5443\"\ntls = { acme = true }\n[acme]\naccept_terms = true\nnames = [\"a.example\"]\n";
        let config = Config::from_toml(text).unwrap();
        assert!(config.acme.is_some());
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_place() {
        let with = |lines: &str| format!("{GOOD}{lines}\n");
        let named = |name: &str| GOOD.replace("larder.example", name);
        refused(
            "[server]\ntls = { acme = true }",
            "proxy.toml:2: server.tls.acme: this takes acme.names: found none, expected the names",
        );
        refused(
            &GOOD.replace("accept_terms = true", "accept_terms = false"),
            "proxy.toml:4: acme.accept_terms: found false, expected true",
        );
        refused(
            "[server]\ntls = { acme = true, cert = \"/dev/null\", key = \"/dev/null\" }",
            "server.tls.acme: expected either cert and key or acme = true, but cert is given too",
        );
        refused(
            &named("*.larder.example"),
            "proxy.toml:5: acme.names: found \"*.larder.example\", expected a name without a star",
        );
        for bad in [
            "https://x.example",
            "x.example:443",
            "x..example",
            "-x.example",
            "x_y.example",
            "x.example.",
            "1.2.3",
        ] {
            refused(&named(bad), "expected a host name such as");
        }
        refused(&named("bücher.example"), "begins with xn--");
        refused(&named("0.0.0.0"), "the address that clients use");
        refused(
            &GOOD.replace("\"larder.example\"", "\"a.example\", \"A.example\""),
            "found \"A.example\" twice",
        );
        refused(
            &with("directory = \"http://ca.example/\""),
            "acme.directory: found \"http://ca.example/\", expected an address that begins with https://",
        );
        refused(
            &with("challenge = \"dns-01\""),
            "acme.challenge: found \"dns-01\", expected \"tls-alpn-01\" or \"http-01\"",
        );
        refused(
            &with("challenge = \"http-01\"\nhttp_listen = \"127.0.0.1:5000\""),
            "acme.http_listen: found 127.0.0.1:5000, which is taken",
        );
        refused(
            &with("contact = \"somebody\""),
            "acme.contact: found \"somebody\", expected a mail address",
        );
        refused(&with("eab_kid = \"x\""), "acme.eab_kid: expected eab_key_file, too");
        refused(
            &with("proxy = \"ftp://x\""),
            "acme.proxy: found \"ftp://x\", expected a proxy",
        );
    }

    #[test]
    fn addresses_are_names_too() {
        for (text, want) in [
            ("192.0.2.7", "192.0.2.7"),
            ("[2001:DB8::1]", "2001:db8::1"),
            ("Larder", "larder"),
        ] {
            assert_eq!(name(text).as_deref(), Ok(want));
        }
    }

    #[test]
    fn a_proxys_password_is_not_shown() {
        let text = format!("{GOOD}proxy = \"http://u:hunter2@proxy.example\"\n");
        let shown = format!("{:?}", Config::from_toml(&text).unwrap());
        assert!(shown.contains("proxy.example") && !shown.contains("hunter2"));
    }
}
