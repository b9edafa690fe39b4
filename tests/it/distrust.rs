//! Mirrors that send something wrong: the same request is whole, from the next address, and that mirror is left alone about it.

use std::time::Duration;

use bytes::Bytes;
use larder::oci::Digest;
use larder::pull::Timing;
use serde_json::json;

use crate::far::eager;
use crate::support::client::{Ask, End, Response};
use crate::support::gate::Gate;
use crate::support::larder::{Larder, quick};
use crate::support::upstream::{Fault, Matcher, On, Pace, Upstream};
use crate::support::{DEADLINE, blob, logged, manifest, noise};

const REPO: &str = "library/alpine";
const SMALL: usize = 30_000;
/// Of this one bytes are given out before the verdict.
const LARGE: usize = 400_000;

/// A registry, and a mirror with the same content.
async fn registry_and_mirror() -> (Upstream, Upstream) {
    let registry = Upstream::start().await;
    let mirror = registry.start_cdn().await;
    (registry, mirror)
}

/// Nothing of a mirror's is given out before it has proved itself.
async fn start(registry: &Upstream, mirrors: &[&Upstream]) -> Larder {
    start_proving(registry, mirrors, DEADLINE).await
}

/// A mirror is waited for so long to prove itself.
async fn start_proving(registry: &Upstream, mirrors: &[&Upstream], prove_for: Duration) -> Larder {
    let mirrors: Vec<String> = mirrors.iter().map(|mirror| mirror.url()).collect();
    let timing = Timing { prove_for, ..quick() };
    Larder::start_timed(registry, timing, |t| {
        t.upstream("docker.io", "mirrors", mirrors);
        t.cache("tag_ttl", "0s");
    })
    .await
}

fn page() -> Fault {
    Fault::Status {
        status: 200,
        headers: vec![("Content-Type".to_owned(), "text/html; charset=utf-8".to_owned())],
        body: "<!doctype html><html><body>Please log in to the network.</body></html>".into(),
    }
}

fn header(name: &str, value: &str) -> Fault {
    Fault::Header(name.to_owned(), value.to_owned())
}

fn ssh() -> Fault {
    Fault::NoHttp(Bytes::from_static(b"SSH-2.0-OpenSSH_9.6\r\n"))
}

/// Other bytes of the right length: only the digest tells.
fn mismatches(size: usize) -> Vec<(&'static str, Vec<Fault>)> {
    vec![
        ("a flipped byte", vec![Fault::FlipByte(7)]),
        ("a flipped byte, no length", vec![Fault::FlipByte(7), Fault::Chunked]),
        ("other bytes", vec![Fault::WrongBytes(noise(999_983, size).into())]),
    ]
}

/// Lies that show, and those who send them are not asked again for that digest.
fn contradictions(size: usize) -> Vec<(&'static str, Vec<Fault>)> {
    vec![
        ("a web page", vec![page()]),
        ("a web page, no length", vec![page(), Fault::Chunked]),
        ("nothing", vec![Fault::WrongBytes(Bytes::new())]),
        ("too few bytes", vec![Fault::Truncate(size / 3)]),
        ("too many bytes", vec![Fault::Append(Bytes::from_static(b"more"))]),
        ("another encoding", vec![header("Content-Encoding", "gzip")]),
        (
            "status 206",
            vec![Fault::Status {
                status: 206,
                headers: Vec::new(),
                body: "part".into(),
            }],
        ),
    ]
}

/// What breaks off may be bad luck.
fn cuts(size: usize) -> Vec<(&'static str, Vec<Fault>)> {
    vec![
        ("cut in the middle", vec![Fault::CutAfter(size as u64 / 2)]),
        ("cut at once", vec![Fault::CutAfter(0)]),
        ("reset", vec![Fault::ResetAfter(size as u64 / 2)]),
        (
            "too few bytes, no length",
            vec![Fault::Truncate(size / 3), Fault::Chunked],
        ),
        (
            "nothing, no length",
            vec![Fault::WrongBytes(Bytes::new()), Fault::Chunked],
        ),
        (
            "too many bytes, no length",
            vec![Fault::Append(Bytes::from_static(b"more")), Fault::Chunked],
        ),
        ("no HTTP", vec![ssh()]),
        (
            "half HTTP",
            vec![Fault::NoHttp(Bytes::from_static(
                b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
            ))],
        ),
        ("closed", vec![Fault::NoHead { reset: false }]),
    ]
}

