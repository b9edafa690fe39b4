//! Reads the files of tools that mirror or deploy images: Hauler, oc-mirror, Zarf, Flux, Kustomize, Argo CD, Helm's controllers.
//!
//! Images that such a document names are found. Images that stand elsewhere (in a chart, a catalog, other files) are named as
//! unread, with what to give in their place.

use std::rc::Rc;

use super::kubernetes::Walk;
use super::yaml::{Node, Steps};
use super::{RENDER, clip};
use crate::config::wanted::shape;

const FILES: &str = "what it deploys stands in other files: give what `kustomize build` prints";

/// Reads a document of one of these tools. `false`: it is of none of them, and nothing was read.
pub fn read(walk: &mut Walk<'_>, document: &Node) -> bool {
    let (group, kind) = (walk.group.clone(), walk.kind.clone());
    match (group.as_str(), kind.as_str()) {
        (group, _) if group.ends_with("hauler.cattle.io") => hauler(walk, document),
        ("mirror.openshift.io", "ImageSetConfiguration") => oc_mirror(walk, document),
        ("mirror.openshift.io", _) => walk.unread(document.line, "not a list of what to mirror"),
        (_, "ZarfPackageConfig" | "ZarfInitConfig") => zarf(walk, document),
        ("kustomize.config.k8s.io", _) => kustomization(walk, document),
        ("kustomize.toolkit.fluxcd.io", "Kustomization") => {
            if let Some(spec) = document.get("spec", &mut walk.steps) {
                kustomize_images(walk, spec);
            }
            walk.resource(document);
            walk.unread(document.line, FILES);
        }
        ("helm.toolkit.fluxcd.io", "HelmRelease")
        | ("source.toolkit.fluxcd.io", "HelmChart")
        | ("helm.cattle.io", "HelmChart" | "HelmChartConfig") => helm(walk, document),
        ("source.toolkit.fluxcd.io", "OCIRepository") => oci_repository(walk, document),
        ("image.toolkit.fluxcd.io", "ImageRepository") => image_repository(walk, document),
        ("argoproj.io", "Application" | "ApplicationSet") => argo_cd(walk, document),
        _ => return false,
    }
    true
}

fn dig<'n>(node: &'n Node, path: &[&str], steps: &mut Steps) -> Option<&'n Rc<Node>> {
    let (first, rest) = path.split_first()?;
    let mut at = node.get(first, steps)?;
    for key in rest {
        at = at.get(key, steps)?;
    }
    Some(at)
}

fn items<'n>(node: &'n Node, path: &[&str], steps: &mut Steps) -> &'n [Rc<Node>] {
    dig(node, path, steps).map_or(&[], |list| list.list())
}

/// Returns true if a value stands there and is not empty.
fn is_given(node: &Node, key: &str, steps: &mut Steps) -> bool {
    node.get(key, steps)
        .is_some_and(|value| value.text().is_some() || !value.list().is_empty() || !value.map().is_empty())
}

/// Returns true if a version names one release, and not a range of them.
fn is_exact(version: &str) -> bool {
    let parts: Vec<&str> = version.split('.').collect();
    let is_x = |part: &&str| matches!(*part, "x" | "X" | "*");
    version
        .trim_start_matches('v')
        .starts_with(|c: char| c.is_ascii_digit())
        && !version.contains([' ', '|', '<', '>', '=', '~', '^', ','])
        && parts.len() >= 3
        && !parts.iter().any(is_x)
}

/// A chart, which registries have too. `full`: the URL has the chart's name in it already.
fn chart(walk: &mut Walk<'_>, line: usize, (url, name, version): (&str, &str, Option<&str>), full: bool) {
    let shown = clip(if name.is_empty() { url } else { name });
    let Some(at) = url.strip_prefix("oci://") else {
        let why = format!("the chart {shown} is not in a registry: Larder fetches it from nowhere else");
        return walk.unread(line, &why);
    };
    let at = at.trim_end_matches('/');
    let at = match full || name.is_empty() {
        true => at.to_owned(),
        false => format!("{at}/{name}"),
    };
    match version.filter(|version| is_exact(version)) {
        // Tags have no plus sign; Helm writes another one in its place.
        Some(version) => {
            let place = walk.place(line, "chart");
            walk.images.add(&format!("{at}:{}", version.replace('+', "_")), place);
        }
        None => {
            let why = format!(
                "the chart {} is named without one version: name the one that is deployed",
                clip(&at)
            );
            walk.unread(line, &why);
        }
    }
}

