//! Harnesses for what a certificate authority says, and for what is kept of it on disk.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::{Duration, SystemTime};

use super::certificate::Certificate;
use super::directory;
use super::error::{Fault, said};
use super::plan;
use super::record::{Accounts, Attempts, Issue, at_ms};
use crate::fuzzing::{Harness, check_bounded, check_error, fields, text, texts};

pub(crate) const HARNESSES: &[Harness] = &[
    Harness {
        name: "acme_answers",
        run: acme_answers,
        seeds: || {
            texts(&[
                "120\n{\"type\":\"urn:ietf:params:acme:error:rateLimited\",\"detail\":\"too many certificates\",\"status\":429}",
                "Wed, 21 Oct 2026 07:28:00 GMT\n{\"type\":\"urn:ietf:params:acme:error:compound\",\"detail\":\"x\\ny\",\"subproblems\":[{\"type\":\"urn:ietf:params:acme:error:caa\",\"detail\":\"no\",\"identifier\":{\"type\":\"dns\",\"value\":\"a.example\"}}]}",
                "18446744073709551615\n{\"status\":503}",
            ])
        },
        words: &[
            "{",
            "\"detail\":",
            "\"",
            "\u{202e}",
            "[",
            "{\"detail\":\"x\"},",
            "urn:",
            "1",
        ],
    },
    Harness {
        name: "acme_records",
        run: acme_records,
        seeds: || {
            let mut seeds = texts(&[
                "{\"wanted\":{\"directory\":\"https://ca.example/directory\",\"names\":[\"a.example\"],\"profile\":null},\"failure\":\"ratelimited\",\"in_a_row\":3,\"refusals\":1,\"why\":\"too many\",\"failed_ms\":1,\"again_ms\":18446744073709551615}",
                "{\"https://ca.example/directory\":{\"eab_kid\":null,\"contact\":[],\"credentials\":{\"id\":\"x\"}}}",
                "{\"wanted\":{\"directory\":\"d\",\"names\":[],\"profile\":null},\"chain\":\"-----BEGIN CERTIFICATE-----\\nAAAA\\n-----END CERTIFICATE-----\\n\",\"key\":\"k\",\"came_ms\":1}",
            ]);
            if let Ok(made) = rcgen::KeyPair::generate().and_then(|key| {
                let params = rcgen::CertificateParams::new(["a.example".to_owned()])?;
                Ok(params.self_signed(&key)?.pem() + &key.serialize_pem())
            }) {
                seeds.push(made.into_bytes());
            }
            seeds
        },
        words: &[
            "-----BEGIN CERTIFICATE-----\n",
            "-----END CERTIFICATE-----\n",
            "AAAA",
            "-----",
            "{",
            "\"",
            "\n",
        ],
    },
];

/// Retry-After, then a problem document.
fn acme_answers(data: &[u8]) {
    let ([retry], problem) = fields(data);
    if let Some(at) = text(retry).and_then(directory::retry_after) {
        let now = SystemTime::now();
        // However far away that is, it is tried again one day.
        let again = plan::again(now, Duration::from_secs(60), Some(at));
        assert!(
            again >= now && again <= now + Duration::from_secs(400 * 24 * 3600),
            "{again:?}"
        );
    }
    let Ok(problem) = serde_json::from_slice::<instant_acme::Problem>(problem) else {
        return;
    };
    let words = said(&problem);
    // One more says that there was more.
    assert!(words.chars().count() <= 501);
    let fault = Fault::of_problem(&problem, "ca.example");
    let _ = fault.kind();
    check_bounded(fault);
}

fn acme_records(data: &[u8]) {
    if let Ok(attempts) = serde_json::from_slice::<Attempts>(data) {
        let written = serde_json::to_vec(&attempts).unwrap();
        assert_eq!(serde_json::from_slice::<Attempts>(&written).unwrap(), attempts);
        assert!(attempts.again() <= at_ms(u64::MAX) && attempts.failed() <= at_ms(u64::MAX));
    }
    let _ = serde_json::from_slice::<Accounts>(data);
    if let Ok(issue) = serde_json::from_slice::<Issue>(data)
        && let Err(error) = Certificate::read(&issue.chain, &issue.key)
    {
        check_error(error);
    }
    // One text for both, as some people keep them.
    let Some(pem) = text(data) else { return };
    match Certificate::read(pem, pem) {
        Ok(certificate) => {
            let _ = (certificate.renewal(), certificate.id(), certificate.chance());
            if let Err(error) = certificate.check(&["a.example".to_owned()], SystemTime::now()) {
                check_error(error);
            }
        }
        Err(error) => check_error(error),
    }
}
