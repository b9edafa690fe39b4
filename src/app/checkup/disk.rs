//! The folder and its file system: whether it takes what the limits promise.

use std::path::{Component, Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD};

use super::Finding;
use crate::admin::views::StatsView;
use crate::config::Config;
use crate::config::units::show_size;

const CHECK: &str = "disk";
/// Files that may be made, below which an operator should know: an image is ten or twenty.
const FEW_INODES: u64 = 10_000;

/// File systems that only show what a kernel knows; linux/magic.h has the numbers.
const KERNELS: [(u32, &str); 8] = [
    (0x9fa0, "proc"),
    (0x6265_6572, "sysfs"),
    (0x6367_7270, "cgroup2"),
    (0x0027_e0eb, "cgroup"),
    (0x6462_6720, "debugfs"),
    (0x7472_6163, "tracefs"),
    (0x1cd1, "devpts"),
    (0x7363_6673, "securityfs"),
];
/// PATH_MAX, its last byte left out.
const MOST_PATH_BYTES: usize = 4095;
/// `/blobs/sha512/` and 128 digits, and some more for names that are only there for a moment.
const LONGEST_BELOW: usize = 200;

/// A file system, in bytes.
#[derive(Clone, Copy, Debug)]
struct FileSystem {
    size: u64,
    /// For who is not root.
    free: u64,
    inodes: u64,
    inodes_free: u64,
    magic: u32,
}

pub(super) fn check(config: &Config, stats: Option<&StatsView>) -> Vec<Finding> {
    let path = &config.cache.path;
    let at = nearest(path);
    let mut findings = vec![folder(path, &at)];
    match measured(&at) {
        // The kernel's own have no room at all, which the finding about the folder says.
        Ok(system) if system.size == 0 => findings.extend(kind(system.magic)),
        Ok(system) => {
            findings.extend(kind(system.magic));
            findings.extend(room(config, &system, stats));
            findings.extend(inodes(&system));
        }
        Err(error) => findings.push(Finding::warning(
            CHECK,
            format!("{}: its room is not told: {error}", at.display()),
        )),
    }
    findings
}

/// The folder itself, or what there is of the way to it.
fn nearest(path: &Path) -> PathBuf {
    let there = path.ancestors().find(|path| path.symlink_metadata().is_ok());
    there.unwrap_or(Path::new("/")).to_owned()
}

fn folder(path: &Path, at: &Path) -> Finding {
    let shown = path.display();
    if !at.is_dir() {
        return Finding::problem(CHECK, format!("{} is no folder", at.display())).advice(format!(
            "cache.path is {shown}: take away what is there, or choose another"
        ));
    }
    if let Some(why) = impossible(path, at) {
        return Finding::problem(CHECK, format!("{shown} cannot be made: {why}")).advice("choose another cache.path");
    }
    let may = rustix::fs::accessat(CWD, at, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS);
    let who = rustix::process::geteuid().as_raw();
    match may {
        Ok(()) if at == path => Finding::ok(CHECK, format!("{shown} can be written by user {who}")),
        Ok(()) => Finding::ok(
            CHECK,
            format!("{shown} is not there yet, and can be made in {} by user {who}", at.display()),
        ),
        Err(error) => Finding::problem(CHECK, format!("user {who} cannot write in {}: {error}", at.display())).advice(
            format!("give {shown} to the user that runs larder, or ask as that user; under ProtectSystem= it has to be among ReadWritePaths= or be the StateDirectory="),
        ),
    }
}

/// Why a folder cannot be made below `at`, whoever tries; `None` where nothing is known against it.
fn impossible(path: &Path, at: &Path) -> Option<String> {
    let missing = path.strip_prefix(at).ok().filter(|rest| !rest.as_os_str().is_empty())?;
    if path.components().any(|part| part == Component::ParentDir) {
        return Some("there is .. in it, behind a folder that is not there".to_owned());
    }
    // Blobs lie some levels deeper, and are named by their digests.
    if path.as_os_str().len() + LONGEST_BELOW > MOST_PATH_BYTES {
        return Some(format!("it is longer than {} bytes", MOST_PATH_BYTES - LONGEST_BELOW));
    }
    let longest = missing.iter().map(|name| name.len() as u64).max().unwrap_or(0);
    if let Ok(system) = rustix::fs::statvfs(at)
        && longest > system.f_namemax
    {
        return Some(format!("a name in it is longer than {} bytes", system.f_namemax));
    }
    let magic = rustix::fs::statfs(at).map(|system| system.f_type as u32).ok()?;
    let (_, name) = KERNELS.iter().find(|(kind, _)| *kind == magic)?;
    Some(format!("{} is the kernel's ({name})", at.display()))
}

fn measured(at: &Path) -> rustix::io::Result<FileSystem> {
    let room = rustix::fs::statvfs(at)?;
    let kind = rustix::fs::statfs(at)?;
    Ok(FileSystem {
        size: room.f_blocks.saturating_mul(room.f_frsize),
        free: room.f_bavail.saturating_mul(room.f_frsize),
        inodes: room.f_files,
        inodes_free: room.f_favail,
        // Magic numbers have 32 bits, whatever the width of the field.
        magic: kind.f_type as u32,
    })
}

