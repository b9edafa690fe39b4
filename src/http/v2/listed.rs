//! The items of a list as a JSON array, written as they are read: an answer of 16 MiB is never whole in memory.

use std::ops::Range;

use axum::body::Body;
use axum::http::HeaderValue;
use axum::http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE};
use bytes::Bytes;
use futures_util::stream;

use super::{NO_CACHE, Response, json};
use crate::http::payload::Payload;
use crate::pull::{ListReader, PullError};

/// A stretch up to so long is answered in one piece.
const ONE_PIECE_BYTES: u64 = 64 * 1024;

/// The text around the items.
pub(super) struct Document {
    pub(super) head: String,
    /// Set for tags, which become JSON by quotes alone. Other items are JSON already.
    pub(super) quoted: bool,
    pub(super) tail: &'static str,
}

impl Document {
    /// The answer with the items of `span`, `count` of them if that is known.
    pub(super) async fn answer(
        self,
        mut reader: ListReader,
        span: Range<u64>,
        count: Option<u64>,
    ) -> Result<Response, PullError> {
        let bytes = span.end - span.start;
        if bytes <= ONE_PIECE_BYTES {
            let mut text = self.head.clone().into_bytes();
            let mut is_first = true;
            while let Some(lines) = reader.next().await? {
                self.write(&lines, &mut is_first, &mut text)?;
            }
            text.extend_from_slice(self.tail.as_bytes());
            return Ok(json(text));
        }
        let around = (self.head.len() + self.tail.len()) as u64;
        // A comma for each line break but the last.
        let length = count.map(|count| around + bytes + if self.quoted { 2 * count } else { 0 } - 1);
        let mut response = Response::new(self.stream(reader));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CACHE_CONTROL, NO_CACHE);
        if let Some(length) = length {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
        Ok(response)
    }

    /// An error ends the stream, and with it the connection, short.
    fn stream(self, reader: ListReader) -> Payload {
        enum At {
            Head,
            Items { is_first: bool },
            End,
        }
        let pieces = stream::try_unfold((self, reader, At::Head), |(document, mut reader, at)| async move {
            let (text, next) = match at {
                At::Head => (document.head.clone().into_bytes(), At::Items { is_first: true }),
                At::Items { mut is_first } => match reader.next().await? {
                    Some(lines) => {
                        let mut text = Vec::with_capacity(lines.len() + lines.len() / 4);
                        document.write(&lines, &mut is_first, &mut text)?;
                        (text, At::Items { is_first })
                    }
                    None => (document.tail.as_bytes().to_vec(), At::End),
                },
                At::End => return Ok::<_, PullError>(None),
            };
            Ok(Some((Bytes::from(text), (document, reader, next))))
        });
        Body::from_stream(pieces).into()
    }

    /// Appends lines as items.
    ///
    /// Errors: a line that is no tag, where they are tags: it would be other JSON than it should be.
    fn write(&self, lines: &[u8], is_first: &mut bool, text: &mut Vec<u8>) -> Result<(), PullError> {
        let is_plain = |byte: &u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\');
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            let line = line.strip_suffix(b"\n").unwrap_or(line);
            if !std::mem::replace(is_first, false) {
                text.push(b',');
            }
            if !self.quoted {
                text.extend_from_slice(line);
                continue;
            }
            if line.is_empty() || !line.iter().all(is_plain) {
                return Err(PullError::Internal("a tag list that is damaged"));
            }
            text.push(b'"');
            text.extend_from_slice(line);
            text.push(b'"');
        }
        Ok(())
    }
}
