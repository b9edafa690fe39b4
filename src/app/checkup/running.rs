//! The proxy that runs with this configuration, if one does: asked at its admin address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::Finding;
use crate::admin::views::StatsView;
use crate::config::{Config, Password};
use crate::upstream::documents;

const CHECK: &str = "proxy";
/// It is on this machine or on the next one.
const TIMEOUT: Duration = Duration::from_secs(5);
const OWN_VERSION: &str = env!("CARGO_PKG_VERSION");

/// What is known of it.
pub(super) enum State {
    NotAsked,
    /// Nothing answers; why, address by address.
    Silent(Vec<String>),
    /// Something answers, but tells nothing.
    Strange {
        at: SocketAddr,
        why: String,
    },
    Runs {
        at: SocketAddr,
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

/// Asks each admin address in turn.
pub(super) async fn find(config: &Config) -> State {
    let mut silent = Vec::new();
    for listen in config.admin.listen.iter().filter(|listen| listen.port() != 0) {
        let at = dialled(*listen);
        match ask(at, config.admin.token.as_ref()).await {
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
    State::Silent(silent)
}

/// Errors: outside, that nobody answered; inside, what came in place of figures.
async fn ask(at: SocketAddr, token: Option<&Password>) -> Result<Result<StatsView, String>, String> {
    let http = documents::direct(None, TIMEOUT)?;
    let mut request = http.get(format!("http://{at}/api/v1/stats"));
    if let Some(token) = token {
        match token.read() {
            Ok(token) => request = request.bearer_auth(token.reveal()),
            Err(why) => return Ok(Err(format!("admin.token_file: {why}"))),
        }
    }
    let response = request.send().await.map_err(|error| said(&error))?;
    let status = response.status();
    let bytes = response.bytes().await.map_err(|error| said(&error))?;
    if !status.is_success() {
        return Ok(Err(format!("it answered {}", status.as_u16())));
    }
    Ok(serde_json::from_slice(&bytes).map_err(|error| format!("its answer is not understood ({error})")))
}

/// What is at the bottom of it.
fn said(error: &reqwest::Error) -> String {
    let mut source: &dyn std::error::Error = error;
    while let Some(next) = source.source() {
        source = next;
    }
    source.to_string()
}

/// Where a listener is reached from this machine.
fn dialled(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

pub(super) fn check(state: &State, config: &Config) -> Vec<Finding> {
    match state {
        State::NotAsked => Vec::new(),
        State::Silent(why) if why.is_empty() => {
            vec![Finding::note(
                CHECK,
                "not asked: admin.listen leaves the port to the system",
            )]
        }
        State::Silent(why) => vec![
            Finding::note(CHECK, format!("none runs with this configuration ({})", why.join("; ")))
                .advice("start it with larder serve, or name the configuration that it runs with by --config"),
        ],
        State::Strange { at, why } => vec![
            Finding::warning(CHECK, format!("something answers at {at}, but tells no figures: {why}"))
                .advice("is it another program's port, or is admin.token another one here than there?"),
        ],
        State::Runs { at, stats } => told(*at, stats, config),
    }
}

fn told(at: SocketAddr, stats: &StatsView, config: &Config) -> Vec<Finding> {
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
    let own = config.cache.path.display().to_string();
    if stats.path != own {
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
                .advice("make room or mend the disk; it goes on by itself"),
        );
    }
    findings
}
