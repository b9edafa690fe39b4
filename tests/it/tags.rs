//! `GET` of `tags/list`, and `_catalog`.

use serde_json::json;

use crate::support::larder::Larder;
use crate::support::upstream::{LinkStyle, On, Upstream};

const REPO: &str = "library/alpine";

/// Tags a to e.
async fn five() -> Upstream {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "c", &[]);
    for tag in ["a", "b", "d", "e"] {
        upstream.move_tag(REPO, tag, &image.manifest);
    }
    upstream
}

/// R-S17: `n`, `last`, their limits, and a Link under the name that the client used.
#[tokio::test]
async fn pages() {
    let upstream = five().await;
    let larder = Larder::start(&upstream, |_| {}).await;
    for name in [REPO, "alpine", "docker.io/library/alpine", "hub/alpine"] {
        let path = format!("/v2/{name}/tags/list");
        let all = larder.get(&path).await.expect(200);
        assert_eq!(all.header("content-type"), Some("application/json"));
        assert_eq!(all.header("link"), None);
        let tags = json!(["a", "b", "c", "d", "e"]);
        let visible = all.json()["name"].as_str().unwrap().to_owned();
        assert_eq!((visible.as_str(), &all.json()["tags"]), (name, &tags));

        let mut seen = Vec::new();
        let mut next = format!("{path}?n=2");
        loop {
            let page = larder.get(&next).await.expect(200);
            let tags = page.json()["tags"].as_array().unwrap().clone();
            assert!(tags.len() <= 2);
            seen.extend(tags);
            let Some(link) = page.header("link") else { break };
            let (target, relation) = link.split_once(">; ").unwrap();
            assert_eq!(relation, "rel=\"next\"");
            next = target.strip_prefix('<').unwrap().to_owned();
            assert!(next.starts_with(&format!("{path}?")), "{next}");
        }
        assert_eq!(json!(seen), tags);
    }
    let last = async |query: &str| larder.get(format!("/v2/{REPO}/tags/list?{query}")).await.expect(200);
    assert_eq!(last("last=c").await.json()["tags"], json!(["d", "e"]));
    assert_eq!(last("last=bb").await.json()["tags"], json!(["c", "d", "e"]));
    assert_eq!(last("last=z").await.json()["tags"], json!([]));
    let none = last("n=0").await;
    assert_eq!((none.json()["tags"].clone(), none.header("link")), (json!([]), None));
    assert_eq!(
        last("n=999999999999999999999").await.json()["tags"]
            .as_array()
            .unwrap()
            .len(),
        5
    );
    for bad in ["n=-1", "n=x", "n="] {
        let response = larder.get(format!("/v2/{REPO}/tags/list?{bad}")).await.expect(400);
        assert_eq!(response.error_code(), "PAGINATION_NUMBER_INVALID", "{bad}");
    }
    let larder_asked = upstream.count(On::Tags);
    assert_eq!(larder_asked, 1, "{}", upstream.print());
}

/// `?ns=` stays in the Link: the next page is asked of the same upstream.
#[tokio::test]
async fn the_namespace_stays_in_the_link() {
    let upstream = five().await;
    let larder = Larder::start(&upstream, |_| {}).await;
    let page = larder
        .get(format!("/v2/{REPO}/tags/list?ns=docker.io&n=2"))
        .await
        .expect(200);
    let link = page.header("link").unwrap();
    assert!(link.contains("ns=docker.io"), "{link}");
    assert_eq!(page.header("oci-namespace"), Some("docker.io"));
}

/// R-S19, R-X2: the upstream's pages are followed, on its own host only.
#[tokio::test]
async fn pages_of_the_upstream() {
    for style in [LinkStyle::Relative, LinkStyle::Absolute, LinkStyle::Unquoted] {
        let upstream = five().await;
        upstream.set_listing(|listing| {
            listing.page = Some(2);
            listing.link = style.clone();
        });
        let larder = Larder::start(&upstream, |_| {}).await;
        let all = larder.get(format!("/v2/{REPO}/tags/list")).await.expect(200);
        assert_eq!(all.json()["tags"], json!(["a", "b", "c", "d", "e"]), "{style:?}");
        assert_eq!(upstream.count(On::Tags), 3);
    }
    let lost = [
        "/tags/list",
        "/v2/alpine/tags/list",
        "/other/v2/library/alpine/tags/list",
        "/",
    ];
    let lost = lost.map(|path| LinkStyle::AtPath(path.to_owned()));
    for style in lost.into_iter().chain([LinkStyle::Bare]) {
        let upstream = five().await;
        upstream.set_base_path("/artifactory/api/docker/hub");
        upstream.set_listing(|listing| {
            listing.page = Some(2);
            listing.link = style.clone();
        });
        let larder = Larder::start(&upstream, |t| {
            let url = format!("{}/artifactory/api/docker/hub", upstream.url());
            t.upstream("docker.io", "url", url);
        })
        .await;
        let all = larder.get(format!("/v2/{REPO}/tags/list")).await.expect(200);
        assert_eq!(all.json()["tags"], json!(["a", "b", "c", "d", "e"]), "{style:?}");
        assert_eq!(upstream.count(On::Tags), 3);
    }
    let (upstream, other) = (five().await, Upstream::start_at([127, 0, 0, 2]).await);
    upstream.set_listing(|listing| {
        listing.page = Some(2);
        listing.link = LinkStyle::On(other.url());
    });
    let larder = Larder::start(&upstream, |_| {}).await;
    larder.get(format!("/v2/{REPO}/tags/list")).await.expect(502);
    assert_eq!(other.connections(), 0);
}

