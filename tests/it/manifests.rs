//! `GET` and `HEAD` of manifests, by tag and by digest.

use bytes::Bytes;
use larder::oci::{Algorithm, Digest, media_type};
use serde_json::json;

use crate::support::client::{Ask, http2};
use crate::support::larder::Larder;
use crate::support::upstream::{Fault, On, Upstream};
use crate::support::{blob, manifest, noise};

const REPO: &str = "library/alpine";

/// Protocol 0.3, R-S11, R-S12, R-S27, L9: by tag and digest, GET and HEAD, cold and hot.
#[tokio::test]
async fn the_contract() {
    for docker in [true, false] {
        let upstream = Upstream::start().await;
        let image = match docker {
            true => upstream.image(REPO, "3.22", &[100]),
            false => upstream.oci_image(REPO, "3.22", &[100]),
        };
        let larder = Larder::start(&upstream, |_| {}).await;
        let digest = image.manifest.to_string();
        for (round, reference) in ["3.22", &digest, "3.22", &digest].into_iter().enumerate() {
            let response = larder.get(manifest(REPO, reference)).await.expect(200);
            assert_eq!(response.body, image.bytes, "byte for byte");
            let head = larder.head(manifest(REPO, reference)).await.expect(200);
            assert!(head.body.is_empty());
            let length = image.bytes.len().to_string();
            for answer in [&response, &head] {
                assert_eq!(answer.header("content-type"), Some(image.media_type));
                assert_eq!(answer.header("content-length"), Some(&*length));
                assert_eq!(answer.header("docker-content-digest"), Some(&*digest));
                assert_eq!(answer.header("etag"), Some(&*format!("\"{digest}\"")));
                assert_eq!(answer.header("content-encoding"), None);
                assert_eq!(answer.header("docker-distribution-api-version"), Some("registry/2.0"));
            }
            let status = response.header("cache-status").unwrap();
            let wanted = if round == 0 {
                "larder; fwd=miss; stored"
            } else {
                "larder; hit"
            };
            assert_eq!(status, wanted, "round {round}");
        }
        assert_eq!(upstream.count(On::Manifests.get()), 1, "{}", upstream.print());
    }
}

/// R-S11, R-C40: a HEAD needs no GET before it, and has its length on the wire, by HTTP/2 as well.
#[tokio::test]
async fn head_cold() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[]);
    let other = upstream.oci_image(REPO, "2", &[]);
    let larder = Larder::start(&upstream, |_| {}).await;
    let head = larder.head(manifest(REPO, "1")).await.expect(200);
    assert_eq!(head.header("docker-content-digest"), Some(&*image.manifest.to_string()));
    assert_eq!(head.header("content-type"), Some(image.media_type));
    let by_digest = larder.head(manifest(REPO, other.manifest)).await.expect(200);
    assert_eq!(
        by_digest.header("content-length"),
        Some(&*other.bytes.len().to_string())
    );
    let h2 = http2(larder.registry(), Ask::head(manifest(REPO, "2")))
        .await
        .expect(200);
    assert_eq!(h2.header("content-length"), Some(&*other.bytes.len().to_string()));
    let h2 = http2(larder.registry(), Ask::get(manifest(REPO, "2"))).await;
    h2.expect_content(&other.manifest);
}

/// R-S29: whatever a manifest is, it goes through, and its type with it.
#[tokio::test]
async fn every_kind() {
    let upstream = Upstream::start().await;
    let image = upstream.oci_image(REPO, "image", &[10]);
    let index = upstream.index(REPO, "index", &[image.manifest]);
    let nested = upstream.index(REPO, "nested", &[index.manifest]);
    let list = upstream.docker_list(REPO, "list", &[upstream.image(REPO, "x", &[1]).manifest]);
    let artifact = upstream.artifact(REPO, image.manifest, "application/vnd.example+json");
    let zstd = json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_MANIFEST,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": image.config, "size": 2},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+zstd", "digest": image.layers[0], "size": 10, "data": "eA=="}],
        "unknown": {"field": [1, 2]},
    });
    let zstd = upstream.put_manifest(REPO, Some("zstd"), media_type::OCI_MANIFEST, zstd.to_string());
    let no_layers = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": []});
    let empty = upstream.put_manifest(REPO, Some("empty"), media_type::OCI_INDEX, no_layers.to_string());
    let foreign = Bytes::from(r#"{"schemaVersion":2,"anything":true}"#);
    let foreign = upstream.put_manifest(REPO, Some("foreign"), "application/vnd.example.thing.v1+json", foreign);
    let larder = Larder::start(&upstream, |_| {}).await;
    for (digest, media_type) in [
        (index.manifest, media_type::OCI_INDEX),
        (nested.manifest, media_type::OCI_INDEX),
        (list.manifest, media_type::DOCKER_LIST),
        (artifact.manifest, media_type::OCI_MANIFEST),
        (zstd, media_type::OCI_MANIFEST),
        (empty, media_type::OCI_INDEX),
        (foreign, "application/vnd.example.thing.v1+json"),
    ] {
        for _ in 0..2 {
            let response = larder.get(manifest(REPO, digest)).await;
            assert_eq!(response.header("content-type"), Some(media_type), "{response:?}");
            response.expect_content(&digest);
        }
    }
}

