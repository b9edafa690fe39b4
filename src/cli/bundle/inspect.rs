//! `larder bundle inspect`: needs no proxy and no folder.

use std::path::PathBuf;

use super::super::ls::short;
use super::super::table::{Align, Table, ago, count, printable, size};
use super::super::{Exit, complain, print, print_json};
use super::source::{self, Names};
use super::text::date;
use super::{Outcome, read_key, read_text};
use crate::bundle::inspect::{Inspection, Look, Signature, inspect};
use crate::bundle::receipt::{Known, MAX_RECEIPT_BYTES};
use crate::bundle::sign::PublicKey;
use crate::config::Config;

#[derive(clap::Args)]
pub struct Args {
    /// A bundle or its volumes, or what else `import` takes; - is standard input
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    names: Names,
    /// Hold its signature against this public key too, beside bundle.trusted_keys
    #[arg(long, value_name = "FILE.pub")]
    key: Option<PathBuf>,
    /// Say what it would change at the site that wrote this receipt
    #[arg(long, value_name = "FILE")]
    receipt: Option<PathBuf>,
    /// Read and hash all of it; each volume can be checked alone
    #[arg(long)]
    verify: bool,
    /// Print the catalogue alone, for `larder bundle create --since`
    #[arg(long)]
    catalog: bool,
    /// Print data for programs in place of text
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, config: Option<&Config>) -> Outcome {
    if let Err(error) = source::check(&args.files, &args.names) {
        complain(&printable(&error));
        return Ok(Exit::Usage);
    }
    let failed = |error: crate::bundle::BundleError| error.to_string();
    let configured = config.iter().flat_map(|config| &config.bundle.trusted_keys);
    let mut keys: Vec<PublicKey> = configured.filter_map(|text| PublicKey::parse(text).ok()).collect();
    keys.extend(args.key.as_deref().map(read_key).transpose()?);
    let receipt = args
        .receipt
        .as_deref()
        .map(|path| read_text(path, MAX_RECEIPT_BYTES))
        .transpose()?;
    let known = receipt
        .map(|text| Known::parse(text.as_bytes()))
        .transpose()
        .map_err(failed)?;
    let mut source = source::open(&args.files, &args.names.naming(), source::silent())?;
    let look = Look {
        keys: &keys,
        known: known.as_ref(),
        verify: args.verify,
    };
    let (mut found, catalog) = inspect(&mut *source.input, &look, &mut |_| {}).map_err(failed)?;
    found.not_taken.extend(source.foreign.unwrap_or_default());
    if args.catalog {
        return Ok(print(&String::from_utf8_lossy(&catalog)));
    }
    let told = match args.json {
        true => print_json(&found),
        false => print(&text(&found)),
    };
    let bad = matches!(found.signature, Signature::Bad(_)) || found.damaged.as_ref().is_some_and(|bad| !bad.is_empty());
    Ok(if bad { Exit::Failed } else { told })
}

fn text(found: &Inspection) -> String {
    let mut columns = vec![
        ("IMAGE", Align::Left),
        ("DIGEST", Align::Left),
        ("PLATFORMS", Align::Left),
        ("BRINGS", Align::Right),
        ("CHECKED", Align::Right),
    ];
    if found.change.is_some() {
        columns.push(("THERE", Align::Left));
    }
    columns.push(("", Align::Left));
    let mut table = Table::new(&columns);
    for row in &found.images {
        let mut cells = vec![
            row.name.clone(),
            short(&row.digest),
            row.platforms.join(", "),
            size(row.bytes),
            ago(row.checked_ms),
        ];
        if found.change.is_some() {
            cells.push(row.outcome.map_or("", |outcome| outcome.as_str()).to_owned());
        }
        let mut notes = Vec::new();
        notes.extend(row.private.then(|| "private".to_owned()));
        notes.extend((row.absent > 0).then(|| format!("without {}", count(row.absent, "other blob"))));
        notes.extend((row.referrers > 0).then(|| count(row.referrers, "referrer")));
        cells.push(notes.join(", "));
        table.row(cells);
    }
    let mut text = table.text();
    // A bundle without any image has no date.
    let made = match found.created_ms {
        0 => String::new(),
        ms => format!(" of {}", date(ms)),
    };
    for left in &found.not_taken {
        text += &format!("would not be taken: {}\n", printable(&left.to_string()));
    }
    text += &format!(
        "{}, {} in {}; bundle {}{made}\n",
        count(found.images.len(), "image"),
        size(found.bytes),
        count(found.blobs, "blob"),
        found.bundle
    );
    text += &match &found.signature {
        Signature::None => "not signed\n".to_owned(),
        Signature::Unchecked => "signed; no key was given to hold that against (--key)\n".to_owned(),
        Signature::Good(key) => format!("signed by {key}\n"),
        Signature::Bad(why) => format!("SIGNATURE: {why}\n"),
    };
    if let Some(since) = &found.since {
        text += &format!(
            "an increment upon {}: {} that it needs stayed out, {}\n",
            since.digest,
            count(found.omitted_blobs, "blob"),
            size(since.saved_bytes)
        );
    }
    if !found.missing_volumes.is_empty() {
        let list: Vec<String> = found.missing_volumes.iter().map(ToString::to_string).collect();
        text += &format!("volumes {} of {} are not here\n", list.join(", "), found.volumes);
    }
    if let Some(change) = found.change {
        text += &format!(
            "there it would bring {} new, {}",
            count(change.new_blobs, "blob"),
            size(change.new_bytes)
        );
        text += &match change.missing_blobs {
            0 => "\n".to_owned(),
            n => format!("; {} that it builds upon would be MISSING\n", count(n, "blob")),
        };
    }
    match &found.damaged {
        None => {}
        Some(bad) if bad.is_empty() => text += "all of it is as its digests say\n",
        Some(bad) => {
            for (volume, digest) in bad {
                text += &format!("DAMAGED in volume {volume}: {}\n", printable(digest));
            }
        }
    }
    text
}
