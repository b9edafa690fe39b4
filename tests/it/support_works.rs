//! The instrument itself: the scripted upstream does what the script says, the client sees what was sent.

use larder::oci::{Algorithm, Digest, media_type};

use crate::support::client::{Ask, Connection, End, Response, http2};
use crate::support::gate::Gate;
use crate::support::noise;
use crate::support::upstream::{Fault, LinkStyle, On, Outcome, ReferrersApi, TokenField, TokenPolicy, Upstream, basic};

const REPO: &str = "library/alpine";

async fn get(upstream: &Upstream, target: impl Into<String>) -> Response {
    Ask::get(target).send(upstream.address()).await
}

fn blob_path(digest: &Digest) -> String {
    format!("/v2/{REPO}/blobs/{digest}")
}

#[tokio::test]
async fn serves_an_image() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "3.22", &[1000, 2000]);
    let by_tag = get(&upstream, format!("/v2/{REPO}/manifests/3.22")).await.expect(200);
    assert_eq!(by_tag.body, image.bytes);
    assert_eq!(by_tag.header("content-type"), Some(media_type::DOCKER_MANIFEST));
    assert_eq!(
        by_tag.header("docker-content-digest"),
        Some(&*image.manifest.to_string())
    );
    for blob in image.blobs() {
        get(&upstream, blob_path(&blob)).await.expect_content(&blob);
    }
    let head = Ask::head(format!("/v2/{REPO}/manifests/{}", image.manifest));
    let head = head.send(upstream.address()).await.expect(200);
    assert_eq!(head.header("content-length"), Some(&*image.bytes.len().to_string()));
    let long = Digest::of(Algorithm::Sha512, &image.bytes);
    let by_long = get(&upstream, format!("/v2/{REPO}/manifests/{long}")).await.expect(200);
    assert_eq!(by_long.header("docker-content-digest"), Some(&*long.to_string()));
    assert_eq!(upstream.count(On::Manifests), 3);
    assert_eq!(upstream.count(On::Manifests.head()), 1);
    assert_eq!(upstream.count(On::Blob(image.layers[0])), 1);
    assert_eq!(upstream.bytes_sent(On::Blob(image.layers[1])), 2000);
}

#[tokio::test]
async fn a_repository_serves_only_what_it_holds() {
    let upstream = Upstream::start().await;
    let digest = upstream.blob("a/one", 100);
    let other = format!("/v2/a/two/blobs/{digest}");
    assert_eq!(get(&upstream, &other).await.expect(404).error_code(), "BLOB_UNKNOWN");
    upstream.mount(&digest, "a/two");
    get(&upstream, &other).await.expect_content(&digest);
    let manifest = get(&upstream, "/v2/a/two/manifests/none").await.expect(404);
    assert_eq!(manifest.error_code(), "MANIFEST_UNKNOWN");
    let repo = get(&upstream, "/v2/a/three/manifests/none").await.expect(404);
    assert_eq!(repo.error_code(), "NAME_UNKNOWN");
}

#[tokio::test]
async fn tags_move_and_go() {
    let upstream = Upstream::start().await;
    let (old, new) = (upstream.image(REPO, "a", &[10]), upstream.image(REPO, "b", &[10]));
    let path = format!("/v2/{REPO}/manifests/a");
    get(&upstream, &path).await.expect_content(&old.manifest);
    upstream.move_tag(REPO, "a", &new.manifest);
    get(&upstream, &path).await.expect_content(&new.manifest);
    upstream.remove_tag(REPO, "a");
    get(&upstream, &path).await.expect(404);
}

