//! The way to a proxy's admin API, for commands and for the checkup: where it is, whom to trust there, and which token to
//! bring.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use reqwest::ClientBuilder;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use url::Url;

use crate::admin::listening;
use crate::admin::token::{self, FoundToken};
use crate::config::{Admin, AdminPart, Config, Listen, Password, Secret, TlsIdentity, TokenPlaces};
use crate::store;

/// Where an admin API answers.
#[derive(Clone, Debug)]
pub struct AdminAddress {
    pub url: Url,
    /// A socket in the file system, in place of the URL's host and port.
    socket: Option<PathBuf>,
    /// The IP address behind the URL's host, where no name server is to be asked.
    ip: Option<SocketAddr>,
    /// A file with the certificate that the proxy shows: that one is trusted whatever it says of its name.
    certificate: Option<PathBuf>,
    /// True if nobody gave it, and a mistake may be why: the proxy that is meant may be elsewhere.
    is_stand_in: bool,
    /// A token file led here, nobody named it: nothing but that token is sent, and never a call without one.
    is_found: bool,
}

/// A command's knowledge of tokens, and of the user whose proxy it asks.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// The file that the command line names: its token is the one to bring.
    pub file: Option<PathBuf>,
    pub places: TokenPlaces,
    /// In the configuration.
    pub token: Option<Password>,
    /// The proxy's, if it is on this machine: its owner, and that of the lock in it, is the proxy's user.
    pub cache: Option<PathBuf>,
    /// Somebody has said that a named token may go there unencrypted, and to whoever listens.
    pub insecure: bool,
}

impl Known {
    pub fn of(config: &Config) -> Known {
        Known {
            places: config.admin.token_places.clone(),
            token: config.admin.token.clone(),
            cache: Some(config.cache.path.clone()),
            ..Known::default()
        }
    }

    /// By what could be read of a configuration that is refused.
    pub fn of_part(part: &AdminPart) -> Known {
        Known {
            places: part.admin.token_places.clone(),
            token: part.admin.token.clone(),
            cache: part.cache.clone(),
            ..Known::default()
        }
    }
}

/// Why there is no token to bring.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// It cannot be read, or is none.
    #[error("{0}")]
    Unreadable(String),
    /// It would cross a network unencrypted.
    #[error(
        "{0} is another machine, and the admin token would cross the network unencrypted: give it TLS (admin.tls) and call it by https, or send the token all the same with --insecure"
    )]
    Clear(String),
    /// Another user's process would have it.
    #[error(
        "uid {taker} listens at {at}, and the admin token is for a proxy of {users}: it was not sent. If that proxy is yours, run the command as uid {taker}, name its configuration by --config (its cache folder says whose it is), call it by https, or send the token all the same with --insecure"
    )]
    Taken { at: String, taker: u32, users: String },
    /// A mistake hides the address that it is for.
    #[error(
        "the configuration does not say where the admin API is, because of the mistakes above, and the admin token is not sent to {0} on a guess: put admin.listen right, or name the address by --admin"
    )]
    Unnamed(String),
}

/// What to bring there.
#[derive(Clone, Debug, Default)]
pub struct Tokens {
    /// In the order in which they are tried; none: a call goes without.
    pub tokens: Vec<Secret>,
    /// For people: where tokens were looked for in vain.
    pub missed: Vec<String>,
}

/// Returns true if the folder that a proxy names is this one, however it is written: with a slash at its end, or by a link.
pub fn is_folder(named: &str, own: &Path) -> bool {
    let named = Path::new(named);
    named == own || matches!((named.canonicalize(), own.canonicalize()), (Ok(one), Ok(other)) if one == other)
}

impl AdminAddress {
    /// Where somebody says that it is.
    pub fn at(url: Url) -> AdminAddress {
        AdminAddress {
            url,
            socket: None,
            ip: None,
            certificate: None,
            is_stand_in: false,
            is_found: false,
        }
    }

