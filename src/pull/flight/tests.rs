use std::time::Duration;

use bytes::Bytes;

use super::*;

struct Field {
    flights: Flights,
    client: Arc<Client>,
    store: Store,
    _folder: tempfile::TempDir,
}

impl Field {
    /// Its upstream is nowhere: a port that nobody listens on any more.
    fn new() -> Field {
        let folder = tempfile::tempdir().unwrap();
        let free = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let config = crate::config::Config::from_toml(&format!(
            "[cache]\npath = {:?}\nmin_free = \"0B\"\n[upstream.\"docker.io\"]\nurl = \"http://{free}\"\n",
            folder.path()
        ))
        .unwrap();
        let store = Store::open(&config).unwrap();
        let clients = crate::upstream::Clients::new(&config).unwrap();
        let timing = Timing {
            grace: Duration::from_millis(1),
            ..Timing::default()
        };
        Field {
            flights: Flights::new(store.clone(), timing, TaskTracker::new(), CancellationToken::new()),
            client: clients.get(&config.cache.default_upstream).unwrap().clone(),
            store,
            _folder: folder,
        }
    }

    fn join(&self, key: &str, digest: Digest, judged: &Judged) -> Place {
        let order = Order {
            is_held: false,
            client: self.client.clone(),
            repository: "library/alpine".parse().unwrap(),
            key: key.into(),
            digest,
            hint: None,
        };
        self.flights.join_or_begin(order, judged)
    }

    fn follow(&self, key: &str, digest: Digest, judged: &Judged) -> Follower {
        match self.join(key, digest, judged) {
            Place::Among(follower) => follower,
            Place::Held => panic!("held"),
            Place::Foreign(_) => panic!("foreign"),
        }
    }

    /// Another repository's transfer, judged.
    fn judge(&self, key: &str, digest: Digest, may_follow: bool) -> Judged {
        let mut judged = Judged::default();
        match self.join(key, digest, &judged) {
            Place::Foreign(flight) => judged.note(flight, may_follow),
            Place::Held | Place::Among(_) => panic!("not foreign"),
        }
        judged
    }
}

/// L1: whoever looked before the transfer was admitted, and leaps after it, does not begin another.
#[tokio::test]
async fn what_is_held_is_not_fetched() {
    let field = Field::new();
    let bytes = Bytes::from_static(b"held");
    let digest = Digest::sha256(&bytes);
    field.store.put_manifest("a", &digest, "x/y", &[], &bytes).unwrap();
    assert!(matches!(field.join("a", digest, &Judged::default()), Place::Held));
    let apart = Judged {
        apart: true,
        ..Judged::default()
    };
    assert!(matches!(field.join("a", digest, &apart), Place::Held), "linked since");
    assert_eq!(field.flights.count(), 0);
    // L11: held for somebody else.
    assert!(matches!(field.join("b", digest, &Judged::default()), Place::Held));
    assert!(!field.follow("b", digest, &apart).joined);
}

/// L8: also if it began while nobody looked.
#[tokio::test]
async fn a_foreign_transfer_is_joined_only_by_who_may() {
    let field = Field::new();
    let digest = Digest::sha256(b"x");
    let nothing = Judged::default();
    let first = field.follow("a", digest, &nothing);
    assert!(!first.joined && !first.is_foreign_to("a"));
    assert!(field.follow("a", digest, &nothing).joined);
    let may = field.judge("b", digest, true);
    let second = field.follow("b", digest, &may);
    assert!(second.joined && second.is_foreign_to("b"));
    assert!(field.follow("b", digest, &nothing).joined);
    // L11: one that may not follow gets a transfer of its own, and its like share that one.
    let may_not = field.judge("c", digest, false);
    let third = field.follow("c", digest, &may_not);
    assert!(!third.joined && !third.is_foreign_to("c"));
    assert!(field.follow("c", digest, &nothing).joined);
    assert_eq!(field.flights.count(), 2);
    drop(field.judge("d", digest, true));
}

/// L11: what other credentials began is another's transfer, also for the repository itself.
#[tokio::test]
async fn a_transfer_by_other_credentials_is_foreign() {
    let mut field = Field::new();
    let digest = Digest::sha256(b"x");
    let nothing = Judged::default();
    let first = field.follow("a", digest, &nothing);
    let may = field.judge("b", digest, true);
    let joined = field.follow("b", digest, &may);
    let before = field.client.clone();
    field.client = Field::new().client;
    assert!(matches!(field.join("a", digest, &nothing), Place::Foreign(_)));
    assert!(
        matches!(field.join("b", digest, &nothing), Place::Foreign(_)),
        "who followed before"
    );
    let may_not = field.judge("a", digest, false);
    assert!(!field.follow("a", digest, &may_not).joined);
    field.client = before;
    assert!(field.follow("a", digest, &nothing).joined);
    drop((first, joined));
}

/// L2: who asks again on hearing of a failure does not get the same failure again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_transfer_is_not_joined() {
    let field = Arc::new(Field::new());
    let digests: Vec<Digest> = (0..40u8).map(|n| Digest::sha256(&[n])).collect();
    let asking = digests.into_iter().map(|digest| {
        let field = field.clone();
        tokio::spawn(async move {
            let nothing = Judged::default();
            assert!(field.follow("a", digest, &nothing).decided().await.is_err());
            assert!(!field.follow("a", digest, &nothing).joined);
        })
    });
    for asked in asking.collect::<Vec<_>>() {
        asked.await.unwrap();
    }
}
