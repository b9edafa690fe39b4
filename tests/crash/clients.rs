//! Those who pull, and what they make of every answer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use fastrand::Rng;
use larder::oci::Digest;

use crate::support::client::{Ask, Response};
use crate::tally::Tally;
use crate::world::{Item, What, World, pick};

/// An answer that is not a breach of anything.
#[derive(Clone, Debug)]
pub struct Seen {
    pub asked: SystemTime,
    pub status: u16,
    pub complete: bool,
    pub hit: bool,
    /// Fetched, and kept.
    /// For a tag: the place in its history that was answered; the lowest that it can have been.
    pub place: Option<usize>,
    /// Of what was answered.
    pub digest: Option<Digest>,
}

/// When something was last seen to be held, and for a tag what was answered.
#[derive(Clone, Copy, Debug)]
pub struct Hit {
    pub asked: SystemTime,
    pub place: Option<usize>,
}

/// How much of it is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Whole,
    Head,
    Range(u64, u64),
    /// Hangs up after so many bytes.
    Abort(usize),
}

/// Asks, and compares what comes with the truth. `None`: the server went away before it answered, or was left.
/// Error: a law is broken.
pub async fn ask(
    world: &World,
    tally: &Tally,
    to: SocketAddr,
    item: &Item,
    part: Part,
) -> Result<Option<Seen>, String> {
    let asked = SystemTime::now();
    let known = match &item.what {
        What::Tag(tag) => world.facts().moves(&item.repo, tag),
        _ => 0,
    };
    let ask = match part {
        Part::Head => Ask::head(item.path()).header("Connection", "close"),
        Part::Range(first, last) => Ask::get(item.path()).range(&format!("bytes={first}-{last}")),
        Part::Whole | Part::Abort(_) => Ask::get(item.path()),
    };
    let Ok(mut exchange) = ask.try_open(to).await else {
        return Ok(None);
    };
    if let Part::Abort(after) = part {
        exchange.read_at_least(after).await;
        exchange.abort();
        return Ok(None);
    }
    let response = exchange.rest().await;
    tally.add(
        "answers",
        &format!("{} {:?}", response.status, response.end).to_lowercase(),
        1,
    );
    let digest =
        judge(world, item, part, &response).map_err(|what| format!("{what}\n{item} {part:?}: {response:?}"))?;
    if response.is_complete() && response.status < 300 {
        tally.add("compared", "bytes", response.body.len() as u64);
    }
    let place = match (&item.what, digest) {
        (What::Tag(tag), Some(digest)) => world.facts().place(&item.repo, tag, &digest, known),
        _ => None,
    };
    Ok(Some(Seen {
        asked,
        status: response.status,
        complete: response.is_complete(),
        hit: response.header("cache-status") == Some("larder; hit"),
        place,
        digest,
    }))
}

/// The laws, for one answer. Gives the digest that was answered.
fn judge(world: &World, item: &Item, part: Part, response: &Response) -> Result<Option<Digest>, String> {
    let facts = world.facts();
    let served = matches!(response.status, 200 | 206);
    let known = item.digest().is_none_or(|digest| facts.holds(&item.repo, &digest));
    if served && !known {
        return Err("served through a repository that does not hold it (L8)".to_owned());
    }
    let may_lack = item.digest().is_some_and(|digest| facts.may_lack(&item.repo, &digest));
    if response.status == 404 && !may_lack {
        return Err("not found, but it is there (L3)".to_owned());
    }
    if !served || !response.is_complete() {
        return Ok(None);
    }
    let tag = match &item.what {
        What::Tags => {
            let tags: Vec<String> = serde_json::from_value(response.json()["tags"].clone()).unwrap_or_default();
            return match facts.was_list(&item.repo, &tags) {
                true => Ok(None),
                false => Err(format!("a list of tags that never was: {tags:?}")),
            };
        }
        What::Tag(tag) => Some(tag),
        What::Blob(_) | What::Manifest(_) => None,
    };
    let said = response
        .header("docker-content-digest")
        .and_then(|text| text.parse().ok());
    let Some(digest) = item.digest().or(said) else {
        return Err("no digest is told".to_owned());
    };
    if let Some(tag) = tag
        && !facts.was_target(&item.repo, tag, &digest)
    {
        return Err(format!("the tag never pointed at {digest}"));
    }
    drop(facts);
    let right = match part {
        Part::Head => true,
        Part::Range(first, last) if response.status == 206 => {
            let truth = world.bytes(&digest);
            let from = usize::try_from(first).unwrap_or(usize::MAX).min(truth.len());
            let upto = usize::try_from(last)
                .unwrap_or(usize::MAX)
                .saturating_add(1)
                .min(truth.len());
            response.body == truth[from..upto]
        }
        _ => Digest::sha256(&response.body) == digest,
    };
    match right {
        true => Ok(Some(digest)),
        false => Err(format!(
            "a complete answer with bytes that are not those of {digest} (L2)"
        )),
    }
}

