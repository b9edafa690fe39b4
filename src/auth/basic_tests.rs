use super::*;

/// A client without a record.
const HERE: Client = Client::Local;

/// Cheap, for tests.
fn hashed(password: &str) -> String {
    bcrypt::hash(password, 4).unwrap()
}

fn file(lines: &[(&str, &str)]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    write(&file, lines);
    file
}

fn write(file: &tempfile::NamedTempFile, lines: &[(&str, &str)]) {
    let lines: Vec<String> = lines
        .iter()
        .map(|(name, pw)| format!("{name}:{}\n", hashed(pw)))
        .collect();
    std::fs::write(file.path(), lines.concat()).unwrap();
}

#[test]
fn files() {
    let good = hashed("x");
    let users = Users::parse(&format!("# people\n\nalice:{good}\n bob:{good} \n")).unwrap();
    assert_eq!((users.hashes.len(), users.cost), (2, 4));
    for (text, wants) in [
        ("alice", "line 1: expected name:hash, found no colon"),
        (":x", "line 1: expected a user's name before the colon"),
        ("a:$apr1$x$y", "found an MD5 hash (apr1), expected bcrypt"),
        ("a:{SHA}x", "found a SHA-1 hash"),
        ("a:secret", "found something else, expected bcrypt"),
        ("a:$2y$99$", "the bcrypt hash is cut or broken"),
        ("a:$2y$10$abc", "the bcrypt hash is cut or broken"),
        (
            &format!("a:{}", good.replace("$04$", "$31$")),
            "found a bcrypt cost of 31, expected 4 to 17",
        ),
        (&format!("a:{good}\na:{good}"), "line 2: user \"a\" is there twice"),
    ] {
        let error = Users::parse(text).unwrap_err().to_string();
        assert!(error.contains(wants), "{text}: {error}");
        assert!(!error.contains("secret") && !error.contains("abc"), "{error}");
    }
}

#[test]
fn lines_and_pairs() {
    let made = line("alice", "pass:word").unwrap();
    let (name, hash) = made.split_once(':').unwrap();
    assert_eq!(name, "alice");
    assert!(bcrypt::verify("pass:word", hash).unwrap());
    Users::parse(&made).unwrap();
    for (name, password) in [("", "x"), ("a:b", "x"), ("a", ""), ("a", &"x".repeat(73))] {
        assert!(line(name, password).is_err());
    }
    let (name, password) = pair("YTpiOmM=").unwrap();
    assert_eq!((name.as_str(), password.reveal()), ("a", "b:c"));
    assert!(pair("YQ==").is_none() && pair("!").is_none());
    assert!(!format!("{:?}", pair("YTpiOmM=")).contains("b:c"));
}

#[tokio::test]
async fn right_and_wrong() {
    let file = file(&[("alice", "one")]);
    let users = Arc::new(Htpasswd::load(file.path(), b"key").unwrap());
    assert!(!users.remembers("alice", "one"));
    assert_eq!(users.check("alice", "one", HERE).await, Login::Right);
    assert!(users.remembers("alice", "one") && !users.remembers("alice", "two"));
    assert_eq!(users.check("alice", "two", HERE).await, Login::Wrong);
    assert_eq!(users.check("alice", "", HERE).await, Login::Wrong);
    assert_eq!(users.check("bob", "one", HERE).await, Login::Wrong);
    assert!(!users.remembers("bob", "one") && !users.remembers("alice", "two"));
}

/// A change counts, a bad one does not, and what was remembered of an old hash is gone with it.
#[tokio::test]
async fn read_again() {
    let file = file(&[("alice", "one")]);
    let users = Arc::new(Htpasswd::load_with(file.path(), b"key", Duration::ZERO).unwrap());
    assert_eq!(users.check("alice", "one", HERE).await, Login::Right);
    write(&file, &[("alice", "two"), ("bob", "three")]);
    assert_eq!(users.check("alice", "one", HERE).await, Login::Wrong);
    assert_eq!(users.check("alice", "two", HERE).await, Login::Right);
    std::fs::write(file.path(), "alice:no hash at all").unwrap();
    assert_eq!(users.check("bob", "three", HERE).await, Login::Right);
    std::fs::remove_file(file.path()).unwrap();
    assert_eq!(users.check("bob", "three", HERE).await, Login::Right);
    write(&file, &[("bob", "four")]);
    assert_eq!(users.check("alice", "two", HERE).await, Login::Wrong);
    assert_eq!(users.check("bob", "four", HERE).await, Login::Right);
}

