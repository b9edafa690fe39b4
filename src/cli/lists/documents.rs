//! Finds out what each document of a stream is, and hands it to its reader. Several kinds may stand behind one another, and
//! in lists.

use std::rc::Rc;

use super::kubernetes::{Label, Walk, group_of};
use super::yaml::{Node, Steps, Value};
use super::{Images, Kind, clip, compose, tools};

/// Lists in lists of documents.
const MOST_NESTED: usize = 10;

/// Known facts about a file beside its text.
pub struct Stream<'a> {
    /// As the command line says.
    pub kind: Option<Kind>,
    /// By its name.
    pub is_kustomization: bool,
    pub variables: &'a dyn Fn(&str) -> Option<String>,
}

/// Adds the images of all documents, and names those that are not read.
///
/// Errors: nothing in it is of a kind that is known, or there is too much of it.
pub fn find(documents: &[Rc<Node>], stream: &Stream<'_>, images: &mut Images) -> Result<(), String> {
    let mut reader = Reader {
        stream,
        walk: Walk {
            images,
            steps: Steps::new(),
            label: Label::default(),
            group: String::new(),
            kind: String::new(),
        },
        understood: 0,
    };
    for (at, document) in documents.iter().enumerate() {
        let of = Item {
            name: format!("document {}", at + 1),
            kind: None,
            api_version: None,
            depth: 0,
        };
        reader.document(document, &of);
    }
    if reader.walk.steps.ended_early() {
        return Err("it is too large: by its aliases it repeats too much, or is nested too deep".to_owned());
    }
    if reader.understood == 0 && stream.kind.is_none() {
        return Err(
            "it is no compose file, no Kubernetes manifests and no Dockerfile: say what it is by --kind, or give a list by --file"
                .to_owned(),
        );
    }
    Ok(())
}

/// A document's place in its file, and what its list says about it.
struct Item<'n> {
    /// `document 2, item 3`
    name: String,
    /// Items of a `PodList` need not say that they are Pods.
    kind: Option<&'n str>,
    api_version: Option<&'n str>,
    depth: usize,
}

struct Reader<'a, 's> {
    stream: &'s Stream<'s>,
    walk: Walk<'a>,
    /// Documents of a kind that is known.
    understood: usize,
}

impl Reader<'_, '_> {
    fn document(&mut self, document: &Node, of: &Item<'_>) {
        if self.walk.images.too_many || !self.walk.steps.go(0) {
            return;
        }
        self.walk.label = Label {
            document: of.name.clone(),
            resource: String::new(),
        };
        self.walk.group.clear();
        self.walk.kind.clear();
        match &document.value {
            Value::Null => {}
            Value::List(items) => self.items(items, document.line, of, (None, None)),
            Value::Text(text) => {
                let why = format!("a text, {:?}, where a resource is expected", clip(text));
                self.walk.unread(document.line, &why);
            }
            Value::Map(_) => self.map(document, of),
        }
    }

    fn items(&mut self, items: &[Rc<Node>], line: usize, of: &Item<'_>, inherited: (Option<&str>, Option<&str>)) {
        if of.depth >= MOST_NESTED {
            return self.walk.unread(line, "lists are nested too deep in one another");
        }
        for (at, item) in items.iter().enumerate() {
            let item_of = Item {
                name: format!("{}, item {}", of.name, at + 1),
                kind: inherited.0,
                api_version: inherited.1,
                depth: of.depth + 1,
            };
            self.document(item, &item_of);
        }
    }

    fn map(&mut self, document: &Node, of: &Item<'_>) {
        let steps = &mut self.walk.steps;
        let kind = document.text_at("kind", steps).or(of.kind);
        let api_version = document.text_at("apiVersion", steps).or(of.api_version);
        let metadata = document.get("metadata", steps);
        let name = metadata.and_then(|metadata| metadata.text_at("name", steps));
        let is_compose = compose::is_one(document, steps);
        if self.stream.kind == Some(Kind::Compose) || (kind.is_none() && is_compose && self.stream.kind.is_none()) {
            self.understood += 1;
            return match is_compose {
                true => compose::find(document, &mut self.walk.steps, self.stream.variables, self.walk.images),
                false => self
                    .walk
                    .unread(document.line, "it has no services, as a compose file has"),
            };
        }
        let Some(kind) = kind else {
            return self.without_kind(document);
        };
        let list = match kind {
            "Template" => document.get("objects", steps),
            kind if kind.ends_with("List") => document.get("items", steps),
            _ => None,
        };
        if let Some(Value::List(items)) = list.map(|list| &list.value) {
            self.understood += 1;
            let of_items = Some(kind.trim_end_matches("List")).filter(|kind| !kind.is_empty() && *kind != "Template");
            return self.items(items, document.line, of, (of_items, of_items.and(api_version)));
        }
        self.walk.label.resource = match name {
            Some(name) => format!("{}/{}", clip(kind), clip(name)),
            None => clip(kind),
        };
        self.walk.kind = kind.to_owned();
        self.walk.group = group_of(api_version.unwrap_or_default()).to_owned();
        let before = self.seen();
        if !tools::read(&mut self.walk, document) {
            self.walk.resource(document);
        }
        // Other programs have kinds too: without a version it is a resource if something was found in it.
        match api_version.is_some() || self.seen() > before || self.stream.kind.is_some() {
            true => self.understood += 1,
            false => self
                .walk
                .unread(document.line, "it has no apiVersion, as a resource of Kubernetes has"),
        }
    }

    fn without_kind(&mut self, document: &Node) {
        if self.stream.is_kustomization || tools::is_kustomization(document, &mut self.walk.steps) {
            self.understood += 1;
            self.walk.label.resource = "Kustomization".to_owned();
            return tools::kustomization(&mut self.walk, document);
        }
        let before = self.seen();
        self.walk.resource(document);
        match self.seen() > before {
            true => self.understood += 1,
            false => self.walk.unread(
                document.line,
                "it has no kind and no services: it is no resource of Kubernetes and no compose file",
            ),
        }
    }

    /// How much was found so far.
    fn seen(&self) -> usize {
        let images = &self.walk.images;
        images.found.len() + images.possible.len() + images.unread.len()
    }
}
