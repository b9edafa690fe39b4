//! TLS, and what happens when one side expects it and the other does not.

use std::path::PathBuf;

use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::*;
use crate::config::{ServerTls, TlsIdentity};
use crate::http::server::tls::Certificates;

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: larder\r\nConnection: close\r\n\r\n";

/// Certificate files in a folder of their own.
pub(super) struct Files {
    _folder: tempfile::TempDir,
    cert: PathBuf,
    key: PathBuf,
    pub(super) tls: ServerTls,
}

impl Files {
    pub(super) fn new() -> Files {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| -> PathBuf { folder.path().join(name) };
        let (cert, key) = (at("cert.pem"), at("key.pem"));
        let identity = TlsIdentity::Files {
            cert: cert.clone(),
            key: key.clone(),
        };
        Files {
            _folder: folder,
            cert,
            key,
            tls: ServerTls {
                identity,
                client_ca: None,
            },
        }
    }

    /// Writes a new certificate for `larder`.
    pub(super) fn renew(&self) -> CertificateDer<'static> {
        let made = rcgen::generate_simple_self_signed(["larder".to_owned()]).unwrap();
        std::fs::write(&self.cert, made.cert.pem()).unwrap();
        std::fs::write(&self.key, made.signing_key.serialize_pem()).unwrap();
        made.cert.der().clone()
    }
}

async fn start_tls(files: &Files) -> Server {
    let certificates = Certificates::load_with(&files.tls, &Arc::default(), Duration::ZERO).unwrap();
    start_with(roomy(), Some(certificates), HANG).await
}

pub(super) fn connector(
    trusted: &CertificateDer<'static>,
    alpn: &[&str],
    identity: Option<&rcgen::CertifiedKey<rcgen::KeyPair>>,
) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(made) => {
            let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
            builder
                .with_client_auth_cert(vec![made.cert.der().clone()], key)
                .unwrap()
        }
    };
    config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    TlsConnector::from(Arc::new(config))
}

async fn handshake(server: &Server, connector: &TlsConnector) -> io::Result<TlsStream<TcpStream>> {
    connector
        .connect(ServerName::try_from("larder").unwrap(), server.connect().await)
        .await
}

#[tokio::test]
async fn http1_and_http2_by_alpn() {
    let files = Files::new();
    let trusted = files.renew();
    let server = start_tls(&files).await;
    for alpn in [&["http/1.1"][..], &[]] {
        let mut stream = handshake(&server, &connector(&trusted, alpn, None)).await.unwrap();
        stream.write_all(GET).await.unwrap();
        assert!(
            read_to_end(&mut stream).await.starts_with("HTTP/1.1 200 OK"),
            "{alpn:?}"
        );
    }
    let mut stream = handshake(&server, &connector(&trusted, &["h2", "http/1.1"], None))
        .await
        .unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    stream
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .await
        .unwrap();
    let mut frame = [0; 9];
    stream.read_exact(&mut frame).await.unwrap();
    assert_eq!(frame[3], 4, "SETTINGS comes first");
    drop(stream);
    server.stopped().await;
}

#[tokio::test]
async fn a_break_over_tls_is_an_orderly_end() {
    let files = Files::new();
    let trusted = files.renew();
    let server = start_tls(&files).await;
    let mut stream = handshake(&server, &connector(&trusted, &["http/1.1"], None))
        .await
        .unwrap();
    stream
        .write_all(b"GET /broken HTTP/1.1\r\nHost: larder\r\n\r\n")
        .await
        .unwrap();
    // rustls reports a missing close_notify as an error, and so would read_to_end.
    assert!(read_to_end(&mut stream).await.ends_with("what there is"));
    server.stopped().await;
}

#[tokio::test]
async fn http_on_the_tls_port_is_told_so() {
    let files = Files::new();
    files.renew();
    let server = start_tls(&files).await;
    let answer = server.tell(GET).await;
    assert_eq!(
        answer,
        "HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"
    );
    server.stopped().await;
}

#[tokio::test]
async fn tls_on_the_plain_port_is_closed_at_once() {
    let server = start(roomy()).await;
    let answer = server.tell(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03").await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(
        head.starts_with("HTTP/1.1 400 Bad Request"),
        "containerd looks for HTTP/ (R-C25): {answer}"
    );
    assert!(
        head.contains(&format!("Content-Length: {}\r\n", body.len())),
        "{answer}"
    );
    let files = Files::new();
    handshake(&server, &connector(&files.renew(), &[], None))
        .await
        .expect_err("no TLS here");
    server.stopped().await;
}

#[tokio::test]
async fn renewed_files_are_taken_up_and_bad_ones_are_not() {
    let files = Files::new();
    let old = files.renew();
    let server = start_tls(&files).await;
    handshake(&server, &connector(&old, &[], None)).await.unwrap();
    std::fs::write(&files.cert, "nonsense").unwrap();
    handshake(&server, &connector(&old, &[], None))
        .await
        .expect("the old certificate stays");
    let new = files.renew();
    handshake(&server, &connector(&new, &[], None))
        .await
        .expect("the new certificate is shown");
    handshake(&server, &connector(&old, &[], None))
        .await
        .expect_err("the old one is not");
    server.stopped().await;
}

#[tokio::test]
async fn clients_need_a_certificate_where_a_ca_is_named() {
    let mut files = Files::new();
    let trusted = files.renew();
    let mine = rcgen::generate_simple_self_signed(["client".to_owned()]).unwrap();
    let ca = files.cert.with_file_name("ca.pem");
    std::fs::write(&ca, mine.cert.pem()).unwrap();
    files.tls.client_ca = Some(ca);
    let server = start_tls(&files).await;
    let mut stream = handshake(&server, &connector(&trusted, &[], Some(&mine)))
        .await
        .unwrap();
    stream.write_all(GET).await.unwrap();
    assert!(read_to_end(&mut stream).await.starts_with("HTTP/1.1 200 OK"));
    // In TLS 1.3 the client learns of the refusal when it reads.
    if let Ok(mut stream) = handshake(&server, &connector(&trusted, &[], None)).await {
        let _ = stream.write_all(GET).await;
        stream.read_u8().await.expect_err("no answer without a certificate");
    }
    server.stopped().await;
}

#[test]
fn unusable_files_are_named() {
    let files = Files::new();
    let error = |files: &Files| {
        Certificates::load(&files.tls, &Arc::default())
            .err()
            .unwrap()
            .to_string()
    };
    assert!(error(&files).contains("key.pem"), "{}", error(&files));
    files.renew();
    let other = Files::new();
    other.renew();
    std::fs::copy(&other.key, &files.key).unwrap();
    assert!(error(&files).contains("cannot be used"), "{}", error(&files));
    std::fs::write(&files.cert, "").unwrap();
    assert!(
        error(&files).contains("cert.pem: it holds no certificate"),
        "{}",
        error(&files)
    );
}