#[tokio::test]
async fn ranges() {
    let upstream = Upstream::start().await;
    let bytes = noise(1, 2048);
    let path = blob_path(&upstream.put_blob(REPO, bytes.clone()));
    let ask = async |range: &str| Ask::get(&path).range(range).send(upstream.address()).await;
    for (range, from, to) in [
        ("bytes=500-1499", 500, 1500),
        ("bytes=500-", 500, 2048),
        ("bytes=-500", 1548, 2048),
        ("bytes=2000-5000", 2000, 2048),
    ] {
        let part = ask(range).await.expect(206);
        assert_eq!(part.body, bytes[from..to], "{range}");
        let content_range = format!("bytes {from}-{}/2048", to - 1);
        assert_eq!(part.header("content-range"), Some(&*content_range));
    }
    let past = ask("bytes=5000-10000").await.expect(416);
    assert_eq!(past.header("content-range"), Some("bytes */2048"));
    assert_eq!(ask("lines=1-2").await.expect(200).body, bytes);
    assert_eq!(upstream.count(On::Blobs.ranged()), 6);
    assert_eq!(upstream.count(On::Blobs.whole()), 0);
}

#[tokio::test]
async fn cut_and_reset_are_told_apart() {
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, 100_000);
    let bytes = upstream.bytes(&digest);
    upstream.on(On::Blobs).cut_after(70_000);
    upstream.on(On::Blobs).reset_after(10_000);
    let cut = get(&upstream, blob_path(&digest)).await;
    assert_eq!((cut.status, cut.end), (200, End::Short));
    assert_eq!(cut.body, bytes[..70_000]);
    let reset = get(&upstream, blob_path(&digest)).await;
    assert_eq!((reset.status, reset.end), (200, End::Reset));
    assert!(reset.body.len() <= 10_000);
    // The script is used up.
    get(&upstream, blob_path(&digest)).await.expect_content(&digest);
    let seen = upstream.matching(On::Blobs);
    assert_eq!(seen[0].outcome, Outcome::Cut);
    assert_eq!((seen[0].bytes_sent, seen[1].bytes_sent), (70_000, 10_000));
    upstream
        .wait_until("the last to be whole", |all| all[2].outcome == Outcome::Complete)
        .await;
}

#[tokio::test]
async fn a_connection_without_an_answer() {
    let upstream = Upstream::start().await;
    upstream.on(On::Ping).drop_connection();
    upstream.on(On::Ping).reset_connection();
    for wanted in [End::Short, End::Reset] {
        let mut connection = Connection::open(upstream.address()).await;
        connection.write(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert_eq!(connection.read_to_end().await, (Vec::new(), wanted));
    }
}

#[tokio::test]
async fn stalls_until_the_gate_opens() {
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, 50_000);
    let (head, body) = (Gate::closed(), Gate::closed());
    let rule = upstream.on(On::Blobs).does([
        Fault::StallHeaders(head.clone()),
        Fault::StallAfter(20_000, body.clone()),
    ]);
    let asking = tokio::spawn(Ask::get(blob_path(&digest)).open(upstream.address()));
    head.wait_for_arrivals(1).await;
    assert!(!asking.is_finished());
    head.open();
    let mut exchange = asking.await.unwrap();
    upstream.wait_until_sent(&digest, 20_000).await;
    body.wait_for_arrivals(1).await;
    assert_eq!(exchange.read_at_least(20_000).await.len(), 20_000);
    assert_eq!(upstream.bytes_sent(On::Blobs), 20_000);
    body.let_through(1);
    exchange.rest().await.expect_content(&digest);
    assert_eq!(rule.hits(), 1);
}

#[tokio::test]
async fn steps_and_rates() {
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, 3000);
    let gate = Gate::closed();
    upstream.on(On::Blobs).step(1000, &gate);
    let mut exchange = Ask::get(blob_path(&digest)).open(upstream.address()).await;
    for step in 1..=3 {
        gate.wait_for_arrivals(step).await;
        assert_eq!(upstream.bytes_sent(On::Blobs), (step as u64 - 1) * 1000);
        gate.let_through(1);
        assert_eq!(exchange.read_at_least(step * 1000).await.len(), step * 1000);
    }
    exchange.rest().await.expect_content(&digest);
    upstream.on(On::Blobs).throttle(100_000);
    get(&upstream, blob_path(&digest)).await.expect_content(&digest);
}

