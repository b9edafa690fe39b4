//! Which addresses may be dialled because an upstream said so (R-X3).
//!
//! The configured URL is the operator's word and is dialled as it is. A redirect target, a token server or any
//! other address that comes out of an answer is checked twice: the literal in the URL before the request, and
//! what its name resolves to at the moment of connecting, so that a name cannot change between check and dial.
//!
//! Through an egress proxy the names are resolved over there: then only literals can be checked here, and the
//! proxy's own rules are the guard.

use std::collections::HashSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

/// What kind of place an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    Public,
    Loopback,
    /// RFC 1918 and fc00::/7.
    Private,
    /// 100.64.0.0/10: carrier-grade NAT, and the inner networks of clouds and overlays.
    Shared,
    /// 169.254.0.0/16 and fe80::/10: where clouds keep their metadata service.
    LinkLocal,
    /// Unspecified, multicast, broadcast, documentation, reserved: never dialled.
    Reserved,
}

impl Class {
    pub fn as_str(self) -> &'static str {
        match self {
            Class::Public => "public",
            Class::Loopback => "loopback",
            Class::Private => "private",
            Class::Shared => "shared (carrier-grade NAT)",
            Class::LinkLocal => "link-local",
            Class::Reserved => "reserved",
        }
    }

    pub fn of(address: IpAddr) -> Class {
        match address {
            IpAddr::V4(v4) => class_v4(v4),
            IpAddr::V6(v6) => class_v6(v6),
        }
    }

    /// Whether an upstream at an address of class `home` may lead to an address of this class.
    pub fn is_reachable_from(self, home: Class) -> bool {
        match self {
            Class::Public => true,
            Class::Reserved => false,
            Class::Private => matches!(home, Class::Private | Class::Shared | Class::Loopback),
            Class::Loopback | Class::Shared | Class::LinkLocal => self == home,
        }
    }
}

fn class_v4(ip: Ipv4Addr) -> Class {
    match ip.octets() {
        [127, ..] => Class::Loopback,
        [10, ..] | [192, 168, ..] | [172, 16..=31, ..] => Class::Private,
        [100, 64..=127, ..] => Class::Shared,
        [169, 254, ..] => Class::LinkLocal,
        // "This network", IETF assignments, documentation, benchmarks, 6to4 relays, multicast, reserved, broadcast.
        [0, ..] | [192, 0, 0, _] | [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => Class::Reserved,
        [198, 18..=19, ..] | [192, 88, 99, _] | [224..=255, ..] => Class::Reserved,
        _ => Class::Public,
    }
}

fn class_v6(ip: Ipv6Addr) -> Class {
    let segments = ip.segments();
    let low = || {
        let [.., a, b, c, d] = ip.octets();
        class_v4(Ipv4Addr::new(a, b, c, d))
    };
    match segments {
        [0, 0, 0, 0, 0, 0, 0, 1] => Class::Loopback,
        // IPv4-mapped addresses and the well-known prefix of NAT64 reach the IPv4 address that they carry; so does
        // 6to4.
        [0, 0, 0, 0, 0, 0xffff, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => low(),
        [0x64, 0xff9b, 1, ..] => class_local_nat64(ip),
        [0x2002, high, low, ..] => {
            let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
            class_v4(Ipv4Addr::new(a, b, c, d))
        }
        [0xfe80..=0xfebf, ..] => Class::LinkLocal,
        [0xfc00..=0xfdff, ..] => Class::Private,
        // Teredo and the other protocol assignments, documentation twice.
        [0x2001, 0..=0x1ff, ..] | [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => Class::Reserved,
        [0x2000..=0x3fff, ..] => Class::Public,
        _ => Class::Reserved,
    }
}

/// The prefix for a network's own NAT64, 64:ff9b:1::/48 (RFC 8215). Where the IPv4 address stands in it depends on
/// the length that the network chose (RFC 6052, 2.2), which the address does not say: 48, 56, 64 or 96 bits, octet 8
/// always left out. Translators ignore what follows it. So each reading counts that could lead inside a network; one
/// that leads nowhere does not.
fn class_local_nat64(ip: Ipv6Addr) -> Class {
    let o = ip.octets();
    let readings = [
        [o[6], o[7], o[9], o[10]],
        [o[7], o[9], o[10], o[11]],
        [o[9], o[10], o[11], o[12]],
        [o[12], o[13], o[14], o[15]],
    ];
    let classes = readings.map(|octets| class_v4(Ipv4Addr::from(octets)));
    let mut inside = classes
        .into_iter()
        .filter(|class| !matches!(class, Class::Public | Class::Reserved));
    match inside.next() {
        Some(first) if inside.all(|class| class == first) => first,
        // One place or another, neither known to be meant.
        Some(_) => Class::Reserved,
        None if classes.contains(&Class::Public) => Class::Public,
        None => Class::Reserved,
    }
}

/// Why the resolver gave nothing: found again in the source chain of reqwest's error.
#[derive(Debug)]
pub struct Blocked {
    pub host: String,
    pub class: Class,
}

impl fmt::Display for Blocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} is at a {} address, where this upstream may not lead",
            self.host,
            self.class.as_str()
        )
    }
}

