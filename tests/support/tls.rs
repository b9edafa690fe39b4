//! TLS on the near side: clients that verify and clients that look.

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Takes every certificate.
#[derive(Debug)]
pub struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let provider = rustls::crypto::ring::default_provider();
        provider.signature_verification_algorithms.supported_schemes()
    }
}

/// One that believes `root` and nobody else, and shows `identity` if there is one.
#[derive(Clone)]
pub struct Client(TlsConnector);

pub struct Identity(pub CertificateDer<'static>, pub rcgen::KeyPair);

impl Client {
    pub fn trusting(root: CertificateDer<'static>, identity: Option<&Identity>) -> Client {
        let mut roots = RootCertStore::empty();
        roots.add(root).expect("a root");
        let builder = builder().with_root_certificates(roots);
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some(Identity(certificate, key)) => {
                let key = rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der());
                let shown = builder.with_client_auth_cert(vec![certificate.clone()], key.into());
                shown.expect("an identity")
            }
        };
        Client(TlsConnector::from(Arc::new(config)))
    }

    /// The status of a GET, or why there was none.
    pub async fn get(&self, to: SocketAddr, name: &str, path: &str) -> Result<u16, String> {
        let mut stream = connect(&self.0, to, name).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.map_err(|e| e.to_string())?;
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.map_err(|e| e.to_string())?;
        let text = String::from_utf8_lossy(&all).into_owned();
        let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
        status.ok_or(text)
    }
}

/// The certificate that is shown to who asks for `name`.
pub async fn shown(to: SocketAddr, name: &str) -> Result<CertificateDer<'static>, String> {
    let config = builder()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody));
    let connector = TlsConnector::from(Arc::new(config.with_no_client_auth()));
    let stream = connect(&connector, to, name).await?;
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    chain
        .first()
        .map(|own| own.clone().into_owned())
        .ok_or("none".to_owned())
}

fn builder() -> rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier> {
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("TLS")
}

async fn connect(
    connector: &TlsConnector,
    to: SocketAddr,
    name: &str,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, String> {
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    let tcp = TcpStream::connect(to).await.map_err(|e| e.to_string())?;
    connector.connect(name, tcp).await.map_err(|e| e.to_string())
}
