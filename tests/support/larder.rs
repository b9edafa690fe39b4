//! Larder in this process. [`super::process`] has the real binary.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use larder::pull::{Parallel, Timing};
use larder::store::{Faults, Store};
use tempfile::TempDir;

use super::client::{Ask, Response};
use super::toml::Toml;
use super::upstream::Upstream;
use super::{DEADLINE, within};

/// The usual timing, but pauses between attempts are short: tests would only wait for them. One connection for each
/// blob: on a busy machine every upstream is slow, and tests count what it was asked.
pub fn quick() -> Timing {
    Timing {
        backoff: Duration::from_millis(5),
        longest_backoff: Duration::from_millis(50),
        parallel: Parallel {
            connections: 1,
            ..Parallel::default()
        },
        ..Timing::default()
    }
}

/// A configuration, for a process that keeps its admin token where tests look for it.
fn read(text: &str) -> Result<larder::config::Config, larder::config::ConfigError> {
    let runtime = super::runtime_dir().display().to_string();
    let environment = larder::config::Environment {
        variables: [("XDG_RUNTIME_DIR".to_owned(), runtime)].into(),
        ..Default::default()
    };
    let mut config = larder::config::Config::from_toml(text)?;
    config.admin.token_places = larder::config::TokenPlaces::of(&environment);
    Ok(config)
}

/// Larder in this process, on a runtime of its own: [`Larder::crash`] stops it without asking.
pub struct Larder {
    text: String,
    timing: Timing,
    faults: Option<Faults>,
    folder: TempDir,
    running: Option<larder::app::Running>,
    runtime: Option<tokio::runtime::Runtime>,
    registry: SocketAddr,
    admin: SocketAddr,
}

impl Larder {
    /// In front of `upstream` as docker.io, with what `change` sets.
    pub async fn start(upstream: &Upstream, change: impl FnOnce(&mut Toml)) -> Larder {
        let folder = tempfile::tempdir().expect("a folder");
        let mut toml = Toml::new(&folder.path().join("cache"), upstream);
        change(&mut toml);
        Larder::start_in(folder, toml.text(), quick(), None).await
    }

    /// With other patience than [`quick`].
    pub async fn start_timed(upstream: &Upstream, timing: Timing, change: impl FnOnce(&mut Toml)) -> Larder {
        let folder = tempfile::tempdir().expect("a folder");
        let mut toml = Toml::new(&folder.path().join("cache"), upstream);
        change(&mut toml);
        Larder::start_in(folder, toml.text(), timing, None).await
    }

    /// On a disk that fails when it is told to.
    pub async fn start_faulty(upstream: &Upstream, faults: Faults, change: impl FnOnce(&mut Toml)) -> Larder {
        let folder = tempfile::tempdir().expect("a folder");
        let mut toml = Toml::new(&folder.path().join("cache"), upstream);
        change(&mut toml);
        Larder::start_in(folder, toml.text(), quick(), Some(faults)).await
    }

