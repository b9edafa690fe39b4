//! Which entries of an archive are taken, and under which names. Whatever is not taken is listed, with the reason and
//! the option that takes it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::super::error::BundleError;
use super::super::report::NotTaken;
use super::Naming;
use super::entry::{Entry, Kind};
use super::name::{self, Name};
use crate::oci::{Digest, Tag};

/// Digits of a digest that are shown, and the fewest that select an image.
const SHOWN_DIGITS: usize = 12;
const FEWEST_DIGITS: usize = 6;
/// Names in one archive. More than any has, and a signature of everything by everybody does not get further.
const MAX_NAMES: usize = 200_000;
/// Entries that an error lists.
const LISTED: usize = 10;

/// The outcome for an archive's entries.
#[derive(Debug, Default)]
pub(super) struct Choice {
    /// Entries by their place, with the name that each gets: several for an image with several names.
    pub(super) taken: Vec<(usize, Name)>,
    pub(super) left: Vec<NotTaken>,
}

/// Decides. Errors: nothing is taken, or the names that were given do not fit what is inside.
pub(super) fn choose(entries: &[Entry], naming: &Naming) -> Result<Choice, BundleError> {
    for only in &naming.only {
        if !entries.iter().any(|entry| answers_to(entry, only)) {
            return Err(BundleError::Bad(format!(
                "the archive has no image {only:?}; it has {}",
                list(entries)
            )));
        }
    }
    let mut chooser = Chooser::new(entries, naming);
    match &naming.name {
        None => chooser.own_names(),
        Some(given) => chooser.given_name(given)?,
    }
    chooser.resolve_conflicts();
    chooser.attachments();
    if chooser.is_overflowing {
        return Err(BundleError::hostile(format!("more than {MAX_NAMES} names")));
    }
    let choice = chooser.choice();
    match choice.taken.is_empty() {
        false => Ok(choice),
        true => Err(nothing(&choice.left)),
    }
}

fn nothing(left: &[NotTaken]) -> BundleError {
    let mut reasons: Vec<String> = left.iter().take(LISTED).map(ToString::to_string).collect();
    if left.len() > LISTED {
        reasons.push(format!("{} more", left.len() - LISTED));
    }
    BundleError::Bad(match reasons.is_empty() {
        true => "the archive names no image".to_owned(),
        false => format!("nothing in the archive can be taken: {}", reasons.join("; ")),
    })
}

fn list(entries: &[Entry]) -> String {
    let images = entries.iter().filter(|entry| entry.kind == Kind::Image);
    let mut names: Vec<String> = images.clone().take(LISTED).map(called).collect();
    if images.clone().count() > LISTED {
        names.push(format!("{} more", images.count() - LISTED));
    }
    names.join(", ")
}

fn called(entry: &Entry) -> String {
    let label = entry.names.first().or(entry.shorts.first());
    label.cloned().unwrap_or_else(|| shown(&entry.digest))
}

/// `sha256:0123456789ab`
fn shown(digest: &Digest) -> String {
    let hex: String = digest.hex().chars().take(SHOWN_DIGITS).collect();
    format!("{}:{hex}", digest.algorithm().as_str())
}

/// True if `only` is this entry's name, its digest, its image ID or how one of these begins. A signature bears its
/// image's name, so it is meant by its digest alone.
fn answers_to(entry: &Entry, only: &str) -> bool {
    let begins = |digest: &Digest| {
        let whole = digest.to_string();
        let hex = only.split_once(':').map_or(only, |(_, hex)| hex);
        let is_hex = hex.len() >= FEWEST_DIGITS && hex.bytes().all(|b| b.is_ascii_hexdigit());
        is_hex && (whole.starts_with(only) || digest.hex().starts_with(only))
    };
    if begins(&entry.digest) || entry.id.as_ref().is_some_and(begins) {
        return true;
    }
    if entry.kind != Kind::Image {
        return false;
    }
    let wanted = name::parse(only).ok();
    let is_same = |own: &String| own == only || (wanted.is_some() && name::parse(own).ok() == wanted);
    entry.names.iter().any(is_same) || entry.shorts.iter().any(|short| short == only)
}

struct Chooser<'a> {
    entries: &'a [Entry],
    /// Set if the caller named images: the others are no loss.
    is_narrowed: bool,
    /// Places of the images that are to be taken.
    roots: Vec<usize>,
    /// Which entries want which name: repository, then tag or digest.
    wanted: BTreeMap<(String, String), (Name, BTreeSet<usize>)>,
    /// Set if there are too many.
    is_overflowing: bool,
    left: Vec<NotTaken>,
}

