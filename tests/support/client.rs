//! A client that hides nothing: what came, in which order, and how it ended.
//!
//! No redirects are followed, no body is decoded, nothing is retried. [`Ask`] is a request,
//! [`Ask::send`] takes the whole answer, [`Ask::open`] gives it piece by piece as an [`Exchange`];
//! [`Connection`] sends several requests over one socket.

use std::fmt;
use std::io;
use std::net::SocketAddr;

use bytes::{Buf, Bytes, BytesMut};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use larder::oci::Digest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::within;

/// A request to be sent.
#[derive(Clone, Debug)]
pub struct Ask {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Option<Vec<u8>>,
    /// Calls of the admin API go without the token that its Larder made.
    is_anonymous: bool,
}

impl Ask {
    /// `target` goes out as it is, query included.
    pub fn new(method: &str, target: impl Into<String>) -> Ask {
        Ask {
            method: method.to_owned(),
            target: target.into(),
            headers: Vec::new(),
            body: None,
            is_anonymous: false,
        }
    }

    pub fn get(target: impl Into<String>) -> Ask {
        Ask::new("GET", target)
    }

    pub fn head(target: impl Into<String>) -> Ask {
        Ask::new("HEAD", target)
    }

    /// Without the token that is brought otherwise.
    pub fn anonymously(self) -> Ask {
        Ask {
            is_anonymous: true,
            ..self
        }
    }

    /// Added; the same name may come several times.
    pub fn header(mut self, name: &str, value: impl ToString) -> Ask {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    /// `bytes=0-99`
    pub fn range(self, range: &str) -> Ask {
        self.header("Range", range)
    }

    /// With a Content-Length.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Ask {
        self.body = Some(body.into());
        self
    }

    /// The whole answer, on a connection of its own.
    pub async fn send(self, to: SocketAddr) -> Response {
        if self.method == "HEAD" {
            // Closing tells whether anything came after the head.
            return self.header("Connection", "close").open(to).await.rest().await;
        }
        self.open(to).await.rest().await
    }

    /// The answer's head, from a server that may go away at any time.
    pub async fn try_open(self, to: SocketAddr) -> io::Result<Exchange> {
        let mut connection = Connection::try_open(to).await?;
        within("the request to be taken", connection.stream.write_all(&self.encode(to))).await?;
        connection.try_answer(self.method == "HEAD").await
    }

    /// The answer's head; its body as the test asks for it.
    pub async fn open(self, to: SocketAddr) -> Exchange {
        Connection::open(to).await.exchange(&self).await
    }

    fn encode(&self, to: SocketAddr) -> Vec<u8> {
        let mut text = format!("{} {} HTTP/1.1\r\n", self.method, self.target);
        if !self.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            text += &format!("Host: {to}\r\n");
        }
        // Tests are about what operators do; that they have to show who they are is what `admin_access` tests.
        let is_call = self.target.starts_with("/api/") && !self.is_anonymous;
        let says_who = self
            .headers
            .iter()
            .any(|(name, _)| name.eq_ignore_ascii_case("authorization"));
        if let Some(token) = (is_call && !says_who).then(|| super::admin_token(to.port())).flatten() {
            text += &format!("Authorization: Bearer {token}\r\n");
        }
        for (name, value) in &self.headers {
            text += &format!("{name}: {value}\r\n");
        }
        if let Some(body) = &self.body {
            text += &format!("Content-Length: {}\r\n", body.len());
        }
        text += "\r\n";
        let mut bytes = text.into_bytes();
        bytes.extend_from_slice(self.body.as_deref().unwrap_or_default());
        bytes
    }
}

/// Header lines in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(pub Vec<(String, String)>);

impl Headers {
    /// The only one of that name, in any case; several are a failure.
    pub fn get(&self, name: &str) -> Option<&str> {
        let all = self.all(name);
        assert!(all.len() <= 1, "{name} came {} times: {all:?}", all.len());
        all.first().copied()
    }

    pub fn all(&self, name: &str) -> Vec<&str> {
        let fits = self.0.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name));
        fits.map(|(_, value)| value.as_str()).collect()
    }
}

/// How a body ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// All of it, by its own framing.
    Complete,
    /// The connection was closed before that.
    Short,
    /// The connection was reset before that.
    Reset,
}

