//! Whose credentials a request carries: the configuration's, else those that a helper or a cloud gives out for it, else
//! those of Docker's and podman's login files, which may name a helper in their turn.
//!
//! Files belong to hosts: a login is found by the host of the URL that is dialled, never by the name under which
//! images call it, so that an upstream moved to another address does not take the login along (L7). Of the keys that
//! fit, the most specific wins (R-U61). What is given out is kept by `lease`. A file that is broken costs one warning and is as if it were not there (R-U63).

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use url::Url;

use super::auth_file::{AuthFile, Key, Login};
use super::helper::Helper;
use super::lease::Lease;
use crate::config::{Password, Secret, StaticCredentials};
use crate::oci::Repository;

/// What proves who is asking. Its Debug shows no secret.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Credential {
    Anonymous,
    Basic {
        username: String,
        password: Secret,
    },
    /// An OAuth2 refresh token, exchanged by POST (R-U7).
    Identity {
        username: String,
        token: Secret,
    },
    /// A bearer token that goes to the registry as it is (`registrytoken`).
    Bearer(Secret),
}

impl Credential {
    pub fn is_anonymous(&self) -> bool {
        *self == Credential::Anonymous
    }

    /// The text that no answer may echo into a log.
    pub fn secret(&self) -> Option<&str> {
        match self {
            Credential::Anonymous => None,
            Credential::Basic { password, .. } => Some(password.reveal()),
            Credential::Identity { token, .. } | Credential::Bearer(token) => Some(token.reveal()),
        }
    }
}

/// What the process environment says, read once at the start, so that nothing below depends on global state.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// `$DOCKER_AUTH_CONFIG`: the JSON itself.
    pub inline: Option<Secret>,
    /// Login files, first match first; they need not exist.
    pub files: Vec<PathBuf>,
    pub http_proxy: Option<String>,
    pub https_proxy: Option<String>,
    pub no_proxy: Option<String>,
    /// Where helpers are looked for.
    pub path: Option<String>,
    /// What clouds say to the processes that they run, and operators to programs that speak with clouds.
    pub cloud: BTreeMap<String, Secret>,
}

/// Variables that `cloud` reads: the ones that the clouds' own programs know.
const CLOUD_VARIABLES: [&str; 29] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_CONFIG_FILE",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_DEFAULT_REGION",
    "AWS_EC2_METADATA_DISABLED",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT",
    "AWS_ENDPOINT_URL_ECR",
    "AWS_ENDPOINT_URL_ECR_PUBLIC",
    "AWS_ENDPOINT_URL_STS",
    "AWS_PROFILE",
    "AWS_REGION",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AZURE_AUTHORITY_HOST",
    "AZURE_CLIENT_ID",
    "AZURE_CLIENT_SECRET",
    "AZURE_FEDERATED_TOKEN_FILE",
    "AZURE_POD_IDENTITY_AUTHORITY_HOST",
    "AZURE_TENANT_ID",
    "GCE_METADATA_HOST",
    "GOOGLE_APPLICATION_CREDENTIALS",
    // Where profiles are.
    "HOME",
];

impl Sources {
    /// `var` looks up an environment variable. The order of the files is R-U61's, Docker's own last.
    pub fn from_env(var: impl Fn(&str) -> Option<String>) -> Sources {
        let set = |name: &str| var(name).filter(|v| !v.is_empty());
        let either = |name: &str| set(name).or_else(|| set(&name.to_ascii_lowercase()));
        let home = set("HOME").map(PathBuf::from);
        let files = [
            set("REGISTRY_AUTH_FILE").map(PathBuf::from),
            set("XDG_RUNTIME_DIR").map(|d| Path::new(&d).join("containers/auth.json")),
            home.as_ref().map(|h| h.join(".config/containers/auth.json")),
            set("DOCKER_CONFIG").map(|d| Path::new(&d).join("config.json")),
            home.as_ref().map(|h| h.join(".docker/config.json")),
        ];
        let every = either("ALL_PROXY");
        Sources {
            inline: set("DOCKER_AUTH_CONFIG").map(Secret::new),
            files: files.into_iter().flatten().collect(),
            http_proxy: either("HTTP_PROXY").or_else(|| every.clone()),
            https_proxy: either("HTTPS_PROXY").or(every),
            no_proxy: either("NO_PROXY"),
            path: set("PATH"),
            cloud: CLOUD_VARIABLES
                .iter()
                .filter_map(|name| Some(((*name).to_owned(), Secret::new(set(name)?))))
                .collect(),
        }
    }
}