impl<'a> Chooser<'a> {
    fn new(entries: &'a [Entry], naming: &Naming) -> Chooser<'a> {
        let is_narrowed = !naming.only.is_empty();
        let is_selected = |entry: &Entry| naming.only.iter().any(|only| answers_to(entry, only));
        let mut below = HashSet::new();
        let mut inside = HashSet::new();
        for entry in entries {
            inside.extend(entry.manifests.iter().copied());
            below.extend(
                entry
                    .manifests
                    .iter()
                    .filter(|digest| **digest != entry.digest)
                    .copied(),
            );
        }
        let comes_along = |entry: &Entry| {
            let is_referrer = entry.subject.is_some_and(|subject| inside.contains(&subject));
            entry.labels().next().is_none() && (is_referrer || below.contains(&entry.digest))
        };
        let is_root = |entry: &Entry| match is_narrowed {
            true => is_selected(entry),
            false => entry.kind == Kind::Image && !comes_along(entry),
        };
        Chooser {
            entries,
            is_narrowed,
            roots: (0..entries.len()).filter(|at| is_root(&entries[*at])).collect(),
            wanted: BTreeMap::new(),
            is_overflowing: false,
            left: Vec::new(),
        }
    }

    fn want(&mut self, at: usize, name: Name) {
        if self.wanted.len() >= MAX_NAMES {
            self.is_overflowing = true;
            return;
        }
        let reference = match &name.tag {
            Some(tag) => tag.clone(),
            None => self.entries[at].digest.to_string(),
        };
        let name = Name { digest: None, ..name };
        let key = (name.repository.clone(), reference);
        self.wanted
            .entry(key)
            .or_insert_with(|| (name, BTreeSet::new()))
            .1
            .insert(at);
    }

    /// Notes what is not taken. `naming`: what `--as` would have to say.
    fn leave(&mut self, at: usize, name: Option<&str>, reason: String, naming: Option<&str>) {
        let entry = &self.entries[at];
        let option = naming.map(|naming| match self.roots.as_slice() {
            [one] if *one == at => format!("--as {naming}"),
            _ => format!("--only {} --as {naming}", shown(&entry.digest)),
        });
        self.left.push(NotTaken {
            name: name.map(str::to_owned),
            digest: entry.digest.to_string(),
            kind: entry.kind.as_str().to_owned(),
            reason,
            option,
        });
    }

    /// True if the entry cannot be taken by any name; then that is noted.
    fn is_faulty(&mut self, at: usize) -> bool {
        let entry = &self.entries[at];
        let Some(fault) = &entry.fault else { return false };
        let label = entry.labels().next().map(str::to_owned);
        self.leave(at, label.as_deref(), fault.clone(), None);
        true
    }

    /// Under the names that the archive itself gives.
    fn own_names(&mut self) {
        for at in self.roots.clone() {
            if self.is_faulty(at) {
                continue;
            }
            let entry = &self.entries[at];
            for text in &entry.names {
                match name::parse(text) {
                    Ok(name) if name.digest.is_some_and(|digest| digest != entry.digest) => {
                        let why = match entry.is_made {
                            true => "the archive has no manifest, and the one that is made for it has another digest",
                            false => "its name says another digest than its own",
                        };
                        self.leave(at, Some(text), why.to_owned(), Some("NAME:TAG"));
                    }
                    Ok(name) if name.tag.is_some() || name.digest.is_some() => self.want(at, name),
                    Ok(name) => {
                        let naming = format!("{}:TAG", name.repository);
                        self.leave(at, Some(text), "its name has no tag".to_owned(), Some(&naming));
                    }
                    Err(error) => self.leave(at, Some(text), error.to_string(), Some("NAME:TAG")),
                }
            }
            if entry.names.is_empty() {
                let (short, why) = match entry.shorts.first() {
                    Some(short) => (Some(short.as_str()), "the archive does not say where it is from"),
                    None => (None, "the archive gives it no name"),
                };
                self.leave(at, short, why.to_owned(), Some("NAME:TAG"));
            }
        }
    }

    /// Under the name that was given, which is enough for one image; several keep their own tags, or their digests.
    fn given_name(&mut self, given: &str) -> Result<(), BundleError> {
        let name = name::parse(given)?;
        let is_alone = self.roots.len() == 1;
        if name.tag.is_some() && !is_alone {
            return Err(BundleError::Bad(format!(
                "several images are inside, and {given} would be the name of all of them: give --as without a tag, or choose one by --only; inside are {}",
                list(self.entries)
            )));
        }
        for at in self.roots.clone() {
            if self.is_faulty(at) {
                continue;
            }
            let entry = &self.entries[at];
            if let Some(digest) = name.digest {
                if digest != entry.digest {
                    return Err(BundleError::Bad(format!(
                        "{given} says another digest than the image has, {}",
                        entry.digest
                    )));
                }
                self.want(at, name.clone());
                continue;
            }
            let mut tags: BTreeSet<String> = match is_alone {
                true => BTreeSet::from([name.tag.clone().unwrap_or_else(|| "latest".to_owned())]),
                false => {
                    let full = entry.names.iter().filter_map(|name| name::parse(name).ok()?.tag);
                    full.chain(entry.shorts.iter().filter_map(|short| name::short_tag(short)))
                        .collect()
                }
            };
            // A signature that was chosen by its digest has the name of its image, and must not get it.
            if !is_alone && entry.kind != Kind::Image {
                tags.clear();
            }
            if tags.is_empty() {
                self.want(at, name.clone());
            }
            for tag in tags {
                let tag = Some(tag);
                self.want(at, Name { tag, ..name.clone() });
            }
        }
        Ok(())
    }

    /// A name that two different images bear is nobody's: which of them is meant cannot be known.
    fn resolve_conflicts(&mut self) {
        let is_disputed = |(_, entries): &(Name, BTreeSet<usize>)| entries.len() > 1;
        let disputed: Vec<_> = self
            .wanted
            .iter()
            .filter(|(_, wanted)| is_disputed(wanted))
            .map(|(key, _)| key.clone())
            .collect();
        for key in disputed {
            let Some((_, entries)) = self.wanted.remove(&key) else {
                continue;
            };
            let name = format!("{}:{}", key.0, key.1);
            for at in &entries {
                let others = entries.iter().filter(|other| *other != at);
                let others: Vec<String> = others
                    .take(3)
                    .map(|other| shown(&self.entries[*other].digest))
                    .collect();
                let why = format!("another image of the archive has that name: {}", others.join(", "));
                self.leave(*at, Some(&name), why, Some(&name));
            }
        }
    }

    /// Signatures and the like go with their image, under the tag that clients look for.
    fn attachments(&mut self) {
        let mut by_label: HashMap<&str, BTreeSet<usize>> = HashMap::new();
        let mut by_manifest: HashMap<Digest, BTreeSet<usize>> = HashMap::new();
        for (at, entry) in self
            .entries
            .iter()
            .enumerate()
            .filter(|(_, entry)| entry.kind == Kind::Image)
        {
            for label in entry.labels() {
                by_label.entry(label).or_default().insert(at);
            }
            for digest in &entry.manifests {
                by_manifest.entry(*digest).or_default().insert(at);
            }
        }
        let mut repositories: HashMap<usize, BTreeSet<String>> = HashMap::new();
        for (name, entries) in self.wanted.values() {
            for at in entries {
                repositories.entry(*at).or_default().insert(name.repository.clone());
            }
        }
        let roots: BTreeSet<usize> = self.roots.iter().copied().collect();
        for (at, entry) in self.entries.iter().enumerate() {
            if self.is_overflowing {
                return;
            }
            if entry.kind == Kind::Image || roots.contains(&at) {
                continue;
            }
            let mut relatives: BTreeSet<usize> = entry
                .labels()
                .filter_map(|label| by_label.get(label))
                .flatten()
                .copied()
                .collect();
            let signed = entry.subject.or(entry.signs);
            let named = signed.and_then(|digest| by_manifest.get(&digest));
            if let Some(named) = named
                && (relatives.is_empty() || !relatives.is_disjoint(named))
            {
                relatives.clone_from(named);
            }
            let label = entry.labels().next().map(str::to_owned);
            let label = label.as_deref();
            if self.is_narrowed && relatives.is_disjoint(&roots) {
                continue;
            }
            if self.is_faulty(at) {
                continue;
            }
            let taken: BTreeSet<usize> = relatives
                .iter()
                .filter(|at| repositories.contains_key(at))
                .copied()
                .collect();
            let ending = match &entry.kind {
                Kind::Signature(ending) => *ending,
                // Its image lists it.
                Kind::Referrer if entry.subject.is_some() && !taken.is_empty() => continue,
                Kind::Referrer | Kind::Image => "",
                Kind::Other(kind) => {
                    let why = format!("the archive says that it is of kind {kind:?}, which is not known");
                    self.leave(at, label, why, Some("NAME:TAG"));
                    continue;
                }
            };
            if taken.is_empty() || ending.is_empty() {
                let why = match relatives.is_empty() {
                    true => "the image that it belongs to is not in the archive",
                    false => "the image that it belongs to is not taken",
                };
                self.leave(at, label, why.to_owned(), Some("NAME:TAG"));
                continue;
            }
            for image in taken {
                let inside = &self.entries[image];
                let subject = signed
                    .filter(|digest| inside.manifests.contains(digest))
                    .unwrap_or(inside.digest);
                let tag = format!("{}-{}{ending}", subject.algorithm().as_str(), subject.hex());
                if tag.parse::<Tag>().is_err() {
                    self.leave(
                        at,
                        label,
                        format!("its tag would be {tag:?}, which is none"),
                        Some("NAME:TAG"),
                    );
                    continue;
                }
                for repository in repositories.get(&image).cloned().unwrap_or_default() {
                    let tag = Some(tag.clone());
                    self.want(
                        at,
                        Name {
                            repository,
                            tag,
                            digest: None,
                        },
                    );
                }
            }
        }
        self.resolve_conflicts();
    }

    fn choice(self) -> Choice {
        let mut taken = Vec::new();
        for (name, entries) in self.wanted.into_values() {
            taken.extend(entries.into_iter().map(|at| (at, name.clone())));
        }
        Choice { taken, left: self.left }
    }
}

#[cfg(test)]
#[path = "choose_tests.rs"]
mod tests;
