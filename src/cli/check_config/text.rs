//! The configuration's meaning in words.

use std::fmt::Display;
use std::time::Duration;

use super::{origin, without_user};
use crate::app;
use crate::config::units::{show_duration, show_size};
use crate::config::{
    Acme, Cache, Challenge, Config, Lender, LogFormat, Password, Prefetch, ServerTls, StaticCredentials, TlsIdentity,
    Upstream, WEBHOOK_EVENTS,
};
use crate::text::count;

pub fn meaning(config: &Config) -> String {
    let mut out = String::new();
    section(&mut out, "Configuration", &sources(config));
    section(&mut out, "Listeners", &listeners(config));
    section(&mut out, "Who may pull", &access(config));
    if let Some(one) = &config.acme {
        section(&mut out, "Certificate", &acme(config, one));
    }
    section(&mut out, "Cache", &cache(&config.cache));
    section(&mut out, "Policy", &policy(&config.cache));
    section(&mut out, "Limits and log", &limits(config));
    section(&mut out, "Upstreams", &upstreams(config));
    if !config.prefetch.is_empty() {
        section(&mut out, "Fetched ahead", &prefetches(config));
    }
    if !config.webhooks.is_empty() {
        section(&mut out, "Webhooks", &webhooks(config));
    }
    if !config.warnings.is_empty() {
        section(&mut out, "Warnings", &config.warnings);
    }
    out
}

fn section(out: &mut String, title: &str, lines: &[String]) {
    if !out.is_empty() {
        out.push('\n');
    }
    out.push_str(title);
    out.push('\n');
    for line in lines {
        out.push_str("  ");
        out.push_str(line);
        out.push('\n');
    }
}

fn row(name: &str, value: impl Display) -> String {
    // At least one blank, also behind a name that is longer than its column.
    format!("{name:<11} {value}")
}

fn list<T: Display>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn sources(config: &Config) -> Vec<String> {
    if config.sources.is_empty() {
        return vec!["no file and no variables: everything is as built in".to_owned()];
    }
    let row_of =
        |source: &String| match source.to_ascii_uppercase().starts_with("LARDER_") || source.starts_with("OTEL_") {
            true => row("variable", source),
            false => row("file", source),
        };
    config.sources.iter().map(row_of).collect()
}

fn tls_of(tls: Option<&ServerTls>) -> String {
    match tls {
        None => "without TLS".to_owned(),
        Some(tls) => {
            let from = match &tls.identity {
                TlsIdentity::Files { cert, .. } => cert.display().to_string(),
                TlsIdentity::Acme => "ACME".to_owned(),
            };
            match &tls.client_ca {
                None => format!("with TLS ({from})"),
                Some(ca) => format!("with TLS ({from}), only for clients that {} vouches for", ca.display()),
            }
        }
    }
}

fn listeners(config: &Config) -> Vec<String> {
    let api = match &config.admin.token {
        None if config.admin.listen.iter().all(|at| at.port().is_none()) => {
            "the API for the proxy's own user and root".to_owned()
        }
        None => "the API with a token that is made at each start".to_owned(),
        Some(Password::Value(_)) => "the API with a token".to_owned(),
        Some(Password::File(path)) => format!("the API with the token in {}", path.display()),
    };
    let further = config.listeners.iter().map(|listener| {
        let has_address = listener.listen.iter().any(|place| place.port().is_some());
        let tls = match has_address {
            true => format!(", {}", tls_of(listener.tls.as_ref())),
            false => String::new(),
        };
        row(&listener.name, format!("{}{tls}", list(&listener.listen)))
    });
    let main = row(
        "registry",
        format!(
            "{}, {}",
            list(&config.server.listen),
            tls_of(config.server.tls.as_ref())
        ),
    );
    let mut rows = vec![main];
    rows.extend(further);
    rows.extend([
        row(
            "admin",
            format!(
                "{}, {}, {api}",
                list(&config.admin.listen),
                tls_of(config.admin.tls.as_ref())
            ),
        ),
        row(
            "on a stop",
            format!("running answers may take {}", in_words(config.server.shutdown_grace)),
        ),
        row(
            "Server-Timing",
            match config.server.server_timing {
                true => "in every answer",
                false => "for clients that ask for it (Larder-Timing: 1)",
            },
        ),
        row(
            "proxies",
            match config.server.trusted_proxies.is_empty() {
                true => "none trusted: a client is at the address that it connects from".to_owned(),
                false => format!("{} are trusted", config.server.trusted_proxies),
            },
        ),
    ]);
    rows
}

