//! Reverse proxies in front of Larder: who may speak for a client.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::file::quoted;
use super::findings::Findings;
use super::settle_access::net;

/// The addresses whose word about a client counts. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedProxies(Arc<[IpNet]>);

impl TrustedProxies {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// True if `address` is one of them. IPv4 in IPv6's clothes (`::ffff:10.0.0.1`) is IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|net| net.contains(&address))
    }

    pub fn iter(&self) -> impl Iterator<Item = &IpNet> {
        self.0.iter()
    }
}

impl FromIterator<IpNet> for TrustedProxies {
    fn from_iter<I: IntoIterator<Item = IpNet>>(nets: I) -> TrustedProxies {
        TrustedProxies(nets.into_iter().collect())
    }
}

/// `10.0.0.5/32, 10.1.0.0/16`
impl fmt::Display for TrustedProxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, net) in self.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            write!(f, "{comma}{net}")?;
        }
        Ok(())
    }
}

pub fn trusted_proxies(findings: &mut Findings<'_>, raw: &[String]) -> TrustedProxies {
    let key = ["server", "trusted_proxies"];
    let mut nets = Vec::new();
    for text in raw {
        match net(text) {
            Some(net) => {
                if net.prefix_len() == 0 {
                    findings.warn(
                        &key,
                        format!(
                            "{net} is every address: each client could then claim to be at another; name the addresses of your proxies"
                        ),
                    );
                }
                nets.push(net);
            }
            None => findings.refuse(
                &key,
                format!(
                    "found {}, expected the address of a proxy or a range such as \"10.0.0.0/8\"",
                    quoted(text)
                ),
            ),
        }
    }
    nets.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::super::Config;

    fn of(list: &str) -> Result<Config, String> {
        let text = format!("[server]\ntrusted_proxies = {list}\n");
        Config::from_toml(&text).map_err(|error| error.to_string())
    }

    #[test]
    fn addresses_and_ranges_and_nothing_else() {
        let config =
            of(r#"["10.0.0.5", "10.1.0.0/16", "2001:db8::/32", "::ffff:192.0.2.0/120", "::ffff:203.0.113.9"]"#);
        let config = config.unwrap();
        let proxies = &config.server.trusted_proxies;
        for (address, is_one) in [
            ("10.0.0.5", true),
            ("10.0.0.6", false),
            ("10.1.255.255", true),
            ("::ffff:10.1.2.3", true),
            ("2001:db8::1", true),
            ("2001:db9::1", false),
            ("192.0.2.77", true),
            ("192.0.3.1", false),
            ("203.0.113.9", true),
        ] {
            assert_eq!(proxies.contains(address.parse().unwrap()), is_one, "{address}");
        }
        assert_eq!(
            proxies.to_string(),
            "10.0.0.5/32, 10.1.0.0/16, 2001:db8::/32, 192.0.2.0/24, 203.0.113.9/32"
        );
        assert!(config.warnings.is_empty(), "{:?}", config.warnings);
        for bad in [
            "proxy.example",
            "10.0.0.5:80",
            "10.0.0.5/8",
            "10.0.0.0/33",
            "",
            "unix",
            "*",
        ] {
            let why = of(&format!("[\"{bad}\"]")).unwrap_err();
            assert!(
                why.contains("proxy.toml:2: server.trusted_proxies: found") && why.contains("10.0.0.0/8"),
                "{bad}: {why}"
            );
        }
    }

    #[test]
    fn nobody_by_default_and_everybody_is_warned_of() {
        assert!(Config::default_config().unwrap().server.trusted_proxies.is_empty());
        for all in ["0.0.0.0/0", "::/0"] {
            let config = of(&format!("[\"{all}\"]")).unwrap();
            assert!(config.warnings[0].contains("is every address"), "{:?}", config.warnings);
        }
    }
}
