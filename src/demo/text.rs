//! The tour in words and columns, at most 100 wide.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use super::report::{Held, Report, Stage, Step};
use crate::config::units::show_duration;

const WIDTH: usize = 98;
/// Where the figures begin.
const INDENT: usize = 16;

/// Colours, where there is somebody to see them.
#[derive(Clone, Copy, Debug)]
pub struct Paint {
    pub in_colour: bool,
}

impl Paint {
    fn with(self, code: &str, text: &str) -> String {
        match self.in_colour {
            true => format!("\x1b[{code}m{text}\x1b[0m"),
            false => text.to_owned(),
        }
    }

    fn bold(self, text: &str) -> String {
        self.with("1", text)
    }

    fn dim(self, text: &str) -> String {
        self.with("2", text)
    }
}

pub fn opening(report: &Report, paint: Paint) -> String {
    let market = &report.upstream;
    let mut text = paint.bold("Larder: a tour without the internet") + "\n\n";
    let far = format!(
        "{} at http://{}, a registry inside this process that wants tokens and is slowed down to be like a far one: \
         {} ms before each answer, {} MB/s a connection",
        market.name,
        market.address,
        market.latency_ms,
        market.bytes_per_second / 1_000_000
    );
    row(&mut text, "upstream", &far);
    row(
        &mut text,
        "larder",
        &format!("http://{}, admin http://{}", report.registry, report.admin),
    );
    row(&mut text, "cache", &report.cache);
    for (at, image) in report.images.iter().enumerate() {
        row(&mut text, if at == 0 { "images" } else { "" }, &held(image));
    }
    text
}

fn held(image: &Held) -> String {
    let size = size(image.bytes);
    format!(
        "{:<15} {:>9}, {} layers, {}",
        image.name,
        size,
        image.blobs - 1,
        &image.digest[..19.min(image.digest.len())]
    )
}

/// Before a station: what is about to happen.
pub fn heading(stage: Stage, images: &[Held], paint: Paint) -> String {
    let name = |at: usize| images.get(at).map_or("", |image| image.name.as_str());
    let (title, about) = match stage {
        Stage::Cold => ("Cold", format!("nothing is cached; a client pulls {}", name(0))),
        Stage::Hot => ("Hot", format!("another client pulls {}", name(0))),
        Stage::Herd => (
            "A herd",
            format!("ten clients at once pull {}, which is not cached", name(1)),
        ),
        Stage::Cut => (
            "A cut",
            format!("the upstream breaks off in the middle of a layer of {}", name(2)),
        ),
        Stage::Gone => (
            "Gone",
            "the upstream is taken away; Larder restarts, with no tag trusted any more".to_owned(),
        ),
        Stage::Back => ("Back", "the upstream is there again".to_owned()),
    };
    let title = format!("{} {title}", stage.number());
    format!("\n{}  {about}\n", paint.bold(&title))
}

/// After it: the figures, and which claims hold.
pub fn step(step: &Step, paint: Paint) -> String {
    let mut text = String::new();
    let client = &step.client;
    let rate = client.bytes as f64 / 1e6 / client.seconds.max(1e-9);
    let who = match client.clients {
        1 => "1 client".to_owned(),
        many => format!("{many} clients"),
    };
    let titles = format!("{:>26} {:>12} {:>10} {:>10}", "requests", "bytes", "seconds", "MB/s");
    let _ = writeln!(text, "{}", paint.dim(&titles));
    let _ = writeln!(
        text,
        "  {who:<14}{:>10} {:>12} {:>10.2} {rate:>10.0}",
        client.requests,
        size(client.bytes),
        client.seconds
    );
    let upstream = &step.upstream;
    let _ = writeln!(
        text,
        "  {:<14}{:>10} {:>12}",
        "upstream",
        upstream.requests(),
        size(upstream.bytes)
    );
    if upstream.requests() > 0 {
        row(&mut text, "asked for", &upstream.words());
    }
    for (at, (status, count)) in client.outcomes.iter().enumerate() {
        let label = if at == 0 { "answers" } else { "" };
        row(&mut text, label, &format!("{count:>3} × Cache-Status: {status}"));
    }
    if let Some(warning) = client.warnings.first() {
        row(&mut text, "warned", &format!("    Warning: {warning}"));
    }
    if let Some(mended) = &step.mended {
        let resumed = mended.resumed_at.map_or("not resumed".to_owned(), |at| {
            format!("resumed at byte {} with Range: bytes={at}-", grouped(at))
        });
        row(
            &mut text,
            "cut",
            &format!("after byte {}; {resumed}", grouped(mended.cut_at)),
        );
    }
    for check in &step.checks {
        let line = match check.ok {
            true => format!("  {} {}\n", paint.with("32", "✓"), check.what),
            false => {
                let mark = paint.with("31", "✗");
                format!(
                    "  {mark} {}\n      expected  {}\n      found     {}\n",
                    check.what, check.expected, check.found
                )
            }
        };
        text += &line;
    }
    text
}

