//! Keys that the command line sets, as a layer over file and variables: `larder serve --listen :5000`.

use toml::{Table, Value};

use super::environment::insert;
use super::error::{KeyPath, Place};
use super::file::Layer;
use crate::oci::HostPort;

/// A key with the value that an option gave it.
#[derive(Clone, Debug, PartialEq)]
pub struct GivenOption {
    /// As messages name it: `--listen`.
    option: &'static str,
    key: KeyPath,
    value: Value,
}

impl GivenOption {
    /// The value of a key that takes one text.
    pub fn text(option: &'static str, key: [&str; 2], value: &str) -> GivenOption {
        GivenOption {
            option,
            key: key.map(str::to_owned).to_vec(),
            value: Value::from(value),
        }
    }

    /// The value of a key that takes a list.
    pub fn list(option: &'static str, key: [&str; 2], values: &[String]) -> GivenOption {
        GivenOption {
            option,
            key: key.map(str::to_owned).to_vec(),
            value: Value::Array(values.iter().map(|value| Value::from(value.as_str())).collect()),
        }
    }

    /// The address of an upstream.
    pub fn upstream(option: &'static str, name: &HostPort, url: &str) -> GivenOption {
        GivenOption {
            option,
            key: ["upstream", &name.to_string(), "url"].map(str::to_owned).to_vec(),
            value: Value::from(url),
        }
    }
}

/// The layer of `options`; of two for one key the last one counts.
pub(super) fn layer(options: &[GivenOption]) -> Layer {
    let mut layer = Layer::default();
    for given in options {
        insert(&mut layer.values, &given.key, given.value.clone());
        layer.origins.insert(given.key.clone(), Place::Option(given.option));
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
        let name: HostPort = "registry.example:5000".parse().unwrap();
        let config = load(&[
            listen,
            GivenOption::text("--cache", ["cache", "path"], "own"),
            GivenOption::text("--max-size", ["cache", "max_size"], "3G"),
            GivenOption::upstream("--upstream", &name, "https://other.example"),
        ])
        .unwrap();
        let listens: Vec<String> = config.server.listen.iter().map(ToString::to_string).collect();
        assert_eq!(listens, ["[::]:5000", "127.0.0.1:2"]);
        // A path of the command line starts at the current folder, not at the file's.
        assert_eq!(config.cache.path, folder.path().join("elsewhere/own"));
        assert_eq!(config.cache.max_size, 3_000_000_000);
        let upstream = config.upstreams.iter().find(|upstream| upstream.name == name).unwrap();
        assert!(format!("{:?}", upstream.url).contains("other.example"));
        let refused = load(&[
            GivenOption::text("--max-size", ["cache", "max_size"], "much"),
            GivenOption::upstream("--upstream", &name, "ftp://other.example"),
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
}
