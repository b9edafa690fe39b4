//! Where operators' commands are answered: at a running proxy, or at its folder when none runs.
//!
//! The proxy's admin address comes from `--admin` or `$LARDER_ADMIN_URL`, which need no configuration at all, or from
//! the configuration: of one that is refused, what could be read of `[admin]`, since a mistake elsewhere must not keep
//! operators from the proxy that runs. If nothing answers there the folder's lock says whether a proxy runs: an option of
//! `larder serve` may have given it another admin address, which its token file leads to. If none runs, the folder is
//! opened and this process does the work, by a configuration without mistakes. `app::admin_address` knows the way there
//! and finds the token.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt as _;
use reqwest::Method;
use serde_json::json;
use url::Url;

use super::remote::{CallError, Remote};
use super::{Exit, complain, refuse};
use crate::admin::prefetch::{ClearedView, PrefetchList, PrefetchOrder, PrefetchView, WishList};
use crate::admin::views::{
    DuView, ImageList, ImageView, LogView, PinView, RefreshView, ReloadView, RemovedView, StatsView, VerifyView,
};
use crate::admin::{BundleOrder, ImportOrder, PlanView};
use crate::app::AtRest;
use crate::app::admin_address::{AdminAddress, Known, TokenError, is_folder};
use crate::app::checkup::AdminScope;
use crate::bundle::receipt::Receipt;
use crate::bundle::report::Report;
use crate::bundle::{Input, pipe};
use crate::config::{
    ADMIN_URL_VARIABLE, AdminPart, Config, ConfigError, Environment, TOKEN_FILE_VARIABLE, TokenPlaces,
};
use crate::telemetry::log;
use crate::text;

/// Rows of a page of images: as many as there may be.
const PAGE: usize = 1000;
/// How often the progress of a check is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// Limits the search for proxies that only a note names.
const FOR_OTHERS: Duration = Duration::from_secs(2);
/// What the store tells the log while a folder is open here; what a check finds is its own report.
const LOG_LEVEL: &str = "error,larder::store::verify=off";

/// What all operators' commands take.
#[derive(clap::Args)]
pub struct Place {
    /// The admin address of a running proxy, as http:// or https:// and host:port, or unix:PATH [default:
    /// $LARDER_ADMIN_URL or admin.listen]
    #[arg(long, value_name = "URL", value_parser = admin_address)]
    admin: Option<AdminAddress>,
    /// The file with the admin token [default: $LARDER_ADMIN_TOKEN_FILE, the configuration's, or the one that a proxy
    /// on this machine has written]
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Send the admin token unencrypted to another machine, or to whichever user of this one listens there
    #[arg(long)]
    insecure: bool,
    /// Print data for programs in place of text
    #[arg(long)]
    pub json: bool,
}

impl Place {
    /// The address that somebody named. Errors: a sentence.
    fn named(&self, environment: &Environment) -> Result<Option<AdminAddress>, String> {
        match (&self.admin, environment.get(ADMIN_URL_VARIABLE)) {
            (Some(address), _) => Ok(Some(address.clone())),
            (None, Some(text)) => match admin_address(text) {
                Ok(address) => Ok(Some(address)),
                Err(why) => Err(format!("{ADMIN_URL_VARIABLE}: {why}")),
            },
            (None, None) => Ok(None),
        }
    }
}

impl Place {
    /// What the command line and the environment say of a running proxy, for a checkup. Errors: a sentence.
    pub fn admin_scope(&self, environment: &Environment) -> Result<AdminScope, String> {
        Ok(AdminScope {
            address: self.named(environment)?,
            token_file: self.token_file.clone(),
            insecure: self.insecure,
        })
    }

