//! Why an exchange with another server failed, in words for the person who runs the proxy.
//!
//! The errors of the HTTP client are chains of libraries: reqwest, hyper, rustls, the operating system. [`of`] looks for the one
//! link that says what happened, and names the host; what the libraries call it is shown only where no link is known.

use std::error::Error;
use std::fmt;
use std::io;

use rustix::io::Errno;
use rustls::{AlertDescription, CertificateError};
use url::Url;

use super::body::one_line;
use crate::text;

/// Longest text of an unknown link, characters.
const MAX_UNKNOWN: usize = 200;
/// Names of a certificate that are shown, at most.
const SHOWN_NAMES: usize = 3;

/// The server at the other end, as far as it is known.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    /// With the port, unless the scheme implies it.
    host: Option<String>,
    /// The egress proxy that all connections go through; they fail at either.
    proxy: Option<String>,
}

impl Peer {
    /// The host of `url`, by way of the host of `proxy`. No user, path or query: those may be secrets.
    pub fn new(url: Option<&Url>, proxy: Option<&str>) -> Peer {
        Peer {
            host: url.and_then(host_of),
            proxy: proxy.map(str::to_owned),
        }
    }

    /// ` to registry.example by the proxy proxy.example:3128`, or nothing.
    pub(super) fn to(&self) -> String {
        let to = self.host.as_ref().map(|host| format!(" to {host}"));
        to.unwrap_or_default() + &self.by()
    }

    fn by(&self) -> String {
        let by = self.proxy.as_ref().map(|proxy| format!(" by the proxy {proxy}"));
        by.unwrap_or_default()
    }

    /// The name without its port: DNS knows no ports.
    fn name(&self) -> Option<&str> {
        let host = self.host.as_deref()?;
        match host.rsplit_once(':') {
            Some((name, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => Some(name),
            _ => Some(host),
        }
    }
}

/// The subject of a sentence.
impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.host.as_deref().unwrap_or("the server"))
    }
}

/// Host and port of a URL; the port only if it is not its scheme's own.
pub fn host_of(url: &Url) -> Option<String> {
    let host = one_line(url.host_str()?, 100);
    Some(match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host,
    })
}

/// Says in one sentence, without a full stop, why an exchange with `peer` failed.
pub fn of(error: &(dyn Error + 'static), peer: &Peer) -> String {
    let known = find(error, |link| link.downcast_ref().map(|tls| of_tls(tls, peer)))
        .or_else(|| find(error, no_files))
        .or_else(|| is_dns(error).then(|| of_dns(error, peer)))
        .or_else(|| find(error, |link| of_proxy(link, peer)))
        .or_else(|| find(error, |link| of_io(link.downcast_ref()?, peer)))
        .or_else(|| find(error, |link| of_http(link.downcast_ref()?, peer)))
        .or_else(|| find(error, |link| of_client(link.downcast_ref()?, peer)));
    known.unwrap_or_else(|| innermost(error))
}

/// Returns what `look` finds in the first link of a chain in which it finds something, from the outermost link inwards.
fn find<T>(error: &(dyn Error + 'static), look: impl Fn(&(dyn Error + 'static)) -> Option<T>) -> Option<T> {
    let mut link = Some(error);
    while let Some(error) = link {
        if let Some(found) = look(error) {
            return Some(found);
        }
        link = inner(error);
    }
    None
}

/// The next link. What an error of the operating system is wrapped around is no source of it in the eyes of the standard library.
fn inner<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(inner) => Some(inner),
        None => error.source(),
    }
}

/// The text of the last link, which is nearest to what happened.
fn innermost(error: &(dyn Error + 'static)) -> String {
    let mut last = error;
    while let Some(next) = inner(last) {
        last = next;
    }
    one_line(&last.to_string(), MAX_UNKNOWN)
}

/// Whatever was tried, it takes a file descriptor.
fn no_files(link: &(dyn Error + 'static)) -> Option<String> {
    let error = link.downcast_ref::<io::Error>()?;
    let is_that = [Errno::MFILE, Errno::NFILE]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()));
    is_that.then(|| text::os_error(error))
}

