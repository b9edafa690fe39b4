//! The configuration: where it comes from, and what it warns of.

use super::Finding;
use crate::config::Config;

const CHECK: &str = "configuration";

pub(super) fn check(config: &Config) -> Vec<Finding> {
    let from = match config.sources.is_empty() {
        true => "no file and no variables: everything is as built in".to_owned(),
        false => config.sources.join(", "),
    };
    let mut findings = vec![Finding::ok(CHECK, from)];
    for warning in &config.warnings {
        findings.push(
            Finding::warning(CHECK, warning.clone())
                .advice("give the file to the user that runs larder, and chmod 600 it"),
        );
    }
    findings
}