/// R-S16: the digest in the answer has the algorithm of the question.
#[tokio::test]
async fn by_sha512() {
    let upstream = Upstream::start().await;
    let image = upstream.oci_image(REPO, "1", &[]);
    let long = Digest::of(Algorithm::Sha512, &image.bytes);
    let larder = Larder::start(&upstream, |_| {}).await;
    for _ in 0..2 {
        let response = larder.get(manifest(REPO, long)).await;
        assert_eq!(response.header("docker-content-digest"), Some(&*long.to_string()));
        response.expect_content(&long);
    }
}

/// R-S27.
#[tokio::test]
async fn if_none_match() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[]);
    let larder = Larder::start(&upstream, |_| {}).await;
    let etag = format!("\"{}\"", image.manifest);
    for method in ["GET", "HEAD"] {
        for (value, status) in [
            (&*etag, 304),
            ("\"other\"", 200),
            ("*", 304),
            (&format!("\"a\", {etag}"), 304),
        ] {
            let ask = Ask::new(method, manifest(REPO, "1")).header("If-None-Match", value);
            let response = ask.open(larder.registry()).await.rest().await.expect(status);
            assert_eq!(response.header("etag"), Some(&*etag));
        }
    }
}

/// R-U54, R-W1, R-S26: one answer a tag, whatever the client says that it accepts.
#[tokio::test]
async fn accept_is_no_key() {
    let upstream = Upstream::start().await;
    let image = upstream.oci_image(REPO, "1", &[]);
    let larder = Larder::start(&upstream, |_| {}).await;
    for accept in [
        media_type::DOCKER_MANIFEST,
        media_type::OCI_MANIFEST,
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
        "*/*",
    ] {
        let ask = Ask::get(manifest(REPO, "1")).header("Accept", accept);
        let response = ask.header("Accept", "text/plain").send(larder.registry()).await;
        assert_eq!(response.header("content-type"), Some(image.media_type), "{accept}");
        response.expect_content(&image.manifest);
    }
    larder.get(manifest(REPO, "1")).await.expect_content(&image.manifest);
    assert_eq!(upstream.count(On::Manifests), 1, "{}", upstream.print());
}

/// R-U53, R-X5: what the upstream is told is Larder's own.
#[tokio::test]
async fn the_question_upstream() {
    let upstream = Upstream::start().await;
    upstream.image(REPO, "1", &[]);
    let larder = Larder::start(&upstream, |_| {}).await;
    let ask = Ask::get(manifest(REPO, "1"))
        .header("Authorization", "Basic Y2xpZW50OnNlY3JldA==")
        .header("Cookie", "a=b")
        .header("Accept", media_type::DOCKER_MANIFEST)
        .header("Accept-Encoding", "gzip")
        .header("X-Custom", "1");
    ask.send(larder.registry()).await.expect(200);
    let asked = upstream.matching(On::Manifests);
    for kind in [
        media_type::OCI_INDEX,
        media_type::OCI_MANIFEST,
        media_type::DOCKER_LIST,
        media_type::DOCKER_MANIFEST,
    ] {
        assert!(asked[0].header("accept").unwrap().contains(kind), "{kind}");
    }
    assert_eq!(asked[0].header("accept-encoding"), Some("identity"));
    assert!(asked[0].header("user-agent").unwrap().starts_with("larder/"));
    for name in ["authorization", "cookie", "x-custom"] {
        assert_eq!(asked[0].header(name), None);
    }
    assert_eq!(asked[0].query, None);
}

/// R-S13: a Range on a manifest is ignored.
#[tokio::test]
async fn a_range_is_ignored() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[]);
    let larder = Larder::start(&upstream, |_| {}).await;
    for _ in 0..2 {
        let ask = Ask::get(manifest(REPO, "1")).range("bytes=0-9");
        ask.send(larder.registry()).await.expect_content(&image.manifest);
    }
}

