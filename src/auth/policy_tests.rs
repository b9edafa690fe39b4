use super::*;
use crate::config::Config;

fn policy(rules: &str) -> Policy {
    let text = format!("[listener.dockerd]\nlisten = \"127.0.0.1:5002\"\n{rules}");
    Policy::new(&Config::from_toml(&text).unwrap().access)
}

fn rights(policy: &Policy, who: &str, from: &str, listener: &str, image: &str) -> (Right, Right) {
    let who: Identity = (!who.is_empty()).then(|| who.into());
    let place = Place {
        listener,
        from: from.parse().ok(),
    };
    let right = |needs_credentials| {
        policy.right(&Asked {
            who: &who,
            place,
            image,
            needs_credentials,
        })
    };
    (right(false), right(true))
}

const ALPINE: &str = "docker.io/library/alpine";
use Right::{Fetch, Held, Nothing};

#[test]
fn without_rules() {
    let policy = policy("");
    assert_eq!(rights(&policy, "", "10.0.0.1", "main", ALPINE), (Fetch, Nothing));
    assert_eq!(rights(&policy, "alice", "10.0.0.1", "main", ALPINE), (Fetch, Fetch));
    assert_eq!(rights(&policy, "cert:node-1", "", "main", ALPINE), (Fetch, Fetch));
    // An issuer vouches for everybody.
    assert_eq!(rights(&policy, "github:evil/x", "", "main", ALPINE), (Fetch, Nothing));
    assert!(
        policy.is_open("main")
            && policy.is_default()
            && policy.gains_by_login(Place {
                listener: "main",
                from: None
            })
    );
}

#[test]
fn the_first_that_matches_decides() {
    let policy = policy(
        r#"
        [[access.rule]]
        images = "ghcr.io/secret/*"
        may = "nothing"
        [[access.rule]]
        who = ["alice", "github:acme/*"]
        may = "fetch"
        private = true
        [[access.rule]]
        listeners = "dockerd"
        from = ["10.0.0.0/8", "::1"]
        images = "docker.io/*"
        may = "pull-held"
        "#,
    );
    // A rule that allows nothing holds for what needs credentials too.
    assert_eq!(
        rights(&policy, "alice", "10.0.0.1", "dockerd", "ghcr.io/secret/a"),
        (Nothing, Nothing)
    );
    assert_eq!(rights(&policy, "alice", "1.1.1.1", "main", ALPINE), (Fetch, Fetch));
    assert_eq!(rights(&policy, "github:acme/app", "", "main", ALPINE), (Fetch, Fetch));
    assert_eq!(rights(&policy, "github:acme", "", "main", ALPINE), (Nothing, Nothing));
    assert_eq!(rights(&policy, "", "10.9.9.9", "dockerd", ALPINE), (Held, Nothing));
    assert_eq!(
        rights(&policy, "bob", "::ffff:10.9.9.9", "dockerd", ALPINE),
        (Held, Nothing)
    );
    assert_eq!(rights(&policy, "", "::1", "dockerd", ALPINE), (Held, Nothing));
    assert_eq!(rights(&policy, "", "11.0.0.1", "dockerd", ALPINE), (Nothing, Nothing));
    assert_eq!(rights(&policy, "", "10.0.0.1", "main", ALPINE), (Nothing, Nothing));
    // Who comes by a Unix socket comes from no address.
    assert_eq!(rights(&policy, "", "", "dockerd", ALPINE), (Nothing, Nothing));
    assert_eq!(
        rights(&policy, "", "10.0.0.1", "dockerd", "quay.io/a/b"),
        (Nothing, Nothing)
    );
    assert!(!policy.is_open("main") && !policy.is_open("dockerd"));
    let at = |listener, from: &str| Place {
        listener,
        from: from.parse().ok(),
    };
    assert!(policy.may_let_in(&None, at("dockerd", "10.0.0.1")));
    assert!(!policy.may_let_in(&None, at("main", "10.0.0.1")));
    assert!(policy.may_let_in(&Some("alice".into()), at("main", "10.0.0.1")));
}

