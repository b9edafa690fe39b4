//! `[traces]`: where spans go and whose they are.
//!
//! What the table leaves out is taken from the variables that OpenTelemetry gives every program (`OTEL_EXPORTER_OTLP_ENDPOINT` and
//! its like): who sets one for this process has named the collector as much as by a key. Those that make no sense are told of and
//! left out, as that specification wants; a key that makes none is refused.

use std::path::PathBuf;

use percent_encoding::percent_decode_str;
use url::Url;

use super::error::show_key;
use super::file::quoted;
use super::findings::Findings;
use super::raw::RawTraces;
use super::{Password, Secret};

const ENDPOINT: &[&str] = &["traces", "endpoint"];
const SAMPLE: &[&str] = &["traces", "sample"];
const RESOURCE: &[&str] = &["traces", "resource"];
/// What a collector listens at, behind its host (OTLP/HTTP).
const USUAL_PATH: &str = "v1/traces";
/// Where collectors speak gRPC.
const GRPC_PORT: u16 = 4317;
const SERVICE: &str = "larder";

/// Where spans go.
#[derive(Clone, Debug, PartialEq)]
pub struct Traces {
    pub endpoint: Url,
    /// `name=value`, with commas or line breaks between; `header_pairs` reads it.
    pub headers: Option<Password>,
    /// `service.name` first.
    pub resource: Vec<(String, String)>,
    /// Of the traces that nobody decided about, from 0 to 1.
    pub sample: f64,
    /// Whether a client's `traceparent` decides about its requests.
    pub heeds_parent: bool,
    /// Whether upstreams are told.
    pub propagate: bool,
    pub ca_file: Option<PathBuf>,
}

/// `None`: there are none. `sources` hears of the variables that were used.
pub fn traces(findings: &mut Findings<'_>, raw: &RawTraces, sources: &mut Vec<String>) -> Option<Traces> {
    let mut variables = Variables { used: Vec::new() };
    let endpoint = endpoint(findings, raw, &mut variables);
    // Looked at in any case: a mistake is one, whether it has an effect or not.
    let given = sample(findings, raw);
    let own = resource(findings, raw);
    let headers = headers(findings, raw);
    let ca_file = findings.file(&["traces", "ca_file"], raw.ca_file.as_ref());
    let endpoint = endpoint?;
    let (sample, heeds_parent) = match given {
        Some(share) => (share, true),
        None => variables.sampler(findings),
    };
    let names = ["OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS"];
    let headers = headers.or_else(|| variables.headers(findings, &names));
    let names = [
        "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE",
        "OTEL_EXPORTER_OTLP_CERTIFICATE",
    ];
    let ca_file = ca_file.or_else(|| variables.get(findings, &names).map(PathBuf::from));
    let resource = variables.resource(findings, raw.service_name.as_deref(), own);
    sources.append(&mut variables.used);
    Some(Traces {
        endpoint,
        headers,
        resource,
        sample,
        heeds_parent,
        propagate: raw.propagate,
        ca_file,
    })
}

/// `name=value` pairs as OpenTelemetry writes them, with commas between, or line breaks; values may be percent-encoded.
///
/// Errors: a sentence that repeats nothing of it.
pub fn pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    let entries = text.split([',', '\n']).map(str::trim).filter(|entry| !entry.is_empty());
    let pair = |entry: &str| {
        let (name, value) = entry.split_once('=')?;
        let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
        let name = name.trim();
        (!name.is_empty()).then(|| (name.to_owned(), value.into_owned()))
    };
    entries
        .map(|entry| pair(entry).ok_or_else(|| "expected name=value, and commas between several".to_owned()))
        .collect()
}

/// The same, for headers of a request.
///
/// Errors: a sentence that repeats nothing of it.
pub fn header_pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    let pairs = pairs(text)?;
    let is_name = |name: &str| {
        name.bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.!#$&'*+^`|~%".contains(&b))
    };
    let is_value = |value: &str| value.bytes().all(|b| matches!(b, b' '..=b'~' | b'\t'));
    match pairs.iter().all(|(name, value)| is_name(name) && is_value(value)) {
        true => Ok(pairs),
        false => Err("expected name=value pairs that can be headers".to_owned()),
    }
}

