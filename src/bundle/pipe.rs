//! From whoever writes an archive to whoever reads it, on another thread or another machine, with a few pieces in between.

use std::io::{self, Read, Write};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::BUFFER;
use super::input::Input;

/// Pieces that wait.
const DEPTH: usize = 8;

/// A piece, or why there are no more. An end without that is the end.
pub type Piece = io::Result<Bytes>;

pub fn pipe() -> (Sender<Piece>, PipeReader) {
    let (sender, receiver) = channel(DEPTH);
    let reader = PipeReader {
        receiver,
        piece: Bytes::new(),
    };
    (sender, reader)
}

/// The end that is read from. Blocking: not for async threads.
pub struct PipeReader {
    receiver: Receiver<Piece>,
    piece: Bytes,
}

impl PipeReader {
    /// The same for async threads, if nothing was read yet.
    pub fn into_stream(mut self) -> impl futures_util::Stream<Item = Piece> + Send + 'static {
        futures_util::stream::poll_fn(move |context| self.receiver.poll_recv(context))
    }
}

impl Read for PipeReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.receiver.blocking_recv() {
                Some(piece) => self.piece = piece?,
                None => return Ok(0),
            }
        }
        let count = self.piece.len().min(buffer.len());
        self.piece.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

impl Input for PipeReader {}

/// The end that is written to. Blocking.
pub struct PipeWriter {
    sender: Sender<Piece>,
    piece: BytesMut,
}

impl PipeWriter {
    pub fn new(sender: Sender<Piece>) -> PipeWriter {
        PipeWriter {
            sender,
            piece: BytesMut::new(),
        }
    }

    /// Ends it, so that the reader knows whether it had everything.
    pub fn finish(mut self, outcome: io::Result<()>) {
        let _ = match outcome {
            Ok(()) => self.send(),
            Err(error) => self.sender.blocking_send(Err(error)).map_err(|_| gone()),
        };
    }

    fn send(&mut self) -> io::Result<()> {
        match self.piece.is_empty() {
            true => Ok(()),
            false => self
                .sender
                .blocking_send(Ok(self.piece.split().freeze()))
                .map_err(|_| gone()),
        }
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "nobody reads it any more")
}

impl Write for PipeWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(BUFFER - self.piece.len());
        self.piece.extend_from_slice(&bytes[..count]);
        if self.piece.len() >= BUFFER {
            self.send()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads all of it into a pipe. Errors: it cannot be read; that the other side went away is none, it has its reasons.
pub fn pour(mut input: Box<dyn Input>, sender: Sender<Piece>) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        match input.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => {
                if sender
                    .blocking_send(Ok(Bytes::copy_from_slice(&buffer[..count])))
                    .is_err()
                {
                    return Ok(());
                }
            }
            Err(error) => {
                let told = io::Error::new(error.kind(), error.to_string());
                let _ = sender.blocking_send(Err(told));
                return Err(error);
            }
        }
    }
}
