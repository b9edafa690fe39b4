//! YAML and JSON as a tree, with lines: what lists of images are found in.
//!
//! Built from the parser's events, without recursion. An alias shares what it names, so that a file cannot make itself
//! larger than it is; who walks a tree counts its steps with [`Steps`]. JSON is YAML, but for several values behind one
//! another (`jq -c`) and tabs: what is no YAML and begins as JSON is read as that, without lines.

use std::collections::HashMap;
use std::rc::Rc;

use saphyr_parser::{Event, Parser, ScalarStyle};
use serde_json::Value as Json;

use super::RENDER;

/// Larger files are nobody's, and neither are deeper ones.
const MOST_NODES: usize = 500_000;
const MOST_DEPTH: usize = 100;
/// Steps of one walk: shared parts count each time they are reached.
const MOST_STEPS: usize = 2_000_000;

/// Maps that one lookup goes through where they are merged into one another.
const MOST_MERGED: usize = 1_000;
/// Keys that are compared, and bytes of a text that are looked at, for the price of one step.
const KEYS_PER_STEP: usize = 16;
const BYTES_PER_STEP: usize = 4;

#[derive(Debug)]
pub struct Node {
    pub value: Value,
    /// From 1; 0 where it is not known.
    pub line: usize,
    /// Levels below it, those that an alias leads to included.
    height: usize,
}

#[derive(Debug)]
pub enum Value {
    Text(String),
    /// `~`, `null` and nothing at all.
    Null,
    List(Vec<Rc<Node>>),
    Map(Vec<(Rc<Node>, Rc<Node>)>),
}

impl Node {
    pub fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub fn list(&self) -> &[Rc<Node>] {
        match &self.value {
            Value::List(list) => list,
            _ => &[],
        }
    }

    pub fn map(&self) -> &[(Rc<Node>, Rc<Node>)] {
        match &self.value {
            Value::Map(map) => map,
            _ => &[],
        }
    }

    pub fn is_map(&self) -> bool {
        matches!(self.value, Value::Map(_))
    }

    /// Returns the value of a key, else the one that is merged in by `<<`. Each map that is looked into costs steps: a file of
    /// a few megabytes can merge a large map into a hundred thousand others.
    pub fn get(&self, key: &str, steps: &mut Steps) -> Option<&Rc<Node>> {
        self.get_within(key, 10, &mut MOST_MERGED.clone(), steps)
    }

    /// The text under a key.
    pub fn text_at(&self, key: &str, steps: &mut Steps) -> Option<&str> {
        self.get(key, steps).and_then(|value| value.text())
    }

    /// `left`: maps that may still be looked into. Without that a few lists of aliases, each a hundred times the one before it, would
    /// be looked through for ever.
    fn get_within(&self, key: &str, merges: usize, left: &mut usize, steps: &mut Steps) -> Option<&Rc<Node>> {
        if !steps.spend(self.map().len() / KEYS_PER_STEP) {
            return None;
        }
        let own = self.map().iter().find(|(name, _)| name.text() == Some(key));
        if let Some((_, value)) = own {
            return Some(value);
        }
        let deeper = merges.checked_sub(1)?;
        let merged = self.map().iter().filter(|(name, _)| name.text() == Some("<<"));
        for (_, base) in merged {
            let bases = if base.is_map() {
                std::slice::from_ref(base)
            } else {
                base.list()
            };
            for base in bases.iter().take(100) {
                *left = left.checked_sub(1)?;
                if let Some(value) = base.get_within(key, deeper, left, steps) {
                    return Some(value);
                }
            }
        }
        None
    }
}

/// How far a walk may still go. One that ends early has not seen all there is: [`Steps::ended_early`].
pub struct Steps {
    left: usize,
    was_refused: bool,
}

impl Steps {
    pub fn new() -> Steps {
        Steps {
            left: MOST_STEPS,
            was_refused: false,
        }
    }

    /// One step, at that depth. `false`: the walk is over.
    pub fn go(&mut self, depth: usize) -> bool {
        self.was_refused |= depth > MOST_DEPTH;
        self.spend(1) && depth <= MOST_DEPTH
    }

    /// The price of looking through a text.
    pub fn read(&mut self, text: &str) -> bool {
        self.spend(1 + text.len() / BYTES_PER_STEP)
    }

    fn spend(&mut self, steps: usize) -> bool {
        self.left = self.left.saturating_sub(steps);
        self.was_refused |= self.left == 0;
        self.left > 0
    }

    /// Returns true if something was too deep, or there was too much.
    pub fn ended_early(&self) -> bool {
        self.was_refused
    }
}

