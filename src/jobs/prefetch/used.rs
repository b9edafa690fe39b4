//! Which platforms this site uses, where nobody says: those that clients have pulled out of indexes so far.

use std::collections::BTreeSet;

use crate::config::wanted::Platforms;
use crate::oci::manifest::Manifest;
use crate::oci::{Platform, media_type};
use crate::store::Store;

/// Indexes that are looked into: what a site uses shows in far fewer.
const MOST_INDEXES: usize = 2_000;

/// The platforms of a job, and who says so.
#[derive(Clone, Debug)]
pub struct Chosen {
    pub platforms: Platforms,
    pub from: &'static str,
    pub is_named: bool,
}

impl Chosen {
    pub fn named(platforms: Platforms) -> Chosen {
        Chosen {
            platforms,
            from: "as asked for",
            is_named: true,
        }
    }
}

/// What is held of the indexes that are held; this machine's where that says nothing.
pub async fn platforms(store: &Store) -> Chosen {
    let store = store.clone();
    let looking = tokio::task::spawn_blocking(move || look(&store));
    let found = looking.await.unwrap_or_default();
    let (platforms, from) = match found.is_empty() {
        true => (
            vec![of_this_machine()],
            "as this machine is: nothing else was pulled yet",
        ),
        false => (found.into_iter().collect(), "as clients have pulled so far"),
    };
    Chosen {
        platforms: Platforms::Only(platforms),
        from,
        is_named: false,
    }
}

/// Linux: that is what images are for on the machines that pull them here.
fn of_this_machine() -> Platform {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    };
    Platform {
        os: "linux".to_owned(),
        architecture: architecture.to_owned(),
        variant: None,
    }
}

fn look(store: &Store) -> BTreeSet<Platform> {
    let is_index = |digest: &crate::oci::Digest| {
        let kind = store.media_type(digest);
        kind.is_some_and(|kind| matches!(&*kind, media_type::OCI_INDEX | media_type::DOCKER_LIST))
    };
    let digests = store.digests_after(None, usize::MAX);
    let indexes = digests.iter().filter(|digest| is_index(digest)).take(MOST_INDEXES);
    let manifests = indexes.filter_map(|digest| Manifest::parse(&store.peek_manifest(digest).ok()??.bytes, None).ok());
    let entries = manifests.flat_map(|manifest| manifest.descriptors);
    let held = entries.filter(|entry| entry.is_manifest && store.size(&entry.digest).is_some());
    held.filter_map(|entry| entry.platform).collect()
}
