//! What the admin API takes for proof: the configured token, else one that is made here and lies in a file.
//!
//! [`ApiTokens::set`] is called when the admin ports are known and before anything is accepted there, at the start and
//! by every reload. The files go when the proxy stops, before their ports do: whoever takes such a port next finds no
//! file in the way.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::admin::token::{self, TokenFile};
use crate::admin::views::ApiView;
use crate::config::{self, Listen, Password, Secret};
use crate::http::access::{ApiToken, Token};

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
    files: Vec<(u16, TokenFile)>,
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
        let configured = admin
            .token
            .clone()
            .or_else(|| token::given_file(&admin.token_places).map(Password::File));
        let (admitted, word, closed) = match configured {
            Some(password) => {
                state.made = None;
                (ApiToken::Configured(password), "configured", None)
            }
            None if ports.is_empty() => {
                state.made = None;
                let why =
                    "no token is configured, and it listens at Unix sockets only, which let in its own user and root";
                (ApiToken::Closed(why.to_owned()), "none", None)
            }
            None => {
                let made = state.made.take();
                let (made, refused) = make(made, admin, &ports);
                match made {
                    Some(made) => {
                        let admitted = ApiToken::Made(made.token.clone());
                        state.made = Some(made);
                        for why in refused {
                            tracing::warn!("the admin token is in no file for one of the admin ports: {why}");
                        }
                        (admitted, "made", None)
                    }
                    None => {
                        let why = format!("no token is configured and none could be made: {}", refused.join("; "));
                        tracing::error!("the admin API stays closed: {why}");
                        // Whoever asks from outside is told no paths.
                        let told = "no token is configured and none could be made, as the log says";
                        (ApiToken::Closed(told.to_owned()), "none", Some(why))
                    }
                }
            }
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

    /// At the end: no call is let in any more, and no file stays.
    pub(super) fn close(&self) {
        self.state().made = None;
        let why = "the proxy stops".to_owned();
        self.admitted.store(Arc::new(ApiToken::Closed(why)));
    }
}

impl Made {
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

/// The token of before, if there was one, with a file for each port; `None` if there is not a single file. And why there
/// is none for some.
fn make(before: Option<Made>, admin: &config::Admin, ports: &[u16]) -> (Option<Made>, Vec<String>) {
    let mut made = match before.map_or_else(fresh, Ok) {
        Ok(made) => made,
        Err(why) => return (None, vec![why]),
    };
    made.files.retain(|(port, _)| ports.contains(port));
    let is_one_file = admin.token_places.file.is_some();
    let mut refused = Vec::new();
    for port in ports {
        if (is_one_file && !made.files.is_empty()) || made.files.iter().any(|(of, _)| of == port) {
            continue;
        }
        match TokenFile::write(&admin.token_places, *port, &made.token) {
            Ok(file) => {
                tracing::info!(port, file = %file.path().display(), "the admin API takes the token in this file");
                made.files.push((*port, file));
            }
            Err(why) => refused.extend(why),
        }
    }
    ((!made.files.is_empty()).then_some(made), refused)
}

fn fresh() -> Result<Made, String> {
    let token = token::make_token()?;
    Ok(Made {
        token,
        files: Vec::new(),
    })
}