    /// A socket in the file system.
    ///
    /// Errors: never for paths that a configuration may hold.
    pub fn at_socket(path: &Path) -> Result<AdminAddress, String> {
        let url = "http://localhost/".parse().map_err(|error| format!("{error}"))?;
        Ok(AdminAddress {
            socket: Some(path.to_owned()),
            ..AdminAddress::at(url)
        })
    }

    /// Where this configuration has it; without those whose port the system chooses.
    pub fn configured(config: &Config) -> Result<Vec<AdminAddress>, String> {
        let name = config.acme.as_ref().and_then(|acme| acme.names.first());
        AdminAddress::all(&config.admin, name)
    }

    /// Where a configuration that is refused has it, and, where a mistake may hide the address, the proxy of this user
    /// that has written its token, which comes first: if there are several, nobody knows which one is meant. Blocking,
    /// briefly.
    pub fn saved(part: &AdminPart) -> Result<Vec<AdminAddress>, String> {
        let mut all = AdminAddress::all(&part.admin, part.acme_name.as_ref())?;
        if part.is_doubtful {
            let ports = token::ports(&part.admin.token_places);
            if let ([port], true) = (ports.as_slice(), all.iter().all(|at| !ports.contains(&at.port()))) {
                let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, *port));
                all.insert(0, AdminAddress::of(listen, &part.admin, part.acme_name.as_ref())?);
            }
            for address in &mut all {
                address.is_stand_in = true;
            }
        }
        Ok(all)
    }

    /// Where proxies of this very user listen by the token files that they hold, whatever this configuration says: an option
    /// of `larder serve` may have chosen the port. The same port at another address may be somebody else's, so that only
    /// the sockets of the process count that holds the file. Only its token goes there. Blocking, briefly.
    pub fn started(config: &Config) -> Vec<AdminAddress> {
        let name = config.acme.as_ref().and_then(|acme| acme.names.first());
        let running = token::running(&config.admin.token_places).into_iter();
        let all = running.flat_map(|proxy| listening::of_process(proxy.pid, proxy.port));
        all.filter_map(|listen| {
            let address = AdminAddress::of(listen, &config.admin, name).ok()?;
            Some(AdminAddress {
                is_found: true,
                ..address
            })
        })
        .collect()
    }

    fn all(admin: &Admin, acme_name: Option<&String>) -> Result<Vec<AdminAddress>, String> {
        let places = admin.listen.iter().filter(|at| at.port() != Some(0));
        places
            .map(|at| match at {
                Listen::Unix(path) => AdminAddress::at_socket(path),
                Listen::Tcp(address) => AdminAddress::of(*address, admin, acme_name),
            })
            .collect()
    }

    fn of(listen: SocketAddr, admin: &Admin, acme_name: Option<&String>) -> Result<AdminAddress, String> {
        let ip = reached(listen);
        let url = |text: String| text.parse().map_err(|error| format!("{text}: {error}"));
        Ok(match admin.tls.as_ref().map(|tls| &tls.identity) {
            None => AdminAddress::at(url(format!("http://{ip}"))?),
            Some(TlsIdentity::Files { cert, .. }) => AdminAddress {
                certificate: Some(cert.clone()),
                ..AdminAddress::at(url(format!("https://{ip}"))?)
            },
            // Its certificate is for these names, and nobody has to resolve them here.
            Some(TlsIdentity::Acme) => {
                let host = acme_name.map_or_else(|| ip.ip().to_string(), String::clone);
                AdminAddress {
                    ip: Some(ip),
                    ..AdminAddress::at(url(format!("https://{host}:{}", ip.port()))?)
                }
            }
        })
    }

    /// For people.
    pub fn shown(&self) -> String {
        match &self.socket {
            Some(path) => format!("unix:{}", path.display()),
            None => self.url.to_string(),
        }
    }

    /// True if what is sent there stays on this machine, so that nobody on a network can read it.
    pub fn is_local(&self) -> bool {
        let ip = match (self.ip, self.url.host()) {
            _ if self.socket.is_some() => return true,
            (Some(at), _) => at.ip(),
            (None, Some(url::Host::Domain(name))) => return name.eq_ignore_ascii_case("localhost"),
            (None, Some(url::Host::Ipv4(ip))) => IpAddr::V4(ip),
            (None, Some(url::Host::Ipv6(ip))) => IpAddr::V6(ip),
            (None, None) => return false,
        };
        is_of_this_machine(ip)
    }

    /// The addresses of this machine that it may stand for.
    fn ips(&self) -> Vec<IpAddr> {
        match (self.ip, self.url.host()) {
            (Some(at), _) => vec![named(at.ip())],
            (None, Some(url::Host::Ipv4(ip))) => vec![named(IpAddr::V4(ip))],
            (None, Some(url::Host::Ipv6(ip))) => vec![named(IpAddr::V6(ip))],
            (None, _) => vec![IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)],
        }
    }

    /// True if a token would cross a network unencrypted.
    pub fn is_clear(&self) -> bool {
        self.url.scheme() == "http" && !self.is_local()
    }

    /// The users whose processes take what is sent there; none where that cannot be seen: another machine, or a port of
    /// this one that the kernel forwards by rules which only root can make. Blocking, briefly.
    fn takers(&self) -> Vec<u32> {
        if let Some(path) = &self.socket {
            return owner(path).into_iter().collect();
        }
        if !self.is_local() {
            return Vec::new();
        }
        let port = self.port();
        let ips = self.ips().into_iter();
        ips.flat_map(|ip| listening::owners((ip, port).into())).collect()
    }

    fn port(&self) -> u16 {
        self.url.port_or_known_default().unwrap_or_default()
    }

    /// The tokens to try. The file that the command line names comes first, then the one of `$LARDER_ADMIN_TOKEN_FILE`,
    /// then the configuration, then what is found on this machine; a file of this machine is only for a proxy of this
    /// machine. Blocking, briefly.
    ///
    /// Errors: a token that was named cannot be read, or must not be sent there.
    pub fn tokens(&self, known: &Known) -> Result<Tokens, TokenError> {
        // Another program may have that port, and root's (a container's published port) passes every look at who listens.
        // Only a token that a proxy made for that very port may go there.
        let is_named = known.file.is_some() || known.places.file.is_some() || known.token.is_some();
        if self.is_found || self.is_stand_in && is_named {
            let made = self.made(known);
            return match made.tokens.is_empty() {
                true => Err(TokenError::Unnamed(self.shown())),
                false => Ok(made),
            };
        }
        if let Some(path) = &known.file {
            let FoundToken { token, owner, .. } =
                token::read_given(path, "--token-file").map_err(TokenError::Unreadable)?;
            return self.named(token, Some(owner), known);
        }
        if let Some(path) = &known.places.file {
            match token::read_named(path) {
                Ok(FoundToken { token, owner, .. }) => return self.named(token, Some(owner), known),
                // The proxy that would make it may have been given another token.
                Err(why) if known.token.is_none() => return Err(TokenError::Unreadable(why)),
                Err(_) => {}
            }
        }
        if let Some(password) = &known.token {
            let read = password.read_token();
            let token = read.map_err(|why| TokenError::Unreadable(format!("admin.token_file: {why}")))?;
            let file = match password {
                Password::File(path) => owner(path),
                Password::Value(_) => None,
            };
            return self.named(token, file, known);
        }
        Ok(self.made(known))
    }

    /// The tokens that proxies of this machine made for this port. Blocking, briefly.
    fn made(&self, known: &Known) -> Tokens {
        let port = self.port();
        if self.socket.is_some() || !self.is_local() {
            return Tokens::default();
        }
        let search = token::find(&known.places, port);
        let mut tokens = Tokens {
            missed: search.missed,
            ..Tokens::default()
        };
        let takers = self.takers();
        for FoundToken { token, path, owner } in search.found {
            match takers.iter().find(|taker| **taker != owner && **taker != 0) {
                None => tokens.tokens.push(token),
                // Another user's process has the port, and would have the token.
                Some(taker) => tokens.missed.push(format!(
                    "{}: it is of a proxy of uid {owner}, but uid {taker} listens at port {port}",
                    path.display()
                )),
            }
        }
        tokens
    }

    /// One that somebody has named, unless others would have it: on the network, or as a user of this machine who has taken
    /// the port. `file` is who owns the file that it is from.
    fn named(&self, token: Secret, file: Option<u32>, known: &Known) -> Result<Tokens, TokenError> {
        // A certificate says whose proxy it is.
        if known.insecure || self.url.scheme() == "https" {
            return Ok(Tokens::one(token));
        }
        if self.is_clear() {
            return Err(TokenError::Clear(self.shown()));
        }
        let mut users = vec![0, rustix::process::geteuid().as_raw()];
        users.extend(file);
        users.extend(known.cache.iter().flat_map(|cache| owners_of_cache(cache)));
        users.sort_unstable();
        users.dedup();
        match self.takers().into_iter().find(|taker| !users.contains(taker)) {
            None => Ok(Tokens::one(token)),
            Some(taker) => Err(TokenError::Taken {
                at: self.shown(),
                taker,
                users: users
                    .iter()
                    .map(|uid| format!("uid {uid}"))
                    .collect::<Vec<_>>()
                    .join(" or "),
            }),
        }
    }

    /// A client that goes there and nowhere else: no redirects, no proxy. `http2`: without asking whether the other side
    /// speaks it.
    pub fn client(&self, http2: bool) -> Result<ClientBuilder, String> {
        let mut tls = self.tls()?;
        let mut builder = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            // A proxy for the internet is no way to the machine beside this one.
            .no_proxy();
        if http2 {
            tls.alpn_protocols = vec![b"h2".to_vec()];
            builder = builder.http2_prior_knowledge();
        }
        if let Some(path) = &self.socket {
            builder = builder.unix_socket(path.as_path());
        }
        if let (Some(ip), Some(host)) = (self.ip, self.url.host_str()) {
            builder = builder.resolve(host, ip);
        }
        Ok(builder.tls_backend_preconfigured(tls))
    }

    fn tls(&self) -> Result<ClientConfig, String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let mut roots = RootCertStore::empty();
        if self.url.scheme() == "https" {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
        let own = self.certificate.as_deref().map_or_else(Vec::new, certificates);
        if own.is_empty() {
            return Ok(builder.with_root_certificates(roots).with_no_client_auth());
        }
        // It vouches for signatures, and for chains where there are roots at all.
        let by_roots = match roots.is_empty() {
            true => None,
            false => WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                .build()
                .ok(),
        };
        let verifier = OwnCertificate {
            own,
            by_roots,
            provider,
        };
        Ok(builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth())
    }
}

