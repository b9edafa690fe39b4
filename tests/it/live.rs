//! What changes while it runs, and what does not notice: rules, listeners, certificates, the audit log, schedules.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use larder::config::Listen;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::client::{Ask, Connection, Response};
use crate::support::gate::Gate;
use crate::support::larder::Larder;
use crate::support::process::LarderProcess;
use crate::support::ran::ask as command;
use crate::support::toml::Toml;
use crate::support::upstream::{On, TokenPolicy, Upstream, basic};
use crate::support::{blob, manifest, within};

const REPO: &str = "library/alpine";

fn rules(toml: &mut Toml, rules: Value) {
    let rules: toml::Value = serde_json::from_value(rules).unwrap();
    toml.set(&["access"], "rule", rules);
}

fn address(larder: &Larder, name: &str) -> SocketAddr {
    let open = larder.open().into_iter().find(|open| open.name == name);
    match open.unwrap_or_else(|| panic!("no listener {name}")).at[0] {
        Listen::Tcp(address) => address,
        Listen::Unix(_) => panic!("no port"),
    }
}

/// Until nobody listens there any more.
async fn closed(at: SocketAddr) {
    within("the address to be closed", async {
        while tokio::net::TcpStream::connect(at).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

async fn call(larder: &Larder, method: &str, path: &str, body: &str) -> Response {
    let ask = Ask::new(method, path).header("content-type", "application/json");
    ask.body(body).send(larder.admin()).await
}

/// A rule that goes and one that comes count for the next request: on the same connection, hot or not, by either HTTP. A
/// body that is on its way goes on.
#[tokio::test]
async fn rules_count_for_the_next_request() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[300_000]);
    let large = upstream.blob(REPO, 400_000);
    let gate = Gate::closed();
    upstream.on(On::Blob(large)).stall_after(100_000, &gate);
    let mut larder = Larder::start(&upstream, |t| {
        t.cache("tag_ttl", "1h");
        rules(t, json!([{ "images": "docker.io/*", "may": "fetch" }]));
    })
    .await;
    let hot = Ask::get(manifest(REPO, "1"));
    let mut kept = Connection::open(larder.registry()).await;
    for _ in 0..3 {
        let (answer, connection) = kept.ask(&hot).await;
        answer.expect_content(&image.manifest);
        kept = connection;
    }
    // reqwest wants one in any case.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().http2_prior_knowledge().build().unwrap();
    let url = format!("http://{}{}", larder.registry(), manifest(REPO, "1"));
    let by_http2 = async || client.get(&url).send().await.unwrap().status().as_u16();
    assert_eq!((by_http2().await, by_http2().await), (200, 200));
    let slow = tokio::spawn(Ask::get(blob(REPO, large)).send(larder.registry()));
    gate.wait_for_arrivals(1).await;

    larder
        .reload(|t| rules(t, json!([{ "images": "ghcr.io/*", "may": "fetch" }])))
        .unwrap();
    let (answer, connection) = kept.ask(&hot).await;
    answer.expect(404);
    let (answer, kept) = connection.ask(&Ask::head(blob(REPO, image.layers[0]))).await;
    answer.expect(404);
    assert_eq!(by_http2().await, 404);
    larder.head(manifest(REPO, "1")).await.expect(404);
    gate.open();
    slow.await.unwrap().expect_content(&large);

    larder
        .reload(|t| rules(t, json!([{ "images": "docker.io/library/*", "may": "fetch" }])))
        .unwrap();
    let (answer, _kept) = kept.ask(&hot).await;
    answer.expect_content(&image.manifest);
    assert_eq!(by_http2().await, 200);
}

/// What was public becomes private: nobody is told what is in memory (L8).
#[tokio::test]
async fn hot_answers_do_not_outlive_their_policy() {
    let upstream = Upstream::start().await;
    let image = upstream.image("acme/app", "1", &[1000]);
    let mut larder = Larder::start(&upstream, |t| {
        t.cache("tag_ttl", "1h");
    })
    .await;
    for _ in 0..3 {
        larder
            .get(manifest("acme/app", "1"))
            .await
            .expect_content(&image.manifest);
    }
    upstream.require_token(TokenPolicy::new().credentials("larder", "secret"));
    larder
        .reload(|t| {
            t.upstream("docker.io", "username", "larder");
            t.upstream("docker.io", "password", "secret");
        })
        .unwrap();
    larder.get(manifest("acme/app", "1")).await.expect(404);
    larder.head(manifest("acme/app", "1")).await.expect(404);
    larder.head(blob("acme/app", image.layers[0])).await.expect(404);
}

/// Users, and the tokens that they have: one that is signed by this process outlives a reload, but not its user.
#[tokio::test]
async fn users_and_their_tokens() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[10]);
    let folder = tempfile::tempdir().unwrap();
    let users = folder.path().join("users");
    let write = |names: &[&str]| {
        let line = |name: &&str| format!("{name}:{}\n", bcrypt::hash("pw", 4).unwrap());
        std::fs::write(&users, names.iter().map(line).collect::<String>()).unwrap();
    };
    write(&["alice", "bob"]);
    let mut larder = Larder::start(&upstream, |t| {
        t.set(&["access"], "htpasswd_file", users.to_str().unwrap());
        rules(t, json!([{ "who": "authenticated", "may": "fetch" }]));
    })
    .await;
    let login = async |larder: &Larder, name: &str| {
        let ask = Ask::get("/token?service=larder").header("Authorization", basic(name, "pw"));
        let token = ask.send(larder.registry()).await.expect(200).json();
        format!("Bearer {}", token["token"].as_str().unwrap())
    };
    let pull = async |larder: &Larder, with: &str| {
        let ask = Ask::get(manifest(REPO, "1")).header("Authorization", with);
        ask.send(larder.registry()).await
    };
    let (alice, bob) = (login(&larder, "alice").await, login(&larder, "bob").await);
    pull(&larder, &alice).await.expect_content(&image.manifest);
    write(&["bob", "carol"]);
    larder.reload(|_| {}).unwrap();
    pull(&larder, &alice).await.expect(401);
    pull(&larder, &basic("alice", "pw")).await.expect(401);
    pull(&larder, &bob).await.expect(200);
    pull(&larder, &basic("carol", "pw")).await.expect(200);
    // A rule that names somebody else.
    larder
        .reload(|t| rules(t, json!([{ "who": "carol", "may": "fetch" }])))
        .unwrap();
    pull(&larder, &bob).await.expect(404);
    pull(&larder, &login(&larder, "carol").await).await.expect(200);
    // A bad file refuses all of it.
    std::fs::write(&users, "carol:plain\n").unwrap();
    let error = larder
        .reload(|t| rules(t, json!([{ "who": "bob", "may": "fetch" }])))
        .unwrap_err()
        .to_string();
    assert!(error.contains("htpasswd_file") && !error.contains("plain"), "{error}");
    pull(&larder, &bob).await.expect(404);
}

