//! Pages: the `Link` header with `rel=next` (RFC 8288), read tolerantly and followed on the upstream's own host only (R-X2).

use reqwest::header::{HeaderMap, LINK};
use url::Url;

use super::transport::shown;

/// The next page's address: the Link's path and query on the endpoint's own scheme, host and port, because a registry
/// behind a proxy often does not know its own scheme. `Err` when it leads to another host.
pub fn next(base: &Url, from: &Url, headers: &HeaderMap) -> Result<Option<Url>, String> {
    let lines = headers.get_all(LINK).iter().filter_map(|value| value.to_str().ok());
    let Some(target) = lines
        .flat_map(links)
        .find(|(_, rels)| rels.iter().any(|r| r == "next"))
        .map(|(t, _)| t)
    else {
        return Ok(None);
    };
    let found = from
        .join(&target)
        .map_err(|_| "the next page's address is not a URL".to_owned())?;
    let same_port = found.port().is_none() || found.port_or_known_default() == base.port_or_known_default();
    if !matches!(found.scheme(), "http" | "https") || found.host_str() != base.host_str() || !same_port {
        return Err(format!(
            "the next page is said to be at {}, another host",
            shown(&found)
        ));
    }
    let mut url = base.clone();
    let prefix = base.path().trim_end_matches('/');
    // A registry under a base path that does not know of it (R-U50).
    let path = match found.path().starts_with("/v2/") {
        true => format!("{prefix}{}", found.path()),
        false => found.path().to_owned(),
    };
    url.set_path(&path);
    url.set_query(found.query());
    Ok(Some(url))
}

/// Each `<target>` of a line with its lower-cased relations.
fn links(line: &str) -> Vec<(String, Vec<String>)> {
    let mut found = Vec::new();
    let mut rest = line;
    while let Some((_, after)) = rest.split_once('<') {
        let Some((target, after)) = after.split_once('>') else {
            break;
        };
        let end = end_of_link(after);
        let rels = relations(&after[..end]);
        found.push((target.trim().to_owned(), rels));
        rest = &after[end..];
    }
    found
}

/// Up to the comma outside quotes that separates this link from the next.
fn end_of_link(text: &str) -> usize {
    let mut quoted = false;
    for (at, c) in text.char_indices() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => return at,
            _ => {}
        }
    }
    text.len()
}

fn relations(params: &str) -> Vec<String> {
    let rel = params
        .split(';')
        .filter_map(|p| p.split_once('='))
        .find(|(k, _)| k.trim().eq_ignore_ascii_case("rel"));
    let value = rel.map_or("", |(_, v)| v).trim().trim_matches('"');
    value.split_ascii_whitespace().map(str::to_ascii_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn follow(base: &str, link: &str) -> Result<Option<String>, String> {
        let base: Url = base.parse().unwrap();
        let from = base.join("/v2/a/tags/list?n=2").unwrap();
        let headers = HeaderMap::from_iter([(LINK, link.parse().unwrap())]);
        next(&base, &from, &headers).map(|url| url.map(|u| u.to_string()))
    }

    #[test]
    fn links_as_registries_write_them() {
        let want = Ok(Some("https://r.example/v2/a/tags/list?last=x%2Cy&n=2".to_owned()));
        for link in [
            r#"</v2/a/tags/list?last=x%2Cy&n=2>; rel="next""#,
            "</v2/a/tags/list?last=x%2Cy&n=2>;rel=next",
            r#"<list?last=x%2Cy&n=2>; title="a,<b>"; REL="prev NEXT""#,
            r#"<https://r.example/v2/a/tags/list?last=x%2Cy&n=2>; rel="next""#,
            r#"<http://r.example/v2/a/tags/list?last=x%2Cy&n=2>; rel="next""#,
            r#"</first>; rel=first, </v2/a/tags/list?last=x%2Cy&n=2>; rel=next"#,
        ] {
            assert_eq!(follow("https://r.example/", link), want, "{link}");
        }
        for none in ["", "garbage", "<x", "<x>; rel=prev", "<x>"] {
            assert_eq!(follow("https://r.example/", none), Ok(None), "{none}");
        }
        assert_eq!(
            follow("https://r.example/base/", "</v2/a/tags/list?last=x>; rel=next"),
            Ok(Some("https://r.example/base/v2/a/tags/list?last=x".to_owned()))
        );
    }

    #[test]
    fn other_hosts_are_refused() {
        for link in [
            "<https://evil.example/v2/a/tags/list?x=hunter2>; rel=next",
            "<https://r.example:8443/v2/>; rel=next",
            "<//evil.example/>; rel=next",
            "<ftp://r.example/>; rel=next",
        ] {
            let error = follow("https://r.example/", link).unwrap_err();
            assert!(!error.contains("hunter2"));
        }
    }

    proptest! {
        #[test]
        fn never_panics(line in r#"[<>;,="a-z é/?]{0,60}"#) {
            let _ = links(&line);
        }
    }
}
