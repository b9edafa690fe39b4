//! Which bytes a request wants: `Range`, `If-Range` and `If-None-Match` (RFC 9110 §13, §14; R-S13, R-C42, R-C95).
//!
//! Pure. What is malformed is ignored, as the RFC asks: a client that sent nonsense gets the whole blob, which
//! every client can use (R-C67). A range that lies wholly outside the blob is unsatisfiable, and so is a list with one
//! that ends before it begins (`500-0`): the RFC allows either, and the reference registry answers 416.

use std::ops::Range;

/// More ranges in one header than this, and the whole blob is the cheaper answer for both sides.
pub const MAX_RANGES: usize = 1024;

/// zstd:chunked clients ask for hundreds of parts at once (R-C67); beyond this many bytes the header is ignored.
pub const MAX_HEADER: usize = 16 * 1024;

/// What to send of a blob. Ranges are half-open, never empty, and lie within it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// 200 and everything.
    Whole,
    /// 206 with `Content-Range`.
    One(Range<u64>),
    /// 206 as `multipart/byteranges`; at least two, in the order of the request.
    Many(Vec<Range<u64>>),
    /// 416 with `Content-Range: bytes */total`.
    Unsatisfiable,
}

/// One range as it was asked for, before the total is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spec {
    /// `a-b`, both inclusive, a ≤ b.
    Between(u64, u64),
    /// `a-`
    From(u64),
    /// `-n`: the last n bytes.
    Last(u64),
    /// `a-b`, a > b.
    Backwards(u64),
}

/// A well-formed `Range: bytes=…` header; 1 to [`MAX_RANGES`] ranges in the order of the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeSpec(Vec<Spec>);

/// What `header` wants of a blob of `total` bytes.
pub fn parse(header: Option<&str>, total: u64) -> Wanted {
    parse_unknown(header).map_or(Wanted::Whole, |spec| spec.resolve(total))
}

/// The ranges as asked for, for blobs whose size is not known yet; `None` if there are none or they make no sense.
pub fn parse_unknown(header: Option<&str>) -> Option<RangeSpec> {
    let header = header.filter(|h| h.len() <= MAX_HEADER)?;
    let (unit, set) = header.trim().split_once('=')?;
    if !unit.eq_ignore_ascii_case("bytes") {
        return None;
    }
    // Empty list elements are allowed and mean nothing (RFC 9110 §5.6.1).
    let elements = set
        .split(',')
        .map(|e| e.trim_matches([' ', '\t']))
        .filter(|e| !e.is_empty());
    let specs = elements
        .take(MAX_RANGES + 1)
        .map(Spec::parse)
        .collect::<Option<Vec<_>>>()?;
    (1..=MAX_RANGES).contains(&specs.len()).then_some(RangeSpec(specs))
}

impl Spec {
    fn parse(text: &str) -> Option<Spec> {
        let (first, last) = text.split_once('-')?;
        match (first, last) {
            ("", n) => Some(Spec::Last(number(n)?)),
            (a, "") => Some(Spec::From(number(a)?)),
            (a, b) => {
                let (a, b) = (number(a)?, number(b)?);
                Some(if a <= b {
                    Spec::Between(a, b)
                } else {
                    Spec::Backwards(a)
                })
            }
        }
    }

    /// The bytes that exist of this range; `None` if there are none.
    pub fn within(self, total: u64) -> Option<Range<u64>> {
        let range = match self {
            // regclient's end is one past the last byte (R-C95): clamped, like any end that is too large.
            Spec::Between(a, b) => a..b.saturating_add(1).min(total),
            Spec::From(a) => a..total,
            Spec::Last(n) => total.saturating_sub(n)..total,
            Spec::Backwards(_) => return None,
        };
        (range.start < range.end).then_some(range)
    }
}

/// Decimal digits only; what does not fit lies beyond every blob anyway.
fn number(digits: &str) -> Option<u64> {
    let decimal = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    decimal.then(|| digits.parse().unwrap_or(u64::MAX))
}

impl RangeSpec {
    pub fn specs(&self) -> &[Spec] {
        &self.0
    }

    /// The one range that was asked for, if it was only one.
    pub fn only(&self) -> Option<Spec> {
        match self.0.as_slice() {
            [one] => Some(*one),
            _ => None,
        }
    }