/// Listeners come, go and change; whoever downloads through one that goes gets all of it.
#[tokio::test]
async fn listeners_come_and_go() {
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, 400_000);
    let gate = Gate::closed();
    upstream.on(On::Blobs).stall_after(100_000, &gate);
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("larder.sock");
    let mut larder = Larder::start(&upstream, |_| {}).await;
    let before = larder.registry();
    larder
        .reload(|t| {
            t.set(&["listener", "ci"], "listen", "127.0.0.1:0");
            t.set(&["listener", "local"], "listen", format!("unix:{}", socket.display()));
        })
        .unwrap();
    let ci = address(&larder, "ci");
    assert_eq!(address(&larder, "main"), before);
    let slow = tokio::spawn(Ask::get(blob(REPO, digest)).send(ci));
    gate.wait_for_arrivals(1).await;
    Ask::get("/v2/").send(ci).await.expect(200);
    assert!(std::os::unix::net::UnixStream::connect(&socket).is_ok());

    // Nothing of this touches what is open.
    larder.reload(|t| rules(t, json!([{ "may": "fetch" }]))).unwrap();
    assert_eq!(address(&larder, "ci"), ci);

    larder
        .reload(|t| {
            t.unset(&["listener"], "ci");
            t.unset(&["listener"], "local");
        })
        .unwrap();
    closed(ci).await;
    within("the socket's file to go", async {
        while socket.exists() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    larder.get("/v2/").await.expect(200);
    gate.open();
    slow.await.unwrap().expect_content(&digest);
}

/// `server.listen` moves: to another port, to the same one on every address, and to a listener with a name.
#[tokio::test]
async fn the_main_address_moves() {
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, 400_000);
    let gate = Gate::closed();
    upstream.on(On::Blobs).stall_after(100_000, &gate);
    let mut larder = Larder::start(&upstream, |_| {}).await;
    let first = larder.registry();
    let slow = tokio::spawn(Ask::get(blob(REPO, digest)).send(first));
    gate.wait_for_arrivals(1).await;
    // The kernel takes these for one address.
    larder
        .reload(|t| {
            t.server("listen", format!("0.0.0.0:{}", first.port()));
        })
        .unwrap();
    assert_eq!(
        address(&larder, "main").to_string(),
        format!("0.0.0.0:{}", first.port())
    );
    for _ in 0..20 {
        Ask::get("/v2/").send(first).await.expect(200);
    }
    // Nobody else can have it meanwhile.
    assert!(TcpListener::bind(first).is_err());
    let place = format!("0.0.0.0:{}", first.port());
    larder
        .reload(|t| {
            t.server("listen", "127.0.0.1:0");
            t.set(&["listener", "old"], "listen", place);
        })
        .unwrap();
    Ask::get("/v2/").send(first).await.expect(200);
    Ask::get("/v2/").send(address(&larder, "main")).await.expect(200);
    larder
        .reload(|t| {
            t.unset(&["listener"], "old");
        })
        .unwrap();
    closed(first).await;
    gate.open();
    slow.await.unwrap().expect_content(&digest);
}

