//! Redirects, bodies, ranges, pages, mirrors, deadlines.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::upstream::credentials::Sources;
use crate::upstream::transport::{Named, Outgoing, Transport};
use crate::upstream::via::Via;
use crate::upstream::{GetFallback, ListSink, Referrers, endpoint};

async fn blob(client: &Client, offset: u64) -> Result<BlobStream, UpstreamError> {
    client.get_blob(&repository("a/b"), &digest(), offset).await
}

/// R-U20, R-U22, R-X4.
#[tokio::test]
async fn redirects_lose_authorization_and_keep_the_rest() {
    let storage = Server::start(|_, _| {
        say(206, "56789")
            .with("content-range", "bytes 5-9/10")
            .kind("text/html")
    })
    .await;
    let elsewhere = storage.url();
    let server = Server::start(move |_, seen| match seen.authorization() {
        Some(_) => say(307, "").with("location", format!("{elsewhere}data?sig=s")),
        None => say(401, "").with("www-authenticate", "Basic realm=x"),
    })
    .await;
    let mut with = upstream(&server.url());
    with.credentials = login("user", "hunter2");
    let client = client(with);
    let stream = blob(&client, 5).await.unwrap();
    assert_eq!((stream.start, stream.total), (5, Some(10)));
    assert_eq!(all(stream).await.unwrap(), b"56789");
    let seen = storage.seen().pop().unwrap();
    assert_eq!(seen.authorization(), None);
    assert_eq!(seen.header("range"), Some("bytes=5-"));
    assert_eq!(seen.header("accept-encoding"), Some("identity"));
    assert_eq!(seen.query, "sig=s");
}

#[tokio::test]
async fn the_digest_is_the_first_hops() {
    let want = Digest::sha256(BODY.as_bytes());
    let server = Server::start(move |_, seen| match seen.path.as_str() {
        "/elsewhere" => manifest().with("docker-content-digest", digest()),
        _ => say(302, "")
            .with("location", "/elsewhere")
            .with("docker-content-digest", want),
    })
    .await;
    let client = client(upstream(&server.url()));
    let body = client
        .get_manifest(&repository("a"), &tag("x"), MAX_MANIFEST_BYTES)
        .await
        .unwrap();
    assert_eq!(body.digest, Some(want));
    let head = client.head_manifest(&repository("a"), &tag("x")).await.unwrap();
    assert_eq!(head.digest, Some(want));
    assert_eq!(head.media_type.as_deref(), Some(media_type::OCI_INDEX));
    assert_eq!(head.size, Some(BODY.len() as u64));
}

/// R-X3 and `redirect_hosts`.
#[tokio::test]
async fn redirects_that_are_refused() {
    let storage = Server::start(|_, _| say(200, "x")).await;
    let inside = storage.url();
    for (location, list) in [
        ("http://169.254.169.254/latest/meta-data/".to_owned(), None),
        ("http://[::ffff:169.254.169.254]/".to_owned(), None),
        ("http://0.0.0.0/".to_owned(), None),
        ("ftp://r.example/".to_owned(), None),
        ("http://user:pw@127.0.0.1/".to_owned(), None),
        (inside.clone(), Some(vec![host("cdn.example"), host("127.0.0.1:1")])),
    ] {
        let target = location.clone();
        let server = Server::start(move |_, _| say(307, "").with("location", &target)).await;
        let mut with = upstream(&server.url());
        with.redirect_hosts = list;
        let error = blob(&client(with), 0).await.unwrap_err();
        assert!(matches!(error.kind, ErrorKind::Refused(_)), "{location}: {error}");
        assert_eq!(server.seen().len(), 1);
    }
    assert_eq!(storage.seen().len(), 0);

    let server = Server::start(move |_, _| say(307, "").with("location", &inside)).await;
    let mut with = upstream(&server.url());
    with.redirect_hosts = Some(vec![host(&storage.address.to_string())]);
    assert_eq!(all(blob(&client(with), 0).await.unwrap()).await.unwrap(), b"x");

    let circle = Server::start(|_, _| say(307, "").with("location", "again")).await;
    let error = blob(&client(upstream(&circle.url())), 0).await.unwrap_err();
    assert!(matches!(error.kind, ErrorKind::Refused(_)), "{error}");
    assert_eq!(circle.seen().len(), 6);
}