/// An answer, to its end.
#[derive(Clone, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    pub headers: Headers,
    pub body: Vec<u8>,
    pub end: End,
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Response {
            status, headers, end, ..
        } = self;
        writeln!(f, "{status}, {} bytes, {end:?}", self.body.len())?;
        for (name, value) in &headers.0 {
            writeln!(f, "  {name}: {value}")?;
        }
        let start = String::from_utf8_lossy(&self.body[..self.body.len().min(600)]);
        if start.chars().all(|c| !c.is_control() || c.is_whitespace()) {
            writeln!(f, "  {start}")?;
        }
        Ok(())
    }
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)
    }

    pub fn is_complete(&self) -> bool {
        self.end == End::Complete
    }

    /// Fails unless it is this status, to the end.
    #[track_caller]
    pub fn expect(self, status: u16) -> Response {
        assert!(
            self.status == status && self.is_complete(),
            "wanted {status}, complete; got {self:?}"
        );
        self
    }

    /// The bytes of a complete 200 whose digest is right.
    #[track_caller]
    pub fn expect_content(self, digest: &Digest) -> Vec<u8> {
        let response = self.expect(200);
        let found = Digest::of(digest.algorithm(), &response.body);
        assert_eq!(found, *digest, "the bytes of a complete answer are wrong");
        response.body
    }

    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        match serde_json::from_slice(&self.body) {
            Ok(value) => value,
            Err(error) => panic!("no JSON ({error}) in {self:?}"),
        }
    }

    /// The code of the first error in a body of OCI form; anything else is a failure (R-S3).
    #[track_caller]
    pub fn error_code(&self) -> String {
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
        let json = self.json();
        let error = &json["errors"][0];
        assert!(error["message"].is_string(), "an error without a message: {self:?}");
        match error["code"].as_str() {
            Some(code) => code.to_owned(),
            None => panic!("no error code in {self:?}"),
        }
    }
}

/// A socket to a server, idle.
pub struct Connection {
    stream: TcpStream,
    buffer: BytesMut,
    to: SocketAddr,
}

impl Connection {
    pub async fn open(to: SocketAddr) -> Connection {
        match Connection::try_open(to).await {
            Ok(connection) => connection,
            Err(error) => panic!("cannot connect to {to}: {error}"),
        }
    }

    pub async fn try_open(to: SocketAddr) -> io::Result<Connection> {
        let stream = within("a connection", TcpStream::connect(to)).await?;
        stream.set_nodelay(true)?;
        Ok(Connection {
            stream,
            buffer: BytesMut::new(),
            to,
        })
    }

    /// With a receive buffer of about so many bytes, so that a reader that stands still is felt by the server.
    pub async fn open_with_buffer(to: SocketAddr, bytes: u32) -> Connection {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(bytes).expect("a receive buffer");
        let stream = within("a connection", socket.connect(to)).await.expect("a connection");
        Connection {
            stream,
            buffer: BytesMut::new(),
            to,
        }
    }

    /// Raw bytes, valid or not.
    pub async fn write(&mut self, bytes: &[u8]) {
        within("the request to be taken", self.stream.write_all(bytes))
            .await
            .expect("a connection that takes the request");
    }

    /// Everything until the server ends the connection, and how it did: `Short` for FIN, `Reset` for RST.
    pub async fn read_to_end(mut self) -> (Vec<u8>, End) {
        loop {
            match within("the server to close", self.stream.read_buf(&mut self.buffer)).await {
                Ok(0) => return (self.buffer.to_vec(), End::Short),
                Ok(_) => {}
                Err(_) => return (self.buffer.to_vec(), End::Reset),
            }
        }
    }

    /// Sends and waits for the answer's head.
    pub async fn exchange(mut self, ask: &Ask) -> Exchange {
        let bytes = ask.encode(self.to);
        self.write(&bytes).await;
        self.answer(ask.method == "HEAD").await
    }

    /// Sends, takes the whole answer and gives the connection back.
    pub async fn ask(self, ask: &Ask) -> (Response, Connection) {
        let mut exchange = self.exchange(ask).await;
        exchange.read_to_end().await;
        exchange.take()
    }

    /// The head of the answer to what was written.
    pub async fn answer(self, to_head: bool) -> Exchange {
        match self.try_answer(to_head).await {
            Ok(exchange) => exchange,
            Err(error) => panic!("no answer: {error}"),
        }
    }

