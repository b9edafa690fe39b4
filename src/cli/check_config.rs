//! `larder check-config`: says what the configuration means, or what is wrong with it. Binds and dials nothing.

mod json;
mod text;

use url::Url;

use super::{Exit, complain, print, refuse};
use crate::app;
use crate::config::{Config, ConfigError, show_key};

#[derive(clap::Args)]
#[command(after_help = "\
Exit status: 0 the configuration can be used, 64 it is refused, or has warnings and --strict is given. Paths are looked
at as the user who runs the command: run it as the proxy's user.")]
pub struct Args {
    /// Take warnings for errors, such as a variable that matches no key
    #[arg(long)]
    strict: bool,
    /// Print data for programs in place of text
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, config: Result<Config, ConfigError>) -> Exit {
    match config {
        Ok(config) => tell(args, config),
        Err(error) => {
            if args.json {
                print(&json::refusal(&error));
            }
            refuse(&error)
        }
    }
}

fn tell(args: &Args, mut config: Config) -> Exit {
    config.warnings.extend(app::review(&config));
    let is_good = !args.strict || config.warnings.is_empty();
    let shown = print(&match args.json {
        true => json::meaning(&config, is_good),
        false => text::meaning(&config),
    });
    match is_good {
        true => shown,
        false => {
            let count = super::table::count(config.warnings.len(), "warning");
            complain(&format!(
                "the configuration has {count}, which --strict takes for errors"
            ));
            Exit::Usage
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
