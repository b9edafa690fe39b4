//! `larder verify`: hashes what is held again, with progress.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use super::desk::{Desk, Place, with_desk};
use super::interrupt::Interrupt;
use super::table::{count, printable, size, span};
use super::{Exit, complain, print, print_json};
use crate::admin::views::{FoundView, VerifyView};
use crate::config::{Config, ConfigError};

/// Where no terminal shows a line that changes, a new one is written this often.
const LINE_EVERY: Duration = Duration::from_secs(10);

#[derive(clap::Args)]
pub struct Args {
    /// Fetch what is damaged again at once; else the next client that asks for it does
    #[arg(long)]
    repair: bool,
    #[command(flatten)]
    place: Place,
}

pub fn run(args: &Args, config: Result<Config, ConfigError>) -> Exit {
    with_desk(&args.place, config, async |desk: &Desk| {
        let joined = desk.verification().await?.state == "running";
        let begun = desk.verify(args.repair).await?;
        if joined {
            complain("a check runs already: this is how it goes on");
        }
        let mut bar = Bar::new();
        let mut interrupt = Interrupt::listen();
        let mut view = begun;
        while view.state == "running" {
            bar.show(&view);
            view = tokio::select! {
                later = async {
                    desk.a_moment().await;
                    desk.verification().await
                } => later?,
                why = interrupt.asked() => {
                    bar.clear();
                    if !joined {
                        desk.cancel_verify().await?;
                    }
                    return Err(format!("{why}: {}", if joined { "the check goes on" } else { "the check was cancelled" }));
                }
            };
        }
        bar.clear();
        let told = match args.place.json {
            true => print_json(&view),
            false => print(&text(&view)),
        };
        let is_well = view.state == "done" && view.bad == view.repaired && view.unreadable == 0;
        Ok(if is_well { told } else { Exit::Failed })
    })
}

/// Progress on standard error.
struct Bar {
    is_terminal: bool,
    begun: Instant,
    /// When a plain line was written last.
    told: Option<Instant>,
}

impl Bar {
    fn new() -> Bar {
        Bar {
            is_terminal: std::io::stderr().is_terminal(),
            begun: Instant::now(),
            told: None,
        }
    }

    fn show(&mut self, view: &VerifyView) {
        // What there is to do is not known yet.
        if view.bytes_total == 0 {
            return;
        }
        let line = progress(view, self.begun.elapsed());
        let mut err = std::io::stderr().lock();
        if self.is_terminal {
            let _ = write!(err, "\r\x1b[K{line}");
            let _ = err.flush();
        } else if self.told.is_none_or(|told| told.elapsed() >= LINE_EVERY) {
            self.told = Some(Instant::now());
            let _ = writeln!(err, "{line}");
        }
    }

    fn clear(&self) {
        if self.is_terminal {
            let _ = write!(std::io::stderr().lock(), "\r\x1b[K");
        }
    }
}

/// `12.3 GiB of 40.0 GiB (31 %), 480.0 MiB/s, 1m left, 1 damaged`
fn progress(view: &VerifyView, elapsed: Duration) -> String {
    let speed = view.bytes as f64 / elapsed.as_secs_f64().max(0.001);
    let percent = view
        .bytes
        .saturating_mul(100)
        .checked_div(view.bytes_total)
        .unwrap_or(0)
        .min(100);
    let mut line = format!(
        "{} of {} ({percent} %), {}/s",
        size(view.bytes),
        size(view.bytes_total),
        size(speed as u64)
    );
    if speed >= 1.0 {
        let left = view.bytes_total.saturating_sub(view.bytes) as f64 / speed;
        line += &format!(", {} left", span(left.ceil() as u64));
    }
    if view.bad > 0 {
        line += &format!(", {} damaged", view.bad);
    }
    line
}

fn text(view: &VerifyView) -> String {
    let mut text = String::new();
    for found in &view.found {
        text += &format!("{}\n", printable(&describe(found)));
    }
    let checked = format!("{}, {}", count(view.blobs, "blob"), size(view.bytes));
    text += &match (view.state.as_str(), view.bad) {
        ("done", 0) if view.unreadable > 0 => format!("{checked}: "),
        ("done", 0) => format!("{checked}: all as they should be\n"),
        ("done", bad) => {
            let left = bad - view.repaired.min(bad);
            let rest = match left {
                0 => "all fetched again".to_owned(),
                _ => format!(
                    "{} fetched again, {left} to be fetched when a client asks",
                    view.repaired
                ),
            };
            format!("{checked}: {bad} damaged and quarantined; {rest}\n")
        }
        (state, _) => format!("{checked}: the check was {state} before its end\n"),
    };
    if view.unreadable > 0 {
        text += &format!(
            "{} could not be read at the moment and were left as they are: the proxy's log says why\n",
            view.unreadable
        );
    }
    text
}

fn describe(found: &FoundView) -> String {
    let what = match found.found.as_str() {
        "missing" => "gone from the disk",
        _ => "not what its digest says",
    };
    let now = match (&found.error, found.repaired) {
        (_, true) => "fetched again".to_owned(),
        (Some(why), _) => format!("not fetched again: {why}"),
        (None, _) => "quarantined".to_owned(),
    };
    let whose = match found.repositories.is_empty() {
        true => String::new(),
        false => format!(" of {}", found.repositories.join(", ")),
    };
    format!("{}{whose}: {what}; {now}", found.digest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::views::BackgroundView;

    fn view(bytes: u64, bad: u64) -> VerifyView {
        VerifyView {
            state: "done".to_owned(),
            repair: false,
            started_ms: None,
            finished_ms: None,
            blobs: 3,
            blobs_total: 6,
            bytes,
            bytes_total: 4 << 20,
            bad,
            repaired: 0,
            unreadable: 0,
            found: Vec::new(),
            background: BackgroundView::default(),
        }
    }

    #[test]
    fn progress_for_people() {
        let line = progress(&view(1 << 20, 1), Duration::from_secs(2));
        assert_eq!(line, "1.0 MiB of 4.0 MiB (25 %), 512.0 KiB/s, 6s left, 1 damaged");
        // Nothing held, nothing read yet: no figure is out of its mind.
        let empty = VerifyView {
            bytes_total: 0,
            ..view(0, 0)
        };
        assert_eq!(progress(&empty, Duration::ZERO), "0 B of 0 B (0 %), 0 B/s");
    }

    #[test]
    fn the_last_line() {
        let one = VerifyView {
            blobs: 1,
            ..view(4096, 0)
        };
        assert_eq!(text(&one), "1 blob, 4.0 KiB: all as they should be\n");
        assert_eq!(text(&view(4096, 0)), "3 blobs, 4.0 KiB: all as they should be\n");
        let bad = text(&view(4096, 2));
        assert!(
            bad.contains("2 damaged and quarantined; 0 fetched again, 2 to be fetched"),
            "{bad}"
        );
        let unread = VerifyView {
            unreadable: 2,
            ..view(4096, 0)
        };
        let unread = text(&unread);
        assert!(
            unread.starts_with("3 blobs, 4.0 KiB: 2 could not be read") && !unread.contains("as they should"),
            "{unread}"
        );
    }
}
