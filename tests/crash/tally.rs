//! What happened in all the rounds.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};

/// Counters by group and name.
#[derive(Default)]
pub struct Tally(Mutex<BTreeMap<(&'static str, String), u64>>);

impl Tally {
    pub fn add(&self, group: &'static str, name: &str, n: u64) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry((group, name.to_owned())).or_default() += n;
    }

    pub fn most(&self, group: &'static str, name: &str, n: u64) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let most = counts.entry((group, name.to_owned())).or_default();
        *most = (*most).max(n);
    }

    pub fn get(&self, group: &'static str, name: &str) -> u64 {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.get(&(group, name.to_owned())).copied().unwrap_or_default()
    }

    /// `kills: idle 12, transfer 30`, a line for each group.
    pub fn report(&self) -> String {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut groups: BTreeMap<&str, String> = BTreeMap::new();
        for ((group, name), n) in counts.iter() {
            let line = groups.entry(group).or_default();
            let comma = if line.is_empty() { "" } else { ", " };
            let _ = write!(line, "{comma}{name} {n}");
        }
        groups
            .iter()
            .map(|(group, line)| format!("  {group}: {line}\n"))
            .collect()
    }
}

/// To the terminal, also when the test runner keeps what tests print.
pub fn tell(text: &str) {
    use std::io::Write as _;
    let _ = std::io::stderr().write_all(text.as_bytes());
}
