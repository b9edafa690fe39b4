//! Rules that match nobody, or never match; and upstreams that no rule opens.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::Review;
use crate::auth::{basic, bearer, unused_credentials};
use crate::config::{AccessRule, Config, May, Upstream, matches_pattern, pattern_may_begin};

pub(super) fn check(review: &mut Review<'_>) {
    let config = review.config;
    let logins = Logins::of(config);
    let users = check_files(review);
    for (at, rule) in config.access.rules.iter().enumerate() {
        let number = (at + 1).to_string();
        let who = ["access", "rule", number.as_str(), "who"];
        for name in &rule.who {
            if let Err(why) = logins.give(name) {
                review.warn(&who, format!("{name:?} matches nobody: {why}"));
            } else if let Some(users) = &users
                && is_user(name)
                && !logins.shared_key
                && !users.contains(name)
            {
                review.warn(
                    &who,
                    format!("{name:?} matches nobody: access.htpasswd_file has no such user"),
                );
            }
        }
        let earlier = &config.access.rules[..at];
        if let Some(before) = earlier.iter().position(|earlier| covers(earlier, rule)) {
            review.warn(
                &["access", "rule", number.as_str()],
                format!(
                    "never matches: rule {} comes before it, and matches all that it does",
                    before + 1
                ),
            );
        }
    }
    if !config.access.rules.is_empty() {
        for upstream in &config.upstreams {
            check_upstream(review, upstream);
        }
    }
    // Of Docker Hub's there is a hint: nobody who has them for its rate limit would know how to end a warning.
    for unused in unused_credentials(config).iter().filter(|unused| !unused.is_for_limit) {
        let name = unused.upstream.name.as_str();
        if is_closed(config, name) {
            continue;
        }
        review.warn(&["upstream", name], format!("no caller can pull {}", unused.what()));
    }
}

/// Files that a proxy reads at its start, and refuses to start without. Returns the users of the password file.
fn check_files(review: &mut Review<'_>) -> Option<BTreeSet<String>> {
    let config = review.config;
    let access = &config.access;
    if let Some(path) = &access.token_key_file
        && let Err(why) = bearer::Mint::from_file(path, access.token_ttl)
    {
        review.warn(
            &["access", "token_key_file"],
            format!("the proxy will not start: {}: {why}", path.display()),
        );
    }
    let users = basic::users(access.htpasswd_file.as_deref()?);
    users
        .map_err(|error| {
            review.warn(
                &["access", "htpasswd_file"],
                format!("the proxy will not start: {error}"),
            )
        })
        .ok()
}

/// Returns true for the name of one user of the password file.
fn is_user(name: &str) -> bool {
    !name.contains([':', '*']) && !matches!(name, "anonymous" | "authenticated")
}

/// The ways to have a name here.
struct Logins<'a> {
    passwords: bool,
    /// Tokens that another proxy with the same key has given out, to whomever that knows.
    shared_key: bool,
    certificates: bool,
    issuers: Vec<&'a str>,
}

impl Logins<'_> {
    fn of(config: &Config) -> Logins<'_> {
        let further = config.listeners.iter().filter_map(|listener| listener.tls.as_ref());
        let mut tls = config.server.tls.iter().chain(further);
        Logins {
            passwords: config.access.htpasswd_file.is_some(),
            shared_key: config.access.token_key_file.is_some(),
            certificates: tls.any(|tls| tls.client_ca.is_some()),
            issuers: config
                .access
                .issuers
                .iter()
                .map(|issuer| issuer.name.as_str())
                .collect(),
        }
    }

    /// Errors: why nobody can be what a rule calls so.
    fn give(&self, name: &str) -> Result<(), String> {
        let is_any = self.passwords || self.shared_key || self.certificates || !self.issuers.is_empty();
        match name {
            "*" | "anonymous" => return Ok(()),
            _ if self.shared_key => return Ok(()),
            _ if !is_any => {
                return Err(
                    "there is neither access.htpasswd_file nor [access.oidc.NAME] nor tls.client_ca to log in by"
                        .to_owned(),
                );
            }
            "authenticated" => return Ok(()),
            _ => {}
        }
        let mut prefixes = self.issuers.iter().map(|issuer| format!("{issuer}:"));
        let is_password = self.passwords && !name.contains(':');
        let is_certificate = self.certificates && pattern_may_begin(name, "cert:");
        if is_password || is_certificate || prefixes.any(|prefix| pattern_may_begin(name, &prefix)) {
            return Ok(());
        }
        Err(match name.split_once(':') {
            None => "there is no access.htpasswd_file".to_owned(),
            Some(("cert", _)) => "no listener has a tls.client_ca".to_owned(),
            Some((issuer, _)) => format!("there is no [access.oidc.{issuer}]"),
        })
    }
}