/// An upstream that has never heard of `last` gives what it has, once.
#[tokio::test]
async fn an_upstream_without_pages() {
    let upstream = five().await;
    upstream.set_listing(|listing| {
        listing.page = Some(3);
        listing.ignores_last = true;
    });
    let larder = Larder::start(&upstream, |_| {}).await;
    let all = larder.get(format!("/v2/{REPO}/tags/list")).await.expect(200);
    assert_eq!(all.json()["tags"], json!(["a", "b", "c"]));
    assert_eq!(upstream.count(On::Tags), 2, "{}", upstream.print());
    assert_eq!(all.header("link"), None);
}

/// A page that was announced and is not there is a failure of the upstream, not a repository that does not exist.
#[tokio::test]
async fn a_page_that_is_not_there() {
    let upstream = five().await;
    upstream.set_listing(|listing| listing.page = Some(2));
    upstream.on(On::Tags).nth(2).status(404);
    let larder = Larder::start(&upstream, |_| {}).await;
    let path = format!("/v2/{REPO}/tags/list");
    let refused = larder.get(&path).await.expect(502);
    assert!(refused.json().to_string().contains("next page"), "{refused:?}");
    larder.get(&path).await.expect(200);
}

#[tokio::test]
async fn odd_lists() {
    let upstream = Upstream::start().await;
    upstream.blob(REPO, 1);
    upstream.set_listing(|listing| listing.null_tags = true);
    let larder = Larder::start(&upstream, |_| {}).await;
    let none = larder.get(format!("/v2/{REPO}/tags/list")).await.expect(200);
    assert_eq!(none.json()["tags"], json!([]));
    let unknown = larder.get("/v2/library/none/tags/list").await.expect(404);
    assert_eq!(unknown.error_code(), "NAME_UNKNOWN");
    let json = [("Content-Type", "application/json")];
    upstream
        .on(On::Tags.repo("library/bare"))
        .answer(200, &json, r#"{"name":"library/bare"}"#);
    let bare = larder.get("/v2/library/bare/tags/list").await.expect(200);
    assert_eq!(bare.json()["tags"], json!([]));
    let error = r#"{"errors":[{"code":"UNKNOWN","message":"down"}]}"#;
    upstream.on(On::Tags.repo("library/error")).answer(200, &json, error);
    larder.get("/v2/library/error/tags/list").await.expect(502);
    upstream.on(On::Tags.repo("library/page")).html_page();
    let page = larder.get("/v2/library/page/tags/list").await;
    assert!(page.status >= 500, "{page:?}");
}

/// L3 for lists: trusted for `tag_ttl`, served stale when the upstream fails, with a Warning that clients show (R-C28).
#[tokio::test]
async fn freshness() {
    let upstream = five().await;
    let larder = Larder::start(&upstream, |t| {
        t.cache("tag_ttl", "0s");
    })
    .await;
    let path = format!("/v2/{REPO}/tags/list");
    larder.get(&path).await.expect(200);
    upstream.remove_tag(REPO, "a");
    assert_eq!(larder.get(&path).await.json()["tags"], json!(["b", "c", "d", "e"]));
    upstream.go_down().await;
    let stale = larder.get(&path).await.expect(200);
    assert_eq!(stale.json()["tags"], json!(["b", "c", "d", "e"]));
    assert!(stale.header("warning").unwrap().starts_with("299 - \""));
    assert!(stale.header("cache-status").unwrap().contains("detail=upstream-down"));
}

/// R-X20: what is held, by pages; `n` is clamped.
#[tokio::test]
async fn catalog() {
    let upstream = Upstream::start().await;
    for repo in ["library/a", "library/b", "x/y"] {
        upstream.image(repo, "1", &[]);
    }
    let larder = Larder::start(&upstream, |_| {}).await;
    assert_eq!(
        larder.get("/v2/_catalog").await.expect(200).json()["repositories"],
        json!([])
    );
    for repo in ["library/a", "library/b", "x/y"] {
        larder.get(crate::support::manifest(repo, "1")).await.expect(200);
    }
    let all = larder.get("/v2/_catalog?n=100000000").await.expect(200);
    assert_eq!(
        all.json()["repositories"],
        json!(["docker.io/library/a", "docker.io/library/b", "docker.io/x/y"])
    );
    let page = larder.get("/v2/_catalog?n=2").await.expect(200);
    let link = page.header("link").unwrap();
    let next = link.split_once('>').unwrap().0.trim_start_matches('<');
    assert_eq!(larder.get(next).await.json()["repositories"], json!(["docker.io/x/y"]));
}
