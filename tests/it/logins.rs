//! Floods of wrong logins: whoever sends them, the others log in at once, and the processor stays free (R-X22).
//!
//! The limits here are about time and processor time; the schedule itself is tested with a clock of its own beside
//! its code.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::client::{Ask, Response};
use crate::support::manifest;
use crate::support::process::LarderProcess;
use crate::support::upstream::{Upstream, basic};

/// Users `user-0`, `user-1`, … whose passwords are their names; one bcrypt each, of the usual cost.
const USERS: usize = 8;

/// Everything takes a login.
async fn start(upstream: &Upstream) -> (tempfile::TempDir, LarderProcess) {
    start_with(upstream, json!([{ "who": "authenticated", "may": "fetch" }])).await
}

async fn start_with(upstream: &Upstream, rules: Value) -> (tempfile::TempDir, LarderProcess) {
    let folder = tempfile::tempdir().unwrap();
    let users: PathBuf = folder.path().join("htpasswd");
    let line = |user: String| format!("{user}:{}\n", bcrypt::hash(&user, 10).unwrap());
    let lines: Vec<String> = (0..USERS).map(|number| line(format!("user-{number}"))).collect();
    std::fs::write(&users, lines.concat()).unwrap();
    let larder = LarderProcess::start(upstream, |toml| {
        toml.set(&["access"], "htpasswd_file", users.to_str().unwrap());
        let rules: toml::Value = serde_json::from_value(rules).unwrap();
        toml.set(&["access"], "rule", rules);
    })
    .await;
    (folder, larder)
}

async fn log_in(to: SocketAddr, number: usize) -> Response {
    let user = format!("user-{number}");
    Ask::get("/token?service=larder")
        .header("Authorization", basic(&user, &user))
        .send(to)
        .await
}

/// Public content, and some that is not.
async fn start_open(upstream: &Upstream) -> (tempfile::TempDir, LarderProcess) {
    let rules = json!([
        { "who": "authenticated", "images": ["docker.io/acme/*"], "may": "fetch" },
        { "images": ["docker.io/library/*"], "may": "fetch" },
    ]);
    start_with(upstream, rules).await
}

