//! A manifest or index, read only as far as Larder needs it: its type and what it points at.
//!
//! Unknown, missing and odd fields are tolerated (R-S29): what clients take directly they get here too. Refused is a
//! document that two readers could take to *name* two different things (CVE-2021-41190, R-X10): one with both `manifests`
//! and `layers`, or with one of these keys, `config`, or a descriptor's `digest` twice. Bytes are never re-encoded: this
//! reads, the store keeps the original (L9).
//!
//! Clients are written in Go, whose decoder takes a key in any case for the field of that name: `"Layers"` is `layers`
//! here as well.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::digest::Digest;
use super::media_type;
use super::platform::Platform;
use crate::text::excerpt;

/// Largest manifest that is taken at all, in bytes (R-S9); `limits.manifest_size` sets a lower limit.
pub const MAX_MANIFEST_BYTES: usize = 16 * 1024 * 1024;
const MAX_DEPTH: usize = 64;
/// Longest key that is compared; a longer one is none that is read.
const MAX_KEY_BYTES: usize = 64;

/// What a manifest points at: digest and size in bytes, as the manifest claims them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    pub digest: Digest,
    /// `None` where none is named, or none that a file can have: clients take `-1` and the like for "unknown".
    pub size: Option<u64>,
    pub media_type: Option<String>,
    /// Whether it is asked for as a manifest: what an index lists, unless its media type says that it is a blob. BuildKit's
    /// cache indexes list layers.
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
    /// Set if the document's `mediaType` field names another type, or it has none and its shape is another one's. Clients get the Content-Type, as they would directly;
    /// other repositories' copies of the document are not called so.
    pub is_disputed: bool,
    /// Children: manifests of an index; config, layers and blobs of a manifest. In document order.
    pub descriptors: Vec<Descriptor>,
    pub subject: Option<Digest>,
}

/// Why a document is not passed on as a manifest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    #[error("it is not a JSON object: {0}")]
    NotJson(String),
    #[error("it has both `manifests` and `layers`, so that clients could read it as two different things")]
    Ambiguous,
    #[error("it has {0:?} twice, so that clients could read it as two different things")]
    DuplicateKey(&'static str),
    #[error("it is nested deeper than 64 levels")]
    TooDeep,
    #[error("it came without a Content-Type, and no mediaType field says what it is")]
    NoType,
    #[error("it is Docker schema 1, which no current client accepts")]
    Schema1,
    #[error("it has {found} descriptors, more than the {limit} that limits.manifest_descriptors allows")]
    TooManyDescriptors { found: usize, limit: usize },
    /// Not read at all.
    #[error("it has {found} bytes{}, more than the {limit} that limits.manifest_size allows", or_more(*.is_exact))]
    TooLarge { found: u64, is_exact: bool, limit: u64 },
}

fn or_more(is_exact: bool) -> &'static str {
    match is_exact {
        true => "",
        false => " or more",
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
        check_depth(bytes)?;
        let mut document = Document::new(most);
        let mut json = serde_json::Deserializer::from_slice(bytes);
        let read = Fields(&mut document).deserialize(&mut json).and_then(|()| json.end());
        if let Some(key) = document.doubled {
            return Err(ManifestError::DuplicateKey(key));
        }
        read.map_err(|error| ManifestError::NotJson(excerpt(&error)))?;
        document.settle(content_type)
    }
}

/// A document while it is read.
#[derive(Debug, Default)]
struct Document {
    media_type: Option<String>,
    is_version_1: bool,
    has_fs_layers: bool,
    manifests: Option<Vec<Descriptor>>,
    config: Option<Vec<Descriptor>>,
    layers: Option<Vec<Descriptor>>,
    blobs: Option<Vec<Descriptor>>,
    subject: Option<Digest>,
    /// Top-level keys that came already.
    seen: Vec<&'static str>,
    /// A key that came twice and may not.
    doubled: Option<&'static str>,
    /// Descriptors so far, also those that nobody can ask for; beyond `most` they are only counted.
    found: usize,
    most: usize,
}

