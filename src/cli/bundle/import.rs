//! `larder bundle import`.

use std::path::PathBuf;

use super::super::desk::{Desk, Place, with_desk_to_fill};
use super::super::ls::short;
use super::super::table::{count, printable, size};
use super::super::{Exit, complain, print, print_json};
use super::text::date;
use super::{Outcome, Progress, read_key};
use crate::admin::ImportOrder;
use crate::bundle::report::{ImageRow, Outcome as Became, Report};
use crate::bundle::{Input, foreign, input, pipe};
use crate::config::{Config, ConfigError};

#[derive(clap::Args)]
pub struct Args {
    /// A bundle or its volumes; with --as, or by its own names, an OCI layout (folder or tar) or an archive of `docker save`
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Trust this public key too, beside bundle.trusted_keys
    #[arg(long, value_name = "FILE.pub")]
    key: Option<PathBuf>,
    /// Take it without a signature that can be checked
    #[arg(long)]
    unsigned: bool,
    /// Move tags back to what an older bundle says
    #[arg(long)]
    older: bool,
    /// The name for what is no bundle: docker.io/library/alpine:3.22; without a tag for a layout with several
    #[arg(long = "as", value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    place: Place,
}

pub fn run(args: &Args, config: Result<Config, ConfigError>) -> Exit {
    with_desk_to_fill(&args.place, config, async |desk: &Desk| import(args, desk).await)
}

async fn import(args: &Args, desk: &Desk) -> Outcome {
    let key = args.key.as_deref().map(read_key).transpose()?;
    let mut order = ImportOrder {
        key: key.map(|key| key.to_text()),
        unsigned: args.unsigned,
        older: args.older,
    };
    let (source, total, is_foreign) = open(args)?;
    if is_foreign {
        // Nobody signs these; who gives them a name vouches for them.
        (order.unsigned, order.key) = (true, None);
    }
    let progress = Progress::new(total);
    let counted: Box<dyn Input> = Box::new(Counted {
        input: source,
        progress: progress.clone(),
    });
    let report = progress.beside(desk.bundle_import(counted, &order)).await?;
    let told = match args.place.json {
        true => print_json(&report),
        false => print(&text(&report)),
    };
    for problem in problems(&report) {
        complain(&printable(&problem));
    }
    Ok(if report.is_whole() { told } else { Exit::Failed })
}

/// What is to be imported, its bytes, and whether it is no bundle of ours.
fn open(args: &Args) -> Result<(Box<dyn Input>, u64, bool), String> {
    let failed = |error: crate::bundle::BundleError| error.to_string();
    if let [file] = args.files.as_slice()
        && (args.name.is_some() || foreign::is_foreign(file))
    {
        let archive = foreign::open(file, args.name.as_deref()).map_err(failed)?;
        let total = archive.bytes();
        let (sender, reader) = pipe::pipe();
        std::thread::spawn(move || archive.write(sender));
        return Ok((Box::new(reader), total, true));
    }
    if args.name.is_some() {
        return Err("--as names one archive; give one".to_owned());
    }
    let mut files = Vec::new();
    for file in &args.files {
        files.extend(input::volumes(file).map_err(failed)?);
    }
    let total = files
        .iter()
        .filter_map(|file| file.metadata().ok())
        .map(|meta| meta.len())
        .sum();
    Ok((input::open(&files).map_err(failed)?, total, false))
}

/// Tells how far it was read.
struct Counted {
    input: Box<dyn Input>,
    progress: Progress,
}

impl std::io::Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.progress.add(count as u64);
        Ok(count)
    }
}

impl Input for Counted {
    fn skip(&mut self, count: u64) -> std::io::Result<u64> {
        let passed = self.input.skip(count)?;
        self.progress.add(passed);
        Ok(passed)
    }

    fn back(&mut self, count: u64) -> std::io::Result<bool> {
        self.input.back(count)
    }
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    for row in &report.images {
        let line = match (&row.outcome, &row.before) {
            (Became::Unchanged, _) => continue,
            (Became::New, _) => format!("{}: new, {}", row.name, short(&row.digest)),
            (Became::Moved, Some(before)) => {
                format!("{}: moved from {} to {}", row.name, short(before), short(&row.digest))
            }
            (Became::Older, _) => format!(
                "{}: stays, it was confirmed later here (--older moves it back)",
                row.name
            ),
            _ => incomplete(row),
        };
        text += &format!("{}\n", printable(&line));
    }
    let by = match &report.signed_by {
        Some(key) => format!("signed by {key}"),
        None => "not signed by anybody who is trusted".to_owned(),
    };
    // Archives of other tools have no date.
    let made = match report.created_ms {
        0 => String::new(),
        ms => format!("bundle of {}, ", date(ms)),
    };
    text += &format!(
        "{}: {} new, {} moved, {} unchanged; {} came, {} were here; {made}{by}\n",
        count(report.images.len(), "image"),
        report.count(Became::New),
        report.count(Became::Moved),
        report.count(Became::Unchanged),
        size(report.new_bytes),
        size(report.held_bytes)
    );
    text
}

fn incomplete(row: &ImageRow) -> String {
    let few: Vec<&str> = row
        .missing
        .iter()
        .take(3)
        .map(|digest| short_with_name(digest))
        .collect();
    let more = match row.missing.len() {
        0..=3 => String::new(),
        n => format!(" and {} more", n - 3),
    };
    format!("{}: not shown, for want of {}{more}", row.name, few.join(", "))
}

fn short_with_name(digest: &str) -> &str {
    digest.get(..19).unwrap_or(digest)
}

fn problems(report: &Report) -> Vec<String> {
    let mut problems = Vec::new();
    if !report.missing_volumes.is_empty() && !report.is_whole() {
        let list: Vec<String> = report.missing_volumes.iter().map(ToString::to_string).collect();
        let how = match &report.signed_by {
            Some(_) => "import them too, in any number of steps",
            None => "of a bundle that nobody signed all have to be imported at once",
        };
        let (list, all) = (list.join(", "), report.volumes);
        problems.push(format!("volumes {list} of {all} were not there: {how}"));
    }
    if !report.damaged.is_empty() {
        problems.push(format!(
            "damaged in this copy: {}. What is right of it is kept: copy it again and import it again",
            report.damaged.join(", ")
        ));
    }
    let incomplete = report.count(Became::Incomplete);
    match &report.since {
        Some(since) if incomplete > 0 && report.damaged.is_empty() && report.missing_volumes.is_empty() => {
            problems.push(format!(
                "{}: this increment builds upon {since}; import what came before it, or have a bundle made by a new receipt",
                count(incomplete, "incomplete image")
            ));
        }
        None if incomplete > 0 && report.signed_by.is_none() && report.damaged.is_empty() && report.missing_volumes.is_empty() => problems.push(
            "what an image lacks may be here for private repositories alone; only a signed bundle may say who else has it".to_owned(),
        ),
        _ => {}
    }
    problems
}
