//! Where a proxy without a configured token keeps the one that it makes at its start, and where commands look for it.
//!
//! Names only: `admin::token` makes and reads the files. Nothing here depends on the configuration file, so a command
//! finds the token of a proxy whose configuration it may not read.

use std::path::{Path, PathBuf};

use super::environment::Environment;

/// Says where commands find the admin API, in place of the configuration.
pub const ADMIN_URL_VARIABLE: &str = "LARDER_ADMIN_URL";

/// Names the file, in place of every folder below.
pub const TOKEN_FILE_VARIABLE: &str = "LARDER_ADMIN_TOKEN_FILE";

/// The name of the folder below a runtime folder.
const OWN: &str = "larder";

/// What the surroundings of a process say about runtime folders.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenPlaces {
    /// `$LARDER_ADMIN_TOKEN_FILE`
    pub file: Option<PathBuf>,
    /// The first of `$RUNTIME_DIRECTORY`: a systemd unit's own folder.
    unit: Option<PathBuf>,
    /// `$XDG_RUNTIME_DIR`
    session: Option<PathBuf>,
    /// `/run`; empty where tests have none.
    run: PathBuf,
    /// `$TMPDIR`, if it is set.
    tmpdir: Option<PathBuf>,
}

/// A folder that may hold token files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenFolder {
    /// Made by somebody else for this purpose, in a place that only root can write.
    Given(PathBuf),
    /// Made by the proxy that needs it, below a folder that others may share.
    Below { parent: PathBuf, name: String },
}

/// A folder with one of each user's, which is named after him.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UserFolders {
    /// `UID/larder` below it.
    Sessions(PathBuf),
    /// `larder-UID` below it.
    Temporary(PathBuf),
}

impl UserFolders {
    pub fn path(&self) -> &Path {
        match self {
            UserFolders::Sessions(path) | UserFolders::Temporary(path) => path,
        }
    }

    /// The user whose folder has this name, and the folder that may hold his token files.
    pub fn folder(&self, name: &str) -> Option<(u32, TokenFolder)> {
        let number = match self {
            UserFolders::Sessions(_) => name,
            UserFolders::Temporary(_) => name.strip_prefix(OWN)?.strip_prefix('-')?,
        };
        let uid: u32 = number.parse().ok()?;
        // Written in no other way.
        (uid.to_string() == number).then_some(())?;
        let folder = match self {
            UserFolders::Sessions(path) => below(path.join(name), OWN),
            UserFolders::Temporary(path) => below(path.clone(), name),
        };
        Some((uid, folder))
    }
}

impl TokenFolder {
    pub fn path(&self) -> PathBuf {
        match self {
            TokenFolder::Given(path) => path.clone(),
            TokenFolder::Below { parent, name } => parent.join(name),
        }
    }
}

/// `admin-5001.token`
pub fn token_file_name(port: u16) -> String {
    format!("admin-{port}.token")
}

impl TokenPlaces {
    pub fn of(environment: &Environment) -> TokenPlaces {
        let absolute = |name: &str| {
            let path = environment.get(name).map(Path::new);
            path.filter(|path| path.is_absolute()).map(Path::to_owned)
        };
        // systemd separates several folders by colons; the first is the unit's own.
        let unit = environment.get("RUNTIME_DIRECTORY");
        let unit = unit.and_then(|list| list.split(':').find(|dir| Path::new(dir).is_absolute()));
        TokenPlaces {
            file: environment
                .get(TOKEN_FILE_VARIABLE)
                .map(|path| environment.cwd.join(path)),
            unit: unit.map(PathBuf::from),
            session: absolute("XDG_RUNTIME_DIR"),
            run: environment.run.clone(),
            tmpdir: absolute("TMPDIR"),
        }
    }

    /// Where a proxy of this user makes its file, in the order in which they are tried.
    pub fn to_write(&self, uid: u32) -> Vec<TokenFolder> {
        let mut folders: Vec<TokenFolder> = self.unit.iter().cloned().map(TokenFolder::Given).collect();
        folders.extend(self.session.clone().map(|parent| below(parent, OWN)));
        if uid == 0 && !self.run.as_os_str().is_empty() {
            folders.push(below(self.run.clone(), OWN));
        }
        let temporary = self.tmpdir.clone().unwrap_or_else(|| PathBuf::from("/tmp"));
        folders.push(below(temporary, &format!("{OWN}-{uid}")));
        folders
    }

