//! `larder client-config`: prints what to write where, so that a client pulls through this proxy, or writes it there.
//!
//! Made from this proxy's own configuration: its address, whether it speaks TLS, and every upstream that it knows.
//! `recipe` is what the files hold, `place` puts them where the client reads them. Standard output has one file, valid as
//! it is, so that it can be redirected to its place; what people should know beside it goes to standard error.

mod place;
mod recipe;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;

use self::place::{Outcome, PlaceError};
use self::recipe::{Proxy, Recipe};
use super::serve::Stop;
use super::{Exit, complain, print, refuse};
use crate::app::checkup;
use crate::config::{Config, ConfigError, ServerTls};

/// How often `--watch` looks whether the files are still there.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// Limits the search for a running proxy, of which only a note comes.
const FOR_OPTIONS: Duration = Duration::from_secs(2);

#[derive(clap::Args)]
#[command(after_help = "\
The file goes to standard output, and what to do with it to standard error:

  larder client-config podman --address larder.example:5000 > /etc/containers/registries.conf.d/larder.conf

containerd reads a file for each registry. Without --write the one of the default upstream is printed, or the one that
--upstream names:

  larder client-config containerd --upstream ghcr.io > /etc/containerd/certs.d/ghcr.io/hosts.toml
  larder client-config containerd --write /etc/containerd/certs.d")]
pub struct Args {
    /// Which client's configuration
    client: Client,
    /// Only for this upstream, by its name or alias; may be repeated [default: all of them]. With --write the files of
    /// other upstreams stay as they are
    #[arg(long = "upstream", value_name = "NAME")]
    upstreams: Vec<String>,
    /// How clients reach this proxy, when that is not the address it listens on
    #[arg(long, value_name = "HOST:PORT")]
    address: Option<String>,
    /// Leave the client no way around this proxy: what it refuses is refused
    #[arg(long)]
    no_fallback: bool,
    /// Write the files into this folder (for containerd its certs.d, for podman registries.conf.d) in place of printing
    /// them; files that Larder did not write are kept
    #[arg(long, value_name = "DIR")]
    write: Option<PathBuf>,
    /// Write over files that Larder did not write, too
    #[arg(long, requires = "write")]
    force: bool,
    /// Remove the files that Larder wrote there; with --upstream only those of the upstreams that it names
    #[arg(long, requires = "write", conflicts_with_all = ["force", "watch"])]
    remove: bool,
    /// Keep running, and write again files that somebody removed; when stopped, remove them all
    #[arg(long, requires = "write")]
    watch: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Client {
    Docker,
    Containerd,
    Podman,
    #[value(name = "cri-o")]
    CriO,
    K3s,
    Buildkit,
}

impl Client {
    /// The file, or each of the files, that `--write` writes. `None`: Docker's is JSON, the daemon's whole configuration
    /// and without comments, so that nobody could tell whose it is.
    fn file_name(self) -> Option<&'static str> {
        match self {
            Client::Docker => None,
            Client::Containerd => Some("hosts.toml"),
            Client::Podman | Client::CriO => Some("larder.conf"),
            Client::K3s => Some("registries.yaml"),
            Client::Buildkit => Some("buildkitd.toml"),
        }
    }
}

pub fn run(args: &Args, config: Result<Config, ConfigError>) -> Exit {
    let place = match (&args.write, args.client.file_name()) {
        (None, _) => None,
        (Some(folder), Some(name)) => Some((folder, name)),
        (Some(_), None) => {
            complain(
                "--write: daemon.json has more in it than mirrors and no comments to tell whose it is; print it and merge it by hand",
            );
            return Exit::Usage;
        }
    };
    if let (Some((folder, name)), true, []) = (place, args.remove, args.upstreams.as_slice()) {
        return tell(place::remove(folder, name), true);
    }
    let config = match config {
        Ok(config) => config,
        Err(error) => return refuse(&error),
    };
    let chosen = match chosen(args, &config) {
        Ok(chosen) => chosen,
        Err(what) => {
            complain(&what);
            return Exit::Usage;
        }
    };
    let names = chosen.iter().map(|upstream| upstream.name.as_str().to_owned());
    let place = place.map(|(folder, name)| Placement {
        folder,
        name,
        client: args.client,
        force: args.force,
        only: (!args.upstreams.is_empty()).then(|| names.collect()),
    });
    if let (Some(place), true) = (&place, args.remove) {
        return tell(place.remove(), true);
    }
    let recipe = match proxy(args, &config, &chosen) {
        Ok(proxy) => recipe::of(args.client, &proxy),
        Err(what) => {
            complain(&what);
            return Exit::Usage;
        }
    };
    note_options(&config);
    match place {
        None => show(&recipe, config.cache.default_upstream.as_str(), &args.upstreams),
        Some(place) if args.watch => watch(&place, &recipe),
        Some(place) => tell(place.write(&recipe), true),
    }
}