impl Document {
    fn new(most: usize) -> Document {
        Document {
            most,
            ..Document::default()
        }
    }

    fn settle(self, content_type: Option<&str>) -> Result<Manifest, ManifestError> {
        if self.manifests.is_some() && (self.layers.is_some() || self.config.is_some()) {
            return Err(ManifestError::Ambiguous);
        }
        let (media_type, is_disputed) = self.media_type(content_type)?;
        if self.found > self.most {
            return Err(ManifestError::TooManyDescriptors {
                found: self.found,
                limit: self.most,
            });
        }
        let lists = [self.manifests, self.config, self.layers, self.blobs];
        Ok(Manifest {
            media_type,
            is_disputed,
            descriptors: lists.into_iter().flatten().flatten().collect(),
            subject: self.subject,
        })
    }

    /// The type, and whether the document itself names another.
    fn media_type(&self, content_type: Option<&str>) -> Result<(String, bool), ManifestError> {
        let field = self.media_type.as_deref().and_then(media_type::essence);
        let header = content_type
            .and_then(media_type::essence)
            .filter(|h| !media_type::says_nothing(h));
        let is_disputed = match (&header, &field) {
            (Some(header), Some(field)) => header != field,
            (Some(header), None) => !self.may_be(header),
            (None, _) => false,
        };
        let settled = match header.or(field) {
            Some(known) => known,
            None if self.manifests.is_some() => media_type::OCI_INDEX.to_owned(),
            None if self.layers.is_some() && self.config.is_some() => media_type::OCI_MANIFEST.to_owned(),
            None => return Err(ManifestError::NoType),
        };
        let schema1 = matches!(
            settled.as_str(),
            media_type::DOCKER_SCHEMA1 | media_type::DOCKER_SCHEMA1_SIGNED
        );
        if schema1 || (self.is_version_1 && self.has_fs_layers) {
            return Err(ManifestError::Schema1);
        }
        Ok((settled, is_disputed))
    }

    /// Returns false for a type of today that a document of this shape cannot have, whoever calls it so.
    fn may_be(&self, media_type: &str) -> bool {
        match media_type {
            media_type::OCI_INDEX | media_type::DOCKER_LIST => self.layers.is_none() && self.config.is_none(),
            media_type::OCI_MANIFEST | media_type::DOCKER_MANIFEST => self.manifests.is_none(),
            // Nobody knows the shape of others; but what is an index or an image is called that.
            _ => self.manifests.is_none() && (self.layers.is_none() || self.config.is_none()),
        }
    }

    /// Notes a key. Errors: it came before, and what the document names would depend on who reads it.
    fn note<E: serde::de::Error>(&mut self, key: &'static str) -> Result<(), E> {
        if self.seen.contains(&key) {
            self.doubled = Some(key);
            return Err(E::custom("a key twice"));
        }
        self.seen.push(key);
        Ok(())
    }
}

/// The keys that are read, as they are written. Each of them once in an object, where that decides what is named.
const TOP: &[&str] = &[
    "mediaType",
    "schemaVersion",
    "manifests",
    "config",
    "layers",
    "blobs",
    "subject",
    "fsLayers",
];
const DESCRIPTOR: &[&str] = &["digest", "size", "mediaType", "platform", "annotations"];
const PLATFORM: &[&str] = &["os", "architecture", "variant"];
const DESCRIBES: &str = "vnd.docker.reference.digest";

/// The key among `known` that Go's decoder takes `key` for: it folds case, by which the long s and the Kelvin sign are
/// letters too.
fn fold(key: &[u8], known: &[&'static str]) -> Option<&'static str> {
    let key = std::str::from_utf8(key).ok().filter(|key| key.len() <= MAX_KEY_BYTES)?;
    let folded = |c: char| match c {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        c => c.to_ascii_lowercase(),
    };
    let is_same = |name: &&&str| key.chars().map(folded).eq(name.chars().map(folded));
    known.iter().find(is_same).copied()
}

/// A key of an object, folded to one that is known. Read as bytes: nobody else's key is a reason to refuse a document.
struct Key(&'static [&'static str]);

impl<'de> DeserializeSeed<'de> for Key {
    type Value = Option<&'static str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_bytes(self)
    }
}

