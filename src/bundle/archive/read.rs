//! An archive as a sequence of entries, each checked before anything is made of it.
//!
//! What is refused: devices and everything else but files, folders and links (which the caller may refuse); sparse
//! files; names that two headers tell differently; sizes that two headers tell differently; endless headers; a wrong
//! checksum; bytes behind the end.

use std::collections::BTreeMap;
use std::io::Read;

use tar::{EntryType, Header};

use super::super::error::BundleError;
use super::super::input::Input;
use super::{BLOCK, MAX_FILE_BYTES, padding};

/// Most bytes of the headers that stand before one entry.
const MAX_EXTRA: u64 = 64 << 10;
/// Zeros behind the end: writers fill their last record.
const MAX_TRAIL: u64 = 1 << 20;

/// What stands next in an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    pub kind: Kind,
    /// Bytes of a file, which are read or skipped next; 0 for anything else.
    pub size: u64,
    /// Where those begin, in bytes from the beginning.
    pub offset: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    Folder,
    /// A symbolic link, and where it leads from the folder that it is in.
    Link(String),
    /// A hard link, and which entry it leads to: its whole name.
    HardLink(String),
}

/// Reads one archive behind the other from one input.
pub struct Reader<'a> {
    input: &'a mut dyn Input,
    at: u64,
    /// Of the present entry.
    left: u64,
    padding: u64,
    /// A block that was looked at too early.
    ahead: Option<[u8; BLOCK as usize]>,
}

/// What was told of an entry before its own header.
#[derive(Default)]
struct Extra {
    name: Option<String>,
    link: Option<String>,
    pax: BTreeMap<String, String>,
    bytes: u64,
}

