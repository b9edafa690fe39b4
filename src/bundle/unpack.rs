//! Decompression of gzip and zstd, recognised by the first bytes and never by a file's name, within limits.
//!
//! Memory is bounded by zstd's window; time and output are bounded by [`Limits`]: an input may unpack to a fixed
//! amount, and beyond that only to so many times its own length. Several gzip members and zstd frames one behind the
//! other are one stream, as their programs take them. Anything else behind the end is refused: programs disagree
//! about it.

use std::io::{self, BufRead, BufReader, ErrorKind, Read};

use flate2::bufread::GzDecoder;

use super::BUFFER;

/// Bytes that [`Compression::of`] needs.
pub(super) const MAGIC: usize = 6;
/// Zeros that may stand behind a gzip stream: tapes and `dd` fill their last record.
const MAX_TRAIL: u64 = 1 << 20;

/// How bytes are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    Gzip,
    Zstd,
    Bzip2,
    Xz,
}

impl Compression {
    /// Recognises a format by its first bytes. `None`: not compressed, or by something unknown.
    pub fn of(begins: &[u8]) -> Option<Compression> {
        match begins {
            [0x1f, 0x8b, ..] => Some(Compression::Gzip),
            // A skippable frame is the other beginning that zstd has: pzstd writes one.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Some(Compression::Zstd),
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Some(Compression::Bzip2),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Compression::Xz),
            _ => None,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Compression::Gzip => "gzip",
            Compression::Zstd => "zstd",
            Compression::Bzip2 => "bzip2",
            Compression::Xz => "xz",
        }
    }

    /// The program that unpacks it.
    pub fn unpacker(self) -> &'static str {
        match self {
            Compression::Gzip => "gunzip",
            Compression::Zstd => "unzstd --long=31",
            Compression::Bzip2 => "bzip2 -dc",
            Compression::Xz => "xz -dc",
        }
    }
}

/// How much an input may unpack to, and what that may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes that any input may unpack to.
    pub free: u64,
    /// Bytes beyond that, for each byte of the input. gzip reaches 1032 at most, zstd many thousands.
    pub ratio: u64,
    /// The largest window of zstd, as a power of two: so much memory is needed.
    pub window_log: u32,
}

impl Limits {
    /// On the machine of whoever calls: 128 MiB, the window that `zstd` itself unpacks without being told. Archives
    /// with the images of Kubernetes distributions are made with `--long=25`.
    pub const FILES: Limits = Limits {
        free: 1 << 30,
        ratio: 1100,
        window_log: 27,
    };
    /// In the proxy: 8 MiB, the window of `zstd -19`.
    pub const STREAMS: Limits = Limits {
        window_log: 23,
        ..Limits::FILES
    };
}