/// Two clients at once.
async fn two(larder: &Larder, path: &str) -> [Response; 2] {
    let asks = [(); 2].map(|()| tokio::spawn(Ask::get(path).send(larder.registry())));
    let [one, other] = asks;
    [one.await.unwrap(), other.await.unwrap()]
}

/// An image is removed from the cache with all that is in it: `:1` or `@sha256:…`.
async fn remove(larder: &Larder, reference: &str) {
    larder.until_idle().await;
    Ask::new("DELETE", format!("/api/v1/images/docker.io/{REPO}{reference}"))
        .header("Content-Type", "application/json")
        .send(larder.admin())
        .await
        .expect(200);
}

fn print(registry: &Upstream, mirror: &Upstream) -> String {
    format!("registry:\n{}\nmirror:\n{}", registry.print(), mirror.print())
}

/// Every lie and every cut, for two clients at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blobs_are_whole_in_the_same_request() {
    for size in [SMALL, LARGE] {
        let lies = contradictions(size)
            .into_iter()
            .chain(mismatches(size))
            .map(|lie| (lie, true));
        for ((lie, faults), is_remembered) in lies.chain(cuts(size).into_iter().map(|lie| (lie, false))) {
            let (registry, mirror) = registry_and_mirror().await;
            let image = registry.image(REPO, "1", &[size]);
            let layer = image.layers[0];
            mirror.on(On::Blob(layer).get()).always().does(faults);
            let larder = start(&registry, &[&mirror]).await;
            larder.get(manifest(REPO, "1")).await.expect_content(&image.manifest);
            for response in two(&larder, &blob(REPO, layer)).await {
                let what = format!("{lie}, {size} bytes: {response:?}\n{}", print(&registry, &mirror));
                assert_eq!((response.status, response.end), (200, End::Complete), "{what}");
                assert_eq!(Digest::sha256(&response.body), layer, "{what}");
            }
            larder.until_held(&blob(REPO, layer)).await;
            if is_remembered {
                remove(&larder, ":1").await;
                let counts = || [&mirror, &registry].map(|upstream| upstream.count(On::Blob(layer)));
                let [of_mirror, of_registry] = counts();
                larder.get(blob(REPO, layer)).await.expect_content(&layer);
                assert_eq!(
                    counts(),
                    [of_mirror, of_registry + 1],
                    "{lie}: {}",
                    print(&registry, &mirror)
                );
            }
        }
    }
}

/// Without a manifest nobody knows the size. What waits for the verdict is mended all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_blobs_of_unknown_size() {
    let lies = contradictions(SMALL)
        .into_iter()
        .chain(mismatches(SMALL))
        .chain(cuts(SMALL));
    // What comes by chunks may be long, so bytes of it are given out.
    let streamed = |lie: &str| lie.contains("no length") && !lie.contains("page") && !lie.contains("nothing");
    let lies = lies.filter(|(lie, _)| !streamed(lie));
    for (lie, faults) in lies {
        let (registry, mirror) = registry_and_mirror().await;
        let digest = registry.blob(REPO, SMALL);
        mirror.on(On::Blob(digest).get()).always().does(faults);
        let larder = start(&registry, &[&mirror]).await;
        for response in two(&larder, &blob(REPO, digest)).await {
            let what = format!("{lie}: {response:?}\n{}", print(&registry, &mirror));
            assert_eq!((response.status, response.end), (200, End::Complete), "{what}");
            assert_eq!(Digest::sha256(&response.body), digest, "{what}");
        }
    }
}

