//! Kubernetes manifests, and what Helm renders: the images of every container, wherever it is nested; and what may be
//! images in other resources.

use super::yaml::{Node, Steps, Value};
use super::{Images, clip};

const CONTAINERS: [&str; 3] = ["containers", "initContainers", "ephemeralContainers"];

pub fn is_one(document: &Node) -> bool {
    let has = |key| document.get(key).is_some_and(|value| value.text().is_some());
    has("kind") && has("apiVersion")
}

/// Adds the images of one document.
pub fn find(document: &Node, images: &mut Images) {
    let mut walk = Walk {
        images,
        steps: Steps::new(),
        resource: String::new(),
    };
    walk.resource(document, 0);
}

struct Walk<'a> {
    images: &'a mut Images,
    steps: Steps,
    /// `Deployment/web`
    resource: String,
}

impl Walk<'_> {
    fn resource(&mut self, document: &Node, depth: usize) {
        if depth > 5 {
            return;
        }
        let text = |node: &Node, key: &str| node.get(key).and_then(|value| value.text()).map(str::to_owned);
        let kind = text(document, "kind").unwrap_or_default();
        if kind.ends_with("List")
            && let Some(items) = document.get("items")
        {
            for item in items.list() {
                self.resource(item, depth + 1);
            }
            return;
        }
        let name = document.get("metadata").and_then(|metadata| text(metadata, "name"));
        self.resource = format!("{}/{}", clip(&kind), clip(name.as_deref().unwrap_or("?")));
        // A template of a resource describes images; a schema describes templates.
        if kind != "CustomResourceDefinition" {
            self.node(document, &mut Vec::new());
        }
    }

    fn node<'n>(&mut self, node: &'n Node, path: &mut Vec<&'n str>) {
        // The file is refused then: what else it names does not matter.
        if self.images.too_many || !self.steps.go(path.len()) {
            return;
        }
        match &node.value {
            Value::List(items) => {
                for item in items {
                    path.push("[]");
                    self.node(item, path);
                    path.pop();
                }
            }
            Value::Map(_) => self.map(node, path),
            Value::Text(_) | Value::Null => {}
        }
    }

    fn map<'n>(&mut self, node: &'n Node, path: &mut Vec<&'n str>) {
        let parent = path.iter().rev().find(|part| **part != "[]").copied();
        let is_container = parent.is_some_and(|parent| CONTAINERS.contains(&parent));
        // Looked up once, also where a file gives one map many images.
        let own_name = is_container.then(|| node.get("name")).flatten();
        let own_name = own_name.and_then(|name| name.text());
        for (key, value) in node.map() {
            let Some(key) = key.text() else { continue };
            path.push(key);
            match (key, value.text()) {
                ("image", Some(image)) if is_container => self.found(image, value.line, own_name, path),
                ("image", Some(image)) => self.perhaps(image, value.line, path),
                ("image", None) if value.is_map() => self.image_map(value, parent, path),
                _ => self.node(value, path),
            }
            path.pop();
        }
    }

    fn found(&mut self, image: &str, line: usize, name: Option<&str>, path: &[&str]) {
        let name = clip(name.unwrap_or("?"));
        let kind = path
            .iter()
            .rev()
            .find(|part| CONTAINERS.contains(part))
            .copied()
            .unwrap_or_default();
        let place = format!("line {line}, {} {kind}[{name}]", self.resource);
        match image.trim().is_empty() {
            true => self.images.pass_over(format!("{place} names no image")),
            false => self.images.add(image.trim().to_owned(), place),
        }
    }

    /// `image: {repository, tag}`, `image: {reference}` of a volume.
    fn image_map<'n>(&mut self, image: &'n Node, parent: Option<&str>, path: &mut Vec<&'n str>) {
        let text = |key: &str| image.get(key).and_then(|value| value.text());
        if let (Some(reference), Some("volumes")) = (text("reference"), parent) {
            let place = format!("line {}, {} {}", image.line, self.resource, shown(path));
            self.images.add(reference.trim().to_owned(), place);
        } else if let Some(repository) = text("repository") {
            let registry = text("registry")
                .map(|registry| format!("{registry}/"))
                .unwrap_or_default();
            let end = match (text("digest"), text("tag")) {
                (Some(digest), _) if !digest.is_empty() => format!("@{digest}"),
                (_, Some(tag)) if !tag.is_empty() => format!(":{tag}"),
                _ => String::new(),
            };
            self.perhaps(&format!("{registry}{repository}{end}"), image.line, path);
        } else {
            self.node(image, path);
        }
    }

    fn perhaps(&mut self, image: &str, line: usize, path: &[&str]) {
        let image = image.trim();
        let looks_like_one =
            image.contains([':', '/', '@']) && !image.contains("://") && !image.contains(char::is_whitespace);
        if looks_like_one {
            let place = format!("line {line}, {} {}", self.resource, shown(path));
            self.images.perhaps(image.to_owned(), place);
        }
    }
}

/// `spec.template.spec`, of bounded length: keys may be long, and the same ones stand before every image.
fn shown(path: &[&str]) -> String {
    let mut text = String::new();
    for part in path {
        if text.len() > 300 {
            return text + "…";
        }
        if !text.is_empty() {
            text.push('.');
        }
        text += &clip(part);
    }
    text
}
