//! The audit log: one JSON object a line, in files that are rotated by size.
//!
//! A thread of its own takes events from a queue that is bounded: no pull waits for this disk. What did not fit is counted, and
//! the count is a line of its own. Lines are handed to the kernel as soon as the queue is empty and synced at most once a second;
//! so a crash of the machine loses a second, one of the process nothing that was taken.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Map, Value};
use tokio::sync::mpsc::error::TryRecvError;

use crate::config;
use crate::events::{Actions, Event, Events, Seat, Subscription};
use crate::telemetry::clock;

/// Events that may wait: a few MiB, and some seconds of a busy proxy.
const ROOM: usize = 16_384;
const SYNC_EVERY: Duration = Duration::from_secs(1);
/// For another event, while the last are not yet synced.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// A disk that fails is told of this often.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// The log as it is written. Ends when the events do.
#[derive(Debug)]
pub struct Audit {
    thread: JoinHandle<()>,
    seat: Seat,
}

/// One that could be written: nothing is, until it begins. Dropped, it never does.
#[derive(Debug)]
pub struct Prepared {
    thread: JoinHandle<()>,
    begin: Sender<Subscription>,
}

impl Audit {
    /// Errors: the file cannot be opened for writing.
    pub fn start(settings: &config::Audit, events: &Events) -> std::io::Result<Audit> {
        Ok(Audit::prepare(settings)?.succeed(None, events))
    }

    /// All that can fail.
    ///
    /// Errors: the file cannot be opened for writing.
    pub fn prepare(settings: &config::Audit) -> std::io::Result<Prepared> {
        let (log, settings) = (Log::open(settings)?, settings.clone());
        let (begin, begun) = channel::<Subscription>();
        let thread = std::thread::Builder::new().name("audit".to_owned());
        let thread = thread.spawn(move || {
            let Ok(subscription) = begun.recv() else { return };
            // Whoever wrote before may have written, or rotated, this very file meanwhile.
            write_all(Log::open(&settings).unwrap_or(log), subscription);
        })?;
        Ok(Prepared { thread, begin })
    }

    /// Hears nothing more, and writes down what it has heard. Blocking, until that is on the disk.
    pub fn end(self, events: &Events) {
        events.leave(&self.seat);
        self.join();
    }

    /// After the events were closed: until the last is on the disk. Blocking.
    pub fn join(self) {
        let _ = self.thread.join();
    }
}

impl Prepared {
    /// Begins where the one of before ends: every event is in one of the two logs. Blocking, until the last of the old one's
    /// are on the disk; those that come meanwhile wait for the new one.
    pub fn succeed(self, before: Option<Audit>, events: &Events) -> Audit {
        let subscription = events.succeed(before.as_ref().map(|before| &before.seat), ROOM, Actions::ALL);
        let seat = subscription.seat();
        if let Some(before) = before {
            before.join();
        }
        // It waits for this: it cannot be gone.
        let _ = self.begin.send(subscription);
        Audit {
            thread: self.thread,
            seat,
        }
    }
}

fn write_all(mut log: Log, mut from: Subscription) {
    while let Some(event) = next(&mut log, &mut from) {
        let lost = from.lost();
        if lost > 0 {
            metrics::counter!("larder_audit_lost_total").increment(lost);
            log.line(&lost_line(lost));
        }
        log.line(&line(&event, SystemTime::now()));
    }
    log.flush();
    log.sync();
}

/// The next event. Before it is waited for, what is written is handed over, and synced when its second is over.
fn next(log: &mut Log, from: &mut Subscription) -> Option<Arc<Event>> {
    loop {
        match from.events.try_recv() {
            Ok(event) => return Some(event),
            Err(TryRecvError::Disconnected) => return None,
            Err(TryRecvError::Empty) => log.flush(),
        }
        match (log.is_dirty, log.synced.elapsed() >= SYNC_EVERY) {
            (false, _) => return from.events.blocking_recv(),
            (true, true) => log.sync(),
            (true, false) => std::thread::sleep(LOOK_EVERY),
        }
    }
}

