//! Figures for people: aligned columns, sizes with one decimal, ages.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::text;
pub use crate::text::count;

/// How a column is aligned.
#[derive(Clone, Copy)]
pub enum Align {
    Left,
    Right,
}

/// Lines under a headline, each cell as wide as its column's widest.
pub struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(columns: &[(&'static str, Align)]) -> Table {
        Table {
            columns: columns.to_vec(),
            rows: Vec::new(),
        }
    }

    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().map(|cell| printable(&cell)).collect());
    }

    pub fn text(&self) -> String {
        let head: Vec<String> = self.columns.iter().map(|(name, _)| (*name).to_owned()).collect();
        let lines: Vec<&Vec<String>> = std::iter::once(&head).chain(&self.rows).collect();
        let width = |at: usize| {
            let cells = lines.iter().filter_map(|line| line.get(at));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let mut text = String::new();
        for line in lines {
            let cells = line.iter().zip(&self.columns).zip(&widths);
            let cells: Vec<String> = cells
                .map(|((cell, (_, align)), width)| match align {
                    Align::Left => format!("{cell:<width$}"),
                    Align::Right => format!("{cell:>width$}"),
                })
                .collect();
            text += cells.join("  ").trim_end();
            text.push('\n');
        }
        text
    }
}

/// On one line, without anything that could move the cursor, hide or reorder text, and of bounded length: media types
/// and errors come from elsewhere (R-X15).
pub fn printable(text: &str) -> String {
    text::message(text)
}

/// `0 B`, `4.0 KiB`, `12.3 GiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut units = UNITS.iter();
    let mut unit = units.next().copied().unwrap_or_default();
    // 1023.95 would be shown as 1024.0.
    while value >= 1023.95 {
        let Some(next) = units.next() else { break };
        (value, unit) = (value / 1024.0, next);
    }
    format!("{value:.1} {unit}")
}

/// `3h ago`; `-` for never.
pub fn ago(ms: Option<u64>) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now_ms = now.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX));
    ms.map_or_else(|| "-".to_owned(), |ms| age(now_ms.saturating_sub(ms) / 1000))
}

fn age(seconds: u64) -> String {
    match seconds {
        0 => "just now".to_owned(),
        _ => format!("{} ago", span(seconds)),
    }
}

/// `2026-11-21 13:40 +00:00`, in this machine's time.
pub fn date(ms: u64) -> String {
    let moment = i64::try_from(ms)
        .ok()
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    let Some(moment) = moment else { return "-".to_owned() };
    moment
        .to_zoned(jiff::tz::TimeZone::system())
        .strftime("%Y-%m-%d %H:%M %:z")
        .to_string()
}

/// `12s`, `5m`, `3h`, `2d`.
pub fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_ages() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (4096, "4.0 KiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            (13_207_024_435, "12.3 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
        for (seconds, text) in [
            (0, "just now"),
            (59, "59s ago"),
            (3599, "59m ago"),
            (10_800, "3h ago"),
            (200_000, "2d ago"),
        ] {
            assert_eq!(age(seconds), text);
        }
        assert_eq!(ago(None), "-");
        assert_eq!(ago(Some(u64::MAX)), "just now");
    }

    #[test]
    fn columns_are_aligned_and_harmless() {
        let mut table = Table::new(&[("NAME", Align::Left), ("SIZE", Align::Right), ("", Align::Left)]);
        table.row(["a\u{1b}[2J".to_owned(), "1 B".to_owned(), String::new()]);
        table.row(["bb".to_owned(), "10.0 KiB".to_owned(), "x".to_owned()]);
        let text = table.text();
        let expected = "NAME            SIZE\na\\u{1b}[2J       1 B\nbb          10.0 KiB  x\n";
        assert_eq!(text, expected);
        assert_eq!(
            printable("a\u{202e}b\u{2028}c\u{200b}\u{9b}d"),
            "a\\u{202e}b\\u{2028}c\\u{200b}\\u{9b}d"
        );
        assert!(printable(&"x".repeat(1 << 20)).len() < 3000);
    }
}
