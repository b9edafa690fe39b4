//! What `[listener.…]` and `[access]` may say, and how they are refused.

use proptest::prelude::*;

use super::*;

fn problems(text: &str) -> Vec<String> {
    match Config::from_toml(text) {
        Ok(_) => Vec::new(),
        Err(error) => error.problems().iter().map(ToString::to_string).collect(),
    }
}

fn refused(text: &str, wants: &str) {
    let found = problems(text);
    assert!(
        found.iter().any(|problem| problem.contains(wants)),
        "{text}: {found:#?}"
    );
}

#[test]
fn listeners() {
    let config = Config::from_toml(
        "[listener.b]\nlisten = [\"127.0.0.1:6002\", \"unix:/run/larder/x.sock\"]\n[listener.a]\nlisten = \"[::1]:6001\"\n",
    );
    let listeners = config.unwrap().listeners;
    assert_eq!(listeners[0].name, "a");
    assert_eq!(
        listeners[1].listen.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["unix:/run/larder/x.sock", "127.0.0.1:6002"]
    );
    for (text, wants) in [
        (
            "[listener.main]\nlisten = \"127.0.0.1:1\"",
            "listener.main: that is what the listener of [server] is called",
        ),
        (
            "[listener.A]\nlisten = \"127.0.0.1:1\"",
            "listener.A: found \"A\", expected a word",
        ),
        ("[listener.a]", "listener.a: expected listen"),
        ("[listener.a]\nlisten = []", "listener.a.listen: found an empty list"),
        (
            "[listener.a]\nlisten = \"127.0.0.1:5000\"",
            "taken by another listener (127.0.0.1:5000)",
        ),
        (
            "[listener.a]\nlisten = \"127.0.0.1:5001\"",
            "taken by another listener (127.0.0.1:5001)",
        ),
        (
            "[listener.a]\nlisten = \"unix:/x\"\n[listener.b]\nlisten = \"unix:/x\"",
            "listener.b.listen: found unix:/x, which is taken",
        ),
        (
            "[server]\nlisten = \"unix:/x\"",
            "a Unix socket takes a [listener.NAME] of its own",
        ),
        (
            "[listener.a]\nlisten = \"x\"\nlissten = 1",
            "did you mean listener.a.listen?",
        ),
        (
            "[listener.a]\nlisten = \"127.0.0.1:1\"\ntls = { cert = \"/nowhere\" }",
            "listener.a.tls.cert: cannot read /nowhere",
        ),
    ] {
        refused(text, wants);
    }
}

#[test]
fn rules() {
    let config = Config::from_toml(
        r#"
        [listener.dockerd]
        listen = "127.0.0.1:6001"
        [access]
        token_ttl = "60s"
        realm = "https://larder.example/token"
        [[access.rule]]
        who = ["alice", "github:acme/*"]
        from = ["10.0.0.0/8", "::1"]
        listeners = "dockerd"
        images = ["docker.io/library/*", "*/base"]
        may = "pull-held"
        private = true
        [[access.rule]]
        may = "nothing"
        "#,
    );
    let rules: Vec<String> = config.unwrap().access.rules.iter().map(ToString::to_string).collect();
    assert_eq!(
        rules,
        [
            "alice, github:acme/* from 10.0.0.0/8, ::1/128 on dockerd: docker.io/library/*, */base → pull-held, private too",
            "*: every image → nothing",
        ]
    );
    let rule = |text: &str| format!("[[access.rule]]\nmay = \"fetch\"\n[[access.rule]]\n{text}\n");
    for (text, wants) in [
        (
            "who = \"a\"",
            "proxy.toml:3: access.rule.2.may: found nothing at all, expected \"nothing\"",
        ),
        (
            "may = \"pull\"",
            "proxy.toml:4: access.rule.2.may: found \"pull\", expected",
        ),
        ("may = \"fetch\"\nwho = []", "access.rule.2.who: found an empty list"),
        ("may = \"fetch\"\nwho = [\"\"]", "access.rule.2.who: found \"\""),
        (
            "may = \"fetch\"\nfrom = \"10.0.0.1/8\"",
            "access.rule.2.from: found \"10.0.0.1/8\", expected an address or a range",
        ),
        ("may = \"fetch\"\nfrom = \"here\"", "access.rule.2.from: found \"here\""),
        (
            "may = \"fetch\"\nlisteners = \"dockerd\"",
            "access.rule.2.listeners: found \"dockerd\"",
        ),
        (
            "may = \"fetch\"\nimages = \"library/*\"",
            "an upstream before the first slash",
        ),
        (
            "may = \"fetch\"\nimages = \"hub/library/*\"",
            "the upstream's own name before the first slash, docker.io",
        ),
        ("may = \"fetch\"\nimages = \"docker.io/Library\"", "in lower case"),
        (
            "may = \"fetch\"\nprivat = true",
            "access.rule.2.privat: there is no such key; did you mean access.rule.2.private?",
        ),
        (
            "may = \"fetch\"\nprivate = \"yes\"",
            "access.rule.2.private: found \"yes\", expected true or false",
        ),
    ] {
        refused(&rule(text), wants);
    }
    for (text, wants) in [
        (
            "[access]\nrule = \"x\"",
            "access.rule: found \"x\", expected tables in double brackets",
        ),
        (
            "[access]\ntoken_ttl = \"59s\"",
            "access.token_ttl: found \"59s\", expected something from 1m to 1h",
        ),
        ("[access]\nrealm = \"larder/token\"", "access.realm: found"),
        (
            "[access]\nhtpasswd_file = \"/nowhere\"",
            "access.htpasswd_file: cannot read /nowhere",
        ),
    ] {
        refused(text, wants);
    }
}

