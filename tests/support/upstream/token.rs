//! Who may pull: challenges, token servers, and the odd ways in which real ones differ (R-U1 to R-U13, R-U40 to R-U52).

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::Upstream;
use super::answer::Reply;
use super::record::Request;
use super::wire::Kind;

/// A registry's demand for Bearer tokens, and how its token server behaves.
#[derive(Clone, Debug)]
pub struct TokenPolicy {
    /// Repositories that a token without login is good for.
    anonymous_for: HashSet<String>,
    /// Base URL of the instance that issues; `None`: the registry itself.
    issuer: Option<String>,
    issuer_shared: Option<Arc<super::Shared>>,
    realm_path: String,
    service: Option<String>,
    challenge_scope: ChallengeScope,
    challenge_texts: Option<Vec<String>>,
    only_on_ping: bool,
    expires_in: Option<u64>,
    field: TokenField,
    login: Login,
    any_scope: bool,
    refused: HashMap<String, u16>,
    reduced: HashSet<String>,
    public: HashSet<String>,
    bad_token: BadToken,
}

/// What the challenge says about scope; the truth is per repository.
#[derive(Clone, Debug)]
enum ChallengeScope {
    Repository,
    Text(String),
    Absent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenField {
    Token,
    AccessToken,
    Both,
}

#[derive(Clone, Debug)]
enum Login {
    Anonymous,
    /// GET with Basic.
    Basic {
        user: String,
        password: String,
    },
    /// POST with `grant_type=refresh_token` only.
    Refresh {
        token: String,
    },
}

/// The answer to a token that was revoked or never issued.
#[derive(Clone, Debug)]
enum BadToken {
    Challenge,
    /// As nvcr.io: `error="invalid_token"` with a realm that helps nobody (R-U47).
    ChallengeElsewhere(String),
    /// As ECR: this status and no challenge (R-U43).
    Bare(u16),
}

impl Default for TokenPolicy {
    fn default() -> TokenPolicy {
        TokenPolicy::new()
    }
}

impl TokenPolicy {
    /// Anonymous tokens from `/token` of the registry itself, 300 s, `token` and `access_token` both.
    pub fn new() -> TokenPolicy {
        TokenPolicy {
            anonymous_for: HashSet::new(),
            issuer: None,
            issuer_shared: None,
            realm_path: "/token".to_owned(),
            service: Some("registry.test".to_owned()),
            challenge_scope: ChallengeScope::Repository,
            challenge_texts: None,
            only_on_ping: false,
            expires_in: Some(300),
            field: TokenField::Both,
            login: Login::Anonymous,
            any_scope: false,
            refused: HashMap::new(),
            reduced: HashSet::new(),
            public: HashSet::new(),
            bad_token: BadToken::Challenge,
        }
    }

    /// The token server is that instance.
    pub fn issued_by(mut self, issuer: &Upstream) -> Self {
        self.issuer = Some(issuer.url());
        self.issuer_shared = Some(issuer.shared().clone());
        self
    }

    /// Path of the realm; may hold a query.
    pub fn realm_path(mut self, path: &str) -> Self {
        self.realm_path = path.to_owned();
        self
    }

    pub fn service(mut self, service: &str) -> Self {
        self.service = Some(service.to_owned());
        self
    }

    pub fn no_service(mut self) -> Self {
        self.service = None;
        self
    }

    /// The challenge names this scope, whatever was asked.
    pub fn challenge_scope(mut self, text: &str) -> Self {
        self.challenge_scope = ChallengeScope::Text(text.to_owned());
        self
    }

    pub fn no_challenge_scope(mut self) -> Self {
        self.challenge_scope = ChallengeScope::Absent;
        self
    }

    /// The `WWW-Authenticate` lines, literally, but for `{realm}`, `{service}` and `{scope}`.
    pub fn challenge(mut self, lines: &[&str]) -> Self {
        self.challenge_texts = Some(lines.iter().map(|line| (*line).to_owned()).collect());
        self
    }

    /// As Google: a 401 on an object carries no challenge, the one on `/v2/` does (R-U42).
    pub fn challenge_only_on_ping(mut self) -> Self {
        self.only_on_ping = true;
        self
    }

    /// What the token server says; tokens live until they are revoked, whatever it said.
    pub fn expires_in(mut self, seconds: u64) -> Self {
        self.expires_in = Some(seconds);
        self
    }

    pub fn no_expires_in(mut self) -> Self {
        self.expires_in = None;
        self
    }

    pub fn field(mut self, field: TokenField) -> Self {
        self.field = field;
        self
    }

    /// Tokens only for this login, by GET with Basic. Any other, or none, is refused with 401.
    pub fn credentials(mut self, user: &str, password: &str) -> Self {
        self.login = Login::Basic {
            user: user.to_owned(),
            password: password.to_owned(),
        };
        self
    }

