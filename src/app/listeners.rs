//! Where this process listens, and what stands behind each address: opened at the start, changed by a reload.
//!
//! Walk: [`plan`] says which sockets are kept, binds those that are new and loads certificates; all of that can fail, and
//! nothing has changed yet. [`Listeners::apply`] cannot: doors are hung, servers take up and let go of sockets. A listener that is
//! gone lets running responses finish. Sockets that somebody else bound (systemd) stay as they are, whatever is configured.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use tokio_util::sync::CancellationToken;

use super::{Open, Sockets};
use crate::acme::Issued;
use crate::auth::Gate;
use crate::config::{Config, Listen, MAIN_LISTENER, ServerTls, TrustedProxies};
use crate::http::server::tls::{Certificates, TlsError};
use crate::http::server::{BindError, Bound, LiveLimits, LiveProxies, Server};
use crate::http::v2::{Door, Entrance, Registry};
use crate::pull::View;

/// Stands where the registry's listeners have their names.
const ADMIN: &str = "";

/// An address or certificate that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// What holds now: whose sockets these are, and what the listeners show.
#[derive(Default)]
pub(super) struct Holding {
    sockets: Vec<(String, Bound)>,
    /// By the listener's name; that of `[admin]` has none.
    tls: BTreeMap<String, Option<ServerTls>>,
}

impl Holding {
    /// Before anything is open.
    pub(super) fn given(sockets: Sockets) -> std::io::Result<Holding> {
        let mut holding = Holding::default();
        for (owner, given) in [(MAIN_LISTENER, sockets.registry), (ADMIN, sockets.admin)] {
            for socket in given {
                holding.sockets.push((owner.to_owned(), Bound::adopt(socket)?));
            }
        }
        Ok(holding)
    }

    fn is_given(&self, owner: &str) -> bool {
        let mut own = self.sockets.iter().filter(|(name, _)| name == owner);
        own.any(|(_, bound)| bound.wanted().is_none())
    }
}

/// What is to be, all of it bound and loaded.
pub(super) struct Plan {
    registries: Vec<Planned>,
    admin: Planned,
}

impl Plan {
    /// Where the registry will listen; port 0 has become a real one.
    pub(super) fn registry(&self) -> Vec<SocketAddr> {
        addresses(self.registries.iter().flat_map(|planned| &planned.bound).map(Bound::at))
    }

    /// Where operators will connect; port 0 has become a real one.
    pub(super) fn admin(&self) -> Vec<Listen> {
        self.admin.bound.iter().map(|bound| bound.at().clone()).collect()
    }
}

struct Planned {
    name: String,
    bound: Vec<Bound>,
    tls: Option<ServerTls>,
    /// `None`: those of before.
    certificates: Option<Option<Certificates>>,
}

/// Errors: what cannot be bound or loaded; then all is as it was.
pub(super) fn plan(config: &Config, before: &Holding, issued: &Arc<Issued>) -> Result<Plan, ListenError> {
    let tcp = |addresses: &[SocketAddr]| -> Vec<Listen> { addresses.iter().copied().map(Listen::Tcp).collect() };
    let mut wanted = vec![
        (ADMIN, config.admin.listen.clone()),
        (MAIN_LISTENER, tcp(&config.server.listen)),
    ];
    wanted.extend(config.listeners.iter().map(|l| (l.name.as_str(), l.listen.clone())));
    let mut sockets = settle(&wanted, before)?.into_iter();
    let planned = |name: &str, tls: &Option<ServerTls>, bound| -> Result<Planned, ListenError> {
        let certificates = match before.tls.get(name) {
            Some(same) if same == tls => None,
            _ => Some(tls.as_ref().map(|tls| Certificates::load(tls, issued)).transpose()?),
        };
        Ok(Planned {
            name: name.to_owned(),
            bound,
            tls: tls.clone(),
            certificates,
        })
    };
    let admin = planned(ADMIN, &config.admin.tls, sockets.next().unwrap_or_default())?;
    let further = config.listeners.iter().map(|l| (l.name.as_str(), &l.tls));
    let tls = std::iter::once((MAIN_LISTENER, &config.server.tls)).chain(further);
    let registries = tls.zip(sockets).map(|((name, tls), bound)| planned(name, tls, bound));
    Ok(Plan {
        registries: registries.collect::<Result<_, _>>()?,
        admin,
    })
}

