//! Commands of the real binary that end by themselves, and what they said.

use std::path::Path;
use std::process::{Output, Stdio};

use serde_json::Value;

use super::client::Ask;
use super::process::{LarderProcess, command};
use super::upstream::Image;
use super::{blob, manifest, within};

pub struct Ran {
    pub status: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Ran {
    pub fn of(output: Output) -> Ran {
        let text = |bytes| String::from_utf8(bytes).expect("output in UTF-8");
        Ran {
            status: output.status.code(),
            out: text(output.stdout),
            err: text(output.stderr),
        }
    }

    #[track_caller]
    pub fn expect(self, status: i32) -> Ran {
        assert_eq!(self.status, Some(status), "{}\n{}", self.out, self.err);
        self
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("no JSON ({error}): {}", self.out))
    }
}

/// `larder …` with the configuration file of that folder, and `input` on its standard input.
pub async fn run_with(folder: &Path, args: &[&str], input: &str) -> Ran {
    run_fed(folder, args, input.as_bytes().to_vec()).await
}

/// [`run_with`] for any bytes.
pub async fn run_fed(folder: &Path, args: &[&str], input: Vec<u8>) -> Ran {
    let mut command = command(folder);
    command
        .args(args)
        .arg("--config")
        .arg(folder.join("proxy.toml"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let running = tokio::task::spawn_blocking(move || {
        let mut child = command.spawn().expect("the larder binary");
        let mut stdin = child.stdin.take().expect("its standard input");
        // Who does not read it may have ended already.
        let _ = std::io::Write::write_all(&mut stdin, &input);
        drop(stdin);
        child.wait_with_output().expect("its output")
    });
    Ran::of(within("the command to end", running).await.unwrap())
}

pub async fn run(folder: &Path, args: &[&str]) -> Ran {
    run_with(folder, args, "").await
}

/// The same through the running proxy, whose port is a free one.
pub async fn ask(larder: &LarderProcess, args: &[&str]) -> Ran {
    let admin = format!("http://{}", larder.admin());
    let args: Vec<&str> = args.iter().copied().chain(["--admin", &admin]).collect();
    run(larder.folder(), &args).await
}

/// Pulls all of an image, and waits until it is held for good.
pub async fn pull(larder: &LarderProcess, image: &Image, tag: &str) {
    larder.get(manifest(&image.repo, tag)).await.expect(200);
    for digest in image.blobs() {
        larder.get(blob(&image.repo, digest)).await.expect_content(&digest);
    }
    settle(larder).await;
}

/// Waits until what came is kept: a transfer is counted until then.
pub async fn settle(larder: &LarderProcess) {
    within("all of it to be kept", async {
        let stats = || Ask::get("/api/v1/stats").send(larder.admin());
        while stats().await.expect(200).json()["transfers"] != 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
