//! Harness for the segments of a queue, which a crash may have cut anywhere.

use super::line::{Line, MAX_LINE, Step, step};
use crate::fuzzing::{Harness, texts};

pub(crate) const HARNESSES: &[Harness] = &[Harness {
    name: "queue_lines",
    run: queue_lines,
    seeds: || {
        texts(&[
            "1763745090123 {\"id\":\"a\",\"n\":1}\n1763745090124 {}\n",
            "7 {\"a\":\"\\n\"}\n\0\0\0\n+7 {}\n8 {\"torn",
            "99999999999999999999 {}\n01 {}\n",
        ])
    },
    words: &["7 {}\n", "\n", "{", "[", "\"", "7 ", "{\"a\":", " "],
}];

fn queue_lines(data: &[u8]) {
    let mut rest = data;
    loop {
        let taken = match step(rest) {
            Step::Line(line, taken) => {
                assert!(line.json.starts_with('{') && !line.json.contains('\n') && taken <= MAX_LINE);
                let mut written = Vec::new();
                Line::write(line.at_ms, &line.json, &mut written);
                assert_eq!(step(&written), Step::Line(line, written.len()));
                taken
            }
            Step::Damage(taken) => taken,
            Step::More => break,
        };
        assert!(taken > 0 && taken <= rest.len(), "it goes on");
        rest = &rest[taken..];
    }
    assert!(
        rest.len() < MAX_LINE && !rest.contains(&b'\n'),
        "all that ended was read"
    );
}
