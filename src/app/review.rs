//! Finds settings that are possible and hardly meant: `check-config` warns of them, beside what loading noticed.
//!
//! `rules` looks at who may pull, `machine` at the disk and the paths of this machine. Nothing is changed, bound or
//! contacted. A warning begins with the place and the key, as a refusal does.

mod machine;
mod rules;

pub use machine::User;

use crate::config::{Config, show_key};
use crate::pull::Names;

/// The warnings about one configuration.
struct Review<'a> {
    config: &'a Config,
    warnings: Vec<String>,
}

/// Everything, in the order in which it is shown. Blocking, briefly: it looks at files.
pub fn review(config: &Config) -> Vec<String> {
    let mut review = Review {
        config,
        warnings: Vec::new(),
    };
    for (key, place, variable) in &config.covered {
        review
            .warnings
            .push(format!("{variable}: {key}: covers the value of the file ({place})"));
    }
    machine::check(&mut review);
    rules::check(&mut review);
    check_shares(&mut review);
    check_aliases(&mut review);
    check_prefetches(&mut review);
    review.warnings
}

impl Review<'_> {
    fn is_given(&self, key: &[&str]) -> bool {
        self.config.origins.contains_key(&show_key(key))
    }

    /// `message` is a sentence without its full stop.
    fn warn(&mut self, key: &[&str], message: impl std::fmt::Display) {
        let origins = &self.config.origins;
        // A key that is missing has the place of its table.
        let place = (1..=key.len())
            .rev()
            .find_map(|end| origins.get(&show_key(&key[..end])));
        let place = place.map_or("default", String::as_str);
        self.warnings.push(format!("{place}: {}: {message}", show_key(key)));
    }
}

fn check_shares(review: &mut Review<'_>) {
    let config = review.config;
    let all = config.cache.max_size;
    for upstream in &config.upstreams {
        if upstream.max_size.is_some_and(|share| share > all) {
            let key = ["upstream", upstream.name.as_str(), "max_size"];
            review.warn(&key, "is more than cache.max_size, and limits nothing");
        }
    }
}

/// An alias is the first component of names, and so hides what the default upstream has under that component. Nobody
/// knows what that is, but for what is named in the configuration itself.
fn check_aliases(review: &mut Review<'_>) {
    let config = review.config;
    let default = config.cache.default_upstream.as_str();
    let allowed = config
        .upstreams
        .iter()
        .find(|upstream| upstream.name.as_str() == default);
    let allowed = allowed.map_or(&[][..], |upstream| upstream.allow.as_slice());
    for upstream in config.upstreams.iter().filter(|one| one.name.as_str() != default) {
        for alias in &upstream.aliases {
            let below = format!("{alias}/");
            let hidden = format!("{default}/{below}");
            let patterns = config.access.rules.iter().flat_map(|rule| &rule.images);
            let ruled = patterns.filter(|pattern| pattern.starts_with(&hidden)).cloned();
            let named = allowed.iter().filter(|pattern| pattern.starts_with(&below));
            let named = named.map(|pattern| format!("{default}/{pattern}"));
            if let Some(pattern) = ruled.chain(named).next() {
                let key = ["upstream", upstream.name.as_str(), "aliases"];
                review.warn(
                    &key,
                    format!(
                        "{alias:?} hides {pattern}, which the configuration names: a client that asks for {alias}/… gets it from {}",
                        upstream.name
                    ),
                );
            }
        }
    }
}

fn check_prefetches(review: &mut Review<'_>) {
    let config = review.config;
    let Some(names) = Names::new(config) else { return };
    for prefetch in &config.prefetch {
        // A list that cannot be read is a problem of its own, and shown beside the prefetch.
        let wanted = prefetch.wanted().unwrap_or_default();
        let targets = wanted.iter().filter_map(|one| names.resolve(&one.name, None).ok());
        let offline = targets.filter(|target| target.upstream.offline).count();
        if offline > 0 {
            review.warn(
                &["prefetch"],
                format!(
                    "{:?} wants images of upstreams that are offline ({offline} of its {} lines): they are not fetched",
                    prefetch.name,
                    wanted.len()
                ),
            );
        }
    }
}

#[cfg(test)]
pub(super) fn of(text: &str) -> Vec<String> {
    review(&Config::from_toml(text).unwrap())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Leaves out warnings about this machine.
    fn without_machine(text: &str) -> Vec<String> {
        let mut all = of(text);
        all.retain(|warning| !warning.contains(": cache."));
        all
    }

    #[track_caller]
    fn one(text: &str, wants: &str) {
        let all = without_machine(text);
        assert!(all.len() == 1 && all[0].contains(wants), "{wants}\n{all:#?}");
    }

    #[test]
    fn nothing_is_wrong_with_the_defaults() {
        assert_eq!(without_machine(""), [""; 0]);
    }

    #[test]
    fn shares_aliases_and_prefetches() {
        one(
            "[cache]\nmax_size = \"1GiB\"\n[upstream.\"ghcr.io\"]\nmax_size = \"2GiB\"\n",
            "proxy.toml:4: upstream.\"ghcr.io\".max_size: is more than cache.max_size",
        );
        let own = "[upstream.\"own.example\"]\naliases = [\"acme\"]\n";
        assert_eq!(without_machine(own), [""; 0]);
        one(
            &format!(
                "{own}[[access.rule]]\nimages = [\"docker.io/acme/*\"]\nmay = \"fetch\"\n[[access.rule]]\nmay = \"fetch\"\n"
            ),
            "proxy.toml:2: upstream.\"own.example\".aliases: \"acme\" hides docker.io/acme/*",
        );
        one(
            &format!("{own}[upstream.\"docker.io\"]\nallow = [\"acme/app\"]\n"),
            "hides docker.io/acme/app",
        );
        let prefetch =
            "[[prefetch]]\nname = \"night\"\nimages = [\"alpine:3\", \"ghcr.io/a/b:1\"]\nschedule = \"30 2 * * *\"\n";
        assert_eq!(without_machine(prefetch), [""; 0]);
        one(
            &format!("{prefetch}[upstream.\"ghcr.io\"]\noffline = true\n"),
            "\"night\" wants images of upstreams that are offline (1 of its 2 lines)",
        );
    }
}
