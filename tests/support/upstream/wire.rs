//! HTTP/1.1 by hand, because no server library lets a test decide after which byte a connection dies.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use percent_encoding::percent_decode_str;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Shared;
use super::answer::{Reply, answer};
use super::record::{Outcome, Request};
use super::script::{Fault, Pace};
use crate::support::gate::Gate;

/// Bytes written at once where no fault asks for less.
const PIECE_BYTES: u64 = 32 * 1024;
const MAX_HEAD_BYTES: usize = 64 * 1024;

/// What a request is for, by its path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Ping,
    Manifest { repo: String, reference: String },
    Blob { repo: String, digest: String },
    Tags { repo: String },
    Referrers { repo: String, digest: String },
    Token,
    Storage { digest: String },
    Hop { left: usize, rest: String },
    Other,
}

impl Kind {
    pub fn repo(&self) -> Option<&str> {
        match self {
            Kind::Manifest { repo, .. } | Kind::Blob { repo, .. } => Some(repo),
            Kind::Tags { repo } | Kind::Referrers { repo, .. } => Some(repo),
            _ => None,
        }
    }

    fn reference(&self) -> &str {
        match self {
            Kind::Manifest { reference: text, .. }
            | Kind::Blob { digest: text, .. }
            | Kind::Referrers { digest: text, .. }
            | Kind::Storage { digest: text } => text,
            _ => "",
        }
    }

    /// `path` without the instance's base path.
    fn of(path: &str) -> Kind {
        let reference_layout = path.strip_prefix("/docker/registry/v2/blobs/");
        let reference_layout = reference_layout.and_then(|rest| rest.strip_suffix("/data"));
        if let Some(digest) = path.strip_prefix("/storage/").or(reference_layout) {
            return Kind::Storage {
                digest: digest.to_owned(),
            };
        }
        if let Some((left, rest)) = path.strip_prefix("/hops/").and_then(|rest| rest.split_once('/')) {
            return match left.parse() {
                Ok(left) => Kind::Hop {
                    left,
                    rest: rest.to_owned(),
                },
                Err(_) => Kind::Other,
            };
        }
        let Some(rest) = path.strip_prefix("/v2") else {
            return Kind::Other;
        };
        if matches!(rest, "" | "/") {
            return Kind::Ping;
        }
        let rest = rest.trim_start_matches('/');
        if let Some(repo) = rest.strip_suffix("/tags/list") {
            return Kind::Tags { repo: repo.to_owned() };
        }
        let split = |word: &str| {
            let (repo, reference) = rest.rsplit_once(word)?;
            (!reference.contains('/')).then(|| (repo.to_owned(), reference.to_owned()))
        };
        if let Some((repo, reference)) = split("/manifests/") {
            Kind::Manifest { repo, reference }
        } else if let Some((repo, digest)) = split("/blobs/") {
            Kind::Blob { repo, digest }
        } else if let Some((repo, digest)) = split("/referrers/") {
            Kind::Referrers { repo, digest }
        } else {
            Kind::Other
        }
    }
}

/// One connection, from accept to close.
pub async fn serve(shared: Arc<Shared>, stream: &mut TcpStream, connection: u64) {
    let mut buffer = BytesMut::new();
    while let Some(request) = read_request(&shared, stream, &mut buffer, connection).await {
        let closes = request
            .header("connection")
            .is_some_and(|v| v.eq_ignore_ascii_case("close"));
        let id = shared.log.arrived(request.clone());
        let plan = plan(&shared, &request);
        match deliver(&shared, stream, id, &request, plan).await {
            Ending::KeepAlive if closes => break,
            Ending::KeepAlive => {}
            Ending::Close => break,
            Ending::Reset => {
                stream.set_zero_linger().expect("SO_LINGER");
                return;
            }
        }
    }
    // FIN before the socket is dropped, so that what was sent arrives.
    let _ = stream.shutdown().await;
}

