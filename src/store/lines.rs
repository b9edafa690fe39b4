//! A list as bytes: one item a line. The lines of a tag list are in byte order, each once.
//!
//! A page of such a list is found by a binary search over the bytes, wherever they lie: a page of a list of 16 MiB
//! takes a dozen reads of half a KiB. There is no table of offsets that would have to be built, stored or kept in
//! memory.

use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Stretch in which lines are looked at one by one.
const NEAR_BYTES: u64 = 4 * 1024;
/// Read at each step of the search: several tags.
const STEP_BYTES: u64 = 512;
/// First and largest read of a walk.
const FIRST_READ_BYTES: u64 = 4 * 1024;
const READ_BYTES: u64 = 64 * 1024;

/// Bytes that can be read from any offset.
pub(super) trait ReadAt {
    fn len(&self) -> u64;

    /// Fills the buffer from `at` on. Errors: there are fewer bytes.
    fn read_exact_at(&self, buffer: &mut [u8], at: u64) -> Result<()>;
}

impl ReadAt for [u8] {
    fn len(&self) -> u64 {
        self.len() as u64
    }

    fn read_exact_at(&self, buffer: &mut [u8], at: u64) -> Result<()> {
        let from = usize::try_from(at).unwrap_or(usize::MAX);
        let bytes = self.get(from..from.saturating_add(buffer.len()));
        buffer.copy_from_slice(bytes.ok_or(ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// A file with the length that it had when it was opened.
impl ReadAt for (&File, u64) {
    fn len(&self) -> u64 {
        self.1
    }

    fn read_exact_at(&self, buffer: &mut [u8], at: u64) -> Result<()> {
        FileExt::read_exact_at(self.0, buffer, at)
    }
}

/// A stretch of a list, cut at lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Its bytes in the list.
    pub span: Range<u64>,
    /// How many lines it has; `None` where that is not known without reading all of them.
    pub count: Option<u64>,
    /// Its last line, where more follow.
    pub last: Option<String>,
}

/// The lines after `last`, `most` of them at most. `all` is how many there are in the whole list, if that is known.
pub(super) fn page(
    list: &(impl ReadAt + ?Sized),
    all: Option<u64>,
    last: Option<&str>,
    most: Option<u64>,
) -> Result<Page> {
    let from = match last {
        None | Some("") => 0,
        Some(last) => after(list, last.as_bytes())?,
    };
    let Some(most) = most else {
        return Ok(Page {
            span: from..list.len(),
            count: all.filter(|_| from == 0),
            last: None,
        });
    };
    let (mut to, mut count, mut end) = (from, 0, Vec::new());
    if most > 0 {
        walk(list, from..list.len(), |line| {
            (to, count) = (to + line.len() as u64 + 1, count + 1);
            if count == most {
                end = line.to_vec();
            }
            count < most
        })?;
    }
    let last = (most > 0 && to < list.len()).then(|| String::from_utf8(end).map_err(|_| damaged()));
    Ok(Page {
        span: from..to,
        count: Some(count),
        last: last.transpose()?,
    })
}

/// The offset of the first line that is greater than `last`.
fn after(list: &(impl ReadAt + ?Sized), last: &[u8]) -> Result<u64> {
    // Every line before `low` is `last` or less, every line from `high` on is greater.
    let (mut low, mut high) = (0, list.len());
    while high - low > NEAR_BYTES {
        let middle = low + (high - low) / 2;
        let window = read(list, middle, STEP_BYTES.min(high - middle))?;
        let mut lines = window.split(|byte| *byte == b'\n');
        let skipped = lines.next().map_or(0, |line| line.len() as u64 + 1);
        let start = middle + skipped;
        let line = lines.next();
        let is_whole = line.is_some_and(|line| skipped + (line.len() as u64) < window.len() as u64);
        // Lines that are longer than any tag are looked at one by one.
        let Some(line) = line.filter(|_| is_whole) else { break };
        if line <= last {
            low = start;
        } else {
            high = start;
        }
    }
    let mut at = low;
    walk(list, low..high, |line| {
        let is_before = line <= last;
        if is_before {
            at += line.len() as u64 + 1;
        }
        is_before
    })?;
    Ok(at)
}

/// Calls `each` with every line of a stretch, without its line break, until it returns false.
///
/// Errors: the stretch ends in the middle of a line, or beyond the list.
pub(super) fn walk(list: &(impl ReadAt + ?Sized), span: Range<u64>, mut each: impl FnMut(&[u8]) -> bool) -> Result<()> {
    let (mut at, mut size) = (span.start, FIRST_READ_BYTES);
    // The beginning of a line whose end has not been read.
    let mut begun: Vec<u8> = Vec::new();
    while at < span.end {
        let block = read(list, at, size.min(span.end - at))?;
        at += block.len() as u64;
        size = READ_BYTES;
        let mut rest = block.as_slice();
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let goes_on = match begun.is_empty() {
                true => each(&rest[..end]),
                false => {
                    begun.extend_from_slice(&rest[..end]);
                    each(&begun)
                }
            };
            if !goes_on {
                return Ok(());
            }
            begun.clear();
            rest = &rest[end + 1..];
        }
        begun.extend_from_slice(rest);
    }
    match begun.is_empty() {
        true => Ok(()),
        false => Err(damaged()),
    }
}

/// Whole lines from the beginning of a stretch, some 64 KiB of them; one line at least.
pub(super) fn chunk(list: &(impl ReadAt + ?Sized), span: Range<u64>) -> Result<Vec<u8>> {
    let mut size = READ_BYTES;
    loop {
        let left = span.end - span.start;
        let mut bytes = read(list, span.start, size.min(left))?;
        if let Some(end) = bytes.iter().rposition(|byte| *byte == b'\n') {
            bytes.truncate(end + 1);
            return Ok(bytes);
        }
        if size >= left {
            return if left == 0 { Ok(bytes) } else { Err(damaged()) };
        }
        size = size.saturating_mul(2);
    }
}

fn read(list: &(impl ReadAt + ?Sized), at: u64, len: u64) -> Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(len).map_err(|_| damaged())?];
    list.read_exact_at(&mut bytes, at)?;
    Ok(bytes)
}

