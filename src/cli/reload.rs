//! `larder reload`: has the running proxy read its configuration again, and says what came of it.

use super::desk::{Desk, Place, Refusal, with_desk};
use super::{Exit, complain, print, print_json};
use crate::admin::views::ReloadView;
use crate::config::{Config, ConfigError};

#[derive(clap::Args)]
#[command(after_help = "\
Exit status: 0 the configuration is active now, 1 the proxy could not be asked, 64 it refuses the configuration, and the
previous configuration stays active. What needs a restart is named.")]
pub struct Args {
    #[command(flatten)]
    place: Place,
}

pub fn run(args: &Args, config: Result<Config, ConfigError>) -> Exit {
    // It is the proxy that judges the file; without sense it does not say where the proxy is.
    with_desk(&args.place, config, async |desk: &Desk| {
        Ok(match desk.reload().await {
            Ok(view) if args.place.json => print_json(&view),
            Ok(view) => print(&text(&view)),
            Err(Refusal::Configuration(why)) => {
                complain(&why);
                Exit::Usage
            }
            Err(Refusal::Other(why)) => return Err(why),
        })
    })
}

fn text(view: &ReloadView) -> String {
    let mut text = match view.changed.is_empty() {
        true => "the configuration was read again: nothing in it has changed\n".to_owned(),
        false => "the configuration was read again and holds; changed:\n".to_owned(),
    };
    for key in &view.changed {
        let fixed = view.needs_restart.iter().find(|fixed| fixed.key == *key);
        text += &match fixed {
            Some(fixed) => format!(
                "  {key}  needs a restart: until then {}, then {}\n",
                fixed.holds, fixed.wanted
            ),
            None => format!("  {key}\n"),
        };
    }
    for warning in &view.warnings {
        text += &format!("warning: {warning}\n");
    }
    text
}
