//! HEADs that are refused where a GET is answered (R-U27), and HEADs that name what no GET gets: neither hides anything, and
//! neither costs more than it must.

use std::time::Duration;

use larder::oci::{Digest, media_type};
use larder::pull::Timing;

use crate::support::client::{Ask, Response};
use crate::support::larder::{Larder, quick};
use crate::support::toml::Toml;
use crate::support::upstream::{Image, Matcher, On, Rule, TokenPolicy, Upstream};
use crate::support::{DEADLINE, blob, manifest, noise, within};

const REPO: &str = "library/alpine";
const SECRET: &str = "acme/secret";
const STRANGER: &str = "ghcr.io/other/app";
const LAYER: usize = 200_000;

/// How a HEAD is refused.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Refusal {
    Status(u16),
    Closed,
}

const REFUSALS: [Refusal; 4] = [
    Refusal::Status(403),
    Refusal::Status(404),
    Refusal::Status(500),
    Refusal::Closed,
];

/// The host that refuses it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    Registry,
    /// Where the registry redirects to.
    Store,
    /// A store with `/v2/` in its paths.
    ReferenceStore,
}

fn cells() -> Vec<(Place, Refusal)> {
    let places = [Place::Registry, Place::Store, Place::ReferenceStore];
    places
        .into_iter()
        .flat_map(|place| REFUSALS.map(|refusal| (place, refusal)))
        .collect()
}

/// A registry's own 403 is its word.
fn is_verdict(cell: (Place, Refusal)) -> bool {
    cell == (Place::Registry, Refusal::Status(403))
}

struct World {
    registry: Upstream,
    store: Upstream,
    place: Place,
}

impl World {
    async fn new(place: Place) -> World {
        let registry = Upstream::start().await;
        let store = registry.start_cdn().await;
        let world = World { registry, store, place };
        if place != Place::Registry {
            world.redirect(On::Blobs, "{digest}");
            world.redirect(On::Manifests, "{reference}");
        }
        world
    }

    fn redirect(&self, on: On, digest: &str) {
        let path = match self.place {
            Place::ReferenceStore => format!("docker/registry/v2/blobs/{digest}/data"),
            _ => format!("storage/{digest}"),
        };
        let target = format!("{}/{path}?X-Signature=signed-secret", self.store.url());
        self.registry.on(on).always().redirect_to(target, 307);
    }

    fn image(&self, repo: &str, tag: &str) -> Image {
        let image = self.registry.image(repo, tag, &[LAYER]);
        self.point(repo, tag, &image.manifest);
        image
    }

    fn point(&self, repo: &str, tag: &str, to: &Digest) {
        self.registry.move_tag(repo, tag, to);
        if self.place != Place::Registry {
            self.redirect(On::Manifest(tag.to_owned()), &to.to_string());
        }
    }

    fn refuse(&self, refusal: Refusal) -> Vec<Rule> {
        match self.place {
            Place::Registry => [On::Blobs, On::Manifests]
                .map(|on| refuse(&self.registry, on.head(), refusal))
                .into(),
            _ => vec![refuse(&self.store, On::Storage.head(), refusal)],
        }
    }
}

fn refuse(upstream: &Upstream, heads: Matcher, refusal: Refusal) -> Rule {
    let rule = upstream.on(heads).always();
    match refusal {
        Refusal::Status(status) => rule.status(status),
        Refusal::Closed => rule.drop_connection(),
    }
}

/// Without a client's patience for what could be served stale: a busy machine would use it up.
fn patient() -> Timing {
    Timing {
        patience: DEADLINE,
        ..quick()
    }
}

fn digest_of(response: &Response) -> &str {
    response.header("docker-content-digest").unwrap_or_default()
}

/// The answer to a HEAD says what the GET brings.
fn check_head(head: Response, digest: &Digest, size: usize, what: &str) {
    assert_eq!(head.status, 200, "{what}: {head:?}");
    assert_eq!(digest_of(&head), digest.to_string(), "{what}");
    assert_eq!(head.header("content-length"), Some(&*size.to_string()), "{what}");
}

/// Cold: by HEAD it is there, and by GET behind that HEAD.
#[tokio::test]
async fn a_refused_head_hides_nothing() {
    for cell in cells() {
        for kind in ["blob", "tag", "digest"] {
            let what = format!("{kind}, {cell:?}");
            let world = World::new(cell.0).await;
            let image = world.image(REPO, "1");
            world.refuse(cell.1);
            let larder = Larder::start(&world.registry, |_| {}).await;
            let (path, digest, size) = match kind {
                "blob" => (blob(REPO, image.layers[0]), image.layers[0], LAYER),
                "tag" => (manifest(REPO, "1"), image.manifest, image.bytes.len()),
                _ => (manifest(REPO, image.manifest), image.manifest, image.bytes.len()),
            };
            let head = larder.head(&path).await;
            match is_verdict(cell) {
                true => drop(head.expect(404)),
                false => check_head(head, &digest, size, &what),
            }
            let whole = larder.get(&path).await;
            assert_eq!(whole.status, 200, "{what}: {}", world.registry.print());
            whole.expect_content(&digest);
            check_head(larder.head(&path).await, &digest, size, &what);
        }
    }
}

