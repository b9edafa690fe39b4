//! `larder demo`: a tour of what Larder does, without the internet.
//!
//! A small registry on loopback (`upstream`, `wire`) offers images made from files at hand (`image`) and counts what
//! it is asked (`tally`); the real proxy stands in front of it (`proxy`), a client pulls over HTTP (`client`), and
//! `tour` says what is done at each station and what must come of it. `report` is the outcome as data, `text` the
//! same for people; `folder` is where the cache lies.

mod client;
mod folder;
mod image;
mod proxy;
mod report;
mod tally;
mod text;
mod tour;
mod upstream;
mod wire;

use std::io;
use std::sync::Arc;
use std::time::Instant;

pub use folder::{Folder, FolderError};
pub use proxy::ProxyError;
pub use report::Report;
pub use text::Paint;

use proxy::Proxy;
use report::{Held, Market, Stage};
use tour::Tour;
use upstream::Upstream;

/// Why the tour did not begin.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    #[error("the images of the tour cannot be built: {0}")]
    Images(io::Error),
    #[error("the upstream of the tour does not start: {0}")]
    Upstream(io::Error),
    #[error(transparent)]
    Proxy(#[from] ProxyError),
}

/// Upstream and proxy, running.
pub struct Demo {
    tour: Tour,
    report: Report,
    begun: Instant,
    paint: Paint,
    keeps_folder: bool,
}

impl Demo {
    /// Both are up when this returns. `port` as in `--port`.
    pub async fn start(folder: &Folder, port: Option<u16>, paint: Paint) -> Result<Demo, DemoError> {
        let begun = Instant::now();
        // Hashing a hundred megabytes is no work for an async thread.
        let images = tokio::task::spawn_blocking(image::three).await;
        let images = images
            .map_err(|error| DemoError::Images(io::Error::other(error)))?
            .map_err(DemoError::Images)?;
        let upstream = Upstream::open(images.to_vec()).map_err(DemoError::Upstream)?;
        let proxy = Proxy::start(upstream.address(), folder.path(), port).await?;
        let report = Report {
            ok: false,
            registry: proxy.registry,
            admin: proxy.admin,
            cache: folder.path().display().to_string(),
            upstream: Market::at(upstream.address()),
            images: images.iter().map(Held::of).collect(),
            steps: Vec::new(),
            seconds: 0.0,
        };
        let tour = Tour {
            upstream,
            proxy,
            images: images.map(Arc::new),
        };
        Ok(Demo {
            tour,
            report,
            begun,
            paint,
            keeps_folder: folder.is_kept,
        })
    }

    /// Every station, or up to the first that fails; `say` gets the words as they come.
    pub async fn run(&mut self, say: &mut dyn FnMut(&str)) -> &Report {
        say(&text::opening(&self.report, self.paint));
        for stage in Stage::ALL {
            say(&text::heading(stage, &self.report.images, self.paint));
            let step = self.tour.visit(stage).await;
            say(&text::step(&step, self.paint));
            let passed = step.is_ok();
            self.report.steps.push(step);
            if !passed {
                break;
            }
        }
        let all = self.report.steps.len() == Stage::ALL.len();
        self.report.ok = all && self.report.steps.iter().all(report::Step::is_ok);
        self.report.seconds = self.begun.elapsed().as_secs_f64();
        say(&text::verdict(&self.report, self.paint));
        &self.report
    }

    /// What to try while both run.
    pub fn by_hand(&self) -> String {
        text::by_hand(&self.report, self.tour.proxy.tag_ttl(), self.keeps_folder, self.paint)
    }

    /// The proxy ends as `serve` does; the upstream just closes.
    pub async fn stop(mut self) {
        self.tour.proxy.stop().await;
    }
}