/// R-S3, R-S7, R-S8: what is not there, and what cannot be.
#[tokio::test]
async fn what_is_not_there() {
    let upstream = Upstream::start().await;
    upstream.image(REPO, "1", &[]);
    let larder = Larder::start(&upstream, |_| {}).await;
    let missing = Digest::sha256(b"missing");
    for reference in ["nope", &missing.to_string()] {
        let response = larder.get(manifest(REPO, reference)).await.expect(404);
        assert_eq!(response.error_code(), "MANIFEST_UNKNOWN");
        larder.head(manifest(REPO, reference)).await.expect(404);
    }
    upstream.forget();
    for tag in [".INVALID_MANIFEST_NAME", "-x", &"a".repeat(129)] {
        let response = larder.get(manifest(REPO, tag)).await.expect(404);
        assert_eq!(response.error_code(), "MANIFEST_UNKNOWN");
        larder.head(manifest(REPO, tag)).await.expect(404);
    }
    let upper = format!("sha256:{}", missing.hex().to_uppercase());
    for digest in ["sha256:totallywrong", "sha256:baddigeststring", "md5:abc", &upper] {
        // The conformance suite sends a body with it.
        let ask = Ask::get(manifest(REPO, digest)).header("Content-Type", "text/plain");
        let response = ask.body("blablabla").send(larder.registry()).await.expect(400);
        assert_eq!(response.error_code(), "DIGEST_INVALID");
    }
    assert_eq!(upstream.requests().len(), 0, "{}", upstream.print());
}

/// R-C81, R-U12: "it is not there" is believed for a moment, by all who ask; a failure never makes it so.
#[tokio::test]
async fn negative_answers() {
    let upstream = Upstream::start().await;
    upstream.image(REPO, "1", &[]);
    let larder = Larder::start(&upstream, |_| {}).await;
    for _ in 0..5 {
        larder.get(manifest(REPO, "nope")).await.expect(404);
    }
    assert_eq!(upstream.count(On::Manifest("nope".into())), 1, "{}", upstream.print());
    upstream.on(On::Manifests).always().status(500);
    let failed = larder.get(manifest(REPO, "1")).await;
    assert!(matches!(failed.status, 502..=504), "{failed:?}");
    upstream.clear_script();
    larder.get(manifest(REPO, "1")).await.expect(200);
}

/// `cache.negative_ttl`: what was not there is asked for again after it, and the message says how old the answer is.
#[tokio::test]
async fn how_long_a_404_is_believed() {
    let upstream = Upstream::start().await;
    let ttl = |text: &'static str| {
        move |t: &mut crate::support::toml::Toml| {
            t.cache("negative_ttl", text);
        }
    };
    let mut larder = Larder::start(&upstream, ttl("1h")).await;
    let is_old = |response: &crate::support::client::Response| {
        let text = response.json().to_string();
        text.contains("; it said so ") && text.contains(" s ago")
    };
    let missing = Digest::sha256(b"missing");
    let paths = [
        manifest(REPO, "late"),
        manifest(REPO, missing),
        blob(REPO, missing),
        format!("/v2/{REPO}/tags/list"),
    ];
    for path in &paths {
        let now = larder.get(path).await.expect(404);
        assert!(!now.json().to_string().contains(" ago"), "{now:?}");
        assert_eq!(now.header("age"), None);
        let asked = upstream.requests().len();
        let later = larder.get(path).await.expect(404);
        assert!(is_old(&later), "{later:?}");
        assert!(larder.head(path).await.expect(404).header("age").is_some(), "{path}");
        assert_eq!(upstream.requests().len(), asked, "{}", upstream.print());
    }
    // A refusal is remembered for as long.
    upstream.on(On::Manifest("private".into())).next(1).status(403);
    larder.get(manifest(REPO, "private")).await.expect(404);
    let later = larder.get(manifest(REPO, "private")).await.expect(404);
    let text = later.json().to_string();
    assert!(text.contains("answered 403") && is_old(&later), "{text}");

    let image = upstream.image(REPO, "late", &[]);
    larder.get(manifest(REPO, "late")).await.expect(404);
    larder.reload(ttl("0s")).expect("a reload");
    larder.get(manifest(REPO, "late")).await.expect_content(&image.manifest);
    for _ in 0..2 {
        let asked = upstream.requests().len();
        larder.get(manifest(REPO, missing)).await.expect(404);
        assert!(upstream.requests().len() > asked);
    }
}

/// Push, and pull at once: nothing is believed for longer than a tag is trusted.
#[tokio::test]
async fn what_is_pushed_after_a_404_is_there() {
    let upstream = Upstream::start().await;
    let larder = Larder::start(&upstream, |t| {
        t.cache("tag_ttl", "0s");
    })
    .await;
    upstream.blob(REPO, 1);
    // The same bytes, pushed elsewhere first: their names are known.
    let image = upstream.oci_image("other/image", "1", &[100]);
    let ask = async |wanted: u16| {
        for reference in ["1".to_owned(), image.manifest.to_string()] {
            larder.head(manifest(REPO, &reference)).await.expect(wanted);
            larder.get(manifest(REPO, &reference)).await.expect(wanted);
        }
        larder.head(blob(REPO, image.layers[0])).await.expect(wanted);
        larder.get(blob(REPO, image.layers[0])).await.expect(wanted);
    };
    ask(404).await;
    upstream.put_manifest(REPO, Some("1"), image.media_type, image.bytes.clone());
    upstream.mount(&image.layers[0], REPO);
    ask(200).await;
}

