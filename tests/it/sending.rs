//! Held blobs on their way out, by plain HTTP/1.1 (the kernel sends) and by HTTP/2 (read and sent): clients that are slow or
//! leave, files that go or shrink, blobs of more than 4 GiB.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use larder::oci::{Digest, media_type};

use crate::support::client::{Ask, Connection, End, Exchange, Http2Exchange, Response, http2, open_http2};
use crate::support::larder::Larder;
use crate::support::upstream::{Fault, On, Upstream};
use crate::support::{blob, manifest, within};

const REPO: &str = "library/alpine";
const MIB: usize = 1 << 20;
/// More than sockets and windows take in.
const LEN: usize = 24 * MIB;

/// A client that has the head and reads no further than it is told to.
enum Slow {
    Http1(Exchange),
    Http2(Http2Exchange),
}

impl Slow {
    async fn open(larder: &Larder, path: &str, by_http2: bool) -> Slow {
        let mut slow = if by_http2 {
            Slow::Http2(open_http2(larder.registry(), Ask::get(path)).await.unwrap())
        } else {
            let connection = Connection::open_with_buffer(larder.registry(), 64 * 1024).await;
            Slow::Http1(connection.exchange(&Ask::get(path)).await)
        };
        slow.read_at_least(1).await;
        slow
    }

    async fn read_at_least(&mut self, n: usize) -> &[u8] {
        match self {
            Slow::Http1(exchange) => exchange.read_at_least(n).await,
            Slow::Http2(exchange) => exchange.read_at_least(n).await,
        }
    }

    async fn rest(self) -> Response {
        match self {
            Slow::Http1(exchange) => exchange.rest().await,
            Slow::Http2(exchange) => exchange.rest().await,
        }
    }
}

/// A blob that is held, and its file.
async fn held(larder: &Larder, upstream: &Upstream) -> (Digest, String, PathBuf) {
    let digest = upstream.blob(REPO, LEN);
    let path = blob(REPO, digest);
    larder.get(&path).await.expect_content(&digest);
    larder.until_held(&path).await;
    let file = larder.cache().join("blobs/sha256").join(digest.hex());
    (digest, path, file)
}

/// How often this process, and so Larder in it, has the file open, whether or not it has a name still. By its whole path:
/// other tests of this process hold the same blob in folders of their own.
fn handles(file: &Path) -> usize {
    let folder = std::fs::canonicalize(file.parent().unwrap()).unwrap();
    let path = folder.join(file.file_name().unwrap());
    let links = std::fs::read_dir("/proc/self/fd").unwrap();
    links
        .filter_map(|link| std::fs::read_link(link.ok()?.path()).ok())
        .filter(|target| target.to_string_lossy().starts_with(&*path.to_string_lossy()))
        .count()
}

