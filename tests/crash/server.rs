//! `larder serve` on a folder that outlives it. Unlike `support::process` it can be killed before it listens.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::mpsc;

use crate::folder::Folder;
use crate::support::client::Ask;
use crate::support::{process, within};

/// Spawned; nothing is known of it yet.
pub struct Starting {
    child: Reaped,
    lines: mpsc::UnboundedReceiver<String>,
}

/// Ended, at the latest, with whoever owns it.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Starting {
    /// On the folder's `proxy.toml`; what it has to say goes to its `larder.log`.
    pub fn spawn(folder: &Folder) -> Starting {
        let home = folder.home();
        let mut child = process::command(home)
            .args(["serve", "--config"])
            .arg(home.join("proxy.toml"))
            .stderr(Stdio::from(folder.log()))
            .spawn()
            .expect("the larder binary");
        let out = child.stdout.take().expect("stdout");
        let (sender, lines) = mpsc::unbounded_channel();
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Starting {
            child: Reaped(child),
            lines,
        }
    }

    /// SIGKILL, wherever it is.
    pub fn kill(self) {}

    /// Until it listens.
    pub async fn ready(mut self) -> Result<Server, String> {
        let mut found: [Option<SocketAddr>; 2] = [None, None];
        let marks = ["registry listening on http://", "admin listening on http://"];
        while let Some(line) = within("larder to listen", self.lines.recv()).await {
            for (mark, place) in marks.iter().zip(&mut found) {
                if let Some((_, address)) = line.split_once(mark) {
                    *place = address.trim().parse().ok();
                }
            }
            if let [Some(registry), Some(admin)] = found {
                return Ok(Server {
                    child: self.child,
                    registry,
                    admin,
                });
            }
        }
        let status = self.child.0.wait().expect("a process that ended");
        Err(format!("larder did not start ({status}): see larder.log"))
    }
}

pub struct Server {
    child: Reaped,
    pub registry: SocketAddr,
    pub admin: SocketAddr,
}

/// What the operators' address says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figures {
    pub used_bytes: u64,
    pub max_bytes: u64,
}

impl Server {
    /// SIGKILL in the middle of whatever it does.
    pub fn kill(self) {}

    /// SIGTERM; gives the exit status.
    pub async fn stop(mut self) -> Option<i32> {
        let pid = i32::try_from(self.child.0.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.expect("a process id"), Signal::TERM).expect("a process to stop");
        within("larder to exit", async {
            loop {
                if let Some(status) = self.child.0.try_wait().expect("a process to wait for") {
                    return status.code();
                }
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
        })
        .await
    }

    pub async fn figures(&self) -> Figures {
        let ready = Ask::get("/readyz").send(self.admin).await.expect(200).json();
        let checks = ready["checks"].as_array().cloned().unwrap_or_default();
        let cache = checks.iter().find(|check| check["name"] == "cache");
        let detail = cache.and_then(|check| check["detail"].as_str()).unwrap_or_default();
        // "3 blobs, 12288 of 1048576 bytes"
        let numbers: Vec<u64> = detail.split([' ', ',']).filter_map(|word| word.parse().ok()).collect();
        match numbers[..] {
            [_, used_bytes, max_bytes] => Figures { used_bytes, max_bytes },
            _ => panic!("no figures in {ready}"),
        }
    }

    /// Evictions since it started.
    pub async fn evictions(&self) -> u64 {
        let page = Ask::get("/metrics").send(self.admin).await.expect(200);
        let page = String::from_utf8(page.body).expect("metrics in UTF-8");
        let lines = page.lines().filter(|line| line.starts_with("larder_evictions_total"));
        lines
            .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
            .sum()
    }
}
