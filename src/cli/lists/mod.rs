//! Images named in files that people have anyway: compose files, Kubernetes manifests, Dockerfiles, and what tools that
//! mirror or deploy images are told.
//!
//! Text in, names and places out; nothing is fetched, and nothing else is read but the `.env` beside a compose file.
//! `yaml` makes a stream of documents of the text, `documents` finds out what each of them is, `kubernetes` walks through
//! resources, `tools` reads the forms of Hauler, oc-mirror, Zarf, Flux, Kustomize and Argo CD. What a document names and
//! nobody here can read is named as unread.

mod compose;
mod dockerfile;
mod documents;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod kubernetes;
mod tools;
mod variables;
mod words;
mod yaml;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::Path;

use crate::config::wanted::{Shape, parse_line, shape};

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    Compose,
    /// Also what `helm template` and `kustomize build` print, and resources of other tools
    Kubernetes,
    Dockerfile,
}

/// One image and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// A line of a list: the image, and its platform where the file says one.
    pub image: String,
    /// `services.web`, `Deployment/web containers[app]`, `line 3, FROM`
    pub place: String,
}

/// What a file names.
#[derive(Debug, Default)]
pub struct Images {
    pub found: Vec<Found>,
    /// Texts that look like images where nothing says that they are.
    pub possible: Vec<Found>,
    /// Entries that name nothing to fetch, in words: a service that is built, a repository without a tag.
    pub passed_over: Vec<String>,
    /// Entries that name images or content that is not in the lists above: place and reason.
    pub unread: Vec<String>,
    /// More than are taken were named.
    too_many: bool,
    /// Bytes of all texts that were kept.
    kept: usize,
}

/// Images of one file, and likewise what is passed over: a list has no more either. By aliases, a YAML file of a few lines can name
/// millions.
const MOST_IMAGES: usize = crate::config::wanted::MAX_IMAGES;
/// Bytes of one: more than a line of a list may have. An alias costs a few bytes and may stand for megabytes.
const LONGEST_IMAGE: usize = 2_000;
/// Bytes of all that is kept of one file.
const MOST_KEPT: usize = 12 << 20;

/// Advice for a template that was not rendered.
const RENDER: &str = "render it first, for a chart by `helm template NAME CHART | larder prefetch --from -`";

impl Images {
    /// An image that will be pulled.
    fn add(&mut self, image: &str, place: String) {
        self.add_for(image, None, place);
    }

    /// An image for a platform; one that only the builder knows counts as none.
    fn add_for(&mut self, image: &str, platform: Option<&str>, place: String) {
        let image = image.trim();
        if let Err(why) = check(image) {
            let shown = clip(image);
            return self.unread(format!("{place}: {shown}: {why}"));
        }
        self.found_line(image.to_owned() + &option(platform), place);
    }

    /// A line of a list.
    fn found_line(&mut self, line: String, place: String) {
        if let Err((_, why)) = parse_line(&line) {
            return self.unread(format!("{place}: {}: {why}", clip(&line)));
        }
        if self.has_room(self.found.len(), line.len() + place.len()) {
            self.found.push(Found { image: line, place });
        }
    }

    /// A text that may be an image, if its shape says so.
    fn may_be(&mut self, image: &str, fits: fn(&Shape) -> bool, place: impl FnOnce() -> String) {
        let image = image.trim();
        if image.len() > LONGEST_IMAGE || !shape(image).is_some_and(|shape| fits(&shape)) {
            return;
        }
        let place = place();
        if self.has_room(self.possible.len(), image.len() + place.len()) {
            self.possible.push(Found {
                image: image.to_owned(),
                place,
            });
        }
    }

    fn pass_over(&mut self, word: String) {
        if self.has_room(self.passed_over.len(), word.len()) {
            self.passed_over.push(word);
        }
    }

    fn unread(&mut self, word: String) {
        if self.has_room(self.unread.len(), word.len()) {
            self.unread.push(word);
        }
    }

