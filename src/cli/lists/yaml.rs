//! YAML as a tree, with lines: what lists of images are found in.
//!
//! Built from the parser's events, without recursion. An alias shares what it names, so that a file cannot make itself
//! larger than it is; who walks a tree counts its steps with [`Steps`].

use std::collections::HashMap;
use std::rc::Rc;

use saphyr_parser::{Event, Parser, ScalarStyle};

/// Larger files are nobody's, and neither are deeper ones.
const MOST_NODES: usize = 500_000;
const MOST_DEPTH: usize = 100;
/// Steps of one walk: shared parts count each time they are reached.
const MOST_STEPS: usize = 2_000_000;

/// Maps that one lookup goes through where they are merged into one another.
const MOST_MERGED: usize = 1_000;

#[derive(Debug)]
pub struct Node {
    pub value: Value,
    /// From 1.
    pub line: usize,
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

    /// What stands under a key; behind it, what is merged in by `<<`.
    pub fn get(&self, key: &str) -> Option<&Rc<Node>> {
        self.get_within(key, 10, &mut MOST_MERGED.clone())
    }

    /// `left`: maps that may still be looked into. Without that a few lists of aliases, each a hundred times the one before it, would
    /// be looked through for ever.
    fn get_within(&self, key: &str, merges: usize, left: &mut usize) -> Option<&Rc<Node>> {
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
                if let Some(value) = base.get_within(key, deeper, left) {
                    return Some(value);
                }
            }
        }
        None
    }
}

/// How far a walk may still go.
pub struct Steps(usize);

impl Steps {
    pub fn new() -> Steps {
        Steps(MOST_STEPS)
    }

    /// One step, at that depth. `false`: the walk is over.
    pub fn go(&mut self, depth: usize) -> bool {
        self.0 = self.0.saturating_sub(1);
        self.0 > 0 && depth <= MOST_DEPTH
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
    let mut builder = Builder::default();
    for event in Parser::new_from_str(text) {
        let (event, span) =
            event.map_err(|error| format!("line {}: this is not YAML: {}", error.marker().line(), error.info()))?;
        builder.take(event, span.start.line())?;
    }
    Ok(builder.documents)
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
            return Err(format!("line {line}: it is nested deeper than {MOST_DEPTH} levels"));
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
        let node = Rc::new(Node { value, line });
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
        let d = documents[0].get("d").unwrap();
        assert_eq!(d.get("b").unwrap().text(), Some("2"));
        assert!(matches!(d.get("c").unwrap().value, Value::Null));
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
        walk(documents[0].get("a59").unwrap(), &mut steps, 0);
        assert!(!steps.go(0));
        assert!(parse("a: &a [*a]").is_err());
        let deep = "[".repeat(5000);
        assert!(parse(&deep).is_err());
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
        let last = documents[0].get("m10").unwrap();
        assert!(last.get("nowhere").is_none());
        assert_eq!(documents[0].get("m1").unwrap().get("x").unwrap().text(), Some("y"));
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
