//! Kubernetes resources, and what Helm renders: the images of every container, wherever it is nested; and what may be
//! images elsewhere: in custom resources, in variables and arguments, in longer texts.

use super::words::{self, is_likely, is_plain, speaks_of_images};
use super::yaml::{Node, Steps, Value};
use super::{Images, RENDER, clip};

const CONTAINERS: [&str; 3] = ["containers", "initContainers", "ephemeralContainers"];
/// Operators of OLM name here what they and their operands run.
const RELATED: &str = "relatedImages";
const ARGO: [&str; 3] = ["container", "script", "sidecars"];
const TEKTON: [&str; 3] = ["steps", "sidecars", "stepTemplate"];
/// Resources whose `spec` names one image: group, kind, key.
const SPECIAL: [(&str, &str, &str); 5] = [
    ("caching.internal.knative.dev", "Image", "image"),
    ("operators.coreos.com", "CatalogSource", "image"),
    ("pkg.crossplane.io", "Provider", "package"),
    ("pkg.crossplane.io", "Configuration", "package"),
    ("pkg.crossplane.io", "Function", "package"),
];

/// A document's name in messages.
#[derive(Clone, Debug, Default)]
pub struct Label {
    /// `document 2`; `document 2, item 3` in a list.
    pub document: String,
    /// `Deployment/web`; empty where it has no kind.
    pub resource: String,
}

impl Label {
    /// `line 3, Deployment/web containers[app]`
    pub fn place(&self, line: usize, within: &str) -> String {
        let mut text = match line {
            0 => self.document.clone(),
            line => format!("line {line}"),
        };
        if !self.resource.is_empty() {
            text = format!("{text}, {}", self.resource);
        }
        match within {
            "" => text,
            within => format!("{text} {within}"),
        }
    }

    /// `document 2, line 3, Deployment/web`
    fn full(&self, line: usize) -> String {
        let mut text = self.document.clone();
        if line > 0 {
            text += &format!(", line {line}");
        }
        if !self.resource.is_empty() {
            text += &format!(", {}", self.resource);
        }
        text
    }
}

/// A walk through one document.
pub struct Walk<'a> {
    pub images: &'a mut Images,
    pub steps: Steps,
    pub label: Label,
    /// `apps` of `apps/v1`; of the resource that was entered last.
    pub group: String,
    pub kind: String,
}

/// Facts about the map that another one is merged into.
#[derive(Clone, Copy, Default)]
struct Around<'n> {
    name: Option<&'n str>,
    /// That one has an image of its own, which wins.
    has_image: bool,
}