/// Looks whether the pair is remembered as a wrong one.
fn is_known_wrong(users: &Htpasswd, name: &str, password: &str) -> bool {
    let loaded = users.loaded.lock().unwrap();
    let pair = users.attempts.pair(name, password, loaded.users.hashes.get(name));
    users.attempts.wrong.contains_key(&pair)
}

/// A repeated wrong pair costs no bcrypt, until the user's line changes.
#[tokio::test]
async fn wrong_pairs_are_remembered() {
    let file = file(&[("alice", "one")]);
    let users = Arc::new(Htpasswd::load_with(file.path(), b"key", Duration::ZERO).unwrap());
    for (name, password) in [("alice", "two"), ("bob", "three")] {
        assert!(!is_known_wrong(&users, name, password));
        assert_eq!(users.check(name, password, HERE).await, Login::Wrong);
        assert!(is_known_wrong(&users, name, password));
        assert_eq!(users.check(name, password, HERE).await, Login::Wrong);
    }
    write(&file, &[("alice", "two"), ("bob", "three")]);
    assert_eq!(users.check("alice", "two", HERE).await, Login::Right);
    assert_eq!(users.check("bob", "three", HERE).await, Login::Right);
    assert_eq!(users.check("alice", "one", HERE).await, Login::Wrong);
}

/// Both memories are bounded, and what was right is not driven out by what was wrong.
#[tokio::test]
async fn memory_is_bounded() {
    let file = file(&[("alice", "one")]);
    let users = Arc::new(Htpasswd::load(file.path(), b"key").unwrap());
    assert_eq!(users.check("alice", "one", HERE).await, Login::Right);
    for number in 0..2 * MAX_REMEMBERED {
        let pair = users.attempts.pair("alice", &number.to_string(), None);
        users.attempts.wrong.insert(pair, ());
    }
    users.attempts.wrong.run_pending_tasks();
    assert!(users.attempts.wrong.entry_count() <= MAX_REMEMBERED);
    assert!(users.remembers("alice", "one"));
}

/// A reload forgets neither pairs nor queues.
#[tokio::test]
async fn another_configuration_goes_on_with_what_is_known() {
    let file = file(&[("alice", "one")]);
    let load = || Htpasswd::load(file.path(), b"key").unwrap();
    let before = Arc::new(load());
    assert_eq!(before.check("alice", "one", HERE).await, Login::Right);
    assert_eq!(before.check("alice", "two", HERE).await, Login::Wrong);
    let after = load().remembering(&before);
    assert!(after.remembers("alice", "one") && is_known_wrong(&after, "alice", "two"));
    assert!(Arc::ptr_eq(&after.attempts.turns, &before.attempts.turns));
}

/// One login that many requests bring at once is checked once, and one that nobody waits for does not hold up others.
#[tokio::test]
async fn the_same_login_is_checked_once() {
    let file = file(&[("alice", "one")]);
    let users = Arc::new(Htpasswd::load(file.path(), b"key").unwrap());
    let pair = users
        .attempts
        .pair("alice", "one", users.loaded.lock().unwrap().users.hashes.get("alice"));
    let (first, _) = users.attempts.join((HERE, pair));
    let first = first.unwrap();
    let all: Vec<_> = (0..300)
        .map(|_| {
            let users = users.clone();
            tokio::spawn(async move { users.check("alice", "one", HERE).await })
        })
        .collect();
    tokio::task::yield_now().await;
    assert_eq!(users.attempts.running.lock().unwrap().len(), 1);
    // The one that they follow goes away: another leads.
    drop(first);
    for login in all {
        assert_eq!(login.await.unwrap(), Login::Right);
    }
    assert!(users.attempts.running.lock().unwrap().is_empty());
}