/// An event as a line, without its end.
fn line(event: &Event, now: SystemTime) -> String {
    let mut fields = Map::new();
    let mut put = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            fields.insert(name.to_owned(), value);
        }
    };
    let text = |text: &Option<Arc<str>>| text.as_deref().map(Value::from);
    put("time", Some(clock::rfc3339(clock::unix_ms(now)).into()));
    put("action", Some(event.action.as_str().into()));
    put("repository", text(&event.repository));
    put("reference", text(&event.reference));
    put("digest", event.digest.map(|digest| digest.to_string().into()));
    put("media_type", text(&event.media_type));
    put("upstream", text(&event.upstream));
    put("bytes", event.bytes.map(Value::from));
    let ms = event
        .took
        .map(|took| u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
    put("ms", ms.map(Value::from));
    put("status", event.status.map(Value::from));
    put("reason", event.reason.map(Value::from));
    put("complete", event.is_complete.map(Value::from));
    put("client", text(&event.client));
    put("user", text(&event.user));
    put("user_agent", text(&event.user_agent));
    Value::Object(fields).to_string()
}

fn lost_line(lost: u64) -> String {
    let time = clock::rfc3339(clock::unix_ms(SystemTime::now()));
    serde_json::json!({ "time": time, "action": "lost", "events": lost }).to_string()
}

/// The file that is written to, and its elders.
struct Log {
    path: PathBuf,
    max_size: u64,
    keep: usize,
    file: BufWriter<File>,
    size: u64,
    synced: Instant,
    is_dirty: bool,
    told: Option<Instant>,
}

impl Log {
    fn open(settings: &config::Audit) -> std::io::Result<Log> {
        let file = open(&settings.file)?;
        Ok(Log {
            path: settings.file.clone(),
            max_size: settings.max_size,
            keep: settings.keep,
            size: file.metadata()?.len(),
            file: BufWriter::new(file),
            synced: Instant::now(),
            is_dirty: false,
            told: None,
        })
    }

    fn line(&mut self, text: &str) {
        let length = text.len() as u64 + 1;
        // A busy proxy leaves no pause.
        if self.is_dirty && self.synced.elapsed() >= SYNC_EVERY {
            self.flush();
            self.sync();
        }
        if self.size > 0 && self.size + length > self.max_size {
            let rotated = self.rotate();
            self.tell(rotated);
        }
        let written = self
            .file
            .write_all(text.as_bytes())
            .and_then(|()| self.file.write_all(b"\n"));
        self.tell(written);
        self.size += length;
        self.is_dirty = true;
    }

    fn flush(&mut self) {
        let flushed = self.file.flush();
        self.tell(flushed);
    }

    fn sync(&mut self) {
        if std::mem::take(&mut self.is_dirty) {
            let synced = self.file.get_ref().sync_data();
            self.tell(synced);
        }
        self.synced = Instant::now();
    }

    /// `audit.log` becomes `audit.log.1`, that becomes `.2`, and so on; the last goes.
    fn rotate(&mut self) -> std::io::Result<()> {
        self.file.flush()?;
        self.sync();
        for number in (1..self.keep).rev() {
            // Those that are not there yet.
            let _ = std::fs::rename(elder(&self.path, number), elder(&self.path, number + 1));
        }
        match self.keep {
            0 => std::fs::remove_file(&self.path)?,
            _ => std::fs::rename(&self.path, elder(&self.path, 1))?,
        }
        self.file = BufWriter::new(open(&self.path)?);
        self.size = 0;
        Ok(())
    }

    /// A disk that fails keeps nobody from pulling; it is said now and then.
    fn tell(&mut self, outcome: std::io::Result<()>) {
        let Err(error) = outcome else { return };
        metrics::counter!("larder_audit_errors_total").increment(1);
        if self.told.is_none_or(|at| at.elapsed() >= TELL_EVERY) {
            self.told = Some(Instant::now());
            tracing::error!(file = %self.path.display(), %error, "the audit log cannot be written");
        }
    }
}

