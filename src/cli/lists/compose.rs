//! Compose files: what `services.*.image` says.

use super::variables::expand;
use super::yaml::{Node, Steps, Value};
use super::{Images, RENDER, clip};

pub fn is_one(document: &Node, steps: &mut Steps) -> bool {
    document
        .get("services", steps)
        .is_some_and(|services| services.is_map())
}

/// Adds the images of one file. What is built there is nobody's to be fetched.
pub fn find(document: &Node, steps: &mut Steps, value: &dyn Fn(&str) -> Option<String>, images: &mut Images) {
    if let Some(include) = document.get("include", steps) {
        images.unread(format!(
            "line {}, include: the files it names have to be given by themselves",
            include.line
        ));
    }
    let Some(services) = document.get("services", steps).cloned() else {
        return;
    };
    for (name, service) in services.map() {
        if !steps.go(0) {
            return;
        }
        let place = format!("line {}, services.{}", name.line, clip(name.text().unwrap_or("?")));
        let extends = service.get("extends", steps).is_some();
        let platform = service.text_at("platform", steps).map(str::to_owned);
        let is_built = service.get("build", steps).is_some();
        let image = service
            .text_at("image", steps)
            .map(str::trim)
            .filter(|image| !image.is_empty());
        let is_text = service
            .get("image", steps)
            .is_none_or(|image| matches!(image.value, Value::Text(_) | Value::Null));
        match (image, is_built) {
            (None, _) if !is_text => images.unread(format!("{place}.image: no text, as in a template: {RENDER}")),
            (Some(image), true) => images.pass_over(format!("{place}: {} is built here", clip(image))),
            (None, true) => images.pass_over(format!("{place} is built here")),
            // It may be that of another service, or of another file.
            (None, false) if extends => {
                images.unread(format!("{place}: its image is that of the service that it extends"));
            }
            (None, false) => images.pass_over(format!("{place} names no image")),
            (Some(image), false) => match expand(image, value) {
                Err(why) => images.unread(format!("{place}: {}: {why}", clip(image))),
                Ok(image) => {
                    let platform = platform.and_then(|platform| expand(&platform, value).ok());
                    images.add_for(&image, platform.as_deref(), place);
                }
            },
        }
    }
}