    fn has_room(&mut self, len: usize, bytes: usize) -> bool {
        self.kept += bytes;
        self.too_many |= len >= MOST_IMAGES || self.kept > MOST_KEPT;
        !self.too_many
    }

    /// Drops possible images that are found elsewhere, or were listed before.
    fn without_repeats(mut self) -> Images {
        let mut seen: std::collections::HashSet<String> = self.found.iter().map(|found| found.image.clone()).collect();
        self.possible.retain(|found| seen.insert(found.image.clone()));
        self
    }
}

/// Errors: why a text in an image's place is none, or cannot be known.
fn check(image: &str) -> Result<(), String> {
    if image.len() > LONGEST_IMAGE {
        return Err(format!("longer than {LONGEST_IMAGE} bytes"));
    }
    if image.contains("{{") {
        return Err(format!("a template: {RENDER}"));
    }
    // Variables of Kubernetes, OpenShift, envsubst and Flux, and Zarf's.
    if image.contains('$') || image.contains("###") {
        return Err("a variable, whose value is not in this file".to_owned());
    }
    // A list's line has options behind a blank, patterns and comments: a file's text has none of these.
    match image.contains(|c: char| c.is_whitespace() || c.is_control() || "\"'#*?=,<>".contains(c)) || image.is_empty()
    {
        true => Err("not the name of an image".to_owned()),
        false => Ok(()),
    }
}

/// A text of a file as it may stand in a message.
fn clip(text: &str) -> String {
    let mut shown: String = text.chars().take(100).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}

/// A platform, as an option of a list's line; nothing for one that only the builder knows.
fn option(platform: Option<&str>) -> String {
    let named = platform.filter(|platform| !platform.is_empty() && !platform.contains(['$', ' ', '"', '{']));
    named
        .map(|platform| format!(" platform={platform}"))
        .unwrap_or_default()
}

/// The images of a file. `kind`: what it is, where its name and content do not tell.
///
/// Errors: what is wrong with it, and on which line.
pub fn images(text: &str, kind: Option<Kind>, path: &Path, folder: Option<&Path>) -> Result<Images, String> {
    let mut images = Images::default();
    let is_dockerfile = match kind.or_else(|| by_name(path)) {
        Some(kind) => kind == Kind::Dockerfile,
        None => dockerfile::is_one(text),
    };
    if is_dockerfile {
        dockerfile::find(text, &mut images);
    } else {
        let documents = yaml::parse(text)?;
        let variables = Variables::beside(folder);
        let stream = documents::Stream {
            kind,
            is_kustomization: is_kustomization(path),
            variables: &|name| variables.get(name),
        };
        documents::find(&documents, &stream, &mut images)?;
    }
    match images.too_many {
        true => Err(format!(
            "it names more than {MOST_IMAGES} images, or more than {} MiB of them",
            MOST_KEPT >> 20
        )),
        false => Ok(images.without_repeats()),
    }
}

fn file_name(path: &Path) -> Option<String> {
    Some(path.file_name()?.to_str()?.to_ascii_lowercase())
}

fn by_name(path: &Path) -> Option<Kind> {
    let name = file_name(path)?;
    let is_dockerfile =
        name.starts_with("dockerfile") || name.starts_with("containerfile") || name.ends_with(".dockerfile");
    is_dockerfile.then_some(Kind::Dockerfile)
}

/// Kustomize needs no kind in its own file.
fn is_kustomization(path: &Path) -> bool {
    let names = ["kustomization.yaml", "kustomization.yml", "kustomization"];
    file_name(path).is_some_and(|name| names.contains(&name.as_str()))
}

/// The environment, and behind it the `.env` beside a compose file.
struct Variables(HashMap<String, String>);

impl Variables {
    fn beside(folder: Option<&Path>) -> Variables {
        let folder = folder
            .filter(|folder| !folder.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        let text = std::fs::read_to_string(folder.join(".env")).unwrap_or_default();
        Variables(variables::env_file(&text))
    }

    fn get(&self, name: &str) -> Option<String> {
        std::env::var(name).ok().or_else(|| self.0.get(name).cloned())
    }
}