    /// Where a proxy may be asked what needs no token: the address that somebody named, else the configuration's; none if
    /// its port is chosen by the system. Errors: a sentence.
    pub fn addresses(
        &self,
        environment: &Environment,
        config: impl Fn() -> Result<Config, ConfigError>,
    ) -> Result<Vec<AdminAddress>, String> {
        if let Some(address) = self.named(environment)? {
            return Ok(vec![address]);
        }
        let addresses = match config() {
            Ok(config) => AdminAddress::configured(&config)?,
            Err(error) if error.admin().is_some() => saved(&error)?,
            Err(error) => return Err(error.to_string()),
        };
        Ok(addresses)
    }

    /// The proxy that runs at none of these addresses, as [`Asking::elsewhere`] finds it. Errors: the proxies that are not
    /// meant; none if somebody named an address, or the configuration is refused.
    pub async fn elsewhere(
        &self,
        environment: &Environment,
        config: impl Fn() -> Result<Config, ConfigError>,
    ) -> Result<AdminAddress, Vec<OtherProxy>> {
        let (Ok(None), Ok(config)) = (self.named(environment), config()) else {
            return Err(Vec::new());
        };
        let asking = Asking {
            known: Known::of(&config),
        };
        let is_absent = !config.cache.path.is_dir();
        asking.elsewhere(&config, is_absent).await.map(|found| found.0)
    }
}

fn admin_address(text: &str) -> Result<AdminAddress, String> {
    if let Some(path) = text.strip_prefix("unix:") {
        return AdminAddress::at_socket(Path::new(path));
    }
    admin_url(text).map(AdminAddress::at)
}

fn admin_url(text: &str) -> Result<Url, String> {
    // As `larder serve --admin` takes it: every interface is reached by this machine's own name.
    let every = text.strip_prefix('*').unwrap_or(text).strip_prefix(':');
    let with_scheme = match every {
        Some(port) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => {
            format!("http://localhost:{port}")
        }
        _ if text.contains("://") => text.to_owned(),
        _ => format!("http://{text}"),
    };
    let url: Url = with_scheme.parse().map_err(|error| format!("{error}"))?;
    match url.scheme() {
        "http" | "https" if url.host_str().is_some() => Ok(url),
        _ => Err("expected https://host:port, http://host:port or unix:/path".to_owned()),
    }
}

/// Why a configuration was not read again.
pub enum Refusal {
    /// It makes no sense, or not here.
    Configuration(String),
    Other(String),
}

/// Who answers.
pub enum Desk {
    Proxy(Remote),
    Folder(Box<AtRest>),
}

/// What a folder is opened for, where no proxy runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Look,
    Fill,
}

/// Runs a command against whoever answers.
pub fn with_desk(
    place: &Place,
    config: Result<Config, ConfigError>,
    command: impl AsyncFnOnce(&Desk) -> Result<Exit, String>,
) -> Exit {
    at_desk(place, config, Purpose::Look, command)
}

/// The same for a command that brings something in: where no proxy runs the folder is made, and its limits hold.
pub fn with_desk_to_fill(
    place: &Place,
    config: Result<Config, ConfigError>,
    command: impl AsyncFnOnce(&Desk) -> Result<Exit, String>,
) -> Exit {
    at_desk(place, config, Purpose::Fill, command)
}

fn at_desk(
    place: &Place,
    config: Result<Config, ConfigError>,
    purpose: Purpose,
    command: impl AsyncFnOnce(&Desk) -> Result<Exit, String>,
) -> Exit {
    let environment = Environment::of_process();
    let named = match place.named(&environment) {
        Ok(named) => named,
        Err(error) => {
            complain(&error);
            return Exit::Usage;
        }
    };
    // With an address from the command line no configuration is needed here.
    if let (Err(error), None) = (&config, &named)
        && error.admin().is_none()
    {
        return refuse(error);
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("cannot start: {error}"));
            return Exit::Failed;
        }
    };
    runtime.block_on(async {
        let desk = match Desk::find(place, named, config, &environment, purpose).await {
            Ok(desk) => desk,
            Err((exit, error)) => {
                complain(&error);
                return exit;
            }
        };
        let exit = command(&desk).await.unwrap_or_else(|error| {
            complain(&error);
            Exit::Failed
        });
        desk.close().await;
        exit
    })
}

