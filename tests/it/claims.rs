//! L11: a claim is not proof. Somebody knows the digests of an image of a private repository, and has a registry, or a
//! mirror, that answers HEAD with 200 to everything. Whatever is asked there, by whichever door, is answered to the last
//! header as by a Larder that never saw the image; and once the bytes themselves have come from there, it is a hit.

use bytes::Bytes;
use larder::bundle::import::{Options, import};
use larder::bundle::plan::{Plan, Wanted};
use larder::bundle::{create, select};
use larder::oci::{Digest, media_type};
use larder::store::{ImageName, staging_key};

use crate::support::client::{Ask, Exchange, Response};
use crate::support::gate::Gate;
use crate::support::larder::Larder;
use crate::support::toml::Toml;
use crate::support::upstream::{Image, On, TokenPolicy, Upstream};
use crate::support::{blob, manifest, noise, within};

const SECRET: &str = "acme/app";
/// Of the same upstream; it has none of the secret.
const NEIGHBOUR: &str = "acme/other";
/// Of another upstream, which claims to have all of it.
const STRANGER: &str = "ghcr.io/evil/app";
/// Large enough to stream, and for a first MiB that is read from memory.
const LAYER: usize = 3 << 20;

/// docker.io with credentials and a secret; ghcr.io without either; and a mirror that may stand in front of one of them.
struct World {
    hub: Upstream,
    other: Upstream,
    mirror: Upstream,
    image: Image,
}

impl World {
    async fn new() -> World {
        let (hub, other, mirror) = (
            Upstream::start().await,
            Upstream::start().await,
            Upstream::start().await,
        );
        hub.require_token(TokenPolicy::new().credentials("larder", "secret"));
        let image = hub.image(SECRET, "1", &[LAYER, 30_000]);
        hub.artifact(SECRET, image.manifest, "application/x.signature");
        hub.image(NEIGHBOUR, "1", &[1_000]);
        other.image("evil/app", "1", &[1_001]);
        World {
            hub,
            other,
            mirror,
            image,
        }
    }

    /// Every HEAD is answered with 200, of a size of its own; a tag's names the secret.
    fn let_claim(&self, liar: &Upstream) {
        liar.on(On::Blobs.head()).always().answer(200, &[], vec![0; 777]);
        let digest = self.image.manifest.to_string();
        let headers = [
            ("Content-Type", media_type::OCI_MANIFEST),
            ("Docker-Content-Digest", digest.as_str()),
        ];
        liar.on(On::Manifests.head())
            .always()
            .answer(200, &headers, vec![0; 555]);
    }

    fn configure(&self, toml: &mut Toml, row: Row) {
        if !row.without_credentials {
            toml.upstream("docker.io", "username", "larder");
            toml.upstream("docker.io", "password", "secret");
        }
        toml.upstream("ghcr.io", "url", self.other.url());
        // The stranger's rights are not what keeps it from him.
        toml.everybody_may_pull();
        if let Some(name) = row.mirror {
            toml.upstream(name, "mirrors", vec![self.mirror.url()]);
        }
    }

    async fn larder(&self, row: Row) -> Larder {
        Larder::start(&self.hub, |toml| self.configure(toml, row)).await
    }

    /// Pulls the secret as its owner does, all of it.
    async fn pull_secret(&self, larder: &Larder) {
        larder
            .get(manifest(SECRET, "1"))
            .await
            .expect_content(&self.image.manifest);
        for digest in self.image.blobs() {
            larder.get(blob(SECRET, digest)).await.expect_content(&digest);
            larder.until_held(&blob(SECRET, digest)).await;
        }
        larder.get(referrers(SECRET, &self.image.manifest)).await.expect(200);
    }

    /// As [`World::pull_secret`], but that it crosses on a disk.
    async fn import_secret(&self, larder: &Larder) {
        let (bytes, to) = (self.bundle().await, larder.store());
        let importing = tokio::task::spawn_blocking(move || {
            let report = import(&to, &mut bytes.as_slice(), &unsigned(), &mut |_| {}).unwrap();
            assert!(report.is_whole());
        });
        importing.await.unwrap();
        larder
            .get(manifest(SECRET, "1"))
            .await
            .expect_content(&self.image.manifest);
    }

    /// The secret in a bundle.
    async fn bundle(&self) -> Vec<u8> {
        let source = self.larder(PLAIN).await;
        self.pull_secret(&source).await;
        let from = source.store();
        let making = tokio::task::spawn_blocking(move || {
            let names = [ImageName::new(&format!("docker.io/{SECRET}"), "1")];
            let selection = select::select(&from, &names).unwrap();
            let plan = Plan::new(&from, selection, None, &Wanted::default()).unwrap();
            assert!(plan.catalog.images.iter().all(|image| image.private));
            let mut bytes = Vec::new();
            create::write(&from, &plan, &mut bytes).unwrap();
            bytes
        });
        making.await.unwrap()
    }