/// Returns true only if `earlier` matches every request that `later` matches. A false may be wrong.
fn covers(earlier: &AccessRule, later: &AccessRule) -> bool {
    covers_who(earlier, later)
        && covers_list(&earlier.from, &later.from, |net: &IpNet, inner| net.contains(inner))
        && covers_list(&earlier.listeners, &later.listeners, |one, other| one == other)
        && covers_list(&earlier.images, &later.images, |one, other| matches_pattern(one, other))
        && (is_about_private(earlier) || !is_about_private(later))
}

fn is_about_private(rule: &AccessRule) -> bool {
    rule.private || rule.may == May::Nothing
}

fn covers_who(earlier: &AccessRule, later: &AccessRule) -> bool {
    let has = |word: &str| earlier.who.iter().any(|who| who == word);
    let is_named = |name: &str| !matches!(name, "*" | "anonymous");
    let is_covered = |name: &String| {
        let by_pattern = is_named(name)
            && name != "authenticated"
            && earlier
                .who
                .iter()
                .any(|pattern| is_named(pattern) && pattern != "authenticated" && matches_pattern(pattern, name));
        has("*") || has(name) || by_pattern || (is_named(name) && has("authenticated"))
    };
    later.who.iter().all(is_covered)
}

/// An empty list is no condition.
fn covers_list<T>(earlier: &[T], later: &[T], covers: impl Fn(&T, &T) -> bool) -> bool {
    earlier.is_empty() || (!later.is_empty() && later.iter().all(|inner| earlier.iter().any(|one| covers(one, inner))))
}

/// An upstream that somebody configured, and that nobody may pull from as it was meant.
fn check_upstream(review: &mut Review<'_>, upstream: &Upstream) {
    let config = review.config;
    let name = upstream.name.as_str();
    let key = ["upstream", name];
    if !review.is_given(&key) {
        return;
    }
    if is_closed(config, name) {
        review.warn(&key, "no rule lets anybody pull from it");
    }
}

