use super::*;
use proptest::prelude::*;

/// 10.0.0.0/8 and one address of IPv6.
fn proxies() -> TrustedProxies {
    ["10.0.0.0/8", "2001:db8:1::1/128"]
        .map(|net| net.parse().unwrap())
        .into_iter()
        .collect()
}

fn headers(lines: &[(HeaderName, &str)]) -> HeaderMap {
    let line = |(name, value): &(HeaderName, &str)| (name.clone(), HeaderValue::from_bytes(value.as_bytes()).unwrap());
    lines.iter().map(line).collect()
}

fn found(lines: &[(HeaderName, &str)]) -> Option<String> {
    client(&headers(lines), &proxies()).map(|address| address.to_string())
}

fn chain(lines: &[&str]) -> Option<String> {
    let lines: Vec<_> = lines.iter().map(|line| (X_FORWARDED_FOR, *line)).collect();
    found(&lines)
}

fn forwarded(line: &str) -> Option<String> {
    found(&[(FORWARDED, line)])
}

#[test]
fn the_last_address_that_is_no_trusted_proxy() {
    for (lines, client) in [
        (&["203.0.113.9"][..], "203.0.113.9"),
        // A client's claims stand before what proxies add.
        (&["192.0.2.1, 203.0.113.9"], "203.0.113.9"),
        (&["192.0.2.1", "203.0.113.9"], "203.0.113.9"),
        (&["203.0.113.9, 10.0.0.1", " 10.1.1.1 ,10.2.2.2"], "203.0.113.9"),
        (&["198.51.100.1,203.0.113.9,10.0.0.1"], "203.0.113.9"),
        (&["203.0.113.9:4711, [2001:db8:1::1]:80"], "203.0.113.9"),
        (&["2001:db8:2::7, 2001:db8:1::1"], "2001:db8:2::7"),
        (&["[2001:db8:2::7]:443"], "2001:db8:2::7"),
        // All are trusted: a proxy asks for itself.
        (&["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        (&["::ffff:203.0.113.9, ::ffff:10.0.0.1"], "203.0.113.9"),
        (&[",, 203.0.113.9 ,, ", "", ","], "203.0.113.9"),
        // Nobody vouches for what stands before something that is no address.
        (&["192.0.2.1, unknown, 10.0.0.1"], "10.0.0.1"),
        (&["192.0.2.1, _hidden, 10.0.0.1"], "10.0.0.1"),
        (&["192.0.2.1, caf\u{e9}, 10.0.0.1"], "10.0.0.1"),
    ] {
        assert_eq!(chain(lines).as_deref(), Some(client), "{lines:?}");
    }
    for nothing in [
        &["unknown"][..],
        &[""],
        &["192.0.2.1, 10.0.0.256"],
        &["192.0.2.1 203.0.113.9"],
        &["203.0.113.9:"],
        &["203.0.113.9:99999999"],
        &["[2001:db8::1"],
        &["[203.0.113.9]"],
        &["\"203.0.113.9\""],
        &["fe80::1%eth0"],
    ] {
        assert_eq!(chain(nothing), None, "{nothing:?}");
    }
    assert_eq!(found(&[]), None);
}

#[test]
fn long_lists_end_somewhere() {
    let long = format!("203.0.113.9{}", ", 10.0.0.1".repeat(MAX_HOPS));
    assert_eq!(chain(&[&long]).as_deref(), Some("10.0.0.1"));
    let claimed = format!("{}, 203.0.113.9, 10.0.0.1", "192.0.2.1,".repeat(6000));
    assert_eq!(chain(&[&claimed]).as_deref(), Some("203.0.113.9"));
}

#[test]
fn the_standard_header() {
    for (line, client) in [
        ("for=203.0.113.9", "203.0.113.9"),
        ("For=\"203.0.113.9:4711\";proto=http;by=203.0.113.43", "203.0.113.9"),
        ("proto=https;for=\"[2001:db8:2::7]:47011\"", "2001:db8:2::7"),
        (
            "for=192.0.2.1, for=203.0.113.9, for=10.0.0.1;by=10.0.0.2",
            "203.0.113.9",
        ),
        ("for=\"203.0.113.9:_port\"", "203.0.113.9"),
        ("host=\"a,b;for=192.0.2.1\";for=203.0.113.9", "203.0.113.9"),
        ("for=\"203.0.113.9\";host=\"a\\\"b, for=192.0.2.1\"", "203.0.113.9"),
        // A quote that a client leaves open swallows nothing of what comes behind it.
        ("for=\", for=203.0.113.9", "203.0.113.9"),
        ("for=\"192.0.2.1, for=\"203.0.113.9\"", "203.0.113.9"),
        ("for=\\\", for=\"203.0.113.9\"", "203.0.113.9"),
        ("for=\\, for=\"203.0.113.9\", for=\"10.0.0.1\"", "203.0.113.9"),
        ("for=192.0.2.1, for=unknown, for=10.0.0.1", "10.0.0.1"),
        ("for=192.0.2.1, for=_SEVKISEK, for=10.0.0.1", "10.0.0.1"),
        ("for=192.0.2.1, proto=https, for=10.0.0.1", "10.0.0.1"),
    ] {
        assert_eq!(forwarded(line).as_deref(), Some(client), "{line}");
    }
    for nothing in [
        "for=unknown",
        "for=\"_gazonk\"",
        "proto=https",
        "for",
        "for=",
        "for=192.0.2.1;for=203.0.113.9",
        "203.0.113.9",
        "",
    ] {
        assert_eq!(forwarded(nothing), None, "{nothing}");
    }
}

#[test]
fn of_both_headers_the_usual_one_counts() {
    let both = |usual, standard| found(&[(X_FORWARDED_FOR, usual), (FORWARDED, standard)]);
    assert_eq!(both("203.0.113.9", "for=192.0.2.1").as_deref(), Some("203.0.113.9"));
    // A header that a client sends beside it is no way out.
    assert_eq!(both("unknown", "for=192.0.2.1"), None);
}

#[test]
fn paths_as_clients_see_them() {
    let at = |prefixes: &[&str], path| {
        let lines: Vec<_> = prefixes.iter().map(|prefix| (X_FORWARDED_PREFIX, *prefix)).collect();
        client_path(&headers(&lines), path)
    };
    let tags = "/v2/library/alpine/tags/list";
    for (prefixes, seen) in [
        (&[][..], "/v2/library/alpine/tags/list"),
        (&["/registry"], "/registry/v2/library/alpine/tags/list"),
        (&["/registry/"], "/registry/v2/library/alpine/tags/list"),
        (&["/"], "/v2/library/alpine/tags/list"),
        (&[""], "/v2/library/alpine/tags/list"),
        // Two proxies, each of which took off a part.
        (&["/outer", "/in.ner"], "/outer/in.ner/v2/library/alpine/tags/list"),
        (&["/outer, /inner"], "/outer/inner/v2/library/alpine/tags/list"),
        // Below /v2/ itself.
        (&["/v2/mirror"], "/v2/mirror/library/alpine/tags/list"),
        (&["/registry/v2"], "/registry/v2/library/alpine/tags/list"),
        (&["/v2"], "/v2/library/alpine/tags/list"),
        (&["/v20"], "/v20/v2/library/alpine/tags/list"),
    ] {
        assert_eq!(at(prefixes, tags), seen, "{prefixes:?}");
    }
    for bad in [
        "registry",
        "//evil.example",
        "/a//b",
        "/../a",
        "/a/./b",
        "/a b",
        "/a?x",
        "/a#x",
        "/a%2fb",
        "/a\\b",
        "/a\">; rel=\"x",
        "/a;b",
        "/a:b",
        "https://evil.example/a",
        "/caf\u{e9}",
        "/ok, bad",
    ] {
        assert_eq!(at(&[bad], tags), tags, "{bad}");
    }
    assert_eq!(at(&[&format!("/{}", "a".repeat(LONGEST_PREFIX))], tags), tags);
    assert_eq!(at(&["/hub"], "/hub/v2/x/tags/list"), "/hub/hub/v2/x/tags/list");
}

#[test]
fn hosts_as_clients_ask_them() {
    let asked = |value: &str| {
        let mut headers = headers(&[(HOST, "inside:5000"), (X_FORWARDED_HOST, value)]);
        settle_host(&mut headers);
        headers[HOST].to_str().unwrap().to_owned()
    };
    for (value, host) in [
        ("Larder.example", "larder.example"),
        ("larder.example:8443", "larder.example:8443"),
        ("[2001:db8::1]:443", "[2001:db8::1]:443"),
        ("larder.example, inside", "larder.example"),
    ] {
        assert_eq!(asked(value), host);
    }
    for bad in [
        "",
        "https://evil.example",
        "me@evil.example",
        "evil.example/path",
        "evil.example\"",
        "evil example",
        "evil.example\t",
        "evil\u{200b}.example",
        "evil.example:0",
        ",evil.example",
    ] {
        let host = asked(bad);
        assert!(host == "inside:5000" || host == bad.trim(), "{bad:?}: {host}");
        assert!(!host.contains(['"', '@', '/', ' ']), "{bad:?}: {host}");
    }
}

#[test]
fn schemes() {
    let is = |value: &str| is_https(&headers(&[(X_FORWARDED_PROTO, value)]));
    assert!(is("https") && is("HTTPS") && is(" https , http"));
    assert!(!is("http") && !is("http, https") && !is("") && !is("https2") && !is_https(&HeaderMap::new()));
}

proptest! {
    /// Whatever a client sends: what the proxies add behind it is what counts.
    #[test]
    fn nobody_talks_himself_out(said in "[ -~]{0,40}", hops in 0..4_usize) {
        let hops = ", 10.0.0.7".repeat(hops);
        let line = format!("{said}, 203.0.113.9{hops}");
        let client = Some("203.0.113.9".to_owned());
        prop_assert_eq!(chain(&[&line]), client.clone());
        let line = format!("{said}, for=\"203.0.113.9:1\";proto=http{}", hops.replace(", ", ", for="));
        prop_assert_eq!(forwarded(&line), client);
    }

    /// Every address comes back from how proxies write it.
    #[test]
    fn every_address(v4: u32, v6: u128, port: u16) {
        let (v4, v6) = (Ipv4Addr::from_bits(v4), Ipv6Addr::from_bits(v6));
        for text in [v4.to_string(), format!("{v4}:{port}")] {
            prop_assert_eq!(address(text.as_bytes()), Some(IpAddr::V4(v4)));
        }
        for text in [v6.to_string(), format!("[{v6}]"), format!("[{v6}]:{port}")] {
            prop_assert_eq!(address(text.as_bytes()), Some(IpAddr::V6(v6).to_canonical()));
        }
    }
}
