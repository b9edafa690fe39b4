//! The copy of the index: what cannot be found again on the disk, in a file of its own that is no database.
//!
//! It is written from one read transaction, table by table in the order of their keys (`recovery` says when), and read when
//! the index is damaged or gone. Lists come last: upstreams give them again. Of a long one it has the record, the file is its own.
//!
//! ```text
//! "larder index"  u32 version       12 + 4 bytes; all numbers are little-endian
//! frame, frame, …                   numbered from 0
//!
//! frame: magic (4)  table (1)  0 0 0  number u32  raw length u32  length u32  check (16)  payload
//! ```
//!
//! The check is the beginning of the SHA-256 of all that stands between magic and check, and of the payload. A payload is
//! compressed by itself and holds whole records, so that a damaged frame costs its own records and no others: the reader
//! looks for the next magic. The first frame has the time and the number of the copy, the last one how many records there
//! are. A record is `shared, rest, value length` (LEB128), the rest of the key and the value; `shared` bytes of the key are
//! those of the record before it.
//!
//! Marks of private repositories are in [`Table::Meta`], which is written first. If any frame up to its end is missing or
//! damaged, links and lists are not given back: a repository could have them without its mark, and look public (L8).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::database::Table;
use crate::oci::{Algorithm, Hasher};

const BEGIN: &[u8; 12] = b"larder index";
const VERSION: u32 = 1;
const MAGIC: [u8; 4] = [0xf1, b'L', b'i', b'x'];
const HEAD_BYTES: usize = 36;
const CHECK_BYTES: usize = 16;
/// Bytes of records in a frame, before they are compressed; one long record may be more.
const FRAME_BYTES: usize = 256 * 1024;
/// No frame is larger: a damaged length must not take all the memory.
const MAX_FRAME_BYTES: usize = 64 << 20;
const LEVEL: i32 = 1;
/// The frames that hold no table.
const FIRST: u8 = 0;
const LAST: u8 = 255;

/// The tables of a copy, in their order.
pub(super) const TABLES: [Table; 6] = [
    Table::Meta,
    Table::Pins,
    Table::Tags,
    Table::Links,
    Table::Blobs,
    Table::Lists,
];

fn code(table: Table) -> u8 {
    match table {
        Table::Meta => 1,
        Table::Pins => 2,
        Table::Tags => 3,
        Table::Links => 4,
        Table::Blobs => 5,
        Table::Lists => 6,
    }
}

/// When a copy was made, and which it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    /// Unix milliseconds.
    pub(super) made_ms: u64,
    /// Grows from copy to copy. The index has the number of its last copy: one with a lower number is older than the copy.
    pub(super) number: u64,
}

/// Writes a copy, piece by piece.
pub(super) struct Encoder<W> {
    out: W,
    number: u32,
    table: u8,
    raw: Vec<u8>,
    key: Vec<u8>,
    records: u64,
}

impl<W: FnMut(Vec<u8>) -> Result<(), E>, E: From<io::Error>> Encoder<W> {
    pub(super) fn begin(mut out: W, stamp: Stamp) -> Result<Encoder<W>, E> {
        let mut begin = BEGIN.to_vec();
        begin.extend_from_slice(&VERSION.to_le_bytes());
        out(begin)?;
        let mut encoder = Encoder {
            out,
            number: 0,
            table: FIRST,
            raw: Vec::new(),
            key: Vec::new(),
            records: 0,
        };
        encoder.raw.extend_from_slice(&stamp.made_ms.to_le_bytes());
        encoder.raw.extend_from_slice(&stamp.number.to_le_bytes());
        encoder.flush()?;
        Ok(encoder)
    }