/// A full queue does not keep a known right login waiting.
#[tokio::test]
async fn too_many_at_once_are_told_so() {
    let file = file(&[("alice", "one")]);
    let tight = Limits {
        waiting: 2,
        per_client: 1,
        ..Limits::for_cores(1)
    };
    let mut users = Htpasswd::load(file.path(), b"key").unwrap();
    users.attempts = Arc::new(Attempts::new(b"key", tight));
    let users = Arc::new(users);
    let turns = users.attempts.turns.clone();
    assert_eq!(users.check("alice", "one", HERE).await, Login::Right);
    let [one, two] = [1, 2].map(|n| Client::of(Some([127, 0, 0, n].into())));
    let running = (turns.wait(one).await.unwrap(), turns.wait(two).await.unwrap());
    let later: Vec<_> = [one, HERE]
        .map(|client| {
            let turns = turns.clone();
            tokio::spawn(async move { turns.wait(client).await.is_some() })
        })
        .into_iter()
        .collect();
    tokio::task::yield_now().await;
    assert_eq!(users.check("alice", "two", HERE).await, Login::Busy);
    assert_eq!(users.check("alice", "one", HERE).await, Login::Right);
    drop(running);
    for waited in later {
        assert!(waited.await.unwrap());
    }
    assert_eq!(users.check("alice", "two", HERE).await, Login::Wrong);
}

/// A login that nothing depends on waits for nobody, is remembered all the same, and is not held against its client.
#[tokio::test]
async fn a_login_that_is_not_needed_waits_for_nobody() {
    let file = file(&[("alice", "one")]);
    let users = Arc::new(Htpasswd::load(file.path(), b"key").unwrap());
    let turns = users.attempts.turns.clone();
    let other = Client::of(Some([127, 0, 0, 9].into()));
    let busy = turns.wait(other).await.unwrap();
    for password in ["one", "two"] {
        assert_eq!(users.check_if_idle("alice", password, HERE).await, None);
    }
    drop(busy);
    assert_eq!(users.check_if_idle("alice", "one", HERE).await, Some(Login::Right));
    for number in 0..5 {
        // Each waits until the one before is paid off.
        while users.check_if_idle("hub", &number.to_string(), HERE).await.is_none() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(is_known_wrong(&users, "hub", &number.to_string()));
    }
    let _busy = turns.wait(other).await.unwrap();
    assert!(users.remembers("alice", "one"));
    assert_eq!(users.check_if_idle("alice", "one", HERE).await, Some(Login::Right));
    assert_eq!(users.check_if_idle("hub", "1", HERE).await, Some(Login::Wrong));
    assert!(!turns.has_record_of(HERE));
}

/// A wrong login costs the work of the file's highest cost, whoever it is for: counted in processor time, the known
/// user with the cheap hash, the one with the dear hash and the unknown one are alike.
#[test]
fn no_user_shows_in_the_time() {
    let time = |hash: Option<&str>| {
        let attempt = Attempt {
            pair: [0; 32],
            password: Secret::new("wrong"),
            hash: hash.map(Secret::new),
            cost: 9,
        };
        let measure = || {
            let before = thread_time();
            assert!(!attempt.verify());
            thread_time() - before
        };
        (0..5).map(|_| measure()).min().unwrap().as_secs_f64()
    };
    let cheap = bcrypt::hash("right", 4).unwrap();
    let dear = bcrypt::hash("right", 9).unwrap();
    let unknown = time(None);
    for known in [time(Some(&cheap)), time(Some(&dear))] {
        assert!((0.7..1.4).contains(&(known / unknown)), "{known} {unknown}");
    }
}

proptest::proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,200}", lines in proptest::collection::vec("[a-z:$2y./0-9]{0,80}", 0..5)) {
        let _ = Users::parse(&text);
        let _ = Users::parse(&lines.join("\n"));
        let _ = pair(&text);
    }

    #[test]
    fn what_is_written_is_read(name in "[a-z][a-z0-9._@-]{0,20}", kind in 0usize..3, cost in 4u32..=17, rest in "[./A-Za-z0-9]{53}") {
        let kind = ["2a", "2b", "2y"][kind];
        let users = Users::parse(&format!("{name}:${kind}${cost:02}${rest}\n")).unwrap();
        proptest::prop_assert_eq!(users.cost, cost);
        proptest::prop_assert!(users.hashes.contains_key(&name));
    }
}
