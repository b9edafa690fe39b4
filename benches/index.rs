//! A cache with a million entries: what its index costs in memory, how fast it is used, and how long after its start
//! the binary serves the first hit. `cargo bench --bench index`, or `-- N` for another number of entries; `-- --fill FOLDER N`
//! only makes a folder of that many (for `benches/scale`).

#![allow(clippy::expect_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use larder::store::scale;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, folder, count, ..] = arguments.as_slice()
        && flag == "--fill"
    {
        let count = count.parse().expect("a number of entries");
        return scale::fill(Path::new(folder), count).expect("a filled folder");
    }
    // cargo adds `--bench`.
    let count = std::env::args()
        .skip(1)
        .find_map(|arg| arg.parse().ok())
        .unwrap_or(1_000_000);
    println!("{count} entries, a tenth of them manifests of nine layers each");
    in_memory(count);
    let folder = tempfile::tempdir().expect("a folder");
    let cache = folder.path().join("cache");
    let started = Instant::now();
    scale::fill(&cache, count).expect("a filled folder");
    println!(
        "\na folder of as many files, made in {:.0} s",
        started.elapsed().as_secs_f64()
    );
    for _ in 0..3 {
        let [opened, loaded] = scale::load(&cache).expect("an index to load");
        println!("  index opened in {opened:.2} s, read in {loaded:.2} s");
    }
    for how in [
        "a clean stop",
        "a clean stop",
        "a clean stop",
        "kill -9",
        "kill -9",
        "kill -9",
    ] {
        first_hit(folder.path(), &cache, count, how);
    }
}

fn in_memory(count: usize) {
    let digests: Vec<_> = (0..count).map(scale::digest).collect();
    let names: Vec<Arc<str>> = (0..count).step_by(200).map(|n| scale::repository(n).into()).collect();
    let before = resident();
    let mut shelf = scale::Shelf::default();
    rate("admissions", count, |n| shelf.admit(n, digests[n], &names[n / 200]));
    let held = resident().saturating_sub(before);
    println!(
        "memory: {:.0} MiB, {} bytes an entry",
        held as f64 / f64::from(1 << 20),
        held / count as u64
    );
    // A walk that meets everything once, in no order that anything is stored in.
    let step = 7_919;
    let at = |n: usize| n.wrapping_mul(step) % count;
    let layers = |n: usize| if n % 10 == 9 { n - 1 } else { n };
    rate("hits asked for", count, |n| {
        assert!(shelf.may_serve(&names[at(n) / 200], &digests[at(n)]));
    });
    rate("touches of a layer", count, |n| {
        assert!(shelf.touch(&digests[layers(at(n))]))
    });
    rate("touches of a manifest and its nine layers", count / 10, |n| {
        assert!(shelf.touch(&digests[at(n) / 10 * 10 + 9]));
    });
    let fresh: Vec<_> = (count..count + count / 2).map(scale::digest).collect();
    rate("admissions with an eviction each", fresh.len(), |n| {
        shelf.admit(0, fresh[n], &names[n / 200]);
        assert!(shelf.evict());
    });
    rate("evictions", count / 2, |_| assert!(shelf.evict()));
}

fn rate(what: &str, count: usize, mut each: impl FnMut(usize)) {
    let started = Instant::now();
    (0..count).for_each(&mut each);
    let seconds = started.elapsed().as_secs_f64();
    println!("{what}: {:.0} a second", count as f64 / seconds);
}

/// From the start of the process to the last byte of the first hit, before the folders are walked; then an end.
fn first_hit(home: &Path, cache: &Path, count: usize, end: &str) {
    let started = Instant::now();
    let mut child = Command::new(env!("CARGO_BIN_EXE_larder"))
        .arg("serve")
        .current_dir(home)
        .env_clear()
        .env("HOME", home)
        .env("LARDER_CACHE__PATH", cache)
        .env("LARDER_CACHE__MAX_SIZE", "1000TiB")
        .env("LARDER_CACHE__MIN_FREE", "0B")
        .env("LARDER_CACHE__OFFLINE", "true")
        .env("LARDER_SERVER__LISTEN", "127.0.0.1:0")
        .env("LARDER_ADMIN__LISTEN", "127.0.0.1:0")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the larder binary");
    let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
    let address = lines.find_map(|line| {
        let line = line.expect("a line");
        line.strip_prefix("larder: registry listening on http://")
            .map(str::to_owned)
    });
    let address = address.expect("an address");
    let listening = started.elapsed();
    let n = count / 2 + 1;
    let name = scale::repository(n).replace("docker.io/", "");
    let digest = scale::digest(n);
    let mut stream = TcpStream::connect(address.trim()).expect("a connection");
    let ask = format!("GET /v2/{name}/blobs/{digest} HTTP/1.1\r\nHost: larder\r\nConnection: close\r\n\r\n");
    stream.write_all(ask.as_bytes()).expect("a question");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an answer");
    let hit = started.elapsed();
    assert!(
        answer.starts_with(b"HTTP/1.1 200"),
        "{}",
        String::from_utf8_lossy(&answer[..200.min(answer.len())])
    );
    assert!(answer.len() as u64 > scale::size(n));
    let peak = status(child.id(), "VmHWM:");
    // Long enough that what runs behind the first hit has begun.
    std::thread::sleep(Duration::from_secs(3));
    println!(
        "  first hit {:.2} s after the start (listening after {:.2} s), peak memory {} MiB, now {} MiB; ended by {end}",
        hit.as_secs_f64(),
        listening.as_secs_f64(),
        peak >> 20,
        status(child.id(), "VmRSS:") >> 20,
    );
    stop(&mut child, end);
}

fn stop(child: &mut Child, end: &str) {
    if end == "kill -9" {
        child.kill().expect("a process to kill");
    } else {
        let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
        rustix::process::kill_process(pid.expect("a process"), rustix::process::Signal::TERM).expect("a stop");
    }
    child.wait().expect("an end");
}

fn resident() -> u64 {
    status(std::process::id(), "VmRSS:")
}

/// A figure of `/proc/PID/status`, in bytes.
fn status(pid: u32, key: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = text.lines().find_map(|line| line.strip_prefix(key)).expect("a figure");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}
