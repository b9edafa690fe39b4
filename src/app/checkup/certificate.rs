//! The certificates of the listening side: names, dates, key and chain, as a client will look at them.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;

use super::{Address, Finding};
use crate::acme::Report;
use crate::config::{Config, Listen, MAIN_LISTENER, ServerTls, TlsIdentity};
use crate::http::server::tls::Certificates;

const DAY: i64 = 86_400;
/// Renewal is due by then, whoever issues it.
const SOON: i64 = 21 * DAY;

/// One listener's.
struct Door<'a> {
    name: &'a str,
    tls: &'a ServerTls,
    ips: Vec<IpAddr>,
    /// The name that clients use, where it is known.
    host: Option<&'a str>,
}

pub(super) fn check(config: &Config, address: Option<&Address>) -> Vec<Finding> {
    let main = config.server.tls.as_ref().map(|tls| Door {
        name: MAIN_LISTENER,
        tls,
        ips: config.server.listen.iter().map(|at| at.ip()).collect(),
        host: address.map(|address| address.host.as_str()),
    });
    let further = config.listeners.iter().filter_map(|listener| {
        Some(Door {
            name: &listener.name,
            tls: listener.tls.as_ref()?,
            ips: tcp_of(&listener.listen),
            host: None,
        })
    });
    let admin = config.admin.tls.as_ref().map(|tls| Door {
        name: "admin",
        tls,
        ips: tcp_of(&config.admin.listen),
        host: None,
    });
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX));
    let report = crate::app::certificate(config);
    main.into_iter()
        .chain(further)
        .chain(admin)
        .flat_map(|door| of(&door, report.as_ref(), now))
        .collect()
}

fn tcp_of(places: &[Listen]) -> Vec<IpAddr> {
    let ip = |at: &Listen| match at {
        Listen::Tcp(at) => Some(at.ip()),
        Listen::Unix(_) => None,
    };
    places.iter().filter_map(ip).collect()
}

fn of(door: &Door<'_>, report: Option<&Report>, now: i64) -> Vec<Finding> {
    let check = match door.name {
        MAIN_LISTENER => "certificate".to_owned(),
        name => format!("certificate {name}"),
    };
    // As the proxy loads it: files, key and client CA.
    if let Err(error) = Certificates::load(door.tls, &Arc::default()) {
        let advice = "the proxy does not start with these, and a running one goes on with the old: write certificate and key as one pair of PEM files";
        return vec![Finding::problem(&check, error.to_string()).advice(advice)];
    }
    match (&door.tls.identity, report) {
        (TlsIdentity::Files { cert, .. }, _) => match read(cert) {
            Ok(chain) => of_chain(door, &check, &cert.display().to_string(), &chain, now),
            Err(why) => vec![Finding::problem(&check, format!("{}: {why}", cert.display()))],
        },
        (TlsIdentity::Acme, Some(report)) => by_acme(door, &check, report, now),
        // There is no such listener without a report.
        (TlsIdentity::Acme, None) => Vec::new(),
    }
}

/// What the proxy got for itself, or why it did not.
fn by_acme(door: &Door<'_>, check: &str, report: &Report, now: i64) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(trouble) = &report.trouble {
        let advice = "look at the cache folder's acme, or ask again as the user who runs the proxy; a proxy that cannot read it orders another";
        findings.push(Finding::warning(check, trouble).advice(advice));
    }
    if let Some(failed) = &report.failed {
        let found = format!(
            "the last order at {} failed: {}; it is tried again at {}",
            report.directory, failed.why, failed.again
        );
        let advice = "mend the cause; a restart may try again sooner, and another configuration does at once";
        findings.push(match report.held.as_ref().is_some_and(|held| !held.has_expired) {
            true => Finding::warning(check, found).advice(advice),
            false => Finding::problem(check, found).advice(advice),
        });
    }
    let Some(held) = &report.held else {
        if findings.is_empty() {
            let found = format!("none yet from {}: clients see a self-signed one", report.directory);
            let advice = "start the proxy: it orders one at once, and its log says what becomes of it";
            findings.push(Finding::warning(check, found).advice(advice));
        }
        return findings;
    };
    if !held.is_wanted {
        let found =
            "it was ordered by another configuration of acme: another is ordered when the proxy starts with this one";
        findings.push(Finding::note(check, found));
    }
    let chain: Vec<_> = held
        .chain
        .iter()
        .map(|der| CertificateDer::from(der.as_slice()))
        .collect();
    let what = format!("the certificate of {}, renewed from {}", report.directory, held.renewal);
    findings.extend(of_chain(door, check, &what, &chain, now));
    findings
}

fn of_chain(door: &Door<'_>, check: &str, cert: &str, chain: &[CertificateDer<'_>], now: i64) -> Vec<Finding> {
    let parsed: Result<Vec<_>, _> = chain.iter().map(|der| X509Certificate::from_der(der)).collect();
    let parsed = match parsed {
        Ok(parsed) => parsed,
        Err(error) => return vec![Finding::problem(check, format!("{cert} is not understood: {error}"))],
    };
    let parsed: Vec<_> = parsed.into_iter().map(|(_, certificate)| certificate).collect();
    let mut findings = Vec::new();
    if let Some(leaf) = parsed.first() {
        findings.extend(dates(check, leaf, door, now));
        findings.extend(names(check, leaf, door));
    }
    findings.extend(order(check, &parsed));
    if findings.is_empty() {
        let names = parsed.first().map(names_of).unwrap_or_default();
        let days = parsed.first().map_or(0, |leaf| left(leaf, now) / DAY);
        findings.push(Finding::ok(
            check,
            format!("{cert} is for {}, {days} days more", names.shown()),
        ));
    }
    findings
}

