//! `larder bundle`: images that cross an air gap as files.
//!
//! Archives are read and written here, on the machine of whoever calls; the proxy sends and takes streams. A key to sign
//! with is used here and goes nowhere.

mod create;
mod import;
mod inspect;
mod receipt;
mod source;
mod text;

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Subcommand;

use super::table::{size, span};
use super::{Exit, complain, print};
use crate::bundle::sign::{self, PublicKey};
use crate::config::{Config, ConfigError};

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Write images into an archive, or into volumes for small media
    Create(create::Args),
    /// Take images in: a bundle, an OCI layout, or what `docker save`, crane, podman, skopeo or containerd wrote
    Import(import::Args),
    /// Say what is inside a bundle or another tool's archive, and what it would change
    Inspect(inspect::Args),
    /// Write down what this site has, for the next bundle
    Receipt(receipt::Args),
    /// Make a pair of keys: one to sign bundles with, one to check them by
    Keygen {
        /// The secret key's file; the public key goes to OUT.pub
        #[arg(value_name = "OUT")]
        out: PathBuf,
    },
}

/// What a command gave, or why it gave nothing.
type Outcome = Result<Exit, String>;

pub fn run(args: &Args, config: impl Fn() -> Result<Config, ConfigError>) -> Exit {
    match &args.what {
        What::Create(args) => create::run(args, config()),
        What::Import(args) => import::run(args, config()),
        What::Inspect(args) => ended(inspect::run(args, config().ok().as_ref())),
        What::Receipt(args) => receipt::run(args, config()),
        What::Keygen { out } => ended(keygen(out)),
    }
}

fn ended(outcome: Outcome) -> Exit {
    outcome.unwrap_or_else(|error| {
        complain(&error);
        Exit::Failed
    })
}

fn keygen(out: &Path) -> Outcome {
    let (public, key) = sign::keygen(out).map_err(|error| error.to_string())?;
    Ok(print(&format!(
        "secret key: {} (keep it where bundles are made; it has no password)\npublic key: {}\nat the other side, in proxy.toml:\n\n[bundle]\ntrusted_keys = [\"{}\"]\n",
        out.display(),
        public.display(),
        key.to_text()
    )))
}

fn read_key(path: &Path) -> Result<PublicKey, String> {
    PublicKey::read(path).map_err(|error| error.to_string())
}

/// A file that people carry: a receipt or a catalogue.
fn read_text(path: &Path, limit: u64) -> Result<String, String> {
    let failed = |error: std::io::Error| format!("{} cannot be read: {error}", path.display());
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(limit + 1).read_to_string(&mut text).map_err(failed)?;
    match text.len() as u64 > limit {
        true => Err(format!("{} is larger than {limit} bytes", path.display())),
        false => Ok(text),
    }
}

/// How far it has come, on standard error.
#[derive(Clone)]
struct Progress {
    done: Arc<AtomicU64>,
    total: u64,
    begun: Instant,
}

/// Where no terminal shows a line that changes, a new one is written this often.
const LINE_EVERY: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(250);

impl Progress {
    fn new(total: u64) -> Progress {
        Progress {
            done: Arc::default(),
            total,
            begun: Instant::now(),
        }
    }

    fn add(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Shows it until `work` ends.
    async fn beside<T>(&self, work: impl Future<Output = T>) -> T {
        let is_terminal = std::io::stderr().is_terminal();
        let every = if is_terminal { LOOK_AGAIN } else { LINE_EVERY };
        let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + every, every);
        tokio::pin!(work);
        let outcome = loop {
            tokio::select! {
                outcome = &mut work => break outcome,
                _ = ticks.tick() => {
                    let (start, end) = if is_terminal { ("\r\x1b[K", "") } else { ("", "\n") };
                    let mut err = std::io::stderr().lock();
                    let _ = write!(err, "{start}{}{end}", self.line());
                    let _ = err.flush();
                }
            }
        };
        if is_terminal {
            let _ = write!(std::io::stderr().lock(), "\r\x1b[K");
        }
        outcome
    }

    /// `1.0 GiB of 4.0 GiB, 480.0 MiB/s, 6s left`
    fn line(&self) -> String {
        let done = self.done.load(Ordering::Relaxed);
        let speed = done as f64 / self.begun.elapsed().as_secs_f64().max(0.001);
        let mut line = size(done);
        if self.total > 0 {
            line += &format!(" of {}", size(self.total));
        }
        line += &format!(", {}/s", size(speed as u64));
        if self.total > 0 && speed >= 1.0 {
            let left = self.total.saturating_sub(done) as f64 / speed;
            line += &format!(", {} left", span(left.ceil() as u64));
        }
        line
    }
}
