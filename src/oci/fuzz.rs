//! Harnesses for the specification's nouns.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use serde_json::Value;

use super::manifest::{self, Manifest};
use super::name::{is_component, looks_like_host};
use super::reference::split_image;
use super::{Algorithm, Digest, HostPort, Platform, Reference, Repository, Tag, media_type};
use crate::fuzzing::{Harness, check_bounded, check_error, check_stays_inside, fields, is_unprintable, text, texts};

const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

pub(crate) const HARNESSES: &[Harness] = &[
    Harness {
        name: "digest",
        run: digest,
        seeds: || {
            let long = Digest::of(Algorithm::Sha512, b"x");
            let mut seeds = texts(&[D, &long.to_string(), "blake3:00", "sha256-ab", "sha256:AB"]);
            seeds.extend([long.to_key(), Digest::sha256(b"y").to_key()]);
            seeds
        },
        words: &["sha256:", "sha512:", "sha256", ":", "0", "ab", "a+b", "\u{1}"],
    },
    Harness {
        name: "name",
        run: name,
        seeds: || {
            texts(&[
                "library/alpine",
                "a/b--c/d__e.f_g",
                "registry.example:5000",
                "[2001:db8::1]:443",
                "localhost",
                "xn--bcher-kva.example",
                "a..b",
                "../x",
            ])
        },
        words: &["a/", "a.", "_", "__", "-", "a", "[::1]", ":65535", "A", "%2f"],
    },
    Harness {
        name: "reference",
        run: reference,
        seeds: || {
            texts(&[
                "latest",
                "3.22-alpine_x",
                D,
                &format!("registry.example:5000/a/b:1@{D}"),
                "sha256-e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855.sig",
            ])
        },
        words: &[":", "@", "/", "sha256:", "a", ".", "-", "_"],
    },
    Harness {
        name: "media_type",
        run: media_types,
        seeds: || {
            texts(&[
                media_type::OCI_INDEX,
                "Application/JSON; charset=utf-8",
                "text/html",
                "a/b; c=\"d;e\"",
            ])
        },
        words: &["/", ";", "application/", "json", "+", "charset=utf-8", " "],
    },
    Harness {
        name: "platform",
        run: platform,
        seeds: || {
            texts(&[
                "linux/amd64",
                "Linux/x86_64",
                "linux/arm/v7",
                "linux\narm64\nv8",
                "windows\namd64",
                "unknown\nunknown",
                "linux\narmhf",
            ])
        },
        words: &["linux", "/", "\n", "amd64", "v8", "aarch64", "unknown"],
    },
    Harness {
        name: "manifest",
        run: manifests,
        seeds: manifest_seeds,
        words: &[
            "{",
            "[",
            "{\"a\":",
            "\"",
            "\\u0061",
            "{\"digest\":\"\"},",
            "[],",
            "{\"\":0},",
            "0,",
            "\"mediaType\":",
            "}",
            "]",
            "\\",
        ],
    },
];

