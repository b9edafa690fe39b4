//! Long tag lists and wide manifests: within the limits of disk and memory, whatever upstreams name.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use larder::oci::{Digest, media_type};
use serde_json::{Value, json};

use crate::support::client::{Ask, Response};
use crate::support::gate::Gate;
use crate::support::larder::Larder;
use crate::support::process::LarderProcess;
use crate::support::upstream::{Fault, On, Upstream};

const MIB: u64 = 1 << 20;

/// So many tags in byte order, 14 bytes of JSON each.
fn tags(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("v{n:010}")).collect()
}

/// Makes the upstream answer with these tags, on one page.
fn list_of(upstream: &Upstream, repo: &str, tags: &[String]) {
    let body = json!({ "name": repo, "tags": tags }).to_string();
    let rule = upstream.on(On::Tags.repo(repo)).always();
    rule.answer(200, &[("Content-Type", "application/json")], body);
}

fn path(repo: &str, query: &str) -> String {
    format!("/v2/{repo}/tags/list{query}")
}

#[track_caller]
fn tags_in(response: &Response) -> Vec<String> {
    let json = response.json();
    let tags = json["tags"].as_array().expect("tags").iter();
    tags.map(|tag| tag.as_str().expect("a text").to_owned()).collect()
}

fn on_disk(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return 0;
    };
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => on_disk(&entry.path()),
        Ok(meta) => meta.blocks() * 512,
        // Gone since it was listed.
        Err(_) => 0,
    };
    entries.filter_map(Result::ok).map(size).sum()
}

/// Most memory that a process has had, in bytes.
fn peak_memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: u64 = line
        .expect("a peak")
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .expect("KiB");
    kib * 1024
}

/// R-S17 over a list that lies in a file: whole, by pages, by HEAD, after a restart, and stale (L3).
#[tokio::test]
async fn a_long_list() {
    let upstream = Upstream::start().await;
    // In no order and with some of them twice, as some registries give them.
    let all = tags(60_000);
    let mut given = all.clone();
    given.extend_from_slice(&all[100..300]);
    fastrand::Rng::with_seed(1).shuffle(&mut given);
    list_of(&upstream, "a/long", &given);
    let mut larder = Larder::start(&upstream, |t| {
        t.cache("tag_ttl", "1h");
    })
    .await;
    for again in [false, true] {
        let whole = larder.get(path("a/long", "")).await.expect(200);
        assert!(whole.is_complete() && tags_in(&whole) == all);
        assert_eq!(whole.json()["name"], "a/long");
        assert_eq!(whole.header("content-type"), Some("application/json"));
        let length = whole.body.len().to_string();
        assert_eq!(whole.header("content-length"), Some(length.as_str()));
        let head = larder.head(path("a/long", "")).await.expect(200);
        assert_eq!(
            (head.header("content-length"), head.body.len()),
            (Some(length.as_str()), 0)
        );
        let one = larder.get(path("a/long", "?n=1")).await.expect(200);
        assert_eq!(tags_in(&one), all[..1]);
        assert_eq!(
            one.header("link"),
            Some("</v2/a/long/tags/list?last=v0000000000&n=1>; rel=\"next\"")
        );
        let middle = larder.get(path("a/long", "?n=3&last=v0000030000x")).await.expect(200);
        assert_eq!(tags_in(&middle), all[30_001..30_004]);
        let rest = larder.get(path("a/long", "?last=v0000020000")).await.expect(200);
        assert!(rest.is_complete() && tags_in(&rest) == all[20_001..]);
        let end = larder.get(path("a/long", "?n=9&last=v0000059998")).await.expect(200);
        assert_eq!((tags_in(&end), end.header("link")), (all[59_999..].to_vec(), None));
        assert_eq!(
            tags_in(&larder.get(path("a/long", "?last=w")).await.expect(200)),
            all[..0]
        );
        if !again {
            let mut seen = Vec::new();
            let mut next = path("a/long", "?n=9000");
            loop {
                let page = larder.get(&next).await.expect(200);
                seen.extend(tags_in(&page));
                let Some(link) = page.header("link") else { break };
                next = link.trim_start_matches('<').split('>').next().unwrap().to_owned();
            }
            assert!(seen == all);
            assert_eq!(upstream.count(On::Tags), 1, "{}", upstream.print());
            larder = larder.restart().await;
        }
    }
    assert_eq!(upstream.count(On::Tags), 1, "{}", upstream.print());
    upstream.go_down().await;
    let larder = larder.stop().await.start(|t| {
        t.cache("tag_ttl", "0s");
    });
    let stale = larder.await.get(path("a/long", "")).await.expect(200);
    assert!(tags_in(&stale) == all);
    assert!(stale.header("cache-status").unwrap().contains("detail=upstream-down"));
}