/// `None` when the peer is done, or gone in the middle of a request.
async fn read_request(
    shared: &Shared,
    stream: &mut TcpStream,
    buffer: &mut BytesMut,
    connection: u64,
) -> Option<Request> {
    let head_end = loop {
        if let Some(at) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
            break at;
        }
        assert!(buffer.len() < MAX_HEAD_BYTES, "a request's headers are over 64 KiB");
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    };
    let head = buffer.split_to(head_end);
    buffer.advance(4);
    let head = std::str::from_utf8(&head).expect("a request head in UTF-8");
    let mut lines = head.split("\r\n");
    let request_line = lines.next().unwrap_or_default();
    let [method, target, "HTTP/1.1"] = request_line.split(' ').collect::<Vec<_>>()[..] else {
        panic!("not an HTTP/1.1 request line: {request_line:?}");
    };
    let headers: Vec<(String, String)> = lines
        .map(|line| {
            let (name, value) = line.split_once(':').expect("a header line with a colon");
            (name.to_owned(), value.trim().to_owned())
        })
        .collect();
    let find = |wanted: &str| headers.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted));
    assert!(
        find("transfer-encoding").is_none(),
        "a chunked request body is nothing that a registry client sends here"
    );
    let length: usize = find("content-length").map_or(0, |(_, v)| v.parse().expect("a Content-Length"));
    while buffer.len() < length {
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
    let body = buffer.split_to(length).freeze();
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query.to_owned())),
        None => (target, None),
    };
    let path = percent_decode_str(path)
        .decode_utf8()
        .expect("a path in UTF-8")
        .into_owned();
    let kind = if shared.token_server(&path).is_some() {
        Kind::Token
    } else {
        let base = shared.base_path();
        path.strip_prefix(base.as_str()).map_or(Kind::Other, Kind::of)
    };
    Some(Request {
        at: shared.address,
        connection,
        method: method.to_owned(),
        path,
        query,
        headers,
        body,
        kind,
        status: None,
        bytes_sent: 0,
        outcome: Outcome::Running,
    })
}

/// How the connection goes on after an answer.
enum Ending {
    KeepAlive,
    Close,
    Reset,
}

