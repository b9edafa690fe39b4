//! `larder stats`: how the proxy is doing.

use super::desk::{Desk, Place, with_desk};
use super::table::{Align, Table, ago, printable, size, span};
use super::{Exit, print, print_json};
use crate::admin::views::{ApiView, BudgetView, PeriodView, StatsView, UpstreamView, VerifyView, WebhookView};
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
    if !is_folder {
        text += &format!("\n{}", requests(view));
    }
    if !view.webhooks.is_empty() {
        text += &format!("\n{}", webhooks(&view.webhooks));
    }
    if !view.upstreams.is_empty() {
        text += &format!("\n{}", upstreams(&view.upstreams));
        text += "(served, from the cache and fetched: since the start)\n";
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

/// Outcomes in the order in which they are shown.
const OUTCOMES: [&str; 10] = [
    "hit",
    "miss",
    "collapsed",
    "revalidated",
    "refreshed",
    "pass",
    "stale",
    "missing",
    "error",
    "refused",
];

/// A column for each time: the last hour, the last day, since the start.
fn requests(view: &StatsView) -> String {
    let periods = match &view.periods {
        Some(periods) => vec![&periods.last_hour, &periods.last_day, &periods.since_start],
        None => Vec::new(),
    };
    // A proxy of before counts from its start only.
    let since_start = PeriodView {
        covers_seconds: view.uptime_seconds,
        requests: view.requests.clone(),
        hit_ratio: view.hit_ratio,
        served_bytes: view.served_bytes,
        // Its name of before, which every proxy sends.
        cached_bytes: view.saved_bytes,
        fetched_bytes: view.fetched_bytes,
        byte_hit_ratio: view.byte_hit_ratio,
    };
    let (mut table, periods) = match periods.is_empty() {
        true => (
            Table::new(&[("", Align::Left), ("SINCE THE START", Align::Right)]),
            vec![&since_start],
        ),
        false => (
            Table::new(&[
                ("", Align::Left),
                ("LAST HOUR", Align::Right),
                ("LAST DAY", Align::Right),
                ("SINCE THE START", Align::Right),
            ]),
            periods,
        ),
    };
    let mut row = |name: &str, cell: &dyn Fn(&PeriodView) -> String| {
        let cells = periods.iter().map(|period| cell(period));
        table.row(std::iter::once(name.to_owned()).chain(cells));
    };
    let count = |period: &PeriodView, word: &str| period.requests.get(word).copied().unwrap_or(0);
    row("requests", &|period| period.requests.values().sum::<u64>().to_string());
    for word in OUTCOMES {
        if periods.iter().any(|period| count(period, word) > 0) {
            row(&format!("  {word}"), &|period| count(period, word).to_string());
        }
    }
    row("hit ratio", &|period| percent(period.hit_ratio));
    row("bytes served", &|period| size(period.served_bytes));
    row("  from the cache", &|period| size(period.cached_bytes));
    row("byte hit ratio", &|period| percent(period.byte_hit_ratio));
    row("bytes fetched", &|period| size(period.fetched_bytes));
    let mut text = table.text();
    if let Some(young) = young(view.uptime_seconds, periods.len()) {
        text += &format!("({young})\n");
    }
    text
}

/// Explains the columns of a process that is younger than they are called.
fn young(uptime_seconds: u64, columns: usize) -> Option<String> {
    let which = match uptime_seconds {
        _ if columns < 3 => return None,
        ..3600 => "the last hour and the last day are",
        3600..86_400 => "the last day is",
        _ => return None,
    };
    Some(format!(
        "the process is {} old: {which} as long as that",
        span(uptime_seconds)
    ))
}

fn percent(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{:.1} %", ratio * 100.0))
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
        ("CACHED", Align::Right),
        ("LIMIT", Align::Right),
        ("SERVED", Align::Right),
        ("FROM CACHE", Align::Right),
        ("FETCHED", Align::Right),
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
            size(upstream.cached_bytes),
            size(upstream.fetched_bytes),
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
    use crate::admin::views::{AddressView, PeriodsView};

    fn lines(text: &str) -> Vec<String> {
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        text.lines().map(words).collect()
    }

    fn period(hits: u64, served: u64) -> PeriodView {
        PeriodView {
            covers_seconds: 0,
            requests: [("hit".to_owned(), hits), ("missing".to_owned(), 1)].into(),
            hit_ratio: (hits > 0).then_some(1.0),
            served_bytes: served,
            cached_bytes: served / 2,
            fetched_bytes: 2048,
            byte_hit_ratio: (served > 0).then_some(0.5),
        }
    }

    #[test]
    fn three_times_in_columns() {
        let periods = PeriodsView {
            last_hour: period(0, 0),
            last_day: period(5, 2048),
            since_start: period(7, 4096),
        };
        let text = requests(&StatsView {
            uptime_seconds: 7200,
            periods: Some(periods),
            ..StatsView::default()
        });
        let wanted = [
            "LAST HOUR LAST DAY SINCE THE START",
            "requests 1 6 8",
            "hit 0 5 7",
            "missing 1 1 1",
            "hit ratio - 100.0 % 100.0 %",
            "bytes served 0 B 2.0 KiB 4.0 KiB",
            "from the cache 0 B 1.0 KiB 2.0 KiB",
            "byte hit ratio - 50.0 % 50.0 %",
            "bytes fetched 2.0 KiB 2.0 KiB 2.0 KiB",
            &format!("(the process is {} old: the last day is as long as that)", span(7200)),
        ];
        assert_eq!(lines(&text), wanted);
    }

    /// One that counts from its start only.
    #[test]
    fn a_proxy_of_before_has_one_column() {
        let text = requests(&StatsView {
            requests: [("error".to_owned(), 3)].into(),
            served_bytes: 2048,
            saved_bytes: 1024,
            ..StatsView::default()
        });
        let lines = lines(&text);
        assert_eq!(lines[..3], ["SINCE THE START", "requests 3", "error 3"]);
        assert!(lines.contains(&"from the cache 1.0 KiB".to_owned()), "{text}");
        assert!(!text.contains("the process is"), "{text}");
    }

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
            cached_bytes: 0,
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
            cached_bytes: 0,
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
