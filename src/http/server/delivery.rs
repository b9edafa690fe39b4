//! One response from its first byte to the moment at which the socket has taken its last.
//!
//! hyper lets go of a body as soon as it has the last piece of it, which may be megabytes before a slow client has them. So a
//! [`Delivery`] is held by the body and by each of its pieces ([`Tracked`]): as long as one of them is there, the response runs. Then
//! the connection's pulse takes it over until what was written has been flushed, and only then its end is recorded.
//!
//! It also keeps hyper from taking more of a body than a slow client needs: hyper buffers by figures of its own, and with windows as wide
//! as a client likes that would be a large chunk of memory for each stream.

use std::io::IoSlice;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Context;

use bytes::Buf;
use futures_util::task::AtomicWaker;

use super::gate::Pass;
use super::pulse::{Break, Pulse};
use crate::http::outbox::Piece;
use crate::pull::SMALL_BYTES;

/// Pieces that are smaller than this together are not waited for.
const FEW_BYTES: u64 = 4 * 1024;

/// How a response left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivered {
    /// The socket took every byte that the body gave.
    Whole,
    /// The connection or the stream ended before that.
    Cut {
        /// Bytes that the body gave and nobody took.
        unsent: u64,
    },
}

/// What is to be recorded of a response at its very end.
pub trait DeliveryReport: Send {
    fn record(self: Box<Self>, delivered: Delivered);
}

/// A body with something to record when its bytes have left.
pub trait Reported {
    /// The report, once; `None` if there is nothing to record.
    fn take_report(&mut self) -> Option<Box<dyn DeliveryReport>>;
}

/// Bodies of routes record nothing themselves.
impl Reported for axum::body::Body {
    fn take_report(&mut self) -> Option<Box<dyn DeliveryReport>> {
        None
    }
}

/// A request that was read, and its response until it has left.
pub(super) struct Delivery {
    pulse: Arc<Pulse>,
    /// Bytes that hyper has been given and the socket has not.
    unsent: AtomicU64,
    /// Who waits for fewer than so many to be unsent.
    waiting: AtomicWaker,
    waits_for: AtomicU64,
    report: Mutex<Option<Box<dyn DeliveryReport>>>,
    /// Of an HTTP/2 request beside others.
    pass: Option<Pass>,
}

impl Delivery {
    /// A request was read; how many others of its connection have not left.
    pub(super) fn begin(pulse: &Arc<Pulse>) -> (Delivery, usize) {
        let others = pulse.begin();
        let delivery = Delivery {
            pulse: pulse.clone(),
            unsent: AtomicU64::new(0),
            waiting: AtomicWaker::new(),
            waits_for: AtomicU64::new(0),
            report: Mutex::default(),
            pass: None,
        };
        (delivery, others)
    }

    /// Holds `pass` until the response has left.
    pub(super) fn hold(&mut self, pass: Pass) {
        self.pass = Some(pass);
    }

    /// True if a body in memory may give another piece, now that the last had `last` bytes; else its task is woken when it may. The
    /// small pieces of a slow reader follow one another in the same memory; a quick one is read ahead for while half a piece is
    /// on its way.
    pub(super) fn has_room(&self, cx: &Context<'_>, last: u64) -> bool {
        let few = match last {
            0..FEW_BYTES => FEW_BYTES,
            small if small <= SMALL_BYTES as u64 => 1,
            large => large / 2,
        };
        if self.unsent.load(Ordering::SeqCst) < few {
            return true;
        }
        self.waiting.register(cx.waker());
        self.waits_for.store(few, Ordering::SeqCst);
        // Looked at again: it may have been sent before anybody knew that it was waited for.
        self.unsent.load(Ordering::SeqCst) < few
    }

    fn sent(&self, n: u64) {
        self.pulse.sent(n);
        let left = self.unsent.fetch_sub(n, Ordering::SeqCst).saturating_sub(n);
        if left < self.waits_for.load(Ordering::SeqCst) {
            self.waiting.wake();
        }
    }

    /// The response breaks off: the connection ends as soon as what was sent before is on its way.
    pub(super) fn break_off(&self, how: Break) {
        self.pulse.break_off(how);
    }

    /// What is to be recorded when the last piece has left.
    pub(super) fn report(&self, report: Box<dyn DeliveryReport>) {
        *self.report.lock().unwrap_or_else(PoisonError::into_inner) = Some(report);
    }

    /// A piece for hyper.
    pub(super) fn track(self: &Arc<Delivery>, piece: Piece) -> Tracked {
        let length = piece.remaining() as u64;
        self.unsent.fetch_add(length, Ordering::SeqCst);
        self.pulse.queued(length);
        Tracked {
            piece,
            delivery: self.clone(),
        }
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        let report = self.report.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        self.pulse.left(*self.unsent.get_mut(), report);
    }
}

/// A piece of a response's body: until it is dropped, the response has not left.
pub(super) struct Tracked {
    piece: Piece,
    delivery: Arc<Delivery>,
}

