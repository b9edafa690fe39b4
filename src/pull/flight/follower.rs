//! What is seen of a transfer by those who follow it: how far it is, and which bytes may be sent on.
//!
//! [`State::released`] is where the last bytes of every response are held back (L2).

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use tokio::sync::watch;

use super::Flight;
use crate::pull::error::PullError;
use crate::pull::sink::Window;
use crate::telemetry::trace::context::Context;

/// Bytes at the end of every response that wait for the verdict (L2).
pub const HOLD_BACK_BYTES: u64 = 16 * 1024;
/// Blobs up to this size are verified before their header goes out: a bad one is then a clean error.
pub const SMALL_BYTES: u64 = 64 * 1024;

#[derive(Clone, Debug)]
pub enum Phase {
    /// The upstream has not answered yet: nobody gets a status line (R-D3).
    Asking,
    /// Bytes come; what they are is not known yet.
    Streaming,
    /// The digest is right.
    Verified,
    Failed(PullError),
}

/// What followers see.
#[derive(Clone, Debug)]
pub struct State {
    pub phase: Phase,
    /// Bytes staged.
    pub written: u64,
    /// Bytes that can be read, if that is more: the flight's front has those that are not staged.
    pub came: u64,
    /// Bytes of the whole blob, once known.
    pub total: Option<u64>,
    pub file: Option<Arc<File>>,
    /// Set when the bytes pass through memory: from its base on they are there, not in the file.
    pub window: Option<Arc<Window>>,
    /// Something about the answer is odd (a web page, an unexpected size): nothing goes out before the verdict.
    pub doubtful: bool,
}

impl State {
    /// Whether a response may begin, or must be an error.
    pub(in crate::pull) fn is_decided(&self) -> bool {
        match self.phase {
            Phase::Asking => false,
            Phase::Streaming => !self.doubtful && self.total.is_none_or(|total| total > SMALL_BYTES),
            Phase::Verified | Phase::Failed(_) => true,
        }
    }

    /// Up to where a response that ends at `end` may be sent now.
    fn released(&self, end: Option<u64>) -> u64 {
        let came = self.written.max(self.came);
        match (&self.phase, end.or(self.total)) {
            (Phase::Verified, end) => end.unwrap_or(came).min(came),
            (_, Some(end)) => came.min(end.saturating_sub(HOLD_BACK_BYTES)),
            (_, None) => came.saturating_sub(HOLD_BACK_BYTES),
        }
    }
}

/// Where a run of bytes is.
pub enum Run {
    File(Arc<File>),
    Window(Arc<Window>),
    /// From the front; or taken out of the window, to wait for the verdict.
    Kept(Bytes),
}

/// A place among a flight's followers.
pub struct Follower {
    flight: Arc<Flight>,
    id: u64,
    state: watch::Receiver<State>,
    /// Whether somebody else began the transfer.
    pub joined: bool,
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.flight.positions.leave(self.id);
        if self.flight.followers.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.flight.left.notify_one();
        }
    }
}

impl Clone for Follower {
    fn clone(&self) -> Follower {
        Follower::of(&self.flight, self.joined)
    }
}

impl Follower {
    pub(super) fn of(flight: &Arc<Flight>, joined: bool) -> Follower {
        flight.followers.fetch_add(1, Ordering::AcqRel);
        let id = flight.positions.enter();
        flight.came.notify_one();
        Follower {
            id,
            flight: flight.clone(),
            state: flight.state.subscribe(),
            joined,
        }
    }

    /// Whether the transfer asks an upstream on behalf of another repository than `key`.
    pub fn is_foreign_to(&self, key: &str) -> bool {
        *self.flight.began != *key
    }

    /// The transfer's place among traces, if it is recorded.
    pub(in crate::pull) fn trace(&self) -> Option<&Context> {
        self.flight.span.context()
    }

    /// Says that this follower reads these bytes and no others.
    pub(in crate::pull) fn begin(&self, from: u64, end: Option<u64>) {
        self.flight.positions.begin(self.id, from, end);
    }

