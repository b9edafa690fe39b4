//! What differs between two configurations, for people: by key or by what has a name. No value is told that could be a secret.

use std::collections::BTreeSet;

use crate::config::Config;

/// A key that takes a restart, as it is and as it is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fixed {
    pub key: &'static str,
    /// What holds.
    pub holds: String,
    pub wanted: String,
}

/// Keys that are not as they were: `cache.max_size`, `upstream.docker.io`, `listener.ci (new)`.
pub(super) fn between(old: &Config, new: &Config) -> Vec<String> {
    // Their Debug shows all that they are, but for secrets, which are compared.
    macro_rules! differ {
        ($($key:literal: $($field:ident).+),* $(,)?) => {
            [$(($key, format!("{:?}", old.$($field).+) != format!("{:?}", new.$($field).+))),*]
        };
    }
    let keys = differ! {
        "server.listen": server.listen,
        "server.tls": server.tls,
        "server.shutdown_grace": server.shutdown_grace,
        "server.server_timing": server.server_timing,
        "server.trusted_proxies": server.trusted_proxies,
        "admin.listen": admin.listen,
        "admin.tls": admin.tls,
        "cache.path": cache.path,
        "cache.max_size": cache.max_size,
        "cache.min_free": cache.min_free,
        "cache.tag_ttl": cache.tag_ttl,
        "cache.negative_ttl": cache.negative_ttl,
        "cache.stale_if_error": cache.stale_if_error,
        "cache.default_upstream": cache.default_upstream,
        "cache.offline": cache.offline,
        "log.level": log.level,
        "log.format": log.format,
        "limits": limits,
        "audit": audit,
        "bundle": bundle,
        "access": access,
    };
    let keys = keys.into_iter().filter(|(_, differs)| *differs);
    let mut all: Vec<String> = keys.map(|(key, _)| key.to_owned()).collect();
    // These hold secrets.
    let secrets = [
        ("admin.token", old.admin.token != new.admin.token),
        ("traces", old.traces != new.traces),
        ("acme", old.acme != new.acme),
    ];
    all.extend(
        secrets
            .iter()
            .filter(|(_, differs)| *differs)
            .map(|(key, _)| (*key).to_owned()),
    );
    let name = |upstream: &crate::config::Upstream| upstream.name.to_string();
    all.extend(named("upstream", &old.upstreams, &new.upstreams, name));
    all.extend(named("listener", &old.listeners, &new.listeners, |l| l.name.clone()));
    all.extend(named("webhook", &old.webhooks, &new.webhooks, |w| w.name.clone()));
    all.extend(named("prefetch", &old.prefetch, &new.prefetch, |p| p.name.clone()));
    all
}

/// Of things that have names: those that changed, came and went.
fn named<T: PartialEq>(section: &str, old: &[T], new: &[T], name: impl Fn(&T) -> String) -> Vec<String> {
    let names: BTreeSet<String> = old.iter().chain(new).map(&name).collect();
    let find = |list: &'_ [T], wanted: &str| list.iter().position(|item| name(item) == wanted);
    let tell = |wanted: String| match (find(old, &wanted), find(new, &wanted)) {
        (Some(before), Some(after)) if old[before] == new[after] => None,
        (Some(_), Some(_)) => Some(format!("{section}.{wanted}")),
        (None, _) => Some(format!("{section}.{wanted} (new)")),
        (_, None) => Some(format!("{section}.{wanted} (gone)")),
    };
    names.into_iter().filter_map(tell).collect()
}

/// Keys that nobody can change while the process runs, and that are not as they hold. `given`: whether the sockets of
/// `[server]` and of `[admin]` came from outside.
pub(super) fn fixed(old: &Config, new: &Config, given: (bool, bool)) -> Vec<Fixed> {
    let mut all = Vec::new();
    let mut compare = |key, holds: String, wanted: String| {
        if holds != wanted {
            all.push(Fixed { key, holds, wanted });
        }
    };
    let path = |config: &Config| config.cache.path.display().to_string();
    compare("cache.path", path(old), path(new));
    let format = |config: &Config| format!("{:?}", config.log.format).to_ascii_lowercase();
    compare("log.format", format(old), format(new));
    // Whole sections, with secrets in them.
    for (key, differs) in [("traces", old.traces != new.traces), ("acme", old.acme != new.acme)] {
        if differs {
            compare(key, "as at the start".to_owned(), "as it is written now".to_owned());
        }
    }
    fn list<T: ToString>(addresses: &[T]) -> String {
        let texts: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        texts.join(", ")
    }
    let (registry, admin) = given;
    if registry && old.server.listen != new.server.listen {
        let holds = "the sockets that systemd opened".to_owned();
        compare("server.listen", holds, list(&new.server.listen));
    }
    if admin && old.admin.listen != new.admin.listen {
        let holds = "the sockets that systemd opened".to_owned();
        compare("admin.listen", holds, list(&new.admin.listen));
    }
    all
}

