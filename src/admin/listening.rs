//! Finds the user whose process listens at a port of this machine, in the kernel's table.
//!
//! A token that lies in a file of one user's proxy must not be sent to a port that another user's process has taken:
//! `localhost` may be two addresses, and the proxy may listen at a third.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// A socket that listens, in the column `st`.
const LISTEN: &str = "0A";

/// The users whose processes take connections to this address; none where the table cannot be read. Blocking, briefly.
pub fn owners(address: SocketAddr) -> Vec<u32> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| std::fs::read_to_string(path).unwrap_or_default());
    let sockets = tables.iter().flat_map(|table| parse(table));
    let all: Vec<_> = sockets.map(|socket| (socket.at, socket.uid)).collect();
    who_takes(address, &all)
}

/// The addresses with this port at which this very process listens; none where the tables cannot be read. Blocking, briefly.
pub fn of_process(pid: u32, port: u16) -> Vec<SocketAddr> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
        .flatten();
    let links = entries.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    let own: HashSet<u64> = links.filter_map(|link| socket_inode(link.to_str()?)).collect();
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| std::fs::read_to_string(path).unwrap_or_default());
    let all = tables.iter().flat_map(|table| parse(table));
    let mut found: Vec<SocketAddr> = all
        .filter(|socket| socket.at.port() == port && own.contains(&socket.inode))
        .map(|socket| socket.at)
        .collect();
    found.sort_unstable();
    found
}

/// `socket:[4711]`.
fn socket_inode(link: &str) -> Option<u64> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// A socket that listens.
struct Listening {
    at: SocketAddr,
    uid: u32,
    inode: u64,
}

/// The kernel hands a connection to the socket that names its address, else to one that takes every address.
fn who_takes(address: SocketAddr, listening: &[(SocketAddr, u32)]) -> Vec<u32> {
    let ip = address.ip().to_canonical();
    let at = |fits: &dyn Fn(IpAddr) -> bool| -> Vec<u32> {
        let same = listening
            .iter()
            .filter(|(at, _)| at.port() == address.port() && fits(at.ip()));
        same.map(|(_, uid)| *uid).collect()
    };
    let exact = at(&|other| other.to_canonical() == ip);
    let of_family = || at(&|other| other.is_unspecified() && other.is_ipv4() == ip.is_ipv4());
    let of_both = || at(&|other| other.is_unspecified() && other.is_ipv6());
    [exact, of_family(), of_both()]
        .into_iter()
        .find(|owners| !owners.is_empty())
        .unwrap_or_default()
}

/// The sockets that listen, with their owners; lines of another form are passed over.
fn parse(table: &str) -> impl Iterator<Item = Listening> + '_ {
    table.lines().filter_map(|line| {
        let mut columns = line.split_ascii_whitespace();
        let address = columns.nth(1)?;
        let state = columns.nth(1)?;
        let uid = columns.nth(3)?;
        let inode = columns.nth(1)?;
        (state == LISTEN).then_some(())?;
        Some(Listening {
            at: socket_address(address)?,
            uid: uid.parse().ok()?,
            inode: inode.parse().ok()?,
        })
    })
}

/// `0100007F:1389`: words in this machine's order of bytes, and a port.
fn socket_address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| u32::from_str_radix(ip.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    let ip = match ip.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let words = [word(0)?, word(8)?, word(16)?, word(24)?];
            let mut bytes = [0; 16];
            for (into, word) in bytes.chunks_exact_mut(4).zip(words) {
                into.copy_from_slice(&word);
            }
            IpAddr::V6(Ipv6Addr::from(bytes))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEADER: &str =
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";

    #[cfg(target_endian = "little")]
    #[test]
    fn lines_of_the_table() {
        let table = format!(
            "{HEADER}   0: 0100007F:1389 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 1 1 0 100 0 0 10 0\n   \
             1: 0100007F:138A 00000000:0000 01 00000000:00000000 00:00000000 00000000  1001        0 2 1 0 100 0 0 10 0\n   \
             2: 00000000000000000000000001000000:1389 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     7        0 3 1\n"
        );
        let found: Vec<_> = parse(&table)
            .map(|socket| (socket.at.to_string(), socket.uid, socket.inode))
            .collect();
        assert_eq!(
            found,
            [("127.0.0.1:5001".to_owned(), 1000, 1), ("[::1]:5001".to_owned(), 7, 3)]
        );
    }

    #[test]
    fn the_nearest_socket_takes_it() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let listening = [
            (at("127.0.0.1:1"), 1),
            (at("0.0.0.0:1"), 2),
            (at("[::]:1"), 3),
            (at("[::]:2"), 4),
            (at("[::ffff:127.0.0.1]:3"), 5),
        ];
        for (asked, owners) in [
            ("127.0.0.1:1", vec![1]),
            ("127.0.0.2:1", vec![2]),
            ("[::1]:1", vec![3]),
            ("127.0.0.1:2", vec![4]),
            ("127.0.0.1:3", vec![5]),
            ("127.0.0.1:4", vec![]),
        ] {
            assert_eq!(who_takes(at(asked), &listening), owners, "{asked}");
        }
    }

    #[test]
    fn the_table_of_this_machine_knows_this_process() {
        for ip in ["127.0.0.1:0", "0.0.0.0:0"] {
            let listener = std::net::TcpListener::bind(ip).unwrap();
            let at = SocketAddr::from(([127, 0, 0, 1], listener.local_addr().unwrap().port()));
            assert_eq!(owners(at), [rustix::process::geteuid().as_raw()]);
        }
    }

    /// The same port at another address of this machine, and another process's, are not among them.
    #[test]
    fn sockets_of_a_process() {
        let own = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = own.local_addr().unwrap();
        let mut other = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        assert_eq!(of_process(std::process::id(), at.port()), [at]);
        assert_eq!(of_process(other.id(), at.port()), []);
        other.kill().unwrap();
        other.wait().unwrap();
        assert_eq!(socket_inode("socket:[7]"), Some(7));
        assert_eq!(socket_inode("pipe:[7]"), None);
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in "[ 0-9A-Fa-fé:\n]{0,200}") {
            let _ = parse(&text).count();
        }
    }
}