impl Tokens {
    fn one(token: Secret) -> Tokens {
        Tokens {
            tokens: vec![token],
            missed: Vec::new(),
        }
    }
}

/// Where a listener is reached from this machine.
fn reached(listen: SocketAddr) -> SocketAddr {
    SocketAddr::new(named(listen.ip()), listen.port())
}

/// By "every address" the kernel takes its own. That of IPv6 is also IPv4's, and the only one of both on a machine whose
/// IPv6 is switched off, as in most containers.
fn named(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V6(ip) if ip.is_unspecified() && has_ipv6() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        ip => ip,
    }
}

/// Returns true if `::1` is an address of this machine.
fn has_ipv6() -> bool {
    UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_ok()
}

/// Asks the kernel for the way there, without sending anything: only to itself does an address send from itself. To bind it
/// would prove nothing, since `net.ipv4.ip_nonlocal_bind` lets every address be bound.
fn is_of_this_machine(ip: IpAddr) -> bool {
    let ip = named(ip).to_canonical();
    if ip.is_loopback() {
        return true;
    }
    let any = match ip {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    // Any port will do but 0.
    let source = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((ip, 9))?;
        socket.local_addr()
    });
    source.is_ok_and(|source| source.ip() == ip)
}

fn owner(path: &Path) -> Option<u32> {
    std::fs::metadata(path).ok().map(|meta| meta.uid())
}

