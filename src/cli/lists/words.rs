//! Images among the words of a command line, a variable or a longer text: possible ones, since nothing says that a word is an
//! image.

use crate::config::wanted::Shape;

/// The shape of a word that is hardly anything else: a repository with a registry's host or a path, and a tag; or a digest.
pub fn is_plain(shape: &Shape) -> bool {
    shape.has_digest || (shape.has_tag && (shape.has_registry || shape.has_path))
}

/// The shape of a word that is an image if what stands before it speaks of one.
pub fn is_likely(shape: &Shape) -> bool {
    shape.has_digest || shape.has_tag || shape.has_registry || shape.has_path
}

/// Returns true if the name of a flag, a variable or a key speaks of an image: `--sidecar-image`, `RELATED_IMAGE_PROXY`,
/// `imageName`.
pub fn speaks_of_images(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    // `imagePullPolicy` and its like are told apart by their values.
    name.contains("image")
}

/// Calls `take` with each word of `text` that may be an image, and whether something before it speaks of one: a flag with
/// `=` or before it, `image:`, or `hint`.
pub fn each(text: &str, hint: bool, mut take: impl FnMut(&str, bool)) {
    let (mut before, mut last) = (hint, "");
    let parts = |c: char| c.is_whitespace() || "\"'`,;()[]{}<>|".contains(c);
    for word in text.split(parts).filter(|word| !word.is_empty()) {
        let (name, value) = match word.rsplit_once('=') {
            Some((name, value)) => (name, value),
            None => ("", word),
        };
        let is_name = value.is_empty() || value.ends_with(':') || value.starts_with('-');
        // A word without any of these has none of an image's shapes: most words of a long text end here.
        if !is_name && value.contains([':', '/', '@']) {
            take(value, before || (!name.is_empty() && speaks_of_images(name)));
        }
        // In JSON the colon stands alone, behind its key's quotes.
        let named = if word == ":" { last } else { word };
        before = hint || (is_name && speaks_of_images(named));
        last = word;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::wanted::shape;

    fn found(text: &str, hint: bool) -> Vec<String> {
        let mut found = Vec::new();
        each(text, hint, |word, hinted| {
            let fits = if hinted { is_likely } else { is_plain };
            if shape(word).is_some_and(|shape| fits(&shape)) {
                found.push(word.to_owned());
            }
        });
        found
    }

    #[test]
    fn words_that_may_be_images() {
        for (text, hint, expected) in [
            ("--sidecar-image=nginx:1.27", false, vec!["nginx:1.27"]),
            ("--sidecar-image nginx:1.27 --v=2", false, vec!["nginx:1.27"]),
            ("nginx:1.27", true, vec!["nginx:1.27"]),
            ("nginx:1.27", false, vec![]),
            ("image: busybox:1 # for tests", false, vec!["busybox:1"]),
            (
                "crane copy ghcr.io/x/y:1 registry.example:5000/y:1",
                false,
                vec!["ghcr.io/x/y:1", "registry.example:5000/y:1"],
            ),
            (
                "--images=ghcr.io/a/b:1,ghcr.io/a/c:2",
                false,
                vec!["ghcr.io/a/b:1", "ghcr.io/a/c:2"],
            ),
            (
                r#"{"image": "bitnami:7", "port": "redis:6379"}"#,
                false,
                vec!["bitnami:7"],
            ),
            (
                "--sidecar=bitnami/x:1 grafana/promtail:2.9",
                false,
                vec!["bitnami/x:1", "grafana/promtail:2.9"],
            ),
            ("redis:6379 http://x.example/y:1 --listen=0.0.0.0:8080", false, vec![]),
            ("--image-pull-timeout=5m --image-gc=true", false, vec![]),
            ("/etc/app/image:/data", true, vec![]),
            ("true", true, vec![]),
        ] {
            assert_eq!(found(text, hint), expected, "{text}");
        }
    }
}
