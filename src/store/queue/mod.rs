//! A queue on disk, bounded in bytes: what goes in at one end is taken from the other, in order, until it is acknowledged.
//!
//! Walk: [`Queue::put`] gathers lines, [`Queue::flush`] hands them to the kernel at the end of the last segment, and
//! [`Queue::sync`] to the disk. [`Queue::peek`] reads from the cursor on; [`Queue::done`] moves the cursor behind what was
//! delivered. Where the limit would be passed the oldest segment goes, an eighth of the limit or less, and who puts in is told how
//! much that was.
//!
//! A crash of the process loses what was not flushed, one of the machine what was not synced. What was delivered is
//! delivered once more if the cursor was not yet written down: at least once, never out of order. A torn last line goes when the
//! queue is opened; damage inside is passed over, line by line, and counted.

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod line;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

pub use line::Line;
use line::{MAX_LINE, Step, step};

use super::keys::QueueTree;
use super::{Store, StoreError};

/// Lines are handed to the kernel when there are so many bytes of them.
const FLUSH_AT: usize = 64 << 10;
/// Segments that the limit is divided into, and what one may have at most, bytes.
const SEGMENTS: u64 = 8;
const MAX_SEGMENT: u64 = 4 << 20;
/// What is read at once, bytes.
const READ: usize = 4 * MAX_LINE;
/// A segment that was delivered in full is kept for the next lines if it is smaller than this.
const WORTH_KEEPING: u64 = 64 << 10;

/// A place in the queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    segment: u64,
    /// Bytes from the segment's beginning.
    offset: u64,
}

/// Lines that were not yet delivered, the oldest first.
#[derive(Debug, Default)]
pub struct Batch {
    pub lines: Vec<Line>,
    /// Lines in between that cannot be read.
    pub damaged: u64,
    /// Behind each of `lines`.
    ends: Vec<Place>,
    /// Behind everything, damage included.
    end: Place,
}

/// What is in a queue, handed to the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    pub events: u64,
    pub bytes: u64,
    /// When the oldest came, Unix milliseconds.
    pub oldest_ms: Option<u64>,
}

/// What was put in could not be written, and is gone.
#[derive(Debug, thiserror::Error)]
#[error("{source}")]
pub struct Lost {
    pub events: u64,
    pub source: io::Error,
}

/// One queue. Its folder has one owner, as the store's has.
#[derive(Debug)]
pub struct Queue {
    tree: QueueTree,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Bytes of all segments together.
    max_bytes: u64,
    /// Oldest first.
    segments: VecDeque<Segment>,
    /// The last segment, open.
    file: Option<File>,
    /// Up to here it is delivered.
    head: Place,
    /// Not yet handed to the kernel.
    buffer: Vec<u8>,
    buffered: u64,
    is_dirty: bool,
    /// A file came that the folder's own sync has not seen.
    is_new: bool,
    /// The next segment's number.
    next: u64,
    /// When the line at the cursor came.
    oldest: Option<(Place, u64)>,
}

#[derive(Debug)]
struct Segment {
    number: u64,
    bytes: u64,
    /// Lines that are not delivered.
    events: u64,
}

impl Store {
    /// The queue of that name, made if it is not there. Blocking, as all of it is.
    pub fn queue(&self, name: &str, max_bytes: u64) -> Result<Queue, StoreError> {
        let tree = self.inner.tree.queue(name);
        let folder = tree.root().to_owned();
        self.inner.ground.note_queue(name);
        Queue::open(tree, max_bytes).map_err(StoreError::io("open the queue in", &folder))
    }

    /// Removes the queues that are none of `names`; gives those that were.
    pub fn forget_queues(&self, names: &[&str]) -> Vec<String> {
        let folder = self.inner.tree.queues();
        let found = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        let name = |entry: std::fs::DirEntry| entry.file_name().into_string().ok();
        let gone: Vec<String> = found
            .filter_map(name)
            .filter(|name| !names.contains(&name.as_str()))
            .collect();
        for name in &gone {
            self.inner.ground.forget_queue(name);
            if let Err(error) = std::fs::remove_dir_all(self.inner.tree.queue(name).root()) {
                tracing::warn!(webhook = name, %error, "a queue that nobody needs cannot be removed");
            }
        }
        if names.is_empty() {
            // Only when it is empty, and there is nothing to say if it is not there.
            let _ = std::fs::remove_dir(&folder);
        }
        gone
    }
}