    /// Tokens only by POST with this refresh token; GET is answered with 404.
    pub fn refresh_token(mut self, token: &str) -> Self {
        self.login = Login::Refresh {
            token: token.to_owned(),
        };
        self
    }

    /// One token is good for every repository (ECR Public's scope `aws`).
    pub fn any_scope(mut self) -> Self {
        self.any_scope = true;
        self
    }

    /// The token server answers `status` for this repository (ghcr: 403).
    pub fn refuse(mut self, repo: &str, status: u16) -> Self {
        self.refused.insert(repo.to_owned(), status);
        self
    }

    /// The token server issues a token without the right: the object is 401 all the same (Docker Hub).
    pub fn reduce(mut self, repo: &str) -> Self {
        self.reduced.insert(repo.to_owned());
        self
    }

    /// Readable without a token (quay).
    pub fn public(mut self, repo: &str) -> Self {
        self.public.insert(repo.to_owned());
        self
    }

    /// A bad token is answered with a challenge for this realm.
    /// As the Hub does: who brings no credentials gets a token, which is good for these only.
    pub fn anonymous_for(mut self, repo: &str) -> Self {
        self.anonymous_for.insert(repo.to_owned());
        self
    }

    pub fn bad_token_realm(mut self, realm: &str) -> Self {
        self.bad_token = BadToken::ChallengeElsewhere(realm.to_owned());
        self
    }

    /// A bad token is answered with this status and no challenge.
    pub fn bad_token_status(mut self, status: u16) -> Self {
        self.bad_token = BadToken::Bare(status);
        self
    }

    pub fn issuer_instance(&self) -> Option<&Arc<super::Shared>> {
        self.issuer_shared.as_ref()
    }
}

/// A policy at work, shared by the registry that demands and the instance that issues.
#[derive(Debug)]
pub struct TokenServer {
    policy: TokenPolicy,
    realm: String,
    issued: Mutex<HashMap<String, Issued>>,
}

#[derive(Clone, Debug)]
struct Issued {
    /// Repositories that it opens.
    repos: Vec<String>,
}

impl TokenServer {
    pub fn new(policy: TokenPolicy, registry_url: &str) -> TokenServer {
        let base = policy.issuer.clone().unwrap_or_else(|| registry_url.to_owned());
        TokenServer {
            realm: format!("{base}{}", policy.realm_path),
            policy,
            issued: Mutex::default(),
        }
    }

    /// Path of the realm without its query.
    pub fn path(&self) -> &str {
        let path = self.policy.realm_path.as_str();
        path.split('?').next().unwrap_or(path)
    }

    pub fn revoke_all(&self) {
        self.issued().clear();
    }

    fn issued(&self) -> std::sync::MutexGuard<'_, HashMap<String, Issued>> {
        self.issued.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The token endpoint's answer.
    pub fn issue(&self, request: &Request) -> Reply {
        let (scopes, logged_in) = match request.method.as_str() {
            "GET" => (request.query_values("scope"), self.get_login(request)),
            "POST" => {
                let scope = request.form_value("scope").unwrap_or_default();
                let scopes = scope.split(' ').map(str::to_owned).collect();
                (scopes, self.post_login(request))
            }
            _ => return Reply::error(405, "UNSUPPORTED", "GET or POST"),
        };
        let as_nobody = !self.policy.anonymous_for.is_empty() && request.header("authorization").is_none();
        if let (Err(reply), false) = (logged_in, as_nobody) {
            return reply;
        }
        let mut repos = Vec::new();
        for scope in &scopes {
            let Some(repo) = repo_of_pull_scope(scope) else {
                continue;
            };
            if let Some(status) = self.policy.refused.get(&repo) {
                return Reply::error(*status, "DENIED", "requested access to the resource is denied");
            }
            let is_granted = !as_nobody || self.policy.anonymous_for.contains(&repo);
            if is_granted && !self.policy.reduced.contains(&repo) {
                repos.push(repo);
            }
        }
        let mut issued = self.issued();
        // Looks like a secret to whoever greps a log for one.
        let token = format!("secret-token-{:016x}", fastrand::u64(..));
        issued.insert(token.clone(), Issued { repos });
        let mut body = json!({});
        if self.policy.field != TokenField::AccessToken {
            body["token"] = json!(token);
        }
        if self.policy.field != TokenField::Token {
            body["access_token"] = json!(token);
        }
        if let Some(seconds) = self.policy.expires_in {
            body["expires_in"] = json!(seconds);
        }
        Reply::json(200, &body)
    }

    fn get_login(&self, request: &Request) -> Result<(), Reply> {
        let sent = request.header("authorization");
        match &self.policy.login {
            // Credentials that nobody asked for are not looked at.
            Login::Anonymous => Ok(()),
            Login::Basic { user, password } if sent == Some(&basic(user, password)) => Ok(()),
            Login::Basic { .. } => Err(Reply::error(401, "UNAUTHORIZED", "incorrect username or password")),
            Login::Refresh { .. } => Err(Reply::new(404, "404 page not found\n").with("Content-Type", "text/plain")),
        }
    }

