//! The token of the admin API that a proxy makes where none is configured: a file for its owner's eyes only.
//!
//! The proxy writes it at its start ([`TokenFile::write`]) and removes it when it stops. Commands find it by the port of
//! the admin address ([`find`]); [`TokenPlaces`] says in which folders. Whoever can read the file may operate the proxy,
//! so the file is never readable by others, not even for a moment, and a folder that another user made first is refused.
//!
//! Every step works on open folders and files, never on a path twice, so that nobody can exchange them in between. A
//! file is locked as long as its proxy lives; one that nobody locks was left by a crash and is replaced.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::{SecureRandom as _, SystemRandom};
use rustix::fs::{
    AtFlags, CWD, FileType, FlockOperation, Mode, OFlags, RenameFlags, Stat, fchmod, flock, fstat, linkat, mkdirat,
    open, openat, renameat_with, statat, unlinkat,
};
use rustix::io::Errno;
use rustix::process::geteuid;

use crate::config::{Secret, TOKEN_FILE_VARIABLE, TokenFolder, TokenPlaces, UserFolders, check_token, token_file_name};

/// What a token that was made here begins with, so that a file that a crash left is told from an operator's own.
const MADE: &str = "lra_";
/// Random bytes of a token.
const TOKEN_BYTES: usize = 32;
/// Longest file that is read, bytes.
const LONGEST: u64 = 4096;
/// Attempts to take the place of a file that a crash left, while others do the same.
const ATTEMPTS: usize = 4;
/// Pause between attempts to lock a file; much longer than a command holds its lock.
const A_LOOK: Duration = Duration::from_millis(20);
/// What group and others may do to a folder: write.
const WRITABLE_BY_OTHERS: u32 = 0o022;
/// In a folder where others may write: names belong to whoever made them.
const STICKY: u32 = 0o1000;

/// A new token. Errors: the system gives no random numbers.
pub fn make_token() -> Result<Secret, String> {
    let mut bytes = [0; TOKEN_BYTES];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.map_err(|_| "the system gives no random numbers".to_owned())?;
    Ok(Secret::new(format!("{MADE}{}", URL_SAFE_NO_PAD.encode(bytes))))
}

fn is_made(text: &str) -> bool {
    let random = text.strip_prefix(MADE).map(|rest| URL_SAFE_NO_PAD.decode(rest));
    matches!(random, Some(Ok(bytes)) if bytes.len() == TOKEN_BYTES)
}

/// The file that `$LARDER_ADMIN_TOKEN_FILE` names, if it holds a token that an operator wrote: it counts as configured,
/// and is neither replaced nor removed. `None`: there is none yet, or one that a proxy made.
///
/// Errors: another user may have put it there, or what it holds is no token.
pub fn given_file(places: &TokenPlaces) -> Result<Option<PathBuf>, String> {
    let Some(path) = places.file.as_ref() else {
        return Ok(None);
    };
    let told = |why: String| format!("{TOKEN_FILE_VARIABLE}: {}: {why}", path.display());
    match statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => {}
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(told(reason(error))),
    }
    check_trust(path).map_err(told)?;
    let file =
        openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(|error| told(reason(error)))?;
    let text = read_short(&mut File::from(file)).map_err(told)?;
    let text = text.trim_end_matches(['\r', '\n']);
    if is_made(text) {
        return Ok(None);
    }
    check_token(text).map_err(told)?;
    Ok(Some(path.clone()))
}

/// Links that are followed on the way to a file, as the kernel does.
const MAX_LINKS: usize = 40;

