//! Work on a file that the disk may have spoilt: a panic of the database's code is an error, not the end of the process.
//!
//! redb checks what it reads where that is cheap, and panics where a page is not what it must be. Such a panic says that
//! the file is damaged, and nothing about this process.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
    /// The last panic's message and place.
    static SAID: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Runs `work`. Error: the text of its panic, which is written nowhere else: a backtrace in the log would look like
/// a fault of the program.
pub(super) fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    // A hook cannot be set by a thread that panics. Such a thread has begun to write its backtrace anyway.
    if !std::thread::panicking() {
        keep_quiet();
    }
    let before = GUARDED.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(work));
    GUARDED.set(before);
    outcome.map_err(|payload| {
        let said = SAID.with_borrow_mut(Option::take);
        // The payload's own drop is somebody else's code as well.
        std::mem::forget(payload);
        said.unwrap_or_else(|| "the database's code gave up".to_owned())
    })
}

/// Has the panics of guarded work noted and not printed; all others go where they went before.
fn keep_quiet() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = take_hook();
        set_hook(Box::new(move |panic| {
            // Not accessible while a thread ends: then nothing is guarded.
            if !GUARDED.try_with(Cell::get).unwrap_or(false) {
                return before(panic);
            }
            let payload = panic.payload();
            let text = payload.downcast_ref::<&str>().copied();
            let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
            let text = text.unwrap_or("without a message");
            let place = panic.location().map(|at| format!(" ({}:{})", at.file(), at.line()));
            let said = format!("{text}{}", place.unwrap_or_default());
            let _ = SAID.try_with(|last| *last.borrow_mut() = Some(said));
        }));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_with_its_text() {
        assert_eq!(guarded(|| 7), Ok(7));
        let said = guarded(|| -> u8 { panic!("page {} is spoilt", 3) }).unwrap_err();
        assert!(
            said.starts_with("page 3 is spoilt (") && said.contains("guard.rs:"),
            "{said}"
        );
        // Within one another, and on another thread.
        let outer = guarded(|| guarded(|| -> u8 { panic!("inner") }).unwrap_err());
        assert!(outer.unwrap().starts_with("inner"));
        let other = std::thread::spawn(|| guarded(|| -> u8 { std::panic::panic_any(5) }));
        assert!(other.join().unwrap().unwrap_err().starts_with("without a message"));
    }
}