impl Queue {
    fn open(tree: QueueTree, max_bytes: u64) -> io::Result<Queue> {
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(tree.root())?;
        let mut numbers: Vec<u64> = std::fs::read_dir(tree.root())?
            .flatten()
            .filter_map(|entry| QueueTree::segment_number(entry.file_name().to_str()?))
            .collect();
        numbers.sort_unstable();
        let cursor = read_cursor(&tree).unwrap_or_default();
        let next = numbers
            .last()
            .copied()
            .max(Some(cursor.segment))
            .map_or(1, |last| last + 1);
        let mut state = State {
            max_bytes,
            segments: VecDeque::new(),
            file: None,
            head: cursor,
            buffer: Vec::new(),
            buffered: 0,
            is_dirty: false,
            is_new: false,
            next,
            oldest: None,
        };
        for number in numbers {
            let path = tree.segment(number);
            if number < cursor.segment {
                std::fs::remove_file(path)?;
                continue;
            }
            let from = if number == cursor.segment { cursor.offset } else { 0 };
            let (segment, from) = look_through(&path, number, from)?;
            if number == cursor.segment {
                state.head.offset = from;
            }
            state.segments.push_back(segment);
        }
        if let Some(first) = state.segments.front().filter(|first| first.number > cursor.segment) {
            state.head = Place {
                segment: first.number,
                offset: 0,
            };
        }
        let queue = Queue {
            tree,
            state: Mutex::new(state),
        };
        queue.set_max_bytes(max_bytes);
        Ok(queue)
    }

    /// Another limit, from now on. Gives how many events had to go for it.
    pub fn set_max_bytes(&self, max_bytes: u64) -> u64 {
        let mut state = self.state();
        state.max_bytes = max_bytes;
        state.make_room(&self.tree, 0)
    }

    /// Takes a JSON object in. Gives how many older events had to go, or this one, which nobody could read back.
    pub fn put(&self, at_ms: u64, json: &str) -> Result<u64, Lost> {
        let mut state = self.state();
        let begin = state.buffer.len();
        Line::write(at_ms, json, &mut state.buffer);
        let length = state.buffer.len() - begin;
        if length > MAX_LINE || length as u64 > state.max_bytes / SEGMENTS || json.contains('\n') {
            state.buffer.truncate(begin);
            return Ok(1);
        }
        state.buffered += 1;
        if state.buffer.len() < FLUSH_AT {
            return Ok(0);
        }
        state.flush(&self.tree)
    }

    /// Hands to the kernel what was put in. Gives how many older events had to go.
    ///
    /// Errors: what was put in since the last time is lost; the queue goes on.
    pub fn flush(&self) -> Result<u64, Lost> {
        self.state().flush(&self.tree)
    }

    /// Brings what was flushed to the disk.
    pub fn sync(&self) -> io::Result<()> {
        let file = {
            let mut state = self.state();
            let is_new = std::mem::take(&mut state.is_new);
            if is_new {
                File::open(self.tree.root())?.sync_all()?;
            }
            match std::mem::take(&mut state.is_dirty) {
                true => state.file.as_ref().map(File::try_clone).transpose()?,
                false => None,
            }
        };
        // Without the lock: who delivers need not wait for the disk.
        file.map_or(Ok(()), |file| file.sync_data())
    }

    /// The oldest lines, so many and of so many bytes at most, but one at least. Nothing if nothing waits.
    pub fn peek(&self, most: usize, most_bytes: usize) -> io::Result<Batch> {
        let mut state = self.state();
        loop {
            let Some(segment) = state.segments.front() else {
                return Ok(Batch::default());
            };
            if state.head.offset < segment.bytes {
                break;
            }
            if !state.pass_on(&self.tree) {
                return Ok(Batch::default());
            }
        }
        let batch = state.read(&self.tree, most, most_bytes)?;
        state.oldest = batch.lines.first().map(|line| (state.head, line.at_ms));
        Ok(batch)
    }

    /// The first `lines` of a batch, or all of it with its damage, need not be kept any longer.
    pub fn done(&self, batch: &Batch, lines: usize) -> io::Result<()> {
        let end = match lines < batch.lines.len() {
            true => match lines.checked_sub(1).and_then(|last| batch.ends.get(last)) {
                Some(end) => *end,
                None => return Ok(()),
            },
            false => batch.end,
        };
        let taken = if end == batch.end {
            lines as u64 + batch.damaged
        } else {
            lines as u64
        };
        let mut state = self.state();
        if end <= state.head {
            // It had to go meanwhile.
            return Ok(());
        }
        state.head = end;
        if let Some(segment) = state.segments.front_mut() {
            segment.events = segment.events.saturating_sub(taken);
        }
        let is_through = state
            .segments
            .front()
            .is_some_and(|segment| end.offset >= segment.bytes);
        if is_through {
            if let Some(segment) = state.segments.front_mut() {
                segment.events = 0;
            }
            state.pass_on(&self.tree);
        }
        let head = state.head;
        drop(state);
        write_cursor(&self.tree, head)
    }

