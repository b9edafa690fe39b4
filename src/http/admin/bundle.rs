//! Bundles over the API: archives come and go as streams, and the signing key never comes here.

use std::io;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt as _};
use tokio::sync::mpsc::Sender;
use tokio::time::Instant;

use super::{Answer, OperatorError, body_of, json, query};
use crate::admin::{Admin, BundleOrder, ImportOrder, ImportPatience};
use crate::config::units::show_duration;
use crate::oci::media_type;
use crate::text::is_visible;

/// An order may hold a receipt.
const MAX_ORDER_BYTES: usize = 80 << 20;
/// Types that a bundle is sent as. Which of them does not matter.
const ARCHIVES: [&str; 4] = [
    "application/x-tar",
    "application/gzip",
    "application/x-gzip",
    "application/zstd",
];
/// Longest name of a site.
const MAX_SITE: usize = 255;

pub(super) async fn plan(State(admin): State<Admin>, request: Request) -> Answer {
    let order: BundleOrder = body_of(request, MAX_ORDER_BYTES).await?;
    Ok(json(&admin.plan_bundle(order).await?.view()))
}

/// If it breaks off the answer ends short.
pub(super) async fn create(State(admin): State<Admin>, request: Request) -> Answer {
    let order: BundleOrder = body_of(request, MAX_ORDER_BYTES).await?;
    let planned = admin.plan_bundle(order).await?;
    let (sender, reader) = admin.pipe();
    tokio::task::spawn_blocking(move || planned.write(sender));
    let headers = [(CONTENT_TYPE, "application/x-tar"), (CACHE_CONTROL, "no-store")];
    Ok((headers, Body::from_stream(reader.into_stream())).into_response())
}

pub(super) async fn import(State(admin): State<Admin>, request: Request) -> Answer {
    let kind = request
        .headers()
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    // As little as JSON can a web page send this (R-X16).
    if !kind
        .and_then(media_type::essence)
        .is_some_and(|kind| ARCHIVES.contains(&kind.as_str()))
    {
        return Err(OperatorError::bad_request(
            "a bundle is sent with Content-Type: application/x-tar (or application/gzip or application/zstd: its first bytes say how it is compressed)",
        ));
    }
    let mut query = query(&request, &["key", "unsigned", "older"])?;
    let flag = |value: Option<String>| match value.as_deref() {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(other) => Err(OperatorError::bad_request(format!("{other:?}: expected true or false"))),
    };
    let order = ImportOrder {
        key: query.remove("key"),
        unsigned: flag(query.remove("unsigned"))?,
        older: flag(query.remove("older"))?,
    };
    let (sender, reader) = admin.pipe();
    let pieces = request.into_body().into_data_stream();
    let coming = tokio::spawn(pass_on(pieces, sender, admin.import_patience()));
    let outcome = admin.import_bundle(Box::new(reader), &order).await;
    if outcome.is_err() {
        // What is still being sent is not waited for: the connection ends with the answer.
        coming.abort();
    }
    Ok(json(&outcome?))
}

/// Passes the archive on as it comes, until its end or until its sender has used up the patience: what reads it then gets
/// an error, and ends in good order. Gives the body back, so that it lives until the answer is decided.
async fn pass_on<S, E>(mut pieces: S, sender: Sender<io::Result<Bytes>>, patience: ImportPatience) -> S
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (mut waited, mut came) = (Duration::ZERO, 0_u64);
    loop {
        let began = Instant::now();
        let Ok(next) = tokio::time::timeout(patience.silence, pieces.next()).await else {
            let why = format!("nothing came for {}", show_duration(patience.silence));
            let _ = sender.send(Err(given_up(&why))).await;
            return pieces;
        };
        let Some(piece) = next else { return pieces };
        waited += began.elapsed();
        came += piece.as_ref().map_or(0, |piece| piece.len() as u64);
        if waited >= patience.within {
            if came < patience.least {
                let why = format!("only {came} bytes came in {}", show_duration(patience.within));
                let _ = sender.send(Err(given_up(&why))).await;
                return pieces;
            }
            (waited, came) = (Duration::ZERO, 0);
        }
        if sender.send(piece.map_err(io::Error::other)).await.is_err() {
            return pieces;
        }
    }
}

fn given_up(why: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::TimedOut,
        format!("{why}, so the import was ended and others get their turn; send it again, what came whole is kept"),
    )
}

pub(super) async fn receipt(State(admin): State<Admin>, request: Request) -> Result<Response, OperatorError> {
    let mut query = query(&request, &["site"])?;
    let site = query.remove("site").unwrap_or_default();
    if site.len() > MAX_SITE || !is_visible(&site) {
        return Err(OperatorError::bad_request(format!(
            "site: expected at most {MAX_SITE} letters"
        )));
    }
    Ok(json(&admin.receipt(&site).await?))
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use tokio::sync::mpsc;

    use super::*;

    const PATIENCE: ImportPatience = ImportPatience {
        silence: Duration::from_secs(60),
        within: Duration::from_secs(60),
        least: 1000,
    };

    /// Pieces of `size` bytes, each after `pause`; what the reader got, and how long it took. The reader is as slow as
    /// `reads`.
    async fn passed(size: usize, pause: u64, count: usize, reads: u64) -> (usize, Option<io::ErrorKind>, u64) {
        let start = Instant::now();
        let pieces = stream::unfold(0, move |sent| async move {
            tokio::time::sleep(Duration::from_secs(pause)).await;
            (sent < count).then(|| (Ok::<_, io::Error>(Bytes::from(vec![0; size])), sent + 1))
        });
        let (sender, mut reader) = mpsc::channel(1);
        let passing = tokio::spawn(pass_on(Box::pin(pieces), sender, PATIENCE));
        let (mut bytes, mut error) = (0, None);
        while let Some(piece) = reader.recv().await {
            match piece {
                Ok(piece) => bytes += piece.len(),
                Err(why) => error = Some(why.kind()),
            }
            tokio::time::sleep(Duration::from_secs(reads)).await;
        }
        drop(passing.await.unwrap());
        (bytes, error, start.elapsed().as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn who_sends_nothing_or_next_to_nothing_is_given_up() {
        use io::ErrorKind::TimedOut;
        assert_eq!(passed(10, 3600, 3, 0).await, (0, Some(TimedOut), 60));
        // A byte a second is no pace.
        let (bytes, error, seconds) = passed(1, 1, 100_000, 0).await;
        assert_eq!((error, seconds), (Some(TimedOut), 60));
        assert!(bytes < 60);
        // Empty pieces are nothing.
        let (bytes, error, _) = passed(0, 30, 100, 0).await;
        assert_eq!((bytes, error), (0, Some(TimedOut)));
    }

    #[tokio::test(start_paused = true)]
    async fn slow_is_good_enough_and_this_side_may_take_its_time() {
        assert_eq!(passed(1000, 50, 20, 0).await.1, None);
        assert_eq!(passed(20, 1, 3600, 0).await, (72_000, None, 3601));
        // The disk here is slow, not the sender.
        let (bytes, error, _) = passed(1, 0, 10, 3600).await;
        assert_eq!((bytes, error), (10, None));
    }
}
