//! Pull limits: what is left is spared for what nobody holds; and the share of the link that transfers may take.

use larder::oci::Digest;

use crate::support::client::{Ask, Response};
use crate::support::larder::Larder;
use crate::support::upstream::{Fault, On, Rule, Upstream};
use crate::support::{blob, manifest};

const REPO: &str = "library/alpine";

/// What the upstream says with every manifest.
fn left(upstream: &Upstream, remaining: u32) -> Rule {
    let header = |name: &str, value: String| Fault::Header(name.to_owned(), value);
    upstream.on(On::Manifests).always().does([
        header("ratelimit-limit", "100;w=21600".to_owned()),
        header("ratelimit-remaining", format!("{remaining};w=21600")),
        header("docker-ratelimit-source", "192.0.2.1".to_owned()),
    ])
}

/// Docker Hub, and a registry of which nobody knows whether its HEADs are free.
async fn larder(upstream: &Upstream, floor: &str) -> Larder {
    let floor = floor.to_owned();
    Larder::start(upstream, |t| {
        t.cache("tag_ttl", "0s");
        t.upstream("docker.io", "budget_floor", floor.clone());
        t.upstream("r.example", "url", upstream.url());
        t.upstream("r.example", "budget_floor", floor);
    })
    .await
}

/// 200, with this manifest.
async fn get(larder: &Larder, repo: &str, tag: &str, want: &Digest) -> Response {
    let response = larder.get(manifest(repo, tag)).await.expect(200);
    assert_eq!(
        response.header("docker-content-digest"),
        Some(want.to_string().as_str())
    );
    assert_eq!(Digest::of(want.algorithm(), &response.body), *want);
    response
}

/// R-U31: there HEADs are free. What they confirm is fresh; a tag that has moved stays where it was; what is missing
/// is fetched.
#[tokio::test]
async fn below_the_floor_the_hub_is_asked_by_head_only() {
    let upstream = Upstream::start().await;
    let old = upstream.image(REPO, "1", &[10]);
    let other = upstream.image("library/other", "1", &[11]);
    let larder = larder(&upstream, "10%").await;
    let rule = left(&upstream, 10);
    larder.get(manifest(REPO, "1")).await.expect_content(&old.manifest);
    rule.remove();
    left(&upstream, 9);
    // The last that is said before the floor is passed.
    larder.get(manifest(REPO, "1")).await.expect_content(&old.manifest);
    let confirmed = get(&larder, REPO, "1", &old.manifest).await;
    assert_eq!(
        confirmed.header("cache-status"),
        Some("larder; fwd=stale; fwd-status=304")
    );
    let new = upstream.image(REPO, "2", &[12]);
    upstream.move_tag(REPO, "1", &new.manifest);
    upstream.forget();
    for _ in 0..3 {
        let stale = get(&larder, REPO, "1", &old.manifest).await;
        let status = stale.header("cache-status").unwrap();
        assert!(
            status.starts_with("larder; hit; ttl=-") && status.ends_with("; detail=budget"),
            "{status}"
        );
        assert!(stale.header("warning").unwrap().contains("(budget)"));
    }
    // A HEAD fetches nothing either, nor is one that was refused followed by a GET.
    for status in [None, Some(404), Some(405)] {
        let refusal = status.map(|status| upstream.on(On::Manifests.head()).always().status(status));
        let stale = larder.head(manifest(REPO, "1")).await.expect(200);
        let digest = old.manifest.to_string();
        assert_eq!(stale.header("docker-content-digest"), Some(&*digest), "{status:?}");
        assert!(
            stale.header("cache-status").unwrap().ends_with("; detail=budget"),
            "{status:?}"
        );
        if let Some(refusal) = refusal {
            refusal.remove();
        }
    }
    assert_eq!(upstream.count(On::Manifests.get()), 0, "{}", upstream.print());
    assert!(upstream.count(On::Manifests.head()) >= 3);
    // A true miss is what the pulls are kept for, by tag and by digest.
    larder
        .get(manifest("library/other", "1"))
        .await
        .expect_content(&other.manifest);
    larder
        .get(manifest(REPO, new.manifest))
        .await
        .expect_content(&new.manifest);
    // What the tag has moved to is held now: it costs nothing to follow it.
    larder.get(manifest(REPO, "1")).await.expect_content(&new.manifest);
}

