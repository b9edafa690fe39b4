//! A collector of traces: takes OTLP over HTTP, and answers as it is told.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use larder::telemetry::trace::otlp::{self, Any, ExportRequest};
use prost::Message as _;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::within;

/// One span, as it came.
#[derive(Clone, Debug)]
pub struct Told {
    pub trace: String,
    pub id: String,
    /// Empty for the beginning of a trace.
    pub parent: String,
    pub name: String,
    pub kind: i32,
    pub start: u64,
    pub end: u64,
    pub attributes: BTreeMap<String, String>,
    /// Trace and span of each.
    pub links: Vec<(String, String)>,
    pub is_error: bool,
    pub what: String,
    pub state: String,
    pub flags: u32,
}

impl Told {
    /// An attribute; empty if it has none of that name.
    pub fn get(&self, key: &str) -> &str {
        self.attributes.get(key).map_or("", String::as_str)
    }
}

#[derive(Default)]
struct Seen {
    spans: Vec<Told>,
    resource: BTreeMap<String, String>,
    /// The heads of the requests.
    heads: Vec<String>,
}

/// Dropped, it is gone.
pub struct Collector {
    address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
    status: Arc<AtomicU16>,
    came: watch::Receiver<()>,
    listening: AbortHandle,
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

impl Collector {
    pub async fn start() -> Collector {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (seen, status) = (Arc::<Mutex<Seen>>::default(), Arc::new(AtomicU16::new(200)));
        let (tell, came) = watch::channel(());
        let (all, says) = (seen.clone(), status.clone());
        let listening = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (seen, says, tell) = (all.clone(), says.clone(), tell.clone());
                tokio::spawn(async move {
                    take(stream, &seen, says.load(Ordering::Relaxed)).await;
                    tell.send_replace(());
                });
            }
        });
        Collector {
            address,
            seen,
            status,
            came,
            listening: listening.abort_handle(),
        }
    }

    /// What goes into `traces.endpoint`.
    pub fn endpoint(&self) -> String {
        format!("http://{}/v1/traces", self.address)
    }

    /// What it says from now on.
    pub fn answers(&self, status: u16) {
        self.status.store(status, Ordering::Relaxed);
    }

    pub fn spans(&self) -> Vec<Told> {
        self.look(|seen| seen.spans.clone())
    }

    pub fn resource(&self) -> BTreeMap<String, String> {
        self.look(|seen| seen.resource.clone())
    }

    /// The heads of all requests.
    pub fn heads(&self) -> Vec<String> {
        self.look(|seen| seen.heads.clone())
    }

    fn look<T>(&self, look: impl FnOnce(&Seen) -> T) -> T {
        look(&self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until what came has what is wanted, and gives all of it.
    pub async fn until(&self, what: &str, has: impl Fn(&[Told]) -> bool) -> Vec<Told> {
        let mut came = self.came.clone();
        let waiting = async {
            loop {
                let spans = self.spans();
                if has(&spans) {
                    return spans;
                }
                came.changed().await.expect("a collector");
            }
        };
        match tokio::time::timeout(super::DEADLINE, waiting).await {
            Ok(spans) => spans,
            Err(_) => panic!("waited in vain for {what}; came: {:#?}", self.spans()),
        }
    }

    /// Waits for the requests of so many clients to end, and gives all spans there are by then.
    pub async fn until_answered(&self, n: usize) -> Vec<Told> {
        let servers = |spans: &[Told]| spans.iter().filter(|span| span.kind == SERVER).count() >= n;
        self.until("the spans of the requests", servers).await
    }
}

pub const INTERNAL: i32 = 1;
pub const SERVER: i32 = 2;
pub const CLIENT: i32 = 3;

async fn take(mut stream: TcpStream, seen: &Mutex<Seen>, status: u16) {
    let mut bytes = Vec::new();
    let (head, body) = loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8(bytes[..at].to_vec()).expect("a head in UTF-8");
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length")
                    .then(|| value.trim().parse().expect("a length"))
            });
            let end = at + 4 + length.unwrap_or(0_usize);
            if bytes.len() >= end {
                break (head, bytes[at + 4..end].to_vec());
            }
        }
        if within("a request", stream.read_buf(&mut bytes)).await.unwrap_or(0) == 0 {
            return;
        }
    };
    {
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        if (200..300).contains(&status) {
            let request = ExportRequest::decode(body.as_slice()).expect("a message of OTLP");
            read(request, &mut seen);
        }
        seen.heads.push(head);
    }
    let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    let _ = stream.write_all(answer.as_bytes()).await;
}

fn read(request: ExportRequest, seen: &mut Seen) {
    for from in request.resource_spans {
        seen.resource = texts(from.resource.unwrap_or_default().attributes);
        let spans = from.scope_spans.into_iter().flat_map(|scope| scope.spans);
        seen.spans.extend(spans.map(told));
    }
}

fn told(span: otlp::Span) -> Told {
    let status = span.status.unwrap_or_default();
    Told {
        trace: hex(&span.trace_id),
        id: hex(&span.span_id),
        parent: hex(&span.parent_span_id),
        name: span.name,
        kind: span.kind,
        start: span.start_time_unix_nano,
        end: span.end_time_unix_nano,
        attributes: texts(span.attributes),
        links: span
            .links
            .iter()
            .map(|link| (hex(&link.trace_id), hex(&link.span_id)))
            .collect(),
        is_error: status.code == otlp::ERROR,
        what: status.message,
        state: span.trace_state,
        flags: span.flags,
    }
}

fn texts(attributes: Vec<otlp::KeyValue>) -> BTreeMap<String, String> {
    let text = |value: Any| match value {
        Any::Text(text) => text,
        Any::Flag(flag) => flag.to_string(),
        Any::Number(number) => number.to_string(),
    };
    attributes
        .into_iter()
        .filter_map(|pair| Some((pair.key, text(pair.value?.value?))))
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
