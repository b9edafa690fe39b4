//! Sizes and durations as people write them: `50GiB`, `50Gi`, `1.5TB`, `10G`, `1048576`; `5m`, `1h30m`, `500ms`, `90`.
//!
//! `50G` is 50 GB and `50Gi` 50 GiB, as Kubernetes reads them: where a program would take `G` for GiB, the limit here is the
//! smaller one. A duration without a unit is in seconds. Sizes may have a decimal fraction, durations have smaller units
//! in its place.
//! What is parsed can be shown again without loss ([`show_size`], [`show_duration`]).

use std::time::Duration;

/// What a size should look like; ends the sentence "expected …".
pub const SIZE: &str = "a size such as \"50GiB\", \"10GB\", \"512MiB\" or a whole number of bytes";
/// What a duration should look like; ends the sentence "expected …".
pub const DURATION: &str = "a duration such as \"5m\", \"30d\", \"1h30m\", \"500ms\" or a whole number of seconds";

/// Digits behind the point of a size: 15 tell each byte of the largest unit.
const MAX_DECIMALS: u32 = 18;

/// Longest duration in days. Past it, adding one to a clock reading could overflow.
pub const MAX_DAYS: u64 = 36_500;

// Largest first within a scale; `show_size` depends on no order.
const SIZE_UNITS: [(&str, u64); 11] = [
    ("PiB", 1 << 50),
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("PB", 1_000_000_000_000_000),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

// Largest first: in `1h30m` each part must be of a smaller unit than the one before it.
const DURATION_UNITS: [(&str, u64); 6] = [
    ("w", 7 * 86_400_000),
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
];

/// Bytes. `None` for anything that is no size, and for more than fits 64 bits.
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.');
    let (number, unit) = text.split_at(end.unwrap_or(text.len()));
    let unit = unit.trim_start();
    let factor = match unit {
        "" => 1,
        _ => SIZE_UNITS.iter().find(|(name, _)| is_spelling(unit, name))?.1,
    };
    match number.split_once('.') {
        None => number.parse::<u64>().ok()?.checked_mul(factor),
        Some((whole, fraction)) => {
            let whole = whole.parse::<u64>().ok()?.checked_mul(factor)?;
            whole.checked_add(part_of(factor, fraction)?)
        }
    }
}

/// Bytes of `0.fraction` of a unit, rounded down. `None` for a unit that has no parts.
fn part_of(factor: u64, fraction: &str) -> Option<u64> {
    let digits = u32::try_from(fraction.len())
        .ok()
        .filter(|digits| *digits <= MAX_DECIMALS)?;
    let part: u64 = fraction.parse().ok()?;
    (factor > 1).then_some(())?;
    u64::try_from(u128::from(part) * u128::from(factor) / 10_u128.pow(digits)).ok()
}

/// Returns true if `text` is the unit `name`, whole or without its last letter ("Gi", "G"), in any case.
fn is_spelling(text: &str, name: &str) -> bool {
    let short = name.strip_suffix('B').filter(|short| !short.is_empty());
    text.eq_ignore_ascii_case(name) || short.is_some_and(|short| text.eq_ignore_ascii_case(short))
}

/// `None` for anything that is no duration, and for more than [`MAX_DAYS`].
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    if let Ok(seconds) = rest.parse::<u64>()
        && rest.starts_with(|first: char| first.is_ascii_digit())
    {
        return from_seconds(seconds);
    }
    let mut millis: u64 = 0;
    let mut units = DURATION_UNITS.iter();
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let (number, after) = split_number(rest)?;
        let after = after.trim_start();
        let end = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let (unit, next) = after.split_at(end);
        // Taking from the iterator refuses a unit that was used already or is larger than the last one.
        let (_, factor) = units.find(|(name, _)| *name == unit)?;
        millis = millis.checked_add(number.checked_mul(*factor)?)?;
        rest = next.trim_start();
    }
    (millis <= MAX_DAYS * 86_400_000).then(|| Duration::from_millis(millis))
}

/// `None` for more than [`MAX_DAYS`].
pub fn from_seconds(seconds: u64) -> Option<Duration> {
    (seconds <= MAX_DAYS * 86_400).then(|| Duration::from_secs(seconds))
}

fn split_number(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, rest) = text.split_at(end);
    Some((number.parse().ok()?, rest))
}

/// The shortest exact spelling: `50GiB`, `10GB`, `1234567B`.
pub fn show_size(bytes: u64) -> String {
    let best = SIZE_UNITS
        .iter()
        .filter(|(_, factor)| bytes >= *factor && bytes.is_multiple_of(*factor))
        .min_by_key(|(_, factor)| bytes / factor);
    match best {
        Some((name, factor)) => format!("{}{name}", bytes / factor),
        None => format!("{bytes}B"),
    }
}

