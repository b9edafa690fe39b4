//! What an operator should know about the listeners that ask for a login (R-C31).

use super::policy::Policy;
use crate::config::{Config, MAIN_LISTENER};

/// Sentences; none where there is nothing to say.
pub fn hints(config: &Config) -> Vec<String> {
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
}
