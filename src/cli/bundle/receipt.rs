//! `larder bundle receipt`.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use super::super::desk::{Desk, Place, with_desk};
use super::super::table::count;
use super::super::{Exit, print};
use crate::config::{Config, ConfigError};

#[derive(clap::Args)]
pub struct Args {
    /// The file to write [default: standard output]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// What this site is called [default: this machine's name]
    #[arg(long, value_name = "NAME")]
    site: Option<String>,
    #[command(flatten)]
    place: Place,
}

pub fn run(args: &Args, config: Result<Config, ConfigError>) -> Exit {
    with_desk(&args.place, config, async |desk: &Desk| {
        let site = args.site.clone().unwrap_or_else(machine);
        let receipt = desk.receipt(&site).await?;
        let text = serde_json::to_string(&receipt).map_err(|error| error.to_string())? + "\n";
        match &args.out {
            None => Ok(print(&text)),
            Some(path) => write(path, &text).map(|()| {
                let told = format!(
                    "{}: what {site} has, {}, {}\n",
                    path.display(),
                    count(receipt.tags.len(), "tag"),
                    count(receipt.wishes.len(), "wish")
                );
                if args.place.json { Exit::Done } else { print(&told) }
            }),
        }
    })
}

/// Whole or not at all: an old receipt is better than half a new one.
fn write(path: &Path, text: &str) -> Result<(), String> {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let all = || {
        let mut file = std::fs::File::create(&part)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&part, path)
    };
    all().map_err(|error| format!("{} cannot be written: {error}", path.display()))
}

fn machine() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => "unnamed".to_owned(),
        name => name.to_owned(),
    }
}
