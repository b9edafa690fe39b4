//! What crossed the upstream's link, counted by the upstream itself.

use std::ops::Sub;

use serde::Serialize;

/// Requests by kind, and the bytes of manifests and blobs that were sent for them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Answered 401, with the way to a token.
    pub challenges: u64,
    pub tokens: u64,
    pub manifest_heads: u64,
    pub manifest_gets: u64,
    pub blob_heads: u64,
    /// Without a Range.
    pub blob_gets: u64,
    pub blob_ranges: u64,
    /// Tag lists, and whatever else was asked.
    pub other: u64,
    pub bytes: u64,
}

impl Tally {
    pub fn requests(&self) -> u64 {
        self.kinds().iter().map(|(count, _)| count).sum()
    }

    /// Requests for content: neither tokens nor the way to them.
    pub fn content_requests(&self) -> u64 {
        self.requests() - self.challenges - self.tokens
    }

    fn kinds(&self) -> [(u64, &'static str); 8] {
        [
            (self.challenges, "challenge"),
            (self.tokens, "token"),
            (self.manifest_heads, "manifest HEAD"),
            (self.manifest_gets, "manifest GET"),
            (self.blob_heads, "blob HEAD"),
            (self.blob_gets, "blob GET"),
            (self.blob_ranges, "blob GET with Range"),
            (self.other, "other"),
        ]
    }

    /// `1 token, 4 blob GET`
    pub fn words(&self) -> String {
        let kinds = self.kinds();
        let some = kinds.iter().filter(|(count, _)| *count > 0);
        let words: Vec<String> = some.map(|(count, kind)| format!("{count} {kind}")).collect();
        match words.is_empty() {
            true => "nothing".to_owned(),
            false => words.join(", "),
        }
    }
}

/// What came since an earlier count.
impl Sub for Tally {
    type Output = Tally;

    fn sub(self, earlier: Tally) -> Tally {
        Tally {
            challenges: self.challenges - earlier.challenges,
            tokens: self.tokens - earlier.tokens,
            manifest_heads: self.manifest_heads - earlier.manifest_heads,
            manifest_gets: self.manifest_gets - earlier.manifest_gets,
            blob_heads: self.blob_heads - earlier.blob_heads,
            blob_gets: self.blob_gets - earlier.blob_gets,
            blob_ranges: self.blob_ranges - earlier.blob_ranges,
            other: self.other - earlier.other,
            bytes: self.bytes - earlier.bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_and_words() {
        let before = Tally {
            tokens: 1,
            bytes: 10,
            ..Tally::default()
        };
        let after = Tally {
            tokens: 2,
            blob_gets: 3,
            bytes: 30,
            ..Tally::default()
        };
        let between = after - before;
        assert_eq!(between.words(), "1 token, 3 blob GET");
        assert_eq!(
            (between.requests(), between.content_requests(), between.bytes),
            (4, 3, 20)
        );
        assert_eq!((after - after).words(), "nothing");
    }
}