impl Visitor<'_> for Key {
    type Value = Option<&'static str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_bytes<E: serde::de::Error>(self, key: &[u8]) -> Result<Self::Value, E> {
        Ok(fold(key, self.0))
    }

    fn visit_str<E: serde::de::Error>(self, key: &str) -> Result<Self::Value, E> {
        Ok(fold(key.as_bytes(), self.0))
    }
}

/// Visits values of another shape than the one that is read: they are as if they were not there.
macro_rules! odd {
    (scalars) => {
        odd!(numbers);
        fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
            Ok(Default::default())
        }
    };
    (numbers) => {
        fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
            Ok(Default::default())
        }
        fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
            Ok(Default::default())
        }
        odd!(no_size);
    };
    (no_size) => {
        fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
            Ok(Default::default())
        }
        fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
            Ok(Default::default())
        }
        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(Default::default())
        }
    };
    (seq) => {
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            while seq.next_element::<IgnoredAny>()?.is_some() {}
            Ok(Default::default())
        }
    };
    (map) => {
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            Ok(Default::default())
        }
    };
}

/// The document's own fields.
struct Fields<'a>(&'a mut Document);

impl<'de> DeserializeSeed<'de> for Fields<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Fields<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let document = self.0;
        while let Some(key) = map.next_key_seed(Key(TOP))? {
            match key {
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
                // Who reads these twice is no client of today.
                Some("fsLayers") => {
                    map.next_value::<IgnoredAny>()?;
                    document.has_fs_layers = true;
                }
                Some("schemaVersion") => document.is_version_1 = map.next_value_seed(Number)? == Some(1),
                Some(key) => {
                    document.note::<A::Error>(key)?;
                    match key {
                        "mediaType" => document.media_type = map.next_value_seed(Text)?,
                        "subject" => {
                            let named = map.next_value_seed(One(document))?;
                            document.subject = named.and_then(|raw| raw.digest?.parse().ok());
                        }
                        "config" => {
                            let config = map.next_value_seed(One(document))?;
                            document.found += usize::from(config.is_some());
                            document.config = config.map(|raw| raw.descriptor(false).into_iter().collect());
                        }
                        list => {
                            let is_index = list == "manifests";
                            let items = map.next_value_seed(List { document, is_index })?;
                            match list {
                                "manifests" => document.manifests = items,
                                "layers" => document.layers = items,
                                _ => document.blobs = items,
                            }
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

/// A list of descriptors. `None` for null, and for what is no list.
struct List<'a> {
    document: &'a mut Document,
    is_index: bool,
}

impl<'de> DeserializeSeed<'de> for List<'_> {
    type Value = Option<Vec<Descriptor>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for List<'_> {
    type Value = Option<Vec<Descriptor>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of descriptors")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut list = Vec::new();
        while let Some(raw) = seq.next_element_seed(One(self.document))? {
            self.document.found += 1;
            // A digest that cannot be parsed is one that nobody can ask for.
            let descriptor = raw.and_then(|raw| raw.descriptor(self.is_index));
            if self.document.found <= self.document.most {
                list.extend(descriptor);
            }
        }
        Ok(Some(list))
    }

    odd!(scalars);
    odd!(map);
}

/// A descriptor as it is written.
#[derive(Debug, Default)]
struct Raw {
    digest: Option<String>,
    size: Option<u64>,
    media_type: Option<String>,
    platform: Option<Platform>,
    describes: Option<Digest>,
}

impl Raw {
    fn descriptor(self, is_index: bool) -> Option<Descriptor> {
        let named = self.media_type.as_deref().and_then(media_type::essence);
        Some(Descriptor {
            digest: self.digest?.parse().ok()?,
            size: self.size,
            is_manifest: is_index
                && named.is_none_or(|named| media_type::is_manifest(&named) || media_type::says_nothing(&named)),
            media_type: self.media_type,
            platform: self.platform,
            describes: self.describes,
        })
    }
}

/// One descriptor. `None` for null, and for what is no object.
struct One<'a>(&'a mut Document);

impl<'de> DeserializeSeed<'de> for One<'_> {
    type Value = Option<Raw>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for One<'_> {
    type Value = Option<Raw>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a descriptor")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut raw = Raw::default();
        let mut seen = [false; DESCRIPTOR.len()];
        while let Some(key) = map.next_key_seed(Key(DESCRIPTOR))? {
            let Some(key) = key else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            let at = DESCRIPTOR.iter().position(|known| *known == key).unwrap_or(0);
            let is_second = std::mem::replace(&mut seen[at], true);
            match key {
                // Of two, clients would ask for different ones, or at different places.
                "digest" | "mediaType" if is_second => {
                    self.0.doubled = Some(key);
                    return Err(serde::de::Error::custom("a key twice"));
                }
                "digest" => raw.digest = map.next_value_seed(Text)?,
                "mediaType" => raw.media_type = map.next_value_seed(Text)?,
                // What is told twice about it is unknown.
                "size" => raw.size = map.next_value_seed(Number)?.filter(|_| !is_second),
                "platform" => raw.platform = map.next_value_seed(OfPlatform)?.filter(|_| !is_second),
                _ => raw.describes = map.next_value_seed(OfAnnotations)?,
            }
        }
        Ok(Some(raw))
    }

    odd!(scalars);
    odd!(seq);
}