fn read(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    read.map_err(|error| error.to_string())
}

fn left(certificate: &X509Certificate<'_>, now: i64) -> i64 {
    certificate.validity().not_after.timestamp() - now
}

fn dates(check: &str, leaf: &X509Certificate<'_>, door: &Door<'_>, now: i64) -> Option<Finding> {
    let validity = leaf.validity();
    let life = validity.not_after.timestamp() - validity.not_before.timestamp();
    // One that the proxy renews by itself is late when a quarter of its life is left: it is due at a third.
    let (advice, soon) = match door.tls.is_acme() {
        false => ("renew it: the proxy reads the files again by itself", SOON),
        true => (
            "the proxy renews it by itself, if it runs: its log says what stands in the way",
            life / 4,
        ),
    };
    let left = left(leaf, now);
    let early = leaf.validity().not_before.timestamp() - now;
    if left < 0 {
        let found = format!("it expired {} days ago", -left / DAY);
        return Some(Finding::problem(check, found).advice(advice));
    }
    if early > 0 {
        let found = format!("it is not valid before {} hours from now", early / 3600 + 1);
        return Some(Finding::problem(check, found).advice("wait, or put this machine's clock right"));
    }
    (left < soon).then(|| Finding::warning(check, format!("it expires in {} days", left / DAY)).advice(advice))
}

/// What a certificate is for.
#[derive(Debug, Default)]
struct Names {
    dns: Vec<String>,
    ips: Vec<IpAddr>,
}

impl Names {
    fn shown(&self) -> String {
        let ips = self.ips.iter().map(ToString::to_string);
        let all: Vec<String> = self.dns.iter().cloned().chain(ips).collect();
        all.join(", ")
    }

    fn has_host(&self, host: &str) -> bool {
        if let Ok(ip) = host.parse() {
            return self.ips.contains(&ip);
        }
        self.dns.iter().any(|name| match name.strip_prefix("*.") {
            // A star stands for one label (RFC 9525, 6.3).
            Some(rest) => host
                .split_once('.')
                .is_some_and(|(_, parent)| parent.eq_ignore_ascii_case(rest)),
            None => name.eq_ignore_ascii_case(host),
        })
    }
}

fn names_of(leaf: &X509Certificate<'_>) -> Names {
    let mut names = Names::default();
    let Ok(Some(extension)) = leaf.subject_alternative_name() else {
        return names;
    };
    for name in &extension.value.general_names {
        match name {
            GeneralName::DNSName(name) => names.dns.push((*name).to_owned()),
            GeneralName::IPAddress(bytes) => names.ips.extend(ip_of(bytes)),
            _ => {}
        }
    }
    names
}

fn ip_of(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(v4.into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

fn names(check: &str, leaf: &X509Certificate<'_>, door: &Door<'_>) -> Vec<Finding> {
    let names = names_of(leaf);
    if names.dns.is_empty() && names.ips.is_empty() {
        let found = "it names no host: there is no subjectAltName, and clients look at nothing else";
        return vec![Finding::problem(check, found).advice("issue it with the names and addresses that clients use")];
    }
    let mut findings = Vec::new();
    if let Some(host) = door.host
        && !names.has_host(host)
    {
        let found = format!("clients that use {host} refuse it: it is for {}", names.shown());
        findings.push(Finding::problem(check, found).advice(format!(
            "issue it for {host} too, or have clients use a name that it has"
        )));
    }
    let missing: Vec<String> = door
        .ips
        .iter()
        .filter(|ip| !ip.is_unspecified() && !names.ips.contains(ip))
        // Where there is a name, that is what clients on this machine may use as well.
        .filter(|ip| !(ip.is_loopback() && names.has_host("localhost")))
        .map(ToString::to_string)
        .collect();
    // One that the proxy got for itself is for the names that the operator wanted.
    if door.host.is_none() && !missing.is_empty() && !door.tls.is_acme() {
        let found = format!(
            "it listens on {}, and the certificate is for {}: clients have to use those names",
            missing.join(", "),
            names.shown()
        );
        findings.push(
            Finding::warning(check, found)
                .advice("ask again with --address and the name that clients use, or issue it for the address too"),
        );
    }
    findings
}

/// Each certificate vouches for the one before it.
fn order(check: &str, chain: &[X509Certificate<'_>]) -> Option<Finding> {
    let broken = chain
        .windows(2)
        .position(|pair| pair[0].issuer() != pair[1].subject())?;
    let (child, parent) = (&chain[broken], &chain[broken + 1]);
    let found = format!(
        "the chain is out of order: certificate {} is by {:?}, and the next one in the file is of {:?}",
        broken + 1,
        child.issuer().to_string(),
        parent.subject().to_string()
    );
    Some(Finding::problem(check, found).advice("the proxy's own certificate comes first, then each one's issuer"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_stars() {
        let names = Names {
            dns: vec!["*.example".to_owned(), "larder.local".to_owned()],
            ips: vec!["192.0.2.1".parse().unwrap()],
        };
        assert!(names.has_host("a.example") && names.has_host("LARDER.local") && names.has_host("192.0.2.1"));
        assert!(!names.has_host("a.b.example") && !names.has_host("example") && !names.has_host("192.0.2.2"));
        assert_eq!(names.shown(), "*.example, larder.local, 192.0.2.1");
    }
}
