//! Open files against connections.

use rustix::process::{Resource, getrlimit};

use super::Finding;
use crate::config::Config;

const CHECK: &str = "open files";
/// The index, the log, listeners, upstreams, transfers.
const OWN: u64 = 256;

/// `pid`: of the proxy that runs, whose limit is the one that counts.
pub(super) fn check(config: &Config, pid: Option<u32>) -> Vec<Finding> {
    let of_proxy = pid.and_then(|pid| hard_limit(&std::fs::read_to_string(format!("/proc/{pid}/limits")).ok()?));
    let (whose, limit) = match of_proxy {
        Some(limit) => ("the proxy", limit),
        // `serve` raises the soft limit to the hard one.
        None => ("this shell", getrlimit(Resource::Nofile).maximum),
    };
    vec![judged(config.limits.max_connections as u64, whose, limit)]
}

/// A connection is one file, and what is sent over it often another.
fn judged(connections: u64, whose: &str, limit: Option<u64>) -> Finding {
    let wanted = connections.saturating_mul(2).saturating_add(OWN);
    let Some(limit) = limit.filter(|limit| *limit < wanted) else {
        return Finding::ok(CHECK, format!("enough for {connections} connections"));
    };
    let found = format!("{whose} may have {limit}, and limits.max_connections {connections} can take {wanted}");
    let advice = format!(
        "LimitNOFILE={wanted} in the unit, --ulimit nofile={wanted} for a container, or a lower limits.max_connections"
    );
    match limit <= connections {
        true => Finding::problem(CHECK, found).advice(advice),
        false => Finding::warning(CHECK, found).advice(advice),
    }
}

/// Of proc_pid_limits(5); the inner `None`: unlimited.
fn hard_limit(text: &str) -> Option<Option<u64>> {
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    let hard = line.split_whitespace().nth(1)?;
    match hard {
        "unlimited" => Some(None),
        number => Some(Some(number.parse().ok()?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::checkup::Level;

    #[test]
    fn files_for_connections() {
        let level = |limit| judged(1000, "x", limit).level;
        assert_eq!(level(None), Level::Ok);
        assert_eq!(level(Some(2256)), Level::Ok);
        assert_eq!(level(Some(2255)), Level::Warning);
        assert_eq!(level(Some(1000)), Level::Problem);
    }

    #[test]
    fn limits_of_a_process() {
        let text = "Limit     Soft Limit   Hard Limit   Units\nMax open files            1024                 4096                 files\n";
        assert_eq!(hard_limit(text), Some(Some(4096)));
        assert_eq!(hard_limit(&text.replace("4096", "unlimited")), Some(None));
        assert_eq!(hard_limit("nothing"), None);
    }
}
