//! `larder prefetch`: images before anybody asks for them.
//!
//! `gather` finds what is wanted: words, list files, wishes, and files that people have anyway (`lists`). The work is a
//! job of the proxy, or of this process on its folder; `follow` watches it and `bars` shows it on a terminal.

mod bars;
mod follow;
mod gather;

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::path::PathBuf;

use self::follow::{Ending, follow};
use self::gather::Entry;
use super::desk::{Desk, Place, with_desk, with_desk_to_fill};
use super::lists::Kind;
use super::table::{Align, Table, ago, count, printable, size};
use super::{Exit, complain, print, print_json};
use crate::admin::prefetch::{PrefetchImage, PrefetchOrder, PrefetchView};
use crate::config::{Config, ConfigError};

const NO_PROXY: &str = "no proxy runs that it could be left to: leave out --detach";

#[derive(clap::Args)]
#[command(after_help = "\
Images are called as clients call them. A pattern stands where the tag stands: 'alpine:3.*'; --tags, --semver and
--newest say the same for every IMAGE. List files have an image a line, with options behind it:

  alpine:3.22
  alpine:3.* newest=3
  nginx semver=\">=1.25, <2\" platform=linux/amd64,linux/arm64
  redis tags=*-alpine newest=1 referrers=no   # comments begin with a number sign")]
pub struct Args {
    /// What to fetch: alpine:3.22, ghcr.io/owner/app@sha256:…, 'alpine:3.*'
    #[arg(value_name = "IMAGE")]
    images: Vec<String>,
    /// A list, an image a line; - for standard input
    #[arg(long, value_name = "FILE")]
    file: Vec<PathBuf>,
    /// A file that names images: compose, Kubernetes manifests, a Dockerfile, lists of other tools; - for standard input
    #[arg(long, value_name = "FILE")]
    from: Vec<PathBuf>,
    /// What --from is, where its content does not tell
    #[arg(long, value_enum, requires = "from")]
    kind: Option<Kind>,
    /// Take possible images as well: what looks like one in custom resources, arguments and variables
    #[arg(long, alias = "perhaps", requires = "from")]
    possible: bool,
    /// What a closed site wished for: its receipt, or what `larder wishes --json` printed there
    #[arg(long, value_name = "FILE")]
    wishes: Vec<PathBuf>,
    /// Platforms to take of images for several: linux/amd64, linux/arm64/v8, all [default: those that clients have pulled so far]
    #[arg(long, value_name = "PLATFORM", value_delimiter = ',')]
    platform: Vec<String>,
    /// Of every IMAGE, the tags that fit: '3.*', '*-alpine'
    #[arg(long, value_name = "PATTERN")]
    tags: Option<String>,
    /// Of every IMAGE, the tags in a range of versions: '>=3.18, <4', '^1.2'
    #[arg(long, value_name = "RANGE")]
    semver: Option<String>,
    /// Of every IMAGE, the newest so many of the tags
    #[arg(long, value_name = "N")]
    newest: Option<usize>,
    /// Leave out signatures, SBOMs and attestations
    #[arg(long)]
    no_referrers: bool,
    /// Say what would be fetched and how much of it is new; fetches manifests, and nothing else
    #[arg(long)]
    dry_run: bool,
    /// Ask nothing before it begins
    #[arg(long, short)]
    yes: bool,
    /// Leave it to the proxy and return
    #[arg(long, conflicts_with = "dry_run")]
    detach: bool,
    /// Blobs that come at the same time [default: 6]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    parallel: Option<u8>,
    /// Begin a `[[prefetch]]` of the configuration now, whatever its schedule; without NAME, one after the other, all of them
    #[arg(
        long,
        value_name = "NAME",
        num_args = 0..=1,
        conflicts_with_all = ["images", "file", "from", "wishes", "platform", "tags", "semver", "newest", "no_referrers"]
    )]
    configured: Option<Option<String>>,
    /// List what runs, ran and will run at the proxy
    #[arg(long, conflicts_with_all = ["images", "file", "from", "wishes", "cancel", "configured"])]
    jobs: bool,
    /// End a job of the proxy, by its number
    #[arg(long, value_name = "JOB", conflicts_with_all = ["images", "file", "from", "wishes"])]
    cancel: Option<u64>,
    #[command(flatten)]
    place: Place,
}

