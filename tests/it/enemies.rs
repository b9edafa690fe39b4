//! Upstreams and mirrors that are as unkind as they can be.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::support::client::Ask;
use crate::support::gate::Gate;
use crate::support::larder::Larder;
use crate::support::upstream::{Fault, Matcher, On, Upstream};
use crate::support::{blob, manifest};

const REPO: &str = "library/alpine";

async fn with_mirror(mirror: &Upstream, upstream: &Upstream) -> Larder {
    let url = mirror.url();
    Larder::start(upstream, |toml| {
        toml.upstream("docker.io", "mirrors", vec![url]);
        toml.upstream("docker.io", "read_timeout", "1s");
        toml.cache("tag_ttl", "0s");
    })
    .await
}

async fn state(larder: &Larder, address: &str) -> String {
    let stats = Ask::get("/api/v1/stats").send(larder.admin()).await.expect(200).json();
    let all = stats["upstreams"].as_array().unwrap().clone();
    let hub = all
        .iter()
        .find(|upstream| upstream["name"] == "docker.io")
        .unwrap()
        .clone();
    let of = hub["addresses"].as_array().unwrap().clone();
    let found = of.iter().find(|known| known["address"] == address);
    found.map_or_else(String::new, |known| known["state"].as_str().unwrap().to_owned())
}

/// `Retry-After` is a number that anybody may write.
#[tokio::test]
async fn a_retry_after_beyond_all_time() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[1_000]);
    for value in ["18446744073709551615", "9223372036854775807", "99999999999999999999999"] {
        let larder = Larder::start(&upstream, |_| {}).await;
        upstream
            .on(On::Any)
            .always()
            .answer(503, &[("Retry-After", value)], "busy");
        for path in [blob(REPO, image.layers[0]), manifest(REPO, "1")] {
            larder.get(&path).await.expect(503);
            larder.head(&path).await.expect(503);
        }
        upstream.clear_script();
    }
}

/// A mirror that answers HEADs and hangs over GETs, and is asked by GET because its HEAD is in doubt.
#[tokio::test]
async fn a_get_that_stands_in_for_a_head_hangs() {
    let (mirror, upstream) = (Upstream::start().await, Upstream::start().await);
    let larder = with_mirror(&mirror, &upstream).await;
    mirror.on(On::Blobs.get()).always().hang_connection();
    mirror.on(On::Blobs).always().no_head(404);
    let digest = upstream.blob(REPO, 1_000);
    let begun = Instant::now();
    larder.head(blob(REPO, digest)).await.expect(200);
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    assert_eq!(state(&larder, &mirror.url()).await, "down");
}

/// A mirror that refuses HEADs by 500 and answers GETs is asked for blobs all the same.
#[tokio::test]
async fn refused_heads_take_no_mirror_down() {
    let (mirror, upstream) = (Upstream::start().await, Upstream::start().await);
    for closes in [false, true] {
        let larder = with_mirror(&mirror, &upstream).await;
        let image = upstream.image(REPO, "1", &[1_000]);
        let heads = mirror.on(On::Manifests.head()).always();
        match closes {
            true => heads.drop_connection(),
            false => heads.status(500),
        };
        larder.get(manifest(REPO, "1")).await.expect_content(&image.manifest);
        for _ in 0..4 {
            larder.head(manifest(REPO, "1")).await.expect(200);
        }
        assert_eq!(
            state(&larder, &mirror.url()).await,
            "up",
            "{closes}: {}",
            mirror.print()
        );
        let digest = mirror.blob(REPO, 2_000);
        larder.get(blob(REPO, digest)).await.expect_content(&digest);
        mirror.clear_script();
        upstream.clear_script();
    }
}

/// And comes back after a real outage, although its HEADs still fail.
#[tokio::test]
async fn a_mirror_without_heads_comes_back() {
    let (mirror, upstream) = (Upstream::start().await, Upstream::start().await);
    let larder = with_mirror(&mirror, &upstream).await;
    mirror.on(On::Any).always().status(503);
    for n in 0..3 {
        let digest = upstream.blob(REPO, 1_000 + n);
        larder.get(blob(REPO, digest)).await.expect_content(&digest);
    }
    assert_eq!(state(&larder, &mirror.url()).await, "down");
    mirror.clear_script();
    mirror.on(On::Any.head()).always().status(500);
    let begun = Instant::now();
    while state(&larder, &mirror.url()).await != "up" {
        assert!(begun.elapsed() < Duration::from_secs(15), "{}", mirror.print());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The registry is well, and where it redirects blobs to drops packets.
#[tokio::test]
async fn a_store_that_drops_packets_is_not_the_registry() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[1_000]);
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener: TcpListener = socket.listen(0).unwrap();
    let hole = listener.local_addr().unwrap();
    let mut held = Vec::new();
    while let Ok(connected) = tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(hole)).await {
        held.push(connected.unwrap());
    }
    let larder = Larder::start(&upstream, |toml| {
        toml.upstream("docker.io", "connect_timeout", "300ms");
    })
    .await;
    upstream
        .on(On::Blobs)
        .always()
        .redirect_to(format!("http://{hole}/storage/{{digest}}"), 307);
    upstream
        .on(On::Manifests)
        .always()
        .does([Fault::Delay(Duration::from_millis(800))]);
    larder.get(blob(REPO, image.layers[0])).await.expect(503);
    larder.get(manifest(REPO, "1")).await.expect_content(&image.manifest);
}