/// Says it if the proxy that runs has options which a client's files depend on: they are made from the configuration.
fn note_options(config: &Config) {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return;
    };
    let asking = async { tokio::time::timeout(FOR_OPTIONS, checkup::running_options(config)).await };
    let Ok(Some((at, mut options))) = runtime.block_on(asking) else {
        return;
    };
    options.retain(|option| ["--listen", "--upstream"].contains(&option.as_str()));
    if !options.is_empty() {
        complain(&format!(
            "note: the proxy at {at} was started with options that this command does not see: {}. Put what they say into the \
             configuration file, or check addresses and registries below",
            options.join(", ")
        ));
    }
}

/// Where a client's files go, and which of them.
struct Placement<'a> {
    folder: &'a Path,
    /// The file, or each of the files.
    name: &'a str,
    client: Client,
    force: bool,
    /// The upstreams that --upstream names; `None`: all of them, and nothing beside them.
    only: Option<Vec<String>>,
}

impl Placement<'_> {
    fn write(&self, recipe: &Recipe) -> Result<place::Done, PlaceError> {
        let Some(only) = &self.only else {
            return place::synchronise(self.folder, &recipe.files, self.force);
        };
        self.holds_no_other(only)?;
        place::put_all(self.folder, &recipe.files, self.force)
    }

    fn remove(&self) -> Result<place::Done, PlaceError> {
        let Some(only) = &self.only else {
            return place::remove(self.folder, self.name);
        };
        self.holds_no_other(only)?;
        let relatives: Vec<String> = match self.client {
            Client::Containerd => only.iter().map(|name| format!("{name}/{}", self.name)).collect(),
            _ => vec![self.name.to_owned()],
        };
        place::remove_these(self.folder, &relatives)
    }

    /// Refuses to lose sections of a file that holds several registries: an operator may have changed them.
    fn holds_no_other(&self, only: &[String]) -> Result<(), PlaceError> {
        let path = self.folder.join(self.name);
        let Some(text) = place::own_text(&path)? else {
            return Ok(());
        };
        let mut others = recipe::registries_in(self.client, &text);
        others.retain(|name| !only.contains(name));
        match others.is_empty() {
            true => Ok(()),
            false => Err(place::refusal(
                &path,
                format!(
                    "nothing was done: it holds also {}, and --upstream would take them out of it; name by --upstream \
                     each upstream that it is to hold, or take it away first by --remove without --upstream",
                    others.join(", ")
                ),
            )),
        }
    }
}

/// The upstreams that the arguments name. Errors: what is wrong with them.
fn chosen<'a>(args: &Args, config: &'a Config) -> Result<Vec<&'a crate::config::Upstream>, String> {
    let known = |name: &String| {
        let found = config
            .upstreams
            .iter()
            .find(|upstream| upstream.name.as_str() == name || upstream.aliases.contains(name));
        found.ok_or_else(|| format!("--upstream {name}: the configuration has no such upstream"))
    };
    let mut chosen: Vec<&crate::config::Upstream> = match args.upstreams.as_slice() {
        [] => config.upstreams.iter().collect(),
        names => names.iter().map(known).collect::<Result<_, _>>()?,
    };
    let mut seen = std::collections::HashSet::new();
    chosen.retain(|upstream| seen.insert(upstream.name.as_str()));
    Ok(chosen)
}