    /// Where a command of this user looks: also where a unit's proxy and one with another temporary folder have it.
    pub fn to_search(&self, uid: u32) -> Vec<TokenFolder> {
        let mut folders: Vec<TokenFolder> = self.unit.iter().cloned().map(TokenFolder::Given).collect();
        folders.extend(self.session.clone().map(|parent| below(parent, OWN)));
        if !self.run.as_os_str().is_empty() {
            folders.push(TokenFolder::Given(self.run.join(OWN)));
        }
        let own = format!("{OWN}-{uid}");
        folders.extend(self.tmpdir.clone().map(|parent| below(parent, &own)));
        folders.push(below(PathBuf::from("/tmp"), &own));
        let mut once: Vec<TokenFolder> = Vec::new();
        for folder in folders {
            if once.iter().all(|other| other.path() != folder.path()) {
                once.push(folder);
            }
        }
        once
    }

    /// Folders whose subfolders are users' own, and the name below: for root, who may use everybody's token. `$XDG_RUNTIME_DIR`
    /// of a session is not in the environment of its `sudo`.
    pub fn of_users(&self) -> Vec<UserFolders> {
        let temporary = self.tmpdir.iter().cloned().chain([PathBuf::from("/tmp")]);
        let mut all: Vec<UserFolders> = Vec::new();
        if !self.run.as_os_str().is_empty() {
            all.push(UserFolders::Sessions(self.run.join("user")));
        }
        for parent in temporary {
            let folders = UserFolders::Temporary(parent);
            if !all.contains(&folders) {
                all.push(folders);
            }
        }
        all
    }
}

fn below(parent: PathBuf, name: &str) -> TokenFolder {
    let name = name.to_owned();
    TokenFolder::Below { parent, name }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> TokenPlaces {
        let variables = variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        TokenPlaces::of(&Environment {
            variables: variables.collect(),
            cwd: PathBuf::from("/here"),
            run: PathBuf::from("/run"),
            ..Environment::default()
        })
    }

    fn paths(folders: &[TokenFolder]) -> Vec<String> {
        folders
            .iter()
            .map(|folder| folder.path().display().to_string())
            .collect()
    }

    #[test]
    fn the_order_of_the_folders() {
        let bare = of(&[]);
        assert_eq!(paths(&bare.to_write(7)), ["/tmp/larder-7"]);
        assert_eq!(paths(&bare.to_write(0)), ["/run/larder", "/tmp/larder-0"]);
        assert_eq!(paths(&bare.to_search(7)), ["/run/larder", "/tmp/larder-7"]);
        let all = of(&[
            ("RUNTIME_DIRECTORY", "/run/larder:/run/other"),
            ("XDG_RUNTIME_DIR", "/run/user/7"),
            ("TMPDIR", "/scratch"),
        ]);
        assert_eq!(
            paths(&all.to_write(7)),
            ["/run/larder", "/run/user/7/larder", "/scratch/larder-7"]
        );
        assert_eq!(
            paths(&all.to_search(7)),
            [
                "/run/larder",
                "/run/user/7/larder",
                "/scratch/larder-7",
                "/tmp/larder-7"
            ]
        );
        // Every folder that is written is searched.
        for uid in [0, 7] {
            let searched = paths(&all.to_search(uid));
            assert!(paths(&all.to_write(uid)).iter().all(|path| searched.contains(path)));
        }
    }

    #[test]
    fn folders_of_other_users() {
        let all = of(&[("TMPDIR", "/scratch")]).of_users();
        let found = |name: &str| -> Vec<(u32, String)> {
            let folders = all.iter().filter_map(|folders| folders.folder(name));
            folders
                .map(|(uid, folder)| (uid, folder.path().display().to_string()))
                .collect()
        };
        assert_eq!(found("7"), [(7, "/run/user/7/larder".to_owned())]);
        let temporary = ["/scratch/larder-7", "/tmp/larder-7"].map(|path| (7, path.to_owned()));
        assert_eq!(found("larder-7"), temporary);
        for other in [
            "larder-",
            "larder-07",
            "larder-+7",
            "larder7",
            "larder-x",
            "-7",
            "4294967296",
            "..",
        ] {
            assert_eq!(found(other), [], "{other}");
        }
    }

    #[test]
    fn relative_folders_are_none_and_a_relative_file_starts_at_the_current_folder() {
        let places = of(&[
            ("XDG_RUNTIME_DIR", "run"),
            ("RUNTIME_DIRECTORY", "larder"),
            ("TMPDIR", "."),
            ("LARDER_ADMIN_TOKEN_FILE", "token"),
        ]);
        assert_eq!(paths(&places.to_write(7)), ["/tmp/larder-7"]);
        assert_eq!(places.file, Some(PathBuf::from("/here/token")));
    }
}