/// No client blocks a blob for others by HEADs.
#[tokio::test]
async fn heads_keep_no_get_out() {
    for cell in cells() {
        let world = World::new(cell.0).await;
        let digests: Vec<Digest> = (0..4).map(|_| world.registry.blob(REPO, LAYER)).collect();
        let document = world.image(REPO, "1").manifest;
        world.refuse(cell.1);
        let larder = Larder::start(&world.registry, |_| {}).await;
        let mut paths: Vec<String> = digests.iter().map(|digest| blob(REPO, digest)).collect();
        paths.push(manifest(REPO, document));
        let round = async || {
            for path in &paths {
                larder.head(path).await;
            }
        };
        let gets = async {
            round().await;
            for (path, digest) in paths.iter().zip(digests.iter().chain([&document])) {
                let whole = larder.get(path).await;
                assert_eq!(whole.status, 200, "{cell:?}: {path}: {}", world.registry.print());
                whole.expect_content(digest);
            }
        };
        let flood = async {
            loop {
                round().await;
            }
        };
        tokio::select! {
            () = gets => {}
            () = flood => {}
        }
    }
}

/// A held tag is confirmed all the same, by HEAD and by GET, and moves.
#[tokio::test]
async fn a_held_tag_is_confirmed() {
    for cell in cells() {
        let world = World::new(cell.0).await;
        let old = world.image(REPO, "1");
        let larder = Larder::start_timed(&world.registry, patient(), |toml| {
            toml.cache("tag_ttl", "0s");
        })
        .await;
        let path = manifest(REPO, "1");
        larder.get(&path).await.expect_content(&old.manifest);
        world.refuse(cell.1);
        for ask in [Ask::get(&path), Ask::head(&path)] {
            let confirmed = ask.send(larder.registry()).await.expect(200);
            assert_eq!(confirmed.header("warning"), None, "{cell:?}: {confirmed:?}");
            assert_eq!(digest_of(&confirmed), old.manifest.to_string(), "{cell:?}");
        }
        let new = world.image(REPO, "2");
        world.point(REPO, "1", &new.manifest);
        larder.get(&path).await.expect_content(&new.manifest);
        let third = world.image(REPO, "3");
        world.point(REPO, "1", &third.manifest);
        let moved = larder.head(&path).await.expect(200);
        assert_eq!(digest_of(&moved), third.manifest.to_string(), "{cell:?}");
    }
}

/// Public repositories stay so where the anonymous probe's HEAD is refused, and private ones, too.
#[tokio::test]
async fn a_public_repository_is_not_taken_for_private() {
    for cell in cells().into_iter().filter(|cell| !is_verdict(*cell)) {
        for by_blob in [false, true] {
            let world = World::new(cell.0).await;
            let policy = TokenPolicy::new().credentials("larder", "secret").anonymous_for(REPO);
            world.registry.require_token(policy);
            let (open, secret) = (world.image(REPO, "1"), world.image(SECRET, "s"));
            world.refuse(cell.1);
            let larder = Larder::start(&world.registry, |toml| {
                toml.upstream("docker.io", "username", "larder");
                toml.upstream("docker.io", "password", "secret");
            })
            .await;
            let (path, digest) = match by_blob {
                true => (blob(REPO, open.layers[0]), open.layers[0]),
                false => (manifest(REPO, "1"), open.manifest),
            };
            let found = larder.get(&path).await;
            assert_eq!(found.status, 200, "{cell:?}, {path}: {}", world.registry.print());
            found.expect_content(&digest);
            let path = match by_blob {
                true => blob(SECRET, secret.layers[0]),
                false => manifest(SECRET, "s"),
            };
            let refused = larder.get(&path).await;
            assert!(matches!(refused.status, 401 | 404), "{cell:?}, {path}: {refused:?}");
        }
    }
}

