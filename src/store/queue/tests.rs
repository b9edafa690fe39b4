//! Bounds, order, and what a crash leaves.

use std::path::Path;

use proptest::prelude::*;

use super::super::keys::Tree;
use super::*;

const LARGE: u64 = 1 << 30;

fn open(folder: &Path, max_bytes: u64) -> Queue {
    Queue::open(Tree::new(folder).queue("ci"), max_bytes).unwrap()
}

fn json(n: u64) -> String {
    format!("{{\"n\":{n}}}")
}

fn put(queue: &Queue, numbers: std::ops::Range<u64>) -> u64 {
    let dropped: u64 = numbers.map(|n| queue.put(n, &json(n)).unwrap()).sum();
    dropped + queue.flush().unwrap()
}

/// All that waits, taken in batches of so many.
fn take(queue: &Queue, most: usize) -> Vec<u64> {
    let mut all = Vec::new();
    loop {
        let batch = queue.peek(most, 1 << 20).unwrap();
        if batch.lines.is_empty() && batch.damaged == 0 {
            return all;
        }
        assert!(batch.lines.len() <= most);
        for line in &batch.lines {
            assert_eq!(line.json, json(line.at_ms));
        }
        all.extend(batch.lines.iter().map(|line| line.at_ms));
        queue.done(&batch, batch.lines.len()).unwrap();
    }
}

fn on_disk(folder: &Path) -> u64 {
    let files = std::fs::read_dir(Tree::new(folder).queue("ci").root()).unwrap();
    files.map(|file| file.unwrap().metadata().unwrap().len()).sum()
}

fn last_segment(folder: &Path) -> std::path::PathBuf {
    let files = std::fs::read_dir(Tree::new(folder).queue("ci").root()).unwrap();
    let paths = files.map(|file| file.unwrap().path());
    let segments = paths.filter(|path| path.extension().is_some_and(|end| end == "jsonl"));
    segments.max().unwrap()
}

#[test]
fn what_goes_in_comes_out_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let queue = open(folder.path(), LARGE);
    assert_eq!(queue.waiting(), Waiting::default());
    assert!(queue.peek(10, 1000).unwrap().lines.is_empty());
    put(&queue, 0..25);
    let waiting = queue.waiting();
    assert_eq!((waiting.events, waiting.oldest_ms), (25, Some(0)));
    // What is not acknowledged comes again.
    for _ in 0..2 {
        assert_eq!(queue.peek(10, 1 << 20).unwrap().lines.len(), 10);
    }
    // So do those behind the ones that are.
    let batch = queue.peek(10, 1 << 20).unwrap();
    queue.done(&batch, 0).unwrap();
    queue.done(&batch, 3).unwrap();
    assert_eq!(queue.waiting().events, 22);
    assert_eq!(queue.waiting().oldest_ms, Some(3));
    assert_eq!(take(&queue, 10), (3..25).collect::<Vec<_>>());
    assert_eq!(queue.waiting(), Waiting::default());
    // A line is never too large for a batch.
    put(&queue, 25..27);
    assert_eq!(queue.peek(10, 1).unwrap().lines.len(), 1);
}

#[test]
fn a_restart_goes_on_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let queue = open(folder.path(), LARGE);
    put(&queue, 0..20);
    let batch = queue.peek(5, 1 << 20).unwrap();
    queue.done(&batch, 5).unwrap();
    drop(queue);
    let queue = open(folder.path(), LARGE);
    assert_eq!(queue.waiting().events, 15);
    put(&queue, 20..30);
    drop(queue);
    let queue = open(folder.path(), LARGE);
    assert_eq!(take(&queue, 7), (5..30).collect::<Vec<_>>());
    drop(queue);
    // Nothing comes twice, and new numbers are behind the old ones.
    let queue = open(folder.path(), LARGE);
    assert!(take(&queue, 7).is_empty());
    put(&queue, 30..31);
    drop(queue);
    assert_eq!(take(&open(folder.path(), LARGE), 7), [30]);
}