/// A list or map that has not ended.
struct Open {
    anchor: usize,
    line: usize,
    items: Vec<Rc<Node>>,
    is_map: bool,
}

/// Every document of a file.
///
/// Errors: what is wrong, and on which line.
pub fn parse(text: &str) -> Result<Vec<Rc<Node>>, String> {
    match yaml(text) {
        Ok(documents) => Ok(documents),
        Err(error) if text.trim_start_matches('\u{feff}').trim_start().starts_with(['{', '[']) => {
            json(text).ok_or(error)
        }
        Err(error) => Err(error),
    }
}

fn yaml(text: &str) -> Result<Vec<Rc<Node>>, String> {
    let mut builder = Builder::default();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| {
            let (line, why) = (error.marker().line(), error.info());
            match text.contains("{{") {
                true => format!("line {line}: this is a template, not YAML ({why}): {RENDER}"),
                false => format!("line {line}: this is not YAML: {why}"),
            }
        })?;
        builder.take(event, span.start.line())?;
    }
    Ok(builder.documents)
}

/// Values of JSON behind one another; `None` if that is no JSON either, or too much of it.
fn json(text: &str) -> Option<Vec<Rc<Node>>> {
    let text = text.trim_start_matches('\u{feff}');
    let values = serde_json::Deserializer::from_str(text).into_iter::<Json>();
    let mut left = MOST_NODES;
    values.map(|value| node(value.ok()?, MOST_DEPTH, &mut left)).collect()
}

/// serde_json bounds how deep its values are nested.
fn node(value: Json, depth: usize, left: &mut usize) -> Option<Rc<Node>> {
    *left = left.checked_sub(1)?;
    let deeper = depth.checked_sub(1)?;
    let value = match value {
        Json::Null => Value::Null,
        Json::String(text) => Value::Text(text),
        Json::Bool(flag) => Value::Text(flag.to_string()),
        Json::Number(number) => Value::Text(number.to_string()),
        Json::Array(items) => {
            let items = items.into_iter().map(|item| node(item, deeper, left));
            Value::List(items.collect::<Option<_>>()?)
        }
        Json::Object(pairs) => {
            let mut found = Vec::new();
            for (key, value) in pairs {
                found.push((node(Json::String(key), deeper, left)?, node(value, deeper, left)?));
            }
            Value::Map(found)
        }
    };
    Some(Rc::new(Node {
        value,
        line: 0,
        height: MOST_DEPTH - depth,
    }))
}

fn too_deep(line: usize) -> String {
    format!("line {line}: it is nested deeper than {MOST_DEPTH} levels")
}

