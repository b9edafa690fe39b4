//! A bundle into the store: checked as it comes, and nothing of it seen before all of it has been read.
//!
//! The catalogue says every name and size to come, so the first thing that is otherwise ends it. Blobs go through the
//! store's writer, which verifies them, and are linked to nobody. At the end each image of which everything is here is
//! shown, in one durable step; of the others nothing is. What is private is marked so before any of it comes, and the marks
//! of an import that is refused go with it. What a run that broke off has brought is not read again.
//!
//! Who may have what (L8): a signed catalogue may say that a repository has what is held already. An unsigned one may
//! not: there it counts what its archive really brought, what the repository has already, and what is public here.

use std::collections::{BTreeSet, HashMap, HashSet};

use bytes::Bytes;
use serde_json::Value;

use super::BUFFER;
use super::archive::{Kind, Reader};
use super::catalog::{Blob, Catalog, Image, Part, Referrers};
use super::error::BundleError;
use super::input::{self, Input};
use super::inspect::{Head, read_head};
use super::report::{ImageRow, Outcome, Report};
use super::sign::{self, PublicKey};
use super::unpack::Limits as UnpackLimits;
use super::walk::reach;
use crate::oci::Digest;
use crate::oci::manifest::{MAX_MANIFEST_BYTES, Manifest, ManifestError};
use crate::store::{
    Hashing, Keep, ListKey, ListRecord, Reveal, RevealError, Store, StoreError, TagRecord, Writer, unix_ms,
};

/// How far a sender's clock may be ahead of this one, milliseconds. A date beyond that is nobody's honest date.
const CLOCK_SKEW_MS: u64 = 5 * 60 * 1000;

/// A date as it counts here: one from the future is no older and no newer than now. Taken as it is, it would make every
/// later bundle an older one, until that date comes.
fn plausible_ms(date_ms: u64, now_ms: u64) -> u64 {
    match date_ms > now_ms.saturating_add(CLOCK_SKEW_MS) {
        true => now_ms,
        false => date_ms,
    }
}

/// When a tag that is here was last confirmed. A date from the future, recorded by an earlier release or before the clock
/// was set back, says nothing: it must not hold back what comes.
fn recorded_ms(date_ms: u64, now_ms: u64) -> u64 {
    match date_ms > now_ms.saturating_add(CLOCK_SKEW_MS) {
        true => 0,
        false => date_ms,
    }
}

/// How to take a bundle in.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Whose signatures count.
    pub keys: Vec<PublicKey>,
    /// Take one that nobody signed, or somebody unknown.
    pub unsigned: bool,
    /// Move tags back to what an older bundle says.
    pub older: bool,
    /// In place of the store's own limit, bytes; for a folder at rest.
    pub max_size: Option<u64>,
    /// Bytes that a manifest may have (`limits.manifest_size`); `None`: as many as any may.
    pub manifest_size: Option<usize>,
    /// Descriptors that a manifest may have (`limits.manifest_descriptors`); `None`: any number.
    pub manifest_descriptors: Option<usize>,
}

/// [`import`] for a stream that may be compressed by gzip or zstd.
pub fn import_stream(store: &Store, stream: Box<dyn Input>, options: &Options) -> Result<Report, BundleError> {
    let mut input = input::unpacked(stream, UnpackLimits::STREAMS).map_err(BundleError::reading)?;
    import(store, &mut *input, options, &mut |_| {})
}

