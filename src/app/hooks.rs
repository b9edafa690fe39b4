//! Brings webhooks the way to their endpoints: `jobs` has no network of its own.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::config::Config;
use crate::jobs::webhook::{self, Answer, Carry, Couriers, MEDIA_TYPE, Parcel, Source};
use crate::upstream::courier::Courier;

/// To the address that the operator named, and nowhere else (L10).
pub(super) fn couriers() -> Couriers {
    Arc::new(|hook| {
        let proxy = hook.proxy.as_ref().map(|proxy| proxy.reveal());
        let courier = Courier::new(hook.url.reveal(), hook.ca_file.as_deref(), proxy, hook.timeout)?;
        let carry: Carry = Arc::new(move |parcel: Parcel| {
            let courier = courier.clone();
            Box::pin(async move {
                let said = courier.post(MEDIA_TYPE, &parcel.headers, parcel.body).await?;
                Ok(Answer {
                    status: said.status,
                    retry_after: said.retry_after,
                })
            })
        });
        Ok(carry)
    })
}

/// This machine, and the port that clients come to first.
pub(super) fn source(registry: &[SocketAddr]) -> Source {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = match host.trim() {
        "" => "localhost",
        host => host,
    };
    let port = registry.first().map_or(0, SocketAddr::port);
    Source::new(format!("{host}:{port}"))
}

/// Sends an event about nothing to the webhook of that name; gives the status of the answer.
///
/// Errors: why there was none, in a sentence without secrets.
pub async fn test_webhook(config: &Config, name: &str) -> Result<u16, String> {
    let hook = config.webhooks.iter().find(|hook| hook.name == name);
    let hook = hook.ok_or_else(|| format!("no webhook is called {name}"))?;
    let answer = webhook::ping(hook, &couriers(), &source(&config.server.listen)).await?;
    Ok(answer.status)
}
