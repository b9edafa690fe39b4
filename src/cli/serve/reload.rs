//! When `larder serve` reads its configuration again: on SIGHUP, when an operator asks (`larder reload`), and when its file has
//! changed, or a file that is read together with it.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::app::{Fixed, Reloaded, Running};
use crate::cli::systemd;
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
pub(super) struct Watch {
    path: PathBuf,
    taken: Stamp,
    seen: Stamp,
}

impl Watch {
    pub(super) fn new(path: &Path) -> Watch {
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

/// Reloads for as long as the proxy runs. `file` is the one that was read at the start, if there was one, as it was then.
pub(super) async fn run(
    running: &Running,
    file: Option<Watch>,
    mut hangup: Option<Signal>,
    load: &impl Fn() -> Result<Config, ConfigError>,
) -> Infallible {
    let mut watches = Watches::new(file, running);
    let mut requests = running.reload_requests();
    let mut tick = tokio::time::interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let (why, request) = tokio::select! {
            Some(()) = async { hangup.as_mut()?.recv().await } => ("SIGHUP", None),
            Some(request) = requests.recv() => ("an operator asked", Some(request)),
            _ = tick.tick() => match watches.has_changed() {
                Some(why) => (why, None),
                None => continue,
            },
        };
        // What is written meanwhile is another change.
        watches.take();
        let outcome = reload(running, why, load).await;
        watches.follow(running);
        if let Some(request) = request {
            // Who asked may have gone away.
            let _ = request.send(outcome);
        }
    }
}

/// The configuration's file and those that are read with it.
struct Watches {
    main: Option<Watch>,
    others: Vec<Watch>,
}

impl Watches {
    fn new(file: Option<Watch>, running: &Running) -> Watches {
        Watches {
            main: file,
            others: running.files().iter().map(|path| Watch::new(path)).collect(),
        }
    }

    fn has_changed(&mut self) -> Option<&'static str> {
        let main = self.main.as_mut().is_some_and(Watch::has_changed);
        // Each of them is looked at.
        let others = self
            .others
            .iter_mut()
            .filter_map(|watch| watch.has_changed().then_some(()))
            .count();
        match (main, others) {
            (true, _) => Some("its file has changed"),
            (false, 0) => None,
            (false, _) => Some("a file that it names has changed"),
        }
    }

    fn take(&mut self) {
        for watch in self.main.iter_mut().chain(&mut self.others) {
            watch.taken = stamp(&watch.path);
        }
    }

    /// Other files may be named now; those that are named still are as they were taken. A file of the configuration may have
    /// come since a start without one.
    fn follow(&mut self, running: &Running) {
        if self.main.is_none() {
            // It may have changed since it was read: it is read once more.
            self.main = running.file().map(|path| Watch {
                path,
                taken: None,
                seen: None,
            });
        }
        let mut known = std::mem::take(&mut self.others);
        for path in running.files() {
            let at = known.iter().position(|watch| watch.path == path);
            self.others.push(match at {
                Some(at) => known.swap_remove(at),
                None => Watch::new(&path),
            });
        }
    }
}

async fn reload(
    running: &Running,
    why: &'static str,
    load: &impl Fn() -> Result<Config, ConfigError>,
) -> Result<Reloaded, String> {
    systemd::tell_reloading();
    match running.reload(load()).await {
        Ok(reloaded) => {
            for warning in &reloaded.warnings {
                tracing::warn!("{warning}");
            }
            let changed = reloaded.changed.join(", ");
            tracing::info!(why, changed, "the configuration was read again and holds");
            for Fixed { key, holds, wanted } in &reloaded.needs_restart {
                tracing::warn!(
                    key,
                    holds,
                    wanted,
                    "this key needs a restart; until then it is as it was"
                );
            }
            systemd::tell_reloaded("configuration read again");
            Ok(reloaded)
        }
        Err(error) => {
            let text = error.to_string().trim_end().to_owned();
            tracing::error!(
                why,
                error = text,
                "the configuration is refused: the previous configuration stays active"
            );
            systemd::tell_reloaded("the configuration is refused: the previous configuration stays active");
            Err(text)
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