    /// Now that the total is known: what to send.
    pub fn resolve(&self, total: u64) -> Wanted {
        if total == 0 {
            // 200 with nothing; a 416 would make Go clients fail (R-S15).
            return Wanted::Whole;
        }
        // Not a range at all (RFC 9110 §14.1.1), and the header is none with it. One that begins beyond the end is like any
        // other that lies there, as the reference registry has it.
        if self
            .0
            .iter()
            .any(|spec| matches!(spec, Spec::Backwards(first) if *first < total))
        {
            return Wanted::Unsatisfiable;
        }
        let mut ranges: Vec<_> = self.0.iter().filter_map(|spec| spec.within(total)).collect();
        match ranges.len() {
            0 => Wanted::Unsatisfiable,
            1 => Wanted::One(ranges.remove(0)),
            // Parts that overlap until they exceed the blob ask for more than there is.
            _ if sum(&ranges) > u128::from(total) => Wanted::Whole,
            _ => Wanted::Many(ranges),
        }
    }
}

fn sum(ranges: &[Range<u64>]) -> u128 {
    ranges.iter().map(|r| u128::from(r.end - r.start)).sum()
}

/// Whether `Range` counts, given `If-Range`. `etag` is the blob's own, quotes included, and strong.
///
/// Only the very same strong tag will do; a date never does, as blobs have none.
pub fn if_range(header: Option<&str>, etag: &str) -> bool {
    header.is_none_or(|h| h.trim() == etag)
}

/// Whether `If-None-Match` says that the client has it already. `etag` is the content's own, quotes included.
///
/// Compared weakly, as RFC 9110 §13.1.2 asks. A bare digest without quotes counts too: some clients send one.
pub fn if_none_match(header: Option<&str>, etag: &str) -> bool {
    let Some(header) = header else { return false };
    let bare = etag.trim_matches('"');
    header.trim() == "*"
        || list(header).any(|tag| {
            let tag = tag.strip_prefix("W/").unwrap_or(tag);
            tag == etag || tag == bare
        })
}