    /// Adds a record. Tables one after the other.
    pub(super) fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), E> {
        if code(table) != self.table || self.raw.len() >= FRAME_BYTES {
            self.flush()?;
            self.table = code(table);
        }
        let shared = key.iter().zip(&self.key).take_while(|(a, b)| a == b).count();
        for number in [shared, key.len() - shared, value.len()] {
            put_number(&mut self.raw, number);
        }
        self.raw.extend_from_slice(&key[shared..]);
        self.raw.extend_from_slice(value);
        self.key.clear();
        self.key.extend_from_slice(key);
        self.records += 1;
        Ok(())
    }

    /// Ends the copy. Gives how many records it has.
    pub(super) fn end(mut self) -> Result<u64, E> {
        self.flush()?;
        self.table = LAST;
        self.raw.extend_from_slice(&self.records.to_le_bytes());
        self.flush()?;
        Ok(self.records)
    }

    fn flush(&mut self) -> Result<(), E> {
        if self.raw.is_empty() {
            return Ok(());
        }
        let payload = zstd::bulk::compress(&self.raw, LEVEL)?;
        let mut frame = MAGIC.to_vec();
        frame.extend_from_slice(&[self.table, 0, 0, 0]);
        frame.extend_from_slice(&self.number.to_le_bytes());
        for len in [self.raw.len(), payload.len()] {
            let len = u32::try_from(len).ok().filter(|_| len <= MAX_FRAME_BYTES);
            let len =
                len.ok_or_else(|| io::Error::new(io::ErrorKind::FileTooLarge, "a record of the index is too large"))?;
            frame.extend_from_slice(&len.to_le_bytes());
        }
        let check = check(&frame[MAGIC.len()..], &payload);
        frame.extend_from_slice(&check);
        frame.extend_from_slice(&payload);
        self.number += 1;
        self.raw.clear();
        self.key.clear();
        (self.out)(frame)
    }
}

fn check(head: &[u8], payload: &[u8]) -> [u8; CHECK_BYTES] {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    hasher.update(head);
    hasher.update(payload);
    let mut check = [0; CHECK_BYTES];
    for (to, from) in check.iter_mut().zip(hasher.finish().hash()) {
        *to = *from;
    }
    check
}