/// One address that is taken: nothing of the whole configuration holds.
#[tokio::test]
async fn a_taken_address_refuses_all_of_it() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[10]);
    let folder = tempfile::tempdir().unwrap();
    let (audit, socket) = (folder.path().join("audit.log"), folder.path().join("a.sock"));
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().map(|at| (taken, at)).unwrap();
    let mut larder = Larder::start(&upstream, |_| {}).await;
    let error = larder
        .reload(|t| {
            t.server("listen", "127.0.0.1:0");
            t.set(&["listener", "a"], "listen", format!("unix:{}", socket.display()));
            t.set(&["listener", "b"], "listen", taken.1.to_string());
            t.set(&["audit"], "file", audit.to_str().unwrap());
            t.upstream("docker.io", "deny", vec!["*".to_owned()]);
            rules(t, json!([{ "may": "nothing" }]));
        })
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(&taken.1.to_string()) && error.contains("another process"),
        "{error}"
    );
    larder.get(manifest(REPO, "1")).await.expect_content(&image.manifest);
    assert_eq!(larder.open().len(), 1);
    assert_eq!(address(&larder, "main"), larder.registry());
    assert!(!socket.exists() && !audit.exists());
    let ready = Ask::get("/readyz").send(larder.admin()).await.expect(200).json();
    assert_eq!(ready["status"], "degraded");
    larder.reload(|_| {}).unwrap();
    let ready = Ask::get("/readyz").send(larder.admin()).await.expect(200).json();
    assert_eq!(ready["status"], "ready");
}

/// The operators' address moves; whoever asks through the old one is answered.
#[tokio::test]
async fn the_operators_address_moves() {
    let upstream = Upstream::start().await;
    let mut larder = Larder::start(&upstream, |_| {}).await;
    let (old, free) = (
        larder.admin(),
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap(),
    );
    let reloaded = larder
        .reload(|t| {
            t.admin("listen", free.to_string());
        })
        .unwrap();
    assert_eq!(
        (reloaded.changed, reloaded.needs_restart),
        (vec!["admin.listen".to_owned()], Vec::new())
    );
    Ask::get("/healthz").send(free).await.expect(200);
    closed(old).await;
}

/// Certificates of a test's own.
struct Authority {
    folder: PathBuf,
    authority: rcgen::Certificate,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    fn new(folder: &Path) -> Authority {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let authority = params.self_signed(&key).unwrap();
        std::fs::write(folder.join("ca.pem"), authority.pem()).unwrap();
        Authority {
            folder: folder.to_owned(),
            authority,
            issuer: rcgen::Issuer::new(params, key),
        }
    }

