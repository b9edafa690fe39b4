//! `larder health`: asks the running proxy whether requests should go to it. For probes that can only run a command, such
//! as a container's `HEALTHCHECK`.

use std::time::Duration;

use serde::Deserialize;

use super::desk::Place;
use super::{Exit, complain, print, print_json};
use crate::app::admin_address::AdminAddress;
use crate::config::{Config, ConfigError, Environment};
use crate::text;

/// A proxy that says nothing for so long is not well; shorter than the usual time-out of probes (Docker's is 30 s).
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
    let addresses = match args.place.addresses(&Environment::of_process(), config) {
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
    match runtime.block_on(ask_any(&addresses)) {
        Ok(health) => {
            let shown = match args.place.json {
                true => print_json(&health),
                false => print(&text_of(&health)),
            };
            if health.ready { shown } else { Exit::Failed }
        }
        Err(silent) => {
            complain(&silent.join("; "));
            Exit::Failed
        }
    }
}

/// The first address that answers decides. Errors: a sentence for each address.
async fn ask_any(addresses: &[AdminAddress]) -> Result<Health, Vec<String>> {
    let mut silent = Vec::new();
    for address in addresses {
        match ask(address).await {
            Ok(health) => return Ok(health),
            Err(why) => silent.push(format!("nothing healthy at {}: {why}", address.shown())),
        }
    }
    Err(silent)
}

async fn ask(address: &AdminAddress) -> Result<Health, String> {
    let client = address.client(false)?.timeout(PATIENCE).build();
    let client = client.map_err(|error| super::remote::innermost(&error))?;
    let url = address.url.join("/readyz").map_err(|error| error.to_string())?;
    let mut response = client
        .get(url)
        .send()
        .await
        .map_err(|error| super::remote::innermost(&error))?;
    let status = response.status();
    let mut body = Vec::new();
    while let Some(piece) = response
        .chunk()
        .await
        .map_err(|error| super::remote::innermost(&error))?
    {
        body.extend_from_slice(&piece);
        if body.len() > MOST_BYTES {
            return Err("what answers is no larder: it sends too much".to_owned());
        }
    }
    // 503 has the same form: it says what is wrong.
    serde_json::from_slice(&body).map_err(|_| format!("what answers is no larder (status {})", status.as_u16()))
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
    fn what_is_not_well_is_named() {
        let health: Health = serde_json::from_str(
            r#"{"ready":true,"status":"degraded","checks":[{"name":"disk","ok":false,"detail":"no room"},{"name":"index","ok":true,"detail":""}]}"#,
        )
        .unwrap();
        assert_eq!(text_of(&health), "degraded\n  disk: no room\n");
    }
}
