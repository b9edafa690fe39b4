//! Who may pull: what is open to more people than an operator may have meant.

use std::net::IpAddr;

use super::Finding;
use crate::app::explain;
use crate::auth::{Place, Right};
use crate::config::{Config, Listen, MAIN_LISTENER, ServerTls};

const CHECK: &str = "access";
/// A repository that no rule is likely to name.
const ANY: &str = "larder/doctor";

struct Door<'a> {
    name: &'a str,
    ips: Vec<IpAddr>,
    tls: Option<&'a ServerTls>,
}

pub(super) fn check(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    for hint in crate::auth::hints(config) {
        findings.push(Finding::note(CHECK, hint));
    }
    let unused = crate::auth::unused_credentials(config);
    for unused in unused.iter().filter(|unused| !unused.is_for_limit) {
        let found = format!(
            "{} has credentials, and no caller can pull {}",
            unused.upstream.name,
            unused.what()
        );
        findings.push(Finding::note(CHECK, found));
    }
    for door in doors(config)
        .iter()
        .filter(|door| door.ips.iter().any(|ip| !ip.is_loopback()))
    {
        findings.extend(strangers(config, door));
        findings.extend(overheard(config, door));
    }
    match findings.is_empty() {
        true => vec![Finding::ok(
            CHECK,
            "what needs credentials upstream is given to nobody without a login",
        )],
        false => findings,
    }
}

fn doors(config: &Config) -> Vec<Door<'_>> {
    let main = Door {
        name: MAIN_LISTENER,
        ips: config.server.listen.iter().map(|at| at.ip()).collect(),
        tls: config.server.tls.as_ref(),
    };
    let further = config.listeners.iter().map(|listener| Door {
        name: &listener.name,
        ips: listener
            .listen
            .iter()
            .filter_map(|at| match at {
                Listen::Tcp(at) => Some(at.ip()),
                Listen::Unix(_) => None,
            })
            .collect(),
        tls: listener.tls.as_ref(),
    });
    std::iter::once(main).chain(further).collect()
}

/// Content that only Larder's credentials get, for callers from anywhere without a login.
fn strangers(config: &Config, door: &Door<'_>) -> Option<Finding> {
    if door.tls.is_some_and(|tls| tls.client_ca.is_some()) {
        return None;
    }
    let place = Place {
        listener: door.name,
        from: None,
    };
    let open: Vec<&str> = config
        .upstreams
        .iter()
        .map(|upstream| upstream.name.as_str())
        .filter(|name| {
            let told = explain(config, &None, place, &format!("{name}/{ANY}"));
            told.is_ok_and(|told| told.has_credentials && told.private.right != Right::Nothing)
        })
        .collect();
    (!open.is_empty()).then(|| {
        let found = format!(
            "everybody who reaches the listener {} may pull what only Larder's credentials get from {}",
            door.name,
            open.join(", ")
        );
        Finding::warning(CHECK, found).advice(
            "narrow the rule with private = true by who, from, listeners or images; larder auth check anonymous IMAGE tells which it is",
        )
    })
}

/// Passwords that cross the network in the clear.
fn overheard(config: &Config, door: &Door<'_>) -> Option<Finding> {
    let logins = config.access.htpasswd_file.is_some() || !config.access.issuers.is_empty();
    (logins && door.tls.is_none()).then(|| {
        let found = format!("logins to the listener {} cross the network without TLS", door.name);
        Finding::warning(CHECK, found).advice("give it tls = { cert, key }, or put a proxy with TLS in front of it")
    })
}
