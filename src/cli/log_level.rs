//! `larder log-level`: how much the running proxy tells, shown or changed.

use serde_json::json;

use super::desk::{Desk, Place, with_desk};
use super::{Exit, print, print_json};
use crate::config::{Config, ConfigError};

#[derive(clap::Args)]
pub struct Args {
    /// off, error, warn, info, debug or trace, also for parts of the program: info,larder=debug
    #[arg(value_name = "LEVEL")]
    level: Option<String>,
    #[command(flatten)]
    place: Place,
}

pub fn run(args: &Args, config: Result<Config, ConfigError>) -> Exit {
    with_desk(&args.place, config, async |desk: &Desk| {
        let level = desk.log_level(args.level.as_deref()).await?;
        Ok(match args.place.json {
            true => print_json(&json!({ "level": level })),
            false => print(&format!("{level}\n")),
        })
    })
}
