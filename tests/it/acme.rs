//! Certificates that Larder gets for itself: a directory that looks, listeners that answer, clients that verify.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, SystemTime};

use larder::config::Listen;
use serde_json::Value;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::support::acme::Directory;
use super::support::client::Ask;
use super::support::larder::Larder;
use super::support::tls::{self, Client, Identity};
use super::support::toml::Toml;
use super::support::upstream::Upstream;
use super::support::within;

const NAME: &str = "larder.example";

fn with_acme(toml: &mut Toml, directory: &Directory) {
    toml.set(&["server", "tls"], "acme", true);
    section(toml, directory, NAME);
}

fn section(toml: &mut Toml, directory: &Directory, name: &str) {
    toml.set(&["acme"], "names", vec![name.to_owned()]);
    toml.set(&["acme"], "directory", directory.url());
    toml.set(&["acme"], "accept_terms", true);
}

/// Until a client that trusts the directory gets an answer.
async fn until_trusted(client: &Client, to: SocketAddr, name: &str) {
    within("a certificate that clients trust", async {
        while client.get(to, name, "/v2/").await != Ok(200) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

async fn readiness(larder: &Larder) -> Value {
    let response = Ask::get("/readyz").send(larder.admin()).await.expect(200);
    serde_json::from_slice(&response.body).unwrap()
}

fn subject(certificate: &[u8]) -> String {
    X509Certificate::from_der(certificate).unwrap().1.subject().to_string()
}

#[tokio::test]
async fn by_a_handshake_kept_over_a_restart_and_ordered_again_for_other_names() {
    let (directory, upstream) = (Directory::start().await, Upstream::start().await);
    directory.tire_of_nonces(1);
    let larder = Larder::start(&upstream, |toml| {
        with_acme(toml, &directory);
        toml.set(&["acme"], "contact", "ops@larder.example");
    })
    .await;
    let to = larder.registry();
    // The directory does not look yet: it is served all the same, and whoever looks sees what is going on.
    let first = tls::shown(to, NAME).await.unwrap();
    assert!(subject(&first).contains("waiting for its first certificate"));
    let checks = readiness(&larder).await.to_string();
    assert!(checks.contains("degraded") && checks.contains("none yet"), "{checks}");
    let client = Client::trusting(directory.root(), None);
    client.get(to, NAME, "/v2/").await.unwrap_err();

    directory.lead_to(to);
    until_trusted(&client, to, NAME).await;
    assert_eq!(directory.orders(), [[NAME]]);
    assert_eq!(directory.contacts(), [serde_json::json!(["mailto:ops@larder.example"])]);
    within("readiness", async {
        while !readiness(&larder).await.to_string().contains("until 2") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let metrics = larder.metrics().await;
    let figure = |name: &str| -> f64 {
        let line = metrics.lines().find(|line| line.starts_with(name)).unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    assert!(figure("larder_acme_expires_timestamp_seconds ") > 1e9);
    assert!(figure("larder_acme_orders_total{result=\"ok\"}") >= 1.0);
    for file in ["accounts.json", "certificate.json"] {
        let found = std::fs::metadata(larder.cache().join("acme").join(file)).unwrap();
        assert_eq!(found.permissions().mode() & 0o777, 0o600, "{file}");
    }

    let before = tls::shown(to, NAME).await.unwrap();
    let larder = larder.restart().await;
    // From the first handshake on.
    assert_eq!(tls::shown(larder.registry(), NAME).await.unwrap(), before);
    assert_eq!(directory.orders().len(), 1);

    let other = "other.example";
    directory.lead_nowhere();
    let stopped = larder.stop().await;
    let larder = stopped.start(|toml| section(toml, &directory, other)).await;
    // The one of before is better than none until the other is there.
    assert_eq!(tls::shown(larder.registry(), other).await.unwrap(), before);
    directory.lead_to(larder.registry());
    until_trusted(&client, larder.registry(), other).await;
    assert_eq!(directory.orders(), [[NAME], [other]]);
    assert_eq!(directory.accounts(), 1, "the account is kept");
}

/// An authority brings no certificate of its own; everybody else needs one.
#[tokio::test]
async fn where_clients_need_a_certificate() {
    let (directory, upstream) = (Directory::start().await, Upstream::start().await);
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["node".to_owned()]).unwrap();
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, made.cert.pem()).unwrap();
    let larder = Larder::start(&upstream, |toml| {
        toml.set(&["listener", "nodes"], "listen", "127.0.0.1:0");
        toml.set(&["listener", "nodes", "tls"], "acme", true);
        toml.set(&["listener", "nodes", "tls"], "client_ca", ca.to_str().unwrap());
        section(toml, &directory, NAME);
    })
    .await;
    let Listen::Tcp(to) = larder.listeners()[0].at[0] else {
        panic!("no address")
    };
    directory.lead_to(to);
    let identity = Identity(made.cert.der().clone(), made.signing_key);
    let known = Client::trusting(directory.root(), Some(&identity));
    until_trusted(&known, to, NAME).await;
    let stranger = Client::trusting(directory.root(), None);
    stranger.get(to, NAME, "/v2/").await.unwrap_err();
    // The main listener is not touched by any of it.
    larder.get("/v2/").await.expect(200);
}

#[tokio::test]
async fn by_a_file() {
    let (directory, upstream) = (Directory::start().await, Upstream::start().await);
    let files = free_address();
    let larder = Larder::start(&upstream, |toml| {
        with_acme(toml, &directory);
        toml.set(&["acme"], "challenge", "http-01");
        toml.set(&["acme"], "http_listen", files.to_string());
    })
    .await;
    directory.lead_to(files);
    let client = Client::trusting(directory.root(), None);
    until_trusted(&client, larder.registry(), NAME).await;
    // Nothing else is there, and the answer is taken down.
    for path in [
        "/",
        "/v2/",
        "/.well-known/acme-challenge/",
        "/.well-known/acme-challenge/t1",
        "/metrics",
    ] {
        Ask::get(path).send(files).await.expect(404);
    }
}

/// Where nobody asks for a certificate, nobody is asked for one.
#[tokio::test]
async fn nothing_is_dialled_without_a_listener_for_it() {
    let (directory, upstream) = (Directory::start().await, Upstream::start().await);
    let larder = Larder::start(&upstream, |toml| section(toml, &directory, NAME)).await;
    larder.get("/v2/").await.expect(200);
    assert!(!larder.cache().join("acme").exists());
    assert!(directory.asked().is_empty());
}

/// The proxy runs with what it had when the directory has gone, and with what came when its own state was lost.
#[tokio::test]
async fn a_directory_that_lost_its_accounts() {
    let (directory, upstream) = (Directory::start().await, Upstream::start().await);
    let larder = Larder::start(&upstream, |toml| with_acme(toml, &directory)).await;
    directory.lead_to(larder.registry());
    let client = Client::trusting(directory.root(), None);
    until_trusted(&client, larder.registry(), NAME).await;
    directory.forget_accounts();
    directory.lead_nowhere();
    let stopped = larder.stop().await;
    std::fs::write(stopped.cache().join("acme/certificate.json"), "{ torn").unwrap();
    let larder = stopped.start(|_| {}).await;
    directory.lead_to(larder.registry());
    until_trusted(&client, larder.registry(), NAME).await;
    assert_eq!((directory.orders().len(), directory.accounts()), (2, 1));
}

#[tokio::test]
async fn an_account_that_is_bound_to_another() {
    let (directory, upstream) = (Directory::start().await, Upstream::start().await);
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("eab.key");
    std::fs::write(
        &key,
        "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W\n",
    )
    .unwrap();
    let larder = Larder::start(&upstream, |toml| {
        with_acme(toml, &directory);
        toml.set(&["acme"], "eab_kid", "kid-1");
        toml.set(&["acme"], "eab_key_file", key.to_str().unwrap());
    })
    .await;
    directory.lead_to(larder.registry());
    until_trusted(&Client::trusting(directory.root(), None), larder.registry(), NAME).await;
    assert_eq!(directory.bindings(), ["kid-1"]);
}

/// A port that nobody has at this moment.
fn free_address() -> SocketAddr {
    let probe = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    probe.local_addr().unwrap()
}

/// The certificate's end is near: another is ordered, named as its replacement where the directory knows such things.
#[tokio::test]
async fn renewed_when_the_directory_says_so() {
    let (directory, upstream) = (Directory::start().await, Upstream::start().await);
    let larder = Larder::start(&upstream, |toml| with_acme(toml, &directory)).await;
    directory.lead_to(larder.registry());
    let client = Client::trusting(directory.root(), None);
    until_trusted(&client, larder.registry(), NAME).await;
    let first = tls::shown(larder.registry(), NAME).await.unwrap();
    let stopped = larder.stop().await;
    // As if it had come a day ago.
    let file = stopped.cache().join("acme/certificate.json");
    let mut kept: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    kept["came_ms"] = (kept["came_ms"].as_u64().unwrap() - 86_400_000).into();
    std::fs::write(&file, kept.to_string()).unwrap();
    let now = SystemTime::now();
    directory.lead_nowhere();
    directory.suggest(now - Duration::from_secs(7200), now - Duration::from_secs(3600));
    let larder = stopped.start(|_| {}).await;
    directory.lead_to(larder.registry());
    within("the renewal", async {
        while tls::shown(larder.registry(), NAME)
            .await
            .is_ok_and(|shown| shown == first)
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(client.get(larder.registry(), NAME, "/v2/").await, Ok(200));
    let id = instant_id(&first);
    assert_eq!(directory.replaced(), Some(id));
    // It says so of the new one, too, and is not heard again so soon.
    assert_eq!(directory.orders().len(), 2);
}

/// RFC 9773, 4.1.
fn instant_id(certificate: &[u8]) -> String {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use x509_parser::extensions::ParsedExtension;
    let (_, read) = X509Certificate::from_der(certificate).unwrap();
    let key = read.iter_extensions().find_map(|one| match one.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(found) => found.key_identifier.as_ref().map(|id| id.0.to_vec()),
        _ => None,
    });
    let serial = URL_SAFE_NO_PAD.encode(read.raw_serial());
    format!("{}.{serial}", URL_SAFE_NO_PAD.encode(key.unwrap()))
}