/// An address that spans can be sent to. The text itself may hold a secret where it is wrong, so it is not shown whole.
fn address(text: &str) -> Result<Url, String> {
    let wanted = "expected the http:// or https:// address of a collector, such as \"http://127.0.0.1:4318/v1/traces\"";
    let url: Url = text
        .trim()
        .parse()
        .map_err(|_| format!("found {}, {wanted}", quoted(text)))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(format!("found {}, {wanted}", quoted(text)));
    }
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
        return Err(
            "expected an address without user, password and query; headers can hold what authorizes".to_owned(),
        );
    }
    Ok(url)
}

/// `base`, with the usual path behind it.
fn with_path(mut base: Url) -> Url {
    let path = format!("{}/{USUAL_PATH}", base.path().trim_end_matches('/'));
    base.set_path(&path);
    base
}

fn endpoint(findings: &mut Findings<'_>, raw: &RawTraces, variables: &mut Variables) -> Option<Url> {
    let Some(text) = &raw.endpoint else {
        return variables.endpoint(findings);
    };
    // Said to be none, whatever the surroundings say.
    if text.is_empty() {
        return None;
    }
    match address(text) {
        // As it stands; a bare host is short for the usual place there.
        Ok(url) if url.path() == "/" => Some(warned(findings, ENDPOINT, with_path(url))),
        Ok(url) => Some(warned(findings, ENDPOINT, url)),
        Err(message) => {
            findings.refuse(ENDPOINT, message);
            None
        }
    }
}

fn warned(findings: &mut Findings<'_>, key: &[&str], url: Url) -> Url {
    if url.port() == Some(GRPC_PORT) {
        let message =
            format!("port {GRPC_PORT} is where collectors speak gRPC; Larder speaks OTLP over HTTP, usually at 4318");
        findings.warn(key, message);
    }
    url
}

fn sample(findings: &mut Findings<'_>, raw: &RawTraces) -> Option<f64> {
    let share = raw.sample?;
    if !(0.0..=1.0).contains(&share) {
        findings.refuse(SAMPLE, format!("found {share}, expected a number from 0 to 1"));
    }
    Some(share)
}

fn resource(findings: &mut Findings<'_>, raw: &RawTraces) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for text in &raw.resource {
        match text.split_once('=').map(|(key, value)| (key.trim(), value.trim())) {
            Some((key, value)) if !key.is_empty() => all.push((key.to_owned(), value.to_owned())),
            _ => findings.refuse(
                RESOURCE,
                format!(
                    "found {}, expected key=value, such as \"deployment.environment.name=production\"",
                    quoted(text)
                ),
            ),
        }
    }
    all
}

fn headers(findings: &mut Findings<'_>, raw: &RawTraces) -> Option<Password> {
    let (key, file_key) = (["traces", "headers"], ["traces", "headers_file"]);
    let file = findings.secret_file(&file_key, raw.headers_file.as_ref());
    match (&raw.headers, file) {
        (Some(_), Some(_)) => {
            let other = findings.place(&key);
            let message = format!("expected either headers or headers_file, but headers is given too ({other})");
            findings.refuse(&file_key, message);
            None
        }
        (Some(text), None) => {
            if let Err(message) = header_pairs(text) {
                findings.refuse(&key, message);
            }
            findings.warn_about_open_file(&key, "headers_file");
            Some(Password::Value(Secret::new(text)))
        }
        (None, file) => file.map(Password::File),
    }
}

/// What OpenTelemetry's variables say.
struct Variables {
    /// Those that count, by name.
    used: Vec<String>,
}

impl Variables {
    /// The first of `names` that is set and not empty; where both count for all signals and for traces, that for traces comes first.
    fn get(&mut self, findings: &Findings<'_>, names: &[&str]) -> Option<String> {
        let environment = findings.paths.environment;
        let (name, text) = names.iter().find_map(|name| Some((*name, environment.get(name)?)))?;
        self.used.push(name.to_owned());
        Some(text.to_owned())
    }