/// Pulls this and that until the server is gone or it has had enough. Gives what may not be gone after that: what it
/// saw served as a hit, and every tag's manifest and list that it has had.
pub async fn pull(
    world: Arc<World>,
    tally: Arc<Tally>,
    to: SocketAddr,
    seed: u64,
    actions: usize,
) -> Result<Vec<(Item, Hit)>, String> {
    let mut rng = Rng::with_seed(seed);
    let mut on_disk = Vec::new();
    for _ in 0..actions {
        for (item, part) in wanted(&world, &mut rng) {
            match ask(&world, &tally, to, &item, part).await? {
                Some(seen) if seen.complete && seen.status < 300 && part != Part::Head => {
                    let hit = Hit {
                        asked: seen.asked,
                        place: seen.place,
                    };
                    // Tags and lists are on disk before they are answered, wherever they came from; the rest before
                    // it is a hit.
                    if seen.hit || matches!(item.what, What::Tag(_) | What::Tags) {
                        on_disk.push((item, hit));
                    }
                }
                Some(_) => {}
                None if matches!(part, Part::Abort(_)) => {}
                None => return Ok(on_disk),
            }
        }
    }
    Ok(on_disk)
}

/// What a client does next.
fn wanted(world: &World, rng: &mut Rng) -> Vec<(Item, Part)> {
    let facts = world.facts();
    match rng.u8(..10) {
        // An image, as a client pulls it; and once more.
        0..=3 => {
            let tag = facts.random_tag(rng);
            let What::Tag(name) = &tag.what else { return Vec::new() };
            let now = facts.current(&tag.repo, name);
            let mut asks = vec![(tag.clone(), if rng.bool() { Part::Head } else { Part::Whole })];
            if let Some(digest) = now {
                asks.push((Item::new(&tag.repo, What::Manifest(digest)), Part::Whole));
                let parts = facts.parts(&digest).into_iter();
                asks.extend(parts.map(|part| (Item::new(&tag.repo, What::Blob(part)), Part::Whole)));
            }
            let again = asks.clone();
            asks.extend(again.into_iter().filter(|_| rng.u8(..3) == 0));
            asks
        }
        4 | 5 => {
            let blob = facts.random_blob(rng);
            vec![(blob.clone(), Part::Whole), (blob, Part::Whole)]
        }
        6 => {
            let blob = facts.random_blob(rng);
            drop(facts);
            let size = blob.digest().map_or(1, |digest| world.size(&digest)).max(1);
            let first = rng.u64(..size);
            let last = first + rng.u64(..size);
            vec![(blob, Part::Range(first, last))]
        }
        7 => {
            let tag = facts.random_tag(rng);
            vec![(Item::new(&tag.repo, What::Tags), Part::Whole)]
        }
        8 => {
            let after = *pick(rng, &[0, 1, 5000, 500_000]);
            vec![(facts.random_blob(rng), Part::Abort(after))]
        }
        _ => facts
            .random_secret(rng)
            .map(|secret| (secret, Part::Whole))
            .into_iter()
            .collect(),
    }
}