#[test]
fn the_limit_is_kept_and_the_oldest_go() {
    let folder = tempfile::tempdir().unwrap();
    let limit = 4096;
    let queue = open(folder.path(), limit);
    let mut dropped = 0;
    for n in 0..1000 {
        dropped += put(&queue, n..n + 1);
        // The cursor is the other file, and is not there yet.
        assert!(on_disk(folder.path()) <= limit);
    }
    let waiting = queue.waiting();
    assert_eq!(waiting.events + dropped, 1000);
    assert!(waiting.events > 100, "{waiting:?}");
    // What was read before it had to go moves nothing.
    let stale = queue.peek(5, 1 << 20).unwrap();
    let oldest = stale.lines[0].at_ms;
    assert_eq!(oldest, dropped);
    dropped += put(&queue, 1000..1100);
    queue.done(&stale, 5).unwrap();
    let rest = take(&queue, 50);
    assert_eq!(rest, (dropped..1100).collect::<Vec<_>>());
    // A lower limit holds at once, also after a restart.
    put(&queue, 1100..1300);
    let gone = queue.set_max_bytes(1024);
    assert!(gone > 0 && on_disk(folder.path()) <= 1024 + 64);
    drop(queue);
    let left = take(&open(folder.path(), 1024), 50);
    assert_eq!(left, (1100 + gone..1300).collect::<Vec<_>>());
    // What no limit has room for does not go in.
    let queue = open(folder.path(), 1024);
    assert_eq!(queue.put(1, &format!("{{\"a\":{:?}}}", "x".repeat(200))).unwrap(), 1);
    assert_eq!(queue.put(1, "{\"a\":\n1}").unwrap(), 1);
    queue.flush().unwrap();
    assert_eq!(queue.waiting().events, 0);
}

/// Cut at every byte, by a crash of the machine: whole lines are there, and what comes later is not joined to half a one.
#[test]
fn a_torn_tail_goes() {
    let folder = tempfile::tempdir().unwrap();
    let queue = open(folder.path(), LARGE);
    put(&queue, 0..5);
    drop(queue);
    let segment = last_segment(folder.path());
    let whole = std::fs::read(&segment).unwrap();
    for length in 0..=whole.len() {
        std::fs::write(&segment, &whole[..length]).unwrap();
        let lines = whole[..length].iter().filter(|byte| **byte == b'\n').count() as u64;
        let queue = open(folder.path(), LARGE);
        assert_eq!(queue.waiting().events, lines);
        put(&queue, 100..101);
        drop(queue);
        let queue = open(folder.path(), LARGE);
        let batch = queue.peek(50, 1 << 20).unwrap();
        let mut found: Vec<u64> = batch.lines.iter().map(|line| line.at_ms).collect();
        if found.last() != Some(&100) {
            queue.done(&batch, found.len()).unwrap();
            found.extend(take(&queue, 50));
        }
        drop(queue);
        assert_eq!(found, (0..lines).chain([100]).collect::<Vec<_>>());
        std::fs::remove_file(last_segment(folder.path())).unwrap();
        let _ = std::fs::remove_file(Tree::new(folder.path()).queue("ci").cursor());
    }
}

#[test]
fn damage_inside_is_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let queue = open(folder.path(), LARGE);
    put(&queue, 0..5);
    drop(queue);
    let segment = last_segment(folder.path());
    let text = std::fs::read_to_string(&segment).unwrap();
    std::fs::write(&segment, text.replace("{\"n\":2}", "\0\0\0\0\0\0\0")).unwrap();
    let queue = open(folder.path(), LARGE);
    let batch = queue.peek(50, 1 << 20).unwrap();
    assert_eq!((batch.lines.len(), batch.damaged), (4, 1));
    // A file that is taken away is damage too, and what comes later is not held up.
    std::fs::remove_file(&segment).unwrap();
    put(&queue, 5..6);
    assert_eq!(take(&queue, 50), [5]);
    // So is a cursor that means nothing.
    for text in ["", "x y", "1 3", "999 0", "1 99999999", "18446744073709551615 0"] {
        std::fs::write(Tree::new(folder.path()).queue("ci").cursor(), text).unwrap();
        let queue = open(folder.path(), LARGE);
        put(&queue, 7..8);
        assert_eq!(take(&queue, 50).last(), Some(&7), "{text:?}");
    }
}

#[test]
fn a_disk_that_fails_is_told_and_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let queue = open(folder.path(), LARGE);
    let root = Tree::new(folder.path()).queue("ci").root().to_owned();
    std::fs::remove_dir_all(&root).unwrap();
    queue.put(0, &json(0)).unwrap();
    assert_eq!(queue.flush().unwrap_err().events, 1);
    std::fs::create_dir(&root).unwrap();
    put(&queue, 1..3);
    queue.sync().unwrap();
    assert_eq!(take(&queue, 50), [1, 2]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Whatever lies in the folder, it opens, ends, and takes what comes.
    #[test]
    fn any_folder_opens(
        segments in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..4),
        cursor in "\\PC{0,6}|[0-4] [0-9]{1,3}",
    ) {
        let folder = tempfile::tempdir().unwrap();
        let tree = Tree::new(folder.path()).queue("ci");
        std::fs::create_dir_all(tree.root()).unwrap();
        for (number, bytes) in segments.iter().enumerate() {
            std::fs::write(tree.segment(number as u64), bytes).unwrap();
        }
        std::fs::write(tree.cursor(), cursor).unwrap();
        let queue = Queue::open(tree, 4096).unwrap();
        put(&queue, 9..12);
        prop_assert!(take(&queue, 2).ends_with(&[9, 10, 11]));
    }
}