/// L2: bytes of a large blob of a mirror that has proved itself, or had its time, are out before anybody can tell that they are
/// wrong. Those responses end short; the next request is whole, and so is the first for another blob that the mirror has wrong.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_blob_of_wrong_bytes() {
    logged::listen();
    for (lie, faults) in mismatches(LARGE) {
        let (registry, mirror) = registry_and_mirror().await;
        let [first, second, good] = [(); 3].map(|()| registry.blob(REPO, LARGE));
        for digest in [first, second] {
            mirror.on(On::Blob(digest).get()).always().does(faults.clone());
        }
        let larder = start_proving(&registry, &[&mirror], Duration::ZERO).await;
        for response in two(&larder, &blob(REPO, first)).await {
            assert_eq!(
                (response.status, response.end),
                (200, End::Short),
                "{lie}: {}",
                print(&registry, &mirror)
            );
            assert!(response.body.len() < LARGE);
        }
        larder.until_idle().await;
        assert_eq!(mirror.count(On::Blob(first)), 1, "{lie}: {}", mirror.print());
        assert_eq!(registry.count(On::Any), 0);
        for _ in 0..2 {
            larder.get(blob(REPO, first)).await.expect_content(&first);
        }
        assert_eq!(mirror.count(On::Blob(first)), 1, "{lie}: {}", mirror.print());
        // From now on nothing of that mirror is given out before the verdict.
        for response in two(&larder, &blob(REPO, second)).await {
            response.expect_content(&second);
        }
        larder.until_idle().await;
        let (of_mirror, of_registry) = (mirror.count(On::Blob(second)), registry.count(On::Blob(second)));
        assert_eq!((of_mirror, of_registry), (1, 1), "{lie}: {}", print(&registry, &mirror));
        larder.get(blob(REPO, good)).await.expect_content(&good);
        assert_eq!((mirror.count(On::Blob(good)), registry.count(On::Blob(good))), (1, 0));

        let address = mirror.url();
        let lines = logged::with(&format!("address={address} digest={first}"));
        assert_eq!(lines.len(), 1, "{lines:?}");
        for wanted in ["WARN", "reason=mismatch", "not asked for this blob for 10 min"] {
            assert!(lines[0].contains(wanted), "{lines:?}");
        }
        // The second of unknown length was left to the registry unread.
        let times = 2 - usize::from(lie.contains("no length"));
        let metric = format!(
            "larder_upstream_distrusted_total{{upstream=\"docker.io\",address=\"{address}\",reason=\"mismatch\"}} {times}"
        );
        let metrics = larder.metrics().await;
        assert!(metrics.contains(&metric), "{metrics}");
    }
}

/// Several mirrors lie, each in its way: the registry has the last word, in the same request.
#[tokio::test]
async fn every_mirror_lies() {
    let (registry, mirror) = registry_and_mirror().await;
    let others = [registry.start_cdn().await, registry.start_cdn().await];
    let small = registry.blob(REPO, SMALL);
    mirror.on(On::Blobs.get()).always().flip_byte(3);
    others[0].on(On::Blobs.get()).always().does([page()]);
    others[1].on(On::Blobs.get()).always().wrong_bytes(noise(3, 20_000));
    let larder = start(&registry, &[&mirror, &others[0], &others[1]]).await;
    larder.get(blob(REPO, small)).await.expect_content(&small);
    for upstream in [&mirror, &others[0], &others[1], &registry] {
        assert_eq!(upstream.count(On::Blob(small)), 1, "{}", upstream.print());
    }
}

/// The registry itself is never distrusted: what it sends wrongly is refused, and it is asked again.
#[tokio::test]
async fn the_registry_has_the_last_word() {
    let (registry, mirror) = registry_and_mirror().await;
    let digest = registry.blob(REPO, SMALL);
    let wrong = [&registry, &mirror].map(|upstream| upstream.on(On::Blobs.get()).always().flip_byte(9));
    let larder = start(&registry, &[&mirror]).await;
    for n in 1..4 {
        assert_eq!(larder.get(blob(REPO, digest)).await.status, 502);
        larder.until_idle().await;
        assert_eq!((mirror.count(On::Blobs), registry.count(On::Blobs)), (1, n));
    }
    wrong[0].remove();
    larder.get(blob(REPO, digest)).await.expect_content(&digest);
    assert_eq!(mirror.count(On::Blobs), 1);
}