impl<'a> Reader<'a> {
    pub fn new(input: &'a mut dyn Input) -> Reader<'a> {
        Reader {
            input,
            at: 0,
            left: 0,
            padding: 0,
            ahead: None,
        }
    }

    /// The next entry; `None` at the end of the archive. What was left of the one before is skipped.
    pub fn entry(&mut self) -> Result<Option<Entry>, BundleError> {
        self.skip(self.left)?;
        let mut extra = Extra::default();
        loop {
            let Some(header) = self.header()? else {
                let second = self.block()?;
                if extra.bytes > 0 || second.iter().any(|b| *b != 0) {
                    return Err(self.hostile("a single empty block, where two end an archive"));
                }
                return Ok(None);
            };
            let size = header
                .entry_size()
                .map_err(|error| self.hostile(format!("a size that is none: {error}")))?;
            let kind = header.entry_type();
            // Other readers take such a header for a file where its magic is neither of both: they would see other names.
            let is_extension = matches!(
                kind,
                EntryType::GNULongName | EntryType::GNULongLink | EntryType::XHeader | EntryType::XGlobalHeader
            );
            if is_extension && header.as_gnu().is_none() && header.as_ustar().is_none() {
                return Err(self.hostile("an extended header without the magic of ustar or GNU"));
            }
            match kind {
                EntryType::GNULongName => extra.name = Some(self.long(&mut extra.bytes, size, extra.name.is_some())?),
                EntryType::GNULongLink => extra.link = Some(self.long(&mut extra.bytes, size, extra.link.is_some())?),
                EntryType::XHeader => {
                    if !extra.pax.is_empty() {
                        return Err(self.hostile("two extended headers for one entry"));
                    }
                    let text = self.extra(&mut extra.bytes, size)?;
                    extra.pax = pax(&text).map_err(|why| self.hostile(why))?;
                }
                EntryType::XGlobalHeader => {
                    let text = self.extra(&mut extra.bytes, size)?;
                    let keys = pax(&text).map_err(|why| self.hostile(why))?;
                    if let Some(key) = keys.keys().find(|key| changes_meaning(key)) {
                        return Err(self.hostile(format!("a global header that sets {key:?}")));
                    }
                }
                kind => return self.settle(&header, kind, size, extra).map(Some),
            }
        }
    }

    fn settle(&mut self, header: &Header, kind: EntryType, mut size: u64, extra: Extra) -> Result<Entry, BundleError> {
        if let Some(key) = extra.pax.keys().find(|key| key.starts_with("GNU.sparse")) {
            return Err(self.hostile(format!("a sparse file ({key})")));
        }
        let own = text(&header.path_bytes()).map_err(|why| self.hostile(why))?;
        let name = match (extra.name, extra.pax.get("path")) {
            (Some(long), Some(pax)) if long != *pax => {
                return Err(self.hostile(format!("one entry with two names, {long:?} and {pax:?}")));
            }
            (Some(name), _) => name,
            (None, Some(name)) => name.clone(),
            (None, None) => own,
        };
        if name.is_empty() || name.contains('\0') {
            return Err(self.hostile(format!("the name {name:?}")));
        }
        if let Some(told) = extra.pax.get("size") {
            let told: u64 = told
                .parse()
                .map_err(|_| self.hostile(format!("{name:?} with the size {told:?}")))?;
            // Only what an old header cannot hold may be left out there: readers that know one of the two would see
            // different files.
            let fits_old = told < 8 << 30;
            if told != size && (fits_old || size != 0) {
                return Err(self.hostile(format!("{name:?} has {size} bytes by one header and {told} by another")));
            }
            size = told;
        }
        let kind = match kind {
            EntryType::Regular | EntryType::Continuous if name.ends_with('/') => Kind::Folder,
            EntryType::Regular | EntryType::Continuous => Kind::File,
            EntryType::Directory => Kind::Folder,
            EntryType::Link | EntryType::Symlink => {
                let own = header.link_name_bytes().unwrap_or_default();
                let own = text(&own).map_err(|why| self.hostile(why))?;
                let target = extra.link.or(extra.pax.get("linkpath").cloned()).unwrap_or(own);
                match kind {
                    EntryType::Symlink => Kind::Link(target),
                    _ => Kind::HardLink(target),
                }
            }
            other => {
                let what = char::from(other.as_byte());
                return Err(self.hostile(format!("{name:?} is of kind {what:?}: only files may be inside")));
            }
        };
        if size > MAX_FILE_BYTES {
            return Err(self.hostile(format!("{name:?} of {size} bytes, at most {MAX_FILE_BYTES}")));
        }
        if kind != Kind::File && size != 0 {
            return Err(self.hostile(format!("{name:?} is no file and has {size} bytes")));
        }
        (self.left, self.padding) = (size, padding(size));
        if size == 0 {
            self.padding = 0;
        }
        Ok(Entry {
            name,
            kind,
            size,
            offset: self.at,
        })
    }

    /// Some bytes of the present entry; 0 at its end. Error: the input ends before.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, BundleError> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let count = self.input.read(&mut buffer[..most]).map_err(BundleError::reading)?;
        if count == 0 {
            return Err(self.short());
        }
        self.at += count as u64;
        self.left -= count as u64;
        if self.left == 0 {
            let padding = std::mem::take(&mut self.padding);
            self.pass(padding)?;
        }
        Ok(count)
    }

