//! Where an archive is read from: files, one behind the other, compressed or not; or a stream.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::BUFFER;
use super::error::BundleError;
use super::unpack::{Compression, Limits, MAGIC, Unpacked};

/// Bytes that come once, or can be gone over.
pub trait Input: Read + Send {
    /// Passes over `count` bytes; returns how many there were.
    fn skip(&mut self, count: u64) -> io::Result<u64> {
        let mut buffer = vec![0; BUFFER.min(usize::try_from(count).unwrap_or(BUFFER))];
        let mut left = count;
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            match self.read(&mut buffer[..most])? {
                0 => break,
                n => left -= n as u64,
            }
        }
        Ok(count - left)
    }

    /// True if [`Input::skip`] reads nothing of what it passes over.
    fn skips_unread(&self) -> bool {
        false
    }

    /// Goes back `count` bytes if it can. `false`: it cannot, and nothing changed.
    fn back(&mut self, _count: u64) -> io::Result<bool> {
        Ok(false)
    }
}

impl Input for &[u8] {}
impl Input for io::Empty {}
impl Input for Box<dyn Input> {
    fn skip(&mut self, count: u64) -> io::Result<u64> {
        (**self).skip(count)
    }

    fn skips_unread(&self) -> bool {
        (**self).skips_unread()
    }

    fn back(&mut self, count: u64) -> io::Result<bool> {
        (**self).back(count)
    }
}

/// A stream that comes once.
pub struct Stream<R>(pub R);

impl<R: Read> Read for Stream<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl<R: Read + Send> Input for Stream<R> {}
impl<R: Read + Send> Input for Unpacked<R> {}

/// Bytes of a file from a place on. Others may read the same file at the same time.
pub(super) struct Section {
    file: Arc<File>,
    begin: u64,
    at: u64,
    left: u64,
}

impl Section {
    pub(super) fn new(file: Arc<File>, begin: u64, len: u64) -> Section {
        Section {
            file,
            begin,
            at: begin,
            left: len,
        }
    }
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.file.read_at(&mut buffer[..most], self.at)?;
        self.at += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}

impl Input for Section {
    fn skip(&mut self, count: u64) -> io::Result<u64> {
        let count = count.min(self.left);
        self.at += count;
        self.left -= count;
        Ok(count)
    }

    fn skips_unread(&self) -> bool {
        true
    }

    fn back(&mut self, count: u64) -> io::Result<bool> {
        if count > self.at - self.begin {
            return Ok(false);
        }
        self.at -= count;
        self.left += count;
        Ok(true)
    }
}

/// A stream whose first bytes were looked at.
struct Peeked {
    begins: io::Cursor<Vec<u8>>,
    rest: Box<dyn Input>,
    /// Bytes of the rest that have passed.
    past: u64,
}

impl Read for Peeked {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.begins.read(buffer)? {
            0 => {
                let count = self.rest.read(buffer)?;
                self.past += count as u64;
                Ok(count)
            }
            count => Ok(count),
        }
    }
}

impl Input for Peeked {
    fn skip(&mut self, count: u64) -> io::Result<u64> {
        let ahead = self.begins.get_ref().len() as u64 - self.begins.position();
        let ahead = ahead.min(count);
        self.begins.set_position(self.begins.position() + ahead);
        let passed = match count - ahead {
            0 => 0,
            more => self.rest.skip(more)?,
        };
        self.past += passed;
        Ok(ahead + passed)
    }

    fn skips_unread(&self) -> bool {
        self.rest.skips_unread()
    }

    fn back(&mut self, count: u64) -> io::Result<bool> {
        if count > self.past || !self.rest.back(count)? {
            return Ok(false);
        }
        self.past -= count;
        Ok(true)
    }
}

/// Reads the first bytes of a stream, at most so many, and returns them with the whole stream.
pub(super) fn peek(mut stream: Box<dyn Input>, most: u64) -> io::Result<(Vec<u8>, Box<dyn Input>)> {
    let mut begins = Vec::new();
    (&mut stream).take(most).read_to_end(&mut begins)?;
    let whole = Peeked {
        begins: io::Cursor::new(begins.clone()),
        rest: stream,
        past: 0,
    };
    Ok((begins, Box::new(whole)))
}

/// Unpacks a stream that is compressed by gzip or zstd; any other comes as it is.
pub fn unpacked(stream: Box<dyn Input>, limits: Limits) -> io::Result<Box<dyn Input>> {
    let (begins, stream) = peek(stream, MAGIC as u64)?;
    Ok(match Compression::of(&begins) {
        Some(compression) => Box::new(Unpacked::new(stream, compression, limits)?),
        None => stream,
    })
}

/// A plain file: what is held already is passed over without being read.
struct Plain {
    file: BufReader<File>,
    len: u64,
    at: u64,
}

impl Read for Plain {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.at += count as u64;
        Ok(count)
    }
}

impl Input for Plain {
    fn skip(&mut self, count: u64) -> io::Result<u64> {
        let count = count.min(self.len.saturating_sub(self.at));
        self.file
            .seek_relative(i64::try_from(count).map_err(io::Error::other)?)?;
        self.at += count;
        Ok(count)
    }

    fn skips_unread(&self) -> bool {
        true
    }

    fn back(&mut self, count: u64) -> io::Result<bool> {
        if count > self.at {
            return Ok(false);
        }
        self.at -= count;
        self.file.seek(SeekFrom::Start(self.at))?;
        Ok(true)
    }
}

/// Files one behind the other, each opened when its turn comes.
struct Files {
    paths: std::vec::IntoIter<PathBuf>,
    open: Option<Box<dyn Input>>,
}