    fn issue(&self, name: &str) -> (rcgen::Certificate, rcgen::KeyPair) {
        let mut params = rcgen::CertificateParams::new(vec!["larder".to_owned()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = rcgen::KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    /// Files for a server; gives the certificate.
    fn write(&self, name: &str) -> Vec<u8> {
        let (certificate, key) = self.issue(name);
        std::fs::write(self.path(name, "pem"), certificate.pem()).unwrap();
        std::fs::write(self.path(name, "key"), key.serialize_pem()).unwrap();
        certificate.der().to_vec()
    }

    fn path(&self, name: &str, kind: &str) -> String {
        self.folder.join(format!("{name}.{kind}")).to_str().unwrap().to_owned()
    }

    fn tls(&self, t: &mut Toml, name: &str, client_ca: bool) {
        t.set(&["server", "tls"], "cert", self.path(name, "pem"));
        t.set(&["server", "tls"], "key", self.path(name, "key"));
        if client_ca {
            t.set(&["server", "tls"], "client_ca", self.path("ca", "pem"));
        }
    }

    /// A connection with a certificate in that name, or with none.
    async fn connect(&self, to: SocketAddr, name: Option<&str>) -> std::io::Result<Secure> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.authority.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match name {
            None => builder.with_no_client_auth(),
            Some(name) => {
                let (certificate, key) = self.issue(name);
                let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
                builder
                    .with_client_auth_cert(vec![certificate.der().clone()], key)
                    .unwrap()
            }
        };
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let tcp = tokio::net::TcpStream::connect(to).await?;
        let server = rustls::pki_types::ServerName::try_from("larder").unwrap();
        Ok(Secure(connector.connect(server, tcp).await?))
    }
}

struct Secure(tokio_rustls::client::TlsStream<tokio::net::TcpStream>);

impl Secure {
    fn certificate(&self) -> Vec<u8> {
        let chain = self.0.get_ref().1.peer_certificates().unwrap();
        chain[0].to_vec()
    }

    /// The status, as long as there is an answer.
    async fn ask(&mut self, path: &str) -> Option<u16> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: larder\r\n\r\n");
        self.0.write_all(request.as_bytes()).await.ok()?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(self.0.read_u8().await.ok()?);
        }
        let text = String::from_utf8_lossy(&head).to_ascii_lowercase();
        let length = text.lines().find_map(|line| line.strip_prefix("content-length: "));
        let mut body = vec![0; length.map_or(0, |length| length.trim().parse().unwrap())];
        self.0.read_exact(&mut body).await.ok()?;
        text.split(' ').nth(1)?.parse().ok()
    }
}

/// Off, on, with another certificate, and with one demanded of clients: on the same port, for connections that come.
#[tokio::test]
async fn tls_changes() {
    let upstream = Upstream::start().await;
    upstream.image(REPO, "1", &[10]);
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path());
    let (one, two) = (authority.write("one"), authority.write("two"));
    let mut larder = Larder::start(&upstream, |_| {}).await;
    let to = larder.registry();
    let kept = Connection::open(to).await;
    let (answer, kept) = kept.ask(&Ask::get("/v2/")).await;
    answer.expect(200);

    larder.reload(|t| authority.tls(t, "one", false)).unwrap();
    assert_eq!(address(&larder, "main"), to);
    let mut first = authority.connect(to, None).await.unwrap();
    assert_eq!(first.certificate(), one);
    assert_eq!(first.ask("/v2/").await, Some(200));
    // Whoever came without is sent away, after what he was asking for.
    let (rest, _) = within("the plain connection to end", kept.read_to_end()).await;
    assert!(rest.is_empty());
    let mut plain = Connection::open(to).await;
    plain.write(b"GET /v2/ HTTP/1.1\r\nHost: larder\r\n\r\n").await;
    let (refused, _) = plain.read_to_end().await;
    assert!(refused.starts_with(b"HTTP/1.0 400 "));

    larder.reload(|t| authority.tls(t, "two", false)).unwrap();
    let mut second = authority.connect(to, None).await.unwrap();
    assert_eq!(second.certificate(), two);
    assert_eq!(second.ask("/v2/").await, Some(200));

    // A certificate that is not there: nothing changes.
    let error = larder
        .reload(|t| authority.tls(t, "three", false))
        .unwrap_err()
        .to_string();
    assert!(error.contains("three"), "{error}");
    assert_eq!(second.ask("/v2/").await, Some(200));

    larder
        .reload(|t| {
            authority.tls(t, "two", true);
            rules(t, json!([{ "who": "cert:node-*", "may": "fetch" }]));
        })
        .unwrap();
    let mut node = authority.connect(to, Some("node-7")).await.unwrap();
    assert_eq!(node.ask(&manifest(REPO, "1")).await, Some(200));
    let nobody = async {
        let mut nobody = authority.connect(to, None).await.ok()?;
        nobody.ask("/v2/").await
    };
    assert_eq!(nobody.await, None);
    assert_eq!(second.ask("/v2/").await, None);

    // Another authority: who was vouched for by the one of before is nobody now, on his old connection too.
    let elsewhere = tempfile::tempdir().unwrap();
    let other = Authority::new(elsewhere.path());
    larder
        .reload(|t| {
            t.set(&["server", "tls"], "client_ca", other.path("ca", "pem"));
        })
        .unwrap();
    assert_eq!(node.ask(&manifest(REPO, "1")).await, None);
}