/// The new configuration as it holds: what takes a restart is as it was, so that it is told again by the next reload.
pub(super) fn as_it_holds(old: &Config, new: Config, given: (bool, bool)) -> Config {
    let mut holds = new;
    holds.cache.path.clone_from(&old.cache.path);
    holds.log.format = old.log.format;
    holds.traces.clone_from(&old.traces);
    holds.acme.clone_from(&old.acme);
    if given.0 {
        holds.server.listen.clone_from(&old.server.listen);
    }
    if given.1 {
        holds.admin.listen.clone_from(&old.admin.listen);
    }
    holds
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Config {
        Config::from_toml(text).unwrap()
    }

    /// What the texts for operators say of restarts is what a reload does.
    #[test]
    fn texts_name_the_keys_that_need_a_restart() {
        let old = of("");
        let new = of(
            "[server]\nlisten = \"127.0.0.1:1\"\nshutdown_grace = 1\nserver_timing = true\ntrusted_proxies = [\"10.0.0.1\"]\n\
             [admin]\nlisten = \"127.0.0.1:2\"\ntoken = \"sixteen-letters!\"\n\
             [cache]\npath = \"/two\"\nmax_size = \"1G\"\nmin_free = 0\ntag_ttl = 1\nnegative_ttl = 1\nstale_if_error = 1\n\
             default_upstream = \"ghcr.io\"\noffline = true\n\
             [log]\nlevel = \"debug\"\nformat = \"json\"\n[limits]\nheaders = 7\nmanifest_size = \"1MiB\"\n\
             [audit]\nfile = \"/audit\"\n[bundle]\ntrusted_keys = [\"RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3\"]\n\
             [traces]\nendpoint = \"http://127.0.0.1:4318\"\n[access]\ntoken_ttl = 60\n[[access.rule]]\nmay = \"fetch\"\n\
             [listener.ci]\nlisten = \"127.0.0.1:3\"\ntls = { acme = true }\n\
             [acme]\naccept_terms = true\nnames = [\"larder.example\"]\n\
             [upstream.\"a.example\"]\n[[prefetch]]\nname = \"a\"\nimages = [\"alpine\"]\nschedule = \"0 0 * * *\"\n\
             [webhook.ci]\nurl = \"https://hook.example\"\n",
        );
        let fixed = fixed(&old, &new, (false, false)).into_iter().map(|fixed| fixed.key);
        let fixed: BTreeSet<String> = fixed.map(str::to_owned).collect();
        // Nothing of the new one is forgotten here.
        let changed = between(&old, &new);
        let sections: BTreeSet<&str> = changed.iter().filter_map(|key| key.split('.').next()).collect();
        assert_eq!(sections, crate::config::section_names().collect(), "{changed:?}");

        // `cache.path` and `[traces]` as keys, whatever quotes are around them.
        let keys = |text: &str| -> BTreeSet<String> {
            let words = text.split([' ', ',', '`', '\n']).map(|word| word.trim_end_matches('.'));
            let key = |word: &str| match word.strip_prefix('[').and_then(|word| word.strip_suffix(']')) {
                Some(section) => Some(section.to_owned()),
                None => word.contains('.').then(|| word.to_owned()),
            };
            words.filter_map(key).collect()
        };
        let example = include_str!("../../proxy.toml.example");
        let line = example
            .lines()
            .find_map(|line| line.split_once("What needs a restart: "));
        assert_eq!(keys(line.unwrap().1), fixed);

        let chapter = include_str!("../../docs/configuration.md");
        let section = chapter.split_once("### What needs a restart\n").unwrap().1;
        let sentence = section.split_once(", and the addresses of sockets").unwrap().0;
        assert_eq!(keys(sentence), fixed);
        let mut at = "";
        let mut marked = BTreeSet::new();
        for line in chapter.split_once("## All keys\n").unwrap().1.lines() {
            if let Some(heading) = line.strip_prefix("### ") {
                at = heading.trim_matches(['[', ']']);
            } else if line.contains("All keys need a restart") {
                marked.insert(at.to_owned());
            } else if line.contains("Needs a restart") {
                marked.insert(format!("{at}.{}", line.split('`').nth(1).unwrap()));
            }
        }
        assert_eq!(marked, fixed);
    }

    #[test]
    fn what_differs_is_named() {
        let old = of("[upstream.\"a.example\"]\npassword = \"one\"\nusername = \"u\"\n[upstream.\"b.example\"]\n");
        assert!(between(&old, &old).is_empty());
        let new = of(
            "[server]\nlisten = \"127.0.0.1:5002\"\n[cache]\ntag_ttl = \"1m\"\n[upstream.\"a.example\"]\n\
             password = \"two\"\nusername = \"u\"\n[upstream.\"c.example\"]\n\
             [listener.ci]\nlisten = \"127.0.0.1:5003\"\n",
        );
        let found = between(&old, &new);
        for key in [
            "server.listen",
            "cache.tag_ttl",
            "upstream.a.example",
            "upstream.b.example (gone)",
            "upstream.c.example (new)",
            "listener.ci (new)",
        ] {
            assert!(found.iter().any(|found| found == key), "{key} in {found:?}");
        }
        assert!(!found.join(" ").contains("two"));
    }

    #[test]
    fn what_takes_a_restart_is_told_until_there_is_one() {
        let old = of("[cache]\npath = \"/one\"\n");
        let new = of("[server]\nlisten = \"127.0.0.1:5002\"\n[cache]\npath = \"/two\"\n[log]\nformat = \"json\"\n");
        let told = |old: &Config, given| -> Vec<(&str, String, String)> {
            let all = fixed(old, &new, given).into_iter();
            all.map(|fixed| (fixed.key, fixed.holds, fixed.wanted)).collect()
        };
        let path = ("cache.path", "/one".to_owned(), "/two".to_owned());
        let format = ("log.format", "text".to_owned(), "json".to_owned());
        assert_eq!(told(&old, (false, false)), [path.clone(), format.clone()]);
        let holds = as_it_holds(&old, new.clone(), (false, false));
        assert_eq!(told(&holds, (false, false)), [path, format]);
        assert_eq!(holds.server.listen, new.server.listen);
        let given = told(&old, (true, true));
        assert_eq!((given.len(), given[2].0), (3, "server.listen"));
    }
}
