//! As a service of systemd: readiness, signs of life, and sockets that outlive the process.

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::support::client::Ask;
use crate::support::process::{LarderProcess, command};
use crate::support::upstream::Upstream;
use crate::support::{DEADLINE, blob};

const REPO: &str = "library/alpine";

/// What systemd would have been told so far, until a message says `wanted`.
fn told(socket: &UnixDatagram, wanted: &str) -> String {
    let mut text = String::new();
    let mut buffer = [0; 4096];
    while !text.lines().any(|line| line == wanted) {
        let len = socket
            .recv(&mut buffer)
            .unwrap_or_else(|error| panic!("no {wanted} ({error}) in {text:?}"));
        text += &String::from_utf8_lossy(&buffer[..len]);
        text += "\n";
    }
    text
}

/// sd_notify(3): ready when it serves, alive for the watchdog, and stopping when it stops.
#[tokio::test]
async fn it_says_how_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    let upstream = Upstream::start().await;
    let environment = [("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "20000")];
    let mut larder = LarderProcess::start_with(&upstream, &environment, |_| {}).await;
    let ready = told(&socket, "READY=1");
    assert!(
        ready.contains(&format!("STATUS=registry at {}", larder.registry())),
        "{ready}"
    );
    told(&socket, "WATCHDOG=1");
    told(&socket, "WATCHDOG=1");
    larder.terminate();
    told(&socket, "STOPPING=1");
    assert_eq!(larder.stop().await, Some(0));
}

/// As systemd starts it: descriptor 3 and the variables that speak of it, the process's own number among them.
fn activate(socket: &TcpListener, name: &str, configure: impl FnOnce(&mut Command)) -> Child {
    let folder = std::env::temp_dir();
    let larder = command(&folder).get_program().to_owned();
    let mut shell = command(&folder);
    let mut started = Command::new("sh");
    started
        .args(["-c", "LISTEN_PID=$$ exec \"$0\" serve 3<&0 </dev/null"])
        .arg(larder)
        .env_clear()
        .envs(shell.get_envs().filter_map(|(key, value)| Some((key, value?))))
        .envs([
            ("LISTEN_FDS", "1"),
            ("LISTEN_FDNAMES", name),
            ("LARDER_ADMIN__LISTEN", "127.0.0.1:0"),
        ])
        .stdin(Stdio::from(OwnedFd::from(socket.try_clone().unwrap())))
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    configure(&mut started);
    shell.stdin(Stdio::null());
    started.spawn().unwrap()
}

/// Socket activation: who connects while no proxy runs waits for the next one.
#[tokio::test]
async fn the_socket_outlives_the_process() {
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, 50_000);
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("proxy.toml");
    let toml = crate::support::toml::Toml::new(&folder.path().join("cache"), &upstream);
    std::fs::write(&config, toml.text()).unwrap();
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    for _ in 0..2 {
        let waiting = tokio::spawn(Ask::get(blob(REPO, digest)).send(address));
        let mut larder = activate(&socket, "registry", |command| {
            command.env("LARDER_CONFIG", &config);
        });
        waiting.await.unwrap().expect_content(&digest);
        let pid = i32::try_from(larder.id())
            .ok()
            .and_then(rustix::process::Pid::from_raw)
            .unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let status = tokio::task::spawn_blocking(move || larder.wait())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(status.code(), Some(0));
    }
    assert_eq!(upstream.count(crate::support::upstream::On::Blobs), 1);
}

/// What cannot be accepted on is refused by name, before anything is touched.
#[tokio::test]
async fn a_socket_of_another_kind_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let connection = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    connection.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let given = TcpListener::from(OwnedFd::from(connection));
    let larder = activate(&given, "wrong", |_| {});
    let output = tokio::task::spawn_blocking(move || larder.wait_with_output())
        .await
        .unwrap()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{said}");
    assert!(said.contains("socket 1 of LISTEN_FDS (\"wrong\")"), "{said}");
}