/// A list that breaks off leaves nothing behind, and the one of before is served.
#[tokio::test]
async fn a_long_list_that_breaks_off() {
    let upstream = Upstream::start().await;
    let all = tags(40_000);
    list_of(&upstream, "a/cut", &all);
    let larder = Larder::start(&upstream, |t| {
        t.cache("tag_ttl", "0s");
    })
    .await;
    larder.get(path("a/cut", "?n=1")).await.expect(200);
    upstream.clear_script();
    let body = json!({ "tags": tags(50_000) }).to_string();
    let rule = upstream.on(On::Tags.repo("a/cut")).always();
    rule.answer(200, &[("Content-Type", "application/json")], body[..400_000].to_owned());
    let stale = larder.get(path("a/cut", "")).await.expect(200);
    assert!(tags_in(&stale) == all);
    assert!(stale.header("warning").unwrap().starts_with("299 - "), "{stale:?}");
    let staging = std::fs::read_dir(larder.cache().join("staging")).unwrap();
    assert_eq!(staging.count(), 0);
}

/// Many long lists at once: disk and memory have a limit, nobody else waits, and a page of a list that is kept comes
/// soon.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_long_lists_at_once() {
    const LISTS: usize = 12;
    const MAX_SIZE: u64 = 128_000_000;
    let upstream = Upstream::start().await;
    let all = tags(500_000);
    let body = bytes::Bytes::from(json!({ "tags": all }).to_string());
    assert!(body.len() > 6 << 20);
    let rule = upstream.on(On::Tags).always();
    rule.answer(200, &[("Content-Type", "application/json")], body);
    let larder = LarderProcess::start(&upstream, |t| {
        t.cache("max_size", "128MB");
        t.cache("tag_ttl", "1h");
    })
    .await;
    larder.get("/v2/").await.expect(200);
    let before = peak_memory(larder.pid());
    let (registry, cache) = (larder.registry(), larder.cache());
    let asking = (0..LISTS).map(|n| {
        tokio::spawn(async move {
            // A debug build on a busy machine may take longer than one request may.
            for _ in 0..10 {
                let response = Ask::get(path(&format!("a/l{n}"), "?n=1")).send(registry).await;
                if response.status == 200 {
                    return tags_in(&response);
                }
            }
            Vec::new()
        })
    });
    let asking: Vec<_> = asking.collect();
    let done = Arc::new(AtomicBool::new(false));
    let watching = {
        let done = done.clone();
        tokio::spawn(async move {
            let (mut disk, mut slowest) = (0, Duration::ZERO);
            while !done.load(Ordering::SeqCst) {
                let begun = Instant::now();
                Ask::get("/v2/").send(registry).await.expect(200);
                slowest = slowest.max(begun.elapsed());
                disk = disk.max(on_disk(&cache));
            }
            (disk, slowest)
        })
    };
    for tags in asking {
        assert_eq!(tags.await.unwrap(), all[..1]);
    }
    done.store(true, Ordering::SeqCst);
    let (disk, slowest) = watching.await.unwrap();
    assert!(disk <= MAX_SIZE, "{disk} bytes on disk");
    // While lists were parsed on the threads of requests, `/v2/` waited for half a minute here.
    assert!(slowest < Duration::from_secs(5), "/v2/ took {slowest:?}");
    // Whole answers as well, to clients who read as fast as they can.
    let whole = (0..4).map(|_| tokio::spawn(Ask::get(path(&format!("a/l{}", LISTS - 1), "")).send(registry)));
    for response in whole.collect::<Vec<_>>() {
        assert_eq!(tags_in(&response.await.unwrap().expect(200)).len(), all.len());
    }
    let grown = peak_memory(larder.pid()).saturating_sub(before);
    assert!(grown <= 64 * MIB, "{} MiB more", grown / MIB);
}

/// Upstreams that stop in the middle of long lists keep nobody from another's, though only one long list fits into this
/// cache at once.
#[tokio::test]
async fn lists_of_slow_upstreams_keep_nobody_from_others() {
    let (slow, well) = (Upstream::start().await, Upstream::start().await);
    let gate = Gate::closed();
    let body = bytes::Bytes::from(json!({ "tags": tags(100_000) }).to_string());
    let answer = Fault::Status {
        status: 200,
        headers: vec![("Content-Type".to_owned(), "application/json".to_owned())],
        body,
    };
    let stall = Fault::StallAfter(90_000, gate.clone());
    slow.on(On::Tags).always().does([answer, stall]);
    let all = tags(100_000);
    list_of(&well, "team/app", &all);
    let larder = Larder::start(&slow, |t| {
        t.cache("max_size", "128MB");
        t.upstream("ghcr.io", "url", well.url());
    })
    .await;
    let to = larder.registry();
    let slow_ones: Vec<_> = (0..4)
        .map(|n| tokio::spawn(Ask::get(path(&format!("a/l{n}"), "")).send(to)))
        .collect();
    gate.wait_for_arrivals(4).await;
    let begun = Instant::now();
    let list = larder.get(path("ghcr.io/team/app", "")).await.expect(200);
    assert!(tags_in(&list) == all);
    assert!(begun.elapsed() < Duration::from_secs(9), "{:?}", begun.elapsed());
    gate.open();
    for one in slow_ones {
        let _ = one.await;
    }
}

