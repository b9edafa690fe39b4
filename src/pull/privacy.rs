//! Whether a repository needs credentials, shown and not assumed (L8, R-X7).
//!
//! Where an upstream has no credentials of ours, and never had, everything is public. Where Larder shows it a client
//! certificate nothing is: asked as nobody, it would see the certificate all the same. Else the repository is asked once as
//! nobody, by HEAD (which costs nothing on Docker Hub, R-U31), or by a GET that is broken off after its headers where HEAD
//! is refused (R-U27): an answer shows that it is public, for a day; 401 and 403 of the registry show that it is not. A 404
//! shows nothing, since there may just be no such tag: for that question the repository counts as
//! private, and nothing is learned of it. While an upstream fails, what was learned last stands; unknown is private.

use std::sync::Arc;
use std::time::Duration;

use super::names::Target;
use super::{Pull, PullError};
use crate::store::{PUBLIC_FOR, ToNobody, unix_ms};
use crate::upstream::{Probe, UpstreamError};

/// How long a refusal is believed: who opens a repository to all does not want to wait for it.
const PRIVATE_FOR: Duration = Duration::from_secs(300);
/// How long nobody asks again after an answer that showed nothing.
pub(super) const IN_DOUBT_FOR: Duration = Duration::from_secs(10);

/// How long it is not looked at again whether there are credentials: as often as login files are.
pub(super) const JUST_NOW: Duration = Duration::from_secs(1);

/// Repositories that are looked at in one go.
const MARKED_AT_ONCE: usize = 1_000;

/// A question that showed nothing: about one thing (404), or the repository (its upstream failed).
pub(super) type Doubt = (Arc<str>, Option<Probe>);

impl Pull {
    /// Whether the repository needs credentials, where that is known without asking.
    pub fn needs_credentials_now(&self, target: &Target) -> Option<bool> {
        // Asked for every request: without locks and files, where that is possible.
        if self.public_just_now.get(&target.key) == Some(target.edition) {
            return Some(false);
        }
        let known = self.find_out_now(target);
        if known == Some(false) {
            self.public_just_now.insert(target.key.clone(), target.edition);
        }
        known
    }

    fn find_out_now(&self, target: &Target) -> Option<bool> {
        if target.upstream.client_cert.is_some() {
            return Some(true);
        }
        let client = self.upstream_of(target)?;
        if !self.store.had_credentials(&target.key) && !client.may_log_in(&target.repository) {
            return Some(false);
        }
        let shown = self.store.shown_to_nobody(&target.key)?;
        let believed = if shown.is_public { PUBLIC_FOR } else { PRIVATE_FOR };
        shown.is_younger_than(believed).then_some(!shown.is_public)
    }

    /// Marks what is cached of upstreams that know Larder by a client certificate: it may have come before there was one,
    /// or before that was a reason for a mark. Blocking.
    pub fn mark_certified(&self) {
        let policy = self.policy.load();
        for client in policy.clients.all().filter(|client| client.has_certificate()) {
            let prefix = format!("{}/", client.name());
            let mut last: Arc<str> = prefix.as_str().into();
            loop {
                let some = self.store.repositories(&last, MARKED_AT_ONCE);
                let held = some.iter().take_while(|name| name.starts_with(&prefix));
                let count = held.clone().count();
                for name in held {
                    self.store.set_private(name, true);
                    // Whoever asked as nobody showed the certificate.
                    if self.store.shown_to_nobody(name).is_some_and(|shown| shown.is_public) {
                        let shown = ToNobody {
                            is_public: false,
                            checked_ms: unix_ms(),
                        };
                        self.store.note_shown(name, shown);
                    }
                }
                match some.last() {
                    Some(end) if count == MARKED_AT_ONCE => last = end.clone(),
                    _ => break,
                }
            }
        }
    }

    /// The same, and asks the upstream if it has to: about what the caller asks for, once for all who wait.
    pub async fn needs_credentials(self: &Arc<Pull>, target: &Target, probe: &Probe) -> bool {
        if let Some(known) = self.needs_credentials_now(target) {
            return known;
        }
        let learned = self.store.shown_to_nobody(&target.key);
        let last = learned.is_none_or(|shown| !shown.is_public);
        let about_all: Doubt = (target.key.clone(), None);
        let about_this: Doubt = (target.key.clone(), Some(probe.clone()));
        if self.privacy_doubts.contains_key(&about_all) {
            return last;
        }
        if self.privacy_doubts.contains_key(&about_this) {
            return true;
        }
        let Ok(client) = self.client(target) else { return last };
        let (client, repository, asked) = (client.clone(), target.repository.clone(), probe.clone());
        let (store, key) = (self.store.clone(), target.key.clone());
        let mut pending = self
            .privacy_questions
            .join((target.scope(), asked.clone()), || async move {
                let said = client.shows_to_nobody(&repository, &asked).await;
                if let Ok(Some(is_public)) = said {
                    let shown = ToNobody {
                        is_public,
                        checked_ms: unix_ms(),
                    };
                    store.note_shown(&key, shown);
                }
                said.map_err(|error: UpstreamError| PullError::from(error))
            });
        let asking = pending.wait();
        let said = match learned {
            None => asking.await,
            // The question goes on; its answer is for those who come later.
            Some(_) => match tokio::time::timeout(self.patience(target).0, asking).await {
                Ok(said) => said,
                Err(_) => return last,
            },
        };
        match said {
            Ok(Some(is_public)) => !is_public,
            Ok(None) => {
                self.privacy_doubts.insert(about_this, ());
                true
            }
            // The question goes on, as above.
            Err(error) if error.is_late() => last,
            Err(error) => {
                tracing::debug!(repository = %target.key, %error, "whether it is public could not be asked");
                self.privacy_doubts.insert(about_all, ());
                last
            }
        }
    }
}
