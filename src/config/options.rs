//! Keys that the command line sets, as a layer over file and variables: `larder serve --listen :5000`.

use toml::{Table, Value};

use super::environment::insert;
use super::error::{KeyPath, Place, Problem};
use super::file::{Layer, bad_name, quoted};

/// A key with the value that an option gave it.
#[derive(Clone, Debug, PartialEq)]
pub struct GivenOption {
    /// As messages name it: `--listen`.
    option: &'static str,
    /// Empty if the option does not say which one.
    key: KeyPath,
    /// Errors: what was found and what was expected.
    value: Result<Value, String>,
}

impl GivenOption {
    /// The value of a key that takes one text.
    pub fn text(option: &'static str, key: [&str; 2], value: &str) -> GivenOption {
        GivenOption {
            option,
            key: key.map(str::to_owned).to_vec(),
            value: Ok(Value::from(value)),
        }
    }

    /// The value of a key that takes a list.
    pub fn list(option: &'static str, key: [&str; 2], values: &[String]) -> GivenOption {
        GivenOption {
            option,
            key: key.map(str::to_owned).to_vec(),
            value: Ok(Value::Array(
                values.iter().map(|value| Value::from(value.as_str())).collect(),
            )),
        }
    }

    /// The address of an upstream, as `NAME=URL`. Nothing of it is judged before it has its place in the configuration: a
    /// message of the command line's own parser would repeat a password in it.
    pub fn upstream(option: &'static str, text: &str) -> GivenOption {
        let Some((name, url)) = text.split_once('=') else {
            // A URL without a name may carry a secret behind its path.
            let shown = text.split_inclusive(['?', '#']).next().unwrap_or_default();
            let found = match shown.len() < text.len() {
                true => format!("{} and more", quoted(shown)),
                false => quoted(text),
            };
            return GivenOption {
                option,
                key: Vec::new(),
                value: Err(format!(
                    "found {found}, expected NAME=URL, such as registry.example=https://registry.example"
                )),
            };
        };
        let name = name.trim().to_ascii_lowercase();
        let value = match bad_name(&name, &Value::Table(Table::new())) {
            None => Ok(Value::from(url.trim())),
            Some(message) => Err(message),
        };
        GivenOption {
            option,
            // A name that is none may be anything, and is quoted by its message.
            key: match value {
                Ok(_) => ["upstream", &name, "url"].map(str::to_owned).to_vec(),
                Err(_) => Vec::new(),
            },
            value,
        }
    }
}

/// The layer of `options`; of two for one key the last one counts. What is wrong goes to `problems`.
pub(super) fn layer(options: &[GivenOption], problems: &mut Vec<Problem>) -> Layer {
    let mut layer = Layer::default();
    for given in options {
        let place = Place::Option(given.option);
        match &given.value {
            Ok(value) => {
                insert(&mut layer.values, &given.key, value.clone());
                layer.origins.insert(given.key.clone(), place);
            }
            Err(message) => problems.push(Problem {
                place,
                key: given.key.clone(),
                message: message.clone(),
            }),
        }
    }
    layer
}

/// The upstreams that `values` name.
pub(super) fn upstreams(values: &Table) -> impl Iterator<Item = &String> {
    let named = values.get("upstream").and_then(Value::as_table);
    named.into_iter().flat_map(Table::keys)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Environment};

    #[test]
    fn options_win_over_file_and_variables_and_are_named_in_messages() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("proxy.toml");
        std::fs::write(
            &file,
            "[server]\nlisten = \"127.0.0.1:1\"\n[cache]\npath = \"cache\"\nmax_size = \"1GiB\"\n",
        )
        .unwrap();
        let environment = Environment {
            cwd: folder.path().join("elsewhere"),
            variables: [("LARDER_CACHE__MAX_SIZE".to_owned(), "2GiB".to_owned())].into(),
            ..Environment::default()
        };
        let load = |options: &[GivenOption]| Config::load_with(Some(&file), &environment, options);
        let listen = GivenOption::list(
            "--listen",
            ["server", "listen"],
            &[":5000".to_owned(), "127.0.0.1:2".to_owned()],
        );
        let config = load(&[
            listen,
            GivenOption::text("--cache", ["cache", "path"], "own"),
            GivenOption::text("--max-size", ["cache", "max_size"], "3G"),
            GivenOption::upstream("--upstream", "Registry.example:5000=https://other.example"),
        ])
        .unwrap();
        let listens: Vec<String> = config.server.listen.iter().map(ToString::to_string).collect();
        assert_eq!(listens, ["[::]:5000", "127.0.0.1:2"]);
        // A path of the command line starts at the current folder, not at the file's.
        assert_eq!(config.cache.path, folder.path().join("elsewhere/own"));
        assert_eq!(config.cache.max_size, 3_000_000_000);
        let name = "registry.example:5000";
        let mut upstreams = config.upstreams.iter();
        let upstream = upstreams.find(|upstream| upstream.name.as_str() == name).unwrap();
        assert!(format!("{:?}", upstream.url).contains("other.example"));
        let refused = load(&[
            GivenOption::text("--max-size", ["cache", "max_size"], "much"),
            GivenOption::upstream("--upstream", "registry.example:5000=ftp://other.example"),
        ])
        .unwrap_err()
        .to_string();
        assert!(
            refused.contains("--max-size: cache.max_size: found \"much\""),
            "{refused}"
        );
        assert!(
            refused.contains("--upstream: upstream.\"registry.example:5000\".url: "),
            "{refused}"
        );
        assert_eq!(load(&[]).unwrap().cache.max_size, 2 << 30);
    }

    #[test]
    fn a_wrong_upstream_says_what_was_expected_and_shows_no_password() {
        for (text, want) in [
            (
                "registry.example",
                "--upstream: found \"registry.example\", expected NAME=URL",
            ),
            ("https://me:hunter2@r.example", "--upstream: found a text with @ in it"),
            (
                "https://r.example/?hunter2",
                "--upstream: found \"https://r.example/?\" and more",
            ),
            (
                "https://r.example/#hunter2",
                "--upstream: found \"https://r.example/#\" and more",
            ),
            ("=https://r.example", "--upstream: found \"\", expected the host"),
            (
                "word=https://r.example",
                "--upstream: found \"word\", expected the host",
            ),
            ("hub=https://r.example", "--upstream: this is an alias of docker.io"),
            (
                "index.docker.io=https://r.example",
                "--upstream: this is another name of docker.io",
            ),
            (
                "r.example/x=https://r.example",
                "--upstream: found \"r.example/x\", expected the host",
            ),
            (
                "r.example=",
                "--upstream: upstream.\"r.example\".url: found \"\", expected the address",
            ),
            (
                "r.example=r.example",
                "--upstream: upstream.\"r.example\".url: found \"r.example\", expected the address",
            ),
            (
                "r.example=https://me:hunter2@r.example",
                "expected no user or password in it",
            ),
        ] {
            let nowhere = std::path::PathBuf::from("/nonexistent");
            let environment = Environment {
                cwd: nowhere.clone(),
                etc: nowhere.clone(),
                home: Some(nowhere),
                ..Environment::default()
            };
            let refused = Config::load_with(None, &environment, &[GivenOption::upstream("--upstream", text)]);
            let refused = refused.unwrap_err().to_string();
            assert!(
                refused.contains(want) && refused.starts_with("--upstream: "),
                "{text}: {refused}"
            );
            assert!(!refused.contains("hunter2"), "{refused}");
        }
    }
}