    /// Fills the buffer from the present entry, as far as that goes.
    pub fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, BundleError> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.read(&mut buffer[filled..])? {
                0 => break,
                count => filled += count,
            }
        }
        Ok(filled)
    }

    /// All of the present entry, which has at most `limit` bytes.
    pub fn all(&mut self, limit: u64) -> Result<Vec<u8>, BundleError> {
        if self.left > limit {
            let left = self.left;
            return Err(self.hostile(format!("an entry of {left} bytes, where at most {limit} are expected")));
        }
        // Grows with what comes, not with what was announced.
        let mut bytes = Vec::new();
        let mut buffer = vec![0; usize::try_from(self.left).unwrap_or(0).min(super::super::BUFFER)];
        loop {
            match self.read(&mut buffer)? {
                0 => return Ok(bytes),
                count => bytes.extend_from_slice(&buffer[..count]),
            }
        }
    }

    /// True if [`Reader::skip`] reads nothing of what it passes over.
    pub fn skips_unread(&self) -> bool {
        self.input.skips_unread()
    }

    /// Passes over so many bytes of the present entry, at most what is left of it.
    pub fn skip(&mut self, count: u64) -> Result<(), BundleError> {
        let count = count.min(self.left);
        self.pass(count)?;
        self.left -= count;
        if self.left == 0 {
            let padding = std::mem::take(&mut self.padding);
            self.pass(padding)?;
        }
        Ok(())
    }

    /// Bytes of the present entry that were not read yet.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Whether the present entry, just read to its end, can be read again from the beginning; then it is.
    pub fn again(&mut self, size: u64) -> Result<bool, BundleError> {
        let back = size.saturating_add(padding(size));
        if self.left > 0 || !self.input.back(back).map_err(BundleError::reading)? {
            return Ok(false);
        }
        self.at -= back;
        (self.left, self.padding) = (size, padding(size));
        Ok(true)
    }

    /// Whether another archive follows. Zeros in between are passed over: writers fill their last record.
    pub fn more(&mut self) -> Result<bool, BundleError> {
        if self.ahead.is_some() {
            return Ok(true);
        }
        let mut trail = 0;
        while trail <= MAX_TRAIL {
            let mut block = [0; BLOCK as usize];
            let mut filled = 0;
            while filled < block.len() {
                match self.input.read(&mut block[filled..]).map_err(BundleError::reading)? {
                    0 if filled == 0 => return Ok(false),
                    0 => return Err(self.hostile("more bytes behind its end")),
                    count => filled += count,
                }
            }
            trail += BLOCK;
            if block.iter().any(|b| *b != 0) {
                self.ahead = Some(block);
                return Ok(true);
            }
        }
        Err(self.hostile("more bytes behind its end"))
    }

    /// The input ends here, but for zeros. Error: more stands behind the last archive.
    pub fn end(&mut self) -> Result<(), BundleError> {
        match self.more()? {
            true => Err(self.hostile("more bytes behind its end")),
            false => Ok(()),
        }
    }

    fn pass(&mut self, count: u64) -> Result<(), BundleError> {
        let passed = self.input.skip(count).map_err(BundleError::reading)?;
        self.at += passed;
        if passed < count { Err(self.short()) } else { Ok(()) }
    }

    fn block(&mut self) -> Result<[u8; BLOCK as usize], BundleError> {
        if let Some(block) = self.ahead.take() {
            self.at += BLOCK;
            return Ok(block);
        }
        let mut block = [0; BLOCK as usize];
        let mut filled = 0;
        while filled < block.len() {
            match self.input.read(&mut block[filled..]).map_err(BundleError::reading)? {
                0 => return Err(self.short()),
                count => filled += count,
            }
        }
        self.at += BLOCK;
        Ok(block)
    }

    /// `None` for an empty block.
    fn header(&mut self) -> Result<Option<Header>, BundleError> {
        let block = self.block()?;
        if block.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        match is_header(&block) {
            true => Ok(Some(Header::from_byte_slice(&block).clone())),
            false => Err(self.hostile("a header whose checksum is wrong, or no tar archive at all")),
        }
    }

    fn long(&mut self, bytes: &mut u64, size: u64, known: bool) -> Result<String, BundleError> {
        if known {
            return Err(self.hostile("two long names for one entry"));
        }
        let found = self.extra(bytes, size)?;
        let found = found.strip_suffix(b"\0").unwrap_or(&found);
        text(found).map_err(|why| self.hostile(why))
    }

    /// The content of a header that stands before an entry.
    fn extra(&mut self, bytes: &mut u64, size: u64) -> Result<Vec<u8>, BundleError> {
        *bytes = bytes.saturating_add(BLOCK).saturating_add(size);
        if *bytes > MAX_EXTRA {
            return Err(self.hostile(format!("more than {MAX_EXTRA} bytes of headers for one entry")));
        }
        (self.left, self.padding) = (size, padding(size));
        self.all(MAX_EXTRA)
    }

    fn hostile(&self, why: impl std::fmt::Display) -> BundleError {
        BundleError::Hostile(format!("at byte {}: {why}", self.at))
    }

    fn short(&self) -> BundleError {
        BundleError::Short(format!("after {} bytes", self.at))
    }
}

impl Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        Reader::read(self, buffer).map_err(|error| std::io::Error::other(error.to_string()))
    }
}

