//! `larder wishes`: what was asked for while nobody could be asked for it.

use super::desk::{Desk, Place, with_desk};
use super::table::{Align, Table, ago, count, date};
use super::{Exit, print, print_json};
use crate::config::{Config, ConfigError};

#[derive(clap::Args)]
pub struct Args {
    /// Forget them all
    #[arg(long)]
    clear: bool,
    #[command(flatten)]
    place: Place,
}

pub fn run(args: &Args, config: Result<Config, ConfigError>) -> Exit {
    with_desk(&args.place, config, async |desk: &Desk| {
        if args.clear {
            let view = desk.clear_wishes().await?;
            return Ok(match args.place.json {
                true => print_json(&view),
                false => print(&format!("{} forgotten\n", count(view.cleared, "wish"))),
            });
        }
        let list = desk.wishes().await?;
        if args.place.json {
            // The array alone: what a receipt has, and what `larder prefetch --wishes` reads.
            return Ok(print_json(&list.wishes));
        }
        let mut text = match list.wishes.is_empty() {
            true => "nothing was wished for\n".to_owned(),
            false => String::new(),
        };
        let columns = [
            ("IMAGE", Align::Left),
            ("PLATFORM", Align::Left),
            ("COUNT", Align::Right),
            ("LAST", Align::Left),
            ("BY", Align::Left),
        ];
        let mut table = Table::new(&columns);
        for wish in &list.wishes {
            let last = u64::try_from(wish.last.as_millisecond()).ok();
            let platform = wish.platform.clone().unwrap_or_else(|| "-".to_owned());
            table.row([
                wish.image.clone(),
                platform,
                wish.count.to_string(),
                ago(last),
                wish.last_by.clone(),
            ]);
        }
        if !list.wishes.is_empty() {
            text += &table.text();
        }
        if let (Some(ms), Some(what)) = (list.filled_ms, &list.filled_by) {
            text += &super::table::printable(&format!("last filled {} by {what}", date(ms)));
            text.push('\n');
        }
        Ok(print(&text))
    })
}
