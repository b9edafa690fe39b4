use super::*;
use proptest::prelude::*;
use tokio::io::AsyncWriteExt as _;

fn told(read: &[u8]) -> Told {
    match parse(read) {
        Ok(Parsed::Told(told, length)) => {
            assert_eq!(length, read.len());
            told
        }
        other => panic!("{other:?} of {:?}", String::from_utf8_lossy(read)),
    }
}

fn client(text: &str) -> Told {
    Told::Client(text.parse().unwrap())
}

fn binary(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
    [BINARY, &[0x20 | command, family], &length, rest].concat()
}

#[test]
fn version_1() {
    assert_eq!(
        told(b"PROXY TCP4 203.0.113.9 10.0.0.1 56324 443\r\n"),
        client("203.0.113.9:56324")
    );
    assert_eq!(told(b"PROXY TCP6 2001:db8::7 ::1 1 2\r\n"), client("[2001:db8::7]:1"));
    assert_eq!(
        told(b"PROXY TCP6 ::ffff:203.0.113.9 ::ffff:10.0.0.1 1 2\r\n"),
        client("203.0.113.9:1")
    );
    assert_eq!(told(b"PROXY UNKNOWN\r\n"), Told::Unknown);
    assert_eq!(told(b"PROXY UNKNOWN what ever 5 \xc3\xa9\r\n"), Told::Unknown);
    let longest = format!("PROXY UNKNOWN {}\r\n", "x".repeat(LONGEST_TEXT - 16));
    assert_eq!((longest.len(), told(longest.as_bytes())), (LONGEST_TEXT, Told::Unknown));
    for bad in [
        "PROXY TCP4 203.0.113.9 10.0.0.1 1\r\n",
        "PROXY TCP4 203.0.113.9 10.0.0.1 1 2 3\r\n",
        "PROXY TCP4  203.0.113.9 10.0.0.1 1 2\r\n",
        "PROXY TCP4 203.0.113.9 10.0.0.1 1 2\n",
        "PROXY TCP4 203.0.113.9 ::1 1 2\r\n",
        "PROXY TCP6 203.0.113.9 10.0.0.1 1 2\r\n",
        "PROXY TCP4 203.0.113.9 10.0.0.1 65536 2\r\n",
        "PROXY TCP4 203.0.113.9 10.0.0.1 +1 2\r\n",
        "PROXY TCP4 203.0.113.9 10.0.0.1 1 -2\r\n",
        "PROXY TCP4 \u{e9} 10.0.0.1 1 2\r\n",
        &"PROXY UNKNOWN ".repeat(20),
    ] {
        assert!(parse(bad.as_bytes()).is_err(), "{bad:?}");
    }
}

#[test]
fn version_2() {
    let v4 = [203, 0, 113, 9, 10, 0, 0, 1, 0xdc, 4, 1, 0xbb];
    assert_eq!(told(&binary(1, 0x11, &v4)), client("203.0.113.9:56324"));
    let addresses = ["2001:db8::7", "::1"].map(|text| text.parse::<Ipv6Addr>().unwrap().octets());
    let v6 = [addresses.concat(), vec![0, 1, 0, 2]].concat();
    assert_eq!(told(&binary(1, 0x21, &v6)), client("[2001:db8::7]:1"));
    // Extensions are of no interest.
    let more = [&v4[..], &[4, 0, 3, 1, 2, 3]].concat();
    assert_eq!(told(&binary(1, 0x11, &more)), client("203.0.113.9:56324"));
    // The health check of a load balancer, with addresses or without.
    assert_eq!(told(&binary(0, 0, &[])), Told::Itself);
    assert_eq!(told(&binary(0, 0x11, &v4)), Told::Itself);
    for family in [0, 0x10, 0x31, 0x32] {
        assert_eq!(told(&binary(1, family, &v4)), Told::Unknown, "{family:x}");
    }
    for (command, family, rest) in [
        (2, 0x11, &v4[..]),
        (1, 0x12, &v4),
        (1, 0x13, &v4),
        (1, 0x41, &v4),
        (1, 0x11, &v4[..11]),
        (1, 0x21, &v4),
    ] {
        let header = binary(command, family, rest);
        assert!(parse(&header).is_err(), "{command} {family:x} {}", rest.len());
    }
    let mut version_3 = binary(1, 0x11, &v4);
    version_3[12] = 0x31;
    assert!(parse(&version_3).is_err());
}