/// The users whose proxy may hold it: the folder's, and the lock's where not everybody could have made that.
fn owners_of_cache(cache: &Path) -> Vec<u32> {
    let Ok(folder) = std::fs::metadata(cache) else {
        return Vec::new();
    };
    let lock = owner(&store::lock_file(cache)).filter(|_| folder.mode() & 0o002 == 0);
    [Some(folder.uid()), lock].into_iter().flatten().collect()
}

/// Those in a PEM file; none if it cannot be read: then the system's authorities decide.
fn certificates(file: &Path) -> Vec<CertificateDer<'static>> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    read.unwrap_or_default()
}

/// Takes the very certificate that the configuration names, whoever signed it and whatever names it has: the file says
/// whose it is. Any other has to be vouched for as usual.
#[derive(Debug)]
struct OwnCertificate {
    own: Vec<CertificateDer<'static>>,
    by_roots: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<rustls::crypto::CryptoProvider>,
}

impl ServerCertVerifier for OwnCertificate {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.own.first().is_some_and(|own| own == end_entity) {
            return Ok(ServerCertVerified::assertion());
        }
        match &self.by_roots {
            Some(roots) => roots.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now),
            None => Err(rustls::CertificateError::UnknownIssuer.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(toml: &str) -> Vec<String> {
        let config = Config::from_toml(toml).unwrap();
        let all = AdminAddress::configured(&config).unwrap();
        all.iter().map(AdminAddress::shown).collect()
    }

    #[test]
    fn listeners_that_can_be_reached() {
        for (listen, reached) in [
            ("127.0.0.1:5001", "http://127.0.0.1:5001/"),
            ("0.0.0.0:5001", "http://127.0.0.1:5001/"),
            ("192.0.2.7:80", "http://192.0.2.7/"),
            ("unix:/run/larder/admin.sock", "unix:/run/larder/admin.sock"),
        ] {
            assert_eq!(shown(&format!("[admin]\nlisten = \"{listen}\"\n")), [reached]);
        }
        let every = match has_ipv6() {
            true => "http://[::1]:5001/",
            false => "http://127.0.0.1:5001/",
        };
        for listen in ["[::]:5001", ":5001", "*:5001"] {
            assert_eq!(shown(&format!("[admin]\nlisten = \"{listen}\"\n")), [every]);
        }
        assert!(shown("[admin]\nlisten = \"127.0.0.1:0\"\n").is_empty());
        let acme = "[admin]\ntls = { acme = true }\n[acme]\naccept_terms = true\nnames = [\"larder.example\"]\n";
        assert_eq!(shown(acme), ["https://larder.example:5001/"]);
    }

    #[test]
    fn tokens_in_clear_stay_on_this_machine() {
        for (url, is_clear) in [
            ("http://127.0.0.1:5001", false),
            ("http://localhost:5001", false),
            ("http://[::1]:5001", false),
            ("http://[::ffff:127.0.0.1]:5001", false),
            ("http://127.7.7.7", false),
            ("https://larder.example", false),
            ("http://larder.example:5001", true),
            ("http://localhost.example:5001", true),
            // Documentation's own: no machine has it (RFC 5737).
            ("http://192.0.2.7:5001", true),
            ("http://[2001:db8::7]:5001", true),
            ("http://0.0.0.0:5001", false),
            ("http://[::]:5001", false),
        ] {
            let address = AdminAddress::at(url.parse().unwrap());
            assert_eq!(address.is_clear(), is_clear, "{url}");
        }
    }

    /// The machine's own address in its network, where it is in one.
    #[test]
    fn an_address_of_this_machine_is_local() {
        let way = UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
            socket.connect("192.0.2.7:9")?;
            socket.local_addr()
        });
        match way {
            Ok(own) => assert!(is_of_this_machine(own.ip()), "{own}"),
            Err(error) => eprintln!("not run: this machine is in no network ({error})"),
        }
    }

    /// Without anybody's word a token that was named stays here: the next machine might be anybody's.
    #[test]
    fn a_named_token_goes_nowhere_in_clear() {
        let known = |insecure: bool| Known {
            token: Some(Password::Value(Secret::new("configured-token"))),
            insecure,
            ..Known::default()
        };
        let there = AdminAddress::at("http://192.0.2.7:5001".parse().unwrap());
        assert!(matches!(there.tokens(&known(false)), Err(TokenError::Clear(_))));
        assert_eq!(there.tokens(&known(true)).unwrap().tokens.len(), 1);
        let secure = AdminAddress::at("https://192.0.2.7:5001".parse().unwrap());
        assert_eq!(secure.tokens(&known(false)).unwrap().tokens.len(), 1);
    }

    #[test]
    fn whose_cache_it_is() {
        let cache = tempfile::tempdir().unwrap();
        let own = rustix::process::geteuid().as_raw();
        assert_eq!(owners_of_cache(cache.path()), [own]);
        assert!(owners_of_cache(&cache.path().join("absent")).is_empty());
        if !rustix::process::geteuid().is_root() {
            eprintln!("not run: a lock of another user takes root");
            return;
        }
        use std::os::unix::fs::PermissionsExt as _;
        let lock = store::lock_file(cache.path());
        std::fs::write(&lock, "1").unwrap();
        std::os::unix::fs::chown(&lock, Some(7), Some(7)).unwrap();
        assert_eq!(owners_of_cache(cache.path()), [own, 7]);
        // Whoever may write there could have made it.
        std::fs::set_permissions(cache.path(), std::fs::Permissions::from_mode(0o1777)).unwrap();
        assert_eq!(owners_of_cache(cache.path()), [own]);
    }

    #[test]
    fn which_token_is_brought() {
        use std::os::unix::fs::PermissionsExt as _;
        let root = tempfile::tempdir().unwrap();
        let own = root.path().join("larder");
        std::fs::create_dir(&own).unwrap();
        std::fs::set_permissions(&own, std::fs::Permissions::from_mode(0o700)).unwrap();
        std::fs::write(own.join("admin-5001.token"), "found-by-its-port\n").unwrap();
        let named = root.path().join("named");
        std::fs::write(&named, "named-by-a-variable\n").unwrap();
        let places = |named: Option<&Path>| {
            let runtime = root.path().display().to_string();
            let mut variables = vec![("XDG_RUNTIME_DIR".to_owned(), runtime)];
            variables.extend(named.map(|path| ("LARDER_ADMIN_TOKEN_FILE".to_owned(), path.display().to_string())));
            TokenPlaces::of(&crate::config::Environment {
                variables: variables.into_iter().collect(),
                ..Default::default()
            })
        };
        let brought = |url: &str, named: Option<&Path>, configured: Option<&str>| {
            let address = AdminAddress::at(url.parse().unwrap());
            let tokens = address.tokens(&Known {
                places: places(named),
                token: configured.map(|text| Password::Value(Secret::new(text))),
                ..Known::default()
            });
            let tokens = tokens.map(|tokens| tokens.tokens.iter().map(|t| t.reveal().to_owned()).collect::<Vec<_>>());
            tokens.map_err(|why| why.to_string().contains("LARDER_ADMIN_TOKEN_FILE"))
        };
        let one = |text: &str| Ok(vec![text.to_owned()]);
        let here = "http://127.0.0.1:5001";
        assert_eq!(brought(here, None, None), one("found-by-its-port"));
        assert_eq!(brought("http://127.0.0.1:5002", None, None), Ok(vec![]));
        // What lies on this machine is for proxies of this machine.
        assert_eq!(brought("https://larder.example:5001", None, None), Ok(vec![]));
        assert_eq!(brought(here, None, Some("configured-token")), one("configured-token"));
        assert_eq!(
            brought(here, Some(&named), Some("configured-token")),
            one("named-by-a-variable")
        );
        assert_eq!(
            brought("https://larder.example:5001", Some(&named), None),
            one("named-by-a-variable")
        );
        let absent = root.path().join("absent");
        assert_eq!(brought(here, Some(&absent), None), Err(true));
        assert_eq!(
            brought(here, Some(&absent), Some("configured-token")),
            one("configured-token")
        );
    }
}
