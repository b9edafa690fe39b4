//! `larder inspect IMAGE`: everything that is known of an image.

use super::desk::{Desk, Place, with_desk};
use super::ls::of_all;
use super::table::{Align, Table, ago, count, printable, size};
use super::{Exit, print, print_json};
use crate::admin::views::{ImageView, LayerView};
use crate::config::{Config, ConfigError};

#[derive(clap::Args)]
pub struct Args {
    /// As clients call it: alpine, docker.io/library/alpine:3.22, name@sha256:…
    #[arg(value_name = "IMAGE")]
    image: String,
    #[command(flatten)]
    place: Place,
}

pub fn run(args: &Args, config: Result<Config, ConfigError>) -> Exit {
    with_desk(&args.place, config, async |desk: &Desk| {
        let view = desk.inspect(&args.image).await?;
        Ok(match args.place.json {
            true => print_json(&view),
            false => print(&text(&view)),
        })
    })
}

fn text(view: &ImageView) -> String {
    let mut text = String::new();
    let mut line = |what: &str, value: &str| text += &format!("{what:<10}{}\n", printable(value));
    line("image", &view.name);
    line("digest", &view.digest);
    line(
        "type",
        view.media_type.as_deref().unwrap_or("not known: it is not cached"),
    );
    let held = match view.held {
        true => format!("{} in {}", size(view.held_bytes), blobs(view.parts, view.missing)),
        false => "its manifest is not cached: it is fetched when a client asks for it".to_owned(),
    };
    line("cached", &held);
    line("pinned", if view.pinned { "yes" } else { "no" });
    line("checked", &ago(view.checked_ms));
    line("used", &ago(view.used_ms));
    line("through", &view.links.join(", "));
    if !view.platforms.is_empty() {
        text += &format!("\n{}", platforms(view));
    }
    for platform in view.platforms.iter().filter(|p| !p.layers.is_empty()) {
        text += &format!("\n{}\n{}", printable(&platform.platform), layers(&platform.layers));
    }
    if !view.layers.is_empty() {
        text += &format!("\n{}", layers(&view.layers));
    }
    if !view.moves.is_empty() {
        text += &format!("\n{}", moves(view));
    }
    text
}

/// `5 blobs`, or `5 of 7 blobs`.
fn blobs(cached: usize, missing: usize) -> String {
    match missing {
        0 => count(cached, "blob"),
        _ => format!("{} blobs", of_all(cached, missing)),
    }
}

fn platforms(view: &ImageView) -> String {
    let mut table = Table::new(&[
        ("PLATFORM", Align::Left),
        ("DIGEST", Align::Left),
        ("CACHED", Align::Right),
    ]);
    for platform in &view.platforms {
        let held = match platform.held {
            true => size(platform.held_bytes),
            false => "no".to_owned(),
        };
        table.row([platform.platform.clone(), platform.digest.clone(), held]);
    }
    table.text()
}

fn layers(list: &[LayerView]) -> String {
    let mut table = Table::new(&[
        ("LAYER", Align::Left),
        ("SIZE", Align::Right),
        ("CACHED", Align::Left),
        ("TYPE", Align::Left),
    ]);
    for layer in list {
        table.row([
            layer.digest.clone(),
            layer.size.map_or_else(|| "-".to_owned(), size),
            if layer.held { "yes" } else { "no" }.to_owned(),
            layer.media_type.clone().unwrap_or_default(),
        ]);
    }
    table.text()
}

fn moves(view: &ImageView) -> String {
    let mut table = Table::new(&[
        ("POINTED AT", Align::Left),
        ("UNTIL", Align::Right),
        ("CACHED", Align::Left),
    ]);
    for earlier in view.moves.iter().rev() {
        let held = if earlier.held { "yes" } else { "no" };
        table.row([earlier.digest.clone(), ago(Some(earlier.until_ms)), held.to_owned()]);
    }
    table.text()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_no_plural() {
        assert_eq!(blobs(1, 0), "1 blob");
        assert_eq!(blobs(3, 0), "3 blobs");
        assert_eq!(blobs(1, 2), "1 of 3 blobs");
    }
}