#[test]
fn what_is_no_header_is_left_alone() {
    for other in [
        "GET / HTTP/1.1\r\n",
        "POST / HTTP/1.1",
        "PRI * HTTP/2.0\r\n",
        "PROXYING",
        // HTTP allows any word for a method.
        "PROXY /v2/library/alpine/manifests/1 HTTP/1.1\r\n",
        "PROXY TCP/ HTTP/1.1\r\n",
        "PROXY UNKNOWNS HTTP/1.1\r\n",
        "PROXY http://larder/ HTTP/1.1\r\n",
        "PROXY \r\n",
        "PROXY TCP5 203.0.113.9 10.0.0.1 1 2\r\n",
        "PROXY tcp4 203.0.113.9 10.0.0.1 1 2\r\n",
        "\r\n\r\nGET",
        "\u{16}\u{3}",
    ] {
        assert_eq!(parse(other.as_bytes()), Ok(Parsed::Absent), "{other:?}");
    }
    assert!(may_begin_with(b'P') && may_begin_with(b'\r') && !may_begin_with(b'G') && !may_begin_with(0x16));
}

/// In the smallest pieces, with something behind it that is not to be touched.
#[tokio::test]
async fn nothing_is_read_that_follows() {
    let long = binary(
        1,
        0x11,
        &[&[203, 0, 113, 9, 10, 0, 0, 1, 0, 1, 0, 2][..], &[0; 60_000]].concat(),
    );
    for (header, told) in [
        (&b"PROXY TCP4 203.0.113.9 10.0.0.1 1 2\r\n"[..], client("203.0.113.9:1")),
        (b"PROXY UNKNOWN\r\n", Told::Unknown),
        (&long, client("203.0.113.9:1")),
        (&binary(0, 0, &[]), Told::Itself),
    ] {
        let (mut near, mut far) = tokio::io::duplex(1);
        let sent = [header, b"\n\x16"].concat();
        let sending = tokio::spawn(async move { far.write_all(&sent).await });
        assert_eq!(read(&mut near, &[]).await.unwrap(), Beginning::Header(told));
        let mut rest = Vec::new();
        near.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"\n\x16");
        sending.await.unwrap().unwrap();
        // However much of it was seen before.
        let sent = [header, b"\n\x16"].concat();
        for seen in 0..sent.len().min(USUAL) {
            let mut left = &sent[..];
            assert_eq!(read(&mut left, &sent[..seen]).await.unwrap(), Beginning::Header(told));
            assert_eq!(left, b"\n\x16", "{seen}");
        }
    }
    let mut other = &b"PUT / HTTP/1.1\r\n"[..];
    let Beginning::Other(bytes) = read(&mut other, b"PUT / HTTP/1.1\r\n").await.unwrap() else {
        panic!("no header")
    };
    assert_eq!([&bytes[..], other].concat(), b"PUT / HTTP/1.1\r\n");
    for cut in [&b"PROXY TCP4 203"[..], &long[..1000], &long[..20], b"PROXY UNK"] {
        let seen = &cut[..cut.len().min(USUAL)];
        assert_eq!(
            read(&mut &*cut, seen).await.unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
    }
    let mut broken = &b"PROXY TCP4 \r\nGET"[..];
    let Beginning::Broken(_, bytes) = read(&mut broken, &[]).await.unwrap() else {
        panic!("a broken header")
    };
    assert_eq!([&bytes[..], broken].concat(), b"PROXY TCP4 \r\nGET");
}

proptest! {
    /// Both versions say the same of every client.
    #[test]
    fn every_client(v4: u32, v6: u128, port: u16) {
        let (v4, v6) = (Ipv4Addr::from_bits(v4), Ipv6Addr::from_bits(v6));
        let ports = [port.to_be_bytes(), [0, 80]].concat();
        let at = |address: IpAddr| Told::Client(SocketAddr::new(address.to_canonical(), port));
        prop_assert_eq!(told(format!("PROXY TCP4 {v4} 10.0.0.1 {port} 80\r\n").as_bytes()), at(v4.into()));
        prop_assert_eq!(told(format!("PROXY TCP6 {v6} ::1 {port} 80\r\n").as_bytes()), at(v6.into()));
        let rest = [&v4.octets()[..], &[10, 0, 0, 1], &ports].concat();
        prop_assert_eq!(told(&binary(1, 0x11, &rest)), at(v4.into()));
        let rest = [&v6.octets()[..], &[0; 16], &ports].concat();
        prop_assert_eq!(told(&binary(1, 0x21, &rest)), at(v6.into()));
    }
}
