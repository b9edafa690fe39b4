//! What a client's file has to name for its pulls to arrive here.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, ToSocketAddrs as _, UdpSocket};
use std::str::FromStr;

use super::naming::Naming;
use crate::config::{Config, Listen};
use crate::oci::HostPort;

/// `http` or `https`.
pub(super) type Scheme = &'static str;

/// An address as people and clients' files write it: `larder.example:5000`, `http://larder.example:5000/docker.io`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    pub scheme: Option<Scheme>,
    /// Lower-case, without brackets.
    pub host: String,
    pub port: u16,
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Address, String> {
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (Some("http"), rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (Some("https"), rest),
            Some((scheme, _)) => {
                let scheme: String = scheme.escape_debug().take(40).collect();
                return Err(format!("found {scheme}://, expected http:// or https://"));
            }
            None => (None, text),
        };
        let host = rest.split('/').next().unwrap_or_default();
        let host: HostPort = host.parse().map_err(|error| format!("{error}"))?;
        let name = host.host().to_owned();
        let behind = host
            .as_str()
            .rsplit_once(':')
            .filter(|(before, _)| before.ends_with(']') || !before.contains(':'));
        let port = match behind.map(|(_, port)| port.parse()) {
            Some(Ok(port)) => port,
            _ if scheme == Some("http") => 80,
            _ => 443,
        };
        Ok(Address {
            scheme,
            host: name,
            port,
        })
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// The proxy's addresses.
#[derive(Debug)]
pub(super) struct Target {
    doors: Vec<Door>,
    /// Names of the upstreams, where they are known.
    pub(super) upstreams: Vec<String>,
    pub(super) naming: Naming,
    /// Whether clients on this machine are why somebody asks.
    pub(super) is_expected: bool,
    /// True if this machine's authorities were seen not to vouch for the proxy's certificate.
    pub(super) is_distrusted: bool,
}

#[derive(Debug)]
struct Door {
    host: String,
    port: u16,
    /// Every address of this machine.
    any: bool,
    scheme: Option<Scheme>,
}

/// How an address in a file stands to the proxy's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Match {
    Elsewhere,
    Here,
    /// Here, but by the other scheme; this is the right one.
    WrongScheme(Scheme),
}

impl Target {
    pub(super) fn of(config: &Config, address: Option<&Address>) -> Target {
        let scheme = |has_tls: bool| Some(if has_tls { "https" } else { "http" });
        let of_main = scheme(config.server.tls.is_some());
        let main = config.server.listen.iter().map(|at| (at.ip(), at.port(), of_main));
        let further = config.listeners.iter().flat_map(|listener| {
            let scheme = scheme(listener.tls.is_some());
            listener.listen.iter().filter_map(move |at| match at {
                Listen::Tcp(at) => Some((at.ip(), at.port(), scheme)),
                Listen::Unix(_) => None,
            })
        });
        let mut doors: Vec<Door> = main
            .chain(further)
            .map(|(ip, port, scheme)| Door {
                host: ip.to_string(),
                port,
                any: ip.is_unspecified(),
                scheme,
            })
            .collect();
        doors.extend(address.map(|address| Door {
            host: address.host.clone(),
            port: address.port,
            any: false,
            scheme: address.scheme.or(of_main),
        }));
        Target {
            doors,
            upstreams: config
                .upstreams
                .iter()
                .map(|upstream| upstream.name.to_string())
                .collect(),
            naming: Naming::of(config),
            is_expected: address.is_some(),
            is_distrusted: false,
        }
    }

    pub(super) fn at(address: Address, scheme: Option<Scheme>) -> Target {
        Target {
            doors: vec![Door {
                host: address.host,
                port: address.port,
                any: false,
                scheme,
            }],
            upstreams: Vec::new(),
            naming: Naming::of_defaults(),
            is_expected: true,
            is_distrusted: false,
        }
    }

    /// Whether all that is known of the proxy's addresses is on this machine alone.
    pub(super) fn is_loopback(&self) -> bool {
        self.doors.iter().all(|door| is_loopback(&door.host))
    }

    pub(super) fn fits(&self, address: &Address, names: &Lookup) -> Match {
        let here = self
            .doors
            .iter()
            .find(|door| door.port == address.port && door.is(&address.host, names));
        match here.map(|door| door.scheme) {
            None => Match::Elsewhere,
            Some(Some(right)) if address.scheme.is_some_and(|scheme| scheme != right) => Match::WrongScheme(right),
            Some(_) => Match::Here,
        }
    }