    /// Waits until a response may begin: the upstream has answered and, where that matters, the digest is right.
    pub async fn decided(&mut self) -> Result<State, PullError> {
        self.wait_for(State::is_decided).await
    }

    /// As `decided`; `None` as soon as an answer of the upstream is waited for.
    pub async fn decided_unless_asking(&mut self) -> Option<Result<State, PullError>> {
        let decided = self
            .wait_for(|state| state.is_decided() || matches!(state.phase, Phase::Asking))
            .await;
        match decided {
            Ok(state) if matches!(state.phase, Phase::Asking) => None,
            decided => Some(decided),
        }
    }

    /// Says that a client is told to come back for it.
    pub fn promise(&self) {
        self.flight.is_promised.store(true, Ordering::Release);
    }

    /// What the upstream will say, if that is an error, to be heard by somebody who follows no longer. `None` if somebody
    /// hears it already.
    pub fn verdict_to_come(&self) -> Option<impl Future<Output = Option<PullError>> + Send + use<>> {
        if self.flight.is_heard.swap(true, Ordering::Relaxed) {
            return None;
        }
        let mut state = self.state.clone();
        Some(async move {
            let state = state
                .wait_for(|state| !matches!(state.phase, Phase::Asking))
                .await
                .ok()?;
            match &state.phase {
                Phase::Failed(error) => Some(error.clone()),
                _ => None,
            }
        })
    }

    /// Waits until the whole size is known.
    pub async fn sized(&mut self) -> Result<u64, PullError> {
        let state = self.wait_for(|s| s.total.is_some() && s.is_decided()).await?;
        state.total.ok_or(PullError::Internal("a verified blob without a size"))
    }

    /// Waits until bytes from `at` may be sent in a response that ends at `end`; gives where they are and up to where.
    /// `at` itself means that there are no more.
    pub async fn readable(&mut self, at: u64, end: Option<u64>) -> Result<(Run, u64), PullError> {
        self.flight.positions.advance(self.id, at);
        if let Some(end) = end
            && let Some(kept) = self.keep_end(at, end).await?
        {
            self.wait_for(|s| matches!(s.phase, Phase::Verified)).await?;
            let upto = at + kept.len() as u64;
            return Ok((Run::Kept(kept), upto));
        }
        loop {
            let state = self
                .wait_for(|s| matches!(s.phase, Phase::Verified) || s.released(end) > at)
                .await?;
            let upto = state.released(end).max(at);
            if at < state.came
                && let Some(bytes) = self.flight.front.read(at, upto - at)
            {
                let upto = at + bytes.len() as u64;
                return Ok((Run::Kept(bytes), upto));
            }
            return match (state.window, state.file) {
                (Some(window), _) if window.covers(at) => Ok((Run::Window(window), upto)),
                (Some(window), Some(file)) => Ok((Run::File(file), upto.min(window.base()))),
                // Between the look at the state and that at the front it went from there to the file.
                (None, Some(_)) if state.written <= at && upto > at => continue,
                (None, Some(file)) => Ok((Run::File(file), upto.min(state.written.max(at)))),
                (_, None) => Err(PullError::Internal("a transfer without a file")),
            };
        }
    }

