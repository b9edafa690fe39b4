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
        if entries.iter().all(|entry| Selection::of(entry, only).is_nothing()) {
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

/// All names of all images, up to [`LISTED`].
fn list(entries: &[Entry]) -> String {
    let images = entries.iter().filter(|entry| entry.kind == Kind::Image);
    let mut names = Vec::new();
    let mut count = 0;
    for entry in images {
        let labels = Labels::of(entry);
        let labels = labels.all().map(str::to_owned);
        let labels = match labels.clone().next() {
            Some(_) => labels.collect(),
            None => vec![shown(&entry.digest)],
        };
        count += labels.len();
        names.extend(labels.into_iter().take(LISTED - names.len()));
    }
    if count > LISTED {
        names.push(format!("{} more", count - LISTED));
    }
    match names.is_empty() {
        true => "none".to_owned(),
        false => names.join(", "),
    }
}

/// Names of an entry, each once: a short name that only repeats part of a full one is left out.
#[derive(Clone, Debug)]
struct Labels<'a> {
    names: Vec<&'a str>,
    shorts: Vec<&'a str>,
}

impl<'a> Labels<'a> {
    fn of(entry: &'a Entry) -> Labels<'a> {
        let covered: HashSet<String> = entry.names.iter().flat_map(|name| short_forms(name)).collect();
        let is_more = |short: &&str| {
            let tag = name::short_tag(short);
            !covered.contains(*short) && tag.is_none_or(|tag| !covered.contains(&tag))
        };
        Labels {
            names: entry.names.iter().map(String::as_str).collect(),
            shorts: entry.shorts.iter().map(String::as_str).filter(is_more).collect(),
        }
    }

    fn all(&self) -> impl Iterator<Item = &'a str> + Clone {
        self.names.clone().into_iter().chain(self.shorts.clone())
    }
}

/// Returns how tools shorten a full name when they write it beside that name: `1`, `a:1`, `1@sha256:…`.
fn short_forms(full: &str) -> Vec<String> {
    let last = full.split_once('@').map_or(full, |(name, _)| name);
    let slash = last.rfind('/').map_or(0, |at| at + 1);
    let mut forms = vec![full.to_owned(), full[slash..].to_owned(), last[slash..].to_owned()];
    if let Some(colon) = last[slash..].find(':') {
        let tag = slash + colon + 1;
        forms.extend([full[tag..].to_owned(), last[tag..].to_owned()]);
    }
    forms
}

/// `sha256:0123456789ab`
fn shown(digest: &Digest) -> String {
    let hex: String = digest.hex().chars().take(SHOWN_DIGITS).collect();
    format!("{}:{hex}", digest.algorithm().as_str())
}

/// The names of an entry that an `--only` means.
enum Selection<'a> {
    Nothing,
    /// Means these names, and no other name of the same image.
    Labels(BTreeSet<&'a str>),
    /// Means the image with all its names.
    All,
}

impl<'a> Selection<'a> {
    /// A name selects itself; a digest, an image ID or the first digits of one select everything. A signature bears its
    /// image's name, so it is selected by its digest alone.
    fn of(entry: &'a Entry, only: &str) -> Selection<'a> {
        if entry.kind == Kind::Image {
            let wanted = name::parse(only).ok();
            let is_same = |own: &&String| *own == only || (wanted.is_some() && name::parse(own).ok() == wanted);
            let mut labels: BTreeSet<&str> = entry.names.iter().filter(is_same).map(String::as_str).collect();
            if labels.is_empty() && entry.shorts.contains(only) {
                let names = entry.names.iter().map(String::as_str);
                labels.extend(names.filter(|name| short_forms(name).iter().any(|form| form == only)));
            }
            if labels.is_empty() {
                labels.extend(entry.shorts.get(only).map(String::as_str));
            }
            if !labels.is_empty() {
                return Selection::Labels(labels);
            }
        }
        let begins = |digest: &Digest| {
            let whole = digest.to_string();
            let hex = only.split_once(':').map_or(only, |(_, hex)| hex);
            let is_hex = hex.len() >= FEWEST_DIGITS && hex.bytes().all(|b| b.is_ascii_hexdigit());
            is_hex && (whole.starts_with(only) || digest.hex().starts_with(only))
        };
        match begins(&entry.digest) || entry.id.as_ref().is_some_and(begins) {
            true => Selection::All,
            false => Selection::Nothing,
        }
    }

    fn is_nothing(&self) -> bool {
        matches!(self, Selection::Nothing)
    }
}

struct Chooser<'a> {
    entries: &'a [Entry],
    /// Set if the caller named images: the others are no loss.
    is_narrowed: bool,
    /// Places of the images that are to be taken.
    roots: Vec<usize>,
    /// The names that were selected, of those images that were selected by name.
    picked: HashMap<usize, BTreeSet<&'a str>>,
    /// Which entries want which name: repository, then tag or digest.
    wanted: BTreeMap<(String, String), (Name, BTreeSet<usize>)>,
    /// Set if there are too many.
    is_overflowing: bool,
    left: Vec<NotTaken>,
}