/// L4: what a mirror gave before it broke off is kept, and the rest comes from the registry.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_is_mended_by_the_next_address() {
    const SIZE: usize = 2_000_000;
    const CUT: u64 = 800_000;
    let (registry, mirror) = registry_and_mirror().await;
    let digest = registry.blob(REPO, SIZE);
    mirror.on(On::Blobs.get()).always().cut_after(CUT);
    let larder = start(&registry, &[&mirror]).await;
    for response in two(&larder, &blob(REPO, digest)).await {
        response.expect_content(&digest);
    }
    assert_eq!(mirror.count(On::Blobs), 1, "{}", mirror.print());
    assert_eq!(registry.count(On::Blobs), 1);
    assert_eq!(
        registry.bytes_sent(On::Blobs),
        SIZE as u64 - CUT,
        "{}",
        registry.print()
    );
}

/// And what it gave was wrong: nobody can say whose bytes it was, but it was not the registry's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_in_wrong_bytes() {
    for (size, prove_for) in [(SMALL, Duration::ZERO), (LARGE, DEADLINE), (LARGE, Duration::ZERO)] {
        let (registry, mirror) = registry_and_mirror().await;
        let digest = registry.blob(REPO, size);
        let cut = Fault::CutAfter(size as u64 / 2);
        mirror.on(On::Blobs.get()).always().does([Fault::FlipByte(0), cut]);
        let larder = start_proving(&registry, &[&mirror], prove_for).await;
        let response = larder.get(blob(REPO, digest)).await;
        if size == LARGE && prove_for.is_zero() {
            assert_eq!((response.status, response.end), (200, End::Short));
        } else {
            response.expect_content(&digest);
        }
        larder.until_idle().await;
        larder.get(blob(REPO, digest)).await.expect_content(&digest);
        assert_eq!(mirror.count(On::Blobs), 1, "{}", mirror.print());
    }
}

/// Bytes of an honest mirror wait until a whole blob of it is verified, whichever comes first, and no longer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_proves_itself() {
    let (registry, mirror) = registry_and_mirror().await;
    let [first, second, third] = [(); 3].map(|()| registry.blob(REPO, LARGE));
    let gate = Gate::closed();
    for digest in [first, third] {
        mirror.on(On::Blob(digest)).always().stall_after(200_000, &gate);
    }
    let larder = start(&registry, &[&mirror]).await;
    let waiting = tokio::spawn(Ask::get(blob(REPO, first)).open(larder.registry()));
    gate.wait_for_arrivals(1).await;
    assert!(!waiting.is_finished());
    larder.get(blob(REPO, second)).await.expect_content(&second);
    let mut begun = waiting.await.unwrap();
    begun.read_at_least(100_000).await;
    let mut at_once = Ask::get(blob(REPO, third)).open(larder.registry()).await;
    at_once.read_at_least(100_000).await;
    gate.open();
    begun.rest().await.expect_content(&first);
    at_once.rest().await.expect_content(&third);
    assert_eq!(registry.count(On::Any), 0);
}

/// It need not prove itself for long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unproven_mirror_that_is_slow() {
    // The second passes through memory.
    for (max_size, size) in [("1GiB", LARGE), ("8MiB", 10_000_000)] {
        let (registry, mirror) = registry_and_mirror().await;
        let digest = registry.blob(REPO, size);
        let gate = Gate::closed();
        mirror.on(On::Blobs).always().stall_after(200_000, &gate);
        let timing = Timing {
            prove_for: Duration::from_millis(1),
            ..quick()
        };
        let larder = Larder::start_timed(&registry, timing, |t| {
            t.upstream("docker.io", "mirrors", vec![mirror.url()]);
            t.cache("max_size", max_size);
        })
        .await;
        let mut begun = Ask::get(blob(REPO, digest)).open(larder.registry()).await;
        begun.read_at_least(100_000).await;
        gate.open();
        begun.rest().await.expect_content(&digest);
    }
}