/// Errors: what is wrong with the arguments.
fn proxy<'a>(args: &Args, config: &'a Config, chosen: &[&'a crate::config::Upstream]) -> Result<Proxy<'a>, String> {
    let address = args.address.clone().or_else(|| own_address(config));
    let address = address.ok_or(
        "this proxy listens on every address of its machine, so it cannot know by which name clients reach it: \
         say --address HOST:PORT",
    )?;
    if !is_address(&address) {
        return Err(format!(
            "--address {address:?} is no HOST:PORT, such as larder.example:5000"
        ));
    }
    if let (Client::Docker, Some(first)) = (args.client, chosen.first())
        && chosen.iter().all(|upstream| upstream.name.as_str() != "docker.io")
    {
        return Err(format!(
            "Docker has mirrors for docker.io only; for {0} put the address before the name: \
             docker pull {address}/{0}/owner/image:tag",
            first.name
        ));
    }
    let named = |u: &&'a crate::config::Upstream| (u.name.as_str(), server_of(u.name.as_str(), &u.url));
    Ok(Proxy {
        scheme: if config.server.tls.is_some() { "https" } else { "http" },
        address,
        upstreams: chosen.iter().map(named).collect(),
        aliases: config
            .upstreams
            .iter()
            .filter(|upstream| upstream.name.as_str().contains(':'))
            .filter_map(|upstream| Some((upstream.name.as_str(), upstream.aliases.first()?.as_str())))
            .collect(),
        default_upstream: config.cache.default_upstream.as_str(),
        no_fallback: args.no_fallback,
        has_logins: config.access.htpasswd_file.is_some() || !config.access.issuers.is_empty(),
    })
}

/// Prints one file, and beside it what to do with it. `chosen`: the upstreams that were asked for.
fn show(recipe: &Recipe, default_upstream: &str, chosen: &[String]) -> Exit {
    let of_default = || {
        recipe
            .files
            .iter()
            .find(|file| file.relative.starts_with(&format!("{default_upstream}/")))
    };
    let file = match (recipe.files.as_slice(), chosen.len()) {
        ([file], _) => file,
        // A file for each registry, and one document on standard output.
        (_, 2..) => {
            complain(
                "this client reads a file for each registry: name one by --upstream, or have all of them written by --write DIR",
            );
            return Exit::Usage;
        }
        (files, _) => match of_default().or(files.first()) {
            Some(file) => file,
            None => {
                complain("the configuration has no upstream");
                return Exit::Failed;
            }
        },
    };
    complain(&format!("write this to {}", file.place));
    if recipe.files.len() > 1 {
        complain(&format!(
            "it is one of {}, a file for each registry: --upstream NAME prints another one, --write DIR writes all of them",
            recipe.files.len()
        ));
    }
    let exit = print(&file.text);
    for note in &recipe.notes {
        complain(note);
    }
    exit
}

/// Says file by file what was done; all of it, or only what changed.
fn tell(done: Result<Vec<(PathBuf, Outcome)>, PlaceError>, all: bool) -> Exit {
    let done = match done {
        Ok(done) => done,
        Err(error) => {
            complain(&error.to_string());
            return Exit::Failed;
        }
    };
    let mut text = String::new();
    let mut exit = Exit::Done;
    for (path, outcome) in &done {
        if all || !matches!(outcome, Outcome::Unchanged | Outcome::Kept) {
            text += &format!("{:<9}  {}\n", outcome.as_str(), path.display());
        }
        if *outcome == Outcome::Kept {
            exit = Exit::Failed;
        }
    }
    if all && exit == Exit::Failed {
        complain("what was kept is not Larder's: look at it, and take it away or write over it with --force");
    }
    match print(&text) {
        Exit::Done => exit,
        failed => failed,
    }
}

/// Until it is asked to stop. A folder that cannot be written at the start is an error; later it is looked at again.
fn watch(place: &Placement<'_>, recipe: &Recipe) -> Exit {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("cannot start: {error}"));
            return Exit::Failed;
        }
    };
    runtime.block_on(async {
        // Before anything is written: a stop that comes at once takes it away, too.
        let mut stop = Stop::listen();
        let first = place.write(recipe);
        let failed = first.is_err();
        tell(first, true);
        if failed {
            return Exit::Failed;
        }
        loop {
            tokio::select! {
                _ = stop.asked() => break,
                () = tokio::time::sleep(LOOK_AGAIN) => {
                    tell(place.write(recipe), false);
                }
            }
        }
        tell(place.remove(), true)
    })
}

/// The first address that is somebody's in particular: where the certificate is for names, the first of those.
fn own_address(config: &Config) -> Option<String> {
    let is_acme = config.server.tls.as_ref().is_some_and(ServerTls::is_acme);
    if let (Some(acme), true) = (&config.acme, is_acme) {
        let port = config.server.listen.first()?.port();
        return acme.names.first().map(|name| match name.contains(':') {
            true => format!("[{name}]:{port}"),
            false => format!("{name}:{port}"),
        });
    }
    config
        .server
        .listen
        .iter()
        .find(|a| !a.ip().is_unspecified())
        .map(ToString::to_string)
}

/// What goes between quotes and slashes of other programs' files.
fn is_address(text: &str) -> bool {
    text.parse::<crate::oci::HostPort>().is_ok()
}

/// The registry's own address, for clients that fall back to it.
fn server_of(name: &str, url: &url::Url) -> String {
    // An upstream behind a path or on another name is this proxy's business; clients know the registry by its own.
    if name == "docker.io" {
        "https://registry-1.docker.io".to_owned()
    } else if url.host_str() == Some(name) {
        url.origin().ascii_serialization()
    } else {
        format!("https://{name}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_for_a_name_is_used_by_that_name() {
        let text = |names: &str| {
            format!(
                "[server]\nlisten = \"[::]:443\"\ntls = {{ acme = true }}\n[acme]\naccept_terms = true\nnames = [{names}]\n"
            )
        };
        let address = |names: &str| own_address(&Config::from_toml(&text(names)).unwrap()).unwrap();
        assert_eq!(address("\"larder.example\", \"other.example\""), "larder.example:443");
        assert_eq!(address("\"2001:db8::1\""), "[2001:db8::1]:443");
    }

    #[test]
    fn addresses_are_checked() {
        assert!(is_address("larder.example:5000") && is_address("[::1]:5000"));
        assert!(!is_address("http://x") && !is_address("a\"b"));
    }
}