/// A mirror that begins each answer and then says nothing.
#[tokio::test]
async fn a_mirror_that_stalls_behind_the_head() {
    let (mirror, upstream) = (Upstream::start().await, Upstream::start().await);
    let larder = with_mirror(&mirror, &upstream).await;
    let gate = Gate::closed();
    mirror.on(On::Blobs.get()).always().stall_after(1_000, &gate);
    let mut took = Vec::new();
    for n in 0..4 {
        let digest = upstream.blob(REPO, 200_000 + n);
        mirror.put_blob(REPO, upstream.bytes(&digest));
        let begun = Instant::now();
        larder.get(blob(REPO, digest)).await.expect_content(&digest);
        took.push(begun.elapsed());
    }
    gate.open();
    assert!(
        took[1..].iter().all(|took| *took < Duration::from_millis(800)),
        "{took:?}"
    );
}

/// L8: a login page for whoever has no credentials makes nothing public.
#[tokio::test]
async fn a_login_page_makes_nothing_public() {
    for has_heads in [true, false] {
        let upstream = Upstream::start().await;
        let image = upstream.image("team/secret", "1", &[300_000]);
        upstream.require_basic("user", "hunter2");
        let page = || Matcher::from(On::Blobs).unauthorized();
        upstream.on(page()).always().html_page();
        if !has_heads {
            upstream.on(page().head()).always().status(405);
        }
        let larder = Larder::start(&upstream, |toml| {
            toml.upstream("docker.io", "username", "user");
            toml.upstream("docker.io", "password", "hunter2");
        })
        .await;
        let view = super::prefetch::run(&larder, json!({"images": ["team/secret:1"], "referrers": false})).await;
        assert_eq!(view["state"], "done", "{view:#}");
        let path = blob("team/secret", image.layers[0]);
        let got = larder.get(&path).await;
        assert_ne!(got.status, 200, "{has_heads}: {}", upstream.print());
    }
}

/// L11: and is no confirmation of what another private repository has.
#[tokio::test]
async fn a_login_page_confirms_nothing() {
    let upstream = Upstream::start().await;
    let image = upstream.image("team/secret", "1", &[300_000]);
    upstream.image("team/other", "1", &[1_000]);
    upstream.require_basic("user", "hunter2");
    let larder = Larder::start(&upstream, |toml| {
        toml.upstream("docker.io", "username", "user");
        toml.upstream("docker.io", "password", "hunter2");
        toml.everybody_may_pull();
    })
    .await;
    let digest = image.layers[0];
    larder.get(blob("team/secret", digest)).await.expect_content(&digest);
    upstream.on(On::Blobs.repo("team/other")).always().html_page();
    for method in ["HEAD", "GET"] {
        let got = Ask::new(method, blob("team/other", digest))
            .send(larder.registry())
            .await;
        let is_secret = got.body.len() == 300_000 || got.header("content-length") == Some("300000");
        assert!(!is_secret, "{method}: {got:?}");
    }
}

/// HEADs of what is not there wait for a check that hangs, and keep nobody from anything else.
#[tokio::test]
async fn heads_of_nothing_hold_no_slots() {
    let upstream = Upstream::start().await;
    let larder = Larder::start(&upstream, |toml| {
        toml.upstream("docker.io", "max_connections", 4);
    })
    .await;
    let held = upstream.blob(REPO, 1_000);
    let missing: Vec<_> = (0..4).map(|n| upstream.blob(REPO, 5_000 + n)).collect();
    for digest in &missing {
        upstream.on(On::Blob(*digest).head()).always().status(404);
        upstream.on(On::Blob(*digest).get()).always().hang_connection();
    }
    for digest in &missing {
        tokio::spawn(Ask::head(blob(REPO, digest)).send(larder.registry()));
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let begun = Instant::now();
    larder.get(blob(REPO, held)).await.expect_content(&held);
    // They have a second for their turn; `answer_timeout` is five minutes.
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
}