/// Elsewhere a HEAD may count: nothing is asked. An operator who asks is not spared.
#[tokio::test]
async fn below_the_floor_others_are_not_asked_at_all() {
    let upstream = Upstream::start().await;
    let old = upstream.image("a/b", "1", &[10]);
    let larder = larder(&upstream, "5").await;
    let name = "r.example/a/b";
    left(&upstream, 4);
    larder.get(manifest(name, "1")).await.expect_content(&old.manifest);
    larder.get(format!("/v2/{name}/tags/list")).await.expect(200);
    let new = upstream.image("a/b", "2", &[12]);
    upstream.move_tag("a/b", "1", &new.manifest);
    upstream.forget();
    for _ in 0..3 {
        let stale = get(&larder, name, "1", &old.manifest).await;
        assert!(stale.header("cache-status").unwrap().ends_with("; detail=budget"));
        let head = larder.head(manifest(name, "1")).await.expect(200);
        assert!(head.header("cache-status").unwrap().ends_with("; detail=budget"));
        let list = larder.get(format!("/v2/{name}/tags/list")).await.expect(200);
        assert!(list.header("cache-status").unwrap().ends_with("; detail=budget"));
    }
    assert_eq!(upstream.requests().len(), 0, "{}", upstream.print());
    let refresh = Ask::new("POST", "/api/v1/refresh")
        .header("content-type", "application/json")
        .body(format!(r#"{{"image":"{name}:1"}}"#))
        .send(larder.admin())
        .await
        .expect(200);
    assert_eq!(refresh.json()["digest"], new.manifest.to_string());
}

/// Per upstream and credential, in `stats` and in the metrics.
#[tokio::test]
async fn what_is_left_is_told() {
    let upstream = Upstream::start().await;
    upstream.image("a/b", "1", &[10]);
    upstream.image("a/b", "2", &[11]);
    upstream.require_basic("budget-user", "pw");
    let larder = Larder::start(&upstream, |t| {
        t.upstream("budget.example", "url", upstream.url());
        t.upstream("budget.example", "username", "budget-user");
        t.upstream("budget.example", "password", "pw");
        t.everybody_may_pull();
    })
    .await;
    for (tag, remaining) in [("1", 30), ("2", 20)] {
        let rule = left(&upstream, remaining);
        larder.get(manifest("budget.example/a/b", tag)).await.expect(200);
        rule.remove();
    }
    let stats = Ask::get("/api/v1/stats").send(larder.admin()).await.expect(200).json();
    let upstreams = stats["upstreams"].as_array().unwrap();
    let one = upstreams.iter().find(|one| one["name"] == "budget.example").unwrap();
    let user = one["budgets"]
        .as_array()
        .unwrap()
        .iter()
        .find(|b| b["credential"] == "budget-user");
    let user = user.unwrap_or_else(|| panic!("{one}"));
    assert_eq!(
        (
            &user["remaining"],
            &user["limit"],
            &user["window_seconds"],
            &user["spent"],
            &user["low"]
        ),
        (&20.into(), &100.into(), &21_600.into(), &10.into(), &false.into())
    );
    // Ten in a minute at most: twenty are gone in two.
    assert_eq!(user["runs_out_seconds"], 120);
    assert_eq!(user["source"], "192.0.2.1");
    let metrics = larder.metrics().await;
    for line in [
        "larder_upstream_ratelimit_remaining{upstream=\"budget.example\",credential=\"budget-user\"} 20",
        "larder_upstream_ratelimit_limit{upstream=\"budget.example\",credential=\"budget-user\"} 100",
        "larder_upstream_ratelimit_low{upstream=\"budget.example\",credential=\"budget-user\"} 0",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line}\n{metrics}");
    }
}

/// Counted, not timed: of 128 KiB at 256 KiB a second most have to wait, and without a cap none.
#[tokio::test]
async fn transfers_wait_for_their_share_of_the_link() {
    let upstream = Upstream::start().await;
    let slow = upstream.blob("a/b", 128 << 10);
    let larder = Larder::start(&upstream, |t| {
        t.upstream("slow.example", "url", upstream.url());
        t.upstream("slow.example", "max_bandwidth", "256KiB/s");
        t.upstream("fast.example", "url", upstream.url());
    })
    .await;
    larder.get(blob("slow.example/a/b", slow)).await.expect_content(&slow);
    let fast = upstream.blob("a/b", 129 << 10);
    larder.get(blob("fast.example/a/b", fast)).await.expect_content(&fast);
    let metrics = larder.metrics().await;
    let held_back = |name: &str| {
        let start = format!("larder_upstream_held_back_bytes_total{{upstream=\"{name}\"}} ");
        let line = metrics.lines().find_map(|line| line.strip_prefix(&start));
        line.map(|count| count.parse::<u64>().unwrap())
    };
    assert!(held_back("slow.example").unwrap() >= 16 << 10, "{metrics}");
    assert_eq!(held_back("fast.example"), None);
}
