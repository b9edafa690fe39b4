//! Inputs for harnesses: seeds that were changed, words of the grammar in any order, JSON with a part exchanged, noise.

use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value, json};

/// Bytes that a failing test can show.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Input(pub(super) Vec<u8>);

impl std::fmt::Debug for Input {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = &self.0[..self.0.len().min(4096)];
        write!(f, "{} bytes: b\"{}\"", self.0.len(), shown.escape_ascii())
    }
}

/// Characters that parsers trip over, beside the harness's own words.
const NASTY: &[&str] = &[
    "",
    "\0",
    "\n",
    "\r\n",
    "\t",
    " ",
    "\"",
    "'",
    "\\",
    "/",
    "..",
    "../",
    "%2f",
    "%",
    ":",
    "@",
    "?",
    "#",
    "=",
    ",",
    ";",
    "-",
    "*",
    "$",
    "{",
    "}",
    "[",
    "]",
    "<",
    ">",
    "é",
    "\u{202e}",
    "\u{200f}",
    "\u{2066}",
    "\u{feff}",
    "\u{1b}[31m",
    "0",
    "-1",
    "18446744073709551615",
    "18446744073709551616",
    "9223372036854775808",
    "1e400",
    "NaN",
    "null",
    "true",
];

pub(super) fn inputs(seeds: Vec<Vec<u8>>, words: &'static [&'static str]) -> BoxedStrategy<Input> {
    let all: Vec<&'static str> = words.iter().chain(NASTY).copied().collect();
    let word = proptest::sample::select(all);
    let bytes = prop_oneof![
        4 => word.prop_map(|word| word.as_bytes().to_vec()),
        1 => vec(any::<u8>(), 0..6),
    ];
    let seeds = if seeds.is_empty() { vec![Vec::new()] } else { seeds };
    let seed = proptest::sample::select(seeds);
    let edit = (0u8..7, any::<u16>(), any::<u16>(), bytes.clone());
    let edited = (seed.clone(), seed.clone(), vec(edit, 1..8)).prop_map(|(seed, other, edits)| {
        let mut bytes = seed;
        for edit in edits {
            apply(&mut bytes, &other, edit);
        }
        bytes
    });
    let soup = vec(bytes.clone(), 0..40).prop_map(|pieces| pieces.concat());
    let repeated = (seed.clone(), any::<u16>(), bytes, 1usize..3000).prop_map(|(mut seed, at, piece, times)| {
        let at = place(at, seed.len());
        seed.splice(at..at, piece.repeat(times));
        seed
    });
    let json = (seed, vec((any::<u16>(), any::<u16>()), 1..4)).prop_map(|(seed, changes)| exchanged(seed, &changes));
    prop_oneof![
        6 => edited,
        3 => soup,
        1 => repeated,
        4 => json,
        1 => vec(any::<u8>(), 0..300),
    ]
    .prop_map(Input)
    .boxed()
}

fn place(at: u16, len: usize) -> usize {
    usize::from(at) % (len + 1)
}

fn apply(bytes: &mut Vec<u8>, other: &[u8], (kind, a, b, piece): (u8, u16, u16, Vec<u8>)) {
    let at = place(a, bytes.len());
    let end = (at + usize::from(b) % 64).min(bytes.len());
    match kind {
        0 | 1 => drop(bytes.splice(at..at, piece)),
        2 => drop(bytes.splice(at..end, piece)),
        3 => drop(bytes.drain(at..end)),
        4 => {
            let copied = bytes[at..end].to_vec();
            let to = place(b, bytes.len());
            bytes.splice(to..to, copied);
        }
        5 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << (b % 8);
            }
        }
        _ => {
            bytes.truncate(at);
            bytes.extend_from_slice(&other[place(b, other.len())..]);
        }
    }
}

/// If the seed ends in a JSON document, one of its parts is exchanged for something that may not be there.
fn exchanged(seed: Vec<u8>, changes: &[(u16, u16)]) -> Vec<u8> {
    let Some(at) = seed.iter().position(|byte| matches!(byte, b'{' | b'[')) else {
        return seed;
    };
    let Ok(mut document) = serde_json::from_slice::<Value>(&seed[at..]) else {
        return seed;
    };
    for (which, what) in changes {
        let mut left = usize::from(*which) % parts(&document);
        if let Some(part) = find(&mut document, &mut left) {
            exchange(part, *what);
        }
    }
    [&seed[..at], document.to_string().as_bytes()].concat()
}

fn parts(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(parts).sum(),
        Value::Object(map) => map.values().map(parts).sum(),
        _ => 0,
    }
}

fn find<'a>(value: &'a mut Value, left: &mut usize) -> Option<&'a mut Value> {
    if *left == 0 {
        return Some(value);
    }
    *left -= 1;
    match value {
        Value::Array(items) => items.iter_mut().find_map(|item| find(item, left)),
        Value::Object(map) => map.values_mut().find_map(|item| find(item, left)),
        _ => None,
    }
}

fn exchange(part: &mut Value, what: u16) {
    let n = usize::from(what >> 5);
    *part = match what % 32 {
        0 => Value::Null,
        1 => json!(true),
        2 => json!(0),
        3 => json!(-1),
        4 => json!(u64::MAX),
        5 => json!(1e300),
        6 => json!(""),
        7 => json!("x".repeat(n)),
        8 => json!("é\u{202e}\n\0"),
        9 => json!(u64::MAX.to_string()),
        10 => json!("NaN"),
        11 => json!([]),
        12 => json!({}),
        13 => Value::Array(vec![part.take(); n % 20]),
        14 => (0..n % 80).fold(part.take(), |inner, _| json!([inner])),
        15 => (0..n % 80).fold(part.take(), |inner, _| json!({ "a": inner })),
        16 => json!("../../etc/passwd"),
        17 => json!("-inf"),
        18 => json!("a/b; c=d"),
        _ => match part.take() {
            Value::String(mut text) => {
                let at = text
                    .char_indices()
                    .map(|(at, _)| at)
                    .nth(n % (text.len() + 1))
                    .unwrap_or(text.len());
                text.insert_str(at, NASTY[usize::from(what) % NASTY.len()]);
                Value::String(text)
            }
            Value::Number(number) => match number.as_u64() {
                Some(number) => json!(number.wrapping_add(u64::from(what)).rotate_left(u32::from(what % 64))),
                None => Value::Number(number),
            },
            Value::Array(mut items) => {
                let by = usize::from(!items.is_empty());
                items.rotate_left(by);
                items.extend(items.first().cloned());
                Value::Array(items)
            }
            Value::Object(mut map) => {
                let key = map.keys().nth(n % (map.len() + 1)).cloned();
                match key {
                    Some(key) => drop(map.remove(&key)),
                    None => drop(map.insert("unknown\u{202e}".to_owned(), json!(1))),
                }
                Value::Object(map)
            }
            other => other,
        },
    };
}
