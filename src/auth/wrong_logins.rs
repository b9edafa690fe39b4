//! Says which wrong logins get a line in the log, so that a flood of them does not flood the log.
//!
//! The first one of a client is logged at once, further ones of the same client at most once a minute, and those of
//! all clients together at a fixed rate. Each line counts the wrong logins that got none since the line before it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::login_queue::Client;
use crate::text;

/// Between two lines about one client.
const PAUSE: Duration = Duration::from_secs(60);
/// Lines at once about all clients, and the time after which there may be one more.
const LINES_AT_ONCE: u32 = 20;
const LINE_EVERY: Duration = Duration::from_secs(3);
/// Longest user name in a line, characters: whoever guesses writes what he likes there.
const LONGEST_NAME: usize = 64;

/// Returns as much of a user name as makes the same line as all of it.
pub(super) fn shortened(user: &Arc<str>) -> Arc<str> {
    // The character behind the last one that is shown makes for the ellipsis.
    match user.char_indices().nth(LONGEST_NAME + 1) {
        Some((end, _)) => user[..end].into(),
        None => user.clone(),
    }
}

/// The wrong logins of all listeners. Outlives a reload.
#[derive(Debug)]
pub struct WrongLogins {
    journal: Mutex<Journal>,
    started: Instant,
}

impl Default for WrongLogins {
    fn default() -> WrongLogins {
        WrongLogins {
            journal: Mutex::default(),
            started: Instant::now(),
        }
    }
}

impl WrongLogins {
    /// To be called for each login that was refused as wrong.
    pub fn note(&self, user: &str, listener: &str, address: Option<IpAddr>) {
        let client = Client::of(address);
        let now = self.started.elapsed();
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(unlogged) = journal.note(client, now) else {
            return;
        };
        drop(journal);
        let address = address.map_or_else(|| client.to_string(), |address| address.to_canonical().to_string());
        tracing::warn!(
            user = text::cut(user, LONGEST_NAME),
            client = address,
            listener,
            unlogged = (unlogged > 0).then_some(unlogged),
            "a login was refused: this proxy does not know this user and password"
        );
    }
}

/// Which clients have lines, and how many more there may be. Times since one fixed moment.
#[derive(Debug, Default)]
struct Journal {
    /// When each client had its last line; only those of the last [`PAUSE`], so that [`LINE_EVERY`] bounds their
    /// number.
    last: HashMap<Client, Duration>,
    /// When the lines that were written are paid off, at one for each [`LINE_EVERY`].
    paid_until: Duration,
    unlogged: u64,
}

impl Journal {
    /// Returns how many wrong logins were not logged since the last line, if this one is to be logged.
    fn note(&mut self, client: Client, now: Duration) -> Option<u64> {
        self.last.retain(|_, at| now < *at + PAUSE);
        let paid_until = self.paid_until.max(now) + LINE_EVERY;
        if self.last.contains_key(&client) || paid_until > now + LINE_EVERY * LINES_AT_ONCE {
            self.unlogged += 1;
            return None;
        }
        self.paid_until = paid_until;
        self.last.insert(client, now);
        Some(std::mem::take(&mut self.unlogged))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn client(number: u32) -> Client {
        Client::of(Some(std::net::Ipv4Addr::from_bits(number).into()))
    }

    #[test]
    fn a_long_name_is_kept_as_far_as_it_is_shown() {
        for name in [
            "alice".into(),
            "x".repeat(64),
            "\u{e9}".repeat(65),
            "\n\u{1f510}".repeat(16_000),
        ] {
            let kept = shortened(&name.as_str().into());
            assert!(kept.len() <= 4 * (LONGEST_NAME + 1), "{}", kept.len());
            assert_eq!(text::cut(&kept, LONGEST_NAME), text::cut(&name, LONGEST_NAME));
        }
    }

    #[test]
    fn one_line_a_minute_for_each_client() {
        let mut journal = Journal::default();
        let at = Duration::from_secs;
        assert_eq!(journal.note(client(1), at(5)), Some(0));
        assert_eq!(journal.note(client(1), at(6)), None);
        assert_eq!(journal.note(client(1), at(64)), None);
        assert_eq!(
            journal.note(client(2), at(64)),
            Some(2),
            "another client, and what was left out"
        );
        assert_eq!(journal.note(client(1), at(65)), Some(0));
    }

    proptest! {
        /// However many clients send wrong logins: the lines are bounded, and so is what is kept; none is left
        /// uncounted.
        #[test]
        fn a_flood_is_bounded(notes in proptest::collection::vec((0u32..200, 0u64..500), 1..2000)) {
            let mut journal = Journal::default();
            let (mut now, mut lines, mut counted) = (Duration::ZERO, 0u64, 0u64);
            for (number, pause_ms) in &notes {
                now += Duration::from_millis(*pause_ms);
                if let Some(unlogged) = journal.note(client(*number), now) {
                    lines += 1;
                    counted += unlogged + 1;
                }
                let most = u64::from(LINES_AT_ONCE) + now.as_secs() / LINE_EVERY.as_secs() + 1;
                prop_assert!(lines <= most, "{lines} lines in {now:?}");
                prop_assert!(journal.last.len() <= 64);
            }
            prop_assert_eq!(counted + journal.unlogged, notes.len() as u64);
        }
    }
}