    async fn start_in(folder: TempDir, text: String, timing: Timing, faults: Option<Faults>) -> Larder {
        let config = match read(&text) {
            Ok(config) => config,
            Err(error) => panic!("the configuration is refused: {error}\n{text}"),
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("larder")
            // Less than the 2 MiB that the program has: futures that grow too large end a test, not a Larder.
            .thread_stack_size(1280 << 10)
            .enable_all()
            .build()
            .expect("a runtime");
        let starting = runtime.spawn(larder::app::start_full(config, timing.clone(), faults.clone()));
        let running = match within("Larder to start", starting)
            .await
            .expect("a start without a panic")
        {
            Ok(running) => running,
            Err(error) => panic!("Larder does not start: {error}\n{text}"),
        };
        let first = |list: &[SocketAddr]| *list.first().expect("an address");
        Larder {
            registry: first(&running.registry),
            admin: first(&running.admin),
            text,
            timing,
            faults,
            folder,
            running: Some(running),
            runtime: Some(runtime),
        }
    }

    pub fn registry(&self) -> SocketAddr {
        self.registry
    }

    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// The listeners beside the main one.
    pub fn listeners(&self) -> Vec<larder::app::Open> {
        self.running.as_ref().expect("a Larder that runs").listeners.clone()
    }

    /// The registry's listeners as they are now, the main one first.
    pub fn open(&self) -> Vec<larder::app::Open> {
        self.running.as_ref().expect("a Larder that runs").open()
    }

    /// Another configuration while it runs: the last one that was taken, but for what `change` sets.
    pub fn reload(
        &mut self,
        change: impl FnOnce(&mut Toml),
    ) -> Result<larder::app::Reloaded, larder::app::ReloadError> {
        let mut toml = Toml::parse(&self.text);
        change(&mut toml);
        let (running, runtime) = (self.running.as_ref(), self.runtime.as_ref());
        let (running, runtime) = (running.expect("a Larder that runs"), runtime.expect("its runtime"));
        let read = read(&toml.text());
        // On its own runtime: what it opens has to live there.
        let outcome = std::thread::scope(|scope| {
            let reloading = scope.spawn(|| runtime.block_on(running.reload(read)));
            reloading.join().expect("a reload without a panic")
        });
        if outcome.is_ok() {
            self.text = toml.text();
        }
        outcome
    }

    /// The cache folder.
    pub fn cache(&self) -> PathBuf {
        self.folder.path().join("cache")
    }

    /// Transfers under way.
    pub fn transfers(&self) -> usize {
        self.running.as_ref().expect("a Larder that runs").pull().transfers()
    }

    /// Until nothing is transferred, written or sent any more.
    pub async fn until_idle(&self) {
        within("the transfers to end", async {
            while self.transfers() > 0 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
        let store = self.store();
        // Asking for tags waits for what is queued.
        let settled = tokio::task::spawn_blocking(move || store.known_tags(""));
        within("the index to be written", settled)
            .await
            .expect("a settled index");
    }

    /// What it stores in, from inside.
    pub fn store(&self) -> Store {
        self.running
            .as_ref()
            .expect("a Larder that runs")
            .pull()
            .store()
            .clone()
    }

    pub async fn get(&self, target: impl Into<String>) -> Response {
        Ask::get(target).send(self.registry).await
    }

    pub async fn head(&self, target: impl Into<String>) -> Response {
        Ask::head(target).send(self.registry).await
    }

    /// Until a blob is not only complete but kept: its last readers are served a moment before that.
    pub async fn until_held(&self, blob: &str) {
        within("the blob to be kept", async {
            loop {
                let first = Ask::get(blob).range("bytes=0-0").send(self.registry).await;
                if first.header("cache-status") == Some("larder; hit") {
                    return;
                }
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    /// The metrics page.
    pub async fn metrics(&self) -> String {
        let response = Ask::get("/metrics").send(self.admin).await.expect(200);
        String::from_utf8(response.body).expect("metrics in UTF-8")
    }

    /// As by SIGTERM; the folder stays with the test.
    pub async fn stop(mut self) -> Stopped {
        if let (Some(running), Some(runtime)) = (self.running.take(), &self.runtime) {
            let stopping = runtime.spawn(running.stop());
            within("Larder to stop", stopping)
                .await
                .expect("a stop without a panic");
        }
        self.leave()
    }

    /// Every task ends where it stands.
    pub fn crash(self) -> Stopped {
        self.leave()
    }

    fn leave(mut self) -> Stopped {
        // Blocking work that runs is waited for: it must not write into the folder beside its successor.
        if let Some(runtime) = self.runtime.take() {
            drop(self.running.take());
            let waiting = std::thread::spawn(move || runtime.shutdown_timeout(DEADLINE));
            waiting.join().expect("a runtime that ends");
        }
        let folder = std::mem::replace(&mut self.folder, tempfile::tempdir().expect("a folder"));
        Stopped {
            text: std::mem::take(&mut self.text),
            timing: self.timing.clone(),
            faults: self.faults.take(),
            folder,
        }
    }

    /// Stopped and started on the same folder.
    pub async fn restart(self) -> Larder {
        self.stop().await.start(|_| {}).await
    }
}

impl Drop for Larder {
    fn drop(&mut self) {
        drop(self.running.take());
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A folder that a Larder has left.
pub struct Stopped {
    text: String,
    timing: Timing,
    faults: Option<Faults>,
    folder: TempDir,
}

impl Stopped {
    pub fn cache(&self) -> PathBuf {
        self.folder.path().join("cache")
    }

    /// Again, with the same configuration but for what `change` sets.
    pub async fn start(self, change: impl FnOnce(&mut Toml)) -> Larder {
        let mut toml = Toml::parse(&self.text);
        change(&mut toml);
        Larder::start_in(self.folder, toml.text(), self.timing, self.faults).await
    }
}