/// A folder that was not opened.
struct Closed {
    /// True if there is none.
    is_absent: bool,
    why: String,
}

/// A proxy of this user that has another cache folder than this configuration.
pub struct OtherProxy {
    address: String,
    path: String,
}

impl std::fmt::Display for OtherProxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let OtherProxy { address, path } = self;
        let path = text::report(path);
        write!(
            f,
            "a proxy of this user runs at {address} with its cache in {path}: --admin {address} asks that one"
        )
    }
}

/// How a proxy is asked for the first time.
struct Asking {
    known: Known,
}

/// A proxy that answers, and its figures.
type Asked = Result<(Remote, Box<StatsView>), CallError>;

impl Asking {
    /// Tries each token that there is. Errors: outside, that nothing may be sent there; inside, what came of it.
    async fn ask(&self, address: &AdminAddress) -> Result<Asked, (Exit, String)> {
        let failed = |error: String| (Exit::Failed, error);
        let tokens = match address.tokens(&self.known) {
            Ok(tokens) => tokens,
            // The next address may be the one that is meant.
            Err(error @ TokenError::Unnamed(_)) => return Ok(Err(CallError::Unnamed(error.to_string()))),
            Err(error @ TokenError::Clear(_)) => return Err((Exit::Usage, error.to_string())),
            Err(error) => return Err(failed(error.to_string())),
        };
        let mut tried: Vec<Option<crate::config::Secret>> = tokens.tokens.into_iter().map(Some).collect();
        if tried.is_empty() {
            tried.push(None);
        }
        let mut last = None;
        for token in tried {
            let remote = Remote::new(address, token).map_err(failed)?;
            match remote.get::<StatsView>(&["stats"], &[]).await {
                Ok(stats) => return Ok(Ok((self.looking_again(address, remote), Box::new(stats)))),
                Err(CallError::Unauthorized(why)) => last = Some(why),
                Err(error) => return Ok(Err(error)),
            }
        }
        let mut why = last.unwrap_or_default();
        if !tokens.missed.is_empty() {
            why += &format!(
                ". Looked for in vain: {}. --token-file or {TOKEN_FILE_VARIABLE} names a file elsewhere",
                tokens.missed.join("; ")
            );
        }
        Ok(Err(CallError::Unauthorized(why)))
    }

    /// Finds the proxy of this configuration's cache folder at an address that the configuration does not have, by the token
    /// files of this user's proxies. If there is no such folder, and nobody chose folder or admin address, a proxy that is the
    /// only one is meant. Errors: where other proxies answer.
    async fn elsewhere(&self, config: &Config, is_absent: bool) -> Result<(AdminAddress, Remote), Vec<OtherProxy>> {
        let mut others = Vec::new();
        for address in AdminAddress::started(config) {
            if let Ok(Ok((remote, stats))) = self.ask(&address).await {
                if is_folder(&stats.path, &config.cache.path) {
                    return Ok((address, remote));
                }
                others.push((address, remote, stats));
            }
        }
        match others.pop() {
            Some((address, remote, stats)) if others.is_empty() && is_absent && !is_chosen(config) => {
                note_other_cache(&remote, &stats, Some(config));
                Ok((address, remote))
            }
            last => {
                let all = others.into_iter().chain(last);
                let other = |(at, _, stats): (AdminAddress, Remote, Box<StatsView>)| OtherProxy {
                    address: at.shown(),
                    path: stats.path,
                };
                Err(all.map(other).collect())
            }
        }
    }

