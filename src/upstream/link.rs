//! Pages: the `Link` header with `rel=next` (RFC 8288), read tolerantly and followed on the upstream's own host only (R-X2).
//!
//! A registry behind a proxy often knows neither its scheme nor the path under which it is reached. So a Link says how the
//! next page is asked for, by its query, and not where: that is known.

use reqwest::header::{HeaderMap, LINK};
use url::Url;

use super::transport::shown;

/// The next page's address: the Link's query at `asked`, the address of the list, or at a path that the Link names below
/// it. `from` is the page that the Link came with. `Err` when it leads to another host.
pub fn next(base: &Url, asked: &Url, from: &Url, headers: &HeaderMap) -> Result<Option<Url>, String> {
    let lines = headers.get_all(LINK).iter();
    let lines = lines.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let all: Vec<Link> = lines.flat_map(|line| links(&line)).collect();
    let is_next = |link: &&Link| {
        link.rels
            .as_ref()
            .is_some_and(|rels| rels.iter().any(|rel| rel == "next"))
    };
    // Clients go by the first Link, whatever it says of itself: one that says nothing is the next page's.
    let Some(link) = all
        .iter()
        .find(is_next)
        .or_else(|| all.iter().find(|link| link.rels.is_none()))
    else {
        return Ok(None);
    };
    let found = from
        .join(&link.target)
        .map_err(|_| "the next page's address is not a URL".to_owned())?;
    let same_port = found.port().is_none() || found.port_or_known_default() == base.port_or_known_default();
    if !matches!(found.scheme(), "http" | "https") || found.host_str() != base.host_str() || !same_port {
        return Err(format!(
            "the next page is said to be at {}, another host",
            shown(&found)
        ));
    }
    let mut url = asked.clone();
    // A registry under a base path may not know of it (R-U50).
    let based = format!("{}{}", base.path().trim_end_matches('/'), found.path());
    let is_below = |path: &&str| {
        path.strip_prefix(asked.path())
            .is_some_and(|rest| rest.starts_with('/'))
    };
    if let Some(path) = [found.path(), &based].into_iter().find(is_below) {
        url.set_path(path);
    }
    url.set_query(found.query());
    Ok(Some(url))
}

/// One link of a header.
struct Link {
    target: String,
    /// Its relations in lower case; `None` if it names none.
    rels: Option<Vec<String>>,
}

/// The links of a line, also one without angle brackets around its target.
fn links(line: &str) -> Vec<Link> {
    let mut found = Vec::new();
    let mut rest = line;
    loop {
        rest = rest.trim_start_matches([',', ' ', '\t']);
        let bare = rest.starts_with(['/', '?']) || rest.starts_with("http:") || rest.starts_with("https:");
        let (target, after) = if bare {
            rest.split_at(rest.find([';', ' ', '\t']).unwrap_or(rest.len()))
        } else {
            let Some((target, after)) = rest.split_once('<').and_then(|(_, after)| after.split_once('>')) else {
                break;
            };
            (target, after)
        };
        let end = end_of_link(after);
        found.push(Link {
            target: target.trim().to_owned(),
            rels: relations(&after[..end]),
        });
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

fn relations(params: &str) -> Option<Vec<String>> {
    let rel = params
        .split(';')
        .filter_map(|p| p.split_once('='))
        .find(|(k, _)| k.trim().eq_ignore_ascii_case("rel"));
    let value = rel?.1.trim().trim_matches('"');
    Some(value.split_ascii_whitespace().map(str::to_ascii_lowercase).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn follow(base: &str, link: &str) -> Result<Option<String>, String> {
        let base: Url = base.parse().unwrap();
        let asked = base.join("v2/a/tags/list?n=2").unwrap();
        let headers = HeaderMap::from_iter([(LINK, link.parse().unwrap())]);
        next(&base, &asked, &asked, &headers).map(|url| url.map(|u| u.to_string()))
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
            // Without a relation, and without brackets.
            "</v2/a/tags/list?last=x%2Cy&n=2>",
            r#"/v2/a/tags/list?last=x%2Cy&n=2; rel="next""#,
            "/v2/a/tags/list?last=x%2Cy&n=2",
            "?last=x%2Cy&n=2;rel=next",
            "https://r.example/v2/a/tags/list?last=x%2Cy&n=2; rel=NEXT",
            r#"</first>; rel=first, /v2/a/tags/list?last=x%2Cy&n=2; rel="next""#,
            // Of another path only the query counts.
            "<//r.example/v2/project/a/tags/list?last=x%2Cy&n=2>; rel=next",
            "</tags/list?last=x%2Cy&n=2>; rel=next",
            "</?last=x%2Cy&n=2>; rel=next",
            "</v2/a/tags/list/../../../b/tags/list?last=x%2Cy&n=2>; rel=next",
            "</v2/a/tags/listing/x?last=x%2Cy&n=2>; rel=next",
        ] {
            assert_eq!(follow("https://r.example/", link), want, "{link}");
        }
        for none in [
            "",
            "garbage",
            "<x",
            "<x>; rel=prev",
            "x; rel=next",
            "/x; rel=first",
            ",,",
        ] {
            assert_eq!(follow("https://r.example/", none), Ok(None), "{none}");
        }
        for base in ["https://r.example/base/", "https://r.example/base/more/"] {
            for link in [
                "</v2/a/tags/list?last=x>; rel=next",
                "</other/v2/b/a/tags/list?last=x>; rel=next",
            ] {
                assert_eq!(
                    follow(base, link),
                    Ok(Some(format!("{base}v2/a/tags/list?last=x"))),
                    "{link}"
                );
            }
            // Below the list's own address, which the registry may know in part only.
            assert_eq!(
                follow(base, "</v2/a/tags/list/page/2>; rel=next"),
                Ok(Some(format!("{base}v2/a/tags/list/page/2")))
            );
        }
    }

    #[test]
    fn other_hosts_are_refused() {
        for link in [
            "<https://evil.example/v2/a/tags/list?x=hunter2>; rel=next",
            "<https://r.example:8443/v2/>; rel=next",
            "<//evil.example/>; rel=next",
            "<ftp://r.example/>; rel=next",
            "https://evil.example/v2/a/tags/list?x=hunter2; rel=next",
            "<https://evil.example/v2/a/tags/list?x=hunter2>",
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

        /// Wherever a Link points, the next page is asked of the list's own address, or below it.
        #[test]
        fn it_stays_at_the_address_asked(
            base in prop::sample::select(vec!["https://r.example/", "https://r.example:8443/a/b/"]),
            link in r#"(</?|/)?(https?://|//)?(r\.example)?[/a-z0-9.%?&=]{0,40}>?(; ?rel="?next"?)?"#,
        ) {
            let base: Url = base.parse().unwrap();
            let asked = base.join("v2/a/tags/list?n=2").unwrap();
            let Ok(value) = link.parse() else { return Ok(()) };
            if let Ok(Some(next)) = next(&base, &asked, &asked, &HeaderMap::from_iter([(LINK, value)])) {
                prop_assert_eq!(next.origin(), base.origin());
                let below = next.path().strip_prefix(asked.path());
                prop_assert!(below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/')), "{} to {}", link, next);
            }
        }
    }
}