/// R-X3: what an upstream at a public address names is resolved through the guard.
#[tokio::test]
async fn names_that_lead_inside_are_refused_at_connect() {
    let inside = Server::start(|_, _| say(200, "x")).await;
    let mut public = upstream("https://8.8.8.8/");
    let url = format!("http://localhost:{}/", inside.address.port()).parse().unwrap();
    let out = Outgoing {
        method: &reqwest::Method::GET,
        accept: "*/*",
        range: None,
        as_stored: false,
        authorization: None,
        form: None,
    };
    let transport = Transport::new(&public.url, &public, &Sources::default(), &Via::random()).unwrap();
    let error = transport.send(&url, Named::ByUpstream, &out).await.unwrap_err();
    assert!(matches!(error, ErrorKind::Refused(_)), "{error}");
    assert_eq!(inside.seen().len(), 0);
    assert!(transport.send(&url, Named::ByOperator, &out).await.is_ok());

    public.url = "http://127.0.0.1:1/".parse().unwrap();
    let local = Transport::new(&public.url, &public, &Sources::default(), &Via::random()).unwrap();
    assert!(local.send(&url, Named::ByUpstream, &out).await.is_ok());
}

/// R-U45.
#[tokio::test]
async fn a_host_that_is_redirected_to_may_want_a_token_of_its_own() {
    let revoked = Arc::new(AtomicUsize::new(0));
    let current = revoked.clone();
    let other = Server::start(move |own, seen| match seen.path.as_str() {
        "/token" => say(
            200,
            format!(r#"{{"token":"theirs{}"}}"#, current.load(Ordering::SeqCst)),
        ),
        _ if seen.authorization() == Some(&format!("Bearer theirs{}", current.load(Ordering::SeqCst))) => manifest(),
        _ => bearer(own, "/token"),
    })
    .await;
    let target = format!("{}v2/mapped/manifests/latest", other.url());
    let server = Server::start(move |_, _| say(307, "").with("location", &target)).await;
    let mut with = upstream(&server.url());
    with.credentials = login("user", "hunter2");
    let client = client(with);
    get(&client).await.unwrap();
    let token = other.seen().into_iter().find(|s| s.path == "/token").unwrap();
    assert_eq!(token.authorization(), None);
    assert_eq!(token.param("scope").as_deref(), Some("repository:user/image:pull"));
    assert_eq!(client.has_credentials(&repository("a/b")), Some(false));
    get(&client).await.unwrap();
    assert_eq!(other.count("/token"), 1);
    // Their token ages like any other.
    revoked.store(1, Ordering::SeqCst);
    get(&client).await.unwrap();
    assert_eq!(other.count("/token"), 2);
}

/// R-U12: what a store or a firewall forbids is no word about what the registry has.
#[tokio::test]
async fn a_forbidden_store_is_no_verdict() {
    let store = Server::start(|_, _| say(403, "AccessDenied")).await;
    for (path, is_definite) in [("data/x?sig=s", false), ("v2/other/blobs/x", true)] {
        let target = format!("{}{path}", store.url());
        let server = Server::start(move |_, _| say(307, "").with("location", &target)).await;
        let error = blob(&client(upstream(&server.url())), 0).await.unwrap_err();
        assert_eq!(error.is_definite(), is_definite, "{error}");
        assert_eq!(server.seen().len(), 1);
    }
}

/// Callers run these in tasks of their own.
#[test]
fn futures_are_send() {
    fn check<T: Send>(_: impl Fn(&'static Client) -> T) {}
    fn name() -> &'static Repository {
        unreachable!("never called")
    }
    check(|c| async { c.head_manifest(name(), &tag("x")).await });
    check(|c| async { c.get_manifest(name(), &tag("x"), MAX_MANIFEST_BYTES).await });
    check(|c| async { c.get_blob(name(), &digest(), 0).await?.next().await });
    check(|c| async { c.tags(name(), &Gather::default()).await });
    check(|c| async { c.referrers(name(), &digest(), &Gather::default()).await });
}

/// R-U25.
#[tokio::test]
async fn ranges_are_checked() {
    let answer = async |make: fn() -> Say| {
        let server = Server::start(move |_, _| make()).await;
        let client = client(upstream(&server.url()));
        let stream = blob(&client, 5).await.map_err(|e| e.kind)?;
        Ok::<_, ErrorKind>((stream.start, stream.total))
    };
    let whole = answer(|| say(200, "0123456789")).await.unwrap();
    assert_eq!(whole, (0, Some(10)));
    let unknown = answer(|| say(206, "56789").with("content-range", "bytes 5-9/*"))
        .await
        .unwrap();
    assert_eq!(unknown, (5, None));
    let wrong: [fn() -> Say; 4] = [
        || say(206, "0123456789").with("content-range", "bytes 0-9/10"),
        || say(206, "56789"),
        || say(416, "").with("content-range", "bytes */5"),
        || say(206, "5678").with("content-range", "bytes 5-9/10"),
    ];
    for make in wrong {
        assert!(matches!(answer(make).await, Err(ErrorKind::Protocol(_))));
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_is_cut() {
    let server = Server::start(|_, seen| match seen.path.contains("/blobs/") {
        true => say(200, "01234").cut(10),
        false => say(200, "{").kind(media_type::OCI_INDEX).cut(10),
    })
    .await;
    let client = client(upstream(&server.url()));
    let mut stream = blob(&client, 0).await.unwrap();
    assert_eq!(stream.total, Some(10));
    let error = loop {
        match stream.next().await {
            Ok(Some(piece)) => assert_eq!(piece, "01234"),
            Ok(None) => panic!("the body was not complete"),
            Err(error) => break error,
        }
    };
    assert!(matches!(error.kind, ErrorKind::Cut(_)), "{error}");
    let error = get(&client).await.unwrap_err();
    assert!(matches!(error.kind, ErrorKind::Cut(_)), "{error}");
    assert_eq!(server.seen().len(), 1 + 6);
}

/// R-C18.
#[tokio::test]
async fn headers_that_do_not_come_are_a_timeout() {
    let server = Server::start(|_, _| say(200, "").hang()).await;
    let mut slow = upstream(&server.url());
    slow.answer_timeout = Duration::from_millis(50);
    let client = client(slow);
    for outcome in [get(&client).await, blob(&client, 0).await.map(|_| ())] {
        assert!(matches!(outcome.unwrap_err().kind, ErrorKind::Timeout(_)));
    }
}

/// What comes after `Tuning::headers` is late, and an answer all the same; of a mirror it would be none.
#[tokio::test]
async fn late_headers_are_an_answer() {
    let quick = Tuning {
        headers: Duration::from_millis(50),
        ..tuning()
    };
    let late = Duration::from_millis(500);
    let slow = Server::start(move |_, seen| match seen.path.ends_with("latest") {
        true => manifest().after(late),
        false => say(200, "0123456789").after(late),
    })
    .await;
    let client = build(upstream(&slow.url()), &Sources::default(), quick);
    get(&client).await.unwrap();
    assert_eq!(all(blob(&client, 0).await.unwrap()).await.unwrap(), b"0123456789");
    let part = client.get_blob_part(&repository("a/b"), &digest(), 2..5, &[]).await;
    assert!(
        matches!(part.unwrap_err().kind, ErrorKind::Timeout(_)),
        "it can be done without"
    );
    let own = Server::start(|_, _| manifest()).await;
    let mut mirrored = upstream(&own.url());
    mirrored.mirrors = vec![slow.url().parse().unwrap()];
    get(&build(mirrored, &Sources::default(), quick)).await.unwrap();
    assert_eq!(own.seen().len(), 1);
}

/// `answer_timeout` may be shorter than a mirror needs to fail, with the body of a list, say: that is not the
/// registry's time.
#[tokio::test]
async fn a_mirror_takes_none_of_the_registrys_time() {
    let millisecond = Duration::from_millis(1);
    let mirror = Server::start(|_, _| say(200, r#"{"tags":["#).kind("application/json").stall(100)).await;
    let server = Server::start(move |_, _| say(200, r#"{"tags":["a"]}"#).after(50 * millisecond)).await;
    let mut with = upstream(&server.url());
    with.mirrors = vec![mirror.url().parse().unwrap()];
    with.answer_timeout = 500 * millisecond;
    let tuning = Tuning {
        document: 800 * millisecond,
        ..tuning()
    };
    let client = build(with, &Sources::default(), tuning);
    let gather = Gather::default();
    client.tags(&repository("r"), &gather).await.unwrap();
    assert_eq!((gather.lines(), mirror.seen().len()), (vec!["a".to_owned()], 1));
    let registry = client.addresses().pop().unwrap();
    assert_eq!(registry.failures, 0, "{registry:?}");
}

/// A mirror that is down is asked when the registry has had all its time, and has time of its own then.
#[tokio::test]
async fn the_last_resort_has_time_of_its_own() {
    let millisecond = Duration::from_millis(1);
    let asked = AtomicUsize::new(0);
    let mirror = Server::start(move |_, _| match asked.fetch_add(1, Ordering::SeqCst) {
        0 => say(200, "").hang(),
        _ => manifest().after(300 * millisecond),
    })
    .await;
    let server = Server::start(|_, _| say(200, "").hang()).await;
    let mut with = upstream(&server.url());
    with.mirrors = vec![mirror.url().parse().unwrap()];
    with.answer_timeout = 200 * millisecond;
    get(&client(with)).await.unwrap();
    assert_eq!((mirror.seen().len(), server.seen().len()), (2, 1));
}

/// Of `max_connections` what nobody answers takes half, and the oldest of it gives way.
#[tokio::test]
async fn late_questions_leave_room_for_others() {
    let server = Server::start(|_, seen| match seen.path.contains("hung") {
        true => say(200, "").hang(),
        false => manifest(),
    })
    .await;
    let mut with = upstream(&server.url());
    with.max_connections = Some(2);
    let tuning = Tuning {
        headers: Duration::from_millis(50),
        ..tuning()
    };
    let client = build(with, &Sources::default(), tuning);
    let hung = || {
        let client = client.clone();
        tokio::spawn(async move {
            client
                .get_manifest(&repository("a/hung"), &tag("1"), MAX_MANIFEST_BYTES)
                .await
        })
    };
    let (first, second) = (hung(), hung());
    while server.seen().len() < 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // Both slots are taken until the second is late.
    get(&client).await.unwrap();
    assert!(
        first.is_finished() != second.is_finished(),
        "one has given way, one waits on"
    );
    let given_up = match first.is_finished() {
        true => first.await.unwrap(),
        false => second.await.unwrap(),
    };
    assert!(matches!(given_up.unwrap_err().kind, ErrorKind::Timeout(_)));
}

#[tokio::test]
async fn a_body_that_stalls_is_a_timeout() {
    let server = Server::start(|_, _| say(200, "01234").kind(media_type::OCI_INDEX).stall(10)).await;
    let mut with = upstream(&server.url());
    with.read_timeout = Duration::from_millis(200);
    let client = client(with);
    let error = all(blob(&client, 0).await.unwrap()).await.unwrap_err();
    assert!(matches!(error.kind, ErrorKind::Timeout(_)), "{error}");
    let error = get(&client).await.unwrap_err();
    assert!(matches!(error.kind, ErrorKind::Timeout(_)), "{error}");
}

/// A caller that is busy with other things drops its wait and begins another: what stalls is found out all the same.
#[tokio::test]
async fn waits_that_are_dropped_count_towards_a_timeout() {
    let server = Server::start(|_, _| say(200, "01234").stall(10)).await;
    let mut with = upstream(&server.url());
    with.read_timeout = Duration::from_millis(300);
    let mut stream = blob(&client(with), 0).await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), "01234");
    let mut waits = 0;
    let error = loop {
        match tokio::time::timeout(Duration::from_millis(20), stream.next()).await {
            Ok(ended) => break ended.unwrap_err(),
            Err(_) => waits += 1,
        }
        assert!(waits < 200, "it waits without end");
    };
    assert!(
        matches!(error.kind, ErrorKind::Timeout(time) if time.as_millis() == 300),
        "{error}"
    );
    assert!(waits > 1, "{waits}");
}

/// R-X13, R-X12, L2.
#[tokio::test]
async fn documents_that_are_none() {
    let answer = async |make: fn() -> Say| {
        let server = Server::start(move |_, _| make()).await;
        get(&client(upstream(&server.url()))).await.unwrap_err()
    };
    let wrong: [fn() -> Say; 6] = [
        || say(200, vec![b' '; 1 << 20]).kind(media_type::OCI_INDEX).chunked(5),
        || say(200, vec![b' '; (4 << 20) + 1]).kind(media_type::OCI_INDEX),
        || say(200, "<html>").kind("text/html; charset=utf-8"),
        || manifest().with("content-encoding", "gzip"),
        || say(206, BODY).with("content-range", "bytes 0-9/10"),
        || say(204, ""),
    ];
    for make in wrong {
        let error = answer(make).await;
        let is_refused = matches!(error.kind, ErrorKind::Protocol(_) | ErrorKind::TooLarge { .. });
        assert!(is_refused, "{error}");
    }
    let redirect = answer(|| say(307, "")).await;
    assert!(matches!(redirect.kind, ErrorKind::Refused(_)), "{redirect}");
}

/// A request is repeated five times; then the registry is down, and each is asked once until one is answered.
#[tokio::test]
async fn repeats_are_few() {
    let count = Arc::new(AtomicUsize::new(0));
    let server = Server::start(move |_, seen| match seen.path.contains("/flaky/") {
        true if count.fetch_add(1, Ordering::SeqCst) == 5 => manifest(),
        true if count.load(Ordering::SeqCst) > 7 => manifest(),
        _ => say(503, ""),
    })
    .await;
    let client = client(upstream(&server.url()));
    let flaky = async || {
        client
            .get_manifest(&repository("flaky"), &tag("x"), MAX_MANIFEST_BYTES)
            .await
    };
    flaky().await.unwrap();
    assert_eq!(server.seen().len(), 6);
    for asked in [12, 13, 14] {
        let error = get(&client).await.unwrap_err();
        assert!(matches!(error.kind, ErrorKind::Status { status: 503, .. }), "{error}");
        assert_eq!(server.seen().len(), asked);
    }
    assert!(client.addresses()[0].down_for.is_some());
    flaky().await.unwrap_err();
    flaky().await.unwrap();
    assert_eq!(client.addresses()[0].down_for, None);
    assert_eq!(client.addresses()[0].failures, 5 + 6 + 2 + 1);
}

/// Parts that are asked for beside a connection that works are asked for once, and bring nothing down.
#[tokio::test]
async fn extra_parts_are_asked_for_once() {
    let server = Server::start(|_, _| say(503, "")).await;
    let client = client(upstream(&server.url()));
    for asked in 1..=10 {
        let part = client.get_blob_part(&repository("a"), &digest(), 0..5, &[]).await;
        assert_eq!(part.unwrap_err().as_str(), "status");
        assert_eq!(server.seen().len(), asked);
    }
    assert!(client.addresses().is_empty());
}

/// R-U27: told apart, so that the caller can decide whether to GET.
#[tokio::test]
async fn statuses() {
    for (status, want) in [
        (404, "not-found"),
        (403, "denied"),
        (405, "status"),
        (400, "status"),
        (501, "status"),
    ] {
        let server = Server::start(move |_, _| say(status, "")).await;
        let error = client(upstream(&server.url()))
            .head_manifest(&repository("a"), &tag("x"))
            .await
            .unwrap_err();
        assert_eq!(error.as_str(), want, "{status}");
        assert_eq!(server.seen().len(), 1);
    }
    let gone = client(upstream("http://127.0.0.1:1/"));
    assert_eq!(get(&gone).await.unwrap_err().as_str(), "connect");
    let mut offline = upstream("http://127.0.0.1:1/");
    offline.offline = true;
    assert_eq!(get(&client(offline)).await.unwrap_err().as_str(), "offline");
}

/// The lines of a list, in memory.
#[derive(Default)]
struct Gather(std::sync::Mutex<Vec<u8>>);

impl Gather {
    fn lines(&self) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.lines().map(str::to_owned).collect()
    }
}

impl ListSink for Gather {
    fn restart(&self) {
        self.0.lock().unwrap().clear();
    }

    fn take(&self, lines: Vec<u8>) -> futures_util::future::BoxFuture<'_, bool> {
        self.0.lock().unwrap().extend(lines);
        Box::pin(std::future::ready(true))
    }
}

/// A list that breaks off is asked for again, and nothing of the first attempt is left.
#[tokio::test]
async fn a_list_that_breaks_off_is_asked_for_again() {
    let second_pages = AtomicUsize::new(0);
    let server = Server::start(move |_, seen| match seen.param("last") {
        None => say(200, r#"{"tags":["a"]}"#).with("link", "<list?last=a>; rel=next"),
        Some(_) if second_pages.fetch_add(1, Ordering::SeqCst) == 0 => say(503, ""),
        Some(_) => say(200, r#"{"tags":["b"]}"#),
    })
    .await;
    let gather = Gather::default();
    client(upstream(&server.url()))
        .tags(&repository("r"), &gather)
        .await
        .unwrap();
    assert_eq!(gather.lines(), ["a", "b"]);
    assert_eq!(server.seen().len(), 4);
}

/// The time that the sink waits is not the upstream's: it is longer here than the upstream may take.
#[tokio::test]
async fn a_sink_that_waits_costs_the_upstream_nothing() {
    struct Slow(Gather);
    impl ListSink for Slow {
        fn restart(&self) {
            self.0.restart();
        }
        fn take(&self, lines: Vec<u8>) -> futures_util::future::BoxFuture<'_, bool> {
            Box::pin(async move {
                tokio::time::sleep(Duration::from_secs(4)).await;
                self.0.take(lines).await
            })
        }
    }
    let server = Server::start(|_, seen| match seen.param("last") {
        None => say(200, r#"{"tags":["a"]}"#).with("link", "<list?last=a>; rel=next"),
        _ => say(200, r#"{"tags":["b"]}"#),
    })
    .await;
    let slow = Slow(Gather::default());
    let tuning = Tuning {
        document: Duration::from_secs(3),
        ..tuning()
    };
    let client = build(upstream(&server.url()), &Sources::default(), tuning);
    client.tags(&repository("r"), &slow).await.unwrap();
    assert_eq!(slow.0.lines(), ["a", "b"]);
}

/// R-X2.
#[tokio::test]
async fn tag_pages() {
    let server = Server::start(|_, seen| match (seen.path.as_str(), seen.param("last").as_deref()) {
        ("/v2/ok/tags/list", None) => {
            say(200, r#"{"tags":["a","b","not a tag"]}"#).with("link", "</v2/ok/tags/list?last=b&n=2>; rel=\"next\"")
        }
        ("/v2/ok/tags/list", Some("b")) => say(200, r#"{"tags":["c"]}"#).with("link", "<list?last=c>;rel=next"),
        ("/v2/ok/tags/list", _) => say(200, r#"{"name":"ok","tags":null}"#),
        ("/v2/off/tags/list", _) => {
            say(200, r#"{"tags":["a"]}"#).with("link", "<https://evil.example/v2/>; rel=\"next\"")
        }
        // It knows nothing of `last`, and has said all at once.
        ("/v2/deaf/tags/list", _) => say(200, r#"{"tags":["a","b"]}"#).with("link", "<list?last=b>; rel=next"),
        ("/v2/counting/tags/list", page) => {
            let next = page.map_or(1, |page| page.parse::<u32>().unwrap() + 1);
            say(200, r#"{"tags":["a","b"]}"#).with("link", format!("<list?last={next}>; rel=next"))
        }
        ("/v2/empty/tags/list", page) => {
            let next = page.map_or(1, |page| page.parse::<u32>().unwrap() + 1);
            let tags = if next == 4 {
                r#"{"tags":["a","b"]}"#
            } else {
                r#"{"name":"empty"}"#
            };
            say(200, tags).with("link", format!("<list?last={next}>; rel=next"))
        }
        // It names a path that is not its own, or its own without what is before it.
        ("/v2/lost/tags/list", None) => {
            say(200, r#"{"tags":["a"]}"#).with("link", "</v2/inner/name/tags/list?last=a&n=1>; rel=\"next\"")
        }
        ("/v2/lost/tags/list", _) => say(200, r#"{"tags":["b"]}"#).with("link", "?last=a; rel=\"next\""),
        ("/v2/half/tags/list", None) => say(200, r#"{"tags":["a"]}"#).with("link", "<list?last=a>"),
        ("/v2/half/tags/list", _) => say(404, ""),
        ("/v2/page/tags/list", _) => say(200, "<html>").kind("text/html"),
        ("/v2/odd/tags/list", _) => say(200, r#"{"tags":"a"}"#),
        _ => say(404, ""),
    })
    .await;
    let client = client(upstream(&server.url()));
    let gather = Gather::default();
    client.tags(&repository("ok"), &gather).await.unwrap();
    assert_eq!(gather.lines(), ["a", "b", "c"]);
    assert_eq!(server.seen()[0].param("n").as_deref(), Some("1000"));
    for (name, asked) in [("deaf", 2), ("counting", 2), ("empty", 9), ("lost", 3)] {
        let (gather, before) = (Gather::default(), server.seen().len());
        client.tags(&repository(name), &gather).await.unwrap();
        let mut lines = gather.lines();
        lines.dedup();
        lines.truncate(2);
        assert_eq!(lines, ["a", "b"], "{name}");
        assert_eq!(server.seen().len() - before, asked, "{name}");
    }
    for (name, want) in [
        ("off", "refused"),
        ("half", "protocol"),
        ("page", "protocol"),
        ("odd", "protocol"),
        ("none", "not-found"),
    ] {
        assert_eq!(
            client
                .tags(&repository(name), &Gather::default())
                .await
                .unwrap_err()
                .as_str(),
            want,
            "{name}"
        );
    }
}

/// R-S20, R-S21, R-C81.
#[tokio::test]
async fn referrers() {
    let server = Server::start(|_, seen| match seen.path.split('/').nth(2).unwrap_or_default() {
        "listed" if seen.query.is_empty() => say(200, r#"{"manifests":[{"digest":"x"}]}"#)
            .kind(media_type::OCI_INDEX)
            .with("link", "<?page=2>; rel=next"),
        "listed" => say(200, r#"{"manifests":[{"digest":"y"}]}"#).kind(media_type::OCI_INDEX),
        // It gives the first page again, and then another that it does not have.
        "deaf" => say(
            200,
            format!(
                "{{\"schemaVersion\":2,\"manifests\":[{{\"digest\":\"{}\"}}]}}",
                digest()
            ),
        )
        .kind(media_type::OCI_INDEX)
        .with("link", format!("</referrers?page={}>; rel=next", seen.query.len())),
        "none" => say(200, r#"{"schemaVersion":2}"#).kind(media_type::OCI_INDEX),
        "half" if seen.query.is_empty() => say(200, r#"{"manifests":[]}"#)
            .kind(media_type::OCI_INDEX)
            .with("link", "<?page=2>; rel=next"),
        "half" => say(404, ""),
        "front" => say(200, "<html>").kind("text/html"),
        "old" => say(404, "404 page not found"),
        "picky" => say(405, ""),
        "private" => say(403, ""),
        _ => say(500, ""),
    })
    .await;
    let client = client(upstream(&server.url()));
    let gather = Gather::default();
    let ask = async |name: &str| client.referrers(&repository(name), &digest(), &gather).await;
    assert_eq!(ask("listed").await.unwrap(), Referrers::Listed);
    assert_eq!(gather.lines(), [r#"{"digest":"x"}"#, r#"{"digest":"y"}"#]);
    gather.restart();
    assert_eq!(ask("deaf").await.unwrap(), Referrers::Listed);
    assert_eq!(gather.lines(), [format!("{{\"digest\":\"{}\"}}", digest())]);
    gather.restart();
    assert_eq!(ask("none").await.unwrap(), Referrers::Listed);
    assert!(gather.lines().is_empty());
    // What is missing of a list that is there does not make it one that is not (R-C81).
    assert_eq!(ask("half").await.unwrap_err().as_str(), "protocol");
    for name in ["front", "old", "picky"] {
        assert!(matches!(ask(name).await, Ok(Referrers::Unsupported)), "{name}");
    }
    assert_eq!(ask("private").await.unwrap_err().as_str(), "denied");
    assert_eq!(ask("broken").await.unwrap_err().as_str(), "status");
}

/// Mirrors come first and never see the upstream's password (L7); a base path comes before `/v2/` (R-U50).
#[tokio::test]
async fn mirrors() {
    let mirror = Server::start(|_, seen| match seen.path.contains("/held/") {
        true => manifest(),
        false if seen.path.contains("/gone/") => say(404, ""),
        false => say(401, "").with("www-authenticate", "Basic realm=x"),
    })
    .await;
    let server = Server::start(|_, seen| match seen.authorization() {
        Some(_) => manifest(),
        None => say(401, "").with("www-authenticate", "Basic realm=x"),
    })
    .await;
    let mut with = upstream(&format!("{}base/path", server.url()));
    with.mirrors = vec!["http://127.0.0.1:1/".parse().unwrap(), mirror.url().parse().unwrap()];
    with.credentials = login("user", "hunter2");
    let client = client(with);
    client
        .get_manifest(&repository("held"), &tag("x"), MAX_MANIFEST_BYTES)
        .await
        .unwrap();
    assert_eq!(server.seen().len(), 0);
    assert_eq!(
        client.has_credentials(&repository("held")),
        Some(true),
        "a mirror has no say in that (L8)"
    );
    for name in ["gone", "private"] {
        client
            .get_manifest(&repository(name), &tag("x"), MAX_MANIFEST_BYTES)
            .await
            .unwrap();
        assert_eq!(client.has_credentials(&repository(name)), Some(true));
    }
    assert!(mirror.seen().iter().all(|s| s.authorization().is_none()));
    let paths: HashSet<String> = server.seen().into_iter().map(|s| s.path).collect();
    assert_eq!(
        paths,
        HashSet::from([
            "/base/path/v2/gone/manifests/x".to_owned(),
            "/base/path/v2/private/manifests/x".to_owned()
        ])
    );
    // L11: the registry itself confirms, mirrors are left aside.
    let (held, x) = (repository("held"), tag("x"));
    assert!(!client.head_manifest(&held, &x).await.unwrap().by_itself);
    let asked = mirror.seen().len();
    assert!(client.confirm_manifest(&held, &x).await.unwrap().by_itself);
    let digest = Digest::sha256(b"x");
    let head = client.confirm_blob(&held, &digest, GetFallback::Never).await;
    assert!(!head.unwrap().proves_nothing);
    assert_eq!(mirror.seen().len(), asked);
    assert!(
        server
            .seen()
            .iter()
            .any(|s| s.path.ends_with(&format!("held/blobs/{digest}")))
    );
}

/// `max_connections` counts a body until it is dropped.
#[tokio::test]
async fn slots_are_held_by_bodies() {
    let server = Server::start(|_, _| say(200, "x")).await;
    let mut with = upstream(&server.url());
    with.max_connections = Some(1);
    let client = client(with);
    let first = blob(&client, 0).await.unwrap();
    let mut second = std::pin::pin!(blob(&client, 0));
    assert!(futures_util::poll!(&mut second).is_pending());
    tokio::task::yield_now().await;
    assert!(futures_util::poll!(&mut second).is_pending());
    drop(first);
    assert_eq!(all(second.await.unwrap()).await.unwrap(), b"x");
    assert_eq!(server.seen().len(), 2);
}

#[tokio::test]
async fn tls_with_a_private_authority_and_no_way_down() {
    let dir = tempfile::tempdir().unwrap();
    let (acceptor, ca) = authority(dir.path());
    let plain = Server::start(|_, _| say(200, "x")).await;
    let down = plain.url();
    let server = Server::run(Some(acceptor), move |_, seen| match seen.path.contains("/blobs/") {
        true => say(307, "").with("location", &down),
        false => manifest(),
    })
    .await;
    let url = format!("https://{}/", server.address);
    let stranger = get(&client(upstream(&url))).await.unwrap_err();
    assert!(matches!(stranger.kind, ErrorKind::Connect(_)), "{stranger}");
    let mut with = upstream(&url);
    with.ca_file = Some(ca.clone());
    let known = client(with.clone());
    get(&known).await.unwrap();
    assert_eq!(server.seen()[0].version, hyper::Version::HTTP_2);
    let error = blob(&known, 0).await.unwrap_err();
    assert!(matches!(error.kind, ErrorKind::Refused(_)), "{error}");
    assert_eq!(plain.seen().len(), 0);

    with.ca_file = Some(dir.path().join("none.pem"));
    let error = Clients::with(&config(with), &Sources::default(), tuning()).unwrap_err();
    assert!(error.to_string().contains("none.pem"), "{error}");
}

#[tokio::test]
async fn an_egress_proxy_is_used_and_its_password_hidden() {
    let proxy = Server::start(|_, _| manifest()).await;
    let mut with = upstream("http://registry.invalid/");
    with.proxy = Some(format!("http://user:hunter2@{}", proxy.address).parse().unwrap());
    let client = client(with);
    get(&client).await.unwrap();
    assert!(!format!("{client:?}").contains("hunter2"));

    let sources = Sources {
        http_proxy: Some(proxy.address.to_string()),
        no_proxy: Some("direct.invalid".to_owned()),
        ..Sources::default()
    };
    get(&build(upstream("http://registry.invalid/"), &sources, tuning()))
        .await
        .unwrap();
    let direct = get(&build(upstream("http://direct.invalid/"), &sources, tuning()))
        .await
        .unwrap_err();
    assert!(matches!(direct.kind, ErrorKind::Connect(_)), "{direct}");
    assert_eq!(proxy.seen().len(), 2);
    // The type that carries a request shows no Authorization either.
    let _: fn(&endpoint::Ask<'_>) -> String = |ask| format!("{ask:?}");
}