/// Time and length of a file: another pair means other contents, also behind a swapped symlink (R-U63).
type Stamp = Option<(SystemTime, u64)>;

fn stamp(path: &Path) -> Stamp {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.modified().ok()?, meta.len()))
}

/// How often the files are looked at; a pull asks many times a second.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The login files, shared by every upstream.
#[derive(Debug)]
pub struct Logins {
    inline: Option<AuthFile>,
    paths: Vec<PathBuf>,
    look_again: Duration,
    read: Mutex<Read>,
    /// Where helpers are looked for.
    search: Option<String>,
    /// By helper and host. As many as files name and upstreams have.
    leases: Mutex<HashMap<(String, String), Arc<Lease>>>,
}

#[derive(Debug, Default)]
struct Read {
    looked: Option<Instant>,
    files: Vec<(Stamp, AuthFile)>,
}

impl Logins {
    pub fn new(sources: &Sources) -> Logins {
        Logins::looking_every(sources, LOOK_AGAIN)
    }

    pub fn looking_every(sources: &Sources, look_again: Duration) -> Logins {
        let inline = sources.inline.as_ref();
        Logins {
            inline: inline.map(|text| AuthFile::parse(text.reveal().as_bytes(), "$DOCKER_AUTH_CONFIG")),
            paths: sources.files.clone(),
            look_again,
            read: Mutex::new(Read::default()),
            search: sources.path.clone(),
            leases: Mutex::default(),
        }
    }

    /// What the sources know of `hosts`, first match first; of each the most specific.
    fn find(&self, hosts: &[String], repository: Option<&Repository>) -> Vec<Login> {
        let path = repository.map_or("", Repository::as_str);
        self.look(|file| file.find(hosts, path))
    }

    fn look<T>(&self, find: impl Fn(&AuthFile) -> Option<T>) -> Vec<T> {
        let inline = self.inline.as_ref().and_then(&find);
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if read.looked.is_none_or(|at| at.elapsed() >= self.look_again) {
            read.files.resize_with(self.paths.len(), Default::default);
            for (slot, path) in read.files.iter_mut().zip(&self.paths) {
                let now = stamp(path);
                if slot.0 != now {
                    *slot = (now, load(path));
                }
            }
            read.looked = Some(Instant::now());
        }
        let files = read.files.iter().filter_map(|(_, file)| find(file));
        inline.into_iter().chain(files).collect()
    }

    /// What this helper gives out for this host.
    fn lease(&self, helper: &str, host: &str, is_own: bool) -> Arc<Lease> {
        let mut leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
        let lease = leases
            .entry((helper.to_owned(), host.to_owned()))
            .or_insert_with(|| Arc::new(Lease::of(Helper::new(helper, host, is_own, self.search.clone()))));
        lease.clone()
    }
}

fn load(path: &Path) -> AuthFile {
    let name = path.display().to_string();
    match std::fs::read(path) {
        Ok(bytes) => AuthFile::parse(&bytes, &name),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => AuthFile::default(),
        Err(error) => {
            tracing::warn!(file = name, %error, "cannot read this login file; going on without it");
            AuthFile::default()
        }
    }
}

/// The credentials of one address: an upstream's own, or one mirror's.
#[derive(Debug)]
pub struct Credentials {
    /// The configuration's; they belong to the upstream's own URL only.
    fixed: Option<StaticCredentials>,
    /// Else who gives them out; for the upstream's own URL only, too.
    lender: Option<Arc<Lease>>,
    password_file: Mutex<Option<(Stamp, Secret)>>,
    logins: Arc<Logins>,
    hosts: Vec<String>,
}

/// A credential, and who gave it out, if anybody did: another may be had there.
#[derive(Clone, Debug)]
pub struct Found {
    pub credential: Arc<Credential>,
    pub lease: Option<Arc<Lease>>,
}