#[tokio::test]
async fn hangs_until_the_peer_gives_up() {
    let upstream = Upstream::start().await;
    upstream.on(On::Any).always().hang_connection();
    let mut connection = Connection::open(upstream.address()).await;
    connection.write(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n").await;
    upstream.wait_for(On::Ping, 1).await;
    upstream.wait_for_connections(1).await;
    drop(connection);
    upstream.wait_for_abort(On::Ping).await;
}

#[tokio::test]
async fn sees_a_client_leave_in_the_middle() {
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, 60_000);
    let gate = Gate::closed();
    upstream.on(On::Blobs).stall_after(30_000, &gate);
    let mut exchange = Ask::get(blob_path(&digest)).open(upstream.address()).await;
    exchange.read_at_least(30_000).await;
    exchange.abort();
    upstream.wait_for_abort(On::Blob(digest)).await;
}

#[tokio::test]
async fn bodies_that_lie() {
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, 1000);
    let bytes = upstream.bytes(&digest);
    let path = blob_path(&digest);

    upstream.on(On::Blobs).flip_byte(999);
    let flipped = get(&upstream, &path).await.expect(200).body;
    assert_eq!(flipped[..999], bytes[..999]);
    assert_ne!(flipped[999], bytes[999]);

    upstream.on(On::Blobs).short_content_length(10);
    assert_eq!(get(&upstream, &path).await.expect(200).body, bytes[..10]);

    upstream.on(On::Blobs).trailing_bytes("more");
    assert_eq!(get(&upstream, &path).await.expect(200).body.len(), 1004);

    upstream.on(On::Blobs).wrong_bytes("something else");
    assert_eq!(get(&upstream, &path).await.expect(200).body, b"something else");

    upstream.on(On::Blobs).html_page();
    let page = get(&upstream, &path).await.expect(200);
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
}

#[tokio::test]
async fn framings() {
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, 100_000);
    let path = blob_path(&digest);
    upstream.on(On::Blobs).no_content_length();
    let chunked = get(&upstream, &path).await;
    assert_eq!(chunked.header("content-length"), None);
    assert_eq!(chunked.header("transfer-encoding"), Some("chunked"));
    chunked.expect_content(&digest);
    upstream.on(On::Blobs).does([Fault::Chunked, Fault::CutAfter(5000)]);
    let cut = get(&upstream, &path).await;
    assert_eq!((cut.body.len(), cut.end), (5000, End::Short));
    upstream.on(On::Blobs).close_delimited();
    get(&upstream, &path).await.expect_content(&digest);
}

#[tokio::test]
async fn headers_that_lie() {
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, 1000);
    let path = blob_path(&digest);
    let other = Digest::sha256(b"other");
    upstream.on(On::Blobs).no_digest_header();
    upstream.on(On::Blobs).wrong_digest_header(&other);
    upstream.on(On::Blobs).content_encoding("gzip");
    upstream.on(On::Blobs).ignore_range();
    upstream.on(On::Blobs).wrong_content_range("bytes 0-1/2");
    upstream.on(On::Blobs).shift_range(50);
    assert_eq!(get(&upstream, &path).await.header("docker-content-digest"), None);
    let wrong = get(&upstream, &path).await;
    assert_eq!(wrong.header("docker-content-digest"), Some(&*other.to_string()));
    assert_eq!(get(&upstream, &path).await.header("content-encoding"), Some("gzip"));
    let ranged = async || Ask::get(&path).range("bytes=100-").send(upstream.address()).await;
    ranged().await.expect_content(&digest);
    assert_eq!(ranged().await.expect(206).header("content-range"), Some("bytes 0-1/2"));
    let shifted = ranged().await.expect(206);
    assert_eq!(shifted.header("content-range"), Some("bytes 150-999/1000"));
    assert_eq!(shifted.body, upstream.bytes(&digest)[150..]);
}

