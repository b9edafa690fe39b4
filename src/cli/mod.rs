//! From the command line to the floors below: one module a command.
//!
//! Here are what all commands share: `--config`, the exit status and writing to standard output. Operators' commands
//! also share `desk`, which finds the proxy or opens its folder, and `table`, which shows figures to people.

mod auth;
mod bundle;
mod check_config;
mod client_config;
mod demo;
mod desk;
mod doctor;
mod du;
mod health;
mod inspect;
mod interrupt;
mod keep;
mod lists;
mod log_level;
mod ls;
mod man;
mod password;
mod prefetch;
mod reload;
mod remote;
mod serve;
mod stats;
mod systemd;
mod table;
mod verify;
mod webhook;
mod wishes;

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

use crate::config::{Config, ConfigError, Environment};
use crate::text;

#[cfg(any(test, fuzzing))]
pub(crate) use lists::fuzz as lists_fuzz;

/// How a command ended, as its exit status says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Done,
    Failed,
    /// Bad usage or configuration; nothing was begun. The number is that of `EX_USAGE` in sysexits.h.
    Usage,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(match exit {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 64,
        })
    }
}

/// A pull-through caching proxy registry for container images and every other OCI artifact
#[derive(Parser)]
#[command(name = "larder", version)]
struct Cli {
    /// The configuration file [default: $LARDER_CONFIG, ./proxy.toml or /etc/larder/proxy.toml]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print what to write where, so that a client pulls through this proxy
    ClientConfig(client_config::Args),
    /// Run the proxy; prints the addresses it listens on
    Serve(serve::Args),
    /// Why somebody may pull something or not; lines for the password file
    Auth(auth::Args),
    /// Show what the configuration means, or what is wrong with it
    CheckConfig(check_config::Args),
    /// Check everything that can be wrong, and what to do about it
    Doctor(doctor::Args),
    /// Ask the running proxy whether requests should go to it: exit status 0 if so
    Health(health::Args),
    /// Show what Larder does, without the internet: a tour with an upstream on this machine
    Demo(demo::Args),
    /// List cached images
    Ls(ls::Args),
    /// Show how much disk the cache takes: by image, with shared layers, and in all
    Du(du::Args),
    /// Show statistics: requests, transfers, upstreams
    Stats(stats::Args),
    /// Show an image: digest, platforms, layers, history of its tag
    Inspect(inspect::Args),
    /// Pin images: they are not evicted
    Pin(keep::Args),
    /// Unpin images: they are evicted when room is needed
    Unpin(keep::Args),
    /// Remove images, and free the disk space that only they take
    Rm(keep::RemoveArgs),
    /// Ask the upstream now where tags point
    Refresh(keep::Args),
    /// Have the running proxy read its configuration again, and show the result
    Reload(reload::Args),
    /// Show or change the log level of the running proxy
    LogLevel(log_level::Args),
    /// Carry images across an air gap as files
    Bundle(bundle::Args),
    /// Fetch images before anybody asks for them
    Prefetch(prefetch::Args),
    /// List the images that were requested offline and missed (offline = true)
    Wishes(wishes::Args),
    /// Check every cached blob against its digest
    Verify(verify::Args),
    /// Try a webhook
    Webhook(webhook::Args),
    /// Print completions for a shell
    Completions {
        #[arg(value_name = "SHELL")]
        shell: clap_complete::Shell,
    },
    /// Write the manual pages, for packages
    #[command(hide = true)]
    Man(man::Args),
}

