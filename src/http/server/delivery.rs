//! One response from its first byte to the moment at which the socket has taken its last.
//!
//! hyper lets go of a body as soon as it has the last piece of it, which may be megabytes before a slow client has them. So a
//! [`Delivery`] is held by the body and by each of its pieces ([`Tracked`]): as long as one of them is there, the response runs. Then
//! the connection's pulse takes it over until what was written has been flushed, and only then its end is recorded.
//! A body that is one piece, as most answers are, has nothing to share: that piece alone holds its response.
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
    /// `cut`: why Larder ended the connection with responses on it, if it did.
    fn record(self: Box<Self>, delivered: Delivered, cut: Option<&'static str>);
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

/// A request that was read: it runs until somebody says that it has [`Running::left`], at the latest when this is dropped.
pub(super) struct Running {
    /// `None` when it has left.
    pulse: Option<Arc<Pulse>>,
    /// For an HTTP/2 request beside others, and for one that a proxy sent. In a box, as few have one and all are moved.
    pass: Option<Box<Pass>>,
}

impl Running {
    /// A request was read; how many others of its connection have not left.
    pub(super) fn begin(pulse: &Arc<Pulse>) -> (Running, usize) {
        let others = pulse.begin();
        let running = Running {
            pulse: Some(pulse.clone()),
            pass: None,
        };
        (running, others)
    }

    /// Holds `pass` until the response has left.
    pub(super) fn hold(&mut self, pass: Pass) {
        self.pass = Some(Box::new(pass));
    }

    fn pulse(&self) -> Option<&Pulse> {
        self.pulse.as_deref()
    }

    fn left(&mut self, unsent: u64, report: Option<Box<dyn DeliveryReport>>) {
        if let Some(pulse) = self.pulse.take() {
            pulse.left(unsent, report);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.left(0, None);
    }
}

/// The side of a response that its body is on: gives its pieces, and the report.
pub(super) enum Delivery {
    /// There was no piece yet.
    Begun(Running),
    Shared(Arc<Shared>),
    /// Its only piece has it.
    Given,
}

/// What a body and its pieces share.
pub(super) struct Shared {
    running: Running,
    /// Bytes that hyper has been given and the socket has not.
    unsent: AtomicU64,
    /// Who waits for fewer than so many to be unsent.
    waiting: AtomicWaker,
    waits_for: AtomicU64,
    report: Mutex<Option<Box<dyn DeliveryReport>>>,
}

impl Delivery {
    /// See [`Shared::has_room`]. The first piece waits for nothing.
    pub(super) fn has_room(&self, cx: &Context<'_>, last: u64) -> bool {
        match self {
            Delivery::Shared(shared) => shared.has_room(cx, last),
            Delivery::Begun(_) | Delivery::Given => true,
        }
    }

    /// The response breaks off: the connection ends as soon as what was sent before is on its way.
    pub(super) fn break_off(&self, how: Break) {
        let running = match self {
            Delivery::Begun(running) => running,
            Delivery::Shared(shared) => &shared.running,
            // All of it has been given.
            Delivery::Given => return,
        };
        if let Some(pulse) = running.pulse() {
            pulse.break_off(how);
        }
    }

    /// What is to be recorded when the last piece has left; the body gives no more of them.
    pub(super) fn end(&mut self, report: Option<Box<dyn DeliveryReport>>) {
        match std::mem::replace(self, Delivery::Given) {
            Delivery::Begun(mut running) => running.left(0, report),
            Delivery::Shared(shared) => *shared.report.lock().unwrap_or_else(PoisonError::into_inner) = report,
            Delivery::Given => {}
        }
    }

    /// A piece for hyper; others may follow.
    pub(super) fn track(&mut self, piece: Piece) -> Tracked {
        let shared = match std::mem::replace(self, Delivery::Given) {
            Delivery::Shared(shared) => shared,
            Delivery::Begun(running) => Arc::new(Shared::new(running)),
            // Never: the only piece is followed by none.
            Delivery::Given => return Tracked { piece, of: Of::Nothing },
        };
        shared.queued(piece.remaining() as u64);
        *self = Delivery::Shared(shared.clone());
        Tracked {
            piece,
            of: Of::Shared(shared),
        }
    }

    /// The last piece for hyper. `report` is called for what is to be recorded when it has left, if it is the only one.
    pub(super) fn track_last(
        &mut self,
        piece: Piece,
        report: impl FnOnce() -> Option<Box<dyn DeliveryReport>>,
    ) -> Tracked {
        let alone = match self {
            Delivery::Begun(running) if running.pass.is_none() => {
                report().and_then(|report| Some((report, running.pulse.take()?)))
            }
            _ => None,
        };
        let Some((report, pulse)) = alone else {
            return self.track(piece);
        };
        *self = Delivery::Given;
        pulse.queued(piece.remaining() as u64);
        Tracked {
            piece,
            of: Of::Alone(pulse, report),
        }
    }
}

impl Shared {
    fn new(running: Running) -> Shared {
        Shared {
            running,
            unsent: AtomicU64::new(0),
            waiting: AtomicWaker::new(),
            waits_for: AtomicU64::new(0),
            report: Mutex::default(),
        }
    }

    fn queued(&self, n: u64) {
        self.unsent.fetch_add(n, Ordering::SeqCst);
        if let Some(pulse) = self.running.pulse() {
            pulse.queued(n);
        }
    }

    /// True if a body in memory may give another piece, now that the last had `last` bytes; else its task is woken when it may. The
    /// small pieces of a slow reader follow one another in the same memory; a quick one is read ahead for while half a piece is
    /// on its way.
    fn has_room(&self, cx: &Context<'_>, last: u64) -> bool {
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
        if let Some(pulse) = self.running.pulse() {
            pulse.sent(n);
        }
        let left = self.unsent.fetch_sub(n, Ordering::SeqCst).saturating_sub(n);
        if left < self.waits_for.load(Ordering::SeqCst) {
            self.waiting.wake();
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let report = self.report.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        self.running.left(*self.unsent.get_mut(), report);
    }
}

/// A piece of a response's body: until it is dropped, the response has not left.
pub(super) struct Tracked {
    piece: Piece,
    of: Of,
}

enum Of {
    Shared(Arc<Shared>),
    /// The whole body, of a response that runs.
    Alone(Arc<Pulse>, Box<dyn DeliveryReport>),
    Nothing,
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
        match &self.of {
            Of::Shared(shared) => shared.sent(n as u64),
            Of::Alone(pulse, _) => pulse.sent(n as u64),
            Of::Nothing => {}
        }
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        if let Of::Alone(pulse, report) = std::mem::replace(&mut self.of, Of::Nothing) {
            pulse.left(self.piece.remaining() as u64, Some(report));
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    /// Writes down how it was recorded.
    struct Noted(Arc<Mutex<Vec<Delivered>>>);

    impl DeliveryReport for Noted {
        fn record(self: Box<Self>, delivered: Delivered, _cut: Option<&'static str>) {
            self.0.lock().unwrap().push(delivered);
        }
    }

    /// Why Larder ended a connection goes to the responses that were cut by it.
    #[tokio::test]
    async fn a_cut_says_why() {
        struct Why(Arc<Mutex<Option<&'static str>>>);
        impl DeliveryReport for Why {
            fn record(self: Box<Self>, _: Delivered, cut: Option<&'static str>) {
                *self.0.lock().unwrap() = cut;
            }
        }
        let (pulse, why) = (Pulse::new(true), Arc::default());
        let mut delivery = Delivery::Begun(Running::begin(&pulse).0);
        let piece = delivery.track(Piece::of(Bytes::from_static(b"0123456789"), None, u64::MAX));
        pulse.cut("the first reason");
        pulse.cut("another");
        delivery.end(Some(Box::new(Why(Arc::clone(&why)))));
        assert_eq!(*why.lock().unwrap(), None);
        drop(piece);
        assert_eq!(*why.lock().unwrap(), Some("the first reason"));
    }

    /// A response of one piece of ten bytes whose body is gone already.
    fn response(is_alone: bool) -> (Arc<Pulse>, Tracked, Arc<Mutex<Vec<Delivered>>>) {
        let (pulse, noted) = (Pulse::new(true), Arc::<Mutex<Vec<Delivered>>>::default());
        let mut delivery = Delivery::Begun(Running::begin(&pulse).0);
        let piece = Piece::of(Bytes::from_static(b"0123456789"), None, u64::MAX);
        let report = || Some(Box::new(Noted(noted.clone())) as Box<dyn DeliveryReport>);
        let piece = match is_alone {
            true => delivery.track_last(piece, report),
            false => delivery.track(piece),
        };
        delivery.end(report());
        (pulse, piece, noted)
    }

    #[tokio::test]
    async fn a_response_runs_until_its_last_piece_has_left_and_was_flushed() {
        for is_alone in [false, true] {
            let (pulse, mut piece, noted) = response(is_alone);
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
    }

    #[tokio::test]
    async fn what_nobody_took_is_recorded_as_unsent() {
        for is_alone in [false, true] {
            let (pulse, mut piece, noted) = response(is_alone);
            pulse.wrote(true);
            piece.advance(7);
            pulse.flushed();
            drop(piece);
            assert_eq!(*noted.lock().unwrap(), [Delivered::Cut { unsent: 3 }]);
        }
    }

    #[tokio::test]
    async fn what_was_written_and_never_flushed_is_cut() {
        for is_alone in [false, true] {
            let (pulse, mut piece, noted) = response(is_alone);
            pulse.wrote(true);
            piece.advance(10);
            drop(piece);
            pulse.gone();
            assert_eq!(*noted.lock().unwrap(), [Delivered::Cut { unsent: 0 }]);
        }
    }

    #[tokio::test]
    async fn a_stalled_socket_is_not_idle() {
        for is_alone in [false, true] {
            let (pulse, mut piece, noted) = response(is_alone);
            // HTTP/2 copies small pieces into its own buffer before it writes them.
            pulse.wrote(false);
            piece.advance(10);
            drop(piece);
            assert!(pulse.idle_since().is_none() && noted.lock().unwrap().is_empty());
            pulse.wrote(true);
            pulse.flushed();
            assert_eq!(*noted.lock().unwrap(), [Delivered::Whole]);
        }
    }

    #[tokio::test]
    async fn what_has_no_body_leaves_with_its_head() {
        let (pulse, noted) = (Pulse::new(false), Arc::<Mutex<Vec<Delivered>>>::default());
        let mut delivery = Delivery::Begun(Running::begin(&pulse).0);
        assert!(pulse.idle_since().is_none());
        delivery.end(Some(Box::new(Noted(noted.clone()))));
        assert_eq!(*noted.lock().unwrap(), [Delivered::Whole]);
        assert!(pulse.idle_since().is_some());
        drop(Running::begin(&pulse).0);
        assert!(
            pulse.idle_since().is_some(),
            "nor does a request run whose handling was given up"
        );
    }

    #[tokio::test]
    async fn a_piece_with_nothing_to_record_is_waited_for_as_well() {
        let pulse = Pulse::new(false);
        let mut delivery = Delivery::Begun(Running::begin(&pulse).0);
        let mut piece = delivery.track_last(Piece::of(Bytes::from_static(b"0123456789"), None, u64::MAX), || None);
        delivery.end(None);
        assert!(pulse.idle_since().is_none());
        piece.advance(10);
        drop((piece, delivery));
        assert!(pulse.idle_since().is_some());
    }

    #[tokio::test]
    async fn a_body_is_taken_as_fast_as_its_pieces_leave() {
        let pulse = Pulse::new(true);
        let delivery = Arc::new(Shared::new(Running::begin(&pulse).0));
        let piece =
            |len: usize| Delivery::Shared(delivery.clone()).track(Piece::of(vec![0; len].into(), None, u64::MAX));
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
        let delivery = Arc::new(Shared::new(Running::begin(&pulse).0));
        let mut piece =
            Delivery::Shared(delivery.clone()).track(Piece::of(vec![0; SMALL_BYTES].into(), None, u64::MAX));
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
