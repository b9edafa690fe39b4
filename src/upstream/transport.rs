//! How bytes reach an upstream: egress proxies and the HTTP clients of one endpoint.
//!
//! The trusted client dials what the operator named; the guarded one dials what an upstream named and
//! resolves through `guard`. Neither follows redirects, keeps cookies or decompresses: those are decisions, and
//! they are taken in `redirect` and `endpoint`. Of each there is a second one, which speaks HTTP/1.1 only, for parts of a
//! blob: they are fetched side by side because one connection is slow, and by HTTP/2 all would share that one. No
//! credential is ever a default header of a client (R-U20).
//!
//! Proxies: `upstream.proxy` if it is set; else `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`, except
//! for an upstream on this machine, which a proxy elsewhere could not reach.

use std::collections::HashSet;
use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, HeaderValue, RANGE, USER_AGENT, VIA};
use reqwest::{Method, NoProxy, Proxy, Response};
use url::{Host, Url};

use super::blob::Span;
use super::credentials::Sources;
use super::error::ErrorKind;
use super::guard::{Blocked, Class, Guard, GuardedResolver};
use super::reason::{self, Peer};
use super::tls;
use super::via::Via;
use crate::config::Upstream;
use crate::telemetry::trace::context::{TRACEPARENT, TRACESTATE};
use crate::telemetry::trace::{Kind, Span as TraceSpan, start};

const AGENT: &str = concat!("larder/", env!("CARGO_PKG_VERSION"));

/// A connection whose peer does not even acknowledge a request for so long is dead, and is not used again. Without that, requests
/// on a connection whose packets are dropped would hang for a quarter of an hour, each new one by HTTP/2, and every probe.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED: Duration = Duration::from_secs(10);

/// What goes out in one hop, besides its address.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    pub method: &'a Method,
    pub accept: &'static str,
    /// What is wanted, when it is not all.
    pub range: Option<Span>,
    /// Whether a store that packed the bytes is to send them so, and not unpack them first (R-U26).
    pub as_stored: bool,
    pub authorization: Option<&'a HeaderValue>,
    /// A form, for token servers (R-U7).
    pub form: Option<&'a str>,
}

/// Whose word it is that an address is dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named {
    ByOperator,
    ByUpstream,
}

pub struct Transport {
    whole: Pair,
    parts: Pair,
    tls: rustls::ClientConfig,
    guard: Arc<Guard>,
    upstream: Arc<str>,
    /// Host of the egress proxy, if there is one on the way to the endpoint.
    proxy: Option<String>,
    via: Via,
}

struct Pair {
    trusted: reqwest::Client,
    guarded: reqwest::Client,
}

impl std::fmt::Debug for Transport {
    /// Short: the HTTP clients would show their proxies, and those may carry a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transport")
            .field("guard", &self.guard)
            .finish_non_exhaustive()
    }
}

/// Bytes that an upstream may send unread, on a stream and on a connection of HTTP/2. Under `max_bandwidth` they are
/// what it allows in a quarter and in half a second: what lies in a window has crossed the link already.
fn windows(max_bandwidth: Option<u64>) -> (u32, u32) {
    const STREAM: u64 = 4 << 20;
    const CONNECTION: u64 = 32 << 20;
    // HTTP/2's own.
    const LEAST: u64 = 65_535;
    let rate = max_bandwidth.unwrap_or(u64::MAX);
    let window = |most: u64, allowed: u64| u32::try_from(allowed.clamp(LEAST, most)).unwrap_or(u32::MAX);
    (window(STREAM, rate / 4), window(CONNECTION, rate / 2))
}

