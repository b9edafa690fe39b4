//! A manifest or index, read only as far as Larder needs it: its type and what it points at.
//!
//! Unknown and missing fields are tolerated (R-S29); what two clients could read as two different
//! documents is refused (CVE-2021-41190, R-X10). Bytes are never re-encoded: this reads, the store keeps
//! the original (L9).

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::digest::Digest;
use super::media_type;
use super::platform::Platform;
use crate::text::excerpt;

/// Largest manifest taken from an upstream, in bytes (R-S9).
pub const MAX_MANIFEST_BYTES: usize = 4 * 1024 * 1024;
const MAX_DEPTH: usize = 64;

/// What a manifest points at: digest and size in bytes, as the manifest claims them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    pub digest: Digest,
    pub size: Option<u64>,
    pub media_type: Option<String>,
    pub is_manifest: bool,
    /// Of a manifest in an index. `None` where none is named, or an unknown one.
    pub platform: Option<Platform>,
    /// Of an attestation in an index: the manifest that it speaks of (`vnd.docker.reference.digest`).
    pub describes: Option<Digest>,
}

/// The part of a manifest that Larder reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    pub media_type: String,
    /// Children: manifests of an index; config, layers and blobs of a manifest. In document order.
    pub descriptors: Vec<Descriptor>,
    pub subject: Option<Digest>,
}

/// Why a document is not passed on as a manifest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    #[error("it is not a JSON object: {0}")]
    NotJson(String),
    #[error("its Content-Type is {header} but its mediaType field says {field}")]
    Contradiction { header: String, field: String },
    #[error("it has both `manifests` and `layers`, so that clients could read it as two different things")]
    Ambiguous,
    #[error("the key {0:?} occurs twice")]
    DuplicateKey(String),
    #[error("it is nested deeper than 64 levels")]
    TooDeep,
    #[error("it came without a Content-Type, and no mediaType field says what it is")]
    NoType,
    #[error("it is Docker schema 1, which no current client accepts")]
    Schema1,
    #[error("it has {found} descriptors, more than the {limit} that limits.manifest_descriptors allows")]
    TooManyDescriptors { found: usize, limit: usize },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    media_type: Option<String>,
    schema_version: Option<serde_json::Value>,
    manifests: Option<Vec<RawDescriptor>>,
    layers: Option<Vec<RawDescriptor>>,
    blobs: Option<Vec<RawDescriptor>>,
    config: Option<RawDescriptor>,
    subject: Option<RawDescriptor>,
    fs_layers: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    digest: Option<String>,
    size: Option<u64>,
    media_type: Option<String>,
    // What is odd about these is no reason to refuse a manifest that clients take.
    platform: Option<serde_json::Value>,
    annotations: Option<serde_json::Value>,
}

impl RawDescriptor {
    fn platform(&self) -> Option<Platform> {
        let platform = self.platform.as_ref()?;
        let text = |key: &str| platform.get(key).and_then(serde_json::Value::as_str);
        Platform::new(text("os")?, text("architecture")?, text("variant"))
    }

    fn describes(&self) -> Option<Digest> {
        let annotations = self.annotations.as_ref()?;
        let text = annotations.get("vnd.docker.reference.digest")?.as_str()?;
        text.parse().ok()
    }
}

impl Manifest {
    /// Reads `bytes`, whose digest has been verified already. `content_type` is the upstream's header.
    ///
    /// The media type is the header's if it is a manifest type, else the `mediaType` field's, else what
    /// the shape of the document says (R-C5).
    pub fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Manifest, ManifestError> {
        Manifest::parse_within(bytes, content_type, usize::MAX)
    }

    /// [`Manifest::parse`] for a manifest that comes from elsewhere: one with more than `most` descriptors is
    /// refused, because what a manifest names is kept in memory.
    pub fn parse_within(bytes: &[u8], content_type: Option<&str>, most: usize) -> Result<Manifest, ManifestError> {
        check_json(bytes)?;
        let raw: Raw = serde_json::from_slice(bytes).map_err(|e| ManifestError::NotJson(excerpt(&e)))?;
        if raw.manifests.is_some() && (raw.layers.is_some() || raw.config.is_some()) {
            return Err(ManifestError::Ambiguous);
        }
        let media_type = settle_type(&raw, content_type)?;
        let lists = [&raw.manifests, &raw.layers, &raw.blobs];
        let listed: usize = lists.iter().filter_map(|list| Some(list.as_ref()?.len())).sum();
        let found = listed + usize::from(raw.config.is_some());
        if found > most {
            return Err(ManifestError::TooManyDescriptors { found, limit: most });
        }
        let mut descriptors = Vec::new();
        let mut take = |list: Option<Vec<RawDescriptor>>, is_manifest: bool| {
            for item in list.into_iter().flatten() {
                // A digest we cannot parse is one that nobody can ask us for.
                let Some(Ok(digest)) = item.digest.as_deref().map(str::parse) else {
                    continue;
                };
                descriptors.push(Descriptor {
                    digest,
                    size: item.size,
                    platform: item.platform(),
                    describes: item.describes(),
                    media_type: item.media_type,
                    is_manifest,
                });
            }
        };
        take(raw.manifests, true);
        take(raw.config.map(|c| vec![c]), false);
        take(raw.layers, false);
        take(raw.blobs, false);
        let subject = raw.subject.and_then(|s| s.digest).and_then(|d| d.parse().ok());
        Ok(Manifest {
            media_type,
            descriptors,
            subject,
        })
    }
}