    pub fn waiting(&self) -> Waiting {
        let mut state = self.state();
        let bytes: u64 = state.segments.iter().map(|segment| segment.bytes).sum();
        let events: u64 = state.segments.iter().map(|segment| segment.events).sum();
        let head = state.head;
        if events > 0 && state.oldest.is_none_or(|(place, _)| place != head) {
            let first = state.read(&self.tree, 1, 1).ok();
            let at = first.and_then(|batch| batch.lines.first().map(|line| line.at_ms));
            state.oldest = at.map(|at| (head, at));
        }
        Waiting {
            events,
            bytes: bytes.saturating_sub(head.offset),
            oldest_ms: state.oldest.filter(|_| events > 0).map(|(_, at)| at),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn flush(&mut self, tree: &QueueTree) -> Result<u64, Lost> {
        if self.buffer.is_empty() {
            return Ok(0);
        }
        let lines = std::mem::take(&mut self.buffer);
        let events = std::mem::take(&mut self.buffered);
        let written = self.append(tree, &lines, events);
        written.map_err(|source| Lost { events, source })
    }

    fn append(&mut self, tree: &QueueTree, lines: &[u8], events: u64) -> io::Result<u64> {
        let dropped = self.forget_removed(tree) + self.make_room(tree, lines.len() as u64);
        let fits = self
            .segments
            .back()
            .is_some_and(|last| last.bytes + lines.len() as u64 <= self.segment_bytes());
        if !fits || self.file.is_none() {
            self.begin_segment(tree)?;
        }
        let (Some(file), Some(last)) = (&mut self.file, self.segments.back_mut()) else {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "the queue has no file to write to",
            ));
        };
        if let Err(error) = file.write_all(lines) {
            // Half a line would spoil the next one.
            if file.set_len(last.bytes).is_err() {
                self.file = None;
            }
            return Err(error);
        }
        last.bytes += lines.len() as u64;
        last.events += events;
        self.is_dirty = true;
        Ok(dropped)
    }

    /// Lets go of segments that somebody removed, if the last one was: what is written to that is read by nobody. Gives
    /// how many events were in them.
    fn forget_removed(&mut self, tree: &QueueTree) -> u64 {
        let is_gone = |segment: &Segment| {
            let meta = std::fs::metadata(tree.segment(segment.number));
            meta.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
        };
        if !self.segments.back().is_some_and(is_gone) {
            return 0;
        }
        self.file = None;
        let (gone, left): (VecDeque<Segment>, VecDeque<Segment>) = self.segments.drain(..).partition(is_gone);
        self.segments = left;
        let first = self.segments.front().map_or(self.next, |first| first.number);
        if first != self.head.segment {
            self.head = Place {
                segment: first,
                offset: 0,
            };
        }
        gone.iter().map(|segment| segment.events).sum()
    }

    /// Small enough that little goes at once, and room for what is flushed at once.
    fn segment_bytes(&self) -> u64 {
        (self.max_bytes / SEGMENTS).clamp(1, MAX_SEGMENT)
    }

    /// The oldest segments go until so many bytes more fit.
    fn make_room(&mut self, tree: &QueueTree, more: u64) -> u64 {
        let mut dropped = 0;
        while self.segments.iter().map(|segment| segment.bytes).sum::<u64>() + more > self.max_bytes {
            let Some(oldest) = self.segments.pop_front() else { break };
            dropped += oldest.events;
            if self.segments.is_empty() {
                self.file = None;
            }
            remove(&tree.segment(oldest.number));
            self.head = Place {
                segment: self.segments.front().map_or(self.next, |first| first.number),
                offset: 0,
            };
        }
        dropped
    }

    fn begin_segment(&mut self, tree: &QueueTree) -> io::Result<()> {
        if let Some(file) = self.file.take().filter(|_| self.is_dirty) {
            file.sync_data()?;
        }
        let number = self.next;
        let path = tree.segment(number);
        let file = OpenOptions::new()
            .create_new(true)
            .append(true)
            .mode(0o600)
            .open(path)?;
        self.next += 1;
        self.is_new = true;
        self.file = Some(file);
        self.segments.push_back(Segment {
            number,
            bytes: 0,
            events: 0,
        });
        if self.segments.len() == 1 {
            self.head = Place {
                segment: number,
                offset: 0,
            };
        }
        Ok(())
    }