pub fn run(args: &Args, config: Result<Config, ConfigError>) -> Exit {
    if args.jobs {
        return with_desk(&args.place, config, async |desk: &Desk| jobs(args, desk).await);
    }
    if let Some(id) = args.cancel {
        return with_desk(&args.place, config, async |desk: &Desk| {
            let view = desk.cancel_prefetch(id).await?;
            Ok(match args.place.json {
                true => print_json(&view),
                false => print(&format!("prefetch {id}: ends\n")),
            })
        });
    }
    if let Some(name) = &args.configured {
        return with_desk_to_fill(&args.place, config, async |desk: &Desk| {
            configured(args, desk, name.as_deref()).await
        });
    }
    let gathered = match gather::gather(args) {
        Ok(gathered) => gathered,
        Err(errors) => {
            for error in errors {
                complain(&error);
            }
            return Exit::Usage;
        }
    };
    if gathered.entries.is_empty() {
        return print("nothing was wished for\n");
    }
    let exit = with_desk_to_fill(&args.place, config, async |desk: &Desk| {
        fetch(args, desk, &gathered.entries).await
    });
    match (exit, gathered.unread) {
        (Exit::Done, 1..) => {
            let parts = count(gathered.unread, "part");
            complain(&format!("not read, and named above: {parts} of the files of --from"));
            Exit::Failed
        }
        (exit, _) => exit,
    }
}

/// Those of the configuration: of the proxy's, where one runs.
async fn configured(args: &Args, desk: &Desk, name: Option<&str>) -> Result<Exit, String> {
    if args.detach && desk.is_folder() {
        return Err(NO_PROXY.to_owned());
    }
    let names = match name {
        Some(name) => vec![name.to_owned()],
        None => {
            let list = desk.prefetches().await?;
            list.schedules.into_iter().map(|schedule| schedule.name).collect()
        }
    };
    if names.is_empty() {
        return Err("the configuration has no [[prefetch]]".to_owned());
    }
    let mut worst = Exit::Done;
    for name in names {
        let order = PrefetchOrder {
            configured: Some(name.clone()),
            images: Vec::new(),
            platforms: Vec::new(),
            referrers: true,
            dry_run: args.dry_run,
            parallel: args.parallel.map(usize::from),
        };
        let begun = desk.prefetch(&order).await?;
        if !args.place.json {
            complain(&format!("prefetch {name}"));
        }
        let exit = match args.detach {
            true => left(args, &begun),
            false => {
                let (view, ending) = follow(desk, begun, args.place.json).await?;
                let exit = report(args, &[], &view, &ending);
                if ending != Ending::Ended {
                    return Ok(exit);
                }
                exit
            }
        };
        if exit != Exit::Done {
            worst = exit;
        }
    }
    Ok(worst)
}

/// To the proxy.
fn left(args: &Args, begun: &PrefetchView) -> Exit {
    match args.place.json {
        true => print_json(begun),
        false => print(&format!(
            "prefetch {} runs at the proxy: larder prefetch --jobs shows it, --cancel {} ends it\n",
            begun.id, begun.id
        )),
    }
}

async fn fetch(args: &Args, desk: &Desk, entries: &[Entry]) -> Result<Exit, String> {
    if args.detach && desk.is_folder() {
        return Err(NO_PROXY.to_owned());
    }
    let mut order = PrefetchOrder {
        configured: None,
        images: entries.iter().map(|entry| entry.line.clone()).collect(),
        platforms: args.platform.clone(),
        referrers: !args.no_referrers,
        dry_run: true,
        parallel: args.parallel.map(usize::from),
    };
    // What was found in files is shown before anything is fetched.
    let is_found = !args.from.is_empty() && !args.detach;
    if args.dry_run || is_found {
        let (plan, ending) = follow(desk, desk.prefetch(&order).await?, args.place.json).await?;
        if args.dry_run || ending != Ending::Ended {
            return Ok(report(args, entries, &plan, &ending));
        }
        if !args.place.json {
            print(&table(entries, &plan));
            complain(&summary(&plan));
        }
        if !agreed(args)? {
            return Err("nothing was fetched".to_owned());
        }
    }
    order.dry_run = false;
    let begun = desk.prefetch(&order).await?;
    if args.detach {
        return Ok(left(args, &begun));
    }
    let (view, ending) = follow(desk, begun, args.place.json).await?;
    Ok(report(args, entries, &view, &ending))
}

