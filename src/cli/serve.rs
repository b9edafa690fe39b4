//! `larder serve`: runs the proxy until it is asked to stop.

mod reload;

use std::net::SocketAddr;
use std::pin::pin;
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{Exit, complain, print, refuse, systemd};
use crate::app::{self, Running};
use crate::config::{Config, ConfigError, GivenOption, LogFormat};
use crate::telemetry::log;

/// Turns that tasks get before the sockets are looked at again (tokio's own figure is 61). A hundred followers may each
/// have a piece of a file to send: who connects meanwhile waits for two looks, not for all of them. A look costs a
/// microsecond, and what it finds last gets the next turn, before all who wait: with 8 turns between, the slowest of a
/// hundred small answers took from a tenth longer to twice as long (benches/README.md).
const TURNS_BETWEEN_LOOKS: u32 = 16;

/// Signals that come within this time are one wish. A terminal sends Ctrl-C to a whole group of processes, and a
/// supervisor among them passes it on; people need longer to press it again.
pub(super) const ONE_WISH: Duration = Duration::from_millis(500);

/// Keys for a proxy without a file; each wins over the file and over variables.
#[derive(clap::Args)]
pub struct Args {
    /// The address for clients, such as 127.0.0.1:5000; ":5000" is every interface; may be given several times
    #[arg(long, value_name = "ADDRESS")]
    listen: Vec<String>,
    /// The admin address, for health, metrics and commands; may be given several times
    #[arg(long, value_name = "ADDRESS")]
    admin: Vec<String>,
    /// The cache folder
    #[arg(long, value_name = "DIR")]
    cache: Option<String>,
    /// How much may be cached, such as 50GiB
    #[arg(long, value_name = "SIZE")]
    max_size: Option<String>,
    /// One more registry, or another address of a known one; may be given several times
    #[arg(long, value_name = "NAME=URL")]
    upstream: Vec<String>,
}

impl Args {
    /// As keys of the configuration.
    pub fn options(&self) -> Vec<GivenOption> {
        let mut options = Vec::new();
        for (option, key, addresses) in [
            ("--listen", ["server", "listen"], &self.listen),
            ("--admin", ["admin", "listen"], &self.admin),
        ] {
            if !addresses.is_empty() {
                options.push(GivenOption::list(option, key, addresses));
            }
        }
        for (option, key, text) in [
            ("--cache", ["cache", "path"], &self.cache),
            ("--max-size", ["cache", "max_size"], &self.max_size),
        ] {
            options.extend(text.iter().map(|text| GivenOption::text(option, key, text)));
        }
        options.extend(
            self.upstream
                .iter()
                .map(|text| GivenOption::upstream("--upstream", text)),
        );
        options
    }
}

/// `load` reads the configuration, now and whenever it has changed.
pub fn run(load: impl Fn() -> Result<Config, ConfigError>) -> Exit {
    let config = match load() {
        Ok(config) => config,
        Err(error) => return refuse(&error),
    };
    // From now on: starting may take a while, and who changes it meanwhile wants that to hold.
    let watch = config.file.as_deref().map(reload::Watch::new);
    if let Err(error) = log::init(&config.log.level, config.log.format == LogFormat::Json) {
        complain(&error.to_string());
        return Exit::Usage;
    }
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    for hint in crate::auth::hints(&config) {
        tracing::info!("{hint}");
    }
    let sockets = match systemd::sockets() {
        Ok(sockets) => sockets,
        Err(error) => {
            complain(&format!("cannot start: {error}"));
            return Exit::Usage;
        }
    };
    raise_open_files();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .event_interval(TURNS_BETWEEN_LOOKS)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("cannot start: {error}"));
            return Exit::Failed;
        }
    };
    let (exit, leave) = runtime.block_on(async {
        // A limit on file sizes (`ulimit -f`) is an error of one write, not the end of the process: having a handler
        // of its own is all it takes.
        let _beyond_limit = signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw()));
        let (mut stop, hangup) = (Stop::listen(), reload::listen());
        let described = describe(&config);
        let started = tokio::select! {
            started = app::start_on(config, sockets) => started,
            why = stop.asked() => {
                tracing::info!(why, "stopped before it was ready");
                return (Exit::Done, Leave::AtOnce);
            }
        };
        let exit = match started {
            Ok(running) => {
                print(&(listening(&running) + &described));
                systemd::tell_ready(&format!(
                    "registry at {}",
                    running
                        .registry
                        .iter()
                        .map(SocketAddr::to_string)
                        .collect::<Vec<_>>()
                        .join(", ")
                ));
                let why = tokio::select! {
                    why = stop.asked() => why,
                    never = systemd::feed_watchdog() => match never {},
                    never = reload::run(&running, watch, hangup, &load) => match never {},
                };
                tracing::info!(why, "stopping: running responses may finish; a second signal cuts them");
                systemd::tell_stopping();
                if !finish(running, &mut stop).await {
                    return (Exit::Failed, Leave::AtOnce);
                }
                tracing::info!("stopped");
                Exit::Done
            }
            Err(error) => {
                complain(&format!("cannot start: {error}"));
                Exit::Failed
            }
        };
        (exit, Leave::InOrder)
    });
    match leave {
        Leave::InOrder => drop(runtime),
        // Work on the disk ends with the process, which loses nothing (L6).
        Leave::AtOnce => runtime.shutdown_background(),
    }
    exit
}

