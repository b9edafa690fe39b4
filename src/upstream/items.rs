//! The items of a list document, taken as its bytes come: the document itself is never whole in memory.
//!
//! A tag list may be 16 MiB long, and as parsed JSON it would take several times that. So [`Items`] reads the JSON
//! byte by byte, keeps one item at a time, and gives items out as lines. [`ListSink`] is where the lines go, page
//! after page.

use std::borrow::Cow;
use std::collections::HashSet;
use std::hash::{BuildHasher as _, RandomState};

use futures_util::future::BoxFuture;
use serde::de::IgnoredAny;

use crate::oci::Tag;

/// Longest item of a list, in bytes of JSON.
const MAX_ITEM_BYTES: usize = 1 << 20;
/// Longest key that is compared; a longer one is not the list's.
const MAX_KEY_BYTES: usize = 256;
/// A shorter document names no digest, and there may be very many of them.
const MIN_DOCUMENT_BYTES: usize = 32;
/// Pages without an item, one behind the other, until a list is taken to be at its end.
const MOST_EMPTY_PAGES: u32 = 5;

/// Takes the items of a list while it is fetched.
pub trait ListSink: Send + Sync {
    /// Forgets what it took: the list is asked for again, at another address perhaps.
    fn restart(&self);

    /// Takes items, each a line that ends in `\n`. What it waits for is not counted as the upstream's time.
    /// Returns false if no more is taken.
    fn take(&self, lines: Vec<u8>) -> BoxFuture<'_, bool>;

    /// Waits, beside the upstream's next bytes, until that has taken too long for others.
    fn too_slow(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::pending())
    }
}

/// How the items of a list become lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ItemKind {
    /// Strings that are tags, as their text. Everything else is left out.
    Tags,
    /// JSON of any shape, as it came but for line breaks between its tokens.
    Documents,
}

/// Reads one document of a list: a JSON object with the items as the array `field`.
#[derive(Debug)]
pub struct Items {
    field: &'static str,
    kind: ItemKind,
    at: At,
    /// The key, or the item, that is being read.
    text: Vec<u8>,
    value: Value,
    found: bool,
    /// Set if another key says that this is a list: one of nothing may have been left out.
    is_such: bool,
    is_required: bool,
}

/// Where in the document the next byte stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Start,
    /// Before the first key, where the object may end.
    FirstKey,
    /// Behind a comma.
    NextKey,
    Key {
        escaped: bool,
    },
    Colon,
    /// Before a key's value.
    BeforeValue,
    /// In a value that is not the list.
    Skipped,
    AfterValue,
    /// Behind the list's bracket, where it may end.
    FirstItem,
    NextItem,
    Item,
    AfterItem,
    Done,
}

/// How far a value has been read.
#[derive(Clone, Copy, Debug, Default)]
struct Value {
    depth: u32,
    in_string: bool,
    escaped: bool,
}

/// Meaning of a byte for the value that is being read.
enum Step {
    Inside,
    /// It is the value's last byte.
    Last,
    /// The value ended before it.
    Behind,
}

impl Value {
    fn step(&mut self, byte: u8) -> Step {
        if self.in_string {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => {
                    self.in_string = false;
                    if self.depth == 0 {
                        return Step::Last;
                    }
                }
                _ => {}
            }
            return Step::Inside;
        }
        match byte {
            b'"' => self.in_string = true,
            b'[' | b'{' => self.depth += 1,
            b']' | b'}' if self.depth == 0 => return Step::Behind,
            b']' | b'}' => {
                self.depth -= 1;
                if self.depth == 0 {
                    return Step::Last;
                }
            }
            b',' if self.depth == 0 => return Step::Behind,
            byte if self.depth == 0 && is_space(byte) => return Step::Behind,
            _ => {}
        }
        Step::Inside
    }
}

impl Items {
    pub fn new(field: &'static str, kind: ItemKind) -> Items {
        Items {
            field,
            kind,
            at: At::Start,
            text: Vec::new(),
            value: Value::default(),
            found: false,
            is_such: false,
            is_required: false,
        }
    }

    /// Of a document that may be something else: without the list it is none.
    #[must_use]
    pub fn required(self) -> Items {
        Items {
            is_required: true,
            ..self
        }
    }

