//! What an authority does to see whose a name is.

use std::net::SocketAddr;
use std::sync::Arc;

use ring::digest::{SHA256, digest};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::super::client::Ask;
use super::super::tls::Anybody;

/// `id-pe-acmeIdentifier` (RFC 8737, 3).
const IDENTIFIER: &str = "1.3.6.1.5.5.7.1.31";

/// tls-alpn-01. Brings no certificate, offers one protocol, and expects to be sent away after the handshake.
pub async fn handshake(to: SocketAddr, name: &str, authorization: &str) -> Result<(), String> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"acme-tls/1".to_vec()];
    let tcp = TcpStream::connect(to).await.map_err(|e| format!("connecting: {e}"))?;
    let server = ServerName::try_from(name.to_owned()).map_err(|e| e.to_string())?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let mut stream = connector
        .connect(server, tcp)
        .await
        .map_err(|e| format!("handshake: {e}"))?;
    let session = stream.get_ref().1;
    if session.alpn_protocol() != Some(b"acme-tls/1") {
        return Err("another protocol was chosen".to_owned());
    }
    let chain = session.peer_certificates().unwrap_or_default().to_vec();
    let [own] = chain.as_slice() else {
        return Err(format!("{} certificates", chain.len()));
    };
    let (_, own) = X509Certificate::from_der(own).map_err(|e| e.to_string())?;
    let names = own.subject_alternative_name().ok().flatten().ok_or("no names")?;
    if !matches!(names.value.general_names.as_slice(), [GeneralName::DNSName(found)] if *found == name) {
        return Err(format!("for {:?}", names.value.general_names));
    }
    let found = own.extensions().iter().find(|one| one.oid.to_id_string() == IDENTIFIER);
    let found = found.ok_or("no acmeIdentifier")?;
    let expected = [&[0x04, 0x20][..], digest(&SHA256, authorization.as_bytes()).as_ref()].concat();
    if !found.critical || found.value != expected {
        return Err("another acmeIdentifier".to_owned());
    }
    let mut rest = Vec::new();
    let read = stream.read_to_end(&mut rest).await;
    match (read, rest.is_empty()) {
        (Ok(0), true) => Ok(()),
        other => Err(format!("not closed: {other:?}")),
    }
}

/// http-01.
pub async fn file(to: SocketAddr, name: &str, token: &str, authorization: &str) -> Result<(), String> {
    let ask = Ask::get(format!("/.well-known/acme-challenge/{token}")).header("Host", name);
    let response = ask.send(to).await;
    match response.status == 200 && response.body == authorization.as_bytes() {
        true => Ok(()),
        false => Err(format!("{} with {} bytes", response.status, response.body.len())),
    }
}
