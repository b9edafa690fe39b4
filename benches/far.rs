//! A far upstream: 20 MB/s on each connection, 40 ms until an answer begins; one blob over one connection, and over
//! as many as Larder finds worth it. `cargo bench --bench far [-- ROUNDS]`; an unoptimised build will do, because the
//! upstream is the limit.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use larder::pull::{Parallel, Timing};
use support::blob;
use support::larder::Larder;
use support::upstream::{Fault, On, Pace, Upstream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const REPO: &str = "library/alpine";
const SIZE: usize = 256 << 20;
const MIB: f64 = 1_048_576.0;

fn main() {
    let rounds = std::env::args().skip(1).find_map(|word| word.parse().ok()).unwrap_or(3);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    println!("connections at most | seconds | MiB/s | requests | sent beyond the blob, KiB");
    for _ in 0..rounds {
        for connections in [1, Parallel::default().connections] {
            runtime.block_on(round(connections));
        }
    }
}

async fn round(connections: usize) {
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, SIZE);
    upstream.on(On::Blobs.get()).always().does([
        Fault::Delay(Duration::from_millis(40)),
        Fault::Pace(Pace::BytesPerSecond(20_000_000)),
    ]);
    let timing = Timing {
        parallel: Parallel {
            connections,
            on_this_machine: true,
            ..Parallel::default()
        },
        ..Timing::default()
    };
    let larder = Larder::start_timed(&upstream, timing, |_| {}).await;
    let begun = Instant::now();
    take(larder.registry(), &blob(REPO, digest)).await;
    let seconds = begun.elapsed().as_secs_f64();
    let beyond = upstream.bytes_sent(On::Blob(digest)).saturating_sub(SIZE as u64);
    println!(
        "{connections} | {seconds:.2} | {:.0} | {} | {}",
        SIZE as f64 / MIB / seconds,
        upstream.count(On::Blob(digest)),
        beyond >> 10
    );
}

/// Reads the whole answer and keeps none of it. That it is right Larder says: it sends the last bytes only then.
async fn take(from: SocketAddr, target: &str) {
    let mut stream = tokio::net::TcpStream::connect(from).await.expect("a connection");
    let head = format!("GET {target} HTTP/1.1\r\nHost: larder\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.expect("a request");
    let mut buffer = vec![0; 1 << 20];
    let mut came = 0;
    loop {
        match stream.read(&mut buffer).await.expect("an answer") {
            0 => break,
            n => came += n,
        }
    }
    assert!(
        (SIZE..SIZE + 4096).contains(&came),
        "{came} bytes came, the head among them"
    );
}