#[derive(Default)]
struct Builder {
    documents: Vec<Rc<Node>>,
    open: Vec<Open>,
    anchors: HashMap<usize, Rc<Node>>,
    nodes: usize,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, line: usize) -> Result<(), String> {
        match event {
            Event::Scalar(text, style, anchor, _) => {
                let is_null = style == ScalarStyle::Plain && matches!(&*text, "" | "~" | "null" | "Null" | "NULL");
                let value = if is_null {
                    Value::Null
                } else {
                    Value::Text(text.into_owned())
                };
                self.add(value, anchor, line)
            }
            Event::Alias(anchor) => {
                let Some(node) = self.anchors.get(&anchor).cloned() else {
                    return Err(format!("line {line}: the alias is inside of what it names"));
                };
                self.put(node, line)
            }
            Event::SequenceStart(anchor, _) => self.begin(anchor, line, false),
            Event::MappingStart(anchor, _) => self.begin(anchor, line, true),
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(open) = self.open.pop() else { return Ok(()) };
                let value = match open.is_map {
                    false => Value::List(open.items),
                    true => {
                        let pairs = open
                            .items
                            .chunks_exact(2)
                            .map(|pair| (pair[0].clone(), pair[1].clone()));
                        Value::Map(pairs.collect())
                    }
                };
                self.add(value, open.anchor, open.line)
            }
            _ => Ok(()),
        }
    }

    fn begin(&mut self, anchor: usize, line: usize, is_map: bool) -> Result<(), String> {
        if self.open.len() >= MOST_DEPTH {
            return Err(too_deep(line));
        }
        self.open.push(Open {
            anchor,
            line,
            items: Vec::new(),
            is_map,
        });
        Ok(())
    }

    fn add(&mut self, value: Value, anchor: usize, line: usize) -> Result<(), String> {
        let height = match &value {
            Value::Text(_) | Value::Null => 0,
            Value::List(items) => 1 + items.iter().map(|item| item.height).max().unwrap_or(0),
            Value::Map(pairs) => {
                let heights = pairs.iter().map(|(key, value)| key.height.max(value.height));
                1 + heights.max().unwrap_or(0)
            }
        };
        // A chain of aliases is as deep as it is long, and dropping it takes as much stack.
        if height > MOST_DEPTH {
            return Err(too_deep(line));
        }
        let node = Rc::new(Node { value, line, height });
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        self.put(node, line)
    }

    fn put(&mut self, node: Rc<Node>, line: usize) -> Result<(), String> {
        self.nodes += 1;
        if self.nodes > MOST_NODES {
            return Err(format!("line {line}: it has more than {MOST_NODES} parts"));
        }
        match self.open.last_mut() {
            Some(open) => open.items.push(node),
            None => self.documents.push(node),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_tree_with_lines() {
        let documents = parse("a: &x\n  b: 1\n  c: ~\nd:\n  <<: *x\n  b: 2\n---\n- 'null'\n").unwrap();
        assert_eq!(documents.len(), 2);
        let mut steps = Steps::new();
        let d = documents[0].get("d", &mut steps).unwrap();
        assert_eq!(d.get("b", &mut steps).unwrap().text(), Some("2"));
        assert!(matches!(d.get("c", &mut steps).unwrap().value, Value::Null));
        assert_eq!(documents[1].list()[0].text(), Some("null"));
        assert_eq!(documents[1].list()[0].line, 8);
    }

    /// What would be gigabytes, written out, is a few nodes; and nothing walks into it for ever.
    #[test]
    fn aliases_are_shared() {
        let mut text = "a0: &a0 [x, x]\n".to_owned();
        for n in 1..60 {
            text += &format!("a{n}: &a{n} [*a{}, *a{}]\n", n - 1, n - 1);
        }
        let documents = parse(&text).unwrap();
        let mut steps = Steps::new();
        fn walk(node: &Node, steps: &mut Steps, depth: usize) {
            if steps.go(depth) {
                node.list().iter().for_each(|item| walk(item, steps, depth + 1));
            }
        }
        let last = documents[0].get("a59", &mut steps).unwrap();
        walk(last, &mut steps, 0);
        assert!(!steps.go(0) && steps.ended_early());
        assert!(parse("a: &a [*a]").is_err());
        let deep = "[".repeat(5000);
        assert!(parse(&deep).is_err());
        // As deep by aliases: dropped, it would take a stack of some hundred megabytes.
        let chain: String = (1..200_000).map(|n| format!("a{n}: &a{n} [*a{}]\n", n - 1)).collect();
        let error = parse(&format!("a0: &a0 x\n{chain}")).unwrap_err();
        assert!(error.contains("deeper than 100"), "{error}");
    }

    /// Each level merges the one before it a hundred times: ten levels are 10^20 ways to a key that is not there.
    #[test]
    fn merges_of_merges_end() {
        let mut text = "m0: &m0 {x: y}\n".to_owned();
        for n in 1..=10 {
            let bases = vec![format!("*m{}", n - 1); 100].join(", ");
            text += &format!("m{n}: &m{n} {{<<: [{bases}]}}\n");
        }
        let documents = parse(&text).unwrap();
        let mut steps = Steps::new();
        let last = documents[0].get("m10", &mut steps).unwrap();
        assert!(last.get("nowhere", &mut steps).is_none());
        let first = documents[0].get("m1", &mut steps).unwrap();
        assert_eq!(first.text_at("x", &mut steps), Some("y"));
    }

    #[test]
    fn values_of_json_behind_one_another() {
        let documents = parse("{\"a\": 1}\n{\"a\":\t[true, null, \"x\"]}\n").unwrap();
        assert_eq!(documents.len(), 2);
        let mut steps = Steps::new();
        assert_eq!(documents[0].text_at("a", &mut steps), Some("1"));
        let list = documents[1].get("a", &mut steps).unwrap();
        assert_eq!(
            (list.list()[0].text(), list.list()[2].text()),
            (Some("true"), Some("x"))
        );
        assert!(
            parse("{\"a\": 1} {\"a\": ")
                .unwrap_err()
                .starts_with("line 1: this is not YAML")
        );
        assert!(parse("a: {{ .Values.x }} b\n").unwrap_err().contains("helm template"));
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "[a-c:\\-\\[\\]{},&*#|>'\" \n\t<!%?~]{0,120}") {
            let _ = parse(&text);
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,80}") {
            let _ = parse(&text);
        }
    }
}
