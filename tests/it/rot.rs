//! The check in idle hours: it finds what is damaged, goes on where it stopped, gives way, and does not come too often.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use larder::config::Config;
use larder::jobs::{Pace, Verifier};
use larder::oci::Digest;
use larder::pull::{Pull, Target};
use larder::store::{Store, unix_ms};
use larder::upstream::Clients;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::support::gate::Gate;
use crate::support::larder::quick;
use crate::support::toml::Toml;
use crate::support::upstream::{On, Upstream};
use crate::support::within;

const REPO: &str = "library/alpine";

/// No listeners: only what the check works with.
struct Bench {
    pull: Arc<Pull>,
    verifier: Arc<Verifier>,
}

impl Bench {
    fn open(folder: &Path, upstream: &Upstream) -> Bench {
        let config = Config::from_toml(&Toml::new(folder, upstream).text()).expect("a configuration");
        let store = Store::open(&config).expect("a store");
        let clients = Clients::new(&config).expect("clients");
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let pull = Pull::new(&config, store, clients, quick(), tasks.clone(), stop.clone()).expect("a service");
        let verifier = Verifier::new(pull.clone(), tasks, stop);
        Bench { pull, verifier }
    }

    fn target(&self) -> Target {
        self.pull.resolve(REPO, None).expect("a repository")
    }

    /// So many blobs, held; in the order in which they are checked.
    async fn hold(&self, upstream: &Upstream, count: usize) -> Vec<Digest> {
        let mut digests: Vec<Digest> = (0..count).map(|_| upstream.blob(REPO, 5000)).collect();
        for digest in &digests {
            let held = self.pull.refetch(&self.target(), digest, false).await;
            assert!(held.expect("a blob"));
        }
        digests.sort_unstable();
        digests
    }

    fn checked(&self) -> u64 {
        self.verifier.idle().blobs.load(Ordering::Relaxed)
    }

    fn store(&self) -> &Store {
        self.pull.store()
    }
}

/// As fast as it goes, and never too early.
fn brisk() -> Pace {
    Pace {
        bytes_per_second: u64::MAX,
        quiet: Duration::ZERO,
        first_after: Duration::ZERO,
        ..Pace::default()
    }
}

#[tokio::test]
async fn it_finds_what_is_damaged() {
    let (folder, upstream) = (tempfile::tempdir().unwrap(), Upstream::start().await);
    let bench = Bench::open(folder.path(), &upstream);
    let digests = bench.hold(&upstream, 3).await;
    let place = |digest: &Digest| folder.path().join("blobs/sha256").join(digest.hex());
    std::fs::write(place(&digests[0]), vec![0; 5000]).unwrap();
    std::fs::remove_file(place(&digests[2])).unwrap();
    within("a pass", bench.verifier.idle_pass(&brisk())).await;
    assert_eq!(
        (bench.checked(), bench.verifier.idle().bad.load(Ordering::Relaxed)),
        (3, 2)
    );
    let held: Vec<bool> = digests.iter().map(|d| bench.store().size(d).is_some()).collect();
    assert_eq!(held, [false, true, false]);
    assert!(
        folder
            .path()
            .join(format!("quarantine/sha256-{}", digests[0].hex()))
            .exists()
    );
    assert!(bench.store().verify_finished_ms().is_some() && bench.store().verify_cursor().is_none());
}

/// Also after a restart; the pass after a whole one begins at the beginning.
#[tokio::test]
async fn it_goes_on_where_it_stopped() {
    let (folder, upstream) = (tempfile::tempdir().unwrap(), Upstream::start().await);
    let bench = Bench::open(folder.path(), &upstream);
    let digests = bench.hold(&upstream, 5).await;
    bench.store().set_verify_cursor(&digests[2]);
    bench.store().close();
    drop(bench);
    let bench = Bench::open(folder.path(), &upstream);
    within("a pass", bench.verifier.idle_pass(&brisk())).await;
    assert_eq!(bench.checked(), 2);
    within("a pass", bench.verifier.idle_pass(&brisk())).await;
    assert_eq!(bench.checked(), 2 + 5);
}

/// Clients come first.
#[tokio::test]
async fn it_gives_way() {
    let (folder, upstream) = (tempfile::tempdir().unwrap(), Upstream::start().await);
    let bench = Bench::open(folder.path(), &upstream);
    let held = bench.hold(&upstream, 2).await;
    let slow = upstream.blob(REPO, 200_000);
    let gate = Gate::closed();
    upstream.on(On::Blob(slow)).stall_after(1000, &gate);
    let (pull, target) = (bench.pull.clone(), bench.target());
    let transfer = tokio::spawn(async move { pull.refetch(&target, &slow, false).await });
    gate.wait_for_arrivals(1).await;
    let pace = brisk();
    let mut pass = Box::pin(bench.verifier.idle_pass(&pace));
    let meanwhile = async {
        for digest in held.iter().cycle().take(50) {
            bench.pull.open_blob(&bench.target(), digest).await.expect("a blob");
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = &mut pass => panic!("it did not wait for the transfer"),
        () = meanwhile => {}
    }
    assert_eq!(bench.checked(), 0);
    gate.open();
    assert!(within("the transfer", transfer).await.unwrap().expect("a blob"));
    within("a pass", pass).await;
    // What has come since may stand before the place where the pass was.
    assert!(bench.checked() >= 2);
}

/// Once a week, whatever the process's age.
#[tokio::test]
async fn it_does_not_come_too_often() {
    const DAY_MS: u64 = 24 * 3600 * 1000;
    let (folder, upstream) = (tempfile::tempdir().unwrap(), Upstream::start().await);
    let bench = Bench::open(folder.path(), &upstream);
    let held = bench.hold(&upstream, 2).await;
    let pace = brisk();
    bench.store().set_verify_finished(unix_ms() - 6 * DAY_MS);
    let meanwhile = async {
        for digest in held.iter().cycle().take(50) {
            bench.pull.open_blob(&bench.target(), digest).await.expect("a blob");
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = bench.verifier.run_idle(&pace) => {}
        () = meanwhile => {}
    }
    assert_eq!(bench.checked(), 0);
    let old = unix_ms() - 8 * DAY_MS;
    bench.store().set_verify_finished(old);
    let done = within("a pass that is due", async {
        while bench.store().verify_finished_ms() == Some(old) {
            tokio::task::yield_now().await;
        }
    });
    tokio::select! {
        () = bench.verifier.run_idle(&pace) => {}
        () = done => {}
    }
    assert_eq!(bench.checked(), 2);
}