    /// The key that the specification puts beside the list.
    fn mark(&self) -> &'static str {
        match self.kind {
            ItemKind::Tags => "name",
            ItemKind::Documents => "schemaVersion",
        }
    }

    /// Reads the next bytes and appends the items that end in them to `lines`.
    ///
    /// Errors: a phrase that says what is wrong with the document.
    pub fn feed(&mut self, bytes: &[u8], lines: &mut Vec<u8>) -> Result<(), String> {
        let mut rest = bytes;
        while let Some((byte, behind)) = rest.split_first() {
            if self.at == At::Item {
                rest = self.item(rest, lines)?;
                continue;
            }
            if self.step(*byte)? {
                rest = behind;
            }
        }
        Ok(())
    }

    /// Called at the end of the document.
    ///
    /// Errors: it ended too early, or has no such list.
    pub fn finish(&self) -> Result<(), String> {
        match (self.at, self.found) {
            (At::Done, true) => Ok(()),
            (At::Done, false) if self.is_such && !self.is_required => Ok(()),
            (At::Done, false) => Err(self.missing()),
            _ => Err(format!("a list of `{}` that ends in the middle", self.field)),
        }
    }

    fn missing(&self) -> String {
        format!("a list without `{}`", self.field)
    }

    fn odd(&self, expected: &str, found: u8) -> String {
        let found = char::from(found).escape_default();
        format!(
            "a list of `{}` that is not JSON: found '{found}', expected {expected}",
            self.field
        )
    }

    /// One byte outside items. Returns whether it is used up.
    fn step(&mut self, byte: u8) -> Result<bool, String> {
        match self.at {
            At::Key { escaped: true } => self.key(byte, false),
            At::Key { escaped: false } => match byte {
                b'"' => self.at = At::Colon,
                byte => self.key(byte, byte == b'\\'),
            },
            At::Skipped => match self.value.step(byte) {
                Step::Inside => {}
                Step::Last => self.at = At::AfterValue,
                Step::Behind => {
                    self.at = At::AfterValue;
                    return Ok(false);
                }
            },
            _ if is_space(byte) => {}
            At::Start if byte == b'{' => self.at = At::FirstKey,
            // As an answer that is no list at all is reported.
            At::Start => return Err(self.missing()),
            At::FirstKey if byte == b'}' => self.at = At::Done,
            At::FirstKey | At::NextKey if byte == b'"' => {
                self.text.clear();
                self.at = At::Key { escaped: false };
            }
            At::FirstKey | At::NextKey => return Err(self.odd("a key", byte)),
            At::Colon if byte == b':' => self.at = At::BeforeValue,
            At::Colon => return Err(self.odd("':'", byte)),
            At::BeforeValue => return self.before_value(byte),
            At::AfterValue if byte == b',' => self.at = At::NextKey,
            At::AfterValue if byte == b'}' => self.at = At::Done,
            At::AfterValue => return Err(self.odd("',' or '}'", byte)),
            At::FirstItem if byte == b']' => self.at = At::AfterValue,
            At::FirstItem | At::NextItem if matches!(byte, b',' | b']' | b'}' | b':') => {
                return Err(self.odd("an item", byte));
            }
            At::FirstItem | At::NextItem => {
                self.text.clear();
                self.value = Value::default();
                self.at = At::Item;
                return Ok(false);
            }
            At::AfterItem if byte == b',' => self.at = At::NextItem,
            At::AfterItem if byte == b']' => self.at = At::AfterValue,
            At::AfterItem => return Err(self.odd("',' or ']'", byte)),
            At::Done => return Err(self.odd("the end", byte)),
            // Read by `item`.
            At::Item => return Ok(false),
        }
        Ok(true)
    }

    fn key(&mut self, byte: u8, escaped: bool) {
        if self.text.len() < MAX_KEY_BYTES {
            self.text.push(byte);
        }
        self.at = At::Key { escaped };
    }

    fn before_value(&mut self, byte: u8) -> Result<bool, String> {
        self.value = Value::default();
        if self.text != self.field.as_bytes() {
            if matches!(byte, b',' | b']' | b'}' | b':') {
                return Err(self.odd("a value", byte));
            }
            self.is_such |= self.text == self.mark().as_bytes();
            self.at = At::Skipped;
            return Ok(false);
        }
        if self.found {
            return Err(format!("a list with `{}` twice", self.field));
        }
        match byte {
            b'[' => {
                self.found = true;
                self.at = At::FirstItem;
                Ok(true)
            }
            // Some registries write null where nothing is left.
            b'n' => {
                self.found = true;
                self.at = At::Skipped;
                Ok(false)
            }
            _ => Err(self.missing()),
        }
    }

    /// Reads what `bytes` have of the item. Returns the bytes behind it.
    fn item<'a>(&mut self, bytes: &'a [u8], lines: &mut Vec<u8>) -> Result<&'a [u8], String> {
        for (at, byte) in bytes.iter().enumerate() {
            let end = match self.value.step(*byte) {
                Step::Inside => continue,
                Step::Last => at + 1,
                Step::Behind => at,
            };
            self.keep(&bytes[..end])?;
            self.end_item(lines)?;
            self.at = At::AfterItem;
            return Ok(&bytes[end..]);
        }
        self.keep(bytes)?;
        Ok(&[])
    }

    fn keep(&mut self, bytes: &[u8]) -> Result<(), String> {
        if self.text.len() + bytes.len() > MAX_ITEM_BYTES {
            return Err(format!(
                "a list of `{}` with an item of more than {MAX_ITEM_BYTES} bytes",
                self.field
            ));
        }
        self.text.extend_from_slice(bytes);
        Ok(())
    }

    fn end_item(&mut self, lines: &mut Vec<u8>) -> Result<(), String> {
        let not_json = |error: serde_json::Error| format!("a list with an item that is not JSON: {error}");
        let text = self.text.as_slice();
        match self.kind {
            ItemKind::Tags => {
                let plain = text.strip_prefix(b"\"").and_then(|text| text.strip_suffix(b"\""));
                let plain = plain.and_then(|text| std::str::from_utf8(text).ok());
                let tag = match plain.filter(|text| Tag::fits(text)) {
                    Some(tag) => Some(Cow::Borrowed(tag)),
                    // Escapes, or no tag at all.
                    None if text.first() == Some(&b'"') => {
                        let text: String = serde_json::from_slice(text).map_err(not_json)?;
                        Some(Cow::Owned(text)).filter(|text| Tag::fits(text))
                    }
                    None => serde_json::from_slice::<IgnoredAny>(text)
                        .map_err(not_json)
                        .map(|_| None)?,
                };
                if let Some(tag) = tag {
                    lines.extend_from_slice(tag.as_bytes());
                    lines.push(b'\n');
                }
            }
            ItemKind::Documents => {
                serde_json::from_slice::<IgnoredAny>(text).map_err(not_json)?;
                // Within strings JSON has no line breaks.
                let one_line = text.iter().map(|byte| match byte {
                    b'\n' | b'\r' => b' ',
                    byte => *byte,
                });
                lines.extend(one_line);
                lines.push(b'\n');
            }
        }
        Ok(())
    }
}

