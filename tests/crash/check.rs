//! What must be true of a Larder that took over a folder that was left in the middle of something.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::clients::{Part, Seen, ask};
use crate::facts::staging_key;
use crate::life::Life;
use crate::server::Server;
use crate::support::DEADLINE;
use crate::support::upstream::On;
use crate::world::{Item, What};

/// Large blobs are compared in samples.
const LARGE_BYTES: u64 = 200_000;
const SAMPLE: usize = 5;

impl Life {
    /// After a start.
    pub async fn check(&mut self, server: &Server, rebuilt: bool) -> Result<(), String> {
        let outage = self.world.upstream.on(On::Any).always().status(503);
        self.settle(server).await?;
        self.check_held(server).await?;
        self.check_secrets(server, rebuilt).await?;
        outage.remove();
        self.world.upstream.clear_script();
        self.check_tags(server).await?;
        self.check_pulls(server).await?;
        let since = server.evictions().await - self.evictions;
        self.tally.add("evictions", "in checks", since);
        Ok(())
    }

    /// Until it counts what the disk counts.
    pub async fn settle(&mut self, server: &Server) -> Result<(), String> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let figures = server.figures().await;
            let du = self.folder.du();
            if figures.max_bytes != self.max_size {
                return Err(format!("the limit is {}, not {}", figures.max_bytes, self.max_size));
            }
            let leftovers = self.folder.staged();
            let tidy = leftovers.iter().all(|(name, _)| name.ends_with(".part"));
            // A limit that was lowered while the index was gone is kept once all blobs are found again.
            if figures.used_bytes == du.sum() && tidy && figures.used_bytes <= self.max_size {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!(
                    "counted: {figures:?}; on disk: {du:?}, {} bytes in all; staged: {leftovers:?} (L5, L6)",
                    du.sum()
                ));
            }
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    }

    /// While the upstream fails: what was held is served, but for what was evicted at the start.
    async fn check_held(&mut self, server: &Server) -> Result<(), String> {
        let mut items: Vec<Item> = self.held.keys().cloned().collect();
        self.rng.shuffle(&mut items);
        let (mut large, mut missing) = (0, Vec::new());
        for item in items {
            let Some(digest) = item.digest() else { continue };
            if self.world.size(&digest) > LARGE_BYTES {
                large += 1;
                if large > SAMPLE {
                    continue;
                }
            }
            let seen = self.ask(server, &item, Part::Whole).await?;
            if !(seen.hit && seen.status == 200 && seen.complete) {
                missing.push((item, seen));
            }
            // Once is enough to see that it was not for nothing; and each one costs a failing upstream's time.
            if missing.len() > 6 {
                break;
            }
            self.tally.add("items", "held before, and a hit after", 1);
        }
        let evictions = server.evictions().await;
        self.evictions = evictions;
        self.tally.add("evictions", "at start-up", evictions);
        let gone: BTreeSet<_> = missing.iter().filter_map(|(item, _)| item.digest()).collect();
        // An eviction is written down and then takes the file away, one after the other: each kill may have come
        // between the two of one. Nothing else that is in its place was evicted.
        let present = self.folder.blobs();
        let (left, gone): (Vec<_>, Vec<_>) = gone.into_iter().partition(|digest| present.contains_key(digest));
        let interrupted = self.interrupted;
        if left.len() > interrupted || gone.len() as u64 > evictions {
            return Err(format!(
                "held before the end, and not any more; {evictions} evictions, {interrupted} interrupted (L6): {missing:?}"
            ));
        }
        self.interrupted -= left.len();
        self.tally.add("evictions", "interrupted", left.len() as u64);
        let is_held = |digest| present.contains_key(&digest) && !left.contains(&digest);
        self.held.retain(|item, _| item.digest().is_none_or(is_held));
        self.check_held_tags(server).await
    }

    /// While the upstream fails: a tag is answered as before, or as it was later (L6).
    async fn check_held_tags(&mut self, server: &Server) -> Result<(), String> {
        let tags: Vec<(Item, usize)> = self
            .held
            .iter()
            .filter_map(|(item, hit)| Some((item.clone(), hit.place?)))
            .collect();
        let lists = self.held.keys().filter(|item| item.what == What::Tags);
        for item in lists.cloned().collect::<Vec<_>>() {
            self.fetch(server, &item).await?;
            self.tally.add("items", "lists answered as before", 1);
        }
        for (item, place) in tags {
            let What::Tag(_) = &item.what else { continue };
            let seen = self.ask(server, &item, Part::Whole).await?;
            match seen.place {
                Some(now) if now >= place => self.tally.add("items", "tags answered as before", 1),
                // Unless what it pointed at was evicted since, or there was no room to keep it.
                _ if self.was_tight && !self.has_target(server, &item, place).await? => continue,
                _ => {
                    return Err(format!(
                        "{item} was answered with place {place} of its history before the end; now {seen:?} (L6)"
                    ));
                }
            }
            // A HEAD promises what a GET gives (L3).
            let head = self.ask(server, &item, Part::Head).await?;
            if head.digest != seen.digest {
                return Err(format!("{item}: a GET gave {seen:?}, a HEAD promised {head:?} (L3)"));
            }
            if let Some(digest) = head.digest {
                self.fetch(server, &Item::new(&item.repo, What::Manifest(digest)))
                    .await?;
            }
        }
        Ok(())
    }

    /// While the upstream fails: whether what a tag pointed at can be had.
    async fn has_target(&self, server: &Server, tag: &Item, place: usize) -> Result<bool, String> {
        let target = self.world.facts().target(tag, place);
        let Some(digest) = target else {
            return Err(format!("{tag} has no place {place} in its history"));
        };
        let target = Item::new(&tag.repo, What::Manifest(digest));
        Ok(self.ask(server, &target, Part::Whole).await?.status == 200)
    }

    /// While the upstream fails: nobody is served what his repository has not shown (L8).
    async fn check_secrets(&mut self, server: &Server, rebuilt: bool) -> Result<(), String> {
        for _ in 0..2 {
            let secret = self.world.facts().random_secret(&mut self.rng);
            if let Some(secret) = secret {
                // `ask` knows that it must not be served.
                self.ask(server, &secret, Part::Whole).await?;
                self.tally.add("items", "secrets kept", 1);
            }
        }
        if rebuilt {
            // The links went with the index: who holds what has to be shown again.
            let present: Vec<_> = self.folder.blobs().into_keys().take(2).collect();
            for digest in present {
                let Some(item) = self.world.facts().owned(&digest) else {
                    continue;
                };
                let seen = self.ask(server, &item, Part::Whole).await?;
                if seen.status == 200 {
                    return Err(format!("{item} was served without a link and without an upstream (L8)"));
                }
            }
        }
        Ok(())
    }

    /// With an upstream that works: no tag leads nowhere.
    async fn check_tags(&mut self, server: &Server) -> Result<(), String> {
        for _ in 0..4 {
            let tag = self.world.facts().random_tag(&mut self.rng);
            let seen = self.ask(server, &tag, Part::Head).await?;
            let Some(digest) = seen.digest.filter(|_| seen.status == 200) else {
                return Err(format!("{tag} is not answered by an upstream that works: {seen:?}"));
            };
            self.fetch(server, &Item::new(&tag.repo, What::Manifest(digest)))
                .await?;
            self.fetch(server, &tag).await?;
            self.fetch(server, &Item::new(&tag.repo, What::Tags)).await?;
            self.tally.add("items", "tags that led somewhere", 1);
        }
        Ok(())
    }

    /// With an upstream that works: what was on its way can be had, and anything else.
    async fn check_pulls(&mut self, server: &Server) -> Result<(), String> {
        let parts = self.folder.parts();
        let mut wanted: Vec<Item> = {
            let facts = self.world.facts();
            let coming = parts.iter().filter_map(|key| facts.staged(key));
            let blobs = std::iter::repeat_with(|| facts.random_blob(&mut self.rng)).take(4);
            blobs.chain(coming).collect()
        };
        wanted.truncate(10);
        for item in wanted {
            // What is staged may have been spoilt by the upstream or the power cut. That shows at the end of it: the
            // answer ends short, and the next one is clean (L2).
            if item
                .digest()
                .is_some_and(|digest| parts.contains(&staging_key(&item.repo, &digest)))
            {
                let seen = self.ask(server, &item, Part::Whole).await?;
                let outcome = if seen.complete { "resumed" } else { "spoilt, begun anew" };
                self.tally.add("parts", outcome, 1);
            }
            self.fetch(server, &item).await?;
            self.tally.add("items", "pulled after", 1);
        }
        Ok(())
    }

    /// Must succeed.
    async fn fetch(&mut self, server: &Server, item: &Item) -> Result<(), String> {
        let seen = self.ask(server, item, Part::Whole).await?;
        match seen.status {
            200 if seen.complete => Ok(()),
            _ => Err(format!("{item} cannot be had: {seen:?}")),
        }
    }

    async fn ask(&self, server: &Server, item: &Item, part: Part) -> Result<Seen, String> {
        let seen = ask(&self.world, &self.tally, server.registry, item, part).await?;
        seen.ok_or_else(|| format!("{item}: larder went away by itself"))
    }
}