fn hauler(walk: &mut Walk<'_>, document: &Node) {
    let kind = walk.kind.clone();
    let annotation = |key: &str, steps: &mut Steps| {
        let annotations = dig(document, &["metadata", "annotations"], steps)?;
        annotations.text_at(key, steps).map(str::to_owned)
    };
    let registry = annotation("hauler.dev/registry", &mut walk.steps);
    let for_all = annotation("hauler.dev/platform", &mut walk.steps);
    match kind.as_str() {
        "Images" => {
            let list = items(document, &["spec", "images"], &mut walk.steps);
            for item in list {
                let name = item.text_at("name", &mut walk.steps);
                let platform = item.text_at("platform", &mut walk.steps).or(for_all.as_deref());
                image_of(walk, item, name, registry.as_deref(), platform);
            }
        }
        "Charts" | "ThickCharts" => {
            for item in items(document, &["spec", "charts"], &mut walk.steps) {
                let text = |key: &str, steps: &mut Steps| item.text_at(key, steps).unwrap_or_default();
                let url = text("repoURL", &mut walk.steps);
                let name = text("name", &mut walk.steps);
                let version = item.text_at("version", &mut walk.steps);
                chart(walk, item.line, (url, name, version), false);
                let adds_images = item.text_at("addImages", &mut walk.steps) == Some("true");
                if kind == "ThickCharts" || adds_images {
                    let why = format!("the images of the chart {} are not in this file: {RENDER}", clip(name));
                    walk.unread(item.line, &why);
                }
                for extra in items(item, &["extraImages"], &mut walk.steps) {
                    let name = extra.text_at("ref", &mut walk.steps);
                    image_of(walk, extra, name, registry.as_deref(), for_all.as_deref());
                }
            }
        }
        "Files" => walk.unread(
            document.line,
            "files that are in no registry: Larder fetches from registries only",
        ),
        _ => walk.unread(
            document.line,
            "what it names stands elsewhere: give a list of its images",
        ),
    }
    let is_list = matches!(kind.as_str(), "Images" | "Charts" | "ThickCharts");
    let key = if kind == "Images" { "images" } else { "charts" };
    if is_list && dig(document, &["spec", key], &mut walk.steps).is_none_or(|list| list.list().is_empty()) {
        walk.unread(document.line, &format!("expected a list in spec.{key}"));
    }
}

/// An entry of a list of images. `registry`: where images without one are.
fn image_of(walk: &mut Walk<'_>, item: &Node, name: Option<&str>, registry: Option<&str>, platform: Option<&str>) {
    let Some(name) = name else {
        return walk.unread(item.line, "an entry that names no image");
    };
    let place = walk.place(item.line, "images[]");
    let is_bare = shape(name).is_some_and(|shape| !shape.has_registry);
    match registry.filter(|_| is_bare) {
        Some(registry) => walk
            .images
            .add_for(&format!("{}/{name}", registry.trim_end_matches('/')), platform, place),
        None => walk.images.add_for(name, platform, place),
    }
}

fn oc_mirror(walk: &mut Walk<'_>, document: &Node) {
    let Some(mirror) = document.get("mirror", &mut walk.steps) else {
        return walk.unread(document.line, "expected a section called mirror");
    };
    for (key, value) in mirror.map() {
        if !walk.steps.go(0) {
            return;
        }
        match key.text().unwrap_or_default() {
            "additionalImages" => {
                for item in value.list() {
                    let name = item.text_at("name", &mut walk.steps);
                    image_of(walk, item, name, None, None);
                }
            }
            "operators" => {
                for item in value.list() {
                    let Some(catalog) = item.text_at("catalog", &mut walk.steps) else {
                        walk.unread(item.line, "operators without a catalog");
                        continue;
                    };
                    if catalog.starts_with("oci:///") {
                        walk.unread(item.line, &format!("the catalog {} is on a disk", clip(catalog)));
                        continue;
                    }
                    let place = walk.place(item.line, "operators[].catalog");
                    walk.images.add(catalog, place);
                    let why = format!("the images of operators stand inside of the catalog {}", clip(catalog));
                    walk.unread(item.line, &why);
                }
            }
            "platform" => {
                if let Some(release) = value.text_at("release", &mut walk.steps) {
                    let place = walk.place(value.line, "platform.release");
                    walk.images.add(release, place);
                }
                let why = "the images of platform releases stand inside of these: `oc adm release info --pullspecs` lists them";
                walk.unread(value.line, why);
            }
            "helm" => {
                let why = format!("the images of its charts are not in this file: {RENDER}");
                walk.unread(value.line, &why);
            }
            // Not to be mirrored.
            "blockedImages" => {}
            other => walk.unread(key.line, &format!("mirror.{} is not known here", clip(other))),
        }
    }
}

