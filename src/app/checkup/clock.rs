//! This machine's clock against those of the upstreams: tokens and certificates are good for a time.

use super::Finding;

const CHECK: &str = "clock";
/// Seconds.
const MUCH: i64 = 60;
const TOO_MUCH: i64 = 300;

/// Seconds by which this machine is ahead, as each upstream has it.
pub(super) fn check(offsets: &[i64]) -> Option<Finding> {
    let mut offsets = offsets.to_vec();
    offsets.sort_unstable();
    // One upstream whose own clock is wrong does not make this one wrong.
    let ahead = *offsets.get(offsets.len() / 2)?;
    let off = ahead.abs();
    let way = if ahead > 0 { "ahead of" } else { "behind" };
    let whom = match offsets.len() {
        1 => "the one upstream that was asked".to_owned(),
        n => format!("{n} upstreams"),
    };
    if off <= MUCH {
        return Some(Finding::ok(CHECK, format!("agrees with {whom}")));
    }
    let found = format!("this machine is {off} s {way} {whom}");
    let advice = "set it (timedatectl set-ntp true): tokens and certificates fail when the times differ";
    Some(match off > TOO_MUCH {
        true => Finding::problem(CHECK, found).advice(advice),
        false => Finding::warning(CHECK, found).advice(advice),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::checkup::Level;

    #[test]
    fn the_middle_one_counts() {
        assert!(check(&[]).is_none());
        let level = |offsets: &[i64]| check(offsets).unwrap().level;
        assert_eq!(level(&[0, 4000, 1]), Level::Ok);
        assert_eq!(level(&[61]), Level::Warning);
        assert_eq!(level(&[-61]), Level::Warning);
        assert_eq!(level(&[-301, -299]), Level::Warning);
        assert_eq!(level(&[-301, -302]), Level::Problem);
        assert!(check(&[400]).unwrap().found.contains("ahead of"));
    }
}
