//! `larder health`: asks the running proxy whether requests should go to it. For probes that can only run a command, such
//! as a container's `HEALTHCHECK`.

use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use serde::Deserialize;

use super::desk::{self, Place};
use super::{Exit, complain, print, print_json};
use crate::app::admin_address::AdminAddress;
use crate::config::{Config, ConfigError, Environment};
use crate::text;

/// Limits the whole question: a proxy that is silent for so long is not well. Shorter than the usual timeout of probes
/// (Docker's is 30 s), so that the reason is printed.
const PATIENCE: Duration = Duration::from_secs(5);
/// More than any answer of `/readyz`.
const MOST_BYTES: usize = 64 << 10;

#[derive(clap::Args)]
#[command(after_help = "\
Exit status: 0 requests should go to the proxy, also if it is degraded (a full disk, say: pulls pass through); 1 it stops, or
nothing answers; 64 there is no address to ask. No token is needed.")]
pub struct Args {
    #[command(flatten)]
    place: Place,
}

/// The answer of `/readyz`.
#[derive(Deserialize, serde::Serialize)]
struct Health {
    ready: bool,
    status: String,
    checks: Vec<Check>,
}

#[derive(Deserialize, serde::Serialize)]
struct Check {
    name: String,
    ok: bool,
    detail: String,
}

pub fn run(args: &Args, config: impl Fn() -> Result<Config, ConfigError>) -> Exit {
    let environment = Environment::of_process();
    let addresses = match args.place.addresses(&environment, &config) {
        Ok(addresses) => addresses,
        Err(error) => {
            complain(&error);
            return Exit::Usage;
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("cannot start: {error}"));
            return Exit::Failed;
        }
    };
    let begun = Instant::now();
    let answer = runtime.block_on(async {
        let silent = match ask_any(&addresses).await {
            Ok(health) => return Ok(health),
            Err(silent) => silent,
        };
        let elsewhere = async {
            match args.place.elsewhere(&environment, &config).await {
                Ok(address) => ask_any(&[address]).await,
                Err(others) => Err(others.iter().map(ToString::to_string).collect()),
            }
        };
        let rest = PATIENCE.saturating_sub(begun.elapsed());
        match tokio::time::timeout(rest, elsewhere).await {
            Ok(Ok(health)) => Ok(health),
            Ok(Err(more)) => Err([silent, more].concat()),
            Err(_) => Err(silent),
        }
    });
    // A look-up of a name that hangs would hold up the end.
    runtime.shutdown_background();
    match answer {
        Ok(health) => {
            let shown = match args.place.json {
                true => print_json(&health),
                false => print(&text_of(&health)),
            };
            if health.ready { shown } else { Exit::Failed }
        }
        Err(silent) => {
            complain(&desk::nobody(&silent));
            if addresses.is_empty() {
                Exit::Usage
            } else {
                Exit::Failed
            }
        }
    }
}

/// Asks all of them at once; the first that answers decides. Errors: a sentence for each address.
async fn ask_any(addresses: &[AdminAddress]) -> Result<Health, Vec<String>> {
    let each = addresses.iter().enumerate();
    let mut asked: FuturesUnordered<_> = each
        .map(|(at, address)| async move { (at, ask(address).await) })
        .collect();
    let mut silent = vec![String::new(); addresses.len()];
    while let Some((at, answer)) = asked.next().await {
        match (answer, addresses.get(at), silent.get_mut(at)) {
            (Ok(health), ..) => return Ok(health),
            (Err(why), Some(address), Some(silent)) => {
                *silent = format!("nothing healthy at {}: {why}", address.shown())
            }
            _ => {}
        }
    }
    Err(silent)
}

/// The reason why there is no answer.
fn failure(error: &reqwest::Error) -> String {
    match error.is_timeout() {
        true => format!("no answer within {} s", PATIENCE.as_secs()),
        false => super::remote::innermost(error),
    }
}

async fn ask(address: &AdminAddress) -> Result<Health, String> {
    let client = address.client(false)?.timeout(PATIENCE).build();
    let client = client.map_err(|error| super::remote::innermost(&error))?;
    let url = address.url.join("/readyz").map_err(|error| error.to_string())?;
    let mut response = client.get(url).send().await.map_err(|error| failure(&error))?;
    let status = response.status();
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(|error| failure(&error))? {
        body.extend_from_slice(&piece);
        if body.len() > MOST_BYTES {
            return Err("what answers is no larder: it sends too much".to_owned());
        }
    }
    let status = status.as_u16();
    judged(status, &body).ok_or_else(|| format!("what answers is no larder (status {status})"))
}

/// 200 says that it is ready, 503 that it is not, in the same form; all else is somebody else's answer.
fn judged(status: u16, body: &[u8]) -> Option<Health> {
    let health: Health = serde_json::from_slice(body).ok()?;
    let expected = if health.ready { 200 } else { 503 };
    (status == expected).then_some(health)
}

/// The status, and each check that is not well.
fn text_of(health: &Health) -> String {
    let mut out = format!("{}\n", text::report(&health.status));
    for check in health.checks.iter().filter(|check| !check.ok) {
        out += &format!("  {}: {}\n", text::report(&check.name), text::report(&check.detail));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_and_answer_have_to_agree() {
        let body = |ready: bool| format!(r#"{{"ready":{ready},"status":"x","checks":[]}}"#);
        for (status, ready, is_one) in [
            (200, true, true),
            (503, false, true),
            (503, true, false),
            (401, true, false),
            (200, false, false),
        ] {
            let found = judged(status, body(ready).as_bytes());
            assert_eq!(found.is_some(), is_one, "{status} {ready}");
        }
    }

    #[test]
    fn what_is_not_well_is_named() {
        let health: Health = serde_json::from_str(
            r#"{"ready":true,"status":"degraded","checks":[{"name":"disk","ok":false,"detail":"no room"},{"name":"index","ok":true,"detail":""}]}"#,
        )
        .unwrap();
        assert_eq!(text_of(&health), "degraded\n  disk: no room\n");
    }
}