/// Holds if only this user and root can have said what is at this path: every name on the way is in a folder where
/// nobody else may write, or, in a folder with the sticky bit, belongs to one of the two. Links are followed one by one, as
/// the mounts of Kubernetes need it. In a folder that only the two may write, the file itself may belong to somebody
/// else, as secrets of Docker Compose do: the two have chosen whose it is.
///
/// Errors: what is wrong, with the path that it is wrong with.
fn check_trust(path: &Path) -> Result<(), String> {
    let uid = geteuid().as_raw();
    let is_ours = |found: &Stat| found.st_uid == uid || found.st_uid == 0;
    let named = statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW).map_err(reason)?;
    // Nobody else can make such a file, wherever it lies.
    if is_regular(&named) && named.st_uid == uid && named.st_nlink == 1 && named.st_mode & WRITABLE_BY_OTHERS == 0 {
        return Ok(());
    }
    let mut left: Vec<OsString> = path
        .components()
        .rev()
        .map(|part| part.as_os_str().to_owned())
        .collect();
    let mut at = PathBuf::from("/");
    let mut links = 0;
    while let Some(part) = left.pop() {
        if part == "/" {
            at = PathBuf::from("/");
            continue;
        }
        if part == "." {
            continue;
        }
        // Links are resolved by now, so that this is the folder above.
        if part == ".." {
            at.pop();
            continue;
        }
        let folder = statat(CWD, &at, AtFlags::SYMLINK_NOFOLLOW).map_err(reason)?;
        let next = at.join(&part);
        let found = statat(CWD, &next, AtFlags::SYMLINK_NOFOLLOW).map_err(reason)?;
        let shown = at.display();
        if !is_ours(&folder) {
            return Err(format!(
                "the folder {shown} belongs to uid {}, who could exchange the file",
                folder.st_uid
            ));
        }
        let is_shared = folder.st_mode & WRITABLE_BY_OTHERS != 0;
        if is_shared && folder.st_mode & STICKY == 0 {
            return Err(format!(
                "others may write into the folder {shown} (mode {:o})",
                folder.st_mode & 0o7777
            ));
        }
        if is_shared && !is_ours(&found) {
            return Err(format!(
                "others may write into the folder {shown}, and {} belongs to uid {}",
                next.display(),
                found.st_uid
            ));
        }
        match FileType::from_raw_mode(found.st_mode) {
            FileType::Symlink => {
                links += 1;
                if links > MAX_LINKS {
                    return Err("it leads through too many symbolic links".to_owned());
                }
                let target = std::fs::read_link(&next).map_err(|error| error.to_string())?;
                left.extend(target.components().rev().map(|part| part.as_os_str().to_owned()));
            }
            FileType::Directory if !left.is_empty() => at = next,
            FileType::RegularFile if left.is_empty() => {
                if found.st_mode & WRITABLE_BY_OTHERS != 0 {
                    return Err(format!("others may write it (mode {:o})", found.st_mode & 0o7777));
                }
                // Another name of a file whose contents everybody knows could be made by everybody.
                if is_shared && found.st_nlink != 1 {
                    return Err(format!(
                        "it has several names, and others may write into the folder {shown}"
                    ));
                }
                return Ok(());
            }
            _ => return Err(format!("{} is no file", next.display())),
        }
    }
    Err("it is no file".to_owned())
}

fn is_regular(found: &Stat) -> bool {
    FileType::from_raw_mode(found.st_mode) == FileType::RegularFile
}

/// A token on disk. Dropped, its file is gone.
#[derive(Debug)]
pub struct TokenFile {
    path: PathBuf,
    name: PathBuf,
    folder: OwnedFd,
    /// Keeps the lock that says that its proxy lives.
    file: File,
}

impl TokenFile {
    /// Writes the token for the admin address at `port`, in the first folder that can be used. Blocking.
    ///
    /// Errors: why each folder could not be used.
    pub fn write(places: &TokenPlaces, port: u16, token: &Secret) -> Result<TokenFile, Vec<String>> {
        if let Some(path) = &places.file {
            return write_named(path, token).map_err(|why| vec![format!("{TOKEN_FILE_VARIABLE}: {why}")]);
        }
        let name = PathBuf::from(token_file_name(port));
        let mut refused = Vec::new();
        for folder in places.to_write(geteuid().as_raw()) {
            let path = folder.path();
            let written = open_own(&folder)
                .map_err(|why| format!("{}: {why}", path.display()))
                .and_then(|open| write_in(open, &path, &name, token));
            match written {
                Ok(file) => return Ok(file),
                Err(why) => refused.push(why),
            }
        }
        Err(refused)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// True if its path still leads to it: folders of a session go with the session, and old files in `/tmp` are removed.
    pub fn is_there(&self) -> bool {
        let own = fstat(&self.file);
        let named = statat(CWD, &self.path, AtFlags::SYMLINK_NOFOLLOW);
        matches!((own, named), (Ok(own), Ok(named)) if is_same(&own, &named))
    }
}

impl Drop for TokenFile {
    /// Only the file that was made here goes: another one may have its name by now.
    fn drop(&mut self) {
        let own = fstat(&self.file);
        let named = statat(&self.folder, &self.name, AtFlags::SYMLINK_NOFOLLOW);
        if let (Ok(own), Ok(named)) = (own, named)
            && is_same(&own, &named)
        {
            let _ = unlinkat(&self.folder, &self.name, AtFlags::empty());
        }
    }
}

fn is_same(one: &Stat, other: &Stat) -> bool {
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}

/// `$LARDER_ADMIN_TOKEN_FILE`: its folder is the operator's choice, and is not made.
fn write_named(path: &Path, token: &Secret) -> Result<TokenFile, String> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(format!("{} is not the path of a file", path.display()));
    };
    let folder = open(
        parent,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|error| format!("{}: {}", parent.display(), reason(error)))?;
    write_in(folder, parent, Path::new(name), token)
}

