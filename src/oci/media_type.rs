//! The media types that Larder has to know by name. All others pass as they are.

pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker's first schema, refused by every current client; told apart so that it is never asked for (R-S26).
pub const DOCKER_SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1+json";
pub const DOCKER_SCHEMA1_SIGNED: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";
pub const OCTET_STREAM: &str = "application/octet-stream";

/// What every manifest request says upstream, whatever the client said (R-U53, R-U54): so one answer
/// a tag is cached, not one a client.
pub const MANIFEST_ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json, */*;q=0.1";

/// A Content-Type without its parameters, lower-cased; `None` when nothing sensible is left.
pub fn essence(content_type: &str) -> Option<String> {
    let essence = content_type.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    let fits = essence.len() <= 255
        && essence
            .split_once('/')
            .is_some_and(|(a, b)| !a.is_empty() && !b.is_empty())
        && essence
            .bytes()
            .all(|b| b.is_ascii_graphic() && !b"\"\\<>(),;".contains(&b));
    fits.then_some(essence)
}

/// Whether an essence is one that storage and careless servers put on any document (R-C5, R-U51).
pub fn says_nothing(essence: &str) -> bool {
    matches!(
        essence,
        "application/json" | "text/plain" | "application/octet-stream" | "binary/octet-stream" | "text/html"
    )
}

/// Whether an essence is that of a manifest or an index: what clients ask for as one. They know the types of today by name;
/// another one is known by how all of them are called.
pub fn is_manifest(essence: &str) -> bool {
    let is_document = essence.ends_with("+json") || essence == DOCKER_SCHEMA1_SIGNED;
    is_document && (essence.contains("manifest") || essence.contains("index"))
}

/// Types that say "this is not a registry's object": a login page, a captive portal (L2).
pub fn is_web_page(content_type: &str) -> bool {
    matches!(
        essence(content_type).as_deref(),
        Some("text/html" | "application/xhtml+xml")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_go() {
        assert_eq!(
            essence("Application/JSON; charset=utf-8").as_deref(),
            Some("application/json")
        );
        assert_eq!(essence("nonsense"), None);
        assert_eq!(essence("a/b\r\nx: y"), None);
        assert!(is_web_page("text/html; charset=utf-8"));
        assert!(!is_web_page("application/octet-stream"));
    }
}