/// Takes a bundle in. Blocking. Memory: the catalogue, one buffer and one manifest. `told` gets the bytes of content
/// that have passed.
///
/// Errors: it is refused, and nothing of it is kept; or it broke off, and what came is kept for the next attempt.
/// Damaged blobs are no error but in the report.
pub fn import(
    store: &Store,
    input: &mut dyn Input,
    options: &Options,
    told: &mut dyn FnMut(u64),
) -> Result<Report, BundleError> {
    let mut reader = Reader::new(input);
    let head = read_head(&mut reader)?;
    let signer = trust(&head, options)?;
    let catalog = Catalog::from_bytes(&head.catalog)?;
    let id = Catalog::id(&head.catalog);
    let mut run = Run::new(store, catalog, id, signer.is_some(), options)?;
    run.check_manifests(options)?;
    run.check_room(options)?;
    let private = run.catalog.images.iter().filter(|image| image.private);
    let marked = store.announce_private(private.map(|image| image.repository.as_str()));
    match run.read(&mut reader, head, told) {
        Ok(seen) => {
            store.confirm_private(&marked);
            let mut report = run.show(options, seen, signer)?;
            report.bundle = id.to_string();
            Ok(report)
        }
        Err(error) => {
            let keep = !matches!(
                error,
                BundleError::Hostile(_) | BundleError::NotABundle(_) | BundleError::Bad(_)
            );
            run.leave(keep);
            // What is kept may be gone on with, by another run; until then the marks are on the safe side.
            match keep {
                true => store.confirm_private(&marked),
                false => store.withdraw_private(&marked),
            }
            Err(error)
        }
    }
}

/// Who signed it; `None` for one that is taken without.
pub fn trust(head: &Head, options: &Options) -> Result<Option<PublicKey>, BundleError> {
    let refused = |why: &str| Err(BundleError::Signature(why.to_owned()));
    match &head.signature {
        Some(signature) if !options.keys.is_empty() => sign::verify(&head.catalog, signature, &options.keys).map(Some),
        _ if options.unsigned => Ok(None),
        Some(_) => refused(
            "no key is trusted here, so its signature says nothing: name the sender's .pub file by --key or in bundle.trusted_keys, or take it as it is with --unsigned",
        ),
        None => refused("it is not signed: if you know where it is from, take it as it is with --unsigned"),
    }
}

/// A blob that comes in pieces, or that is just coming.
struct Coming {
    blob: usize,
    writer: Writer,
    /// What was there before this run.
    resumed: bool,
}

struct Run<'a> {
    store: &'a Store,
    catalog: Catalog,
    /// Owns the staged bytes: those that an upstream or another bundle sent prove nothing here (L11).
    owner: String,
    trusted: bool,
    manifest_descriptors: usize,
    omitted: BTreeSet<Digest>,
    keeps: Vec<Keep>,
    coming: Option<Coming>,
    /// Committed by this run.
    fresh: Vec<Digest>,
    /// Whose bytes this archive has shown.
    proven: HashSet<Digest>,
    /// The pieces so far of a blob that has to show its bytes.
    proof: Option<(usize, Hashing)>,
    damaged: Vec<Digest>,
    fresh_bytes: u64,
    held: usize,
    held_bytes: u64,
    buffer: Vec<u8>,
}

