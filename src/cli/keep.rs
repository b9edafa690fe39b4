//! `larder pin`, `unpin`, `rm`, `refresh`: what is done to images by name, one after another.
//!
//! One that fails does not keep the others from being done; the exit status says that one did.

use serde::Serialize;
use serde_json::{Value, json};

use super::desk::{Desk, Place, with_desk};
use super::ls::short;
use super::table::{count, printable, size};
use super::{Exit, complain, print, print_json};
use crate::admin::views::{PinView, RefreshView, RemovedView};
use crate::config::{Config, ConfigError};

#[derive(clap::Args)]
pub struct Args {
    /// As clients call them: alpine, docker.io/library/alpine:3.22, name@sha256:…
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
    #[command(flatten)]
    place: Place,
}

#[derive(clap::Args)]
pub struct RemoveArgs {
    #[command(flatten)]
    args: Args,
    /// Remove pinned images too
    #[arg(long)]
    force: bool,
}

type Loaded = Result<Config, ConfigError>;

pub fn pin(args: &Args, config: Loaded) -> Exit {
    each(args, config, async |desk, image| done(desk.pin(image).await?, pinned))
}

pub fn unpin(args: &Args, config: Loaded) -> Exit {
    each(args, config, async |desk, image| done(desk.unpin(image).await?, pinned))
}

pub fn remove(args: &RemoveArgs, config: Loaded) -> Exit {
    each(&args.args, config, async |desk, image| {
        done(desk.remove(image, args.force).await?, removed)
    })
}

pub fn refresh(args: &Args, config: Loaded) -> Exit {
    each(args, config, async |desk, image| {
        done(desk.refresh(image).await?, refreshed)
    })
}

/// What came of one image: for people, and for programs.
type Done = Result<(String, Value), String>;

fn done<T: Serialize>(view: T, say: impl FnOnce(&T) -> String) -> Done {
    let value = serde_json::to_value(&view).map_err(|error| error.to_string())?;
    Ok((say(&view), value))
}

fn each(args: &Args, config: Loaded, act: impl AsyncFn(&Desk, &str) -> Done) -> Exit {
    with_desk(&args.place, config, async |desk: &Desk| {
        let mut exit = Exit::Done;
        let mut results = Vec::new();
        for image in &args.images {
            match act(desk, image).await {
                Ok((text, _)) if !args.place.json => {
                    print(&format!("{}\n", printable(&text)));
                }
                Ok((_, value)) => results.push(value),
                Err(error) => {
                    complain(&printable(&error));
                    results.push(json!({ "name": image, "error": error }));
                    exit = Exit::Failed;
                }
            }
        }
        if args.place.json && print_json(&results) != Exit::Done {
            exit = Exit::Failed;
        }
        Ok(exit)
    })
}

fn pinned(view: &PinView) -> String {
    if !view.pinned {
        return format!("{}: not pinned any more", view.name);
    }
    let missing = match view.missing {
        0 => String::new(),
        n => format!(
            "; {} of it not cached yet: what is pulled later stays too",
            count(n, "blob")
        ),
    };
    format!("{}: pinned, {} cached{missing}", view.name, size(view.held_bytes))
}

fn removed(view: &RemovedView) -> String {
    let later = match view.later_bytes {
        0 => String::new(),
        bytes => format!(
            "; {} of it when they have been sent to those who read them now",
            size(bytes)
        ),
    };
    let what = match view.blobs {
        0 => "nothing freed: other images or pins need all of it".to_owned(),
        n => format!("{} freed in {}", size(view.freed_bytes), count(n, "blob")),
    };
    format!("{}: removed, {what}{later}", view.name)
}

fn refreshed(view: &RefreshView) -> String {
    let now = short(&view.digest);
    match &view.before {
        Some(before) if view.moved => format!("{}: moved from {} to {now}", view.name, short(before)),
        Some(_) => format!("{}: still {now}", view.name),
        None => format!("{}: {now}, which is new here", view.name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_no_plural() {
        let view = |missing| PinView {
            name: "a:1".to_owned(),
            pinned: true,
            missing,
            held_bytes: 4096,
        };
        assert_eq!(pinned(&view(0)), "a:1: pinned, 4.0 KiB cached");
        assert_eq!(
            pinned(&view(1)),
            "a:1: pinned, 4.0 KiB cached; 1 blob of it not cached yet: what is pulled later stays too"
        );
        let view = RemovedView {
            name: "a:1".to_owned(),
            freed_bytes: 4096,
            blobs: 1,
            later_bytes: 0,
        };
        assert_eq!(removed(&view), "a:1: removed, 4.0 KiB freed in 1 blob");
    }
}
