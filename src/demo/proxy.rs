//! The Larder of the tour: the real one, with the market as its only upstream and the ports that are free.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use super::upstream;
use crate::app::{self, ListenError, Running, StartError};
use crate::config::{Config, ConfigError, Environment, Listen, TokenPlaces};

const REGISTRY_PORT: u16 = 5000;
const ADMIN_PORT: u16 = 5001;
/// The tour's images are far smaller; a folder on a small disk is no reason to fail.
const MAX_SIZE: u64 = 1 << 30;
const MIN_FREE: u64 = 16 << 20;
/// Ctrl-C should end a tour soon, whatever is being pulled by hand.
const GRACE: Duration = Duration::from_secs(3);
const IDLE_WITHIN: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    #[error("the tour's configuration is refused\n{0}")]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("the proxy listens nowhere")]
    Nowhere,
    #[error("transfers are still running after {} s", .0.as_secs())]
    Busy(Duration),
}

pub struct Proxy {
    config: Config,
    /// `None` only while it restarts.
    running: Option<Running>,
    pub registry: SocketAddr,
    pub admin: SocketAddr,
}

impl Proxy {
    /// `port` is that of the registry: exactly this one, any free one if it is 0, the usual one or a free one if
    /// nothing is said.
    pub async fn start(market: SocketAddr, cache: &Path, port: Option<u16>) -> Result<Proxy, ProxyError> {
        let mut config = configuration(market, cache)?;
        let admin_port = match port {
            Some(0) => 0,
            Some(port) => port.checked_add(1).unwrap_or(0),
            None => ADMIN_PORT,
        };
        let mut wanted = [port.unwrap_or(REGISTRY_PORT), admin_port];
        let running = loop {
            set_ports(&mut config, wanted.map(local));
            match app::start(config.clone()).await {
                Ok(running) => break running,
                // What was asked for is not exchanged for something else.
                Err(StartError::Listen(ListenError::Bind(error)))
                    if error.address.port() != Some(0) && port != error.address.port() =>
                {
                    for port in &mut wanted {
                        if Some(*port) == error.address.port() {
                            *port = 0;
                        }
                    }
                }
                Err(error) => return Err(error.into()),
            }
        };
        let (registry, admin) = addresses(&running)?;
        set_ports(&mut config, [registry, admin]);
        Ok(Proxy {
            config,
            running: Some(running),
            registry,
            admin,
        })
    }

    /// Stopped and started on the same folder and ports; from then on a tag is trusted for `tag_ttl`.
    pub async fn restart(&mut self, tag_ttl: Duration) -> Result<(), ProxyError> {
        self.stop().await;
        self.config.cache.tag_ttl = tag_ttl;
        for upstream in &mut self.config.upstreams {
            upstream.tag_ttl = tag_ttl;
        }
        self.running = Some(app::start(self.config.clone()).await?);
        Ok(())
    }

    pub fn tag_ttl(&self) -> Duration {
        self.config.cache.tag_ttl
    }

    /// Clients have their last byte before it is durable; this waits until everything is held.
    pub async fn settle(&self) -> Result<(), ProxyError> {
        let Some(running) = &self.running else {
            return Ok(());
        };
        let idle = async {
            while running.pull().transfers() > 0 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let waited = tokio::time::timeout(IDLE_WITHIN, idle).await;
        waited.map_err(|_| ProxyError::Busy(IDLE_WITHIN))
    }

    pub async fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            running.stop().await;
        }
    }
}

fn configuration(market: SocketAddr, cache: &Path) -> Result<Config, ConfigError> {
    let name = upstream::NAME;
    let text = format!("cache.default_upstream = \"{name}\"\nupstream.\"{name}\".url = \"http://{market}\"\n");
    let mut config = Config::from_toml(&text)?;
    // The tour dials nothing but itself.
    config.upstreams.retain(|upstream| upstream.name.as_str() == name);
    config.cache.path = cache.to_owned();
    config.cache.max_size = MAX_SIZE;
    config.cache.min_free = MIN_FREE;
    config.server.shutdown_grace = GRACE;
    config.admin.token_places = TokenPlaces::of(&Environment::of_process());
    Ok(config)
}

fn set_ports(config: &mut Config, [registry, admin]: [SocketAddr; 2]) {
    config.server.listen = vec![registry];
    config.admin.listen = vec![Listen::Tcp(admin)];
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

fn addresses(running: &Running) -> Result<(SocketAddr, SocketAddr), ProxyError> {
    match (running.registry.first(), running.admin.first()) {
        (Some(registry), Some(admin)) => Ok((*registry, *admin)),
        _ => Err(ProxyError::Nowhere),
    }
}