impl<'a> Run<'a> {
    fn new(
        store: &'a Store,
        catalog: Catalog,
        id: Digest,
        trusted: bool,
        options: &Options,
    ) -> Result<Run<'a>, BundleError> {
        let omitted = catalog.omitted.digests()?;
        // What is here already may not go while the rest comes.
        let digests = omitted.iter().chain(catalog.blobs.iter().map(|blob| &blob.digest));
        let keeps = digests.filter_map(|digest| store.keep(digest)).collect();
        Ok(Run {
            store,
            catalog,
            owner: id.to_string(),
            trusted,
            manifest_descriptors: options.manifest_descriptors.unwrap_or(usize::MAX),
            omitted,
            keeps,
            coming: None,
            fresh: Vec::new(),
            proven: HashSet::new(),
            proof: None,
            damaged: Vec::new(),
            fresh_bytes: 0,
            held: 0,
            held_bytes: 0,
            buffer: vec![0; BUFFER],
        })
    }

    /// Before a byte is written: what the catalogue says of a manifest's size is what comes, or it is refused.
    fn check_manifests(&self, options: &Options) -> Result<(), BundleError> {
        let limit = options.manifest_size.unwrap_or(MAX_MANIFEST_BYTES) as u64;
        let mut large = self
            .catalog
            .blobs
            .iter()
            .filter(|blob| blob.is_manifest() && blob.size > limit);
        match large.find(|blob| !self.is_held(blob)) {
            Some(blob) => {
                let error = ManifestError::TooLarge {
                    found: blob.size,
                    is_exact: true,
                    limit,
                };
                Err(BundleError::hostile(format!(
                    "{} is a manifest, but {error}",
                    blob.digest
                )))
            }
            None => Ok(()),
        }
    }

    /// Before a byte is written.
    fn check_room(&self, options: &Options) -> Result<(), BundleError> {
        let missing = self.catalog.blobs.iter().filter(|blob| !self.is_held(blob));
        // Whatever a catalogue says: it is compared, and nothing is wrapped into little.
        let on_disk = |size: u64| size.div_ceil(4096).saturating_mul(4096);
        let needed = missing.fold(0u64, |sum, blob| sum.saturating_add(on_disk(blob.size)));
        let room = self.store.room(options.max_size);
        match needed > room {
            true => Err(BundleError::NoRoom { needed, room }),
            false => Ok(()),
        }
    }

    fn is_held(&self, blob: &Blob) -> bool {
        self.store.size(&blob.digest) == Some(blob.size)
    }

    /// Everything there is. Returns the numbers of the volumes that were there.
    fn read(
        &mut self,
        reader: &mut Reader<'_>,
        mut head: Head,
        told: &mut dyn FnMut(u64),
    ) -> Result<BTreeSet<u32>, BundleError> {
        let mut seen = BTreeSet::new();
        let id = Catalog::id(&head.catalog);
        loop {
            let volume = head.volume(self.catalog.volumes)?;
            if !seen.insert(volume) {
                return Err(BundleError::hostile(format!("volume {volume} comes twice")));
            }
            for part in self.catalog.parts(volume) {
                self.expect(reader, &part)?;
                self.take(reader, &part)?;
                told(part.size);
            }
            if let Some(entry) = reader.entry()? {
                let name = entry.name;
                return Err(BundleError::hostile(format!(
                    "{name:?} is not in its catalogue, or for the second time"
                )));
            }
            if !reader.more()? {
                return Ok(seen);
            }
            if seen.len() as u64 >= u64::from(self.catalog.volumes) {
                return reader.end().map(|()| seen);
            }
            head = read_head(reader)?;
            if Catalog::id(&head.catalog) != id {
                return Err(BundleError::Bad(
                    "the volumes are not of one bundle: their catalogues differ".to_owned(),
                ));
            }
        }
    }

    fn expect(&self, reader: &mut Reader<'_>, part: &Part) -> Result<(), BundleError> {
        let expected = format!("{:?} of {} bytes, as its catalogue says", part.name, part.size);
        match reader.entry()? {
            Some(entry) if entry.kind == Kind::File && entry.name == part.name && entry.size == part.size => Ok(()),
            Some(entry) => Err(BundleError::hostile(format!(
                "found {:?} of {} bytes, expected {expected}",
                entry.name, entry.size
            ))),
            None => Err(BundleError::hostile(format!("found its end, expected {expected}"))),
        }
    }

    fn take(&mut self, reader: &mut Reader<'_>, part: &Part) -> Result<(), BundleError> {
        let blob = self.catalog.blobs[part.blob].clone();
        if self.is_held(&blob) {
            return self.pass(reader, &blob, part);
        }
        if let Some(media_type) = &blob.media_type {
            return self.take_manifest(reader, &blob, media_type);
        }
        if !self.begin(part, &blob)? {
            return Ok(());
        }
        loop {
            let outcome = self.fill(reader, part, &blob)?;
            let Some(coming) = self.coming.take_if(|_| part.offset + part.size == blob.size) else {
                return Ok(());
            };
            let resumed = coming.resumed;
            match outcome.then(|| self.commit(coming, &blob)) {
                Some(Err(StoreError::Mismatch(_))) => {
                    // What an earlier run left may have been wrong, and this archive right.
                    let whole = part.offset == 0 && resumed && reader.again(part.size)?;
                    if whole && self.begin(part, &blob)? {
                        continue;
                    }
                    self.damaged.push(blob.digest);
                }
                Some(committed) => committed?,
                None => {}
            }
            return Ok(());
        }
    }

    /// A blob that is held. One that no trusted key signed has to show its bytes all the same. Those that everybody may
    /// have are not read where they can be passed over; where they come anyway, false ones are reported.
    fn pass(&mut self, reader: &mut Reader<'_>, blob: &Blob, part: &Part) -> Result<(), BundleError> {
        if part.offset == 0 {
            self.held += 1;
            self.held_bytes += blob.size;
        }
        if self.trusted || (reader.skips_unread() && self.is_public(&blob.digest)) {
            return reader.skip(part.size);
        }
        let begun = self.proof.take().filter(|(of, _)| *of == part.blob);
        let mut hashing = begun.map_or_else(|| Hashing::new(blob.digest), |(_, hashing)| hashing);
        // Pieces prove something together only.
        if hashing.len() != part.offset {
            return reader.skip(part.size);
        }
        loop {
            match reader.read(&mut self.buffer)? {
                0 => break,
                count => hashing.update(&self.buffer[..count]),
            }
        }
        if part.offset + part.size < blob.size {
            self.proof = Some((part.blob, hashing));
            return Ok(());
        }
        match hashing.verify() {
            Ok(()) => {
                self.proven.insert(blob.digest);
            }
            Err(_) => self.damaged.push(blob.digest),
        }
        Ok(())
    }

    fn is_public(&self, digest: &Digest) -> bool {
        let links = self.store.links(digest);
        links.iter().any(|repository| !self.store.is_private(repository))
    }

    /// Whether the part's bytes are to be appended to what is coming.
    fn begin(&mut self, part: &Part, blob: &Blob) -> Result<bool, BundleError> {
        let repository = &self.catalog.images[blob.image as usize].repository;
        if self.coming.as_ref().is_some_and(|coming| coming.blob != part.blob) {
            // Its next piece is in a volume that is not here.
            self.coming = None;
        }
        if self.coming.is_none() {
            let mut writer = match self.store.stage_for(&self.owner, repository, &blob.digest) {
                // Another import brings it at this moment: it will be here, or missing, at the end.
                Err(StoreError::Busy(_)) => return Ok(false),
                staged => staged?,
            };
            if writer.len() > blob.size {
                writer.restart()?;
            }
            // The catalogue is a claim as well: room is made as the bytes come.
            writer.expect(blob.size)?;
            self.coming = Some(Coming {
                blob: part.blob,
                resumed: !writer.is_empty(),
                writer,
            });
        }
        // A piece whose predecessor is not here is of no use yet.
        Ok(self
            .coming
            .as_ref()
            .is_some_and(|coming| coming.writer.len() >= part.offset))
    }

    /// Appends what is not staged yet. `false`: the blob did not come whole.
    fn fill(&mut self, reader: &mut Reader<'_>, part: &Part, blob: &Blob) -> Result<bool, BundleError> {
        let Some(coming) = &mut self.coming else {
            return Ok(false);
        };
        reader.skip(coming.writer.len() - part.offset)?;
        loop {
            let most = usize::try_from(reader.left()).unwrap_or(usize::MAX).min(BUFFER);
            let mut piece = vec![0; most];
            match reader.fill(&mut piece)? {
                0 => return Ok(coming.writer.len() >= blob.size),
                _ => coming.writer.append(&[Bytes::from(piece)])?,
            };
        }
    }

    fn commit(&mut self, coming: Coming, blob: &Blob) -> Result<(), StoreError> {
        let repository = self.catalog.images[blob.image as usize].repository.clone();
        let mut writer = coming.writer;
        writer.verify()?;
        writer.commit_unseen(&repository)?;
        self.arrived(blob);
        Ok(())
    }

    fn take_manifest(&mut self, reader: &mut Reader<'_>, blob: &Blob, media_type: &str) -> Result<(), BundleError> {
        let bytes = Bytes::from(reader.all(MAX_MANIFEST_BYTES as u64)?);
        if crate::store::verify(&blob.digest, &bytes).is_err() {
            self.damaged.push(blob.digest);
            return Ok(());
        }
        let manifest = Manifest::parse_within(&bytes, Some(media_type), self.manifest_descriptors)
            .map_err(|error| BundleError::hostile(format!("{} is called a manifest, but {error}", blob.digest)))?;
        let children: Vec<Digest> = manifest.descriptors.iter().map(|child| child.digest).collect();
        let repository = &self.catalog.images[blob.image as usize].repository;
        self.store
            .put_manifest_unseen(repository, &blob.digest, &manifest.media_type, &children, &bytes)?;
        self.arrived(blob);
        Ok(())
    }

    fn arrived(&mut self, blob: &Blob) {
        self.keeps.extend(self.store.keep(&blob.digest));
        self.proven.insert(blob.digest);
        self.fresh.push(blob.digest);
        self.fresh_bytes += blob.size;
    }

    /// Ends before the end.
    fn leave(mut self, keep: bool) {
        let coming = self.coming.take();
        self.keeps.clear();
        if !keep {
            if let Some(coming) = coming {
                coming.writer.cancel();
            }
            self.store.drop_unseen(&self.fresh);
        }
    }

    fn show(
        mut self,
        options: &Options,
        seen: BTreeSet<u32>,
        signer: Option<PublicKey>,
    ) -> Result<Report, BundleError> {
        self.coming = None;
        let images = std::mem::take(&mut self.catalog.images);
        let known: HashMap<Digest, &Blob> = self.catalog.blobs.iter().map(|blob| (blob.digest, blob)).collect();
        let mut rows = Vec::new();
        for image in &images {
            rows.push(self.show_image(image, &known, options)?);
        }
        // The last of it may not be lost with a crash after the answer.
        self.store.settle();
        let volumes = self.catalog.volumes;
        Ok(Report {
            bundle: String::new(),
            created_ms: self.catalog.created_ms,
            signed_by: signer.map(|key| key.to_text()),
            since: self.catalog.since.as_ref().map(|since| since.digest.to_string()),
            images: rows,
            new_blobs: self.fresh.len(),
            new_bytes: self.fresh_bytes,
            held_blobs: self.held,
            held_bytes: self.held_bytes,
            damaged: self.damaged.iter().map(ToString::to_string).collect(),
            missing_volumes: (1..=volumes).filter(|volume| !seen.contains(volume)).collect(),
            volumes,
            unserved: Vec::new(),
            not_taken: Vec::new(),
        })
    }

    fn show_image(
        &self,
        image: &Image,
        known: &HashMap<Digest, &Blob>,
        options: &Options,
    ) -> Result<ImageRow, BundleError> {
        let referrers = image.referrers.iter().flat_map(|list| &list.items);
        let referrers = referrers.filter_map(|item| item["digest"].as_str()?.parse().ok());
        let roots: Vec<Digest> = std::iter::once(image.digest).chain(referrers).collect();
        let absent: HashSet<Digest> = image.absent.iter().copied().collect();
        let parts = reach(self.store, &roots, &absent);
        let may = |digest: &Digest| {
            let told = known.contains_key(digest) || self.omitted.contains(digest);
            self.store.size(digest).is_some()
                && ((self.trusted && told)
                    || self.store.linked(&image.repository, digest)
                    || self.proven.contains(digest)
                    || self.is_public(digest))
        };
        let missing: Vec<Digest> = parts.iter().filter(|digest| !may(digest)).copied().collect();
        let before = match &image.tag {
            Some(tag) => self.store.tag(&image.repository, tag),
            None => None,
        };
        let mut row = ImageRow {
            name: image.name(),
            digest: image.digest.to_string(),
            before: before.as_ref().map(|record| record.digest.to_string()),
            outcome: Outcome::Incomplete,
            missing: missing.iter().map(ToString::to_string).collect(),
        };
        if !missing.is_empty() {
            return Ok(row);
        }
        let now_ms = unix_ms();
        let checked_ms = plausible_ms(image.checked_ms.unwrap_or(now_ms), now_ms);
        let (here, moved) = match &before {
            Some(record) => (recorded_ms(record.checked_ms, now_ms), record.digest != image.digest),
            None => (0, false),
        };
        if moved && here > checked_ms && !options.older {
            row.outcome = Outcome::Older;
            return Ok(row);
        }
        let is_new = match image.tag {
            Some(_) => before.is_none(),
            None => !self.store.linked(&image.repository, &image.digest),
        };
        row.outcome = match (is_new, moved) {
            (true, _) => Outcome::New,
            (_, true) => Outcome::Moved,
            _ => Outcome::Unchanged,
        };
        if image.private {
            self.store.set_private(&image.repository, true);
        }
        let record = image.tag.as_ref().map(|_| TagRecord {
            digest: image.digest,
            media_type: image.media_type.as_str().into(),
            size: image.size,
            checked_ms: if moved { checked_ms } else { checked_ms.max(here) },
            moves: Vec::new(),
        });
        let lists = image.referrers.iter().map(|list| {
            let record = match list.checked_ms {
                0 => self.joined(&image.repository, list),
                checked_ms => ListRecord::of_values(plausible_ms(checked_ms, now_ms), &list.items),
            };
            (list.subject, record)
        });
        let shown = self.store.reveal(Reveal {
            repository: &image.repository,
            reference: &image.reference(),
            digest: image.digest,
            record,
            parts: &parts,
            referrers: lists.collect(),
        });
        match shown {
            Ok(()) => {}
            Err(RevealError::Gone(digest)) => {
                row.outcome = Outcome::Incomplete;
                row.missing.push(digest.to_string());
            }
            Err(error @ RevealError::NotWritten) => return Err(BundleError::Bad(error.to_string())),
        }
        Ok(row)
    }
}

