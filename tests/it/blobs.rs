//! `GET` and `HEAD` of blobs, whole and by Range, cold and hot.

use bytes::Bytes;
use larder::oci::Digest;

use crate::support::client::{Ask, Connection, End, Response, http2};
use crate::support::larder::Larder;
use crate::support::upstream::{Fault, On, Upstream};
use crate::support::{blob, noise};

const REPO: &str = "library/alpine";

fn check_headers(response: &Response, digest: &Digest, length: usize) {
    assert_eq!(response.header("content-length"), Some(&*length.to_string()));
    assert_eq!(response.header("content-type"), Some("application/octet-stream"));
    assert_eq!(response.header("docker-content-digest"), Some(&*digest.to_string()));
    assert_eq!(response.header("etag"), Some(&*format!("\"{digest}\"")));
    assert_eq!(response.header("accept-ranges"), Some("bytes"));
    assert_eq!(response.header("content-encoding"), None);
    assert_eq!(response.header("transfer-encoding"), None);
}

/// Protocol 0.3, cold, then hot, then after a restart.
#[tokio::test]
async fn the_contract() {
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, 300_000);
    let larder = Larder::start(&upstream, |_| {}).await;
    let path = blob(REPO, digest);
    let head = larder.head(&path).await.expect(200);
    check_headers(&head, &digest, 300_000);
    let cold = larder.get(&path).await;
    assert_eq!(cold.header("cache-status"), Some("larder; fwd=miss; stored"));
    check_headers(&cold, &digest, 300_000);
    cold.expect_content(&digest);
    larder.until_held(&path).await;
    upstream.forget();
    let hot = larder.get(&path).await;
    assert_eq!(hot.header("cache-status"), Some("larder; hit"));
    check_headers(&hot, &digest, 300_000);
    hot.expect_content(&digest);
    let larder = larder.restart().await;
    larder.get(&path).await.expect_content(&digest);
    check_headers(&larder.head(&path).await.expect(200), &digest, 300_000);
    let h2 = http2(larder.registry(), Ask::head(&path)).await.expect(200);
    assert_eq!(h2.header("content-length"), Some("300000"));
    http2(larder.registry(), Ask::get(&path)).await.expect_content(&digest);
    assert_eq!(upstream.requests().len(), 0, "{}", upstream.print());
}

/// R-S15, R-S16, R-U25: empty, long-named and chunked ones.
#[tokio::test]
async fn every_kind() {
    let upstream = Upstream::start().await;
    let empty = upstream.put_blob(REPO, Bytes::new());
    let long = upstream.put_blob_sha512(REPO, noise(7, 5000));
    let one = upstream.put_blob(REPO, "x");
    let larder = Larder::start(&upstream, |_| {}).await;
    for (digest, length) in [(empty, 0), (long, 5000), (one, 1)] {
        for _ in 0..2 {
            let response = larder.get(blob(REPO, digest)).await;
            check_headers(&response, &digest, length);
            response.expect_content(&digest);
            let head = larder.head(blob(REPO, digest)).await.expect(200);
            check_headers(&head, &digest, length);
        }
    }
    for framing in [Fault::Chunked, Fault::CloseDelimited] {
        let digest = upstream.blob(REPO, 200_000);
        upstream.on(On::Blob(digest)).always().does([framing]);
        larder.get(blob(REPO, digest)).await.expect_content(&digest);
        larder.get(blob(REPO, digest)).await.expect_content(&digest);
    }
}

/// R-S13, R-C95, R-W2: the same answers cold as hot; a cold Range is one whole transfer.
#[tokio::test]
async fn ranges() {
    let upstream = Upstream::start().await;
    for hot in [false, true] {
        for (range, from, to) in [
            ("bytes=500-1499", 500, 1500),
            ("bytes=500-", 500, 2048),
            ("bytes=0-", 0, 2048),
            ("bytes=-500", 1548, 2048),
            ("bytes=-5000", 0, 2048),
            ("bytes=2000-5000", 2000, 2048),
            ("bytes=0-0", 0, 1),
            ("bytes=2047-2047", 2047, 2048),
            ("bytes=-1", 2047, 2048),
        ] {
            let larder = Larder::start(&upstream, |_| {}).await;
            let digest = upstream.blob(REPO, 2048);
            let bytes = upstream.bytes(&digest);
            if hot {
                larder.get(blob(REPO, digest)).await.expect_content(&digest);
            }
            let ask = Ask::get(blob(REPO, digest)).range(range);
            let response = ask.send(larder.registry()).await.expect(206);
            assert_eq!(response.body, bytes[from..to], "{range}");
            let content_range = format!("bytes {from}-{}/2048", to - 1);
            assert_eq!(response.header("content-range"), Some(&*content_range), "{range}");
            check_headers(&response, &digest, to - from);
            // The transfer behind a cold Range goes on to the end, and is the only one.
            larder.get(blob(REPO, digest)).await.expect_content(&digest);
            assert_eq!(upstream.count(On::Blob(digest).get()), 1, "{}", upstream.print());
        }
    }
}