/// What of the file system an operator should know; statfs(2) has the numbers.
fn kind(magic: u32) -> Option<Finding> {
    let (name, lasts) = match magic {
        0x0102_1994 => ("tmpfs", false),
        0x8584_58f6 => ("ramfs", false),
        0x6969 => ("NFS", true),
        0xff53_4d42 => ("CIFS", true),
        0xfe53_4d42 => ("SMB", true),
        0x0102_1997 => ("9p", true),
        0x00c3_6400 => ("Ceph", true),
        0x0bd0_0bd0 => ("Lustre", true),
        0x6573_5546 => ("FUSE", true),
        0x794c_7630 => {
            let found = "the cache is in a container's own layer (overlay): it goes with the container";
            return Some(Finding::warning(CHECK, found).advice("mount a volume at cache.path"));
        }
        _ => return None,
    };
    Some(match lasts {
        false => Finding::warning(
            CHECK,
            format!("the cache is in memory ({name}): it is lost with the machine's next start"),
        )
        .advice("put cache.path on a disk, unless that is what you want"),
        true => Finding::note(CHECK, format!("the cache is on a file system of the network ({name})"))
            .advice("Larder counts on locks, fsync and rename; a local disk is faster and surer"),
    })
}

fn room(config: &Config, system: &FileSystem, stats: Option<&StatsView>) -> Vec<Finding> {
    let (max, keep) = (config.cache.max_size, config.cache.min_free);
    let used = stats.map_or(0, |stats| stats.used_bytes);
    let [size, free, max_shown, keep_shown] = [system.size, system.free, max, keep].map(rounded);
    let has = format!("the file system has {size}, {free} of them free");
    let wants = format!("max_size {max_shown} and min_free {keep_shown}");
    let finding = if system.free < keep {
        Finding::problem(
            CHECK,
            format!("{has}, and min_free is {keep_shown}: nothing new can be kept"),
        )
        .advice("make room on it: pulls pass through meanwhile")
    } else if max.saturating_add(keep) > system.size {
        Finding::warning(CHECK, format!("{wants} are more than there is: {has}"))
            .advice("lower cache.max_size, or the cache is at the mercy of what else fills that disk")
    } else if max.saturating_sub(used).saturating_add(keep) > system.free {
        Finding::note(CHECK, format!("{wants}; {has}: others have some of that room"))
            .advice("the cache stops growing where min_free begins; make room, or lower cache.max_size")
    } else {
        Finding::ok(CHECK, format!("{wants}; {has}"))
    };
    vec![finding]
}

fn inodes(system: &FileSystem) -> Option<Finding> {
    // Some file systems make them as they go, and count none.
    if system.inodes == 0 || system.inodes_free >= FEW_INODES {
        return None;
    }
    let found = format!("{} of {} inodes are free", system.inodes_free, system.inodes);
    let advice = "each blob is a file: make room, or make the file system with more inodes";
    Some(match system.inodes_free {
        0 => Finding::problem(CHECK, found).advice(advice),
        _ => Finding::warning(CHECK, found).advice(advice),
    })
}

/// In the largest unit of which there are ten: the rest is noise here.
fn rounded(bytes: u64) -> String {
    let shift = [40, 30, 20, 10].into_iter().find(|shift| bytes >> shift >= 10);
    shift.map_or_else(|| show_size(bytes), |shift| show_size(bytes >> shift << shift))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::checkup::Level;

    const SYSTEM: FileSystem = FileSystem {
        size: 100 << 30,
        free: 90 << 30,
        inodes: 1_000_000,
        inodes_free: 900_000,
        magic: 0xef53,
    };

    fn level(max: &str, system: FileSystem) -> Level {
        let config = Config::from_toml(&format!("[cache]\nmax_size = \"{max}\"\nmin_free = \"1GiB\"\n")).unwrap();
        room(&config, &system, None)[0].level
    }

    #[test]
    fn limits_against_the_disk() {
        assert_eq!(level("50GiB", SYSTEM), Level::Ok);
        assert_eq!(level("95GiB", SYSTEM), Level::Note);
        assert_eq!(level("100GiB", SYSTEM), Level::Warning);
        let full = FileSystem {
            free: 1 << 20,
            ..SYSTEM
        };
        assert_eq!(level("50GiB", full), Level::Problem);
        assert_eq!(rounded((25 << 30) + 12_345), "25GiB");
    }

    #[test]
    fn inodes_and_kinds() {
        assert!(inodes(&SYSTEM).is_none() && kind(SYSTEM.magic).is_none());
        let none = |inodes| FileSystem {
            inodes,
            inodes_free: 0,
            ..SYSTEM
        };
        assert_eq!(inodes(&none(10)).unwrap().level, Level::Problem);
        assert!(inodes(&none(0)).is_none());
        assert_eq!(kind(0x0102_1994).unwrap().level, Level::Warning);
        assert_eq!(kind(0x6969).unwrap().level, Level::Note);
    }

    #[test]
    fn a_folder_that_is_none_and_one_to_be_made() {
        let temporary = tempfile::tempdir().unwrap();
        let file = temporary.path().join("file");
        std::fs::write(&file, "").unwrap();
        let below = file.join("cache");
        assert_eq!(folder(&below, &nearest(&below)).level, Level::Problem);
        let new = temporary.path().join("a/b");
        assert_eq!(nearest(&new), temporary.path());
        let found = folder(&new, &nearest(&new));
        assert!(
            found.level == Level::Ok && found.found.contains("not there yet"),
            "{found:?}"
        );
        // Nobody can make these, root included.
        for (path, why) in [
            (Path::new("/proc/larder/cache").to_owned(), "is the kernel's (proc)"),
            (temporary.path().join("x".repeat(300)), "longer than 255 bytes"),
            (temporary.path().join("x/".repeat(2100)), "longer than 3895 bytes"),
            (temporary.path().join("none/../cache"), "there is .. in it"),
        ] {
            let found = folder(&path, &nearest(&path));
            assert!(found.level == Level::Problem && found.found.contains(why), "{found:?}");
        }
    }
}