    /// Imports a bundle of the secret whose end is missing: the layers have come, and nothing of them is shown.
    async fn import_beginning(&self, larder: &Larder) {
        let (mut bytes, to) = (self.bundle().await, larder.store());
        bytes.truncate(bytes.len() - 1_500);
        let importing = tokio::task::spawn_blocking(move || {
            import(&to, &mut bytes.as_slice(), &unsigned(), &mut |_| {}).unwrap_err()
        });
        let error = importing.await.unwrap().to_string();
        assert!(error.contains("ends too early"), "{error}");
        let store = larder.store();
        for digest in &self.image.layers {
            assert!(
                store.size(digest).is_some() && store.links(digest).is_empty(),
                "{digest}"
            );
        }
        let key = format!("docker.io/{SECRET}");
        assert!(store.is_private(&key), "known before any of it came");
    }

    /// Fails if an answer has any of the secret's bytes.
    fn check_clean(&self, response: &Response, what: &str) {
        let has = |piece: &[u8]| response.body.windows(piece.len()).any(|window| window == piece);
        for digest in [self.image.config, self.image.manifest] {
            assert!(!has(&self.hub.bytes(&digest)), "{what}: {digest} in {response:?}");
        }
        for digest in &self.image.layers {
            let bytes = self.hub.bytes(digest);
            // Of noise a few bytes are enough: at both ends, and within.
            for at in [0, bytes.len() / 2, bytes.len() - 16] {
                assert!(
                    !has(&bytes[at..at + 16]),
                    "{what}: bytes of {digest} from {at} on in {response:?}"
                );
            }
        }
    }
}

fn unsigned() -> Options {
    Options {
        unsigned: true,
        ..Options::default()
    }
}

fn referrers(repo: &str, digest: &Digest) -> String {
    format!("/v2/{repo}/referrers/{digest}")
}

/// Where the stranger asks, and who claims.
#[derive(Clone, Copy, Debug)]
struct Row {
    name: &'static str,
    asks: &'static str,
    /// The upstream that has a mirror which claims.
    mirror: Option<&'static str>,
    /// Set if ghcr.io itself claims.
    other_claims: bool,
    held: Held,
    /// Set if Larder has other credentials since.
    other_credentials: bool,
    /// Set if Larder has none: nobody's secret can be here, as far as its configuration tells.
    without_credentials: bool,
}

/// How the secret came to be here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    Pulled,
    Imported,
    /// The import broke off.
    BrokenOff,
    /// It was pulled, and then the index was lost, and its copy.
    Lost,
    /// Its manifest is held, and its first layer is coming.
    Coming,
}

const PLAIN: Row = Row {
    name: "",
    asks: STRANGER,
    mirror: None,
    other_claims: true,
    held: Held::Pulled,
    other_credentials: false,
    without_credentials: false,
};

fn rows() -> Vec<Row> {
    let places = [
        Row {
            name: "another repository of the upstream",
            asks: NEIGHBOUR,
            ..PLAIN
        },
        Row {
            name: "another repository of the upstream, whose mirror claims",
            asks: NEIGHBOUR,
            mirror: Some("docker.io"),
            ..PLAIN
        },
        Row {
            name: "another upstream, which claims",
            ..PLAIN
        },
        Row {
            name: "another upstream, whose mirror claims",
            mirror: Some("ghcr.io"),
            other_claims: false,
            ..PLAIN
        },
    ];
    let mut rows = Vec::new();
    for place in places {
        for held in [Held::Pulled, Held::Imported, Held::Coming] {
            for other_credentials in [false, true] {
                rows.push(Row {
                    held,
                    other_credentials,
                    ..place
                });
            }
        }
        for held in [Held::Imported, Held::BrokenOff, Held::Lost] {
            rows.push(Row {
                held,
                without_credentials: true,
                ..place
            });
        }
    }
    rows
}

