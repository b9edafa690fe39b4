//! Harness for ranges and conditions.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::multipart::{self, Piece};
use super::range::{self, MAX_RANGES, Spec, Wanted};
use crate::fuzzing::{Harness, fields, text, texts};

const ETAG: &str = "\"sha256:ab\"";

pub(crate) const HARNESSES: &[Harness] = &[Harness {
    name: "range",
    run: ranges,
    seeds: || {
        texts(&[
            "2048\nbytes=500-1499\n\"sha256:ab\"",
            "100\nbytes=0-9,,200-,\t-5\n*",
            "7\nBytes=1-99999999999999999999999\nW/\"sha256:ab\"",
            "100\nbytes=50-59, 0-9\n\"x,y\", \"sha256:ab\"",
            "0\nbytes=-5\n",
            "2048\nbytes=500-0, 1-2\n",
            "18446744073709551615\nbytes=0-18446744073709551615, 5-\nsha256:ab",
        ])
    },
    words: &[
        "bytes=",
        "0-",
        "-1",
        ",",
        "0-0,",
        " ",
        "\"",
        "W/",
        "\"sha256:ab\",",
        "*",
    ],
}];

/// Size of the blob, `Range`, conditions.
fn ranges(data: &[u8]) {
    let ([total, header], condition) = fields(data);
    let (Some(header), Some(condition)) = (text(header), text(condition)) else {
        return;
    };
    let total: u64 = text(total).and_then(|text| text.parse().ok()).unwrap_or(100);
    let wanted = range::parse(Some(header), total);
    let specs = range::parse_unknown(Some(header));
    assert_eq!(specs.as_ref().map_or(Wanted::Whole, |spec| spec.resolve(total)), wanted);
    if let Some(specs) = &specs {
        assert!((1..=MAX_RANGES).contains(&specs.specs().len()));
        assert_eq!(specs.only().is_some(), specs.specs().len() == 1);
        for spec in specs.specs() {
            // Written again, it is read as itself.
            let written = match spec {
                Spec::Between(a, b) => format!("bytes={a}-{b}"),
                Spec::From(a) => format!("bytes={a}-"),
                Spec::Last(n) => format!("bytes=-{n}"),
                Spec::Backwards(a) => format!("bytes={a}-0"),
            };
            assert_eq!(range::parse_unknown(Some(&written)).unwrap().only(), Some(*spec));
        }
    }
    let within = |range: &std::ops::Range<u64>| range.start < range.end && range.end <= total;
    match &wanted {
        Wanted::One(range) => assert!(within(range), "{range:?} of {total}"),
        Wanted::Many(ranges) => {
            assert!(ranges.len() > 1 && ranges.iter().all(within));
            let sum: u128 = ranges.iter().map(|range| u128::from(range.end - range.start)).sum();
            assert!(sum <= u128::from(total), "parts that ask for more than there is");
            // Near the end of the numbers the framing has no room: no blob is that large.
            if total < 1 << 60 {
                let plan = multipart::plan(ranges, total, "application/octet-stream");
                assert_eq!(plan.length, plan.pieces.iter().map(Piece::length).sum::<u64>());
                let sent = plan.pieces.iter().filter_map(|piece| match piece {
                    Piece::Bytes(range) => Some(range.clone()),
                    Piece::Text(_) => None,
                });
                assert_eq!(&sent.collect::<Vec<_>>(), ranges);
            }
        }
        Wanted::Whole => {}
        Wanted::Unsatisfiable => assert!(total > 0 && specs.is_some()),
    }
    if range::if_none_match(Some(condition), ETAG) {
        assert!(
            condition.trim() == "*" || condition.contains("sha256:ab"),
            "{condition:?}"
        );
    }
    assert_eq!(range::if_range(Some(condition), ETAG), condition.trim() == ETAG);
}