/// HEADs of what is not there: each GET that checks one speaks for the others, too.
#[tokio::test]
async fn honest_refusals_are_checked_once() {
    let upstream = Upstream::start().await;
    upstream.blob(REPO, 1);
    let larder = Larder::start(&upstream, |_| {}).await;
    let asking: Vec<_> = (0..40)
        .map(|n| {
            let absent = Digest::sha256(&noise(n, 10));
            tokio::spawn(Ask::head(blob(REPO, absent)).send(larder.registry()))
        })
        .collect();
    for one in asking {
        one.await.unwrap().expect(404);
    }
    assert_eq!(upstream.count(On::Blobs.head()), 40, "{}", upstream.print());
    assert_eq!(upstream.count(On::Blobs.get()), 1, "{}", upstream.print());
    // One that is asked for again is remembered.
    larder.head(blob(REPO, Digest::sha256(&noise(0, 10)))).await.expect(404);
    assert_eq!(upstream.count(On::Blobs.head()), 40);
}

/// HEADs of what is there, and is refused by HEAD: not a GET each.
#[tokio::test]
async fn a_flood_of_heads_is_no_flood_of_gets() {
    for refusal in REFUSALS {
        let world = World::new(Place::Store).await;
        let digest = world.registry.blob(REPO, 4 << 20);
        world.refuse(refusal);
        let larder = Larder::start(&world.registry, |_| {}).await;
        let path = blob(REPO, digest);
        let mut asking = tokio::task::JoinSet::new();
        for _ in 0..20 {
            asking.spawn(Ask::head(&path).send(larder.registry()));
        }
        for head in asking.join_all().await {
            check_head(head, &digest, 4 << 20, &format!("{refusal:?}"));
        }
        for _ in 0..20 {
            check_head(larder.head(&path).await, &digest, 4 << 20, &format!("{refusal:?}"));
        }
        // Some may have come just as the first was answered, and have begun another.
        let gets = world.store.count(On::Storage.get());
        assert!((1..=3).contains(&gets), "{refusal:?}: {}", world.store.print());
        let store = larder.store();
        assert!(store.size(&digest).is_none() && !store.linked("docker.io/library/alpine", &digest));
    }
}

/// L11: the headers of a broken-off GET are no bytes. What a HEAD's refusal contradicts opens nothing that is held, and not
/// even what is public is linked by it.
#[tokio::test]
async fn a_broken_off_get_proves_nothing() {
    for public in [false, true] {
        for refusal in REFUSALS {
            let (hub, liar) = (Upstream::start().await, Upstream::start().await);
            let policy = TokenPolicy::new().credentials("larder", "secret");
            hub.require_token(match public {
                true => policy.anonymous_for(SECRET),
                false => policy,
            });
            let image = hub.image(SECRET, "1", &[LAYER]);
            let larder = Larder::start(&hub, |toml| {
                toml.upstream("docker.io", "username", "larder");
                toml.upstream("docker.io", "password", "secret");
                toml.upstream("ghcr.io", "url", liar.url());
                toml.everybody_may_pull();
            })
            .await;
            larder.get(manifest(SECRET, "1")).await.expect_content(&image.manifest);
            for digest in image.blobs() {
                larder.get(blob(SECRET, digest)).await.expect_content(&digest);
                larder.until_held(&blob(SECRET, digest)).await;
            }
            liar.on(On::Blobs.get()).always().answer(200, &[], noise(7, 777));
            let headers = [("Content-Type", media_type::DOCKER_MANIFEST)];
            liar.on(On::Manifests.get())
                .always()
                .answer(200, &headers, noise(8, 555));
            for on in [On::Blobs, On::Manifests] {
                refuse(&liar, on.head(), refusal);
            }
            let what = format!("public: {public}, {refusal:?}");
            let (layer, document) = (blob(STRANGER, image.layers[0]), manifest(STRANGER, image.manifest));
            for _ in 0..2 {
                let head = larder.head(&layer).await;
                match refusal {
                    Refusal::Status(403) => drop(head.expect(404)),
                    _ => check_head(head, &image.layers[0], 777, &what),
                }
                let head = larder.head(&document).await;
                assert!(head.status >= 400, "{what}: {head:?}");
            }
            for path in [&layer, &document] {
                let got = larder.get(path).await;
                assert!(got.status >= 400 || !got.is_complete(), "{what}: {path}: {got:?}");
            }
            for digest in image.blobs().into_iter().chain([image.manifest]) {
                assert!(!larder.store().linked(STRANGER, &digest), "{what}: {digest}");
            }
        }
    }
}

/// A mirror that answers GETs only has what its registry, which is away, cannot tell.
#[tokio::test]
async fn a_mirror_without_head_before_a_registry_that_is_away() {
    for refusal in REFUSALS {
        let world = World::new(Place::Store).await;
        let image = world.image(REPO, "1");
        world.refuse(refusal);
        let away = Upstream::start().await;
        away.go_down().await;
        let mirror = world.registry.url();
        let larder = Larder::start(&away, |toml| {
            toml.upstream("docker.io", "mirrors", vec![mirror]);
        })
        .await;
        let what = format!("{refusal:?}");
        let head = larder.head(blob(REPO, image.layers[0])).await;
        check_head(head, &image.layers[0], LAYER, &what);
        let head = larder.head(manifest(REPO, "1")).await;
        check_head(head, &image.manifest, image.bytes.len(), &what);
    }
}