/// What is asked for, of whom, and how it stands with that.
fn acme(config: &Config, acme: &Acme) -> Vec<String> {
    let mut rows = vec![
        row("names", list(&acme.names)),
        row("from", &acme.directory),
        row(
            "proof",
            match &acme.challenge {
                Challenge::TlsAlpn => "tls-alpn-01: port 443 of each name has to lead to such a listener".to_owned(),
                Challenge::Http { listen } => {
                    format!("http-01: port 80 of each name has to lead to {}", list(listen))
                }
            },
        ),
    ];
    if let Some(proxy) = &acme.proxy {
        rows.push(row("through", without_user(proxy)));
    }
    let Some(report) = crate::app::certificate(config) else {
        return rows;
    };
    rows.push(row(
        "held",
        match &report.held {
            None => "none yet: clients see a self-signed one until it comes".to_owned(),
            Some(held) => {
                let of_another = if held.is_wanted {
                    ""
                } else {
                    ", but ordered by another configuration"
                };
                format!("until {}, renewed from {}{of_another}", held.expires, held.renewal)
            }
        },
    ));
    if let Some(failed) = &report.failed {
        rows.push(row(
            "last order",
            format!("failed: {}; again at {}", failed.why, failed.again),
        ));
    }
    rows.extend(report.trouble.map(|trouble| row("unreadable", trouble)));
    rows
}

fn access(config: &Config) -> Vec<String> {
    let access = &config.access;
    let mut rows = Vec::new();
    if let Some(path) = &access.htpasswd_file {
        rows.push(row("passwords", format!("of {}", path.display())));
    }
    for issuer in &access.issuers {
        let name = format!("{}:<{}>", issuer.name, issuer.identity);
        let (by, keys) = (&issuer.issuer, &issuer.jwks);
        rows.push(row(
            "tokens",
            format!("of {by} for {:?} are {name}; keys at {keys}", issuer.audience),
        ));
    }
    if access.rules.is_empty() {
        rows.push("Everybody who reaches an address may pull and fetch what is public.".to_owned());
        rows.push(match crate::auth::knows_own_names(config) {
            true => "What needs credentials upstream is for users with a password or certificate.".to_owned(),
            false => "What needs credentials upstream is refused.".to_owned(),
        });
    }
    for (at, rule) in access.rules.iter().enumerate() {
        rows.push(format!("{}. {rule}", at + 1));
    }
    if !access.rules.is_empty() {
        rows.push("What no rule matches is refused.".to_owned());
    }
    rows.extend(
        crate::auth::hints(config)
            .into_iter()
            .map(|hint| format!("Hint: {hint}")),
    );
    rows
}

fn cache(cache: &Cache) -> Vec<String> {
    vec![
        row("folder", cache.path.display()),
        row("at most", show_size(cache.max_size)),
        row(
            "stays free",
            format!("{} of the file system", show_size(cache.min_free)),
        ),
        row("paths", format!("looked at as {}", app::User::of_process())),
    ]
}