    fn post_login(&self, request: &Request) -> Result<(), Reply> {
        let field = |name| request.form_value(name);
        match &self.policy.login {
            Login::Refresh { token }
                if field("grant_type").as_deref() == Some("refresh_token")
                    && field("refresh_token").as_deref() == Some(token)
                    && field("client_id").is_some() =>
            {
                Ok(())
            }
            Login::Refresh { .. } => Err(Reply::error(401, "UNAUTHORIZED", "invalid refresh token")),
            Login::Anonymous | Login::Basic { .. } => {
                Err(Reply::new(404, "404 page not found\n").with("Content-Type", "text/plain"))
            }
        }
    }

    /// Whether the request may be served; else the refusal.
    fn check(&self, request: &Request) -> Result<(), Reply> {
        let repo = request.kind.repo();
        if repo.is_some_and(|repo| self.policy.public.contains(repo)) {
            return Ok(());
        }
        let Some(sent) = request.header("authorization") else {
            return Err(self.refusal(request, None));
        };
        let token = sent.strip_prefix("Bearer ").unwrap_or_default();
        let Some(issued) = self.issued().get(token).cloned() else {
            return Err(match &self.policy.bad_token {
                BadToken::Challenge => self.refusal(request, Some("invalid_token")),
                BadToken::ChallengeElsewhere(realm) => {
                    let challenge = format!("Bearer realm=\"{realm}\",error=\"invalid_token\"");
                    unauthorized().with("WWW-Authenticate", challenge)
                }
                BadToken::Bare(status) => Reply::error(
                    *status,
                    "DENIED",
                    "Your authorization token has expired. Reauthenticate and try again.",
                ),
            });
        };
        match repo {
            Some(repo) if !self.policy.any_scope && !issued.repos.iter().any(|r| r == repo) => {
                Err(self.refusal(request, Some("insufficient_scope")))
            }
            _ => Ok(()),
        }
    }

    fn refusal(&self, request: &Request, error: Option<&str>) -> Reply {
        let mut reply = unauthorized();
        if self.policy.only_on_ping && request.kind != Kind::Ping {
            return reply;
        }
        let scope = match (&self.policy.challenge_scope, request.kind.repo()) {
            (ChallengeScope::Repository, Some(repo)) => Some(format!("repository:{repo}:pull")),
            (ChallengeScope::Text(text), _) => Some(text.clone()),
            (ChallengeScope::Repository, None) | (ChallengeScope::Absent, _) => None,
        };
        let service = self.policy.service.as_deref();
        if let Some(lines) = &self.policy.challenge_texts {
            for line in lines {
                let text = line
                    .replace("{realm}", &self.realm)
                    .replace("{service}", service.unwrap_or(""))
                    .replace("{scope}", scope.as_deref().unwrap_or(""));
                reply.headers.push(("WWW-Authenticate".to_owned(), text));
            }
            return reply;
        }
        let mut text = format!("Bearer realm=\"{}\"", self.realm);
        for (key, value) in [("service", service), ("scope", scope.as_deref()), ("error", error)] {
            if let Some(value) = value {
                text += &format!(",{key}=\"{value}\"");
            }
        }
        reply.with("WWW-Authenticate", text)
    }
}

fn unauthorized() -> Reply {
    Reply::error(401, "UNAUTHORIZED", "authentication required")
}

/// `repository:a/b:pull,push` is about `a/b`; scopes without pull, and of other kinds, about nothing.
fn repo_of_pull_scope(scope: &str) -> Option<String> {
    let (repo, actions) = scope.strip_prefix("repository:")?.rsplit_once(':')?;
    actions
        .split(',')
        .any(|action| action == "pull")
        .then(|| repo.to_owned())
}

/// The Authorization header for a login.
pub fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

/// What a registry demands.
#[derive(Clone, Debug)]
pub enum Guard {
    None,
    Bearer(Arc<TokenServer>),
    Basic { user: String, password: String },
}

impl Guard {
    pub fn check(&self, request: &Request) -> Result<(), Reply> {
        if matches!(
            request.kind,
            Kind::Storage { .. } | Kind::Hop { .. } | Kind::Token | Kind::Other
        ) {
            return Ok(());
        }
        match self {
            Guard::None => Ok(()),
            Guard::Bearer(server) => server.check(request),
            Guard::Basic { user, password } if request.header("authorization") == Some(&basic(user, password)) => {
                Ok(())
            }
            Guard::Basic { .. } => Err(unauthorized().with("WWW-Authenticate", "Basic realm=\"Registry Realm\"")),
        }
    }
}