/// Why a compressed stream is not read further. It travels inside an [`io::Error`].
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("its {0} stream breaks off")]
    Short(&'static str),
    #[error("its {0} stream is damaged: {1}")]
    Damaged(&'static str, String),
    #[error("bytes that are no {0} stand behind the end of its {0} stream")]
    Trailing(&'static str),
    #[error("its {name} stream unpacks to more than {most} bytes where {came} came: it is a decompression bomb")]
    Bomb { name: &'static str, most: u64, came: u64 },
    #[error("its zstd stream needs more than {0} MiB of memory: unpack it first (unzstd --long=31)")]
    Window(u64),
    #[error("it is compressed by {0}, which is not read here: unpack it first, {1} FILE | larder bundle import -")]
    Unknown(&'static str, &'static str),
}

impl Refusal {
    pub(super) fn into_io(self) -> io::Error {
        io::Error::new(ErrorKind::InvalidData, self)
    }

    pub(super) fn of(error: &io::Error) -> Option<&Refusal> {
        error.get_ref()?.downcast_ref()
    }
}

/// A reader that counts, and remembers whether it was its own fault.
struct Metered<R> {
    inner: R,
    bytes: u64,
    has_failed: bool,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.inner.read(buffer) {
            Ok(count) => {
                self.bytes += count as u64;
                Ok(count)
            }
            Err(error) => {
                self.has_failed = error.kind() != ErrorKind::Interrupted;
                Err(error)
            }
        }
    }
}

type Source<R> = BufReader<Metered<R>>;

enum Decoder<R: Read> {
    Gzip(Box<GzDecoder<Source<R>>>),
    Zstd(Box<zstd::Decoder<'static, Source<R>>>),
    Ended,
    Failed,
}

impl<R: Read> Decoder<R> {
    fn source(&self) -> Option<&Metered<R>> {
        match self {
            Decoder::Gzip(decoder) => Some(decoder.get_ref().get_ref()),
            Decoder::Zstd(decoder) => Some(decoder.get_ref().get_ref()),
            Decoder::Ended | Decoder::Failed => None,
        }
    }
}

/// The content of a compressed stream.
pub struct Unpacked<R: Read> {
    decoder: Decoder<R>,
    compression: Compression,
    limits: Limits,
    is_strict: bool,
    out: u64,
}

impl<R: Read> Unpacked<R> {
    /// Begins to unpack. Errors: a format that is only known by its name.
    pub fn new(input: R, compression: Compression, limits: Limits) -> io::Result<Unpacked<R>> {
        let metered = Metered {
            inner: input,
            bytes: 0,
            has_failed: false,
        };
        let source = BufReader::with_capacity(BUFFER, metered);
        let decoder = match compression {
            Compression::Gzip => Decoder::Gzip(Box::new(GzDecoder::new(source))),
            Compression::Zstd => {
                let mut decoder = zstd::Decoder::with_buffer(source)?;
                decoder.window_log_max(limits.window_log)?;
                Decoder::Zstd(Box::new(decoder))
            }
            Compression::Bzip2 | Compression::Xz => {
                return Err(Refusal::Unknown(compression.as_str(), compression.unpacker()).into_io());
            }
        };
        Ok(Unpacked {
            decoder,
            compression,
            limits,
            is_strict: false,
            out: 0,
        })
    }

    /// Refuses zeros behind the end as well: what clients unpack themselves has none.
    pub fn strict(self) -> Unpacked<R> {
        Unpacked {
            is_strict: true,
            ..self
        }
    }

    /// Bytes of the compressed stream that were read so far, some of them ahead.
    pub fn came(&self) -> u64 {
        self.decoder.source().map_or(0, |source| source.bytes)
    }

    fn step(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match &mut self.decoder {
                Decoder::Ended => return Ok(0),
                Decoder::Failed => return Err(io::Error::other("it could not be read before")),
                Decoder::Zstd(decoder) => return decoder.read(buffer),
                Decoder::Gzip(decoder) => match decoder.read(buffer)? {
                    0 => {}
                    count => return Ok(count),
                },
            }
            // A member has ended: another one may stand behind it.
            let Decoder::Gzip(decoder) = std::mem::replace(&mut self.decoder, Decoder::Failed) else {
                return Ok(0);
            };
            let mut source = decoder.into_inner();
            self.decoder = match has_more(&mut source, self.is_strict)? {
                true => Decoder::Gzip(Box::new(GzDecoder::new(source))),
                false => Decoder::Ended,
            };
        }
    }

    /// Tells apart what is wrong with the stream from what is wrong with where it comes from.
    fn explain(&self, error: io::Error) -> io::Error {
        let name = self.compression.as_str();
        // Between two members the decoder is gone, and nothing but the source can have failed.
        let is_own = self.decoder.source().is_none_or(|source| source.has_failed);
        if is_own || error.kind() == ErrorKind::Interrupted {
            return error;
        }
        let text = error.to_string();
        match error.kind() {
            ErrorKind::UnexpectedEof => Refusal::Short(name).into_io(),
            _ if text.contains("too much memory") => {
                Refusal::Window((1u64 << self.limits.window_log.min(40)) >> 20).into_io()
            }
            _ if text.contains("Unknown frame") && self.out > 0 => Refusal::Trailing(name).into_io(),
            _ => Refusal::Damaged(name, text).into_io(),
        }
    }
}

/// Returns whether another gzip member follows. Errors: something else does.
fn has_more(source: &mut impl BufRead, is_strict: bool) -> io::Result<bool> {
    let trailing = || Refusal::Trailing(Compression::Gzip.as_str()).into_io();
    let mut zeros = 0;
    loop {
        let ahead = source.fill_buf()?;
        match ahead.first() {
            None => return Ok(false),
            Some(0x1f) if zeros == 0 => return Ok(true),
            Some(_) => {}
        }
        let count = ahead.len();
        zeros += count as u64;
        if is_strict || zeros > MAX_TRAIL || ahead.iter().any(|byte| *byte != 0) {
            return Err(trailing());
        }
        source.consume(count);
    }
}

impl<R: Read> Read for Unpacked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let outcome = self.step(buffer);
        let count = outcome.map_err(|error| self.explain(error))?;
        self.out = self.out.saturating_add(count as u64);
        let came = self.came();
        let most = self.limits.free.saturating_add(self.limits.ratio.saturating_mul(came));
        if self.out > most && came > 0 {
            self.decoder = Decoder::Failed;
            let name = self.compression.as_str();
            return Err(Refusal::Bomb { name, most, came }.into_io());
        }
        Ok(count)
    }
}

#[cfg(test)]
#[path = "unpack_tests.rs"]
mod tests;
