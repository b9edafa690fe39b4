//! Images named in files that people have anyway: compose files, Kubernetes manifests, Dockerfiles, lists.
//!
//! Text in, names and places out; nothing is fetched, and nothing else is read but the `.env` beside a compose file.

mod compose;
mod dockerfile;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod kubernetes;
mod variables;
mod yaml;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::Path;

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    Compose,
    /// Also what `helm template` prints
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
    /// What looks like an image where nothing says that it is one.
    pub perhaps: Vec<Found>,
    /// What names no image that could be fetched, in words.
    pub passed_over: Vec<String>,
    /// More than are taken were named.
    too_many: bool,
}

/// Images of one file, and likewise what is passed over: a list has no more either. By aliases, a YAML file of a few lines can name
/// millions.
const MOST_IMAGES: usize = crate::config::wanted::MAX_IMAGES;
/// Bytes of one: more than a line of a list may have. An alias costs a few bytes and may stand for megabytes.
const LONGEST_IMAGE: usize = 2_000;

impl Images {
    fn add(&mut self, image: String, place: String) {
        self.keep(image, place, |images| &mut images.found);
    }

    fn perhaps(&mut self, image: String, place: String) {
        self.keep(image, place, |images| &mut images.perhaps);
    }

    fn keep(&mut self, image: String, place: String, to: fn(&mut Images) -> &mut Vec<Found>) {
        if image.len() > LONGEST_IMAGE {
            return self.pass_over(format!(
                "{place}: {} is longer than {LONGEST_IMAGE} bytes",
                clip(&image)
            ));
        }
        match to(self).len() < MOST_IMAGES {
            true => to(self).push(Found { image, place }),
            false => self.too_many = true,
        }
    }

    fn pass_over(&mut self, word: String) {
        match self.passed_over.len() < MOST_IMAGES {
            true => self.passed_over.push(word),
            false => self.too_many = true,
        }
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
    let named = platform.filter(|platform| !platform.is_empty() && !platform.contains(['$', ' ', '"']));
    named
        .map(|platform| format!(" platform={platform}"))
        .unwrap_or_default()
}

/// The images of a file. `kind`: what it is, where its name and content do not tell.
///
/// Errors: what is wrong with it, and on which line.
pub fn images(text: &str, kind: Option<Kind>, path: &Path, folder: Option<&Path>) -> Result<Images, String> {
    let mut images = Images::default();
    let kind = match kind.or_else(|| by_name(path)) {
        Some(kind) => kind,
        None if dockerfile::is_one(text) => Kind::Dockerfile,
        None => by_content(text)?,
    };
    match kind {
        Kind::Dockerfile => dockerfile::find(text, &mut images),
        Kind::Compose => {
            let variables = Variables::beside(folder);
            for document in yaml::parse(text)? {
                compose::find(&document, &|name| variables.get(name), &mut images);
            }
        }
        Kind::Kubernetes => {
            for document in yaml::parse(text)? {
                kubernetes::find(&document, &mut images);
            }
        }
    }
    match images.too_many {
        true => Err(format!("it names more than {MOST_IMAGES} images")),
        false => Ok(images),
    }
}

fn by_name(path: &Path) -> Option<Kind> {
    let name = path.file_name()?.to_str()?.to_ascii_lowercase();
    let is_dockerfile =
        name.starts_with("dockerfile") || name.starts_with("containerfile") || name.ends_with(".dockerfile");
    is_dockerfile.then_some(Kind::Dockerfile)
}

fn by_content(text: &str) -> Result<Kind, String> {
    let documents = yaml::parse(text)?;
    if documents.iter().any(|document| kubernetes::is_one(document)) {
        return Ok(Kind::Kubernetes);
    }
    if documents.iter().any(|document| compose::is_one(document)) {
        return Ok(Kind::Compose);
    }
    Err("it is no compose file, no Kubernetes manifests and no Dockerfile: say what it is by --kind, or give a list by --file".to_owned())
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