fn policy(cache: &Cache) -> Vec<String> {
    let trusted = match cache.tag_ttl {
        Duration::ZERO => "A tag is asked for by HEAD every time.".to_owned(),
        ttl => format!("A tag is trusted for {}, then asked for by HEAD.", in_words(ttl)),
    };
    let stale = match cache.stale_if_error {
        Duration::ZERO => "When its registry fails, a tag that is no longer trusted is not served.".to_owned(),
        age => format!(
            "When its registry fails, a tag is served until it is {} old.",
            in_words(age)
        ),
    };
    let missing = match cache.negative_ttl.min(cache.tag_ttl) {
        Duration::ZERO => "What a registry does not have is asked for again every time.".to_owned(),
        ttl => format!(
            "What a registry does not have is asked for again after {}.",
            in_words(ttl)
        ),
    };
    let dialled = match cache.offline {
        true => "Offline: no upstream is contacted, unless its own settings say so.",
        false => "What is not cached is fetched from its upstream; no other host is contacted.",
    };
    vec![
        trusted,
        missing,
        stale,
        format!("A name that begins with no host means {}.", cache.default_upstream),
        dialled.to_owned(),
    ]
}

fn limits(config: &Config) -> Vec<String> {
    let limits = &config.limits;
    let format = match config.log.format {
        LogFormat::Text => "text",
        LogFormat::Json => "JSON",
    };
    vec![
        row(
            "connections",
            format!(
                "{} in all, {} a client address, closed after {} without a request",
                limits.max_connections,
                limits.max_connections_per_client,
                in_words(limits.idle_timeout)
            ),
        ),
        row(
            "headers",
            format!(
                "{} in {} a request, within {}",
                limits.headers,
                show_size(limits.header_bytes as u64),
                in_words(limits.header_timeout)
            ),
        ),
        row(
            "manifests",
            format!(
                "{} and {} each",
                show_size(limits.manifest_size as u64),
                count(limits.manifest_descriptors, "descriptor")
            ),
        ),
        row("log", format!("{} as {format}", config.log.level)),
        row(
            "audit log",
            match &config.audit {
                None => "none".to_owned(),
                Some(audit) => format!(
                    "{}, and {} of {} each",
                    audit.file.display(),
                    audit.keep,
                    show_size(audit.max_size)
                ),
            },
        ),
        row("traces", traces(config)),
    ]
}

fn traces(config: &Config) -> String {
    let Some(traces) = &config.traces else {
        return "none".to_owned();
    };
    let who = |key: &str| traces.resource.iter().find(|(known, _)| known == key);
    let name = who("service.name").map_or("", |(_, name)| name);
    let share = format!("{} % of them", traces.sample * 100.0);
    let which = match (traces.heeds_parent, traces.sample) {
        (true, 1.0) => "of all requests but those whose client says no".to_owned(),
        (true, _) => format!("of requests whose client says so, and of {share} where it says nothing"),
        (false, _) => format!("of requests, {share}, whatever the client says"),
    };
    let headers = if traces.headers.is_some() { ", with headers" } else { "" };
    let told = if traces.propagate { "; sent to upstreams" } else { "" };
    format!("to {} as {name}{headers}, {which}{told}", traces.endpoint)
}

fn prefetches(config: &Config) -> Vec<String> {
    let line = |one: &Prefetch| {
        let what = match one.wanted() {
            Ok(wanted) => count(wanted.len(), "line"),
            Err(why) => why,
        };
        let whom = match &one.platforms {
            Some(platforms) => list(&platforms.names()),
            None => "the platforms that clients have pulled".to_owned(),
        };
        format!("{}: {what}, for {whom}, at {:?}", one.name, one.schedule.as_str())
    };
    config.prefetch.iter().map(line).collect()
}

