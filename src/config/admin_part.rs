//! The way to the admin API, read out of a configuration that is refused: a mistake elsewhere in it must not keep
//! operators from the proxy that runs.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use super::error::Problem;
use super::file::Origins;
use super::findings::Findings;
use super::paths::Paths;
use super::raw::Raw;
use super::{Admin, Listen, keys, settle};

/// The tables that are read where a file as a whole cannot be.
pub const TABLES: [&str; 2] = ["admin", "acme"];

/// The settings of the admin API that could be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminPart {
    pub admin: Admin,
    /// The first name of the certificate that Larder gets for itself.
    pub acme_name: Option<String>,
    /// `None`: it could not be read.
    pub cache: Option<PathBuf>,
    /// True if the file was read to its end. Else it may name another address than the one that is here.
    pub is_whole: bool,
    /// True if somebody gave the address, and it could be read; else it is the built-in one.
    pub is_given: bool,
    /// True if a mistake may be why the address is not given: nothing says that the built-in one is meant.
    pub is_doubtful: bool,
    /// The mistakes in `[admin]` itself.
    pub problems: Vec<String>,
}

/// The state of a configuration whose admin API is looked for.
pub(super) struct Reading<'a> {
    /// False if the file could not be read to its end.
    pub(super) is_whole: bool,
    /// True if a value of `admin.listen` was read. An origin alone is none: the key may have a value that does not fit.
    pub(super) has_listen: bool,
    /// The mistakes that were found when the values were read.
    pub(super) problems: &'a [Problem],
}

/// True for a mistake in `[admin]`, or in the name of that table.
fn is_about_admin(problem: &Problem) -> bool {
    match problem.key.as_slice() {
        [table] => table == "admin" || keys::nearest(&problem.key).is_some_and(|meant| meant == "admin"),
        [table, ..] => table == "admin",
        [] => false,
    }
}

impl AdminPart {
    /// Takes values that fit their keys, and are not judged otherwise.
    pub(super) fn of(raw: &Raw, origins: &Origins, paths: &Paths<'_>, reading: &Reading<'_>) -> AdminPart {
        let is_whole = reading.is_whole;
        let mut findings = Findings {
            origins,
            paths,
            problems: Vec::new(),
            warnings: Vec::new(),
        };
        let mut admin = settle::admin(&mut findings, raw, &[]);
        // One for each key: what follows from it would only repeat it.
        findings.problems.dedup_by(|next, before| next.key == before.key);
        let problems = findings.problems.iter().map(ToString::to_string).collect();
        let is_given = !admin.listen.is_empty() && reading.has_listen;
        let has_problems = !findings.problems.is_empty() || reading.problems.iter().any(is_about_admin);
        let is_doubtful = !is_given && (!is_whole || has_problems);
        if admin.listen.is_empty() {
            admin.listen = vec![Listen::Tcp(SocketAddr::new(
                IpAddr::V4(Ipv4Addr::LOCALHOST),
                DEFAULT_PORT,
            ))];
        }
        let before = findings.problems.len();
        let cache = match &raw.cache.path {
            Some(text) => Some(findings.path(&["cache", "path"], text)),
            None => paths.default_cache().ok(),
        };
        AdminPart {
            admin,
            acme_name: raw.acme.names.first().cloned(),
            cache: cache.filter(|_| is_whole && findings.problems.len() == before),
            is_whole,
            is_given,
            is_doubtful,
            problems,
        }
    }
}

