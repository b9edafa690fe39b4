//! Asking a credential helper: `docker-credential-<name> get` (R-U62).
//!
//! Run without a shell, in a process group of its own that ends with its time; the registry's name goes to its standard
//! input. Nothing that it writes is logged, for what it writes is a password; when it fails, its first line is told,
//! unless that looks like an answer.

use std::io::{Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;

use super::body::one_line;
use super::credentials::Credential;
use super::lease::{Give, Given};
use crate::config::{Secret, is_helper_name};

const PATIENCE: Duration = Duration::from_secs(10);
/// Of an answer; a token of Azure has a few thousand.
const MAX_BYTES: u64 = 64 * 1024;
/// What it says where it knows nobody.
const NOBODY: &str = "credentials not found in native keychain";

/// One helper, asked about one registry.
#[derive(Clone, Debug)]
pub struct Helper {
    name: String,
    server: String,
    /// Whether it was named for this registry, or for all of them and may not even be there.
    is_own: bool,
    /// Where programs are looked for, when that is not this process's own `PATH`.
    path: Option<String>,
    patience: Duration,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "Username")]
    username: String,
    #[serde(rename = "Secret")]
    secret: String,
}

impl Helper {
    /// `host` as `Key::host_of` gives it.
    pub fn new(name: &str, host: &str, is_own: bool, path: Option<String>) -> Helper {
        // Docker logs in to the Hub under the name that its first interface had (R-U60).
        let server = match host {
            "docker.io" => "https://index.docker.io/v1/",
            other => other,
        };
        Helper {
            name: name.to_owned(),
            server: server.to_owned(),
            is_own,
            path,
            patience: PATIENCE,
        }
    }

    /// Blocking, for at most its patience.
    fn ask(&self) -> Result<Given, String> {
        let program = format!("docker-credential-{}", self.name);
        if !is_helper_name(&self.name) {
            return Err("a credential helper's name may hold no /".to_owned());
        }
        let mut command = Command::new(&program);
        if let Some(path) = &self.path {
            command.env("PATH", path);
        }
        let child = command
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn();
        let mut child = match child {
            Ok(child) => child,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !self.is_own => {
                tracing::warn!(
                    program,
                    "the login file names this helper for all registries, but it is not installed"
                );
                return Ok(nobody());
            }
            Err(error) => return Err(format!("{program} cannot be run: {error}")),
        };
        let outcome = self.talk(&mut child);
        if outcome.is_err() {
            // It may have started others, and they may hold its output open.
            if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                let _ = kill_process_group(group, Signal::KILL);
            }
        }
        let status = child.wait();
        let said = outcome.map_err(|what| format!("{program} {what}"))?;
        match status {
            Ok(status) if status.success() => read(&said).map_err(|what| format!("{program} {what}")),
            Ok(_) if String::from_utf8_lossy(&said).contains(NOBODY) => Ok(nobody()),
            Ok(status) => Err(format!("{program} failed ({status}){}", complaint(&said))),
            Err(error) => Err(format!("{program}: {error}")),
        }
    }

    fn talk(&self, child: &mut Child) -> Result<Vec<u8>, String> {
        let ends = Instant::now() + self.patience;
        if let Some(mut input) = child.stdin.take() {
            // One that does not read it has its reasons; the name fits the pipe.
            let _ = input.write_all(self.server.as_bytes());
        }
        let Some(output) = child.stdout.take() else {
            return Err("has no output".to_owned());
        };
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || tell.send(gather(output)));
        let late = || format!("did not answer within {} s", self.patience.as_secs_f32());
        let said = told
            .recv_timeout(self.patience)
            .map_err(|_| late())?
            .map_err(|error| error.to_string())?;
        if said.len() as u64 > MAX_BYTES {
            return Err(format!("wrote more than {MAX_BYTES} bytes"));
        }
        // Its output may be closed long before it ends.
        while child.try_wait().map_err(|error| error.to_string())?.is_none() {
            if Instant::now() >= ends {
                return Err(late());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(said)
    }
}

impl Give for Helper {
    fn give(&self) -> BoxFuture<'_, Result<Given, String>> {
        let helper = self.clone();
        Box::pin(async move {
            let asking = tokio::task::spawn_blocking(move || helper.ask());
            asking.await.map_err(|_| "the helper's task ended early".to_owned())?
        })
    }
}

fn gather(output: ChildStdout) -> std::io::Result<Vec<u8>> {
    let mut said = Vec::new();
    output.take(MAX_BYTES + 1).read_to_end(&mut said)?;
    Ok(said)
}

fn nobody() -> Given {
    Given {
        credential: Credential::Anonymous,
        good_for: None,
    }
}

