//! Keys from the files that `aws configure` writes: `~/.aws/credentials` and `~/.aws/config`.
//!
//! The profile is `AWS_PROFILE`'s, else `default`; where both files say something of it, the first wins. Only keys that stand there are
//! taken: a profile that assumes a role, signs on (SSO) or runs a program is refused by name, if it is the one that was asked for.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::super::Variables;
use super::super::sigv4::Keys;
use crate::config::Secret;

/// Largest file, bytes.
const MAX_FILE: u64 = 1 << 20;
const ID: &str = "aws_access_key_id";
const SECRET: &str = "aws_secret_access_key";
/// What says that keys come from elsewhere.
const ELSEWHERE: [&str; 6] = [
    "role_arn",
    "source_profile",
    "credential_process",
    "sso_session",
    "sso_start_url",
    "web_identity_token_file",
];

/// Where to look, and for whom.
#[derive(Debug)]
pub(super) struct Profile {
    name: String,
    /// Somebody asked for it by name.
    pub(super) is_named: bool,
    credentials: Option<PathBuf>,
    config: Option<PathBuf>,
}

impl Profile {
    pub(super) fn of(variables: &Variables) -> Profile {
        let file = |variable: &str, name: &str| {
            let usual = || Some(Path::new(variables.get("HOME")?).join(".aws").join(name));
            variables.get(variable).map(PathBuf::from).or_else(usual)
        };
        Profile {
            name: variables.get("AWS_PROFILE").unwrap_or("default").to_owned(),
            is_named: variables.get("AWS_PROFILE").is_some(),
            credentials: file("AWS_SHARED_CREDENTIALS_FILE", "credentials"),
            config: file("AWS_CONFIG_FILE", "config"),
        }
    }

    /// Its keys; `None` if nobody asked for it and it has none. Blocking.
    ///
    /// Errors: file and line, or what was found and what was expected; no key among it.
    pub(super) fn keys(&self) -> Result<Option<Keys>, String> {
        let section = match &*self.name {
            "default" => "default".to_owned(),
            name => format!("profile {name}"),
        };
        let mut found = read(self.config.as_deref(), &section)?;
        let own = read(self.credentials.as_deref(), &self.name)?;
        match (own, &mut found) {
            (Some(own), Some(found)) => found.extend(own),
            (own, found) => *found = found.take().or(own),
        }
        let name = &self.name;
        let Some(found) = found else {
            return match self.is_named {
                true => Err(format!("AWS_PROFILE: there is no profile {name:?} in {}", self.files())),
                false => Ok(None),
            };
        };
        if let (Some(id), Some(secret)) = (found.get(ID), found.get(SECRET)) {
            return Ok(Some(Keys {
                id: id.reveal().to_owned(),
                secret: secret.clone(),
                session: found.get("aws_session_token").cloned(),
            }));
        }
        if !self.is_named {
            return Ok(None);
        }
        let instead = ELSEWHERE.iter().find(|key| found.contains_key(**key));
        let instead = instead.map_or_else(|| "no keys".to_owned(), |key| (*key).to_owned());
        Err(format!(
            "AWS_PROFILE: profile {name:?} in {} has {instead}, expected {ID} and {SECRET}",
            self.files()
        ))
    }

    fn files(&self) -> String {
        let files: Vec<String> = [&self.credentials, &self.config]
            .into_iter()
            .flatten()
            .map(|path| path.display().to_string())
            .collect();
        match files.is_empty() {
            true => "any file: HOME is not set".to_owned(),
            false => files.join(" or "),
        }
    }
}

pub(in super::super) type Section = BTreeMap<String, Secret>;

/// A section of a file; `None` if either is not there.
fn read(path: Option<&Path>, section: &str) -> Result<Option<Section>, String> {
    let Some(path) = path else { return Ok(None) };
    let shown = path.display();
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("{shown} cannot be read: {error}")),
    };
    let mut text = String::new();
    let read = file.take(MAX_FILE + 1).read_to_string(&mut text);
    read.map_err(|error| format!("{shown} cannot be read: {error}"))?;
    if text.len() as u64 > MAX_FILE {
        return Err(format!("{shown} is larger than 1 MiB"));
    }
    let mut sections = parse(&text).map_err(|(line, what)| format!("{shown}:{line}: {what}"))?;
    Ok(sections.remove(section))
}