#[tokio::test]
async fn statuses_counts_and_order() {
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, 10);
    let path = blob_path(&digest);
    let always = upstream.on(On::Blobs).always().status(500);
    upstream.on(On::Blobs).next(2).status(503);
    upstream.on(On::Blobs).nth(4).rate_limit(Some("17"));
    upstream.on(On::Blobs.head()).no_head(405);
    let mut seen = Vec::new();
    for _ in 0..5 {
        seen.push(get(&upstream, &path).await.status);
    }
    assert_eq!(seen, [503, 503, 500, 429, 500]);
    assert_eq!(always.hits(), 2);
    always.remove();
    get(&upstream, &path).await.expect_content(&digest);
    assert_eq!(Ask::head(&path).send(upstream.address()).await.status, 405);
    upstream.on(On::Any).rate_limit(Some("Wed, 21 Oct 2026 07:28:00 GMT"));
    let limited = get(&upstream, &path).await.expect(429);
    assert_eq!(limited.error_code(), "TOOMANYREQUESTS");
    assert_eq!(limited.header("retry-after"), Some("Wed, 21 Oct 2026 07:28:00 GMT"));
    upstream
        .on(On::Any)
        .answer(429, &[("Content-Type", "text/plain")], "Too Many Requests");
    assert_eq!(get(&upstream, &path).await.expect(429).body, b"Too Many Requests");
    upstream.on(On::Any).always().status(500);
    upstream.clear_script();
    upstream.forget();
    get(&upstream, &path).await.expect_content(&digest);
    assert_eq!(upstream.requests().len(), 1);
}

#[tokio::test]
async fn redirects_to_a_cdn_on_another_host() {
    let upstream = Upstream::start().await;
    let cdn = upstream.start_cdn().await;
    let digest = upstream.blob(REPO, 1000);
    upstream.redirect_blobs_to(&cdn);
    let hop = get(&upstream, blob_path(&digest)).await.expect(307);
    assert_eq!(hop.header("docker-content-digest"), Some(&*digest.to_string()));
    let target = hop.header("location").unwrap();
    assert!(target.starts_with("http://127.0.0.2:"));
    let path = target.strip_prefix(&cdn.url()).unwrap();
    let stored = get(&cdn, path).await;
    assert_eq!(stored.header("docker-content-digest"), None);
    assert_eq!(stored.header("content-type"), Some("binary/octet-stream"));
    stored.expect_content(&digest);
    let part = Ask::get(path).range("bytes=990-").send(cdn.address()).await.expect(206);
    assert_eq!(part.body, upstream.bytes(&digest)[990..]);
    let twice = Ask::get(path)
        .header("Authorization", "Bearer x")
        .send(cdn.address())
        .await;
    twice.expect(400);
    assert_eq!(cdn.count(On::Storage), 3);
    assert_eq!(cdn.count(On::Storage.authorized()), 1);
}

#[tokio::test]
async fn a_chain_of_relative_redirects() {
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, 10);
    upstream.on(On::Blobs).redirect_to("/hops/2/storage/{digest}?x=1", 302);
    let mut path = blob_path(&digest);
    for _ in 0..4 {
        let hop = get(&upstream, &path).await;
        path = hop.header("location").unwrap().to_owned();
    }
    assert_eq!(path, format!("/storage/{digest}?x=1"));
    get(&upstream, &path).await.expect_content(&digest);
}

#[tokio::test]
async fn tag_lists_have_pages() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "b", &[]);
    for tag in ["a", "c", "d"] {
        upstream.move_tag(REPO, tag, &image.manifest);
    }
    let path = format!("/v2/{REPO}/tags/list");
    let all = get(&upstream, &path).await.expect(200);
    assert_eq!(all.json()["tags"], serde_json::json!(["a", "b", "c", "d"]));
    assert_eq!(all.header("link"), None);
    let page = get(&upstream, format!("{path}?n=2&last=a")).await.expect(200);
    assert_eq!(page.json()["tags"], serde_json::json!(["b", "c"]));
    assert_eq!(
        page.header("link"),
        Some(&*format!("<{path}?last=c&n=2>; rel=\"next\""))
    );
    upstream.set_listing(|listing| {
        listing.page = Some(3);
        listing.link = LinkStyle::Absolute;
    });
    let page = get(&upstream, &path).await.expect(200);
    let next = format!("<{}{path}?last=c&n=3>; rel=\"next\"", upstream.url());
    assert_eq!(page.header("link"), Some(&*next));
    assert_eq!(
        get(&upstream, "/v2/no/such/tags/list").await.error_code(),
        "NAME_UNKNOWN"
    );
}

