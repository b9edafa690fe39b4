//! A new password: typed twice at a terminal, without being shown, or one line of a pipe.
//!
//! While it is typed the terminal shows nothing, and a signal must not leave it so: Ctrl-C, SIGTERM, SIGHUP and SIGQUIT
//! end the wait, and the terminal is as it was before anything else is written. The keys that stop or kill a process without that are
//! without effect meanwhile.

use std::io::{BufRead as _, IsTerminal as _, Read as _, Write as _};
use std::os::fd::AsFd as _;

use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr};
use tokio::signal::unix::{SignalKind, signal};

use super::Exit;
use super::interrupt::Interrupt;
use crate::config::Secret;

/// Longest line that is read, bytes: much more than any password may have.
const LONGEST_LINE: u64 = 64 * 1024;

/// Why there is none: the exit status, and a message.
pub(super) type NoPassword = (Exit, String);

/// Reads the password of `user`. `check` says what is wrong with one, before it has to be typed again.
pub(super) fn read_new(user: &str, check: fn(&str) -> Result<(), String>) -> Result<Secret, NoPassword> {
    if !std::io::stdin().is_terminal() {
        let line = read_line()?;
        return accept(line, check);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| (Exit::Failed, format!("cannot start: {error}")))?;
    let user = user.to_owned();
    let typed = runtime.block_on(async {
        let mut interrupt = Interrupt::listen();
        let _hidden = Hidden::begin()?;
        let typing = tokio::task::spawn_blocking(move || type_twice(&user, check));
        tokio::select! {
            typed = typing => typed.unwrap_or_else(|error| Err((Exit::Failed, error.to_string()))),
            why = interrupt.asked() => Err((Exit::Failed, format!("{why}: no password was read"))),
            why = other_end() => Err((Exit::Failed, format!("{why}: no password was read"))),
        }
    });
    // A thread may be waiting for the terminal still.
    runtime.shutdown_background();
    if typed.is_err() {
        // Behind what was asked.
        let _ = writeln!(std::io::stderr().lock());
    }
    typed
}

/// Waits for a signal that would end the process at once, with a terminal that shows nothing.
async fn other_end() -> &'static str {
    let (Ok(mut hangup), Ok(mut quit)) = (signal(SignalKind::hangup()), signal(SignalKind::quit())) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = hangup.recv() => "hangup",
        _ = quit.recv() => "quit",
    }
}

fn type_twice(user: &str, check: fn(&str) -> Result<(), String>) -> Result<Secret, NoPassword> {
    prompt(&format!("password for {user}: "));
    let first = accept(read_line()?, check)?;
    prompt("once more: ");
    let second = read_line()?;
    match first.reveal() == second.reveal() {
        true => Ok(first),
        false => Err((Exit::Usage, "the two passwords differ".to_owned())),
    }
}

/// Standard output is for the line that is made.
fn prompt(text: &str) {
    let mut err = std::io::stderr().lock();
    let _ = err.write_all(text.as_bytes()).and_then(|()| err.flush());
}

fn accept(line: Secret, check: fn(&str) -> Result<(), String>) -> Result<Secret, NoPassword> {
    match check(line.reveal()) {
        Ok(()) => Ok(line),
        Err(what) => Err((Exit::Usage, what)),
    }
}

/// Without its end. Empty at the end of the input.
fn read_line() -> Result<Secret, NoPassword> {
    let mut line = String::new();
    let read = std::io::stdin().lock().take(LONGEST_LINE).read_line(&mut line);
    read.map_err(|error| (Exit::Failed, format!("the password cannot be read: {error}")))?;
    Ok(Secret::new(line.trim_end_matches(['\r', '\n'])))
}

/// A terminal that does not show what is typed, until this is dropped.
struct Hidden(Termios);

impl Hidden {
    fn begin() -> Result<Hidden, NoPassword> {
        let failed = |error: rustix::io::Errno| {
            let error = std::io::Error::from(error);
            (
                Exit::Failed,
                format!("the terminal cannot be told to hide the password: {error}"),
            )
        };
        let stdin = std::io::stdin();
        let before = tcgetattr(stdin.as_fd()).map_err(failed)?;
        let mut hiding = before.clone();
        hiding.local_modes.remove(LocalModes::ECHO);
        // The end of the line is shown, so that what follows begins a new one.
        hiding.local_modes.insert(LocalModes::ECHONL);
        // 0 is no key.
        for key in [SpecialCodeIndex::VQUIT, SpecialCodeIndex::VSUSP] {
            hiding.special_codes[key] = 0;
        }
        // Discards what was typed ahead: it could be seen.
        tcsetattr(stdin.as_fd(), OptionalActions::Flush, &hiding).map_err(failed)?;
        Ok(Hidden(before))
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        // Discards what was typed and not read yet: it is part of a password, and must not reach the shell.
        let _ = tcsetattr(std::io::stdin().as_fd(), OptionalActions::Flush, &self.0);
    }
}