    /// Names the proxies that run elsewhere while a folder is opened that nobody chose: it may be left over from an earlier
    /// start. One that is slow to answer is not waited for.
    async fn note_others(&self, config: &Config) {
        if is_chosen(config) {
            return;
        }
        if let Ok(Err(others)) = tokio::time::timeout(FOR_OTHERS, self.elsewhere(config, false)).await {
            for other in others {
                let own = config.cache.path.display();
                complain(&format!(
                    "note: no proxy runs on {own}, which is opened directly; {other}"
                ));
            }
        }
    }

    fn looking_again(&self, address: &AdminAddress, remote: Remote) -> Remote {
        let (address, known) = (address.clone(), self.known.clone());
        remote.looking_again(move || {
            let tokens = address.tokens(&known).ok()?;
            tokens.tokens.into_iter().next()
        })
    }
}

impl Desk {
    async fn find(
        place: &Place,
        named: Option<AdminAddress>,
        config: Result<Config, ConfigError>,
        environment: &Environment,
        purpose: Purpose,
    ) -> Result<Desk, (Exit, String)> {
        let failed = |error: String| (Exit::Failed, error);
        let known = match &config {
            Ok(config) => Known::of(config),
            Err(error) => error.admin().map_or_else(
                || Known {
                    places: TokenPlaces::of(environment),
                    ..Known::default()
                },
                Known::of_part,
            ),
        };
        let asking = Asking {
            known: Known {
                file: place.token_file.clone(),
                insecure: place.insecure,
                ..known
            },
        };
        if let Some(address) = &named {
            return match asking.ask(address).await? {
                Ok((remote, _)) => Ok(Desk::Proxy(remote)),
                Err(error) => Err(failed(error.to_string())),
            };
        }
        let addresses = match &config {
            Ok(config) => AdminAddress::configured(config).map_err(failed)?,
            Err(error) => saved(error).map_err(failed)?,
        };
        let mut silent = Vec::new();
        let mut unnamed = None;
        for address in addresses {
            match asking.ask(&address).await? {
                Ok((remote, stats)) => {
                    note_other_cache(&remote, &stats, config.as_ref().ok());
                    return Ok(Desk::Proxy(remote));
                }
                Err(error @ (CallError::Refused(_) | CallError::Unauthorized(_))) => {
                    return Err(failed(error.to_string()));
                }
                Err(CallError::Unnamed(why)) => unnamed = unnamed.or(Some(why)),
                Err(error) => silent.push(error.to_string()),
            }
        }
        if let Some(why) = unnamed {
            return Err((Exit::Usage, why));
        }
        match config {
            Ok(config) => {
                let closed = match Desk::open(config.clone(), &silent, purpose).await {
                    Ok(desk) => {
                        asking.note_others(&config).await;
                        return Ok(desk);
                    }
                    Err(closed) => closed,
                };
                let others = match asking.elsewhere(&config, closed.is_absent).await {
                    Ok((_, remote)) => return Ok(Desk::Proxy(remote)),
                    Err(others) => others,
                };
                // A new folder at the usual place would hide these proxies from every command that follows.
                let makes_it = purpose == Purpose::Fill && closed.is_absent;
                if makes_it && (others.is_empty() || is_chosen(&config)) {
                    let made = Desk::open_folder(config, &silent, purpose).await;
                    return made.map_err(|closed| failed(closed.why));
                }
                match others.as_slice() {
                    [] => Err(failed(closed.why)),
                    others => {
                        let others: Vec<&str> = others.iter().map(|other| other.address.as_str()).collect();
                        let (why, others) = (closed.why, others.join(", "));
                        Err(failed(format!("{why}. Proxies of this user answer at {others}")))
                    }
                }
            }
            Err(error) => Err((
                Exit::Usage,
                format!(
                    "{}; and to open the cache folder takes a configuration without mistakes\n{error}",
                    nobody(&silent)
                ),
            )),
        }
    }