impl Buf for Tracked {
    fn remaining(&self) -> usize {
        self.piece.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.piece.chunk()
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        self.piece.chunks_vectored(slices)
    }

    fn advance(&mut self, n: usize) {
        self.piece.advance(n);
        self.delivery.sent(n as u64);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    /// Writes down how it was recorded.
    struct Noted(Arc<Mutex<Vec<Delivered>>>);

    impl DeliveryReport for Noted {
        fn record(self: Box<Self>, delivered: Delivered) {
            self.0.lock().unwrap().push(delivered);
        }
    }

    /// A response of one piece of ten bytes whose body is gone already.
    fn response() -> (Arc<Pulse>, Tracked, Arc<Mutex<Vec<Delivered>>>) {
        let (pulse, noted) = (Pulse::new(true), Arc::<Mutex<Vec<Delivered>>>::default());
        let delivery = Arc::new(Delivery::begin(&pulse).0);
        let piece = delivery.track(Piece::of(Bytes::from_static(b"0123456789"), None, u64::MAX));
        delivery.report(Box::new(Noted(noted.clone())));
        (pulse, piece, noted)
    }

    #[tokio::test]
    async fn a_response_runs_until_its_last_piece_has_left_and_was_flushed() {
        let (pulse, mut piece, noted) = response();
        assert!(pulse.idle_since().is_none(), "the body is gone, its bytes are not");
        pulse.wrote(true);
        piece.advance(10);
        drop(piece);
        assert!(pulse.idle_since().is_none(), "a TLS session may hold what was written");
        assert_eq!(*noted.lock().unwrap(), []);
        pulse.flushed();
        assert!(pulse.idle_since().is_some());
        assert_eq!(*noted.lock().unwrap(), [Delivered::Whole]);
    }

    #[tokio::test]
    async fn what_nobody_took_is_recorded_as_unsent() {
        let (pulse, mut piece, noted) = response();
        pulse.wrote(true);
        piece.advance(7);
        pulse.flushed();
        drop(piece);
        assert_eq!(*noted.lock().unwrap(), [Delivered::Cut { unsent: 3 }]);
    }

    #[tokio::test]
    async fn what_was_written_and_never_flushed_is_cut() {
        let (pulse, mut piece, noted) = response();
        pulse.wrote(true);
        piece.advance(10);
        drop(piece);
        pulse.gone();
        assert_eq!(*noted.lock().unwrap(), [Delivered::Cut { unsent: 0 }]);
    }

    #[tokio::test]
    async fn a_stalled_socket_is_not_idle() {
        let (pulse, mut piece, noted) = response();
        // HTTP/2 copies small pieces into its own buffer before it writes them.
        pulse.wrote(false);
        piece.advance(10);
        drop(piece);
        assert!(pulse.idle_since().is_none() && noted.lock().unwrap().is_empty());
        pulse.wrote(true);
        pulse.flushed();
        assert_eq!(*noted.lock().unwrap(), [Delivered::Whole]);
    }

    #[tokio::test]
    async fn a_body_is_taken_as_fast_as_its_pieces_leave() {
        let pulse = Pulse::new(true);
        let delivery = Arc::new(Delivery::begin(&pulse).0);
        let piece = |len: usize| delivery.track(Piece::of(vec![0; len].into(), None, u64::MAX));
        let waker = futures_util::task::noop_waker();
        let cx = Context::from_waker(&waker);
        assert!(delivery.has_room(&cx, 0), "the first");
        let mut first = piece(1024);
        assert!(delivery.has_room(&cx, 1024), "a small one is not waited for");
        let mut second = piece(SMALL_BYTES);
        assert!(!delivery.has_room(&cx, SMALL_BYTES as u64));
        first.advance(1024);
        assert!(!delivery.has_room(&cx, SMALL_BYTES as u64));
        second.advance(SMALL_BYTES - 1);
        assert!(!delivery.has_room(&cx, SMALL_BYTES as u64));
        second.advance(1);
        assert!(delivery.has_room(&cx, SMALL_BYTES as u64));
        let mut large = piece(256 * 1024);
        assert!(!delivery.has_room(&cx, 256 * 1024));
        large.advance(128 * 1024 + 1);
        assert!(delivery.has_room(&cx, 256 * 1024), "half of it is read ahead");
    }

    #[tokio::test]
    async fn whoever_waits_is_woken() {
        let pulse = Pulse::new(true);
        let delivery = Arc::new(Delivery::begin(&pulse).0);
        let mut piece = delivery.track(Piece::of(vec![0; SMALL_BYTES].into(), None, u64::MAX));
        let waiting = {
            let delivery = delivery.clone();
            tokio::spawn(std::future::poll_fn(move |cx| {
                match delivery.has_room(cx, SMALL_BYTES as u64) {
                    true => std::task::Poll::Ready(()),
                    false => std::task::Poll::Pending,
                }
            }))
        };
        for _ in 0..SMALL_BYTES / 16 {
            tokio::task::yield_now().await;
            piece.advance(16);
        }
        waiting.await.unwrap();
    }
}