#[test]
fn issuers() {
    let issuer = |text: &str| format!("[access.oidc.gh]\n{text}\n");
    let whole = "issuer = \"https://i\"\naudience = \"a\"\njwks_url = \"https://i/jwks\"\n";
    let access = Config::from_toml(&issuer(whole)).unwrap();
    assert_eq!(access.access.issuers[0].identity, "sub");
    assert!(
        access.warnings.iter().any(|w| w.contains("without rules")),
        "{:?}",
        access.warnings
    );
    let wide = format!(
        "{}[[access.rule]]\nwho = \"authenticated\"\nmay = \"fetch\"\nprivate = true\n",
        issuer(whole)
    );
    let warnings = Config::from_toml(&wide).unwrap().warnings;
    assert!(warnings.iter().any(|w| w.contains("access.rule.1.who")), "{warnings:?}");
    for (text, wants) in [
        (
            "issuer = \"x\"\njwks_url = \"https://x\"",
            "access.oidc.gh.audience: expected it",
        ),
        (
            "audience = \"x\"\njwks_url = \"https://x\"",
            "access.oidc.gh.issuer: expected it",
        ),
        (
            "issuer = \"x\"\naudience = \"x\"",
            "access.oidc.gh.jwks_url: expected the address",
        ),
        (
            "issuer = \"x\"\naudience = \"x\"\njwks_url = \"http://x.example\"",
            "that begins with https://",
        ),
    ] {
        refused(&issuer(text), wants);
    }
    refused("[access.oidc.cert]\nissuer = \"x\"", "not cert");
}

#[test]
fn by_variables() {
    let environment = |name: &str, value: &str| {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(
            folder.path().join("proxy.toml"),
            "[listener.dockerd]\nlisten = \"127.0.0.1:1\"\n",
        )
        .unwrap();
        let environment = Environment {
            variables: [(name.to_owned(), value.to_owned())].into(),
            cwd: folder.path().to_owned(),
            home: Some(folder.path().to_owned()),
            etc: folder.path().to_owned(),
            run: PathBuf::new(),
        };
        Config::load(None, &environment)
    };
    let config = environment("LARDER_LISTENER__DOCKERD__LISTEN", "127.0.0.1:2").unwrap();
    assert_eq!(config.listeners[0].listen[0].port(), Some(2));
    let config = environment("LARDER_ACCESS__TOKEN_TTL", "10m").unwrap();
    assert_eq!(config.access.token_ttl.as_secs(), 600);
    let config = environment("LARDER_LISTENER__OTHER__LISTEN", "127.0.0.1:2").unwrap();
    assert_eq!((config.listeners.len(), config.warnings.len()), (1, 1));
}

#[test]
fn patterns() {
    for (pattern, text, fits) in [
        ("*", "", true),
        ("*", "a/b", true),
        ("a*c", "abbc", true),
        ("a*c", "abbcd", false),
        ("*/base", "a/b/base", true),
        ("a**b", "ab", true),
        ("", "", true),
        ("", "a", false),
        ("a", "ab", false),
        ("*ab*ab", "abab", true),
        ("*ab*ab", "aba", false),
    ] {
        assert_eq!(matches_pattern(pattern, text), fits, "{pattern} {text}");
    }
    // In no time, whatever the text.
    assert!(!matches_pattern(&"a*".repeat(50), &"a".repeat(49)));
    assert!(!matches_pattern(&format!("{}b", "a*".repeat(50)), &"a".repeat(250)));
}

proptest! {
    /// Whatever stands there is understood or refused with its place, and never a panic.
    #[test]
    fn any_access_is_read_or_refused(
        key in "who|from|listeners|images|may|private|x",
        value in r#""[^"\\\n]{0,30}"|true|7|\[\]|\["[a-z*/:.0-9]{0,20}"\]"#,
        section in r"\[\[access\.rule\]\]|\[access\]|\[access\.oidc\.gh\]|\[listener\.a\]|\[access\.rule\]",
    ) {
        let text = format!("{section}\nmay = \"fetch\"\n{key} = {value}\n");
        if let Err(error) = Config::from_toml(&text) {
            prop_assert!(!error.problems().is_empty());
        }
    }

    /// The quick matcher says what the obvious one does.
    #[test]
    fn patterns_match_as_they_should(pattern in "[ab*/]{0,8}", text in "[ab/]{0,8}") {
        fn obvious(pattern: &str, text: &str) -> bool {
            match pattern.split_once('*') {
                None => pattern == text,
                Some((head, tail)) => text
                    .strip_prefix(head)
                    .is_some_and(|rest| (0..=rest.len()).any(|at| obvious(tail, &rest[at..]))),
            }
        }
        prop_assert_eq!(matches_pattern(&pattern, &text), obvious(&pattern, &text));
    }
}
