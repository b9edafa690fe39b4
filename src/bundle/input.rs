//! Where an archive is read from: files, one behind the other, compressed or not; or a stream.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::BUFFER;
use super::error::BundleError;

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

    fn back(&mut self, count: u64) -> io::Result<bool> {
        match &mut self.open {
            Some(open) => open.back(count),
            None => Ok(false),
        }
    }
}

/// The largest window of a compressed archive, as a power of two: 8 MiB, what `zstd -19` takes.
const WINDOW_LOG: u32 = 23;

fn one(path: &Path) -> io::Result<Box<dyn Input>> {
    let mut file = File::open(path)?;
    let mut magic = [0; 4];
    let mut count = 0;
    while count < magic.len() {
        match file.read(&mut magic[count..])? {
            0 => break,
            n => count += n,
        }
    }
    file.rewind()?;
    match magic {
        [0x28, 0xb5, 0x2f, 0xfd] => {
            let mut decoder = zstd::Decoder::new(file)?;
            decoder.window_log_max(WINDOW_LOG)?;
            Ok(Box::new(Stream(decoder)))
        }
        [0x1f, 0x8b, ..] => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "it is compressed by gzip: unpack it first (gunzip)",
        )),
        _ => {
            let len = file.metadata()?.len();
            let file = BufReader::with_capacity(BUFFER, file);
            Ok(Box::new(Plain { file, len, at: 0 }))
        }
    }
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

/// Opens files as one stream. Errors: the first of them cannot be opened.
pub fn open(paths: &[PathBuf]) -> Result<Box<dyn Input>, BundleError> {
    let mut files = Files {
        paths: Vec::from(paths).into_iter(),
        open: None,
    };
    files.current().map_err(BundleError::Read)?;
    Ok(Box::new(files))
}
