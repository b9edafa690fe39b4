//! What the rules say of a caller and an image, told without a running proxy.

use crate::auth::{Asked, Explanation, Identity, Place, Policy};
use crate::config::Config;
use crate::oci::reference::without_transport;
use crate::pull::Names;

/// A verdict, as far as the configuration decides it.
pub struct AccessCheck {
    /// `docker.io/library/alpine`
    pub image: String,
    /// True if the upstream has credentials or a client certificate in the configuration, or somebody who lends them: else everything there is public.
    pub has_credentials: bool,
    pub public: Explanation,
    /// If the repository needs those credentials.
    pub private: Explanation,
}

/// `image` as people write it, tag or digest included.
///
/// Errors: what is wrong with its name.
pub fn explain(config: &Config, who: &Identity, place: Place<'_>, image: &str) -> Result<AccessCheck, String> {
    let image = without_transport(image).map_err(|error| error.to_string())?;
    let name = image.split_once('@').map_or(image, |(name, _)| name);
    // A colon behind the last slash begins a tag, one before it a port.
    let name = match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name,
        _ => name,
    };
    let names = Names::new(config).ok_or("the default upstream is not among the upstreams")?;
    let target = names.resolve(name, None).map_err(|error| error.to_string())?;
    let policy = Policy::new(&config.access);
    let explained = |needs_credentials| {
        policy.explain(&Asked {
            who,
            place,
            image: &target.key,
            needs_credentials,
        })
    };
    Ok(AccessCheck {
        image: target.key.to_string(),
        has_credentials: target.upstream.credentials.is_some()
            || target.upstream.lender.is_some()
            || target.upstream.client_cert.is_some(),
        public: explained(false),
        private: explained(true),
    })
}
