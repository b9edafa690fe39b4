//! What an operator should know about the listeners that ask for a login (R-C31), and about credentials of upstreams that
//! open nothing to anybody.

use super::basic;
use super::policy::Policy;
use crate::config::{Config, MAIN_LISTENER, May, Upstream, pattern_may_begin};

/// Most of its images are public: credentials are there for the rate limit.
const DOCKER_HUB: &str = "docker.io";

/// Sentences; none where there is nothing to say. Blocking, briefly: it may read the password file.
pub fn hints(config: &Config) -> Vec<String> {
    let mut all = of_listeners(config);
    let unused = unused_credentials(config).into_iter();
    all.extend(unused.filter(|unused| unused.is_for_limit).map(|unused| {
        let name = unused.upstream.name.as_str();
        format!(
            "{name} has credentials, and no caller can pull {}. If they are for the rate limit only, nothing has to be done",
            unused.what()
        )
    }));
    all
}

/// An upstream whose credentials get content that no caller may pull.
pub struct UnusedCredentials<'a> {
    pub upstream: &'a Upstream,
    /// True if they are likely to be there for the rate limit, which they raise for public content too.
    pub is_for_limit: bool,
    has_rules: bool,
}

impl UnusedCredentials<'_> {
    /// Names the content, says what becomes of it, and which rule opens it; for people.
    pub fn what(&self) -> String {
        let login = match self.has_rules {
            true => "",
            false => ", and a login to this proxy (access.htpasswd_file, tls.client_ca) needs no rule",
        };
        format!(
            "what needs its credentials: it is refused to everybody, with 404 where there are no logins. A rule with \
             private = true and may = \"fetch\" opens it to the callers that it names{login}"
        )
    }
}

/// The upstreams whose private content the policy gives to nobody, whoever he is. With rules, one has to say so; without, a
/// password or a client certificate of this proxy's is enough. Blocking, briefly: it may read the password file.
pub fn unused_credentials(config: &Config) -> Vec<UnusedCredentials<'_>> {
    let has_rules = !config.access.rules.is_empty();
    let is_open = |upstream: &Upstream| {
        let prefix = format!("{}/", upstream.name);
        config.access.rules.iter().any(|rule| {
            let is_about = rule.images.is_empty() || rule.images.iter().any(|one| pattern_may_begin(one, &prefix));
            is_about && rule.private && rule.may != May::Nothing
        })
    };
    let has_credentials = |upstream: &&Upstream| {
        upstream.credentials.is_some() || upstream.lender.is_some() || upstream.client_cert.is_some()
    };
    let all: Vec<&Upstream> = config.upstreams.iter().filter(has_credentials).collect();
    if all.is_empty() || (!has_rules && knows_own_names(config)) {
        return Vec::new();
    }
    let unused = all.into_iter().filter(|upstream| !is_open(upstream));
    unused
        .map(|upstream| UnusedCredentials {
            upstream,
            is_for_limit: upstream.name.as_str() == DOCKER_HUB && upstream.client_cert.is_none(),
            has_rules,
        })
        .collect()
}

/// True if a caller can have a name that this proxy's operator vouches for: the built-in rules give such callers private
/// content. An issuer of tokens gives no such name. A password file that cannot be read counts as one with users.
pub fn knows_own_names(config: &Config) -> bool {
    let further = config.listeners.iter().filter_map(|listener| listener.tls.as_ref());
    let mut tls = config.server.tls.iter().chain(further);
    let has_users = |path| basic::users(path).map_or(true, |users| !users.is_empty());
    config.access.token_key_file.is_some()
        || tls.any(|tls| tls.client_ca.is_some())
        || config.access.htpasswd_file.as_deref().is_some_and(has_users)
}

fn of_listeners(config: &Config) -> Vec<String> {
    let policy = Policy::new(&config.access);
    let main = (MAIN_LISTENER, config.server.tls.as_ref());
    let further = config.listeners.iter().map(|one| (one.name.as_str(), one.tls.as_ref()));
    let all: Vec<_> = std::iter::once(main).chain(further).collect();
    if all.iter().any(|(name, _)| policy.serves_anonymous(name)) {
        return Vec::new();
    }
    let closed = all
        .iter()
        .filter(|(_, tls)| tls.is_none_or(|tls| tls.client_ca.is_none()));
    closed
        .map(|(name, _)| {
            format!(
                "every pull from the listener {name} takes a login, and a Docker daemon never sends one to its registry-mirrors: \
                 give daemons a [listener.NAME] of their own, on loopback or with a rule for their addresses (from), or one with \
                 client certificates (tls.client_ca)"
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_where_no_daemon_could_pull() {
        let count = |text: &str| hints(&Config::from_toml(text).unwrap()).len();
        assert_eq!(count(""), 0);
        let alone = "[[access.rule]]\nwho = \"authenticated\"\nmay = \"fetch\"\n";
        assert_eq!(count(alone), 1);
        let listener = "[listener.dockerd]\nlisten = \"127.0.0.1:5002\"\n";
        assert_eq!(count(&format!("{listener}{alone}")), 2);
        let rule = "[[access.rule]]\nlisteners = \"dockerd\"\nmay = \"fetch\"\n";
        assert_eq!(count(&format!("{listener}{alone}{rule}")), 0);
    }

    #[test]
    fn credentials_of_docker_hub_that_open_nothing() {
        let hub = "[upstream.\"docker.io\"]\nusername = \"me\"\npassword = \"hunter2\"\n";
        let told = |text: &str| hints(&Config::from_toml(text).unwrap());
        let all = told(hub);
        assert!(
            all.len() == 1 && all[0].starts_with("docker.io has credentials, and no caller can pull"),
            "{all:?}"
        );
        let rule = |more: &str| format!("{hub}[[access.rule]]\nmay = \"fetch\"\n{more}");
        assert_eq!(told(&rule("")).len(), 1);
        assert_eq!(told(&rule("private = true\n")).len(), 0);
        assert_eq!(told(&rule("private = true\nimages = \"ghcr.io/*\"\n")).len(), 1);
        assert_eq!(told(&rule("private = true\nimages = \"docker.io/acme/*\"\n")).len(), 0);
        assert_eq!(told("[upstream.\"docker.io\"]\ntag_ttl = \"1m\"\n").len(), 0);
    }
}