/// Its first line, in brackets.
pub(super) fn complaint(said: &[u8]) -> String {
    let said = String::from_utf8_lossy(said);
    let line = said.lines().next().unwrap_or_default().trim();
    match line.is_empty() || said.contains('{') {
        true => String::new(),
        false => format!(": {}", one_line(line, 120)),
    }
}

pub(super) fn read(said: &[u8]) -> Result<Given, String> {
    // serde's message could quote the secret.
    let answer: Answer =
        serde_json::from_slice(said).map_err(|_| "gave no JSON with Username and Secret".to_owned())?;
    if answer.secret.is_empty() {
        return Ok(nobody());
    }
    let secret = Secret::new(answer.secret);
    let credential = match answer.username.as_str() {
        "<token>" => Credential::Identity {
            username: String::new(),
            token: secret,
        },
        _ => Credential::Basic {
            username: answer.username,
            password: secret,
        },
    };
    Ok(Given {
        credential,
        good_for: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        let given = |text: &str| read(text.as_bytes()).map(|given| given.credential);
        let basic = Credential::Basic {
            username: "u".to_owned(),
            password: Secret::new("p"),
        };
        assert_eq!(
            given(r#"{"ServerURL":"x","Username":"u","Secret":"p"}"#).unwrap(),
            basic
        );
        let token = Credential::Identity {
            username: String::new(),
            token: Secret::new("t"),
        };
        assert_eq!(given(r#"{"Username":"<token>","Secret":"t"}"#).unwrap(), token);
        assert!(given(r#"{"Username":"","Secret":""}"#).unwrap().is_anonymous());
        for bad in [
            "",
            "hunter2",
            r#"{"Username":"u"}"#,
            r#"{"Username":"u","Secret":["hunter2"]}"#,
        ] {
            let error = given(bad).unwrap_err();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn complaints_hold_no_answer() {
        assert_eq!(complaint(b"no keychain\nmore"), ": no keychain");
        assert_eq!(complaint(b"{\"Secret\":\"p\"}"), "");
        assert_eq!(complaint(b"note\n{\"Secret\":\"p\"}"), "");
        assert_eq!(complaint(b""), "");
    }

    #[test]
    fn the_hub_has_a_name_of_its_own() {
        assert_eq!(
            Helper::new("x", "docker.io", true, None).server,
            "https://index.docker.io/v1/"
        );
        assert_eq!(Helper::new("x", "h:5000", true, None).server, "h:5000");
    }

    #[test]
    fn names_with_a_slash_run_nothing() {
        let error = Helper::new("../../bin/sh", "h", true, None).ask().unwrap_err();
        assert!(error.contains("no /"), "{error}");
        assert!(Helper::new("larder-test-none", "h", true, None).ask().is_err());
        let store = Helper::new("larder-test-none", "h", false, None).ask().unwrap();
        assert!(store.credential.is_anonymous());
    }

    /// A program of that name in a folder of its own.
    fn script(text: &str) -> (tempfile::TempDir, Helper) {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("docker-credential-test");
        std::fs::write(&file, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = format!("{}:/usr/bin:/bin", dir.path().display());
        (dir, Helper::new("test", "r.example", true, Some(path)))
    }

    #[test]
    fn the_protocol_as_it_is_spoken() {
        let (_dir, helper) = script(r#"printf '{"Username":"%s","Secret":"%s"}' "$(cat)" "$1""#);
        let given = helper.ask().unwrap().credential;
        let want = Credential::Basic {
            username: "r.example".to_owned(),
            password: Secret::new("get"),
        };
        assert_eq!(given, want);
        let (_dir, helper) = script("echo 'credentials not found in native keychain'; exit 1");
        assert!(helper.ask().unwrap().credential.is_anonymous());
        let (_dir, helper) = script("echo 'the keychain is locked'; echo hunter2 >&2; exit 1");
        let error = helper.ask().unwrap_err();
        assert!(
            error.contains("the keychain is locked") && !error.contains("hunter2"),
            "{error}"
        );
        let (_dir, helper) = script("exec cat /dev/zero");
        assert!(helper.ask().unwrap_err().contains("65536"));
    }

    /// Also one that has started another, which holds its output open.
    #[test]
    fn one_that_hangs_is_ended_with_all_that_it_started() {
        let (dir, mut helper) = script("sleep 600 & echo $! > \"$(dirname \"$0\")/pid\"; sleep 600");
        helper.patience = Duration::from_millis(300);
        let error = helper.ask().unwrap_err();
        assert!(error.contains("did not answer"), "{error}");
        let pid = std::fs::read_to_string(dir.path().join("pid")).unwrap();
        let state = || std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        while !state().is_empty() && !state().contains(") Z") {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
