//! `larder bundle import`.

use std::path::PathBuf;
use std::sync::Arc;

use super::super::desk::{Desk, Place, with_desk_to_fill};
use super::super::ls::short;
use super::super::table::{count, printable, size};
use super::super::{Exit, complain, print, print_json};
use super::source::{self, Names, Source};
use super::text::date;
use super::{Outcome, Progress, read_key};
use crate::admin::ImportOrder;
use crate::bundle::Input;
use crate::bundle::report::{ImageRow, Outcome as Became, Report};
use crate::config::{Config, ConfigError};

#[derive(clap::Args)]
pub struct Args {
    /// A bundle or its volumes; an OCI layout, an archive of `docker save` or a folder of skopeo's; a tar may be
    /// compressed; - is standard input
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
    #[command(flatten)]
    names: Names,
    #[command(flatten)]
    place: Place,
}

pub fn run(args: &Args, config: Result<Config, ConfigError>) -> Exit {
    if let Err(error) = source::check(&args.files, &args.names) {
        complain(&printable(&error));
        return Exit::Usage;
    }
    with_desk_to_fill(&args.place, config, async |desk: &Desk| import(args, desk).await)
}

async fn import(args: &Args, desk: &Desk) -> Outcome {
    let key = args.key.as_deref().map(read_key).transpose()?;
    let mut order = ImportOrder {
        key: key.map(|key| key.to_text()),
        unsigned: args.unsigned,
        older: args.older,
    };
    let source = look(args).await?;
    if source.foreign.is_some() {
        // No tool signs these: the caller is responsible for their origin.
        (order.unsigned, order.key) = (true, None);
    }
    let progress = Progress::new(source.total);
    let counted: Box<dyn Input> = Box::new(Counted {
        input: source.input,
        progress: progress.clone(),
    });
    let mut report = progress.beside(desk.bundle_import(counted, &order)).await?;
    report.not_taken.extend(source.foreign.unwrap_or_default());
    let told = match args.place.json {
        true => print_json(&report),
        false => print(&text(&report)),
    };
    for problem in problems(&report) {
        complain(&printable(&problem));
    }
    let is_done = report.is_whole() && report.not_taken.is_empty();
    Ok(if is_done { told } else { Exit::Failed })
}

/// Opens what is to be imported. An archive of another tool is looked through first, which takes its time.
async fn look(args: &Args) -> Result<Source, String> {
    let looking = Progress::new(0);
    let told = {
        let looking = looking.clone();
        Arc::new(move |bytes| looking.add(bytes))
    };
    let (files, naming) = (args.files.clone(), args.names.naming());
    let opening = tokio::task::spawn_blocking(move || source::open(&files, &naming, told));
    let opened = looking.beside(opening).await;
    opened.map_err(|error| format!("the archive could not be looked through: {error}"))?
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

    fn skips_unread(&self) -> bool {
        self.input.skips_unread()
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
    for left in &report.not_taken {
        text += &format!("not taken: {}\n", printable(&left.to_string()));
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
    if !report.unserved.is_empty() {
        problems.push(format!(
            "came and cannot be pulled by anybody: {}. Their registries are no upstreams of this Larder, or its rules leave them out: name them in proxy.toml ([upstream.\"…\"]), or import under another name with --as",
            report.unserved.join(", ")
        ));
    }
    match report.not_taken.len() {
        0 => {}
        1 => problems.push("the archive has more than was taken: what is listed as not taken".to_owned()),
        n => problems.push(format!(
            "the archive has more than was taken: the {n} that are listed as not taken"
        )),
    }
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