impl Files {
    fn current(&mut self) -> io::Result<Option<&mut Box<dyn Input>>> {
        if self.open.is_none() {
            let Some(path) = self.paths.next() else { return Ok(None) };
            let open = one(&path).map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())));
            self.open = Some(open?);
        }
        Ok(self.open.as_mut())
    }
}

impl Read for Files {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(open) = self.current()? {
            match open.read(buffer)? {
                0 if !buffer.is_empty() => self.open = None,
                count => return Ok(count),
            }
        }
        Ok(0)
    }
}

impl Input for Files {
    fn skip(&mut self, count: u64) -> io::Result<u64> {
        let mut passed = 0;
        while passed < count {
            let Some(open) = self.current()? else { break };
            let more = open.skip(count - passed)?;
            passed += more;
            if passed < count {
                self.open = None;
            }
        }
        Ok(passed)
    }

    fn skips_unread(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.skips_unread())
    }

    fn back(&mut self, count: u64) -> io::Result<bool> {
        match &mut self.open {
            Some(open) => open.back(count),
            None => Ok(false),
        }
    }
}

fn one(path: &Path) -> io::Result<Box<dyn Input>> {
    let mut file = File::open(path)?;
    match compression(&mut file)? {
        Some(compression) => Ok(Box::new(Unpacked::new(file, compression, Limits::FILES)?)),
        None => {
            let len = file.metadata()?.len();
            let file = BufReader::with_capacity(BUFFER, file);
            Ok(Box::new(Plain { file, len, at: 0 }))
        }
    }
}

/// How a file is compressed, by its first bytes. It stands at its beginning afterwards.
fn compression(file: &mut File) -> io::Result<Option<Compression>> {
    let mut begins = Vec::new();
    (&mut *file).take(MAGIC as u64).read_to_end(&mut begins)?;
    file.rewind()?;
    Ok(Compression::of(&begins))
}

/// The files of a bundle: `path` itself, or its volumes `path.001` and on. Errors: there is neither.
pub fn volumes(path: &Path) -> Result<Vec<PathBuf>, BundleError> {
    if path.exists() {
        return Ok(vec![path.to_owned()]);
    }
    let volumes: Vec<PathBuf> = (1..=9999).map(|n| volume(path, n)).take_while(|p| p.exists()).collect();
    match volumes.is_empty() {
        true => {
            let why = format!(
                "there is no such file, and no first volume {}",
                volume(path, 1).display()
            );
            Err(BundleError::file("open", path)(io::Error::new(
                io::ErrorKind::NotFound,
                why,
            )))
        }
        false => Ok(volumes),
    }
}

/// `out.tar.003`
pub fn volume(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number:03}"));
    PathBuf::from(name)
}

/// An open file, which can be read in any order, or a stream.
pub enum Opened {
    File(Arc<File>),
    Stream(Box<dyn Input>),
}

impl Opened {
    pub fn standard_input() -> io::Result<Opened> {
        Opened::of(File::from(io::stdin().as_fd().try_clone_to_owned()?))
    }

    pub fn of(mut file: File) -> io::Result<Opened> {
        // Somebody may have read its beginning.
        if file.metadata()?.is_file() && file.stream_position()? == 0 {
            return Ok(Opened::File(Arc::new(file)));
        }
        Ok(Opened::Stream(Box::new(Stream(file))))
    }
}

/// The plain file as one stream, compressed or not.
pub fn whole(file: Arc<File>) -> io::Result<Box<dyn Input>> {
    let len = file.metadata()?.len();
    let mut begins = Vec::new();
    Section::new(file.clone(), 0, len.min(MAGIC as u64)).read_to_end(&mut begins)?;
    let section = Section::new(file, 0, len);
    Ok(match Compression::of(&begins) {
        Some(compression) => Box::new(Unpacked::new(section, compression, Limits::FILES)?),
        None => Box::new(section),
    })
}

/// Writes a stream as it comes to a file that has no name and is gone when nobody has it open: for what has to be read
/// more than once. `told` gets the bytes that came. Errors: it breaks off, there is no room.
pub fn spool(mut stream: Box<dyn Input>, folder: &Path, told: &dyn Fn(u64)) -> Result<Arc<File>, BundleError> {
    let mut file = nameless(folder).map_err(BundleError::file("create a temporary file in", folder))?;
    let mut buffer = vec![0; BUFFER];
    loop {
        match stream.read(&mut buffer).map_err(BundleError::reading)? {
            0 => return Ok(Arc::new(file)),
            count => {
                let written = file.write_all(&buffer[..count]);
                written.map_err(BundleError::file("write a temporary file in", folder))?;
                told(count as u64);
            }
        }
    }
}

fn nameless(folder: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    match rustix::fs::open(folder, flags, mode) {
        Ok(file) => return Ok(File::from(file)),
        // Not every file system has them.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT | Errno::INVAL) => {}
        Err(error) => return Err(error.into()),
    }
    let path = folder.join(format!(".larder-{:016x}", fastrand::u64(..)));
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::RDWR | OFlags::CLOEXEC;
    let file = rustix::fs::open(&path, flags, mode)?;
    std::fs::remove_file(&path)?;
    Ok(File::from(file))
}

/// Opens files as one stream. Errors: the first of them cannot be opened.
pub fn open(paths: &[PathBuf]) -> Result<Box<dyn Input>, BundleError> {
    let mut files = Files {
        paths: Vec::from(paths).into_iter(),
        open: None,
    };
    files.current().map_err(BundleError::Read)?;
    Ok(Box::new(files))
}
