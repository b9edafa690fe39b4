//! HTTP/2 clients that ask and do not read: how much memory they cost, and that it is given back.
//!
//! The real binary, asked by raw frames over 100 streams a connection from three addresses of the loopback network. `LARDER_LONG=1` opens
//! 5,000 streams, else it is 1,000 with the same bound for each.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::Instant;

use crate::support::client::{Ask, http2};
use crate::support::process::LarderProcess;
use crate::support::upstream::Upstream;
use crate::support::{DEADLINE, blob, within};

const REPO: &str = "library/alpine";
const MIB: usize = 1 << 20;
const STREAMS_PER_CONNECTION: u32 = 100;
const ADDRESSES: [&str; 3] = ["127.0.0.2", "127.0.0.3", "127.0.0.4"];
/// What 5,000 of them may cost.
const BOUND: usize = 90 * MIB;

/// What may stay of that: for less the C library is not asked to give it back.
const STAYS: usize = 16 * MIB;

fn streams() -> usize {
    match std::env::var_os("LARDER_LONG").is_some_and(|value| value == "1") {
        true => 5_000,
        false => 1_000,
    }
}

/// How a client keeps from taking what it asked for.
#[derive(Clone, Copy, Debug)]
enum Stall {
    /// It never opens the windows that HTTP/2 begins with.
    Window,
    /// Its windows are as wide as can be, but it does not read its socket.
    Socket,
}

/// One frame (RFC 9113, 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The frames that begin a connection and ask for `path` on every stream.
fn asking(path: &str, stall: Stall) -> Vec<u8> {
    const SETTINGS: u8 = 4;
    const WINDOW_UPDATE: u8 = 8;
    const HEADERS: u8 = 1;
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    match stall {
        Stall::Window => bytes.extend(frame(SETTINGS, 0, 0, &[])),
        Stall::Socket => {
            let wide = 0x7fff_ffff_u32.to_be_bytes();
            // SETTINGS_INITIAL_WINDOW_SIZE.
            bytes.extend(frame(SETTINGS, 0, 0, &[&[0, 4][..], &wide].concat()));
            let more = (0x7fff_ffff_u32 - 65_535).to_be_bytes();
            bytes.extend(frame(WINDOW_UPDATE, 0, 0, &more));
        }
    }
    // RFC 7541: GET and http from the static table, two literals that are not indexed.
    let literal = |index: u8, text: &str| [&[index, u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    let head = [&[0x82, 0x86][..], &literal(0x04, path), &literal(0x01, "larder")].concat();
    for stream in (1..).step_by(2).take(STREAMS_PER_CONNECTION as usize) {
        // END_HEADERS and END_STREAM.
        bytes.extend(frame(HEADERS, 0x5, stream, &head));
    }
    bytes
}

async fn connect(from: &str, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(16 * 1024).unwrap();
    socket.bind(SocketAddr::new(from.parse().unwrap(), 0)).unwrap();
    within("a connection", socket.connect(to)).await.unwrap()
}

/// Bytes of memory that the process has.
fn resident(larder: &LarderProcess) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", larder.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: usize = line.unwrap().trim().trim_end_matches(" kB").parse().unwrap();
    kib * 1024
}

/// The sum of a metric over all of its labels that contain `label`.
async fn metric(larder: &LarderProcess, name: &str, label: &str) -> usize {
    let page = Ask::get("/metrics").send(larder.admin()).await.expect(200);
    let page = String::from_utf8(page.body).unwrap();
    let lines = page
        .lines()
        .filter(|line| line.starts_with(name) && line.contains(label));
    let values = lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap());
    values.sum::<f64>() as usize
}

/// Until the memory of the process has not changed by more than 64 KiB for half a second.
async fn settled(larder: &LarderProcess) -> usize {
    let mut last = resident(larder);
    let mut quiet = 0;
    while quiet < 10 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let now = resident(larder);
        quiet = if now.abs_diff(last) <= 64 * 1024 { quiet + 1 } else { 0 };
        last = now;
    }
    last
}

async fn stalled(stall: Stall) {
    let upstream = Upstream::start().await;
    let larder = LarderProcess::start(&upstream, |_| {}).await;
    let digest = upstream.blob(REPO, 16 * MIB);
    let path = blob(REPO, digest);
    larder.get(&path).await.expect_content(&digest);
    // What any client makes the process load and set up is no cost of these.
    for _ in 0..20 {
        http2(larder.registry(), Ask::get(&path)).await.expect_content(&digest);
    }
    let before = settled(&larder).await;
    let answered = metric(&larder, "larder_requests_total", "route=\"blob\"").await;

    let (streams, asking) = (streams(), asking(&path, stall));
    let connections = streams.div_ceil(STREAMS_PER_CONNECTION as usize);
    let mut open = Vec::new();
    for n in 0..connections {
        let mut tcp = connect(ADDRESSES[n % ADDRESSES.len()], larder.registry()).await;
        within("the requests to be taken", tcp.write_all(&asking))
            .await
            .unwrap();
        open.push(tcp);
    }
    tokio::time::timeout(DEADLINE * 3, async {
        while metric(&larder, "larder_requests_total", "route=\"blob\"").await < answered + streams {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .expect("all to be answered");
    let during = settled(&larder).await;
    let buffered = metric(&larder, "larder_http2_buffered_bytes", "").await;
    // Nobody else is held up by them.
    http2(larder.registry(), Ask::get(&path)).await.expect_content(&digest);

    drop(open);
    within("the connections to end", async {
        while metric(&larder, "larder_connections ", "").await > 1 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    // It is looked after every 5 s, and the C library asked for what it keeps every 15.
    let mut after = settled(&larder).await;
    let deadline = Instant::now() + DEADLINE * 2;
    while after > before + STAYS && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(500)).await;
        after = settled(&larder).await;
    }
    let mib = |bytes: usize| bytes as f64 / MIB as f64;
    println!(
        "{stall:?}: {streams} streams: {:.1} MiB before, + {:.1} MiB ({:.1} KiB a stream), {:.1} MiB of them bodies, + {:.1} MiB afterwards",
        mib(before),
        mib(during.saturating_sub(before)),
        during.saturating_sub(before) as f64 / 1024.0 / streams as f64,
        mib(buffered),
        mib(after.saturating_sub(before)),
    );
    assert!(
        during <= before + BOUND * streams / 5_000,
        "they cost {:.1} MiB",
        mib(during - before)
    );
    assert!(after <= before + STAYS, "{:.1} MiB stay", mib(after - before));
}

#[tokio::test]
async fn streams_whose_window_stays_shut() {
    stalled(Stall::Window).await;
}

#[tokio::test]
async fn streams_whose_socket_is_not_read() {
    stalled(Stall::Socket).await;
}
