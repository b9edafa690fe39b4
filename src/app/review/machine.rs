//! The disk and the paths of this machine, as far as the user who asks can see them.

use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD};
use serde::Serialize;

use super::Review;
use crate::config::units::show_size;
use crate::config::{Config, Listen};

/// The user who looks. Paths are for the user who runs the proxy; another one may do more or less with them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct User {
    pub uid: u32,
    /// `None`: the machine knows only the number.
    pub name: Option<String>,
}

impl User {
    /// The one of this process.
    pub fn of_process() -> User {
        let uid = rustix::process::geteuid().as_raw();
        let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        let name = users.lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
        });
        User { uid, name }
    }
}

/// `alice (uid 1000)`
impl std::fmt::Display for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{name} (uid {})", self.uid),
            None => write!(f, "uid {}", self.uid),
        }
    }
}

pub(super) fn check(review: &mut Review<'_>) {
    let config = review.config;
    let user = User::of_process();
    let path = &config.cache.path;
    if let Some(trouble) = folder_trouble(path, &user) {
        review.warn(
            &["cache", "path"],
            format!("{} cannot be used: {trouble}", path.display()),
        );
    }
    if let Ok(room) = rustix::fs::statvfs(nearest(path)) {
        let size = room.f_blocks.saturating_mul(room.f_frsize);
        check_size(review, size);
    }
    if let Some(audit) = &config.audit
        && let Some(trouble) = file_trouble(&audit.file, &user)
    {
        review.warn(
            &["audit", "file"],
            format!("{} cannot be written: {trouble}", audit.file.display()),
        );
    }
    for (key, path) in sockets(config) {
        let folder = path.parent().filter(|folder| !is_made_at_start(folder));
        if let Some(trouble) = folder.and_then(|folder| parent_trouble(folder, &user)) {
            let key: Vec<&str> = key.iter().map(String::as_str).collect();
            review.warn(&key, format!("the socket {} cannot be made: {trouble}", path.display()));
        }
    }
}

/// `size`: bytes of the file system; 0: it does not say.
fn check_size(review: &mut Review<'_>, size: u64) {
    if size == 0 {
        return;
    }
    let config = review.config;
    let cache = &config.cache;
    let (max_size, min_free) = (cache.max_size, cache.min_free);
    let has = format!(
        "the file system of {} has {} in all",
        cache.path.display(),
        show_gib(size)
    );
    if min_free >= size {
        review.warn(
            &["cache", "min_free"],
            format!(
                "{} is to stay free, and {has}: nothing can be cached",
                show_size(min_free)
            ),
        );
    }
    // The limit that is built in is one that `min_free` makes smaller, wherever it has to.
    if !review.is_given(&["cache", "max_size"]) {
        return;
    }
    if max_size > size {
        review.warn(
            &["cache", "max_size"],
            format!(
                "{} is more than there is, since {has}: only min_free bounds the cache",
                show_size(max_size)
            ),
        );
    } else if max_size.saturating_add(min_free) > size && min_free < size {
        review.warn(
            &["cache", "max_size"],
            format!(
                "{} and min_free, {}, are together more than there is, since {has}",
                show_size(max_size),
                show_size(min_free)
            ),
        );
    }
}

/// As people measure disks; exact below 10 GiB.
fn show_gib(bytes: u64) -> String {
    let shift = [40, 30, 20].into_iter().find(|shift| bytes >> shift >= 10);
    shift.map_or_else(|| show_size(bytes), |shift| show_size(bytes >> shift << shift))
}

/// The path itself, or what there is of the way to it.
fn nearest(path: &Path) -> PathBuf {
    let there = path.ancestors().find(|path| path.symlink_metadata().is_ok());
    there.unwrap_or(Path::new("/")).to_owned()
}

/// Returns true for a folder that is not there and may be made together with the proxy, as systemd does for
/// `RuntimeDirectory=`.
fn is_made_at_start(folder: &Path) -> bool {
    folder.starts_with("/run") && folder.symlink_metadata().is_err()
}

/// Why this user cannot use or make a folder.
fn folder_trouble(path: &Path, user: &User) -> Option<String> {
    write_trouble(&nearest(path), user)
}

/// Why this user cannot make something in a folder that has to be there.
fn parent_trouble(folder: &Path, user: &User) -> Option<String> {
    match folder.symlink_metadata() {
        Ok(_) => write_trouble(folder, user),
        Err(error) => Some(match error.kind() {
            std::io::ErrorKind::NotFound => format!("there is no folder {}", folder.display()),
            _ => format!("{}: {error} for {user}", folder.display()),
        }),
    }
}

/// Why this user cannot write a file, which is made if it is not there.
fn file_trouble(file: &Path, user: &User) -> Option<String> {
    if file.is_dir() {
        return Some("it is a folder".to_owned());
    }
    if file.exists() {
        let may = rustix::fs::accessat(CWD, file, Access::WRITE_OK, AtFlags::EACCESS);
        return may.err().map(|error| format!("{} for {user}", reason(error)));
    }
    parent_trouble(file.parent()?, user)
}

