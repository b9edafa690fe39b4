//! `[[prefetch]]`: what is fetched ahead, and when.

use std::collections::HashSet;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::file::quoted;
use super::findings::Findings;
use super::raw::RawPrefetch;
use super::wanted::{MAX_LIST_BYTES, Platforms, Wanted, parse_line, parse_list};

/// What the jobs that operators begin are called.
pub const BY_COMMAND: &str = "command";
const CRON: &str = "five fields of cron (minute, hour, day, month, weekday), such as \"30 2 * * *\"";

/// One of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Prefetch {
    /// For people and metrics; no two have the same.
    pub name: String,
    images: Vec<Wanted>,
    pub file: Option<PathBuf>,
    /// `None`: what this site uses.
    pub platforms: Option<Platforms>,
    pub schedule: Schedule,
    pub referrers: bool,
}

impl Prefetch {
    /// What it wants now: its file is read each time. Blocking.
    ///
    /// Errors: what is wrong with that.
    pub fn wanted(&self) -> Result<Vec<Wanted>, String> {
        let mut all = self.images.clone();
        if let Some(path) = &self.file {
            all.extend(read_list(path)?);
        }
        Ok(all)
    }
}

/// When something runs, again and again: in the time zone of the process.
#[derive(Clone, Debug)]
pub struct Schedule {
    text: String,
    cron: Box<Cron>,
}

/// The text says it all.
impl PartialEq for Schedule {
    fn eq(&self, other: &Schedule) -> bool {
        self.text == other.text
    }
}

impl Schedule {
    pub fn parse(text: &str) -> Result<Schedule, String> {
        let parser = CronParser::builder()
            .seconds(Seconds::Disallowed)
            .year(Year::Disallowed)
            .build();
        let fields = text.split_whitespace().count();
        if fields != 5 || text.len() > 200 {
            return Err(format!("expected {CRON}"));
        }
        let cron = parser
            .parse(text)
            .map_err(|error| format!("expected {CRON}: {error}"))?;
        Ok(Schedule {
            text: text.to_owned(),
            cron: Box::new(cron),
        })
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The first time after `ms`, both Unix milliseconds. `None` if it never comes (30 February).
    pub fn next_after(&self, ms: u64) -> Option<u64> {
        self.next_in(ms, TimeZone::system())
    }

    fn next_in(&self, ms: u64, zone: TimeZone) -> Option<u64> {
        let now = Timestamp::from_millisecond(i64::try_from(ms).ok()?)
            .ok()?
            .to_zoned(zone);
        let next = self.cron.find_next_occurrence(&now, false).ok()?;
        u64::try_from(next.timestamp().as_millisecond()).ok()
    }
}

/// Errors: file, line and column.
fn read_list(path: &Path) -> Result<Vec<Wanted>, String> {
    let shown = path.display();
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|error| format!("{shown} cannot be read: {error}"))?;
    let read = file.take(MAX_LIST_BYTES as u64 + 1).read_to_string(&mut text);
    read.map_err(|error| format!("{shown} cannot be read: {error}"))?;
    if text.len() > MAX_LIST_BYTES {
        return Err(format!("{shown} is larger than {} MiB", MAX_LIST_BYTES >> 20));
    }
    match parse_list(&text) {
        Ok(lines) => Ok(lines.into_iter().map(|(_, wanted)| wanted).collect()),
        Err(errors) => {
            let errors: Vec<String> = errors.iter().map(|error| format!("{shown}, {error}")).collect();
            Err(errors.join("; "))
        }
    }
}

pub fn prefetches(findings: &mut Findings<'_>, raw: &[RawPrefetch]) -> Vec<Prefetch> {
    let mut names = HashSet::new();
    let mut all = Vec::new();
    for (at, raw) in raw.iter().enumerate() {
        let number = (at + 1).to_string();
        all.extend(prefetch(findings, raw, &number, &mut names));
    }
    all
}

