//! The real binary, as a process.

use std::io::{BufRead as _, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::sync::watch;

use super::client::{Ask, Response};
use super::toml::Toml;
use super::upstream::Upstream;
use super::{DEADLINE, within};

/// `larder serve`, the real thing.
pub struct LarderProcess {
    folder: TempDir,
    child: Child,
    lines: Lines,
    registry: SocketAddr,
    admin: SocketAddr,
    /// Behind `serve`.
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    /// In place of the one that runs the tests.
    user: Option<u32>,
}

impl LarderProcess {
    pub async fn start(upstream: &Upstream, change: impl FnOnce(&mut Toml)) -> LarderProcess {
        LarderProcess::start_with(upstream, &[], change).await
    }

    /// With variables beside the few that every test has.
    pub async fn start_with(
        upstream: &Upstream,
        environment: &[(&str, &str)],
        change: impl FnOnce(&mut Toml),
    ) -> LarderProcess {
        LarderProcess::start_as(None, upstream, environment, change).await
    }

    /// As another user, which takes root.
    pub async fn start_as(
        user: Option<u32>,
        upstream: &Upstream,
        environment: &[(&str, &str)],
        change: impl FnOnce(&mut Toml),
    ) -> LarderProcess {
        let folder = tempfile::tempdir().expect("a folder");
        let mut toml = Toml::new(&folder.path().join("cache"), upstream);
        change(&mut toml);
        let file = folder.path().join("proxy.toml");
        std::fs::write(&file, toml.text()).expect("a configuration file");
        for path in [folder.path(), &file] {
            std::os::unix::fs::chown(path, user, user).expect("a file to give away");
        }
        let environment = environment.iter();
        let environment = environment.map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let file = file.to_str().expect("a path in UTF-8").to_owned();
        LarderProcess::spawn(folder, vec!["--config".to_owned(), file], environment, user).await
    }

    /// `larder serve` with these arguments, in a folder where there may be a file; else there is none.
    pub async fn start_by(folder: TempDir, arguments: &[&str], environment: &[(&str, &str)]) -> LarderProcess {
        let arguments = arguments.iter().map(|text| (*text).to_owned()).collect();
        // The file system that tests run on may be nearly full.
        let environment = [("LARDER_CACHE__MIN_FREE", "0B")].iter().chain(environment);
        let environment = environment.map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        LarderProcess::spawn(folder, arguments, environment, None).await
    }

    async fn spawn(
        folder: TempDir,
        arguments: Vec<String>,
        environment: Vec<(String, String)>,
        user: Option<u32>,
    ) -> LarderProcess {
        let mut command = command(folder.path());
        command.arg("serve").args(&arguments).envs(environment.iter().cloned());
        if let Some(user) = user {
            become_user(&mut command, user);
        }
        let mut child = command.spawn().expect("the larder binary");
        let lines = Lines::default();
        lines.collect(child.stdout.take().expect("stdout"));
        lines.collect(child.stderr.take().expect("stderr"));
        let registry = lines.address("larder: registry listening on http").await;
        let admin = lines.address("larder: admin listening on http").await;
        LarderProcess {
            folder,
            child,
            lines,
            registry,
            admin,
            arguments,
            environment,
            user,
        }
    }

    pub fn registry(&self) -> SocketAddr {
        self.registry
    }

    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    pub fn cache(&self) -> PathBuf {
        self.folder.path().join("cache")
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub async fn get(&self, target: impl Into<String>) -> Response {
        Ask::get(target).send(self.registry).await
    }

    pub async fn head(&self, target: impl Into<String>) -> Response {
        Ask::head(target).send(self.registry).await
    }

    /// All that it wrote so far, both streams.
    pub fn logs(&self) -> String {
        self.lines.text()
    }

    /// Until a line holds `text`; gives that line.
    pub async fn wait_for_log(&self, text: &str) -> String {
        self.lines.wait_for(text).await
    }

    /// SIGKILL in the middle of whatever it does.
    pub fn kill_9(&mut self) {
        self.child.kill().expect("a process to kill");
        self.child.wait().expect("a process that ended");
    }

    /// SIGTERM, without waiting.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.expect("a process id"), signal).expect("a process to signal");
    }

    /// SIGTERM; gives the exit status, `None` if a signal ended it.
    pub async fn stop(&mut self) -> Option<i32> {
        self.terminate();
        self.ended().await
    }

    /// Waits for its end; gives the exit status, `None` if a signal ended it.
    pub async fn ended(&mut self) -> Option<i32> {
        let what = "larder to exit";
        within(what, async {
            loop {
                if let Some(status) = self.child.try_wait().expect("a process to wait for") {
                    return status.code();
                }
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        })
        .await
    }

    /// Again on the same folder and configuration; stops it first if it runs.
    pub async fn restart(mut self) -> LarderProcess {
        if self.child.try_wait().expect("a process").is_none() {
            self.stop().await;
        }
        let folder = std::mem::replace(&mut self.folder, tempfile::tempdir().expect("a folder"));
        let arguments = std::mem::take(&mut self.arguments);
        LarderProcess::spawn(folder, arguments, std::mem::take(&mut self.environment), self.user).await
    }
}

impl Drop for LarderProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("larder wrote:\n{}", self.logs());
        }
    }
}

/// Runs it as another user, without any group of this one's.
pub fn become_user(command: &mut Command, user: u32) {
    use std::os::unix::process::CommandExt as _;
    command.uid(user).gid(user);
}

/// The binary under test, away from the user's own configuration and credentials.
pub fn command(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
    command
        .current_dir(home)
        .env_clear()
        .env("HOME", home)
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("XDG_RUNTIME_DIR", super::runtime_dir())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// What a process writes, line by line, as it comes.
#[derive(Clone, Default)]
struct Lines(Arc<LinesState>);

#[derive(Default)]
struct LinesState {
    lines: Mutex<Vec<String>>,
    changes: watch::Sender<u64>,
    // Streams still open.
    open: Mutex<usize>,
}

impl Lines {
    fn collect(&self, stream: impl Read + Send + 'static) {
        *self.0.open.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        let state = self.0.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                state.lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
                state.changes.send_modify(|n| *n += 1);
            }
            *state.open.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
            state.changes.send_modify(|n| *n += 1);
        });
    }

    fn text(&self) -> String {
        let lines = self.0.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().map(|line| format!("{line}\n")).collect()
    }

    async fn wait_for(&self, wanted: &str) -> String {
        let mut changes = self.0.changes.subscribe();
        let deadline = tokio::time::Instant::now() + DEADLINE;
        loop {
            let found = self
                .text()
                .lines()
                .find(|line| line.contains(wanted))
                .map(str::to_owned);
            if let Some(line) = found {
                return line;
            }
            let ended = *self.0.open.lock().unwrap_or_else(PoisonError::into_inner) == 0;
            if ended || tokio::time::timeout_at(deadline, changes.changed()).await.is_err() {
                panic!("larder never wrote {wanted:?}; it wrote\n{}", self.text());
            }
        }
    }

    async fn address(&self, before: &str) -> SocketAddr {
        let line = self.wait_for(before).await;
        let at = line.find(before).unwrap_or_default() + before.len();
        // Behind `http` is `://` or `s://`.
        let rest = line[at..].split_once("://").map_or(&line[at..], |(_, rest)| rest);
        let address = rest.split([' ', '/']).next().unwrap_or_default();
        match address.parse() {
            Ok(address) => address,
            Err(error) => panic!("no address ({error}) in {line:?}"),
        }
    }
}