#[tokio::test]
async fn referrers() {
    let upstream = Upstream::start().await;
    let image = upstream.oci_image(REPO, "1", &[10]);
    let signature = upstream.artifact(REPO, image.manifest, "application/x-sig");
    upstream.artifact(REPO, image.manifest, "application/x-sbom");
    let path = format!("/v2/{REPO}/referrers/{}", image.manifest);
    let all = get(&upstream, &path).await.expect(200);
    assert_eq!(all.header("content-type"), Some(media_type::OCI_INDEX));
    assert_eq!(all.json()["manifests"].as_array().unwrap().len(), 2);
    upstream.set_referrers(ReferrersApi::Filtering);
    let some = get(&upstream, format!("{path}?artifactType=application/x-sig")).await;
    assert_eq!(some.header("oci-filters-applied"), Some("artifactType"));
    let listed = some.json()["manifests"].clone();
    assert_eq!(listed.as_array().unwrap().len(), 1);
    assert_eq!(listed[0]["digest"], signature.manifest.to_string());
    assert_eq!(listed[0]["annotations"]["org.example.made-for"], "tests");
    upstream.set_listing(|listing| listing.page = Some(1));
    assert!(get(&upstream, &path).await.header("link").unwrap().contains("from=1"));
    let nobody = Digest::sha256(b"nobody");
    let none = get(&upstream, format!("/v2/{REPO}/referrers/{nobody}"))
        .await
        .expect(200);
    assert_eq!(none.json()["manifests"], serde_json::json!([]));
    upstream.set_referrers(ReferrersApi::Off);
    get(&upstream, &path).await.expect(404);
    let fallback = upstream.put_referrers_tag(REPO, image.manifest);
    let tag = format!("sha256-{}", image.manifest.hex());
    let by_tag = get(&upstream, format!("/v2/{REPO}/manifests/{tag}")).await;
    by_tag.expect_content(&fallback.manifest);
}

/// The parts of a challenge that stand in quotes.
fn challenge_value(response: &Response, key: &str) -> Option<String> {
    let challenge = response.header("www-authenticate")?;
    let rest = challenge.split_once(&format!("{key}=\""))?.1;
    Some(rest.split('"').next()?.to_owned())
}

async fn token(issuer: &Upstream, target: &str) -> Response {
    Ask::get(target).send(issuer.address()).await
}

#[tokio::test]
async fn tokens_are_for_one_repository() {
    let upstream = Upstream::start().await;
    let auth = Upstream::start_at([127, 0, 0, 2]).await;
    let digest = upstream.blob(REPO, 10);
    upstream.require_token(TokenPolicy::new().issued_by(&auth).realm_path("/token?a=b"));
    let path = blob_path(&digest);
    let refused = get(&upstream, &path).await.expect(401);
    assert_eq!(refused.error_code(), "UNAUTHORIZED");
    assert_eq!(
        challenge_value(&refused, "realm"),
        Some(format!("{}/token?a=b", auth.url()))
    );
    assert_eq!(challenge_value(&refused, "service").as_deref(), Some("registry.test"));
    let scope = challenge_value(&refused, "scope").unwrap();
    assert_eq!(scope, format!("repository:{REPO}:pull"));
    let issued = token(&auth, &format!("/token?a=b&scope={scope}"))
        .await
        .expect(200)
        .json();
    assert_eq!(issued["token"], issued["access_token"]);
    assert_eq!(issued["expires_in"], 300);
    let bearer = format!("Bearer {}", issued["token"].as_str().unwrap());
    let with = async |path: &str| {
        let ask = Ask::get(path).header("Authorization", &bearer);
        ask.send(upstream.address()).await
    };
    with(&path).await.expect_content(&digest);
    with("/v2/").await.expect(200);
    let other = with("/v2/library/other/tags/list").await.expect(401);
    assert_eq!(challenge_value(&other, "error").as_deref(), Some("insufficient_scope"));
    upstream.revoke_tokens();
    let revoked = with(&path).await.expect(401);
    assert_eq!(challenge_value(&revoked, "error").as_deref(), Some("invalid_token"));
    assert_eq!(auth.count(On::Token), 1);
    assert_eq!(upstream.count(On::Token), 0);
    assert_eq!(upstream.count(On::Blobs.authorized()), 2);
}

