//! What must be true of a folder that was left in the middle of something.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::clients::Hit;
use crate::life::{Life, MOST_CLIENTS};
use crate::world::Item;

impl Life {
    /// While nobody runs.
    pub fn at_rest(&mut self) -> Result<(), String> {
        let bytes = self.folder.check_names()?;
        self.tally.add("compared", "bytes of files", bytes);
        // A commit that is overtaken by an eviction takes its link back at its end: each client may have had one of
        // them under way. More of them would be links that outlive their blobs, for whoever brings the same again (L8).
        let loose = self.folder.loose_links();
        self.tally.most("links", "most without a blob at a kill", loose as u64);
        if loose > MOST_CLIENTS {
            return Err(format!("{loose} links of what is not held (L8)"));
        }
        let du = self.folder.du();
        let over = du.sum().saturating_sub(self.max_size);
        self.tally.most("limit", "most bytes over it at a kill", over);
        // The index grows with what it writes down; room for that is made right after.
        match over <= du.index {
            true => Ok(()),
            false => Err(format!("{du:?}: {over} bytes more than the limit (L5)")),
        }
    }

    /// What was held and is not on disk any more must have been evicted. `evictions`: how many there were, if
    /// that is known.
    pub fn forgive(&mut self, evictions: Option<u64>) -> Result<(), String> {
        let present = self.folder.blobs();
        let is_gone = |item: &Item| item.digest().is_some_and(|digest| !present.contains_key(&digest));
        let gone: BTreeSet<_> = self
            .held
            .keys()
            .filter(|item| is_gone(item))
            .filter_map(Item::digest)
            .collect();
        let most = if self.is_roomy() { Some(0) } else { evictions };
        if let Some(most) = most.filter(|most| gone.len() as u64 > *most) {
            return Err(format!(
                "{gone:?} were held and are not on disk; only {most} were evicted (L6)"
            ));
        }
        // Gone for a while and back again: perhaps through another repository. Clocks of files are coarse.
        let margin = Duration::from_millis(20);
        let is_back = |item: &Item, hit: &Hit| {
            let since = item.digest().and_then(|digest| present.get(&digest));
            since.is_some_and(|since| hit.asked < *since + margin)
        };
        let is_roomy = self.is_roomy();
        self.held
            .retain(|item, hit| !is_gone(item) && (is_roomy || !is_back(item, hit)));
        Ok(())
    }
}
