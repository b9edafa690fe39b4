//! A connection to the market: HTTP/1.1 by hand, because only whoever writes the socket knows what has crossed it.
//!
//! GET and HEAD without a body, which is all that a pull asks.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, sleep_until};
use url::Url;

use super::upstream::{BYTES_PER_SECOND, LATENCY, Shared};

const MAX_HEAD_BYTES: usize = 16 * 1024;
/// Written between two looks at the clock: about 2 ms.
const PIECE_BYTES: usize = 64 * 1024;

pub struct Request {
    pub is_head: bool,
    pub path: String,
    /// The `scope` of the query, decoded.
    pub scope: Option<String>,
    pub bearer: Option<String>,
    /// `Range: bytes=N-`
    pub from: Option<u64>,
    keep_alive: bool,
}

pub struct Reply {
    pub status: u16,
    headers: Vec<(&'static str, String)>,
    body: Bytes,
    /// A manifest or blob: its bytes are counted and paced.
    pub is_content: bool,
    /// The connection ends after so many bytes of the body.
    pub cut_after: Option<u64>,
}

impl Reply {
    pub fn new(status: u16, content_type: &str, body: Bytes) -> Reply {
        Reply {
            status,
            headers: vec![("Content-Type", content_type.to_owned())],
            body,
            is_content: false,
            cut_after: None,
        }
    }

    pub fn json(status: u16, value: &serde_json::Value) -> Reply {
        Reply::new(status, "application/json", value.to_string().into_bytes().into())
    }

    pub fn with(mut self, name: &'static str, value: String) -> Reply {
        self.headers.push((name, value));
        self
    }

    fn head(&self) -> String {
        let reason = match self.status {
            200 => "OK",
            206 => "Partial Content",
            400 => "Bad Request",
            401 => "Unauthorized",
            404 => "Not Found",
            416 => "Range Not Satisfiable",
            _ => "Status",
        };
        let mut head = format!("HTTP/1.1 {} {reason}\r\n", self.status);
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        head + &format!("Content-Length: {}\r\n\r\n", self.body.len())
    }
}

/// Until the peer closes, breaks off or says what is no such request.
pub async fn serve(mut stream: TcpStream, shared: &Shared) {
    let _ = stream.set_nodelay(true);
    let mut buffer = BytesMut::new();
    while let Ok(Some(request)) = read_request(&mut stream, &mut buffer).await {
        sleep(LATENCY).await;
        let reply = shared.answer(&request);
        match send(&mut stream, &request, &reply, shared).await {
            Ok(true) if request.keep_alive => {}
            _ => break,
        }
    }
    // FIN before the socket is dropped: what was sent arrives.
    let _ = stream.shutdown().await;
}

/// `None` when the peer is done.
async fn read_request(stream: &mut TcpStream, buffer: &mut BytesMut) -> io::Result<Option<Request>> {
    let end = loop {
        if let Some(at) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
            break at;
        }
        if buffer.len() > MAX_HEAD_BYTES || stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    };
    let head = buffer.split_to(end);
    buffer.advance(4);
    Ok(std::str::from_utf8(&head).ok().and_then(parse))
}

fn parse(head: &str) -> Option<Request> {
    let mut lines = head.split("\r\n");
    let mut words = lines.next()?.split(' ');
    let (method, target) = (words.next()?, words.next()?);
    if !matches!(method, "GET" | "HEAD") || !target.starts_with('/') {
        return None;
    }
    let url = Url::parse(&format!("http://market{target}")).ok()?;
    let scope = url.query_pairs().find(|(key, _)| key == "scope");
    let mut request = Request {
        is_head: method == "HEAD",
        path: url.path().to_owned(),
        scope: scope.map(|(_, scope)| scope.into_owned()),
        bearer: None,
        from: None,
        keep_alive: true,
    };
    for line in lines {
        let (name, value) = line.split_once(':')?;
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "authorization" => request.bearer = value.strip_prefix("Bearer ").map(str::to_owned),
            "range" => {
                let from = value.strip_prefix("bytes=").and_then(|range| range.strip_suffix('-'));
                request.from = from.and_then(|from| from.parse().ok());
            }
            "connection" => request.keep_alive = !value.eq_ignore_ascii_case("close"),
            _ => {}
        }
    }
    Some(request)
}

/// Whether the whole answer was sent.
async fn send(stream: &mut TcpStream, request: &Request, reply: &Reply, shared: &Shared) -> io::Result<bool> {
    stream.write_all(reply.head().as_bytes()).await?;
    if request.is_head {
        return Ok(true);
    }
    let whole = reply.body.len();
    let length = reply
        .cut_after
        .map_or(whole, |at| usize::try_from(at).unwrap_or(whole).min(whole));
    let begun = Instant::now();
    let mut sent: u64 = 0;
    for piece in reply.body[..length].chunks(PIECE_BYTES) {
        if reply.is_content {
            shared.count_bytes(piece.len());
        }
        stream.write_all(piece).await?;
        sent += piece.len() as u64;
        // Sleeping towards the schedule, not for a while: lateness is made up for.
        sleep_until(begun + due(sent)).await;
    }
    Ok(length == whole)
}

fn due(bytes: u64) -> std::time::Duration {
    std::time::Duration::from_micros(bytes.saturating_mul(1_000_000) / BYTES_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_as_larder_writes_them() {
        let request =
            parse("GET /v2/a/b/blobs/sha256:00?x=1 HTTP/1.1\r\nRange: bytes=7-\r\nauthorization: Bearer t\r\nHost: m")
                .unwrap();
        assert_eq!(request.path, "/v2/a/b/blobs/sha256:00");
        assert_eq!((request.from, request.bearer.as_deref()), (Some(7), Some("t")));
        let token = parse("GET /token?service=s&scope=repository%3Aa%2Fb%3Apull HTTP/1.1").unwrap();
        assert_eq!(token.scope.as_deref(), Some("repository:a/b:pull"));
        for no in [
            "",
            "POST /token HTTP/1.1",
            "GET",
            "GET x HTTP/1.1",
            "GET / HTTP/1.1\r\nno colon",
        ] {
            assert!(parse(no).is_none(), "{no}");
        }
    }

    #[test]
    fn the_link_is_as_fast_as_it_is_said_to_be() {
        assert_eq!(due(BYTES_PER_SECOND).as_secs(), 1);
    }
}