fn write_trouble(folder: &Path, user: &User) -> Option<String> {
    let shown = folder.display();
    if !folder.is_dir() {
        return Some(format!("{shown} is no folder"));
    }
    let may = rustix::fs::accessat(CWD, folder, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS);
    may.err()
        .map(|error| format!("{user} cannot write in {shown}: {}", reason(error)))
}

fn reason(error: rustix::io::Errno) -> String {
    match error {
        rustix::io::Errno::ACCESS | rustix::io::Errno::PERM => "permission denied".to_owned(),
        rustix::io::Errno::ROFS => "the file system is read-only".to_owned(),
        error => std::io::Error::from(error).to_string(),
    }
}

/// Sockets in the file system, with the keys that name them.
fn sockets(config: &Config) -> Vec<(Vec<String>, &Path)> {
    let admin = config.admin.listen.iter();
    let admin = admin.map(|at| (["admin", "listen"].map(str::to_owned).to_vec(), at));
    let further = config.listeners.iter().flat_map(|listener| {
        let key = ["listener", listener.name.as_str(), "listen"]
            .map(str::to_owned)
            .to_vec();
        listener.listen.iter().map(move |at| (key.clone(), at))
    });
    let paths = admin.chain(further).filter_map(|(key, at)| match at {
        Listen::Unix(path) => Some((key, path.as_path())),
        Listen::Tcp(_) => None,
    });
    paths.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn of_size(text: &str, size: u64) -> Vec<String> {
        let config = Config::from_toml(text).unwrap();
        let mut review = Review {
            config: &config,
            warnings: Vec::new(),
        };
        check_size(&mut review, size);
        review.warnings
    }

    #[test]
    fn limits_against_the_disk() {
        let limits = |max: &str, free: &str| format!("[cache]\nmax_size = {max:?}\nmin_free = {free:?}\n");
        for (text, size, wants) in [
            (limits("50GiB", "1GiB"), 100 * GIB, None),
            (limits("50GiB", "1GiB"), 0, None),
            (
                limits("50GiB", "1GiB"),
                40 * GIB,
                Some("proxy.toml:2: cache.max_size: 50GiB is more than there is"),
            ),
            (
                limits("50GiB", "1GiB"),
                50 * GIB,
                Some("proxy.toml:2: cache.max_size: 50GiB and min_free, 1GiB"),
            ),
            (
                limits("1GiB", "50GiB"),
                40 * GIB,
                Some("proxy.toml:3: cache.min_free: 50GiB is to stay free"),
            ),
            // Nobody chose it.
            (String::new(), 40 * GIB, None),
            (
                String::new(),
                GIB / 2,
                Some("default: cache.min_free: 1GiB is to stay free"),
            ),
        ] {
            let all = of_size(&text, size);
            match wants {
                Some(wants) => assert!(all.len() == 1 && all[0].starts_with(wants), "{wants}\n{all:#?}"),
                None => assert_eq!(all, [""; 0], "{text}"),
            }
        }
        assert_eq!(of_size(&limits("50GiB", "50GiB"), 40 * GIB).len(), 2);
        assert_eq!(show_gib((25 << 30) + 12_345), "25GiB");
    }

    #[test]
    fn paths_that_cannot_be() {
        let folder = tempfile::tempdir().unwrap();
        let user = User::of_process();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("file"), "").unwrap();
        std::os::unix::fs::symlink("nowhere", at("link")).unwrap();
        for good in ["", "a", "a/b"] {
            assert_eq!(folder_trouble(&at(good), &user), None, "{good}");
        }
        for bad in ["file", "file/a/b", "link"] {
            let trouble = folder_trouble(&at(bad), &user).unwrap();
            assert!(trouble.contains("is no folder"), "{trouble}");
        }
        assert_eq!(
            (file_trouble(&at("file"), &user), file_trouble(&at("new"), &user)),
            (None, None)
        );
        assert!(file_trouble(folder.path(), &user).unwrap().contains("it is a folder"));
        assert!(file_trouble(&at("a/b"), &user).unwrap().contains("there is no folder"));
        assert!(parent_trouble(&at("file"), &user).unwrap().contains("is no folder"));
        assert!(is_made_at_start(Path::new("/run/larder-that-is-not-there")) && !is_made_at_start(&at("a")));
        assert!(!is_made_at_start(Path::new("/run")));
        if user.uid == 0 {
            return;
        }
        // Root may write everywhere; `tests/it/config.rs` asks as somebody else.
        let trouble = folder_trouble(Path::new("/no-such-folder/x"), &user).unwrap();
        assert!(trouble.contains("cannot write in /: permission denied") && trouble.contains(&user.to_string()));
    }

    #[test]
    fn users_have_names() {
        let shown = |uid, name: Option<&str>| {
            let name = name.map(str::to_owned);
            User { uid, name }.to_string()
        };
        assert_eq!(shown(7, Some("lp")), "lp (uid 7)");
        assert_eq!(shown(7, None), "uid 7");
    }
}
