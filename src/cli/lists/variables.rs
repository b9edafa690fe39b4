//! `${NAME:-default}` and its like, as compose files and Dockerfiles write them.

use std::collections::HashMap;

use super::clip;

/// Defaults inside of defaults.
const MOST_DEPTH: usize = 10;

/// Replaces variables by what `value` says.
///
/// Errors: a variable that is not set and has no default, or a form that is none.
pub fn expand(text: &str, value: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    within(text, value, MOST_DEPTH)
}

fn within(text: &str, value: &dyn Fn(&str) -> Option<String>, depth: usize) -> Result<String, String> {
    let Some(depth) = depth.checked_sub(1) else {
        return Err("variables are nested too deep".to_owned());
    };
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out += &rest[..at];
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some(inner) = rest.strip_prefix('{') {
            let end = closing(inner).ok_or_else(|| format!("${{{}: the brace is not closed", clip(inner)))?;
            out += &braced(&inner[..end], value, depth)?;
            rest = &inner[end + 1..];
        } else {
            let name = name_of(rest);
            if name.is_empty() {
                out.push('$');
            } else {
                out += &value(name).ok_or_else(|| not_set(name))?;
                rest = &rest[name.len()..];
            }
        }
    }
    out += rest;
    Ok(out)
}

fn not_set(name: &str) -> String {
    format!("${} is not set", clip(name))
}

/// Where the brace is closed that was opened before `text`.
fn closing(text: &str) -> Option<usize> {
    let mut open = 0usize;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'{' => open += 1,
            b'}' if open == 0 => return Some(at),
            b'}' => open -= 1,
            _ => {}
        }
    }
    None
}

fn name_of(text: &str) -> &str {
    let ends = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
    let name = &text[..text.find(ends).unwrap_or(text.len())];
    if name.starts_with(|c: char| c.is_ascii_digit()) {
        ""
    } else {
        name
    }
}

fn braced(text: &str, value: &dyn Fn(&str) -> Option<String>, depth: usize) -> Result<String, String> {
    let name = name_of(text);
    let rest = &text[name.len()..];
    if name.is_empty() {
        return Err(format!("${{{}}}: expected a name", clip(text)));
    }
    let (may_be_empty, rest) = match rest.strip_prefix(':') {
        Some(rest) => (false, rest),
        None => (true, rest),
    };
    let found = value(name);
    let is_set = found.as_ref().is_some_and(|text| may_be_empty || !text.is_empty());
    let mut chars = rest.chars();
    match (chars.next(), chars.as_str()) {
        (None, _) if may_be_empty => found.ok_or_else(|| not_set(name)),
        (Some('-'), default) => match found.filter(|_| is_set) {
            Some(found) => Ok(found),
            None => within(default, value, depth),
        },
        (Some('+'), other) => match is_set {
            true => within(other, value, depth),
            false => Ok(String::new()),
        },
        (Some('?'), why) => found.filter(|_| is_set).ok_or_else(|| match why.is_empty() {
            true => not_set(name),
            false => format!("{}: {}", not_set(name), clip(why)),
        }),
        _ => Err(format!("${{{}}}: expected :- or :+ or :? behind the name", clip(text))),
    }
}

/// `NAME=value` lines, with quotes and comments, as `.env` has them.
pub fn env_file(text: &str) -> HashMap<String, String> {
    let line = |line: &str| {
        let line = line.trim();
        let line = line.strip_prefix("export ").unwrap_or(line);
        let (name, value) = line.split_once('=').filter(|_| !line.starts_with('#'))?;
        let value = value.trim();
        let quoted = |quote| {
            value
                .strip_prefix(quote)
                .and_then(|rest: &str| Some(rest.split_once(quote)?.0))
        };
        let value = match quoted('"').or_else(|| quoted('\'')) {
            Some(inner) => inner,
            None => value.split(" #").next().unwrap_or_default().trim_end(),
        };
        Some((name.trim().to_owned(), value.to_owned()))
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn expanded(text: &str) -> Result<String, String> {
        let value = |name: &str| match name {
            "TAG" => Some("3.22".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        expand(text, &value)
    }

    #[test]
    fn every_form() {
        for (text, out) in [
            ("a:$TAG", "a:3.22"),
            ("a:${TAG}-x", "a:3.22-x"),
            ("${X:-b}", "b"),
            ("${EMPTY:-b}", "b"),
            ("${EMPTY-b}", ""),
            ("${X:-${Y:-${TAG}}}", "3.22"),
            ("${TAG:+yes}${X:+no}", "yes"),
            ("$$TAG", "$TAG"),
            ("a$", "a$"),
            ("${TAG:?why}", "3.22"),
        ] {
            assert_eq!(expanded(text).as_deref(), Ok(out), "{text}");
        }
        for bad in [
            "$X",
            "${X}",
            "${X:?why}",
            "${TAG",
            "${}",
            "${TAG:}",
            "${TAG/x/y}",
            "${1}",
        ] {
            assert!(expanded(bad).is_err(), "{bad}");
        }
        assert_eq!(expanded("${X:?no tag}").unwrap_err(), "$X is not set: no tag");
    }

    #[test]
    fn env_files() {
        let read = env_file("# c\nA=1\nexport B = \"x # y\" \nC='z'\nD=v # w\nnonsense\n");
        for (name, value) in [("A", "1"), ("B", "x # y"), ("C", "z"), ("D", "v")] {
            assert_eq!(read.get(name).map(String::as_str), Some(value), "{name}");
        }
        assert_eq!(read.len(), 4);
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "[$A{}:+?\\-x]{0,40}", env in "\\PC{0,60}") {
            let _ = expanded(&text);
            let _ = expanded(&env);
            let _ = env_file(&env);
        }
    }
}
