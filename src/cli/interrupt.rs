//! Signals for commands that wait for a proxy: the first one ends the wait in good order, the next one the process,
//! unless it comes together with the first.
//!
//! A process that listens for a signal is no longer ended by it. So a thread listens for as long as the process lives:
//! a signal that no wait takes ends the process as the signal itself would have done, whatever the command does at that
//! moment, such as waiting for a proxy that hangs or for an answer on the terminal.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use super::serve::ONE_WISH;

/// Exit status of a process that a signal ended, as shells report it, less the signal's number.
const BY_SIGNAL: i32 = 128;

/// A wait that a signal ends. Signals are heard from when it is made until it is dropped.
pub(super) struct Interrupt {
    heard: Option<watch::Receiver<Option<&'static str>>>,
}

struct Signals {
    state: Mutex<State>,
    heard: watch::Sender<Option<&'static str>>,
}

#[derive(Default)]
struct State {
    /// Waits that a signal may end.
    waits: usize,
    /// When one was told of a signal.
    heard: Option<Instant>,
}

impl State {
    /// Returns what becomes of a signal.
    fn take(&mut self, now: Instant) -> Taken {
        match self.heard {
            Some(heard) if now.saturating_duration_since(heard) < ONE_WISH => Taken::Again,
            None if self.waits > 0 => {
                self.heard = Some(now);
                Taken::ByWait
            }
            _ => Taken::ByNobody,
        }
    }
}

/// The fate of a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taken {
    ByWait,
    /// It came together with the one that a wait has taken.
    Again,
    ByNobody,
}

static SIGNALS: OnceLock<Option<Signals>> = OnceLock::new();

impl Interrupt {
    pub(super) fn listen() -> Interrupt {
        let signals = SIGNALS.get_or_init(|| {
            listen_on_a_thread().then(|| Signals {
                state: Mutex::default(),
                heard: watch::Sender::new(None),
            })
        });
        let heard = signals.as_ref().map(|signals| {
            signals.state().waits += 1;
            signals.heard.subscribe()
        });
        Interrupt { heard }
    }

    /// Returns which signal came. May be dropped and called again.
    pub(super) async fn asked(&mut self) -> &'static str {
        if let Some(heard) = &mut self.heard
            && let Ok(why) = heard.wait_for(Option::is_some).await
            && let Some(why) = *why
        {
            return why;
        }
        std::future::pending().await
    }
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        if let Some(signals) = SIGNALS.get().and_then(Option::as_ref).filter(|_| self.heard.is_some()) {
            signals.state().waits -= 1;
        }
    }
}

impl Signals {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells a wait of a signal. Returns false if nobody takes it.
    fn tell(&self, why: &'static str) -> bool {
        let taken = self.state().take(Instant::now());
        if taken == Taken::ByWait {
            self.heard.send_replace(Some(why));
        }
        taken != Taken::ByNobody
    }
}

/// Returns true once signals are heard; without a thread they go on ending the process.
fn listen_on_a_thread() -> bool {
    let (ready, is_ready) = std::sync::mpsc::channel();
    let listening = std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
            return;
        };
        runtime.block_on(async {
            let signals =
                signal(SignalKind::interrupt()).and_then(|first| Ok((first, signal(SignalKind::terminate())?)));
            if let Ok((interrupt, terminate)) = signals {
                let _ = ready.send(());
                hear(interrupt, terminate).await;
            }
        });
    });
    listening.is_ok() && is_ready.recv().is_ok()
}

async fn hear(mut interrupt: Signal, mut terminate: Signal) {
    loop {
        let (why, kind) = tokio::select! {
            _ = interrupt.recv() => ("interrupt", SignalKind::interrupt()),
            _ = terminate.recv() => ("terminate", SignalKind::terminate()),
        };
        let signals = SIGNALS.get().and_then(Option::as_ref);
        if !signals.is_some_and(|signals| signals.tell(why)) {
            std::process::exit(BY_SIGNAL + kind.as_raw_value());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_that_come_together_are_one() {
        let begun = Instant::now();
        let mut state = State::default();
        assert_eq!(state.take(begun), Taken::ByNobody, "nobody waits");
        state.waits = 1;
        assert_eq!(state.take(begun), Taken::ByWait);
        state.waits = 0;
        assert_eq!(state.take(begun + ONE_WISH / 2), Taken::Again);
        assert_eq!(state.take(begun + ONE_WISH), Taken::ByNobody);
        state.waits = 1;
        assert_eq!(state.take(begun + ONE_WISH * 2), Taken::ByNobody, "one signal is taken");
    }
}