/// What is odd about a platform is no reason to refuse a manifest that clients take.
struct OfPlatform;

impl<'de> DeserializeSeed<'de> for OfPlatform {
    type Value = Option<Platform>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for OfPlatform {
    type Value = Option<Platform>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a platform")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut os, mut architecture, mut variant) = (None, None, None);
        while let Some(key) = map.next_key_seed(Key(PLATFORM))? {
            match key {
                Some("os") => os = map.next_value_seed(Text)?,
                Some("architecture") => architecture = map.next_value_seed(Text)?,
                Some("variant") => variant = map.next_value_seed(Text)?,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        let named = os.zip(architecture);
        Ok(named.and_then(|(os, architecture)| Platform::new(&os, &architecture, variant.as_deref())))
    }

    odd!(scalars);
    odd!(seq);
}

/// The one annotation that is read. Annotations are a map to every reader: of two the last counts.
struct OfAnnotations;

impl<'de> DeserializeSeed<'de> for OfAnnotations {
    type Value = Option<Digest>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for OfAnnotations {
    type Value = Option<Digest>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("annotations")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut describes = None;
        while let Some(key) = map.next_key_seed(Exact(DESCRIBES))? {
            match key {
                true => describes = map.next_value_seed(Text)?.and_then(|text| text.parse().ok()),
                false => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(describes)
    }

    odd!(scalars);
    odd!(seq);
}

/// Whether a key is this one.
struct Exact(&'static str);

impl<'de> DeserializeSeed<'de> for Exact {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_bytes(self)
    }
}

impl Visitor<'_> for Exact {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_bytes<E: serde::de::Error>(self, key: &[u8]) -> Result<bool, E> {
        Ok(key == self.0.as_bytes())
    }

    fn visit_str<E: serde::de::Error>(self, key: &str) -> Result<bool, E> {
        Ok(key == self.0)
    }
}

/// A text. `None` for anything else.
struct Text;

impl<'de> DeserializeSeed<'de> for Text {
    type Value = Option<String>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Text {
    type Value = Option<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Some(text.to_owned()))
    }

    odd!(numbers);
    odd!(seq);
    odd!(map);
}

/// A whole number that is not negative. `None` for anything else.
struct Number;

impl<'de> DeserializeSeed<'de> for Number {
    type Value = Option<u64>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Number {
    type Value = Option<u64>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number")
    }

    fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
        Ok(Some(number))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
        Ok(None)
    }

    odd!(no_size);
    odd!(seq);
    odd!(map);
}

