//! Signals for commands that wait for a proxy: the first one ends the wait in good order, the next one the process.
//!
//! A process that listens for a signal is no longer ended by it. So a thread listens for as long as the process lives:
//! a signal that no wait takes ends the process as the signal itself would have done, whatever the command does at that
//! moment, such as waiting for a proxy that hangs or for an answer on the terminal.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

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
    is_heard: bool,
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

    /// Tells a wait of a signal. Returns false if none takes it.
    fn tell(&self, why: &'static str) -> bool {
        let mut state = self.state();
        let is_taken = state.waits > 0 && !state.is_heard;
        if is_taken {
            state.is_heard = true;
            self.heard.send_replace(Some(why));
        }
        is_taken
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
