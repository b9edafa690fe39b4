//! `larder stats`: how the proxy is doing.

use super::desk::{Desk, Place, with_desk};
use super::table::{Align, Table, ago, printable, size, span};
use super::{Exit, print, print_json};
use crate::admin::views::{ApiView, BudgetView, StatsView, UpstreamView, VerifyView, WebhookView};
use crate::config::{Config, ConfigError};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    place: Place,
}

pub fn run(args: &Args, config: Result<Config, ConfigError>) -> Exit {
    with_desk(&args.place, config, async |desk: &Desk| {
        let view = desk.stats().await?;
        Ok(match args.place.json {
            true => print_json(&view),
            false => print(&text(&view, desk.is_folder())),
        })
    })
}

fn text(view: &StatsView, is_folder: bool) -> String {
    let mut text = match is_folder {
        true => "no proxy runs: this is what lies in the folder\n".to_owned(),
        false => {
            let up = span(view.uptime_seconds);
            format!("larder {}, process {}, up {up}\n", view.version, view.pid)
        }
    };
    text += &format!(
        "cache      {}: {} of {} in {} blobs; {} evicted\n",
        view.path,
        size(view.used_bytes),
        size(view.max_bytes),
        view.blobs,
        view.evicted
    );
    if let Some(trouble) = &view.index_trouble {
        text += &format!("index      {}\n", printable(trouble));
    }
    if let Some(trouble) = &view.disk_trouble {
        text += &format!(
            "disk       fails, so what comes passes through: {}\n",
            printable(trouble)
        );
    }
    if !is_folder {
        text += &format!("requests   {}\n", requests(view));
        text += &format!(
            "traffic    {} served, {} from upstreams, {} saved\n",
            size(view.served_bytes),
            size(view.fetched_bytes),
            size(view.saved_bytes)
        );
        text += &format!(
            "transfers  {} in flight, {} staged\n",
            view.transfers,
            size(view.staged_bytes)
        );
    }
    text += &format!("verified   {}\n", verified(&view.verify));
    if let Some(api) = &view.api {
        text += &format!("admin API  {}\n", api_of(api));
    }
    if !view.webhooks.is_empty() {
        text += &format!("\n{}", webhooks(&view.webhooks));
    }
    if !view.upstreams.is_empty() {
        text += &format!("\n{}", upstreams(&view.upstreams));
    }
    if view.upstreams.iter().any(|upstream| !upstream.budgets.is_empty()) {
        text += &format!("\n{}", budgets(&view.upstreams));
    }
    if view.upstreams.iter().any(|upstream| !upstream.addresses.is_empty()) {
        text += &format!("\n{}", addresses(&view.upstreams));
    }
    text
}

/// What calls to it bring.
fn api_of(api: &ApiView) -> String {
    let mut text = match api.token.as_str() {
        "made" if api.token_files.is_empty() => "with a token whose file is gone".to_owned(),
        "made" => format!("with the token in {}", printable(&api.token_files.join(", "))),
        "configured" => "with the configured token".to_owned(),
        _ => "without a token".to_owned(),
    };
    if !api.sockets.is_empty() {
        text += &format!("; by {} without one", printable(&api.sockets.join(", ")));
    }
    if api.tls {
        text += "; over TLS";
    }
    text
}

/// With the part that no upstream was asked for.
fn requests(view: &StatsView) -> String {
    let of = |word: &str| view.requests.get(word).copied().unwrap_or(0);
    let all: u64 = view.requests.values().sum();
    if all == 0 {
        return "none yet".to_owned();
    }
    let words = [
        "hit",
        "miss",
        "collapsed",
        "revalidated",
        "refreshed",
        "pass",
        "stale",
        "error",
        "refused",
    ];
    let words: Vec<String> = words
        .iter()
        .filter(|word| of(word) > 0)
        .map(|word| format!("{} {word}", of(word)))
        .collect();
    let words = words.join(", ");
    match view.hit_ratio.map(|ratio| ratio * 100.0) {
        Some(share) => format!("{all}: {words}; {share:.1} % without asking an upstream"),
        // Nobody who may has pulled.
        None => format!("{all}: {words}"),
    }
}

fn verified(view: &VerifyView) -> String {
    let whole = match view.background.finished_ms {
        Some(_) => format!("everything, {}", ago(view.background.finished_ms)),
        None => "not everything yet".to_owned(),
    };
    let idle = &view.background;
    let mut text = format!(
        "{whole}; since the start {} in {} blobs, {} damaged",
        size(idle.bytes),
        idle.blobs,
        idle.bad
    );
    if view.state == "running" {
        text += &format!("; a check is at {} of {}", size(view.bytes), size(view.bytes_total));
    }
    text
}

fn upstreams(list: &[UpstreamView]) -> String {
    let mut table = Table::new(&[
        ("UPSTREAM", Align::Left),
        ("HELD", Align::Right),
        ("LIMIT", Align::Right),
        ("SERVED", Align::Right),
        ("FETCHED", Align::Right),
        ("SAVED", Align::Right),
        ("", Align::Left),
    ]);
    for upstream in list {
        let paused = upstream
            .paused_seconds
            .map(|left| format!("rate-limited: not asked for another {}", span(left)));
        let trouble = upstream.trouble.as_ref().map(|why| format!("in trouble: {why}"));
        let notes: Vec<String> = paused.into_iter().chain(trouble).collect();
        table.row([
            upstream.name.clone(),
            size(upstream.held_bytes),
            upstream.max_bytes.map_or_else(|| "-".to_owned(), size),
            size(upstream.served_bytes),
            size(upstream.fetched_bytes),
            size(upstream.saved_bytes),
            notes.join("; "),
        ]);
    }
    table.text()
}