/// The sockets of each who wants some: kept where there are such, his own first and then anybody's, else bound.
fn settle(wanted: &[(&str, Vec<Listen>)], before: &Holding) -> Result<Vec<Vec<Bound>>, BindError> {
    let mut left: Vec<&(String, Bound)> = before.sockets.iter().collect();
    let mut take = |fits: &dyn Fn(&str, &Bound) -> bool| -> Option<Bound> {
        let at = left.iter().position(|(owner, bound)| fits(owner, bound))?;
        Some(left.remove(at).1.clone())
    };
    let mut settled: Vec<Vec<Option<Bound>>> = Vec::new();
    for (owner, places) in wanted {
        let is_given = before.is_given(owner);
        settled.push(match is_given {
            true => std::iter::from_fn(|| take(&|name, bound| name == *owner && bound.wanted().is_none()))
                .map(Some)
                .collect(),
            false => places
                .iter()
                .map(|place| take(&|name, bound| name == *owner && bound.wanted() == Some(place)))
                .collect(),
        });
    }
    // Port 0 is another one for everybody.
    for ((_, places), bound) in wanted.iter().zip(&mut settled) {
        for (place, bound) in places.iter().zip(bound).filter(|(place, _)| place.port() != Some(0)) {
            if bound.is_none() {
                *bound = take(&|_, bound| bound.wanted() == Some(place));
            }
        }
    }
    let leaving: Vec<Bound> = left.into_iter().map(|(_, bound)| bound.clone()).collect();
    let mut all = Vec::new();
    for ((_, places), bound) in wanted.iter().zip(settled) {
        let mut of_one = Vec::new();
        for (at, bound) in bound.into_iter().enumerate() {
            match (bound, places.get(at)) {
                (Some(kept), _) => of_one.push(kept),
                (None, Some(place)) => of_one.push(Bound::bind(place, &leaving)?),
                (None, None) => {}
            }
        }
        all.push(of_one);
    }
    Ok(all)
}

/// All of them, while they serve.
pub(super) struct Listeners {
    /// That of `[server]`, and the model of listeners that are added.
    registry: Registry,
    main: Entrance,
    limits: LiveLimits,
    /// For the registry's listeners only: operators show who they are by a token, whatever their address.
    proxies: LiveProxies,
    stop: CancellationToken,
    admin: Server<Router>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    registries: BTreeMap<String, Served>,
    /// What operators' addresses show; `None` before they are open.
    admin_tls: Option<Option<ServerTls>>,
    /// Gone, but for responses that run.
    retired: Vec<Server<Registry>>,
}

struct Served {
    server: Server<Registry>,
    entrance: Entrance,
    tls: Option<ServerTls>,
}