/// The port of `admin.listen` where nobody chose another.
const DEFAULT_PORT: u16 = 5001;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::{Config, Password};

    fn part(text: &str) -> AdminPart {
        let error = Config::from_toml(text).unwrap_err();
        error.admin().unwrap().clone()
    }

    fn listens(part: &AdminPart) -> Vec<String> {
        part.admin.listen.iter().map(ToString::to_string).collect()
    }

    const ADMIN: &str = "[admin]\nlisten = \"127.0.0.1:7001\"\ntoken = \"a-token-of-operators\"\n";

    #[test]
    fn mistakes_elsewhere_hide_nothing_of_it() {
        for (before, behind) in [
            ("[cashe]\n", ""),
            ("", "[cache]\nmax_size = \"lots\"\n"),
            ("[server]\nlisten = 5\n", "[upstream.\"a.io\"]\nurl = \"ftp://x\"\n"),
            // No TOML at all, before and behind it.
            ("[cache]\nmax_size = 10GiB\n", ""),
            ("[cache]\nmax_size = \"10GiB\nmin_free = 1\n", ""),
            ("", "[cache\nmax_size = 1\n"),
            ("", "[cache]\npath = /var/lib\n"),
            ("[log]\n", "[log]\n"),
        ] {
            let text = format!("{before}{ADMIN}{behind}");
            let part = part(&text);
            assert_eq!(listens(&part), ["127.0.0.1:7001"], "{text}");
            assert!(part.is_given && part.problems.is_empty(), "{text}");
            assert!(
                matches!(&part.admin.token, Some(Password::Value(token)) if token.reveal() == "a-token-of-operators"),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_wrong_with_it_is_told_and_the_built_in_address_stands_in() {
        let wrong = part("[admin]\nlisten = \"127.0.0.1\"\ntoken_file = \"/nonexistent/token\"\n");
        assert_eq!(listens(&wrong), ["127.0.0.1:5001"]);
        assert!(!wrong.is_given && wrong.is_whole);
        assert_eq!(wrong.problems.len(), 2, "{:?}", wrong.problems);
        assert!(
            wrong.problems[1].contains("admin.token_file: cannot read /nonexistent/token"),
            "{:?}",
            wrong.problems
        );
        let absent = part("[cashe]\n");
        assert_eq!(listens(&absent), ["127.0.0.1:5001"]);
        assert!(!absent.is_given && absent.is_whole && absent.problems.is_empty());
        let default = Config::default_config().unwrap();
        assert_eq!(absent.admin.listen, default.admin.listen);
    }

    /// A mistake in the address itself: the built-in one stands in, and is no word of anybody's.
    #[test]
    fn a_mistake_in_the_address_makes_it_doubtful() {
        let token = "token = \"a-token-of-operators\"\n";
        for (text, is_whole) in [
            // The quotes are missing, before and behind the token.
            (format!("[admin]\nlisten = 127.0.0.1:7001\n{token}"), false),
            (format!("[admin]\n{token}listen = 127.0.0.1:7001\n"), false),
            (format!("[admin]\n{token}[cache]\nmax_size = 10GiB\n"), false),
            (format!("[admin]\nlistn = \"127.0.0.1:7001\"\n{token}"), true),
            (format!("[admin]\nlisten = 7001\n{token}"), true),
            (format!("[admin]\nlisten = \"127.0.0.1:70010\"\n{token}"), true),
            (format!("[admin]\nlisten = \"unxi:/run/a.sock\"\n{token}"), true),
            (format!("[admni]\nlisten = \"127.0.0.1:7001\"\n[admin]\n{token}"), true),
        ] {
            let part = part(&text);
            assert_eq!(listens(&part), ["127.0.0.1:5001"], "{text}");
            assert_eq!(
                (part.is_given, part.is_doubtful, part.is_whole),
                (false, true, is_whole),
                "{text}"
            );
        }
        // A mistake elsewhere says nothing against the built-in address.
        let elsewhere = part(&format!("[cashe]\n[admin]\n{token}"));
        assert!(!elsewhere.is_given && !elsewhere.is_doubtful);
        // A mistake in another key of the table leaves the address as it was given.
        let other = part(&format!("{ADMIN}tkn = 1\n"));
        assert!(other.is_given && !other.is_doubtful);
    }

    proptest! {
        /// Whatever stands in a file: there is an address, and nothing panics.
        #[test]
        fn any_text_leaves_an_address(text: String, cut in 0usize..120) {
            let torn: String = format!("[cache]\nmax_size = \"1GiB\"\n{ADMIN}").chars().take(cut).collect();
            for text in [text.clone(), format!("{ADMIN}{text}"), format!("{torn}{text}")] {
                if let Err(error) = Config::from_toml(&text) {
                    prop_assert!(error.admin().is_some_and(|part| !part.admin.listen.is_empty()));
                }
            }
        }
    }
}