    fn endpoint(&mut self, findings: &mut Findings<'_>) -> Option<Url> {
        let says = |findings: &Findings<'_>, name: &str, word: &str| {
            let said = findings.paths.environment.get(name);
            said.is_some_and(|said| said.trim().eq_ignore_ascii_case(word))
        };
        if says(findings, "OTEL_SDK_DISABLED", "true") || says(findings, "OTEL_TRACES_EXPORTER", "none") {
            return None;
        }
        let (whole, base) = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT");
        let text = self.get(findings, &[whole, base])?;
        let name = self.used.last().cloned().unwrap_or_default();
        let url = match address(&text) {
            Ok(url) if name == base => with_path(url),
            Ok(url) => url,
            Err(message) => {
                self.used.clear();
                strange(findings, &name, &message);
                return None;
            }
        };
        let protocol = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];
        if let Some(other) = self.get(findings, &protocol).filter(|said| said != "http/protobuf") {
            let used = self.used.pop().unwrap_or_default();
            strange(
                findings,
                &used,
                &format!("found {}, but Larder speaks http/protobuf only", quoted(&other)),
            );
        }
        Some(warned(findings, ENDPOINT, url))
    }

    /// A share, and whether parents are heeded.
    fn sampler(&mut self, findings: &mut Findings<'_>) -> (f64, bool) {
        let usual = (1.0, true);
        let Some(name) = self.get(findings, &["OTEL_TRACES_SAMPLER"]) else {
            return usual;
        };
        let (base, heeds_parent) = match name.strip_prefix("parentbased_") {
            Some(base) => (base, true),
            None => (name.as_str(), false),
        };
        let share = match base {
            "always_on" => 1.0,
            "always_off" => 0.0,
            "traceidratio" => match self.get(findings, &["OTEL_TRACES_SAMPLER_ARG"]) {
                None => 1.0,
                Some(text) => match text.trim().parse().ok().filter(|share| (0.0..=1.0).contains(share)) {
                    Some(share) => share,
                    None => {
                        let message = format!("found {}, expected a number from 0 to 1", quoted(&text));
                        strange(findings, "OTEL_TRACES_SAMPLER_ARG", &message);
                        1.0
                    }
                },
            },
            _ => {
                let message = format!(
                    "found {}, expected always_on, always_off, traceidratio, or one of them behind parentbased_",
                    quoted(&name)
                );
                strange(findings, "OTEL_TRACES_SAMPLER", &message);
                return usual;
            }
        };
        (share, heeds_parent)
    }

    fn headers(&mut self, findings: &mut Findings<'_>, names: &[&str]) -> Option<Password> {
        let text = self.get(findings, names)?;
        if let Err(message) = header_pairs(&text) {
            let name = self.used.pop().unwrap_or_default();
            strange(findings, &name, &message);
            return None;
        }
        Some(Password::Value(Secret::new(text)))
    }

    /// What the table says wins over what the variables say; of several values of a key the last counts.
    fn resource(
        &mut self,
        findings: &mut Findings<'_>,
        service: Option<&str>,
        own: Vec<(String, String)>,
    ) -> Vec<(String, String)> {
        let mut all = vec![
            ("service.name".to_owned(), SERVICE.to_owned()),
            ("service.version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ];
        if let Some(text) = self.get(findings, &["OTEL_RESOURCE_ATTRIBUTES"]) {
            match pairs(&text) {
                Ok(more) => all.extend(more),
                Err(message) => strange(findings, "OTEL_RESOURCE_ATTRIBUTES", &message),
            }
        }
        let named = self.get(findings, &["OTEL_SERVICE_NAME"]);
        all.extend(named.map(|name| ("service.name".to_owned(), name)));
        all.extend(own);
        all.extend(service.map(|name| ("service.name".to_owned(), name.to_owned())));
        let mut settled: Vec<(String, String)> = Vec::new();
        for (key, value) in all {
            match settled.iter_mut().find(|(known, _)| *known == key) {
                Some((_, known)) => *known = value,
                None => settled.push((key, value)),
            }
        }
        settled
    }
}

/// A variable that is for every program, and that this one can make nothing of.
fn strange(findings: &mut Findings<'_>, variable: &str, message: &str) {
    let key = show_key(&["traces".to_owned()]);
    findings
        .warnings
        .push(format!("{variable}: {key}: {message}; it is left out"));
}

#[cfg(test)]
#[path = "traces_tests.rs"]
mod tests;