/// Until nobody has the file open but for those who ask next: what a client has got whole may be let go of a moment later.
async fn until_one_handle(file: &Path) {
    within("other handles to be closed", async {
        while handles(file) > 1 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

async fn until_let_go(larder: &Larder, digest: &Digest) {
    within("the blob to be let go", async {
        while larder.store().is_being_sent(digest) {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_slow_reader_holds_up_nobody_and_gets_everything() {
    let upstream = Upstream::start().await;
    let larder = Larder::start(&upstream, |_| {}).await;
    let (digest, path, file) = held(&larder, &upstream).await;
    for by_http2 in [false, true] {
        let mut slow = Slow::open(&larder, &path, by_http2).await;
        for step in 1..4 {
            slow.read_at_least(step * 300_000).await;
            larder.get(&path).await.expect_content(&digest);
            http2(larder.registry(), Ask::get(&path)).await.expect_content(&digest);
        }
        assert!(larder.store().is_being_sent(&digest), "it has not been sent yet");
        slow.rest().await.expect_content(&digest);
        until_let_go(&larder, &digest).await;
        until_one_handle(&file).await;
    }
}

#[tokio::test]
async fn a_client_that_leaves_lets_go_of_the_file() {
    let upstream = Upstream::start().await;
    let larder = Larder::start(&upstream, |_| {}).await;
    let (digest, path, file) = held(&larder, &upstream).await;
    until_let_go(&larder, &digest).await;
    for by_http2 in [false, true] {
        for reset in [false, true] {
            let slow = Slow::open(&larder, &path, by_http2).await;
            assert!(larder.store().is_being_sent(&digest), "by HTTP/2: {by_http2}");
            match slow {
                Slow::Http1(exchange) if reset => exchange.abort(),
                slow => drop(slow),
            }
            until_let_go(&larder, &digest).await;
            until_one_handle(&file).await;
        }
    }
    larder.get(&path).await.expect_content(&digest);
    assert_eq!(upstream.count(On::Blob(digest).get()), 1, "{}", upstream.print());
}

/// What was asked twice is told by what was told before, from a file that is open still: in the same words, and only as long as all
/// of it is right.
#[tokio::test]
async fn what_is_asked_again_is_the_same_and_still_right() {
    let upstream = Upstream::start().await;
    let larder = Larder::start(&upstream, |_| {}).await;
    let (digest, path, file) = held(&larder, &upstream).await;
    let kept = [
        "content-type",
        "content-length",
        "docker-content-digest",
        "accept-ranges",
        "cache-control",
        "cache-status",
    ];
    let heads = |answer: &Response| kept.map(|name| answer.header(name).map(str::to_owned));
    let first = larder.get(&path).await;
    let (told, bytes) = (heads(&first), first.expect_content(&digest));
    for _ in 0..3 {
        let again = larder.get(&path).await;
        assert_eq!(heads(&again), told);
        again.expect_content(&digest);
        http2(larder.registry(), Ask::get(&path)).await.expect_content(&digest);
    }
    until_one_handle(&file).await;
    assert_eq!(handles(&file), 1, "one for those who ask next");

    let part = Ask::get(&path).range("bytes=5-9").send(larder.registry()).await;
    assert_eq!((part.status, &part.body[..]), (206, &bytes[5..10]));
    let known = Ask::get(&path).header("If-None-Match", format!("\"{digest}\""));
    let known = known.send(larder.registry()).await;
    assert_eq!((known.status, known.body.len()), (304, 0));
    // L8: another repository has yet to show that it has it.
    let asked = upstream.count(On::Blob(digest).head());
    let other = larder.get(&blob("library/other", digest)).await;
    assert_eq!(other.status, 404);
    assert_eq!(
        upstream.count(On::Blob(digest).head()),
        asked + 1,
        "{}",
        upstream.print()
    );

    // L2, L5: removed behind its back.
    std::fs::remove_file(&file).unwrap();
    larder.get(&path).await.expect_content(&digest);
    assert_eq!(
        upstream.count(On::Blob(digest).get().repo(REPO)),
        2,
        "{}",
        upstream.print()
    );
    larder.until_held(&path).await;
    larder.get(&path).await.expect_content(&digest);
    larder.get(&path).await.expect_content(&digest);
    let writable = std::fs::File::options().write(true).open(&file).unwrap();
    writable.set_len(1000).unwrap();
    larder.get(&path).await.expect_content(&digest);
    assert_eq!(
        upstream.count(On::Blob(digest).get().repo(REPO)),
        3,
        "{}",
        upstream.print()
    );
}

/// A large manifest goes out as a file does, from memory: what becomes of the one on the disk changes nothing (L2).
#[tokio::test]
async fn a_large_manifest_is_told_again_from_memory() {
    const LARGE: usize = 100 * 1024;
    let upstream = Upstream::start().await;
    let larder = Larder::start(&upstream, |_| {}).await;
    let padding = "x".repeat(LARGE);
    let text = format!(
        r#"{{"schemaVersion":2,"mediaType":"{}","manifests":[],"padding":"{padding}"}}"#,
        media_type::OCI_INDEX
    );
    let digest = upstream.put_manifest(REPO, Some("large"), media_type::OCI_INDEX, text.clone());
    for reference in [digest.to_string(), "large".to_owned()] {
        let path = manifest(REPO, &reference);
        for round in 0..4 {
            let told = larder.get(&path).await.expect(200);
            assert_eq!(told.header("content-length"), Some(&*text.len().to_string()));
            assert!(
                told.is_complete() && told.body == text.as_bytes(),
                "{reference}, round {round}"
            );
            let by_http2 = http2(larder.registry(), Ask::get(&path)).await.expect(200);
            assert!(by_http2.body == text.as_bytes());
            let head = larder.head(&path).await.expect(200);
            assert_eq!(head.header("content-length"), told.header("content-length"));
            if round == 2 {
                let file = larder.cache().join("blobs/sha256").join(digest.hex());
                std::fs::write(file, vec![b'y'; text.len()]).unwrap();
            }
        }
    }
    // By digest and by tag, the first time each.
    assert_eq!(upstream.count(On::Manifests.get()), 2, "{}", upstream.print());
}

/// Takes a file out of the kernel's memory; whether it is gone from there, which not every file system can tell or do.
fn let_go_of(file: &Path) -> bool {
    let file = std::fs::File::open(file).unwrap();
    file.sync_all().unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    let mut byte = [0];
    let mut slices = [std::io::IoSliceMut::new(&mut byte)];
    let at = LEN as u64 / 2;
    rustix::io::preadv2(&file, &mut slices, at, rustix::io::ReadWriteFlags::NOWAIT) == Err(rustix::io::Errno::AGAIN)
}

/// What the kernel has let go of is brought back and sent: all of it, parts of it, to several at once, and a client that leaves
/// before it has come leaves nothing behind.
#[tokio::test]
async fn a_file_that_has_left_the_kernels_memory() {
    let upstream = Upstream::start().await;
    let larder = Larder::start(&upstream, |_| {}).await;
    let (digest, path, file) = held(&larder, &upstream).await;
    let whole = larder.get(&path).await.expect(200).body;
    let mut gone = 0;
    let mut let_go = || gone += usize::from(let_go_of(&file));
    for _ in 0..3 {
        let_go();
        larder.get(&path).await.expect_content(&digest);
        let_go();
        http2(larder.registry(), Ask::get(&path)).await.expect_content(&digest);
        let_go();
        let ask = || Ask::get(&path).range("bytes=4000001-23000000").send(larder.registry());
        for part in futures_util::future::join_all([ask(), ask(), ask()]).await {
            assert_eq!(part.status, 206);
            assert!(part.body == whole[4_000_001..=23_000_000]);
        }
        let_go();
        for by_http2 in [false, true] {
            drop(Slow::open(&larder, &path, by_http2).await);
            let_go();
        }
    }
    until_let_go(&larder, &digest).await;
    within("its files to be closed", async {
        while handles(&file) > 1 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(upstream.count(On::Blob(digest).get()), 1, "{}", upstream.print());
    if gone == 0 {
        eprintln!(
            "NOT CHECKED: the file system of {} keeps its files in memory",
            file.display()
        );
    }
}

/// L5: an answer outlives its blob's file, whoever took that away.
#[tokio::test]
async fn a_file_that_is_removed_while_it_is_sent() {
    let upstream = Upstream::start().await;
    let larder = Larder::start(&upstream, |_| {}).await;
    for by_http2 in [false, true] {
        let (digest, path, file) = held(&larder, &upstream).await;
        let slow = Slow::open(&larder, &path, by_http2).await;
        std::fs::remove_file(&file).unwrap();
        slow.rest().await.expect_content(&digest);
        larder.get(&path).await.expect_content(&digest);
    }
}

/// L2: a file that somebody truncates is a short answer; the damage is found with the next request, counted and mended.
#[tokio::test]
async fn a_file_that_is_cut_while_it_is_sent() {
    let upstream = Upstream::start().await;
    let larder = Larder::start(&upstream, |_| {}).await;
    // Of the whole process: other tests may count there too.
    let damaged = async || {
        let metrics = larder.metrics().await;
        let name = "larder_damaged_total{found=\"size\"} ";
        let count = metrics
            .lines()
            .find_map(|line| line.strip_prefix(name)?.parse::<u64>().ok());
        count.unwrap_or(0)
    };
    for by_http2 in [false, true] {
        let (digest, path, file) = held(&larder, &upstream).await;
        let before = damaged().await;
        let slow = Slow::open(&larder, &path, by_http2).await;
        let writable = std::fs::File::options().write(true).open(&file).unwrap();
        writable.set_len(1000).unwrap();
        let cut = slow.rest().await;
        assert!(cut.body.len() < LEN, "by HTTP/2: {by_http2}");
        assert_eq!(cut.end == End::Short, !by_http2, "{:?}", cut.end);
        larder.get(&path).await.expect_content(&digest);
        assert_eq!(upstream.count(On::Blob(digest).get()), 2, "{}", upstream.print());
        assert!(damaged().await > before);
    }
}

/// Most of it is a hole: nothing has to be sent to see that no length or offset is cut to 32 bits.
#[tokio::test]
async fn more_than_four_gib() {
    const SIZE: u64 = (5 << 30) + 7;
    const FAR: u64 = (4 << 30) + 11;
    let upstream = Upstream::start().await;
    let digest = Digest::sha256(b"nobody hashes five gibibytes here");
    let (headers, body) = (vec![("Content-Length".to_owned(), SIZE.to_string())], Bytes::new());
    let confirmed = Fault::Status {
        status: 200,
        headers,
        body,
    };
    upstream.on(On::Blob(digest).head()).always().does([confirmed]);
    let stopped = Larder::start(&upstream, |_| {}).await.stop().await;
    // A file in a blob's place is a blob that was verified before a crash: it is taken in when the folder is walked.
    let file = std::fs::File::create(stopped.cache().join("blobs/sha256").join(digest.hex())).unwrap();
    file.set_len(SIZE).unwrap();
    file.write_all_at(b"far", FAR).unwrap();
    file.write_all_at(b"the end", SIZE - 7).unwrap();
    let larder = stopped
        .start(|toml| {
            toml.cache("max_size", "100GiB");
        })
        .await;
    within("the blob to be taken in", async {
        while larder.store().size(&digest) != Some(SIZE) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // Whose it is nobody knows any more (L11), and it is too large to come here again.
    larder.store().link(&[format!("docker.io/{REPO}").into()], &digest);
    let path = blob(REPO, digest);
    let head = larder.head(&path).await.expect(200);
    assert_eq!(head.header("content-length"), Some(&*SIZE.to_string()));
    for (range, from, bytes) in [
        (format!("bytes={FAR}-{}", FAR + 2), FAR, &b"far"[..]),
        ("bytes=-7".to_owned(), SIZE - 7, b"the end"),
        (format!("bytes={}-{}", SIZE - 3, u64::MAX), SIZE - 3, b"end"),
        (format!("bytes={}-", SIZE - 1), SIZE - 1, b"d"),
    ] {
        let ask = || Ask::get(&path).range(&range);
        for answer in [
            ask().send(larder.registry()).await,
            http2(larder.registry(), ask()).await,
        ] {
            let answer = answer.expect(206);
            assert_eq!(answer.body, bytes, "{range}");
            let place = format!("bytes {from}-{}/{SIZE}", from + bytes.len() as u64 - 1);
            assert_eq!(answer.header("content-range"), Some(&*place));
        }
    }
    // Runs that begin below 4 GiB and end above, as the kernel sends them and as they are read.
    let (from, to) = ((4u64 << 30) - 500_000, (4u64 << 30) + 500_000);
    let ask = || Ask::get(&path).range(&format!("bytes={from}-{}", to - 1));
    for answer in [
        ask().send(larder.registry()).await,
        http2(larder.registry(), ask()).await,
    ] {
        let answer = answer.expect(206);
        let at = usize::try_from(FAR - from).unwrap();
        assert!(answer.body.len() == 1_000_000 && &answer.body[at..at + 3] == b"far");
    }
    let past = Ask::get(&path).range(&format!("bytes={SIZE}-"));
    let past = past.send(larder.registry()).await.expect(416);
    assert_eq!(past.header("content-range"), Some(&*format!("bytes */{SIZE}")));
    // The whole, of which two MiB are enough; the length is what counts.
    let mut whole = Connection::open_with_buffer(larder.registry(), 64 * 1024)
        .await
        .exchange(&Ask::get(&path))
        .await;
    assert_eq!(whole.headers.get("content-length"), Some(&*SIZE.to_string()));
    assert!(whole.read_at_least(2 * MIB).await.iter().all(|byte| *byte == 0));
    whole.abort();
    assert_eq!(upstream.count(On::Blob(digest).get()), 0, "{}", upstream.print());
}