impl Walk<'_> {
    pub fn place(&self, line: usize, within: &str) -> String {
        self.label.place(line, within)
    }

    /// Names what is not read, and why.
    pub fn unread(&mut self, line: usize, why: &str) {
        self.images.unread(format!("{}: {why}", self.label.full(line)));
    }

    /// Every part of a resource.
    pub fn resource(&mut self, document: &Node) {
        // A schema describes images and names none; of secrets nothing is shown.
        if !matches!(self.kind.as_str(), "CustomResourceDefinition" | "Secret") {
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
                let last = path.last().copied();
                if matches!(last, Some("args" | "command")) {
                    self.arguments(items, path);
                    return;
                }
                for item in items {
                    path.push("[]");
                    self.node(item, path);
                    path.pop();
                }
            }
            Value::Map(_) => self.map(node, path, Around::default()),
            Value::Text(text) => {
                let hint = key_of(path).is_some_and(speaks_of_images);
                self.text(text, hint, node.line, &|| shown(path));
            }
            Value::Null => {}
        }
    }

    /// One after the other: a flag may speak of the word behind it.
    fn arguments<'n>(&mut self, items: &'n [std::rc::Rc<Node>], path: &mut Vec<&'n str>) {
        let place = shown(path);
        let mut hint = false;
        for item in items {
            match item.text() {
                Some(text) => {
                    self.text(text, hint, item.line, &|| place.clone());
                    hint = text.starts_with('-') && !text.contains('=') && speaks_of_images(text);
                }
                None => {
                    path.push("[]");
                    self.node(item, path);
                    path.pop();
                }
            }
        }
    }

    fn map<'n>(&mut self, node: &'n Node, path: &mut Vec<&'n str>, around: Around<'n>) {
        if !self.steps.go(path.len()) {
            return;
        }
        let own = |key: &str| node.map().iter().find(|(name, _)| name.text() == Some(key));
        let own_text = |key: &str| own(key).and_then(|(_, value)| value.text());
        // A resource in a resource: a workflow that a sensor submits.
        let outer = match (own_text("apiVersion"), own_text("kind")) {
            (Some(api), Some(_)) if !path.is_empty() => {
                Some(std::mem::replace(&mut self.group, group_of(api).to_owned()))
            }
            _ => None,
        };
        let parent = key_of(path);
        let holds_image = self.holds_image(parent);
        let is_docker_image = own_text("kind") == Some("DockerImage");
        let name = own_text("name").or(around.name);
        let has_image = around.has_image || own("image").is_some();
        let split = self.split_image(node, path);
        for (key, value) in node.map() {
            let Some(key) = key.text() else { continue };
            if !self.steps.go(path.len()) {
                break;
            }
            path.push(key);
            match (key, value.text()) {
                ("<<", _) => {
                    let inner = Around { name, has_image };
                    for base in std::iter::once(value).chain(value.list()).filter(|base| base.is_map()) {
                        self.map(base, path, inner);
                    }
                }
                ("image", _) if around.has_image => {}
                ("image", Some(image)) if holds_image => self.container(image, value.line, name, path),
                ("image", Some(image)) => {
                    let (label, path) = (&self.label, &*path);
                    self.images
                        .may_be(image, is_likely, || label.place(value.line, &shown(path)));
                }
                // `{{ .Values.image }}` without quotes is a map in YAML.
                ("image", None) if holds_image && !is_image_map(value) => {
                    let place = self.place(value.line, &shown(path));
                    match value.value {
                        Value::Null => self.images.pass_over(format!("{place} names no image")),
                        _ => self
                            .images
                            .unread(format!("{place}: no text, as in a template: {RENDER}")),
                    }
                }
                ("image", None) if value.is_map() => self.image_map(value, parent, path),
                _ if split == Some(key) => {}
                ("name", Some(image)) if is_docker_image => {
                    let place = self.place(value.line, &shown(path));
                    self.images.add(image, place);
                }
                // `env`, parameters of charts and pipelines.
                ("value", Some(text)) if name.is_some() => {
                    let name = name.unwrap_or_default();
                    let place = || format!("{}[{}]", parent.unwrap_or("value"), clip(name));
                    self.text(text, speaks_of_images(name), value.line, &place);
                }
                // Not what is wanted, but what a cluster has.
                ("containerStatuses" | "initContainerStatuses" | "ephemeralContainerStatuses" | "imageID", _) => {}
                (_, Some(image)) if self.is_special(path) => {
                    let place = self.place(value.line, &shown(path));
                    self.images.add(image, place);
                }
                _ => self.node(value, path),
            }
            path.pop();
        }
        if let Some(group) = outer {
            self.group = group;
        }
    }

    /// Returns true if an `image` below such a key is one that is run.
    fn holds_image(&self, parent: Option<&str>) -> bool {
        let Some(parent) = parent else { return false };
        CONTAINERS.contains(&parent)
            || parent == RELATED
            || (self.group == "argoproj.io" && ARGO.contains(&parent))
            || (self.group == "tekton.dev" && TEKTON.contains(&parent))
            || (parent == "spec" && self.is_special(&["spec", "image"]))
    }

    fn is_special(&self, path: &[&str]) -> bool {
        let [spec, key] = path else { return false };
        *spec == "spec" && SPECIAL.contains(&(self.group.as_str(), self.kind.as_str(), key))
    }

    fn container(&mut self, image: &str, line: usize, name: Option<&str>, path: &[&str]) {
        let list = key_of(path.split_last().map_or(&[][..], |(_, before)| before)).unwrap_or_default();
        let within = match name {
            Some(name) => format!("{list}[{}]", clip(name)),
            None => format!("{list}[?]"),
        };
        let place = self.place(line, &within);
        match image.trim().is_empty() {
            true => self.images.pass_over(format!("{place} names no image")),
            false => self.images.add(image, place),
        }
    }

    /// `image: {repository, tag}`, `image: {reference}` of a volume.
    fn image_map<'n>(&mut self, image: &'n Node, parent: Option<&str>, path: &mut Vec<&'n str>) {
        let text = |key: &str| {
            let found = image.map().iter().find(|(name, _)| name.text() == Some(key));
            found
                .and_then(|(_, value)| value.text())
                .filter(|text| !text.is_empty())
        };
        let place = self.place(image.line, &shown(path));
        if let (Some(reference), Some("volumes")) = (text("reference"), parent) {
            return self.images.add(reference, place);
        }
        let Some(repository) = text("repository").or(text("image")).or(text("name")) else {
            return self.node(image, path);
        };
        let registry = text("registry")
            .map(|registry| format!("{registry}/"))
            .unwrap_or_default();
        match (text("digest").or(text("sha")), text("tag")) {
            (Some(digest), _) if digest.contains(':') => {
                let image = format!("{registry}{repository}@{digest}");
                self.images.may_be(&image, is_likely, || place);
            }
            (_, Some(tag)) => {
                let image = format!("{registry}{repository}:{tag}");
                self.images.may_be(&image, is_likely, || place);
            }
            // A chart's own version, mostly.
            _ if repository.contains([':', '@']) => self.images.may_be(repository, is_likely, || place),
            _ => self
                .images
                .pass_over(format!("{place}: {} without a tag is no image yet", clip(repository))),
        }
    }

    /// A possible image whose repository and tag are keys side by side, in whatever resource. Returns the key of the repository,
    /// which by itself would be another image.
    fn split_image(&mut self, node: &Node, path: &[&str]) -> Option<&'static str> {
        let text = |key: &str| {
            let found = node.map().iter().find(|(name, _)| name.text() == Some(key));
            found
                .and_then(|(_, value)| value.text())
                .filter(|text| !text.trim().is_empty())
        };
        let registry = text("registry");
        let (key, repository, tag) = SPLIT.iter().find_map(|(key, tag)| {
            let fits = *key != "name" || registry.is_some();
            Some((*key, text(key).filter(|_| fits)?, text(tag)?))
        })?;
        let mark = if tag.contains(':') { '@' } else { ':' };
        let image = match registry {
            Some(registry) => format!("{}/{repository}{mark}{tag}", registry.trim_end_matches('/')),
            None => format!("{repository}{mark}{tag}"),
        };
        let label = &self.label;
        self.images
            .may_be(&image, is_likely, || label.place(node.line, &shown(path)));
        Some(key)
    }

    /// Possible images in a text. `hint`: its key, variable or flag speaks of an image.
    fn text(&mut self, text: &str, hint: bool, line: usize, within: &dyn Fn() -> String) {
        if self.images.too_many || !self.steps.read(text) {
            return;
        }
        // A key speaks of its one word; sentences and files have their own hints in them.
        let hint = hint && !text.trim().contains(char::is_whitespace);
        let (images, label) = (&mut *self.images, &self.label);
        words::each(text, hint, |word, hinted| {
            let fits = if hinted { is_likely } else { is_plain };
            images.may_be(word, fits, || label.place(line, &within()));
        });
    }
}

/// Keys that together name an image in resources of other tools: repository, and tag or digest.
const SPLIT: [(&str, &str); 7] = [
    ("repository", "digest"),
    ("repository", "tag"),
    ("imageRepository", "imageTag"),
    ("imageName", "imageTag"),
    ("image", "tag"),
    ("name", "digest"),
    ("name", "tag"),
];

/// Returns true if a map under `image` is one of those that name an image in parts.
fn is_image_map(node: &Node) -> bool {
    let names = ["repository", "image", "name", "reference"];
    node.map()
        .iter()
        .any(|(key, _)| key.text().is_some_and(|key| names.contains(&key)))
}

/// The innermost key of a path: lists and merges have none.
fn key_of<'n>(path: &[&'n str]) -> Option<&'n str> {
    path.iter().rev().find(|part| !matches!(**part, "[]" | "<<")).copied()
}

/// `apps` of `apps/v1`, nothing of `v1`.
pub fn group_of(api_version: &str) -> &str {
    api_version.split_once('/').map_or("", |(group, _)| group)
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
