//! The framing of `multipart/byteranges` (RFC 9110 §14.6): several ranges of one blob in one answer (R-C67).
//!
//! Pure: a plan of texts and ranges to send, and its exact length, which must be known before the first byte.

use std::ops::Range;

use bytes::Bytes;

/// What to send next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Framing, as it is.
    Text(Bytes),
    /// These bytes of the blob.
    Bytes(Range<u64>),
}

/// A whole answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub pieces: Vec<Piece>,
    /// Bytes of all pieces: the `Content-Length`.
    pub length: u64,
    /// The `Content-Type`, boundary included.
    pub content_type: String,
}

/// Parts in the order of `ranges` (half-open), each saying its `part_type` and its place among `total` bytes.
pub fn plan(ranges: &[Range<u64>], total: u64, part_type: &str) -> Plan {
    // Long enough that a blob does not hold it by chance. containers/image matches it by [A-Za-z-0-9:]+ (R-C67).
    let boundary: String = std::iter::repeat_with(fastrand::alphanumeric).take(40).collect();
    plan_with(&boundary, ranges, total, part_type)
}

fn plan_with(boundary: &str, ranges: &[Range<u64>], total: u64, part_type: &str) -> Plan {
    let mut pieces = Vec::with_capacity(ranges.len() * 2 + 1);
    let mut line_end = "";
    for range in ranges {
        let (first, last) = (range.start, range.end.saturating_sub(1));
        pieces.push(Piece::Text(Bytes::from(format!(
            "{line_end}--{boundary}\r\nContent-Type: {part_type}\r\nContent-Range: bytes {first}-{last}/{total}\r\n\r\n"
        ))));
        pieces.push(Piece::Bytes(range.clone()));
        line_end = "\r\n";
    }
    pieces.push(Piece::Text(Bytes::from(format!("{line_end}--{boundary}--\r\n"))));
    let length = pieces.iter().map(Piece::length).sum();
    Plan {
        pieces,
        length,
        content_type: format!("multipart/byteranges; boundary={boundary}"),
    }
}

impl Piece {
    pub fn length(&self) -> u64 {
        match self {
            Piece::Text(text) => text.len() as u64,
            Piece::Bytes(range) => range.end - range.start,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOB: &[u8] = b"the quick brown fox jumps over the lazy dog";

    fn sent(plan: &Plan) -> String {
        let mut out = Vec::new();
        for piece in &plan.pieces {
            match piece {
                Piece::Text(text) => out.extend_from_slice(text),
                Piece::Bytes(r) => out.extend_from_slice(&BLOB[r.start as usize..r.end as usize]),
            }
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn to_the_byte() {
        let plan = plan_with("B", &[4..9, 0..3], 43, "application/octet-stream");
        assert_eq!(
            sent(&plan),
            "--B\r\nContent-Type: application/octet-stream\r\nContent-Range: bytes 4-8/43\r\n\r\nquick\
             \r\n--B\r\nContent-Type: application/octet-stream\r\nContent-Range: bytes 0-2/43\r\n\r\nthe\
             \r\n--B--\r\n"
        );
        assert_eq!(plan.content_type, "multipart/byteranges; boundary=B");
    }

    #[test]
    fn the_length_is_exact() {
        for n in 1..40u64 {
            let ranges: Vec<_> = (0..n).map(|i| i..i + 1 + i % 3).collect();
            let plan = plan(&ranges, 43, "application/octet-stream");
            assert_eq!(plan.length, sent(&plan).len() as u64);
            assert_eq!(plan.pieces.len() as u64, 2 * n + 1);
        }
    }

    #[test]
    fn boundaries_are_alphanumeric_and_differ() {
        let boundary = |plan: Plan| plan.content_type.split_once("boundary=").unwrap().1.to_owned();
        let (one, two) = (
            boundary(plan(&[0..1, 1..2], 2, "a/b")),
            boundary(plan(&[0..1, 1..2], 2, "a/b")),
        );
        assert!(one.len() == 40 && one.bytes().all(|b| b.is_ascii_alphanumeric()));
        assert_ne!(one, two);
    }
}
