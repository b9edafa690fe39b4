//! One world and one folder, from round to round: start, pulls, kill, damage, start, check.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;

use crate::clients::{self, Hit};
use crate::faults::Armed;
use crate::folder::{Damage, Folder};
use crate::server::{Server, Starting};
use crate::support::toml::Toml;
use crate::support::within;
use crate::tally::Tally;
use crate::world::{Item, World};

/// Who pull at once.
pub const MOST_CLIENTS: usize = 6;
/// Everything fits.
const ROOMY: u64 = 1 << 30;

pub struct Life {
    pub world: Arc<World>,
    pub folder: Folder,
    pub tally: Arc<Tally>,
    pub rng: Rng,
    /// Seen as a hit, and not known to have been evicted since.
    pub held: BTreeMap<Item, Hit>,
    /// `held` at the moment at which the index was saved.
    saved: Option<BTreeMap<Item, Hit>>,
    pub max_size: u64,
    /// Whether there was ever less room than the world needs.
    pub was_tight: bool,
    always_roomy: bool,
    /// Processes that were killed where they might have been evicting, and did not show that they were.
    pub interrupted: usize,
    /// Evictions of the running process that `held` knows of.
    pub evictions: u64,
}

/// How a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// After so many milliseconds, in the middle of everything.
    Kill(u64),
    /// When everybody has had what he wanted.
    KillIdle,
    Stop(u64),
}

impl Life {
    /// `always_roomy`: nothing is ever evicted, so nothing may ever be missing.
    pub async fn new(folder: Folder, tally: Arc<Tally>, mut rng: Rng, always_roomy: bool) -> Life {
        Life {
            world: Arc::new(World::new(&mut rng).await),
            folder,
            tally,
            rng,
            held: BTreeMap::new(),
            saved: None,
            max_size: ROOMY,
            was_tight: false,
            always_roomy,
            interrupted: 0,
            evictions: 0,
        }
    }

    pub fn is_roomy(&self) -> bool {
        self.max_size == ROOMY
    }

    /// One round. Gives the server that was started at its end, checked.
    pub async fn round(&mut self, server: Option<Server>, rng: Rng) -> Result<Server, String> {
        self.rng = rng;
        let server = match server {
            Some(server) => server,
            None => self.start().await?,
        };
        self.run(server).await?;
        self.at_rest()?;
        if self.rng.u8(..3) == 0 {
            self.folder.note("the index is saved");
            self.folder.save_index();
            self.saved = Some(self.held.clone());
        }
        let rebuilt = self.rng.u8(..4) == 0 && self.damage();
        self.change_limits();
        self.kill_early()?;
        let server = self.start().await?;
        if rebuilt {
            self.tally.add("indexes", "damaged or gone, and rebuilt", 1);
        }
        self.check(&server, rebuilt).await?;
        Ok(server)
    }

    async fn start(&mut self) -> Result<Server, String> {
        self.evictions = 0;
        self.configure();
        self.folder.note(&format!("start with {} bytes", self.max_size));
        Starting::spawn(&self.folder).ready().await
    }

    fn configure(&mut self) {
        let mut toml = Toml::new(&self.folder.cache(), &self.world.upstream);
        let ttl = if self.rng.bool() { "0s" } else { "1h" };
        toml.cache("max_size", format!("{}B", self.max_size))
            .cache("tag_ttl", ttl);
        toml.server("shutdown_grace", "200ms");
        std::fs::write(self.folder.home().join("proxy.toml"), toml.text()).expect("a configuration file");
    }

    fn change_limits(&mut self) {
        let is_tight = self.rng.bool() && !self.always_roomy;
        self.was_tight |= is_tight;
        self.max_size = if is_tight { self.rng.u64(6..16) << 20 } else { ROOMY };
    }

