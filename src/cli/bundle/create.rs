//! `larder bundle create`.

use std::path::PathBuf;

use serde_json::json;

use super::super::desk::{Desk, Place, with_desk};
use super::super::table::{count, printable, size};
use super::super::{Exit, complain, print, print_json};
use super::{Outcome, Progress, read_text};
use crate::admin::{BundleOrder, PlanView};
use crate::bundle::receipt::MAX_RECEIPT_BYTES;
use crate::bundle::seal::{Seal, Sealed, seal};
use crate::bundle::sign::SecretKey;
use crate::config::{Config, ConfigError, units};

/// A password for the key, where it has one.
const PASSWORD: &str = crate::config::BUNDLE_PASSWORD_VARIABLE;
/// Seconds since 1970, for builds that are to be the same (reproducible-builds.org).
const EPOCH: &str = "SOURCE_DATE_EPOCH";

#[derive(clap::Args)]
pub struct Args {
    /// The archive to write, such as images.tar; with --volume-size OUT.001, OUT.002 and on
    #[arg(value_name = "OUT")]
    out: PathBuf,
    /// As clients call them, or with * as `larder ls` takes them [default: all that is cached]
    #[arg(value_name = "IMAGE")]
    images: Vec<String>,
    /// Only what the other side lacks: its receipt, or the catalogue of the last bundle that it took in
    #[arg(long, value_name = "FILE")]
    since: Option<PathBuf>,
    /// Files of at most this size, such as 4GiB
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    volume_size: Option<u64>,
    /// Compress what is not compressed yet; most tools read that too
    #[arg(long)]
    zstd: bool,
    /// Sign with this secret key, made by `larder bundle keygen` or minisign
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Leave out images that are not completely cached, in place of refusing
    #[arg(long)]
    partial: bool,
    /// Only say what it would be
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    place: Place,
}

fn bytes(text: &str) -> Result<u64, String> {
    units::parse_size(text).ok_or_else(|| format!("expected {}", units::SIZE))
}

pub fn run(args: &Args, config: Result<Config, ConfigError>) -> Exit {
    let prepared = order(args).and_then(|order| Ok((order, key(args)?)));
    let (order, key) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            complain(&error);
            return Exit::Failed;
        }
    };
    with_desk(&args.place, config, async |desk: &Desk| {
        create(args, &order, key, desk).await
    })
}

fn order(args: &Args) -> Result<BundleOrder, String> {
    let since = args.since.as_deref().map(|path| read_text(path, MAX_RECEIPT_BYTES));
    let epoch = std::env::var(EPOCH).ok().map(|text| {
        let seconds: Result<u64, _> = text.trim().parse();
        seconds.map_err(|_| format!("{EPOCH}={text:?}: expected seconds since 1970"))
    });
    Ok(BundleOrder {
        images: args.images.clone(),
        since: since.transpose()?,
        partial: args.partial,
        volume_size: args.volume_size,
        created_ms: epoch.transpose()?.map(|seconds| seconds.saturating_mul(1000)),
    })
}

fn key(args: &Args) -> Result<Option<SecretKey>, String> {
    let read = |path: &PathBuf| SecretKey::read(path, std::env::var(PASSWORD).ok());
    args.key
        .as_ref()
        .map(read)
        .transpose()
        .map_err(|error| error.to_string())
}

async fn create(args: &Args, order: &BundleOrder, key: Option<SecretKey>, desk: &Desk) -> Outcome {
    let plan = desk.bundle_plan(order).await?;
    for name in &plan.left_out {
        complain(&printable(&format!("{name} is not cached completely: left out")));
    }
    if args.dry_run {
        return Ok(match args.place.json {
            true => print_json(&plan),
            false => print(&told(&plan)),
        });
    }
    let mut input = desk.bundle_create(order).await?;
    let signed = key.is_some();
    let how = Seal {
        out: args.out.clone(),
        key,
        zstd: args.zstd,
    };
    let progress = Progress::new(plan.bytes);
    let counted = progress.clone();
    let sealing = tokio::task::spawn_blocking(move || seal(&mut *input, &how, &mut |bytes| counted.add(bytes)));
    let sealed = progress.beside(sealing).await.map_err(|error| error.to_string())?;
    let sealed = sealed.map_err(|error| error.to_string())?;
    if !signed {
        complain(
            "note: the bundle is not signed; whoever takes it in has to say --unsigned. `larder bundle keygen` makes a key",
        );
    }
    Ok(match args.place.json {
        true => print_json(&json!({
            "bundle": sealed.id,
            "files": sealed.files.iter().map(|(path, bytes)| json!({ "path": path, "bytes": bytes })).collect::<Vec<_>>(),
            "plan": plan,
        })),
        false => print(&text(&sealed, &plan)),
    })
}

fn told(plan: &PlanView) -> String {
    let mut text = format!(
        "{}, {} in {}",
        count(plan.images, "image"),
        size(plan.bytes),
        count(plan.blobs, "blob")
    );
    if plan.volumes > 1 {
        text += &format!(", {} volumes", plan.volumes);
    }
    if plan.saved_bytes > 0 {
        text += &format!("; {} are there already and stay out", size(plan.saved_bytes));
    }
    if plan.private_images > 0 {
        text += &format!("; {} of private repositories", count(plan.private_images, "image"));
    }
    text + "\n"
}

fn text(sealed: &Sealed, plan: &PlanView) -> String {
    let mut text = String::new();
    for (path, bytes) in &sealed.files {
        text += &format!("{}: {}\n", printable(&path.display().to_string()), size(*bytes));
    }
    text + &told(plan) + &format!("bundle {}\n", sealed.id)
}