impl Run<'_> {
    /// A list that no registry confirmed, as archives of other tools have it: it adds to what is known here, and takes
    /// nothing away.
    fn joined(&self, repository: &str, list: &Referrers) -> ListRecord {
        let here = self.store.list(repository, &ListKey::Referrers(list.subject));
        let known = here.as_ref().and_then(|here| here.values().ok()).unwrap_or_default();
        let is_new = |item: &&Value| known.iter().all(|known| known["digest"] != item["digest"]);
        let more: Vec<Value> = list.items.iter().filter(is_new).cloned().collect();
        ListRecord::of_values(here.map_or(0, |here| here.checked_ms), &[known, more].concat())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever is recorded and whatever comes, no date beyond the clock is kept, and none holds back what was
        /// confirmed later than it could have been.
        #[test]
        fn dates_from_the_future_neither_stay_nor_win(date in any::<u64>(), here in any::<u64>(), now in 1..u64::MAX) {
            prop_assert!(plausible_ms(date, now) <= now.saturating_add(CLOCK_SKEW_MS));
            let (taken, after) = (plausible_ms(date, now), now.saturating_add(CLOCK_SKEW_MS));
            // A bundle that is made after the skew has passed is newer than whatever this one said.
            prop_assert!(recorded_ms(taken, after) <= plausible_ms(after, after));
            prop_assert!(recorded_ms(here, now) <= now.saturating_add(CLOCK_SKEW_MS));
            if date <= now {
                prop_assert_eq!(plausible_ms(date, now), date);
                prop_assert_eq!(recorded_ms(date, now), date);
            }
        }
    }
}
