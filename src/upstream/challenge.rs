//! What a registry wants to see before it answers: WWW-Authenticate, as registries really write it (R-U8).
//!
//! The grammar of RFC 9110 is read tolerantly: several challenges in one line or in several, values without
//! quotes, commas inside quotes, odd case, missing and extra parameters. Whatever comes, nothing panics and
//! what makes no sense is skipped. Whether a realm may be trusted is not decided here but in `realm`.

use std::collections::BTreeMap;

/// One challenge: a scheme and its parameters, both lower-cased; of a repeated parameter the first counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Challenge {
    pub scheme: String,
    pub params: BTreeMap<String, String>,
}

/// The challenge that Larder will answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Demand {
    /// A token from the server at `realm`.
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
    /// User name and password with every request (R-U9).
    Basic,
}

/// Longest header line that is looked at; what a registry sends is a tenth of it.
const MAX_LINE: usize = 8 * 1024;

/// Schemes by which a bare word is recognised as a challenge rather than as the rest of a scope without quotes.
const SCHEMES: [&str; 7] = ["basic", "bearer", "digest", "hoba", "mutual", "negotiate", "ntlm"];

/// Every challenge in these header lines, in order.
pub fn parse<'a>(lines: impl IntoIterator<Item = &'a [u8]>) -> Vec<Challenge> {
    let mut found = Vec::new();
    for line in lines {
        let line = &line[..line.len().min(MAX_LINE)];
        parse_line(&String::from_utf8_lossy(line), &mut found);
    }
    found
}

/// Bearer before Basic; `Err` names the schemes that were offered when neither is among them.
pub fn choose(challenges: &[Challenge]) -> Result<Demand, String> {
    for challenge in challenges.iter().filter(|c| c.scheme == "bearer") {
        if let Some(realm) = challenge.filled("realm") {
            return Ok(Demand::Bearer {
                realm,
                service: challenge.filled("service"),
                scope: challenge.filled("scope"),
            });
        }
    }
    if challenges.iter().any(|c| c.scheme == "basic") {
        return Ok(Demand::Basic);
    }
    let mut schemes: Vec<&str> = challenges.iter().map(|c| c.scheme.as_str()).collect();
    schemes.dedup();
    Err(super::body::one_line(&schemes.join(", "), 200))
}

impl Challenge {
    fn filled(&self, key: &str) -> Option<String> {
        self.params.get(key).filter(|v| !v.is_empty()).cloned()
    }
}

struct Scanner<'a> {
    rest: &'a str,
}

impl<'a> Scanner<'a> {
    fn skip(&mut self, what: &[char]) {
        self.rest = self.rest.trim_start_matches(what);
    }

    /// Up to one of `stops`; may be empty.
    fn word(&mut self, stops: &[char]) -> &'a str {
        let end = self.rest.find(stops).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word
    }

    fn eat(&mut self, one: char) -> bool {
        match self.rest.strip_prefix(one) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    /// After an opening quote; a missing closing quote ends with the line.
    fn quoted(&mut self) -> String {
        let mut value = String::new();
        let mut chars = self.rest.char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.rest = &self.rest[at + 1..];
                    return value;
                }
                '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
                _ => value.push(c),
            }
        }
        self.rest = "";
        value
    }
}

fn parse_line(line: &str, found: &mut Vec<Challenge>) {
    let mut scan = Scanner { rest: line };
    let first = found.len();
    // The parameter that a bare word may continue: `scope=repository:a/b:pull,push` without quotes.
    let mut unquoted: Option<String> = None;
    loop {
        scan.skip(&[' ', '\t', ',']);
        if scan.rest.is_empty() {
            return;
        }
        let word = scan.word(&[' ', '\t', ',', '=', '"']).to_ascii_lowercase();
        let before = scan.rest;
        scan.skip(&[' ', '\t']);
        if scan.eat('=') {
            scan.skip(&[' ', '\t']);
            let (value, bare) = match scan.eat('"') {
                true => (scan.quoted(), false),
                false => (scan.word(&[' ', '\t', ',']).to_owned(), true),
            };
            if let Some(challenge) = found[first..].last_mut().filter(|_| !word.is_empty()) {
                unquoted = bare.then(|| word.clone());
                challenge.params.entry(word).or_insert(value);
            }
            continue;
        }
        scan.rest = before;
        if word.is_empty() {
            // A stray quote: skip what it encloses.
            if scan.eat('"') {
                scan.quoted();
            }
            continue;
        }
        let continued = unquoted.as_deref() == Some("scope") && !SCHEMES.contains(&word.as_str());
        match found[first..].last_mut().and_then(|c| c.params.get_mut("scope")) {
            Some(scope) if continued => {
                scope.push(',');
                scope.push_str(&word);
            }
            _ => {
                unquoted = None;
                found.push(Challenge {
                    scheme: word,
                    params: BTreeMap::new(),
                });
            }
        }
    }
}

