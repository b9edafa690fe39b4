//! `larder check-config`: says what the configuration means, or what is wrong with it. Binds and dials nothing.

mod json;
mod text;

use url::Url;

use super::{Exit, print, refuse};
use crate::config::{Config, ConfigError, show_key};

#[derive(clap::Args)]
pub struct Args {
    /// Print data for programs in place of text
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, config: Result<Config, ConfigError>) -> Exit {
    match (config, args.json) {
        (Ok(config), false) => print(&text::meaning(&config)),
        (Ok(config), true) => print(&json::meaning(&config)),
        (Err(error), false) => refuse(&error),
        (Err(error), true) => {
            print(&json::refusal(&error));
            refuse(&error)
        }
    }
}

/// A refusal as data, for other commands that take a configuration.
pub fn refusal(error: &ConfigError) -> String {
    json::refusal(error)
}

/// Where the operator gave a key; `None`: nowhere.
fn origin<'a>(config: &'a Config, key: &[&str]) -> Option<&'a str> {
    config.origins.get(&show_key(key)).map(String::as_str)
}

/// A proxy's address may hold a password (R-X17).
fn without_user(url: &Url) -> String {
    let mut url = url.clone();
    if url.username().is_empty() && url.password().is_none() {
        return url.to_string();
    }
    // Neither fails for the schemes that the configuration lets through.
    let cleared = url.set_password(None).and_then(|()| url.set_username(""));
    match cleared {
        Ok(()) => format!("{url} (user and password not shown)"),
        Err(()) => "(not shown)".to_owned(),
    }
}
