//! The PROXY protocol, versions 1 and 2: what a proxy says of a connection before its first byte.
//!
//! [`parse`] is pure and never asks for a byte that is not the header's, so that what follows stays in the socket, for TLS
//! to begin with. Whose header counts is for others to say.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// The beginning of a header of version 1.
const TEXT: &[u8] = b"PROXY ";
/// Longest header of version 1, with its line break, bytes.
const LONGEST_TEXT: usize = 107;
/// The words that may follow [`TEXT`]. HTTP allows a method of that name; no path is one of these words.
const FAMILIES: [&[u8]; 3] = [b"TCP4 ", b"TCP6 ", UNKNOWN];
const UNKNOWN: &[u8] = b"UNKNOWN";
/// Nearly all headers are no longer than this, bytes: those of version 2 with the extensions that load balancers add.
pub const USUAL: usize = 256;
/// The beginning of a header of version 2.
const BINARY: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// The part of version 2 that each header has: signature, version and command, family, length of the rest.
const BINARY_HEAD: usize = 16;

/// The statement of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// The proxy speaks for itself, to see whether anybody answers.
    Itself,
    /// It speaks for a client at this address.
    Client(SocketAddr),
    /// It speaks for somebody whose address it does not tell.
    Unknown,
}

/// A header that was begun and is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a PROXY header that is broken: {0}")]
pub struct Malformed(&'static str);

/// The meaning of the first bytes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// No header: they are the client's.
    Absent,
    /// At least so many bytes more belong to the header, or would tell that it is none.
    Needs(usize),
    /// A header of so many bytes, some of which may not have been read yet: they say nothing that is wanted.
    Told(Told, usize),
}

/// Returns whether a connection with this first byte may begin with a header.
pub fn may_begin_with(first: u8) -> bool {
    first == TEXT[0] || first == BINARY[0]
}

pub fn parse(read: &[u8]) -> Result<Parsed, Malformed> {
    for signature in [TEXT, BINARY] {
        if read.len() < signature.len() && signature.starts_with(read) {
            return Ok(Parsed::Needs(signature.len() - read.len()));
        }
    }
    if read.starts_with(TEXT) {
        parse_text(read)
    } else if read.starts_with(BINARY) {
        parse_binary(read)
    } else {
        Ok(Parsed::Absent)
    }
}

/// Parses `PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n`. `PROXY /v2/ HTTP/1.1` is no header but a request with an
/// unknown method.
fn parse_text(read: &[u8]) -> Result<Parsed, Malformed> {
    let rest = &read[TEXT.len()..];
    let begun = FAMILIES.iter().filter(|family| family.starts_with(rest));
    if let Some(shortest) = begun.map(|family| family.len() - rest.len()).min() {
        // A character behind UNKNOWN tells that the word ends there; it has one in any case.
        return Ok(Parsed::Needs(shortest.max(1)));
    }
    let ends = |unknown: &[u8]| matches!(unknown.first(), Some(b' ' | b'\r'));
    let is_header = match rest.strip_prefix(UNKNOWN) {
        Some(behind) => ends(behind),
        None => FAMILIES.iter().any(|family| rest.starts_with(family)),
    };
    if !is_header {
        return Ok(Parsed::Absent);
    }
    let Some(end) = read.iter().take(LONGEST_TEXT).position(|byte| *byte == b'\n') else {
        return match LONGEST_TEXT.saturating_sub(read.len()) {
            0 => Err(Malformed("expected a line of at most 107 bytes")),
            1 => Ok(Parsed::Needs(1)),
            _ => Ok(Parsed::Needs(if read.ends_with(b"\r") { 1 } else { 2 })),
        };
    };
    let line = read[..end].strip_suffix(b"\r");
    let line = line.and_then(|line| std::str::from_utf8(line).ok());
    let line = line.ok_or(Malformed("expected a line of ASCII that ends in CR and LF"))?;
    let mut words = line.split(' ').skip(1);
    let told = match words.next() {
        // Whatever follows is to be ignored.
        Some("UNKNOWN") => Told::Unknown,
        Some("TCP4") => Told::Client(source::<Ipv4Addr>(words)?),
        Some("TCP6") => Told::Client(source::<Ipv6Addr>(words)?),
        _ => return Err(Malformed("expected TCP4, TCP6 or UNKNOWN")),
    };
    Ok(Parsed::Told(told, end + 1))
}