/// A package names all images that its charts and manifests need: without a network, what it does not name is not there.
fn zarf(walk: &mut Walk<'_>, document: &Node) {
    let components = items(document, &["components"], &mut walk.steps);
    if components.is_empty() {
        walk.unread(document.line, "expected a list of components");
    }
    for component in components {
        let name = clip(component.text_at("name", &mut walk.steps).unwrap_or("?"));
        for (key, value) in component.map() {
            if !walk.steps.go(0) {
                return;
            }
            match key.text().unwrap_or_default() {
                "images" => {
                    for image in value.list() {
                        let place = walk.place(image.line, &format!("components[{name}].images"));
                        match image.text() {
                            Some(image) => walk.images.add(image, place),
                            None => walk.unread(image.line, "an entry that names no image"),
                        }
                    }
                }
                "charts" => {
                    for item in value.list() {
                        // Beside others, which Zarf carries itself.
                        if let Some(url) = item
                            .text_at("url", &mut walk.steps)
                            .filter(|url| url.starts_with("oci://"))
                        {
                            let version = item.text_at("version", &mut walk.steps);
                            chart(walk, item.line, (url, "", version), true);
                        }
                    }
                }
                "import" => walk.unread(value.line, &format!("the component {name} is imported from elsewhere")),
                "imageArchives" => walk.unread(value.line, &format!("the component {name} has images in archives")),
                "extensions" => walk.unread(
                    value.line,
                    &format!("the component {name} has extensions, with images of their own"),
                ),
                _ => {}
            }
        }
    }
}

/// Returns true if a document without a kind is Kustomize's: its lists name files and folders, or it sets images.
pub fn is_kustomization(document: &Node, steps: &mut Steps) -> bool {
    let names_files = |key: &&str, steps: &mut Steps| {
        let list = items(document, &[*key], steps);
        !list.is_empty() && list.iter().all(|item| item.text().is_some())
    };
    let sets = |image: &Rc<Node>, steps: &mut Steps| {
        let keys = ["newName", "newTag", "digest"];
        keys.iter().any(|key| image.get(key, steps).is_some())
    };
    let files = ["resources", "bases", "components"];
    files.iter().any(|key| names_files(key, steps))
        || is_given(document, "helmCharts", steps)
        || items(document, &["images"], steps)
            .iter()
            .any(|image| sets(image, steps))
}

/// `kustomization.yaml`: the images that it sets. Those that its resources name stand in other files.
pub fn kustomization(walk: &mut Walk<'_>, document: &Node) {
    kustomize_images(walk, document);
    walk.resource(document);
    let elsewhere = [
        "resources",
        "bases",
        "components",
        "helmCharts",
        "helmChartInflationGenerator",
        "generators",
    ];
    if elsewhere.iter().any(|key| is_given(document, key, &mut walk.steps)) {
        walk.unread(document.line, FILES);
    }
}

/// `images: [{name, newName, newTag, digest}]`
fn kustomize_images(walk: &mut Walk<'_>, node: &Node) {
    for item in items(node, &["images"], &mut walk.steps) {
        if !walk.steps.go(0) {
            return;
        }
        let steps = &mut walk.steps;
        let [name, new_name, new_tag, digest] =
            ["name", "newName", "newTag", "digest"].map(|key| item.text_at(key, steps).filter(|text| !text.is_empty()));
        let Some(image) = new_name.or(name) else {
            walk.unread(item.line, "an entry of images without a name");
            continue;
        };
        let place = walk.place(item.line, "images[]");
        match (digest, new_tag) {
            (Some(digest), _) => walk.images.add(&format!("{image}@{digest}"), place),
            (None, Some(tag)) => walk.images.add(&format!("{image}:{tag}"), place),
            (None, None) => walk.unread(
                item.line,
                &format!("which tag of {} is used stands in its resources", clip(image)),
            ),
        }
    }
}

