//! `larder du`: what the cache costs, and what would be freed.

use super::desk::{Desk, Place, with_desk};
use super::ls::of_all;
use super::table::{Align, Table, count, size};
use super::{Exit, print, print_json};
use crate::admin::views::DuView;
use crate::config::{Config, ConfigError};

#[derive(clap::Args)]
pub struct Args {
    /// Show so many images, the largest first; at most 1000
    #[arg(short = 'n', long, value_name = "ROWS", default_value_t = 50)]
    rows: usize,
    #[command(flatten)]
    place: Place,
}

pub fn run(args: &Args, config: Result<Config, ConfigError>) -> Exit {
    with_desk(&args.place, config, async |desk: &Desk| {
        let view = desk.du(args.rows).await?;
        Ok(match args.place.json {
            true => print_json(&view),
            false => print(&text(&view)),
        })
    })
}

fn text(view: &DuView) -> String {
    let mut text = String::new();
    if !view.images.is_empty() {
        text += &images(view);
        text.push('\n');
    }
    let mut table = Table::new(&[("IN ALL", Align::Left), ("", Align::Right), ("", Align::Left)]);
    let mut line = |what: &str, bytes: u64, note: String| table.row([what.to_owned(), size(bytes), note]);
    line("used", view.used_bytes, format!("of {}", size(view.max_bytes)));
    line("  by one image", view.exclusive_bytes, String::new());
    line("  by several", view.shared_bytes, "each blob counted once".to_owned());
    line(
        "  by no image",
        view.loose_bytes,
        format!(
            "{}: pulled alone, or their manifest was removed",
            count(view.loose_blobs, "blob")
        ),
    );
    line(
        "  transfers",
        view.staged_bytes,
        "on their way in, or to be resumed".to_owned(),
    );
    line(
        "  lists",
        view.list_bytes,
        "of tags and referrers; short ones are in the index".to_owned(),
    );
    line("  index", view.index_bytes, String::new());
    let kept = format!(
        "all but {} pinned and {} being sent",
        size(view.pinned_bytes),
        size(view.leased_bytes)
    );
    line("can be evicted", view.evictable_bytes, kept);
    line(
        "quarantine",
        view.quarantine_bytes,
        format!("{}, beside the limit", count(view.quarantined, "damaged blob")),
    );
    text + &table.text()
}

fn images(view: &DuView) -> String {
    let mut table = Table::new(&[
        ("IMAGE", Align::Left),
        ("EXCLUSIVE", Align::Right),
        ("SHARED", Align::Right),
        ("BLOBS", Align::Right),
        ("", Align::Left),
    ]);
    for image in &view.images {
        table.row([
            image.name.clone(),
            size(image.exclusive_bytes),
            size(image.shared_bytes),
            of_all(image.parts, image.missing),
            if image.pinned { "pinned" } else { "" }.to_owned(),
        ]);
    }
    let more = match view.more {
        0 => String::new(),
        more => format!("and {} (-n shows more)\n", count(more, "smaller image")),
    };
    let note =
        "Removing an image frees its exclusive bytes; shared ones are freed with the last image that has them.\n";
    table.text() + &more + note
}