/// Ranges that are no ranges, and conditions on them.
#[tokio::test]
async fn odd_ranges() {
    let upstream = Upstream::start().await;
    let larder = Larder::start(&upstream, |_| {}).await;
    for hot in [false, true] {
        let fresh = async || {
            let digest = upstream.blob(REPO, 2048);
            if hot {
                larder.get(blob(REPO, digest)).await.expect_content(&digest);
            }
            digest
        };
        let digest = fresh().await;
        let ask = Ask::get(blob(REPO, digest)).range("bytes=5000-10000");
        let past = ask.send(larder.registry()).await.expect(416);
        assert_eq!(past.error_code(), "UNSUPPORTED");
        assert_eq!(past.header("docker-content-digest"), Some(&*digest.to_string()));
        assert_eq!(past.header("content-range"), Some("bytes */2048"));
        for none in ["bytes=2048-", "bytes=-0", "bytes=3000-,4000-5000"] {
            let digest = fresh().await;
            for by_http2 in [false, true] {
                let ask = Ask::get(blob(REPO, digest)).range(none);
                let past = match by_http2 {
                    true => http2(larder.registry(), ask).await,
                    false => ask.send(larder.registry()).await,
                };
                let past = past.expect(416);
                assert_eq!(past.header("content-range"), Some("bytes */2048"), "{none}");
            }
        }

        for backwards in [
            "bytes=500-0",
            "bytes=2047-2046",
            "bytes=0-9,500-0",
            "bytes=500-0,0-9",
            "bytes=5000-0",
        ] {
            let digest = fresh().await;
            for by_http2 in [false, true] {
                let ask = Ask::get(blob(REPO, digest)).range(backwards);
                let refused = match by_http2 {
                    true => http2(larder.registry(), ask).await,
                    false => ask.send(larder.registry()).await,
                };
                let refused = refused.expect(416);
                assert_eq!(refused.header("content-range"), Some("bytes */2048"), "{backwards}");
            }
            let ask = Ask::get(blob(REPO, digest))
                .range(backwards)
                .header("If-Range", "\"other\"");
            ask.send(larder.registry()).await.expect_content(&digest);
            let head = Ask::head(blob(REPO, digest))
                .range(backwards)
                .send(larder.registry())
                .await;
            assert_eq!(head.expect(200).header("content-length"), Some("2048"));
        }

        for ignored in ["lines=1-2", "bytes=x-y", "nonsense"] {
            let digest = fresh().await;
            let ask = Ask::get(blob(REPO, digest)).range(ignored);
            ask.send(larder.registry()).await.expect_content(&digest);
        }
        for (tag, status) in [("right", 206), ("\"other\"", 200), ("W/\"weak\"", 200)] {
            let digest = fresh().await;
            let tag = if tag == "right" {
                format!("\"{digest}\"")
            } else {
                tag.to_owned()
            };
            let ask = Ask::get(blob(REPO, digest)).range("bytes=0-9").header("If-Range", tag);
            ask.send(larder.registry()).await.expect(status);
        }
        let digest = fresh().await;
        let ask = Ask::head(blob(REPO, digest)).range("bytes=0-9");
        let head = ask.send(larder.registry()).await.expect(200);
        assert_eq!(head.header("content-length"), Some("2048"));
        // RFC 9110, 14.2: only a GET has ranges; also one that no GET could have.
        let ask = Ask::head(blob(REPO, digest)).range("bytes=5000-");
        ask.send(larder.registry()).await.expect(200);

        let ask = Ask::get(blob(REPO, digest)).header("If-None-Match", format!("\"{digest}\""));
        ask.send(larder.registry()).await.expect(304);
    }
}