pub(super) fn damaged() -> Error {
    Error::new(ErrorKind::InvalidData, "a list that is damaged")
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use proptest::prelude::*;

    fn packed<'a>(lines: impl IntoIterator<Item = &'a String>) -> Vec<u8> {
        lines
            .into_iter()
            .flat_map(|line| [line.as_bytes(), b"\n"].concat())
            .collect()
    }

    fn unpacked(bytes: &[u8]) -> Vec<String> {
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    /// Names with common beginnings, and so many that the search has something to search.
    fn names() -> impl Strategy<Value = std::collections::BTreeSet<String>> {
        let name = prop_oneof!["[a-c]{1,3}", "v[0-9]{1,5}", "[A-Za-z0-9_][A-Za-z0-9._-]{0,127}"];
        proptest::collection::btree_set(name, 0..900)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// A page is what it is of a sorted list in memory, from memory and from a file.
        #[test]
        fn pages_are_those_of_the_naive_list(
            names in names(),
            known: bool,
            pick: prop::sample::Index,
            odd in "[A-Za-z0-9._-]{0,4}",
            is_there: bool,
            is_first: bool,
            most in proptest::option::of(0u64..1000),
        ) {
            let all: Vec<String> = names.into_iter().collect();
            let last = match (is_first, is_there && !all.is_empty()) {
                (true, _) => None,
                (false, true) => Some(all[pick.index(all.len())].clone()),
                (false, false) => Some(odd),
            };
            let from = last.as_ref().map_or(0, |last| all.partition_point(|name| name <= last));
            let rest = &all[from..];
            let want = &rest[..most.map_or(rest.len(), |most| rest.len().min(usize::try_from(most).unwrap()))];
            let more = most != Some(0) && want.len() < rest.len();

            let bytes = packed(&all);
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&bytes).unwrap();
            let count = known.then_some(all.len() as u64);
            let found = page(bytes.as_slice(), count, last.as_deref(), most).unwrap();
            prop_assert_eq!(&page(&(&file, bytes.len() as u64), count, last.as_deref(), most).unwrap(), &found);

            let span = usize::try_from(found.span.start).unwrap()..usize::try_from(found.span.end).unwrap();
            prop_assert_eq!(&unpacked(&bytes[span]), want);
            prop_assert_eq!(found.last.as_ref(), want.last().filter(|_| more));
            if let Some(count) = found.count {
                prop_assert_eq!(count, want.len() as u64);
            } else {
                prop_assert!(most.is_none() && (!known || from > 0 || last.is_some()));
            }
        }

        /// Following the chunks gives every byte once, cut at lines.
        #[test]
        fn chunks_add_up(lines in proptest::collection::vec("[a-z]{0,40}", 0..50), long in 0usize..200_000, at in 0usize..50) {
            let mut lines = lines;
            lines.insert(at.min(lines.len()), "x".repeat(long));
            let bytes = packed(&lines);
            let mut seen = Vec::new();
            while seen.len() < bytes.len() {
                let next = chunk(bytes.as_slice(), seen.len() as u64..bytes.len() as u64).unwrap();
                prop_assert_eq!(next.last(), Some(&b'\n'));
                seen.extend(next);
            }
            prop_assert_eq!(seen, bytes);
        }

        #[test]
        fn walks_give_every_line(lines in proptest::collection::vec("[a-z]{0,300}", 0..400)) {
            let mut seen = Vec::new();
            let bytes = packed(&lines);
            walk(bytes.as_slice(), 0..bytes.len() as u64, |line| {
                seen.push(String::from_utf8(line.to_vec()).unwrap());
                true
            }).unwrap();
            prop_assert_eq!(seen, lines);
        }

        /// Any bytes are read or refused as damage; none ends the process.
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>, last in ".{0,3}", most: Option<u64>) {
            let _ = page(bytes.as_slice(), None, Some(&last), most);
            let _ = chunk(bytes.as_slice(), 0..bytes.len() as u64);
        }
    }

    #[test]
    fn damage_is_found() {
        assert_eq!(
            walk(&b"a\nb"[..], 0..3, |_| true).unwrap_err().kind(),
            ErrorKind::InvalidData
        );
        assert_eq!(
            walk(&b"a\n"[..], 0..3, |_| true).unwrap_err().kind(),
            ErrorKind::UnexpectedEof
        );
        assert_eq!(chunk(&b"ab"[..], 0..2).unwrap_err().kind(), ErrorKind::InvalidData);
    }
}
