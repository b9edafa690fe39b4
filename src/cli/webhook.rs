//! `larder webhook test`: whether a webhook's endpoint takes what it is sent.

use serde_json::json;

use super::{Exit, complain, print, print_json, refuse};
use crate::app;
use crate::config::{Config, ConfigError};

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Send a webhook an event called ping, and say what its endpoint answers
    Test {
        /// Its name in the configuration
        #[arg(value_name = "NAME")]
        name: String,
        /// Print data for programs in place of text
        #[arg(long)]
        json: bool,
    },
}

pub fn run(args: &Args, config: Result<Config, ConfigError>) -> Exit {
    let Command::Test { name, json } = &args.command;
    let config = match config {
        Ok(config) => config,
        Err(error) => return refuse(&error),
    };
    let Some(hook) = config.webhooks.iter().find(|hook| hook.name == *name) else {
        let names: Vec<&str> = config.webhooks.iter().map(|hook| hook.name.as_str()).collect();
        complain(&match names.as_slice() {
            [] => format!("{name}: the configuration has no webhooks"),
            names => format!("{name}: no such webhook; there are: {}", names.join(", ")),
        });
        return Exit::Usage;
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("cannot start: {error}"));
            return Exit::Failed;
        }
    };
    let outcome = runtime.block_on(app::test_webhook(&config, name));
    let taken = matches!(outcome, Ok(200..=299));
    let told = match &outcome {
        Ok(status) if taken => format!("{} takes it: it answers {status}", hook.url),
        Ok(status) => format!("{} does not take it: it answers {status}", hook.url),
        Err(why) => format!("{} does not answer: {why}", hook.url),
    };
    let shown = match (json, taken) {
        (true, _) => print_json(&json!({
            "ok": taken,
            "webhook": name,
            "status": outcome.as_ref().ok(),
            "error": outcome.as_ref().err(),
        })),
        (false, true) => print(&format!("{told}\n")),
        (false, false) => {
            complain(&told);
            Exit::Done
        }
    };
    if taken { shown } else { Exit::Failed }
}