/// Asks so often at once, each time with another login or each time with one.
async fn ask_often(to: SocketAddr, path: &str, same: bool) -> Duration {
    let began = Instant::now();
    let clients: Vec<_> = (0..40)
        .map(|client| {
            let path = path.to_owned();
            tokio::spawn(async move {
                for number in 0..10 {
                    let password = if same {
                        "token".to_owned()
                    } else {
                        format!("{client}-{number}")
                    };
                    let login = basic("hubuser", &password);
                    Ask::get(&path)
                        .header("Authorization", login)
                        .send(to)
                        .await
                        .expect(200);
                }
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    began.elapsed()
}

/// Who may have something as anybody gets it at once, whatever login he brings: no refusal is told, so none is paced,
/// and no password is waited for or held against the address. A login that is asked about is checked all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn public_content_waits_for_no_login() {
    let upstream = Upstream::start().await;
    upstream.image("library/open", "1", &[]);
    let (_folder, mut larder) = start_open(&upstream).await;
    let to = larder.registry();
    Ask::get(manifest("library/open", "1")).send(to).await.expect(200);
    let path = manifest("library/open", "1");
    for (path, same) in [
        (path.as_str(), true),
        (path.as_str(), false),
        ("/token?service=larder&scope=repository:library/open:pull", true),
        ("/token?service=larder&scope=repository:library/open:pull", false),
    ] {
        let took = ask_often(to, path, same).await;
        println!("{path}, one pair: {same}: {took:?}");
        assert!(took < Duration::from_secs(4), "{path} {same}: {took:?}");
    }
    let foreign = basic("hubuser", "token");
    for path in [
        "/v2/",
        "/v2/acme/secret/manifests/1",
        "/token?service=larder",
        "/token?service=larder&scope=repository:library/open:pull&scope=repository:acme/secret:pull",
    ] {
        let asked = Ask::get(path).header("Authorization", &foreign).send(to).await;
        asked.expect(401);
    }
    log_in(to, 1).await.expect(200);
    larder.stop().await;
    assert!(!larder.logs().contains("several wrong logins"), "{}", larder.logs());
}

/// Refusals that are told keep their pace, at each place that tells them.
#[tokio::test]
async fn refusals_keep_their_pace() {
    let upstream = Upstream::start().await;
    let (_folder, larder) = start_open(&upstream).await;
    for (number, path) in ["/v2/", "/v2/acme/secret/manifests/1", "/token?service=larder"]
        .into_iter()
        .enumerate()
    {
        let from = Ipv4Addr::new(127, 0, 1, 1 + number as u8);
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(IpAddr::V4(from), 0)).unwrap();
        let mut stream = socket.connect(larder.registry()).await.unwrap();
        let began = Instant::now();
        // Twenty at once, and one each 50 ms.
        for _ in 0..40 {
            let login = basic("user-0", "wrong");
            let request = format!("GET {path} HTTP/1.1\r\nHost: larder\r\nAuthorization: {login}\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            assert_eq!(answer(&mut stream).await.unwrap().0, 401);
        }
        let took = began.elapsed();
        assert!(took >= Duration::from_millis(950), "{path}: {took:?}");
    }
}

/// More connections than there are places, of many addresses in a few networks: who logs in for the first time from
/// elsewhere is served at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crowded_networks_lock_nobody_out() {
    for (addresses, connections) in [(550, 550), (256, 520)] {
        let upstream = Upstream::start().await;
        let (_folder, larder) = start(&upstream).await;
        let to = larder.registry();
        let from = move |number: u32| Ipv4Addr::from_bits(0x7f01_0000 + number % addresses);
        let flood = Flood::begin(to, connections, from, false);
        // Until all places are taken and somebody is sent away.
        while flood.answers().1 < 20 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let mut slowest = Duration::ZERO;
        for number in 1..5 {
            let began = Instant::now();
            log_in(to, number).await.expect(200);
            slowest = slowest.max(began.elapsed());
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        println!("{addresses} addresses, {connections} connections: slowest right login {slowest:?}");
        assert!(slowest < Duration::from_secs(4), "{slowest:?}");
        flood.end().await;
    }
}

/// Connections that each send one wrong login after another, and count the answers.
struct Flood {
    tasks: Vec<tokio::task::JoinHandle<()>>,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    stop: AtomicBool,
    next: AtomicU64,
    refused: AtomicU64,
    busy: AtomicU64,
}

impl Flood {
    /// `from` gives the address of each connection; `same` is whether all send one pair.
    fn begin(to: SocketAddr, connections: u32, from: impl Fn(u32) -> Ipv4Addr, same: bool) -> Flood {
        let counts = Arc::new(Counts::default());
        let tasks = (0..connections)
            .map(|number| {
                let (from, counts) = (from(number), counts.clone());
                tokio::spawn(async move {
                    // A connection that ends early is made anew, as an attacker would; where nobody listens any more
                    // the test is over.
                    while !counts.stop.load(Ordering::Relaxed) {
                        if attack(to, from, same, &counts)
                            .await
                            .is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
                        {
                            break;
                        }
                    }
                })
            })
            .collect();
        Flood { tasks, counts }
    }

    fn answers(&self) -> (u64, u64) {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (get(&self.counts.refused), get(&self.counts.busy))
    }

    /// Stops it; an answer that was not expected fails the test.
    async fn end(self) {
        self.counts.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.abort();
            match task.await {
                Ok(()) => {}
                Err(error) => assert!(error.is_cancelled(), "{error}"),
            }
        }
    }
}

async fn attack(to: SocketAddr, from: Ipv4Addr, same: bool, counts: &Counts) -> std::io::Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(IpAddr::V4(from), 0))?;
    let mut stream: TcpStream = socket.connect(to).await?;
    while !counts.stop.load(Ordering::Relaxed) {
        let number = if same {
            0
        } else {
            counts.next.fetch_add(1, Ordering::Relaxed)
        };
        let login = basic("user-0", &format!("wrong-{number}"));
        let request = format!("GET /token?service=larder HTTP/1.1\r\nHost: larder\r\nAuthorization: {login}\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let (status, retry_after) = answer(&mut stream).await?;
        match status {
            401 => counts.refused.fetch_add(1, Ordering::Relaxed),
            503 => {
                assert!(retry_after, "an answer that says when to come again");
                counts.busy.fetch_add(1, Ordering::Relaxed)
            }
            other => panic!("a wrong login got {other}"),
        };
    }
    Ok(())
}

/// The status, and whether there is a `Retry-After`.
async fn answer(stream: &mut TcpStream) -> std::io::Result<(u16, bool)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name).map(str::trim));
    let length: usize = field("content-length:").unwrap().parse().unwrap();
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Ok((status, field("retry-after:").is_some()))
}