/// True for the header of an entry. Headers from before ustar (V7) have no magic: the checksum is all that marks them.
pub fn is_header(block: &[u8; BLOCK as usize]) -> bool {
    // The checksum's own field counts as blanks.
    let sum: u32 = block.iter().enumerate().fold(0, |sum, (at, byte)| {
        sum + u32::from(if (148..156).contains(&at) { b' ' } else { *byte })
    });
    Header::from_byte_slice(block).cksum().is_ok_and(|told| told == sum)
}

fn text(bytes: &[u8]) -> Result<String, String> {
    String::from_utf8(bytes.to_vec()).map_err(|_| "a name that is no UTF-8".to_owned())
}

fn changes_meaning(key: &str) -> bool {
    matches!(key, "path" | "size" | "linkpath") || key.starts_with("GNU.sparse")
}

/// `<length> <key>=<value>\n`, again and again (POSIX pax).
fn pax(bytes: &[u8]) -> Result<BTreeMap<String, String>, String> {
    let bad = || "an extended header that cannot be read".to_owned();
    let mut keys = BTreeMap::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let blank = rest.iter().position(|b| *b == b' ').ok_or_else(bad)?;
        let digits = std::str::from_utf8(&rest[..blank]).map_err(|_| bad())?;
        let length: usize = digits.parse().map_err(|_| bad())?;
        if length <= blank + 1 || length > rest.len() {
            return Err(bad());
        }
        let (record, more) = rest.split_at(length);
        let record = record[blank + 1..].strip_suffix(b"\n").ok_or_else(bad)?;
        let equals = record.iter().position(|b| *b == b'=').ok_or_else(bad)?;
        let key = String::from_utf8_lossy(&record[..equals]).into_owned();
        // Only what changes the meaning has to be text; extended attributes are any bytes.
        let value = match std::str::from_utf8(&record[equals + 1..]) {
            Ok(value) => value.to_owned(),
            Err(_) if changes_meaning(&key) => return Err(bad()),
            Err(_) => String::new(),
        };
        if keys.insert(key.clone(), value).is_some() {
            return Err(format!("an extended header that sets {key:?} twice"));
        }
        rest = more;
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_fills_a_block_at_any_size() {
        for (size, fill) in [(0, 0), (1, 511), (511, 1), (512, 0), (513, 511)] {
            assert_eq!((padding(size), padding((1 << 62) + size)), (fill, fill));
        }
        assert_eq!((padding(u64::MAX), padding(u64::MAX - 511)), (1, 0));
    }

    /// A header with an extended one before it that tells the size, as for files of 8 GiB and more.
    fn told(size: &str) -> Vec<u8> {
        let line = |length: usize| format!("{length} size={size}\n");
        let mut length = line(0).len();
        while line(length).len() != length {
            length = line(length).len();
        }
        let block = |kind: EntryType, name: &str, size: u64| {
            let mut header = Header::new_ustar();
            header.set_path(name).unwrap();
            header.set_entry_type(kind);
            header.set_size(size);
            header.set_cksum();
            *header.as_bytes()
        };
        let mut archive = block(EntryType::XHeader, "pax", length as u64).to_vec();
        archive.extend(line(length).bytes());
        archive.resize(1024, 0);
        archive.extend(block(EntryType::Regular, "file", 0));
        archive
    }

    #[test]
    fn a_size_near_2_to_the_64th_is_no_file() {
        for size in [u64::MAX, u64::MAX - 1, u64::MAX - 511, 1 << 63, (1 << 62) + 1] {
            let archive = told(&size.to_string());
            let mut input = &archive[..];
            let error = Reader::new(&mut input).entry().unwrap_err().to_string();
            assert!(
                error.contains(&size.to_string()) && error.contains("at most"),
                "{error}"
            );
        }
        // A size that a file could have is found wrong where the archive ends.
        let archive = told(&(1u64 << 62).to_string());
        let mut input = &archive[..];
        let mut reader = Reader::new(&mut input);
        assert_eq!(reader.entry().unwrap().unwrap().size, 1 << 62);
        assert!(reader.entry().is_err());
    }
}
