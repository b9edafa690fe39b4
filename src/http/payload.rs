//! The bodies of the registry's answers: mostly a few bytes in memory, which need no box and no stream.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use http_body::{Frame, SizeHint};

/// What is sent behind a head.
#[derive(Debug)]
pub enum Payload {
    /// Empty when it was sent, or when there is nothing to send.
    Memory(Bytes),
    Stream(Body),
}

impl Payload {
    pub const fn empty() -> Payload {
        Payload::Memory(Bytes::new())
    }
}

impl From<Bytes> for Payload {
    fn from(bytes: Bytes) -> Payload {
        Payload::Memory(bytes)
    }
}

impl From<Body> for Payload {
    fn from(body: Body) -> Payload {
        Payload::Stream(body)
    }
}

impl http_body::Body for Payload {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        match &mut *self {
            Payload::Memory(bytes) if bytes.is_empty() => Poll::Ready(None),
            Payload::Memory(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Payload::Stream(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Payload::Memory(bytes) => bytes.is_empty(),
            Payload::Stream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Payload::Memory(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Payload::Stream(body) => body.size_hint(),
        }
    }
}