/// Every question that somebody can ask with the digests in hand.
fn questions(repo: &str, image: &Image) -> Vec<(&'static str, Ask)> {
    let (layer, small) = (image.layers[0], image.layers[1]);
    let of_layer = |method: &str| Ask::new(method, blob(repo, layer));
    let of_manifest = |method: &str| Ask::new(method, manifest(repo, image.manifest));
    let etag = |digest: &Digest| format!("\"{digest}\"");
    vec![
        ("HEAD blob", of_layer("HEAD")),
        ("GET blob", of_layer("GET")),
        ("range", of_layer("GET").range("bytes=0-99")),
        ("last bytes", of_layer("GET").range("bytes=-1")),
        ("several ranges", of_layer("GET").range("bytes=0-9,50-59")),
        ("range past it", of_layer("GET").range("bytes=999999999-")),
        (
            "HEAD if-none-match",
            of_layer("HEAD").header("If-None-Match", etag(&layer)),
        ),
        (
            "GET if-none-match",
            of_layer("GET").header("If-None-Match", etag(&layer)),
        ),
        ("GET if-none-match *", of_layer("GET").header("If-None-Match", "*")),
        (
            "if-range",
            of_layer("GET").range("bytes=0-9").header("If-Range", etag(&layer)),
        ),
        ("HEAD small blob", Ask::head(blob(repo, small))),
        ("GET small blob", Ask::get(blob(repo, small))),
        ("HEAD config", Ask::head(blob(repo, image.config))),
        ("GET config", Ask::get(blob(repo, image.config))),
        ("HEAD manifest", of_manifest("HEAD")),
        ("GET manifest", of_manifest("GET")),
        (
            "manifest if-none-match",
            of_manifest("GET").header("If-None-Match", etag(&image.manifest)),
        ),
        (
            "HEAD manifest if-none-match",
            of_manifest("HEAD").header("If-None-Match", etag(&image.manifest)),
        ),
        ("GET a tag", Ask::get(manifest(repo, "fresh"))),
        ("HEAD a tag", Ask::head(manifest(repo, "named"))),
        ("GET a tag after HEAD", Ask::get(manifest(repo, "named"))),
        ("GET its own tag", Ask::get(manifest(repo, "1"))),
        ("HEAD its own tag", Ask::head(manifest(repo, "1"))),
        ("HEAD blob as manifest", Ask::head(manifest(repo, small))),
        ("GET blob as manifest", Ask::get(manifest(repo, small))),
        ("HEAD manifest as blob", Ask::head(blob(repo, image.manifest))),
        ("GET manifest as blob", Ask::get(blob(repo, image.manifest))),
        ("referrers", Ask::get(referrers(repo, &image.manifest))),
        ("referrers of a blob", Ask::get(referrers(repo, &layer))),
        ("tags", Ask::get(format!("/v2/{repo}/tags/list"))),
        (
            "upload",
            Ask::new("POST", format!("/v2/{repo}/blobs/uploads/?mount={layer}&from={SECRET}")),
        ),
    ]
}

/// An answer without what is different each time.
fn shape(response: &Response) -> String {
    let mut text = format!("{} {:?}\n", response.status, response.end);
    for (name, value) in &response.headers.0 {
        match name.to_ascii_lowercase().as_str() {
            "date" | "server-timing" => {}
            "age" => text += "age: some\n",
            _ => text += &format!("{name}: {value}\n"),
        }
    }
    let body = String::from_utf8_lossy(&response.body).into_owned();
    // How old a remembered answer is.
    text + &match body.split_once("; it said so ") {
        Some((before, after)) => {
            let after = after.trim_start_matches(|c: char| c.is_ascii_digit());
            format!("{before}; it said so{after}")
        }
        None => body,
    }
}

/// The names in Server-Timing: the times are different each time.
fn timing_names(response: &Response) -> Vec<String> {
    let text = response.header("server-timing").unwrap_or_default();
    text.split(", ")
        .map(|entry| match entry.split_once(";dur=") {
            Some((name, _)) => name.to_owned(),
            None => entry.to_owned(),
        })
        .collect()
}

/// Asks the same of a Larder that has the secret and of one that never saw it, twice: what is remembered must look the
/// same, too.
async fn check_same(world: &World, with: &Larder, without: &Larder, row: &Row) {
    for round in 0..2 {
        for (what, ask) in questions(row.asks, &world.image) {
            let what = format!("{}: {what}, round {round} ({row:?})", row.name);
            let ask = ask.header("Larder-Timing", "1");
            let found = ask.clone().send(with.registry()).await;
            let expected = ask.send(without.registry()).await;
            assert_eq!(shape(&found), shape(&expected), "{what}");
            assert_eq!(timing_names(&found), timing_names(&expected), "{what}");
            world.check_clean(&found, &what);
        }
    }
}

