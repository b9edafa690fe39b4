//! The stations: what is done at each, and what must have come of it.
//!
//! Every figure is measured: the client's by the client, the upstream's by the upstream. No check knows of time.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::client::{Client, PullFault, Pulled};
use super::image::Image;
use super::proxy::{Proxy, ProxyError};
use super::report::{Stage, Step};
use super::upstream::Upstream;

const HERD: u64 = 10;
const HIT: &str = "larder; hit";
const CONFIRMED: &str = "larder; fwd=stale; fwd-status=304";
/// Larder may have given the upstream up for a while when it was gone.
const CONFIRMED_WITHIN: Duration = Duration::from_secs(30);

/// Why a station was not passed, where it is not a figure that was wrong.
#[derive(Debug, thiserror::Error)]
pub enum TourError {
    #[error(transparent)]
    Pull(#[from] PullFault),
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    #[error("the upstream of the tour: {0}")]
    Upstream(#[from] io::Error),
    #[error("a client of the tour ended early")]
    Task,
}

pub struct Tour {
    pub upstream: Upstream,
    pub proxy: Proxy,
    /// For cold and hot, the herd, and the cut.
    pub images: [Arc<Image>; 3],
}

impl Tour {
    /// A station that could not be finished ends as a check that failed.
    pub async fn visit(&mut self, stage: Stage) -> Step {
        let visited = match stage {
            Stage::Cold => self.cold().await,
            Stage::Hot => self.hot().await,
            Stage::Herd => self.herd().await,
            Stage::Cut => self.cut().await,
            Stage::Gone => self.gone().await,
            Stage::Back => self.back().await,
        };
        let settled = self.proxy.settle().await;
        let outcome = visited.and_then(|step| settled.map(|()| step).map_err(TourError::from));
        outcome.unwrap_or_else(|error| {
            let mut step = Step::new(stage, Pulled::default(), Default::default());
            step.holds("the pull", false, "every answer right", error);
            step
        })
    }

    fn client(&self) -> Result<Client, PullFault> {
        Client::new(self.proxy.registry)
    }

    async fn cold(&mut self) -> Result<Step, TourError> {
        let [image, _, _] = &self.images;
        let before = self.upstream.tally();
        let pulled = self.client()?.pull(image).await?;
        let mut step = Step::new(Stage::Cold, pulled, self.upstream.tally() - before);
        let (client, upstream) = (step.client.bytes, step.upstream);
        step.equal(
            "the client has the whole image, every digest is right",
            image.size(),
            client,
        );
        step.equal("every byte crossed the link once", image.size(), upstream.bytes);
        step.equal(
            "one request for each blob",
            image.blobs.len() as u64,
            upstream.blob_gets,
        );
        step.equal("one token for the repository", 1, upstream.tokens);
        Ok(step)
    }

    async fn hot(&mut self) -> Result<Step, TourError> {
        let [image, _, _] = &self.images;
        let before = self.upstream.tally();
        let pulled = self.client()?.pull(image).await?;
        let mut step = Step::new(Stage::Hot, pulled, self.upstream.tally() - before);
        let (client, upstream) = (step.client.bytes, step.upstream);
        step.equal(
            "the client has the whole image, every digest is right",
            image.size(),
            client,
        );
        step.equal("the upstream was asked nothing", 0, upstream.requests());
        let hits = step.client.outcomes.get(HIT).copied().unwrap_or(0);
        step.equal("every answer is a hit", step.client.requests, hits);
        Ok(step)
    }

    async fn herd(&mut self) -> Result<Step, TourError> {
        let [_, image, _] = &self.images;
        let before = self.upstream.tally();
        let clients: Result<Vec<Client>, PullFault> = (0..HERD).map(|_| self.client()).collect();
        let begun = Instant::now();
        let mut pulls = JoinSet::new();
        for client in clients? {
            let image = image.clone();
            pulls.spawn(async move { client.pull(&image).await });
        }
        let mut pulled = Pulled::default();
        while let Some(one) = pulls.join_next().await {
            pulled.add(one.map_err(|_| TourError::Task)??);
        }
        pulled.seconds = begun.elapsed().as_secs_f64();
        let mut step = Step::new(Stage::Herd, pulled, self.upstream.tally() - before);
        let (client, upstream) = (step.client.bytes, step.upstream);
        step.equal("ten whole images arrived", HERD * image.size(), client);
        step.equal("every byte crossed the link once", image.size(), upstream.bytes);
        step.equal(
            "one request for each blob",
            image.blobs.len() as u64,
            upstream.blob_gets,
        );
        step.equal("one token for all ten", 1, upstream.tokens);
        Ok(step)
    }

    async fn cut(&mut self) -> Result<Step, TourError> {
        let [_, _, image] = &self.images;
        let before = self.upstream.tally();
        if let Some(blob) = image.largest() {
            // Somewhere that is no round figure.
            self.upstream.cut_once(blob.digest, blob.bytes.len() as u64 * 2 / 5 + 1);
        }
        let pulled = self.client()?.pull(image).await?;
        let mut step = Step::new(Stage::Cut, pulled, self.upstream.tally() - before);
        step.mended = self.upstream.mended().pop();
        let (client, upstream) = (step.client.bytes, step.upstream);
        let cut_at = step.mended.map_or(0, |mended| mended.cut_at);
        let resumed_at = step.mended.and_then(|mended| mended.resumed_at).unwrap_or(0);
        step.equal(
            "the client noticed nothing, every digest is right",
            image.size(),
            client,
        );
        step.holds(
            "Larder went on from where it stood",
            upstream.blob_ranges > 0 && resumed_at > 0 && resumed_at <= cut_at,
            format_args!("a request with Range from a byte up to {cut_at}"),
            format_args!("{} requests, from byte {resumed_at}", upstream.blob_ranges),
        );
        step.equal(
            "nothing that was cached was sent again",
            image.size() + cut_at.saturating_sub(resumed_at),
            upstream.bytes,
        );
        Ok(step)
    }

    /// A restart with `tag_ttl = "0s"` stands for the time that passes: every tag would have to be confirmed.
    async fn gone(&mut self) -> Result<Step, TourError> {
        self.upstream.leave().await?;
        let refused = TcpStream::connect(self.upstream.address()).await.is_err();
        self.proxy.restart(Duration::ZERO).await?;
        let before = self.upstream.tally();
        let (client, begun) = (self.client()?, Instant::now());
        let mut pulled = Pulled::default();
        for image in &self.images {
            pulled.add(client.pull(image).await?);
        }
        pulled.clients = 1;
        pulled.seconds = begun.elapsed().as_secs_f64();
        let mut step = Step::new(Stage::Gone, pulled, self.upstream.tally() - before);
        let size: u64 = self.images.iter().map(|image| image.size()).sum();
        step.holds(
            "the upstream is out of reach",
            refused && step.upstream.requests() == 0,
            "a refused connection",
            "an open one",
        );
        step.equal(
            "all three images were served, every digest is right",
            size,
            step.client.bytes,
        );
        let is_stale = |tag: &String| tag.starts_with("larder; hit; ttl=-") && tag.contains("; detail=upstream-");
        let (tags, stale) = (
            self.images.len(),
            step.client.tags.iter().filter(|tag| is_stale(tag)).count(),
        );
        step.equal("every tag says that it could not be confirmed", tags, stale);
        step.equal("and comes with a Warning", tags, step.client.warnings.len());
        let hits = step.client.outcomes.get(HIT).copied().unwrap_or(0);
        step.equal("all else is a hit", step.client.requests - tags as u64, hits);
        Ok(step)
    }

    async fn back(&mut self) -> Result<Step, TourError> {
        self.upstream.come_back()?;
        let [image, _, _] = &self.images;
        let client = self.client()?;
        let patience = Instant::now();
        let mut status = String::new();
        while status != CONFIRMED && patience.elapsed() < CONFIRMED_WITHIN {
            tokio::time::sleep(Duration::from_millis(50)).await;
            status = client.head_tag(image, &mut Pulled::default()).await?;
        }
        let before = self.upstream.tally();
        let pulled = client.pull(image).await?;
        let mut step = Step::new(Stage::Back, pulled, self.upstream.tally() - before);
        let (client, upstream) = (step.client.bytes, step.upstream);
        step.equal("the tag is confirmed again", CONFIRMED, status.as_str());
        step.equal(
            "the client has the whole image, every digest is right",
            image.size(),
            client,
        );
        step.equal("no byte of it crossed the link", 0, upstream.bytes);
        Ok(step)
    }
}