fn settle_type(raw: &Raw, content_type: Option<&str>) -> Result<String, ManifestError> {
    let field = raw.media_type.as_deref().and_then(media_type::essence);
    let header = content_type
        .and_then(media_type::essence)
        .filter(|h| !media_type::says_nothing(h));
    let settled = match (header, field) {
        (Some(header), Some(field)) if header != field => {
            return Err(ManifestError::Contradiction { header, field });
        }
        (Some(known), _) | (None, Some(known)) => known,
        (None, None) if raw.manifests.is_some() => media_type::OCI_INDEX.to_owned(),
        (None, None) if raw.layers.is_some() && raw.config.is_some() => media_type::OCI_MANIFEST.to_owned(),
        (None, None) => return Err(ManifestError::NoType),
    };
    let version_1 = raw.schema_version.as_ref().and_then(serde_json::Value::as_u64) == Some(1);
    let schema1 = matches!(
        settled.as_str(),
        media_type::DOCKER_SCHEMA1 | media_type::DOCKER_SCHEMA1_SIGNED
    );
    if schema1 || (version_1 && raw.fs_layers.is_some()) {
        return Err(ManifestError::Schema1);
    }
    Ok(settled)
}

/// One pass over the JSON for what serde forgives: a key twice in one object, and depth (R-X10).
fn check_json(bytes: &[u8]) -> Result<(), ManifestError> {
    let mut depth = 0usize;
    let mut deepest = 0usize;
    let mut in_string = false;
    let mut escaped = false;
    for byte in bytes {
        match (in_string, *byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (true, b'"') => in_string = false,
            (true, _) => {}
            (false, b'"') => in_string = true,
            (false, b'{' | b'[') => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            (false, b'}' | b']') => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    if deepest > MAX_DEPTH {
        return Err(ManifestError::TooDeep);
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let outcome = json.deserialize_any(Unique { top: true }).and_then(|()| json.end());
    outcome.map_err(|error| {
        let text = error.to_string();
        match text.strip_prefix(DUPLICATE) {
            Some(rest) => ManifestError::DuplicateKey(excerpt(rest.split('\u{1}').next().unwrap_or(""))),
            None => ManifestError::NotJson(excerpt(&text)),
        }
    })
}

const DUPLICATE: &str = "duplicate key\u{1}";

/// Visits everything, keeps nothing, fails on a key that one object has twice.
struct Unique {
    top: bool,
}

impl<'de> serde::de::DeserializeSeed<'de> for Unique {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Unique {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.top { "a JSON object" } else { "a JSON value" })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = std::collections::HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            if !seen.insert(key.clone()) {
                return Err(serde::de::Error::custom(format!("{DUPLICATE}{key}\u{1}")));
            }
            map.next_value_seed(Unique { top: false })?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        if self.top {
            return Err(serde::de::Error::invalid_type(serde::de::Unexpected::Seq, &self));
        }
        while seq.next_element_seed(Unique { top: false })?.is_some() {}
        Ok(())
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<(), E> {
        self.scalar(serde::de::Unexpected::Bool(value))
    }
    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<(), E> {
        self.scalar(serde::de::Unexpected::Signed(value))
    }
    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<(), E> {
        self.scalar(serde::de::Unexpected::Unsigned(value))
    }
    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        self.scalar(serde::de::Unexpected::Float(value))
    }
    fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<(), E> {
        self.scalar(serde::de::Unexpected::Other("string"))
    }
    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        self.scalar(serde::de::Unexpected::Unit)
    }
}

impl Unique {
    fn scalar<E: serde::de::Error>(self, found: serde::de::Unexpected<'_>) -> Result<(), E> {
        if self.top {
            Err(E::invalid_type(found, &self))
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn an_image_manifest() {
        let text = format!(
            r#"{{"schemaVersion":2,"mediaType":"{}","config":{{"digest":"{D}","size":0}},"layers":[{{"digest":"{D}","size":7,"mediaType":"x/y"}}],"x":[1]}}"#,
            media_type::OCI_MANIFEST
        );
        let manifest = Manifest::parse(text.as_bytes(), Some(media_type::OCI_MANIFEST)).unwrap();
        assert_eq!(manifest.media_type, media_type::OCI_MANIFEST);
        assert_eq!(manifest.descriptors.len(), 2);
        assert_eq!(manifest.descriptors[1].size, Some(7));
    }

    /// R-C5: the field, then the shape, where the header is missing or says nothing.
    #[test]
    fn the_type_is_settled() {
        let index = br#"{"schemaVersion":2,"manifests":[]}"#;
        assert_eq!(Manifest::parse(index, None).unwrap().media_type, media_type::OCI_INDEX);
        assert_eq!(
            Manifest::parse(index, Some("application/json")).unwrap().media_type,
            media_type::OCI_INDEX
        );
        assert_eq!(
            Manifest::parse(
                index,
                Some("application/vnd.docker.distribution.manifest.list.v2+json; charset=utf-8")
            )
            .unwrap()
            .media_type,
            media_type::DOCKER_LIST
        );
        assert_eq!(
            Manifest::parse(br#"{"schemaVersion":2}"#, None),
            Err(ManifestError::NoType)
        );
    }

    /// R-X10.
    #[test]
    fn refuses_the_ambiguous() {
        let both = br#"{"manifests":[],"layers":[]}"#;
        assert_eq!(
            Manifest::parse(both, Some(media_type::OCI_INDEX)),
            Err(ManifestError::Ambiguous)
        );
        let lie = format!(r#"{{"mediaType":"{}"}}"#, media_type::OCI_INDEX);
        assert!(matches!(
            Manifest::parse(lie.as_bytes(), Some(media_type::OCI_MANIFEST)),
            Err(ManifestError::Contradiction { .. })
        ));
        assert_eq!(
            Manifest::parse(br#"{"layers":[{"a":1,"a":2}]}"#, Some(media_type::OCI_MANIFEST)),
            Err(ManifestError::DuplicateKey("a".to_owned()))
        );
        // An error repeats no more than an excerpt.
        let long = "x".repeat(4 << 20);
        for document in [
            format!(r#"{{"layers":[{{"{long}":1,"{long}":2}}]}}"#),
            format!(r#"{{"layers":"{long}"}}"#),
        ] {
            let error = Manifest::parse(document.as_bytes(), Some(media_type::OCI_MANIFEST)).unwrap_err();
            assert!(error.to_string().len() < 1000, "{}", error.to_string().len());
        }
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(70), "]".repeat(70));
        assert_eq!(
            Manifest::parse(deep.as_bytes(), Some(media_type::OCI_INDEX)),
            Err(ManifestError::TooDeep)
        );
        for not in [&b"<html>"[..], b"[]", b"3", b"", b"{} x", b"\"a\""] {
            assert!(
                matches!(
                    Manifest::parse(not, Some(media_type::OCI_INDEX)),
                    Err(ManifestError::NotJson(_))
                ),
                "{not:?}"
            );
        }
        assert_eq!(
            Manifest::parse(
                br#"{"schemaVersion":1,"fsLayers":[]}"#,
                Some(media_type::DOCKER_SCHEMA1_SIGNED)
            ),
            Err(ManifestError::Schema1)
        );
    }

    /// Every descriptor counts, also one that nobody can ask for.
    #[test]
    fn refuses_more_descriptors_than_allowed() {
        let layers = [format!(r#"{{"digest":"{D}"}}"#), "{}".to_owned()].join(",");
        let text = format!(r#"{{"config":{{"digest":"{D}"}},"layers":[{layers}],"subject":{{"digest":"{D}"}}}}"#);
        let within = |most| Manifest::parse_within(text.as_bytes(), None, most);
        assert_eq!(within(3).unwrap().descriptors.len(), 2);
        let error = within(2).unwrap_err();
        assert_eq!(error, ManifestError::TooManyDescriptors { found: 3, limit: 2 });
        assert_eq!(
            error.to_string(),
            "it has 3 descriptors, more than the 2 that limits.manifest_descriptors allows"
        );
        let index = br#"{"manifests":[{},{}]}"#;
        let error = Manifest::parse_within(index, None, 1).unwrap_err();
        assert_eq!(error, ManifestError::TooManyDescriptors { found: 2, limit: 1 });
    }

    proptest! {
        #[test]
        fn parsing_never_panics(bytes: Vec<u8>) {
            let _ = Manifest::parse(&bytes, None);
        }
    }
}