/// Opens a folder of this user's, made if need be. Errors: why it cannot be used.
fn open_own(folder: &TokenFolder) -> Result<OwnedFd, String> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let uid = geteuid().as_raw();
    let opened = match folder {
        TokenFolder::Given(path) => open(path, flags, Mode::empty()).map_err(reason)?,
        TokenFolder::Below { parent, name } => {
            let parent = open(parent, flags, Mode::empty()).map_err(reason)?;
            let owner = fstat(&parent).map_err(reason)?.st_uid;
            // A session's folder that another user's session left in the environment (sudo, su) is not this one's.
            if owner != uid && owner != 0 {
                return Err(format!("the folder above it belongs to uid {owner}, not to uid {uid}"));
            }
            match mkdirat(&parent, name, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(reason(error)),
            }
            openat(&parent, name, flags | OFlags::NOFOLLOW, Mode::empty()).map_err(reason)?
        }
    };
    let found = fstat(&opened).map_err(reason)?;
    if found.st_uid != uid {
        return Err(format!("it belongs to uid {}, not to uid {uid}", found.st_uid));
    }
    if found.st_mode & WRITABLE_BY_OTHERS != 0 {
        return Err("other users may write there".to_owned());
    }
    Ok(opened)
}

/// Writes a draft that nobody else can open, locks it, and then gives it its name, which no other file may have.
fn write_in(folder: OwnedFd, shown: &Path, name: &Path, token: &Secret) -> Result<TokenFile, String> {
    let path = shown.join(name);
    let told = |error: Errno| format!("{}: {}", path.display(), reason(error));
    let draft = PathBuf::from(format!(".{}.{:016x}", name.display(), fastrand::u64(..)));
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    let mut file = File::from(openat(&folder, &draft, flags, mode).map_err(told)?);
    let written = (|| {
        fchmod(&file, mode).map_err(told)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(told)?;
        let text = format!("{}\n", token.reveal());
        file.write_all(text.as_bytes())
            .map_err(|error| format!("{}: {error}", path.display()))?;
        for _ in 0..ATTEMPTS {
            match give_name(&folder, &draft, name) {
                Err(Errno::EXIST) => make_way(&folder, name).map_err(|why| format!("{}: {why}", path.display()))?,
                other => return other.map_err(told),
            }
        }
        Err(format!("{}: others keep writing it", path.display()))
    })();
    if let Err(why) = written {
        let _ = unlinkat(&folder, &draft, AtFlags::empty());
        return Err(why);
    }
    Ok(TokenFile {
        name: name.to_owned(),
        path,
        folder,
        file,
    })
}

/// Errors: `EXIST` if there is a file of that name already.
fn give_name(folder: &OwnedFd, draft: &Path, name: &Path) -> Result<(), Errno> {
    match renameat_with(folder, draft, folder, name, RenameFlags::NOREPLACE) {
        // Not every file system knows that flag.
        Err(Errno::INVAL | Errno::NOSYS) => {
            linkat(folder, draft, folder, name, AtFlags::empty())?;
            unlinkat(folder, draft, AtFlags::empty())
        }
        outcome => outcome,
    }
}