fn prefetch(
    findings: &mut Findings<'_>,
    raw: &RawPrefetch,
    number: &str,
    names: &mut HashSet<String>,
) -> Option<Prefetch> {
    let key = |name: &'static str| ["prefetch", number, name].map(str::to_owned);
    let refuse = |findings: &mut Findings<'_>, name, message: String| {
        let key = key(name);
        let key: Vec<&str> = key.iter().map(String::as_str).collect();
        findings.refuse(&key, message);
    };
    let name = raw.name.clone().unwrap_or_default();
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_');
    if !(1..=64).contains(&name.len()) || !name.bytes().all(fits) || name == BY_COMMAND {
        let message = format!(
            "found {}, expected a name of small letters, digits, '-' and '_', other than {BY_COMMAND}",
            quoted(&name)
        );
        refuse(findings, "name", message);
    } else if !names.insert(name.clone()) {
        refuse(findings, "name", format!("{name:?} is given twice"));
    }
    let mut images = Vec::new();
    for line in &raw.images {
        match parse_line(line) {
            Ok(wanted) => images.extend(wanted),
            Err((column, message)) => refuse(
                findings,
                "images",
                format!("{}, column {column}: {message}", quoted(line)),
            ),
        }
    }
    let file = raw
        .file
        .as_ref()
        .map(|text| findings.path(&["prefetch", number, "file"], text));
    if let Some(Err(message)) = file
        .as_deref()
        .filter(|path| !path.as_os_str().is_empty())
        .map(read_list)
    {
        refuse(findings, "file", message);
    }
    if raw.images.is_empty() && raw.file.is_none() {
        refuse(
            findings,
            "images",
            "expected images, or a file with a list of them".to_owned(),
        );
    }
    let platforms = (!raw.platforms.is_empty()).then(|| Platforms::parse(&raw.platforms.join(",")));
    let platforms = platforms.transpose().unwrap_or_else(|message| {
        refuse(findings, "platforms", message);
        None
    });
    let schedule = match raw.schedule.as_deref().map(Schedule::parse) {
        Some(Ok(schedule)) => schedule,
        Some(Err(message)) => {
            let found = quoted(raw.schedule.as_deref().unwrap_or_default());
            refuse(findings, "schedule", format!("found {found}, {message}"));
            return None;
        }
        None => {
            refuse(findings, "schedule", format!("it is missing: expected {CRON}"));
            return None;
        }
    };
    Some(Prefetch {
        name,
        images,
        file,
        platforms,
        schedule,
        referrers: raw.referrers,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use proptest::prelude::*;

    fn ms(text: &str) -> u64 {
        let moment: Timestamp = text.parse().unwrap();
        u64::try_from(moment.as_millisecond()).unwrap()
    }

    #[test]
    fn times() {
        let next = |text: &str, from: &str, zone: &str| {
            let zone = TimeZone::get(zone).unwrap();
            Schedule::parse(text).unwrap().next_in(ms(from), zone)
        };
        assert_eq!(
            next("30 2 * * *", "2026-11-21T13:40:00Z", "UTC"),
            Some(ms("2026-11-22T02:30:00Z"))
        );
        assert_eq!(
            next("30 2 * * *", "2026-11-22T02:30:00Z", "UTC"),
            Some(ms("2026-11-23T02:30:00Z"))
        );
        assert_eq!(
            next("*/15 * * * *", "2026-11-21T13:40:00Z", "UTC"),
            Some(ms("2026-11-21T13:45:00Z"))
        );
        assert_eq!(
            next("0 6 * * 1", "2026-11-21T13:40:00Z", "Asia/Tokyo"),
            Some(ms("2026-11-22T21:00:00Z"))
        );
        for bad in ["", "* * * *", "* * * * * *", "61 * * * *", "soon", "@hourly"] {
            assert!(Schedule::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_mistake_is_named_with_its_line() {
        let text = "[[prefetch]]\nname = \"ok\"\nimages = [\"alpine:3.* newest=2\"]\nschedule = \"0 2 * * *\"\n\n\
                    [[prefetch]]\nname = \"ok\"\nimages = [\"alpine newst=2\"]\nschedule = \"hourly\"\nplatforms = [\"x\"]\n";
        let error = Config::from_toml(text).unwrap_err();
        let all: Vec<String> = error.problems().iter().map(ToString::to_string).collect();
        assert_eq!(all.len(), 4, "{all:?}");
        for (line, word) in [
            (7, "twice"),
            (8, "column 8"),
            (9, "five fields"),
            (10, "not a platform"),
        ] {
            let place = format!("proxy.toml:{line}");
            assert!(
                all.iter().any(|p| p.contains(&place) && p.contains(word)),
                "{line} {word}: {all:?}"
            );
        }
        for (text, word) in [
            ("[prefetch]\nname = \"x\"\n", "[[prefetch]]"),
            ("[[prefetch]]\nnmae = \"x\"\n", "did you mean prefetch.1.name"),
            ("prefetch = [1]\n", "[[prefetch]]"),
            ("[[prefetch]]\nname = \"command\"\n", "other than command"),
        ] {
            let error = Config::from_toml(text).unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
        let good = text.split("\n\n").next().unwrap();
        let config = Config::from_toml(good).unwrap();
        assert_eq!(config.prefetch.len(), 1);
        assert!(config.prefetch[0].referrers && config.prefetch[0].wanted().unwrap().len() == 1);
    }

    proptest! {
        #[test]
        fn no_schedule_panics(text in "[0-9*/,\\-?L#a-z]{1,6}( [0-9*/,\\-LW#]{1,5}){4}", at in 0u64..4_000_000_000_000) {
            if let Ok(schedule) = Schedule::parse(&text) {
                let next = schedule.next_in(at, TimeZone::UTC);
                prop_assert!(next.is_none_or(|next| next > at));
            }
        }
    }
}
