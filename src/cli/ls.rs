//! `larder ls`: the images that are cached.

use super::desk::{Desk, Place, with_desk};
use super::table::{Align, Table, ago, count, size};
use super::{Exit, print, print_json};
use crate::admin::views::ImageList;
use crate::config::{Config, ConfigError};

#[derive(clap::Args)]
pub struct Args {
    /// Only names that hold this; with * (any run of characters), names that fit it from end to end
    #[arg(value_name = "PATTERN", default_value = "", hide_default_value = true)]
    pattern: String,
    #[command(flatten)]
    place: Place,
}

pub fn run(args: &Args, config: Result<Config, ConfigError>) -> Exit {
    with_desk(&args.place, config, async |desk: &Desk| {
        let list = desk.images(&args.pattern).await?;
        Ok(match args.place.json {
            true => print_json(&list),
            false => print(&text(&list, &args.pattern)),
        })
    })
}

fn text(list: &ImageList, pattern: &str) -> String {
    if list.images.is_empty() {
        return match pattern {
            "" => "nothing is cached yet\n".to_owned(),
            _ => format!("no cached image fits {pattern:?}\n"),
        };
    }
    let mut table = Table::new(&[
        ("IMAGE", Align::Left),
        ("DIGEST", Align::Left),
        ("SIZE", Align::Right),
        ("BLOBS", Align::Right),
        ("CHECKED", Align::Right),
        ("USED", Align::Right),
        ("", Align::Left),
    ]);
    for image in &list.images {
        table.row([
            image.name.clone(),
            short(&image.digest),
            size(image.held_bytes),
            of_all(image.parts, image.missing),
            ago(image.checked_ms),
            ago(image.used_ms),
            if image.pinned { "pinned" } else { "" }.to_owned(),
        ]);
    }
    table.text() + &format!("{}\n", count(list.images.len(), "image"))
}

/// `5`, or `5 of 7` where some are not cached.
pub fn of_all(cached: usize, missing: usize) -> String {
    match missing {
        0 => cached.to_string(),
        _ => format!("{cached} of {}", cached + missing),
    }
}

/// As much of a digest as people compare.
pub fn short(digest: &str) -> String {
    let hex = digest.split_once(':').map_or(digest, |(_, hex)| hex);
    hex.chars().take(12).collect()
}