/// A mirror has what its registry has not, and breaks off once: it is asked again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_may_know_more() {
    for size in [SMALL, LARGE] {
        for trouble in [404, 503] {
            let (registry, mirror) = registry_and_mirror().await;
            let digest = registry.blob(REPO, size);
            registry.on(On::Any).always().status(trouble);
            mirror.on(On::Blobs.get()).cut_after(20_000);
            let larder = start(&registry, &[&mirror]).await;
            larder.get(blob(REPO, digest)).await.expect_content(&digest);
            assert_eq!(mirror.count(On::Blobs), 2, "{}", print(&registry, &mirror));
        }
    }
}

/// Three answers that break off without a byte are enough.
#[tokio::test]
async fn three_cuts_without_progress() {
    let (registry, mirror) = registry_and_mirror().await;
    let image = registry.image(REPO, "1", &[LARGE]);
    let layer = image.layers[0];
    let larder = start(&registry, &[&mirror]).await;
    mirror.on(On::Blob(layer)).always().cut_after(0);
    for n in [1, 2, 3, 3, 3] {
        larder.get(manifest(REPO, "1")).await.expect_content(&image.manifest);
        larder.get(blob(REPO, layer)).await.expect_content(&layer);
        larder.until_held(&blob(REPO, layer)).await;
        assert_eq!(mirror.count(On::Blob(layer)), n, "{}", mirror.print());
        remove(&larder, ":1").await;
    }
}

/// A manifest may claim any size of any digest. A mirror that is right is not distrusted for long.
#[tokio::test]
async fn a_manifest_that_names_a_wrong_size() {
    for size in [SMALL, LARGE] {
        let (registry, mirror) = registry_and_mirror().await;
        let image = registry.image(REPO, "1", &[size]);
        let layer = image.layers[0];
        let text = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": image.config, "size": 2},
            "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer, "size": size + 1}],
        });
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let wrong = registry.put_manifest(REPO, Some("wrong"), kind, text.to_string());
        let larder = start(&registry, &[&mirror]).await;
        for _ in 0..2 {
            larder.get(manifest(REPO, "wrong")).await.expect_content(&wrong);
            let asked = mirror.count(On::Blob(layer));
            larder.get(blob(REPO, layer)).await.expect_content(&layer);
            larder.until_held(&blob(REPO, layer)).await;
            assert_eq!(
                mirror.count(On::Blob(layer)),
                asked + 1,
                "{}",
                print(&registry, &mirror)
            );
            remove(&larder, ":wrong").await;
        }
    }
}

/// The same for manifests by digest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn manifests_by_digest() {
    let lies = mismatches(500)
        .into_iter()
        .chain(contradictions(500))
        .map(|lie| (lie, true));
    for ((lie, faults), is_remembered) in lies.chain(cuts(500).into_iter().map(|lie| (lie, false))) {
        let (registry, mirror) = registry_and_mirror().await;
        let image = registry.image(REPO, "1", &[100]);
        mirror.on(On::Manifests.get()).always().does(faults);
        let larder = start(&registry, &[&mirror]).await;
        let path = manifest(REPO, image.manifest);
        for response in two(&larder, &path).await {
            let what = format!("{lie}: {response:?}\n{}", print(&registry, &mirror));
            assert_eq!((response.status, response.end), (200, End::Complete), "{what}");
            assert_eq!(Digest::sha256(&response.body), image.manifest, "{what}");
        }
        if is_remembered {
            let asked = mirror.count(On::Manifests);
            remove(&larder, &format!("@{}", image.manifest)).await;
            larder.get(path).await.expect_content(&image.manifest);
            assert_eq!(mirror.count(On::Manifests), asked, "{lie}: {}", mirror.print());
        }
    }
}