/// One pass over the bytes for how deep they are nested (R-X10).
fn check_depth(bytes: &[u8]) -> Result<(), ManifestError> {
    let mut depth = 0usize;
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
                if depth > MAX_DEPTH {
                    return Err(ManifestError::TooDeep);
                }
            }
            (false, b'}' | b']') => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Ok(())
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
        for (document, key) in [
            (r#"{"layers":[],"layers":[]}"#, "layers"),
            (r#"{"config":null,"config":{}}"#, "config"),
            (r#"{"manifests":[],"x":1,"manifests":[]}"#, "manifests"),
            (r#"{"subject":{},"subject":{}}"#, "subject"),
            // To Go these are the same key, to others two.
            (r#"{"layers":[],"Layers":[]}"#, "layers"),
            ("{\"layers\":[],\"layer\u{17f}\":[]}", "layers"),
            (r#"{"layers":[],"\u006cayers":[]}"#, "layers"),
            (r#"{"layers":[{"digest":"a","digest":"b"}]}"#, "digest"),
            (r#"{"manifests":[{"mediaType":"a/b","MediaType":"c/d"}]}"#, "mediaType"),
            (r#"{"subject":{"digest":"a","DIGEST":"b"}}"#, "digest"),
        ] {
            let error = Manifest::parse(document.as_bytes(), Some(media_type::OCI_MANIFEST)).unwrap_err();
            assert_eq!(error, ManifestError::DuplicateKey(key), "{document}");
        }
        assert_eq!(
            Manifest::parse(br#"{"manifests":[],"Layers":[]}"#, Some(media_type::OCI_INDEX)),
            Err(ManifestError::Ambiguous)
        );
        // An error repeats no more than an excerpt.
        let long = "x".repeat(4 << 20);
        let document = format!(r#""{long}""#);
        let error = Manifest::parse(document.as_bytes(), Some(media_type::OCI_MANIFEST)).unwrap_err();
        assert!(error.to_string().len() < 1000, "{}", error.to_string().len());
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

    /// What clients take directly is taken: nothing of it changes what the document names.
    #[test]
    fn takes_what_is_merely_odd() {
        let with = |fields: &str| {
            let text = format!(r#"{{"schemaVersion":2,{fields},"config":{{"digest":"{D}","size":2}}}}"#);
            let read = Manifest::parse(text.as_bytes(), Some(media_type::OCI_MANIFEST));
            read.unwrap_or_else(|error| panic!("{text}: {error}"))
        };
        for odd in [
            r#""annotations":{"a":"1","a":"2","b":"\ud800"},"layers":[]"#,
            r#""x":1,"x":2,"schemaVersion":2,"layers":[]"#,
            r#""layers":[{"annotations":{"a":1,"a":2}},{"urls":[],"urls":[]},null,7]"#,
            r#""layers":null,"blobs":"none","subject":[]"#,
            r#""artifactType":{"a":[1e999]},"layers":{"a":"b"}"#,
        ] {
            let read = with(odd);
            assert_eq!((read.descriptors.len(), read.subject), (1, None), "{odd}");
        }
        // Other clients' spelling is read as Go reads it.
        let read = with(&format!(r#""LAYERS":[{{"Digest":"{D}"}}]"#));
        assert_eq!(read.descriptors.len(), 2);

        // A size that no file has is unknown, as it is to clients.
        for size in [
            "-1",
            "-9223372036854775808",
            "1.5",
            "\"7\"",
            "null",
            "1e30",
            "7,\"size\":8",
        ] {
            let read = with(&format!(r#""layers":[{{"digest":"{D}","size":{size}}}]"#));
            assert_eq!(read.descriptors[1].size, None, "{size}");
        }
    }

    /// The Content-Type is what clients get and go by; that the document says otherwise is noted.
    #[test]
    fn the_header_counts_where_the_field_differs() {
        for (header, field, want, is_disputed) in [
            (
                media_type::OCI_MANIFEST,
                media_type::DOCKER_MANIFEST,
                media_type::OCI_MANIFEST,
                true,
            ),
            (
                media_type::OCI_MANIFEST,
                media_type::OCI_INDEX,
                media_type::OCI_MANIFEST,
                true,
            ),
            (
                media_type::OCI_MANIFEST,
                media_type::OCI_MANIFEST,
                media_type::OCI_MANIFEST,
                false,
            ),
            ("application/json", media_type::OCI_INDEX, media_type::OCI_INDEX, false),
            // Without a field that says anything the shape has to do.
            (media_type::OCI_INDEX, "nonsense", media_type::OCI_INDEX, true),
            (media_type::DOCKER_LIST, "nonsense", media_type::DOCKER_LIST, true),
            (media_type::OCI_MANIFEST, "nonsense", media_type::OCI_MANIFEST, false),
        ] {
            let text = format!(r#"{{"mediaType":"{field}","layers":[{{"digest":"{D}"}}]}}"#);
            let read = Manifest::parse(text.as_bytes(), Some(header)).unwrap();
            assert_eq!(
                (&*read.media_type, read.is_disputed),
                (want, is_disputed),
                "{header} {field}"
            );
            assert_eq!(read.descriptors.len(), 1);
        }
    }

    /// BuildKit writes its cache as an index of layers.
    #[test]
    fn children_are_what_their_media_type_says() {
        let entry = |media_type: &str| format!(r#"{{"mediaType":{media_type},"digest":"{D}","size":1}}"#);
        for (media_type, is_manifest) in [
            ("\"application/vnd.oci.image.layer.v1.tar+gzip\"", false),
            ("\"application/vnd.docker.image.rootfs.diff.tar.gzip\"", false),
            ("\"application/vnd.buildkit.cacheconfig.v0\"", false),
            ("\"application/vnd.oci.image.config.v1+json\"", false),
            ("\"application/vnd.oci.image.manifest.v1+json\"", true),
            ("\"Application/vnd.OCI.image.index.v1+json; a=b\"", true),
            ("\"application/vnd.oci.artifact.manifest.v1+json\"", true),
            ("\"application/vnd.docker.distribution.manifest.v1+prettyjws\"", true),
            ("\"application/json\"", true),
            ("\"\"", true),
            ("null", true),
        ] {
            let text = format!(r#"{{"manifests":[{}]}}"#, entry(media_type));
            let read = Manifest::parse(text.as_bytes(), None).unwrap();
            assert_eq!(read.descriptors[0].is_manifest, is_manifest, "{media_type}");
            // What a manifest lists is asked for as a blob, whatever it is.
            let text = format!(r#"{{"layers":[{}]}}"#, entry(media_type));
            let read = Manifest::parse(text.as_bytes(), Some(media_type::OCI_MANIFEST)).unwrap();
            assert!(!read.descriptors[0].is_manifest);
        }
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

        /// What is accepted names the same to every reader: to those who take the first of two equal keys or the last, and
        /// to Go's, which folds their case. What no reader could take for two things is accepted.
        #[test]
        fn what_is_accepted_names_one_thing_to_all_readers(document in document()) {
            let text = written(&document);
            let named = |folds, takes_last| Reader { folds, takes_last }.named(&document);
            let read = Manifest::parse(text.as_bytes(), Some(media_type::OCI_MANIFEST));
            let go = named(true, true);
            if let Ok(read) = &read {
                let found: Vec<String> = read.descriptors.iter().map(|child| child.digest.to_string()).collect();
                prop_assert_eq!(&found, &go.0, "{}", text);
                prop_assert_eq!(read.subject.map(|subject| subject.to_string()), go.1.clone(), "{}", text);
                prop_assert_eq!(named(true, false), go.clone(), "{}", text);
                let is_plain = document.iter().all(|(key, value)| {
                    let inner = value.iter().flatten().map(|(key, _)| key);
                    inner.chain([key]).all(|key| TOP.contains(key) || DESCRIPTOR.contains(key) || key == &"x")
                });
                if is_plain {
                    prop_assert_eq!(named(false, true), go.clone(), "{}", text);
                    prop_assert_eq!(named(false, false), go, "{}", text);
                }
            } else {
                let has = |key: &str| document.iter().any(|(k, _)| fold(k.as_bytes(), TOP) == Some(key));
                let is_both = has("manifests") && (has("layers") || has("config"));
                let is_doubled = |keys: Vec<Option<&str>>| {
                    let named: Vec<&str> = keys.into_iter().flatten().collect();
                    (1..named.len()).any(|at| named[..at].contains(&named[at]))
                };
                let top = document.iter().map(|(key, _)| fold(key.as_bytes(), TOP)).collect();
                let naming = |key: &str| fold(key.as_bytes(), &["digest", "mediaType"]);
                let inner = document.iter().flat_map(|(_, value)| value);
                let mut inner = inner.map(|item| item.iter().map(|(key, _)| naming(key)).collect());
                prop_assert!(is_both || is_doubled(top) || inner.any(is_doubled), "{}: {:?}", text, read);
            }
        }
    }

    /// Keys of a document, each with descriptors, which have keys and texts. As they are written: a key may come twice.
    type Written = Vec<(&'static str, Vec<Vec<(&'static str, &'static str)>>)>;

    const DIGESTS: [&str; 3] = [
        D,
        "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        "sha256:cb00753f45a35e8bb5a03d699ac65007272c32ab0eded1631a8b605a43ff5bed",
    ];

    fn document() -> impl Strategy<Value = Written> {
        let key = prop::sample::select(vec![
            "layers",
            "layers",
            "layers",
            "config",
            "config",
            "manifests",
            "blobs",
            "subject",
            "x",
            "x",
            "Layers",
            "CONFIG",
            "layer\u{17f}",
            "Subject",
        ]);
        let inner = prop::sample::select(vec!["digest", "digest", "digest", "x", "annotations", "Digest"]);
        let item = prop::collection::vec((inner, prop::sample::select(DIGESTS.to_vec())), 0..3);
        prop::collection::vec((key, prop::collection::vec(item, 1..3)), 0..5)
    }

    fn written(document: &Written) -> String {
        let item = |item: &Vec<(&str, &str)>| {
            let fields: Vec<String> = item.iter().map(|(key, text)| format!("{key:?}:{text:?}")).collect();
            format!("{{{}}}", fields.join(","))
        };
        let field = |(key, items): &(&str, Vec<Vec<(&str, &str)>>)| match is_one(key) {
            true => format!("\"{key}\":{}", item(&items[0])),
            false => format!("\"{key}\":[{}]", items.iter().map(item).collect::<Vec<_>>().join(",")),
        };
        format!("{{{}}}", document.iter().map(field).collect::<Vec<_>>().join(","))
    }

    fn is_one(key: &str) -> bool {
        matches!(key.to_lowercase().as_str(), "config" | "subject")
    }

    /// Another reader of JSON, by its rules for keys.
    struct Reader {
        folds: bool,
        takes_last: bool,
    }

    impl Reader {
        fn get<'a, T>(&self, object: &'a [(&str, T)], wanted: &str) -> Option<&'a T> {
            // Said in another way than `fold` does.
            let plain = |key: &str| key.replace('\u{17f}', "s").to_lowercase();
            let is = |key: &str| key == wanted || (self.folds && plain(key) == wanted.to_lowercase());
            let mut found = object.iter().filter(|(key, _)| is(key)).map(|(_, value)| value);
            match self.takes_last {
                true => found.next_back(),
                false => found.next(),
            }
        }

        /// Digests of children, in the order in which Larder has them, and of the subject.
        fn named(&self, document: &Written) -> (Vec<String>, Option<String>) {
            let digest = |item: &Vec<(&'static str, &'static str)>| Some((*self.get(item, "digest")?).to_owned());
            let list = |key: &str| {
                let items = self.get(document, key).map(Vec::as_slice).unwrap_or_default();
                let most = if is_one(key) { 1 } else { items.len() };
                items[..most.min(items.len())]
                    .iter()
                    .filter_map(digest)
                    .collect::<Vec<_>>()
            };
            let children = ["manifests", "config", "layers", "blobs"].map(list).concat();
            (children, list("subject").pop())
        }
    }
}
