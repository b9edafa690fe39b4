//! A certificate authority: a small real ACME directory (RFC 8555) on loopback that does as it is told, and looks itself.
//!
//! `jws` takes requests apart and checks their signatures and nonces; `validate` connects back and looks for the answer to a
//! challenge as an authority does (RFC 8737; RFC 8555, 8.3). It can refuse, ask for patience, lead away and lie.

mod jws;
mod validate;

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{BasicConstraints, CertificateParams, CertificateSigningRequestParams, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};
use tokio::sync::watch;

use jws::Signed;

/// What happens in place of the answer to an order.
#[derive(Clone, Debug)]
pub struct Trouble {
    pub status: u16,
    /// What follows `urn:ietf:params:acme:error:`; none: an answer that is no problem document.
    pub kind: Option<&'static str>,
    pub retry_after: Option<u64>,
}

/// What is wrong with what is issued, or with where the directory leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// A certificate for somebody else's key.
    OtherKey,
    /// For another name.
    OtherName,
    /// One that has expired.
    Expired,
    /// Orders lead to this port of loopback.
    Away(u16),
    /// An authorization for a name that nobody ordered.
    Stranger,
}

/// Cheap to clone; the server ends with the runtime that it was started on.
#[derive(Clone)]
pub struct Directory {
    pub address: SocketAddr,
    inner: Arc<Inner>,
}

struct Inner {
    home: String,
    root: Issuer<'static, KeyPair>,
    root_der: rustls::pki_types::CertificateDer<'static>,
    root_pem: String,
    /// Where names lead: validation waits for it.
    target: watch::Sender<Option<SocketAddr>>,
    state: Mutex<Book>,
}

struct Book {
    nonces: HashSet<String>,
    next: u64,
    /// Public keys (JWK) by the account's address.
    accounts: HashMap<String, Value>,
    contacts: HashMap<String, Value>,
    orders: Vec<Order>,
    troubles: VecDeque<Trouble>,
    lie: Option<Lie>,
    /// Of what is issued.
    life: Duration,
    /// What is said to who asks when to renew: start and end.
    window: Option<(SystemTime, SystemTime)>,
    bindings: Vec<String>,
    stale_nonces: u32,
    asked: Vec<String>,
}

struct Order {
    names: Vec<Value>,
    replaces: Option<String>,
    account: String,
    token: String,
    proven: Option<Result<(), String>>,
    chain: Option<String>,
}

impl Directory {
    pub async fn start() -> Directory {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.use_authority_key_identifier_extension = true;
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, format!("authority {}", fastrand::u64(..)));
        let key = KeyPair::generate().expect("a key");
        let root = params.self_signed(&key).expect("a root");
        let inner = Inner {
            home: format!("http://{address}"),
            root_der: root.der().clone(),
            root_pem: root.pem(),
            root: Issuer::new(params, key),
            target: watch::Sender::new(None),
            state: Mutex::new(Book {
                nonces: HashSet::new(),
                next: 0,
                accounts: HashMap::new(),
                contacts: HashMap::new(),
                orders: Vec::new(),
                troubles: VecDeque::new(),
                lie: None,
                life: Duration::from_secs(90 * 86_400),
                window: None,
                bindings: Vec::new(),
                stale_nonces: 0,
                asked: Vec::new(),
            }),
        };
        let directory = Directory {
            address,
            inner: Arc::new(inner),
        };
        let router = Router::new().fallback(answer).with_state(directory.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        directory
    }

    pub fn url(&self) -> String {
        format!("{}/directory", self.inner.home)
    }

