//! `larder health` as a process: what it prints where, and with which exit status.

use std::process::Command;

use crate::support::client::Ask;
use crate::support::gate::Gate;
use crate::support::process::{LarderProcess, command};
use crate::support::ran::Ran;
use crate::support::upstream::{On, Upstream};
use crate::support::{blob, within};

const REPO: &str = "library/alpine";

async fn output(mut command: Command) -> Ran {
    let running = tokio::task::spawn_blocking(move || command.output().expect("the larder binary"));
    Ran::of(within("the command to end", running).await.unwrap())
}

/// `larder health …` in a folder of its own, where `text` is the configuration file if there is one.
async fn health(text: Option<&str>, variables: &[(&str, &str)], args: &[&str]) -> Ran {
    let home = tempfile::tempdir().unwrap();
    if let Some(text) = text {
        std::fs::write(home.path().join("proxy.toml"), text).unwrap();
    }
    let mut command = command(home.path());
    command.arg("health").args(args).envs(variables.iter().copied());
    output(command).await
}

fn admin(larder: &LarderProcess) -> String {
    larder.admin().to_string()
}

/// Each way to say where the proxy is; no token is needed, and none is sent.
#[tokio::test]
async fn a_proxy_that_is_ready() {
    let upstream = Upstream::start().await;
    let larder = LarderProcess::start(&upstream, |toml| {
        toml.admin("token", "a-token-of-operators");
    })
    .await;
    let at = admin(&larder);
    let url = format!("http://{at}");
    let file = format!("[admin]\nlisten = \"{at}\"\n");
    let by_name = format!("localhost:{}", larder.admin().port());
    for (text, variables, args) in [
        (None, &[][..], &["--admin", &url][..]),
        (None, &[], &["--admin", &at]),
        (None, &[], &["--admin", &by_name]),
        (None, &[("LARDER_ADMIN_URL", url.as_str())], &[]),
        // As in a container that variables configure.
        (None, &[("LARDER_ADMIN__LISTEN", at.as_str())], &[]),
        (Some(file.as_str()), &[], &[]),
        // The command line wins.
        (
            Some("[admin]\nlisten = \"127.0.0.1:1\"\n"),
            &[("LARDER_ADMIN_URL", "http://127.0.0.1:1")],
            &["--admin", &url],
        ),
    ] {
        let ran = health(text, variables, args).await.expect(0);
        assert_eq!(
            (ran.out.as_str(), ran.err.as_str()),
            ("ready\n", ""),
            "{variables:?} {args:?}"
        );
    }
    let ran = health(None, &[], &["--json", "--admin", &url]).await.expect(0);
    let data = ran.json();
    assert_eq!(
        (&data["ready"], &data["status"]),
        (&true.into(), &"ready".into()),
        "{data}"
    );
    let asked = Ask::get("/readyz").send(larder.admin()).await.expect(200).json();
    assert_eq!(data["checks"], asked["checks"]);
}

/// A mistake elsewhere in the file keeps no probe from the proxy that runs: it is told on standard error.
#[tokio::test]
async fn a_broken_configuration() {
    let upstream = Upstream::start().await;
    let larder = LarderProcess::start(&upstream, |_| {}).await;
    let text = format!("[admin]\nlisten = \"{}\"\n[cache]\nmax_sise = 1\n", admin(&larder));
    let ran = health(Some(&text), &[], &[]).await.expect(0);
    assert_eq!(ran.out, "ready\n");
    assert!(
        ran.err.contains("only its admin address is used") && ran.err.contains("max_sise"),
        "{}",
        ran.err
    );
    let gone = health(None, &[], &["--config", "gone.toml"]).await.expect(64);
    assert!(gone.err.contains("gone.toml") && gone.out.is_empty(), "{}", gone.err);
    let variable = health(None, &[("LARDER_ADMIN_URL", "ftp://x")], &[]).await.expect(64);
    assert!(
        variable.err.contains("LARDER_ADMIN_URL: expected https://"),
        "{}",
        variable.err
    );
    let option = health(None, &[], &["--admin", "ftp://x"]).await.expect(64);
    assert!(option.err.contains("--admin"), "{}", option.err);
    // The proxy that runs with it says so itself.
    let file = larder.folder().join("proxy.toml");
    std::fs::write(&file, "[cashe]\n").unwrap();
    larder.wait_for_log("the configuration is refused").await;
    let ran = health(None, &[], &["--admin", &admin(&larder)]).await.expect(0);
    assert!(
        ran.out.starts_with("degraded\n  configuration: refused") && ran.out.contains("cashe"),
        "{}",
        ran.out
    );
}