    /// The same, where the server may go away before there is any.
    async fn try_answer(mut self, to_head: bool) -> io::Result<Exchange> {
        let what = format!("an answer from {}", self.to);
        let head = loop {
            if let Some(at) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                let head = self.buffer.split_to(at);
                self.buffer.advance(4);
                let text = String::from_utf8(head.to_vec()).expect("a head in UTF-8");
                if text.starts_with("HTTP/1.1 100") {
                    continue;
                }
                break text;
            }
            if within(&what, self.stream.read_buf(&mut self.buffer)).await? == 0 {
                let got = format!("the connection was closed without an answer; got {:?}", self.buffer);
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, got));
            }
        };
        let mut lines = head.split("\r\n");
        let status_line = lines.next().unwrap_or_default();
        let status = status_line.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
        let status: u16 = match status.map(str::parse) {
            Some(Ok(status)) => status,
            _ => panic!("no HTTP/1.1 status line: {status_line:?}"),
        };
        let split = |line: &str| match line.split_once(':') {
            Some((name, value)) => (name.to_owned(), value.trim().to_owned()),
            None => panic!("no header line: {line:?}"),
        };
        let headers = Headers(lines.map(split).collect());
        let left = framing(status, &headers, to_head);
        Ok(Exchange {
            connection: self,
            status,
            headers,
            body: Vec::new(),
            left,
            end: None,
            to_head,
        })
    }
}

fn framing(status: u16, headers: &Headers, to_head: bool) -> Left {
    let length = headers.get("content-length");
    let length: Option<u64> = length.map(|text| text.parse().expect("a Content-Length that is a number"));
    let chunked = headers.get("transfer-encoding").is_some_and(|v| v == "chunked");
    assert!(
        !(chunked && length.is_some()),
        "both Content-Length and Transfer-Encoding: {headers:?}"
    );
    if to_head {
        assert!(
            status != 200 || length.is_some(),
            "HEAD without Content-Length: {headers:?}"
        );
        return Left::Nothing;
    }
    match (status, length) {
        (204 | 304, _) => Left::Nothing,
        (_, Some(length)) => Left::Bytes(length),
        (_, None) if chunked => Left::Chunks,
        (_, None) => Left::UntilClose,
    }
}

/// What is still to come of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    Nothing,
    Bytes(u64),
    /// Between two chunks.
    Chunks,
    /// Inside a chunk; the line end after it included.
    InChunk(u64),
    UntilClose,
}

/// An answer whose head is here and whose body is on the way. Dropping it hangs up.
pub struct Exchange {
    connection: Connection,
    pub status: u16,
    pub headers: Headers,
    body: Vec<u8>,
    left: Left,
    end: Option<End>,
    to_head: bool,
}

impl Exchange {
    /// What has been read of the body so far.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// Once the body has ended.
    pub fn end(&self) -> Option<End> {
        self.end
    }

    /// Reads until at least `n` bytes of the body are here in all, or it ended. Gives what is here.
    pub async fn read_at_least(&mut self, n: usize) -> &[u8] {
        while self.body.len() < n && self.end.is_none() {
            self.read_some().await;
        }
        &self.body
    }

    pub async fn read_to_end(&mut self) {
        while self.end.is_none() {
            self.read_some().await;
        }
    }

    /// To the end.
    pub async fn rest(mut self) -> Response {
        self.read_to_end().await;
        if self.to_head && self.headers.get("connection").is_some_and(|v| v == "close") {
            self.assert_nothing_follows().await;
        }
        self.take().0
    }

    /// Hangs up by RST in the middle of it.
    pub fn abort(self) {
        let _ = self.connection.stream.set_zero_linger();
    }

    fn take(self) -> (Response, Connection) {
        let response = Response {
            status: self.status,
            headers: self.headers,
            body: self.body,
            end: self.end.expect("an answer at its end"),
        };
        (response, self.connection)
    }

    async fn assert_nothing_follows(&mut self) {
        let Connection { stream, buffer, .. } = &mut self.connection;
        while let Ok(1..) = within("the server to close", stream.read_buf(buffer)).await {}
        assert!(
            buffer.is_empty(),
            "{} bytes after the head of a HEAD's answer",
            buffer.len()
        );
    }

    /// One step: takes what is in the buffer, or waits for more.
    async fn read_some(&mut self) {
        let so_far = self.body.len();
        self.take_from_buffer();
        if self.end.is_some() || self.body.len() > so_far {
            return;
        }
        let what = format!("more of a body of which {so_far} bytes are here");
        let Connection { stream, buffer, .. } = &mut self.connection;
        match within(&what, stream.read_buf(buffer)).await {
            Ok(0) if self.left == Left::UntilClose => self.end = Some(End::Complete),
            Ok(0) => self.end = Some(End::Short),
            Ok(_) => self.take_from_buffer(),
            Err(_) => self.end = Some(End::Reset),
        }
    }

