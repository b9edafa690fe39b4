//! A connection's bytes between the socket and hyper, and its end.
//!
//! An end is FIN, never RST: containerd resumes after the first and fails the pull after the second (R-C14).
//! Three things would make the kernel send RST: hyper closes without flushing when a body fails; a socket that is
//! closed with unread bytes in it is reset; and so is one that is closed when more comes, as it does from a slow HTTP/2 client, which
//! gives us more window with every piece it reads of what our kernel still holds. A reset throws that away. So the wire ends the
//! connection itself once a broken response is flushed, sends no FIN for hyper, and hands the stream back when hyper is done with it:
//! [`until_taken`] waits for the client's kernel to have all, [`end`] closes; a client of HTTP/2 gets the time to read it before
//! ([`linger_while_it_reads`]).

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use rustix::net::sockopt::{set_socket_send_buffer_size, set_tcp_cork};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::oneshot;
use tokio_rustls::server::TlsStream;

use super::pulse::{Break, Pulse};
use super::sendfile;
use crate::http::outbox::{FileRun, Outbox};

/// How long, and for how many bytes, a closing socket listens to a client that is still talking.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 4 * 1024 * 1024;
/// How long a client of HTTP/2 that is not known to have read all may say nothing. Clients open a window again when they have read
/// a part of it.
pub(super) const SILENCE: Duration = Duration::from_secs(10);

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

    /// The socket below, where the kernel sends what it holds in its own time.
    fn tcp(&self) -> Option<&TcpStream> {
        None
    }

    /// The socket, if what is written here goes out as it is.
    fn plain(&self) -> Option<&TcpStream> {
        None
    }

    /// True if what is written here goes out encrypted.
    fn is_tls(&self) -> bool {
        false
    }
}

impl Transport for TcpStream {
    fn reset(&self) {
        let _ = self.set_zero_linger();
    }

    fn tcp(&self) -> Option<&TcpStream> {
        Some(self)
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

    fn tcp(&self) -> Option<&TcpStream> {
        Some(self.get_ref().0)
    }
}

/// Files go through memory here. What was written is at the client's side already.
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
        self.pulse.gone();
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
        match self.pulse.flushed() {
            Some(_) => Poll::Ready(Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "the response broke off",
            ))),
            None => Poll::Ready(Ok(())),
        }
    }

    /// No more than a flush: whether the client has all could not be seen behind a FIN, which [`end`] sends.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}

/// Returns when the client has acknowledged what the socket held, or the connection is dead. What the client says meanwhile is
/// thrown away.
///
/// Linux does not tell how much is left without an `ioctl`, but tells when a socket is writable: when not more than two thirds of the
/// send buffer are in use. With the smallest buffer that is when at most one small packet is.
pub(super) async fn until_taken(stream: &impl Transport) {
    let Some(tcp) = stream.tcp() else { return };
    if set_socket_send_buffer_size(tcp, 1).is_err() {
        return;
    }
    let taken = async {
        while tcp.writable().await.is_ok() {
            let is_writable = tcp.try_io(Interest::WRITABLE, || match sendfile::is_writable(tcp) {
                true => Ok(()),
                // Has the readiness that is gone be forgotten.
                false => Err(io::ErrorKind::WouldBlock.into()),
            });
            if !matches!(is_writable, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
                return;
            }
        }
    };
    tokio::select! {
        // Nearly always there is nothing left.
        biased;
        () = taken => {}
        () = deaf(tcp) => {}
    }
}

/// Throws away what a client sends, below TLS. Returns when that is too much, or the connection is dead; never for a client that only
/// has nothing more to say.
async fn deaf(tcp: &TcpStream) {
    let (mut sink, mut left) = (vec![0; 16 * 1024], LINGER_BYTES);
    while left > 0 && tcp.readable().await.is_ok() {
        match tcp.try_read(&mut sink) {
            Ok(0) => std::future::pending().await,
            Ok(n) => left = left.saturating_sub(n),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
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
pub(super) async fn linger<S: Transport>(stream: S) {
    let _ = tokio::time::timeout(LINGER, farewell(stream, LINGER)).await;
}

/// The same for a slow client of HTTP/2. Its kernel has acknowledged all, but it has read only some, and answers each piece that it
/// reads with more window. So the socket stays for as long as it talks, and for [`SILENCE`] since; FIN from it says that it has all.
pub(super) async fn linger_while_it_reads<S: Transport>(stream: S) {
    farewell(stream, SILENCE).await;
}

async fn farewell<S: Transport>(mut stream: S, silence: Duration) {
    if !matches!(tokio::time::timeout(silence, stream.shutdown()).await, Ok(Ok(()))) {
        return;
    }
    let (mut sink, mut left) = (vec![0; 16 * 1024], LINGER_BYTES);
    while left > 0 {
        match tokio::time::timeout(silence, hear(&mut stream, &mut sink)).await {
            Ok(Ok(n @ 1..)) => left = left.saturating_sub(n),
            Ok(Ok(0) | Err(_)) | Err(_) => return,
        }
    }
}

/// Reads below TLS: [`until_taken`] has thrown away bytes without which the rest cannot be decrypted.
async fn hear(stream: &mut impl Transport, sink: &mut [u8]) -> io::Result<usize> {
    let Some(tcp) = stream.tcp() else {
        return stream.read(sink).await;
    };
    loop {
        tcp.readable().await?;
        match tcp.try_read(sink) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            read => return read,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpSocket};

    use super::*;

    /// A socket that holds all that it takes for a client that has not read yet, how much that is, and the client.
    async fn full() -> (TcpStream, usize, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(16 * 1024).unwrap();
        let client = socket.connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let mut written = 0;
        while let Ok(n) = server.try_write(&[b'x'; 64 * 1024]) {
            written += n;
        }
        (server, written, client)
    }

    /// What a slow HTTP/2 client sends while it reads.
    const WINDOW_UPDATE: [u8; 13] = [0, 0, 4, 8, 0, 0, 0, 0, 1, 0, 0, 1, 0];

    #[tokio::test]
    async fn a_client_that_reads_and_talks_gets_what_the_socket_holds_and_fin() {
        let (server, written, mut client) = full().await;
        let taken = tokio::spawn(async move {
            until_taken(&server).await;
            linger(server).await;
        });
        let mut read = vec![0; 8 * 1024];
        let mut came = 0;
        loop {
            assert!(
                came == written || !taken.is_finished(),
                "closed after {came} of {written} bytes"
            );
            match client.read(&mut read).await.expect("no reset") {
                0 => break,
                n => came += n,
            }
            client.write_all(&WINDOW_UPDATE).await.unwrap();
        }
        assert_eq!(came, written);
        drop(client);
        taken.await.unwrap();
    }

    #[tokio::test]
    async fn a_client_that_is_gone_is_not_waited_for() {
        let (server, _, client) = full().await;
        let taken = tokio::spawn(async move { until_taken(&server).await });
        client.set_zero_linger().unwrap();
        drop(client);
        taken.await.unwrap();
    }

    #[tokio::test]
    async fn an_empty_socket_is_not_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        until_taken(&listener.accept().await.unwrap().0).await;
    }
}