/// Whether every scope in this text is for another kind of thing than a plain repository, so that the registry's
/// own words have to be used: `repository(plugin):x:pull`, `aws` (R-U5, R-U6).
pub fn is_special_scope(scope: &str) -> bool {
    let sane = scope.len() <= 1024 && !scope.chars().any(char::is_control);
    let kind = |one: &str| one.split(':').next().unwrap_or(one).to_owned();
    let mut scopes = scope.split_ascii_whitespace().peekable();
    sane && scopes.peek().is_some() && scopes.all(|one| !matches!(kind(one).as_str(), "repository" | "registry"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn one(line: &str) -> Challenge {
        let mut all = parse([line.as_bytes()]);
        assert_eq!(all.len(), 1, "{all:?}");
        all.remove(0)
    }

    fn bearer(line: &str) -> (String, Option<String>, Option<String>) {
        match choose(&parse([line.as_bytes()])) {
            Ok(Demand::Bearer { realm, service, scope }) => (realm, service, scope),
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn seen_in_the_wild() {
        let some = |s: &str| Some(s.to_owned());
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/alpine:pull,push",error="invalid_token""#;
        assert_eq!(
            bearer(hub),
            (
                "https://auth.docker.io/token".to_owned(),
                some("registry.docker.io"),
                some("repository:library/alpine:pull,push")
            )
        );
        // nvcr: no service. quay once: no quotes around the scope. Odd case, spaces around '='.
        assert_eq!(bearer(r#"Bearer realm="https://nvcr.io/proxy_auth""#).1, None);
        let quay = r#"bearer Realm="https://quay.io/v2/auth",service=quay.io,scope=repository:a/b:pull,push"#;
        assert_eq!(bearer(quay).2, some("repository:a/b:pull,push"));
        assert_eq!(
            bearer(r#"BEARER  REALM = "https://a/t" ,  SERVICE= "x y""#).1,
            some("x y")
        );
        assert_eq!(bearer(r#"Bearer realm="https://a/t" service="s""#).1, some("s"));
        assert_eq!(one(r#"Basic realm="a \"b\" \\c""#).params["realm"], r#"a "b" \c"#);
    }

    #[test]
    fn several_challenges() {
        let line = r#"Basic realm="x, y", Bearer realm="https://a/t",service="s", Negotiate, NTLM abc=="#;
        assert_eq!(bearer(line).0, "https://a/t");
        let lines = [&b"Negotiate"[..], b"Basic realm=\"r\""];
        assert_eq!(choose(&parse(lines)), Ok(Demand::Basic));
        let unquoted = "Bearer realm=https://a/t,scope=repository:a:pull,push, Basic realm=x";
        assert_eq!(parse([unquoted.as_bytes()]).len(), 2);
        assert_eq!(
            choose(&parse([&b"Digest realm=\"x\", NTLM"[..]])),
            Err("digest, ntlm".to_owned())
        );
    }

    #[test]
    fn garbage_is_no_challenge() {
        for line in [
            "",
            ",,,",
            "=",
            "\"",
            "realm=\"x\"",
            "Bearer",
            "Bearer realm=\"\"",
            "\"Bearer\" x",
        ] {
            assert!(choose(&parse([line.as_bytes()])).is_err(), "{line}");
        }
        assert_eq!(one("Bearer realm=\"open").params["realm"], "open");
    }

    #[test]
    fn special_scopes() {
        assert!(is_special_scope("aws"));
        assert!(is_special_scope("repository(plugin):a/b:pull"));
        assert!(!is_special_scope("repository:user/image:pull"));
        assert!(!is_special_scope("repository:a:pull repository:b:pull"));
        assert!(!is_special_scope(""));
        assert!(!is_special_scope("aws\r\n"));
    }

    proptest! {
        #[test]
        fn never_panics(lines in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..4)) {
            let _ = choose(&parse(lines.iter().map(Vec::as_slice)));
        }

        #[test]
        fn never_panics_on_nearly_right_text(line in r#"[Ba-e "=,\\:é]{0,80}"#) {
            let _ = choose(&parse([line.as_bytes()]));
        }

        #[test]
        fn what_is_written_properly_is_read_back(
            scheme in "bearer|basic|x-[a-z]{1,5}",
            params in proptest::collection::btree_map("[a-z]{1,8}", "[ -~é]{0,30}", 1..5),
        ) {
            let quote = |v: &str| v.replace('\\', "\\\\").replace('"', "\\\"");
            let text: Vec<String> = params.iter().map(|(k, v)| format!("{k}=\"{}\"", quote(v))).collect();
            let line = format!("{scheme} {}", text.join(", "));
            prop_assert_eq!(one(&line), Challenge { scheme, params });
        }
    }
}
