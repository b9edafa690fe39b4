//! Bytes of a blob that the kernel has let go of, brought back into its memory off the async threads: they are sent from there,
//! like all others.
//!
//! While one run is sent the next one is on its way from the disk: neither waits for the other, and no connection waits for
//! another's disk. Nothing is copied: `sendfile(2)` to `/dev/null` fetches the pages and does nothing with them. Each reader
//! has an open file of its own for that, so that the kernel sees it read in order and reads ahead in large pieces; pages that
//! `posix_fadvise(WILLNEED)` asks for would be small ones, which cost more each time they are sent.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use rustix::fs::Advice;
use rustix::io::Errno;
use tokio::task::JoinHandle;

/// What one reader of one file is having brought.
#[derive(Default)]
pub(super) struct Recall {
    own: Option<Arc<Own>>,
    coming: Option<Coming>,
}

/// An open file of the reader's own.
struct Own {
    /// What it was opened from.
    of: Arc<File>,
    file: File,
    null: File,
}

/// A run on its way.
struct Coming {
    run: Range<u64>,
    arrival: JoinHandle<io::Result<()>>,
}

impl Recall {
    /// Whether what begins at `at` was asked for already.
    pub(super) fn has_asked(&self, at: u64) -> bool {
        self.coming.as_ref().is_some_and(|coming| coming.run.contains(&at))
    }

    /// Asks for a run of `file`. Does not wait.
    pub(super) fn ask(&mut self, file: &Arc<File>, run: Range<u64>) {
        let own = match &self.own {
            Some(own) if Arc::ptr_eq(&own.of, file) => Some(own.clone()),
            _ => None,
        };
        let (of, span) = (file.clone(), run.clone());
        let own = own.map_or_else(|| Own::open(of).map(Arc::new), Ok);
        self.own = own.as_ref().ok().cloned();
        let arrival = tokio::task::spawn_blocking(move || own?.fetch(span));
        self.coming = Some(Coming { run, arrival });
    }

    /// Waits for what was asked for, and tells up to where it reaches. `None`: it cannot be had this way.
    pub(super) async fn arrived(&mut self) -> Option<u64> {
        let coming = self.coming.as_mut()?;
        let outcome = (&mut coming.arrival).await;
        let end = self.coming.take()?.run.end;
        match outcome {
            Ok(Ok(())) => Some(end),
            // Whoever reads it then meets the disk's own error, and tells of that.
            Ok(Err(error)) => {
                tracing::debug!(%error, "bytes could not be brought back");
                None
            }
            Err(_) => None,
        }
    }
}

impl Own {
    fn open(of: Arc<File>) -> io::Result<Own> {
        let file = File::open(format!("/proc/self/fd/{}", of.as_raw_fd()))?;
        let null = File::options().write(true).open("/dev/null")?;
        // Advice: it reads ahead twice as far.
        let _ = rustix::fs::fadvise(&file, 0, None, Advice::Sequential);
        Ok(Own { of, file, null })
    }

    /// Blocking. `UnexpectedEof`: the file ends within the run.
    fn fetch(&self, run: Range<u64>) -> io::Result<()> {
        let mut at = run.start;
        while at < run.end {
            let want = usize::try_from(run.end - at).unwrap_or(usize::MAX);
            match rustix::fs::sendfile(&self.null, &self.file, Some(&mut at), want) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    fn file(bytes: usize) -> Arc<File> {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&vec![7; bytes], 0).unwrap();
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        Arc::new(file)
    }

    #[tokio::test]
    async fn runs_come_and_the_end_of_the_file_is_no_run() {
        let file = file(3_000_000);
        let mut recall = Recall::default();
        assert_eq!(recall.arrived().await, None, "nothing was asked for");
        recall.ask(&file, 0..1_000_000);
        assert!(recall.has_asked(0) && recall.has_asked(999_999) && !recall.has_asked(1_000_000));
        assert_eq!(recall.arrived().await, Some(1_000_000));
        assert!(!recall.has_asked(0), "it has been handed over");
        recall.ask(&file, 1_000_000..3_000_000);
        assert_eq!(recall.arrived().await, Some(3_000_000));
        recall.ask(&file, 2_999_999..3_000_001);
        assert_eq!(recall.arrived().await, None);
    }

    #[tokio::test]
    async fn another_file_is_another_file() {
        let (long, short) = (file(2), file(1));
        let mut recall = Recall::default();
        recall.ask(&long, 0..2);
        assert_eq!(recall.arrived().await, Some(2));
        recall.ask(&short, 0..2);
        assert_eq!(recall.arrived().await, None);
    }
}
