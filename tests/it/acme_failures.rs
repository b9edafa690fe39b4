//! What can go wrong on the way to a certificate, and what is done about it: the keeper alone, with a directory that refuses, asks for
//! patience, leads away and lies.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use larder::acme::{Issued, Keeper, Patience, Status, report};
use larder::config::{Acme, Config};
use larder::store::State;
use tempfile::TempDir;

use super::support::acme::{Directory, Lie, Trouble};
use super::support::within;

/// A keeper whose challenges are answered at an address of its own.
struct Kept {
    keeper: Arc<Keeper>,
    task: tokio::task::JoinHandle<()>,
    folder: TempDir,
    acme: Acme,
    patience: Patience,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Pauses are a thousandth: a refusal costs 60 ms.
fn hasty() -> Patience {
    Patience {
        stretch: 0.001,
        nap: Duration::from_millis(5),
        ..Patience::default()
    }
}

fn config(directory: &str, more: &str) -> Acme {
    let text = format!(
        "[server]\ntls = {{ acme = true }}\n[acme]\nnames = [\"larder.example\"]\naccept_terms = true\ndirectory = \"{directory}\"\n{more}"
    );
    Config::from_toml(&text).unwrap().acme.unwrap()
}

impl Kept {
    /// Answers by files, which need no TLS.
    async fn start(directory: &Directory, patience: Patience) -> Kept {
        let acme = config(&directory.url(), "challenge = \"http-01\"\n");
        Kept::start_in(tempfile::tempdir().unwrap(), directory, acme, patience).await
    }

