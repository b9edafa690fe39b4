//! Points in time as logs and protocols write them: UTC, by the Gregorian calendar.

use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since the first of 1970.
pub fn unix_ms(now: SystemTime) -> u64 {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// `2015-08-30T12:36:00.000Z` (RFC 3339).
pub fn rfc3339(ms: u64) -> String {
    let (year, month, day) = civil(ms / 86_400_000);
    let of_day = ms % 86_400_000;
    let (hour, minute) = (of_day / 3_600_000, of_day / 60_000 % 60);
    let (second, ms) = (of_day / 1000 % 60, of_day % 1000);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

/// `20150830T123600Z` (ISO 8601, basic).
pub fn basic(ms: u64) -> String {
    let text = rfc3339(ms).replace(['-', ':'], "");
    let seconds = text.split('.').next().unwrap_or_default();
    format!("{seconds}Z")
}

/// Year, month and day, so many days after the first of 1970.
///
/// Years are counted from March, so that the leap day is the last of its year.
fn civil(days: u64) -> (u64, u64, u64) {
    // The first of March of the year 0 was 719,468 days before.
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        for (seconds, want) in [
            (0, "19700101T000000Z"),
            (1_440_938_160, "20150830T123600Z"),
            (951_782_399, "20000228T235959Z"),
            (951_782_400, "20000229T000000Z"),
            (4_107_542_400, "21000301T000000Z"),
        ] {
            assert_eq!(basic(seconds * 1000), want);
        }
        assert_eq!(rfc3339(1_440_938_160_042), "2015-08-30T12:36:00.042Z");
    }
}