/// An answer and what is done to it on the way out.
struct Plan {
    reply: Reply,
    hang: bool,
    /// Ends before the status line, by RST if true.
    no_head: Option<bool>,
    /// Sent in place of an answer.
    no_http: Option<Bytes>,
    before_head: Vec<Gate>,
    delay: Duration,
    framing: Framing,
    /// By offset in the body, in order.
    events: Vec<(u64, Event)>,
    pace: Option<Pace>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Framing {
    Length,
    Chunked,
    Close,
}

enum Event {
    Stall(Gate),
    Cut,
    Reset,
}

fn plan(shared: &Shared, request: &Request) -> Plan {
    let refusal = shared.guard().check(request).err();
    let faults = shared.script.faults_for(request, refusal.is_some());
    let reply = refusal.unwrap_or_else(|| honest(shared, request, &faults));
    let mut plan = Plan {
        reply,
        hang: false,
        no_head: None,
        no_http: None,
        before_head: Vec::new(),
        delay: Duration::ZERO,
        framing: Framing::Length,
        events: Vec::new(),
        pace: None,
    };
    for fault in faults {
        plan.apply(shared, request, fault);
    }
    plan.events.sort_by_key(|(at, _)| *at);
    plan
}

/// The right answer, but for faults that change the question.
fn honest(shared: &Shared, request: &Request, faults: &[Fault]) -> Reply {
    if let Some(server) = shared.token_server(&request.path) {
        return server.issue(request);
    }
    let mut asked = request.clone();
    let mut shift = 0;
    for fault in faults {
        match fault {
            Fault::IgnoreRange => asked.headers.retain(|(name, _)| !name.eq_ignore_ascii_case("range")),
            Fault::ShiftRange(by) => shift = *by,
            _ => {}
        }
    }
    answer(&shared.content(), &shared.url(), &asked, shift)
}

impl Plan {
    fn apply(&mut self, shared: &Shared, request: &Request, fault: Fault) {
        match fault {
            Fault::Status { status, headers, body } => self.reply = Reply { status, headers, body },
            Fault::Redirect { target, status } => {
                let target = target
                    .replace("{digest}", request.kind.reference())
                    .replace("{reference}", request.kind.reference())
                    .replace("{path}", &request.path)
                    .replace("{self}", &shared.url());
                let digest = self.reply.headers.iter().find(|(n, _)| n == "Docker-Content-Digest");
                let digest = digest.cloned();
                self.reply = Reply::new(status, "").with("Location", target);
                // On the registry's hop, not on the storage's (R-U22).
                self.reply.headers.extend(digest);
            }
            Fault::Hang => self.hang = true,
            Fault::StallHeaders(gate) => self.before_head.push(gate),
            Fault::Delay(delay) => self.delay = delay,
            Fault::NoHead { reset } => self.no_head = Some(reset),
            Fault::NoHttp(bytes) => self.no_http = Some(bytes),
            Fault::CutAfter(at) => self.events.push((at, Event::Cut)),
            Fault::ResetAfter(at) => self.events.push((at, Event::Reset)),
            Fault::StallAfter(at, gate) => self.events.push((at, Event::Stall(gate))),
            Fault::FlipByte(at) => {
                let mut bytes = self.reply.body.to_vec();
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 0xff;
                }
                self.reply.body = bytes.into();
            }
            Fault::WrongBytes(bytes) => self.reply.body = bytes,
            Fault::Truncate(length) => self.reply.body.truncate(length),
            Fault::Append(bytes) => self.reply.body = [&self.reply.body[..], &bytes[..]].concat().into(),
            Fault::Chunked => self.framing = Framing::Chunked,
            Fault::CloseDelimited => self.framing = Framing::Close,
            Fault::Header(name, value) => self.reply.set(&name, value),
            Fault::NoHeader(name) => self.reply.unset(&name),
            Fault::Pace(pace) => self.pace = Some(pace),
            // Done in `honest`, before there was an answer.
            Fault::IgnoreRange | Fault::ShiftRange(_) => {}
            Fault::Panic => panic!("the script says that the upstream fails at {}", request.path),
        }
    }
}

/// The peer went away: nothing more can be sent.
struct Gone;

async fn deliver(shared: &Shared, stream: &mut TcpStream, id: usize, request: &Request, plan: Plan) -> Ending {
    let mut sender = Sender { shared, stream, id };
    match sender.send(request, plan).await {
        Ok((outcome, ending)) => {
            shared.log.update(id, |request| request.outcome = outcome);
            ending
        }
        Err(Gone) => {
            shared.log.update(id, |request| request.outcome = Outcome::Aborted);
            Ending::Close
        }
    }
}

struct Sender<'a> {
    shared: &'a Shared,
    stream: &'a mut TcpStream,
    id: usize,
}