/// Processor time of a process so far, of user and system.
fn cpu(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, after_name) = stat.rsplit_once(") ").unwrap();
    let fields: Vec<&str> = after_name.split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    // USER_HZ is 100 wherever Linux runs.
    Duration::from_millis(ticks * 10)
}

fn process_share(larder: &LarderProcess, before: (Duration, Instant)) -> f64 {
    let (used, passed) = (cpu(larder.pid()) - before.0, before.1.elapsed());
    used.as_secs_f64() / passed.as_secs_f64()
}

/// The bar: 300 connections of one address send wrong logins without end, each another. Others log in for the first
/// time within a second, one after another, and the whole process takes no more than half a core.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_address_locks_nobody_out() {
    let upstream = Upstream::start().await;
    let (_folder, larder) = start(&upstream).await;
    let to = larder.registry();
    let flood = Flood::begin(to, 300, |_| Ipv4Addr::new(127, 0, 0, 2), false);
    // Until all have a place in a queue, or heard that there is none.
    while flood.answers().1 < 50 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let before = (cpu(larder.pid()), Instant::now());
    let mut slowest = Duration::ZERO;
    for number in 1..USERS {
        let began = Instant::now();
        log_in(to, number).await.expect(200);
        slowest = slowest.max(began.elapsed());
        tokio::time::sleep(Duration::from_millis(700)).await;
    }
    let share = process_share(&larder, before);
    let (refused, busy) = flood.answers();
    println!("slowest right login {slowest:?}, {share:.2} of a core, {refused} refused, {busy} sent away");
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    assert!(share <= 0.5, "{share}");
    // From the address of the flood the right login is one among many, but whoever is known is not asked to wait.
    log_in(to, 1).await.expect(200);
    flood.end().await;
}

/// One pair that is sent again and again costs one hash, and 300 connections that do so keep their pace.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_wrong_login_costs_one_hash() {
    let upstream = Upstream::start().await;
    let (_folder, larder) = start(&upstream).await;
    let to = larder.registry();
    let flood = Flood::begin(to, 300, |_| Ipv4Addr::new(127, 0, 0, 2), true);
    while flood.answers().0 < 50 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let before = (cpu(larder.pid()), Instant::now());
    let began = Instant::now();
    log_in(to, 1).await.expect(200);
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    tokio::time::sleep(Duration::from_secs(3)).await;
    let share = process_share(&larder, before);
    let (refused, busy) = flood.answers();
    println!("{share:.2} of a core, {refused} refused, {busy} sent away");
    assert_eq!(busy, 0, "a pair that is known to be wrong needs no place");
    assert!(share <= 0.5, "{share}");
    flood.end().await;
}

/// Three hundred addresses at once: whoever logged in before is served at once, and the budget is one for all of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_addresses_share_one_budget() {
    let upstream = Upstream::start().await;
    let (_folder, larder) = start(&upstream).await;
    let to = larder.registry();
    log_in(to, 1).await.expect(200);
    let flood = Flood::begin(to, 300, |number| Ipv4Addr::from_bits(0x7f01_0000 + number), false);
    // Until what clients may run ahead is used up.
    while flood.answers().0 < 150 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let before = (cpu(larder.pid()), Instant::now());
    for _ in 0..8 {
        let began = Instant::now();
        log_in(to, 1).await.expect(200);
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let share = process_share(&larder, before);
    println!("{share:.2} of a core, {:?}", flood.answers());
    assert!(share <= 0.6, "{share}");
    flood.end().await;
}