// Tags: a HEAD names only what a GET gets.

async fn always_asking(upstream: &Upstream) -> Larder {
    let change = |toml: &mut Toml| {
        toml.cache("tag_ttl", "0s");
    };
    Larder::start_timed(upstream, patient(), change).await
}

/// Replicas that disagree: a tag's new digest is named by HEAD, and its GET is 404. What is held is the answer until it can
/// be had.
#[tokio::test]
async fn a_head_names_what_can_be_fetched() {
    for failure in [404, 403, 500] {
        let upstream = Upstream::start().await;
        let old = upstream.image(REPO, "1", &[10]);
        let larder = always_asking(&upstream).await;
        let path = manifest(REPO, "1");
        larder.get(&path).await.expect_content(&old.manifest);
        let new = upstream.image(REPO, "2", &[11]);
        upstream.move_tag(REPO, "1", &new.manifest);
        let lag = upstream
            .on(On::Manifest(new.manifest.to_string()).get())
            .always()
            .status(failure);
        // As containerd does it: by HEAD, then by digest.
        for _ in 0..2 {
            let head = larder.head(&path).await.expect(200);
            assert_eq!(digest_of(&head), old.manifest.to_string(), "{failure}");
            assert!(head.header("warning").is_some(), "{failure}: {head:?}");
            let named = manifest(REPO, digest_of(&head));
            larder.get(named).await.expect_content(&old.manifest);
        }
        lag.remove();
        // After a 5xx nobody waits for the upstream for a while.
        if failure == 500 {
            continue;
        }
        larder.get(&path).await.expect_content(&new.manifest);
        let head = larder.head(&path).await.expect(200);
        assert_eq!(digest_of(&head), new.manifest.to_string());
        assert_eq!(head.header("warning"), None);
    }
}

/// Many HEADs meanwhile are one GET.
#[tokio::test]
async fn heads_of_a_lagging_tag_are_one_get() {
    let upstream = Upstream::start().await;
    let old = upstream.image(REPO, "1", &[10]);
    let larder = Larder::start_timed(&upstream, patient(), |toml| {
        toml.cache("tag_ttl", "3s");
    })
    .await;
    let path = manifest(REPO, "1");
    larder.get(&path).await.expect_content(&old.manifest);
    let new = upstream.image(REPO, "2", &[11]);
    upstream.move_tag(REPO, "1", &new.manifest);
    upstream.on(On::Manifests.get()).always().status(404);
    upstream.forget();
    // Until the tag is asked about again; a 404 is believed for as long.
    within("the tag to be checked", async {
        while upstream.count(On::Manifests.get()) == 0 {
            larder.head(&path).await.expect(200);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    upstream.forget();
    for _ in 0..10 {
        let head = larder.head(&path).await.expect(200);
        assert_eq!(digest_of(&head), old.manifest.to_string());
    }
    // One on a machine that takes more than those three seconds for it.
    assert!(upstream.count(On::Manifests.get()) <= 1, "{}", upstream.print());
    assert_eq!(upstream.count(On::Manifests.head()), 10, "{}", upstream.print());
}

/// R-U31: where nothing of a tag is held a HEAD stays a HEAD, as often as it is asked; and of one that is held, each move
/// costs one GET, which the client's own GET would have cost.
#[tokio::test]
async fn what_a_head_costs() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[10]);
    let larder = always_asking(&upstream).await;
    let path = manifest(REPO, "1");
    for _ in 0..3 {
        check_head(larder.head(&path).await, &image.manifest, image.bytes.len(), "cold");
    }
    let moved = upstream.image(REPO, "2", &[11]);
    upstream.move_tag(REPO, "1", &moved.manifest);
    check_head(larder.head(&path).await, &moved.manifest, moved.bytes.len(), "moved");
    assert_eq!(upstream.count(On::Manifests.get()), 0, "{}", upstream.print());

    larder.get(&path).await.expect_content(&moved.manifest);
    upstream.move_tag(REPO, "1", &image.manifest);
    upstream.forget();
    for _ in 0..3 {
        check_head(larder.head(&path).await, &image.manifest, image.bytes.len(), "held");
        let named = manifest(REPO, image.manifest);
        larder.get(named).await.expect_content(&image.manifest);
    }
    assert_eq!(upstream.count(On::Manifests.get()), 1, "{}", upstream.print());
}
