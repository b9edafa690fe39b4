//! Watches a job until it ends, and tells how far it is: by bars on a terminal, else by a line now and then.

use std::collections::HashSet;
use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use super::bars::Bars;
use crate::admin::prefetch::{PrefetchImage, PrefetchView};
use crate::cli::desk::Desk;
use crate::cli::interrupt::Interrupt;
use crate::cli::table::{count, printable, size};

/// Where no terminal shows bars, how far it is is said this often.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Why nobody follows any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    Ended,
    /// By a signal: what was done about the job.
    Interrupted(String),
}

/// Until the job has ended, or somebody stops this process: then the job is cancelled.
pub async fn follow(desk: &Desk, begun: PrefetchView, silent: bool) -> Result<(PrefetchView, Ending), String> {
    let mut view = begun;
    let mut show = Show::new(silent);
    let mut interrupt = Interrupt::listen();
    loop {
        show.tell(&view);
        if view.state != "running" {
            show.end();
            return Ok((view, Ending::Ended));
        }
        let news = tokio::select! {
            news = later(desk, &view) => news?,
            why = interrupt.asked() => {
                show.end();
                let cancelled = desk.cancel_prefetch(view.id).await?;
                view.state = cancelled.state;
                return Ok((view, Ending::Interrupted(format!("{why}: the prefetch was cancelled; what has come stays"))));
            }
        };
        merge(&mut view, news);
    }
}

/// A moment later: what has changed.
async fn later(desk: &Desk, view: &PrefetchView) -> Result<PrefetchView, String> {
    desk.a_moment().await;
    desk.prefetch_job(view.id, view.version).await
}

/// What has changed, into what was known.
fn merge(view: &mut PrefetchView, news: PrefetchView) {
    let mut images = std::mem::take(&mut view.images);
    // In their order, and the first answer had all there were: each is at its place, or comes next.
    for image in &news.images {
        match images.get_mut(image.at) {
            Some(known) => *known = image.clone(),
            None => images.push(image.clone()),
        }
    }
    *view = PrefetchView { images, ..news };
}

enum Show {
    Silent,
    Bars(Bars),
    Lines(Lines),
}

impl Show {
    fn new(silent: bool) -> Show {
        match (silent, std::io::stderr().is_terminal()) {
            (true, _) => Show::Silent,
            (false, true) => Show::Bars(Bars::new()),
            (false, false) => Show::Lines(Lines::default()),
        }
    }

    fn tell(&mut self, view: &PrefetchView) {
        match self {
            Show::Silent => {}
            Show::Bars(bars) => bars.tell(view),
            Show::Lines(lines) => lines.tell(view),
        }
    }

    fn end(&mut self) {
        if let Show::Bars(bars) = self {
            bars.end();
        }
    }
}

/// A line for each image that is done, and one now and then for all.
#[derive(Default)]
struct Lines {
    told: HashSet<usize>,
    last: Option<Instant>,
    waits: Option<String>,
}

impl Lines {
    fn tell(&mut self, view: &PrefetchView) {
        let mut err = std::io::stderr().lock();
        for image in &view.images {
            if let Some(line) = line(image)
                && self.told.insert(image.at)
            {
                let _ = writeln!(err, "{}", printable(&line));
            }
        }
        if view.waits != self.waits {
            self.waits.clone_from(&view.waits);
            if let Some(why) = &self.waits {
                let _ = writeln!(err, "{}", printable(why));
            }
        }
        let totals = &view.totals;
        let last = self.last.get_or_insert_with(Instant::now);
        if last.elapsed() >= LINE_EVERY && view.state == "running" {
            *last = Instant::now();
            let _ = writeln!(
                err,
                "{} of {} cached, {} of {} fetched",
                totals.held,
                count(totals.images, "image"),
                size(totals.fetched_bytes),
                size(totals.new_bytes)
            );
        }
    }
}

fn line(image: &PrefetchImage) -> Option<String> {
    match image.state.as_str() {
        "held" => Some(format!("{}: cached, {} fetched", image.name, size(image.fetched_bytes))),
        "failed" => Some(format!(
            "{}: {}",
            image.name,
            image.error.as_deref().unwrap_or("failed")
        )),
        _ => None,
    }
}
