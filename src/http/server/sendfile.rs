//! Writing to a plain socket what an outbox has runs of files for.
//!
//! Two things are told to the kernel that cost throughput where they are left out: that a head is followed by more
//! (else it leaves as a packet of its own), and, by forgetting a readiness that is used up, that we wait until the
//! socket has room for a good piece (else each acknowledged packet is answered by a crumb).

use std::io::{self, IoSlice};
use std::task::{Context, Poll, ready};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::http::outbox::FileRun;

const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// Writes memory, and says that a file follows.
pub(super) fn poll_write_more(
    tcp: &TcpStream,
    cx: &mut Context<'_>,
    slices: &[IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    loop {
        ready!(tcp.poll_write_ready(cx))?;
        let sent = tcp.try_io(Interest::WRITABLE, || {
            let flags = SendFlags::MORE | SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            Ok(sendmsg(tcp, slices, &mut SendAncillaryBuffer::default(), flags)?)
        });
        match sent {
            Err(error) if is_to_repeat(&error) => {}
            sent => return Poll::Ready(sent),
        }
    }
}

/// Sends of a run what the socket takes of `most` bytes: at least one, else an error. `UnexpectedEof`: the file has ended early.
pub(super) fn poll_send(tcp: &TcpStream, cx: &mut Context<'_>, run: &FileRun, most: usize) -> Poll<io::Result<usize>> {
    poll_send_by(by_kernel, tcp, cx, run, most)
}

type Way = fn(&TcpStream, &FileRun, usize) -> Result<usize, Errno>;

fn by_kernel(tcp: &TcpStream, run: &FileRun, want: usize) -> Result<usize, Errno> {
    rustix::fs::sendfile(tcp, run.file(), Some(&mut run.at()), want)
}

fn poll_send_by(
    way: Way,
    tcp: &TcpStream,
    cx: &mut Context<'_>,
    run: &FileRun,
    most: usize,
) -> Poll<io::Result<usize>> {
    loop {
        ready!(tcp.poll_write_ready(cx))?;
        match send(way, tcp, run, most) {
            Err(error) if is_to_repeat(&error) => {}
            Ok(0) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
            sent => return Poll::Ready(sent),
        }
    }
}

fn is_to_repeat(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

fn send(way: Way, tcp: &TcpStream, run: &FileRun, most: usize) -> io::Result<usize> {
    let want = usize::try_from(run.left()).unwrap_or(most).min(most);
    let mut sent = 0;
    let outcome = tcp.try_io(Interest::WRITABLE, || {
        sent = hand_over(way, tcp, run, want)?;
        // The socket is full, unless it was the file that ended. Asking makes sure that we are told when there is
        // room: to forget a readiness that is still there would be to wait for nothing.
        match sent > 0 && sent < want && !is_writable(tcp) {
            true => Err(io::ErrorKind::WouldBlock.into()),
            false => Ok(()),
        }
    });
    match outcome {
        Err(error) if sent == 0 => Err(error),
        _ => Ok(sent),
    }
}

fn hand_over(way: Way, tcp: &TcpStream, run: &FileRun, want: usize) -> io::Result<usize> {
    match way(tcp, run, want) {
        // A file system that cannot: through memory, then.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => through_memory(tcp, run),
        sent => Ok(sent?),
    }
}

fn through_memory(tcp: &TcpStream, run: &FileRun) -> io::Result<usize> {
    match run.read()? {
        ended if ended.is_empty() => Ok(0),
        bytes => Ok(rustix::net::send(
            tcp,
            &bytes,
            SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
        )?),
    }
}

/// True if the socket has room now.
pub(super) fn is_writable(tcp: &TcpStream) -> bool {
    // In doubt we try again.
    !matches!(poll(&mut [PollFd::new(tcp, PollFlags::OUT)], Some(&AT_ONCE)), Ok(0))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::sync::Arc;

    use bytes::Buf;
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;
    use crate::http::outbox::{Outbox, Piece};
    use crate::oci::Digest;
    use crate::pull::Span;

    /// What arrives of `len` bytes of a file, sent that way, and how the sending ended.
    async fn sent_by(way: Way, file: Arc<File>, len: u64, most: usize) -> (Vec<u8>, io::Result<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (tcp, _) = listener.accept().await.unwrap();
        let reading = tokio::spawn(async move {
            let mut read = Vec::new();
            client.read_to_end(&mut read).await.unwrap();
            read
        });
        let outbox = Outbox::default();
        let mut piece = Piece::of(
            outbox.ticket(
                Digest::sha256(b""),
                Span {
                    file,
                    at: 0,
                    len,
                    more: false,
                },
            ),
            Some(&outbox),
            len,
        );
        let ended = std::future::poll_fn(|cx| {
            while piece.has_remaining() {
                let mut slices = [IoSlice::new(&[]); 1];
                piece.chunks_vectored(&mut slices);
                let (_, run) = outbox.first(&slices).unwrap();
                let n = ready!(poll_send_by(way, &tcp, cx, &run, most))?;
                piece.advance(n);
            }
            Poll::Ready(Ok(()))
        })
        .await;
        drop(tcp);
        (reading.await.unwrap(), ended)
    }

    /// The kernel's way, and the way through memory where the kernel refuses: the same bytes, the same end.
    #[tokio::test]
    async fn both_ways() {
        let refused: Way = |_, _, _| Err(Errno::INVAL);
        let content: Vec<u8> = (0..9_000_001u32).map(|n| (n % 251) as u8).collect();
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&content, 0).unwrap();
        let file = Arc::new(file);
        for (way, most) in [
            (by_kernel as Way, usize::MAX),
            (by_kernel, 100_000),
            (refused, usize::MAX),
        ] {
            let (came, ended) = sent_by(way, file.clone(), 9_000_001, most).await;
            assert!(came == content && ended.is_ok(), "{} {ended:?}", came.len());
            let (came, ended) = sent_by(way, file.clone(), 9_000_002, most).await;
            assert!(came == content, "all there is: {}", came.len());
            assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        }
    }
}