impl Transport {
    /// For the endpoint at `home`, which is the upstream's URL or one of its mirrors.
    pub fn new(home: &Url, upstream: &Upstream, sources: &Sources, via: &Via) -> Result<Transport, String> {
        let tls = tls::config(upstream)?;
        let proxies = proxies(home, upstream.proxy.as_ref(), sources)?;
        let names: HashSet<String> = proxies
            .iter()
            .filter_map(|(url, _)| url.host_str())
            .map(str::to_owned)
            .collect();
        let guard = Arc::new(Guard::new(home, names));
        let (stream_window, connection_window) = windows(upstream.max_bandwidth);
        let build = |resolver: Option<GuardedResolver>, is_apart: bool| {
            let mut tls = tls.clone();
            if is_apart {
                tls.alpn_protocols = vec![b"http/1.1".to_vec()];
            }
            let mut builder = reqwest::Client::builder()
                .tls_backend_preconfigured(tls)
                .redirect(reqwest::redirect::Policy::none())
                .connect_timeout(upstream.connect_timeout)
                .pool_idle_timeout(Duration::from_secs(60))
                .tcp_nodelay(true)
                .http2_initial_stream_window_size(stream_window)
                .http2_initial_connection_window_size(connection_window)
                .http2_max_header_list_size(64 << 10)
                .no_proxy();
            #[cfg(target_os = "linux")]
            {
                builder = builder.tcp_user_timeout(UNACKNOWLEDGED);
            }
            for (_, proxy) in &proxies {
                builder = builder.proxy(proxy.clone());
            }
            if is_apart {
                builder = builder.http1_only();
            }
            if let Some(resolver) = resolver {
                builder = builder.dns_resolver(resolver);
            }
            builder
                .build()
                .map_err(|e| format!("the HTTP client cannot be built: {}", chain(&e.without_url())))
        };
        let pair = |is_apart| {
            Ok::<_, String>(Pair {
                trusted: build(None, is_apart)?,
                guarded: build(Some(GuardedResolver(guard.clone())), is_apart)?,
            })
        };
        Ok(Transport {
            whole: pair(false)?,
            parts: pair(true)?,
            tls,
            guard,
            upstream: Arc::from(upstream.name.as_str()),
            proxy: proxy_for(home, upstream.proxy.as_ref(), &proxies, sources),
            via: via.clone(),
        })
    }

    /// The client that dials what the operator named, for what belongs to the upstream but is no registry.
    pub fn trusted(&self) -> reqwest::Client {
        self.whole.trusted.clone()
    }

    /// One that no proxy stands before, for what is on this machine or beside it. Without the means for it, the usual one.
    pub fn near(&self) -> reqwest::Client {
        let built = reqwest::Client::builder()
            .tls_backend_preconfigured(self.tls.clone())
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(2))
            .no_proxy()
            .build();
        built.unwrap_or_else(|_| self.trusted())
    }

    /// One request, one answer; whatever its status is. Where it is part of a trace, its span goes with the answer and ends
    /// with it.
    pub async fn send(&self, url: &Url, named: Named, out: &Outgoing<'_>) -> Result<Response, ErrorKind> {
        let span = self.span(url, out);
        let sent = self.send_as(url, named, out, &span).await;
        match sent {
            Ok(mut response) if span.is_recorded() => {
                let status = response.status().as_u16();
                span.set("http.response.status_code", status);
                // The demand for a token is a step and no failure.
                if status >= 400 && status != 401 {
                    span.fail(status.to_string(), &"");
                }
                response.extensions_mut().insert(span);
                Ok(response)
            }
            Ok(response) => Ok(response),
            Err(error) => {
                span.fail(error.as_str(), &error);
                Err(error)
            }
        }
    }

    /// What may be shown of it: no query, which may be a signature, and no header (L7).
    fn span(&self, url: &Url, out: &Outgoing<'_>) -> TraceSpan {
        let span = start("HTTP", Kind::Client);
        if span.is_recorded() {
            span.rename(|| out.method.to_string());
            span.set("http.request.method", out.method.to_string());
            span.set("url.full", shown(url));
            span.set("server.address", url.host_str().unwrap_or_default().to_owned());
            span.set_some("server.port", url.port_or_known_default());
            span.set("larder.upstream", &self.upstream);
            span.set_some("larder.range", out.range.map(|range| range.header()));
        }
        span
    }

    async fn send_as(
        &self,
        url: &Url,
        named: Named,
        out: &Outgoing<'_>,
        span: &TraceSpan,
    ) -> Result<Response, ErrorKind> {
        let is_part = out.range.is_some_and(|range| range.end.is_some());
        let clients = if is_part { &self.parts } else { &self.whole };
        let client = if named == Named::ByOperator || self.guard.is_home(url) {
            &clients.trusted
        } else {
            if let Err(blocked) = self.guard.check_literal(url).await {
                return Err(self.refused(&blocked));
            }
            &clients.guarded
        };
        let mut request = client
            .request(out.method.clone(), url.clone())
            .header(ACCEPT, out.accept)
            .header(ACCEPT_ENCODING, if out.as_stored { "gzip" } else { "identity" })
            .header(USER_AGENT, AGENT);
        if let Some(range) = out.range {
            request = request.header(RANGE, range.header());
        }
        if let Some(authorization) = out.authorization {
            request = request.header(AUTHORIZATION, authorization.clone());
        }
        if let Some(via) = self.via.header(url) {
            request = request.header(VIA, via);
        }
        // Whom the operator named may be told, if he says so; whom only an upstream named is none of ours.
        if let Some((parent, state)) = span.headers().filter(|_| named == Named::ByOperator) {
            request = request.header(TRACEPARENT, parent);
            if let Some(state) = state {
                request = request.header(TRACESTATE, &*state);
            }
        }
        if let Some(form) = out.form {
            request = request
                .header(reqwest::header::CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(form.to_owned());
        }
        request.send().await.map_err(|error| self.failure(error))
    }

    fn refused(&self, blocked: &Blocked) -> ErrorKind {
        count_refusal(&self.upstream);
        ErrorKind::Refused(format!("{blocked} (redirect_hosts and trusted_realms can allow it)").into())
    }

    fn failure(&self, error: reqwest::Error) -> ErrorKind {
        let mut cause = error.source();
        while let Some(inner) = cause {
            if let Some(blocked) = inner.downcast_ref::<Blocked>() {
                return self.refused(blocked);
            }
            cause = inner.source();
        }
        failure_by(error, self.proxy.as_deref())
    }
}