/// Runs the command that `args` ask for; the first of them is the program's name.
pub fn run<I, T>(args: I) -> Exit
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            let wrong = error.use_stderr();
            // Where even this cannot be written there is nobody to tell.
            let _ = error.print();
            return if wrong { Exit::Usage } else { Exit::Done };
        }
    };
    let config = || Config::load(cli.config.as_deref(), &Environment::of_process());
    match cli.command {
        Command::Serve(args) => {
            let options = args.options();
            serve::run(|| Config::load_with(cli.config.as_deref(), &Environment::of_process(), &options))
        }
        Command::Health(args) => health::run(&args, config),
        Command::ClientConfig(args) => client_config::run(&args, config()),
        Command::Auth(args) => auth::run(&args, config),
        Command::CheckConfig(args) => check_config::run(&args, config()),
        Command::Doctor(args) => doctor::run(&args, config),
        Command::Demo(_) if cli.config.is_some() => {
            complain("the tour has a configuration of its own: leave out --config");
            Exit::Usage
        }
        Command::Demo(args) => demo::run(&args),
        Command::Ls(args) => ls::run(&args, config()),
        Command::Du(args) => du::run(&args, config()),
        Command::Stats(args) => stats::run(&args, config()),
        Command::Inspect(args) => inspect::run(&args, config()),
        Command::Pin(args) => keep::pin(&args, config()),
        Command::Unpin(args) => keep::unpin(&args, config()),
        Command::Rm(args) => keep::remove(&args, config()),
        Command::Refresh(args) => keep::refresh(&args, config()),
        Command::Reload(args) => reload::run(&args, config()),
        Command::LogLevel(args) => log_level::run(&args, config()),
        Command::Bundle(args) => bundle::run(&args, config),
        Command::Prefetch(args) => prefetch::run(&args, config()),
        Command::Wishes(args) => wishes::run(&args, config()),
        Command::Verify(args) => verify::run(&args, config()),
        Command::Webhook(args) => webhook::run(&args, config()),
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "larder", &mut text);
            print(&String::from_utf8_lossy(&text))
        }
        Command::Man(args) => man::run(&args, Cli::command()),
    }
}

/// Tells why a configuration is refused.
fn refuse(error: &ConfigError) -> Exit {
    complain(&format!("the configuration is refused\n{error}"));
    Exit::Usage
}

/// A message on standard error.
fn complain(message: &str) {
    let _ = writeln!(std::io::stderr().lock(), "larder: {}", text::report(message));
}

/// The outcome on standard output. A reader that has gone away (`| head`) is no failure.
fn print(text: &str) -> Exit {
    let mut out = std::io::stdout().lock();
    match out.write_all(text::lines(text).as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Exit::Done,
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Exit::Done,
        Err(error) => {
            complain(&format!("cannot write to standard output: {error}"));
            Exit::Failed
        }
    }
}

/// The outcome as data.
fn print_json<T: serde::Serialize>(value: &T) -> Exit {
    match serde_json::to_string_pretty(value) {
        Ok(text) => print(&(text::json(&text) + "\n")),
        Err(error) => {
            complain(&format!("the outcome cannot be written as JSON: {error}"));
            Exit::Failed
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    /// One word for one thing, as in the manual: what is cached is called cached.
    #[test]
    fn help_has_the_words_of_the_manual() {
        fn gather(command: &mut clap::Command, all: &mut Vec<(String, String)>) {
            all.push((command.get_name().to_owned(), command.render_long_help().to_string()));
            for inner in command.get_subcommands_mut() {
                gather(inner, all);
            }
        }
        let mut all = Vec::new();
        gather(&mut Cli::command(), &mut all);
        all.push((
            "proxy.toml.example".to_owned(),
            include_str!("../../proxy.toml.example").replace("pull-held", ""),
        ));
        for (name, text) in all {
            let words = text
                .split_whitespace()
                .map(|word| word.trim_matches(|c: char| !c.is_alphanumeric()));
            let words: Vec<String> = words.map(str::to_ascii_lowercase).collect();
            let text = format!(" {} ", words.join(" "));
            for house in [
                "held",
                "dial",
                "take away",
                "is told",
                "nobody else's word",
                "is believed",
                "longest ago goes",
            ] {
                assert!(!text.contains(&format!(" {house} ")), "{name}: {house:?} in\n{text}");
            }
        }
    }

    #[test]
    fn bad_usage_is_64_and_help_is_no_failure() {
        assert_eq!(run(["larder", "no-such-command"]), Exit::Usage);
        assert_eq!(run(["larder"]), Exit::Usage);
        assert_eq!(run(["larder", "--version"]), Exit::Done);
        assert_eq!(run(["larder", "check-config", "--help"]), Exit::Done);
    }
}
