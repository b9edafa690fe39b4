//! What the admin API takes for proof: the configured token, else one that is made here and lies in a file.
//!
//! [`ApiTokens::set`] is called when the admin ports are known and before anything is accepted there, at the start and
//! by every reload. [`keep`] looks after the files meanwhile: a session that ends takes its folder away, and old files in
//! `/tmp` are removed. The files go when the proxy stops, before their ports do: whoever takes such a port next finds no
//! file in the way.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::admin::token::{self, TokenFile};
use crate::admin::views::ApiView;
use crate::config::{self, Listen, Password, Secret, TokenPlaces};
use crate::http::access::{ApiToken, Token};

/// How often somebody looks whether the files are there.
const LOOK: Duration = Duration::from_secs(60);

/// Writes files that are gone again, until it is time to stop.
pub(super) async fn keep(tokens: ApiTokens, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = stop.cancelled() => return,
        }
        let tokens = tokens.clone();
        let _ = tokio::task::spawn_blocking(move || tokens.look_after()).await;
    }
}

/// Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct ApiTokens {
    /// Asked at each call.
    admitted: Token,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    made: Option<Made>,
    shown: ApiView,
}

/// One token for all ports, and its file for each.
struct Made {
    token: Secret,
    places: TokenPlaces,
    ports: Vec<u16>,
    files: Vec<(u16, TokenFile)>,
    /// Warnings about ports without a token file that were logged already.
    told: Vec<String>,
}

impl ApiTokens {
    pub(super) fn admitted(&self) -> Token {
        self.admitted.clone()
    }

    /// For operators.
    pub(super) fn shown(&self) -> ApiView {
        self.state().shown.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the configured token, or sees to it that there is one for the ports that are listened on. It does not fail:
    /// without a token the API stays closed, and the log says why. Blocking, briefly.
    pub(super) fn set(&self, admin: &config::Admin, at: &[Listen]) {
        let mut state = self.state();
        let ports = ports(at);
        let configured = match &admin.token {
            Some(password) => Ok(Some(password.clone())),
            None => token::given_file(&admin.token_places).map(|file| file.map(Password::File)),
        };
        let (admitted, word, closed) = match configured {
            Ok(Some(password)) => {
                state.made = None;
                (ApiToken::Configured(password), "configured", None)
            }
            // Whoever named a file meant it: nothing else takes its place.
            Err(why) => {
                state.made = None;
                closed(format!("the file for its token cannot be taken: {why}"))
            }
            Ok(None) if ports.is_empty() => {
                state.made = None;
                let why =
                    "no token is configured, and it listens at Unix sockets only, which let in its own user and root";
                (ApiToken::Closed(why.to_owned()), "none", None)
            }
            Ok(None) => match make(state.made.take(), admin, ports) {
                Ok(made) => {
                    let admitted = ApiToken::Made(made.token.clone());
                    state.made = Some(made);
                    (admitted, "made", None)
                }
                Err(refused) => closed(format!("no token is configured and none could be made: {refused}")),
            },
        };
        state.shown = ApiView {
            token: word.to_owned(),
            token_files: state.made.iter().flat_map(Made::paths).collect(),
            sockets: at
                .iter()
                .filter(|at| at.port().is_none())
                .map(ToString::to_string)
                .collect(),
            tls: admin.tls.is_some(),
            closed,
        };
        self.admitted.store(Arc::new(admitted));
    }

    /// Writes files that are gone again. Blocking, briefly.
    fn look_after(&self) {
        let state = &mut *self.state();
        if let Some(made) = &mut state.made {
            made.write();
            state.shown.token_files = made.paths().collect();
        }
    }

    /// At the end: no call is let in any more, and no file stays.
    pub(super) fn close(&self) {
        self.state().made = None;
        let why = "the proxy stops".to_owned();
        self.admitted.store(Arc::new(ApiToken::Closed(why)));
    }
}

/// What lets nobody in. The reason is for the log and for whoever has other ways in: whoever asks from outside is told no
/// paths.
fn closed(why: String) -> (ApiToken, &'static str, Option<String>) {
    tracing::error!("the admin API stays closed: {why}");
    let told = "no token is configured and none could be made, as the log says";
    (ApiToken::Closed(told.to_owned()), "none", Some(why))
}

impl Made {
    /// Sees to it that each port has a file that its path leads to. The log is told once of a file that was gone, and of a
    /// port that can have none.
    fn write(&mut self) {
        let mut gone = Vec::new();
        self.files.retain(|(port, file)| {
            let is_there = file.is_there();
            if !is_there && self.ports.contains(port) {
                gone.push(file.path().display().to_string());
            }
            is_there && self.ports.contains(port)
        });
        if !gone.is_empty() {
            tracing::warn!(
                "the file of the admin token is gone: {}; it is written again",
                gone.join(", ")
            );
        }
        let is_one_file = self.places.file.is_some();
        let mut refused = Vec::new();
        for port in &self.ports {
            if (is_one_file && !self.files.is_empty()) || self.files.iter().any(|(of, _)| of == port) {
                continue;
            }
            match TokenFile::write(&self.places, *port, &self.token) {
                Ok(file) => {
                    tracing::info!(port, file = %file.path().display(), "the admin API takes the token in this file");
                    self.files.push((*port, file));
                }
                Err(why) => refused.extend(why),
            }
        }
        if refused != self.told {
            for why in &refused {
                tracing::warn!("the admin token is in no file for one of the admin ports: {why}");
            }
            self.told = refused;
        }
    }

