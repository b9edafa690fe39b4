use super::*;

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
    assert_eq!(users.check("alice", "one").await, Login::Right);
    assert!(users.remembers("alice", "one") && !users.remembers("alice", "two"));
    assert_eq!(users.check("alice", "two").await, Login::Wrong);
    assert_eq!(users.check("alice", "").await, Login::Wrong);
    assert_eq!(users.check("bob", "one").await, Login::Wrong);
    assert!(!users.remembers("bob", "one") && !users.remembers("alice", "two"));
}

/// A change counts, a bad one does not, and what was remembered of an old hash is gone with it.
#[tokio::test]
async fn read_again() {
    let file = file(&[("alice", "one")]);
    let users = Arc::new(Htpasswd::load_with(file.path(), b"key", Duration::ZERO).unwrap());
    assert_eq!(users.check("alice", "one").await, Login::Right);
    write(&file, &[("alice", "two"), ("bob", "three")]);
    assert_eq!(users.check("alice", "one").await, Login::Wrong);
    assert_eq!(users.check("alice", "two").await, Login::Right);
    std::fs::write(file.path(), "alice:no hash at all").unwrap();
    assert_eq!(users.check("bob", "three").await, Login::Right);
    std::fs::remove_file(file.path()).unwrap();
    assert_eq!(users.check("bob", "three").await, Login::Right);
    write(&file, &[("bob", "four")]);
    assert_eq!(users.check("alice", "two").await, Login::Wrong);
    assert_eq!(users.check("bob", "four").await, Login::Right);
}

#[tokio::test]
async fn too_many_at_once_are_told_so() {
    let file = file(&[("alice", "one")]);
    let users = Arc::new(Htpasswd::load(file.path(), b"key").unwrap());
    let all = users.waiting.acquire_many(MAX_WAITING as u32).await.unwrap();
    assert_eq!(users.check("alice", "one").await, Login::Busy);
    drop(all);
    assert_eq!(users.check("alice", "one").await, Login::Right);
    // Who was right is not kept waiting.
    let _all = users.waiting.acquire_many(MAX_WAITING as u32).await.unwrap();
    assert_eq!(users.check("alice", "one").await, Login::Right);
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