/// Of the address only scheme, host and port; of headers the names.
fn webhooks(config: &Config) -> Vec<String> {
    let mut out = Vec::new();
    for hook in &config.webhooks {
        let images = match hook.images.as_slice() {
            [] => "all images".to_owned(),
            images => list(images),
        };
        let events = match hook.events.len() == WEBHOOK_EVENTS.len() {
            true => "everything".to_owned(),
            false => list(&hook.events),
        };
        out.push(row(&hook.name, format!("{} gets {events}, for {images}", hook.url)));
        let mut say = |name: &str, text: String| out.push(format!("    {name}: {text}"));
        say(
            "signed",
            match &hook.secret {
                None => "no".to_owned(),
                Some(Password::File(path)) => format!("with the secret in {}", path.display()),
                Some(Password::Value(_)) => {
                    let place = origin(config, &["webhook", &hook.name, "secret"]).unwrap_or("the configuration");
                    format!("with the secret from {place}")
                }
            },
        );
        if !hook.headers.is_empty() {
            let names: Vec<&str> = hook.headers.iter().map(|(name, _)| name.as_str()).collect();
            say("headers", list(&names));
        }
        for (name, path) in [("more headers in", &hook.headers_file), ("authorities", &hook.ca_file)] {
            if let Some(path) = path {
                say(name, path.display().to_string());
            }
        }
        if let Some(proxy) = &hook.proxy {
            say("through", proxy.to_string());
        }
        say(
            "waits on disk",
            format!(
                "{} at most, for {} at most",
                show_size(hook.queue_max),
                in_words(hook.max_age)
            ),
        );
    }
    out
}

/// The table, with what is special about an upstream in lines below it.
fn upstreams(config: &Config) -> Vec<String> {
    let head = ["NAME", "URL", "ALIASES", "CREDENTIALS"].map(str::to_owned);
    let rows: Vec<[String; 4]> = config
        .upstreams
        .iter()
        .map(|one| {
            let url = one.url.as_str().trim_end_matches('/').to_owned();
            let credentials = match &one.credentials {
                Some(given) => credentials(config, one, given),
                None => lender(one),
            };
            let aliases = if one.aliases.is_empty() {
                "-".to_owned()
            } else {
                list(&one.aliases)
            };
            [one.name.to_string(), url, aliases, credentials]
        })
        .collect();
    let all = || std::iter::once(&head).chain(&rows);
    let width = |column: usize| all().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths = [width(0), width(1), width(2)];
    let line = |row: &[String; 4]| {
        let [a, b, c] = widths;
        format!("{:<a$}  {:<b$}  {:<c$}  {}", row[0], row[1], row[2], row[3])
    };
    let mut out = vec![line(&head)];
    for (upstream, row) in config.upstreams.iter().zip(&rows) {
        out.push(line(row));
        out.extend(special(config, upstream).into_iter().map(|text| format!("    {text}")));
    }
    out
}

/// Who is asked for credentials, where the configuration has none.
fn lender(upstream: &Upstream) -> String {
    match &upstream.lender {
        Some(Lender::Helper(name)) => format!("from docker-credential-{name}"),
        Some(Lender::Cloud(cloud)) => format!("tokens of {}", cloud.as_str()),
        None => "none".to_owned(),
    }
}

/// Who Larder logs in as, and where the password is from; never the password.
fn credentials(config: &Config, upstream: &Upstream, given: &StaticCredentials) -> String {
    let name = upstream.name.as_str();
    let user = &given.username;
    match &given.password {
        Password::File(path) => format!("{user}, password in {}", path.display()),
        Password::Value(_) => {
            let place = origin(config, &["upstream", name, "password"]).unwrap_or("the configuration");
            format!("{user}, password from {place}")
        }
    }
}