/// Who pulls what is nobody else's business.
fn open(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

fn elder(path: &Path, number: usize) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Action;

    fn settings(folder: &Path, max_size: u64, keep: usize) -> config::Audit {
        config::Audit {
            file: folder.join("audit.log"),
            max_size,
            keep,
        }
    }

    fn read(path: &Path) -> Vec<Value> {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn pull(n: u64) -> Event {
        Event {
            repository: Some("docker.io/library/alpine".into()),
            // A client's text cannot forge a line.
            user_agent: Some("x\n{\"action\":\"evict\"}".into()),
            bytes: Some(n),
            ..Event::of(Action::Pull)
        }
    }

    #[test]
    fn every_event_is_a_line_and_old_files_go() {
        let folder = tempfile::tempdir().unwrap();
        let settings = settings(folder.path(), 1000, 2);
        let events = Events::default();
        let audit = Audit::start(&settings, &events).unwrap();
        for n in 0..40 {
            events.emit(Action::Pull, |_| pull(n));
        }
        events.close();
        audit.join();
        let files = [
            settings.file.clone(),
            elder(&settings.file, 1),
            elder(&settings.file, 2),
        ];
        assert!(!elder(&settings.file, 3).exists());
        let mut found = Vec::new();
        for file in files.iter().rev() {
            let size = std::fs::metadata(file).unwrap().len();
            assert!(size <= 1000 && size > 0, "{size}");
            found.extend(read(file));
        }
        let last: Vec<u64> = found.iter().map(|line| line["bytes"].as_u64().unwrap()).collect();
        assert!(
            last.len() >= 10 && last.windows(2).all(|two| two[0] + 1 == two[1]) && last.ends_with(&[39]),
            "{last:?}"
        );
        assert_eq!(found[0]["action"], "pull");
        // What is there is added to.
        let events = Events::default();
        let audit = Audit::start(&settings, &events).unwrap();
        let before = read(&settings.file).len();
        events.emit(Action::Evict, |bare| bare);
        events.close();
        audit.join();
        assert_eq!(read(&settings.file).len(), before + 1);
    }

    /// To another file, and with another size of the same: each event is written once, in the order in which they came.
    #[test]
    fn another_log_begins_where_the_old_one_ends() {
        let folder = tempfile::tempdir().unwrap();
        let first = settings(folder.path(), 1 << 20, 2);
        let second = config::Audit {
            file: folder.path().join("other.log"),
            ..first.clone()
        };
        let third = config::Audit {
            max_size: 600,
            ..second.clone()
        };
        let events = Events::default();
        let mut audit = Audit::start(&first, &events).unwrap();
        for (round, next) in [&second, &third].into_iter().enumerate() {
            for n in 0..5 {
                events.emit(Action::Pull, |_| pull(5 * round as u64 + n));
            }
            audit = Audit::prepare(next).unwrap().succeed(Some(audit), &events);
        }
        let bytes = |lines: Vec<Value>| -> Vec<u64> { lines.iter().map(|l| l["bytes"].as_u64().unwrap()).collect() };
        assert_eq!(bytes(read(&first.file)), [0, 1, 2, 3, 4]);
        for n in 10..13 {
            events.emit(Action::Pull, |_| pull(n));
        }
        audit.end(&events);
        assert!(!events.is_wanted(&[Action::Pull]));
        let mut all = Vec::new();
        for file in [elder(&second.file, 2), elder(&second.file, 1), second.file.clone()] {
            all.extend(bytes(read(&file)));
        }
        // What did not fit into the files that are kept is gone; nothing is there twice or out of order.
        assert!(
            all.ends_with(&[10, 11, 12]) && all.windows(2).all(|two| two[0] + 1 == two[1]),
            "{all:?}"
        );
    }

    #[test]
    fn what_is_lost_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let settings = settings(folder.path(), 1 << 20, 1);
        let events = Events::default();
        let subscription = events.subscribe(2, Actions::ALL);
        for n in 0..7 {
            events.emit(Action::Pull, |_| pull(n));
        }
        events.close();
        write_all(Log::open(&settings).unwrap(), subscription);
        let lines = read(&settings.file);
        assert_eq!((&lines[0]["action"], &lines[0]["events"]), (&"lost".into(), &5.into()));
        assert_eq!(lines.len(), 3);
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let settings = settings(&folder.path().join("none"), 1000, 1);
        assert!(Audit::start(&settings, &Events::default()).is_err());
    }
}
