//! Progress on a terminal: a bar for each image that is being fetched, and one for all of them.

use std::collections::BTreeMap;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::admin::prefetch::{PrefetchImage, PrefetchView};
use crate::cli::table::{count, printable};

/// Images that have a bar of their own at the same time.
const MOST_BARS: usize = 8;
const IMAGE: &str = "  {prefix:.bold} {bar:24} {bytes:>10}/{total_bytes} {bytes_per_sec}, {eta} left";
const ALL: &str = "{prefix} {bar:24} {bytes:>10}/{total_bytes} {bytes_per_sec}, {eta} left {msg}";
/// Before it is known how much there is.
const ASKING: &str = "{spinner} {msg}";

pub struct Bars {
    all: MultiProgress,
    total: ProgressBar,
    images: BTreeMap<usize, ProgressBar>,
    is_sized: bool,
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

impl Bars {
    pub fn new() -> Bars {
        let all = MultiProgress::new();
        let total = all.add(ProgressBar::no_length());
        total.set_style(style(ASKING));
        Bars {
            all,
            total,
            images: BTreeMap::new(),
            is_sized: false,
        }
    }

    pub fn tell(&mut self, view: &PrefetchView) {
        for image in &view.images {
            match image.state.as_str() {
                "fetching" if image.new_bytes > 0 => self.show(image),
                _ => self.hide(image.at),
            }
        }
        self.tell_all(view);
    }

    fn show(&mut self, image: &PrefetchImage) {
        if self.images.len() >= MOST_BARS && !self.images.contains_key(&image.at) {
            return;
        }
        let bar = self.images.entry(image.at).or_insert_with(|| {
            let bar = self.all.insert_before(&self.total, ProgressBar::new(image.new_bytes));
            bar.set_style(style(IMAGE));
            bar.set_prefix(printable(&image.name));
            bar
        });
        bar.set_length(image.new_bytes);
        bar.set_position(image.fetched_bytes);
    }

    fn hide(&mut self, at: usize) {
        if let Some(bar) = self.images.remove(&at) {
            bar.finish_and_clear();
            self.all.remove(&bar);
        }
    }

    fn tell_all(&mut self, view: &PrefetchView) {
        let totals = &view.totals;
        let images = count(totals.images, "image");
        let asked = format!("{} of {images} looked at", totals.planned);
        let message = match &view.waits {
            Some(why) => printable(why),
            None if totals.planned < totals.images || view.dry_run => asked,
            None => format!("{} of {images} cached", totals.held),
        };
        if totals.new_bytes > 0 && !view.dry_run {
            if !std::mem::replace(&mut self.is_sized, true) {
                self.total.set_style(style(ALL));
                self.total.set_prefix("all of it");
            }
            self.total.set_length(totals.new_bytes);
            self.total.set_position(totals.fetched_bytes);
        }
        self.total.set_message(message);
        self.total.tick();
    }

    pub fn end(&mut self) {
        for at in self.images.keys().copied().collect::<Vec<_>>() {
            self.hide(at);
        }
        self.total.finish_and_clear();
    }
}