/// Tells if work on the disk is waited for.
enum Leave {
    InOrder,
    AtOnce,
}

/// Stops. A second signal ends the wait for running responses; a third one the wait for everything else, such as a disk
/// that hangs: then it returns false.
async fn finish(running: Running, stop: &mut Stop) -> bool {
    let hurry = running.hurry();
    let mut stopping = pin!(running.stop());
    tokio::select! {
        () = &mut stopping => return true,
        why = stop.asked() => {
            tracing::warn!(why, "a second signal: running responses are cut; a third one ends the process at once");
            hurry.cancel();
        }
    }
    tokio::select! {
        () = &mut stopping => true,
        why = stop.asked() => {
            tracing::error!(why, "a third signal: the process ends before everything is closed");
            false
        }
    }
}

/// As many open files as the system lets this process have: each client is one, and each blob that is being sent
/// another. The usual soft limit of 1,024 is there for programs that use `select`.
fn raise_open_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// One line an address: what people look for, and scripts read.
pub(super) fn listening(running: &Running) -> String {
    let scheme = if running.tls { "https" } else { "http" };
    let mut text = String::new();
    for address in &running.registry {
        text += &format!("larder: registry listening on {scheme}://{address}\n");
    }
    for listener in &running.listeners {
        let scheme = if listener.tls { "https://" } else { "http://" };
        for at in &listener.at {
            let scheme = if at.port().is_some() { scheme } else { "" };
            text += &format!("larder: registry listening on {scheme}{at} ({})\n", listener.name);
        }
    }
    let scheme = if running.operators.tls { "https://" } else { "http://" };
    for at in &running.operators.at {
        let scheme = if at.port().is_some() { scheme } else { "" };
        text += &format!("larder: admin listening on {scheme}{at}\n");
    }
    let api = running.api();
    for file in &api.token_files {
        text += &format!("larder: admin token in {file}\n");
    }
    if let Some(why) = &api.closed {
        text += &format!("larder: the admin API is closed: {why}\n");
    }
    text
}

fn describe(config: &Config) -> String {
    let mut text = format!(
        "larder: cache in {}, at most {}\n",
        config.cache.path.display(),
        crate::config::units::show_size(config.cache.max_size)
    );
    text += &match config.cache.offline {
        true => "larder: offline: no upstream is contacted\n".to_owned(),
        false => format!(
            "larder: names without a registry come from {}; {} known\n",
            config.cache.default_upstream,
            super::table::count(config.upstreams.len(), "upstream")
        ),
    };
    text
}

/// The signals that ask for the end, from when this is made: a stop that comes as soon as somebody was served is one too.
pub(super) struct Stop {
    interrupt: Option<Signal>,
    terminate: Option<Signal>,
    last: Option<Instant>,
}

impl Stop {
    pub(super) fn listen() -> Stop {
        Stop {
            interrupt: signal(SignalKind::interrupt()).ok(),
            terminate: signal(SignalKind::terminate()).ok(),
            last: None,
        }
    }

    /// Waits for the next of them, and returns which it was. What comes within [`ONE_WISH`] of it is the same wish. May
    /// be dropped and called again: one that comes between two calls is not lost.
    pub(super) async fn asked(&mut self) -> &'static str {
        loop {
            let why = self.next().await;
            let is_new = self.last.is_none_or(|last| last.elapsed() >= ONE_WISH);
            if is_new {
                self.last = Some(Instant::now());
                return why;
            }
            tracing::debug!(why, "a signal that came together with another one");
        }
    }

    async fn next(&mut self) -> &'static str {
        async fn came(signal: &mut Option<Signal>) {
            match signal {
                Some(signal) => {
                    signal.recv().await;
                }
                None => std::future::pending().await,
            }
        }
        tokio::select! {
            () = came(&mut self.interrupt) => "interrupt",
            () = came(&mut self.terminate) => "terminate",
        }
    }
}
