//! The input of `larder bundle import` and `inspect`: a bundle or its volumes, an archive of another tool, or
//! standard input.

use std::fs::File;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::bundle::foreign::{self, Archive, Naming, Told};
use crate::bundle::input::Opened;
use crate::bundle::report::NotTaken;
use crate::bundle::{BundleError, Input, UnpackLimits, input, pipe};

/// Stands for standard input.
const STANDARD: &str = "-";

/// A bundle, or what is passed on as one.
pub struct Source {
    pub input: Box<dyn Input>,
    /// Bytes to come; 0 where nobody knows.
    pub total: u64,
    /// Inside an archive of another tool, and not taken; `None` for a bundle.
    pub foreign: Option<Vec<NotTaken>>,
}

/// Names for an archive of another tool.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Names {
    /// The name for what is no bundle: docker.io/library/alpine:3.22; without a tag for several images, which keep
    /// their own
    #[arg(long = "as", value_name = "NAME")]
    pub name: Option<String>,
    /// Take this image alone out of what is no bundle: its name in the archive, or its digest or how that begins;
    /// repeatable
    #[arg(long, value_name = "IMAGE")]
    pub only: Vec<String>,
}

impl Names {
    pub fn naming(&self) -> Naming {
        Naming {
            name: self.name.clone(),
            only: self.only.clone(),
        }
    }
}

/// Checks what the command line alone can get wrong. Blocking: with several files, each one's beginning is read.
pub fn check(files: &[PathBuf], names: &Names) -> Result<(), String> {
    if let Some(name) = &names.name {
        foreign::check_name(name).map_err(|error| error.to_string())?;
    }
    if files.len() < 2 {
        return Ok(());
    }
    let naming = names.naming();
    // A pipe would be waited for.
    let is_archive = |file: &&PathBuf| !is_stream(file) && foreign::is_foreign(file);
    match files.iter().find(is_archive) {
        None if naming.is_given() => Err("--as and --only are for one archive; give one".to_owned()),
        None => Ok(()),
        Some(file) => Err(format!(
            "{} is another tool's archive, of which one is imported at a time: only the volumes of a bundle are given together",
            file.display()
        )),
    }
}

/// Opens it. Blocking: an archive of another tool is looked through. `told` gets the bytes that were read meanwhile.
pub fn open(files: &[PathBuf], naming: &Naming, told: Told) -> Result<Source, String> {
    open_source(files, naming, told).map_err(|error| error.to_string())
}

fn open_source(files: &[PathBuf], naming: &Naming, told: Told) -> Result<Source, BundleError> {
    let standard = Path::new(STANDARD);
    match files {
        [file] if file == standard => {
            if std::io::stdin().is_terminal() {
                return Err(BundleError::Bad(
                    "- is standard input, which is a terminal: send an archive into it".to_owned(),
                ));
            }
            return open_opened(Opened::standard_input().map_err(BundleError::Read)?, naming, told);
        }
        // `<(docker save …)`: read once, as standard input is.
        [file] if is_stream(file) => {
            let opened = File::open(file).and_then(Opened::of);
            return open_opened(opened.map_err(BundleError::Read)?, naming, told);
        }
        [file] if naming.is_given() || foreign::is_foreign(file) => {
            return Ok(pass_on(foreign::open(file, naming, told)?));
        }
        _ => {}
    }
    if files.iter().any(|file| file == standard) {
        return Err(BundleError::Bad(
            "- is standard input, and no volume among others".to_owned(),
        ));
    }
    let mut volumes = Vec::new();
    for file in files {
        volumes.extend(input::volumes(file)?);
    }
    let sizes = volumes.iter().filter_map(|file| file.metadata().ok());
    Ok(Source {
        total: sizes.map(|meta| meta.len()).sum(),
        input: input::open(&volumes)?,
        foreign: None,
    })
}

fn is_stream(path: &Path) -> bool {
    path.metadata().is_ok_and(|meta| !meta.is_file() && !meta.is_dir())
}

fn open_opened(opened: Opened, naming: &Naming, told: Told) -> Result<Source, BundleError> {
    let stream = match opened {
        Opened::File(file) if naming.is_given() || foreign::is_foreign_file(&file) => {
            return Ok(pass_on(foreign::open_file(file, naming, told)?));
        }
        Opened::File(file) => {
            return Ok(Source {
                total: file.metadata().map_or(0, |meta| meta.len()),
                input: input::whole(file).map_err(BundleError::Read)?,
                foreign: None,
            });
        }
        Opened::Stream(stream) => stream,
    };
    let (is_foreign, stream) = foreign::peek_foreign(stream).map_err(BundleError::Read)?;
    if naming.is_given() || is_foreign {
        // An archive of another tool says at its end what is inside.
        let file = input::spool(stream, &temporary(), &*told)?;
        return Ok(pass_on(foreign::open_file(file, naming, told)?));
    }
    Ok(Source {
        total: 0,
        input: input::unpacked(stream, UnpackLimits::FILES).map_err(BundleError::Read)?,
        foreign: None,
    })
}

fn pass_on(archive: Archive) -> Source {
    let (sender, reader) = pipe::pipe();
    let source = Source {
        total: archive.stream_bytes(),
        foreign: Some(archive.not_taken().to_vec()),
        input: Box::new(reader),
    };
    std::thread::spawn(move || archive.write(sender));
    source
}

/// For large files: `/tmp` is in memory on many machines.
fn temporary() -> PathBuf {
    match std::env::var_os("TMPDIR") {
        Some(folder) if !folder.is_empty() => PathBuf::from(folder),
        _ => PathBuf::from("/var/tmp"),
    }
}

/// Nobody is told.
pub fn silent() -> Told {
    Arc::new(|_| {})
}