/// By tag only what contradicts itself is known to be wrong.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn manifests_by_tag() {
    let no_digest = || Fault::NoHeader("Docker-Content-Digest".to_owned());
    let more = [
        ("no JSON", vec![Fault::FlipByte(0), no_digest()]),
        ("half of it", vec![Fault::Truncate(200), no_digest()]),
        ("nothing at all", vec![Fault::WrongBytes(Bytes::new()), no_digest()]),
        (
            "a list",
            vec![Fault::WrongBytes(Bytes::from_static(b"[1]")), no_digest()],
        ),
    ];
    let lies = mismatches(500)
        .into_iter()
        .chain(contradictions(500))
        .chain(more)
        .map(|lie| (lie, true));
    for ((lie, faults), is_remembered) in lies.chain(cuts(500).into_iter().map(|lie| (lie, false))) {
        let (registry, mirror) = registry_and_mirror().await;
        let image = registry.image(REPO, "1", &[100]);
        mirror.on(On::Manifests.get()).always().does(faults);
        let larder = start(&registry, &[&mirror]).await;
        for response in two(&larder, &manifest(REPO, "1")).await {
            let what = format!("{lie}: {response:?}\n{}", print(&registry, &mirror));
            assert_eq!((response.status, response.end), (200, End::Complete), "{what}");
            assert_eq!(Digest::sha256(&response.body), image.manifest, "{what}");
        }
        if is_remembered {
            let asked = mirror.count(On::Manifests);
            larder.head(manifest(REPO, "1")).await.expect(200);
            assert_eq!(mirror.count(On::Manifests), asked, "{lie}: {}", mirror.print());
        }
    }
}

/// A HEAD by tag names a digest whose bytes the mirror then sends wrongly.
#[tokio::test]
async fn a_head_that_leads_to_wrong_bytes() {
    for invented in [false, true] {
        let (registry, mirror) = registry_and_mirror().await;
        let old = registry.image(REPO, "1", &[100]);
        let larder = start(&registry, &[&mirror]).await;
        larder.get(manifest(REPO, "1")).await.expect_content(&old.manifest);
        let new = registry.image(REPO, "1", &[200]);
        let named = if invented {
            Digest::sha256(b"invented")
        } else {
            new.manifest
        };
        mirror
            .on(Matcher::from(On::Manifest("1".to_owned())))
            .always()
            .does([header("Docker-Content-Digest", &named.to_string())]);
        let body = Fault::Status {
            status: 200,
            headers: vec![(
                "Content-Type".to_owned(),
                "application/vnd.oci.image.manifest.v1+json".to_owned(),
            )],
            body: "{\"schemaVersion\":2}".into(),
        };
        mirror.on(On::Manifest(named.to_string())).always().does([body]);
        for _ in 0..2 {
            larder.get(manifest(REPO, "1")).await.expect_content(&new.manifest);
        }
        let head = larder.head(manifest(REPO, "1")).await.expect(200);
        assert_eq!(head.header("docker-content-digest"), Some(&*new.manifest.to_string()));
        assert_eq!(mirror.count(On::Manifest(named.to_string())), 1, "{}", mirror.print());
    }
}

/// The tag is known by such a HEAD only.
#[tokio::test]
async fn a_tag_that_a_head_made_up() {
    let (registry, mirror) = registry_and_mirror().await;
    let image = registry.image(REPO, "1", &[100]);
    let named = Digest::sha256(b"invented");
    let tag = || On::Manifest("1".to_owned());
    mirror
        .on(tag())
        .always()
        .does([header("Docker-Content-Digest", &named.to_string())]);
    mirror
        .on(On::Manifest(named.to_string()))
        .always()
        .answer(200, &[], "nothing of that");
    let larder = Larder::start(&registry, |t| {
        t.upstream("docker.io", "mirrors", vec![mirror.url()]);
    })
    .await;
    // Nothing can be verified of it yet.
    larder.head(manifest(REPO, "1")).await.expect(200);
    larder.get(manifest(REPO, "1")).await.expect_content(&image.manifest);
    let head = larder.head(manifest(REPO, "1")).await.expect(200);
    assert_eq!(head.header("docker-content-digest"), Some(&*image.manifest.to_string()));
}

