//! The listeners of the registry beside `[server]`'s.

use std::sync::Arc;

use crate::acme::Issued;
use crate::config::{Config, Listen};
use crate::http::server::tls::Certificates;
use crate::http::server::{self, Listening};

use super::{Open, StartError};

/// One that is bound, and not yet served.
pub(super) struct Bound {
    pub(super) name: String,
    pub(super) listening: Listening,
    pub(super) tls: Option<Certificates>,
    /// The files among its places.
    unix: Vec<Listen>,
}

impl Bound {
    pub(super) fn open(&self) -> Open {
        let tcp = self.listening.addresses.iter().copied().map(Listen::Tcp);
        Open {
            name: self.name.clone(),
            at: tcp.chain(self.unix.iter().cloned()).collect(),
            tls: self.tls.is_some(),
        }
    }
}

/// All, or none.
pub(super) async fn bind(config: &Config, issued: &Arc<Issued>) -> Result<Vec<Bound>, StartError> {
    let mut all = Vec::new();
    for listener in &config.listeners {
        all.push(Bound {
            name: listener.name.clone(),
            listening: server::bind_places(&listener.listen).await?,
            tls: listener
                .tls
                .as_ref()
                .map(|tls| Certificates::load(tls, issued))
                .transpose()?,
            unix: listener
                .listen
                .iter()
                .filter(|place| matches!(place, Listen::Unix(_)))
                .cloned()
                .collect(),
        });
    }
    Ok(all)
}