/// Whoever asks again and again does not prolong it.
#[tokio::test]
async fn asking_does_not_make_a_404_younger() {
    let upstream = Upstream::start().await;
    let larder = Larder::start(&upstream, |t| {
        t.cache("negative_ttl", "400ms");
    })
    .await;
    let layer = upstream.blob("other/image", 100);
    upstream.blob(REPO, 1);
    let path = blob(REPO, layer);
    larder.head(&path).await.expect(404);
    upstream.mount(&layer, REPO);
    let found = async {
        while larder.head(&path).await.status != 200 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    crate::support::within("the blob to be found", found).await;
}

/// R-S9: 4 MiB goes through, more is refused whole. No client's own limit is below that (R-C6, R-C68).
#[tokio::test]
async fn sizes() {
    let upstream = Upstream::start().await;
    let of_size = |size: usize| {
        let frame = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [], "x": ""});
        let frame = frame.to_string();
        frame.replace("\"x\":\"\"", &format!("\"x\":\"{}\"", "a".repeat(size - frame.len())))
    };
    let most = 4 * 1024 * 1024;
    let fits = upstream.put_manifest(REPO, Some("fits"), media_type::OCI_INDEX, of_size(most));
    upstream.put_manifest(REPO, Some("large"), media_type::OCI_INDEX, of_size(most + 1));
    let larder = Larder::start(&upstream, |_| {}).await;
    larder.get(manifest(REPO, "fits")).await.expect_content(&fits);
    for framing in [None, Some(Fault::Chunked)] {
        if let Some(fault) = framing {
            upstream.on(On::Manifests).always().does([fault]);
        }
        let refused = larder.get(manifest(REPO, "large")).await.expect(502);
        assert_eq!(refused.error_code(), "MANIFEST_INVALID");
        let text = refused.json().to_string();
        assert!(
            text.contains("more than the 4194304 that limits.manifest_size allows"),
            "{text}"
        );
    }
}

/// `limits.manifest_size`: HEAD and GET agree, by tag and by digest; what is cached stays (L3).
#[tokio::test]
async fn manifest_sizes() {
    const MIB: usize = 1 << 20;
    let upstream = Upstream::start().await;
    let put = |tag: &str, size: usize| {
        let frame = json!({"schemaVersion": 2, "manifests": [], "x": tag});
        let frame = frame.to_string();
        let text = format!("{}{}}}", &frame[..frame.len() - 1], " ".repeat(size - frame.len()));
        upstream.put_manifest(REPO, Some(tag), media_type::OCI_INDEX, text)
    };
    let limit = |text: &'static str| {
        move |t: &mut crate::support::toml::Toml| {
            t.set(&["limits"], "manifest_size", text);
        }
    };
    let most = put("most", MIB);
    let large = put("large", MIB + 1);
    let mut larder = Larder::start(&upstream, limit("1MiB")).await;
    let refused = async |larder: &Larder, tag: &str, digest: &Digest| {
        for reference in [tag, &digest.to_string()] {
            for _ in 0..2 {
                let head = larder.head(manifest(REPO, reference)).await.expect(502);
                let get = larder.get(manifest(REPO, reference)).await.expect(502);
                assert_eq!(get.error_code(), "MANIFEST_INVALID");
                let text = get.json().to_string();
                let want = "it has 1048577 bytes, more than the 1048576 that limits.manifest_size allows";
                assert!(text.contains(want), "{text}");
                assert_eq!(head.header("content-length"), get.header("content-length"));
            }
        }
    };
    refused(&larder, "large", &large).await;
    assert_eq!(larder.store().usage().blobs, 0);
    larder.head(manifest(REPO, "most")).await.expect(200);
    larder.get(manifest(REPO, "most")).await.expect_content(&most);
    let ahead = super::prefetch::run(&larder, json!({ "images": [format!("{REPO}:large")] })).await;
    let why = ahead["images"][0]["error"].as_str().expect("a reason");
    assert!(why.contains("that limits.manifest_size allows"), "{ahead:#}");

    // What a HEAD has told under a higher limit is no more true under a lower one; what a GET has brought is.
    larder.reload(limit("16MiB")).expect("a reload");
    let brought = put("brought", 16 * MIB);
    let told = put("told", MIB + 1);
    larder.get(manifest(REPO, "brought")).await.expect_content(&brought);
    let head = larder.head(manifest(REPO, "told")).await.expect(200);
    assert_eq!(head.header("content-length"), Some("1048577"));
    larder.until_idle().await;
    larder.reload(limit("1MiB")).expect("a reload");
    refused(&larder, "told", &told).await;
    for _ in 0..2 {
        for reference in ["brought", &brought.to_string()] {
            larder.head(manifest(REPO, reference)).await.expect(200);
            larder.get(manifest(REPO, reference)).await.expect_content(&brought);
        }
        larder = larder.restart().await;
    }
    // A tag that moves to what is too large stays where it was, for HEAD and GET.
    upstream.move_tag(REPO, "most", &large);
    larder
        .reload(|t| {
            t.cache("tag_ttl", "0s");
        })
        .expect("a reload");
    for _ in 0..2 {
        let head = larder.head(manifest(REPO, "most")).await.expect(200);
        assert_eq!(head.header("docker-content-digest"), Some(&*most.to_string()));
        larder.get(manifest(REPO, "most")).await.expect_content(&most);
    }
}

