//! The far side: a small real server, HTTP/1.1 or HTTP/2, with a script, and the records of what it was asked.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;

/// One request as it came.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub query: String,
    pub version: hyper::Version,
    pub headers: hyper::HeaderMap,
    pub body: String,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|v| v.to_str().ok())
    }

    pub fn authorization(&self) -> Option<&str> {
        self.header("authorization")
    }

    /// A query parameter, decoded.
    pub fn param(&self, name: &str) -> Option<String> {
        let mut pairs = url::form_urlencoded::parse(self.query.as_bytes());
        pairs.find(|(k, _)| k == name).map(|(_, v)| v.into_owned())
    }

    /// A form field, decoded.
    pub fn field(&self, name: &str) -> Option<String> {
        let mut pairs = url::form_urlencoded::parse(self.body.as_bytes());
        pairs.find(|(k, _)| k == name).map(|(_, v)| v.into_owned())
    }
}

/// What the script answers.
pub struct Say {
    status: u16,
    headers: Vec<(String, String)>,
    pieces: Vec<Bytes>,
    length: Option<u64>,
    breaks: bool,
    stalls: bool,
    hangs: bool,
    delay: Duration,
}

pub fn say(status: u16, body: impl Into<Bytes>) -> Say {
    Say {
        status,
        headers: Vec::new(),
        pieces: vec![body.into()],
        length: None,
        breaks: false,
        stalls: false,
        hangs: false,
        delay: Duration::ZERO,
    }
}

impl Say {
    pub fn with(mut self, name: &str, value: impl ToString) -> Say {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    pub fn kind(self, content_type: &str) -> Say {
        self.with("content-type", content_type)
    }

    /// Announces more than comes, and breaks the connection off after it.
    pub fn cut(mut self, length: u64) -> Say {
        self.length = Some(length);
        self.breaks = true;
        self
    }

    /// Announces more than comes, and says nothing more.
    pub fn stall(mut self, length: u64) -> Say {
        self.length = Some(length);
        self.stalls = true;
        self
    }

    /// Without Content-Length, in this many copies.
    pub fn chunked(mut self, copies: usize) -> Say {
        let piece = self.pieces.remove(0);
        self.pieces = vec![piece; copies];
        self
    }

    /// Answers so much later.
    pub fn after(mut self, delay: Duration) -> Say {
        self.delay = delay;
        self
    }

    /// Never answers.
    pub fn hang(mut self) -> Say {
        self.hangs = true;
        self
    }

    fn response(self) -> hyper::Response<BoxBody<Bytes, std::io::Error>> {
        let mut builder = hyper::Response::builder().status(self.status);
        for (name, value) in &self.headers {
            builder = builder.header(name, value);
        }
        if let Some(length) = self.length {
            builder = builder.header("content-length", length);
        }
        let is_plain = self.pieces.len() == 1 && !self.breaks && !self.stalls;
        let body = if is_plain {
            let whole = self.pieces.into_iter().next().unwrap();
            Full::new(whole).map_err(|never| match never {}).boxed()
        } else {
            let frames: Vec<_> = self.pieces.into_iter().map(|p| Ok(Frame::data(p))).collect();
            let ends = (self.breaks || self.stalls).then_some(self.stalls);
            // Pending before the end: hyper sends what it has.
            let end = stream::iter(ends).then(|stalls| async move {
                if stalls {
                    std::future::pending::<()>().await;
                }
                tokio::task::yield_now().await;
                Err(std::io::Error::other("cut"))
            });
            BodyExt::boxed(StreamBody::new(stream::iter(frames).chain(end)))
        };
        builder.body(body).unwrap()
    }
}

type Script = dyn Fn(&Seen) -> Say + Send + Sync;

/// Runs until the test's runtime ends.
pub struct Server {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Server {
    /// The script gets the server's own address, for realms and locations.
    pub async fn start(script: impl Fn(&str, &Seen) -> Say + Send + Sync + 'static) -> Server {
        Server::run(None, script).await
    }

    pub async fn run(
        tls: Option<tokio_rustls::TlsAcceptor>,
        script: impl Fn(&str, &Seen) -> Say + Send + Sync + 'static,
    ) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let scheme = if tls.is_some() { "https" } else { "http" };
        let own = format!("{scheme}://{address}");
        let script: Arc<Script> = Arc::new(move |seen| script(&own, seen));
        let records = seen.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (script, records, tls) = (script.clone(), records.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => serve(stream, script, records).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, script, records).await;
                            }
                        }
                    }
                });
            }
        });
        Server { address, seen }
    }

    pub fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// Everything asked so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// How often a path that starts so was asked.
    pub fn count(&self, prefix: &str) -> usize {
        self.seen().iter().filter(|s| s.path.starts_with(prefix)).count()
    }
}

async fn serve<S>(stream: S, script: Arc<Script>, records: Arc<Mutex<Vec<Seen>>>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let (script, records) = (script.clone(), records.clone());
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            let seen = Seen {
                method: parts.method.to_string(),
                path: parts.uri.path().to_owned(),
                query: parts.uri.query().unwrap_or_default().to_owned(),
                version: parts.version,
                headers: parts.headers,
                body: String::from_utf8_lossy(&body).into_owned(),
            };
            records.lock().unwrap().push(seen.clone());
            let say = script(&seen);
            if say.hangs {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(say.delay).await;
            Ok::<_, Infallible>(say.response())
        }
    });
    let _ = auto::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service)
        .await;
}