#[tokio::test]
async fn token_servers_that_refuse() {
    let upstream = Upstream::start().await;
    upstream.blob(REPO, 10);
    let scope = |repo: &str| format!("/token?scope=repository:{repo}:pull");
    upstream.require_token(
        TokenPolicy::new()
            .credentials("me", "p#&+% w")
            .field(TokenField::AccessToken)
            .no_expires_in()
            .refuse("secret/one", 403)
            .reduce("library/two"),
    );
    token(&upstream, &scope(REPO)).await.expect(401);
    let login = async |path: String| {
        let ask = Ask::get(path).header("Authorization", basic("me", "p#&+% w"));
        ask.send(upstream.address()).await
    };
    let issued = login(scope(REPO)).await.expect(200).json();
    assert!(issued["token"].is_null() && issued["expires_in"].is_null());
    assert!(issued["access_token"].is_string());
    assert_eq!(login(scope("secret/one")).await.expect(403).error_code(), "DENIED");
    let reduced = login(scope("library/two")).await.expect(200).json();
    let bearer = format!("Bearer {}", reduced["access_token"].as_str().unwrap());
    let ask = Ask::get("/v2/library/two/tags/list").header("Authorization", bearer);
    ask.send(upstream.address()).await.expect(401);
}

#[tokio::test]
async fn refresh_tokens_go_by_post() {
    let upstream = Upstream::start().await;
    upstream.require_token(TokenPolicy::new().refresh_token("r+1/2="));
    token(&upstream, "/token?scope=repository:a:pull").await.expect(404);
    let post = async |refresh: &str| {
        let body = format!(
            "grant_type=refresh_token&client_id=x&service=s&scope=repository%3Aa%3Apull&refresh_token={refresh}"
        );
        let ask = Ask::new("POST", "/token").header("Content-Type", "application/x-www-form-urlencoded");
        ask.body(body).send(upstream.address()).await
    };
    post("wrong").await.expect(401);
    assert!(post("r%2B1%2F2%3D").await.expect(200).json()["token"].is_string());
    assert_eq!(
        upstream.matching(On::Token)[2].form_value("service").as_deref(),
        Some("s")
    );
}

#[tokio::test]
async fn odd_challenges() {
    let upstream = Upstream::start().await;
    upstream.blob(REPO, 10);
    let path = format!("/v2/{REPO}/tags/list");
    let policy = TokenPolicy::new().challenge(&["Negotiate", "bearer REALM={realm} , scope={scope}"]);
    upstream.require_token(policy);
    let refused = get(&upstream, &path).await;
    let lines = refused.headers.all("www-authenticate");
    let realm = format!("{}/token", upstream.url());
    assert_eq!(
        lines,
        [
            "Negotiate",
            &format!("bearer REALM={realm} , scope=repository:{REPO}:pull")
        ]
    );

    upstream.require_token(TokenPolicy::new().challenge_only_on_ping().no_service());
    assert_eq!(get(&upstream, &path).await.expect(401).header("www-authenticate"), None);
    assert!(
        get(&upstream, "/v2/")
            .await
            .expect(401)
            .header("www-authenticate")
            .is_some()
    );

    let stale = || Ask::get(&path).header("Authorization", "Bearer stale");
    upstream.require_token(TokenPolicy::new().bad_token_realm("https://authn.example/token"));
    let elsewhere = stale().send(upstream.address()).await.expect(401);
    assert_eq!(
        challenge_value(&elsewhere, "realm").as_deref(),
        Some("https://authn.example/token")
    );
    upstream.require_token(TokenPolicy::new().bad_token_status(400));
    assert_eq!(
        stale()
            .send(upstream.address())
            .await
            .expect(400)
            .header("www-authenticate"),
        None
    );

    upstream.require_token(TokenPolicy::new().public(REPO));
    get(&upstream, &path).await.expect(200);

    upstream.require_basic("u", "p");
    let refused = get(&upstream, &path).await.expect(401);
    assert_eq!(
        refused.header("www-authenticate"),
        Some("Basic realm=\"Registry Realm\"")
    );
    let ask = Ask::get(&path).header("Authorization", basic("u", "p"));
    ask.send(upstream.address()).await.expect(200);
}