/// The elements of a comma-separated list in which a quoted comma does not separate.
fn list(header: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    header
        .split(move |c| {
            quoted ^= c == '"';
            c == ',' && !quoted
        })
        .map(str::trim)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wanted(header: &str, total: u64) -> Wanted {
        parse(Some(header), total)
    }

    #[test]
    fn the_conformance_cases() {
        assert_eq!(wanted("bytes=500-1499", 2048), Wanted::One(500..1500));
        assert_eq!(wanted("bytes=500-", 2048), Wanted::One(500..2048));
        assert_eq!(wanted("bytes=-500", 2048), Wanted::One(1548..2048));
        assert_eq!(wanted("bytes=2000-5000", 2048), Wanted::One(2000..2048));
        assert_eq!(wanted("bytes=5000-10000", 2048), Wanted::Unsatisfiable);
        assert_eq!(wanted("bytes=500-0", 2048), Wanted::Unsatisfiable);
    }

    #[test]
    fn edges() {
        assert_eq!(wanted("bytes=0-", 7), Wanted::One(0..7));
        assert_eq!(
            wanted("bytes=5-7", 7),
            Wanted::One(5..7),
            "R-C95: the end equals the size"
        );
        assert_eq!(wanted("bytes=6-6", 7), Wanted::One(6..7));
        assert_eq!(wanted("bytes=7-", 7), Wanted::Unsatisfiable);
        assert_eq!(wanted("bytes=-9", 7), Wanted::One(0..7));
        assert_eq!(wanted("bytes=-0", 7), Wanted::Unsatisfiable);
        assert_eq!(wanted("Bytes=1-2", 7), Wanted::One(1..3));
        assert_eq!(wanted("bytes=1-99999999999999999999999", 7), Wanted::One(1..7));
        assert_eq!(wanted("bytes=99999999999999999999999-", 7), Wanted::Unsatisfiable);
    }

    #[test]
    fn nothing_of_an_empty_blob_is_the_whole_of_it() {
        for header in ["bytes=0-", "bytes=-5", "bytes=0-0", "bytes=3-", "bytes=3-0"] {
            assert_eq!(wanted(header, 0), Wanted::Whole, "{header}");
        }
        assert_eq!(parse(None, 0), Wanted::Whole);
    }

    #[test]
    fn nonsense_is_ignored() {
        let nonsense = [
            "",
            "bytes",
            "bytes=",
            "bytes=,",
            "bytes=-",
            "bytes=a-b",
            "bytes=1",
            "bytes=1-2-3",
            "items=0-1",
            "bytes=+1-2",
            "bytes=1 -2",
            "bytes 0-1/2",
            "bytes=0-1;5-6",
            "bytes=0-1,x",
            "bytes =0-1",
        ];
        for header in nonsense {
            assert_eq!(wanted(header, 100), Wanted::Whole, "{header}");
            assert_eq!(parse_unknown(Some(header)), None, "{header}");
        }
    }

    /// It makes the whole header none, wherever it stands and whatever the others are.
    #[test]
    fn a_range_that_ends_before_it_begins() {
        for header in [
            "bytes=5-4",
            "bytes=99-0",
            "bytes=0-9,50-40",
            "bytes=50-40,0-9,-5",
            "bytes=200-,7-3",
        ] {
            assert_eq!(wanted(header, 100), Wanted::Unsatisfiable, "{header}");
        }
        assert_eq!(wanted("bytes=100-0", 100), Wanted::Unsatisfiable);
        assert_eq!(wanted("bytes=100-0,0-9", 100), Wanted::One(0..10));
        assert_eq!(wanted("bytes=99999999999999999999999-1,0-9", 100), Wanted::One(0..10));
        assert_eq!(wanted("bytes=5-4,x", 100), Wanted::Whole, "nonsense is ignored");
    }

    #[test]
    fn several_ranges_keep_their_order_and_lose_those_outside() {
        assert_eq!(wanted("bytes=50-59, 0-9", 100), Wanted::Many(vec![50..60, 0..10]));
        assert_eq!(wanted("bytes=0-9,,200-,\t-5", 100), Wanted::Many(vec![0..10, 95..100]));
        assert_eq!(wanted("bytes=0-9,200-300", 100), Wanted::One(0..10));
        assert_eq!(wanted("bytes=200-,300-", 100), Wanted::Unsatisfiable);
    }

    #[test]
    fn too_many_or_too_much_becomes_the_whole() {
        assert_eq!(wanted("bytes=0-,0-", 100), Wanted::Whole);
        let parts = |n: u64| {
            format!(
                "bytes={}",
                (0..n).map(|i| format!("{i}-{i}")).collect::<Vec<_>>().join(",")
            )
        };
        assert!(matches!(wanted(&parts(1024), 1 << 20), Wanted::Many(ranges) if ranges.len() == 1024));
        assert_eq!(wanted(&parts(1025), 1 << 20), Wanted::Whole);
        assert_eq!(
            wanted(&format!("bytes=0-1,{}", " ".repeat(MAX_HEADER)), 100),
            Wanted::Whole
        );
    }

    #[test]
    fn raw_ranges_for_a_blob_of_unknown_size() {
        let spec = parse_unknown(Some("bytes=5-")).unwrap();
        assert_eq!(spec.only(), Some(Spec::From(5)));
        let two = parse_unknown(Some("bytes=-5,1-2")).unwrap();
        assert_eq!(
            (two.only(), two.specs()),
            (None, &[Spec::Last(5), Spec::Between(1, 2)][..])
        );
        assert_eq!(parse_unknown(None), None);
    }

    const ETAG: &str = r#""sha256:ab""#;

    #[test]
    fn if_range_takes_only_the_same_strong_tag() {
        assert!(if_range(None, ETAG));
        assert!(if_range(Some(ETAG), ETAG));
        for no in [
            r#"W/"sha256:ab""#,
            "sha256:ab",
            r#""other""#,
            "Sat, 29 Oct 1994 19:43:31 GMT",
            "*",
            "",
        ] {
            assert!(!if_range(Some(no), ETAG), "{no}");
        }
    }

    #[test]
    fn if_none_match_compares_weakly_through_lists() {
        let yes = [
            "*",
            ETAG,
            r#"W/"sha256:ab""#,
            "sha256:ab",
            r#""x", "sha256:ab""#,
            r#""a,b",W/"sha256:ab" "#,
        ];
        for yes in yes {
            assert!(if_none_match(Some(yes), ETAG), "{yes}");
        }
        for no in ["", r#""x""#, r#""x,sha256:ab,y""#, r#""*""#, "sha256:abc"] {
            assert!(!if_none_match(Some(no), ETAG), "{no}");
        }
        assert!(!if_none_match(None, ETAG));
    }

    /// What Go's `http.ServeContent` answers, which sends the reference registry's blobs: 416, or the ranges; none of them
    /// is the whole.
    fn by_the_reference_registry(specs: &[String], size: i64) -> Result<Vec<(i64, i64)>, ()> {
        let number = |text: &str| text.parse::<i64>().map_err(|_| ());
        let mut ranges = Vec::new();
        let mut is_outside = false;
        for range in specs {
            let (start, end) = range.split_once('-').ok_or(())?;
            if start.is_empty() {
                let last = number(end)?.min(size);
                ranges.push((size - last, last));
                continue;
            }
            let start = number(start)?;
            if start >= size {
                is_outside = true;
                continue;
            }
            let end = if end.is_empty() { size - 1 } else { number(end)? };
            if start > end {
                return Err(());
            }
            ranges.push((start, end.min(size - 1) - start + 1));
        }
        match is_outside && ranges.is_empty() {
            true if size > 0 => Err(()),
            _ if ranges.iter().map(|(_, length)| *length).sum::<i64>() > size => Ok(Vec::new()),
            _ => Ok(ranges),
        }
    }

    proptest! {
        #[test]
        fn ranges_are_those_of_the_reference_registry(
            specs in prop::collection::vec("[0-9]{1,3}-[0-9]{0,3}|-[0-9]{1,3}", 1..5),
            size in 0i64..1200,
        ) {
            let ours = wanted(&format!("bytes={}", specs.join(", ")), size as u64);
            // It sends a suffix of no bytes as a part of none, which no Content-Range can say.
            let is_empty = |(_, length): &(i64, i64)| *length == 0;
            match by_the_reference_registry(&specs, size) {
                Err(()) => prop_assert_eq!(ours, Wanted::Unsatisfiable),
                Ok(ranges) if size > 0 && !ranges.is_empty() && ranges.iter().all(is_empty) => {
                    prop_assert_eq!(ours, Wanted::Unsatisfiable);
                }
                Ok(ranges) => {
                    let ranges = ranges.into_iter().filter(|range| !is_empty(range));
                    let ranges = ranges.map(|(start, length)| start as u64..(start + length) as u64);
                    let ranges: Vec<Range<u64>> = ranges.collect();
                    prop_assert_eq!(ours, match ranges.as_slice() {
                        [] => Wanted::Whole,
                        [one] => Wanted::One(one.clone()),
                        _ => Wanted::Many(ranges),
                    });
                }
            }
        }

        #[test]
        fn whatever_is_asked_the_answer_lies_within(header in "(bytes=)?[0-9,\\- a]{0,40}", total in 0u64..200) {
            match wanted(&header, total) {
                Wanted::One(r) => prop_assert!(r.start < r.end && r.end <= total),
                Wanted::Many(rs) => {
                    prop_assert!(rs.len() > 1 && sum(&rs) <= u128::from(total));
                    prop_assert!(rs.iter().all(|r| r.start < r.end && r.end <= total));
                }
                Wanted::Whole | Wanted::Unsatisfiable => {}
            }
        }

        #[test]
        fn a_range_within_is_answered_to_the_byte(total in 1u64..u64::MAX, a: u64, b: u64) {
            let (a, b) = (a % total, b % total);
            let (a, b) = (a.min(b), a.max(b));
            prop_assert_eq!(wanted(&format!("bytes={a}-{b}"), total), Wanted::One(a..b + 1));
            prop_assert_eq!(wanted(&format!("bytes={a}-"), total), Wanted::One(a..total));
            prop_assert_eq!(wanted(&format!("bytes={a}-{total}"), total), Wanted::One(a..total));
            prop_assert_eq!(wanted(&format!("bytes=-{}", total - a), total), Wanted::One(a..total));
        }

        #[test]
        fn no_text_makes_it_panic(header in ".{0,60}", total: u64) {
            wanted(&header, total);
            if_none_match(Some(&header), ETAG);
        }
    }
}