/// A list that is not kept says so, and a client that does not read it keeps no long list from others.
#[tokio::test]
async fn a_reader_that_stands_still_keeps_nobody_from_long_lists() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let upstream = Upstream::start().await;
    // Longer than all lists may be together in such a cache, which is 8 MB.
    let (huge, long) = (tags(900_000), tags(80_000));
    list_of(&upstream, "a/huge", &huge);
    list_of(&upstream, "a/long", &long);
    let larder = Larder::start(&upstream, |t| {
        t.cache("max_size", "64MB");
    })
    .await;
    let mut still = tokio::net::TcpStream::connect(larder.registry()).await.unwrap();
    let request = format!("GET {} HTTP/1.1\r\nHost: larder\r\n\r\n", path("a/huge", ""));
    still.write_all(request.as_bytes()).await.unwrap();
    still.read_exact(&mut [0; 100]).await.unwrap();
    let list = larder.get(path("a/long", "")).await.expect(200);
    assert!(tags_in(&list) == long);
    assert_eq!(list.header("cache-status"), Some("larder; fwd=miss; stored"));
    let list = larder.get(path("a/huge", "?n=2")).await.expect(200);
    assert_eq!(tags_in(&list), huge[..2]);
    let said = list.header("cache-status").unwrap();
    assert!(!said.contains("stored"), "{said}");
}

fn index(n: usize, children: usize) -> (Digest, Vec<u8>) {
    let child = |i: usize| {
        let digest = Digest::sha256(format!("{n}-{i}").as_bytes());
        json!({ "mediaType": media_type::OCI_MANIFEST, "digest": digest, "size": 500 })
    };
    let children: Vec<Value> = (0..children).map(child).collect();
    let index = json!({ "schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": children });
    let bytes = index.to_string().into_bytes();
    (Digest::sha256(&bytes), bytes)
}

/// A manifest that names more than `limits.manifest_descriptors` is refused, by tag, by digest and ahead (and in a
/// bundle, see `bundle_hostile`); one that is held already is served (L3).
#[tokio::test]
async fn a_manifest_that_names_too_much() {
    let upstream = Upstream::start().await;
    let (digest, bytes) = index(1, 12);
    upstream.put_manifest("a/wide", Some("1"), media_type::OCI_INDEX, bytes.clone());
    let limit = |n: i64| {
        move |t: &mut crate::support::toml::Toml| {
            t.set(&["limits"], "manifest_descriptors", n);
        }
    };
    let mut larder = Larder::start(&upstream, limit(11)).await;
    for reference in ["1".to_owned(), digest.to_string()] {
        let refused = larder
            .get(format!("/v2/a/wide/manifests/{reference}"))
            .await
            .expect(502);
        assert_eq!(refused.error_code(), "MANIFEST_INVALID");
        let text = refused.json().to_string();
        assert!(
            text.contains("it has 12 descriptors, more than the 11 that limits.manifest_descriptors allows"),
            "{text}"
        );
    }
    assert_eq!(larder.store().usage().blobs, 0);
    let ahead = super::prefetch::run(&larder, json!({ "images": ["a/wide:1"] })).await;
    let why = ahead["images"][0]["error"].as_str().expect("a reason");
    assert!(why.contains("it has 12 descriptors, more than the 11"), "{ahead:#}");
    // Held under a higher limit it is served under a lower one, also after a restart.
    larder.reload(limit(12)).expect("a reload");
    larder.get("/v2/a/wide/manifests/1").await.expect(200);
    larder.until_idle().await;
    larder.reload(limit(5)).expect("a reload");
    larder.get("/v2/a/wide/manifests/1").await.expect_content(&digest);
    let larder = larder.restart().await;
    upstream.go_down().await;
    larder.get("/v2/a/wide/manifests/1").await.expect_content(&digest);
    larder
        .get(format!("/v2/a/wide/manifests/{digest}"))
        .await
        .expect_content(&digest);
}

/// Many indexes that name very much, as many as the limit allows and more: they cost little memory either way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_wide_indexes() {
    let upstream = Upstream::start().await;
    for n in 0..12 {
        let children = if n % 2 == 0 { 10_000 } else { 24_000 };
        upstream.put_manifest(
            "a/wide",
            Some(&n.to_string()),
            media_type::OCI_INDEX,
            index(n, children).1,
        );
    }
    let larder = LarderProcess::start(&upstream, |_| {}).await;
    larder.get("/v2/").await.expect(200);
    let before = peak_memory(larder.pid());
    for n in 0..12 {
        let response = larder.get(format!("/v2/a/wide/manifests/{n}")).await;
        assert_eq!(response.status, if n % 2 == 0 { 200 } else { 502 });
    }
    let grown = peak_memory(larder.pid()).saturating_sub(before);
    assert!(grown <= 64 * MIB, "{} MiB more", grown / MIB);
}
