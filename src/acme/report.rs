//! How things stand, for people, from the files alone: also where no proxy runs, and beside one that does.

use std::time::SystemTime;

use serde::Serialize;

use super::certificate::Certificate;
use super::keeper::date;
use super::record::{self, Attempts, Issue, Wanted};
use crate::config::Acme;
use crate::store::{Paper, State};

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Host and port of the directory.
    pub directory: String,
    pub names: Vec<String>,
    pub challenge: &'static str,
    /// The certificate that is kept.
    pub held: Option<Held>,
    /// The last order, if it failed.
    pub failed: Option<Failed>,
    /// Why the files cannot be read.
    pub trouble: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Held {
    /// It was ordered by this configuration.
    pub is_wanted: bool,
    /// UTC.
    pub expires: String,
    pub has_expired: bool,
    /// When another is ordered at the latest, UTC.
    pub renewal: String,
    /// For whoever wants to look at it, DER, the own certificate first.
    #[serde(skip)]
    pub chain: Vec<Vec<u8>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failed {
    pub why: String,
    pub in_a_row: u32,
    /// When it is tried again, UTC.
    pub again: String,
}

/// Blocking. Dials nobody.
pub fn report(acme: &Acme, state: &State) -> Report {
    let wanted = Wanted::of(acme);
    let host = acme.directory.host_str().unwrap_or_default();
    let port = acme.directory.port().map(|port| format!(":{port}"));
    let mut report = Report {
        directory: format!("{host}{}", port.unwrap_or_default()),
        names: acme.names.clone(),
        challenge: acme.challenge.as_str(),
        held: None,
        failed: None,
        trouble: None,
    };
    match record::read::<Issue>(state, Paper::Certificate) {
        Ok(Some(issue)) => match Certificate::read(&issue.chain, &issue.key) {
            Ok(certificate) => report.held = Some(held(&certificate, issue.wanted == wanted)),
            Err(why) => report.trouble = Some(format!("{}: {why}", state.path(Paper::Certificate).display())),
        },
        Ok(None) => {}
        Err(why) => report.trouble = Some(why),
    }
    match record::read::<Attempts>(state, Paper::Attempts) {
        Ok(attempts) => {
            report.failed = attempts
                .filter(|attempts| attempts.wanted == wanted)
                .map(|attempts| Failed {
                    again: date(attempts.again()),
                    in_a_row: attempts.in_a_row,
                    why: attempts.why,
                });
        }
        Err(why) => report.trouble = report.trouble.or(Some(why)),
    }
    report
}

fn held(certificate: &Certificate, is_wanted: bool) -> Held {
    Held {
        is_wanted,
        expires: date(certificate.not_after),
        has_expired: certificate.not_after <= SystemTime::now(),
        renewal: date(certificate.renewal()),
        chain: certificate.key.cert.iter().map(|der| der.to_vec()).collect(),
    }
}
