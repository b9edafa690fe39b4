//! The way to a proxy's admin API, for commands and for the checkup: where it is, whom to trust there, and which token to
//! bring.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
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
use crate::config::{Config, Listen, Password, Secret, TlsIdentity, TokenPlaces};

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
}

/// What to bring there.
#[derive(Clone, Debug, Default)]
pub struct Tokens {
    /// In the order in which they are tried; none: a call goes without.
    pub tokens: Vec<Secret>,
    /// For people: where tokens were looked for in vain.
    pub missed: Vec<String>,
}

impl AdminAddress {
    /// Where somebody says that it is.
    pub fn at(url: Url) -> AdminAddress {
        AdminAddress {
            url,
            socket: None,
            ip: None,
            certificate: None,
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
        let places = config.admin.listen.iter().filter(|at| at.port() != Some(0));
        places
            .map(|at| match at {
                Listen::Unix(path) => AdminAddress::at_socket(path),
                Listen::Tcp(address) => AdminAddress::of(*address, config),
            })
            .collect()
    }

    fn of(listen: SocketAddr, config: &Config) -> Result<AdminAddress, String> {
        let ip = reached(listen);
        let url = |text: String| text.parse().map_err(|error| format!("{text}: {error}"));
        Ok(match config.admin.tls.as_ref().map(|tls| &tls.identity) {
            None => AdminAddress::at(url(format!("http://{ip}"))?),
            Some(TlsIdentity::Files { cert, .. }) => AdminAddress {
                certificate: Some(cert.clone()),
                ..AdminAddress::at(url(format!("https://{ip}"))?)
            },
            // Its certificate is for these names, and nobody has to resolve them here.
            Some(TlsIdentity::Acme) => {
                let name = config.acme.as_ref().and_then(|acme| acme.names.first());
                let host = name.map_or_else(|| ip.ip().to_string(), String::clone);
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

    /// Whether what is sent there stays on this machine, so that nobody on a network can read it.
    pub fn is_local(&self) -> bool {
        let ip = match self.url.host() {
            _ if self.socket.is_some() || self.ip.is_some() => return true,
            Some(url::Host::Domain(name)) => return name.eq_ignore_ascii_case("localhost"),
            Some(url::Host::Ipv4(ip)) => IpAddr::V4(ip),
            Some(url::Host::Ipv6(ip)) => IpAddr::V6(ip),
            None => return false,
        };
        // Only an address of this machine can be bound.
        ip.to_canonical().is_loopback() || UdpSocket::bind((ip, 0)).is_ok()
    }

    /// The addresses of this machine that it may stand for.
    fn ips(&self) -> Vec<IpAddr> {
        match (self.ip, self.url.host()) {
            (Some(at), _) => vec![at.ip()],
            (None, Some(url::Host::Ipv4(ip))) => vec![IpAddr::V4(ip)],
            (None, Some(url::Host::Ipv6(ip))) => vec![IpAddr::V6(ip)],
            (None, _) => vec![IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)],
        }
    }

    /// Whether a token would cross a network unencrypted.
    pub fn is_clear(&self) -> bool {
        self.url.scheme() == "http" && !self.is_local()
    }

    /// The tokens to try. What `$LARDER_ADMIN_TOKEN_FILE` names comes before the configuration, and that before what is
    /// found on this machine; a file of this machine is only for a proxy of this machine. Blocking, briefly.
    ///
    /// Errors: a token that was named cannot be read.
    pub fn tokens(&self, places: &TokenPlaces, configured: Option<&Password>) -> Result<Tokens, String> {
        if let Some(path) = &places.file {
            match token::read_named(path) {
                Ok(FoundToken { token, .. }) => return Ok(Tokens::one(token)),
                // The proxy that would make it may have been given another token.
                Err(why) if configured.is_none() => return Err(why),
                Err(_) => {}
            }
        }
        if let Some(password) = configured {
            let token = password.read().map_err(|why| format!("admin.token_file: {why}"))?;
            return Ok(Tokens::one(token));
        }
        let port = self.url.port_or_known_default().unwrap_or_default();
        if self.socket.is_some() || !self.is_local() {
            return Ok(Tokens::default());
        }
        let search = token::find(places, port);
        let mut tokens = Tokens {
            missed: search.missed,
            ..Tokens::default()
        };
        let takers: Vec<u32> = self
            .ips()
            .into_iter()
            .flat_map(|ip| listening::owners((ip, port).into()))
            .collect();
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
        Ok(tokens)
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
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
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
            ("[::]:5001", "http://[::1]:5001/"),
            ("192.0.2.7:80", "http://192.0.2.7/"),
            ("unix:/run/larder/admin.sock", "unix:/run/larder/admin.sock"),
        ] {
            assert_eq!(shown(&format!("[admin]\nlisten = \"{listen}\"\n")), [reached]);
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
        ] {
            let address = AdminAddress::at(url.parse().unwrap());
            assert_eq!(address.is_clear(), is_clear, "{url}");
        }
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
            let configured = configured.map(|text| Password::Value(Secret::new(text)));
            let tokens = address.tokens(&places(named), configured.as_ref());
            let tokens = tokens.map(|tokens| tokens.tokens.iter().map(|t| t.reveal().to_owned()).collect::<Vec<_>>());
            tokens.map_err(|why| why.contains("LARDER_ADMIN_TOKEN_FILE"))
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
