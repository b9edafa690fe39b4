//! The configuration: where it comes from, and what it warns of.

use super::Finding;
use crate::config::{Config, OPEN_FILE};

const CHECK: &str = "configuration";

pub(super) fn check(config: &Config) -> Vec<Finding> {
    let from = match config.sources.is_empty() {
        true => "no file and no variables: everything is as built in".to_owned(),
        false => config.sources.join(", "),
    };
    let mut findings = vec![Finding::ok(CHECK, from)];
    for warning in &config.warnings {
        let finding = Finding::warning(CHECK, warning.clone());
        // The others say themselves what helps.
        findings.push(match warning.contains(OPEN_FILE) {
            true => finding.advice("give the file to the user that runs larder, and chmod 600 it"),
            false => finding,
        });
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An address that is open is no file to close.
    #[test]
    fn each_warning_has_its_own_advice() {
        let config = Config::from_toml("[admin]\nlisten = \"0.0.0.0:5001\"\n").unwrap();
        let found = &check(&config)[1];
        assert!(found.found.contains("not a loopback address"), "{found:?}");
        assert_eq!(found.advice, None);
        let warnings = vec![format!("{OPEN_FILE} /etc/larder/secret; chmod o-r helps")];
        let found = &check(&Config { warnings, ..config })[1];
        assert!(
            found
                .advice
                .as_deref()
                .is_some_and(|advice| advice.contains("chmod 600")),
            "{found:?}"
        );
    }
}