/// The verdict on the whole tour.
pub fn verdict(report: &Report, paint: Paint) -> String {
    let checks: usize = report.steps.iter().map(|step| step.checks.len()).sum();
    let seconds = report.seconds;
    match report.ok {
        true => {
            let text = format!("All {checks} claims hold, after {seconds:.1} s.");
            format!("\n{}\n", paint.with("1;32", &text))
        }
        false => format!(
            "\n{}\n",
            paint.with("1;31", "The tour ends here: a claim does not hold.")
        ),
    }
}

/// What to try while both run.
pub fn by_hand(report: &Report, tag_ttl: Duration, is_kept: bool, paint: Paint) -> String {
    let (registry, admin) = (report.registry, report.admin);
    let lines = try_lines(registry, admin, &report.images);
    let end = match is_kept {
        true => format!("Ctrl-C ends them; {} stays.", report.cache),
        false => format!("Ctrl-C ends them and removes {}.", report.cache),
    };
    let mut text = format!(
        "\nUpstream and Larder keep running, with tag_ttl = {}. ",
        show_duration(tag_ttl)
    );
    text += "Try by hand:\n\n";
    for line in lines {
        text += &format!("  {}\n", paint.bold(&line));
    }
    text + &format!("\n{end}\n")
}

fn try_lines(registry: SocketAddr, admin: SocketAddr, images: &[Held]) -> Vec<String> {
    let name = images.first().map_or("", |image| image.name.as_str());
    let (repository, tag) = name.split_once(':').unwrap_or((name, "latest"));
    vec![
        format!("curl -s http://{registry}/v2/{repository}/tags/list"),
        format!("curl -sI http://{registry}/v2/{repository}/manifests/{tag}"),
        format!("docker pull {registry}/{name}"),
        format!("podman pull --tls-verify=false {registry}/{name}"),
        format!("skopeo copy --src-tls-verify=false docker://{registry}/{name} dir:/tmp/first"),
        format!("curl -s http://{admin}/metrics"),
        format!("larder ls --admin {admin}"),
    ]
}

/// A label and text that is wrapped beside it.
fn row(text: &mut String, label: &str, value: &str) {
    let mut line = format!("  {label:<width$}", width = INDENT - 2);
    let mut used = INDENT;
    // Runs of blanks are columns, and stay.
    for word in value.split_inclusive(' ') {
        let length = word.trim_end().chars().count();
        if used + length > WIDTH && used > INDENT {
            text.push_str(line.trim_end());
            text.push('\n');
            line = " ".repeat(INDENT);
            used = INDENT;
        }
        line += word;
        used += word.chars().count();
    }
    text.push_str(line.trim_end());
    text.push('\n');
}

/// Decimal units, as links are measured: `36.8 MB`, `612 B`.
fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        _ => format!("{:.1} MB", bytes as f64 / 1e6),
    }
}

/// `6 710 887`
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures() {
        assert_eq!((size(999), size(1_000)), ("999 B".to_owned(), "1.0 kB".to_owned()));
        assert_eq!(size(36_800_000), "36.8 MB");
        assert_eq!(
            [0, 999, 1_000, 6_710_887].map(grouped),
            ["0", "999", "1 000", "6 710 887"]
        );
    }

    #[test]
    fn rows_wrap_below_a_hundred_columns() {
        let mut text = String::new();
        row(&mut text, "asked for", &"1 manifest HEAD, ".repeat(20));
        assert!(text.lines().count() > 2);
        assert!(text.lines().all(|line| line.chars().count() < 100), "{text}");
        let indent = " ".repeat(INDENT);
        assert!(text.lines().skip(1).all(|line| line.starts_with(&indent)), "{text}");
    }

    #[test]
    fn no_colour_no_escape() {
        assert_eq!(Paint { in_colour: false }.bold("x"), "x");
        assert_eq!(Paint { in_colour: true }.bold("x"), "\x1b[1mx\x1b[0m");
    }
}