impl std::error::Error for Blocked {}

/// How long an upstream's own address class is believed; names seldom move between classes.
const HOME_TTL: Duration = Duration::from_secs(60);

/// The address rule of one endpoint.
#[derive(Debug)]
pub struct Guard {
    home_host: String,
    home_port: u16,
    /// Names of egress proxies: the guarded client has to resolve them to get out at all.
    proxies: HashSet<String>,
    home: Mutex<Option<(Instant, Vec<Class>)>>,
}

impl Guard {
    pub fn new(home: &Url, proxies: HashSet<String>) -> Guard {
        Guard {
            home_host: home.host_str().unwrap_or_default().to_owned(),
            home_port: home.port_or_known_default().unwrap_or(0),
            proxies,
            home: Mutex::new(None),
        }
    }

    /// Host and port of the configured URL itself.
    pub fn is_home(&self, url: &Url) -> bool {
        url.host_str() == Some(self.home_host.as_str()) && url.port_or_known_default() == Some(self.home_port)
    }

    /// The classes of the addresses at which the upstream itself is; a name that does not resolve counts as public.
    pub async fn home_classes(&self) -> Vec<Class> {
        if let Some((at, classes)) = &*self.home.lock().unwrap_or_else(PoisonError::into_inner)
            && at.elapsed() < HOME_TTL
        {
            return classes.clone();
        }
        let host = self.home_host.trim_matches(['[', ']']);
        let mut classes: Vec<Class> = match tokio::net::lookup_host((host, self.home_port)).await {
            Ok(found) => found.map(|a| Class::of(a.ip())).collect(),
            Err(_) => Vec::new(),
        };
        classes.dedup();
        if classes.is_empty() {
            classes.push(Class::Public);
        }
        *self.home.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), classes.clone()));
        classes
    }

    /// An address literal in a URL never meets the resolver; a proxy's own name would slip through it.
    pub async fn check_literal(&self, url: &Url) -> Result<(), Blocked> {
        let class = match url.host() {
            Some(Host::Ipv4(ip)) => class_v4(ip),
            Some(Host::Ipv6(ip)) => class_v6(ip),
            Some(Host::Domain(name)) if self.proxies.contains(name) => Class::Reserved,
            Some(Host::Domain(_)) => return Ok(()),
            None => Class::Reserved,
        };
        let home = self.home_classes().await;
        if home.iter().any(|h| class.is_reachable_from(*h)) {
            return Ok(());
        }
        Err(Blocked {
            host: url.host_str().unwrap_or_default().to_owned(),
            class,
        })
    }
}