#[test]
fn explained() {
    let policy = policy(
        r#"
        [[access.rule]]
        who = "bob"
        may = "fetch"
        [[access.rule]]
        who = "*"
        images = ["docker.io/library/*", "quay.io/*"]
        from = "10.0.0.0/8"
        may = "fetch"
        [[access.rule]]
        who = "authenticated"
        may = "pull-held"
        private = true
        "#,
    );
    let who: Identity = Some("alice".into());
    let explained = policy.explain(&Asked {
        who: &who,
        place: Place {
            listener: "main",
            from: "10.0.0.1".parse().ok(),
        },
        image: ALPINE,
        needs_credentials: true,
    });
    let lines: Vec<String> = explained.steps.iter().map(ToString::to_string).collect();
    assert_eq!(
        lines,
        [
            "1. bob: every image → fetch: it is for somebody else",
            "2. * from 10.0.0.0/8: docker.io/library/*, quay.io/* → fetch: the repository needs credentials, and the rule does not say private = true",
            "3. authenticated: every image → pull-held, private too: matches",
        ]
    );
    assert_eq!(explained.right, Held);
}

#[test]
fn what_is_open_to_all() {
    for (rules, open, gains) in [
        ("[[access.rule]]\nmay = \"fetch\"", true, false),
        ("[[access.rule]]\nmay = \"pull-held\"", false, false),
        ("[[access.rule]]\nfrom = \"10.0.0.0/8\"\nmay = \"fetch\"", false, false),
        ("[[access.rule]]\nwho = \"anonymous\"\nmay = \"fetch\"", false, false),
        (
            "[[access.rule]]\nlisteners = \"dockerd\"\nmay = \"fetch\"",
            false,
            false,
        ),
        (
            "[[access.rule]]\nlisteners = \"dockerd\"\nmay = \"nothing\"\n[[access.rule]]\nmay = \"fetch\"",
            true,
            false,
        ),
        (
            "[[access.rule]]\nwho = \"a\"\nmay = \"fetch\"\nprivate = true\n[[access.rule]]\nmay = \"fetch\"",
            true,
            true,
        ),
        (
            "[[access.rule]]\nmay = \"fetch\"\nprivate = true\n[[access.rule]]\nwho = \"a\"\nmay = \"fetch\"",
            true,
            false,
        ),
        (
            "[[access.rule]]\nimages = \"docker.io/x/*\"\nmay = \"nothing\"\n[[access.rule]]\nmay = \"fetch\"",
            false,
            false,
        ),
    ] {
        let policy = policy(rules);
        assert_eq!(
            (
                policy.is_open("main"),
                policy.gains_by_login(Place {
                    listener: "main",
                    from: None
                })
            ),
            (open, gains),
            "{rules}"
        );
    }
}

proptest::proptest! {
    /// Open means that whoever asks gets everything public; the short way may not give more than the rules.
    #[test]
    fn open_is_never_more_than_the_rules(
        rules in proptest::collection::vec((0usize..4, 0usize..2, 0usize..3, 0usize..2, 0usize..3, proptest::bool::ANY), 0..5),
        who in 0usize..3,
        from in 0usize..3,
        image in 0usize..2,
    ) {
        let rules: Vec<String> = rules
            .into_iter()
            .map(|(who, from, listener, image, may, private)| {
                let who = ["*", "anonymous", "authenticated", "alice"][who];
                let from = ["", "from = \"10.0.0.0/8\"\n"][from];
                let listener = ["", "listeners = \"main\"\n", "listeners = \"dockerd\"\n"][listener];
                let image = ["", "images = \"docker.io/library/*\"\n"][image];
                let may = ["nothing", "pull-held", "fetch"][may];
                format!("[[access.rule]]\nwho = \"{who}\"\n{from}{listener}{image}may = \"{may}\"\nprivate = {private}\n")
            })
            .collect();
        let policy = policy(&rules.concat());
        let who = ["", "alice", "bob"][who];
        let from = ["", "10.1.1.1", "9.9.9.9"][from];
        let image = [ALPINE, "quay.io/a/b"][image];
        let (public, private) = rights(&policy, who, from, "main", image);
        if policy.is_open("main") {
            proptest::prop_assert_eq!(public, Fetch);
        }
        let identity: Identity = (!who.is_empty()).then(|| who.into());
        let place = Place { listener: "main", from: from.parse().ok() };
        if public.max(private) > Nothing {
            proptest::prop_assert!(policy.may_let_in(&identity, place));
        }
        // Whoever has more than nobody has, has it by a login that was asked for.
        let (nobody, nobodys) = rights(&policy, "", from, "main", image);
        if public > nobody || private > nobodys {
            proptest::prop_assert!(policy.gains_by_login(place));
        }
    }
}
