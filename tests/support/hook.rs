//! An endpoint that webhooks are sent to: it does as it is told, and writes down what came.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::DEADLINE;

/// What is said to one delivery.
#[derive(Clone, Debug)]
pub enum Reply {
    Status(u16),
    /// With such a `Retry-After`.
    After(u16, String),
    /// A redirect to there.
    Elsewhere(String),
    /// The head of a 200, and a body without an end.
    Endless,
    /// Nothing at all, for as long as the other side waits.
    Stall,
    /// The connection ends without an answer.
    Cut,
    /// 400 to every envelope that holds this text, 204 to others.
    Unless(String),
}

/// One POST.
#[derive(Clone, Debug)]
pub struct Delivery {
    pub at: Instant,
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Whether it was answered by 2xx.
    pub is_taken: bool,
}

impl Delivery {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    pub fn events(&self) -> Vec<Value> {
        let body: Value = serde_json::from_slice(&self.body).expect("an envelope in JSON");
        body["events"].as_array().expect("events").clone()
    }
}

struct Shared {
    /// Taken one by one; then `otherwise`.
    script: Mutex<VecDeque<Reply>>,
    otherwise: Mutex<Reply>,
    seen: Mutex<Vec<Delivery>>,
    changes: watch::Sender<usize>,
}

/// Ends when it is dropped.
pub struct Endpoint {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Endpoint {
    /// Takes everything.
    pub async fn start() -> Endpoint {
        Endpoint::start_with(Reply::Status(204), &[]).await
    }

    /// Says `script` in its order, and then `otherwise`.
    pub async fn start_with(otherwise: Reply, script: &[Reply]) -> Endpoint {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared {
            script: Mutex::new(script.iter().cloned().collect()),
            otherwise: Mutex::new(otherwise),
            seen: Mutex::default(),
            changes: watch::Sender::new(0),
        });
        let serving = shared.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(serving.clone(), stream));
            }
        });
        Endpoint {
            address,
            shared,
            accepting,
        }
    }

    /// With a path that is nobody's business.
    pub fn url(&self) -> String {
        format!("http://{}/path-t0ken", self.address)
    }

    /// From now on.
    pub fn says(&self, otherwise: Reply) {
        *lock(&self.shared.otherwise) = otherwise;
    }

    pub fn deliveries(&self) -> Vec<Delivery> {
        lock(&self.shared.seen).clone()
    }

    /// Those that it took, in the order of their coming.
    pub fn events(&self) -> Vec<Value> {
        let seen = lock(&self.shared.seen);
        let taken = seen.iter().filter(|delivery| delivery.is_taken);
        taken.flat_map(Delivery::events).collect()
    }

    pub fn forget(&self) {
        lock(&self.shared.seen).clear();
    }

    /// Until that is so; looked at after each delivery.
    pub async fn until(&self, what: &str, is_so: impl Fn(&Endpoint) -> bool) {
        let mut changes = self.shared.changes.subscribe();
        let waiting = async {
            while !is_so(self) {
                changes.changed().await.expect("an endpoint");
            }
        };
        if tokio::time::timeout(DEADLINE, waiting).await.is_err() {
            let seen = self.deliveries();
            let texts: Vec<_> = seen
                .iter()
                .map(|one| (one.is_taken, String::from_utf8_lossy(&one.body)))
                .collect();
            panic!("waited in vain for {what}; {} deliveries came: {texts:#?}", seen.len());
        }
    }

    /// Until it took so many events; gives them.
    pub async fn until_events(&self, n: usize) -> Vec<Value> {
        self.until(&format!("{n} events"), |endpoint| endpoint.events().len() >= n)
            .await;
        self.events()
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(shared: Arc<Shared>, mut stream: TcpStream) {
    let mut buffer = Vec::new();
    while let Some(mut delivery) = read(&mut stream, &mut buffer).await {
        let scripted = lock(&shared.script).pop_front();
        let reply = scripted.unwrap_or_else(|| lock(&shared.otherwise).clone());
        let (status, extra) = match &reply {
            Reply::Status(status) => (*status, String::new()),
            Reply::After(status, after) => (*status, format!("Retry-After: {after}\r\n")),
            Reply::Elsewhere(to) => (307, format!("Location: {to}\r\n")),
            Reply::Endless => (200, String::new()),
            Reply::Unless(text) if String::from_utf8_lossy(&delivery.body).contains(text) => (400, String::new()),
            Reply::Unless(_) => (204, String::new()),
            Reply::Stall | Reply::Cut => (0, String::new()),
        };
        delivery.is_taken = matches!(status, 200..=299);
        lock(&shared.seen).push(delivery);
        shared.changes.send_modify(|n| *n += 1);
        let answer = match reply {
            Reply::Cut => return,
            Reply::Stall => {
                let mut more = [0; 1];
                let _ = stream.read(&mut more).await;
                return;
            }
            Reply::Endless => format!("HTTP/1.1 {status} X\r\n{extra}\r\n"),
            _ => format!("HTTP/1.1 {status} X\r\n{extra}Content-Length: 2\r\n\r\nno"),
        };
        let answer = if status == 204 {
            answer.replace("Content-Length: 2\r\n\r\nno", "\r\n")
        } else {
            answer
        };
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
        if matches!(reply, Reply::Endless) {
            while stream.write_all(&[b'x'; 4096]).await.is_ok() {}
            return;
        }
    }
}

/// `None` when the other side is done.
async fn read(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Delivery> {
    let end = loop {
        if let Some(at) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(buffer.drain(..end).collect()).expect("a head in ASCII");
    let mut lines = head.lines();
    let first = lines.next().expect("a request line");
    let (method, rest) = first.split_once(' ').expect("a request line");
    assert_eq!(method, "POST");
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length = headers.iter().find(|(name, _)| name == "content-length");
    let length: usize = length.expect("a length").1.parse().expect("a length");
    while buffer.len() < length {
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
    Some(Delivery {
        at: Instant::now(),
        path: rest.split(' ').next().unwrap_or_default().to_owned(),
        headers,
        body: buffer.drain(..length).collect(),
        is_taken: false,
    })
}