    /// Clients pull while the upstream misbehaves, until the end.
    async fn run(&mut self, server: Server) -> Result<(), String> {
        let ending = match self.rng.u8(..10) {
            0 => Ending::Stop(self.rng.u64(1..300)),
            1 | 2 => Ending::KillIdle,
            _ => Ending::Kill(self.rng.u64(1..500)),
        };
        self.world.evolve(&mut self.rng);
        let faults = Armed::new(&self.world.upstream, &mut self.rng, ending == Ending::KillIdle);
        let actions = if ending == Ending::KillIdle { 3 } else { 1000 };
        let mut pulling = tokio::task::JoinSet::new();
        for _ in 0..self.rng.usize(2..=MOST_CLIENTS) {
            let (world, tally, seed) = (self.world.clone(), self.tally.clone(), self.rng.u64(..));
            pulling.spawn(clients::pull(world, tally, server.registry, seed, actions));
        }
        let mut known_evictions = None;
        match ending {
            Ending::Kill(after) => {
                // Its tags move and its images come also while they are pulled.
                tokio::time::sleep(Duration::from_millis(after / 2)).await;
                self.world.evolve(&mut self.rng);
                tokio::time::sleep(Duration::from_millis(after - after / 2)).await;
                server.kill();
            }
            Ending::KillIdle => {
                self.gather(&mut pulling).await?;
                self.settle(&server).await?;
                known_evictions = Some(server.evictions().await);
                server.kill();
            }
            Ending::Stop(after) => {
                tokio::time::sleep(Duration::from_millis(after)).await;
                match server.stop().await {
                    Some(0) => {}
                    other => return Err(format!("a graceful stop ended with {other:?}")),
                }
            }
        }
        self.gather(&mut pulling).await?;
        for (kind, hits) in faults.disarm(&self.world.upstream) {
            self.tally.add("faults", kind, hits);
        }
        self.world.upstream.forget();
        let phase = match ending {
            Ending::Stop(_) => "none (stopped)",
            Ending::KillIdle => "idle",
            Ending::Kill(_) if self.folder.parts().is_empty() => "between transfers",
            Ending::Kill(_) => "in a transfer",
        };
        self.tally.add("kills", phase, 1);
        self.interrupted += usize::from(!self.is_roomy());
        self.folder.note(&format!("ended by {ending:?}, {phase}"));
        self.tally
            .add("evictions", "seen at idle kills", known_evictions.unwrap_or_default());
        self.forgive(known_evictions.map(|all| all - self.evictions))
    }

    async fn gather(
        &mut self,
        pulling: &mut tokio::task::JoinSet<Result<Vec<(Item, Hit)>, String>>,
    ) -> Result<(), String> {
        while let Some(pulled) = within("clients to end", pulling.join_next()).await {
            for (item, hit) in pulled.map_err(|panic| format!("a client panicked: {panic}"))?? {
                let latest = self.held.entry(item).or_insert(hit);
                latest.asked = hit.asked.max(latest.asked);
                latest.place = hit.place.max(latest.place);
            }
        }
        Ok(())
    }

    /// Spoils the folder. Whether the index has to be built anew.
    fn damage(&mut self) -> bool {
        let (name, damage) = self.folder.damage(&mut self.rng);
        self.tally.add("damage", name, 1);
        self.folder.note(&format!("damage: {name}"));
        match damage {
            Damage::Rubbish => {}
            Damage::OldIndex => {
                let then = self.saved.clone().unwrap_or_default();
                self.held.retain(|item, _| then.contains_key(item));
                for (item, hit) in &mut self.held {
                    hit.place = then.get(item).and_then(|hit| hit.place);
                }
            }
            // The copy may have links that are known here, and need not.
            Damage::NoIndex | Damage::IndexFromCopy => {
                self.held.clear();
                self.saved = None;
            }
        }
        damage == Damage::NoIndex
    }

    /// Kills in the middle of the start-up.
    fn kill_early(&mut self) -> Result<(), String> {
        if self.rng.u8(..6) != 0 {
            return Ok(());
        }
        for _ in 0..self.rng.usize(1..=3) {
            self.configure();
            let starting = Starting::spawn(&self.folder);
            std::thread::sleep(Duration::from_micros(self.rng.u64(..60_000)));
            starting.kill();
            self.folder.note("killed at start-up");
            self.tally.add("kills", "at start-up", 1);
            self.interrupted += usize::from(!self.is_roomy());
            self.forgive(None)?;
        }
        Ok(())
    }
}
