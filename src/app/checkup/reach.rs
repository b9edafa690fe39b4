//! Whether a pull from this machine arrives at the proxy: the question that every client asks first.

use std::time::Duration;

use super::{Address, Finding};
use crate::upstream::documents;

const CHECK: &str = "way to the proxy";
const TIMEOUT: Duration = Duration::from_secs(5);

/// What came of it.
pub(super) struct Reached {
    /// By which it answered.
    pub(super) scheme: Option<&'static str>,
    /// It speaks TLS, with a certificate that the authorities of this machine do not vouch for.
    pub(super) is_distrusted: bool,
    pub(super) finding: Finding,
}

/// By the scheme that is named, or by both: plain first, for what speaks TLS says no to that at once, and not the other
/// way round.
pub(super) async fn find(address: &Address) -> Reached {
    let schemes: &[&'static str] = match address.scheme {
        Some("http") => &["http"],
        Some(_) => &["https"],
        None => &["http", "https"],
    };
    let mut failed = Vec::new();
    let mut strange = None;
    for &scheme in schemes {
        match ask(scheme, address).await {
            Ok(answer) if matches!(answer.status, 200 | 401) => {
                return Reached {
                    scheme: Some(scheme),
                    is_distrusted: false,
                    finding: judged(scheme, address, &answer),
                };
            }
            Ok(answer) => strange = Some(judged(scheme, address, &answer)),
            Err(why) => failed.push(format!("{scheme}://{address}: {why}")),
        }
    }
    let found = failed.join("; ");
    // A TLS port answers 400 to a plain request, and is asked by TLS after that.
    let is_distrusted = found.to_ascii_lowercase().contains("certificate");
    if let Some(finding) = strange.filter(|_| !is_distrusted) {
        return Reached {
            scheme: address.scheme,
            is_distrusted: false,
            finding,
        };
    }
    let advice = match is_distrusted {
        true => {
            "its certificate is not believed here: give clients its authority (ca in hosts.toml, certs.d of docker and podman), or the proxy a certificate of one that they know"
        }
        false => {
            "is it the right address, does the proxy listen on it (larder check-config there), is there a firewall between?"
        }
    };
    Reached {
        // A certificate was shown, so it speaks TLS.
        scheme: if is_distrusted { Some("https") } else { address.scheme },
        is_distrusted,
        finding: Finding::problem(CHECK, found).advice(advice),
    }
}

struct Answer {
    status: u16,
    is_larder: bool,
}

async fn ask(scheme: &str, address: &Address) -> Result<Answer, String> {
    let http = documents::direct(None, TIMEOUT)?;
    // Only a larder tells its times to who asks so.
    let request = http
        .get(format!("{scheme}://{address}/v2/"))
        .header("larder-timing", "1");
    let response = request
        .send()
        .await
        .map_err(|error| documents::said(&error.without_url()))?;
    Ok(Answer {
        status: response.status().as_u16(),
        is_larder: response.headers().contains_key("server-timing"),
    })
}

fn judged(scheme: &str, address: &Address, answer: &Answer) -> Finding {
    let at = format!("{scheme}://{address}");
    match answer.status {
        200 | 401 if !answer.is_larder => Finding::warning(
            CHECK,
            format!("a registry answers at {at}, but it is no larder, or something is between that changes answers"),
        )
        .advice("is it the right address?"),
        200 => Finding::ok(CHECK, format!("the proxy answers at {at}")),
        401 => Finding::ok(CHECK, format!("the proxy answers at {at}, and asks for a login")),
        // What speaks TLS says so to who does not.
        status => Finding::problem(
            CHECK,
            format!("what answers at {at} says {status} to /v2/: that is no registry"),
        )
        .advice("is it the right port, and the right one of http and https?"),
    }
}