fn manifest_seeds() -> Vec<Vec<u8>> {
    let (oci, index) = (media_type::OCI_MANIFEST, media_type::OCI_INDEX);
    let image = format!(
        r#"{oci}
{{"schemaVersion":2,"mediaType":"{oci}","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{D}","size":7}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{D}","size":32654,"urls":["https://x.example/a"]}}],"subject":{{"mediaType":"{oci}","digest":"{D}","size":5}},"annotations":{{"a":"b"}}}}"#
    );
    let list = format!(
        r#"{index}; charset=utf-8
{{"schemaVersion":2,"mediaType":"{index}","manifests":[{{"mediaType":"{oci}","digest":"{D}","size":7682,"platform":{{"os":"linux","architecture":"arm64","variant":"v8","os.version":"1"}}}},{{"mediaType":"{oci}","digest":"{D}","size":1,"platform":{{"os":"unknown","architecture":"unknown"}},"annotations":{{"vnd.docker.reference.digest":"{D}","vnd.docker.reference.type":"attestation-manifest"}}}}]}}"#
    );
    let plain = "\n{\"schemaVersion\":2,\"manifests\":[]}";
    let old = "application/vnd.docker.distribution.manifest.v1+prettyjws\n{\"schemaVersion\":1,\"fsLayers\":[]}";
    let both = format!("{index}\n{{\"manifests\":[],\"layers\":[]}}");
    let twice = format!("{oci}\n{{\"layers\":[{{\"a\":1,\"a\":2}}],\"Config\":{{\"digest\":\"{D}\",\"size\":-1}}}}");
    let odd = format!("{index}\n{{\"mediaType\":\"{oci}\",\"layers\":[null,{{\"digest\":\"{D}\",\"digest\":7}}]}}");
    texts(&[&image, &list, plain, old, &both, &twice, &odd])
}

fn digest(data: &[u8]) {
    if let Some(digest) = Digest::from_key(data) {
        assert_eq!(digest.to_key(), data);
    }
    if let Some((digest, rest)) = Digest::split_key(data) {
        assert_eq!([digest.to_key().as_slice(), rest].concat(), data);
    }
    let Some(text) = text(data) else { return };
    let of_json = serde_json::from_value::<Digest>(Value::from(text));
    match text.parse::<Digest>() {
        Ok(digest) => {
            assert_eq!(digest.to_string(), text, "one spelling each");
            let (algorithm, hex) = text.split_once(':').unwrap();
            assert!(matches!((algorithm, hex.len()), ("sha256", 64) | ("sha512", 128)));
            assert!(hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)));
            assert_eq!(Digest::from_hex(digest.algorithm(), hex), Some(digest));
            assert_eq!(Digest::from_key(&digest.to_key()), Some(digest));
            assert_eq!(of_json.unwrap(), digest);
            assert_eq!(serde_json::to_value(digest).unwrap(), Value::from(text));
            let tag = Tag::of_referrers(&digest);
            assert_eq!(tag.as_str().parse::<Tag>().unwrap(), tag);
            assert!(tag.is_companion());
        }
        Err(error) => {
            check_error(error);
            check_error(of_json.unwrap_err());
        }
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`, said in another way: every joint as one character, then words between them.
fn is_component_by_words(text: &str) -> bool {
    let mut joints = text.replace("__", ".");
    while joints.contains("--") {
        joints = joints.replace("--", "-");
    }
    let word = |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    joints.split(['.', '_', '-']).all(word)
}

fn name(data: &[u8]) {
    let Some(text) = text(data) else { return };
    let fits = text.len() <= 255 && text.split('/').all(is_component_by_words);
    assert_eq!(is_component(text), is_component_by_words(text), "{text:?}");
    match text.parse::<Repository>() {
        Ok(repository) => {
            assert!(fits, "{text:?} is no name by the grammar");
            assert_eq!(repository.as_str(), text);
            check_stays_inside(text);
        }
        Err(error) => {
            assert!(!fits, "{text:?} is a name by the grammar");
            check_error(error);
        }
    }
    let _ = looks_like_host(text);
    match text.parse::<HostPort>() {
        Ok(host) => {
            assert_eq!(host.as_str(), text.to_ascii_lowercase());
            assert_eq!(host.as_str().parse::<HostPort>().unwrap(), host);
            assert!(!host.host().is_empty() && host.as_str().is_ascii() && host.as_str().len() <= 255);
            let odd = |c: char| c.is_whitespace() || c.is_control() || "/@?#%\\".contains(c);
            assert!(!host.as_str().contains(odd), "{text:?}");
            // It stands before the first slash of names, and in folders' names of clients.
            check_stays_inside(host.as_str());
            let behind = host
                .as_str()
                .rsplit_once(':')
                .filter(|(before, _)| !before.contains(':') || before.ends_with(']'));
            if let Some((_, port)) = behind {
                assert!((1..=65535).contains(&port.parse::<u32>().unwrap()), "{text:?}");
            }
        }
        Err(error) => check_error(error),
    }
}

fn reference(data: &[u8]) {
    let Some(text) = text(data) else { return };
    let (name, tag, digest) = split_image(text);
    let mut again = name.to_owned();
    for (sign, part) in [(':', tag), ('@', digest)] {
        if let Some(part) = part {
            again.push(sign);
            again += part;
        }
    }
    assert_eq!(again, text, "nothing is lost between the parts");
    assert!(tag.is_none_or(|tag| !tag.contains('/')));
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let is_tag = text.starts_with(word) && text.len() <= 128 && text.chars().all(|c| word(c) || ".-".contains(c));
    match text.parse::<Tag>() {
        Ok(tag) => {
            assert!(is_tag, "{text:?}");
            assert_eq!(tag.as_str(), text);
            let _ = tag.is_companion();
            check_stays_inside(text);
        }
        Err(error) => {
            assert!(!is_tag, "{text:?}");
            check_error(error);
        }
    }
    match text.parse::<Reference>() {
        Ok(reference) => {
            assert_eq!(reference.to_string(), text);
            assert_eq!(matches!(reference, Reference::Digest(_)), text.contains(':'));
        }
        Err(error) => check_error(error),
    }
}

fn media_types(data: &[u8]) {
    let Some(text) = text(data) else { return };
    let _ = media_type::is_web_page(text);
    let Some(essence) = media_type::essence(text) else {
        return;
    };
    assert_eq!(media_type::essence(&essence), Some(essence.clone()), "{text:?}");
    assert!(essence.len() <= 255 && essence.contains('/') && !essence.contains(';'));
    assert!(essence.bytes().all(|b| b.is_ascii_graphic() && !b.is_ascii_uppercase()));
    let _ = media_type::says_nothing(&essence);
}

/// What is shown of a platform is read as that platform, wherever it came from.
fn platform(data: &[u8]) {
    let Some(all) = text(data) else { return };
    let shown = |platform: &Platform| {
        let text = platform.to_string();
        assert!(text.len() <= 98 && !text.contains(is_unprintable), "{text:?}");
        assert_eq!(text.parse::<Platform>().as_ref(), Ok(platform), "{text:?}");
        assert!(platform.takes(platform));
    };
    match all.parse::<Platform>() {
        Ok(platform) => shown(&platform),
        Err(error) => check_error(error),
    }
    let ([os, architecture], variant) = fields(data);
    let [os, architecture, variant] = [os, architecture, variant].map(|part| text(part).unwrap());
    if let Some(platform) = Platform::new(os, architecture, Some(variant)) {
        shown(&platform);
    }
}

/// A Content-Type or an empty line, then the document.
fn manifests(data: &[u8]) {
    let ([content_type], body) = fields(data);
    let content_type = text(content_type).filter(|text| !text.is_empty());
    let manifest = match Manifest::parse(body, content_type) {
        Ok(manifest) => manifest,
        Err(error) => return check_bounded(error),
    };
    assert!(body.len() <= manifest::MAX_MANIFEST_BYTES || cfg!(test));
    // Stored with its type, it is read again as what it was.
    let again = Manifest::parse(body, Some(&manifest.media_type));
    assert_eq!(again.as_ref(), Ok(&manifest));
    assert_eq!(
        media_type::essence(&manifest.media_type).as_ref(),
        Some(&manifest.media_type)
    );
    // Texts that are no UTF-8, and numbers of any size, are nobody's names.
    let Ok(document) = serde_json::from_slice::<Value>(body) else {
        return;
    };
    let document = document.as_object().expect("what was accepted is an object");
    let is_list = |key: &str| document.get(key).is_some_and(Value::is_array);
    let is_object = |key: &str| document.get(key).is_some_and(Value::is_object);
    assert!(
        !(is_list("manifests") && (is_list("layers") || is_object("config"))),
        "one thing or the other"
    );
    let field = document
        .get("mediaType")
        .and_then(Value::as_str)
        .and_then(media_type::essence);
    if let Some(field) = field {
        let header = content_type.and_then(media_type::essence);
        let header = header.filter(|header| !media_type::says_nothing(header));
        assert_eq!(
            manifest.media_type,
            header.unwrap_or(field),
            "the header, else the field"
        );
    }
    // A spelling that only Go's readers know.
    let known = ["manifests", "layers", "blobs", "config", "digest"];
    let is_odd = |key: &String| {
        let plain = key.replace('\u{17f}', "s").to_lowercase();
        known.contains(&plain.as_str()) && !known.contains(&key.as_str())
    };
    if keys_of(document).iter().any(|key| is_odd(key)) {
        return;
    }
    let list = |key: &str| document.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    let named: Vec<Value> = [
        list("manifests"),
        document.get("config").cloned().into_iter().collect(),
        list("layers"),
        list("blobs"),
    ]
    .concat();
    let digests: Vec<&str> = named.iter().filter_map(|item| item.get("digest")?.as_str()).collect();
    let digests: Vec<Digest> = digests.iter().filter_map(|text| text.parse().ok()).collect();
    let found: Vec<Digest> = manifest
        .descriptors
        .iter()
        .map(|descriptor| descriptor.digest)
        .collect();
    assert_eq!(found, digests, "every child that can be asked for, in its order");
}

/// The keys of a document, and of what is in it.
fn keys_of(document: &serde_json::Map<String, Value>) -> Vec<&String> {
    let inner = document.values().flat_map(|value| match value {
        Value::Object(object) => vec![object],
        Value::Array(items) => items.iter().filter_map(Value::as_object).collect(),
        _ => Vec::new(),
    });
    document.keys().chain(inner.flat_map(serde_json::Map::keys)).collect()
}