    async fn open(config: Config, silent: &[String], purpose: Purpose) -> Result<Desk, Closed> {
        if !config.cache.path.is_dir() {
            let (silence, path) = (nobody(silent), config.cache.path.display());
            return Err(Closed {
                is_absent: true,
                why: format!(
                    "{silence}; and there is no cache folder {path}. Is this the proxy's configuration (--config), or is it on another machine (--admin)?"
                ),
            });
        }
        Desk::open_folder(config, silent, purpose).await
    }

    /// Opens the folder, which is made to be filled if there is none.
    async fn open_folder(config: Config, silent: &[String], purpose: Purpose) -> Result<Desk, Closed> {
        let path = config.cache.path.clone();
        let silence = nobody(silent);
        let is_there = |why: String| Closed { is_absent: false, why };
        // Where the log cannot be set up, nothing is lost but its lines.
        let _ = log::init(LOG_LEVEL, false);
        let opened = match purpose {
            Purpose::Look => AtRest::open(config).await,
            Purpose::Fill => AtRest::open_to_fill(config).await,
        };
        match opened {
            Ok(folder) => Ok(Desk::Folder(Box::new(folder))),
            Err(error) => match error.lock_holder() {
                None => Err(is_there(format!("cannot open the cache folder: {error}"))),
                Some(pid) => {
                    let (who, how) = match pid {
                        Some(pid) => (format!("process {pid} runs on it"), format!("kill {pid}")),
                        None => ("another process runs on it".to_owned(), "kill its process".to_owned()),
                    };
                    let path = path.display();
                    Err(is_there(format!(
                        "the cache folder {path} is in use: {who}. Its admin API is what to ask, but {silence}. Give the address it printed at its start with --admin, or the configuration it runs with by --config; or stop it ({how}) and the folder is opened directly"
                    )))
                }
            },
        }
    }

    async fn close(self) {
        if let Desk::Folder(folder) = self {
            folder.close().await;
        }
    }

    /// Every image that fits, page by page.
    pub async fn images(&self, pattern: &str) -> Result<ImageList, String> {
        let mut all = ImageList::default();
        let mut after: Option<String> = None;
        loop {
            let page: ImageList = match self {
                Desk::Proxy(remote) => {
                    let mut query = vec![("pattern", pattern.to_owned()), ("n", PAGE.to_string())];
                    query.extend(after.map(|after| ("after", after)));
                    told(remote.get(&["images"], &query).await)?
                }
                Desk::Folder(folder) => told(folder.admin.images(Some(pattern.to_owned()), after, PAGE).await)?,
            };
            all.images.extend(page.images);
            after = page.next;
            if after.is_none() {
                return Ok(all);
            }
        }
    }

    pub async fn inspect(&self, image: &str) -> Result<ImageView, String> {
        match self {
            Desk::Proxy(remote) => told(remote.get(&image_path(image), &[]).await),
            Desk::Folder(folder) => told(folder.admin.inspect(image).await),
        }
    }

    pub async fn du(&self, rows: usize) -> Result<DuView, String> {
        match self {
            Desk::Proxy(remote) => told(remote.get(&["du"], &[("n", rows.to_string())]).await),
            Desk::Folder(folder) => {
                // After a crash the index may be behind the disk, and this is about the disk.
                told(folder.reconcile().await)?;
                told(folder.admin.du(rows).await)
            }
        }
    }

    pub async fn stats(&self) -> Result<StatsView, String> {
        match self {
            Desk::Proxy(remote) => told(remote.get(&["stats"], &[]).await),
            Desk::Folder(folder) => Ok(folder.admin.stats()),
        }
    }

    /// Has the proxy read its configuration again.
    pub async fn reload(&self) -> Result<ReloadView, Refusal> {
        match self {
            Desk::Proxy(remote) => match remote.call(Method::POST, &["reload"], &[], None).await {
                Err(CallError::Configuration(why)) => Err(Refusal::Configuration(why)),
                other => other.map_err(|error| Refusal::Other(error.to_string())),
            },
            Desk::Folder(_) => Err(Refusal::Other(
                "no proxy runs that could read its configuration again".to_owned(),
            )),
        }
    }