impl<'a> Chooser<'a> {
    fn new(entries: &'a [Entry], naming: &Naming) -> Chooser<'a> {
        let is_narrowed = !naming.only.is_empty();
        let mut picked: HashMap<usize, BTreeSet<&str>> = HashMap::new();
        let mut whole = HashSet::new();
        for (at, entry) in entries.iter().enumerate() {
            for only in &naming.only {
                match Selection::of(entry, only) {
                    Selection::Nothing => {}
                    Selection::Labels(labels) => picked.entry(at).or_default().extend(labels),
                    Selection::All => {
                        whole.insert(at);
                    }
                }
            }
        }
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
        let is_root = |at: &usize| match is_narrowed {
            true => whole.contains(at) || picked.contains_key(at),
            false => entries[*at].kind == Kind::Image && !comes_along(&entries[*at]),
        };
        let roots = (0..entries.len()).filter(is_root).collect();
        picked.retain(|at, _| !whole.contains(at));
        Chooser {
            entries,
            is_narrowed,
            roots,
            picked,
            wanted: BTreeMap::new(),
            is_overflowing: false,
            left: Vec::new(),
        }
    }

    /// The names that are meant of an entry.
    fn labels(&self, at: usize) -> Labels<'a> {
        let mut labels = Labels::of(&self.entries[at]);
        if let Some(picked) = self.picked.get(&at) {
            labels.names.retain(|name| picked.contains(name));
            labels.shorts.retain(|short| picked.contains(short));
        }
        labels
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
        let option = naming.map(|naming| self.option(at, naming));
        self.leave_with(at, name, reason, option);
    }

    /// The options that take an entry under a name.
    fn option(&self, at: usize, naming: &str) -> String {
        match self.roots.as_slice() {
            [one] if *one == at => format!("--as {naming}"),
            _ => format!("--only {} --as {naming}", shown(&self.entries[at].digest)),
        }
    }

    fn leave_with(&mut self, at: usize, name: Option<&str>, reason: String, option: Option<String>) {
        let entry = &self.entries[at];
        self.left.push(NotTaken {
            name: name.map(str::to_owned),
            digest: entry.digest.to_string(),
            kind: entry.kind.as_str().to_owned(),
            reason,
            option,
        });
    }

    /// [`Chooser::leave_with`] for each name of an entry, or once for one without a name.
    fn leave_all(&mut self, at: usize, reason: &str, option: Option<&str>) {
        let labels: Vec<Option<&str>> = match self.labels(at).all().map(Some).collect::<Vec<_>>() {
            none if none.is_empty() => vec![None],
            labels => labels,
        };
        for label in labels {
            self.leave_with(at, label, reason.to_owned(), option.map(str::to_owned));
        }
    }

    /// True if the entry cannot be taken by any name; then that is noted.
    fn is_faulty(&mut self, at: usize) -> bool {
        let Some(fault) = &self.entries[at].fault else {
            return false;
        };
        let fault = fault.clone();
        self.leave_all(at, &fault, None);
        true
    }

    /// True if `--as NAME` would take every image, each under tags of its own: none has a full name, and no tag is two
    /// images'.
    fn is_taken_by_one_repository(&self) -> bool {
        let mut seen = HashSet::new();
        self.roots.iter().all(|at| {
            let labels = self.labels(*at);
            let tags: BTreeSet<String> = labels
                .shorts
                .iter()
                .filter_map(|short| name::short_tag(short))
                .collect();
            let is_plain = labels.names.is_empty() && tags.len() == labels.shorts.len() && !tags.is_empty();
            is_plain && tags.into_iter().all(|tag| seen.insert(tag))
        })
    }