const NO_ADDRESS: &str = "failed to lookup address information";

fn is_dns(error: &(dyn Error + 'static)) -> bool {
    let says = |link: &(dyn Error + 'static)| {
        let text = link.to_string();
        (text == "dns error" || text.starts_with(NO_ADDRESS)).then_some(())
    };
    find(error, says).is_some()
}

fn of_dns(error: &(dyn Error + 'static), peer: &Peer) -> String {
    // "Temporary failure in name resolution": nobody has said that the name does not exist.
    let is_silence = innermost(error).to_ascii_lowercase().contains("temporary failure");
    let why = match is_silence {
        true => "DNS: the name servers do not answer",
        false => "DNS",
    };
    match (peer.name(), &peer.proxy) {
        (Some(name), None) => format!("no address found for {name} ({why})"),
        (Some(name), Some(proxy)) => format!("no address found for the proxy {proxy}, or for {name} ({why})"),
        (None, _) => format!("no address found for its name ({why})"),
    }
}

/// Returns why an egress proxy refused. The library's types for it are its own.
fn of_proxy(link: &(dyn Error + 'static), peer: &Peer) -> Option<String> {
    let text = link.to_string();
    let said = text
        .strip_prefix("tunnel error: ")
        .or_else(|| text.strip_prefix("SOCKS error: "))?;
    let proxy = match &peer.proxy {
        Some(proxy) => format!("the proxy {proxy}"),
        None => "the proxy".to_owned(),
    };
    let to = peer.host.as_ref().map(|host| format!(" to {host}")).unwrap_or_default();
    match said {
        "proxy authorization required" => Some(format!("{proxy} demands a login")),
        "unsuccessful" => Some(format!("{proxy} does not connect{to}")),
        // Its own source says more.
        _ if inner(link).is_some() => None,
        other => Some(format!(
            "{proxy} does not connect{to}: {}",
            one_line(other, MAX_UNKNOWN)
        )),
    }
}

fn of_io(error: &io::Error, peer: &Peer) -> Option<String> {
    use io::ErrorKind as Io;
    let to = peer.to();
    Some(match error.kind() {
        Io::ConnectionRefused => format!("the connection{to} was refused"),
        Io::ConnectionReset | Io::ConnectionAborted | Io::BrokenPipe => format!("the connection{to} was reset"),
        Io::TimedOut => format!("the connection{to} is dead: what is sent is not acknowledged"),
        Io::HostUnreachable | Io::NetworkUnreachable | Io::NetworkDown => format!("there is no route{to}"),
        Io::AddrNotAvailable => format!("this machine has no address or port left for a connection{to}"),
        Io::PermissionDenied => format!("this machine does not allow a connection{to} (firewall?)"),
        Io::UnexpectedEof => format!("{peer} closed the connection before the end of its answer"),
        _ if error.raw_os_error().is_some() => format!("the connection{to} failed: {}", text::os_error(error)),
        _ => return None,
    })
}

fn of_http(error: &hyper::Error, peer: &Peer) -> Option<String> {
    let to = peer.to();
    Some(match error {
        error if error.is_incomplete_message() => format!("{peer} closed the connection instead of answering"),
        error if error.is_parse_too_large() => format!("{peer} sent headers that are too large"),
        error if error.is_parse() => format!("what {peer} sent is not HTTP"),
        error if error.is_canceled() || error.is_closed() => format!("the connection{to} was closed"),
        // Its type is not ours to name.
        error if error.to_string().starts_with("http2 error") => {
            format!("the HTTP/2 connection{to} broke: {}", innermost(error))
        }
        _ => return None,
    })
}

fn of_client(error: &reqwest::Error, peer: &Peer) -> Option<String> {
    error.is_timeout().then(|| match error.is_connect() {
        true => format!("no connection{} in the time for it", peer.to()),
        false => format!("{peer} did not answer in the time for it"),
    })
}

fn of_tls(error: &rustls::Error, peer: &Peer) -> String {
    match error {
        rustls::Error::InvalidCertificate(error) => of_certificate(error, peer),
        rustls::Error::AlertReceived(alert) => of_alert(*alert, peer),
        rustls::Error::InvalidMessage(_) => format!("{peer} does not speak TLS at this port"),
        rustls::Error::PeerIncompatible(_) => format!("{peer} has no version or cipher of TLS in common with Larder"),
        rustls::Error::NoCertificatesPresented => format!("{peer} shows no certificate"),
        other => format!("TLS with {peer} failed: {}", one_line(&other.to_string(), MAX_UNKNOWN)),
    }
}

fn of_certificate(error: &CertificateError, peer: &Peer) -> String {
    use CertificateError as Bad;
    let what = match error {
        Bad::Expired => "has expired (TLS)".to_owned(),
        Bad::ExpiredContext { not_after, .. } => format!("has expired on {} (TLS)", day(not_after.as_secs())),
        Bad::NotValidYet => "is not valid yet: is the clock of this machine right? (TLS)".to_owned(),
        Bad::NotValidYetContext { not_before, .. } => {
            let from = day(not_before.as_secs());
            format!("is not valid before {from}: is the clock of this machine right? (TLS)")
        }
        Bad::UnknownIssuer => "is not trusted: its issuer is unknown here (TLS; ca_file names an authority)".to_owned(),
        Bad::NotValidForName => "is for another name (TLS)".to_owned(),
        Bad::NotValidForNameContext { presented, .. } => match names(presented) {
            found if found.is_empty() => "is for another name (TLS)".to_owned(),
            found => format!("is for another name: {found} (TLS)"),
        },
        Bad::Revoked => "was revoked (TLS)".to_owned(),
        Bad::BadEncoding | Bad::BadSignature => "is broken (TLS)".to_owned(),
        Bad::InvalidPurpose | Bad::InvalidPurposeContext { .. } => "is not one for servers (TLS)".to_owned(),
        other => format!("is not accepted: {} (TLS)", one_line(&other.to_string(), MAX_UNKNOWN)),
    };
    format!("the certificate of {peer} {what}")
}

/// rustls quotes each: `DnsName("a.example")`.
fn names(presented: &[String]) -> String {
    let bare = |text: &String| {
        let name = text.split('"').nth(1).unwrap_or(text);
        one_line(name, 100)
    };
    let mut found: Vec<String> = presented.iter().take(SHOWN_NAMES).map(bare).collect();
    if presented.len() > SHOWN_NAMES {
        found.push("…".to_owned());
    }
    found.join(", ")
}

/// `2026-11-30`
fn day(unix_seconds: u64) -> String {
    let at = i64::try_from(unix_seconds)
        .ok()
        .and_then(|s| jiff::Timestamp::from_second(s).ok());
    at.map_or_else(
        || "an unknown day".to_owned(),
        |at| at.to_string().chars().take(10).collect(),
    )
}

fn of_alert(alert: AlertDescription, peer: &Peer) -> String {
    use AlertDescription as Alert;
    match alert {
        Alert::CertificateRequired => format!("{peer} demands a client certificate (TLS; client_cert and client_key)"),
        Alert::BadCertificate
        | Alert::UnsupportedCertificate
        | Alert::CertificateRevoked
        | Alert::CertificateExpired
        | Alert::CertificateUnknown
        | Alert::UnknownCA
        | Alert::AccessDenied => format!("{peer} does not accept the client certificate (TLS: {alert:?})"),
        Alert::HandshakeFailure | Alert::ProtocolVersion | Alert::InsufficientSecurity => {
            format!("{peer} has no version or cipher of TLS in common with Larder")
        }
        Alert::UnrecognisedName => format!("{peer} has no certificate for that name (TLS)"),
        other => format!("{peer} ended the TLS handshake ({other:?})"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustls::pki_types::UnixTime;

    use super::*;

    fn peer() -> Peer {
        Peer::new(
            "https://u:hunter2@registry.example/v2/?sig=hunter2"
                .parse()
                .ok()
                .as_ref(),
            None,
        )
    }

    /// As the client nests them: an error of the system around one of a library.
    fn wrapped(error: impl Error + Send + Sync + 'static) -> io::Error {
        io::Error::other(io::Error::new(io::ErrorKind::InvalidData, error))
    }

    #[test]
    fn certificates_in_words() {
        let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let name = || rustls::pki_types::ServerName::try_from("registry.example").unwrap();
        for (error, words) in [
            (
                CertificateError::UnknownIssuer,
                "the certificate of registry.example is not trusted: its issuer is unknown here (TLS; ca_file names an authority)",
            ),
            (
                CertificateError::ExpiredContext {
                    time: at(1_800_000_000),
                    not_after: at(1_700_000_000),
                },
                "the certificate of registry.example has expired on 2023-11-14 (TLS)",
            ),
            (
                CertificateError::NotValidForNameContext {
                    expected: name(),
                    presented: vec!["DnsName(\"a.example\")".to_owned(), "DnsName(\"b.example\")".to_owned()],
                },
                "the certificate of registry.example is for another name: a.example, b.example (TLS)",
            ),
        ] {
            let error = wrapped(rustls::Error::InvalidCertificate(error));
            assert_eq!(of(&error, &peer()), words);
        }
        let alert = wrapped(rustls::Error::AlertReceived(AlertDescription::CertificateRequired));
        assert!(of(&alert, &peer()).starts_with("registry.example demands a client certificate"));
    }

    #[test]
    fn the_system_in_words() {
        let raw = |errno: Errno| io::Error::from_raw_os_error(errno.raw_os_error());
        let by_proxy = Peer::new(
            "https://registry.example:5000/".parse().ok().as_ref(),
            Some("proxy.example:3128"),
        );
        for (error, peer, words) in [
            (
                raw(Errno::CONNREFUSED),
                peer(),
                "the connection to registry.example was refused",
            ),
            (
                raw(Errno::CONNRESET),
                peer(),
                "the connection to registry.example was reset",
            ),
            (raw(Errno::PIPE), Peer::default(), "the connection was reset"),
            (raw(Errno::NETUNREACH), peer(), "there is no route to registry.example"),
            (
                raw(Errno::CONNREFUSED),
                by_proxy,
                "the connection to registry.example:5000 by the proxy proxy.example:3128 was refused",
            ),
            (
                raw(Errno::MFILE),
                peer(),
                "this process has no file descriptors left (LimitNOFILE, ulimit -n)",
            ),
            (
                io::ErrorKind::UnexpectedEof.into(),
                Peer::default(),
                "the server closed the connection before the end of its answer",
            ),
        ] {
            assert_eq!(of(&io::Error::other(error), &peer), words);
        }
    }

    #[test]
    fn names_without_an_address() {
        let dns = |why: &str| io::Error::other(format!("{NO_ADDRESS}: {why}"));
        let name = Peer::new("http://registry.example:5000/".parse().ok().as_ref(), None);
        assert_eq!(
            of(&dns("Name or service not known"), &name),
            "no address found for registry.example (DNS)"
        );
        assert_eq!(
            of(&dns("Temporary failure in name resolution"), &peer()),
            "no address found for registry.example (DNS: the name servers do not answer)"
        );
        let by_proxy = Peer::new(
            "https://registry.example/".parse().ok().as_ref(),
            Some("proxy.example:3128"),
        );
        assert_eq!(
            of(&dns("Name or service not known"), &by_proxy),
            "no address found for the proxy proxy.example:3128, or for registry.example (DNS)"
        );
    }

    /// Nothing but the host of a URL is shown, and a text of nobody knows whom stays short.
    #[test]
    fn what_is_unknown_is_short_and_shows_no_secret() {
        let long = io::Error::other("x".repeat(10_000));
        assert!(of(&long, &peer()).chars().count() <= MAX_UNKNOWN + 1);
        assert_eq!(peer().to_string(), "registry.example");
        assert!(!format!("{:?}", peer()).contains("hunter2"));
    }
}