/// Removes a token file that a crash of this user's proxy left. Errors: it is something else, or its proxy lives.
fn make_way(folder: &OwnedFd, name: &Path) -> Result<(), String> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut file = match openat(folder, name, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(reason(error)),
    };
    let found = fstat(&file).map_err(reason)?;
    if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
        return Err("something that is no file has its name".to_owned());
    }
    let uid = geteuid().as_raw();
    if found.st_uid != uid {
        return Err(format!("it belongs to uid {}, not to uid {uid}", found.st_uid));
    }
    for attempt in 1.. {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            // A command may be looking whether its proxy runs.
            Err(Errno::WOULDBLOCK) if attempt < ATTEMPTS => std::thread::sleep(A_LOOK),
            Err(Errno::WOULDBLOCK) => return Err("another proxy of this user has it for the same port".to_owned()),
            Err(error) => return Err(reason(error)),
        }
    }
    if !is_made(read_short(&mut file)?.trim()) {
        return Err("it holds something else than a token that a proxy made".to_owned());
    }
    // Locked by now, it may have lost its name to a proxy that was quicker.
    match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(named) if is_same(&found, &named) => unlinkat(folder, name, AtFlags::empty()).map_err(reason),
        _ => Ok(()),
    }
}

/// A token that was found, and where.
#[derive(Clone, Debug)]
pub struct FoundToken {
    pub token: Secret,
    pub path: PathBuf,
    /// The user whose proxy made it.
    pub owner: u32,
}

/// What a search gave.
#[derive(Clone, Debug, Default)]
pub struct TokenSearch {
    /// Best first. Several: one of them is of a proxy that runs, others were left by crashes.
    pub found: Vec<FoundToken>,
    /// For people: where there was none, and why.
    pub missed: Vec<String>,
}

/// Looks for the token of the proxy on this machine whose admin address has this port. Blocking.
pub fn find(places: &TokenPlaces, port: u16) -> TokenSearch {
    let name = token_file_name(port);
    let uid = geteuid().as_raw();
    let mut search = TokenSearch::default();
    for folder in places.to_search(uid) {
        let path = folder.path().join(&name);
        match read_in(&folder, &name, uid) {
            Ok((token, owner)) => search.found.push(FoundToken { token, path, owner }),
            Err(why) => search.missed.push(format!("{}: {why}", path.display())),
        }
    }
    if uid == 0 {
        let known: Vec<PathBuf> = search.found.iter().map(|found| found.path.clone()).collect();
        let others = places
            .of_users()
            .into_iter()
            .flat_map(|folders| find_of_users(&folders, &name));
        search.found.extend(others.filter(|other| !known.contains(&other.path)));
    }
    search
}

/// Finds the token files that users' proxies have written, each in a folder that is named after its user and belongs to him.
/// A missing one is not reported, since these places are guesses.
fn find_of_users(folders: &UserFolders, file: &str) -> Vec<FoundToken> {
    let entries = std::fs::read_dir(folders.path()).into_iter().flatten().flatten();
    let named = entries.filter_map(|entry| folders.folder(entry.file_name().to_str()?));
    let mut found = Vec::new();
    for (uid, folder) in named {
        let (path, owner) = (folder.path(), statat(CWD, folder.path(), AtFlags::SYMLINK_NOFOLLOW));
        if !owner.is_ok_and(|owner| owner.st_uid == uid) {
            continue;
        }
        if let Ok((token, owner)) = read_in(&folder, file, uid) {
            let path = path.join(file);
            found.push(FoundToken { token, path, owner });
        }
    }
    found
}

/// The ports of admin addresses for which there are token files, sorted: of the folders in which a command of this user
/// looks, the first that has any. A file may have been left by a crash. Blocking.
pub fn ports(places: &TokenPlaces) -> Vec<u16> {
    let folders = places.to_search(geteuid().as_raw());
    let found = folders.iter().map(|folder| ports_in(&folder.path()));
    let mut ports = found.into_iter().find(|ports| !ports.is_empty()).unwrap_or_default();
    ports.sort_unstable();
    ports
}

/// A proxy of this user that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RunningProxy {
    /// Of its admin address.
    pub port: u16,
    pub pid: u32,
}