    async fn start_in(folder: TempDir, directory: &Directory, acme: Acme, patience: Patience) -> Kept {
        let issued = Issued::new(&acme.names);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        directory.lead_to(listener.local_addr().unwrap());
        let router = larder::http::challenge::router(issued.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        let state = State::of(folder.path());
        let keeper = Arc::new(Keeper::new(acme.clone(), state, issued, patience.clone()));
        let runs = keeper.clone();
        Kept {
            keeper,
            task: tokio::spawn(async move { runs.run().await }),
            folder,
            acme,
            patience,
        }
    }

    async fn until(&self, what: &str, holds: impl Fn(&Status) -> bool) -> Status {
        within(what, async {
            loop {
                let status = self.keeper.status();
                if holds(&status) {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await
    }

    async fn until_issued(&self) -> Status {
        self.until("a certificate", |status| status.expires.is_some()).await
    }

    async fn until_failed(&self, why: &str) -> Status {
        let failed = |status: &Status| status.failure.as_ref().is_some_and(|found| found.contains(why));
        self.until(why, failed).await
    }

    /// As after a crash.
    async fn restart(mut self, directory: &Directory) -> Kept {
        self.task.abort();
        let folder = std::mem::replace(&mut self.folder, tempfile::tempdir().unwrap());
        Kept::start_in(folder, directory, self.acme.clone(), self.patience.clone()).await
    }
}

fn refusal() -> Trouble {
    Trouble {
        status: 403,
        kind: Some("rejectedIdentifier"),
        retry_after: None,
    }
}

#[tokio::test]
async fn tried_again_until_it_works() {
    let directory = Directory::start().await;
    let broken = Trouble {
        status: 502,
        kind: None,
        retry_after: None,
    };
    directory.fail([refusal(), broken, refusal()]);
    let kept = Kept::start(&directory, hasty()).await;
    kept.until_issued().await;
    assert_eq!(directory.orders().len(), 1);
    let placed = directory.asked().iter().filter(|line| *line == "POST /order").count();
    assert_eq!(placed, 4);
    assert_eq!(kept.keeper.status().failure, None);
    assert!(!kept.folder.path().join("acme/attempts.json").exists());
}

#[tokio::test]
async fn who_asks_for_patience_is_left_alone_also_after_a_restart() {
    let directory = Directory::start().await;
    directory.fail([Trouble {
        status: 429,
        kind: Some("rateLimited"),
        retry_after: Some(36_000),
    }]);
    let kept = Kept::start(&directory, hasty()).await;
    let status = kept
        .until_failed("asks for patience: as it was told (rateLimited)")
        .await;
    let wait = status.next.unwrap().duration_since(SystemTime::now()).unwrap();
    assert!(wait > Duration::from_secs(35_900), "{wait:?}");
    let asked = directory.asked().len();
    let kept = kept.restart(&directory).await;
    let status = kept.keeper.status();
    let wait = status.next.unwrap().duration_since(SystemTime::now()).unwrap();
    assert!(wait > Duration::from_secs(35_900), "{wait:?}");
    assert_eq!(directory.asked().len(), asked);
    // The files alone say the same.
    let report = report(&kept.acme, &State::of(kept.folder.path()));
    let failed = report.failed.unwrap();
    assert!(
        failed.why.contains("asks for patience") && failed.in_a_row == 1,
        "{failed:?}"
    );
    assert!(report.held.is_none() && report.trouble.is_none());
}

#[tokio::test]
async fn a_refusal_is_remembered_and_another_configuration_is_another_chance() {
    let directory = Directory::start().await;
    directory.fail([refusal()]);
    let kept = Kept::start(&directory, Patience::default()).await;
    let status = kept
        .until_failed("refused it: as it was told (rejectedIdentifier)")
        .await;
    assert!(status.next.unwrap() > SystemTime::now() + Duration::from_secs(50));
    let mut kept = kept.restart(&directory).await;
    assert!(kept.keeper.status().next.unwrap() > SystemTime::now() + Duration::from_secs(40));
    assert!(directory.orders().is_empty());
    kept.acme = config(&directory.url(), "challenge = \"http-01\"\nprofile = \"other\"\n");
    kept.restart(&directory).await.until_issued().await;
}

#[tokio::test]
async fn lies_are_not_believed() {
    let directory = Directory::start().await;
    // A port that listens, and must never be asked.
    let trap = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = trap.local_addr().unwrap().port();
    let kept = Kept::start(&directory, hasty()).await;
    let good = kept.until_issued().await.expires;
    drop(kept);
    for (lie, why) in [
        (Lie::OtherKey, "certificate and key do not belong together"),
        (Lie::OtherName, "it is not for larder.example"),
        (Lie::Expired, "it has expired"),
        (Lie::Away(port), "which is not where acme.directory is"),
        (Lie::Stranger, "it wants a proof for stranger.example"),
    ] {
        directory.lie(Some(lie));
        let kept = Kept::start(&directory, hasty()).await;
        let status = kept.until_failed(why).await;
        assert_eq!(status.expires, None, "{lie:?}");
        assert!(!kept.folder.path().join("acme/certificate.json").exists(), "{lie:?}");
        directory.lie(None);
        kept.until_issued().await;
    }
    assert!(good.is_some());
    tokio::select! {
        biased;
        _ = trap.accept() => panic!("it was led away"),
        () = std::future::ready(()) => {}
    }
}

#[tokio::test]
async fn a_failed_renewal_leaves_the_old_one() {
    let directory = Directory::start().await;
    let mut kept = Kept::start(&directory, hasty()).await;
    let expires = kept.until_issued().await.expires.unwrap();
    // Other names: due at once.
    directory.fail((0..50).map(|_| refusal()));
    kept.acme.names = vec!["other.example".to_owned()];
    let kept = kept.restart(&directory).await;
    let status = kept.until_failed("refused it").await;
    assert_eq!(status.expires, Some(expires));
    let (is_well, shown) = status.shown(SystemTime::now());
    assert!(is_well && shown.contains("the last order failed"), "{shown}");
}

#[tokio::test]
async fn challenges_that_find_nothing_say_what_to_do() {
    let directory = Directory::start().await;
    let elsewhere = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = elsewhere.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(elsewhere, axum::Router::new()).await });
    let folder = tempfile::tempdir().unwrap();
    let acme = config(&directory.url(), "challenge = \"http-01\"\n");
    let state = State::of(folder.path());
    let keeper = Arc::new(Keeper::new(
        acme.clone(),
        state,
        Issued::new(&acme.names),
        Patience::default(),
    ));
    directory.lead_to(address);
    let runs = keeper.clone();
    let task = tokio::spawn(async move { runs.run().await });
    let why = within("the refusal", async {
        loop {
            if let Some(why) = keeper.status().failure {
                return why;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    task.abort();
    assert!(why.contains("larder.example: 404 with 0 bytes (unauthorized)"), "{why}");
    assert!(
        why.contains("port 80 of each name has to lead to acme.http_listen"),
        "{why}"
    );
}

#[tokio::test]
async fn a_directory_that_comes_later() {
    let probe = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = format!("http://{}/directory", probe.local_addr().unwrap());
    drop(probe);
    let directory = Directory::start().await;
    let acme = config(&nobody, "challenge = \"http-01\"\n");
    let mut kept = Kept::start_in(tempfile::tempdir().unwrap(), &directory, acme, hasty()).await;
    kept.until_failed("cannot be reached").await;
    kept.acme = config(&directory.url(), "challenge = \"http-01\"\n");
    kept.restart(&directory).await.until_issued().await;
}

/// A disk that takes nothing costs the memory of it, not the certificate.
#[tokio::test]
async fn what_cannot_be_kept_is_used() {
    let directory = Directory::start().await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("acme"), "a file where the folder would be").unwrap();
    let acme = config(&directory.url(), "challenge = \"http-01\"\n");
    let kept = Kept::start_in(folder, &directory, acme, hasty()).await;
    kept.until_issued().await;
    assert!(Path::new(&kept.folder.path().join("acme")).is_file());
}
