//! Compose files: what `services.*.image` says.

use super::variables::expand;
use super::yaml::Node;
use super::{Images, clip, option};

pub fn is_one(document: &Node) -> bool {
    document.get("services").is_some_and(|services| services.is_map())
}

/// Adds the images of one file. What is built there is nobody's to be fetched.
pub fn find(document: &Node, value: &dyn Fn(&str) -> Option<String>, images: &mut Images) {
    if document.get("include").is_some() {
        images.pass_over("include: the files it names have to be given by themselves".to_owned());
    }
    let Some(services) = document.get("services") else {
        return;
    };
    for (name, service) in services.map() {
        let place = format!("line {}, services.{}", name.line, clip(name.text().unwrap_or("?")));
        let image = service.get("image").and_then(|image| image.text());
        match (image, service.get("build").is_some()) {
            (Some(image), true) => images.pass_over(format!("{place}: {} is built here", clip(image))),
            (None, true) => images.pass_over(format!("{place} is built here")),
            (None, false) => images.pass_over(format!("{place} names no image")),
            (Some(image), false) => match expand(image, value) {
                Err(why) => images.pass_over(format!("{place}: {}: {why}", clip(image))),
                Ok(image) => {
                    let platform = service.get("platform").and_then(|platform| platform.text());
                    let platform = platform.and_then(|platform| expand(platform, value).ok());
                    images.add(image.trim().to_owned() + &option(platform.as_deref()), place);
                }
            },
        }
    }
}
