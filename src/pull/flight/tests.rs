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

    fn join(&self, key: &str, digest: Digest, shown: bool) -> Place {
        let order = Order {
            is_held: false,
            client: self.client.clone(),
            repository: "library/alpine".parse().unwrap(),
            key: key.into(),
            digest,
            hint: None,
        };
        self.flights.join_or_begin(order, shown)
    }

    fn follow(&self, key: &str, digest: Digest, shown: bool) -> Follower {
        match self.join(key, digest, shown) {
            Place::Among(follower) => follower,
            Place::Held => panic!("held"),
            Place::Foreign => panic!("foreign"),
        }
    }
}

/// L1: whoever looked before the transfer was admitted, and leaps after it, does not begin another.
#[tokio::test]
async fn what_is_held_is_not_fetched() {
    let field = Field::new();
    let bytes = Bytes::from_static(b"held");
    let digest = Digest::sha256(&bytes);
    field.store.put_manifest("a", &digest, "x/y", &[], &bytes).unwrap();
    assert!(matches!(field.join("a", digest, false), Place::Held));
    assert_eq!(field.flights.count(), 0);
}

/// L8: also if it began while nobody looked.
#[tokio::test]
async fn a_foreign_transfer_is_joined_only_by_who_may() {
    let field = Field::new();
    let digest = Digest::sha256(b"x");
    let first = field.follow("a", digest, false);
    assert!(!first.joined && !first.is_foreign_to("a"));
    assert!(field.follow("a", digest, false).joined);
    assert!(matches!(field.join("b", digest, false), Place::Foreign));
    let second = field.follow("b", digest, true);
    assert!(second.joined && second.is_foreign_to("b"));
    assert!(field.follow("b", digest, false).joined);
    assert!(matches!(field.join("c", digest, false), Place::Foreign));
}

/// L2: who asks again on hearing of a failure does not get the same failure again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_transfer_is_not_joined() {
    let field = Arc::new(Field::new());
    let digests: Vec<Digest> = (0..40u8).map(|n| Digest::sha256(&[n])).collect();
    let asking = digests.into_iter().map(|digest| {
        let field = field.clone();
        tokio::spawn(async move {
            assert!(field.follow("a", digest, false).decided().await.is_err());
            assert!(!field.follow("a", digest, false).joined);
        })
    });
    for asked in asking.collect::<Vec<_>>() {
        asked.await.unwrap();
    }
}