/// A fault in the content waits for a request that gets so far; a fault of the whole server does not.
#[tokio::test]
async fn faults_and_refusals() {
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, 1000);
    upstream.require_token(TokenPolicy::new());
    let cut = upstream.on(On::Blobs).cut_after(10);
    get(&upstream, blob_path(&digest)).await.expect(401);
    assert_eq!(cut.hits(), 0);
    upstream.on(On::Blobs).status(503);
    get(&upstream, blob_path(&digest)).await.expect(503);
    upstream.on(On::Token).status(500);
    token(&upstream, "/token").await.expect(500);
    token(&upstream, "/token").await.expect(200);
}

#[tokio::test]
async fn outages() {
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, 1000);
    let gate = Gate::closed();
    upstream.on(On::Blobs).stall_after(100, &gate);
    let mut exchange = Ask::get(blob_path(&digest)).open(upstream.address()).await;
    exchange.read_at_least(100).await;
    upstream.go_down().await;
    exchange.read_to_end().await;
    assert_ne!(exchange.end(), Some(End::Complete));
    assert!(Connection::try_open(upstream.address()).await.is_err());
    upstream.come_up().await;
    get(&upstream, blob_path(&digest)).await.expect_content(&digest);
    assert_eq!(upstream.connections(), 2);
}

#[tokio::test]
async fn several_requests_on_one_connection() {
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, 100);
    let mut connection = Connection::open(upstream.address()).await;
    for _ in 0..3 {
        let (response, again) = connection.ask(&Ask::get(blob_path(&digest))).await;
        response.expect_content(&digest);
        connection = again;
    }
    assert_eq!(upstream.connections(), 1);
    assert!(upstream.requests().iter().all(|request| request.connection == 1));
}

#[tokio::test]
async fn a_base_path() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[]);
    upstream.set_base_path("/artifactory/api/docker/hub");
    let path = format!("/v2/{REPO}/manifests/1");
    get(&upstream, &path).await.expect(404);
    let based = get(&upstream, format!("/artifactory/api/docker/hub{path}")).await;
    based.expect_content(&image.manifest);
}

/// The upstream's own failure fails the test that uses it.
#[tokio::test]
async fn a_panic_is_raised_again() {
    let upstream = Upstream::start().await;
    upstream.on(On::Ping).does([Fault::Panic]);
    let mut connection = Connection::open(upstream.address()).await;
    connection.write(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert_eq!(connection.read_to_end().await.0, b"");
    let dropped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(upstream)));
    let message = dropped.unwrap_err();
    let message = message.downcast_ref::<String>().unwrap();
    assert!(message.contains("the scripted upstream failed"), "{message}");
}

/// The HTTP/2 half of the client, against a server of hyper's.
#[tokio::test]
async fn asks_by_http2() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let service = hyper::service::service_fn(|request: hyper::Request<hyper::body::Incoming>| async move {
            let body = if request.method() == "HEAD" { "" } else { "four" };
            let response = hyper::Response::builder().header("Content-Length", 4);
            response.body(body.to_owned())
        });
        let executor = hyper_util::rt::TokioExecutor::new();
        let stream = hyper_util::rt::TokioIo::new(stream);
        let _ = hyper::server::conn::http2::Builder::new(executor)
            .serve_connection(stream, service)
            .await;
    });
    let response = http2(address, Ask::head("/v2/")).await.expect(200);
    assert_eq!(response.header("content-length"), Some("4"));
    server.abort();
}