/// A HEAD that is wrong about the size refuses nothing that a GET keeps (R-U27).
#[tokio::test]
async fn a_head_that_tells_a_wrong_size() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[]);
    upstream
        .on(On::Manifests.head())
        .always()
        .wrong_bytes(vec![b' '; 5 << 20]);
    let larder = Larder::start(&upstream, |_| {}).await;
    let head = larder.head(manifest(REPO, "1")).await.expect(200);
    assert_eq!(head.header("content-length"), Some(&*image.bytes.len().to_string()));
    larder.get(manifest(REPO, "1")).await.expect_content(&image.manifest);
}

/// R-X10: what two clients could read as two documents reaches none.
#[tokio::test]
async fn ambiguous_documents() {
    let upstream = Upstream::start().await;
    let larder = Larder::start(&upstream, |_| {}).await;
    let both = r#"{"schemaVersion":2,"manifests":[],"layers":[],"config":{}}"#;
    let twice = r#"{"schemaVersion":2,"manifests":[],"manifests":[]}"#;
    let deep = format!(r#"{{"manifests":[],"x":{}{}}}"#, "[".repeat(100), "]".repeat(100));
    for (tag, media_type, text) in [
        ("both", media_type::OCI_INDEX, both),
        ("layers", media_type::OCI_MANIFEST, r#"{"layers":[],"Layers":[]}"#),
        (
            "config",
            media_type::OCI_MANIFEST,
            r#"{"layers":[],"config":{},"config":{}}"#,
        ),
        ("twice", media_type::OCI_INDEX, twice),
        ("deep", media_type::OCI_INDEX, &*deep),
        ("text", media_type::OCI_INDEX, "no json"),
    ] {
        let digest = upstream.put_manifest(REPO, Some(tag), media_type, text.to_owned());
        for reference in [tag, &digest.to_string()] {
            let response = larder.get(manifest(REPO, reference)).await.expect(502);
            assert_eq!(response.error_code(), "MANIFEST_INVALID", "{tag}");
        }
    }
}

/// What clients take directly they get here too, under the type that they get directly.
#[tokio::test]
async fn odd_documents() {
    let upstream = Upstream::start().await;
    let larder = Larder::start(&upstream, |_| {}).await;
    let layer = upstream.blob(REPO, 10);
    let size = format!(r#"{{"schemaVersion":2,"layers":[{{"digest":"{layer}","size":-1}}],"config":{{"size":-7}}}}"#);
    let differs = format!(
        r#"{{"schemaVersion":2,"mediaType":"{}","layers":[]}}"#,
        media_type::DOCKER_MANIFEST
    );
    let other = format!(
        r#"{{"schemaVersion":2,"mediaType":"{}","layers":[]}}"#,
        media_type::OCI_INDEX
    );
    for (tag, text) in [
        ("size", &*size),
        ("differs", &*differs),
        ("other", &*other),
        (
            "annotations",
            r#"{"layers":[{"annotations":{"a":"1","a":"2"}}],"annotations":{"b":"1","b":"2"}}"#,
        ),
        ("lone", r#"{"layers":[],"annotations":{"a":"\ud83d"}}"#),
    ] {
        let digest = upstream.put_manifest(REPO, Some(tag), media_type::OCI_MANIFEST, text.to_owned());
        for reference in [tag, &digest.to_string()] {
            for _ in 0..2 {
                let get = larder.get(manifest(REPO, reference)).await;
                assert_eq!(
                    get.header("content-type"),
                    Some(media_type::OCI_MANIFEST),
                    "{tag}: {get:?}"
                );
                get.expect_content(&digest);
                let head = larder.head(manifest(REPO, reference)).await.expect(200);
                assert_eq!(head.header("content-type"), Some(media_type::OCI_MANIFEST), "{tag}");
            }
        }
        let asked = upstream.count(On::Manifests.get());
        larder.get(manifest(REPO, digest)).await.expect(200);
        assert_eq!(upstream.count(On::Manifests.get()), asked, "{tag} is kept");
    }
    // A size that says nothing is no reason to doubt the layer.
    larder.get(blob(REPO, layer)).await.expect_content(&layer);
}

/// CVE-2021-41190, across repositories: what one upstream calls a document is not what others' clients are told.
#[tokio::test]
async fn a_type_is_each_repositorys_own() {
    let upstream = Upstream::start().await;
    let larder = Larder::start(&upstream, |_| {}).await;
    let by_type = async |repo: &str, reference: &str, want: &str| {
        for _ in 0..2 {
            let head = larder.head(manifest(repo, reference)).await.expect(200);
            assert_eq!(head.header("content-type"), Some(want), "HEAD {repo} {reference}");
            let get = larder.get(manifest(repo, reference)).await.expect(200);
            assert_eq!(get.header("content-type"), Some(want), "GET {repo} {reference}");
        }
    };
    for (nth, is_first) in [("1", true), ("2", false)] {
        let image = upstream.oci_image("good/image", nth, &[]);
        let digest = image.manifest.to_string();
        upstream.put_manifest("bad/image", Some(nth), media_type::OCI_INDEX, image.bytes.clone());
        if is_first {
            by_type("bad/image", nth, media_type::OCI_INDEX).await;
            by_type("bad/image", &digest, media_type::OCI_INDEX).await;
        }
        by_type("good/image", nth, media_type::OCI_MANIFEST).await;
        by_type("good/image", &digest, media_type::OCI_MANIFEST).await;
        larder
            .get(manifest("bad/image", nth))
            .await
            .expect_content(&image.manifest);
        by_type("good/image", nth, media_type::OCI_MANIFEST).await;
        by_type("good/image", &digest, media_type::OCI_MANIFEST).await;
    }
}

/// The same of a document that has no `mediaType`: its shape says what it can be.
#[tokio::test]
async fn a_document_without_a_type_is_not_called_what_it_cannot_be() {
    let upstream = Upstream::start().await;
    let larder = Larder::start(&upstream, |_| {}).await;
    let config = upstream.blob(REPO, 40);
    let text = json!({
        "schemaVersion": 2,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config.to_string(), "size": 40},
        "layers": [],
    });
    let digest = upstream.put_manifest("good/image", Some("1"), media_type::OCI_MANIFEST, text.to_string());
    upstream.put_manifest("bad/image", Some("1"), media_type::OCI_INDEX, text.to_string());
    upstream.put_manifest("odd/image", Some("2"), "application/vnd.evil+json", text.to_string());
    for (repo, tag, want) in [
        ("good/image", "1", media_type::OCI_MANIFEST),
        ("bad/image", "1", media_type::OCI_INDEX),
        ("good/image", "1", media_type::OCI_MANIFEST),
        ("odd/image", "2", "application/vnd.evil+json"),
        ("good/image", "1", media_type::OCI_MANIFEST),
    ] {
        let get = larder.get(manifest(repo, tag)).await.expect(200);
        assert_eq!(get.header("content-type"), Some(want), "{repo}:{tag}");
        let good = larder.get(manifest("good/image", digest)).await.expect(200);
        assert_eq!(
            good.header("content-type"),
            Some(media_type::OCI_MANIFEST),
            "after {repo}:{tag}"
        );
    }
}

/// L2 for manifests: by digest the bytes must fit it; by tag what the upstream says about itself.
#[tokio::test]
async fn wrong_bytes() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[]);
    let larder = Larder::start(&upstream, |_| {}).await;
    let path = manifest(REPO, image.manifest);
    for spoil in [
        Fault::FlipByte(40),
        Fault::Truncate(40),
        Fault::Append("  ".into()),
        Fault::CutAfter(40),
    ] {
        upstream.on(On::Manifests.get()).always().does([spoil.clone()]);
        let response = larder.get(&path).await;
        assert!(
            response.status >= 500 || !response.is_complete(),
            "{spoil:?}: {response:?}"
        );
        upstream.clear_script();
    }
    larder.get(&path).await.expect_content(&image.manifest);

    upstream.move_tag(REPO, "2", &upstream.oci_image(REPO, "3", &[]).manifest);
    upstream.on(On::Manifests.get()).always().flip_byte(3);
    let by_tag = larder.get(manifest(REPO, "2")).await;
    assert!(by_tag.status >= 500, "{by_tag:?}");
    upstream.clear_script();
    larder.get(manifest(REPO, "2")).await.expect(200);
}

/// A login page with status 200 is nobody's manifest, by GET or HEAD (L2).
#[tokio::test]
async fn html_pages() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[]);
    let larder = Larder::start(&upstream, |t| {
        t.cache("tag_ttl", "0s");
    })
    .await;
    let portal = upstream.on(On::Any).always().html_page();
    let response = larder.get(manifest(REPO, "1")).await;
    assert!(response.status >= 500, "{response:?}");
    portal.remove();
    larder.get(manifest(REPO, "1")).await.expect_content(&image.manifest);
    upstream.on(On::Any).always().html_page();
    let stale = larder.get(manifest(REPO, "1")).await;
    assert!(stale.header("warning").is_some(), "{stale:?}");
    stale.expect_content(&image.manifest);
}