/// A release that a controller renders: its chart, and the values for it.
fn helm(walk: &mut Walk<'_>, document: &Node) {
    if let Some(spec) = document.get("spec", &mut walk.steps) {
        let steps = &mut walk.steps;
        let (name, version) = (spec.text_at("chart", steps), spec.text_at("version", steps));
        let repository = spec.text_at("repo", steps);
        let url = [repository, name]
            .into_iter()
            .flatten()
            .find(|text| text.starts_with("oci://"));
        if let (Some(url), true) = (url, version.is_some_and(is_exact)) {
            let beside = if Some(url) == name {
                ""
            } else {
                name.unwrap_or_default()
            };
            chart(walk, spec.line, (url, beside, version), false);
        }
        for renderer in items(spec, &["postRenderers"], &mut walk.steps) {
            if let Some(kustomize) = renderer.get("kustomize", &mut walk.steps) {
                kustomize_images(walk, kustomize);
            }
        }
    }
    walk.resource(document);
    let why = format!("the images of its chart are not in this file: {RENDER}");
    walk.unread(document.line, &why);
}

fn oci_repository(walk: &mut Walk<'_>, document: &Node) {
    let Some(spec) = document.get("spec", &mut walk.steps) else {
        return walk.unread(document.line, "expected a spec with a url");
    };
    let url = spec.text_at("url", &mut walk.steps).unwrap_or_default();
    let Some(name) = url.strip_prefix("oci://") else {
        return walk.unread(spec.line, &format!("found the url {:?}, expected oci://…", clip(url)));
    };
    let steps = &mut walk.steps;
    let reference = spec.get("ref", steps);
    let [digest, range, tag] = ["digest", "semver", "tag"].map(|key| {
        reference
            .and_then(|reference| reference.text_at(key, steps))
            .filter(|text| !text.is_empty())
    });
    let place = walk.place(spec.line, "spec.url");
    match (digest, range, tag) {
        (Some(digest), _, _) => walk.images.add(&format!("{name}@{digest}"), place),
        // The name must not bring options of its own.
        (None, Some(range), _) if shape(name).is_some_and(|shape| !shape.has_tag && !shape.has_digest) => {
            let line = format!("{name} semver=\"{}\" newest=1", range.replace('"', ""));
            walk.images.found_line(line, place);
        }
        (None, Some(_), _) => walk.unread(spec.line, &format!("{} is not the name of an image", clip(name))),
        (None, None, tag) => walk.images.add(&format!("{name}:{}", tag.unwrap_or("latest")), place),
    }
}

/// Watched for new tags; which of them runs stands in other resources.
fn image_repository(walk: &mut Walk<'_>, document: &Node) {
    let image = dig(document, &["spec", "image"], &mut walk.steps).and_then(|image| image.text());
    let image = clip(image.unwrap_or("?"));
    let why = format!(
        "it names {image} without a tag: name those that are needed, as in `larder prefetch '{image}:*' --newest 1`"
    );
    walk.unread(document.line, &why);
}

fn argo_cd(walk: &mut Walk<'_>, document: &Node) {
    let specs = [&["spec"][..], &["spec", "template", "spec"][..]];
    for path in specs {
        let one = dig(document, &[path, &["source"]].concat(), &mut walk.steps);
        let several = items(document, &[path, &["sources"]].concat(), &mut walk.steps);
        for source in one.into_iter().chain(several) {
            argo_source(walk, source);
        }
    }
    walk.resource(document);
    let why = "what it deploys stands elsewhere: give what `argocd app manifests` prints";
    walk.unread(document.line, why);
}

/// `kustomize.images: [name=image:tag]`, and a chart of a registry, which has no scheme here.
fn argo_source(walk: &mut Walk<'_>, source: &Node) {
    for item in items(source, &["kustomize", "images"], &mut walk.steps) {
        let text = item.text().unwrap_or_default();
        let image = text.rsplit_once('=').map_or(text, |(_, image)| image);
        match shape(image).is_none_or(|shape| shape.has_tag || shape.has_digest) {
            true => {
                let place = walk.place(item.line, "kustomize.images");
                walk.images.add(image, place);
            }
            false => walk.unread(
                item.line,
                &format!("which tag of {} is used stands elsewhere", clip(image)),
            ),
        }
    }
    let steps = &mut walk.steps;
    let [name, url, version] = ["chart", "repoURL", "targetRevision"].map(|key| source.text_at(key, steps));
    if let (Some(name), Some(url), Some(version)) = (name, url, version)
        && !url.contains("://")
        && is_exact(version)
    {
        let url = format!("oci://{url}");
        chart(walk, source.line, (&url, name, Some(version)), false);
    }
}