/// Asked on a terminal; who has none has said so by beginning.
fn agreed(args: &Args) -> Result<bool, String> {
    let (stdin, mut stderr) = (std::io::stdin(), std::io::stderr());
    if args.yes || args.place.json || !stdin.is_terminal() || !stderr.is_terminal() {
        return Ok(true);
    }
    let _ = write!(stderr, "Fetch them? [y/N] ").and_then(|()| stderr.flush());
    let mut answer = String::new();
    stdin
        .lock()
        .read_line(&mut answer)
        .map_err(|error| format!("no answer: {error}"))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn report(args: &Args, entries: &[Entry], view: &PrefetchView, ending: &Ending) -> Exit {
    let told = match args.place.json {
        true => print_json(view),
        false => print(&(table(entries, view) + &summary(view) + "\n")),
    };
    if let Ending::Interrupted(why) = ending {
        complain(why);
        return Exit::Failed;
    }
    for image in view
        .images
        .iter()
        .filter(|image| image.error.is_some() && !args.place.json)
    {
        let error = image.error.as_deref().unwrap_or_default();
        complain(&printable(&format!("{}: {error}", image.name)));
    }
    match view.state.as_str() {
        "done" => told,
        _ => Exit::Failed,
    }
}

fn table(entries: &[Entry], view: &PrefetchView) -> String {
    // Where everything was named on the command line, that says nothing.
    let has_source = entries.iter().any(|entry| entry.from.is_some());
    let mut columns = vec![
        ("IMAGE", Align::Left),
        ("PLATFORMS", Align::Left),
        ("SIZE", Align::Right),
        ("NEW", Align::Right),
        ("STATE", Align::Left),
    ];
    if has_source {
        columns.push(("FROM", Align::Left));
    }
    let mut table = Table::new(&columns);
    for image in view
        .images
        .iter()
        .filter(|image| image.state != "listed" || image.notes.is_empty())
    {
        let known = image.digest.is_some();
        let figure = |bytes: u64| if known { size(bytes) } else { "-".to_owned() };
        let mut cells = vec![
            image.name.clone(),
            platforms(image),
            figure(image.bytes),
            figure(image.new_bytes),
            state(image, view.dry_run),
        ];
        if has_source {
            cells.push(gather::sources(entries, &image.wanted));
        }
        table.row(cells);
    }
    let mut text = table.text();
    for image in &view.images {
        for note in &image.notes {
            text += &printable(&format!("{}: {note}", image.name));
            text.push('\n');
        }
    }
    text
}

fn platforms(image: &PrefetchImage) -> String {
    match image.platforms.is_empty() {
        true => "-".to_owned(),
        false => image.platforms.join(","),
    }
}

fn state(image: &PrefetchImage, dry_run: bool) -> String {
    let word = match (image.state.as_str(), image.new_bytes) {
        ("planned", 0) if dry_run && image.new_blobs == 0 => "cached",
        ("planned", _) if dry_run => "to fetch",
        ("held", _) => "cached",
        (state, _) => state,
    };
    match image.referrers {
        0 => word.to_owned(),
        n => format!("{word}, {}", count(n, "referrer")),
    }
}

/// `3 images for linux/amd64 (as asked for): 12.0 MiB, 4.0 MiB of it in 2 blobs new`
fn summary(view: &PrefetchView) -> String {
    let totals = &view.totals;
    let whom = match view.platforms.is_empty() {
        true => String::new(),
        false => format!(" for {} ({})", view.platforms.join(", "), view.platforms_from),
    };
    let mut text = format!(
        "{}{whom}: {}, {} of it in {} new",
        count(totals.images, "image"),
        size(totals.bytes),
        size(totals.new_bytes),
        count(totals.new_blobs, "blob"),
    );
    if !view.dry_run {
        text += &format!("; {} fetched, {} cached", size(totals.fetched_bytes), totals.held);
    }
    if totals.failed > 0 {
        text += &format!(", {} failed", totals.failed);
    }
    if view.state == "cancelled" {
        text += "; cancelled, and what was fetched stays";
    }
    text
}

async fn jobs(args: &Args, desk: &Desk) -> Result<Exit, String> {
    let list = desk.prefetches().await?;
    if args.place.json {
        return Ok(print_json(&list));
    }
    let mut text = String::new();
    if !list.schedules.is_empty() {
        let mut table = Table::new(&[("SCHEDULE", Align::Left), ("WHEN", Align::Left), ("NEXT", Align::Left)]);
        for schedule in &list.schedules {
            let next = schedule.next_ms.map_or_else(|| "-".to_owned(), super::table::date);
            table.row([schedule.name.clone(), schedule.schedule.clone(), next]);
        }
        text += &table.text();
        text.push('\n');
    }
    let columns = [
        ("JOB", Align::Right),
        ("NAME", Align::Left),
        ("STATE", Align::Left),
        ("STARTED", Align::Left),
        ("IMAGES", Align::Right),
        ("CACHED", Align::Right),
        ("FAILED", Align::Right),
        ("FETCHED", Align::Right),
    ];
    let mut table = Table::new(&columns);
    for job in &list.jobs {
        let totals = &job.totals;
        let state = if job.dry_run {
            format!("{} (dry run)", job.state)
        } else {
            job.state.clone()
        };
        table.row([
            job.id.to_string(),
            job.name.clone(),
            state,
            ago(Some(job.started_ms)),
            totals.images.to_string(),
            totals.held.to_string(),
            totals.failed.to_string(),
            size(totals.fetched_bytes),
        ]);
    }
    text += &match list.jobs.is_empty() {
        true => "no prefetch has run since the start\n".to_owned(),
        false => table.text(),
    };
    Ok(print(&text))
}
