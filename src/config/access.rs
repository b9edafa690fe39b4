//! Who may pull: the further listeners, `[access]` and its rules, with meaning.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use url::Url;

use super::ServerTls;

/// The name of the listener that `[server]` configures.
pub const MAIN_LISTENER: &str = "main";

/// A listener of the registry beside `[server]`'s.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    pub name: String,
    /// At least one.
    pub listen: Vec<Listen>,
    pub tls: Option<ServerTls>,
}

/// Where somebody connects.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Listen {
    Tcp(SocketAddr),
    /// A socket in the file system.
    Unix(PathBuf),
}

impl Listen {
    /// `None` for a socket in the file system.
    pub fn port(&self) -> Option<u16> {
        match self {
            Listen::Tcp(address) => Some(address.port()),
            Listen::Unix(_) => None,
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listen::Tcp(address) => address.fmt(f),
            Listen::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// How callers are known, and what they may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    pub htpasswd_file: Option<PathBuf>,
    pub token_key_file: Option<PathBuf>,
    /// How long a token of ours is good for.
    pub token_ttl: Duration,
    /// Where clients get tokens; `None`: at `/v2/_token` of the address that they ask.
    pub realm: Option<Url>,
    /// Sorted by name.
    pub issuers: Vec<Issuer>,
    /// As they stand in the file: the first that matches decides.
    pub rules: Vec<AccessRule>,
}

/// Somebody else who issues tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issuer {
    /// What identities begin with.
    pub name: String,
    /// `iss`
    pub issuer: String,
    /// `aud`
    pub audience: String,
    /// The claim that the identity is made of: a name, or a JSON pointer.
    pub identity: String,
    pub jwks: JwksAt,
}

/// Where an issuer's public keys are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JwksAt {
    Url {
        url: Url,
        /// A PEM file with authorities that its certificate may come from, beside the usual ones.
        ca_file: Option<PathBuf>,
    },
    File(PathBuf),
}

impl fmt::Display for JwksAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            JwksAt::Url { url, .. } => url.fmt(f),
            JwksAt::File(path) => path.display().fmt(f),
        }
    }
}

/// What a rule lets its callers do; each includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum May {
    Nothing,
    PullHeld,
    Fetch,
}

impl May {
    pub fn as_str(self) -> &'static str {
        match self {
            May::Nothing => "nothing",
            May::PullHeld => "pull-held",
            May::Fetch => "fetch",
        }
    }
}

/// One `[[access.rule]]`. An empty list is no condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessRule {
    /// `*`, `anonymous`, `authenticated` or a pattern of identities; never empty.
    pub who: Vec<String>,
    pub from: Vec<IpNet>,
    pub listeners: Vec<String>,
    /// Patterns of upstream and repository.
    pub images: Vec<String>,
    pub may: May,
    /// It also holds for repositories that need credentials.
    pub private: bool,
}

/// `alice, github:acme/* from 10.0.0.0/8 on dockerd: docker.io/library/* → fetch, private too`
impl fmt::Display for AccessRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.who.join(", "))?;
        if !self.from.is_empty() {
            let from: Vec<String> = self.from.iter().map(IpNet::to_string).collect();
            write!(f, " from {}", from.join(", "))?;
        }
        if !self.listeners.is_empty() {
            write!(f, " on {}", self.listeners.join(", "))?;
        }
        let images = if self.images.is_empty() {
            "every image".to_owned()
        } else {
            self.images.join(", ")
        };
        write!(f, ": {images} → {}", self.may.as_str())?;
        match self.private && self.may != May::Nothing {
            true => write!(f, ", private too"),
            false => Ok(()),
        }
    }
}