/// What answers to HEAD with a web page, or about something else, is not believed.
#[tokio::test]
async fn heads_that_are_not_credible() {
    let (registry, mirror) = registry_and_mirror().await;
    let image = registry.image(REPO, "1", &[SMALL]);
    let layer = image.layers[0];
    mirror.on(On::Blobs.head()).always().does([page()]);
    let other = Digest::sha256(b"something else");
    mirror
        .on(On::Manifests.head())
        .always()
        .does([header("Docker-Content-Digest", &other.to_string())]);
    let larder = start(&registry, &[&mirror]).await;
    let head = larder.head(blob(REPO, layer)).await.expect(200);
    assert_eq!(head.header("content-length"), Some(&*SMALL.to_string()));
    let head = larder.head(manifest(REPO, image.manifest)).await.expect(200);
    assert_eq!(head.header("docker-content-digest"), Some(&*image.manifest.to_string()));
}

/// Lists that are none: the next address is asked at once, and that mirror is not asked again for a while.
#[tokio::test]
async fn lists() {
    for (lie, faults) in [
        ("a web page", vec![page()]),
        ("no list", vec![Fault::WrongBytes(Bytes::from_static(b"{\"tags\":[1,"))]),
        ("no JSON", vec![Fault::WrongBytes(Bytes::from_static(b"tags: 1"))]),
    ] {
        let (registry, mirror) = registry_and_mirror().await;
        registry.image(REPO, "1", &[100]);
        mirror.on(On::Tags).always().does(faults);
        let larder = start(&registry, &[&mirror]).await;
        for _ in 0..3 {
            let tags = larder.get(format!("/v2/{REPO}/tags/list")).await.expect(200);
            assert_eq!(tags.json()["tags"], json!(["1"]));
        }
        assert_eq!(mirror.count(On::Tags), 1, "{lie}: {}", mirror.print());
    }
}

/// Parts that come over other connections are a mirror's, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_parts() {
    const SIZE: usize = 12 << 20;
    for prove_for in [Duration::ZERO, DEADLINE] {
        let (registry, mirror) = registry_and_mirror().await;
        let digest = registry.blob(REPO, SIZE);
        let gate = Gate::closed();
        let pace = Fault::Pace(Pace::BytesPerSecond(10_000_000));
        let wrong = mirror.on(On::Blobs.get()).always();
        wrong.does([pace.clone(), Fault::FlipByte(1000)]);
        let stall = Fault::StallAfter(200_000, gate.clone());
        mirror.on(On::Blobs.whole()).does([pace, stall]);
        let timing = Timing { prove_for, ..eager() };
        let larder = Larder::start_timed(&registry, timing, |t| {
            t.upstream("docker.io", "mirrors", vec![mirror.url()]);
        })
        .await;
        let asking = tokio::spawn(Ask::get(blob(REPO, digest)).send(larder.registry()));
        mirror.wait_for(On::Blobs.ranged(), 2).await;
        gate.open();
        let response = asking.await.unwrap();
        if prove_for.is_zero() {
            assert_eq!((response.status, response.end), (200, End::Short), "{response:?}");
        } else {
            response.expect_content(&digest);
        }
        larder.until_idle().await;
        mirror.forget();
        larder.get(blob(REPO, digest)).await.expect_content(&digest);
        assert_eq!(mirror.count(On::Blobs), 0, "{}", mirror.print());
    }
}

/// Another configuration of the same upstream goes on with what is known of its mirrors.
#[tokio::test]
async fn a_reload_forgets_nothing() {
    let (registry, mirror) = registry_and_mirror().await;
    let image = registry.image(REPO, "1", &[SMALL]);
    let layer = image.layers[0];
    mirror.on(On::Blobs.get()).always().flip_byte(5);
    let mut larder = start(&registry, &[&mirror]).await;
    larder.get(manifest(REPO, "1")).await.expect_content(&image.manifest);
    larder.get(blob(REPO, layer)).await.expect_content(&layer);
    larder
        .reload(|t| {
            t.upstream("docker.io", "max_connections", 7);
        })
        .unwrap();
    larder.until_held(&blob(REPO, layer)).await;
    remove(&larder, ":1").await;
    larder.get(blob(REPO, layer)).await.expect_content(&layer);
    assert_eq!(mirror.count(On::Blobs), 1, "{}", mirror.print());
}