    /// Under the names that the archive itself gives.
    fn own_names(&mut self) {
        let is_one_repository = self.is_taken_by_one_repository();
        for at in self.roots.clone() {
            if self.is_faulty(at) {
                continue;
            }
            let entry = &self.entries[at];
            // Chosen by its digest, it would move its image's tag to a signature.
            if entry.kind != Kind::Image {
                let option = self.option(at, &attached_name(entry));
                self.leave_all(
                    at,
                    "it bears the name of its image, and needs one of its own",
                    Some(&option),
                );
                continue;
            }
            let labels = self.labels(at);
            for text in &labels.names {
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
            let option = match is_one_repository && (self.roots.len() > 1 || labels.shorts.len() > 1) {
                true => "--as NAME".to_owned(),
                false => self.option(at, "NAME:TAG"),
            };
            for short in &labels.shorts {
                let why = "the archive does not say where it is from".to_owned();
                self.leave_with(at, Some(short), why, Some(option.clone()));
            }
            if labels.all().next().is_none() {
                self.leave_with(at, None, "the archive gives it no name".to_owned(), Some(option));
            }
        }
    }

    /// Under the name that was given. With a tag it is enough for one image; without one all keep their own tags. An
    /// image without any is `latest` if it is alone, and has its digest otherwise.
    fn given_name(&mut self, given: &str) -> Result<(), BundleError> {
        let name = name::parse(given)?;
        if name.tag.is_some() && self.roots.len() > 1 {
            return Err(BundleError::Bad(format!(
                "several images are inside, and {given} would be the name of all of them: give --as without a tag, or choose one by --only; inside are {}",
                list(self.entries)
            )));
        }
        let is_alone = self.roots.len() == 1;
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
            let mut tags = BTreeSet::new();
            if let Some(tag) = &name.tag {
                tags.insert(tag.clone());
            } else if entry.kind == Kind::Image {
                // A signature that was chosen by its digest has the name of its image, and must not get it.
                let labels = self.labels(at);
                tags.extend(labels.names.iter().filter_map(|name| name::full_tag(name)));
                tags.extend(labels.shorts.iter().filter_map(|short| name::short_tag(short)));
            }
            if tags.is_empty() && is_alone && entry.kind == Kind::Image {
                tags.insert("latest".to_owned());
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
                    let option = self.option(at, "NAME:TAG");
                    self.leave_all(at, &why, Some(&option));
                    continue;
                }
            };
            if taken.is_empty() || ending.is_empty() {
                let why = match relatives.is_empty() {
                    true => "the image that it belongs to is not in the archive",
                    false => "the image that it belongs to is not taken",
                };
                // It comes with its image: under that image's name it would be the image.
                let option = match relatives.first() {
                    None => Some(self.option(at, &attached_name(entry))),
                    Some(image) if self.entries[*image].fault.is_some() => None,
                    Some(image) if taken.is_empty() => Some(self.option(*image, "NAME:TAG")),
                    Some(_) => Some(self.option(at, "NAME:TAG")),
                };
                self.leave_all(at, why, option.as_deref());
                continue;
            }
            for image in taken {
                let inside = &self.entries[image];
                let subject = signed
                    .filter(|digest| inside.manifests.contains(digest))
                    .unwrap_or(inside.digest);
                let tag = format!("{}-{}{ending}", subject.algorithm().as_str(), subject.hex());
                if tag.parse::<Tag>().is_err() {
                    let option = self.option(at, "NAME:TAG");
                    let why = format!("its tag would be {tag:?}, which is none");
                    self.leave_all(at, &why, Some(&option));
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

/// The name that an entry which belongs to an image needs, as far as it is known: clients find a signature of cosign by
/// its tag alone.
fn attached_name(entry: &Entry) -> String {
    let Kind::Signature(ending) = entry.kind else {
        return "NAME:TAG".to_owned();
    };
    match entry.subject.or(entry.signs) {
        Some(of) => format!("NAME:{}-{}{ending}", of.algorithm().as_str(), of.hex()),
        None => format!("NAME:sha256-DIGEST{ending}"),
    }
}

#[cfg(test)]
#[path = "choose_tests.rs"]
mod tests;