fn put_number(to: &mut Vec<u8>, mut number: usize) {
    while number >= 0x80 {
        to.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    to.push(number as u8);
}

fn take_number(from: &mut &[u8]) -> Option<usize> {
    let mut number = 0usize;
    for shift in (0..usize::BITS).step_by(7) {
        let (byte, rest) = from.split_first()?;
        *from = rest;
        number |= usize::from(byte & 0x7f).checked_mul(1usize.checked_shl(shift)?)?;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// The result of reading a copy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// `None` if the first frame is damaged.
    pub(super) stamp: Option<Stamp>,
    pub(super) tags: u64,
    pub(super) pins: u64,
    /// Records in all.
    pub(super) records: u64,
    /// True if all that was written is there.
    pub(super) is_whole: bool,
    /// True if links or lists were withheld, because marks of private repositories may be missing.
    pub(super) without_links: bool,
}

/// Reads a copy, damaged or not; `each` takes its records. Errors: those of `each`, and what keeps the file from being
/// read at all. What stands there is never an error.
pub(super) fn read<E: From<io::Error>>(
    file: &File,
    mut each: impl FnMut(Table, &[u8], &[u8]) -> Result<(), E>,
) -> Result<Found, E> {
    let mut found = Found::default();
    let mut at = begin_of(file)?;
    // The number that a frame must have for nothing before it to be missing.
    let (mut next, mut marks) = (0, Marks::Coming);
    let (mut is_missing, mut has_end) = (false, false);
    while let Some((frame, end)) = next_frame(file, at)? {
        at = end;
        let is_next = frame.number == next;
        // Before the marks there is the first frame and nothing else.
        marks = marks.after(&frame, is_next || (next, frame.number) == (0, 1));
        is_missing |= !is_next;
        next = frame.number.saturating_add(1);
        match frame.table {
            FIRST => found.stamp = stamp_of(&frame.raw),
            LAST => has_end = frame.raw == found.records.to_le_bytes(),
            table => {
                let Some(table) = TABLES.into_iter().find(|known| code(*known) == table) else {
                    continue;
                };
                records(&frame.raw, |key, value| {
                    found.records += 1;
                    match table {
                        Table::Tags => found.tags += 1,
                        Table::Pins => found.pins += 1,
                        Table::Links | Table::Lists if marks != Marks::Whole => {
                            found.without_links = true;
                            return Ok(());
                        }
                        _ => {}
                    }
                    each(table, key, value)
                })?;
            }
        }
    }
    found.is_whole = has_end && !is_missing;
    Ok(found)
}

/// State of the marks of private repositories while a copy is read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Marks {
    /// All frames so far are there, and more of theirs may follow.
    Coming,
    Whole,
    /// A frame is missing that may have been theirs.
    Missing,
}

impl Marks {
    fn after(self, frame: &Frame, is_next: bool) -> Marks {
        match self {
            Marks::Coming if !is_next => Marks::Missing,
            Marks::Coming if frame.table > code(Table::Meta) => Marks::Whole,
            other => other,
        }
    }
}

/// When the copy was made, without reading the rest of it. `None` if that cannot be said.
pub(super) fn stamp(file: &File) -> io::Result<Option<Stamp>> {
    let at = begin_of(file)?;
    let frame = frame_at(file, at)?;
    Ok(frame
        .filter(|(frame, _)| frame.table == FIRST)
        .and_then(|(frame, _)| stamp_of(&frame.raw)))
}

/// The value of one key. Reads up to it: for the few times that the index itself cannot be asked.
pub(super) fn find(file: &File, table: Table, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let mut value = None;
    read(file, |of, its_key, its_value| {
        if of == table && its_key == key {
            value = Some(its_value.to_vec());
        }
        Ok::<_, io::Error>(())
    })?;
    Ok(value)
}

/// Where the first frame is. Error: the copy of a newer version, which this one cannot read. A damaged beginning is none.
fn begin_of(file: &File) -> io::Result<u64> {
    let mut begin = [0; BEGIN.len() + 4];
    match read_at(file, &mut begin, 0)? {
        false => Ok(0),
        true => {
            let (name, version) = begin.split_at(BEGIN.len());
            if name == BEGIN && version != VERSION.to_le_bytes() {
                // A damaged version is followed by frames of this one.
                let frame = frame_at(file, begin.len() as u64)?;
                if frame.is_none() {
                    return Err(io::Error::new(
                        io::ErrorKind::Unsupported,
                        "it was written by another version of Larder",
                    ));
                }
            }
            Ok(begin.len() as u64)
        }
    }
}

fn stamp_of(raw: &[u8]) -> Option<Stamp> {
    let (made_ms, rest) = raw.split_first_chunk()?;
    Some(Stamp {
        made_ms: u64::from_le_bytes(*made_ms),
        number: u64::from_le_bytes(rest.try_into().ok()?),
    })
}

fn records<E>(mut raw: &[u8], mut each: impl FnMut(&[u8], &[u8]) -> Result<(), E>) -> Result<(), E> {
    let mut key: Vec<u8> = Vec::new();
    // A frame that passed its check is what was written: it ends early only if this code is wrong.
    while let Some((shared, rest, value)) = lengths(&mut raw) {
        let Some((rest, more)) = raw.split_at_checked(rest) else {
            break;
        };
        let Some((value, more)) = more.split_at_checked(value) else {
            break;
        };
        if shared > key.len() {
            break;
        }
        key.truncate(shared);
        key.extend_from_slice(rest);
        raw = more;
        each(&key, value)?;
    }
    Ok(())
}

fn lengths(raw: &mut &[u8]) -> Option<(usize, usize, usize)> {
    Some((take_number(raw)?, take_number(raw)?, take_number(raw)?))
}

struct Frame {
    table: u8,
    number: u32,
    raw: Vec<u8>,
}

/// The first good frame from `at` on, and where it ends.
fn next_frame(file: &File, mut at: u64) -> io::Result<Option<(Frame, u64)>> {
    loop {
        if let Some(found) = frame_at(file, at)? {
            return Ok(Some(found));
        }
        match next_magic(file, at + 1)? {
            Some(place) => at = place,
            None => return Ok(None),
        }
    }
}

/// `None` if what stands there is no good frame.
fn frame_at(file: &File, at: u64) -> io::Result<Option<(Frame, u64)>> {
    let mut head = [0; HEAD_BYTES];
    if !read_at(file, &mut head, at)? || head[..4] != MAGIC {
        return Ok(None);
    }
    let number = |at: usize| {
        let bytes: [u8; 4] = [head[at], head[at + 1], head[at + 2], head[at + 3]];
        u32::from_le_bytes(bytes)
    };
    let (raw_len, len) = (number(12) as usize, number(16) as usize);
    let begin = at + HEAD_BYTES as u64;
    let end = begin + len as u64;
    if raw_len > MAX_FRAME_BYTES || len > MAX_FRAME_BYTES || end > file.metadata()?.len() {
        return Ok(None);
    }
    let mut payload = vec![0; len];
    if !read_at(file, &mut payload, begin)? || check(&head[4..20], &payload) != head[20..] {
        return Ok(None);
    }
    let Ok(raw) = zstd::bulk::decompress(&payload, raw_len) else {
        return Ok(None);
    };
    let frame = Frame {
        table: head[4],
        number: number(8),
        raw,
    };
    Ok(Some((frame, end)))
}

/// The next place at which a frame may begin.
fn next_magic(file: &File, mut at: u64) -> io::Result<Option<u64>> {
    const WINDOW: usize = 64 * 1024;
    let len = file.metadata()?.len();
    let mut window = vec![0; WINDOW];
    while at + (MAGIC.len() as u64) <= len {
        let most = usize::try_from(len - at).unwrap_or(WINDOW).min(WINDOW);
        let window = &mut window[..most];
        if read_at(file, window, at)?
            && let Some(place) = window.windows(MAGIC.len()).position(|bytes| *bytes == MAGIC)
        {
            return Ok(Some(at + place as u64));
        }
        // One that is cut by the window's end is found in the next.
        at += (most - (MAGIC.len() - 1)) as u64;
    }
    Ok(None)
}

/// Returns true if all of it could be read. Bytes that the disk does not give count as damaged ones.
fn read_at(file: &File, bytes: &mut [u8], at: u64) -> io::Result<bool> {
    match file.read_exact_at(bytes, at) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof || super::disk::is_damage(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Record = (Table, Vec<u8>, Vec<u8>);

    const STAMP: Stamp = Stamp {
        made_ms: 1_800_000_000_000,
        number: 7,
    };

    fn encoded(records: &[Record]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let out = |piece: Vec<u8>| {
            bytes.extend_from_slice(&piece);
            Ok::<_, io::Error>(())
        };
        let mut encoder = Encoder::begin(out, STAMP).unwrap();
        for (table, key, value) in records {
            encoder.put(*table, key, value).unwrap();
        }
        assert_eq!(encoder.end().unwrap(), records.len() as u64);
        bytes
    }

    fn decoded(bytes: &[u8]) -> io::Result<(Found, Vec<Record>)> {
        let mut file = tempfile::tempfile().unwrap();
        io::Write::write_all(&mut file, bytes).unwrap();
        let mut records = Vec::new();
        let found = read(&file, |table, key, value| {
            records.push((table, key.to_vec(), value.to_vec()));
            Ok::<_, io::Error>(())
        })?;
        Ok((found, records))
    }

    /// Some of each table, in order, so many that each has several frames.
    fn many() -> Vec<Record> {
        let mut records = Vec::new();
        for table in TABLES {
            for n in 0..3000u32 {
                let key = format!("docker.io/library/image-{}\0{n:06}", n / 100).into_bytes();
                // Not to be compressed away.
                let mut rng = fastrand::Rng::with_seed(u64::from(n) + u64::from(code(table)) * 10_000);
                let value: Vec<u8> = (0..rng.usize(0..400)).map(|_| rng.u8(..)).collect();
                records.push((table, key, value));
            }
        }
        records
    }

    #[test]
    fn a_copy_comes_back() {
        let records = many();
        let bytes = encoded(&records);
        let (found, read) = decoded(&bytes).unwrap();
        assert!(read == records && found.is_whole && !found.without_links, "{found:?}");
        assert_eq!((found.stamp, found.tags, found.pins), (Some(STAMP), 3000, 3000));
        let (found, read) = decoded(&encoded(&[])).unwrap();
        assert!(read.is_empty() && found.is_whole && found.stamp == Some(STAMP));
        // A newer version's is no damage.
        let mut newer = bytes.clone();
        newer[12] = 2;
        assert!(decoded(&newer).unwrap().0.is_whole, "its frames say what it is");
        newer[16] = 0;
        assert_eq!(decoded(&newer).unwrap_err().kind(), io::ErrorKind::Unsupported);
    }

    /// A damaged copy gives only records that were written; and marks are never missing where links or lists are given (L8).
    #[test]
    fn damage_costs_its_own_frame() {
        let records = many();
        let bytes = encoded(&records);
        let marks = records.iter().filter(|(table, ..)| *table == Table::Meta).count();
        let rounds = if std::env::var_os("LARDER_LONG").is_some() {
            2000
        } else {
            200
        };
        let (mut rng, mut withheld) = (fastrand::Rng::with_seed(1), 0);
        for round in 0..rounds {
            let mut damaged = bytes.clone();
            let at = rng.usize(..damaged.len());
            match round % 4 {
                0 => damaged[at] = rng.u8(..),
                1 => damaged[at] ^= 1 << rng.u8(..8),
                2 => {
                    let end = (at + 4096).min(damaged.len());
                    damaged[at..end].fill(0);
                }
                _ => damaged.truncate(at),
            }
            let Ok((found, read)) = decoded(&damaged) else {
                assert!((12..52).contains(&at), "only a foreign version is an error: {at}");
                continue;
            };
            let mut all = records.iter();
            assert!(
                read.iter().all(|record| all.any(|known| known == record)),
                "{round} {found:?}"
            );
            let has_links = read
                .iter()
                .any(|(table, ..)| matches!(table, Table::Links | Table::Lists));
            let has_marks = read.iter().filter(|(table, ..)| *table == Table::Meta).count() == marks;
            assert!(has_marks || !has_links, "{round} {found:?}");
            withheld += usize::from(found.without_links);
            assert_eq!(
                found.is_whole,
                damaged == bytes || (read == records && found.is_whole),
                "{round}"
            );
            if round % 4 != 3 && (at > 100 || found.stamp.is_some()) {
                let lost = records.len() - read.len();
                assert!(found.without_links || lost <= 6000, "{round} lost {lost}");
            }
        }
        assert!(withheld > rounds / 40, "{withheld}");
    }

    proptest! {
        #[test]
        fn any_records_come_back(records in proptest::collection::vec(
            (0usize..6, proptest::collection::vec(any::<u8>(), 0..60), proptest::collection::vec(any::<u8>(), 0..300)), 0..50)
        ) {
            let mut records: Vec<Record> = records.into_iter().map(|(table, key, value)| (TABLES[table], key, value)).collect();
            records.sort_by_key(|(table, ..)| code(*table));
            let (found, read) = decoded(&encoded(&records)).unwrap();
            prop_assert!(found.is_whole);
            prop_assert_eq!(read, records);
        }

        #[test]
        fn any_bytes_are_a_copy_or_not(bytes in proptest::collection::vec(any::<u8>(), 0..600), begun: bool) {
            let mut text = if begun { encoded(&[])[..16].to_vec() } else { Vec::new() };
            text.extend_from_slice(&bytes);
            text.extend_from_slice(&MAGIC);
            text.extend_from_slice(&bytes);
            let _ = decoded(&text);
        }
    }
}