/// R-X12: nobody decodes; what says that it is encoded is refused.
#[tokio::test]
async fn content_encoding_is_refused() {
    let upstream = Upstream::start().await;
    upstream.image(REPO, "1", &[]);
    upstream.on(On::Manifests).always().content_encoding("gzip");
    let larder = Larder::start(&upstream, |_| {}).await;
    let response = larder.get(manifest(REPO, "1")).await;
    assert!(response.status >= 500, "{response:?}");
    assert_eq!(response.header("content-encoding"), None);
}

/// R-U45: manifests may lie on another host.
#[tokio::test]
async fn redirected() {
    let upstream = Upstream::start().await;
    let cdn = upstream.start_cdn().await;
    let image = upstream.image(REPO, "1", &[]);
    let to_storage = format!("{}/storage/{}", cdn.url(), image.manifest);
    upstream.on(On::Manifests).always().redirect_to(to_storage, 307);
    let larder = Larder::start(&upstream, |_| {}).await;
    let response = larder.get(manifest(REPO, "1")).await;
    assert_eq!(response.header("content-type"), Some(image.media_type));
    response.expect_content(&image.manifest);
}

/// R-U22: without Docker-Content-Digest the bytes say what they are; a wrong one is a lie.
#[tokio::test]
async fn digest_headers() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[]);
    let larder = Larder::start(&upstream, |t| {
        t.cache("tag_ttl", "0s");
    })
    .await;
    let none = upstream.on(On::Manifests).always().no_digest_header();
    for _ in 0..2 {
        let response = larder.get(manifest(REPO, "1")).await;
        assert_eq!(
            response.header("docker-content-digest"),
            Some(&*image.manifest.to_string())
        );
        response.expect_content(&image.manifest);
        larder.head(manifest(REPO, "1")).await.expect(200);
    }
    none.remove();
    let other = upstream.image(REPO, "2", &[]);
    upstream
        .on(On::Manifests)
        .always()
        .wrong_digest_header(&Digest::sha256(b"other"));
    let response = larder.get(manifest(REPO, "2")).await;
    assert!(response.status >= 500, "{response:?}");
    upstream.clear_script();
    larder.get(manifest(REPO, "2")).await.expect_content(&other.manifest);
}

