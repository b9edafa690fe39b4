//! `larder auth`: why somebody may pull something or not, and lines for the password file.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::{Exit, complain, password, print, print_json, refuse};
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
    /// Print a line for the password file: the password is typed twice and not shown, or is one line of a pipe
    Hash {
        /// The user
        #[arg(value_name = "USER")]
        user: String,
    },
}

#[derive(clap::Args)]
#[command(after_help = "\
Exit status: 0 the caller may pull it, perhaps only if its repository is public; 1 refused in any case; 64 bad usage or
configuration.")]
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
    let usage = |what: String| (Exit::Usage, what);
    let line = basic::check_name(user)
        .map_err(usage)
        .and_then(|()| password::read_new(user, basic::check_password))
        .and_then(|password| basic::line(user, password.reveal()).map_err(usage));
    match line {
        Ok(line) => print(&(line + "\n")),
        Err((exit, what)) => {
            complain(&what);
            exit
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
    let shown = match check.json {
        true => print_json(&as_json(check, &found)),
        false => print(&as_text(check, config, &found)),
    };
    match shown {
        Exit::Done if is_refused(&found) => Exit::Failed,
        shown => shown,
    }
}

/// Returns whether the image is refused, also if its repository is public.
fn is_refused(found: &AccessCheck) -> bool {
    let may_be_private = found.has_credentials && found.private.right > Right::Nothing;
    found.public.right == Right::Nothing && !may_be_private
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
        Right::Held => "may pull what is cached (pull-held)",
        Right::Fetch => "may pull, and have fetched what is not cached (fetch)",
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
        "refused": is_refused(found),
        "public": explained(&found.public),
        "private": explained(&found.private),
    })
}