/// What a proxy begins to keep up only when it starts: told as such, and nothing of it half done.
#[tokio::test]
async fn what_takes_a_restart() {
    let upstream = Upstream::start().await;
    upstream.image(REPO, "1", &[10]);
    let mut larder = Larder::start(&upstream, |_| {}).await;
    let error = larder
        .reload(|t| {
            t.set(&["server", "tls"], "acme", true);
            t.set(&["acme"], "names", vec!["larder.example".to_owned()]);
            t.set(&["acme"], "accept_terms", true);
            rules(t, json!([{ "may": "nothing" }]));
        })
        .unwrap_err()
        .to_string();
    assert!(error.contains("[acme]") && error.contains("restart"), "{error}");
    larder.get(manifest(REPO, "1")).await.expect(200);
    let reloaded = larder
        .reload(|t| {
            t.set(&["traces"], "endpoint", "http://127.0.0.1:9");
        })
        .unwrap();
    let fixed: Vec<&str> = reloaded.needs_restart.iter().map(|fixed| fixed.key).collect();
    assert_eq!((fixed, reloaded.changed), (vec!["traces"], vec!["traces".to_owned()]));
}

/// The audit log moves, goes and comes back: each event is in the file of its time.
#[tokio::test]
async fn the_audit_log_moves() {
    let upstream = Upstream::start().await;
    upstream.image(REPO, "1", &[10]);
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (folder.path().join("first.log"), folder.path().join("second.log"));
    let mut larder = Larder::start(&upstream, |t| {
        t.cache("tag_ttl", "1h");
        t.set(&["audit"], "file", first.to_str().unwrap());
    })
    .await;
    let pulls = |file: &Path| {
        let text = std::fs::read_to_string(file).unwrap();
        text.lines().filter(|line| line.contains("\"action\":\"pull\"")).count()
    };
    for _ in 0..3 {
        larder.get(manifest(REPO, "1")).await.expect(200);
    }
    larder.until_idle().await;
    larder
        .reload(|t| {
            t.set(&["audit"], "file", second.to_str().unwrap());
        })
        .unwrap();
    // The verdict is there: so is every line.
    assert_eq!(pulls(&first), 3);
    larder.get(manifest(REPO, "1")).await.expect(200);
    larder.get(manifest(REPO, "1")).await.expect(200);
    larder
        .reload(|t| {
            t.unset(&[], "audit");
        })
        .unwrap();
    assert_eq!((pulls(&first), pulls(&second)), (3, 2));
    larder.get(manifest(REPO, "1")).await.expect(200);
    let nowhere = folder.path().join("none/audit.log");
    let error = larder.reload(|t| {
        t.set(&["audit"], "file", nowhere.to_str().unwrap());
    });
    assert!(error.unwrap_err().to_string().contains("audit.file"));
    larder
        .reload(|t| {
            t.set(&["audit"], "file", second.to_str().unwrap());
        })
        .unwrap();
    larder.get(manifest(REPO, "1")).await.expect(200);
    let _stopped = larder.stop().await;
    assert_eq!((pulls(&first), pulls(&second)), (3, 3));
}

fn prefetch(t: &mut Toml, list: Value) {
    let list: toml::Value = serde_json::from_value(list).unwrap();
    t.set(&[], "prefetch", list);
}