    /// How much the proxy tells, after a change if one is wanted.
    pub async fn log_level(&self, change: Option<&str>) -> Result<String, String> {
        let view: LogView = match (self, change) {
            (Desk::Proxy(remote), None) => told(remote.get(&["log-level"], &[]).await)?,
            (Desk::Proxy(remote), Some(level)) => {
                let body = json!({ "level": level });
                told(remote.call(Method::POST, &["log-level"], &[], Some(&body)).await)?
            }
            (Desk::Folder(folder), _) => folder.admin.log_level(change).map_err(|error| error.to_string())?,
        };
        Ok(view.level)
    }

    pub async fn pin(&self, image: &str) -> Result<PinView, String> {
        let body = json!({ "image": image });
        match self {
            Desk::Proxy(remote) => told(remote.call(Method::POST, &["pins"], &[], Some(&body)).await),
            Desk::Folder(folder) => told(folder.admin.pin(image).await),
        }
    }

    pub async fn unpin(&self, image: &str) -> Result<PinView, String> {
        let body = json!({ "image": image });
        match self {
            Desk::Proxy(remote) => told(remote.call(Method::DELETE, &["pins"], &[], Some(&body)).await),
            Desk::Folder(folder) => told(folder.admin.unpin(image).await),
        }
    }

    pub async fn remove(&self, image: &str, force: bool) -> Result<RemovedView, String> {
        match self {
            Desk::Proxy(remote) => {
                let query = [("force", force.to_string())];
                told(remote.call(Method::DELETE, &image_path(image), &query, None).await)
            }
            Desk::Folder(folder) => told(folder.admin.remove(image, force).await),
        }
    }

    pub async fn refresh(&self, image: &str) -> Result<RefreshView, String> {
        let body = json!({ "image": image });
        match self {
            Desk::Proxy(remote) => told(remote.call(Method::POST, &["refresh"], &[], Some(&body)).await),
            Desk::Folder(folder) => told(folder.admin.refresh(image).await),
        }
    }

    pub async fn verify(&self, repair: bool) -> Result<VerifyView, String> {
        let body = json!({ "repair": repair });
        match self {
            Desk::Proxy(remote) => told(remote.call(Method::POST, &["verify"], &[], Some(&body)).await),
            Desk::Folder(folder) => told(folder.admin.verify(repair)),
        }
    }

    pub async fn verification(&self) -> Result<VerifyView, String> {
        match self {
            Desk::Proxy(remote) => told(remote.get(&["verify"], &[]).await),
            Desk::Folder(folder) => Ok(folder.admin.verification()),
        }
    }

    pub async fn cancel_verify(&self) -> Result<VerifyView, String> {
        match self {
            Desk::Proxy(remote) => told(remote.call(Method::DELETE, &["verify"], &[], None).await),
            Desk::Folder(folder) => Ok(folder.admin.cancel_verify()),
        }
    }

    pub async fn bundle_plan(&self, order: &BundleOrder) -> Result<PlanView, String> {
        match self {
            Desk::Proxy(remote) => {
                let path = ["bundle", "plan"];
                let body = told(serde_json::to_string(order))?;
                let response = told(remote.order(&path, body).await)?;
                told(remote.read(response).await)
            }
            Desk::Folder(folder) => Ok(told(folder.admin.plan_bundle(order.clone()).await)?.view()),
        }
    }

