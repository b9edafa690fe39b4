//! Webhooks: whether each can be reached, what it is to bring can be read, and what waits for it. Nothing is sent.

use std::time::Duration;

use super::{Finding, PATIENCE};
use crate::admin::views::{StatsView, WebhookView};
use crate::config::units::{show_duration, show_size};
use crate::config::{Config, Webhook};
use crate::upstream::courier;

pub(super) async fn check(config: &Config, stats: Option<&StatsView>, network: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    for hook in &config.webhooks {
        let running = stats.and_then(|stats| stats.webhooks.iter().find(|view| view.name == hook.name));
        findings.extend(one(hook, running, network).await);
    }
    findings
}

async fn one(hook: &Webhook, running: Option<&WebhookView>, network: bool) -> Vec<Finding> {
    let check = format!("webhook {}", hook.name);
    let mut findings = Vec::new();
    if let Some(why) = unreadable(hook) {
        findings.push(
            Finding::warning(&check, why).advice("give the file to the user that runs larder; events wait until then"),
        );
    }
    let waits = running.map_or_else(String::new, |view| format!("; {}", waiting(view)));
    if !network {
        findings.push(Finding::note(&check, format!("not asked{waits}")));
        return findings;
    }
    let (whom, what) = match &hook.proxy {
        None => (&hook.url, String::new()),
        Some(proxy) => (proxy, format!(", the proxy before {}", hook.url)),
    };
    let patience = hook.timeout.min(PATIENCE);
    findings.push(
        match courier::reach(whom.reveal(), hook.ca_file.as_deref(), patience).await {
            Ok(()) => Finding::ok(&check, format!("{whom}{what} can be reached{waits}")),
            Err(why) => Finding::warning(&check, format!("{whom}{what} cannot be reached: {why}{waits}"))
                .advice("is the address right, does the endpoint run, is its authority in ca_file? Events wait on disk until then"),
        },
    );
    if let Some(why) = running.and_then(|view| view.failing.as_ref()) {
        let advice = format!("larder webhook test {} tries it", hook.name);
        findings.push(Finding::warning(&check, format!("the last delivery failed: {why}")).advice(advice));
    }
    findings
}

fn unreadable(hook: &Webhook) -> Option<String> {
    let secret = hook.secret.as_ref().and_then(|secret| secret.read().err());
    secret.or_else(|| hook.all_headers().err())
}

fn waiting(view: &WebhookView) -> String {
    match view.oldest_seconds {
        None => "nothing waits".to_owned(),
        Some(seconds) => format!(
            "{} events wait ({}), the oldest since {}",
            view.queued_events,
            show_size(view.queued_bytes),
            show_duration(Duration::from_secs(seconds))
        ),
    }
}