fn special(config: &Config, one: &Upstream) -> Vec<String> {
    let mut out = Vec::new();
    let given = |key: &str| origin(config, &["upstream", one.name.as_str(), key]).is_some();
    let mut say = |name: &str, text: String| out.push(format!("{name}: {text}"));
    if !one.synonyms.is_empty() {
        say("also known as", list(&one.synonyms));
    }
    if !one.mirrors.is_empty() {
        say("tried first", list(&one.mirrors));
    }
    if given("tag_ttl") {
        say("a tag is trusted for", in_words(one.tag_ttl));
    }
    if given("stale_if_error") {
        say(
            "a tag is served on failure until it is this old",
            in_words(one.stale_if_error),
        );
    }
    if given("offline") {
        say("contacted", if one.offline { "never" } else { "yes" }.to_owned());
    }
    if let Some(size) = one.max_size {
        say("of the cache at most", show_size(size));
    }
    if !one.allow.is_empty() {
        say("only repositories", list(&one.allow));
    }
    if !one.deny.is_empty() {
        say("not repositories", list(&one.deny));
    }
    if let Some(hosts) = &one.redirect_hosts {
        say(
            "redirects only to itself and",
            if hosts.is_empty() {
                "nobody".to_owned()
            } else {
                list(hosts)
            },
        );
    }
    if !one.trusted_realms.is_empty() {
        say("credentials also go to", list(&one.trusted_realms));
    }
    for (name, path) in [("authorities", &one.ca_file), ("client certificate", &one.client_cert)] {
        if let Some(path) = path {
            say(name, path.display().to_string());
        }
    }
    if let Some(proxy) = &one.proxy {
        say("through", without_user(proxy));
    }
    if given("connect_timeout") {
        say("connecting may take", in_words(one.connect_timeout));
    }
    if given("read_timeout") {
        say("may be silent for", in_words(one.read_timeout));
    }
    if given("answer_timeout") {
        say("beginning an answer may take", in_words(one.answer_timeout));
    }
    if let Some(count) = one.max_connections {
        say("requests at once", count.to_string());
    }
    if given("budget_floor") {
        say(
            "tags are checked while pulls are left, at least",
            one.budget_floor.to_string(),
        );
    }
    if let Some(rate) = one.max_bandwidth {
        say("transfers take at most", format!("{}/s", show_size(rate)));
    }
    out
}

/// `1h30m` → `1 hour 30 minutes`
fn in_words(duration: Duration) -> String {
    let short = show_duration(duration);
    let mut words = Vec::new();
    let mut rest = short.as_str();
    while let Some(end) = rest.find(|c: char| !c.is_ascii_digit()) {
        let (number, after) = rest.split_at(end);
        let next = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, tail) = after.split_at(next);
        let word = match unit {
            "d" => "day",
            "h" => "hour",
            "m" => "minute",
            "s" => "second",
            _ => "millisecond",
        };
        let plural = if number == "1" { "" } else { "s" };
        words.push(format!("{number} {word}{plural}"));
        rest = tail;
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_in_words() {
        assert_eq!(in_words(Duration::from_secs(300)), "5 minutes");
        assert_eq!(
            in_words(Duration::from_millis(5_400_500)),
            "1 hour 30 minutes 500 milliseconds"
        );
        assert_eq!(in_words(Duration::ZERO), "0 seconds");
    }

    #[test]
    fn what_was_configured_is_said_and_the_password_is_not() {
        let config = Config::from_toml(
            "[cache]\ntag_ttl = \"0s\"\n\
             [upstream.\"docker.io\"]\nusername = \"me\"\npassword = \"hunter2\"\nallow = [\"library/*\"]\n\
             proxy = \"http://you:hunter2@proxy.example:3128\"\n\
             [webhook.ci]\nurl = \"https://hooks.example/hunter2\"\nevents = [\"pull\", \"evict\"]\n\
             secret = \"hunter2\"\nheaders = [\"Authorization: hunter2\"]\n",
        )
        .unwrap();
        let text = meaning(&config);
        for want in [
            "ci          https://hooks.example/… gets pull, evict, for all images",
            "signed: with the secret from proxy.toml:11",
            "headers: authorization",
            "A tag is asked for by HEAD every time.",
            // Never for longer than a tag is trusted.
            "What a registry does not have is asked for again every time.",
            "manifests   4MiB and 10000 descriptors each",
            "me, password from proxy.toml:5",
            "only repositories: library/*",
            "through: http://proxy.example:3128/ (user and password not shown)",
            "also known as: index.docker.io",
        ] {
            assert!(text.contains(want), "{want}\n{text}");
        }
        for shown in [text, super::super::json::meaning(&config, true)] {
            assert!(!shown.contains("hunter2"), "{shown}");
        }
    }
}
