//! YAML as the data that it stands for, for files of which JSON has the like. JSON itself is YAML.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Value};

/// Larger and deeper files are nobody's. An alias counts as everything that it stands for.
const MOST_NODES: usize = 100_000;
const MOST_DEPTH: usize = 50;

/// The first document; null if there is none.
///
/// Errors: what is wrong, and on which line.
pub(super) fn parse(text: &str) -> Result<Value, String> {
    let mut builder = Builder::default();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| format!("line {}: {}", error.marker().line(), error.info()))?;
        let line = span.start.line();
        builder.take(event).map_err(|why| format!("line {line}: {why}"))?;
        if builder.document.is_some() {
            break;
        }
    }
    Ok(builder.document.unwrap_or(Value::Null))
}

/// A list, or a map with the key whose value comes next, that has not ended.
enum Open {
    List(Vec<Value>),
    Map(Map<String, Value>, Option<String>),
}

#[derive(Default)]
struct Builder {
    document: Option<Value>,
    open: Vec<(Open, usize)>,
    anchors: HashMap<usize, Value>,
    nodes: usize,
}

impl Builder {
    fn take(&mut self, event: Event<'_>) -> Result<(), String> {
        match event {
            Event::Scalar(text, style, anchor, _) => {
                let value = match style {
                    ScalarStyle::Plain => plain(&text),
                    _ => Value::String(text.into_owned()),
                };
                self.put(value, anchor)
            }
            Event::Alias(anchor) => match self.anchors.get(&anchor).cloned() {
                Some(value) => self.put(value, 0),
                None => Err("the alias is inside of what it names".to_owned()),
            },
            Event::SequenceStart(anchor, _) => self.begin(Open::List(Vec::new()), anchor),
            Event::MappingStart(anchor, _) => self.begin(Open::Map(Map::new(), None), anchor),
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some((Open::List(list), anchor)) => self.put(Value::Array(list), anchor),
                Some((Open::Map(map, _), anchor)) => self.put(Value::Object(map), anchor),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn begin(&mut self, open: Open, anchor: usize) -> Result<(), String> {
        if self.open.len() >= MOST_DEPTH {
            return Err(format!("it is nested deeper than {MOST_DEPTH} levels"));
        }
        self.open.push((open, anchor));
        Ok(())
    }

    fn put(&mut self, value: Value, anchor: usize) -> Result<(), String> {
        self.nodes += count(&value);
        if self.nodes > MOST_NODES {
            return Err(format!("it has more than {MOST_NODES} parts"));
        }
        if anchor > 0 {
            self.anchors.insert(anchor, value.clone());
        }
        match self.open.last_mut() {
            None => self.document = Some(value),
            Some((Open::List(list), _)) => list.push(value),
            Some((Open::Map(map, key @ None), _)) => {
                let text = match value {
                    Value::String(text) => text,
                    Value::Object(_) | Value::Array(_) => return Err("a key is a list or a map".to_owned()),
                    other => other.to_string(),
                };
                // As Go's programs read it: a key that stands twice is an error.
                if map.contains_key(&text) {
                    return Err(format!("the key {text:?} stands there twice"));
                }
                *key = Some(text);
            }
            Some((Open::Map(map, key), _)) => {
                if let Some(key) = key.take() {
                    map.insert(key, value);
                }
            }
        }
        Ok(())
    }
}

fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        text => match text.parse::<i64>() {
            Ok(number) => Value::from(number),
            Err(_) => Value::String(text.to_owned()),
        },
    }
}

/// Its parts, itself included.
fn count(value: &Value) -> usize {
    match value {
        Value::Array(list) => 1 + list.iter().map(count).sum::<usize>(),
        Value::Object(map) => 1 + map.values().map(count).sum::<usize>(),
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn yaml_and_json() {
        let want = json!({ "a": { "b": ["c", "d"] }, "e": null, "f": true, "g": 5000 });
        assert_eq!(parse("a:\n  b: [c, 'd']\ne:\nf: true\ng: 5000 # more\n").unwrap(), want);
        assert_eq!(parse(&want.to_string()).unwrap(), want);
        assert_eq!(parse("").unwrap(), Value::Null);
        assert_eq!(parse("x: &x [a]\ny: *x\n").unwrap(), json!({ "x": ["a"], "y": ["a"] }));
        for bad in ["a: [\"b]\n", "a: \"b\nc: d\n", "a: b\na: c\n", "[a]: b\n", "a: *b\n"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    /// A file cannot make itself larger than it is by aliases of aliases.
    #[test]
    fn aliases_count_as_what_they_stand_for() {
        let mut text = "a0: &a0 [x, x]\n".to_owned();
        for n in 1..60 {
            text += &format!("a{n}: &a{n} [*a{}, *a{}]\n", n - 1, n - 1);
        }
        assert!(parse(&text).unwrap_err().contains("parts"));
        assert!(parse(&"[".repeat(5000)).is_err());
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "[a-c:\\-\\[\\]{},&*#|>'\" \n\t<!%?~]{0,120}") {
            let _ = parse(&text);
        }
    }
}