    /// The bundle's bytes, without a signature.
    pub async fn bundle_create(&self, order: &BundleOrder) -> Result<Box<dyn Input>, String> {
        let (sender, reader) = pipe::pipe();
        match self {
            Desk::Proxy(remote) => {
                let path = ["bundle", "create"];
                let body = told(serde_json::to_string(order))?;
                let response = told(remote.order(&path, body).await)?;
                tokio::spawn(async move {
                    let mut pieces = response.bytes_stream();
                    while let Some(piece) = pieces.next().await {
                        if sender.send(piece.map_err(std::io::Error::other)).await.is_err() {
                            return;
                        }
                    }
                });
            }
            Desk::Folder(folder) => {
                let planned = told(folder.admin.plan_bundle(order.clone()).await)?;
                tokio::task::spawn_blocking(move || planned.write(sender));
            }
        }
        Ok(Box::new(reader))
    }

    pub async fn bundle_import(&self, input: Box<dyn Input>, order: &ImportOrder) -> Result<Report, String> {
        let remote = match self {
            Desk::Proxy(remote) => remote,
            Desk::Folder(folder) => return told(folder.admin.import_bundle(input, order).await),
        };
        let (sender, reader) = pipe::pipe();
        let pouring = tokio::task::spawn_blocking(move || pipe::pour(input, sender));
        let body = reqwest::Body::wrap_stream(reader.into_stream());
        let path = ["bundle", "import"];
        let sent = remote.upload(&path, &order.to_query(), body).await;
        // What could not be read here is the reason for what the proxy says of it.
        if let Ok(Err(error)) = pouring.await {
            return Err(format!("the archive cannot be read: {error}"));
        }
        told(remote.read(told(sent)?).await)
    }

    /// What the site has, as text.
    pub async fn receipt(&self, site: &str) -> Result<Receipt, String> {
        match self {
            Desk::Proxy(remote) => told(remote.get(&["bundle", "receipt"], &[("site", site.to_owned())]).await),
            Desk::Folder(folder) => told(folder.admin.receipt(site).await),
        }
    }

    pub async fn prefetch(&self, order: &PrefetchOrder) -> Result<PrefetchView, String> {
        match self {
            Desk::Proxy(remote) => {
                let body = told(serde_json::to_value(order))?;
                told(remote.call(Method::POST, &["prefetch"], &[], Some(&body)).await)
            }
            Desk::Folder(folder) => told(folder.admin.prefetch(order).await),
        }
    }

    /// A job, with the images that have changed after that version of it.
    pub async fn prefetch_job(&self, id: u64, after: u64) -> Result<PrefetchView, String> {
        match self {
            Desk::Proxy(remote) => {
                let query = [("after", after.to_string())];
                told(remote.get(&["prefetch", &id.to_string()], &query).await)
            }
            Desk::Folder(folder) => told(folder.admin.prefetch_job(id, after)),
        }
    }

    pub async fn cancel_prefetch(&self, id: u64) -> Result<PrefetchView, String> {
        match self {
            Desk::Proxy(remote) => {
                let path = ["prefetch", &id.to_string()];
                told(remote.call(Method::DELETE, &path, &[], None).await)
            }
            Desk::Folder(folder) => told(folder.admin.cancel_prefetch(id)),
        }
    }

    pub async fn prefetches(&self) -> Result<PrefetchList, String> {
        match self {
            Desk::Proxy(remote) => told(remote.get(&["prefetch"], &[]).await),
            Desk::Folder(folder) => Ok(folder.admin.prefetches()),
        }
    }

    pub async fn wishes(&self) -> Result<WishList, String> {
        match self {
            Desk::Proxy(remote) => told(remote.get(&["wishes"], &[]).await),
            Desk::Folder(folder) => Ok(folder.admin.wishes()),
        }
    }

    pub async fn clear_wishes(&self) -> Result<ClearedView, String> {
        match self {
            Desk::Proxy(remote) => told(remote.call(Method::DELETE, &["wishes"], &[], None).await),
            Desk::Folder(folder) => told(folder.admin.clear_wishes().await),
        }
    }

    /// A moment, after which the progress is worth another look.
    pub async fn a_moment(&self) {
        tokio::time::sleep(LOOK_AGAIN).await;
    }