    pub fn root(&self) -> rustls::pki_types::CertificateDer<'static> {
        self.inner.root_der.clone()
    }

    /// Every name leads there from now on, at the port of the challenge.
    pub fn lead_to(&self, target: SocketAddr) {
        self.inner.target.send_replace(Some(target));
    }

    /// From now on it waits until it is known where names lead.
    pub fn lead_nowhere(&self) {
        self.inner.target.send_replace(None);
    }

    /// The next orders fail like this, one after the other.
    pub fn fail(&self, troubles: impl IntoIterator<Item = Trouble>) {
        self.book(|book| book.troubles.extend(troubles));
    }

    pub fn lie(&self, lie: Option<Lie>) {
        self.book(|book| book.lie = lie);
    }

    pub fn live(&self, life: Duration) {
        self.book(|book| book.life = life);
    }

    /// When to renew, as it says it.
    pub fn suggest(&self, start: SystemTime, end: SystemTime) {
        self.book(|book| book.window = Some((start, end)));
    }

    /// So many requests are told that their nonce is bad, though it is not.
    pub fn tire_of_nonces(&self, requests: u32) {
        self.book(|book| book.stale_nonces = requests);
    }

    /// As after the loss of a database.
    pub fn forget_accounts(&self) {
        self.book(|book| book.accounts.clear());
    }

    /// Orders that were placed, refused ones not included: their names.
    pub fn orders(&self) -> Vec<Vec<String>> {
        let name = |name: &Value| name["value"].as_str().unwrap_or_default().to_owned();
        self.book(|book| {
            book.orders
                .iter()
                .map(|order| order.names.iter().map(name).collect())
                .collect()
        })
    }

    /// What the last order said it replaces.
    pub fn replaced(&self) -> Option<String> {
        self.book(|book| book.orders.last()?.replaces.clone())
    }

    pub fn accounts(&self) -> usize {
        self.book(|book| book.accounts.len())
    }

    pub fn contacts(&self) -> Vec<Value> {
        self.book(|book| book.contacts.values().cloned().collect())
    }

    /// `kid` of the external accounts that accounts were bound to.
    pub fn bindings(&self) -> Vec<String> {
        self.book(|book| book.bindings.clone())
    }

    /// Method and path of every request.
    pub fn asked(&self) -> Vec<String> {
        self.book(|book| book.asked.clone())
    }

    fn book<T>(&self, look: impl FnOnce(&mut Book) -> T) -> T {
        look(&mut self.inner.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn nonce(&self) -> HeaderValue {
        let nonce = format!("n{:x}", fastrand::u128(..));
        self.book(|book| book.nonces.insert(nonce.clone()));
        HeaderValue::from_str(&nonce).expect("a nonce")
    }

    fn at(&self, path: &str) -> String {
        format!("{}{path}", self.inner.home)
    }

    /// Waits until it is known where names lead, and looks there.
    async fn validate(&self, at: usize, kind: &str) -> Result<(), String> {
        let (name, token, account) = self.book(|book| {
            let order = &book.orders[at];
            let name = order.names[0]["value"].as_str().unwrap_or_default().to_owned();
            (name, order.token.clone(), book.accounts[&order.account].clone())
        });
        let mut targets = self.inner.target.subscribe();
        let target = *targets.wait_for(Option::is_some).await.expect("a directory that lives");
        let authorization = format!("{token}.{}", jws::thumbprint(&account));
        let target = target.expect("a target");
        match kind {
            "tls-alpn-01" => validate::handshake(target, &name, &authorization).await,
            _ => validate::file(target, &name, &token, &authorization).await,
        }
    }

    /// Signs what was asked for, or lies.
    fn issue(&self, request: &[u8]) -> String {
        let (lie, life) = self.book(|book| (book.lie, book.life));
        let mut request = CertificateSigningRequestParams::from_der(&request.to_vec().into()).expect("a request");
        let now = SystemTime::now();
        let from = now - Duration::from_secs(3600).min(life / 100);
        request.params.not_before = from.into();
        request.params.not_after = (from + life).into();
        request.params.use_authority_key_identifier_extension = true;
        request.params.serial_number = Some(fastrand::u64(1..).into());
        match lie {
            Some(Lie::OtherName) => {
                let other = CertificateParams::new(["other.example".to_owned()]).expect("a name");
                request.params.subject_alt_names = other.subject_alt_names;
            }
            Some(Lie::Expired) => {
                request.params.not_before = (now - Duration::from_secs(9000)).into();
                request.params.not_after = (now - Duration::from_secs(3600)).into();
            }
            _ => {}
        }
        let own = if lie == Some(Lie::OtherKey) {
            let key = KeyPair::generate().expect("a key");
            request.params.signed_by(&key, &self.inner.root)
        } else {
            request.signed_by(&self.inner.root)
        };
        format!("{}{}", own.expect("a certificate").pem(), self.inner.root_pem)
    }
}

async fn answer(State(directory): State<Directory>, method: Method, uri: Uri, body: Bytes) -> Response {
    let path = uri.path().to_owned();
    directory.book(|book| book.asked.push(format!("{method} {path}")));
    let mut response = match (method.as_str(), path.as_str()) {
        ("GET", "/directory") => listing(&directory),
        ("HEAD", "/nonce") => StatusCode::OK.into_response(),
        ("GET", path) if path.starts_with("/renewal/") => renewal(&directory),
        ("POST", _) => match jws::open(&directory, &path, &body) {
            Ok(signed) => post(&directory, &path, signed).await,
            Err((kind, why)) => problem(400, kind, &why),
        },
        _ => StatusCode::NOT_FOUND.into_response(),
    };
    response.headers_mut().insert("replay-nonce", directory.nonce());
    response
}

fn listing(directory: &Directory) -> Response {
    let order = match directory.book(|book| book.lie) {
        Some(Lie::Away(port)) => format!("http://127.0.0.1:{port}/order"),
        _ => directory.at("/order"),
    };
    let mut listing = json!({
        "newNonce": directory.at("/nonce"),
        "newAccount": directory.at("/account"),
        "newOrder": order,
    });
    if directory.book(|book| book.window.is_some()) {
        listing["renewalInfo"] = directory.at("/renewal").into();
    }
    json_of(200, &[], &listing)
}

fn renewal(directory: &Directory) -> Response {
    let Some((start, end)) = directory.book(|book| book.window) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let shown = |at: SystemTime| jiff::Timestamp::try_from(at).expect("a time").to_string();
    let window = json!({ "suggestedWindow": { "start": shown(start), "end": shown(end) } });
    json_of(200, &[("retry-after", "21600")], &window)
}

async fn post(directory: &Directory, path: &str, signed: Signed) -> Response {
    match path.trim_start_matches('/').split_once('/').unwrap_or((&path[1..], "")) {
        ("account", "") => account(directory, &signed),
        ("account", _) => {
            let contact = signed.payload["contact"].clone();
            directory.book(|book| book.contacts.insert(signed.account, contact));
            json_of(200, &[], &json!({ "status": "valid" }))
        }
        ("order", "") => order(directory, &signed),
        (kind, rest) => {
            let (number, rest) = rest.split_once('/').unwrap_or((rest, ""));
            let at: usize = number.parse().expect("the number of an order");
            match (kind, rest) {
                ("order", "") => json_of(200, &[], &shown_order(directory, at)),
                ("authorization", "") => json_of(200, &[], &authorization(directory, at)),
                ("challenge", kind) => {
                    let proven = directory.validate(at, kind).await;
                    directory.book(|book| book.orders[at].proven = Some(proven));
                    json_of(200, &[], &challenge(directory, at, kind, false))
                }
                ("finalize", "") => {
                    let request = signed.payload["csr"].as_str().unwrap_or_default();
                    let chain = directory.issue(&URL_SAFE_NO_PAD.decode(request).expect("base64url"));
                    directory.book(|book| book.orders[at].chain = Some(chain));
                    json_of(200, &[], &shown_order(directory, at))
                }
                ("certificate", "") => {
                    let chain = directory.book(|book| book.orders[at].chain.clone()).unwrap_or_default();
                    ([("content-type", "application/pem-certificate-chain")], chain).into_response()
                }
                _ => StatusCode::NOT_FOUND.into_response(),
            }
        }
    }
}

fn account(directory: &Directory, signed: &Signed) -> Response {
    if signed.payload["termsOfServiceAgreed"] != json!(true) {
        return problem(403, "userActionRequired", "agree first");
    }
    if let Some(binding) = signed.payload["externalAccountBinding"]["protected"].as_str() {
        let header = URL_SAFE_NO_PAD.decode(binding).expect("base64url");
        let header: Value = serde_json::from_slice(&header).expect("a header");
        let kid = header["kid"].as_str().unwrap_or_default().to_owned();
        directory.book(|book| book.bindings.push(kid));
    }
    let at = directory.book(|book| {
        book.next += 1;
        directory.at(&format!("/account/{}", book.next))
    });
    directory.book(|book| {
        book.accounts.insert(at.clone(), signed.key.clone());
        book.contacts.insert(at.clone(), signed.payload["contact"].clone());
    });
    json_of(201, &[("location", &at)], &json!({ "status": "valid" }))
}

fn order(directory: &Directory, signed: &Signed) -> Response {
    if let Some(trouble) = directory.book(|book| book.troubles.pop_front()) {
        let mut response = match trouble.kind {
            Some(kind) => problem(trouble.status, kind, "as it was told"),
            None => (StatusCode::from_u16(trouble.status).expect("a status"), "<html>").into_response(),
        };
        if let Some(seconds) = trouble.retry_after {
            response.headers_mut().insert("retry-after", seconds.into());
        }
        return response;
    }
    let order = Order {
        names: signed.payload["identifiers"].as_array().expect("names").clone(),
        replaces: signed.payload["replaces"].as_str().map(str::to_owned),
        account: signed.account.clone(),
        token: format!("t{:x}", fastrand::u128(..)),
        proven: None,
        chain: None,
    };
    assert_eq!(order.names.len(), 1, "this authority takes one name an order");
    let at = directory.book(|book| {
        book.orders.push(order);
        book.orders.len() - 1
    });
    let place = directory.at(&format!("/order/{at}"));
    json_of(201, &[("location", &place)], &shown_order(directory, at))
}

fn shown_order(directory: &Directory, at: usize) -> Value {
    directory.book(|book| {
        let order = &book.orders[at];
        let status = match (&order.proven, &order.chain) {
            (_, Some(_)) => "valid",
            (None, _) => "pending",
            (Some(Ok(())), None) => "ready",
            (Some(Err(_)), None) => "invalid",
        };
        let mut shown = json!({
            "status": status,
            "identifiers": order.names,
            "authorizations": [directory.at(&format!("/authorization/{at}"))],
            "finalize": directory.at(&format!("/finalize/{at}")),
        });
        if order.chain.is_some() {
            shown["certificate"] = directory.at(&format!("/certificate/{at}")).into();
        }
        if let Some(replaces) = &order.replaces {
            shown["replaces"] = replaces.as_str().into();
        }
        shown
    })
}

fn authorization(directory: &Directory, at: usize) -> Value {
    let status = directory.book(|book| match book.orders[at].proven {
        None => "pending",
        Some(Ok(())) => "valid",
        Some(Err(_)) => "invalid",
    });
    let name = directory.book(|book| match book.lie {
        Some(Lie::Stranger) => json!({ "type": "dns", "value": "stranger.example" }),
        _ => book.orders[at].names[0].clone(),
    });
    let challenges = ["http-01", "tls-alpn-01"].map(|kind| challenge(directory, at, kind, status != "pending"));
    json!({ "status": status, "identifier": name, "challenges": challenges })
}

/// An error is told with the authorization, as Let's Encrypt does it: a challenge that was just posted is "processing".
fn challenge(directory: &Directory, at: usize, kind: &str, with_error: bool) -> Value {
    directory.book(|book| {
        let order = &book.orders[at];
        let mut shown = json!({
            "type": kind,
            "url": directory.at(&format!("/challenge/{at}/{kind}")),
            "token": order.token,
            "status": if with_error { "invalid" } else { "processing" },
        });
        if let (Some(Err(why)), true) = (&order.proven, with_error) {
            shown["error"] = json!({ "type": "urn:ietf:params:acme:error:unauthorized", "detail": why, "status": 403 });
        }
        shown
    })
}

fn problem(status: u16, kind: &str, detail: &str) -> Response {
    let problem = json!({ "type": format!("urn:ietf:params:acme:error:{kind}"), "detail": detail, "status": status });
    json_of(status, &[("content-type", "application/problem+json")], &problem)
}

fn json_of(status: u16, headers: &[(&'static str, &str)], value: &Value) -> Response {
    let mut response = (StatusCode::from_u16(status).expect("a status"), value.to_string()).into_response();
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert("content-type", json);
    for (name, value) in headers {
        let value = HeaderValue::from_str(value).expect("a header");
        response.headers_mut().insert(HeaderName::from_static(name), value);
    }
    response
}
