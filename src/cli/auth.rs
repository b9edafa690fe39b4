//! `larder auth`: why somebody may pull something or not, and lines for the password file.

use std::io::{BufRead as _, IsTerminal as _};
use std::net::IpAddr;

use serde_json::{Value, json};

use super::{Exit, complain, print, print_json, refuse};
use crate::app::{self, AccessCheck};
use crate::auth::{Explanation, Identity, Place, Right, basic};
use crate::config::{Config, ConfigError, MAIN_LISTENER};

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Tell rule by rule what a caller may do with an image
    Check(Check),
    /// Read a password from standard input and print its line for the password file
    Hash {
        /// The user
        #[arg(value_name = "USER")]
        user: String,
    },
}

#[derive(clap::Args)]
struct Check {
    /// Who asks: a user, "anonymous", "github:acme/app", "cert:node-1"
    #[arg(value_name = "USER")]
    user: String,
    /// What is asked for
    #[arg(value_name = "IMAGE")]
    image: String,
    /// The address that the request comes from; without one no rule for addresses matches
    #[arg(long, value_name = "ADDRESS")]
    from: Option<IpAddr>,
    /// The listener that it comes to
    #[arg(long, value_name = "NAME", default_value = MAIN_LISTENER)]
    listener: String,
    /// Print data for programs in place of text
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, config: impl FnOnce() -> Result<Config, ConfigError>) -> Exit {
    match &args.command {
        Command::Hash { user } => hash(user),
        Command::Check(check) => match config() {
            Ok(config) => tell(check, &config),
            Err(error) => refuse(&error),
        },
    }
}

fn hash(user: &str) -> Exit {
    if std::io::stdin().is_terminal() {
        complain("type the password and end the line; it will be seen");
    }
    let mut password = String::new();
    if let Err(error) = std::io::stdin().lock().read_line(&mut password) {
        complain(&format!("the password cannot be read: {error}"));
        return Exit::Failed;
    }
    match basic::line(user, password.trim_end_matches(['\r', '\n'])) {
        Ok(line) => print(&(line + "\n")),
        Err(what) => {
            complain(&what);
            Exit::Usage
        }
    }
}

fn tell(check: &Check, config: &Config) -> Exit {
    let known = config.listeners.iter().map(|listener| listener.name.as_str());
    let mut known = std::iter::once(MAIN_LISTENER).chain(known);
    if !known.any(|name| name == check.listener) {
        complain(&format!(
            "found {:?}, expected main or a [listener.NAME]",
            check.listener
        ));
        return Exit::Usage;
    }
    let who: Identity = (check.user != "anonymous").then(|| check.user.as_str().into());
    let place = Place {
        listener: &check.listener,
        from: check.from,
    };
    let found = match app::explain(config, &who, place, &check.image) {
        Ok(found) => found,
        Err(what) => {
            complain(&what);
            return Exit::Usage;
        }
    };
    match check.json {
        true => print_json(&as_json(check, &found)),
        false => print(&as_text(check, config, &found)),
    }
}

/// Whether it matters if the repository needs credentials.
fn depends(found: &AccessCheck) -> bool {
    found.has_credentials && found.public.right != found.private.right
}

fn as_text(check: &Check, config: &Config, found: &AccessCheck) -> String {
    let from = check.from.map(|from| format!(" from {from}")).unwrap_or_default();
    let mut text = format!("{}{from} asks {} for {}\n", check.user, check.listener, found.image);
    if let Some(note) = note(check, config) {
        text += &format!("note: {note}\n");
    }
    if depends(found) {
        text += &told("if the repository is public", &found.public);
        text += &told("if it needs the credentials of its upstream", &found.private);
    } else {
        text += &told("the rules", &found.public);
    }
    text
}

/// What makes the question one that will not come.
fn note(check: &Check, config: &Config) -> Option<String> {
    if check.user == "anonymous" || check.user.contains(':') {
        return None;
    }
    let Some(path) = &config.access.htpasswd_file else {
        return Some("there is no htpasswd_file: nobody can log in under this name".to_owned());
    };
    match basic::has_user(path, &check.user) {
        Ok(true) => None,
        Ok(false) => Some(format!("{} has no such user", path.display())),
        Err(error) => Some(error.to_string()),
    }
}

fn told(title: &str, explained: &Explanation) -> String {
    let mut text = format!("{title}:\n");
    for step in &explained.steps {
        text += &format!("  {step}\n");
    }
    if explained.steps.iter().all(|step| step.miss.is_some()) {
        text += "  no rule matches\n";
    }
    text + &format!("  verdict: {}\n", in_words(explained.right))
}

fn in_words(right: Right) -> &'static str {
    match right {
        Right::Nothing => "refused",
        Right::Held => "may pull what is held (pull-held)",
        Right::Fetch => "may pull, and have fetched what is not held (fetch)",
    }
}

fn as_json(check: &Check, found: &AccessCheck) -> Value {
    let explained = |explained: &Explanation| {
        json!({
            "may": explained.right.as_str(),
            "rules": explained.steps.iter().map(|step| json!({
                "number": step.number,
                "rule": step.rule,
                "matches": step.miss.is_none(),
                "because": step.miss.map(|miss| miss.as_str()),
            })).collect::<Vec<_>>(),
        })
    };
    json!({
        "user": check.user,
        "from": check.from,
        "listener": check.listener,
        "image": found.image,
        "upstream_has_credentials": found.has_credentials,
        "public": explained(&found.public),
        "private": explained(&found.private),
    })
}