fn webhooks(list: &[WebhookView]) -> String {
    let mut table = Table::new(&[
        ("WEBHOOK", Align::Left),
        ("AT", Align::Left),
        ("DELIVERED", Align::Right),
        ("DROPPED", Align::Right),
        ("WAITING", Align::Right),
        ("OLDEST", Align::Left),
        ("", Align::Left),
    ]);
    for hook in list {
        table.row([
            hook.name.clone(),
            hook.url.clone(),
            hook.delivered.to_string(),
            hook.dropped.to_string(),
            hook.queued_events.to_string(),
            hook.oldest_seconds.map_or_else(|| "-".to_owned(), span),
            hook.failing
                .as_ref()
                .map_or_else(String::new, |why| format!("fails: {why}")),
        ]);
    }
    table.text()
}

/// What is left of the pull limits.
fn budgets(list: &[UpstreamView]) -> String {
    let mut table = Table::new(&[
        ("PULL LIMIT", Align::Left),
        ("OF", Align::Left),
        ("LEFT", Align::Right),
        ("LAST HOUR", Align::Right),
        ("RUNS OUT", Align::Left),
        ("", Align::Left),
    ]);
    for upstream in list {
        for budget in &upstream.budgets {
            table.row([
                upstream.name.clone(),
                budget.credential.clone(),
                left(budget),
                budget.spent.to_string(),
                match budget.runs_out_seconds {
                    Some(seconds) => format!("in {}", span(seconds)),
                    None => "not at this pace".to_owned(),
                },
                if budget.low {
                    "low: tags are served unchecked"
                } else {
                    ""
                }
                .to_owned(),
            ]);
        }
    }
    table.text()
}

/// How soon mirrors and registries begin to answer, and what failed there.
fn addresses(list: &[UpstreamView]) -> String {
    let mut table = Table::new(&[
        ("ADDRESS", Align::Left),
        ("OF", Align::Left),
        ("STATE", Align::Left),
        ("MEDIAN", Align::Right),
        ("P95", Align::Right),
        ("FAILED", Align::Right),
        ("", Align::Left),
    ]);
    for upstream in list {
        for address in &upstream.addresses {
            let ms = |time: Option<u64>| time.map_or_else(|| "-".to_owned(), |ms| format!("{ms} ms"));
            table.row([
                address.address.clone(),
                upstream.name.clone(),
                match address.probe_seconds {
                    Some(left) => format!("down, probed in {}", span(left)),
                    None => address.state.clone(),
                },
                ms(address.first_byte_p50_ms),
                ms(address.first_byte_p95_ms),
                address.failures.to_string(),
                address
                    .last_error
                    .as_ref()
                    .map_or_else(String::new, |why| format!("last: {why}")),
            ]);
        }
    }
    table.text()
}

/// `76 of 100 in 6 h`
fn left(budget: &BudgetView) -> String {
    let mut text = budget.remaining.to_string();
    if let Some(limit) = budget.limit {
        text += &format!(" of {limit}");
    }
    if let Some(window) = budget.window_seconds {
        text += &format!(" in {}", span(window));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::views::AddressView;

    #[test]
    fn limits_in_words() {
        let budget = BudgetView {
            credential: "anonymous".to_owned(),
            remaining: 8,
            limit: Some(100),
            window_seconds: Some(21_600),
            source: None,
            age_seconds: 0,
            spent: 30,
            runs_out_seconds: Some(960),
            low: true,
        };
        let upstream = UpstreamView {
            name: "docker.io".to_owned(),
            held_bytes: 0,
            served_bytes: 0,
            fetched_bytes: 0,
            saved_bytes: 0,
            max_bytes: None,
            paused_seconds: None,
            trouble: None,
            budgets: vec![budget],
            addresses: Vec::new(),
        };
        let text = budgets(&[upstream]);
        let words: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
        let want = format!(
            "docker.io anonymous 8 of 100 in {} 30 in {} low:",
            span(21_600),
            span(960)
        );
        assert!(words.join(" ").starts_with(&want), "{text}");
    }

    #[test]
    fn addresses_in_words() {
        let address = |address: &str, probe_seconds: Option<u64>| AddressView {
            address: address.to_owned(),
            role: "mirror".to_owned(),
            state: if probe_seconds.is_some() { "down" } else { "up" }.to_owned(),
            probe_seconds,
            first_byte_p50_ms: probe_seconds.is_none().then_some(12),
            first_byte_p95_ms: probe_seconds.is_none().then_some(340),
            failures: 3,
            last_error: probe_seconds.map(|_| "did not begin\u{1b} to answer".to_owned()),
            last_ok_seconds: None,
        };
        let upstream = UpstreamView {
            name: "docker.io".to_owned(),
            held_bytes: 0,
            served_bytes: 0,
            fetched_bytes: 0,
            saved_bytes: 0,
            max_bytes: None,
            paused_seconds: None,
            trouble: None,
            budgets: Vec::new(),
            addresses: vec![
                address("https://a.example", None),
                address("https://b.example", Some(5)),
            ],
        };
        let text = addresses(&[upstream]);
        let lines: Vec<String> = text
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(lines[1], "https://a.example docker.io up 12 ms 340 ms 3");
        let down = format!(
            "https://b.example docker.io down, probed in {} - - 3 last: did not begin",
            span(5)
        );
        assert!(lines[2].starts_with(&down) && !text.contains('\u{1b}'), "{text}");
    }
}
