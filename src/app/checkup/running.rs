//! The proxy that runs with this configuration, if one does: asked at its admin address.

use std::time::Duration;

use super::{AdminScope, Finding};
use crate::admin::views::ApiView;
use crate::admin::views::StatsView;
use crate::app::admin_address::{AdminAddress, Known, TokenError, Tokens, is_folder};
use crate::config::{Config, Secret};
use crate::text;

const CHECK: &str = "proxy";
/// It is on this machine or on the next one.
const TIMEOUT: Duration = Duration::from_secs(5);
const OWN_VERSION: &str = env!("CARGO_PKG_VERSION");

/// What is known of it.
pub(super) enum State {
    NotAsked,
    /// Nothing answers.
    Silent {
        /// The reason, address by address.
        why: Vec<String>,
        /// Proxies of this user that have another cache folder, as sentences.
        others: Vec<String>,
    },
    /// Nothing answers where somebody says that a proxy runs; where, and why.
    Missed {
        at: String,
        why: String,
    },
    /// Something answers, but tells nothing.
    Strange {
        at: String,
        why: String,
    },
    Runs {
        at: String,
        stats: Box<StatsView>,
    },
}

impl State {
    pub(super) fn stats(&self) -> Option<&StatsView> {
        match self {
            State::Runs { stats, .. } => Some(stats),
            _ => None,
        }
    }
}

/// Asks the admin address that somebody named, and no other. Without one, asks each of the configuration in turn, then where a token file leads to a proxy with the same cache folder: an option of
/// `larder serve` may have given it another address.
pub(super) async fn find(config: &Config, admin: &AdminScope) -> State {
    let known = Known {
        file: admin.token_file.clone(),
        insecure: admin.insecure,
        ..Known::of(config)
    };
    if let Some(address) = &admin.address {
        let at = address.shown();
        return match ask(address, &known).await {
            Ok(Ok(stats)) => State::Runs {
                at,
                stats: Box::new(stats),
            },
            Ok(Err(why)) => State::Strange { at, why },
            Err(why) => State::Missed { at, why },
        };
    }
    let mut silent = Vec::new();
    let addresses = match AdminAddress::configured(config) {
        Ok(addresses) => addresses,
        Err(why) => {
            return State::Silent {
                why: vec![why],
                others: Vec::new(),
            };
        }
    };
    for address in addresses {
        let at = address.shown();
        match ask(&address, &known).await {
            Ok(Ok(stats)) => {
                return State::Runs {
                    at,
                    stats: Box::new(stats),
                };
            }
            Ok(Err(why)) => return State::Strange { at, why },
            Err(why) => silent.push(format!("{at}: {why}")),
        }
    }
    let mut others = Vec::new();
    for address in AdminAddress::started(config) {
        let at = address.shown();
        match ask(&address, &known).await {
            Ok(Ok(stats)) if is_folder(&stats.path, &config.cache.path) => {
                return State::Runs {
                    at,
                    stats: Box::new(stats),
                };
            }
            Ok(Ok(stats)) => others.push(format!(
                "a proxy of this user runs at {at} with its cache in {}: --admin {at} asks that one",
                text::report(&stats.path)
            )),
            _ => {}
        }
    }
    State::Silent { why: silent, others }
}

/// With each token that there is. One that would be read by others on its way stays here: then it is asked whether anything
/// answers, and no more. Errors: outside, that nobody answered; inside, what came in place of figures.
async fn ask(address: &AdminAddress, known: &Known) -> Result<Result<StatsView, String>, String> {
    let http = address.client(false)?.timeout(TIMEOUT).build();
    let http = http.map_err(|error| error.without_url().to_string())?;
    let (tokens, kept) = match address.tokens(known) {
        Ok(tokens) => (tokens, None),
        Err(TokenError::Unreadable(why)) => return Ok(Err(why)),
        Err(why @ TokenError::Unnamed(_)) => return Ok(Err(why.to_string())),
        Err(TokenError::Clear(_)) => {
            let kept = "the admin token is not sent to another machine unencrypted, which admin.tls would change";
            (Tokens::default(), Some(kept.to_owned()))
        }
        Err(TokenError::Taken { taker, users, .. }) => {
            let kept = format!("uid {taker} listens there, and gets no admin token of {users}");
            (Tokens::default(), Some(kept))
        }
    };
    let mut why = String::new();
    let none = tokens.tokens.is_empty().then_some(None);
    for token in tokens.tokens.iter().map(Some).chain(none) {
        match ask_with(&http, address, token).await? {
            Ok(stats) => return Ok(Ok(stats)),
            Err(refused) => why = refused,
        }
    }
    if let Some(kept) = kept {
        return Ok(Err(format!("{why}; {kept}")));
    }
    Ok(Err(match tokens.missed.is_empty() {
        true => why,
        false => format!("{why}; no token at {}", tokens.missed.join("; ")),
    }))
}

async fn ask_with(
    http: &reqwest::Client,
    address: &AdminAddress,
    token: Option<&Secret>,
) -> Result<Result<StatsView, String>, String> {
    let url = address.url.join("/api/v1/stats").map_err(|error| error.to_string())?;
    let mut request = http.get(url);
    if let Some(token) = token {
        request = request.bearer_auth(token.reveal());
    }
    let response = request.send().await.map_err(|error| said(&error))?;
    let status = response.status();
    let bytes = response.bytes().await.map_err(|error| said(&error))?;
    if !status.is_success() {
        return Ok(Err(format!("it answered {}", status.as_u16())));
    }
    Ok(serde_json::from_slice(&bytes)
        .map_err(|error| format!("its answer is not understood ({})", text::excerpt(&error))))
}