/// The proxies of this very user that run, by the token files that they hold locked, in the folders in which a command of this
/// user looks. A file of anybody else leads nowhere, also for root: others could have put it there. Blocking.
pub fn running(places: &TokenPlaces) -> Vec<RunningProxy> {
    let uid = geteuid().as_raw();
    let mut running = Vec::new();
    for folder in places.to_search(uid) {
        for port in ports_in(&folder.path()) {
            let name = token_file_name(port);
            let is_own = read_in(&folder, &name, uid).is_ok_and(|(_, owner)| owner == uid);
            let holder = is_own.then(|| holder(&folder.path().join(name))).flatten();
            running.extend(holder.map(|pid| RunningProxy { port, pid }));
        }
    }
    running.sort_unstable();
    running.dedup();
    running
}

/// The process that holds the lock of a token file, and has that very file open. `None` also where it cannot be seen, as from
/// another container.
fn holder(path: &Path) -> Option<u32> {
    let file = statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    locks_on(&locks, file.st_ino).find(|pid| {
        let open = std::fs::read_dir(format!("/proc/{pid}/fd"))
            .into_iter()
            .flatten()
            .flatten();
        // By number alone it could be a file of another file system.
        open.filter_map(|entry| statat(CWD, entry.path(), AtFlags::empty()).ok())
            .any(|opened| is_same(&opened, &file))
    })
}

/// The processes that hold a lock of a file with this number, whole and for themselves: `7: FLOCK  ADVISORY  WRITE 4711 fe:01:123 0 EOF`.
fn locks_on(table: &str, inode: u64) -> impl Iterator<Item = u32> + '_ {
    table.lines().filter_map(move |line| {
        let mut columns = line.split_ascii_whitespace().skip(1);
        let (kind, _, mode) = (columns.next()?, columns.next()?, columns.next()?);
        let (pid, file) = (columns.next()?.parse().ok()?, columns.next()?);
        let number: u64 = file.rsplit_once(':')?.1.parse().ok()?;
        (kind == "FLOCK" && mode == "WRITE" && number == inode).then_some(pid)
    })
}

fn ports_in(folder: &Path) -> Vec<u16> {
    let port = |entry: std::fs::DirEntry| {
        let name = entry.file_name();
        let name = name.to_str()?;
        let port = name.strip_prefix("admin-")?.strip_suffix(".token")?.parse().ok()?;
        (token_file_name(port) == name).then_some(port)
    };
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(port).collect()
}

/// Reads the file that `$LARDER_ADMIN_TOKEN_FILE` names. Errors: a sentence that names it.
pub fn read_named(path: &Path) -> Result<FoundToken, String> {
    read_given(path, TOKEN_FILE_VARIABLE)
}

/// Reads a file that `option` names. Errors: a sentence that names both.
pub fn read_given(path: &Path, option: &str) -> Result<FoundToken, String> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let told = |why: String| format!("{option}: {}: {why}", path.display());
    let file = openat(CWD, path, flags, Mode::empty()).map_err(|error| told(reason(error)))?;
    let (token, owner) = read_token(File::from(file), None).map_err(told)?;
    let path = path.to_owned();
    Ok(FoundToken { token, path, owner })
}

fn read_in(folder: &TokenFolder, name: &str, uid: u32) -> Result<(Secret, u32), String> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let flags = match folder {
        // Where only root can write, a link is root's doing.
        TokenFolder::Given(_) => flags,
        TokenFolder::Below { .. } => flags | OFlags::NOFOLLOW,
    };
    let opened = open(folder.path(), flags, Mode::empty()).map_err(reason)?;
    let found = fstat(&opened).map_err(reason)?;
    let is_given = matches!(folder, TokenFolder::Given(_));
    // Root may use everybody's token.
    if found.st_uid != uid && uid != 0 && !is_given {
        return Err(format!("its folder belongs to uid {}, not to uid {uid}", found.st_uid));
    }
    if found.st_mode & WRITABLE_BY_OTHERS != 0 {
        return Err("others than the owner may write into its folder".to_owned());
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = openat(opened.as_fd(), name, flags, Mode::empty()).map_err(|error| match error {
        Errno::ACCESS | Errno::PERM => {
            "this user may not read it: run the command as the proxy's user, or as root".to_owned()
        }
        error => reason(error),
    })?;
    read_token(File::from(file), Some(found.st_uid))
}