/// What the pages of a list have brought so far: a registry that does not understand how the next page is asked for
/// gives the first one again.
#[derive(Debug)]
pub(super) struct Pages {
    kind: ItemKind,
    hasher: RandomState,
    /// Of tags, the pages: the sum of their items' hashes, and how many there are. An upstream may put them in any order.
    pages: HashSet<(u64, u64)>,
    /// Of documents, each: there are fewer, and nobody takes doubles out behind this.
    documents: HashSet<u64>,
    /// Of the page that is coming.
    page: (u64, u64),
    has_news: bool,
    /// Pages without an item since the last one with any.
    empty: u32,
}

impl Pages {
    pub(super) fn new(kind: ItemKind) -> Pages {
        Pages {
            kind,
            hasher: RandomState::new(),
            pages: HashSet::new(),
            documents: HashSet::new(),
            page: (0, 0),
            has_news: false,
            empty: 0,
        }
    }

    /// Looks at items of the page, lines that end in `\n`. Returns those that are passed on.
    pub(super) fn sift(&mut self, mut lines: Vec<u8>) -> Vec<u8> {
        let mut kept = Vec::new();
        let mut is_less = false;
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            let hash = self.hasher.hash_one(line);
            self.page = (self.page.0.wrapping_add(hash), self.page.1 + 1);
            if self.kind == ItemKind::Documents {
                let is_double = line.len() >= MIN_DOCUMENT_BYTES && !self.documents.insert(hash);
                is_less |= is_double;
                self.has_news |= !is_double;
                if !is_double {
                    kept.extend_from_slice(line);
                }
            }
        }
        if is_less {
            lines = kept;
        }
        lines
    }

    /// Called at the end of a page. Returns false if there is no reason to ask for another: it brought nothing new, or it
    /// was one of several without any item.
    pub(super) fn end_page(&mut self) -> bool {
        let page = std::mem::take(&mut self.page);
        let has_news = std::mem::take(&mut self.has_news);
        if page.1 == 0 {
            self.empty += 1;
            return self.empty < MOST_EMPTY_PAGES;
        }
        self.empty = 0;
        match self.kind {
            ItemKind::Tags => self.pages.insert(page),
            ItemKind::Documents => has_news,
        }
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value as Json, json};

    fn read(field: &'static str, kind: ItemKind, pieces: &[&[u8]]) -> Result<Vec<String>, String> {
        let mut items = Items::new(field, kind);
        let mut lines = Vec::new();
        for piece in pieces {
            items.feed(piece, &mut lines)?;
        }
        items.finish()?;
        let text = String::from_utf8(lines).map_err(|error| error.to_string())?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    fn tags(document: &str) -> Result<Vec<String>, String> {
        read("tags", ItemKind::Tags, &[document.as_bytes()])
    }

    #[test]
    fn lists_as_registries_write_them() {
        for (document, want) in [
            (r#"{"name":"a/b","tags":["1","latest"]}"#, &["1", "latest"][..]),
            (
                " {\n\"tags\" : [ \"1\" ,\t\"2\" ] , \"x\" : {\"tags\":[3,\"]\"]} }\n",
                &["1", "2"],
            ),
            (r#"{"tags":[],"name":"a"}"#, &[]),
            (r#"{"tags":null}"#, &[]),
            (
                r#"{"t\"ags":["x"],"tags":["a\u0062","not a tag","",7,null,[1,"[\"]"],"c"]}"#,
                &["ab", "c"],
            ),
            (r#"{"n":-1.5e3,"b":true,"s":"\\","tags":["z"]}"#, &["z"]),
            // As encoders write it that leave out what is empty.
            (r#"{"name":"a/b"}"#, &[]),
            (r#"{"x":{"tags":["1"]},"name":"a/b","tags":null}"#, &[]),
        ] {
            assert_eq!(
                tags(document).as_deref(),
                Ok(&want.iter().map(|t| t.to_string()).collect::<Vec<_>>()[..]),
                "{document}"
            );
        }
        let document = b"{\"manifests\":[{\"digest\":\"x\",\n \"a\":[1,\r\n2]},{}]}";
        assert_eq!(
            read("manifests", ItemKind::Documents, &[document]).unwrap(),
            ["{\"digest\":\"x\",  \"a\":[1,  2]}", "{}"]
        );
    }

    #[test]
    fn what_is_no_list_is_named() {
        for (document, want) in [
            (r#"{"tags":"a"}"#, "without `tags`"),
            (r#"{"x":{"name":"a"}}"#, "without `tags`"),
            (r#"{"errors":[{"code":"UNKNOWN"}]}"#, "without `tags`"),
            ("{}", "without `tags`"),
            ("<html>", "without `tags`"),
            (r#"["a"]"#, "without `tags`"),
            ("", "ends in the middle"),
            (r#"{"tags":["a""#, "ends in the middle"),
            (r#"{"tags":["a"]"#, "ends in the middle"),
            (r#"{"tags":["a"],"tags":["b"]}"#, "twice"),
            (r#"{"tags":["a",]}"#, "expected an item"),
            (r#"{"tags":["a" "b"]}"#, "expected ',' or ']'"),
            (r#"{"tags":[oops]}"#, "not JSON"),
            (r#"{"tags":["a"]} x"#, "expected the end"),
            (r#"{"tags"=["a"]}"#, "expected ':'"),
            (r#"{tags:["a"]}"#, "expected a key"),
            (r#"{"a":,"tags":[]}"#, "expected a value"),
        ] {
            let error = tags(document).unwrap_err();
            assert!(error.contains(want), "{document}: {error}");
        }
        let long = format!(r#"{{"manifests":["{}"]}}"#, "x".repeat(MAX_ITEM_BYTES));
        let error = read("manifests", ItemKind::Documents, &[long.as_bytes()]).unwrap_err();
        assert!(error.contains("more than 1048576 bytes"), "{error}");
    }

    #[test]
    fn an_index_of_nothing_is_a_list() {
        let of = |document: &str| read("manifests", ItemKind::Documents, &[document.as_bytes()]);
        assert_eq!(of(r#"{"schemaVersion":2,"mediaType":"x"}"#), Ok(Vec::new()));
        assert!(of(r#"{"name":"a"}"#).is_err());
        let mut required = Items::new("manifests", ItemKind::Documents).required();
        required
            .feed(br#"{"schemaVersion":2,"layers":[]}"#, &mut Vec::new())
            .unwrap();
        assert!(required.finish().is_err());
    }

    #[test]
    fn a_page_that_was_there_before_ends_the_list() {
        let mut tags = Pages::new(ItemKind::Tags);
        let mut page = |parts: &[&str]| {
            for part in parts {
                assert_eq!(tags.sift(part.as_bytes().to_vec()), part.as_bytes());
            }
            tags.end_page()
        };
        assert!(page(&["a\nb\n", "c\n"]));
        assert!(page(&["d\n"]));
        assert!(page(&["a\nb\n"]), "not the same page");
        assert!(!page(&["c\n", "a\n", "b\n"]), "in another order");
        assert!(page(&["a\nb\nc\ne\n"]));
        // Some registries count what has no tag.
        for _ in 1..MOST_EMPTY_PAGES {
            assert!(page(&[]));
        }
        assert!(page(&["f\n"]));
        let empty = (0..MOST_EMPTY_PAGES).filter(|_| page(&[])).count();
        assert_eq!(empty, MOST_EMPTY_PAGES as usize - 1);

        let mut documents = Pages::new(ItemKind::Documents);
        let [one, two, three] = ["1", "2", "3"].map(|n| format!("{{\"digest\":\"{}\"}}\n", n.repeat(64)));
        let mut page = |items: &[&String]| {
            let lines: String = items.iter().map(|item| item.as_str()).collect();
            let kept = documents.sift(lines.into_bytes());
            (String::from_utf8(kept).unwrap(), documents.end_page())
        };
        assert_eq!(page(&[&one, &two]), (format!("{one}{two}"), true));
        assert_eq!(page(&[&two, &three]), (three.clone(), true));
        assert_eq!(page(&[&three, &one]), (String::new(), false));
    }

    fn json() -> impl Strategy<Value = Json> {
        let leaf = prop_oneof![
            Just(Json::Null),
            any::<bool>().prop_map(Json::from),
            any::<i32>().prop_map(Json::from),
            "[a-z0-9.]{0,6}".prop_map(Json::from),
            any::<String>().prop_map(Json::from),
        ];
        leaf.prop_recursive(3, 24, 5, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..5).prop_map(Json::from),
                proptest::collection::btree_map(any::<String>(), inner, 0..4)
                    .prop_map(|map| Json::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        /// Reading in pieces gives the items that parsing the whole document gives, wherever its bytes are cut.
        #[test]
        fn items_are_those_of_the_whole_document(
            items in proptest::collection::vec(json(), 0..12),
            beside in proptest::collection::btree_map("[a-z\"\\\\é]{0,5}", json(), 0..4),
            pretty: bool,
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let mut document = json!(beside);
            document["tags"] = json!(items);
            let text = if pretty { serde_json::to_vec_pretty(&document) } else { serde_json::to_vec(&document) }.unwrap();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();

            let want: Vec<String> = items.iter().filter_map(Json::as_str).filter(|t| Tag::fits(t)).map(str::to_owned).collect();
            prop_assert_eq!(read("tags", ItemKind::Tags, &pieces), Ok(want));
            let lines = read("tags", ItemKind::Documents, &pieces).unwrap();
            let back: Vec<Json> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
            prop_assert_eq!(back, items);
        }

        #[test]
        fn any_bytes_are_a_list_or_not(bytes: Vec<u8>, text in r#"[\[\]{}:,"a \\n1]{0,40}"#) {
            let _ = read("a", ItemKind::Tags, &[&bytes]);
            let _ = read("a", ItemKind::Documents, &[text.as_bytes()]);
        }
    }
}
