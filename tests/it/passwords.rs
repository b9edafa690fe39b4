//! `larder auth hash` at a terminal: what is typed is not shown, and the terminal is left as it was found.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};

use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, SpecialCodeIndex, Termios, tcgetattr};

use crate::support::process::command;
use crate::support::within;

/// A terminal with `larder auth hash alice` in its foreground.
struct Terminal {
    keys: File,
    device: OwnedFd,
    /// All that the terminal showed.
    shown: Arc<Mutex<String>>,
    child: Child,
    _home: tempfile::TempDir,
}

impl Terminal {
    /// `None`: this machine cannot give a process a terminal.
    fn start() -> Option<Terminal> {
        let home = tempfile::tempdir().unwrap();
        let keys = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).ok()?;
        grantpt(&keys).ok()?;
        unlockpt(&keys).ok()?;
        let name = ptsname(&keys, Vec::new()).ok()?;
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let device = open(name.as_c_str(), flags, Mode::empty()).ok()?;
        let larder = command(home.path());
        // util-linux: a session of its own, so that Ctrl-C reaches it and nobody else.
        let mut command = std::process::Command::new("setsid");
        command
            .args(["--ctty", "--wait"])
            .arg(larder.get_program())
            .args(["auth", "hash", "alice"])
            .current_dir(home.path())
            .stdin(Stdio::from(device.try_clone().ok()?))
            .stdout(Stdio::piped())
            .stderr(Stdio::from(device.try_clone().ok()?));
        let Ok(child) = command.spawn() else {
            eprintln!("not run: there is no setsid");
            return None;
        };
        let keys = File::from(keys);
        let shown = Arc::<Mutex<String>>::default();
        let (mut screen, seen) = (keys.try_clone().unwrap(), shown.clone());
        std::thread::spawn(move || {
            let mut buffer = [0; 1024];
            while let Ok(read @ 1..) = screen.read(&mut buffer) {
                seen.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..read]));
            }
        });
        Some(Terminal {
            keys,
            device,
            shown,
            child,
            _home: home,
        })
    }

    fn shown(&self) -> String {
        self.shown.lock().unwrap().clone()
    }

    async fn shows(&self, text: &str) {
        within(text, async {
            while !self.shown().contains(text) {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        })
        .await;
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    fn modes(&self) -> Termios {
        tcgetattr(self.device.as_fd()).unwrap()
    }

    /// Its exit status and standard output.
    async fn end(&mut self) -> (Option<i32>, String) {
        let status = within("the command to end", async {
            loop {
                if let Some(status) = self.child.try_wait().unwrap() {
                    return status;
                }
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        })
        .await;
        let mut out = String::new();
        self.child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
        (status.code(), out)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[track_caller]
fn is_as_before(now: &Termios, before: &Termios) {
    assert_eq!(now.local_modes, before.local_modes);
    for key in [
        SpecialCodeIndex::VQUIT,
        SpecialCodeIndex::VSUSP,
        SpecialCodeIndex::VINTR,
    ] {
        assert_eq!(now.special_codes[key], before.special_codes[key]);
    }
}

/// Typed twice and compared; nothing of it is on the screen, and the line is on standard output.
#[tokio::test]
async fn a_password_is_typed_twice_and_never_shown() {
    for (second, status) in [("s3cret", 0), ("s3cret-not", 64)] {
        let Some(mut terminal) = Terminal::start() else { return };
        terminal.shows("password for alice: ").await;
        assert!(!terminal.modes().local_modes.contains(LocalModes::ECHO));
        // A slip and the key that takes it back.
        terminal.press("s3crex\u{7f}t\n");
        terminal.shows("once more: ").await;
        terminal.press(&format!("{second}\n"));
        let (ended, out) = terminal.end().await;
        assert_eq!(ended, Some(status), "{}", terminal.shown());
        assert!(terminal.modes().local_modes.contains(LocalModes::ECHO));
        assert!(!terminal.shown().contains("s3cre"), "{}", terminal.shown());
        match status {
            0 => {
                let hash = out.trim_end().strip_prefix("alice:").unwrap();
                assert!(bcrypt::verify("s3cret", hash).unwrap());
            }
            _ => {
                assert_eq!(out, "");
                terminal.shows("the two passwords differ").await;
            }
        }
    }
}

/// Ctrl-C at either question gives the terminal back as it was, and makes no line.
#[tokio::test]
async fn ctrl_c_gives_the_terminal_back() {
    for questions in [1, 2] {
        let Some(mut terminal) = Terminal::start() else { return };
        // A new terminal shows what is typed.
        let another = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        let before = tcgetattr(another.as_fd()).unwrap();
        assert!(before.local_modes.contains(LocalModes::ECHO | LocalModes::ISIG));
        terminal.shows("password for alice: ").await;
        if questions == 2 {
            terminal.press("s3cret\n");
            terminal.shows("once more: ").await;
        }
        // In the middle of it; Ctrl-Z and Ctrl-\ are no keys meanwhile.
        terminal.press("s3c\u{1a}\u{1c}");
        terminal.press("\u{3}");
        let (status, out) = terminal.end().await;
        assert_eq!((status, out.as_str()), (Some(1), ""), "{}", terminal.shown());
        is_as_before(&terminal.modes(), &before);
        assert!(!terminal.shown().contains("s3c"), "{}", terminal.shown());
    }
}
