//! When `larder serve` reads its configuration again: on SIGHUP, and when its file has changed.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::systemd;
use crate::app::Running;
use crate::config::{Config, ConfigError};

/// How often the file is looked at. It is taken when it looks the same twice: an editor may be in the middle of it.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Time and length of a file; also behind a symlink that is swapped, as Kubernetes does it.
type Stamp = Option<(SystemTime, u64)>;

fn stamp(path: &Path) -> Stamp {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.modified().ok()?, meta.len()))
}

/// A file that is looked at now and then.
struct Watch {
    path: PathBuf,
    taken: Stamp,
    seen: Stamp,
}

impl Watch {
    fn new(path: &Path) -> Watch {
        let now = stamp(path);
        Watch {
            path: path.to_owned(),
            taken: now,
            seen: now,
        }
    }

    /// Whether there is another text, and nobody writes it any more. One that is gone is on its way from somewhere.
    fn has_changed(&mut self) -> bool {
        let before = std::mem::replace(&mut self.seen, stamp(&self.path));
        let is_new = self.seen.is_some() && self.seen == before && self.seen != self.taken;
        if is_new {
            self.taken = self.seen;
        }
        is_new
    }
}

/// Hears SIGHUP from now on: before anybody is told that the proxy is ready, for without this the signal ends it.
pub(super) fn listen() -> Option<Signal> {
    signal(SignalKind::hangup()).ok()
}

/// Reloads for as long as the proxy runs. `file` is the one that was read at the start, if there was one.
pub(super) async fn run(
    running: &Running,
    file: Option<&Path>,
    mut hangup: Option<Signal>,
    load: &impl Fn() -> Result<Config, ConfigError>,
) -> Infallible {
    let mut watch = file.map(Watch::new);
    let mut tick = tokio::time::interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let why = tokio::select! {
            Some(()) = async { hangup.as_mut()?.recv().await } => "SIGHUP",
            _ = tick.tick() => match watch.as_mut().is_some_and(Watch::has_changed) {
                true => "its file has changed",
                false => continue,
            },
        };
        if let Some(watch) = &mut watch {
            watch.taken = stamp(&watch.path);
        }
        reload(running, why, load).await;
    }
}

async fn reload(running: &Running, why: &'static str, load: &impl Fn() -> Result<Config, ConfigError>) {
    systemd::tell_reloading();
    let read = load();
    let warnings = read
        .as_ref()
        .map_or_else(|_| Vec::new(), |config| config.warnings.clone());
    match running.reload(read).await {
        Ok(reloaded) => {
            for warning in warnings {
                tracing::warn!("{warning}");
            }
            tracing::info!(why, "the configuration was read again and holds");
            if !reloaded.needs_restart.is_empty() {
                let keys = reloaded.needs_restart.join(", ");
                tracing::warn!(
                    keys,
                    "these keys have changed and need a restart; until then they are as they were"
                );
            }
            systemd::tell_reloaded("configuration read again");
        }
        Err(error) => {
            let text = error.to_string();
            tracing::error!(
                why,
                error = text.trim_end(),
                "the configuration is refused: the one of before holds on"
            );
            systemd::tell_reloaded("the configuration is refused: the one of before holds on");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_taken_when_nobody_writes_it_any_more() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("proxy.toml");
        std::fs::write(&path, "one").unwrap();
        let mut watch = Watch::new(&path);
        assert!(!watch.has_changed() && !watch.has_changed());
        std::fs::write(&path, "longer").unwrap();
        assert!(!watch.has_changed());
        std::fs::write(&path, "even longer").unwrap();
        assert!(!watch.has_changed());
        assert!(watch.has_changed());
        assert!(!watch.has_changed());
        std::fs::remove_file(&path).unwrap();
        assert!(!watch.has_changed() && !watch.has_changed());
        std::fs::write(&path, "back").unwrap();
        assert!(!watch.has_changed());
        assert!(watch.has_changed());
    }
}
