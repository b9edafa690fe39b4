//! Files, one behind the other: the same files give the same bytes.

use std::io::{self, Write};

use tar::{EntryType, Header};

use super::{BLOCK, padding};

/// Time 0, owner 0, mode 0644. Names and sizes that no old header holds take GNU's form.
pub struct Writer<W> {
    sink: W,
    /// Of the file that is being written: what is still to come, and what fills its last block.
    left: u64,
    padding: u64,
}

impl<W: Write> Writer<W> {
    pub fn new(sink: W) -> Writer<W> {
        Writer {
            sink,
            left: 0,
            padding: 0,
        }
    }

    /// Begins a file of `size` bytes. Error: the one before it is not complete.
    pub fn begin(&mut self, name: &str, size: u64) -> io::Result<()> {
        if self.left > 0 {
            return Err(io::Error::other(format!("{} bytes of a file are missing", self.left)));
        }
        if name.len() > 100 {
            let text = [name.as_bytes(), b"\0"].concat();
            self.header(EntryType::GNULongName, "././@LongLink", text.len() as u64)?;
            self.sink.write_all(&text)?;
            self.fill(padding(text.len() as u64))?;
        }
        let short: String = name.chars().take(100).collect();
        self.header(EntryType::Regular, &short, size)?;
        (self.left, self.padding) = (size, padding(size));
        self.finish_file()
    }

    fn header(&mut self, kind: EntryType, name: &str, size: u64) -> io::Result<()> {
        let mut header = Header::new_gnu();
        let place = &mut header.as_old_mut().name;
        for (to, from) in place.iter_mut().zip(name.bytes()) {
            *to = from;
        }
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(size);
        header.set_cksum();
        self.sink.write_all(header.as_bytes())
    }

    /// Bytes of the file that was begun. Error: more than were announced.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let left = self.left.checked_sub(bytes.len() as u64);
        self.left = left.ok_or_else(|| io::Error::other("a file has more bytes than were announced"))?;
        self.sink.write_all(bytes)?;
        self.finish_file()
    }

    fn finish_file(&mut self) -> io::Result<()> {
        if self.left == 0 {
            let padding = std::mem::take(&mut self.padding);
            self.fill(padding)?;
        }
        Ok(())
    }

    fn fill(&mut self, count: u64) -> io::Result<()> {
        let zeros = [0; BLOCK as usize];
        let count = usize::try_from(count).unwrap_or(0).min(zeros.len());
        self.sink.write_all(&zeros[..count])
    }

    /// A whole file.
    pub fn file(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.begin(name, bytes.len() as u64)?;
        if bytes.is_empty() { Ok(()) } else { self.write(bytes) }
    }

    /// Ends the archive; another may follow.
    pub fn end(&mut self) -> io::Result<()> {
        if self.left > 0 {
            return Err(io::Error::other(format!("{} bytes of a file are missing", self.left)));
        }
        self.fill(BLOCK)?;
        self.fill(BLOCK)?;
        self.sink.flush()
    }

    pub fn sink(&mut self) -> &mut W {
        &mut self.sink
    }

    pub fn into_sink(self) -> W {
        self.sink
    }
}
