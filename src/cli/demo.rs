//! `larder demo`: the tour, and then upstream and proxy to play with.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::pin::pin;

use super::serve::Stop;
use super::{Exit, complain, print};
use crate::demo::{Demo, Folder, FolderError, Paint, Report};
use crate::telemetry::log;

/// Warnings, without those that the tour provokes on purpose.
const LOG_LEVEL: &str = "warn,larder::pull=error,larder::upstream::address=error";

#[derive(clap::Args)]
pub struct Args {
    /// The registry's port on 127.0.0.1; 0 takes any free one [default: 5000, or a free one if that is taken]
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// An empty folder for the cache, which stays [default: a temporary one, which does not]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// End after the tour instead of leaving upstream and proxy running
    #[arg(long, visible_alias = "no-wait")]
    exit: bool,
    /// Print what was measured as JSON, and nothing else
    #[arg(long)]
    json: bool,
    /// What the proxy logs to standard error, such as info or larder=debug [default: warnings]
    #[arg(long, value_name = "LEVEL")]
    log: Option<String>,
}

pub fn run(args: &Args) -> Exit {
    if let Err(error) = log::init(args.log.as_deref().unwrap_or(LOG_LEVEL), false) {
        complain(&error.to_string());
        return Exit::Usage;
    }
    let folder = match Folder::new(args.cache.as_deref()) {
        Ok(folder) => folder,
        Err(error) => {
            complain(&error.to_string());
            return match error {
                FolderError::NotEmpty(_) => Exit::Usage,
                FolderError::Unusable { .. } | FolderError::NoRoom { .. } => Exit::Failed,
            };
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("cannot start: {error}"));
            return Exit::Failed;
        }
    };
    let exit = runtime.block_on(tour(args, &folder));
    // Waits for disk work that is still running: the folder is removed after its last file was written.
    drop(runtime);
    drop(folder);
    exit
}

async fn tour(args: &Args, folder: &Folder) -> Exit {
    let mut signals = Stop::listen();
    let mut stop = pin!(signals.asked());
    let started = tokio::select! {
        started = Demo::start(folder, args.port, paint()) => started,
        why = &mut stop => return interrupted(why),
    };
    let mut demo = match started {
        Ok(demo) => demo,
        Err(error) => {
            complain(&format!("cannot start: {error}"));
            return Exit::Failed;
        }
    };
    let mut say = |text: &str| {
        if !args.json {
            print(text);
        }
    };
    let toured = tokio::select! {
        report = demo.run(&mut say) => Ok(told(report, args.json)),
        why = &mut stop => Err(why),
    };
    let exit = match toured {
        Ok(Exit::Done) if !args.exit => {
            say(&demo.by_hand());
            stop.await;
            Exit::Done
        }
        Ok(exit) => exit,
        Err(why) => interrupted(why),
    };
    demo.stop().await;
    exit
}

/// Whether all went well; with `--json`, once it is written down.
fn told(report: &Report, json: bool) -> Exit {
    let written = match serde_json::to_string_pretty(report) {
        Ok(text) if json => print(&(text + "\n")),
        Ok(_) => Exit::Done,
        Err(error) => {
            complain(&format!("the report cannot be written: {error}"));
            Exit::Failed
        }
    };
    match report.ok {
        true => written,
        false => Exit::Failed,
    }
}

fn interrupted(why: &str) -> Exit {
    complain(&format!("{why} before the end of the tour"));
    Exit::Failed
}

/// Colours on a terminal that can show them, unless the user wants none (no-color.org).
fn paint() -> Paint {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let is_dumb = set("TERM").is_none_or(|term| term == "dumb");
    Paint {
        in_colour: std::io::stdout().is_terminal() && set("NO_COLOR").is_none() && !is_dumb,
    }
}
