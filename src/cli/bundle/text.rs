//! Dates for people.

/// `2026-01-31`, of Unix milliseconds; in UTC.
pub fn date(ms: u64) -> String {
    // Days since 1970-01-01, counted from 0000-03-01 so that leap days end years of 146097 / 400 days.
    let days = i64::try_from(ms / 86_400_000).unwrap_or(0) + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year_of_era = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day_of_month:02}")
}

#[cfg(test)]
mod tests {
    use super::date;

    #[test]
    fn dates() {
        for (seconds, text) in [
            (0u64, "1970-01-01"),
            (951_782_400, "2000-02-29"),
            (951_868_800, "2000-03-01"),
            (1_735_603_200, "2024-12-31"),
            (1_767_225_600, "2026-01-01"),
        ] {
            assert_eq!(date(seconds * 1000), text);
        }
    }
}