/// Source and destination, then their ports.
fn source<'a, A: FromStr + Into<IpAddr>>(mut words: impl Iterator<Item = &'a str>) -> Result<SocketAddr, Malformed> {
    let mut next = || words.next().ok_or(Malformed("expected two addresses and two ports"));
    let (source, destination, port, other) = (next()?, next()?, next()?, next()?);
    let address = |text: &str| {
        text.parse::<A>()
            .map_err(|_| Malformed("expected addresses of its family"))
    };
    let number = |text: &str| {
        let is_digits = text.bytes().all(|byte| byte.is_ascii_digit());
        let number = text.parse::<u16>().ok().filter(|_| is_digits);
        number.ok_or(Malformed("expected ports from 0 to 65535"))
    };
    address(destination)?;
    number(other)?;
    if words.next().is_some() {
        return Err(Malformed(
            "expected two addresses and two ports, and nothing behind them",
        ));
    }
    Ok(canonical(address(source)?.into(), number(port)?))
}

fn parse_binary(read: &[u8]) -> Result<Parsed, Malformed> {
    let Some(head) = read.get(..BINARY_HEAD) else {
        return Ok(Parsed::Needs(BINARY_HEAD - read.len()));
    };
    let (version, command) = (head[12] >> 4, head[12] & 0xf);
    let (family, transport) = (head[13] >> 4, head[13] & 0xf);
    let rest = usize::from(u16::from_be_bytes([head[14], head[15]]));
    let length = BINARY_HEAD + rest;
    if version != 2 {
        return Err(Malformed("expected version 2"));
    }
    match command {
        0 => return Ok(Parsed::Told(Told::Itself, length)),
        1 => {}
        _ => return Err(Malformed("expected LOCAL or PROXY as its command")),
    }
    let addresses = match (family, transport) {
        (1, 1) => 12,
        (2, 1) => 36,
        (0, 0..=2) | (1..=3, 0) | (3, 1 | 2) => return Ok(Parsed::Told(Told::Unknown, length)),
        _ => return Err(Malformed("expected TCP over IPv4 or IPv6, a Unix socket or neither")),
    };
    if rest < addresses {
        return Err(Malformed("expected room for the addresses of its family"));
    }
    let Some(block) = read.get(BINARY_HEAD..BINARY_HEAD + addresses) else {
        return Ok(Parsed::Needs(BINARY_HEAD + addresses - read.len()));
    };
    // Source, destination, port of the source, port of the destination.
    let port = |at: usize| u16::from_be_bytes([block[at], block[at + 1]]);
    let source = match family {
        1 => canonical(Ipv4Addr::new(block[0], block[1], block[2], block[3]).into(), port(8)),
        _ => {
            let mut octets = [0; 16];
            octets.copy_from_slice(&block[..16]);
            canonical(Ipv6Addr::from(octets).into(), port(32))
        }
    };
    Ok(Parsed::Told(Told::Client(source), length))
}

fn canonical(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address.to_canonical(), port)
}

/// The beginning of a connection.
#[derive(Debug, PartialEq, Eq)]
pub enum Beginning {
    Header(Told),
    /// A header that is broken, and the bytes of it that were read.
    Broken(Malformed, Bytes),
    /// No header. These bytes were read, and are the client's.
    Other(Bytes),
}

/// Reads a header, if there is one, and nothing that follows it. `seen` holds the first bytes of the stream as far as
/// they were peeked at, which saves system calls; it may be empty.
///
/// Errors: the connection ends within the header.
pub async fn read(stream: &mut (impl AsyncRead + Unpin), seen: &[u8]) -> io::Result<Beginning> {
    let mut read = Vec::with_capacity(64);
    // A header that comes in pieces is read nearly byte by byte below.
    if let Ok(Parsed::Told(_, length)) = parse(seen) {
        read.resize(length.min(seen.len()), 0);
        stream.read_exact(&mut read).await?;
    }
    loop {
        let parsed = match parse(&read) {
            Ok(parsed) => parsed,
            Err(error) => return Ok(Beginning::Broken(error, read.into())),
        };
        match parsed {
            Parsed::Absent => return Ok(Beginning::Other(read.into())),
            Parsed::Needs(bytes) => {
                if (&mut *stream).take(bytes as u64).read_buf(&mut read).await? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            Parsed::Told(told, length) => {
                let left = length.saturating_sub(read.len()) as u64;
                let skipped = tokio::io::copy(&mut stream.take(left), &mut tokio::io::sink()).await?;
                return match skipped == left {
                    true => Ok(Beginning::Header(told)),
                    false => Err(io::ErrorKind::UnexpectedEof.into()),
                };
            }
        }
    }
}

#[cfg(test)]
#[path = "proxy_header_tests.rs"]
mod tests;