/// Tags: nothing within `tag_ttl`; then HEAD; GET only what is not held (R-U31).
#[tokio::test]
async fn freshness() {
    let upstream = Upstream::start().await;
    let old = upstream.image(REPO, "1", &[]);
    let new = upstream.image(REPO, "2", &[]);
    let larder = Larder::start(&upstream, |t| {
        t.cache("tag_ttl", "0s");
    })
    .await;
    let path = manifest(REPO, "1");
    larder.get(&path).await.expect_content(&old.manifest);
    larder
        .get(manifest(REPO, new.manifest))
        .await
        .expect_content(&new.manifest);
    upstream.forget();

    let again = larder.get(&path).await;
    assert_eq!(again.header("cache-status"), Some("larder; fwd=stale; fwd-status=304"));
    again.expect_content(&old.manifest);
    assert_eq!((upstream.count(On::Any.head()), upstream.count(On::Any.get())), (1, 0));

    upstream.move_tag(REPO, "1", &new.manifest);
    larder.get(&path).await.expect_content(&new.manifest);
    assert_eq!((upstream.count(On::Any.head()), upstream.count(On::Any.get())), (2, 0));

    let third = upstream.image(REPO, "3", &[]);
    upstream.move_tag(REPO, "1", &third.manifest);
    larder.get(&path).await.expect_content(&third.manifest);
    assert_eq!(upstream.count(On::Any.get()), 1, "{}", upstream.print());
}

/// R-U27: an upstream that has no HEAD is asked by GET.
#[tokio::test]
async fn without_head() {
    for status in [405, 404, 400] {
        let upstream = Upstream::start().await;
        let image = upstream.image(REPO, "1", &[]);
        upstream.on(On::Any).always().no_head(status);
        let larder = Larder::start(&upstream, |t| {
            t.cache("tag_ttl", "0s");
        })
        .await;
        for _ in 0..2 {
            larder.get(manifest(REPO, "1")).await.expect_content(&image.manifest);
        }
        if status == 405 {
            larder.head(manifest(REPO, image.manifest)).await.expect(200);
            let cold = upstream.image(REPO, "2", &[]);
            larder.head(manifest(REPO, cold.manifest)).await.expect(200);
        }
    }
}

/// Thirty who ask for a tag at once are one question.
#[tokio::test]
async fn single_flight() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[]);
    let gate = crate::support::gate::Gate::closed();
    upstream.on(On::Manifests).stall_headers(&gate);
    let larder = Larder::start(&upstream, |_| {}).await;
    let asking: Vec<_> = (0..30)
        .map(|_| tokio::spawn(Ask::get(manifest(REPO, "1")).send(larder.registry())))
        .collect();
    gate.wait_for_arrivals(1).await;
    gate.open();
    for one in asking {
        one.await.unwrap().expect_content(&image.manifest);
    }
    assert_eq!(upstream.count(On::Manifests), 1, "{}", upstream.print());
}