/// Several ranges are one multipart answer, cold as hot.
#[tokio::test]
async fn several_ranges() {
    let upstream = Upstream::start().await;
    let larder = Larder::start(&upstream, |_| {}).await;
    let digest = upstream.blob(REPO, 3000);
    let bytes = upstream.bytes(&digest);
    for _ in 0..2 {
        let ask = Ask::get(blob(REPO, digest)).range("bytes=0-9, 1000-1999,-1");
        let response = ask.send(larder.registry()).await.expect(206);
        let kind = response.header("content-type").unwrap();
        let boundary = kind.strip_prefix("multipart/byteranges; boundary=").unwrap();
        let boundary = boundary.trim_matches('"');
        let length: usize = response.header("content-length").unwrap().parse().unwrap();
        assert_eq!(response.body.len(), length);
        for (from, to) in [(0, 10), (1000, 2000), (2999, 3000)] {
            let mut part = format!("Content-Range: bytes {from}-{}/3000\r\n", to - 1)
                .to_lowercase()
                .into_bytes();
            let lower = response.body.to_ascii_lowercase();
            assert!(contains(&lower, &part), "no part {from}-{to}");
            part = [b"\r\n\r\n", &bytes[from..to], b"\r\n--", boundary.as_bytes()].concat();
            assert!(contains(&response.body, &part), "wrong bytes in part {from}-{to}");
        }
    }
}

/// Ranges around the edges of what is sent at once, of a blob that the kernel sends, and of one that it does not
/// (HTTP/2); the log counts what went out.
#[tokio::test]
async fn ranges_of_a_large_one() {
    const LEN: usize = 3 * MIB + 77;
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, LEN);
    let bytes = upstream.bytes(&digest);
    let larder = Larder::start(&upstream, |_| {}).await;
    let path = blob(REPO, digest);
    larder.get(&path).await.expect_content(&digest);
    larder.until_held(&path).await;
    for (from, to) in [
        (0, LEN),
        (0, MIB),
        (1, MIB + 1),
        (MIB - 1, MIB + 1),
        (MIB, LEN),
        (LEN - 65_536, LEN),
        (LEN - 65_535, LEN),
        (100, 100 + 65_536),
        (LEN - 1, LEN),
    ] {
        let ask = || Ask::get(&path).range(&format!("bytes={from}-{}", to - 1));
        let answer = ask().send(larder.registry()).await.expect(206);
        assert!(answer.body == bytes[from..to], "{from}-{to}");
        let answer = http2(larder.registry(), ask()).await.expect(206);
        assert!(answer.body == bytes[from..to], "{from}-{to}");
    }
    let two = Ask::get(&path).range(&format!("bytes=5-{},{MIB}-{}", MIB + 5, 2 * MIB));
    let two = two.send(larder.registry()).await.expect(206);
    for part in [&bytes[5..MIB + 6], &bytes[MIB..2 * MIB + 1]] {
        assert!(contains_from(&two.body, part));
    }
}

const MIB: usize = 1 << 20;

/// As [`contains`], for long parts.
fn contains_from(all: &[u8], part: &[u8]) -> bool {
    (0..=all.len() - part.len()).any(|at| all[at..].starts_with(part))
}

/// A response outlives its blob's file, and dies with the file's content: short, ended by FIN, and nobody else notices.
#[tokio::test]
async fn a_file_that_goes_while_it_is_sent() {
    const LEN: usize = 24 * MIB;
    let upstream = Upstream::start().await;
    let larder = Larder::start(&upstream, |_| {}).await;
    for cut in [false, true] {
        let digest = upstream.blob(REPO, LEN);
        let path = blob(REPO, digest);
        larder.get(&path).await.expect_content(&digest);
        larder.until_held(&path).await;
        let slow = Connection::open_with_buffer(larder.registry(), 64 * 1024).await;
        let mut slow = slow.exchange(&Ask::get(&path)).await;
        slow.read_at_least(1).await;
        let file = larder.cache().join("blobs/sha256").join(digest.hex());
        match cut {
            true => std::fs::File::options()
                .write(true)
                .open(&file)
                .unwrap()
                .set_len(1000)
                .unwrap(),
            false => std::fs::remove_file(&file).unwrap(),
        }
        let slow = slow.rest().await;
        assert_eq!(slow.end, if cut { End::Short } else { End::Complete });
        if !cut {
            slow.expect_content(&digest);
        }
        // Found out and fetched again.
        larder.get(&path).await.expect_content(&digest);
    }
}