    /// What is left of a response that ends at `end` and may not go out before the verdict, if the blob passes through
    /// memory: it is taken along, so that the window moves on without this reader. Else it would wait for a
    /// verdict that itself keeps from coming.
    async fn keep_end(&mut self, at: u64, end: u64) -> Result<Option<Bytes>, PullError> {
        let state = self
            .wait_for(|s| {
                let passes_by = s.window.is_some() && s.written >= end;
                matches!(s.phase, Phase::Verified) || s.released(Some(end)) > at || passes_by
            })
            .await?;
        let (false, Some(window)) = (
            matches!(state.phase, Phase::Verified) || state.released(Some(end)) > at,
            state.window,
        ) else {
            return Ok(None);
        };
        let mut kept = BytesMut::new();
        if let Some(file) = state.file.filter(|_| !window.covers(at)) {
            // At most what is held back, and just written: no disk is waited for.
            kept.resize(usize::try_from(end.min(window.base()) - at).unwrap_or_default(), 0);
            file.read_exact_at(&mut kept, at)
                .map_err(|_| PullError::Internal("a staged blob could not be read"))?;
        }
        while let Some(left) = end.checked_sub(at + kept.len() as u64).filter(|left| *left > 0) {
            let want = usize::try_from(left).unwrap_or(usize::MAX);
            let piece = window.read(at + kept.len() as u64, want);
            kept.extend_from_slice(&piece.ok_or(PullError::LeftBehind)?);
        }
        self.flight.positions.advance(self.id, u64::MAX);
        Ok(Some(kept.freeze()))
    }

    /// Waits for the verdict without reading anything; `tell` hears how many bytes are there. `false` if they pass through
    /// memory and are kept nowhere: who does not read them has to leave.
    pub(in crate::pull) async fn kept(&mut self, tell: impl Fn(u64)) -> Result<bool, PullError> {
        loop {
            {
                let state = self.state.borrow_and_update();
                tell(state.written);
                match &state.phase {
                    Phase::Failed(error) => return Err(error.clone()),
                    _ if state.window.is_some() => return Ok(false),
                    Phase::Verified => return Ok(true),
                    Phase::Asking | Phase::Streaming => {}
                }
            }
            let changed = self.state.changed().await;
            changed.map_err(|_| PullError::Internal("a transfer was dropped"))?;
        }
    }

    /// Whether the bytes pass through memory, once and in their order.
    pub fn is_passing(&self) -> bool {
        self.flight.is_passing()
    }

    async fn wait_for(&mut self, done: impl Fn(&State) -> bool) -> Result<State, PullError> {
        let settled = |s: &State| matches!(s.phase, Phase::Failed(_)) || done(s);
        let state = self
            .state
            .wait_for(settled)
            .await
            .map_err(|_| PullError::Internal("a transfer was dropped"))?;
        match &state.phase {
            Phase::Failed(error) => Err(error.clone()),
            _ => Ok(state.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(phase: Phase, written: u64, total: Option<u64>) -> State {
        State {
            phase,
            written,
            came: 0,
            total,
            file: None,
            window: None,
            doubtful: false,
        }
    }

    /// L2: whatever a response asks for, its last bytes wait.
    #[test]
    fn the_tail_is_held_back() {
        let mib = 1 << 20;
        let streaming = |written| state(Phase::Streaming, written, Some(mib));
        assert_eq!(streaming(1000).released(None), 1000);
        assert_eq!(streaming(mib).released(None), mib - HOLD_BACK_BYTES);
        assert_eq!(streaming(mib).released(Some(500_000)), 500_000 - HOLD_BACK_BYTES);
        assert_eq!(streaming(mib).released(Some(10)), 0);
        assert_eq!(state(Phase::Streaming, mib, None).released(None), mib - HOLD_BACK_BYTES);
        assert_eq!(state(Phase::Verified, mib, Some(mib)).released(None), mib);
        assert_eq!(state(Phase::Verified, mib, Some(mib)).released(Some(10)), 10);
    }

    #[test]
    fn small_and_doubtful_blobs_wait_for_the_verdict() {
        assert!(!state(Phase::Asking, 0, None).is_decided());
        assert!(!state(Phase::Streaming, 10, Some(SMALL_BYTES)).is_decided());
        assert!(state(Phase::Streaming, 10, Some(SMALL_BYTES + 1)).is_decided());
        assert!(state(Phase::Streaming, 10, None).is_decided());
        let odd = State {
            doubtful: true,
            ..state(Phase::Streaming, 10, Some(1 << 30))
        };
        assert!(!odd.is_decided());
        assert!(state(Phase::Verified, 10, Some(10)).is_decided());
    }
}
