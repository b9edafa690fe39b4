//! A connection's bytes between the socket and hyper, and its end.
//!
//! An end is FIN, never RST: containerd resumes after the first and fails the pull after the second (R-C14).
//! Two things would make the kernel send RST: hyper closes without flushing when a body fails, and a socket that is
//! closed with unread bytes in it is reset. So the wire ends the connection itself once a broken response is flushed,
//! and hands the stream back when hyper is done with it, for [`linger`].

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use rustix::net::sockopt::set_tcp_cork;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::oneshot;
use tokio_rustls::server::TlsStream;

use super::pulse::{Break, Pulse};
use super::sendfile;
use crate::http::outbox::{FileRun, Outbox};

/// How long, and for how many bytes, a closing socket listens to a client that is still talking.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 4 * 1024 * 1024;

/// Bytes of files that a connection sends before others have their turn. A client that reads as fast as we send would else keep
/// us at its socket, which then both want at every moment: with eight such clients a byte cost 1.4 times as much
/// (benches/README.md).
const TURN_BYTES: usize = 1024 * 1024;
/// A turn ends with no smaller piece than this.
const MIN_PIECE_BYTES: usize = 64 * 1024;

/// What a connection runs on.
pub(super) trait Transport: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Has closing it be a reset, where there is such a thing.
    fn reset(&self);

    /// The socket, if what is written here goes out as it is.
    fn plain(&self) -> Option<&TcpStream> {
        None
    }

    /// Whether what is written here goes out encrypted.
    fn is_tls(&self) -> bool {
        false
    }
}

impl Transport for TcpStream {
    fn reset(&self) {
        let _ = self.set_zero_linger();
    }

    fn plain(&self) -> Option<&TcpStream> {
        Some(self)
    }
}

impl Transport for TlsStream<TcpStream> {
    fn is_tls(&self) -> bool {
        true
    }

    fn reset(&self) {
        self.get_ref().0.reset();
    }
}

/// Files go through memory here.
impl Transport for UnixStream {
    fn reset(&self) {}
}

/// What hyper reads from and writes to.
pub(super) struct Wire<S> {
    /// `None` only while it is being dropped.
    stream: Option<S>,
    /// Read already, to tell the versions apart.
    prefix: Bytes,
    pulse: Arc<Pulse>,
    /// Where it may be found which files stand among what is to be written.
    outbox: Option<Arc<Outbox>>,
    cork: Cork,
    /// Bytes of files sent in this turn.
    turn: usize,
    back: Option<oneshot::Sender<S>>,
}

/// Whether the socket holds back what fills no packet. It does while a file goes out: what comes before and behind a run
/// leaves with it (benches/README.md).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cork {
    Out,
    /// In, and what was written last is the last there is for now.
    Last,
    /// In, and more comes at once.
    More,
}

impl<S> Wire<S> {
    /// The receiver gets the stream when hyper has dropped the wire.
    pub(super) fn new(
        stream: S,
        prefix: Bytes,
        pulse: Arc<Pulse>,
        outbox: Option<Arc<Outbox>>,
    ) -> (Wire<S>, oneshot::Receiver<S>) {
        let (back, receiver) = oneshot::channel();
        (
            Wire {
                stream: Some(stream),
                prefix,
                pulse,
                outbox,
                cork: Cork::Out,
                turn: 0,
                back: Some(back),
            },
            receiver,
        )
    }