/// Schedules come, go and change; one that runs while it is taken out goes on to its end.
#[tokio::test]
async fn schedules_change() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[300_000]);
    let gate = Gate::closed();
    upstream.on(On::Blob(image.layers[0])).stall_after(100_000, &gate);
    let nightly = json!({ "name": "nightly", "images": ["alpine:1"], "schedule": "30 2 * * *" });
    let mut larder = Larder::start(&upstream, |t| prefetch(t, json!([nightly.clone()]))).await;
    let schedules = async |larder: &Larder| -> Vec<(String, String, u64)> {
        let list = call(larder, "GET", "/api/v1/prefetch", "").await.expect(200).json();
        let of = |s: &Value| {
            let text = |key: &str| s[key].as_str().unwrap().to_owned();
            (text("name"), text("schedule"), s["next_ms"].as_u64().unwrap())
        };
        list["schedules"].as_array().unwrap().iter().map(of).collect()
    };
    let first = schedules(&larder).await;
    let begun = call(&larder, "POST", "/api/v1/prefetch", r#"{"configured":"nightly"}"#).await;
    let job = begun.expect(202).json()["id"].as_u64().unwrap();
    gate.wait_for_arrivals(1).await;
    let twice = call(&larder, "POST", "/api/v1/prefetch", r#"{"configured":"nightly"}"#).await;
    assert_eq!(twice.expect(409).json()["error"]["code"], "busy");

    let weekly = json!({ "name": "weekly", "images": ["alpine:1"], "schedule": "0 4 * * 1" });
    larder
        .reload(|t| prefetch(t, json!([nightly.clone(), weekly.clone()])))
        .unwrap();
    let both = schedules(&larder).await;
    assert_eq!((&both[0], &*both[1].1), (&first[0], "0 4 * * 1"));
    let mut later = nightly.clone();
    later["schedule"] = "45 3 * * *".into();
    larder.reload(|t| prefetch(t, json!([later]))).unwrap();
    let changed = schedules(&larder).await;
    assert_eq!((changed.len(), &*changed[0].1), (1, "45 3 * * *"));
    assert_ne!(changed[0].2, first[0].2);
    // It is the same one still.
    call(&larder, "POST", "/api/v1/prefetch", r#"{"configured":"nightly"}"#)
        .await
        .expect(409);
    larder
        .reload(|t| {
            t.unset(&[], "prefetch");
        })
        .unwrap();
    assert!(schedules(&larder).await.is_empty());
    let unknown = call(&larder, "POST", "/api/v1/prefetch", r#"{"configured":"nightly"}"#).await;
    assert_eq!(unknown.expect(404).json()["error"]["code"], "no-prefetch");
    gate.open();
    within("the job to end", async {
        let path = format!("/api/v1/prefetch/{job}");
        while call(&larder, "GET", &path, "").await.expect(200).json()["state"] == "running" {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let ended = call(&larder, "GET", &format!("/api/v1/prefetch/{job}"), "")
        .await
        .json();
    assert_eq!(ended["state"], "done", "{ended:#}");
    upstream.go_down().await;
    larder
        .get(blob(REPO, image.layers[0]))
        .await
        .expect_content(&image.layers[0]);
}

/// Reload after reload under load: every answer is whole and right.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_reloads_under_load() {
    let upstream = Upstream::start().await;
    let images: Vec<_> = (0..40)
        .map(|n| upstream.image(REPO, &n.to_string(), &[20_000 + n]))
        .collect();
    let mut larder = Larder::start(&upstream, |t| {
        t.cache("tag_ttl", "0s");
    })
    .await;
    let (ended, pulls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let images = Arc::new(images);
    let to = larder.registry();
    let clients: Vec<_> = (0..4_usize)
        .map(|client| {
            let (ended, pulls, images) = (ended.clone(), pulls.clone(), images.clone());
            tokio::spawn(async move {
                let mut kept = Connection::open(to).await;
                for n in 0.. {
                    if ended.load(Ordering::Relaxed) {
                        return;
                    }
                    let image = &images[(7 * client + n) % images.len()];
                    let tag = (7 * client + n) % images.len();
                    let (answer, connection) = kept.ask(&Ask::get(manifest(REPO, tag))).await;
                    answer.expect_content(&image.manifest);
                    let (answer, connection) = connection.ask(&Ask::get(blob(REPO, image.layers[0]))).await;
                    answer.expect_content(&image.layers[0]);
                    kept = connection;
                    pulls.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for n in 0..200_u64 {
        larder
            .reload(|t| {
                t.upstream("docker.io", "username", format!("user-{}", n % 3));
                t.upstream("docker.io", "password", "pw");
                t.cache("tag_ttl", if n % 2 == 0 { "0s" } else { "1h" });
                t.set(&["listener", "ci"], "listen", format!("127.0.0.{}:0", 1 + n % 2));
                rules(t, json!([{ "images": format!("ghcr.io/nowhere/{n}"), "may": "nothing" }, { "may": "fetch", "private": true }]));
            })
            .unwrap();
    }
    // Between the last two something was pulled, or this shows nothing.
    let so_far = pulls.load(Ordering::Relaxed);
    within("more pulls", async {
        while pulls.load(Ordering::Relaxed) < so_far + 8 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    ended.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
}

/// `larder reload`: what has changed, what needs a restart, and why not.
#[tokio::test]
async fn the_command() {
    let upstream = Upstream::start().await;
    upstream.image(REPO, "1", &[10]);
    // Commands find the proxy by its configuration.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let larder = LarderProcess::start(&upstream, |t| {
        t.admin("listen", free.to_string());
        prefetch(
            t,
            json!([{ "name": "nightly", "images": ["alpine:1"], "schedule": "30 2 * * *" }]),
        );
    })
    .await;
    let path = larder.folder().join("proxy.toml");
    let good = std::fs::read_to_string(&path).unwrap();
    let admin = format!("http://{}", larder.admin());
    let mut toml = Toml::parse(&good);
    toml.set(&["listener", "ci"], "listen", "127.0.0.1:0");
    toml.cache("max_size", "7GiB");
    toml.set(&["log"], "format", "json");
    std::fs::write(&path, toml.text()).unwrap();
    let told = command(&larder, &["reload"]).await.expect(0).out;
    for what in [
        "cache.max_size",
        "listener.ci (new)",
        "log.format  needs a restart: until then text, then json",
    ] {
        assert!(told.contains(what), "{what} in {told}");
    }
    larder.wait_for_log("listening listener=\"ci\"").await;
    // It stays so, and is told again.
    let again = command(&larder, &["reload", "--json"]).await.expect(0).json();
    assert_eq!(again["changed"], json!(["log.format"]));
    assert_eq!(again["needs_restart"][0]["holds"], "text");
    std::fs::write(&path, format!("{good}\n[cashe]\n")).unwrap();
    // Of its own file; and by the proxy, when that is elsewhere.
    command(&larder, &["reload"]).await.expect(64);
    let elsewhere = tempfile::tempdir().unwrap();
    std::fs::write(elsewhere.path().join("proxy.toml"), "").unwrap();
    let refused = crate::support::ran::run(elsewhere.path(), &["reload", "--admin", &admin])
        .await
        .expect(64);
    assert!(
        refused.err.contains("cashe") && refused.err.contains("the previous configuration stays active"),
        "{}",
        refused.err
    );
    std::fs::write(&path, &good).unwrap();
    command(&larder, &["prefetch", "--configured", "daily"]).await.expect(1);
    let ran = command(&larder, &["prefetch", "--configured"]).await.expect(0);
    assert!(
        ran.out.contains("docker.io/library/alpine:1"),
        "{}\n{}",
        ran.out,
        ran.err
    );
    let nobody = crate::support::ran::run(elsewhere.path(), &["reload", "--admin", "http://127.0.0.1:1"]).await;
    nobody.expect(1);
}

/// A file that the configuration names changes: all is read again, without a signal.
#[tokio::test]
async fn a_named_file_changes() {
    let upstream = Upstream::start().await;
    upstream.image(REPO, "1", &[10]);
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("token.key");
    std::fs::write(&key, "the first key that signs what is handed out").unwrap();
    let users = folder.path().join("users");
    std::fs::write(&users, format!("alice:{}\n", bcrypt::hash("pw", 4).unwrap())).unwrap();
    let larder = LarderProcess::start(&upstream, |t| {
        t.set(&["access"], "htpasswd_file", users.to_str().unwrap());
        t.set(&["access"], "token_key_file", key.to_str().unwrap());
        rules(t, json!([{ "who": "alice", "may": "fetch" }]));
    })
    .await;
    let ask = Ask::get("/token?service=larder").header("Authorization", basic("alice", "pw"));
    let token = ask.send(larder.registry()).await.expect(200).json();
    let bearer = format!("Bearer {}", token["token"].as_str().unwrap());
    let pull = async || {
        let ask = Ask::get(manifest(REPO, "1")).header("Authorization", &bearer);
        ask.send(larder.registry()).await
    };
    pull().await.expect(200);
    std::fs::write(&key, "another key, so that the tokens of before end").unwrap();
    larder.wait_for_log("a file that it names has changed").await;
    pull().await.expect(401);
}