/// Sections by name, blanks in it made one. Lines that are indented are part of a setting that is none of ours.
///
/// Errors: the line, from 1, and what is wrong with it; nothing of its text, which may be a secret.
pub(in super::super) fn parse(text: &str) -> Result<BTreeMap<String, Section>, (usize, &'static str)> {
    let mut sections: BTreeMap<String, Section> = BTreeMap::new();
    let mut current: Option<String> = None;
    for (at, line) in text.lines().enumerate() {
        let wrong = |what| Err((at + 1, what));
        if line.trim().is_empty() || line.starts_with(['#', ';', ' ', '\t']) {
            continue;
        }
        if let Some(rest) = line.strip_prefix('[') {
            let Some((name, _)) = rest.split_once(']') else {
                return wrong("expected ] behind the name of a section");
            };
            let name = name.split_whitespace().collect::<Vec<_>>().join(" ");
            sections.entry(name.clone()).or_default();
            current = Some(name);
            continue;
        }
        let Some((key, value)) = line.split_once('=') else {
            return wrong("expected key = value");
        };
        let Some(section) = current.as_ref().and_then(|name| sections.get_mut(name)) else {
            return wrong("expected a [section] before the first key");
        };
        // A comment takes a blank before it: keys hold anything else.
        let value = [" #", " ;", "\t#", "\t;"].iter().fold(value, |value, mark| {
            value.split_once(mark).map_or(value, |(value, _)| value)
        });
        section.insert(key.trim().to_ascii_lowercase(), Secret::new(value.trim()));
    }
    Ok(sections)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn profile(folder: &Path, name: Option<&str>) -> Profile {
        Profile {
            name: name.unwrap_or("default").to_owned(),
            is_named: name.is_some(),
            credentials: Some(folder.join("credentials")),
            config: Some(folder.join("config")),
        }
    }

    #[test]
    fn keys_of_a_profile() {
        let folder = tempfile::tempdir().unwrap();
        let of = |name| profile(folder.path(), name).keys();
        assert!(of(None).unwrap().is_none());
        assert!(of(Some("ci")).err().unwrap().contains("no profile \"ci\""));
        let credentials = "# mine\n[default]\naws_access_key_id = AKIA1\naws_secret_access_key=s/e+c=ret # or so\n\
                           [ci]\nAWS_ACCESS_KEY_ID=AKIA2\naws_secret_access_key = two\naws_session_token = three\n";
        let config = "[profile ci]\nregion = eu-central-1\naws_secret_access_key = other\ns3 =\n  max = 2\n\
                      [profile  people]\nsso_session = acme\n[profile empty]\n";
        std::fs::write(folder.path().join("credentials"), credentials).unwrap();
        std::fs::write(folder.path().join("config"), config).unwrap();
        let keys = of(None).unwrap().unwrap();
        assert_eq!((&*keys.id, keys.secret.reveal()), ("AKIA1", "s/e+c=ret"));
        let keys = of(Some("ci")).unwrap().unwrap();
        assert_eq!((&*keys.id, keys.secret.reveal()), ("AKIA2", "two"));
        assert_eq!(keys.session.unwrap().reveal(), "three");
        let error = of(Some("people")).err().unwrap();
        assert!(error.contains("sso_session") && error.contains(SECRET), "{error}");
        assert!(of(Some("empty")).err().unwrap().contains("no keys"));
        std::fs::write(folder.path().join("config"), "[default]\nhidden-secret\n").unwrap();
        let error = of(None).err().unwrap();
        assert!(error.contains("config:2") && !error.contains("hidden"), "{error}");
    }

    proptest! {
        /// Whatever stands there: no panic, and no error with a line that is not there.
        #[test]
        fn anything_can_be_read(text in "(\\[?[a-z =#;\\]\\t]{0,12}\n){0,12}|\\PC{0,200}") {
            if let Err((line, _)) = parse(&text) {
                prop_assert!(line >= 1 && line <= text.lines().count());
            }
        }

        /// What is written is read.
        #[test]
        fn values_come_back(key in "[a-z_]{1,20}", value in "[A-Za-z0-9/+=#;]{1,40}") {
            let parsed = parse(&format!("[profile x]\n{key} = {value}\n")).unwrap();
            // A mark right behind the blank is a comment.
            if !value.starts_with(['#', ';']) {
                prop_assert_eq!(parsed["profile x"][&key].reveal(), value);
            }
        }
    }
}