/// The resolver of the guarded client: gives only addresses that the upstream may lead to.
pub struct GuardedResolver(pub Arc<Guard>);

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = self.0.clone();
        Box::pin(async move {
            let host = name.as_str().to_owned();
            // Port 0: reqwest puts the URL's own.
            let found: Vec<SocketAddr> = tokio::net::lookup_host((host.as_str(), 0)).await?.collect();
            if guard.proxies.contains(&host) {
                return Ok(Box::new(found.into_iter()) as Addrs);
            }
            let home = guard.home_classes().await;
            let blocked = found.first().map(|a| Class::of(a.ip()));
            let allowed: Vec<SocketAddr> = found
                .into_iter()
                .filter(|a| home.iter().any(|h| Class::of(a.ip()).is_reachable_from(*h)))
                .collect();
            match blocked {
                Some(class) if allowed.is_empty() => Err(Blocked { host, class }.into()),
                _ => Ok(Box::new(allowed.into_iter()) as Addrs),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes() {
        for (text, class) in [
            ("8.8.8.8", Class::Public),
            ("2606:4700::1", Class::Public),
            ("127.0.0.1", Class::Loopback),
            ("127.255.0.1", Class::Loopback),
            ("::1", Class::Loopback),
            ("::ffff:127.0.0.1", Class::Loopback),
            ("::ffff:10.1.2.3", Class::Private),
            ("10.0.0.1", Class::Private),
            ("172.16.0.1", Class::Private),
            ("172.31.255.255", Class::Private),
            ("172.32.0.1", Class::Public),
            ("192.168.1.1", Class::Private),
            ("fd00::1", Class::Private),
            ("100.64.0.1", Class::Shared),
            ("100.128.0.1", Class::Public),
            ("169.254.169.254", Class::LinkLocal),
            ("::ffff:169.254.169.254", Class::LinkLocal),
            ("64:ff9b::a9fe:a9fe", Class::LinkLocal),
            ("64:ff9b::808:808", Class::Public),
            // RFC 8215 with prefixes of 48, 56, 64 and 96 bits (RFC 6052, 2.2 and 2.4).
            ("64:ff9b:1:a9fe:a9:fe00::", Class::LinkLocal),
            ("64:ff9b:1:a9:fe:a9fe::", Class::LinkLocal),
            ("64:ff9b:1:0:a9:fea9:fe00:0", Class::LinkLocal),
            ("64:ff9b:1::a9fe:a9fe", Class::LinkLocal),
            ("64:ff9b:1:fffe::a9fe:a9fe", Class::LinkLocal),
            ("64:ff9b:1:7f00:0:100::", Class::Loopback),
            ("64:ff9b:1:a00:0:100::", Class::Private),
            ("64:ff9b:1:6440:0:100::", Class::Shared),
            // Translators ignore the octets behind the address.
            ("64:ff9b:1:a00:0:100:808:808", Class::Private),
            ("64:ff9b:1:7f00:0:100:a00:1", Class::Reserved),
            ("64:ff9b:1:808:8:800::", Class::Public),
            ("64:ff9b:1::808:808", Class::Public),
            ("64:ff9b:1:fffe::808:808", Class::Public),
            ("64:ff9b:1::", Class::Reserved),
            ("64:ff9b:2::808:808", Class::Reserved),
            ("64:ff9b:0:1::808:808", Class::Reserved),
            ("::ffff:0:169.254.169.254", Class::Reserved),
            ("::8.8.8.8", Class::Reserved),
            ("2001:0:a9fe:a9fe::", Class::Reserved),
            ("2002:a00:1::1", Class::Private),
            ("2002:808:808::1", Class::Public),
            ("2002:a9fe:a9fe::1", Class::LinkLocal),
            ("2002:7f00:1::", Class::Loopback),
            ("fe80::1", Class::LinkLocal),
            ("0.0.0.0", Class::Reserved),
            ("::", Class::Reserved),
            ("::127.0.0.1", Class::Reserved),
            ("255.255.255.255", Class::Reserved),
            ("224.0.0.1", Class::Reserved),
            ("ff02::1", Class::Reserved),
            ("203.0.113.7", Class::Reserved),
            ("2001:db8::1", Class::Reserved),
            ("2001::1", Class::Reserved),
            ("fec0::1", Class::Reserved),
        ] {
            assert_eq!(Class::of(text.parse().unwrap()), class, "{text}");
        }
    }

    #[test]
    fn who_may_lead_where() {
        use Class::{LinkLocal, Loopback, Private, Public, Reserved, Shared};
        let all = [Public, Loopback, Private, Shared, LinkLocal, Reserved];
        let reach = |home| {
            all.into_iter()
                .filter(|c| c.is_reachable_from(home))
                .collect::<Vec<_>>()
        };
        assert_eq!(reach(Public), [Public]);
        assert_eq!(reach(Loopback), [Public, Loopback, Private]);
        assert_eq!(reach(Private), [Public, Private]);
        assert_eq!(reach(Shared), [Public, Private, Shared]);
        assert_eq!(reach(LinkLocal), [Public, LinkLocal]);
        assert_eq!(reach(Reserved), [Public]);
    }

    #[tokio::test]
    async fn literals_are_checked() {
        let url = |text: &str| text.parse::<Url>().unwrap();
        let public = Guard::new(&url("https://8.8.8.8/"), HashSet::from(["proxy.example".to_owned()]));
        for bad in [
            "http://127.0.0.1/",
            "http://2130706433/",
            "http://0x7f.1/",
            "http://[::ffff:169.254.169.254]/",
            "http://10.0.0.1/",
            "http://proxy.example:3128/",
        ] {
            assert!(public.check_literal(&url(bad)).await.is_err(), "{bad}");
        }
        assert!(public.check_literal(&url("https://1.1.1.1/")).await.is_ok());
        let local = Guard::new(&url("http://127.0.0.1:5000/"), HashSet::new());
        assert!(local.check_literal(&url("http://127.0.0.2/")).await.is_ok());
        assert!(local.check_literal(&url("http://169.254.169.254/")).await.is_err());
        assert!(local.is_home(&url("http://127.0.0.1:5000/x")) && !local.is_home(&url("http://127.0.0.1/")));
    }

    #[tokio::test]
    async fn names_are_checked_when_they_resolve() {
        let url: Url = "https://8.8.8.8/".parse().unwrap();
        let resolver = GuardedResolver(Arc::new(Guard::new(&url, HashSet::new())));
        let error = match resolver.resolve("localhost".parse().unwrap()).await {
            Ok(_) => panic!("localhost must be refused"),
            Err(error) => error,
        };
        assert_eq!(error.downcast_ref::<Blocked>().unwrap().class, Class::Loopback);
    }
}