/// The token in an open file, which has to be the folder owner's or root's, and the file's owner.
fn read_token(mut file: File, folder_owner: Option<u32>) -> Result<(Secret, u32), String> {
    let found = fstat(&file).map_err(reason)?;
    if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
        return Err("it is no file".to_owned());
    }
    if folder_owner.is_some_and(|owner| found.st_uid != owner && found.st_uid != 0) {
        return Err(format!("it belongs to uid {}, its folder does not", found.st_uid));
    }
    let text = read_short(&mut file)?;
    let token = text.trim();
    check_token(token)?;
    Ok((Secret::new(token), found.st_uid))
}

fn read_short(file: &mut File) -> Result<String, String> {
    let mut text = String::new();
    let read = file.take(LONGEST).read_to_string(&mut text);
    read.map_err(|error| error.to_string())?;
    Ok(text)
}

fn reason(error: Errno) -> String {
    match error {
        Errno::NOENT => "it is not there".to_owned(),
        Errno::ACCESS | Errno::PERM => "permission denied".to_owned(),
        Errno::LOOP => "it is a symbolic link, which is not followed here".to_owned(),
        Errno::NOTDIR => "it is no folder, or a symbolic link".to_owned(),
        error => std::io::Error::from(error).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    use super::*;
    use crate::config::Environment;

    fn places(variables: &[(&str, &Path)]) -> TokenPlaces {
        let variable = |(name, path): &(&str, &Path)| ((*name).to_owned(), path.display().to_string());
        TokenPlaces::of(&Environment {
            variables: variables.iter().map(variable).collect(),
            ..Environment::default()
        })
    }

    fn mode(path: &Path) -> u32 {
        std::fs::symlink_metadata(path).unwrap().mode() & 0o777
    }

    fn tokens(search: &TokenSearch) -> Vec<&str> {
        search.found.iter().map(|found| found.token.reveal()).collect()
    }

    #[test]
    fn written_for_the_owner_found_by_the_port_and_gone_afterwards() {
        let root = tempfile::tempdir().unwrap();
        let places = places(&[("XDG_RUNTIME_DIR", root.path())]);
        let token = make_token().unwrap();
        let file = TokenFile::write(&places, 5001, &token).unwrap();
        for other in ["admin-05001.token", "admin-x.token", "admin-5002.token.bak"] {
            std::fs::write(root.path().join("larder").join(other), "x").unwrap();
        }
        assert_eq!(ports(&places), [5001]);
        for other in ["admin-05001.token", "admin-x.token", "admin-5002.token.bak"] {
            std::fs::remove_file(root.path().join("larder").join(other)).unwrap();
        }
        assert_eq!(file.path(), root.path().join("larder/admin-5001.token"));
        assert_eq!((mode(file.path()), mode(&root.path().join("larder"))), (0o600, 0o700));
        assert_eq!(tokens(&find(&places, 5001)), [token.reveal()]);
        assert!(find(&places, 5002).found.is_empty());
        let path = file.path().to_owned();
        drop(file);
        assert!(!path.exists());
        // Nothing else is left, drafts neither.
        assert_eq!(std::fs::read_dir(root.path().join("larder")).unwrap().count(), 0);
    }

    #[test]
    fn every_folder_is_tried_in_its_order() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        let (unit, session, tmp) = (at("unit"), at("session"), at("tmp"));
        let all = places(&[
            ("RUNTIME_DIRECTORY", &unit),
            ("XDG_RUNTIME_DIR", &session),
            ("TMPDIR", &tmp),
        ]);
        let token = make_token().unwrap();
        let refused = TokenFile::write(&all, 1, &token).unwrap_err();
        assert_eq!(refused.len(), 3, "{refused:?}");
        let own = tmp.join(format!("larder-{}", geteuid().as_raw()));
        for (make, expected) in [(&tmp, own), (&session, session.join("larder")), (&unit, unit.clone())] {
            std::fs::create_dir(make).unwrap();
            let file = TokenFile::write(&all, 1, &token).unwrap();
            assert_eq!(file.path().parent(), Some(expected.as_path()));
            assert_eq!(tokens(&find(&all, 1)), [token.reveal()]);
        }
        // A unit's folder may be open for others to read, never to write.
        std::fs::set_permissions(&unit, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(TokenFile::write(&all, 1, &token).unwrap().path().starts_with(&unit));
        std::fs::set_permissions(&unit, std::fs::Permissions::from_mode(0o775)).unwrap();
        assert!(TokenFile::write(&all, 1, &token).unwrap().path().starts_with(&session));
    }

    #[test]
    fn links_are_not_followed() {
        let root = tempfile::tempdir().unwrap();
        let (session, elsewhere) = (root.path().join("session"), root.path().join("elsewhere"));
        std::fs::create_dir(&session).unwrap();
        std::fs::create_dir(&elsewhere).unwrap();
        let places = places(&[("XDG_RUNTIME_DIR", &session), ("TMPDIR", Path::new("/nonexistent"))]);
        let token = make_token().unwrap();
        symlink(&elsewhere, session.join("larder")).unwrap();
        let refused = TokenFile::write(&places, 1, &token).unwrap_err();
        assert!(refused[0].contains("symbolic link"), "{refused:?}");
        assert_eq!(std::fs::read_dir(&elsewhere).unwrap().count(), 0);
        std::fs::write(elsewhere.join("admin-1.token"), "planted-by-somebody").unwrap();
        assert!(find(&places, 1).found.is_empty());
        std::fs::remove_file(session.join("larder")).unwrap();
        // A file that leads elsewhere is neither written through nor read.
        std::fs::create_dir(session.join("larder")).unwrap();
        let target = root.path().join("target");
        std::fs::write(&target, "a secret of somebody").unwrap();
        symlink(&target, session.join("larder/admin-1.token")).unwrap();
        assert!(TokenFile::write(&places, 1, &token).is_err());
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "a secret of somebody");
        assert!(find(&places, 1).found.is_empty());
    }

    #[test]
    fn what_a_crash_left_is_replaced_and_what_lives_is_not() {
        let root = tempfile::tempdir().unwrap();
        let places = places(&[("XDG_RUNTIME_DIR", root.path()), ("TMPDIR", Path::new("/nonexistent"))]);
        let (left, next) = (make_token().unwrap(), make_token().unwrap());
        let path = root.path().join("larder/admin-7.token");
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        std::fs::write(&path, left.reveal()).unwrap();
        let file = TokenFile::write(&places, 7, &next).unwrap();
        assert_eq!(tokens(&find(&places, 7)), [next.reveal()]);
        let refused = TokenFile::write(&places, 7, &left).unwrap_err();
        assert!(refused[0].contains("another proxy of this user"), "{refused:?}");
        assert_eq!(tokens(&find(&places, 7)), [next.reveal()]);
        // A file of the same name that is not this one stays.
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "not ours").unwrap();
        drop(file);
        assert!(path.exists());
        let refused = TokenFile::write(&places, 7, &left).unwrap_err();
        assert!(refused[0].contains("something else"), "{refused:?}");
    }

    #[test]
    fn one_of_many_at_once_wins() {
        let root = tempfile::tempdir().unwrap();
        let places = places(&[("XDG_RUNTIME_DIR", root.path()), ("TMPDIR", Path::new("/nonexistent"))]);
        std::fs::create_dir(root.path().join("larder")).unwrap();
        for _ in 0..50 {
            // Each round begins with what a crash left.
            let path = root.path().join("larder/admin-7.token");
            std::fs::write(&path, make_token().unwrap().reveal()).unwrap();
            let barrier = std::sync::Barrier::new(8);
            let written: Vec<_> = std::thread::scope(|scope| {
                let write = || {
                    let token = make_token().unwrap();
                    barrier.wait();
                    TokenFile::write(&places, 7, &token).map(|file| (file, token))
                };
                let threads: Vec<_> = (0..8).map(|_| scope.spawn(write)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            let won: Vec<_> = written.into_iter().filter_map(Result::ok).collect();
            assert_eq!(won.len(), 1);
            assert_eq!(tokens(&find(&places, 7)), [won[0].1.reveal()]);
        }
    }

    #[test]
    fn a_named_file_takes_the_place_of_all_folders() {
        let root = tempfile::tempdir().unwrap();
        let named = root.path().join("mine");
        let places = places(&[("XDG_RUNTIME_DIR", root.path()), (TOKEN_FILE_VARIABLE, &named)]);
        assert_eq!(given_file(&places), Ok(None));
        let token = make_token().unwrap();
        let file = TokenFile::write(&places, 1, &token).unwrap();
        assert_eq!((file.path(), mode(&named)), (named.as_path(), 0o600));
        assert_eq!(read_named(&named).unwrap().token.reveal(), token.reveal());
        // What a proxy made is no operator's choice.
        assert_eq!(given_file(&places), Ok(None));
        drop(file);
        std::fs::write(&named, "an-operators-own-token\n").unwrap();
        assert_eq!(given_file(&places), Ok(Some(named.clone())));
        assert!(TokenFile::write(&places, 1, &token).is_err());
        // What others may write, or have linked to, is nobody's choice.
        let writable = std::fs::Permissions::from_mode(0o666);
        std::fs::set_permissions(&named, writable).unwrap();
        assert!(given_file(&places).unwrap_err().contains("others may write it"));
        std::fs::remove_file(&named).unwrap();
        let target = root.path().join("target");
        std::fs::write(&target, "known-to-everybody").unwrap();
        symlink(&target, &named).unwrap();
        assert_eq!(given_file(&places), Ok(Some(named.clone())));
        std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(
            given_file(&places)
                .unwrap_err()
                .contains("others may write into the folder")
        );
        assert!(TokenFile::write(&places, 1, &token).unwrap_err()[0].contains("symbolic link"));
        std::fs::remove_file(&named).unwrap();
        for bad in ["", "a", "two words that are long", "\n"] {
            std::fs::write(&named, bad).unwrap();
            for why in [read_named(&named).unwrap_err(), given_file(&places).unwrap_err()] {
                assert!(
                    why.contains(TOKEN_FILE_VARIABLE) && why.contains("expected 16 or more"),
                    "{why}"
                );
            }
        }
    }

    /// `token -> ..data/token`, `..data -> ..2026`, in a folder where everybody may write, with the sticky bit.
    #[test]
    fn a_secret_as_kubernetes_mounts_it() {
        let root = tempfile::tempdir().unwrap();
        let data = root.path().join("..2026");
        std::fs::create_dir(&data).unwrap();
        std::fs::write(data.join("token"), "an-operators-own-token").unwrap();
        symlink("..2026", root.path().join("..data")).unwrap();
        let named = root.path().join("token");
        symlink("..data/token", &named).unwrap();
        let open = |path: &Path, mode: u32| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        open(root.path(), 0o1777);
        let places = places(&[(TOKEN_FILE_VARIABLE, &named)]);
        assert_eq!(given_file(&places), Ok(Some(named.clone())));
        // By the folders that really hold it.
        open(&data, 0o777);
        assert!(given_file(&places).unwrap_err().contains("..2026"));
        open(&data, 0o755);
        open(root.path(), 0o777);
        assert!(given_file(&places).unwrap_err().contains("others may write into"));
        open(root.path(), 0o1777);
        std::fs::remove_file(root.path().join("..data")).unwrap();
        symlink("..data", root.path().join("..data")).unwrap();
        assert!(given_file(&places).is_err());
        if !geteuid().is_root() {
            eprintln!("not run: secrets of several users take root");
            return;
        }
        let give = |path: &Path, uid: u32| std::os::unix::fs::lchown(path, Some(uid), Some(uid)).unwrap();
        // As Compose mounts what lies in somebody's home.
        std::fs::remove_file(&named).unwrap();
        std::fs::write(&named, "an-operators-own-token").unwrap();
        give(&named, 65_533);
        assert!(given_file(&places).unwrap_err().contains("belongs to uid 65533"));
        open(root.path(), 0o755);
        assert_eq!(given_file(&places), Ok(Some(named.clone())));
        // A link of somebody else's, in a folder for everybody; and a folder of somebody else's.
        open(root.path(), 0o1777);
        std::fs::remove_file(&named).unwrap();
        symlink("..2026/token", &named).unwrap();
        give(&named, 65_533);
        assert!(given_file(&places).unwrap_err().contains("belongs to uid 65533"));
        give(&named, 0);
        give(&data, 65_533);
        assert!(given_file(&places).unwrap_err().contains("belongs to uid 65533"));
    }

    #[test]
    fn tokens_differ_and_show_nothing() {
        let (one, other) = (make_token().unwrap(), make_token().unwrap());
        assert!(one != other && is_made(one.reveal()) && one.reveal().len() == 47);
        assert!(!format!("{one:?}").contains(one.reveal()));
        for not in ["lra_", "lra_short", "sixteen-letters!", ""] {
            assert!(!is_made(not), "{not}");
        }
    }
}
