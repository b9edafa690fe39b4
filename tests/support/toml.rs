//! A configuration in the making.

use std::path::Path;

use super::upstream::Upstream;

/// What goes into `proxy.toml`, section by section.
#[derive(Clone)]
pub struct Toml(::toml::Table);

impl Toml {
    /// Small and quick, and no name of the outer world: docker.io is `upstream`.
    pub fn new(cache: &Path, upstream: &Upstream) -> Toml {
        let mut toml = Toml(::toml::Table::new());
        toml.server("listen", "127.0.0.1:0");
        toml.admin("listen", "127.0.0.1:0");
        toml.cache("path", cache.to_str().expect("a path in UTF-8"));
        // The file system that tests run on may be nearly full.
        toml.cache("min_free", "0B");
        toml.upstream("docker.io", "url", upstream.url());
        toml
    }

    pub fn set(&mut self, section: &[&str], key: &str, value: impl Into<::toml::Value>) -> &mut Toml {
        let mut table = &mut self.0;
        for name in section {
            let entry = table.entry(*name).or_insert_with(|| ::toml::Table::new().into());
            table = entry.as_table_mut().expect("a section");
        }
        table.insert(key.to_owned(), value.into());
        self
    }

    /// As if it had never been set.
    pub fn unset(&mut self, section: &[&str], key: &str) -> &mut Toml {
        let mut table = Some(&mut self.0);
        for name in section {
            table = table.and_then(|t| t.get_mut(*name)?.as_table_mut());
        }
        table.and_then(|table| table.remove(key));
        self
    }

    pub fn server(&mut self, key: &str, value: impl Into<::toml::Value>) -> &mut Toml {
        self.set(&["server"], key, value)
    }

    pub fn admin(&mut self, key: &str, value: impl Into<::toml::Value>) -> &mut Toml {
        self.set(&["admin"], key, value)
    }

    pub fn cache(&mut self, key: &str, value: impl Into<::toml::Value>) -> &mut Toml {
        self.set(&["cache"], key, value)
    }

    /// A key of one upstream: `t.upstream("ghcr.io", "url", ghcr.url())`.
    pub fn upstream(&mut self, name: &str, key: &str, value: impl Into<::toml::Value>) -> &mut Toml {
        self.set(&["upstream", name], key, value)
    }

    /// Also what needs credentials, and without a login: for tests about something else.
    pub fn everybody_may_pull(&mut self) -> &mut Toml {
        let rule = ::toml::Table::from_iter([
            ("may".to_owned(), ::toml::Value::from("fetch")),
            ("private".to_owned(), ::toml::Value::from(true)),
        ]);
        self.set(&["access"], "rule", vec![::toml::Value::Table(rule)])
    }

    pub fn remove_upstream(&mut self, name: &str) {
        let upstreams = self.0.get_mut("upstream").and_then(::toml::Value::as_table_mut);
        upstreams.expect("upstreams").remove(name).expect("that upstream");
    }

    pub fn parse(text: &str) -> Toml {
        Toml(text.parse().expect("a configuration in TOML"))
    }

    pub fn text(&self) -> String {
        self.0.to_string()
    }
}