pub fn count_refusal(upstream: &Arc<str>) {
    metrics::counter!("larder_upstream_redirects_refused_total", "upstream" => upstream.to_string()).increment(1);
}

/// What an error of the HTTP client means.
pub fn failure(error: reqwest::Error) -> ErrorKind {
    failure_by(error, None)
}

fn failure_by(error: reqwest::Error, proxy: Option<&str>) -> ErrorKind {
    let peer = Peer::new(error.url(), proxy);
    let (is_connect, is_timeout) = (error.is_connect(), error.is_timeout());
    let error = error.without_url();
    match (is_connect, is_timeout) {
        (true, true) => ErrorKind::no_connection_to(&peer.to()),
        (true, false) => ErrorKind::Connect(reason::of(&error, &peer).into()),
        (false, _) => ErrorKind::Cut(reason::of(&error, &peer).into()),
    }
}

/// An error with its causes, each said once, without URLs, on one line.
fn chain(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let next = inner.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = inner.source();
    }
    super::body::one_line(&text, 300)
}

/// Scheme, host and path: what may be shown of an address that is not ours (R-X17).
pub fn shown(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    let port = url.port().map(|p| format!(":{p}")).unwrap_or_default();
    let text = format!("{}://{host}{port}{}", url.scheme(), url.path());
    super::body::one_line(&text, 200)
}

/// Host and port of the proxy that requests to `home` go through, for messages.
fn proxy_for(home: &Url, given: Option<&Url>, proxies: &[(Url, Proxy)], sources: &Sources) -> Option<String> {
    let is_excepted = |list: &str| {
        let host = home.host_str().unwrap_or_default();
        let of =
            |name: &str| name == "*" || host == name || host.ends_with(&format!(".{}", name.trim_start_matches('.')));
        list.split(',').map(str::trim).any(|name| !name.is_empty() && of(name))
    };
    // Proxies of the environment stand in their order: that for http, that for https.
    let proxy = match (given, home.scheme()) {
        (Some(given), _) => given,
        _ if sources.no_proxy.as_deref().is_some_and(is_excepted) => return None,
        (None, "https") if sources.https_proxy.is_some() => &proxies.last()?.0,
        (None, "http") if sources.http_proxy.is_some() => &proxies.first()?.0,
        _ => return None,
    };
    reason::host_of(proxy)
}

/// The proxies on the way to `home`: the one that was `given`, else those of the environment.
pub fn proxies(home: &Url, given: Option<&Url>, sources: &Sources) -> Result<Vec<(Url, Proxy)>, String> {
    if let Some(url) = given {
        let proxy = Proxy::all(url.clone()).map_err(|_| format!("proxy {} cannot be used", shown(url)))?;
        return Ok(vec![(url.clone(), proxy)]);
    }
    let local = match home.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(ip)) => Class::of(ip.into()) == Class::Loopback,
        Some(Host::Ipv6(ip)) => Class::of(ip.into()) == Class::Loopback,
        None => false,
    };
    let mut found = Vec::new();
    for (text, is_https) in [(&sources.http_proxy, false), (&sources.https_proxy, true)] {
        let Some(text) = text.as_deref().filter(|_| !local) else {
            continue;
        };
        let full = if text.contains("://") {
            text.to_owned()
        } else {
            format!("http://{text}")
        };
        // The text may hold a password: it is not repeated.
        let url: Url = full
            .parse()
            .map_err(|_| "a proxy in the environment is not a URL".to_owned())?;
        let proxy = if is_https {
            Proxy::https(url.clone())
        } else {
            Proxy::http(url.clone())
        };
        let proxy = proxy.map_err(|_| format!("proxy {} cannot be used", shown(&url)))?;
        let except = sources.no_proxy.as_deref().and_then(NoProxy::from_string);
        found.push((url, proxy.no_proxy(except)));
    }
    Ok(found)
}
