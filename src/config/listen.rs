//! Addresses to listen on.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::file::quoted;
use super::findings::Findings;
use super::raw::OneOrMany;

/// At least one; none twice, unless the system chooses the port.
pub fn addresses(findings: &mut Findings<'_>, key: &[&str], raw: &OneOrMany) -> Vec<SocketAddr> {
    let mut out: Vec<SocketAddr> = Vec::new();
    for text in raw.as_slice() {
        match address(text) {
            Ok(address) if address.port() != 0 && out.contains(&address) => {
                findings.refuse(key, format!("found {} twice", quoted(text)));
            }
            Ok(address) => out.push(address),
            Err(expected) => findings.refuse(key, format!("found {}, expected {expected}", quoted(text))),
        }
    }
    if raw.as_slice().is_empty() {
        findings.refuse(
            key,
            "found an empty list, expected an address such as \"127.0.0.1:5000\"",
        );
    }
    out
}

/// Names other than `localhost` are refused: what they resolve to can change under a running proxy.
fn address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    match text.rsplit_once(':') {
        Some(("localhost", port)) => {
            if let Ok(port) = port.parse() {
                return Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
            }
        }
        // Every interface, IPv4's too; `http::server` binds 0.0.0.0 where the machine has no IPv6.
        Some(("" | "*", port)) => {
            if let Ok(port) = port.parse() {
                return Ok(SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port));
            }
        }
        _ if text.starts_with("unix:") => {
            return Err("an IP address here; a Unix socket takes a [listener.NAME] of its own".to_owned());
        }
        _ if text.parse::<IpAddr>().is_ok() => return Err("a port too, such as \"127.0.0.1:5000\"".to_owned()),
        _ => {}
    }
    Err(
        "an IP address or localhost, and a port, such as \"127.0.0.1:5000\" or \":5000\" for every interface"
            .to_owned(),
    )
}

/// Two listeners that cannot both be bound; the wildcard takes a port on every address.
pub fn clash<'a>(server: &'a [SocketAddr], admin: &'a [SocketAddr]) -> Option<(&'a SocketAddr, &'a SocketAddr)> {
    let overlap = |a: &SocketAddr, b: &SocketAddr| {
        a.ip() == b.ip()
            || (a.ip().is_unspecified() && (a.is_ipv6() || b.is_ipv4()))
            || (b.ip().is_unspecified() && (b.is_ipv6() || a.is_ipv4()))
    };
    let pairs = server.iter().flat_map(|a| admin.iter().map(move |b| (a, b)));
    let mut pairs = pairs.filter(|(a, b)| a.port() != 0 && a.port() == b.port() && overlap(a, b));
    pairs.next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_address_may_be() {
        for (text, want) in [
            ("127.0.0.1:0", "127.0.0.1:0"),
            ("localhost:80", "127.0.0.1:80"),
            ("[::]:5000", "[::]:5000"),
            (":5000", "[::]:5000"),
            ("*:5000", "[::]:5000"),
        ] {
            assert_eq!(address(text).unwrap().to_string(), want);
        }
        for bad in [
            "",
            ":",
            "5000",
            ":65536",
            "*",
            "::1",
            "a.example:1",
            "127.0.0.1:65536",
            "localhost:x",
        ] {
            assert!(address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_wildcard_takes_the_port_of_every_address() {
        let clashes = |a: &str, b: &str| clash(&[a.parse().unwrap()], &[b.parse().unwrap()]).is_some();
        for (a, b) in [
            ("127.0.0.1:1", "127.0.0.1:1"),
            ("0.0.0.0:1", "127.0.0.1:1"),
            ("[::]:1", "127.0.0.1:1"),
            ("[::]:1", "[::1]:1"),
        ] {
            assert!(clashes(a, b) && clashes(b, a), "{a} {b}");
        }
        for (a, b) in [
            ("127.0.0.1:0", "127.0.0.1:0"),
            ("127.0.0.1:1", "127.0.0.1:2"),
            ("127.0.0.1:1", "127.0.0.2:1"),
            ("0.0.0.0:1", "[::1]:1"),
        ] {
            assert!(!clashes(a, b) && !clashes(b, a), "{a} {b}");
        }
    }
}