/// R-S2: nothing is pushed here; the answer says where it could be, and does not wait for the body.
#[tokio::test]
async fn writes_are_refused() {
    let upstream = Upstream::start().await;
    let larder = Larder::start(&upstream, |_| {}).await;
    let digest = Digest::sha256(b"");
    for (method, path) in [
        ("PUT", manifest(REPO, "1")),
        ("DELETE", manifest(REPO, "1")),
        ("POST", format!("/v2/{REPO}/blobs/uploads/")),
        ("POST", format!("/v2/{REPO}/blobs/uploads/?digest={digest}")),
        ("PATCH", format!("/v2/{REPO}/blobs/uploads/1")),
        ("PUT", format!("/v2/{REPO}/blobs/uploads/1?digest={digest}")),
        ("DELETE", format!("/v2/{REPO}/blobs/{digest}")),
    ] {
        let ask = Ask::new(method, &path).body(noise(1, 100_000));
        let response = ask.send(larder.registry()).await.expect(405);
        assert_eq!(response.error_code(), "UNSUPPORTED", "{method} {path}");
        assert_eq!(response.header("allow"), Some("GET, HEAD"));
        let text = response.json()["errors"][0].to_string();
        assert!(text.contains("docker.io/library/alpine"), "{text}");
    }
    assert_eq!(upstream.connections(), 0);
}

/// What was told before is told again in the same words, and only to the same question.
#[tokio::test]
async fn told_again() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[100]);
    let larder = Larder::start(&upstream, |_| {}).await;
    let (digest, config) = (image.manifest.to_string(), image.config);
    larder.get(blob(REPO, config)).await.expect(200);
    let paths = [
        manifest(REPO, "1"),
        manifest(REPO, &digest),
        blob(REPO, config),
        "/v2/".to_owned(),
    ];
    for path in &paths {
        larder.get(path).await.expect(200);
        let said = larder.head(path).await.expect(200);
        for _ in 0..2 {
            let again = larder.head(path).await.expect(200);
            assert_eq!(again.header("cache-status"), said.header("cache-status"), "{path}");
            assert_eq!(again.header("content-length"), said.header("content-length"), "{path}");
            assert!(again.body.is_empty());
            let h2 = http2(larder.registry(), Ask::head(path)).await.expect(200);
            assert_eq!(h2.header("content-length"), said.header("content-length"), "{path}");
            assert!(h2.body.is_empty(), "{path}");
            let whole = larder.get(path).await.expect(200);
            assert_eq!(whole.header("content-length"), said.header("content-length"), "{path}");
            assert_eq!(
                whole.body.len().to_string(),
                said.header("content-length").unwrap(),
                "{path}"
            );
            assert_eq!(whole.header("oci-namespace"), None);
            let ns = larder.get(format!("{path}?ns=docker.io")).await.expect(200);
            assert_eq!(ns.header("oci-namespace"), Some("docker.io"));
            assert_eq!(ns.body, whole.body);
        }
    }
    let etag = format!("\"{digest}\"");
    let known = Ask::get(&paths[0]).header("If-None-Match", &etag);
    known.open(larder.registry()).await.rest().await.expect(304);
    // By HTTP/2 an error's text must not follow a HEAD either.
    let missing = http2(larder.registry(), Ask::head(manifest(REPO, "none")))
        .await
        .expect(404);
    assert!(
        missing.body.is_empty() && missing.header("content-length").is_some(),
        "{missing:?}"
    );
    // What one repository has shown is no answer for another (L8).
    larder.get(manifest("library/other", &digest)).await.expect(404);
    upstream.go_down().await;
    assert_eq!(larder.get(&paths[0]).await.expect(200).body, image.bytes);
}

/// An upstream whose HEAD tells a wrong length: that is not told again once the manifest is held.
#[tokio::test]
async fn a_length_that_was_wrong_is_not_told_again() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[100]);
    let larder = Larder::start(&upstream, |_| {}).await;
    upstream.on(On::Manifests.head()).always().trailing_bytes(noise(1, 700));
    let (tag, digest) = (manifest(REPO, "1"), image.manifest.to_string());
    let wrong = (image.bytes.len() + 700).to_string();
    for _ in 0..3 {
        let head = larder.head(&tag).await.expect(200);
        assert_eq!(head.header("content-length"), Some(&*wrong), "all that is known");
    }
    larder.get(manifest(REPO, &digest)).await.expect(200);
    let right = image.bytes.len().to_string();
    for _ in 0..3 {
        let whole = larder.get(&tag).await.expect(200);
        assert_eq!(whole.body, image.bytes);
        let head = larder.head(&tag).await.expect(200);
        for answer in [whole, head] {
            assert_eq!(answer.header("content-length"), Some(&*right));
        }
    }
}