impl Listeners {
    /// Opens nothing yet. `cut` ends the operators' address, `stop` the others.
    pub(super) fn new(
        (registry, main): (Registry, Entrance),
        ops: Router,
        limits: LiveLimits,
        stop: CancellationToken,
        cut: &CancellationToken,
    ) -> Listeners {
        Listeners {
            admin: Server::new(ops, limits.clone(), None, cut),
            registry,
            main,
            limits,
            proxies: LiveProxies::default(),
            stop,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn holding(&self) -> Holding {
        let state = self.state();
        let mut holding = Holding::default();
        let owned = |owner: &str, bound: Vec<Bound>| {
            bound
                .into_iter()
                .map(move |bound| (owner.to_owned(), bound))
                .collect::<Vec<_>>()
        };
        holding.sockets.extend(owned(ADMIN, self.admin.bound()));
        holding
            .tls
            .extend(state.admin_tls.clone().map(|tls| (ADMIN.to_owned(), tls)));
        for (name, served) in &state.registries {
            holding.sockets.extend(owned(name, served.server.bound()));
            holding.tls.insert(name.clone(), served.tls.clone());
        }
        holding
    }

    /// Requests go by these rules and meanings from now on, on whatever connection they come; then connections come by these
    /// sockets and certificates. Within a runtime.
    pub(super) fn apply(&self, plan: Plan, gate: &Arc<Gate>, view: &View, proxies: &TrustedProxies) {
        let mut state = self.state();
        let door = |planned: &Planned| {
            let has_tls = planned.tls.is_some();
            Door::new(gate.clone(), view.clone(), &planned.name, has_tls, proxies.clone())
        };
        for planned in &plan.registries {
            if let Some(served) = state.registries.get(&planned.name) {
                served.entrance.hang(door(planned));
            }
        }
        self.proxies.set(proxies.clone());
        self.registry.forget_heads();
        let wanted: Vec<String> = plan.registries.iter().map(|planned| planned.name.clone()).collect();
        for planned in plan.registries {
            let served = match state.registries.remove(&planned.name) {
                Some(mut served) => {
                    if let Some(certificates) = planned.certificates {
                        served.server.secure_by(certificates);
                        served.tls = planned.tls;
                    }
                    served
                }
                None => {
                    let entrance = match planned.name == MAIN_LISTENER {
                        true => self.main.clone(),
                        false => Entrance::new(door(&planned)),
                    };
                    let handler = self.registry.behind(entrance.clone());
                    let certificates = planned.certificates.flatten();
                    let server = Server::behind(&self.proxies, handler, self.limits.clone(), certificates, &self.stop);
                    let tls = planned.tls;
                    Served { server, entrance, tls }
                }
            };
            tell(&planned.name, &served.server.bound(), &planned.bound);
            served.server.listen_at(&planned.bound);
            state.registries.insert(planned.name, served);
        }
        if let Some(certificates) = plan.admin.certificates {
            self.admin.secure_by(certificates);
        }
        state.admin_tls = Some(plan.admin.tls);
        tell(ADMIN, &self.admin.bound(), &plan.admin.bound);
        self.admin.listen_at(&plan.admin.bound);
        state.retired.retain(|server| server.connections() > 0);
        let gone: Vec<String> = state
            .registries
            .keys()
            .filter(|name| !wanted.contains(name))
            .cloned()
            .collect();
        for served in gone
            .iter()
            .filter_map(|name| Some((name, state.registries.remove(name)?)))
            .collect::<Vec<_>>()
        {
            let (name, Served { server, .. }) = served;
            tell(name, &server.bound(), &[]);
            server.retire();
            state.retired.push(server);
        }
    }

    /// The registry's, as they are now; that of `[server]` is the first.
    pub(super) fn open(&self) -> Vec<Open> {
        let state = self.state();
        let mut all: Vec<Open> = state
            .registries
            .iter()
            .map(|(name, served)| Open {
                name: name.clone(),
                at: served.server.bound().iter().map(|bound| bound.at().clone()).collect(),
                tls: served.tls.is_some(),
            })
            .collect();
        all.sort_by_key(|open| open.name != MAIN_LISTENER);
        all
    }

    /// Where operators connect now.
    pub(super) fn admin(&self) -> Open {
        Open {
            name: "admin".to_owned(),
            at: self.admin.bound().iter().map(|bound| bound.at().clone()).collect(),
            tls: matches!(self.state().admin_tls, Some(Some(_))),
        }
    }

    /// After `stop` was cancelled: until the last response of a client's has ended, or the grace is over.
    pub(super) async fn finish(&self, grace: Duration, hurry: &CancellationToken) {
        let state = std::mem::take(&mut *self.state());
        let serving = state.registries.into_values().map(|served| served.server);
        let all: Vec<Server<Registry>> = serving.chain(state.retired).collect();
        futures_util::future::join_all(all.iter().map(|server| server.finish(grace, hurry))).await;
    }

    pub(super) async fn finish_admin(&self) {
        self.admin.finish(Duration::ZERO, &CancellationToken::new()).await;
    }

    /// Whether the sockets of `[server]` and `[admin]` are somebody else's to bind.
    pub(super) fn are_given(&self) -> (bool, bool) {
        let holding = self.holding();
        (holding.is_given(MAIN_LISTENER), holding.is_given(ADMIN))
    }
}

/// What changes about a listener's addresses; at the start that is on standard output.
fn tell(name: &str, before: &[Bound], after: &[Bound]) {
    let listener = if name == ADMIN { "admin" } else { name };
    let among = |bound: &Bound, list: &[Bound]| list.iter().any(|other| other.is(bound));
    for bound in after.iter().filter(|bound| !among(bound, before)) {
        tracing::info!(listener, at = %bound.at(), "listening");
    }
    for bound in before.iter().filter(|bound| !among(bound, after)) {
        tracing::info!(listener, at = %bound.at(), "listening no more");
    }
}

pub(super) fn addresses<'a>(places: impl Iterator<Item = &'a Listen>) -> Vec<SocketAddr> {
    let tcp = places.filter_map(|place| match place {
        Listen::Tcp(address) => Some(*address),
        Listen::Unix(_) => None,
    });
    tcp.collect()
}