/// The exact spelling down to milliseconds: `1h30m`, `30d`, `0s`.
pub fn show_duration(duration: Duration) -> String {
    let mut millis = duration.as_millis();
    let mut out = String::new();
    for (name, factor) in DURATION_UNITS.iter().filter(|(name, _)| *name != "w") {
        let count = millis / u128::from(*factor);
        if count > 0 {
            out.push_str(&format!("{count}{name}"));
            millis -= count * u128::from(*factor);
        }
    }
    if out.is_empty() { "0s".to_owned() } else { out }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes() {
        for (text, want) in [
            ("0", 0),
            ("1048576", 1 << 20),
            ("50GiB", 50 << 30),
            ("50 GiB", 50 << 30),
            ("50gib", 50 << 30),
            ("10GB", 10_000_000_000),
            ("512MiB", 512 << 20),
            ("7B", 7),
            ("50G", 50_000_000_000),
            ("50g", 50_000_000_000),
            ("50Gi", 50 << 30),
            ("50 Mi", 50 << 20),
            ("1k", 1000),
            ("1Ki", 1024),
            ("2T", 2_000_000_000_000),
            ("1.5TiB", 1536 << 30),
            ("1.5Gi", 1536 << 20),
            ("0.5 GB", 500_000_000),
            ("1.000000000000000001PB", 1_000_000_000_000_000),
            ("1.3Ki", 1331),
        ] {
            assert_eq!(parse_size(text), Some(want), "{text}");
        }
        for bad in [
            "",
            "GiB",
            "-1",
            "1.5",
            "1.5B",
            "1.GiB",
            ".5GiB",
            "1.2.3GiB",
            "1,5GiB",
            "1.+5GiB",
            "1.0000000000000000001PB",
            "16383.9999PiB.",
            "50GiBs",
            "50GBi",
            "50i",
            "G",
            "5 0GiB",
            "1e9",
            "0x10",
            "16384PiB",
            "99999999999999999999",
            "é",
        ] {
            assert_eq!(parse_size(bad), None, "{bad}");
        }
    }

    #[test]
    fn durations() {
        let seconds = Duration::from_secs;
        for (text, want) in [
            ("0s", seconds(0)),
            ("5m", seconds(300)),
            ("30d", seconds(30 * 86_400)),
            ("1w", seconds(7 * 86_400)),
            ("1h30m", seconds(5400)),
            ("500ms", Duration::from_millis(500)),
            ("1s500ms", Duration::from_millis(1500)),
            ("36500d", seconds(36_500 * 86_400)),
            ("0", seconds(0)),
            ("90", seconds(90)),
            (" 300 ", seconds(300)),
            ("5 m", seconds(300)),
            ("1h 30m", seconds(5400)),
            ("1 d 2 h", seconds(26 * 3600)),
        ] {
            assert_eq!(parse_duration(text), Some(want), "{text}");
        }
        for bad in [
            "",
            "+5",
            "1h30",
            "3153600001",
            "m",
            "1 2m",
            "5 m s",
            "-5m",
            "5;m",
            "5m;",
            "5M",
            "30m1h",
            "1m1m",
            "1.5h",
            "5min",
            "36501d",
            "18446744073709551615d",
        ] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn shown_in_the_shortest_exact_way() {
        assert_eq!(show_size(50 << 30), "50GiB");
        assert_eq!(show_size(10_000_000_000), "10GB");
        assert_eq!(show_size(1025), "1025B");
        assert_eq!(show_size(0), "0B");
        assert_eq!(show_duration(Duration::from_secs(5400)), "1h30m");
        assert_eq!(show_duration(Duration::ZERO), "0s");
        assert_eq!(show_duration(Duration::from_secs(30 * 86_400)), "30d");
    }

    proptest! {
        #[test]
        fn sizes_round_trip(bytes: u64) {
            prop_assert_eq!(parse_size(&show_size(bytes)), Some(bytes));
        }

        /// Each spelling of a unit is the same size, and with a point in it the size lies where it must.
        #[test]
        fn spellings_agree(number in 0..1_000_000u64, fraction in "[0-9]{1,18}", unit in 0..SIZE_UNITS.len()) {
            let (name, factor) = SIZE_UNITS[unit];
            let whole = number.checked_mul(factor);
            let short = name.strip_suffix('B').unwrap_or(name);
            for name in [name.to_owned(), name.to_lowercase(), short.to_owned(), short.to_uppercase()] {
                prop_assert_eq!(parse_size(&format!("{number}{name}")), whole);
                prop_assert_eq!(parse_size(&format!("{number} {name}")), whole);
                let exact = parse_size(&format!("{number}.{fraction}{name}"));
                match (whole, exact) {
                    (Some(_), None) => prop_assert!(factor == 1 || number >= u64::MAX / factor),
                    (Some(whole), Some(exact)) => prop_assert!((whole..whole + factor).contains(&exact), "{exact}"),
                    (None, exact) => prop_assert_eq!(exact, None),
                }
            }
        }

        #[test]
        fn durations_round_trip(millis in 0..=MAX_DAYS * 86_400_000) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse_duration(&show_duration(duration)), Some(duration));
        }

        #[test]
        fn nothing_panics(text: String, digits in "[0-9.]{0,25}[a-zA-Z ]{0,4}[0-9.]{0,25}[a-z]{0,3}") {
            for text in [text, digits] {
                let _ = (parse_size(&text), parse_duration(&text));
            }
        }

        #[test]
        fn overflow_is_refused(number in (u64::MAX >> 30) + 1..=u64::MAX) {
            prop_assert_eq!(parse_size(&format!("{number}GiB")), None);
            prop_assert_eq!(parse_duration(&format!("{number}d")), None);
        }
    }
}
