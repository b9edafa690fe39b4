//! `larder doctor`: the checkup, shown. A problem makes the exit status 1.

mod pull;

use std::path::{Path, PathBuf};

use serde_json::json;

use super::desk::{Desk, Place};
use super::table::printable;
use super::{Exit, complain, print, print_json, refuse};
use crate::app::checkup::{self, Address, Finding, Level, Scope};
use crate::config::{Config, ConfigError, Environment};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    place: Place,
    /// Ask this upstream [default: the default one and those that the configuration names]
    #[arg(long = "upstream", value_name = "NAME")]
    upstreams: Vec<String>,
    /// Ask every upstream, also those that are only built in
    #[arg(long, conflicts_with = "upstreams")]
    all: bool,
    /// Connect to nothing and look no name up
    #[arg(long)]
    no_network: bool,
    /// How clients reach the proxy, when that is not the address it listens on
    #[arg(long, value_name = "HOST:PORT")]
    address: Option<Address>,
    /// Only what clients on this machine do, and whether the proxy at --address is reached from here; needs no configuration
    #[arg(long, requires = "address", conflicts_with_all = ["upstreams", "all"])]
    client: bool,
    /// Have the clients that have files here pull an image that only the proxy can answer, and say what arrived. Asks the
    /// proxy by its admin API
    #[arg(long, requires = "client", conflicts_with = "no_network")]
    pull: bool,
    /// Where the clients' files begin, such as a mounted system
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
}

pub fn run(args: &Args, config: impl FnOnce() -> Result<Config, ConfigError>) -> Exit {
    let admin = match args.place.admin_scope(&Environment::of_process()) {
        Ok(admin) => admin,
        Err(error) => {
            complain(&error);
            return Exit::Usage;
        }
    };
    let mut scope = Scope {
        upstreams: Vec::new(),
        all: args.all,
        network: !args.no_network,
        root: args.root.clone(),
        home: std::env::home_dir(),
        // On another system's files this environment has no say.
        registries_conf: std::env::var_os("CONTAINERS_REGISTRIES_CONF")
            .filter(|path| !path.is_empty() && args.root == Path::new("/"))
            .map(PathBuf::from),
        address: args.address.clone(),
        admin,
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("cannot start: {error}"));
            return Exit::Failed;
        }
    };
    if let (true, Some(address)) = (args.client, &args.address) {
        return runtime.block_on(of_clients(args, address, scope, config));
    }
    let config = match config() {
        Ok(config) => config,
        Err(error) => {
            if args.place.json {
                print(&super::check_config::refusal(&error));
            }
            return refuse(&error);
        }
    };
    for name in &args.upstreams {
        let known = config
            .upstreams
            .iter()
            .find(|u| u.name.as_str() == name || u.aliases.contains(name));
        match known {
            Some(upstream) => scope.upstreams.push(upstream.name.clone()),
            None => {
                complain(&format!("--upstream {name}: the configuration has no such upstream"));
                return Exit::Usage;
            }
        }
    }
    told(args, &runtime.block_on(checkup::checkup(config, scope)))
}

/// Shows what clients' files say, and what comes of pulls if they are wanted.
async fn of_clients(
    args: &Args,
    address: &Address,
    scope: Scope,
    config: impl FnOnce() -> Result<Config, ConfigError>,
) -> Exit {
    let (root, home) = (scope.root.clone(), scope.home.clone());
    let mut findings = checkup::checkup_of_clients(address.clone(), scope).await;
    if args.pull {
        // On a node there is none, and --admin says where the proxy is.
        let pulled = match Desk::proxy(&args.place, config()).await {
            Ok(remote) => pull::check(&remote, &findings, &root, home.as_deref()).await,
            Err(why) => vec![Finding::problem("pull", format!("not tried: {why}")).advice(
                "name the proxy's admin address by --admin, and give this command its token (LARDER_ADMIN_TOKEN_FILE)",
            )],
        };
        findings.extend(pulled);
    }
    told(args, &findings)
}

fn told(args: &Args, findings: &[Finding]) -> Exit {
    let has_problem = findings.iter().any(|finding| finding.level == Level::Problem);
    let shown = match args.place.json {
        true => print_json(&json!({ "ok": !has_problem, "findings": findings })),
        false => print(&text(findings)),
    };
    match shown {
        Exit::Done if has_problem => Exit::Failed,
        shown => shown,
    }
}

fn mark(level: Level) -> &'static str {
    match level {
        Level::Ok => "ok",
        Level::Note => "note",
        Level::Warning => "WARNING",
        Level::Problem => "PROBLEM",
    }
}

/// A mark, the check, what was found; below it what to do.
fn text(findings: &[Finding]) -> String {
    let width = findings
        .iter()
        .map(|finding| finding.check.chars().count())
        .max()
        .unwrap_or(0);
    let mut text = String::new();
    for finding in findings {
        let (mark, check) = (mark(finding.level), printable(&finding.check));
        text += &format!("{mark:<7}  {check:<width$}  {}\n", printable(&finding.found));
        if let (Some(advice), true) = (&finding.advice, finding.level > Level::Ok) {
            text += &format!("{:<7}  {:<width$}  → {}\n", "", "", printable(advice));
        }
    }
    text + &summary(findings)
}

fn summary(findings: &[Finding]) -> String {
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    match (count(Level::Problem), count(Level::Warning)) {
        (0, 0) => "\nnothing is wrong\n".to_owned(),
        (problems, warnings) => format!(
            "\n{}, {}\n",
            super::table::count(problems, "problem"),
            super::table::count(warnings, "warning")
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_stands_below_and_nothing_moves_the_cursor() {
        let finding = |check: &str, level, advice: Option<&str>| Finding {
            check: check.to_owned(),
            level,
            found: "found \u{1b}[2J".to_owned(),
            advice: advice.map(str::to_owned),
            registries: Vec::new(),
        };
        let text = text(&[
            finding("disk", Level::Ok, None),
            finding("upstream a", Level::Problem, Some("do")),
        ]);
        assert_eq!(
            text,
            "ok       disk        found \\u{1b}[2J\nPROBLEM  upstream a  found \\u{1b}[2J\n                     → do\n\n1 problem, 0 warnings\n"
        );
    }
}