impl Sender<'_> {
    async fn send(&mut self, request: &Request, mut plan: Plan) -> Result<(Outcome, Ending), Gone> {
        if plan.hang {
            self.peer_gone().await;
            return Err(Gone);
        }
        if !plan.delay.is_zero() {
            self.unless_gone(tokio::time::sleep(plan.delay)).await?;
        }
        for gate in &plan.before_head {
            self.unless_gone(gate.pass()).await?;
        }
        match plan.no_head {
            Some(false) => return Ok((Outcome::Cut, Ending::Close)),
            Some(true) => return Ok((Outcome::Cut, Ending::Reset)),
            None => {}
        }
        if let Some(bytes) = &plan.no_http {
            self.write(bytes, false).await?;
            return Ok((Outcome::Cut, Ending::Close));
        }
        self.head(&plan).await?;
        let is_head = request.method == "HEAD" || matches!(plan.reply.status, 204 | 304);
        if is_head {
            plan.reply.body = Bytes::new();
        }
        let body = plan.reply.body.clone();
        let size = body.len() as u64;
        let mut events = std::mem::take(&mut plan.events).into_iter().peekable();
        let mut sent = 0;
        let (begun, mut pieces) = (tokio::time::Instant::now(), 0);
        loop {
            while let Some((_, event)) = events.next_if(|(at, _)| *at <= sent) {
                match event {
                    Event::Stall(gate) => self.unless_gone(gate.pass()).await?,
                    Event::Cut => return Ok((Outcome::Cut, Ending::Close)),
                    Event::Reset => return Ok((Outcome::Cut, Ending::Reset)),
                }
            }
            if sent == size {
                break;
            }
            let next_event = events.peek().map_or(size, |(at, _)| (*at).min(size));
            let piece = match &plan.pace {
                None => PIECE_BYTES,
                Some(Pace::BytesPerSecond(rate)) => {
                    // By the clock and not by pauses: a busy machine makes each pause longer.
                    pieces += 1;
                    let due = begun + Duration::from_millis(20) * pieces;
                    self.unless_gone(tokio::time::sleep_until(due)).await?;
                    (rate / 50).max(1)
                }
                Some(Pace::Steps { bytes, gate }) => {
                    self.unless_gone(gate.pass()).await?;
                    *bytes
                }
            };
            let to = next_event.min(sent + piece);
            let from = usize::try_from(sent).expect("an offset in memory");
            let upto = usize::try_from(to).expect("an offset in memory");
            self.piece(&body[from..upto], plan.framing).await?;
            sent = to;
        }
        match plan.framing {
            Framing::Chunked if !is_head => self.write(b"0\r\n\r\n", false).await?,
            Framing::Close => return Ok((Outcome::Complete, Ending::Close)),
            _ => {}
        }
        Ok((Outcome::Complete, Ending::KeepAlive))
    }

    async fn head(&mut self, plan: &Plan) -> Result<(), Gone> {
        let Reply { status, headers, body } = &plan.reply;
        let mut head = format!("HTTP/1.1 {status} {}\r\n", reason(*status));
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        match plan.framing {
            Framing::Length if !matches!(status, 204 | 304) => head += &format!("Content-Length: {}\r\n", body.len()),
            Framing::Length => {}
            Framing::Chunked => head += "Transfer-Encoding: chunked\r\n",
            Framing::Close => head += "Connection: close\r\n",
        }
        head += "\r\n";
        let status = *status;
        self.shared.log.update(self.id, |request| request.status = Some(status));
        self.write(head.as_bytes(), false).await
    }

    async fn piece(&mut self, bytes: &[u8], framing: Framing) -> Result<(), Gone> {
        if framing == Framing::Chunked {
            self.write(format!("{:x}\r\n", bytes.len()).as_bytes(), false).await?;
        }
        self.write(bytes, true).await?;
        if framing == Framing::Chunked {
            self.write(b"\r\n", false).await?;
        }
        Ok(())
    }

    async fn write(&mut self, mut bytes: &[u8], counts: bool) -> Result<(), Gone> {
        while !bytes.is_empty() {
            let taken = self.stream.write(bytes).await.map_err(|_| Gone)?;
            bytes = &bytes[taken..];
            if counts {
                self.shared
                    .log
                    .update(self.id, |request| request.bytes_sent += taken as u64);
            }
        }
        Ok(())
    }

    async fn unless_gone<T>(&self, wait: impl Future<Output = T>) -> Result<T, Gone> {
        tokio::select! {
            value = wait => Ok(value),
            () = self.peer_gone() => Err(Gone),
        }
    }

    /// Returns when the peer has closed or reset the connection.
    async fn peer_gone(&self) {
        if let Ok(1..) = self.stream.peek(&mut [0; 1]).await {
            // It has sent the next request already: it lives.
            std::future::pending().await
        }
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        206 => "Partial Content",
        301 => "Moved Permanently",
        302 => "Found",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        416 => "Range Not Satisfiable",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "Status",
    }
}