impl Found {
    fn lasting(credential: Credential) -> Found {
        Found {
            credential: Arc::new(credential),
            lease: None,
        }
    }
}

impl Credentials {
    /// `lender`, when there is one, is the helper that the configuration names, or a cloud.
    pub fn new(
        fixed: Option<StaticCredentials>,
        lender: Option<Arc<Lease>>,
        logins: Arc<Logins>,
        url: &Url,
    ) -> Credentials {
        Credentials {
            fixed,
            lender,
            password_file: Mutex::new(None),
            logins,
            hosts: hosts(url),
        }
    }

    /// Whether there are any, without reading a password or waiting for who gives them out.
    pub fn are_there(&self, repository: &Repository) -> bool {
        let at_hand = || self.at_hand(Some(repository));
        self.fixed.is_some() || at_hand().is_none_or(|found| !found.is_anonymous())
    }

    /// Waits for a helper or a cloud, if need be.
    ///
    /// Errors: why the password cannot be had, without it.
    pub async fn find(&self, repository: Option<&Repository>) -> Result<Found, String> {
        if let Some(fixed) = &self.fixed {
            return Ok(Found::lasting(self.read(fixed)?));
        }
        let lent = |lease: Arc<Lease>, credential| Found {
            credential,
            lease: Some(lease),
        };
        if let Some(lease) = &self.lender {
            let credential = lease.get().await.map_err(|why| why.to_string())?;
            return Ok(lent(lease.clone(), credential));
        }
        for login in self.logins.find(&self.hosts, repository) {
            let (name, is_own) = match login {
                Login::Here(credential) => return Ok(Found::lasting(credential)),
                Login::Helper { name, is_own } => (name, is_own),
            };
            let lease = self.logins.lease(&name, self.host(), is_own);
            let credential = lease.get().await.map_err(|why| why.to_string())?;
            // It knows nobody there; the next file may.
            if !credential.is_anonymous() {
                return Ok(lent(lease, credential));
            }
        }
        Ok(Found::lasting(Credential::Anonymous))
    }

    /// What [`Credentials::find`] would find, as far as that is known without waiting. `None`: something, but not yet what.
    pub fn at_hand(&self, repository: Option<&Repository>) -> Option<Arc<Credential>> {
        if let Some(fixed) = &self.fixed {
            return self.read(fixed).ok().map(Arc::new);
        }
        if let Some(lease) = &self.lender {
            return lease.last();
        }
        for login in self.logins.find(&self.hosts, repository) {
            match login {
                Login::Here(credential) => return Some(Arc::new(credential)),
                Login::Helper { name, is_own } => {
                    let last = self.logins.lease(&name, self.host(), is_own).last();
                    match last {
                        Some(credential) if credential.is_anonymous() => {}
                        known => return known,
                    }
                }
            }
        }
        Some(Arc::new(Credential::Anonymous))
    }

    fn host(&self) -> &str {
        // The one with the port is first, and helpers are asked as clients name the registry.
        self.hosts.last().map_or("", String::as_str)
    }

    fn read(&self, fixed: &StaticCredentials) -> Result<Credential, String> {
        let password = match &fixed.password {
            Password::Value(secret) => secret.clone(),
            Password::File(path) => self.password_from(path)?,
        };
        Ok(Credential::Basic {
            username: fixed.username.clone(),
            password,
        })
    }

    fn password_from(&self, path: &Path) -> Result<Secret, String> {
        let now = stamp(path);
        let mut kept = self.password_file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((then, secret)) = &*kept
            && now.is_some()
            && *then == now
        {
            return Ok(secret.clone());
        }
        let secret = Password::File(path.to_owned())
            .read()
            .map_err(|error| format!("the password file {error}"))?;
        *kept = Some((now, secret.clone()));
        Ok(secret)
    }
}

/// What login files may call the host of `url`: with its port, and without where that is the usual one.
fn hosts(url: &Url) -> Vec<String> {
    let host = url.host_str().unwrap_or_default();
    let mut hosts = Vec::new();
    if let Some(port) = url.port_or_known_default() {
        hosts.push(Key::host_of(&format!("{host}:{port}")));
    }
    if url.port().is_none() {
        hosts.push(Key::host_of(host));
    }
    hosts
}