/// True if there are rules, and none of them lets anybody pull from this upstream.
fn is_closed(config: &Config, name: &str) -> bool {
    let prefix = format!("{name}/");
    let opens = |rule: &AccessRule| {
        let is_about = rule.images.is_empty() || rule.images.iter().any(|pattern| pattern_may_begin(pattern, &prefix));
        is_about && rule.may != May::Nothing
    };
    !config.access.rules.is_empty() && !config.access.rules.iter().any(opens)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::of;
    use super::*;
    use crate::auth::{Asked, Identity, Place, Policy};

    /// Leaves out warnings about this machine.
    fn warnings(text: &str) -> Vec<String> {
        let mut all = of(text);
        all.retain(|warning| !warning.contains(": cache."));
        all
    }

    #[track_caller]
    fn one(text: &str, wants: &str) {
        let all = warnings(text);
        assert!(all.len() == 1 && all[0].contains(wants), "{wants}\n{all:#?}");
    }

    const ALL: &str = "[[access.rule]]\nmay = \"fetch\"\n";
    const OIDC: &str = "[access.oidc.github]\nissuer = \"https://a.example\"\naudience = \"larder\"\njwks_url = \"https://a.example/k\"\n";

    #[test]
    fn rules_for_nobody() {
        let rule = |who: &str| format!("[[access.rule]]\nwho = {who}\nmay = \"fetch\"\n");
        for who in [
            "\"alice\"",
            "\"authenticated\"",
            "\"github:acme/*\"",
            "\"cert:node-1\"",
            "\"a*\"",
        ] {
            one(&rule(who), "proxy.toml:2: access.rule.1.who: ");
            one(&rule(who), "matches nobody: there is neither access.htpasswd_file");
        }
        for who in ["\"*\"", "\"anonymous\"", "[\"anonymous\", \"*\"]"] {
            assert_eq!(warnings(&rule(who)), [""; 0], "{who}");
        }
        for (who, why) in [
            ("\"alice\"", Some("there is no access.htpasswd_file")),
            ("\"a*\"", Some("there is no access.htpasswd_file")),
            ("\"cert:node-1\"", Some("no listener has a tls.client_ca")),
            ("\"gitlab:acme\"", Some("there is no [access.oidc.gitlab]")),
            ("\"github:acme/*\"", None),
            ("\"g*\"", None),
            ("\"authenticated\"", None),
        ] {
            let text = OIDC.to_owned() + &rule(who);
            match why {
                Some(why) => one(&text, why),
                None => assert_eq!(warnings(&text), [""; 0], "{who}"),
            }
        }
    }

    #[test]
    fn users_who_are_not_in_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("users");
        let hash = "$2b$04$......................wJJNXEyFWpTEEcyU7JcYYRfCvtTYPku";
        std::fs::write(&file, format!("alice:{hash}\n")).unwrap();
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let text =
            |who: &str| format!("[access]\nhtpasswd_file = {file:?}\n[[access.rule]]\nwho = {who}\nmay = \"fetch\"\n");
        assert_eq!(warnings(&text("[\"alice\", \"b*\"]")), [""; 0]);
        one(
            &text("[\"alice\", \"bob\"]"),
            "\"bob\" matches nobody: access.htpasswd_file has no such user",
        );
        one(&text("\"github:x\""), "there is no [access.oidc.github]");
        std::fs::write(&file, "alice:plain\n").unwrap();
        one(&text("\"alice\""), "access.htpasswd_file: the proxy will not start: ");
    }

    #[test]
    fn rules_that_never_match() {
        let rules = |first: &str, second: &str| {
            warnings(&format!(
                "[[access.rule]]\n{first}\n[[access.rule]]\n{second}\n[listener.dockerd]\nlisten = \"127.0.0.1:5002\"\n"
            ))
        };
        let fetch = "may = \"fetch\"";
        for (first, second) in [
            ("may = \"fetch\"", "may = \"pull-held\""),
            ("may = \"nothing\"", "may = \"fetch\"\nprivate = true"),
            ("may = \"fetch\"", "may = \"fetch\"\nfrom = \"10.0.0.0/8\""),
            (
                "may = \"fetch\"\nfrom = \"10.0.0.0/8\"",
                "may = \"fetch\"\nfrom = \"10.1.0.0/16\"",
            ),
            (
                "may = \"fetch\"\nimages = \"docker.io/*\"",
                "may = \"pull-held\"\nimages = [\"docker.io/library/*\", \"docker.io/a/b\"]",
            ),
            (
                "may = \"fetch\"\nprivate = true\nlisteners = [\"main\", \"dockerd\"]",
                "may = \"nothing\"\nlisteners = \"main\"\nwho = \"anonymous\"",
            ),
        ] {
            let all = rules(first, second);
            let wants = "access.rule.2: never matches: rule 1 comes before it";
            assert!(
                all.iter().any(|warning| warning.contains(wants)),
                "{first}\n{second}\n{all:#?}"
            );
        }
        for (first, second) in [
            (fetch, "may = \"fetch\"\nprivate = true"),
            // One that allows nothing is about private images too.
            (fetch, "may = \"nothing\"\nwho = \"anonymous\""),
            ("may = \"fetch\"\nwho = \"anonymous\"", fetch),
            (
                "may = \"fetch\"\nfrom = \"10.1.0.0/16\"",
                "may = \"fetch\"\nfrom = \"10.0.0.0/8\"",
            ),
            ("may = \"fetch\"\nfrom = \"10.1.0.0/16\"", fetch),
            (
                "may = \"fetch\"\nimages = \"docker.io/library/*\"",
                "may = \"fetch\"\nimages = \"docker.io/*\"",
            ),
            ("may = \"fetch\"\nlisteners = \"main\"", fetch),
        ] {
            assert_eq!(rules(first, second), [""; 0], "{first}\n{second}");
        }
    }

    #[test]
    fn upstreams_that_nobody_may_pull_from() {
        let own = "[upstream.\"own.example\"]\nurl = \"https://own.example\"\n";
        assert_eq!(warnings(&format!("{own}{ALL}")), [""; 0]);
        assert_eq!(warnings(own), [""; 0]);
        let hub = "[[access.rule]]\nimages = \"docker.io/*\"\nmay = \"fetch\"\n";
        one(
            &format!("{own}{hub}"),
            "proxy.toml:1: upstream.\"own.example\": no rule lets anybody pull from it",
        );
        for pattern in ["*/acme/*", "own.example/a/*", "*"] {
            let rule = format!("[[access.rule]]\nimages = {pattern:?}\nmay = \"fetch\"\n");
            assert_eq!(warnings(&format!("{own}{rule}")), [""; 0], "{pattern}");
        }
        let login = "username = \"me\"\npassword = \"hunter2\"\n";
        one(
            &format!("{own}{login}{ALL}"),
            "no caller can pull what needs its credentials",
        );
        assert_eq!(warnings(&format!("{own}{login}{ALL}private = true\n")), [""; 0]);
        assert_eq!(warnings(&format!("[upstream.\"docker.io\"]\n{login}{ALL}")), [""; 0]);
    }

    /// Without rules private content is for callers with a password or a client certificate of this proxy.
    #[test]
    fn credentials_that_nobody_may_use() {
        let own = "[upstream.\"own.example\"]\nurl = \"https://own.example\"\n";
        let login = "username = \"me\"\npassword = \"hunter2\"\n";
        let warning = "upstream.\"own.example\": no caller can pull what needs its credentials";
        one(&format!("{own}{login}"), warning);
        one(&format!("{own}{login}"), "private = true");
        // The identities of a token issuer need a rule, so that an issuer alone opens nothing.
        one(&format!("{own}{login}{OIDC}"), warning);
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let file = folder.path().join(name);
            std::fs::write(&file, text).unwrap();
            std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
            file
        };
        let hash = "$2b$04$......................wJJNXEyFWpTEEcyU7JcYYRfCvtTYPku";
        let (empty, users) = (write("empty", ""), write("users", &format!("alice:{hash}\n")));
        let access = |file: &std::path::Path| format!("[access]\nhtpasswd_file = {file:?}\n");
        one(&format!("{own}{login}{}", access(&empty)), warning);
        assert_eq!(warnings(&format!("{own}{login}{}", access(&users))), [""; 0]);
        // Docker Hub's are there for the rate limit.
        assert_eq!(warnings(&format!("[upstream.\"docker.io\"]\n{login}")), [""; 0]);
        assert_eq!(warnings(&format!("[upstream.\"docker.io\"]\n{login}{OIDC}")), [""; 0]);
    }

    fn a_rule() -> impl Strategy<Value = AccessRule> {
        let pick = |from: &'static [&'static str], most: usize| {
            proptest::sample::subsequence(from, 0..=most)
                .prop_map(|list| list.into_iter().map(str::to_owned).collect::<Vec<_>>())
        };
        let who = pick(&["*", "anonymous", "authenticated", "alice", "a*", "github:x"], 2);
        let from = pick(&["10.0.0.0/8", "10.1.0.0/16", "192.0.2.1/32"], 2);
        let listeners = pick(&["main", "dockerd"], 2);
        let images = pick(
            &["*", "docker.io/*", "docker.io/library/*", "docker.io/library/a", "*/a"],
            2,
        );
        let may = proptest::sample::select(vec![May::Nothing, May::PullHeld, May::Fetch]);
        (who, from, listeners, images, may, any::<bool>()).prop_map(|(who, from, listeners, images, may, private)| {
            AccessRule {
                who: if who.is_empty() { vec!["*".to_owned()] } else { who },
                from: from.iter().map(|net| net.parse().unwrap()).collect(),
                listeners,
                images,
                may,
                private,
            }
        })
    }

    proptest! {
        // One pair of a dozen is such a pair.
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        /// A rule that is reported never to match never does, by the policy that is asked for pulls.
        #[test]
        fn what_never_matches_never_does(earlier in a_rule(), later in a_rule()) {
            if !covers(&earlier, &later) {
                return Ok(());
            }
            let mut access = Config::default_config().unwrap().access;
            access.rules = vec![earlier, later];
            let policy = Policy::new(&access);
            for who in [None, Some("alice"), Some("anna"), Some("github:x"), Some("bob")] {
                let who: Identity = who.map(Into::into);
                for from in ["10.1.2.3", "10.2.3.4", "192.0.2.1", "203.0.113.1"] {
                    for listener in ["main", "dockerd"] {
                        for image in ["docker.io/library/a", "docker.io/b", "ghcr.io/a"] {
                            for needs_credentials in [false, true] {
                                let place = Place { listener, from: from.parse().ok() };
                                let asked = Asked { who: &who, place, image, needs_credentials };
                                let steps = policy.explain(&asked).steps;
                                prop_assert!(steps.iter().all(|step| step.number == 1 || step.miss.is_some()));
                            }
                        }
                    }
                }
            }
        }
    }
}