    fn paths(&self) -> impl Iterator<Item = String> + '_ {
        self.files.iter().map(|(_, file)| file.path().display().to_string())
    }
}

/// The ports of these, each once. `$LARDER_ADMIN_TOKEN_FILE` is one file for all of them.
fn ports(at: &[Listen]) -> Vec<u16> {
    let mut ports: Vec<u16> = at.iter().filter_map(Listen::port).collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// The token of before, if there was one: whoever has read it goes on, even if no file can be written any more. A new one
/// has a file at least for one port. Errors: there is none, and why.
fn make(before: Option<Made>, admin: &config::Admin, ports: Vec<u16>) -> Result<Made, String> {
    let is_new = before.is_none();
    let (token, files, told) = match before {
        Some(made) => (made.token, made.files, made.told),
        None => (token::make_token()?, Vec::new(), Vec::new()),
    };
    let mut made = Made {
        token,
        places: admin.token_places.clone(),
        ports,
        files,
        told,
    };
    made.write();
    match is_new && made.files.is_empty() {
        true => Err(made.told.join("; ")),
        false => Ok(made),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{Config, Environment};

    fn admin(variables: &[(&str, &Path)]) -> config::Admin {
        let mut admin = Config::from_toml("").unwrap().admin;
        let variable = |(name, path): &(&str, &Path)| ((*name).to_owned(), path.display().to_string());
        admin.token_places = TokenPlaces::of(&Environment {
            variables: variables.iter().map(variable).collect(),
            ..Environment::default()
        });
        admin
    }

    fn at() -> Vec<Listen> {
        vec![Listen::Tcp(([127, 0, 0, 1], 5001).into())]
    }

    fn held(tokens: &ApiTokens) -> String {
        match &**tokens.admitted.load() {
            ApiToken::Made(secret) => secret.reveal().to_owned(),
            other => panic!("{other:?}"),
        }
    }

    /// The same token is written again, where its folder is gone in the next one that there is; and again.
    #[tokio::test(start_paused = true)]
    async fn a_file_that_is_gone_is_written_again() {
        let root = tempfile::tempdir().unwrap();
        let (session, tmp) = (root.path().join("session"), root.path().join("tmp"));
        std::fs::create_dir(&session).unwrap();
        std::fs::create_dir(&tmp).unwrap();
        let admin = admin(&[("XDG_RUNTIME_DIR", &session), ("TMPDIR", &tmp)]);
        let tokens = ApiTokens::default();
        tokens.set(&admin, &at());
        let token = held(&tokens);
        let stop = CancellationToken::new();
        let keeping = tokio::spawn(keep(tokens.clone(), stop.clone()));
        let file = || std::path::PathBuf::from(&tokens.shown().token_files[0]);
        let holds = |path: &Path| std::fs::read_to_string(path).is_ok_and(|text| text.trim() == token);
        let first = file();
        assert!(first.starts_with(&session) && holds(&first));
        // By tmpfiles; by the end of a session; by somebody who wrote over it.
        std::fs::remove_dir_all(first.parent().unwrap()).unwrap();
        tokio::time::sleep(LOOK * 2).await;
        assert!(file() == first && holds(&first));
        std::fs::remove_dir_all(&session).unwrap();
        tokio::time::sleep(LOOK * 2).await;
        let second = file();
        assert!(second.starts_with(&tmp) && holds(&second), "{second:?}");
        std::fs::remove_file(&second).unwrap();
        tokens.set(&admin, &at());
        assert!(holds(&second), "by a reload");
        // Where nothing can be written any more, those who know the token go on.
        std::fs::remove_dir_all(&tmp).unwrap();
        tokio::time::sleep(LOOK * 2).await;
        assert_eq!((tokens.shown().token_files, held(&tokens)), (vec![], token.clone()));
        tokens.set(&admin, &at());
        assert_eq!(held(&tokens), token);
        std::fs::create_dir(&tmp).unwrap();
        tokio::time::sleep(LOOK * 2).await;
        assert!(holds(&second));
        stop.cancel();
        keeping.await.unwrap();
        tokens.close();
        assert!(!second.exists());
        tokens.look_after();
        assert!(!second.exists());
    }

    /// A file of an operator's that cannot be trusted, or whose token can be guessed, opens nothing, and says why.
    #[test]
    fn a_named_file_that_cannot_be_taken_closes_the_api() {
        let root = tempfile::tempdir().unwrap();
        let named = root.path().join("token");
        std::fs::write(&named, "a\n").unwrap();
        let tokens = ApiTokens::default();
        tokens.set(&admin(&[(config::TOKEN_FILE_VARIABLE, &named)]), &at());
        let why = tokens.shown().closed.unwrap();
        assert!(
            why.contains("LARDER_ADMIN_TOKEN_FILE") && why.contains("expected 16 or more") && why.contains("found 1"),
            "{why}"
        );
        assert!(matches!(&**tokens.admitted.load(), ApiToken::Closed(_)));
        assert_eq!(std::fs::read_to_string(&named).unwrap(), "a\n");
    }
}