/// What a helper gives out for the host of `url`, by the configuration's word.
pub fn from_helper(name: &str, url: &Url, sources: &Sources) -> Lease {
    let host = hosts(url).pop().unwrap_or_default();
    Lease::of(Helper::new(name, &host, true, sources.path.clone()))
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    impl Credentials {
        /// Without waiting: nobody gives them out.
        fn now(&self) -> Arc<Credential> {
            let found = self.find(None).now_or_never().unwrap().unwrap();
            assert_eq!(self.at_hand(None).unwrap(), found.credential);
            found.credential
        }
    }

    fn at(url: &str, fixed: Option<StaticCredentials>, sources: &Sources) -> Credentials {
        let logins = Arc::new(Logins::looking_every(sources, Duration::ZERO));
        Credentials::new(fixed, None, logins, &url.parse().unwrap())
    }

    fn password(credential: &Credential) -> &str {
        credential.secret().unwrap_or("none")
    }

    #[test]
    fn the_environment_names_the_files() {
        let sources = Sources::from_env(|name| match name {
            "HOME" => Some("/h".to_owned()),
            "XDG_RUNTIME_DIR" => Some("/run/u".to_owned()),
            "https_proxy" => Some("http://p:1".to_owned()),
            "DOCKER_CONFIG" => Some(String::new()),
            _ => None,
        });
        let want = [
            "/run/u/containers/auth.json",
            "/h/.config/containers/auth.json",
            "/h/.docker/config.json",
        ];
        assert_eq!(sources.files, want.map(PathBuf::from));
        assert_eq!(sources.https_proxy.as_deref(), Some("http://p:1"));
        assert!(sources.http_proxy.is_none());
    }

    #[test]
    fn files_are_read_again_when_they_change() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.json");
        let sources = Sources {
            files: vec![dir.path().join("none.json"), file.clone()],
            ..Sources::default()
        };
        let credentials = at("https://r.example/", None, &sources);
        assert!(credentials.now().is_anonymous());
        std::fs::write(&file, r#"{"auths":{"r.example":{"username":"u","password":"one"}}}"#).unwrap();
        assert_eq!(password(&credentials.now()), "one");
        std::fs::write(&file, r#"{"auths":{"r.example":{"username":"u","password":"second"}}}"#).unwrap();
        assert_eq!(password(&credentials.now()), "second");
        std::fs::write(&file, r#"{"auths":{"#).unwrap();
        assert!(credentials.now().is_anonymous());
    }

    #[test]
    fn the_configuration_wins_and_its_file_may_rotate() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("password");
        let fixed = StaticCredentials {
            username: "u".to_owned(),
            password: Password::File(path.clone()),
        };
        let sources = Sources {
            inline: Some(Secret::new(
                r#"{"auths":{"r.example":{"username":"u","password":"login"}}}"#,
            )),
            ..Sources::default()
        };
        let credentials = at("https://r.example/", Some(fixed), &sources);
        let error = credentials.find(None).now_or_never().unwrap().unwrap_err();
        assert!(error.contains("password"), "{error}");
        std::fs::write(&path, "p #&+%:\r\n").unwrap();
        assert_eq!(password(&credentials.now()), "p #&+%:");
        std::fs::write(&path, "rotated").unwrap();
        let found = credentials.now();
        assert_eq!(password(&found), "rotated");
        assert!(!format!("{found:?} {credentials:?}").contains("rotated"));
        assert!(!format!("{credentials:?} {sources:?}").contains("\"login\""));
    }

    /// L7: an upstream called docker.io that is reached elsewhere does not get the Hub's login.
    #[test]
    fn logins_belong_to_the_host_that_is_dialled() {
        let sources = Sources {
            inline: Some(Secret::new(
                r#"{"auths":{"https://index.docker.io/v1/":{"username":"u","password":"hub"}}}"#,
            )),
            ..Sources::default()
        };
        let hub = at("https://registry-1.docker.io/", None, &sources);
        assert_eq!(password(&hub.now()), "hub");
        let moved = at("https://mirror.example/", None, &sources);
        assert!(moved.now().is_anonymous());
        let port = at("https://registry-1.docker.io:8443/", None, &sources);
        assert!(port.now().is_anonymous());
    }
}