    /// The scheme of the door that an address leads to.
    pub(super) fn scheme_of(&self, address: &Address, names: &Lookup) -> Option<Scheme> {
        let door = self
            .doors
            .iter()
            .find(|door| door.port == address.port && door.is(&address.host, names));
        door.and_then(|door| door.scheme)
    }

    /// The proxy's ports at the host of an address that leads to none of them.
    pub(super) fn ports_beside(&self, address: &Address, names: &Lookup) -> Vec<u16> {
        let at_host = self.doors.iter().filter(|door| door.is(&address.host, names));
        at_host.map(|door| door.port).collect()
    }
}

impl Door {
    fn is(&self, host: &str, names: &Lookup) -> bool {
        if self.host.eq_ignore_ascii_case(host) {
            return true;
        }
        let both_here = (self.any || is_loopback(&self.host)) && is_loopback(host);
        let theirs = || names.of(host);
        both_here
            || (self.any && theirs().iter().any(|ip| is_own(*ip)))
            || (!self.any && names.of(&self.host).iter().any(|ip| theirs().contains(ip)))
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Whether an address is one of this machine's: only those can be bound. Nothing is sent.
fn is_own(ip: IpAddr) -> bool {
    UdpSocket::bind((ip, 0)).is_ok()
}

/// Names that were looked up, each once. Blocking.
pub(super) struct Lookup {
    is_allowed: bool,
    known: RefCell<HashMap<String, Vec<IpAddr>>>,
}

impl Lookup {
    pub(super) fn new(is_allowed: bool) -> Lookup {
        Lookup {
            is_allowed,
            known: RefCell::default(),
        }
    }

    fn of(&self, host: &str) -> Vec<IpAddr> {
        if let Ok(ip) = host.parse() {
            return vec![ip];
        }
        if !self.is_allowed {
            return Vec::new();
        }
        let mut known = self.known.borrow_mut();
        let found = known.entry(host.to_owned()).or_insert_with(|| {
            let found = (host, 0).to_socket_addrs();
            found.map(|all| all.map(|at| at.ip()).collect()).unwrap_or_default()
        });
        found.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        text.parse().unwrap()
    }

    #[test]
    fn addresses_as_files_write_them() {
        for (text, host, port, scheme) in [
            ("Larder.example:5000", "larder.example", 5000, None),
            ("http://larder.example", "larder.example", 80, Some("http")),
            ("https://larder.example/v2", "larder.example", 443, Some("https")),
            ("[::1]:5000/docker.io", "::1", 5000, None),
            ("docker.io", "docker.io", 443, None),
        ] {
            let read = address(text);
            assert_eq!(
                (read.host.as_str(), read.port, read.scheme),
                (host, port, scheme),
                "{text}"
            );
        }
        for bad in ["", "unix:///x", "http://", "a b"] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
        assert_eq!(address("[::1]:5000").to_string(), "[::1]:5000");
    }

    #[test]
    fn what_leads_here() {
        let config = Config::from_toml("[server]\nlisten = [\"127.0.0.1:5000\", \"192.0.2.7:5000\"]\n").unwrap();
        let given = address("larder.example:443");
        let target = Target::of(&config, Some(&given));
        let names = Lookup::new(false);
        for (text, want) in [
            ("http://127.0.0.1:5000", Match::Here),
            ("localhost:5000/docker.io", Match::Here),
            ("https://localhost:5000", Match::WrongScheme("http")),
            ("http://192.0.2.7:5000", Match::Here),
            ("http://192.0.2.8:5000", Match::Elsewhere),
            ("http://127.0.0.1:5001", Match::Elsewhere),
            ("larder.example", Match::Here),
        ] {
            assert_eq!(target.fits(&address(text), &names), want, "{text}");
        }
        let wildcard = Config::from_toml("[server]\nlisten = \"0.0.0.0:5000\"\n").unwrap();
        let target = Target::of(&wildcard, None);
        assert_eq!(target.fits(&address("127.0.0.1:5000"), &names), Match::Here);
        assert_eq!(target.fits(&address("192.0.2.8:5000"), &names), Match::Elsewhere);
    }
}