fn contains(all: &[u8], part: &[u8]) -> bool {
    all.windows(part.len()).any(|window| window == part)
}

#[tokio::test]
async fn what_is_not_there() {
    let upstream = Upstream::start().await;
    upstream.blob(REPO, 10);
    let larder = Larder::start(&upstream, |_| {}).await;
    let missing = Digest::sha256(b"missing");
    let response = larder.get(blob(REPO, missing)).await.expect(404);
    assert_eq!(response.error_code(), "BLOB_UNKNOWN");
    larder.head(blob(REPO, missing)).await.expect(404);
    for bad in ["sha256:totallywrong", "sha256:", "crc32:00000000"] {
        let response = larder.get(blob(REPO, bad)).await.expect(400);
        assert_eq!(response.error_code(), "DIGEST_INVALID");
    }
}

/// R-U20 to R-U22: a redirect to another host carries no secret and gives octet-stream, whatever storage says.
#[tokio::test]
async fn redirected() {
    let upstream = Upstream::start().await;
    let cdn = upstream.start_cdn().await;
    upstream.require_basic("me", "hidden");
    upstream.redirect_blobs_to(&cdn);
    let digest = upstream.blob(REPO, 50_000);
    let larder = Larder::start(&upstream, |t| {
        t.upstream("docker.io", "username", "me");
        t.upstream("docker.io", "password", "hidden");
        t.everybody_may_pull();
    })
    .await;
    let response = larder.get(blob(REPO, digest)).await;
    check_headers(&response, &digest, 50_000);
    assert_eq!(response.header("location"), None);
    response.expect_content(&digest);
    let at_cdn = cdn.matching(On::Storage);
    assert_eq!(at_cdn.len(), 1);
    for name in ["authorization", "cookie"] {
        assert_eq!(at_cdn[0].header(name), None);
    }
    assert_eq!(at_cdn[0].header("accept-encoding"), Some("identity"));
    assert_eq!(at_cdn[0].query.as_deref(), Some("X-Signature=signed-secret"));
}

/// Relative Locations are followed, five hops and no more, in no circle (R-X13).
#[tokio::test]
async fn chains_of_redirects() {
    let upstream = Upstream::start().await;
    let larder = Larder::start(&upstream, |_| {}).await;
    for status in [301, 302, 303, 307, 308] {
        let digest = upstream.blob(REPO, 1000);
        // Three hops in all.
        upstream
            .on(On::Blob(digest).get())
            .always()
            .redirect_to("/hops/1/storage/{digest}", status);
        larder.get(blob(REPO, digest)).await.expect_content(&digest);
    }
    for target in ["/hops/20/storage/{digest}", "{path}"] {
        let digest = upstream.blob(REPO, 1000);
        upstream.forget();
        upstream.on(On::Blob(digest)).always().redirect_to(target, 307);
        let response = larder.get(blob(REPO, digest)).await;
        assert!(matches!(response.status, 502..=504), "{target}: {response:?}");
        assert!(upstream.requests().len() <= 6 * 6, "{}", upstream.print());
    }
}

/// R-X3, `redirect_hosts`: leads nowhere else.
#[tokio::test]
async fn redirects_that_are_refused() {
    let upstream = Upstream::start().await;
    let (good, bad) = (upstream.start_cdn().await, Upstream::start_at([127, 0, 0, 3]).await);
    let allowed = good.address().to_string();
    let larder = Larder::start(&upstream, |t| {
        t.upstream("docker.io", "redirect_hosts", vec![allowed]);
    })
    .await;
    let digest = upstream.blob(REPO, 1000);
    let rule = upstream.redirect_blobs_to(&bad);
    let refused = larder.get(blob(REPO, digest)).await;
    assert!(matches!(refused.status, 502..=504), "{refused:?}");
    assert_eq!(bad.connections(), 0);
    rule.remove();
    for target in [
        "ftp://127.0.0.2/x",
        "file:///etc/passwd",
        "http://",
        "not a url at all:",
    ] {
        let digest = upstream.blob(REPO, 1000);
        upstream.on(On::Blob(digest)).always().redirect_to(target, 307);
        let response = larder.get(blob(REPO, digest)).await;
        assert!(response.status >= 400, "{target}: {response:?}");
    }
    let digest = upstream.blob(REPO, 1000);
    upstream.redirect_blobs_to(&good);
    larder.get(blob(REPO, digest)).await.expect_content(&digest);
}