    fn take_from_buffer(&mut self) {
        let buffer = &mut self.connection.buffer;
        loop {
            match self.left {
                Left::Nothing | Left::Bytes(0) => {
                    self.end = Some(End::Complete);
                    return;
                }
                _ if buffer.is_empty() => return,
                Left::Bytes(left) => {
                    let taken = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    self.body.extend_from_slice(&buffer.split_to(taken));
                    self.left = Left::Bytes(left - taken as u64);
                }
                Left::UntilClose => {
                    self.body.extend_from_slice(&buffer.split());
                }
                Left::Chunks => {
                    let Some(at) = buffer.windows(2).position(|two| two == b"\r\n") else {
                        return;
                    };
                    let line = String::from_utf8_lossy(&buffer[..at]).into_owned();
                    let size = line.split(';').next().unwrap_or_default().trim();
                    let size = u64::from_str_radix(size, 16).expect("the size of a chunk");
                    if size > 0 {
                        buffer.advance(at + 2);
                        self.left = Left::InChunk(size + 2);
                    } else if buffer[at + 2..].starts_with(b"\r\n") {
                        buffer.advance(at + 4);
                        self.left = Left::Nothing;
                    } else {
                        // Trailers are nothing that Larder sends.
                        assert!(buffer.len() < at + 4, "trailers after a chunked body");
                        return;
                    }
                }
                Left::InChunk(left @ (1 | 2)) => {
                    buffer.advance(1);
                    self.left = if left == 2 { Left::InChunk(1) } else { Left::Chunks };
                }
                Left::InChunk(left) => {
                    let taken = buffer.len().min(usize::try_from(left - 2).unwrap_or(usize::MAX));
                    self.body.extend_from_slice(&buffer.split_to(taken));
                    self.left = Left::InChunk(left - taken as u64);
                }
            }
        }
    }
}

/// An answer by HTTP/2 whose body is on the way. Dropping it hangs up; what is not read stays with the server, but for
/// the window.
pub struct Http2Exchange {
    pub status: u16,
    pub headers: Headers,
    body: hyper::body::Incoming,
    read: Vec<u8>,
    end: Option<End>,
    driver: tokio::task::JoinHandle<hyper::Result<()>>,
}

impl Http2Exchange {
    /// Reads until at least `n` bytes of the body are here in all, or it ended. Gives what is here.
    pub async fn read_at_least(&mut self, n: usize) -> &[u8] {
        while self.read.len() < n && self.end.is_none() {
            match within("a frame", self.body.frame()).await {
                None => self.end = Some(End::Complete),
                Some(Ok(frame)) => self.read.extend_from_slice(frame.data_ref().map_or(&[], |d| &d[..])),
                Some(Err(_)) => self.end = Some(End::Reset),
            }
        }
        &self.read
    }

    /// To the end.
    pub async fn rest(mut self) -> Response {
        self.read_at_least(usize::MAX).await;
        Response {
            status: self.status,
            headers: std::mem::take(&mut self.headers),
            body: std::mem::take(&mut self.read),
            end: self.end.expect("an answer at its end"),
        }
    }
}

impl Drop for Http2Exchange {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// One request by HTTP/2 without TLS. Of the headers only what came on the wire; `end` is `Reset` for a broken
/// stream, with status 0 if the reset overtook the head: hyper then tells nothing of it.
pub async fn http2(to: SocketAddr, ask: Ask) -> Response {
    match open_http2(to, ask).await {
        Some(exchange) => exchange.rest().await,
        None => Response {
            status: 0,
            headers: Headers::default(),
            body: Vec::new(),
            end: End::Reset,
        },
    }
}

/// The same, its body as the test asks for it; `None` if a reset overtook the head.
pub async fn open_http2(to: SocketAddr, ask: Ask) -> Option<Http2Exchange> {
    let stream = TcpStream::connect(to).await.expect("a connection");
    let (mut sender, connection) = within(
        "an HTTP/2 handshake",
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)),
    )
    .await
    .expect("an HTTP/2 handshake");
    let driver = tokio::spawn(connection);
    let mut request = hyper::Request::builder()
        .method(ask.method.as_str())
        .uri(format!("http://{to}{}", ask.target));
    for (name, value) in &ask.headers {
        request = request.header(name, value);
    }
    let request = request.body(Empty::<Bytes>::new()).expect("a request");
    let answer = within("an answer by HTTP/2", sender.send_request(request)).await;
    let (head, body) = answer.ok()?.into_parts();
    let text = |value: &hyper::header::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let headers = head.headers.iter().map(|(n, v)| (n.to_string(), text(v))).collect();
    Some(Http2Exchange {
        status: head.status.as_u16(),
        headers: Headers(headers),
        body,
        read: Vec::new(),
        end: None,
        driver,
    })
}