    /// Whether no proxy is in between.
    pub fn is_folder(&self) -> bool {
        matches!(self, Desk::Folder(_))
    }
}

/// True if somebody configured where the proxy is, so that one at another place is not meant.
fn is_chosen(config: &Config) -> bool {
    let keys = ["admin.listen", "cache.path"];
    keys.iter().any(|key| config.origins.contains_key(*key))
}

/// Why no running proxy was found.
pub fn nobody(silent: &[String]) -> String {
    match silent {
        [] => "admin.listen names no port to ask a running proxy at".to_owned(),
        errors => errors.join("; "),
    }
}

fn note_other_cache(remote: &Remote, stats: &StatsView, config: Option<&Config>) {
    let Some(own) = config.map(|config| config.cache.path.as_path()) else {
        return;
    };
    if !is_folder(&stats.path, own) {
        let own = own.display();
        complain(&format!(
            "note: the larder at {} keeps its cache in {}, not in {own}",
            remote.shown(),
            stats.path
        ));
    }
}

/// The addresses that a configuration that is refused names all the same, after a warning. Blocking, briefly.
fn saved(error: &ConfigError) -> Result<Vec<AdminAddress>, String> {
    let Some(part) = error.admin() else {
        return Ok(Vec::new());
    };
    let addresses = AdminAddress::saved(part)?;
    complain(&warning(error, part, &addresses));
    Ok(addresses)
}

fn warning(error: &ConfigError, part: &AdminPart, addresses: &[AdminAddress]) -> String {
    let first = error.problems().first().map(ToString::to_string).unwrap_or_default();
    let more = match error.problems().len() {
        0 | 1 => String::new(),
        count => format!(" (and {} more)", count - 1),
    };
    let shown: Vec<String> = addresses.iter().map(AdminAddress::shown).collect();
    let shown = shown.join(", ");
    let asked = match (part.is_given, part.is_doubtful) {
        (true, _) => format!("only its admin address is used: {shown}"),
        (false, false) => format!("the admin address that is built in is used: {shown}"),
        (false, true) => format!("and its admin address could not be read: {shown} is tried (--admin names another)"),
    };
    let mut text = format!("warning: the configuration is refused, {asked}\n{first}{more}");
    for problem in part.problems.iter().filter(|problem| **problem != first) {
        text += &format!("\n{problem}");
    }
    text
}

fn told<T, E: std::fmt::Display>(outcome: Result<T, E>) -> Result<T, String> {
    outcome.map_err(|error| error.to_string())
}

fn image_path(image: &str) -> Vec<&str> {
    std::iter::once("images").chain(image.split('/')).collect()
}

impl Desk {
    /// The proxy itself, for what no folder can do.
    pub async fn proxy(place: &Place, config: Result<Config, ConfigError>) -> Result<Remote, String> {
        let environment = Environment::of_process();
        let named = place.named(&environment)?;
        match Desk::find(place, named, config, &environment, Purpose::Look).await {
            Ok(Desk::Proxy(remote)) => Ok(remote),
            Ok(folder) => {
                folder.close().await;
                Err("no proxy runs with this configuration".to_owned())
            }
            Err((_, error)) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn admin_addresses() {
        assert_eq!(
            admin_url("larder.example:5001").unwrap().as_str(),
            "http://larder.example:5001/"
        );
        assert_eq!(admin_url("https://x/y").unwrap().as_str(), "https://x/y");
        for every in [":5001", "*:5001"] {
            assert_eq!(admin_url(every).unwrap().as_str(), "http://localhost:5001/");
        }
        for bad in ["", "ftp://x", "http://", ":65536", "::1"] {
            assert!(admin_address(bad).is_err(), "{bad}");
        }
        assert_eq!(admin_address("unix:/run/a.sock").unwrap().shown(), "unix:/run/a.sock");
    }
}