/// What is at the bottom of it.
fn said(error: &reqwest::Error) -> String {
    let mut source: &dyn std::error::Error = error;
    while let Some(next) = source.source() {
        source = next;
    }
    source.to_string()
}

pub(super) fn check(state: &State, config: &Config) -> Vec<Finding> {
    match state {
        State::NotAsked => Vec::new(),
        State::Silent { why, others } => {
            let none = match why.as_slice() {
                [] => Finding::note(CHECK, "not asked: admin.listen leaves the port to the system"),
                why => Finding::note(CHECK, format!("none runs with this configuration ({})", why.join("; ")))
                    .advice("start it with larder serve, or name the configuration that it runs with by --config"),
            };
            let others = others.iter().map(|other| Finding::note(CHECK, other.clone()));
            std::iter::once(none).chain(others).collect()
        }
        State::Missed { at, why } => vec![
            Finding::warning(
                CHECK,
                format!("nothing answers at the address that --admin or LARDER_ADMIN_URL names ({at}: {why})"),
            )
            .advice("start the proxy, or name its admin address: the proxy prints it at its start"),
        ],
        State::Strange { at, why } => vec![
            Finding::warning(CHECK, format!("something answers at {at}, but tells no figures: {why}"))
                .advice("is it another program's port, or is the admin token another one here than there? Run this as the proxy's user or as root"),
        ],
        State::Runs { at, stats } => told(at, stats, config),
    }
}

fn told(at: &str, stats: &StatsView, config: &Config) -> Vec<Finding> {
    let up = crate::config::units::show_duration(Duration::from_secs(stats.uptime_seconds));
    let found = format!(
        "runs at {at} as process {}, version {}, since {up}",
        stats.pid, stats.version
    );
    let mut findings = vec![match stats.version == OWN_VERSION {
        true => Finding::ok(CHECK, found),
        false => Finding::warning(CHECK, format!("{found}; this program is {OWN_VERSION}"))
            .advice("restart the proxy, so that it runs what is installed"),
    }];
    if !stats.options.is_empty() {
        let options = text::report(&stats.options.join(", "));
        findings.push(
            Finding::note(CHECK, format!("it was started with options that this command does not see: {options}"))
                .advice("what is said here of addresses and upstreams is of the configuration: put what the options say into its file, or into variables"),
        );
    }
    findings.extend(stats.api.as_ref().map(of_api));
    if !is_folder(&stats.path, &config.cache.path) {
        let own = config.cache.path.display();
        findings.push(
            Finding::warning(CHECK, format!("it keeps its cache in {}, this configuration says {own}", stats.path))
                .advice("it was started with another configuration, or before this one was changed: restart it, or name its own by --config"),
        );
    }
    if let Some(trouble) = &stats.index_trouble {
        findings.push(
            Finding::warning(CHECK, format!("its index: {trouble}"))
                .advice("look at the disk and at the log; larder ls --json and larder wishes say what there is, and a restart ends this message"),
        );
    }
    if let Some(trouble) = &stats.disk_trouble {
        findings.push(
            Finding::problem(CHECK, format!("its disk fails, so that nothing new is kept: {trouble}"))
                .advice("make room, mend the disk or mount its file system; it goes on by itself, also with a folder that was emptied"),
        );
    }
    findings
}

/// What calls to it have to bring.
fn of_api(api: &ApiView) -> Finding {
    const CHECK: &str = "admin API";
    let sockets = match api.sockets.is_empty() {
        true => String::new(),
        false => format!("; by {} its own user and root need none", api.sockets.join(", ")),
    };
    match (&api.closed, api.token.as_str()) {
        (Some(why), _) => Finding::problem(CHECK, format!("it is closed: {why}{sockets}"))
            .advice("set admin.token_file, give the proxy a runtime folder, or listen at a Unix socket"),
        (None, "made") if api.token_files.is_empty() => Finding::problem(
            CHECK,
            format!("its token is in no file any more, and commands cannot find it{sockets}"),
        )
        .advice("the log says why: give the proxy a runtime folder, set admin.token_file, or listen at a Unix socket"),
        (None, "made") => Finding::ok(
            CHECK,
            format!("takes the token in {}{sockets}", api.token_files.join(", ")),
        ),
        (None, "configured") => Finding::ok(CHECK, format!("takes the configured token{sockets}")),
        (None, _) => Finding::ok(CHECK, format!("takes no token{sockets}")),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, ToSocketAddrs as _};

    use super::*;

    /// To a name that may be any machine's, nothing of the token goes, though it is this machine's own by which it is
    /// heard here.
    #[tokio::test]
    async fn no_token_goes_to_another_machine_in_clear() {
        let listener = TcpListener::bind("0.0.0.0:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let name = name.trim();
        let own = (name, port).to_socket_addrs();
        if name == "localhost" || !own.is_ok_and(|mut all| all.all(|at| at.is_ipv4() && at.ip().is_loopback())) {
            eprintln!("not run: this machine's name leads elsewhere");
            return;
        }
        let hearing = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut heard = vec![0; 4096];
            let length = stream.read(&mut heard).unwrap();
            heard.truncate(length);
            stream
                .write_all(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                .unwrap();
            String::from_utf8(heard).unwrap()
        });
        let config = Config::from_toml("[admin]\ntoken = \"a-token-of-operators\"\n").unwrap();
        let address = AdminAddress::at(format!("http://{name}:{port}").parse().unwrap());
        let told = ask(&address, &Known::of(&config)).await.unwrap().unwrap_err();
        let heard = hearing.join().unwrap().to_lowercase();
        assert!(
            heard.starts_with("get /api/v1/stats ") && !heard.contains("authorization"),
            "{heard}"
        );
        assert!(told.contains("401") && told.contains("unencrypted"), "{told}");
        assert!(!told.contains("a-token-of-operators"), "L7");
    }
}