    fn stream(&mut self) -> io::Result<Pin<&mut S>>
    where
        S: Unpin,
    {
        self.stream
            .as_mut()
            .map(Pin::new)
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// What is written from memory is to leave at the next flush: nobody knows what follows.
    fn memory_follows(&mut self) {
        if self.cork == Cork::More {
            self.cork = Cork::Last;
        }
    }

    /// Passes on what a write came to.
    fn wrote(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match &written {
            Poll::Ready(Ok(_)) => self.pulse.wrote(true),
            Poll::Pending => self.pulse.wrote(false),
            Poll::Ready(Err(_)) => {}
        }
        written
    }
}

impl<S: Transport> Wire<S> {
    /// Writes what stands before a run, and of the run what the socket takes, until its turn is over.
    fn poll_write_run(
        &mut self,
        cx: &mut Context<'_>,
        before: &[IoSlice<'_>],
        run: &FileRun,
    ) -> Poll<io::Result<usize>> {
        let Some(tcp) = self.stream.as_ref().and_then(Transport::plain) else {
            return Poll::Ready(Err(io::ErrorKind::Unsupported.into()));
        };
        if self.turn >= TURN_BYTES {
            self.turn = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if self.cork == Cork::Out {
            // Only makes packets fuller: a socket that refuses sends all the same.
            let _ = set_tcp_cork(tcp, true);
        }
        self.cork = match run.has_more() {
            true => Cork::More,
            false => Cork::Last,
        };
        let length: usize = before.iter().map(|slice| slice.len()).sum();
        let mut sent = 0;
        if length > 0 {
            sent = ready!(sendfile::poll_write_more(tcp, cx, before))?;
            if sent < length {
                return Poll::Ready(Ok(sent));
            }
        }
        let most = (TURN_BYTES - self.turn).max(MIN_PIECE_BYTES);
        let outcome = sendfile::poll_send(tcp, cx, run, most);
        self.turn = match &outcome {
            Poll::Ready(Ok(n)) => self.turn + n,
            Poll::Ready(Err(_)) | Poll::Pending => 0,
        };
        match outcome {
            Poll::Ready(Ok(n)) => Poll::Ready(Ok(sent + n)),
            // hyper comes back for the rest, and then it waits, or meets the error.
            _ if sent > 0 => Poll::Ready(Ok(sent)),
            Poll::Ready(Err(error)) => {
                tracing::error!(digest = %run.digest(), at = run.at(), %error, "a blob's file cannot be sent to its end");
                self.pulse.break_off(Break::Short);
                Poll::Ready(Err(error))
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: Transport> Wire<S> {
    /// Lets go what the socket holds back.
    fn uncork(&mut self) {
        if let Some(tcp) = self.stream.as_ref().and_then(Transport::plain) {
            let _ = set_tcp_cork(tcp, false);
        }
        self.cork = Cork::Out;
    }
}

impl<S> Drop for Wire<S> {
    fn drop(&mut self) {
        if let (Some(stream), Some(back)) = (self.stream.take(), self.back.take()) {
            let _ = back.send(stream);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Wire<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.prefix.is_empty() {
            let length = self.prefix.len().min(buf.remaining());
            buf.put_slice(&self.prefix[..length]);
            self.prefix.advance(length);
            self.pulse.read();
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(self.stream()?.poll_read(cx, buf))?;
        if buf.filled().len() > before {
            self.pulse.read();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: Transport> AsyncWrite for Wire<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.memory_follows();
        let written = self.stream()?.poll_write(cx, buf);
        self.wrote(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let run = self.outbox.as_ref().and_then(|outbox| outbox.first(bufs));
        let written = match run {
            Some((at, run)) => self.poll_write_run(cx, &bufs[..at], &run),
            None => {
                self.memory_follows();
                self.stream()?.poll_write_vectored(cx, bufs)
            }
        };
        self.wrote(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.as_ref().is_some_and(AsyncWrite::is_write_vectored)
    }

    /// hyper flushes the wire only when its own buffer is empty: whatever was sent before a break has left by now.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.cork == Cork::Last {
            self.uncork();
        }
        ready!(self.stream()?.poll_flush(cx))?;
        match self.pulse.broken() {
            Some(_) => Poll::Ready(Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "the response broke off",
            ))),
            None => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_shutdown(cx)
    }
}

/// Ends a connection as its pulse says.
pub(super) async fn end<S: Transport>(stream: S, pulse: &Pulse) {
    match pulse.broken() {
        Some(Break::Reset) => stream.reset(),
        Some(Break::Short) | None => linger(stream).await,
    }
}

/// Sends FIN, then reads what the client is still sending until it closes too, within bounds: closing with unread
/// bytes would be a reset, which can overtake the response.
pub(super) async fn linger<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) {
    let farewell = async {
        stream.shutdown().await?;
        let mut sink = vec![0; 16 * 1024];
        let mut left = LINGER_BYTES;
        while left > 0 {
            match stream.read(&mut sink).await? {
                0 => break,
                n => left = left.saturating_sub(n),
            }
        }
        io::Result::Ok(())
    };
    let _ = tokio::time::timeout(LINGER, farewell).await;
}