    /// The first segment was delivered in full: on to the next. `false` if there is none.
    fn pass_on(&mut self, tree: &QueueTree) -> bool {
        match self.segments.len() {
            0 => return false,
            1 if self.segments.front().is_some_and(|only| only.bytes < WORTH_KEEPING) => return false,
            1 => self.file = None,
            _ => {}
        }
        if let Some(first) = self.segments.pop_front() {
            remove(&tree.segment(first.number));
        }
        self.head = Place {
            segment: self.segments.front().map_or(self.next, |first| first.number),
            offset: 0,
        };
        !self.segments.is_empty()
    }

    /// From the head on, within its segment.
    fn read(&self, tree: &QueueTree, most: usize, most_bytes: usize) -> io::Result<Batch> {
        let Some(segment) = self.segments.front() else {
            return Ok(Batch::default());
        };
        let left = segment.bytes.saturating_sub(self.head.offset);
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(READ.max(most_bytes));
        let bytes = read_at(&tree.segment(segment.number), self.head.offset, length)?;
        let mut batch = Batch {
            end: self.head,
            ..Batch::default()
        };
        let (mut rest, mut taken_bytes) = (bytes.as_slice(), 0);
        while batch.lines.len() < most.max(1) {
            let taken = match step(rest) {
                Step::Line(line, taken) => {
                    if !batch.lines.is_empty() && taken_bytes + taken > most_bytes {
                        break;
                    }
                    taken_bytes += taken;
                    batch.lines.push(line);
                    taken
                }
                Step::Damage(taken) => {
                    batch.damaged += 1;
                    taken
                }
                Step::More => break,
            };
            rest = &rest[taken..];
            batch.end.offset += taken as u64;
            if batch.lines.len() > batch.ends.len() {
                batch.ends.push(batch.end);
            }
        }
        if batch.end == self.head {
            // The file is gone, or shorter than it was, or ends in the middle of a line.
            batch.damaged += 1;
            batch.end.offset = segment.bytes;
        }
        Ok(batch)
    }
}

/// So many bytes, or as many as there are.
fn read_at(path: &Path, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        file => file?,
    };
    let mut bytes = vec![0; length];
    let mut got = 0;
    while got < length {
        match file.read_at(&mut bytes[got..], offset + got as u64)? {
            0 => break,
            more => got += more,
        }
    }
    bytes.truncate(got);
    Ok(bytes)
}

/// Counts what is in a segment from an offset on, and takes off a torn end. Gives where to go on: the offset, or the beginning if
/// no line begins there.
fn look_through(path: &Path, number: u64, from: u64) -> io::Result<(Segment, u64)> {
    let bytes = std::fs::read(path)?;
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    if whole < bytes.len() {
        OpenOptions::new().write(true).open(path)?.set_len(whole as u64)?;
    }
    let whole = &bytes[..whole];
    // What was delivered may not have come to the disk.
    let from = usize::try_from(from).unwrap_or(usize::MAX).min(whole.len());
    let begins = from == 0 || whole.get(from - 1) == Some(&b'\n');
    let from = if begins { from } else { 0 };
    let events = whole[from..].iter().filter(|byte| **byte == b'\n').count();
    let segment = Segment {
        number,
        bytes: whole.len() as u64,
        events: events as u64,
    };
    Ok((segment, from as u64))
}

/// `7 4096`: the segment and the offset in it. `None`: from the beginning of what there is.
fn read_cursor(tree: &QueueTree) -> Option<Place> {
    let text = std::fs::read_to_string(tree.cursor()).ok()?;
    let (segment, offset) = text.trim_end().split_once(' ')?;
    Some(Place {
        segment: segment.parse().ok().filter(|segment| *segment < u64::MAX / 2)?,
        offset: offset.parse().ok()?,
    })
}

/// In one step: a crash leaves the old one or the new one.
fn write_cursor(tree: &QueueTree, place: Place) -> io::Result<()> {
    let path = tree.new_cursor();
    std::fs::write(&path, format!("{} {}\n", place.segment, place.offset))?;
    std::fs::rename(path, tree.cursor())
}

fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        tracing::warn!(path = %path.display(), %error, "a part of a queue cannot be removed");
    }
}