/// Starts anew without index and copy, until what is on the disk is found again.
async fn lose_index(world: &World, larder: Larder, change: impl FnOnce(&mut Toml)) -> Larder {
    let stopped = larder.stop().await;
    for name in ["index.redb", "index.copy"] {
        match std::fs::remove_file(stopped.cache().join(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("{name}: {error}"),
            _ => {}
        }
    }
    let larder = stopped.start(change).await;
    let (store, image) = (larder.store(), &world.image);
    within("the blobs to be found again", async {
        while store.size(&image.layers[0]).is_none() || store.size(&image.manifest).is_none() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    for digest in [image.layers[0], image.manifest] {
        assert!(store.links(&digest).is_empty(), "{digest}");
    }
    larder
}

async fn check_row(row: Row) {
    let world = World::new().await;
    if row.other_claims {
        world.let_claim(&world.other);
    }
    if row.mirror.is_some() {
        world.let_claim(&world.mirror);
    }
    let (mut with, mut without) = (world.larder(row).await, world.larder(row).await);
    let gate = Gate::closed();
    let mut coming: Option<Exchange> = None;
    match row.held {
        Held::Pulled => world.pull_secret(&with).await,
        Held::Imported => world.import_secret(&with).await,
        Held::BrokenOff => world.import_beginning(&with).await,
        Held::Lost => {
            let log_in = |toml: &mut Toml| {
                toml.upstream("docker.io", "username", "larder");
                toml.upstream("docker.io", "password", "secret");
            };
            let log_out = |toml: &mut Toml| {
                toml.unset(&["upstream", "docker.io"], "username");
                toml.unset(&["upstream", "docker.io"], "password");
            };
            with = with.stop().await.start(log_in).await;
            world.pull_secret(&with).await;
            with = lose_index(&world, with, log_out).await;
        }
        Held::Coming => {
            with.get(manifest(SECRET, "1"))
                .await
                .expect_content(&world.image.manifest);
            world
                .hub
                .on(On::Blobs.get().repo(SECRET))
                .next(2)
                .stall_after(20_000, &gate);
            let small = Ask::get(blob(SECRET, world.image.layers[1]));
            tokio::spawn(small.send(with.registry()));
            let mut exchange = Ask::get(blob(SECRET, world.image.layers[0]))
                .open(with.registry())
                .await;
            exchange.read_at_least(1).await;
            gate.wait_for_arrivals(2).await;
            coming = Some(exchange);
        }
    }
    if row.other_credentials {
        // The registry knows them, too.
        world.hub.require_token(TokenPolicy::new().credentials("else", "other"));
        for larder in [&mut with, &mut without] {
            let change = |toml: &mut Toml| {
                toml.upstream("docker.io", "username", "else");
                toml.upstream("docker.io", "password", "other");
            };
            larder.reload(change).unwrap();
        }
    }
    check_same(&world, &with, &without, &row).await;
    gate.open();
    if let Some(exchange) = coming {
        exchange.rest().await.expect_content(&world.image.layers[0]);
        with.until_held(&blob(SECRET, world.image.layers[0])).await;
        with.until_held(&blob(SECRET, world.image.layers[1])).await;
        with.until_idle().await;
    }
    // Now that all has come, and from what a restart leaves.
    let (with, without) = (with.restart().await, without.restart().await);
    check_same(&world, &with, &without, &row).await;
    let digest = world.image.layers[0];
    if matches!(row.held, Held::Pulled | Held::Coming) {
        with.get(blob(SECRET, digest)).await.expect_content(&digest);
    }
    for store in [with.store(), without.store()] {
        for digest in world.image.blobs().into_iter().chain([world.image.manifest]) {
            let key = if row.asks == STRANGER {
                STRANGER.to_owned()
            } else {
                format!("docker.io/{}", row.asks)
            };
            assert!(!store.linked(&key, &digest), "{row:?}: {digest} is linked");
        }
    }
}

/// The whole matrix but for what is coming.
#[tokio::test]
async fn a_claim_opens_nothing_that_is_held() {
    for row in rows().into_iter().filter(|row| row.held != Held::Coming) {
        check_row(row).await;
    }
}

/// A running transfer is no door either.
#[tokio::test]
async fn a_claim_opens_nothing_that_is_coming() {
    for row in rows().into_iter().filter(|row| row.held == Held::Coming) {
        check_row(row).await;
    }
}

/// Bytes that an earlier transfer left are given to nobody else, whoever answers the Range for the rest of them.
#[tokio::test]
async fn a_claim_opens_nothing_that_is_staged() {
    let rows = [(STRANGER, None), (NEIGHBOUR, Some("docker.io"))];
    let rows = rows
        .into_iter()
        .flat_map(|(asks, mirror)| [(asks, mirror, LAYER - 1), (asks, mirror, LAYER)]);
    for (asks, mirror, length) in rows {
        let world = World::new().await;
        let row = Row { mirror, ..PLAIN };
        let digest = world.image.layers[0];
        let bytes = world.hub.bytes(&digest);
        let stopped = world.larder(row).await.stop().await;
        let key = staging_key(&format!("docker.io/{SECRET}"), &digest);
        // The second as earlier versions named it: nobody knows whose it is.
        for name in [format!("{}.part", key.hex()), format!("sha256-{}.part", digest.hex())] {
            std::fs::write(stopped.cache().join("staging").join(name), &bytes[..length]).unwrap();
        }
        let larder = stopped.start(|_| {}).await;
        let liar = if mirror.is_some() { &world.mirror } else { &world.other };
        world.let_claim(liar);
        let lie = Bytes::from(noise(9, LAYER));
        let range = format!("bytes {}-{}/{LAYER}", LAYER - 1, LAYER - 1);
        liar.on(On::Blobs.get().ranged())
            .always()
            .answer(206, &[("Content-Range", &range)], lie.slice(LAYER - 1..));
        liar.on(On::Blobs.get().whole()).always().answer(200, &[], lie.clone());
        for _ in 0..2 {
            let response = Ask::get(blob(asks, digest)).send(larder.registry()).await;
            world.check_clean(&response, asks);
            assert!(
                response.status != 200 || lie.starts_with(&response.body),
                "its own bytes, or none"
            );
        }
        assert_eq!(liar.count(On::Blobs.ranged()), 0, "{}", liar.print());
        // It is there for whom it is.
        world.mirror.clear_script();
        world.hub.forget();
        larder.get(blob(SECRET, digest)).await.expect_content(&digest);
        let sent = world.hub.bytes_sent(On::Blobs.authorized().get());
        assert_eq!(sent, (LAYER - length) as u64, "{}", world.hub.print());
    }
}

/// Bytes come from the stranger's registry after all: they are verified, linked, and kept once.
#[tokio::test]
async fn the_bytes_are_proof() {
    let world = World::new().await;
    let larder = world.larder(PLAIN).await;
    world.pull_secret(&larder).await;
    let before = larder.store().usage();
    for digest in world.image.blobs() {
        world.other.put_blob("evil/app", world.hub.bytes(&digest));
    }
    let bytes = world.image.bytes.clone();
    world
        .other
        .put_manifest("evil/app", Some("2"), world.image.media_type, bytes);
    world.hub.forget();
    for digest in world.image.blobs() {
        let path = blob(STRANGER, digest);
        let first = larder.get(&path).await;
        assert_eq!(first.header("cache-status"), Some("larder; fwd=miss; stored"));
        first.expect_content(&digest);
        larder.until_idle().await;
        let again = larder.get(&path).await;
        assert_eq!(again.header("cache-status"), Some("larder; hit"));
        again.expect_content(&digest);
        assert_eq!(world.other.count(On::Blob(digest).head()), 0, "{}", world.other.print());
        assert_eq!(world.other.count(On::Blob(digest).get()), 1, "{}", world.other.print());
    }
    let first = larder.get(manifest(STRANGER, "2")).await;
    assert_eq!(first.header("cache-status"), Some("larder; fwd=miss; stored"));
    first.expect_content(&world.image.manifest);
    let again = larder.get(manifest(STRANGER, world.image.manifest)).await;
    assert_eq!(again.header("cache-status"), Some("larder; hit"));
    // Its owner's answers have not changed, and the disk has no second copy.
    let digest = world.image.layers[0];
    larder.get(blob(SECRET, digest)).await.expect_content(&digest);
    assert_eq!(world.hub.count(On::Blobs.get()), 0, "{}", world.hub.print());
    let after = larder.store().usage();
    assert_eq!((after.blobs, after.staged_bytes), (before.blobs, 0));
    let staged = std::fs::read_dir(larder.cache().join("staging")).unwrap().count();
    assert_eq!(staged, 0, "the second copies are gone");
    let larder = larder.restart().await;
    assert_eq!(larder.store().usage().blobs, before.blobs);
    larder.get(blob(STRANGER, digest)).await.expect_content(&digest);
    larder.get(blob(SECRET, digest)).await.expect_content(&digest);
}

/// L1 holds for each upstream by itself: a transfer of the secret that stands still is nothing to the stranger, whose
/// clients share one of their own.
#[tokio::test]
async fn each_upstream_has_its_own_transfer() {
    let world = World::new().await;
    let larder = world.larder(PLAIN).await;
    let digest = world.image.layers[0];
    world.other.put_blob("evil/app", world.hub.bytes(&digest));
    let (gate, theirs) = (Gate::closed(), Gate::closed());
    world.hub.on(On::Blob(digest).get()).stall_after(100_000, &gate);
    world.other.on(On::Blob(digest).get()).stall_after(200_000, &theirs);
    let mut secret = Ask::get(blob(SECRET, digest)).open(larder.registry()).await;
    secret.read_at_least(1).await;
    let mut first = Ask::get(blob(STRANGER, digest)).open(larder.registry()).await;
    first.read_at_least(1).await;
    let mut second = Ask::get(blob(STRANGER, digest)).open(larder.registry()).await;
    assert_eq!(second.headers.get("cache-status"), Some("larder; fwd=miss; collapsed"));
    second.read_at_least(150_000).await;
    theirs.open();
    first.rest().await.expect_content(&digest);
    second.rest().await.expect_content(&digest);
    larder.until_held(&blob(STRANGER, digest)).await;
    // The other one goes on, and its copy is the second now.
    gate.open();
    secret.rest().await.expect_content(&digest);
    larder.until_idle().await;
    for repo in [SECRET, STRANGER] {
        let hit = larder.get(blob(repo, digest)).await;
        assert_eq!(hit.header("cache-status"), Some("larder; hit"), "{repo}");
        hit.expect_content(&digest);
    }
    for (upstream, gets) in [
        (&world.hub, On::Blob(digest).authorized().get()),
        (&world.other, On::Blob(digest).get()),
    ] {
        assert_eq!(upstream.count(gets.clone()), 1, "{}", upstream.print());
        assert_eq!(upstream.bytes_sent(gets), LAYER as u64);
    }
    let usage = larder.store().usage();
    assert_eq!((usage.blobs, usage.staged_bytes), (1, 0));
    assert_eq!(std::fs::read_dir(larder.cache().join("staging")).unwrap().count(), 0);
}

/// Content of a public repository is shared by a claim, as ever, whether that is known or has to be asked.
#[tokio::test]
async fn public_content_is_shared_by_a_claim() {
    for public in [true, false] {
        let world = World::new().await;
        let policy = TokenPolicy::new().credentials("larder", "secret");
        let policy = if public { policy.anonymous_for(SECRET) } else { policy };
        world.hub.require_token(policy);
        let digest = world.image.layers[0];
        world.other.put_blob("evil/app", world.hub.bytes(&digest));
        let larder = world.larder(PLAIN).await;
        world.pull_secret(&larder).await;
        assert_eq!(larder.store().shown_to_nobody(&format!("docker.io/{SECRET}")), None);
        larder.get(blob(STRANGER, digest)).await.expect_content(&digest);
        assert!(
            world.hub.count(On::Blob(digest).head()) > 0,
            "as nobody: {}",
            world.hub.print()
        );
        assert_ne!(larder.store().shown_to_nobody(&format!("docker.io/{SECRET}")), None);
        let sent = world.other.bytes_sent(On::Blob(digest).get());
        assert_eq!(sent, if public { 0 } else { LAYER as u64 }, "{}", world.other.print());
        // It is believed for a while.
        world.hub.forget();
        let digest = world.image.layers[1];
        larder.head(blob(STRANGER, digest)).await;
        assert_eq!(world.hub.requests().len(), 0, "{}", world.hub.print());
    }
}

/// Within one upstream the registry itself may confirm, with the credentials in force; a mirror is not asked for that.
#[tokio::test]
async fn the_registry_itself_may_confirm() {
    for mirror in [None, Some("docker.io")] {
        let world = World::new().await;
        world.let_claim(&world.mirror);
        let second = "acme/second";
        for digest in world.image.blobs() {
            world.hub.mount(&digest, second);
        }
        let bytes = world.image.bytes.clone();
        world.hub.put_manifest(second, Some("1"), world.image.media_type, bytes);
        let row = Row { mirror, ..PLAIN };
        let larder = world.larder(row).await;
        world.pull_secret(&larder).await;
        world.hub.forget();
        world.mirror.forget();
        let digest = world.image.layers[0];
        let shared = larder.get(blob(second, digest)).await;
        assert_eq!(shared.header("cache-status"), Some("larder; fwd=stale; fwd-status=304"));
        shared.expect_content(&digest);
        let stat = larder.head(blob(second, world.image.layers[1])).await.expect(200);
        assert_eq!(stat.header("content-length"), Some("30000"));
        larder
            .get(manifest(second, world.image.manifest))
            .await
            .expect_content(&world.image.manifest);
        assert_eq!(
            world.hub.bytes_sent(On::Blobs.get().repo(second)),
            0,
            "{}",
            world.hub.print()
        );
        assert_eq!(world.hub.count(On::Manifests.get()), 0, "{}", world.hub.print());
        assert_eq!(world.mirror.count(On::Blobs.head()), 0, "{}", world.mirror.print());
        for asked in world.hub.matching(On::Blobs.head().repo(second)) {
            assert!(
                asked.header("authorization").is_some() || asked.status == Some(401),
                "{asked:?}"
            );
        }
        // A running transfer too.
        let late = world.hub.blob(SECRET, 400_000);
        world.hub.mount(&late, second);
        let gate = Gate::closed();
        world.hub.on(On::Blob(late).get()).stall_after(100_000, &gate);
        let mut first = Ask::get(blob(SECRET, late)).open(larder.registry()).await;
        first.read_at_least(1).await;
        let joined = Ask::get(blob(second, late)).open(larder.registry()).await;
        assert_eq!(joined.headers.get("cache-status"), Some("larder; fwd=miss; collapsed"));
        gate.open();
        first.rest().await.expect_content(&late);
        joined.rest().await.expect_content(&late);
        assert_eq!(
            world.hub.bytes_sent(On::Blob(late).get()),
            400_000,
            "{}",
            world.hub.print()
        );
    }
}

/// A transfer that other credentials began is joined by those who hold the digest by theirs, and by nobody else.
#[tokio::test]
async fn other_credentials_join_nothing_by_themselves() {
    let world = World::new().await;
    let row = Row {
        mirror: Some("docker.io"),
        ..PLAIN
    };
    world.let_claim(&world.mirror);
    let mut larder = world.larder(row).await;
    let digest = world.image.layers[0];
    let gate = Gate::closed();
    world.hub.on(On::Blob(digest).get()).stall_after(1_000_000, &gate);
    let mut first = Ask::get(blob(SECRET, digest)).open(larder.registry()).await;
    first.read_at_least(1).await;
    larder
        .reload(|toml| {
            toml.upstream("docker.io", "password", "wrong");
        })
        .unwrap();
    let refused = larder.get(blob(SECRET, digest)).await;
    assert!(refused.status >= 400, "{refused:?}");
    world.check_clean(&refused, "wrong credentials");
    larder
        .reload(|toml| {
            toml.upstream("docker.io", "password", "secret");
            toml.upstream("docker.io", "read_timeout", "59s");
        })
        .unwrap();
    let joined = Ask::get(blob(SECRET, digest)).open(larder.registry()).await;
    assert_eq!(joined.headers.get("cache-status"), Some("larder; fwd=miss; collapsed"));
    gate.open();
    first.rest().await.expect_content(&digest);
    joined.rest().await.expect_content(&digest);
}

/// L8: a mirror that wants no credentials does not make a repository public whose registry does.
#[tokio::test]
async fn a_mirror_makes_nothing_public() {
    let world = World::new().await;
    let row = Row {
        mirror: Some("docker.io"),
        ..PLAIN
    };
    let digest = world.image.layers[0];
    let larder = world.larder(row).await;
    world.pull_secret(&larder).await;
    let key = format!("docker.io/{SECRET}");
    assert!(larder.store().is_private(&key));
    let more = world.mirror.blob(SECRET, 1_000);
    larder.get(blob(SECRET, more)).await.expect_content(&more);
    assert!(larder.store().is_private(&key), "a mirror has said nothing about it");
    // Nor when Larder has no credentials any more, by whatever is asked.
    let tagged = world.mirror.image(SECRET, "2", &[500]);
    let named = world.mirror.image(SECRET, "3", &[600]);
    let late = world.mirror.blob(SECRET, 1_100);
    let stopped = larder.stop().await;
    let larder = stopped.start(|toml| {
        toml.unset(&["upstream", "docker.io"], "username");
        toml.unset(&["upstream", "docker.io"], "password");
    });
    let larder = larder.await;
    for ask in [
        Ask::head(blob(SECRET, late)),
        Ask::head(manifest(SECRET, "2")),
        Ask::head(manifest(SECRET, named.manifest)),
        Ask::get(manifest(SECRET, "2")),
        Ask::get(manifest(SECRET, named.manifest)),
        Ask::get(format!("/v2/{SECRET}/tags/list")),
        Ask::get(referrers(SECRET, &tagged.manifest)),
        Ask::get(blob(SECRET, late)),
    ] {
        let what = format!("{ask:?}");
        ask.send(larder.registry()).await.expect(200);
        assert!(larder.store().is_private(&key), "a mirror took the mark away: {what}");
    }
    world.let_claim(&world.other);
    larder.get(blob(STRANGER, digest)).await.expect(404);
    // The registry itself may: it has been opened to all. A mirror's earlier answer does not stand in for that.
    world.hub.require_nothing();
    world.mirror.on(On::Any).always().status(404);
    let open = world.hub.blob(SECRET, 1_200);
    larder.get(blob(SECRET, open)).await.expect_content(&open);
    assert!(!larder.store().had_credentials(&key));
    // What somebody else marks since then, by a bundle, a mirror leaves alone, too.
    larder.store().set_private(&key, true);
    world.mirror.clear_script();
    let last = world.mirror.blob(SECRET, 1_300);
    larder.get(blob(SECRET, last)).await.expect_content(&last);
    assert!(larder.store().had_credentials(&key), "by what the registry said before");
}

/// An upstream that cannot be asked whether something is public keeps nobody of another upstream waiting, and opens
/// nothing.
#[tokio::test]
async fn a_holder_in_trouble_is_not_waited_for() {
    let world = World::new().await;
    let larder = world.larder(PLAIN).await;
    world.pull_secret(&larder).await;
    let digest = world.image.layers[0];
    world.let_claim(&world.other);
    world.other.put_blob("evil/app", world.hub.bytes(&digest));
    let gate = Gate::closed();
    world.hub.on(On::Any).always().stall_headers(&gate);
    larder.get(blob(STRANGER, digest)).await.expect_content(&digest);
    assert_eq!(world.other.bytes_sent(On::Blob(digest).get()), LAYER as u64);
    larder.get(blob(STRANGER, world.image.config)).await.expect(404);
    gate.open();
}

/// A registry that cannot be reached, behind mirrors that can: they have the last word, and it is not waited for again.
#[tokio::test]
async fn mirrors_are_not_held_up_by_their_registry() {
    let world = World::new().await;
    let row = Row {
        mirror: Some("docker.io"),
        ..PLAIN
    };
    let larder = world.larder(row).await;
    world.pull_secret(&larder).await;
    let gate = Gate::closed();
    world.hub.on(On::Any).always().stall_headers(&gate);
    for (n, digest) in world.image.blobs().into_iter().enumerate() {
        world.mirror.put_blob("acme/second", world.hub.bytes(&digest));
        world.hub.forget();
        larder.get(blob("acme/second", digest)).await.expect_content(&digest);
        let asked = world.hub.count(On::Blobs.repo("acme/second"));
        assert!(n == 0 || asked == 0, "{}", world.hub.print());
    }
    gate.open();
}

/// Without an index nobody knows whose the blobs are: the bytes have to come again, with credentials or without.
#[tokio::test]
async fn a_lost_index_opens_nothing() {
    for has_credentials in [true, false] {
        let world = World::new().await;
        let larder = world.larder(PLAIN).await;
        world.pull_secret(&larder).await;
        let change = |toml: &mut Toml| {
            if !has_credentials {
                toml.unset(&["upstream", "docker.io"], "username");
                toml.unset(&["upstream", "docker.io"], "password");
            }
        };
        let larder = lose_index(&world, larder, change).await;
        let digest = world.image.layers[0];
        world.let_claim(&world.other);
        for path in [blob(STRANGER, digest), manifest(STRANGER, world.image.manifest)] {
            larder.get(path).await.expect(404);
        }
        if has_credentials {
            larder.get(blob(SECRET, digest)).await.expect_content(&digest);
        }
        larder.get(blob(STRANGER, digest)).await.expect(404);
    }
}

/// An import marks what is private before any of it comes. One that is refused takes its own marks back, and no others.
#[tokio::test]
async fn a_refused_import_marks_nothing() {
    for had_credentials in [false, true] {
        let world = World::new().await;
        let row = Row {
            without_credentials: true,
            ..PLAIN
        };
        let larder = world.larder(row).await;
        let (mut bytes, to) = (world.bundle().await, larder.store());
        let key = format!("docker.io/{SECRET}");
        if had_credentials {
            to.set_private(&key, true);
        }
        // Something of it comes whole, and then something that its catalogue does not name.
        let at = bytes.len() - 1_024;
        assert!(bytes[at..].iter().all(|byte| *byte == 0));
        let first = bytes[..512].to_vec();
        bytes.splice(at..at, first);
        let store = to.clone();
        let importing = tokio::task::spawn_blocking(move || {
            import(&store, &mut bytes.as_slice(), &unsigned(), &mut |_| {}).unwrap_err()
        });
        let error = importing.await.unwrap().to_string();
        assert!(error.contains("refused"), "{error}");
        assert!(world.image.layers.iter().all(|digest| to.size(digest).is_none()));
        assert_eq!(to.had_credentials(&key), had_credentials);
        drop(to);
        let larder = larder.restart().await;
        assert_eq!(larder.store().had_credentials(&key), had_credentials);
    }
}

/// R-U27: an upstream that answers HEAD by an error may answer GET all the same, and so it is asked, whatever is held for
/// others.
#[tokio::test]
async fn a_get_is_not_denied_by_an_error_to_head() {
    // Of another upstream, of public content; and of the same one, of private content.
    for asks in [STRANGER, "acme/second"] {
        for status in [403, 404, 418, 500] {
            let world = World::new().await;
            let policy = TokenPolicy::new().credentials("larder", "secret");
            let (liar, repo) = match asks {
                STRANGER => {
                    world.hub.require_token(policy.anonymous_for(SECRET));
                    (&world.other, "evil/app")
                }
                second => (&world.hub, second),
            };
            for digest in world.image.blobs() {
                liar.put_blob(repo, world.hub.bytes(&digest));
            }
            let bytes = world.image.bytes.clone();
            liar.put_manifest(repo, None, world.image.media_type, bytes);
            let (with, without) = (world.larder(PLAIN).await, world.larder(PLAIN).await);
            world.pull_secret(&with).await;
            liar.on(On::Blobs.head().repo(repo)).always().status(status);
            liar.on(On::Manifests.head().repo(repo)).always().status(status);
            let digest = world.image.layers[0];
            let paths = [
                blob(asks, digest),
                blob(asks, world.image.config),
                manifest(asks, world.image.manifest),
            ];
            for path in &paths {
                let found = with.get(path.clone()).await;
                let expected = without.get(path.clone()).await.expect(200);
                // The bodies are too long to be printed.
                assert!(
                    shape(&found) == shape(&expected),
                    "{asks}, {status}: {path}: {found:?}, not {expected:?}"
                );
            }
            with.until_held(&paths[0]).await;
            // Nothing is remembered of the HEAD, and a HEAD is answered as by a Larder that has nothing.
            let small = blob(asks, world.image.layers[1]);
            for _ in 0..2 {
                let found = with.head(small.clone()).await;
                let expected = without.head(small.clone()).await;
                assert_eq!(shape(&found), shape(&expected), "{asks}, {status}: HEAD");
            }
        }
    }
}