/// A disk that fails is a reason to look at the proxy, and none to send requests elsewhere.
#[tokio::test]
async fn a_proxy_without_a_disk() {
    let upstream = Upstream::start().await;
    let larder = LarderProcess::start(&upstream, |_| {}).await;
    let staging = larder.cache().join("staging");
    within("a folder in the way of staging", async {
        // Larder makes the folder again, perhaps in between.
        while std::fs::remove_dir_all(&staging).is_err() || std::fs::write(&staging, "in the way").is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let ran = health(None, &[], &["--admin", &admin(&larder)]).await.expect(0);
    assert!(
        ran.out.starts_with("degraded\n") && ran.out.contains("  disk: ") && ran.out.contains("staging"),
        "{}",
        ran.out
    );
    assert!(!ran.out.contains("serving"), "what is well is left out: {}", ran.out);
}

/// 503 is a failure, and the reason is printed.
#[tokio::test]
async fn a_proxy_that_stops() {
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, 1_000_000);
    let gate = Gate::closed();
    upstream.on(On::Blobs).stall_after(500_000, &gate);
    let mut larder = LarderProcess::start(&upstream, |_| {}).await;
    let mut running = Ask::get(blob(REPO, digest)).open(larder.registry()).await;
    running.read_at_least(100_000).await;
    larder.terminate();
    larder.wait_for_log("stopping").await;
    let at = admin(&larder);
    let ran = health(None, &[], &["--admin", &at]).await.expect(1);
    assert_eq!(
        (ran.out.as_str(), ran.err.as_str()),
        ("unavailable\n  serving: stopping\n", "")
    );
    let data = health(None, &[], &["--admin", &at, "--json"]).await.expect(1).json();
    assert_eq!(data["ready"], false);
    gate.open();
    running.rest().await.expect_content(&digest);
    assert_eq!(larder.stop().await, Some(0), "{}", larder.logs());
    let ran = health(None, &[], &["--admin", &at]).await.expect(1);
    assert_eq!(ran.out, "");
    assert!(
        ran.err.contains(&format!("nothing healthy at http://{at}/: ")),
        "{}",
        ran.err
    );
    assert!(ran.err.contains("refused"), "{}", ran.err);
    // With `--json` too, since there is no data.
    let ran = health(None, &[], &["--admin", &at, "--json"]).await.expect(1);
    assert_eq!(ran.out, "");
}

/// Connects and says nothing, says too much, or something else: each has its own reason, and an end.
#[tokio::test]
async fn somebody_else_answers() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let serve = async |answer: &'static [u8], endless: bool| {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let _ = socket.read(&mut [0; 4096]).await;
                    let _ = socket.write_all(answer).await;
                    while endless && socket.write_all(&[b' '; 4096]).await.is_ok() {}
                    // Until the other side has enough of it.
                    let _ = socket.read(&mut [0; 4096]).await;
                });
            }
        });
        at.to_string()
    };
    let page: &[u8] = b"HTTP/1.1 404 Not Found\r\nContent-Length: 6\r\n\r\n<html>";
    let half: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{";
    let cases = [
        (serve(b"", false).await, "no answer within 5 s"),
        (serve(half, false).await, "no answer within 5 s"),
        (serve(b"HTTP/1.1 200 OK\r\n\r\n{", true).await, "it sends too much"),
        (serve(page, false).await, "no larder (status 404)"),
    ];
    let each = cases.map(|(at, why)| async move {
        let begun = std::time::Instant::now();
        let ran = health(None, &[], &["--admin", &at]).await.expect(1);
        assert!(ran.err.contains(&at) && ran.err.contains(why), "{why}: {}", ran.err);
        assert!(begun.elapsed() < std::time::Duration::from_secs(15), "{why}");
    });
    futures_util::future::join_all(each).await;
    // An address that hangs does not hide one that answers.
    let upstream = Upstream::start().await;
    let larder = LarderProcess::start(&upstream, |_| {}).await;
    let silent = serve(b"", false).await;
    let text = format!("[admin]\nlisten = [\"{silent}\", \"{}\"]\n", admin(&larder));
    health(Some(&text), &[], &[]).await.expect(0);
}

/// A Unix socket, as option, variable and in the file.
#[tokio::test]
async fn by_a_unix_socket() {
    let upstream = Upstream::start().await;
    let folder = tempfile::tempdir().unwrap();
    let socket = format!("unix:{}", folder.path().join("admin.sock").display());
    let larder = LarderProcess::start(&upstream, |toml| {
        toml.admin("listen", vec![socket.clone(), "127.0.0.1:0".to_owned()]);
    })
    .await;
    larder.wait_for_log(&format!("admin listening on {socket}")).await;
    health(None, &[], &["--admin", &socket]).await.expect(0);
    health(None, &[("LARDER_ADMIN_URL", &socket)], &[]).await.expect(0);
    health(Some(&format!("[admin]\nlisten = \"{socket}\"\n")), &[], &[])
        .await
        .expect(0);
    let gone = health(None, &[], &["--admin", "unix:/nonexistent/admin.sock"])
        .await
        .expect(1);
    assert!(
        gone.err.contains("nothing healthy at unix:/nonexistent/admin.sock: "),
        "{}",
        gone.err
    );
}
